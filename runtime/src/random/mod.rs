//! Randomness without state: every number is a pure function of a seed, a name and an index.
//!
//! That makes initialisation equal on any number of threads and any mesh, and lets a resumed run draw exactly what the
//! uninterrupted run would have drawn.

pub mod normal;
pub mod permutation;
pub mod philox;

use philox::philox4x32_10;

/// A stream of random blocks, addressed by index.
///
/// The Philox key is the seed; the low half of the counter is the index of the block and the high half is the first
/// eight bytes of the blake3 hash of the stream's name, so streams of different names never meet.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    name: [u32; 2],
}

impl Stream {
    /// The stream called `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Stream {
        let hash = blake3::hash(name.as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        Stream {
            key: halves(seed),
            name: [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])],
        }
    }

    /// The 128 random bits at `index`.
    #[inline(always)]
    pub fn block(&self, index: u64) -> [u32; 4] {
        let [low, high] = halves(index);
        philox4x32_10([low, high, self.name[0], self.name[1]], self.key)
    }

    /// 64 random bits at `index`.
    pub fn word(&self, index: u64) -> u64 {
        let [a, b, ..] = self.block(index);
        join(a, b)
    }

    /// A number uniform on `[0, 1)` with 53 random bits, at `index`.
    pub fn unit(&self, index: u64) -> f64 {
        unit(self.word(index))
    }
}

/// Splits 64 bits, low half first.
#[inline(always)]
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Joins two halves, low half first.
#[inline(always)]
fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

/// Maps 64 random bits to `[0, 1)` by their upper 53 bits.
#[inline]
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_seed_name_and_index() {
        let base = Stream::new(7, "embed").word(3);
        assert_eq!(base, Stream::new(7, "embed").word(3));
        assert_ne!(base, Stream::new(8, "embed").word(3));
        assert_ne!(base, Stream::new(7, "head").word(3));
        assert_ne!(base, Stream::new(7, "embed").word(4));
    }

    #[test]
    fn unit_lies_in_the_half_open_interval() {
        assert_eq!(unit(0), 0.0);
        assert!(unit(u64::MAX) < 1.0);
    }
}
