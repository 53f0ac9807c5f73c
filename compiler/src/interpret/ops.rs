//! The primitive ops on arrays. Each function gets its result's type, so axes come out in the written order.

use super::array::{Array, Data, dense_strides, for_each_row};
use super::number::{self, Number, UNCERTAIN};
use crate::graph::{Axis, BinaryOp, CompareOp, DType, Name, Pairs, ReduceOp, Type, UnaryOp};
use std::sync::Arc;

pub(super) fn is_float(dtype: DType) -> bool {
    match dtype {
        DType::F32 | DType::F64 | DType::Bf16 => true,
        DType::I32 | DType::I64 | DType::Bool => false,
    }
}

/// A scalar constant.
pub(super) fn constant<N: Number>(ty: &Type, value: f64) -> Array<N> {
    if is_float(ty.dtype) {
        Array::floats(ty.clone(), vec![N::given(ty.dtype, value)])
    } else {
        Array::ints(ty.clone(), vec![number::to_int(ty.dtype, value)])
    }
}

/// Positions along the only axis of `ty`.
pub(super) fn index<N: Number>(ty: &Type) -> Array<N> {
    Array::ints(ty.clone(), (0..ty.numel() as i64).collect())
}

/// All 0.
pub(super) fn zeros<N: Number>(ty: &Type) -> Array<N> {
    let n = ty.numel() as usize;
    if is_float(ty.dtype) {
        Array::floats(ty.clone(), vec![N::given(ty.dtype, 0.0); n])
    } else {
        Array::ints(ty.clone(), vec![0; n])
    }
}

/// Element by element over the axes of `ty`; `f` gets one element of each operand.
fn zip<const K: usize, A: Copy, R>(
    ty: &Type,
    data: [&[A]; K],
    strides: [&[usize]; K],
    offsets: [usize; K],
    mut f: impl FnMut([A; K]) -> R,
) -> Vec<R> {
    let mut out = Vec::with_capacity(ty.numel() as usize);
    for_each_row(&ty.axes, strides, offsets, |at, n, steps| {
        out.extend((0..n).map(|i| f(std::array::from_fn(|k| data[k][at[k] + i * steps[k]]))));
    });
    out
}

pub(super) fn unary<N: Number>(ty: &Type, op: UnaryOp, a: &Array<N>) -> Array<N> {
    let strides = a.strides_for(&ty.axes);
    match &a.data {
        Data::Float(v) => {
            let out = zip(ty, [v.as_slice()], [&strides], [a.offset], |[x]| N::unary(ty.dtype, op, x));
            Array::floats(ty.clone(), out)
        }
        Data::Int(v) => {
            let out = zip(ty, [v.as_slice()], [&strides], [a.offset], |[x]| match op {
                UnaryOp::Not => x ^ 1,
                UnaryOp::Neg => number::wrap(ty.dtype, x.wrapping_neg()),
                UnaryOp::Abs => number::wrap(ty.dtype, x.wrapping_abs()),
                // Functions of floats leave integers alone; the verifier keeps them apart.
                UnaryOp::Exp
                | UnaryOp::Log
                | UnaryOp::Sqrt
                | UnaryOp::Rsqrt
                | UnaryOp::Tanh
                | UnaryOp::Sigmoid
                | UnaryOp::Sin
                | UnaryOp::Cos
                | UnaryOp::Erf
                | UnaryOp::Floor => x,
            });
            Array::ints(ty.clone(), out)
        }
    }
}

pub(super) fn binary<N: Number>(ty: &Type, op: BinaryOp, a: &Array<N>, b: &Array<N>) -> Array<N> {
    let (sa, sb) = (a.strides_for(&ty.axes), b.strides_for(&ty.axes));
    let offsets = [a.offset, b.offset];
    match &a.data {
        Data::Float(v) => {
            let data = [v.as_slice(), b.float_data()];
            let out = zip(ty, data, [&sa, &sb], offsets, |[x, y]| N::binary(ty.dtype, op, x, y));
            Array::floats(ty.clone(), out)
        }
        Data::Int(v) => {
            let data = [v.as_slice(), b.int_data()];
            let out = zip(ty, data, [&sa, &sb], offsets, |[x, y]| number::int_binary(ty.dtype, op, x, y));
            Array::ints(ty.clone(), out)
        }
    }
}

pub(super) fn compare<N: Number>(ty: &Type, op: CompareOp, a: &Array<N>, b: &Array<N>) -> Array<N> {
    let (sa, sb) = (a.strides_for(&ty.axes), b.strides_for(&ty.axes));
    let offsets = [a.offset, b.offset];
    let out = match &a.data {
        Data::Float(v) => {
            zip(ty, [v.as_slice(), b.float_data()], [&sa, &sb], offsets, |[x, y]| N::compare(op, x, y))
        }
        Data::Int(v) => {
            zip(ty, [v.as_slice(), b.int_data()], [&sa, &sb], offsets, |[x, y]| number::int_compare(op, x, y))
        }
    };
    Array::ints(ty.clone(), out)
}

pub(super) fn select<N: Number>(ty: &Type, condition: &Array<N>, a: &Array<N>, b: &Array<N>) -> Array<N> {
    // The condition is of another element type than the branches, so it is laid out first.
    let truths = condition.dense_ints(&ty.axes);
    let (sa, sb) = (a.strides_for(&ty.axes), b.strides_for(&ty.axes));
    let offsets = [a.offset, b.offset];
    let mut truth = truths.into_iter();
    let mut next = || truth.next().expect("one truth per element");
    match &a.data {
        Data::Float(v) => {
            let out = zip(ty, [v.as_slice(), b.float_data()], [&sa, &sb], offsets, |[x, y]| {
                let t = next();
                let (taken, left) = if t & 1 == 1 { (x, y) } else { (y, x) };
                if t & UNCERTAIN == 0 { taken } else { N::uncertain(taken, left) }
            });
            Array::floats(ty.clone(), out)
        }
        Data::Int(v) => {
            let out = zip(ty, [v.as_slice(), b.int_data()], [&sa, &sb], offsets, |[x, y]| {
                if next() & 1 == 1 { x } else { y }
            });
            Array::ints(ty.clone(), out)
        }
    }
}

pub(super) fn cast<N: Number>(ty: &Type, a: &Array<N>) -> Array<N> {
    let from = a.ty.dtype;
    let strides = a.strides_for(&ty.axes);
    match (&a.data, is_float(ty.dtype)) {
        (Data::Float(v), true) => {
            let out = zip(ty, [v.as_slice()], [&strides], [a.offset], |[x]| N::cast(from, ty.dtype, x));
            Array::floats(ty.clone(), out)
        }
        (Data::Float(v), false) => {
            let out =
                zip(ty, [v.as_slice()], [&strides], [a.offset], |[x]| number::to_int(ty.dtype, x.value()));
            Array::ints(ty.clone(), out)
        }
        (Data::Int(v), true) => {
            let out = zip(ty, [v.as_slice()], [&strides], [a.offset], |[x]| {
                let t = if from == DType::Bool { x & 1 } else { x };
                let made = N::given(ty.dtype, t as f64);
                let other = N::given(ty.dtype, (t ^ 1) as f64);
                if from == DType::Bool && x & UNCERTAIN != 0 { N::uncertain(made, other) } else { made }
            });
            Array::floats(ty.clone(), out)
        }
        (Data::Int(v), false) => {
            let out = zip(ty, [v.as_slice()], [&strides], [a.offset], |[x]| match ty.dtype {
                DType::Bool => i64::from(x != 0),
                _ if from == DType::Bool => x & 1,
                other => number::wrap(other, x),
            });
            Array::ints(ty.clone(), out)
        }
    }
}

/// Renames axes; the elements stay where they are.
pub(super) fn rename<N: Number>(ty: &Type, pairs: &[(Name, Name)], a: &Array<N>) -> Array<N> {
    let mut renamed = a.clone();
    for (from, to) in pairs {
        if let Some(i) = a.ty.position(from) {
            renamed.ty.axes[i].name = to.clone();
        }
    }
    renamed.viewed_as(ty)
}

/// Reduces over the axes that `ty` lacks.
pub(super) fn reduce<N: Number>(ty: &Type, op: ReduceOp, a: &Array<N>) -> Array<N> {
    let gone: Vec<Axis> = a.ty.axes.iter().filter(|x| !ty.has(&x.name)).cloned().collect();
    let (outer, inner) = (a.strides_for(&ty.axes), a.strides_for(&gone));
    match &a.data {
        Data::Float(v) => {
            let out =
                zip_offsets(ty, &outer, a.offset, |at| reduce_floats(ty.dtype, op, v, &gone, &inner, at));
            Array::floats(ty.clone(), out)
        }
        Data::Int(v) => {
            let out = zip_offsets(ty, &outer, a.offset, |at| reduce_ints(ty.dtype, op, v, &gone, &inner, at));
            Array::ints(ty.clone(), out)
        }
    }
}

/// As [`zip`], with the element's place instead of the element.
fn zip_offsets<R>(ty: &Type, strides: &[usize], offset: usize, mut f: impl FnMut(usize) -> R) -> Vec<R> {
    let mut out = Vec::with_capacity(ty.numel() as usize);
    for_each_row(&ty.axes, [strides], [offset], |[at], n, [step]| {
        out.extend((0..n).map(|i| f(at + i * step)));
    });
    out
}

fn reduce_floats<N: Number>(
    dtype: DType,
    op: ReduceOp,
    data: &[N],
    axes: &[Axis],
    strides: &[usize],
    at: usize,
) -> N {
    let by = match op {
        ReduceOp::Sum => {
            let mut sum = N::empty();
            for_each_row(axes, [strides], [at], |[at], n, [step]| {
                for i in 0..n {
                    N::append(&mut sum, data[at + i * step]);
                }
            });
            return N::total(dtype, sum);
        }
        ReduceOp::Max => BinaryOp::Max,
        ReduceOp::Min => BinaryOp::Min,
    };
    let start = if op == ReduceOp::Max { f64::NEG_INFINITY } else { f64::INFINITY };
    let mut best = N::given(DType::F64, start);
    for_each_row(axes, [strides], [at], |[at], n, [step]| {
        for i in 0..n {
            best = N::binary(dtype, by, best, data[at + i * step]);
        }
    });
    best
}

fn reduce_ints(dtype: DType, op: ReduceOp, data: &[i64], axes: &[Axis], strides: &[usize], at: usize) -> i64 {
    let (by, start) = match op {
        ReduceOp::Sum => (BinaryOp::Add, 0),
        ReduceOp::Max => (BinaryOp::Max, i64::MIN),
        ReduceOp::Min => (BinaryOp::Min, i64::MAX),
    };
    let mut out = start;
    for_each_row(axes, [strides], [at], |[at], n, [step]| {
        for i in 0..n {
            let x = data[at + i * step];
            // The start lies outside i32, so the first element is taken as it is.
            out = if out == start && op != ReduceOp::Sum { x } else { number::int_binary(dtype, by, out, x) };
        }
    });
    out
}

/// Sum over shared axes of products: both sides are laid out as `[shared, m, k]` and `[shared, k, n]`, then the row of
/// `n` sums is the inner loop, which the machine does in vectors.
pub(super) fn dot<N: Number>(ty: &Type, over: &[Name], a: &Array<N>, b: &Array<N>) -> Array<N> {
    let axes_of = |x: &Array<N>, keep: &dyn Fn(&Axis) -> bool| -> Vec<Axis> {
        x.ty.axes.iter().filter(|axis| keep(axis)).cloned().collect()
    };
    let count = |axes: &[Axis]| axes.iter().map(|x| x.size as usize).product::<usize>();
    let summed = axes_of(a, &|x| over.contains(&x.name));
    let shared = axes_of(a, &|x| !over.contains(&x.name) && b.ty.has(&x.name));
    let rows = axes_of(a, &|x| !b.ty.has(&x.name));
    let columns = axes_of(b, &|x| !a.ty.has(&x.name));
    let left = a.dense_floats(&[&shared[..], &rows, &summed].concat());
    let right = b.dense_floats(&[&shared[..], &summed, &columns].concat());
    let (m, n, k) = (count(&rows), count(&columns), count(&summed));
    let mut out = Vec::with_capacity(ty.numel() as usize);
    for s in 0..count(&shared) {
        for i in 0..m {
            let mut sums = vec![N::empty(); n];
            for (l, x) in left[(s * m + i) * k..][..k].iter().enumerate() {
                let row = &right[(s * k + l) * n..][..n];
                for (sum, y) in sums.iter_mut().zip(row) {
                    N::accumulate(sum, *x, *y);
                }
            }
            out.extend(sums.into_iter().map(|sum| N::total(ty.dtype, sum)));
        }
    }
    let order = [&shared[..], &rows, &columns].concat();
    Array::floats(Type::new(ty.dtype, order), out).viewed_as(ty)
}

/// An id outside the axis gives 0.
pub(super) fn gather<N: Number>(ty: &Type, axis: &Name, table: &Array<N>, ids: &Array<N>) -> Array<N> {
    let size = table.ty.size_of(axis).expect("checked by the shape rule") as i64;
    let along = table.stride(axis);
    let ids = ids.dense_ints(&ty.axes);
    let strides = table.strides_for(&ty.axes);
    let mut id = ids.into_iter();
    let mut place = |at: usize| {
        let id = id.next().expect("one id per element");
        (0..size).contains(&id).then(|| at + along * id as usize)
    };
    match &table.data {
        Data::Float(v) => {
            let zero = N::given(ty.dtype, 0.0);
            let out = zip_offsets(ty, &strides, table.offset, |at| place(at).map_or(zero, |at| v[at]));
            Array::floats(ty.clone(), out)
        }
        Data::Int(v) => {
            let out = zip_offsets(ty, &strides, table.offset, |at| place(at).map_or(0, |at| v[at]));
            Array::ints(ty.clone(), out)
        }
    }
}

/// The sum of the elements before each along an axis, itself included or not.
pub(super) fn cumsum<N: Number>(
    ty: &Type,
    axis: &Name,
    exclusive: bool,
    reverse: bool,
    x: &Array<N>,
) -> Array<N> {
    let last = [ty.axes[ty.position(axis).expect("checked by the shape rule")].clone()];
    let rest = ty.without(std::slice::from_ref(axis)).axes;
    let order = Type::new(ty.dtype, [&rest[..], &last].concat());
    let n = last[0].size as usize;
    let places = |i: usize| if reverse { n - 1 - i } else { i };
    match &x.data {
        Data::Float(_) => {
            let mut values = x.dense_floats(&order.axes);
            for row in values.chunks_mut(n) {
                let mut sum = N::empty();
                for i in (0..n).map(places) {
                    let x = row[i];
                    let before = N::total(ty.dtype, sum);
                    N::append(&mut sum, x);
                    row[i] = if exclusive { before } else { N::total(ty.dtype, sum) };
                }
            }
            Array::floats(order, values).viewed_as(ty)
        }
        Data::Int(_) => {
            let mut values = x.dense_ints(&order.axes);
            for row in values.chunks_mut(n) {
                let mut sum = 0;
                for i in (0..n).map(places) {
                    let before = sum;
                    sum = number::int_binary(ty.dtype, BinaryOp::Add, sum, row[i]);
                    row[i] = if exclusive { before } else { sum };
                }
            }
            Array::ints(order, values).viewed_as(ty)
        }
    }
}

/// Adds updates in row-major order of the updates' axes; an id outside the axis is skipped.
pub(super) fn scatter_add<N: Number>(ty: &Type, axis: &Name, updates: &Array<N>, ids: &Array<N>) -> Array<N> {
    let size = ty.size_of(axis).expect("checked by the shape rule") as i64;
    let axes = &updates.ty.axes;
    let out_strides = dense_strides(&ty.axes);
    let place = |name: &str| ty.position(name).map_or(0, |i| out_strides[i]);
    let along = place(axis);
    let strides: Vec<usize> = axes.iter().map(|a| place(&a.name)).collect();
    let ids = ids.dense_ints(axes);
    let places = zip_offsets(&updates.ty, &strides, 0, |at| at);
    let targets = places
        .into_iter()
        .zip(&ids)
        .map(|(at, id)| if (0..size).contains(id) { Some(at + along * *id as usize) } else { None });
    match &updates.data {
        Data::Float(_) => {
            let mut sums = vec![N::empty(); ty.numel() as usize];
            for (target, x) in targets.zip(updates.dense_floats(axes)) {
                if let Some(at) = target {
                    N::append(&mut sums[at], x);
                }
            }
            Array::floats(ty.clone(), sums.into_iter().map(|s| N::total(ty.dtype, s)).collect())
        }
        Data::Int(_) => {
            let mut sums = vec![0; ty.numel() as usize];
            for (target, x) in targets.zip(updates.dense_ints(axes)) {
                if let Some(at) = target {
                    sums[at] = number::int_binary(ty.dtype, BinaryOp::Add, sums[at], x);
                }
            }
            Array::ints(ty.clone(), sums)
        }
    }
}

/// (a, b) → (−b, a) for each pair along the axis.
pub(super) fn rotate_pairs<N: Number>(ty: &Type, axis: &Name, pairs: Pairs, a: &Array<N>) -> Array<N> {
    let n = a.ty.size_of(axis).expect("checked by the shape rule") as usize;
    let dense = a.dense_floats(&ty.axes);
    let step = dense_strides(&ty.axes)[ty.position(axis).expect("same axes as the operand")];
    let out = (0..dense.len()).map(|at| {
        let j = at / step % n;
        let (is_first, distance) = match pairs {
            Pairs::Half => (j < n / 2, n / 2),
            Pairs::Interleaved => (j % 2 == 0, 1),
        };
        if is_first {
            N::unary(ty.dtype, UnaryOp::Neg, dense[at + distance * step])
        } else {
            dense[at - distance * step]
        }
    });
    Array::floats(ty.clone(), out.collect())
}

/// The operands end to end along `axis`, which operand i calls `parts[i]`.
pub(super) fn concat<N: Number>(ty: &Type, parts: &[Name], axis: &Name, operands: &[&Array<N>]) -> Array<N> {
    // The whole axis outermost, so that operands follow each other in memory.
    let inner: Vec<Axis> = ty.axes.iter().filter(|a| a.name != *axis).cloned().collect();
    let ordered = |first: &Axis| [std::slice::from_ref(first), &inner].concat();
    let whole = ty.axes.iter().find(|a| a.name == *axis).expect("checked by the shape rule");
    let outermost = Type::new(ty.dtype, ordered(whole));
    let own = |a: &Array<N>, part: &Name| ordered(&Axis::new(part, a.ty.size_of(part).unwrap_or(1)));
    let pieces = operands.iter().zip(parts);
    let joined = if is_float(ty.dtype) {
        Array::floats(outermost, pieces.flat_map(|(a, part)| a.dense_floats(&own(a, part))).collect())
    } else {
        Array::ints(outermost, pieces.flat_map(|(a, part)| a.dense_ints(&own(a, part))).collect())
    };
    joined.viewed_as(ty)
}

/// A stack being written slice by slice.
pub(super) struct Stack<N> {
    ty: Type,
    floats: Vec<N>,
    ints: Vec<i64>,
}

impl<N: Number> Stack<N> {
    /// An empty stack of this type.
    pub fn new(ty: &Type) -> Stack<N> {
        let n = ty.numel() as usize;
        let float = is_float(ty.dtype);
        Stack {
            ty: ty.clone(),
            floats: if float { vec![N::given(ty.dtype, 0.0); n] } else { Vec::new() },
            ints: if float { Vec::new() } else { vec![0; n] },
        }
    }

    /// Writes a slice at `start` along the axis.
    pub fn write(&mut self, axis: &Name, start: usize, slice: &Array<N>) {
        let strides = dense_strides(&self.ty.axes);
        let along = self.ty.position(axis).map_or(0, |i| strides[i]);
        let axes = slice.ty.axes.clone();
        let places: Vec<usize> =
            axes.iter().map(|a| self.ty.position(&a.name).map_or(0, |i| strides[i])).collect();
        let targets = zip_offsets(&slice.ty, &places, start * along, |at| at);
        match &slice.data {
            Data::Float(_) => {
                for (at, x) in targets.into_iter().zip(slice.dense_floats(&axes)) {
                    self.floats[at] = x;
                }
            }
            Data::Int(_) => {
                for (at, x) in targets.into_iter().zip(slice.dense_ints(&axes)) {
                    self.ints[at] = x;
                }
            }
        }
    }

    /// The whole stack.
    pub fn finish(self) -> Array<N> {
        let data = if is_float(self.ty.dtype) {
            Data::Float(Arc::new(self.floats))
        } else {
            Data::Int(Arc::new(self.ints))
        };
        Array { strides: dense_strides(&self.ty.axes), ty: self.ty, offset: 0, data }
    }
}
