//! `mlc plan`: what a run takes, from its spec alone: memory to the byte, a step's predicted time, what goes over the links.

use super::build::compile;
use super::check::summary;
use super::files::{MessageKind, read_spec, write};
use super::machine::figures;
use super::{Failure, SpecArgs, report};
use clap::Args;
use mlc::pipeline::{Compiled, Runner};
use mlc::timeline::predict;
use mlc_codegen::abi::trace;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `mlc plan`.
#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Figures of the machine: cpu, h100, v5p, or a file that `mlc calibrate` wrote. Default: the spec's `target`, else cpu.
    #[arg(long, value_name = "NAME|FILE")]
    target: Option<String>,
    #[command(flatten)]
    pictures: Pictures,
    /// Print the report as data instead.
    #[arg(long)]
    json: bool,
    /// Print the time of every stage.
    #[arg(short, long)]
    verbose: bool,
}

/// Files that show a plan.
#[derive(Args, Clone)]
pub struct Pictures {
    /// Write a page with the step, memory, collectives and parameters; it needs no network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the predicted timeline of a step, for ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// A trace that the training binary wrote (`train --trace`), to lay over the predicted one.
    #[arg(long, value_name = "FILE", requires = "trace")]
    pub beside: Option<PathBuf>,
}

/// Spans of a trace.
const SPANS: usize = 200_000;

/// Plans, prints a summary, writes what was asked for.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let start = Instant::now();
    let checked = read_spec(&args.spec)?;
    let machine = figures(args.target.as_deref(), &args.spec.spec, &checked)?;
    let mut runner = Runner::default().on(machine.clone());
    let compiled = compile(&checked, &args.spec, &mut runner)?;
    let spent = start.elapsed();
    let data = mlc::report::data(&checked.spec, &checked.sources, &compiled, &machine);
    args.pictures.write(&compiled, &data)?;
    if args.json || args.spec.format.kind == MessageKind::Json {
        println!("{data}");
        return Ok(());
    }
    let mut text = summary(&checked);
    text += &compiled.plan.report.to_string();
    text += &compiled.remat.to_string();
    text += &report::step(&data);
    if args.verbose {
        text += &report::stages(&runner.times);
    }
    println!("{text}planned in {:.2} s", spent.as_secs_f64());
    Ok(())
}

impl Pictures {
    /// Writes what was asked for and says where.
    pub fn write(&self, compiled: &Compiled, data: &Value) -> Result<(), Failure> {
        if let Some(path) = &self.html {
            write(path, mlc::report::html(data).as_bytes())?;
            eprintln!("report: {}", path.display());
        }
        if let Some(path) = &self.trace {
            let program = &compiled.program;
            let ops = &program.info.ops;
            let mut events = predict(ops, &program.entries[0].body, SPANS).timeline.events(ops);
            if let Some(measured) = &self.beside {
                events.extend(events_of(measured)?);
            }
            write(path, trace::file(&events).as_bytes())?;
            eprintln!("trace: {}", path.display());
        }
        Ok(())
    }
}

/// The events of a trace file, as texts.
fn events_of(path: &std::path::Path) -> Result<Vec<String>, Failure> {
    let bad = |why: String| Failure::Input(format!("{}: no trace: {why}", path.display()));
    let file: Value = serde_json::from_str(&super::files::read(path)?).map_err(|e| bad(e.to_string()))?;
    let events = file["traceEvents"].as_array().ok_or_else(|| bad("it has no `traceEvents`".into()))?;
    let is_event = |e: &Value| e["ph"].is_string() && e["pid"].is_u64() && e["name"].is_string();
    match events.iter().find(|event| !is_event(event)) {
        Some(other) => Err(bad(format!("this is no event: {other}"))),
        None => Ok(events.iter().map(Value::to_string).collect()),
    }
}
