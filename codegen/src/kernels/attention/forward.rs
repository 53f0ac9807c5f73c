//! Attention, forward.
//!
//! A tile is a block of queries of up to four heads that share keys and values. For each block of keys:
//! scores, with vectors along queries so that every lane is a row of the softmax and no lanes are joined; the score
//! region; the running maximum `m`, sum `l` and output `o` of each row, rescaled by `exp(m_old − m_new)` when the maximum
//! moves. At the end `o / l` and `lse = m + log l` are stored.

use super::*;
use crate::kernels::buffers::{Buffers, extent};
use crate::kir::{CompareOp, Kernel};
use crate::math;
use crate::program::AttentionSpec;

/// Expands forward attention.
pub fn attention(spec: &AttentionSpec, target: &Target) -> Kernel {
    let plan = Plan::new(&spec.shape, target);
    let shape = &spec.shape;
    let sizes: Vec<u64> = shape
        .batch
        .iter()
        .copied()
        .chain([shape.group.div_ceil(plan.heads), shape.sq.div_ceil(plan.queries)])
        .collect();
    let mut b = Builder::new(sizes.iter().product(), if shape.has_bases { 2 } else { 0 });
    declare(&mut b, spec);
    let scratch = Scratch::new(&mut b, &plan);
    b.for_tiles(|b, tile| {
        let mut batch = unflatten(b, tile, &sizes);
        let block = batch.pop().expect("a tile has a query block");
        let chunk = batch.pop().expect("a tile has a chunk of heads");
        let query = b.mul_const(block, plan.queries as i64);
        let first_head = b.mul_const(chunk, plan.heads as i64);
        let end = b.index(shape.sq);
        let group = b.index(shape.group);
        let heads = length(b, first_head, plan.heads, group);
        let rows = length(b, query, plan.queries, end);
        Tile { spec, plan: &plan, scratch: &scratch, batch: &batch, first_head, heads, query, rows }.emit(b);
    });
    b.finish()
}

fn declare(b: &mut Builder, spec: &AttentionSpec) {
    let s = &spec.shape;
    let with = |last: &[u64]| [&s.batch[..], last].concat();
    let mut buffers = Buffers::default();
    buffers.read("q", &spec.q, &with(&[s.group, s.sq, s.hd]));
    buffers.read("k", &spec.k, &with(&[s.sk, s.hd]));
    buffers.read("v", &spec.v, &with(&[s.sk, s.hv]));
    for extra in &s.extras {
        let len = extent(extra, &with(&[s.group, s.sq, s.sk]));
        buffers.add("extra", extra, len, true, false);
    }
    buffers.write("o", &spec.o, &with(&[s.group, s.sq, s.hv]));
    buffers.write("lse", &spec.lse, &with(&[s.group, s.sq]));
    buffers.declare(b);
}

struct Scratch {
    q: Mem,
    k: Mem,
    v: Mem,
    scores: Mem,
    o: Mem,
    max: Mem,
    sum: Mem,
    rescale: Mem,
}

impl Scratch {
    fn new(b: &mut Builder, plan: &Plan) -> Scratch {
        let s = plan.shape;
        let rows = plan.heads * plan.query_row();
        let q = plan.heads * plan.packed_len(plan.queries, s.hd);
        Scratch {
            q: b.scratch("q_panels", DType::F32, q),
            k: b.scratch("k_rows", DType::F32, KEYS * s.hd),
            v: plan.packed(b, "v_panels", s.hv, KEYS),
            scores: b.scratch("scores", DType::F32, KEYS * plan.query_row()),
            o: b.scratch("o_rows", DType::F32, rows * plan.padded(s.hv)),
            max: b.scratch("max", DType::F32, rows),
            sum: b.scratch("sum", DType::F32, rows),
            rescale: b.scratch("rescale", DType::F32, plan.query_row()),
        }
    }
}

struct Tile<'a> {
    spec: &'a AttentionSpec,
    plan: &'a Plan<'a>,
    scratch: &'a Scratch,
    batch: &'a [Value],
    first_head: Value,
    heads: Value,
    query: Value,
    rows: Value,
}

impl Tile<'_> {
    fn emit(&self, b: &mut Builder) {
        let zero = b.index(0);
        b.for_each(zero, self.heads, 1, |b, h| self.start_head(b, h));
        let end = b.add(self.query, self.rows);
        let (lo, hi) = self.plan.keys_of(b, self.query, end);
        b.for_each(lo, hi, KEYS as i64, |b, key| {
            let keys = length(b, key, KEYS, hi);
            self.pack(b, key, keys);
            b.for_each(zero, self.heads, 1, |b, h| self.block(b, h, key, keys));
        });
        b.for_each(zero, self.heads, 1, |b, h| self.finish_head(b, h));
    }

    /// The first row of head `h` of this tile in scratch that has one row per query.
    fn first_row(&self, b: &mut Builder, h: Value) -> Value {
        b.mul_const(h, self.plan.query_row() as i64)
    }

    /// Where the queries of head `h` are packed.
    fn packed_queries(&self, b: &mut Builder, h: Value) -> Value {
        b.mul_const(h, self.plan.packed_len(self.plan.queries, self.plan.shape.hd) as i64)
    }

    /// Address of an operand at this tile's first query of head `h`.
    fn address(&self, b: &mut Builder, operand: &Operand, h: Value) -> Value {
        let head = b.add(self.first_head, h);
        at(b, operand, &[self.batch, &[head, self.query]].concat())
    }

    /// Packs the queries; nothing is seen yet.
    fn start_head(&self, b: &mut Builder, h: Value) {
        let (plan, s, n) = (self.plan, self.plan.shape, self.batch.len());
        let from = self.address(b, &self.spec.q, h);
        let strides = (self.spec.q.strides[n + 1], self.spec.q.strides[n + 2]);
        let to = (self.scratch.q, self.packed_queries(b, h));
        pack_rows_as_columns(b, plan, &self.spec.q, from, strides, s.hd, plan.queries, self.rows, to);
        let row = self.first_row(b, h);
        let padded = plan.padded(s.hv);
        let o = b.mul_const(row, padded as i64);
        for (to, at, len, value) in [
            (self.scratch.max, row, plan.query_row(), f64::NEG_INFINITY),
            (self.scratch.sum, row, plan.query_row(), 0.0),
            (self.scratch.o, o, plan.query_row() * padded, 0.0),
        ] {
            for_vectors(b, len, plan.lanes, |b, j, _| {
                let index = b.add(at, j);
                let value = b.const_float(f32x(plan.lanes), value);
                b.store(to, index, value);
            });
        }
    }

    /// Copies keys, and packs values along the head.
    fn pack(&self, b: &mut Builder, key: Value, keys: Value) {
        let (plan, s, n) = (self.plan, self.plan.shape, self.batch.len());
        let zero = b.index(0);
        let index = [self.batch, &[key]].concat();
        let from = at(b, &self.spec.k, &index);
        let strides = (self.spec.k.strides[n], self.spec.k.strides[n + 1]);
        copy_rows(b, plan, &self.spec.k, from, strides, s.hd, keys, self.scratch.k, zero);
        let from = at(b, &self.spec.v, &index);
        let strides = (self.spec.v.strides[n], self.spec.v.strides[n + 1]);
        pack_rows(b, plan, &self.spec.v, from, strides, s.hv, keys, KEYS, self.scratch.v);
    }

    /// One block of keys for one head.
    fn block(&self, b: &mut Builder, h: Value, key: Value, keys: Value) {
        let (plan, s) = (self.plan, self.plan.shape);
        let zero = b.index(0);
        let row = self.first_row(b, h);
        let scores = Product {
            left: self.scratch.k,
            left_at: zero,
            left_strides: (s.hd, 1),
            right: self.scratch.q,
            right_at: self.packed_queries(b, h),
            max_depth: s.hd,
            out: self.scratch.scores,
            out_at: zero,
            out_row: plan.query_row(),
            columns: plan.queries,
        };
        let depth = b.index(s.hd);
        scores.emit(b, plan, keys, self.rows, depth, Update::Overwrite);
        let width = plan.side_by_side() * u64::from(plan.lanes);
        b.for_each(zero, self.rows, width as i64, |b, first| self.softmax(b, h, first, key, keys));
        let weighted = Product {
            left: self.scratch.scores,
            left_at: zero,
            left_strides: (1, plan.query_row()),
            right: self.scratch.v,
            right_at: zero,
            max_depth: KEYS,
            out: self.scratch.o,
            out_at: b.mul_const(row, plan.padded(s.hv) as i64),
            out_row: plan.padded(s.hv),
            columns: s.hv,
        };
        let width = b.index(s.hv);
        weighted.emit(b, plan, self.rows, width, keys, Update::ScaleAdd(self.scratch.rescale, zero));
    }

    /// Scores to weights, and the running maxima and sums, of a few vectors of queries from `first` on.
    fn softmax(&self, b: &mut Builder, h: Value, first: Value, key: Value, keys: Value) {
        let (plan, lanes) = (self.plan, self.plan.lanes);
        let n = plan.side_by_side();
        let zero = b.index(0);
        let columns: Vec<Value> = (0..n).map(|u| b.add_const(first, (u * u64::from(lanes)) as i64)).collect();
        let head = b.add(self.first_head, h);
        let queries: Vec<(Value, Option<Value>)> =
            columns.iter().map(|&c| (b.add(self.query, c), plan.lanes_left(b, c, self.rows))).collect();

        let none = b.const_float(f32x(lanes), f64::NEG_INFINITY);
        let max = b.for_carried(zero, keys, 1, &vec![none; n as usize], |b, i, max| {
            let start = b.mul_const(i, plan.query_row() as i64);
            let position = b.add(key, i);
            let mut next = Vec::new();
            for ((&column, &(query, count)), &max) in columns.iter().zip(&queries).zip(max) {
                let index = b.add(start, column);
                let dot = b.load(self.scratch.scores, index, lanes);
                let batch = self.batch;
                let scores =
                    Scores { plan, batch, head, query, key: position, along: Along::Queries, dot, count };
                let score = scores.region(b, &plan.shape.score);
                b.store(self.scratch.scores, index, score);
                // A NaN is left to the weights, which it makes NaN.
                let is_larger = b.compare(CompareOp::Gt, score, max);
                next.push(b.select(is_larger, score, max));
            }
            next
        });

        let row = self.first_row(b, h);
        let states: Vec<Value> = columns.iter().map(|&c| b.add(row, c)).collect();
        let mut origins = Vec::new();
        let mut rescales = Vec::new();
        for ((&column, &state), &max) in columns.iter().zip(&states).zip(&max) {
            let old = b.load(self.scratch.max, state, lanes);
            let max = b.max(old, max);
            b.store(self.scratch.max, state, max);
            // Where no key has been seen, −∞ − 0 still gives weights of 0.
            let nothing = b.const_float(f32x(lanes), 0.0);
            let is_empty = b.compare(CompareOp::Eq, max, none);
            let origin = b.select(is_empty, nothing, max);
            let moved = b.sub(old, origin);
            let rescale = math::exp(b, moved);
            b.store(self.scratch.rescale, column, rescale);
            origins.push(origin);
            rescales.push(rescale);
        }

        let nothing = b.const_float(f32x(lanes), 0.0);
        let sums = b.for_carried(zero, keys, 1, &vec![nothing; n as usize], |b, i, sums| {
            let start = b.mul_const(i, plan.query_row() as i64);
            let mut next = Vec::new();
            for ((&column, &origin), &sum) in columns.iter().zip(&origins).zip(sums) {
                let index = b.add(start, column);
                let score = b.load(self.scratch.scores, index, lanes);
                let distance = b.sub(score, origin);
                let weight = math::exp(b, distance);
                b.store(self.scratch.scores, index, weight);
                next.push(b.add(sum, weight));
            }
            next
        });
        for ((&state, &rescale), &sum) in states.iter().zip(&rescales).zip(&sums) {
            let old = b.load(self.scratch.sum, state, lanes);
            let sum = b.fma(old, rescale, sum);
            b.store(self.scratch.sum, state, sum);
        }
    }

    fn finish_head(&self, b: &mut Builder, h: Value) {
        let (plan, s, n) = (self.plan, self.plan.shape, self.batch.len());
        let (o, lse) = (self.address(b, &self.spec.o, h), self.address(b, &self.spec.lse, h));
        let first = self.first_row(b, h);
        let zero = b.index(0);
        b.for_each(zero, self.rows, 1, |b, i| {
            let state = b.add(first, i);
            let (max, sum) = (b.load(self.scratch.max, state, 1), b.load(self.scratch.sum, state, 1));
            let log = math::log(b, sum);
            let value = b.add(max, log);
            let to = offset_by(b, lse, &[(i, self.spec.lse.strides[n + 1])]);
            store_along(b, mem(&self.spec.lse), to, 1, 1, value, None);

            let nothing = b.const_float(Type::F32, 0.0);
            let is_empty = b.compare(CompareOp::Eq, sum, nothing);
            let row = b.mul_const(state, plan.padded(s.hv) as i64);
            let to = offset_by(b, o, &[(i, self.spec.o.strides[n + 1])]);
            let stride = self.spec.o.strides[n + 2];
            for_vectors(b, s.hv, plan.lanes, |b, j, count| {
                let index = b.add(row, j);
                let value = b.load(self.scratch.o, index, plan.lanes);
                let sums = b.splat(sum, plan.lanes);
                let value = b.div(value, sums);
                let nothing = b.const_float(f32x(plan.lanes), 0.0);
                let value = b.select(is_empty, nothing, value);
                let to = offset_by(b, to, &[(j, stride)]);
                store_along(b, mem(&self.spec.o), to, stride, plan.lanes, value, count);
            });
        });
    }
}
