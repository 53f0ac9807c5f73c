//! Ranks in lockstep against numbers worked out by hand, and against the same computation on one rank.

use super::*;
use crate::graph::parse::parse;
use crate::graph::verify::{Stage, verify};
use crate::graph::{Axis, DType, Name, Type};
use crate::interpret::{Tensor, run};

fn floats(list: &[(&str, u64)], values: &[f64]) -> Tensor {
    let axes = list.iter().map(|(n, s)| Axis::new(*n, *s)).collect();
    Tensor::floats(Type::new(DType::F32, axes), values.to_vec())
}

fn on_ranks(text: &str, inputs: &[(&str, Tensor)], mode: Mode) -> (Graph, RankOutputs) {
    let graph = parse(text).unwrap();
    verify(&graph, Stage::Spmd).unwrap();
    let inputs = inputs.iter().map(|(n, t)| (Name::from(*n), t.clone())).collect();
    let outputs = run_ranks(&graph, &Environment { inputs, ..Environment::default() }, mode).unwrap();
    (graph, outputs)
}

/// The report `y` of every rank.
fn y_of(text: &str, inputs: &[(&str, Tensor)]) -> Vec<Vec<f64>> {
    let (_, RankOutputs(ranks)) = on_ranks(text, inputs, Mode::F64);
    ranks.iter().map(|r| r.report("y").unwrap().as_floats().to_vec()).collect()
}

/// Rank r of three holds elements 10r .. 10r + 6 of an axis.
fn thirds(op: &str, result: &str) -> Vec<Vec<f64>> {
    let text = format!(
        "graph @f on a=3 {{
            %x = input : f32[p=2, d=3 @a]
            %y = {op} : f32[{result}]
            return y = %y
        }}"
    );
    // x[p, d] with d cut into three parts of 3: rank r holds [[r0, r1, r2], [r3, r4, r5]].
    let of = |p: u64, d: u64| ((d / 3) * 10 + p * 3 + d % 3) as f64;
    let x: Vec<f64> = (0..2).flat_map(|p| (0..9).map(move |d| of(p, d))).collect();
    y_of(&text, &[("x", floats(&[("p", 2), ("d", 9)], &x))])
}

#[test]
fn ranks_take_their_part_and_gather_all() {
    let whole = vec![0., 1., 2., 10., 11., 12., 20., 21., 22., 3., 4., 5., 13., 14., 15., 23., 24., 25.];
    assert_eq!(thirds("all_gather %x over a join d", "p=2, d=9"), vec![whole; 3]);
    let stacked = vec![0., 1., 2., 3., 4., 5., 10., 11., 12., 13., 14., 15., 20., 21., 22., 23., 24., 25.];
    assert_eq!(thirds("all_gather %x over a join p", "p=6, d=3"), vec![stacked; 3]);
}

#[test]
fn ranks_reduce_and_scatter() {
    assert_eq!(thirds("all_reduce_sum %x over a", "p=2, d=3"), vec![vec![30., 33., 36., 39., 42., 45.]; 3]);
    assert_eq!(thirds("all_reduce_min %x over a", "p=2, d=3"), vec![vec![0., 1., 2., 3., 4., 5.]; 3]);
    let scattered = [vec![30., 39.], vec![33., 42.], vec![36., 45.]];
    assert_eq!(thirds("reduce_scatter_sum %x over a split d", "p=2, d=1"), scattered);
    let largest = [vec![20., 23.], vec![21., 24.], vec![22., 25.]];
    assert_eq!(thirds("reduce_scatter_max %x over a split d", "p=2, d=1"), largest);
}

#[test]
fn ranks_exchange_blocks_in_order_of_positions() {
    let exchanged = [
        vec![0., 3., 10., 13., 20., 23.],
        vec![1., 4., 11., 14., 21., 24.],
        vec![2., 5., 12., 15., 22., 25.],
    ];
    assert_eq!(thirds("all_to_all %x over a split d join p", "p=6, d=1"), exchanged);
}

#[test]
fn ranks_of_a_product_of_axes_stand_in_the_order_written() {
    let text = |over: &str| {
        format!(
            "graph @f on a=2, b=2 {{
                %x = input : f32[d=1 @a @b]
                %y = all_gather %x over {over} join d : f32[d=4]
                return y = %y
            }}"
        )
    };
    let x = floats(&[("d", 4)], &[0., 1., 2., 3.]);
    assert_eq!(y_of(&text("a b"), &[("x", x.clone())]), vec![vec![0., 1., 2., 3.]; 4]);
    assert_eq!(y_of(&text("b a"), &[("x", x)]), vec![vec![0., 2., 1., 3.]; 4]);
}

#[test]
fn ranks_cut_axes_in_blocks_and_assemble_them() {
    let text = "graph @f on a=2, b=3 {
        %x = input : f32[d=6 @a in 3, e=2 @b]
        %y = add %x, %x : f32[d=6 @a in 3, e=2 @b]
        return y = %y
    }";
    let x: Vec<f64> = (0..72).map(f64::from).collect();
    let (graph, outputs) = on_ranks(text, &[("x", floats(&[("d", 12), ("e", 6)], &x))], Mode::F64);
    // Rank (1, 2): of each block of 4 rows the last 2, and the last 2 of 6 columns.
    let rows = [2., 3., 6., 7., 10., 11.];
    let expected: Vec<f64> = rows.iter().flat_map(|r| [12. * r + 8., 12. * r + 10.]).collect();
    assert_eq!(outputs.0[5].report("y").unwrap().as_floats(), expected);
    let whole = outputs.assemble(&graph).unwrap();
    let twice: Vec<f64> = x.iter().map(|v| 2.0 * v).collect();
    assert_eq!(whole.report("y").unwrap(), &floats(&[("d", 12), ("e", 6)], &twice));
}

#[test]
fn ranks_know_their_coordinates() {
    let text = "graph @f on a=2, b=3 {
        %b = scalar \"mesh.b\" = 0.0 : f64[]
        %x = input : f32[d=2]
        %c = cast %b : f32[]
        %y = mul %x, %c : f32[d=2]
        return y = %y
    }";
    let inputs = [("x", floats(&[("d", 2)], &[1., 10.]))];
    let row = [vec![0., 0.], vec![1., 10.], vec![2., 20.]];
    assert_eq!(y_of(text, &inputs), [row.clone(), row].concat());
    // The result says that all ranks hold the same, and they do not.
    let (graph, outputs) = on_ranks(text, &inputs, Mode::F64);
    let error = outputs.assemble(&graph).unwrap_err();
    let expected = "the result y: ranks 0 and 1 hold different values at element 0 of f32[d=2]: 0.0 and 1.0";
    assert_eq!(error, expected);
    let lacking = parse(&text.replace("mesh.b", "mesh.c")).unwrap();
    let environment = Environment {
        inputs: [("x".into(), inputs[0].1.clone())].into_iter().collect(),
        ..Environment::default()
    };
    let error = run_ranks(&lacking, &environment, Mode::F64).unwrap_err();
    assert_eq!(error.message, "the mesh has no axis c");
}

#[test]
fn ranks_never_assemble_a_sum_that_was_not_taken() {
    let text = "graph @f on a=2 {
        %x = input : f32[d=2 @a]
        %y = reduce_sum %x over d : f32[] partial(sum a)
        return y = %y
    }";
    let (graph, outputs) = on_ranks(text, &[("x", floats(&[("d", 4)], &[1., 2., 3., 4.]))], Mode::F64);
    assert_eq!(outputs.0[1].report("y").unwrap().item(), 7.0);
    let error = outputs.assemble(&graph).unwrap_err();
    assert_eq!(error, "the result y: it lies as `partial sum over a`, a sum that was never taken");
}

#[test]
fn ranks_read_whole_tensors_only_in_their_global_size() {
    let text = "graph @f on a=2 {
        %x = input : f32[d=2 @a]
        return y = %x
    }";
    let graph = parse(text).unwrap();
    let environment = Environment {
        inputs: [("x".into(), floats(&[("d", 2)], &[1., 2.]))].into_iter().collect(),
        ..Environment::default()
    };
    let error = run_ranks(&graph, &environment, Mode::F64).unwrap_err();
    assert_eq!(error.message, "the input x is f32[d=4], not f32[d=2]");
}

/// Two layers of h ← h·w with w at rest split over `fsdp`: gathered in the loop, the sums of the batch scattered in it, and the
/// update local; against the same on one rank. The data are integers, so any order of additions is exact.
#[test]
fn ranks_agree_with_one_rank_through_loops_and_updates() {
    let sharded = "graph @f on fsdp=4 {
      %x = input : f32[batch=2 @fsdp, d=4]
      %w = param \"w\" = constant(0.0) : f32[layer=2, d=1 @fsdp, e=4]
      %h, %g = loop layer=2 {
        index %i : i32[]
        carry %c = %x : f32[batch=2 @fsdp, d=4]
        stacked %s = %w : f32[d=1 @fsdp, e=4]
        %full = all_gather %s over fsdp join d : f32[d=4, e=4]
        %p = dot %c, %full over d : f32[batch=2 @fsdp, e=4]
        %n = rename %p as e -> d : f32[batch=2 @fsdp, d=4]
        %t = dot %c, %p over batch : f32[d=4, e=4] partial(sum fsdp)
        %r = reduce_scatter_sum %t over fsdp split d : f32[d=1 @fsdp, e=4]
        yield carry %n : f32[batch=2 @fsdp, d=4]
        yield stacked %r : f32[layer=2, d=1 @fsdp, e=4]
      }
      %w.new = update \"w\" {
        arg %a = %w : f32[layer=2, d=1 @fsdp, e=4]
        arg %b = %g : f32[layer=2, d=1 @fsdp, e=4]
        %sum = reduce_sum %b over layer, d, e : f32[] partial(sum fsdp)
        %all = all_reduce_sum %sum over fsdp : f32[]
        %u = add %a, %b : f32[layer=2, d=1 @fsdp, e=4]
        %v = add %u, %all : f32[layer=2, d=1 @fsdp, e=4]
        yield %v : f32[layer=2, d=1 @fsdp, e=4]
      }
      return h = %h
      return store \"w\" = %w.new
    }";
    let whole = "graph @f {
      %x = input : f32[batch=8, d=4]
      %w = param \"w\" = constant(0.0) : f32[layer=2, d=4, e=4]
      %h, %g = loop layer=2 {
        index %i : i32[]
        carry %c = %x : f32[batch=8, d=4]
        stacked %s = %w : f32[d=4, e=4]
        %p = dot %c, %s over d : f32[batch=8, e=4]
        %n = rename %p as e -> d : f32[batch=8, d=4]
        %t = dot %c, %p over batch : f32[d=4, e=4]
        yield carry %n : f32[batch=8, d=4]
        yield stacked %t : f32[layer=2, d=4, e=4]
      }
      %w.new = update \"w\" {
        arg %a = %w : f32[layer=2, d=4, e=4]
        arg %b = %g : f32[layer=2, d=4, e=4]
        %sum = reduce_sum %b over layer, d, e : f32[]
        %u = add %a, %b : f32[layer=2, d=4, e=4]
        %v = add %u, %sum : f32[layer=2, d=4, e=4]
        yield %v : f32[layer=2, d=4, e=4]
      }
      return h = %h
      return store \"w\" = %w.new
    }";
    let (graph, one) = (parse(sharded).unwrap(), parse(whole).unwrap());
    verify(&graph, Stage::Spmd).unwrap();
    let mut environment = Environment::default();
    let x: Vec<f64> = (0..32).map(|i| f64::from(i * 7 % 5) - 2.0).collect();
    let w: Vec<f64> = (0..32).map(|i| f64::from(i * 3 % 7) - 3.0).collect();
    environment.inputs.insert("x".into(), floats(&[("batch", 8), ("d", 4)], &x));
    environment.tensors.insert("w".into(), floats(&[("layer", 2), ("d", 4), ("e", 4)], &w));
    for mode in [Mode::F64, Mode::F32, Mode::Bounds] {
        let expected = run(&one, &environment, mode).unwrap();
        let got = run_ranks(&graph, &environment, mode).unwrap().assemble(&graph).unwrap();
        for ((output, tensor), (_, other)) in expected.0.iter().zip(&got.0) {
            assert_eq!(
                (&tensor.ty, tensor.as_floats()),
                (&other.ty, other.as_floats()),
                "{output:?} {mode:?}"
            );
        }
    }
}

#[test]
fn ranks_round_what_travels_narrow_and_add_in_f32() {
    let text = "graph @f on a=3 {
        %x = input : f32[d=1 @a]
        %y = all_reduce_sum %x over a wire bf16 : f32[d=1]
        return y = %y
    }";
    // bf16 holds 8 bits: 257 becomes 256, and 256 + 1 + 1 stays exact in f32.
    let inputs = [("x", floats(&[("d", 3)], &[257.0, 1.0, 1.0]))];
    let (_, outputs) = on_ranks(text, &inputs, Mode::F32);
    assert_eq!(outputs.0[0].report("y").unwrap().as_floats(), [258.0]);
    let (_, exact) = on_ranks(text, &inputs, Mode::F64);
    assert_eq!(exact.0[0].report("y").unwrap().as_floats(), [259.0]);
    let (_, bounds) = on_ranks(text, &inputs, Mode::Bounds);
    let bound = bounds.0[0].report("y").unwrap();
    assert!((bound.as_floats()[0] - 258.0).abs() <= bound.errors[0], "{bound:?}");
}

#[test]
fn ranks_add_in_their_order_rounding_each_sum() {
    let text = "graph @f on a=3 {
        %x = input : f32[d=1 @a]
        %y = all_reduce_sum %x over a : f32[d=1]
        return y = %y
    }";
    // 2²⁴ + 1 is no f32: adding 1 twice from the left stays, adding 2 does not.
    let sum = |x: &[f64]| {
        let (_, outputs) = on_ranks(text, &[("x", floats(&[("d", 3)], x))], Mode::F32);
        outputs.0[2].report("y").unwrap().as_floats()[0]
    };
    let large = f64::from(1 << 24);
    assert_eq!(sum(&[large, 1.0, 1.0]), large);
    assert_eq!(sum(&[1.0, 1.0, large]), large + 2.0);
}
