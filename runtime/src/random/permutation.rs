//! A pseudo-random permutation of `0..n` that is computed, not stored.
//!
//! A balanced Feistel network permutes the smallest even power of two that holds `n`; values outside `0..n` are sent
//! through again until they fall inside ("cycle walking", Black and Rogaway, "Ciphers with arbitrary finite domains",
//! 2002, §3). The domain is at most 4 n, so a value needs fewer than four walks on average.

use super::Stream;

const ROUNDS: u64 = 6;

/// A permutation of `0..n`.
#[derive(Clone, Debug)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    round: Stream,
    /// Distinguishes epochs within the stream.
    tweak: u64,
}

impl Permutation {
    /// The permutation number `epoch` of `0..n` under `seed`; `n` ≥ 1.
    pub fn new(seed: u64, epoch: u64, n: u64) -> Permutation {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        let tweak = Stream::new(seed, "data.order").word(epoch);
        Permutation { n, half_bits: bits.div_ceil(2).max(1), round: Stream::new(seed, "data.feistel"), tweak }
    }

    /// Where `index`, which must lie in `0..n`, goes.
    pub fn apply(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.encrypt(value);
            if value < self.n {
                return value;
            }
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = if self.half_bits == 32 { u64::from(u32::MAX) } else { (1 << self.half_bits) - 1 };
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let mixed = self.round.word(self.tweak ^ (right | (round << 56)));
            (left, right) = (right, (left ^ mixed) & mask);
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_is_a_bijection_of_every_size() {
        for n in (1..70).chain([255, 256, 257, 1000, 4097]) {
            let permutation = Permutation::new(3, 0, n);
            let mut seen: Vec<u64> = (0..n).map(|i| permutation.apply(i)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "n = {n}");
        }
    }

    #[test]
    fn permutation_differs_between_epochs_and_seeds() {
        let order = |seed, epoch| {
            let permutation = Permutation::new(seed, epoch, 1000);
            (0..1000).map(|i| permutation.apply(i)).collect::<Vec<_>>()
        };
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }

    /// Of 1000 places a random permutation leaves about one fixed; 8 or more has a chance below 1e-5.
    #[test]
    fn permutation_moves_nearly_everything() {
        let permutation = Permutation::new(1, 0, 1000);
        assert!((0..1000).filter(|&i| permutation.apply(i) == i).count() < 8);
    }
}
