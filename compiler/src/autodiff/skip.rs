//! Steps that are left out: whether this one is, and where its gradient first went wrong.
//!
//! A step is skipped as a whole. Every update gets one more scalar, 1 or 0, and keeps the old parameter and states where it
//! is 0: they are the same bits as before.

use super::config::Skip;
use super::differentiate::Gradient;
use super::schedule::Scalars;
use crate::graph::{Axis, BinaryOp, Builder, CompareOp, DType, Op, ReduceOp, Type, UnaryOp, ValueId};

/// Whether a value is a finite number.
fn finite(b: &mut Builder, x: ValueId) -> ValueId {
    let size = b.unary(UnaryOp::Abs, x);
    let infinity = b.constant(b.ty(x).dtype, f64::INFINITY);
    b.compare(CompareOp::Lt, size, infinity)
}

/// 1 if the step counts, 0 if it is skipped, f64[].
pub(super) fn applies(
    b: &mut Builder,
    scalars: &mut Scalars,
    skip: &Skip,
    loss: ValueId,
    norm: ValueId,
) -> ValueId {
    let mut conditions = Vec::new();
    if skip.nonfinite {
        conditions.extend([finite(b, loss), finite(b, norm)]);
    }
    if let Some(most) = &skip.norm {
        let most = scalars.number(b, most);
        conditions.push(b.compare(CompareOp::Le, norm, most));
    }
    let [one, zero] = [1.0, 0.0].map(|c| b.constant(DType::F64, c));
    let applies = conditions.into_iter().fold(one, |so_far, holds| b.select(holds, so_far, zero));
    b.set_name(applies, "applies");
    applies
}

/// Which gradient is the first that is not finite, f64[]: its number among the gradients in their order, where one that is
/// stacked over layers counts once per layer; −1 if all are finite. `squares` are sums of squares, one scalar per layer.
pub(super) fn first_nonfinite(b: &mut Builder, gradients: &[Gradient], squares: &[ValueId]) -> ValueId {
    let starts: Vec<u64> =
        squares.iter().scan(0, |next, v| Some(std::mem::replace(next, *next + b.ty(*v).numel()))).collect();
    let mut first = b.constant(DType::F64, -1.0);
    for ((_, square), start) in gradients.iter().zip(squares).zip(&starts).rev() {
        let good = finite(b, *square);
        let start = b.constant(DType::F64, *start as f64);
        let layers = b.ty(*square).axes.clone();
        if layers.is_empty() {
            first = b.select(good, first, start);
            continue;
        }
        let numbers = numbered(b, &layers);
        let count: u64 = layers.iter().map(|a| a.size).product();
        let count = b.constant(DType::F32, count as f64);
        let bad = b.select(good, count, numbers);
        let names: Vec<_> = layers.iter().map(|a| a.name.clone()).collect();
        let layer = b.reduce(ReduceOp::Min, bad, &names);
        let any = b.compare(CompareOp::Lt, layer, count);
        let layer = b.cast(layer, DType::F64);
        let at = b.add(start, layer);
        first = b.select(any, at, first);
    }
    b.set_name(first, "nonfinite");
    first
}

/// The position among all layers, row-major, f32 over these axes: exact up to 2^24 layers.
fn numbered(b: &mut Builder, layers: &[Axis]) -> ValueId {
    let mut so_far: Option<ValueId> = None;
    for axis in layers {
        let index = b.index(&axis.name, axis.size);
        let index = b.cast(index, DType::F32);
        so_far = Some(match so_far {
            None => index,
            Some(outer) => {
                let outer = b.scale(outer, axis.size as f64);
                let ty = Type::new(DType::F32, [&b.ty(outer).axes[..], std::slice::from_ref(axis)].concat());
                b.one(Op::Binary(BinaryOp::Add), &[outer, index], Some(ty), "layer")
            }
        });
    }
    so_far.expect("there is an axis")
}
