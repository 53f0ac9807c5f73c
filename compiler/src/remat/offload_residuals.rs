//! Residuals that are to lie in the host's memory become copies.
//!
//! ```text
//! forward body   %h = …;  %h.host = to_host %h;  yield stacked %h.host
//! backward body  stacked %h.1 = …;  %h.2 = to_device %h.1;  …
//! ```
//! 1. For each residual of that kind, the forward body copies it to the host right behind the op that makes it, or at
//!    its start if it is a carry, and stacks the copy.
//! 2. The body of each loop that takes a slice brings it back right before its first use.
//!
//! Terminates: one walk over the loops of each region.

use super::decide::{Choice, Decision, Decisions};
use super::residuals::{Residual, loop_of, residuals};
use crate::graph::{Graph, Op, OpId, OpNode, Origin, Phase, Space, ValueId};

/// Moves every residual to the host's memory.
pub fn offload_residuals(graph: Graph) -> Graph {
    let everything = Decision { choice: Choice::Offload, rule: None };
    let decisions = (0..graph.values.len() as u32).map(|i| (ValueId(i), everything)).collect();
    offload(graph, &decisions)
}

/// Moves the residuals that are decided so.
pub fn offload(mut graph: Graph, decisions: &Decisions) -> Graph {
    for region in graph.executed_regions() {
        for op in graph.region(region).ops.clone() {
            for residual in residuals(&graph, region, op) {
                if decisions.get(&residual.inner).is_some_and(|d| d.choice == Choice::Offload) {
                    move_out(&mut graph, op, &residual);
                    for user in &residual.users {
                        bring_back(&mut graph, *user, residual.stack);
                    }
                }
            }
        }
    }
    graph
}

fn move_out(graph: &mut Graph, forward: OpId, residual: &Residual) {
    let Some(l) = loop_of(graph, forward) else { return };
    let at_loop = graph.op(forward).origin.clone();
    let made_at =
        graph.region(l.body).ops.iter().position(|op| graph.op(*op).results.contains(&residual.inner));
    let origin = match made_at {
        Some(at) => graph.op(graph.region(l.body).ops[at]).origin.clone(),
        None => at_loop,
    };
    let name = format!("{}.host", graph.value_name(residual.inner));
    let copy = transfer(graph, residual.inner, Space::Host, &name, origin);
    let region = &mut graph.regions[l.body.index()];
    region.ops.insert(made_at.map_or(0, |at| at + 1), copy);
    let stacks = l.carries..l.carries + l.stacked_outs;
    let moved = graph.ops[copy.index()].results[0];
    for j in stacks {
        if graph.ops[forward.index()].results[j] == residual.stack {
            graph.regions[l.body.index()].results[j] = moved;
        }
    }
}

fn bring_back(graph: &mut Graph, user: OpId, stack: ValueId) {
    let Some(l) = loop_of(graph, user) else { return };
    let at = graph.op(user).operands.iter().position(|v| *v == stack).expect("the user takes the stack");
    let arg = graph.region(l.body).args[1 + at];
    let ops = &graph.region(l.body).ops;
    let first = ops.iter().position(|op| graph.op(*op).operands.contains(&arg));
    let origin = match first {
        Some(first) => graph.op(ops[first]).origin.clone(),
        None => graph.op(user).origin.clone(),
    };
    let origin = Origin { phase: Phase::BackwardInput, ..origin };
    let name = graph.value_name(arg).to_string();
    let back = transfer(graph, arg, Space::Device, &name, origin);
    let value = graph.op(back).results[0];
    // The op that makes it is not among the ops yet.
    graph.replace_uses(l.body, arg, value);
    let ops = &mut graph.regions[l.body.index()].ops;
    ops.insert(first.unwrap_or(ops.len()), back);
}

fn transfer(graph: &mut Graph, value: ValueId, to: Space, name: &str, origin: Origin) -> OpId {
    let ty = graph.ty(value).clone();
    let result = graph.add_value(name, ty);
    let id = OpId(graph.ops.len() as u32);
    graph.ops.push(OpNode { op: Op::Transfer { to }, operands: vec![value], results: vec![result], origin });
    id
}
