//! Whole models down to programs, run by the plain evaluator and compared with the interpreter within its bounds.

use mlc::autodiff::config::Microbatch;
use mlc::autodiff::from_spec::train_config;
use mlc::autodiff::training_step;
use mlc::graph::from_spec::{Entry, from_spec};
use mlc::graph::recognise::recognise;
use mlc::graph::{Graph, Init, Op};
use mlc::interpret::{Environment, Mode, Outputs, Tensor, run, sample_environment};
use mlc::lower::simulate;
use mlc::spec::{FileLoader, SourceMap, check};
use mlc_codegen::program::{InterpretedProgram, Program};
use mlc_codegen::target::X86_64_V4;
use mlc_tests::random_graph::Random;

/// The graph of an entry of the smallest Llama with these sizes set.
fn graph(entry: Entry, microbatch: Option<u64>) -> Graph {
    let path = format!("{}/models/tiny/tiny.spec", env!("CARGO_MANIFEST_DIR"));
    let data = "train.data=synthetic";
    let sets: Vec<String> =
        [data, "Llama.vocab=24", "Llama.d=12", "Llama.ff=20", "Llama.hd=4", "train.seq=6"]
            .iter()
            .map(|s| s.to_string())
            .collect();
    let mut sources = SourceMap::new();
    let (spec, _) = check(&mut sources, &FileLoader, &path, &sets).unwrap_or_else(|e| panic!("{e:?}"));
    let train = spec.train.expect("the model has a run");
    let batch = if entry == Entry::Logits { 1 } else { train.batch };
    let forward = from_spec(&spec.model, entry, batch, &sources).expect("it lowers");
    let forward = recognise(forward, &[]);
    if entry != Entry::Train {
        return forward;
    }
    let mut config = train_config(&spec.model, &train);
    config.microbatch = microbatch.map(|size| Microbatch { axis: "batch".into(), size });
    training_step(forward, &config).expect("it differentiates")
}

/// Inputs of a seed, parameters near those of their init, states small and second moments positive.
fn start(graph: &Graph) -> Environment {
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
            Op::State { param, kind } if kind.as_str() == "v" => fill(format!("{param}.{kind}"), 0.1, 0.3),
            Op::State { param, kind } => fill(format!("{param}.{kind}"), 0.1, 0.0),
            _ => {}
        }
    }
    environment.scalars.insert("step".into(), 2.0);
    environment
}

fn checked(graph: &Graph) -> Program {
    let program = simulate::program(graph).unwrap_or_else(|e| panic!("{e}"));
    let environment = start(graph);
    let expected = run(graph, &environment, Mode::F64).unwrap_or_else(|e| panic!("{e}"));
    let evaluated = simulate::run(&program, graph, &environment).unwrap_or_else(|e| panic!("{e}"));
    let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).unwrap_or_else(|e| panic!("{e}"));
    let interpreted =
        simulate::run_with(&program, graph, &environment, &mut |spaces| kernels.run("train", spaces))
            .unwrap_or_else(|e| panic!("{e}"));
    for (how, found) in [("evaluated", &evaluated), ("as KIR", &interpreted)] {
        if let Some(off) = far_off(&expected, found) {
            let fused = mlc::fuse::group(graph).expect("it did before");
            panic!("{how}: {off}\n{}", fused.text());
        }
    }
    program
}

/// Bounds through a whole step allow nearly anything. Sums here are hundreds of terms long: f32 leaves some 1e-6 of a
/// tensor's largest element.
fn far_off(expected: &Outputs, found: &Outputs) -> Option<String> {
    for ((output, want), (_, got)) in expected.0.iter().zip(&found.0) {
        let (want, got) = (want.as_floats(), got.as_floats());
        let scale = want.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        for (i, (w, g)) in want.iter().zip(got).enumerate() {
            if (w - g).abs() > 1e-5 * scale || g.is_nan() {
                return Some(format!("{output:?}[{i}]: {g} instead of {w}"));
            }
        }
    }
    None
}

#[test]
fn a_training_step_computes_what_its_graph_means() {
    let graph = graph(Entry::Train, None);
    checked(&graph);
}

#[test]
fn a_training_step_in_microbatches_computes_what_its_graph_means() {
    checked(&graph(Entry::Train, Some(2)));
}

#[test]
fn evaluation_and_logits_compute_what_their_graphs_mean() {
    checked(&graph(Entry::Eval, None));
    checked(&graph(Entry::Logits, None));
}
