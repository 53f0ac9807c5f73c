//! Passes any stage may use. One pass is one file, one function and one name in [`passes`](crate::passes).
//!
//! They edit a graph in place and leave what they cut off in the arenas; [`eliminate_dead`] drops that too.

mod eliminate_dead;
mod expand_composites;
mod fold_constants;
mod share_common;
mod sink_updates;
#[cfg(test)]
mod tests;

pub use eliminate_dead::{drop_dead, eliminate_dead};
pub use expand_composites::{expand_all_composites, expand_chosen, expand_composites};
pub use fold_constants::fold_constants;
pub use share_common::share_common;
pub use sink_updates::sink_updates;

use super::{Graph, RegionId, ValueId};
use std::collections::BTreeMap;

/// The body and all regions below it, each after the one it stands in.
pub(crate) fn regions_in_order(graph: &Graph) -> Vec<RegionId> {
    let mut order = vec![graph.body];
    let mut next = 0;
    while next < order.len() {
        let ops = &graph.region(order[next]).ops;
        order.extend(ops.iter().flat_map(|op| graph.regions_of(&graph.op(*op).op)));
        next += 1;
    }
    order
}

/// The value that stands for `value` after replacements, which may chain.
pub(crate) fn resolve(replaced: &BTreeMap<ValueId, ValueId>, value: ValueId) -> ValueId {
    let mut value = value;
    while let Some(next) = replaced.get(&value) {
        value = *next;
    }
    value
}

/// Uses other values instead of the replaced ones, everywhere.
pub(crate) fn replace_values(graph: &mut Graph, replaced: &BTreeMap<ValueId, ValueId>) {
    for region in regions_in_order(graph) {
        for op in graph.region(region).ops.clone() {
            for operand in &mut graph.ops[op.index()].operands {
                *operand = resolve(replaced, *operand);
            }
        }
        for result in &mut graph.regions[region.index()].results {
            *result = resolve(replaced, *result);
        }
    }
}
