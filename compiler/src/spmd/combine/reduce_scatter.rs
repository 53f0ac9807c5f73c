//! What is reduced and then cut is scattered instead.

use super::{as_collective, lay, like};
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{CollectiveKind, CollectivePart, Graph, MeshOp, Name, Op, OpId, ReduceOp, ValueId};
use std::collections::BTreeMap;

/// How an all-reduce whose results are only cut goes on.
#[derive(Clone)]
struct Scatter {
    op: ReduceOp,
    /// Mesh axes of the cuts, in their order.
    over: Vec<Name>,
    /// Mesh axes that are reduced only.
    rest: Vec<Name>,
    /// Per part: the axis that is cut, and the result of the cut.
    cuts: Vec<(Name, ValueId)>,
}

/// An all-reduce of which every result is used once, by a `local_part` over the same mesh axes, becomes a reduce-scatter over
/// those, followed on its smaller result by an all-reduce over what is left of the mesh axes; the `local_part`s go. Half the
/// bytes, or less.
///
/// The terms are added in the same order if the cut is over all mesh axes of the all-reduce in their order, and the bits stay;
/// otherwise sums of floats are associated differently.
///
/// Source: Xu et al. 2021 (GSPMD, arXiv:2105.04663), §3.4, all-reduce and slice as reduce-scatter.
pub fn reduce_scatter(graph: Graph) -> Graph {
    let mut scatters: BTreeMap<OpId, Scatter> = BTreeMap::new();
    for region in graph.executed_regions() {
        let uses = graph.use_counts(region);
        let mut cut_by: BTreeMap<ValueId, OpId> = BTreeMap::new();
        for &op in &graph.region(region).ops {
            if let Op::Mesh(MeshOp::LocalPart { .. }) = &graph.op(op).op {
                cut_by.insert(graph.op(op).operands[0], op);
            }
        }
        for &op in &graph.region(region).ops {
            if let Some(scatter) = scatter(&graph, op, &uses, &cut_by) {
                scatters.insert(op, scatter);
            }
        }
    }
    let gone: Vec<ValueId> = scatters.values().flat_map(|s| s.cuts.iter().map(|(_, v)| *v)).collect();
    rewrite_ops(graph, |b, before, op, node| {
        if let Some(s) = scatters.get(&op) {
            let c = as_collective(node)?;
            let along = |axis: &Name| CollectivePart { split: Some(axis.clone()), join: None };
            let parts = s.cuts.iter().map(|(axis, _)| along(axis)).collect();
            let mut values = like(b, c, CollectiveKind::ReduceScatter(s.op), &s.over, parts, &node.operands);
            let mut lying: Vec<_> = s.cuts.iter().map(|(_, v)| before.sharding(*v).clone()).collect();
            if !s.rest.is_empty() {
                for (value, after) in values.iter().zip(&lying) {
                    let mut terms = after.clone();
                    terms.partial.extend(s.rest.iter().map(|m| (m.clone(), s.op)));
                    lay(&mut b.graph, *value, terms);
                }
                let parts = vec![CollectivePart::default(); values.len()];
                values = like(b, c, CollectiveKind::AllReduce(s.op), &s.rest, parts, &values);
            }
            for (value, after) in values.iter().zip(lying.drain(..)) {
                lay(&mut b.graph, *value, after);
            }
            return Some(values);
        }
        // The operand is the scattered value already.
        gone.contains(&node.results[0]).then(|| node.operands.clone())
    })
}

fn scatter(
    graph: &Graph,
    op: OpId,
    uses: &BTreeMap<ValueId, u32>,
    cut_by: &BTreeMap<ValueId, OpId>,
) -> Option<Scatter> {
    let c = as_collective(graph.op(op))?;
    let CollectiveKind::AllReduce(reduce) = c.kind else { return None };
    let mut found: Option<Scatter> = None;
    for result in &graph.op(op).results {
        let cut = graph.op(*cut_by.get(result).filter(|_| uses.get(result) == Some(&1))?);
        let Op::Mesh(MeshOp::LocalPart { axis, over }) = &cut.op else { return None };
        if !over.iter().all(|m| c.over.contains(m)) {
            return None;
        }
        let rest = c.over.iter().filter(|m| !over.contains(m)).cloned().collect();
        let scatter =
            found.get_or_insert_with(|| Scatter { op: reduce, over: over.clone(), rest, cuts: Vec::new() });
        if scatter.over != *over {
            return None;
        }
        scatter.cuts.push((axis.clone(), cut.results[0]));
    }
    found
}
