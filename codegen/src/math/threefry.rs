//! Threefry-2x32-20, a counter-based random generator made of 32-bit additions, rotations and exclusive ors.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, §3.2, with the rotations
//! and the parity constant of the authors' Random123 distribution (`threefry.h`).

use crate::kir::{BinaryOp, Builder, Elem, Value};

/// Rotation distances of eight rounds, after which they repeat.
const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
/// The third word of the key schedule is this, exclusive-ored with the two words of the key.
const PARITY: u32 = 0x1bd1_1bda;
/// Groups of four rounds, each followed by an injection of the key.
const GROUPS: usize = 5;

/// Encrypts the two words of `counter` under the two words of `key`: 64 random bits.
///
/// A 64-bit integer holds two words, the first in its low half. This is the definition; what [`threefry`] expands to and
/// the interpreters give the same bits.
pub fn threefry2x32_20(key: i64, counter: i64) -> i64 {
    let [k0, k1] = halves(key);
    let schedule = [k0, k1, PARITY ^ k0 ^ k1];
    let [mut x0, mut x1] = halves(counter);
    x0 = x0.wrapping_add(k0);
    x1 = x1.wrapping_add(k1);
    for group in 0..GROUPS {
        for round in 0..4 {
            x0 = x0.wrapping_add(x1);
            x1 = x1.rotate_left(ROTATIONS[(4 * group + round) % 8]) ^ x0;
        }
        x0 = x0.wrapping_add(schedule[(group + 1) % 3]);
        x1 = x1.wrapping_add(schedule[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    (u64::from(x1) << 32 | u64::from(x0)) as i64
}

/// Splits 64 bits, low half first.
fn halves(word: i64) -> [u32; 2] {
    [word as u32, (word as u64 >> 32) as u32]
}

/// [`threefry2x32_20`] on lanes of I64.
pub fn threefry(b: &mut Builder, key: Value, counter: Value) -> Value {
    let [k0, k1] = split(b, key);
    let parity = b.const_int(b.ty(k0), i64::from(PARITY as i32));
    let k2 = b.binary(BinaryOp::Xor, k0, k1);
    let k2 = b.binary(BinaryOp::Xor, k2, parity);
    let schedule = [k0, k1, k2];
    let [mut x0, mut x1] = split(b, counter);
    x0 = b.add(x0, k0);
    x1 = b.add(x1, k1);
    for group in 0..GROUPS {
        for round in 0..4 {
            x0 = b.add(x0, x1);
            let turned = rotate_left(b, x1, ROTATIONS[(4 * group + round) % 8]);
            x1 = b.binary(BinaryOp::Xor, turned, x0);
        }
        x0 = b.add(x0, schedule[(group + 1) % 3]);
        let injected = b.add_const(schedule[(group + 2) % 3], group as i64 + 1);
        x1 = b.add(x1, injected);
    }
    join(b, x0, x1)
}

/// The halves of I64 lanes as I32, low half first.
fn split(b: &mut Builder, word: Value) -> [Value; 2] {
    let low = b.convert(Elem::I32, word);
    let distance = b.const_int(b.ty(word), 32);
    let high = b.binary(BinaryOp::ShrU, word, distance);
    [low, b.convert(Elem::I32, high)]
}

fn join(b: &mut Builder, low: Value, high: Value) -> Value {
    let (low, high) = (b.convert(Elem::I64, low), b.convert(Elem::I64, high));
    let ty = b.ty(low);
    let mask = b.const_int(ty, 0xffff_ffff);
    let low = b.binary(BinaryOp::And, low, mask);
    let distance = b.const_int(ty, 32);
    let high = b.binary(BinaryOp::Shl, high, distance);
    b.binary(BinaryOp::Or, high, low)
}

fn rotate_left(b: &mut Builder, x: Value, distance: u32) -> Value {
    let ty = b.ty(x);
    let (left, right) = (b.const_int(ty, i64::from(distance)), b.const_int(ty, i64::from(32 - distance)));
    let left = b.binary(BinaryOp::Shl, x, left);
    let right = b.binary(BinaryOp::ShrU, x, right);
    b.binary(BinaryOp::Or, left, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kir::Access;
    use crate::kir::interpret::interpret;
    use mlc_runtime::abi::DType;

    /// (counter, key, result) of the authors' Random123 distribution (`kat_vectors`, threefry2x32 20), words in order.
    const KNOWN: [([u32; 2], [u32; 2], [u32; 2]); 3] = [
        ([0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]),
        ([!0, !0], [!0, !0], [0x1cb9_96fc, 0xbb00_2be7]),
        ([0x243f_6a88, 0x85a3_08d3], [0x1319_8a2e, 0x0370_7344], [0xc492_3a9c, 0x483d_f7a0]),
    ];

    fn word([low, high]: [u32; 2]) -> i64 {
        (u64::from(high) << 32 | u64::from(low)) as i64
    }

    #[test]
    fn threefry2x32_20_gives_the_known_answers() {
        for (counter, key, result) in KNOWN {
            assert_eq!(threefry2x32_20(word(key), word(counter)), word(result));
        }
    }

    #[test]
    fn threefry_expands_to_its_definition() {
        for lanes in [1, 8] {
            let n = 64;
            let mut b = Builder::new(1, 0);
            let [x, k] = ["x", "k"].map(|name| b.buffer(name, DType::I64, n, Access::Read));
            let y = b.buffer("y", DType::I64, n, Access::Write);
            let (lo, hi) = (b.index(0), b.index(n));
            b.for_each(lo, hi, i64::from(lanes), |b, i| {
                let (counter, key) = (b.load(x, i, lanes), b.load(k, i, lanes));
                let bits = threefry(b, key, counter);
                b.store(y, i, bits);
            });
            let kernel = b.finish();
            let counters: Vec<i64> = KNOWN.iter().map(|k| word(k.0)).chain(-30..31).collect();
            let keys: Vec<i64> = KNOWN
                .iter()
                .map(|k| word(k.1))
                .chain((0..61).map(|i| (0x9e37_79b9_7f4a_7c15u64 as i64).wrapping_mul(i)))
                .collect();
            let bytes = |v: &[i64]| -> Vec<u8> { v.iter().flat_map(|x| x.to_le_bytes()).collect() };
            let mut buffers = vec![bytes(&counters), bytes(&keys), vec![0; 8 * n as usize]];
            interpret(&kernel, &mut buffers, &[], 0..1).unwrap();
            let want: Vec<i64> =
                keys.iter().zip(&counters).map(|(key, counter)| threefry2x32_20(*key, *counter)).collect();
            assert_eq!(buffers[2], bytes(&want), "{lanes} lanes");
        }
    }
}
