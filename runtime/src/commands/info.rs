//! `info`: what this binary is.

use crate::abi::{Init, ProgramInfo, TensorRole};
use crate::args::Args;
use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::metrics::line::bytes;
use crate::program::Program;
use crate::settings::{Settings, run_time_keys};

/// The subcommand.
///
/// # Errors
/// See [`Exit`].
pub fn info(program: &Program, args: &Args, console: &mut Console) -> Result<Exit, Failure> {
    let settings = Settings::new(program, args)?;
    if args.flag("spec") {
        console.line(program.info.spec.trim_end());
    } else if args.flag("ops") {
        console.line(&op_table(&program.info));
    } else {
        console.line(&description(program, &settings));
    }
    Ok(Exit::Done)
}

fn description(program: &Program, settings: &Settings) -> String {
    let info = &program.info;
    let mut text = format!("model        {}\nfingerprint  {}\n", info.model, info.fingerprint);
    text.push_str(&format!("parameters   {}\n", program.parameters()));
    let each = if program.ranks() > 1 {
        text.push_str(&format!("mesh         {}: {} ranks\n", mesh(info), program.ranks()));
        ", each rank"
    } else {
        ""
    };
    for space in &info.spaces {
        text.push_str(&format!(
            "memory       {}: {} ({} bytes{each})\n",
            space.name,
            bytes(space.bytes),
            space.bytes
        ));
    }
    let scratch = info.scratch_bytes;
    text.push_str(&format!("             scratch: {} a thread ({scratch} bytes)\n", bytes(scratch)));
    for entry in &info.entries {
        text.push_str(&format!(
            "entry        {}: batch {}, seq {}, {:.3} GFLOP a call\n",
            entry.name,
            entry.batch,
            entry.seq,
            entry.flops as f64 / 1e9
        ));
    }
    text.push_str(&format!("ops          {} (info --ops)\n", info.ops.len()));
    text.push_str(&format!("cpu          {}\n", info.cpu_features.join(" ")));
    for table in &info.names {
        text.push_str(&format!("names        {}: {} tensors\n", table.name, table.rows.len()));
    }
    text.push_str("\nkeys that change without a rebuild (--set key=value):\n");
    for (key, value) in run_time_keys(info, settings) {
        text.push_str(&format!("  {key} = {value}\n"));
    }
    text.push_str(&format!("\nkeys fixed at build time ({} --set key=value):\n", info.rebuild));
    for (key, value) in &info.baked {
        text.push_str(&format!("  {key} = {value}\n"));
    }
    text.push_str("\nparameters:\n");
    for tensor in info.tensors.iter().filter(|t| t.role == TensorRole::Param) {
        let axes: Vec<String> =
            tensor.axes.iter().zip(&tensor.shape).map(|(a, s)| format!("{a}={s}")).collect();
        let layers = tensor.layers.map_or(String::new(), |n| format!(" x {n}"));
        let init = match tensor.init {
            Init::Constant(value) => format!("{value}"),
            Init::Normal { std } => format!("normal({std})"),
            Init::Uniform { low, high } => format!("uniform({low}, {high})"),
        };
        text.push_str(&format!("  {}[{}]{layers} = {init}  {}\n", tensor.path, axes.join(", "), tensor.line));
    }
    text.trim_end().to_owned()
}

/// The axes of the mesh with their sizes: `dp = 2, tensor = 4`.
pub fn mesh(info: &ProgramInfo) -> String {
    let axes: Vec<String> = info.mesh.iter().map(|axis| format!("{} = {}", axis.name, axis.size)).collect();
    axes.join(", ")
}

fn op_table(info: &ProgramInfo) -> String {
    let mut text = format!("{:>5} {:>6} {:>12} {:>14}  op", "id", "stream", "bytes", "flops");
    for (id, op) in info.ops.iter().enumerate() {
        text.push_str(&format!(
            "\n{id:>5} {:>6} {:>12} {:>14}  {} {} {}",
            op.stream, op.bytes, op.flops, op.path, op.kernel, op.line
        ));
    }
    text
}
