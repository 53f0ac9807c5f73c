//! The checked spec: what the graph is built from. Every name is resolved, every expression has a type, every default is
//! filled in, every size is a number.
//!
//! How to walk it: [`Model::body`] is a list of statements in order; a `let` defines a [`ValueId`], later expressions
//! refer to it by [`ExprKind::Value`]. A call of a block is [`ExprKind::Call`] and carries its own instance of the body
//! with axes and constants put in, so generic blocks need no further work; a `repeat` is one [`ExprKind::Repeat`] with
//! one instance for all iterations. Value ids are unique in the model, across all instances, so one table suffices.
//! Bodies are closed: inside an instance only its own arguments, its own parameters and constants occur.

mod layout;
mod optimizer;
mod run;

use super::source::Span;
pub use layout::{
    Atom, Constraint, Kept, Layout, MeshAxis, MeshKind, Regather, Scope, ShardMode, ShardRule, Split, Store,
    SubAxis, Won, split_jointly,
};
pub use optimizer::{Adafactor, Decay, DecayBy, Group, Muon, MuonScale, Optimizer, ParamRate, Rule};
pub use run::*;
use std::collections::BTreeMap;

/// Everything known about a run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The model to train.
    pub model: Model,
    /// How to train it; `None` if a model was checked alone.
    pub train: Option<Train>,
    /// How the run is laid out over devices; `None` is one device.
    pub layout: Option<Layout>,
    /// The machine.
    pub target: Target,
}

// ---- types of tensors ----------------------------------------------------------------------------------------------

/// A named tensor axis with its size.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Axis {
    /// Its name.
    pub name: String,
    /// Number of elements, ≥ 1.
    pub size: u64,
}

/// What the elements are. Widths are decided later by `precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// Real numbers.
    Real,
    /// Whole numbers: positions, ids.
    Int,
    /// Conditions.
    Bool,
}

/// The type of an expression. The order of axes is the order of first appearance and carries no meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// What the elements are.
    pub elem: Elem,
    /// Axes; empty for a scalar.
    pub axes: Vec<Axis>,
}

// ---- the model -----------------------------------------------------------------------------------------------------

/// A model with all sizes known.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Sizes in order of declaration.
    pub sizes: Vec<Size>,
    /// Constants in order of declaration.
    pub consts: Vec<Const>,
    /// Inputs in order of declaration.
    pub inputs: Vec<Input>,
    /// All parameters in order of declaration, a block's where it is used; [`ParamId`] indexes this list. One entry
    /// stands for all iterations of the repeats around it.
    pub params: Vec<Param>,
    /// Statements of the model in order. Nothing is returned; the loss stands apart.
    pub body: Vec<Statement>,
    /// The loss. Its expressions follow the last statement of the body.
    pub loss: Loss,
    /// Name tables.
    pub names: Vec<NameTable>,
    /// Number of values; ids are below it.
    pub n_values: u32,
    /// Recognisers turned off by `lower { attention = reference }`, such as `attention`.
    pub lower_reference: Vec<String>,
    /// Repeats some of whose iterations are laid out in a row.
    pub unrolled: Vec<Unrolled>,
    /// What rules for roles and values say, by path of the value. Empty without a mesh of several devices.
    pub constraints: BTreeMap<String, Constraint>,
    /// Kernels of the user's own, in order.
    pub kernels: Vec<CustomKernel>,
    /// `model Name`.
    pub span: Span,
}

/// `kernel "swiglu.mlir" for FeedForward@mlp`: what stands in the place of a block.
#[derive(Clone, Debug)]
pub struct CustomKernel {
    /// File as written.
    pub file: String,
    /// Its text.
    pub text: String,
    /// The block it computes.
    pub block: String,
    /// Only instances of this name, if given.
    pub instance: Option<String>,
    /// The whole statement.
    pub span: Span,
}

impl CustomKernel {
    /// Whether it computes an instance.
    pub fn computes(&self, instance: &Instance) -> bool {
        let last = instance.path.rsplit('.').next();
        instance.block == self.block && self.instance.as_deref().is_none_or(|name| last == Some(name))
    }
}

/// A size.
#[derive(Clone, Debug)]
pub struct Size {
    /// Its name; also the name of the tensor axis of that size.
    pub name: String,
    /// Its value. For a size given by the run, see [`Size::by_run`].
    pub value: u64,
    /// True if declared `= run`. `batch` is then the number of sequences processed at once (one microbatch, summed over
    /// the data shards), `seq` the tokens per sequence; without a run both are placeholders.
    pub by_run: bool,
    /// Where its value was written: the declaration, a `with`, or a `--set`.
    pub origin: Span,
    /// Its declaration.
    pub span: Span,
}

/// A constant.
#[derive(Clone, Debug)]
pub struct Const {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Where its value was written.
    pub origin: Span,
    /// Its declaration.
    pub span: Span,
}

/// An input, filled from data.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its name: `tokens`, `targets`, `weight`, …
    pub name: String,
    /// Its value.
    pub value: ValueId,
    /// Its type.
    pub ty: Type,
    /// Exclusive upper bound of ids; `None` for other inputs.
    pub bound: Option<u64>,
    /// Its declaration.
    pub span: Span,
}

/// Index of a value of the model, dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

/// Index into [`Model::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub u32);

/// A repeat around a parameter or value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepeatDim {
    /// The placeholder in paths: `i` for the outermost repeat, then `j`, `k`, …
    pub variable: String,
    /// The stacked axis; its name is the size named in the brackets, its size the number of iterations.
    pub axis: Axis,
}

/// A parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Logical path: `embed`, or `layer.{i}.attn.wq` under a repeat.
    pub path: String,
    /// Repeats around it, outermost first. The tensor is stacked over these axes.
    pub repeats: Vec<RepeatDim>,
    /// Axes before the arrow: what a `dot` with it usually sums over. All axes if there was no arrow.
    pub inputs: Vec<Axis>,
    /// Axes after the arrow.
    pub outputs: Vec<Axis>,
    /// First value.
    pub init: Init,
    /// Its declaration.
    pub span: Span,
}

/// First value of a parameter; random ones are keyed by (seed, path per iteration, logical index).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every element is this value.
    Constant(f64),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on [low, high).
    Uniform {
        /// Lower bound.
        low: f64,
        /// Upper bound.
        high: f64,
    },
}

/// A statement of a body.
#[derive(Clone, Debug)]
pub enum Statement {
    /// Defines a value.
    Let(Let),
    /// Adds to the loss.
    Aux(Aux),
}

/// `h = x + y role residual`
#[derive(Clone, Debug)]
pub struct Let {
    /// The value it defines.
    pub value: ValueId,
    /// Its name as written.
    pub name: String,
    /// Its logical path: `layer.{i}.h`.
    pub path: String,
    /// What it is. Its type has the annotated axes in the annotated order if there is an annotation.
    pub expr: Expr,
    /// Its role.
    pub role: Option<String>,
    /// The name.
    pub span: Span,
}

/// `aux balance = …`: a scalar that adds to the loss and is logged by name.
#[derive(Clone, Debug)]
pub struct Aux {
    /// Its path: `layer.{i}.mlp.balance`.
    pub path: String,
    /// A real scalar.
    pub expr: Expr,
    /// The name.
    pub span: Span,
}

impl Aux {
    /// The name in the log: the path without the iterations of repeats, whose sum is logged.
    pub fn log_name(&self) -> String {
        let segments: Vec<&str> = self.path.split('.').filter(|segment| !segment.starts_with('{')).collect();
        segments.join(".")
    }
}

/// The loss: Σ over `axes` of `value·weight`, divided by Σ over `axes` of `weight` (or by the number of elements).
#[derive(Clone, Debug)]
pub struct Loss {
    /// The axes averaged over; exactly the axes of `value`.
    pub axes: Vec<Axis>,
    /// The loss of one element.
    pub value: Expr,
    /// Its weight, with a subset of the axes; `None` is 1.
    pub weight: Option<Expr>,
    /// The statement.
    pub span: Span,
}

/// One use of a block with everything put in.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The block's name.
    pub block: String,
    /// Logical path, `layer.{i}.attn`.
    pub path: String,
    /// Its tensor arguments in order of declaration; constants are already in the body.
    pub args: Vec<InstanceArg>,
    /// Statements in order.
    pub body: Vec<Statement>,
    /// The value of the block.
    pub result: Expr,
    /// Role of the result.
    pub role: Option<String>,
    /// The block's declaration.
    pub span: Span,
}

/// A tensor argument of an instance.
#[derive(Clone, Debug)]
pub struct InstanceArg {
    /// The value it is inside the body.
    pub value: ValueId,
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// Its declaration.
    pub span: Span,
}

/// `repeat[layers](Layer@layer, x, …)`: `carry ← body(carry, invariants…)`, `axis.size` times.
#[derive(Clone, Debug)]
pub struct Repeat {
    /// The stacked axis: name and number of iterations.
    pub dim: RepeatDim,
    /// One instance for all iterations. `body.args[0]` is the carry; the others are the same in every iteration.
    pub body: Box<Instance>,
    /// Initial carry.
    pub init: Box<Expr>,
    /// What is passed for `body.args[1..]`.
    pub invariants: Vec<Expr>,
    /// Constants that differ per iteration, each with one entry per iteration; [`ExprKind::Value`] refers to them.
    pub cycled: Vec<Cycled>,
    /// Iterations to lay out in a row; 1 is a plain loop.
    pub unroll: u64,
}

/// A constant with a value for each iteration.
#[derive(Clone, Debug)]
pub struct Cycled {
    /// The scalar it is inside the body.
    pub value: ValueId,
    /// The argument's name.
    pub name: String,
    /// One value per iteration; `none` is +∞.
    pub values: Vec<f64>,
    /// Where the list was written.
    pub span: Span,
}

/// `repeat[…](…, unroll = k)`
#[derive(Clone, Debug)]
pub struct Unrolled {
    /// The repeat's axis: its name and number of iterations.
    pub axis: Axis,
    /// How many iterations stand in a row; a divisor of their number.
    pub by: u64,
}

/// A typed expression with its place.
#[derive(Clone, Debug)]
pub struct Expr {
    /// What it computes.
    pub kind: ExprKind,
    /// Type of the result.
    pub ty: Type,
    /// Where it stands; every op made from it carries this line.
    pub span: Span,
}

/// Forms of an expression. Element-wise forms broadcast by name: operands may lack axes of the result, and a union of
/// axes occurs only where the text annotated it.
#[derive(Clone, Debug)]
pub enum ExprKind {
    /// A scalar constant; of type `Int` only beside integers. Sizes and constants are already folded in. May be ±∞.
    Const(f64),
    /// An input, an argument, a `let`, or a per-iteration constant.
    Value(ValueId),
    /// A parameter, for the current iteration of the repeats around it.
    Param(ParamId),
    /// `index[axis]`: position along the only axis of the type; `Int`.
    Index,
    /// Int to Real.
    ToReal(Box<Expr>),
    /// `int(x)`: Real to Int, toward zero; what lies outside becomes the nearest whole number of 32 bits, NaN 0.
    ToInt(Box<Expr>),
    /// An element-wise function.
    Unary(UnaryOp, Box<Expr>),
    /// An element-wise function of two operands of one element type.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// A comparison; Bool.
    Compare(CompareOp, Box<Expr>, Box<Expr>),
    /// `where(condition, x, y)`
    Where(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `x as [from: to]`; sizes stay.
    Rename(Box<Expr>, Vec<(String, String)>),
    /// `sum[axes](x)`, `mean[axes](x)`, `max[axes](x)`, `min[axes](x)`
    Reduce(ReduceOp, Vec<Axis>, Box<Expr>),
    /// `softmax[axis](x)`; a row of −∞ gives 0.
    Softmax(Axis, Box<Expr>),
    /// In training, 0 with the probability `rate` and else `x / (1 − rate)`, by draws of its own for every place in the
    /// text, step, iteration and element; `x` elsewhere. 0 < rate < 1.
    Dropout {
        /// What is thinned out.
        x: Box<Expr>,
        /// Probability of 0.
        rate: f64,
    },
    /// `dot[axes](x, y)`: axes of both that are not summed are shared.
    Dot(Vec<Axis>, Box<Expr>, Box<Expr>),
    /// `gather[axis](table, ids)`
    Gather {
        /// The looked-up axis of the table.
        axis: Axis,
        /// The table.
        table: Box<Expr>,
        /// Int.
        ids: Box<Expr>,
    },
    /// `slice[from, to](x, at = k)`
    Slice {
        /// What a part is taken of.
        x: Box<Expr>,
        /// Axis of the operand.
        from: Axis,
        /// Axis of the result, no larger.
        to: Axis,
        /// First element.
        at: u64,
    },
    /// `concat[axis](part = x, part = y, …)`: each operand has its part and the other axes of the result, or fewer.
    Concat {
        /// Axis of the result; its size is the sum of the parts'.
        axis: Axis,
        /// (axis laid into the whole, operand)
        parts: Vec<(Axis, Expr)>,
    },
    /// `rope[axis](x, at = positions, theta, pairs = half, scaling = none)`
    Rope(Box<Rope>),
    /// `cross_entropy[axis](logits, targets)`: −log softmax at the target.
    CrossEntropy {
        /// Class axis.
        axis: Axis,
        /// Has the class axis.
        logits: Box<Expr>,
        /// Int, without the class axis.
        targets: Box<Expr>,
    },
    /// `rms_norm[axis](x, w, eps = 1e-5)`
    RmsNorm {
        /// Normalised axis.
        axis: Axis,
        /// What is normalised.
        x: Box<Expr>,
        /// Gain over the axis.
        weight: Option<Box<Expr>>,
        /// Added to the mean square.
        eps: f64,
    },
    /// `layer_norm[axis](x, w, b, eps = 1e-5)`
    LayerNorm {
        /// Normalised axis.
        axis: Axis,
        /// What is normalised.
        x: Box<Expr>,
        /// Gain over the axis.
        weight: Option<Box<Expr>>,
        /// Shift over the axis.
        bias: Option<Box<Expr>>,
        /// Added to the variance.
        eps: f64,
    },
    /// `std.Attend[query, key, head](q, k, v, …)`
    Attend(Box<Attend>),
    /// `route[tokens, expert](gates, …)`; stands only as the whole of a `let`, whose value names the routing.
    Route(Box<Route>),
    /// `dispatch(x, r)`: to every place of the routing its token's slice of x, 0 to an empty one.
    Dispatch(ValueId, Box<Expr>),
    /// `combine(h, r)`: to every token the sum over its places of h times the place's weight.
    Combine(ValueId, Box<Expr>),
    /// `dot[axes](x, w, by = r)` of packed rows: each with the matrix of its expert.
    GroupedDot {
        /// The routing that packed the rows.
        routing: ValueId,
        /// Axes summed over.
        over: Vec<Axis>,
        /// Has the packed axis.
        x: Box<Expr>,
        /// Has the expert axis.
        w: Box<Expr>,
    },
    /// `load_balance[axes](r, choices = all)`
    LoadBalance {
        /// The routing.
        routing: ValueId,
        /// Axes of the tokens it is taken over.
        over: Vec<Axis>,
        /// Counts the first choice of each token alone.
        first: bool,
    },
    /// `z_loss[axis](x)`: (log Σ exp x)².
    ZLoss(Axis, Box<Expr>),
    /// A block called; arguments in the order of `instance.args`.
    Call(Box<Instance>, Vec<Expr>),
    /// A block repeated.
    Repeat(Box<Repeat>),
}

/// Operands and options of `rope`.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Rotated axis, of even size.
    pub axis: Axis,
    /// What is rotated.
    pub x: Expr,
    /// Positions: Int, over axes that `x` has.
    pub at: Expr,
    /// Base of the frequencies θ^(−2j/n).
    pub theta: f64,
    /// True: element 2j pairs with 2j + 1. False: element j pairs with j + n/2.
    pub interleaved: bool,
    /// How the frequencies are stretched, if they are.
    pub scaling: Option<RopeScaling>,
}

/// `llama3(factor = 8, low = 1, high = 4, original = 8192)`: with `w = original·f / 2π`, the number of turns a frequency f
/// makes within the original length, and `s = (w − low) / (high − low)` kept in [0, 1], f becomes `f·((1 − s)/factor + s)`.
/// Source: Llama 3.1 (arXiv:2407.21783), §3.4.2, in the form of its reference implementation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// By how much slow turns are stretched; 1 changes nothing.
    pub factor: f64,
    /// Turns below which a frequency is stretched in full.
    pub low: f64,
    /// Turns above which it stays.
    pub high: f64,
    /// Positions the model was first trained with.
    pub original: f64,
}

/// Operands and options of `std.Attend`:
/// `softmax over key of score(dot[head](q, k) · scale)`, times v, with
/// `score(s) = soft_cap · tanh(s / soft_cap)` if there is a soft cap, plus `bias`, and −∞ where masked.
#[derive(Clone, Debug)]
pub struct Attend {
    /// Its logical path, if it was given a name: `layer.{i}.attn.core`.
    pub path: Option<String>,
    /// Query positions, in q.
    pub query: Axis,
    /// Key positions, in k and v.
    pub key: Axis,
    /// Summed in q·k.
    pub head: Axis,
    /// `[.., query, head]`
    pub q: Expr,
    /// `[.., key, head]`
    pub k: Expr,
    /// `[.., key, …]`
    pub v: Expr,
    /// Multiplies q·k; 1/√head if not given.
    pub scale: f64,
    /// Keys after the query are masked.
    pub causal: bool,
    /// `soft_cap · tanh(s / soft_cap)`.
    pub soft_cap: Option<f64>,
    /// Keys at distance ≥ window before the query are masked: a real scalar, constant or per iteration; +∞ is none.
    pub window: Option<Expr>,
    /// Bool over axes of the scores; false masks.
    pub mask: Option<Expr>,
    /// Real, added to the scores.
    pub bias: Option<Expr>,
}

/// Operands and options of `route`.
#[derive(Clone, Debug)]
pub struct Route {
    /// What it makes.
    pub routing: Routing,
    /// Experts per token.
    pub k: u64,
    /// Weights are divided by their sum over the chosen experts.
    pub normalise: bool,
    /// Real, `[groups.., tokens, expert]`: the weight of an expert if it is chosen.
    pub gates: Expr,
    /// Experts with the largest of these are chosen; the gates if absent. The axes of the gates.
    pub select: Option<Expr>,
}

/// Who goes where, as far as types are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The axis tokens lie along.
    pub tokens: Axis,
    /// The axis of experts.
    pub expert: Axis,
    /// Other axes of the gates: tokens of one group compete for its places alone.
    pub groups: Vec<Axis>,
    /// The places.
    pub packing: Packing,
}

/// The places tokens are put into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As many slots for every expert; tokens beyond are dropped.
    Slots(Axis),
    /// Rows sorted by expert, each expert's part padded to whole tiles; nothing is dropped.
    Rows {
        /// The packed axis, long enough for every distribution of tokens.
        row: Axis,
        /// Rows of a tile, which one expert has to itself.
        tile: u64,
    },
}

impl Packing {
    /// The axes it adds.
    pub fn axes(&self) -> [&Axis; 1] {
        match self {
            Packing::Slots(axis) | Packing::Rows { row: axis, .. } => [axis],
        }
    }
}

impl Routing {
    /// The axes that stand for the token's in a dispatched tensor, after the groups.
    pub fn packed(&self) -> Vec<Axis> {
        let mut axes = self.groups.clone();
        if let Packing::Slots(_) = self.packing {
            axes.push(self.expert.clone());
        }
        axes.extend(self.packing.axes().into_iter().cloned());
        axes
    }
}

/// Element-wise functions of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    /// −x
    Neg,
    /// |x|
    Abs,
    /// eˣ
    Exp,
    /// Natural logarithm.
    Log,
    /// √x
    Sqrt,
    /// 1/√x
    Rsqrt,
    /// Hyperbolic tangent.
    Tanh,
    /// 1/(1+e⁻ˣ)
    Sigmoid,
    /// x·sigmoid(x)
    Silu,
    /// ½x·(1 + erf(x/√2)). Source: Hendrycks, Gimpel 2016 (arXiv:1606.08415), §2.
    GeluErf,
    /// ½x·(1 + tanh(√(2/π)·(x + 0.044715x³))). Source: as above.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Error function.
    Erf,
    /// Largest whole number ≤ x.
    Floor,
    /// Logical not.
    Not,
}

/// Element-wise functions of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b; on integers the quotient is truncated.
    Div,
    /// The larger.
    Max,
    /// The smaller.
    Min,
    /// Logical and.
    And,
    /// Logical or.
    Or,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// a < b
    Lt,
    /// a ≤ b
    Le,
    /// a > b
    Gt,
    /// a ≥ b
    Ge,
    /// a = b
    Eq,
    /// a ≠ b
    Ne,
}

/// Reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// Σ
    Sum,
    /// Σ / count
    Mean,
    /// Largest.
    Max,
    /// Smallest.
    Min,
}

/// A name table.
#[derive(Clone, Debug)]
pub struct NameTable {
    /// `hf`
    pub name: String,
    /// One entry per foreign tensor pattern; together they cover every parameter once.
    pub rules: Vec<NameRule>,
    /// The table.
    pub span: Span,
}

/// One foreign tensor, or one per iteration.
#[derive(Clone, Debug)]
pub struct NameRule {
    /// The parameters it holds: one, or several laid end to end.
    pub params: Vec<ParamId>,
    /// The foreign name in parts; holes are filled per iteration.
    pub foreign: Vec<NamePart>,
    /// Range of each repeat variable that the rule covers, in order of [`Param::repeats`].
    pub iterations: Vec<IterationRange>,
    /// The foreign dimensions, outermost first. Without `as`, the axes of the only parameter in order.
    pub layout: Vec<LayoutDim>,
    /// The rule.
    pub span: Span,
}

/// Which iterations a rule covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IterationRange {
    /// All of them; the hole's variable is this repeat's.
    All,
    /// One: the path named it.
    One(u64),
}

/// A part of a foreign name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePart {
    /// Plain characters.
    Text(String),
    /// `scale · i + offset`, with `i` the variable of `Param::repeats[repeat]`.
    Index {
        /// Which repeat.
        repeat: usize,
        /// Multiplies the iteration.
        scale: i64,
        /// Added.
        offset: i64,
    },
}

/// One dimension of a foreign tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutDim {
    /// The product of these axes, outermost first.
    Axes(Vec<Axis>),
    /// Parts laid end to end, one for each of [`NameRule::params`].
    Concat(Vec<Vec<Axis>>),
}

impl Type {
    /// A scalar.
    pub fn scalar(elem: Elem) -> Type {
        Type { elem, axes: vec![] }
    }

    /// The size of an axis, if the type has it.
    pub fn size_of(&self, axis: &str) -> Option<u64> {
        self.axes.iter().find(|a| a.name == axis).map(|a| a.size)
    }

    /// True if the type has the axis.
    pub fn has(&self, axis: &str) -> bool {
        self.size_of(axis).is_some()
    }

    /// True if the type has every axis of the other.
    pub fn has_all(&self, other: &[Axis]) -> bool {
        other.iter().all(|a| self.has(&a.name))
    }
}

impl Param {
    /// Axes of one iteration: inputs, then outputs.
    pub fn axes(&self) -> impl Iterator<Item = &Axis> {
        self.inputs.iter().chain(&self.outputs)
    }

    /// Elements over all iterations.
    pub fn elements(&self) -> u64 {
        self.repeats.iter().map(|r| r.axis.size).chain(self.axes().map(|a| a.size)).product()
    }
}

impl Model {
    /// Number of parameters: elements of all of them.
    pub fn parameter_count(&self) -> u64 {
        self.params.iter().map(Param::elements).sum()
    }

    /// A size by name.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.sizes.iter().find(|s| s.name == name).map(|s| s.value)
    }

    /// A parameter.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.0 as usize]
    }
}
