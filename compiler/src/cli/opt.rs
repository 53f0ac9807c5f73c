//! `mlc opt`: passes on the text of a graph.

use super::Failure;
use super::files::read;
use clap::Args;
use mlc::graph::verify::Stage;
use mlc::graph::{self, passes};
use std::path::PathBuf;

/// Arguments of `mlc opt`.
#[derive(Args)]
pub struct OptArgs {
    /// A graph's text, as `mlc emit` writes it.
    file: PathBuf,
    /// Pass to run; may be given several times, they run in order. `list` names them all.
    #[arg(long = "pass", value_name = "NAME")]
    passes: Vec<String>,
}

/// Parses, verifies, runs the passes with a check after each, prints.
pub fn run(args: &OptArgs) -> Result<(), Failure> {
    if args.passes.iter().any(|p| p == "list") {
        passes::passes().iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let name = args.file.display();
    let mut graph =
        graph::parse::parse(&read(&args.file)?).map_err(|e| Failure::Input(format!("{name}: {e}")))?;
    verified(&graph).map_err(|e| Failure::Input(format!("{name}: {e}")))?;
    for wanted in &args.passes {
        let (_, pass) = passes::passes().iter().find(|(name, _)| name == wanted).ok_or_else(|| {
            Failure::Input(format!("no pass is called `{wanted}`; `--pass list` names them"))
        })?;
        graph = pass(&graph).map_err(|e| Failure::Input(format!("{wanted}: {e}")))?;
        verified(&graph).map_err(|e| Failure::Internal(format!("{wanted} left a broken graph: {e}")))?;
    }
    print!("{}", graph::print::print(&graph));
    Ok(())
}

fn verified(graph: &graph::Graph) -> Result<(), String> {
    graph::verify::verify(graph, Stage::Any).map_err(|e| e.to_string())
}
