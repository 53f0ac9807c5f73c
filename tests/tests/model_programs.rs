//! Whole models down to programs, run by the plain evaluator and compared with the interpreter within its bounds.

use mlc::autodiff::config::Microbatch;
use mlc::autodiff::differentiate::parameters;
use mlc::autodiff::from_spec::train_config;
use mlc::autodiff::training_step;
use mlc::graph::Graph;
use mlc::graph::from_spec::{Entry, from_spec};
use mlc::graph::passes::sink_updates;
use mlc::graph::recognise::recognise;
use mlc::graph::verify::{Stage, verify};
use mlc::lower::simulate;
use mlc::remat::{keep_carries, keep_products, offload_residuals, recompute_residuals};
use mlc::spec::{FileLoader, SourceMap, check};
use mlc_codegen::program::Program;
use mlc_tests::programs;

/// The graph of an entry of the smallest Llama with these sizes set.
fn graph(entry: Entry, microbatch: Option<u64>) -> Graph {
    graph_with(entry, microbatch, &[])
}

/// As [`graph`], with more sizes or keys set.
fn graph_with(entry: Entry, microbatch: Option<u64>, more: &[&str]) -> Graph {
    let path = format!("{}/models/tiny/tiny.spec", env!("CARGO_MANIFEST_DIR"));
    let data = "train.data=synthetic";
    let sets: Vec<String> =
        [data, "Llama.vocab=24", "Llama.d=12", "Llama.ff=20", "Llama.hd=4", "train.seq=6"]
            .iter()
            .chain(more)
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

/// The optimizers, none of them with a scalar of all gradients.
const OPTIMIZERS: [&str; 5] = [
    "adamw { lr = 1e-2, decay = 0.1 }",
    "sgd { lr = 1e-2, momentum = 0.9 }",
    "lion { lr = 1e-2, decay = 0.1 }",
    "adafactor { lr = 1e-2, beta1 = 0.9 }",
    "muon { lr = 1e-2, decay = 0.1 }",
];

#[test]
fn every_optimizer_computes_what_its_graph_means() {
    for optimizer in OPTIMIZERS {
        let set = format!("train.optimizer={optimizer}");
        let skip = "train.skip={ norm = 1000 }";
        checked(&graph_with(Entry::Train, None, &[&set, skip]));
    }
}

#[test]
fn sink_updates_changes_no_bit_and_holds_the_gradients_of_one_layer() {
    const LAYERS: u64 = 6;
    for optimizer in OPTIMIZERS {
        let set = format!("train.optimizer={optimizer}");
        let plain = graph_with(Entry::Train, None, &[&set, &format!("Llama.layers={LAYERS}")]);
        let sunk = sink_updates(plain.clone());
        verify(&sunk, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
        let environment = programs::start(&plain);
        let [(bytes, expected), (fewer, found)] = [&plain, &sunk].map(|graph| {
            let program = simulate::program(graph).unwrap_or_else(|e| panic!("{optimizer}: {e}"));
            let outputs = simulate::run(&program, graph, &environment).unwrap_or_else(|e| panic!("{e}"));
            (program.info.spaces[0].bytes, outputs)
        });
        for ((output, expected), (_, found)) in expected.0.iter().zip(&found.0) {
            assert!(expected.values == found.values, "{optimizer}: {output:?} changed");
        }
        // Every parameter of a layer is f32; what was there for all layers is there for one, and some of it at a time.
        let layer: u64 = parameters(&plain)
            .iter()
            .filter(|(path, _)| path.contains("{i}"))
            .map(|(_, value)| plain.ty(*value).bytes() / LAYERS)
            .sum();
        println!("{optimizer}: {bytes} bytes, {fewer} with updates in the loop; a layer has {layer}");
        assert!(fewer + (LAYERS - 2) * layer <= bytes, "{optimizer}: {bytes} bytes, then {fewer}");
    }
}

#[test]
fn sink_updates_leaves_updates_that_need_every_gradient() {
    for sets in [["train.optimizer.clip=1.0"], ["train.skip={ norm = 100 }"]] {
        let graph = graph_with(Entry::Train, None, &sets);
        assert_eq!(sink_updates(graph.clone()).to_string(), graph.to_string());
    }
    let cut = graph(Entry::Train, Some(2));
    assert_eq!(sink_updates(cut.clone()).to_string(), cut.to_string());
}

#[test]
fn evaluation_and_logits_compute_what_their_graphs_mean() {
    checked(&graph(Entry::Eval, None));
    checked(&graph(Entry::Logits, None));
}

/// Whatever is saved, computed again or lies in the host's memory, the kernels compute the same bits.
#[test]
fn remat_changes_no_bit_of_a_training_step() {
    let graph = graph(Entry::Train, Some(2));
    let environment = programs::start(&graph);
    let outputs =
        |graph: Graph| programs::interpreted(&graph, &environment).unwrap_or_else(|e| panic!("{e}"));
    let expected = outputs(graph.clone());
    let passes: [(&str, fn(Graph) -> Graph); 4] = [
        ("recompute-residuals", recompute_residuals),
        ("keep-carries", keep_carries),
        ("keep-products", keep_products),
        ("offload-residuals", offload_residuals),
    ];
    for (name, pass) in passes {
        let got = outputs(pass(graph.clone()));
        for ((output, want), (_, got)) in expected.0.iter().zip(&got.0) {
            assert_eq!(want.values, got.values, "{name}: {output:?}");
        }
    }
}
