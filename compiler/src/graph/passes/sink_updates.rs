//! Moves what is done with each slice of a loop's stacked results into the loop, above all the optimizer's updates into the
//! backward loop: then a layer's gradient is used up in the iteration that makes it, and the gradients of all layers
//! together are never there.
//!
//! For every loop of the body that takes whole slices:
//! 1. In op order, an op behind the loop *can sink* if it treats the loop's axis element by element, takes a stacked result
//!    of the loop or of an op that can sink, and takes nothing else that depends on the loop. An update by a scalar of all
//!    gradients (a clipping factor) can't.
//! 2. A stacked result *vanishes* if all who read it sink. Ops that take a result that does not vanish are left where they
//!    are, which may keep other results from vanishing; repeated until nothing changes, at most once per result.
//! 3. If what the sunk ops hand on is smaller than what vanishes, not counting what is stored over its old value: what they
//!    take from behind the loop moves before it, they themselves are appended to the loop's body without the axis, and
//!    values others read become stacked results under their old ids.
//!
//! Every element is computed by the same operations on the same numbers.

use super::drop_dead;
use crate::graph::{Graph, Loop, Name, Op, OpId, OpNode, Output, Region, RegionId, ValueId, shape};
use std::collections::{BTreeMap, BTreeSet};

/// See the module's text.
pub fn sink_updates(mut graph: Graph) -> Graph {
    for op in graph.region(graph.body).ops.clone() {
        let Op::Loop(l) = graph.op(op).op.clone() else { continue };
        if l.block.is_none() {
            let sunk = what_sinks(&graph, op, &l);
            if !sunk.is_empty() {
                graph = sink_into(graph, op, &sunk);
            }
        }
    }
    drop_dead(&mut graph);
    graph
}

/// Ops behind the loop that go into it, in order.
fn what_sinks(graph: &Graph, at: OpId, l: &Loop) -> Vec<OpId> {
    let body = graph.region(graph.body);
    let node = graph.op(at);
    let stacked: BTreeSet<ValueId> =
        node.results[l.carries..l.carries + l.stacked_outs].iter().copied().collect();
    let mut depends: BTreeSet<ValueId> = node.results.iter().copied().collect();
    // Stacked results of the loop each sunk value is made from.
    let mut roots: BTreeMap<ValueId, BTreeSet<ValueId>> =
        stacked.iter().map(|v| (*v, BTreeSet::from([*v]))).collect();
    let mut sunk: Vec<OpId> = Vec::new();
    for &op in body.ops.iter().skip_while(|op| **op != at).skip(1) {
        let node = graph.op(op);
        if !node.operands.iter().any(|v| depends.contains(v)) {
            continue;
        }
        depends.extend(&node.results);
        let sinks = node.operands.iter().all(|v| !depends.contains(v) || roots.contains_key(v));
        if sinks && is_parallel(graph, node, &l.axis) {
            let of: BTreeSet<ValueId> =
                node.operands.iter().filter_map(|v| roots.get(v)).flatten().copied().collect();
            roots.extend(node.results.iter().map(|r| (*r, of.clone())));
            sunk.push(op);
        }
    }
    let mut vanish = stacked;
    loop {
        let in_loop: BTreeSet<OpId> = sunk.iter().copied().collect();
        let read_elsewhere = |v: &ValueId| {
            body.results.contains(v)
                || body.ops.iter().any(|op| !in_loop.contains(op) && graph.op(*op).operands.contains(v))
        };
        let stays: Vec<ValueId> = vanish.iter().copied().filter(read_elsewhere).collect();
        if stays.is_empty() {
            break;
        }
        vanish.retain(|v| !stays.contains(v));
        sunk.retain(|op| roots[&graph.op(*op).results[0]].is_subset(&vanish));
    }
    vanish.retain(|v| sunk.iter().any(|op| graph.op(*op).operands.contains(v)));
    let bytes = |values: &mut dyn Iterator<Item = ValueId>| values.map(|v| graph.ty(v).bytes()).sum::<u64>();
    let handed_on = handed_on(graph, &sunk);
    let stored = |v: &ValueId| {
        let outputs = body.results.iter().zip(&graph.outputs);
        outputs.into_iter().any(|(r, o)| r == v && matches!(o, Output::Store(_)))
    };
    let new = bytes(&mut handed_on.into_iter().filter(|v| !stored(v)));
    if new < bytes(&mut vanish.iter().copied()) { sunk } else { Vec::new() }
}

/// Results of the ops that others read, in order.
fn handed_on(graph: &Graph, sunk: &[OpId]) -> Vec<ValueId> {
    let body = graph.region(graph.body);
    let results = sunk.iter().flat_map(|op| graph.op(*op).results.iter().copied());
    let read = |v: &ValueId| {
        body.results.contains(v)
            || body.ops.iter().any(|op| !sunk.contains(op) && graph.op(*op).operands.contains(v))
    };
    results.filter(read).collect()
}

/// Whether an op can be done for one element of the axis at a time, all of its results having the axis.
fn is_parallel(graph: &Graph, node: &OpNode, axis: &Name) -> bool {
    let without = |axes: &[Name]| !axes.contains(axis);
    let parallel = match &node.op {
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast | Op::Broadcast => true,
        Op::Reduce { axes, .. } => without(axes),
        Op::Dot { over } => without(over),
        Op::Rename { pairs } => pairs.iter().all(|(old, new)| old != axis && new != axis),
        Op::Slice { from, to, .. } => from != axis && to != axis,
        Op::Concat { parts, axis: whole } => whole != axis && without(parts),
        Op::Update(u) => {
            let body = graph.region(u.body);
            body.ops.iter().all(|op| is_parallel_inside(graph, graph.op(*op), axis))
        }
        Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Const(_)
        | Op::Index { .. }
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::RotatePairs { .. }
        | Op::Transfer { .. }
        | Op::Mesh(_)
        | Op::CumSum { .. }
        | Op::Loop(_)
        | Op::Composite(_) => false,
    };
    parallel && node.results.iter().all(|v| graph.ty(*v).has(axis))
}

/// As [`is_parallel`], for an op of an update's rule, which may also work on values without the axis.
fn is_parallel_inside(graph: &Graph, node: &OpNode, axis: &Name) -> bool {
    let touches = node.operands.iter().chain(&node.results).any(|v| graph.ty(*v).has(axis));
    let plain = matches!(&node.op, Op::Const(_)) || matches!(&node.op, Op::Index { axis: a } if a != axis);
    plain
        || is_parallel(graph, node, axis)
        || (!touches && !matches!(node.op, Op::Loop(_) | Op::Composite(_)))
}

/// Puts the ops at the end of the loop's body.
fn sink_into(graph: Graph, at: OpId, sunk: &[OpId]) -> Graph {
    let handed_on = handed_on(&graph, sunk);
    let mut into = Into::new(graph, at);
    into.move_before(sunk);
    for op in sunk {
        into.sink(*op);
    }
    into.finish(sunk, &handed_on)
}

/// A loop being extended.
struct Into {
    graph: Graph,
    at: OpId,
    l: Loop,
    /// Value of the outer region to the value that stands for it, or for its slice, in the body.
    inside: BTreeMap<ValueId, ValueId>,
}

impl Into {
    fn new(graph: Graph, at: OpId) -> Into {
        let node = graph.op(at);
        let Op::Loop(l) = node.op.clone() else { unreachable!("chosen as a loop") };
        let Region { args, results, .. } = graph.region(l.body);
        let mut inside: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let outs = l.carries..l.carries + l.stacked_outs;
        inside.extend(node.results[outs.clone()].iter().copied().zip(results[outs].iter().copied()));
        // A carry's argument is not its initial value, and an invariant with the axis is no slice.
        for (i, (operand, arg)) in node.operands.iter().zip(&args[1..]).enumerate().skip(l.carries) {
            if i < l.carries + l.stacked || !graph.ty(*operand).has(&l.axis) {
                inside.insert(*operand, *arg);
            }
        }
        Into { graph, at, l, inside }
    }

    /// Moves what the ops take from behind the loop, and what that is made from, before it.
    fn move_before(&mut self, sunk: &[OpId]) {
        let body = self.graph.body;
        let ops = self.graph.region(body).ops.clone();
        let place = ops.iter().position(|op| *op == self.at).expect("the loop is in the body");
        let mut wanted: BTreeSet<ValueId> =
            sunk.iter().flat_map(|op| self.graph.op(*op).operands.iter().copied()).collect();
        let mut moved: BTreeSet<OpId> = BTreeSet::new();
        for op in ops[place + 1..].iter().rev().filter(|op| !sunk.contains(op)) {
            if self.graph.op(*op).results.iter().any(|r| wanted.contains(r)) {
                wanted.extend(&self.graph.op(*op).operands);
                moved.insert(*op);
            }
        }
        let mut order = ops[..place].to_vec();
        order.extend(ops[place + 1..].iter().filter(|op| moved.contains(op)));
        order.push(self.at);
        order.extend(ops[place + 1..].iter().filter(|op| !moved.contains(op) && !sunk.contains(op)));
        self.graph.regions[body.index()].ops = order;
    }

    /// The value in the body that stands for one outside, which becomes an operand of the loop unless it is one.
    fn argument(&mut self, outside: ValueId) -> ValueId {
        if let Some(found) = self.inside.get(&outside) {
            return *found;
        }
        let ty = self.graph.ty(outside).clone();
        let name = self.graph.value_name(outside).clone();
        let slice = ty.without(std::slice::from_ref(&self.l.axis));
        let arg = self.graph.add_value(&name, slice);
        let args = &mut self.graph.regions[self.l.body.index()].args;
        let operands = &mut self.graph.ops[self.at.index()].operands;
        if ty.has(&self.l.axis) {
            let end = self.l.carries + self.l.stacked;
            args.insert(1 + end, arg);
            operands.insert(end, outside);
            self.l.stacked += 1;
        } else {
            args.push(arg);
            operands.push(outside);
        }
        self.inside.insert(outside, arg);
        arg
    }

    fn sink(&mut self, op: OpId) {
        let node = self.graph.op(op).clone();
        let operands: Vec<ValueId> = node.operands.iter().map(|v| self.argument(*v)).collect();
        let results: Vec<ValueId> = node
            .results
            .iter()
            .map(|v| {
                let slice = self.graph.ty(*v).without(std::slice::from_ref(&self.l.axis));
                let name = self.graph.value_name(*v).clone();
                self.graph.add_value(&name, slice)
            })
            .collect();
        self.inside.extend(node.results.iter().copied().zip(results.iter().copied()));
        if let Op::Update(u) = &node.op {
            self.drop_axis(u.body);
        }
        let id = OpId(self.graph.ops.len() as u32);
        self.graph.ops.push(OpNode { operands, results, ..node });
        self.graph.regions[self.l.body.index()].ops.push(id);
    }

    /// Takes the axis from every value of a rule that no other op holds any more.
    fn drop_axis(&mut self, region: RegionId) {
        let Region { args, ops, .. } = self.graph.region(region).clone();
        let made = ops.iter().flat_map(|op| self.graph.op(*op).results.clone());
        let values: Vec<ValueId> = args.into_iter().chain(made).collect();
        for v in values {
            let ty = &mut self.graph.values[v.index()].ty;
            *ty = ty.without(std::slice::from_ref(&self.l.axis));
        }
    }

    /// Values others read become stacked results.
    fn finish(mut self, sunk: &[OpId], handed_on: &[ValueId]) -> Graph {
        debug_assert!(!sunk.is_empty());
        for v in handed_on {
            let end = self.l.carries + self.l.stacked_outs;
            let slice = self.inside[v];
            let ty = shape::stacked_type(&self.l, self.graph.ty(slice)).expect("the slice lacks the axis");
            debug_assert!(ty.same_as(self.graph.ty(*v)));
            self.graph.values[v.index()].ty = ty;
            self.graph.regions[self.l.body.index()].results.insert(end, slice);
            self.graph.ops[self.at.index()].results.insert(end, *v);
            self.l.stacked_outs += 1;
        }
        self.graph.ops[self.at.index()].op = Op::Loop(self.l);
        self.graph
    }
}
