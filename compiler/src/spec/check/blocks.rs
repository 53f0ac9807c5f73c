//! Blocks and their calls.
//!
//! A block is checked anew at every use, with its generic axes and constants put in, so every instance is concrete. A
//! block without any use is checked once with stand-in axes, for its errors alone.

use std::collections::BTreeMap;

use super::choose::Chosen;
use super::expr::as_constant;
use super::model::{Checker, MAX_INSTANCE_DEPTH, show_axes};
use super::scope::{Binding, Scope};
use crate::spec::ast::{self, Arg, Dim, Ident, Reference, Statement as Stmt};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

/// What is passed for one argument of a block.
pub(super) enum Actual {
    Expr(Expr),
    /// One constant per iteration.
    Cycled(Vec<f64>, Span),
}

/// An instance with what was passed to it.
pub(super) struct Made {
    pub(super) instance: Instance,
    pub(super) actuals: Vec<Expr>,
    pub(super) cycled: Vec<Cycled>,
    /// Type of the result before it is used.
    pub(super) ty: Type,
}

impl<'a> Checker<'a> {
    /// Checks blocks of the model's own file that nobody calls, for their errors alone. Those of other files are a library.
    pub(super) fn uninstantiated_blocks(&mut self, chosen: &Chosen<'a>) {
        for (name, block) in &chosen.blocks {
            let elsewhere = block.name.span.source != chosen.model.span.source;
            if elsewhere || self.instantiated.contains(name) || self.recursive.contains(name) {
                continue;
            }
            let params = self.params.len();
            let mut scope = Scope { path: name.to_lowercase(), ..Scope::default() };
            for generic in &block.generics {
                scope.axes.insert(generic.name.clone(), Axis { name: generic.name.clone(), size: 8 });
            }
            let mut good = true;
            for formal in &block.formals {
                let binding = self.stand_in(&mut scope, formal);
                good &= !matches!(binding, Binding::Poison);
                self.define(&mut scope, &formal.name, binding);
            }
            if good {
                self.instantiated.insert(name.clone());
                self.block_body(&mut scope, block, &[]);
            }
            self.params.truncate(params);
        }
    }

    pub(super) fn stand_in(&mut self, scope: &mut Scope, formal: &ast::Formal) -> Binding {
        let Some(dims) = &formal.dims else {
            return match &formal.default {
                Some(default) if super::model::is_word(default, "none") => Binding::Const(f64::INFINITY),
                Some(default) => self.constant_value(scope, default).map_or(Binding::Poison, Binding::Const),
                None => Binding::Const(1.0),
            };
        };
        let names: Vec<Ident> = explicit_axes(dims);
        let axes = self.axes(scope, &names);
        let elem = self.elem_type(scope, formal.elem.as_ref());
        match (axes, elem) {
            (Some(axes), Some((elem, _))) => Binding::Value(self.new_value(), Type { elem, axes }),
            _ => Binding::Poison,
        }
    }

    pub(super) fn call(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        block: &'a ast::Block,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let generics = self.generics(scope, r, block, span);
        let mut given: Vec<Option<(Actual, Span)>> = block.formals.iter().map(|_| None).collect();
        let names: Vec<&str> = block.formals.iter().map(|f| f.name.name.as_str()).collect();
        let slots = self.bind(r, args, span, &names, 0);
        let mut good = true;
        for (slot, place) in slots?.into_iter().zip(&mut given) {
            let Some(e) = slot else { continue };
            match self.expr(scope, e, None) {
                Some(checked) => *place = Some((Actual::Expr(checked), e.span)),
                None => good = false,
            }
        }
        if !good {
            return None;
        }
        let name = self.instance_name(scope, r);
        let path = scope.path_of(&name);
        let made = self.instance(r, block, generics?, given, path, span)?;
        let ty = made.ty.clone();
        Some(Expr { kind: ExprKind::Call(Box::new(made.instance), made.actuals), ty, span })
    }

    /// What the generic axes of a block stand for in this use.
    pub(super) fn generics(
        &mut self,
        scope: &Scope,
        r: &Reference,
        block: &ast::Block,
        span: Span,
    ) -> Option<BTreeMap<String, Axis>> {
        let axes = self.axis_arguments(scope, r.axes.as_deref().unwrap_or_default())?;
        if axes.len() != block.generics.len() {
            let wanted: Vec<&str> = block.generics.iter().map(|g| g.name.as_str()).collect();
            let title =
                format!("`{}` is generic over {} axes, found {}", r.path.name, wanted.len(), axes.len());
            let mut diagnostic =
                Diagnostic::error(codes::ARGUMENTS, title).at(span, "").and(block.name.span, "declared here");
            if !wanted.is_empty() {
                diagnostic = diagnostic.help(format!(
                    "write `{}[…](…)`, with an axis for each of {}",
                    r.path.name,
                    wanted.join(", ")
                ));
            }
            self.report(diagnostic);
            return None;
        }
        Some(block.generics.iter().map(|g| g.name.clone()).zip(axes).collect())
    }

    /// The name of an instance in paths, entered into the scope.
    pub(super) fn instance_name(&mut self, scope: &mut Scope, r: &Reference) -> String {
        let last = r.path.name.rsplit('.').next().unwrap_or(&r.path.name);
        let (name, span) = match &r.instance {
            Some(instance) => (instance.name.clone(), instance.span),
            None => (last.to_lowercase(), r.path.span),
        };
        if let Some(first) = scope.instances.get(&name) {
            let title = format!("two instances of the name `{name}`");
            self.report(
                Diagnostic::error(codes::DUPLICATE, title)
                    .at(span, "again")
                    .and(*first, "first used here")
                    .meaning("parameters are addressed by path, so every instance needs a name of its own")
                    .help(format!("give one of them a name: `{last}@{name}2(…)`")),
            );
        } else {
            scope.instances.insert(name.clone(), span);
        }
        name
    }

    /// Checks one use of a block.
    pub(super) fn instance(
        &mut self,
        r: &Reference,
        block: &'a ast::Block,
        generics: BTreeMap<String, Axis>,
        given: Vec<Option<(Actual, Span)>>,
        path: String,
        span: Span,
    ) -> Option<Made> {
        if self.recursive.contains(&r.path.name) {
            return None;
        }
        self.instantiated.insert(r.path.name.clone());
        if self.depth >= MAX_INSTANCE_DEPTH {
            let title = format!("blocks are nested deeper than the limit: {MAX_INSTANCE_DEPTH}");
            self.error(codes::NESTING, title, span, "this use is too deep");
            return None;
        }
        let mut scope = Scope { path: path.clone(), axes: generics, ..Scope::default() };
        let (mut args, mut actuals, mut cycled) = (vec![], vec![], vec![]);
        let mut leading: Vec<Axis> = vec![];
        let mut good = true;
        for (formal, actual) in block.formals.iter().zip(given) {
            let binding = match actual {
                None => self.default_argument(&mut scope, r, formal, span),
                Some((Actual::Cycled(values, at), _)) => {
                    self.cycled_argument(formal, values, at, &mut cycled)
                }
                Some((Actual::Expr(e), _)) => {
                    self.argument(&scope, formal, e, &mut leading, &mut args, &mut actuals)
                }
            };
            match binding {
                Some(binding) => self.define(&mut scope, &formal.name, binding),
                None => good = false,
            }
        }
        if !good {
            return None;
        }
        self.depth += 1;
        let made = self.block_body(&mut scope, block, &leading);
        self.depth -= 1;
        let (body, result, role) = made?;
        let ty = result.ty.clone();
        let name = r.path.name.clone();
        let instance = Instance { block: name, path, args, body, result, role, span: block.name.span };
        Some(Made { instance, actuals, cycled, ty })
    }

    pub(super) fn default_argument(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        f: &ast::Formal,
        span: Span,
    ) -> Option<Binding> {
        let Some(default) = &f.default else {
            let title = format!("`{}` lacks its argument `{}`", r.path.name, f.name.name);
            self.report(
                Diagnostic::error(codes::ARGUMENTS, title)
                    .at(span, "")
                    .and(f.name.span, "declared here, without a default"),
            );
            return None;
        };
        if super::model::is_word(default, "none") {
            return Some(Binding::Const(f64::INFINITY));
        }
        self.constant_value(scope, default).map(Binding::Const)
    }

    pub(super) fn cycled_argument(
        &mut self,
        formal: &ast::Formal,
        values: Vec<f64>,
        span: Span,
        cycled: &mut Vec<Cycled>,
    ) -> Option<Binding> {
        if formal.dims.is_some() {
            let title = format!("`{}` is a tensor, a list gives constants", formal.name.name);
            self.report(
                Diagnostic::error(codes::ARGUMENTS, title).at(span, "").and(formal.span, "declared here"),
            );
            return None;
        }
        if values.iter().all(|v| v.to_bits() == values[0].to_bits()) {
            return Some(Binding::Const(values[0]));
        }
        let value = self.new_value();
        cycled.push(Cycled { value, name: formal.name.name.clone(), values, span });
        Some(Binding::Value(value, Type::scalar(Elem::Real)))
    }

    /// Binds a tensor or constant argument; tensors join the instance's arguments.
    pub(super) fn argument(
        &mut self,
        scope: &Scope,
        formal: &ast::Formal,
        e: Expr,
        leading: &mut Vec<Axis>,
        args: &mut Vec<InstanceArg>,
        actuals: &mut Vec<Expr>,
    ) -> Option<Binding> {
        let wanted = match &formal.dims {
            None if as_constant(&e).is_some() => return as_constant(&e).map(Binding::Const),
            None if e.ty.axes.is_empty() => vec![],
            None => {
                let title =
                    format!("`{}` is a single number, this has {}", formal.name.name, show_axes(&e.ty.axes));
                self.report(
                    Diagnostic::error(codes::ARGUMENTS, title)
                        .at(e.span, "")
                        .and(formal.span, "declared here"),
                );
                return None;
            }
            Some(dims) => self.axes(scope, &explicit_axes(dims))?,
        };
        let (elem, _) = self.elem_type(scope, formal.elem.as_ref())?;
        let e = if elem == Elem::Real { self.real_of(e)? } else { e };
        if e.ty.elem != elem {
            self.wrong_elem(&e, super::expr::elem_name(elem));
            return None;
        }
        for axis in &wanted {
            match e.ty.size_of(&axis.name) {
                Some(size) if size == axis.size => {}
                Some(size) => {
                    self.size_mismatch(
                        &Axis { size, ..axis.clone() },
                        e.span,
                        axis.size,
                        formal.span,
                        e.span,
                    );
                    return None;
                }
                None => {
                    let title = format!("the argument `{}` needs the axis `{}`", formal.name.name, axis.name);
                    self.report(
                        Diagnostic::error(codes::AXIS_NOT_IN_OPERAND, title)
                            .at(e.span, format!("this has {}", show_axes(&e.ty.axes)))
                            .and(formal.span, "declared here"),
                    );
                    return None;
                }
            }
        }
        let rest: Vec<Axis> = e.ty.axes.iter().filter(|a| !wanted.contains(a)).cloned().collect();
        let open = formal.dims.as_ref().is_some_and(|d| d.dims.iter().any(|d| matches!(d, Dim::Leading(_))));
        if let (Some(extra), false) = (rest.first(), open) {
            let title =
                format!("the argument `{}` does not take the axis `{}`", formal.name.name, extra.name);
            self.report(
                Diagnostic::error(codes::OUTPUT_AXIS, title)
                    .at(e.span, format!("this has {}", show_axes(&e.ty.axes)))
                    .and(formal.span, "declared here")
                    .help("declare the argument with `..` to take any leading axes"),
            );
            return None;
        }
        for axis in &rest {
            if !leading.contains(axis) {
                leading.push(axis.clone());
            }
        }
        let ty = Type { elem, axes: rest.into_iter().chain(wanted).collect() };
        let value = self.new_value();
        let (name, span) = (formal.name.name.clone(), formal.name.span);
        args.push(InstanceArg { value, name, ty: ty.clone(), span });
        actuals.push(e);
        Some(Binding::Value(value, ty))
    }

    /// The statements of a block and its value, checked against its declared result.
    pub(super) fn block_body(
        &mut self,
        scope: &mut Scope,
        block: &'a ast::Block,
        leading: &[Axis],
    ) -> Option<(Vec<Statement>, Expr, Option<String>)> {
        let mut wanted: Vec<Axis> = vec![];
        if block.result.dims.iter().any(|d| matches!(d, Dim::Leading(_))) {
            wanted.extend(leading.iter().cloned());
        }
        let explicit = self.axes(scope, &explicit_axes(&block.result));
        wanted.extend(explicit.iter().flatten().cloned());
        let mut body = vec![];
        let mut result = None;
        let n_errors = self.found.len();
        for statement in &block.body.statements {
            if let Some((_, span)) = &result {
                let span: Span = *span;
                self.report(
                    Diagnostic::error(codes::PLACE, "the value of a block comes last")
                        .at(span, "this value")
                        .and(statement.span(), "but this follows")
                        .help("give it a name: `y = …`"),
                );
                break;
            }
            match statement {
                Stmt::Params(p) => self.param_statement(scope, p),
                Stmt::Let(l) => body.extend(self.let_statement(scope, l).map(Statement::Let)),
                Stmt::Aux(b, _) => body.extend(self.aux_statement(scope, b).map(Statement::Aux)),
                Stmt::Yield(y) => result = Some((self.yielded(scope, y, &wanted, block), y.value.span)),
                Stmt::Kernel(k) => self.misplaced(k.span),
                Stmt::Manual(m) => self.manual(m),
                Stmt::Sizes(_, span) | Stmt::Consts(_, span) | Stmt::Loss(_, span) => self.misplaced(*span),
                Stmt::Input(i) => self.misplaced(i.span),
                Stmt::Names(n) => self.misplaced(n.span),
                Stmt::Block(b) => self.misplaced(b.name.span),
                Stmt::Lower(l) => self.misplaced(l.kind.span),
            }
        }
        explicit?;
        match result {
            Some((Some((value, role)), _)) => Some((body, value, role)),
            Some((None, _)) => None,
            None => {
                if self.found.len() == n_errors {
                    self.report(
                        Diagnostic::error(
                            codes::PLACE,
                            format!("the block `{}` has no value", block.name.name),
                        )
                        .at(block.name.span, "ends without an expression")
                        .help("end it with the expression it stands for"),
                    );
                }
                None
            }
        }
    }

    pub(super) fn yielded(
        &mut self,
        scope: &mut Scope,
        y: &ast::Yield,
        wanted: &[Axis],
        block: &ast::Block,
    ) -> Option<(Expr, Option<String>)> {
        let e = self.expr(scope, &y.value, Some(wanted))?;
        let e = self.fit(e, wanted, block.result.span)?;
        Some((e, y.role.as_ref().map(|r| r.name.clone())))
    }

    pub(super) fn misplaced(&mut self, span: Span) {
        self.error(
            codes::PLACE,
            "this belongs in the model, not in a block",
            span,
            "move it out of the block",
        );
    }
}

/// The axes named in brackets, without `..`.
fn explicit_axes(dims: &ast::Dims) -> Vec<Ident> {
    dims.dims.iter().filter_map(|d| if let Dim::Axis(a) = d { Some(a.clone()) } else { None }).collect()
}
