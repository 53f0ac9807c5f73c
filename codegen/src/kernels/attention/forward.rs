//! Attention, forward.
//!
//! A tile is a block of queries of up to four heads that share keys and values. For each block of keys:
//! scores; the score region; the running maximum `m`, sum `l` and output `o` of each row, rescaled by
//! `exp(m_old − m_new)` when the maximum moves. At the end `o / l` and `lse = m + log l` are stored.

use super::*;
use crate::kernels::buffers::{Buffers, extent};
use crate::kernels::loops::for_vectors_carried;
use crate::kir::{Kernel, ReduceOp};
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
        let rows = plan.heads * plan.queries;
        Scratch {
            q: b.scratch("q_rows", DType::F32, rows * s.hd),
            k: plan.packed(b, "k_panels", KEYS, s.hd),
            v: plan.packed(b, "v_panels", s.hv, KEYS),
            scores: b.scratch("scores", DType::F32, plan.queries * KEYS),
            o: b.scratch("o_rows", DType::F32, rows * plan.padded(s.hv)),
            max: b.scratch("max", DType::F32, rows),
            sum: b.scratch("sum", DType::F32, rows),
            rescale: b.scratch("rescale", DType::F32, plan.queries),
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
        b.mul_const(h, self.plan.queries as i64)
    }

    /// Address of an operand at this tile's first query of head `h`.
    fn address(&self, b: &mut Builder, operand: &Operand, h: Value) -> Value {
        let head = b.add(self.first_head, h);
        at(b, operand, &[self.batch, &[head, self.query]].concat())
    }

    /// Copies the queries; nothing is seen yet.
    fn start_head(&self, b: &mut Builder, h: Value) {
        let (plan, s, n) = (self.plan, self.plan.shape, self.batch.len());
        let from = self.address(b, &self.spec.q, h);
        let strides = (self.spec.q.strides[n + 1], self.spec.q.strides[n + 2]);
        let row = self.first_row(b, h);
        let to = b.mul_const(row, s.hd as i64);
        copy_rows(b, plan, &self.spec.q, from, strides, s.hd, self.rows, self.scratch.q, to);
        let zero = b.index(0);
        b.for_each(zero, self.rows, 1, |b, i| {
            let row = b.add(row, i);
            let (none, nothing) =
                (b.const_float(Type::F32, f64::NEG_INFINITY), b.const_float(Type::F32, 0.0));
            b.store(self.scratch.max, row, none);
            b.store(self.scratch.sum, row, nothing);
            let padded = plan.padded(s.hv);
            let at = b.mul_const(row, padded as i64);
            for_vectors(b, padded, plan.lanes, |b, j, _| {
                let index = b.add(at, j);
                let nothing = b.const_float(f32x(plan.lanes), 0.0);
                b.store(self.scratch.o, index, nothing);
            });
        });
    }

    /// Packs keys along the score's columns, and values along the head.
    fn pack(&self, b: &mut Builder, key: Value, keys: Value) {
        let (plan, s, n) = (self.plan, self.plan.shape, self.batch.len());
        let index = [self.batch, &[key]].concat();
        let from = at(b, &self.spec.k, &index);
        let strides = (self.spec.k.strides[n], self.spec.k.strides[n + 1]);
        pack_rows_as_columns(b, plan, &self.spec.k, from, strides, s.hd, keys, self.scratch.k);
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
            left: self.scratch.q,
            left_at: b.mul_const(row, s.hd as i64),
            left_strides: (s.hd, 1),
            right: self.scratch.k,
            max_depth: s.hd,
            out: self.scratch.scores,
            out_at: zero,
            out_row: KEYS,
            columns: KEYS,
        };
        let depth = b.index(s.hd);
        scores.emit(b, plan, self.rows, keys, depth, Update::Overwrite);
        b.for_each(zero, self.rows, 1, |b, i| self.softmax_row(b, h, i, key, keys));
        let weighted = Product {
            left: self.scratch.scores,
            left_at: zero,
            left_strides: (KEYS, 1),
            right: self.scratch.v,
            max_depth: KEYS,
            out: self.scratch.o,
            out_at: b.mul_const(row, plan.padded(s.hv) as i64),
            out_row: plan.padded(s.hv),
            columns: s.hv,
        };
        let width = b.index(s.hv);
        weighted.emit(b, plan, self.rows, width, keys, Update::ScaleAdd(self.scratch.rescale, zero));
    }

    /// Scores of one row to weights, and the row's running maximum and sum.
    fn softmax_row(&self, b: &mut Builder, h: Value, i: Value, key: Value, keys: Value) {
        let lanes = self.plan.lanes;
        let head = b.add(self.first_head, h);
        let query = b.add(self.query, i);
        let row = ScoreRow { plan: self.plan, batch: self.batch, head, query, key };
        let start = b.mul_const(i, KEYS as i64);
        let scores = self.scratch.scores;

        let none = b.const_float(f32x(lanes), f64::NEG_INFINITY);
        let max = for_vectors_carried(b, keys, lanes, &[none], |b, j, count, max| {
            let index = b.add(start, j);
            let dot = b.load(scores, index, lanes);
            let score = row.region(b, &self.plan.shape.score, dot, j, count);
            let score = keep(b, score, f64::NEG_INFINITY, count);
            b.store(scores, index, score);
            vec![b.max(max[0], score)]
        });
        let max = b.reduce(ReduceOp::Max, max[0]);
        let first = self.first_row(b, h);
        let state = b.add(first, i);
        let old_max = b.load(self.scratch.max, state, 1);
        let max = b.max(old_max, max);
        // Where no key is left, −∞ − 0 still gives weights of 0.
        let none = b.const_float(Type::F32, f64::NEG_INFINITY);
        let nothing = b.const_float(Type::F32, 0.0);
        let is_empty = b.compare(CompareOp::Eq, max, none);
        let origin = b.select(is_empty, nothing, max);
        let moved = b.sub(old_max, origin);
        let rescale = math::exp(b, moved);

        let origins = b.splat(origin, lanes);
        let zero_sum = b.const_float(f32x(lanes), 0.0);
        let sum = for_vectors_carried(b, keys, lanes, &[zero_sum], |b, j, _, sum| {
            let index = b.add(start, j);
            let score = b.load(scores, index, lanes);
            let distance = b.sub(score, origins);
            let weight = math::exp(b, distance);
            b.store(scores, index, weight);
            vec![b.add(sum[0], weight)]
        });
        let sum = b.reduce(ReduceOp::Add, sum[0]);
        let old_sum = b.load(self.scratch.sum, state, 1);
        let sum = b.fma(old_sum, rescale, sum);
        b.store(self.scratch.sum, state, sum);
        b.store(self.scratch.max, state, max);
        b.store(self.scratch.rescale, i, rescale);
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
