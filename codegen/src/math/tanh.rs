//! Hyperbolic tangent and the logistic function.

use super::{copy_sign, exp, is_f64, like, polynomial};
use crate::kir::{Builder, CompareOp, UnaryOp, Value};

/// `(tanh(x)/x − 1)/x²` in x² for |x| ≤ 0.625; relative error of tanh 1.5e-10.
const F32: [f64; 6] = [
    -0.3333333134651184,
    0.13333210349082947,
    -0.05394722893834114,
    0.02170308493077755,
    -0.008182930760085583,
    0.0021477476693689823,
];

/// Numerator and denominator of the same in F64. Source: Cephes `tanh.c`; relative error 4e-17.
const P64: [f64; 3] =
    [-1.614_687_684_417_084_479_52e3, -9.928_772_310_019_185_865_64e1, -9.643_991_794_250_522_386_28e-1];
const Q64: [f64; 4] =
    [4.844_063_053_251_254_860_48e3, 2.235_488_390_601_004_485_83e3, 1.128_116_784_916_329_314_02e2, 1.0];

/// tanh x: at most 2 ulp in F32, 3 ulp in F64.
///
/// Near 0 an odd polynomial, `1 − 2/(e²ˣ + 1)` with the sign of x elsewhere.
pub fn tanh(b: &mut Builder, x: Value) -> Value {
    let magnitude = b.unary(UnaryOp::Abs, x);
    let z = b.mul(x, x);
    let p = if is_f64(b, x) {
        let (p, q) = (polynomial(b, z, &P64), polynomial(b, z, &Q64));
        b.div(p, q)
    } else {
        polynomial(b, z, &F32)
    };
    let cube = b.mul(x, z);
    let near = b.fma(cube, p, x);

    let (one, two, minus_two) = (like(b, x, 1.0), like(b, x, 2.0), like(b, x, -2.0));
    let double = b.mul(magnitude, two);
    let e = exp(b, double);
    let e = b.add(e, one);
    let quotient = b.div(minus_two, e);
    let far = b.add(quotient, one);
    let far = copy_sign(b, far, x);

    let limit = like(b, x, 0.625);
    let is_near = b.compare(CompareOp::Lt, magnitude, limit);
    b.select(is_near, near, far)
}

/// `1/(1 + e⁻ˣ)`: at most 3 ulp for x ≥ −87 (F32) or −708 (F64), beyond where e⁻ˣ overflows it falls to 0.
pub fn sigmoid(b: &mut Builder, x: Value) -> Value {
    let negative = b.unary(UnaryOp::Neg, x);
    let e = exp(b, negative);
    let one = like(b, x, 1.0);
    let sum = b.add(e, one);
    b.div(one, sum)
}
