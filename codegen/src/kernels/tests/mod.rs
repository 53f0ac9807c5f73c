//! Kernels against the plain evaluator, on both targets, over many shapes.

mod attention;
mod gather;
mod gemm;
mod map;
mod rows;
mod scan;
mod scatter;

use super::expand;
use crate::kir::Kernel;
use crate::kir::interpret::interpret;
use crate::program::reference::{self, Precision};
use crate::program::region::{BinaryOp, ReduceOp, Region, ScalarId, ScalarOp, UnaryOp};
use crate::program::{KernelSpec, Operand};
use crate::target::{TARGETS, Target};
use mlc_runtime::abi::DType;

/// A small deterministic generator (Steele, Lea, Flood 2014, SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// In `[-2, 2)`.
    pub fn float(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 51) as f64 - 2.0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What a buffer starts with.
#[derive(Clone, Copy)]
pub enum Fill {
    /// Uniform on [-2, 2), integers in -8..8.
    Random,
    /// Whole numbers in -4..=4, so that short sums of products are exact.
    Whole,
    /// Integers in `0..n` with a few outside.
    Ids(u64),
}

fn fill(random: &mut Random, dtype: DType, len: u64, fill: Fill) -> Vec<u8> {
    let mut bytes = vec![0; (len * dtype.bytes()) as usize];
    for i in 0..len {
        let float = match fill {
            Fill::Random | Fill::Ids(_) => random.float(),
            Fill::Whole => random.below(9) as f64 - 4.0,
        };
        let int = match (fill, dtype) {
            (_, DType::Bool) => random.below(2) as i64,
            (Fill::Ids(n), _) => random.below(n + 2) as i64 - 1,
            _ => random.below(17) as i64 - 8,
        };
        let value = reference::Value { dtype, float, int, error: 0.0 };
        reference::store(&mut bytes, dtype, i, value);
    }
    bytes
}

/// Runs a kernel over its tiles in pieces, in a shuffled order.
fn run_in_pieces(kernel: &Kernel, buffers: &mut [Vec<u8>], scalars: &[i64], random: &mut Random) {
    let tiles = kernel.tiles as i64;
    let mut cuts: Vec<i64> = (0..3).map(|_| random.below(kernel.tiles + 1) as i64).collect();
    cuts.extend([0, tiles]);
    cuts.sort_unstable();
    let mut pieces: Vec<_> = cuts.windows(2).map(|w| w[0]..w[1]).collect();
    pieces.reverse();
    let middle = pieces.len() / 2;
    pieces.swap(0, middle);
    for piece in pieces {
        interpret(kernel, buffers, scalars, piece).unwrap_or_else(|e| panic!("{e}\n{kernel}"));
    }
}

/// Compares the expansion for every target with the evaluator: every written element within its bound, every other
/// byte untouched, and the same bits however the tiles are split.
pub fn check(spec: &KernelSpec, scalars: &[i64], fills: &dyn Fn(usize) -> Fill, seed: u64) {
    for target in TARGETS {
        check_on(spec, scalars, fills, seed, target);
    }
}

fn check_on(spec: &KernelSpec, scalars: &[i64], fills: &dyn Fn(usize) -> Fill, seed: u64, target: &Target) {
    let kernel = expand(spec, target);
    let mut random = Random(seed);
    let start: Vec<Vec<u8>> = (kernel.buffers.iter().enumerate())
        .map(|(i, buffer)| fill(&mut random, buffer.dtype, buffer.len, fills(i)))
        .collect();
    let mut buffers = start.clone();
    interpret(&kernel, &mut buffers, scalars, 0..kernel.tiles as i64)
        .unwrap_or_else(|e| panic!("{e}\n{spec:?}\n{kernel}"));
    let mut pieces = start.clone();
    run_in_pieces(&kernel, &mut pieces, scalars, &mut random);
    assert!(pieces == buffers, "the result depends on how tiles are split: {spec:?}");
    // Compiling takes longer than all the rest, so only some cases are also run as machine code.
    if seed % 6 == 1 && target.runs_here() {
        crate::tests::bits::check_compiled(&kernel, &start, scalars, &buffers, target);
    }

    let mut untouched = start.clone();
    for written in reference::evaluate(spec, &start, scalars, Precision::Exact) {
        let (buffer, index, want) = (written.buffer as usize, written.index, written.value);
        let got = reference::load(&buffers[buffer], want.dtype, index);
        let close = (got.float - want.float).abs() <= want.error
            || got.float == want.float
            || got.float.is_nan() && want.float.is_nan();
        assert!(
            close && got.int == want.int,
            "{target}: buffer {buffer}[{index}] is {got:?}, not {want:?}\n{spec:?}"
        );
        // Copied over, so that what remains different was not the kernel's to write.
        let bytes = want.dtype.bytes() as usize;
        let at = index as usize * bytes;
        untouched[buffer][at..at + bytes].copy_from_slice(&buffers[buffer][at..at + bytes]);
    }
    assert!(untouched == buffers, "{target}: an element outside the spec was written: {spec:?}");
}

/// An operand of a random layout over `dims`: a permutation with gaps; `broadcast` dims have stride 0.
pub fn layout(random: &mut Random, buffer: u32, dtype: DType, dims: &[u64], broadcast: &[usize]) -> Operand {
    let mut order: Vec<usize> = (0..dims.len()).collect();
    if random.below(2) == 0 {
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
    }
    let mut strides = vec![0; dims.len()];
    let mut next = if random.below(4) == 0 { 2 } else { 1 };
    for &d in order.iter().rev() {
        if !broadcast.contains(&d) {
            strides[d] = next;
            next = next * dims[d] + if random.below(4) == 0 { 3 } else { 0 };
        }
    }
    Operand { buffer, dtype, offset: random.below(3) * 5, strides }
}

/// Builds regions in tests.
#[derive(Default)]
pub struct RegionBuilder(pub Region);

impl RegionBuilder {
    pub fn op(&mut self, op: ScalarOp) -> ScalarId {
        self.0.ops.push(op);
        ScalarId(self.0.ops.len() as u32 - 1)
    }

    pub fn input(&mut self, i: u32) -> ScalarId {
        self.op(ScalarOp::Input(i))
    }

    pub fn constant(&mut self, c: f64) -> ScalarId {
        self.op(ScalarOp::Const(DType::F32, c))
    }

    pub fn unary(&mut self, op: UnaryOp, a: ScalarId) -> ScalarId {
        self.op(ScalarOp::Unary(op, a))
    }

    pub fn binary(&mut self, op: BinaryOp, a: ScalarId, b: ScalarId) -> ScalarId {
        self.op(ScalarOp::Binary(op, a, b))
    }

    pub fn reduce(&mut self, op: ReduceOp, a: ScalarId) -> ScalarId {
        self.op(ScalarOp::Reduce(op, a))
    }

    pub fn results(mut self, results: &[ScalarId]) -> Region {
        self.0.results = results.to_vec();
        self.0
    }
}

/// A chain of `n` random ops on the given f32 values; returns the last value.
pub fn random_chain(r: &mut RegionBuilder, random: &mut Random, values: &[ScalarId], n: usize) -> ScalarId {
    let mut values = values.to_vec();
    for _ in 0..n {
        let (x, y) = (random.pick(&values), random.pick(&values));
        let next = match random.below(9) {
            0 => r.unary(UnaryOp::Tanh, x),
            1 => r.unary(UnaryOp::Sigmoid, x),
            2 => r.unary(UnaryOp::Sin, x),
            3 => r.unary(UnaryOp::Abs, x),
            4 => r.unary(UnaryOp::Erf, x),
            5 => r.binary(BinaryOp::Add, x, y),
            6 => r.binary(BinaryOp::Mul, x, y),
            7 => r.binary(BinaryOp::Max, x, y),
            _ => r.op(ScalarOp::MulAdd(x, y, x)),
        };
        values.push(next);
    }
    *values.last().expect("there is a value")
}
