//! Whole models from their specs: what the verifier says of every stage, and how the numbers behave.

use super::*;
use crate::autodiff::from_spec::train_config;
use crate::autodiff::training_step;
use crate::graph::from_spec::{Entry, from_spec};
use crate::graph::parse::parse;
use crate::graph::passes::expand_all_composites;
use crate::graph::print::print;
use crate::graph::recognise::recognise;
use crate::graph::verify::{Stage, verify};
use crate::graph::{Init, Op};
use crate::passes::passes;
use crate::spec::{FileLoader, SourceMap, check};
use crate::testing::assert_same_numbers;

/// The forward graph and the training step of a model under `tests/models`, with overrides.
fn stages(name: &str, sets: &[&str]) -> (Graph, Graph) {
    let path = format!("{}/../tests/models/{name}/{name}.spec", env!("CARGO_MANIFEST_DIR"));
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut sources = SourceMap::new();
    let (spec, _) = check(&mut sources, &FileLoader, &path, &sets).unwrap_or_else(|e| panic!("{e:?}"));
    let train = spec.train.expect("the model has a run");
    let forward = from_spec(&spec.model, Entry::Train, train.batch, &sources).expect("it lowers");
    let forward = recognise(forward, &[]);
    let training =
        training_step(forward.clone(), &train_config(&spec.model, &train)).expect("it differentiates");
    (forward, training)
}

/// Inputs from a seed, parameters as their init says (normals as sums of twelve uniforms), states 0.
fn start(graph: &Graph) -> Environment {
    let mut environment = sample_environment(graph, 1);
    let mut rng = Rng::new(2);
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let ty = graph.ty(node.results[0]);
        match &node.op {
            Op::Param { path, init } => {
                let mut one = || match init {
                    Init::Constant(c) => *c,
                    Init::Normal { std } => std * ((0..12).map(|_| rng.between(0.0, 1.0)).sum::<f64>() - 6.0),
                    Init::Uniform { low, high } => rng.between(*low, *high),
                };
                let values = (0..ty.numel()).map(|_| one()).collect();
                environment.tensors.insert(path.clone(), Tensor::floats(ty.clone(), values));
            }
            Op::State { param, kind } => {
                let zeros = Tensor::floats(ty.clone(), vec![0.0; ty.numel() as usize]);
                environment.tensors.insert(state_name(param, kind), zeros);
            }
            _ => {}
        }
    }
    environment
}

#[test]
fn every_stage_of_a_llama_verifies_and_reads_back() {
    let (forward, training) = stages("tiny", &[]);
    verify(&forward, Stage::Graph).unwrap_or_else(|e| panic!("{e}"));
    verify(&training, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
    let text = print(&forward);
    for composite in ["rms_norm", "attention", "loss_head"] {
        assert!(text.contains(composite), "no {composite} in\n{text}");
    }
    assert!(!text.contains("= softmax"), "{text}");
    for graph in [&forward, &training] {
        let text = print(graph);
        assert_eq!(print(&parse(&text).unwrap()), text);
    }
}

#[test]
fn general_passes_keep_the_numbers_of_a_training_step() {
    // Small, because every pass is run on three samples.
    let sizes = ["train.data=synthetic", "Llama.vocab=24", "Llama.d=12", "Llama.ff=20", "train.seq=6"];
    let (_, training) = stages("tiny", &sizes);
    for (name, pass) in passes() {
        let after = pass(&training).unwrap();
        verify(&after, Stage::Training).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_same_numbers(&training, &after);
    }
    verify(&expand_all_composites(training), Stage::Fused).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_llama_learns_its_batch_by_heart() {
    let (_, training) = stages("tiny", &[]);
    let mut environment = start(&training);
    let mut losses = Vec::new();
    for step in 0..12 {
        environment.scalars.insert("step".into(), f64::from(step));
        let outputs = run(&training, &environment, Mode::F64).unwrap();
        losses.push(outputs.report("loss").unwrap().item());
        environment.store(&outputs);
    }
    // Uniform over 256 ids at first; the same batch again and again is learnt.
    assert!((losses[0] - 256f64.ln()).abs() < 0.1, "{losses:?}");
    assert!(losses[11] < losses[0] - 0.5, "{losses:?}");
}
