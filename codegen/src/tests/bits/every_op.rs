//! Every op on every lane type it accepts, as scalar and as vectors of 2 to 16 lanes.

use super::{Draw, check, fill};
use crate::abi::DType;
use crate::kir::{Access, BinaryOp, Builder, CompareOp, Elem, Kernel, Mem, Op, ReduceOp, UnaryOp, Value};

const WIDTHS: [u32; 7] = [1, 2, 3, 4, 7, 8, 16];
const TILES: u64 = 64;

fn memory(elem: Elem) -> DType {
    match elem {
        Elem::I1 => DType::Bool,
        Elem::I32 => DType::I32,
        Elem::I64 => DType::I64,
        Elem::F32 => DType::F32,
        Elem::F64 => DType::F64,
    }
}

/// A kernel under construction whose results each go to a buffer of their own.
struct Results {
    outputs: Vec<(String, Value)>,
}

impl Results {
    fn keep(&mut self, name: impl Into<String>, value: Value) {
        self.outputs.push((name.into(), value));
    }
}

/// All ops of operands `a`, `b`, `c` of one type and lanes, and `m` of `i1`.
fn all_ops(b: &mut Builder, results: &mut Results, a: Value, other: Value, c: Value, m: Value) {
    let ty = b.ty(a);
    for op in UnaryOp::ALL.into_iter().filter(|op| op.accepts(ty.elem)) {
        let value = b.unary(op, a);
        results.keep(op.name(), value);
    }
    for op in BinaryOp::ALL.into_iter().filter(|op| op.accepts(ty.elem)) {
        let value = b.binary(op, a, other);
        results.keep(op.name(), value);
    }
    for op in CompareOp::ALL.into_iter().filter(|op| op.accepts(ty.elem)) {
        let value = b.compare(op, a, other);
        results.keep(op.name(), value);
    }
    if ty.elem.is_float() {
        let value = b.fma(a, other, c);
        results.keep("fma", value);
    }
    let value = b.select(m, a, other);
    results.keep("select", value);
    for elem in Elem::ALL.into_iter().filter(|&e| e != ty.elem) {
        let value = b.convert(elem, a);
        results.keep(format!("convert_{}", elem.name()), value);
    }
    lanes(b, results, a, other);
}

fn lanes(b: &mut Builder, results: &mut Results, a: Value, other: Value) {
    let ty = b.ty(a);
    if !ty.is_vector() {
        return;
    }
    for op in ReduceOp::ALL.into_iter().filter(|op| op.binary().accepts(ty.elem)) {
        let value = b.reduce(op, a);
        results.keep(format!("reduce_{}", op.name()), value);
    }
    let last = b.extract(a, ty.lanes - 1);
    results.keep("extract", last);
    let value = b.splat(last, ty.lanes);
    results.keep("splat", value);
    let value = b.insert(other, last, ty.lanes / 2);
    results.keep("insert", value);
    let picked: Vec<u32> = (0..ty.lanes + 1).map(|l| (l * 5 + 1) % (2 * ty.lanes)).collect();
    let value = b.shuffle(a, other, &picked);
    results.keep("shuffle", value);
    if matches!(ty.elem, Elem::I32 | Elem::I64) {
        let iota = b.iota(ty.elem, ty.lanes);
        results.keep("iota", iota);
    }
}

/// `TILES` tiles, each loading its lanes of the operands and storing its lanes of every result.
fn kernel(elem: Elem, width: u32) -> (Kernel, Vec<DType>) {
    let n = TILES * width as u64;
    // Results are known once the body is built, buffers have to be declared before: build twice.
    let build = |outputs: &[(String, Elem, u32)]| {
        let mut b = Builder::new(TILES, 0);
        let inputs: Vec<Mem> =
            ["a", "b", "c"].iter().map(|name| b.buffer(name, memory(elem), n, Access::Read)).collect();
        let mask = b.buffer("m", DType::Bool, n, Access::Read);
        let declare = |(name, elem, lanes): &(String, Elem, u32)| {
            b.buffer(&format!("out_{name}"), memory(*elem), TILES * *lanes as u64, Access::Write)
        };
        let outs: Vec<Mem> = outputs.iter().map(declare).collect();
        let mut results = Results { outputs: Vec::new() };
        let mut types = Vec::new();
        b.for_tiles(|b, tile| {
            let at = b.mul_const(tile, width as i64);
            let [a, other, c] = [inputs[0], inputs[1], inputs[2]].map(|m| b.load(m, at, width));
            let m = b.load(mask, at, width);
            all_ops(b, &mut results, a, other, c, m);
            types = results
                .outputs
                .iter()
                .map(|(name, v)| (name.clone(), b.ty(*v).elem, b.ty(*v).lanes))
                .collect();
            for (&out, (_, value)) in outs.iter().zip(&results.outputs) {
                let at = b.mul_const(tile, b.ty(*value).lanes as i64);
                b.store(out, at, *value);
            }
        });
        (b.finish(), types)
    };
    let (_, outputs) = build(&[]);
    let (kernel, _) = build(&outputs);
    let dtypes = kernel.buffers.iter().map(|buffer| buffer.dtype).collect();
    (kernel, dtypes)
}

#[test]
fn every_op_on_every_type_and_width() {
    let mut draw = Draw::new(1);
    let mut cases = Vec::new();
    for elem in Elem::ALL {
        for width in WIDTHS {
            let (kernel, dtypes) = kernel(elem, width);
            let buffers = dtypes
                .iter()
                .zip(&kernel.buffers)
                .map(|(&d, buffer)| fill(&mut draw, d, buffer.len))
                .collect();
            cases.push((kernel, buffers, vec![]));
        }
    }
    check(&cases);
}

#[test]
fn bitcasts_of_numbers() {
    let mut draw = Draw::new(2);
    let mut cases = Vec::new();
    for (from, to) in
        [(Elem::F32, Elem::I32), (Elem::I32, Elem::F32), (Elem::F64, Elem::I64), (Elem::I64, Elem::F64)]
    {
        for width in WIDTHS {
            let n = TILES * width as u64;
            let mut b = Builder::new(TILES, 0);
            let x = b.buffer("x", memory(from), n, Access::Read);
            let y = b.buffer("y", memory(to), n, Access::Write);
            b.for_tiles(|b, tile| {
                let at = b.mul_const(tile, width as i64);
                let mut value = b.load(x, at, width);
                if from.is_float() {
                    // The bits of a NaN are nobody's business.
                    let number = b.compare(CompareOp::Eq, value, value);
                    let zero = b.const_float(b.ty(value), 0.0);
                    value = b.select(number, value, zero);
                }
                let value = b.bitcast(to, value);
                b.store(y, at, value);
            });
            let buffers = vec![fill(&mut draw, memory(from), n), fill(&mut draw, memory(to), n)];
            cases.push((b.finish(), buffers, vec![]));
        }
    }
    check(&cases);
}

#[test]
fn round_bf16_of_every_upper_half() {
    // All 65536 upper halves with lower halves below, at and above the middle.
    let n = 1 << 16;
    let mut cases = Vec::new();
    for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
        let mut b = Builder::new(n / 16, 0);
        let x = b.buffer("x", DType::F32, n, Access::Read);
        let y = b.buffer("y", DType::F32, n, Access::Write);
        let z = b.buffer("z", DType::Bf16, n, Access::Write);
        b.for_tiles(|b, tile| {
            let at = b.mul_const(tile, 16);
            let value = b.load(x, at, 16);
            b.store(z, at, value);
            let rounded = b.unary(UnaryOp::RoundBf16, value);
            b.store(y, at, rounded);
        });
        let input = (0..n as u32).flat_map(|high| (high << 16 | low).to_le_bytes()).collect();
        cases.push((b.finish(), vec![input, vec![0; 4 * n as usize], vec![0; 2 * n as usize]], vec![]));
    }
    check(&cases);
}

/// Ops that the other tests of this file make.
#[test]
fn every_kind_of_op_is_made_by_some_test() {
    let mut names: Vec<&str> = Vec::new();
    for elem in Elem::ALL {
        let (kernel, _) = kernel(elem, 4);
        let Op::For(tiles) = &kernel.body.insts.last().unwrap().op else {
            panic!("the kernel ends in a loop")
        };
        for inst in kernel.body.insts.iter().chain(&tiles.body.insts) {
            names.push(match &inst.op {
                Op::Const(..) => "const",
                Op::Iota(_) => "iota",
                Op::Unary(op, _) => op.name(),
                Op::Binary(op, ..) => op.name(),
                Op::Fma(..) => "fma",
                Op::Compare(op, ..) => op.name(),
                Op::Select(..) => "select",
                Op::Convert(..) => "convert",
                Op::Bitcast(..) => "bitcast",
                Op::Splat(..) => "splat",
                Op::Extract(..) => "extract",
                Op::Insert(..) => "insert",
                Op::Shuffle(..) => "shuffle",
                Op::Reduce(..) => "reduce",
                Op::Load { .. } => "load",
                Op::Gather { .. } => "gather",
                Op::Store { .. } => "store",
                Op::For(_) => "for",
                Op::If(_) => "if",
            });
        }
    }
    for op in UnaryOp::ALL.map(UnaryOp::name).into_iter().chain(BinaryOp::ALL.map(BinaryOp::name)) {
        assert!(names.contains(&op), "{op}");
    }
    for op in [
        "iota", "fma", "select", "convert", "splat", "extract", "insert", "shuffle", "reduce", "load",
        "store",
    ] {
        assert!(names.contains(&op), "{op}");
    }
}
