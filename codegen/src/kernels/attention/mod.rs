//! `Attention` and `AttentionGrad`: tiled, with the score matrix only ever one tile large.
//!
//! All kernels share this file: the tile sizes, the products between blocks in scratch memory, the score region and
//! the bounds of positions.
//!
//! ```text
//! QUERIES × KEYS   one block of scores, stored with queries or with keys contiguous, so that vectors run along them
//! left operands    rows copied to scratch as they are, read one element at a time
//! right operands   packed into panels of vectors: transposed for scores, as they are for what scores weigh
//! ```
//! Source: Dao 2023 (FlashAttention-2, arXiv:2307.08691), §3.1: the running maximum and sum of the forward pass, and the
//! backward pass from the log-sum-exp. We compute the gradients of the backward pass in kernels of their own, so that
//! no two tiles write one element.

mod extra;
mod forward;
mod grad;

pub use forward::attention;
pub use grad::attention_grad;

use super::buffers::{load_along, mem, offset_by, store_along, unflatten};
use super::gemm::{Micro, Packing, Panels, pack_all, packed_len, panel_len, panels, register_tile};
use super::loops::for_vectors;
use super::map::ramp;
use super::region::{Scope, Source};
use crate::kir::{At, Builder, Elem, Mem, Type, Value};
use crate::program::{AttentionShape, Bound, Operand, Region};
use crate::target::Target;
use mlc_runtime::abi::DType;

/// Keys of a block: a multiple of every register tile's rows and columns.
const KEYS: u64 = 96;
/// Heads of a group that share packed keys and values; more would need more scratch than they save packing.
const HEADS: u64 = 4;

/// Sizes all kernels share.
struct Plan<'a> {
    shape: &'a AttentionShape,
    target: &'a Target,
    lanes: u32,
    /// Queries of a block, a multiple of every register tile's rows.
    queries: u64,
    /// Query heads of a tile.
    heads: u64,
}

impl<'a> Plan<'a> {
    fn new(shape: &'a AttentionShape, target: &'a Target) -> Plan<'a> {
        // Short sequences waste less of the causal triangle in small blocks; long ones amortise packing in large ones.
        let queries = match shape.sq {
            0..=24 => 24,
            25..=512 => 48,
            _ => 96,
        };
        Plan { shape, target, lanes: target.f32_lanes(), queries, heads: shape.group.min(HEADS) }
    }

    /// Rows × vectors of the register tile for a product with `columns` columns.
    fn register_tile(&self, columns: u64) -> (u64, u64) {
        register_tile(self.queries, columns, u64::from(self.lanes), self.target)
    }

    /// Columns padded to whole panels of the product with so many columns.
    fn padded(&self, columns: u64) -> u64 {
        let (_, vectors) = self.register_tile(columns);
        columns.next_multiple_of(vectors * u64::from(self.lanes))
    }

    /// Scratch elements of the packed right operand of a product: `columns` wide and at most `depth` deep.
    fn packed_len(&self, columns: u64, depth: u64) -> u64 {
        let (_, vectors) = self.register_tile(columns);
        packed_len(columns, vectors * u64::from(self.lanes), depth, self.lanes)
    }

    /// Scratch for it.
    fn packed(&self, b: &mut Builder, name: &str, columns: u64, depth: u64) -> Mem {
        b.scratch(name, DType::F32, self.packed_len(columns, depth))
    }

    /// Queries of a block in memory, padded to whole panels of vectors along them.
    fn query_row(&self) -> u64 {
        self.padded(self.queries)
    }

    /// Vectors along queries that one loop handles side by side: a divisor of those in a block, few enough that their
    /// values stay in registers.
    fn side_by_side(&self) -> u64 {
        let vectors = self.query_row() / u64::from(self.lanes);
        [4, 3, 2].into_iter().find(|n| vectors % n == 0).unwrap_or(1)
    }

    /// How many of the lanes from query `first` of a block on exist, if some of `rows` may not.
    fn lanes_left(&self, b: &mut Builder, first: Value, rows: Value) -> Option<Value> {
        if self.shape.sq % self.query_row() == 0 {
            return None;
        }
        let left = b.sub(rows, first);
        let (most, none) = (b.index(u64::from(self.lanes)), b.index(0));
        Some(clamp(b, left, none, most))
    }

    /// Base of the query and key positions.
    fn bases(&self, b: &mut Builder) -> (Value, Value) {
        if self.shape.has_bases { (b.scalar(0), b.scalar(1)) } else { (b.index(0), b.index(0)) }
    }

    /// Keys that queries `lo..hi` may see: a range that holds every score the bound allows.
    fn keys_of(&self, b: &mut Builder, lo: Value, hi: Value) -> (Value, Value) {
        let (zero, end) = (b.index(0), b.index(self.shape.sk));
        let (base_q, base_k) = self.bases(b);
        let shift = b.sub(base_q, base_k);
        match self.shape.bound {
            Bound::Full => (zero, end),
            Bound::Causal => {
                let last = b.add(hi, shift);
                (zero, clamp(b, last, zero, end))
            }
            Bound::Window(window) => {
                let first = b.add(lo, shift);
                let first = b.add_const(first, 1 - window as i64);
                let last = b.add(hi, shift);
                (clamp(b, first, zero, end), clamp(b, last, zero, end))
            }
        }
    }

    /// Queries that may see keys `lo..hi`.
    fn queries_of(&self, b: &mut Builder, lo: Value, hi: Value) -> (Value, Value) {
        let (zero, end) = (b.index(0), b.index(self.shape.sq));
        let (base_q, base_k) = self.bases(b);
        let shift = b.sub(base_k, base_q);
        match self.shape.bound {
            Bound::Full => (zero, end),
            Bound::Causal => {
                let first = b.add(lo, shift);
                (clamp(b, first, zero, end), end)
            }
            Bound::Window(window) => {
                let first = b.add(lo, shift);
                let last = b.add(hi, shift);
                let last = b.add_const(last, window as i64 - 1);
                (clamp(b, first, zero, end), clamp(b, last, zero, end))
            }
        }
    }
}

fn clamp(b: &mut Builder, x: Value, low: Value, high: Value) -> Value {
    let x = b.max(x, low);
    b.min(x, high)
}

/// `min(lo + size, hi) − lo`.
fn length(b: &mut Builder, lo: Value, size: u64, hi: Value) -> Value {
    let left = b.sub(hi, lo);
    let size = b.index(size);
    b.min(left, size)
}

/// Address of an operand's element at leading indices.
fn at(b: &mut Builder, operand: &Operand, index: &[Value]) -> Value {
    let base = b.index(operand.offset);
    let terms: Vec<(Value, u64)> = index.iter().zip(&operand.strides).map(|(&i, &s)| (i, s)).collect();
    offset_by(b, base, &terms)
}

/// Packs `count` rows of an operand (from address `from` on; strides between and within rows) as the right operand of
/// scores: panels along the rows, chosen for `columns` of them, `depth` deep.
fn pack_rows_as_columns(
    b: &mut Builder,
    plan: &Plan,
    operand: &Operand,
    from: Value,
    strides: (u64, u64),
    depth: u64,
    columns: u64,
    count: Value,
    to: (Mem, Value),
) {
    let (_, vectors) = plan.register_tile(columns);
    let panels = Panels {
        from: mem(operand),
        at: from,
        stride: strides.0,
        stride_k: strides.1,
        width: vectors * u64::from(plan.lanes),
        lanes: plan.lanes,
    };
    let depth_value = b.index(depth);
    let packing = Packing { depth: depth_value, max_depth: depth, count, to: to.0, to_at: to.1 };
    pack_all(b, &panels, &packing, false);
}

/// Packs `rows` rows of an operand as the right operand of a sum over rows: panels along its `width` elements.
fn pack_rows(
    b: &mut Builder,
    plan: &Plan,
    operand: &Operand,
    from: Value,
    strides: (u64, u64),
    width: u64,
    rows: Value,
    max_rows: u64,
    to: Mem,
) {
    let (_, vectors) = plan.register_tile(width);
    let nr = vectors * u64::from(plan.lanes);
    let panels = Panels {
        from: mem(operand),
        at: from,
        stride: strides.1,
        stride_k: strides.0,
        width: nr,
        lanes: plan.lanes,
    };
    let (count, zero) = (b.index(width), b.index(0));
    let packing = Packing { depth: rows, max_depth: max_rows, count, to, to_at: zero };
    pack_all(b, &panels, &packing, width % nr == 0);
}

/// Copies `rows` rows of `width` elements to scratch, row-major.
fn copy_rows(
    b: &mut Builder,
    plan: &Plan,
    operand: &Operand,
    from: Value,
    strides: (u64, u64),
    width: u64,
    rows: Value,
    to: Mem,
    to_at: Value,
) {
    let zero = b.index(0);
    b.for_each(zero, rows, 1, |b, i| {
        let row = offset_by(b, from, &[(i, strides.0)]);
        let to_row = offset_by(b, to_at, &[(i, width)]);
        for_vectors(b, width, plan.lanes, |b, j, count| {
            let index = offset_by(b, row, &[(j, strides.1)]);
            let stride = (strides.1 != 1).then(|| b.index(strides.1));
            let value = b.load_at(At { mem: mem(operand), index, stride }, plan.lanes, count);
            let index = b.add(to_row, j);
            b.store_at(At { mem: to, index, stride: None }, value, count);
        });
    });
}

/// What a product does with what its place holds.
#[derive(Clone, Copy)]
enum Update {
    Overwrite,
    Add,
    /// Multiplies what is held by a factor per row first: the region and where the first row's factor lies.
    ScaleAdd(Mem, Value),
}

/// A product of blocks in scratch: `out[rows, columns] = left · right`.
struct Product {
    left: Mem,
    left_at: Value,
    /// Elements between rows of the left operand, and along the depth.
    left_strides: (u64, u64),
    right: Mem,
    right_at: Value,
    /// Depth the panels of `right` have room for.
    max_depth: u64,
    out: Mem,
    out_at: Value,
    /// Elements between rows of `out`, whole panels.
    out_row: u64,
    /// Columns the register tile is chosen for.
    columns: u64,
}

impl Product {
    /// Rows and columns are rounded up to whole register tiles, for which `out` has room.
    fn emit(&self, b: &mut Builder, plan: &Plan, rows: Value, columns: Value, depth: Value, update: Update) {
        let (mr, vectors) = plan.register_tile(self.columns);
        let micro = Micro {
            mr,
            vectors,
            lanes: plan.lanes,
            elem: Elem::F32,
            left: self.left,
            left_strides: self.left_strides,
            right: self.right,
        };
        let n_rows = panels(b, rows, mr);
        let n_columns = panels(b, columns, micro.nr());
        let zero = b.index(0);
        b.for_each(zero, n_rows, 1, |b, i| {
            let row = b.mul_const(i, mr as i64);
            let left = offset_by(b, self.left_at, &[(row, self.left_strides.0)]);
            b.for_each(zero, n_columns, 1, |b, j| {
                let panel = panel_len(micro.nr(), self.max_depth, plan.lanes);
                let right = offset_by(b, self.right_at, &[(j, panel)]);
                let sums = micro.multiply(b, left, right, depth);
                let out = offset_by(b, self.out_at, &[(row, self.out_row), (j, micro.nr())]);
                for (v, &sum) in (0..).zip(&sums) {
                    let (i, v) = (v / vectors, v % vectors);
                    let index = b.add_const(out, (i * self.out_row + v * u64::from(plan.lanes)) as i64);
                    let sum = match update {
                        Update::Overwrite => sum,
                        Update::Add => {
                            let old = b.load(self.out, index, plan.lanes);
                            b.add(old, sum)
                        }
                        Update::ScaleAdd(factors, at) => {
                            let factor = offset_by(b, at, &[(row, 1)]);
                            let factor = b.add_const(factor, i as i64);
                            let factor = b.load(factors, factor, 1);
                            let factor = b.splat(factor, plan.lanes);
                            let old = b.load(self.out, index, plan.lanes);
                            b.fma(old, factor, sum)
                        }
                    };
                    b.store(self.out, index, sum);
                }
            });
        });
    }
}

/// Which position the lanes of a vector of scores run along.
#[derive(Clone, Copy, PartialEq)]
enum Along {
    Queries,
    Keys,
}

/// A vector of scores: the query and key of its first lane.
#[derive(Clone)]
struct Scores<'a> {
    plan: &'a Plan<'a>,
    batch: &'a [Value],
    head: Value,
    query: Value,
    key: Value,
    along: Along,
    /// Raw dot products.
    dot: Value,
    /// Lanes that exist, if some may not.
    count: Option<Value>,
}

impl Scores<'_> {
    /// A score region at these positions.
    fn region(&self, b: &mut Builder, region: &Region) -> Value {
        let value = Scope::new(region).get(b, &mut self.clone(), region.results[0]);
        if b.ty(value).is_vector() { value } else { b.splat(value, self.plan.lanes) }
    }

    /// A position as i32: of every lane where vectors run along it.
    fn position(&self, b: &mut Builder, base: Value, first: Value, along: Along) -> Value {
        let position = b.add(base, first);
        if along == self.along { ramp(b, position, self.plan.lanes) } else { b.convert(Elem::I32, position) }
    }
}

impl Source for Scores<'_> {
    fn input(&mut self, b: &mut Builder, i: u32) -> Value {
        let (base_q, base_k) = self.plan.bases(b);
        match i {
            0 => self.dot,
            1 => self.position(b, base_q, self.query, Along::Queries),
            2 => self.position(b, base_k, self.key, Along::Keys),
            _ => {
                let operand = &self.plan.shape.extras[i as usize - 3];
                let index = [self.batch, &[self.head, self.query, self.key]].concat();
                let address = at(b, operand, &index);
                let dim = index.len() - if self.along == Along::Keys { 1 } else { 2 };
                load_along(b, mem(operand), address, operand.strides[dim], self.plan.lanes, self.count)
            }
        }
    }

    fn index(&mut self, b: &mut Builder, dim: u32) -> Value {
        let (n, dim, zero) = (self.batch.len(), dim as usize, b.index(0));
        if dim < n {
            b.convert(Elem::I32, self.batch[dim])
        } else if dim == n {
            b.convert(Elem::I32, self.head)
        } else if dim == n + 1 {
            self.position(b, zero, self.query, Along::Queries)
        } else {
            self.position(b, zero, self.key, Along::Keys)
        }
    }
}

fn f32x(lanes: u32) -> Type {
    Type::vector(Elem::F32, lanes)
}
