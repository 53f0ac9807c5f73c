//! Random shardings: every op split along factors drawn by lot, with reshards wherever that does not fit together.
//!
//! Nothing here is sensible; the point is that it must not matter. An op's operands are brought to what the draw asks for, its
//! results lie as `sharding::factors` says, terms of sums travel on through linear ops or are reduced, by lot.

use std::collections::BTreeMap;

use mlc::graph::{
    Builder, Graph, Loop, Mesh, MeshOp, Name, Op, OpId, OpNode, Output, Region, Sharding, Type, ValueId,
};
use mlc::sharding::factors::{Factor, factors, passes_partial};
use mlc::sharding::separable;

use crate::random_graph::Random;

/// The graph on the mesh, at stage sharded.
pub fn random_sharding(graph: &Graph, mesh: &Mesh, random: &mut Random) -> Graph {
    let mut b = Builder::like(graph);
    b.graph.mesh = mesh.clone();
    let mut sharder = Sharder { from: graph, b, random, map: BTreeMap::new() };
    let Region { ops, results, .. } = graph.region(graph.body).clone();
    for op in ops {
        sharder.op(op);
    }
    for (output, value) in graph.outputs.iter().zip(results) {
        assert!(matches!(output, Output::Report(_)), "a random graph stores nothing");
        let value = sharder.bring(sharder.map[&value], &Sharding::whole());
        sharder.b.output(output.clone(), value);
    }
    sharder.b.finish()
}

struct Sharder<'a> {
    from: &'a Graph,
    b: Builder,
    random: &'a mut Random,
    map: BTreeMap<ValueId, ValueId>,
}

impl Sharder<'_> {
    fn percent(&mut self, chance: usize) -> bool {
        self.random.below(100) < chance
    }

    fn lies(&self, value: ValueId) -> Sharding {
        self.b.graph.sharding(value).clone()
    }

    fn set(&mut self, value: ValueId, sharding: Sharding) {
        self.b.graph.values[value.index()].sharding = sharding;
    }

    fn bring(&mut self, value: ValueId, to: &Sharding) -> ValueId {
        if self.lies(value) == *to {
            return value;
        }
        // What is drawn by lot moves more than anyone would want.
        let there = self.b.one(
            Op::Mesh(MeshOp::Reshard { cause: "lot".into(), wire: None, may_replicate: true }),
            &[value],
            None,
            "there",
        );
        self.set(there, to.clone());
        there
    }

    fn emit(&mut self, node: &OpNode, op: Op, operands: Vec<ValueId>, shardings: Vec<Sharding>) {
        let mut results = Vec::new();
        for (old, sharding) in node.results.iter().zip(shardings) {
            let new = self.b.graph.add_value(self.from.value_name(*old), self.from.ty(*old).clone());
            self.set(new, sharding);
            self.map.insert(*old, new);
            results.push(new);
        }
        let id = OpId(self.b.graph.ops.len() as u32);
        self.b.graph.ops.push(OpNode { op, operands, results, origin: node.origin.clone() });
        let region = self.b.current();
        self.b.graph.regions[region.index()].ops.push(id);
    }

    fn op(&mut self, id: OpId) {
        let node = self.from.op(id).clone();
        self.b.origin = node.origin.clone();
        match &node.op {
            Op::Loop(l) => self.repeat(&node, l),
            Op::Update(_) => panic!("a random graph has no updates"),
            _ => self.plain(id, &node),
        }
    }

    fn plain(&mut self, id: OpId, node: &OpNode) {
        let factors = factors(self.from, id);
        let mut over: Vec<Vec<Name>> = vec![Vec::new(); factors.len()];
        let mut terms = Sharding::whole();
        for axis in self.b.graph.mesh.clone().axes {
            let passed = self.passed_on(id, node, &axis.name);
            if let Some(op) = passed
                && self.percent(70)
            {
                terms.partial.insert(axis.name, op);
                continue;
            }
            if factors.is_empty() || !self.percent(75) {
                continue;
            }
            let at = self.random.below(factors.len());
            let ways = self.b.graph.mesh.ways(&over[at]) * axis.size;
            if self.fits(&factors[at], ways) {
                // Mesh axes in either order.
                let place = if self.percent(50) { 0 } else { over[at].len() };
                over[at].insert(place, axis.name);
            }
        }
        let split = |axis_of: &dyn Fn(&Factor) -> Option<Name>| {
            let mut sharding = Sharding::whole();
            for (factor, over) in factors.iter().zip(&over) {
                if let Some(axis) = axis_of(factor) {
                    sharding.set(&axis, over.clone());
                }
            }
            sharding
        };
        let mut operands = Vec::new();
        for (i, old) in node.operands.iter().enumerate() {
            let value = self.map[old];
            let mut to = split(&|f| f.operands[i].clone());
            for (axis, op) in &terms.partial {
                if self.b.graph.sharding(value).partial.contains_key(axis) {
                    to.partial.insert(axis.clone(), *op);
                }
            }
            operands.push(self.bring(value, &to));
        }
        let shardings = (0..node.results.len())
            .map(|i| {
                let mut lies = split(&|f| f.results[i].clone());
                lies.partial = terms.partial.clone();
                for (factor, over) in factors.iter().zip(&over) {
                    if let Some(op) = factor.partial[i] {
                        lies.partial.extend(over.iter().map(|axis| (axis.clone(), op)));
                    }
                }
                lies
            })
            .collect();
        let op = self.b.copy_regions(self.from, &node.op);
        self.emit(node, op, operands, shardings);
    }

    fn fits(&self, factor: &Factor, ways: u64) -> bool {
        factor.splits() && factor.size % ways == 0 && (factor.size / ways).is_multiple_of(factor.grain)
    }

    /// What reduces the terms over a mesh axis that the op may take as they come.
    fn passed_on(&self, id: OpId, node: &OpNode, axis: &Name) -> Option<mlc::graph::ReduceOp> {
        let kinds: Vec<_> = node
            .operands
            .iter()
            .map(|v| self.b.graph.sharding(self.map[v]).partial.get(axis).copied())
            .collect();
        let op = kinds.iter().flatten().next().copied()?;
        let flags: Vec<bool> = kinds.iter().map(Option::is_some).collect();
        let same = kinds.iter().flatten().all(|k| *k == op);
        (same && passes_partial(self.from, id, &flags, op)).then_some(op)
    }

    /// Everything goes into a loop as it lies, terms reduced. A loop over blocks runs over parts where any blocks would do.
    fn repeat(&mut self, node: &OpNode, l: &Loop) {
        let blocks_of = match l.block {
            Some(block) if separable(self.from, node, l) => self.some_axes(block),
            _ => Vec::new(),
        };
        let body = self.from.region(l.body).clone();
        let mut operands = Vec::new();
        let mut starts = vec![Sharding::whole()];
        for (i, old) in node.operands.iter().enumerate() {
            let value = self.map[old];
            let mut to = self.lies(value).reduced();
            if self.percent(20) {
                to = Sharding::whole();
            }
            if (l.carries..l.carries + l.stacked).contains(&i) {
                to = along(&to, &l.axis, &blocks_of);
            }
            operands.push(self.bring(value, &to));
            starts.push(to);
        }
        let args: Vec<(Name, Type)> =
            body.args.iter().map(|v| (self.from.value_name(*v).clone(), self.from.ty(*v).clone())).collect();
        let (_, args) = self.b.open(&args);
        for ((old, new), start) in body.args.iter().zip(args).zip(&starts) {
            self.map.insert(*old, new);
            self.set(new, start.clone());
        }
        for op in &body.ops {
            self.op(*op);
        }
        let mut ends = Vec::new();
        let mut results = Vec::new();
        for (i, old) in body.results.iter().enumerate() {
            let value = self.map[old];
            let lies = self.lies(value);
            let is_sum = i >= l.carries + l.stacked_outs;
            let end = match i {
                i if i < l.carries => starts[i + 1].clone(),
                _ if !is_sum && l.block.is_some() => along(&lies.reduced(), &l.axis, &blocks_of),
                _ if is_sum && lies.partial.values().all(|op| *op == mlc::graph::ReduceOp::Sum) => lies,
                _ => lies.reduced(),
            };
            results.push(self.bring(value, &end));
            ends.push(end);
        }
        let inside = self.b.close(results);
        self.b.origin = node.origin.clone();
        self.emit(node, Op::Loop(Loop { body: inside, ..l.clone() }), operands, ends);
    }

    /// Mesh axes that split a size.
    fn some_axes(&mut self, size: u64) -> Vec<Name> {
        let mut over = Vec::new();
        for axis in self.b.graph.mesh.clone().axes {
            if self.percent(50) && size % (self.b.graph.mesh.ways(&over) * axis.size) == 0 {
                over.push(axis.name);
            }
        }
        over
    }
}

/// With an axis split over exactly these mesh axes, which split nothing else then.
fn along(sharding: &Sharding, axis: &Name, over: &[Name]) -> Sharding {
    let mut new = sharding.clone();
    new.split.retain(|_, split| !split.over.iter().any(|m| over.contains(m)));
    new.set(axis, over.to_vec());
    new
}
