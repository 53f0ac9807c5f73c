//! What holds of collectives:
//! * their axes are distinct axes of the mesh; boxes have positive sizes and a stride of both kinds per dimension; only f32
//!   travels as bf16; truth values are not added; staging is as large as [`CollectiveInfo::staging`] says;
//! * a reduction puts all boxes in one place, a gather and an all-reduce send one box to all;
//! * a step passes two buffers per part and the staging buffer; none it writes shares an element with another of them;
//! * every start has one done, later, on the same buffers, and in between no step writes what is sent, or touches what is
//!   received or the staging buffer: see [`pairs`](super::pairs).

use super::{Around, Touched, Verifier, shared};
use crate::abi::{CollectiveInfo, CollectiveKind, DType, ProgramInfo, Reduction};
use crate::program::operands::Use;
use crate::program::{Address, CollectiveStage, CollectiveStep, Operand, exchange};

/// The buffers of a collective as operands over the boxes of all ranks of a group.
pub struct CollectiveFacts {
    /// Operand, sizes, and whether it is written, in the order of a step's buffers.
    buffers: Vec<(Operand, Vec<u64>, bool)>,
}

impl CollectiveFacts {
    /// Of every collective of a program.
    pub fn of_all(info: &ProgramInfo) -> Vec<CollectiveFacts> {
        info.collectives.iter().map(|c| CollectiveFacts::of(c, ways(info, c))).collect()
    }

    fn of(info: &CollectiveInfo, ways: u64) -> CollectiveFacts {
        let buffer = |dtype, strides: &[u64], block: u64, dims: &[u64], writes| {
            // Boxes on top of each other are one.
            let n = if block == 0 { 1 } else { ways };
            let strides = [&[block], strides].concat();
            (Operand { buffer: 0, dtype, offset: 0, strides }, [&[n], dims].concat(), writes)
        };
        let mut buffers = Vec::new();
        for p in &info.parts {
            buffers.push(buffer(p.dtype, &p.send, p.send_block, &p.dims, false));
            buffers.push(buffer(p.dtype, &p.recv, p.recv_block, &p.dims, true));
        }
        buffers.push(buffer(DType::Bool, &[1], 0, &[info.staging_bytes], true));
        CollectiveFacts { buffers }
    }

    pub(super) fn touched<'t>(&'t self, addresses: &'t [Address]) -> Vec<Touched<'t>> {
        let one = |(address, (operand, dims, writes)): (&'t Address, &'t (Operand, Vec<u64>, bool))| {
            let used = Use::new(operand, dims, *writes);
            // An empty staging buffer is touched nowhere.
            let any = !dims.contains(&0);
            let bytes = if any { used.extent.saturating_mul(operand.dtype.bytes()) } else { 0 };
            Touched { address, bytes, writes: *writes, uses: vec![used] }
        };
        addresses.iter().zip(&self.buffers).map(one).collect()
    }
}

/// Ranks of a group.
fn ways(info: &ProgramInfo, collective: &CollectiveInfo) -> u64 {
    collective.mesh.iter().map(|axis| info.mesh.get(*axis as usize).map_or(1, |a| a.size)).product()
}

impl<'a> Verifier<'a> {
    pub(super) fn table_of_collectives(&mut self) {
        let info = &self.program.info;
        for (i, collective) in info.collectives.iter().enumerate() {
            let place = format!("collective {i}");
            for message in table_entry(info, collective) {
                self.fail(&place, message);
            }
        }
    }

    /// Checks a start or a done by itself.
    pub(super) fn half(&mut self, place: &str, step: &'a CollectiveStep, around: &Around) {
        let place = format!("{place}, collective {}", step.collective);
        let Some(facts) = self.collectives.get(step.collective as usize) else {
            return self.fail(&place, "there is no such collective");
        };
        if step.op as usize >= self.program.info.ops.len() {
            self.fail(&place, format!("there is no op {}", step.op));
        }
        if step.buffers.len() != facts.buffers.len() {
            let (have, want) = (step.buffers.len(), facts.buffers.len());
            return self.fail(&place, format!("{have} buffers instead of {want}"));
        }
        if step.stage == CollectiveStage::Start {
            let mut messages = around.strangers(&step.buffers, std::iter::empty());
            if messages.is_empty() {
                let touched = facts.touched(&step.buffers);
                messages.extend(self.places(&touched, around));
                messages.extend(overlaps(&touched, around));
            }
            messages.into_iter().for_each(|m| self.fail(&place, m));
        }
    }

    /// What a step that touches these buffers does to open collectives.
    pub(super) fn meddling(
        &self,
        touched: &[Touched<'_>],
        around: &Around,
        open: &[CollectiveStep],
    ) -> Vec<String> {
        let mut messages = Vec::new();
        for step in open {
            let theirs = self.collectives[step.collective as usize].touched(&step.buffers);
            for (i, buffer) in touched.iter().enumerate() {
                for other in theirs.iter().filter(|o| o.writes || buffer.writes) {
                    if shared(buffer, other, around) {
                        let what = if other.writes { "receives into" } else { "sends" };
                        let n = step.collective;
                        messages.push(format!(
                            "buffer {i} meddles with what collective {n} {what} until it is done"
                        ));
                    }
                }
            }
        }
        messages
    }
}

fn overlaps(touched: &[Touched<'_>], around: &Around) -> Vec<String> {
    let mut messages = Vec::new();
    for (i, one) in touched.iter().enumerate() {
        for (j, other) in touched.iter().enumerate() {
            let ordered = i < j || !other.writes;
            if i != j && one.writes && ordered && shared(one, other, around) {
                messages.push(format!("buffer {i} is written and shares memory with buffer {j}"));
            }
        }
    }
    messages
}

fn table_entry(info: &ProgramInfo, collective: &CollectiveInfo) -> Vec<String> {
    let mut messages = Vec::new();
    let mut fail = |message: String| messages.push(message);
    for (i, axis) in collective.mesh.iter().enumerate() {
        if *axis as usize >= info.mesh.len() || collective.mesh[..i].contains(axis) {
            fail(format!("mesh axis {axis} does not exist, or comes twice"));
        }
    }
    let staging = collective.staging(ways(info, collective));
    if collective.staging_bytes < staging {
        fail(format!("{} bytes of staging instead of {staging}", collective.staging_bytes));
    }
    let reduction = exchange::reduction(collective.kind);
    for p in &collective.parts {
        if p.dims.len() != p.send.len() || p.dims.len() != p.recv.len() || p.dims.contains(&0) {
            fail(format!("a box {:?} with strides {:?} and {:?}", p.dims, p.send, p.recv));
        }
        if p.wire != p.dtype && (p.wire, p.dtype) != (DType::Bf16, DType::F32) {
            fail(format!("{:?} travels as {:?}", p.dtype, p.wire));
        }
        if p.dtype == DType::Bool && reduction == Some(Reduction::Sum) {
            fail("truth values are added".to_string());
        }
        let same = match collective.kind {
            CollectiveKind::AllGather => p.send_block == 0,
            CollectiveKind::ReduceScatter(_) => p.recv_block == 0,
            CollectiveKind::AllReduce(_) => p.send_block == 0 && p.recv_block == 0,
            CollectiveKind::AllToAll => true,
        };
        if !same {
            fail(format!("blocks {} and {} apart do not fit the kind", p.send_block, p.recv_block));
        }
    }
    messages
}
