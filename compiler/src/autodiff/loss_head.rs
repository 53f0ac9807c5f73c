//! Loss heads become loops over chunks of tokens whose body holds forward and backward.
//!
//! The loss is a sum over tokens and nothing else depends on the logits, so the gradient of a chunk needs nothing but
//! the chunk: its logits are an ordinary temporary, nothing of size [tokens, vocab] exists, nothing is computed twice.
//!
//! ```text
//! loop(stacked x, targets, weight?; invariant w) -> stacked dx; sums loss, dw
//!   logits = x·w;  loss, lse = cross_entropy(logits, targets)
//!   dlogits = (exp(logits − lse) − [index == target])·weight
//!   dx = dlogits·w;  dw = x·dlogits                       bf16 x, w: logits and gradients f32, dlogits a bf16 operand
//! ```
//! The gradients are those of the plain sum; the walk scales them by the loss's cotangent, which is 1 as a rule.

use super::composites::cross_entropy_slope;
use super::tape::cotangent_type;
use crate::graph::rewrite::rewrite_ops;
use crate::graph::shape::slice_type;
use crate::graph::{
    Builder, CompositeKind, Graph, Loop, LossHead, Name, Op, OpId, Origin, Phase, Type, ValueId,
};
use std::collections::BTreeMap;

/// What a loop with gradients in it gives.
#[derive(Clone, Debug)]
pub struct Joint {
    /// Position of the loss among the loop's results.
    pub loss: usize,
    /// (operand position, position of the result that is its gradient per unit of the loss's cotangent).
    pub gradients: Vec<(usize, usize)>,
}

/// Replaces every loss head by its loop, with gradients if its inputs or weights are varied. One that fits a single
/// chunk is replaced by its meaning.
pub fn expand_loss_heads(graph: Graph, varied: impl Fn(ValueId) -> bool) -> (Graph, BTreeMap<OpId, Joint>) {
    let mut joint = BTreeMap::new();
    let graph = rewrite_ops(graph, |b, before, op, node| {
        let Op::Composite(c) = &node.op else { return None };
        let CompositeKind::LossHead(head) = &c.kind else { return None };
        let chunks = loops_needed(b, head, node.operands[2]);
        if chunks.is_empty() {
            return Some(b.inline(before, c.meaning, &node.operands));
        }
        let operands = Operands {
            x: node.operands[0],
            w: node.operands[1],
            targets: node.operands[2],
            weight: node.operands.get(3).copied(),
        };
        // Asked of the operands before any was replaced: those are the values the caller knows.
        let asked = &before.op(op).operands;
        let want = Wanted { x: varied(asked[0]), w: varied(asked[1]) };
        let made = nest(b, head, &chunks, operands, want);
        if want.x || want.w {
            let region = b.current();
            let op = *b.graph.region(region).ops.last().expect("the loop was just made");
            joint.insert(op, made.joint);
        }
        Some(vec![made.loss])
    });
    (graph, joint)
}

/// Loss heads of an entry that is evaluated and not trained: the same loop over chunks, without gradients.
pub fn chunk_loss_heads(graph: Graph) -> Graph {
    expand_loss_heads(graph, |_| false).0
}

/// Operands of a loss head, whole or one chunk of them.
#[derive(Clone, Copy)]
struct Operands {
    x: ValueId,
    w: ValueId,
    targets: ValueId,
    weight: Option<ValueId>,
}

/// Which gradients to compute.
#[derive(Clone, Copy)]
struct Wanted {
    x: bool,
    w: bool,
}

/// Values of a loss head.
struct Made {
    loss: ValueId,
    dx: Option<ValueId>,
    dw: Option<ValueId>,
    joint: Joint,
}

/// The chunked axes that have more than one chunk.
fn loops_needed(b: &Builder, head: &LossHead, targets: ValueId) -> Vec<(Name, u64)> {
    let size = |axis: &Name| b.ty(targets).size_of(axis).expect("checked when built");
    head.chunks.iter().filter(|(axis, chunk)| size(axis) > *chunk).cloned().collect()
}

/// One loop per chunked axis, the innermost body holding the computation.
fn nest(b: &mut Builder, head: &LossHead, chunks: &[(Name, u64)], whole: Operands, want: Wanted) -> Made {
    let Some(((axis, chunk), inner)) = chunks.split_first() else {
        return chunk_body(b, head, whole, want);
    };
    let trip = b.ty(whole.targets).size_of(axis).expect("checked when built") / chunk;
    let mut l = Loop {
        axis: axis.clone(),
        trip,
        block: Some(*chunk),
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 2,
        stacked_outs: usize::from(want.x),
        body: b.current(),
    };
    // A weight without the axis is the same for every chunk.
    let weight_stacked = whole.weight.is_some_and(|w| b.ty(w).has(axis));
    let mut operands = vec![whole.x, whole.targets];
    if weight_stacked {
        operands.extend(whole.weight);
        l.stacked += 1;
    }
    let w_at = operands.len();
    operands.push(whole.w);
    if !weight_stacked {
        operands.extend(whole.weight);
    }
    let mut args: Vec<(Name, Type)> = vec![("i".into(), super::tape::index_type())];
    for (i, operand) in operands.iter().enumerate() {
        let ty = b.ty(*operand);
        let ty = if i < l.stacked { slice_type(&l, ty).expect("has the axis") } else { ty.clone() };
        args.push((b.graph.value_name(*operand).clone(), ty));
    }
    let (body, args) = b.open(&args);
    let weight = whole.weight.map(|_| if weight_stacked { args[3] } else { args[2 + w_at] });
    let chunk = Operands { x: args[1], targets: args[2], w: args[1 + w_at], weight };
    let made = nest(b, head, inner, chunk, want);
    let results: Vec<ValueId> = made.dx.into_iter().chain([made.loss]).chain(made.dw).collect();
    b.close(results);
    l.body = body;
    let values = b.repeat(l, &operands, "loss_head");
    let loss = usize::from(want.x);
    let mut gradients = Vec::new();
    if want.x {
        gradients.push((0, 0));
    }
    if want.w {
        gradients.push((w_at, loss + 1));
    }
    Made {
        loss: values[loss],
        dx: want.x.then(|| values[0]),
        dw: want.w.then(|| values[loss + 1]),
        joint: Joint { loss, gradients },
    }
}

/// Loss and gradients of one chunk.
fn chunk_body(b: &mut Builder, head: &LossHead, chunk: Operands, want: Wanted) -> Made {
    let forward = b.origin.clone();
    let logits = b.dot(chunk.x, chunk.w, &head.over);
    let (loss, lse) =
        b.cross_entropy(logits, chunk.targets, &head.vocab).expect("checked when the head was built");
    let loss = match chunk.weight {
        Some(weight) => b.mul(loss, weight),
        None => loss,
    };
    let none = Type::scalar(b.ty(loss).dtype);
    let loss = b.sum_to(loss, &none);
    let joint = Joint { loss: 0, gradients: Vec::new() };
    if !want.x && !want.w {
        return Made { loss, dx: None, dw: None, joint };
    }
    b.origin = Origin { phase: Phase::BackwardInput, ..forward.clone() };
    let slope = cross_entropy_slope(b, &head.vocab, logits, chunk.targets, lse);
    let slope = match chunk.weight {
        Some(weight) => b.mul(slope, weight),
        None => slope,
    };
    b.set_name(slope, "logits.grad");
    let slope = b.cast(slope, b.ty(chunk.x).dtype);
    let [x_type, w_type] = [chunk.x, chunk.w].map(|v| cotangent_type(b.ty(v)));
    let dx = want.x.then(|| {
        let over = vec![head.vocab.clone()];
        b.one(Op::Dot { over }, &[slope, chunk.w], Some(x_type.clone()), "x.grad")
    });
    b.origin.phase = Phase::BackwardWeight;
    let dw = want.w.then(|| {
        let over = x_type.names().into_iter().filter(|n| !head.over.contains(n)).collect();
        b.one(Op::Dot { over }, &[chunk.x, slope], Some(w_type), "w.grad")
    });
    b.origin = forward;
    Made { loss, dx, dw, joint }
}
