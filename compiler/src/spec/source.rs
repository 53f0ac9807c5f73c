//! Source texts and places in them.

use std::fmt;

/// Which text a span points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// A range of bytes of one source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Which text.
    pub source: SourceId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The place of what the compiler itself supplied (a default).
    pub const NONE: Span = Span { source: SourceId(u32::MAX), start: 0, end: 0 };

    /// From the start of `self` to the end of `other`.
    pub fn to(self, other: Span) -> Span {
        Span { source: self.source, start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// True for a place in some text, false for [`Span::NONE`].
    pub fn is_written(self) -> bool {
        self.source != SourceId(u32::MAX)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}:{}..{}>", self.source.0, self.start, self.end)
    }
}

/// One text with its name.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path as the user would write it, or `--set` for an override.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// All texts of one compilation. Spans stay valid as texts are added.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    sources: Vec<Source>,
}

/// A place for people: `llama.spec:14:3`. Lines and columns count from 1; columns count characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The source's name.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl SourceMap {
    /// No texts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a text in.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> SourceId {
        let id = SourceId(u32::try_from(self.sources.len()).expect("fewer than 2^32 sources"));
        self.sources.push(Source { name: name.into(), text: text.into() });
        id
    }

    /// The text of a source, or `None` for [`Span::NONE`]'s.
    pub fn get(&self, id: SourceId) -> Option<&Source> {
        self.sources.get(id.0 as usize)
    }

    /// The characters a span covers; empty for [`Span::NONE`].
    pub fn text(&self, span: Span) -> &str {
        self.get(span.source).and_then(|s| s.text.get(span.start as usize..span.end as usize)).unwrap_or("")
    }

    /// The text of a line, counted from 1, without the blanks around it.
    pub fn line(&self, file: &str, line: u32) -> Option<Span> {
        let source = self.sources.iter().position(|s| s.name == file)?;
        let text = &self.sources[source].text;
        let whole = text.split('\n').nth(usize::try_from(line.checked_sub(1)?).ok()?)?;
        let start =
            whole.as_ptr() as usize - text.as_ptr() as usize + (whole.len() - whole.trim_start().len());
        let end = start + whole.trim().len();
        Some(Span { source: SourceId(source as u32), start: start as u32, end: end as u32 })
    }

    /// Line and column of the start of a span, or `None` for [`Span::NONE`].
    pub fn locate(&self, span: Span) -> Option<Location> {
        let source = self.get(span.source)?;
        let before = source.text.get(..span.start as usize)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Some(Location { file: source.name.clone(), line: line as u32, column: column as u32 })
    }
}
