//! Tests of the fuser: the text of what it makes, on the smallest graph that shows the point.

use super::{Kind, group};
use crate::graph::{Axis, Builder, DType, Graph, Init, Loop, Name, Op, Output, ReduceOp, Type, ValueId};

fn ty(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect())
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|n| Name::from(*n)).collect()
}

fn param(b: &mut Builder, path: &str, ty: Type) -> ValueId {
    b.one(Op::Param { path: path.into(), init: Init::Constant(0.0) }, &[], Some(ty), path)
}

fn report(b: &mut Builder, name: &str, v: ValueId) {
    b.output(Output::Report(name.into()), v);
}

/// The items alone, without the list of buffers.
fn items(graph: &Graph) -> String {
    let text = group(graph).unwrap_or_else(|e| panic!("{e}")).text();
    let lines = text.lines().filter(|l| !l.trim_start().starts_with("buffer") && l.starts_with(' '));
    lines.map(|l| format!("{}\n", &l[2..])).collect()
}

#[test]
fn cluster_keeps_the_residual_sum_in_the_product_and_the_norm_apart() {
    let mut b = Builder::new("block");
    let x = b.input("x", ty(&[("seq", 4), ("d", 6)]), 0);
    let w = param(&mut b, "w", ty(&[("d", 6), ("ff", 8)]));
    let v = param(&mut b, "v", ty(&[("ff", 8), ("d", 6)]));
    let gain = param(&mut b, "gain", ty(&[("d", 6)]));
    let h = b.dot(x, w, &names(&["d"]));
    let h = b.silu(h);
    let y = b.dot(h, v, &names(&["ff"]));
    let y = b.add(x, y);
    let (z, _) = b.rms_norm(y, gain, &"d".into(), 1e-5).unwrap();
    report(&mut b, "y", y);
    report(&mut b, "z", z);
    insta::assert_snapshot!(items(&b.finish()), @r"
    gemm g0: sigmoid mul  %x b0[seq, d]  %w b1[d, ff]  ->  %t.2 b6[seq, ff]
    gemm g1: add  %t.2 b6[seq, ff]  %v b2[ff, d]  %x b0[seq, d]  ->  %t.4 b4[seq, d]
    rows g2: mul reduce_sum const div const add rsqrt mul mul over [seq] reduce [d]  %t.4 b4[seq, d]  %gain b3[d]  ->  %norm.0 b5[seq, d]
    ");
}

#[test]
fn cluster_recomputes_a_product_of_stored_values_in_the_column_sum() {
    // dw = Σ over rows of dy·x·rstd, next to a kernel along rows that has the same product.
    let mut b = Builder::new("norm_grad");
    let x = b.input("x", ty(&[("seq", 64), ("d", 32)]), 0);
    let dy = b.input("dy", ty(&[("seq", 64), ("d", 32)]), 0);
    let rstd = b.input("rstd", ty(&[("seq", 64)]), 0);
    let normed = b.mul(x, rstd);
    let product = b.mul(dy, normed);
    let row = b.reduce(ReduceOp::Sum, product, &names(&["d"]));
    let centred = b.mul(normed, row);
    let dx = b.sub(dy, centred);
    let dw = b.reduce(ReduceOp::Sum, product, &names(&["seq"]));
    report(&mut b, "dx", dx);
    report(&mut b, "dw", dw);
    insta::assert_snapshot!(items(&b.finish()), @r"
    rows g0: mul mul reduce_sum mul sub over [seq] reduce [d]  %dy b1[seq, d]  %x b0[seq, d]  %rstd b2[seq]  ->  %t.4 b3[seq, d]
    rows g1: mul mul reduce_sum over [d] reduce [seq]  %dy b1[seq, d]  %x b0[seq, d]  %rstd b2[seq]  ->  %t.5 b4[d]
    ");
}

#[test]
fn cluster_joins_scalars_and_keeps_them_out_of_elements() {
    let mut b = Builder::new("update");
    let w = param(&mut b, "w", ty(&[("d", 32)]));
    let g = b.input("g", ty(&[("d", 32)]), 0);
    let step = b.one(Op::Scalar { key: "step".into(), default: 0.0 }, &[], None, "step");
    let angle = b.scale(step, 0.25);
    let lr = b.unary(crate::graph::UnaryOp::Cos, angle);
    let lr32 = b.cast(lr, DType::F32);
    let delta = b.mul(g, lr32);
    let new = b.sub(w, delta);
    report(&mut b, "lr", lr);
    b.output(Output::Store("w".into()), new);
    insta::assert_snapshot!(items(&b.finish()), @r"
    map g0: const mul cos over []  %step b2[]  ->  %t.1 b3[]
    map g1: cast mul sub over [d]  %w b0[d]  %g b1[d]  %t.1 b3[]  ->  %t.4 b0[d]
    ");
}

#[test]
fn assign_buffers_lets_a_carry_live_in_its_stack() {
    let mut b = Builder::new("layers");
    let x = b.input("x", ty(&[("seq", 3), ("d", 4)]), 0);
    let w = param(&mut b, "w", ty(&[("layers", 5), ("d", 4), ("e", 4)]));
    let (body, args) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("x".into(), ty(&[("seq", 3), ("d", 4)])),
        ("w".into(), ty(&[("d", 4), ("e", 4)])),
    ]);
    let y = b.dot(args[1], args[2], &names(&["d"]));
    let y = b.rename(y, &[("e".into(), "d".into())]);
    b.close(vec![y, args[1]]);
    let l = Loop {
        axis: "layers".into(),
        trip: 5,
        block: None,
        reverse: false,
        microbatches: false,
        carries: 1,
        stacked: 1,
        stacked_outs: 1,
        body,
    };
    let r = b.repeat(l, &[x, w], "x");
    let all = b.dot(r[1], r[0], &names(&["seq", "d"]));
    report(&mut b, "y", all);
    let graph = b.finish();
    let fused = group(&graph).unwrap();
    let copies = fused.groups.iter().filter(|g| matches!(g.kind, Kind::Copy { .. })).count();
    assert_eq!(copies, 1, "only the input is copied into the first slot\n{}", fused.text());
    insta::assert_snapshot!(items(&graph), @r"
    copy g0:  %x b0[seq, d]  ->  %x b3[seq, d, layers@0]
    loop0 layers=5 {
      gemm g1:  %x.1 b3[seq, d, layers@loop0]  %w.1 b1[d, e, layers@loop0]  ->  %t b3[seq, e, layers@1, layers@loop0]
    }
    rows g2: mul reduce_sum over [layers] reduce [seq, d]  %x.2 b3[layers, seq, d]  %x.0 b3[seq, d, layers@5]  ->  %t.3 b2[layers]
    ");
}

#[test]
fn choose_layouts_puts_contracted_axes_together() {
    // By its type the product has heads outside positions; the second product wants (heads, hd) side by side.
    let mut b = Builder::new("heads");
    let p = b.input("p", ty(&[("heads", 2), ("seq", 3), ("pos", 5)]), 0);
    let v = b.input("v", ty(&[("heads", 2), ("pos", 5), ("hd", 4)]), 0);
    let wo = param(&mut b, "wo", ty(&[("heads", 2), ("hd", 4), ("d", 6)]));
    let o = b.dot(p, v, &names(&["pos"]));
    let y = b.dot(o, wo, &names(&["heads", "hd"]));
    report(&mut b, "y", y);
    insta::assert_snapshot!(items(&b.finish()), @r"
    gemm g0:  %p b0[heads, seq, pos]  %v b1[heads, pos, hd]  ->  %t b4[seq, heads, hd]
    gemm g1:  %t b4[seq, heads, hd]  %wo b2[heads, hd, d]  ->  %t.1 b3[seq, d]
    ");
}

#[test]
fn group_names_the_line_of_what_it_refuses() {
    let mut b = Builder::new("bad");
    let x = b.input("x", ty(&[("d", 4)]), 0);
    report(&mut b, "x", x);
    let mut graph = b.finish();
    graph.outputs[0] = Output::Store("missing".into());
    let error = group(&graph).unwrap_err();
    assert_eq!(error.to_string(), "`store`: there is no parameter or state `missing` to store to");
}

#[test]
fn insert_relayouts_copies_the_smaller_operand_once_for_both_products() {
    // Slices [batch, 3 of seq, ..]: (batch, seq) has two strides, and both products contract over it.
    let mut b = Builder::new("chunks");
    let x = b.input("x", ty(&[("batch", 2), ("seq", 6), ("d", 4)]), 0);
    let y = b.input("y", ty(&[("batch", 2), ("seq", 6), ("e", 8)]), 0);
    let (body, a) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("x".into(), ty(&[("batch", 2), ("seq", 3), ("d", 4)])),
        ("y".into(), ty(&[("batch", 2), ("seq", 3), ("e", 8)])),
    ]);
    let doubled = b.scale(a[2], 2.0);
    let doubled = b.unary(crate::graph::UnaryOp::Exp, doubled);
    let p = b.dot(a[1], doubled, &names(&["batch", "seq"]));
    let halved = b.unary(crate::graph::UnaryOp::Tanh, a[2]);
    let q = b.dot(a[1], halved, &names(&["batch", "seq"]));
    b.close(vec![p, q]);
    let l = Loop {
        axis: "seq".into(),
        trip: 2,
        block: Some(3),
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 2,
        stacked_outs: 0,
        body,
    };
    let r = b.repeat(l, &[x, y], "r");
    report(&mut b, "p", r[0]);
    report(&mut b, "q", r[1]);
    insta::assert_snapshot!(items(&b.finish()), @r"
    fill g0:  ->  0 b2[d, e]
    fill g1:  ->  0 b3[d, e]
    loop0 seq=2 {
      map g2: const mul exp tanh over [batch, seq, e]  %y.1 b1[batch, seq, e, seq@loop0*3]  ->  %t.1 b4[batch, seq, e]  %t.3 b5[batch, seq, e]
      copy g5:  %x b0[batch, seq, d, seq@loop0*3]  ->  %x.relayout b6[batch, seq, d]
      gemm g3:  %x.1 b6[batch, seq, d]  %t.1 b4[batch, seq, e]  ->  %t.2 += b2[d, e]
      gemm g4:  %x.1 b6[batch, seq, d]  %t.3 b5[batch, seq, e]  ->  %t.4 += b3[d, e]
    }
    ");
}
