//! Random graphs, with their gradients, down to programs: groups, buffers, memory plan and kernel specs, run by the plain
//! evaluator and as KIR, and compared with the interpreter within its bounds. `MLC_FUZZ_GRAPHS` and `MLC_FUZZ_SEED` choose the seeds.

use mlc::graph::Graph;
use mlc::interpret::{Environment, Mode, Outputs, run};
use mlc::lower::simulate;
use mlc_codegen::program::InterpretedProgram;
use mlc_codegen::target::{Target, X86_64_V4};
use mlc_tests::random_graph::sample;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn seeds() -> std::ops::Range<u64> {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first: u64 = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_GRAPHS", 500)
}

fn check(graph: &Graph, environment: &Environment, target: &Target) -> Result<(), String> {
    let program = simulate::program(graph)?;
    let expected = run(graph, environment, Mode::Bounds).map_err(|e| e.to_string())?;
    let outside = |found: &Outputs| simulate::first_outside(&expected, found);
    let evaluated = simulate::run(&program, graph, environment)?;
    if let Some(message) = outside(&evaluated) {
        return Err(message);
    }
    let mut kernels = InterpretedProgram::new(&program, target)?;
    let interpreted =
        simulate::run_with(&program, graph, environment, &mut |spaces| kernels.run("train", spaces))?;
    outside(&interpreted).map_or(Ok(()), |message| Err(format!("as KIR: {message}")))
}

#[test]
fn programs_compute_what_their_graphs_mean() {
    let target = X86_64_V4;
    let mut wrong = Vec::new();
    for seed in seeds() {
        let sample = sample(seed);
        for (what, graph) in [("forward", sample.graph.clone()), ("gradients", sample.with_gradients())] {
            let result = catch_unwind(AssertUnwindSafe(|| check(&graph, &sample.environment, &target)))
                .unwrap_or_else(|_| Err("panicked".into()));
            if let Err(message) = result {
                wrong.push(format!("seed {seed}, {what}: {message}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), 2 * seeds().count(), wrong.join("\n"));
}
