//! A training graph with values to run it on, and its program beside the interpreter.

use mlc::graph::{Graph, Init, Op};
use mlc::interpret::{Environment, Mode, Outputs, Tensor, run, sample_environment};
use mlc::lower::simulate;
use mlc_codegen::program::{InterpretedProgram, Program};
use mlc_codegen::target::X86_64_V4;

use crate::random_graph::Random;

/// Inputs of a seed, parameters near those of their init, states small and second moments positive.
pub fn start(graph: &Graph) -> Environment {
    let mut environment = sample_environment(graph, 1);
    let mut random = Random::new(2);
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let ty = graph.ty(node.results[0]).clone();
        let mut fill = |path: String, scale: f64, shift: f64| {
            let values = (0..ty.numel()).map(|_| f64::from((shift + scale * random.unit()) as f32)).collect();
            environment.tensors.insert(path.as_str().into(), Tensor::floats(ty.clone(), values));
        };
        match &node.op {
            Op::Param { path, init: Init::Constant(c) } => fill(path.to_string(), 0.1, *c),
            Op::Param { path, .. } => fill(path.to_string(), 0.5, 0.0),
            Op::State { param, kind } if ["v", "row", "column"].contains(&kind.as_str()) => {
                fill(format!("{param}.{kind}"), 0.1, 0.3);
            }
            Op::State { param, kind } => fill(format!("{param}.{kind}"), 0.1, 0.0),
            _ => {}
        }
    }
    environment.scalars.insert("step".into(), 2.0);
    environment
}

/// The graph's program, evaluated plainly and as KIR, each compared with the interpreter in f64.
///
/// # Errors
/// Where they differ, with the groups of the program.
pub fn checked(graph: &Graph) -> Result<Program, String> {
    let program = simulate::program(graph).map_err(|e| e.to_string())?;
    let environment = start(graph);
    let expected = run(graph, &environment, Mode::F64).map_err(|e| e.to_string())?;
    let rounded = run(graph, &environment, Mode::F32).map_err(|e| e.to_string())?;
    let evaluated = simulate::run(&program, graph, &environment).map_err(|e| e.to_string())?;
    let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).map_err(|e| e.to_string())?;
    let interpreted =
        simulate::run_with(&program, graph, &environment, &mut |spaces| kernels.run("train", spaces))
            .map_err(|e| e.to_string())?;
    for (how, found) in [("evaluated", &evaluated), ("as KIR", &interpreted)] {
        if let Some(off) = farther(&expected, &rounded, found) {
            let fused = mlc::fuse::group(graph).map_err(|e| e.to_string())?;
            return Err(format!("{how}: {off}\n{}", fused.text()));
        }
    }
    Ok(program)
}

/// What the graph's program computes, as KIR: the bits that machine code must have.
///
/// # Errors
/// What a stage refuses.
pub fn interpreted(graph: &Graph, environment: &Environment) -> Result<Outputs, String> {
    let program = simulate::program(graph)?;
    let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).map_err(|e| e.to_string())?;
    simulate::run_with(&program, graph, environment, &mut |spaces| kernels.run("train", spaces))
}

/// The first value that is off by more than 1e-5 of its tensor's largest and by more than thirty times what plain f32 is off
/// at worst in that tensor: a badly conditioned model is no error of the program.
fn farther(expected: &Outputs, rounded: &Outputs, found: &Outputs) -> Option<String> {
    let one = |i: usize, from: &Outputs| Outputs(vec![from.0[i].clone()]);
    (0..expected.0.len()).find_map(|i| {
        let (want, plain) = (expected.0[i].1.as_floats(), rounded.0[i].1.as_floats());
        let scale = want.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        let plain = want.iter().zip(plain).fold(0.0, |m: f64, (w, p)| m.max((w - p).abs()));
        far_off(&one(i, expected), &one(i, found), f64::max(1e-5, 30.0 * plain / scale))
    })
}

/// The first value that differs by more than `tolerance` of its tensor's largest. Bounds through a whole step would allow
/// nearly anything; sums here are hundreds of terms long, so f32 leaves some 1e-6.
pub fn far_off(expected: &Outputs, found: &Outputs, tolerance: f64) -> Option<String> {
    for ((output, want), (_, got)) in expected.0.iter().zip(&found.0) {
        let (want, got) = (want.as_floats(), got.as_floats());
        let scale = want.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            let off = (w - g).abs();
            if w != g && (off > tolerance * scale || off.is_nan()) {
                return Some(format!("{output:?}[{i}]: {g} instead of {w}"));
            }
        }
    }
    None
}
