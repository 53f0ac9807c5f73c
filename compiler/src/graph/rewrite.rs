//! Helpers of passes that change a graph in place.

use super::{Builder, Graph, Op, OpId, OpNode, Region, RegionId, ValueId};
use std::collections::BTreeMap;

impl Graph {
    /// The body and all loop bodies, outer before inner, in op order. Meanings and update rules are not among them: they
    /// say what an op means, and passes leave them alone.
    pub fn executed_regions(&self) -> Vec<RegionId> {
        let mut found = vec![self.body];
        let mut next = 0;
        while let Some(&region) = found.get(next) {
            next += 1;
            for &op in &self.region(region).ops {
                if let Op::Loop(l) = &self.op(op).op {
                    found.push(l.body);
                }
            }
        }
        found
    }

    /// The op that defines each value of a region; arguments have none.
    pub fn definitions(&self, region: RegionId) -> BTreeMap<ValueId, OpId> {
        let ops = &self.region(region).ops;
        ops.iter().flat_map(|op| self.op(*op).results.iter().map(|r| (*r, *op))).collect()
    }

    /// How often each value of a region is used, as an operand or as a result of the region.
    pub fn use_counts(&self, region: RegionId) -> BTreeMap<ValueId, u32> {
        let region = self.region(region);
        let operands = region.ops.iter().flat_map(|op| &self.op(*op).operands);
        let mut counts = BTreeMap::new();
        for value in operands.chain(&region.results) {
            *counts.entry(*value).or_insert(0) += 1;
        }
        counts
    }

    /// Uses another value in the ops and results of a region. What regions inside use is an operand of the op that holds them.
    pub fn replace_uses(&mut self, region: RegionId, old: ValueId, new: ValueId) {
        for op in self.region(region).ops.clone() {
            for operand in self.ops[op.index()].operands.iter_mut().filter(|v| **v == old) {
                *operand = new;
            }
        }
        for result in self.regions[region.index()].results.iter_mut().filter(|v| **v == old) {
            *result = new;
        }
    }

    /// Exchanges the names of two values, so that a replacement reads like what it replaces.
    pub fn swap_names(&mut self, a: ValueId, b: ValueId) {
        let name = self.values[a.index()].name.clone();
        self.values[a.index()].name = std::mem::replace(&mut self.values[b.index()].name, name);
    }
}

/// Rewrites every executed region op by op. `rewrite` either appends ops to the builder (whose current region is the
/// one being rebuilt) and returns one value per result of the op, or returns `None` to keep the op.
///
/// The node it gets already has the operands of the rewritten region.
pub fn rewrite_ops(
    graph: Graph,
    mut rewrite: impl FnMut(&mut Builder, &Graph, OpId, &OpNode) -> Option<Vec<ValueId>>,
) -> Graph {
    let before = graph.clone();
    let mut b = Builder::resume(graph);
    for region in before.executed_regions() {
        let Region { ops, results, .. } = before.region(region).clone();
        let mut replaced: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        b.graph.regions[region.index()].ops.clear();
        b.reopen(region);
        for op in ops {
            for operand in &mut b.graph.ops[op.index()].operands {
                *operand = *replaced.get(operand).unwrap_or(operand);
            }
            let node = b.graph.op(op).clone();
            b.origin = node.origin.clone();
            match rewrite(&mut b, &before, op, &node) {
                None => b.graph.regions[region.index()].ops.push(op),
                Some(values) => {
                    for (old, new) in node.results.iter().zip(values) {
                        b.graph.swap_names(*old, new);
                        replaced.insert(*old, new);
                    }
                }
            }
        }
        b.leave();
        b.graph.regions[region.index()].results =
            results.iter().map(|v| *replaced.get(v).unwrap_or(v)).collect();
    }
    b.finish()
}
