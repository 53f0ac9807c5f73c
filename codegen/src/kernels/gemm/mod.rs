//! `Gemm`: packed, cache-blocked loops around a register tile.
//!
//! ```text
//! tile (batch, columns TN, rows TM):
//!   for each block of KC along k:                    sums of earlier blocks wait in scratch
//!     pack b[KC, TN] into panels of NR columns       stays in L2
//!     for each group of four panels of MR rows:
//!       pack a[4·MR, KC]                             unless few columns read it
//!       for each of its panels:                      stays in L1
//!         for each panel of NR columns:              streams from L2
//!           MR × NR sums in registers over KC        one broadcast of a, one vector of b, MR·NR/lanes fused multiply-adds
//! ```
//! Packing makes every layout alike: operands of any strides become panels in the order the register tile reads them,
//! padded with zeros, so that no transpose is ever materialised and the inner loop has no edges. The structure is that of
//! Goto and van de Geijn 2008 (*Anatomy of High-Performance Matrix Multiplication*, §4), with the panel of the wider side
//! streaming, as wide vectors ask for.
//!
//! Every sum runs over k in order within a block, blocks in order; it depends on neither tile nor thread.

mod block;
mod micro;
mod pack;
mod sink;

use super::buffers::{Buffers, mem, offset_by, unflatten};
use crate::kir::{Builder, CompareOp, Elem, Kernel, Mem, Value};
use crate::program::{GemmSpec, Operand};
use crate::target::Target;
pub use block::register_tile;
use block::{Blocks, Layouts};
pub use micro::Micro;
use mlc_runtime::abi::DType;
pub use pack::{Packing, Panels, pack_all, packed_len, panel_len};
use sink::Sink;

/// Panels of the left operand packed together. Where it is contiguous along its own dimension, four panels are read as
/// whole cache lines; more would only take room in L2.
const GROUP: u64 = 4;

/// Bytes after which addresses fall into the same set of L1 again.
const L1_WAY_BYTES: u64 = 4096;

/// Expands a matrix product.
pub fn gemm(spec: &GemmSpec, target: &Target) -> Kernel {
    let plan = Plan::new(spec, target);
    let mut b = Builder::new(plan.n_tiles(), 0);
    let mut buffers = Buffers::default();
    let sizes = |last: [u64; 2]| [&spec.batch[..], &last].concat();
    buffers.read("a", &spec.a, &sizes([spec.m, spec.k]));
    buffers.read("b", &spec.b, &sizes([spec.k, spec.n]));
    if spec.accumulate {
        buffers.read("c", &spec.c, &sizes([spec.m, spec.n]));
    }
    buffers.write("c", &spec.c, &sizes([spec.m, spec.n]));
    spec.extras.iter().for_each(|o| buffers.read("extra", o, &sizes([spec.m, spec.n])));
    buffers.declare(&mut b);
    let scratch = plan.scratch(&mut b);
    b.for_tiles(|b, tile| plan.tile(b, tile, &scratch));
    b.finish()
}

/// One side of the product: an operand seen as panels along its own dimension and k.
#[derive(Clone)]
struct Side<'a> {
    operand: &'a Operand,
    /// Elements between neighbouring rows of c (for the left side) or columns (right side).
    stride: u64,
    /// Elements between neighbours along k.
    stride_k: u64,
    size: u64,
}

impl Side<'_> {
    /// Whether it is contiguous along k only.
    fn is_transposed(&self) -> bool {
        self.stride != 1 && self.stride_k == 1
    }
}

/// A product whose result is walked along contiguous rows: `spec`, or its transpose if c is column-major.
struct Plan<'a> {
    spec: &'a GemmSpec,
    left: Side<'a>,
    right: Side<'a>,
    is_swapped: bool,
    blocks: Blocks,
    elem: Elem,
    dtype: DType,
    lanes: u32,
}

/// Scratch memory of one tile.
struct Scratch {
    left: Mem,
    right: Mem,
    /// One register tile, for edges and epilogues.
    micro: Mem,
    /// Sums of the whole tile, if they wait.
    sums: Option<Mem>,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a GemmSpec, target: &Target) -> Plan<'a> {
        let n = spec.batch.len();
        let a = Side {
            operand: &spec.a,
            stride: spec.a.strides[n],
            stride_k: spec.a.strides[n + 1],
            size: spec.m,
        };
        let b = Side {
            operand: &spec.b,
            stride: spec.b.strides[n + 1],
            stride_k: spec.b.strides[n],
            size: spec.n,
        };
        let (c_m, c_n) = (spec.c.strides[n], spec.c.strides[n + 1]);
        let is_swapped = c_n != 1 && (c_m == 1 || spec.n == 1) && spec.m > 1;
        let (left, right) = if is_swapped { (b, a) } else { (a, b) };
        let is_wide = [&spec.a, &spec.b].iter().any(|o| o.dtype == DType::F64);
        let (elem, dtype) = if is_wide { (Elem::F64, DType::F64) } else { (Elem::F32, DType::F32) };
        let lanes = target.lanes(dtype.bytes());
        let layouts = Layouts {
            transposes_rows: left.is_transposed(),
            transposes_columns: right.is_transposed(),
            rows_in_place: left.stride_k == 1
                && left.operand.dtype == dtype
                && left.stride * dtype.bytes() % L1_WAY_BYTES != 0,
        };
        let blocks =
            Blocks::choose(left.size, right.size, spec.k, u64::from(lanes), dtype.bytes(), layouts, target);
        Plan { spec, left, right, is_swapped, blocks, elem, dtype, lanes }
    }

    fn n_tiles(&self) -> u64 {
        self.spec.batch.iter().product::<u64>() * self.blocks.n_rows * self.blocks.n_columns
    }

    /// Whether c holds sums as they are.
    fn stores_sums(&self) -> bool {
        self.spec.epilogue.is_none() && self.spec.c.dtype == self.dtype
    }

    /// Whether sums of a tile gather in scratch before they go to c: between blocks along k, and where they are added to
    /// c, because whole rows of c are then fetched in order rather than a register tile at a time.
    fn sums_wait(&self) -> bool {
        self.blocks.n_k > 1 || self.spec.accumulate
    }

    fn scratch(&self, b: &mut Builder) -> Scratch {
        let k = &self.blocks;
        let left = packed_len(GROUP * k.mr, k.mr, k.kc, self.lanes);
        let left = b.scratch("a_panels", self.dtype, left);
        let right = b.scratch("b_panels", self.dtype, packed_len(k.tile_columns, k.nr, k.kc, self.lanes));
        let micro = b.scratch("tile", self.dtype, k.mr * k.nr);
        let sums = self.sums_wait().then(|| b.scratch("sums", self.dtype, k.tile_rows * k.tile_columns));
        Scratch { left, right, micro, sums }
    }

    fn tile(&self, b: &mut Builder, tile: Value, scratch: &Scratch) {
        let k = &self.blocks;
        let sizes: Vec<u64> = self.spec.batch.iter().copied().chain([k.n_columns, k.n_rows]).collect();
        let mut batch = unflatten(b, tile, &sizes);
        let row_block = batch.pop().expect("tile has a row block");
        let column_block = batch.pop().expect("tile has a column block");
        let place = Place {
            row: b.mul_const(row_block, k.tile_rows as i64),
            column: b.mul_const(column_block, k.tile_columns as i64),
            batch,
        };
        let rows = self.limit(b, place.row, k.tile_rows, self.left.size);
        let columns = self.limit(b, place.column, k.tile_columns, self.right.size);
        b.for_range(k.n_k, |b, block| {
            let first = b.mul_const(block, k.kc as i64);
            let depth = self.limit(b, first, k.kc, self.spec.k);
            let zero = b.index(0);
            let is_later = b.compare(CompareOp::Ne, block, zero);
            let sink = Sink { plan: self, scratch, place: &place, rows, columns, is_later };
            self.block(b, &sink, first, depth);
            if !self.sums_wait() {
                return;
            }
            let is_last = b.index(k.n_k - 1);
            let is_last = b.compare(CompareOp::Eq, block, is_last);
            b.if_then(is_last, |b| sink.finish_tile(b));
        });
    }

    /// `min(size − start, block)`, a constant where all blocks are whole.
    fn limit(&self, b: &mut Builder, start: Value, block: u64, size: u64) -> Value {
        let most = b.index(block);
        if size % block == 0 {
            return most;
        }
        let end = b.index(size);
        let left = b.sub(end, start);
        b.min(left, most)
    }

    /// Products of one block along k.
    fn block(&self, b: &mut Builder, sink: &Sink, first: Value, depth: Value) {
        let k = &self.blocks;
        let right = self.panels(b, &self.right, sink.place, sink.place.column, first, k.nr);
        let zero = b.index(0);
        let (to, to_at) = (sink.scratch.right, zero);
        let packing = Packing { depth, max_depth: k.kc, count: sink.columns, to, to_at };
        pack_all(b, &right, &packing, k.tile_columns_are_whole(self.right.size));
        let group_rows = GROUP * k.mr;
        b.for_each(zero, sink.rows, group_rows as i64, |b, start| {
            let left_rows = b.sub(sink.rows, start);
            let most = b.index(group_rows);
            let rows = b.min(left_rows, most);
            let from = b.add(sink.place.row, start);
            let left = self.panels(b, &self.left, sink.place, from, first, k.mr);
            if !k.packs_rows {
                let walk = LeftWalk { start, rows, at: left.at, panel: k.mr * left.stride };
                return self.products(
                    b,
                    sink,
                    depth,
                    &right,
                    &walk,
                    mem(self.left.operand),
                    (left.stride, 1),
                );
            }
            let to = sink.scratch.left;
            let packing = Packing { depth, max_depth: k.kc, count: rows, to, to_at: zero };
            pack_all(b, &left, &packing, k.tile_rows_are_whole(self.left.size));
            let walk = LeftWalk { start, rows, at: zero, panel: left.panel_len(k.kc) };
            self.products(b, sink, depth, &right, &walk, to, (1, k.mr));
        });
    }

    /// Register tiles of a group of rows with all packed columns.
    fn products(
        &self,
        b: &mut Builder,
        sink: &Sink,
        depth: Value,
        right: &Panels,
        walk: &LeftWalk,
        left: Mem,
        left_strides: (u64, u64),
    ) {
        let k = &self.blocks;
        let micro = Micro {
            mr: k.mr,
            vectors: k.nr / u64::from(self.lanes),
            lanes: self.lanes,
            elem: self.elem,
            left,
            left_strides,
            right: sink.scratch.right,
        };
        let zero = b.index(0);
        let n_panels = panels(b, sink.columns, k.nr);
        let m_panels = panels(b, walk.rows, k.mr);
        b.for_each(zero, m_panels, 1, |b, i| {
            let row = offset_by(b, walk.start, &[(i, k.mr)]);
            let left_at = offset_by(b, walk.at, &[(i, walk.panel)]);
            b.for_each(zero, n_panels, 1, |b, j| {
                let column = b.mul_const(j, k.nr as i64);
                let right_at = b.mul_const(j, right.panel_len(k.kc) as i64);
                let sums = micro.multiply(b, left_at, right_at, depth);
                sink.store(b, row, column, &sums);
            });
        });
    }

    /// The operand's elements from `start` along its own dimension and `first` along k.
    fn panels(
        &self,
        b: &mut Builder,
        side: &Side,
        place: &Place,
        start: Value,
        first: Value,
        width: u64,
    ) -> Panels {
        let base = b.index(side.operand.offset);
        let mut terms: Vec<(Value, u64)> =
            place.batch.iter().zip(&side.operand.strides).map(|(&i, &s)| (i, s)).collect();
        terms.push((start, side.stride));
        terms.push((first, side.stride_k));
        Panels {
            from: mem(side.operand),
            at: offset_by(b, base, &terms),
            stride: side.stride,
            stride_k: side.stride_k,
            width,
            lanes: self.lanes,
        }
    }
}

/// `⌈count / width⌉`.
pub fn panels(b: &mut Builder, count: Value, width: u64) -> Value {
    if let Some(count) = b.known(count) {
        return b.index((count as u64).div_ceil(width));
    }
    let rounded = b.add_const(count, width as i64 - 1);
    let width = b.index(width);
    b.div(rounded, width)
}

/// A group of rows: the first of them in the tile, how many, and where their panels lie in the left operand.
struct LeftWalk {
    start: Value,
    rows: Value,
    at: Value,
    panel: u64,
}

/// Where a tile lies in c.
struct Place {
    batch: Vec<Value>,
    row: Value,
    column: Value,
}
