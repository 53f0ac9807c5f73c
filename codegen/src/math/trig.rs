//! Sine and cosine.

use super::{bits_elem, is_f64, layout, like, polynomial};
use crate::kir::{BinaryOp, Builder, CompareOp, UnaryOp, Value};

/// `(sin(r)/r − 1)/r²` in r² for |r| ≤ π/4; absolute error of the sine 4.9e-12.
const SIN_F32: [f64; 4] =
    [-0.1666666716337204, 0.008333329111337662, -0.00019839327433146536, 2.7182411486137426e-06];
/// `(cos(r) − 1 + r²/2)/r⁴` in r² for |r| ≤ π/4; absolute error of the cosine 1e-13.
const COS_F32: [f64; 4] =
    [0.0416666679084301, -0.0013888883404433727, 2.4799513994366862e-05, -2.720970257996669e-07];
/// As `SIN_F32`; 2e-21.
const SIN_F64: [f64; 7] = [
    -0.16666666666666666,
    0.008333333333333323,
    -0.00019841269841255007,
    2.7557319214156545e-06,
    -2.5052104902263018e-08,
    1.6058365386447099e-10,
    -7.578634071168303e-13,
];
/// As `COS_F32`; 2.3e-23.
const COS_F64: [f64; 7] = [
    0.041666666666666664,
    -0.0013888888888888874,
    2.4801587301571533e-05,
    -2.755731921538253e-07,
    2.0876754365935225e-09,
    -1.1470293084365614e-11,
    4.738095039812215e-14,
];

/// sin x, x in radians: absolute error at most 1e-7 (F32, |x| ≤ 2²²) and 2e-16 (F64, |x| ≤ 2³⁰); NaN beyond, where the
/// period is not resolved, and for ±∞.
pub fn sin(b: &mut Builder, x: Value) -> Value {
    quadrants(b, x, 0)
}

/// cos x, as [`sin`].
pub fn cos(b: &mut Builder, x: Value) -> Value {
    quadrants(b, x, 1)
}

/// `sin(x + turn·π/2)`.
///
/// `x = n·π/2 + r` with whole `n` and |r| ≤ π/4. π/2 is subtracted in three parts of full precision; the first fused
/// multiply-add is exact because its result is a multiple of the part's last bit and below 1 (Cody and Waite 1980,
/// *Software Manual for the Elementary Functions*, ch. 8, with fused multiply-adds for the short constants). The lowest
/// two bits of `n + turn` choose the polynomial and the sign.
fn quadrants(b: &mut Builder, x: Value, turn: i64) -> Value {
    let wide = is_f64(b, x);
    let parts = if wide {
        [1.570_796_326_794_896_6, 6.123_233_995_736_766e-17, -1.497_384_904_859_169_8e-33]
    } else {
        [1.570_796_370_506_286_6, -4.371_138_828_673_793e-8, -1.715_124_510_005_881_9e-15]
    };
    let (_, _, magic) = layout(b, x);
    let magic = like(b, x, magic);
    let two_over_pi = like(b, x, std::f64::consts::FRAC_2_PI);
    let shifted = b.fma(x, two_over_pi, magic);
    let n = b.sub(shifted, magic);
    let mut r = x;
    for part in parts {
        let part = like(b, x, -part);
        r = b.fma(n, part, r);
    }

    let z = b.mul(r, r);
    let p = polynomial(b, z, if wide { &SIN_F64 } else { &SIN_F32 });
    let cube = b.mul(r, z);
    let sine = b.fma(cube, p, r);
    let q = polynomial(b, z, if wide { &COS_F64 } else { &COS_F32 });
    let minus_half = like(b, x, -0.5);
    let q = b.fma(z, q, minus_half);
    let one = like(b, x, 1.0);
    let cosine = b.fma(z, q, one);

    // The low bits of the shifted float are those of n, in two's complement.
    let int = bits_elem(b.ty(x));
    let n = b.bitcast(int, shifted);
    let n = b.add_const(n, turn);
    let swapped = has_bit(b, n, 1);
    let y = b.select(swapped, cosine, sine);
    let flipped = b.unary(UnaryOp::Neg, y);
    let negative = has_bit(b, n, 2);
    let y = b.select(negative, flipped, y);

    let limit = like(b, x, if wide { 1_073_741_824.0 } else { 4_194_304.0 });
    let magnitude = b.unary(UnaryOp::Abs, x);
    let in_domain = b.compare(CompareOp::Le, magnitude, limit);
    let nan = like(b, x, f64::NAN);
    b.select(in_domain, y, nan)
}

fn has_bit(b: &mut Builder, n: Value, bit: i64) -> Value {
    let ty = b.ty(n);
    let (mask, zero) = (b.const_int(ty, bit), b.const_int(ty, 0));
    let masked = b.binary(BinaryOp::And, n, mask);
    b.compare(CompareOp::Ne, masked, zero)
}
