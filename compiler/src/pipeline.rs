//! The whole compiler on one page.
//!
//! Every stage goes through the [`Runner`]: it times the stage, names it if it panics, and hands its text to whoever wants
//! to see it.

use crate::graph::from_spec::{Entry, from_spec};
use crate::graph::{Graph, print};
use crate::spec::checked::Model;
use crate::spec::{Diagnostic, SourceMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Why compilation stopped.
#[derive(Debug)]
pub enum CompileError {
    /// The spec asks for something that can't be built.
    Spec(Vec<Diagnostic>),
    /// The program does not fit in `target.memory`.
    Memory(String),
    /// A stage failed on a spec that checked: a bug in the compiler.
    Internal {
        /// The stage.
        stage: &'static str,
        /// What happened.
        message: String,
    },
}

type Result<T> = std::result::Result<T, CompileError>;

/// The forward graph of an entry.
///
/// # Errors
/// A construct that can't be built.
pub fn forward(
    model: &Model,
    entry: Entry,
    batch: u64,
    sources: &SourceMap,
    runner: &mut Runner,
) -> Result<Graph> {
    let graph = runner.run("graph", || from_spec(model, entry, batch, sources).map_err(CompileError::Spec))?;
    runner.show("graph", entry.name(), || print::print(&graph));
    Ok(graph)
}

/// Called with (stage, entry, text) as stages finish.
pub type Viewer<'a> = Box<dyn FnMut(&'static str, &'static str, String) + 'a>;

/// Runs stages.
#[derive(Default)]
pub struct Runner<'a> {
    viewer: Option<Viewer<'a>>,
    /// Time of each stage in order of first run.
    pub times: Vec<(&'static str, Duration)>,
}

impl<'a> Runner<'a> {
    /// A runner that shows every stage's text.
    pub fn viewing(viewer: Viewer<'a>) -> Runner<'a> {
        Runner { viewer: Some(viewer), times: Vec::new() }
    }

    /// Runs a stage; a panic becomes an error that names it.
    fn run<T>(&mut self, stage: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(CompileError::Internal { stage, message: format!("panicked: {text}") })
        });
        let spent = start.elapsed();
        match self.times.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, time)) => *time += spent,
            None => self.times.push((stage, spent)),
        }
        result
    }

    /// Hands a stage's text to the viewer, made only if there is one.
    fn show(&mut self, stage: &'static str, entry: &'static str, text: impl FnOnce() -> String) {
        if let Some(viewer) = &mut self.viewer {
            viewer(stage, entry, text());
        }
    }
}
