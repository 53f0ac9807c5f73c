//! What the forward pass keeps for the backward pass.
//!
//! Comes in: a training graph in which loops of the forward pass stack every value that loops of the backward pass ask
//! for: its *residuals*. Goes out: the same computation with fewer residuals, some computed again by the backward loop,
//! some lying in the host's memory, and a [`Report`] of what that saves and costs.
//!
//! Passes, in order:
//! 1. composites other than attention are replaced by their meaning, so that a norm can be had from what it saves;
//! 2. [`decide`]: each value of a forward loop's body gets what the rules or the preset say;
//! 3. [`recompute_residuals`]: backward loops compute again what is not to be saved;
//! 4. [`offload_residuals`]: stacks that are to lie in the host's memory become copies to and from it.
//!
//! What always holds: the numbers are the same to the bit, because the same ops run on the same operands; what an
//! iteration starts from (its carry) is saved if anything is computed again from it; nothing is ever computed from
//! another iteration. Source: Chen, Xu, Zhang, Guestrin 2016 (arXiv:1604.06174), Training Deep Nets with Sublinear
//! Memory Cost, for loops; Korthikanti et al. 2022 (arXiv:2205.05198), §5, for the preset `attn`.

pub mod decide;
mod offload_residuals;
pub mod recompute_residuals;
mod report;
mod residuals;
#[cfg(test)]
mod tests;

use crate::graph::Graph;
use crate::graph::passes::{drop_dead, eliminate_dead, expand_composites, share_common};
use crate::spec::checked::{Remat, RematPreset};

pub use decide::Decisions;
pub use offload_residuals::offload_residuals;
pub use recompute_residuals::recompute_residuals;
pub use report::{Report, RuleReport, Stack};

/// Applies the rules of `remat` to a training graph.
pub fn rematerialise(graph: Graph, remat: &Remat) -> (Graph, Report) {
    let graph = eliminate_dead(expand_composites(graph));
    let mut decisions = decide::decide(&graph, remat);
    let before = report::stacks(&graph, &decisions);
    let (mut graph, work) = recompute_residuals::recompute(graph, &mut decisions);
    drop_dead(&mut graph);
    let report = Report::new(remat, &before, report::stacks(&graph, &decisions), &work);
    let graph = offload_residuals::offload(graph, &decisions);
    (eliminate_dead(share_common(graph)), report)
}

/// The preset `full`: of each iteration only what it starts from is saved.
pub fn keep_carries(graph: Graph) -> Graph {
    by_preset(graph, RematPreset::Full)
}

/// The preset `dots`: only results of products are saved.
pub fn keep_products(graph: Graph) -> Graph {
    by_preset(graph, RematPreset::Dots)
}

/// The preset `attn`: scores and probabilities of attention are not saved.
pub fn keep_attention(graph: Graph) -> Graph {
    by_preset(graph, RematPreset::Attn)
}

fn by_preset(graph: Graph, preset: RematPreset) -> Graph {
    rematerialise(graph, &Remat { preset, rules: Vec::new() }).0
}
