//! The statements of a model.

use std::collections::{BTreeMap, BTreeSet};

use super::choose::Chosen;
use super::scope::{Binding, Scope};
use crate::spec::ast::{self, Dim, Dims, Expr as AstExpr, ExprKind as AstKind, Ident, Statement as Stmt};
use crate::spec::checked::*;
use crate::spec::codes::{self, Code};
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::source::Span;

/// Largest size of an axis.
pub const MAX_SIZE: u64 = 1 << 48;
/// Largest number of elements of one tensor.
pub const MAX_NUMEL: u64 = 1 << 62;
/// Deepest nesting of block instances.
pub const MAX_INSTANCE_DEPTH: usize = 48;
/// Deepest nesting of expressions, summed over the instances around them.
pub const MAX_TOTAL_DEPTH: usize = 192;
/// Most expression nodes a model may expand to.
pub const MAX_NODES: u64 = 1_000_000;

/// Sizes that the run gives.
#[derive(Clone, Copy, Debug)]
pub struct RunSizes {
    /// Sequences processed at once.
    pub batch: u64,
    /// Tokens per sequence.
    pub seq: u64,
    /// Where the run says so; `None` for placeholders.
    pub span: Option<(Span, Span)>,
}

/// State while one model is checked.
pub struct Checker<'a> {
    pub(super) found: Vec<Diagnostic>,
    pub(super) blocks: &'a BTreeMap<String, &'a ast::Block>,
    /// Blocks that contain themselves; never instantiated.
    pub(super) recursive: BTreeSet<String>,
    /// Blocks instantiated at least once.
    pub(super) instantiated: BTreeSet<String>,
    pub(super) sizes: Vec<Size>,
    pub(super) consts: Vec<Const>,
    pub(super) params: Vec<Param>,
    /// Repeats around the body being checked, outermost first.
    pub(super) repeats: Vec<RepeatDim>,
    /// Names of values at the top of the model, for messages about closed blocks.
    pub(super) model_values: BTreeSet<String>,
    /// Nesting of instances.
    pub(super) depth: usize,
    /// Nesting of expressions, over all instances.
    pub(super) expr_depth: usize,
    nodes: u64,
    next_value: u32,
    too_large: bool,
}

/// Checks a model; `None` if it can't be used after errors.
pub fn check_model(chosen: &Chosen<'_>, run: RunSizes, found: &mut Vec<Diagnostic>) -> Option<Model> {
    let mut checker = Checker::new(&chosen.blocks);
    let model = checker.model(chosen, run);
    found.append(&mut checker.found);
    model
}

impl<'a> Checker<'a> {
    /// A checker that has seen nothing yet.
    pub fn new(blocks: &'a BTreeMap<String, &'a ast::Block>) -> Self {
        Checker {
            found: vec![],
            blocks,
            recursive: BTreeSet::new(),
            instantiated: BTreeSet::new(),
            sizes: vec![],
            consts: vec![],
            params: vec![],
            repeats: vec![],
            model_values: BTreeSet::new(),
            depth: 0,
            expr_depth: 0,
            nodes: 0,
            next_value: 0,
            too_large: false,
        }
    }

    pub(super) fn report(&mut self, diagnostic: Diagnostic) {
        self.found.push(diagnostic);
    }

    pub(super) fn error(
        &mut self,
        code: Code,
        title: impl Into<String>,
        span: Span,
        label: impl Into<String>,
    ) {
        self.found.push(Diagnostic::error(code, title).at(span, label));
    }

    pub(super) fn new_value(&mut self) -> ValueId {
        self.next_value += 1;
        ValueId(self.next_value - 1)
    }

    /// Counts an expression node; false once the model is too large.
    pub(super) fn count_node(&mut self, span: Span) -> bool {
        self.nodes += 1;
        if self.nodes > MAX_NODES && !self.too_large {
            self.too_large = true;
            let title = format!("the model expands to more expressions than the limit: {MAX_NODES}");
            self.report(
                Diagnostic::error(codes::TOO_LARGE, title)
                    .at(span, "reached here")
                    .help("use `repeat` where blocks are called one after the other"),
            );
        }
        !self.too_large
    }

    fn model(&mut self, chosen: &Chosen<'a>, run: RunSizes) -> Option<Model> {
        let model = chosen.model;
        self.declarations(chosen, run);
        self.unused_sizes(chosen);
        self.find_recursion();
        self.model_values = model_values(&model.body);
        let mut scope = Scope::default();
        let mut inputs = vec![];
        let mut body = vec![];
        let mut loss: Option<Loss> = None;
        let mut loss_seen: Option<Span> = None;
        let mut lower_reference = vec![];
        for statement in &model.body.statements {
            match statement {
                Stmt::Sizes(..) | Stmt::Consts(..) | Stmt::Block(_) | Stmt::Names(_) => {}
                Stmt::Input(input) => inputs.extend(self.input(&mut scope, input)),
                Stmt::Params(params) => self.param_statement(&mut scope, params),
                Stmt::Let(l) => body.extend(self.let_statement(&mut scope, l).map(Statement::Let)),
                Stmt::Aux(b, _) => body.extend(self.aux_statement(&mut scope, b).map(Statement::Aux)),
                Stmt::Loss(e, span) => {
                    if let Some(first) = loss_seen {
                        self.report(
                            Diagnostic::error(codes::LOSS, "the model has two losses")
                                .at(*span, "a second one")
                                .and(first, "the first one")
                                .help("add the two in one expression, or make the smaller one an `aux`"),
                        );
                        continue;
                    }
                    loss_seen = Some(*span);
                    loss = self.loss(&mut scope, e, *span);
                }
                Stmt::Lower(l) => lower_reference.extend(self.lower(&l.section)),
                Stmt::Kernel(k) => self.report(super::not_applied("kernel", k.span)),
                Stmt::Manual(m) => self.manual(m),
                Stmt::Yield(y) => self.report(
                    Diagnostic::error(codes::PLACE, "an expression without a name")
                        .at(y.value.span, "nothing uses this value")
                        .help("give it a name, `y = …`, or make it the `loss`"),
                ),
            }
        }
        if loss_seen.is_none() {
            self.report(
                Diagnostic::error(codes::LOSS, "the model has no loss")
                    .at(model.name.span, "this model")
                    .help("end it with `loss mean[batch, seq](…)`"),
            );
        }
        self.uninstantiated_blocks(chosen);
        let mut names = vec![];
        // Unresolved parameters would make every table look incomplete.
        if !self.found.iter().any(Diagnostic::is_error) {
            for statement in &model.body.statements {
                if let Stmt::Names(table) = statement {
                    names.extend(self.name_table(table));
                }
            }
        }
        Some(Model {
            name: chosen.name.clone(),
            sizes: std::mem::take(&mut self.sizes),
            consts: std::mem::take(&mut self.consts),
            inputs,
            params: std::mem::take(&mut self.params),
            body,
            loss: loss?,
            names,
            n_values: self.next_value,
            lower_reference,
            span: model.name.span,
        })
    }

    // ---- sizes and constants

    fn declarations(&mut self, chosen: &Chosen<'a>, run: RunSizes) {
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

    fn size(&mut self, binding: &ast::Binding, run: RunSizes) {
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

    fn size_override(&mut self, binding: &ast::Binding, value: &ast::Value) {
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

    fn constant(&mut self, binding: &ast::Binding) {
        let value = self.constant_value(&mut Scope::default(), &binding.value).unwrap_or(0.0);
        let (name, span) = (binding.name.name.clone(), binding.name.span);
        self.consts.push(Const { name, value, origin: binding.value.span, span });
    }

    fn constant_override(&mut self, binding: &ast::Binding, value: &ast::Value) {
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

    /// A size no axis and no expression of the model names.
    fn unused_sizes(&mut self, chosen: &Chosen<'_>) {
        let mut used = BTreeSet::new();
        for statement in &chosen.model.body.statements {
            words_of_statement(statement, &mut used);
        }
        for block in chosen.blocks.values() {
            words_of_block(block, &mut used);
        }
        let unused: Vec<(String, Span)> =
            self.sizes.iter().filter(|s| !used.contains(&s.name)).map(|s| (s.name.clone(), s.span)).collect();
        for (name, span) in unused {
            self.report(
                Diagnostic::error(codes::UNUSED_SIZE, format!("unused size: `{name}`"))
                    .at(span, "no tensor has this axis and no expression names it")
                    .help("remove it, or use it"),
            );
        }
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

    fn size_arithmetic(&mut self, scope: &Scope, e: &AstExpr) -> Option<i128> {
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

    fn unknown_axis(&mut self, scope: &Scope, name: &Ident) {
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

    // ---- definitions

    pub(super) fn duplicate(&mut self, name: &Ident, first: Span) {
        self.report(
            Diagnostic::error(codes::DUPLICATE, format!("`{}` is defined twice", name.name))
                .at(name.span, "defined again")
                .and(first, "first defined here"),
        );
    }

    /// Enters a name into a scope unless it is taken.
    pub(super) fn define(&mut self, scope: &mut Scope, name: &Ident, binding: Binding) {
        if let Some((_, first)) = scope.names.get(&name.name) {
            let first = *first;
            self.duplicate(name, first);
            return;
        }
        let constant = self.consts.iter().find(|c| c.name == name.name).map(|c| c.span);
        let size = self.sizes.iter().find(|s| s.name == name.name).map(|s| s.span);
        if let Some(first) = constant.or(size).filter(|_| scope.path.is_empty()) {
            self.duplicate(name, first);
        }
        scope.names.insert(name.name.clone(), (binding, name.span));
    }

    fn input(&mut self, scope: &mut Scope, input: &ast::Input) -> Option<Input> {
        let axes = match &input.dims {
            Some(dims) => self.plain_dims(scope, dims),
            None => Some(vec![]),
        };
        let elem = self.elem_type(scope, input.elem.as_ref());
        let (Some(axes), Some((elem, bound))) = (axes, elem) else {
            self.define(scope, &input.name, Binding::Poison);
            return None;
        };
        self.check_numel(&axes, input.span);
        let (value, ty) = (self.new_value(), Type { elem, axes });
        self.define(scope, &input.name, Binding::Value(value, ty.clone()));
        Some(Input { name: input.name.name.clone(), value, ty, bound, span: input.name.span })
    }

    pub(super) fn elem_type(
        &mut self,
        scope: &Scope,
        e: Option<&ast::ElemType>,
    ) -> Option<(Elem, Option<u64>)> {
        let Some(e) = e else { return Some((Elem::Real, None)) };
        match e.name.name.as_str() {
            "ids" => match &e.bound {
                Some(bound) => Some((Elem::Int, Some(self.size_value(scope, bound)?))),
                None => {
                    self.report(
                        Diagnostic::error(codes::ARGUMENTS, "ids need the size they index")
                            .at(e.name.span, "expected `ids<vocab>`"),
                    );
                    None
                }
            },
            "real" => Some((Elem::Real, None)),
            "int" => Some((Elem::Int, None)),
            "bool" => Some((Elem::Bool, None)),
            other => {
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown element type: `{other}`"))
                        .at(e.name.span, "expected `ids<…>`, `int`, `bool` or `real`");
                if let Some(near) = nearest(other, ["ids", "int", "bool", "real"]) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                } else if ["f32", "bf16", "f16", "f64"].contains(&other) {
                    diagnostic =
                        diagnostic.help("widths are chosen by `precision` in the run, not in the model");
                }
                self.report(diagnostic);
                None
            }
        }
    }

    pub(super) fn param_statement(&mut self, scope: &mut Scope, statement: &ast::Params) {
        let init = self.init(scope, &statement.init);
        for p in &statement.params {
            let inputs = self.axes(scope, &p.inputs);
            let outputs = self.axes(scope, p.outputs.as_deref().unwrap_or_default());
            let (Some(inputs), Some(outputs), Some(init)) = (inputs, outputs, init) else {
                self.define(scope, &p.name, Binding::Poison);
                continue;
            };
            if let Some(both) = outputs.iter().find(|a| inputs.iter().any(|b| b.name == a.name)) {
                let title = format!("the axis `{}` appears twice", both.name);
                self.report(
                    Diagnostic::error(codes::AXIS_TWICE, title)
                        .at(p.span, "on both sides of the arrow")
                        .help(format!(
                            "declare a second size with another name, such as `{}_out`",
                            both.name
                        )),
                );
                self.define(scope, &p.name, Binding::Poison);
                continue;
            }
            let axes: Vec<Axis> = inputs.iter().chain(&outputs).cloned().collect();
            let stacked: Vec<Axis> =
                self.repeats.iter().map(|r| r.axis.clone()).chain(axes.iter().cloned()).collect();
            self.check_numel(&stacked, p.span);
            let id = ParamId(self.params.len() as u32);
            let path = scope.path_of(&p.name.name);
            self.params.push(Param {
                path,
                repeats: self.repeats.clone(),
                inputs,
                outputs,
                init,
                span: p.name.span,
            });
            self.define(scope, &p.name, Binding::Param(id, Type { elem: Elem::Real, axes }));
        }
    }

    /// `ones`, `zeros`, `normal(std)`, `uniform(low, high)`, `constant(c)`.
    fn init(&mut self, scope: &mut Scope, e: &AstExpr) -> Option<Init> {
        const KNOWN: [&str; 5] = ["ones", "zeros", "normal", "uniform", "constant"];
        let AstKind::Ref(r) = &e.kind else {
            self.error(
                codes::KIND,
                "not an initial value",
                e.span,
                "expected `ones`, `zeros`, `normal(std)`, …",
            );
            return None;
        };
        let name = r.path.name.as_str();
        let args = r.args.as_deref().unwrap_or_default();
        let wanted = match name {
            "ones" | "zeros" => 0,
            "normal" | "constant" => 1,
            "uniform" => 2,
            _ => {
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown initial value: `{name}`")).at(
                        r.path.span,
                        "expected `ones`, `zeros`, `normal(std)`, `uniform(low, high)` or `constant(c)`",
                    );
                if let Some(near) = nearest(name, KNOWN) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                }
                self.report(diagnostic);
                return None;
            }
        };
        if args.len() != wanted || args.iter().any(|a| a.name.is_some()) {
            let title = format!("`{name}` takes {wanted} numbers, found {}", args.len());
            self.error(codes::ARGUMENTS, title, e.span, "");
            return None;
        }
        let mut numbers = vec![];
        for arg in args {
            numbers.push(self.constant_value(scope, &arg.value)?);
        }
        Some(match name {
            "ones" => Init::Constant(1.0),
            "zeros" => Init::Constant(0.0),
            "normal" if numbers[0] < 0.0 => {
                self.error(codes::RANGE, "a standard deviation can't be negative", args[0].value.span, "");
                return None;
            }
            "normal" => Init::Normal { std: numbers[0] },
            "uniform" if numbers[0] >= numbers[1] => {
                self.error(codes::RANGE, "the lower bound is not below the upper one", e.span, "");
                return None;
            }
            "uniform" => Init::Uniform { low: numbers[0], high: numbers[1] },
            _ => Init::Constant(numbers[0]),
        })
    }

    pub(super) fn let_statement(&mut self, scope: &mut Scope, l: &ast::Let) -> Option<Let> {
        let wanted = match &l.dims {
            Some(dims) => match self.plain_dims(scope, dims) {
                Some(axes) => Some(axes),
                None => {
                    self.define(scope, &l.name, Binding::Poison);
                    return None;
                }
            },
            None => None,
        };
        let expr = self.expr(scope, &l.value, wanted.as_deref());
        let expr = match (expr, &wanted, &l.dims) {
            (Some(e), Some(axes), Some(dims)) => self.fit(e, axes, dims.span),
            (e, _, _) => e,
        };
        let Some(expr) = expr else {
            self.define(scope, &l.name, Binding::Poison);
            return None;
        };
        let value = self.new_value();
        self.define(scope, &l.name, Binding::Value(value, expr.ty.clone()));
        Some(Let {
            value,
            name: l.name.name.clone(),
            path: scope.path_of(&l.name.name),
            expr,
            role: l.role.as_ref().map(|r| r.name.clone()),
            span: l.name.span,
        })
    }

    /// Checks a value against declared axes and puts its axes into their order.
    pub(super) fn fit(&mut self, mut e: Expr, axes: &[Axis], declared: Span) -> Option<Expr> {
        if let Some(extra) = e.ty.axes.iter().find(|a| !axes.iter().any(|b| b.name == a.name)) {
            let name = &extra.name;
            let title =
                format!("the value has the axis `{name}`, the declared result {} does not", show_axes(axes));
            self.report(
                Diagnostic::error(codes::OUTPUT_AXIS, title)
                    .at(e.span, format!("this has {}", show_axes(&e.ty.axes)))
                    .and(declared, "declared here")
                    .help(format!(
                        "remove the axis with `sum[{name}](…)` or `mean[{name}](…)`, or declare it"
                    )),
            );
            return None;
        }
        if let Some(lacking) = axes.iter().find(|a| !e.ty.has(&a.name)) {
            let title = format!("the declared result has the axis `{}`, the value does not", lacking.name);
            self.report(
                Diagnostic::error(codes::OUTPUT_LACKS, title)
                    .at(e.span, format!("this has {}", show_axes(&e.ty.axes)))
                    .and(declared, "declared here"),
            );
            return None;
        }
        if let Some(axis) = axes.iter().find(|a| e.ty.size_of(&a.name) != Some(a.size)) {
            let have = e.ty.size_of(&axis.name).unwrap_or(0);
            let title = format!("the axis `{}` has two sizes: {have} and {}", axis.name, axis.size);
            self.report(
                Diagnostic::error(codes::SIZE_MISMATCH, title)
                    .at(e.span, format!("{} = {have} here", axis.name))
                    .and(declared, format!("{} = {} here", axis.name, axis.size)),
            );
            return None;
        }
        e.ty.axes = axes.to_vec();
        Some(e)
    }

    pub(super) fn aux_statement(&mut self, scope: &mut Scope, b: &ast::Binding) -> Option<Aux> {
        let e = self.expr(scope, &b.value, None)?;
        if !e.ty.axes.is_empty() {
            let title = format!("an auxiliary loss is a single number, this has {}", show_axes(&e.ty.axes));
            self.report(
                Diagnostic::error(codes::LOSS, title)
                    .at(e.span, "")
                    .help("reduce it with `mean[…](…)` or `sum[…](…)`"),
            );
            return None;
        }
        let e = self.to_real(e)?;
        Some(Aux { path: scope.path_of(&b.name.name), expr: e, span: b.name.span })
    }

    fn loss(&mut self, scope: &mut Scope, e: &AstExpr, span: Span) -> Option<Loss> {
        let form = "expected `mean[axes](value)` or `weighted_mean[axes](value, weight)`";
        let AstKind::Ref(r) = &e.kind else {
            self.error(codes::LOSS, "not a mean over tokens", e.span, form);
            return None;
        };
        let n_args = match r.path.name.as_str() {
            "mean" => 1,
            "weighted_mean" => 2,
            _ => {
                self.error(codes::LOSS, "not a mean over tokens", e.span, form);
                return None;
            }
        };
        let args = r.args.as_deref().unwrap_or_default();
        let (Some(axes), true) = (&r.axes, args.len() == n_args) else {
            self.error(codes::LOSS, "not a mean over tokens", e.span, form);
            return None;
        };
        let axes = self.axis_arguments(scope, axes)?;
        let value = self.expr(scope, &args[0].value, None)?;
        let value = self.to_real(value)?;
        let extra = value.ty.axes.iter().find(|a| !axes.iter().any(|b| b.name == a.name));
        let lacking = axes.iter().find(|a| !value.ty.has(&a.name));
        if let Some(odd) = extra.or(lacking) {
            let title = format!(
                "the loss averages over {}, its value has {}: `{}` differs",
                show_axes(&axes),
                show_axes(&value.ty.axes),
                odd.name
            );
            self.error(codes::LOSS, title, value.span, format!("this has {}", show_axes(&value.ty.axes)));
            return None;
        }
        let weight = match args.get(1) {
            None => None,
            Some(arg) => {
                let weight = self.expr(scope, &arg.value, None)?;
                let weight = self.to_real(weight)?;
                if let Some(odd) = weight.ty.axes.iter().find(|a| !axes.iter().any(|b| b.name == a.name)) {
                    let title = format!(
                        "the weight has the axis `{}`, which the loss does not average over",
                        odd.name
                    );
                    self.error(codes::LOSS, title, weight.span, "");
                    return None;
                }
                Some(weight)
            }
        };
        Some(Loss { axes, value, weight, span })
    }

    /// `lower { attention = reference }`
    pub(super) fn lower(&mut self, section: &ast::Section) -> Vec<String> {
        const KNOWN: [&str; 6] = ["attention", "softmax", "rms_norm", "layer_norm", "rope", "loss_head"];
        let mut off = vec![];
        for entry in &section.entries {
            let ast::Entry::Assign { key, value } = entry else {
                self.error(codes::VALUE_TYPE, "expected `name = reference`", section.span, "");
                continue;
            };
            if !KNOWN.contains(&key.name.as_str()) {
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_KEY, format!("unknown key: `lower.{}`", key.name))
                        .at(key.span, format!("expected one of {}", KNOWN.join(", ")));
                if let Some(near) = nearest(&key.name, KNOWN) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                }
                self.report(diagnostic);
                continue;
            }
            match crate::spec::print::value(value).as_str() {
                "reference" => off.push(key.name.clone()),
                "kernel" => off.retain(|name| *name != key.name),
                other => {
                    let title = format!("unknown lowering: `{other}`");
                    self.error(codes::VALUE_TYPE, title, value.span, "expected `reference` or `kernel`");
                }
            }
        }
        off
    }

    pub(super) fn manual(&mut self, m: &ast::Manual) {
        self.report(
            Diagnostic::error(codes::NOT_AVAILABLE, "manual collectives are not available yet")
                .at(m.span, "this block")
                .help("write the model without it; sharding rules place the collectives"),
        );
    }
}

/// `[batch, seq, d]` with sizes: `[batch=8, seq=1024, d=4096]`.
pub fn show_axes(axes: &[Axis]) -> String {
    let shown: Vec<String> = axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
    format!("[{}]", shown.join(", "))
}

/// True if the expression is this word alone.
pub fn is_word(e: &AstExpr, word: &str) -> bool {
    matches!(&e.kind, AstKind::Ref(r)
        if r.path.name == word && r.axes.is_none() && r.args.is_none() && r.instance.is_none())
}

fn model_values(body: &ast::Body) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for statement in &body.statements {
        match statement {
            Stmt::Input(i) => drop(names.insert(i.name.name.clone())),
            Stmt::Params(p) => names.extend(p.params.iter().map(|p| p.name.name.clone())),
            Stmt::Let(l) => drop(names.insert(l.name.name.clone())),
            _ => {}
        }
    }
    names
}

// ---- words: every name that occurs, for finding unused sizes

fn words_of_statement(statement: &Stmt, used: &mut BTreeSet<String>) {
    match statement {
        Stmt::Sizes(b, _) | Stmt::Consts(b, _) => b.iter().for_each(|b| words_of_expr(&b.value, used)),
        Stmt::Input(i) => {
            i.elem.iter().filter_map(|e| e.bound.as_ref()).for_each(|b| words_of_expr(b, used));
            i.dims.iter().for_each(|d| words_of_dims(d, used));
        }
        Stmt::Params(p) => {
            for param in &p.params {
                used.extend(
                    param.inputs.iter().chain(param.outputs.iter().flatten()).map(|a| a.name.clone()),
                );
            }
            words_of_expr(&p.init, used);
        }
        Stmt::Block(b) => words_of_block(b, used),
        Stmt::Loss(e, _) => words_of_expr(e, used),
        Stmt::Aux(b, _) => words_of_expr(&b.value, used),
        Stmt::Manual(m) => m.body.statements.iter().for_each(|s| words_of_statement(s, used)),
        Stmt::Let(l) => {
            l.dims.iter().for_each(|d| words_of_dims(d, used));
            words_of_expr(&l.value, used);
        }
        Stmt::Yield(y) => words_of_expr(&y.value, used),
        // Layouts and kernels speak of axes that tensors have anyway.
        Stmt::Names(_) | Stmt::Kernel(_) | Stmt::Lower(_) => {}
    }
}

fn words_of_block(block: &ast::Block, used: &mut BTreeSet<String>) {
    for formal in &block.formals {
        formal.dims.iter().for_each(|d| words_of_dims(d, used));
        formal.default.iter().for_each(|d| words_of_expr(d, used));
        formal.elem.iter().filter_map(|e| e.bound.as_ref()).for_each(|b| words_of_expr(b, used));
    }
    words_of_dims(&block.result, used);
    block.body.statements.iter().for_each(|s| words_of_statement(s, used));
}

fn words_of_dims(dims: &Dims, used: &mut BTreeSet<String>) {
    for dim in &dims.dims {
        if let Dim::Axis(a) = dim {
            used.insert(a.name.clone());
        }
    }
}

fn words_of_expr(e: &AstExpr, used: &mut BTreeSet<String>) {
    match &e.kind {
        AstKind::Number(_) | AstKind::Text(_) => {}
        AstKind::Paren(inner) | AstKind::Unary(_, inner) => words_of_expr(inner, used),
        AstKind::List(items) => items.iter().for_each(|i| words_of_expr(i, used)),
        AstKind::Ref(r) => {
            used.insert(r.path.name.clone());
            r.axes.iter().flatten().for_each(|a| words_of_expr(a, used));
            r.args.iter().flatten().for_each(|a| words_of_expr(&a.value, used));
        }
        AstKind::Binary(_, a, b) => {
            words_of_expr(a, used);
            words_of_expr(b, used);
        }
        AstKind::Rename(inner, pairs) => {
            words_of_expr(inner, used);
            used.extend(pairs.iter().flat_map(|(a, b)| [a.name.clone(), b.name.clone()]));
        }
    }
}
