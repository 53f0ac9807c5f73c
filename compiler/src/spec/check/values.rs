//! Values that rules can name, by path and role.

use super::run::{hits_nothing, part_of_repeat};
use crate::spec::ast;
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::glob::{Hit, hit};
use crate::spec::source::Span;

/// A value of the model that rules can name.
pub struct ValuePath {
    /// Its logical path.
    pub path: String,
    /// Repeats around it, outermost first.
    pub repeats: Vec<RepeatDim>,
    /// Its axes.
    pub axes: Vec<Axis>,
    /// Its role.
    pub role: Option<String>,
}

/// Every named value of the model with its axes and role.
pub fn value_paths(model: &Model) -> Vec<ValuePath> {
    let mut all = vec![];
    for input in &model.inputs {
        all.push(ValuePath {
            path: input.name.clone(),
            repeats: vec![],
            axes: input.ty.axes.clone(),
            role: None,
        });
    }
    statements(&model.body, &mut vec![], &mut all);
    walk(&model.loss.value, &mut vec![], &mut all);
    all
}

fn statements(body: &[Statement], repeats: &mut Vec<RepeatDim>, all: &mut Vec<ValuePath>) {
    for statement in body {
        match statement {
            Statement::Let(l) => {
                let (path, axes) = (l.path.clone(), l.expr.ty.axes.clone());
                all.push(ValuePath { path, repeats: repeats.clone(), axes, role: l.role.clone() });
                walk(&l.expr, repeats, all);
            }
            Statement::Aux(a) => walk(&a.expr, repeats, all),
        }
    }
}

fn instance(i: &Instance, repeats: &mut Vec<RepeatDim>, all: &mut Vec<ValuePath>) {
    let result = ValuePath {
        path: i.path.clone(),
        repeats: repeats.clone(),
        axes: i.result.ty.axes.clone(),
        role: i.role.clone(),
    };
    all.push(result);
    for arg in &i.args {
        let path = format!("{}.{}", i.path, arg.name);
        all.push(ValuePath { path, repeats: repeats.clone(), axes: arg.ty.axes.clone(), role: None });
    }
    statements(&i.body, repeats, all);
    walk(&i.result, repeats, all);
}

fn walk(e: &Expr, repeats: &mut Vec<RepeatDim>, all: &mut Vec<ValuePath>) {
    operands(e).into_iter().for_each(|x| walk(x, repeats, all));
    match &e.kind {
        ExprKind::Call(i, _) => instance(i, repeats, all),
        ExprKind::Repeat(r) => {
            repeats.push(r.dim.clone());
            instance(&r.body, repeats, all);
            repeats.pop();
        }
        _ => {}
    }
}

/// What an expression reads: its operands, the arguments of a call, but not the body of a block.
pub fn operands(e: &Expr) -> Vec<&Expr> {
    match &e.kind {
        ExprKind::Call(_, args) => args.iter().collect(),
        ExprKind::Repeat(r) => std::iter::once(&*r.init).chain(&r.invariants).collect(),
        ExprKind::Const(_) | ExprKind::Value(_) | ExprKind::Param(_) | ExprKind::Index => vec![],
        ExprKind::ToReal(x)
        | ExprKind::ToInt(x)
        | ExprKind::Unary(_, x)
        | ExprKind::Rename(x, _)
        | ExprKind::Reduce(_, _, x) => {
            vec![x]
        }
        ExprKind::Softmax(_, x)
        | ExprKind::Dropout { x, .. }
        | ExprKind::Slice { x, .. }
        | ExprKind::ZLoss(_, x)
        | ExprKind::Dispatch(_, x)
        | ExprKind::Combine(_, x) => vec![x],
        ExprKind::GroupedDot { x, w, .. } => vec![x, w],
        ExprKind::Route(r) => std::iter::once(&r.gates).chain(&r.select).collect(),
        ExprKind::LoadBalance { .. } => vec![],
        ExprKind::Concat { parts, .. } => parts.iter().map(|(_, x)| x).collect(),
        ExprKind::Binary(_, a, b) | ExprKind::Compare(_, a, b) | ExprKind::Dot(_, a, b) => vec![a, b],
        ExprKind::Where(a, b, c) => vec![a, b, c],
        ExprKind::Gather { table, ids, .. } => vec![table, ids],
        ExprKind::Rope(r) => vec![&r.x, &r.at],
        ExprKind::CrossEntropy { logits, targets, .. } => vec![logits, targets],
        ExprKind::RmsNorm { x, weight, .. } => std::iter::once(&**x).chain(weight.as_deref()).collect(),
        ExprKind::LayerNorm { x, weight, bias, .. } => {
            std::iter::once(&**x).chain(weight.as_deref()).chain(bias.as_deref()).collect()
        }
        ExprKind::Attend(a) => {
            [&a.q, &a.k, &a.v].into_iter().chain(&a.window).chain(&a.mask).chain(&a.bias).collect()
        }
    }
}

/// Values a glob hits; an error if there are none, or if it hits single iterations of a repeat.
pub fn glob_values<'a>(
    values: &'a [ValuePath],
    glob: &str,
    span: Span,
    found: &mut Vec<Diagnostic>,
) -> Vec<&'a ValuePath> {
    let mut hits = vec![];
    for value in values {
        match hit(glob, &value.path, &value.repeats) {
            Hit::No => {}
            Hit::Whole => hits.push(value),
            Hit::Part => {
                found.push(part_of_repeat(glob, &value.path, value.repeats.last(), span));
                return vec![];
            }
        }
    }
    if hits.is_empty() {
        found.push(hits_nothing(glob, "value", values.iter().map(|v| v.path.as_str()), span));
    }
    hits
}

/// Values of a role; an error if there are none.
pub fn of_role<'a>(
    values: &'a [ValuePath],
    role: &ast::Ident,
    found: &mut Vec<Diagnostic>,
) -> Vec<&'a ValuePath> {
    let hits: Vec<&ValuePath> =
        values.iter().filter(|v| v.role.as_deref() == Some(role.name.as_str())).collect();
    if hits.is_empty() {
        let mut diagnostic =
            Diagnostic::error(codes::GLOB_NOTHING, format!("no value has the role `{}`", role.name))
                .at(role.span, "hits nothing");
        if let Some(near) = nearest(&role.name, values.iter().filter_map(|v| v.role.as_deref())) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        found.push(diagnostic);
    }
    hits
}
