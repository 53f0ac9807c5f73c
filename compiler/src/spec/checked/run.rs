//! The run: training, data, schedule, remat, precision, checkpoints, the machine.

use super::*;

/// A training run with all defaults filled in.
#[derive(Clone, Debug)]
pub struct Train {
    /// Number of updates; also the schedule's horizon.
    pub steps: u64,
    /// Sequences per update.
    pub batch: u64,
    /// Tokens per sequence.
    pub seq: u64,
    /// Sequences processed at once per data shard.
    pub microbatch: u64,
    /// Sequences processed at once over all data shards: microbatch · data shards.
    pub global_microbatch: u64,
    /// Microbatches per update: batch / global_microbatch.
    pub accumulation: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// Where training data comes from.
    pub data: Data,
    /// Path of a tokenizer file.
    pub tokenizer: Option<String>,
    /// `pack = documents(end = …)`: the id that ends a document, where a sequence holds several.
    pub document_end: Option<u32>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// One per parameter: it stays as it is.
    pub frozen: Vec<bool>,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// Which steps leave everything as it is; `None` skips none.
    pub skip: Option<Skip>,
    /// Element types.
    pub precision: Precision,
    /// What the forward pass keeps for the backward pass.
    pub remat: Remat,
    /// Checkpoints; `None` writes none but the last.
    pub checkpoint: Checkpoint,
    /// Evaluation.
    pub eval: Option<Eval>,
    /// Logging.
    pub log: Log,
    /// Each key with what it is and where it comes from, for `--expand` and for the run-time keys of the binary.
    pub keys: Vec<Key>,
    /// `train`.
    pub span: Span,
}

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Debug, Default)]
pub struct Remat {
    /// What holds for values that no rule names.
    pub preset: RematPreset,
    /// In order; a later one wins.
    pub rules: Vec<RematRule>,
}

impl Remat {
    /// Whether nothing was chosen.
    pub fn is_default(&self) -> bool {
        self.preset == RematPreset::Auto && self.rules.is_empty()
    }
}

/// Presets of `train.remat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RematPreset {
    /// What a few element-wise ops compute again is not saved.
    #[default]
    Auto,
    /// Everything the backward pass asks for is saved.
    None,
    /// Only what an iteration starts from is saved.
    Full,
    /// Only results of matrix products are saved.
    Dots,
    /// Scores and probabilities of attention are not saved.
    Attn,
}

/// `recompute "…"`, `keep "…"`, `offload "…"`
#[derive(Clone, Debug)]
pub struct RematRule {
    /// What to do.
    pub action: RematAction,
    /// As written.
    pub glob: String,
    /// What it hits.
    pub values: Vec<RematValue>,
    /// The glob.
    pub span: Span,
}

/// What a rule does with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RematAction {
    /// Compute it again in the backward pass.
    Recompute,
    /// Save it.
    Keep,
    /// Save it in the host's memory.
    Offload,
}

/// A value a rule names, or all values of a block instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RematValue {
    /// Path of the block instance that computes it: `layer.{i}.attn`.
    pub block: String,
    /// Its name there; `None` for everything computed in the instance.
    pub name: Option<String>,
}

/// One key of the run with its value as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// `train.optimizer.lr`
    pub path: String,
    /// Its value in the spelling of the language.
    pub value: String,
    /// The span it was written at; [`Span::NONE`] for a default.
    pub origin: Span,
    /// True if it can change without a rebuild.
    pub at_run_time: bool,
}

/// A source of training examples.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// `bytes("path", …)`: every byte is an id; files in order of name.
    Bytes {
        /// Glob of files.
        glob: String,
    },
    /// `tokens("*.bin", dtype = u16, layout = stream)`
    Tokens {
        /// Glob of shards.
        glob: String,
        /// Bytes per id: 2 or 4.
        id_bytes: u64,
        /// True: fixed records of seq + 1 ids. False: one stream.
        records: bool,
    },
    /// `synthetic(…)`: ids made from the seed; needs no files.
    Synthetic,
    /// `text("*.txt")`, tokenized by `tokenizer`.
    Text {
        /// Glob of files.
        glob: String,
    },
    /// `parquet("*.parquet", text = "text")`
    Parquet {
        /// Glob of files.
        glob: String,
        /// The column.
        column: String,
    },
    /// `mix { 0.7 a(…), 0.3 b(…) }`; weights sum to 1.
    Mix(Vec<(f64, Data)>),
}

/// The learning rate over time, as pieces that follow each other without gaps from step 0 to `steps`; after the last
/// piece its end value holds. With s the step (from 0) and p = (s − begin) / (end − begin), [`Shape`] gives the rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The pieces.
    pub pieces: Vec<Piece>,
}

/// A piece of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// Its shape.
    pub shape: Shape,
    /// First step, from 0.
    pub begin: u64,
    /// One past the last step.
    pub end: u64,
    /// Its length as written; `None` lasts to the end of the run.
    pub steps: Option<u64>,
    /// Rate at `begin`.
    pub from: f64,
    /// Rate at `end`.
    pub to: f64,
}

/// Shapes of a schedule's piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The rate stays.
    Constant,
    /// The rate rises from 0: (s + 1 − begin) / (end − begin) of `to`.
    Warmup,
    /// from + (to − from)·p.
    Linear,
    /// to + (from − to)·(1 + cos πp)/2. Source: Loshchilov, Hutter 2016 (arXiv:1608.03983), eq. 5, without restarts.
    Cosine,
    /// to + (from − to)·(1 − √p). Source: Hägele et al. 2024 (arXiv:2405.18392), eq. 2.
    Sqrt,
    /// from·√(n/(s + 1)) with n = max(begin, 1). Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 3.
    InverseSqrt,
}

impl Shape {
    /// Its word in the language.
    pub fn word(self) -> &'static str {
        match self {
            Shape::Constant => "constant",
            Shape::Warmup => "warmup",
            Shape::Linear => "linear",
            Shape::Cosine => "cosine",
            Shape::Sqrt => "sqrt",
            Shape::InverseSqrt => "inverse_sqrt",
        }
    }
}

/// Which steps leave parameters and states as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Skip {
    /// Those whose loss or gradient is infinite or not a number.
    pub nonfinite: bool,
    /// Those whose gradient has a larger global norm, before clipping.
    pub norm: Option<f64>,
    /// So many in a row end the run.
    pub stop_after: u64,
}

/// Floating-point widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 32 bits.
    F32,
    /// Brain float, 16 bits.
    Bf16,
}

/// Element types by role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precision {
    /// Parameters at rest.
    pub params: Float,
    /// Operands of matrix products.
    pub matmul: Float,
    /// What the forward pass keeps for the backward pass.
    pub stored: Float,
    /// In which terms of sums of products travel between devices. The sums are f32 all the same.
    pub reduce: Float,
    /// Parameters with a width of their own, at rest and as operands of products.
    pub of_param: BTreeMap<ParamId, Float>,
    /// Whether parameters of bf16 are rounded at random rather than to nearest.
    pub stochastic: bool,
}

/// When and where the state is saved. Intervals of 0 are never.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Steps between checkpoints.
    pub every: u64,
    /// Newest checkpoints kept.
    pub keep: u64,
    /// Checkpoints at multiples of this are kept for good.
    pub keep_every: u64,
    /// Directory.
    pub dir: String,
}

/// Evaluation on held-out data.
#[derive(Clone, Debug, PartialEq)]
pub struct Eval {
    /// Steps between evaluations.
    pub every: u64,
    /// Where its data comes from.
    pub data: Data,
    /// Microbatches per evaluation.
    pub batches: u64,
}

/// Logging.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Steps between lines.
    pub every: u64,
}

/// The machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Which kind.
    pub kind: TargetKind,
    /// Its name, if it has one.
    pub label: Option<String>,
    /// The plan must fit in this many bytes; `None` is unlimited.
    pub memory_bytes: Option<u64>,
    /// Instruction set, such as `x86-64-v4` or `sm_90a`; `None` is this machine's.
    pub arch: Option<String>,
    /// What predicted times are for: the name of a machine, or a file of figures beside the spec; `None` is `cpu`.
    pub machine: Option<String>,
    /// The item; [`Span::NONE`] if there is none.
    pub span: Span,
}

/// Kinds of machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}
