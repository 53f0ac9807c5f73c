//! Removes what no result needs.
//!
//! 1. In a region, from the last op to the first: an op is kept if one of its results is needed; then its operands are.
//! 2. Inside a loop, a result nobody outside needs is dropped, and so are carries that only feed themselves, and operands
//!    whose argument is not used. The set of carries that stay grows until it feeds itself, at most once per carry.
//! 3. Composites and updates keep their operands and results: their signature means something to a kernel.
//! 4. The arenas are rebuilt, without ids that nothing refers to.

use crate::graph::{Builder, Graph, Loop, Op, OpId, RegionId, ValueId};
use std::collections::BTreeSet;

/// Removes ops, loop carries, loop operands and loop results that no output needs.
pub fn eliminate_dead(mut graph: Graph) -> Graph {
    drop_dead(&mut graph);
    rebuilt(&graph)
}

/// As [`eliminate_dead`], in place: ids stay what they were.
pub fn drop_dead(graph: &mut Graph) {
    let body = graph.body;
    let needed = graph.region(body).results.iter().copied().collect();
    sweep(graph, body, needed);
}

/// Keeps what `needed` depends on; gives all values of the region that are needed.
fn sweep(graph: &mut Graph, region: RegionId, mut needed: BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    let mut kept: Vec<OpId> = Vec::new();
    for id in graph.region(region).ops.clone().into_iter().rev() {
        if !graph.op(id).results.iter().any(|r| needed.contains(r)) {
            continue;
        }
        match graph.op(id).op.clone() {
            Op::Loop(l) => sweep_loop(graph, id, &l, &needed),
            other => {
                for nested in graph.regions_of(&other) {
                    let results = graph.region(nested).results.iter().copied().collect();
                    sweep(graph, nested, results);
                }
            }
        }
        needed.extend(&graph.op(id).operands);
        kept.push(id);
    }
    kept.reverse();
    graph.regions[region.index()].ops = kept;
    needed
}

/// What the loop's body needs if these of its results are needed, without changing it.
fn needs(graph: &Graph, region: RegionId, results: BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    let mut needed = results;
    for id in graph.region(region).ops.iter().rev() {
        let node = graph.op(*id);
        if node.results.iter().any(|r| needed.contains(r)) {
            // Nested loops count whole here; they are swept on their own later.
            needed.extend(&node.operands);
        }
    }
    needed
}

fn sweep_loop(graph: &mut Graph, id: OpId, l: &Loop, needed: &BTreeSet<ValueId>) {
    let node = graph.op(id).clone();
    let body = graph.region(l.body).clone();
    let mut stays: Vec<bool> = node.results.iter().map(|r| needed.contains(r)).collect();
    let live = |stays: &[bool]| -> BTreeSet<ValueId> {
        (0..stays.len()).filter(|i| stays[*i]).map(|i| body.results[i]).collect()
    };
    loop {
        let inside = needs(graph, l.body, live(&stays));
        let fed = (0..l.carries).find(|i| !stays[*i] && inside.contains(&body.args[1 + i]));
        match fed {
            Some(carry) => stays[carry] = true,
            None => break,
        }
    }
    let inside = sweep(graph, l.body, live(&stays));
    let keep_operand = |i: usize| if i < l.carries { stays[i] } else { inside.contains(&body.args[1 + i]) };
    let kept = |i: &usize| keep_operand(*i);
    let operands: Vec<usize> = (0..node.operands.len()).filter(kept).collect();
    let among = |from: usize, to: usize| operands.iter().filter(|i| (from..to).contains(*i)).count();
    let stack_end = l.carries + l.stacked_outs;
    let new = Loop {
        carries: among(0, l.carries),
        stacked: among(l.carries, l.carries + l.stacked),
        stacked_outs: (l.carries..stack_end).filter(|i| stays[*i]).count(),
        ..l.clone()
    };
    let region = &mut graph.regions[l.body.index()];
    region.args = std::iter::once(body.args[0]).chain(operands.iter().map(|i| body.args[1 + i])).collect();
    region.results = (0..stays.len()).filter(|i| stays[*i]).map(|i| body.results[i]).collect();
    let op = &mut graph.ops[id.index()];
    op.op = Op::Loop(new);
    op.operands = operands.iter().map(|i| node.operands[*i]).collect();
    op.results = (0..stays.len()).filter(|i| stays[*i]).map(|i| node.results[i]).collect();
}

/// The same graph with dense arenas.
fn rebuilt(graph: &Graph) -> Graph {
    let mut builder = Builder::like(graph);
    let results = builder.inline(graph, graph.body, &[]);
    for (output, value) in graph.outputs.iter().zip(results) {
        builder.output(output.clone(), value);
    }
    builder.finish()
}
