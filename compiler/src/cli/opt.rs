//! `mlc opt`: passes on the text of a graph.

use super::Failure;
use super::files::read;
use clap::Args;
use mlc::graph;
use mlc::graph::verify::Stage;
use mlc::interpret::{Mode, Values, run as run_graph, sample_environment};
use mlc::passes;
use std::path::PathBuf;

/// Arguments of `mlc opt`.
#[derive(Args)]
pub struct OptArgs {
    /// A graph's text, as `mlc emit` writes it; not needed for `--pass list`.
    file: Option<PathBuf>,
    /// Pass to run; may be given several times, they run in order. `list` names them all.
    #[arg(long = "pass", value_name = "NAME")]
    passes: Vec<String>,
    /// Interpret the resulting graph in f64 on pseudo-random inputs of this seed, and print its results instead.
    #[arg(long, value_name = "SEED")]
    run: Option<u64>,
}

/// Parses, verifies, runs the passes with a check after each, prints.
pub fn run(args: &OptArgs) -> Result<(), Failure> {
    if args.passes.iter().any(|p| p == "list") {
        passes::passes().iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let wanted = args.passes.iter().map(|name| Ok((name, pass_named(name)?)));
    let wanted = wanted.collect::<Result<Vec<_>, Failure>>()?;
    let Some(file) = &args.file else {
        return Err(Failure::Input("give a file with a graph's text, or `--pass list`".into()));
    };
    let name = file.display();
    let mut graph = graph::parse::parse(&read(file)?).map_err(|e| Failure::Input(format!("{name}: {e}")))?;
    verified(&graph).map_err(|e| Failure::Input(format!("{name}: {e}")))?;
    for (wanted, pass) in wanted {
        graph = pass(&graph).map_err(|e| Failure::Input(format!("{wanted}: {e}")))?;
        verified(&graph).map_err(|e| Failure::Internal(format!("{wanted} left a broken graph: {e}")))?;
    }
    match args.run {
        Some(seed) => interpret(&graph, seed),
        None => {
            print!("{}", graph::print::print(&graph));
            Ok(())
        }
    }
}

/// A pass by its name.
fn pass_named(wanted: &str) -> Result<passes::Pass, Failure> {
    let found = passes::passes().iter().find(|(name, _)| *name == wanted);
    let unknown = || Failure::Input(format!("no pass is called `{wanted}`; `--pass list` names them"));
    found.map(|(_, pass)| *pass).ok_or_else(unknown)
}

/// Runs the graph and prints each result: its name, its type, its first elements.
fn interpret(graph: &graph::Graph, seed: u64) -> Result<(), Failure> {
    const SHOWN: usize = 8;
    let environment = sample_environment(graph, seed);
    let outputs = run_graph(graph, &environment, Mode::F64).map_err(|e| Failure::Input(e.to_string()))?;
    for (output, tensor) in &outputs.0 {
        let name = match output {
            graph::Output::Report(name) => name.to_string(),
            graph::Output::Store(path) => format!("store {path}"),
        };
        let shown: Vec<String> = match &tensor.values {
            Values::Float(values) => values.iter().take(SHOWN).map(|v| v.to_string()).collect(),
            Values::Int(values) => values.iter().take(SHOWN).map(|v| v.to_string()).collect(),
        };
        let more = if tensor.ty.numel() > SHOWN as u64 { ", …" } else { "" };
        println!("{name} : {} = {}{more}", graph::print::type_text(&tensor.ty), shown.join(", "));
    }
    Ok(())
}

fn verified(graph: &graph::Graph) -> Result<(), String> {
    graph::verify::verify(graph, Stage::Any).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opt(file: Option<&str>, pass: &str) -> Result<(), Failure> {
        run(&OptArgs { file: file.map(PathBuf::from), passes: vec![pass.into()], run: None })
    }

    #[test]
    fn opt_lists_passes_without_a_file_and_names_an_unknown_pass_first() {
        assert!(opt(None, "list").is_ok());
        let text = |result: Result<(), Failure>| match result {
            Err(Failure::Input(text)) => text,
            _ => panic!("expected bad input"),
        };
        assert!(text(opt(Some("missing.txt"), "bogus")).starts_with("no pass is called `bogus`"));
        assert!(text(opt(None, "eliminate-dead")).starts_with("give a file"));
    }
}
