//! `mlc emit`: the intermediate forms.

use super::files::{read_spec, show, write};
use super::{Failure, SpecArgs};
use clap::Args;
use mlc::pipeline::{self, CompileError, Runner};
use mlc::spec::SourceMap;
use std::path::PathBuf;

/// Arguments of `mlc emit`.
#[derive(Args)]
pub struct EmitArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// One stage, to standard output.
    #[arg(long, default_value = "graph", value_parser = clap::builder::PossibleValuesParser::new(pipeline::STAGES))]
    stage: String,
    /// Write every stage into this folder, numbered.
    #[arg(short = 'o', long = "out", value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Compiles as far as needed and writes texts.
pub fn run(args: &EmitArgs) -> Result<(), Failure> {
    let checked = read_spec(&args.spec)?;
    let mut texts = Vec::new();
    let mut runner = Runner::viewing(Box::new(|stage, entry, text| texts.push((stage, entry, text))));
    let only_graphs = args.out.is_none() && ["graph", "training"].contains(&args.stage.as_str());
    let result = if checked.spec.train.is_none() || only_graphs {
        pipeline::graphs(&checked.spec, &checked.sources, &mut runner)
    } else {
        pipeline::compile(&checked.spec, &checked.sources, &pipeline::Identity::default(), &mut runner)
            .map(|_| ())
    };
    drop(runner);
    result.map_err(|e| failure(e, &checked.sources))?;
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
    Ok(())
}

/// Prints what a compilation error has to say and gives the exit code.
pub fn failure(error: CompileError, sources: &SourceMap) -> Failure {
    match error {
        CompileError::Spec(errors) => {
            show(&errors, sources);
            Failure::Spec
        }
        CompileError::Memory(text) => Failure::Memory(text),
        CompileError::Internal { stage, message } => Failure::Internal(format!("stage {stage}: {message}")),
    }
}
