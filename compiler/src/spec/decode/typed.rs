//! Typed sections, and their values in the spelling of the language.

use crate::spec::print;
use crate::spec::schema::{Key, SOURCES, Variant};
use crate::spec::source::Span;

/// A section with every key filled.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// One for each key of the section, in the order of its table.
    pub fields: Vec<Field>,
    /// Entries with globs, in order of the text.
    pub globs: Vec<GlobField>,
    /// The section.
    pub span: Span,
}

/// A key with its value.
#[derive(Clone, Debug)]
pub struct Field {
    /// The key.
    pub key: &'static Key,
    /// Its value.
    pub value: Typed,
    /// Where the key was written; [`Span::NONE`] for a default.
    pub origin: Span,
    /// Where the value was written; [`Span::NONE`] for a default.
    pub at: Span,
}

/// An entry with a glob.
#[derive(Clone, Debug)]
pub struct GlobField {
    /// The word before the glob.
    pub verb: &'static str,
    /// The glob.
    pub glob: String,
    /// `except "…"`
    pub except: Option<String>,
    /// What holds for what it hits.
    pub value: Typed,
    /// The glob's place.
    pub span: Span,
}

/// A typed value.
#[derive(Clone, Debug)]
pub enum Typed {
    /// Not given, and without a default.
    Absent,
    /// The word `none`.
    None,
    /// A whole number.
    Integer(u64),
    /// A real number with its text.
    Real(f64, String),
    /// Two reals.
    Pair(f64, f64, String),
    /// `true` or `false`.
    Flag(bool),
    /// A string.
    Text(String),
    /// A word.
    Word(String),
    /// Sequences, or tokens if the flag is set.
    Batch(u64, bool),
    /// A form with its arguments and keys.
    Variant(&'static Variant, Box<Decoded>, Box<Decoded>),
    /// Forms joined by `then`, each a [`Typed::Variant`], with their places.
    Chain(Vec<(Typed, Span)>),
    /// Weighted sources.
    Mix(Vec<(f64, Typed)>),
    /// Keys in braces.
    Section(Box<Decoded>),
    /// First and last step, the last excluded.
    Steps(u64, u64),
}

impl Decoded {
    /// The field of a key of the table.
    pub fn field(&self, name: &str) -> &Field {
        self.fields
            .iter()
            .find(|f| f.key.name == name)
            .unwrap_or_else(|| panic!("the table has no key `{name}`"))
    }

    /// A key's value.
    pub fn get(&self, name: &str) -> &Typed {
        &self.field(name).value
    }

    /// A whole number; `None` if absent or `none`.
    pub fn integer(&self, name: &str) -> Option<u64> {
        if let Typed::Integer(n) = self.get(name) { Some(*n) } else { None }
    }

    /// A real number; `None` if absent or `none`.
    pub fn real(&self, name: &str) -> Option<f64> {
        if let Typed::Real(x, _) = self.get(name) { Some(*x) } else { None }
    }

    /// A string or word; `None` if absent or `none`.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Typed::Text(t) | Typed::Word(t) => Some(t),
            _ => None,
        }
    }

    /// A section; `None` if absent.
    pub fn section(&self, name: &str) -> Option<&Decoded> {
        if let Typed::Section(s) = self.get(name) { Some(s) } else { None }
    }
}

impl Typed {
    /// The value in the spelling of the language; sections in one line.
    pub fn show(&self) -> String {
        match self {
            Typed::Absent => "".into(),
            Typed::None => "none".into(),
            Typed::Integer(n) => n.to_string(),
            Typed::Real(_, text) | Typed::Pair(_, _, text) => text.clone(),
            Typed::Flag(b) => b.to_string(),
            Typed::Text(t) => print::quote(t),
            Typed::Word(w) => w.clone(),
            Typed::Batch(n, false) => format!("{n} sequences"),
            Typed::Batch(n, true) => format!("{n} tokens"),
            Typed::Variant(variant, args, body) => {
                let args = show_fields(args);
                let body = show_fields(body);
                let args = if args.is_empty() { String::new() } else { format!("({})", args.join(", ")) };
                let body =
                    if body.is_empty() { String::new() } else { format!(" {{ {} }}", body.join(", ")) };
                let needs_call = !variant.args.is_empty() || SOURCES.iter().any(|s| s.tag == variant.tag);
                let args = if args.is_empty() && needs_call { "()".to_string() } else { args };
                format!("{}{args}{body}", variant.tag)
            }
            Typed::Chain(pieces) => pieces.iter().map(|(p, _)| p.show()).collect::<Vec<_>>().join(" then "),
            Typed::Mix(parts) => {
                let parts: Vec<String> = parts.iter().map(|(w, s)| format!("{w} {}", s.show())).collect();
                format!("mix {{ {} }}", parts.join(", "))
            }
            Typed::Section(s) => format!("{{ {} }}", show_fields(s).join(", ")),
            Typed::Steps(a, b) => format!("steps({a}..{b})"),
        }
    }
}

fn show_fields(decoded: &Decoded) -> Vec<String> {
    let present = decoded.fields.iter().filter(|f| !matches!(f.value, Typed::Absent));
    present.map(|f| format!("{} = {}", f.key.name, f.value.show())).collect()
}
