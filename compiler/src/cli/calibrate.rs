//! `mlc calibrate`: the figures of this machine, measured on training steps, as a file that `--target` and `target.machine` take.
//!
//! A small Llama is trained for a few steps, in f32, in bf16, on two ranks of one process, and, where there is an `mpirun`, as two
//! processes; each binary traces what its kernels and collectives take (`--trace`). Of every op the shortest time counts:
//! * products: operations over time, of all products at least a sixteenth as large as the largest;
//! * memory: bytes over time, of the element-wise kernels that move most;
//! * launch: the median of kernels that move at most 64 KiB;
//! * links: bytes over time of the largest messages, and the median time of those up to 4 KiB.

use super::files::write;
use super::trial::build_trial;
use super::{Failure, files};
use clap::Args;
use mlc::cost::{Device, Link, Node, Peak, Target};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Arguments of `mlc calibrate`.
#[derive(Args)]
pub struct CalibrateArgs {
    /// The file to write.
    #[arg(short = 'o', long = "out", value_name = "FILE", default_value = "machine.json")]
    out: PathBuf,
    /// Smaller sizes and fewer steps: seconds instead of a minute, and rougher figures.
    #[arg(long)]
    quick: bool,
}

/// Measures, writes the file, prints the figures.
pub fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("mlc-calibrate-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .map_err(|e| Failure::Input(format!("can't make {}: {e}", folder.display())))?;
    let measured = measure(&folder, args.quick);
    // A left-over folder is a nuisance, not a failure.
    let _ = std::fs::remove_dir_all(&folder);
    let mut target = measured.map_err(Failure::Internal)?;
    let stem = args.out.file_stem().unwrap_or_default();
    target.name = stem.to_string_lossy().into_owned();
    let text = serde_json::to_string_pretty(&target).map_err(|e| Failure::Internal(e.to_string()))?;
    Target::parse(&text).map_err(Failure::Internal)?;
    write(&args.out, (text + "\n").as_bytes())?;
    print!("{}", figures(&target));
    println!("{}: for --target and `target cpu {{ machine = … }}`", args.out.display());
    Ok(())
}

fn figures(target: &Target) -> String {
    let rate = |x: Option<f64>| x.map_or("not measured".into(), |x| format!("{:.1} GFLOP/s", x / 1e9));
    let link = |name: &str, alpha: f64, bandwidth: f64| {
        format!("{name}: {:.1} µs and {:.2} GB/s\n", alpha * 1e6, bandwidth / 1e9)
    };
    let device = &target.device;
    format!(
        "products: f32 {}, bf16 {}\nmemory: {:.2} GB/s\nlaunch: {:.1} µs\n{}{}",
        rate(device.peak.f32),
        rate(device.peak.bf16),
        device.bandwidth / 1e9,
        device.launch * 1e6,
        link(&target.node.name, target.node.alpha, target.node.bandwidth),
        link(&target.network.name, target.network.alpha, target.network.bandwidth)
    )
}

/// The run all figures come from.
struct Probe<'a> {
    folder: &'a Path,
    quick: bool,
}

fn measure(folder: &Path, quick: bool) -> Result<Target, String> {
    let probe = Probe { folder, quick };
    say("1/4 products in f32, memory, launches");
    let f32_ops = probe.ops("f32", "", &[])?;
    say("2/4 products in bf16");
    let bf16_ops = probe.ops("bf16", "", &[])?;
    say("3/4 collectives between ranks of one process");
    let two = "mesh { rank = 2 }\nshard {\n    batch -> rank\n    params \"**\": d -> rank\n}\n";
    let ranks_ops = probe.ops("f32", two, &["--ranks", "2"])?;
    let node = link_of(&ranks_ops).ok_or("no collective was traced")?;
    say("4/4 collectives between processes");
    let processes = probe.processes(two);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let default = Target::default();
    let (network, network_source) = match processes {
        Ok((alpha, bandwidth)) => (
            Link { name: "MPI on this machine".into(), alpha, bandwidth },
            "network: two processes under mpirun on this machine; measure between machines and put the figures here",
        ),
        Err(why) => {
            say(&format!("  not measured: {why}"));
            (default.network, "network: not measured, that of the figures `cpu`")
        }
    };
    let needed =
        |x: Option<f64>, what: &str| x.ok_or_else(|| format!("no kernel was traced that shows {what}"));
    Ok(Target {
        name: String::new(),
        what: format!("this machine, {cores} cores, measured by mlc calibrate"),
        device: Device {
            memory: memory_bytes().unwrap_or(default.device.memory),
            bandwidth: needed(bandwidth_of(&f32_ops), "the speed of memory")?,
            peak: Peak { f64: None, f32: Some(needed(rate_of(&f32_ops), "products")?), bf16: rate_of(&bf16_ops) },
            efficiency: 1.0,
            launch: needed(launch_of(&f32_ops), "the time of a launch")?,
        },
        node: Node { name: "shared memory".into(), ranks: cores as u64, alpha: node.0, bandwidth: node.1 },
        network,
        sources: vec![
            "peak: what products of a small Llama's training step reach, so efficiency is 1; bandwidth, launch: its other kernels"
                .into(),
            "node: ranks of one process".into(),
            network_source.into(),
        ],
    })
}

fn say(text: &str) {
    eprintln!("{text}");
}

/// What one op was seen to take.
#[derive(Debug, Default)]
struct Seen {
    flops: f64,
    bytes: f64,
    /// Shortest time in lane 0, of a collective start and wait together.
    seconds: f64,
    is_kernel: bool,
}

impl Probe<'_> {
    /// Builds a run of these element types and sections, trains, and reads its trace.
    fn ops(&self, precision: &str, sections: &str, arguments: &[&str]) -> Result<Vec<Seen>, String> {
        let binary = self.build(precision, sections)?;
        self.trained(Command::new(&binary), arguments)
    }

    fn build(&self, precision: &str, sections: &str) -> Result<PathBuf, String> {
        let (d, ff, seq, layers) = if self.quick { (64, 128, 32, 2) } else { (1024, 2816, 256, 2) };
        let text = format!(
            "spec 1\nuse \"llama.spec\" as Llama with {{ vocab = 4096, d = {d}, ff = {ff}, layers = {layers}, kv = 2, group = 4, hd = {} }}\n\
             {sections}train {{\n    steps = 100, batch = 4 sequences, microbatch = {}, seq = {seq}, data = synthetic\n    \
             precision = {precision}\n    optimizer = adamw {{ lr = 1e-4 }}\n}}\n",
            d / 8,
            if sections.is_empty() { 4 } else { 2 }
        );
        let binary = self.folder.join(format!("probe-{precision}-{}", sections.len()));
        let files =
            [("probe.spec", text.as_str()), ("llama.spec", include_str!("../../../specs/llama.spec"))];
        build_trial(&files, &[], &binary)?;
        Ok(binary)
    }

    fn trained(&self, mut command: Command, arguments: &[&str]) -> Result<Vec<Seen>, String> {
        let steps = if self.quick { 3 } else { 6 };
        let trace = self.folder.join("trace.json");
        let output = command
            .args(["train", "--checkpoint-every", "never", "--steps", &steps.to_string(), "--out"])
            .arg(self.folder.join("run"))
            .arg("--trace")
            .arg(format!("{}:{steps}", trace.display()))
            .args(arguments)
            // What is hidden can't be measured.
            .env("MLC_COLLECTIVES", "blocking")
            .output()
            .map_err(|e| format!("{command:?} does not start: {e}"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("the probe failed ({}): {}", output.status, why.trim()));
        }
        let text = files::read(&trace).map_err(|_| "the probe wrote no trace".to_string())?;
        ops_of(&text)
    }

    /// Latency and bandwidth between two processes.
    fn processes(&self, sections: &str) -> Result<(f64, f64), String> {
        let binary = self.build("f32", sections)?;
        let mut command = Command::new("mpirun");
        // For Open MPI; other implementations need none of it.
        for name in ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe"] {
            command.env(format!("OMPI_{name}"), "1");
        }
        command.args(["-n", "2"]).arg(&binary);
        let ops = self.trained(command, &[])?;
        link_of(&ops).ok_or_else(|| "no collective was traced".into())
    }
}

/// The ops of the first rank in a trace, each with its shortest time.
fn ops_of(trace: &str) -> Result<Vec<Seen>, String> {
    let file: Value = serde_json::from_str(trace).map_err(|e| format!("the trace does not parse: {e}"))?;
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let mut by_op: BTreeMap<u64, (Seen, Vec<f64>)> = BTreeMap::new();
    for event in file["traceEvents"].as_array().into_iter().flatten() {
        let (category, args) = (event["cat"].as_str().unwrap_or_default(), &event["args"]);
        let (Some(op), true) = (args["op"].as_u64(), event["pid"] == 0 && category != "collective") else {
            continue;
        };
        let (seen, times) = by_op.entry(op).or_default();
        (seen.flops, seen.bytes, seen.is_kernel) =
            (number(&args["flops"]), number(&args["bytes"]), category == "kernel");
        let seconds = number(&event["dur"]) * 1e-6;
        match times.last_mut().filter(|_| category == "wait") {
            Some(started) => *started += seconds,
            None => times.push(seconds),
        }
    }
    let shortest = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min).max(1e-9);
    Ok(by_op.into_values().map(|(seen, times)| Seen { seconds: shortest(&times), ..seen }).collect())
}

/// Operations a second of the large products.
fn rate_of(ops: &[Seen]) -> Option<f64> {
    let largest = ops.iter().map(|op| op.flops).fold(0.0, f64::max);
    together(ops, |op| op.is_kernel && op.flops > 0.0 && op.flops >= largest / 16.0, |op| op.flops)
}

/// Bytes a second of the kernels that move most and multiply nothing.
fn bandwidth_of(ops: &[Seen]) -> Option<f64> {
    let moves = |op: &&Seen| op.is_kernel && op.flops == 0.0;
    let largest = ops.iter().filter(moves).map(|op| op.bytes).fold(0.0, f64::max);
    together(ops, |op| moves(&op) && op.bytes >= largest / 4.0, |op| op.bytes)
}

fn launch_of(ops: &[Seen]) -> Option<f64> {
    median(ops.iter().filter(|op| op.is_kernel && op.bytes <= 65536.0).map(|op| op.seconds))
}

/// Latency and bytes a second of a ring of two: a hop, or two where results travel back.
fn link_of(ops: &[Seen]) -> Option<(f64, f64)> {
    let sent = |op: &&Seen| !op.is_kernel;
    let largest = ops.iter().filter(sent).map(|op| op.bytes).fold(0.0, f64::max);
    let alpha = median(ops.iter().filter(sent).filter(|op| op.bytes <= 4096.0).map(|op| op.seconds));
    let bandwidth = together(ops, |op| sent(&op) && op.bytes >= largest / 4.0, |op| op.bytes)?;
    Some((alpha.unwrap_or(0.0), bandwidth))
}

fn together(ops: &[Seen], which: impl Fn(&Seen) -> bool, what: impl Fn(&Seen) -> f64) -> Option<f64> {
    let chosen: Vec<&Seen> = ops.iter().filter(|op| which(op)).collect();
    let (amount, seconds): (f64, f64) =
        chosen.iter().fold((0.0, 0.0), |(a, s), op| (a + what(op), s + op.seconds));
    (amount > 0.0 && seconds > 0.0).then(|| amount / seconds)
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn memory_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(cat: &str, op: u64, dur: f64, flops: f64, bytes: f64) -> Value {
        serde_json::json!({"cat": cat, "ph": "X", "pid": 0, "tid": 0, "dur": dur, "args": {"op": op, "flops": flops, "bytes": bytes}})
    }

    #[test]
    fn figures_are_those_of_the_shortest_times() {
        let mut events = Vec::new();
        for slower in [1.0, 2.0] {
            events.push(event("kernel", 0, 1000.0 * slower, 1e9, 1e6));
            events.push(event("kernel", 1, 500.0 * slower, 0.0, 1e6));
            events.push(event("kernel", 2, 3.0 * slower, 0.0, 100.0));
            events.push(event("start", 3, 10.0 * slower, 0.0, 1e6));
            events.push(event("wait", 3, 90.0 * slower, 0.0, 1e6));
            events.push(event("start", 4, 1.0 * slower, 0.0, 8.0));
            events.push(event("wait", 4, 4.0 * slower, 0.0, 8.0));
        }
        let ops = ops_of(&serde_json::json!({ "traceEvents": events }).to_string()).unwrap();
        let near = |found: Option<f64>, expected: f64| {
            let found = found.unwrap();
            assert!((found - expected).abs() < 1e-9 * expected, "{found}, not {expected}");
        };
        near(rate_of(&ops), 1e12);
        near(bandwidth_of(&ops), 2e9);
        near(launch_of(&ops), 3e-6);
        let (alpha, bandwidth) = link_of(&ops).unwrap();
        near(Some(alpha), 5e-6);
        near(Some(bandwidth), 1e10);
    }

    #[test]
    fn figures_that_nothing_shows_are_missing() {
        assert!(ops_of("[").is_err());
        assert_eq!((rate_of(&[]), bandwidth_of(&[]), launch_of(&[]), link_of(&[])), (None, None, None, None));
    }
}
