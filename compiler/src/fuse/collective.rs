//! Collectives: how boxes of elements lie in the buffers at both ends.
//!
//! From each rank of a group to each goes a box: the whole operand of a gather or an all-reduce, one of the blocks it is cut
//! into otherwise. A view has one stride per axis, so a box has one stride per dimension at both ends, whatever the layouts:
//! nothing is ever laid out anew for a collective.

use super::{Fused, Group, Kind, View};
use crate::graph::{
    Axis, Collective, CollectiveKind, CollectivePart, DType, Graph, MeshOp, Name, Op, OpId, OpNode, ValueId,
};
use mlc_codegen::abi;

/// Boxes of one operand of a collective.
#[derive(Clone, Debug, PartialEq)]
pub struct Boxes {
    /// Sizes; neighbouring dimensions that lie in a row at both ends are one.
    pub dims: Vec<u64>,
    /// Strides where it is sent from, in elements.
    pub send: Vec<u64>,
    /// Strides where it is received.
    pub recv: Vec<u64>,
    /// From one receiver's box to the next.
    pub send_block: u64,
    /// From one sender's box to the next.
    pub recv_block: u64,
}

impl Boxes {
    /// Of the part `part` of the collective `op`, sent from one view and received into another.
    ///
    /// # Panics
    /// `op` is no collective, or the views are not those of its operand and result.
    pub fn of(fused: &Fused, op: OpId, part: &CollectivePart, sent: &View, received: &View) -> Boxes {
        let collective = collective(fused.graph.op(op)).expect("a collective");
        let ways = fused.graph.mesh.ways(&collective.over);
        let (from, to) = (fused.buffer(sent.buffer), fused.buffer(received.buffer));
        let size = |axis: &Name| {
            let whole = sent.size(axis).expect("operand and result have the same axes");
            if part.split.as_ref() == Some(axis) { whole / ways } else { whole }
        };
        let block = |axis: &Option<Name>, view: &View, buffer| {
            axis.as_ref().map_or(0, |axis| size(axis) * view.stride(buffer, axis))
        };
        let mut boxes = Boxes {
            dims: Vec::new(),
            send: Vec::new(),
            recv: Vec::new(),
            send_block: block(&part.split, sent, from),
            recv_block: block(&part.join, received, to),
        };
        for axis in received.physical_order(to) {
            let n = size(&axis.name);
            let (send, recv) = (sent.stride(from, &axis.name), received.stride(to, &axis.name));
            match boxes.dims.last_mut() {
                _ if n == 1 => {}
                Some(last)
                    if boxes.send.last() == Some(&(n * send)) && boxes.recv.last() == Some(&(n * recv)) =>
                {
                    *last *= n;
                    *boxes.send.last_mut().expect("as many as sizes") = send;
                    *boxes.recv.last_mut().expect("as many as sizes") = recv;
                }
                _ => {
                    boxes.dims.push(n);
                    boxes.send.push(send);
                    boxes.recv.push(recv);
                }
            }
        }
        boxes
    }

    /// Elements in a row at both ends.
    pub fn run(&self) -> u64 {
        match (self.dims.last(), self.send.last(), self.recv.last()) {
            (Some(n), Some(1), Some(1)) => *n,
            _ => 1,
        }
    }
}

/// What a collective does, if the op is one.
pub fn collective(node: &OpNode) -> Option<&Collective> {
    match &node.op {
        Op::Mesh(MeshOp::Collective(c)) => Some(c),
        _ => None,
    }
}

/// The axes of each part with the views at both ends.
pub fn pairs(fused: &Fused, group: &Group, op: OpId) -> Vec<(CollectivePart, View, View)> {
    let node = fused.graph.op(op);
    let parts = collective(node).map_or(&[][..], |c| &c.parts);
    let ends = node.operands.iter().zip(&group.writes);
    let one = |(part, (operand, write)): (&CollectivePart, (_, &super::Write))| {
        (part.clone(), fused.views[operand].clone(), write.view.clone())
    };
    parts.iter().zip(ends).map(one).collect()
}

/// Element type on the wire: that asked for, if it is shorter.
pub fn wire(collective: &Collective, dtype: DType) -> DType {
    match (collective.wire, dtype) {
        (Some(DType::Bf16), DType::F32) => DType::Bf16,
        _ => dtype,
    }
}

/// What kind it is in the runtime's words.
pub fn kind(kind: CollectiveKind) -> abi::CollectiveKind {
    use crate::graph::ReduceOp::{Max, Min, Sum};
    let reduction = |op| match op {
        Sum => abi::Reduction::Sum,
        Max => abi::Reduction::Max,
        Min => abi::Reduction::Min,
    };
    match kind {
        CollectiveKind::AllGather => abi::CollectiveKind::AllGather,
        CollectiveKind::ReduceScatter(op) => abi::CollectiveKind::ReduceScatter(reduction(op)),
        CollectiveKind::AllReduce(op) => abi::CollectiveKind::AllReduce(reduction(op)),
        CollectiveKind::AllToAll => abi::CollectiveKind::AllToAll,
    }
}

/// Elements of the box of each part.
pub fn box_elements(graph: &Graph, op: OpId) -> Vec<u64> {
    let node = graph.op(op);
    let Some(c) = collective(node) else { return Vec::new() };
    let ways = graph.mesh.ways(&c.over);
    let one = |(part, v): (&CollectivePart, &ValueId)| {
        graph.ty(*v).numel() / if part.split.is_some() { ways } else { 1 }
    };
    c.parts.iter().zip(&node.operands).map(one).collect()
}

/// Line of the runtime's table of a collective whose ends have their places and layouts.
///
/// # Panics
/// `op` is no collective.
pub fn describe(fused: &Fused, group: &Group, op: OpId) -> abi::CollectiveInfo {
    let mesh = &fused.graph.mesh;
    let c = collective(fused.graph.op(op)).expect("a collective");
    let part = |(part, sent, received): (_, View, View)| {
        let boxes = Boxes::of(fused, op, &part, &sent, &received);
        let dtype = fused.buffer(sent.buffer).dtype;
        abi::CollectivePartInfo {
            dtype,
            wire: wire(c, dtype),
            dims: boxes.dims,
            send: boxes.send,
            recv: boxes.recv,
            send_block: boxes.send_block,
            recv_block: boxes.recv_block,
        }
    };
    let index = |axis: &Name| mesh.axes.iter().position(|a| a.name == *axis).expect("an axis of the mesh");
    let mut info = abi::CollectiveInfo {
        kind: kind(c.kind),
        mesh: c.over.iter().map(|axis| index(axis) as u32).collect(),
        parts: pairs(fused, group, op).into_iter().map(part).collect(),
        staging_bytes: 0,
    };
    // A buffer has a byte at least.
    info.staging_bytes = info.staging(mesh.ways(&c.over)).max(1);
    info
}

/// Gives every staging buffer the size it needs, which depends on the layouts at both ends: what is sent from where it lies, and
/// received where it belongs, is not staged.
pub fn size_staging(fused: &mut Fused) {
    let sizes: Vec<_> = fused
        .groups
        .iter()
        .filter_map(|group| {
            let Kind::Collective { op, staging } = group.kind else { return None };
            Some((staging, describe(fused, group, op).staging_bytes))
        })
        .collect();
    for (staging, bytes) in sizes {
        fused.buffers[staging.0 as usize].axes = vec![Axis::new("bytes", bytes)];
    }
}
