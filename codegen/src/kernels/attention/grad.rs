//! Attention, backward: kernels that each recompute the probabilities of its blocks from the log-sum-exp.
//!
//! ```text
//! s  = score(q·kᵀ)       p  = exp(s − lse)
//! dp = do·vᵀ             ds = p ∘ (dp − delta) ∘ score'
//! Query     a tile is a block of queries:  dq = Σ over key blocks    ds · k
//! KeyValue  a tile is a block of keys:     dk = Σ over query blocks  dsᵀ · q     dv = Σ pᵀ · do    and over the group
//! ```
//! The gradient of an extra is in [`super::extra`].
//!
//! Vectors of scores run along what the tile owns, so that its operands are transposed into panels once and those of the
//! other side are only copied.

use super::extra::extra_kernel;
use super::*;
use crate::kernels::buffers::{Buffers, extent};
use crate::kernels::loops::for_vectors_carried;
use crate::kir::{CompareOp, Kernel};
use crate::math;
use crate::program::{AttentionGradPart, AttentionGradSpec};

/// Expands one of the two backward kernels.
pub fn attention_grad(spec: &AttentionGradSpec, target: &Target) -> Kernel {
    let plan = Plan::new(&spec.shape, target);
    match spec.part {
        AttentionGradPart::Query => query_kernel(spec, &plan),
        AttentionGradPart::KeyValue => key_value_kernel(spec, &plan),
        AttentionGradPart::Extra(_) => extra_kernel(spec, &plan),
    }
}

fn declare(b: &mut Builder, spec: &AttentionGradSpec) {
    let s = &spec.shape;
    let with = |last: &[u64]| [&s.batch[..], last].concat();
    let (q_dims, k_dims) = (with(&[s.group, s.sq, s.hd]), with(&[s.sk, s.hd]));
    let v_dims = with(&[s.sk, s.hv]);
    let mut buffers = Buffers::default();
    buffers.read("q", &spec.q, &q_dims);
    buffers.read("k", &spec.k, &k_dims);
    buffers.read("v", &spec.v, &v_dims);
    buffers.read("do", &spec.d_o, &with(&[s.group, s.sq, s.hv]));
    buffers.read("lse", &spec.lse, &with(&[s.group, s.sq]));
    buffers.read("delta", &spec.delta, &with(&[s.group, s.sq]));
    for extra in &s.extras {
        let len = extent(extra, &with(&[s.group, s.sq, s.sk]));
        buffers.add("extra", extra, len, true, false);
    }
    match spec.part {
        AttentionGradPart::Query => buffers.write("dq", &spec.outputs[0], &q_dims),
        AttentionGradPart::KeyValue => {
            buffers.write("dk", &spec.outputs[0], &k_dims);
            buffers.write("dv", &spec.outputs[1], &v_dims);
        }
        AttentionGradPart::Extra(_) => {
            buffers.write("dextra", &spec.outputs[0], &with(&[s.group, s.sq, s.sk]));
        }
    }
    buffers.declare(b);
}

pub(super) fn builder(spec: &AttentionGradSpec, n_tiles: u64) -> Builder {
    let mut b = Builder::new(n_tiles, if spec.shape.has_bases { 2 } else { 0 });
    declare(&mut b, spec);
    b
}

/// Scratch of both kernels. Of queries and keys, the side vectors run along is packed into panels and the other copied
/// as rows.
pub(super) struct Scratch {
    q: Mem,
    d_o: Mem,
    k: Mem,
    v: Mem,
    /// Probabilities and score gradients; first the products they are made from.
    p: Mem,
    pub(super) ds: Mem,
}

impl Scratch {
    /// With panels of queries, of up to `plan.heads` heads.
    fn along_queries(b: &mut Builder, plan: &Plan) -> Scratch {
        let s = plan.shape;
        let packed = |width| plan.heads * plan.packed_len(plan.queries, width);
        Scratch {
            q: b.scratch("q_panels", DType::F32, packed(s.hd)),
            d_o: b.scratch("do_panels", DType::F32, packed(s.hv)),
            k: b.scratch("k_rows", DType::F32, KEYS * s.hd),
            v: b.scratch("v_rows", DType::F32, KEYS * s.hv),
            p: b.scratch("p", DType::F32, KEYS * plan.query_row()),
            ds: b.scratch("ds", DType::F32, KEYS * plan.query_row()),
        }
    }

    /// With panels of keys.
    pub(super) fn along_keys(b: &mut Builder, plan: &Plan) -> Scratch {
        let s = plan.shape;
        Scratch {
            q: b.scratch("q_rows", DType::F32, plan.queries * s.hd),
            d_o: b.scratch("do_rows", DType::F32, plan.queries * s.hv),
            k: plan.packed(b, "k_panels", KEYS, s.hd),
            v: plan.packed(b, "v_panels", KEYS, s.hv),
            p: b.scratch("p", DType::F32, plan.queries * KEYS),
            ds: b.scratch("ds", DType::F32, plan.queries * KEYS),
        }
    }
}

/// What both kernels compute in: one batch entry.
pub(super) struct Block<'a> {
    pub(super) spec: &'a AttentionGradSpec,
    pub(super) plan: &'a Plan<'a>,
    pub(super) scratch: &'a Scratch,
    pub(super) batch: &'a [Value],
    pub(super) along: Along,
}

/// `rows` queries of one head from `query` on; `slot` is the head's place in scratch.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    pub(super) head: Value,
    pub(super) query: Value,
    pub(super) rows: Value,
    pub(super) slot: Value,
}

impl Block<'_> {
    fn n(&self) -> usize {
        self.batch.len()
    }

    /// Address of an operand over (batch, head, query) and its strides along the row and within it.
    fn rows_of(&self, b: &mut Builder, operand: &Operand, queries: &Queries) -> (Value, (u64, u64)) {
        let from = at(b, operand, &[self.batch, &[queries.head, queries.query]].concat());
        (from, (operand.strides[self.n() + 1], operand.strides[self.n() + 2]))
    }

    /// Address of an operand over (batch, key) and its strides.
    fn keys_of(&self, b: &mut Builder, operand: &Operand, key: Value) -> (Value, (u64, u64)) {
        let from = at(b, operand, &[self.batch, &[key]].concat());
        (from, (operand.strides[self.n()], operand.strides[self.n() + 1]))
    }

    /// Elements that the queries of one head take in scratch, `width` wide.
    fn slot_len(&self, width: u64) -> u64 {
        match self.along {
            Along::Queries => self.plan.packed_len(self.plan.queries, width),
            Along::Keys => self.plan.queries * width,
        }
    }

    /// Queries and output gradients to scratch.
    pub(super) fn take_queries(&self, b: &mut Builder, queries: &Queries) {
        let (plan, s, spec) = (self.plan, self.plan.shape, self.spec);
        for (operand, width, to) in [(&spec.q, s.hd, self.scratch.q), (&spec.d_o, s.hv, self.scratch.d_o)] {
            let (from, strides) = self.rows_of(b, operand, queries);
            let to_at = b.mul_const(queries.slot, self.slot_len(width) as i64);
            let (rows, columns) = (queries.rows, plan.queries);
            match self.along {
                Along::Queries => {
                    let to = (to, to_at);
                    pack_rows_as_columns(b, plan, operand, from, strides, width, columns, rows, to);
                }
                Along::Keys => copy_rows(b, plan, operand, from, strides, width, rows, to, to_at),
            }
        }
    }

    /// Keys and values to scratch.
    pub(super) fn take_keys(&self, b: &mut Builder, key: Value, keys: Value) {
        let (plan, s, spec) = (self.plan, self.plan.shape, self.spec);
        let zero = b.index(0);
        for (operand, width, to) in [(&spec.k, s.hd, self.scratch.k), (&spec.v, s.hv, self.scratch.v)] {
            let (from, strides) = self.keys_of(b, operand, key);
            match self.along {
                Along::Queries => copy_rows(b, plan, operand, from, strides, width, keys, to, zero),
                Along::Keys => {
                    pack_rows_as_columns(b, plan, operand, from, strides, width, KEYS, keys, (to, zero));
                }
            }
        }
    }

    /// Elements between rows of `p` and `ds`.
    fn row_len(&self) -> u64 {
        match self.along {
            Along::Queries => self.plan.query_row(),
            Along::Keys => KEYS,
        }
    }

    /// Strides of `p` and `ds` along queries and along keys.
    fn strides(&self) -> (u64, u64) {
        match self.along {
            Along::Queries => (1, self.row_len()),
            Along::Keys => (self.row_len(), 1),
        }
    }

    /// Fills `p` and `ds` for these queries and keys.
    pub(super) fn probabilities(&self, b: &mut Builder, queries: &Queries, key: Value, keys: Value) {
        let (plan, s, scratch) = (self.plan, self.plan.shape, self.scratch);
        let zero = b.index(0);
        for (q, k, width, out) in
            [(scratch.q, scratch.k, s.hd, scratch.p), (scratch.d_o, scratch.v, s.hv, scratch.ds)]
        {
            let q_at = b.mul_const(queries.slot, self.slot_len(width) as i64);
            let (left, left_at, right, right_at, columns) = match self.along {
                Along::Queries => (k, zero, q, q_at, plan.queries),
                Along::Keys => (q, q_at, k, zero, KEYS),
            };
            let product = Product {
                left,
                left_at,
                left_strides: (width, 1),
                right,
                right_at,
                max_depth: width,
                out,
                out_at: zero,
                out_row: self.row_len(),
                columns,
            };
            let depth = b.index(width);
            let (m, n) = match self.along {
                Along::Queries => (keys, queries.rows),
                Along::Keys => (queries.rows, keys),
            };
            product.emit(b, plan, m, n, depth, Update::Overwrite);
        }
        match self.along {
            Along::Queries => {
                let width = plan.side_by_side() * u64::from(plan.lanes);
                b.for_each(zero, queries.rows, width as i64, |b, first| {
                    self.columns(b, queries, first, key, keys);
                });
            }
            Along::Keys => b.for_each(zero, queries.rows, 1, |b, i| self.row(b, queries, i, key, keys)),
        }
    }

    /// Log-sum-exp and delta of `lanes` queries from `query` on.
    fn statistics(
        &self,
        b: &mut Builder,
        queries: &Queries,
        query: Value,
        lanes: u32,
        count: Option<Value>,
    ) -> (Value, Value) {
        let index = [self.batch, &[queries.head, query]].concat();
        let [lse, delta] = [&self.spec.lse, &self.spec.delta].map(|o| {
            let address = at(b, o, &index);
            let stride = if lanes == 1 { 0 } else { o.strides[self.n() + 1] };
            let value = load_along(b, mem(o), address, stride, lanes, count);
            if b.ty(value).is_vector() { value } else { b.splat(value, self.plan.lanes) }
        });
        // A row without keys has lse = −∞; +∞ in its place makes every probability 0.
        let ty = f32x(self.plan.lanes);
        let (none, far) = (b.const_float(ty, f64::NEG_INFINITY), b.const_float(ty, f64::INFINITY));
        let is_empty = b.compare(CompareOp::Eq, lse, none);
        (b.select(is_empty, far, lse), delta)
    }

    /// Products at `index` to a probability and a score gradient.
    fn vector(&self, b: &mut Builder, scores: &mut Scores, index: Value, lse: Value, delta: Value) {
        let (spec, lanes) = (self.spec, self.plan.lanes);
        scores.dot = b.load(self.scratch.p, index, lanes);
        let dp = b.load(self.scratch.ds, index, lanes);
        let score = scores.region(b, &spec.shape.score);
        let slope = scores.region(b, &spec.slope);
        let distance = b.sub(score, lse);
        let p = math::exp(b, distance);
        let inner = b.sub(dp, delta);
        let inner = b.mul(p, inner);
        let ds = b.mul(inner, slope);
        b.store(self.scratch.p, index, p);
        b.store(self.scratch.ds, index, ds);
    }

    /// One query, vectors along keys.
    fn row(&self, b: &mut Builder, queries: &Queries, i: Value, key: Value, keys: Value) {
        let (plan, batch) = (self.plan, self.batch);
        let query = b.add(queries.query, i);
        let (lse, delta) = self.statistics(b, queries, query, 1, None);
        let start = b.mul_const(i, self.row_len() as i64);
        for_vectors_carried(b, keys, plan.lanes, &[], |b, j, count, _| {
            let index = b.add(start, j);
            let key = b.add(key, j);
            let (head, along) = (queries.head, self.along);
            let mut scores = Scores { plan, batch, head, query, key, along, dot: lse, count };
            self.vector(b, &mut scores, index, lse, delta);
            Vec::new()
        });
    }

    /// A few vectors of queries from `first` on, all keys.
    fn columns(&self, b: &mut Builder, queries: &Queries, first: Value, key: Value, keys: Value) {
        let (plan, batch) = (self.plan, self.batch);
        let mut columns = Vec::new();
        for u in 0..plan.side_by_side() {
            let column = b.add_const(first, (u * u64::from(plan.lanes)) as i64);
            let query = b.add(queries.query, column);
            let count = plan.lanes_left(b, column, queries.rows);
            let (lse, delta) = self.statistics(b, queries, query, plan.lanes, count);
            columns.push((column, query, count, lse, delta));
        }
        let zero = b.index(0);
        b.for_each(zero, keys, 1, |b, i| {
            let start = b.mul_const(i, self.row_len() as i64);
            let key = b.add(key, i);
            for &(column, query, count, lse, delta) in &columns {
                let index = b.add(start, column);
                let (head, along) = (queries.head, self.along);
                let mut scores = Scores { plan, batch, head, query, key, along, dot: lse, count };
                self.vector(b, &mut scores, index, lse, delta);
            }
        });
    }
}

/// Zeros in `rows` rows of `width` elements.
pub(super) fn clear(b: &mut Builder, plan: &Plan, to: Mem, rows: u64, width: u64) {
    for_vectors(b, rows * width, plan.lanes, |b, at, count| {
        let nothing = b.const_float(f32x(plan.lanes), 0.0);
        b.store_at(At { mem: to, index: at, stride: None }, nothing, count);
    });
}

/// Rows of sums in scratch, `row_len` apart, to an operand.
fn store_rows(
    b: &mut Builder,
    plan: &Plan,
    from: (Mem, Value, u64),
    operand: &Operand,
    to: Value,
    strides: (u64, u64),
    width: u64,
    rows: Value,
) {
    let zero = b.index(0);
    let (source, first, row_len) = from;
    b.for_each(zero, rows, 1, |b, i| {
        let row = offset_by(b, first, &[(i, row_len)]);
        let to = offset_by(b, to, &[(i, strides.0)]);
        for_vectors(b, width, plan.lanes, |b, j, count| {
            let index = b.add(row, j);
            let value = b.load(source, index, plan.lanes);
            let to = offset_by(b, to, &[(j, strides.1)]);
            store_along(b, mem(operand), to, strides.1, plan.lanes, value, count);
        });
    });
}

/// The sizes of the dimensions a result has, and of those it is summed over; 1 in the place of the others.
pub(super) fn kept_and_summed(sizes: &[u64], strides: &[u64]) -> (Vec<u64>, Vec<u64>) {
    sizes.iter().zip(strides).map(|(&size, &stride)| if stride == 0 { (1, size) } else { (size, 1) }).unzip()
}

/// Runs through the dimensions a result is summed over, in their order; `kept` are the tile's own indices.
pub(super) fn for_summed(
    b: &mut Builder,
    kept: &[Value],
    summed: &[u64],
    body: impl Fn(&mut Builder, &[Value]),
) {
    let total: u64 = summed.iter().product();
    if total == 1 {
        return body(b, kept);
    }
    b.for_range(total, |b, i| {
        let inner = unflatten(b, i, summed);
        let of = |d: usize| if summed[d] == 1 { kept[d] } else { inner[d] };
        let index: Vec<Value> = (0..kept.len()).map(of).collect();
        body(b, &index);
    });
}

/// Tiles are blocks of queries of up to [`HEADS`] heads.
fn query_kernel(spec: &AttentionGradSpec, plan: &Plan) -> Kernel {
    let s = &spec.shape;
    let last = [s.group.div_ceil(plan.heads), s.sq.div_ceil(plan.queries)];
    let sizes = [&s.batch[..], &last].concat();
    let mut b = builder(spec, sizes.iter().product());
    let scratch = Scratch::along_queries(&mut b, plan);
    let key_rows = plan.packed(&mut b, "k_panels", s.hd, KEYS);
    let padded = plan.padded(s.hd);
    let dq = b.scratch("dq", DType::F32, plan.heads * plan.queries * padded);
    b.for_tiles(|b, tile| {
        let mut batch = unflatten(b, tile, &sizes);
        let block = batch.pop().expect("a tile has a query block");
        let chunk = batch.pop().expect("a tile has a chunk of heads");
        let tile = Block { spec, plan, scratch: &scratch, batch: &batch, along: Along::Queries };
        let query = b.mul_const(block, plan.queries as i64);
        let first_head = b.mul_const(chunk, plan.heads as i64);
        let (end, group, zero) = (b.index(s.sq), b.index(s.group), b.index(0));
        let heads = length(b, first_head, plan.heads, group);
        let rows = length(b, query, plan.queries, end);
        let queries =
            |b: &mut Builder, h: Value| Queries { head: b.add(first_head, h), query, rows, slot: h };
        clear(b, plan, dq, plan.heads * plan.queries, padded);
        b.for_each(zero, heads, 1, |b, h| {
            let queries = queries(b, h);
            tile.take_queries(b, &queries);
        });
        let last = b.add(query, rows);
        let (lo, hi) = plan.keys_of(b, query, last);
        b.for_each(lo, hi, KEYS as i64, |b, key| {
            let keys = length(b, key, KEYS, hi);
            tile.take_keys(b, key, keys);
            let (from, strides) = tile.keys_of(b, &spec.k, key);
            pack_rows(b, plan, &spec.k, from, strides, s.hd, keys, KEYS, key_rows);
            b.for_each(zero, heads, 1, |b, h| {
                let queries = queries(b, h);
                tile.probabilities(b, &queries, key, keys);
                let product = Product {
                    left: scratch.ds,
                    left_at: zero,
                    left_strides: tile.strides(),
                    right: key_rows,
                    right_at: zero,
                    max_depth: KEYS,
                    out: dq,
                    out_at: b.mul_const(queries.slot, (plan.queries * padded) as i64),
                    out_row: padded,
                    columns: s.hd,
                };
                let width = b.index(s.hd);
                product.emit(b, plan, rows, width, keys, Update::Add);
            });
        });
        b.for_each(zero, heads, 1, |b, h| {
            let queries = queries(b, h);
            let (to, strides) = tile.rows_of(b, &spec.outputs[0], &queries);
            let first = b.mul_const(queries.slot, (plan.queries * padded) as i64);
            store_rows(b, plan, (dq, first, padded), &spec.outputs[0], to, strides, s.hd, rows);
        });
    });
    b.finish()
}

/// Tiles are blocks of keys.
fn key_value_kernel(spec: &AttentionGradSpec, plan: &Plan) -> Kernel {
    let s = &spec.shape;
    let (kept, summed) = kept_and_summed(&s.batch, &spec.outputs[0].strides);
    let sizes = [&kept[..], &[s.sk.div_ceil(KEYS)]].concat();
    let mut b = builder(spec, sizes.iter().product());
    let scratch = Scratch::along_keys(&mut b, plan);
    let q_rows = plan.packed(&mut b, "q_panels", s.hd, plan.queries);
    let do_rows = plan.packed(&mut b, "do_panels", s.hv, plan.queries);
    let (k_padded, v_padded) = (plan.padded(s.hd), plan.padded(s.hv));
    let dk = b.scratch("dk", DType::F32, KEYS * k_padded);
    let dv = b.scratch("dv", DType::F32, KEYS * v_padded);
    b.for_tiles(|b, tile| {
        let mut batch = unflatten(b, tile, &sizes);
        let block = batch.pop().expect("a tile has a key block");
        let key = b.mul_const(block, KEYS as i64);
        let (end, zero) = (b.index(s.sk), b.index(0));
        let keys = length(b, key, KEYS, end);
        clear(b, plan, dk, KEYS, k_padded);
        clear(b, plan, dv, KEYS, v_padded);
        let last = b.add(key, keys);
        let (lo, hi) = plan.queries_of(b, key, last);
        let accumulate = |b: &mut Builder, tile: &Block, queries: &Queries| {
            tile.take_queries(b, queries);
            let (from, strides) = tile.rows_of(b, &spec.q, queries);
            pack_rows(b, plan, &spec.q, from, strides, s.hd, queries.rows, plan.queries, q_rows);
            let (from, strides) = tile.rows_of(b, &spec.d_o, queries);
            pack_rows(b, plan, &spec.d_o, from, strides, s.hv, queries.rows, plan.queries, do_rows);
            tile.probabilities(b, queries, key, keys);
            for (left, right, out, out_row, columns) in
                [(scratch.ds, q_rows, dk, k_padded, s.hd), (scratch.p, do_rows, dv, v_padded, s.hv)]
            {
                let product = Product {
                    left,
                    left_at: zero,
                    left_strides: (1, KEYS),
                    right,
                    right_at: zero,
                    max_depth: plan.queries,
                    out,
                    out_at: zero,
                    out_row,
                    columns,
                };
                let width = b.index(columns);
                product.emit(b, plan, keys, width, queries.rows, Update::Add);
            }
        };
        for_summed(b, &batch, &summed, |b, batch| {
            let tile = Block { spec, plan, scratch: &scratch, batch, along: Along::Keys };
            tile.take_keys(b, key, keys);
            b.for_range(s.group, |b, head| {
                b.for_each(lo, hi, plan.queries as i64, |b, query| {
                    let rows = length(b, query, plan.queries, hi);
                    accumulate(b, &tile, &Queries { head, query, rows, slot: zero });
                });
            });
        });
        let tile = Block { spec, plan, scratch: &scratch, batch: &batch, along: Along::Keys };
        for (from, row_len, output, width) in
            [(dk, k_padded, &spec.outputs[0], s.hd), (dv, v_padded, &spec.outputs[1], s.hv)]
        {
            let (to, strides) = tile.keys_of(b, output, key);
            store_rows(b, plan, (from, zero, row_len), output, to, strides, width, keys);
        }
    });
    b.finish()
}
