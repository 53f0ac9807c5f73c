//! Ops on one lane, held in a word. An F32 or I32 lane is the low half of its word, the high half being 0.

use crate::kir::{BinaryOp, CompareOp, Elem, UnaryOp};

pub(super) fn f32_of(word: u64) -> f32 {
    f32::from_bits(word as u32)
}

pub(super) fn word32(x: f32) -> u64 {
    x.to_bits() as u64
}

pub(super) fn i32_word(x: i32) -> u64 {
    x as u32 as u64
}

/// Bits of an f32 rounded to bf16.
pub(super) fn round_bf16(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() {
        return 0x7fc0_0000;
    }
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000
}

pub(super) fn unary_fn(op: UnaryOp, elem: Elem) -> fn(u64) -> u64 {
    match (elem, op) {
        (Elem::F32, UnaryOp::Neg) => |x| x ^ 0x8000_0000,
        (Elem::F32, UnaryOp::Abs) => |x| x & 0x7fff_ffff,
        (Elem::F32, UnaryOp::Sqrt) => |x| word32(f32_of(x).sqrt()),
        (Elem::F32, UnaryOp::Floor) => |x| word32(f32_of(x).floor()),
        (Elem::F32, UnaryOp::Ceil) => |x| word32(f32_of(x).ceil()),
        (Elem::F32, UnaryOp::Trunc) => |x| word32(f32_of(x).trunc()),
        (Elem::F32, UnaryOp::RoundEven) => |x| word32(f32_of(x).round_ties_even()),
        (Elem::F32, UnaryOp::RoundBf16) => |x| round_bf16(x as u32) as u64,
        (Elem::F64, UnaryOp::Neg) => |x| x ^ (1 << 63),
        (Elem::F64, UnaryOp::Abs) => |x| x & !(1 << 63),
        (Elem::F64, UnaryOp::Sqrt) => |x| f64::from_bits(x).sqrt().to_bits(),
        (Elem::F64, UnaryOp::Floor) => |x| f64::from_bits(x).floor().to_bits(),
        (Elem::F64, UnaryOp::Ceil) => |x| f64::from_bits(x).ceil().to_bits(),
        (Elem::F64, UnaryOp::Trunc) => |x| f64::from_bits(x).trunc().to_bits(),
        (Elem::F64, UnaryOp::RoundEven) => |x| f64::from_bits(x).round_ties_even().to_bits(),
        (Elem::I32, UnaryOp::Neg) => |x| i32_word((x as i32).wrapping_neg()),
        (Elem::I32, UnaryOp::Abs) => |x| i32_word((x as i32).wrapping_abs()),
        (Elem::I32, UnaryOp::Not) => |x| i32_word(!(x as i32)),
        (Elem::I64, UnaryOp::Neg) => |x| (x as i64).wrapping_neg() as u64,
        (Elem::I64, UnaryOp::Abs) => |x| (x as i64).wrapping_abs() as u64,
        (Elem::I64, UnaryOp::Not) => |x| !x,
        (Elem::I1, UnaryOp::Not) => |x| x ^ 1,
        // Refused by the verifier, which has run.
        (Elem::F32, UnaryOp::Not)
        | (Elem::F64, UnaryOp::Not | UnaryOp::RoundBf16)
        | (
            Elem::I32 | Elem::I64,
            UnaryOp::Sqrt
            | UnaryOp::Floor
            | UnaryOp::Ceil
            | UnaryOp::Trunc
            | UnaryOp::RoundEven
            | UnaryOp::RoundBf16,
        )
        | (
            Elem::I1,
            UnaryOp::Neg
            | UnaryOp::Abs
            | UnaryOp::Sqrt
            | UnaryOp::Floor
            | UnaryOp::Ceil
            | UnaryOp::Trunc
            | UnaryOp::RoundEven
            | UnaryOp::RoundBf16,
        ) => |x| x,
    }
}

/// IEEE 754-2019 minimum or maximum.
macro_rules! extremum {
    ($name:ident, $float:ty, $wins:tt, $zero:ident) => {
        fn $name(a: $float, b: $float) -> $float {
            if a.is_nan() || b.is_nan() {
                <$float>::NAN
            } else if a == b {
                if a.$zero() { a } else { b }
            } else if a $wins b {
                a
            } else {
                b
            }
        }
    };
}

extremum!(min32, f32, <, is_sign_negative);
extremum!(max32, f32, >, is_sign_positive);
extremum!(min64, f64, <, is_sign_negative);
extremum!(max64, f64, >, is_sign_positive);

pub(super) fn binary_fn(op: BinaryOp, elem: Elem) -> fn(u64, u64) -> u64 {
    match (elem, op) {
        (Elem::F32, BinaryOp::Add) => |a, b| word32(f32_of(a) + f32_of(b)),
        (Elem::F32, BinaryOp::Sub) => |a, b| word32(f32_of(a) - f32_of(b)),
        (Elem::F32, BinaryOp::Mul) => |a, b| word32(f32_of(a) * f32_of(b)),
        (Elem::F32, BinaryOp::Div) => |a, b| word32(f32_of(a) / f32_of(b)),
        (Elem::F32, BinaryOp::Min) => |a, b| word32(min32(f32_of(a), f32_of(b))),
        (Elem::F32, BinaryOp::Max) => |a, b| word32(max32(f32_of(a), f32_of(b))),
        (Elem::F64, BinaryOp::Add) => |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Sub) => |a, b| (f64::from_bits(a) - f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Mul) => |a, b| (f64::from_bits(a) * f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Div) => |a, b| (f64::from_bits(a) / f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Min) => |a, b| min64(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        (Elem::F64, BinaryOp::Max) => |a, b| max64(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        (Elem::I32, BinaryOp::Add) => |a, b| i32_word((a as i32).wrapping_add(b as i32)),
        (Elem::I32, BinaryOp::Sub) => |a, b| i32_word((a as i32).wrapping_sub(b as i32)),
        (Elem::I32, BinaryOp::Mul) => |a, b| i32_word((a as i32).wrapping_mul(b as i32)),
        (Elem::I32, BinaryOp::Div) => {
            |a, b| if b == 0 { 0 } else { i32_word((a as i32).wrapping_div(b as i32)) }
        }
        (Elem::I32, BinaryOp::Rem) => {
            |a, b| if b == 0 { 0 } else { i32_word((a as i32).wrapping_rem(b as i32)) }
        }
        (Elem::I32, BinaryOp::Min) => |a, b| i32_word((a as i32).min(b as i32)),
        (Elem::I32, BinaryOp::Max) => |a, b| i32_word((a as i32).max(b as i32)),
        (Elem::I32, BinaryOp::Shl) => |a, b| (a as u32).wrapping_shl(b as u32) as u64,
        (Elem::I32, BinaryOp::ShrU) => |a, b| (a as u32).wrapping_shr(b as u32) as u64,
        (Elem::I32, BinaryOp::ShrS) => |a, b| i32_word((a as i32).wrapping_shr(b as u32)),
        (Elem::I64, BinaryOp::Add) => u64::wrapping_add,
        (Elem::I64, BinaryOp::Sub) => u64::wrapping_sub,
        (Elem::I64, BinaryOp::Mul) => u64::wrapping_mul,
        (Elem::I64, BinaryOp::Div) => {
            |a, b| if b == 0 { 0 } else { (a as i64).wrapping_div(b as i64) as u64 }
        }
        (Elem::I64, BinaryOp::Rem) => {
            |a, b| if b == 0 { 0 } else { (a as i64).wrapping_rem(b as i64) as u64 }
        }
        (Elem::I64, BinaryOp::Min) => |a, b| (a as i64).min(b as i64) as u64,
        (Elem::I64, BinaryOp::Max) => |a, b| (a as i64).max(b as i64) as u64,
        (Elem::I64, BinaryOp::Shl) => |a, b| a.wrapping_shl(b as u32),
        (Elem::I64, BinaryOp::ShrU) => |a, b| a.wrapping_shr(b as u32),
        (Elem::I64, BinaryOp::ShrS) => |a, b| (a as i64).wrapping_shr(b as u32) as u64,
        (Elem::I32 | Elem::I64 | Elem::I1, BinaryOp::And) => |a, b| a & b,
        (Elem::I32 | Elem::I64 | Elem::I1, BinaryOp::Or) => |a, b| a | b,
        (Elem::I32 | Elem::I64 | Elem::I1, BinaryOp::Xor) => |a, b| a ^ b,
        // Refused by the verifier, which has run.
        (
            Elem::F32 | Elem::F64,
            BinaryOp::Rem
            | BinaryOp::And
            | BinaryOp::Or
            | BinaryOp::Xor
            | BinaryOp::Shl
            | BinaryOp::ShrU
            | BinaryOp::ShrS,
        )
        | (
            Elem::I1,
            BinaryOp::Add
            | BinaryOp::Sub
            | BinaryOp::Mul
            | BinaryOp::Div
            | BinaryOp::Rem
            | BinaryOp::Min
            | BinaryOp::Max
            | BinaryOp::Shl
            | BinaryOp::ShrU
            | BinaryOp::ShrS,
        ) => |a, _| a,
    }
}

pub(super) fn compare_fn(op: CompareOp, elem: Elem) -> fn(u64, u64) -> bool {
    /// One function per comparison, for a way of reading words.
    macro_rules! compare {
        ($read:expr) => {
            match op {
                CompareOp::Eq => |a, b| $read(a) == $read(b),
                CompareOp::Ne => |a, b| $read(a) != $read(b),
                CompareOp::Lt => |a, b| $read(a) < $read(b),
                CompareOp::Le => |a, b| $read(a) <= $read(b),
                CompareOp::Gt => |a, b| $read(a) > $read(b),
                CompareOp::Ge => |a, b| $read(a) >= $read(b),
            }
        };
    }
    match elem {
        Elem::F32 => compare!(f32_of),
        Elem::F64 => compare!(f64::from_bits),
        Elem::I32 => compare!(|x| x as i32),
        Elem::I64 => compare!(|x| x as i64),
        Elem::I1 => compare!(|x| x & 1),
    }
}

pub(super) fn convert_fn(from: Elem, to: Elem) -> fn(u64) -> u64 {
    match (from, to) {
        (Elem::F32, Elem::F64) => |x| (f32_of(x) as f64).to_bits(),
        (Elem::F32, Elem::I32) => |x| i32_word(f32_of(x) as i32),
        (Elem::F32, Elem::I64) => |x| f32_of(x) as i64 as u64,
        (Elem::F32, Elem::I1) => |x| (f32_of(x) != 0.0) as u64,
        (Elem::F64, Elem::F32) => |x| word32(f64::from_bits(x) as f32),
        (Elem::F64, Elem::I32) => |x| i32_word(f64::from_bits(x) as i32),
        (Elem::F64, Elem::I64) => |x| f64::from_bits(x) as i64 as u64,
        (Elem::F64, Elem::I1) => |x| (f64::from_bits(x) != 0.0) as u64,
        (Elem::I32, Elem::F32) => |x| word32(x as i32 as f32),
        (Elem::I32, Elem::F64) => |x| (x as i32 as f64).to_bits(),
        (Elem::I32, Elem::I64) => |x| x as i32 as i64 as u64,
        (Elem::I64, Elem::F32) => |x| word32(x as i64 as f32),
        (Elem::I64, Elem::F64) => |x| (x as i64 as f64).to_bits(),
        (Elem::I64, Elem::I32) => |x| x as u32 as u64,
        (Elem::I32 | Elem::I64, Elem::I1) => |x| (x != 0) as u64,
        (Elem::I1, Elem::F32) => |x| word32((x & 1) as f32),
        (Elem::I1, Elem::F64) => |x| ((x & 1) as f64).to_bits(),
        (Elem::I1, Elem::I32 | Elem::I64) => |x| x & 1,
        (Elem::F32, Elem::F32) | (Elem::F64, Elem::F64) | (Elem::I32, Elem::I32) | (Elem::I64, Elem::I64) => {
            |x| x
        }
        (Elem::I1, Elem::I1) => |x| x,
    }
}
