//! The gradient of an extra operand of the score, such as a learned bias:
//!
//! ```text
//! de = Σ over the dimensions the extra lacks   p ∘ (dp − delta) ∘ d(score)/d(extra)
//! ```
//! A tile is a block of queries and keys, of those that the extra has: one place of its gradient. The others are walked in
//! their order within the tile, so that the sum has one order for any number of threads.

use super::grad::{Block, Queries, Scratch, builder, clear, for_summed, kept_and_summed};
use super::*;
use crate::kernels::loops::for_vectors_carried;
use crate::kir::Kernel;
use crate::program::AttentionGradSpec;

/// The positions of a tile, and the sums of their gradients.
struct Tile<'a> {
    spec: &'a AttentionGradSpec,
    plan: &'a Plan<'a>,
    scratch: &'a Scratch,
    /// `queries × KEYS`: a tile's own positions, or what is still to be summed over.
    sums: Mem,
    has_query: bool,
    has_key: bool,
    /// All queries of the tile, and all its keys.
    queries: (Value, Value),
    keys: (Value, Value),
}

pub(super) fn extra_kernel(spec: &AttentionGradSpec, plan: &Plan) -> Kernel {
    let s = &spec.shape;
    let n = s.batch.len();
    let strides = &spec.outputs[0].strides;
    let (has_query, has_key) = (strides[n + 1] != 0, strides[n + 2] != 0);
    let (kept, summed) = kept_and_summed(&[&s.batch[..], &[s.group]].concat(), strides);
    let blocks = |has: bool, size: u64, block: u64| if has { size.div_ceil(block) } else { 1 };
    let last = [blocks(has_query, s.sq, plan.queries), blocks(has_key, s.sk, KEYS)];
    let sizes = [&kept[..], &last].concat();
    let mut b = builder(spec, sizes.iter().product());
    let scratch = Scratch::along_keys(&mut b, plan);
    let sums = b.scratch("dextra", DType::F32, plan.queries * KEYS);
    b.for_tiles(|b, tile| {
        let mut place = unflatten(b, tile, &sizes);
        let key_block = place.pop().expect("a tile has a key block");
        let query_block = place.pop().expect("a tile has a query block");
        let range = |b: &mut Builder, has: bool, block: Value, size: u64, total: u64| {
            let (zero, end) = (b.index(0), b.index(total));
            if !has {
                return (zero, end);
            }
            let first = b.mul_const(block, size as i64);
            let len = length(b, first, size, end);
            (first, b.add(first, len))
        };
        let queries = range(b, has_query, query_block, plan.queries, s.sq);
        let keys = range(b, has_key, key_block, KEYS, s.sk);
        let tile = Tile { spec, plan, scratch: &scratch, sums, has_query, has_key, queries, keys };
        clear(b, plan, sums, plan.queries, KEYS);
        for_summed(b, &place, &summed, |b, place| tile.accumulate(b, place));
        tile.store(b, &place);
    });
    b.finish()
}

impl Tile<'_> {
    /// Adds what one batch entry and head (the last of `place`) has to add.
    fn accumulate(&self, b: &mut Builder, place: &[Value]) {
        let (plan, zero) = (self.plan, b.index(0));
        let (&head, batch) = place.split_last().expect("a place has a head");
        let block = Block { spec: self.spec, plan, scratch: self.scratch, batch, along: Along::Keys };
        let (first, end) = self.queries;
        b.for_each(first, end, plan.queries as i64, |b, query| {
            let rows = length(b, query, plan.queries, end);
            let queries = Queries { head, query, rows, slot: zero };
            block.take_queries(b, &queries);
            let (lo, hi) = self.keys_seen(b, query, rows);
            b.for_each(lo, hi, KEYS as i64, |b, key| {
                let keys = length(b, key, KEYS, hi);
                block.take_keys(b, key, keys);
                block.probabilities(b, &queries, key, keys);
                b.for_each(zero, rows, 1, |b, i| {
                    let row = b.mul_const(i, KEYS as i64);
                    self.add_row(b, self.scratch.ds, row, row, keys);
                });
            });
        });
    }

    /// The tile's keys that the bound lets these queries see; all of its block if any, so that it stays aligned.
    fn keys_seen(&self, b: &mut Builder, query: Value, rows: Value) -> (Value, Value) {
        let last = b.add(query, rows);
        let (lo, hi) = self.plan.keys_of(b, query, last);
        if !self.has_key {
            return (lo, hi);
        }
        let (first, end) = self.keys;
        let (lo, hi) = (b.max(lo, first), b.min(hi, end));
        let (seen, zero, one) = (b.sub(hi, lo), b.index(0), b.index(1));
        let any = clamp(b, seen, zero, one);
        let all = b.sub(end, first);
        let len = b.mul(any, all);
        (first, b.add(first, len))
    }

    /// `sums[to..] += from[at..]`, `count` elements.
    fn add_row(&self, b: &mut Builder, from: Mem, at: Value, to: Value, count: Value) {
        let lanes = self.plan.lanes;
        for_vectors_carried(b, count, lanes, &[], |b, j, active, _| {
            let [from, to] = [(from, at), (self.sums, to)].map(|(mem, start)| {
                let index = b.add(start, j);
                At { mem, index, stride: None }
            });
            let (x, sum) = (b.load_at(from, lanes, active), b.load_at(to, lanes, active));
            let sum = b.add(sum, x);
            b.store_at(to, sum, active);
            Vec::new()
        });
    }

    /// Sums over what the extra lacks of the block, and writes the rest.
    fn store(&self, b: &mut Builder, place: &[Value]) {
        let (plan, operand) = (self.plan, &self.spec.outputs[0]);
        let (zero, one, block) = (b.index(0), b.index(1), b.index(KEYS));
        if !self.has_query {
            let rows = b.index(plan.queries);
            b.for_each(one, rows, 1, |b, i| {
                let row = b.mul_const(i, KEYS as i64);
                self.add_row(b, self.sums, row, zero, block);
            });
        }
        let (first_query, end) = self.queries;
        let rows = if self.has_query { b.sub(end, first_query) } else { one };
        let (first_key, end) = self.keys;
        let keys = b.sub(end, first_key);
        let n = place.len();
        let to = at(b, operand, &[place, &[first_query, first_key]].concat());
        b.for_each(zero, rows, 1, |b, i| {
            let row = b.mul_const(i, KEYS as i64);
            let to = offset_by(b, to, &[(i, operand.strides[n])]);
            if self.has_key {
                let stride = operand.strides[n + 1];
                for_vectors_carried(b, keys, plan.lanes, &[], |b, j, active, _| {
                    let index = b.add(row, j);
                    let value = b.load_at(At { mem: self.sums, index, stride: None }, plan.lanes, active);
                    let to = offset_by(b, to, &[(j, stride)]);
                    store_along(b, mem(operand), to, stride, plan.lanes, value, active);
                    Vec::new()
                });
            } else {
                let nothing = b.const_float(Type::F32, 0.0);
                let sum = b.for_carried(zero, block, 1, &[nothing], |b, j, sum| {
                    let index = b.add(row, j);
                    let value = b.load(self.sums, index, 1);
                    vec![b.add(sum[0], value)]
                });
                store_along(b, mem(operand), to, 1, 1, sum[0], None);
            }
        });
    }
}
