//! The whole training step in one graph.
//!
//! 1. `narrow_to_microbatch`, `apply_precision`
//! 2. `differentiate` the loss sum
//! 3. `accumulate` over microbatches
//! 4. append the update
//! 5. `hoist_invariants`, `share_common` and `eliminate_dead`

use super::AutodiffError;
use super::accumulate::{accumulate, is_report, microbatches, narrow_to_microbatch};
use super::config::TrainConfig;
use super::differentiate::{Gradient, differentiate_except, parameters};
use super::hoist_invariants::hoist_invariants;
use super::optimizer::{LossAndGradients, append_update};
use super::precision::apply_precision;
use crate::graph::passes::{eliminate_dead, share_common};
use crate::graph::{Graph, Name, Output, ValueId};
use std::collections::BTreeMap;

/// Builds the training step from a forward graph that reports `loss_sum` and `loss_weight` of the whole batch, and maybe
/// auxiliary losses, each times the weight.
///
/// ```text
/// results  report loss = loss_sum / loss_weight, loss_sum, loss_weight, grad_norm, lr; each other report of the forward
///          graph, summed over microbatches and divided by loss_weight; store each parameter, each optimizer state
/// ```
/// `grad_norm` is that of the mean loss before clipping.
///
/// # Errors
/// A report is missing, the microbatch does not divide the batch, a parameter has no rate, or an op has no derivative.
pub fn training_step(forward: Graph, config: &TrainConfig) -> Result<Graph, AutodiffError> {
    let count = match &config.microbatch {
        Some(micro) => microbatches(&forward, micro)?,
        None => 1,
    };
    let forward = match &config.microbatch {
        Some(micro) => narrow_to_microbatch(forward, micro)?,
        None => forward,
    };
    let forward = apply_precision(forward, &config.precision)?;
    let loss_at = find_report(&forward, "loss_sum")?;
    let weight_at = find_report(&forward, "loss_weight")?;
    let done = differentiate_except(forward, loss_at, &config.optimizer.frozen)?;

    let gradients: Vec<_> = done.gradients.iter().map(|g| g.gradient).collect();
    let (mut graph, sums) = match &config.microbatch {
        Some(micro) => accumulate(done.graph, micro, count, &gradients)?,
        None => (done.graph, gradients),
    };
    let values: BTreeMap<Name, ValueId> = parameters(&graph).into_iter().collect();
    let gradients = done.gradients.iter().zip(sums);
    let gradients = gradients
        .map(|(g, gradient)| Gradient { param: g.param.clone(), value: values[&g.param], gradient })
        .collect();
    // The update reports everything again, in its own order.
    let body = graph.body;
    let results = std::mem::take(&mut graph.regions[body.index()].results);
    let outputs = std::mem::take(&mut graph.outputs);
    let others = outputs.into_iter().zip(&results).enumerate();
    let auxiliary = others.filter(|(at, _)| ![loss_at, weight_at].contains(at));
    let auxiliary = auxiliary.map(|(_, (output, sum))| (output, *sum)).collect();
    let loss = LossAndGradients {
        loss_sum: results[loss_at],
        loss_weight: results[weight_at],
        auxiliary,
        gradients,
    };
    let graph = append_update(graph, &loss, config)?;
    Ok(eliminate_dead(share_common(hoist_invariants(graph))))
}

fn find_report(graph: &Graph, name: &str) -> Result<usize, AutodiffError> {
    graph.outputs.iter().position(|o: &Output| is_report(o, name)).ok_or_else(|| {
        AutodiffError::new(format!("the forward graph does not report {name}; is there a `loss` line?"))
    })
}
