//! Reverse mode over a graph.
//!
//! 1. Composites without a derivative of their own (a rotary embedding, or one whose second result is used) are replaced
//!    by their meaning; equal ops become one; what does not change in a loop moves out of it; loss heads become their
//!    joint loop.
//! 2. Each seed gets its cotangent.
//! 3. The ops are walked in reverse, each handing cotangents to its operands ([`rules`](super::rules)).
//!
//! Source: Griewank, Walther 2008, Evaluating Derivatives, §3.3 (incremental reverse mode).

use super::activity::Activity;
use super::hoist_invariants::hoist_invariants;
use super::loss_head::{Joint, expand_loss_heads};
use super::rules;
use super::tape::{Tape, cotangent_type};
use super::{AutodiffError, composites};
use crate::graph::passes::share_common;
use crate::graph::{Builder, Graph, Name, Op, OpId, Origin, Phase, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A graph with gradients in it.
#[derive(Debug)]
pub struct Differentiated {
    /// The forward graph with the backward ops behind it.
    pub graph: Graph,
    /// One per parameter that is not frozen, in graph order: its logical path, its value, its gradient: of the same type, f32
    /// for bf16.
    pub gradients: Vec<Gradient>,
}

/// The gradient of one parameter.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// Logical path.
    pub param: Name,
    /// The parameter's value.
    pub value: ValueId,
    /// Its gradient; zeros if the loss does not depend on the parameter.
    pub gradient: ValueId,
}

/// Adds the gradient of one scalar result of the graph with respect to every parameter.
///
/// # Errors
/// The result does not exist or is no scalar of a float type, or an op has no derivative.
pub fn differentiate(graph: Graph, result: usize) -> Result<Differentiated, AutodiffError> {
    differentiate_except(graph, result, &BTreeSet::new())
}

/// As [`differentiate`], with respect to the parameters that are not frozen. What only a frozen parameter's gradient
/// would need is never made.
///
/// # Errors
/// As for [`differentiate`].
pub fn differentiate_except(
    graph: Graph,
    result: usize,
    frozen: &BTreeSet<Name>,
) -> Result<Differentiated, AutodiffError> {
    let loss =
        *graph.region(graph.body).results.get(result).ok_or_else(|| {
            AutodiffError::new(format!("the graph has no result {result} to differentiate"))
        })?;
    if !graph.ty(loss).axes.is_empty() {
        let (name, ty) = (graph.value_name(loss), crate::graph::shape::show(graph.ty(loss)));
        return Err(AutodiffError::new(format!("the loss %{name} must be a scalar, it is {ty}")));
    }
    let params: Vec<(Name, ValueId)> =
        parameters(&graph).into_iter().filter(|(path, _)| !frozen.contains(path)).collect();
    let wanted: Vec<ValueId> = params.iter().map(|(_, v)| *v).collect();
    let (graph, gradients) = pullback(graph, &wanted, |b| {
        let loss = b.graph.region(b.graph.body).results[result];
        let one = b.constant(b.ty(loss).dtype, 1.0);
        vec![(loss, one)]
    })?;
    let mut b = Builder::resume(graph);
    b.origin = Origin { phase: Phase::BackwardWeight, ..Origin::default() };
    let gradients = params
        .into_iter()
        .zip(gradients)
        .map(|((param, value), gradient)| {
            let gradient = gradient.unwrap_or_else(|| {
                let ty = cotangent_type(b.ty(value));
                let zero = b.constant(ty.dtype, 0.0);
                b.broadcast(zero, &ty)
            });
            Gradient { param, value, gradient }
        })
        .collect();
    Ok(Differentiated { graph: b.finish(), gradients })
}

/// Parameters of a graph in order, with their paths.
pub fn parameters(graph: &Graph) -> Vec<(Name, ValueId)> {
    let ops = graph.region(graph.body).ops.iter().map(|op| graph.op(*op));
    ops.filter_map(|node| match &node.op {
        Op::Param { path, .. } => Some((path.clone(), node.results[0])),
        _ => None,
    })
    .collect()
}

/// The cotangents of `wanted` sources, given those of other values of the body: `seeds` is called once the graph is
/// prepared and gives (value, cotangent). `None` means zero.
///
/// # Errors
/// An op between them has no derivative.
pub fn pullback(
    graph: Graph,
    wanted: &[ValueId],
    seeds: impl FnOnce(&mut Builder) -> Vec<(ValueId, ValueId)>,
) -> Result<(Graph, Vec<Option<ValueId>>), AutodiffError> {
    let sources = sources_of(&graph, wanted);
    let (mut graph, joint) = prepare(graph, wanted);
    restore(&mut graph, sources);
    let activity = Activity::of(&graph, wanted);
    let mut b = Builder::resume(graph);
    b.origin = Origin { phase: Phase::BackwardInput, ..Origin::default() };
    let before = b.graph.region(b.graph.body).ops.len();
    let seeds = seeds(&mut b);
    let mut t = Tape::new(b, activity);
    t.joint = joint;
    for (value, cotangent) in seeds {
        t.accumulate(value, cotangent);
    }
    let ops = t.forward_ops()[..before].to_vec();
    walk_ops(&mut t, ops)?;
    let cotangents = wanted.iter().map(|v| t.cotangent(*v)).collect();
    Ok((t.b.finish(), cotangents))
}

/// The ops that define some values of the body.
fn sources_of(graph: &Graph, values: &[ValueId]) -> Vec<OpId> {
    let definitions = graph.definitions(graph.body);
    values.iter().filter_map(|v| definitions.get(v).copied()).collect()
}

/// Puts back sources that nothing uses: a parameter without influence still has a gradient, zero.
fn restore(graph: &mut Graph, sources: Vec<OpId>) {
    let body = graph.body;
    let ops = &mut graph.regions[body.index()].ops;
    let missing: Vec<OpId> = sources.into_iter().filter(|op| !ops.contains(op)).collect();
    ops.splice(0..0, missing);
}

/// Brings a graph into the form the rules take.
fn prepare(graph: Graph, wanted: &[ValueId]) -> (Graph, BTreeMap<OpId, Joint>) {
    // Equal values are saved once only if they are one value: two rotary embeddings share their tables.
    let graph = share_common(composites::inline_without_rule(graph, wanted));
    let graph = hoist_invariants(graph);
    // Last: until the walk has asked for them, the gradients in a joint loop look unused.
    let activity = Activity::of(&graph, wanted);
    expand_loss_heads(graph, |v| activity.varied(v))
}

/// Walks the ops of the innermost frame in reverse.
///
/// # Errors
/// An op has no derivative.
pub(super) fn walk(t: &mut Tape) -> Result<(), AutodiffError> {
    let ops = t.forward_ops();
    walk_ops(t, ops)
}

/// Walks these ops of the innermost frame in reverse.
pub(super) fn walk_ops(t: &mut Tape, ops: Vec<OpId>) -> Result<(), AutodiffError> {
    for op in ops.into_iter().rev() {
        let node = t.b.graph.op(op).clone();
        let g: Vec<Option<ValueId>> = node.results.iter().map(|r| t.cotangent(*r)).collect();
        let varied = node.operands.iter().any(|v| t.activity.varied(*v));
        if !varied || g.iter().all(Option::is_none) {
            continue;
        }
        t.begin_rule(&node);
        let cotangents = rules::pull(t, op, &node, &g)?;
        for (operand, cotangent) in node.operands.iter().zip(cotangents) {
            if let Some(cotangent) = cotangent {
                t.accumulate(*operand, cotangent);
            }
        }
    }
    Ok(())
}
