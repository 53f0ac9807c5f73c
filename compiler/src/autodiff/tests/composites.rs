//! Every composite: its derivative by name, or through its meaning.

use super::{check, check_graph, param, param_in};
use crate::autodiff::differentiate::differentiate;
use crate::graph::composites::AttentionParts;
use crate::graph::grouped::Packing;
use crate::graph::{
    Axis, BinaryOp, Bound, Builder, CompareOp, DType, LossHead, Name, Op, Output, Pairs, ReduceOp, RegionId,
    Type, UnaryOp, ValueId,
};

/// Every test of this file, for [`super::coverage`].
pub(super) const TESTS: &[fn()] = &[
    softmax_has_its_derivative,
    softmax_of_a_masked_row_is_zero_with_zero_gradient,
    norms_have_their_derivatives,
    norm_whose_rstd_is_used_goes_through_its_meaning,
    rope_goes_through_its_meaning,
    grouped_dot_has_its_derivative_in_grouped_products,
    grouped_outer_goes_through_its_meaning,
    cross_entropy_has_its_derivative,
    activations_have_their_derivatives,
    causal_attention_with_groups_has_its_derivative,
    soft_capped_windowed_attention_with_documents_has_its_derivative,
    attention_gives_a_learned_bias_its_gradient,
    attention_gives_only_the_learned_extras_gradients,
    attention_whose_lse_is_used_goes_through_its_meaning,
    attention_grad_goes_through_its_meaning,
    loss_head_becomes_a_loop_over_chunks_with_the_same_gradient,
    evaluated_entry_has_a_chunked_loss_and_tables_outside_its_loops,
    loss_head_inside_a_loop_is_scaled_per_iteration,
    composites_refuse_operands_that_do_not_fit,
];

#[test]
fn softmax_has_its_derivative() {
    check(|b| {
        let x = param(b, "x", &[("a", 2), ("d", 4)]);
        b.softmax(x, &"d".into()).unwrap()
    });
}

#[test]
fn softmax_of_a_masked_row_is_zero_with_zero_gradient() {
    let graph = check(|b| {
        let x = param(b, "x", &[("a", 2), ("d", 4)]);
        // Row 0 has no element left, row 1 has two.
        let (row, column) = (b.index(&"a".into(), 2), b.index(&"d".into(), 4));
        let two = b.constant(DType::I32, 2.0);
        let width = b.mul(row, two);
        let axes = Type::new(DType::Bool, vec![Axis::new("a", 2), Axis::new("d", 4)]);
        let inside = b.one(Op::Compare(CompareOp::Lt), &[column, width], Some(axes), "inside");
        let lowest = b.constant(DType::F32, f64::NEG_INFINITY);
        let x = b.select(inside, x, lowest);
        b.softmax(x, &"d".into()).unwrap()
    });
    assert!(crate::graph::print::print(&graph).contains("softmax"));
}

#[test]
fn norms_have_their_derivatives() {
    check(|b| {
        let x = param(b, "x", &[("a", 2), ("d", 4)]);
        let w = param(b, "w", &[("d", 4)]);
        b.rms_norm(x, w, &"d".into(), 1e-2).unwrap().0
    });
    check(|b| {
        let x = param(b, "x", &[("a", 2), ("d", 4)]);
        let w = param(b, "w", &[("d", 4)]);
        let bias = param(b, "b", &[("d", 4)]);
        b.layer_norm(x, w, bias, &"d".into(), 1e-2).unwrap().0
    });
}

#[test]
fn norm_whose_rstd_is_used_goes_through_its_meaning() {
    check(|b| {
        let x = param(b, "x", &[("a", 2), ("d", 4)]);
        let w = param(b, "w", &[("d", 4)]);
        let (y, rstd) = b.rms_norm(x, w, &"d".into(), 1e-2).unwrap();
        b.mul(y, rstd)
    });
}

#[test]
fn rope_goes_through_its_meaning() {
    for pairs in [Pairs::Half, Pairs::Interleaved] {
        check(|b| {
            let x = param(b, "x", &[("s", 3), ("d", 4)]);
            let at = b.index(&"s".into(), 3);
            b.rope(x, at, &"d".into(), 100.0, pairs).unwrap()
        });
    }
}

/// Owners of eight rows of two batches in tiles of two; the last rows of the second batch belong to no group of three.
fn owners(b: &mut Builder) -> ValueId {
    let (batch, row) = (b.index(&"batch".into(), 2), b.index(&"row".into(), 8));
    let two = b.constant(DType::I32, 2.0);
    let tile = b.div(row, two);
    b.binary_union(BinaryOp::Add, batch, tile)
}

#[test]
fn grouped_dot_has_its_derivative_in_grouped_products() {
    let graph = check(|b| {
        let x = param(b, "x", &[("batch", 2), ("row", 8), ("d", 3)]);
        let w = param(b, "w", &[("expert", 3), ("d", 3), ("ff", 2)]);
        let owner = owners(b);
        let packing = Packing { row: "row".into(), tile: 2 };
        b.grouped_dot(x, w, owner, &"expert".into(), &["d".into()], &packing).unwrap()
    });
    let text = crate::graph::print::print(&graph);
    let count = |what: &str| text.matches(&format!("= {what} along expert")).count();
    assert_eq!((count("grouped_dot"), count("grouped_outer")), (2, 1), "{text}");
    assert_eq!(crate::graph::print::print(&crate::graph::parse::parse(&text).unwrap()), text);
}

#[test]
fn grouped_outer_goes_through_its_meaning() {
    check(|b| {
        let x = param(b, "a", &[("batch", 2), ("row", 8), ("d", 3)]);
        let y = param(b, "b", &[("batch", 2), ("row", 8), ("ff", 2)]);
        let owner = owners(b);
        let packing = Packing { row: "row".into(), tile: 2 };
        b.grouped_outer(x, y, owner, &Axis::new("expert", 3), &packing).unwrap()
    });
}

#[test]
fn cross_entropy_has_its_derivative() {
    check(|b| {
        let x = param(b, "x", &[("s", 3), ("v", 5)]);
        let targets = b.input("targets", Type::new(DType::I32, vec![Axis::new("s", 3)]), 5);
        b.cross_entropy(x, targets, &"v".into()).unwrap().0
    });
    check(|b| {
        let x = param(b, "x", &[("s", 3), ("v", 5)]);
        let targets = b.input("targets", Type::new(DType::I32, vec![Axis::new("s", 3)]), 5);
        let (loss, lse) = b.cross_entropy(x, targets, &"v".into()).unwrap();
        b.mul(loss, lse)
    });
}

#[test]
fn activations_have_their_derivatives() {
    for f in [Builder::silu, Builder::gelu_tanh, Builder::gelu_erf] {
        check(|b| {
            let x = param(b, "x", &[("d", 6)]);
            let x = b.scale(x, 3.0);
            f(b, x)
        });
    }
}

/// q, k, v of a grouped-query attention: [batch, kv] shared, `group` in q alone.
fn qkv(b: &mut Builder) -> [ValueId; 3] {
    [
        param(b, "q", &[("batch", 2), ("seq", 4), ("kv", 2), ("group", 2), ("hd", 3)]),
        param(b, "k", &[("batch", 2), ("pos", 4), ("kv", 2), ("hd", 3)]),
        param(b, "v", &[("batch", 2), ("pos", 4), ("kv", 2), ("hv", 2)]),
    ]
}

/// A score region: `body` gets the builder and (q·k, query, key, extras..).
fn score(
    b: &mut Builder,
    extras: &[DType],
    body: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> RegionId {
    let mut args: Vec<(Name, Type)> = vec![
        ("s".into(), Type::scalar(DType::F32)),
        ("query".into(), Type::scalar(DType::I32)),
        ("key".into(), Type::scalar(DType::I32)),
    ];
    args.extend(extras.iter().map(|d| (Name::from("extra"), Type::scalar(*d))));
    let (_, args) = b.open(&args);
    let result = body(b, &args);
    b.close(vec![result])
}

fn causal(b: &mut Builder, args: &[ValueId], s: ValueId) -> ValueId {
    let seen = b.compare(CompareOp::Le, args[2], args[1]);
    let lowest = b.constant(DType::F32, f64::NEG_INFINITY);
    b.select(seen, s, lowest)
}

fn parts(score: RegionId, bound: Bound) -> AttentionParts {
    AttentionParts { query: "seq".into(), key: "pos".into(), over: vec!["hd".into()], bound, score }
}

#[test]
fn causal_attention_with_groups_has_its_derivative() {
    let graph = check(|b| {
        let [q, k, v] = qkv(b);
        let region = score(b, &[], |b, args| {
            let s = b.scale(args[0], 0.5);
            causal(b, args, s)
        });
        b.attention(q, k, v, &[], parts(region, Bound::Causal)).unwrap().0
    });
    assert!(crate::graph::print::print(&graph).contains("attention_grad"));
}

#[test]
fn soft_capped_windowed_attention_with_documents_has_its_derivative() {
    check(|b| {
        let [q, k, v] = qkv(b);
        let ids = |b: &mut Builder, name: &str, axis: &str| {
            b.input(name, Type::new(DType::I32, vec![Axis::new("batch", 2), Axis::new(axis, 4)]), 2)
        };
        let (mine, theirs) = (ids(b, "mine", "seq"), ids(b, "theirs", "pos"));
        let region = score(b, &[DType::I32, DType::I32], |b, args| {
            let t = b.scale(args[0], 0.5);
            let t = b.unary(UnaryOp::Tanh, t);
            let s = b.scale(t, 2.0);
            let s = causal(b, args, s);
            let two = b.constant(DType::I32, 2.0);
            let first = b.sub(args[1], two);
            let near = b.compare(CompareOp::Gt, args[2], first);
            let same = b.compare(CompareOp::Eq, args[3], args[4]);
            let both = b.binary(BinaryOp::And, near, same);
            let lowest = b.constant(DType::F32, f64::NEG_INFINITY);
            b.select(both, s, lowest)
        });
        // Documents of queries and keys are drawn apart, so some rows see no key at all.
        b.attention(q, k, v, &[mine, theirs], parts(region, Bound::Window(2))).unwrap().0
    });
}

#[test]
fn attention_gives_a_learned_bias_its_gradient() {
    let biases: [&[(&str, u64)]; 6] = [
        &[("kv", 2), ("group", 2), ("seq", 4), ("pos", 4)],
        &[("batch", 2), ("pos", 4), ("seq", 4)],
        &[("group", 2), ("pos", 4)],
        &[("kv", 2), ("seq", 4)],
        &[("kv", 2), ("group", 2)],
        &[],
    ];
    for axes in biases {
        let graph = check(|b| {
            let [q, k, v] = qkv(b);
            let bias = param(b, "bias", axes);
            let region = score(b, &[DType::F32], |b, args| {
                // Added alone, what is the same for all keys would cancel.
                let s = b.mul(args[0], args[3]);
                let s = b.add(s, args[3]);
                causal(b, args, s)
            });
            b.attention(q, k, v, &[bias], parts(region, Bound::Causal)).unwrap().0
        });
        assert!(crate::graph::print::print(&graph).contains("over hd learned 0 {"), "{axes:?}");
    }
}

#[test]
fn attention_gives_only_the_learned_extras_gradients() {
    let graph = check(|b| {
        let [q, k, v] = qkv(b);
        let slope = param(b, "slope", &[("kv", 2), ("group", 2)]);
        let far = b.input("far", Type::new(DType::F32, vec![Axis::new("pos", 4)]), 0);
        let cap = param_in(b, "cap", &[], 1.0, 2.0);
        let region = score(b, &[DType::F32; 3], |b, args| {
            let scaled = b.div(args[0], args[5]);
            let t = b.unary(UnaryOp::Tanh, scaled);
            let s = b.mul(t, args[5]);
            let distance = b.sub(args[2], args[1]);
            let distance = b.cast(distance, DType::F32);
            let bias = b.mul(distance, args[3]);
            let s = b.add(s, bias);
            let s = b.add(s, args[4]);
            causal(b, args, s)
        });
        b.attention(q, k, v, &[slope, far, cap], parts(region, Bound::Causal)).unwrap().0
    });
    assert!(crate::graph::print::print(&graph).contains("over hd learned 0, 2 {"));
}

#[test]
fn attention_whose_lse_is_used_goes_through_its_meaning() {
    check(|b| {
        let [q, k, v] = qkv(b);
        let region = score(b, &[], |b, args| causal(b, args, args[0]));
        let (o, lse) = b.attention(q, k, v, &[], parts(region, Bound::Causal)).unwrap();
        b.mul(o, lse)
    });
}

/// Squares of an attention's gradients as a loss: its gradient goes through the backward kernel's meaning.
#[test]
fn attention_grad_goes_through_its_meaning() {
    let mut b = Builder::new("twice");
    let [q, k, v] = qkv(&mut b);
    let region = score(&mut b, &[], |b, args| causal(b, args, args[0]));
    let (o, _) = b.attention(q, k, v, &[], parts(region, Bound::Causal)).unwrap();
    let all = |b: &mut Builder, x: ValueId| {
        let square = b.mul(x, x);
        let axes = b.ty(square).names();
        b.reduce(ReduceOp::Sum, square, &axes)
    };
    let loss = all(&mut b, o);
    b.output(Output::Report("loss_sum".into()), loss);
    let done = differentiate(b.finish(), 0).unwrap();
    let mut graph = done.graph;
    graph.outputs.clear();
    graph.regions[graph.body.index()].results.clear();
    let mut b = Builder::resume(graph);
    let losses: Vec<ValueId> = done.gradients.iter().map(|g| all(&mut b, g.gradient)).collect();
    let loss = losses.into_iter().reduce(|sum, loss| b.add(sum, loss)).unwrap();
    b.output(Output::Report("loss_sum".into()), loss);
    let graph = b.finish();
    assert!(crate::graph::print::print(&graph).contains(" = attention_grad "));
    check_graph(graph);
}

/// A loss head over 2 × 4 tokens, its sum scaled by a parameter so that the cotangent is not 1.
fn loss_head(chunks: &[(&str, u64)], weight: Option<&str>, scaled: bool) {
    let mut b = Builder::new("head");
    let x = param(&mut b, "x", &[("batch", 2), ("seq", 4), ("d", 3)]);
    let w = param(&mut b, "w", &[("v", 5), ("d", 3)]);
    let axes = vec![Axis::new("batch", 2), Axis::new("seq", 4)];
    let targets = b.input("targets", Type::new(DType::I32, axes.clone()), 5);
    let weight = weight.map(|axis| {
        let axes = axes.iter().filter(|a| axis.contains(a.name.as_str())).cloned().collect();
        b.input("weight", Type::new(DType::F32, axes), 0)
    });
    let chunks = chunks.iter().map(|(n, s)| (Name::from(*n), *s)).collect();
    let head = LossHead { over: vec!["d".into()], vocab: "v".into(), chunks };
    let mut loss = b.loss_head(x, w, targets, weight, head).unwrap();
    if scaled {
        let scale = param(&mut b, "scale", &[]);
        loss = b.mul(loss, scale);
    }
    b.output(Output::Report("loss_sum".into()), loss);
    let graph = check_graph(b.finish());
    assert!(!crate::graph::print::print(&graph).contains("loss_head along"));
}

/// A learned weight has a gradient, which a loop over chunks does not give.
#[test]
fn loss_head_with_a_learned_weight_goes_through_its_meaning() {
    let mut b = Builder::new("head");
    let x = param(&mut b, "x", &[("seq", 4), ("d", 3)]);
    let w = param(&mut b, "w", &[("v", 5), ("d", 3)]);
    let targets = b.input("targets", Type::new(DType::I32, vec![Axis::new("seq", 4)]), 5);
    let weight = param(&mut b, "weight", &[("seq", 4)]);
    let head = LossHead { over: vec!["d".into()], vocab: "v".into(), chunks: vec![("seq".into(), 2)] };
    let loss = b.loss_head(x, w, targets, Some(weight), head).unwrap();
    b.output(Output::Report("loss_sum".into()), loss);
    let graph = check_graph(b.finish());
    assert!(!crate::graph::print::print(&graph).contains("loop"));
}

#[test]
fn loss_head_becomes_a_loop_over_chunks_with_the_same_gradient() {
    loss_head(&[("seq", 2)], None, false);
    loss_head(&[("batch", 1), ("seq", 2)], None, false);
    loss_head(&[("batch", 1), ("seq", 4)], Some("batch seq"), false);
    loss_head(&[("seq", 1)], Some("batch"), true);
    loss_head(&[("batch", 1), ("seq", 1)], Some("seq"), true);
    // A single chunk needs no loop.
    loss_head(&[("seq", 4)], None, true);
}

#[test]
fn evaluated_entry_has_a_chunked_loss_and_tables_outside_its_loops() {
    use crate::autodiff::inference_step;
    use crate::autodiff::precision::Precision;
    use crate::testing::assert_same_numbers;
    let forward = super::llama(false);
    let chunked = inference_step(forward.clone(), &Precision::F32).expect("f32 needs no casts");
    assert_same_numbers(&forward, &chunked);
    let trips: Vec<(u64, usize)> = chunked
        .executed_regions()
        .iter()
        .flat_map(|r| &chunked.region(*r).ops)
        .filter_map(|op| match &chunked.op(*op).op {
            Op::Loop(l) if l.block.is_some() => Some((l.trip, chunked.op(*op).results.len())),
            _ => None,
        })
        .collect();
    // Four sequences, each in two chunks; one result, the loss.
    assert_eq!(trips, [(4, 1), (2, 1)]);
    let is_table = |op: &&crate::graph::OpId| chunked.op(**op).op == Op::Unary(UnaryOp::Sin);
    let sines: Vec<usize> = chunked
        .executed_regions()
        .iter()
        .map(|r| chunked.region(*r).ops.iter().filter(is_table).count())
        .collect();
    // Queries and keys turn by the same angles.
    assert_eq!(sines.iter().sum::<usize>(), 1);
    assert_eq!(sines[0], 1);
}

#[test]
fn loss_head_inside_a_loop_is_scaled_per_iteration() {
    use crate::graph::Loop;
    let mut b = Builder::new("f");
    let x = param(&mut b, "x", &[("layer", 2), ("s", 4), ("d", 2)]);
    let w = param(&mut b, "w", &[("d", 2), ("v", 3)]);
    let targets = b.input("targets", Type::new(DType::I32, vec![Axis::new("s", 4)]), 3);
    let axis = |n: &str, s| Axis::new(n, s);
    let (body, args) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("x".into(), Type::new(DType::F32, vec![axis("s", 4), axis("d", 2)])),
        ("w".into(), b.ty(w).clone()),
        ("t".into(), b.ty(targets).clone()),
    ]);
    let head = LossHead { over: vec!["d".into()], vocab: "v".into(), chunks: vec![("s".into(), 2)] };
    let loss = b.loss_head(args[1], args[2], args[3], None, head).unwrap();
    let squared = b.mul(loss, loss);
    b.close(vec![squared]);
    let l = Loop {
        axis: "layer".into(),
        trip: 2,
        block: None,
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 1,
        stacked_outs: 0,
        body,
    };
    let sum = b.repeat(l, &[x, w, targets], "sum")[0];
    b.output(Output::Report("loss_sum".into()), sum);
    check_graph(b.finish());
}

#[test]
fn composites_refuse_operands_that_do_not_fit() {
    let mut b = Builder::new("f");
    let x = param(&mut b, "x", &[("s", 3), ("d", 3)]);
    let at = b.index(&"s".into(), 3);
    let error = b.softmax(x, &"k".into()).unwrap_err().message;
    assert_eq!(error, "softmax along k, which f32[s=3, d=3] lacks");
    let error = b.rope(x, at, &"d".into(), 1e4, Pairs::Half).unwrap_err().message;
    assert_eq!(error, "rope turns pairs along d, whose size 3 is odd");
    let error = b.cross_entropy(x, at, &"s".into()).unwrap_err().message;
    assert_eq!(error, "cross_entropy over s of f32[s=3, d=3] takes i32[d=3], got i32[s=3]");
    let sum = b.reduce(ReduceOp::Sum, x, &["s".into(), "d".into()]);
    let error = b.rms_norm(sum, x, &"d".into(), 1e-5).unwrap_err().message;
    assert_eq!(error, "rms_norm along d, which f32[] lacks");
}
