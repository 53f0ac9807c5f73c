//! Whole training graphs on ranks: sharded by rules, partitioned, run by all ranks together.

use super::combine::{combine_collectives, reduce_scatter, split_hierarchical};
use super::partition::partition;
use crate::graph::verify::{Stage, verify};
use crate::graph::{Graph, MeshOp, Op};
use crate::interpret::{Mode, Tensor, Values, run, run_ranks, sample_environment};
use crate::sharding::check::check;
use crate::sharding::tests::{training, usual};
use crate::sharding::{keep_gathered, shard, sum_after_microbatches};

/// Losses, gradients' norms, new parameters and states of data, fully sharded, tensor, vocabulary and expert parallelism on 8
/// ranks are those of one. The ranks add in another order: of some thousand terms, each contributing 10⁻¹⁶.
#[test]
fn models_on_ranks_give_the_numbers_of_one() {
    let models = [
        ("gqa/gqa", 4),
        ("mixtral/mixtral", 4),
        ("glam/glam", 4),
        ("mla/mla", 4),
        // In two microbatches.
        ("packed/packed", 8),
        ("tiny/tiny", 4),
    ];
    for (model, batch) in models {
        let graph = training(&format!("tests/models/{model}.spec"), &[&format!("train.batch={batch}")]);
        let local = local(model, &shard(&graph, &usual(&graph)).unwrap().graph);
        agree(model, &graph, &local);
    }
}

/// The same with all that may change what is sent: parameters kept gathered, gradients summed after the last microbatch, links
/// of two speeds, and collectives that travel together.
#[test]
fn models_on_ranks_give_the_numbers_of_one_whatever_travels_together() {
    for (model, batch) in [("gqa/gqa", 4), ("mixtral/mixtral", 4), ("packed/packed", 8)] {
        let graph = training(&format!("tests/models/{model}.spec"), &[&format!("train.batch={batch}")]);
        let mut rules = usual(&graph);
        rules.mesh.axes[0].over_nodes = true;
        let sharded = shard(&graph, &rules).unwrap().graph;
        let apart = local(model, &sharded);
        let sharded = sum_after_microbatches(sharded);
        let kept = local(model, &keep_gathered(sharded));
        assert!(collectives(&kept) <= collectives(&apart), "{model}");
        let split = split_hierarchical(reduce_scatter(kept));
        let combined = combine_collectives(split.clone(), |_| 1 << 12);
        assert!(collectives(&combined) < collectives(&split), "{model}");
        verify(&combined, Stage::Spmd).unwrap_or_else(|e| panic!("{model}\n{e}"));
        agree(model, &graph, &combined);
    }
}

fn local(model: &str, sharded: &Graph) -> Graph {
    let found: Vec<String> = check(sharded).into_iter().map(|v| v.message).collect();
    assert!(found.is_empty(), "{model}: {found:#?}");
    let local = partition(sharded).unwrap_or_else(|e| panic!("{model}: {e}"));
    verify(&local, Stage::Spmd).unwrap_or_else(|e| panic!("{model}\n{e}"));
    local
}

fn agree(model: &str, graph: &Graph, local: &Graph) {
    let environment = sample_environment(graph, 1);
    let expected = run(graph, &environment, Mode::F64).unwrap();
    let ranks = run_ranks(local, &environment, Mode::F64).unwrap_or_else(|e| panic!("{model}: {e}"));
    let got = ranks.assemble(local).unwrap_or_else(|e| panic!("{model}: {e}"));
    for ((output, a), (_, b)) in expected.0.iter().zip(&got.0) {
        close(a, b).unwrap_or_else(|e| panic!("{model}: {output:?}: {e}"));
    }
}

fn collectives(graph: &Graph) -> usize {
    let ops = graph.executed_regions().into_iter().flat_map(|r| graph.region(r).ops.clone());
    ops.filter(|op| matches!(graph.op(*op).op, Op::Mesh(MeshOp::Collective(_)))).count()
}

fn close(a: &Tensor, b: &Tensor) -> Result<(), String> {
    let (Values::Float(x), Values::Float(y)) = (&a.values, &b.values) else {
        return if a.values == b.values { Ok(()) } else { Err(format!("{a:?} and {b:?}")) };
    };
    let largest = x.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    match x.iter().zip(y).position(|(x, y)| (x - y).abs() > 1e-9 * largest || x.is_nan() != y.is_nan()) {
        None => Ok(()),
        Some(i) => Err(format!("element {i} of {} is {} on one rank and {}", x.len(), x[i], y[i])),
    }
}
