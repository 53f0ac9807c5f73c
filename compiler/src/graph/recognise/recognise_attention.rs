//! Attention: `dot[key](softmax[key](score), v)` where the score is an element-wise function of one product of q and k.
//!
//! 1. At every product over one axis, look for a softmax along that axis on one side; the axis is `key`, the other side v.
//! 2. From the softmax's operand walk up through element-wise ops. Their leaves are constants, positions, one product that
//!    has the key axis (q·k), and other values.
//! 3. The query axis is the axis of q alone whose position the score reads; without one, the axis `key` was renamed from;
//!    without that, the only axis of q alone.
//! 4. The ops walked through become the scalar score region; what they start from besides the product and the positions
//!    are its extras. Real numbers that are the same for all queries or for all keys (a slope per head, a window per
//!    layer) are computed once outside and are extras themselves.
//! 5. Where the region is −inf tells which tiles exist ([`derive_bound`]).

use super::View;
use super::derive_bound::derive_bound;
use crate::graph::composites::AttentionParts;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{
    BinaryOp, Builder, CompositeKind, DType, Graph, Name, Op, OpNode, RegionId, Type, UnaryOp, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Puts `attention` in the place of its formula.
pub fn recognise_attention(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, _, _, node| {
        let formula = find(&View::new(b), node)?;
        attention_of(b, &formula).map(|o| vec![o])
    })
}

/// An attention written out, up to its softmax.
pub(in crate::graph) struct Formula {
    /// `[shared.., query, group.., over..]`
    pub q: ValueId,
    /// `[shared.., key, over..]`
    pub k: ValueId,
    /// `[shared.., key, value..]`
    pub v: ValueId,
    /// Query positions.
    pub query: Name,
    /// Key positions; the softmax runs along them.
    pub key: Name,
    /// Contracted axes of q·k.
    pub over: Vec<Name>,
    /// `dot[over](q, k)`
    pub product: ValueId,
    /// The softmax's operand.
    pub score: ValueId,
}

/// The composite of a formula, at the end of the open region: gives o. The formula's own ops stay, unused. `None` if its
/// axes are not those of an attention.
pub(in crate::graph) fn attention_of(b: &mut Builder, formula: &Formula) -> Option<ValueId> {
    let body = Body::of(&View::new(b), formula);
    let score = build_score(b, formula, &body);
    let bound = derive_bound(&b.graph, score);
    let (query, key, over) = (formula.query.clone(), formula.key.clone(), formula.over.clone());
    let parts = AttentionParts { query, key, over, bound, score };
    b.attention(formula.q, formula.k, formula.v, &body.extras, parts).ok().map(|(o, _)| o)
}

fn find(view: &View, node: &OpNode) -> Option<Formula> {
    let Op::Dot { over } = &node.op else { return None };
    let [key] = over.as_slice() else { return None };
    let (a, b) = (node.operands[0], node.operands[1]);
    [(a, b), (b, a)].into_iter().find_map(|(p, v)| attention(view, key, p, v))
}

fn attention(view: &View, key: &Name, p: ValueId, v: ValueId) -> Option<Formula> {
    let softmax = view.op(p)?;
    match &softmax.op {
        Op::Composite(c) if c.kind == (CompositeKind::Softmax { axis: key.clone() }) => {}
        _ => return None,
    }
    let score = softmax.operands[0];
    let leaves = leaves(view, score);
    let products: Vec<ValueId> =
        leaves.iter().copied().filter(|leaf| is_product_along(view, *leaf, key)).collect();
    let [product] = products[..] else { return None };
    let dot = view.op(product)?;
    let Op::Dot { over } = &dot.op else { return None };
    let (left, right) = (dot.operands[0], dot.operands[1]);
    let (q, k) = if view.graph.ty(right).has(key) { (left, right) } else { (right, left) };
    let query = query_axis(view, &leaves, q, k, key, over)?;
    Some(Formula { q, k, v, query, key: key.clone(), over: over.clone(), product, score })
}

fn is_product_along(view: &View, value: ValueId, key: &Name) -> bool {
    view.graph.ty(value).has(key) && view.op(value).is_some_and(|node| matches!(node.op, Op::Dot { .. }))
}

/// Whether the value is the position along an axis, also under another name: `index[a] as [a: b]` is `index[b]`.
fn is_index(view: &View, value: ValueId, axis: &Name) -> bool {
    let Some(node) = view.op(value) else { return false };
    match &node.op {
        Op::Index { axis: own } => own == axis,
        Op::Rename { pairs } => {
            let from = pairs.iter().find(|(_, to)| to == axis).map(|(from, _)| from);
            from.is_some_and(|from| is_index(view, node.operands[0], from))
        }
        _ => false,
    }
}

/// What the element-wise ops above a value start from, in order of first use.
fn leaves(view: &View, from: ValueId) -> Vec<ValueId> {
    let (mut found, mut seen, mut open) = (Vec::new(), BTreeSet::new(), vec![from]);
    while let Some(value) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        match view.op(value) {
            Some(node) if is_elementwise(&node.op) => open.extend(node.operands.iter().rev()),
            _ => found.push(value),
        }
    }
    found
}

/// The ops of a score region and what they start from.
struct Body {
    /// Constants among them; operands before users.
    ops: Vec<OpNode>,
    /// Positions among what they start from.
    queries: Vec<ValueId>,
    keys: Vec<ValueId>,
    /// The rest, without the product, in order of first use.
    extras: Vec<ValueId>,
}

impl Body {
    fn of(view: &View, formula: &Formula) -> Body {
        let mut body = Body { ops: Vec::new(), queries: Vec::new(), keys: Vec::new(), extras: Vec::new() };
        body.visit(view, formula, formula.score, &mut BTreeSet::new());
        body
    }

    fn visit(&mut self, view: &View, f: &Formula, value: ValueId, seen: &mut BTreeSet<ValueId>) {
        if value == f.product || !seen.insert(value) {
            return;
        }
        if is_index(view, value, &f.query) {
            return self.queries.push(value);
        }
        if is_index(view, value, &f.key) {
            return self.keys.push(value);
        }
        match view.op(value) {
            Some(node) if is_elementwise(&node.op) && !is_better_outside(view, f, value) => {
                for operand in &node.operands {
                    self.visit(view, f, *operand, seen);
                }
                self.ops.push(node.clone());
            }
            _ => self.extras.push(value),
        }
    }
}

/// Whether an element-wise value is the same for all queries or all keys, and more than arithmetic on positions, which
/// the bound is read from.
fn is_better_outside(view: &View, f: &Formula, value: ValueId) -> bool {
    let ty = view.graph.ty(value);
    let is_real = matches!(ty.dtype, DType::F32 | DType::F64 | DType::Bf16);
    is_real && !(ty.has(&f.query) && ty.has(&f.key)) && !is_linear(view, f, value)
}

/// Constants, positions and sums of them.
fn is_linear(view: &View, f: &Formula, value: ValueId) -> bool {
    let Some(node) = view.op(value) else { return false };
    match &node.op {
        Op::Const(_) => true,
        Op::Cast
        | Op::Broadcast
        | Op::Unary(UnaryOp::Neg)
        | Op::Binary(BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul) => {
            node.operands.iter().all(|v| is_linear(view, f, *v))
        }
        // Any other function of constants alone.
        op if is_elementwise(op) => leaves(view, value).is_empty(),
        _ => is_index(view, value, &f.query) || is_index(view, value, &f.key),
    }
}

/// Ops that mean something on scalars; a broadcast then means nothing.
fn is_elementwise(op: &Op) -> bool {
    match op {
        Op::Const(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast
        | Op::Broadcast => true,
        Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Index { .. }
        | Op::Rename { .. }
        | Op::Reduce { .. }
        | Op::Dot { .. }
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::RotatePairs { .. }
        | Op::Transfer { .. }
        | Op::Loop(_)
        | Op::Composite(_)
        | Op::Update(_) => false,
    }
}

fn query_axis(
    view: &View,
    leaves: &[ValueId],
    q: ValueId,
    k: ValueId,
    key: &Name,
    over: &[Name],
) -> Option<Name> {
    let (q_ty, k_ty) = (view.graph.ty(q), view.graph.ty(k));
    let own: Vec<Name> =
        q_ty.names().into_iter().filter(|axis| !over.contains(axis) && !k_ty.has(axis)).collect();
    let read: Vec<&Name> =
        own.iter().filter(|axis| leaves.iter().any(|leaf| is_index(view, *leaf, axis))).collect();
    let renamed_from = || match &view.op(k)?.op {
        Op::Rename { pairs } => pairs.iter().find(|(_, to)| to == key).map(|(from, _)| from.clone()),
        _ => None,
    };
    match (&read[..], &own[..]) {
        ([axis], _) => Some((*axis).clone()),
        ([], [axis]) => Some(axis.clone()),
        ([], _) => renamed_from().filter(|axis| own.contains(axis)),
        _ => None,
    }
}

/// The scalar region: product, query position, key position, extras to score.
fn build_score(b: &mut Builder, formula: &Formula, body: &Body) -> RegionId {
    let scalar = |dtype| Type::scalar(dtype);
    let mut args: Vec<(Name, Type)> = vec![
        ("s".into(), scalar(b.ty(formula.product).dtype)),
        (formula.query.clone(), scalar(DType::I32)),
        (formula.key.clone(), scalar(DType::I32)),
    ];
    args.extend(body.extras.iter().map(|e| ("extra".into(), scalar(b.ty(*e).dtype))));
    let (_, values) = b.open(&args);
    let mut map: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    map.insert(formula.product, values[0]);
    map.extend(body.queries.iter().map(|v| (*v, values[1])));
    map.extend(body.keys.iter().map(|v| (*v, values[2])));
    map.extend(body.extras.iter().copied().zip(values[3..].iter().copied()));
    for node in &body.ops {
        let operands: Vec<ValueId> = node.operands.iter().map(|v| map[v]).collect();
        let result = node.results[0];
        let value = if node.op == Op::Broadcast {
            operands[0]
        } else {
            let (ty, name) = (scalar(b.ty(result).dtype), b.graph.value_name(result).clone());
            b.one(node.op.clone(), &operands, Some(ty), &name)
        };
        map.insert(result, value);
    }
    b.close(vec![map[&formula.score]])
}
