//! From ops to kernel groups: which ops run in one kernel, in which buffers values live, and in which order of axes.
//!
//! In: any [`Graph`]. Out: a [`Fused`], a tree of loops over groups.
//! Passes, in order:
//! 1. [`prepare`]: rewrites that need no machine: composites and updates inlined, picks turned into masks, long reductions split,
//!    `delta` of attention gradients added, dead ops dropped.
//! 2. [`cluster`]: every op of every region goes into exactly one kernel group, or is recomputed where it is used.
//! 3. [`assign_buffers`]: every stored value gets a view of a buffer. Slices and renames are views; stacked outs, sums,
//!    carries and new parameters are written in place by their producers where no reader is overtaken, and copied
//!    otherwise.
//! 4. [`choose_layouts`]: the order of axes of every buffer whose order is free.
//! 5. [`insert_relayouts`]: copies of matrix-product operands whose contracted axes can't be walked with one stride.
//!
//! If an attention's heads or values have several axes and can't be walked with one stride in these layouts, all is done
//! again with the meaning of such attentions.
//!
//! A rank's part of a value is a view that moves with the rank's coordinates. A collective is a group of its own: it reads its
//! operands and writes its results wherever they lie.
//!
//! What always holds afterwards:
//! * items of a region are in an order in which every value is written before it is read, and no buffer is overwritten
//!   before its last reader of the old contents;
//! * every value a group reads has a view; an axis of a view has one stride;
//! * a group of kind `Loops` reads and writes at the same index of its iteration space, save for rotated pairs.

pub mod assign_buffers;
pub mod attention_dims;
pub mod choose_layouts;
pub mod cluster;
pub mod collective;
pub mod gemm_dims;
pub mod insert_relayouts;
pub mod prepare;
pub mod print;
#[cfg(test)]
mod tests;
pub mod view;

use crate::graph::passes::expand_chosen;
use crate::graph::{
    Axis, CompositeKind, DType, Graph, Init, Name, Op, OpId, Origin, Pairs, Sharding, Space, ValueId,
};
use std::collections::BTreeMap;
use std::fmt;

pub use view::{At, Slot, View, ViewAxis};

/// A buffer: where values of a region live.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BufferId(pub u32);

/// A kernel group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupId(pub u32);

/// A loop of the tree; also the loop variable of the step program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LoopId(pub u32);

/// Why a graph can't be turned into kernels.
#[derive(Clone, Debug, PartialEq)]
pub struct FuseError {
    /// The op's mnemonic.
    pub op: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What is not possible, in one sentence.
    pub message: String,
}

impl fmt::Display for FuseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = &self.origin.line;
        if line.line > 0 {
            write!(f, "{}:{}: ", line.file, line.line)?;
        }
        write!(f, "`{}`", self.op)?;
        if !self.origin.path.is_empty() {
            write!(f, " in {}", self.origin.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for FuseError {}

/// Result of this room's passes.
pub type Result<T> = std::result::Result<T, FuseError>;

/// What a buffer is for; decides where it lies and how long.
#[derive(Clone, PartialEq, Debug)]
pub enum Class {
    /// A parameter; lives from start to end, shared by all entries.
    Param {
        /// Logical path.
        path: Name,
        /// First value.
        init: Init,
    },
    /// Optimizer state; as a parameter.
    State {
        /// Logical path of its parameter.
        param: Name,
        /// `m`, `v`, `momentum`.
        kind: Name,
    },
    /// A run-time scalar; shared by all entries.
    Scalar {
        /// Spec key or `step`.
        key: Name,
        /// Value in the spec.
        default: f64,
    },
    /// Filled by the runtime before a call.
    Input {
        /// Name in the spec.
        name: Name,
        /// Exclusive upper bound of ids, 0 = none.
        bound: u64,
    },
    /// Read by the runtime after a call.
    Output {
        /// Name of the report.
        name: Name,
    },
    /// A value carried from one iteration to the next.
    Carry,
    /// One slice per iteration of a loop.
    Stack,
    /// Accumulates over the iterations of a loop.
    Sum,
    /// What a collective receives.
    Received,
    /// What a collective needs besides its buffers while it is under way.
    Staging,
    /// Everything else.
    Temporary,
}

impl Class {
    /// Whether contents survive a call.
    pub fn is_persistent(&self) -> bool {
        match self {
            Class::Param { .. } | Class::State { .. } | Class::Scalar { .. } => true,
            Class::Input { .. }
            | Class::Output { .. }
            | Class::Carry
            | Class::Stack
            | Class::Sum
            | Class::Received
            | Class::Staging
            | Class::Temporary => false,
        }
    }

    /// Word in reports.
    pub fn word(&self) -> &'static str {
        match self {
            Class::Param { .. } => "parameters",
            Class::State { .. } => "optimizer states",
            Class::Scalar { .. } => "scalars",
            Class::Input { .. } => "inputs",
            Class::Output { .. } => "outputs",
            Class::Carry => "loop carries",
            Class::Stack => "saved per iteration",
            Class::Sum => "sums over iterations",
            Class::Received => "received from other ranks",
            Class::Staging => "staging of collectives",
            Class::Temporary => "temporaries",
        }
    }
}

/// Memory of one value or of several that take turns in it. Dense and row-major in `axes`.
#[derive(Clone, PartialEq, Debug)]
pub struct Buffer {
    /// Name of the value it was made for.
    pub name: Name,
    /// Element type.
    pub dtype: DType,
    /// Axes in physical order, outermost first.
    pub axes: Vec<Axis>,
    /// How many leading axes of `axes` must stay where they are when an order is chosen; all of them when the order is
    /// fixed from outside.
    pub pinned: usize,
    /// What it is for.
    pub class: Class,
    /// The loop whose body it is made anew in by every iteration; `None` at the top.
    pub home: Option<LoopId>,
    /// Which memory it lies in.
    pub space: Space,
    /// How the value lies on the mesh; `axes` are one rank's part.
    pub sharding: Sharding,
    /// Where its value comes from.
    pub origin: Origin,
    /// Iterations of a loop take turns in slots of it; everything else here is of one slot.
    pub ring: Option<Ring>,
}

/// Slots start at multiples of this: a cache line, and the widest vector.
const SLOT_ALIGNMENT: u64 = 64;

/// Slots of a buffer, one after the other in memory: iteration i of the loop uses slot `i mod slots`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring {
    /// The loop.
    pub of: LoopId,
    /// How many, ≥ 2.
    pub slots: u64,
}

impl Buffer {
    /// Number of elements of a slot.
    pub fn numel(&self) -> u64 {
        self.axes.iter().map(|a| a.size).product()
    }

    /// Size in bytes, all slots together.
    pub fn bytes(&self) -> u64 {
        match self.ring {
            Some(ring) => ring.slots * self.slot_bytes(),
            None => self.numel() * self.dtype.bytes(),
        }
    }

    /// Bytes from one slot to the next.
    pub fn slot_bytes(&self) -> u64 {
        (self.numel() * self.dtype.bytes()).next_multiple_of(SLOT_ALIGNMENT)
    }

    /// Elements between neighbours along an axis; 0 for an axis it does not have.
    pub fn stride(&self, axis: &Name) -> u64 {
        match self.axes.iter().position(|a| a.name == *axis) {
            Some(i) => self.axes[i + 1..].iter().map(|a| a.size).product(),
            None => 0,
        }
    }
}

/// One result of a group.
#[derive(Clone, PartialEq, Debug)]
pub struct Write {
    /// The value; `None` for a fill.
    pub value: Option<ValueId>,
    /// Where it goes.
    pub view: View,
    /// Add to what is there.
    pub accumulate: bool,
}

/// Which gradients of attention a group computes.
pub use mlc_codegen::program::AttentionGradPart;

/// What kind of kernel a group becomes.
#[derive(Clone, PartialEq, Debug)]
pub enum Kind {
    /// Element-wise code with reductions over `reduced`: `Map` if that is empty, else `Rows`.
    Loops {
        /// Axes of rows (all axes of a `Map`).
        kept: Vec<Axis>,
        /// Axes reduced over.
        reduced: Vec<Axis>,
        /// An axis whose pairs are rotated by an op of the group: the space runs over half of it and computes both
        /// partners at once.
        paired: Option<(Name, Pairs)>,
        /// Values read from memory.
        reads: Vec<ValueId>,
    },
    /// Copies one view to another.
    Copy {
        /// Read.
        from: View,
    },
    /// Writes zeros.
    Fill,
    /// Matrix product with an element-wise tail.
    Gemm {
        /// The product.
        dot: OpId,
        /// Left operand.
        a: View,
        /// Right operand.
        b: View,
        /// Values the tail reads besides the product.
        extras: Vec<ValueId>,
    },
    /// Lookup.
    Gather {
        /// The op.
        op: OpId,
    },
    /// Sum by id.
    Scatter {
        /// The op.
        op: OpId,
    },
    /// Running sum.
    Scan {
        /// The op.
        op: OpId,
    },
    /// Attention, forward.
    Attention {
        /// The op.
        op: OpId,
    },
    /// Attention, backward.
    AttentionGrad {
        /// The op, with `delta` as its last operand.
        op: OpId,
        /// Which gradients.
        part: AttentionGradPart,
    },
    /// A kernel of the user's own.
    Custom {
        /// The op.
        op: OpId,
    },
    /// Data between ranks; its writes are its results, in order.
    Collective {
        /// The op.
        op: OpId,
        /// Its own while it is under way.
        staging: BufferId,
    },
}

/// One kernel launch to be.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Kernel kind with operands.
    pub kind: Kind,
    /// Ops evaluated inside, in order; an op that several groups recompute is in each of them.
    pub ops: Vec<OpId>,
    /// Results.
    pub writes: Vec<Write>,
    /// Path and line of the op the group is named after.
    pub origin: Origin,
}

/// Element of the tree.
#[derive(Clone, PartialEq, Debug)]
pub enum Item {
    /// A group; until the schedule a collective, too.
    Group(GroupId),
    /// A collective begins.
    Start(GroupId),
    /// A collective that has begun is waited for.
    Done(GroupId),
    /// A loop.
    Loop {
        /// Its id.
        id: LoopId,
        /// The op.
        op: OpId,
        /// Iterations.
        trip: u64,
        /// Last index first.
        reverse: bool,
        /// Items of one iteration.
        body: Vec<Item>,
    },
    /// A group, or half of a collective, of the body of a loop, run for another iteration than the one around it.
    Turned {
        /// The loop.
        of: LoopId,
        /// Which iteration.
        turn: Turn,
        /// None of the others.
        item: Box<Item>,
    },
}

/// Which iteration of a loop. Iterations count in the order in which they run, a reverse loop's, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// In the loop's body: the iteration so many later, or earlier if negative; nothing if the loop has none.
    By(i64),
    /// Before or behind the loop: this one.
    At(u64),
}

impl Item {
    /// The group, or half of a collective, or loop that it is, whichever iteration it is run for.
    pub fn inner(&self) -> &Item {
        match self {
            Item::Turned { item, .. } => item,
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Loop { .. } => self,
        }
    }

    /// How many iterations later than the one around it, of the loop it stands in.
    pub fn later(&self) -> i64 {
        match self {
            Item::Turned { turn: Turn::By(n), .. } => *n,
            Item::Turned { turn: Turn::At(_), .. }
            | Item::Group(_)
            | Item::Start(_)
            | Item::Done(_)
            | Item::Loop { .. } => 0,
        }
    }
}

/// A graph cut into kernel groups, with its buffers.
#[derive(Clone, PartialEq, Debug)]
pub struct Fused {
    /// The graph the groups refer to (after `prepare`).
    pub graph: Graph,
    /// By id.
    pub buffers: Vec<Buffer>,
    /// By id.
    pub groups: Vec<Group>,
    /// The outermost region.
    pub body: Vec<Item>,
    /// Where stored values live.
    pub views: BTreeMap<ValueId, View>,
    /// Values that are the index of a loop.
    pub indices: BTreeMap<ValueId, LoopId>,
    /// Number of loops.
    pub loops: u32,
}

impl Fused {
    /// A group.
    pub fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0 as usize]
    }

    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// Views a group reads, accumulated destinations included.
    pub fn reads(&self, group: &Group) -> Vec<View> {
        let of = |v: &ValueId| match self.views.get(v) {
            Some(view) => view.clone(),
            None => panic!("%{} is read but was never given a place", self.graph.value_name(*v)),
        };
        let operands = |op: &OpId| self.graph.op(*op).operands.iter().map(of).collect::<Vec<View>>();
        let mut views = match &group.kind {
            Kind::Loops { reads, .. } => {
                reads.iter().filter(|v| !self.indices.contains_key(v)).map(of).collect()
            }
            Kind::Copy { from } => vec![from.clone()],
            Kind::Fill => Vec::new(),
            Kind::Gemm { a, b, extras, .. } => {
                let mut views = vec![a.clone(), b.clone()];
                views.extend(extras.iter().map(of));
                views
            }
            Kind::Gather { op }
            | Kind::Scatter { op }
            | Kind::Scan { op }
            | Kind::Attention { op }
            | Kind::AttentionGrad { op, .. }
            | Kind::Collective { op, .. } => operands(op),
            Kind::Custom { op } => custom_reads(&self.graph, *op).iter().map(of).collect(),
        };
        views.extend(group.writes.iter().filter(|w| w.accumulate).map(|w| w.view.clone()));
        views
    }

    /// Buffers a group writes, its own included.
    pub fn writes(&self, group: &Group) -> Vec<BufferId> {
        let mut buffers: Vec<BufferId> = group.writes.iter().map(|w| w.view.buffer).collect();
        if let Kind::Collective { staging, .. } = group.kind {
            buffers.push(staging);
        }
        buffers
    }
}

/// Operands that the function of a custom kernel takes; the others are there for its meaning.
pub fn custom_reads(graph: &Graph, op: OpId) -> Vec<ValueId> {
    let node = graph.op(op);
    let Op::Composite(c) = &node.op else { return Vec::new() };
    let CompositeKind::Custom(custom) = &c.kind else { return Vec::new() };
    // A file that does not read was refused when the graph was built.
    let bound = custom.bound().unwrap_or_default();
    bound.into_iter().filter_map(|i| node.operands.get(i).copied()).collect()
}

/// Cuts a graph into kernel groups and gives every stored value its place in a buffer.
///
/// # Errors
/// An op that can't become a kernel, with its spec line.
pub fn group(graph: &Graph) -> Result<Fused> {
    let fused = grouped(prepare::prepare(graph)?)?;
    if !attention_dims::has_unwalkable(&fused, &fused.body) {
        return Ok(fused);
    }
    let by_meaning = expand_chosen(graph.clone(), &|graph, op, _| {
        let node = graph.op(op);
        let [_, k, v] = [0, 1, 2].map(|i| node.operands.get(i).map(|v| graph.ty(*v)));
        match (attention_dims::attention(&node.op), k, v) {
            (Some(a), Some(k), Some(v)) => attention_dims::joins_axes(a, k, v),
            _ => false,
        }
    });
    grouped(prepare::prepare(&by_meaning)?)
}

fn grouped(graph: Graph) -> Result<Fused> {
    let mut fused = assign_buffers::assign_buffers(graph)?;
    choose_layouts::choose_layouts(&mut fused);
    insert_relayouts::insert_relayouts(&mut fused)?;
    collective::size_staging(&mut fused);
    Ok(fused)
}
