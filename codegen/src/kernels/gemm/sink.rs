//! Where the sums of a register tile go: into c, into scratch for the next block along k, or through the epilogue.

use super::{Place, Plan, Scratch};
use crate::kernels::buffers::{load_along, mem, offset_by, store_along};
use crate::kernels::map::ramp;
use crate::kernels::region::{Scope, Source};
use crate::kir::{BinaryOp, Builder, CompareOp, Elem, Mem, Value};
use crate::program::Operand;
use crate::program::region::ScalarId;

/// The sink of one tile.
pub struct Sink<'a> {
    pub plan: &'a Plan<'a>,
    pub scratch: &'a Scratch,
    pub place: &'a Place,
    /// Rows and columns of this tile.
    pub rows: Value,
    pub columns: Value,
    /// Whether this is not the first block along k: sums are added to those in scratch.
    pub is_later: Value,
}

impl Sink<'_> {
    /// Takes the sums of the register tile at (row, column) of this tile.
    pub fn store(&self, b: &mut Builder, row: Value, column: Value, sums: &[Value]) {
        let k = &self.plan.blocks;
        if self.scratch.sums.is_some() {
            return self.store_to_scratch(b, row, column, sums);
        }
        let is_direct = self.plan.stores_sums() && self.c_is_contiguous();
        let whole = |b: &mut Builder| {
            if is_direct {
                self.store_direct(b, row, column, sums);
            } else {
                let (rows, columns) = (b.index(k.mr), b.index(k.nr));
                self.store_staged(b, row, column, sums, rows, columns, false);
            }
        };
        let never_cut =
            k.tile_rows_are_whole(self.plan.left.size) && k.tile_columns_are_whole(self.plan.right.size);
        if never_cut {
            return whole(b);
        }
        let (rows_left, columns_left) = (b.sub(self.rows, row), b.sub(self.columns, column));
        let (mr, nr) = (b.index(k.mr), b.index(k.nr));
        let rows_fit = b.compare(CompareOp::Ge, rows_left, mr);
        let columns_fit = b.compare(CompareOp::Ge, columns_left, nr);
        let fits = b.binary(BinaryOp::And, rows_fit, columns_fit);
        b.if_else(
            fits,
            |b| {
                whole(b);
                Vec::new()
            },
            |b| {
                let (rows, columns) = (b.min(rows_left, mr), b.min(columns_left, nr));
                self.store_staged(b, row, column, sums, rows, columns, true);
                Vec::new()
            },
        );
    }

    fn n(&self) -> usize {
        self.plan.spec.batch.len()
    }

    /// Strides of an operand over (row, column) of this plan.
    fn strides(&self, operand: &Operand) -> (u64, u64) {
        let (m, n) = (operand.strides[self.n()], operand.strides[self.n() + 1]);
        let (row, column) = if self.plan.is_swapped { (n, m) } else { (m, n) };
        // A single column may have any stride, also 0, which would read as a broadcast.
        (row, if self.plan.right.size == 1 { 1 } else { column })
    }

    fn c_is_contiguous(&self) -> bool {
        self.strides(&self.plan.spec.c).1 == 1
    }

    /// Address of an operand's element at (row, column) of this tile.
    fn address(&self, b: &mut Builder, operand: &Operand, row: Value, column: Value) -> Value {
        let (row_stride, column_stride) = self.strides(operand);
        let base = b.index(operand.offset);
        let mut terms: Vec<(Value, u64)> =
            self.place.batch.iter().zip(&operand.strides).map(|(&i, &s)| (i, s)).collect();
        terms.extend([(self.place.row, row_stride), (self.place.column, column_stride)]);
        terms.extend([(row, row_stride), (column, column_stride)]);
        offset_by(b, base, &terms)
    }

    /// Registers to c as they are.
    fn store_direct(&self, b: &mut Builder, row: Value, column: Value, sums: &[Value]) {
        let c = &self.plan.spec.c;
        let (row_stride, _) = self.strides(c);
        let at = self.address(b, c, row, column);
        let lanes = u64::from(self.plan.lanes);
        let vectors = (self.plan.blocks.nr / lanes) as usize;
        let places: Vec<Value> = (0..sums.len())
            .map(|i| {
                let offset = (i / vectors) as u64 * row_stride + (i % vectors) as u64 * lanes;
                b.add_const(at, offset as i64)
            })
            .collect();
        self.store_all(b, mem(c), &places, sums, self.plan.spec.accumulate);
    }

    /// Registers to the scratch sums, which have room for whole register tiles.
    fn store_to_scratch(&self, b: &mut Builder, row: Value, column: Value, sums: &[Value]) {
        let Some(to) = self.scratch.sums else { return };
        let k = &self.plan.blocks;
        let lanes = u64::from(self.plan.lanes);
        let vectors = (k.nr / lanes) as usize;
        let at = b.mul_const(row, k.tile_columns as i64);
        let at = b.add(at, column);
        let places: Vec<Value> = (0..sums.len())
            .map(|i| {
                let offset = (i / vectors) as u64 * k.tile_columns + (i % vectors) as u64 * lanes;
                b.add_const(at, offset as i64)
            })
            .collect();
        b.if_else(
            self.is_later,
            |b| {
                self.store_all(b, to, &places, sums, true);
                Vec::new()
            },
            |b| {
                self.store_all(b, to, &places, sums, false);
                Vec::new()
            },
        );
    }

    fn store_all(&self, b: &mut Builder, to: Mem, places: &[Value], sums: &[Value], adds: bool) {
        for (&at, &sum) in places.iter().zip(sums) {
            let sum = if adds {
                let old = b.load(to, at, self.plan.lanes);
                b.add(old, sum)
            } else {
                sum
            };
            b.store(to, at, sum);
        }
    }

    /// Registers to c through a register tile in scratch, row by row.
    fn store_staged(
        &self,
        b: &mut Builder,
        row: Value,
        column: Value,
        sums: &[Value],
        rows: Value,
        columns: Value,
        is_cut: bool,
    ) {
        let k = &self.plan.blocks;
        let lanes = u64::from(self.plan.lanes);
        for (i, &sum) in (0..).zip(sums) {
            let at = b.index(i * lanes);
            b.store(self.scratch.micro, at, sum);
        }
        let from = Staged { mem: self.scratch.micro, row_len: k.nr };
        self.finish(b, &from, (row, column), (rows, columns), is_cut, k.nr);
    }

    /// The scratch sums of the whole tile to c.
    pub fn finish_tile(&self, b: &mut Builder) {
        let Some(mem) = self.scratch.sums else { return };
        let k = &self.plan.blocks;
        let zero = b.index(0);
        let is_cut = self.plan.right.size % u64::from(self.plan.lanes) != 0;
        let from = Staged { mem, row_len: k.tile_columns };
        self.finish(b, &from, (zero, zero), (self.rows, self.columns), is_cut, k.tile_columns);
    }

    /// Sums in scratch to c, row by row: adds, applies the epilogue, stores. `is_cut`: the last vector of a row may be
    /// partial.
    fn finish(
        &self,
        b: &mut Builder,
        from: &Staged,
        at: (Value, Value),
        size: (Value, Value),
        is_cut: bool,
        max_columns: u64,
    ) {
        let lanes = u64::from(self.plan.lanes);
        let zero = b.index(0);
        b.for_each(zero, size.0, 1, |b, i| {
            let row = b.add(at.0, i);
            let start = b.mul_const(i, from.row_len as i64);
            let vector = |b: &mut Builder, j: Value| {
                let index = b.add(start, j);
                let sum = b.load(from.mem, index, self.plan.lanes);
                let column = b.add(at.1, j);
                let count = is_cut.then(|| {
                    let left = b.sub(size.1, j);
                    let most = b.index(lanes);
                    b.min(left, most)
                });
                self.finish_vector(b, row, column, sum, count);
            };
            if b.known(size.1) == Some(max_columns as i64) && max_columns <= 4 * lanes {
                for j in (0..max_columns).step_by(lanes as usize) {
                    let j = b.index(j);
                    vector(b, j);
                }
            } else {
                b.for_each(zero, size.1, lanes as i64, |b, j| vector(b, j));
            }
        });
    }

    fn finish_vector(&self, b: &mut Builder, row: Value, column: Value, sum: Value, count: Option<Value>) {
        let spec = self.plan.spec;
        let lanes = self.plan.lanes;
        let at = self.address(b, &spec.c, row, column);
        let stride = self.strides(&spec.c).1;
        let sum = if spec.accumulate {
            let old = load_along(b, mem(&spec.c), at, stride, lanes, count);
            let old = b.convert(self.plan.elem, old);
            b.add(old, sum)
        } else {
            sum
        };
        let value = match &spec.epilogue {
            None => sum,
            Some(region) => {
                let mut source = Epilogue { sink: self, row, column, sum, count };
                Scope::new(region).get(b, &mut source, result_of(region))
            }
        };
        store_along(b, mem(&spec.c), at, stride, lanes, value, count);
    }
}

fn result_of(region: &crate::program::Region) -> ScalarId {
    region.results[0]
}

/// Sums waiting in scratch.
struct Staged {
    mem: Mem,
    row_len: u64,
}

struct Epilogue<'a> {
    sink: &'a Sink<'a>,
    row: Value,
    column: Value,
    sum: Value,
    count: Option<Value>,
}

impl Source for Epilogue<'_> {
    fn input(&mut self, b: &mut Builder, i: u32) -> Value {
        if i == 0 {
            return self.sum;
        }
        let operand = &self.sink.plan.spec.extras[i as usize - 1];
        let at = self.sink.address(b, operand, self.row, self.column);
        let stride = self.sink.strides(operand).1;
        load_along(b, mem(operand), at, stride, self.sink.plan.lanes, self.count)
    }

    fn index(&mut self, b: &mut Builder, dim: u32) -> Value {
        let (n, dim) = (self.sink.n(), dim as usize);
        if dim < n {
            return b.convert(Elem::I32, self.sink.place.batch[dim]);
        }
        let is_row = (dim == n) != self.sink.plan.is_swapped;
        if is_row {
            let row = b.add(self.sink.place.row, self.row);
            b.convert(Elem::I32, row)
        } else {
            let column = b.add(self.sink.place.column, self.column);
            ramp(b, column, self.sink.plan.lanes)
        }
    }
}
