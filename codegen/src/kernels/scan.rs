//! `Scan`: running sums.
//!
//! The dimension whose neighbours lie closest, other than the summed one, is walked by vectors; a vector of sums then goes
//! along the summed dimension element by element. A tile is a block of such columns, so no tile needs another's sum and
//! the order of additions is that of the spec.

use super::buffers::{Buffers, load_along, mem, step, store_along};
use super::gather::walk;
use super::loops::{for_vectors, part_of};
use super::space::{Dim, dims_of, merge};
use crate::kir::{Builder, Kernel, Type, Value};
use crate::program::ScanSpec;
use crate::target::Target;

/// Elements of one tile, about.
const TILE_ELEMENTS: u64 = 16 << 10;

/// Positions in a dimension's strides.
const OUT: usize = 0;
const INPUT: usize = 1;

/// Expands a running sum.
pub fn scan(spec: &ScanSpec, target: &Target) -> Kernel {
    let strides = [&spec.out.strides[..], &spec.input.strides];
    let last = spec.dims.len() - 1;
    let summed =
        Dim { size: spec.dims[last], strides: strides.iter().map(|s| s[last]).collect(), pinned: None };
    let mut rest = dims_of(&spec.dims, 0..last, &strides, &|_| false);
    rest.sort_by_key(|d| std::cmp::Reverse(d.strides[OUT]));
    let mut rest = merge(rest);
    let inner = rest.pop().unwrap_or(Dim { size: 1, strides: vec![1, 1], pinned: None });
    let n_outer: u64 = rest.iter().map(|d| d.size).product();
    let per_tile = (TILE_ELEMENTS / (inner.size * summed.size)).clamp(1, n_outer);
    let lanes = u64::from(target.lanes(spec.out.dtype.bytes().max(4))).min(inner.size.next_power_of_two());

    let mut b = Builder::new(n_outer.div_ceil(per_tile), 0);
    let mut buffers = Buffers::default();
    buffers.read("input", &spec.input, &spec.dims);
    buffers.write("out", &spec.out, &spec.dims);
    buffers.declare(&mut b);
    b.for_tiles(|b, tile| {
        let (lo, hi) = part_of(b, tile, per_tile, n_outer);
        b.for_each(lo, hi, 1, |b, flat| {
            let start = [&spec.out, &spec.input].map(|o| b.index(o.offset));
            let at = walk(b, &start, &rest, flat);
            for_vectors(b, inner.size, lanes as u32, |b, column, count| {
                let at = step(b, &at, &inner.strides, column);
                column_of_sums(b, spec, &summed, &inner, &at, lanes as u32, count);
            });
        });
    });
    b.finish()
}

fn column_of_sums(
    b: &mut Builder,
    spec: &ScanSpec,
    summed: &Dim,
    inner: &Dim,
    at: &[Value],
    lanes: u32,
    count: Option<Value>,
) {
    let (out, input) = (mem(&spec.out), mem(&spec.input));
    let ty = Type::vector(b.elem(out), lanes);
    let none = b.constant(ty, 0.0);
    let (zero, end) = (b.index(0), b.index(summed.size));
    b.for_carried(zero, end, 1, &[none], |b, i, sums| {
        let position = if spec.reverse {
            let last = b.index(summed.size - 1);
            b.sub(last, i)
        } else {
            i
        };
        let at = step(b, at, &summed.strides, position);
        let x = load_along(b, input, at[INPUT], inner.strides[INPUT], lanes, count);
        let x = b.convert(b.elem(out), x);
        let x = if b.ty(x).lanes == lanes { x } else { b.splat(x, lanes) };
        let sum = b.add(sums[0], x);
        let kept = if spec.exclusive { sums[0] } else { sum };
        store_along(b, out, at[OUT], inner.strides[OUT], lanes, kept, count);
        vec![sum]
    });
}
