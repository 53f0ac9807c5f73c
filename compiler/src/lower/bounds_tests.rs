//! The interpreter's bounds against the code generator's functions, function by function on many arguments.
//!
//! In f64 the reference errs as much as what is compared with it: a bound for one side alone is left here and there.

use super::simulate;
use crate::graph::{Axis, BinaryOp, Builder, DType, Init, Op, Output, Type, UnaryOp, ValueId};
use crate::interpret::{Environment, Mode, Outputs, Tensor, run};
use mlc_codegen::program::InterpretedProgram;
use mlc_codegen::target::X86_64_V4;

const POINTS: usize = 300_000;

/// Arguments over a range, evenly spread, each a number of f32.
fn spread(low: f64, high: f64) -> Vec<f64> {
    (0..POINTS).map(|i| f64::from((low + (high - low) * (i as f64 + 0.37) / POINTS as f64) as f32)).collect()
}

/// The function of the arguments in a type: the reference with its bounds, and what the kernels compute.
fn both(dtype: DType, arguments: &[f64], f: impl Fn(&mut Builder, ValueId) -> ValueId) -> (Outputs, Outputs) {
    let ty = Type::new(DType::F32, vec![Axis::new("a", arguments.len() as u64)]);
    let mut b = Builder::new("f");
    let x = b.one(Op::Param { path: "x".into(), init: Init::Constant(0.0) }, &[], Some(ty.clone()), "x");
    let x = b.cast(x, dtype);
    let y = f(&mut b, x);
    b.output(Output::Report("y".into()), y);
    let graph = b.finish();
    let mut environment = Environment::default();
    environment.tensors.insert("x".into(), Tensor::floats(ty, arguments.to_vec()));
    let program = simulate::program(&graph).unwrap_or_else(|e| panic!("{e}"));
    let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).unwrap_or_else(|e| panic!("{e}"));
    let found = simulate::run_with(&program, &graph, &environment, &mut |s| kernels.run("train", s));
    (run(&graph, &environment, Mode::Bounds).unwrap(), found.unwrap_or_else(|e| panic!("{e}")))
}

/// Every result within its bound, and no bound wider than `most` halves of a last place.
fn check(
    what: &str,
    dtype: DType,
    most: f64,
    arguments: &[f64],
    f: impl Fn(&mut Builder, ValueId) -> ValueId,
) {
    let (expected, found) = both(dtype, arguments, f);
    if let Some(outside) = simulate::first_outside(&expected, &found) {
        panic!("{what} {dtype:?}: {outside}");
    }
    let unit = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) } / 2.0;
    let expected = expected.report("y").unwrap();
    for (y, error) in expected.as_floats().iter().zip(&expected.errors) {
        assert!(*error <= most * unit * y.abs() + 1e-40, "{what} {dtype:?}: {error:.2e} allowed at {y}");
    }
}

#[test]
fn bounds_hold_for_every_function_in_f64_and_f32() {
    let functions = [
        (UnaryOp::Exp, -80.0, 80.0),
        (UnaryOp::Log, 2.0, 1e6),
        (UnaryOp::Sqrt, 1e-6, 1e6),
        (UnaryOp::Rsqrt, 1e-6, 1e6),
        (UnaryOp::Tanh, -4.0, 4.0),
        (UnaryOp::Sigmoid, -30.0, 30.0),
        (UnaryOp::Erf, -4.0, 4.0),
        // Away from their zeros: the error is absolute there.
        (UnaryOp::Sin, 0.3, 2.8),
        (UnaryOp::Cos, -1.2, 1.2),
    ];
    for (op, low, high) in functions {
        for dtype in [DType::F64, DType::F32] {
            check(&format!("{op:?}"), dtype, 32.0, &spread(low, high), |b, x| b.unary(op, x));
        }
    }
    // The logarithm's error grows with the exponent, and with it the reference's.
    for exponent in [-2.37, 3.0, -17.1, 29.3] {
        check(&format!("Pow {exponent}"), DType::F64, 3000.0, &spread(0.01, 100.0), |b, x| {
            let exponent = b.constant(DType::F64, exponent);
            b.binary(BinaryOp::Pow, x, exponent)
        });
    }
}
