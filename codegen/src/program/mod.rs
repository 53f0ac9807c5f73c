//! `Program`: what the compiler hands to codegen.
//!
//! A program is a list of kernels, described by *what they compute* ([`KernelSpec`]), and a list of entries that launch
//! them in order over addresses in static memory spaces. Nothing here names an instruction set; expansion to KIR picks
//! tiles and vector widths from the target's table.
//!
//! What always holds:
//! * every buffer a step touches lies inside its memory space for every value of the loop variables and on every rank;
//! * a collective is started and done once each, in one body of steps or from one iteration of a loop to a later one, and
//!   nobody meddles with its buffers in between;
//! * a launch passes exactly as many addresses as its kernel has buffers, and scalars likewise;
//! * every operand's strides have as many entries as the iteration space has dimensions;
//! * scalar regions are in single-assignment order and well typed.

mod bind;
pub(crate) mod exchange;
pub mod execute;
mod interpret;
pub(crate) mod lockstep;
mod operands;
mod print;
pub mod reference;
pub mod region;
pub mod unroll;
mod verify;

use mlc_runtime::abi::{DType, ProgramInfo};
use serde::{Deserialize, Serialize};

pub use interpret::InterpretedProgram;
pub use lockstep::Spaces;
pub use operands::Use;
pub use region::{BinaryOp, CompareOp, ReduceOp, Region, ScalarId, ScalarOp, UnaryOp};
pub use verify::verify;

/// A whole training program for one role: every rank of `info.mesh` runs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// What the runtime must know; also carries memory spaces, the op table and streams' indices.
    pub info: ProgramInfo,
    /// Distinct kernels; launches refer to them by index. Two launches of the same computation share one kernel.
    pub kernels: Vec<Kernel>,
    /// In the order of `info.entries`.
    pub entries: Vec<Entry>,
    /// Number of streams; launches of one stream run in order. One for now.
    pub streams: u32,
}

/// A kernel with a stable, human-readable name (`gemm_2048x768x288_f32`), unique in its program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Symbol-safe name. Not part of the kernel's content hash.
    pub name: String,
    /// What it computes.
    pub spec: KernelSpec,
}

/// The step program of one entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `train`, `eval` or `logits`.
    pub name: String,
    /// Steps in order.
    pub body: Vec<Step>,
}

impl Entry {
    /// The most buffers and the most scalars any step passes.
    pub fn most_arguments(&self) -> (usize, usize) {
        fn most(steps: &[Step]) -> (usize, usize) {
            let each = |step: &Step| match step {
                Step::Launch(launch) => (launch.buffers.len(), launch.scalars.len()),
                Step::Collective(collective) => (collective.buffers.len(), 0),
                Step::Loop { body, .. } | Step::Within { body, .. } => most(body),
            };
            steps.iter().map(each).fold((0, 0), |(b, s), (buffers, scalars)| (b.max(buffers), s.max(scalars)))
        }
        most(&self.body)
    }
}

/// One element of the tree of loops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Launch a kernel.
    Launch(Launch),
    /// Start or finish a collective.
    Collective(CollectiveStep),
    /// Run `body` `trip` times with loop variable `var` = 0, 1, … (or trip-1, …, 0 when `reverse`).
    Loop {
        /// Unique in the entry.
        var: LoopVar,
        /// Number of iterations, ≥ 1.
        trip: u64,
        /// Count down.
        reverse: bool,
        /// Steps in order.
        body: Vec<Step>,
    },
    /// Run `body` in those iterations of an enclosing loop whose variable is in `from..below`.
    Within {
        /// Of the loop.
        var: LoopVar,
        /// First value.
        from: u64,
        /// Behind the last one.
        below: u64,
        /// Steps in order; no loops.
        body: Vec<Step>,
    },
}

/// A loop variable of the step program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoopVar(pub u32);

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Index into `Program::info.ops`.
    pub op: u32,
    /// Index into `Program::kernels`.
    pub kernel: u32,
    /// Stream.
    pub stream: u32,
    /// One per buffer of the kernel.
    pub buffers: Vec<Address>,
    /// One per scalar of the kernel.
    pub scalars: Vec<ScalarArg>,
}

/// Half of a collective. Every start has its done later, with the same op and collective and at the same addresses: in the same
/// body or, around the iterations of a loop, in a later iteration or behind the loop. In between, no step writes a buffer that
/// is sent, or touches one that is received or the staging buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectiveStep {
    /// Index into `Program::info.ops`.
    pub op: u32,
    /// Index into `Program::info.collectives`.
    pub collective: u32,
    /// Which half.
    pub stage: CollectiveStage,
    /// For each part, what is sent and where what is received goes; last, the staging buffer.
    pub buffers: Vec<Address>,
}

/// Half of a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CollectiveStage {
    /// What is sent is ready; returns at once.
    Start,
    /// Returns when everything has been received.
    Done,
}

/// `base(space) + offset + Σ stride·((var + ahead) mod slots) + Σ bytes·coordinate`, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Index into `info.spaces`.
    pub space: u32,
    /// Constant part.
    pub offset: u64,
    /// Moves with enclosing loops.
    pub strides: Vec<LoopStride>,
    /// Moves with the rank's coordinates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankStride>,
}

/// A coordinate's contribution to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStride {
    /// Index into `info.mesh`.
    pub axis: u32,
    /// Bytes per step along it.
    pub bytes: u64,
}

/// One loop's contribution to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopStride {
    /// The loop.
    pub var: LoopVar,
    /// Bytes per iteration.
    pub bytes: u64,
    /// Take the index modulo this many slots (0 = no modulo).
    pub slots: u64,
    /// The index is the variable plus this: that of another iteration, which has to be there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ahead: i64,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

impl LoopStride {
    /// Bytes from the start of the buffer when the loop's variable has this value.
    pub fn at(&self, var: u64) -> u64 {
        let index = var.wrapping_add_signed(self.ahead);
        self.bytes.wrapping_mul(if self.slots > 0 { index % self.slots } else { index })
    }
}

/// A scalar argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScalarArg {
    /// Known at build time.
    Const(i64),
    /// The current value of a loop variable times a factor, plus an offset (a global base index, for instance).
    Loop(LoopVar, i64, i64),
}

/// What a kernel computes. Buffers are numbered from 0 in the order of the launch's addresses; an operand names its
/// buffer by number. Two operands naming the same buffer alias exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum KernelSpec {
    /// Element-wise over an iteration space.
    Map(LoopsSpec),
    /// Element-wise with reductions over trailing dimensions.
    Rows(LoopsSpec),
    /// Matrix product.
    Gemm(GemmSpec),
    /// Attention, forward.
    Attention(AttentionSpec),
    /// Attention, backward: one of the two gradient kernels.
    AttentionGrad(AttentionGradSpec),
    /// Row lookup.
    Gather(GatherSpec),
    /// Row accumulation, the transpose of a lookup.
    Scatter(ScatterSpec),
    /// A function of an MLIR file of the user's own.
    Custom(CustomSpec),
    /// Running sum.
    Scan(ScanSpec),
}

/// One operand seen from an iteration space: element address = `offset + Σ index[i]·strides[i]`, in elements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operand {
    /// Buffer number of the launch.
    pub buffer: u32,
    /// Element type in memory.
    pub dtype: DType,
    /// Constant element offset.
    pub offset: u64,
    /// One stride per dimension of the iteration space; 0 broadcasts.
    pub strides: Vec<u64>,
}

/// `Map` and `Rows`: a scalar region evaluated over `dims`.
///
/// The first `dims.len() - reduced` dimensions are kept, the last `reduced` are reduced over by the region's
/// [`ScalarOp::Reduce`] ops (`Map` has `reduced = 0`). Region input `i` is `inputs[i]`, loaded at the current index.
/// A region value is *row-level* when it does not depend on a reduced dimension (the result of a `Reduce`, or a function
/// of such and of inputs whose strides over reduced dimensions are all 0) and *element-level* otherwise. Output `i`
/// stores region result `i`; a row-level result is stored once per row (its strides over reduced dims are 0), an
/// element-level one per element. An output may share its buffer with an input only if both have the same strides and
/// offset (in place).
///
/// Reductions accumulate in the value's type in an order fixed by the spec and the target, never by thread count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoopsSpec {
    /// Sizes of the iteration space, outermost first.
    pub dims: Vec<u64>,
    /// How many trailing dims are reduced.
    pub reduced: usize,
    /// Operands read.
    pub inputs: Vec<Operand>,
    /// Scalar arguments read as region inputs after `inputs`: region input `inputs.len() + j` is scalar `j` (i64).
    pub n_scalars: u32,
    /// The computation per element.
    pub region: Region,
    /// Operands written, one per region result.
    pub outputs: Vec<Operand>,
}

/// `c[b.., m, n] = epilogue(Σ_k a[b.., m, k]·b[b.., k, n] (+ c if accumulate), extras)`, sums in f32 (f64 for f64).
///
/// Each of m, n, k is one dimension with one stride per operand; batch dimensions are a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GemmSpec {
    /// Batch sizes, outermost first.
    pub batch: Vec<u64>,
    /// Rows of the result.
    pub m: u64,
    /// Columns of the result.
    pub n: u64,
    /// Contracted size.
    pub k: u64,
    /// Left operand; strides are `[batch.., m, k]`.
    pub a: Operand,
    /// Right operand; strides are `[batch.., k, n]`.
    pub b: Operand,
    /// Result; strides are `[batch.., m, n]`.
    pub c: Operand,
    /// Add to what `c` holds.
    pub accumulate: bool,
    /// Optional scalar region: input 0 is the sum (f32), inputs 1.. are `extras`; its one result is stored to `c`.
    pub epilogue: Option<Region>,
    /// Extra operands of the epilogue; strides are `[batch.., m, n]`.
    pub extras: Vec<Operand>,
}

/// Which scores exist, for skipping whole tiles. The score region still decides every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    /// All keys.
    Full,
    /// Keys with `key <= query` only (global positions).
    Causal,
    /// Keys with `query - window < key <= query`.
    Window(u64),
}

/// Sizes and score shared by the attention kernels.
///
/// ```text
/// q   [batch.., group, sq, hd]     group = query heads per key/value head
/// k,v [batch.., sk, hd]
/// s   = region(q·k, query position, key position, extras..)     f32; -inf removes the pair
/// o   = softmax(s) · v
/// lse = log Σ exp s     [batch.., group, sq] f32; -inf on a row with no key, whose o is 0
/// ```
/// Source: Dao 2023 (FlashAttention-2, arXiv:2307.08691), §3.1, for the tiled forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionShape {
    /// Batch sizes (batch, kv heads, …), outermost first.
    pub batch: Vec<u64>,
    /// Query heads per key/value head.
    pub group: u64,
    /// Queries.
    pub sq: u64,
    /// Keys.
    pub sk: u64,
    /// Head dimension of q and k.
    pub hd: u64,
    /// Head dimension of v and o.
    pub hv: u64,
    /// Scores that exist.
    pub bound: Bound,
    /// Score region: input 0 the raw dot product (f32), input 1 the query position, input 2 the key position (i32),
    /// inputs 3.. the extras; one f32 result.
    pub score: Region,
    /// Extra operands; strides are `[batch.., group, sq, sk]`.
    pub extras: Vec<Operand>,
    /// Scalar 0 of the launch is added to query positions and scalar 1 to key positions.
    pub has_bases: bool,
}

/// Forward attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// Sizes and score.
    pub shape: AttentionShape,
    /// Strides `[batch.., group, sq, hd]`.
    pub q: Operand,
    /// Strides `[batch.., sk, hd]`.
    pub k: Operand,
    /// Strides `[batch.., sk, hv]`.
    pub v: Operand,
    /// Written. Strides `[batch.., group, sq, hv]`.
    pub o: Operand,
    /// Written. Strides `[batch.., group, sq]`.
    pub lse: Operand,
}

/// Which gradients one backward kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttentionGradPart {
    /// `dq`: tiles over queries.
    Query,
    /// `dk` and `dv`: tiles over keys.
    KeyValue,
    /// The gradient of this extra: tiles over the dimensions it has.
    Extra(u32),
}

/// Backward attention with probabilities recomputed from `lse`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionGradSpec {
    /// Sizes and score.
    pub shape: AttentionShape,
    /// Which outputs.
    pub part: AttentionGradPart,
    /// Derivative of the score, with the inputs of the score region: one f32 result, d(score)/d(dot product), or for a
    /// part `Extra` d(score)/d(extra). 0 where the score is -inf.
    pub slope: Region,
    /// As in the forward kernel.
    pub q: Operand,
    /// As in the forward kernel.
    pub k: Operand,
    /// As in the forward kernel.
    pub v: Operand,
    /// Gradient of the output; strides as `o`.
    pub d_o: Operand,
    /// As in the forward kernel.
    pub lse: Operand,
    /// `Σ_hv o·do`, f32; strides `[batch.., group, sq]`.
    pub delta: Operand,
    /// Written: `[dq]` with strides as `q`, `[dk, dv]` with strides as `k` and `v`, or the gradient of an extra with
    /// strides `[batch.., group, sq, sk]`. The last two are sums over the dimensions (of the batch, or any) along which
    /// their strides are 0.
    pub outputs: Vec<Operand>,
}

/// `out[i] = table[.. + ids[i]·axis_stride]` over the iteration space `dims`.
///
/// `table.strides` are 0 along dimensions that belong to the ids alone, `ids.strides` are 0 along the row's own
/// dimensions; a dimension in both is shared (as in picking one logit per token).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatherSpec {
    /// Iteration space: the axes of the result.
    pub dims: Vec<u64>,
    /// What is looked up in.
    pub table: Operand,
    /// Elements of the table between neighbouring ids.
    pub axis_stride: u64,
    /// Size of the looked-up axis.
    pub axis_size: u64,
    /// Ids, i32. An id outside `0..axis_size` gives 0.
    pub ids: Operand,
    /// Written.
    pub out: Operand,
}

/// `out[.., v, ..] (+)= Σ over update elements whose id is v`, in the order of the iteration space.
///
/// Tiles own ranges of `v`, so no two threads write one element and the order of additions is fixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScatterSpec {
    /// Iteration space: the axes of the updates, those of the ids first.
    pub dims: Vec<u64>,
    /// How many leading dims the ids range over (their strides beyond are 0).
    pub id_dims: usize,
    /// Values added; strides over `dims`.
    pub updates: Operand,
    /// Ids, i32; strides over `dims`. An id outside `0..axis_size` is left out.
    pub ids: Operand,
    /// Elements of `out` between neighbouring ids.
    pub axis_stride: u64,
    /// Size of the axis.
    pub axis_size: u64,
    /// Written; strides over `dims` (0 along dims of the ids alone).
    pub out: Operand,
    /// Start from what `out` holds instead of 0.
    pub accumulate: bool,
}

/// A function of an MLIR file: `func.func @forward(%x: memref<4x8xf32>, …)`.
///
/// Its arguments are dense. An operand that is not is copied around the call, on one thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CustomSpec {
    /// The file, for messages.
    pub file: String,
    /// Its text.
    pub source: String,
    /// The function, without `@`.
    pub function: String,
    /// Whether it takes `%begin: index, %end: index` behind its arguments.
    pub in_tiles: bool,
    /// Independent parts; 1 unless `in_tiles`.
    pub tiles: u64,
    /// In the order of the function's.
    pub arguments: Vec<CustomArgument>,
}

/// An argument of a custom kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CustomArgument {
    /// Where it lies; strides over `dims`.
    pub operand: Operand,
    /// Sizes of the memref, outermost first.
    pub dims: Vec<u64>,
    /// Whether the function writes it (all of it) or reads it.
    pub written: bool,
}

impl CustomArgument {
    /// Whether it lies as the function wants it.
    pub fn is_dense(&self) -> bool {
        let mut stride = 1;
        self.dims.iter().zip(&self.operand.strides).rev().all(|(size, have)| {
            let fits = *size == 1 || *have == stride;
            stride *= size;
            fits
        })
    }

    /// Bytes of the memref.
    pub fn bytes(&self) -> u64 {
        self.dims.iter().product::<u64>() * self.operand.dtype.bytes()
    }
}

/// `out[.., i] = Σ input[.., j]` over `j ≤ i` of the last dimension (`j < i` when exclusive; `≥`, `>` in reverse).
///
/// Elements are added one by one in that order, in the type of the values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScanSpec {
    /// Iteration space; the last dimension is summed along.
    pub dims: Vec<u64>,
    /// Leaves out the element itself.
    pub exclusive: bool,
    /// Sums from the other end.
    pub reverse: bool,
    /// Added, f32, f64, i32 or i64.
    pub input: Operand,
    /// Written; another buffer than the input's.
    pub out: Operand,
}
