//! Blocks that contain themselves.

use petgraph::algo::kosaraju_scc;
use petgraph::graph::DiGraph;
use std::collections::{BTreeMap, BTreeSet};

use super::model::Checker;
use crate::spec::ast::{Expr as AstExpr, ExprKind as AstKind, Statement as Stmt};
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;

impl Checker<'_> {
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
