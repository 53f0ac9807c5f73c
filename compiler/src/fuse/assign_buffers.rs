//! Gives every stored value its place: a view of a buffer.
//!
//! Regions are walked from the outside in. A value that has to end up somewhere (a report, a new parameter, a loop's
//! stacked out, sum, carry or initial carry) *wants* that place. Its producer writes there directly if that is safe;
//! otherwise it gets a buffer of its own and a copy.
//!
//! A want is safe when
//! * the producer can write through the view (and add, where sums over iterations are wanted and nobody else reads the
//!   value), and
//! * where the place holds an old value (the carried one, the old parameter): everyone who reads the old value comes
//!   earlier, or is the producer itself, reading the very element it writes. A loop may write the slices of an old value it
//!   takes in slices: in its body the same rule holds for one slice.
//!
//! A carry that is also stacked out lives in the stack itself: slot `i` is what iteration `i` takes in and slot `i + 1`
//! what it gives (mirrored when the loop runs backwards), so nothing is copied.

use super::cluster::{self, Plan, unrepeated};
use super::{
    At, AttentionGradPart, Buffer, BufferId, Class, FuseError, Fused, Group, GroupId, Item, Kind, LoopId,
    Result, View, Write,
};
use crate::graph::{
    Axis, CompositeKind, DType, Graph, Loop, MeshOp, Name, Op, OpId, Origin, Output, RegionId, Sharding,
    Space, Type, ValueId, shape,
};
use std::collections::{BTreeMap, BTreeSet};

/// See the module's text.
///
/// # Errors
/// An op no kernel exists for.
pub fn assign_buffers(graph: Graph) -> Result<Fused> {
    let fused = Fused {
        buffers: Vec::new(),
        groups: Vec::new(),
        body: Vec::new(),
        views: BTreeMap::new(),
        indices: BTreeMap::new(),
        loops: 0,
        graph,
    };
    let host = fused.graph.host_values();
    let mut assign = Assign { f: fused, home: None, host };
    assign.sources();
    let wants = assign.output_wants()?;
    let body = assign.f.graph.body;
    assign.f.body = assign.region(body, wants)?;
    Ok(assign.f)
}

/// A place a value has to end up in.
#[derive(Clone, Debug)]
struct Want {
    view: View,
    /// Added to what is there.
    accumulate: bool,
    /// The value whose memory this is until then.
    over: Option<ValueId>,
    /// The loop (position in the plan) this is an initial carry of.
    initial_of: Option<usize>,
}

/// Whether a producer that reads the old value itself may write over it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Never,
    /// A kernel that reads the element it writes.
    Elements,
    /// A loop whose iterations read the slice they write.
    Slices,
}

struct Assign {
    f: Fused,
    home: Option<LoopId>,
    /// Values in the host's memory.
    host: BTreeSet<ValueId>,
}

/// What is known about one region while its values get places.
struct Scene {
    plans: Vec<Plan>,
    /// Positions of plans that read a value (renames looked through).
    readers: BTreeMap<ValueId, Vec<usize>>,
    /// Position of the plan that makes a value.
    maker: BTreeMap<ValueId, usize>,
    /// Renames of the region: result → (operand, pairs).
    renames: BTreeMap<ValueId, (ValueId, Vec<(Name, Name)>)>,
    /// Slices and ranks' parts of the region: result → operand.
    slices: BTreeMap<ValueId, ValueId>,
    wants: BTreeMap<ValueId, Vec<Want>>,
    /// Copies before everything else.
    start: Vec<Item>,
    /// Copies and fills before the loop at a position.
    before: BTreeMap<usize, Vec<Item>>,
    /// Copies after everything else.
    end: Vec<Item>,
}

impl Scene {
    fn base(&self, v: ValueId) -> ValueId {
        match self.renames.get(&v).map(|(operand, _)| operand).or(self.slices.get(&v)) {
            Some(operand) => self.base(*operand),
            None => v,
        }
    }

    fn readers_of(&self, v: ValueId) -> &[usize] {
        self.readers.get(&self.base(v)).map_or(&[], |r| r.as_slice())
    }

    /// Only wanted in one place and read by nobody.
    fn unread(&self, v: ValueId) -> bool {
        let sliced = self.slices.values().any(|operand| self.base(*operand) == v);
        !sliced && self.readers_of(v).is_empty() && self.wants.get(&v).is_none_or(|w| w.len() == 1)
    }
}

impl Assign {
    /// Buffers of parameters, states, scalars and inputs.
    fn sources(&mut self) {
        for op in self.f.graph.region(self.f.graph.body).ops.clone() {
            let node = self.f.graph.op(op).clone();
            let class = match &node.op {
                Op::Param { path, init } => Class::Param { path: path.clone(), init: *init },
                Op::State { param, kind } => Class::State { param: param.clone(), kind: kind.clone() },
                Op::Scalar { key, default } => Class::Scalar { key: key.clone(), default: *default },
                Op::Input { name, bound } => Class::Input { name: name.clone(), bound: *bound },
                Op::Const(_)
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
                | Op::CumSum { .. }
                | Op::RotatePairs { .. }
                | Op::Transfer { .. }
                | Op::Mesh(_)
                | Op::Slice { .. }
                | Op::Concat { .. }
                | Op::Loop(_)
                | Op::Composite(_)
                | Op::Update(_) => continue,
            };
            let v = node.results[0];
            let ty = self.f.graph.ty(v).clone();
            let view = self.buffer(self.f.graph.value_name(v).clone(), &ty, class, &node.origin);
            self.f.buffers[view.buffer.0 as usize].sharding = self.f.graph.sharding(v).clone();
            self.f.views.insert(v, view);
        }
    }

    fn output_wants(&mut self) -> Result<Vec<Option<Want>>> {
        let mut places: BTreeMap<Name, ValueId> = BTreeMap::new();
        for op in &self.f.graph.region(self.f.graph.body).ops {
            let node = self.f.graph.op(*op);
            match &node.op {
                Op::Param { path, .. } => {
                    places.insert(path.clone(), node.results[0]);
                }
                Op::State { param, kind } => {
                    places.insert(format!("{param}.{kind}").into(), node.results[0]);
                }
                _ => {}
            }
        }
        let results = self.f.graph.region(self.f.graph.body).results.clone();
        let outputs = self.f.graph.outputs.clone();
        let mut wants = Vec::new();
        for (v, output) in results.iter().zip(&outputs) {
            let ty = self.f.graph.ty(*v).clone();
            let want = match output {
                Output::Report(name) => {
                    let origin = self.origin_of(*v);
                    let class = Class::Output { name: name.clone() };
                    let view = self.buffer(name.clone(), &ty, class, &origin);
                    Want { view, accumulate: false, over: None, initial_of: None }
                }
                Output::Store(path) => {
                    let Some(old) = places.get(path) else {
                        return Err(FuseError {
                            op: "store".into(),
                            origin: self.origin_of(*v),
                            message: format!("there is no parameter or state `{path}` to store to"),
                        });
                    };
                    let view = self.f.views[old].clone();
                    Want { view, accumulate: false, over: Some(*old), initial_of: None }
                }
            };
            wants.push(Some(want));
        }
        Ok(wants)
    }

    fn origin_of(&self, v: ValueId) -> Origin {
        self.f
            .graph
            .ops
            .iter()
            .find(|node| node.results.contains(&v))
            .map_or_else(Origin::default, |node| node.origin.clone())
    }

    /// A new buffer for a value of this type, and the view of all of it.
    fn buffer(&mut self, name: Name, ty: &Type, class: Class, origin: &Origin) -> View {
        let id = BufferId(self.f.buffers.len() as u32);
        let pinned = match class {
            Class::Carry
            | Class::Stack
            | Class::Sum
            | Class::Received
            | Class::Staging
            | Class::Temporary => 0,
            Class::Param { .. }
            | Class::State { .. }
            | Class::Scalar { .. }
            | Class::Input { .. }
            | Class::Output { .. } => ty.axes.len(),
        };
        self.f.buffers.push(Buffer {
            name,
            dtype: ty.dtype,
            axes: ty.axes.clone(),
            pinned,
            class,
            home: self.home,
            space: Space::Device,
            sharding: Sharding::whole(),
            origin: origin.clone(),
            ring: None,
        });
        View::whole(id, ty)
    }

    fn space_of(&self, v: ValueId) -> Space {
        if self.host.contains(&v) { Space::Host } else { Space::Device }
    }

    fn value_buffer(&mut self, v: ValueId, class: Class, origin: &Origin) -> View {
        let (name, ty) = (self.f.graph.value_name(v).clone(), self.f.graph.ty(v).clone());
        let view = self.buffer(name, &ty, class, origin);
        self.f.buffers[view.buffer.0 as usize].space = self.space_of(v);
        view
    }

    /// A buffer for a stacked out of an unblocked loop, the loop's axis outermost and `slots` long.
    fn stack_buffer(&mut self, v: ValueId, l: &Loop, slots: u64, origin: &Origin) -> BufferId {
        let (name, ty) = (self.f.graph.value_name(v).clone(), self.f.graph.ty(v).clone());
        let mut axes = vec![Axis::new(&l.axis, slots)];
        axes.extend(ty.axes.iter().filter(|a| a.name != l.axis).cloned());
        let view = self.buffer(name, &Type::new(ty.dtype, axes), Class::Stack, origin);
        let space = self.space_of(v);
        let buffer = &mut self.f.buffers[view.buffer.0 as usize];
        (buffer.pinned, buffer.space) = (1, space);
        view.buffer
    }

    fn push(&mut self, group: Group) -> Item {
        let id = GroupId(self.f.groups.len() as u32);
        self.f.groups.push(group);
        Item::Group(id)
    }

    fn copy(&mut self, value: ValueId, from: View, to: View, accumulate: bool, origin: &Origin) -> Item {
        let write = Write { value: Some(value), view: to, accumulate };
        self.push(Group {
            kind: Kind::Copy { from },
            ops: Vec::new(),
            writes: vec![write],
            origin: origin.clone(),
        })
    }

    fn scene(&self, region: RegionId, plans: Vec<Plan>) -> Scene {
        let graph = &self.f.graph;
        let (mut renames, mut slices) = (BTreeMap::new(), BTreeMap::new());
        for &op in &graph.region(region).ops {
            let node = graph.op(op);
            match &node.op {
                Op::Rename { pairs } => {
                    renames.insert(node.results[0], (node.operands[0], pairs.clone()));
                }
                Op::Slice { .. } | Op::Mesh(MeshOp::LocalPart { .. }) => {
                    slices.insert(node.results[0], node.operands[0]);
                }
                _ => {}
            }
        }
        let definitions = graph.definitions(region);
        let mut scene = Scene {
            plans: Vec::new(),
            readers: BTreeMap::new(),
            maker: BTreeMap::new(),
            renames,
            slices,
            wants: BTreeMap::new(),
            start: Vec::new(),
            before: BTreeMap::new(),
            end: Vec::new(),
        };
        for (i, plan) in plans.iter().enumerate() {
            let operands = |op: &OpId| -> Vec<ValueId> {
                let node = graph.op(*op);
                match &node.op {
                    Op::Concat { .. } => {
                        node.operands.iter().map(|v| unrepeated(graph, &definitions, *v)).collect()
                    }
                    _ => node.operands.clone(),
                }
            };
            let results = |op: &OpId| graph.op(*op).results.clone();
            let (reads, makes) = match plan {
                Plan::Loops { reads, outputs, .. } => (reads.clone(), outputs.clone()),
                Plan::Gemm { dot, reads, output, .. } => {
                    ([operands(dot), reads.clone()].concat(), vec![*output])
                }
                Plan::Single(op) | Plan::Loop(op) => (operands(op), results(op)),
            };
            for v in reads {
                let base = scene.base(v);
                let readers = scene.readers.entry(base).or_default();
                if readers.last() != Some(&i) {
                    readers.push(i);
                }
            }
            scene.maker.extend(makes.into_iter().map(|v| (v, i)));
        }
        scene.plans = plans;
        scene
    }

    /// Adds a want for a value, or for the value it is a rename of.
    fn want(scene: &mut Scene, v: ValueId, mut want: Want) {
        let mut v = v;
        while let Some((operand, pairs)) = scene.renames.get(&v) {
            let back: Vec<(Name, Name)> = pairs.iter().map(|(a, b)| (b.clone(), a.clone())).collect();
            want.view = want.view.renamed(&back);
            v = *operand;
        }
        scene.wants.entry(v).or_default().push(want);
    }

    /// Places the values of a region whose arguments have their views; gives its items.
    fn region(&mut self, region: RegionId, wants: Vec<Option<Want>>) -> Result<Vec<Item>> {
        let plans = cluster::cluster(&self.f.graph, region)?;
        let mut scene = self.scene(region, plans);
        let results = self.f.graph.region(region).results.clone();
        for (v, want) in results.iter().zip(wants) {
            if let Some(want) = want {
                Self::want(&mut scene, *v, want);
            }
        }
        let mut loops: BTreeMap<usize, LoopPlaces> = BTreeMap::new();
        for i in (0..scene.plans.len()).rev() {
            if let Plan::Loop(op) = scene.plans[i] {
                let places = self.place_loop(&mut scene, i, op);
                loops.insert(i, places);
            }
        }
        let mut items_at: BTreeMap<usize, Vec<Group>> = BTreeMap::new();
        for i in 0..scene.plans.len() {
            let plan = scene.plans[i].clone();
            let groups = self.place_groups(&mut scene, i, &plan)?;
            items_at.insert(i, groups);
        }
        self.place_views(&scene, region);
        self.late_operands(&mut items_at);
        self.parts_of_concats(region, &scene, &mut items_at);
        self.copies(&mut scene);
        let mut items = std::mem::take(&mut scene.start);
        for i in 0..scene.plans.len() {
            items.extend(scene.before.remove(&i).unwrap_or_default());
            if let Some(places) = loops.remove(&i) {
                let item = self.loop_item(places)?;
                items.push(item);
            }
            for group in items_at.remove(&i).unwrap_or_default() {
                let item = self.push(group);
                items.push(item);
            }
        }
        items.append(&mut scene.end);
        Ok(items)
    }

    /// Takes the first want of a value its producer, at position `i`, can satisfy.
    fn take_want(&self, scene: &mut Scene, v: ValueId, i: usize, can_add: bool, over: Over) -> Option<Want> {
        let wants = scene.wants.get(&v)?;
        let dtype = self.f.graph.ty(v).dtype;
        let fits = |w: &Want| {
            let free = match w.over {
                None => true,
                Some(old) => scene
                    .readers_of(old)
                    .iter()
                    .all(|&r| r < i || (r == i && self.may_write_over(scene, i, old, over))),
            };
            let only_initial = w.initial_of.is_none_or(|l| {
                let Plan::Loop(op) = scene.plans[l] else { return false };
                let times = self.f.graph.op(op).operands.iter().filter(|o| scene.base(**o) == v).count();
                wants.len() == 1 && times == 1 && scene.readers_of(v).iter().all(|&r| r <= l)
            });
            let addable = !w.accumulate || (can_add && scene.unread(v));
            let place = self.f.buffer(w.view.buffer);
            free && only_initial && addable && place.dtype == dtype && place.space == self.space_of(v)
        };
        let found = wants.iter().position(fits)?;
        let wants = scene.wants.get_mut(&v).expect("looked up above");
        Some(wants.remove(found))
    }

    fn may_write_over(&self, scene: &Scene, i: usize, old: ValueId, over: Over) -> bool {
        match over {
            Over::Never => false,
            Over::Elements => self.reads_itself(scene, i, old),
            Over::Slices => self.slice_of(scene, i, old).is_some(),
        }
    }

    /// The argument that is a slice of `old` in the body of the loop at position `i`, if the loop takes it in no other way.
    fn slice_of(&self, scene: &Scene, i: usize, old: ValueId) -> Option<ValueId> {
        let Plan::Loop(op) = &scene.plans[i] else { return None };
        let node = self.f.graph.op(*op);
        let Op::Loop(l) = &node.op else { return None };
        let same = |v: &ValueId| scene.base(*v) == scene.base(old);
        let at = node.operands.iter().position(|v| *v == old)?;
        let sliced = l.block.is_none() && (l.carries..l.carries + l.stacked).contains(&at);
        let once = node.operands.iter().filter(|v| same(v)).count() == 1;
        (sliced && once).then(|| self.f.graph.region(l.body).args[1 + at])
    }

    /// Whether the plan reads `old` under its own name, so that every element is read where it is written.
    fn reads_itself(&self, scene: &Scene, i: usize, old: ValueId) -> bool {
        match &scene.plans[i] {
            Plan::Loops { reads, paired, .. } => {
                paired.is_none() && reads.iter().all(|r| *r == old || scene.base(*r) != scene.base(old))
            }
            Plan::Gemm { .. } | Plan::Single(_) | Plan::Loop(_) => false,
        }
    }

    /// Chooses where a loop's results live, and asks for its initial carries.
    fn place_loop(&mut self, scene: &mut Scene, i: usize, op: OpId) -> LoopPlaces {
        let node = self.f.graph.op(op).clone();
        let Op::Loop(l) = &node.op else { unreachable!("planned as a loop") };
        let body = self.f.graph.region(l.body).clone();
        let id = LoopId(self.f.loops);
        self.f.loops += 1;
        let mut places = LoopPlaces {
            id,
            op,
            carries: Vec::new(),
            outs: vec![None; node.results.len()],
            fills: Vec::new(),
        };
        for (j, &v) in node.results.iter().enumerate().skip(l.carries) {
            let is_sum = j >= l.carries + l.stacked_outs;
            // Reports name the op that makes the slices, not the loop.
            let origin = self.origin_of(body.results[j]);
            let origin = if origin.line.line > 0 { origin } else { node.origin.clone() };
            let carried = (0..l.carries).find(|c| body.results[j] == body.args[c + 1]);
            let writes = if is_sum { Over::Never } else { Over::Slices };
            let mut over = None;
            let (view, adds) = match self.take_want(scene, v, i, true, writes) {
                Some(want) => {
                    over = want.over.and_then(|old| self.slice_of(scene, i, old));
                    (want.view, want.accumulate)
                }
                None if is_sum => (self.value_buffer(v, Class::Sum, &origin), false),
                None => match (carried, l.block) {
                    (Some(c), None) if places.carries.iter().all(|(k, _)| *k != c) => {
                        let buffer = self.stack_buffer(v, l, l.trip + 1, &origin);
                        let carry = self.stack_carry(buffer, v, l);
                        let view = carry.stacked.clone();
                        places.carries.push((c, carry));
                        self.f.views.insert(v, view);
                        continue;
                    }
                    (_, None) => {
                        let buffer = self.stack_buffer(v, l, l.trip, &origin);
                        (View::whole(buffer, self.f.graph.ty(v)), false)
                    }
                    (_, Some(_)) => (self.value_buffer(v, Class::Stack, &origin), false),
                },
            };
            self.f.views.insert(v, view.clone());
            let zeroed = is_sum && l.trip > 1 && !adds;
            if zeroed {
                places.fills.push(view.clone());
            }
            let inner = if is_sum { view } else { view.slice(&l.axis, l.block, id) };
            places.outs[j] = Some(Want { view: inner, accumulate: adds || zeroed, over, initial_of: None });
        }
        for c in 0..l.carries {
            let v = node.results[c];
            let carry = match places.carries.iter().find(|(k, _)| *k == c) {
                Some((_, carry)) => carry.clone(),
                None => {
                    // A place with an old value in it would have to outlive the loop's own readers.
                    let free = scene.wants.get(&v).is_some_and(|w| w.iter().all(|w| w.over.is_none()));
                    let want = if free { self.take_want(scene, v, i, false, Over::Never) } else { None };
                    let view = match want {
                        Some(want) => want.view,
                        None => self.value_buffer(v, Class::Carry, &node.origin),
                    };
                    let carry = CarryPlace::one(view);
                    places.carries.push((c, carry.clone()));
                    carry
                }
            };
            self.f.views.insert(v, carry.last.clone());
            let want = Want { view: carry.first.clone(), accumulate: false, over: None, initial_of: Some(i) };
            Self::want(scene, node.operands[c], want);
            let over = carry.in_place.then(|| body.args[c + 1]);
            places.outs[c] =
                Some(Want { view: carry.gives(l, id), accumulate: false, over, initial_of: None });
        }
        let fills: Vec<View> = places.fills.clone();
        for view in fills {
            let write = Write { value: None, view, accumulate: false };
            let fill = self.push(Group {
                kind: Kind::Fill,
                ops: Vec::new(),
                writes: vec![write],
                origin: node.origin.clone(),
            });
            scene.before.entry(i).or_default().push(fill);
        }
        places
    }

    /// The places of a carry that lives in its stack of `trip + 1` slots.
    fn stack_carry(&self, buffer: BufferId, stacked: ValueId, l: &Loop) -> CarryPlace {
        let ty = self.f.graph.ty(stacked);
        let all = View::whole(buffer, ty);
        let fixed = |n| all.at(&l.axis, None, At::Fixed(n));
        let (first, last, in_slot) = if l.reverse { (l.trip, 0, 1) } else { (0, l.trip, 0) };
        let moved = |view: &View, n: u64| if n == 0 { view.clone() } else { view.moved(&l.axis, n) };
        CarryPlace {
            first: fixed(first),
            last: fixed(last),
            stacked: moved(&all, in_slot),
            result: moved(&all, 1 - in_slot),
            in_place: false,
        }
    }

    fn loop_item(&mut self, places: LoopPlaces) -> Result<Item> {
        let node = self.f.graph.op(places.op).clone();
        let Op::Loop(l) = &node.op else { unreachable!("planned as a loop") };
        let args = self.f.graph.region(l.body).args.clone();
        let results = self.f.graph.region(l.body).results.clone();
        self.f.indices.insert(args[0], places.id);
        for (i, (arg, operand)) in args[1..].iter().zip(&node.operands).enumerate() {
            let view = if i < l.carries {
                let (_, carry) = places.carries.iter().find(|(c, _)| *c == i).expect("one per carry");
                carry.takes(l, places.id)
            } else {
                let outer = self.f.views[operand].clone();
                if i < l.carries + l.stacked { outer.slice(&l.axis, l.block, places.id) } else { outer }
            };
            self.f.views.insert(*arg, view);
        }
        let outer_home = self.home.replace(places.id);
        debug_assert_eq!(results.len(), places.outs.len());
        let body = self.region(l.body, places.outs)?;
        self.home = outer_home;
        Ok(Item::Loop { id: places.id, op: places.op, trip: l.trip, reverse: l.reverse, body })
    }

    /// Groups of one plan, their results placed. Loops give none.
    fn place_groups(&mut self, scene: &mut Scene, i: usize, plan: &Plan) -> Result<Vec<Group>> {
        Ok(match plan {
            Plan::Loop(_) => Vec::new(),
            Plan::Loops { ops, outputs, reads, kept, reduced, paired } => {
                let origin = self.origin_of(*outputs.last().expect("a group has an output"));
                let writes = outputs
                    .iter()
                    .map(|v| self.place_result(scene, *v, i, true, Over::Elements, &origin))
                    .collect();
                let kind = Kind::Loops {
                    kept: kept.clone(),
                    reduced: reduced.clone(),
                    paired: paired.clone(),
                    reads: reads.clone(),
                };
                vec![Group { kind, ops: ops.clone(), writes, origin }]
            }
            Plan::Gemm { dot, ops, output, reads } => {
                let origin = self.f.graph.op(*dot).origin.clone();
                let write = self.place_result(scene, *output, i, ops.is_empty(), Over::Never, &origin);
                // Operand views are known once all results of the region have places; see `late_operands`.
                let unknown = write.view.clone();
                let kind = Kind::Gemm { dot: *dot, a: unknown.clone(), b: unknown, extras: reads.clone() };
                vec![Group { kind, ops: ops.clone(), writes: vec![write], origin }]
            }
            Plan::Single(op) => self.place_single(scene, i, *op)?,
        })
    }

    fn place_single(&mut self, scene: &mut Scene, i: usize, op: OpId) -> Result<Vec<Group>> {
        let node = self.f.graph.op(op).clone();
        let can_add = matches!(node.op, Op::ScatterAdd { .. });
        let writes: Vec<Write> = node
            .results
            .iter()
            .map(|v| self.place_result(scene, *v, i, can_add, Over::Never, &node.origin))
            .collect();
        let group = |kind: Kind, writes: Vec<Write>| Group {
            kind,
            ops: vec![op],
            writes,
            origin: node.origin.clone(),
        };
        Ok(match &node.op {
            Op::Gather { .. } => vec![group(Kind::Gather { op }, writes)],
            Op::ScatterAdd { .. } => vec![group(Kind::Scatter { op }, writes)],
            Op::Transfer { .. } => {
                // The operand's view is known once all results of the region have places.
                let unknown = writes[0].view.clone();
                vec![group(Kind::Copy { from: unknown }, writes)]
            }
            Op::CumSum { .. } => vec![group(Kind::Scan { op }, writes)],
            Op::Mesh(MeshOp::Collective(_)) => {
                for write in &writes {
                    let buffer = &mut self.f.buffers[write.view.buffer.0 as usize];
                    if buffer.class == Class::Temporary {
                        buffer.class = Class::Received;
                    }
                }
                let name = format!("{}.staging", self.f.graph.value_name(node.results[0]));
                let ty = Type::new(DType::Bool, vec![Axis::new("bytes", 1)]);
                // Its size follows from layouts: see `collective::size_staging`.
                let staging = self.buffer(name.into(), &ty, Class::Staging, &node.origin).buffer;
                vec![group(Kind::Collective { op, staging }, writes)]
            }
            Op::Concat { parts, axis } => {
                let whole = &writes[0];
                let mut at = 0;
                let mut groups = Vec::new();
                for (operand, part) in node.operands.iter().zip(parts) {
                    let size = self.f.graph.ty(*operand).size_of(part).expect("checked by the shape rule");
                    let view = whole.view.part(axis, part, at, size);
                    // Where the part comes from is known later; see `parts_of_concats`.
                    let kind = Kind::Copy { from: view.clone() };
                    let write = Write { view, ..whole.clone() };
                    groups.push(Group {
                        kind,
                        ops: Vec::new(),
                        writes: vec![write],
                        origin: node.origin.clone(),
                    });
                    at += size;
                }
                groups
            }
            Op::Composite(c) => match &c.kind {
                CompositeKind::Attention(_) => vec![group(Kind::Attention { op }, writes)],
                CompositeKind::Custom(_) => vec![group(Kind::Custom { op }, writes)],
                CompositeKind::AttentionGrad(a) => {
                    let extras = a.learned.iter().map(|i| (AttentionGradPart::Extra(*i as u32), 1));
                    let parts = [(AttentionGradPart::Query, 1), (AttentionGradPart::KeyValue, 2)];
                    let mut writes = writes.into_iter();
                    let mut take = |(part, n)| {
                        group(Kind::AttentionGrad { op, part }, writes.by_ref().take(n).collect())
                    };
                    parts.into_iter().chain(extras).map(&mut take).collect()
                }
                CompositeKind::Softmax { .. }
                | CompositeKind::RmsNorm { .. }
                | CompositeKind::LayerNorm { .. }
                | CompositeKind::Rope { .. }
                | CompositeKind::CrossEntropy { .. }
                | CompositeKind::LossHead(_)
                | CompositeKind::GroupedDot { .. }
                | CompositeKind::GroupedOuter { .. } => return Err(self.refuse(op)),
            },
            _ => return Err(self.refuse(op)),
        })
    }

    fn refuse(&self, op: OpId) -> FuseError {
        let node = self.f.graph.op(op);
        FuseError {
            op: shape::op_name(&node.op),
            origin: node.origin.clone(),
            message: "no kernel computes this op".into(),
        }
    }

    fn place_result(
        &mut self,
        scene: &mut Scene,
        v: ValueId,
        i: usize,
        can_add: bool,
        over: Over,
        origin: &Origin,
    ) -> Write {
        let (view, accumulate) = match self.take_want(scene, v, i, can_add, over) {
            Some(want) => (want.view, want.accumulate),
            None => (self.value_buffer(v, Class::Temporary, origin), false),
        };
        self.f.views.insert(v, view.clone());
        Write { value: Some(v), view, accumulate }
    }

    /// Views of the region's renames, slices and ranks' parts.
    fn place_views(&mut self, scene: &Scene, region: RegionId) {
        for op in self.f.graph.region(region).ops.clone() {
            let node = self.f.graph.op(op);
            let v = node.results.first().copied();
            if let Op::Slice { from, to, at } = &node.op
                && let Some(view) = self.f.views.get(&node.operands[0])
            {
                let size = self.f.graph.ty(node.results[0]).size_of(to).expect("checked by the shape rule");
                let view = view.part(from, to, *at, size);
                self.f.views.insert(node.results[0], view);
                continue;
            }
            if let Op::Mesh(MeshOp::LocalPart { axis, over }) = &node.op
                && let Some(view) = self.f.views.get(&node.operands[0])
            {
                let view = view.local_part(axis, over, &self.f.graph.mesh);
                self.f.views.insert(node.results[0], view);
                continue;
            }
            if let Some((operand, pairs)) = v.and_then(|v| scene.renames.get(&v))
                && let Some(view) = self.f.views.get(operand)
            {
                let view = view.renamed(pairs);
                self.f.views.insert(v.expect("a rename has a result"), view);
            }
        }
    }

    /// What the copies that make up a concat read.
    fn parts_of_concats(&self, region: RegionId, scene: &Scene, groups: &mut BTreeMap<usize, Vec<Group>>) {
        let graph = &self.f.graph;
        let definitions = graph.definitions(region);
        for (i, copies) in groups {
            let Plan::Single(op) = scene.plans[*i] else { continue };
            let node = graph.op(op);
            if let Op::Concat { .. } = node.op {
                for (copy, operand) in copies.iter_mut().zip(&node.operands) {
                    let from = self.f.views[&unrepeated(graph, &definitions, *operand)].clone();
                    copy.kind = Kind::Copy { from };
                }
            }
        }
    }

    /// Operands of products and transfers, which may be renames of what the region makes.
    fn late_operands(&self, groups: &mut BTreeMap<usize, Vec<Group>>) {
        let view = |op: OpId, i: usize| self.f.views[&self.f.graph.op(op).operands[i]].clone();
        for group in groups.values_mut().flatten() {
            match &mut group.kind {
                Kind::Gemm { dot, a, b, .. } => (*a, *b) = (view(*dot, 0), view(*dot, 1)),
                // The parts of a concat have no op of their own.
                Kind::Copy { from } => group.ops.iter().for_each(|op| *from = view(*op, 0)),
                Kind::Loops { .. }
                | Kind::Fill
                | Kind::Gather { .. }
                | Kind::Scatter { .. }
                | Kind::Scan { .. }
                | Kind::Attention { .. }
                | Kind::AttentionGrad { .. }
                | Kind::Custom { .. }
                | Kind::Collective { .. } => {}
            }
        }
    }

    /// Copies for the wants nobody could take. What the region only takes in is copied first, before anything is
    /// overwritten; what it makes, last; initial carries right before their loop.
    fn copies(&mut self, scene: &mut Scene) {
        for (v, wants) in std::mem::take(&mut scene.wants) {
            let origin = self.origin_of(v);
            for want in wants {
                let from = self.f.views[&v].clone();
                if !want.accumulate && from.same_place(&want.view) {
                    continue;
                }
                let made_here = scene.maker.contains_key(&scene.base(v));
                if want.initial_of.is_none() && !made_here && want.over.is_some() {
                    // The source may be overwritten on the way, as when two carries change places.
                    let kept = self.value_buffer(v, Class::Temporary, &origin);
                    let save = self.copy(v, from, kept.clone(), false, &origin);
                    scene.start.push(save);
                    let item = self.copy(v, kept, want.view, want.accumulate, &origin);
                    scene.end.push(item);
                    continue;
                }
                let item = self.copy(v, from, want.view, want.accumulate, &origin);
                match want.initial_of {
                    Some(l) => scene.before.entry(l).or_default().push(item),
                    None if made_here => scene.end.push(item),
                    None => scene.start.push(item),
                }
            }
        }
    }
}

/// Where a carry lives.
#[derive(Clone, Debug)]
struct CarryPlace {
    /// What the first iteration takes.
    first: View,
    /// What the last iteration gives.
    last: View,
    /// The stack, when it lives in one: slot `i` is what iteration `i` takes.
    stacked: View,
    /// The stack, slot `i` being what iteration `i` gives.
    result: View,
    /// One place for both.
    in_place: bool,
}

impl CarryPlace {
    fn one(view: View) -> CarryPlace {
        CarryPlace {
            first: view.clone(),
            last: view.clone(),
            stacked: view.clone(),
            result: view,
            in_place: true,
        }
    }

    fn takes(&self, l: &Loop, id: LoopId) -> View {
        if self.in_place { self.first.clone() } else { self.stacked.slice(&l.axis, None, id) }
    }

    fn gives(&self, l: &Loop, id: LoopId) -> View {
        if self.in_place { self.first.clone() } else { self.result.slice(&l.axis, None, id) }
    }
}

/// Places of one loop.
struct LoopPlaces {
    id: LoopId,
    op: OpId,
    carries: Vec<(usize, CarryPlace)>,
    /// One per result: where the body's result goes; `None` when it is there already.
    outs: Vec<Option<Want>>,
    fills: Vec<View>,
}
