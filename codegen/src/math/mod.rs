//! Elementary functions as KIR, one definition for every target.
//!
//! Each function takes a builder and a value of F32 or F64 with any number of lanes and appends straight-line code:
//! range reduction, a polynomial evaluated by fused multiply-adds, and bit operations on exponents. There are no calls
//! and no tables, so a vector costs what its arithmetic costs, and all back ends give the same bits.
//!
//! Polynomials are minimax fits (Remez exchange) of the form stated beside them; the tests measure the largest error
//! against binary64 functions over dense sweeps and hold it to the number each function's comment states. Errors are in
//! units in the last place of the result (ulp) unless said otherwise.

mod erf;
mod exp;
mod log;
mod tanh;
mod threefry;
mod trig;

#[cfg(test)]
mod tests;

pub use erf::erf;
pub use exp::exp;
pub use log::{log, pow};
pub use tanh::{sigmoid, tanh};
pub use threefry::{threefry, threefry2x32_20};
pub use trig::{cos, sin};

use crate::kir::{BinaryOp, Builder, CompareOp, Elem, Type, UnaryOp, Value};

/// 1/√x by a correctly rounded square root and division: at most 1.5 ulp.
pub fn rsqrt(b: &mut Builder, x: Value) -> Value {
    let root = b.unary(UnaryOp::Sqrt, x);
    let one = like(b, x, 1.0);
    b.div(one, root)
}

/// The constant `c` in every lane, of the type of `x`.
fn like(b: &mut Builder, x: Value, c: f64) -> Value {
    let ty = b.ty(x);
    b.const_float(ty, c)
}

/// `c[0] + x·(c[1] + x·(c[2] + …))`.
fn polynomial(b: &mut Builder, x: Value, coefficients: &[f64]) -> Value {
    let (last, rest) = coefficients.split_last().expect("a polynomial has a coefficient");
    let mut sum = like(b, x, *last);
    for &c in rest.iter().rev() {
        let c = like(b, x, c);
        sum = b.fma(sum, x, c);
    }
    sum
}

/// The integer type with the bits of a float type.
fn bits_elem(ty: Type) -> Elem {
    match ty.elem {
        Elem::F64 => Elem::I64,
        Elem::F32 | Elem::I1 | Elem::I32 | Elem::I64 => Elem::I32,
    }
}

fn is_f64(b: &Builder, x: Value) -> bool {
    b.ty(x).elem == Elem::F64
}

/// Mantissa bits, exponent bias and `1.5·2^mantissa`, which added to a float rounds it to a whole number.
fn layout(b: &Builder, x: Value) -> (i64, i64, f64) {
    if is_f64(b, x) { (52, 1023, 6_755_399_441_055_744.0) } else { (23, 127, 12_582_912.0) }
}

/// `2^n` for integer lanes `n` inside the range of normal exponents, as the float type of the bits.
fn power_of_two(b: &mut Builder, n: Value, float: Elem, mantissa: i64, bias: i64) -> Value {
    let ty = b.ty(n);
    let biased = b.add_const(n, bias);
    let shift = b.const_int(ty, mantissa);
    let bits = b.binary(BinaryOp::Shl, biased, shift);
    b.bitcast(float, bits)
}

/// `x` limited to `[low, high]`; a NaN stays one.
fn clamp(b: &mut Builder, x: Value, low: f64, high: f64) -> Value {
    let (low, high) = (like(b, x, low), like(b, x, high));
    let is_below = b.compare(CompareOp::Lt, x, low);
    let x = b.select(is_below, low, x);
    let is_above = b.compare(CompareOp::Gt, x, high);
    b.select(is_above, high, x)
}

/// The magnitude of `x ≥ 0` with the sign of `sign`.
fn copy_sign(b: &mut Builder, x: Value, sign: Value) -> Value {
    let (float, int) = (b.ty(x).elem, bits_elem(b.ty(x)));
    let ty = b.ty(x).with_elem(int);
    let mask = b.const_int(ty, if int == Elem::I64 { i64::MIN } else { i64::from(i32::MIN) });
    let sign = b.bitcast(int, sign);
    let sign = b.binary(BinaryOp::And, sign, mask);
    let x = b.bitcast(int, x);
    let joined = b.binary(BinaryOp::Or, x, sign);
    b.bitcast(float, joined)
}
