//! Mixture of experts: `route`, `dispatch`, `combine`, products by expert, and the losses that keep a router in balance.

use super::model::{Checker, is_word, show_axes};
use super::scope::{Binding, Scope};
use crate::spec::ast::{self, Arg, Expr as AstExpr, ExprKind as AstKind, Reference};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

/// Rows of a tile unless the text says otherwise: one register tile of the widest matrix kernels.
const TILE: u64 = 16;

impl Checker<'_> {
    /// The call in `r = route[…](…)`, if the statement is one.
    pub(super) fn as_route(l: &ast::Let) -> Option<(&Reference, &[Arg])> {
        match &l.value.kind {
            AstKind::Ref(r) if r.path.name == "route" => Some((r, r.args.as_deref()?)),
            _ => None,
        }
    }

    /// `r = route[tokens, expert](gates, k = 2, capacity = none)`: `r` is no tensor, but names who goes where.
    pub(super) fn route_statement(
        &mut self,
        scope: &mut Scope,
        l: &ast::Let,
        r: &Reference,
        args: &[Arg],
    ) -> Option<Let> {
        let route = self.route(scope, r, args, l.value.span);
        let Some(route) = route else {
            self.define(scope, &l.name, Binding::Poison);
            return None;
        };
        if let Some(dims) = &l.dims {
            self.error(codes::KIND, "a routing is no tensor and has no axes", dims.span, "remove them");
        }
        let value = self.new_value();
        self.define(scope, &l.name, Binding::Routing(value, route.routing.clone()));
        let expr =
            Expr { ty: route.gates.ty.clone(), kind: ExprKind::Route(Box::new(route)), span: l.value.span };
        let (name, path) = (l.name.name.clone(), scope.path_of(&l.name.name));
        Some(Let { value, name, path, expr, role: None, span: l.name.span })
    }

    fn route(&mut self, scope: &mut Scope, r: &Reference, args: &[Arg], span: Span) -> Option<Route> {
        let names = ["gates", "k", "capacity", "normalise", "select", "tile"];
        let slots = self.bind(r, args, span, &names, 1)?;
        let axes = self.bracket_axes(scope, r, span)?;
        let [tokens, expert] = <[Axis; 2]>::try_from(axes).ok().or_else(|| {
            let expected = "expected `route[tokens, expert](gates, k = 2)`";
            self.error(codes::ARGUMENTS, "`route` takes two axes", r.path.span, expected);
            None
        })?;
        let gates = self.expr(scope, slots[0]?, None)?;
        let gates = self.real_of(gates)?;
        self.require_axis(&tokens, r, &gates)?;
        self.require_axis(&expert, r, &gates)?;
        if tokens.name == "batch" {
            let title = "tokens can't be routed along `batch`, which is cut into microbatches";
            let label = "route along the axis of a sequence; the batch then makes groups";
            self.error(codes::ARGUMENTS, title, self.bracket_span(r, "batch"), label);
            return None;
        }
        let k = self.whole(scope, slots[1], "k", 1)?;
        if k > expert.size {
            let title = format!("a token can't choose {k} of {} experts", expert.size);
            let at = slots[1].map_or(r.path.span, |e| e.span);
            self.error(codes::RANGE, title, at, format!("at most {} = {}", expert.name, expert.size));
            return None;
        }
        let normalise = match slots[3] {
            Some(e) => self.word(e, &["true", "false"])? == "true",
            None => false,
        };
        let select = match slots[4] {
            Some(e) => Some(self.selection(scope, e, &gates)?),
            None => None,
        };
        let packing = self.packing(scope, &tokens, &expert, k, slots[2], slots[5])?;
        let groups = gates.ty.axes.iter().filter(|a| a.name != tokens.name && a.name != expert.name);
        let groups = groups.cloned().collect();
        let routing = Routing { tokens, expert, groups, packing: packing.clone() };
        for axis in packing.axes() {
            self.introduce(scope, axis, r.path.span)?;
        }
        Some(Route { routing, k, normalise, gates, select })
    }

    /// What experts are chosen by, if not by the gates themselves.
    fn selection(&mut self, scope: &mut Scope, e: &AstExpr, gates: &Expr) -> Option<Expr> {
        let select = self.expr(scope, e, Some(&gates.ty.axes))?;
        let select = self.real_of(select)?;
        self.fit(select, &gates.ty.axes, gates.span)
    }

    /// Static room for what experts get.
    fn packing(
        &mut self,
        scope: &mut Scope,
        tokens: &Axis,
        expert: &Axis,
        k: u64,
        capacity: Option<&AstExpr>,
        tile: Option<&AstExpr>,
    ) -> Option<Packing> {
        if let Some(e) = capacity.filter(|e| !is_word(e, "none")) {
            let capacity = self.constant_value(scope, e)?;
            if !(capacity.is_finite() && capacity > 0.0) {
                let title = format!("the capacity must be positive: {capacity}");
                self.error(codes::RANGE, title, e.span, "`none` drops no token");
                return None;
            }
            if let Some(e) = tile {
                let title = "`tile` has no meaning beside a capacity";
                self.error(codes::ARGUMENTS, title, e.span, "it is for `capacity = none`");
                return None;
            }
            let fair = (k * tokens.size) as f64 / expert.size as f64;
            // No expert can get a token twice.
            let size = ((fair * capacity).ceil() as u64).clamp(1, tokens.size);
            return Some(Packing::Slots(Axis { name: "slot".into(), size }));
        }
        let tile = match tile {
            Some(e) => self.whole(scope, Some(e), "tile", TILE)?,
            None => TILE,
        };
        // Every expert that gets rows wastes less than one tile, and the rows used are whole tiles.
        let rows = k * tokens.size;
        let most = rows + expert.size.min(rows) * (tile - 1);
        let size = most / tile * tile;
        Some(Packing::Rows { row: Axis { name: "row".into(), size }, tile })
    }

    /// A constant whole number from 1.
    fn whole(&mut self, scope: &mut Scope, e: Option<&AstExpr>, what: &str, default: u64) -> Option<u64> {
        let Some(e) = e else { return Some(default) };
        let value = self.constant_value(scope, e)?;
        if value.fract() != 0.0 || !(1.0..=1e6).contains(&value) {
            self.error(codes::RANGE, format!("`{what}` is a whole number from 1: {value}"), e.span, "");
            return None;
        }
        Some(value as u64)
    }

    /// Makes an axis known from here on.
    fn introduce(&mut self, scope: &mut Scope, axis: &Axis, span: Span) -> Option<()> {
        if let Some(known) = self.axis_named(scope, &axis.name).filter(|known| known.size != axis.size) {
            let title = format!("the axis `{}` has two sizes: {} and {}", axis.name, known.size, axis.size);
            self.report(
                Diagnostic::error(codes::SIZE_MISMATCH, title)
                    .at(span, format!("this routing makes {} = {}", axis.name, axis.size))
                    .help("rename the size, or give each routing a block of its own"),
            );
            return None;
        }
        scope.axes.insert(axis.name.clone(), axis.clone());
        Some(())
    }

    /// A name that stands for a routing.
    fn routing(&mut self, scope: &Scope, e: &AstExpr) -> Option<(ValueId, Routing)> {
        if let AstKind::Ref(name) = &e.kind
            && name.axes.is_none()
            && name.args.is_none()
        {
            match scope.names.get(&name.path.name) {
                Some((Binding::Routing(id, routing), _)) => return Some((*id, routing.clone())),
                Some((Binding::Poison, _)) => return None,
                _ => {}
            }
        }
        self.report(
            Diagnostic::error(codes::KIND, format!("not a routing: `{}`", crate::spec::print::expr(e)))
                .at(e.span, "expected the name of one")
                .help("`r = route[tokens, expert](gates, k = 2)` makes a routing, in the same block"),
        );
        None
    }

    /// `dispatch(x, r)`
    pub(super) fn dispatch(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        self.no_axes(r)?;
        let slots = self.bind(r, args, span, &["x", "r"], 2)?;
        let x = self.expr(scope, slots[0]?, None)?;
        let (id, routing) = self.routing(scope, slots[1]?)?;
        let x = self.real_of(x)?;
        for axis in routing.groups.iter().chain([&routing.tokens]) {
            self.has_axis(axis, &x)?;
        }
        let packed = routing.packed();
        if let Some(clash) = packed.iter().find(|a| x.ty.has(&a.name) && !routing.groups.contains(a)) {
            let title = format!("`dispatch` adds the axis `{}`, which the operand has already", clash.name);
            self.error(codes::AXIS_TWICE, title, x.span, format!("this has {}", show_axes(&x.ty.axes)));
            return None;
        }
        let own = x.ty.axes.iter().filter(|a| a.name != routing.tokens.name && !routing.groups.contains(a));
        let axes: Vec<Axis> = packed.into_iter().chain(own.cloned()).collect();
        self.check_numel(&axes, span).then_some(())?;
        let ty = Type { elem: Elem::Real, axes };
        Some(Expr { kind: ExprKind::Dispatch(id, Box::new(x)), ty, span })
    }

    /// `combine(h, r)`
    pub(super) fn combine(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        self.no_axes(r)?;
        let slots = self.bind(r, args, span, &["h", "r"], 2)?;
        let h = self.expr(scope, slots[0]?, None)?;
        let (id, routing) = self.routing(scope, slots[1]?)?;
        let h = self.real_of(h)?;
        let packed = routing.packed();
        for axis in &packed {
            self.has_axis(axis, &h)?;
        }
        let own = h.ty.axes.iter().filter(|a| !packed.contains(a));
        let tokens = routing.groups.iter().chain([&routing.tokens]).chain(own);
        let ty = Type { elem: Elem::Real, axes: tokens.cloned().collect() };
        Some(Expr { kind: ExprKind::Combine(id, Box::new(h)), ty, span })
    }

    /// `dot[axes](x, w, by = r)`: every row with its expert's weights.
    pub(super) fn dot_by(
        &mut self,
        scope: &Scope,
        by: &AstExpr,
        axes: &[Axis],
        operands: (Expr, Expr),
        span: Span,
    ) -> Option<Expr> {
        let (id, routing) = self.routing(scope, by)?;
        let (x, w) = operands;
        for axis in routing.packed() {
            self.has_axis(&axis, &x)?;
        }
        self.has_axis(&routing.expert, &w)?;
        if let Some(shared) = w.ty.axes.iter().find(|a| routing.groups.contains(a)) {
            let title = format!("the weights of experts can't have the axis `{}` of the tokens", shared.name);
            self.error(codes::AXIS_TWICE, title, w.span, format!("this has {}", show_axes(&w.ty.axes)));
            return None;
        }
        let contracted = |a: &&Axis| !axes.iter().any(|b| b.name == a.name);
        let rows = x.ty.axes.iter().filter(contracted);
        let columns = w.ty.axes.iter().filter(contracted).filter(|a| a.name != routing.expert.name);
        let all: Vec<Axis> = rows.chain(columns).cloned().collect();
        self.check_numel(&all, span).then_some(())?;
        let ty = Type { elem: Elem::Real, axes: all };
        let (over, x, w) = (axes.to_vec(), Box::new(x), Box::new(w));
        let kind = match routing.packing {
            Packing::Slots(_) => ExprKind::Dot(over, x, w),
            Packing::Rows { .. } => ExprKind::GroupedDot { routing: id, over, x, w },
        };
        Some(Expr { kind, ty, span })
    }

    /// `load_balance[axes](r, choices = all)`
    pub(super) fn load_balance(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let slots = self.bind(r, args, span, &["r", "choices"], 1)?;
        let axes = self.bracket_axes(scope, r, span)?;
        let (id, routing) = self.routing(scope, slots[0]?)?;
        let first = match slots[1] {
            Some(e) => self.word(e, &["all", "first"])? == "first",
            None => false,
        };
        let tokens: Vec<Axis> = routing.groups.iter().chain([&routing.tokens]).cloned().collect();
        for axis in &axes {
            if !tokens.contains(axis) {
                let title = format!("the tokens of this routing have no axis `{}`", axis.name);
                let label = format!("they have {}", show_axes(&tokens));
                self.error(codes::AXIS_NOT_IN_OPERAND, title, self.bracket_span(r, &axis.name), label);
                return None;
            }
        }
        let rest = tokens.into_iter().filter(|a| !axes.contains(a)).collect();
        let ty = Type { elem: Elem::Real, axes: rest };
        Some(Expr { kind: ExprKind::LoadBalance { routing: id, over: axes, first }, ty, span })
    }

    /// `z_loss[expert](logits)`
    pub(super) fn z_loss(
        &mut self,
        scope: &mut Scope,
        r: &Reference,
        args: &[Arg],
        span: Span,
    ) -> Option<Expr> {
        let axis = self.bracket_axis(scope, r, span)?;
        let x = self.single(scope, r, args, span, None)?;
        let x = self.real_of(x)?;
        self.require_axis(&axis, r, &x)?;
        let axes = x.ty.axes.iter().filter(|a| a.name != axis.name).cloned().collect();
        let ty = Type { elem: Elem::Real, axes };
        Some(Expr { kind: ExprKind::ZLoss(axis, Box::new(x)), ty, span })
    }

    /// Reports an axis that an operand lacks or has in another size.
    fn has_axis(&mut self, axis: &Axis, operand: &Expr) -> Option<()> {
        match operand.ty.size_of(&axis.name) {
            Some(size) if size == axis.size => Some(()),
            Some(size) => {
                let known = Axis { size, ..axis.clone() };
                self.size_mismatch(&known, operand.span, axis.size, operand.span, operand.span);
                None
            }
            None => {
                self.axis_not_in(&axis.name, operand.span, operand);
                None
            }
        }
    }
}
