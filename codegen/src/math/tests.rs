use super::*;
use crate::kir::interpret::interpret;
use crate::kir::{Access, Builder};
use mlc_runtime::abi::DType;

const LANES: u32 = 8;

/// Runs a function of one operand over all of `xs`, eight lanes at a time.
fn run(dtype: DType, bytes: Vec<u8>, f: fn(&mut Builder, Value) -> Value) -> Vec<u8> {
    let n = bytes.len() as u64 / dtype.bytes();
    assert_eq!(n % u64::from(LANES), 0);
    let mut b = Builder::new(1, 0);
    let x = b.buffer("x", dtype, n, Access::Read);
    let y = b.buffer("y", dtype, n, Access::Write);
    let (lo, hi) = (b.index(0), b.index(n));
    b.for_each(lo, hi, i64::from(LANES), |b, i| {
        let v = b.load(x, i, LANES);
        let v = f(b, v);
        b.store(y, i, v);
    });
    let kernel = b.finish();
    let mut buffers = vec![bytes, vec![0; (n * dtype.bytes()) as usize]];
    interpret(&kernel, &mut buffers, &[], 0..1).unwrap();
    buffers.remove(1)
}

fn run_f32(xs: &[f32], f: fn(&mut Builder, Value) -> Value) -> Vec<f32> {
    let mut xs = xs.to_vec();
    let n = xs.len();
    xs.resize(n.next_multiple_of(LANES as usize), 1.0);
    let out = run(DType::F32, xs.iter().flat_map(|x| x.to_le_bytes()).collect(), f);
    out.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).take(n).collect()
}

fn run_f64(xs: &[f64], f: fn(&mut Builder, Value) -> Value) -> Vec<f64> {
    let mut xs = xs.to_vec();
    let n = xs.len();
    xs.resize(n.next_multiple_of(LANES as usize), 1.0);
    let out = run(DType::F64, xs.iter().flat_map(|x| x.to_le_bytes()).collect(), f);
    out.chunks(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).take(n).collect()
}

/// Distance between neighbouring floats at `y`.
fn ulp32(y: f64) -> f64 {
    let exponent = y.abs().log2().floor().max(-126.0);
    (exponent - 23.0).exp2()
}

fn ulp64(y: f64) -> f64 {
    let exponent = y.abs().log2().floor().max(-1022.0);
    (exponent - 52.0).exp2()
}

fn sweep(low: f64, high: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| low + (high - low) * (i as f64 + 0.37) / n as f64).collect()
}

/// Positive numbers evenly spread over exponents.
fn logarithmic(low: f64, high: f64, n: usize) -> Vec<f64> {
    sweep(low.log2(), high.log2(), n).into_iter().map(f64::exp2).collect()
}

const POINTS: usize = 60_000;

/// Largest error over the points in the given unit, which must not exceed `limit`.
fn check_f32(
    f: fn(&mut Builder, Value) -> Value,
    exact: fn(f64) -> f64,
    xs: &[f64],
    unit: fn(f64) -> f64,
    limit: f64,
) {
    let xs: Vec<f32> = xs.iter().map(|&x| x as f32).collect();
    let mut worst = (0.0, 0.0);
    for (&x, y) in xs.iter().zip(run_f32(&xs, f)) {
        let y0 = exact(f64::from(x));
        let error = (f64::from(y) - y0).abs() / unit(y0);
        assert!(error.is_finite(), "f({x}) = {y}, not {y0}");
        if error > worst.0 {
            worst = (error, x);
        }
    }
    assert!(worst.0 <= limit, "error {} > {limit} at {}", worst.0, worst.1);
    assert!(worst.0 >= 0.1 * limit, "the stated error {limit} is far from the measured {}", worst.0);
}

/// As [`check_f32`]; `exact` itself may be off by one unit, which `limit` includes.
fn check_f64(
    f: fn(&mut Builder, Value) -> Value,
    exact: fn(f64) -> f64,
    xs: &[f64],
    unit: fn(f64) -> f64,
    limit: f64,
) {
    let mut worst = (0.0, 0.0);
    for (&x, y) in xs.iter().zip(run_f64(xs, f)) {
        let y0 = exact(x);
        let error = (y - y0).abs() / unit(y0);
        assert!(error.is_finite(), "f({x}) = {y}, not {y0}");
        if error > worst.0 {
            worst = (error, x);
        }
    }
    assert!(worst.0 <= limit, "error {} > {limit} at {}", worst.0, worst.1);
}

fn one(_: f64) -> f64 {
    1.0
}

#[test]
fn exp_is_within_one_ulp() {
    check_f32(exp, f64::exp, &sweep(-103.9, 88.7, POINTS), ulp32, 1.0);
    check_f32(exp, f64::exp, &sweep(-1.0, 1.0, POINTS), ulp32, 1.0);
    check_f64(exp, f64::exp, &sweep(-745.0, 709.7, POINTS), ulp64, 2.0);
}

#[test]
fn exp_of_special_values() {
    let ys =
        run_f32(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0, -0.0, 1e30, -1e30, 88.8, -104.1], exp);
    assert_eq!(&ys[..2], [0.0, f32::INFINITY]);
    assert!(ys[2].is_nan());
    assert_eq!(&ys[3..], [1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0]);
    let ys = run_f64(&[f64::NEG_INFINITY, f64::INFINITY, 0.0, -800.0, 800.0], exp);
    assert_eq!(ys, [0.0, f64::INFINITY, 1.0, 0.0, f64::INFINITY]);
}

#[test]
fn log_is_within_one_ulp() {
    check_f32(log, f64::ln, &logarithmic(1e-45, 3.4e38, POINTS), ulp32, 1.0);
    check_f32(log, f64::ln, &sweep(0.5, 2.0, POINTS), ulp32, 1.0);
    check_f64(log, f64::ln, &logarithmic(1e-307, 1e308, POINTS), ulp64, 2.0);
    check_f64(log, f64::ln, &sweep(0.5, 2.0, POINTS), ulp64, 2.0);
}

#[test]
fn log_of_special_values() {
    let ys = run_f32(&[0.0, f32::INFINITY, 1.0, -1.0, f32::NAN, f32::NEG_INFINITY], log);
    assert_eq!(&ys[..3], [f32::NEG_INFINITY, f32::INFINITY, 0.0]);
    assert!(ys[3..].iter().all(|y| y.is_nan()));
}

#[test]
fn tanh_is_within_its_bound() {
    check_f32(tanh, f64::tanh, &sweep(-10.0, 10.0, POINTS), ulp32, 2.0);
    check_f32(tanh, f64::tanh, &logarithmic(1e-30, 1.0, POINTS), ulp32, 2.0);
    check_f64(tanh, f64::tanh, &sweep(-20.0, 20.0, POINTS), ulp64, 3.0);
    check_f64(tanh, f64::tanh, &logarithmic(1e-30, 1.0, POINTS), ulp64, 3.0);
    assert_eq!(run_f32(&[f32::INFINITY, f32::NEG_INFINITY, 0.0], tanh), [1.0, -1.0, 0.0]);
    assert!(run_f32(&[f32::NAN], tanh)[0].is_nan());
}

#[test]
fn sigmoid_is_within_its_bound() {
    fn exact(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }
    check_f32(sigmoid, exact, &sweep(-87.0, 50.0, POINTS), ulp32, 3.0);
    check_f64(sigmoid, exact, &sweep(-700.0, 50.0, POINTS), ulp64, 4.0);
    assert_eq!(run_f32(&[f32::INFINITY, f32::NEG_INFINITY, 0.0, -200.0], sigmoid), [1.0, 0.0, 0.5, 0.0]);
}

#[test]
fn sin_and_cos_are_within_their_bounds() {
    for range in [7.0, 1e3, 1e5, 4e6] {
        let xs = sweep(-range, range, POINTS);
        check_f32(sin, f64::sin, &xs, one, 1e-7);
        check_f32(cos, f64::cos, &xs, one, 1e-7);
    }
    let multiples: Vec<f64> = (0..20_000).map(|n| f64::from(n) * std::f64::consts::FRAC_PI_2).collect();
    check_f32(sin, f64::sin, &multiples, one, 1e-7);
    for range in [7.0, 1e3, 1e9] {
        let xs = sweep(-range, range, POINTS);
        check_f64(sin, f64::sin, &xs, one, 2e-16);
        check_f64(cos, f64::cos, &xs, one, 2e-16);
    }
    assert_eq!(run_f32(&[0.0], sin), [0.0]);
    assert_eq!(run_f32(&[0.0], cos), [1.0]);
    assert!(run_f32(&[f32::INFINITY, f32::NAN, 1e9], sin).iter().all(|y| y.is_nan()));
}

#[test]
fn erf_is_within_two_ulp() {
    use crate::program::reference::erf as exact;
    check_f32(erf, exact, &sweep(-5.0, 5.0, POINTS), ulp32, 2.0);
    check_f32(erf, exact, &logarithmic(1e-30, 1.0, POINTS), ulp32, 2.0);
    // The reference adds some twenty terms in binary64 and is itself good to about 8 units.
    check_f64(erf, exact, &sweep(-7.0, 7.0, POINTS), ulp64, 10.0);
    assert_eq!(run_f32(&[f32::INFINITY, f32::NEG_INFINITY, 0.0], erf), [1.0, -1.0, 0.0]);
    assert!(run_f32(&[f32::NAN], erf)[0].is_nan());
}

#[test]
fn rsqrt_is_within_its_bound() {
    fn exact(x: f64) -> f64 {
        1.0 / x.sqrt()
    }
    check_f32(rsqrt, exact, &logarithmic(1e-38, 1e38, POINTS), ulp32, 1.5);
}

#[test]
fn pow_computes_bias_corrections_and_decays() {
    fn power(b: &mut Builder, exponent: Value) -> Value {
        let base = like(b, exponent, 0.999);
        pow(b, base, exponent)
    }
    let exponents = sweep(0.0, 1e5, 10_000);
    for (e, y) in exponents.iter().zip(run_f64(&exponents, power)) {
        let y0 = 0.999f64.powf(*e);
        let limit = (2.0 + 2.0 * (e * 0.999f64.ln()).abs()) * f64::EPSILON;
        assert!((y - y0).abs() <= limit * y0, "0.999^{e} = {y}, not {y0}");
    }
    fn zero_to(b: &mut Builder, exponent: Value) -> Value {
        let base = like(b, exponent, 0.0);
        pow(b, base, exponent)
    }
    assert_eq!(run_f64(&[0.0, 1.0, 0.5], zero_to), [1.0, 0.0, 0.0]);
}
