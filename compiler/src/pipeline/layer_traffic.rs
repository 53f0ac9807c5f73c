//! What one layer of Llama 70B sends, counted: fully sharded over one mesh axis, tensor and sequence parallel over another.
//!
//! Per layer and rank there should be, whatever the number of layers, the sizes and names of the mesh axes, and whether
//! projections that read the same value are one parameter or several:
//!
//! | pass | over `fsdp` | over `tensor` |
//! |---|---|---|
//! | forward | the layer's parameters gathered, in one message | the input of attention and that of the feed-forward part gathered along `seq`, the output of each scattered |
//! | backward | the parameters gathered again and their gradients scattered, one message each | the gradients of both outputs gathered, those of both inputs scattered; and both inputs gathered once more, which were saved as parts |
//! | small | | the gradients of both norms, which are the same parameters on all ranks: one sum over everything |
//!
//! Source: Zhao et al. 2023 (PyTorch FSDP, arXiv:2304.11277), §3.2; Korthikanti et al. 2022 (arXiv:2205.05198), §4.2.2, whose
//! backward pass gathers the saved inputs likewise.

use super::{Identity, Runner, compile, graphs};
use crate::graph::parse::parse;
use crate::graph::shape::op_name;
use crate::graph::{Collective, Graph, MeshOp, Name, Op, OpNode, RegionId, ValueId};
use crate::spec::checked::Spec;
use crate::spec::{MemoryLoader, SourceMap, check};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const LLAMA: &str = include_str!("../../../specs/llama.spec");

/// A run of Llama 70B in which every rank along `fsdp` takes one sequence of 4096 tokens.
#[derive(Clone, Copy)]
struct Run<'a> {
    layers: u64,
    /// Mesh axes: batch and parameters at rest; heads, features and tokens.
    names: [&'a str; 2],
    sizes: [u64; 2],
    fused: bool,
    /// Copies of all that, on machines of their own, along `data`.
    nodes: u64,
    /// Sequences of a rank and step, one at a time.
    batch: u64,
    precision: &'a str,
    more: &'a str,
}

const RUN: Run<'_> = Run {
    layers: 80,
    names: ["fsdp", "tensor"],
    sizes: [8, 8],
    fused: false,
    nodes: 1,
    batch: 1,
    precision: "bf16",
    more: "",
};

impl Run<'_> {
    fn text(&self) -> String {
        let ([fsdp, tensor], [n, t]) = (self.names, self.sizes);
        format!(
            "spec 1
            use \"llama.spec\" as Llama with {{ layers = {} }}
            mesh {{ data = {} over nodes, {fsdp} = {n}, {tensor} = {t} }}
            shard {{
                batch -> data, {fsdp}
                kv, ff, vocab -> {tensor}
                role residual: seq -> {tensor}
                params \"**\": d -> {fsdp}
                params \"**.norm*.w\": d -> none
                params \"norm.w\": d -> none
            }}
            train {{
                steps = 10, batch = {} sequences, microbatch = 1, seq = 4096, data = synthetic
                precision = {}, optimizer = adamw {{ lr = 1.5e-4 }}
            }}
            {}",
            self.layers,
            self.nodes,
            self.nodes * n * self.batch,
            self.precision,
            self.more
        )
    }

    fn model(&self) -> String {
        if !self.fused {
            return LLAMA.to_string();
        }
        let (model, _) = LLAMA.split_once("    names hf {").expect("the names are last");
        let mut model = format!("{model}}}\n");
        for (from, to) in [
            ("hd = 128  #", "hd = 128, all = group + 2, two = 2, one = 1  #"),
            ("wq[d -> kv, group, hd], wk[d -> kv, hd], wv[d -> kv, hd]", "wqkv[d -> kv, all, hd]"),
            ("q = rope[hd](dot[d](x, wq)", "y = dot[d](x, wqkv)\nq = rope[hd](slice[all, group](y, at = 0)"),
            ("dot[d](x, wk)", "sum[one](slice[all, one](y, at = group))"),
            ("dot[d](x, wv)", "sum[one](slice[all, one](y, at = group + 1))"),
            ("gate[d -> ff], up[d -> ff]", "both[d -> two, ff]"),
            (
                "dot[ff](silu(dot[d](x, gate)) * dot[d](x, up), down)",
                "y = dot[d](x, both)
                dot[ff](silu(sum[one](slice[two, one](y, at = 0))) * sum[one](slice[two, one](y, at = 1)), down)",
            ),
        ] {
            assert!(model.contains(from), "{from}");
            model = model.replace(from, to);
        }
        model
    }

    fn spec(&self) -> (Spec, SourceMap) {
        let files = vec![("llama.spec".into(), self.model()), ("run.spec".into(), self.text())];
        let mut sources = SourceMap::new();
        let checked = check(&mut sources, &MemoryLoader { files }, "run.spec", &[]);
        let (spec, _) = checked.unwrap_or_else(|errors| {
            panic!("{}", crate::spec::diagnostic::render_all(&errors, &sources, false))
        });
        (spec, sources)
    }

    /// Bytes of one rank's memory.
    fn arena_bytes(&self) -> u64 {
        let (spec, sources) = self.spec();
        compile(&spec, &sources, &Identity::default(), &mut Runner::default()).unwrap().plan.arena_bytes
    }

    /// One rank's training program.
    fn program(&self) -> Graph {
        let (spec, sources) = self.spec();
        let mut text = String::new();
        let mut runner = Runner::viewing(Box::new(|stage, entry, shown| {
            if stage == "spmd" && entry == "train" {
                text = shown;
            }
        }));
        graphs(&spec, &sources, &mut runner).unwrap_or_else(|e| panic!("{e:?}"));
        drop(runner);
        parse(&text).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Lines of the table, with the usual names of the mesh axes.
    fn counts(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for ((pass, over, kind), messages) in traffic(&self.program()) {
            let place = |name: &str| self.names.iter().position(|own| *own == name);
            let over: Vec<&str> = over.split(' ').map(|m| place(m).map_or(m, |i| RUN.names[i])).collect();
            lines.push(format!("{pass}: {} {kind} over {}", messages.len(), over.join(" ")));
        }
        lines.sort();
        lines
    }
}

/// The bodies of the loops over layers.
fn layers(graph: &Graph) -> Vec<(&'static str, RegionId)> {
    let mut found = Vec::new();
    for region in graph.executed_regions() {
        for op in &graph.region(region).ops {
            if let Op::Loop(l) = &graph.op(*op).op
                && l.axis.as_str() == "layers"
            {
                found.push((if l.reverse { "backward" } else { "forward" }, l.body));
            }
        }
    }
    found
}

fn collectives(graph: &Graph, region: RegionId) -> impl Iterator<Item = (&OpNode, &Collective)> {
    let nodes = graph.region(region).ops.iter().map(|op| graph.op(*op));
    nodes.filter_map(|node| match &node.op {
        Op::Mesh(MeshOp::Collective(c)) => Some((node, c)),
        _ => None,
    })
}

/// Of each message of a layer: its tensors and their bytes, by pass, mesh axes and kind.
fn traffic(graph: &Graph) -> BTreeMap<(&'static str, String, String), Vec<(usize, u64)>> {
    let mut found: BTreeMap<_, Vec<(usize, u64)>> = BTreeMap::new();
    for (pass, body) in layers(graph) {
        for (node, c) in collectives(graph, body) {
            let over: Vec<&str> = c.over.iter().map(|m| m.as_str()).collect();
            let bytes = node.operands.iter().map(|v| graph.ty(*v).bytes()).sum();
            found.entry((pass, over.join(" "), op_name(&node.op))).or_default().push((c.parts.len(), bytes));
        }
    }
    found
}

/// 26,738,688 bytes are an eighth of 855,638,016 parameters of bf16, after another eighth by `tensor`; 427,819,008 are the same
/// parameters' gradients in f32, whole. 8 MiB are a rank's 512 tokens of 8192 features in bf16, 128 MiB are terms of 4096 in
/// f32. The two norms have 8192 weights each.
#[test]
fn layer_traffic_of_llama_70b_is_that_of_fully_sharded_and_sequence_parallel_training() {
    let mut table = String::new();
    for ((pass, over, kind), messages) in traffic(&RUN.program()) {
        for (tensors, bytes) in messages {
            let _ = writeln!(table, "{pass}, over {over}: {kind} of {tensors}, {bytes} bytes");
        }
    }
    insta::assert_snapshot!(table, @"
    backward, over fsdp: all_gather of 7, 26738688 bytes
    backward, over fsdp: reduce_scatter_sum of 7, 427819008 bytes
    backward, over fsdp tensor: all_reduce_sum of 2, 65536 bytes
    backward, over tensor: all_gather of 1, 8388608 bytes
    backward, over tensor: all_gather of 1, 8388608 bytes
    backward, over tensor: all_gather of 1, 8388608 bytes
    backward, over tensor: all_gather of 1, 8388608 bytes
    backward, over tensor: reduce_scatter_sum of 1, 134217728 bytes
    backward, over tensor: reduce_scatter_sum of 1, 134217728 bytes
    forward, over fsdp: all_gather of 7, 26738688 bytes
    forward, over tensor: all_gather of 1, 8388608 bytes
    forward, over tensor: all_gather of 1, 8388608 bytes
    forward, over tensor: reduce_scatter_sum of 1, 134217728 bytes
    forward, over tensor: reduce_scatter_sum of 1, 134217728 bytes
    ");
}

#[test]
fn layer_traffic_depends_on_neither_sizes_nor_names() {
    let usual = RUN.counts();
    assert_eq!(usual.len(), 8, "{usual:?}");
    // In another alphabetical order too.
    let renamed = Run { names: ["rows", "columns"], ..RUN };
    let four = Run { sizes: [8, 4], ..RUN };
    for run in [Run { layers: 2, ..RUN }, renamed, four, Run { fused: true, ..RUN }] {
        assert_eq!(run.counts(), usual);
    }
}

/// Between machines goes what is left of gradients after they have been scattered within: an eighth of the layer's in f32, and of the
/// norms' a sixty-fourth; all in one message. The norms are put together again within.
#[test]
fn layer_traffic_between_nodes_is_one_sum_of_parts() {
    let run = Run { nodes: 4, ..RUN };
    let mut expected = RUN.counts();
    expected.retain(|line| line != "backward: 1 all_reduce_sum over fsdp tensor");
    expected.push("backward: 1 all_gather over fsdp tensor".into());
    expected.push("backward: 1 all_reduce_sum over data".into());
    expected.push("backward: 1 reduce_scatter_sum over fsdp tensor".into());
    expected.sort();
    assert_eq!(run.counts(), expected);
    let traffic = traffic(&run.program());
    let between: Vec<_> = traffic.iter().filter(|((_, over, _), _)| over.contains("data")).collect();
    assert_eq!(between.len(), 1);
    assert_eq!(between[0].1[..], [(9, 427_819_008 / 8 + 65_536 / 64)]);
}

/// No tensor that travels is larger than all parameters of a layer as they are used.
#[test]
fn layer_traffic_moves_nothing_larger_than_a_layer() {
    for run in [RUN, Run { layers: 2, sizes: [8, 4], ..RUN }] {
        let graph = run.program();
        let parameters: u64 = 855_638_016 * 2 / run.sizes[1];
        for region in graph.executed_regions() {
            for (node, _) in collectives(&graph, region).filter(|_| region != graph.body) {
                for v in node.operands.iter().chain(&node.results) {
                    assert!(graph.ty(*v).bytes() <= parameters, "%{}", graph.value_name(*v));
                }
            }
        }
    }
}

#[test]
fn programs_are_as_long_for_any_number_of_layers_and_ranks() {
    let ops = |run: Run<'_>| -> Vec<usize> {
        let graph = run.program();
        graph.executed_regions().iter().map(|r| graph.region(*r).ops.len()).collect()
    };
    let usual = ops(RUN);
    for layers in [2, 126] {
        assert_eq!(ops(Run { layers, ..RUN }), usual, "{layers} layers");
    }
    for sizes in [[4, 2], [64, 8], [2048, 8]] {
        assert_eq!(ops(Run { sizes, ..RUN }), usual, "{sizes:?}");
    }
}

/// Bytes that a rank sends in a step, over these mesh axes, in messages of this kind.
fn sent(graph: &Graph, over: &str, kind: &str) -> u64 {
    fn walk(graph: &Graph, region: RegionId, times: u64, found: &mut dyn FnMut(u64, &OpNode, &Collective)) {
        for op in &graph.region(region).ops {
            let node = graph.op(*op);
            match &node.op {
                Op::Loop(l) => walk(graph, l.body, times * l.trip, found),
                Op::Mesh(MeshOp::Collective(c)) => found(times, node, c),
                _ => {}
            }
        }
    }
    let mut bytes = 0;
    walk(graph, graph.body, 1, &mut |times, node, c| {
        if c.over == [Name::from(over)] && op_name(&node.op) == kind {
            let element = |v: ValueId| c.wire.unwrap_or(graph.ty(v).dtype).bytes();
            let held: u64 = node.operands.iter().map(|v| graph.ty(*v).numel() * element(*v)).sum();
            bytes += times * c.kind.bytes_sent(held, graph.mesh.ways(&c.over));
        }
    });
    bytes
}

/// Kept parameters are gathered once where they were gathered twice, and every layer adds what it has gathered to the memory:
/// 855,638,016 / 8 elements of bf16. From that goes at most the eighth of it that it was gathered from, which the backward pass no
/// longer reads.
#[test]
fn layer_traffic_is_less_and_memory_more_when_the_forward_pass_gathers_for_both() {
    let [again, kept] = ["", "store { regather = forward }"].map(|more| Run { more, ..RUN });
    let gathers = |run: &Run<'_>| -> Vec<String> {
        run.counts().into_iter().filter(|l| l.ends_with("all_gather over fsdp")).collect()
    };
    assert_eq!(gathers(&again), ["backward: 1 all_gather over fsdp", "forward: 1 all_gather over fsdp"]);
    assert_eq!(gathers(&kept), ["forward: 1 all_gather over fsdp"]);
    let in_loops = |run: Run<'_>| {
        let of = |layers| sent(&Run { layers, ..run }.program(), "fsdp", "all_gather");
        of(3) - of(2)
    };
    assert_eq!(in_loops(again), 2 * in_loops(kept));
    let memory = |run: Run<'_>| {
        let of = |layers| Run { layers, ..run }.arena_bytes();
        of(8) - of(4)
    };
    let (layer, more) = (855_638_016 / 8 * 2, (memory(kept) - memory(again)) / 4);
    // Buffers begin at multiples of some bytes.
    assert!((layer * 7 / 8 - 4096..=layer).contains(&more), "{more}");
}

/// Four microbatches: gradients that are kept as parts are scattered four times; those kept whole once, at the end.
#[test]
fn layer_traffic_of_gradients_is_once_a_microbatch_or_once_a_step() {
    let parts = Run { batch: 4, ..RUN };
    let whole = Run { more: "store { grads = whole }", ..parts };
    let scattered = |run: Run<'_>| sent(&run.program(), "fsdp", "reduce_scatter_sum");
    assert_eq!(scattered(parts), 4 * scattered(whole));
    assert_eq!(scattered(whole), scattered(RUN));
    let in_layers = |run: Run<'_>| {
        run.counts().iter().filter(|line| line.ends_with("reduce_scatter_sum over fsdp")).count()
    };
    assert_eq!((in_layers(parts), in_layers(whole)), (1, 0));
    // Of a layer's gradients, in f32, not an eighth but all: those of the step and those of the microbatch; or in the end those of
    // the step and the messages to and from every rank.
    let memory = |run: Run<'_>| {
        let of = |layers| Run { layers, ..run }.arena_bytes();
        (of(8) - of(4)) / 4
    };
    let gradient = 855_638_016 / 8 * 4;
    let more = memory(whole) - memory(parts);
    assert!((gradient * 7 / 8..=gradient * 3).contains(&more), "{more}");
}

/// Terms of products travel in half the bytes; what is gathered, and the statistics of the loss, as they are.
#[test]
fn layer_traffic_of_sums_is_half_in_bf16() {
    let narrow = Run { precision: "{ matmul = bf16, stored = bf16, reduce = bf16 }", ..RUN };
    assert_eq!(narrow.counts(), RUN.counts());
    let (wide, narrow) = (RUN.program(), narrow.program());
    for (over, kind, part) in [
        ("fsdp", "reduce_scatter_sum", 2),
        ("fsdp", "all_gather", 1),
        ("tensor", "all_gather", 1),
        ("tensor", "all_reduce_max", 1),
        ("tensor", "all_reduce_sum", 1),
    ] {
        let [before, after] = [&wide, &narrow].map(|graph| sent(graph, over, kind));
        assert!(before > 0 && before == part * after, "{kind} over {over}: {before}, {after}");
    }
    // All but the embedding's, which is looked up and no product.
    let [before, after] = [&wide, &narrow].map(|graph| sent(graph, "tensor", "reduce_scatter_sum"));
    let embedding = 4096 * 8192 * 4 * 7 / 8;
    assert_eq!((before - embedding), 2 * (after - embedding));
}
