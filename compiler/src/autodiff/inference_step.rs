//! An entry that is evaluated and not trained.
//!
//! What the training step does to its forward part, without gradients: rotary embeddings by their meaning, so that sines
//! and cosines leave the layer loop; loss heads as loops over chunks of tokens.

use super::hoist_invariants::hoist_invariants;
use super::loss_head::chunk_loss_heads;
use crate::graph::passes::{eliminate_dead, share_common};
use crate::graph::rewrite::inline_composites;
use crate::graph::{CompositeKind, Graph};

/// Brings a forward graph into the form that later stages take. Numbers do not change.
pub fn inference_step(forward: Graph) -> Graph {
    let graph = inline_composites(forward, |_, _, kind| matches!(kind, CompositeKind::Rope { .. }));
    let graph = hoist_invariants(share_common(graph));
    eliminate_dead(chunk_loss_heads(graph))
}
