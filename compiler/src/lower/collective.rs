//! Collectives: the runtime's table of them, and their lines of the op table.

use super::LowerEntry;
use crate::fuse::collective::{box_elements, collective, describe, pairs, wire};
use crate::fuse::{Fused, GroupId, Kind};
use crate::graph::{CollectiveKind, OpId, shape};
use mlc_codegen::abi::OpInfo;
use mlc_codegen::program::{Address, CollectiveStage, CollectiveStep};

impl LowerEntry<'_> {
    /// A start or done of a collective.
    pub(super) fn half(&mut self, id: GroupId, stage: CollectiveStage) -> CollectiveStep {
        let fused = &self.entry.schedule.fused;
        let group = fused.group(id);
        let Kind::Collective { op, staging } = group.kind else { panic!("only collectives are started") };
        let mut buffers: Vec<Address> = Vec::new();
        for (_, sent, received) in pairs(fused, group, op) {
            buffers.extend([self.address(&sent), self.address(&received)]);
        }
        buffers.push(self.address(&crate::fuse::View {
            buffer: staging,
            axes: Vec::new(),
            slots: Vec::new(),
        }));
        let (op, collective) = match self.started.get(&id) {
            Some(lines) => *lines,
            None => self.enter(id, op),
        };
        CollectiveStep { op, collective, stage, buffers }
    }

    /// Enters a collective into both tables.
    fn enter(&mut self, id: GroupId, op: OpId) -> (u32, u32) {
        let fused = &self.entry.schedule.fused;
        let group = fused.group(id);
        let over = collective(fused.graph.op(op)).map_or(&[][..], |c| &c.over);
        let info = describe(fused, group, op);
        let known = self.collectives.iter().position(|c| *c == info);
        let collective = known.unwrap_or_else(|| {
            self.collectives.push(info);
            self.collectives.len() - 1
        }) as u32;
        let line = &group.origin.line;
        let times = &self.entry.schedule.times;
        self.ops.push(OpInfo {
            path: group.origin.path.to_string(),
            kernel: name(fused, op),
            line: if line.line == 0 { String::new() } else { format!("{}:{}", line.file, line.line) },
            bytes: bytes_sent(fused, op),
            flops: 0,
            stream: 0,
            seconds: times.collective(fused, id),
            link: times.link(fused, over).to_string(),
        });
        let op = self.ops.len() as u32 - 1;
        self.started.insert(id, (op, collective));
        (op, collective)
    }
}

/// `all_gather_fsdp_4096_bf16`: kind, axes of the group, elements one rank sends to one, type on the wire of the first part.
fn name(fused: &Fused, op: OpId) -> String {
    let node = fused.graph.op(op);
    let c = collective(node).expect("a collective");
    let over: Vec<String> = c.over.iter().map(|axis| axis.as_str().replace('.', "_")).collect();
    let elements: u64 = box_elements(&fused.graph, op).iter().sum();
    let dtype = shape::dtype_name(wire(c, fused.graph.ty(node.operands[0]).dtype));
    format!("{}_{}_{elements}_{dtype}", shape::op_name(&node.op), over.join("_"))
}

/// Bytes one rank has to send: to each other rank its box; of an all-reduce, done as a reduce-scatter and an all-gather, twice
/// that of the parts.
fn bytes_sent(fused: &Fused, op: OpId) -> u64 {
    let node = fused.graph.op(op);
    let c = collective(node).expect("a collective");
    let ways = fused.graph.mesh.ways(&c.over);
    let sizes = box_elements(&fused.graph, op).into_iter().zip(&node.operands);
    let message: u64 = sizes.map(|(n, v)| n * wire(c, fused.graph.ty(*v).dtype).bytes()).sum();
    match c.kind {
        CollectiveKind::AllGather | CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => {
            message * (ways - 1)
        }
        CollectiveKind::AllReduce(_) => (2 * message * (ways - 1)).div_ceil(ways),
    }
}
