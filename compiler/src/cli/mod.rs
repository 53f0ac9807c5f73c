//! Commands of `mlc`, one file each.

mod build;
mod calibrate;
mod check;
mod completions;
mod doctor;
mod emit;
mod explain;
mod files;
mod fmt;
mod machine;
mod new;
mod opt;
mod plan;
mod report;
mod run;
mod trial;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// What went wrong, as the exit code says it. The text has been printed or is carried.
#[derive(Debug)]
pub enum Failure {
    /// The spec has errors (exit code 1); they are printed already.
    Spec,
    /// A file can't be read or written, or its content is not what the command takes (exit code 3).
    Input(String),
    /// The program does not fit in `target.memory` (exit code 4).
    Memory(String),
    /// The compiler, a code generation worker or the linker failed on a correct spec (exit code 5): a bug or a broken
    /// installation.
    Internal(String),
    /// A kernel of the user's own does not compile or computes something else (exit code 1).
    Kernel(String),
    /// The started training binary ended with this code.
    Child(u8),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Spec | Failure::Kernel(_) => 1,
            Failure::Input(_) => 3,
            Failure::Memory(_) => 4,
            Failure::Internal(_) => 5,
            Failure::Child(code) => *code,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Failure::Spec | Failure::Child(_) => None,
            Failure::Input(text)
            | Failure::Memory(text)
            | Failure::Internal(text)
            | Failure::Kernel(text) => Some(text),
        }
    }
}

const EXIT_CODES: &str = "Exit codes:
  0  success
  1  the spec has errors
  2  the command line is wrong
  3  a file can't be read, written or understood
  4  the program does not fit in target.memory
  5  the compiler, a worker or the linker failed
  `mlc run` ends with the training binary's own code (75: stopped by a signal after saving)";

/// Compiles a declarative description of a model and its training run into one standalone training binary.
#[derive(Parser)]
#[command(name = "mlc", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a new spec from one that ships with mlc.
    New(new::NewArgs),
    /// Parse and check a spec; print its parameters and what has no effect yet.
    Check(check::CheckArgs),
    /// Say what a run takes: memory to the byte, a step's predicted time, what ranks send. Builds nothing.
    Plan(plan::PlanArgs),
    /// Build the training binary.
    Build(build::BuildArgs),
    /// Build if needed and start training here; arguments after `--` go to the binary.
    Run(run::RunArgs),
    /// Write the compiler's intermediate forms.
    Emit(emit::EmitArgs),
    /// Run passes on the text of a graph.
    Opt(opt::OptArgs),
    /// Rewrite specs in their canonical form.
    Fmt(fmt::FmtArgs),
    /// Say what the code of a message means.
    Explain(explain::ExplainArgs),
    /// Measure this machine: figures for `--target` and `target.machine`.
    Calibrate(calibrate::CalibrateArgs),
    /// Look whether everything is here that building and training need.
    Doctor(doctor::DoctorArgs),
    /// Write the script that completes `mlc`'s arguments in a shell.
    Completions(completions::CompletionsArgs),
}

/// The spec and overrides, shared by most commands.
#[derive(Args, Clone)]
pub struct SpecArgs {
    /// A `.spec` file.
    pub spec: PathBuf,
    /// Override a key of the spec: `--set Llama.layers=4 --set train.optimizer.lr=1e-4`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Devices to lay the run out over; they must be the product of the mesh, whose `auto` axis takes what the others
    /// leave.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub devices: Option<u64>,
    #[command(flatten)]
    pub format: files::MessageFormat,
}

/// Parses the command line, runs the command, prints the failure, returns the exit code.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Emit(args) => emit::run(&args),
        Command::New(args) => new::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Opt(args) => opt::run(&args),
        Command::Fmt(args) => fmt::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                eprintln!("error: {text}");
            }
            ExitCode::from(failure.code())
        }
    }
}
