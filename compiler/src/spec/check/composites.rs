//! Functions with a name and a derivative of their own: rope, cross-entropy, norms, attention.

use super::model::{Checker, show_axes};
use super::scope::Scope;
use crate::spec::ast::{Arg, Expr as AstExpr, ExprKind as AstKind, Reference};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::source::Span;

impl Checker<'_> {
    pub(super) fn rope(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let axis = self.bracket_axis(scope, r, span);
        let slots = self.bind(r, args, span, &["x", "at", "theta", "pairs", "scaling"], 4)?;
        let (x, at) = (self.expr(scope, slots[0]?, None), self.expr(scope, slots[1]?, None));
        let theta = self.constant_value(scope, slots[2]?);
        let pairs = self.word(slots[3]?, &["half", "interleaved"]);
        let scaling = self.rope_scaling(scope, slots[4]);
        let (axis, x, at, theta, pairs, scaling) = (axis?, x?, at?, theta?, pairs?, scaling?);
        let x = self.real_of(x)?;
        self.require_axis(&axis, r, &x)?;
        if at.ty.elem != Elem::Int {
            return self.wrong_elem(&at, "an integer");
        }
        if axis.size % 2 == 1 {
            let title = format!("`rope` turns pairs, but `{}` is odd: {}", axis.name, axis.size);
            self.error(codes::RANGE, title, self.bracket_span(r, &axis.name), "needs an even size");
            return None;
        }
        if theta <= 0.0 || !theta.is_finite() {
            self.error(codes::RANGE, format!("`theta` must be positive: {theta}"), slots[2]?.span, "");
            return None;
        }
        for a in &at.ty.axes {
            if a.name == axis.name || !x.ty.has(&a.name) {
                self.axis_not_in(&a.name, at.span, &x);
                return None;
            }
        }
        let ty = x.ty.clone();
        let interleaved = pairs == "interleaved";
        let rope = Rope { axis, x, at, theta, interleaved, scaling };
        Some(Expr { kind: ExprKind::Rope(Box::new(rope)), ty, span })
    }

    /// `none`, or `llama3(factor, low, high, original)`; a factor of 1 is none.
    #[allow(clippy::option_option, reason = "the outer option is the error")]
    fn rope_scaling(&mut self, scope: &mut Scope, e: Option<&AstExpr>) -> Option<Option<RopeScaling>> {
        let Some(e) = e.filter(|e| !super::model::is_word(e, "none")) else { return Some(None) };
        let AstKind::Ref(r) = &e.kind else { return self.unknown_scaling(e) };
        let Some(args) = r.args.as_ref().filter(|_| r.path.name == "llama3") else {
            return self.unknown_scaling(e);
        };
        let slots = self.bind(r, args, e.span, &["factor", "low", "high", "original"], 4)?;
        let mut values = [0.0; 4];
        for (value, slot) in values.iter_mut().zip(&slots) {
            let slot = (*slot)?;
            *value = self.constant_value(scope, slot)?;
            if *value <= 0.0 || !value.is_finite() {
                self.error(codes::RANGE, format!("a rope scaling must be positive: {value}"), slot.span, "");
                return None;
            }
        }
        let [factor, low, high, original] = values;
        if high <= low {
            let title = format!("`high` must be above `low`: {high} and {low}");
            self.error(codes::RANGE, title, e.span, "frequencies between the two are blended");
            return None;
        }
        Some((factor != 1.0).then_some(RopeScaling { factor, low, high, original }))
    }

    #[allow(clippy::option_option, reason = "the outer option is the error")]
    fn unknown_scaling(&mut self, e: &AstExpr) -> Option<Option<RopeScaling>> {
        let title = format!("unknown rope scaling: `{}`", crate::spec::print::expr(e));
        let form = "expected `none` or `llama3(factor = 8, low = 1, high = 4, original = 8192)`";
        self.error(codes::ARGUMENTS, title, e.span, form);
        None
    }

    /// `dropout(x, rate)`; at rate 0 nothing is left of it.
    pub(super) fn dropout(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
        wanted: Option<&[Axis]>,
    ) -> Option<Expr> {
        self.no_axes(r)?;
        let slots = self.bind(r, args, span, &["x", "rate"], 2)?;
        let (x, rate) = (self.expr(scope, slots[0]?, wanted), self.constant_value(scope, slots[1]?));
        let (x, rate) = (x?, rate?);
        let x = self.real_of(x)?;
        if !(0.0..1.0).contains(&rate) {
            let title = format!("the rate of `dropout` is at least 0 and below 1: {rate}");
            self.error(codes::RANGE, title, slots[1]?.span, "the probability that an element becomes 0");
            return None;
        }
        if rate == 0.0 {
            return Some(x);
        }
        let ty = x.ty.clone();
        Some(Expr { kind: ExprKind::Dropout { x: Box::new(x), rate }, ty, span })
    }

    pub(super) fn cross_entropy(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let axis = self.bracket_axis(scope, r, span);
        let slots = self.bind(r, args, span, &["logits", "targets"], 2)?;
        let (logits, targets) = (self.expr(scope, slots[0]?, None), self.expr(scope, slots[1]?, None));
        let (axis, logits, targets) = (axis?, logits?, targets?);
        let logits = self.real_of(logits)?;
        self.require_axis(&axis, r, &logits)?;
        if targets.ty.elem != Elem::Int {
            return self.wrong_elem(&targets, "an integer");
        }
        if let Some(odd) = targets.ty.axes.iter().find(|a| a.name == axis.name || !logits.ty.has(&a.name)) {
            let name = odd.name.clone();
            self.axis_not_in(&name, targets.span, &logits);
            return None;
        }
        let rest = logits.ty.axes.iter().filter(|a| a.name != axis.name).cloned().collect();
        let ty = Type { elem: Elem::Real, axes: rest };
        let (logits, targets) = (Box::new(logits), Box::new(targets));
        Some(Expr { kind: ExprKind::CrossEntropy { axis, logits, targets }, ty, span })
    }

    pub(super) fn rms_norm(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let slots = self.bind(r, args, span, &["x", "w", "eps"], 1)?;
        let (axis, x) = self.norm_operand(scope, r, slots[0]?, span)?;
        let weight = self.norm_weight(scope, r, slots[1], &axis)?;
        let eps = self.norm_eps(scope, slots[2])?;
        let ty = x.ty.clone();
        Some(Expr { kind: ExprKind::RmsNorm { axis, x: Box::new(x), weight, eps }, ty, span })
    }

    pub(super) fn layer_norm(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let slots = self.bind(r, args, span, &["x", "w", "b", "eps"], 1)?;
        let (axis, x) = self.norm_operand(scope, r, slots[0]?, span)?;
        let weight = self.norm_weight(scope, r, slots[1], &axis)?;
        let bias = self.norm_weight(scope, r, slots[2], &axis)?;
        let eps = self.norm_eps(scope, slots[3])?;
        let ty = x.ty.clone();
        Some(Expr { kind: ExprKind::LayerNorm { axis, x: Box::new(x), weight, bias, eps }, ty, span })
    }

    pub(super) fn norm_operand(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        x: &AstExpr,
        span: Span,
    ) -> Option<(Axis, Expr)> {
        let axis = self.bracket_axis(scope, r, span);
        let x = self.expr(scope, x, None)?;
        let (axis, x) = (axis?, self.real_of(x)?);
        self.require_axis(&axis, r, &x)?;
        Some((axis, x))
    }

    /// A gain or shift: over exactly the normalised axis. `Some(None)` if it was left out.
    #[allow(clippy::option_option, reason = "the outer option is the error")]
    pub(super) fn norm_weight(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        e: Option<&AstExpr>,
        axis: &Axis,
    ) -> Option<Option<Box<Expr>>> {
        let Some(e) = e else { return Some(None) };
        let e = self.expr(scope, e, None)?;
        let e = self.real_of(e)?;
        self.require_axis(axis, r, &e)?;
        if e.ty.axes.len() != 1 {
            let title = format!(
                "the gain of a norm has the normalised axis alone, this has {}",
                show_axes(&e.ty.axes)
            );
            self.error(codes::ARGUMENTS, title, e.span, "");
            return None;
        }
        Some(Some(Box::new(e)))
    }

    pub(super) fn norm_eps(&mut self, scope: &mut Scope, e: Option<&AstExpr>) -> Option<f64> {
        match e {
            None => Some(1e-5),
            Some(e) => self.constant_value(scope, e),
        }
    }

    pub(super) fn attend(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let names = ["q", "k", "v", "causal", "scale", "soft_cap", "window", "mask", "bias"];
        let slots = self.bind(r, args, span, &names, 3)?;
        let axes = self.bracket_axes(scope, r, span)?;
        let [query, key, head] = <[Axis; 3]>::try_from(axes).ok().or_else(|| {
            let title = "`std.Attend` takes three axes";
            self.error(
                codes::ARGUMENTS,
                title,
                r.path.span,
                "expected `std.Attend[query, key, head](q, k, v)`",
            );
            None
        })?;
        let mut operands = vec![];
        for slot in &slots[..3] {
            let e = self.expr(scope, (*slot)?, None)?;
            operands.push(self.real_of(e)?);
        }
        let [q, k, v] = <[Expr; 3]>::try_from(operands).ok()?;
        for (axis, operand) in [(&query, &q), (&head, &q), (&key, &k), (&head, &k), (&key, &v)] {
            self.require_axis(axis, r, operand)?;
        }
        let scores = self.attend_axes(&q.ty.axes, &k, &head.name, span)?;
        let result = self.attend_axes(&scores, &v, &key.name, span)?;
        let flag = match slots[3] {
            Some(e) => self.word(e, &["true", "false"])? == "true",
            None => false,
        };
        let scale = match slots[4] {
            Some(e) => self.constant_value(scope, e)?,
            None => 1.0 / (head.size as f64).sqrt(),
        };
        let soft_cap = match slots[5] {
            Some(e) if super::model::is_word(e, "none") => None,
            // A block's argument that is `none` comes as infinity.
            Some(e) => Some(self.constant_value(scope, e)?).filter(|cap| *cap != f64::INFINITY),
            None => None,
        };
        let window = self.attend_extra(scope, slots[6], &[], Elem::Real)?;
        if let Some(cap) = soft_cap.filter(|cap| *cap <= 0.0) {
            let at = slots[5].map_or(span, |e| e.span);
            self.error(codes::RANGE, format!("`soft_cap` must be positive: {cap}"), at, "`none` is no cap");
            return None;
        }
        let narrow = window.as_ref().and_then(super::expr::as_constant).filter(|w| *w < 1.0);
        if let Some(width) = narrow {
            let at = slots[6].map_or(span, |e| e.span);
            let title = format!("a `window` below 1 leaves a query no key: {width}");
            self.error(codes::RANGE, title, at, "`window = 1` sees the query's own position alone");
            return None;
        }
        let mask = self.attend_extra(scope, slots[7], &scores, Elem::Bool)?;
        let bias = self.attend_extra(scope, slots[8], &scores, Elem::Real)?;
        let path = r.instance.as_ref().map(|i| scope.path_of(&i.name));
        let attend =
            Attend { path, query, key, head, q, k, v, scale, causal: flag, soft_cap, window, mask, bias };
        let ty = Type { elem: Elem::Real, axes: result };
        Some(Expr { kind: ExprKind::Attend(Box::new(attend)), ty, span })
    }

    /// Axes of a product that sums over one axis.
    pub(super) fn attend_axes(
        &mut self,
        left: &[Axis],
        right: &Expr,
        summed: &str,
        span: Span,
    ) -> Option<Vec<Axis>> {
        let mut axes: Vec<Axis> = left.iter().filter(|a| a.name != summed).cloned().collect();
        for axis in right.ty.axes.iter().filter(|a| a.name != summed) {
            match axes.iter().find(|a| a.name == axis.name) {
                None => axes.push(axis.clone()),
                Some(same) if same.size == axis.size => {}
                Some(other) => {
                    let size = other.size;
                    self.size_mismatch(axis, right.span, size, span, span);
                    return None;
                }
            }
        }
        self.check_numel(&axes, span).then_some(axes)
    }

    /// An optional operand over some of the axes of the scores.
    #[allow(clippy::option_option, reason = "the outer option is the error")]
    pub(super) fn attend_extra(
        &mut self,
        scope: &mut Scope,
        e: Option<&AstExpr>,
        scores: &[Axis],
        elem: Elem,
    ) -> Option<Option<Expr>> {
        let Some(e) = e else { return Some(None) };
        let e = if super::model::is_word(e, "none") {
            super::expr::constant(f64::INFINITY, e.span)
        } else {
            self.expr(scope, e, Some(scores))?
        };
        let e = match (elem, e.ty.elem) {
            (Elem::Real, _) => self.real_of(e)?,
            (wanted, have) if wanted == have => e,
            _ => return self.wrong_elem(&e, super::expr::elem_name(elem)).map(Some),
        };
        if let Some(odd) = e.ty.axes.iter().find(|a| !scores.contains(a)) {
            let title = format!("the scores have no axis `{}`", odd.name);
            let label = format!("this has {}, the scores {}", show_axes(&e.ty.axes), show_axes(scores));
            self.error(codes::AXIS_NOT_IN_OPERAND, title, e.span, label);
            return None;
        }
        Some(Some(e))
    }
}
