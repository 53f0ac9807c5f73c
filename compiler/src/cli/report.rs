//! What `mlc build` prints.

use super::check::summary;
use super::files::{Checked, grouped};
use mlc::pipeline::Compiled;
use mlc::units::bytes;
use mlc_codegen::build::Built;
use std::time::Duration;

/// Summary of the spec, memory with its top owners, kernels, baked and run-time keys.
pub fn build(
    checked: &Checked,
    compiled: &Compiled,
    built: &Built,
    times: Option<&[(&str, Duration)]>,
) -> String {
    let mut text = summary(checked);
    text += &compiled.plan.report.to_string();
    text += &compiled.remat.to_string();
    text += &communication(compiled);
    text += &format!("  {} of scratch more for each thread\n", bytes(built.scratch_bytes));
    text += &kernels(built);
    if let Some(glibc) = &built.glibc {
        text += &format!("needs glibc {glibc} or newer where it runs, and can load an MPI library there\n");
    }
    if let Some(times) = times {
        text += &details(built, times);
    }
    let info = &compiled.program.info;
    for entry in &info.entries {
        text += &format!(
            "entry {}: {} × {} tokens, {:.2} GFLOP a call\n",
            entry.name,
            grouped(entry.batch),
            grouped(entry.seq),
            entry.flops as f64 / 1e9
        );
    }
    let keys: Vec<&str> = info.scalars.iter().filter(|s| !s.is_own()).map(|s| s.key.as_str()).collect();
    text += &format!(
        "change without a rebuild: {}; also steps, seed, data, directories, intervals, threads\n",
        keys.join(", ")
    );
    text
}

/// What the collectives of a step are predicted to take; nothing for one rank.
fn communication(compiled: &Compiled) -> String {
    let train = compiled.plan.entries.first().map(|entry| &entry.schedule);
    let Some(train) = train.filter(|schedule| !schedule.decisions.is_empty()) else { return String::new() };
    let (all, exposed) = train.communication();
    format!(
        "collectives: {} in a step's program, {:.3} ms, of which {:.3} ms exposed, beside {:.3} ms of computation (predicted for a \
         link of 10 Gbit/s; `mlc emit --stage schedule` has each with its reason)\n",
        train.decisions.len(),
        all * 1e3,
        exposed * 1e3,
        train.compute * 1e3
    )
}

fn kernels(built: &Built) -> String {
    let cached = built.kernels.iter().filter(|k| k.cached).count();
    let size: u64 = built.kernels.iter().map(|k| k.object_bytes).sum();
    let n = built.kernels.len();
    format!(
        "kernels: {n} by {} ({cached} from the cache), {} of code; linked in {:.0} ms\n",
        built.codegen,
        bytes(size),
        built.link_ms
    )
}

fn details(built: &Built, times: &[(&str, Duration)]) -> String {
    let mut text = String::new();
    for (stage, time) in times {
        text += &format!("  {stage:<12} {:>8.1} ms\n", time.as_secs_f64() * 1e3);
    }
    for kernel in &built.kernels {
        let how = if kernel.cached { "cached".to_string() } else { format!("{:.0} ms", kernel.ms) };
        text += &format!(
            "  {:<40} {how:>8}  {:>10}  {}\n",
            kernel.name,
            bytes(kernel.object_bytes),
            &kernel.hash[..12]
        );
    }
    text
}
