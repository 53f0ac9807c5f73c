//! What must hold of a sharded graph: every op's operands and results lie as one of its rules says.
//!
//! * Every axis of a factor is split the same way, over the same mesh axes in the same order, wherever it occurs; what must
//!   be whole is; and a mesh axis splits one factor of an op at most.
//! * A result is partial over a mesh axis if the op's split factor sums there, or if its operands are and the op passes that
//!   on; and never otherwise. So no partial value reaches an op that is not linear in it.
//! * A loop's or update's region sees its operands as they lie; of a stacked value it sees one slice.
//! * Only a reshard changes how a value lies, and it makes nothing partial.
//! * What is reported is whole; what is stored lies as its source.

use super::factors::{Factor, factors, passes_partial};
use crate::graph::shape::op_name;
use crate::graph::verify::{Place, Violation};
use crate::graph::{
    Graph, Loop, MeshOp, Name, Op, OpId, OpNode, Output, ReduceOp, RegionId, Sharding, Split, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is wrong with how a graph at stage sharded lies on its mesh; empty if it is sound. The graph's types are
/// known to be.
pub fn check(graph: &Graph) -> Vec<Violation> {
    let mut found = check_ops(graph);
    found.extend(outputs(graph));
    found
}

/// As [`check`], but results may lie in any way.
pub fn check_ops(graph: &Graph) -> Vec<Violation> {
    let mut checker = Checker { graph, found: Vec::new() };
    checker.region(graph.body);
    checker.found
}

fn outputs(graph: &Graph) -> Vec<Violation> {
    let body = graph.region(graph.body);
    let mut sources: BTreeMap<Name, &Sharding> = BTreeMap::new();
    for node in body.ops.iter().map(|op| graph.op(*op)) {
        match &node.op {
            Op::Param { path, .. } => {
                sources.insert(path.clone(), graph.sharding(node.results[0]));
            }
            Op::State { param, kind } => {
                sources.insert(format!("{param}.{kind}").into(), graph.sharding(node.results[0]));
            }
            _ => {}
        }
    }
    let whole = Sharding::whole();
    let mut found = Vec::new();
    for (i, (output, value)) in graph.outputs.iter().zip(&body.results).enumerate() {
        let (what, expected) = match output {
            Output::Report(name) => (name, &whole),
            Output::Store(name) => (name, *sources.get(name).unwrap_or(&&whole)),
        };
        let lies = graph.sharding(*value);
        if lies != expected {
            let message = format!("{what} lies as {lies}, and has to lie as {expected}");
            found.push(Violation { place: Place::Result(graph.body, i), message });
        }
    }
    found
}

struct Checker<'a> {
    graph: &'a Graph,
    found: Vec<Violation>,
}

impl Checker<'_> {
    fn report(&mut self, op: OpId, message: String) {
        self.found.push(Violation { place: Place::Op(op), message });
    }

    fn region(&mut self, id: RegionId) {
        let graph = self.graph;
        for (i, arg) in graph.region(id).args.iter().enumerate() {
            if let Some(message) = graph.sharding(*arg).problem(graph.ty(*arg), &graph.mesh) {
                self.found.push(Violation { place: Place::Arg(id, i), message });
            }
        }
        for op in &graph.region(id).ops {
            self.op(*op);
        }
    }

    fn op(&mut self, op: OpId) {
        let graph = self.graph;
        let node = graph.op(op);
        let before = self.found.len();
        for value in &node.results {
            if let Some(message) = graph.sharding(*value).problem(graph.ty(*value), &graph.mesh) {
                self.report(op, format!("%{}: {message}", graph.value_name(*value)));
            }
        }
        if self.found.len() > before {
            return;
        }
        match &node.op {
            Op::Loop(l) => {
                self.looped(op, node, l);
                self.region(l.body);
            }
            Op::Update(u) => {
                let body = graph.region(u.body);
                self.same(op, &node.operands, &body.args);
                self.same(op, &node.results, &body.results);
                self.region(u.body);
            }
            Op::Mesh(MeshOp::Reshard { .. }) => {
                let [from, to] = [node.operands[0], node.results[0]].map(|v| graph.sharding(v));
                if to.partial.iter().any(|(axis, op)| from.partial.get(axis) != Some(op)) {
                    self.report(op, format!("a reshard from {from} makes nothing partial, as {to} is"));
                }
            }
            _ => self.ruled(op, node),
        }
    }

    /// Each pair of values lies the same way.
    fn same(&mut self, op: OpId, outside: &[ValueId], inside: &[ValueId]) {
        let graph = self.graph;
        for (a, b) in outside.iter().zip(inside) {
            if graph.sharding(*a) != graph.sharding(*b) {
                let [a, b] = [a, b].map(|v| format!("%{} {}", graph.value_name(*v), graph.sharding(*v)));
                self.report(op, format!("{a} is the same as {b}, and has to lie the same way"));
            }
        }
    }

    /// An op with factors.
    fn ruled(&mut self, op: OpId, node: &OpNode) {
        let graph = self.graph;
        let factors = factors(graph, op);
        let name = op_name(&node.op);
        let mut splits: Vec<(&Factor, &Split)> = Vec::new();
        for factor in &factors {
            match split_of(graph, node, factor) {
                Ok(None) => {}
                Ok(Some(split)) => {
                    if let Some(message) = unfit(factor, split, graph) {
                        self.report(op, format!("{name}: {message}"));
                    }
                    splits.push((factor, split));
                }
                Err(message) => self.report(op, format!("{name}: {message}")),
            }
        }
        for axis in &graph.mesh.axes {
            let by: Vec<&Factor> =
                splits.iter().filter(|(_, s)| s.over.contains(&axis.name)).map(|(f, _)| *f).collect();
            if by.len() > 1 {
                let message = format!("{name}: {} splits {} and {}", axis.name, called(by[0]), called(by[1]));
                self.report(op, message);
            } else if let Err(message) = self.terms(op, node, &axis.name, by.first().copied()) {
                self.report(op, format!("{name}: {message}"));
            }
        }
    }

    /// Results are terms over a mesh axis exactly where the rules say so.
    fn terms(&self, op: OpId, node: &OpNode, axis: &Name, split: Option<&Factor>) -> Result<(), String> {
        let graph = self.graph;
        let kind = |value: &ValueId| graph.sharding(*value).partial.get(axis).copied();
        let operands: Vec<Option<ReduceOp>> = node.operands.iter().map(kind).collect();
        let kinds: BTreeSet<ReduceOp> = operands.iter().flatten().copied().collect();
        let passed = match (kinds.first(), split) {
            (None, _) => None,
            (Some(_), Some(factor)) => {
                return Err(format!("{axis} splits {} while an operand is partial over it", called(factor)));
            }
            (Some(reduction), None) => {
                let flags: Vec<bool> = operands.iter().map(Option::is_some).collect();
                if kinds.len() > 1 || !passes_partial(graph, op, &flags, *reduction) {
                    let names: Vec<String> = node
                        .operands
                        .iter()
                        .zip(&flags)
                        .filter(|(_, partial)| **partial)
                        .map(|(v, _)| format!("%{}", graph.value_name(*v)))
                        .collect();
                    return Err(format!(
                        "takes no terms of a {} over {axis}: reduce {} first",
                        reduction.name(),
                        names.join(" and ")
                    ));
                }
                Some(*reduction)
            }
        };
        for (i, value) in node.results.iter().enumerate() {
            let expected = passed.or_else(|| split.and_then(|f| f.partial[i]));
            let says = |p: Option<ReduceOp>| match p {
                Some(op) => format!("partial {} over {axis}", op.name()),
                None => format!("not partial over {axis}"),
            };
            if kind(value) != expected {
                return Err(format!(
                    "%{} is {}, not {}",
                    graph.value_name(*value),
                    says(expected),
                    says(kind(value))
                ));
            }
        }
        Ok(())
    }

    /// What goes into and comes out of a loop lies as in its body.
    fn looped(&mut self, op: OpId, node: &OpNode, l: &Loop) {
        let graph = self.graph;
        let body = graph.region(l.body);
        let index = graph.sharding(body.args[0]);
        if !index.is_whole() {
            self.report(op, format!("the loop's index lies as {index}"));
        }
        let (carries, stacked) = (l.carries, l.carries + l.stacked);
        self.same(op, &node.operands[..carries], &body.args[1..=carries]);
        self.same(op, &node.operands[..carries], &body.results[..carries]);
        self.same(op, &node.results[..carries], &body.results[..carries]);
        self.same(op, &node.operands[stacked..], &body.args[1 + stacked..]);
        let outs = carries + l.stacked_outs;
        self.same(op, &node.results[outs..], &body.results[outs..]);
        let ins = node.operands[carries..stacked].iter().zip(&body.args[1 + carries..]);
        let outs = node.results[carries..outs].iter().zip(&body.results[carries..]);
        let mut splits: BTreeSet<Option<&Split>> = BTreeSet::new();
        for (whole, slice) in ins.chain(outs) {
            splits.insert(graph.sharding(*whole).split.get(&l.axis));
            match slice_of(l, graph.sharding(*whole)) {
                Ok(lies) if lies == *graph.sharding(*slice) => {}
                Ok(lies) => {
                    let (shown, is) = (graph.value_name(*slice), graph.sharding(*slice));
                    self.report(op, format!("%{shown} is a slice and has to lie as {lies}, not {is}"));
                }
                Err(message) => self.report(op, format!("%{}: {message}", graph.value_name(*whole))),
            }
        }
        if splits.len() > 1 {
            self.report(op, format!("stacked values are split along {} in different ways", l.axis));
        }
        if let Some(Some(split)) = splits.first()
            && is_contiguous(l, split)
            && !super::separable(graph, node, l)
        {
            let axis = &l.axis;
            self.report(op, format!("{axis} is split before it is cut into blocks, which are not alike"));
        }
    }
}

/// How all ends of a factor are split.
fn split_of<'a>(graph: &'a Graph, node: &OpNode, factor: &Factor) -> Result<Option<&'a Split>, String> {
    let ends = node.operands.iter().zip(&factor.operands).chain(node.results.iter().zip(&factor.results));
    let mut first: Option<(ValueId, Option<&Split>)> = None;
    for (value, axis) in ends {
        let Some(axis) = axis else { continue };
        let split = graph.sharding(*value).split.get(axis);
        match first {
            None => first = Some((*value, split)),
            Some((_, other)) if other == split => {}
            Some((other, _)) => {
                let [a, b] =
                    [other, *value].map(|v| format!("%{} {}", graph.value_name(v), graph.sharding(v)));
                return Err(format!("{axis} is split differently in {a} and {b}"));
            }
        }
    }
    Ok(first.and_then(|(_, split)| split))
}

/// Why a factor can't be split like this.
fn unfit(factor: &Factor, split: &Split, graph: &Graph) -> Option<String> {
    if !factor.splits() {
        return Some(format!("{} must be whole, and is split over {}", called(factor), spaced(&split.over)));
    }
    let ways = graph.mesh.ways(&split.over) * split.blocks;
    if (factor.size / ways).is_multiple_of(factor.grain) {
        None
    } else {
        let (part, grain) = (factor.size / ways, factor.grain);
        Some(format!("parts of {} have {part} elements, no multiple of {grain}", called(factor)))
    }
}

fn called(factor: &Factor) -> String {
    let name = factor.operands.iter().chain(&factor.results).flatten().next();
    format!("{}={}", name.map_or("", Name::as_str), factor.size)
}

fn spaced(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
}

/// How one slice of a stacked value lies.
///
/// # Errors
/// The loop can't slice what lies like this.
pub fn slice_of(l: &Loop, stacked: &Sharding) -> Result<Sharding, String> {
    let Some(split) = stacked.split.get(&l.axis) else { return Ok(stacked.clone()) };
    if l.block.is_none() {
        return Err(format!("a loop over {} takes one element at a time, so it must be whole", l.axis));
    }
    let blocks = match split.blocks {
        1 => 1,
        blocks if blocks.is_multiple_of(l.trip) => blocks / l.trip,
        blocks => {
            return Err(format!("a loop of {} turns does not fit {} blocks of {}", l.trip, blocks, l.axis));
        }
    };
    let mut slice = stacked.clone();
    slice.split.insert(l.axis.clone(), Split { over: split.over.clone(), blocks });
    Ok(slice)
}

/// Whether a rank's slices are not its parts of the slices: the axis was split before it was cut into blocks.
fn is_contiguous(l: &Loop, split: &Split) -> bool {
    l.trip > 1 && split.blocks == 1
}
