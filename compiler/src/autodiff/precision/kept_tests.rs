//! What each derivative needs, op by op: the names of the operands it keeps.

use super::kept::kept;
use crate::autodiff::activity::Activity;
use crate::autodiff::differentiate::parameters;
use crate::graph::composites::AttentionParts;
use crate::graph::grouped::Packing;
use crate::graph::{
    Axis, BinaryOp, Bound, Builder, CompareOp, DType, Init, Loop, LossHead, Name, Op, ReduceOp, Type,
    UnaryOp, ValueId,
};

fn ty(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect())
}

/// A differentiated source.
fn param(b: &mut Builder, path: &str, axes: &[(&str, u64)]) -> ValueId {
    b.one(Op::Param { path: path.into(), init: Init::Constant(0.0) }, &[], Some(ty(axes)), path)
}

/// The names of what is kept, in order; `products` are those of operands of products.
fn names(products: bool, build: impl FnOnce(&mut Builder)) -> Vec<String> {
    let mut b = Builder::new("f");
    build(&mut b);
    let graph = b.finish();
    let wanted: Vec<ValueId> = parameters(&graph).into_iter().map(|(_, v)| v).collect();
    let activity = Activity::of(&graph, &wanted);
    kept(&graph, &activity, products).into_iter().map(|v| graph.value_name(v).to_string()).collect()
}

#[test]
fn kept_of_functions_is_their_operand() {
    use UnaryOp::*;
    let of = |op| {
        names(false, |b| {
            let x = param(b, "x", &[("d", 4)]);
            b.unary(op, x);
        })
    };
    for op in [Abs, Exp, Log, Sqrt, Rsqrt, Tanh, Sigmoid, Sin, Cos, Erf] {
        assert_eq!(of(op), ["x"], "{op:?}");
    }
    for op in [Neg, Floor] {
        assert!(of(op).is_empty(), "{op:?}");
    }
}

/// Of `x op y`, where each is a parameter or an input.
fn of_binary(op: BinaryOp, differentiated: [bool; 2]) -> Vec<String> {
    names(false, |b| {
        let [x, y] = [("x", 0), ("y", 1)].map(|(name, i)| match differentiated[i] {
            true => param(b, name, &[("d", 4)]),
            false => b.input(name, ty(&[("d", 4)]), 0),
        });
        b.binary(op, x, y);
    })
}

#[test]
fn kept_of_two_operands_is_what_the_other_one_needs() {
    let (both, first, second) = ([true, true], [true, false], [false, true]);
    assert_eq!(of_binary(BinaryOp::Mul, both), ["x", "y"]);
    assert_eq!(of_binary(BinaryOp::Mul, first), ["y"]);
    assert_eq!(of_binary(BinaryOp::Mul, second), ["x"]);
    assert_eq!(of_binary(BinaryOp::Div, both), ["x", "y"]);
    assert_eq!(of_binary(BinaryOp::Div, first), ["y"]);
    assert_eq!(of_binary(BinaryOp::Div, second), ["x", "y"]);
    for op in [BinaryOp::Max, BinaryOp::Min, BinaryOp::Pow] {
        assert_eq!(of_binary(op, first), ["x", "y"]);
    }
    for op in [BinaryOp::Add, BinaryOp::Sub] {
        assert!(of_binary(op, both).is_empty());
    }
}

#[test]
fn kept_of_reductions_and_products() {
    let reduced = |op| {
        names(false, |b| {
            let x = param(b, "x", &[("d", 4)]);
            b.reduce(op, x, &["d".into()]);
        })
    };
    assert!(reduced(ReduceOp::Sum).is_empty());
    assert_eq!(reduced(ReduceOp::Max), ["x"]);
    assert_eq!(reduced(ReduceOp::Min), ["x"]);
    let product = |products| {
        names(products, |b| {
            let x = b.input("x", ty(&[("a", 2), ("d", 4)]), 0);
            let w = param(b, "w", &[("d", 4)]);
            b.dot(x, w, &["d".into()]);
        })
    };
    assert_eq!(product(true), ["x"]);
    assert!(product(false).is_empty());
}

/// What moves elements keeps its operand where the moved ones are kept.
#[test]
fn kept_follows_broadcasts_renames_and_casts_back() {
    let moved = |square: bool| {
        names(false, |b| {
            let x = param(b, "x", &[("d", 4)]);
            let wide = b.broadcast(x, &ty(&[("a", 2), ("d", 4)]));
            b.set_name(wide, "wide");
            let renamed = b.rename(wide, &[("d".into(), "e".into())]);
            b.set_name(renamed, "renamed");
            let long = b.cast(renamed, DType::F64);
            b.set_name(long, "long");
            if square {
                b.mul(long, long);
            } else {
                b.add(long, long);
            }
        })
    };
    assert_eq!(moved(true), ["x", "wide", "renamed", "long"]);
    assert!(moved(false).is_empty());
}

#[test]
fn kept_of_composites() {
    let row: &[(&str, u64)] = &[("s", 2), ("d", 4)];
    let norms = names(false, |b| {
        let (x, w) = (param(b, "x", row), param(b, "w", &[("d", 4)]));
        b.rms_norm(x, w, &"d".into(), 1e-5).unwrap();
        let (x, w, bias) = (param(b, "x2", row), param(b, "w2", &[("d", 4)]), param(b, "b2", &[("d", 4)]));
        b.layer_norm(x, w, bias, &"d".into(), 1e-5).unwrap();
        let x = param(b, "x3", row);
        b.softmax(x, &"d".into()).unwrap();
    });
    assert_eq!(norms, ["x", "x2"]);
    let grouped = names(false, |b| {
        let x = param(b, "x", &[("row", 4), ("d", 4)]);
        let w = param(b, "w", &[("expert", 2), ("d", 4), ("f", 3)]);
        let owner = b.input("owner", Type::new(DType::I32, vec![Axis::new("row", 4)]), 2);
        let packing = Packing { row: "row".into(), tile: 2 };
        b.grouped_dot(x, w, owner, &"expert".into(), &["d".into()], &packing).unwrap();
    });
    assert_eq!(grouped, ["x", "w"]);
    let attention = |products| {
        names(products, |b| {
            let q = param(b, "q", &[("s", 5), ("d", 4)]);
            let (k, v) = (param(b, "k", &[("t", 6), ("d", 4)]), param(b, "v", &[("t", 6), ("e", 3)]));
            let scalar = |name: &str, dtype| (Name::from(name), Type::scalar(dtype));
            let args = [scalar("s", DType::F32), scalar("query", DType::I32), scalar("key", DType::I32)];
            let (_, args) = b.open(&args);
            let score = b.close(vec![args[0]]);
            let (query, key, over) = ("s".into(), "t".into(), vec!["d".into()]);
            let parts = AttentionParts { query, key, over, bound: Bound::Full, score };
            b.attention(q, k, v, &[], parts).unwrap();
        })
    };
    assert_eq!(attention(true), ["q", "k", "v"]);
    assert!(attention(false).is_empty());
    let head = |products| {
        names(products, |b| {
            let (x, w) = (param(b, "x", row), param(b, "w", &[("d", 4), ("v", 5)]));
            let targets = b.input("targets", Type::new(DType::I32, vec![Axis::new("s", 2)]), 5);
            let head = LossHead { over: vec!["d".into()], vocab: "v".into(), chunks: Vec::new() };
            b.loss_head(x, w, targets, None, head).unwrap();
        })
    };
    assert_eq!(head(true), ["x", "w"]);
    assert!(head(false).is_empty());
}

/// A loop keeps, outside, what its body keeps of stacked operands and invariants; its carries are kept inside.
#[test]
fn kept_of_loops_is_what_their_bodies_keep() {
    let kept = names(false, |b| {
        let carry = param(b, "carry", &[("d", 4)]);
        let stacked = param(b, "stacked", &[("layer", 3), ("d", 4)]);
        let [used, unused] = ["used", "unused"].map(|name| param(b, name, &[("d", 4)]));
        let scalar = ("i".into(), Type::scalar(DType::I32));
        let args = ["c", "s", "u", "n"].map(|name| (Name::from(name), ty(&[("d", 4)])));
        let (body, a) = b.open(&[&[scalar][..], &args].concat());
        let product = b.mul(a[1], a[2]);
        b.set_name(product, "product");
        let product = b.mul(product, a[3]);
        let sum = b.add(product, a[4]);
        b.close(vec![sum]);
        let l = Loop {
            axis: "layer".into(),
            trip: 3,
            block: None,
            reverse: false,
            microbatches: false,
            carries: 1,
            stacked: 1,
            stacked_outs: 0,
            body,
        };
        let y = b.repeat(l, &[carry, stacked, used, unused], "y")[0];
        b.compare(CompareOp::Lt, y, carry);
    });
    assert_eq!(kept, ["stacked", "used", "c", "s", "u", "product"]);
}
