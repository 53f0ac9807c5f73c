//! Random graphs through every arithmetic and every backend. `make fuzz` runs this file's tests on more seeds: the environment
//! variables `MLC_FUZZ_GRAPHS` (how many) and `MLC_FUZZ_SEED` (the first).

use std::collections::BTreeMap;

use mlc::interpret::{Mode, Outputs, Values, run};
use mlc_tests::random_graph::{Sample, coverage, reachable_ops, sample};

fn seeds() -> std::ops::Range<u64> {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first: u64 = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_GRAPHS", 500)
}

fn outputs(sample: &Sample, mode: Mode) -> Outputs {
    run(&sample.graph, &sample.environment, mode).unwrap_or_else(|e| panic!("{}: {e}", sample.graph.name))
}

/// Where `values` leave what the bounds allow, if they do.
fn escapes(bounds: &Outputs, values: &Outputs) -> Option<String> {
    for ((output, exact), (_, tried)) in bounds.0.iter().zip(&values.0) {
        let (Values::Float(exact_values), Values::Float(tried_values)) = (&exact.values, &tried.values)
        else {
            assert_eq!(exact.values, tried.values);
            continue;
        };
        for (i, (x, y)) in exact_values.iter().zip(tried_values).enumerate() {
            let allowed = exact.errors[i];
            if (x - y).abs() > allowed || y.is_nan() != x.is_nan() {
                return Some(format!(
                    "{output:?}[{i}]: {y} is {:.2e} from {x}, allowed {allowed:.2e}",
                    (x - y).abs()
                ));
            }
        }
    }
    None
}

#[test]
fn random_graphs_are_large_and_cover_the_ops() {
    let mut counts = BTreeMap::new();
    let mut sizes = Vec::new();
    let mut with_loops = 0;
    for seed in seeds() {
        let graph = sample(seed).graph;
        sizes.push(reachable_ops(&graph).len());
        let before = counts.clone();
        coverage(&graph, &mut counts);
        let loops = |c: &BTreeMap<(String, _), usize>| {
            c.iter().filter(|((op, _), _)| op == "Loop").map(|(_, n)| n).sum::<usize>()
        };
        with_loops += usize::from(loops(&counts) > loops(&before));
    }
    sizes.sort_unstable();
    let median = sizes[sizes.len() / 2];
    println!(
        "{} graphs, median {median} ops, largest {}, {with_loops} with loops",
        sizes.len(),
        sizes[sizes.len() - 1]
    );
    for ((op, dtype), n) in &counts {
        println!("{n:7} {op} {dtype:?}");
    }
    assert!(median >= 30, "median {median} ops");
    assert!(with_loops * 4 >= sizes.len(), "{with_loops} of {} graphs have loops", sizes.len());
}

#[test]
fn interpreting_in_f32_stays_within_the_derived_bounds() {
    let mut loss_bounds = Vec::new();
    for seed in seeds() {
        let sample = sample(seed);
        let bounds = outputs(&sample, Mode::Bounds);
        let escaped = escapes(&bounds, &outputs(&sample, Mode::F32));
        assert!(escaped.is_none(), "seed {seed}: {}\n{}", escaped.unwrap_or_default(), sample.graph);
        loss_bounds.push(bounds.report("loss").expect("a loss is reported").errors[0]);
    }
    loss_bounds.sort_unstable_by(f64::total_cmp);
    let median = loss_bounds[loss_bounds.len() / 2];
    println!("median bound on the loss, a sum of means of tanh: {median:.1e}");
    // A bound that allows everything would prove nothing: half the losses are pinned to better than a thousandth.
    assert!(median < 1e-3, "{median:.1e}");
}
