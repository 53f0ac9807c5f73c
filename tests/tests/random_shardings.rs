//! Random graphs under random shardings, on all ranks together: the numbers are those of one rank. `make fuzz` runs this on
//! more seeds: `MLC_FUZZ_GRAPHS` (how many) and `MLC_FUZZ_SEED` (the first).

use mlc::graph::verify::{Stage, verify};
use mlc::graph::{Mesh, MeshOp, Op, print};
use mlc::interpret::{Mode, Tensor, Values, run, run_ranks};
use mlc::passes::passes;
use mlc::sharding::check::check;
use mlc::spmd::partition::partition;
use mlc_tests::random_graph::{Random, sample};
use mlc_tests::random_sharding::random_sharding;
use std::collections::BTreeMap;

const MESHES: &[&[(&str, u64)]] =
    &[&[("m", 2)], &[("m", 3)], &[("m", 2), ("n", 2)], &[("m", 4)], &[("m", 2), ("n", 2), ("o", 2)]];

/// Passes on programs of one rank.
const AFTER_PARTITION: [&str; 3] = ["combine-collectives", "reduce-scatter", "split-hierarchical"];

fn seeds() -> std::ops::Range<u64> {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first: u64 = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_GRAPHS", 60)
}

#[test]
fn random_graphs_under_random_shardings_give_the_numbers_of_one_rank() {
    let (mut graphs, mut reshards, mut partial) = (0, 0, 0);
    let mut changed: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds() {
        let sample = sample(seed);
        let graph = sample.with_gradients();
        let expected = run(&graph, &sample.environment, Mode::F64).expect("it runs");
        let mut random = Random::new(seed);
        let mut mesh = Mesh::new(MESHES[random.below(MESHES.len())]);
        // Links of two speeds, where there are two.
        mesh.axes[0].over_nodes = seed % 2 == 0;
        let sharded = random_sharding(&graph, &mesh, &mut random);
        let fail = |what: String| -> ! { panic!("seed {seed}: {what}\n{}", print::print(&sharded)) };
        verify(&sharded, Stage::Sharded).unwrap_or_else(|e| fail(e.to_string()));
        if let Some(violation) = check(&sharded).first() {
            fail(violation.message.clone());
        }
        let local = partition(&sharded).unwrap_or_else(|e| fail(e));
        verify(&local, Stage::Spmd).unwrap_or_else(|e| fail(e.to_string()));
        let ranks = run_ranks(&local, &sample.environment, Mode::F64).unwrap_or_else(|e| fail(e.to_string()));
        let got = ranks.assemble(&local).unwrap_or_else(|e| fail(e));
        for ((output, a), (_, b)) in expected.0.iter().zip(&got.0) {
            if let Some(why) = apart(a, b) {
                fail(format!("{output:?}: {why}"));
            }
        }
        for (name, pass) in passes().iter().filter(|(name, _)| AFTER_PARTITION.contains(name)) {
            let after = pass(&local).unwrap_or_else(|e| fail(format!("{name}: {e}")));
            verify(&after, Stage::Spmd).unwrap_or_else(|e| fail(format!("after {name}: {e}")));
            if print::print(&after) == print::print(&local) {
                continue;
            }
            *changed.entry(*name).or_default() += 1;
            let ranks =
                run_ranks(&after, &sample.environment, Mode::F64).unwrap_or_else(|e| fail(e.to_string()));
            let got = ranks.assemble(&after).unwrap_or_else(|e| fail(e));
            for ((output, a), (_, b)) in expected.0.iter().zip(&got.0) {
                if let Some(why) = apart(a, b) {
                    fail(format!("after {name}, {output:?}: {why}\n{}", print::print(&after)));
                }
            }
        }
        graphs += 1;
        reshards += sharded.ops.iter().filter(|n| matches!(n.op, Op::Mesh(MeshOp::Reshard { .. }))).count();
        partial += sharded.values.iter().filter(|v| !v.sharding.partial.is_empty()).count();
    }
    println!("{graphs} graphs, {reshards} reshards, {partial} partial values; changed by {changed:?}");
    // What is reduced and cut is scattered when the reshard is planned; only what is written apart is left for the pass.
    for name in ["combine-collectives", "split-hierarchical"] {
        assert!(changed.get(name).is_some_and(|n| 10 * n > graphs), "{name} has nothing to do: {changed:?}");
    }
    assert!(reshards > 10 * graphs && partial > graphs, "{reshards} reshards, {partial} partial values");
}

/// Sums of some thousand terms in another order, each rounded by 10⁻¹⁶ of the largest.
fn apart(a: &Tensor, b: &Tensor) -> Option<String> {
    let (Values::Float(x), Values::Float(y)) = (&a.values, &b.values) else {
        return (a.values != b.values).then(|| format!("{a:?} and {b:?}"));
    };
    let largest = x.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let place = x.iter().zip(y).position(|(x, y)| {
        (x - y).abs() > 1e-10 * largest || x.is_nan() != y.is_nan() || x.is_finite() != y.is_finite()
    })?;
    Some(format!("element {place} is {} on one rank and {}", x[place], y[place]))
}
