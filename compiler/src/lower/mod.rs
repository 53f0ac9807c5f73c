//! From placed groups to the [`Program`]: kernel specs, launches, and what the runtime must know.
//!
//! In: a [`Plan`] and what the spec says about the entries. Out: a [`Program`]. Equal kernel specs are one kernel, whatever
//! launches them; a kernel's name says its kind and sizes. Equal collectives are one line of the runtime's table.
//!
//! What always holds: a launch passes one address per buffer of its kernel and one scalar per loop index its region
//! reads; buffers of one address are one buffer of the kernel; addresses stay inside the arena for every value of the
//! loop variables ([`crate::memory::verify`]).

#[cfg(test)]
pub(crate) mod attend_tests;
pub mod attention;
#[cfg(test)]
mod attention_tests;
#[cfg(test)]
mod bounds_tests;
pub mod collective;
mod custom;
pub mod gemm;
pub mod lookup;
pub mod loops;
mod mesh;
mod names;
#[cfg(test)]
mod rank_tests;
#[cfg(test)]
mod rotate_tests;
pub mod scalar;
pub mod simulate;
#[cfg(test)]
mod tests;
pub mod unroll_repeats;

use crate::fuse::{Class, FuseError, Fused, Group, GroupId, Item, Kind, LoopId, Result, Turn, View};
use crate::graph::{Space, shape};
use crate::memory::{EntryPlan, Plan};
use crate::schedule::times::moved;
use mlc_codegen::abi::{
    CollectiveInfo, DType, EntryInfo, InputInfo, InputSource, OpInfo, OutputInfo, Place, ProgramInfo,
    ScalarInfo, SpaceInfo, TensorInfo, TensorRole,
};
use mlc_codegen::program::{
    Address, CollectiveStage, Entry, Kernel, KernelSpec, Launch, LoopStride, LoopVar, Program, RankStride,
    ScalarArg, Step,
};
use std::collections::{BTreeMap, BTreeSet};

/// What the spec says about an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryMeta {
    /// `train`, `eval` or `logits`.
    pub name: String,
    /// Sequences per call.
    pub batch: u64,
    /// Tokens per sequence.
    pub seq: u64,
    /// What fills the inputs, by name.
    pub inputs: Vec<(String, InputSource)>,
}

impl EntryMeta {
    /// What fills an input. That of the entry `logits` that no spec declares is the position.
    fn source(&self, input: &str) -> InputSource {
        let declared = self.inputs.iter().find(|(name, _)| name == input);
        declared.map_or(InputSource::Position, |(_, source)| *source)
    }
}

/// A group as a kernel with the views it runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// What it computes.
    pub spec: KernelSpec,
    /// One per buffer of the spec.
    pub views: Vec<View>,
    /// One per scalar of the spec.
    pub indices: Vec<LoopId>,
    /// Floating point operations of its matrix products.
    pub flops: u64,
}

/// The buffers of a kernel while its operands are made.
#[derive(Default)]
pub struct MadeKernel {
    /// One per buffer.
    pub views: Vec<View>,
}

impl MadeKernel {
    /// The number of the buffer that starts where the view does.
    pub fn buffer(&mut self, view: &View) -> u32 {
        let same = |v: &View| v.buffer == view.buffer && v.slots == view.slots;
        match self.views.iter().position(same) {
            Some(i) => i as u32,
            None => {
                self.views.push(view.clone());
                self.views.len() as u32 - 1
            }
        }
    }
}

/// Lowers one group.
///
/// # Errors
/// What its kind can't express.
pub fn lower_group(fused: &Fused, group: &Group) -> Result<Lowered> {
    match &group.kind {
        Kind::Loops { .. } | Kind::Copy { .. } | Kind::Fill => loops::lower(fused, group),
        Kind::Gemm { .. } => gemm::lower(fused, group),
        Kind::Gather { op } => lookup::gather(fused, group, *op),
        Kind::Scatter { op } => lookup::scatter(fused, group, *op),
        Kind::Scan { op } => lookup::scan(fused, group, *op),
        Kind::Attention { op } | Kind::AttentionGrad { op, .. } => attention::lower(fused, group, *op),
        Kind::Custom { op } => custom::lower(fused, group, *op),
        Kind::Collective { op, .. } => Err(FuseError {
            op: shape::op_name(&fused.graph.op(*op).op),
            origin: group.origin.clone(),
            message: "a collective is no kernel".into(),
        }),
    }
}

/// Makes the program. `info` holds what does not come from the plan (model, spec, names, defaults of the run); its spaces,
/// entries, scalars, tensors and ops are filled here.
///
/// # Errors
/// A group no kernel can compute.
///
/// # Panics
/// `entries` has not one element per entry of the plan.
pub fn to_program(plan: &Plan, entries: &[EntryMeta], mut info: ProgramInfo) -> Result<Program> {
    assert_eq!(plan.entries.len(), entries.len(), "one description per planned entry");
    info.spaces = vec![SpaceInfo { name: "device".into(), bytes: plan.arena_bytes }];
    if plan.host_bytes > 0 {
        info.spaces.push(SpaceInfo { name: "host".into(), bytes: plan.host_bytes });
    }
    info.entries.clear();
    info.ops.clear();
    info.scalars.clear();
    info.tensors.clear();
    info.collectives.clear();
    let graphs = plan.entries.iter().map(|e| &e.schedule.fused.graph);
    info.mesh = mesh::axes(graphs.clone().next().map(|g| &g.mesh));
    debug_assert!(graphs.clone().all(|g| mesh::axes(Some(&g.mesh)) == info.mesh), "one mesh for all entries");
    let mut made = Program { info, kernels: Vec::new(), entries: Vec::new(), streams: 1 };
    let mut kernels = Kernels::default();
    for (entry, meta) in plan.entries.iter().zip(entries) {
        let mut lowering = LowerEntry {
            entry,
            kernels: &mut kernels,
            ops: &mut made.info.ops,
            collectives: &mut made.info.collectives,
            started: BTreeMap::new(),
            loops: BTreeMap::new(),
            turned: None,
            flops: 0,
        };
        find_loops(&entry.schedule.fused.body, &mut lowering.loops);
        let body = lowering.items(&entry.schedule.fused.body, 1)?;
        let flops = lowering.flops;
        made.entries.push(Entry { name: meta.name.clone(), body });
        made.info.entries.push(entry_info(entry, meta, flops));
        persistent_info(entry, &mut made.info);
    }
    made.info.tensors.sort_by_key(|t| (t.place.space, t.place.offset));
    made.info.scalars.sort_by_key(|s| (s.place.space, s.place.offset));
    made.kernels = kernels.all;
    Ok(made)
}

/// The group of every op of the first entry of a program, in the order of the op table: of a kernel one for each place where
/// it stands, of a collective one for all its halves.
pub fn groups_of_ops(items: &[Item]) -> Vec<GroupId> {
    fn walk(items: &[Item], seen: &mut BTreeSet<GroupId>, groups: &mut Vec<GroupId>) {
        for item in items {
            match item {
                Item::Group(id) => groups.push(*id),
                Item::Start(id) | Item::Done(id) if seen.insert(*id) => groups.push(*id),
                Item::Start(_) | Item::Done(_) => {}
                Item::Turned { item, .. } => walk(std::slice::from_ref(item), seen, groups),
                Item::Loop { body, .. } => walk(body, seen, groups),
            }
        }
    }
    let mut groups = Vec::new();
    walk(items, &mut BTreeSet::new(), &mut groups);
    groups
}

/// Distinct kernels by content.
#[derive(Default)]
struct Kernels {
    all: Vec<Kernel>,
    by_content: BTreeMap<String, u32>,
    by_name: BTreeMap<String, u32>,
}

impl Kernels {
    fn add(&mut self, spec: KernelSpec) -> u32 {
        // Debug text is exact for floats, infinities included.
        let content = format!("{spec:?}");
        if let Some(i) = self.by_content.get(&content) {
            return *i;
        }
        let base = names::kernel_name(&spec);
        let count = self.by_name.entry(base.clone()).or_insert(0);
        *count += 1;
        let name = if *count == 1 { base } else { format!("{base}_{count}") };
        let i = self.all.len() as u32;
        self.all.push(Kernel { name, spec });
        self.by_content.insert(content, i);
        i
    }
}

struct LowerEntry<'a> {
    entry: &'a EntryPlan,
    kernels: &'a mut Kernels,
    ops: &'a mut Vec<OpInfo>,
    collectives: &'a mut Vec<CollectiveInfo>,
    /// Collectives with their lines of the op table and of the table of collectives.
    started: BTreeMap<GroupId, (u32, u32)>,
    /// Iterations of every loop, and whether it counts down.
    loops: BTreeMap<LoopId, (u64, bool)>,
    /// The iteration that is lowered, if it is not the one around.
    turned: Option<(LoopId, Turn)>,
    flops: u64,
}

fn find_loops(items: &[Item], loops: &mut BTreeMap<LoopId, (u64, bool)>) {
    for item in items {
        if let Item::Loop { id, trip, reverse, body, .. } = item {
            loops.insert(*id, (*trip, *reverse));
            find_loops(body, loops);
        }
    }
}

impl LowerEntry<'_> {
    fn items(&mut self, items: &[Item], times: u64) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for item in items {
            match item {
                Item::Group(id) => {
                    let group = self.entry.schedule.fused.group(*id);
                    steps.push(Step::Launch(self.launch(group, times)?));
                }
                Item::Start(id) => steps.push(Step::Collective(self.half(*id, CollectiveStage::Start))),
                Item::Done(id) => steps.push(Step::Collective(self.half(*id, CollectiveStage::Done))),
                Item::Turned { of, turn, item } => {
                    steps.extend(self.turned(*of, *turn, item, times)?);
                }
                Item::Loop { id, trip, reverse, body, .. } => {
                    let body = self.items(body, times * trip)?;
                    steps.push(Step::Loop { var: LoopVar(id.0), trip: *trip, reverse: *reverse, body });
                }
            }
        }
        Ok(steps)
    }

    /// An item for another iteration: nothing where there is none.
    fn turned(&mut self, of: LoopId, turn: Turn, item: &Item, times: u64) -> Result<Vec<Step>> {
        let (trip, reverse) = self.loops[&of];
        // In a body, `times` counts iterations of the loop, too.
        let runs = match turn {
            Turn::By(n) => times / trip * trip.saturating_sub(n.unsigned_abs()),
            Turn::At(_) => times,
        };
        self.turned = Some((of, turn));
        let body = self.items(std::slice::from_ref(item), runs);
        self.turned = None;
        let body = body?;
        Ok(match turn {
            Turn::At(_) => body,
            Turn::By(n) => {
                // Where the loop counts down, a later iteration has a smaller index.
                let up = (n > 0) != reverse;
                let n = n.unsigned_abs();
                let (from, below) = if up { (0, trip.saturating_sub(n)) } else { (n, trip) };
                let var = LoopVar(of.0);
                if from < below { vec![Step::Within { var, from, below, body }] } else { Vec::new() }
            }
        })
    }

    /// How far the index of a loop is from its variable, or what it is.
    fn index_of(&self, var: LoopId) -> Index {
        match self.turned {
            Some((of, turn)) if of == var => {
                let (trip, reverse) = self.loops[&of];
                match turn {
                    Turn::By(n) => Index::Ahead(if reverse { -n } else { n }),
                    Turn::At(n) => Index::Is(if reverse { trip - 1 - n } else { n }),
                }
            }
            Some(_) | None => Index::Ahead(0),
        }
    }

    fn launch(&mut self, group: &Group, times: u64) -> Result<Launch> {
        let fused = &self.entry.schedule.fused;
        let lowered = lower_group(fused, group)?;
        // More than 64 bits count are no step of one rank.
        self.flops = self.flops.saturating_add(lowered.flops.saturating_mul(times));
        let addresses: Vec<Address> = lowered.views.iter().map(|v| self.address(v)).collect();
        let (spec, buffers) = join_equal_buffers(lowered.spec, addresses);
        let kernel = self.kernels.add(spec);
        let op = self.ops.len() as u32;
        let line = &group.origin.line;
        self.ops.push(OpInfo {
            path: group.origin.path.to_string(),
            kernel: self.kernels.all[kernel as usize].name.clone(),
            line: if line.line == 0 { String::new() } else { format!("{}:{}", line.file, line.line) },
            bytes: moved(fused, group),
            flops: lowered.flops,
            stream: 0,
            seconds: self.entry.schedule.times.group(fused, group),
            link: String::new(),
        });
        let scalar = |l: &LoopId| match self.index_of(*l) {
            Index::Ahead(n) => ScalarArg::Loop(LoopVar(l.0), 1, n),
            Index::Is(n) => ScalarArg::Const(n as i64),
        };
        let scalars = lowered.indices.iter().map(scalar).collect();
        Ok(Launch { op, kernel, stream: 0, buffers, scalars })
    }

    fn address(&self, view: &View) -> Address {
        let buffer = self.entry.schedule.fused.buffer(view.buffer);
        let size = buffer.dtype.bytes();
        let mut offset = self.entry.offsets[view.buffer.0 as usize] + view.offset(buffer) * size;
        let mut strides = Vec::new();
        let slices = view.loop_strides(buffer).into_iter().map(|(l, n)| (l, n * size, 0));
        for (var, bytes, slots) in
            slices.chain(buffer.ring.map(|ring| (ring.of, buffer.slot_bytes(), ring.slots)))
        {
            let stride = |ahead| LoopStride { var: LoopVar(var.0), bytes, slots, ahead };
            match self.index_of(var) {
                Index::Ahead(n) => strides.push(stride(n)),
                Index::Is(n) => offset += stride(0).at(n),
            }
        }
        Address {
            space: match buffer.space {
                Space::Device => 0,
                Space::Host => 1,
            },
            offset,
            strides,
            ranks: view
                .rank_strides(buffer)
                .into_iter()
                .map(|(axis, n)| RankStride {
                    axis: mesh::index(&self.entry.schedule.fused.graph.mesh, &axis),
                    bytes: n * size,
                })
                .collect(),
        }
    }
}

/// What is known of the index of a loop.
#[derive(Clone, Copy)]
enum Index {
    /// The variable plus this.
    Ahead(i64),
    /// This.
    Is(u64),
}

/// Buffers that start at one address become one buffer of the kernel: operand and result of a kernel that works in place.
fn join_equal_buffers(mut spec: KernelSpec, addresses: Vec<Address>) -> (KernelSpec, Vec<Address>) {
    let mut distinct: Vec<Address> = Vec::new();
    let numbers: Vec<u32> = addresses
        .into_iter()
        .map(|a| match distinct.iter().position(|d| *d == a) {
            Some(i) => i as u32,
            None => {
                distinct.push(a);
                distinct.len() as u32 - 1
            }
        })
        .collect();
    for operand in operands_mut(&mut spec) {
        operand.buffer = numbers[operand.buffer as usize];
    }
    (spec, distinct)
}

fn operands_mut(spec: &mut KernelSpec) -> Vec<&mut mlc_codegen::program::Operand> {
    match spec {
        KernelSpec::Map(s) | KernelSpec::Rows(s) => s.inputs.iter_mut().chain(&mut s.outputs).collect(),
        KernelSpec::Gemm(s) => [&mut s.a, &mut s.b, &mut s.c].into_iter().chain(&mut s.extras).collect(),
        KernelSpec::Attention(s) => [&mut s.q, &mut s.k, &mut s.v, &mut s.o, &mut s.lse]
            .into_iter()
            .chain(&mut s.shape.extras)
            .collect(),
        KernelSpec::AttentionGrad(s) => [&mut s.q, &mut s.k, &mut s.v, &mut s.d_o, &mut s.lse, &mut s.delta]
            .into_iter()
            .chain(&mut s.outputs)
            .chain(&mut s.shape.extras)
            .collect(),
        KernelSpec::Gather(s) => vec![&mut s.table, &mut s.ids, &mut s.out],
        KernelSpec::Scatter(s) => vec![&mut s.updates, &mut s.ids, &mut s.out],
        KernelSpec::Custom(s) => s.arguments.iter_mut().map(|a| &mut a.operand).collect(),
        KernelSpec::Scan(s) => vec![&mut s.input, &mut s.out],
    }
}

fn entry_info(entry: &EntryPlan, meta: &EntryMeta, flops: u64) -> EntryInfo {
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let graph = &entry.schedule.fused.graph;
    for (buffer, offset) in entry.schedule.fused.buffers.iter().zip(&entry.offsets) {
        let place = Place { space: 0, offset: *offset };
        let whole = mesh::Whole::of(buffer, 0, graph);
        match &buffer.class {
            Class::Input { name, bound } => inputs.push(InputInfo {
                name: name.to_string(),
                source: meta.source(name),
                dtype: buffer.dtype,
                shape: whole.shape,
                split: whole.split,
                bound: *bound,
                place,
            }),
            Class::Output { name } => {
                let shape = whole.shape;
                outputs.push(OutputInfo { name: name.to_string(), dtype: buffer.dtype, shape, place });
            }
            Class::Param { .. }
            | Class::State { .. }
            | Class::Scalar { .. }
            | Class::Carry
            | Class::Stack
            | Class::Sum
            | Class::Received
            | Class::Staging
            | Class::Temporary => {}
        }
    }
    EntryInfo { name: meta.name.clone(), batch: meta.batch, seq: meta.seq, inputs, outputs, flops }
}

/// Adds the entry's parameters, states and scalars that are not there yet.
fn persistent_info(entry: &EntryPlan, info: &mut ProgramInfo) {
    use mlc_codegen::abi::Init;
    for (buffer, offset) in entry.schedule.fused.buffers.iter().zip(&entry.offsets) {
        let place = Place { space: 0, offset: *offset };
        let line = &buffer.origin.line;
        let line = if line.line == 0 { String::new() } else { format!("{}:{}", line.file, line.line) };
        let mut tensor = |path: String, role: TensorRole, stacked: bool, init: Init| {
            if info.tensors.iter().any(|t| t.path == path) {
                return;
            }
            let layers = buffer.axes.first().filter(|_| stacked).map(|a| a.size);
            let stack_axes = usize::from(layers.is_some());
            let whole = mesh::Whole::of(buffer, stack_axes, &entry.schedule.fused.graph);
            info.tensors.push(TensorInfo {
                path,
                role,
                layers,
                axes: buffer.axes[stack_axes..].iter().map(|a| a.name.to_string()).collect(),
                shape: whole.shape,
                split: whole.split,
                dtype: buffer.dtype,
                init,
                place,
                line: line.clone(),
            });
        };
        match &buffer.class {
            Class::Param { path, init } => {
                tensor(path.to_string(), TensorRole::Param, path.contains("{i}"), *init);
            }
            Class::State { param, kind } => tensor(
                format!("{param}.{kind}"),
                TensorRole::State(kind.to_string()),
                param.contains("{i}"),
                Init::Constant(0.0),
            ),
            Class::Scalar { key, default } => {
                if !info.scalars.iter().any(|s| s.key == key.as_str()) {
                    info.scalars.push(ScalarInfo {
                        key: key.to_string(),
                        dtype: DType::F64,
                        default: *default,
                        place,
                    });
                }
            }
            Class::Input { .. }
            | Class::Output { .. }
            | Class::Carry
            | Class::Stack
            | Class::Sum
            | Class::Received
            | Class::Staging
            | Class::Temporary => {}
        }
    }
}
