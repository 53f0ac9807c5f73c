//! Replaces composites by their meaning.
//!
//! 1. In every region, where a composite of a chosen kind stands, the ops of its meaning take its place, with the
//!    operands for the meaning's arguments.
//! 2. The composite's results become those of the meaning, and give them their names.
//! 3. The ops take the composite's phase, block path and spec line.
//! 4. Composites inside the meaning are treated alike, before it is moved.
//!
//! Terminates because regions form a tree. A region belongs to one op, so nothing is copied.

use super::replace_values;
use crate::graph::{Composite, CompositeKind, Graph, Op, OpId, OpNode, Origin, RegionId, ValueId};
use std::collections::BTreeMap;

/// Expands every composite but those with kernels of their own: attention and its gradient, and the user's.
pub fn expand_composites(graph: Graph) -> Graph {
    expand_chosen(graph, &|_, _, kind| match kind {
        CompositeKind::Attention(_) | CompositeKind::AttentionGrad(_) | CompositeKind::Custom(_) => false,
        CompositeKind::Softmax { .. }
        | CompositeKind::RmsNorm { .. }
        | CompositeKind::LayerNorm { .. }
        | CompositeKind::Rope { .. }
        | CompositeKind::CrossEntropy { .. }
        | CompositeKind::LossHead(_)
        | CompositeKind::GroupedDot { .. }
        | CompositeKind::GroupedOuter { .. } => true,
    })
}

/// Expands every composite.
pub fn expand_all_composites(graph: Graph) -> Graph {
    expand_chosen(graph, &|_, _, _| true)
}

/// Whether to expand a composite, asked of the graph as it was before any was.
type Chosen<'a> = dyn Fn(&Graph, OpId, &CompositeKind) -> bool + 'a;

/// Expands the composites that are chosen.
pub fn expand_chosen(mut graph: Graph, chosen: &Chosen) -> Graph {
    let mut replaced = BTreeMap::new();
    let body = graph.body;
    expand_region(&mut graph, body, chosen, &mut replaced);
    replace_values(&mut graph, &replaced);
    graph
}

fn expand_region(
    graph: &mut Graph,
    region: RegionId,
    chosen: &Chosen,
    replaced: &mut BTreeMap<ValueId, ValueId>,
) {
    let mut ops = Vec::new();
    for id in graph.region(region).ops.clone() {
        for nested in graph.regions_of(&graph.op(id).op) {
            expand_region(graph, nested, chosen, replaced);
        }
        match &graph.op(id).op {
            Op::Composite(c) if chosen(graph, id, &c.kind) => {
                let (node, c) = (graph.op(id).clone(), c.clone());
                ops.extend(expand(graph, &node, &c, replaced));
            }
            _ => ops.push(id),
        }
    }
    graph.regions[region.index()].ops = ops;
}

/// The ops that take the composite's place.
fn expand(
    graph: &mut Graph,
    node: &OpNode,
    c: &Composite,
    replaced: &mut BTreeMap<ValueId, ValueId>,
) -> Vec<OpId> {
    let meaning = graph.region(c.meaning).clone();
    replaced.extend(meaning.args.iter().copied().zip(node.operands.iter().copied()));
    for (result, value) in node.results.iter().zip(&meaning.results) {
        replaced.insert(*result, *value);
        // A meaning may hand an argument through, which is then the operand itself.
        if !meaning.args.contains(value) {
            graph.values[value.index()].name = graph.value_name(*result).clone();
        }
    }
    take_origin(graph, c.meaning, &node.origin);
    meaning.ops
}

fn take_origin(graph: &mut Graph, region: RegionId, origin: &Origin) {
    for op in graph.region(region).ops.clone() {
        graph.ops[op.index()].origin = origin.clone();
        for nested in graph.regions_of(&graph.op(op).op) {
            take_origin(graph, nested, origin);
        }
    }
}
