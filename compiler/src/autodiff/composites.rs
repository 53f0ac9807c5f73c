//! Derivatives of composites by name; the others are replaced by their meaning first.

use super::activity::Activity;
use super::rules::{Cotangents, compare_union};
use super::tape::Tape;
use super::{AutodiffError, attention, custom};
use crate::graph::grouped::Packing;
use crate::graph::passes::{drop_dead, expand_chosen};
use crate::graph::{
    Axis, Builder, CompareOp, Composite, CompositeKind, Graph, Name, OpId, OpNode, ReduceOp, UnaryOp, ValueId,
};
use std::collections::BTreeSet;

/// Replaces by its meaning every composite that has no derivative by name where it stands:
///
/// * a rotary embedding always: turned by sines and cosines that leave the loop, it is three element-wise ops;
/// * one whose residual result (a norm's `rstd`, `lse`) is used as a value;
/// * an `attention_grad`.
pub(super) fn inline_without_rule(graph: Graph, wanted: &[ValueId]) -> Graph {
    let activity = Activity::of(&graph, wanted);
    let used: BTreeSet<ValueId> =
        graph.executed_regions().into_iter().flat_map(|r| graph.use_counts(r).into_keys()).collect();
    let pick = |graph: &Graph, op: OpId, kind: &CompositeKind| {
        let node = graph.op(op);
        let residual_used = node.results[1..].iter().any(|r| used.contains(r));
        match kind {
            CompositeKind::Rope { .. }
            | CompositeKind::AttentionGrad(_)
            | CompositeKind::GroupedOuter { .. } => true,
            CompositeKind::GroupedDot { .. } => false,
            CompositeKind::LossHead(_) => node.operands.get(3).is_some_and(|weight| activity.varied(*weight)),
            CompositeKind::Softmax { .. }
            | CompositeKind::RmsNorm { .. }
            | CompositeKind::LayerNorm { .. }
            | CompositeKind::CrossEntropy { .. }
            | CompositeKind::Attention(_)
            | CompositeKind::Custom(_) => residual_used,
        }
    };
    let mut graph = expand_chosen(graph, &pick);
    drop_dead(&mut graph);
    graph
}

/// Cotangents of a composite's operands.
///
/// # Errors
/// A value it needs can't be kept.
pub(super) fn pull(
    t: &mut Tape,
    composite: &Composite,
    node: &OpNode,
    g: &[Option<ValueId>],
) -> Result<Cotangents, AutodiffError> {
    let Some(g) = g[0] else { return Ok(vec![None; node.operands.len()]) };
    match &composite.kind {
        CompositeKind::Softmax { axis } => softmax(t, axis, node, g),
        CompositeKind::RmsNorm { axis, .. } => rms_norm(t, axis, node, g),
        CompositeKind::LayerNorm { axis, .. } => layer_norm(t, axis, node, g),
        CompositeKind::CrossEntropy { axis } => cross_entropy(t, axis, node, g),
        CompositeKind::Attention(a) => attention::pull(t, a, node, g),
        CompositeKind::Custom(k) => custom::pull(t, k, composite, node, g),
        CompositeKind::GroupedDot { group, over, row, tile } => {
            let packing = Packing { row: row.clone(), tile: *tile };
            grouped_dot(t, group, over, &packing, node, g)
        }
        CompositeKind::Rope { .. }
        | CompositeKind::AttentionGrad(_)
        | CompositeKind::LossHead(_)
        | CompositeKind::GroupedOuter { .. } => {
            Err(t.error("a composite without a derivative of its own was not replaced by its meaning"))
        }
    }
}

/// x̅ = y·(g − Σ g·y). A fully masked row has y = 0, hence 0.
fn softmax(t: &mut Tape, axis: &Name, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let y = t.primal(node.results[0])?;
    Ok(vec![t.towards(node.operands[0], |t| {
        let product = t.b.mul(g, y);
        let sum = t.b.reduce(ReduceOp::Sum, product, std::slice::from_ref(axis));
        let centred = t.b.sub(g, sum);
        t.b.mul(y, centred)
    })])
}

/// With r = rstd and u = g·w: x̅ = r·u − x·r³·mean(u·x), w̅ = Σ g·x·r.
fn rms_norm(t: &mut Tape, axis: &Name, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let (x, w) = (node.operands[0], node.operands[1]);
    let rstd = t.primal(node.results[1])?;
    let kept_x = t.primal(x)?;
    let kept_w = t.primal(w)?;
    let to_x = t.towards(x, |t| {
        let b = &mut t.b;
        let u = b.mul(g, kept_w);
        let product = b.mul(u, kept_x);
        let mean = b.mean(product, std::slice::from_ref(axis));
        let square = b.mul(rstd, rstd);
        let share = b.mul(mean, square);
        let along = b.mul(kept_x, share);
        let across = b.sub(u, along);
        b.mul(across, rstd)
    });
    let to_w = t.towards(w, |t| {
        let normal = t.b.mul(kept_x, rstd);
        let product = t.b.mul(g, normal);
        let ty = t.b.ty(w).clone();
        t.b.sum_to(product, &ty)
    });
    Ok(vec![to_x, to_w])
}

/// With n = (x − mean)·rstd and u = g·w: x̅ = rstd·(u − mean(u) − n·mean(u·n)), w̅ = Σ g·n, b̅ = Σ g.
fn layer_norm(t: &mut Tape, axis: &Name, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let [x, w, bias] = [0, 1, 2].map(|i| node.operands[i]);
    let over = std::slice::from_ref(axis);
    let mean = t.primal(node.results[1])?;
    let rstd = t.primal(node.results[2])?;
    let kept_x = t.primal(x)?;
    let kept_w = t.primal(w)?;
    let centred = t.b.sub(kept_x, mean);
    let normal = t.b.mul(centred, rstd);
    let to_x = t.towards(x, |t| {
        let b = &mut t.b;
        let u = b.mul(g, kept_w);
        let mean_u = b.mean(u, over);
        let product = b.mul(u, normal);
        let mean_product = b.mean(product, over);
        let along = b.mul(normal, mean_product);
        let across = b.sub(u, mean_u);
        let across = b.sub(across, along);
        b.mul(across, rstd)
    });
    let to_w = t.towards(w, |t| {
        let product = t.b.mul(g, normal);
        let ty = t.b.ty(w).clone();
        t.b.sum_to(product, &ty)
    });
    let to_bias = t.towards(bias, |t| {
        let ty = t.b.ty(bias).clone();
        t.b.sum_to(g, &ty)
    });
    Ok(vec![to_x, to_w, to_bias])
}

/// x̅ = g times the transposed matrix of the row's owner; w̅ = Σ over the rows of each owner of x·g.
fn grouped_dot(
    t: &mut Tape,
    group: &Name,
    over: &[Name],
    packing: &Packing,
    node: &OpNode,
    g: ValueId,
) -> Result<Cotangents, AutodiffError> {
    let [x, w] = [0, 1].map(|i| node.operands[i]);
    let owner = t.primal(node.operands[2])?;
    let kept_w = if t.activity.varied(x) { t.primal(w)? } else { w };
    let kept_x = if t.activity.varied(w) { t.primal(x)? } else { x };
    let known = "the operands fitted forward";
    let to_x = t.towards(x, |t| {
        let out = t.b.ty(w).without(over).without(std::slice::from_ref(group)).names();
        t.b.grouped_dot(g, kept_w, owner, group, &out, packing).expect(known)
    });
    let to_w = t.towards(w, |t| {
        let size = t.b.ty(w).size_of(group).expect(known);
        t.b.grouped_outer(kept_x, g, owner, &Axis::new(group, size), packing).expect(known)
    });
    Ok(vec![to_x, to_w, None])
}

/// logits̅ = (exp(logits − lse) − [index == target])·g.
fn cross_entropy(t: &mut Tape, axis: &Name, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let logits = t.primal(node.operands[0])?;
    let targets = t.primal(node.operands[1])?;
    let lse = t.primal(node.results[1])?;
    let to_logits = t.towards(node.operands[0], |t| {
        let slope = cross_entropy_slope(&mut t.b, axis, logits, targets, lse);
        if t.is_one(g) { slope } else { t.b.mul(slope, g) }
    });
    Ok(vec![to_logits, None])
}

/// d loss / d logits of every token: `exp(logits − lse) − [index == target]`.
pub(super) fn cross_entropy_slope(
    b: &mut Builder,
    axis: &Name,
    logits: ValueId,
    targets: ValueId,
    lse: ValueId,
) -> ValueId {
    let dtype = b.ty(logits).dtype;
    let shifted = b.sub(logits, lse);
    let p = b.unary(UnaryOp::Exp, shifted);
    let size = b.ty(logits).size_of(axis).expect("checked when built");
    let index = b.index(axis, size);
    let hit = compare_union(b, CompareOp::Eq, targets, index);
    let [one, zero] = [1.0, 0.0].map(|c| b.constant(dtype, c));
    let one_hot = b.select(hit, one, zero);
    b.sub(p, one_hot)
}
