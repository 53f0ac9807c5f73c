//! `Scatter`: row accumulation, the transpose of a lookup.
//!
//! Tiles own positions of the axis, so no two of them write one element and the order of additions is that of the
//! iteration space. A tile clears what it owns (unless it accumulates), then reads every id in order and adds the rows
//! of its own. Positions are dealt out in short runs, because frequent ids (of a vocabulary sorted by frequency) lie
//! close together.

use super::buffers::{Buffers, extent, load_along, mem, offset_by, step, store_along};
use super::gather::walk;
use super::loops::{for_vectors, part_of};
use super::space::{Dim, dims_of, merge};
use crate::kir::{BinaryOp, Builder, CompareOp, Elem, Kernel, Type, Value};
use crate::program::ScatterSpec;
use crate::target::Target;

/// Neighbouring positions owned by one tile.
const RUN: u64 = 64;
/// Most tiles: each reads all ids.
const MAX_TILES: u64 = 32;

/// Positions in a dimension's strides.
const OUT: usize = 0;
const UPDATES: usize = 1;
const IDS: usize = 2;

/// Expands an accumulation.
pub fn scatter(spec: &ScatterSpec, target: &Target) -> Kernel {
    let plan = Plan::new(spec, target);
    let mut b = Builder::new(plan.n_tiles, 0);
    let mut buffers = Buffers::default();
    buffers.read("updates", &spec.updates, &spec.dims);
    buffers.read("ids", &spec.ids, &spec.dims);
    let len = extent(&spec.out, &spec.dims) + (spec.axis_size - 1) * spec.axis_stride;
    buffers.add("out", &spec.out, len, true, true);
    buffers.declare(&mut b);
    b.for_tiles(|b, tile| {
        if !spec.accumulate {
            plan.clear(b, tile);
        }
        plan.add(b, tile);
    });
    b.finish()
}

struct Plan<'a> {
    spec: &'a ScatterSpec,
    n_tiles: u64,
    n_runs: u64,
    id_dims: Vec<Dim>,
    row_dims: Vec<Dim>,
    lanes: u32,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a ScatterSpec, target: &Target) -> Plan<'a> {
        let strides = [&spec.out.strides[..], &spec.updates.strides, &spec.ids.strides];
        let n = spec.dims.len();
        let id_dims = merge(dims_of(&spec.dims, 0..spec.id_dims, &strides, &|_| false));
        let mut row_dims = dims_of(&spec.dims, spec.id_dims..n, &strides, &|_| false);
        row_dims.sort_by_key(|d| std::cmp::Reverse(d.strides[OUT]));
        let n_runs = spec.axis_size.div_ceil(RUN);
        Plan {
            spec,
            n_tiles: n_runs.min(MAX_TILES),
            n_runs,
            id_dims,
            row_dims: merge(row_dims),
            lanes: target.lanes(spec.out.dtype.bytes().max(4)),
        }
    }

    fn start(&self, b: &mut Builder) -> Vec<Value> {
        [&self.spec.out, &self.spec.updates, &self.spec.ids].map(|o| b.index(o.offset)).to_vec()
    }

    /// Zeros in every element of `out` at the positions this tile owns.
    fn clear(&self, b: &mut Builder, tile: Value) {
        // Of the ids' dimensions only those that `out` has too.
        let mut dims: Vec<Dim> =
            self.id_dims.iter().chain(&self.row_dims).filter(|d| d.strides[OUT] != 0).cloned().collect();
        dims.sort_by_key(|d| std::cmp::Reverse(d.strides[OUT]));
        let has_row = dims.last().is_some_and(|d| d.strides[OUT] < self.spec.axis_stride);
        let inner = if has_row { dims.pop() } else { None };
        let n_outer: u64 = dims.iter().map(|d| d.size).product();
        let end = b.index(self.n_runs);
        b.for_each(tile, end, self.n_tiles as i64, |b, run| {
            let (lo, hi) = part_of(b, run, RUN, self.spec.axis_size);
            b.for_range(n_outer, |b, flat| {
                let start = self.start(b);
                let at = walk(b, &start, &dims, flat)[OUT];
                match &inner {
                    Some(inner) => self.clear_rows(b, at, lo, hi, inner),
                    None => self.clear_positions(b, at, lo, hi),
                }
            });
        });
    }

    fn clear_rows(&self, b: &mut Builder, at: Value, lo: Value, hi: Value, inner: &Dim) {
        let lanes = u64::from(self.lanes).min(inner.size.next_power_of_two()) as u32;
        b.for_each(lo, hi, 1, |b, position| {
            let at = offset_by(b, at, &[(position, self.spec.axis_stride)]);
            for_vectors(b, inner.size, lanes, |b, column, count| {
                let at = offset_by(b, at, &[(column, inner.strides[OUT])]);
                let zero = self.zero(b, lanes);
                store_along(b, mem(&self.spec.out), at, inner.strides[OUT], lanes, zero, count);
            });
        });
    }

    fn clear_positions(&self, b: &mut Builder, at: Value, lo: Value, hi: Value) {
        let stride = self.spec.axis_stride;
        b.for_each(lo, hi, i64::from(self.lanes), |b, position| {
            let at = offset_by(b, at, &[(position, stride)]);
            let left = b.sub(hi, position);
            let most = b.index(u64::from(self.lanes));
            let count = b.min(left, most);
            let zero = self.zero(b, self.lanes);
            store_along(b, mem(&self.spec.out), at, stride, self.lanes, zero, Some(count));
        });
    }

    fn zero(&self, b: &mut Builder, lanes: u32) -> Value {
        let ty = Type::vector(b.elem(mem(&self.spec.out)), lanes);
        b.constant(ty, 0.0)
    }

    /// Adds the rows whose ids this tile owns, in order.
    fn add(&self, b: &mut Builder, tile: Value) {
        let n_ids: u64 = self.id_dims.iter().map(|d| d.size).product();
        b.for_range(n_ids, |b, flat| {
            let start = self.start(b);
            let mut at = walk(b, &start, &self.id_dims, flat);
            let id = b.load(mem(&self.spec.ids), at[IDS], 1);
            let id = b.convert(Elem::I64, id);
            let is_ours = self.owns(b, tile, id);
            at[OUT] = offset_by(b, at[OUT], &[(id, self.spec.axis_stride)]);
            b.if_then(is_ours, |b| self.add_row(b, &at));
        });
    }

    /// Whether the id lies on the axis, in a run of this tile.
    fn owns(&self, b: &mut Builder, tile: Value, id: Value) -> Value {
        let (zero, size) = (b.index(0), b.index(self.spec.axis_size));
        let not_below = b.compare(CompareOp::Ge, id, zero);
        let not_above = b.compare(CompareOp::Lt, id, size);
        let is_inside = b.binary(BinaryOp::And, not_below, not_above);
        let shift = b.index(u64::from(RUN.trailing_zeros()));
        let run = b.binary(BinaryOp::ShrS, id, shift);
        let n_tiles = b.index(self.n_tiles);
        let owner = b.rem(run, n_tiles);
        let is_owner = b.compare(CompareOp::Eq, owner, tile);
        b.binary(BinaryOp::And, is_inside, is_owner)
    }

    fn add_row(&self, b: &mut Builder, at: &[Value]) {
        let Some((inner, outer)) = self.row_dims.split_last() else {
            return self.add_vector(b, at, &[1, 1], 1, None);
        };
        let n_outer: u64 = outer.iter().map(|d| d.size).product();
        let lanes = u64::from(self.lanes).min(inner.size.next_power_of_two()) as u32;
        b.for_range(n_outer, |b, flat| {
            let at = walk(b, at, outer, flat);
            for_vectors(b, inner.size, lanes, |b, column, count| {
                let at = step(b, &at, &inner.strides, column);
                self.add_vector(b, &at, &inner.strides, lanes, count);
            });
        });
    }

    fn add_vector(&self, b: &mut Builder, at: &[Value], strides: &[u64], lanes: u32, count: Option<Value>) {
        let (out, updates) = (mem(&self.spec.out), mem(&self.spec.updates));
        let update = load_along(b, updates, at[UPDATES], strides[UPDATES], lanes, count);
        let update = b.convert(b.elem(out), update);
        let update = if b.ty(update).lanes == lanes { update } else { b.splat(update, lanes) };
        let held = load_along(b, out, at[OUT], strides[OUT], lanes, count);
        let sum = b.add(held, update);
        store_along(b, out, at[OUT], strides[OUT], lanes, sum, count);
    }
}
