//! Which ops of a region share a kernel.
//!
//! Element-wise ops and reductions are *loop ops*; a cluster of them runs over one iteration space, `kept × reduced`.
//! Constants, indices, broadcasts and cheap functions of indices are *virtual*: computed where they are used, never stored.
//!
//! 1. Every matrix product takes the longest run of element-wise ops after it that leaves one value to store: its tail.
//! 2. Along edges, in order, a loop op's cluster joins the cluster of its operand if the spaces agree and no path leads
//!    from one to the other through a third.
//! 3. Clusters over one space that read a common value join (scalars always), under the same condition.
//! 4. A value that crosses clusters is stored, or recomputed by its reader where that moves fewer bytes.
//!
//! Terminates: each step only merges or only stores more. Deterministic: everything runs in op order.

use super::{FuseError, Result};
use crate::graph::{Axis, Graph, MeshOp, Name, Op, OpId, Pairs, RegionId, ValueId, shape};
use std::collections::{BTreeMap, BTreeSet};

/// Rows below which a kernel that also writes elements would leave threads idle.
const MIN_ROWS: u64 = 16;
/// Work per element a function costs in bytes moved, for weighing recomputation.
const EXPENSIVE_BYTES: u64 = 16;
/// A value this much smaller than its reader's space is read from cache.
const SMALL: u64 = 8;

/// One element of a region's plan, in execution order.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// A kernel over an iteration space.
    Loops {
        /// Ops evaluated inside, in order.
        ops: Vec<OpId>,
        /// Values stored.
        outputs: Vec<ValueId>,
        /// Values loaded.
        reads: Vec<ValueId>,
        /// Axes kept.
        kept: Vec<Axis>,
        /// Axes reduced over.
        reduced: Vec<Axis>,
        /// Rotated pairs.
        paired: Option<(Name, Pairs)>,
    },
    /// A matrix product and its tail.
    Gemm {
        /// The product.
        dot: OpId,
        /// Ops of the tail.
        ops: Vec<OpId>,
        /// The value stored.
        output: ValueId,
        /// Values the tail loads besides the product.
        reads: Vec<ValueId>,
    },
    /// A gather, scatter, cumulative sum, attention, attention_grad or collective.
    Single(OpId),
    /// A loop.
    Loop(OpId),
}

/// How an op of a region is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Its result is a persistent buffer, an input or a run-time scalar.
    Source,
    /// Computed where it is used.
    Virtual,
    /// Another name for its operand's place.
    View,
    /// Element-wise or a reduction.
    Loops,
    /// Matrix product.
    Dot,
    /// A kernel of its own.
    Single,
    /// A loop.
    Loop,
}

type Space = BTreeSet<Axis>;

#[derive(Clone, Debug)]
struct Cluster {
    ops: BTreeSet<usize>,
    /// `None` for everything but loop ops.
    space: Option<(Space, Space)>,
    paired: Option<(Name, Pairs)>,
    dot: Option<usize>,
    recomputed: BTreeSet<usize>,
    alive: bool,
}

/// Plans one region.
///
/// # Errors
/// An op no kernel exists for.
pub fn cluster(graph: &Graph, region: RegionId) -> Result<Vec<Plan>> {
    let mut c = Clusterer::new(graph, region)?;
    c.take_tails();
    c.join_along_edges();
    c.join_siblings();
    c.store_or_recompute();
    c.plans()
}

/// The value that a run of broadcasts repeats. A copy into a part of a larger tensor repeats by itself, so a concat reads
/// this.
pub fn unrepeated(graph: &Graph, definitions: &BTreeMap<ValueId, OpId>, v: ValueId) -> ValueId {
    match definitions.get(&v).map(|op| graph.op(*op)) {
        Some(node) if node.op == Op::Broadcast => unrepeated(graph, definitions, node.operands[0]),
        _ => v,
    }
}

struct Clusterer<'g> {
    graph: &'g Graph,
    /// The op that makes each value of the region.
    definitions: BTreeMap<ValueId, OpId>,
    ops: Vec<OpId>,
    class: Vec<Class>,
    /// Position of the op that defines a value of this region.
    def: BTreeMap<ValueId, usize>,
    uses: BTreeMap<ValueId, Vec<usize>>,
    /// Values that must have memory.
    stored: BTreeSet<ValueId>,
    clusters: Vec<Cluster>,
    /// Cluster of an op; `None` for sources, virtual ops and views.
    of: Vec<Option<usize>>,
}

impl<'g> Clusterer<'g> {
    fn new(graph: &'g Graph, region: RegionId) -> Result<Self> {
        let body = graph.region(region);
        let ops = body.ops.clone();
        let mut c = Clusterer {
            graph,
            definitions: graph.definitions(region),
            class: Vec::new(),
            def: BTreeMap::new(),
            uses: BTreeMap::new(),
            stored: body.results.iter().copied().collect(),
            clusters: Vec::new(),
            of: Vec::new(),
            ops,
        };
        for (i, &op) in c.ops.iter().enumerate() {
            let node = graph.op(op);
            for r in &node.results {
                c.def.insert(*r, i);
            }
            for v in &node.operands {
                let uses = c.uses.entry(*v).or_default();
                if uses.last() != Some(&i) {
                    uses.push(i);
                }
            }
        }
        c.classify(body.args.first().copied());
        c.require_stores();
        c.start_clusters()?;
        Ok(c)
    }

    fn node(&self, i: usize) -> &'g crate::graph::OpNode {
        self.graph.op(self.ops[i])
    }

    fn result(&self, i: usize) -> ValueId {
        self.node(i).results[0]
    }

    fn bytes(&self, v: ValueId) -> u64 {
        self.graph.ty(v).bytes()
    }

    fn space_of(&self, v: ValueId) -> Space {
        self.graph.ty(v).axes.iter().cloned().collect()
    }

    fn classify(&mut self, index_arg: Option<ValueId>) {
        // The first argument of a loop's body is its index; other regions with arguments are never planned.
        let mut index_only: BTreeSet<ValueId> = index_arg.into_iter().collect();
        for i in 0..self.ops.len() {
            let node = self.node(i);
            let from_indices = node.operands.iter().all(|v| index_only.contains(v));
            let class = match &node.op {
                Op::Input { .. } | Op::Param { .. } | Op::State { .. } | Op::Scalar { .. } => Class::Source,
                Op::Const(_) | Op::Index { .. } => Class::Virtual,
                Op::Broadcast => Class::Virtual,
                Op::Rename { .. } if from_indices => Class::Virtual,
                Op::Rename { .. } | Op::Slice { .. } | Op::Mesh(MeshOp::LocalPart { .. }) => Class::View,
                Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast => {
                    if from_indices && !node.op.is_expensive() { Class::Virtual } else { Class::Loops }
                }
                Op::Reduce { .. } | Op::RotatePairs { .. } => Class::Loops,
                Op::Dot { .. } => Class::Dot,
                Op::Gather { .. }
                | Op::ScatterAdd { .. }
                | Op::Transfer { .. }
                | Op::Mesh(MeshOp::Constrain { .. } | MeshOp::Reshard { .. } | MeshOp::Collective(_))
                | Op::CumSum { .. }
                | Op::Concat { .. }
                | Op::Composite(_)
                | Op::Update(_) => Class::Single,
                Op::Loop(_) => Class::Loop,
            };
            if class == Class::Virtual && from_indices {
                index_only.insert(node.results[0]);
            }
            self.class.push(class);
        }
    }

    /// Marks what must be stored, last op first; a virtual op whose result must be stored becomes a loop op.
    fn require_stores(&mut self) {
        for i in (0..self.ops.len()).rev() {
            let node = self.node(i);
            match self.class[i] {
                Class::Single if matches!(node.op, Op::Concat { .. }) => {
                    let parts = node.operands.iter().map(|v| unrepeated(self.graph, &self.definitions, *v));
                    self.stored.extend(parts);
                }
                Class::Dot | Class::Single | Class::Loop => self.stored.extend(&node.operands),
                Class::View => {
                    self.stored.insert(node.operands[0]);
                }
                Class::Virtual if self.stored.contains(&node.results[0]) => {
                    if let Op::Rename { .. } = node.op {
                        self.class[i] = Class::View;
                        self.stored.insert(node.operands[0]);
                    } else {
                        self.class[i] = Class::Loops;
                    }
                }
                Class::Source | Class::Virtual | Class::Loops => {}
            }
        }
    }

    fn start_clusters(&mut self) -> Result<()> {
        for i in 0..self.ops.len() {
            let node = self.node(i);
            let (space, paired) = match self.class[i] {
                Class::Source | Class::Virtual | Class::View => {
                    self.of.push(None);
                    continue;
                }
                Class::Dot | Class::Single | Class::Loop => (None, None),
                Class::Loops => match &node.op {
                    Op::Reduce { axes, .. } => {
                        let (reduced, kept) =
                            self.space_of(node.operands[0]).into_iter().partition(|a| axes.contains(&a.name));
                        (Some((kept, reduced)), None)
                    }
                    Op::RotatePairs { axis, pairs } => {
                        (Some((self.space_of(node.results[0]), Space::new())), Some((axis.clone(), *pairs)))
                    }
                    _ => (Some((self.space_of(node.results[0]), Space::new())), None),
                },
            };
            if let Op::Update(_) = node.op {
                return Err(self.refuse(i, "updates are inlined before clustering"));
            }
            self.of.push(Some(self.clusters.len()));
            self.clusters.push(Cluster {
                ops: BTreeSet::from([i]),
                space,
                paired,
                dot: (self.class[i] == Class::Dot).then_some(i),
                recomputed: BTreeSet::new(),
                alive: true,
            });
        }
        Ok(())
    }

    fn refuse(&self, i: usize, message: &str) -> FuseError {
        let node = self.node(i);
        FuseError { op: shape::op_name(&node.op), origin: node.origin.clone(), message: message.into() }
    }

    /// The values an op needs from memory or from clusters, looking through virtual ops.
    fn sources(&self, i: usize) -> Vec<ValueId> {
        let mut found = Vec::new();
        for v in &self.node(i).operands {
            self.sources_of(*v, &mut found);
        }
        found
    }

    fn sources_of(&self, v: ValueId, found: &mut Vec<ValueId>) {
        match self.def.get(&v) {
            Some(&d) if self.class[d] == Class::Virtual => {
                for w in &self.node(d).operands {
                    self.sources_of(*w, found);
                }
            }
            _ => {
                if !found.contains(&v) {
                    found.push(v);
                }
            }
        }
    }

    /// The cluster that computes a value, looking through renames.
    fn maker(&self, v: ValueId) -> Option<usize> {
        let d = *self.def.get(&v)?;
        match self.class[d] {
            Class::View => self.maker(self.node(d).operands[0]),
            _ => self.of[d],
        }
    }

    /// Clusters a cluster depends on.
    fn needs(&self, c: usize) -> BTreeSet<usize> {
        let mut needs = BTreeSet::new();
        for &i in self.clusters[c].ops.iter().chain(&self.clusters[c].recomputed) {
            for v in self.sources(i) {
                let inside = self.def.get(&v).is_some_and(|d| {
                    self.clusters[c].ops.contains(d) || self.clusters[c].recomputed.contains(d)
                });
                if !inside
                    && let Some(m) = self.maker(v)
                    && m != c
                {
                    needs.insert(m);
                }
            }
        }
        needs
    }

    /// Whether `from` reaches `to` against the arrows by a path of at least two steps.
    fn reaches_through_third(&self, from: usize, to: usize) -> bool {
        let mut stack: Vec<usize> = self.needs(from).into_iter().filter(|c| *c != to).collect();
        let mut seen: BTreeSet<usize> = stack.iter().copied().collect();
        while let Some(c) = stack.pop() {
            for n in self.needs(c) {
                if n == to {
                    return true;
                }
                if seen.insert(n) {
                    stack.push(n);
                }
            }
        }
        false
    }

    fn can_join_without_cycle(&self, a: usize, b: usize) -> bool {
        !self.reaches_through_third(a, b) && !self.reaches_through_third(b, a)
    }

    fn merge(&mut self, into: usize, gone: usize, space: (Space, Space)) {
        let ops = std::mem::take(&mut self.clusters[gone].ops);
        for &i in &ops {
            self.of[i] = Some(into);
        }
        self.clusters[gone].alive = false;
        let paired = self.clusters[gone].paired.take();
        let c = &mut self.clusters[into];
        c.ops.extend(ops);
        c.space = Some(space);
        c.paired = c.paired.take().or(paired);
    }

    /// Ops of the region (op-level) that depend on op `i`, in order.
    fn dependents(&self, i: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([i]);
        for j in i + 1..self.ops.len() {
            if self.node(j).operands.iter().any(|v| self.def.get(v).is_some_and(|d| found.contains(d))) {
                found.insert(j);
            }
        }
        found
    }

    fn take_tails(&mut self) {
        for i in 0..self.ops.len() {
            if self.class[i] == Class::Dot {
                let tail = self.tail_of(i);
                let c = self.of[i].expect("a dot has a cluster");
                for j in tail {
                    if let Some(old) = self.of[j] {
                        self.clusters[old].alive = false;
                        self.clusters[old].ops.clear();
                    }
                    self.of[j] = Some(c);
                    self.clusters[c].ops.insert(j);
                }
            }
        }
    }

    /// The longest run of element-wise ops on a product after which one value is left to store.
    fn tail_of(&self, dot: usize) -> Vec<usize> {
        let space = self.space_of(self.result(dot));
        let dependents = self.dependents(dot);
        let mut taken = vec![dot];
        let mut best = 1;
        for &j in dependents.iter().skip(1) {
            let node = self.node(j);
            let elementwise =
                matches!(node.op, Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast);
            if !elementwise || self.class[j] != Class::Loops || self.space_of(node.results[0]) != space {
                continue;
            }
            let free = self.of[j].is_some_and(|c| self.clusters[c].dot.is_none());
            let sources = self.sources(j);
            let imported = |v: &ValueId| match self.def.get(v) {
                Some(d) => taken.contains(d) || !dependents.contains(d),
                None => true,
            };
            let uses_taken = sources.iter().any(|v| self.def.get(v).is_some_and(|d| taken.contains(d)));
            if free && uses_taken && sources.iter().all(imported) && !self.needs_index(j) {
                taken.push(j);
                if self.escaping(&taken) == 1 {
                    best = taken.len();
                }
            }
        }
        // The kernel stores no Boolean products.
        while best > 1 && self.graph.ty(self.result(taken[best - 1])).dtype == crate::graph::DType::Bool {
            best -= 1;
            if self.escaping(&taken[..best]) != 1 {
                best = 1;
            }
        }
        taken[1..best].to_vec()
    }

    /// How many of the ops' results are used elsewhere.
    fn escaping(&self, ops: &[usize]) -> usize {
        ops.iter().filter(|i| self.escapes(self.result(**i), &|j| ops.contains(&j))).count()
    }

    /// Whether a value is stored anyway or used by an op not `inside`, looking through virtual ops.
    fn escapes(&self, v: ValueId, inside: &dyn Fn(usize) -> bool) -> bool {
        self.stored.contains(&v)
            || self.uses.get(&v).is_some_and(|uses| {
                uses.iter().any(|&j| match self.class[j] {
                    Class::Virtual => self.escapes(self.result(j), inside),
                    _ => !inside(j),
                })
            })
    }

    /// Whether an op's virtual operands contain an index: tails don't know the coordinates of an element.
    fn needs_index(&self, i: usize) -> bool {
        self.node(i).operands.iter().any(|v| match self.def.get(v) {
            Some(&d) if self.class[d] == Class::Virtual => {
                matches!(self.node(d).op, Op::Index { .. }) || self.needs_index(d)
            }
            Some(_) => false,
            None => false,
        }) || self.sources(i).iter().any(|v| self.is_loop_index(*v))
    }

    /// A scalar i32 that no op of the region defines may be the index of the loop.
    fn is_loop_index(&self, v: ValueId) -> bool {
        let ty = self.graph.ty(v);
        !self.def.contains_key(&v) && ty.axes.is_empty() && ty.dtype == crate::graph::DType::I32
    }

    fn join_along_edges(&mut self) {
        for i in 0..self.ops.len() {
            if self.class[i] != Class::Loops {
                continue;
            }
            for v in self.sources(i) {
                let Some(&d) = self.def.get(&v) else { continue };
                let (Some(a), Some(b)) = (self.of[d], self.of[i]) else { continue };
                if let Some(space) = self.joined_space(a, b)
                    && self.can_join_without_cycle(a, b)
                {
                    self.merge(a, b, space);
                }
            }
        }
    }

    /// The space of two clusters in one, if there is a sensible one.
    fn joined_space(&self, a: usize, b: usize) -> Option<(Space, Space)> {
        if a == b {
            return None;
        }
        let (x, y) = (&self.clusters[a], &self.clusters[b]);
        let ((kx, rx), (ky, ry)) = (x.space.as_ref()?, y.space.as_ref()?);
        let paired = match (&x.paired, &y.paired) {
            (Some(p), Some(q)) if p != q => return None,
            (Some(p), _) | (_, Some(p)) => Some(p),
            (None, None) => None,
        };
        let full = |k: &Space, r: &Space| -> Space { k.union(r).cloned().collect() };
        let (kept, reduced) = match (rx.is_empty(), ry.is_empty()) {
            (true, true) if kx == ky => (kx.clone(), Space::new()),
            (false, false) if kx == ky && rx == ry => (kx.clone(), rx.clone()),
            (true, false) if *kx == full(ky, ry) || kx == ky => (ky.clone(), ry.clone()),
            (false, true) if *ky == full(kx, rx) || kx == ky => (kx.clone(), rx.clone()),
            _ => return None,
        };
        if paired.is_some_and(|(axis, _)| reduced.iter().any(|r| r.name == *axis)) {
            return None;
        }
        let merged: BTreeSet<usize> = x.ops.union(&y.ops).copied().collect();
        self.keeps_elements_in_order(&merged, &kept, &reduced).then_some((kept, reduced))
    }

    /// A kernel that stores elements should have enough rows for the threads, and rows that are contiguous.
    fn keeps_elements_in_order(&self, ops: &BTreeSet<usize>, kept: &Space, reduced: &Space) -> bool {
        if reduced.is_empty() {
            return true;
        }
        let writes_elements = ops.iter().any(|&i| {
            let r = self.result(i);
            self.space_of(r).len() == kept.len() + reduced.len() && self.escapes(r, &|j| ops.contains(&j))
        });
        if !writes_elements {
            return true;
        }
        let rows: u64 = kept.iter().map(|a| a.size).product();
        let elements: u64 = rows * reduced.iter().map(|a| a.size).product::<u64>();
        let trailing = ops.iter().all(|&i| match &self.node(i).op {
            Op::Reduce { axes, .. } => {
                let ty = self.graph.ty(self.node(i).operands[0]);
                ty.axes.iter().rev().take(axes.len()).all(|a| axes.contains(&a.name))
            }
            _ => true,
        });
        trailing && (rows >= MIN_ROWS || elements <= 64 * MIN_ROWS * MIN_ROWS)
    }

    fn join_siblings(&mut self) {
        let mut reads: Vec<BTreeSet<ValueId>> = (0..self.clusters.len())
            .map(|c| self.clusters[c].ops.iter().flat_map(|&o| self.sources(o)).collect())
            .collect();
        let is_scalar = |c: &Cluster| c.space.as_ref().is_some_and(|(k, r)| k.is_empty() && r.is_empty());
        let scalars: BTreeSet<usize> =
            (0..self.clusters.len()).filter(|c| is_scalar(&self.clusters[*c])).collect();
        let mut readers: BTreeMap<ValueId, BTreeSet<usize>> = BTreeMap::new();
        for (c, values) in reads.iter().enumerate() {
            for v in values {
                readers.entry(*v).or_default().insert(c);
            }
        }
        for a in 0..self.clusters.len() {
            let Some((kept, reduced)) = self.clusters[a].space.clone().filter(|_| self.clusters[a].alive)
            else {
                continue;
            };
            let elements: u64 = kept.iter().chain(&reduced).map(|x| x.size).product();
            let mut tried = BTreeSet::new();
            loop {
                // As the cluster grows it reads more, and more clusters are its siblings.
                let big = reads[a].iter().filter(|v| self.graph.ty(**v).numel() * SMALL > elements);
                let mut near: BTreeSet<usize> = big.flat_map(|v| &readers[v]).copied().collect();
                if scalars.contains(&a) {
                    near.extend(&scalars);
                }
                let next = near.into_iter().find(|b| *b > a && self.clusters[*b].alive && !tried.contains(b));
                let Some(b) = next else { break };
                tried.insert(b);
                if self.clusters[a].space == self.clusters[b].space
                    && let Some(space) = self.joined_space(a, b)
                    && self.can_join_without_cycle(a, b)
                {
                    self.merge(a, b, space);
                    let gained = std::mem::take(&mut reads[b]);
                    for v in &gained {
                        readers.entry(*v).or_default().insert(a);
                    }
                    reads[a].extend(gained);
                }
            }
        }
    }

    /// Clusters in an order in which each comes after those it needs, early ops first.
    fn order(&self) -> Vec<usize> {
        let mut left: Vec<(usize, usize, BTreeSet<usize>)> = (0..self.clusters.len())
            .filter(|c| self.clusters[*c].alive)
            .map(|c| (self.clusters[c].ops.last().copied().unwrap_or(0), c, self.needs(c)))
            .collect();
        left.sort();
        let mut order = Vec::new();
        let mut done = BTreeSet::new();
        while let Some(next) = left.iter().position(|(_, _, needs)| needs.iter().all(|n| done.contains(n))) {
            let (_, c, _) = left.remove(next);
            done.insert(c);
            order.push(c);
        }
        assert!(left.is_empty(), "clusters were joined into a cycle");
        order
    }

    fn store_or_recompute(&mut self) {
        for c in self.order().into_iter().rev() {
            let mut work: Vec<ValueId> = self.needed_values(c);
            while let Some(v) = work.pop() {
                let Some(&d) = self.def.get(&v) else { continue };
                if !self.is_loops(d) || self.of[d] == Some(c) || self.stored.contains(&v) {
                    continue;
                }
                if self.clusters[c].recomputed.contains(&d) {
                    continue;
                }
                match self.recomputation(c, v) {
                    Some(ops) => {
                        self.clusters[c].recomputed.extend(&ops);
                        for i in ops {
                            work.extend(self.sources(i));
                        }
                    }
                    None => {
                        self.stored.insert(v);
                    }
                }
            }
        }
    }

    /// Whether an op is in a cluster of loop ops: not in the tail of a product, whose result is stored and whose inner
    /// values exist nowhere else.
    fn is_loops(&self, i: usize) -> bool {
        self.class[i] == Class::Loops && self.of[i].is_some_and(|c| self.clusters[c].dot.is_none())
    }

    /// Values a cluster's needed ops load from elsewhere.
    fn needed_values(&self, c: usize) -> Vec<ValueId> {
        let (_, reads) = self.contents(c);
        reads
    }

    /// The ops that compute `v` inside cluster `c` from memory, if that moves fewer bytes than loading `v`.
    fn recomputation(&self, c: usize, v: ValueId) -> Option<BTreeSet<usize>> {
        let (kept, reduced) = self.clusters[c].space.as_ref()?;
        let space: u64 = kept.iter().chain(reduced).map(|a| a.size).product();
        let mut cone = BTreeSet::new();
        let mut leaves = BTreeSet::new();
        let mut stack = vec![v];
        while let Some(w) = stack.pop() {
            match self.def.get(&w) {
                Some(&d)
                    if self.is_loops(d)
                        && !self.stored.contains(&w)
                        && !matches!(self.node(d).op, Op::Reduce { .. } | Op::RotatePairs { .. }) =>
                {
                    if cone.insert(d) {
                        stack.extend(self.sources(d));
                    }
                }
                _ => {
                    leaves.insert(w);
                }
            }
        }
        if cone.is_empty() {
            return None;
        }
        let have: BTreeSet<ValueId> = self.needed_values(c).into_iter().collect();
        let extra: u64 = leaves.iter().filter(|l| !have.contains(l)).map(|l| self.bytes(*l)).sum();
        let expensive = cone.iter().filter(|i| self.node(**i).op.is_expensive()).count() as u64;
        let numel = self.graph.ty(v).numel();
        if numel * SMALL <= space {
            // Read from cache if stored; computing it per element must be next to free.
            let tiny_leaves = leaves.iter().all(|l| self.graph.ty(*l).numel() * SMALL <= space);
            return (expensive == 0 && cone.len() <= 3 && tiny_leaves && leaves.len() <= 2).then_some(cone);
        }
        let recompute = extra + expensive * EXPENSIVE_BYTES * numel;
        // Stored, it is written and read; on a tie (with some small operand on top) memory decides.
        (recompute <= 2 * self.bytes(v) + self.bytes(v) / SMALL).then_some(cone)
    }

    /// The ops of a cluster its outputs need (virtual and recomputed ones included), and the values they load.
    fn contents(&self, c: usize) -> (BTreeSet<usize>, Vec<ValueId>) {
        let cluster = &self.clusters[c];
        let mut inside = BTreeSet::new();
        let mut reads = Vec::new();
        let mut stack: Vec<ValueId> = self.outputs(c);
        while let Some(v) = stack.pop() {
            let here = self.def.get(&v).copied().filter(|d| {
                cluster.ops.contains(d) || cluster.recomputed.contains(d) || self.class[*d] == Class::Virtual
            });
            match here {
                Some(d) => {
                    if inside.insert(d) {
                        let is_product = cluster.dot == Some(d);
                        if !is_product {
                            stack.extend(self.node(d).operands.iter().rev());
                        }
                    }
                }
                None => {
                    if !reads.contains(&v) {
                        reads.push(v);
                    }
                }
            }
        }
        (inside, reads)
    }

    /// Values of a cluster others need.
    fn outputs(&self, c: usize) -> Vec<ValueId> {
        let cluster = &self.clusters[c];
        if cluster.dot.is_some() {
            let inside = |j: usize| cluster.ops.contains(&j);
            return cluster
                .ops
                .iter()
                .map(|i| self.result(*i))
                .filter(|v| self.escapes(*v, &inside))
                .collect();
        }
        let mut outputs = Vec::new();
        for &i in &cluster.ops {
            for r in &self.node(i).results {
                if self.stored.contains(r) {
                    outputs.push(*r);
                }
            }
        }
        outputs
    }

    fn plans(&self) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for c in self.order() {
            let cluster = &self.clusters[c];
            let first = *cluster.ops.first().expect("a live cluster has an op");
            match self.class[first] {
                Class::Loop => plans.push(Plan::Loop(self.ops[first])),
                Class::Single => plans.push(Plan::Single(self.ops[first])),
                Class::Dot => plans.push(self.gemm(c, first)?),
                Class::Loops => {
                    let (ops, reads) = self.contents(c);
                    let outputs = self.outputs(c);
                    if outputs.is_empty() {
                        continue;
                    }
                    let (kept, reduced) = cluster.space.clone().expect("loop ops have a space");
                    plans.push(Plan::Loops {
                        ops: ops.iter().map(|i| self.ops[*i]).collect(),
                        kept: self.in_type_order(&outputs, &reads, kept),
                        reduced: self.in_type_order(&reads, &outputs, reduced),
                        outputs,
                        reads,
                        paired: cluster.paired.clone(),
                    });
                }
                Class::Source | Class::Virtual | Class::View => {}
            }
        }
        Ok(plans)
    }

    fn gemm(&self, c: usize, dot: usize) -> Result<Plan> {
        let (mut ops, reads) = self.contents(c);
        ops.remove(&dot);
        let outputs = self.outputs(c);
        let [output] = outputs[..] else {
            return Err(self.refuse(dot, "the tail of a product leaves more than one value"));
        };
        Ok(Plan::Gemm { dot: self.ops[dot], ops: ops.iter().map(|i| self.ops[*i]).collect(), output, reads })
    }

    /// The axes of a space in the order types print them.
    fn in_type_order(&self, first: &[ValueId], then: &[ValueId], space: Space) -> Vec<Axis> {
        let mut axes: Vec<Axis> = Vec::new();
        let mut values: Vec<ValueId> = first.iter().chain(then).copied().collect();
        // The value with most axes decides; equal ones in order.
        values.sort_by_key(|v| std::cmp::Reverse(self.graph.ty(*v).axes.len()));
        for v in values {
            for axis in &self.graph.ty(v).axes {
                if space.contains(axis) && !axes.contains(axis) {
                    axes.push(axis.clone());
                }
            }
        }
        axes.extend(space.into_iter().filter(|a| !axes.contains(a)).collect::<Vec<_>>());
        axes
    }
}
