//! Attention: `dot[key](softmax[key](score), v)` where the score is an element-wise function of one product of q and k.
//!
//! 1. At every product over one axis, look for a softmax along that axis on one side; the axis is `key`, the other side v.
//! 2. From the softmax's operand walk up through element-wise ops. Their leaves are constants, positions, one product that
//!    has the key axis (q·k), and other values, the extras.
//! 3. The query axis is the axis of q alone whose position the score reads; without one, the axis `key` was renamed from;
//!    without that, the only axis of q alone.
//! 4. The ops walked through become the scalar score region.
//! 5. Where the region is −inf tells which tiles exist ([`derive_bound`]).
//!
//! An extra may be a parameter, a learned bias: autodiff then takes the derivative of the meaning.

use super::View;
use super::derive_bound::derive_bound;
use crate::graph::composites::AttentionParts;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{Builder, CompositeKind, DType, Graph, Name, Op, OpNode, Type, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Puts `attention` in the place of its formula.
pub fn recognise_attention(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, _, _, node| {
        let found = find(&View::new(b), node)?;
        let score = build_score(b, &found);
        let bound = derive_bound(&b.graph, score);
        let parts = AttentionParts { query: found.query, key: found.key, over: found.over, bound, score };
        b.attention(found.q, found.k, found.v, &found.extras, parts).ok().map(|(o, _)| vec![o])
    })
}

struct Found {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    query: Name,
    key: Name,
    over: Vec<Name>,
    extras: Vec<ValueId>,
    /// The softmax's operand.
    score: ValueId,
    /// q·k.
    product: ValueId,
    /// Ops between the product and the score, in order.
    ops: Vec<OpNode>,
}

fn find(view: &View, node: &OpNode) -> Option<Found> {
    let Op::Dot { over } = &node.op else { return None };
    let [key] = over.as_slice() else { return None };
    let (a, b) = (node.operands[0], node.operands[1]);
    [(a, b), (b, a)].into_iter().find_map(|(p, v)| attention(view, key, p, v))
}

fn attention(view: &View, key: &Name, p: ValueId, v: ValueId) -> Option<Found> {
    let softmax = view.op(p)?;
    match &softmax.op {
        Op::Composite(c) if c.kind == (CompositeKind::Softmax { axis: key.clone() }) => {}
        _ => return None,
    }
    let score = softmax.operands[0];
    let walk = Walk::up(view, score);
    let products: Vec<ValueId> =
        walk.leaves.iter().copied().filter(|leaf| is_product_along(view, *leaf, key)).collect();
    let [product] = products[..] else { return None };
    let dot = view.op(product)?;
    let Op::Dot { over } = &dot.op else { return None };
    let (left, right) = (dot.operands[0], dot.operands[1]);
    let (q, k) = if view.graph.ty(right).has(key) { (left, right) } else { (right, left) };
    let query = query_axis(view, &walk, q, k, key, over)?;
    let is_position = |leaf: ValueId| is_index(view, leaf, &query) || is_index(view, leaf, key);
    let extras: Vec<ValueId> =
        walk.leaves.iter().copied().filter(|leaf| *leaf != product && !is_position(*leaf)).collect();
    let (key, over) = (key.clone(), over.clone());
    Some(Found { q, k, v, query, key, over, extras, score, product, ops: walk.ops })
}

fn is_product_along(view: &View, value: ValueId, key: &Name) -> bool {
    view.graph.ty(value).has(key) && view.op(value).is_some_and(|node| matches!(node.op, Op::Dot { .. }))
}

fn is_index(view: &View, value: ValueId, axis: &Name) -> bool {
    view.op(value).is_some_and(|node| node.op == (Op::Index { axis: axis.clone() }))
}

/// The element-wise ops above a value.
struct Walk {
    /// Constants among them; operands before users.
    ops: Vec<OpNode>,
    /// What they start from, in order of first use.
    leaves: Vec<ValueId>,
}

impl Walk {
    fn up(view: &View, from: ValueId) -> Walk {
        let mut walk = Walk { ops: Vec::new(), leaves: Vec::new() };
        walk.visit(view, from, &mut BTreeSet::new());
        walk
    }

    fn visit(&mut self, view: &View, value: ValueId, seen: &mut BTreeSet<ValueId>) {
        if !seen.insert(value) {
            return;
        }
        match view.op(value) {
            Some(node) if is_elementwise(&node.op) => {
                for operand in &node.operands {
                    self.visit(view, *operand, seen);
                }
                self.ops.push(node.clone());
            }
            _ => self.leaves.push(value),
        }
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
        | Op::Loop(_)
        | Op::Composite(_)
        | Op::Update(_) => false,
    }
}

fn query_axis(view: &View, walk: &Walk, q: ValueId, k: ValueId, key: &Name, over: &[Name]) -> Option<Name> {
    let (q_ty, k_ty) = (view.graph.ty(q), view.graph.ty(k));
    let own: Vec<Name> =
        q_ty.names().into_iter().filter(|axis| !over.contains(axis) && !k_ty.has(axis)).collect();
    let read: Vec<&Name> =
        own.iter().filter(|axis| walk.leaves.iter().any(|leaf| is_index(view, *leaf, axis))).collect();
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
fn build_score(b: &mut Builder, found: &Found) -> crate::graph::RegionId {
    let scalar = |dtype| Type::scalar(dtype);
    let mut args: Vec<(Name, Type)> = vec![
        ("s".into(), scalar(b.ty(found.product).dtype)),
        (found.query.clone(), scalar(DType::I32)),
        (found.key.clone(), scalar(DType::I32)),
    ];
    args.extend(found.extras.iter().map(|e| ("extra".into(), scalar(b.ty(*e).dtype))));
    let positions = |b: &Builder, axis: &Name| -> Vec<ValueId> {
        let view = View::new(b);
        let operands = found.ops.iter().flat_map(|node| node.operands.clone());
        operands.filter(|v| is_index(&view, *v, axis)).collect()
    };
    let (queries, keys) = (positions(b, &found.query), positions(b, &found.key));
    let (_, values) = b.open(&args);
    let mut map: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    map.insert(found.product, values[0]);
    map.extend(queries.into_iter().map(|v| (v, values[1])));
    map.extend(keys.into_iter().map(|v| (v, values[2])));
    map.extend(found.extras.iter().copied().zip(values[3..].iter().copied()));
    for node in &found.ops {
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
    b.close(vec![map[&found.score]])
}
