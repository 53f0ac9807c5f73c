//! `mlc run`: build if needed, then train here.

use super::build::{MachineArgs, assemble, check_kernels, codegen, compile, install};
use super::files::read_spec;
use super::{Failure, SpecArgs};
use clap::Args;
use mlc::pipeline::Runner;
use mlc_codegen::cache::Cache;
use std::path::PathBuf;
use std::process::Command;

/// Arguments of `mlc run`.
#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    options: MachineArgs,
    /// Arguments of the training binary; default: `train`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds into the cache under the program's fingerprint, so that an unchanged spec starts at once, and runs it.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let codegen = codegen(args.options.codegen.as_deref())?;
    let checked = read_spec(&args.spec)?;
    let compiled = compile(&checked, &args.spec, &mut Runner::default())?;
    let folder = Cache::default_folder().unwrap_or_else(std::env::temp_dir).join("binaries");
    let target = args.options.target.as_deref().unwrap_or("native");
    let binary = folder.join(format!("{}-{target}-{codegen}", compiled.program.info.fingerprint));
    if !binary.exists() {
        check_kernels(&checked, &args.spec, &args.options)?;
        let built = assemble(&checked, &compiled, &args.options)?;
        install(&binary, &built.elf)?;
    }
    start(&binary, &args.arguments)
}

fn start(binary: &PathBuf, arguments: &[String]) -> Result<(), Failure> {
    let mut command = Command::new(binary);
    if arguments.is_empty() {
        command.arg("train");
    }
    let status = command
        .args(arguments)
        .status()
        .map_err(|e| Failure::Internal(format!("can't start {}: {e}", binary.display())))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Child(code as u8)),
        None => Err(Failure::Internal(format!("the training binary was killed ({status})"))),
    }
}
