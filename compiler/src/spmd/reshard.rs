//! Resharding: the collectives that turn a value lying one way into the same value lying another way.
//!
//! [`plan`] finds the steps, [`lower`] emits them; costs, explanations and tests read the same steps. The mesh axes that a
//! tensor axis starts with in both shardings stay where they are. Over the rest a shortest path is searched, whose nodes are
//! shardings and whose edges are the [`Move`]s, by bytes sent per rank, then by the number of collectives. The order that
//! Shardy prescribes follows from that: reduce, cut (both make everything after them smaller), permute, all-to-all,
//! all-gather. In particular nothing is gathered and then cut where an all-to-all does.
//!
//! What would cost more than [`limit`] is refused, unless replication is allowed: it is nearly always a mistake in a spec, and
//! the silent form of it is what users of GSPMD complain about (openxla/xla#15207).
//!
//! Source: the order of moves is that of Shardy ("Partitioner", openxla.org/shardy); reduction of partial values as
//! reduce-scatter is Xu et al. 2021 (GSPMD, arXiv:2105.04663), §3.4.

mod emit;
mod search;
#[cfg(test)]
mod tests;

pub use emit::{lower, lower_with};

use crate::cost::{Target, message};
use crate::graph::{CollectiveKind, DType, Mesh, Name, ReduceOp, Sharding, Type};
use std::fmt;

/// What is asked of a reshard besides the two shardings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Element type on the wire of f32 values; sums stay f32, and what has been summed travels as it is.
    pub wire: Option<DType>,
    /// Accepts plans that send more than [`limit`].
    pub allow_replicate: bool,
}

/// One thing done to a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Move {
    /// Every rank keeps its part of an axis. Sends nothing.
    Cut {
        /// Tensor axis.
        axis: Name,
        /// Mesh axes it is cut over, coarsest first.
        over: Vec<Name>,
    },
    /// Partial over these mesh axes becomes whole.
    AllReduce {
        /// What reduces the terms.
        op: ReduceOp,
        /// Mesh axes.
        over: Vec<Name>,
    },
    /// Partial over these mesh axes becomes split.
    ReduceScatter {
        /// What reduces the terms.
        op: ReduceOp,
        /// Tensor axis that is split.
        axis: Name,
        /// Mesh axes, coarsest first.
        over: Vec<Name>,
    },
    /// Ranks exchange whole parts: an all-to-all of pieces, the pieces brought into another order, and an all-to-all back.
    Permute {
        /// Mesh axes of the group, coarsest first.
        over: Vec<Name>,
        /// Tensor axis along which parts are taken to pieces.
        pieces: Name,
        /// By position: the position whose part it gets.
        source: Vec<usize>,
    },
    /// The finest mesh axes of one tensor axis become the finest of another.
    AllToAll {
        /// Tensor axis that grows.
        from: Name,
        /// Tensor axis that is split.
        to: Name,
        /// Mesh axes, coarsest first.
        over: Vec<Name>,
    },
    /// The finest mesh axes of a tensor axis go.
    AllGather {
        /// Tensor axis that grows.
        axis: Name,
        /// Mesh axes, coarsest first.
        over: Vec<Name>,
    },
}

/// A move in a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What is done.
    pub action: Move,
    /// How the value lies afterwards.
    pub after: Sharding,
    /// Bytes that each rank sends, by ring algorithms and pairwise exchange.
    pub bytes: u64,
}

impl Move {
    /// Number of collectives it takes.
    pub fn collectives(&self) -> u64 {
        match self {
            Move::Cut { .. } => 0,
            Move::Permute { .. } => 2,
            Move::AllReduce { .. }
            | Move::ReduceScatter { .. }
            | Move::AllToAll { .. }
            | Move::AllGather { .. } => 1,
        }
    }

    /// Whether it takes a sum.
    pub fn reduces(&self) -> bool {
        match self {
            Move::AllReduce { .. } | Move::ReduceScatter { .. } => true,
            Move::Cut { .. } | Move::Permute { .. } | Move::AllToAll { .. } | Move::AllGather { .. } => false,
        }
    }

    /// Bytes that each of `ranks` sends when it holds `local` bytes before.
    fn bytes(&self, local: u64, ranks: u64) -> u64 {
        let sent = |kind: CollectiveKind| kind.bytes_sent(local, ranks);
        match self {
            Move::Cut { .. } => 0,
            Move::AllReduce { op, .. } => sent(CollectiveKind::AllReduce(*op)),
            Move::ReduceScatter { op, .. } => sent(CollectiveKind::ReduceScatter(*op)),
            Move::Permute { .. } => 2 * sent(CollectiveKind::AllToAll),
            Move::AllToAll { .. } => sent(CollectiveKind::AllToAll),
            Move::AllGather { .. } => sent(CollectiveKind::AllGather),
        }
    }
}

impl Step {
    /// Predicted seconds; what it does within a rank is not counted.
    pub fn seconds(&self, target: &Target, mesh: &Mesh) -> f64 {
        let one = |kind, over: &[Name]| message(target, mesh, kind, over, self.bytes);
        match &self.action {
            Move::Cut { .. } => 0.0,
            Move::AllReduce { op, over } => one(CollectiveKind::AllReduce(*op), over),
            Move::ReduceScatter { op, over, .. } => one(CollectiveKind::ReduceScatter(*op), over),
            Move::AllToAll { over, .. } => one(CollectiveKind::AllToAll, over),
            Move::AllGather { over, .. } => one(CollectiveKind::AllGather, over),
            Move::Permute { over, .. } => {
                2.0 * message(target, mesh, CollectiveKind::AllToAll, over, self.bytes.div_ceil(2))
            }
        }
    }
}

/// `reduce_scatter_sum over tensor along seq`.
impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spaced = |over: &[Name]| over.iter().map(Name::as_str).collect::<Vec<_>>().join(" ");
        match self {
            Move::Cut { axis, over } => write!(f, "local_part over {} along {axis}", spaced(over)),
            Move::AllReduce { op, over } => write!(f, "all_reduce_{} over {}", op.name(), spaced(over)),
            Move::ReduceScatter { op, axis, over } => {
                write!(f, "reduce_scatter_{} over {} along {axis}", op.name(), spaced(over))
            }
            Move::Permute { over, pieces, .. } => {
                write!(f, "permute over {} in pieces of {pieces}", spaced(over))
            }
            Move::AllToAll { from, to, over } => {
                write!(f, "all_to_all over {} from {from} to {to}", spaced(over))
            }
            Move::AllGather { axis, over } => write!(f, "all_gather over {} along {axis}", spaced(over)),
        }
    }
}

/// `all_gather over fsdp along d: 1536 bytes, then batch: data`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} bytes, then {}", self.action, self.bytes, self.after)
    }
}

/// The most that moves, and as much again that reductions may send for each rank, without permission to replicate:
/// `2 · max(part before, part after) · (n − 1)/n` bytes, where n is the number of ranks that take part.
///
/// # Errors
/// A sharding does not fit the type.
pub fn limit(
    from: &Sharding,
    to: &Sharding,
    ty: &Type,
    mesh: &Mesh,
    wire: Option<DType>,
) -> Result<u64, String> {
    let element = element_bytes(ty, wire);
    let part = |s: &Sharding| s.local(ty, mesh).map(|local| local.numel() * element);
    let largest = part(from)?.max(part(to)?);
    let moved = |a: &&Name| from.axis_of(a) != to.axis_of(a) || from.partial.get(*a) != to.partial.get(*a);
    let reordered = |a: &&Name| {
        let over = |s: &Sharding| s.axis_of(a).map(|axis| s.over(axis).to_vec());
        moved(a) || over(from) != over(to)
    };
    let ranks: u64 = mesh.axes.iter().filter(|a| reordered(&&a.name)).map(|a| a.size).product();
    // Sums and maxima can't be reduced together.
    let kinds: std::collections::BTreeSet<_> =
        from.partial.iter().filter(|(a, op)| to.partial.get(*a) != Some(op)).map(|(_, op)| op).collect();
    let bytes = (2 * u128::from(largest) * u128::from(ranks - 1)).div_ceil(u128::from(ranks))
        * kinds.len().max(1) as u128;
    Ok(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// Bytes of one element on the wire.
fn element_bytes(ty: &Type, wire: Option<DType>) -> u64 {
    on_wire(ty.dtype, wire).unwrap_or(ty.dtype).bytes()
}

/// What a collective's `wire` is for values of this type: only f32 may travel as another type.
fn on_wire(dtype: DType, wire: Option<DType>) -> Option<DType> {
    wire.filter(|wire| dtype == DType::F32 && *wire != DType::F32)
}

/// The steps that turn a value of the whole type `ty` lying as `from` into one lying as `to`; none if they are the same.
///
/// # Errors
/// A sharding does not fit the type; `to` is partial where `from` is not (a reshard never makes a sum); an axis is split in
/// blocks differently; or every way sends more than [`limit`] and `options` do not allow that.
pub fn plan(
    from: &Sharding,
    to: &Sharding,
    ty: &Type,
    mesh: &Mesh,
    options: &Options,
) -> Result<Vec<Step>, String> {
    for sharding in [from, to] {
        if let Some(problem) = sharding.problem(ty, mesh) {
            return Err(format!(
                "`{sharding}` is no sharding of {}: {problem}",
                crate::graph::shape::show(ty)
            ));
        }
    }
    if let Some((axis, op)) = to.partial.iter().find(|(axis, op)| from.partial.get(*axis) != Some(op)) {
        return Err(format!(
            "`{to}` holds terms of a {} over {axis}, `{from}` does not: resharding can't make them",
            op.name()
        ));
    }
    let steps = search::shortest(from, to, ty, mesh, options.wire)?;
    let allowed = limit(from, to, ty, mesh, options.wire)?;
    let sent = |reduces: bool| -> u64 {
        steps.iter().filter(|s| s.action.reduces() == reduces).map(|s| s.bytes).sum()
    };
    let most = sent(false).max(sent(true));
    if most > allowed && !options.allow_replicate {
        let list: Vec<String> = steps.iter().map(Step::to_string).collect();
        return Err(format!(
            "turning `{from}` into `{to}` would send {most} bytes for each rank, more than {allowed}, what moving its parts \
             should take: {}; split the same axes in both, or allow replication",
            list.join("; ")
        ));
    }
    Ok(steps)
}
