//! What the recognisers left alone although it looks like theirs, with the reason.
//!
//! Run on a recognised graph: what still has the shape of an attention, a loss head or a norm was missed. It means the same
//! and costs more, which the writer of the spec may not expect.

use super::recognise;
use super::recognise_attention::{find, leaves};
use super::{BinaryOp, Graph, Name, Op, OpNode, ReduceOp, UnaryOp, ValueId, View, attention_of};
use crate::graph::rewrite::rewrite_ops;
use crate::graph::shape::op_name;
use crate::graph::{Builder, CompositeKind, MeshOp, OpId, RegionId, SpecLine};
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
                on("loss_head").then(|| uses.loss(node).or_else(|| uses.log_sum_exp(node))),
                on("rms_norm").then(|| uses.norm(node)),
            ];
            if let Some(message) = message.into_iter().flatten().flatten().next() {
                found.push(NearMiss { line: node.origin.line.clone(), message });
            }
        }
    }
    found.extend(split_inside(graph, off));
    found.sort();
    found.dedup();
    found
}

/// Formulas that would be recognised if no rule said how something inside them lies: such an op hides what is above it.
fn split_inside(graph: &Graph, off: &[String]) -> Vec<NearMiss> {
    let regions = graph.executed_regions();
    let ops = regions.iter().flat_map(|region| &graph.region(*region).ops).copied();
    let constraints: Vec<OpId> = ops.filter(|op| is_constraint(&graph.op(*op).op)).collect();
    if constraints.is_empty() {
        return Vec::new();
    }
    let without = composites(&recognise(unconstrained(graph, None), off));
    let mut found = Vec::new();
    for op in constraints {
        let with = composites(&recognise(unconstrained(graph, Some(op)), off));
        let hidden = without.iter().find(|(name, count)| with.get(*name).is_none_or(|with| with < *count));
        if let Some((name, _)) = hidden {
            let node = graph.op(op);
            let value = graph.value_name(node.results[0]).as_str();
            let value = value.split('.').next().unwrap_or(value);
            let message = format!(
                "{name} is not recognised: this rule splits `{value}`, which is inside of it; split what goes in or comes out"
            );
            found.push(NearMiss { line: node.origin.line.clone(), message });
        }
    }
    found
}

fn is_constraint(op: &Op) -> bool {
    matches!(op, Op::Mesh(MeshOp::Constrain { .. }))
}

/// The graph without what rules say of values, but for one.
fn unconstrained(graph: &Graph, but: Option<OpId>) -> Graph {
    rewrite_ops(graph.clone(), |_, _, op, node| {
        (is_constraint(&node.op) && but != Some(op)).then(|| vec![node.operands[0]])
    })
}

/// How many composites of each kind there are.
fn composites(graph: &Graph) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for region in graph.executed_regions() {
        let nodes = graph.region(region).ops.iter().map(|op| graph.op(*op));
        for node in nodes.filter(|node| matches!(node.op, Op::Composite(_))) {
            *counts.entry(op_name(&node.op)).or_insert(0) += 1;
        }
    }
    counts
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

    fn composite(&self, value: ValueId) -> Option<&'a CompositeKind> {
        match &self.op(value)?.op {
            Op::Composite(c) => Some(&c.kind),
            _ => None,
        }
    }

    fn name(&self, value: ValueId) -> &Name {
        self.graph.value_name(value)
    }

    /// A product over the axis of a softmax that is itself of a product.
    fn attention(&self, node: &OpNode) -> Option<String> {
        let found = find(&View::of(self.graph, self.region), node)?;
        let why = match found {
            Err(why) => why,
            Ok(found) => {
                let mut b = Builder::resume(self.graph.clone());
                b.reopen(self.region);
                let formula = found.formula(&mut b);
                attention_of(&mut b, &formula).err()?.message
            }
        };
        let axis = node.operands.iter().find_map(|p| match self.composite(*p)? {
            CompositeKind::Softmax { axis } => Some(axis),
            _ => None,
        });
        let over = axis.map(|axis| format!(" over {axis}")).unwrap_or_default();
        Some(format!("softmax{over} is not recognised as attention: {why}"))
    }

    /// The logarithm of summed exponentials of a product, of which no cross-entropy was made.
    fn log_sum_exp(&self, node: &OpNode) -> Option<String> {
        let view = View::of(self.graph, self.region);
        if node.op != Op::Unary(UnaryOp::Log) {
            return None;
        }
        let (e, axis) = view.reduced(ReduceOp::Sum, node.operands[0])?;
        let mut logits = view.unary(UnaryOp::Exp, e)?;
        while let Some((x, shift)) = view.binary(BinaryOp::Sub, logits)
            && !self.graph.ty(shift).has(&axis)
        {
            logits = x;
        }
        view.op(logits).filter(|product| matches!(product.op, Op::Dot { .. }))?;
        let nodes = || self.graph.region(self.region).ops.iter().map(|op| self.graph.op(*op));
        let taken = nodes().any(|node| {
            let is_head =
                matches!(&node.op, Op::Composite(c) if matches!(c.kind, CompositeKind::CrossEntropy { .. }));
            is_head && node.operands[0] == logits
        });
        // Without a target it is no loss of classes, but a penalty on the size of logits.
        let has_target = nodes().any(|node| {
            node.op == (Op::Gather { axis: axis.clone() })
                && leaves(&view, node.operands[0]).contains(&logits)
        });
        (has_target && !taken).then(|| {
            let logits = self.name(logits);
            format!(
                "log(sum[{axis}](exp(%{logits}))) is not recognised as a cross-entropy: what it is subtracted from is not \
                 %{logits} at one target per row, by gather[{axis}] or a one-hot product"
            )
        })
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
