//! Propagation: how every value should lie, before anything is inserted.
//!
//! Each tensor axis of each value has a list of mesh axes. Rules set lists and close them; what is open takes over the lists
//! of its neighbours through the factors of ops, forwards and backwards, until nothing changes. A list only ever grows at its
//! end, no mesh axis comes twice in one value, and every walk is in the order of the text: the result is a function of
//! the graph and the rules.
//!
//! Source: Shardy's factor propagation (openxla.org/shardy, "Sharding Propagation"); by-axis rules take the place of its
//! user priorities, since named axes tell most values how to lie without any propagation.

use super::factors::{FactorKind, factors};
use super::rules::{ParamRule, Rules, Splits};
use crate::graph::{CompositeKind, Graph, MeshOp, Name, Op, OpId, OpNode, Output, RegionId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// How values should lie.
pub struct Targets {
    /// Lists of each value, by id.
    pub splits: Vec<Splits>,
    /// Axes whose lists are the rules' own.
    pub closed: Vec<BTreeSet<Name>>,
    /// Those of them that by-axis rules closed.
    pub ruled: Vec<BTreeSet<Name>>,
    /// Parameters, gradients and states from step to step, and what is cut or cast from them; with the lists they have where
    /// they are used.
    pub resting: BTreeMap<ValueId, Splits>,
    /// Why an axis of a value is split.
    pub why: BTreeMap<(ValueId, Name), String>,
}

/// Sweeps are few: a list grows at most once per mesh axis and travels any distance in one sweep.
const SWEEPS_MAX: usize = 32;

/// Runs the propagation.
pub fn targets(graph: &Graph, rules: &Rules) -> Targets {
    let n = graph.values.len();
    let targets = Targets {
        splits: vec![Splits::new(); n],
        closed: vec![BTreeSet::new(); n],
        ruled: vec![BTreeSet::new(); n],
        resting: BTreeMap::new(),
        why: BTreeMap::new(),
    };
    let mut p = Propagation { graph, rules, targets };
    p.seed_axes();
    p.seed_constraints(graph.body);
    p.seed_resting(graph.body);
    p.seed_outputs();
    for elementwise in [true, false] {
        for _ in 0..SWEEPS_MAX {
            if !p.sweep(graph.body, elementwise) {
                break;
            }
        }
    }
    p.targets
}

struct Propagation<'a> {
    graph: &'a Graph,
    rules: &'a Rules,
    targets: Targets,
}

impl Propagation<'_> {
    /// By-axis rules, wherever the sizes divide. A mesh axis that two axes of one value ask for is left to propagation.
    fn seed_axes(&mut self) {
        for i in 0..self.graph.values.len() {
            let ty = &self.graph.values[i].ty;
            let asked: Vec<(&Name, &Vec<Name>)> = ty
                .axes
                .iter()
                .filter_map(|a| {
                    self.rules.axes.get_key_value(&a.name).filter(|(_, over)| self.divides(a.size, over))
                })
                .collect();
            let contested = |m: &Name| asked.iter().filter(|(_, over)| over.contains(m)).count() > 1;
            for (axis, over) in &asked {
                let list: Vec<Name> = over.iter().take_while(|m| !contested(m)).cloned().collect();
                if list.len() == over.len() {
                    self.targets.closed[i].insert((*axis).clone());
                    self.targets.ruled[i].insert((*axis).clone());
                }
                if !list.is_empty() {
                    self.targets.splits[i].insert((*axis).clone(), list);
                    self.targets
                        .why
                        .insert((ValueId(i as u32), (*axis).clone()), format!("the rule for {axis}"));
                }
            }
        }
    }

    fn divides(&self, size: u64, over: &[Name]) -> bool {
        size % self.rules.mesh.ways(over) == 0
    }

    /// `role` and `values` rules, which came into the graph as ops.
    fn seed_constraints(&mut self, region: RegionId) {
        for &op in &self.graph.region(region).ops {
            let node = self.graph.op(op);
            if let Op::Mesh(MeshOp::Constrain { split }) = &node.op {
                for v in [node.operands[0], node.results[0]] {
                    for (axis, over) in split.iter().filter(|(a, _)| self.graph.ty(v).has(a)) {
                        self.close(
                            v,
                            axis,
                            over,
                            &format!("a rule for values, line {}", node.origin.line.line),
                        );
                    }
                }
            }
            for inner in walked(self.graph, &node.op) {
                self.seed_constraints(inner);
            }
        }
    }

    /// Sets a list for good; other axes of the value give way.
    fn close(&mut self, v: ValueId, axis: &Name, over: &[Name], why: &str) {
        let size = self.graph.ty(v).size_of(axis).unwrap_or(1);
        if !self.divides(size, over) {
            return;
        }
        let splits = &mut self.targets.splits[v.index()];
        for (other, list) in splits.iter_mut().filter(|(other, _)| *other != axis) {
            if let Some(at) = list.iter().position(|m| over.contains(m)) {
                list.truncate(at);
                self.targets.closed[v.index()].remove(other);
                self.targets.ruled[v.index()].remove(other);
            }
        }
        splits.retain(|_, list| !list.is_empty());
        if over.is_empty() {
            splits.remove(axis);
        } else {
            splits.insert(axis.clone(), over.to_vec());
            self.targets.why.insert((v, axis.clone()), why.to_string());
        }
        self.targets.closed[v.index()].insert(axis.clone());
        self.targets.ruled[v.index()].remove(axis);
    }

    /// A value that lies exactly so.
    fn rest(&mut self, v: ValueId, split: &Splits, why: &str) {
        let ty = self.graph.ty(v).clone();
        let mut own = Splits::new();
        for axis in &ty.axes {
            self.targets.why.remove(&(v, axis.name.clone()));
            if let Some(over) = split.get(&axis.name).filter(|over| self.divides(axis.size, over)) {
                own.insert(axis.name.clone(), over.clone());
                self.targets.why.insert((v, axis.name.clone()), why.to_string());
            }
        }
        self.targets.splits[v.index()] = own;
        self.targets.closed[v.index()] = ty.names().into_iter().collect();
        self.targets.ruled[v.index()].clear();
    }

    /// Parameters and states, and what is only cut, cast or moved of them; operands of updates.
    fn seed_resting(&mut self, region: RegionId) {
        let graph = self.graph;
        for &op in &graph.region(region).ops {
            let node = graph.op(op);
            match &node.op {
                Op::Param { path, .. } => {
                    let rule = self.param(path);
                    self.rest(node.results[0], &rule.at_rest, "the rules for parameters");
                    self.targets.resting.insert(node.results[0], rule.in_use);
                }
                Op::State { param, .. } => {
                    let rule = self.param(param);
                    self.rest(node.results[0], &rule.states, "the rules for parameters");
                    self.targets.resting.insert(node.results[0], rule.states);
                }
                // Data is read as rules say: what one has read whole costs no message.
                Op::Input { .. } => {
                    let all = graph.ty(node.results[0]).names();
                    self.targets.closed[node.results[0].index()].extend(all);
                }
                Op::Cast | Op::Transfer { .. } => self.rest_like(node.operands[0], node.results[0]),
                Op::Loop(l) => {
                    let args = graph.region(l.body).args[1..].to_vec();
                    for (operand, arg) in node.operands.iter().zip(args).skip(l.carries) {
                        self.rest_like(*operand, arg);
                    }
                    self.seed_resting(l.body);
                }
                Op::Update(u) => {
                    let rule = self.param(&u.param);
                    let body = graph.region(u.body);
                    let lying = 2 + u.states.len();
                    for arg in body.args[..lying].iter().chain(&body.results) {
                        self.rest(*arg, &rule.update, "the update");
                    }
                    self.rest(node.operands[1], &rule.update, "the update");
                    self.rest(node.results[0], &rule.at_rest, "the rules for parameters");
                    for state in &node.results[1..] {
                        self.rest(*state, &rule.states, "the rules for parameters");
                    }
                }
                _ => {}
            }
        }
    }

    fn rest_like(&mut self, from: ValueId, to: ValueId) {
        let Some(in_use) = self.targets.resting.get(&from).cloned() else { return };
        let split = self.targets.splits[from.index()].clone();
        self.rest(to, &split, "the rules for parameters");
        self.targets.resting.insert(to, in_use);
    }

    fn param(&self, path: &str) -> ParamRule {
        self.rules.params.get(path).cloned().unwrap_or_default()
    }

    /// What is stored lies as what it replaces; what is reported is whole.
    fn seed_outputs(&mut self) {
        let graph = self.graph;
        let mut rest: BTreeMap<Name, ValueId> = BTreeMap::new();
        for &op in &graph.region(graph.body).ops {
            let node = graph.op(op);
            match &node.op {
                Op::Param { path, .. } => rest.insert(path.clone(), node.results[0]),
                Op::State { param, kind } => rest.insert(format!("{param}.{kind}").into(), node.results[0]),
                _ => None,
            };
        }
        for (output, v) in graph.outputs.iter().zip(&graph.region(graph.body).results) {
            if let Output::Store(path) = output
                && let Some(source) = rest.get(path)
            {
                let split = self.targets.splits[source.index()].clone();
                self.rest(*v, &split, "what it replaces");
            }
        }
    }

    /// One walk forwards and one backwards; whether anything changed.
    fn sweep(&mut self, region: RegionId, elementwise: bool) -> bool {
        let ops = self.graph.region(region).ops.clone();
        let mut changed = false;
        for op in ops.iter().chain(ops.iter().rev()) {
            changed |= self.visit(*op, elementwise);
        }
        changed
    }

    fn visit(&mut self, op: OpId, elementwise: bool) -> bool {
        let graph = self.graph;
        let node = graph.op(op);
        let mut changed = false;
        for inner in walked(graph, &node.op) {
            changed |= self.tie(node, inner);
            changed |= self.sweep(inner, elementwise);
            changed |= self.tie(node, inner);
        }
        let moves_data = node.op.is_elementwise()
            || matches!(node.op, Op::Rename { .. } | Op::Broadcast | Op::Transfer { .. } | Op::Mesh(_));
        if elementwise && !moves_data {
            return changed;
        }
        for factor in factors(graph, op) {
            match factor.kind {
                FactorKind::Pass | FactorKind::Reduce(_) | FactorKind::Made => {}
                FactorKind::Lookup | FactorKind::Whole => continue,
            }
            let of = |values: &[ValueId], axes: &[Option<Name>]| -> Vec<(ValueId, Name)> {
                values.iter().zip(axes).filter_map(|(v, a)| Some((*v, a.clone()?))).collect()
            };
            let mut places = of(&node.operands, &factor.operands);
            places.extend(of(&node.results, &factor.results));
            changed |= self.unify(&places, &super::describe(node));
        }
        changed
    }

    /// Values that are the same tensor on both sides of a region's edge.
    fn tie(&mut self, node: &OpNode, inner: RegionId) -> bool {
        let graph = self.graph;
        let region = graph.region(inner);
        let mut same: Vec<Vec<ValueId>> = Vec::new();
        match &node.op {
            Op::Loop(l) => {
                for (i, operand) in node.operands.iter().enumerate() {
                    let mut tied = vec![*operand, region.args[i + 1]];
                    if i < l.carries {
                        tied.extend([region.results[i], node.results[i]]);
                    }
                    same.push(tied);
                }
                for i in l.carries..node.results.len() {
                    same.push(vec![region.results[i], node.results[i]]);
                }
            }
            // Values of an update lie as the rules for parameters say.
            Op::Update(_) => {}
            _ => {
                same.extend(node.operands.iter().zip(&region.args).map(|(a, b)| vec![*a, *b]));
                same.extend(node.results.iter().zip(&region.results).map(|(a, b)| vec![*a, *b]));
            }
        }
        let mut changed = false;
        for tied in same {
            for axis in graph.ty(tied[0]).names().into_iter().chain(graph.ty(tied[1]).names()) {
                let at: Vec<(ValueId, Name)> =
                    tied.iter().filter(|v| graph.ty(**v).has(&axis)).map(|v| (*v, axis.clone())).collect();
                changed |= self.unify(&at, "a loop");
            }
        }
        changed
    }

    /// Gives every open place as much of the longest list as fits.
    fn unify(&mut self, places: &[(ValueId, Name)], why: &str) -> bool {
        let lists = places.iter().filter(|(v, _)| !self.targets.resting.contains_key(v));
        let list = |(v, axis): &(ValueId, Name)| self.targets.splits[v.index()].get(axis).cloned();
        // Of lists of one length the first.
        let longest = lists
            .filter_map(list)
            .fold(Vec::new(), |best: Vec<Name>, next| if next.len() > best.len() { next } else { best });
        if longest.is_empty() {
            return false;
        }
        let mut changed = false;
        for (v, axis) in places {
            changed |= self.extend(*v, axis, &longest, why);
        }
        changed
    }

    fn extend(&mut self, v: ValueId, axis: &Name, list: &[Name], why: &str) -> bool {
        if self.targets.closed[v.index()].contains(axis) || self.targets.resting.contains_key(&v) {
            return false;
        }
        let size = self.graph.ty(v).size_of(axis).unwrap_or(1);
        let splits = &self.targets.splits[v.index()];
        let own = splits.get(axis).map_or(&[][..], Vec::as_slice);
        if !list.starts_with(own) {
            return false;
        }
        let taken = |m: &Name| splits.iter().any(|(other, over)| other != axis && over.contains(m));
        let mut fits = own.len();
        while fits < list.len() && !taken(&list[fits]) && self.divides(size, &list[..fits + 1]) {
            fits += 1;
        }
        if fits == own.len() {
            return false;
        }
        self.targets.splits[v.index()].insert(axis.clone(), list[..fits].to_vec());
        self.targets.why.entry((v, axis.clone())).or_insert_with(|| why.to_string());
        true
    }
}

/// The regions of an op that are sharded with what is around them.
pub(super) fn walked(graph: &Graph, op: &Op) -> Vec<RegionId> {
    match op {
        Op::Composite(c) => match &c.kind {
            CompositeKind::Attention(_) | CompositeKind::AttentionGrad(_) | CompositeKind::Custom(_) => {
                vec![c.meaning]
            }
            _ => graph.regions_of(op),
        },
        _ => graph.regions_of(op),
    }
}
