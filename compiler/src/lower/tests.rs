//! Lowered programs, run by the plain evaluator, against the graph interpreter: every value within the bound the
//! interpreter derives.

use super::simulate;
use crate::graph::{
    Axis, BinaryOp, Builder, CompareOp, DType, Graph, Init, Loop, Name, Op, Output, Pairs, ReduceOp, Type,
    UnaryOp, ValueId,
};
use crate::interpret::{self, Mode, sample_environment};
use mlc_codegen::program::{InterpretedProgram, Program};
use mlc_codegen::target::X86_64_V4;

/// Compiles, runs (by the plain evaluator and as KIR) and compares everything the graph gives out.
fn check(graph: &Graph, seed: u64) -> Program {
    let program = simulate::program(graph).unwrap_or_else(|e| panic!("{e}"));
    let environment = sample_environment(graph, seed);
    let found = simulate::run(&program, graph, &environment).unwrap_or_else(|e| panic!("{e}"));
    let expected = interpret::run(graph, &environment, Mode::Bounds).unwrap_or_else(|e| panic!("{e}"));
    let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).unwrap_or_else(|e| panic!("{e}"));
    let as_kir = simulate::run_with(&program, graph, &environment, &mut |s| kernels.run("train", s))
        .unwrap_or_else(|e| panic!("{e}"));
    for (how, found) in [("evaluated", found), ("as KIR", as_kir)] {
        if let Some(outside) = simulate::first_outside(&expected, &found) {
            let fused = crate::fuse::group(graph).map(|f| f.text()).unwrap_or_default();
            panic!("{how}: {outside}\n{fused}");
        }
    }
    program
}

fn ty(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect())
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|n| Name::from(*n)).collect()
}

fn param(b: &mut Builder, path: &str, ty: Type) -> ValueId {
    let op = Op::Param { path: path.into(), init: Init::Constant(0.0) };
    b.one(op, &[], Some(ty), path)
}

fn report(b: &mut Builder, name: &str, v: ValueId) {
    b.output(Output::Report(name.into()), v);
}

fn kernels(program: &Program) -> Vec<&str> {
    program.kernels.iter().map(|k| k.name.as_str()).collect()
}

#[test]
fn lower_fuses_a_norm_into_one_kernel() {
    let mut b = Builder::new("norm");
    let x = b.input("x", ty(&[("batch", 3), ("d", 8)]), 0);
    let w = param(&mut b, "w", ty(&[("d", 8)]));
    let (y, rstd) = b.rms_norm(x, w, &"d".into(), 1e-5).unwrap();
    report(&mut b, "y", y);
    report(&mut b, "rstd", rstd);
    let program = check(&b.finish(), 1);
    assert_eq!(kernels(&program), ["rows_3_by_8_f32"]);
}

#[test]
fn lower_gives_a_product_its_tail() {
    let mut b = Builder::new("mlp");
    let x = b.input("x", ty(&[("batch", 2), ("seq", 3), ("d", 4)]), 0);
    let w = param(&mut b, "w", ty(&[("d", 4), ("ff", 5)]));
    let v = param(&mut b, "v", ty(&[("ff", 5), ("d", 4)]));
    let h = b.dot(x, w, &names(&["d"]));
    let h = b.silu(h);
    let y = b.dot(h, v, &names(&["ff"]));
    let y = b.add(x, y);
    report(&mut b, "y", y);
    let program = check(&b.finish(), 2);
    assert_eq!(kernels(&program), ["gemm_6x5x4_f32", "gemm_6x4x5_f32"]);
}

/// Two operations for each product of numbers, whatever its dimensions are to the kernel; a loop's count for each iteration.
#[test]
fn lower_counts_the_operations_of_products() {
    let flops =
        |graph: &Graph| simulate::program(graph).unwrap_or_else(|e| panic!("{e}")).info.entries[0].flops;
    let mut b = Builder::new("counts");
    // Two batch axes that no stride joins.
    let x = b.input("x", ty(&[("batch", 2), ("m", 5), ("heads", 3), ("k", 7)]), 0);
    let y = b.input("y", ty(&[("heads", 3), ("k", 7), ("batch", 2), ("n", 11)]), 0);
    let z = b.dot(x, y, &names(&["k"]));
    report(&mut b, "z", z);
    let graph = b.finish();
    check(&graph, 2);
    assert_eq!(flops(&graph), 2 * 2 * 3 * 5 * 7 * 11);
    assert_eq!(flops(&layers(false)), 3 * 2 * 3 * 4 * 4);
}

/// Matrices that are vectors: without rows, columns, a contraction, or all but one of them.
#[test]
fn lower_multiplies_vectors() {
    let mut b = Builder::new("vectors");
    let x = b.input("x", ty(&[("batch", 3), ("m", 5), ("k", 4)]), 0);
    let y = b.input("y", ty(&[("batch", 3), ("k", 4)]), 0);
    let z = b.input("z", ty(&[("batch", 3), ("n", 2)]), 0);
    let over = names(&["k"]);
    for (name, left, right, over) in [
        ("no columns", x, y, &over[..]),
        ("no rows", y, x, &over),
        ("neither", y, y, &over),
        ("no contraction", x, z, &[]),
    ] {
        let product = b.dot(left, right, over);
        // Of the sum alone, and of what is done with it.
        let scaled = b.scale(product, 0.5);
        report(&mut b, name, scaled);
    }
    check(&b.finish(), 3);
}

#[test]
fn lower_refuses_a_contraction_of_two_strides() {
    let mut b = Builder::new("product");
    let x = b.input("x", ty(&[("m", 5), ("j", 3), ("k", 4)]), 0);
    let y = b.input("y", ty(&[("j", 3), ("k", 4), ("n", 2)]), 0);
    let z = b.dot(x, y, &names(&["j", "k"]));
    report(&mut b, "z", z);
    let mut fused = crate::fuse::group(&b.finish()).unwrap();
    let group =
        fused.groups.iter().find(|g| matches!(g.kind, crate::fuse::Kind::Gemm { .. })).unwrap().clone();
    super::lower_group(&fused, &group).unwrap();
    // The passes before copy an operand that lies like this.
    let buffer = fused.buffers.iter_mut().find(|b| b.name.as_str() == "y").unwrap();
    buffer.axes.swap(0, 1);
    let error = super::lower_group(&fused, &group).unwrap_err();
    assert_eq!(error.message, "the contracted axes have more than one stride");
}

#[test]
fn lower_walks_contracted_heads_with_one_stride() {
    // Heads come out with their own axis order; the projection back wants (kv, group, hd) together.
    let mut b = Builder::new("heads");
    let x = b.input("x", ty(&[("batch", 2), ("seq", 3), ("d", 4)]), 0);
    let wq = param(&mut b, "wq", ty(&[("d", 4), ("kv", 2), ("group", 2), ("hd", 3)]));
    let wv = param(&mut b, "wv", ty(&[("d", 4), ("kv", 2), ("hd", 3)]));
    let wo = param(&mut b, "wo", ty(&[("kv", 2), ("group", 2), ("hd", 3), ("d", 4)]));
    let q = b.dot(x, wq, &names(&["d"]));
    let v = b.dot(x, wv, &names(&["d"]));
    let q = b.mul(q, v);
    let y = b.dot(q, wo, &names(&["kv", "group", "hd"]));
    report(&mut b, "y", y);
    let program = check(&b.finish(), 3);
    assert!(kernels(&program).contains(&"gemm_6x4x12_f32"), "{:?}", kernels(&program));
}

#[test]
fn lower_rotates_pairs_of_both_kinds() {
    for pairs in [Pairs::Half, Pairs::Interleaved] {
        let mut b = Builder::new("rope");
        let x = b.input("x", ty(&[("seq", 5), ("hd", 6)]), 0);
        let at = b.index(&"seq".into(), 5);
        let y = b.rope(x, at, &"hd".into(), 1e4, pairs).unwrap();
        // The transpose, as the backward pass has it: rotation of a product.
        let z = b.mul(y, x);
        let turned = b.one(Op::RotatePairs { axis: "hd".into(), pairs }, &[z], None, "turned");
        report(&mut b, "y", y);
        report(&mut b, "turned", turned);
        check(&b.finish(), 4);
    }
}

#[test]
fn lower_reads_slices_where_they_lie_and_copies_the_parts_of_a_concat() {
    let mut b = Builder::new("parts");
    let x = b.input("x", ty(&[("seq", 3), ("heads", 2), ("hd", 6)]), 0);
    let shared = b.input("shared", ty(&[("seq", 3), ("rot", 2)]), 0);
    let w = param(&mut b, "w", ty(&[("hd", 6), ("out", 4)]));
    let slice = |b: &mut Builder, x, to: &str, at, n| {
        let op = Op::Slice { from: "hd".into(), to: to.into(), at };
        b.one(op, &[x], Some(ty(&[("seq", 3), ("heads", 2), (to, n)])), "part")
    };
    let nope = slice(&mut b, x, "nope", 2, 4);
    let doubled = b.add(nope, nope);
    let all = b.broadcast(shared, &ty(&[("seq", 3), ("heads", 2), ("rot", 2)]));
    let op = Op::Concat { parts: names(&["nope", "rot"]), axis: "hd".into() };
    let whole = b.one(op, &[doubled, all], None, "whole");
    let y = b.dot(whole, w, &names(&["hd"]));
    // A slice as the operand of a product, as a result, and of what a product makes.
    let first = slice(&mut b, x, "rot", 0, 2);
    let v = param(&mut b, "v", ty(&[("rot", 2), ("out", 4)]));
    let z = b.dot(first, v, &names(&["rot"]));
    let op = Op::Slice { from: "out".into(), to: "half".into(), at: 2 };
    let half = b.one(op, &[z], Some(ty(&[("seq", 3), ("heads", 2), ("half", 2)])), "half");
    report(&mut b, "y", y);
    report(&mut b, "first", first);
    report(&mut b, "half", half);
    report(&mut b, "z", z);
    check(&b.finish(), 11);
}

/// A carry that is a concat of its own slices, and slices stacked out.
#[test]
fn lower_turns_a_carry_by_slices_in_a_loop() {
    for trip in [1, 2, 5] {
        let mut b = Builder::new("turn");
        let x = b.input("x", ty(&[("m", 3), ("d", 5)]), 0);
        let (body, args) =
            b.open(&[("i".into(), Type::scalar(DType::I32)), ("x".into(), ty(&[("m", 3), ("d", 5)]))]);
        let part = |b: &mut Builder, at, n| {
            let op = Op::Slice { from: "d".into(), to: "e".into(), at };
            b.one(op, &[args[1]], Some(ty(&[("m", 3), ("e", n)])), "part")
        };
        let (low, high) = (part(&mut b, 0, 2), part(&mut b, 2, 3));
        let op = Op::Concat { parts: names(&["e", "e"]), axis: "d".into() };
        let turned = b.one(op, &[high, low], Some(ty(&[("m", 3), ("d", 5)])), "turned");
        b.close(vec![turned, low, high]);
        let l = Loop {
            axis: "layer".into(),
            trip,
            block: None,
            reverse: false,
            microbatches: false,
            carries: 1,
            stacked: 0,
            stacked_outs: 1,
            body,
        };
        let results = b.repeat(l, &[x], "x");
        for (name, v) in ["turned", "low", "high"].iter().zip(&results) {
            report(&mut b, name, *v);
        }
        check(&b.finish(), 12);
    }
}

#[test]
fn lower_computes_cross_entropy_in_one_kernel() {
    let mut b = Builder::new("loss");
    let logits = b.input("logits", ty(&[("seq", 4), ("vocab", 7)]), 0);
    let targets = b.input("targets", Type::new(DType::I32, vec![Axis::new("seq", 4)]), 7);
    let (loss, lse) = b.cross_entropy(logits, targets, &"vocab".into()).unwrap();
    report(&mut b, "loss", loss);
    report(&mut b, "lse", lse);
    let program = check(&b.finish(), 5);
    assert_eq!(program.kernels.len(), 1, "{:?}", kernels(&program));
}

#[test]
fn lower_splits_a_long_reduction() {
    let mut b = Builder::new("norm");
    let x = b.input("x", ty(&[("layers", 3), ("d", 50), ("ff", 300)]), 0);
    let squares = b.mul(x, x);
    let sum = b.reduce(ReduceOp::Sum, squares, &names(&["layers", "d", "ff"]));
    report(&mut b, "sum", sum);
    let program = check(&b.finish(), 6);
    assert_eq!(kernels(&program), ["rows_150_by_300_f32", "rows_scalar_by_150_f32"]);
}

/// A stack of layers `x + tanh(x·w)`, x also stacked out, and a sum of squares over the layers.
fn layers(reverse: bool) -> Graph {
    let mut b = Builder::new("layers");
    let x = b.input("x", ty(&[("batch", 3), ("d", 4)]), 0);
    let w = param(&mut b, "layer.{i}.w", ty(&[("layers", 3), ("d", 4), ("e", 4)]));
    let x0 = b.scale(x, 0.5);
    let (body, args) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("x".into(), ty(&[("batch", 3), ("d", 4)])),
        ("w".into(), ty(&[("d", 4), ("e", 4)])),
    ]);
    let h = b.dot(args[1], args[2], &names(&["d"]));
    let h = b.rename(h, &[("e".into(), "d".into())]);
    let t = b.unary(UnaryOp::Tanh, h);
    let i = b.cast(args[0], DType::F32);
    let t = b.mul(t, i);
    let y = b.add(args[1], t);
    let squares = b.mul(y, y);
    let sum = b.reduce(ReduceOp::Sum, squares, &names(&["d"]));
    b.close(vec![y, args[1], h, sum]);
    let l = Loop {
        axis: "layers".into(),
        trip: 3,
        block: None,
        reverse,
        microbatches: false,
        carries: 1,
        stacked: 1,
        stacked_outs: 2,
        body,
    };
    let results = b.repeat(l, &[x0, w], "r");
    for (name, v) in ["y", "xs", "hs", "sum"].iter().zip(&results) {
        report(&mut b, name, *v);
    }
    let doubled = b.mul(results[1], results[2]);
    report(&mut b, "doubled", doubled);
    b.finish()
}

#[test]
fn lower_runs_loops_forwards_and_backwards() {
    for reverse in [false, true] {
        check(&layers(reverse), 7);
    }
}

#[test]
fn lower_accumulates_into_the_sum_of_the_outer_loop() {
    // Microbatches outside, layers inside: the gradient of each layer's weight adds up in one buffer.
    let mut b = Builder::new("accumulate");
    let x = b.input("x", ty(&[("batch", 6), ("d", 4)]), 0);
    let w = param(&mut b, "layer.{i}.w", ty(&[("layers", 2), ("d", 4), ("e", 5)]));
    let (outer, o) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("x".into(), ty(&[("batch", 2), ("d", 4)])),
        ("w".into(), ty(&[("layers", 2), ("d", 4), ("e", 5)])),
    ]);
    let (inner, i) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("w".into(), ty(&[("d", 4), ("e", 5)])),
        ("x".into(), ty(&[("batch", 2), ("d", 4)])),
    ]);
    let y = b.dot(i[2], i[1], &names(&["d"]));
    let dw = b.dot(i[2], y, &names(&["batch"]));
    b.close(vec![dw]);
    let l = |axis: &str, trip, block, stacked_outs, body| Loop {
        axis: axis.into(),
        trip,
        block,
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 1,
        stacked_outs,
        body,
    };
    let dws = b.repeat(l("layers", 2, None, 1, inner), &[o[2], o[1]], "dw");
    b.close(vec![dws[0]]);
    let sums = b.repeat(l("batch", 3, Some(2), 0, outer), &[x, w], "grad");
    let lr = b.constant(DType::F32, 0.1);
    let step = b.mul(sums[0], lr);
    let new = b.sub(w, step);
    b.output(Output::Store("layer.{i}.w".into()), new);
    let program = check(&b.finish(), 8);
    // Two products, one fill, one update: nothing is copied.
    assert_eq!(program.kernels.len(), 4, "{:?}", kernels(&program));
}

#[test]
fn lower_keeps_swapped_carries_apart() {
    let mut b = Builder::new("swap");
    let x = b.input("x", ty(&[("d", 4)]), 0);
    let y = b.input("y", ty(&[("d", 4)]), 0);
    let (body, a) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("x".into(), ty(&[("d", 4)])),
        ("y".into(), ty(&[("d", 4)])),
    ]);
    let s = b.add(a[1], a[2]);
    let _ = s;
    b.close(vec![a[2], a[1]]);
    let l = Loop {
        axis: "n".into(),
        trip: 3,
        block: None,
        reverse: false,
        microbatches: false,
        carries: 2,
        stacked: 0,
        stacked_outs: 0,
        body,
    };
    let r = b.repeat(l, &[x, y], "r");
    report(&mut b, "x", r[0]);
    report(&mut b, "y", r[1]);
    check(&b.finish(), 9);
}

#[test]
fn lower_looks_up_and_scatters_rows() {
    let mut b = Builder::new("embed");
    let ids = b.input("tokens", Type::new(DType::I32, vec![Axis::new("seq", 6)]), 5);
    let table = param(&mut b, "embed", ty(&[("vocab", 5), ("d", 3)]));
    let x = b.one(Op::Gather { axis: "vocab".into() }, &[table, ids], None, "x");
    let y = b.mul(x, x);
    let grad =
        b.one(Op::ScatterAdd { axis: "vocab".into() }, &[y, ids], Some(ty(&[("vocab", 5), ("d", 3)])), "g");
    let new = b.sub(table, grad);
    report(&mut b, "x", x);
    b.output(Output::Store("embed".into()), new);
    check(&b.finish(), 10);
}

#[test]
fn lower_sums_along_any_axis() {
    let mut b = Builder::new("sums");
    let x = b.input("x", ty(&[("a", 2), ("s", 5), ("d", 3)]), 0);
    for axis in ["a", "s", "d"] {
        for (exclusive, reverse) in [(false, false), (false, true), (true, false), (true, true)] {
            let y = b.cumsum(x, &axis.into(), exclusive, reverse);
            report(&mut b, &format!("{axis} {exclusive} {reverse}"), y);
        }
    }
    let program = check(&b.finish(), 5);
    assert_eq!(program.info.entries[0].flops, 0, "of matrix products");
}

#[test]
fn lower_copies_an_operand_whose_contracted_axes_lie_apart() {
    // A blocked slice [batch, block of seq, d]: (batch, seq) has two strides, so the slice is copied for the product.
    let mut b = Builder::new("chunks");
    let x = b.input("x", ty(&[("batch", 2), ("seq", 6), ("d", 4)]), 0);
    let y = b.input("y", ty(&[("batch", 2), ("seq", 6), ("e", 3)]), 0);
    let (body, a) = b.open(&[
        ("i".into(), Type::scalar(DType::I32)),
        ("x".into(), ty(&[("batch", 2), ("seq", 3), ("d", 4)])),
        ("y".into(), ty(&[("batch", 2), ("seq", 3), ("e", 3)])),
    ]);
    let w = b.dot(a[1], a[2], &names(&["batch", "seq"]));
    let back = b.dot(a[1], w, &names(&["d"]));
    b.close(vec![back, w]);
    let l = Loop {
        axis: "seq".into(),
        trip: 2,
        block: Some(3),
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 2,
        stacked_outs: 1,
        body,
    };
    let r = b.repeat(l, &[x, y], "r");
    report(&mut b, "back", r[0]);
    report(&mut b, "w", r[1]);
    check(&b.finish(), 11);
}

#[test]
fn lower_masks_and_compares() {
    let mut b = Builder::new("mask");
    let s = b.input("s", ty(&[("seq", 4), ("pos", 5)]), 0);
    let q = b.index(&"seq".into(), 4);
    let k = b.index(&"pos".into(), 5);
    let mask = b.one(
        Op::Compare(CompareOp::Le),
        &[k, q],
        Some(Type::new(DType::Bool, vec![Axis::new("seq", 4), Axis::new("pos", 5)])),
        "mask",
    );
    let lowest = b.constant(DType::F32, f64::NEG_INFINITY);
    let s = b.select(mask, s, lowest);
    let p = b.softmax(s, &"pos".into()).unwrap();
    let two = b.constant(DType::F32, 2.0);
    let p = b.binary(BinaryOp::Mul, p, two);
    report(&mut b, "p", p);
    let program = check(&b.finish(), 12);
    assert_eq!(kernels(&program), ["rows_4_by_5_f32"]);
}

/// Blocks written one by one, with the gradients of all their parameters.
fn blocks(n: usize) -> Graph {
    let mut b = Builder::new("long");
    let mut x = b.input("x", ty(&[("seq", 4), ("d", 8)]), 0);
    for i in 0..n {
        let w = param(&mut b, &format!("w{i}"), ty(&[("d", 8), ("ff", 8)]));
        let v = param(&mut b, &format!("v{i}"), ty(&[("ff", 8), ("d", 8)]));
        let gain = param(&mut b, &format!("gain{i}"), ty(&[("d", 8)]));
        let (n, _) = b.rms_norm(x, gain, &"d".into(), 1e-5).unwrap();
        let h = b.dot(n, w, &names(&["d"]));
        let h = b.silu(h);
        let y = b.dot(h, v, &names(&["ff"]));
        x = b.add(x, y);
    }
    let squares = b.mul(x, x);
    let loss = b.reduce(ReduceOp::Sum, squares, &names(&["seq", "d"]));
    report(&mut b, "loss", loss);
    let done = crate::autodiff::differentiate::differentiate(b.finish(), 0).unwrap();
    let mut b = Builder::resume(done.graph);
    for g in done.gradients {
        report(&mut b, &format!("grad.{}", g.param), g.gradient);
    }
    b.finish()
}

#[test]
fn lower_computes_gradients_of_straight_blocks() {
    check(&blocks(3), 13);
}

#[test]
fn lower_stays_quick_on_long_straight_graphs() {
    // A spec may write its blocks one by one. The passes must not be cubic in the number of ops: these 600 launches take
    // seconds without optimisation on a busy machine.
    let graph = blocks(60);
    let start = std::time::Instant::now();
    let program = simulate::program(&graph).unwrap_or_else(|e| panic!("{e}"));
    let seconds = start.elapsed().as_secs_f64();
    assert!(program.entries[0].body.len() > 400);
    assert!(seconds < 120.0, "{seconds} s");
}

/// Fusing never takes a rounding away: what a cast rounds is rounded, whether or not the short value is ever stored.
#[test]
fn lower_rounds_at_every_cast_to_bf16() {
    let mut b = Builder::new("rounding");
    let x = b.input("x", ty(&[("batch", 3), ("d", 5)]), 0);
    let w = param(&mut b, "w", ty(&[("d", 5), ("ff", 7)]));
    let there_and_back = |b: &mut Builder, v: ValueId| {
        let short = b.cast(v, DType::Bf16);
        b.cast(short, DType::F32)
    };
    // In an element-wise kernel, in the tail of a product, and as arithmetic on bf16.
    let rounded = there_and_back(&mut b, x);
    let lost = b.sub(x, rounded);
    let short = b.cast(x, DType::Bf16);
    let square = b.mul(short, short);
    let square = b.cast(square, DType::F32);
    let product = b.dot(x, w, &names(&["d"]));
    let product = there_and_back(&mut b, product);
    let product = b.scale(product, 2.0);
    for (name, v) in [("lost", lost), ("square", square), ("product", product)] {
        report(&mut b, name, v);
    }
    let graph = b.finish();
    let program = check(&graph, 12);
    let environment = sample_environment(&graph, 12);
    let found = simulate::run(&program, &graph, &environment).unwrap();
    let expected = interpret::run(&graph, &environment, Mode::F32).unwrap();
    let read = |outputs: &interpret::Outputs, name: &str| outputs.report(name).unwrap().as_floats().to_vec();
    for name in ["lost", "square"] {
        assert_eq!(read(&found, name), read(&expected, name), "{name}");
    }
    assert!(read(&found, "lost").iter().any(|x| *x != 0.0));
    let is_bf16 = |x: &f64| (*x as f32).to_bits() & 0xffff == 0;
    assert!(read(&found, "product").iter().all(is_bf16));
}

/// A layer with norms, a gate and a residual in mixed widths, with its gradients, from the same graph.
#[test]
fn lower_compiles_products_of_bf16() {
    let mut b = Builder::new("gated");
    let x = b.input("x", ty(&[("batch", 4), ("seq", 6), ("d", 8)]), 0);
    let w = param(&mut b, "w", ty(&[("d", 8), ("ff", 10)]));
    let v = param(&mut b, "v", ty(&[("ff", 10), ("d", 8)]));
    let x_short = b.cast(x, DType::Bf16);
    let [w_short, v_short] = [w, v].map(|p| b.cast(p, DType::Bf16));
    let h = b.dot(x_short, w_short, &names(&["d"]));
    let h = b.cast(h, DType::Bf16);
    let wide = b.cast(h, DType::F32);
    let a = b.silu(wide);
    let a = b.cast(a, DType::Bf16);
    let y = b.dot(a, v_short, &names(&["ff"]));
    let y = b.add(x, y);
    let y = b.cast(y, DType::Bf16);
    report(&mut b, "h", h);
    report(&mut b, "y", y);
    let program = check(&b.finish(), 13);
    assert!(kernels(&program).contains(&"gemm_24x10x8_bf16"), "{:?}", kernels(&program));
}
