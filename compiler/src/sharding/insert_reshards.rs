//! Gives every value a sharding, and puts a reshard where what an op makes is not what the next one takes.
//!
//! A walk in the order of the text. Each op is split as [`choose`] says; its operands are brought there, its results lie as
//! that gives. A result that is a term of a sum stays one while its only use is a linear op that takes terms, and is summed
//! where that ends: so `x·a + y·b` is one sum over ranks, not two. A value is brought to the same place once in a region.

use super::choose::{Assignment, Seen, choose, implied, partial_of};
use super::factors::{Factor, factors, passes_partial};
use super::path_of;
use super::rules::{Rules, Splits};
use super::strict::Conflict;
use super::targets::{Targets, targets};
use crate::cost::product_flops;
use crate::graph::{
    Builder, Composite, CompositeKind, Graph, Loop, MeshOp, Name, Op, OpId, OpNode, Origin, Output, Phase,
    ReduceOp, RegionId, Sharding, Split, Type, Update, ValueId,
};
use crate::spec::glob::covers;
use std::collections::{BTreeMap, BTreeSet};

/// A value that can't lie as something needs it, in words.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardingError {
    /// Block path and line of the op, and what is wrong.
    pub message: String,
}

impl std::fmt::Display for ShardingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ShardingError {}

type Result<T> = std::result::Result<T, ShardingError>;

/// A graph on its mesh.
pub struct Sharded {
    /// Every value has its sharding; types are those of all ranks together.
    pub graph: Graph,
    /// For (value, tensor axis) that is split: the rule or the op it has that from.
    pub why: BTreeMap<(Name, Name), String>,
    /// In strict mode, what the rules leave open; else none.
    pub conflicts: Vec<Conflict>,
}

/// Where a use of a value is.
#[derive(Clone, Copy)]
enum Use {
    Op(OpId),
    Yield,
}

/// The graph on the mesh: every value with its sharding, reshards explicit, nothing constrained any more.
///
/// # Errors
/// A loop takes blocks of an axis that can't be split so.
pub fn shard(graph: &Graph, rules: &Rules) -> Result<Sharded> {
    let mut b = Builder::like(graph);
    b.graph.mesh = rules.mesh.clone();
    let mut uses: Vec<Vec<Use>> = vec![Vec::new(); graph.values.len()];
    for region in &graph.regions {
        for op in &region.ops {
            for v in &graph.op(*op).operands {
                uses[v.index()].push(Use::Op(*op));
            }
        }
        for v in &region.results {
            uses[v.index()].push(Use::Yield);
        }
    }
    let targets = targets(graph, rules);
    let mut walk = Walk {
        from: graph,
        rules,
        targets,
        uses,
        b,
        map: BTreeMap::new(),
        brought: vec![BTreeMap::new()],
        indices: BTreeMap::new(),
        products: BTreeSet::new(),
        made: BTreeMap::new(),
        conflicts: Vec::new(),
    };
    walk.body()?;
    let why = walk.reasons();
    Ok(Sharded { graph: walk.b.finish(), why, conflicts: walk.conflicts })
}

pub(super) struct Walk<'a> {
    pub(super) from: &'a Graph,
    pub(super) rules: &'a Rules,
    pub(super) targets: Targets,
    uses: Vec<Vec<Use>>,
    pub(super) b: Builder,
    /// Values of `from` in the new graph.
    pub(super) map: BTreeMap<ValueId, ValueId>,
    /// For each open region: values that have been brought somewhere.
    brought: Vec<BTreeMap<(ValueId, Sharding), ValueId>>,
    /// New values that are positions along an axis; they lie whole until something wants a part.
    pub(super) indices: BTreeMap<ValueId, Name>,
    /// New values that are terms of sums of products: see [`Rules::wire`].
    products: BTreeSet<ValueId>,
    /// Where new values come from.
    pub(super) made: BTreeMap<ValueId, Origin>,
    /// What strict mode has found.
    pub(super) conflicts: Vec<Conflict>,
}

impl Walk<'_> {
    fn body(&mut self) -> Result<()> {
        let body = self.from.region(self.from.body).clone();
        self.ops(&body.ops)?;
        for (output, v) in self.from.outputs.iter().zip(&body.results) {
            let to = match output {
                Output::Store(_) => self.target(*v),
                Output::Report(_) => Sharding::whole(),
            };
            let what = match output {
                Output::Store(path) | Output::Report(path) => format!("{path} is kept so"),
            };
            let value = self.bring(self.map[v], &to, &what);
            self.b.output(output.clone(), value);
        }
        Ok(())
    }

    /// Where the splits come from; of what rules and neighbours say nothing, from the operands.
    fn reasons(&self) -> BTreeMap<(Name, Name), String> {
        let mut why = BTreeMap::new();
        for (old, new) in &self.map {
            for axis in self.b.graph.sharding(*new).split.keys() {
                let told = self.targets.why.get(&(*old, axis.clone()));
                let reason = told.cloned().unwrap_or_else(|| "its operands".into());
                why.insert((self.b.graph.value_name(*new).clone(), axis.clone()), reason);
            }
        }
        why
    }

    fn ops(&mut self, ops: &[OpId]) -> Result<()> {
        for op in ops {
            self.op(*op)?;
        }
        Ok(())
    }

    /// How a value should lie, nothing partial.
    fn target(&self, v: ValueId) -> Sharding {
        let split = self.targets.splits[v.index()].iter();
        let split =
            split.map(|(axis, over)| (axis.clone(), Split { over: over.clone(), blocks: 1 })).collect();
        Sharding { split, partial: BTreeMap::new() }
    }

    pub(super) fn lies(&self, new: ValueId) -> &Sharding {
        self.b.graph.sharding(new)
    }

    fn set(&mut self, new: ValueId, sharding: Sharding) {
        self.b.graph.values[new.index()].sharding = sharding;
    }

    /// The value lying as `to` says.
    fn bring(&mut self, new: ValueId, to: &Sharding, cause: &str) -> ValueId {
        if self.lies(new) == to {
            return new;
        }
        let key = (new, to.clone());
        if let Some(there) = self.brought.last().and_then(|known| known.get(&key)) {
            return *there;
        }
        let name = self.b.graph.value_name(new).clone();
        let here = self.made.get(&new).cloned().unwrap_or_else(|| self.b.origin.clone());
        let here = std::mem::replace(&mut self.b.origin, here);
        let there = match self.indices.get(&new) {
            // Positions are counted anywhere.
            Some(axis) => {
                let ty = self.b.ty(new).clone();
                self.b.one(Op::Index { axis: axis.clone() }, &[], Some(ty), &name)
            }
            None => {
                let path = path_of(&self.b.origin, &name);
                let may_replicate = self.rules.replicable.iter().any(|glob| covers(glob, &path));
                let sums = self.lies(new).partial.iter().any(|(axis, _)| !to.partial.contains_key(axis));
                let wire = self.rules.wire.filter(|_| sums && self.products.contains(&new));
                let op = Op::Mesh(MeshOp::Reshard { cause: cause.into(), wire, may_replicate });
                self.b.one(op, &[new], None, &name)
            }
        };
        self.b.origin = here;
        self.set(there, to.clone());
        self.brought.last_mut().expect("a region is open").insert(key, there);
        there
    }

    fn op(&mut self, id: OpId) -> Result<()> {
        let node = self.from.op(id).clone();
        self.b.origin = node.origin.clone();
        match &node.op {
            Op::Loop(l) => self.repeat(&node, l),
            Op::Update(u) => self.update(&node, u),
            Op::Mesh(MeshOp::Constrain { .. }) => {
                let to = self.target(node.results[0]);
                let there = self.bring(self.map[&node.operands[0]], &to, "a rule for values");
                self.map.insert(node.results[0], there);
                Ok(())
            }
            Op::Input { .. } => {
                let result = self.emit(&node, node.op.clone(), &[])[0];
                let mut sharding = self.target(node.results[0]);
                self.cut_in_blocks(&node, &mut sharding);
                self.set(result, sharding);
                Ok(())
            }
            Op::Index { axis } => {
                let result = self.emit(&node, node.op.clone(), &[])[0];
                self.indices.insert(result, axis.clone());
                Ok(())
            }
            Op::Param { .. } | Op::State { .. } => {
                let result = self.emit(&node, node.op.clone(), &[])[0];
                let sharding = self.target(node.results[0]);
                self.set(result, sharding);
                Ok(())
            }
            _ => self.plain(id, &node),
        }
    }

    /// An input that a loop takes apart block by block is split within each block.
    fn cut_in_blocks(&self, node: &OpNode, sharding: &mut Sharding) {
        let trips = self.uses[node.results[0].index()].iter().filter_map(|u| {
            let Use::Op(op) = u else { return None };
            let consumer = self.from.op(*op);
            let l = consumer.op.as_loop()?;
            let stacked = &consumer.operands[l.carries..l.carries + l.stacked];
            (l.block.is_some() && stacked.contains(&node.results[0])).then(|| (l.axis.clone(), l.trip))
        });
        for (axis, trip) in trips.collect::<Vec<_>>() {
            let size = self.from.ty(node.results[0]).size_of(&axis).unwrap_or(1);
            let ways = self.rules.mesh.ways(sharding.over(&axis));
            match sharding.split.get_mut(&axis) {
                Some(split) if size.is_multiple_of(ways * trip) => split.blocks = trip,
                // Blocks too small for the ranks are read whole.
                _ => drop(sharding.split.remove(&axis)),
            }
        }
    }

    /// Appends an op with the types and names of the one it copies.
    fn emit(&mut self, node: &OpNode, op: Op, operands: &[ValueId]) -> Vec<ValueId> {
        let results: Vec<ValueId> = node
            .results
            .iter()
            .map(|v| {
                let value = &self.from.values[v.index()];
                let new = self.b.graph.add_value(&value.name, value.ty.clone());
                self.map.insert(*v, new);
                self.made.insert(new, node.origin.clone());
                new
            })
            .collect();
        let id = OpId(self.b.graph.ops.len() as u32);
        let operands = operands.to_vec();
        self.b.graph.ops.push(OpNode { op, operands, results: results.clone(), origin: node.origin.clone() });
        let region = self.b.current();
        self.b.graph.regions[region.index()].ops.push(id);
        results
    }

    /// An op that is split by its factors.
    fn plain(&mut self, id: OpId, node: &OpNode) -> Result<()> {
        let factors = factors(self.from, id);
        let linear = self.stays_partial(id, node);
        let taken: Vec<Name> = linear.iter().flat_map(|p| p.keys().cloned()).collect();
        let assignment = self.choice(id, node, &factors, &taken);
        self.contended(id, node, &factors, &taken, &assignment);
        let what = super::describe(node);
        let mut operands = Vec::new();
        for (i, v) in node.operands.iter().enumerate() {
            let new = self.map[v];
            let mut to = implied(&factors, &assignment, |f| f.operands[i].clone());
            if let Some(common) = linear.as_ref().filter(|_| !self.lies(new).partial.is_empty()) {
                to.partial = common.clone();
            }
            operands.push(self.bring(new, &to, &what));
        }
        let op = self.with_regions(node, &factors, &assignment, &operands)?;
        let results = self.emit(node, op, &operands);
        for (i, (v, new)) in node.results.iter().zip(results).enumerate() {
            let mut natural = implied(&factors, &assignment, |f| f.results[i].clone());
            natural.partial = partial_of(&factors, &assignment, i);
            let made = natural.partial.is_empty() || sums_products(node);
            let passed = operands.iter().filter(|v| !self.lies(**v).partial.is_empty());
            let passed = passed.into_iter().all(|v| self.products.contains(v));
            natural.partial.extend(linear.clone().into_iter().flatten());
            if made && passed && !natural.partial.is_empty() && !self.from.ty(*v).axes.is_empty() {
                self.products.insert(new);
            }
            self.set(new, natural);
            self.settle(*v);
        }
        Ok(())
    }

    /// How the op is split; mesh axes in `taken` are not to be used.
    fn choice(&self, id: OpId, node: &OpNode, factors: &[Factor], taken: &[Name]) -> Assignment {
        let (operands, results) = self.seen(node);
        choose(self.rules, taken, factors, &operands, &results, product_flops(self.from, id))
    }

    /// Operands and results of an op as its choice sees them.
    pub(super) fn seen(&self, node: &OpNode) -> (Vec<Seen<'_>>, Vec<Seen<'_>>) {
        let operands: Vec<Seen> = node
            .operands
            .iter()
            .map(|v| {
                let new = self.map[v];
                let lies = self.lies(new).clone();
                let free = self.indices.contains_key(&new);
                let resting = self.targets.resting.get(v);
                let offers = resting.cloned().unwrap_or_else(|| lists(&lies));
                let ruled = self.targets.ruled[v.index()].iter().cloned().collect();
                Seen {
                    ty: self.from.ty(*v),
                    lies,
                    offers,
                    resting: resting.is_some(),
                    ruled: if free { Vec::new() } else { ruled },
                }
            })
            .collect();
        let results: Vec<Seen> = node
            .results
            .iter()
            .map(|v| {
                let lies = self.target(*v);
                let offers = lists(&lies);
                let ruled = self.targets.closed[v.index()].iter().cloned().collect();
                Seen { ty: self.from.ty(*v), lies, offers, resting: false, ruled }
            })
            .collect();
        // A parameter that is only cut, cast or moved stays at rest.
        let moves = matches!(node.op, Op::Cast | Op::Transfer { .. });
        let at_rest = moves && node.results.iter().all(|r| self.targets.resting.contains_key(r));
        let operands = if at_rest {
            operands.into_iter().map(|s| Seen { offers: lists(&s.lies), resting: false, ..s }).collect()
        } else {
            operands
        };
        (operands, results)
    }

    /// What stays partial if the op is applied to terms, which it is if it is linear in its partial operands. Of those, what not
    /// all of them share is reduced before.
    fn stays_partial(&self, id: OpId, node: &OpNode) -> Option<BTreeMap<Name, ReduceOp>> {
        let lie = |v: &ValueId| &self.lies(self.map[v]).partial;
        let partial: Vec<bool> = node.operands.iter().map(|v| !lie(v).is_empty()).collect();
        let mut terms = node.operands.iter().map(lie).filter(|p| !p.is_empty());
        let mut common = terms.next()?.clone();
        for other in terms {
            common.retain(|axis, op| other.get(axis) == Some(op));
        }
        let linear = common.values().all(|op| passes_partial(self.from, id, &partial, *op));
        (linear && !common.is_empty()).then_some(common)
    }

    /// The op with its regions walked: a composite's meaning, on operands that lie as the op takes them.
    fn with_regions(
        &mut self,
        node: &OpNode,
        factors: &[Factor],
        assignment: &Assignment,
        operands: &[ValueId],
    ) -> Result<Op> {
        let Op::Composite(c) = &node.op else { return Ok(node.op.clone()) };
        let meaning = c.meaning;
        let ends: Vec<Sharding> = (0..node.results.len())
            .map(|i| {
                let mut natural = implied(factors, assignment, |f| f.results[i].clone());
                natural.partial = partial_of(factors, assignment, i);
                natural
            })
            .collect();
        let starts: Vec<Sharding> = operands.iter().map(|v| self.lies(*v).clone()).collect();
        let inside = self.region(meaning, &starts, &ends)?;
        let mut op = self.b.copy_regions(self.from, &node.op);
        if let Op::Composite(Composite { meaning, .. }) = &mut op {
            *meaning = inside;
        }
        Ok(op)
    }

    /// Walks a region whose arguments lie as `starts`; its results are brought to `ends`.
    fn region(&mut self, region: RegionId, starts: &[Sharding], ends: &[Sharding]) -> Result<RegionId> {
        self.open(region, starts);
        let from = self.from.region(region).clone();
        self.ops(&from.ops)?;
        let results = from
            .results
            .iter()
            .zip(ends)
            .map(|(v, to)| self.bring(self.map[v], to, "what is around it"))
            .collect();
        self.brought.pop();
        Ok(self.b.close(results))
    }

    fn open(&mut self, region: RegionId, starts: &[Sharding]) {
        let old = self.from.region(region).args.clone();
        let named: Vec<(Name, Type)> =
            old.iter().map(|v| (self.from.value_name(*v).clone(), self.from.ty(*v).clone())).collect();
        let (_, args) = self.b.open(&named);
        for ((old, new), start) in old.iter().zip(&args).zip(starts) {
            self.map.insert(*old, *new);
            self.set(*new, start.clone());
        }
        self.brought.push(BTreeMap::new());
    }

    /// A fresh result: summed unless its only use takes terms, and where rules say how it lies, there.
    fn settle(&mut self, v: ValueId) {
        let new = self.map[&v];
        let lies = self.lies(new).clone();
        let target = self.target(v);
        let off_rule = self.targets.closed[v.index()].iter().any(|axis| lies.over(axis) != target.over(axis));
        let waits = match self.uses[v.index()][..] {
            [] => true,
            [Use::Yield] => true,
            [Use::Op(op)] => !lies.partial.is_empty() && self.takes_terms(op, v, &lies),
            _ => false,
        };
        if (!lies.partial.is_empty() || off_rule) && !waits {
            let why = if off_rule { "a rule says how it lies" } else { "its terms are summed" };
            let there = self.bring(new, &target, why);
            self.map.insert(v, there);
        }
    }

    /// Whether it is worth waiting: the op is cheap, makes nothing larger, and may be applied to terms.
    fn takes_terms(&self, op: OpId, v: ValueId, lies: &Sharding) -> bool {
        let node = self.from.op(op);
        let cheap = node.op.is_elementwise()
            || matches!(
                node.op,
                Op::Rename { .. } | Op::Reduce { .. } | Op::Slice { .. } | Op::Mesh(MeshOp::Constrain { .. })
            );
        let grows = node.results.iter().any(|r| self.from.ty(*r).numel() > self.from.ty(v).numel());
        let constrained = matches!(node.op, Op::Mesh(MeshOp::Constrain { .. }));
        // Of a sum of two it shows later whether the other one is partial too.
        let own: Vec<bool> = node.operands.iter().map(|o| *o == v).collect();
        let both = vec![true; node.operands.len()];
        let linear = |r| passes_partial(self.from, op, &own, r) || passes_partial(self.from, op, &both, r);
        cheap && !grows && (constrained || lies.partial.values().all(|r| linear(*r)))
    }

    fn repeat(&mut self, node: &OpNode, l: &Loop) -> Result<()> {
        let body = self.from.region(l.body).clone();
        let mut operands = Vec::new();
        let mut starts = vec![Sharding::whole()];
        let mut blocks = 1;
        let along = self.cut_alike(node, l);
        for (i, v) in node.operands.iter().enumerate() {
            let arg = body.args[i + 1];
            let new = self.map[v];
            let (to, start) = if i < l.carries {
                self.placed(new, &self.target(arg), arg, "a loop takes it so");
                (self.target(arg), self.target(arg))
            } else {
                let mut lies = self.lies(new).reduced();
                if i < l.carries + l.stacked {
                    match &along {
                        Some(split) if self.from.ty(*v).has(&l.axis) => {
                            lies.split.insert(l.axis.clone(), split.clone());
                        }
                        _ => drop(lies.split.remove(&l.axis)),
                    }
                    self.slice(node, l, lies, &mut blocks)
                } else {
                    let lies = self.gathered_once(l, arg).unwrap_or(lies);
                    (lies.clone(), lies)
                }
            };
            operands.push(self.bring(new, &to, "a loop takes it so"));
            starts.push(start);
        }
        self.open(l.body, &starts);
        self.ops(&body.ops)?;
        let slices = &starts[1 + l.carries..][..l.stacked];
        let along = slices.first().map_or(Vec::new(), |slice| slice.over(&l.axis).to_vec());
        let mut ends = Vec::new();
        let mut results = Vec::new();
        for (i, v) in body.results.iter().enumerate() {
            let new = self.map[v];
            let mut end = self.yielded(node, l, i, self.lies(new), *v);
            if l.block.is_some() && (l.carries..l.carries + l.stacked_outs).contains(&i) {
                end.set(&l.axis, along.clone());
            }
            self.placed(new, &end, if i < l.carries { body.args[i + 1] } else { *v }, "a loop gives it so");
            results.push(self.bring(new, &end, "the loop gives it so"));
            ends.push(end);
        }
        self.brought.pop();
        let inside = self.b.close(results);
        self.b.origin = node.origin.clone();
        let new = self.emit(node, Op::Loop(Loop { body: inside, ..l.clone() }), &operands);
        for (i, (new, mut end)) in new.into_iter().zip(ends).enumerate() {
            if l.block.is_some()
                && (l.carries..l.carries + l.stacked_outs).contains(&i)
                && let Some(split) = end.split.get_mut(&l.axis)
            {
                split.blocks = blocks;
            }
            if self.products.contains(&self.b.graph.region(inside).results[i]) {
                self.products.insert(new);
            }
            self.set(new, end);
            self.settle(node.results[i]);
        }
        Ok(())
    }

    /// A parameter that every iteration uses is gathered before the loop; over microbatches that would keep all of them gathered.
    fn gathered_once(&self, l: &Loop, arg: ValueId) -> Option<Sharding> {
        let in_use = self.targets.resting.get(&arg)?;
        let uses = &self.uses[arg.index()];
        let direct =
            uses.iter().any(|u| matches!(u, Use::Op(op) if self.from.op(*op).op.as_loop().is_none()));
        let split = in_use.iter().map(|(axis, over)| (axis.clone(), Split { over: over.clone(), blocks: 1 }));
        (direct && !l.microbatches).then(|| Sharding { split: split.collect(), partial: BTreeMap::new() })
    }

    /// How all that a loop takes block by block lies along its axis. Where they differ, what is whole is cut, which moves
    /// nothing; unless the mesh axes have other work in the body, as those of a vocabulary that is split have: then all are
    /// taken whole.
    fn cut_alike(&self, node: &OpNode, l: &Loop) -> Option<Split> {
        let stacked = &node.operands[l.carries..l.carries + l.stacked];
        let splits: Vec<Option<&Split>> =
            stacked.iter().map(|v| self.lies(self.map[v]).split.get(&l.axis)).collect();
        let found: BTreeSet<&Split> = splits.iter().flatten().copied().collect();
        let split = (*found.first()?).clone();
        let alike = splits.iter().all(|s| s.is_some()) && found.len() == 1;
        let cuts = l.block.is_some() && found.len() == 1 && split.blocks == 1;
        (alike || (cuts && !self.has_other_work(l.body, &l.axis, &split.over))).then_some(split)
    }

    /// Whether values of a region should be split over one of these mesh axes along another tensor axis.
    fn has_other_work(&self, region: RegionId, axis: &Name, over: &[Name]) -> bool {
        self.from.region(region).ops.iter().any(|op| {
            let node = self.from.op(*op);
            let values = node.operands.iter().chain(&node.results);
            let lists = values.flat_map(|v| &self.targets.splits[v.index()]);
            let mut others = lists.filter(|(other, _)| *other != axis);
            others.any(|(_, list)| list.iter().any(|m| over.contains(m)))
                || self.from.regions_of(&node.op).iter().any(|r| self.has_other_work(*r, axis, over))
        })
    }

    /// How a stacked operand has to lie, and how its slices lie then.
    fn slice(&self, node: &OpNode, l: &Loop, lies: Sharding, blocks: &mut u64) -> (Sharding, Sharding) {
        let mut slice = lies.clone();
        let Some(block) = l.block else {
            slice.split.remove(&l.axis);
            return (slice.clone(), slice);
        };
        let Some(split) = lies.split.get(&l.axis) else { return (lies.clone(), lies) };
        let divides = block % self.rules.mesh.ways(&split.over) == 0;
        if divides && (split.blocks == l.trip || (split.blocks == 1 && super::separable(self.from, node, l)))
        {
            *blocks = split.blocks;
            slice.set(&l.axis, split.over.clone());
            (lies, slice)
        } else {
            slice.split.remove(&l.axis);
            (slice.clone(), slice)
        }
    }

    /// How the body's result `i` leaves it.
    fn yielded(&self, node: &OpNode, l: &Loop, i: usize, lies: &Sharding, v: ValueId) -> Sharding {
        if i < l.carries {
            return self.target(self.from.region(l.body).args[i + 1]);
        }
        let is_sum = i >= l.carries + l.stacked_outs;
        let scalar = self.from.ty(v).axes.is_empty();
        if !lies.partial.is_empty() {
            // Terms of one number per iteration, or of blocks that are put together again, take no more room than sums.
            let in_place = scalar || (l.block.is_some() && !l.microbatches);
            let waits = if is_sum { scalar || !l.microbatches } else { in_place };
            return if waits { lies.clone() } else { self.target(v) };
        }
        // Rules for the value, or for what becomes of it outside.
        let outer = node.results[i];
        let outside = self.target(outer);
        let off = |v: ValueId, to: &Sharding| {
            let closed = &self.targets.closed[v.index()];
            closed
                .iter()
                .any(|axis| self.from.ty(v).has(axis) && *axis != l.axis && lies.over(axis) != to.over(axis))
        };
        let target = self.target(v);
        if off(v, &target) || off(outer, &outside) { target } else { lies.clone() }
    }

    fn update(&mut self, node: &OpNode, u: &Update) -> Result<()> {
        let lying = 2 + u.states.len();
        let body = self.from.region(u.body).clone();
        let mut starts = Vec::new();
        let mut operands = Vec::new();
        for (i, v) in node.operands.iter().enumerate() {
            let to = if i < lying { self.target(body.args[i]) } else { Sharding::whole() };
            operands.push(self.bring(self.map[v], &to, &format!("the update of {}", u.param)));
            starts.push(to);
        }
        let ends: Vec<Sharding> = body.results.iter().map(|v| self.target(*v)).collect();
        let inside = self.region(u.body, &starts, &ends)?;
        self.b.origin = node.origin.clone();
        let new = self.emit(node, Op::Update(Update { body: inside, ..u.clone() }), &operands);
        for (i, (new, end)) in new.into_iter().zip(ends).enumerate() {
            self.set(new, end);
            let to = self.target(node.results[i]);
            let there = self.bring(new, &to, &format!("{} lies so between steps", u.param));
            self.map.insert(node.results[i], there);
        }
        Ok(())
    }
}

/// Whether what an op sums are products of matrices or gradients of parameters, which may travel rounded: not statistics, of
/// which a loss or a norm is made.
fn sums_products(node: &OpNode) -> bool {
    use CompositeKind::{Attention, AttentionGrad, Custom, GroupedDot, GroupedOuter, LossHead};
    match (&node.op, node.origin.phase) {
        (_, Phase::Update) => false,
        (Op::Dot { .. } | Op::ScatterAdd { .. }, _) | (Op::Reduce { .. }, Phase::BackwardWeight) => true,
        (Op::Composite(c), _) => matches!(
            c.kind,
            Attention(_)
                | AttentionGrad(_)
                | GroupedDot { .. }
                | GroupedOuter { .. }
                | LossHead(_)
                | Custom(_)
        ),
        _ => false,
    }
}

/// The lists of a sharding.
fn lists(sharding: &Sharding) -> Splits {
    sharding.split.iter().map(|(axis, split)| (axis.clone(), split.over.clone())).collect()
}
