//! What the recognisers left alone although it looks like theirs, with the reason.
//!
//! Run on a recognised graph: what still has the shape of an attention, a loss head or a norm was missed. It means the same
//! and costs more, which the writer of the spec may not expect.

use super::{BinaryOp, Graph, Name, Op, OpNode, ReduceOp, UnaryOp, ValueId};
use crate::graph::{CompositeKind, OpId, RegionId, SpecLine};
use std::collections::BTreeMap;
use std::fmt;

/// A formula that was not recognised.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NearMiss {
    /// The line of its last op.
    pub line: SpecLine,
    /// One sentence.
    pub message: String,
}

impl fmt::Display for NearMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line.file, self.line.line, self.message)
    }
}

/// Near misses of a recognised graph, in the order of the spec; none of recognisers that were turned off.
pub fn near_misses(graph: &Graph, off: &[String]) -> Vec<NearMiss> {
    let on = |name: &str| !off.iter().any(|o| o == name);
    let mut found = Vec::new();
    for region in graph.executed_regions() {
        let uses = Uses::of(graph, region);
        for &op in &graph.region(region).ops {
            let node = graph.op(op);
            let message = [
                on("attention").then(|| uses.attention(node)),
                on("loss_head").then(|| uses.loss(node)),
                on("rms_norm").then(|| uses.norm(node)),
            ];
            if let Some(message) = message.into_iter().flatten().flatten().next() {
                found.push(NearMiss { line: node.origin.line.clone(), message });
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// A region with who makes and who uses each value.
struct Uses<'a> {
    graph: &'a Graph,
    definitions: BTreeMap<ValueId, OpId>,
    counts: BTreeMap<ValueId, u32>,
    region: RegionId,
}

impl<'a> Uses<'a> {
    fn of(graph: &'a Graph, region: RegionId) -> Uses<'a> {
        let (definitions, counts) = (graph.definitions(region), graph.use_counts(region));
        Uses { graph, definitions, counts, region }
    }

    fn op(&self, value: ValueId) -> Option<&'a OpNode> {
        self.definitions.get(&value).map(|op| self.graph.op(*op))
    }

    fn composite(&self, value: ValueId) -> Option<(&'a OpNode, &'a CompositeKind)> {
        let node = self.op(value)?;
        match &node.op {
            Op::Composite(c) => Some((node, &c.kind)),
            _ => None,
        }
    }

    fn name(&self, value: ValueId) -> &Name {
        self.graph.value_name(value)
    }

    /// A product over the axis of a softmax that is itself of a product.
    fn attention(&self, node: &OpNode) -> Option<String> {
        let Op::Dot { over } = &node.op else { return None };
        let softmax = node.operands.iter().find_map(|p| match self.composite(*p)? {
            (softmax, CompositeKind::Softmax { axis }) if over.contains(axis) => Some((softmax, axis)),
            _ => None,
        });
        let (softmax, axis) = softmax?;
        let products = self.products(softmax.operands[0]);
        let why = match products[..] {
            [] => return None,
            [_] if over.len() > 1 => format!("the product with the values sums over more than {axis}"),
            [product] => match self.op(product).map(|n| &n.operands[..]) {
                Some([q, k]) => {
                    let (q, k) = (self.graph.ty(*q), self.graph.ty(*k));
                    match (q.has(axis), k.has(axis)) {
                        (true, true) => format!("both sides of the scores' product have the axis {axis}"),
                        _ => "queries, keys and values do not share their axes as attention needs".to_owned(),
                    }
                }
                _ => return None,
            },
            _ => "the scores are made from more than one product".to_owned(),
        };
        Some(format!("softmax over {axis} is not recognised as attention: {why}"))
    }

    /// Products that element-wise ops make a value from.
    fn products(&self, value: ValueId) -> Vec<ValueId> {
        let mut found = Vec::new();
        let mut seen = vec![value];
        let mut next = 0;
        while let Some(&value) = seen.get(next) {
            next += 1;
            let Some(node) = self.op(value) else { continue };
            match node.op {
                Op::Dot { .. } => found.push(value),
                Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast | Op::Broadcast => {
                    let new: Vec<ValueId> =
                        node.operands.iter().filter(|v| !seen.contains(v)).copied().collect();
                    seen.extend(new);
                }
                _ => {}
            }
        }
        found
    }

    /// A cross-entropy over classes that a product made, which no loss head took.
    fn loss(&self, node: &OpNode) -> Option<String> {
        let Op::Composite(c) = &node.op else { return None };
        let CompositeKind::CrossEntropy { axis } = &c.kind else { return None };
        let logits = node.operands[0];
        let count = |v: ValueId| self.counts.get(&v).copied().unwrap_or(0);
        let why = match self.op(logits) {
            Some(product) if matches!(product.op, Op::Dot { .. }) => {
                let both = product.operands.iter().all(|v| self.graph.ty(*v).has(axis));
                if count(logits) > 1 {
                    format!("the logits %{} are used elsewhere too", self.name(logits))
                } else if both {
                    format!("both sides of the logits' product have the axis {axis}")
                } else {
                    "the loss of single tokens is used, not only its sum over all".to_owned()
                }
            }
            _ => format!("the logits %{} are not a product", self.name(logits)),
        };
        Some(format!("cross_entropy over {axis} is not computed in chunks of tokens: {why}"))
    }

    /// `x · rsqrt(mean(x·x) + eps)` that no gain follows.
    fn norm(&self, node: &OpNode) -> Option<String> {
        let Op::Binary(BinaryOp::Mul) = node.op else { return None };
        let [a, b] = node.operands[..] else { return None };
        let normalises = |x: ValueId, r: ValueId| -> Option<()> {
            let root = self.op(r).filter(|n| n.op == Op::Unary(UnaryOp::Rsqrt))?;
            let sum = self.op(root.operands[0]).filter(|n| n.op == Op::Binary(BinaryOp::Add))?;
            let mean = sum.operands.iter().find_map(|v| {
                self.op(*v).filter(|n| n.op == Op::Binary(BinaryOp::Div) || n.op == Op::Binary(BinaryOp::Mul))
            })?;
            let total = mean
                .operands
                .iter()
                .find_map(|v| self.op(*v).filter(|n| matches!(n.op, Op::Reduce { op: ReduceOp::Sum, .. })))?;
            let square = self.op(total.operands[0])?;
            (square.op == Op::Binary(BinaryOp::Mul) && square.operands == [x, x]).then_some(())
        };
        normalises(a, b).or_else(|| normalises(b, a))?;
        let followed = self.graph.region(self.region).ops.iter().any(|op| {
            let user = self.graph.op(*op);
            user.op == Op::Binary(BinaryOp::Mul) && user.operands.contains(&node.results[0])
        });
        (!followed).then(|| {
            "x · rsqrt(mean(x·x) + eps) is not recognised as rms_norm: no gain multiplies it".to_owned()
        })
    }
}
