//! What holds of every program:
//! * kernels have distinct symbol-safe names; operands have a stride per dimension, one element type per buffer number,
//!   and sizes are positive; scalar regions are in single-assignment order, refer to inputs there are, and have as many
//!   results as outputs;
//! * entries are those of `info`, in its order; op, kernel, stream and space numbers exist; loops run at least once and
//!   their variables are distinct; addresses and scalars move with enclosing loops only;
//! * a launch passes an address per buffer and a scalar per scalar of its kernel;
//! * every element a launch touches lies inside its memory space, for every value of the loop variables;
//! * a buffer a launch writes shares no element with another buffer of the launch.

use std::collections::{BTreeMap, BTreeSet};

use super::operands::Use;
use super::region::{Region, ScalarOp};
use super::{Address, Entry, KernelSpec, Launch, LoopVar, Program, ScalarArg, Step};
use crate::abi::DType;

/// Largest number of loop iterations, and of elements, over which sharing is decided by enumeration.
const MAX_ENUMERATED: u64 = 1 << 14;

/// Checks a program and returns every violation. An error here is a mistake in the compiler.
///
/// # Errors
/// All violations, kernels first, then entries, in order.
pub fn verify(program: &Program) -> Result<(), Vec<String>> {
    let mut v = Verifier { program, kernels: Vec::new(), errors: Vec::new() };
    v.kernels();
    v.entries();
    if v.errors.is_empty() { Ok(()) } else { Err(v.errors) }
}

struct Verifier<'a> {
    program: &'a Program,
    kernels: Vec<KernelFacts<'a>>,
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
        let mut loops = Vec::new();
        let mut seen = BTreeSet::new();
        self.steps(&place, &entry.body, &mut loops, &mut seen);
    }

    fn steps(
        &mut self,
        place: &str,
        steps: &'a [Step],
        loops: &mut Vec<(LoopVar, u64)>,
        seen: &mut BTreeSet<LoopVar>,
    ) {
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(place, launch, loops),
                Step::Loop { var, trip, body, reverse: _ } => {
                    if *trip == 0 {
                        self.fail(place, format!("loop {} runs 0 times", var.0));
                    }
                    if !seen.insert(*var) {
                        self.fail(place, format!("two loops have variable {}", var.0));
                    }
                    loops.push((*var, *trip));
                    self.steps(place, body, loops, seen);
                    loops.pop();
                }
            }
        }
    }

    fn launch(&mut self, place: &str, launch: &'a Launch, loops: &[(LoopVar, u64)]) {
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
        let mut messages = arguments(launch, &self.kernels[launch.kernel as usize], loops);
        if messages.is_empty() {
            messages.extend(self.places(launch, loops));
        }
        messages.into_iter().for_each(|m| self.fail(&place, m));
    }

    fn places(&self, launch: &Launch, loops: &[(LoopVar, u64)]) -> Vec<String> {
        let kernel = &self.kernels[launch.kernel as usize];
        let mut messages = Vec::new();
        for (i, address) in launch.buffers.iter().enumerate() {
            let Some(space) = self.program.info.spaces.get(address.space as usize) else {
                messages.push(format!("buffer {i} is in space {}, which there is not", address.space));
                continue;
            };
            let end = last_start(address, loops).saturating_add(kernel.bytes[i]);
            if end > space.bytes {
                let (name, bytes) = (&space.name, space.bytes);
                messages.push(format!("buffer {i} reaches to byte {end} of space {name}, which has {bytes}"));
            }
        }
        for i in 0..launch.buffers.len() {
            for j in 0..launch.buffers.len() {
                let ordered = i < j || !kernel.writes[j];
                if i != j && kernel.writes[i] && ordered && shared(kernel, launch, loops, i, j) {
                    messages.push(format!("buffer {i} is written and shares memory with buffer {j}"));
                }
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

fn arguments(launch: &Launch, kernel: &KernelFacts<'_>, loops: &[(LoopVar, u64)]) -> Vec<String> {
    let mut messages = Vec::new();
    if launch.buffers.len() != kernel.n_buffers {
        messages.push(format!("{} buffers instead of {}", launch.buffers.len(), kernel.n_buffers));
    }
    if launch.scalars.len() != kernel.n_scalars {
        messages.push(format!("{} scalars instead of {}", launch.scalars.len(), kernel.n_scalars));
    }
    let strides = launch.buffers.iter().flat_map(|a| a.strides.iter().map(|s| s.var));
    let scalars = launch.scalars.iter().filter_map(|s| match s {
        ScalarArg::Const(_) => None,
        ScalarArg::Loop(var, ..) => Some(*var),
    });
    for var in strides.chain(scalars) {
        if !loops.iter().any(|&(v, _)| v == var) {
            messages.push(format!("an argument moves with loop {}, which is not around it", var.0));
        }
    }
    messages
}

/// The largest start of a buffer over all loop iterations.
fn last_start(address: &Address, loops: &[(LoopVar, u64)]) -> u64 {
    address.strides.iter().fold(address.offset, |sum, stride| {
        let trip = loops.iter().find(|(v, _)| *v == stride.var).map_or(1, |&(_, trip)| trip);
        let slots = if stride.slots > 0 { trip.min(stride.slots) } else { trip };
        sum.saturating_add(slots.saturating_sub(1).saturating_mul(stride.bytes))
    })
}

/// Whether an element of buffer `i` and one of buffer `j` lie in the same memory in some iteration. Decided by intervals
/// first, then, where these overlap, by enumerating elements, as long as there are not too many.
fn shared(kernel: &KernelFacts<'_>, launch: &Launch, loops: &[(LoopVar, u64)], i: usize, j: usize) -> bool {
    let (a, b) = (&launch.buffers[i], &launch.buffers[j]);
    if a.space != b.space {
        return false;
    }
    let overlap =
        |x: u64, y: u64| x < y.saturating_add(kernel.bytes[j]) && y < x.saturating_add(kernel.bytes[i]);
    if !overlap_anywhere(a, b, loops, kernel.bytes[i], kernel.bytes[j]) {
        return false;
    }
    let starts = starts_of(a, b, loops);
    let mut distances: Vec<(u64, u64)> = starts.into_iter().filter(|&(x, y)| overlap(x, y)).collect();
    // Only the distance between the two matters.
    distances.sort_by_key(|&(x, y)| x.wrapping_sub(y));
    distances.dedup_by_key(|(x, y)| x.wrapping_sub(*y));
    if distances.is_empty() {
        return false;
    }
    let (Some(first), Some(second)) = (elements(kernel, i), elements(kernel, j)) else { return false };
    distances.iter().any(|&(x, y)| {
        let here: BTreeSet<u64> = first.iter().map(|e| e + x).collect();
        second.iter().any(|e| here.contains(&(e + y)))
    })
}

fn overlap_anywhere(a: &Address, b: &Address, loops: &[(LoopVar, u64)], a_bytes: u64, b_bytes: u64) -> bool {
    a.offset < last_start(b, loops).saturating_add(b_bytes)
        && b.offset < last_start(a, loops).saturating_add(a_bytes)
}

/// Starts of two buffers in every iteration of the loops that move them; nothing if there are too many.
fn starts_of(a: &Address, b: &Address, loops: &[(LoopVar, u64)]) -> Vec<(u64, u64)> {
    let moves = |var: LoopVar| a.strides.iter().chain(&b.strides).any(|s| s.var == var);
    let around: Vec<(LoopVar, u64)> = loops.iter().copied().filter(|&(v, _)| moves(v)).collect();
    let iterations = around.iter().fold(1u64, |n, &(_, trip)| n.saturating_mul(trip));
    if iterations > MAX_ENUMERATED {
        return Vec::new();
    }
    let start = |address: &Address, at: &BTreeMap<LoopVar, u64>| {
        address.strides.iter().fold(address.offset, |sum, s| {
            let index = at.get(&s.var).copied().unwrap_or(0);
            sum + s.bytes * if s.slots > 0 { index % s.slots } else { index }
        })
    };
    let pair = |mut n: u64| {
        let mut at = BTreeMap::new();
        for &(var, trip) in &around {
            at.insert(var, n % trip);
            n /= trip;
        }
        (start(a, &at), start(b, &at))
    };
    (0..iterations).map(pair).collect()
}

/// Byte offsets of the elements a buffer's operands touch; `None` if there are too many.
fn elements(kernel: &KernelFacts<'_>, buffer: usize) -> Option<Vec<u64>> {
    let mut all = BTreeSet::new();
    for u in kernel.uses.iter().filter(|u| u.operand.buffer as usize == buffer) {
        let count = u.dims.iter().fold(1u64, |n, &d| n.saturating_mul(d));
        if count > MAX_ENUMERATED {
            return None;
        }
        for mut n in 0..count {
            let mut element = u.operand.offset;
            for (&d, &s) in u.dims.iter().zip(&u.operand.strides).rev() {
                element += n % d * s;
                n /= d;
            }
            all.insert(element * u.operand.dtype.bytes());
        }
    }
    Some(all.into_iter().collect())
}
