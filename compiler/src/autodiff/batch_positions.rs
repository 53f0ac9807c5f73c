//! Positions along the batch axis in a graph that was narrowed to one microbatch.
//!
//! `index[batch]` means the position in the whole batch. In the graph of one microbatch it becomes the position in the
//! microbatch plus the microbatch's first position, which is `number · size`; the number is an input that
//! [`accumulate`](super::accumulate::accumulate) replaces by the index of its loop.
//!
//! 1. The input and the first position are put at the beginning of the body.
//! 2. Loops that hold such positions, at any depth, get the first position as one more invariant operand.
//! 3. Behind each position the sum is formed, and its users take that.

use super::AutodiffError;
use crate::graph::{BinaryOp, Builder, DType, Graph, Name, Op, OpId, RegionId, Type, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Name of the input that holds the number of the microbatch, i32[]. No input of a spec has a dot in its name.
pub(super) const MICROBATCH_INPUT: &str = "microbatch.index";

/// Makes positions along the axes `names` global; `size` is that of a microbatch.
///
/// # Errors
/// A composite's meaning or score asks for such a position: it is closed, so the first position can't reach it.
pub(super) fn globalise_batch_positions(
    graph: Graph,
    names: &BTreeSet<Name>,
    size: u64,
) -> Result<Graph, AutodiffError> {
    if !asks(&graph, graph.body, names)? {
        return Ok(graph);
    }
    let mut b = Builder::resume(graph);
    let body = b.graph.body;
    let behind = std::mem::take(&mut b.graph.regions[body.index()].ops);
    let number = b.input(MICROBATCH_INPUT, Type::scalar(DType::I32), 0);
    let first = b.scale(number, size as f64);
    b.graph.regions[body.index()].ops.extend(behind);
    shift(&mut b, body, names, first)?;
    Ok(b.finish())
}

/// Whether a region or a loop in it asks for positions along the axes.
fn asks(graph: &Graph, region: RegionId, names: &BTreeSet<Name>) -> Result<bool, AutodiffError> {
    let mut found = false;
    for &op in &graph.region(region).ops {
        let node = graph.op(op);
        match &node.op {
            Op::Index { axis } => found |= names.contains(axis),
            Op::Loop(l) => found |= asks(graph, l.body, names)?,
            other => {
                for nested in graph.regions_of(other) {
                    if asks(graph, nested, names)? {
                        let name = crate::graph::shape::op_name(other);
                        let message = format!(
                            "{name} uses positions along the batch axis, which differ between microbatches"
                        );
                        return Err(AutodiffError { message, line: Some(node.origin.line.clone()) });
                    }
                }
            }
        }
    }
    Ok(found)
}

fn shift(
    b: &mut Builder,
    region: RegionId,
    names: &BTreeSet<Name>,
    first: ValueId,
) -> Result<(), AutodiffError> {
    let ops = std::mem::take(&mut b.graph.regions[region.index()].ops);
    let mut global: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    b.reopen(region);
    for op in ops {
        for operand in &mut b.graph.ops[op.index()].operands {
            *operand = global.get(operand).copied().unwrap_or(*operand);
        }
        b.graph.regions[region.index()].ops.push(op);
        match b.graph.op(op).op.clone() {
            Op::Index { axis } if names.contains(&axis) => {
                b.origin = b.graph.op(op).origin.clone();
                let local = b.graph.op(op).results[0];
                let sum = b.binary(BinaryOp::Add, local, first);
                global.insert(local, sum);
            }
            Op::Loop(l) if asks(&b.graph, l.body, names)? => {
                let inside = pass_in(b, op, l.body, first);
                shift(b, l.body, names, inside)?;
            }
            _ => {}
        }
    }
    b.leave();
    for result in &mut b.graph.regions[region.index()].results {
        *result = global.get(result).copied().unwrap_or(*result);
    }
    Ok(())
}

/// A further invariant of a loop; its argument in the body.
fn pass_in(b: &mut Builder, op: OpId, body: RegionId, value: ValueId) -> ValueId {
    let (name, ty) = (b.graph.value_name(value).clone(), b.ty(value).clone());
    let argument = b.graph.add_value(&name, ty);
    b.graph.ops[op.index()].operands.push(value);
    b.graph.regions[body.index()].args.push(argument);
    argument
}
