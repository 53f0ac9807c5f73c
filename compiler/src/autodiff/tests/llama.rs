//! A small Llama as the tests' forward graph.

use super::param;
use crate::graph::composites::AttentionParts;
use crate::graph::{
    Axis, Bound, Builder, CompareOp, DType, Graph, Loop, LossHead, Name, Op, Output, Pairs, Type, ValueId,
};

const BATCH: u64 = 4;
const SEQ: u64 = 4;
const D: u64 = 4;
const VOCAB: u64 = 5;

fn names(axes: &[&str]) -> Vec<Name> {
    axes.iter().map(|a| Name::from(*a)).collect()
}

/// Two layers of grouped-query attention with rotary embeddings and a gated feed-forward block, norms, a head of its
/// own or the embedding again. Reports `loss_sum` and `loss_weight` over the whole batch.
pub fn llama(tied: bool) -> Graph {
    let mut b = Builder::new("llama");
    let tokens_type = Type::new(DType::I32, vec![Axis::new("batch", BATCH), Axis::new("seq", SEQ)]);
    let tokens = b.input("tokens", tokens_type.clone(), VOCAB);
    let targets = b.input("targets", tokens_type, VOCAB);
    let embed = param(&mut b, "embed", &[("vocab", VOCAB), ("d", D)]);
    let head = if tied { embed } else { param(&mut b, "head", &[("d", D), ("vocab", VOCAB)]) };
    let norm = param(&mut b, "norm.w", &[("d", D)]);
    let layer = |b: &mut Builder, path: &str, axes: &[(&str, u64)]| {
        let mut all = vec![("layer", 2)];
        all.extend(axes);
        param(b, path, &all)
    };
    let weights: Vec<ValueId> = [
        ("layer.{i}.norm1.w", &[("d", D)][..]),
        ("layer.{i}.attn.wq", &[("d", D), ("kv", 2), ("group", 2), ("hd", 2)]),
        ("layer.{i}.attn.wk", &[("d", D), ("kv", 2), ("hd", 2)]),
        ("layer.{i}.attn.wv", &[("d", D), ("kv", 2), ("hd", 2)]),
        ("layer.{i}.attn.wo", &[("kv", 2), ("group", 2), ("hd", 2), ("d", D)]),
        ("layer.{i}.norm2.w", &[("d", D)]),
        ("layer.{i}.mlp.gate", &[("d", D), ("ff", 6)]),
        ("layer.{i}.mlp.up", &[("d", D), ("ff", 6)]),
        ("layer.{i}.mlp.down", &[("ff", 6), ("d", D)]),
    ]
    .into_iter()
    .map(|(path, axes)| layer(&mut b, path, axes))
    .collect();
    let x = b.one(Op::Gather { axis: "vocab".into() }, &[embed, tokens], None, "x");

    let mut operands = vec![x];
    operands.extend(&weights);
    let mut args: Vec<(Name, Type)> =
        vec![("i".into(), Type::scalar(DType::I32)), ("x".into(), b.ty(x).clone())];
    for w in &weights {
        args.push((b.graph.value_name(*w).clone(), b.ty(*w).without(&names(&["layer"]))));
    }
    let (body, args) = b.open(&args);
    let result = block(&mut b, args[1], &args[2..]);
    b.close(vec![result]);
    let l = Loop {
        axis: "layer".into(),
        trip: 2,
        block: None,
        reverse: false,
        microbatches: false,
        carries: 1,
        stacked: weights.len(),
        stacked_outs: 0,
        body,
    };
    let x = b.repeat(l, &operands, "x")[0];
    let (x, _) = b.rms_norm(x, norm, &"d".into(), 1e-5).unwrap();
    let chunks = vec![("batch".into(), 1), ("seq".into(), 2)];
    let spec = LossHead { over: names(&["d"]), vocab: "vocab".into(), chunks };
    let loss = b.loss_head(x, head, targets, None, spec).unwrap();
    let weight = b.constant(DType::F32, (BATCH * SEQ) as f64);
    b.output(Output::Report("loss_sum".into()), loss);
    b.output(Output::Report("loss_weight".into()), weight);
    b.finish()
}

fn block(b: &mut Builder, x: ValueId, w: &[ValueId]) -> ValueId {
    let d = names(&["d"]);
    let (n, _) = b.rms_norm(x, w[0], &d[0], 1e-5).unwrap();
    let hd: Name = "hd".into();
    let turned = |b: &mut Builder, w: ValueId| {
        let at = b.index(&"seq".into(), SEQ);
        let y = b.dot(n, w, &d);
        b.rope(y, at, &hd, 100.0, Pairs::Half).unwrap()
    };
    let q = turned(b, w[1]);
    let k = turned(b, w[2]);
    let k = b.rename(k, &[("seq".into(), "pos".into())]);
    let v = b.dot(n, w[3], &d);
    let v = b.rename(v, &[("seq".into(), "pos".into())]);
    let index = Type::scalar(DType::I32);
    let (_, a) = b.open(&[
        ("s".into(), Type::scalar(DType::F32)),
        ("query".into(), index.clone()),
        ("key".into(), index),
    ]);
    let s = b.scale(a[0], std::f64::consts::FRAC_1_SQRT_2);
    let seen = b.compare(CompareOp::Le, a[2], a[1]);
    let never = b.constant(DType::F32, f64::NEG_INFINITY);
    let s = b.select(seen, s, never);
    let score = b.close(vec![s]);
    let parts = AttentionParts {
        query: "seq".into(),
        key: "pos".into(),
        over: vec![hd],
        bound: Bound::Causal,
        score,
    };
    let (o, _) = b.attention(q, k, v, &[], parts).unwrap();
    let o = b.dot(o, w[4], &names(&["kv", "group", "hd"]));
    let h = b.add(x, o);
    let (n, _) = b.rms_norm(h, w[5], &d[0], 1e-5).unwrap();
    let gate = b.dot(n, w[6], &d);
    let gate = b.silu(gate);
    let up = b.dot(n, w[7], &d);
    let product = b.mul(gate, up);
    let down = b.dot(product, w[8], &names(&["ff"]));
    b.add(h, down)
}
