//! Whole training graphs on ranks: sharded by rules, partitioned, run by all ranks together.

use super::partition::partition;
use crate::graph::verify::{Stage, verify};
use crate::interpret::{Mode, Tensor, Values, run, run_ranks, sample_environment};
use crate::sharding::check::check;
use crate::sharding::shard;
use crate::sharding::tests::{training, usual};

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
        let sharded = shard(&graph, &usual(&graph)).unwrap().graph;
        let found: Vec<String> = check(&sharded).into_iter().map(|v| v.message).collect();
        assert!(found.is_empty(), "{model}: {found:#?}");
        let local = partition(&sharded).unwrap_or_else(|e| panic!("{model}: {e}"));
        verify(&local, Stage::Spmd).unwrap_or_else(|e| panic!("{model}\n{e}"));
        let environment = sample_environment(&graph, 1);
        let expected = run(&graph, &environment, Mode::F64).unwrap();
        let ranks = run_ranks(&local, &environment, Mode::F64).unwrap_or_else(|e| panic!("{model}: {e}"));
        let got = ranks.assemble(&local).unwrap_or_else(|e| panic!("{model}: {e}"));
        for ((output, a), (_, b)) in expected.0.iter().zip(&got.0) {
            close(a, b).unwrap_or_else(|e| panic!("{model}: {output:?}: {e}"));
        }
    }
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
