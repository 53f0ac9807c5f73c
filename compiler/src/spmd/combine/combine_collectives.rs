//! Collectives of one kind that can travel together do.

use super::as_collective;
use crate::graph::{
    Collective, CollectiveKind, DType, Graph, MeshOp, Name, Op, OpId, OpNode, Phase, RegionId, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What collectives of one message have in common.
#[derive(PartialEq)]
struct Message<'g> {
    kind: CollectiveKind,
    over: &'g [Name],
    wire: Option<DType>,
    dtype: DType,
    phase: Phase,
}

/// Collectives that wait to be one: their places in the region.
struct Bucket {
    members: Vec<usize>,
    /// The place from which on all operands are there.
    ready: usize,
    /// The place of the first op that needs a result.
    needed: usize,
    /// Bytes of all operands.
    bytes: u64,
}

/// Collectives of one region, kind, group of ranks, element type and phase become one with several parts, in the order in which
/// they stand, as long as the bytes of their operands stay within `at_most`. All operands must be there before the first
/// result is needed; that also keeps apart what depends on each other. A bucket of all-gathers stands where its first result
/// is needed, any other where its last operand is there, so that what hides it can be scheduled on the free side. Loops stay
/// apart from what is around them: buckets are per layer.
///
/// Every bucket is filled from the first collective that fits nothing earlier, in order, so that the result depends on the
/// graph alone. No bit changes.
///
/// Source: Li et al. 2020 (PyTorch Distributed, arXiv:2006.15704), §3.2.3, gradient bucketing; Zhao et al. 2023 (PyTorch FSDP,
/// arXiv:2304.11277), §3.2.1, one message per unit of parameters.
pub fn combine_collectives(mut graph: Graph, at_most: u64) -> Graph {
    for region in graph.executed_regions() {
        let mut done = BTreeSet::new();
        while let Some(bucket) = next_bucket(&graph, region, &done, at_most) {
            if let [only] = bucket.members[..] {
                done.insert(graph.region(region).ops[only]);
            } else {
                done.insert(combine(&mut graph, region, &bucket));
            }
        }
    }
    graph
}

/// The bucket of the first collective that is not done.
fn next_bucket(graph: &Graph, region: RegionId, done: &BTreeSet<OpId>, at_most: u64) -> Option<Bucket> {
    let ops = &graph.region(region).ops;
    let (mut defined, mut needed) = (BTreeMap::new(), BTreeMap::new());
    for (place, op) in ops.iter().enumerate() {
        let node = graph.op(*op);
        for v in &node.operands {
            needed.entry(*v).or_insert(place);
        }
        defined.extend(node.results.iter().map(|v| (*v, place)));
    }
    let single = |place: usize| {
        let node = graph.op(ops[place]);
        let ready = node.operands.iter().filter_map(|v| defined.get(v)).map(|p: &usize| p + 1).max();
        let need = node.results.iter().filter_map(|v| needed.get(v)).min();
        Bucket {
            members: vec![place],
            ready: ready.unwrap_or(0),
            needed: need.copied().unwrap_or(ops.len()),
            bytes: node.operands.iter().map(|v| graph.ty(*v).bytes()).sum(),
        }
    };
    let mut bucket: Option<(Bucket, Message<'_>)> = None;
    for (place, op) in ops.iter().enumerate() {
        let node = graph.op(*op);
        let Some(message) = message(graph, node).filter(|_| !done.contains(op)) else { continue };
        let one = single(place);
        match &mut bucket {
            None => bucket = Some((one, message)),
            Some((all, common)) if *common == message => {
                let (ready, needed) = (all.ready.max(one.ready), all.needed.min(one.needed));
                let on_a_member = |v: &ValueId| defined.get(v).is_some_and(|p| all.members.contains(p));
                let apart = ready <= needed && !node.operands.iter().any(on_a_member);
                if apart && all.bytes + one.bytes <= at_most {
                    let members = [&all.members[..], &[place]].concat();
                    *all = Bucket { members, ready, needed, bytes: all.bytes + one.bytes };
                }
            }
            Some(_) => {}
        }
    }
    bucket.map(|(bucket, _)| bucket)
}

/// None if it is no collective, or one whose operands are of several element types.
fn message<'g>(graph: &'g Graph, node: &'g OpNode) -> Option<Message<'g>> {
    let c = as_collective(node)?;
    let dtype = graph.ty(node.operands[0]).dtype;
    let alike = node.operands.iter().all(|v| graph.ty(*v).dtype == dtype);
    alike.then_some(Message { kind: c.kind, over: &c.over, wire: c.wire, dtype, phase: node.origin.phase })
}

/// Puts one collective into the place of several; its results are theirs, so that nothing else changes.
fn combine(graph: &mut Graph, region: RegionId, bucket: &Bucket) -> OpId {
    let ops = graph.region(region).ops.clone();
    let nodes: Vec<OpNode> = bucket.members.iter().map(|p| graph.op(ops[*p]).clone()).collect();
    let collectives: Vec<&Collective> = nodes.iter().filter_map(as_collective).collect();
    let mut causes: Vec<&str> = Vec::new();
    for c in &collectives {
        if !causes.contains(&c.cause.as_str()) {
            causes.push(&c.cause);
        }
    }
    let combined = Collective {
        parts: collectives.iter().flat_map(|c| c.parts.clone()).collect(),
        cause: causes.join(", ").into(),
        ..collectives[0].clone()
    };
    let values = |of: fn(&OpNode) -> &Vec<ValueId>| nodes.iter().flat_map(|n| of(n).clone()).collect();
    let node = OpNode {
        operands: values(|n| &n.operands),
        results: values(|n| &n.results),
        origin: nodes[0].origin.clone(),
        op: Op::Mesh(MeshOp::Collective(combined.clone())),
    };
    let id = OpId(graph.ops.len() as u32);
    graph.ops.push(node);
    let place = if combined.kind == CollectiveKind::AllGather { bucket.needed } else { bucket.ready };
    let kept = |places: std::ops::Range<usize>| -> Vec<OpId> {
        places.filter(|p| !bucket.members.contains(p)).map(|p| ops[p]).collect()
    };
    graph.regions[region.index()].ops = [kept(0..place), vec![id], kept(place..ops.len())].concat();
    id
}
