//! One product in the place of a sum of products.
//!
//! `dot[a](q1, k1) + dot[b](q2, k2)` is `dot[ab](q, k)` where q is q1 and q2 laid end to end along an axis `ab`, and k is k1
//! and k2. Each is looked up by its position along the joint axis: the first `size(a)` positions come from the first
//! operand. An operand that lacks axes of its neighbour, as keys with positions that all heads share, is repeated.
//!
//! Source: DeepSeek-AI 2024 (DeepSeek-V2, arXiv:2405.04434), §2.1.3: queries and keys there are such concatenations.

use super::recognise_attention::Product;
use crate::graph::shape::union_type;
use crate::graph::{Axis, BinaryOp, Builder, CompareOp, DType, Name, Op, Type, ValueId};

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
    let sizes: Vec<u64> =
        operands.iter().zip(axes).map(|(v, a)| b.ty(*v).size_of(a).expect("it is contracted")).collect();
    let total: u64 = sizes.iter().sum();
    let at = b.index(joint, total);
    let mut result: Option<ValueId> = None;
    let mut end = 0;
    for ((operand, axis), size) in operands.iter().zip(axes).zip(&sizes) {
        let part = part(b, *operand, axis, at, end, *size);
        let begin = end;
        end += size;
        result = Some(match result {
            None => part,
            Some(before) => {
                let begin = b.constant(DType::I32, begin as f64);
                let is_before = b.compare(CompareOp::Lt, at, begin);
                let mut ty = union_type(b.ty(part).dtype, &[b.ty(before), b.ty(part)]);
                // The contracted axis last, as in the operands.
                ty.axes.retain(|a| a.name != *joint);
                ty.axes.push(Axis::new(joint, total));
                b.one(Op::Select, &[is_before, before, part], Some(ty), "joint")
            }
        });
    }
    result.expect("there are several products")
}

/// `operand` looked up at `at − begin` along its axis; its first or last element beyond its ends, which nobody reads.
fn part(b: &mut Builder, operand: ValueId, axis: &Name, at: ValueId, begin: u64, size: u64) -> ValueId {
    let mut ids = at;
    for (op, bound) in [(BinaryOp::Sub, begin), (BinaryOp::Max, 0), (BinaryOp::Min, size - 1)] {
        let bound = b.constant(DType::I32, bound as f64);
        ids = b.binary(op, ids, bound);
    }
    let mut ty: Type = b.ty(operand).without(std::slice::from_ref(axis));
    ty.axes.extend(b.ty(at).axes.clone());
    b.one(Op::Gather { axis: axis.clone() }, &[operand, ids], Some(ty), "part")
}
