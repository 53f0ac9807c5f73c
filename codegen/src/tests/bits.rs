//! KIR interpreter = every back end, bit for bit, on every target this machine runs: every op on every type at several widths over
//! difficult values, and random kernels.

mod every_op;
mod memory;
mod random;

use crate::abi::DType;
use crate::backend::Codegen;
use crate::kir::interpret::{Binding, Interpreter};
use crate::kir::{Elem, Kernel};
use crate::run::Loaded;
use crate::target::{TARGETS, Target};

/// SplitMix64 (Steele, Lea, Flood 2014), enough for drawing tests.
#[derive(Clone, Debug)]
struct Draw {
    state: u64,
}

impl Draw {
    fn new(seed: u64) -> Draw {
        Draw { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// A lane's bits: half the time a difficult value, else any of moderate size.
    fn lane(&mut self, elem: Elem) -> u64 {
        let special = self.bits() & 1 == 0;
        match elem {
            Elem::I1 => self.bits() & 1,
            Elem::I32 if special => self.pick(&INTS) as i32 as u32 as u64,
            Elem::I64 if special => self.pick(&INTS) as u64,
            Elem::I32 => (self.bits() as i32 >> self.below(32)) as u32 as u64,
            Elem::I64 => (self.bits() as i64 >> self.below(64)) as u64,
            Elem::F32 if special => (self.pick(&FLOATS) as f32).to_bits() as u64,
            Elem::F64 if special => self.pick(&FLOATS).to_bits(),
            Elem::F32 => (self.float() as f32).to_bits() as u64,
            Elem::F64 => self.float().to_bits(),
        }
    }

    fn float(&mut self) -> f64 {
        let unit = self.bits() as i64 as f64 / 2f64.powi(63);
        unit * 2f64.powi(self.below(24) as i32 - 12)
    }
}

const INTS: [i64; 16] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    31,
    32,
    33,
    i32::MAX as i64,
    i32::MIN as i64,
    i64::MAX,
    i64::MIN,
    i32::MAX as i64 + 1,
    1 << 53,
];

/// As f32, the largest become infinite and the smallest 0, which is as well.
const FLOATS: [f64; 28] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    f64::MAX,
    f64::MIN_POSITIVE,
    5e-324,
    f32::MAX as f64,
    f32::MIN_POSITIVE as f64,
    1e-45,
    -1e-45,
    1.1754942e-38,
    2147483647.0,
    -2147483648.0,
    2147483648.0,
    9.3e18,
    -9.3e18,
    16777217.0,
    3.402_823_3e38,
    0.333_333_333_333,
];

/// `n` elements of a memory type.
fn fill(draw: &mut Draw, dtype: DType, n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..n {
        let word = draw.lane(Elem::of_memory(dtype));
        match dtype {
            DType::Bool => bytes.push(word as u8),
            DType::Bf16 => bytes.extend_from_slice(&((word >> 16) as u16).to_le_bytes()),
            DType::F32 | DType::I32 => bytes.extend_from_slice(&(word as u32).to_le_bytes()),
            DType::F64 | DType::I64 => bytes.extend_from_slice(&word.to_le_bytes()),
        }
    }
    bytes
}

/// A buffer's elements with all NaNs made one: their payloads and signs are not part of KIR.
fn canonical(bytes: &[u8], dtype: DType) -> Vec<u64> {
    let word = |chunk: &[u8]| chunk.iter().rev().fold(0u64, |w, &b| w << 8 | b as u64);
    let words = bytes.chunks_exact(dtype.bytes() as usize).map(word);
    let is_nan = |w: u64| match dtype {
        DType::F32 => f32::from_bits(w as u32).is_nan(),
        DType::F64 => f64::from_bits(w).is_nan(),
        DType::Bf16 => f32::from_bits((w as u32) << 16).is_nan(),
        DType::I32 | DType::I64 | DType::Bool => false,
    };
    words.map(|w| if is_nan(w) { u64::MAX } else { w }).collect()
}

/// A kernel with its buffers and scalars.
type Case = (Kernel, Vec<Vec<u8>>, Vec<i64>);

/// Runs kernels every way from the same memory, on every target, and compares every element of every buffer.
fn check(cases: &[Case]) {
    let mut expected = Vec::new();
    for (kernel, buffers, scalars) in cases {
        let mut spaces = buffers.clone();
        let tiles = 0..kernel.tiles as i64;
        let run =
            Interpreter::new(kernel).and_then(|mut i| i.run(&mut spaces, &bindings(kernel), scalars, tiles));
        run.unwrap_or_else(|e| panic!("{e} in\n{kernel}"));
        expected.push(spaces);
    }
    let kernels: Vec<&Kernel> = cases.iter().map(|(kernel, ..)| kernel).collect();
    for target in TARGETS.iter().filter(|t| t.runs_here()) {
        for codegen in Codegen::here() {
            let loaded = load(&kernels, target, codegen);
            for (i, (kernel, buffers, scalars)) in cases.iter().enumerate() {
                check_loaded(&loaded, i, kernel, buffers, scalars, &expected[i]);
            }
        }
    }
}

/// Compiled kernels, and by what and for what.
struct Compiled {
    loaded: Loaded,
    how: String,
}

fn load(kernels: &[&Kernel], target: &Target, codegen: Codegen) -> Compiled {
    let how = format!("{codegen} for {target}");
    let loaded = Loaded::new(kernels, target, codegen);
    Compiled { loaded: loaded.unwrap_or_else(|e| panic!("{how}: {e}, the first being\n{}", kernels[0])), how }
}

/// Compiles one kernel with every back end and compares what it makes of `start` with `expected`.
pub(crate) fn check_compiled(
    kernel: &Kernel,
    start: &[Vec<u8>],
    scalars: &[i64],
    expected: &[Vec<u8>],
    target: &Target,
) {
    for codegen in Codegen::here() {
        check_loaded(&load(&[kernel], target, codegen), 0, kernel, start, scalars, expected);
    }
}

fn check_loaded(
    compiled: &Compiled,
    index: usize,
    kernel: &Kernel,
    start: &[Vec<u8>],
    scalars: &[i64],
    expected: &[Vec<u8>],
) {
    let mut spaces = start.to_vec();
    // Two calls where there are tiles to split: their results do not depend on how.
    let (end, middle) = (kernel.tiles as i64, kernel.tiles as i64 / 2);
    let calls =
        if middle > 0 { [0..middle, middle..end].to_vec() } else { std::iter::once(0..end).collect() };
    for tiles in calls {
        let run = compiled.loaded.run(index, &mut spaces, &bindings(kernel), scalars, tiles);
        run.unwrap_or_else(|e| panic!("{e}"));
    }
    compare(kernel, expected, &spaces, &compiled.how);
}

fn bindings(kernel: &Kernel) -> Vec<Binding> {
    (0..kernel.buffers.len()).map(|space| Binding { space, offset: 0 }).collect()
}

fn compare(kernel: &Kernel, expected: &[Vec<u8>], found: &[Vec<u8>], how: &str) {
    for ((buffer, expected), found) in kernel.buffers.iter().zip(expected).zip(found) {
        let (expected, found) = (canonical(expected, buffer.dtype), canonical(found, buffer.dtype));
        for (index, (e, f)) in expected.iter().zip(&found).enumerate() {
            assert!(
                e == f,
                "{}[{index}] is {f:#x} by {how} and {e:#x} interpreted, in\n{kernel}",
                buffer.name
            );
        }
    }
}
