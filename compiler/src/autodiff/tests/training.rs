//! Whole training steps: a small Llama, accumulation, optimizers and schedules.

use super::llama::llama;
use super::{check_graph, environment, param};
use crate::autodiff::config::{
    Adafactor, DecayBy, MatrixAxes, Microbatch, Number, OptimizerConfig, Piece, Rate, Rule, Schedule, Shape,
    Skip,
};
use crate::autodiff::differentiate::parameters;
use crate::autodiff::precision::Precision;
use crate::autodiff::{TrainConfig, training_step};
use crate::graph::verify::{Stage, verify};
use crate::graph::{Axis, Builder, DType, Graph, Name, Op, Output, Phase, Type};
use crate::interpret::{Environment, Mode, Outputs, Tensor, run};

fn schedule(peak: f64, pieces: &[(Shape, Option<f64>)]) -> Schedule {
    let pieces = pieces.iter();
    let pieces = pieces.map(|(shape, n)| Piece { shape: shape.clone(), length: n.map(Number::Fixed) });
    Schedule {
        peak: Number::scalar("train.optimizer.lr", peak),
        horizon: Number::scalar("train.steps", 10.0),
        pieces: pieces.collect(),
    }
}

/// One rule and one rate for every parameter; every parameter counts as a vector.
pub(super) fn config(forward: &Graph, rule: Rule, lr: f64, decay: f64) -> TrainConfig {
    let rate = |value| Rate {
        rule,
        lr_factor: 1.0,
        decay: Number::Fixed(decay),
        decay_by: DecayBy::Rate,
        axes: MatrixAxes {
            rows: forward.ty(value).names().into_iter().filter(|a| a.as_str() != "layer").collect(),
            columns: Vec::new(),
        },
    };
    let rates = parameters(forward).into_iter().map(|(path, value)| (path, rate(value))).collect();
    TrainConfig {
        optimizer: OptimizerConfig { rates, ..OptimizerConfig::default() },
        schedule: schedule(lr, &[(Shape::Constant, None)]),
        clip: None,
        skip: None,
        microbatch: None,
        precision: Precision::F32,
    }
}

pub(super) const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 };

fn close(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{what}: {got} is not {want}");
}

#[test]
fn llama_has_its_gradient() {
    check_graph(llama(false));
    check_graph(llama(true));
}

#[test]
fn llama_training_step_is_a_valid_graph_with_every_store() {
    let forward = llama(true);
    let step = training_step(forward.clone(), &config(&forward, ADAMW, 1e-3, 0.1)).unwrap();
    verify(&step, Stage::Any).unwrap_or_else(|e| panic!("{e}"));
    let stores = step.outputs.iter().filter(|o| matches!(o, Output::Store(_))).count();
    assert_eq!(stores, 3 * parameters(&forward).len());
    let reports: Vec<&str> = step
        .outputs
        .iter()
        .filter_map(|o| match o {
            Output::Report(name) => Some(name.as_str()),
            Output::Store(_) => None,
        })
        .collect();
    assert_eq!(reports, ["loss", "loss_sum", "loss_weight", "grad_norm", "lr"]);
}

#[test]
fn llama_step_has_no_tensor_of_all_logits_and_no_saved_table() {
    let forward = llama(false);
    let step = training_step(forward.clone(), &config(&forward, ADAMW, 1e-3, 0.1)).unwrap();
    for region in step.executed_regions() {
        for op in &step.region(region).ops {
            for value in &step.op(*op).results {
                let ty = step.ty(*value);
                let logits = ty.has("vocab") && ty.size_of("seq") == Some(4);
                let table = ty.dtype == DType::F64 && ty.has("layer");
                assert!(!logits && !table, "{}", step.value_name(*value));
            }
        }
    }
}

#[test]
fn llama_ops_carry_their_phase() {
    let forward = llama(false);
    let step = training_step(forward.clone(), &config(&forward, ADAMW, 1e-3, 0.1)).unwrap();
    let mut weight_products = 0;
    for region in step.executed_regions() {
        for op in &step.region(region).ops {
            let node = step.op(*op);
            let ty = step.ty(node.results[0]);
            match &node.op {
                Op::Update(_) => assert_eq!(node.origin.phase, Phase::Update),
                // A product without token axes is a weight's gradient.
                Op::Dot { .. } if !ty.has("seq") && !ty.has("pos") => {
                    weight_products += 1;
                    assert_eq!(node.origin.phase, Phase::BackwardWeight, "{ty:?}");
                }
                Op::Dot { .. } => assert_ne!(node.origin.phase, Phase::BackwardWeight, "{ty:?}"),
                _ => {}
            }
        }
    }
    // wq, wk, wv, wo, gate, up, down and the head.
    assert_eq!(weight_products, 8);
}

fn one_step(forward: &Graph, config: &TrainConfig) -> Outputs {
    let step = training_step(forward.clone(), config).unwrap();
    verify(&step, Stage::Any).unwrap_or_else(|e| panic!("{e}"));
    run(&step, &environment(&step, 5), Mode::F64).unwrap()
}

/// Environments draw values in the order of sources, which accumulation keeps.
#[test]
fn accumulated_microbatches_are_one_big_batch() {
    for tied in [false, true] {
        let forward = llama(tied);
        let mut config = config(&forward, Rule::Sgd { momentum: 0.0, nesterov: false }, 0.1, 0.0);
        let whole = one_step(&forward, &config);
        for size in [1, 2, 4] {
            config.microbatch = Some(Microbatch { axis: "batch".into(), size });
            let parts = one_step(&forward, &config);
            assert_eq!(whole.0.len(), parts.0.len());
            for ((output, a), (other, b)) in whole.0.iter().zip(&parts.0) {
                assert_eq!(output, other);
                for (x, y) in a.as_floats().iter().zip(b.as_floats()) {
                    // The same terms in another order: sums of some hundred terms of order 1, each rounding to 1e-16.
                    close(&format!("{output:?} in microbatches of {size}"), *y, *x, 1e-12);
                }
            }
        }
    }
}

#[test]
fn accumulation_is_one_loop_and_one_microbatch_is_none() {
    let forward = llama(false);
    let mut config = config(&forward, ADAMW, 1e-3, 0.0);
    let loops = |config: &TrainConfig| {
        let step = training_step(forward.clone(), config).unwrap();
        let ops = step.region(step.body).ops.iter();
        ops.filter_map(|op| match &step.op(*op).op {
            Op::Loop(l) => Some((l.axis.to_string(), l.trip)),
            _ => None,
        })
        .collect::<Vec<_>>()
    };
    config.microbatch = Some(Microbatch { axis: "batch".into(), size: 1 });
    assert_eq!(loops(&config), [("batch".to_owned(), 4)]);
    config.microbatch = Some(Microbatch { axis: "batch".into(), size: 4 });
    let plain = [("layer".to_owned(), 2), ("batch".to_owned(), 4), ("layer".to_owned(), 2)];
    assert_eq!(loops(&config), plain);
}

/// loss_sum = 3·Σ p² + Σ q·x over d, weight 4: gradients of the mean are 6·p/4 and x/4.
fn quadratic() -> Graph {
    let mut b = Builder::new("quadratic");
    let d = Type::new(DType::F32, vec![Axis::new("d", 3)]);
    let x = b.input("x", d, 0);
    let p = param(&mut b, "p", &[("d", 3)]);
    let q = param(&mut b, "q", &[("d", 3)]);
    let squares = b.mul(p, p);
    let squares = b.scale(squares, 3.0);
    let products = b.mul(q, x);
    let both = b.add(squares, products);
    let loss = b.sum_to(both, &Type::scalar(DType::F32));
    let weight = b.constant(DType::F32, 4.0);
    b.output(Output::Report("loss_sum".into()), loss);
    b.output(Output::Report("loss_weight".into()), weight);
    b.finish()
}

/// One parameter of the plain reference.
struct Plain {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    lr_factor: f64,
    decay: f64,
}

/// Runs the step graph and a plain reference side by side; `rate` is the reference's schedule, `update` its rule on
/// (element, gradient, m, v, lr, decay, t).
fn side_by_side(
    config: &TrainConfig,
    clip: Option<f64>,
    rate: impl Fn(f64) -> f64,
    update: impl Fn(&mut f64, f64, &mut f64, &mut f64, f64, f64, i32),
) {
    vectors_side_by_side(config, clip, rate, |one, gradient, lr, t| {
        for (i, g) in gradient.iter().enumerate() {
            update(&mut one.p[i], *g, &mut one.m[i], &mut one.v[i], lr, one.decay, t);
        }
    });
}

/// The same with a rule on (parameter, gradient, lr, t), for rules that look at a whole parameter.
fn vectors_side_by_side(
    config: &TrainConfig,
    clip: Option<f64>,
    rate: impl Fn(f64) -> f64,
    update: impl Fn(&mut Plain, &[f64], f64, i32),
) {
    let step = training_step(quadratic(), config).unwrap();
    let mut environment = environment(&step, 9);
    let x = environment.inputs["x"].as_floats().to_vec();
    let mut plain: Vec<Plain> = ["p", "q"]
        .iter()
        .map(|path| {
            let rates = &config.optimizer.rates[&Name::from(*path)];
            let decay = match &rates.decay {
                Number::Fixed(c) => *c,
                Number::Scalar { default, .. } => *default,
            };
            Plain {
                p: environment.tensors[*path].as_floats().to_vec(),
                m: vec![0.0; 3],
                v: vec![0.0; 3],
                lr_factor: rates.lr_factor,
                decay,
            }
        })
        .collect();
    for s in 0..12 {
        environment.scalars.insert("step".into(), f64::from(s));
        let outputs = run(&step, &environment, Mode::F64).unwrap();
        environment.store(&outputs);
        let gradients = [
            plain[0].p.iter().map(|p| 6.0 * p / 4.0).collect(),
            x.iter().map(|x| x / 4.0).collect::<Vec<f64>>(),
        ];
        let loss: f64 = (0..3).map(|i| 3.0 * plain[0].p[i].powi(2) + plain[1].p[i] * x[i]).sum();
        let norm = gradients.iter().flatten().map(|g: &f64| g * g).sum::<f64>().sqrt();
        let factor = clip.map_or(1.0, |c| (c / (norm + 1e-6)).min(1.0));
        let lr = rate(f64::from(s));
        // Twelve steps of a few dozen roundings each.
        let same = |what: &str, want: f64| close(what, outputs.report(what).unwrap().item(), want, 1e-12);
        same("loss", loss / 4.0);
        same("loss_sum", loss);
        same("loss_weight", 4.0);
        same("grad_norm", norm);
        same("lr", lr);
        for ((path, one), gradient) in ["p", "q"].iter().zip(&mut plain).zip(&gradients) {
            let clipped: Vec<f64> = gradient.iter().map(|g| g * factor).collect();
            let lr = lr * one.lr_factor;
            update(one, &clipped, lr, s + 1);
            for i in 0..3 {
                let got = outputs.stored(path).unwrap().as_floats()[i];
                close(&format!("{path}[{i}] after step {s}"), got, one.p[i], 1e-12);
            }
        }
    }
}

/// Warm-up over 3 steps to 0.1, half a cosine down to 0.01 at step 8, then constant.
fn warmup_cosine() -> (Schedule, impl Fn(f64) -> f64) {
    let rate = |s: f64| {
        if s < 3.0 {
            0.1 * (s + 1.0) / 3.0
        } else if s < 8.0 {
            0.01 + 0.09 * (1.0 + (std::f64::consts::PI * (s - 3.0) / 5.0).cos()) / 2.0
        } else {
            0.01
        }
    };
    let cosine = Shape::Cosine { to: Number::Fixed(0.01) };
    (schedule(0.1, &[(Shape::Warmup, Some(3.0)), (cosine, Some(5.0))]), rate)
}

#[test]
fn adamw_with_groups_clip_and_cosine_follows_the_plain_reference() {
    let mut config = config(&quadratic(), ADAMW, 0.1, 0.1);
    let group = config.optimizer.rates.get_mut("q").unwrap();
    (group.lr_factor, group.decay) = (0.5, Number::Fixed(0.0));
    config.clip = Some(Number::scalar("train.optimizer.clip", 0.3));
    let (schedule, rate) = warmup_cosine();
    config.schedule = schedule;
    side_by_side(&config, Some(0.3), rate, |p, g, m, v, lr, decay, t| {
        *p *= 1.0 - lr * decay;
        *m = 0.9 * *m + 0.1 * g;
        *v = 0.95 * *v + 0.05 * g * g;
        let m_hat = *m / (1.0 - 0.9f64.powi(t));
        let v_hat = *v / (1.0 - 0.95f64.powi(t));
        *p -= lr * m_hat / (v_hat.sqrt() + 1e-8);
    });
}

#[test]
fn sgd_follows_the_plain_reference() {
    let rate = |s: f64| if s < 10.0 { 0.2 - 0.2 * s / 10.0 } else { 0.0 };
    for (momentum, nesterov) in [(0.0, false), (0.9, false), (0.9, true)] {
        let mut config = config(&quadratic(), Rule::Sgd { momentum, nesterov }, 0.1, 0.05);
        config.schedule = schedule(0.2, &[(Shape::Linear { to: Number::Fixed(0.0) }, Some(10.0))]);
        side_by_side(&config, None, rate, |p, g, m, _, lr, decay, _| {
            *p *= 1.0 - lr * decay;
            *m = momentum * *m + g;
            let direction = match (momentum, nesterov) {
                (0.0, _) => g,
                (_, true) => g + momentum * *m,
                (_, false) => *m,
            };
            *p -= lr * direction;
        });
    }
}

#[test]
fn weight_decay_has_three_meanings() {
    let meanings: [(DecayBy, fn(f64) -> f64); 2] =
        [(DecayBy::Rate, |lr| lr), (DecayBy::Schedule, |lr| lr / 0.1)];
    for (decay_by, times) in meanings {
        let mut config = config(&quadratic(), ADAMW, 0.1, 0.05);
        config.optimizer.rates.values_mut().for_each(|rate| rate.decay_by = decay_by);
        let (schedule, rate) = warmup_cosine();
        config.schedule = schedule;
        side_by_side(&config, None, rate, |p, g, m, v, lr, decay, t| {
            *p *= 1.0 - times(lr) * decay;
            adam(p, g, m, v, lr, t);
        });
    }
    let mut config = config(&quadratic(), ADAMW, 0.1, 0.05);
    config.optimizer.rates.values_mut().for_each(|rate| rate.decay_by = DecayBy::Gradient);
    side_by_side(
        &config,
        None,
        |_| 0.1,
        |p, g, m, v, lr, decay, t| {
            let g = g + decay * *p;
            adam(p, g, m, v, lr, t);
        },
    );
}

fn adam(p: &mut f64, g: f64, m: &mut f64, v: &mut f64, lr: f64, t: i32) {
    *m = 0.9 * *m + 0.1 * g;
    *v = 0.95 * *v + 0.05 * g * g;
    let m_hat = *m / (1.0 - 0.9f64.powi(t));
    let v_hat = *v / (1.0 - 0.95f64.powi(t));
    *p -= lr * m_hat / (v_hat.sqrt() + 1e-8);
}

/// A peak of 0 has no shape to decay by: the whole decay.
#[test]
fn decay_by_the_schedule_of_a_rate_of_zero_is_whole() {
    let mut config = config(&quadratic(), ADAMW, 0.0, 0.05);
    config.optimizer.rates.values_mut().for_each(|rate| rate.decay_by = DecayBy::Schedule);
    side_by_side(&config, None, |_| 0.0, |p, _, _, _, _, decay, _| *p *= 1.0 - decay);
}

/// Shazeer, Stern 2018 (arXiv:1804.04235), algorithm 5 for vectors, with every setting away from its default.
#[test]
fn adafactor_follows_the_plain_reference() {
    let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
    for (beta1, scale_by_param, relative_step, eps2) in
        [(None, true, true, 1e-3), (Some(0.6), false, true, 1e-3), (Some(0.6), true, false, 5.0)]
    {
        let (exponent, eps1, threshold) = (0.7, 0.02, 0.5);
        let settings = Adafactor { exponent, eps1, eps2, threshold, beta1, scale_by_param, relative_step };
        let config = config(&quadratic(), Rule::Adafactor(settings), 0.5, 0.05);
        vectors_side_by_side(
            &config,
            None,
            |_| 0.5,
            |one, g, lr, t| {
                let t = f64::from(t);
                let fresh = t.powf(-exponent);
                for (v, g) in one.v.iter_mut().zip(g) {
                    *v = (1.0 - fresh) * *v + fresh * (g * g + eps1);
                }
                let u: Vec<f64> = g.iter().zip(&one.v).map(|(g, v)| g / v.sqrt()).collect();
                let rho = if relative_step { lr.min(1.0 / t.sqrt()) } else { lr };
                let alpha = if scale_by_param { rho * rms(&one.p).max(eps2) } else { rho };
                let cut = (rms(&u) / threshold).max(1.0);
                for i in 0..3 {
                    let way = alpha * u[i] / cut;
                    one.m[i] = beta1.map_or(way, |beta1| beta1 * one.m[i] + (1.0 - beta1) * way);
                    one.p[i] = one.p[i] * (1.0 - lr * one.decay) - one.m[i];
                }
            },
        );
    }
}

#[test]
fn lion_follows_the_plain_reference() {
    let rule = Rule::Lion { beta1: 0.9, beta2: 0.99 };
    side_by_side(
        &config(&quadratic(), rule, 0.1, 0.05),
        None,
        |_| 0.1,
        |p, g, m, _, lr, decay, _| {
            *p *= 1.0 - lr * decay;
            *p -= lr * (0.9 * *m + 0.1 * g).signum();
            *m = 0.99 * *m + 0.01 * g;
        },
    );
}

#[test]
fn schedule_pieces_join_without_a_jump() {
    let to = |rate| Number::Fixed(rate);
    let chain = schedule(
        0.1,
        &[
            (Shape::Warmup, Some(2.0)),
            (Shape::InverseSqrt, Some(3.0)),
            (Shape::Constant, Some(1.0)),
            (Shape::Sqrt { to: to(0.02) }, Some(2.0)),
            (Shape::Linear { to: to(0.0) }, None),
        ],
    );
    let mut config = config(&quadratic(), Rule::Sgd { momentum: 0.0, nesterov: false }, 0.1, 0.0);
    config.schedule = chain;
    let after = 0.1 * (2.0f64 / 5.0).sqrt();
    let rate = |s: f64| match s as u32 {
        0 | 1 => 0.1 * (s + 1.0) / 2.0,
        2..5 => 0.1 * (2.0 / (s + 1.0)).sqrt(),
        5 => after,
        6 | 7 => 0.02 + (after - 0.02) * (1.0 - ((s - 6.0) / 2.0).sqrt()),
        8 | 9 => 0.02 - 0.02 * (s - 8.0) / 2.0,
        _ => 0.0,
    };
    side_by_side(&config, None, rate, |p, g, _, _, lr, _, _| *p -= lr * g);
}

/// A step of the small Llama with one weight of layer 1 made infinite or huge.
fn skipping(skip: Skip, weight: f64) -> (Environment, Outputs) {
    let forward = llama(false);
    let mut config = config(&forward, ADAMW, 1e-2, 0.1);
    config.skip = Some(skip);
    let step = training_step(forward, &config).unwrap();
    verify(&step, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
    let mut environment = environment(&step, 5);
    let up = environment.tensors.iter().find(|(path, _)| path.ends_with("up")).unwrap();
    let (path, mut tensor) = (up.0.clone(), up.1.clone());
    let mut values = tensor.as_floats().to_vec();
    *values.last_mut().unwrap() = weight;
    tensor = Tensor::floats(tensor.ty, values);
    environment.tensors.insert(path, tensor);
    let outputs = run(&step, &environment, Mode::F64).unwrap();
    (environment, outputs)
}

fn kept_everything(environment: &Environment, outputs: &Outputs) -> bool {
    environment.tensors.iter().all(|(path, old)| {
        let bits = |t: &Tensor| t.as_floats().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        bits(outputs.stored(path).unwrap()) == bits(old)
    })
}

#[test]
fn skip_keeps_every_bit_of_a_step_that_is_not_finite_and_names_the_first_gradient() {
    let skip = Skip { nonfinite: true, norm: None };
    let (environment, outputs) = skipping(skip.clone(), f64::INFINITY);
    let report = |name: &str| outputs.report(name).unwrap().item();
    assert_eq!(report("skipped"), 1.0);
    // The infinity of the last layer reaches every gradient: the first parameter is named.
    assert_eq!(report("nonfinite"), 0.0);
    assert!(kept_everything(&environment, &outputs));
    let (environment, outputs) = skipping(skip, 0.5);
    assert_eq!(outputs.report("skipped").unwrap().item(), 0.0);
    assert_eq!(outputs.report("nonfinite").unwrap().item(), -1.0);
    assert!(!kept_everything(&environment, &outputs));
}

#[test]
fn skip_by_norm_leaves_out_steps_above_the_bound() {
    let norm = skipping(Skip { nonfinite: true, norm: None }, 0.5).1.report("grad_norm").unwrap().item();
    for (bound, skipped) in [(norm * 0.99, 1.0), (norm, 0.0)] {
        let skip = Skip { nonfinite: false, norm: Some(Number::scalar("train.skip.norm", bound)) };
        let (environment, outputs) = skipping(skip, 0.5);
        assert_eq!(outputs.report("skipped").unwrap().item(), skipped);
        assert_eq!(kept_everything(&environment, &outputs), skipped == 1.0);
    }
}

/// p [2 layers, d] and q [d]; the gradient of p in one layer is not finite where its input is not.
#[test]
fn skip_counts_layers_of_stacked_parameters() {
    for (bad, expected) in
        [([0.0, 1.0, 1.0], 2.0), ([1.0, 0.0, 1.0], 0.0), ([1.0, 1.0, 0.0], 1.0), ([1.0; 3], -1.0)]
    {
        let mut b = Builder::new("layers");
        let d = Type::new(DType::F32, vec![Axis::new("d", 2)]);
        let q = param(&mut b, "q", &[("d", 2)]);
        let p = param(&mut b, "layer.{i}.p", &[("layer", 2), ("d", 2)]);
        let x = b.input("x", d.clone(), 0);
        let y = b.input("y", Type::new(DType::F32, vec![Axis::new("layer", 2)]), 0);
        let whole = b.ty(p).clone();
        let y = b.broadcast(y, &whole);
        let part = b.mul(p, y);
        let part = b.sum_to(part, &d);
        let other = b.mul(q, x);
        let loss = b.add(part, other);
        let loss = b.sum_to(loss, &Type::scalar(DType::F32));
        let weight = b.constant(DType::F32, 1.0);
        b.output(Output::Report("loss_sum".into()), loss);
        b.output(Output::Report("loss_weight".into()), weight);
        let forward = b.finish();
        let mut config = config(&forward, ADAMW, 1e-2, 0.0);
        config.skip = Some(Skip { nonfinite: true, norm: None });
        let step = training_step(forward, &config).unwrap();
        let mut environment = environment(&step, 5);
        let number = |good: f64| if good == 1.0 { 1.0 } else { f64::NAN };
        let x = Tensor::floats(d, vec![number(bad[1]); 2]);
        let y = Type::new(DType::F32, vec![Axis::new("layer", 2)]);
        let y = Tensor::floats(y, vec![number(bad[2]), number(bad[0])]);
        environment.inputs.insert("x".into(), x);
        environment.inputs.insert("y".into(), y);
        let outputs = run(&step, &environment, Mode::F64).unwrap();
        assert_eq!(outputs.report("nonfinite").unwrap().item(), expected, "{bad:?}");
        assert!(expected < 0.0 || kept_everything(&environment, &outputs));
    }
}

#[test]
fn frozen_parameters_have_no_gradient_and_no_state() {
    let forward = llama(false);
    let mut config = config(&forward, ADAMW, 1e-3, 0.1);
    let all: Vec<Name> = config.optimizer.rates.keys().cloned().collect();
    for path in all.iter().filter(|path| path.as_str() != "head") {
        config.optimizer.rates.remove(path);
        config.optimizer.frozen.insert(path.clone());
    }
    let step = training_step(forward.clone(), &config).unwrap();
    verify(&step, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
    let stored: Vec<&str> = step
        .outputs
        .iter()
        .filter_map(|o| match o {
            Output::Store(name) => Some(name.as_str()),
            Output::Report(_) => None,
        })
        .collect();
    assert_eq!(stored, ["head", "head.m", "head.v"]);
    // No layer runs backward: the one loop over layers is the forward one.
    let loops = step.region(step.body).ops.iter();
    let loops = loops.filter(|op| matches!(&step.op(**op).op, Op::Loop(l) if l.axis.as_str() == "layer"));
    assert_eq!(loops.count(), 1);
    assert_eq!(parameters(&step).len(), parameters(&forward).len(), "frozen parameters are still saved");
}

#[test]
fn run_time_scalars_change_the_step_without_a_rebuild() {
    let mut config = config(&quadratic(), Rule::Sgd { momentum: 0.0, nesterov: false }, 0.1, 0.0);
    let (schedule, _) = warmup_cosine();
    config.schedule = schedule;
    let step = training_step(quadratic(), &config).unwrap();
    let mut environment = environment(&step, 9);
    environment.scalars.insert("step".into(), 2.0);
    environment.scalars.insert("train.optimizer.lr".into(), 0.5);
    let outputs = run(&step, &environment, Mode::F64).unwrap();
    close("lr", outputs.report("lr").unwrap().item(), 0.5, 1e-15);
}

#[test]
fn parameter_without_influence_only_decays() {
    let mut b = Builder::resume(quadratic());
    param(&mut b, "unused", &[("d", 3)]);
    let forward = b.finish();
    let config = config(&forward, ADAMW, 0.1, 0.5);
    let step = training_step(forward, &config).unwrap();
    let mut environment = environment(&step, 2);
    let ty = environment.tensors["unused"].ty.clone();
    environment.tensors.insert("unused".into(), Tensor::floats(ty, vec![1.0, 2.0, -1.0]));
    let outputs = run(&step, &environment, Mode::F64).unwrap();
    let values = outputs.stored("unused").unwrap().as_floats();
    for (got, want) in values.iter().zip([0.95, 1.9, -0.95]) {
        close("unused", *got, want, 1e-15);
    }
}

fn refusal(forward: Graph, config: &TrainConfig) -> String {
    training_step(forward, config).unwrap_err().to_string()
}

#[test]
fn training_step_refuses_what_it_can_not_do() {
    let forward = llama(false);
    let good = config(&forward, ADAMW, 0.1, 0.0);
    let with = |change: &dyn Fn(&mut TrainConfig)| {
        let mut config = good.clone();
        change(&mut config);
        refusal(forward.clone(), &config)
    };
    let micro = |size, axis: &str| Some(Microbatch { axis: axis.into(), size });
    assert_eq!(with(&|c| c.microbatch = micro(3, "batch")), "batch=4 does not divide into microbatches of 3");
    assert_eq!(with(&|c| c.microbatch = micro(0, "batch")), "batch=4 does not divide into microbatches of 0");
    assert_eq!(with(&|c| c.microbatch = micro(1, "rows")), "no input has the batch axis rows");
    let positions = "uses positions along the batch axis, which differ between microbatches";
    assert!(with(&|c| c.microbatch = micro(2, "seq")).contains(positions));
    assert_eq!(with(&|c| c.schedule.pieces.clear()), "the learning-rate schedule has no pieces");
    let missing = with(&|c| {
        c.optimizer.rates.remove(&Name::from("head"));
    });
    assert_eq!(missing, "the optimizer has no rate for parameter head");
    let short = with(&|c| c.precision.reduce = DType::Bf16);
    assert_eq!(short, "precision `reduce = Bf16` is not supported");
    let mut silent = forward.clone();
    silent.outputs[0] = Output::Report("other".into());
    let error = refusal(silent, &good);
    assert_eq!(error, "the forward graph does not report loss_sum; is there a `loss` line?");
}
