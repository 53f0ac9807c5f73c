//! What a training binary's generated part and its runtime agree on.
//!
//! Three things cross this border:
//! * [`ProgramTable`], a static C struct that the linked objects define and the generated `main` hands to
//!   [`mlc_runtime_main`](crate::mlc_runtime_main). It points at the entries' step functions and at the JSON text of
//!   [`ProgramInfo`].
//! * [`ProgramInfo`], everything the runtime must know about the model as data: memory spaces, persistent tensors,
//!   inputs, outputs, run-time scalars, the op table, and the defaults of the run.
//! * the calling conventions [`EntryFn`], [`KernelFn`] and [`LaunchFn`].
//!
//! `mlc-codegen` uses this module and nothing else of this package.

pub mod trace;

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Bumped whenever a layout or convention in this module changes.
pub const ABI_VERSION: u32 = 3;

/// One kernel: computes tiles `tile_begin..tile_end` of its launch.
///
/// `buffers[i]` is the base address of the i-th buffer of the launch, already moved by loop variables. `scalars[i]` is
/// the i-th scalar argument. `scratch` is this thread's scratch memory, [`ProgramInfo::scratch_bytes`] long and aligned
/// to 64 bytes; its contents are undefined at entry. Tiles are independent: any partition of `0..tiles` gives the same
/// bits.
pub type KernelFn = unsafe extern "C" fn(
    buffers: *const *mut u8,
    scalars: *const i64,
    tile_begin: i64,
    tile_end: i64,
    scratch: *mut u8,
);

/// Runs one kernel launch to completion over `0..tiles`, on all threads of the rank.
///
/// `op` indexes [`ProgramInfo::ops`]; watchdog, profile and errors read it.
pub type LaunchFn = unsafe extern "C" fn(
    ctx: *const StepContext,
    op: u32,
    kernel: KernelFn,
    buffers: *const *mut u8,
    scalars: *const i64,
    tiles: i64,
);

/// Starts ([`COLLECTIVE_START`]) or finishes ([`COLLECTIVE_DONE`]) collective `collective` of [`ProgramInfo::collectives`]; `op`
/// as in [`LaunchFn`].
///
/// `buffers` holds, for each part, the buffer sent from and the buffer received into, and last the staging buffer; the same
/// at both stages. Between start and done nobody writes what is sent or touches what is received or the staging buffer. A start
/// returns at once; a done returns when everything has been received and reduced. Starts happen in the same order on all ranks.
pub type CollectiveFn = unsafe extern "C" fn(
    ctx: *const StepContext,
    op: u32,
    collective: u32,
    stage: u32,
    buffers: *const *mut u8,
);

/// A collective begins.
pub const COLLECTIVE_START: u32 = 0;
/// A collective that has begun is waited for.
pub const COLLECTIVE_DONE: u32 = 1;

/// One entry (`train`, `eval`, `logits`): launches its kernels in order and returns.
pub type EntryFn = unsafe extern "C" fn(ctx: *const StepContext);

/// What a step function sees of its rank. The runtime owns it; one per rank, so that several ranks can live in one
/// process.
#[repr(C)]
pub struct StepContext {
    /// Base address of each memory space, in the order of [`ProgramInfo::spaces`].
    pub spaces: *const *mut u8,
    /// Called for every kernel launch.
    pub launch: LaunchFn,
    /// Called for every collective.
    pub collective: CollectiveFn,
    /// The rank's coordinates, one per axis of [`ProgramInfo::mesh`].
    pub coordinates: *const i64,
    /// The runtime's own state; generated code passes it through untouched.
    pub runtime: *mut core::ffi::c_void,
}

/// The root of a training binary, emitted as a constant by codegen.
#[repr(C)]
pub struct ProgramTable {
    /// Must equal [`ABI_VERSION`].
    pub abi_version: u32,
    /// Number of `entries`, equal to the length of [`ProgramInfo::entries`] and in its order.
    pub n_entries: u32,
    /// The step functions.
    pub entries: *const EntryFn,
    /// UTF-8 JSON of [`ProgramInfo`], not zero-terminated.
    pub info: *const u8,
    /// Length of `info` in bytes.
    pub info_len: u64,
}

// SAFETY: the table and everything it points at is constant data of the executable.
unsafe impl Sync for ProgramTable {}

/// Element type of a buffer in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary64; used for run-time scalars and schedules.
    F64,
    /// bfloat16.
    Bf16,
    /// Signed 32-bit integer: token ids and positions.
    I32,
    /// Signed 64-bit integer: step counters.
    I64,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            DType::Bool => 1,
            DType::Bf16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }
}

/// A memory space: one allocation per class at start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpaceInfo {
    /// `device` or `host`.
    pub name: String,
    /// Exact size of the arena.
    pub bytes: u64,
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Index into [`ProgramInfo::spaces`].
    pub space: u32,
    /// Byte offset in the space.
    pub offset: u64,
}

/// One axis of the mesh. Ranks are numbered row-major, the first axis slowest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshAxisInfo {
    /// Its name in the spec; `tensor.0`, `tensor.1` for parts of an axis that rules split jointly.
    pub name: String,
    /// Number of ranks along it.
    pub size: u64,
    /// Whether neighbours along it may sit in different machines.
    pub over_nodes: bool,
}

/// How one axis of a tensor is split over ranks: the axis, made longer by `pad` elements at its end, is cut into `blocks` equal
/// blocks, and each block into as many equal parts as the mesh axes have ranks together. A rank holds its part of every block, in
/// order. Padding holds zeros; it belongs to no tensor, so that shapes, first values and checkpoints know nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AxisSplit {
    /// Which axis of the tensor.
    pub axis: u32,
    /// Indices into [`ProgramInfo::mesh`], the coarsest first.
    pub mesh: Vec<u32>,
    /// 1: contiguous parts.
    pub blocks: u64,
    /// Elements beyond the axis's size that make it split evenly.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pad: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How elements are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Sum, in the order of the ranks of the group.
    Sum,
    /// Maximum; NaN if any is NaN.
    Max,
    /// Minimum; NaN if any is NaN.
    Min,
}

/// What a collective does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveKind {
    /// Every rank receives what every rank sends.
    AllGather,
    /// Every rank receives the reduction of the blocks meant for it.
    ReduceScatter(Reduction),
    /// Every rank receives the reduction of what all send.
    AllReduce(Reduction),
    /// Every rank receives the blocks meant for it.
    AllToAll,
}

/// One collective of the program: what [`CollectiveFn`] is called with the index of.
///
/// A group is made of the ranks that differ in the mesh axes `mesh` only; `p` is a rank's place in it, row-major over those
/// axes in their order. For every part, a box of `dims` elements goes from each rank to each:
/// * element `i` of the box from rank `p` to rank `q` is read at `Σ i·send + q·send_block` of `p`'s send buffer,
/// * and lands at `Σ i·recv + p·recv_block` of `q`'s receive buffer; reductions have `recv_block = 0`, and combine the boxes of
///   all ranks in the order of `p` instead, in f32 if the elements are shorter.
///
/// All strides are in elements. For an all-gather and an all-reduce `send_block` is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectiveInfo {
    /// What it does.
    pub kind: CollectiveKind,
    /// Indices into [`ProgramInfo::mesh`], the first one major.
    pub mesh: Vec<u32>,
    /// What travels together, in order.
    pub parts: Vec<CollectivePartInfo>,
    /// Size of the staging buffer: [`CollectiveInfo::staging`].
    pub staging_bytes: u64,
}

/// One tensor of a collective.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectivePartInfo {
    /// Element type in memory.
    pub dtype: DType,
    /// Element type on the wire; differs only as bf16 for f32.
    pub wire: DType,
    /// Sizes of the box.
    pub dims: Vec<u64>,
    /// Strides of the box in the send buffer.
    pub send: Vec<u64>,
    /// Strides of the box in the receive buffer.
    pub recv: Vec<u64>,
    /// From one receiver's box to the next in the send buffer.
    pub send_block: u64,
    /// From one sender's box to the next in the receive buffer.
    pub recv_block: u64,
}

/// An all-reduce of messages up to this size sends everything to every rank, a larger one each rank's range of the elements, and
/// then the results.
pub const ALL_REDUCE_AT_ONCE: u64 = 64 << 10;

/// From this size on a part travels by itself, from where it is to where it goes: packing it with others, and taking it apart
/// again, would take longer than one more message.
pub const ALONE: u64 = 64 << 10;

impl CollectivePartInfo {
    /// Elements of a box.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of a box on the wire.
    pub fn message_bytes(&self) -> u64 {
        self.elements() * self.wire.bytes()
    }

    /// Whether a box with these strides, `send` or `recv`, lies in one piece.
    pub fn in_one_piece(&self, strides: &[u64]) -> bool {
        let mut next = 1;
        self.dims.iter().zip(strides).rev().filter(|(n, _)| **n != 1).all(|(n, stride)| {
            let fits = *stride == next;
            next *= n;
            fits
        })
    }
}

/// Parts of a collective that travel in one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its parts.
    pub parts: Range<usize>,
    /// Whether it is packed before it is sent.
    pub packed: bool,
    /// Whether it arrives packed.
    pub unpacked: bool,
}

impl CollectiveInfo {
    /// Whether it is an all-reduce that goes by ranges of elements: see [`ALL_REDUCE_AT_ONCE`].
    pub fn by_ranges(&self) -> bool {
        let message: u64 = self.parts.iter().map(CollectivePartInfo::message_bytes).sum();
        matches!(self.kind, CollectiveKind::AllReduce(_)) && message > ALL_REDUCE_AT_ONCE
    }

    /// The messages from a rank to another, in order: parts of [`ALONE`] bytes or more by themselves, those between two such
    /// together, and all of an all-reduce at once. What is alone and has the type of the wire is sent from where it lies, if
    /// that is one piece, and received where it belongs, if it need not be reduced.
    pub fn messages(&self) -> Vec<Message> {
        let at_once = matches!(self.kind, CollectiveKind::AllReduce(_)) && !self.by_ranges();
        let short = |i: usize| at_once || self.parts[i].message_bytes() < ALONE;
        let mut runs: Vec<Range<usize>> = Vec::new();
        for i in 0..self.parts.len() {
            match runs.last_mut() {
                Some(last) if short(i) && short(i - 1) => last.end = i + 1,
                _ => runs.push(i..i + 1),
            }
        }
        let gathers = matches!(self.kind, CollectiveKind::AllGather | CollectiveKind::AllToAll);
        let message = |parts: Range<usize>| {
            let plain = match &self.parts[parts.clone()] {
                [part] if part.dtype == part.wire => Some(part),
                _ => None,
            };
            Message {
                packed: !plain.is_some_and(|p| p.in_one_piece(&p.send)),
                unpacked: !(gathers && plain.is_some_and(|p| p.in_one_piece(&p.recv))),
                parts,
            }
        };
        runs.into_iter().map(message).collect()
    }

    /// Bytes an engine may need besides the buffers for a group of `ranks`: packed messages out and in. An all-reduce by ranges
    /// also gathers its results there, where they do not lie in one piece.
    pub fn staging(&self, ranks: u64) -> u64 {
        let messages = self.messages();
        let bytes = |of: fn(&Message) -> bool| -> u64 {
            let staged = messages.iter().filter(|m| of(m)).flat_map(|m| &self.parts[m.parts.clone()]);
            staged.map(CollectivePartInfo::message_bytes).sum()
        };
        let (out, into) = (bytes(|m| m.packed), bytes(|m| m.unpacked));
        match self.kind {
            CollectiveKind::AllGather => out + ranks * into,
            CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => ranks * (out + into),
            CollectiveKind::AllReduce(_) if !self.by_ranges() => ranks * into,
            CollectiveKind::AllReduce(_) => {
                let result = |p: &CollectivePartInfo| {
                    if p.in_one_piece(&p.recv) { 0 } else { p.elements() * p.dtype.bytes() }
                };
                let range = |p: &CollectivePartInfo| p.elements().div_ceil(ranks) * ranks * p.wire.bytes();
                out + self.parts.iter().map(|p| result(p) + range(p)).sum::<u64>()
            }
        }
    }
}

/// One executable entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryInfo {
    /// `train`, `eval` or `logits`.
    pub name: String,
    /// Sequences per call. For `train` this is the whole batch of a step (all microbatches).
    pub batch: u64,
    /// Tokens per sequence.
    pub seq: u64,
    /// Buffers the runtime fills before the call.
    pub inputs: Vec<InputInfo>,
    /// Buffers the runtime reads after the call.
    pub outputs: Vec<OutputInfo>,
    /// Floating point operations of one call, counted from the matrix products of the emitted program.
    pub flops: u64,
}

/// An input of an entry. Tensors are row-major in `shape`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputInfo {
    /// Name in the spec (`tokens`, `targets`), or `position` for the entry `logits`.
    pub name: String,
    /// Where it comes from.
    pub source: InputSource,
    /// Element type; ids are [`DType::I32`].
    pub dtype: DType,
    /// Size of each axis, of all ranks together.
    pub shape: Vec<u64>,
    /// Axes that are split over ranks; the buffer holds this rank's part, row-major.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<AxisSplit>,
    /// Ids must lie in `0..bound`; 0 when unbounded.
    pub bound: u64,
    /// The buffer.
    pub place: Place,
}

/// What the runtime puts into an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputSource {
    /// Token `i` of each window, shape `[batch, seq]`.
    Tokens,
    /// Token `i + 1` of each window, shape `[batch, seq]`.
    Targets,
    /// Number of the document token `i` belongs to, counted within its row, shape `[batch, seq]`; see
    /// [`RunInfo::document_end`].
    Segments,
    /// Place of token `i` in its document, shape `[batch, seq]`.
    Positions,
    /// 1, or 0 where token `i + 1` belongs to another document than token `i`, shape `[batch, seq]`.
    Weight,
    /// The position whose logits are wanted, shape `[]`; entry `logits` only.
    Position,
}

/// An output of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputInfo {
    /// `loss` (mean over the weight), `loss_sum`, `loss_weight`, `grad_norm`, `lr`, `logits`, or the name of an
    /// auxiliary loss, whose mean it holds.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Size of each axis; empty for a scalar.
    pub shape: Vec<u64>,
    /// The buffer.
    pub place: Place,
}

/// Key of the scalar that holds the 0-based index of the step about to run.
pub const STEP_KEY: &str = "step";

/// Keys of the scalars that hold the seed of the run, 32 bits each, low half first: a f64 would not hold all 64.
pub const SEED_KEYS: [&str; 2] = ["seed.low", "seed.high"];

/// Prefix of keys of the scalars that hold the rank's coordinate along an axis of the mesh: `mesh.tensor`.
pub const MESH_KEY: &str = "mesh.";

/// A run-time scalar the step reads from memory: a key that changes without a rebuild, the step counter, or half of the
/// seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalarInfo {
    /// The spec key (`train.optimizer.lr`, `train.schedule.warmup.steps`, …), or one of [`STEP_KEY`], [`SEED_KEYS`] and
    /// those with [`MESH_KEY`], which the runtime writes.
    pub key: String,
    /// Always [`DType::F64`].
    pub dtype: DType,
    /// Value in the spec.
    pub default: f64,
    /// The 8-byte slot.
    pub place: Place,
}

impl ScalarInfo {
    /// Whether the runtime itself knows the value, so that nobody sets it by this key.
    pub fn is_own(&self) -> bool {
        self.key == STEP_KEY || SEED_KEYS.contains(&self.key.as_str()) || self.key.starts_with(MESH_KEY)
    }
}

/// A tensor that lives from start to end: a parameter or one of its optimizer states.
///
/// A parameter inside a `repeat` is one buffer with the repeat's axis outermost; each layer's slice is its own logical
/// tensor. The buffer is row-major in `[layers] + shape`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Logical path: `embed`, or `layer.{i}.attn.wq` where `{i}` runs over `layers`. Optimizer states append `.m`, `.v`, `.row`.
    pub path: String,
    /// What it is.
    pub role: TensorRole,
    /// Trip count of the enclosing repeat, or `None` outside one.
    pub layers: Option<u64>,
    /// Axis names of one logical tensor.
    pub axes: Vec<String>,
    /// Axis sizes of one logical tensor, of all ranks together.
    pub shape: Vec<u64>,
    /// Axes that are split over ranks; the buffer holds this rank's part, row-major in `[layers] + local shape`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<AxisSplit>,
    /// Element type at rest.
    pub dtype: DType,
    /// First value of every element.
    pub init: Init,
    /// The buffer.
    pub place: Place,
    /// Spec line that declares it, `file:line`.
    pub line: String,
}

/// Role of a persistent tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRole {
    /// A model parameter.
    Param,
    /// Optimizer state of the named kind (`m`, `v`, `momentum`, `row`, `column`).
    State(String),
}

/// How a tensor's elements are first set: a pure function of (seed, logical path per layer, logical index), hence the
/// same on any mesh.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Every element is this value.
    Constant(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on `[low, high)`.
    Uniform {
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
}

/// A line of the op table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpInfo {
    /// Block path, `layer.attn` or `layer.attn.grad`.
    pub path: String,
    /// Kernel name.
    pub kernel: String,
    /// Spec line, `file:line`.
    pub line: String,
    /// Bytes read and written by one launch.
    pub bytes: u64,
    /// Floating point operations of one launch.
    pub flops: u64,
    /// Stream index.
    pub stream: u32,
    /// Predicted seconds of one launch, of a collective on its way; 0: not predicted.
    pub seconds: f64,
    /// Class of the links that a collective goes over, by its name in the target; empty for a kernel.
    pub link: String,
}

impl OpInfo {
    /// Its name in timelines, predicted and measured: `layer.attn gemm_…`.
    pub fn label(&self) -> String {
        let space = if self.path.is_empty() { "" } else { " " };
        format!("{}{space}{}", self.path, self.kernel)
    }
}

/// One two-way table of external weight names, in the order of the spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NameTable {
    /// Name of the table (`hf`).
    pub name: String,
    /// One entry per logical tensor (repeats expanded).
    pub rows: Vec<NameRow>,
}

/// One weight's external name and layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NameRow {
    /// Logical name with the layer index filled in.
    pub logical: String,
    /// External tensor name.
    pub external: String,
    /// For every external axis, the logical axes (by position) it is made of, major first; axes of size 1 apart, the
    /// concatenation is a permutation of the logical axes. Empty means the same layout.
    pub axes: Vec<Vec<usize>>,
}

/// What the run does unless a run-time key says otherwise; from the spec's `train` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Steps of the whole training, also the schedule's horizon.
    pub steps: u64,
    /// Seed of initialisation and sampling.
    pub seed: u64,
    /// Training data, `None` when the command line must give it.
    pub data: Option<DataInfo>,
    /// Held-out data.
    pub eval_data: Option<DataInfo>,
    /// The id that ends a document, where rows hold several; `None`: a row is one document.
    pub document_end: Option<u32>,
    /// Evaluate every this many steps; 0 = never.
    pub eval_every: u64,
    /// Batches per evaluation.
    pub eval_batches: u64,
    /// Save every this many steps; 0 = only at the end.
    pub checkpoint_every: u64,
    /// Checkpoints kept besides those of `checkpoint_keep_every`; 0 = all.
    pub checkpoint_keep: u64,
    /// Checkpoints at multiples of this step are kept for good; 0 = none.
    pub checkpoint_keep_every: u64,
    /// Checkpoint folder.
    pub checkpoint_dir: String,
    /// Print a step line every this many steps.
    pub log_every: u64,
}

/// A data source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum DataInfo {
    /// Any file read as bytes, one token a byte (vocab ≥ 256).
    Bytes {
        /// File path or glob.
        path: String,
    },
    /// Token shards: u16 or u32 little-endian, with an llm.c header (256 × i32; magic 20240520 = u16, 20240801 = u32)
    /// or headerless.
    Tokens {
        /// File path or glob.
        path: String,
        /// Bytes per token for headerless files: 2 or 4.
        width: u32,
        /// `true`: the file is fixed records of seq + 1 tokens, replayed in order; `false`: one stream, windows drawn
        /// by (seed, step).
        records: bool,
    },
    /// Pseudo-random ids from (seed, step).
    Synthetic,
}

/// Everything the runtime knows about a model. Stored in the binary as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramInfo {
    /// Model name.
    pub model: String,
    /// blake3 of the program, in hex: ranks compare it, checkpoints record it.
    pub fingerprint: String,
    /// The canonical expanded spec.
    pub spec: String,
    /// CPU features the kernels need, by their /proc/cpuinfo names (`avx2`, `fma`, `avx512f`, …).
    pub cpu_features: Vec<String>,
    /// Memory spaces.
    pub spaces: Vec<SpaceInfo>,
    /// Scratch per thread in bytes, the largest any kernel asks for.
    pub scratch_bytes: u64,
    /// The mesh; empty for one rank.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mesh: Vec<MeshAxisInfo>,
    /// Collectives of all entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collectives: Vec<CollectiveInfo>,
    /// Entries, in the order of [`ProgramTable::entries`].
    pub entries: Vec<EntryInfo>,
    /// Run-time scalars.
    pub scalars: Vec<ScalarInfo>,
    /// Parameters and optimizer states.
    pub tensors: Vec<TensorInfo>,
    /// Op table.
    pub ops: Vec<OpInfo>,
    /// External weight names.
    pub names: Vec<NameTable>,
    /// Vocabulary size when `tokens` is an id input; 0 otherwise.
    pub vocab: u64,
    /// Defaults of the run.
    pub run: RunInfo,
    /// Keys fixed at build time with their values, to answer who tries to change one.
    pub baked: Vec<(String, String)>,
    /// Command that builds this binary, to which `--set key=value` is appended in such an answer.
    pub rebuild: String,
    /// What to do about skipped steps; `None` if none ever is.
    pub skip: Option<SkipInfo>,
}

/// Steps that leave parameters and states as they are. The entry `train` then reports `skipped` (0 or 1) and `nonfinite`:
/// the number of the first gradient that is not finite among those of [`SkipInfo::gradients`], where one that is stacked
/// over layers counts once per layer; −1 if all are finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkipInfo {
    /// So many in a row end the run.
    pub stop_after: u64,
    /// Paths of the parameters that have a gradient, in the order of the spec.
    pub gradients: Vec<String>,
}
