//! The graph: tensors with named axes and the ops between them.
//!
//! One [`Graph`] type serves every stage from `graph` to `fuse`; each stage's verifier says which ops may appear. A graph
//! owns four arenas (values, ops, regions, names) addressed by typed `u32` ids. Regions nest through ops: a
//! [`Loop`]'s body, a [`Composite`]'s meaning, an [`Update`]'s rule. Regions are closed: an op uses only values of its
//! own region, everything from outside comes in through the region's arguments. That makes a region a function, which
//! autodiff, recognisers and the fuser can take as a whole.
//!
//! What always holds (see `verify.rs`): ids are in range, operands are defined before use in the same region, every op's
//! result types follow from [`shape::infer`], every op has a phase, a block path and a spec line.

pub mod build;
pub mod composites;
mod constrain_from_spec;
pub mod custom;
mod custom_from_spec;
pub mod from_spec;
pub mod grouped;
pub mod mesh;
pub mod parse;
pub mod passes;
pub mod print;
mod random;
pub mod recognise;
pub mod rewrite;
pub mod routing;
pub mod shape;
mod spaces;
pub mod verify;

#[cfg(test)]
mod composite_tests;
#[cfg(test)]
mod shape_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use build::Builder;
pub use custom::Custom;
pub use mesh::{Collective, CollectiveKind, CollectivePart, Mesh, MeshAxis, MeshOp, Sharding, Split};
pub use mlc_codegen::abi::{DType, Init};
pub use mlc_codegen::program::{BinaryOp, Bound, CompareOp, ReduceOp, UnaryOp};

/// An interned-by-sharing name: axis, value, block path, parameter path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Name(text.into())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Name(text.into())
    }
}

impl From<&Name> for Name {
    fn from(name: &Name) -> Self {
        name.clone()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::ops::Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

macro_rules! entity {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u32);

        impl $name {
            /// Position in its arena.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

entity!(
    /// A tensor value.
    ValueId, "v"
);
entity!(
    /// An op.
    OpId, "op"
);
entity!(
    /// A region.
    RegionId, "region"
);

/// A named tensor axis with its size.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Axis {
    /// Name; two axes of one tensor never share one.
    pub name: Name,
    /// Number of elements, ≥ 1.
    pub size: u64,
}

impl Axis {
    /// An axis.
    pub fn new(name: impl Into<Name>, size: u64) -> Axis {
        Axis { name: name.into(), size }
    }
}

/// Type of a value. The order of axes is how the type prints and a default for layouts; it never carries meaning.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Axes; empty for a scalar.
    pub axes: Vec<Axis>,
}

impl Type {
    /// A tensor type.
    pub fn new(dtype: DType, axes: Vec<Axis>) -> Type {
        Type { dtype, axes }
    }

    /// A scalar type.
    pub fn scalar(dtype: DType) -> Type {
        Type { dtype, axes: Vec::new() }
    }

    /// Size of an axis, if the type has it.
    pub fn size_of(&self, axis: &str) -> Option<u64> {
        self.axes.iter().find(|a| a.name.as_str() == axis).map(|a| a.size)
    }

    /// Position of an axis.
    pub fn position(&self, axis: &str) -> Option<usize> {
        self.axes.iter().position(|a| a.name.as_str() == axis)
    }

    /// Whether the type has the axis.
    pub fn has(&self, axis: &str) -> bool {
        self.position(axis).is_some()
    }

    /// Number of elements.
    pub fn numel(&self) -> u64 {
        self.axes.iter().map(|a| a.size).product()
    }

    /// Size in bytes, dense.
    pub fn bytes(&self) -> u64 {
        self.numel() * self.dtype.bytes()
    }

    /// The same type without some axes.
    pub fn without(&self, axes: &[Name]) -> Type {
        Type::new(self.dtype, self.axes.iter().filter(|a| !axes.contains(&a.name)).cloned().collect())
    }

    /// The same axes with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type::new(dtype, self.axes.clone())
    }

    /// Equal as types of values: same element type and the same set of axes, in any order.
    pub fn same_as(&self, other: &Type) -> bool {
        self.dtype == other.dtype && self.same_axes(other)
    }

    /// The same set of axes, in any order.
    pub fn same_axes(&self, other: &Type) -> bool {
        self.axes.len() == other.axes.len() && self.axes.iter().all(|a| other.axes.contains(a))
    }

    /// Axis names in order.
    pub fn names(&self) -> Vec<Name> {
        self.axes.iter().map(|a| a.name.clone()).collect()
    }
}

/// Which part of the step an op belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Phase {
    /// Computes the loss.
    #[default]
    Forward,
    /// Computes gradients of activations.
    BackwardInput,
    /// Computes gradients of parameters.
    BackwardWeight,
    /// Computes new parameters and optimizer states.
    Update,
}

/// Where an op comes from: the spec's file and line (line 0: made by the compiler for the whole program).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SpecLine {
    /// File name as the user wrote it.
    pub file: Name,
    /// 1-based line.
    pub line: u32,
}

/// What every op carries besides its meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Phase.
    pub phase: Phase,
    /// Block path, `layer.attn`; empty at the top.
    pub path: Name,
    /// Spec line.
    pub line: SpecLine,
}

impl Default for Origin {
    fn default() -> Self {
        Origin { phase: Phase::Forward, path: "".into(), line: SpecLine { file: "".into(), line: 0 } }
    }
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub struct Value {
    /// Unique in the graph.
    pub name: Name,
    /// Type. Of all ranks together until the graph is partitioned, of one rank's part afterwards.
    pub ty: Type,
    /// How it lies on the mesh; whole until the graph is sharded.
    pub sharding: Sharding,
}

/// An op in its place.
#[derive(Clone, PartialEq, Debug)]
pub struct OpNode {
    /// What it does.
    pub op: Op,
    /// Ordered operands, all of the op's own region.
    pub operands: Vec<ValueId>,
    /// Ordered results.
    pub results: Vec<ValueId>,
    /// Phase, block path, spec line.
    pub origin: Origin,
}

/// A function: arguments, ops in order, results.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Region {
    /// Arguments.
    pub args: Vec<ValueId>,
    /// Ops in execution order.
    pub ops: Vec<OpId>,
    /// Results; may be arguments.
    pub results: Vec<ValueId>,
}

/// What a result of the whole graph is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Output {
    /// Reported under this name (`loss_sum`, `loss_weight`, `grad_norm`, `lr`, `logits`, an auxiliary loss).
    Report(Name),
    /// Becomes the new value of a persistent tensor, a parameter (`embed`) or an optimizer state (`embed.m`).
    Store(Name),
}

/// A graph.
#[derive(Clone, PartialEq, Debug)]
pub struct Graph {
    /// Name, usually the model's.
    pub name: Name,
    /// The ranks; empty until the graph is sharded.
    pub mesh: Mesh,
    /// Axes of parameters that were made longer so that they split: name, (real size, padded size).
    pub padding: BTreeMap<Name, (u64, u64)>,
    /// Values by id.
    pub values: Vec<Value>,
    /// Ops by id. Ops not in any region are dead and never printed.
    pub ops: Vec<OpNode>,
    /// Regions by id.
    pub regions: Vec<Region>,
    /// The outermost region; it has no arguments (sources are ops), and its results are named by `outputs`.
    pub body: RegionId,
    /// One per result of `body`.
    pub outputs: Vec<Output>,
    /// Next free suffix for each value name, so that names stay unique and deterministic.
    pub name_counts: BTreeMap<Name, u32>,
}

/// Layout of the pairs a rotary embedding turns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pairs {
    /// Element j pairs with j + n/2 (Hugging Face).
    Half,
    /// Element 2j pairs with 2j + 1 (Su et al. 2021, Meta).
    Interleaved,
}

/// Where a value lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Space {
    /// Where the computation runs.
    #[default]
    Device,
    /// In the host's memory.
    Host,
}

/// An op. Element-wise ops broadcast by name: an operand may lack axes of the result.
#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    /// Data of the batch, filled by the runtime. Ids lie in `0..bound` (0 = not ids).
    Input {
        /// Name in the spec.
        name: Name,
        /// Exclusive upper bound of ids.
        bound: u64,
    },
    /// A parameter. In a repeat the stacked axis comes first.
    Param {
        /// Logical path, `layer.{i}.attn.wq` when stacked.
        path: Name,
        /// First value.
        init: Init,
    },
    /// Optimizer state of a parameter, with all of its axes or some.
    State {
        /// The parameter's logical path.
        param: Name,
        /// `m`, `v`, `momentum`, `row`, `column`.
        kind: Name,
    },
    /// A run-time scalar, f64[]: a spec key, or `step`.
    Scalar {
        /// Key.
        key: Name,
        /// Value in the spec.
        default: f64,
    },
    /// A scalar constant of the result's type.
    Const(f64),
    /// The position along an axis, i32[axis].
    Index {
        /// The axis.
        axis: Name,
    },
    /// Element-wise function.
    Unary(UnaryOp),
    /// Element-wise function of two operands of one element type.
    Binary(BinaryOp),
    /// Element-wise comparison; gives bool.
    Compare(CompareOp),
    /// `select condition, a, b`.
    Select,
    /// Converts to the result's element type.
    Cast,
    /// Repeats along the axes the operand lacks.
    Broadcast,
    /// Renames axes; sizes stay.
    Rename {
        /// (old, new).
        pairs: Vec<(Name, Name)>,
    },
    /// Reduces over axes. A sum of bf16 is f32.
    Reduce {
        /// Sum, max or min.
        op: ReduceOp,
        /// Axes that go.
        axes: Vec<Name>,
    },
    /// `Σ over axes a·b`; axes of both that are not summed are shared, the rest multiply out. Operands of bf16 give f32:
    /// their products are exact in it, and no partial sum is ever rounded to less.
    Dot {
        /// Contracted axes, in both operands.
        over: Vec<Name>,
    },
    /// `gather table, ids along axis`: the table's element at ids; axes of both (other than `axis`) are shared. An id
    /// outside the axis gives 0.
    Gather {
        /// Looked-up axis of the table.
        axis: Name,
    },
    /// `scatter updates, ids along axis`: the transpose of `Gather`; a sum over all places with the same id. The result
    /// type is given: `axis` with its size, and the axes of the table. An id outside the axis is left out.
    ScatterAdd {
        /// Scattered axis of the result.
        axis: Name,
    },
    /// `y[i] = Σ x[j]` over `j ≤ i` along an axis (`j < i` when exclusive; `≥`, `>` in reverse), added in that order.
    /// Source: Blelloch 1990, Prefix Sums and Their Applications, §1.1.
    CumSum {
        /// The axis summed along.
        axis: Name,
        /// Leaves out the element itself.
        exclusive: bool,
        /// Sums from the other end.
        reverse: bool,
    },
    /// Turns pairs along an axis by a quarter: (a, b) → (−b, a). Its transpose is its negative.
    RotatePairs {
        /// The axis, of even size.
        axis: Name,
        /// Which elements pair up.
        pairs: Pairs,
    },
    /// The same tensor in another memory space. What lies in the host's memory is stacked, handed on and brought back, and
    /// nothing else.
    Transfer {
        /// Where to.
        to: Space,
    },
    /// `slice x along from -> to at k`: the elements k, k + 1, … of the axis `from`, as the axis `to`. The result type is
    /// given. Its transpose lays them between zeros.
    Slice {
        /// Axis of the operand.
        from: Name,
        /// Axis of the result.
        to: Name,
        /// First element.
        at: u64,
    },
    /// `concat a, b, .. along part, part, .. -> axis`: the operands end to end, operand i along its axis `parts[i]`. The
    /// other axes are the same in all of them. Its transpose slices.
    Concat {
        /// One axis per operand; names may repeat.
        parts: Vec<Name>,
        /// Axis of the result, of the sum of their sizes.
        axis: Name,
    },
    /// What concerns several ranks.
    Mesh(MeshOp),
    /// Repetition.
    Loop(Loop),
    /// A named function with its meaning in primitives.
    Composite(Composite),
    /// New value of one parameter and its optimizer states.
    Update(Update),
}

/// Stretched rotary frequencies: with `s = (original·f/2π − low) / (high − low)` kept in [0, 1], the frequency f becomes
/// `f·((1 − s)/factor + s)`. Source: Llama 3.1 (arXiv:2407.21783), §3.4.2, in the form of its reference implementation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RopeScaling {
    /// By how much slow turns are stretched.
    pub factor: f64,
    /// Turns within `original` positions below which a frequency is stretched in full.
    pub low: f64,
    /// Turns above which it stays.
    pub high: f64,
    /// Positions the model was first trained with.
    pub original: f64,
}

/// `loop axis=trip`: the one loop construct, for layers, microbatches and chunks.
///
/// ```text
/// operands  [carry initials.., stacked ins.., invariants..]
/// body args [index i32[], carries.., stacked ins (one slice).., invariants..]
/// body results [carries.., stacked outs (one slice).., sums..]
/// results   [final carries.., stacked outs.., sums..]
/// ```
/// With `block = None` a slice lacks `axis` (whose outer size is `trip`) and a stacked out gets `axis` first. With
/// `block = Some(b)` a slice keeps `axis` with size `b` (outer size `trip·b`), and a stacked out must have it. Sums start
/// at 0 and are added in iteration order.
#[derive(Clone, PartialEq, Debug)]
pub struct Loop {
    /// Iterated tensor axis.
    pub axis: Name,
    /// Iterations, ≥ 1.
    pub trip: u64,
    /// Slice width, see above.
    pub block: Option<u64>,
    /// Last slice first; stacked outs are still stored at their own index.
    pub reverse: bool,
    /// Its iterations are the microbatches of one update: forward and backward pass of each, all of whose results are sums.
    pub microbatches: bool,
    /// Number of carries.
    pub carries: usize,
    /// Number of stacked ins; the remaining operands are invariants.
    pub stacked: usize,
    /// Number of stacked outs; the remaining results are sums.
    pub stacked_outs: usize,
    /// The body.
    pub body: RegionId,
}

/// A composite: recognised or called before autodiff; the region says what it means, the kind what a kernel library or a
/// derivative rule may make of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Composite {
    /// Kind with its attributes.
    pub kind: CompositeKind,
    /// Arguments are the operands, results the results.
    pub meaning: RegionId,
}

/// Kinds of composites.
#[derive(Clone, PartialEq, Debug)]
pub enum CompositeKind {
    /// `softmax[axis] x -> y`; a row whose every score is −inf gives 0. Derivative from the result `y`.
    Softmax {
        /// Normalised axis.
        axis: Name,
    },
    /// `rms_norm[axis] x, w -> y, rstd`. Derivative uses x, w, rstd. Source: Zhang, Sennrich 2019 (arXiv:1910.07467), §3.
    RmsNorm {
        /// Normalised axis.
        axis: Name,
        /// Added to the mean square.
        eps: f64,
    },
    /// `layer_norm[axis] x, w, b -> y, mean, rstd`. Source: Ba, Kiros, Hinton 2016 (arXiv:1607.06450), §3.
    LayerNorm {
        /// Normalised axis.
        axis: Name,
        /// Added to the variance.
        eps: f64,
    },
    /// `rope x, at -> y`. Source: Su et al. 2021 (RoFormer, arXiv:2104.09864), §3.2.2.
    Rope {
        /// Rotated axis (even size).
        axis: Name,
        /// Base of the frequencies θ^(−2j/n).
        theta: f64,
        /// Which elements pair up.
        pairs: Pairs,
        /// How the frequencies are stretched, if they are.
        scaling: Option<RopeScaling>,
    },
    /// `cross_entropy[axis] logits, targets -> loss, lse`.
    CrossEntropy {
        /// Class axis.
        axis: Name,
    },
    /// `attention q, k, v, extras.. -> o, lse`: softmax over `key` of `score(q·k)`, times v. With q, k, v of bf16, scores, softmax
    /// and sums are f32, o is rounded once to bf16, lse is f32.
    Attention(Attention),
    /// `attention_grad q, k, v, extras.., o, lse, do -> dq, dk, dv, gradients of the learned extras..`. q, k, v, o and do may be
    /// bf16, gradients are f32.
    AttentionGrad(Attention),
    /// Cross-entropy of a linear head: `loss_head x, w, targets.. -> loss_sum` becomes a token-chunked loop with a joint
    /// forward and backward body when differentiated.
    LossHead(LossHead),
    /// A kernel of the user's own in the place of a block, or the gradient of one.
    Custom(Custom),
    /// `grouped_dot x, w, owner -> y`: every row times the matrix of its owner. See [`grouped`] for axes and packing.
    GroupedDot {
        /// Axis of w that owners count.
        group: Name,
        /// Contracted axes, in x and w.
        over: Vec<Name>,
        /// Packed axis, in x and owner.
        row: Name,
        /// Aligned rows that share an owner.
        tile: u64,
    },
    /// `grouped_outer a, b, owner -> y`: products of rows summed by owner. See [`grouped`].
    GroupedOuter {
        /// Axis of y that owners count.
        group: Axis,
        /// Packed axis.
        row: Name,
        /// Aligned rows that share an owner.
        tile: u64,
    },
}

/// Attributes of attention.
#[derive(Clone, PartialEq, Debug)]
pub struct Attention {
    /// Query position axis, in q and o.
    pub query: Name,
    /// Key position axis, in k and v.
    pub key: Name,
    /// Contracted axes of q·k.
    pub over: Vec<Name>,
    /// Scores that can exist, for skipping tiles. The score region still decides each one.
    pub bound: Bound,
    /// Extras that `attention_grad` gives gradients of, by their place among the extras, ascending. Empty in `attention`.
    pub learned: Vec<usize>,
    /// Scalar function: (q·k, query index i32[], key index i32[], extras.. scalars) -> score. −inf masks. In
    /// `attention_grad` more results follow, d score / d (q·k) and d score / d extra of each learned extra, which are 0
    /// where the score is −inf.
    pub score: RegionId,
}

/// Attributes of the loss head.
#[derive(Clone, PartialEq, Debug)]
pub struct LossHead {
    /// Contracted axes of the head product.
    pub over: Vec<Name>,
    /// Class axis.
    pub vocab: Name,
    /// How tokens are cut into chunks: (token axis, its elements per chunk, a divisor of its size), one nested loop each,
    /// outermost first.
    pub chunks: Vec<(Name, u64)>,
}

/// `update`: operands [param, grad, states.., scalars..], results [new param, new states..]. The region treats what a
/// parameter is stacked over element by element, so that it can be applied to one layer at a time.
#[derive(Clone, PartialEq, Debug)]
pub struct Update {
    /// The parameter's logical path.
    pub param: Name,
    /// State kinds, in operand order.
    pub states: Vec<Name>,
    /// The rule.
    pub body: RegionId,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<Name>) -> Graph {
        Graph {
            name: name.into(),
            mesh: Mesh::default(),
            padding: BTreeMap::new(),
            values: Vec::new(),
            ops: Vec::new(),
            regions: vec![Region::default()],
            body: RegionId(0),
            outputs: Vec::new(),
            name_counts: BTreeMap::new(),
        }
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &Type {
        &self.values[value.index()].ty
    }

    /// How a value lies on the mesh.
    pub fn sharding(&self, value: ValueId) -> &Sharding {
        &self.values[value.index()].sharding
    }

    /// The name of a value.
    pub fn value_name(&self, value: ValueId) -> &Name {
        &self.values[value.index()].name
    }

    /// A region.
    pub fn region(&self, id: RegionId) -> &Region {
        &self.regions[id.index()]
    }

    /// An op.
    pub fn op(&self, id: OpId) -> &OpNode {
        &self.ops[id.index()]
    }

    /// Adds a value; a name that is taken gets another number: see [`Graph::fresh_name`].
    pub fn add_value(&mut self, name: &str, ty: Type) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let name = self.fresh_name(name);
        self.values.push(Value { name, ty, sharding: Sharding::whole() });
        id
    }

    /// `name` itself, or if it is taken its stem with the next free number: `h`, `h.1`, `h.2`; a copy of `h.1` is `h.3`,
    /// never `h.1.1`.
    fn fresh_name(&mut self, name: &str) -> Name {
        if !self.name_counts.contains_key(name) {
            self.name_counts.insert(name.into(), 1);
            return name.into();
        }
        let stem = stem(name);
        loop {
            let count = self.name_counts.entry(stem.into()).or_insert(1);
            let candidate = Name::from(format!("{stem}.{count}"));
            *count += 1;
            if !self.name_counts.contains_key(&candidate) {
                self.name_counts.insert(candidate.clone(), 1);
                return candidate;
            }
        }
    }

    /// Regions an op holds, in order.
    pub fn regions_of(&self, op: &Op) -> Vec<RegionId> {
        match op {
            Op::Loop(l) => vec![l.body],
            Op::Composite(c) => match &c.kind {
                CompositeKind::Attention(a) | CompositeKind::AttentionGrad(a) => vec![c.meaning, a.score],
                CompositeKind::Softmax { .. }
                | CompositeKind::RmsNorm { .. }
                | CompositeKind::LayerNorm { .. }
                | CompositeKind::Rope { .. }
                | CompositeKind::CrossEntropy { .. }
                | CompositeKind::LossHead(_)
                | CompositeKind::GroupedDot { .. }
                | CompositeKind::GroupedOuter { .. }
                | CompositeKind::Custom(_) => vec![c.meaning],
            },
            Op::Update(u) => vec![u.body],
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
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
            | Op::Concat { .. } => Vec::new(),
        }
    }
}

impl Op {
    /// Whether each element of the result is a scalar function of the operands' elements at the same place.
    pub fn is_elementwise(&self) -> bool {
        match self {
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast => true,
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
            | Op::Index { .. }
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
            | Op::Update(_) => false,
        }
    }

    /// Whether a function is worth storing rather than computing twice.
    pub fn is_expensive(&self) -> bool {
        match self {
            Op::Unary(u) => match u {
                UnaryOp::Exp
                | UnaryOp::Log
                | UnaryOp::Tanh
                | UnaryOp::Sigmoid
                | UnaryOp::Sin
                | UnaryOp::Cos
                | UnaryOp::Erf => true,
                UnaryOp::Neg
                | UnaryOp::Abs
                | UnaryOp::Sqrt
                | UnaryOp::Rsqrt
                | UnaryOp::Floor
                | UnaryOp::Not => false,
            },
            Op::Binary(b) => matches!(b, BinaryOp::Pow | BinaryOp::Threefry),
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
            | Op::Index { .. }
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
            | Op::Update(_) => false,
        }
    }

    /// The loop the op is, if it is one.
    pub fn as_loop(&self) -> Option<&Loop> {
        if let Op::Loop(l) = self { Some(l) } else { None }
    }
}

/// A value's name without the numbers at its end.
pub fn stem(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, number)) if !stem.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
            self::stem(stem)
        }
        _ => name,
    }
}
