//! The derivative of attention: one `attention_grad` composite.
//!
//! Source: Dao 2023 (FlashAttention-2, arXiv:2307.08691), §3.1.2: probabilities are made again from `lse`, and
//! `Σ over value of o·do` stands for the softmax's inner sum.

use super::AutodiffError;
use super::activity::Activity;
use super::differentiate::walk_ops;
use super::rules::Cotangents;
use super::tape::Tape;
use crate::graph::shape::{sum_dtype, union_type};
use crate::graph::{
    Attention, Builder, CompareOp, CompositeKind, Graph, Name, Op, OpNode, ReduceOp, RegionId, Type, UnaryOp,
    ValueId,
};

/// Cotangents of q, k, v and of the extras that are varied.
pub(super) fn pull(
    t: &mut Tape,
    a: &Attention,
    node: &OpNode,
    g: ValueId,
) -> Result<Cotangents, AutodiffError> {
    let mut operands =
        node.operands.iter().map(|v| t.primal(*v)).collect::<Result<Vec<ValueId>, AutodiffError>>()?;
    operands.push(t.primal(node.results[0])?);
    operands.push(t.primal(node.results[1])?);
    // Both products with the output's gradient take it in the type of the other operand.
    operands.push(t.b.cast(g, t.b.ty(node.results[0]).dtype));
    let extras = node.operands[3..].iter().enumerate();
    let learned: Vec<usize> = extras.filter(|(_, v)| t.activity.varied(**v)).map(|(i, _)| i).collect();
    let score = score_with_slopes(&mut t.b, a.score, &learned)?;
    let grads =
        attention_grad(&mut t.b, &operands, Attention { score, learned: learned.clone(), ..a.clone() });
    let mut cotangents = vec![None; node.operands.len()];
    let wanted = (0..3).chain(learned.iter().map(|i| 3 + i));
    for (i, grad) in wanted.zip(grads) {
        let operand = node.operands[i];
        cotangents[i] = t.towards(operand, |t| {
            let ty = t.b.ty(operand).clone();
            t.b.sum_to(grad, &ty)
        });
    }
    Ok(cotangents)
}

/// A score region with its derivatives by the dot product and by some extras as further results; 0 where the score is
/// −inf.
fn score_with_slopes(b: &mut Builder, score: RegionId, learned: &[usize]) -> Result<RegionId, AutodiffError> {
    let from: Graph = b.graph.clone();
    let args: Vec<(Name, Type)> =
        from.region(score).args.iter().map(|v| (from.value_name(*v).clone(), from.ty(*v).clone())).collect();
    let mut inner = Builder::new("score");
    let (region, args) = inner.open(&args);
    let result = inner.inline(&from, score, &args)[0];
    let by: Vec<ValueId> = std::iter::once(args[0]).chain(learned.iter().map(|i| args[3 + i])).collect();
    let activity = Activity::of_region(&inner.graph, region, &by);
    let mut t = Tape::new(inner, activity);
    let forward = t.forward_ops();
    let one = t.b.constant(t.b.ty(result).dtype, 1.0);
    t.accumulate(result, one);
    walk_ops(&mut t, forward)?;
    let slopes: Vec<Option<ValueId>> = by.iter().map(|v| t.cotangent(*v)).collect();
    let mut inner = t.b;
    let lowest = inner.constant(inner.ty(result).dtype, f64::NEG_INFINITY);
    let masked = inner.compare(CompareOp::Eq, result, lowest);
    let mut results = vec![result];
    for (by, slope) in by.iter().zip(slopes) {
        let zero = inner.constant(inner.ty(*by).dtype, 0.0);
        let slope = inner.select(masked, zero, slope.unwrap_or(zero));
        inner.set_name(slope, "slope");
        results.push(slope);
    }
    inner.close(results);
    Ok(b.copy_region(&inner.finish(), region))
}

/// `attention_grad q, k, v, extras.., o, lse, do -> dq, dk, dv, gradients of learned extras..`.
///
/// The gradient of an extra may have more axes than the extra, over which it is still to be summed: see
/// [`extra_gradient_type`].
pub(crate) fn attention_grad(b: &mut Builder, operands: &[ValueId], a: Attention) -> Vec<ValueId> {
    let names: Vec<&str> = match operands.len() {
        6 => vec!["q", "k", "v", "o", "lse", "do"],
        _ => vec!["q", "k", "v"],
    };
    b.composite(CompositeKind::AttentionGrad(a.clone()), operands, &names, "grad", |b, args| {
        let n = args.len();
        let [q, k, v] = [args[0], args[1], args[2]];
        let [o, lse, d_o] = [args[n - 3], args[n - 2], args[n - 1]];
        let [q_type, k_type, v_type] = [q, k, v].map(|x| b.ty(x).clone());
        let dtype = sum_dtype(q_type.dtype);
        let axes = union_type(dtype, &[&q_type, &k_type]).without(&a.over);
        let value_axes = missing(&v_type, &axes);

        let scores = b.attention_scores(&a, q, k, &args[3..n - 3], &axes);
        let (score, slope) = (scores[0], scores[1]);
        // A row without keys has lse = −inf; 0 instead keeps exp(−inf − lse) at 0.
        let [zero, lowest] = [0.0, f64::NEG_INFINITY].map(|c| b.constant(dtype, c));
        let empty = b.compare(CompareOp::Eq, lse, lowest);
        let lse = b.select(empty, zero, lse);
        let shifted = b.sub(score, lse);
        let p = b.unary(UnaryOp::Exp, shifted);

        let dp = b.one(Op::Dot { over: value_axes.clone() }, &[d_o, v], Some(axes.clone()), "dp");
        let [q, k, o, wide_d_o] = [q, k, o, d_o].map(|x| b.cast(x, dtype));
        let product = b.mul(o, wide_d_o);
        let delta = b.reduce(ReduceOp::Sum, product, &value_axes);
        let centred = b.sub(dp, delta);
        let d_score = b.mul(p, centred);
        let ds = b.mul(d_score, slope);

        let dot = |b: &mut Builder, x: ValueId, y: ValueId, to: &Type| {
            let over = missing(&axes, to);
            b.one(Op::Dot { over }, &[x, y], Some(to.with_dtype(dtype)), "grad")
        };
        let mut grads = vec![dot(b, ds, k, &q_type), dot(b, ds, q, &k_type), dot(b, p, wide_d_o, &v_type)];
        for (i, slope) in a.learned.iter().zip(&scores[2..]) {
            let to = extra_gradient_type(&a, b.ty(args[3 + i]), &k_type, &axes);
            let d_score = b.cast(d_score, to.dtype);
            let d_extra = b.mul(d_score, *slope);
            grads.push(b.sum_to(d_extra, &to));
        }
        grads
    })
}

/// What the gradient of an extra is summed to by its kernel: the extra's own axes if it has both positions. One that lacks
/// the key keeps all rows, and one that lacks the query alone keeps what keys share with queries, so that there is work
/// for many threads; an ordinary sum follows.
fn extra_gradient_type(a: &Attention, extra: &Type, k: &Type, scores: &Type) -> Type {
    let kept = |name: &Name| match (extra.has(&a.query), extra.has(&a.key)) {
        (true, true) => extra.has(name),
        (false, true) => extra.has(name) || k.has(name),
        (_, false) => *name != a.key,
    };
    let axes = scores.axes.iter().filter(|axis| kept(&axis.name)).cloned().collect();
    Type::new(extra.dtype, axes)
}

/// Axes of `ty` that `of` lacks.
fn missing(ty: &Type, of: &Type) -> Vec<Name> {
    ty.names().into_iter().filter(|n| !of.has(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Axis, Bound, DType};

    /// The axes of an extra's gradient, of scores `[b, s, g, t]` where keys have `[b, t, d]`.
    fn gradient(extra: &[&str]) -> String {
        let ty = |axes: &[&str]| Type::new(DType::F32, axes.iter().map(|a| Axis::new(*a, 2)).collect());
        let attention = Attention {
            query: "s".into(),
            key: "t".into(),
            over: vec!["d".into()],
            bound: Bound::Full,
            learned: vec![0],
            score: RegionId(0),
        };
        let ty =
            extra_gradient_type(&attention, &ty(extra), &ty(&["b", "t", "d"]), &ty(&["b", "s", "g", "t"]));
        ty.names().iter().map(|n| n.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn gradients_of_extras_keep_work_for_many_threads() {
        // Its own axes, if it has both positions.
        assert_eq!(gradient(&["t", "g", "s"]), "s g t");
        assert_eq!(gradient(&["s", "t"]), "s t");
        // Without the query, also what keys share with queries.
        assert_eq!(gradient(&["t"]), "b t");
        assert_eq!(gradient(&["g", "t"]), "b g t");
        // Without the key, all rows.
        assert_eq!(gradient(&["s"]), "b s g");
        assert_eq!(gradient(&["g"]), "b s g");
        assert_eq!(gradient(&[]), "b s g");
    }
}
