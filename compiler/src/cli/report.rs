//! What `mlc build` and `mlc plan` print.

use super::check::summary;
use super::files::{Checked, grouped};
use mlc::pipeline::Compiled;
use mlc::units::{self, bytes};
use mlc_codegen::build::Built;
use serde_json::Value;
use std::time::Duration;

/// Summary of the spec, memory with its top owners, kernels, baked and run-time keys.
pub fn build(
    checked: &Checked,
    compiled: &Compiled,
    data: &Value,
    built: &Built,
    times: Option<&[(&str, Duration)]>,
) -> String {
    let mut text = summary(checked);
    text += &compiled.plan.report.to_string();
    text += &compiled.remat.to_string();
    text += &step(data);
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

/// The predicted step, from the data of a report; for several ranks also what they send over each class of links.
pub fn step(data: &Value) -> String {
    let (step, machine) = (&data["step"], data["machine"]["name"].as_str().unwrap_or_default());
    let of = |value: &Value| value.as_f64().unwrap_or_default();
    let rate = of(&data["tokens"]) / of(&step["seconds"]) / of(&data["ranks"]);
    let mut text = format!(
        "predicted for {machine}: {} a step, {} tokens a second and rank, {:.1} % of the peak\n",
        units::seconds(of(&step["seconds"])),
        grouped(rate as u64),
        100.0 * of(&step["utilisation"])
    );
    let collectives = data["collectives"].as_array().map_or(&[][..], Vec::as_slice);
    if collectives.is_empty() {
        return text;
    }
    text += &format!(
        "collectives: {} in a step's program, {}, of which {} exposed, beside {} of computation (`mlc plan --html` and `mlc emit \
         --stage schedule` have each with its reason)\n",
        collectives.len(),
        units::seconds(of(&step["collectives"])),
        units::seconds(of(&step["exposed"])),
        units::seconds(of(&step["compute"]))
    );
    let mut links: Vec<(&str, u64, f64)> = Vec::new();
    for c in collectives {
        let (link, sent) = (c["link"].as_str().unwrap_or_default(), of(&c["bytes"]) * of(&c["times"]));
        match links.iter_mut().find(|(name, ..)| *name == link) {
            Some((_, bytes, seconds)) => {
                *bytes += sent as u64;
                *seconds += of(&c["seconds"]);
            }
            None => links.push((link, sent as u64, of(&c["seconds"]))),
        }
    }
    for (link, sent, seconds) in links {
        text += &format!("{:>10}  sent by a rank over {link} in {}\n", bytes(sent), units::seconds(seconds));
    }
    text
}

/// A line for each stage.
pub fn stages(times: &[(&str, Duration)]) -> String {
    times
        .iter()
        .map(|(stage, time)| format!("  {stage:<12} {:>8.1} ms\n", time.as_secs_f64() * 1e3))
        .collect()
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
    let mut text = stages(times);
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
