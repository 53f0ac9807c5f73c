//! What a plan takes to make does not depend on how many layers and ranks there are, and what it says of memory follows from them.
//!
//! The model is Llama 3.1 405B as `specs/llama405b.spec` lays it out. How long planning takes shows
//! `mlc plan specs/llama405b.spec --devices 16384 --target h100 -v`.

use super::{Entry, Runner, SourceMap, Spec, on_mesh, placed, scheduled, training_graph};
use crate::cost::Target;
use crate::fuse;
use crate::memory::Plan;
use crate::spec::{FileLoader, check_for};
use std::collections::BTreeMap;

/// The spec for so many layers, laid out over `data`, `fsdp` and `tensor`, with two accumulation steps.
fn spec(layers: u64, [data, fsdp, tensor]: [u64; 3]) -> (Spec, SourceMap) {
    let path = format!("{}/../specs/llama405b.spec", env!("CARGO_MANIFEST_DIR"));
    let sets = [
        format!("Llama.layers={layers}"),
        format!("mesh.fsdp={fsdp}"),
        format!("mesh.tensor={tensor}"),
        format!("train.batch={}", 2 * data * fsdp),
    ];
    let ranks = data * fsdp * tensor;
    let mut sources = SourceMap::new();
    match check_for(&mut sources, &FileLoader, &path, &sets[..], Some(ranks)) {
        Ok((spec, _)) => (spec, sources),
        Err(errors) => panic!("{}", crate::spec::diagnostic::render_all(&errors, &sources, false)),
    }
}

/// Lines of the text of every stage of the training step, of `fused` its kernel groups and of `buffers` those, before it is
/// ordered: how many iterations early collectives start is up to predicted times. And its plan.
fn planned(layers: u64, mesh: [u64; 3]) -> (BTreeMap<&'static str, usize>, Plan) {
    let (spec, sources) = spec(layers, mesh);
    let mut lines = BTreeMap::new();
    let viewer = Box::new(|stage, _, text: String| {
        lines.insert(stage, text.lines().count());
    });
    let mut runner = Runner::viewing(viewer).on(Target::named("h100").unwrap());
    let graph = training_graph(&spec, &sources, &mut runner).unwrap();
    let graph = on_mesh(graph, Entry::Train, &spec, &sources, &mut runner).unwrap();
    let fused = fuse::group(&graph).unwrap();
    let counts = [("fused", fused.groups.len()), ("buffers", fused.buffers.len())];
    let schedules = scheduled(vec![(Entry::Train, fused)], None, &mut runner).unwrap();
    let plan = placed(schedules, None, &mut runner).unwrap();
    drop(runner);
    lines.extend(counts);
    // The report lists tensors, the largest first.
    lines.remove("plan");
    (lines, plan)
}

#[test]
fn stages_up_to_the_plan_grow_with_neither_layers_nor_ranks() {
    const MANY: [u64; 3] = [32, 64, 8];
    const FEW: [u64; 3] = [2, 2, 2];
    let (expected, _) = planned(126, MANY);
    for stage in ["graph", "training", "remat", "sharded", "spmd", "fused", "buffers", "schedule"] {
        assert!(expected[stage] > 10, "{expected:?}");
    }
    for (layers, mesh) in [(80, MANY), (126, FEW), (80, FEW)] {
        assert_eq!(planned(layers, mesh).0, expected, "{layers} layers on {mesh:?}");
    }
    // Over fewer than 64 layers a sum of squares has too few rows for the threads: one kernel more for each stacked parameter.
    for mesh in [MANY, FEW] {
        let (mut few, _) = planned(2, mesh);
        for stage in ["fused", "buffers"] {
            let more = few[stage] - expected[stage];
            assert!(more <= 9, "{stage}: {more} more on {mesh:?}");
            few.insert(stage, expected[stage]);
        }
        assert_eq!(few, expected, "2 layers on {mesh:?}");
    }
}

/// Every layer adds its parameters and states at rest, their copy in bf16, its gradients, and what is saved for its backward pass.
#[test]
fn the_peak_of_a_rank_is_exact_and_grows_by_what_a_layer_holds() {
    let [fewer, more] = [80, 126].map(|layers| planned(layers, [1, 64, 8]).1.arena_bytes);
    // Split 512 ways: the elements of products; whole on every rank: two norms of 16,384. Parameters, two states and gradients
    // in f32, the copy of what is split in bf16; the layer's input in bf16, 8192 tokens of 16,384 over 8 ranks.
    let products = 2 * 16_384 * 16_384 + 2 * 16_384 * 1024 + 3 * 16_384 * 53_248_u64;
    let expected = products / 512 * (16 + 2) + 2 * 16_384 * 16 + 8192 / 8 * 16_384 * 2;
    assert_eq!((more - fewer) / 46, expected);
    assert_eq!((more - fewer) % 46, 0);
}
