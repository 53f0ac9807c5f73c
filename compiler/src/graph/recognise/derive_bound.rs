//! Which keys a query can see, from the score region.
//!
//! The region is read abstractly: for each value, the range of `key − query` for which a truth value can be true (or
//! false), and for which a score can be above −inf. The result contains every pair that exists; it may contain more,
//! because the region still decides each one.

use crate::graph::{BinaryOp, Bound, CompareOp, Graph, Op, OpNode, RegionId, UnaryOp, ValueId};
use std::collections::BTreeMap;

/// The tightest bound that holds for a score region.
pub(super) fn derive_bound(graph: &Graph, score: RegionId) -> Bound {
    let region = graph.region(score);
    let (Some(&query), Some(&key)) = (region.args.get(1), region.args.get(2)) else { return Bound::Full };
    let reader = Reader { graph, definitions: graph.definitions(score), query, key };
    let range = region.results.first().map_or(Range::ALL, |v| reader.finite(*v));
    match range {
        Range { low, high } if high <= 0 && low <= high => match low {
            i64::MIN => Bound::Causal,
            low => Bound::Window(low.unsigned_abs().saturating_add(1)),
        },
        _ => Bound::Full,
    }
}

/// An inclusive range of `key − query`; empty if `low > high`.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Range {
    low: i64,
    high: i64,
}

impl Range {
    const ALL: Range = Range { low: i64::MIN, high: i64::MAX };
    const NONE: Range = Range { low: i64::MAX, high: i64::MIN };

    fn is_empty(self) -> bool {
        self.low > self.high
    }

    fn and(self, other: Range) -> Range {
        Range { low: self.low.max(other.low), high: self.high.min(other.high) }
    }

    /// The smallest range that holds both.
    fn or(self, other: Range) -> Range {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => Range { low: self.low.min(other.low), high: self.high.max(other.high) },
        }
    }
}

struct Reader<'a> {
    graph: &'a Graph,
    definitions: BTreeMap<ValueId, crate::graph::OpId>,
    query: ValueId,
    key: ValueId,
}

impl Reader<'_> {
    fn node(&self, value: ValueId) -> Option<&OpNode> {
        self.definitions.get(&value).map(|op| self.graph.op(*op))
    }

    fn constant(&self, value: ValueId) -> Option<f64> {
        match self.node(value)?.op {
            Op::Const(c) => Some(c),
            _ => None,
        }
    }

    /// Where a score can be above −inf.
    fn finite(&self, value: ValueId) -> Range {
        let Some(node) = self.node(value) else { return Range::ALL };
        let operand = |i: usize| node.operands[i];
        match &node.op {
            Op::Const(c) if *c == f64::NEG_INFINITY => Range::NONE,
            Op::Select => {
                let chosen = self.truth(operand(0), true).and(self.finite(operand(1)));
                chosen.or(self.truth(operand(0), false).and(self.finite(operand(2))))
            }
            Op::Binary(BinaryOp::Add | BinaryOp::Min) => self.finite(operand(0)).and(self.finite(operand(1))),
            Op::Binary(BinaryOp::Max) => self.finite(operand(0)).or(self.finite(operand(1))),
            Op::Binary(BinaryOp::Sub) => self.finite(operand(0)),
            Op::Binary(BinaryOp::Mul) => match (self.constant(operand(0)), self.constant(operand(1))) {
                (None, Some(c)) if c > 0.0 => self.finite(operand(0)),
                (Some(c), None) if c > 0.0 => self.finite(operand(1)),
                _ => Range::ALL,
            },
            Op::Binary(BinaryOp::Div) if self.constant(operand(1)).is_some_and(|c| c > 0.0) => {
                self.finite(operand(0))
            }
            Op::Cast => self.finite(operand(0)),
            _ => Range::ALL,
        }
    }

    /// Where a condition can have this truth value.
    fn truth(&self, value: ValueId, holds: bool) -> Range {
        let Some(node) = self.node(value) else { return Range::ALL };
        let operand = |i: usize| node.operands[i];
        match &node.op {
            Op::Unary(UnaryOp::Not) => self.truth(operand(0), !holds),
            Op::Binary(op @ (BinaryOp::And | BinaryOp::Or)) => {
                let [a, b] = [0, 1].map(|i| self.truth(operand(i), holds));
                if (*op == BinaryOp::And) == holds { a.and(b) } else { a.or(b) }
            }
            Op::Compare(op) => self.comparison(*op, operand(0), operand(1), holds),
            _ => Range::ALL,
        }
    }

    /// Where `left op right` can be true (false), if their difference is `±(key − query) + constant`.
    fn comparison(&self, op: CompareOp, left: ValueId, right: ValueId, holds: bool) -> Range {
        let (Some(left), Some(right)) = (self.linear(left), self.linear(right)) else { return Range::ALL };
        let [query, key, constant] = [0, 1, 2].map(|i| left[i].saturating_sub(right[i]));
        if query != -key || key.abs() != 1 {
            return Range::ALL;
        }
        let op = match (op, holds) {
            (op, true) => op,
            (CompareOp::Le, false) => CompareOp::Gt,
            (CompareOp::Lt, false) => CompareOp::Ge,
            (CompareOp::Ge, false) => CompareOp::Lt,
            (CompareOp::Gt, false) => CompareOp::Le,
            (CompareOp::Eq, false) => CompareOp::Ne,
            (CompareOp::Ne, false) => CompareOp::Eq,
        };
        // Bounds of the difference, then of ±(key − query).
        let (low, high) = match op {
            CompareOp::Le => (None, Some(0)),
            CompareOp::Lt => (None, Some(-1)),
            CompareOp::Ge => (Some(0), None),
            CompareOp::Gt => (Some(1), None),
            CompareOp::Eq => (Some(0), Some(0)),
            CompareOp::Ne => (None, None),
        };
        let shifted = |bound: Option<i64>| bound.map(|x: i64| x.saturating_sub(constant));
        let (low, high) = (shifted(low), shifted(high));
        let (low, high) = if key == 1 {
            (low, high)
        } else {
            (high.map(i64::saturating_neg), low.map(i64::saturating_neg))
        };
        Range { low: low.unwrap_or(i64::MIN), high: high.unwrap_or(i64::MAX) }
    }

    /// `[a, b, c]` of `a·query + b·key + c`.
    fn linear(&self, value: ValueId) -> Option<[i64; 3]> {
        if value == self.query {
            return Some([1, 0, 0]);
        }
        if value == self.key {
            return Some([0, 1, 0]);
        }
        let node = self.node(value)?;
        let operand = |i: usize| self.linear(node.operands[i]);
        let combine = |a: [i64; 3], b: [i64; 3], f: fn(i64, i64) -> Option<i64>| -> Option<[i64; 3]> {
            Some([f(a[0], b[0])?, f(a[1], b[1])?, f(a[2], b[2])?])
        };
        match &node.op {
            Op::Const(c) => (c.fract() == 0.0 && c.abs() < 1e15).then_some([0, 0, *c as i64]),
            // Positions convert to floats exactly: they are below 2²⁴.
            Op::Cast => operand(0),
            Op::Unary(UnaryOp::Neg) => combine([0; 3], operand(0)?, i64::checked_sub),
            Op::Binary(BinaryOp::Add) => combine(operand(0)?, operand(1)?, i64::checked_add),
            Op::Binary(BinaryOp::Sub) => combine(operand(0)?, operand(1)?, i64::checked_sub),
            Op::Binary(BinaryOp::Mul) => {
                let (a, b) = (operand(0)?, operand(1)?);
                let (form, factor) = if b[0] == 0 && b[1] == 0 { (a, b[2]) } else { (b, a[2]) };
                let other = if b[0] == 0 && b[1] == 0 { b } else { a };
                (other[0] == 0 && other[1] == 0)
                    .then(|| combine(form, [factor; 3], i64::checked_mul))
                    .flatten()
            }
            _ => None,
        }
    }
}
