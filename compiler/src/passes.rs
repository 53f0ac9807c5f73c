//! Every pass from graph to graph, by the name `mlc opt --pass` knows it under.
//!
//! A pass that stands here is run on random graphs and whole models by the tests, without more being said.

use crate::autodiff::hoist_invariants::hoist_invariants;
use crate::autodiff::loss_head::chunk_loss_heads;
use crate::cost::Target;
use crate::graph::Graph;
use crate::graph::passes::{
    eliminate_dead, expand_all_composites, expand_composites, fold_constants, share_common, sink_updates,
};
use crate::graph::recognise::{
    recognise_attention, recognise_cross_entropy, recognise_loss_head, recognise_norms, recognise_softmax,
};
use crate::pipeline::combined_for;
use crate::remat::{keep_attention, keep_carries, keep_products, offload_residuals, recompute_residuals};
use crate::sharding::{keep_gathered, sum_after_microbatches};
use crate::spmd::combine::{reduce_scatter, split_hierarchical};

/// A pass: a verified graph in, a verified graph that computes the same out, or why it can't.
pub type Pass = fn(&Graph) -> Result<Graph, String>;

/// All passes.
pub fn passes() -> &'static [(&'static str, Pass)] {
    &[
        ("chunk-loss-heads", |g| Ok(chunk_loss_heads(g.clone()))),
        ("combine-collectives", |g| Ok(combined_for(g.clone(), &Target::named("cpu")?))),
        ("eliminate-dead", |g| Ok(eliminate_dead(g.clone()))),
        ("expand-all-composites", |g| Ok(expand_all_composites(g.clone()))),
        ("expand-composites", |g| Ok(expand_composites(g.clone()))),
        ("fold-constants", |g| Ok(fold_constants(g.clone()))),
        ("hoist-invariants", |g| Ok(hoist_invariants(g.clone()))),
        ("keep-attention", |g| Ok(keep_attention(g.clone()))),
        ("keep-carries", |g| Ok(keep_carries(g.clone()))),
        ("keep-gathered", |g| Ok(keep_gathered(g.clone()))),
        ("keep-products", |g| Ok(keep_products(g.clone()))),
        ("offload-residuals", |g| Ok(offload_residuals(g.clone()))),
        ("recognise-attention", |g| Ok(recognise_attention(g.clone()))),
        ("recognise-cross-entropy", |g| Ok(recognise_cross_entropy(g.clone()))),
        ("recognise-loss-head", |g| Ok(recognise_loss_head(g.clone()))),
        ("recognise-norms", |g| Ok(recognise_norms(g.clone()))),
        ("recognise-softmax", |g| Ok(recognise_softmax(g.clone()))),
        ("recompute-residuals", |g| Ok(recompute_residuals(g.clone()))),
        ("reduce-scatter", |g| Ok(reduce_scatter(g.clone()))),
        ("share-common", |g| Ok(share_common(g.clone()))),
        ("sink-updates", |g| Ok(sink_updates(g.clone()))),
        ("split-hierarchical", |g| Ok(split_hierarchical(g.clone()))),
        ("sum-after-microbatches", |g| Ok(sum_after_microbatches(g.clone()))),
    ]
}
