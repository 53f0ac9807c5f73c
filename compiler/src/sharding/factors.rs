//! What splits each op: one list of factors per op, and whether it may work on terms of a sum.
//!
//! A **factor** is one thing an op counts over, with the axis it is called by in each operand and each result; since axes are
//! named, most factors are one name. Splitting a factor over a mesh axis splits exactly the axes it names; over that mesh
//! axis everything else is whole. What then becomes of each result, the factor says: split too, a term of a sum, or the same
//! on every rank. Propagation, the partition, the checker and the cost of a layout all read this one table.
//!
//! Source: factors are those of Shardy (openxla.org/shardy, "Sharding rules"), reductions and their partial results those of
//! Xu et al. 2021 (GSPMD, arXiv:2105.04663), §3.

use crate::graph::{
    Attention, BinaryOp, Composite, CompositeKind, DType, Graph, MeshOp, Name, Op, OpId, OpNode, ReduceOp,
    Type, UnaryOp,
};

/// What splitting a factor means.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FactorKind {
    /// In operands and in results; every part of a result needs its part of the operands only.
    Pass,
    /// In operands and not in results: every rank gets a term of its results.
    Reduce(ReduceOp),
    /// The axis a gather looks up in: every rank looks up the ids of its part and has 0 for the others, so its result is a
    /// term of the sum.
    Lookup,
    /// In results only, and made at any place without communication: a source's axis, an index, a broadcast's new axis, the
    /// axis a scatter adds along (ids of other parts are left out).
    Made,
    /// Must not be split.
    Whole,
}

/// One thing an op counts over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Factor {
    /// What splitting it means.
    pub kind: FactorKind,
    /// Elements along it; of a cut axis, before the cut.
    pub size: u64,
    /// What one rank gets of it must be a multiple of this many elements.
    pub grain: u64,
    /// The axis it is in each operand.
    pub operands: Vec<Option<Name>>,
    /// The axis it is in each result.
    pub results: Vec<Option<Name>>,
    /// Of each result that lacks it: what reduces the terms that ranks hold if it is split. `None` for a result that has it,
    /// and for one that does not depend on it, which stays the same on every rank.
    pub partial: Vec<Option<ReduceOp>>,
}

impl Factor {
    /// Whether an op may be split along it at all.
    pub fn splits(&self) -> bool {
        self.kind != FactorKind::Whole
    }
}

/// The factors of an op. Every axis of every operand and result is in exactly one of them, but those of what has no rule of
/// its own: loops and updates are walked inside, and a reshard's operand and result lie each as they like.
pub fn factors(graph: &Graph, op: OpId) -> Vec<Factor> {
    let node = graph.op(op);
    let ends = Ends::of(graph, node);
    let sum = FactorKind::Reduce(ReduceOp::Sum);
    match &node.op {
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
        | Op::Transfer { .. } => ends.by_name(|_| None),
        Op::Rename { pairs } => ends.renamed(pairs),
        Op::Reduce { op, axes } => ends.by_name(|a| axes.contains(a).then_some(FactorKind::Reduce(*op))),
        Op::Dot { over } => ends.by_name(|a| over.contains(a).then_some(sum)),
        Op::Gather { axis } => ends.by_name(|a| (a == axis).then_some(FactorKind::Lookup)),
        Op::ScatterAdd { .. } => ends.by_name(|a| (!ends.results[0].has(a)).then_some(sum)),
        Op::CumSum { axis, .. } | Op::RotatePairs { axis, .. } => ends.whole_along(axis),
        Op::Slice { from, to, .. } => ends.cut(&[(0, from)], to),
        Op::Concat { parts, axis } => ends.cut(&parts.iter().enumerate().collect::<Vec<_>>(), axis),
        Op::Mesh(mesh_op) => match mesh_op {
            MeshOp::Constrain { .. } => ends.by_name(|_| None),
            MeshOp::Reshard { .. } => Vec::new(),
            MeshOp::Collective(_) | MeshOp::LocalPart { .. } => ends.by_name(|_| Some(FactorKind::Whole)),
        },
        Op::Loop(_) | Op::Update(_) => Vec::new(),
        Op::Composite(c) => composite(&ends, c),
    }
}

fn composite(ends: &Ends, composite: &Composite) -> Vec<Factor> {
    match &composite.kind {
        CompositeKind::Softmax { axis }
        | CompositeKind::RmsNorm { axis, .. }
        | CompositeKind::LayerNorm { axis, .. }
        | CompositeKind::Rope { axis, .. }
        | CompositeKind::CrossEntropy { axis } => ends.whole_along(axis),
        CompositeKind::Attention(a) => attention(ends, a, 0),
        CompositeKind::AttentionGrad(a) => attention(ends, a, 1),
        CompositeKind::LossHead(_) | CompositeKind::Custom(_) => ends.by_name(|_| Some(FactorKind::Whole)),
        CompositeKind::GroupedDot { group, over, row, tile } => {
            let kind = |a: &Name| match a {
                _ if a == group => Some(FactorKind::Whole),
                _ if over.contains(a) => Some(FactorKind::Reduce(ReduceOp::Sum)),
                _ => None,
            };
            ends.by_name(kind).into_iter().map(|f| in_tiles(f, row, *tile)).collect()
        }
        CompositeKind::GroupedOuter { group, row, tile } => {
            let kind = |a: &Name| match a {
                _ if *a == group.name => Some(FactorKind::Whole),
                _ if !ends.results[0].has(a) => Some(FactorKind::Reduce(ReduceOp::Sum)),
                _ => None,
            };
            ends.by_name(kind).into_iter().map(|f| in_tiles(f, row, *tile)).collect()
        }
    }
}

/// A packed axis is split between tiles, never within one.
fn in_tiles(mut factor: Factor, row: &Name, tile: u64) -> Factor {
    if factor.operands[0].as_ref() == Some(row) {
        factor.grain = tile;
    }
    factor
}

/// Attention and its gradient, whose gradients begin at result 0 in the order of the operands; `grads` is 0 or 1.
///
/// The contracted axes of q and k are other factors than axes of v of the same name. Of the gradients, each lacks exactly
/// what it is summed over: dk and dv the axes of queries alone, dq, dk and those of extras the axes of v alone (which only
/// enter through `Σ do·v − Σ o·do`, linear in its terms). lse just does not depend on the axes of v.
fn attention(ends: &Ends, a: &Attention, grads: usize) -> Vec<Factor> {
    let contracted = |result: usize| if grads == 1 { result < 2 } else { false };
    let over = a.over.iter().map(|axis| {
        let pick = ends.pick(|i, n| i < 2 && n == axis, |i, n| contracted(i) && n == axis);
        ends.factor(FactorKind::Whole, pick)
    });
    let mut names = ends.names();
    names.retain(|name| {
        let elsewhere = ends.operands.iter().skip(2).any(|ty| ty.has(name));
        !a.over.contains(name) || elsewhere
    });
    let others = names.iter().map(|name| {
        let apart = a.over.contains(name);
        let pick =
            ends.pick(|i, n| n == name && !(apart && i < 2), |i, n| n == name && !(apart && contracted(i)));
        let whole = *name == a.query || *name == a.key;
        let mut factor = ends.factor(if whole { FactorKind::Whole } else { FactorKind::Pass }, pick);
        if grads == 1 && !whole {
            let lacking = factor.results.iter().map(|r| r.is_none().then_some(ReduceOp::Sum));
            factor.partial = lacking.collect();
        }
        factor
    });
    over.chain(others).collect()
}

/// Axes of a factor: in each operand and in each result.
type Picked = (Vec<Option<Name>>, Vec<Option<Name>>);

/// Types of an op's operands and results.
struct Ends<'a> {
    operands: Vec<&'a Type>,
    results: Vec<&'a Type>,
}

impl<'a> Ends<'a> {
    fn of(graph: &'a Graph, node: &OpNode) -> Ends<'a> {
        Ends {
            operands: node.operands.iter().map(|v| graph.ty(*v)).collect(),
            results: node.results.iter().map(|v| graph.ty(*v)).collect(),
        }
    }

    /// Every name of an axis, in order of first appearance.
    fn names(&self) -> Vec<Name> {
        let mut names: Vec<Name> = Vec::new();
        for axis in self.operands.iter().chain(&self.results).flat_map(|ty| &ty.axes) {
            if !names.contains(&axis.name) {
                names.push(axis.name.clone());
            }
        }
        names
    }

    /// The axes for which the predicates hold, given the position and the name.
    fn pick(&self, operand: impl Fn(usize, &Name) -> bool, result: impl Fn(usize, &Name) -> bool) -> Picked {
        fn of(types: &[&Type], wanted: impl Fn(usize, &Name) -> bool) -> Vec<Option<Name>> {
            let one = |(i, ty): (usize, &&Type)| ty.names().into_iter().find(|n| wanted(i, n));
            types.iter().enumerate().map(one).collect()
        }
        (of(&self.operands, operand), of(&self.results, result))
    }

    /// A factor of these axes. A result that lacks what is reduced is a term.
    fn factor(&self, kind: FactorKind, (operands, results): Picked) -> Factor {
        let size_in = |types: &[&Type], axes: &[Option<Name>]| {
            types.iter().zip(axes).find_map(|(ty, axis)| ty.size_of(axis.as_ref()?))
        };
        let size = size_in(&self.operands, &operands).or(size_in(&self.results, &results));
        let reduction = match kind {
            FactorKind::Reduce(op) => Some(op),
            FactorKind::Lookup => Some(ReduceOp::Sum),
            FactorKind::Pass | FactorKind::Made | FactorKind::Whole => None,
        };
        let partial = results.iter().map(|r| if r.is_none() { reduction } else { None }).collect();
        Factor { kind, size: size.unwrap_or(1), grain: 1, operands, results, partial }
    }

    /// One factor per name. Those of no kind given are in results: passed on if operands have them, else made.
    fn by_name(&self, kind: impl Fn(&Name) -> Option<FactorKind>) -> Vec<Factor> {
        let one = |name: Name| {
            let picked = self.pick(|_, n| *n == name, |_, n| *n == name);
            let passed = picked.0.iter().any(Option::is_some);
            let plain = if passed { FactorKind::Pass } else { FactorKind::Made };
            self.factor(kind(&name).unwrap_or(plain), picked)
        };
        self.names().into_iter().map(one).collect()
    }

    fn whole_along(&self, axis: &Name) -> Vec<Factor> {
        self.by_name(|a| (a == axis).then_some(FactorKind::Whole))
    }

    fn renamed(&self, pairs: &[(Name, Name)]) -> Vec<Factor> {
        let new = |old: &Name| pairs.iter().find(|(from, _)| from == old).map_or(old, |(_, to)| to).clone();
        let one = |old: Name| {
            let to = new(&old);
            self.factor(FactorKind::Pass, (vec![Some(old)], vec![Some(to)]))
        };
        self.operands[0].names().into_iter().map(one).collect()
    }

    /// Axes of operands cut from, or laid end to end as, an axis of the result; the others pass. A cut that takes all is
    /// another name.
    fn cut(&self, parts: &[(usize, &Name)], joined: &Name) -> Vec<Factor> {
        let is_part = |i: usize, name: &Name| parts.iter().any(|(j, part)| *j == i && *part == name);
        let ends = self.pick(is_part, |_, n| n == joined);
        let size = |ty: &Type, axis: &Name| ty.size_of(axis);
        let all = parts.len() == 1 && size(self.operands[0], parts[0].1) == size(self.results[0], joined);
        let kind = if all { FactorKind::Pass } else { FactorKind::Whole };
        let others = self.results[0].names().into_iter().filter(|name| name != joined).map(|name| {
            let picked = self.pick(|i, n| *n == name && !is_part(i, n), |_, n| *n == name);
            self.factor(FactorKind::Pass, picked)
        });
        std::iter::once(self.factor(kind, ends)).chain(others).collect()
    }
}

/// Whether the op may be applied to operands that are terms (`partial`, one flag per operand) of this reduction, its results
/// then being terms of the same reduction; the other operands are the same on every rank. Never with no flag set.
///
/// Of sums these are the linear ops. A conversion to a shorter type is none: every term would be rounded. Nor is what
/// starts from one whole summand, which every rank would add again. Of maxima and minima it is what only moves elements,
/// and the maximum itself, which may meet a whole operand since taking it again changes nothing.
pub fn passes_partial(graph: &Graph, op: OpId, partial: &[bool], reduction: ReduceOp) -> bool {
    let node = graph.op(op);
    let dtype = |i: usize| graph.ty(node.operands[i]).dtype;
    let sum = reduction == ReduceOp::Sum;
    let all = partial.iter().all(|p| *p);
    let one = partial.iter().filter(|p| **p).count() == 1;
    let at = |i: usize| partial.get(i) == Some(&true);
    if !partial.contains(&true) {
        return false;
    }
    match &node.op {
        Op::Unary(f) => sum && *f == UnaryOp::Neg,
        Op::Binary(f) => match f {
            BinaryOp::Add | BinaryOp::Sub => sum && all,
            BinaryOp::Mul => sum && one,
            BinaryOp::Div => sum && one && at(0) && is_float(dtype(0)),
            BinaryOp::Max => reduction == ReduceOp::Max,
            BinaryOp::Min => reduction == ReduceOp::Min,
            BinaryOp::Rem | BinaryOp::Pow | BinaryOp::And | BinaryOp::Or | BinaryOp::Threefry => false,
        },
        Op::Select => !at(0) && (!sum || (at(1) && at(2))),
        Op::Cast => widens(dtype(0), graph.ty(node.results[0]).dtype),
        Op::Broadcast | Op::Rename { .. } | Op::Slice { .. } | Op::Transfer { .. } => true,
        Op::Reduce { op, .. } => *op == reduction,
        Op::Dot { .. } => sum && one,
        Op::Gather { .. } => !at(1),
        Op::ScatterAdd { .. } => sum && !at(1),
        Op::CumSum { .. } | Op::RotatePairs { .. } => sum,
        Op::Concat { .. } => all,
        Op::Composite(c) => match &c.kind {
            CompositeKind::Rope { .. } => sum && one && at(0),
            CompositeKind::GroupedDot { .. } | CompositeKind::GroupedOuter { .. } => sum && one && !at(2),
            CompositeKind::Softmax { .. }
            | CompositeKind::RmsNorm { .. }
            | CompositeKind::LayerNorm { .. }
            | CompositeKind::CrossEntropy { .. }
            | CompositeKind::Attention(_)
            // Linear in `do`, but three gradients are more to reduce than one.
            | CompositeKind::AttentionGrad(_)
            | CompositeKind::LossHead(_)
            | CompositeKind::Custom(_) => false,
        },
        Op::Mesh(mesh_op) => match mesh_op {
            MeshOp::Constrain { .. } => true,
            MeshOp::Reshard { .. } | MeshOp::Collective(_) | MeshOp::LocalPart { .. } => false,
        },
        Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Const(_)
        | Op::Index { .. }
        | Op::Compare(_)
        | Op::Loop(_)
        | Op::Update(_) => false,
    }
}

fn is_float(dtype: DType) -> bool {
    match dtype {
        DType::Bf16 | DType::F32 | DType::F64 => true,
        DType::I32 | DType::I64 | DType::Bool => false,
    }
}

/// Whether every value of the one type is one of the other, floats to floats: sums of integers wrap.
fn widens(from: DType, to: DType) -> bool {
    is_float(from) && is_float(to) && from.bytes() <= to.bytes()
}

#[cfg(test)]
mod tests;
