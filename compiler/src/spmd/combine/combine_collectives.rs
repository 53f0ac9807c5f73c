//! Collectives of one kind that can travel together do.

use super::{as_collective, declared::Declared};
use crate::graph::{
    Collective, CollectiveKind, DType, Graph, MeshOp, Name, Op, OpId, OpNode, Origin, RegionId, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// A message of so many times the bytes that take as long as its latency is as fast as it gets: latency is a sixteenth of it.
const SATURATED: u64 = 16;

/// What collectives of one message have in common.
#[derive(PartialEq)]
struct Message<'g> {
    kind: CollectiveKind,
    over: &'g [Name],
    wire: Option<DType>,
    dtype: DType,
    /// It waits for nothing in its region: a parameter is gathered.
    early: bool,
    /// No product of its region and no next iteration waits for it: a gradient is summed.
    late: bool,
}

/// Collectives that wait to be one: their places in the region.
struct Bucket {
    members: Vec<usize>,
    /// The place from which on all operands are there.
    ready: usize,
    /// The place of the first op that needs a result.
    needed: usize,
    /// Bytes that a rank sends.
    sent: u64,
}

/// Collectives of one region, kind, group of ranks and element type become one with several parts. Its parts are in the order in
/// which the model declares the parameters they are of, whether it gathers them or sums their gradients, and of what is of no
/// parameter, in the order of the text: how a message is laid out depends on the model alone.
///
/// | what | one message of |
/// |---|---|
/// | gathers of parameters, and sums that no product of the region and no next iteration waits for, in a loop | all of the loop's body |
/// | the same outside of loops | neighbours, until latency is a sixteenth of it |
/// | anything else | what all is there before the first result is needed, until latency is half of it |
///
/// The first two may start before, or end after, their iteration, so that their size hides behind it; of the last kind a part
/// would wait for the others', and only messages too short to matter gain. The kinds are kept apart for the same reason. Loops
/// stay apart from what is around them: buckets are per layer. Collectives that depend on each other stay apart.
///
/// A bucket of gathers stands where its first result is needed, what its operands are cut and cast from before it; one
/// of sums stands where its last operand is there, what reads its results behind it.
///
/// `latency_bytes` is what a rank sends in the time in which a collective over these mesh axes sends nothing.
///
/// No bit changes: every part is gathered or summed as if it were alone.
///
/// Source: Li et al. 2020 (PyTorch Distributed, arXiv:2006.15704), §3.2.3, gradient bucketing; Zhao et al. 2023 (PyTorch FSDP,
/// arXiv:2304.11277), §3.2.1, one message per unit of parameters.
pub fn combine_collectives(mut graph: Graph, latency_bytes: impl Fn(&[Name]) -> u64) -> Graph {
    let declared = Declared::of(&graph);
    for region in graph.executed_regions() {
        let mut done = BTreeSet::new();
        loop {
            let pass = Pass { graph: &graph, declared: &declared, region, latency_bytes: &latency_bytes };
            let Some(bucket) = pass.next_bucket(&done) else { break };
            if let [only] = bucket.members[..] {
                done.insert(graph.region(region).ops[only]);
            } else {
                let (node, ops) = (pass.combined(&bucket), pass.order(&bucket));
                let id = OpId(graph.ops.len() as u32);
                graph.ops.push(node);
                graph.regions[region.index()].ops = ops.into_iter().map(|op| op.unwrap_or(id)).collect();
                done.insert(id);
            }
        }
    }
    graph
}

struct Pass<'g> {
    graph: &'g Graph,
    declared: &'g Declared,
    region: RegionId,
    latency_bytes: &'g dyn Fn(&[Name]) -> u64,
}

impl<'g> Pass<'g> {
    fn ops(&self) -> &'g [OpId] {
        &self.graph.region(self.region).ops
    }

    /// The bucket of the first collective that is not done.
    fn next_bucket(&self, done: &BTreeSet<OpId>) -> Option<Bucket> {
        let mut defined: BTreeMap<ValueId, usize> = BTreeMap::new();
        let mut needed: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (place, op) in self.ops().iter().enumerate() {
            let node = self.graph.op(*op);
            for v in &node.operands {
                needed.entry(*v).or_insert(place);
            }
            defined.extend(node.results.iter().map(|v| (*v, place)));
        }
        let single = |place: usize, c: &Collective| {
            let node = self.graph.op(self.ops()[place]);
            let ready = node.operands.iter().filter_map(|v| defined.get(v)).map(|p: &usize| p + 1).max();
            let need = node.results.iter().filter_map(|v| needed.get(v)).min();
            let element = |v: &ValueId| c.wire.unwrap_or(self.graph.ty(*v).dtype).bytes();
            let held = node.operands.iter().map(|v| self.graph.ty(*v).numel() * element(v)).sum();
            Bucket {
                members: vec![place],
                ready: ready.unwrap_or(0),
                needed: need.copied().unwrap_or(self.ops().len()),
                sent: c.kind.bytes_sent(held, self.graph.mesh.ways(&c.over)),
            }
        };
        let mut bucket: Option<(Bucket, Message<'_>)> = None;
        for (place, op) in self.ops().iter().enumerate() {
            let node = self.graph.op(*op);
            let Some(c) = as_collective(node).filter(|_| !done.contains(op)) else { continue };
            let Some(message) = self.message(c, node) else { continue };
            let one = single(place, c);
            match &mut bucket {
                None => bucket = Some((one, message)),
                Some((all, common)) if *common == message => {
                    let joined = Bucket {
                        members: [&all.members[..], &[place]].concat(),
                        ready: all.ready.max(one.ready),
                        needed: all.needed.min(one.needed),
                        sent: all.sent + one.sent,
                    };
                    if self.may_join(&joined, &message, place) {
                        *all = joined;
                    }
                }
                Some(_) => {}
            }
        }
        bucket.map(|(bucket, _)| bucket)
    }

    /// Whether the last member, at `place`, may travel with the others.
    fn may_join(&self, joined: &Bucket, message: &Message<'_>, place: usize) -> bool {
        let latency = (self.latency_bytes)(message.over);
        let moves = message.early || message.late;
        let in_loop = self.region != self.graph.body;
        let most = match (moves, in_loop) {
            (true, true) => u64::MAX,
            (true, false) => latency.saturating_mul(SATURATED),
            (false, _) => latency,
        };
        let others = &joined.members[..joined.members.len() - 1];
        let apart = !self.after(others).contains(&place);
        joined.sent <= most && apart && (moves || joined.ready <= joined.needed)
    }

    /// Places of the ops that depend on those at `members`.
    fn after(&self, members: &[usize]) -> BTreeSet<usize> {
        let mut after = BTreeSet::new();
        let mut values: BTreeSet<ValueId> = BTreeSet::new();
        for (place, op) in self.ops().iter().enumerate() {
            let node = self.graph.op(*op);
            let depends = node.operands.iter().any(|v| values.contains(v));
            if depends {
                after.insert(place);
            }
            if depends || members.contains(&place) {
                values.extend(&node.results);
            }
        }
        after
    }

    /// None if it is one whose operands are of several element types.
    fn message(&self, c: &'g Collective, node: &OpNode) -> Option<Message<'g>> {
        let dtype = self.graph.ty(node.operands[0]).dtype;
        let alike = node.operands.iter().all(|v| self.graph.ty(*v).dtype == dtype);
        alike.then(|| Message {
            kind: c.kind,
            over: &c.over,
            wire: c.wire,
            dtype,
            early: node.operands.iter().all(|v| self.declared.parameter(*v).is_some()),
            late: node.results.iter().all(|v| self.declared.leaves(*v)),
        })
    }

    /// One collective in the place of several; its results are theirs, so that nothing else changes.
    fn combined(&self, bucket: &Bucket) -> OpNode {
        let mut nodes: Vec<&OpNode> = bucket.members.iter().map(|p| self.graph.op(self.ops()[*p])).collect();
        // A stable sort: what is of no parameter stays in the order of the text, behind the others.
        nodes.sort_by_key(|node| self.declared.of_collective(node).unwrap_or(usize::MAX));
        let collectives: Vec<&Collective> = nodes.iter().filter_map(|node| as_collective(node)).collect();
        let mut causes: Vec<&str> = Vec::new();
        for c in &collectives {
            if !causes.contains(&c.cause.as_str()) {
                causes.push(&c.cause);
            }
        }
        let collective = Collective {
            parts: collectives.iter().flat_map(|c| c.parts.clone()).collect(),
            cause: causes.join(", ").into(),
            ..collectives[0].clone()
        };
        let values = |of: fn(&OpNode) -> &Vec<ValueId>| nodes.iter().flat_map(|n| of(n).clone()).collect();
        OpNode {
            operands: values(|n| &n.operands),
            results: values(|n| &n.results),
            origin: Origin { path: common_path(&nodes), ..nodes[0].origin.clone() },
            op: Op::Mesh(MeshOp::Collective(collective)),
        }
    }

    /// The ops of the region with `None` for the bucket.
    fn order(&self, bucket: &Bucket) -> Vec<Option<OpId>> {
        let node = self.graph.op(self.ops()[bucket.members[0]]);
        let message = as_collective(node).and_then(|c| self.message(c, node));
        let waits = message.is_some_and(|m| m.kind == CollectiveKind::AllGather && (m.early || !m.late));
        let place = if waits { bucket.needed } else { bucket.ready };
        let after = self.after(&bucket.members);
        let before = self.before(&bucket.members);
        let kept = |keep: &dyn Fn(usize) -> bool| -> Vec<Option<OpId>> {
            let others = (0..self.ops().len()).filter(|p| !bucket.members.contains(p));
            others.filter(|p| keep(*p)).map(|p| Some(self.ops()[p])).collect()
        };
        let first = |p: usize| (p < place && !after.contains(&p)) || before.contains(&p);
        [kept(&first), vec![None], kept(&|p| !first(p))].concat()
    }

    /// Places of the ops that those at `members` depend on.
    fn before(&self, members: &[usize]) -> BTreeSet<usize> {
        let mut before = BTreeSet::new();
        let mut values: BTreeSet<ValueId> = BTreeSet::new();
        for (place, op) in self.ops().iter().enumerate().rev() {
            let node = self.graph.op(*op);
            let wanted = node.results.iter().any(|v| values.contains(v));
            if wanted {
                before.insert(place);
            }
            if wanted || members.contains(&place) {
                values.extend(&node.operands);
            }
        }
        before
    }
}

/// The part of the model that all ops belong to: `layer.{i}` of `layer.{i}.attn` and `layer.{i}.mlp`.
fn common_path(nodes: &[&OpNode]) -> Name {
    let mut common: Vec<&str> = nodes[0].origin.path.as_str().split('.').collect();
    for node in nodes {
        let same = node.origin.path.as_str().split('.').zip(&common).take_while(|(a, b)| a == *b).count();
        common.truncate(same);
    }
    common.join(".").into()
}
