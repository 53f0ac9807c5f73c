//! Blocks: calls, repeats, recursion.
//!
//! A block is checked anew at every use, with its generic axes and constants put in, so every instance is concrete. A
//! block without any use is checked once with stand-in axes, for its errors alone.

use petgraph::algo::kosaraju_scc;
use petgraph::graph::DiGraph;
use std::collections::{BTreeMap, BTreeSet};

use super::choose::Chosen;
use super::expr::as_constant;
use super::model::{Checker, MAX_INSTANCE_DEPTH, show_axes};
use super::scope::{Binding, Scope};
use crate::spec::ast::{
    self, Arg, Dim, Expr as AstExpr, ExprKind as AstKind, Ident, Reference, Statement as Stmt,
};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::source::Span;

/// What is passed for one argument of a block.
enum Actual {
    Expr(Expr),
    /// One constant per iteration.
    Cycled(Vec<f64>, Span),
}

/// An instance with what was passed to it.
struct Made {
    instance: Instance,
    actuals: Vec<Expr>,
    cycled: Vec<Cycled>,
    /// Type of the result before it is used.
    ty: Type,
}

impl<'a> Checker<'a> {
    // ---- recursion

    /// Reports every circle of blocks that contain each other.
    pub(super) fn find_recursion(&mut self) {
        let names: Vec<&str> = self.blocks.keys().map(String::as_str).collect();
        let mut graph = DiGraph::<&str, ()>::new();
        let nodes: BTreeMap<&str, _> = names.iter().map(|n| (*n, graph.add_node(*n))).collect();
        for (name, block) in self.blocks {
            let mut called = BTreeSet::new();
            block.body.statements.iter().for_each(|s| called_in_statement(s, &mut called));
            for other in called.iter().filter_map(|c| nodes.get(c.as_str())) {
                graph.add_edge(nodes[name.as_str()], *other, ());
            }
        }
        for circle in kosaraju_scc(&graph) {
            let alone = circle.len() == 1 && graph.find_edge(circle[0], circle[0]).is_none();
            if alone {
                continue;
            }
            let mut members: Vec<&str> = circle.iter().map(|n| graph[*n]).collect();
            members.sort_unstable();
            self.recursive.extend(members.iter().map(|m| m.to_string()));
            let shown: Vec<String> = members.iter().map(|m| format!("`{m}`")).collect();
            let title = match shown.as_slice() {
                [one] => format!("the block {one} contains itself"),
                many => format!("blocks contain each other: {}", many.join(", ")),
            };
            let span = self.blocks[members[0]].name.span;
            self.report(
                Diagnostic::error(codes::RECURSION, title)
                    .at(span, "part of the circle")
                    .help("the language has no recursion; `repeat[n](Block, x)` applies a block n times"),
            );
        }
    }

    /// Checks blocks nobody calls, for their errors alone.
    pub(super) fn uninstantiated_blocks(&mut self, chosen: &Chosen<'a>) {
        for (name, block) in &chosen.blocks {
            if self.instantiated.contains(name) || self.recursive.contains(name) {
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

    fn stand_in(&mut self, scope: &mut Scope, formal: &ast::Formal) -> Binding {
        let Some(dims) = &formal.dims else {
            return match &formal.default {
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

    // ---- calls

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
    fn generics(
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
    fn instance_name(&mut self, scope: &mut Scope, r: &Reference) -> String {
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
    fn instance(
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

    fn default_argument(
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

    fn cycled_argument(
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
    fn argument(
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
    fn block_body(
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
                Stmt::Kernel(k) => self.report(super::not_applied("kernel", k.span)),
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

    fn yielded(
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

    fn misplaced(&mut self, span: Span) {
        self.error(
            codes::PLACE,
            "this belongs in the model, not in a block",
            span,
            "move it out of the block",
        );
    }

    // ---- repeat

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

    fn unknown_block(&mut self, body: &Reference) {
        let title = format!("no block of this name: `{}`", body.path.name);
        let mut diagnostic =
            Diagnostic::error(codes::UNKNOWN_NAME, title).at(body.path.span, "`repeat` takes a block");
        if let Some(near) = nearest(&body.path.name, self.blocks.keys().map(String::as_str)) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        self.report(diagnostic);
    }

    /// Takes `unroll = k` out of the arguments, unless the block has an argument of that name.
    fn take_unroll<'e>(
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

    fn repeat_arguments(
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
    fn cycle(&mut self, scope: &mut Scope, items: &[AstExpr], trip: u64, span: Span) -> Option<Actual> {
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
    fn repeat_dim(&self, count: &AstExpr, instance: &str, trip: u64) -> RepeatDim {
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
    fn carry(&mut self, init: &Type, made: &Made, block: &ast::Block, span: Span) -> Option<()> {
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

/// The axes named in brackets, without `..`.
fn explicit_axes(dims: &ast::Dims) -> Vec<Ident> {
    dims.dims.iter().filter_map(|d| if let Dim::Axis(a) = d { Some(a.clone()) } else { None }).collect()
}

fn called_in_statement(statement: &Stmt, called: &mut BTreeSet<String>) {
    match statement {
        Stmt::Let(l) => called_in(&l.value, called),
        Stmt::Yield(y) => called_in(&y.value, called),
        Stmt::Aux(b, _) => called_in(&b.value, called),
        Stmt::Manual(m) => m.body.statements.iter().for_each(|s| called_in_statement(s, called)),
        Stmt::Sizes(..) | Stmt::Consts(..) | Stmt::Loss(..) | Stmt::Input(_) | Stmt::Params(_) => {}
        Stmt::Block(_) | Stmt::Names(_) | Stmt::Kernel(_) | Stmt::Lower(_) => {}
    }
}

/// Names that are called, or passed to `repeat`.
fn called_in(e: &AstExpr, called: &mut BTreeSet<String>) {
    match &e.kind {
        AstKind::Number(_) | AstKind::Text(_) => {}
        AstKind::Paren(inner) | AstKind::Unary(_, inner) | AstKind::Rename(inner, _) => {
            called_in(inner, called)
        }
        AstKind::List(items) => items.iter().for_each(|i| called_in(i, called)),
        AstKind::Binary(_, a, b) => {
            called_in(a, called);
            called_in(b, called);
        }
        AstKind::Ref(r) => {
            if r.args.is_some() {
                called.insert(r.path.name.clone());
            }
            for (i, arg) in r.args.iter().flatten().enumerate() {
                if let (0, "repeat", AstKind::Ref(body)) = (i, r.path.name.as_str(), &arg.value.kind) {
                    called.insert(body.path.name.clone());
                }
                called_in(&arg.value, called);
            }
        }
    }
}
