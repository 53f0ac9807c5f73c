//! Softmax written out.
//!
//! ```text
//! e / sum[a](e)              e = exp(x − max[a](x)) or exp(x)
//! e · (1 / sum[a](e))
//! dot[a](e, v) / sum[a](e)   normalised after it weighed v
//! ```
//! 1. At every quotient, look for the sum of exponentials below and for the same exponentials above.
//! 2. A maximum that was subtracted is left out: the composite subtracts its own.
//!
//! A row that is −inf throughout is 0 in a softmax; written out it would be NaN.

use super::View;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{BinaryOp, Graph, Name, Op, OpNode, ReduceOp, UnaryOp, ValueId};

/// Puts `softmax` in the place of its formula.
pub fn recognise_softmax(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, _, _, node| {
        if !matches!(node.op, Op::Binary(BinaryOp::Div | BinaryOp::Mul)) {
            return None;
        }
        let Found { x, axis, values } = find(&View::new(b), node)?;
        let p = b.softmax(x, &axis).ok()?;
        let Some(v) = values else { return Some(vec![p]) };
        let ty = b.ty(node.results[0]).clone();
        Some(vec![b.one(Op::Dot { over: vec![axis] }, &[p, v], Some(ty), "o")])
    })
}

struct Found {
    x: ValueId,
    axis: Name,
    /// What the weights weigh, if they are normalised afterwards.
    values: Option<ValueId>,
}

fn find(view: &View, node: &OpNode) -> Option<Found> {
    let (a, b) = (node.operands[0], node.operands[1]);
    let (top, sum) = match node.op {
        Op::Binary(BinaryOp::Div) => (a, b),
        // e · (1 / sum)
        _ => [(a, b), (b, a)].into_iter().find_map(|(top, factor)| {
            let (one, sum) = view.binary(BinaryOp::Div, factor)?;
            (view.constant(one) == Some(1.0)).then_some((top, sum))
        })?,
    };
    let (e, axis) = view.reduced(ReduceOp::Sum, sum)?;
    let x = unshifted(view, view.unary(UnaryOp::Exp, e)?, &axis);
    if view.same(top, e) {
        return view.graph.ty(node.results[0]).same_axes(view.graph.ty(e)).then_some(Found {
            x,
            axis,
            values: None,
        });
    }
    let dot = view.op(top)?;
    if dot.op != (Op::Dot { over: vec![axis.clone()] }) {
        return None;
    }
    let [left, right] = [dot.operands[0], dot.operands[1]];
    let values = if view.same(left, e) { right } else { view.same(right, e).then_some(left)? };
    Some(Found { x, axis, values: Some(values) })
}

/// `x` of `x − max[axis](x)`, or the value itself.
fn unshifted(view: &View, value: ValueId, axis: &Name) -> ValueId {
    let of_maximum = || {
        let (x, shift) = view.binary(BinaryOp::Sub, value)?;
        let (of, along) = view.reduced(ReduceOp::Max, view.without_empty_rows(shift))?;
        (along == *axis && view.same(of, x)).then_some(x)
    };
    of_maximum().unwrap_or(value)
}
