//! Sections of a run and their values.

use pest::iterators::Pair;

use super::Rule;
use super::tree::{Build, Parts};
use crate::spec::ast::*;

impl Build {
    pub(super) fn section(&mut self, pair: Pair<'_, Rule>) -> Section {
        let span = self.span(&pair);
        let entries = Parts::of(pair).rest.map(|p| self.entry(p)).collect();
        Section { entries, span }
    }

    pub(super) fn entry(&mut self, pair: Pair<'_, Rule>) -> Entry {
        let rule = pair.as_rule();
        let mut parts = Parts::of(pair);
        match rule {
            Rule::with_entry => Entry::With(self.section(parts.take())),
            Rule::glob_entry => {
                let verb = self.ident(parts.take());
                let glob = self.text(parts.take());
                let except = parts.take_if(Rule::string).map(|p| self.text(p));
                let value = parts.rest.next().map(|p| self.value(p));
                Entry::Glob { verb, glob, except, value }
            }
            Rule::weighted => {
                let weight = parts.take();
                Entry::Weighted { weight: self.number(weight, false), value: self.value(parts.take()) }
            }
            _ => {
                let key = self.ident(parts.take());
                Entry::Assign { key, value: self.value(parts.take()) }
            }
        }
    }

    pub(super) fn value(&mut self, pair: Pair<'_, Rule>) -> Value {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::value => return self.whole_value(pair),
            Rule::numeric => self.numeric(pair),
            Rule::string => ValueKind::Text(self.text(pair).value),
            Rule::tuple => ValueKind::Tuple(Parts::of(pair).rest.map(|p| self.value(p)).collect()),
            Rule::list => ValueKind::List(Parts::of(pair).rest.map(|p| self.value(p)).collect()),
            Rule::section => ValueKind::Section(self.section(pair)),
            _ => self.tagged(pair),
        };
        Value { kind, span }
    }

    pub(super) fn whole_value(&mut self, pair: Pair<'_, Rule>) -> Value {
        let span = self.span(&pair);
        let mut terms = vec![];
        let mut over = None;
        for part in Parts::of(pair).rest {
            if part.as_rule() == Rule::word {
                over = Some(self.ident(part));
            } else {
                terms.push(self.value(part));
            }
        }
        let value = if terms.len() == 1 {
            terms.remove(0)
        } else {
            let span = terms[0].span.to(terms[terms.len() - 1].span);
            Value { kind: ValueKind::Chain(terms), span }
        };
        match over {
            Some(axis) => Value { kind: ValueKind::Over(Box::new(value), axis), span },
            None => value,
        }
    }

    pub(super) fn numeric(&mut self, pair: Pair<'_, Rule>) -> ValueKind {
        let mut parts = Parts::of(pair);
        let negative = parts.take_if(Rule::neg);
        let mut number = {
            let number = parts.take();
            self.number(number, negative.is_some())
        };
        if let Some(sign) = negative {
            number.span = self.span(&sign).to(number.span);
        }
        if let Some(to) = parts.take_if(Rule::range_to) {
            let end = Parts::of(to).take();
            let end = self.number(end, false);
            return ValueKind::Range(number, end);
        }
        ValueKind::Number(number, parts.take_if(Rule::unit).map(|p| self.ident(p)))
    }

    pub(super) fn tagged(&mut self, pair: Pair<'_, Rule>) -> ValueKind {
        let mut parts = Parts::of(pair);
        let mut head = Parts::of(parts.take());
        let tag = self.ident(head.take());
        let args = head.take_if(Rule::value_args).map(|p| {
            Parts::of(p)
                .rest
                .map(|p| {
                    let mut arg = Parts::of(p);
                    let name = arg.take_if(Rule::key).map(|p| self.ident(p));
                    ValueArg { name, value: self.value(arg.take()) }
                })
                .collect()
        });
        let section = parts.take_if(Rule::section).map(|p| self.section(p));
        ValueKind::Tagged { tag, args, section }
    }
}
