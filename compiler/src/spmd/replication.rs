//! Reshards that would replicate: every one of a graph, before any is lowered, for a message that names them all.
//!
//! What a plan may send is [`super::reshard::limit`]. A pair of shardings that takes more is nearly always a mistake in the
//! spec, so it needs permission, by `allow_replicate` in `shard`.

use super::reshard::{Options, Step, limit, plan};
use crate::graph::{Graph, MeshOp, Op, OpId, Sharding};

/// A reshard that would send more than moving its parts should take.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The reshard.
    pub op: OpId,
    /// How the value lies.
    pub from: Sharding,
    /// How it should lie.
    pub to: Sharding,
    /// Bytes that each rank would send.
    pub bytes: u64,
    /// What moving its parts should take.
    pub limit: u64,
    /// The steps.
    pub steps: Vec<Step>,
}

/// The reshards of a sharded graph that have no permission and need one; those with an error of another kind are left to
/// [`super::partition`].
pub fn refused(graph: &Graph) -> Vec<Refused> {
    let mut all = Vec::new();
    for region in &graph.regions {
        for op in &region.ops {
            let node = graph.op(*op);
            let Op::Mesh(MeshOp::Reshard { may_replicate: false, wire, .. }) = &node.op else { continue };
            let wire = *wire;
            let [from, to] = [node.operands[0], node.results[0]].map(|v| graph.sharding(v).clone());
            let ty = graph.ty(node.results[0]);
            let allow = |allow_replicate| Options { wire, allow_replicate };
            if plan(&from, &to, ty, &graph.mesh, &allow(false)).is_ok() {
                continue;
            }
            let Ok(steps) = plan(&from, &to, ty, &graph.mesh, &allow(true)) else { continue };
            let limit = limit(&from, &to, ty, &graph.mesh, wire).unwrap_or(0);
            let bytes = steps.iter().map(|s| s.bytes).sum();
            all.push(Refused { op: *op, from, to, bytes, limit, steps });
        }
    }
    all
}

#[cfg(test)]
mod tests;
