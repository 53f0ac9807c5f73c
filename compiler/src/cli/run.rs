//! `mlc run`: build if needed, then train here.

use super::build::{MachineArgs, assemble, check_kernels, codegen, compile, install};
use super::files::read_spec;
use super::machine::{figures, instruction_sets};
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
    /// Ranks to start, all in one process; also the devices to build for, unless `--devices` says otherwise.
    #[arg(short = 'n', long, visible_alias = "sim", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ranks: Option<u64>,
    /// Arguments of the training binary; default: `train`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds into the cache under the program's fingerprint, so that an unchanged spec starts at once, and runs it.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let codegen = codegen(args.options.codegen.as_deref())?;
    let spec = &SpecArgs { devices: args.spec.devices.or(args.ranks), ..args.spec.clone() };
    let checked = read_spec(spec)?;
    let machine = figures(args.options.target.as_deref(), &spec.spec, &checked)?;
    let compiled = compile(&checked, spec, &mut Runner::default().on(machine))?;
    let folder = Cache::default_folder().unwrap_or_else(std::env::temp_dir).join("binaries");
    let target = instruction_sets(args.options.target.as_deref(), &checked)?.name;
    let binary = folder.join(format!("{}-{target}-{codegen}", compiled.program.info.fingerprint));
    if !binary.exists() {
        check_kernels(&checked, spec, &args.options)?;
        let built = assemble(&checked, &compiled, &args.options)?;
        install(&binary, &built.elf)?;
    }
    start(&binary, &words(&args.arguments, args.ranks))
}

/// What the training binary is called with.
fn words(arguments: &[String], ranks: Option<u64>) -> Vec<String> {
    let mut words = if arguments.is_empty() { vec!["train".to_owned()] } else { arguments.to_vec() };
    words.extend(ranks.map(|n| format!("--ranks={n}")));
    words
}

fn start(binary: &PathBuf, words: &[String]) -> Result<(), Failure> {
    let status = Command::new(binary)
        .args(words)
        .status()
        .map_err(|e| Failure::Internal(format!("can't start {}: {e}", binary.display())))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Child(code as u8)),
        None => Err(Failure::Internal(format!("the training binary was killed ({status})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_name_the_ranks_last() {
        let given = ["eval".to_owned(), "--pin".to_owned()];
        assert_eq!(words(&[], None), ["train"]);
        assert_eq!(words(&[], Some(4)), ["train", "--ranks=4"]);
        assert_eq!(words(&given, Some(2)), ["eval", "--pin", "--ranks=2"]);
    }
}
