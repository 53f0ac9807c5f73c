//! Types of expressions.
//!
//! A constant is a scalar that fits beside integers (if whole) and reals; constant arithmetic is folded here. Operands of
//! element-wise forms broadcast by name; their union of axes must be the axes of one of them, or be annotated.

use super::model::{Checker, MAX_TOTAL_DEPTH, show_axes};
use super::scope::{Binding, Scope};
use crate::spec::ast::{self, Expr as AstExpr, ExprKind as AstKind, Reference};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::source::Span;

/// A constant scalar.
pub fn constant(value: f64, span: Span) -> Expr {
    Expr { kind: ExprKind::Const(value), ty: Type::scalar(Elem::Real), span }
}

/// The value of a constant expression.
pub fn as_constant(e: &Expr) -> Option<f64> {
    if let ExprKind::Const(value) = e.kind { Some(value) } else { None }
}

impl Checker<'_> {
    /// Checks an expression; `None` after an error. `wanted` are the axes of an annotated result, which make a union of
    /// axes legal.
    pub(super) fn expr(&mut self, scope: &mut Scope, e: &AstExpr, wanted: Option<&[Axis]>) -> Option<Expr> {
        if !self.count_node(e.span) {
            return None;
        }
        if self.expr_depth >= MAX_TOTAL_DEPTH {
            let title = format!("expressions and blocks are nested deeper than the limit: {MAX_TOTAL_DEPTH}");
            self.error(codes::NESTING, title, e.span, "reached here");
            return None;
        }
        self.expr_depth += 1;
        let checked = self.expr_form(scope, e, wanted);
        self.expr_depth -= 1;
        checked
    }

    fn expr_form(&mut self, scope: &mut Scope, e: &AstExpr, wanted: Option<&[Axis]>) -> Option<Expr> {
        match &e.kind {
            AstKind::Number(n) if n.unit == ast::Unit::One => Some(constant(n.value, e.span)),
            AstKind::Number(n) => {
                let title = format!("a unit has no meaning in a model: `{}`", n.text);
                self.error(codes::NUMBER, title, n.span, "expected a plain number");
                None
            }
            AstKind::Text(_) => {
                self.error(codes::KIND, "a string is not a tensor", e.span, "");
                None
            }
            AstKind::List(_) => {
                self.report(
                    Diagnostic::error(codes::KIND, "a list is not a tensor")
                        .at(e.span, "lists stand only for constants per iteration")
                        .help("`repeat[layers](Layer, x, window = [4096, none])` gives one constant to each iteration"),
                );
                None
            }
            AstKind::Paren(inner) => {
                let mut inner = self.expr(scope, inner, wanted)?;
                inner.span = e.span;
                Some(inner)
            }
            AstKind::Ref(r) => self.reference(scope, r, e.span, wanted),
            AstKind::Unary(op, inner) => {
                let inner = self.expr(scope, inner, wanted)?;
                self.unary_operator(*op, inner, e.span)
            }
            AstKind::Binary(op, a, b) => {
                let (a, b) = (self.expr(scope, a, wanted), self.expr(scope, b, wanted));
                self.binary_operator(*op, a?, b?, e.span, wanted)
            }
            AstKind::Rename(inner, pairs) => {
                let inner = self.expr(scope, inner, None)?;
                self.rename(scope, inner, pairs, e.span)
            }
        }
    }

    /// An expression that must be a constant.
    pub(super) fn constant_value(&mut self, scope: &mut Scope, e: &AstExpr) -> Option<f64> {
        let checked = self.expr(scope, e, None)?;
        let value = as_constant(&checked);
        if value.is_none() {
            let title = format!("not a constant: `{}`", crate::spec::print::expr(e));
            self.error(codes::ARGUMENTS, title, e.span, "must be known when the model is built");
        }
        value
    }

    // ---- names

    fn reference(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        let name = r.path.name.as_str();
        match (&r.axes, &r.instance, &r.args) {
            (None, None, None) => self.name(scope, r, span),
            (Some(axes), None, None) if name == "index" => self.index(scope, axes, span),
            (_, _, None) if scope.names.contains_key(name) => {
                self.report(
                    Diagnostic::error(codes::KIND, format!("`{name}` is a value, it takes no brackets"))
                        .at(span, "")
                        .help("`gather[axis](table, ids)` looks elements up by position"),
                );
                None
            }
            (_, _, None) => {
                let title = format!("`{name}` is not a value");
                self.report(
                    Diagnostic::error(codes::KIND, title)
                        .at(span, "a call needs its arguments in parentheses"),
                );
                None
            }
            (_, _, Some(_)) if name == "repeat" => self.repeat(scope, r, span),
            (_, _, Some(args)) => match self.blocks.get(name).copied() {
                Some(block) => self.call(scope, r, block, args, span),
                None => self.builtin(scope, r, args, span, wanted),
            },
        }
    }

    fn name(&mut self, scope: &Scope, r: &Reference, span: Span) -> Option<Expr> {
        let name = r.path.name.as_str();
        if let Some((binding, _)) = scope.names.get(name) {
            return match binding {
                Binding::Value(id, ty) => Some(Expr { kind: ExprKind::Value(*id), ty: ty.clone(), span }),
                Binding::Param(id, ty) => Some(Expr { kind: ExprKind::Param(*id), ty: ty.clone(), span }),
                Binding::Const(value) => Some(constant(*value, span)),
                Binding::Routing(..) => {
                    let title = format!("`{name}` is a routing, not a tensor");
                    let uses = "`dispatch`, `combine`, `load_balance` and `dot[…](…, by = …)` take one";
                    self.error(codes::KIND, title, span, uses);
                    None
                }
                Binding::Poison => None,
            };
        }
        if let Some(axis) = self.axis_named(scope, name) {
            return Some(constant(axis.size as f64, span));
        }
        if let Some(c) = self.consts.iter().find(|c| c.name == name) {
            return Some(constant(c.value, span));
        }
        if name == "inf" {
            return Some(constant(f64::INFINITY, span));
        }
        if self.blocks.contains_key(name) {
            let title = format!("`{name}` is a block, not a value");
            self.report(
                Diagnostic::error(codes::KIND, title).at(span, "").help(format!("call it: `{name}(x)`")),
            );
            return None;
        }
        self.unknown_name(scope, name, span);
        None
    }

    fn unknown_name(&mut self, scope: &Scope, name: &str, span: Span) {
        let mut diagnostic = Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown name: `{name}`"))
            .at(span, "not defined above");
        let known = scope
            .names
            .keys()
            .map(String::as_str)
            .chain(scope.axes.keys().map(String::as_str))
            .chain(self.sizes.iter().map(|s| s.name.as_str()))
            .chain(self.consts.iter().map(|c| c.name.as_str()));
        if !scope.path.is_empty() && self.model_values.contains(name) {
            diagnostic = diagnostic
                .meaning("blocks see sizes and constants of the model, but not its values")
                .help(format!("make `{name}` an argument of the block"));
        } else if let Some(near) = nearest(name, known) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        self.report(diagnostic);
    }

    fn index(&mut self, scope: &Scope, axes: &[AstExpr], span: Span) -> Option<Expr> {
        let axis = self.one_axis(scope, axes, span, "index")?;
        Some(Expr { kind: ExprKind::Index, ty: Type { elem: Elem::Int, axes: vec![axis] }, span })
    }

    /// The axes named in the brackets of a call.
    pub(super) fn axis_arguments(&mut self, scope: &Scope, axes: &[AstExpr]) -> Option<Vec<Axis>> {
        let mut names = vec![];
        for e in axes {
            match &e.kind {
                AstKind::Ref(r) if r.axes.is_none() && r.args.is_none() && r.instance.is_none() => {
                    names.push(r.path.clone());
                }
                _ => {
                    self.error(codes::KIND, "not an axis", e.span, "expected the name of an axis");
                    return None;
                }
            }
        }
        self.axes(scope, &names)
    }

    /// The single axis in the brackets of a call.
    pub(super) fn one_axis(
        &mut self,
        scope: &Scope,
        axes: &[AstExpr],
        span: Span,
        what: &str,
    ) -> Option<Axis> {
        let axes = self.axis_arguments(scope, axes)?;
        if axes.len() != 1 {
            let title = format!("`{what}` takes one axis, found {}", axes.len());
            self.error(codes::ARGUMENTS, title, span, format!("expected `{what}[axis]`"));
            return None;
        }
        axes.into_iter().next()
    }

    // ---- operators

    fn unary_operator(&mut self, op: ast::UnaryOp, e: Expr, span: Span) -> Option<Expr> {
        match op {
            ast::UnaryOp::Neg => match as_constant(&e) {
                Some(value) => Some(Expr { kind: ExprKind::Const(-value), ..e }.at(span)),
                None if e.ty.elem == Elem::Bool => self.wrong_elem(&e, "a number"),
                None => Some(unary(UnaryOp::Neg, e, span)),
            },
            ast::UnaryOp::Not if e.ty.elem == Elem::Bool => Some(unary(UnaryOp::Not, e, span)),
            ast::UnaryOp::Not => self.wrong_elem(&e, "a condition"),
        }
    }

    pub(super) fn wrong_elem(&mut self, e: &Expr, expected: &str) -> Option<Expr> {
        let title = format!("expected {expected}, found {}", elem_name(e.ty.elem));
        self.error(codes::DTYPE, title, e.span, format!("this is {}", elem_name(e.ty.elem)));
        None
    }

    fn binary_operator(
        &mut self,
        op: ast::BinaryOp,
        a: Expr,
        b: Expr,
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        use ast::BinaryOp as Op;
        match op {
            Op::Add => self.arithmetic(BinaryOp::Add, a, b, span, wanted),
            Op::Sub => self.arithmetic(BinaryOp::Sub, a, b, span, wanted),
            Op::Mul => self.arithmetic(BinaryOp::Mul, a, b, span, wanted),
            Op::Div => self.arithmetic(BinaryOp::Div, a, b, span, wanted),
            Op::And => self.logic(BinaryOp::And, a, b, span, wanted),
            Op::Or => self.logic(BinaryOp::Or, a, b, span, wanted),
            Op::Lt => self.comparison(CompareOp::Lt, a, b, span, wanted),
            Op::Le => self.comparison(CompareOp::Le, a, b, span, wanted),
            Op::Gt => self.comparison(CompareOp::Gt, a, b, span, wanted),
            Op::Ge => self.comparison(CompareOp::Ge, a, b, span, wanted),
            Op::Eq => self.comparison(CompareOp::Eq, a, b, span, wanted),
            Op::Ne => self.comparison(CompareOp::Ne, a, b, span, wanted),
        }
    }

    /// Arithmetic and `max`, `min` of two numbers.
    pub(super) fn arithmetic(
        &mut self,
        op: BinaryOp,
        a: Expr,
        b: Expr,
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        if let (Some(x), Some(y)) = (as_constant(&a), as_constant(&b)) {
            return self.fold(op, x, y, span);
        }
        let (a, b) = self.same_number(a, b)?;
        let axes = self.broadcast(&[&a, &b], span, wanted)?;
        let ty = Type { elem: a.ty.elem, axes };
        Some(Expr { kind: ExprKind::Binary(op, Box::new(a), Box::new(b)), ty, span })
    }

    fn fold(&mut self, op: BinaryOp, x: f64, y: f64, span: Span) -> Option<Expr> {
        let value = match op {
            BinaryOp::Add => x + y,
            BinaryOp::Sub => x - y,
            BinaryOp::Mul => x * y,
            BinaryOp::Div => x / y,
            BinaryOp::Max => x.max(y),
            BinaryOp::Min => x.min(y),
            BinaryOp::And | BinaryOp::Or => f64::NAN,
        };
        self.folded(value, span)
    }

    /// A folded constant, unless it is not a number.
    pub(super) fn folded(&mut self, value: f64, span: Span) -> Option<Expr> {
        if value.is_nan() {
            self.error(codes::NUMBER, "the constant is not a number", span, "this gives NaN");
            return None;
        }
        Some(constant(value, span))
    }

    fn logic(&mut self, op: BinaryOp, a: Expr, b: Expr, span: Span, wanted: Option<&[Axis]>) -> Option<Expr> {
        for e in [&a, &b] {
            if e.ty.elem != Elem::Bool {
                return self.wrong_elem(e, "a condition");
            }
        }
        let axes = self.broadcast(&[&a, &b], span, wanted)?;
        let ty = Type { elem: Elem::Bool, axes };
        Some(Expr { kind: ExprKind::Binary(op, Box::new(a), Box::new(b)), ty, span })
    }

    fn comparison(
        &mut self,
        op: CompareOp,
        a: Expr,
        b: Expr,
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        let (a, b) = self.same_number(a, b)?;
        let axes = self.broadcast(&[&a, &b], span, wanted)?;
        let ty = Type { elem: Elem::Bool, axes };
        Some(Expr { kind: ExprKind::Compare(op, Box::new(a), Box::new(b)), ty, span })
    }

    /// Brings two numbers to one type of element: whole constants become integers beside integers, integers become reals
    /// beside reals.
    pub(super) fn same_number(&mut self, a: Expr, b: Expr) -> Option<(Expr, Expr)> {
        for e in [&a, &b] {
            if e.ty.elem == Elem::Bool {
                self.wrong_elem(e, "a number");
                return None;
            }
        }
        let whole = |e: &Expr| as_constant(e).is_some_and(|v| v.fract() == 0.0 && v.abs() < 2f64.powi(31));
        let integer = |mut e: Expr| {
            e.ty.elem = Elem::Int;
            e
        };
        Some(match (a.ty.elem, b.ty.elem) {
            (Elem::Int, Elem::Real) if whole(&b) => (a, integer(b)),
            (Elem::Real, Elem::Int) if whole(&a) => (integer(a), b),
            (Elem::Int, Elem::Real) => (real(a), b),
            (Elem::Real, Elem::Int) => (a, real(b)),
            _ => (a, b),
        })
    }

    /// A number as a real.
    pub(super) fn real_of(&mut self, e: Expr) -> Option<Expr> {
        match e.ty.elem {
            Elem::Real => Some(e),
            Elem::Int => Some(real(e)),
            Elem::Bool => self.wrong_elem(&e, "a number"),
        }
    }

    /// Axes of an element-wise result.
    pub(super) fn broadcast(
        &mut self,
        operands: &[&Expr],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Vec<Axis>> {
        let mut union: Vec<(Axis, Span)> = vec![];
        for operand in operands {
            for axis in &operand.ty.axes {
                match union.iter().find(|(a, _)| a.name == axis.name) {
                    None => union.push((axis.clone(), operand.span)),
                    Some((first, at)) if first.size != axis.size => {
                        let (size, at) = (first.size, *at);
                        self.size_mismatch(axis, operand.span, size, at, span);
                        return None;
                    }
                    Some(_) => {}
                }
            }
        }
        let axes: Vec<Axis> = union.into_iter().map(|(a, _)| a).collect();
        let contained = operands.iter().any(|o| o.ty.axes.len() == axes.len());
        let annotated = wanted.is_some_and(|w| axes.iter().all(|a| w.iter().any(|b| b.name == a.name)));
        if !contained && !annotated {
            self.union_error(operands, &axes, span);
            return None;
        }
        if !self.check_numel(&axes, span) {
            return None;
        }
        Some(axes)
    }

    pub(super) fn size_mismatch(&mut self, axis: &Axis, at: Span, other: u64, other_at: Span, span: Span) {
        let title = format!("the axis `{}` has two sizes: {} and {}", axis.name, other, axis.size);
        let mut diagnostic = Diagnostic::error(codes::SIZE_MISMATCH, title)
            .at(at, format!("{} = {} here", axis.name, axis.size));
        if other_at != at {
            diagnostic = diagnostic.and(other_at, format!("{} = {other} here", axis.name));
        } else if span != at {
            diagnostic = diagnostic.and(span, "in this expression");
        }
        self.report(diagnostic);
    }

    pub(super) fn union_error(&mut self, operands: &[&Expr], union: &[Axis], span: Span) {
        let tensors: Vec<&&Expr> = operands.iter().filter(|o| !o.ty.axes.is_empty()).collect();
        let lists: Vec<String> = tensors.iter().map(|o| show_axes(&o.ty.axes)).collect();
        let title = format!("the axes differ and neither operand has all of them: {}", lists.join(" and "));
        let mut diagnostic =
            Diagnostic::error(codes::UNION, title).at(span, "the result would have all of them");
        for (operand, list) in tensors.iter().zip(&lists) {
            if operand.span != span {
                diagnostic = diagnostic.and(operand.span, list.clone());
            }
        }
        let names: Vec<&str> = union.iter().map(|a| a.name.as_str()).collect();
        self.report(diagnostic.help(format!(
            "if the union is meant, annotate the result: `name[{}] = …`; to sum over an axis, use `dot[axis](…)`",
            names.join(", ")
        )));
    }

    fn rename(
        &mut self,
        scope: &mut Scope,
        e: Expr,
        pairs: &[(ast::Ident, ast::Ident)],
        span: Span,
    ) -> Option<Expr> {
        let mut renamed = vec![];
        let mut axes = e.ty.axes.clone();
        for (from, to) in pairs {
            let from_name = self.axis_named(scope, &from.name).map_or(from.name.clone(), |a| a.name);
            let Some(position) = e.ty.axes.iter().position(|a| a.name == from_name) else {
                self.axis_not_in(&from.name, from.span, &e);
                return None;
            };
            let size = axes[position].size;
            let new = match self.axis_named(scope, &to.name) {
                Some(known) if known.size != size => {
                    let title = format!("the axis `{}` has two sizes: {} and {size}", to.name, known.size);
                    self.error(
                        codes::SIZE_MISMATCH,
                        title,
                        to.span,
                        format!("{} = {} here", to.name, known.size),
                    );
                    return None;
                }
                Some(known) => known.name,
                None => to.name.clone(),
            };
            axes[position].name = new.clone();
            renamed.push((from_name, new, to.span, size));
        }
        for (i, axis) in axes.iter().enumerate() {
            if axes[..i].iter().any(|a| a.name == axis.name) {
                let at = renamed.iter().find(|r| r.1 == axis.name).map_or(span, |r| r.2);
                self.error(
                    codes::AXIS_TWICE,
                    format!("the axis `{}` appears twice", axis.name),
                    at,
                    "already an axis of this tensor",
                );
                return None;
            }
        }
        for (_, new, _, size) in &renamed {
            if self.axis_named(scope, new).is_none() {
                scope.axes.insert(new.clone(), Axis { name: new.clone(), size: *size });
            }
        }
        let pairs = renamed.into_iter().map(|(from, to, ..)| (from, to)).collect();
        let ty = Type { elem: e.ty.elem, axes };
        Some(Expr { kind: ExprKind::Rename(Box::new(e), pairs), ty, span })
    }

    pub(super) fn axis_not_in(&mut self, name: &str, at: Span, operand: &Expr) {
        let title = format!("the operand has no axis `{name}`");
        let mut diagnostic = Diagnostic::error(codes::AXIS_NOT_IN_OPERAND, title)
            .at(at, "")
            .and(operand.span, format!("this has {}", show_axes(&operand.ty.axes)));
        if let Some(near) = nearest(name, operand.ty.axes.iter().map(|a| a.name.as_str())) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        self.report(diagnostic);
    }
}

impl Expr {
    /// The same expression at another place.
    fn at(mut self, span: Span) -> Expr {
        self.span = span;
        self
    }
}

/// Int to Real; a constant just changes its type.
fn real(mut e: Expr) -> Expr {
    if as_constant(&e).is_some() {
        e.ty.elem = Elem::Real;
        return e;
    }
    let (ty, span) = (Type { elem: Elem::Real, axes: e.ty.axes.clone() }, e.span);
    Expr { kind: ExprKind::ToReal(Box::new(e)), ty, span }
}

/// A function of one operand that keeps its type.
pub fn unary(op: UnaryOp, e: Expr, span: Span) -> Expr {
    let ty = e.ty.clone();
    Expr { kind: ExprKind::Unary(op, Box::new(e)), ty, span }
}

/// A type of element in words.
pub fn elem_name(elem: Elem) -> &'static str {
    match elem {
        Elem::Real => "a real number",
        Elem::Int => "an integer",
        Elem::Bool => "a condition",
    }
}
