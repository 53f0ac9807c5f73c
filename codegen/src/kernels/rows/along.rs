//! Rows whose vectors run along the innermost reduced dimension.

use super::reduce::Reduction;
use super::{Cursor, PER_OUTER, PER_ROW, Plan, TILE_ELEMENTS, Vector};
use crate::kernels::buffers::unflatten;
use crate::kernels::region::{Scope, same_lanes};
use crate::kir::{Builder, CompareOp, Kernel, Value};

/// Independent accumulators, enough to cover the latency of an addition.
const ACCUMULATORS: u64 = 4;
/// Most elements one accumulator lane adds plainly.
const BLOCK_STEPS: u64 = 64;

/// The kernel; a tile is a block of rows.
pub fn kernel(plan: &Plan) -> Kernel {
    let n_rows: u64 = plan.kept.iter().map(|d| d.size).product();
    let rows_per_tile = (TILE_ELEMENTS / plan.n_reduced().max(1)).min(n_rows / 64).max(1);
    let mut b = plan.builder(n_rows.div_ceil(rows_per_tile));
    let start = plan.start(&mut b);
    let mut scope = Scope::new(&plan.spec.region);
    scope.hoist(&mut b, &mut start.clone(), &plan.levels, 0, 0);
    b.for_tiles(|b, tile| {
        let lo = b.mul_const(tile, rows_per_tile as i64);
        let next = b.add_const(lo, rows_per_tile as i64);
        let end = b.index(n_rows);
        let hi = b.min(next, end);
        b.for_each(lo, hi, 1, |b, row| emit_row(b, plan, &start, row, scope.clone()));
    });
    b.finish()
}

fn emit_row(b: &mut Builder, plan: &Plan, start: &Cursor, row: Value, mut scope: Scope) {
    let mut cursor = start.clone();
    let sizes: Vec<u64> = plan.kept.iter().map(|d| d.size).collect();
    for (dim, index) in unflatten(b, row, &sizes).into_iter().enumerate() {
        cursor.go_kept(b, dim, index);
    }
    let passes = plan.passes();
    for (stage, reductions) in passes.iter().enumerate() {
        scope.hoist(b, &mut cursor, &plan.levels, PER_ROW, stage);
        let row = Row { plan, cursor: &cursor, scope: &scope, stage, reductions };
        let values = row.reduce(b);
        for (reduction, value) in reductions.iter().zip(values) {
            scope.set(reduction.id, value);
        }
    }
    scope.hoist(b, &mut cursor, &plan.levels, PER_ROW, passes.len());
    let outputs = plan.element_outputs();
    if !outputs.is_empty() {
        Row { plan, cursor: &cursor, scope: &scope, stage: passes.len(), reductions: &[] }.store(b, &outputs);
    }
    for o in plan.row_outputs() {
        let value = scope.get(b, &mut cursor, plan.spec.region.results[o]);
        cursor.store(b, o, value);
    }
}

/// One pass over one row.
struct Row<'r, 'p, 'a> {
    plan: &'p Plan<'a>,
    cursor: &'r Cursor<'p, 'a>,
    scope: &'r Scope<'a>,
    stage: usize,
    reductions: &'r [Reduction],
}

impl<'p, 'a> Row<'_, 'p, 'a> {
    /// Size of the innermost reduced dimension; 1 if there is none.
    fn columns(&self) -> u64 {
        self.plan.reduced.last().map_or(1, |d| d.size)
    }

    fn lanes(&self) -> u32 {
        u64::from(self.plan.lanes).min(self.columns().next_power_of_two()) as u32
    }

    fn n_outer(&self) -> u64 {
        self.plan.reduced.iter().rev().skip(1).map(|d| d.size).product()
    }

    /// The values of this pass's reductions.
    fn reduce(&self, b: &mut Builder) -> Vec<Value> {
        let lanes = self.lanes();
        let block_len = BLOCK_STEPS * ACCUMULATORS * u64::from(lanes);
        let n_blocks = self.columns().div_ceil(block_len);
        let n_parts = n_blocks * self.n_outer();
        let columns = b.index(self.columns());
        if n_parts == 1 {
            let zero = b.index(0);
            let sums = self.block(b, zero, zero, columns);
            return self.reductions.iter().zip(sums).map(|(r, v)| r.across(b, v)).collect();
        }
        let init: Vec<Value> = self.reductions.iter().flat_map(|r| r.start(b, lanes)).collect();
        let (lo, hi) = (b.index(0), b.index(n_parts));
        let last = b.for_carried(lo, hi, 1, &init, |b, part, state| {
            let indices = unflatten(b, part, &[self.n_outer(), n_blocks]);
            let (lo, hi) = if n_blocks == 1 {
                (b.index(0), columns)
            } else {
                let lo = b.mul_const(indices[1], block_len as i64);
                let next = b.add_const(lo, block_len as i64);
                (lo, b.min(next, columns))
            };
            let sums = self.block(b, indices[0], lo, hi);
            let mut state = state;
            let mut next = Vec::new();
            for (reduction, sum) in self.reductions.iter().zip(sums) {
                let (own, rest) = state.split_at(reduction.state_len());
                next.extend(reduction.add_block(b, own, sum));
                state = rest;
            }
            next
        });
        let mut state = &last[..];
        let mut values = Vec::new();
        for reduction in self.reductions {
            let (own, rest) = state.split_at(reduction.state_len());
            let lanes = reduction.finish(b, own);
            values.push(reduction.across(b, lanes));
            state = rest;
        }
        values
    }

    /// The cursor and scope at one index of the outer reduced dimensions.
    fn outer(&self, b: &mut Builder, outer: Value) -> (Cursor<'p, 'a>, Scope<'a>) {
        let mut cursor = self.cursor.clone();
        let n = self.plan.reduced.len().saturating_sub(1);
        let sizes: Vec<u64> = self.plan.reduced[..n].iter().map(|d| d.size).collect();
        for (dim, index) in unflatten(b, outer, &sizes).into_iter().enumerate() {
            cursor.go_reduced(b, dim, index);
        }
        let mut scope = self.scope.clone();
        scope.hoist(b, &mut cursor, &self.plan.levels, PER_OUTER, self.stage);
        (cursor, scope)
    }

    /// Lane sums over columns `lo..hi`, at most one block, by [`ACCUMULATORS`] interleaved accumulators.
    fn block(&self, b: &mut Builder, outer: Value, lo: Value, hi: Value) -> Vec<Value> {
        let (cursor, scope) = self.outer(b, outer);
        let lanes = self.lanes();
        let step = u64::from(lanes);
        let n = self.reductions.len();
        let identities: Vec<Value> = self.reductions.iter().map(|r| r.identity(b, lanes)).collect();
        let join = |b: &mut Builder, at: Value, count: Option<Value>, sums: &[Value]| -> Vec<Value> {
            let (mut cursor, mut scope) = self.vector(b, &cursor, &scope, at, count);
            let mut next = Vec::new();
            for (reduction, &sum) in self.reductions.iter().zip(sums) {
                let value = scope.get(b, &mut cursor, reduction.operand);
                let [value, sum] = same_lanes(b, [value, sum]);
                let value = count.map_or(value, |count| reduction.keep(b, value, count));
                next.push(reduction.join(b, sum, value));
            }
            next
        };

        let mut at = lo;
        let mut sums = identities.clone();
        if self.columns() >= ACCUMULATORS * step {
            let end = whole_steps(b, lo, hi, ACCUMULATORS * step);
            let init: Vec<Value> = (0..ACCUMULATORS).flat_map(|_| identities.clone()).collect();
            let all = b.for_carried(lo, end, (ACCUMULATORS * step) as i64, &init, |b, column, sums| {
                let mut next = Vec::new();
                for u in 0..ACCUMULATORS {
                    let at = b.add_const(column, (u * step) as i64);
                    next.extend(join(b, at, None, &sums[u as usize * n..][..n]));
                }
                next
            });
            sums = tree(b, self.reductions, &all);
            at = end;
        }
        if self.columns() >= step && self.columns() % (ACCUMULATORS * step) >= step {
            let end = whole_steps(b, at, hi, step);
            sums = b.for_carried(at, end, step as i64, &sums, |b, column, sums| join(b, column, None, sums));
            at = end;
        }
        if self.columns() % step != 0 {
            let is_left = b.compare(CompareOp::Lt, at, hi);
            sums = b.if_else(
                is_left,
                |b| {
                    let count = b.sub(hi, at);
                    join(b, at, Some(count), &sums)
                },
                |_| sums.clone(),
            );
        }
        sums
    }

    /// Stores the element-level outputs of the row.
    fn store(&self, b: &mut Builder, outputs: &[usize]) {
        let step = u64::from(self.lanes());
        b.for_range(self.n_outer(), |b, outer| {
            let (cursor, scope) = self.outer(b, outer);
            let store = |b: &mut Builder, at: Value, count: Option<Value>| {
                let (mut cursor, mut scope) = self.vector(b, &cursor, &scope, at, count);
                let values: Vec<Value> = outputs
                    .iter()
                    .map(|&o| scope.get(b, &mut cursor, self.plan.spec.region.results[o]))
                    .collect();
                for (&o, value) in outputs.iter().zip(values) {
                    cursor.store(b, o, value);
                }
            };
            let (zero, columns) = (b.index(0), b.index(self.columns()));
            let whole = b.index(self.columns() / step * step);
            if self.columns() >= step {
                b.for_each(zero, whole, step as i64, |b, column| store(b, column, None));
            }
            if self.columns() % step != 0 {
                let count = b.sub(columns, whole);
                store(b, whole, Some(count));
            }
        });
    }

    /// The cursor and scope of one vector of columns.
    fn vector(
        &self,
        b: &mut Builder,
        cursor: &Cursor<'p, 'a>,
        scope: &Scope<'a>,
        at: Value,
        count: Option<Value>,
    ) -> (Cursor<'p, 'a>, Scope<'a>) {
        let mut cursor = cursor.clone();
        if let Some(dim) = self.plan.reduced.len().checked_sub(1) {
            cursor.go_reduced(b, dim, at);
            cursor.vector = Vector::Reduced(dim);
        }
        cursor.lanes = self.lanes();
        cursor.count = count;
        (cursor, scope.clone())
    }
}

/// The largest end of whole steps from `lo` that does not pass `hi`.
fn whole_steps(b: &mut Builder, lo: Value, hi: Value, step: u64) -> Value {
    let length = b.sub(hi, lo);
    let step = b.index(step);
    let n = b.div(length, step);
    let whole = b.mul(n, step);
    b.add(lo, whole)
}

/// Joins the accumulators pairwise.
fn tree(b: &mut Builder, reductions: &[Reduction], all: &[Value]) -> Vec<Value> {
    let mut level: Vec<Vec<Value>> = all.chunks(reductions.len()).map(<[Value]>::to_vec).collect();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| {
                let [x, y] = pair else { return pair[0].clone() };
                reductions.iter().zip(x.iter().zip(y)).map(|(r, (&x, &y))| r.join(b, x, y)).collect()
            })
            .collect();
    }
    level.remove(0)
}
