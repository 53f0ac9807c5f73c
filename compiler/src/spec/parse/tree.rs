//! The grammar's pairs, and the items of a file.

use pest::iterators::Pair;

use super::number::read_number;
use super::{Rule, without_trailing_blanks};
use crate::spec::ast::*;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::{SourceId, Span};

/// Any rule that is only punctuation or a keyword; the builder never needs to see it.
fn is_noise(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::p_open
            | Rule::p_close
            | Rule::p_eq
            | Rule::p_arrow
            | Rule::p_both
            | Rule::p_lparen
            | Rule::p_rparen
            | Rule::p_lbrack
            | Rule::p_rbrack
            | Rule::p_colon
            | Rule::k_spec
            | Rule::k_use
            | Rule::k_as
            | Rule::k_with
            | Rule::k_model
            | Rule::k_size
            | Rule::k_const
            | Rule::k_input
            | Rule::k_param
            | Rule::k_block
            | Rule::k_loss
            | Rule::k_aux
            | Rule::k_names
            | Rule::k_manual
            | Rule::k_kernel
            | Rule::k_lower
            | Rule::k_for
            | Rule::k_shard
            | Rule::k_freeze
            | Rule::k_except
            | Rule::k_adapter
            | Rule::k_target
            | Rule::k_over
            | Rule::k_then
            | Rule::k_concat
            | Rule::EOI
    )
}

/// The meaningful children of a pair, taken in order.
pub(super) struct Parts<'i> {
    /// Children not yet taken.
    pub(super) rest: std::vec::IntoIter<Pair<'i, Rule>>,
}

impl<'i> Parts<'i> {
    /// The children of a pair without punctuation and keywords.
    pub(super) fn of(pair: Pair<'i, Rule>) -> Self {
        let kept: Vec<_> = pair.into_inner().filter(|p| !is_noise(p.as_rule())).collect();
        Parts { rest: kept.into_iter() }
    }

    /// The next child, which the grammar guarantees.
    pub(super) fn take(&mut self) -> Pair<'i, Rule> {
        self.rest.next().expect("the grammar guarantees this part")
    }

    /// The next child if it is of this rule.
    pub(super) fn take_if(&mut self, rule: Rule) -> Option<Pair<'i, Rule>> {
        if self.rest.as_slice().first()?.as_rule() == rule { self.rest.next() } else { None }
    }
}

/// The one pair of a successful parse.
pub(super) fn first<'i>(mut pairs: pest::iterators::Pairs<'i, Rule>) -> Pair<'i, Rule> {
    pairs.next().expect("a successful parse has one pair")
}

pub(super) struct Build {
    pub(super) source: SourceId,
    /// Offset of the parsed text in its source; not 0 inside a string.
    pub(super) base: u32,
    /// Depth of the expression being built.
    pub(super) depth: usize,
    pub(super) errors: Vec<Diagnostic>,
}

impl Build {
    /// A builder for text that starts at this offset of a source.
    pub(super) fn new(source: SourceId, base: u32) -> Self {
        Build { source, base, depth: 0, errors: vec![] }
    }

    pub(super) fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let span = pair.as_span();
        let length = without_trailing_blanks(span.as_str()).len() as u32;
        let start = self.base + span.start() as u32;
        Span { source: self.source, start, end: start + length }
    }

    pub(super) fn ident(&self, pair: Pair<'_, Rule>) -> Ident {
        Ident { name: pair.as_str().to_string(), span: self.span(&pair) }
    }

    pub(super) fn idents(&self, pair: Pair<'_, Rule>) -> Vec<Ident> {
        Parts::of(pair).rest.map(|p| self.ident(p)).collect()
    }

    pub(super) fn text(&self, pair: Pair<'_, Rule>) -> Text {
        let span = self.span(&pair);
        let raw = Parts::of(pair).take().as_str().to_string();
        Text { value: unescape(&raw), span }
    }

    pub(super) fn texts(&self, pair: Pair<'_, Rule>) -> Vec<Text> {
        Parts::of(pair).rest.map(|p| self.text(p)).collect()
    }

    pub(super) fn number(&mut self, pair: Pair<'_, Rule>, negative: bool) -> Number {
        let span = self.span(&pair);
        match read_number(pair.as_str(), negative, span) {
            Ok(number) => number,
            Err(reason) => {
                let title = format!("not a usable number: `{}`", pair.as_str());
                self.errors.push(Diagnostic::error(codes::NUMBER, title).at(span, reason));
                let text = pair.as_str().to_string();
                Number { value: 1.0, integer: Some(1), unit: Unit::One, text, span }
            }
        }
    }

    // ---- items

    pub(super) fn file(&mut self, pair: Pair<'_, Rule>) -> File {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let version = self.version(parts.take());
        let items = parts.rest.map(|p| self.item(p)).collect();
        File { version, items, comments: vec![], overrides: vec![], span }
    }

    pub(super) fn version(&mut self, pair: Pair<'_, Rule>) -> u64 {
        let number = Parts::of(pair).take();
        let number = self.number(number, false);
        if number.integer != Some(1) {
            let title = format!("unknown version of the language: {}", number.text);
            self.errors.push(
                Diagnostic::error(codes::VERSION, title).at(number.span, "this compiler knows version 1"),
            );
        }
        number.integer.unwrap_or(0)
    }

    pub(super) fn item(&mut self, pair: Pair<'_, Rule>) -> Item {
        let span = self.span(&pair);
        match pair.as_rule() {
            Rule::use_item => Item::Use(self.use_item(pair)),
            Rule::model => {
                let mut parts = Parts::of(pair);
                let name = self.ident(parts.take());
                Item::Model(Model { name, body: self.body(parts.take()), span })
            }
            Rule::block => Item::Block(self.block(pair)),
            Rule::shard => {
                let (mut rules, mut entries) = (vec![], vec![]);
                for part in Parts::of(pair).rest {
                    match part.as_rule() {
                        Rule::shard_rule => rules.push(self.shard_rule(part)),
                        _ => entries.push(self.entry(part)),
                    }
                }
                Item::Shard(Shard { rules, keys: Section { entries, span }, span })
            }
            Rule::freeze => {
                let mut parts = Parts::of(pair);
                let globs = self.texts(parts.take());
                let except = parts.take_if(Rule::strings).map(|p| self.texts(p)).unwrap_or_default();
                Item::Freeze(Freeze { globs, except, span })
            }
            Rule::adapter => {
                let mut parts = Parts::of(pair);
                let kind = self.ident(parts.take());
                Item::Adapter(Adapter { kind, section: self.section(parts.take()) })
            }
            Rule::target => {
                let mut parts = Parts::of(pair);
                let kind = self.ident(parts.take());
                let label = parts.take_if(Rule::string).map(|p| self.text(p));
                let none = Section { entries: vec![], span: kind.span };
                let section = parts.take_if(Rule::section).map_or(none, |p| self.section(p));
                Item::Target(Target { kind, label, section, span })
            }
            Rule::kernel => Item::Kernel(self.kernel(pair)),
            _ => {
                let mut parts = Parts::of(pair);
                let kind = self.ident(parts.take());
                Item::Section(SectionItem { kind, section: self.section(parts.take()) })
            }
        }
    }

    pub(super) fn use_item(&mut self, pair: Pair<'_, Rule>) -> Use {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let dotted =
            parts.take_if(Rule::path).map(|p| Text { value: p.as_str().to_string(), span: self.span(&p) });
        let is_dotted = dotted.is_some();
        let path = dotted.unwrap_or_else(|| self.text(parts.take()));
        let alias = parts.take_if(Rule::ident).map(|p| self.ident(p));
        let with = parts.take_if(Rule::section).map(|p| self.section(p));
        Use { path, dotted: is_dotted, alias, with, span }
    }

    pub(super) fn kernel(&mut self, pair: Pair<'_, Rule>) -> Kernel {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let file = self.text(parts.take());
        Kernel { file, subject: self.reference(parts.take()), span }
    }

    pub(super) fn shard_rule(&mut self, pair: Pair<'_, Rule>) -> ShardRule {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let scope = parts.take_if(Rule::shard_scope).map_or(ShardScope::Every, |p| {
            let mut inner = p.into_inner();
            let word = first_rule(&mut inner);
            let subject = first_rule(&mut inner);
            match word.as_rule() {
                Rule::k_role => ShardScope::Role(self.ident(subject)),
                Rule::k_params => ShardScope::Params(self.text(subject)),
                _ => ShardScope::Values(self.text(subject)),
            }
        });
        let mut choices = vec![];
        while let Some(p) = parts.take_if(Rule::axis_choice) {
            let span = self.span(&p);
            let inner = Parts::of(p).take();
            let joint = inner.as_rule() == Rule::joint_axes;
            let axes = if joint { self.idents(inner) } else { vec![self.ident(inner)] };
            choices.push(AxisChoice { axes, joint, span });
        }
        let mesh_axes = parts.rest.map(|p| self.ident(p)).collect();
        ShardRule { scope, choices, mesh_axes, span }
    }
}

fn first_rule<'i>(pairs: &mut pest::iterators::Pairs<'i, Rule>) -> Pair<'i, Rule> {
    pairs.find(|p| p.as_rule() != Rule::p_colon).expect("the grammar guarantees this part")
}

fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => {}
            },
            (c, false) => text.push(c),
        }
    }
    text
}
