//! `mlc build`: from a spec to a training binary.

use super::files::{self, Checked, failure, read_spec};
use super::machine::{figures, instruction_sets};
use super::report;
use super::{Failure, SpecArgs};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mlc::check_kernels;
use mlc::pipeline::{self, Compiled, Identity, Runner};
use mlc::units;
use mlc_codegen::Codegen;
use mlc_codegen::build::{BuildOptions, Built, Error, Progress, build, run_custom};
use mlc_codegen::cache::Cache;
use mlc_codegen::target::Target;
use mlc_codegen::worker::WorkerCommand;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `mlc build`.
#[derive(Args)]
pub struct BuildArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// The training binary; default: the spec's name without its ending, in this folder.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    options: MachineArgs,
    /// Write a page with the step, memory, collectives and parameters, as `mlc plan --html` does.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print every kernel and the time of every stage.
    #[arg(short, long)]
    verbose: bool,
}

/// What to build for, and how.
#[derive(Args, Clone)]
pub struct MachineArgs {
    /// Instruction sets: native, x86-64-v3 (AVX2) or x86-64-v4 (AVX-512); or figures of the machine to plan for: cpu, h100, v5p
    /// or a file that `mlc calibrate` wrote. Default: the spec's `target`, else native and cpu.
    #[arg(long, value_name = "NAME|FILE")]
    pub target: Option<String>,
    /// What compiles kernels: llvm (fast kernels) or cranelift (fast builds, the same numbers). Default: llvm where this
    /// mlc has it.
    #[arg(long, value_name = "NAME")]
    pub codegen: Option<String>,
    /// Kernels compiled at once; default: one per core.
    #[arg(short = 'j', long, value_name = "N")]
    pub jobs: Option<usize>,
}

/// Builds, writes the binary, prints what was made.
pub fn run(args: &BuildArgs) -> Result<(), Failure> {
    let start = Instant::now();
    codegen(args.options.codegen.as_deref())?;
    let checked = read_spec(&args.spec)?;
    let machine = figures(args.options.target.as_deref(), &args.spec.spec, &checked)?;
    let mut runner = Runner::default().on(machine.clone());
    let compiled = compile(&checked, &args.spec, &mut runner)?;
    check_kernels(&checked, &args.spec, &args.options)?;
    let built = assemble(&checked, &compiled, &args.options)?;
    let out = args.out.clone().unwrap_or_else(|| default_output(&args.spec.spec));
    install(&out, &built.elf)?;
    let data = mlc::report::data(&checked.spec, &checked.sources, &compiled, &machine);
    print!(
        "{}",
        report::build(&checked, &compiled, &data, &built, args.verbose.then_some(&runner.times[..]))
    );
    if let Some(path) = &args.report {
        files::write(path, mlc::report::html(&data).as_bytes())?;
        println!("report: {}", path.display());
    }
    println!(
        "{}: {}, built in {:.1} s",
        out.display(),
        units::bytes(built.elf.len() as u64),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The whole compiler, errors printed.
pub fn compile(checked: &Checked, args: &SpecArgs, runner: &mut Runner) -> Result<Compiled, Failure> {
    let identity = Identity { spec: files::expanded(args)?, rebuild: rebuild_command(args) };
    let compiled = pipeline::compile(&checked.spec, &checked.sources, &identity, runner)
        .map_err(|e| failure(e, &checked.sources, args.format))?;
    files::show(&compiled.notes, &checked.sources, args.format);
    Ok(compiled)
}

/// The back end: the command line's, else the best of this mlc.
pub fn codegen(given: Option<&str>) -> Result<Codegen, Failure> {
    given.map_or(Ok(Codegen::default()), |name| Codegen::by_name(name).map_err(Failure::Input))
}

/// Code generation and linking, with a bar on a terminal.
pub fn assemble(checked: &Checked, compiled: &Compiled, args: &MachineArgs) -> Result<Built, Failure> {
    let target = instruction_sets(args.target.as_deref(), checked)?;
    let codegen = codegen(args.codegen.as_deref())?;
    let bar = ProgressBar::new(compiled.program.kernels.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg:>12} {bar:30} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message("kernels");
    let progress = |p: Progress<'_>| bar.set_position(p.done as u64);
    let built =
        build(&compiled.program, &build_options(args, target, codegen, &progress)?).map_err(code_failure);
    bar.finish_and_clear();
    built
}

fn build_options<'a>(
    args: &MachineArgs,
    target: Target,
    codegen: Codegen,
    progress: &'a (dyn Fn(Progress<'_>) + Sync),
) -> Result<BuildOptions<'a>, Failure> {
    Ok(BuildOptions {
        target,
        codegen,
        cache: Cache::default_folder(),
        jobs: args.jobs.unwrap_or_else(cores).max(1),
        worker: Some(WorkerCommand::this_executable().map_err(Failure::Internal)?),
        progress,
    })
}

/// A kernel of the user's own that does not compile is the spec's mistake, everything else is ours.
fn code_failure(error: Error) -> Failure {
    match error {
        Error::Custom(message) => Failure::Kernel(message),
        other => Failure::Internal(other.to_string()),
    }
}

/// Runs every kernel of the user's own once beside its meaning: what it computes is the same on any mesh, so the sizes asked for
/// need not divide by one.
pub fn check_kernels(checked: &Checked, args: &SpecArgs, machine: &MachineArgs) -> Result<(), Failure> {
    let kernels = &checked.spec.model.kernels;
    if kernels.is_empty() {
        return Ok(());
    }
    let texts: Vec<(String, String)> = kernels.iter().map(|k| (k.file.clone(), k.text.clone())).collect();
    let mut small = args.clone();
    small.sets.extend(check_kernels::overrides(&texts).map_err(Failure::Kernel)?);
    let small = files::read_alone(&small)?;
    let checks = pipeline::kernel_checks(&small.spec, &small.sources, &mut Runner::default())
        .map_err(|e| failure(e, &small.sources, args.format))?;
    let codegen = codegen(machine.codegen.as_deref())?;
    let options =
        build_options(machine, instruction_sets(machine.target.as_deref(), checked)?, codegen, &|_| ())?;
    for check in checks {
        let after = run_custom(&check.spec, check.arguments.clone(), &options).map_err(code_failure)?;
        check.compare(&after).map_err(Failure::Kernel)?;
    }
    Ok(())
}

/// Writes an executable, replacing it at once (a running one goes on with its old content).
pub fn install(out: &Path, elf: &[u8]) -> Result<(), Failure> {
    files::write(out, elf)?;
    std::fs::set_permissions(out, std::fs::Permissions::from_mode(0o755))
        .map_err(|e| Failure::Input(format!("can't make {} executable: {e}", out.display())))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

fn default_output(spec: &Path) -> PathBuf {
    PathBuf::from(spec.file_stem().unwrap_or_default())
}

/// The command that builds this binary again, for the binary's own messages.
fn rebuild_command(args: &SpecArgs) -> String {
    let sets: String = args.sets.iter().map(|set| format!(" --set {set}")).collect();
    let devices = args.devices.map(|n| format!(" --devices {n}")).unwrap_or_default();
    format!("mlc build {}{sets}{devices}", args.spec.display())
}
