//! The functions of the language.

use super::expr::{as_constant, unary};
use super::model::{Checker, show_axes};
use super::scope::Scope;
use crate::spec::ast::{Arg, Expr as AstExpr, ExprKind as AstKind, Reference};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::source::Span;

/// Every function, for suggestions.
pub const FUNCTIONS: &[&str] = &[
    "repeat",
    "dot",
    "gather",
    "slice",
    "concat",
    "where",
    "softmax",
    "sum",
    "mean",
    "max",
    "min",
    "index",
    "rope",
    "cross_entropy",
    "rms_norm",
    "layer_norm",
    "std.Attend",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "relu",
    "sin",
    "cos",
    "abs",
    "erf",
    "floor",
    "int",
    "dropout",
    "route",
    "dispatch",
    "combine",
    "load_balance",
    "z_loss",
];

/// Functions of the language that can't be built yet.
const NOT_AVAILABLE: &[&str] = &["all_gather", "all_reduce"];

impl Checker<'_> {
    /// A call of anything that is not a block.
    pub(super) fn builtin(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        let name = r.path.name.as_str();
        if let Some(instance) = r.instance.as_ref().filter(|_| name != "std.Attend") {
            let title = format!("`{name}` is a function, it has no instance name");
            self.error(codes::ARGUMENTS, title, instance.span, "only blocks have one");
            return None;
        }
        if let Some(op) = elementwise(name) {
            self.no_axes(r)?;
            let e = self.single(scope, r, args, span, wanted)?;
            return self.function(op, e, span);
        }
        match name {
            "gelu" => self.gelu(scope, r, args, span, wanted),
            "int" => self.whole_part(scope, r, args, span, wanted),
            "max" | "min" if r.axes.is_none() => {
                let slots = self.bind(r, args, span, &["x", "y"], 2)?;
                let (x, y) = (self.expr(scope, slots[0]?, wanted), self.expr(scope, slots[1]?, wanted));
                let op = if name == "max" { BinaryOp::Max } else { BinaryOp::Min };
                self.arithmetic(op, x?, y?, span, wanted)
            }
            "sum" => self.reduce(scope, ReduceOp::Sum, r, args, span),
            "mean" => self.reduce(scope, ReduceOp::Mean, r, args, span),
            "max" => self.reduce(scope, ReduceOp::Max, r, args, span),
            "min" => self.reduce(scope, ReduceOp::Min, r, args, span),
            "softmax" => {
                let axis = self.bracket_axis(scope, r, span)?;
                let x = self.single(scope, r, args, span, None)?;
                let x = self.real_of(x)?;
                self.require_axis(&axis, r, &x)?;
                let ty = x.ty.clone();
                Some(Expr { kind: ExprKind::Softmax(axis, Box::new(x)), ty, span })
            }
            "dropout" => self.dropout(scope, r, args, span, wanted),
            "where" => self.where_call(scope, r, args, span, wanted),
            "dot" => self.dot(scope, r, args, span),
            "gather" => self.gather(scope, r, args, span),
            "slice" => self.slice(scope, r, args, span),
            "concat" => self.concat(scope, r, args, span, wanted),
            "rope" => self.rope(scope, r, args, span),
            "cross_entropy" => self.cross_entropy(scope, r, args, span),
            "rms_norm" => self.rms_norm(scope, r, args, span),
            "layer_norm" => self.layer_norm(scope, r, args, span),
            "std.Attend" => self.attend(scope, r, args, span),
            "route" => {
                let title = "`route` stands alone in a statement";
                self.error(codes::PLACE, title, r.path.span, "name it: `r = route[…](…)`");
                None
            }
            "dispatch" => self.dispatch(scope, r, args, span),
            "combine" => self.combine(scope, r, args, span),
            "load_balance" => self.load_balance(scope, r, args, span),
            "z_loss" => self.z_loss(scope, r, args, span),
            "weighted_mean" => {
                let title = "`weighted_mean` stands only behind `loss`";
                self.error(codes::PLACE, title, r.path.span, "not here");
                None
            }
            _ if NOT_AVAILABLE.contains(&name) => {
                self.report(super::not_available(&format!("`{name}`"), r.path.span));
                None
            }
            _ => self.unknown_function(r),
        }
    }

    pub(super) fn unknown_function(&mut self, r: &Reference) -> Option<Expr> {
        let name = r.path.name.as_str();
        let mut diagnostic =
            Diagnostic::error(codes::UNKNOWN_NAME, format!("no block or function of this name: `{name}`"))
                .at(r.path.span, "not defined");
        let known = self.blocks.keys().map(String::as_str).chain(FUNCTIONS.iter().copied());
        if let Some(near) = nearest(name, known) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        self.report(diagnostic);
        None
    }

    // ---- arguments

    /// Puts arguments into slots: named ones by name, the others in order into what is left. The first `required` must
    /// be given.
    pub(super) fn bind<'e>(
        &mut self,
        r: &Reference,
        args: &'e [Arg],
        span: Span,
        names: &[&str],
        required: usize,
    ) -> Option<Vec<Option<&'e AstExpr>>> {
        let mut slots: Vec<Option<&AstExpr>> = vec![None; names.len()];
        let what = &r.path.name;
        let mut good = true;
        for arg in args {
            let Some(name) = &arg.name else { continue };
            match names.iter().position(|n| *n == name.name) {
                Some(slot) if slots[slot].is_none() => slots[slot] = Some(&arg.value),
                Some(_) => {
                    self.error(
                        codes::ARGUMENTS,
                        format!("`{}` is given twice", name.name),
                        name.span,
                        "again",
                    );
                    good = false;
                }
                None => {
                    let title = format!("`{what}` has no argument `{}`", name.name);
                    let mut diagnostic =
                        Diagnostic::error(codes::ARGUMENTS, title).at(name.span, "unknown argument");
                    if let Some(near) = nearest(&name.name, names.iter().copied()) {
                        diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                    } else {
                        diagnostic = diagnostic.help(format!("it takes {}", names.join(", ")));
                    }
                    self.report(diagnostic);
                    good = false;
                }
            }
        }
        for arg in args.iter().filter(|a| a.name.is_none()) {
            match slots.iter().position(Option::is_none) {
                Some(slot) => slots[slot] = Some(&arg.value),
                None => {
                    let title = format!("`{what}` takes at most {} arguments", names.len());
                    self.error(codes::ARGUMENTS, title, arg.value.span, "one too many");
                    return None;
                }
            }
        }
        if let Some(missing) = (0..required).find(|&i| slots[i].is_none()) {
            let title = format!("`{what}` lacks its argument `{}`", names[missing]);
            self.error(codes::ARGUMENTS, title, span, format!("it takes {}", names.join(", ")));
            return None;
        }
        good.then_some(slots)
    }

    pub(super) fn no_axes(&mut self, r: &Reference) -> Option<()> {
        if r.axes.is_some() {
            let title = format!("`{}` works element by element and takes no axes", r.path.name);
            self.error(codes::ARGUMENTS, title, r.path.span, "remove the brackets");
            return None;
        }
        Some(())
    }

    pub(super) fn single(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        let slots = self.bind(r, args, span, &["x"], 1)?;
        self.expr(scope, slots[0]?, wanted)
    }

    pub(super) fn bracket_axes(&mut self, scope: &Scope, r: &Reference, span: Span) -> Option<Vec<Axis>> {
        match &r.axes {
            Some(axes) if !axes.is_empty() => self.axis_arguments(scope, axes),
            _ => {
                let name = &r.path.name;
                let title = format!("`{name}` needs the axes it works over");
                self.error(codes::ARGUMENTS, title, span, format!("expected `{name}[axis](…)`"));
                None
            }
        }
    }

    pub(super) fn bracket_axis(&mut self, scope: &Scope, r: &Reference, span: Span) -> Option<Axis> {
        self.bracket_axes(scope, r, span)?;
        self.one_axis(scope, r.axes.as_deref().unwrap_or_default(), span, &r.path.name)
    }

    /// Reports an axis that the operand lacks or has in another size.
    pub(super) fn require_axis(&mut self, axis: &Axis, r: &Reference, operand: &Expr) -> Option<()> {
        match operand.ty.size_of(&axis.name) {
            Some(size) if size == axis.size => Some(()),
            Some(size) => {
                self.size_mismatch(
                    &Axis { size, ..axis.clone() },
                    operand.span,
                    axis.size,
                    r.path.span,
                    operand.span,
                );
                None
            }
            None => {
                let at = self.bracket_span(r, &axis.name);
                self.axis_not_in(&axis.name, at, operand);
                None
            }
        }
    }

    /// Where an axis is named in the brackets of a call.
    pub(super) fn bracket_span(&self, r: &Reference, axis: &str) -> Span {
        let axes = r.axes.as_deref().unwrap_or_default();
        let named = axes.iter().find(|e| matches!(&e.kind, AstKind::Ref(inner) if inner.path.name == axis));
        named.or(axes.first()).map_or(r.path.span, |e| e.span)
    }

    /// One of a few words.
    pub(super) fn word<'w>(&mut self, e: &AstExpr, words: &[&'w str]) -> Option<&'w str> {
        let found = words.iter().find(|w| super::model::is_word(e, w));
        if found.is_none() {
            let title = format!("unknown choice: `{}`", crate::spec::print::expr(e));
            self.error(codes::ARGUMENTS, title, e.span, format!("expected {}", words.join(" or ")));
        }
        found.copied()
    }

    // ---- element-wise

    /// An element-wise function, folded on constants.
    pub(super) fn function(&mut self, op: UnaryOp, e: Expr, span: Span) -> Option<Expr> {
        if let Some(x) = as_constant(&e) {
            return match fold(op, x) {
                Some(value) => self.folded(value, span),
                None => Some(unary(op, e, span)),
            };
        }
        let keeps_integers = matches!(op, UnaryOp::Abs);
        let e = if keeps_integers && e.ty.elem == Elem::Int { e } else { self.real_of(e)? };
        Some(unary(op, e, span))
    }

    /// `int(x)`, folded on constants.
    pub(super) fn whole_part(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        self.no_axes(r)?;
        let mut e = self.single(scope, r, args, span, wanted)?;
        if let Some(x) = as_constant(&e) {
            e.kind = ExprKind::Const(f64::from(x as i32));
            e.ty.elem = Elem::Int;
        }
        if e.ty.elem == Elem::Int {
            return Some(Expr { span, ..e });
        }
        let e = self.real_of(e)?;
        let ty = Type { elem: Elem::Int, axes: e.ty.axes.clone() };
        Some(Expr { kind: ExprKind::ToInt(Box::new(e)), ty, span })
    }

    pub(super) fn gelu(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        self.no_axes(r)?;
        let slots = self.bind(r, args, span, &["x", "form"], 1)?;
        let form = match slots[1] {
            Some(e) => self.word(e, &["erf", "tanh"])?,
            None => "erf",
        };
        let x = self.expr(scope, slots[0]?, wanted)?;
        self.function(if form == "tanh" { UnaryOp::GeluTanh } else { UnaryOp::GeluErf }, x, span)
    }

    pub(super) fn where_call(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        self.no_axes(r)?;
        let slots = self.bind(r, args, span, &["condition", "x", "y"], 3)?;
        let c = self.expr(scope, slots[0]?, wanted);
        let (x, y) = (self.expr(scope, slots[1]?, wanted), self.expr(scope, slots[2]?, wanted));
        let (c, x, y) = (c?, x?, y?);
        if c.ty.elem != Elem::Bool {
            return self.wrong_elem(&c, "a condition");
        }
        let (x, y) =
            if x.ty.elem == Elem::Bool && y.ty.elem == Elem::Bool { (x, y) } else { self.same_number(x, y)? };
        let axes = self.broadcast(&[&c, &x, &y], span, wanted)?;
        let ty = Type { elem: x.ty.elem, axes };
        Some(Expr { kind: ExprKind::Where(Box::new(c), Box::new(x), Box::new(y)), ty, span })
    }

    // ---- over axes

    pub(super) fn reduce(
        &mut self,
        scope: &mut Scope,
        op: ReduceOp,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let axes = self.bracket_axes(scope, r, span);
        let x = self.single(scope, r, args, span, None)?;
        let axes = axes?;
        let x = match (op, x.ty.elem) {
            (ReduceOp::Sum | ReduceOp::Max | ReduceOp::Min, Elem::Int) => x,
            _ => self.real_of(x)?,
        };
        for axis in &axes {
            self.require_axis(axis, r, &x)?;
        }
        let rest = x.ty.axes.iter().filter(|a| !axes.iter().any(|b| b.name == a.name)).cloned().collect();
        let ty = Type { elem: x.ty.elem, axes: rest };
        Some(Expr { kind: ExprKind::Reduce(op, axes, Box::new(x)), ty, span })
    }

    pub(super) fn dot(&mut self, scope: &mut Scope, r: &Reference, args: &[Arg], span: Span) -> Option<Expr> {
        let axes = self.bracket_axes(scope, r, span);
        let slots = self.bind(r, args, span, &["x", "y", "by"], 2)?;
        let (x, y) = (self.expr(scope, slots[0]?, None), self.expr(scope, slots[1]?, None));
        let (axes, x, y) = (axes?, x?, y?);
        let (x, y) = (self.real_of(x)?, self.real_of(y)?);
        for axis in &axes {
            self.contracted(axis, r, &x, &y)?;
        }
        if let Some(by) = slots[2] {
            return self.dot_by(scope, by, &axes, (x, y), span);
        }
        let axes_of = |e: &Expr| -> Vec<Axis> {
            e.ty.axes.iter().filter(|a| !axes.iter().any(|b| b.name == a.name)).cloned().collect()
        };
        let mut rest = axes_of(&x);
        for axis in axes_of(&y) {
            match rest.iter().find(|a| a.name == axis.name) {
                None => rest.push(axis),
                Some(same) if same.size == axis.size => {}
                Some(other) => {
                    let size = other.size;
                    self.size_mismatch(&axis, y.span, size, x.span, span);
                    return None;
                }
            }
        }
        if !self.check_numel(&rest, span) {
            return None;
        }
        let ty = Type { elem: Elem::Real, axes: rest };
        Some(Expr { kind: ExprKind::Dot(axes, Box::new(x), Box::new(y)), ty, span })
    }

    /// Checks that both operands of a `dot` have an axis it sums over.
    pub(super) fn contracted(&mut self, axis: &Axis, r: &Reference, x: &Expr, y: &Expr) -> Option<()> {
        let lacking = [x, y].into_iter().find(|e| !e.ty.has(&axis.name));
        let Some(lacking) = lacking else {
            self.require_axis(axis, r, x)?;
            return self.require_axis(axis, r, y);
        };
        let other = if std::ptr::eq(lacking, x) { y } else { x };
        let title = format!("`dot` sums over `{}`, which one operand does not have", axis.name);
        let mut diagnostic = Diagnostic::error(codes::CONTRACTION_MISSING, title)
            .at(self.bracket_span(r, &axis.name), "summed here")
            .and(lacking.span, format!("this has {}", show_axes(&lacking.ty.axes)));
        if other.ty.has(&axis.name) {
            diagnostic = diagnostic.and(other.span, format!("this has {}", show_axes(&other.ty.axes)));
        }
        let alike = lacking.ty.axes.iter().find(|a| a.size == axis.size && !other.ty.has(&a.name));
        if let Some(alike) = alike.filter(|_| other.ty.has(&axis.name)) {
            diagnostic = diagnostic
                .help(format!("if they are the same, rename one: `as [{}: {}]`", alike.name, axis.name));
        }
        self.report(diagnostic);
        None
    }

    pub(super) fn gather(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let axis = self.bracket_axis(scope, r, span);
        let slots = self.bind(r, args, span, &["table", "ids"], 2)?;
        let (table, ids) = (self.expr(scope, slots[0]?, None), self.expr(scope, slots[1]?, None));
        let (axis, table, ids) = (axis?, table?, ids?);
        self.require_axis(&axis, r, &table)?;
        if ids.ty.elem != Elem::Int {
            return self.wrong_elem(&ids, "an integer");
        }
        if let (ExprKind::Index, Some(over)) = (&ids.kind, ids.ty.axes.first())
            && over.size > axis.size
        {
            let title = format!(
                "`index[{}]` counts to {}, beyond the {} entries of `{}`",
                over.name,
                over.size - 1,
                axis.size,
                axis.name
            );
            self.report(
                Diagnostic::error(codes::RANGE, title)
                    .at(ids.span, format!("{} = {}", over.name, over.size))
                    .and(table.span, format!("{} = {} here", axis.name, axis.size))
                    .help(format!("make `{}` at least as large as `{}`", axis.name, over.name)),
            );
            return None;
        }
        if ids.ty.has(&axis.name) {
            let title = format!("ids that look up `{0}` can't have the axis `{0}` themselves", axis.name);
            self.error(codes::AXIS_TWICE, title, ids.span, format!("this has {}", show_axes(&ids.ty.axes)));
            return None;
        }
        let mut axes = ids.ty.axes.clone();
        for a in table.ty.axes.iter().filter(|a| a.name != axis.name) {
            match axes.iter().find(|b| b.name == a.name) {
                None => axes.push(a.clone()),
                Some(b) if b.size == a.size => {}
                Some(b) => {
                    let size = b.size;
                    self.size_mismatch(a, table.span, size, ids.span, span);
                    return None;
                }
            }
        }
        if !self.check_numel(&axes, span) {
            return None;
        }
        let ty = Type { elem: table.ty.elem, axes };
        Some(Expr { kind: ExprKind::Gather { axis, table: Box::new(table), ids: Box::new(ids) }, ty, span })
    }
}

fn elementwise(name: &str) -> Option<UnaryOp> {
    Some(match name {
        "exp" => UnaryOp::Exp,
        "log" => UnaryOp::Log,
        "sqrt" => UnaryOp::Sqrt,
        "rsqrt" => UnaryOp::Rsqrt,
        "tanh" => UnaryOp::Tanh,
        "sigmoid" => UnaryOp::Sigmoid,
        "silu" => UnaryOp::Silu,
        "relu" => UnaryOp::Relu,
        "sin" => UnaryOp::Sin,
        "cos" => UnaryOp::Cos,
        "abs" => UnaryOp::Abs,
        "erf" => UnaryOp::Erf,
        "floor" => UnaryOp::Floor,
        _ => return None,
    })
}

/// The function of a constant; `None` where the standard library has no such function.
fn fold(op: UnaryOp, x: f64) -> Option<f64> {
    Some(match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnaryOp::Silu => x / (1.0 + (-x).exp()),
        UnaryOp::Relu => x.max(0.0),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Floor => x.floor(),
        UnaryOp::GeluErf | UnaryOp::GeluTanh | UnaryOp::Erf | UnaryOp::Not => return None,
    })
}
