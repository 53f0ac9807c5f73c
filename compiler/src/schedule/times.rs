//! Predicted times of groups: a first cost model, good for ordering and no promise.
//!
//! A kernel takes the larger of its arithmetic and its memory traffic, and a launch; a collective its latency and the bytes that a
//! rank sends. Sources: the roofline of Williams, Waterman, Patterson 2009 (doi:10.1145/1498765.1498785); the α-β model of
//! Hockney 1994.

use crate::fuse::{Fused, Group, GroupId, Item, Kind};
use crate::graph::{CollectiveKind, MeshOp, Op};
use crate::remat::cost::product_flops;

/// Speeds of one rank and of its link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// Floating-point operations a second, in products.
    pub flops: f64,
    /// Bytes of memory a second.
    pub memory: f64,
    /// Seconds to launch a kernel.
    pub launch: f64,
    /// Seconds until a message arrives, however short.
    pub latency: f64,
    /// Bytes a second over the link.
    pub link: f64,
}

impl Default for Times {
    /// A core or two of a server, with a link of 10 Gbit/s.
    fn default() -> Self {
        Times { flops: 1e11, memory: 1e10, launch: 2e-6, latency: 3e-5, link: 1.25e9 }
    }
}

impl Times {
    /// Seconds of computation of an item; those of collectives are not.
    pub fn item(&self, fused: &Fused, item: &Item) -> f64 {
        match item {
            Item::Group(id) => self.group(fused, fused.group(*id)),
            Item::Start(_) | Item::Done(_) => 0.0,
            Item::Loop { trip, body, .. } => {
                *trip as f64 * body.iter().map(|item| self.item(fused, item)).sum::<f64>()
            }
        }
    }

    fn group(&self, fused: &Fused, group: &Group) -> f64 {
        let size = |v: &crate::fuse::view::View| v.numel() * fused.buffer(v.buffer).dtype.bytes();
        let bytes = fused.reads(group).iter().map(size).sum::<u64>()
            + group.writes.iter().map(|w| size(&w.view)).sum::<u64>();
        let flops: u64 = match &group.kind {
            Kind::Gemm { dot, .. } => product_flops(&fused.graph, *dot),
            Kind::Attention { op } | Kind::AttentionGrad { op, .. } => product_flops(&fused.graph, *op),
            Kind::Loops { .. }
            | Kind::Copy { .. }
            | Kind::Fill
            | Kind::Gather { .. }
            | Kind::Scatter { .. }
            | Kind::Scan { .. }
            | Kind::Custom { .. }
            | Kind::Collective { .. } => 0,
        };
        self.launch + (flops as f64 / self.flops).max(bytes as f64 / self.memory)
    }

    /// Seconds a collective is under way.
    pub fn collective(&self, fused: &Fused, id: GroupId) -> f64 {
        let Kind::Collective { op, .. } = fused.group(id).kind else { return 0.0 };
        let node = fused.graph.op(op);
        let Op::Mesh(MeshOp::Collective(c)) = &node.op else { return 0.0 };
        let ranks = fused.graph.mesh.ways(&c.over) as f64;
        let held: u64 = node.operands.iter().map(|v| fused.graph.ty(*v).bytes()).sum();
        let held = held as f64;
        let sent = match c.kind {
            CollectiveKind::AllGather => held * (ranks - 1.0),
            CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => held * (ranks - 1.0) / ranks,
            CollectiveKind::AllReduce(_) => 2.0 * held * (ranks - 1.0) / ranks,
        };
        self.latency + sent / self.link
    }
}
