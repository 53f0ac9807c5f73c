//! Natural logarithm and power.

use super::{bits_elem, exp, is_f64, layout, like, polynomial};
use crate::kir::{BinaryOp, Builder, CompareOp, Value};

/// `(log(1+f) − f + f²/2) / f³` for √½ − 1 ≤ f ≤ √2 − 1; relative error of the logarithm 7.5e-10.
const F32: [f64; 9] = [
    0.3333331346511841,
    -0.25000008940696716,
    0.20002113282680511,
    -0.1666799634695053,
    0.14219649136066437,
    -0.12405633181333542,
    0.11887571960687637,
    -0.11675171554088593,
    0.06747273355722427,
];

/// `log((1+s)/(1−s)) = 2s + s·R(s²)`, `R` without its factor s². Source: fdlibm `e_log.c`; error below 2^−58.45.
const F64: [f64; 7] = [
    6.666_666_666_666_735_13e-1,
    3.999_999_999_940_941_908e-1,
    2.857_142_874_366_239_149e-1,
    2.222_219_843_214_978_396e-1,
    1.818_357_216_161_805_012e-1,
    1.531_383_769_920_937_332e-1,
    1.479_819_860_511_658_591e-1,
];

/// log x: at most 1 ulp. `log(0) = −∞`, `log(∞) = ∞`, NaN for x < 0; denormals are exact inputs.
///
/// `x = 2ᵏ·(1+f)` with √½ ≤ 1+f < √2, and `log x = k·ln2 + log(1+f)`; the high part of `ln2` has few enough bits that
/// its product with `k` is exact.
pub fn log(b: &mut Builder, x: Value) -> Value {
    let wide = is_f64(b, x);
    let (k, f) = split(b, x);
    let (ln2_high, ln2_low) = if wide {
        (0.693_147_180_485_539_1, 7.440_617_110_012_397e-11)
    } else {
        (0.693_115_234_375, 3.194_618_329_871_446e-5)
    };
    let (high, low) = (like(b, x, ln2_high), like(b, x, ln2_low));
    let tail = if wide { tail_f64(b, f) } else { tail_f32(b, f) };
    // log(1+f) = f + tail; the small parts are added first.
    let small = b.fma(k, low, tail);
    let near = b.add(small, f);
    let y = b.fma(k, high, near);
    let y = if wide { keep_low_part(b, k, high, f, small, y) } else { y };
    special_cases(b, x, y)
}

/// aᵇ for a ≥ 0 as exp(b·log a): relative error at most `(2 + 2·|b·log a|)` ulp. a⁰ = 1; NaN for a < 0.
pub fn pow(b: &mut Builder, base: Value, exponent: Value) -> Value {
    let log = log(b, base);
    let product = b.mul(exponent, log);
    let power = exp(b, product);
    let (zero, one) = (like(b, base, 0.0), like(b, base, 1.0));
    let is_zero = b.compare(CompareOp::Eq, exponent, zero);
    b.select(is_zero, one, power)
}

/// `(k as float, f)`, see [`log`]; for positive finite x.
fn split(b: &mut Builder, x: Value) -> (Value, Value) {
    let (mantissa, _, _) = layout(b, x);
    let wide = is_f64(b, x);
    let (float, int) = (b.ty(x).elem, bits_elem(b.ty(x)));
    let int_ty = b.ty(x).with_elem(int);

    let smallest = like(b, x, if wide { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) });
    let is_denormal = b.compare(CompareOp::Lt, x, smallest);
    let scale = like(b, x, (mantissa as f64).exp2());
    let scaled = b.mul(x, scale);
    let x = b.select(is_denormal, scaled, x);
    let (shift_down, none) = (b.const_int(int_ty, -mantissa), b.const_int(int_ty, 0));
    let extra = b.select(is_denormal, shift_down, none);

    let root_half = if wide {
        std::f64::consts::FRAC_1_SQRT_2.to_bits() as i64
    } else {
        i64::from(std::f32::consts::FRAC_1_SQRT_2.to_bits())
    };
    let bits = b.bitcast(int, x);
    let offset = b.add_const(bits, -root_half);
    let shift = b.const_int(int_ty, mantissa);
    let k = b.binary(BinaryOp::ShrS, offset, shift);
    let exponent = b.binary(BinaryOp::Shl, k, shift);
    let fraction = b.sub(bits, exponent);
    let m = b.bitcast(float, fraction);
    let one = like(b, x, 1.0);
    let f = b.sub(m, one);
    let k = b.add(k, extra);
    (b.convert(float, k), f)
}

/// `log(1+f) − f`.
fn tail_f32(b: &mut Builder, f: Value) -> Value {
    let p = polynomial(b, f, &F32);
    let f2 = b.mul(f, f);
    let minus_half = like(b, f, -0.5);
    let q = b.fma(f, p, minus_half);
    b.mul(f2, q)
}

/// `log(1+f) − f = −f²/2 + s·(f²/2 + R)` with `s = f/(2+f)`.
fn tail_f64(b: &mut Builder, f: Value) -> Value {
    let two = like(b, f, 2.0);
    let denominator = b.add(f, two);
    let s = b.div(f, denominator);
    let z = b.mul(s, s);
    let r = polynomial(b, z, &F64);
    let r = b.mul(z, r);
    let half = like(b, f, 0.5);
    let half_f = b.mul(f, half);
    let half_f2 = b.mul(half_f, f);
    let sum = b.add(half_f2, r);
    let product = b.mul(s, sum);
    b.sub(product, half_f2)
}

/// `k·high + (f + small)` without rounding the inner sum when k ≠ 0: the sum of `k·high` and `f` keeps its low part.
fn keep_low_part(b: &mut Builder, k: Value, high: Value, f: Value, small: Value, plain: Value) -> Value {
    let kh = b.mul(k, high);
    let sum = b.add(kh, f);
    let back = b.sub(sum, kh);
    let low = b.sub(f, back);
    let low = b.add(low, small);
    let y = b.add(sum, low);
    let zero = like(b, k, 0.0);
    let is_zero = b.compare(CompareOp::Eq, k, zero);
    b.select(is_zero, plain, y)
}

fn special_cases(b: &mut Builder, x: Value, y: Value) -> Value {
    let infinity = like(b, x, f64::INFINITY);
    let is_finite = b.compare(CompareOp::Lt, x, infinity);
    let y = b.select(is_finite, y, x);
    let zero = like(b, x, 0.0);
    let minus_infinity = like(b, x, f64::NEG_INFINITY);
    let is_zero = b.compare(CompareOp::Eq, x, zero);
    let y = b.select(is_zero, minus_infinity, y);
    let nan = like(b, x, f64::NAN);
    let is_negative = b.compare(CompareOp::Lt, x, zero);
    b.select(is_negative, nan, y)
}
