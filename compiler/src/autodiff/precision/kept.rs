//! Which values derivatives need: an over-estimate, one rule per op, the counterpart of `autodiff/rules.rs`.

use crate::autodiff::activity::Activity;
use crate::graph::{BinaryOp, CompositeKind, Graph, Op, OpNode, ReduceOp, RegionId, UnaryOp, ValueId};
use std::collections::BTreeSet;

/// Values of the body and of all loop bodies that the derivative of an op reading them needs. `products`: also operands of
/// products, which keep them as they read them.
pub(super) fn kept(graph: &Graph, activity: &Activity, products: bool) -> BTreeSet<ValueId> {
    let mut walk = Walk { graph, activity, products, kept: BTreeSet::new() };
    walk.region(graph.body);
    walk.kept
}

struct Walk<'g> {
    graph: &'g Graph,
    activity: &'g Activity,
    products: bool,
    kept: BTreeSet<ValueId>,
}

impl Walk<'_> {
    fn region(&mut self, region: RegionId) {
        for &op in self.graph.region(region).ops.iter().rev() {
            let node = self.graph.op(op);
            let needed = self.needs(node);
            self.kept.extend(needed);
        }
    }

    /// The operands an op's derivative needs.
    fn needs(&mut self, node: &OpNode) -> Vec<ValueId> {
        let varied = |i: usize| self.activity.varied(node.operands[i]);
        let operand = |i: usize| node.operands[i];
        let some = |is: &[usize]| is.iter().map(|i| operand(*i)).collect::<Vec<_>>();
        let each_others = || {
            let needed = [(0, 1), (1, 0)].into_iter().filter(|(_, other)| varied(*other));
            needed.map(|(i, _)| operand(i)).collect()
        };
        match &node.op {
            // Read again from the operand.
            Op::Broadcast | Op::Rename { .. } | Op::Cast if self.kept.contains(&node.results[0]) => {
                some(&[0])
            }
            Op::Broadcast | Op::Rename { .. } | Op::Cast => Vec::new(),
            Op::Unary(u) => match u {
                UnaryOp::Abs
                | UnaryOp::Exp
                | UnaryOp::Log
                | UnaryOp::Sqrt
                | UnaryOp::Rsqrt
                | UnaryOp::Tanh
                | UnaryOp::Sigmoid
                | UnaryOp::Sin
                | UnaryOp::Cos
                | UnaryOp::Erf => some(&[0]),
                UnaryOp::Neg | UnaryOp::Floor | UnaryOp::Not => Vec::new(),
            },
            Op::Binary(b) => match b {
                BinaryOp::Mul => each_others(),
                BinaryOp::Div => {
                    if varied(1) {
                        some(&[0, 1])
                    } else {
                        some(&[1])
                    }
                }
                BinaryOp::Max | BinaryOp::Min | BinaryOp::Pow => some(&[0, 1]),
                BinaryOp::Add
                | BinaryOp::Sub
                | BinaryOp::Rem
                | BinaryOp::And
                | BinaryOp::Or
                | BinaryOp::Threefry => Vec::new(),
            },
            Op::Reduce { op, .. } => match op {
                ReduceOp::Sum => Vec::new(),
                ReduceOp::Max | ReduceOp::Min => some(&[0]),
            },
            Op::Dot { .. } if self.products => each_others(),
            Op::Composite(c) => match &c.kind {
                CompositeKind::RmsNorm { .. } | CompositeKind::LayerNorm { .. } => some(&[0]),
                CompositeKind::GroupedDot { .. } | CompositeKind::GroupedOuter { .. } => some(&[0, 1]),
                CompositeKind::Custom(_) => node.operands.clone(),
                CompositeKind::Attention(_) if self.products => some(&[0, 1, 2]),
                CompositeKind::LossHead(_) if self.products => some(&[0, 1]),
                // Softmax keeps its result; what a loss keeps has the precision of reductions.
                CompositeKind::Attention(_)
                | CompositeKind::LossHead(_)
                | CompositeKind::Softmax { .. }
                | CompositeKind::Rope { .. }
                | CompositeKind::CrossEntropy { .. }
                | CompositeKind::AttentionGrad(_) => Vec::new(),
            },
            Op::Loop(l) => {
                self.region(l.body);
                let args = &self.graph.region(l.body).args[1..];
                let pairs = args.iter().zip(&node.operands).skip(l.carries);
                pairs.filter(|(arg, _)| self.kept.contains(arg)).map(|(_, v)| *v).collect()
            }
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
            | Op::Index { .. }
            | Op::Compare(_)
            | Op::Select
            | Op::Dot { .. }
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::CumSum { .. }
            | Op::RotatePairs { .. }
            | Op::Transfer { .. }
            | Op::Mesh(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Update(_) => Vec::new(),
        }
    }
}
