//! `mlc emit`: the intermediate forms.

use super::files::{Checked, failure, read_spec, write};
use super::machine::{figures, instruction_sets};
use super::{Failure, SpecArgs};
use clap::Args;
use clap::builder::PossibleValuesParser;
use mlc::pipeline::{self, Compiled, Identity, Runner};
use mlc_codegen::KernelStage;
use std::path::PathBuf;

/// Arguments of `mlc emit`.
#[derive(Args)]
pub struct EmitArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// One stage, to standard output. The stages of kernels (kir, mlir, llvm, asm, clif) print every kernel.
    #[arg(long, default_value = "graph", value_parser = stage_names())]
    stage: String,
    /// Only kernels whose name contains this.
    #[arg(long, value_name = "TEXT")]
    kernel: Option<String>,
    /// Instruction sets the kernels are for, or figures of the machine to plan for: cpu, h100, v5p or a file that `mlc
    /// calibrate` wrote. Default: the spec's `target`, else native and cpu.
    #[arg(long, value_name = "NAME|FILE")]
    target: Option<String>,
    /// Write every stage into this folder, numbered.
    #[arg(short = 'o', long = "out", value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Compiles as far as needed and writes texts.
pub fn run(args: &EmitArgs) -> Result<(), Failure> {
    let checked = read_spec(&args.spec)?;
    let mut texts = Vec::new();
    let machine = figures(args.target.as_deref(), &args.spec.spec, &checked)?;
    let mut runner =
        Runner::viewing(Box::new(|stage, entry, text| texts.push((stage, entry, text)))).on(machine);
    let only_graphs = args.out.is_none()
        && ["graph", "training", "remat", "sharded", "spmd"].contains(&args.stage.as_str());
    let result = if checked.spec.train.is_none() || only_graphs {
        pipeline::graphs(&checked.spec, &checked.sources, &mut runner).map(|_| None)
    } else {
        pipeline::compile(&checked.spec, &checked.sources, &Identity::default(), &mut runner).map(Some)
    };
    drop(runner);
    let compiled = result.map_err(|e| failure(e, &checked.sources, args.spec.format))?;
    match &args.out {
        Some(dir) => {
            for (stage, entry, text) in &texts {
                let number = pipeline::STAGES.iter().position(|s| s == stage).map_or(0, |i| i + 1);
                write(&dir.join(format!("{number:02}-{stage}.{entry}.ir")), text.as_bytes())?;
            }
        }
        None => texts
            .iter()
            .filter(|(stage, _, _)| *stage == args.stage)
            .for_each(|(_, _, text)| print!("{text}")),
    }
    match compiled {
        Some(compiled) => kernels(args, &checked, &compiled),
        None => Ok(()),
    }
}

fn stage_names() -> PossibleValuesParser {
    let kernels = KernelStage::ALL.iter().map(|s| s.name());
    PossibleValuesParser::new(pipeline::STAGES.iter().copied().chain(kernels))
}

/// The texts of kernels: of the wanted stage to standard output, or all stages as files `kernels/NAME.STAGE`.
fn kernels(args: &EmitArgs, checked: &Checked, compiled: &Compiled) -> Result<(), Failure> {
    let stages: Vec<KernelStage> = match &args.out {
        Some(_) => KernelStage::ALL.into_iter().filter(|stage| stage.available()).collect(),
        None => KernelStage::by_name(&args.stage).into_iter().collect(),
    };
    let target = instruction_sets(args.target.as_deref(), checked)?;
    let wanted = |name: &str| args.kernel.as_ref().is_none_or(|part| name.contains(part.as_str()));
    for kernel in compiled.program.kernels.iter().filter(|k| wanted(&k.name)) {
        for stage in &stages {
            let text = mlc_codegen::emit(&kernel.spec, &kernel.name, &target, *stage)
                .map_err(|e| Failure::Internal(format!("kernel {}: {e}", kernel.name)))?;
            match &args.out {
                Some(dir) => {
                    let name = format!("{}.{}", kernel.name, stage.name());
                    write(&dir.join("kernels").join(name), text.as_bytes())?;
                }
                None => print!("{text}"),
            }
        }
    }
    Ok(())
}
