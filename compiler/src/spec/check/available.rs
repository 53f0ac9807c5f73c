//! Constructs of the model that can't be built yet. To leave one out would train another model, so with a run each is an
//! error; a model alone may use them.

use crate::spec::checked::*;
use crate::spec::diagnostic::Diagnostic;

/// Reports every `aux`.
pub fn model_available(model: &Model, found: &mut Vec<Diagnostic>) {
    statements(&model.body, found);
    expression(&model.loss.value, found);
    model.loss.weight.iter().for_each(|w| expression(w, found));
}

fn statements(body: &[Statement], found: &mut Vec<Diagnostic>) {
    for statement in body {
        match statement {
            Statement::Let(l) => expression(&l.expr, found),
            Statement::Aux(a) => {
                found.push(super::not_available("`aux`", a.span));
                expression(&a.expr, found);
            }
        }
    }
}

fn instance(instance: &Instance, found: &mut Vec<Diagnostic>) {
    statements(&instance.body, found);
    expression(&instance.result, found);
}

fn expression(e: &Expr, found: &mut Vec<Diagnostic>) {
    match &e.kind {
        ExprKind::Call(called, _) => instance(called, found),
        ExprKind::Repeat(repeat) => instance(&repeat.body, found),
        _ => {}
    }
    super::layout::operands(e).into_iter().for_each(|x| expression(x, found));
}
