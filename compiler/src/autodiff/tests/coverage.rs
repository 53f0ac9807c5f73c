//! No op goes without a checked gradient. What ops there are is read from their declarations, so a new one needs a test in
//! [`super::ops`] or [`super::composites`], or a reason here.

use super::{checked_ops, composites, loops, op_kind, ops};
use crate::graph::{Op, UnaryOp};
use std::collections::BTreeSet;

/// Variants of an enum in its source.
fn variants(source: &str, name: &str) -> Vec<String> {
    let (_, rest) =
        source.split_once(&format!("pub enum {name} {{\n")).unwrap_or_else(|| panic!("no enum {name}"));
    let (body, _) = rest.split_once("\n}").expect("it ends");
    let indented = body.lines().filter_map(|line| line.strip_prefix("    "));
    let starts = indented.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let word = |line: &str| line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_string();
    starts.map(|line| format!("{name}::{}", word(line))).collect()
}

/// Every kind of op, as [`op_kind`] names it.
fn kinds() -> BTreeSet<String> {
    const GRAPH: &str = include_str!("../../graph/mod.rs");
    const SCALAR: &str = include_str!("../../../../codegen/src/program/region.rs");
    const MESH: &str = include_str!("../../graph/mesh.rs");
    let inner = [
        (SCALAR, "UnaryOp"),
        (SCALAR, "BinaryOp"),
        (SCALAR, "ReduceOp"),
        (GRAPH, "CompositeKind"),
        (MESH, "MeshOp"),
    ];
    let outer = variants(GRAPH, "Op").into_iter();
    // These are told apart by what they hold.
    let held = ["Op::Unary", "Op::Binary", "Op::Reduce", "Op::Composite", "Op::Mesh"];
    let outer = outer.filter(|kind| !held.contains(&kind.as_str()));
    outer.chain(inner.into_iter().flat_map(|(source, name)| variants(source, name))).collect()
}

/// Ops without a gradient of their own, and why.
const WITHOUT: [(&str, &[&str]); 5] = [
    ("take nothing", &["Op::Input", "Op::State", "Op::Scalar", "Op::Const", "Op::Index"]),
    (
        "work on truth values and integers",
        &["UnaryOp::Not", "BinaryOp::And", "BinaryOp::Or", "BinaryOp::Rem", "BinaryOp::Threefry"],
    ),
    ("stands behind all gradients", &["Op::Update"]),
    ("go in behind differentiation", &["MeshOp::Reshard", "MeshOp::LocalPart", "MeshOp::Collective"]),
    ("has a kernel of its own for a gradient, compared with that of its meaning", &["CompositeKind::Custom"]),
];

#[test]
fn every_op_and_composite_has_its_gradient_checked() {
    assert_eq!(op_kind(&Op::Unary(UnaryOp::Exp)), "UnaryOp::Exp");
    checked_ops();
    for test in ops::TESTS.iter().chain(composites::TESTS).chain(loops::TESTS) {
        test();
    }
    let checked = checked_ops();
    let kinds = kinds();
    assert!(kinds.len() > 50, "{kinds:?}");
    let unknown: Vec<&String> = checked.difference(&kinds).collect();
    assert!(unknown.is_empty(), "not found among the declarations: {unknown:?}");
    let without: BTreeSet<String> =
        WITHOUT.iter().flat_map(|(_, kinds)| *kinds).map(|kind| kind.to_string()).collect();
    let missing: Vec<&String> = kinds.difference(&checked).filter(|kind| !without.contains(*kind)).collect();
    assert!(missing.is_empty(), "no checked gradient: {missing:?}");
    let needless: Vec<&String> = without.difference(&kinds).chain(without.intersection(&checked)).collect();
    assert!(needless.is_empty(), "a reason without need: {needless:?}");
}
