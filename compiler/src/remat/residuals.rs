//! Which loops save for which: a forward loop's stacked outs and the loops of the same region that take their slices.

use crate::graph::{Graph, Loop, OpId, RegionId, ValueId};

/// The loop an op is, if it is one.
pub fn loop_of(graph: &Graph, op: OpId) -> Option<Loop> {
    graph.op(op).op.as_loop().cloned()
}

/// A value of a forward loop's body that is saved for other loops.
#[derive(Clone, Debug, PartialEq)]
pub struct Residual {
    /// The value in the body.
    pub inner: ValueId,
    /// The stack, a result of the loop.
    pub stack: ValueId,
    /// Loops of the same region that take the stack's slices.
    pub users: Vec<OpId>,
}

/// Residuals of a loop that stands in `around`: stacks which nothing reads but slices, one by one, in loops over the same
/// slices.
pub fn residuals(graph: &Graph, around: RegionId, forward: OpId) -> Vec<Residual> {
    let Some(l) = loop_of(graph, forward) else { return Vec::new() };
    let results = &graph.region(around).results;
    let stacks = l.carries..l.carries + l.stacked_outs;
    let found = stacks.map(|j| Residual {
        inner: graph.region(l.body).results[j],
        stack: graph.op(forward).results[j],
        users: users(graph, around, graph.op(forward).results[j]),
    });
    found
        .filter(|r| !r.users.is_empty() && !results.contains(&r.stack))
        .filter(|r| r.users.iter().all(|user| takes_slices_only(graph, *user, r.stack, &l)))
        .collect()
}

fn users(graph: &Graph, around: RegionId, value: ValueId) -> Vec<OpId> {
    let ops = graph.region(around).ops.iter().copied();
    ops.filter(|op| graph.op(*op).operands.contains(&value)).collect()
}

/// Whether an op is a loop over the same slices that takes the stack as a stacked operand, once.
fn takes_slices_only(graph: &Graph, user: OpId, stack: ValueId, forward: &Loop) -> bool {
    let Some(l) = loop_of(graph, user) else { return false };
    let operands = &graph.op(user).operands;
    let times = operands.iter().filter(|v| **v == stack).count();
    let sliced = operands[l.carries..l.carries + l.stacked].contains(&stack);
    times == 1 && sliced && l.axis == forward.axis && l.trip == forward.trip && l.block == forward.block
}
