//! Predicted times of the items of a tree: [`cost`](crate::cost) applied to what groups read, compute and write.

use crate::cost::{self, Target, product_flops};
use crate::fuse::{Fused, Group, GroupId, Item, Kind, View};
use crate::graph::{DType, MeshOp, Name, Op, OpId};

/// What the items of a rank's program take on a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    target: Target,
}

impl Times {
    /// On this machine.
    pub fn on(target: &Target) -> Times {
        Times { target: target.clone() }
    }

    /// Seconds of computation of an item; those of collectives are not.
    pub fn item(&self, fused: &Fused, item: &Item) -> f64 {
        match item {
            Item::Group(id) => self.group(fused, fused.group(*id)),
            Item::Start(_) | Item::Done(_) => 0.0,
            Item::Turned { item, .. } => self.item(fused, item),
            Item::Loop { trip, body, .. } => {
                *trip as f64 * body.iter().map(|item| self.item(fused, item)).sum::<f64>()
            }
        }
    }

    /// Seconds of one launch of a kernel.
    pub fn group(&self, fused: &Fused, group: &Group) -> f64 {
        let (dtype, flops) = work(fused, group);
        cost::kernel(&self.target, dtype, flops, moved(fused, group))
    }

    /// The class of links that a collective goes over.
    pub fn link(&self, fused: &Fused, over: &[Name]) -> &str {
        cost::link(&self.target, &fused.graph.mesh, over).name()
    }

    /// The same of a collective; empty for other groups.
    pub fn link_of(&self, fused: &Fused, id: GroupId) -> &str {
        let Kind::Collective { op, .. } = fused.group(id).kind else { return "" };
        let Op::Mesh(MeshOp::Collective(c)) = &fused.graph.op(op).op else { return "" };
        self.link(fused, &c.over)
    }

    /// Seconds a collective is under way.
    pub fn collective(&self, fused: &Fused, id: GroupId) -> f64 {
        let Kind::Collective { op, .. } = fused.group(id).kind else { return 0.0 };
        cost::collective_op(&self.target, &fused.graph, fused.graph.op(op))
    }
}

/// Bytes between memory and arithmetic of one launch.
pub fn moved(fused: &Fused, group: &Group) -> u64 {
    let size = |v: &View| v.numel() * fused.buffer(v.buffer).dtype.bytes();
    fused.reads(group).iter().map(size).sum::<u64>() + group.writes.iter().map(|w| size(&w.view)).sum::<u64>()
}

/// Floating-point operations of the products of one launch, and the type of their operands. Other arithmetic waits for memory.
pub fn work(fused: &Fused, group: &Group) -> (DType, u128) {
    let products = |op: OpId| {
        let operands = &fused.graph.op(op).operands;
        let dtype = operands.first().map_or(DType::F32, |v| fused.graph.ty(*v).dtype);
        (dtype, product_flops(&fused.graph, op))
    };
    match &group.kind {
        Kind::Gemm { dot, .. } => products(*dot),
        Kind::Attention { op } | Kind::AttentionGrad { op, .. } | Kind::Custom { op } => products(*op),
        Kind::Loops { .. }
        | Kind::Copy { .. }
        | Kind::Fill
        | Kind::Gather { .. }
        | Kind::Scatter { .. }
        | Kind::Scan { .. }
        | Kind::Collective { .. } => (DType::F32, 0),
    }
}
