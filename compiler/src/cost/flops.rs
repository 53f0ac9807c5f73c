//! Floating-point operations of the products of an op, 2·m·n·k each: what computing it takes, once or again.
//!
//! Attention counts the products of its meaning over the pairs of positions its bound leaves; everything else is cheap
//! beside them.

use crate::graph::{Attention, Bound, CompositeKind, Graph, Op, OpId, RegionId};

/// Operations of one execution of the op; a loop's body counts once per iteration. A step of a large model has more of them
/// than 64 bits count.
pub fn product_flops(graph: &Graph, op: OpId) -> u128 {
    let node = graph.op(op);
    match &node.op {
        Op::Dot { over } => {
            let left = graph.ty(node.operands[0]);
            let summed: u64 = over.iter().filter_map(|axis| left.size_of(axis)).product();
            2 * u128::from(summed) * u128::from(graph.ty(node.results[0]).numel())
        }
        Op::Loop(l) => u128::from(l.trip) * region_flops(graph, l.body),
        Op::Composite(c) => match &c.kind {
            CompositeKind::Attention(a) | CompositeKind::AttentionGrad(a) => {
                let (q, k) = (graph.ty(node.operands[0]), graph.ty(node.operands[1]));
                let (n_q, n_k) = (q.size_of(&a.query).unwrap_or(1), k.size_of(&a.key).unwrap_or(1));
                // Every product of the meaning runs over all pairs of positions.
                region_flops(graph, c.meaning) / u128::from(n_q * n_k) * u128::from(pairs(a, n_q, n_k))
            }
            // Every row meets one group's matrix, whatever the meaning computes.
            CompositeKind::GroupedDot { over, .. } => {
                let left = graph.ty(node.operands[0]);
                let summed: u64 = over.iter().filter_map(|axis| left.size_of(axis)).product();
                2 * u128::from(summed) * u128::from(graph.ty(node.results[0]).numel())
            }
            CompositeKind::GroupedOuter { .. } => {
                let [a, b, owner] = [0, 1, 2].map(|i| u128::from(graph.ty(node.operands[i]).numel()));
                2 * a * (b / owner)
            }
            CompositeKind::Softmax { .. }
            | CompositeKind::RmsNorm { .. }
            | CompositeKind::LayerNorm { .. }
            | CompositeKind::Rope { .. }
            | CompositeKind::CrossEntropy { .. }
            | CompositeKind::LossHead(_)
            | CompositeKind::Custom(_) => region_flops(graph, c.meaning),
        },
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
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::CumSum { .. }
        | Op::RotatePairs { .. }
        | Op::Transfer { .. }
        | Op::Mesh(_)
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Update(_) => 0,
    }
}

/// Operations of one execution of a region.
pub fn region_flops(graph: &Graph, region: RegionId) -> u128 {
    graph.region(region).ops.iter().map(|op| product_flops(graph, *op)).sum()
}

/// (query, key) pairs the bound leaves.
fn pairs(attention: &Attention, queries: u64, keys: u64) -> u64 {
    let row = |q: u64| match attention.bound {
        Bound::Full => keys,
        Bound::Causal => (q + 1).min(keys),
        Bound::Window(w) => (q + 1).min(keys) - (q + 1).saturating_sub(w).min(keys),
    };
    (0..queries).map(row).sum()
}
