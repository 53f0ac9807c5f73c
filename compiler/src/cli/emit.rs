//! `mlc emit`: the intermediate forms.

use super::files::{read_spec, show, write};
use super::{Failure, SpecArgs};
use clap::Args;
use mlc::graph::from_spec::{Entry, has_logits};
use mlc::pipeline::{self, CompileError, Runner};
use mlc::spec::SourceMap;
use std::path::PathBuf;

/// Arguments of `mlc emit`.
#[derive(Args)]
pub struct EmitArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// One stage, to standard output: graph.
    #[arg(long, default_value = "graph")]
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
    let model = &checked.spec.model;
    let result = pipeline::forward(model, Entry::Train, model.size("batch").unwrap_or(1), &checked.sources, &mut runner).and_then(|_| {
        if has_logits(model) {
            pipeline::forward(model, Entry::Logits, 1, &checked.sources, &mut runner)?;
        }
        Ok(())
    });
    drop(runner);
    result.map_err(|e| failure(e, &checked.sources))?;
    match &args.out {
        Some(dir) => {
            for (i, (stage, entry, text)) in texts.iter().enumerate() {
                write(&dir.join(format!("{:02}-{stage}.{entry}.ir", i + 1)), text.as_bytes())?;
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
