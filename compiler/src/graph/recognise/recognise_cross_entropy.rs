//! Cross-entropy written out.
//!
//! ```text
//! lse − t                lse = log(sum[a](exp(x)))   or m + log(sum[a](exp(x − m))) for any m without the axis a
//! −(t − lse)             t   = gather[a](x, ids)     or sum[a](onehot · x), sum[a](where(hit, x, 0)), dot[a](onehot, x)
//! −pick(log softmax)     log softmax = x − lse       or log(softmax[a](x)); pick as t
//! −log(pick(softmax))    hit = index[a] == ids       onehot = where(hit, 1, 0)
//! ```
//! 1. At every difference and every negation, try these forms, with commuting operands either way round.
//! 2. What was subtracted from all of a row is left out of x, so that the loss head finds the product that made it.

use super::View;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{BinaryOp, CompareOp, CompositeKind, Graph, Name, Op, OpNode, ReduceOp, UnaryOp, ValueId};

/// Puts `cross_entropy` in the place of its formulas.
pub fn recognise_cross_entropy(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, _, _, node| {
        if !matches!(node.op, Op::Unary(UnaryOp::Neg) | Op::Binary(BinaryOp::Sub | BinaryOp::Mul)) {
            return None;
        }
        let Row { x, axis, ids } = find(&View::new(b), node)?;
        b.cross_entropy(x, ids, &axis).ok().map(|(loss, _)| vec![loss])
    })
}

/// Logits with the axis of their classes, and the class that is wanted.
struct Row {
    x: ValueId,
    axis: Name,
    ids: ValueId,
}

fn find(view: &View, node: &OpNode) -> Option<Row> {
    let negated = match node.op {
        Op::Unary(UnaryOp::Neg) => Some(node.operands[0]),
        Op::Binary(BinaryOp::Mul) => {
            let (a, b) = (node.operands[0], node.operands[1]);
            [(a, b), (b, a)].into_iter().find(|(_, c)| view.constant(*c) == Some(-1.0)).map(|(x, _)| x)
        }
        Op::Binary(BinaryOp::Sub) if view.constant(node.operands[0]) == Some(0.0) => Some(node.operands[1]),
        _ => None,
    };
    if let Some(value) = negated {
        return negative(view, value);
    }
    match node.op {
        Op::Binary(BinaryOp::Sub) => difference(view, node.operands[0], node.operands[1]),
        _ => None,
    }
}

/// `lse − t`
fn difference(view: &View, lse: ValueId, target: ValueId) -> Option<Row> {
    let (x, axis) = log_sum_exp(view, lse)?;
    let (of, ids) = picked(view, target, &axis)?;
    // Both sides may have been shifted, but by the same.
    view.same(x, of).then(|| Row { x: unshifted(view, x, &axis), axis, ids })
}

/// Of the value whose negation is the loss.
fn negative(view: &View, value: ValueId) -> Option<Row> {
    if let Some((target, lse)) = view.binary(BinaryOp::Sub, value)
        && let Some(row) = difference(view, lse, target)
    {
        return Some(row);
    }
    if let Some(p) = view.unary(UnaryOp::Log, value) {
        let axis = picked_axis(view, p)?;
        let (p, ids) = picked(view, p, &axis)?;
        return Some(Row { x: unshifted(view, softmax_of(view, p, &axis)?, &axis), axis, ids });
    }
    let axis = picked_axis(view, value)?;
    let (log_p, ids) = picked(view, value, &axis)?;
    let x = match view.unary(UnaryOp::Log, log_p) {
        Some(p) => softmax_of(view, p, &axis)?,
        None => {
            let (x, lse) = view.binary(BinaryOp::Sub, log_p)?;
            let (of, along) = log_sum_exp(view, lse)?;
            (along == axis && view.same(of, x)).then_some(x)?
        }
    };
    Some(Row { x: unshifted(view, x, &axis), axis, ids })
}

fn softmax_of(view: &View, p: ValueId, axis: &Name) -> Option<ValueId> {
    let node = view.op(p)?;
    match &node.op {
        Op::Composite(c) if c.kind == (CompositeKind::Softmax { axis: axis.clone() }) => {
            Some(node.operands[0])
        }
        _ => None,
    }
}

/// `log(sum[a](exp(x)))`, or `m + log(sum[a](exp(x − m)))`: x and a.
fn log_sum_exp(view: &View, value: ValueId) -> Option<(ValueId, Name)> {
    let plain = |value: ValueId| {
        let (e, axis) = view.reduced(ReduceOp::Sum, view.unary(UnaryOp::Log, value)?)?;
        Some((view.unary(UnaryOp::Exp, e)?, axis))
    };
    plain(value).or_else(|| {
        view.either(BinaryOp::Add, value).into_iter().find_map(|(shift, log)| {
            let (shifted, axis) = plain(log)?;
            let (x, by) = view.binary(BinaryOp::Sub, shifted)?;
            (view.same(shift, by) && !view.graph.ty(by).has(&axis)).then_some((x, axis))
        })
    })
}

/// The axis along which one element of a row is picked.
fn picked_axis(view: &View, value: ValueId) -> Option<Name> {
    match &view.op(value)?.op {
        Op::Gather { axis } => Some(axis.clone()),
        Op::Reduce { op: ReduceOp::Sum, axes } | Op::Dot { over: axes } => match axes.as_slice() {
            [axis] => Some(axis.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// The row and the id of an element picked from it.
fn picked(view: &View, value: ValueId, axis: &Name) -> Option<(ValueId, ValueId)> {
    if picked_axis(view, value)? != *axis {
        return None;
    }
    let node = view.op(value)?;
    match &node.op {
        Op::Gather { .. } => Some((node.operands[0], node.operands[1])),
        Op::Dot { .. } => {
            let [a, b] = [node.operands[0], node.operands[1]];
            [(a, b), (b, a)].into_iter().find_map(|(hot, x)| Some((x, one_hot(view, hot, axis)?)))
        }
        _ => {
            let inner = node.operands[0];
            let by_mask = || {
                let (hit, x, rest) = view.select(inner)?;
                (view.constant(rest) == Some(0.0)).then_some((x, hit_of(view, hit, axis)?))
            };
            let ways = view.either(BinaryOp::Mul, inner);
            let by_product = || ways.into_iter().find_map(|(hot, x)| Some((x, one_hot(view, hot, axis)?)));
            by_mask().or_else(by_product)
        }
    }
}

/// The ids of `where(index[axis] == ids, 1, 0)`.
fn one_hot(view: &View, value: ValueId, axis: &Name) -> Option<ValueId> {
    let (hit, one, zero) = view.select(value)?;
    let is_one_hot = view.constant(one) == Some(1.0) && view.constant(zero) == Some(0.0);
    is_one_hot.then(|| hit_of(view, hit, axis))?
}

/// The ids of `index[axis] == ids`.
fn hit_of(view: &View, value: ValueId, axis: &Name) -> Option<ValueId> {
    let node = view.op(value)?;
    if node.op != Op::Compare(CompareOp::Eq) {
        return None;
    }
    let (a, b) = (node.operands[0], node.operands[1]);
    let found = [(a, b), (b, a)].into_iter().find(|(index, _)| view.is_index(*index, axis));
    found.map(|(_, ids)| ids).filter(|ids| !view.graph.ty(*ids).has(axis))
}

/// `x` of `x − shift` where the shift is the same for the whole row, as often as that is done.
fn unshifted(view: &View, mut value: ValueId, axis: &Name) -> ValueId {
    while let Some((x, shift)) = view.binary(BinaryOp::Sub, value)
        && !view.graph.ty(shift).has(axis)
        && view.graph.ty(x).same_axes(view.graph.ty(value))
    {
        value = x;
    }
    value
}
