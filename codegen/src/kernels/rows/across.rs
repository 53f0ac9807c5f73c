//! Rows whose vectors run along a kept dimension: each lane is one row.

use super::reduce::Reduction;
use super::{Cursor, PER_ROW, Plan, Vector};
use crate::kernels::buffers::unflatten;
use crate::kernels::region::{Scope, same_lanes};
use crate::kir::{Builder, Kernel, Value};

/// Rows of the reduced space added plainly before their sum joins the compensated one.
const BLOCK_STEPS: u64 = 64;
/// Tiles wanted before a tile takes more than one vector of columns.
const TILES_WANTED: u64 = 8;

/// The kernel; a tile is a block of vectors along the kept dimension `column`, at one index of the other kept ones.
pub fn kernel(plan: &Plan, column: usize) -> Kernel {
    let size = plan.kept[column].size;
    let lanes = u64::from(plan.lanes).min(size.next_power_of_two());
    let n_vectors = size.div_ceil(lanes);
    let others: Vec<usize> = (0..plan.kept.len()).filter(|&d| d != column).collect();
    let n_others: u64 = others.iter().map(|&d| plan.kept[d].size).product();
    let fits = |width: &u64| n_vectors % width == 0 && n_others * n_vectors / width >= TILES_WANTED;
    let width = [8, 4, 2].into_iter().find(fits).unwrap_or(1);

    let mut b = plan.builder(n_others * n_vectors / width);
    let start = plan.start(&mut b);
    let mut scope = Scope::new(&plan.spec.region);
    scope.hoist(&mut b, &mut start.clone(), &plan.levels, 0, 0);
    b.for_tiles(|b, tile| {
        let sizes: Vec<u64> = others.iter().map(|&d| plan.kept[d].size).chain([n_vectors / width]).collect();
        let indices = unflatten(b, tile, &sizes);
        let mut cursor = start.clone();
        for (&dim, &index) in others.iter().zip(&indices) {
            cursor.go_kept(b, dim, index);
        }
        cursor.vector = Vector::Kept(column);
        cursor.lanes = lanes as u32;
        let first = b.mul_const(indices[others.len()], width as i64);
        let columns = (0..width).map(|u| {
            let vector = b.add_const(first, u as i64);
            let at = b.mul_const(vector, lanes as i64);
            let mut cursor = cursor.clone();
            cursor.go_kept(b, column, at);
            if size % lanes != 0 {
                let end = b.index(size);
                let left = b.sub(end, at);
                let most = b.index(lanes);
                cursor.count = Some(b.min(left, most));
            }
            Column { cursor, scope: scope.clone() }
        });
        let mut columns: Vec<Column> = columns.collect();
        emit_columns(b, plan, &mut columns);
    });
    b.finish()
}

/// One vector of rows.
#[derive(Clone)]
struct Column<'p, 'a> {
    cursor: Cursor<'p, 'a>,
    scope: Scope<'a>,
}

impl<'p, 'a> Column<'p, 'a> {
    /// The same at one index of the reduced space.
    fn at(&self, b: &mut Builder, plan: &Plan, flat: Value) -> Column<'p, 'a> {
        let mut moved = self.clone();
        let sizes: Vec<u64> = plan.reduced.iter().map(|d| d.size).collect();
        for (dim, index) in unflatten(b, flat, &sizes).into_iter().enumerate() {
            moved.cursor.go_reduced(b, dim, index);
        }
        moved
    }
}

fn emit_columns(b: &mut Builder, plan: &Plan, columns: &mut [Column]) {
    let passes = plan.passes();
    for (stage, reductions) in passes.iter().enumerate() {
        for c in columns.iter_mut() {
            c.scope.hoist(b, &mut c.cursor, &plan.levels, PER_ROW, stage);
        }
        let values = reduce(b, plan, columns, reductions);
        for (c, values) in columns.iter_mut().zip(values.chunks(reductions.len())) {
            for (reduction, &value) in reductions.iter().zip(values) {
                c.scope.set(reduction.id, value);
            }
        }
    }
    for c in columns.iter_mut() {
        c.scope.hoist(b, &mut c.cursor, &plan.levels, PER_ROW, passes.len());
    }
    let outputs = plan.element_outputs();
    if !outputs.is_empty() {
        b.for_range(plan.n_reduced(), |b, flat| {
            for c in columns.iter() {
                let mut c = c.at(b, plan, flat);
                for &o in &outputs {
                    let value = c.scope.get(b, &mut c.cursor, plan.spec.region.results[o]);
                    c.cursor.store(b, o, value);
                }
            }
        });
    }
    for c in columns.iter_mut() {
        for o in plan.row_outputs() {
            let value = c.scope.get(b, &mut c.cursor, plan.spec.region.results[o]);
            c.cursor.store(b, o, value);
        }
    }
}

/// Values of the reductions, those of the first column first.
fn reduce(b: &mut Builder, plan: &Plan, columns: &[Column], reductions: &[Reduction]) -> Vec<Value> {
    let all: Vec<&Reduction> = columns.iter().flat_map(|_| reductions).collect();
    let lanes = columns[0].cursor.lanes;
    let n = plan.n_reduced();
    if n <= BLOCK_STEPS {
        let (lo, hi) = (b.index(0), b.index(n));
        return block(b, plan, columns, reductions, lo, hi);
    }
    let init: Vec<Value> = all.iter().flat_map(|r| r.start(b, lanes)).collect();
    let (zero, end) = (b.index(0), b.index(n));
    let last = b.for_carried(zero, end, BLOCK_STEPS as i64, &init, |b, lo, state| {
        let next = b.add_const(lo, BLOCK_STEPS as i64);
        let hi = b.min(next, end);
        let sums = block(b, plan, columns, reductions, lo, hi);
        let mut state = state;
        let mut next = Vec::new();
        for (reduction, sum) in all.iter().zip(sums) {
            let (own, rest) = state.split_at(reduction.state_len());
            next.extend(reduction.add_block(b, own, sum));
            state = rest;
        }
        next
    });
    let mut state = &last[..];
    let mut values = Vec::new();
    for reduction in all {
        let (own, rest) = state.split_at(reduction.state_len());
        values.push(reduction.finish(b, own));
        state = rest;
    }
    values
}

/// Plain sums over `lo..hi` of the flattened reduced space.
fn block(
    b: &mut Builder,
    plan: &Plan,
    columns: &[Column],
    reductions: &[Reduction],
    lo: Value,
    hi: Value,
) -> Vec<Value> {
    let lanes = columns[0].cursor.lanes;
    let init: Vec<Value> = columns.iter().flat_map(|_| reductions).map(|r| r.identity(b, lanes)).collect();
    b.for_carried(lo, hi, 1, &init, |b, flat, sums| {
        let mut next = Vec::new();
        for (c, sums) in columns.iter().zip(sums.chunks(reductions.len())) {
            let mut c = c.at(b, plan, flat);
            for (reduction, &sum) in reductions.iter().zip(sums) {
                let value = c.scope.get(b, &mut c.cursor, reduction.operand);
                let [value, sum] = same_lanes(b, [value, sum]);
                next.push(reduction.join(b, sum, value));
            }
        }
        next
    })
}
