//! Sizes that nothing names.

use std::collections::BTreeSet;

use super::choose::Chosen;
use super::model::Checker;
use crate::spec::ast::{self, Dim, Dims, Expr as AstExpr, ExprKind as AstKind, Statement as Stmt};
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

impl Checker<'_> {
    /// A size no axis and no expression of the model names.
    pub(super) fn unused_sizes(&mut self, chosen: &Chosen<'_>) {
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

fn words_of_block(block: &ast::Block, all: &mut BTreeSet<String>) {
    let mut words = BTreeSet::new();
    let used = &mut words;
    for formal in &block.formals {
        formal.dims.iter().for_each(|d| words_of_dims(d, used));
        formal.default.iter().for_each(|d| words_of_expr(d, used));
        formal.elem.iter().filter_map(|e| e.bound.as_ref()).for_each(|b| words_of_expr(b, used));
    }
    words_of_dims(&block.result, used);
    block.body.statements.iter().for_each(|s| words_of_statement(s, used));
    // A generic axis hides the size of its name.
    all.extend(words.into_iter().filter(|w| block.generics.iter().all(|g| g.name != *w)));
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
            if r.path.name == "concat" {
                used.extend(r.args.iter().flatten().filter_map(|a| Some(a.name.as_ref()?.name.clone())));
            }
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
