//! The statements of a model.

use std::collections::{BTreeMap, BTreeSet};

use super::choose::Chosen;
use super::scope::{Binding, Scope};
use crate::spec::ast::{self, Expr as AstExpr, ExprKind as AstKind, Ident, Statement as Stmt};
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
pub const MAX_NODES: u64 = 200_000;

/// What every step logs besides auxiliary losses.
const LOGGED: [&str; 13] = [
    "kind",
    "step",
    "loss",
    "loss_bits",
    "loss_sum",
    "loss_weight",
    "grad_norm",
    "lr",
    "seconds",
    "tokens",
    "tokens_per_s",
    "gflops",
    "bits_per_byte",
];

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
    /// Names of auxiliary losses in the log, and where they stand.
    aux_logged: BTreeMap<String, Span>,
    /// Repeats with `unroll`.
    pub(super) unrolled: Vec<Unrolled>,
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
            aux_logged: BTreeMap::new(),
            unrolled: vec![],
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
                Stmt::Sizes(..) | Stmt::Consts(..) | Stmt::Block(_) | Stmt::Names(_) | Stmt::Kernel(_) => {}
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
            unrolled: std::mem::take(&mut self.unrolled),
            constraints: BTreeMap::new(),
            kernels: vec![],
            span: model.name.span,
        })
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
        if let Some((r, args)) = Self::as_route(l) {
            return self.route_statement(scope, l, r, args);
        }
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
        let expr = self.real_of(e)?;
        let aux = Aux { path: scope.path_of(&b.name.name), expr, span: b.name.span };
        self.is_new_in_the_log(&aux).then_some(aux)
    }

    /// Every auxiliary loss is logged under a name of its own.
    fn is_new_in_the_log(&mut self, aux: &Aux) -> bool {
        let name = aux.log_name();
        if LOGGED.contains(&name.as_str()) {
            let title = format!("every step logs `{name}` already");
            self.error(codes::DUPLICATE, title, aux.span, "give the auxiliary loss another name");
            return false;
        }
        match self.aux_logged.insert(name.clone(), aux.span) {
            None => true,
            Some(first) => {
                let title = format!("two auxiliary losses are logged as `{name}`");
                self.report(
                    Diagnostic::error(codes::DUPLICATE, title)
                        .at(aux.span, "again here")
                        .and(first, "first here")
                        .help("give one another name, or the blocks they stand in different `@names`"),
                );
                false
            }
        }
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
        let value = self.real_of(value)?;
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
                let weight = self.real_of(weight)?;
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
        const KNOWN: [&str; 5] = ["attention", "softmax", "rms_norm", "layer_norm", "loss_head"];
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
            super::not_available("`manual`", m.span)
                .help("write the model without it; sharding rules place the collectives"),
        );
    }
}

/// `[batch, seq, d]` with sizes: `[batch=8, seq=1024, d=4096]`.
pub fn show_axes(axes: &[Axis]) -> String {
    let shown: Vec<String> = axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
    format!("[{}]", shown.join(", "))
}

/// The name an expression is, if it is one alone.
pub fn plain_name(e: &AstExpr) -> Option<&str> {
    match &e.kind {
        AstKind::Ref(r) if r.axes.is_none() && r.args.is_none() && r.instance.is_none() => Some(&r.path.name),
        _ => None,
    }
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
