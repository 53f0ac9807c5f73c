//! Predicted times: of kernels and of collectives.
//!
//! A kernel takes the longer of its arithmetic and its memory traffic, and a launch: the roofline. A collective takes `α` for
//! every hop of its ring, and the bytes that a rank sends at the speed of the slowest link it crosses. The figures come from
//! [`Target`]s, files that say where each figure is from. All functions are pure, so a plan depends on a committed file and
//! never on the machine that builds.
//!
//! What it leaves out: contention of collectives under way at the same time, other algorithms than rings, and what
//! a kernel's shape does to its efficiency. It is good for choosing between plans, and no promise.
//!
//! Source: the roofline is Williams, Waterman, Patterson 2009 (doi:10.1145/1498765.1498785); α and β are from Hockney 1994
//! (doi:10.1016/S0167-8191(06)80021-9); ring collectives from Thakur, Rabenseifner, Gropp 2005
//! (doi:10.1177/1094342005051521), §4.

mod flops;
mod target;
#[cfg(test)]
mod tests;

pub use flops::{product_flops, region_flops};
pub use target::{Device, Link, Node, Peak, Target, targets};

use crate::graph::{CollectiveKind, DType, Graph, Mesh, MeshOp, Name, Op, OpNode};

/// Seconds of a kernel with this many floating-point operations on elements of `dtype` and bytes of memory traffic.
pub fn kernel(target: &Target, dtype: DType, flops: u128, bytes: u64) -> f64 {
    let device = &target.device;
    let arithmetic = flops as f64 / device.rate(dtype);
    device.launch + arithmetic.max(bytes as f64 / device.bandwidth)
}

/// Seconds of a collective between the ranks that differ in `over`, each of which holds `local` bytes before.
pub fn collective(target: &Target, mesh: &Mesh, kind: CollectiveKind, over: &[Name], local: u64) -> f64 {
    message(target, mesh, kind, over, kind.bytes_sent(local, mesh.ways(over)))
}

/// Seconds of a collective of which every rank sends this many bytes.
pub fn message(target: &Target, mesh: &Mesh, kind: CollectiveKind, over: &[Name], sent: u64) -> f64 {
    let ranks = mesh.ways(over);
    if ranks == 1 {
        return 0.0;
    }
    let rounds = match kind {
        CollectiveKind::AllGather | CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => 1.0,
        CollectiveKind::AllReduce(_) => 2.0,
    };
    rounds * hops(target, mesh, over) + sent as f64 / link(target, mesh, over).bandwidth()
}

/// Seconds of latency once round a ring. It passes through a node's ranks before it goes to the next node.
fn hops(target: &Target, mesh: &Mesh, over: &[Name]) -> f64 {
    let slow = (nodes(mesh, over) - 1) as f64;
    slow * target.network.alpha + ((mesh.ways(over) - 1) as f64 - slow) * target.node.alpha
}

/// Over which class of link a group of ranks talks: the slowest that its ring crosses.
pub fn link<'t>(target: &'t Target, mesh: &Mesh, over: &[Name]) -> LinkClass<'t> {
    if nodes(mesh, over) > 1 { LinkClass::Network(&target.network) } else { LinkClass::Node(&target.node) }
}

/// A class of links; collectives of one class share it, those of different classes do not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinkClass<'t> {
    /// Between the ranks of a node.
    Node(&'t Node),
    /// Between nodes.
    Network(&'t Link),
}

impl<'t> LinkClass<'t> {
    /// The link's name in its target.
    pub fn name(self) -> &'t str {
        match self {
            LinkClass::Node(node) => &node.name,
            LinkClass::Network(link) => &link.name,
        }
    }

    /// Bytes per second that one rank sends while it receives as many.
    pub fn bandwidth(self) -> f64 {
        match self {
            LinkClass::Node(node) => node.bandwidth,
            LinkClass::Network(link) => link.bandwidth,
        }
    }
}

/// Bytes that a rank sends in the time that a ring over mesh axes takes to send nothing at all, by axes: messages much longer are
/// as fast as the link, much shorter ones are better sent together.
pub fn latency_bytes(target: &Target, mesh: &Mesh) -> impl Fn(&[Name]) -> u64 + use<> {
    let (target, mesh) = (target.clone(), mesh.clone());
    move |over| (hops(&target, &mesh, over) * link(&target, &mesh, over).bandwidth()) as u64
}

/// Over how many nodes a group is spread.
fn nodes(mesh: &Mesh, over: &[Name]) -> u64 {
    mesh.axes.iter().filter(|a| a.over_nodes && over.contains(&a.name)).map(|a| a.size).product()
}

/// Seconds of an op of one rank's program, 0 if it is no collective.
pub fn collective_op(target: &Target, graph: &Graph, node: &OpNode) -> f64 {
    let Op::Mesh(MeshOp::Collective(c)) = &node.op else { return 0.0 };
    let bytes = |v| {
        let ty = graph.ty(v);
        ty.numel() * c.wire.unwrap_or(ty.dtype).bytes()
    };
    let local = node.operands.iter().map(|v| bytes(*v)).sum();
    collective(target, &graph.mesh, c.kind, &c.over, local)
}
