//! Blocks that a kernel of the user's own computes: their gradients by the meaning, and the kernel that computes them.

use super::{check, param};
use crate::autodiff::differentiate::differentiate;
use crate::graph::custom::Argument;
use crate::graph::verify::{Stage, verify};
use crate::graph::{
    Axis, Builder, CompositeKind, Custom, DType, Graph, Op, OpNode, Output, ReduceOp, Type, ValueId,
};

const FORWARD: &str = "func.func @forward(%x: memref<2x3xf32>, %w: memref<3xf32>, %unused: memref<f32>, \
                       %out: memref<2x3xf32>, %h: memref<2x3xf32>) { return }\n";

/// `out = tanh(x·w)` with `h = x·w` kept, and an operand that nothing depends on.
fn block(b: &mut Builder, source: &str, x: ValueId) -> ValueId {
    let w = param(b, "w", &[("d", 3)]);
    let unused = param(b, "unused", &[]);
    let argument = |name: &str, axes: &[&str]| Argument {
        name: name.into(),
        axes: axes.iter().map(|a| (*a).into()).collect(),
    };
    let custom = Custom {
        file: "k.mlir".into(),
        source: source.into(),
        function: "forward".into(),
        arguments: vec![
            argument("x", &["s", "d"]),
            argument("w", &["d"]),
            argument("unused", &[]),
            argument("out", &["s", "d"]),
            argument("h", &["d", "s"]),
        ],
    };
    let kind = CompositeKind::Custom(custom);
    b.composite(kind, &[x, w, unused], &["x", "w", "unused"], "k", |b, a| {
        let h = b.mul(a[0], a[1]);
        vec![b.unary(crate::graph::UnaryOp::Tanh, h), h]
    })[0]
}

fn x(b: &mut Builder) -> ValueId {
    param(b, "x", &[("s", 2), ("d", 3)])
}

/// The kernels of a graph besides the forward one.
fn backward_kernels(graph: &Graph) -> Vec<(&OpNode, &Custom)> {
    let nodes = graph.region(graph.body).ops.iter().map(|op| graph.op(*op));
    let custom = nodes.filter_map(|node| match &node.op {
        Op::Composite(c) => match &c.kind {
            CompositeKind::Custom(custom) => Some((node, custom)),
            _ => None,
        },
        _ => None,
    });
    custom.filter(|(_, custom)| custom.function.as_str() != "forward").collect()
}

#[test]
fn custom_without_a_backward_has_the_derivative_of_its_meaning() {
    let graph = check(|b| {
        let x = x(b);
        block(b, FORWARD, x)
    });
    verify(&graph, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
    assert!(backward_kernels(&graph).is_empty());
    // Of its parameters alone.
    let graph = check(|b| {
        let x = b.input("x", Type::new(DType::F32, vec![Axis::new("s", 2), Axis::new("d", 3)]), 0);
        block(b, FORWARD, x)
    });
    verify(&graph, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
}

/// As it is bound: operands, what is read of result and residuals, the cotangent; then what it writes.
fn bound(arguments: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let source =
        format!("func.func @helper(%h: i32) {{}}\n{FORWARD}func.func @backward({arguments}) {{ return }}\n");
    let graph = check(|b| {
        let x = x(b);
        block(b, &source, x)
    });
    verify(&graph, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
    let kernels = backward_kernels(&graph);
    assert_eq!(kernels.len(), 1);
    let (node, custom) = kernels[0];
    assert_eq!(custom.function.as_str(), "backward");
    let names = custom.arguments.iter().map(|a| a.name.to_string()).collect();
    let axes =
        custom.arguments.iter().map(|a| a.axes.iter().map(|x| x.as_str()).collect::<Vec<_>>().join(" "));
    let operands = node.operands.iter().map(|v| graph.value_name(*v).to_string()).collect();
    (names, axes.collect(), operands)
}

#[test]
fn custom_with_a_backward_hands_it_what_it_reads() {
    let ty = "memref<2x3xf32>";
    let (names, axes, operands) = bound(&format!(
        "%x: {ty}, %w: memref<3xf32>, %h: {ty}, %d_out: {ty}, %d_x: {ty}, %d_w: memref<3xf32>, %d_unused: memref<f32>"
    ));
    assert_eq!(names, ["x", "w", "unused", "h", "d_out", "d_x", "d_w", "d_unused"]);
    assert_eq!(axes, ["s d", "d", "", "d s", "s d", "s d", "d", ""]);
    assert_eq!(operands.len(), 5);
    assert_eq!(operands[..4], ["x", "w", "unused", "k.1"]);
    let (names, _, operands) = bound(&format!(
        "%w: memref<3xf32>, %out: {ty}, %d_out: {ty}, %d_unused: memref<f32>, %d_w: memref<3xf32>, %d_x: {ty}"
    ));
    assert_eq!(names, ["x", "w", "unused", "out", "d_out", "d_x", "d_w", "d_unused"]);
    assert_eq!(operands[..4], ["x", "w", "unused", "k.0"]);
}

fn refusal(source: &str) -> String {
    let mut b = Builder::new("f");
    let x = b.input("x", Type::new(DType::F32, vec![Axis::new("s", 2), Axis::new("d", 3)]), 0);
    let y = block(&mut b, source, x);
    let loss = b.reduce(ReduceOp::Sum, y, &["s".into(), "d".into()]);
    b.output(Output::Report("loss_sum".into()), loss);
    match differentiate(b.finish(), 0) {
        Ok(_) => "differentiated".into(),
        Err(e) => e.message,
    }
}

#[test]
fn custom_refuses_a_backward_that_leaves_out_what_training_needs() {
    let with =
        |arguments: &str| refusal(&format!("{FORWARD}func.func @backward({arguments}) {{ return }}\n"));
    let (d_w, d_unused) = ("%d_w: memref<3xf32>", "%d_unused: memref<f32>");
    // Nobody needs the gradient by x, an input.
    assert_eq!(with(&format!("%d_out: memref<2x3xf32>, {d_w}, {d_unused}")), "differentiated");
    let missing = |name: &str| format!("k.mlir: `@backward` has no argument `%{name}`, which training needs");
    assert_eq!(with(&format!("%d_out: memref<2x3xf32>, {d_unused}")), missing("d_w"));
    assert_eq!(with(&format!("%d_out: memref<2x3xf32>, {d_w}")), missing("d_unused"));
    assert_eq!(refusal("func.func @forward(%x) {}"), "k.mlir: line 1: `%x` has no type");
}
