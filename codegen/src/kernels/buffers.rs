//! The buffers of a kernel, gathered from its operands.

use crate::kir::{Access, At, Builder, Mem, Value};
use crate::program::Operand;
use mlc_runtime::abi::DType;
use std::collections::BTreeMap;

/// Collects operands before the kernel is built: several may name one buffer.
#[derive(Debug, Default)]
pub struct Buffers {
    uses: BTreeMap<u32, Use>,
}

#[derive(Debug)]
struct Use {
    name: String,
    dtype: DType,
    len: u64,
    reads: bool,
    writes: bool,
}

impl Buffers {
    /// An operand that is read over `dims`.
    pub fn read(&mut self, name: &str, operand: &Operand, dims: &[u64]) {
        self.add(name, operand, extent(operand, dims), true, false);
    }

    /// An operand that is written over `dims`.
    pub fn write(&mut self, name: &str, operand: &Operand, dims: &[u64]) {
        self.add(name, operand, extent(operand, dims), false, true);
    }

    /// An operand of which elements below `len` are touched.
    pub fn add(&mut self, name: &str, operand: &Operand, len: u64, reads: bool, writes: bool) {
        let slot = self.uses.entry(operand.buffer).or_insert_with(|| Use {
            name: name.to_string(),
            dtype: operand.dtype,
            len: 0,
            reads: false,
            writes: false,
        });
        slot.len = slot.len.max(len);
        slot.reads |= reads;
        slot.writes |= writes;
    }

    /// Declares all of them. A number no operand names is a buffer of one element that nothing touches.
    pub fn declare(self, b: &mut Builder) {
        let mut next = 0;
        for (number, u) in self.uses {
            while next < number {
                b.buffer("unused", DType::F32, 1, Access::Read);
                next += 1;
            }
            let access = match (u.reads, u.writes) {
                (true, true) => Access::ReadWrite,
                (false, true) => Access::Write,
                (_, false) => Access::Read,
            };
            b.buffer(&u.name, u.dtype, u.len, access);
            next += 1;
        }
    }
}

/// Elements from the buffer's start to the last one the operand touches over `dims`.
pub fn extent(operand: &Operand, dims: &[u64]) -> u64 {
    operand.offset + dims.iter().zip(&operand.strides).map(|(d, s)| d.saturating_sub(1) * s).sum::<u64>() + 1
}

/// The region of an operand.
pub fn mem(operand: &Operand) -> Mem {
    Mem::Buffer(operand.buffer)
}

/// Loads from `mem` along a dimension of constant `stride`: a scalar if it is 0.
pub fn load_along(
    b: &mut Builder,
    mem: Mem,
    index: Value,
    stride: u64,
    lanes: u32,
    count: Option<Value>,
) -> Value {
    match stride {
        0 => b.load(mem, index, 1),
        1 => b.load_at(At { mem, index, stride: None }, lanes, count),
        2 if lanes > 1 => load_every_other(b, mem, index, lanes, count),
        _ => {
            let stride = b.index(stride);
            b.load_at(At { mem, index, stride: Some(stride) }, lanes, count)
        }
    }
}

/// Loads two contiguous vectors and keeps every other lane: far cheaper than one access per lane. Nothing is read beyond
/// the last element asked for.
fn load_every_other(b: &mut Builder, mem: Mem, index: Value, lanes: u32, count: Option<Value>) -> Value {
    let (low, high) = match count {
        None => (None, b.index(u64::from(lanes) - 1)),
        Some(count) => {
            let twice = b.mul_const(count, 2);
            let span = b.add_const(twice, -1);
            let (low, high) = halves(b, span, lanes);
            (Some(low), high)
        }
    };
    let x = b.load_at(At { mem, index, stride: None }, lanes, low);
    let index = b.add_const(index, i64::from(lanes));
    let y = b.load_at(At { mem, index, stride: None }, lanes, Some(high));
    let even: Vec<u32> = (0..lanes).map(|i| 2 * i).collect();
    b.shuffle(x, y, &even)
}

/// Active lanes of two neighbouring vectors that hold `n` elements together.
fn halves(b: &mut Builder, n: Value, lanes: u32) -> (Value, Value) {
    let (most, none) = (b.index(u64::from(lanes)), b.index(0));
    let low = b.min(n, most);
    let low = b.max(low, none);
    let high = b.sub(n, low);
    (low, b.max(high, none))
}

/// Stores `even` and `odd` alternately to neighbouring elements, `count` of each.
pub fn store_interleaved(
    b: &mut Builder,
    mem: Mem,
    index: Value,
    even: Value,
    odd: Value,
    lanes: u32,
    count: Option<Value>,
) {
    let [even, odd] = [even, odd].map(|v| {
        let v = b.convert(b.elem(mem), v);
        if b.ty(v).lanes == lanes { v } else { b.splat(v, lanes) }
    });
    let (low, high) = match count {
        None => (None, None),
        Some(count) => {
            let n = b.mul_const(count, 2);
            let (low, high) = halves(b, n, lanes);
            (Some(low), Some(high))
        }
    };
    for (first, count) in [(0, low), (lanes / 2, high)] {
        let order: Vec<u32> =
            (0..lanes).map(|i| first + i / 2 + if i % 2 == 0 { 0 } else { lanes }).collect();
        let value = b.shuffle(even, odd, &order);
        let index = b.add_const(index, 2 * i64::from(first));
        b.store_at(At { mem, index, stride: None }, value, count);
    }
}

/// Stores to `mem` along a dimension of constant `stride`, converting to the region's register type.
pub fn store_along(
    b: &mut Builder,
    mem: Mem,
    index: Value,
    stride: u64,
    lanes: u32,
    value: Value,
    count: Option<Value>,
) {
    let value = b.convert(b.elem(mem), value);
    let value = if b.ty(value).lanes == lanes { value } else { b.splat(value, lanes) };
    let stride = (stride != 1 && lanes > 1).then(|| b.index(stride));
    b.store_at(At { mem, index, stride }, value, count);
}

/// `Σ index·stride` plus a start.
pub fn offset_by(b: &mut Builder, start: Value, terms: &[(Value, u64)]) -> Value {
    let mut sum = start;
    for &(index, stride) in terms {
        if stride != 0 {
            let term = b.mul_const(index, stride as i64);
            sum = b.add(sum, term);
        }
    }
    sum
}

/// Splits a flat index into one per dimension, outermost first.
pub fn unflatten(b: &mut Builder, flat: Value, dims: &[u64]) -> Vec<Value> {
    let mut rest = flat;
    let mut index = Vec::new();
    for (i, &d) in dims.iter().enumerate().rev() {
        let size = b.index(d);
        if d == 1 {
            index.push(b.index(0));
        } else if i == 0 {
            index.push(rest);
        } else {
            index.push(b.rem(rest, size));
            rest = b.div(rest, size);
        }
    }
    index.reverse();
    index
}

/// Every address moved by `index` steps of its stride.
pub fn step(b: &mut Builder, at: &[Value], strides: &[u64], index: Value) -> Vec<Value> {
    at.iter().zip(strides).map(|(&a, &s)| offset_by(b, a, &[(index, s)])).collect()
}
