//! Whole models down to programs, run by the plain evaluator and compared with the interpreter within its bounds.

use mlc::autodiff::config::Microbatch;
use mlc::autodiff::from_spec::train_config;
use mlc::autodiff::training_step;
use mlc::graph::from_spec::{Entry, from_spec};
use mlc::graph::recognise::recognise;
use mlc::graph::Graph;
use mlc::spec::{FileLoader, SourceMap, check};
use mlc_codegen::program::Program;
use mlc_tests::programs;

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

fn checked(graph: &Graph) -> Program {
    programs::checked(graph).unwrap_or_else(|e| panic!("{e}"))
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
