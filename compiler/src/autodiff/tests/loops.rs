//! Loops: their gradients, and those of the same computation written out.

use super::{check_graph, environment, param};
use crate::autodiff::differentiate::differentiate;
use crate::graph::{Axis, Builder, DType, Graph, Loop, Op, Output, ReduceOp, Type, UnaryOp, ValueId};
use crate::interpret::{Mode, run};

/// Every test of this file, for [`super::coverage`].
pub(super) const TESTS: &[fn()] = &[
    loop_with_carries_stacked_outs_and_sums_has_its_gradient,
    loop_has_the_gradient_of_its_unrolled_form,
    loop_saves_what_the_rules_ask_for_once_and_nothing_else,
    nested_loops_have_their_gradient,
    carry_becomes_varied_through_another,
    blocked_loop_has_its_gradient,
    value_without_the_axis_can_not_be_kept_in_a_blocked_loop,
];

fn f32s(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect())
}

fn index() -> Type {
    Type::scalar(DType::I32)
}

fn plain(axis: &str, trip: u64, body: crate::graph::RegionId) -> Loop {
    Loop {
        axis: axis.into(),
        trip,
        block: None,
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 0,
        stacked_outs: 0,
        body,
    }
}

fn report_sum(b: &mut Builder, value: ValueId) {
    let axes = b.ty(value).names();
    let loss = b.reduce(ReduceOp::Sum, value, &axes);
    b.output(Output::Report("loss_sum".into()), loss);
}

/// x ← tanh(x·w) + u for every layer, with what is asked stacked out and summed.
fn layers(reverse: bool) -> Graph {
    let mut b = Builder::new("layers");
    let x = param(&mut b, "x", &[("s", 2), ("d", 3)]);
    let w = param(&mut b, "w", &[("layer", 3), ("d", 3), ("k", 3)]);
    let u = param(&mut b, "u", &[("d", 3)]);
    let (body, a) = b.open(&[
        ("i".into(), index()),
        ("x".into(), f32s(&[("s", 2), ("d", 3)])),
        ("w".into(), f32s(&[("d", 3), ("k", 3)])),
        ("u".into(), f32s(&[("d", 3)])),
    ]);
    let product = b.dot(a[1], a[2], &["d".into()]);
    let product = b.rename(product, &[("k".into(), "d".into())]);
    let t = b.unary(UnaryOp::Tanh, product);
    let next = b.add(t, a[3]);
    let i = b.cast(a[0], DType::F32);
    let scaled = b.mul(next, i);
    let squares = b.mul(next, next);
    let sum = b.reduce(ReduceOp::Sum, squares, &["s".into(), "d".into()]);
    b.close(vec![next, scaled, sum]);
    let l = Loop { carries: 1, stacked: 1, stacked_outs: 1, reverse, ..plain("layer", 3, body) };
    let out = b.repeat(l, &[x, w, u], "out");
    let e = b.unary(UnaryOp::Exp, out[1]);
    let e = b.reduce(ReduceOp::Sum, e, &["layer".into()]);
    let both = b.mul(e, out[0]);
    let both = b.mul(both, out[2]);
    report_sum(&mut b, both);
    b.finish()
}

#[test]
fn loop_with_carries_stacked_outs_and_sums_has_its_gradient() {
    check_graph(layers(false));
    check_graph(layers(true));
}

/// The layers of `layers`, written out: slices of w by a one-hot product.
fn unrolled() -> Graph {
    let mut b = Builder::new("unrolled");
    let mut x = param(&mut b, "x", &[("s", 2), ("d", 3)]);
    let w = param(&mut b, "w", &[("layer", 3), ("d", 3), ("k", 3)]);
    let u = param(&mut b, "u", &[("d", 3)]);
    let mut exps = None;
    let mut sums = None;
    for layer in 0..3 {
        let at = b.constant(DType::I32, f64::from(layer));
        let slice = b.one(Op::Gather { axis: "layer".into() }, &[w, at], None, "slice");
        let product = b.dot(x, slice, &["d".into()]);
        let product = b.rename(product, &[("k".into(), "d".into())]);
        let t = b.unary(UnaryOp::Tanh, product);
        x = b.add(t, u);
        let scaled = b.scale(x, f64::from(layer));
        let e = b.unary(UnaryOp::Exp, scaled);
        exps = Some(exps.map_or(e, |before| b.add(before, e)));
        let squares = b.mul(x, x);
        let sum = b.reduce(ReduceOp::Sum, squares, &["s".into(), "d".into()]);
        sums = Some(sums.map_or(sum, |before| b.add(before, sum)));
    }
    let both = b.mul(exps.unwrap(), x);
    let both = b.mul(both, sums.unwrap());
    report_sum(&mut b, both);
    b.finish()
}

fn gradients(forward: Graph) -> Vec<Vec<f64>> {
    let environment = environment(&forward, 3);
    let done = differentiate(forward, 0).unwrap();
    let mut b = Builder::resume(done.graph);
    for g in &done.gradients {
        let ordered = b.broadcast(g.gradient, &b.ty(g.value).clone());
        b.output(Output::Report(g.param.clone()), ordered);
    }
    let outputs = run(&b.finish(), &environment, Mode::F64).unwrap();
    outputs.0.iter().map(|(_, t)| t.as_floats().to_vec()).collect()
}

#[test]
fn loop_has_the_gradient_of_its_unrolled_form() {
    let (looped, written) = (gradients(layers(false)), gradients(unrolled()));
    for (a, b) in looped.iter().flatten().zip(written.iter().flatten()) {
        // The same additions in another order: a few roundings of sums of about 30 terms.
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} is not {b}");
    }
}

#[test]
fn loop_saves_what_the_rules_ask_for_once_and_nothing_else() {
    let done = differentiate(layers(false), 0).unwrap();
    let loops: Vec<(Loop, usize)> = done
        .graph
        .region(done.graph.body)
        .ops
        .iter()
        .filter_map(|op| match &done.graph.op(*op).op {
            Op::Loop(l) => Some((l.clone(), done.graph.op(*op).results.len())),
            _ => None,
        })
        .collect();
    assert_eq!(loops.len(), 2);
    // tanh's result, the carry x (for w's gradient) and `next` (for the squares) are kept beside the stacked out.
    assert_eq!((loops[0].0.stacked_outs, loops[0].1), (1 + 3, 1 + 4 + 1));
    // Backward: the three residuals, the cotangent of the stacked out, and w itself.
    assert_eq!((loops[1].0.reverse, loops[1].0.stacked, loops[1].0.stacked_outs), (true, 5, 1));
}

/// An inner loop over chunks of features inside a loop over layers, both with parameters.
fn nested() -> Graph {
    let mut b = Builder::new("nested");
    let x = param(&mut b, "x", &[("d", 3)]);
    let w = param(&mut b, "w", &[("layer", 2), ("step", 3), ("d", 3)]);
    let u = param(&mut b, "u", &[("layer", 2), ("d", 3)]);
    let shared = param(&mut b, "shared", &[("d", 3)]);
    let (outer, a) = b.open(&[
        ("i".into(), index()),
        ("x".into(), f32s(&[("d", 3)])),
        ("w".into(), f32s(&[("step", 3), ("d", 3)])),
        ("u".into(), f32s(&[("d", 3)])),
        ("shared".into(), f32s(&[("d", 3)])),
    ]);
    let start = b.unary(UnaryOp::Exp, a[1]);
    let scaled = b.mul(a[3], a[4]);
    let (inner, c) = b.open(&[
        ("j".into(), index()),
        ("y".into(), f32s(&[("d", 3)])),
        ("w".into(), f32s(&[("d", 3)])),
        ("scaled".into(), f32s(&[("d", 3)])),
        ("shared".into(), f32s(&[("d", 3)])),
        ("layer".into(), index()),
    ]);
    let i = b.cast(c[5], DType::F32);
    let product = b.mul(c[1], c[2]);
    let t = b.unary(UnaryOp::Tanh, product);
    let t = b.add(t, c[3]);
    let t = b.mul(t, c[4]);
    let t = b.add(t, i);
    let sin = b.unary(UnaryOp::Sin, t);
    b.close(vec![sin, t]);
    let l = Loop { carries: 1, stacked: 1, stacked_outs: 1, ..plain("step", 3, inner) };
    let out = b.repeat(l, &[start, a[2], scaled, a[4], a[0]], "inner");
    let seen = b.reduce(ReduceOp::Sum, out[1], &["step".into()]);
    let next = b.mul(out[0], seen);
    b.close(vec![next]);
    let l = Loop { carries: 1, stacked: 2, ..plain("layer", 2, outer) };
    let out = b.repeat(l, &[x, w, u, shared], "outer");
    report_sum(&mut b, out[0]);
    b.finish()
}

#[test]
fn nested_loops_have_their_gradient() {
    check_graph(nested());
}

/// Two carries of which only one depends on a parameter at first; the other picks it up on the way.
#[test]
fn carry_becomes_varied_through_another() {
    let mut b = Builder::new("f");
    let x = param(&mut b, "x", &[("d", 2)]);
    let zero = b.constant(DType::F32, 0.0);
    let zeros = b.broadcast(zero, &f32s(&[("d", 2)]));
    let (body, a) =
        b.open(&[("i".into(), index()), ("x".into(), f32s(&[("d", 2)])), ("sum".into(), f32s(&[("d", 2)]))]);
    let squares = b.mul(a[1], a[1]);
    let sum = b.add(a[2], squares);
    b.close(vec![a[1], sum]);
    let l = Loop { carries: 2, ..plain("layer", 3, body) };
    let out = b.repeat(l, &[x, zeros], "out");
    report_sum(&mut b, out[1]);
    check_graph(b.finish());
}

/// Blocks of an axis: slices keep it.
#[test]
fn blocked_loop_has_its_gradient() {
    let mut b = Builder::new("f");
    let x = param(&mut b, "x", &[("s", 6), ("d", 2)]);
    let w = param(&mut b, "w", &[("d", 2)]);
    let (body, a) = b.open(&[
        ("i".into(), index()),
        ("x".into(), f32s(&[("s", 2), ("d", 2)])),
        ("w".into(), f32s(&[("d", 2)])),
    ]);
    let product = b.mul(a[1], a[2]);
    let t = b.unary(UnaryOp::Tanh, product);
    let sum = b.reduce(ReduceOp::Sum, t, &["s".into(), "d".into()]);
    b.close(vec![t, sum]);
    let l = Loop { stacked: 1, stacked_outs: 1, block: Some(2), ..plain("s", 3, body) };
    let out = b.repeat(l, &[x, w], "out");
    let both = b.mul(out[0], out[1]);
    report_sum(&mut b, both);
    check_graph(b.finish());
}

#[test]
fn value_without_the_axis_can_not_be_kept_in_a_blocked_loop() {
    let mut b = Builder::new("f");
    let x = param(&mut b, "x", &[("s", 6)]);
    let (body, a) = b.open(&[("i".into(), index()), ("x".into(), f32s(&[("s", 2)]))]);
    let sum = b.reduce(ReduceOp::Sum, a[1], &["s".into()]);
    let e = b.unary(UnaryOp::Exp, sum);
    b.close(vec![e]);
    let l = Loop { stacked: 1, block: Some(2), ..plain("s", 3, body) };
    let out = b.repeat(l, &[x], "out");
    b.set_name(e, "e");
    report_sum(&mut b, out[0]);
    let error = differentiate(b.finish(), 0).unwrap_err();
    assert!(error.message.starts_with("%e is needed by the backward pass and can't be kept"), "{error}");
}

/// The loss sees the second carry alone, and only through a sum that each iteration makes of it.
#[test]
fn loop_hands_on_the_cotangents_of_the_carries_that_lead_to_the_loss() {
    let text = "graph @f {
        %x = param \"x\" = uniform(-1, 1) : f32[d=2]
        %y = param \"y\" = uniform(-1, 1) : f32[d=2]
        %w = param \"w\" = uniform(-1, 1) : f32[layer=3, d=2]
        %u, %c, %other, %sum = loop layer=3 {
          index %i : i32[]
          carry %u.in = %y : f32[d=2]
          carry %c.in = %x : f32[d=2]
          stacked %w.i = %w : f32[d=2]
          %u.out = mul %u.in, %w.i : f32[d=2]
          %p = mul %c.in, %w.i : f32[d=2]
          %c.out = tanh %p : f32[d=2]
          %u.sq = mul %u.out, %u.out : f32[d=2]
          %c.sq = mul %c.out, %c.out : f32[d=2]
          yield carry %u.out : f32[d=2]
          yield carry %c.out : f32[d=2]
          yield sum %u.sq : f32[d=2]
          yield sum %c.sq : f32[d=2]
        }
        %loss = reduce_sum %sum over d : f32[]
        return loss_sum = %loss
        return other = %other
        return u = %u
    }";
    let graph = check_graph(crate::graph::parse::parse(text).unwrap_or_else(|e| panic!("{e}")));
    let loops = graph.region(graph.body).ops.iter().filter_map(|op| graph.op(*op).op.as_loop());
    let backward: Vec<usize> = loops.filter(|l| l.reverse).map(|l| l.carries).collect();
    assert_eq!(backward, [1]);
}
