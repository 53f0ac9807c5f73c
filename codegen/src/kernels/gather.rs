//! `Gather`: row lookup.
//!
//! Dimensions the ids run along come first, then those of the row itself, merged where contiguous. A tile is a block of
//! ids; each id is read once and its row copied by vectors, or cleared if the id lies outside the axis.

use super::buffers::{Buffers, extent, load_along, mem, offset_by, step, store_along, unflatten};
use super::loops::{for_vectors, part_of};
use super::space::{Dim, dims_of, merge};
use crate::kir::{BinaryOp, Builder, CompareOp, Elem, Kernel, Type, Value};
use crate::program::{GatherSpec, Operand};
use crate::target::Target;

/// Elements of one tile, about.
const TILE_ELEMENTS: u64 = 16 << 10;

/// Positions in a dimension's strides.
const OUT: usize = 0;
const TABLE: usize = 1;
const IDS: usize = 2;

/// Expands a lookup.
pub fn gather(spec: &GatherSpec, target: &Target) -> Kernel {
    let strides = [&spec.out.strides[..], &spec.table.strides, &spec.ids.strides];
    let (id_dims, row_dims) = split(&spec.dims, &strides);
    let n_ids: u64 = id_dims.iter().map(|d| d.size).product();
    let row_len: u64 = row_dims.iter().map(|d| d.size).product();
    let ids_per_tile = (TILE_ELEMENTS / row_len).clamp(1, n_ids);
    let lanes = target.lanes(spec.out.dtype.bytes().max(4));

    let mut b = Builder::new(n_ids.div_ceil(ids_per_tile), 0);
    let mut buffers = Buffers::default();
    let table_len = extent(&spec.table, &spec.dims) + (spec.axis_size - 1) * spec.axis_stride;
    buffers.add("table", &spec.table, table_len, true, false);
    buffers.read("ids", &spec.ids, &spec.dims);
    buffers.write("out", &spec.out, &spec.dims);
    buffers.declare(&mut b);
    b.for_tiles(|b, tile| {
        let (lo, hi) = part_of(b, tile, ids_per_tile, n_ids);
        b.for_each(lo, hi, 1, |b, flat| {
            let start = [&spec.out, &spec.table, &spec.ids].map(|o: &Operand| b.index(o.offset));
            let mut at = walk(b, &start, &id_dims, flat);
            let id = b.load(mem(&spec.ids), at[IDS], 1);
            let id = b.convert(Elem::I64, id);
            let is_inside = in_range(b, id, spec.axis_size);
            at[TABLE] = offset_by(b, at[TABLE], &[(id, spec.axis_stride)]);
            let copy = |b: &mut Builder| {
                copy_row(b, spec, &row_dims, &at, lanes);
                Vec::new()
            };
            let clear = |b: &mut Builder| {
                clear_row(b, spec, &row_dims, &at, lanes);
                Vec::new()
            };
            b.if_else(is_inside, copy, clear);
        });
    });
    b.finish()
}

/// Dimensions of the ids and of the row, each merged; the row's ordered so that the innermost is the most contiguous.
fn split(dims: &[u64], strides: &[&[u64]]) -> (Vec<Dim>, Vec<Dim>) {
    let all = dims_of(dims, 0..dims.len(), strides, &|_| false);
    let (ids, mut row): (Vec<Dim>, Vec<Dim>) = all.into_iter().partition(|d| d.strides[IDS] != 0);
    row.sort_by_key(|d| std::cmp::Reverse(d.strides[OUT]));
    (merge(ids), merge(row))
}

/// The addresses moved to a flat index of `dims`.
pub fn walk(b: &mut Builder, at: &[Value], dims: &[Dim], flat: Value) -> Vec<Value> {
    let sizes: Vec<u64> = dims.iter().map(|d| d.size).collect();
    let mut at = at.to_vec();
    for (dim, index) in dims.iter().zip(unflatten(b, flat, &sizes)) {
        at = step(b, &at, &dim.strides, index);
    }
    at
}

/// Whether an id lies inside the axis.
fn in_range(b: &mut Builder, id: Value, size: u64) -> Value {
    let (zero, size) = (b.index(0), b.index(size));
    let not_below = b.compare(CompareOp::Ge, id, zero);
    let not_above = b.compare(CompareOp::Lt, id, size);
    b.binary(BinaryOp::And, not_below, not_above)
}

fn copy_row(b: &mut Builder, spec: &GatherSpec, row_dims: &[Dim], at: &[Value], lanes: u32) {
    let Some((inner, outer)) = row_dims.split_last() else {
        let value = b.load(mem(&spec.table), at[TABLE], 1);
        return store_along(b, mem(&spec.out), at[OUT], 1, 1, value, None);
    };
    let n_outer: u64 = outer.iter().map(|d| d.size).product();
    let lanes = u64::from(lanes).min(inner.size.next_power_of_two()) as u32;
    b.for_range(n_outer, |b, flat| {
        let at = walk(b, at, outer, flat);
        for_vectors(b, inner.size, lanes, |b, column, count| {
            let at = step(b, &at, &inner.strides, column);
            let value = load_along(b, mem(&spec.table), at[TABLE], inner.strides[TABLE], lanes, count);
            store_along(b, mem(&spec.out), at[OUT], inner.strides[OUT], lanes, value, count);
        });
    });
}

fn clear_row(b: &mut Builder, spec: &GatherSpec, row_dims: &[Dim], at: &[Value], lanes: u32) {
    let zero = |b: &mut Builder, lanes| {
        let ty = Type::vector(b.elem(mem(&spec.out)), lanes);
        b.constant(ty, 0.0)
    };
    let Some((inner, outer)) = row_dims.split_last() else {
        let value = zero(b, 1);
        return store_along(b, mem(&spec.out), at[OUT], 1, 1, value, None);
    };
    let n_outer: u64 = outer.iter().map(|d| d.size).product();
    let lanes = u64::from(lanes).min(inner.size.next_power_of_two()) as u32;
    b.for_range(n_outer, |b, flat| {
        let at = walk(b, at, outer, flat);
        for_vectors(b, inner.size, lanes, |b, column, count| {
            let at = step(b, &at, &inner.strides, column);
            let value = zero(b, lanes);
            store_along(b, mem(&spec.out), at[OUT], inner.strides[OUT], lanes, value, count);
        });
    });
}
