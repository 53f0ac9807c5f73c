//! The summed cross-entropy of a linear head.
//!
//! `Σ weight · cross_entropy[vocab](dot[over](x, w), targets)` over all tokens becomes a loss head, which autodiff turns
//! into a loop over chunks of tokens, so that the logits never exist whole.
//!
//! 1. At every full sum, look through an optional weight at a cross-entropy whose second result nothing uses.
//! 2. Its logits must be a product that nothing else uses: otherwise they exist anyway.
//! 3. Choose chunks: whole inner token axes first, as many tokens as keep a chunk's logits under [`LOGITS_MAX`] elements,
//!    but at least [`TOKENS_MIN`] so that the product stays a product of matrices.

use super::View;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::{
    Axis, BinaryOp, Builder, Composite, CompositeKind, Graph, LossHead, Name, Op, OpNode, ReduceOp, Type,
    ValueId,
};
use std::collections::BTreeMap;

/// Elements of logits per chunk: 64 MiB in f32. The gradient of the head is read and written once per chunk, and the
/// products want rows: fewer, larger chunks cost only this memory, since no chunk of a large vocabulary fits a cache.
const LOGITS_MAX: u64 = 1 << 24;
/// Tokens per chunk, where there are as many.
const TOKENS_MIN: u64 = 64;

/// Puts a loss head in the place of a summed cross-entropy of a product.
pub fn recognise_loss_head(graph: Graph) -> Graph {
    rewrite_ops(graph, |b, before, _, node| {
        let uses = match node.op {
            Op::Reduce { op: ReduceOp::Sum, .. } => before.use_counts(b.current()),
            _ => return None,
        };
        let found = find(&View::new(b), &uses, node)?;
        let chunks = chunks(b, &found);
        let head = LossHead { over: found.over, vocab: found.vocab, chunks };
        b.loss_head(found.x, found.w, found.targets, found.weight, head).ok().map(|loss| vec![loss])
    })
}

/// Cuts the tokens of every loss head anew for a mesh that splits each axis into `ways` parts and takes `micro` sequences at a
/// time: chunks as one rank would choose them for its part, times the parts, so that every chunk splits.
pub fn fit_chunks(mut graph: Graph, ways: impl Fn(&Name) -> u64, micro: u64) -> Graph {
    for i in 0..graph.ops.len() {
        let [_, w, targets, ..] = graph.ops[i].operands[..] else { continue };
        let (w, targets) = (graph.ty(w).clone(), graph.ty(targets).clone());
        if let Op::Composite(Composite { kind: CompositeKind::LossHead(head), .. }) = &mut graph.ops[i].op {
            let part = |name: &Name, size: u64| size / largest_common(size, ways(name));
            let vocab = w.size_of(&head.vocab).map_or(1, |size| part(&head.vocab, size));
            let local = |a: &Axis| {
                let size = if a.name.as_str() == "batch" { micro.min(a.size) } else { a.size };
                Axis::new(&a.name, part(&a.name, size))
            };
            let tokens = Type::new(targets.dtype, targets.axes.iter().map(local).collect());
            head.chunks = cut(&tokens, (LOGITS_MAX / vocab).max(TOKENS_MIN));
            for (name, chunk) in &mut head.chunks {
                let size = targets.size_of(name).unwrap_or(1);
                *chunk *=
                    largest_common(if name.as_str() == "batch" { micro.min(size) } else { size }, ways(name));
            }
        }
    }
    graph
}

/// Greatest common divisor.
fn largest_common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { largest_common(b, a % b) }
}

struct Found {
    x: ValueId,
    w: ValueId,
    targets: ValueId,
    weight: Option<ValueId>,
    over: Vec<Name>,
    vocab: Name,
}

fn find(view: &View, uses: &BTreeMap<ValueId, u32>, node: &OpNode) -> Option<Found> {
    let summed = node.operands[0];
    if !view.graph.ty(node.results[0]).axes.is_empty() {
        return None;
    }
    let mut ways = vec![(summed, None)];
    ways.extend(view.either(BinaryOp::Mul, summed).into_iter().map(|(loss, weight)| (loss, Some(weight))));
    ways.into_iter().find_map(|(loss, weight)| head(view, uses, loss, weight))
}

fn head(view: &View, uses: &BTreeMap<ValueId, u32>, loss: ValueId, weight: Option<ValueId>) -> Option<Found> {
    let entropy = view.op(loss)?;
    let Op::Composite(c) = &entropy.op else { return None };
    let CompositeKind::CrossEntropy { axis: vocab } = &c.kind else { return None };
    let (logits, targets) = (entropy.operands[0], entropy.operands[1]);
    let count = |v: ValueId| uses.get(&v).copied().unwrap_or(0);
    if entropy.results[0] != loss || count(entropy.results[1]) > 0 || count(logits) > 1 {
        return None;
    }
    let product = view.op(logits)?;
    let Op::Dot { over } = &product.op else { return None };
    let (a, b) = (product.operands[0], product.operands[1]);
    let (x, w) = if view.graph.ty(b).has(vocab) { (a, b) } else { (b, a) };
    Some(Found { x, w, targets, weight, over: over.clone(), vocab: vocab.clone() })
}

/// Token axes to cut, outermost first, with the size of a piece.
fn chunks(b: &Builder, found: &Found) -> Vec<(Name, u64)> {
    let vocab = b.ty(found.w).size_of(&found.vocab).unwrap_or(1);
    cut(b.ty(found.targets), (LOGITS_MAX / vocab).max(TOKENS_MIN))
}

/// Cuts token axes so that a chunk has at most `tokens_max` tokens.
fn cut(tokens: &Type, tokens_max: u64) -> Vec<(Name, u64)> {
    let mut room = tokens_max;
    let mut chunks = Vec::new();
    for Axis { name, size } in tokens.axes.iter().rev() {
        let piece = (1..=*size).rev().find(|p| size % p == 0 && *p <= room).unwrap_or(1);
        if piece < *size {
            chunks.push((name.clone(), piece));
            // Once an axis is cut, those around it go one by one.
            room = 1;
        } else {
            room /= piece;
        }
    }
    chunks.reverse();
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;

    #[test]
    fn recognise_loss_head_cuts_inner_tokens_first() {
        let ty = |batch, seq| Type::new(DType::I32, vec![Axis::new("batch", batch), Axis::new("seq", seq)]);
        let cut = |ty, n| -> Vec<(String, u64)> {
            cut(&ty, n).into_iter().map(|(name, piece)| (name.to_string(), piece)).collect()
        };
        assert_eq!(cut(ty(4, 32), 128), []);
        assert_eq!(cut(ty(4, 32), 100), [("batch".to_string(), 2)]);
        assert_eq!(cut(ty(4, 32), 20), [("batch".to_string(), 1), ("seq".to_string(), 16)]);
        assert_eq!(cut(ty(1, 30), 20), [("seq".to_string(), 15)]);
        assert_eq!(cut(ty(2, 31), 20), [("batch".to_string(), 1), ("seq".to_string(), 1)]);
    }
}
