//! What holds of every program:
//! * kernels have distinct symbol-safe names; operands have a stride per dimension, one element type per buffer number,
//!   and sizes are positive; scalar regions are in single-assignment order, refer to inputs there are, and have as many
//!   results as outputs;
//! * entries are those of `info`, in its order; op, kernel, stream and space numbers exist; loops run at least once and
//!   their variables are distinct; addresses and scalars move with enclosing loops only, and with iterations there are;
//! * a launch passes an address per buffer and a scalar per scalar of its kernel;
//! * every element a step touches lies inside its memory space, for every value of the loop variables and every rank;
//! * a buffer a launch writes shares no element with another buffer of the launch;
//! * collectives: see [`collectives`] and [`pairs`].

mod collectives;
mod pairs;
mod shared;

use std::collections::{BTreeMap, BTreeSet};

use super::operands::Use;
use super::region::{Region, ScalarOp};
use super::{Address, Entry, KernelSpec, Launch, LoopVar, Program, ScalarArg, Step};
use crate::abi::DType;
use collectives::CollectiveFacts;
use shared::{Around, Touched, shared};

/// Checks a program and returns every violation. An error here is a mistake in the compiler.
///
/// # Errors
/// All violations, kernels first, then entries, in order.
pub fn verify(program: &Program) -> Result<(), Vec<String>> {
    let collectives = CollectiveFacts::of_all(&program.info);
    let mut v = Verifier { program, kernels: Vec::new(), collectives: &collectives, errors: Vec::new() };
    v.kernels();
    v.table_of_collectives();
    v.entries();
    if v.errors.is_empty() { Ok(()) } else { Err(v.errors) }
}

struct Verifier<'a> {
    program: &'a Program,
    kernels: Vec<KernelFacts<'a>>,
    collectives: &'a [CollectiveFacts],
    errors: Vec<String>,
}

/// What launches are checked against.
struct KernelFacts<'a> {
    uses: Vec<Use<'a>>,
    n_buffers: usize,
    n_scalars: usize,
    /// Bytes from each buffer's start to behind the last one touched.
    bytes: Vec<u64>,
    writes: Vec<bool>,
}

impl<'a> Verifier<'a> {
    fn fail(&mut self, place: &str, message: impl std::fmt::Display) {
        self.errors.push(format!("{place}: {message}"));
    }

    // ---- kernels

    fn kernels(&mut self) {
        let program = self.program;
        let mut names = BTreeSet::new();
        for kernel in &program.kernels {
            let place = format!("kernel {}", kernel.name);
            let safe = kernel.name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && kernel.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !safe || !names.insert(&kernel.name) {
                self.fail(&place, "the name is not a distinct symbol");
            }
            self.kernel(&place, &kernel.spec);
            self.kernels.push(facts(&kernel.spec));
        }
    }

    fn kernel(&mut self, place: &str, spec: &'a KernelSpec) {
        let mut dtypes: BTreeMap<u32, DType> = BTreeMap::new();
        for u in spec.uses() {
            if u.operand.strides.len() != u.dims.len() {
                let (strides, dims) = (u.operand.strides.len(), u.dims.len());
                self.fail(place, format!("an operand of {dims} dimensions has {strides} strides"));
            }
            if u.dims.contains(&0) {
                self.fail(place, "a dimension has size 0");
            }
            let known = *dtypes.entry(u.operand.buffer).or_insert(u.operand.dtype);
            if known != u.operand.dtype {
                self.fail(place, format!("buffer {} has two element types", u.operand.buffer));
            }
        }
        match spec {
            KernelSpec::Map(s) | KernelSpec::Rows(s) => {
                let is_map = matches!(spec, KernelSpec::Map(_));
                if s.reduced > s.dims.len() || (is_map && s.reduced != 0) {
                    self.fail(place, format!("{} of {} dimensions are reduced", s.reduced, s.dims.len()));
                }
                let inputs = s.inputs.len() + s.n_scalars as usize;
                self.region(place, &s.region, inputs, s.dims.len(), s.outputs.len());
            }
            KernelSpec::Gemm(s) => {
                if let Some(region) = &s.epilogue {
                    self.region(place, region, 1 + s.extras.len(), s.batch.len() + 2, 1);
                }
            }
            KernelSpec::Attention(s) => self.scores(place, &s.shape),
            KernelSpec::AttentionGrad(s) => {
                self.scores(place, &s.shape);
                self.region(place, &s.slope, 3 + s.shape.extras.len(), 0, 1);
                let expected = match s.part {
                    super::AttentionGradPart::Query | super::AttentionGradPart::Extra(_) => 1,
                    super::AttentionGradPart::KeyValue => 2,
                };
                if s.outputs.len() != expected {
                    self.fail(place, format!("{} outputs instead of {expected}", s.outputs.len()));
                }
            }
            KernelSpec::Custom(s) => {
                for argument in s.arguments.iter().filter(|a| a.dims.len() != a.operand.strides.len()) {
                    let dims = argument.dims.len();
                    self.fail(
                        place,
                        format!("{} strides over {dims} dimensions", argument.operand.strides.len()),
                    );
                }
                if s.tiles == 0 || (!s.in_tiles && s.tiles > 1) {
                    self.fail(place, format!("{} tiles", s.tiles));
                }
            }
            KernelSpec::Gather(s) => self.ids(place, s.ids.dtype),
            KernelSpec::Scan(s) => {
                if s.dims.is_empty() || s.input.dtype != s.out.dtype || s.input.dtype == DType::Bool {
                    self.fail(place, "a running sum keeps its element type and has a dimension");
                }
            }
            KernelSpec::Scatter(s) => {
                self.ids(place, s.ids.dtype);
                if s.id_dims > s.dims.len() {
                    self.fail(place, "ids range over more dimensions than there are");
                }
            }
        }
    }

    fn ids(&mut self, place: &str, dtype: DType) {
        if dtype != DType::I32 {
            self.fail(place, "ids are i32");
        }
    }

    fn scores(&mut self, place: &str, shape: &'a super::AttentionShape) {
        self.region(place, &shape.score, 3 + shape.extras.len(), 0, 1);
    }

    fn region(&mut self, place: &str, region: &Region, inputs: usize, dims: usize, results: usize) {
        for (i, op) in region.ops.iter().enumerate() {
            let operands = match op {
                ScalarOp::Input(n) => {
                    if *n as usize >= inputs {
                        self.fail(place, format!("the region reads input {n} of {inputs}"));
                    }
                    vec![]
                }
                ScalarOp::Index(d) => {
                    if *d as usize >= dims {
                        self.fail(place, format!("the region reads index {d} of {dims}"));
                    }
                    vec![]
                }
                ScalarOp::Const(..) => vec![],
                ScalarOp::Unary(_, a) | ScalarOp::Cast(_, a) | ScalarOp::Reduce(_, a) => vec![*a],
                ScalarOp::Binary(_, a, b) | ScalarOp::Compare(_, a, b) => vec![*a, *b],
                ScalarOp::MulAdd(a, b, c) | ScalarOp::Select(a, b, c) => vec![*a, *b, *c],
            };
            for operand in operands {
                if operand.0 as usize >= i {
                    self.fail(
                        place,
                        format!("op {i} of the region uses value {} before it is defined", operand.0),
                    );
                }
            }
        }
        if region.results.len() != results {
            self.fail(place, format!("the region has {} results instead of {results}", region.results.len()));
        }
        for result in &region.results {
            if result.0 as usize >= region.ops.len() {
                self.fail(place, format!("the region's result {} is not defined", result.0));
            }
        }
    }

    // ---- entries

    fn entries(&mut self) {
        let program = self.program;
        let names = |entries: Vec<&String>| entries.into_iter().cloned().collect::<Vec<_>>().join(", ");
        let here = names(program.entries.iter().map(|e| &e.name).collect());
        let stated = names(program.info.entries.iter().map(|e| &e.name).collect());
        if here != stated {
            self.fail("entries", format!("{here} instead of {stated}"));
        }
        for entry in &program.entries {
            self.entry(entry);
        }
    }

    fn entry(&mut self, entry: &'a Entry) {
        let place = format!("entry {}", entry.name);
        let mesh = self.program.info.mesh.iter().map(|a| a.size).collect();
        let mut around = Around { loops: Vec::new(), mesh };
        let before = self.errors.len();
        self.steps(&place, &entry.body, &mut around, &mut BTreeSet::new());
        if self.errors.len() == before {
            self.pairs(entry);
        }
    }

    /// Each step by itself.
    fn steps(&mut self, place: &str, steps: &'a [Step], around: &mut Around, seen: &mut BTreeSet<LoopVar>) {
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(place, launch, around),
                Step::Collective(step) => self.half(place, step, around),
                Step::Within { var, from, below, body } => {
                    let Some(at) = around.loops.iter().position(|(v, _)| v == var) else {
                        self.fail(place, format!("steps within loop {}, which is not around them", var.0));
                        continue;
                    };
                    if body.iter().any(|step| matches!(step, Step::Loop { .. })) {
                        self.fail(place, format!("a loop within iterations of loop {}", var.0));
                    }
                    let all = around.loops[at].1.clone();
                    let some = all.start.max(*from)..all.end.min(*below);
                    if !some.is_empty() {
                        around.loops[at].1 = some;
                        self.steps(place, body, around, seen);
                        around.loops[at].1 = all;
                    }
                }
                Step::Loop { var, trip, body, reverse: _ } => {
                    if *trip == 0 {
                        self.fail(place, format!("loop {} runs 0 times", var.0));
                    }
                    if !seen.insert(*var) {
                        self.fail(place, format!("two loops have variable {}", var.0));
                    }
                    around.loops.push((*var, 0..*trip));
                    self.steps(place, body, around, seen);
                    around.loops.pop();
                }
            }
        }
    }

    fn launch(&mut self, place: &str, launch: &'a Launch, around: &Around) {
        let program = self.program;
        let Some(kernel) = program.kernels.get(launch.kernel as usize) else {
            return self.fail(place, format!("there is no kernel {}", launch.kernel));
        };
        let place = format!("{place}, launch of {}", kernel.name);
        if launch.op as usize >= program.info.ops.len() {
            self.fail(&place, format!("there is no op {}", launch.op));
        }
        if launch.stream >= program.streams {
            self.fail(&place, format!("there is no stream {}", launch.stream));
        }
        let facts = &self.kernels[launch.kernel as usize];
        let mut messages = arguments(launch, facts, around);
        if messages.is_empty() {
            let touched = touched(launch, facts);
            messages.extend(self.places(&touched, around));
            for i in 0..touched.len() {
                for j in 0..touched.len() {
                    let ordered = i < j || !touched[j].writes;
                    if i != j && touched[i].writes && ordered && shared(&touched[i], &touched[j], around) {
                        messages.push(format!("buffer {i} is written and shares memory with buffer {j}"));
                    }
                }
            }
        }
        messages.into_iter().for_each(|m| self.fail(&place, m));
    }

    /// Buffers that leave their memory space.
    fn places(&self, touched: &[Touched<'_>], around: &Around) -> Vec<String> {
        let mut messages = Vec::new();
        for (i, buffer) in touched.iter().enumerate() {
            let Some(space) = self.program.info.spaces.get(buffer.address.space as usize) else {
                messages.push(format!("buffer {i} is in space {}, which there is not", buffer.address.space));
                continue;
            };
            let end = around.last_start(buffer.address).saturating_add(buffer.bytes);
            if end > space.bytes {
                let (name, bytes) = (&space.name, space.bytes);
                messages.push(format!("buffer {i} reaches to byte {end} of space {name}, which has {bytes}"));
            }
        }
        messages
    }
}

fn facts(spec: &KernelSpec) -> KernelFacts<'_> {
    let uses = spec.uses();
    let n_buffers = spec.n_buffers();
    let (mut bytes, mut writes) = (vec![0; n_buffers], vec![false; n_buffers]);
    for u in &uses {
        let buffer = u.operand.buffer as usize;
        bytes[buffer] = u64::max(bytes[buffer], u.extent.saturating_mul(u.operand.dtype.bytes()));
        writes[buffer] |= u.writes;
    }
    KernelFacts { uses, n_buffers, n_scalars: spec.n_scalars(), bytes, writes }
}

fn touched<'t>(launch: &'t Launch, kernel: &'t KernelFacts<'_>) -> Vec<Touched<'t>> {
    let one = |(i, address): (usize, &'t Address)| Touched {
        address,
        bytes: kernel.bytes[i],
        writes: kernel.writes[i],
        uses: kernel.uses.iter().filter(|u| u.operand.buffer as usize == i).cloned().collect(),
    };
    launch.buffers.iter().enumerate().map(one).collect()
}

fn arguments(launch: &Launch, kernel: &KernelFacts<'_>, around: &Around) -> Vec<String> {
    let mut messages = Vec::new();
    if launch.buffers.len() != kernel.n_buffers {
        messages.push(format!("{} buffers instead of {}", launch.buffers.len(), kernel.n_buffers));
    }
    if launch.scalars.len() != kernel.n_scalars {
        messages.push(format!("{} scalars instead of {}", launch.scalars.len(), kernel.n_scalars));
    }
    let scalars = launch.scalars.iter().filter_map(|s| match s {
        ScalarArg::Const(_) => None,
        ScalarArg::Loop(var, ..) => Some(*var),
    });
    messages.extend(around.strangers(&launch.buffers, scalars));
    messages
}
