//! Backward loops compute again what is not to be saved.
//!
//! A forward loop stacks values for a backward loop over the same slices. A value that a rule or preset wants computed
//! again, or a short element-wise function of what the backward loop has anyway, is computed there, and its stack goes:
//!
//! ```text
//! forward body   g = dot x, w1;  u = dot x, w2;  s = sigmoid g;  a = g·s;  h = a·u      saved: g, u, s, a, h
//! afterwards                                                                            saved: g, u
//! ```
//! 1. One walk over the forward body finds for every value how the other loop can have it ([`Source`]): as a slice or an
//!    invariant that both loops take, from a stack, or by computing it again. Carries are always had from stacks.
//! 2. In the backward body, an op that read a stack's slice reads the copy of the op that makes the value. Copies are made
//!    where they are first needed, with what they need in front of them; a value that is needed and wanted saved gets a
//!    stack if it had none.
//! 3. Bodies come after the region around them, so that a loop which was copied into a backward body, to compute an inner
//!    loop's values again, is thinned out in its turn.
//!
//! Terminates: one walk over each loop, and copies go into deeper regions only. Numbers stay the same to the bit: the same
//! ops on the same operands.

use super::decide::{Choice, Decisions};
use super::residuals::{Residual, loop_of, residuals};
use crate::cost::product_flops;
use crate::graph::shape::stacked_type;
use crate::graph::{Builder, Graph, Loop, Op, OpId, OpNode, Phase, RegionId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Longest chain of element-wise ops computed again where nothing was decided.
const OPS_MAX: u32 = 8;
/// Expensive functions in it.
const EXPENSIVE_MAX: u32 = 1;

/// Floating-point operations added per step, by the rule that caused them; `None` is the preset.
pub type Work = BTreeMap<Option<usize>, u128>;

/// Computes again what a few element-wise ops can (the preset `auto`).
pub fn recompute_residuals(graph: Graph) -> Graph {
    recompute(graph, &mut Decisions::new()).0
}

/// See the module's text. Decisions for values that are copied hold for the copies too. Stacks nobody uses any more are
/// left for dead code elimination.
pub fn recompute(graph: Graph, decisions: &mut Decisions) -> (Graph, Work) {
    let body = graph.body;
    let mut pass = Pass { graph, decisions, work: Work::new() };
    pass.region(body, 1);
    (pass.graph, pass.work)
}

struct Pass<'d> {
    graph: Graph,
    decisions: &'d mut Decisions,
    work: Work,
}

/// How a value of the forward body is had in the other loop.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    /// The loop's index.
    Index,
    /// As a slice of this value around the loops.
    Slice(ValueId),
    /// As this value around the loops.
    Invariant(ValueId),
    /// As a slice of its stack, which is made if there is none.
    Saved,
    /// By computing it again.
    Recomputed(Recomputed),
}

/// What computing a value again takes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Recomputed {
    /// (ops, expensive ones) from what is at hand; `None` if an op among them is more than element-wise.
    cheap: Option<(u32, u32)>,
    /// Whether a rule or preset wants it, whatever it takes.
    wanted: bool,
}

type Sources = BTreeMap<ValueId, Source>;

impl Pass<'_> {
    fn region(&mut self, id: RegionId, times: u64) {
        for op in self.graph.region(id).ops.clone() {
            self.thin_out(id, op, times);
        }
        for op in self.graph.region(id).ops.clone() {
            if let Some(l) = loop_of(&self.graph, op) {
                self.region(l.body, times * l.trip);
            }
        }
    }

    fn thin_out(&mut self, around: RegionId, forward: OpId, times: u64) {
        let asked = residuals(&self.graph, around, forward);
        if asked.is_empty() {
            return;
        }
        let sources = self.sources(forward, &asked);
        let goes = |r: &&Residual| match sources.get(&r.inner) {
            Some(Source::Recomputed(how)) => how.wanted || how.cheap.is_some_and(|(ops, _)| ops > 0),
            Some(Source::Index | Source::Slice(_) | Source::Invariant(_) | Source::Saved) | None => false,
        };
        let goes: Vec<&Residual> = asked.iter().filter(goes).collect();
        let users: BTreeSet<OpId> = goes.iter().flat_map(|r| r.users.iter().copied()).collect();
        for user in users {
            let stacks: Vec<&Residual> = goes.iter().copied().filter(|r| r.users.contains(&user)).collect();
            self.rebuild(forward, user, &stacks, &sources, times);
        }
    }

    /// Sources of the values of a forward loop's body; values without one are missing.
    fn sources(&self, forward: OpId, asked: &[Residual]) -> Sources {
        let graph = &self.graph;
        let node = graph.op(forward);
        let Some(l) = node.op.as_loop() else { return Sources::new() };
        let body = graph.region(l.body);
        let saved: BTreeSet<ValueId> =
            body.results[l.carries..l.carries + l.stacked_outs].iter().copied().collect();
        let asked: BTreeSet<ValueId> = asked.iter().map(|r| r.inner).collect();
        let can_save = |v: ValueId| saved.contains(&v) || stacked_type(l, graph.ty(v)).is_ok();
        let mut found = BTreeMap::from([(body.args[0], Source::Index)]);
        for (i, (arg, operand)) in body.args[1..].iter().zip(&node.operands).enumerate() {
            if i >= l.carries + l.stacked {
                found.insert(*arg, Source::Invariant(*operand));
            } else if i >= l.carries {
                found.insert(*arg, Source::Slice(*operand));
            } else if can_save(*arg) {
                found.insert(*arg, Source::Saved);
            }
        }
        for &op in &body.ops {
            let node = graph.op(op);
            let reachable = node.operands.iter().all(|v| found.contains_key(v));
            let at_hand = |v: &ValueId| match found.get(v)? {
                Source::Index | Source::Slice(_) | Source::Invariant(_) => Some((0, 0)),
                Source::Saved => saved.contains(v).then_some((0, 0)),
                // What is computed again for its own sake costs nothing more.
                Source::Recomputed(how) if how.wanted && asked.contains(v) => Some((0, 0)),
                Source::Recomputed(how) => how.cheap,
            };
            let cheap = price(&node.op).and_then(|own| {
                node.operands
                    .iter()
                    .try_fold(own, |total, v| at_hand(v).map(|c| (total.0 + c.0, total.1 + c.1)))
            });
            let cheap = cheap.filter(|(ops, expensive)| *ops <= OPS_MAX && *expensive <= EXPENSIVE_MAX);
            for v in &node.results {
                let recomputed =
                    |wanted| reachable.then_some(Source::Recomputed(Recomputed { cheap, wanted }));
                let kept = || can_save(*v).then_some(Source::Saved);
                let source = match self.decisions.get(v).map(|d| d.choice) {
                    _ if is_free(&node.op) && cheap.is_some() => recomputed(false),
                    Some(Choice::Recompute) => recomputed(true).or_else(kept),
                    Some(Choice::Save | Choice::Offload) => kept().or_else(|| recomputed(true)),
                    None if cheap.is_some() || !saved.contains(v) => recomputed(false),
                    None => kept(),
                };
                found.extend(source.map(|s| (*v, s)));
            }
        }
        found
    }

    /// Replaces the slices of stacks in the user's body by copies of the ops that make them.
    fn rebuild(&mut self, forward: OpId, user: OpId, stacks: &[&Residual], sources: &Sources, times: u64) {
        let Some(l) = loop_of(&self.graph, user) else { return };
        let from = self.graph.clone();
        let operands = &from.op(user).operands;
        let args = &from.region(l.body).args;
        let slices: BTreeMap<ValueId, ValueId> = stacks
            .iter()
            .filter_map(|r| Some((args[1 + operands.iter().position(|v| *v == r.stack)?], r.inner)))
            .collect();
        let mut b = Builder::resume(std::mem::replace(&mut self.graph, Graph::new("")));
        b.graph.regions[l.body.index()].ops.clear();
        b.reopen(l.body);
        let mut copier = Copier {
            b,
            from: &from,
            forward,
            sources,
            user,
            made: BTreeMap::new(),
            decisions: self.decisions,
            work: &mut self.work,
            times: times * l.trip,
            rule: None,
        };
        for &op in &from.region(l.body).ops {
            for i in 0..from.op(op).operands.len() {
                if let Some(inner) = slices.get(&from.op(op).operands[i]) {
                    let value = copier.root(*inner);
                    copier.b.graph.ops[op.index()].operands[i] = value;
                }
            }
            copier.b.graph.regions[l.body.index()].ops.push(op);
        }
        for (i, result) in from.region(l.body).results.iter().enumerate() {
            if let Some(inner) = slices.get(result) {
                let value = copier.root(*inner);
                copier.b.graph.regions[l.body.index()].results[i] = value;
            }
        }
        let mut b = copier.b;
        b.leave();
        self.graph = b.finish();
        for r in stacks {
            drop_operand(&mut self.graph, user, r.stack);
        }
    }
}

/// Whether an op is made again wherever it is needed: it costs no memory traffic.
fn is_free(op: &Op) -> bool {
    matches!(op, Op::Const(_) | Op::Index { .. } | Op::Broadcast | Op::Rename { .. })
}

/// (ops, expensive ones) an op counts for, if it is no more than element-wise.
fn price(op: &Op) -> Option<(u32, u32)> {
    if is_free(op) {
        return Some((0, 0));
    }
    op.is_elementwise().then(|| (1, u32::from(op.is_expensive())))
}

/// Takes a stacked operand from a loop whose body no longer uses it.
fn drop_operand(graph: &mut Graph, user: OpId, stack: ValueId) {
    let Some(mut l) = loop_of(graph, user) else { return };
    let at = graph.op(user).operands.iter().position(|v| *v == stack).expect("the user takes the stack");
    graph.ops[user.index()].operands.remove(at);
    graph.regions[l.body.index()].args.remove(at + 1);
    l.stacked -= 1;
    graph.ops[user.index()].op = Op::Loop(l);
}

struct Copier<'a> {
    /// Open in the user's body.
    b: Builder,
    from: &'a Graph,
    forward: OpId,
    sources: &'a Sources,
    user: OpId,
    /// Values of the forward body, in the user's body.
    made: BTreeMap<ValueId, ValueId>,
    decisions: &'a mut Decisions,
    work: &'a mut Work,
    /// How often the user's body runs in a step.
    times: u64,
    /// The rule that wants the value being made.
    rule: Option<usize>,
}

impl Copier<'_> {
    /// The value of the forward body, in the user's body, wanted by the rule that decided it.
    fn root(&mut self, v: ValueId) -> ValueId {
        self.rule = self.decisions.get(&v).and_then(|d| d.rule);
        self.value(v)
    }

    fn value(&mut self, v: ValueId) -> ValueId {
        if let Some(copy) = self.made.get(&v) {
            return *copy;
        }
        match self.sources[&v] {
            Source::Index => {
                let l = self.user_loop();
                let index = self.b.graph.region(l.body).args[0];
                self.made.insert(v, index);
            }
            Source::Slice(outer) => self.operand(v, outer, true),
            Source::Invariant(outer) => self.operand(v, outer, false),
            Source::Saved => {
                let stack = stack_of(&mut self.b.graph, self.forward, v);
                self.operand(v, stack, true);
            }
            Source::Recomputed(_) => self.copy(v),
        }
        self.made[&v]
    }

    fn user_loop(&self) -> Loop {
        loop_of(&self.b.graph, self.user).expect("the user is a loop")
    }

    /// Copies the op that makes a value, what it needs before it.
    fn copy(&mut self, v: ValueId) {
        let forward = self.from.op(self.forward).op.as_loop().expect("residuals belong to a loop");
        let ops = &self.from.region(forward.body).ops;
        let made_by = |op: &&OpId| self.from.op(**op).results.contains(&v);
        let op = *ops.iter().find(made_by).expect("recomputed values are results of ops");
        for operand in self.from.op(op).operands.clone() {
            self.value(operand);
        }
        let copy = self.b.copy_op(self.from, op, &mut self.made);
        let rule = self.decisions.get(&v).and_then(|d| d.rule).or(self.rule);
        *self.work.entry(rule).or_default() += product_flops(self.from, op) * u128::from(self.times);
        self.adopt(op, copy);
    }

    /// The copy belongs to the backward pass; what was decided for the original's values holds for its own.
    fn adopt(&mut self, original: OpId, copy: OpId) {
        self.b.graph.ops[copy.index()].origin.phase = Phase::BackwardInput;
        let (old, new): (OpNode, OpNode) = (self.from.op(original).clone(), self.b.graph.op(copy).clone());
        self.inherit(&old.results, &new.results);
        let old_regions = self.from.regions_of(&old.op);
        for (old, new) in old_regions.into_iter().zip(self.b.graph.regions_of(&new.op)) {
            let args = self.b.graph.region(new).args.clone();
            self.inherit(&self.from.region(old).args, &args);
            let ops = self.b.graph.region(new).ops.clone();
            for (old, new) in self.from.region(old).ops.iter().zip(ops) {
                self.adopt(*old, new);
            }
        }
    }

    fn inherit(&mut self, old: &[ValueId], new: &[ValueId]) {
        for (old, new) in old.iter().zip(new) {
            if let Some(decision) = self.decisions.get(old).copied() {
                self.decisions.insert(*new, decision);
            }
        }
    }

    /// The user's argument for a value around the loops; a new one if it does not take it yet.
    fn operand(&mut self, v: ValueId, outer: ValueId, sliced: bool) {
        let mut l = self.user_loop();
        let operands = &self.b.graph.op(self.user).operands;
        let range =
            if sliced { l.carries..l.carries + l.stacked } else { l.carries + l.stacked..operands.len() };
        if let Some(at) = operands[range.clone()].iter().position(|o| *o == outer) {
            let arg = self.b.graph.region(l.body).args[range.start + at + 1];
            self.made.insert(v, arg);
            return;
        }
        let value = self.from.values[v.index()].clone();
        let arg = self.b.graph.add_value(&value.name, value.ty);
        self.b.graph.ops[self.user.index()].operands.insert(range.end, outer);
        self.b.graph.regions[l.body.index()].args.insert(range.end + 1, arg);
        if sliced {
            l.stacked += 1;
            self.b.graph.ops[self.user.index()].op = Op::Loop(l);
        }
        self.made.insert(v, arg);
    }
}

/// The stack of a value of a loop's body; a new stacked out if there is none.
fn stack_of(graph: &mut Graph, forward: OpId, v: ValueId) -> ValueId {
    let l = loop_of(graph, forward).expect("residuals belong to a loop");
    let outs = l.carries..l.carries + l.stacked_outs;
    if let Some(j) = outs.clone().find(|j| graph.region(l.body).results[*j] == v) {
        return graph.op(forward).results[j];
    }
    let ty = stacked_type(&l, graph.ty(v)).expect("checked when the source was chosen");
    let name = format!("{}.saved", graph.value_name(v));
    let stack = graph.add_value(&name, ty);
    graph.regions[l.body.index()].results.insert(outs.end, v);
    let node = &mut graph.ops[forward.index()];
    node.results.insert(outs.end, stack);
    node.op = Op::Loop(Loop { stacked_outs: l.stacked_outs + 1, ..l });
    stack
}
