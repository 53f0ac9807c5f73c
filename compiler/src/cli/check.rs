//! `mlc check`

use super::files::{Checked, MessageKind, expanded, failure, grouped, read_spec};
use super::{Failure, SpecArgs};
use clap::Args;
use mlc::pipeline::{self, Runner};
use mlc::spec::checked::{Model, Spec};
use mlc::spec::placement;

/// Arguments of `mlc check`.
#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Print the canonical full spec, every default with its origin.
    #[arg(long)]
    expand: bool,
    /// Print every parameter with its shape.
    #[arg(long)]
    params: bool,
}

/// Checks, then prints a summary, where parameters lie, and what the choices of `remat` come to.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let checked = read_spec(&args.spec)?;
    if args.expand {
        print!("{}", expanded(&args.spec)?);
        return Ok(());
    }
    if args.params {
        print_params(&checked.spec.model);
    }
    if args.spec.format.kind == MessageKind::Json {
        println!("{}", summary_json(&checked));
        return Ok(());
    }
    print!("{}", summary(&checked));
    let spec = &checked.spec;
    if let Some(layout) = &spec.layout {
        print!("{}", placement::table(layout, &spec.model, spec.train.as_ref(), &checked.sources));
    }
    let chosen = checked.spec.train.as_ref().is_some_and(|train| !train.remat.is_default());
    // What a kernel's functions take is compared with the graph; what they compute, by `mlc build`.
    if chosen || !checked.spec.model.kernels.is_empty() {
        let report = pipeline::graphs(&checked.spec, &checked.sources, &mut Runner::default())
            .map_err(|e| failure(e, &checked.sources, args.spec.format))?;
        if chosen {
            print!("{}", report.unwrap_or_default());
        }
    }
    Ok(())
}

/// What a script asks for, as one object.
fn summary_json(checked: &Checked) -> serde_json::Value {
    let Spec { model, train, layout, .. } = &checked.spec;
    let run = train.as_ref().map(|t| {
        serde_json::json!({
            "steps": t.steps, "batch": t.batch, "seq": t.seq, "accumulation": t.accumulation,
        })
    });
    serde_json::json!({
        "model": model.name,
        "parameters": model.parameter_count(),
        "tensors": model.params.len(),
        "run": run,
        "layout": layout.as_ref().map(|l| placement::json(l, model, train.as_ref(), &checked.sources)),
    })
}

/// Two lines: the model, the run.
pub fn summary(checked: &Checked) -> String {
    let model = &checked.spec.model;
    let count = model.parameter_count();
    let mut text = format!("{}: {} parameters in {} tensors", model.name, grouped(count), model.params.len());
    for repeat in repeats(model) {
        text += &format!(", {repeat}");
    }
    text.push('\n');
    if let Some(train) = &checked.spec.train {
        let tokens = train.batch * train.seq;
        text += &format!(
            "run: {} steps of {} sequences × {} tokens = {} tokens a step, {} accumulation step{}\n",
            grouped(train.steps),
            grouped(train.batch),
            grouped(train.seq),
            grouped(tokens),
            train.accumulation,
            if train.accumulation == 1 { "" } else { "s" }
        );
    }
    text
}

fn repeats(model: &Model) -> Vec<String> {
    let mut seen = Vec::new();
    for repeat in model.params.iter().flat_map(|p| &p.repeats) {
        let text = format!("{} = {}", repeat.axis.name, repeat.axis.size);
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

fn print_params(model: &Model) {
    for param in &model.params {
        let axes: Vec<String> = param
            .repeats
            .iter()
            .map(|r| &r.axis)
            .chain(param.axes())
            .map(|a| format!("{}={}", a.name, a.size))
            .collect();
        println!("{:<32} {:>16}  [{}]", param.path, grouped(param.elements()), axes.join(", "));
    }
}
