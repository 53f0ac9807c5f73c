//! How a training graph lies on its mesh.
//!
//! [`factors`] says of every op along what it may be split. [`rules`] are the spec's, [`targets`] carries them to every value,
//! [`choose`] decides how each op is split, and [`insert_reshards`] makes what moves explicit. The graph keeps the types of all
//! ranks together; [`crate::spmd`] makes it one rank's.

pub mod check;
mod choose;
pub mod explain;
pub mod factors;
pub mod insert_reshards;
mod keep_gathered;
pub mod pad_axes;
pub mod rules;
pub mod strict;
mod sum_after_microbatches;
pub mod targets;

#[cfg(test)]
pub(crate) mod gallery;
#[cfg(test)]
pub(crate) mod tests;

use crate::graph::shape::op_name;
use crate::graph::{Graph, Loop, Name, Op, OpNode, Origin, ReduceOp, RegionId, stem};
use factors::{FactorKind, factors};
pub use insert_reshards::{Sharded, ShardingError, shard};
pub use keep_gathered::keep_gathered;
pub use rules::{ParamRule, Rules, Splits};
pub use sum_after_microbatches::sum_after_microbatches;

/// An op for people: `dot of layer.{i}.attn, llama.spec:24`.
pub(crate) fn describe(node: &OpNode) -> String {
    let line = &node.origin.line;
    let at = if line.file.is_empty() { String::new() } else { format!(", {}:{}", line.file, line.line) };
    format!("{}{at}", op_of(node))
}

/// The path by which rules name a value: `layer.{i}.attn.q`.
pub(crate) fn path_of(origin: &Origin, name: &str) -> String {
    let parts = [origin.path.as_str(), stem(name)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

/// The glob that hits a path for every iteration: `layer.*.attn.q`.
pub(crate) fn glob_of(path: &str) -> String {
    let segment = |part: &str| if part.starts_with('{') { "*".into() } else { part.to_string() };
    path.split('.').map(segment).collect::<Vec<_>>().join(".")
}

/// `dot of layer.{i}.attn`.
fn op_of(node: &OpNode) -> String {
    let place = if node.origin.path.is_empty() { String::new() } else { format!(" of {}", node.origin.path) };
    format!("{}{place}", op_name(&node.op))
}

/// Whether any partition of the loop's blocks gives the same sums and the same stacked outs: no iteration knows its number or
/// hands anything on, and along the axis every element stands for itself.
pub fn separable(graph: &Graph, node: &OpNode, l: &Loop) -> bool {
    let args = &graph.region(l.body).args;
    let index_used = {
        let used = |region: RegionId| graph.region(region).results.contains(&args[0]);
        used(l.body) || graph.region(l.body).ops.iter().any(|op| graph.op(*op).operands.contains(&args[0]))
    };
    let whole_axis = node.operands[l.carries + l.stacked..].iter().any(|v| graph.ty(*v).has(&l.axis));
    l.carries == 0 && !index_used && !whole_axis && stands_alone(graph, l.body, &l.axis)
}

/// Whether no op of a region relates elements along an axis but by sums.
fn stands_alone(graph: &Graph, region: RegionId, axis: &Name) -> bool {
    graph.region(region).ops.iter().all(|op| {
        let node = graph.op(*op);
        let knows_place = matches!(&node.op, Op::Index { axis: a } if a == axis);
        let alone = factors(graph, *op).iter().all(|factor| {
            let names = factor.operands.iter().chain(&factor.results).flatten().any(|a| a == axis);
            let allowed = match factor.kind {
                FactorKind::Pass | FactorKind::Made => true,
                FactorKind::Reduce(op) => op == ReduceOp::Sum,
                FactorKind::Lookup | FactorKind::Whole => false,
            };
            !names || allowed
        });
        let inner = match &node.op {
            Op::Loop(l) => l.axis != *axis && stands_alone(graph, l.body, axis),
            Op::Update(u) => stands_alone(graph, u.body, axis),
            _ => true,
        };
        !knows_place && alone && inner
    })
}
