//! Finds composites in graphs written out in primitives, before autodiff.
//!
//! A spec writes attention, norms and the loss as formulas. Kernels and derivative rules want them whole, so each
//! recogniser looks for one formula, from its last op upwards, and puts the composite in its place; the primitives that
//! nothing else uses are dropped at the end. What is not recognised stays as it is and means the same.
//!
//! Norms come first, so that the loss head sees through them; attention needs the softmax the spec called or wrote, and
//! the loss head the cross-entropy.

mod derive_bound;
mod join_products;
mod near_misses;
mod recognise_attention;
mod recognise_cross_entropy;
mod recognise_loss_head;
mod recognise_norms;
mod recognise_softmax;
#[cfg(test)]
mod spec_tests;
#[cfg(test)]
mod tests;

pub use near_misses::{NearMiss, near_misses};
pub use recognise_attention::recognise_attention;
pub(in crate::graph) use recognise_attention::{Formula, attention_of};
pub use recognise_cross_entropy::recognise_cross_entropy;
pub use recognise_loss_head::{fit_chunks, recognise_loss_head};
pub use recognise_norms::{recognise_layer_norm, recognise_norms, recognise_rms_norm};
pub use recognise_softmax::recognise_softmax;

use super::passes::eliminate_dead;
use super::{
    BinaryOp, Builder, CompareOp, Graph, Name, Op, OpId, OpNode, ReduceOp, RegionId, UnaryOp, ValueId,
};
use std::collections::BTreeMap;

/// The recognisers in order, by the name `lower { NAME = reference }` turns them off under.
pub const RECOGNISERS: [(&str, fn(Graph) -> Graph); 6] = [
    // The larger formula first: it contains the smaller.
    ("layer_norm", recognise_layer_norm),
    ("rms_norm", recognise_rms_norm),
    ("softmax", recognise_softmax),
    ("attention", recognise_attention),
    ("loss_head", recognise_cross_entropy),
    ("loss_head", recognise_loss_head),
];

/// Runs every recogniser that is not turned off, and drops the primitives that became dead: the next may ask whether
/// anything else uses a value.
pub fn recognise(mut graph: Graph, off: &[String]) -> Graph {
    for (name, recogniser) in RECOGNISERS {
        if !off.iter().any(|o| o == name) {
            graph = eliminate_dead(recogniser(graph));
        }
    }
    graph
}

/// A region, or as much of it as is rebuilt, seen from results to operands.
struct View<'a> {
    graph: &'a Graph,
    definitions: BTreeMap<ValueId, OpId>,
}

impl<'a> View<'a> {
    fn new(b: &'a Builder) -> View<'a> {
        View::of(&b.graph, b.current())
    }

    fn of(graph: &'a Graph, region: RegionId) -> View<'a> {
        View { definitions: graph.definitions(region), graph }
    }

    /// The op that makes the value in this region.
    fn op(&self, value: ValueId) -> Option<&'a OpNode> {
        self.definitions.get(&value).map(|id| self.graph.op(*id))
    }

    fn constant(&self, value: ValueId) -> Option<f64> {
        match self.op(value)?.op {
            Op::Const(c) => Some(c),
            _ => None,
        }
    }

    fn unary(&self, op: UnaryOp, value: ValueId) -> Option<ValueId> {
        let node = self.op(value)?;
        (node.op == Op::Unary(op)).then(|| node.operands[0])
    }

    fn binary(&self, op: BinaryOp, value: ValueId) -> Option<(ValueId, ValueId)> {
        let node = self.op(value)?;
        (node.op == Op::Binary(op)).then(|| (node.operands[0], node.operands[1]))
    }

    /// Operands of a commutative op, both ways round.
    fn either(&self, op: BinaryOp, value: ValueId) -> Vec<(ValueId, ValueId)> {
        self.binary(op, value).map_or_else(Vec::new, |(a, b)| vec![(a, b), (b, a)])
    }

    /// Operands of `select`.
    fn select(&self, value: ValueId) -> Option<(ValueId, ValueId, ValueId)> {
        let node = self.op(value)?;
        (node.op == Op::Select).then(|| (node.operands[0], node.operands[1], node.operands[2]))
    }

    /// A reduction over one axis: what is reduced, and the axis.
    fn reduced(&self, op: ReduceOp, value: ValueId) -> Option<(ValueId, Name)> {
        let node = self.op(value)?;
        match &node.op {
            Op::Reduce { op: own, axes } if *own == op => match axes.as_slice() {
                [axis] => Some((node.operands[0], axis.clone())),
                _ => None,
            },
            _ => None,
        }
    }

    /// `m` of `where(m == −inf, 0, m)`, or the value itself.
    fn without_empty_rows(&self, value: ValueId) -> ValueId {
        let guarded = || {
            let (empty, zero, m) = self.select(value)?;
            let test = self.op(empty).filter(|node| node.op == Op::Compare(CompareOp::Eq))?;
            let [a, b] = test.operands[..] else { return None };
            let lowest = if self.same(a, m) { b } else { self.same(b, m).then_some(a)? };
            let is_guard =
                self.constant(lowest) == Some(f64::NEG_INFINITY) && self.constant(zero) == Some(0.0);
            is_guard.then_some(m)
        };
        guarded().unwrap_or(value)
    }

    /// Whether the value is the position along an axis, also under another name: `index[a] as [a: b]` is `index[b]`.
    fn is_index(&self, value: ValueId, axis: &Name) -> bool {
        let Some(node) = self.op(value) else { return false };
        match &node.op {
            Op::Index { axis: own } => own == axis,
            Op::Rename { pairs } => {
                let from = pairs.iter().find(|(_, to)| to == axis).map(|(from, _)| from);
                from.is_some_and(|from| self.is_index(node.operands[0], from))
            }
            _ => false,
        }
    }

    /// Whether two values are one, or the same few ops of the same values: a formula written twice.
    fn same(&self, a: ValueId, b: ValueId) -> bool {
        self.same_within(a, b, 8)
    }

    fn same_within(&self, a: ValueId, b: ValueId, depth: u32) -> bool {
        if a == b {
            return true;
        }
        let (Some(x), Some(y)) = (self.op(a), self.op(b)) else { return false };
        let plain = !matches!(x.op, Op::Input { .. } | Op::Loop(_) | Op::Composite(_) | Op::Update(_));
        depth > 0
            && plain
            && x.op == y.op
            && self.graph.ty(a).same_as(self.graph.ty(b))
            && x.operands.len() == y.operands.len()
            && x.operands.iter().zip(&y.operands).all(|(a, b)| self.same_within(*a, *b, depth - 1))
    }

    /// `value = x + constant`.
    fn plus_constant(&self, value: ValueId) -> Option<(ValueId, f64)> {
        let ways = self.either(BinaryOp::Add, value);
        ways.into_iter().find_map(|(x, c)| Some((x, self.constant(c)?)))
    }

    /// `value = Σ x / n` over one axis of size n: gives x and the axis.
    fn mean(&self, value: ValueId) -> Option<(ValueId, Name)> {
        let (sum, n) = self.binary(BinaryOp::Div, value)?;
        let node = self.op(sum)?;
        let Op::Reduce { op: ReduceOp::Sum, axes } = &node.op else { return None };
        let ([axis], x) = (axes.as_slice(), node.operands[0]) else { return None };
        let size = self.graph.ty(x).size_of(axis)?;
        (self.constant(n)? == size as f64).then(|| (x, axis.clone()))
    }

    /// `value = 1/√(mean(x²) + eps)`: gives x, the axis and eps.
    fn rstd(&self, value: ValueId) -> Option<(ValueId, Name, f64)> {
        let (mean, eps) = self.plus_constant(self.unary(UnaryOp::Rsqrt, value)?)?;
        let (square, axis) = self.mean(mean)?;
        let (x, same) = self.binary(BinaryOp::Mul, square)?;
        (x == same).then_some((x, axis, eps))
    }
}
