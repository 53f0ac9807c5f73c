//! Gradients of several microbatches are summed over ranks once, at the end: `store { grads = whole }`.

use crate::graph::{Graph, MeshOp, Op, OpId, OpNode, ReduceOp, RegionId};

/// Moves what sums terms over ranks from every microbatch behind the loop over microbatches. Its sums then add up each rank's
/// own terms: a gradient is sent once a step, and every rank holds its sum unreduced.
///
/// For each sum of the loop, `Σᵢ reshard(xᵢ) = reshard(Σᵢ xᵢ)`, because a reshard that sums, or only moves, is linear. So it
/// may leave, if nothing else in the microbatch reads what it gives; where the loop's sum is what an inner loop stacks or
/// sums, it leaves that loop first. A maximum is not linear in this sense and stays, and so does what is clipped, squared or
/// carried on microbatch by microbatch.
///
/// Works on graphs at stage sharded. Sums of floats are associated differently.
///
/// Source: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), §7.1; the choice is `no_sync` of Li et al. 2020 (PyTorch
/// Distributed, arXiv:2006.15704), §3.2.4.
pub fn sum_after_microbatches(mut graph: Graph) -> Graph {
    for region in graph.executed_regions() {
        for op in graph.region(region).ops.clone() {
            let Some(l) = graph.op(op).op.as_loop().filter(|l| l.microbatches) else { continue };
            for result in l.carries + l.stacked_outs..graph.op(op).results.len() {
                leave(&mut graph, region, op, result);
            }
        }
    }
    graph
}

/// Moves the reshard that makes a loop's result behind the loop; whether it did.
fn leave(graph: &mut Graph, around: RegionId, op: OpId, result: usize) -> bool {
    let Some(l) = graph.op(op).op.as_loop().cloned() else { return false };
    let value = graph.region(l.body).results[result];
    // Blocks of a stack may be split in blocks, which the reshard says nothing of.
    let is_stacked = (l.carries..l.carries + l.stacked_outs).contains(&result);
    if result < l.carries || (is_stacked && l.block.is_some()) || graph.use_counts(l.body)[&value] > 1 {
        return false;
    }
    let Some(made_by) = graph.definitions(l.body).get(&value).copied() else { return false };
    if sums_terms(graph, made_by) {
        move_behind(graph, around, op, result, made_by);
        return true;
    }
    let at = graph.op(made_by).results.iter().position(|v| *v == value).unwrap_or(0);
    leave(graph, l.body, made_by, at) && leave(graph, around, op, result)
}

/// Whether an op is a reshard that takes terms of sums and leaves fewer.
fn sums_terms(graph: &Graph, op: OpId) -> bool {
    let node = graph.op(op);
    if !matches!(node.op, Op::Mesh(MeshOp::Reshard { .. })) {
        return false;
    }
    let [from, to] = [node.operands[0], node.results[0]].map(|v| &graph.sharding(v).partial);
    let mut reduced = from.iter().filter(|(axis, _)| !to.contains_key(*axis)).peekable();
    reduced.peek().is_some() && reduced.all(|(_, reduction)| *reduction == ReduceOp::Sum)
}

fn move_behind(graph: &mut Graph, around: RegionId, op: OpId, result: usize, reshard: OpId) {
    let body = graph.op(op).op.as_loop().expect("a loop").body;
    let terms = graph.op(reshard).operands[0];
    graph.regions[body.index()].ops.retain(|inner| *inner != reshard);
    graph.regions[body.index()].results[result] = terms;
    let old = graph.op(op).results[result];
    let new = graph.add_value(graph.value_name(old).clone().as_str(), graph.ty(old).clone());
    graph.swap_names(old, new);
    graph.values[new.index()].sharding = graph.sharding(old).clone();
    graph.values[old.index()].sharding = graph.sharding(terms).clone();
    graph.replace_uses(around, old, new);
    let id = OpId(graph.ops.len() as u32);
    let node = graph.op(reshard).clone();
    graph.ops.push(OpNode { operands: vec![old], results: vec![new], ..node });
    let ops = &mut graph.regions[around.index()].ops;
    let at = ops.iter().position(|o| *o == op).expect("the loop is in its region");
    ops.insert(at + 1, id);
}
