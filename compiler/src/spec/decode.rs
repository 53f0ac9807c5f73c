//! Sections of the tree, typed by the tables of `schema.rs`.
//!
//! Every key is filled: written, overridden or by default. Unknown keys, wrong kinds and missing keys are reported here
//! and nowhere else.

mod typed;

use super::ast::{Entry, Ident, Number, Section as AstSection, Unit, Value, ValueKind};
use super::codes;
use super::diagnostic::{Diagnostic, nearest};
use super::parse;
use super::print;
use super::schema::{Fallback, Glob, Key, Kind, SOURCES, Section, Shorthand, Variant};
use super::source::{SourceMap, Span};
pub use typed::{Decoded, Field, GlobField, Typed};

/// Types a section; `path` is where it stands, such as `train.optimizer`.
pub fn decode(
    section: &AstSection,
    table: &'static Section,
    path: &str,
    found: &mut Vec<Diagnostic>,
) -> Decoded {
    Decoder { found, path: path.to_string() }.section(section, table)
}

/// The names of every key below a section, dotted, for suggestions across levels.
pub fn all_keys(table: &'static Section, prefix: &str, out: &mut Vec<String>) {
    for key in table.keys {
        let path = format!("{prefix}.{}", key.name);
        match key.kind {
            Kind::Section(inner) | Kind::SectionOr(_, inner) | Kind::WordOrSection(_, inner) => {
                all_keys(inner, &path, out);
            }
            Kind::Variant(variants) => variants.iter().for_each(|v| all_keys(&v.section, &path, out)),
            _ => {}
        }
        out.push(path);
    }
}

struct Decoder<'a> {
    found: &'a mut Vec<Diagnostic>,
    /// Dotted path of the section being typed.
    path: String,
}

impl Decoder<'_> {
    fn inside<T>(&mut self, name: &str, run: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.path.clone();
        self.path = format!("{outer}.{name}");
        let result = run(self);
        self.path = outer;
        result
    }

    fn section(&mut self, section: &AstSection, table: &'static Section) -> Decoded {
        let mut written: Vec<(&Ident, &Value)> = vec![];
        let mut globs = vec![];
        for entry in &section.entries {
            match entry {
                Entry::Assign { key, value } => self.written(&mut written, key, value, table),
                Entry::Glob { verb, glob, except, value } => {
                    globs.extend(self.glob(table, verb, glob, except.as_ref(), value.as_ref()));
                }
                Entry::Weighted { value, .. } => {
                    self.wrong::<()>(
                        value.span,
                        "a weighted entry stands only in `mix`",
                        "expected `key = value`",
                    );
                }
                // `with` of a target was applied when the target was chosen.
                Entry::With(_) => {}
            }
        }
        let fields = table.keys.iter().map(|key| self.field(key, &written, section.span)).collect();
        Decoded { fields, globs, span: section.span }
    }

    fn written<'e>(
        &mut self,
        written: &mut Vec<(&'e Ident, &'e Value)>,
        key: &'e Ident,
        value: &'e Value,
        table: &'static Section,
    ) {
        if !table.keys.iter().any(|k| k.name == key.name) {
            self.unknown_key(key, table);
        } else if let Some((first, _)) = written.iter().find(|(k, _)| k.name == key.name) {
            self.found.push(
                Diagnostic::error(codes::DUPLICATE, format!("`{}` is given twice", key.name))
                    .at(key.span, "again")
                    .and(first.span, "first given here"),
            );
        } else {
            written.push((key, value));
        }
    }

    fn unknown_key(&mut self, key: &Ident, table: &'static Section) {
        let title = format!("unknown key: `{}.{}`", self.path, key.name);
        let mut diagnostic = Diagnostic::error(codes::UNKNOWN_KEY, title).at(key.span, "no such key");
        let mut everywhere = vec![];
        all_keys(&super::schema::TRAIN, "train", &mut everywhere);
        let elsewhere = everywhere.iter().find(|p| p.rsplit('.').next() == Some(key.name.as_str()));
        if let Some(near) = nearest(&key.name, table.keys.iter().map(|k| k.name)) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        } else if let Some(elsewhere) = elsewhere {
            diagnostic = diagnostic.help(format!("there is a `{elsewhere}`"));
        } else if !table.keys.is_empty() {
            let keys: Vec<&str> = table.keys.iter().map(|k| k.name).collect();
            diagnostic = diagnostic.help(format!("known here: {}", keys.join(", ")));
        }
        self.found.push(diagnostic);
    }

    fn field(&mut self, key: &'static Key, written: &[(&Ident, &Value)], section: Span) -> Field {
        if let Some((name, value)) = written.iter().find(|(k, _)| k.name == key.name) {
            let typed = self.inside(key.name, |d| d.value(value, key.kind));
            if !key.applied {
                let what = format!("{}.{}", self.path, key.name);
                self.found.push(super::check::not_applied(&what, name.span.to(value.span)));
            }
            return Field { key, value: typed.unwrap_or(Typed::Absent), origin: name.span, at: value.span };
        }
        let value = match key.default {
            Fallback::Absent => Typed::Absent,
            Fallback::Is(text) => self.inside(key.name, |d| d.default(text, key.kind)),
            Fallback::Required => {
                let title = format!("missing key: `{}.{}`", self.path, key.name);
                self.found.push(
                    Diagnostic::error(codes::MISSING_KEY, title)
                        .at(section, "not given here")
                        .help(format!("`{}`: {}", key.name, key.doc)),
                );
                Typed::Absent
            }
        };
        Field { key, value, origin: Span::NONE, at: Span::NONE }
    }

    /// A default, which the tables give in the spelling of the language.
    fn default(&mut self, text: &str, kind: Kind) -> Typed {
        let mut sources = SourceMap::new();
        let id = sources.add("default", format!("default={text}"));
        let Ok((_, value)) = parse::parse_set(&sources, id) else { return Typed::Absent };
        self.value(&value, kind).unwrap_or(Typed::Absent)
    }

    fn glob(
        &mut self,
        table: &'static Section,
        verb: &Ident,
        glob: &super::ast::Text,
        except: Option<&super::ast::Text>,
        value: Option<&Value>,
    ) -> Option<GlobField> {
        let Some(known) = table.globs.iter().find(|g: &&Glob| g.verb == verb.name) else {
            let title = format!("`{}` has no entry `{} \"…\"`", self.path, verb.name);
            let mut diagnostic = Diagnostic::error(codes::UNKNOWN_KEY, title).at(verb.span, "no such entry");
            if let Some(near) = nearest(&verb.name, table.globs.iter().map(|g| g.verb)) {
                diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            }
            self.found.push(diagnostic);
            return None;
        };
        let value = match (known.value, value) {
            (None, None) => Typed::Absent,
            (Some(kind), Some(value)) => self.inside(known.verb, |d| d.value(value, kind))?,
            (None, Some(value)) => {
                return self.wrong(value.span, "nothing follows this glob", "not expected here");
            }
            (Some(_), None) => {
                return self.wrong(
                    glob.span,
                    "the glob lacks what holds for it",
                    "expected `{ … }` or `: value`",
                );
            }
        };
        let except = except.map(|e| e.value.clone());
        Some(GlobField { verb: known.verb, glob: glob.value.clone(), except, value, span: glob.span })
    }

    // ---- values

    fn wrong<T>(&mut self, span: Span, title: impl Into<String>, label: impl Into<String>) -> Option<T> {
        self.found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(span, label));
        None
    }

    /// Reports a value of another kind than the key takes.
    fn mismatch<T>(&mut self, value: &Value, expected: &str) -> Option<T> {
        let title = format!("`{}` takes {expected}, found `{}`", self.path, print::value(value));
        self.wrong(value.span, title, format!("expected {expected}"))
    }

    fn range<T>(&mut self, value: &Value, allowed: &str) -> Option<T> {
        let title = format!("`{}` must be {allowed}: {}", self.path, print::value(value));
        self.found.push(Diagnostic::error(codes::RANGE, title).at(value.span, "out of range"));
        None
    }

    fn value(&mut self, value: &Value, kind: Kind) -> Option<Typed> {
        match kind {
            Kind::Count => self.whole(value, 1),
            Kind::Whole => self.whole(value, 0),
            Kind::Positive => self.real(value, "above 0", |x| x > 0.0),
            Kind::NonNegative => self.real(value, "0 or above", |x| x >= 0.0),
            Kind::Fraction => self.real(value, "from 0, below 1", |x| (0.0..1.0).contains(&x)),
            Kind::Betas => self.betas(value),
            Kind::Switch => match plain_word(value) {
                Some("true") => Some(Typed::Flag(true)),
                Some("false") => Some(Typed::Flag(false)),
                _ => self.mismatch(value, "`true` or `false`"),
            },
            Kind::Text => match &value.kind {
                ValueKind::Text(t) => Some(Typed::Text(t.clone())),
                _ => self.mismatch(value, "a quoted string"),
            },
            Kind::Word(words) => self.word(value, words),
            Kind::AnyWord => match plain_word(value) {
                Some(word) => Some(Typed::Word(word.to_string())),
                None => self.mismatch(value, "a word"),
            },
            Kind::Bytes => match plain_number(value) {
                Some(n) if n.unit == Unit::Bytes => {
                    n.integer.map(Typed::Integer).or_else(|| self.range(value, "a whole number of bytes"))
                }
                _ => self.mismatch(value, "a number of bytes such as `16GiB`"),
            },
            Kind::Batch => self.batch(value),
            Kind::OrNone(_) if plain_word(value) == Some("none") => Some(Typed::None),
            Kind::OrNone(inner) => self.value(value, *inner),
            Kind::Variant(variants) => self.variant(value, variants),
            Kind::Chain(variants) => self.chain(value, variants),
            Kind::Source => self.source(value),
            Kind::Section(table) => match &value.kind {
                ValueKind::Section(s) => Some(Typed::Section(Box::new(self.section(s, table)))),
                _ => self.mismatch(value, "keys in braces"),
            },
            Kind::SectionOr(shorthands, table) => self.section_or(value, shorthands, table),
            Kind::WordOrSection(words, table) => match &value.kind {
                ValueKind::Section(s) => Some(Typed::Section(Box::new(self.section(s, table)))),
                _ => self.word(value, words),
            },
            Kind::StepRange => self.steps(value),
        }
    }

    /// Keys in braces, or those a word stands for, as if they were written where it is.
    fn section_or(
        &mut self,
        value: &Value,
        shorthands: &'static [Shorthand],
        table: &'static Section,
    ) -> Option<Typed> {
        if let ValueKind::Section(s) = &value.kind {
            return Some(Typed::Section(Box::new(self.section(s, table))));
        }
        let written = plain_word(value);
        let Some(short) = shorthands.iter().find(|s| Some(s.word) == written) else {
            let words: Vec<&str> = shorthands.iter().map(|s| s.word).collect();
            let expected = format!("`{}`, or keys in braces", words.join("`, `"));
            let title = format!("`{}` takes {expected}, found `{}`", self.path, print::value(value));
            let mut diagnostic =
                Diagnostic::error(codes::VALUE_TYPE, title).at(value.span, "not one of them");
            if let Some(near) = written.and_then(|w| nearest(w, words)) {
                diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            }
            self.found.push(diagnostic);
            return None;
        };
        let ident = |name: &str| Ident { name: name.into(), span: value.span };
        let entries = short.keys.iter().map(|(key, word)| Entry::Assign {
            key: ident(key),
            value: Value {
                kind: ValueKind::Tagged { tag: ident(word), args: None, section: None },
                span: value.span,
            },
        });
        let section = AstSection { entries: entries.collect(), span: value.span };
        Some(Typed::Section(Box::new(self.section(&section, table))))
    }

    fn whole(&mut self, value: &Value, least: u64) -> Option<Typed> {
        let Some(number) = plain_number(value).filter(|n| n.unit == Unit::One) else {
            return self.mismatch(value, "a whole number");
        };
        match number.integer {
            Some(n) if n >= least => Some(Typed::Integer(n)),
            _ => {
                self.range(value, if least == 0 { "a whole number from 0" } else { "a whole number from 1" })
            }
        }
    }

    fn real(&mut self, value: &Value, allowed: &str, fits: impl Fn(f64) -> bool) -> Option<Typed> {
        let Some(number) = plain_number(value).filter(|n| n.unit == Unit::One) else {
            return self.mismatch(value, "a number");
        };
        if fits(number.value) {
            Some(Typed::Real(number.value, number.text.clone()))
        } else {
            self.range(value, allowed)
        }
    }

    fn betas(&mut self, value: &Value) -> Option<Typed> {
        let ValueKind::Tuple(items) = &value.kind else {
            return self.mismatch(value, "two numbers such as `(0.9, 0.95)`");
        };
        let numbers: Vec<f64> = items.iter().filter_map(plain_number).map(|n| n.value).collect();
        match (numbers.as_slice(), items.len()) {
            ([a, b], 2) if (0.0..1.0).contains(a) && (0.0..1.0).contains(b) => {
                Some(Typed::Pair(*a, *b, print::value(value)))
            }
            ([_, _], 2) => self.range(value, "two numbers from 0, below 1"),
            _ => self.mismatch(value, "two numbers such as `(0.9, 0.95)`"),
        }
    }

    fn word(&mut self, value: &Value, words: &'static [&'static str]) -> Option<Typed> {
        let written = plain_word(value);
        if let Some(word) = written.filter(|w| words.contains(w)) {
            return Some(Typed::Word(word.to_string()));
        }
        let list: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
        let expected = match list.as_slice() {
            [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
            _ => list.join(""),
        };
        let title = format!("`{}` takes {expected}, found `{}`", self.path, print::value(value));
        let mut diagnostic = Diagnostic::error(codes::VALUE_TYPE, title).at(value.span, "not one of them");
        if let Some(near) = written.and_then(|w| nearest(w, words.iter().copied())) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        self.found.push(diagnostic);
        None
    }

    fn batch(&mut self, value: &Value) -> Option<Typed> {
        let ValueKind::Number(number, unit) = &value.kind else {
            return self.mismatch(value, "a number of sequences or tokens");
        };
        let tokens = match unit.as_ref().map(|u| u.name.as_str()) {
            None | Some("sequences" | "sequence") => false,
            Some("tokens" | "token") => true,
            Some(_) => return self.mismatch(value, "a number of `sequences` or `tokens`"),
        };
        match number.integer.filter(|n| *n >= 1 && number.unit == Unit::One) {
            Some(n) => Some(Typed::Batch(n, tokens)),
            None => self.range(value, "a whole number from 1"),
        }
    }

    fn variant(&mut self, value: &Value, variants: &'static [Variant]) -> Option<Typed> {
        // `--set train.optimizer.lr=1` may have made a bare section; it means the first form.
        if let ValueKind::Section(s) = &value.kind {
            let first = &variants[0];
            let body = self.section(s, &first.section);
            return Some(Typed::Variant(
                first,
                Box::new(self.arguments(first, &[], value.span)?),
                Box::new(body),
            ));
        }
        let ValueKind::Tagged { tag, args, section } = &value.kind else {
            return self.mismatch(value, &one_of(variants));
        };
        let Some(variant) = variants.iter().find(|v| v.tag == tag.name) else {
            let title = format!("`{}` takes {}, found `{}`", self.path, one_of(variants), tag.name);
            let mut diagnostic = Diagnostic::error(codes::VALUE_TYPE, title).at(tag.span, "not one of them");
            if let Some(near) = nearest(&tag.name, variants.iter().map(|v| v.tag)) {
                diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            }
            self.found.push(diagnostic);
            return None;
        };
        if !variant.available && SOURCES.iter().any(|s| s.tag == variant.tag) {
            self.found.push(super::check::not_applied(variant.tag, tag.span));
        } else if !variant.available {
            self.found.push(super::check::not_available(&format!("`{}`", variant.tag), tag.span));
        }
        let args = self.arguments(variant, args.as_deref().unwrap_or_default(), value.span)?;
        let empty = AstSection { entries: vec![], span: value.span };
        let body = self.section(section.as_ref().unwrap_or(&empty), &variant.section);
        Some(Typed::Variant(variant, Box::new(args), Box::new(body)))
    }

    /// The arguments of a form, as if they were keys of a section.
    fn arguments(
        &mut self,
        variant: &'static Variant,
        args: &[super::ast::ValueArg],
        span: Span,
    ) -> Option<Decoded> {
        let mut named: Vec<(Ident, Value)> = vec![];
        let mut good = true;
        for arg in args {
            let Some(name) = &arg.name else { continue };
            if !variant.args.iter().any(|k| k.name == name.name) {
                let title = format!("`{}` has no argument `{}`", variant.tag, name.name);
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_KEY, title).at(name.span, "unknown argument");
                if let Some(near) = nearest(&name.name, variant.args.iter().map(|k| k.name)) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                }
                self.found.push(diagnostic);
                good = false;
            } else if named.iter().any(|(n, _)| n.name == name.name) {
                self.found.push(
                    Diagnostic::error(codes::DUPLICATE, format!("`{}` is given twice", name.name))
                        .at(name.span, "again"),
                );
                good = false;
            } else {
                named.push((name.clone(), arg.value.clone()));
            }
        }
        for arg in args.iter().filter(|a| a.name.is_none()) {
            let free = variant.args.iter().find(|k| !named.iter().any(|(n, _)| n.name == k.name));
            match free {
                Some(key) => {
                    named.push((Ident { name: key.name.into(), span: arg.value.span }, arg.value.clone()))
                }
                None => {
                    let title = format!("`{}` takes at most {} arguments", variant.tag, variant.args.len());
                    self.found
                        .push(Diagnostic::error(codes::ARGUMENTS, title).at(arg.value.span, "one too many"));
                    good = false;
                }
            }
        }
        let written: Vec<(&Ident, &Value)> = named.iter().map(|(n, v)| (n, v)).collect();
        let fields = variant.args.iter().map(|key| self.field(key, &written, span)).collect();
        good.then_some(Decoded { fields, globs: vec![], span })
    }

    fn chain(&mut self, value: &Value, variants: &'static [Variant]) -> Option<Typed> {
        let one = std::slice::from_ref(value);
        let pieces = if let ValueKind::Chain(pieces) = &value.kind { pieces.as_slice() } else { one };
        let typed: Vec<_> = pieces.iter().map(|p| self.variant(p, variants).map(|t| (t, p.span))).collect();
        typed.into_iter().collect::<Option<Vec<_>>>().map(Typed::Chain)
    }

    fn source(&mut self, value: &Value) -> Option<Typed> {
        match &value.kind {
            ValueKind::Tagged { tag, args: None, section: Some(s) } if tag.name == "mix" => {
                self.mix(s, tag.span)
            }
            ValueKind::Tagged { tag, .. } if tag.name == "mix" => {
                self.mismatch(value, "weighted sources: `mix { 0.7 tokens(…), 0.3 tokens(…) }`")
            }
            _ => self.variant(value, SOURCES),
        }
    }

    fn mix(&mut self, section: &AstSection, tag: Span) -> Option<Typed> {
        self.found.push(super::check::not_applied("mix", tag));
        let mut parts = vec![];
        let mut sum = 0.0;
        for entry in &section.entries {
            let Entry::Weighted { weight, value } = entry else {
                return self.wrong(
                    section.span,
                    "`mix` takes weighted sources only",
                    "expected `0.7 tokens(…)`",
                );
            };
            sum += weight.value;
            parts.push((weight.value, self.variant(value, SOURCES)?));
        }
        if (sum - 1.0).abs() > 1e-9 {
            let title = format!("the weights of a `mix` must sum to 1: {sum}");
            self.found.push(Diagnostic::error(codes::RANGE, title).at(section.span, ""));
        }
        Some(Typed::Mix(parts))
    }

    fn steps(&mut self, value: &Value) -> Option<Typed> {
        if let ValueKind::Tagged { tag, args: Some(args), section: None } = &value.kind
            && tag.name == "steps"
            && let [arg] = args.as_slice()
            && let ValueKind::Range(a, b) = &arg.value.kind
            && let (Some(a), Some(b)) = (a.integer, b.integer)
            && a < b
        {
            return Some(Typed::Steps(a, b));
        }
        self.mismatch(value, "a range of steps such as `steps(100..102)`")
    }
}

fn one_of(variants: &[Variant]) -> String {
    let tags: Vec<String> = variants.iter().map(|v| format!("`{}`", v.tag)).collect();
    match tags.as_slice() {
        [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
        _ => tags.join(""),
    }
}

/// A word without arguments.
fn plain_word(value: &Value) -> Option<&str> {
    match &value.kind {
        ValueKind::Tagged { tag, args: None, section: None } => Some(&tag.name),
        _ => None,
    }
}

/// A number without a unit word.
fn plain_number(value: &Value) -> Option<&Number> {
    if let ValueKind::Number(number, None) = &value.kind { Some(number) } else { None }
}
