//! `Gemm`: packed, cache-blocked loops around a register tile.
//!
//! ```text
//! tile (batch, columns TN, rows TM):
//!   for each block of KC along k:                    sums of earlier blocks wait in c, or in scratch
//!     pack b[KC, TN] into panels of NR columns       stays in L2
//!     for each panel of MR rows:
//!       pack a[MR, KC]                               stays in L1
//!       for each panel of NR columns:                streams from L2
//!         MR × NR sums in registers over KC          one broadcast of a, one vector of b, MR·NR/lanes fused multiply-adds
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

use super::buffers::{Buffers, offset_by, unflatten};
use crate::kir::{Builder, Elem, Kernel, Mem, Value};
use crate::program::{GemmSpec, Operand};
use crate::target::Target;
use block::Blocks;
pub use block::register_tile;
pub use micro::Micro;
use mlc_runtime::abi::DType;
pub use pack::{Packing, Panels, pack, pack_all};
use sink::{Adds, Sink};

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
    if plan.sums_in_c() && plan.blocks.n_k > 1 {
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
    /// Sums of the whole tile, if they can't wait in c.
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
        let blocks = Blocks::choose(left.size, right.size, spec.k, u64::from(lanes), dtype.bytes(), target);
        Plan { spec, left, right, is_swapped, blocks, elem, dtype, lanes }
    }

    fn n_tiles(&self) -> u64 {
        self.spec.batch.iter().product::<u64>() * self.blocks.n_rows * self.blocks.n_columns
    }

    /// Whether sums of k blocks may wait in c: it holds the sum as it is, and nothing else reads it.
    fn sums_in_c(&self) -> bool {
        self.spec.epilogue.is_none() && self.spec.c.dtype == self.dtype
    }

    fn scratch(&self, b: &mut Builder) -> Scratch {
        let k = &self.blocks;
        // A packed vector may be stored past the end of the last panel.
        let padding = u64::from(self.lanes) * k.mr.max(k.nr);
        let left = b.scratch("a_panel", self.dtype, k.mr * k.kc + padding);
        let right = b.scratch("b_panels", self.dtype, k.tile_columns * k.kc + padding);
        let micro = b.scratch("tile", self.dtype, k.mr * k.nr);
        let sums = (k.n_k > 1 && !self.sums_in_c())
            .then(|| b.scratch("sums", self.dtype, k.tile_rows * k.tile_columns));
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
            let adds = match (self.spec.accumulate && scratch.sums.is_none(), k.n_k) {
                (true, _) => Adds::Always,
                (false, 1) => Adds::Never,
                (false, _) => Adds::If(b.compare(crate::kir::CompareOp::Ne, block, zero)),
            };
            let sink = Sink { plan: self, scratch, place: &place, rows, columns, adds };
            self.block(b, &sink, first, depth);
        });
        if scratch.sums.is_some() {
            let adds = if self.spec.accumulate { Adds::Always } else { Adds::Never };
            Sink { plan: self, scratch, place: &place, rows, columns, adds }.finish_tile(b);
        }
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
        let packing = Packing { depth, max_depth: k.kc, count: sink.columns, to: sink.scratch.right };
        pack_all(b, &right, &packing, k.tile_columns_are_whole(self.right.size));
        let n_panels = panels(b, sink.columns, k.nr);
        let zero = b.index(0);
        let left = self.panels(b, &self.left, sink.place, sink.place.row, first, k.mr);
        let m_panels = panels(b, sink.rows, k.mr);
        b.for_each(zero, m_panels, 1, |b, i| {
            let row = b.mul_const(i, k.mr as i64);
            let packing = Packing { depth, max_depth: k.kc, count: sink.rows, to: sink.scratch.left };
            pack(b, &left, &packing, row, zero, k.tile_rows_are_whole(self.left.size));
            b.for_each(zero, n_panels, 1, |b, j| {
                let column = b.mul_const(j, k.nr as i64);
                let right_at = b.mul_const(j, (k.nr * k.kc) as i64);
                let micro = Micro {
                    mr: k.mr,
                    vectors: k.nr / u64::from(self.lanes),
                    lanes: self.lanes,
                    elem: self.elem,
                    left: sink.scratch.left,
                    left_strides: (1, k.mr),
                    right: sink.scratch.right,
                };
                let sums = micro.multiply(b, zero, right_at, depth);
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
            from: super::buffers::mem(side.operand),
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

/// Where a tile lies in c.
struct Place {
    batch: Vec<Value>,
    row: Value,
    column: Value,
}
