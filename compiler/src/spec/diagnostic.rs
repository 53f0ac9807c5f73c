//! What the compiler has to say to the user, and how it looks.
//!
//! Rooms build a [`Diagnostic`]; only this file knows the crate that draws it.

use std::collections::BTreeMap;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::{Value as Json, json};

use super::codes::Code;
use super::source::{SourceMap, Span};

/// How grave it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing can be built.
    Error,
    /// Something looks wrong; the build goes on.
    Warning,
    /// Something the user should know, such as a construct without effect.
    Note,
}

/// A place with a few words about it.
#[derive(Clone, Debug)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// The words; may be empty.
    pub text: String,
}

/// One message: a code, a title without a final stop, labelled places, the values involved and what to try.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Its stable code.
    pub code: Code,
    /// How grave it is.
    pub severity: Severity,
    /// One line.
    pub title: String,
    /// The place that is wrong.
    pub primary: Option<Label>,
    /// Other places that matter.
    pub secondary: Vec<Label>,
    /// What it means.
    pub notes: Vec<String>,
    /// What to try.
    pub help: Vec<String>,
}

impl Diagnostic {
    fn new(severity: Severity, code: Code, title: impl Into<String>) -> Self {
        let title = title.into();
        Diagnostic { code, severity, title, primary: None, secondary: vec![], notes: vec![], help: vec![] }
    }

    /// An error.
    pub fn error(code: Code, title: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, title)
    }

    /// A warning.
    pub fn warning(code: Code, title: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, title)
    }

    /// A note.
    pub fn note(code: Code, title: impl Into<String>) -> Self {
        Self::new(Severity::Note, code, title)
    }

    /// Marks the place that is wrong.
    pub fn at(mut self, span: Span, text: impl Into<String>) -> Self {
        self.primary = Some(Label { span, text: text.into() });
        self
    }

    /// Marks another place that matters.
    pub fn and(mut self, span: Span, text: impl Into<String>) -> Self {
        self.secondary.push(Label { span, text: text.into() });
        self
    }

    /// Adds a sentence about what it means.
    pub fn meaning(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Adds a sentence about what to try.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// True for an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The message as lines of text with the source and carets; `styled` adds terminal colours.
    pub fn render(&self, sources: &SourceMap, styled: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let mut group = Group::with_title(level.primary_title(self.title.as_str()).id(self.code.id));
        for id in self.shown_sources() {
            let Some(source) = sources.get(id) else { continue };
            let mut snippet = Snippet::source(source.text.as_str()).path(source.name.as_str()).fold(true);
            for (label, kind) in self.labels().filter(|(label, _)| label.span.source == id) {
                let kind = if kind { AnnotationKind::Primary } else { AnnotationKind::Context };
                let range = clamp(label.span, &source.text);
                let annotation = kind.span(range);
                snippet = snippet.annotation(if label.text.is_empty() {
                    annotation
                } else {
                    annotation.label(label.text.as_str())
                });
            }
            group = group.element(snippet);
        }
        for note in &self.notes {
            group = group.element(Level::NOTE.message(note.as_str()));
        }
        for help in &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group]).to_string()
    }

    /// The same as data, for `--message-format json`.
    pub fn to_json(&self, sources: &SourceMap) -> Json {
        let label = |label: &Label| {
            let place = sources.locate(label.span);
            json!({
                "file": place.as_ref().map(|p| p.file.as_str()),
                "line": place.as_ref().map(|p| p.line),
                "column": place.as_ref().map(|p| p.column),
                "start": label.span.start,
                "end": label.span.end,
                "text": label.text,
            })
        };
        json!({
            "code": self.code.id,
            "severity": match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            },
            "title": self.title,
            "primary": self.primary.as_ref().map(label),
            "secondary": self.secondary.iter().map(label).collect::<Vec<_>>(),
            "notes": self.notes,
            "help": self.help,
        })
    }

    fn labels(&self) -> impl Iterator<Item = (&Label, bool)> {
        self.primary.iter().map(|l| (l, true)).chain(self.secondary.iter().map(|l| (l, false)))
    }

    /// Sources with a label, the primary's first.
    fn shown_sources(&self) -> Vec<super::source::SourceId> {
        let mut ids = vec![];
        for (label, _) in self.labels() {
            if label.span.is_written() && !ids.contains(&label.span.source) {
                ids.push(label.span.source);
            }
        }
        ids
    }
}

/// A byte range that lies inside the text on character boundaries, whatever the span says.
fn clamp(span: Span, text: &str) -> std::ops::Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(span.start as usize);
    start..floor(span.end as usize).max(start)
}

/// All messages in the order of their places, errors of one place first, each followed by a blank line.
pub fn render_all(diagnostics: &[Diagnostic], sources: &SourceMap, styled: bool) -> String {
    diagnostics.iter().map(|d| d.render(sources, styled) + "\n").collect::<Vec<_>>().join("\n")
}

/// Sorts by place; messages without a place come last. Equal messages are reported once, and at most
/// [`MAX_OF_ONE_CODE`] of one code.
pub fn sort(diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.sort_by_key(|d| {
        let span = d.primary.as_ref().map_or(Span::NONE, |l| l.span);
        (span.source, span.start, d.severity, d.code.id)
    });
    diagnostics.dedup_by(|a, b| {
        a.code == b.code
            && a.title == b.title
            && a.primary.as_ref().map(|l| l.span) == b.primary.as_ref().map(|l| l.span)
    });
    limit(diagnostics);
}

/// Messages of one code that are shown; a generated file may hold thousands.
pub const MAX_OF_ONE_CODE: usize = 100;

/// Keeps the first [`MAX_OF_ONE_CODE`] messages of each code; one message stands for the others.
pub fn limit(diagnostics: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<&'static str, (usize, Severity, Code)> = BTreeMap::new();
    diagnostics.retain(|d| {
        let (count, _, _) = seen.entry(d.code.id).or_insert((0, d.severity, d.code));
        *count += 1;
        *count <= MAX_OF_ONE_CODE
    });
    for (count, severity, code) in seen.into_values().filter(|(count, ..)| *count > MAX_OF_ONE_CODE) {
        let title = format!("… and {} more of {}", count - MAX_OF_ONE_CODE, code.id);
        diagnostics.push(Diagnostic::new(severity, code, title));
    }
}

/// The legal name nearest to `wrong` by edit distance, if one is near enough to be what was meant.
pub fn nearest<'a>(wrong: &str, legal: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = wrong.chars().count();
    let allowed = (length / 3).max(1);
    legal
        .into_iter()
        .filter(|name| name.chars().count().abs_diff(length) <= allowed)
        .map(|name| (edit_distance(wrong, name), name))
        .filter(|(distance, _)| *distance <= allowed && *distance < length)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`
/// (Damerau 1964, the restricted form: no part is edited twice).
pub fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substitute = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitute.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
