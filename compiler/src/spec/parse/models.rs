//! Models, blocks, statements and name tables.

use pest::Parser;
use pest::iterators::Pair;

use super::tree::{Build, Parts, first};
use super::{Grammar, Rule, syntax_error};
use crate::spec::ast::*;
use crate::spec::source::Span;

impl Build {
    pub(super) fn body(&mut self, pair: Pair<'_, Rule>) -> Body {
        let span = self.span(&pair);
        let statements = Parts::of(pair).rest.map(|p| self.statement(p)).collect();
        Body { statements, span }
    }

    pub(super) fn block(&mut self, pair: Pair<'_, Rule>) -> Block {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let mut head = Parts::of(parts.take());
        let name = self.ident(head.take());
        let generics = head.take_if(Rule::generics).map(|p| self.idents(p)).unwrap_or_default();
        let formals = Parts::of(parts.take()).rest.map(|p| self.formal(p)).collect();
        let result = self.dims(parts.take());
        let body = self.body(parts.take());
        Block { name, generics, formals, result, body, span }
    }

    pub(super) fn formal(&mut self, pair: Pair<'_, Rule>) -> Formal {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let elem = parts.take_if(Rule::elem_type).map(|p| self.elem_type(p));
        let dims = parts.take_if(Rule::dims).map(|p| self.dims(p));
        let default = parts.take_if(Rule::default).map(|p| self.expr(Parts::of(p).take()));
        Formal { name, elem, dims, default, span }
    }

    pub(super) fn elem_type(&mut self, pair: Pair<'_, Rule>) -> ElemType {
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let bound = parts.take_if(Rule::bound).map(|p| self.expr(Parts::of(p).take()));
        ElemType { name, bound }
    }

    pub(super) fn dims(&self, pair: Pair<'_, Rule>) -> Dims {
        let span = self.span(&pair);
        let dims = Parts::of(pair)
            .rest
            .map(|p| {
                let inner = Parts::of(p).take();
                match inner.as_rule() {
                    Rule::leading => Dim::Leading(self.span(&inner)),
                    _ => Dim::Axis(self.ident(inner)),
                }
            })
            .collect();
        Dims { dims, span }
    }

    pub(super) fn statement(&mut self, pair: Pair<'_, Rule>) -> Statement {
        let span = self.span(&pair);
        match pair.as_rule() {
            Rule::sizes => Statement::Sizes(self.bindings(pair), span),
            Rule::consts => Statement::Consts(self.bindings(pair), span),
            Rule::input => Statement::Input(self.input(pair)),
            Rule::params => Statement::Params(self.params(pair)),
            Rule::block => Statement::Block(self.block(pair)),
            Rule::loss => Statement::Loss(self.expr(Parts::of(pair).take()), span),
            Rule::aux => {
                let mut parts = Parts::of(pair);
                let name = self.ident(parts.take());
                Statement::Aux(Binding { name, value: self.expr(parts.take()) }, span)
            }
            Rule::names => Statement::Names(self.names(pair)),
            Rule::manual => {
                let mut parts = Parts::of(pair);
                let mesh_axes = self.idents(Parts::of(parts.take()).take());
                Statement::Manual(Manual { mesh_axes, body: self.body(parts.take()), span })
            }
            Rule::kernel => Statement::Kernel(self.kernel(pair)),
            Rule::lower => {
                let kind = Ident { name: "lower".into(), span: Span { end: span.start + 5, ..span } };
                Statement::Lower(SectionItem { kind, section: self.section(Parts::of(pair).take()) })
            }
            Rule::let_stmt => Statement::Let(self.let_stmt(pair)),
            _ => {
                let mut parts = Parts::of(pair);
                let value = self.expr(parts.take());
                let role = parts.take_if(Rule::role).map(|p| self.role(p));
                Statement::Yield(Yield { value, role })
            }
        }
    }

    pub(super) fn bindings(&mut self, pair: Pair<'_, Rule>) -> Vec<Binding> {
        Parts::of(pair)
            .rest
            .map(|p| {
                let mut parts = Parts::of(p);
                let name = self.ident(parts.take());
                Binding { name, value: self.expr(parts.take()) }
            })
            .collect()
    }

    pub(super) fn input(&mut self, pair: Pair<'_, Rule>) -> Input {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let elem = parts.take_if(Rule::elem_type).map(|p| self.elem_type(p));
        let dims = parts.take_if(Rule::dims).map(|p| self.dims(p));
        Input { name, elem, dims, span }
    }

    pub(super) fn params(&mut self, pair: Pair<'_, Rule>) -> Params {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let mut params = vec![];
        while let Some(p) = parts.take_if(Rule::param) {
            params.push(self.param(p));
        }
        Params { params, init: self.expr(parts.take()), span }
    }

    pub(super) fn param(&self, pair: Pair<'_, Rule>) -> Param {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let name = self.ident(parts.take());
        let mut dims = Parts::of(parts.take());
        let inputs = dims.take_if(Rule::axis_names).map(|p| self.idents(p)).unwrap_or_default();
        let outputs = dims
            .take_if(Rule::out_axes)
            .map(|p| Parts::of(p).take_if(Rule::axis_names).map(|p| self.idents(p)).unwrap_or_default());
        Param { name, inputs, outputs, span }
    }

    pub(super) fn let_stmt(&mut self, pair: Pair<'_, Rule>) -> Let {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let mut head = Parts::of(parts.take());
        let name = self.ident(head.take());
        let dims = head.take_if(Rule::dims).map(|p| self.dims(p));
        let value = self.expr(parts.take());
        let role = parts.take_if(Rule::role).map(|p| self.role(p));
        Let { name, dims, value, role, span }
    }

    pub(super) fn role(&self, pair: Pair<'_, Rule>) -> Ident {
        let word = pair.into_inner().find(|p| p.as_rule() == Rule::word).expect("a role has a word");
        self.ident(word)
    }

    pub(super) fn names(&mut self, pair: Pair<'_, Rule>) -> Names {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let table = self.ident(parts.take());
        let rules = parts.rest.map(|p| self.name_rule(p)).collect();
        Names { table, rules, span }
    }

    pub(super) fn name_rule(&mut self, pair: Pair<'_, Rule>) -> NameRule {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let logical = self.pattern(parts.take());
        let foreign = self.pattern(parts.take());
        let layout = parts.take_if(Rule::layout).map(|p| self.layout(p));
        NameRule { logical, foreign, layout, span }
    }

    pub(super) fn pattern(&mut self, pair: Pair<'_, Rule>) -> Pattern {
        let inner = Parts::of(pair.clone()).take();
        let base = self.base + inner.as_span().start() as u32;
        let text = self.text(pair);
        let parts = match Grammar::parse(Rule::name_pattern, inner.as_str()) {
            Ok(pairs) => {
                let mut build = Build::new(self.source, base);
                let parts = Parts::of(first(pairs)).rest.map(|p| build.pattern_part(p)).collect();
                self.errors.append(&mut build.errors);
                parts
            }
            Err(error) => {
                self.errors.push(syntax_error::syntax_error(self.source, inner.as_str(), base, &error));
                vec![]
            }
        };
        Pattern { parts, text }
    }

    pub(super) fn pattern_part(&mut self, pair: Pair<'_, Rule>) -> PatternPart {
        match pair.as_rule() {
            Rule::pattern_hole => PatternPart::Hole(self.expr(Parts::of(pair).take())),
            Rule::pattern_choice => {
                PatternPart::Choice(Parts::of(pair).rest.map(|p| p.as_str().to_string()).collect())
            }
            _ => PatternPart::Text(pair.as_str().to_string()),
        }
    }

    pub(super) fn layout(&self, pair: Pair<'_, Rule>) -> Layout {
        let span = self.span(&pair);
        let dims = Parts::of(pair)
            .rest
            .map(|p| {
                let inner = Parts::of(p).take();
                match inner.as_rule() {
                    Rule::concat => {
                        LayoutDim::Concat(Parts::of(inner).rest.map(|p| self.idents(p)).collect())
                    }
                    Rule::joint_axes => LayoutDim::Axes(self.idents(inner)),
                    _ => LayoutDim::Axes(vec![self.ident(inner)]),
                }
            })
            .collect();
        Layout { dims, span }
    }
}
