//! Attention: `dot[key](softmax[key](score), v)` where the score is an element-wise function of one product of q and k.
//!
//! 1. At every product over one axis, look for a softmax along that axis on one side; the axis is `key`, the other side v.
//! 2. From the softmax's operand walk up through element-wise ops. Their leaves are constants, positions, one product that
//!    has the key axis (q·k), and other values. Several products that are only added up, as of latent attention's heads
//!    without and with positions, are made one ([`join_products`]).
//! 3. The query axis is the axis of q alone whose position the score reads; without one, the axis `key` was renamed from;
//!    without that, the only axis of q alone.
//! 4. The ops walked through become the scalar score region; what they start from besides the product and the positions
//!    are its extras. Real numbers that are the same for all queries or for all keys (a slope per head, a window per
//!    layer) are computed once outside and are extras themselves.
//! 5. Where the region is −inf tells which tiles exist ([`derive_bound`]).

use super::View;
use super::derive_bound::derive_bound;
use super::join_products::join_products;
use crate::graph::composites::AttentionParts;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::shape::ShapeError;
use crate::graph::{
    BinaryOp, Builder, CompositeKind, DType, Graph, Name, Op, OpNode, RegionId, Type, UnaryOp, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Puts `attention` in the place of its formula.
pub fn recognise_attention(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, _, _, node| {
        if !matches!(node.op, Op::Dot { .. }) {
            return None;
        }
        let found = find(&View::new(b), node)?.ok()?;
        let formula = found.formula(b);
        attention_of(b, &formula).ok().map(|o| vec![o])
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

/// The composite of a formula, at the end of the open region: gives o. The formula's own ops stay, unused.
///
/// # Errors
/// The axes are not those of an attention.
pub(in crate::graph) fn attention_of(b: &mut Builder, formula: &Formula) -> Result<ValueId, ShapeError> {
    let body = Body::of(&View::new(b), formula);
    let score = build_score(b, formula, &body);
    let bound = derive_bound(&b.graph, score);
    let (query, key, over) = (formula.query.clone(), formula.key.clone(), formula.over.clone());
    let parts = AttentionParts { query, key, over, bound, score };
    b.attention(formula.q, formula.k, formula.v, &body.extras, parts).map(|(o, _)| o)
}

/// An attention as it stands in the text: one product of queries and keys, or the sum of several.
pub(super) struct Found {
    /// With one axis contracted each, if there are several.
    pub products: Vec<Product>,
    /// The product, or the sum.
    pub product: ValueId,
    v: ValueId,
    query: Name,
    key: Name,
    score: ValueId,
}

/// `dot[over](q, k)`
pub(super) struct Product {
    pub q: ValueId,
    pub k: ValueId,
    pub over: Vec<Name>,
}

impl Found {
    /// The formula with one product: several are joined, whose operands are laid end to end.
    pub(super) fn formula(self, b: &mut Builder) -> Formula {
        let Found { mut products, product, v, query, key, score } = self;
        let Product { q, k, over } = match products.len() {
            1 => products.remove(0),
            _ => join_products(b, &products),
        };
        Formula { q, k, v, query, key, over, product, score }
    }
}

/// The attention whose last op is this product. `None` if it does not look like one at all, an error if it nearly is.
pub(super) fn find(view: &View, node: &OpNode) -> Option<Result<Found, String>> {
    let Op::Dot { over } = &node.op else { return None };
    let (a, b) = (node.operands[0], node.operands[1]);
    let (weights, v, softmax, key) = [(a, b), (b, a)].into_iter().find_map(|(p, v)| {
        let softmax = leaves(view, p).into_iter().find_map(|leaf| softmax_over(view, leaf, over))?;
        Some((p, v, softmax.0, softmax.1))
    })?;
    let score = softmax.operands[0];
    let products: Vec<ValueId> =
        leaves(view, score).into_iter().filter(|leaf| is_product_along(view, *leaf, &key)).collect();
    if products.is_empty() || is_mixture(view, &products, &key, v) {
        return None;
    }
    Some(attention(view, Parts { node, weights, v, softmax, key, score, products }))
}

/// Whether the values differ by what the queries alone have, as the outputs of experts do: no attention, nor nearly one.
fn is_mixture(view: &View, products: &[ValueId], key: &Name, v: ValueId) -> bool {
    let operands = products.iter().flat_map(|p| view.op(*p)).flat_map(|dot| &dot.operands);
    let (keys, queries): (Vec<ValueId>, Vec<ValueId>) =
        operands.copied().partition(|x| view.graph.ty(*x).has(key));
    let v = view.graph.ty(unrepeated(view, v));
    let of_keys = |axis: &Name| keys.iter().any(|k| view.graph.ty(*k).has(axis));
    queries.iter().any(|q| view.graph.ty(*q).names().iter().any(|axis| !of_keys(axis) && v.has(axis)))
}

/// What [`find`] saw.
struct Parts<'a> {
    node: &'a OpNode,
    weights: ValueId,
    v: ValueId,
    softmax: &'a OpNode,
    key: Name,
    score: ValueId,
    products: Vec<ValueId>,
}

fn attention(view: &View, parts: Parts) -> Result<Found, String> {
    let Parts { node, weights, v, softmax, key, score, products } = parts;
    if weights != softmax.results[0] {
        let (p, changed) = (view.graph.value_name(softmax.results[0]), view.graph.value_name(weights));
        return Err(format!("%{changed} is made from the weights %{p} before they weigh the values"));
    }
    if node.op != (Op::Dot { over: vec![key.clone()] }) {
        return Err(format!("the product with the values sums over more than {key}"));
    }
    let product = summed(view, score, &products)?;
    let products =
        products.iter().map(|p| query_and_key(view, *p, &key)).collect::<Result<Vec<Product>, String>>()?;
    if products.len() > 1 && products.iter().any(|p| p.over.len() != 1) {
        return Err("of several products, each has to sum over one axis".into());
    }
    let query = query_axis(view, &leaves_above(view, score, product), &products, &key)?;
    let v = unrepeated(view, v);
    Ok(Found { products, product, v, query, key, score })
}

/// The softmax that makes a value, along one of these axes.
fn softmax_over<'a>(view: &View<'a>, value: ValueId, over: &[Name]) -> Option<(&'a OpNode, Name)> {
    let node = view.op(value)?;
    match &node.op {
        Op::Composite(c) => match &c.kind {
            CompositeKind::Softmax { axis } if over.contains(axis) => Some((node, axis.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// The only product, or the sum that all of them go into and nothing else does.
fn summed(view: &View, score: ValueId, products: &[ValueId]) -> Result<ValueId, String> {
    if let [product] = products {
        return Ok(*product);
    }
    let mut sum = products[0];
    let is_sum = |sum: &ValueId| {
        let mut terms = Vec::new();
        addends(view, *sum, &mut terms);
        terms.len() == products.len() && products.iter().all(|p| terms.contains(p))
    };
    let above = elementwise_above(view, score);
    if let Some(found) = above.iter().find(|v| is_sum(v)) {
        sum = *found;
    }
    let outside = leaves_above(view, score, sum);
    if products.iter().any(|p| outside.contains(p)) {
        let names: Vec<String> = products.iter().map(|p| format!("%{}", view.graph.value_name(*p))).collect();
        return Err(format!(
            "the scores are made from the products {}, which have to be added up before anything else is done to them",
            names.join(" and ")
        ));
    }
    Ok(sum)
}

fn addends(view: &View, value: ValueId, into: &mut Vec<ValueId>) {
    match view.binary(BinaryOp::Add, value) {
        Some((a, b)) => {
            addends(view, a, into);
            addends(view, b, into);
        }
        None => into.push(value),
    }
}

fn query_and_key(view: &View, product: ValueId, key: &Name) -> Result<Product, String> {
    let dot = view.op(product).expect("it is a product");
    let Op::Dot { over } = &dot.op else { unreachable!("it is a product") };
    let (left, right) = (dot.operands[0], dot.operands[1]);
    let (q, k) = match (view.graph.ty(left).has(key), view.graph.ty(right).has(key)) {
        (true, true) => return Err(format!("both sides of the scores' product have the axis {key}")),
        (true, false) => (right, left),
        (false, _) => (left, right),
    };
    Ok(Product { q, k: unrepeated(view, k), over: over.clone() })
}

/// A value that is repeated along axes it lacks: keys and values of several query heads.
fn unrepeated(view: &View, value: ValueId) -> ValueId {
    match view.op(value) {
        Some(node) if node.op == Op::Broadcast => unrepeated(view, node.operands[0]),
        _ => value,
    }
}

fn is_product_along(view: &View, value: ValueId, key: &Name) -> bool {
    view.graph.ty(value).has(key) && view.op(value).is_some_and(|node| matches!(node.op, Op::Dot { .. }))
}

/// What the element-wise ops above a value start from, in order of first use.
pub(super) fn leaves(view: &View, from: ValueId) -> Vec<ValueId> {
    walk_up(view, from, None).0
}

/// As [`leaves`], where one value is a leaf whatever makes it.
fn leaves_above(view: &View, from: ValueId, leaf: ValueId) -> Vec<ValueId> {
    walk_up(view, from, Some(leaf)).0
}

/// The element-wise values above a value, itself included.
fn elementwise_above(view: &View, from: ValueId) -> Vec<ValueId> {
    walk_up(view, from, None).1
}

/// Leaves and element-wise values above a value.
fn walk_up(view: &View, from: ValueId, leaf: Option<ValueId>) -> (Vec<ValueId>, Vec<ValueId>) {
    let (mut leaves, mut inner) = (Vec::new(), Vec::new());
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(value) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        match view.op(value) {
            Some(node) if is_elementwise(&node.op) && leaf != Some(value) => {
                inner.push(value);
                open.extend(node.operands.iter().rev());
            }
            _ => leaves.push(value),
        }
    }
    (leaves, inner)
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
        if view.is_index(value, &f.query) {
            return self.queries.push(value);
        }
        if view.is_index(value, &f.key) {
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
        _ => view.is_index(value, &f.query) || view.is_index(value, &f.key),
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

/// The axis of queries alone whose position the scores read, or that the key axis was renamed from, or the only one.
fn query_axis(view: &View, leaves: &[ValueId], products: &[Product], key: &Name) -> Result<Name, String> {
    let mut own: Vec<Name> = Vec::new();
    for axis in products.iter().flat_map(|p| view.graph.ty(p.q).names()) {
        let of_keys = products.iter().any(|p| p.over.contains(&axis) || view.graph.ty(p.k).has(&axis));
        if !of_keys && !own.contains(&axis) {
            own.push(axis);
        }
    }
    let read: Vec<&Name> =
        own.iter().filter(|axis| leaves.iter().any(|leaf| view.is_index(*leaf, axis))).collect();
    let renamed_from = || {
        products.iter().find_map(|p| match &view.op(p.k)?.op {
            Op::Rename { pairs } => pairs.iter().find(|(_, to)| to == key).map(|(from, _)| from.clone()),
            _ => None,
        })
    };
    match (&read[..], &own[..]) {
        ([axis], _) => Ok((*axis).clone()),
        ([], [axis]) => Ok(axis.clone()),
        ([], [_, ..]) => renamed_from().filter(|axis| own.contains(axis)).ok_or_else(|| {
            format!(
                "which of the queries' axes {} their positions are is not said: no score reads an index of one, and {key} \
                 is none of them renamed",
                list(&own)
            )
        }),
        ([], []) => Err("the queries have no axis of their own".into()),
        _ => Err(format!("the scores read the positions along several axes of the queries: {}", list(&own))),
    }
}

fn list(names: &[Name]) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    format!("[{}]", names.join(", "))
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
