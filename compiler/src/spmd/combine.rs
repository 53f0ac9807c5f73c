//! Collective algebra: other collectives that move the same data in less time, on one rank's program.
//!
//! In this order: what is reduced and then cut is scattered; what runs over fast and slow links is taken apart; and then what is
//! left travels together where it can.

mod combine_collectives;
mod declared;
mod reduce_scatter;
mod split_hierarchical;
#[cfg(test)]
mod tests;

pub use combine_collectives::combine_collectives;
pub use reduce_scatter::reduce_scatter;
pub use split_hierarchical::split_hierarchical;

use crate::graph::{
    Builder, Collective, CollectiveKind, CollectivePart, Graph, MeshOp, Name, Op, OpNode, Sharding, ValueId,
};

/// The collective an op is, if it is one.
fn as_collective(node: &OpNode) -> Option<&Collective> {
    if let Op::Mesh(MeshOp::Collective(c)) = &node.op { Some(c) } else { None }
}

/// Appends a collective like `c`, of another kind over other mesh axes.
fn like(
    b: &mut Builder,
    c: &Collective,
    kind: CollectiveKind,
    over: &[Name],
    parts: Vec<CollectivePart>,
    operands: &[ValueId],
) -> Vec<ValueId> {
    let collective = Collective { kind, over: over.to_vec(), parts, wire: c.wire, cause: c.cause.clone() };
    b.op(Op::Mesh(MeshOp::Collective(collective)), operands, None, "t")
}

fn lay(graph: &mut Graph, value: ValueId, sharding: Sharding) {
    graph.values[value.index()].sharding = sharding;
}
