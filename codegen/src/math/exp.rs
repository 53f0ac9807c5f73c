//! eˣ.

use super::{bits_elem, clamp, is_f64, layout, like, polynomial, power_of_two};
use crate::kir::{BinaryOp, Builder, Value};

/// `(eʳ − 1 − r) / r²` for |r| ≤ ln2/2; relative error of eʳ 3.1e-9.
const F32: [f64; 5] =
    [0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.008368716575205326, 0.00138146395329386];

/// The same; relative error 3.7e-18.
const F64: [f64; 10] = [
    0.5000000000000011,
    0.16666666666666413,
    0.041666666666530155,
    0.00833333333349447,
    0.001388888894363035,
    0.00019841269506555418,
    2.4801493098743215e-05,
    2.7557586396705874e-06,
    2.7630248419213716e-07,
    2.5000053885707164e-08,
];

/// eˣ: at most 1 ulp, also in the denormal range. `exp(−∞) = 0`, `exp(∞) = ∞`.
///
/// `x = n·ln2 + r` with whole `n` and |r| ≤ ln2/2. `n·ln2` is subtracted in two parts; the first fused multiply-add is
/// exact. The polynomial's value is scaled by two powers of two, so that neither overflows where the result does not and
/// a denormal result is rounded once.
pub fn exp(b: &mut Builder, x: Value) -> Value {
    let wide = is_f64(b, x);
    let (low, high) = if wide { (-746.0, 710.0) } else { (-104.0, 89.0) };
    let (ln2_high, ln2_low) = if wide {
        (0.693_147_180_559_945_3, 2.319_046_813_846_299_6e-17)
    } else {
        (0.693_147_182_464_599_6, -1.904_654_212_125_933_6e-9)
    };
    let (mantissa, bias, magic) = layout(b, x);

    let x = clamp(b, x, low, high);
    let magic = like(b, x, magic);
    let log2_e = like(b, x, std::f64::consts::LOG2_E);
    let shifted = b.fma(x, log2_e, magic);
    let n = b.sub(shifted, magic);
    let (c1, c2) = (like(b, x, -ln2_high), like(b, x, -ln2_low));
    let r = b.fma(n, c1, x);
    let r = b.fma(n, c2, r);

    let q = polynomial(b, r, if wide { &F64 } else { &F32 });
    let r2 = b.mul(r, r);
    let p = b.fma(r2, q, r);
    let one = like(b, x, 1.0);
    let p = b.add(p, one);

    let (float, int) = (b.ty(x).elem, bits_elem(b.ty(x)));
    let (shifted, magic) = (b.bitcast(int, shifted), b.bitcast(int, magic));
    let n = b.sub(shifted, magic);
    let ty = b.ty(n);
    let one = b.const_int(ty, 1);
    let half = b.binary(BinaryOp::ShrS, n, one);
    let rest = b.sub(n, half);
    let (half, rest) =
        (power_of_two(b, half, float, mantissa, bias), power_of_two(b, rest, float, mantissa, bias));
    let p = b.mul(p, half);
    b.mul(p, rest)
}
