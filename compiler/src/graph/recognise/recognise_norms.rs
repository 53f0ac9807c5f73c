//! Root-mean-square and layer normalisation.
//!
//! ```text
//! rms_norm     x · rsqrt(mean[a](x·x) + eps) · w
//! layer_norm   c · rsqrt(mean[a](c·c) + eps) · w + b,   c = x − mean[a](x)
//! ```
//! 1. At every addition, try the second form, with commuting operands either way round.
//! 2. At every multiplication, try the first.

use super::View;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{BinaryOp, Graph, Name, Op, OpNode, ValueId};

/// Puts `rms_norm` and `layer_norm` in the place of their formulas.
pub fn recognise_norms(graph: Graph) -> Graph {
    // The larger formula first: it contains the smaller.
    recognise_rms_norm(recognise_layer_norm(graph))
}

/// Puts `layer_norm` in the place of its formula.
pub fn recognise_layer_norm(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, _, _, node| {
        if node.op != Op::Binary(BinaryOp::Add) {
            return None;
        }
        let (x, w, bias, axis, eps) = layer_norm(&View::new(b), node)?;
        b.layer_norm(x, w, bias, &axis, eps).ok().map(|(y, _, _)| vec![y])
    })
}

/// Puts `rms_norm` in the place of its formula.
pub fn recognise_rms_norm(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, _, _, node| {
        if node.op != Op::Binary(BinaryOp::Mul) {
            return None;
        }
        let (x, w, axis, eps) = rms_norm(&View::new(b), node)?;
        b.rms_norm(x, w, &axis, eps).ok().map(|(y, _)| vec![y])
    })
}

/// x, w, axis and eps, if the op is the last of an rms norm.
fn rms_norm(view: &View, node: &OpNode) -> Option<(ValueId, ValueId, Name, f64)> {
    let (a, b) = (node.operands[0], node.operands[1]);
    for (scaled, w) in [(a, b), (b, a)] {
        for (x, rstd) in view.either(BinaryOp::Mul, scaled) {
            if let Some((of, axis, eps)) = view.rstd(rstd)
                && of == x
                && view.graph.ty(node.results[0]).same_axes(view.graph.ty(x))
            {
                return Some((x, w, axis, eps));
            }
        }
    }
    None
}

/// x, w, b, axis and eps, if the op is the last of a layer norm.
fn layer_norm(view: &View, node: &OpNode) -> Option<(ValueId, ValueId, ValueId, Name, f64)> {
    let (a, b) = (node.operands[0], node.operands[1]);
    for (scaled, bias) in [(a, b), (b, a)] {
        for (normal, w) in view.either(BinaryOp::Mul, scaled) {
            for (centred, rstd) in view.either(BinaryOp::Mul, normal) {
                let Some((of, axis, eps)) = view.rstd(rstd) else { continue };
                let Some((x, mean)) = view.binary(BinaryOp::Sub, centred) else { continue };
                let of_x = view.mean(mean).is_some_and(|m| m == (x, axis.clone()));
                let keeps_axes = view.graph.ty(node.results[0]).same_axes(view.graph.ty(x));
                if of == centred && of_x && keeps_axes {
                    return Some((x, w, bias, axis, eps));
                }
            }
        }
    }
    None
}
