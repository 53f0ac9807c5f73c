//! `Map`: a region over every point of an iteration space.
//!
//! 1. Order dimensions by the first output's stride and merge what can be walked as one, so that the innermost is long
//!    and contiguous in memory.
//! 2. Split the two innermost dimensions `M × D` into blocks; a tile is one block at one index of the outer dimensions.
//! 3. Within a tile, rows in order, vectors along `D`, the last one masked. Region ops are emitted at the outermost loop
//!    they do not change in.

use super::buffers::{Buffers, load_along, mem, offset_by, store_along, store_interleaved, unflatten};
use super::loops::part_of;
use super::region::{Levels, Scope, Source, uses_index};
use super::space::{Dim, dims_of, merge};
use crate::kir::{Builder, Elem, Kernel, Type, Value};
use crate::program::{LoopsSpec, Operand};
use crate::target::Target;

/// Elements of one tile, about: long enough to hide the cost of starting one, short enough to balance threads.
const TILE_ELEMENTS: u64 = 16 << 10;
/// Block sides when some operand runs along another dimension than the vectors: its cache lines are then used whole.
const TRANSPOSE_BLOCK: u64 = 64;

/// Loop levels of region values.
const PER_TILE: usize = 1;
const PER_ROW: usize = 2;
const PER_ELEMENT: usize = 3;

/// Expands a map.
pub fn map(spec: &LoopsSpec, target: &Target) -> Kernel {
    let plan = Plan::new(spec, target);
    let mut b = Builder::new(plan.n_tiles(), spec.n_scalars as usize);
    let mut buffers = Buffers::default();
    spec.inputs.iter().for_each(|o| buffers.read("x", o, &spec.dims));
    spec.outputs.iter().for_each(|o| buffers.write("y", o, &spec.dims));
    buffers.declare(&mut b);
    plan.emit(&mut b);
    b.finish()
}

/// Operands per vector: what [`Target::lanes`] gives for the narrowest register type of the operands.
pub fn lanes_for(spec: &LoopsSpec, target: &Target) -> u32 {
    let all = spec.inputs.iter().chain(&spec.outputs);
    let narrow = all.clone().any(|o| o.dtype.bytes() <= 4) || all.count() == 0;
    target.lanes(if narrow { 4 } else { 8 })
}

struct Plan<'a> {
    spec: &'a LoopsSpec,
    levels: Levels,
    /// All dimensions outside the blocks.
    outer: Vec<Dim>,
    rows: Dim,
    columns: Dim,
    block: (u64, u64),
    lanes: u32,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a LoopsSpec, target: &Target) -> Plan<'a> {
        let strides: Vec<&[u64]> =
            spec.outputs.iter().chain(&spec.inputs).map(|o| o.strides.as_slice()).collect();
        let pinned = |d: usize| uses_index(&spec.region, d);
        let mut dims = dims_of(&spec.dims, 0..spec.dims.len(), &strides, &pinned);
        dims.sort_by_key(|d| std::cmp::Reverse(d.strides.first().copied().unwrap_or(0)));
        let mut outer = merge(dims);
        let none = || Dim { size: 1, strides: vec![0; strides.len()], pinned: None };
        let columns = outer.pop().unwrap_or_else(none);
        let rows = outer.pop().unwrap_or_else(none);
        let lanes = u64::from(lanes_for(spec, target)).min(columns.size.next_power_of_two()) as u32;
        let block = block(&rows, &columns);
        let levels = Levels::new(
            &spec.region,
            &|i| match spec.inputs.get(i as usize) {
                None => 0,
                Some(_) => {
                    let o = spec.outputs.len() + i as usize;
                    level(&outer, &rows, &columns, &|d| d.strides[o] != 0)
                }
            },
            &|dim| level(&outer, &rows, &columns, &|d| d.pinned == Some(dim as usize)),
            0,
        );
        Plan { spec, levels, outer, rows, columns, block, lanes }
    }

    fn n_blocks(&self) -> (u64, u64) {
        (self.rows.size.div_ceil(self.block.0), self.columns.size.div_ceil(self.block.1))
    }

    fn n_tiles(&self) -> u64 {
        let (rows, columns) = self.n_blocks();
        self.outer.iter().map(|d| d.size).product::<u64>() * rows * columns
    }

    fn emit(&self, b: &mut Builder) {
        let mut scope = Scope::new(&self.spec.region);
        let zero = b.index(0);
        let operands: Vec<_> = self.spec.outputs.iter().chain(&self.spec.inputs).collect();
        let at: Vec<Value> = operands.iter().map(|o| b.index(o.offset)).collect();
        let point = Point { plan: self, at, outer: vec![zero; self.outer.len()], row: zero, column: zero };
        let mut start = Cursor { point, lanes: 1, count: None };
        scope.hoist(b, &mut start, &self.levels, 0, 0);
        b.for_tiles(|b, tile| self.tile(b, tile, &start.point, scope));
    }

    fn tile(&self, b: &mut Builder, tile: Value, start: &Point, mut scope: Scope) {
        let (row_blocks, column_blocks) = self.n_blocks();
        let sizes: Vec<u64> = self.outer.iter().map(|d| d.size).chain([row_blocks, column_blocks]).collect();
        let mut index = unflatten(b, tile, &sizes);
        let column_block = index.pop().expect("two block indices");
        let row_block = index.pop().expect("two block indices");
        let mut point = start.clone();
        for o in 0..point.at.len() {
            let terms: Vec<_> = index.iter().zip(&self.outer).map(|(&i, d)| (i, d.strides[o])).collect();
            point.at[o] = offset_by(b, point.at[o], &terms);
        }
        point.outer = index;
        let mut cursor = Cursor { point: point.clone(), lanes: 1, count: None };
        scope.hoist(b, &mut cursor, &self.levels, PER_TILE, 0);

        let (row_lo, row_hi) = part_of(b, row_block, self.block.0, self.rows.size);
        let (lo, hi) = part_of(b, column_block, self.block.1, self.columns.size);
        b.for_each(row_lo, row_hi, 1, |b, row| {
            let mut point = point.clone();
            for (at, o) in point.at.iter_mut().zip(0..) {
                *at = offset_by(b, *at, &[(row, self.rows.strides[o as usize])]);
            }
            point.row = row;
            self.row(b, lo, hi, point, scope);
        });
    }

    fn row(&self, b: &mut Builder, lo: Value, hi: Value, point: Point, mut scope: Scope) {
        let mut cursor = Cursor { point: point.clone(), lanes: 1, count: None };
        scope.hoist(b, &mut cursor, &self.levels, PER_ROW, 0);
        let lanes = u64::from(self.lanes);
        let has_tail = self.columns.size % lanes != 0;
        let full_hi = if has_tail {
            let length = b.sub(hi, lo);
            let size = b.index(lanes);
            let vectors = b.div(length, size);
            let whole = b.mul(vectors, size);
            b.add(lo, whole)
        } else {
            hi
        };
        if self.columns.size >= lanes {
            let scope = scope.clone();
            b.for_each(lo, full_hi, lanes as i64, |b, column| self.vector(b, column, None, &point, scope));
        }
        if has_tail {
            let is_left = b.compare(crate::kir::CompareOp::Lt, full_hi, hi);
            b.if_then(is_left, |b| {
                let count = b.sub(hi, full_hi);
                self.vector(b, full_hi, Some(count), &point, scope);
            });
        }
    }

    fn vector(&self, b: &mut Builder, column: Value, count: Option<Value>, point: &Point, mut scope: Scope) {
        let mut point = point.clone();
        for (at, &stride) in point.at.iter_mut().zip(&self.columns.strides) {
            *at = offset_by(b, *at, &[(column, stride)]);
        }
        point.column = column;
        let mut cursor = Cursor { point, lanes: self.lanes, count };
        let results: Vec<Value> =
            self.spec.region.results.iter().map(|&r| scope.get(b, &mut cursor, r)).collect();
        let mut is_stored = vec![false; results.len()];
        for o in 0..results.len() {
            if let Some(odd) = self.odd_partner(o).filter(|_| self.lanes > 1) {
                let (mem, at) = (mem(&self.spec.outputs[o]), cursor.point.at[o]);
                store_interleaved(b, mem, at, results[o], results[odd], self.lanes, count);
                (is_stored[o], is_stored[odd]) = (true, true);
            }
        }
        for (o, operand) in self.spec.outputs.iter().enumerate().filter(|(o, _)| !is_stored[*o]) {
            let at = cursor.point.at[o];
            store_along(b, mem(operand), at, self.columns.strides[o], self.lanes, results[o], count);
        }
    }

    /// The output that fills the gaps of output `o`: the two of a pair, as in a rotation of neighbouring elements.
    fn odd_partner(&self, o: usize) -> Option<usize> {
        let even = &self.spec.outputs[o];
        let is_partner = |odd: &Operand| {
            odd.buffer == even.buffer && odd.offset == even.offset + 1 && odd.strides == even.strides
        };
        if self.columns.strides[o] != 2 {
            return None;
        }
        self.spec.outputs.iter().position(is_partner)
    }
}

/// Index of the innermost loop whose dimension satisfies `varies`.
fn level(outer: &[Dim], rows: &Dim, columns: &Dim, varies: &dyn Fn(&Dim) -> bool) -> usize {
    if varies(columns) {
        PER_ELEMENT
    } else if varies(rows) {
        PER_ROW
    } else if outer.iter().any(varies) {
        PER_TILE
    } else {
        0
    }
}

fn block(rows: &Dim, columns: &Dim) -> (u64, u64) {
    let is_transposing = rows.strides.iter().zip(&columns.strides).any(|(&r, &c)| r == 1 && c > 1);
    if is_transposing {
        return (TRANSPOSE_BLOCK.min(rows.size), TRANSPOSE_BLOCK.min(columns.size));
    }
    let width = columns.size.min(TILE_ELEMENTS);
    (rows.size.min((TILE_ELEMENTS / width).max(1)), width)
}

/// A place in the iteration space: element address of each operand (outputs first) and the indices so far.
#[derive(Clone)]
struct Point<'a> {
    plan: &'a Plan<'a>,
    at: Vec<Value>,
    outer: Vec<Value>,
    row: Value,
    column: Value,
}

struct Cursor<'a> {
    point: Point<'a>,
    lanes: u32,
    count: Option<Value>,
}

impl Source for Cursor<'_> {
    fn input(&mut self, b: &mut Builder, i: u32) -> Value {
        let plan = self.point.plan;
        let Some(operand) = plan.spec.inputs.get(i as usize) else {
            return b.scalar(i as usize - plan.spec.inputs.len());
        };
        let o = plan.spec.outputs.len() + i as usize;
        let stride = plan.columns.strides[o];
        load_along(b, mem(operand), self.point.at[o], stride, self.lanes, self.count)
    }

    fn index(&mut self, b: &mut Builder, dim: u32) -> Value {
        let plan = self.point.plan;
        let is = |d: &Dim| d.pinned == Some(dim as usize);
        if is(&plan.columns) {
            return ramp(b, self.point.column, self.lanes);
        }
        let index = if is(&plan.rows) {
            Some(self.point.row)
        } else {
            plan.outer.iter().position(is).map(|i| self.point.outer[i])
        };
        let index = index.unwrap_or_else(|| b.index(0));
        b.convert(Elem::I32, index)
    }
}

/// `start + lane`, as i32.
pub fn ramp(b: &mut Builder, start: Value, lanes: u32) -> Value {
    let start = b.convert(Elem::I32, start);
    let start = b.splat(start, lanes);
    let lane = b.iota(Elem::I32, lanes);
    debug_assert_eq!(b.ty(lane), Type { elem: Elem::I32, lanes });
    b.add(start, lane)
}
