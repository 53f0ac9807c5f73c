//! Moves work that does not change from one iteration to the next out of loops.
//!
//! A value is invariant if it is an invariant of the loop, a constant, an index, or an op on such values only. It moves
//! out if making it costs more than reading it: it is, or is computed element-wise from, a function such as a sine, a
//! reduction, a product or a lookup, or it is a copy in bf16. Cheap expressions of positions (a mask) stay: as a tensor they would cost memory
//! traffic in every iteration, computed where they are used they cost nothing.
//!
//! 1. Loops are taken innermost first, so that what leaves one may leave the next.
//! 2. In op order, mark invariant ops and which of them are worth moving.
//! 3. Copy those, with the cheap ones they need, in front of the loop; each becomes an invariant operand.
//! 4. What the copies made superfluous in the body is dropped.

use crate::graph::passes::drop_dead;
use crate::graph::{BinaryOp, Builder, DType, Graph, Op, OpId, OpNode, RegionId, UnaryOp, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Moves invariant work out of every loop. Numbers do not change.
pub fn hoist_invariants(mut graph: Graph) -> Graph {
    for region in graph.executed_regions().into_iter().rev() {
        for op in graph.region(region).ops.clone() {
            if matches!(graph.op(op).op, Op::Loop(_)) {
                graph = hoist_from(graph, region, op);
            }
        }
    }
    drop_dead(&mut graph);
    graph
}

fn hoist_from(graph: Graph, outer: RegionId, op: OpId) -> Graph {
    let (needed, worth) = invariant_ops(&graph, op);
    if worth.is_empty() {
        return graph;
    }
    let Op::Loop(l) = graph.op(op).op.clone() else { return graph };
    let from = graph.clone();
    let mut b = Builder::resume(graph);
    let at = b.graph.region(outer).ops.iter().position(|o| *o == op).expect("the loop is in its region");
    let behind = b.graph.regions[outer.index()].ops.split_off(at);

    b.reopen(outer);
    let first_invariant = l.carries + l.stacked;
    let args = from.region(l.body).args[1 + first_invariant..].iter();
    let mut map: BTreeMap<ValueId, ValueId> =
        args.copied().zip(from.op(op).operands[first_invariant..].iter().copied()).collect();
    for &id in from.region(l.body).ops.iter().filter(|id| needed.contains(id)) {
        b.copy_op(&from, id, &mut map);
    }
    b.leave();
    b.graph.regions[outer.index()].ops.extend(behind);

    // The results that moved become arguments of the body, under their own ids.
    for id in &worth {
        for &result in &from.op(*id).results {
            b.graph.ops[op.index()].operands.push(map[&result]);
            b.graph.regions[l.body.index()].args.push(result);
        }
    }
    b.graph.regions[l.body.index()].ops.retain(|id| !worth.contains(id));
    b.finish()
}

/// (ops to copy in front of the loop, those among them that leave the body).
fn invariant_ops(graph: &Graph, op: OpId) -> (BTreeSet<OpId>, BTreeSet<OpId>) {
    let Op::Loop(l) = &graph.op(op).op else { return Default::default() };
    let body = graph.region(l.body);
    let mut invariant: BTreeSet<ValueId> = body.args[1 + l.carries + l.stacked..].iter().copied().collect();
    let mut made_by: BTreeMap<ValueId, OpId> = BTreeMap::new();
    let mut worth = BTreeSet::new();
    for &id in &body.ops {
        let node = graph.op(id);
        if !node.operands.iter().all(|v| invariant.contains(v)) {
            continue;
        }
        invariant.extend(&node.results);
        made_by.extend(node.results.iter().map(|r| (*r, id)));
        let from_worth = || node.operands.iter().any(|v| made_by.get(v).is_some_and(|m| worth.contains(m)));
        // Element-wise ops move along with a costly operand. A broadcast does not: it would only make the tensor larger.
        if is_costly(graph, node) || node.op.is_elementwise() && from_worth() {
            worth.insert(id);
        }
    }
    let mut needed = worth.clone();
    for &id in body.ops.iter().rev() {
        if needed.contains(&id) {
            needed.extend(graph.op(id).operands.iter().filter_map(|v| made_by.get(v)));
        }
    }
    (needed, worth)
}

/// Whether making the result costs clearly more than reading it.
fn is_costly(graph: &Graph, node: &OpNode) -> bool {
    match &node.op {
        // A copy of half the size, made once: parameters are rounded once a step.
        Op::Cast => {
            graph.ty(node.results[0]).dtype == DType::Bf16 && !graph.ty(node.results[0]).axes.is_empty()
        }
        Op::Unary(u) => match u {
            UnaryOp::Exp
            | UnaryOp::Log
            | UnaryOp::Sqrt
            | UnaryOp::Rsqrt
            | UnaryOp::Tanh
            | UnaryOp::Sigmoid
            | UnaryOp::Sin
            | UnaryOp::Cos
            | UnaryOp::Erf => true,
            UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Floor | UnaryOp::Not => false,
        },
        Op::Binary(b) => matches!(b, BinaryOp::Pow | BinaryOp::Threefry),
        Op::Reduce { .. }
        | Op::Dot { .. }
        | Op::Gather { .. }
        | Op::ScatterAdd { .. }
        | Op::CumSum { .. }
        | Op::Loop(_)
        | Op::Composite(_) => true,
        Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Const(_)
        | Op::Index { .. }
        | Op::Compare(_)
        | Op::Select
        | Op::Broadcast
        | Op::Rename { .. }
        | Op::RotatePairs { .. }
        | Op::Transfer { .. }
        | Op::Mesh(_)
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Update(_) => false,
    }
}
