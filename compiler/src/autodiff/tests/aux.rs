//! Auxiliary losses: what they add to the loss, under a repeat and over microbatches.

use super::{check_graph, environment};
use crate::autodiff::config::Microbatch;
use crate::autodiff::from_spec::train_config;
use crate::autodiff::training_step;
use crate::graph::Graph;
use crate::graph::from_spec::{Entry, from_spec};
use crate::interpret::{Mode, Outputs, run};
use crate::spec::checked::Spec;
use crate::spec::{MemoryLoader, SourceMap, check};

/// A repeated block with an auxiliary loss that is a mean over the batch, and one at the top.
const TEXT: &str = "spec 1
model M {
    size batch = run, seq = run, d = 3, layers = 2, vocab = 8
    input tokens: ids<vocab>[batch, seq]
    input targets: ids<vocab>[batch, seq]
    param embed[vocab, d] = uniform(-1, 1)
    block Layer(x[batch, seq, d]) -> [batch, seq, d] {
        param w[d] = uniform(0.5, 1.5)
        y = tanh(x * w)
        aux extent = 0.1 * mean[batch, seq, d](y * y)
        y
    }
    x = repeat[layers](Layer@layer, gather[vocab](embed, tokens))
    aux offset = 0.01 * mean[batch, seq, d](x)
    loss LOSS
}
train {
    steps = 1, batch = 4, seq = 5, data = synthetic()
    optimizer = sgd { lr = 0.1 }
}
";

fn checked(loss: &str) -> (Spec, SourceMap) {
    let mut sources = SourceMap::new();
    let files = vec![("m.spec".to_string(), TEXT.replace("LOSS", loss))];
    let loader = MemoryLoader { files };
    let (spec, _) = check(&mut sources, &loader, "m.spec", &[]).unwrap_or_else(|e| panic!("{e:?}"));
    (spec, sources)
}

const MEAN: &str = "mean[batch, seq](cross_entropy[vocab](dot[d](x, embed), targets))";
/// A weight that differs from token to token.
const WEIGHTED: &str = "weighted_mean[batch, seq](cross_entropy[vocab](dot[d](x, embed), targets), where(targets < 6, 1.0, 0.5))";

fn forward(loss: &str, entry: Entry) -> Graph {
    let (spec, sources) = checked(loss);
    from_spec(&spec.model, entry, 4, &sources).unwrap_or_else(|e| panic!("{e:?}"))
}

fn step(loss: &str, microbatch: Option<u64>) -> Outputs {
    let (spec, sources) = checked(loss);
    let forward = from_spec(&spec.model, Entry::Train, 4, &sources).unwrap_or_else(|e| panic!("{e:?}"));
    let mut config = train_config(&spec.model, spec.train.as_ref().unwrap());
    config.microbatch = microbatch.map(|size| Microbatch { axis: "batch".into(), size });
    let graph = training_step(forward, &config).unwrap();
    run(&graph, &environment(&graph, 3), Mode::F64).unwrap()
}

fn report(outputs: &Outputs, name: &str) -> f64 {
    outputs.report(name).unwrap_or_else(|| panic!("no report {name}")).item()
}

#[test]
fn aux_has_its_gradient_through_a_repeat() {
    check_graph(forward(MEAN, Entry::Train));
}

#[test]
fn aux_adds_to_the_mean_loss_and_is_reported_by_name() {
    for loss in [MEAN, WEIGHTED] {
        let eval = forward(loss, Entry::Eval);
        let plain = run(&eval, &environment(&eval, 3), Mode::F64).unwrap();
        let aux = report(&plain, "layer.extent") + report(&plain, "offset");
        let want = report(&plain, "loss_sum") / report(&plain, "loss_weight") + aux;
        let trained = step(loss, None);
        assert!((report(&trained, "loss") - want).abs() < 1e-12, "{loss}");
        for name in ["layer.extent", "offset"] {
            assert!((report(&trained, name) - report(&plain, name)).abs() < 1e-12, "{name}");
        }
        assert!(report(&plain, "layer.extent") > 0.0);
    }
}

#[test]
fn aux_that_is_a_mean_does_not_change_with_the_number_of_microbatches() {
    let whole = step(MEAN, None);
    for size in [1, 2] {
        let parts = step(MEAN, Some(size));
        for ((output, want), (_, got)) in whole.0.iter().zip(&parts.0) {
            for (x, y) in want.as_floats().iter().zip(got.as_floats()) {
                assert!((x - y).abs() <= 1e-12 * x.abs().max(1.0), "{output:?} in microbatches of {size}");
            }
        }
    }
}
