//! Builds the forward graph of one entry from a checked spec.
//!
//! The walk follows the text: every statement becomes ops in order, a called block is laid out in place, a `repeat`
//! becomes one [`Loop`] over its stacked axis. Parameters under a repeat are one source op with the stacked axes first,
//! and reach the body as stacked operands; bodies are closed, so nothing else crosses.

use super::recognise::{Formula, attention_of};
use super::routing::{self, RouteParts, Routed};
use super::shape::{self, ShapeError};
use super::{
    Axis, BinaryOp, Builder, CompareOp, DType, Graph, Init, Loop, Name, Op, Origin, Output, Pairs, Phase,
    ReduceOp, RopeScaling, SpecLine, Type, UnaryOp, ValueId,
};
use crate::spec::check::operands;
use crate::spec::checked::{self, Constraint, Expr, ExprKind, Instance, Model, ParamId, Statement};
use crate::spec::{Diagnostic, SourceMap, Span, codes};
use std::collections::{BTreeMap, BTreeSet};

/// Which graph is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Reports `loss_sum`, with `weight · aux` of every auxiliary loss in it, `loss_weight`, and each auxiliary loss times
    /// the weight by its name; to be differentiated.
    Train,
    /// Reports `loss_sum` and `loss_weight` without auxiliary losses, and each of these by its name.
    Eval,
    /// Reports `logits` of one sequence at the position given by the input `position`, `[vocab]`.
    Logits,
}

impl Entry {
    /// Name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Entry::Train => "train",
            Entry::Eval => "eval",
            Entry::Logits => "logits",
        }
    }
}

/// Builds the graph of an entry, with the axis `batch` of this size.
///
/// # Errors
/// A construct that is checked but has no lowering yet, with its place.
pub fn from_spec(
    model: &Model,
    entry: Entry,
    batch: u64,
    sources: &SourceMap,
) -> Result<Graph, Vec<Diagnostic>> {
    let mut walk = Walk {
        model,
        sources,
        b: Builder::new(model.name.as_str()),
        values: BTreeMap::new(),
        routings: BTreeMap::new(),
        params: BTreeMap::new(),
        path: "".into(),
        batch,
        random: None,
        sites: BTreeMap::new(),
        aux: Vec::new(),
        constraints: &model.constraints,
        errors: Vec::new(),
    };
    walk.sources_of_model();
    if entry == Entry::Train && walk.draws(&model.body, &[&model.loss.value]) {
        walk.at(model.span);
        let key = walk.b.step_key();
        walk.random = Some(Random { key, iteration: None });
    }
    match entry {
        Entry::Train | Entry::Eval => walk.loss(entry),
        Entry::Logits => walk.logits(),
    }
    if walk.errors.is_empty() { Ok(walk.b.finish()) } else { Err(walk.errors) }
}

/// Whether the entry [`Entry::Logits`] can be built: the loss is a cross-entropy of a `dot` whose left side has `seq`.
pub fn has_logits(model: &Model) -> bool {
    head(model).is_some()
}

/// The head product behind the loss: (contracted axes, hidden, weights).
fn head(model: &Model) -> Option<(&[checked::Axis], &Expr, &Expr)> {
    let ExprKind::CrossEntropy { logits, .. } = &model.loss.value.kind else { return None };
    let logits = match &logits.kind {
        ExprKind::Value(id) => model.body.iter().find_map(|s| match s {
            Statement::Let(l) if l.value == *id => Some(&l.expr),
            Statement::Let(_) | Statement::Aux(_) => None,
        })?,
        _ => logits,
    };
    match &logits.kind {
        ExprKind::Dot(over, x, w) if x.ty.has("seq") && !w.ty.has("seq") && x.ty.has("batch") => {
            Some((over, x, w))
        }
        _ => None,
    }
}

/// What random numbers are drawn from.
#[derive(Clone, Copy)]
pub(super) struct Random {
    /// The key of the step, i64[].
    key: ValueId,
    /// The number of the iteration of all repeats around, i64[]; absent outside of them.
    iteration: Option<ValueId>,
}

pub(super) struct Walk<'a> {
    pub(super) model: &'a Model,
    sources: &'a SourceMap,
    pub(super) b: Builder,
    /// Spec values to graph values, of the region being built.
    pub(super) values: BTreeMap<checked::ValueId, ValueId>,
    /// Routings made in the region being built.
    routings: BTreeMap<checked::ValueId, Routed>,
    /// Parameters as seen from the region being built.
    pub(super) params: BTreeMap<ParamId, ValueId>,
    path: Name,
    /// Replaces the size of the axis `batch`.
    batch: u64,
    /// What random numbers are drawn from, as seen from the region being built; absent where the entry draws none.
    pub(super) random: Option<Random>,
    /// How often each path has drawn random numbers.
    sites: BTreeMap<String, u32>,
    /// Auxiliary losses of the region being built: name in the log, value.
    aux: Vec<(Name, ValueId)>,
    /// Rules for values, by path; none inside of kernels of the user's own.
    pub(super) constraints: &'a BTreeMap<String, Constraint>,
    pub(super) errors: Vec<Diagnostic>,
}

impl Walk<'_> {
    fn axis(&self, axis: &checked::Axis) -> Axis {
        let size = if axis.name == "batch" { self.batch } else { axis.size };
        Axis::new(axis.name.as_str(), size)
    }

    fn ty(&self, ty: &checked::Type) -> Type {
        let dtype = match ty.elem {
            checked::Elem::Real => DType::F32,
            checked::Elem::Int => DType::I32,
            checked::Elem::Bool => DType::Bool,
        };
        Type::new(dtype, ty.axes.iter().map(|a| self.axis(a)).collect())
    }

    fn names(axes: &[checked::Axis]) -> Vec<Name> {
        axes.iter().map(|a| a.name.as_str().into()).collect()
    }

    /// Ops made from here on carry this place.
    pub(super) fn at(&mut self, span: Span) {
        let line = match self.sources.locate(span) {
            Some(place) => SpecLine { file: place.file.into(), line: place.line },
            None => SpecLine { file: "".into(), line: 0 },
        };
        self.b.origin = Origin { phase: Phase::Forward, path: self.path.clone(), line };
    }

    /// Notes an error and gives a value of the type that was wanted, so that the walk can go on and find more; the graph
    /// is thrown away in the end.
    fn fail(&mut self, span: Span, title: String, ty: &Type) -> ValueId {
        self.errors.push(Diagnostic::error(codes::NOT_AVAILABLE, title).at(span, ""));
        let zero = self.b.constant(ty.dtype, 0.0);
        self.b.broadcast(zero, ty)
    }

    /// All inputs and parameters, in order of declaration, as ops of the body.
    fn sources_of_model(&mut self) {
        for input in &self.model.inputs {
            self.at(input.span);
            let ty = self.ty(&input.ty);
            let value = self.b.input(&input.name, ty, input.bound.unwrap_or(0));
            let value = self.constrained(value, &input.name);
            self.values.insert(input.value, value);
        }
        for (i, param) in self.model.params.iter().enumerate() {
            self.at(param.span);
            let axes =
                param.repeats.iter().map(|r| &r.axis).chain(param.axes()).map(|a| self.axis(a)).collect();
            let init = match param.init {
                checked::Init::Constant(value) => Init::Constant(value),
                checked::Init::Normal { std } => Init::Normal { std },
                checked::Init::Uniform { low, high } => Init::Uniform { low, high },
            };
            let op = Op::Param { path: param.path.as_str().into(), init };
            let name = param.path.replace(".{", "_").replace('}', "").replace('.', "_");
            let value = self.b.one(op, &[], Some(Type::new(DType::F32, axes)), &name);
            self.params.insert(ParamId(i as u32), value);
        }
    }

    fn loss(&mut self, entry: Entry) {
        let model = self.model;
        self.statements(&model.body);
        let loss = &model.loss;
        let axes = Self::names(&loss.axes);
        let value = self.expr(&loss.value);
        let (sum, weight) = match &loss.weight {
            None => {
                self.at(loss.span);
                // Counted on the graph's own axes, so that it stays right when the batch is cut into microbatches.
                let one = self.b.constant(DType::F32, 1.0);
                let ones = self.b.broadcast(one, &self.b.ty(value).clone());
                let weight = self.b.reduce(ReduceOp::Sum, ones, &axes);
                (self.b.reduce(ReduceOp::Sum, value, &axes), weight)
            }
            Some(weight) => {
                let weight = self.expr(weight);
                self.at(loss.span);
                let full = self.b.ty(value).clone();
                let weight = self.b.broadcast(weight, &full);
                let weighted = self.b.mul(value, weight);
                (self.b.reduce(ReduceOp::Sum, weighted, &axes), self.b.reduce(ReduceOp::Sum, weight, &axes))
            }
        };
        let aux = std::mem::take(&mut self.aux);
        let (sum, aux) = match entry {
            Entry::Train => self.with_aux(sum, weight, aux),
            Entry::Eval | Entry::Logits => (sum, aux),
        };
        self.b.set_name(sum, "loss_sum");
        self.b.set_name(weight, "loss_weight");
        self.b.output(Output::Report("loss_sum".into()), sum);
        self.b.output(Output::Report("loss_weight".into()), weight);
        for (name, value) in aux {
            self.b.output(Output::Report(name), value);
        }
    }

    /// Adds `weight · aux` to the loss sum for every auxiliary loss: the sum stays what is differentiated and accumulated,
    /// and dividing it by the whole weight gives the mean loss plus the mean of aux over microbatches, each counted with
    /// its weight. Returns the sum and the weighted terms.
    fn with_aux(
        &mut self,
        mut sum: ValueId,
        weight: ValueId,
        aux: Vec<(Name, ValueId)>,
    ) -> (ValueId, Vec<(Name, ValueId)>) {
        let weighted: Vec<(Name, ValueId)> = aux
            .into_iter()
            .map(|(name, value)| {
                let term = self.b.mul(value, weight);
                (name, term)
            })
            .collect();
        for (_, term) in &weighted {
            sum = self.b.add(sum, *term);
        }
        (sum, weighted)
    }

    /// The hidden state at one position, then the head: no logits of other positions are computed.
    fn logits(&mut self) {
        let model = self.model;
        let Some((over, x, w)) = head(model) else {
            let none = Type::scalar(DType::F32);
            self.fail(model.loss.span, "no logits: the loss is not a cross-entropy of a dot".into(), &none);
            return;
        };
        self.statements(&model.body);
        let x = self.expr(x);
        let w = self.expr(w);
        let position = self.b.input("position", Type::scalar(DType::I32), 0);
        let at = self.b.one(Op::Gather { axis: "seq".into() }, &[x, position], None, "hidden");
        let logits = self.b.dot(at, w, &Self::names(over));
        let logits = self.b.reduce(ReduceOp::Sum, logits, &["batch".into()]);
        self.b.set_name(logits, "logits");
        self.b.output(Output::Report("logits".into()), logits);
    }

    fn statements(&mut self, body: &[Statement]) {
        for statement in body {
            match statement {
                Statement::Let(l) => {
                    if let ExprKind::Route(route) = &l.expr.kind {
                        let routed = self.route(&l.expr, route);
                        self.routings.insert(l.value, routed);
                        continue;
                    }
                    let made = self.expr(&l.expr);
                    let value = self.constrained(made, &l.path);
                    if value != made || !matches!(l.expr.kind, ExprKind::Value(_) | ExprKind::Param(_)) {
                        self.b.set_name(value, &l.name);
                    }
                    self.values.insert(l.value, value);
                }
                Statement::Aux(aux) => {
                    let value = self.expr(&aux.expr);
                    let name = Name::from(aux.log_name());
                    self.b.set_name(value, name.rsplit('.').next().unwrap_or("aux"));
                    self.aux.push((name, value));
                }
            }
        }
    }

    fn instance(&mut self, instance: &Instance, args: &[ValueId]) -> ValueId {
        let formal = instance.args.iter().zip(args);
        let args: Vec<ValueId> = formal
            .map(|(arg, value)| self.constrained(*value, &format!("{}.{}", instance.path, arg.name)))
            .collect();
        let result = match self.model.kernels.iter().find(|kernel| kernel.computes(instance)) {
            Some(kernel) => self.custom(kernel, instance, &args),
            None => self.written_out(instance, &args),
        };
        self.constrained(result, &instance.path)
    }

    pub(super) fn written_out(&mut self, instance: &Instance, args: &[ValueId]) -> ValueId {
        let outer = std::mem::replace(&mut self.path, instance.path.as_str().into());
        for (arg, value) in instance.args.iter().zip(args) {
            self.values.insert(arg.value, *value);
        }
        self.statements(&instance.body);
        let result = self.expr(&instance.result);
        self.path = outer;
        result
    }

    fn expr(&mut self, e: &Expr) -> ValueId {
        let ty = self.ty(&e.ty);
        match &e.kind {
            ExprKind::Const(value) => {
                self.at(e.span);
                self.b.constant(ty.dtype, *value)
            }
            ExprKind::Value(id) => self.values[id],
            ExprKind::Param(id) => self.params[id],
            ExprKind::Index => {
                self.at(e.span);
                let axis = ty.axes[0].clone();
                self.b.index(&axis.name, axis.size)
            }
            ExprKind::ToReal(x) => self.made(e, &[x], |b, v| b.cast(v[0], DType::F32)),
            ExprKind::ToInt(x) => self.made(e, &[x], |b, v| b.cast(v[0], DType::I32)),
            ExprKind::Unary(op, x) => self.made(e, &[x], |b, v| unary(b, *op, v[0])),
            ExprKind::Binary(op, x, y) => {
                self.made(e, &[x, y], |b, v| b.one(Op::Binary(binary(*op)), v, Some(ty), "t"))
            }
            ExprKind::Compare(op, x, y) => {
                self.made(e, &[x, y], |b, v| b.one(Op::Compare(compare(*op)), v, Some(ty), "t"))
            }
            ExprKind::Where(c, x, y) => self.made(e, &[c, x, y], |b, v| b.one(Op::Select, v, Some(ty), "t")),
            ExprKind::Rename(x, pairs) => {
                let pairs: Vec<(Name, Name)> =
                    pairs.iter().map(|(a, b)| (a.as_str().into(), b.as_str().into())).collect();
                self.made(e, &[x], |b, v| b.rename(v[0], &pairs))
            }
            ExprKind::Reduce(op, axes, x) => {
                let axes = Self::names(axes);
                self.made(e, &[x], |b, v| reduce(b, *op, v[0], &axes))
            }
            ExprKind::Softmax(axis, x) => {
                let axis = axis.name.as_str().into();
                self.checked(e, &[x], |b, v| b.softmax(v[0], &axis))
            }
            ExprKind::Dropout { x, rate } => self.dropout(e, x, *rate),
            ExprKind::Dot(over, x, y) => {
                let over = Self::names(over);
                self.made(e, &[x, y], |b, v| b.one(Op::Dot { over }, v, Some(ty), "t"))
            }
            ExprKind::Gather { axis, table, ids } => {
                let axis = axis.name.as_str().into();
                self.made(e, &[table, ids], |b, v| b.one(Op::Gather { axis }, v, Some(ty), "t"))
            }
            ExprKind::Rope(rope) => {
                let pairs = if rope.interleaved { Pairs::Interleaved } else { Pairs::Half };
                let axis = rope.axis.name.as_str().into();
                let scaling = rope.scaling.map(|s| RopeScaling {
                    factor: s.factor,
                    low: s.low,
                    high: s.high,
                    original: s.original,
                });
                self.checked(e, &[&rope.x, &rope.at], |b, v| {
                    b.scaled_rope(v[0], v[1], &axis, rope.theta, pairs, scaling)
                })
            }
            ExprKind::Slice { x, from, to, at } => {
                let op = Op::Slice { from: from.name.as_str().into(), to: to.name.as_str().into(), at: *at };
                self.made(e, &[x], |b, v| b.one(op, v, Some(ty), "part"))
            }
            ExprKind::Concat { axis, parts } => self.concat(e, axis, parts, ty),
            ExprKind::CrossEntropy { axis, logits, targets } => {
                let axis = axis.name.as_str().into();
                self.checked(e, &[logits, targets], |b, v| Ok(b.cross_entropy(v[0], v[1], &axis)?.0))
            }
            ExprKind::RmsNorm { axis, x, weight, eps } => {
                let w = self.filled(weight.as_deref(), axis, 1.0);
                let axis = axis.name.as_str().into();
                self.checked(e, &[x], |b, v| Ok(b.rms_norm(v[0], w, &axis, *eps)?.0))
            }
            ExprKind::LayerNorm { axis, x, weight, bias, eps } => {
                let w = self.filled(weight.as_deref(), axis, 1.0);
                let bias = self.filled(bias.as_deref(), axis, 0.0);
                let axis = axis.name.as_str().into();
                self.checked(e, &[x], |b, v| Ok(b.layer_norm(v[0], w, bias, &axis, *eps)?.0))
            }
            ExprKind::Attend(attend) => self.attend(e, attend),
            // A routing is no tensor; the checker lets it stand only where `statements` takes it.
            ExprKind::Route(route) => self.expr(&route.gates),
            ExprKind::Dispatch(r, x) => {
                let r = self.routings[r].clone();
                self.made(e, &[x], |b, v| b.dispatch(v[0], &r, &ty))
            }
            ExprKind::Combine(r, h) => {
                let r = self.routings[r].clone();
                self.made(e, &[h], |b, v| b.combine(v[0], &r, &ty))
            }
            ExprKind::GroupedDot { routing, over, x, w } => {
                let (r, over) = (self.routings[routing].clone(), Self::names(over));
                self.checked(e, &[x, w], |b, v| b.dot_by_owner(v[0], v[1], &r, &over))
            }
            ExprKind::LoadBalance { routing, over, first } => {
                let (r, over) = (self.routings[routing].clone(), Self::names(over));
                self.made(e, &[], |b, _| b.load_balance(&r, &over, *first))
            }
            ExprKind::ZLoss(axis, x) => {
                let axis = axis.name.as_str().into();
                self.made(e, &[x], |b, v| b.z_loss(v[0], &axis))
            }
            ExprKind::Call(instance, args) => {
                let args: Vec<ValueId> = args.iter().map(|a| self.expr(a)).collect();
                self.instance(instance, &args)
            }
            ExprKind::Repeat(repeat) => self.repeat(e, repeat),
        }
    }

    /// Builds the operands, then the op under the expression's own place.
    fn made(
        &mut self,
        e: &Expr,
        operands: &[&Expr],
        make: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
    ) -> ValueId {
        let values: Vec<ValueId> = operands.iter().map(|o| self.expr(o)).collect();
        self.at(e.span);
        make(&mut self.b, &values)
    }

    /// As [`Walk::made`] for ops whose fit only the graph's own rules can tell.
    fn checked(
        &mut self,
        e: &Expr,
        operands: &[&Expr],
        make: impl FnOnce(&mut Builder, &[ValueId]) -> Result<ValueId, ShapeError>,
    ) -> ValueId {
        let values: Vec<ValueId> = operands.iter().map(|o| self.expr(o)).collect();
        self.at(e.span);
        let ty = self.ty(&e.ty);
        make(&mut self.b, &values).unwrap_or_else(|error| self.fail(e.span, error.message, &ty))
    }

    /// An optional vector over an axis, or a constant in its place.
    fn filled(&mut self, given: Option<&Expr>, axis: &checked::Axis, value: f64) -> ValueId {
        match given {
            Some(e) => self.expr(e),
            None => {
                let ty = Type::new(DType::F32, vec![self.axis(axis)]);
                let c = self.b.constant(DType::F32, value);
                self.b.broadcast(c, &ty)
            }
        }
    }

    fn route(&mut self, e: &Expr, route: &checked::Route) -> Routed {
        let gates = self.expr(&route.gates);
        let select = route.select.as_ref().map_or(gates, |s| self.expr(s));
        self.at(e.span);
        let routing = &route.routing;
        let packing = match &routing.packing {
            checked::Packing::Slots(slot) => routing::Places::Slots(self.axis(slot)),
            checked::Packing::Rows { row, tile } => {
                routing::Places::Rows { row: self.axis(row), tile: *tile }
            }
        };
        self.b.route(RouteParts {
            gates,
            select,
            tokens: routing.tokens.name.as_str().into(),
            expert: routing.expert.name.as_str().into(),
            k: route.k,
            normalise: route.normalise,
            places: packing,
        })
    }

    /// Parts that lack an axis are repeated along it.
    fn concat(
        &mut self,
        e: &Expr,
        axis: &checked::Axis,
        parts: &[(checked::Axis, Expr)],
        ty: Type,
    ) -> ValueId {
        let operands: Vec<ValueId> = parts.iter().map(|(_, x)| self.expr(x)).collect();
        self.at(e.span);
        let whole: Name = axis.name.as_str().into();
        let mut repeated = Vec::new();
        for ((part, _), x) in parts.iter().zip(operands) {
            let axes = ty.axes.iter().map(|a| if a.name == whole { self.axis(part) } else { a.clone() });
            let full = Type::new(self.b.ty(x).dtype, axes.collect());
            repeated.push(self.b.broadcast(x, &full));
        }
        let names = Self::names(&parts.iter().map(|(a, _)| a.clone()).collect::<Vec<_>>());
        self.b.one(Op::Concat { parts: names, axis: whole }, &repeated, Some(ty), "whole")
    }

    /// Written out, then made whole again: what the score is made of joins its region however it is called.
    fn attend(&mut self, e: &Expr, a: &checked::Attend) -> ValueId {
        let [q, k, v] = [&a.q, &a.k, &a.v].map(|x| self.expr(x));
        let [bias, mask] = [&a.bias, &a.mask].map(|x| x.as_ref().map(|x| self.expr(x)));
        let window = match a.window.as_ref() {
            Some(w) if constant(w) == Some(f64::INFINITY) => None,
            w => w.map(|w| self.expr(w)),
        };
        self.at(e.span);
        let [query, key, head] = [&a.query, &a.key, &a.head].map(|x| Name::from(x.name.as_str()));
        let over = vec![head];
        let b = &mut self.b;
        let product = b.dot(q, k, &over);
        let mut score = b.scale(product, a.scale);
        if let Some(cap) = a.soft_cap {
            let inner = b.scale(score, 1.0 / cap);
            let tanh = b.unary(UnaryOp::Tanh, inner);
            score = b.scale(tanh, cap);
        }
        if let Some(bias) = bias {
            score = b.add(score, bias);
        }
        let seen = [attend_window(b, product, &query, &key, a.causal, window), mask];
        for seen in seen.into_iter().flatten() {
            let never = b.constant(DType::F32, f64::NEG_INFINITY);
            score = b.select(seen, score, never);
        }
        let is_whole = !self.model.lower_reference.iter().any(|name| name == "attention");
        let formula = Formula { q, k, v, query, key: key.clone(), over, product, score };
        if is_whole && let Ok(o) = attention_of(&mut self.b, &formula) {
            return o;
        }
        let ty = self.ty(&e.ty);
        let b = &mut self.b;
        let p = b.softmax(score, &key).expect("the product has the key axis");
        b.one(Op::Dot { over: vec![key] }, &[p, v], Some(ty), "o")
    }

    /// The identity where nothing is drawn. The mask is keyed by the place in the text, which is the path of the block
    /// and how many draws came before it there.
    fn dropout(&mut self, e: &Expr, x: &Expr, rate: f64) -> ValueId {
        let x = self.expr(x);
        let Some(random) = self.random else { return x };
        self.at(e.span);
        let count = self.sites.entry(self.path.to_string()).or_insert(0);
        let site = format!("{}.dropout.{count}", self.path);
        *count += 1;
        let key = self.b.site_key(random.key, &site);
        self.b.dropout(x, rate, key, random.iteration)
    }

    /// Whether any of these draws random numbers, in itself or in a block it calls.
    pub(super) fn draws(&self, body: &[Statement], exprs: &[&Expr]) -> bool {
        let statements = body.iter().map(|s| match s {
            Statement::Let(l) => &l.expr,
            Statement::Aux(a) => &a.expr,
        });
        statements.chain(exprs.iter().copied()).any(|e| self.draws_in(e))
    }

    fn draws_in(&self, e: &Expr) -> bool {
        let within = match &e.kind {
            ExprKind::Dropout { .. } => true,
            ExprKind::Call(instance, _) => self.draws(&instance.body, &[&instance.result]),
            ExprKind::Repeat(r) => self.draws(&r.body.body, &[&r.body.result]),
            _ => false,
        };
        within || operands(e).into_iter().any(|x| self.draws_in(x))
    }

    fn repeat(&mut self, e: &Expr, r: &checked::Repeat) -> ValueId {
        let init = self.expr(&r.init);
        let invariants: Vec<ValueId> = r.invariants.iter().map(|i| self.expr(i)).collect();
        self.at(e.span);
        let outer_random = self.random;
        let inner_random = self.random.filter(|_| self.draws(&r.body.body, &[&r.body.result]));
        let axis: Name = r.dim.axis.name.as_str().into();
        let mut used = BTreeSet::new();
        params_of(&r.body, &mut used);
        let (stacked, whole): (Vec<ParamId>, Vec<ParamId>) = used
            .into_iter()
            .partition(|p| self.b.ty(self.params[p]).has(&axis) && self.is_stacked(*p, &r.dim));

        let mut operands = vec![init];
        operands.extend(stacked.iter().map(|p| self.params[p]));
        operands.extend(&invariants);
        operands.extend(whole.iter().map(|p| self.params[p]));
        operands.extend(
            inner_random.iter().flat_map(|random| std::iter::once(random.key).chain(random.iteration)),
        );
        let mut args: Vec<(Name, Type)> = vec![("i".into(), Type::scalar(DType::I32))];
        for (n, v) in operands.iter().enumerate() {
            let mut ty = self.b.ty(*v).clone();
            if (1..=stacked.len()).contains(&n) {
                ty = ty.without(std::slice::from_ref(&axis));
            }
            let formal = match n.checked_sub(1 + stacked.len()) {
                None if n == 0 => r.body.args.first(),
                None => None,
                Some(i) => r.body.args.get(1 + i).filter(|_| i < invariants.len()),
            };
            let name = formal.map_or_else(|| self.b.graph.value_name(*v).clone(), |f| f.name.as_str().into());
            args.push((name, ty));
        }
        let (body, values) = self.b.open(&args);
        let outer_params = self.params.clone();
        let outer_values = std::mem::take(&mut self.values);
        let outer_routings = std::mem::take(&mut self.routings);
        let outer_aux = std::mem::take(&mut self.aux);
        for (n, p) in stacked.iter().enumerate() {
            self.params.insert(*p, values[2 + n]);
        }
        let first_invariant = 2 + stacked.len();
        for (n, p) in whole.iter().enumerate() {
            self.params.insert(*p, values[first_invariant + invariants.len() + n]);
        }
        let outer_path = std::mem::replace(&mut self.path, r.body.path.as_str().into());
        self.random = inner_random.map(|_| {
            let mut from_outside = values[first_invariant + invariants.len() + whole.len()..].iter().copied();
            let key = from_outside.next().expect("passed in above");
            let iteration = self.b.iteration(from_outside.next(), values[0], r.dim.axis.size);
            Random { key, iteration: Some(iteration) }
        });
        for cycled in &r.cycled {
            self.at(cycled.span);
            let value = per_iteration(&mut self.b, values[0], &cycled.values);
            self.values.insert(cycled.value, value);
        }
        self.path = outer_path;
        let mut inner = vec![values[1]];
        inner.extend(&values[first_invariant..first_invariant + invariants.len()]);
        let result = self.instance(&r.body, &inner);
        // The carry keeps the order of axes it came in with; auxiliary losses are sums over the iterations.
        let aux = std::mem::replace(&mut self.aux, outer_aux);
        self.b.close([result].into_iter().chain(aux.iter().map(|(_, value)| *value)).collect());
        self.params = outer_params;
        self.values = outer_values;
        self.random = outer_random;
        self.routings = outer_routings;
        self.at(e.span);
        let l = Loop {
            axis,
            trip: r.dim.axis.size,
            block: None,
            reverse: false,
            microbatches: false,
            carries: 1,
            stacked: stacked.len(),
            stacked_outs: 0,
            body,
        };
        let results = self.b.repeat(l, &operands, "x");
        for ((name, _), sum) in aux.into_iter().zip(&results[1..]) {
            self.b.set_name(*sum, &format!("{}.sum", name.rsplit('.').next().unwrap_or("aux")));
            self.aux.push((name, *sum));
        }
        results[0]
    }

    /// Whether the loop is the parameter's own next repeat (and not a tensor axis of the same name).
    fn is_stacked(&self, p: ParamId, dim: &checked::RepeatDim) -> bool {
        self.model.param(p).repeats.iter().any(|r| r == dim)
    }
}

/// Which keys a query sees: none after it if `causal`, none `window` or more before it.
fn attend_window(
    b: &mut Builder,
    product: ValueId,
    query: &Name,
    key: &Name,
    causal: bool,
    window: Option<ValueId>,
) -> Option<ValueId> {
    let [at, of] = [query, key].map(|axis| {
        let size = b.ty(product).size_of(axis).expect("the product has both position axes");
        b.index(axis, size)
    });
    let ty = shape::union_type(DType::Bool, &[b.ty(at), b.ty(of)]);
    let causal = causal.then(|| b.one(Op::Compare(CompareOp::Le), &[of, at], Some(ty), "causal"));
    let near = window.map(|window| {
        let distance = b.binary_union(BinaryOp::Sub, at, of);
        let distance = b.cast(distance, DType::F32);
        b.compare(CompareOp::Lt, distance, window)
    });
    match (causal, near) {
        (Some(x), Some(y)) => Some(b.binary(BinaryOp::And, x, y)),
        (x, y) => x.or(y),
    }
}

/// Parameters an instance uses, in its body or deeper.
pub(super) fn params_of(instance: &Instance, into: &mut BTreeSet<ParamId>) {
    for statement in &instance.body {
        match statement {
            Statement::Let(l) => params_in(&l.expr, into),
            Statement::Aux(a) => params_in(&a.expr, into),
        }
    }
    params_in(&instance.result, into);
}

fn params_in(e: &Expr, into: &mut BTreeSet<ParamId>) {
    match &e.kind {
        ExprKind::Param(id) => {
            into.insert(*id);
        }
        ExprKind::Const(_) | ExprKind::Value(_) | ExprKind::Index => {}
        ExprKind::ToReal(x)
        | ExprKind::ToInt(x)
        | ExprKind::Unary(_, x)
        | ExprKind::Rename(x, _)
        | ExprKind::Reduce(_, _, x)
        | ExprKind::Softmax(_, x)
        | ExprKind::ZLoss(_, x)
        | ExprKind::Slice { x, .. }
        | ExprKind::Dispatch(_, x)
        | ExprKind::Combine(_, x) => params_in(x, into),
        ExprKind::LoadBalance { .. } => {}
        ExprKind::GroupedDot { x, w, .. } => {
            params_in(x, into);
            params_in(w, into);
        }
        ExprKind::Route(r) => {
            params_in(&r.gates, into);
            r.select.iter().for_each(|x| params_in(x, into));
        }
        ExprKind::Concat { parts, .. } => parts.iter().for_each(|(_, x)| params_in(x, into)),
        ExprKind::Binary(_, x, y) | ExprKind::Compare(_, x, y) | ExprKind::Dot(_, x, y) => {
            params_in(x, into);
            params_in(y, into);
        }
        ExprKind::Where(c, x, y) => [c, x, y].into_iter().for_each(|x| params_in(x, into)),
        ExprKind::Gather { table, ids, .. } => [table, ids].into_iter().for_each(|x| params_in(x, into)),
        ExprKind::Dropout { x, .. } => params_in(x, into),
        ExprKind::Rope(r) => [&r.x, &r.at].into_iter().for_each(|x| params_in(x, into)),
        ExprKind::CrossEntropy { logits, targets, .. } => {
            [logits, targets].into_iter().for_each(|x| params_in(x, into));
        }
        ExprKind::RmsNorm { x, weight, .. } => {
            params_in(x, into);
            weight.iter().for_each(|w| params_in(w, into));
        }
        ExprKind::LayerNorm { x, weight, bias, .. } => {
            params_in(x, into);
            weight.iter().chain(bias).for_each(|w| params_in(w, into));
        }
        ExprKind::Attend(a) => {
            [&a.q, &a.k, &a.v].into_iter().for_each(|x| params_in(x, into));
            a.window.iter().chain(&a.mask).chain(&a.bias).for_each(|x| params_in(x, into));
        }
        ExprKind::Call(instance, args) => {
            args.iter().for_each(|x| params_in(x, into));
            params_of(instance, into);
        }
        ExprKind::Repeat(r) => {
            params_in(&r.init, into);
            r.invariants.iter().for_each(|x| params_in(x, into));
            params_of(&r.body, into);
        }
    }
}

fn constant(e: &Expr) -> Option<f64> {
    match e.kind {
        ExprKind::Const(value) => Some(value),
        _ => None,
    }
}

/// `values[index]` as a chain of selects over one period of the list.
fn per_iteration(b: &mut Builder, index: ValueId, values: &[f64]) -> ValueId {
    let n = values.len();
    let period =
        (1..=n).find(|p| n.is_multiple_of(*p) && (0..n).all(|i| values[i] == values[i % p])).unwrap_or(n);
    let size = b.constant(DType::I32, period as f64);
    let phase = b.binary(BinaryOp::Rem, index, size);
    let mut value = b.constant(DType::F32, values[period - 1]);
    for (i, v) in values[..period - 1].iter().enumerate() {
        let here = b.constant(DType::I32, i as f64);
        let is_here = b.compare(CompareOp::Eq, phase, here);
        let v = b.constant(DType::F32, *v);
        value = b.select(is_here, v, value);
    }
    value
}

fn reduce(b: &mut Builder, op: checked::ReduceOp, x: ValueId, axes: &[Name]) -> ValueId {
    match op {
        checked::ReduceOp::Sum => b.reduce(ReduceOp::Sum, x, axes),
        checked::ReduceOp::Max => b.reduce(ReduceOp::Max, x, axes),
        checked::ReduceOp::Min => b.reduce(ReduceOp::Min, x, axes),
        // The batch may be cut into microbatches.
        checked::ReduceOp::Mean if axes.iter().any(|a| a.as_str() == "batch") => b.counted_mean(x, axes),
        checked::ReduceOp::Mean => b.mean(x, axes),
    }
}

fn unary(b: &mut Builder, op: checked::UnaryOp, x: ValueId) -> ValueId {
    use checked::UnaryOp as S;
    match op {
        S::Neg => b.unary(UnaryOp::Neg, x),
        S::Abs => b.unary(UnaryOp::Abs, x),
        S::Exp => b.unary(UnaryOp::Exp, x),
        S::Log => b.unary(UnaryOp::Log, x),
        S::Sqrt => b.unary(UnaryOp::Sqrt, x),
        S::Rsqrt => b.unary(UnaryOp::Rsqrt, x),
        S::Tanh => b.unary(UnaryOp::Tanh, x),
        S::Sigmoid => b.unary(UnaryOp::Sigmoid, x),
        S::Sin => b.unary(UnaryOp::Sin, x),
        S::Cos => b.unary(UnaryOp::Cos, x),
        S::Erf => b.unary(UnaryOp::Erf, x),
        S::Floor => b.unary(UnaryOp::Floor, x),
        S::Not => b.unary(UnaryOp::Not, x),
        S::Silu => b.silu(x),
        S::GeluErf => b.gelu_erf(x),
        S::GeluTanh => b.gelu_tanh(x),
        S::Relu => {
            let zero = b.constant(b.ty(x).dtype, 0.0);
            b.binary(BinaryOp::Max, x, zero)
        }
    }
}

fn binary(op: checked::BinaryOp) -> BinaryOp {
    use checked::BinaryOp as S;
    match op {
        S::Add => BinaryOp::Add,
        S::Sub => BinaryOp::Sub,
        S::Mul => BinaryOp::Mul,
        S::Div => BinaryOp::Div,
        S::Max => BinaryOp::Max,
        S::Min => BinaryOp::Min,
        S::And => BinaryOp::And,
        S::Or => BinaryOp::Or,
    }
}

fn compare(op: checked::CompareOp) -> CompareOp {
    use checked::CompareOp as S;
    match op {
        S::Lt => CompareOp::Lt,
        S::Le => CompareOp::Le,
        S::Gt => CompareOp::Gt,
        S::Ge => CompareOp::Ge,
        S::Eq => CompareOp::Eq,
        S::Ne => CompareOp::Ne,
    }
}
