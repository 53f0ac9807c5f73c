//! Random graphs, with their gradients, down to programs: groups, buffers, memory plan and kernel specs, run by the plain
//! evaluator, as KIR and as machine code. Each is compared with the graph interpreter within its derived bounds, and the
//! machine code of every back end with KIR bit for bit. `MLC_FUZZ_GRAPHS` and `MLC_FUZZ_SEED` choose the seeds.

use mlc::graph::Graph;
use mlc::interpret::{Environment, Mode, Outputs, Values, run};
use mlc::lower::simulate;
use mlc_codegen::Codegen;
use mlc_codegen::program::{InterpretedProgram, Program};
use mlc_codegen::run::CompiledProgram;
use mlc_codegen::target::Target;
use mlc_tests::random_graph::sample;
use mlc_tests::random_ops::{cases, op_sample};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

fn seeds() -> std::ops::Range<u64> {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first: u64 = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_GRAPHS", 500)
}

/// Evaluated and interpreted as KIR; gives the program and what KIR computes.
fn check(graph: &Graph, environment: &Environment, target: &Target) -> Result<(Program, Outputs), String> {
    let program = simulate::program(graph)?;
    let mut expected = run(graph, environment, Mode::Bounds).map_err(|e| e.to_string())?;
    // A bound says nothing of comparisons: they are those of rounded numbers.
    let rounded = run(graph, environment, Mode::F32).map_err(|e| e.to_string())?;
    for ((_, wanted), (_, rounded)) in expected.0.iter_mut().zip(rounded.0) {
        if matches!(wanted.values, Values::Int(_)) {
            wanted.values = rounded.values;
        }
    }
    let within = |how: &str, found: &Outputs| match simulate::first_outside(&expected, found) {
        Some(message) => Err(format!("{how}: {message}")),
        None => Ok(()),
    };
    within("evaluated", &simulate::run(&program, graph, environment)?)?;
    let mut kernels = InterpretedProgram::new(&program, target)?;
    let interpreted =
        simulate::run_with(&program, graph, environment, &mut |spaces| kernels.run("train", spaces))?;
    within("as KIR", &interpreted)?;
    Ok((program, interpreted))
}

/// Compiled by every back end, and compared with what KIR computes.
fn check_compiled(graph: &Graph, environment: &Environment, target: &Target) -> Result<(), String> {
    let (program, interpreted) = check(graph, environment, target)?;
    for codegen in Codegen::here() {
        let compiled = CompiledProgram::new(&program, target, codegen)?;
        let found =
            simulate::run_with(&program, graph, environment, &mut |spaces| compiled.run("train", spaces))?;
        if let Some(message) = first_difference(&interpreted, &found) {
            return Err(format!("by {codegen}: {message}"));
        }
    }
    Ok(())
}

/// The first element whose bits differ; all NaNs are one.
fn first_difference(expected: &Outputs, found: &Outputs) -> Option<String> {
    for ((output, want), (_, got)) in expected.0.iter().zip(&found.0) {
        let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let at = match (&want.values, &got.values) {
            (Values::Float(w), Values::Float(g)) => w.iter().zip(g).position(|(w, g)| !same(*w, *g)),
            (Values::Int(w), Values::Int(g)) => w.iter().zip(g).position(|(w, g)| w != g),
            (Values::Float(_), Values::Int(_)) | (Values::Int(_), Values::Float(_)) => Some(0),
        };
        if let Some(i) = at {
            return Some(format!("{output:?}[{i}] differs from KIR"));
        }
    }
    None
}

/// Runs a check on every seed, on as many threads as there are cores; gives what went wrong, in order of seeds.
fn wrong(check: impl Fn(u64) -> Result<(), String> + Sync) -> Vec<String> {
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let check = &check;
    let guarded = move |seed| {
        let result =
            catch_unwind(AssertUnwindSafe(|| check(seed))).unwrap_or_else(|_| Err("panicked".into()));
        result.err().map(|message| (seed, message))
    };
    let mut found: Vec<(u64, String)> = std::thread::scope(|scope| {
        let work =
            move |thread| seeds().filter(|s| s % n_threads == thread).filter_map(guarded).collect::<Vec<_>>();
        let threads: Vec<_> = (0..n_threads).map(|t| scope.spawn(move || work(t))).collect();
        threads.into_iter().flat_map(|t| t.join().expect("panics are caught")).collect()
    });
    found.sort();
    found.into_iter().map(|(seed, message)| format!("seed {seed}: {message}")).collect()
}

#[test]
fn programs_compute_what_their_graphs_mean() {
    let target = Target::host().expect("a machine mlc knows");
    let wrong = wrong(|seed| {
        let sample = sample(seed);
        check(&sample.graph, &sample.environment, &target).map(|_| ())
    });
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), seeds().count(), wrong.join("\n"));
}

#[test]
fn gradients_compiled_are_those_of_kir_bit_for_bit() {
    let target = Target::host().expect("a machine mlc knows");
    let wrong = wrong(|seed| {
        let sample = sample(seed);
        check_compiled(&sample.with_gradients(), &sample.environment, &target)
    });
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), seeds().count(), wrong.join("\n"));
}

/// A plain test run takes each case a few times; `MLC_FUZZ_GRAPHS=40000` each at least 200 times.
#[test]
fn every_op_on_every_type_is_the_same_compiled() {
    let target = Target::host().expect("a machine mlc knows");
    let cases = cases();
    assert!(cases.len() > 100, "{} cases", cases.len());
    let right: Vec<AtomicUsize> = cases.iter().map(|_| AtomicUsize::new(0)).collect();
    let wrong = wrong(|seed| {
        let sample = op_sample(&cases, seed);
        check_compiled(&sample.graph, &sample.environment, &target)?;
        right[seed as usize % cases.len()].fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let counts = right.iter().map(|n| n.load(Ordering::Relaxed)).zip(&cases);
    let (least, (op, dtype)) = counts.min_by_key(|(n, _)| *n).expect("there are cases");
    println!(
        "{} graphs of {} cases of an op on an element type; right {least} times at least ({op:?} on {dtype:?})",
        seeds().count(),
        cases.len()
    );
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), seeds().count(), wrong.join("\n"));
}
