//! What a backward loop can compute again from what is saved anyway is not saved.
//!
//! A forward loop stacks values for the backward loop of the same axis. Where such a value is a short element-wise function
//! of other stacked values, of the loop's own stacked operands (weights) and invariants, the backward loop computes it
//! from those, and the stack goes:
//!
//! ```text
//! forward body   g = dot x, w1;  u = dot x, w2;  s = sigmoid g;  a = g·s;  h = a·u      saved: g, u, s, a, h
//! afterwards                                                                            saved: g, u
//! ```
//! 1. One walk over the forward body decides for every value whether it can be recomputed: an element-wise op whose
//!    operands can, or are at hand in the other loop; at most [`OPS_MAX`] ops and [`EXPENSIVE_MAX`] expensive ones deep.
//! 2. Stacked outs that can be recomputed and are used by loops over the same slices only are rebuilt at the start of
//!    those loops' bodies.
//!
//! Numbers stay the same to the bit: the same ops on the same operands.

use super::cluster::is_expensive;
use crate::graph::{Graph, Loop, Op, OpId, OpNode, RegionId, ValueId};
use std::collections::BTreeMap;

/// Longest chain of ops computed again.
const OPS_MAX: u32 = 8;
/// Expensive functions in it.
const EXPENSIVE_MAX: u32 = 1;

/// See the module's text. Stacked outs nobody uses any more are left for dead code elimination.
pub fn recompute_residuals(mut graph: Graph) -> Graph {
    let body = graph.body;
    region(&mut graph, body);
    graph
}

fn region(graph: &mut Graph, id: RegionId) {
    let ops = graph.region(id).ops.clone();
    for &op in &ops {
        if let Op::Loop(l) = &graph.op(op).op {
            let inner = l.body;
            region(graph, inner);
        }
    }
    for &op in &ops {
        if matches!(graph.op(op).op, Op::Loop(_)) {
            thin_out(graph, id, op);
        }
    }
}

fn loop_of(graph: &Graph, op: OpId) -> Option<Loop> {
    match &graph.op(op).op {
        Op::Loop(l) => Some(l.clone()),
        Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Const(_)
        | Op::Index { .. }
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast
        | Op::Broadcast
        | Op::Rename { .. }
        | Op::Reduce { .. }
        | Op::Dot { .. }
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::RotatePairs { .. }
        | Op::Composite(_)
        | Op::Update(_) => None,
    }
}

/// How a value of the forward body is had in the other loop.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    /// By computing it again: (ops, expensive ones).
    Recomputed(u32, u32),
    /// The loop's index.
    Index,
    /// As a slice of this value around the loops.
    Slice(ValueId),
    /// As this value around the loops.
    Invariant(ValueId),
}

/// Sources of the values of a forward loop's body; values without one are missing.
fn sources(graph: &Graph, forward: OpId, l: &Loop) -> BTreeMap<ValueId, Source> {
    let node = graph.op(forward);
    let body = graph.region(l.body);
    let stacks = l.carries..l.carries + l.stacked_outs;
    let saved: BTreeMap<ValueId, ValueId> = stacks.map(|j| (body.results[j], node.results[j])).collect();
    let mut found = BTreeMap::from([(body.args[0], Source::Index)]);
    for (i, (arg, operand)) in body.args[1..].iter().zip(&node.operands).enumerate() {
        if i >= l.carries + l.stacked {
            found.insert(*arg, Source::Invariant(*operand));
        } else if i >= l.carries {
            found.insert(*arg, Source::Slice(*operand));
        } else if let Some(outer) = saved.get(arg) {
            found.insert(*arg, Source::Slice(*outer));
        }
    }
    for &op in &body.ops {
        let node = graph.op(op);
        let computed = price(&node.op).and_then(|(ops, expensive)| {
            let mut total = (ops, expensive);
            for v in &node.operands {
                if let Source::Recomputed(o, e) = found.get(v)? {
                    total = (total.0 + o, total.1 + e);
                }
            }
            (total.0 <= OPS_MAX && total.1 <= EXPENSIVE_MAX).then_some(Source::Recomputed(total.0, total.1))
        });
        for v in &node.results {
            let kept = saved.get(v).map(|outer| Source::Slice(*outer));
            if let Some(source) = computed.or(kept) {
                found.insert(*v, source);
            }
        }
    }
    found
}

/// (ops, expensive ones) an op counts for, if it may be computed again.
fn price(op: &Op) -> Option<(u32, u32)> {
    match op {
        Op::Const(_) | Op::Index { .. } | Op::Broadcast | Op::Rename { .. } => Some((0, 0)),
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast => {
            Some((1, u32::from(is_expensive(op))))
        }
        Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Reduce { .. }
        | Op::Dot { .. }
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::RotatePairs { .. }
        | Op::Loop(_)
        | Op::Composite(_)
        | Op::Update(_) => None,
    }
}

fn thin_out(graph: &mut Graph, around: RegionId, forward: OpId) {
    let Some(l) = loop_of(graph, forward) else { return };
    let sources = sources(graph, forward, &l);
    for j in l.carries..l.carries + l.stacked_outs {
        let inner = graph.region(l.body).results[j];
        let stack = graph.op(forward).results[j];
        // A value that is no op's result, such as the carry, has nothing to be computed from.
        let is_made = graph.region(l.body).ops.iter().any(|op| graph.op(*op).results.contains(&inner));
        let recomputed = matches!(sources.get(&inner), Some(Source::Recomputed(ops, _)) if *ops > 0);
        if !is_made || !recomputed || graph.region(around).results.contains(&stack) {
            continue;
        }
        let users: Vec<OpId> = graph
            .region(around)
            .ops
            .iter()
            .copied()
            .filter(|op| graph.op(*op).operands.contains(&stack))
            .collect();
        if !users.is_empty() && users.iter().all(|u| takes_slices_only(graph, *u, stack, &l)) {
            for user in users {
                rebuild(graph, &l, &sources, user, stack, inner);
            }
        }
    }
}

/// Whether an op is a loop over the same slices that takes the stack as a stacked operand, once.
fn takes_slices_only(graph: &Graph, user: OpId, stack: ValueId, forward: &Loop) -> bool {
    let Some(l) = loop_of(graph, user) else { return false };
    let operands = &graph.op(user).operands;
    let times = operands.iter().filter(|v| **v == stack).count();
    let sliced = operands[l.carries..l.carries + l.stacked].contains(&stack);
    times == 1 && sliced && l.axis == forward.axis && l.trip == forward.trip && l.block == forward.block
}

/// Replaces the slice of `stack` in the user's body by ops that compute it.
fn rebuild(
    graph: &mut Graph,
    forward: &Loop,
    sources: &BTreeMap<ValueId, Source>,
    user: OpId,
    stack: ValueId,
    inner: ValueId,
) {
    let mut copier =
        Copier { graph, forward: forward.clone(), sources, user, made: BTreeMap::new(), ops: Vec::new() };
    let value = copier.value(inner);
    let mut ops = copier.ops;
    let Some(mut l) = loop_of(graph, user) else { return };
    let at = graph.op(user).operands.iter().position(|v| *v == stack).expect("the user takes the stack");
    graph.ops[user.index()].operands.remove(at);
    l.stacked -= 1;
    let body = &mut graph.regions[l.body.index()];
    let arg = body.args.remove(at + 1);
    ops.append(&mut body.ops);
    body.ops = ops;
    for v in &mut body.results {
        if *v == arg {
            *v = value;
        }
    }
    for op in body.ops.clone() {
        for v in &mut graph.ops[op.index()].operands {
            if *v == arg {
                *v = value;
            }
        }
    }
    graph.ops[user.index()].op = Op::Loop(l);
}

struct Copier<'a> {
    graph: &'a mut Graph,
    forward: Loop,
    sources: &'a BTreeMap<ValueId, Source>,
    user: OpId,
    made: BTreeMap<ValueId, ValueId>,
    ops: Vec<OpId>,
}

impl Copier<'_> {
    /// The value of the forward body, in the user's body.
    fn value(&mut self, v: ValueId) -> ValueId {
        if let Some(copy) = self.made.get(&v) {
            return *copy;
        }
        let copy = match self.sources[&v] {
            Source::Index => {
                let l = loop_of(self.graph, self.user).expect("the user is a loop");
                self.graph.region(l.body).args[0]
            }
            Source::Slice(outer) => self.operand(v, outer, true),
            Source::Invariant(outer) => self.operand(v, outer, false),
            Source::Recomputed(..) => self.copy(v),
        };
        self.made.insert(v, copy);
        copy
    }

    fn copy(&mut self, v: ValueId) -> ValueId {
        let ops = &self.graph.region(self.forward.body).ops;
        let op = ops.iter().copied().find(|op| self.graph.op(*op).results.contains(&v));
        let node = self.graph.op(op.expect("recomputed values are results of ops")).clone();
        let operands = node.operands.iter().map(|o| self.value(*o)).collect();
        let value = self.graph.values[v.index()].clone();
        let result = self.graph.add_value(&value.name, value.ty);
        let id = OpId(self.graph.ops.len() as u32);
        self.graph.ops.push(OpNode { operands, results: vec![result], ..node });
        self.ops.push(id);
        result
    }

    /// The user's argument for a value around the loops; a new one if it does not take it yet.
    fn operand(&mut self, v: ValueId, outer: ValueId, sliced: bool) -> ValueId {
        let mut l = loop_of(self.graph, self.user).expect("the user is a loop");
        let operands = &self.graph.op(self.user).operands;
        let range =
            if sliced { l.carries..l.carries + l.stacked } else { l.carries + l.stacked..operands.len() };
        if let Some(at) = operands[range.clone()].iter().position(|o| *o == outer) {
            return self.graph.region(l.body).args[range.start + at + 1];
        }
        let value = self.graph.values[v.index()].clone();
        let arg = self.graph.add_value(&value.name, value.ty);
        self.graph.ops[self.user.index()].operands.insert(range.end, outer);
        self.graph.regions[l.body.index()].args.insert(range.end + 1, arg);
        if sliced {
            l.stacked += 1;
            self.graph.ops[self.user.index()].op = Op::Loop(l);
        }
        arg
    }
}
