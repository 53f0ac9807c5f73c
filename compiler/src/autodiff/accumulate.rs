//! Gradient accumulation: the batch in microbatches, one after the other.
//!
//! Before differentiation the forward graph is narrowed to one microbatch ([`narrow_to_microbatch`]); afterwards
//! forward and backward become the body of a loop over blocks of the batch axis, whose sums are the gradients, the loss
//! sum and its weight ([`accumulate`]). Since the loss is a sum and its weight is applied in the update, nothing needs
//! rescaling, whatever the mask.

use super::AutodiffError;
use super::batch_positions::{MICROBATCH_INPUT, globalise_batch_positions};
use super::config::Microbatch;
use crate::graph::shape::{show, slice_type};
use crate::graph::{
    Axis, Builder, CompositeKind, DType, Graph, Loop, Name, Op, OpId, Origin, Output, RegionId, Type, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Number of microbatches in the batch of a graph.
///
/// # Errors
/// No input has the axis, or the microbatch does not divide it.
pub fn microbatches(graph: &Graph, micro: &Microbatch) -> Result<u64, AutodiffError> {
    let size = inputs(graph)
        .find_map(|(_, value)| graph.ty(value).size_of(&micro.axis))
        .ok_or_else(|| AutodiffError::new(format!("no input has the batch axis {}", micro.axis)))?;
    if micro.size == 0 || !size.is_multiple_of(micro.size) {
        let axis = &micro.axis;
        return Err(AutodiffError::new(format!(
            "{axis}={size} does not divide into microbatches of {}",
            micro.size
        )));
    }
    Ok(size / micro.size)
}

fn inputs(graph: &Graph) -> impl Iterator<Item = (OpId, ValueId)> + '_ {
    let ops = graph.region(graph.body).ops.iter();
    ops.filter(|op| matches!(graph.op(**op).op, Op::Input { .. })).map(|op| (*op, graph.op(*op).results[0]))
}

/// Narrows a forward graph to one microbatch. Every axis that is the batch axis, or a renaming of it, gets the
/// microbatch's size. A result that does not depend on the batch (a constant weight) is divided by the number of
/// microbatches, because it will be summed over them. Positions along the batch axis stay those in the whole batch.
///
/// # Errors
/// See [`microbatches`]; a loop runs over the batch axis, or a composite's meaning asks for positions along it.
pub fn narrow_to_microbatch(graph: Graph, micro: &Microbatch) -> Result<Graph, AutodiffError> {
    let count = microbatches(&graph, micro)?;
    if count == 1 {
        return Ok(graph);
    }
    let whole = micro.size * count;
    let names = batch_names(&graph, micro, whole);
    let dependent = batch_dependent(&graph, &names, whole);
    let mut graph = graph;
    for value in &mut graph.values {
        for axis in &mut value.ty.axes {
            if names.contains(&axis.name) && axis.size == whole {
                axis.size = micro.size;
            }
        }
    }
    for node in &mut graph.ops {
        match &mut node.op {
            Op::Loop(l) if names.contains(&l.axis) && l.trip * l.block.unwrap_or(1) == whole => {
                let message = format!("a loop over the batch axis {} can't be cut into microbatches", l.axis);
                return Err(AutodiffError { message, line: Some(node.origin.line.clone()) });
            }
            Op::Composite(c) => {
                if let CompositeKind::LossHead(head) = &mut c.kind {
                    for (axis, chunk) in &mut head.chunks {
                        if names.contains(axis) {
                            *chunk = largest_divisor(micro.size, *chunk);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    let graph = divide_independent(graph, &dependent, count);
    globalise_batch_positions(graph, &names, micro.size)
}

/// The largest divisor of `n` that is at most `bound`; at least 1.
pub(crate) fn largest_divisor(n: u64, bound: u64) -> u64 {
    (1..=bound.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}

/// The batch axis and all names it is renamed to.
fn batch_names(graph: &Graph, micro: &Microbatch, whole: u64) -> BTreeSet<Name> {
    let mut names = BTreeSet::from([micro.axis.clone()]);
    loop {
        let before = names.len();
        for node in &graph.ops {
            if let Op::Rename { pairs } = &node.op {
                let renamed = pairs.iter().filter(|(old, new)| {
                    names.contains(old) && graph.ty(node.results[0]).size_of(new) == Some(whole)
                });
                let renamed: Vec<Name> = renamed.map(|(_, new)| new.clone()).collect();
                names.extend(renamed);
            }
        }
        if names.len() == before {
            return names;
        }
    }
}

/// Values of the body that are computed from one with the batch axis.
fn batch_dependent(graph: &Graph, names: &BTreeSet<Name>, whole: u64) -> BTreeSet<ValueId> {
    let mut dependent = BTreeSet::new();
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let has_axis =
            |v: &ValueId| graph.ty(*v).axes.iter().any(|a| names.contains(&a.name) && a.size == whole);
        if node.operands.iter().any(|v| dependent.contains(v)) || node.results.iter().any(has_axis) {
            dependent.extend(&node.results);
        }
    }
    dependent
}

fn divide_independent(graph: Graph, dependent: &BTreeSet<ValueId>, count: u64) -> Graph {
    let mut b = Builder::resume(graph);
    let body = b.graph.body;
    for i in 0..b.graph.region(body).results.len() {
        let value = b.graph.region(body).results[i];
        if !dependent.contains(&value) {
            let count = b.constant(b.ty(value).dtype, count as f64);
            let part = b.div(value, count);
            b.graph.regions[body.index()].results[i] = part;
        }
    }
    b.finish()
}

/// Wraps a graph of one microbatch into a loop over all of them. Inputs with the batch axis become whole again and are
/// cut by the loop; every result of the body becomes the sum over microbatches. Parameters, states and scalars stay
/// outside. With one microbatch the graph comes back as it is.
///
/// `values` are values of the body to hand on besides the graph's results; their sums are returned in order.
///
/// # Errors
/// A result depends on which microbatch it is of, by having the batch axis.
pub fn accumulate(
    graph: Graph,
    micro: &Microbatch,
    count: u64,
    values: &[ValueId],
) -> Result<(Graph, Vec<ValueId>), AutodiffError> {
    if count == 1 {
        return Ok((graph, values.to_vec()));
    }
    let results = graph.region(graph.body).results.clone();
    for value in results.iter().chain(values) {
        if graph.ty(*value).has(&micro.axis) {
            let (name, ty) = (graph.value_name(*value), show(graph.ty(*value)));
            let axis = &micro.axis;
            return Err(AutodiffError::new(format!("%{name} : {ty} can't be summed over blocks of {axis}")));
        }
    }
    let mut b = Builder::new(&graph.name);
    let mut map = BTreeMap::new();
    let mut operands = Operands::default();
    for &op in &graph.region(graph.body).ops {
        copy_source(&mut b, &graph, op, micro, count, &mut map, &mut operands);
    }
    let whole = Loop {
        axis: micro.axis.clone(),
        trip: count,
        block: Some(micro.size),
        reverse: false,
        microbatches: true,
        carries: 0,
        stacked: operands.stacked.len(),
        stacked_outs: 0,
        body: RegionId(0),
    };
    let outside: Vec<ValueId> =
        operands.stacked.iter().chain(&operands.invariant).map(|(_, new)| *new).collect();
    let mut args: Vec<(Name, Type)> = vec![("microbatch".into(), Type::scalar(DType::I32))];
    for (i, value) in outside.iter().enumerate() {
        let ty = b.ty(*value);
        let ty = if i < whole.stacked { slice_type(&whole, ty).expect("has the axis") } else { ty.clone() };
        args.push((b.graph.value_name(*value).clone(), ty));
    }
    let (body, args) = b.open(&args);
    let sources = operands.stacked.iter().chain(&operands.invariant).map(|(old, _)| *old);
    let mut inside: BTreeMap<ValueId, ValueId> = sources.zip(args[1..].iter().copied()).collect();
    for &op in &graph.region(graph.body).ops {
        match &graph.op(op).op {
            Op::Input { name, .. } if name.as_str() == MICROBATCH_INPUT => {
                inside.insert(graph.op(op).results[0], args[0]);
            }
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } | Op::Scalar { .. } => {}
            _ => {
                b.copy_op(&graph, op, &mut inside);
            }
        }
    }
    let all: Vec<ValueId> = results.iter().chain(values).map(|v| inside[v]).collect();
    b.close(all);
    b.origin = Origin::default();
    let sums = b.repeat(Loop { body, ..whole }, &outside, "sum");
    for (new, old) in sums.iter().zip(results.iter().chain(values)) {
        b.set_name(*new, &format!("{}.sum", graph.value_name(*old)));
    }
    for (output, value) in graph.outputs.iter().zip(&sums) {
        b.output(output.clone(), *value);
    }
    Ok((b.finish(), sums[results.len()..].to_vec()))
}

/// Sources of the whole graph: (value in the microbatch's graph, value in the new one).
#[derive(Default)]
struct Operands {
    stacked: Vec<(ValueId, ValueId)>,
    invariant: Vec<(ValueId, ValueId)>,
}

fn copy_source(
    b: &mut Builder,
    from: &Graph,
    op: OpId,
    micro: &Microbatch,
    count: u64,
    map: &mut BTreeMap<ValueId, ValueId>,
    operands: &mut Operands,
) {
    let node = from.op(op);
    match &node.op {
        Op::Input { name, .. } if name.as_str() == MICROBATCH_INPUT => return,
        Op::Input { .. } | Op::Param { .. } | Op::State { .. } | Op::Scalar { .. } => {}
        _ => return,
    }
    let new = b.copy_op(from, op, map);
    let value = b.graph.op(new).results[0];
    let is_input = matches!(node.op, Op::Input { .. });
    match b.ty(value).position(&micro.axis) {
        Some(at) if is_input => {
            b.graph.values[value.index()].ty.axes[at] = Axis::new(&micro.axis, micro.size * count);
            operands.stacked.push((node.results[0], value));
        }
        _ => operands.invariant.push((node.results[0], value)),
    }
}

/// Whether an output is one a training step sums over microbatches.
pub(super) fn is_report(output: &Output, name: &str) -> bool {
    matches!(output, Output::Report(n) if n.as_str() == name)
}
