//! Loads and stores of every memory type: plain, of the first lanes only, strided, gathered, through scratch.

use super::{Draw, check, fill};
use crate::abi::DType;
use crate::kir::{Access, At, Builder, Elem, Kernel};

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::Bf16, DType::I32, DType::I64, DType::Bool];
const WIDTHS: [u32; 5] = [1, 2, 5, 8, 16];

/// Elements of the buffers, enough for 16 lanes with a stride of 3 from every start.
const LEN: u64 = 256;

/// Tile `t` copies with `count = t − 1` lanes (so from −1 to beyond the width), from element `3 t` on.
fn masked(dtype: DType, width: u32, stride: Option<i64>) -> Kernel {
    let mut b = Builder::new(width as u64 + 3, 0);
    let x = b.buffer("x", dtype, LEN, Access::Read);
    let y = b.buffer("y", dtype, LEN * 32, Access::Write);
    b.for_tiles(|b, tile| {
        let count = b.add_const(tile, -1);
        let index = b.mul_const(tile, 3);
        let stride = stride.filter(|_| width > 1).map(|s| b.i64(s));
        let index = if stride.is_some() { b.add_const(index, 48) } else { index };
        let value = b.load_at(At { mem: x, index, stride }, width, Some(count));
        let out = b.mul_const(tile, LEN as i64);
        let out = b.add_const(out, 64);
        b.store_at(At { mem: y, index: out, stride }, value, Some(count));
        // All lanes, so that the zeros of the others are seen.
        let out = b.add_const(out, 128);
        b.store(y, out, value);
    });
    b.finish()
}

#[test]
fn masked_and_strided_loads_and_stores() {
    let mut draw = Draw::new(3);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for width in WIDTHS {
            for stride in [None, Some(0), Some(3), Some(-2)] {
                let kernel = masked(dtype, width, stride);
                let buffers = vec![fill(&mut draw, dtype, LEN), fill(&mut draw, dtype, LEN * 32)];
                cases.push((kernel, buffers, vec![]));
            }
        }
    }
    check(&cases);
}

/// `y[i] = x[ids[i]]` for the first `scalar 0` lanes.
fn gather(dtype: DType, width: u32, ids: DType) -> Kernel {
    let mut b = Builder::new(4, 1);
    let x = b.buffer("x", dtype, LEN, Access::Read);
    let indices = b.buffer("ids", ids, 4 * width as u64, Access::Read);
    let y = b.buffer("y", dtype, 8 * width as u64, Access::Write);
    b.for_tiles(|b, tile| {
        let at = b.mul_const(tile, width as i64);
        let index = b.load(indices, at, width);
        let all = b.gather(x, index, None);
        b.store(y, at, all);
        let some = b.gather(x, index, Some(b.scalar(0)));
        let at = b.add_const(at, 4 * width as i64);
        b.store(y, at, some);
    });
    b.finish()
}

#[test]
fn gathers() {
    let mut draw = Draw::new(4);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for width in [2, 5, 8, 16] {
            for ids in [DType::I32, DType::I64] {
                let list: Vec<u8> = (0..4 * width as u64)
                    .flat_map(|_| (draw.bits() % LEN).to_le_bytes()[..ids.bytes() as usize].to_vec())
                    .collect();
                let buffers =
                    vec![fill(&mut draw, dtype, LEN), list, fill(&mut draw, dtype, 8 * width as u64)];
                cases.push((
                    gather(dtype, width, ids),
                    buffers,
                    vec![draw.below(width as usize + 2) as i64 - 1],
                ));
            }
        }
    }
    check(&cases);
}

#[test]
fn scratch_pieces_do_not_overlap() {
    // Writes 9 elements of each of two pieces per type, then copies both out.
    let mut draw = Draw::new(5);
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let mut b = Builder::new(1, 0);
        let x = b.buffer("x", dtype, 18, Access::Read);
        let y = b.buffer("y", dtype, 18, Access::Write);
        let pieces = [b.scratch("first", dtype, 9), b.scratch("second", dtype, 9)];
        for (i, &piece) in pieces.iter().enumerate() {
            let at = b.index(9 * i as u64);
            let zero = b.index(0);
            let value = b.load(x, at, 9);
            b.store(piece, zero, value);
        }
        for (i, &piece) in pieces.iter().enumerate() {
            let at = b.index(9 * i as u64);
            let zero = b.index(0);
            let value = b.load(piece, zero, 9);
            b.store(y, at, value);
        }
        cases.push((b.finish(), vec![fill(&mut draw, dtype, 18), fill(&mut draw, dtype, 18)], vec![]));
    }
    check(&cases);
}

#[test]
fn stores_in_place_are_seen_by_later_loads() {
    let mut b = Builder::new(1, 0);
    let x = b.buffer("x", DType::F32, 64, Access::ReadWrite);
    let n = b.index(60);
    let one = b.index(1);
    let half = b.const_float(crate::kir::Type::F32, 0.5);
    b.for_each(one, n, 1, |b, i| {
        let before = b.add_const(i, -1);
        let (last, this) = (b.load(x, before, 1), b.load(x, i, 1));
        let value = b.fma(last, half, this);
        b.store(x, i, value);
    });
    assert_eq!(b.elem(x), Elem::F32);
    check(&[(b.finish(), vec![fill(&mut Draw::new(6), DType::F32, 64)], vec![])]);
}
