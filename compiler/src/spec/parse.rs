//! Text to syntax tree.
//!
//! 1. Measure bracket nesting and refuse text nested beyond [`MAX_NESTING`], so that neither the grammar's
//!    recursion nor any later walk over the tree can exhaust the stack.
//! 2. Run the grammar (`grammar.pest`).
//! 3. Build the tree from the grammar's pairs (`parse/`); operators get their precedence there.

use pest::Parser;

use super::ast::*;
use super::codes;
use super::diagnostic::Diagnostic;
use super::source::{SourceId, SourceMap, Span};

#[allow(missing_docs, reason = "the derive macro makes one undocumented item per grammar rule")]
mod grammar {
    /// The parser that `grammar.pest` describes.
    #[derive(pest_derive::Parser)]
    #[grammar = "spec/grammar.pest"]
    pub struct Grammar;
}
use grammar::{Grammar, Rule};
use tree::{Build, Parts, first};

mod expressions;
mod models;
mod number;
mod sections;
mod syntax_error;
mod tree;

/// Deepest nesting of brackets.
pub const MAX_NESTING: usize = 64;
/// Deepest nesting of one expression, counting brackets and operators; a chain of n `+` counts as n deep.
pub const MAX_DEPTH: usize = 128;
/// Longest file in bytes.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// Parses one source.
///
/// # Errors
/// The first syntax error of each top-level item, or a named limit.
pub fn parse(sources: &SourceMap, id: SourceId) -> Result<File, Vec<Diagnostic>> {
    let text = sources.get(id).map_or("", |s| s.text.as_str());
    if let Some(beyond) = beyond_limits(id, text) {
        return Err(vec![beyond]);
    }
    let mut build = Build::new(id, 0);
    let pairs = match Grammar::parse(Rule::file, text) {
        Ok(pairs) => pairs,
        Err(_) => return Err(syntax_errors(id, text)),
    };
    let mut file = build.file(first(pairs));
    file.comments = comments(text);
    if build.errors.is_empty() { Ok(file) } else { Err(build.errors) }
}

/// The syntax errors of a text, one for each top-level item that has any: an item with an error is blanked out and the
/// rest is parsed again, so that places stay what they are.
fn syntax_errors(id: SourceId, text: &str) -> Vec<Diagnostic> {
    const MOST: usize = 20;
    let starts = item_starts(text);
    let mut text = text.to_string();
    let mut errors: Vec<Diagnostic> = vec![];
    while errors.len() < MOST
        && let Err(error) = Grammar::parse(Rule::file, &text)
    {
        let diagnostic = syntax_error::syntax_error(id, &text, 0, &error);
        let at = diagnostic.primary.as_ref().map_or(0, |l| l.span.start as usize);
        errors.push(diagnostic);
        // An error on the first line of an item may come from an unclosed bracket of the item before it, so both go.
        let line = text[..at].rfind('\n').map_or(0, |n| n + 1);
        let Some(begin) = starts.iter().copied().rfind(|s| *s < line) else { break };
        let end = starts.iter().copied().find(|s| *s >= at).unwrap_or(text.len());
        let blank: String = text[begin..end].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        if text[begin..end] == blank {
            break;
        }
        text.replace_range(begin..end, &blank);
    }
    errors
}

/// Where top-level items start: lines whose first character begins a keyword of an item. A word that may also stand
/// inside a model counts only outside of all brackets.
fn item_starts(text: &str) -> Vec<usize> {
    const TOP: [&str; 10] =
        ["use", "model", "mesh", "shard", "store", "train", "pipeline", "freeze", "adapter", "target"];
    const ANYWHERE: [&str; 3] = ["block", "lower", "kernel"];
    let mut starts = vec![];
    let mut depth = 0i64;
    let mut line_start = true;
    for (at, c) in code_chars(text) {
        if line_start {
            let rest = &text[at..];
            let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let word = &rest[..length];
            if TOP.contains(&word) || (depth == 0 && ANYWHERE.contains(&word)) {
                starts.push(at);
            }
        }
        line_start = c == '\n';
        depth += match c {
            '(' | '[' | '{' => 1,
            ')' | ']' | '}' => -1,
            _ => 0,
        };
    }
    starts
}

/// Parses the text of one `--set`: the dotted key and its value.
///
/// # Errors
/// A syntax error.
pub fn parse_set(sources: &SourceMap, id: SourceId) -> Result<(Ident, Value), Vec<Diagnostic>> {
    let text = sources.get(id).map_or("", |s| s.text.as_str());
    if let Some(beyond) = beyond_limits(id, text) {
        return Err(vec![beyond]);
    }
    let mut build = Build::new(id, 0);
    match Grammar::parse(Rule::set_line, text) {
        Err(error) => Err(vec![
            syntax_error::syntax_error(id, text, 0, &error).help("an override reads `train.steps=100`"),
        ]),
        Ok(pairs) => {
            let mut parts = Parts::of(first(pairs));
            let parsed = (build.ident(parts.take()), build.value(parts.take()));
            if build.errors.is_empty() { Ok(parsed) } else { Err(build.errors) }
        }
    }
}

/// Refuses a text that is too long or nested too deeply.
fn beyond_limits(id: SourceId, text: &str) -> Option<Diagnostic> {
    if text.len() > MAX_FILE_BYTES {
        let title = format!("the file is larger than the limit of {} MiB", MAX_FILE_BYTES >> 20);
        return Some(Diagnostic::error(codes::TOO_LARGE, title));
    }
    let mut depth = 0usize;
    for (at, c) in code_chars(text) {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth > MAX_NESTING {
            let span = Span { source: id, start: at as u32, end: at as u32 + 1 };
            let title = format!("brackets are nested deeper than the limit: {MAX_NESTING}");
            return Some(
                Diagnostic::error(codes::NESTING, title)
                    .at(span, "this one is too deep")
                    .help("give inner parts names of their own"),
            );
        }
    }
    None
}

/// The characters of a text that are neither in strings nor in comments, with their byte offsets.
fn code_chars(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut in_string, mut in_comment, mut escaped) = (false, false, false);
    text.char_indices().filter(move |&(_, c)| {
        if c == '\n' {
            (in_string, in_comment, escaped) = (false, false, false);
            return true;
        }
        if in_comment {
            return false;
        }
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            return false;
        }
        in_string = c == '"';
        in_comment = c == '#';
        !in_string && !in_comment
    })
}

/// All comments of a text.
fn comments(text: &str) -> Vec<Comment> {
    let mut found = vec![];
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        if let Some(at) = comment_start(line) {
            found.push(Comment {
                start: (line_start + at) as u32,
                own_line: line[..at].trim().is_empty(),
                text: line[at..].trim_end().to_string(),
            });
        }
        line_start += line.len();
    }
    found
}

/// Offset of the `#` that starts a comment on this line.
fn comment_start(line: &str) -> Option<usize> {
    let (mut in_string, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            '#' if !in_string => return Some(at),
            '"' if !escaped => in_string = !in_string,
            _ => {}
        }
        escaped = in_string && !escaped && c == '\\';
    }
    None
}

/// Cuts blanks and comments off the end. A rule that ends in an optional part covers those in front of the absent part.
fn without_trailing_blanks(text: &str) -> &str {
    let mut text = text.trim_end();
    loop {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        match comment_start(&text[line..]) {
            Some(at) => text = text[..line + at].trim_end(),
            None => return text,
        }
    }
}
