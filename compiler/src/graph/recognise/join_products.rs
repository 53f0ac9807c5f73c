//! One product in the place of a sum of products.
//!
//! `dot[a](q1, k1) + dot[b](q2, k2)` is `dot[ab](q, k)` where q is q1 and q2 laid end to end along an axis `ab`, and k is k1
//! and k2. An operand that lacks axes of its neighbour, as keys with positions that all heads share, is repeated.
//!
//! Source: DeepSeek-AI 2024 (DeepSeek-V2, arXiv:2405.04434), §2.1.3: queries and keys there are such concatenations.

use super::recognise_attention::Product;
use crate::graph::shape::union_type;
use crate::graph::{Axis, Builder, Name, Op, Type, ValueId};

/// The joint product of several, each over one axis.
pub(super) fn join_products(b: &mut Builder, products: &[Product]) -> Product {
    let axes: Vec<Name> = products.iter().map(|p| p.over[0].clone()).collect();
    let [q, k] =
        [|p: &Product| p.q, |p: &Product| p.k].map(|side| products.iter().map(side).collect::<Vec<_>>());
    let joint = joint_name(b, &axes, &[&q[..], &k].concat());
    let q = end_to_end(b, &q, &axes, &joint);
    let k = end_to_end(b, &k, &axes, &joint);
    Product { q, k, over: vec![joint] }
}

/// The names one behind the other, or more of it if an operand has such an axis.
fn joint_name(b: &Builder, axes: &[Name], operands: &[ValueId]) -> Name {
    let names: Vec<&str> = axes.iter().map(Name::as_str).collect();
    let mut name = names.join("_");
    while operands.iter().any(|v| b.ty(*v).has(&name)) {
        name.push('_');
    }
    name.into()
}

/// The operands one behind the other along `joint`, which takes the place of each one's own axis.
fn end_to_end(b: &mut Builder, operands: &[ValueId], axes: &[Name], joint: &Name) -> ValueId {
    let of_others: Vec<Type> =
        operands.iter().zip(axes).map(|(v, axis)| b.ty(*v).without(std::slice::from_ref(axis))).collect();
    let rest = union_type(b.ty(operands[0]).dtype, &of_others.iter().collect::<Vec<_>>());
    let mut parts = Vec::new();
    for (operand, axis) in operands.iter().zip(axes) {
        let mut ty = rest.clone();
        let size = b.ty(*operand).size_of(axis).expect("it is contracted");
        ty.axes.push(Axis::new(axis, size));
        parts.push(b.broadcast(*operand, &ty));
    }
    b.one(Op::Concat { parts: axes.to_vec(), axis: joint.clone() }, &parts, None, "joint")
}
