//! Text to tree.

use super::samples;
use crate::spec::diagnostic::render_all;
use crate::spec::{SourceMap, parse};

/// Parses a text, or renders why not.
fn parsed(text: &str) -> Result<crate::spec::ast::File, String> {
    let mut sources = SourceMap::new();
    let id = sources.add("test.spec", text);
    parse::parse(&sources, id).map_err(|d| render_all(&d, &sources, false))
}

#[test]
fn parse_reads_the_model_sample() {
    let file = parsed(samples::LLAMA).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(file.items.len(), 1);
}

#[test]
fn parse_reads_the_run_sample() {
    let file = parsed(samples::RUN).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(file.items.len(), 9);
}
