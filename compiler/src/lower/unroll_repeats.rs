//! Lays out iterations of repeats in a row, where the spec says so.
//!
//! A repeat has several loops, one in the forward pass and one for each time the backward pass goes over it; they all run
//! over the repeat's axis. Launches, their order and their addresses stay the same.

use crate::fuse::Item;
use crate::graph::Graph;
use crate::memory::Plan;
use crate::spec::checked::Unrolled;
use mlc_codegen::program::unroll::unroll;
use mlc_codegen::program::{LoopVar, Program};
use std::collections::BTreeMap;

/// Unrolls the loops of all entries of a program made from the plan.
pub fn unroll_repeats(program: &mut Program, plan: &Plan, repeats: &[Unrolled]) {
    for (entry, planned) in program.entries.iter_mut().zip(&plan.entries) {
        let fused = &planned.schedule.fused;
        let mut by = BTreeMap::new();
        collect(&fused.graph, &fused.body, repeats, &mut by);
        entry.body = unroll(&entry.body, &|var| by.get(&var).copied().unwrap_or(1));
    }
}

fn collect(graph: &Graph, items: &[Item], repeats: &[Unrolled], by: &mut BTreeMap<LoopVar, u64>) {
    for item in items {
        let Item::Loop { id, op, trip, body, .. } = item else { continue };
        let axis = graph.op(*op).op.as_loop().map(|l| l.axis.as_str());
        let repeat = repeats.iter().find(|r| Some(r.axis.name.as_str()) == axis && r.axis.size == *trip);
        by.extend(repeat.map(|r| (LoopVar(id.0), r.by)));
        collect(graph, body, repeats, by);
    }
}
