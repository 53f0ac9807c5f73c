//! Parts of axes: `slice` takes one, `concat` lays them end to end.

use super::model::{Checker, show_axes};
use super::scope::Scope;
use crate::spec::ast::{Arg, Expr as AstExpr, Reference};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

impl Checker<'_> {
    /// `slice[from, to](x, at = k)`: the elements k, k + 1, … of `from` as the axis `to`.
    pub(super) fn slice(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let axes = self.bracket_axes(scope, r, span)?;
        let slots = self.bind(r, args, span, &["x", "at"], 1)?;
        let x = self.expr(scope, slots[0]?, None)?;
        let [from, to] = <[Axis; 2]>::try_from(axes).ok().or_else(|| {
            let title = "`slice` takes two axes: the whole and the part";
            self.error(codes::ARGUMENTS, title, span, "expected `slice[from, to](x, at = 0)`");
            None
        })?;
        self.require_axis(&from, r, &x)?;
        let at = self.first_element(scope, slots[1])?;
        if at.checked_add(to.size).is_none_or(|end| end > from.size) {
            let title = format!(
                "a slice of {} elements at {at} does not fit in `{}` = {}",
                to.size, from.name, from.size
            );
            self.error(codes::RANGE, title, span, format!("`{}` = {}", to.name, to.size));
            return None;
        }
        if to.name != from.name && x.ty.has(&to.name) {
            let title = format!("the axis `{}` appears twice", to.name);
            self.error(codes::AXIS_TWICE, title, x.span, format!("this has {}", show_axes(&x.ty.axes)));
            return None;
        }
        let axes = x.ty.axes.iter().map(|a| if a.name == from.name { to.clone() } else { a.clone() });
        let ty = Type { elem: x.ty.elem, axes: axes.collect() };
        Some(Expr { kind: ExprKind::Slice { x: Box::new(x), from, to, at }, ty, span })
    }

    /// A whole number from 0, given as arithmetic over sizes.
    fn first_element(&mut self, scope: &Scope, e: Option<&AstExpr>) -> Option<u64> {
        let Some(e) = e else { return Some(0) };
        let value = self.size_arithmetic(scope, e)?;
        let at = u64::try_from(value).ok();
        if at.is_none() {
            self.error(codes::RANGE, format!("not a position: {value}"), e.span, "counts from 0");
        }
        at
    }

    /// `concat[axis](part = x, part = y, …)`: x along its axis `part`, then y along its own, as one axis. An axis that no
    /// size has gets the sum of the parts' sizes. An operand that lacks another axis repeats along it.
    pub(super) fn concat(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        let form = "expected `concat[whole](part = x, other_part = y)`";
        let name = match r.axes.as_deref() {
            Some([one]) => super::model::plain_name(one),
            _ => None,
        };
        let Some(name) = name else {
            self.error(codes::ARGUMENTS, "`concat` makes one axis", span, form);
            return None;
        };
        let mut parts: Vec<(Axis, Expr)> = vec![];
        for arg in args {
            let Some(part) = &arg.name else {
                self.error(codes::ARGUMENTS, "every part is called by its axis", arg.value.span, form);
                return None;
            };
            let x = self.expr(scope, &arg.value, None)?;
            // The part may be an axis only `x` has, made by `as`.
            let called = self.axis_named(scope, &part.name).map_or(part.name.clone(), |a| a.name);
            let Some(size) = x.ty.size_of(&called) else {
                self.axis_not_in(&part.name, part.span, &x);
                return None;
            };
            parts.push((Axis { name: called, size }, x));
        }
        if parts.len() < 2 {
            self.error(codes::ARGUMENTS, "`concat` takes two parts or more", span, form);
            return None;
        }
        let axis = self.whole_axis(scope, name, &parts, span)?;
        self.concat_type(axis, parts, span, wanted)
    }

    /// The axis of the result, whose size is the sum of the parts'.
    fn whole_axis(
        &mut self,
        scope: &mut Scope,
        name: &str,
        parts: &[(Axis, Expr)],
        span: Span,
    ) -> Option<Axis> {
        let size = parts.iter().try_fold(0u64, |sum, (a, _)| sum.checked_add(a.size))?;
        match self.axis_named(scope, name) {
            Some(known) if known.size == size => Some(known),
            Some(known) => {
                let sizes: Vec<String> =
                    parts.iter().map(|(a, _)| format!("{}={}", a.name, a.size)).collect();
                let title = format!("the parts make {size} elements, the axis `{name}` has {}", known.size);
                self.error(codes::SIZE_MISMATCH, title, span, sizes.join(" + "));
                None
            }
            None => {
                let axis = Axis { name: name.to_string(), size };
                scope.axes.insert(name.to_string(), axis.clone());
                Some(axis)
            }
        }
    }

    fn concat_type(
        &mut self,
        axis: Axis,
        parts: Vec<(Axis, Expr)>,
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        let elem = parts[0].1.ty.elem;
        if let Some((_, odd)) = parts.iter().find(|(_, x)| x.ty.elem != elem) {
            return self.wrong_elem(odd, super::expr::elem_name(elem));
        }
        let mut rest: Vec<Axis> = vec![];
        for (part, x) in &parts {
            for a in x.ty.axes.iter().filter(|a| a.name != part.name) {
                match rest.iter().find(|b| b.name == a.name) {
                    None => rest.push(a.clone()),
                    Some(same) if same.size == a.size => {}
                    Some(other) => {
                        let size = other.size;
                        self.size_mismatch(a, x.span, size, parts[0].1.span, span);
                        return None;
                    }
                }
            }
        }
        let has_all = parts.iter().any(|(_, x)| x.ty.axes.len() == rest.len() + 1);
        let annotated = wanted.is_some_and(|w| rest.iter().all(|a| w.iter().any(|b| b.name == a.name)));
        if !has_all && !annotated {
            let operands: Vec<&Expr> = parts.iter().map(|(_, x)| x).collect();
            self.union_error(&operands, &rest, span);
            return None;
        }
        if rest.iter().any(|a| a.name == axis.name) {
            let title = format!("the axis `{}` appears twice", axis.name);
            self.report(
                Diagnostic::error(codes::AXIS_TWICE, title).at(span, "a part has it besides its own axis"),
            );
            return None;
        }
        // The whole stands where the first operand that has all axes has its part.
        let (part, widest) = parts.iter().max_by_key(|(_, x)| (x.ty.axes.len(), 0))?;
        let mut axes: Vec<Axis> = widest
            .ty
            .axes
            .iter()
            .map(|a| if a.name == part.name { axis.clone() } else { a.clone() })
            .collect();
        axes.extend(rest.into_iter().filter(|a| !widest.ty.has(&a.name)));
        if !self.check_numel(&axes, span) {
            return None;
        }
        Some(Expr { kind: ExprKind::Concat { axis, parts }, ty: Type { elem, axes }, span })
    }
}
