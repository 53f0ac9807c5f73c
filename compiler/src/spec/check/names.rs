//! Name tables: which foreign tensor holds which parameters.
//!
//! A rule's logical pattern is matched with parameter paths segment by segment: plain text with itself, a hole `{i}` or a
//! number with a repeat's segment. The foreign pattern's holes are linear in the variables bound on the left. Together
//! the rules of a table cover every iteration of every parameter exactly once.

use super::model::{Checker, show_axes};
use super::scope::Scope;
use crate::spec::ast::{
    self, BinaryOp as Op, Expr as AstExpr, ExprKind as AstKind, LayoutDim as AstDim, PatternPart,
};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::glob::nearest_paths;
use crate::spec::source::Span;

/// One segment of a logical pattern.
#[derive(Clone, Debug)]
enum Segment {
    Text(String),
    Hole(String),
}

impl Checker<'_> {
    /// Resolves a table; `None` after an error.
    pub(super) fn name_table(&mut self, table: &ast::Names) -> Option<NameTable> {
        let mut rules = vec![];
        let mut good = true;
        for rule in &table.rules {
            match self.name_rule(rule) {
                Some(rule) => rules.push(rule),
                None => good = false,
            }
        }
        if !good {
            return None;
        }
        self.coverage(table, &rules)?;
        Some(NameTable { name: table.table.name.clone(), rules, span: table.table.span })
    }

    fn name_rule(&mut self, rule: &ast::NameRule) -> Option<NameRule> {
        let alternatives = self.logical_alternatives(&rule.logical)?;
        let mut params = vec![];
        let mut iterations: Vec<IterationRange> = vec![];
        let mut variables: Vec<(String, usize)> = vec![];
        for (text, segments) in &alternatives {
            let found = self.params.iter().enumerate().find_map(|(i, p)| {
                match_path(segments, p).map(|(ranges, bound)| (ParamId(i as u32), ranges, bound))
            });
            let Some((id, ranges, bound)) = found else {
                self.no_such_parameter(text, rule.logical.text.span);
                return None;
            };
            if !params.is_empty() && ranges != iterations {
                let title = "fused parameters must lie in the same repeats";
                self.error(codes::NAMES_RULE, title, rule.logical.text.span, "");
                return None;
            }
            params.push(id);
            (iterations, variables) = (ranges, bound);
        }
        for (i, range) in iterations.iter().enumerate() {
            let count = self.params[params[0].0 as usize].repeats[i].axis.size;
            if let IterationRange::One(n) = range
                && *n >= count
            {
                let title = format!("the repeat has {count} iterations, numbered from 0: {n}");
                self.error(codes::NAMES_RULE, title, rule.logical.text.span, "");
                return None;
            }
        }
        let foreign = self.foreign(&rule.foreign, &variables)?;
        for (i, range) in iterations.iter().enumerate() {
            let named = foreign.iter().any(|p| matches!(p, NamePart::Index { repeat, .. } if *repeat == i));
            if *range == IterationRange::All && !named {
                let variable = variables.iter().find(|(_, r)| *r == i).map_or("i", |(v, _)| v);
                let title =
                    format!("every iteration would have one foreign name: `{{{variable}}}` is missing");
                self.error(
                    codes::NAMES_RULE,
                    title,
                    rule.foreign.text.span,
                    "needs the hole of the logical path",
                );
                return None;
            }
        }
        let layout = self.layout(rule, &params)?;
        Some(NameRule { params, foreign, iterations, layout, span: rule.span })
    }

    /// Writes out the choices of a logical pattern: each with its text and its segments.
    fn logical_alternatives(&mut self, pattern: &ast::Pattern) -> Option<Vec<(String, Vec<Segment>)>> {
        let mut texts = vec![String::new()];
        for part in &pattern.parts {
            match part {
                PatternPart::Text(t) => texts.iter_mut().for_each(|s| s.push_str(t)),
                PatternPart::Choice(choices) => {
                    texts =
                        texts.iter().flat_map(|t| choices.iter().map(move |c| format!("{t}{c}"))).collect();
                }
                PatternPart::Hole(e) => match &e.kind {
                    AstKind::Ref(r) if r.args.is_none() && r.axes.is_none() => {
                        texts.iter_mut().for_each(|s| *s += &format!("{{{}}}", r.path.name));
                    }
                    _ => {
                        let title = "the logical side takes plain variables";
                        self.error(
                            codes::NAMES_RULE,
                            title,
                            e.span,
                            "expected `{i}`; arithmetic stands on the foreign side",
                        );
                        return None;
                    }
                },
            }
        }
        let segment = |s: &str| match s.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            Some(variable) => Segment::Hole(variable.to_string()),
            None => Segment::Text(s.to_string()),
        };
        Some(texts.into_iter().map(|t| (t.clone(), t.split('.').map(segment).collect())).collect())
    }

    fn no_such_parameter(&mut self, text: &str, span: Span) {
        let title = format!("no parameter of this path: `{text}`");
        let mut diagnostic = Diagnostic::error(codes::GLOB_NOTHING, title).at(span, "hits nothing");
        let near = nearest_paths(text, self.params.iter().map(|p| p.path.as_str()));
        if !near.is_empty() {
            diagnostic = diagnostic.help(format!("nearest: {}", near.join(", ")));
        }
        self.report(diagnostic);
    }

    fn foreign(&mut self, pattern: &ast::Pattern, variables: &[(String, usize)]) -> Option<Vec<NamePart>> {
        let mut parts = vec![];
        for part in &pattern.parts {
            match part {
                PatternPart::Text(t) => parts.push(NamePart::Text(t.clone())),
                PatternPart::Choice(_) => {
                    let title = "the foreign side names one tensor";
                    self.error(
                        codes::NAMES_RULE,
                        title,
                        pattern.text.span,
                        "choices stand on the logical side",
                    );
                    return None;
                }
                PatternPart::Hole(e) => {
                    let Some((coefficients, offset)) = linear(e, variables) else {
                        let title = "a hole must be linear in the variables of the logical path";
                        self.error(codes::NAMES_RULE, title, e.span, "expected such as `{i}` or `{2*i+1}`");
                        return None;
                    };
                    let used: Vec<_> = coefficients.iter().enumerate().filter(|(_, c)| **c != 0).collect();
                    match used.as_slice() {
                        [] => parts.push(NamePart::Text(offset.to_string())),
                        [(repeat, scale)] => {
                            parts.push(NamePart::Index { repeat: *repeat, scale: **scale, offset })
                        }
                        _ => {
                            self.error(codes::NAMES_RULE, "a hole takes one variable", e.span, "");
                            return None;
                        }
                    }
                }
            }
        }
        Some(parts)
    }

    fn layout(&mut self, rule: &ast::NameRule, params: &[ParamId]) -> Option<Vec<LayoutDim>> {
        let Some(layout) = &rule.layout else {
            if params.len() > 1 {
                let title = "a fused tensor needs its layout";
                self.report(
                    Diagnostic::error(codes::NAMES_RULE, title)
                        .at(rule.span, format!("holds {} parameters", params.len()))
                        .help("write `as [d, concat(kv group hd, kv hd, kv hd)]`"),
                );
                return None;
            }
            let param = &self.params[params[0].0 as usize];
            return Some(param.axes().map(|a| LayoutDim::Axes(vec![a.clone()])).collect());
        };
        let scope = Scope::default();
        let mut dims = vec![];
        let mut fused = false;
        for dim in &layout.dims {
            dims.push(match dim {
                AstDim::Axes(axes) => LayoutDim::Axes(self.axes(&scope, axes)?),
                AstDim::Concat(parts) => {
                    if parts.len() != params.len() {
                        let title =
                            format!("`concat` has {} parts for {} parameters", parts.len(), params.len());
                        self.error(codes::NAMES_RULE, title, layout.span, "");
                        return None;
                    }
                    fused = true;
                    let mut all = vec![];
                    for part in parts {
                        all.push(self.axes(&scope, part)?);
                    }
                    LayoutDim::Concat(all)
                }
            });
        }
        if params.len() > 1 && !fused {
            self.error(codes::NAMES_RULE, "a fused tensor needs a `concat`", layout.span, "");
            return None;
        }
        for (i, id) in params.iter().enumerate() {
            self.layout_fits(&dims, i, *id, layout.span)?;
        }
        Some(dims)
    }

    /// A layout names each axis of the parameter exactly once.
    fn layout_fits(&mut self, dims: &[LayoutDim], part: usize, id: ParamId, span: Span) -> Option<()> {
        let mut named: Vec<Axis> = vec![];
        for dim in dims {
            match dim {
                LayoutDim::Axes(axes) => named.extend(axes.iter().cloned()),
                LayoutDim::Concat(parts) => named.extend(parts[part].iter().cloned()),
            }
        }
        let param = &self.params[id.0 as usize];
        let have: Vec<Axis> = param.axes().cloned().collect();
        let (mut a, mut b) = (named.clone(), have.clone());
        a.sort();
        b.sort();
        if a == b {
            return Some(());
        }
        let title = format!(
            "the layout {} does not fit `{}`, which has {}",
            show_axes(&named),
            param.path,
            show_axes(&have)
        );
        self.report(
            Diagnostic::error(codes::NAMES_RULE, title)
                .at(span, "each axis of the parameter must appear once")
                .and(param.span, "declared here"),
        );
        None
    }

    /// Every iteration of every parameter is named once.
    fn coverage(&mut self, table: &ast::Names, rules: &[NameRule]) -> Option<()> {
        let mut missing = vec![];
        let mut errors = vec![];
        for (index, param) in self.params.iter().enumerate() {
            let id = ParamId(index as u32);
            let holding: Vec<&NameRule> = rules.iter().filter(|r| r.params.contains(&id)).collect();
            for (i, rule) in holding.iter().enumerate() {
                if let Some(first) = holding[..i].iter().find(|r| overlap(&r.iterations, &rule.iterations)) {
                    errors.push(
                        Diagnostic::error(codes::NAMES_RULE, format!("`{}` is named twice", param.path))
                            .at(rule.span, "again")
                            .and(first.span, "first named here"),
                    );
                }
            }
            let covered: u128 = holding.iter().map(|r| cells(&r.iterations, param)).sum();
            let all: u128 = param.repeats.iter().map(|r| u128::from(r.axis.size)).product();
            if covered < all {
                missing.push(param.path.clone());
            }
        }
        let good = errors.is_empty() && missing.is_empty();
        for error in errors {
            self.report(error);
        }
        if !missing.is_empty() {
            let title = format!("the name table `{}` is incomplete", table.table.name);
            self.report(
                Diagnostic::error(codes::NAMES_INCOMPLETE, title)
                    .at(table.table.span, "this table")
                    .meaning(format!("not named: {}", missing.join(", "))),
            );
        }
        good.then_some(())
    }
}

fn overlap(a: &[IterationRange], b: &[IterationRange]) -> bool {
    a.iter().zip(b).all(|(a, b)| *a == IterationRange::All || *b == IterationRange::All || a == b)
}

fn cells(ranges: &[IterationRange], param: &Param) -> u128 {
    let each = ranges.iter().zip(&param.repeats).map(|(range, repeat)| match range {
        IterationRange::All => u128::from(repeat.axis.size),
        IterationRange::One(_) => 1,
    });
    each.product()
}

/// The iterations a rule covers, and which variable stands for which repeat.
type PathMatch = (Vec<IterationRange>, Vec<(String, usize)>);

/// Matches a pattern with a parameter's path: the iterations it covers, and which variable stands for which repeat.
fn match_path(segments: &[Segment], param: &Param) -> Option<PathMatch> {
    let path: Vec<&str> = param.path.split('.').collect();
    if path.len() != segments.len() {
        return None;
    }
    let (mut ranges, mut bound) = (vec![], vec![]);
    for (segment, path) in segments.iter().zip(path) {
        match (segment, path.starts_with('{')) {
            (Segment::Text(text), false) if text == path => {}
            (Segment::Hole(variable), true) => {
                bound.push((variable.clone(), ranges.len()));
                ranges.push(IterationRange::All);
            }
            (Segment::Text(text), true) => ranges.push(IterationRange::One(text.parse().ok()?)),
            _ => return None,
        }
    }
    Some((ranges, bound))
}

/// Coefficients of the repeats and the constant of a linear expression.
fn linear(e: &AstExpr, variables: &[(String, usize)]) -> Option<(Vec<i64>, i64)> {
    let n = variables.iter().map(|(_, r)| r + 1).max().unwrap_or(0);
    match &e.kind {
        AstKind::Number(number) => {
            let value = i64::try_from(number.integer?).ok().filter(|v| *v < 1 << 31)?;
            Some((vec![0; n], value))
        }
        AstKind::Paren(inner) => linear(inner, variables),
        AstKind::Ref(r) if r.args.is_none() && r.axes.is_none() => {
            let (_, repeat) = variables.iter().find(|(v, _)| *v == r.path.name)?;
            let mut coefficients = vec![0; n];
            coefficients[*repeat] = 1;
            Some((coefficients, 0))
        }
        AstKind::Binary(op, a, b) => {
            let ((ca, ka), (cb, kb)) = (linear(a, variables)?, linear(b, variables)?);
            let combine = |f: fn(i64, i64) -> Option<i64>| -> Option<(Vec<i64>, i64)> {
                let each: Option<Vec<i64>> = ca.iter().zip(&cb).map(|(a, b)| f(*a, *b)).collect();
                Some((each?, f(ka, kb)?))
            };
            let scale = |c: &[i64], k: i64, by: i64| -> Option<(Vec<i64>, i64)> {
                let each: Option<Vec<i64>> = c.iter().map(|a| a.checked_mul(by)).collect();
                Some((each?, k.checked_mul(by)?))
            };
            match op {
                Op::Add => combine(i64::checked_add),
                Op::Sub => combine(i64::checked_sub),
                Op::Mul if ca.iter().all(|c| *c == 0) => scale(&cb, kb, ka),
                Op::Mul if cb.iter().all(|c| *c == 0) => scale(&ca, ka, kb),
                _ => None,
            }
        }
        _ => None,
    }
}
