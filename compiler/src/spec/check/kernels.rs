//! `kernel "file.mlir" for Block@instance`: which instances it computes.

use crate::spec::ast::{self, ExprKind as AstKind, Item, Statement as Stmt};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::load::Units;

use super::choose::Chosen;
use super::values::operands;

/// Reads every `kernel` of the model and of the file asked for; one that computes nothing is an error.
pub fn check_kernels(units: &Units, chosen: &Chosen<'_>, model: &mut Model, found: &mut Vec<Diagnostic>) {
    let of_model = chosen.model.body.statements.iter().filter_map(|s| match s {
        Stmt::Kernel(kernel) => Some(kernel),
        _ => None,
    });
    let of_run = units.units[0].file.items.iter().filter_map(|item| match item {
        Item::Kernel(kernel) => Some(kernel),
        _ => None,
    });
    for statement in of_model.chain(of_run) {
        let Some(kernel) = read(statement, units, found) else { continue };
        let mut instances = vec![];
        instances_of(&model.body, &mut instances);
        instances_in(&model.loss.value, &mut instances);
        if instances.iter().any(|instance| kernel.computes(instance)) {
            // A later one wins.
            model.kernels.insert(0, kernel);
        } else {
            found.push(computes_nothing(&kernel, &instances));
        }
    }
}

fn read(statement: &ast::Kernel, units: &Units, found: &mut Vec<Diagnostic>) -> Option<CustomKernel> {
    let AstKind::Ref(r) = &statement.subject.kind else {
        found.push(form(statement));
        return None;
    };
    if r.axes.is_some() || r.args.is_some() {
        found.push(form(statement));
        return None;
    }
    Some(CustomKernel {
        file: statement.file.value.clone(),
        text: units.kernels.get(&statement.file.span)?.clone(),
        block: r.path.name.clone(),
        instance: r.instance.as_ref().map(|i| i.name.clone()),
        span: statement.span,
    })
}

fn form(statement: &ast::Kernel) -> Diagnostic {
    Diagnostic::error(codes::ARGUMENTS, "a kernel is `for` a block or one name of its instances")
        .at(statement.subject.span, "expected `Block` or `Block@instance`")
}

fn computes_nothing(kernel: &CustomKernel, instances: &[&Instance]) -> Diagnostic {
    let name = |i: &Instance| format!("{}@{}", i.block, i.path.rsplit('.').next().unwrap_or(""));
    let mut known: Vec<String> = instances.iter().map(|i| name(i)).collect();
    known.sort();
    known.dedup();
    let subject = match &kernel.instance {
        Some(instance) => format!("{}@{instance}", kernel.block),
        None => kernel.block.clone(),
    };
    let title = format!("the kernel computes nothing: no instance is `{subject}`");
    let error = Diagnostic::error(codes::GLOB_NOTHING, title).at(kernel.span, "");
    match nearest(&subject, known.iter().map(String::as_str)) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None => error.help(format!("there are {}", known.join(", "))),
    }
}

fn instances_of<'a>(body: &'a [Statement], into: &mut Vec<&'a Instance>) {
    for statement in body {
        match statement {
            Statement::Let(l) => instances_in(&l.expr, into),
            Statement::Aux(a) => instances_in(&a.expr, into),
        }
    }
}

fn instances_in<'a>(e: &'a Expr, into: &mut Vec<&'a Instance>) {
    let instance = match &e.kind {
        ExprKind::Call(instance, _) => Some(instance.as_ref()),
        ExprKind::Repeat(repeat) => Some(repeat.body.as_ref()),
        _ => None,
    };
    if let Some(instance) = instance {
        into.push(instance);
        instances_of(&instance.body, into);
        instances_in(&instance.result, into);
    }
    operands(e).into_iter().for_each(|x| instances_in(x, into));
}
