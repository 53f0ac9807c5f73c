//! Finds composites in graphs written out in primitives, before autodiff.
//!
//! A spec writes attention, norms and the loss as formulas. Kernels and derivative rules want them whole, so each
//! recogniser looks for one formula, from its last op upwards, and puts the composite in its place; the primitives that
//! nothing else uses are dropped at the end. What is not recognised stays as it is and means the same.
//!
//! Norms come first, so that the loss head sees through them; attention needs the softmax the spec called.

mod derive_bound;
mod near_misses;
mod recognise_attention;
mod recognise_loss_head;
mod recognise_norms;
#[cfg(test)]
mod tests;

pub use near_misses::{NearMiss, near_misses};
pub use recognise_attention::recognise_attention;
pub(in crate::graph) use recognise_attention::{Formula, attention_of};
pub use recognise_loss_head::recognise_loss_head;
pub use recognise_norms::recognise_norms;

use super::passes::eliminate_dead;
use super::{BinaryOp, Builder, Graph, Name, Op, OpId, OpNode, ReduceOp, UnaryOp, ValueId};
use std::collections::BTreeMap;

/// The recognisers in order, by the name `lower { NAME = reference }` turns them off under.
pub const RECOGNISERS: [(&str, fn(Graph) -> Graph); 3] =
    [("norms", recognise_norms), ("attention", recognise_attention), ("loss_head", recognise_loss_head)];

/// Runs every recogniser that is not turned off, and drops the primitives that became dead.
pub fn recognise(mut graph: Graph, off: &[String]) -> Graph {
    for (name, recogniser) in RECOGNISERS {
        if !off.iter().any(|o| o == name) {
            graph = recogniser(graph);
        }
    }
    eliminate_dead(graph)
}

/// The region being rebuilt, as far as it has come, seen from results to operands.
struct View<'a> {
    graph: &'a Graph,
    definitions: BTreeMap<ValueId, OpId>,
}

impl<'a> View<'a> {
    fn new(b: &'a Builder) -> View<'a> {
        View { definitions: b.graph.definitions(b.current()), graph: &b.graph }
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
