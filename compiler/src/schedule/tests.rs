//! Tests of the order.

use super::{dependences, order, respects};
use crate::cost::Target;
use crate::fuse::{self, Item};
use crate::graph::{Axis, Builder, DType, Graph, Init, Op, Output, ReduceOp, Type};

fn ty(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect())
}

/// Two lookups at the start, the second needed only at the end.
fn early_lookup() -> Graph {
    let mut b = Builder::new("early");
    let ids = b.input("tokens", Type::new(DType::I32, vec![Axis::new("seq", 4)]), 5);
    let table = b.one(
        Op::Param { path: "embed".into(), init: Init::Constant(0.0) },
        &[],
        Some(ty(&[("vocab", 5), ("d", 8)])),
        "embed",
    );
    let w = b.one(
        Op::Param { path: "w".into(), init: Init::Constant(0.0) },
        &[],
        Some(ty(&[("d", 8), ("e", 8)])),
        "w",
    );
    let positions = b.one(
        Op::Param { path: "late".into(), init: Init::Constant(0.0) },
        &[],
        Some(ty(&[("vocab", 5), ("d", 8)])),
        "positions",
    );
    let late = b.one(Op::Gather { axis: "vocab".into() }, &[positions, ids], None, "late");
    let x = b.one(Op::Gather { axis: "vocab".into() }, &[table, ids], None, "x");
    let y = b.dot(x, w, &["d".into()]);
    let y = b.softmax(y, &"e".into()).unwrap();
    let z = b.dot(y, w, &["e".into()]);
    let z = b.softmax(z, &"d".into()).unwrap();
    let out = b.mul(z, late);
    let sum = b.reduce(ReduceOp::Sum, out, &["seq".into()]);
    b.output(Output::Report("sum".into()), sum);
    b.finish()
}

fn names(schedule: &super::Schedule) -> Vec<String> {
    schedule
        .fused
        .body
        .iter()
        .filter_map(|item| match item {
            Item::Group(id) => {
                let v = schedule.fused.group(*id).writes[0].value?;
                Some(schedule.fused.graph.value_name(v).to_string())
            }
            Item::Start(_) | Item::Done(_) | Item::Loop { .. } | Item::Turned { .. } => None,
        })
        .collect()
}

#[test]
fn order_puts_a_value_off_until_it_is_read() {
    let fused = fuse::group(&early_lookup()).unwrap();
    let before = fused.body.clone();
    let schedule = order(fused, &Target::default());
    assert_ne!(schedule.fused.body, before);
    let names = names(&schedule);
    let at = |name: &str| names.iter().position(|n| n == name).unwrap();
    assert!(at("late") > at("t.10"), "{names:?}");
}

#[test]
fn order_keeps_dependences() {
    let fused = fuse::group(&early_lookup()).unwrap();
    let dag = dependences(&fused, &fused.body, None);
    let schedule = order(fused.clone(), &Target::default());
    let positions: Vec<usize> = schedule
        .fused
        .body
        .iter()
        .map(|item| fused.body.iter().position(|other| other == item).unwrap())
        .collect();
    assert!(respects(&dag, &positions));
    let mut backwards: Vec<usize> = (0..fused.body.len()).collect();
    backwards.reverse();
    assert!(!respects(&dag, &backwards));
}
