//! Speed of compiled kernels on one core, against the machine's own limits.
//!
//! `cargo bench -p mlc-codegen --bench kernels [-- NAME..]`: each line is the best of several runs of one kernel over
//! all its tiles; only kernels whose name contains one of the given words. Where the machine has other work, compare
//! with the line `fma peak` of the same run. `MLC_BENCH_CODEGEN=cranelift` has Cranelift compile them.

mod cases;

use std::time::Instant;

use cases::{Case, cases, fma_peak};
use mlc_codegen::Codegen;
use mlc_codegen::kir::interpret::Binding;
use mlc_codegen::run::Loaded;
use mlc_codegen::target::Target;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let target = Target::host().unwrap_or_else(|e| panic!("{e}"));
    let wanted = |c: &Case| words.is_empty() || words.iter().any(|w| c.name.contains(w.as_str()));
    let all: Vec<Case> = cases(&target).into_iter().filter(|c| wanted(c)).collect();
    let codegen =
        std::env::var("MLC_BENCH_CODEGEN").map_or(Ok(Codegen::default()), |name| Codegen::by_name(&name));
    let codegen = codegen.unwrap_or_else(|e| panic!("{e}"));
    let peak = fma_peak(&target);
    let peak_rate = measure(&peak, &target, codegen).0;
    println!("{:44} {:8.1} GFLOP/s", "fma peak", peak_rate);
    for case in all {
        let (rate, seconds, compile) = measure(&case, &target, codegen);
        println!(
            "{:44} {:8.1} GFLOP/s  {:3.0} % of peak  {:6.2} GB/s  {:9.3} ms  {:4} tiles  {:5} KiB scratch  built in {compile:.2} s",
            case.name,
            rate,
            100.0 * rate / peak_rate,
            case.bytes / seconds / 1e9,
            seconds * 1e3,
            case.kernel.tiles,
            case.kernel.scratch_bytes() >> 10,
        );
    }
}

/// (GFLOP/s, seconds of the best run, seconds to compile).
fn measure(case: &Case, target: &Target, codegen: Codegen) -> (f64, f64, f64) {
    let start = Instant::now();
    let loaded =
        Loaded::new(&[&case.kernel], target, codegen).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let compile = start.elapsed().as_secs_f64();
    let mut spaces: Vec<Vec<u8>> = Vec::new();
    let mut bindings = Vec::new();
    for buffer in &case.kernel.buffers {
        let bytes = buffer.len * buffer.dtype.bytes();
        let values = (0..bytes / 4 + 16)
            .flat_map(|i| ((i % 13) as f32 * 0.1 - 0.6).to_le_bytes())
            .collect::<Vec<u8>>();
        let offset = values.as_ptr().align_offset(64) as u64;
        bindings.push(Binding { space: spaces.len(), offset });
        spaces.push(values);
    }
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.6 {
        let start = Instant::now();
        loaded
            .run(0, &mut spaces, &bindings, &[], 0..case.kernel.tiles as i64)
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        best = best.min(start.elapsed().as_secs_f64());
    }
    (case.flops / best / 1e9, best, compile)
}
