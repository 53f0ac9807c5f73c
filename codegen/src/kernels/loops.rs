//! Loop shapes several kernels share.

use crate::kir::{Builder, CompareOp, Value};

/// Vectors over `0..n`: whole ones in a loop, then a partial one with its number of active lanes.
pub fn for_vectors(b: &mut Builder, n: u64, lanes: u32, body: impl Fn(&mut Builder, Value, Option<Value>)) {
    let step = u64::from(lanes);
    let whole = n / step * step;
    if whole == step {
        let zero = b.index(0);
        body(b, zero, None);
    } else if whole > 0 {
        let (zero, end) = (b.index(0), b.index(whole));
        b.for_each(zero, end, i64::from(lanes), |b, at| body(b, at, None));
    }
    if n > whole {
        let (at, count) = (b.index(whole), b.index(n - whole));
        body(b, at, Some(count));
    }
}

/// `[part·size, min(part·size + size, end))`.
pub fn part_of(b: &mut Builder, part: Value, size: u64, end: u64) -> (Value, Value) {
    let lo = b.mul_const(part, size as i64);
    let next = b.add_const(lo, size as i64);
    if end % size == 0 {
        return (lo, next);
    }
    let end = b.index(end);
    let hi = b.min(next, end);
    (lo, hi)
}

/// As [`for_vectors`] with a bound known at run time only and carried values.
pub fn for_vectors_carried(
    b: &mut Builder,
    n: Value,
    lanes: u32,
    init: &[Value],
    body: impl Fn(&mut Builder, Value, Option<Value>, &[Value]) -> Vec<Value>,
) -> Vec<Value> {
    let step = b.index(u64::from(lanes));
    let count = b.rem(n, step);
    let whole = b.sub(n, count);
    let zero = b.index(0);
    let carried = b.for_carried(zero, whole, i64::from(lanes), init, |b, at, c| body(b, at, None, c));
    let is_left = b.compare(CompareOp::Gt, count, zero);
    b.if_else(is_left, |b| body(b, whole, Some(count), &carried), |_| carried.clone())
}
