//! Sizes, constants and the axes named after them.

use std::collections::BTreeMap;

use super::choose::Chosen;
use super::model::{Checker, MAX_NUMEL, MAX_SIZE, RunSizes, is_word, show_axes};
use super::scope::Scope;
use crate::spec::ast::{self, Dim, Dims, Expr as AstExpr, ExprKind as AstKind, Ident, Statement as Stmt};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::source::Span;

/// `over / under`, the second above 0.
#[derive(Clone, Copy)]
struct Fraction {
    over: i128,
    under: i128,
}

impl Fraction {
    /// `1.5`, `4096` or `128_256`; `None` for anything else a number can be.
    fn decimal(text: &str) -> Option<Fraction> {
        let text = text.replace('_', "");
        let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
        let under = 10i128.checked_pow(u32::try_from(part.len()).ok()?)?;
        let over = format!("{whole}{part}").parse().ok()?;
        Some(Fraction { over, under })
    }

    fn negative(self) -> Option<Fraction> {
        Some(Fraction { over: self.over.checked_neg()?, ..self })
    }

    fn plus(self, other: Fraction) -> Option<Fraction> {
        let (a, b) = (self.over.checked_mul(other.under)?, other.over.checked_mul(self.under)?);
        Some(Fraction { over: a.checked_add(b)?, under: self.under.checked_mul(other.under)? })
    }

    fn times(self, other: Fraction) -> Option<Fraction> {
        Some(Fraction {
            over: self.over.checked_mul(other.over)?,
            under: self.under.checked_mul(other.under)?,
        })
    }
}

impl<'a> Checker<'a> {
    pub(super) fn declarations(&mut self, chosen: &Chosen<'a>, run: RunSizes) {
        let mut declared: BTreeMap<&str, Span> = BTreeMap::new();
        for statement in &chosen.model.body.statements {
            let (bindings, is_size) = match statement {
                Stmt::Sizes(b, _) => (b, true),
                Stmt::Consts(b, _) => (b, false),
                _ => continue,
            };
            for binding in bindings {
                if let Some(first) = declared.insert(&binding.name.name, binding.name.span) {
                    self.duplicate(&binding.name, first);
                    continue;
                }
                let given = chosen.overrides.iter().rev().find(|(key, _)| key.name == binding.name.name);
                match (is_size, given) {
                    (true, None) => self.size(binding, run),
                    (true, Some((_, value))) => self.size_override(binding, value),
                    (false, None) => self.constant(binding),
                    (false, Some((_, value))) => self.constant_override(binding, value),
                }
            }
        }
        for (key, _) in &chosen.overrides {
            if !declared.contains_key(key.name.as_str()) {
                let title = format!("`{}` has no size or constant of this name: `{}`", chosen.name, key.name);
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_KEY, title).at(key.span, "not declared in the model");
                if let Some(near) = nearest(&key.name, declared.keys().copied()) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                }
                self.report(diagnostic);
            }
        }
    }

    pub(super) fn size(&mut self, binding: &ast::Binding, run: RunSizes) {
        let span = binding.name.span;
        let name = binding.name.name.clone();
        if is_word(&binding.value, "run") {
            let (value, origin) = match (name.as_str(), run.span) {
                ("batch", spans) => (run.batch, spans.map(|s| s.0)),
                ("seq", spans) => (run.seq, spans.map(|s| s.1)),
                (_, None) => (super::PLACEHOLDER_SEQ, None),
                (_, Some(_)) => {
                    self.report(
                        Diagnostic::error(
                            codes::MISSING_KEY,
                            format!("the run does not give the size `{name}`"),
                        )
                        .at(span, "declared `= run`")
                        .help(format!("set it where the model is used: `with {{ {name} = … }}`")),
                    );
                    (1, None)
                }
            };
            let origin = origin.unwrap_or(Span::NONE);
            self.sizes.push(Size { name, value, by_run: true, origin, span });
            return;
        }
        let value = self.size_value(&Scope::default(), &binding.value).unwrap_or(1);
        self.sizes.push(Size { name, value, by_run: false, origin: binding.value.span, span });
    }

    pub(super) fn size_override(&mut self, binding: &ast::Binding, value: &ast::Value) {
        let size = match &value.kind {
            ast::ValueKind::Number(n, None) if n.unit == ast::Unit::One => n.integer,
            _ => None,
        };
        if !size.is_some_and(|v| (1..=MAX_SIZE).contains(&v)) {
            let title = format!("not a size: `{}`", crate::spec::print::value(value));
            self.error(codes::SIZE_VALUE, title, value.span, "expected a whole number from 1");
        }
        self.sizes.push(Size {
            name: binding.name.name.clone(),
            value: size.unwrap_or(1).clamp(1, MAX_SIZE),
            by_run: false,
            origin: value.span,
            span: binding.name.span,
        });
    }

    pub(super) fn constant(&mut self, binding: &ast::Binding) {
        let value = self.constant_value(&mut Scope::default(), &binding.value).unwrap_or(0.0);
        let (name, span) = (binding.name.name.clone(), binding.name.span);
        self.consts.push(Const { name, value, origin: binding.value.span, span });
    }

    pub(super) fn constant_override(&mut self, binding: &ast::Binding, value: &ast::Value) {
        let number = match &value.kind {
            ast::ValueKind::Number(n, None) if n.unit == ast::Unit::One => Some(n.value),
            _ => None,
        };
        if number.is_none() {
            let title = format!("not a number: `{}`", crate::spec::print::value(value));
            self.error(codes::VALUE_TYPE, title, value.span, "expected a number");
        }
        let (name, span) = (binding.name.name.clone(), binding.name.span);
        self.consts.push(Const { name, value: number.unwrap_or(0.0), origin: value.span, span });
    }

    /// Exact whole-number arithmetic over sizes.
    pub(super) fn size_value(&mut self, scope: &Scope, e: &AstExpr) -> Option<u64> {
        let value = self.size_arithmetic(scope, e)?;
        if !(1..=i128::from(MAX_SIZE)).contains(&value) {
            let title = format!("a size must be from 1 to 2^48: {value}");
            self.error(codes::SIZE_VALUE, title, e.span, "out of range");
            return None;
        }
        Some(value as u64)
    }

    pub(super) fn size_arithmetic(&mut self, scope: &Scope, e: &AstExpr) -> Option<i128> {
        let wrong = |this: &mut Self, what: &str| {
            let title = format!("not a size: `{}`", crate::spec::print::expr(e));
            this.error(codes::SIZE_VALUE, title, e.span, what);
            None
        };
        match &e.kind {
            AstKind::Number(n) => match n.integer {
                Some(value) if n.unit == ast::Unit::One => Some(i128::from(value)),
                _ => wrong(self, "expected a whole number"),
            },
            AstKind::Paren(inner) => self.size_arithmetic(scope, inner),
            AstKind::Ref(r) if r.axes.is_none() && r.args.is_none() && r.instance.is_none() => {
                match self.axis_named(scope, &r.path.name) {
                    Some(axis) => Some(i128::from(axis.size)),
                    None => {
                        self.unknown_axis(scope, &r.path);
                        None
                    }
                }
            }
            AstKind::Ref(r) if r.axes.is_none() && r.instance.is_none() => match r.path.name.as_str() {
                "floor" | "round_up" => self.rounded(scope, r, e.span),
                _ => wrong(self, "sizes know the functions `floor` and `round_up` only"),
            },
            AstKind::Binary(op, a, b) => {
                let (a, b) = (self.size_arithmetic(scope, a), self.size_arithmetic(scope, b));
                let (a, b) = (a?, b?);
                let value = match op {
                    ast::BinaryOp::Add => a.checked_add(b),
                    ast::BinaryOp::Sub => a.checked_sub(b),
                    ast::BinaryOp::Mul => a.checked_mul(b),
                    ast::BinaryOp::Div if b == 0 => return wrong(self, "division by zero"),
                    ast::BinaryOp::Div if a % b != 0 => {
                        return wrong(self, &format!("{a} is not a multiple of {b}"));
                    }
                    ast::BinaryOp::Div => a.checked_div(b),
                    _ => return wrong(self, "sizes know + - * / only"),
                };
                value.map_or_else(|| wrong(self, "too large"), Some)
            }
            _ => wrong(self, "expected a size or a whole number"),
        }
    }

    /// `floor(x)`, or `round_up(x, multiple)`: x may be a fraction, which is exact.
    fn rounded(&mut self, scope: &Scope, r: &ast::Reference, span: Span) -> Option<i128> {
        let args = r.args.as_deref().unwrap_or_default();
        let n_args = if r.path.name == "floor" { 1 } else { 2 };
        if args.len() != n_args || args.iter().any(|a| a.name.is_some()) {
            let form = "expected `floor(x)` or `round_up(x, multiple)`";
            self.error(codes::ARGUMENTS, format!("`{}` takes {n_args} numbers", r.path.name), span, form);
            return None;
        }
        let multiple = match args.get(1) {
            Some(arg) => self.size_value(scope, &arg.value).map(i128::from)?,
            None => 1,
        };
        let x = self.fraction(scope, &args[0].value)?;
        if r.path.name == "floor" {
            return Some(x.over.div_euclid(x.under));
        }
        let below = x.under.checked_mul(multiple);
        let Some(up) = below.and_then(|below| (-(-x.over).div_euclid(below)).checked_mul(multiple)) else {
            self.error(codes::SIZE_VALUE, "too large", span, "");
            return None;
        };
        Some(up)
    }

    /// Exact arithmetic over sizes and decimal numbers.
    fn fraction(&mut self, scope: &Scope, e: &AstExpr) -> Option<Fraction> {
        let wrong = |this: &mut Self, what: &str| {
            let title = format!("not a size: `{}`", crate::spec::print::expr(e));
            this.error(codes::SIZE_VALUE, title, e.span, what);
            None
        };
        match &e.kind {
            AstKind::Number(n) => match Fraction::decimal(&n.text) {
                Some(x) if n.unit == ast::Unit::One => Some(x),
                _ => wrong(self, "expected a plain number"),
            },
            AstKind::Paren(inner) => self.fraction(scope, inner),
            AstKind::Binary(op, a, b) => {
                let (a, b) = (self.fraction(scope, a), self.fraction(scope, b));
                let (a, b) = (a?, b?);
                let value = match op {
                    ast::BinaryOp::Add => a.plus(b),
                    ast::BinaryOp::Sub => b.negative().and_then(|b| a.plus(b)),
                    ast::BinaryOp::Mul => a.times(b),
                    ast::BinaryOp::Div if b.over <= 0 => return wrong(self, "divides by no positive number"),
                    ast::BinaryOp::Div => a.times(Fraction { over: b.under, under: b.over }),
                    _ => return wrong(self, "sizes know + - * / only"),
                };
                value.map_or_else(|| wrong(self, "too large"), Some)
            }
            _ => Some(Fraction { over: self.size_arithmetic(scope, e)?, under: 1 }),
        }
    }

    // ---- names of axes

    /// The axis a name stands for in a body.
    pub(super) fn axis_named(&self, scope: &Scope, name: &str) -> Option<Axis> {
        if let Some(axis) = scope.axes.get(name) {
            return Some(axis.clone());
        }
        let size = self.sizes.iter().find(|s| s.name == name)?;
        Some(Axis { name: name.to_string(), size: size.value })
    }

    /// As [`Checker::axis_named`], reporting an unknown name.
    pub(super) fn axis(&mut self, scope: &Scope, name: &Ident) -> Option<Axis> {
        let axis = self.axis_named(scope, &name.name);
        if axis.is_none() {
            self.unknown_axis(scope, name);
        }
        axis
    }

    pub(super) fn unknown_axis(&mut self, scope: &Scope, name: &Ident) {
        let mut diagnostic = Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown axis: `{}`", name.name))
            .at(name.span, "neither a size of the model nor an axis of this block");
        let known = scope.axes.keys().map(String::as_str).chain(self.sizes.iter().map(|s| s.name.as_str()));
        if let Some(near) = nearest(&name.name, known) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        } else {
            diagnostic = diagnostic.help(format!("declare it in the model: `size {} = …`", name.name));
        }
        self.report(diagnostic);
    }

    /// A list of axes without repetition.
    pub(super) fn axes(&mut self, scope: &Scope, names: &[Ident]) -> Option<Vec<Axis>> {
        let mut axes: Vec<Axis> = vec![];
        let mut good = true;
        for name in names {
            let Some(axis) = self.axis(scope, name) else {
                good = false;
                continue;
            };
            if axes.iter().any(|a| a.name == axis.name) {
                let title = format!("the axis `{}` appears twice", axis.name);
                self.report(
                    Diagnostic::error(codes::AXIS_TWICE, title)
                        .at(name.span, "again")
                        .help("declare a second size with another name, or rename one use: `as [seq: pos]`"),
                );
                good = false;
                continue;
            }
            axes.push(axis);
        }
        good.then_some(axes)
    }

    /// Axes in brackets where `..` may not stand.
    pub(super) fn plain_dims(&mut self, scope: &Scope, dims: &Dims) -> Option<Vec<Axis>> {
        let mut names = vec![];
        for dim in &dims.dims {
            match dim {
                Dim::Axis(name) => names.push(name.clone()),
                Dim::Leading(span) => {
                    self.error(codes::PLACE, "`..` only stands in the head of a block", *span, "not here");
                    return None;
                }
            }
        }
        self.axes(scope, &names)
    }

    pub(super) fn check_numel(&mut self, axes: &[Axis], span: Span) -> bool {
        let mut count = 1u64;
        for axis in axes {
            count = match count.checked_mul(axis.size) {
                Some(n) if n <= MAX_NUMEL => n,
                _ => {
                    let title = format!("the tensor has more than 2^62 elements: {}", show_axes(axes));
                    self.error(codes::NUMEL, title, span, "this tensor");
                    return false;
                }
            };
        }
        true
    }
}
