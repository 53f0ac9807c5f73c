//! `repeat`: one instance of a block for all iterations.

use super::blocks::{Actual, Made};
use super::model::{Checker, show_axes};
use super::scope::Scope;
use crate::spec::ast::{self, Arg, Expr as AstExpr, ExprKind as AstKind, Reference};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::source::Span;

impl<'a> Checker<'a> {
    /// `repeat[n](Block@name, x, arg = …, unroll = k)`
    pub(super) fn repeat(&mut self, scope: &mut Scope, r: &Reference, span: Span) -> Option<Expr> {
        let args = r.args.as_deref().unwrap_or_default();
        let count = match r.axes.as_deref() {
            Some([count]) => count,
            _ => {
                let title = "`repeat` takes the number of iterations in brackets";
                self.error(codes::ARGUMENTS, title, r.path.span, "expected `repeat[layers](Block, x)`");
                return None;
            }
        };
        let trip = self.size_value(scope, count);
        let Some(AstKind::Ref(body)) = args.first().map(|a| &a.value.kind) else {
            self.error(
                codes::ARGUMENTS,
                "`repeat` takes a block first",
                span,
                "expected `repeat[layers](Block, x)`",
            );
            return None;
        };
        let Some(block) = self.blocks.get(&body.path.name).copied() else {
            self.unknown_block(body);
            return None;
        };
        if let Some(args) = &body.args {
            let at = args.first().map_or(body.path.span, |a| a.value.span);
            self.report(
                Diagnostic::error(codes::ARGUMENTS, "the repeated block is named, not called")
                    .at(at, "its arguments follow the block")
                    .help(format!("write `repeat[…]({}, x)`", body.path.name)),
            );
            return None;
        }
        let (generics, trip) = (self.generics(scope, body, block, body.path.span)?, trip?);
        let (rest, unroll) = self.take_unroll(scope, block, &args[1..], trip)?;
        let given = self.repeat_arguments(scope, r, block, &rest, trip, span)?;
        let Some(Some((Actual::Expr(init), _))) = given.first() else {
            self.error(
                codes::ARGUMENTS,
                "`repeat` needs the value it starts from",
                span,
                "expected `repeat[layers](Block, x)`",
            );
            return None;
        };
        let init_ty = Type { elem: init.ty.elem, axes: init.ty.axes.clone() };
        let name = self.instance_name(scope, body);
        let dim = self.repeat_dim(count, &name, trip);
        let path = format!("{}.{{{}}}", scope.path_of(&name), dim.variable);
        if unroll > 1 {
            self.unrolled.push(Unrolled { axis: dim.axis.clone(), by: unroll });
        }
        self.repeats.push(dim.clone());
        let made = self.instance(body, block, generics, given, path, span);
        self.repeats.pop();
        let made = made?;
        self.carry(&init_ty, &made, block, span)?;
        let mut actuals = made.actuals.into_iter();
        let init = Box::new(actuals.next()?);
        let ty = made.instance.args.first()?.ty.clone();
        let repeat = Repeat {
            dim,
            body: Box::new(made.instance),
            init,
            invariants: actuals.collect(),
            cycled: made.cycled,
            unroll,
        };
        Some(Expr { kind: ExprKind::Repeat(Box::new(repeat)), ty, span })
    }

    pub(super) fn unknown_block(&mut self, body: &Reference) {
        let title = format!("no block of this name: `{}`", body.path.name);
        let mut diagnostic =
            Diagnostic::error(codes::UNKNOWN_NAME, title).at(body.path.span, "`repeat` takes a block");
        if let Some(near) = nearest(&body.path.name, self.blocks.keys().map(String::as_str)) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        self.report(diagnostic);
    }

    /// Takes `unroll = k` out of the arguments, with the k (1 if there is none), unless the block has an argument of that name.
    pub(super) fn take_unroll<'e>(
        &mut self,
        scope: &Scope,
        block: &ast::Block,
        args: &'e [Arg],
        trip: u64,
    ) -> Option<(Vec<&'e Arg>, u64)> {
        let own = block.formals.iter().any(|f| f.name.name == "unroll");
        let is_unroll = |a: &&Arg| !own && a.name.as_ref().is_some_and(|n| n.name == "unroll");
        let rest = args.iter().filter(|a| !is_unroll(a)).collect();
        let Some(unroll) = args.iter().find(is_unroll) else { return Some((rest, 1)) };
        let k = self.size_value(scope, &unroll.value)?;
        if !trip.is_multiple_of(k) {
            let title = format!("`unroll` must divide the number of iterations: {trip} by {k}");
            self.error(codes::RANGE, title, unroll.value.span, format!("{trip} is not a multiple of {k}"));
            return None;
        }
        Some((rest, k))
    }

    pub(super) fn repeat_arguments(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        block: &ast::Block,
        args: &[&Arg],
        trip: u64,
        span: Span,
    ) -> Option<Vec<Option<(Actual, Span)>>> {
        let names: Vec<&str> = block.formals.iter().map(|f| f.name.name.as_str()).collect();
        let owned: Vec<Arg> = args.iter().map(|a| (*a).clone()).collect();
        let slots = self.bind(r, &owned, span, &names, usize::from(!names.is_empty()))?;
        let mut given = vec![];
        let mut good = true;
        for slot in slots {
            given.push(match slot {
                None => None,
                Some(e) => {
                    let actual = match &e.kind {
                        AstKind::List(items) => self.cycle(scope, items, trip, e.span),
                        _ => self.expr(scope, e, None).map(Actual::Expr),
                    };
                    good &= actual.is_some();
                    actual.map(|a| (a, e.span))
                }
            });
        }
        good.then_some(given)
    }

    /// `[4096, none]`: constants given to the iterations in turn.
    pub(super) fn cycle(
        &mut self,
        scope: &mut Scope,
        items: &[AstExpr],
        trip: u64,
        span: Span,
    ) -> Option<Actual> {
        let n = items.len() as u64;
        if n == 0 || !trip.is_multiple_of(n) {
            let title = format!("{trip} iterations can't cycle through {n} constants");
            self.report(
                Diagnostic::error(codes::CYCLE_LENGTH, title)
                    .at(span, format!("{n} constants"))
                    .help("the number of constants must divide the number of iterations"),
            );
            return None;
        }
        let mut values = vec![];
        for item in items {
            let none = super::model::is_word(item, "none");
            values.push(if none { f64::INFINITY } else { self.constant_value(scope, item)? });
        }
        let trip = usize::try_from(trip).ok().filter(|t| *t <= 1 << 20);
        let Some(trip) = trip else {
            self.error(
                codes::TOO_LARGE,
                "too many iterations for constants per iteration",
                span,
                "at most 2^20",
            );
            return None;
        };
        Some(Actual::Cycled(values.into_iter().cycle().take(trip).collect(), span))
    }

    /// The stacked axis: named like the size in the brackets, or like the instance if there is arithmetic in them.
    pub(super) fn repeat_dim(&self, count: &AstExpr, instance: &str, trip: u64) -> RepeatDim {
        const VARIABLES: [&str; 6] = ["i", "j", "k", "l", "m", "n"];
        let variable = match VARIABLES.get(self.repeats.len()) {
            Some(v) => v.to_string(),
            None => format!("i{}", self.repeats.len()),
        };
        let mut name = match &count.kind {
            AstKind::Ref(r) => r.path.name.clone(),
            _ => instance.to_string(),
        };
        if self.repeats.iter().any(|r| r.axis.name == name) {
            name = format!("{name}_{variable}");
        }
        RepeatDim { variable, axis: Axis { name, size: trip } }
    }

    /// Checks that a repeated block returns what it takes.
    pub(super) fn carry(&mut self, init: &Type, made: &Made, block: &ast::Block, span: Span) -> Option<()> {
        let takes_tensor = block.formals.first().is_some_and(|f| f.dims.is_some());
        let same = made.ty.elem == init.elem
            && made.ty.axes.len() == init.axes.len()
            && made.ty.axes.iter().all(|a| init.axes.contains(a));
        if takes_tensor && same {
            return Some(());
        }
        let title = format!(
            "`{}` can't be repeated: it returns {}, but takes {}",
            block.name.name,
            show_axes(&made.ty.axes),
            show_axes(&init.axes)
        );
        self.report(
            Diagnostic::error(codes::CARRY, title)
                .at(span, "repeated here")
                .and(block.result.span, "the result goes into the next iteration's first argument"),
        );
        None
    }
}
