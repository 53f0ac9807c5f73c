//! An entry that is evaluated and not trained.
//!
//! What the training step does to its forward part, without gradients: casts by role; rotary embeddings by their meaning, so that sines
//! and cosines leave the layer loop; loss heads as loops over chunks of tokens.

use super::AutodiffError;
use super::hoist_invariants::hoist_invariants;
use super::loss_head::chunk_loss_heads;
use super::precision::{Precision, apply_precision};
use crate::graph::passes::{eliminate_dead, expand_chosen, share_common};
use crate::graph::{CompositeKind, Graph};

/// Brings a forward graph into the form that later stages take. Numbers change by the roundings of `precision` alone.
///
/// # Errors
/// See [`apply_precision`].
pub fn inference_step(forward: Graph, precision: &Precision) -> Result<Graph, AutodiffError> {
    let forward = apply_precision(forward, precision)?;
    let graph = expand_chosen(forward, &|_, _, kind| matches!(kind, CompositeKind::Rope { .. }));
    let graph = hoist_invariants(share_common(graph));
    Ok(eliminate_dead(chunk_loss_heads(graph)))
}
