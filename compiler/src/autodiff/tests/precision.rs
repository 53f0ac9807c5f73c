//! Casts by role, and gradients through them.

use super::llama;
use super::training::{ADAMW, config};
use crate::autodiff::config::Microbatch;
use crate::autodiff::precision::{Precision, apply_precision};
use crate::autodiff::{TrainConfig, stochastic_rounding, training_step};
use crate::graph::passes::{eliminate_dead, expand_composites};
use crate::graph::verify::{Stage, verify};
use crate::graph::{Axis, Builder, CompositeKind, DType, Graph, Op, OpId, Output, RegionId, Type, ValueId};
use crate::interpret::{Mode, Tensor, run, sample_environment};
use crate::remat::recompute_residuals;
use crate::testing::after_pass;

fn bf16() -> Precision {
    Precision { matmul: DType::Bf16, stored: DType::Bf16, ..Precision::F32 }
}

fn step_of(forward: &Graph, precision: Precision) -> Graph {
    let microbatch = Some(Microbatch { axis: "batch".into(), size: 2 });
    let config = TrainConfig { precision, microbatch, ..config(forward, ADAMW, 1e-3, 0.1) };
    let step = training_step(forward.clone(), &config).unwrap();
    verify(&step, Stage::Any).unwrap_or_else(|e| panic!("{e}"));
    step
}

fn ops(graph: &Graph) -> Vec<(RegionId, OpId)> {
    let regions = graph.executed_regions().into_iter();
    regions.flat_map(|r| graph.region(r).ops.iter().map(move |op| (r, *op))).collect()
}

const MLP: &str = "graph @mlp {
  %x = input : f32[batch=2, d=4]
  %up = param \"layer.{i}.up\" = normal(0.1) : f32[layer=3, d=4, ff=6]
  %down = param \"layer.{i}.down\" = normal(0.1) : f32[layer=3, ff=6, d=4]
  %y = loop layer=3 {
    index %i : i32[]
    carry %h = %x : f32[batch=2, d=4]
    stacked %up.i = %up : f32[d=4, ff=6]
    stacked %down.i = %down : f32[ff=6, d=4]
    %u = dot %h, %up.i over d : f32[batch=2, ff=6]
    %t = tanh %u : f32[batch=2, ff=6]
    %p = dot %t, %down.i over ff : f32[batch=2, d=4]
    %n = add %h, %p : f32[batch=2, d=4]
    yield carry %n : f32[batch=2, d=4]
  }
  %loss = reduce_sum %y over batch, d : f32[]
  return loss = %loss
}";

#[test]
fn apply_precision_casts_parameters_outside_loops_and_rounds_what_is_kept_once() {
    insta::assert_snapshot!(after_pass(|g| apply_precision(g, &bf16()), MLP));
}

#[test]
fn apply_precision_of_products_alone_keeps_activations() {
    let matmul = Precision { matmul: DType::Bf16, ..Precision::F32 };
    insta::assert_snapshot!(after_pass(|g| apply_precision(g, &matmul), MLP));
}

#[test]
fn apply_precision_of_f32_changes_nothing() {
    let forward = llama(true);
    assert_eq!(apply_precision(forward.clone(), &Precision::F32).unwrap(), forward);
}

#[test]
fn apply_precision_leaves_products_with_a_named_parameter_in_f32() {
    let of_param = [("layer.{i}.down".into(), DType::F32)].into();
    let text = after_pass(|g| apply_precision(g, &Precision { of_param, ..bf16() }), MLP);
    assert!(text.contains("%p = dot %t, %down.i over ff"), "{text}");
    assert!(text.contains("%u = dot %h, %up.bf16"), "{text}");
    assert!(!text.contains("%down.bf16"), "{text}");
}

/// Every parameter is rounded once a step: outside the loops over layers, microbatches and chunks.
#[test]
fn llama_in_bf16_casts_its_parameters_in_the_outermost_region() {
    for tied in [false, true] {
        let step = step_of(&llama(tied), bf16());
        let params: Vec<ValueId> = ops(&step)
            .into_iter()
            .filter(|(_, op)| matches!(step.op(*op).op, Op::Param { .. }))
            .map(|(_, op)| step.op(op).results[0])
            .collect();
        let casts: Vec<ValueId> = (step.region(step.body).ops.iter())
            .filter(|op| matches!(step.op(**op).op, Op::Cast))
            .filter(|op| step.ty(step.op(**op).results[0]).dtype == DType::Bf16)
            .map(|op| step.op(*op).operands[0])
            .collect();
        assert_eq!(casts.len(), 8, "seven matrices of a layer and the head");
        assert!(casts.iter().all(|v| params.contains(v)));
        // What is cast inside is never a slice of a parameter: those all have a weight's axes and no tokens.
        for (region, op) in ops(&step).into_iter().filter(|(r, _)| *r != step.body) {
            let node = step.op(op);
            let narrows = matches!(node.op, Op::Cast) && step.ty(node.results[0]).dtype == DType::Bf16;
            let ty = step.ty(node.results[0]);
            assert!(
                !narrows || ty.has("seq") || ty.has("pos"),
                "{region}: {}",
                step.value_name(node.results[0])
            );
        }
    }
}

#[test]
fn llama_in_bf16_sums_in_f32_and_multiplies_in_bf16() {
    let step = step_of(&llama(false), bf16());
    let mut products = 0;
    for (_, op) in ops(&step) {
        let node = step.op(op);
        let of = |v: &ValueId| step.ty(*v).dtype;
        match &node.op {
            Op::Dot { .. } => {
                products += 1;
                assert!(
                    node.operands.iter().all(|v| of(v) == DType::Bf16),
                    "{}",
                    step.value_name(node.results[0])
                );
                assert_eq!(of(&node.results[0]), DType::F32);
            }
            Op::Composite(c) => match &c.kind {
                CompositeKind::Attention(_) => {
                    assert!(node.operands.iter().all(|v| of(v) == DType::Bf16));
                    assert_eq!(node.results.iter().map(of).collect::<Vec<_>>(), [DType::Bf16, DType::F32]);
                }
                CompositeKind::AttentionGrad(_) => {
                    let types: Vec<DType> = node.operands.iter().map(of).collect();
                    let [short, wide] = [DType::Bf16, DType::F32];
                    assert_eq!(types, [short, short, short, short, wide, short]);
                    assert!(node.results.iter().all(|v| of(v) == wide));
                }
                _ => {}
            },
            Op::Update(_) => assert!(node.operands.iter().all(|v| of(v) == DType::F32)),
            _ => {}
        }
    }
    // Seven a layer, each with two gradients, and the head's three.
    assert_eq!(products, 24);
}

/// What the forward loop keeps for the backward loop: matrices of tokens in bf16, one number a token in f32.
#[test]
fn llama_in_bf16_keeps_bf16() {
    // What is cheap to compute again is no longer kept then.
    let step = expand_composites(step_of(&llama(false), bf16()));
    let step = eliminate_dead(recompute_residuals(eliminate_dead(step)));
    let mut stacks = 0;
    for (_, op) in ops(&step) {
        let node = step.op(op);
        let Op::Loop(l) = &node.op else { continue };
        if l.axis.as_str() != "layer" || l.reverse {
            continue;
        }
        for result in &node.results[..l.carries + l.stacked_outs] {
            let ty = step.ty(*result);
            let is_matrix = ["d", "ff", "hd"].iter().any(|axis| ty.has(axis));
            assert_eq!(ty.dtype == DType::Bf16, is_matrix, "{}", step.value_name(*result));
            stacks += 1;
        }
    }
    assert!(stacks >= 8, "{stacks}");
}

/// In f64 casts round nothing, so the gradients are those of the plain model; in the written types they are near.
#[test]
fn llama_in_bf16_has_the_gradient_of_the_plain_model() {
    let forward = llama(true);
    let (plain, short) = (step_of(&forward, Precision::F32), step_of(&forward, bf16()));
    let environment = sample_environment(&plain, 3);
    let report = |graph: &Graph, mode, name: &str| {
        run(graph, &environment, mode).unwrap().report(name).unwrap().as_floats()[0]
    };
    for name in ["loss", "grad_norm"] {
        let exact = report(&plain, Mode::F64, name);
        let same = report(&short, Mode::F64, name);
        assert!((same - exact).abs() <= 1e-12 * exact.abs(), "{name}: {same} instead of {exact}");
        let near = report(&short, Mode::F32, name);
        let off = (near - exact).abs() / exact.abs();
        // Some ten roundings of 2⁻⁹ lie on any path from a weight to the loss.
        assert!(off > 1e-8 && off < 0.05, "{name}: {off:e}");
    }
}

/// Parameters at rest in bf16 have states and gradients in f32, and the store rounds.
#[test]
fn llama_at_rest_in_bf16_has_states_of_f32() {
    for stochastic in [false, true] {
        let precision = Precision { params: DType::Bf16, stochastic, ..bf16() };
        let step = step_of(&llama(true), precision);
        for (_, op) in ops(&step) {
            let node = step.op(op);
            let of = |v: &ValueId| step.ty(*v).dtype;
            match &node.op {
                Op::Param { .. } => assert_eq!(of(&node.results[0]), DType::Bf16),
                Op::State { .. } => assert_eq!(of(&node.results[0]), DType::F32),
                Op::Update(_) => {
                    assert_eq!((of(&node.operands[0]), of(&node.operands[1])), (DType::Bf16, DType::F32));
                }
                _ => {}
            }
        }
        // No table is widened to be looked up in.
        let wide_table = |v: &ValueId| step.ty(*v).dtype == DType::F32 && step.ty(*v).has("vocab");
        for (_, op) in ops(&step).into_iter().filter(|(_, op)| matches!(step.op(*op).op, Op::Cast)) {
            let node = step.op(op);
            let widens = step.ty(node.operands[0]).dtype == DType::Bf16 && wide_table(&node.results[0]);
            assert!(!widens, "{}", step.value_name(node.results[0]));
        }
    }
}

/// A step with parameters of bf16 rounded at random: each is a neighbour of the number it is rounded from, the states are those
/// of the step that rounds to nearest. Parameters of f32 are not rounded at all.
#[test]
fn llama_rounds_parameters_of_bf16_at_random() {
    let forward = llama(true);
    let of_param = [("norm.w".into(), DType::F32)].into();
    let nearest = Precision { params: DType::Bf16, of_param, ..bf16() };
    let random = Precision { stochastic: true, ..nearest.clone() };
    let [nearest, random] = [nearest, random].map(|precision| step_of(&forward, precision));
    let environment = sample_environment(&nearest, 3);
    let stores = |graph: &Graph| {
        let outputs = run(graph, &environment, Mode::F32).unwrap();
        outputs.0.into_iter().filter(|(o, _)| matches!(o, Output::Store(_))).collect::<Vec<_>>()
    };
    let (mut rounded, mut moved) = (0, 0);
    for ((output, a), (_, b)) in stores(&nearest).iter().zip(&stores(&random)) {
        for (near, other) in a.as_floats().iter().zip(b.as_floats()) {
            if a.ty.dtype == DType::Bf16 {
                assert!((near - other).abs() <= near.abs() / 128.0, "{output:?}: {other} and {near}");
                (rounded, moved) = (rounded + 1, moved + usize::from(near != other));
            } else {
                assert_eq!(near, other, "{output:?}");
            }
        }
    }
    // Each of them draws for itself.
    for (_, op) in ops(&random) {
        let node = random.op(op);
        if matches!(node.op, Op::Update(_)) {
            let draws = node.operands.iter().any(|v| random.value_name(*v).starts_with("draws"));
            assert_eq!(draws, random.ty(node.operands[0]).dtype == DType::Bf16);
        }
    }
    // A random rounding is not the nearest one in a quarter of all cases.
    let share = moved as f64 / rounded as f64;
    assert!((0.1..0.4).contains(&share), "{moved} of {rounded}");
}

/// Of numbers at 0.3 of the way between neighbours, 0.3 go up: on either side of zero, and across a power of two.
#[test]
fn stochastic_rounding_is_right_on_average() {
    const N: u64 = 4096;
    for (lower, upper) in [(1.0, 1.0078125), (-1.0, -1.0078125), (0.99609375, 1.0), (3.0, 3.015625)] {
        let mut b = Builder::new("rounding");
        let ty = Type::new(DType::F32, vec![Axis::new("n", N)]);
        let x = b.input("x", ty.clone(), 0);
        let draws = stochastic_rounding::draws(&mut b, &"w".into(), &ty);
        let y = stochastic_rounding::round(&mut b, x, draws);
        b.output(Output::Report("y".into()), y);
        let graph = b.finish();
        let mut environment = sample_environment(&graph, 1);
        let at = f64::from((lower + 0.3 * (upper - lower)) as f32);
        environment.inputs.insert("x".into(), Tensor::floats(ty.clone(), vec![at; N as usize]));
        let outputs = run(&graph, &environment, Mode::F32).unwrap();
        let rounded = outputs.report("y").unwrap().as_floats();
        assert!(rounded.iter().all(|y| *y == lower || *y == upper), "{lower} to {upper}");
        let share = rounded.iter().filter(|y| **y == upper).count() as f64 / N as f64;
        // Four standard deviations of a mean of N draws.
        assert!((share - 0.3).abs() < 4.0 * (0.3 * 0.7 / N as f64).sqrt(), "{lower} to {upper}: {share}");
        environment.inputs.insert("x".into(), Tensor::floats(ty, vec![lower; N as usize]));
        let outputs = run(&graph, &environment, Mode::F32).unwrap();
        assert!(outputs.report("y").unwrap().as_floats().iter().all(|y| *y == lower), "{lower} is kept");
    }
}
