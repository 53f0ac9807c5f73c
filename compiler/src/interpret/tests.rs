//! Numbers worked out by hand, and the three arithmetics against each other.

use super::*;
use crate::graph::parse::parse;
use crate::graph::{Axis, Type};

fn axes(list: &[(&str, u64)]) -> Vec<Axis> {
    list.iter().map(|(n, s)| Axis::new(*n, *s)).collect()
}

fn floats(list: &[(&str, u64)], values: &[f64]) -> Tensor {
    Tensor::floats(Type::new(DType::F32, axes(list)), values.to_vec())
}

fn ints(list: &[(&str, u64)], values: &[i64]) -> Tensor {
    Tensor::ints(Type::new(DType::I32, axes(list)), values.to_vec())
}

/// Runs a graph without parameters and gives its report `y`.
fn y(text: &str, inputs: &[(&str, Tensor)]) -> Tensor {
    let graph = parse(text).unwrap();
    let inputs = inputs.iter().map(|(n, t)| (Name::from(*n), t.clone())).collect();
    let environment = Environment { inputs, ..Environment::default() };
    run(&graph, &environment, Mode::F64).unwrap().report("y").unwrap().clone()
}

#[test]
fn dot_sums_over_the_named_axis_whatever_the_order() {
    let text = "graph @f {
        %a = input : f32[m=2, k=3]
        %b = input : f32[n=2, k=3]
        %y = dot %a, %b over k : f32[n=2, m=2]
        return y = %y
    }";
    let a = floats(&[("m", 2), ("k", 3)], &[1., 2., 3., 4., 5., 6.]);
    // The environment may hold the axes in another order: b[n, k] = [[1, 0, 2], [0, 1, 0]].
    let b = floats(&[("k", 3), ("n", 2)], &[1., 0., 0., 1., 2., 0.]);
    assert_eq!(y(text, &[("a", a), ("b", b)]).as_floats(), [7., 16., 2., 5.]);
}

#[test]
fn dot_keeps_shared_axes_apart() {
    let text = "graph @f {
        %a = input : f32[s=2, k=2]
        %b = input : f32[k=2, s=2, n=1]
        %y = dot %a, %b over k : f32[s=2, n=1]
        return y = %y
    }";
    let a = floats(&[("s", 2), ("k", 2)], &[1., 2., 3., 4.]);
    let b = floats(&[("k", 2), ("s", 2), ("n", 1)], &[10., 20., 30., 40.]);
    assert_eq!(y(text, &[("a", a), ("b", b)]).as_floats(), [70., 220.]);
}

#[test]
fn elementwise_ops_broadcast_by_name() {
    let text = "graph @f {
        %a = input : f32[m=2]
        %b = input : f32[n=3, m=2]
        %s = sub %b, %a : f32[n=3, m=2]
        %c = lt %s, %a : bool[n=3, m=2]
        %y = select %c, %a, %s : f32[m=2, n=3]
        return y = %y
    }";
    let a = floats(&[("m", 2)], &[1., 2.]);
    let b = floats(&[("n", 3), ("m", 2)], &[1., 2., 3., 4., 5., 6.]);
    // s[n, m] = [[0, 0], [2, 2], [4, 4]]; where s < a it is a.
    assert_eq!(y(text, &[("a", a), ("b", b)]).as_floats(), [1., 2., 4., 2., 2., 4.]);
}

#[test]
fn reductions_of_infinities_and_nans_follow_ieee() {
    let text = "graph @f {
        %a = input : f32[m=2, n=2]
        %y = reduce_max %a over n : f32[m=2]
        return y = %y
    }";
    let a = |values: &[f64]| floats(&[("m", 2), ("n", 2)], values);
    let inf = f64::INFINITY;
    assert_eq!(y(text, &[("a", a(&[-inf, -inf, 1., -inf]))]).as_floats(), [-inf, 1.]);
    assert!(y(text, &[("a", a(&[f64::NAN, 1., 2., 3.]))]).as_floats()[0].is_nan());
}

#[test]
fn gather_and_scatter_are_transposes() {
    let text = "graph @f {
        %t = input : f32[v=3, d=2]
        %ids = input below 3 : i32[s=4]
        %g = gather %t, %ids along v : f32[s=4, d=2]
        %y = scatter_add %g, %ids along v : f32[d=2, v=3]
        return y = %y
    }";
    let t = floats(&[("v", 3), ("d", 2)], &[1., 2., 3., 4., 5., 6.]);
    let ids = ints(&[("s", 4)], &[2, 0, 2, 2]);
    assert_eq!(y(text, &[("t", t), ("ids", ids)]).as_floats(), [1., 0., 15., 2., 0., 18.]);
}

#[test]
fn slice_takes_a_part_of_an_axis() {
    let text = "graph @f {
        %x = input : f32[d=4, m=2]
        %y = slice %x along d -> e at 1 : f32[m=2, e=2]
        return y = %y
    }";
    let x = floats(&[("d", 4), ("m", 2)], &[1., 10., 2., 20., 3., 30., 4., 40.]);
    assert_eq!(y(text, &[("x", x)]).as_floats(), [2., 3., 20., 30.]);
}

#[test]
fn concat_lays_operands_end_to_end_whatever_their_order_of_axes() {
    let text = "graph @f {
        %a = input : f32[m=2, d=2]
        %b = input : f32[e=1, m=2]
        %y = concat %a, %b, %a along d, e, d -> whole : f32[m=2, whole=5]
        return y = %y
    }";
    let a = floats(&[("m", 2), ("d", 2)], &[1., 2., 3., 4.]);
    let b = floats(&[("e", 1), ("m", 2)], &[10., 20.]);
    let found = y(text, &[("a", a), ("b", b)]);
    assert_eq!(found.as_floats(), [1., 2., 10., 1., 2., 3., 4., 20., 3., 4.]);
}

#[test]
fn rotate_pairs_turns_by_a_quarter_in_both_layouts() {
    let text = |layout: &str| {
        format!(
            "graph @f {{
                %x = input : f32[d=4, m=2]
                %y = rotate_pairs %x along d {layout} : f32[d=4, m=2]
                return y = %y
            }}"
        )
    };
    let x = floats(&[("d", 4), ("m", 2)], &[1., 10., 2., 20., 3., 30., 4., 40.]);
    let half = y(&text("half"), &[("x", x.clone())]);
    assert_eq!(half.as_floats(), [-3., -30., -4., -40., 1., 10., 2., 20.]);
    let interleaved = y(&text("interleaved"), &[("x", x)]);
    assert_eq!(interleaved.as_floats(), [-2., -20., 1., 10., -4., -40., 3., 30.]);
}

/// h ← 2h + w, from the last slice to the first; stacks h and sums i·w.
const LOOP: &str = "graph @f {
    %h0 = input : f32[]
    %w = input : f32[layer=3]
    %h, %s, %t = loop layer=3 REVERSE {
      index %i : i32[]
      carry %c = %h0 : f32[]
      stacked %g = %w : f32[]
      %two = const 2.0 : f32[]
      %d = mul %c, %two : f32[]
      %e = add %d, %g : f32[]
      %f = cast %i : f32[]
      %p = mul %f, %g : f32[]
      yield carry %e : f32[]
      yield stacked %e : f32[layer=3]
      yield sum %p : f32[]
    }
    return h = %h
    return y = %s
    return sum = %t
}";

#[test]
fn loops_carry_stack_and_sum_in_their_direction() {
    let inputs = [("h0", floats(&[], &[1.])), ("w", floats(&[("layer", 3)], &[1., 2., 3.]))];
    let run_loop = |reverse: &str| {
        let graph = parse(&LOOP.replace("REVERSE", reverse)).unwrap();
        let inputs = inputs.iter().map(|(n, t)| (Name::from(*n), t.clone())).collect();
        run(&graph, &Environment { inputs, ..Environment::default() }, Mode::F64).unwrap()
    };
    let forward = run_loop("");
    assert_eq!(forward.report("h").unwrap().item(), 19.0); // ((1·2+1)·2+2)·2+3
    assert_eq!(forward.report("y").unwrap().as_floats(), [3., 8., 19.]);
    assert_eq!(forward.report("sum").unwrap().item(), 8.0);
    let backward = run_loop("reverse");
    assert_eq!(backward.report("h").unwrap().item(), 25.0); // ((1·2+3)·2+2)·2+1
    assert_eq!(backward.report("y").unwrap().as_floats(), [25., 12., 5.]);
    assert_eq!(backward.report("sum").unwrap().item(), 8.0);
}

#[test]
fn blocked_loops_cut_an_axis_that_stays() {
    let text = "graph @f {
        %x = input : f32[d=2, s=6]
        %y, %t = loop s=3 block=2 {
          index %i : i32[]
          stacked %c = %x : f32[d=2, s=2]
          %e = add %c, %c : f32[s=2, d=2]
          %r = reduce_sum %c over s : f32[d=2]
          yield stacked %e : f32[d=2, s=6]
          yield sum %r : f32[d=2]
        }
        %z = add %y, %t : f32[d=2, s=6]
        return y = %z
    }";
    let x = floats(&[("d", 2), ("s", 6)], &[1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12.]);
    let expected: Vec<f64> =
        (1..=12).map(|v| f64::from(v) * 2.0 + if v <= 6 { 21.0 } else { 57.0 }).collect();
    assert_eq!(y(text, &[("x", x)]).as_floats(), expected);
}

#[test]
fn integers_wrap_and_divide_toward_zero() {
    let text = |op: &str| {
        format!(
            "graph @f {{
                %a = input : i32[m=3]
                %b = input : i32[m=3]
                %y = {op} %a, %b : i32[m=3]
                return y = %y
            }}"
        )
    };
    let a = ints(&[("m", 3)], &[i64::from(i32::MAX), -7, 5]);
    let b = ints(&[("m", 3)], &[2, 2, 0]);
    let result = |op: &str| y(&text(op), &[("a", a.clone()), ("b", b.clone())]).as_ints().to_vec();
    assert_eq!(result("mul"), [-2, -14, 0]);
    assert_eq!(result("div"), [i64::from(i32::MAX) / 2, -3, 0]);
    assert_eq!(result("rem"), [1, -1, 0]);
}

#[test]
fn parameters_states_and_scalars_come_from_the_environment_and_go_back() {
    let text = "graph @f {
        %w = param \"w\" = constant(1.0) : f32[d=2]
        %m = state \"w\" m : f32[d=2]
        %lr = scalar \"lr\" = 0.5 : f64[]
        %lr.w = cast %lr : f32[]
        %w.new, %m.new = update \"w\" states m {
          arg %p = %w : f32[d=2]
          arg %s = %m : f32[d=2]
          arg %r = %lr.w : f32[]
          %s.new = add %s, %p : f32[d=2]
          %q = mul %s.new, %r : f32[d=2]
          yield %q : f32[d=2]
          yield %s.new : f32[d=2]
        }
        return store \"w\" = %w.new
        return store \"w.m\" = %m.new
    }";
    let graph = parse(text).unwrap();
    let mut environment = Environment::default();
    let missing = run(&graph, &environment, Mode::F64).unwrap_err().message;
    assert_eq!(missing, "the parameter w is missing");
    environment.tensors.insert("w".into(), floats(&[("d", 2)], &[1., 2.]));
    environment.tensors.insert("w.m".into(), floats(&[("d", 2)], &[0., 10.]));
    let first = run(&graph, &environment, Mode::F64).unwrap();
    environment.store(&first);
    assert_eq!(environment.tensors["w"].as_floats(), [0.5, 6.0]);
    environment.scalars.insert("lr".into(), 2.0);
    let second = run(&graph, &environment, Mode::F64).unwrap();
    assert_eq!(second.stored("w").unwrap().as_floats(), [3.0, 36.0]);
    assert_eq!(second.stored("w.m").unwrap().as_floats(), [1.5, 18.0]);
    environment.tensors.insert("w".into(), floats(&[("e", 2)], &[1., 2.]));
    let wrong = run(&graph, &environment, Mode::F64).unwrap_err().message;
    assert_eq!(wrong, "the parameter w is f32[d=2], not f32[e=2]");
}

#[test]
fn f32_mode_rounds_every_result_and_bounds_cover_it() {
    let text = "graph @f {
        %a = input : f32[m=3]
        %e = exp %a : f32[m=3]
        %s = sin %e : f32[m=3]
        %b = cast %s : bf16[m=3]
        %c = cast %b : f32[m=3]
        %d = dot %c, %e over m : f32[]
        %q = div %d, %e : f32[m=3]
        %y = log %q : f32[m=3]
        return y = %y
    }";
    let graph = parse(text).unwrap();
    let inputs = [(Name::from("a"), floats(&[("m", 3)], &[0.1, 0.7, 1.3]))].into_iter().collect();
    let environment = Environment { inputs, ..Environment::default() };
    let of = |mode| run(&graph, &environment, mode).unwrap().report("y").unwrap().clone();
    let (exact, rounded, bounds) = (of(Mode::F64), of(Mode::F32), of(Mode::Bounds));
    assert_eq!(exact.as_floats(), bounds.as_floats());
    for i in 0..3 {
        let r = rounded.as_floats()[i];
        let distance = (exact.as_floats()[i] - r).abs();
        assert_eq!(f64::from(r as f32), r);
        assert!(distance > 0.0 && distance <= bounds.errors[i], "{distance} against {}", bounds.errors[i]);
        // The bf16 cast dominates: its half unit is 2⁻⁹ relative.
        assert!(bounds.errors[i] < 0.03, "{}", bounds.errors[i]);
    }
}

#[test]
fn bounds_grow_where_rounding_could_turn_a_comparison() {
    let text = "graph @f {
        %a = input : f32[m=2]
        %third = const 0.3 : f32[]
        %b = mul %a, %third : f32[m=2]
        %limit = const 0.03 : f32[]
        %c = lt %b, %limit : bool[m=2]
        %p = const 1.0 : f32[]
        %q = const 5.0 : f32[]
        %y = select %c, %p, %q : f32[m=2]
        return y = %y
    }";
    let graph = parse(text).unwrap();
    let inputs = [(Name::from("a"), floats(&[("m", 2)], &[0.1, 0.2]))].into_iter().collect();
    let environment = Environment { inputs, ..Environment::default() };
    let out = run(&graph, &environment, Mode::Bounds).unwrap().report("y").unwrap().clone();
    assert_eq!(out.errors, [4.0, 0.0]);
    assert_eq!(out.as_floats()[1], 5.0);
}

#[test]
fn bounds_that_overflow_allow_everything() {
    let text = "graph @f {
        %a = input : f32[m=1]
        %e = exp %a : f32[m=1]
        %b = mul %e, %e : f32[m=1]
        %c = mul %b, %b : f32[m=1]
        %f = floor %c : f32[m=1]
        %d = exp %f : f32[m=1]
        %z = sub %d, %d : f32[m=1]
        %w = mul %z, %z : f32[m=1]
        %y = mul %w, %z : f32[m=1]
        return y = %y
    }";
    let graph = parse(text).unwrap();
    // The power is 500, give or take a rounding, so its whole part is off by 1 and the exponential by as much as it is, 1e217.
    // What is left of the difference is 0, with the square of that for a bound; at last infinity times 0.
    let inputs = [(Name::from("a"), floats(&[("m", 1)], &[500f64.ln() / 4.0]))].into_iter().collect();
    let environment = Environment { inputs, ..Environment::default() };
    let out = run(&graph, &environment, Mode::Bounds).unwrap().report("y").unwrap().clone();
    assert_eq!(out.as_floats(), [0.0]);
    assert_eq!(out.errors, [f64::INFINITY]);
}
