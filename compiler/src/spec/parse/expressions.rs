//! Expressions: precedence climbing over the grammar's flat lists of operands and operators.

use pest::iterators::Pair;

use super::tree::{Build, Parts};
use super::{MAX_DEPTH, MAX_NESTING, Rule};
use crate::spec::ast::*;
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

impl Build {
    /// `operand (operator operand)*`: precedence climbing over the flat list.
    pub(super) fn expr(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let parts: Vec<_> = Parts::of(pair).rest.collect();
        let levels = 1 + parts.len() / 2;
        self.depth += levels;
        let expr =
            if self.depth > MAX_DEPTH { self.too_deep(span) } else { self.operators_and_operands(parts) };
        self.depth -= levels;
        expr
    }

    /// Reports an expression beyond the limit, once, and stands a number in for it.
    pub(super) fn too_deep(&mut self, span: Span) -> Expr {
        if !self.errors.iter().any(|e| e.code == codes::NESTING) {
            let title = format!("the expression is nested deeper than the limit: {MAX_DEPTH}");
            self.errors.push(
                Diagnostic::error(codes::NESTING, title)
                    .at(span, "counting brackets and operators")
                    .help("name parts of it with lines of their own"),
            );
        }
        let number = Number { value: 1.0, integer: Some(1), unit: Unit::One, text: "1".into(), span };
        Expr { kind: ExprKind::Number(number), span }
    }

    pub(super) fn operators_and_operands(&mut self, parts: Vec<Pair<'_, Rule>>) -> Expr {
        let mut operands = vec![];
        let mut operators = vec![];
        for part in parts {
            match binary_op(part.as_rule()) {
                Some(op) => operators.push((op, self.span(&part))),
                None => operands.push(self.operand(part)),
            }
        }
        let mut rest = Climb { operands: operands.into_iter(), operators: operators.into_iter().peekable() };
        let first = rest.operands.next().expect("an expression has an operand");
        self.climb(first, &mut rest, 0)
    }

    fn climb(&mut self, mut left: Expr, rest: &mut Climb, lowest: u8) -> Expr {
        while let Some(&(op, op_span)) = rest.operators.peek() {
            if op.precedence() < lowest.max(1) {
                break;
            }
            rest.operators.next();
            let mut right = rest.operands.next().expect("an operator has a right operand");
            while let Some(&(following, _)) = rest.operators.peek() {
                if following.precedence() <= op.precedence() {
                    break;
                }
                right = self.climb(right, rest, following.precedence());
            }
            if op.compares() && matches!(&left.kind, ExprKind::Binary(inner, ..) if inner.compares()) {
                self.errors.push(
                    Diagnostic::error(codes::SYNTAX, "comparisons do not chain")
                        .at(op_span, "a second comparison")
                        .help("write `a < b and b < c`"),
                );
            }
            let span = left.span.to(right.span);
            left = Expr { kind: ExprKind::Binary(op, Box::new(left), Box::new(right)), span };
        }
        left
    }

    pub(super) fn operand(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut signs = vec![];
        let mut parts = Parts::of(pair);
        let primary = loop {
            let part = parts.take();
            match part.as_rule() {
                Rule::neg => signs.push((UnaryOp::Neg, self.span(&part))),
                Rule::k_not => signs.push((UnaryOp::Not, self.span(&part))),
                _ => break part,
            }
        };
        let mut value = self.primary(primary);
        if let Some(rename) = parts.take_if(Rule::rename) {
            let pairs = Parts::of(rename).rest.map(|p| {
                let mut pair = Parts::of(p);
                (self.ident(pair.take()), self.ident(pair.take()))
            });
            let pairs = pairs.collect();
            let span = Span { start: value.span.start, ..span };
            value = Expr { kind: ExprKind::Rename(Box::new(value), pairs), span };
        }
        if signs.len() > MAX_NESTING {
            let title = format!("more signs before one operand than the limit: {MAX_NESTING}");
            self.errors.push(Diagnostic::error(codes::NESTING, title).at(span, "this operand"));
            return value;
        }
        for (op, sign) in signs.into_iter().rev() {
            let span = sign.to(value.span);
            value = Expr { kind: ExprKind::Unary(op, Box::new(value)), span };
        }
        value
    }

    pub(super) fn primary(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let kind = match pair.as_rule() {
            Rule::number => ExprKind::Number(self.number(pair, false)),
            Rule::string => ExprKind::Text(self.text(pair).value),
            Rule::paren => ExprKind::Paren(Box::new(self.expr(Parts::of(pair).take()))),
            Rule::expr_list => ExprKind::List(Parts::of(pair).rest.map(|p| self.expr(p)).collect()),
            _ => return self.reference(pair),
        };
        Expr { kind, span }
    }

    pub(super) fn reference(&mut self, pair: Pair<'_, Rule>) -> Expr {
        let span = self.span(&pair);
        let mut parts = Parts::of(pair);
        let path = self.ident(parts.take());
        let axes = parts.take_if(Rule::ref_axes).map(|p| Parts::of(p).rest.map(|p| self.expr(p)).collect());
        let instance = parts.take_if(Rule::instance).map(|p| self.ident(Parts::of(p).take()));
        let args = parts.take_if(Rule::args).map(|p| {
            let args = Parts::of(p).rest.map(|p| {
                let mut arg = Parts::of(p);
                let name = arg.take_if(Rule::ident).map(|p| self.ident(p));
                Arg { name, value: self.expr(arg.take()) }
            });
            args.collect()
        });
        let reference = Reference { path, axes, instance, args };
        Expr { kind: ExprKind::Ref(Box::new(reference)), span }
    }
}

/// What is left of a flat list of operands and operators.
struct Climb {
    operands: std::vec::IntoIter<Expr>,
    operators: std::iter::Peekable<std::vec::IntoIter<(BinaryOp, Span)>>,
}

fn binary_op(rule: Rule) -> Option<BinaryOp> {
    Some(match rule {
        Rule::op_le => BinaryOp::Le,
        Rule::op_ge => BinaryOp::Ge,
        Rule::op_eq => BinaryOp::Eq,
        Rule::op_ne => BinaryOp::Ne,
        Rule::op_lt => BinaryOp::Lt,
        Rule::op_gt => BinaryOp::Gt,
        Rule::op_add => BinaryOp::Add,
        Rule::op_sub => BinaryOp::Sub,
        Rule::op_mul => BinaryOp::Mul,
        Rule::op_div => BinaryOp::Div,
        Rule::op_and => BinaryOp::And,
        Rule::op_or => BinaryOp::Or,
        _ => return None,
    })
}
