//! Collectives over fast and slow links send only a part over the slow ones.

use super::{as_collective, lay, like};
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{
    Builder, Collective, CollectiveKind, CollectivePart, Graph, Mesh, Name, OpNode, ReduceOp, Sharding,
    ValueId,
};

/// Splits collectives over several mesh axes of which some run over nodes (slow) and some do not (fast):
///
/// | before | after |
/// |---|---|
/// | all-reduce | reduce-scatter over fast, all-reduce over slow, all-gather over fast |
/// | all-gather over fast, then slow axes | all-gather over slow, all-gather over fast |
/// | reduce-scatter over fast, then slow axes | reduce-scatter over fast, reduce-scatter over slow |
///
/// An all-reduce is split along the first axis of each operand that the fast ranks divide; without one it stays. A gather and
/// a scatter stay if a slow axis stands before a fast one: their parts would come out in another order. Shardings that
/// are to be fast over nodes name the fast mesh axes first. All-to-alls stay.
///
/// Sums of floats are associated differently, first within nodes and then between them, which is as good, but other bits; so
/// the pass is compared with its input on integers. Gathers keep their bits. Both are legal for maxima and minima.
///
/// Source: Mikami et al. 2018 (arXiv:1811.05233), §3.2, all-reduce on a torus in three phases.
pub fn split_hierarchical(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, before, _, node| {
        let c = as_collective(node)?;
        let (slow, fast): (Vec<Name>, Vec<Name>) =
            c.over.iter().cloned().partition(|m| is_slow(&before.mesh, m));
        if slow.is_empty() || fast.is_empty() {
            return None;
        }
        let fast_first = c.over[..fast.len()] == fast[..];
        let values = match c.kind {
            CollectiveKind::AllReduce(op) => all_reduce(b, c, op, node, &fast, &slow)?,
            CollectiveKind::AllGather if fast_first => in_two(b, c, node, &slow, &fast, |s, part| {
                let axis = part.join.as_ref();
                let split = axis.and_then(|axis| s.split.get_mut(axis));
                if let Some(split) = split {
                    split.over.retain(|m| !slow.contains(m));
                }
                s.split.retain(|_, split| !split.over.is_empty());
            }),
            CollectiveKind::ReduceScatter(_) if fast_first => {
                in_two(b, c, node, &fast, &slow, |s, part| scattered(s, part, &fast))
            }
            CollectiveKind::AllGather | CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => {
                return None;
            }
        };
        for (value, result) in values.iter().zip(&node.results) {
            lay(&mut b.graph, *value, before.sharding(*result).clone());
        }
        Some(values)
    })
}

fn is_slow(mesh: &Mesh, name: &Name) -> bool {
    mesh.axes.iter().any(|a| a.name == *name && a.over_nodes)
}

/// How a value lies after a reduce-scatter over `over`, from how it lay before.
fn scattered(sharding: &mut Sharding, part: &CollectivePart, over: &[Name]) {
    sharding.partial.retain(|m, _| !over.contains(m));
    if let Some(axis) = &part.split {
        let mut all = sharding.over(axis).to_vec();
        all.extend(over.iter().cloned());
        sharding.set(axis, all);
    }
}

/// The same collective over some mesh axes, and on its results over others; `between` says how a value lies after the first.
fn in_two(
    b: &mut Builder,
    c: &Collective,
    node: &OpNode,
    first: &[Name],
    second: &[Name],
    between: impl Fn(&mut Sharding, &CollectivePart),
) -> Vec<ValueId> {
    let values = like(b, c, c.kind, first, c.parts.clone(), &node.operands);
    for ((value, operand), part) in values.iter().zip(&node.operands).zip(&c.parts) {
        let mut sharding = b.graph.sharding(*operand).clone();
        between(&mut sharding, part);
        lay(&mut b.graph, *value, sharding);
    }
    like(b, c, c.kind, second, c.parts.clone(), &values)
}

fn all_reduce(
    b: &mut Builder,
    c: &Collective,
    op: ReduceOp,
    node: &OpNode,
    fast: &[Name],
    slow: &[Name],
) -> Option<Vec<ValueId>> {
    let ways = b.graph.mesh.ways(fast);
    let axis =
        |v: &ValueId| b.ty(*v).axes.iter().find(|a| a.size.is_multiple_of(ways)).map(|a| a.name.clone());
    let axes: Vec<Name> = node.operands.iter().map(axis).collect::<Option<_>>()?;
    let splits: Vec<CollectivePart> =
        axes.iter().map(|a| CollectivePart { split: Some(a.clone()), join: None }).collect();
    let joins = axes.iter().map(|a| CollectivePart { split: None, join: Some(a.clone()) }).collect();
    let parts = like(b, c, CollectiveKind::ReduceScatter(op), fast, splits.clone(), &node.operands);
    let mut lying = Vec::new();
    for ((value, operand), split) in parts.iter().zip(&node.operands).zip(&splits) {
        let mut sharding = b.graph.sharding(*operand).clone();
        scattered(&mut sharding, split, fast);
        lay(&mut b.graph, *value, sharding.clone());
        sharding.partial.retain(|m, _| !slow.contains(m));
        lying.push(sharding);
    }
    let whole = vec![CollectivePart::default(); parts.len()];
    let sums = like(b, c, CollectiveKind::AllReduce(op), slow, whole, &parts);
    for (value, sharding) in sums.iter().zip(lying) {
        lay(&mut b.graph, *value, sharding);
    }
    // What has been summed is not rounded again.
    let whole = Collective { wire: None, ..c.clone() };
    Some(like(b, &whole, CollectiveKind::AllGather, fast, joins, &sums))
}
