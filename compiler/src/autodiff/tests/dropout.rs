//! Dropout in training steps: the mask is a function of seed, step, place and position, whatever computes it.
//!
//! Parameters are 1, inputs have few digits and rates make `1 / (1 − rate)` a power of two, so that every number of these
//! steps is exact in f64 and equality means equal masks.

use super::{check, param};
use crate::autodiff::from_spec::train_config;
use crate::autodiff::{TrainConfig, training_step};
use crate::graph::from_spec::{Entry, from_spec};
use crate::graph::verify::{Stage, verify};
use crate::graph::{Axis, Builder, DType, Graph, Loop, Op, Output, ReduceOp, Type, ValueId};
use crate::interpret::{Environment, Mode, Outputs, run, sample_environment};
use crate::lower::simulate;
use crate::spec::{MemoryLoader, SourceMap};

const SPEC: &str = "spec 1
model M {
  size d = 6, pairs = 2, layers = 3
  size batch = run, seq = run
  input x[batch, seq, d]
  block Inner(h[batch, seq, d]) -> [batch, seq, d] {
    param w[d] = ones
    dropout(h * w, 0.5)
  }
  block Layer(h[batch, seq, d]) -> [batch, seq, d] {
    h + repeat[pairs](Inner@inner, dropout(h, 0.5))
  }
  h = dropout(repeat[layers](Layer@layer, x), 0.75)
  loss mean[batch, seq, d](h)
}
train { steps = 1, batch = 4 sequences, seq = 5, microbatch = 4, data = synthetic(), optimizer = sgd { lr = 1 } }
";

fn forward(entry: Entry, sets: &[&str]) -> (Graph, TrainConfig) {
    let loader = MemoryLoader { files: vec![("m.spec".into(), SPEC.into())] };
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut sources = SourceMap::new();
    let (spec, _) = crate::spec::check(&mut sources, &loader, "m.spec", &sets)
        .unwrap_or_else(|e| panic!("{}", crate::spec::diagnostic::render_all(&e, &sources, false)));
    let train = spec.train.as_ref().unwrap();
    let graph = from_spec(&spec.model, entry, train.batch, &sources).unwrap();
    let mut config = train_config(&spec.model, train);
    config.microbatch = (train.accumulation > 1)
        .then(|| crate::autodiff::config::Microbatch { axis: "batch".into(), size: train.microbatch });
    (graph, config)
}

fn step(microbatch: u64) -> Graph {
    let (graph, config) = forward(Entry::Train, &[&format!("train.microbatch={microbatch}")]);
    let graph = training_step(graph, &config).unwrap_or_else(|e| panic!("{e}"));
    verify(&graph, Stage::Any).unwrap_or_else(|e| panic!("{e}"));
    graph
}

/// Weights 1, and the draws of one seed and step.
fn start(graph: &Graph, seed: f64, step: f64) -> Environment {
    let mut environment = sample_environment(graph, 3);
    for tensor in environment.tensors.values_mut() {
        let ones = vec![1.0; tensor.ty.numel() as usize];
        *tensor = crate::interpret::Tensor::floats(tensor.ty.clone(), ones);
    }
    for (key, value) in [("seed.low", seed), ("seed.high", 1.0), ("step", step)] {
        environment.scalars.insert(key.into(), value);
    }
    environment
}

fn outcome(graph: &Graph, seed: f64, step: f64) -> Outputs {
    run(graph, &start(graph, seed, step), Mode::F64).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn dropout_draws_the_same_in_any_microbatch() {
    let whole = outcome(&step(4), 7.0, 2.0);
    for size in [1, 2] {
        assert_eq!(outcome(&step(size), 7.0, 2.0), whole, "microbatches of {size}");
    }
}

#[test]
fn dropout_draws_anew_with_every_seed_and_step() {
    let graph = step(2);
    let loss = |seed, step| outcome(&graph, seed, step).report("loss").unwrap().item();
    let all = [loss(7.0, 2.0), loss(7.0, 3.0), loss(8.0, 2.0), loss(8.0, 3.0)];
    for (i, a) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|b| a != b), "{all:?}");
    }
}

#[test]
fn dropout_is_the_identity_outside_of_training() {
    let (graph, _) = forward(Entry::Eval, &[]);
    let drawn = graph.ops.iter().any(|node| matches!(node.op, Op::Binary(crate::graph::BinaryOp::Threefry)));
    assert!(!drawn, "{graph}");
}

#[test]
fn dropout_computes_what_it_means_in_kernels() {
    for microbatch in [4, 1] {
        let graph = step(microbatch);
        let program = simulate::program(&graph).unwrap_or_else(|e| panic!("{e}"));
        let environment = start(&graph, 7.0, 2.0);
        let found = simulate::run(&program, &graph, &environment).unwrap_or_else(|e| panic!("{e}"));
        let expected = run(&graph, &environment, Mode::Bounds).unwrap();
        assert_eq!(simulate::first_outside(&expected, &found), None);
    }
}

#[test]
fn dropout_has_its_gradient() {
    check(|b| {
        let x = param(b, "x", &[("batch", 3), ("d", 5)]);
        let key = b.constant(DType::I64, 11.0);
        b.dropout(x, 0.3, key, None)
    });
}

/// `h + dropout(h)` in a loop over layers, or once per layer.
fn layers(looped: bool) -> Graph {
    let mut b = Builder::new("layers");
    let ty = Type::new(DType::F32, vec![Axis::new("batch", 2), Axis::new("d", 9)]);
    let x = b.input("x", ty.clone(), 0);
    let key = b.constant(DType::I64, 5.0);
    let layer = |b: &mut Builder, h: ValueId, key: ValueId, index: ValueId| {
        let iteration = b.iteration(None, index, 3);
        let dropped = b.dropout(h, 0.5, key, Some(iteration));
        b.add(h, dropped)
    };
    let mut h = x;
    if looped {
        let args = [
            ("i".into(), Type::scalar(DType::I32)),
            ("h".into(), ty),
            ("key".into(), Type::scalar(DType::I64)),
        ];
        let (body, args) = b.open(&args);
        let out = layer(&mut b, args[1], args[2], args[0]);
        b.close(vec![out]);
        let l = Loop {
            axis: "layer".into(),
            trip: 3,
            block: None,
            reverse: false,
            microbatches: false,
            carries: 1,
            stacked: 0,
            stacked_outs: 0,
            body,
        };
        h = b.repeat(l, &[h, key], "h")[0];
    } else {
        for i in 0..3 {
            let index = b.constant(DType::I32, f64::from(i));
            h = layer(&mut b, h, key, index);
        }
    }
    b.output(Output::Report("h".into()), h);
    b.finish()
}

#[test]
fn dropout_in_a_loop_is_that_of_the_unrolled_layers() {
    let environment = sample_environment(&layers(true), 1);
    let results = [true, false].map(|looped| run(&layers(looped), &environment, Mode::F64).unwrap());
    assert_eq!(results[0], results[1]);
}

/// Of n draws with probability p the number of zeros lies within 5·√(n·p·(1−p)) of n·p but once in 10⁶ tries, and so does
/// the number of neighbours that are both zero.
#[test]
fn dropout_drops_at_its_rate_and_neighbours_apart() {
    for rate in [0.1, 0.5, 0.9] {
        let n = 40_000u64;
        let mut b = Builder::new("rate");
        let one = b.constant(DType::F32, 1.0);
        let ones =
            b.broadcast(one, &Type::new(DType::F32, vec![Axis::new("row", 200), Axis::new("d", n / 200)]));
        let key = b.constant(DType::I64, 77.0);
        let y = b.dropout(ones, rate, key, None);
        let sum = b.reduce(ReduceOp::Sum, y, &["d".into()]);
        b.output(Output::Report("y".into()), y);
        b.output(Output::Report("sum".into()), sum);
        let outputs = run(&b.finish(), &Environment::default(), Mode::F64).unwrap();
        let y = outputs.report("y").unwrap().as_floats();
        assert!(y.iter().all(|y| *y == 0.0 || *y == 1.0 / (1.0 - rate)));
        let zeros = y.iter().filter(|y| **y == 0.0).count() as f64;
        let pairs = y.windows(2).filter(|pair| pair == &[0.0, 0.0]).count() as f64;
        for (found, p) in [(zeros, rate), (pairs, rate * rate)] {
            // Overlapping pairs vary by less than three times as much as independent ones.
            let sigma = (n as f64 * p * (1.0 - p)).sqrt() * if p == rate { 1.0 } else { 3f64.sqrt() };
            assert!((found - n as f64 * p).abs() < 5.0 * sigma, "{found} of {n} at {p}");
        }
    }
}
