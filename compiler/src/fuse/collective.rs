//! Collectives: how boxes of elements lie in the buffers at both ends.
//!
//! From each rank of a group to each goes a box: the whole operand of a gather or an all-reduce, one of the blocks it is cut
//! into otherwise. A view has one stride per axis, so a box has one stride per dimension at both ends, whatever the layouts:
//! nothing is ever laid out anew for a collective.

use super::{Fused, Group, View};
use crate::graph::{
    Collective, CollectiveKind, CollectivePart, DType, Graph, MeshOp, Name, Op, OpId, OpNode, ValueId,
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

/// Size of a collective's staging buffer.
///
/// # Panics
/// `op` is no collective.
pub fn staging_bytes(graph: &Graph, op: OpId) -> u64 {
    let node = graph.op(op);
    let c = collective(node).expect("a collective");
    let part = |(elements, v): (u64, &ValueId)| {
        let dtype = graph.ty(*v).dtype;
        abi::CollectivePartInfo {
            dtype,
            wire: wire(c, dtype),
            dims: vec![elements],
            send: vec![1],
            recv: vec![1],
            send_block: 0,
            recv_block: 0,
        }
    };
    let parts = box_elements(graph, op).into_iter().zip(&node.operands).map(part).collect();
    let info = abi::CollectiveInfo { kind: kind(c.kind), mesh: Vec::new(), parts, staging_bytes: 0 };
    info.staging(graph.mesh.ways(&c.over))
}
