//! Error function.

use super::{copy_sign, exp, is_f64, like, polynomial};
use crate::kir::{Builder, CompareOp, UnaryOp, Value};

/// `erf(x)/x − 1` in x² for |x| ≤ 0.93; error 4.5e-10.
const NEAR_F32: [f64; 7] = [
    0.12837916612625122,
    -0.37612634897232056,
    0.11283694207668304,
    -0.02685927040874958,
    0.005200634244829416,
    -0.0008137437398545444,
    8.345222886418924e-05,
];
/// `log(erfc(t))/t` for 0.92 ≤ t ≤ 4; relative error of erf 7.3e-10.
const FAR_F32: [f64; 7] = [
    -1.1286485195159912,
    -0.6351513266563416,
    -0.10623690485954285,
    0.023762086406350136,
    -0.003642471507191658,
    0.0003228072018828243,
    -1.1231675671297126e-05,
];
/// As `NEAR_F32` for |x| ≤ 1; 2e-21.
const NEAR_F64: [f64; 14] = [
    0.1283791670955126,
    -0.37612638903183754,
    0.1128379167095512,
    -0.026866170645129868,
    0.005223977625423609,
    -0.0008548327021955961,
    0.0001205533290381026,
    -1.4925647594442078e-05,
    1.6462045979678788e-06,
    -1.6364649542415927e-07,
    1.479246958649689e-08,
    -1.2164968412907983e-09,
    8.710465083973258e-11,
    -4.233129792026111e-12,
];
/// `erfc(t)·exp(t²)` in `u = (t − 2.5)/(t + 2.5)` for 1 ≤ t ≤ 6; absolute error of erf 4e-20.
const FAR_F64: [f64; 14] = [
    0.21080636406114356,
    -0.3717367339489745,
    0.2517131932174426,
    -0.12503305237835818,
    0.03992253908321207,
    -0.003993701152251739,
    -0.0026423664965639615,
    0.0008759106976783556,
    0.00022836925690595056,
    -0.00012881663831896016,
    -3.3648423579256855e-05,
    2.0447856020691024e-05,
    1.1045880852428875e-05,
    1.4186509676148642e-06,
];

/// erf x: at most 2 ulp. `erf(±∞) = ±1`.
pub fn erf(b: &mut Builder, x: Value) -> Value {
    let wide = is_f64(b, x);
    let z = b.mul(x, x);
    let p = polynomial(b, z, if wide { &NEAR_F64 } else { &NEAR_F32 });
    let near = b.fma(x, p, x);

    let magnitude = b.unary(UnaryOp::Abs, x);
    // Beyond the limit erf rounds to 1, and a NaN stays one.
    let limit = like(b, x, if wide { 6.0 } else { 4.0 });
    let is_beyond = b.compare(CompareOp::Gt, magnitude, limit);
    let t = b.select(is_beyond, limit, magnitude);
    let complement = if wide { complement_f64(b, t) } else { complement_f32(b, t) };
    let one = like(b, x, 1.0);
    let far = b.sub(one, complement);
    let far = copy_sign(b, far, x);

    let border = like(b, x, if wide { 1.0 } else { 0.925 });
    let is_near = b.compare(CompareOp::Lt, magnitude, border);
    b.select(is_near, near, far)
}

/// erfc t for 0.92 ≤ t ≤ 4.
fn complement_f32(b: &mut Builder, t: Value) -> Value {
    let p = polynomial(b, t, &FAR_F32);
    let log = b.mul(t, p);
    exp(b, log)
}

/// erfc t for 1 ≤ t ≤ 6.
fn complement_f64(b: &mut Builder, t: Value) -> Value {
    let center = like(b, t, 2.5);
    let (low, high) = (b.sub(t, center), b.add(t, center));
    let u = b.div(low, high);
    let p = polynomial(b, u, &FAR_F64);
    let square = b.mul(t, t);
    let minus = b.unary(UnaryOp::Neg, square);
    let e = exp(b, minus);
    b.mul(e, p)
}
