//! Every op, one test per rule.

use super::{check, param, param_in};
use crate::graph::{
    Axis, BinaryOp, Builder, CompareOp, DType, MeshOp, Name, Op, Pairs, ReduceOp, Space, Type, UnaryOp,
    ValueId,
};

/// Every test of this file, for [`super::coverage`].
pub(super) const TESTS: &[fn()] = &[
    unary_functions_have_their_derivatives,
    binary_functions_have_their_derivatives_and_sum_over_broadcast_axes,
    union_of_axes_sums_both_ways,
    value_used_twice_gets_both_cotangents,
    select_sends_the_cotangent_where_the_condition_points,
    compare_hands_nothing_on,
    cast_broadcast_and_rename_turn_back,
    reductions_have_their_derivatives,
    max_shares_between_equal_elements,
    dot_is_two_dots,
    gather_scatters_and_scatter_gathers,
    ids_outside_the_axis_get_no_gradient,
    transfer_leaves_the_cotangent_where_it_is_made,
    constrain_says_of_the_cotangent_what_it_says_of_the_value,
    slice_and_concat_undo_each_other,
    cumsum_sums_back_from_the_other_end,
    rotate_pairs_turns_back,
    integer_ops_and_indices_hand_nothing_on,
];

fn names(axes: &[&str]) -> Vec<Name> {
    axes.iter().map(|a| Name::from(*a)).collect()
}

/// One unary function on a range where it is smooth.
fn check_unary(op: UnaryOp, low: f64, high: f64) {
    check(|b| {
        let x = param_in(b, "x", &[("d", 5)], low, high);
        b.unary(op, x)
    });
}

#[test]
fn unary_functions_have_their_derivatives() {
    for op in [
        UnaryOp::Neg,
        UnaryOp::Exp,
        UnaryOp::Tanh,
        UnaryOp::Sigmoid,
        UnaryOp::Sin,
        UnaryOp::Cos,
        UnaryOp::Erf,
    ] {
        check_unary(op, -2.0, 2.0);
    }
    for op in [UnaryOp::Log, UnaryOp::Sqrt, UnaryOp::Rsqrt, UnaryOp::Abs] {
        check_unary(op, 0.5, 2.0);
    }
    check_unary(UnaryOp::Abs, -2.0, -0.5);
    check_unary(UnaryOp::Floor, 0.1, 0.9);
}

/// A binary function whose right operand lacks an axis, and the same with the operands exchanged.
fn check_binary(op: BinaryOp, low: f64, high: f64) {
    check(|b| {
        let x = param_in(b, "x", &[("a", 2), ("d", 3)], low, high);
        let y = param_in(b, "y", &[("d", 3)], low, high);
        b.binary(op, x, y)
    });
    check(|b| {
        let x = param_in(b, "x", &[("d", 3)], low, high);
        let y = param_in(b, "y", &[("a", 2), ("d", 3)], low, high);
        b.binary(op, x, y)
    });
}

#[test]
fn binary_functions_have_their_derivatives_and_sum_over_broadcast_axes() {
    for op in [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Max, BinaryOp::Min] {
        check_binary(op, -1.0, 1.0);
    }
    for op in [BinaryOp::Div, BinaryOp::Pow] {
        check_binary(op, 0.5, 2.0);
    }
}

#[test]
fn union_of_axes_sums_both_ways() {
    check(|b| {
        let x = param(b, "x", &[("a", 2)]);
        let y = param(b, "y", &[("d", 3)]);
        b.binary_union(BinaryOp::Mul, x, y)
    });
}

#[test]
fn value_used_twice_gets_both_cotangents() {
    check(|b| {
        let x = param(b, "x", &[("d", 3)]);
        let e = b.unary(UnaryOp::Exp, x);
        let square = b.mul(e, x);
        b.mul(square, x)
    });
}

#[test]
fn select_sends_the_cotangent_where_the_condition_points() {
    check(|b| {
        let x = param(b, "x", &[("a", 2), ("d", 3)]);
        let y = param(b, "y", &[("d", 3)]);
        let c = b.input("c", Type::new(DType::Bool, vec![Axis::new("a", 2)]), 0);
        b.select(c, x, y)
    });
}

#[test]
fn compare_hands_nothing_on() {
    check(|b| {
        let x = param(b, "x", &[("d", 6)]);
        let zero = b.constant(DType::F32, 0.0);
        let positive = b.compare(CompareOp::Gt, x, zero);
        let square = b.mul(x, x);
        b.select(positive, square, x)
    });
}

#[test]
fn cast_broadcast_and_rename_turn_back() {
    check(|b| {
        let x = param(b, "x", &[("d", 3)]);
        let wide = b.cast(x, DType::F64);
        let narrow = b.cast(wide, DType::F32);
        let e = b.unary(UnaryOp::Exp, narrow);
        let ty = Type::new(DType::F32, vec![Axis::new("a", 2), Axis::new("d", 3)]);
        let many = b.broadcast(e, &ty);
        b.rename(many, &[("d".into(), "k".into())])
    });
}

#[test]
fn reductions_have_their_derivatives() {
    for op in [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min] {
        check(|b| {
            let x = param(b, "x", &[("a", 2), ("d", 3), ("e", 2)]);
            let y = b.reduce(op, x, &names(&["a", "e"]));
            b.mul(y, y)
        });
    }
}

/// The gradients of Σ y by parameters `[d=3]` at given values.
fn gradients_at(
    at: &[(&str, [f64; 3])],
    build: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> Vec<Vec<f64>> {
    use crate::autodiff::differentiate::differentiate;
    use crate::graph::Output;
    use crate::interpret::{Mode, Tensor, run};
    let mut b = Builder::new("f");
    let params: Vec<ValueId> = at.iter().map(|(name, _)| param(&mut b, name, &[("d", 3)])).collect();
    let y = build(&mut b, &params);
    let axes = b.ty(y).names();
    let loss = b.reduce(ReduceOp::Sum, y, &axes);
    b.output(Output::Report("loss_sum".into()), loss);
    let done = differentiate(b.finish(), 0).unwrap();
    let mut b = Builder::resume(done.graph);
    for gradient in &done.gradients {
        b.output(Output::Report(format!("grad.{}", gradient.param).into()), gradient.gradient);
    }
    let graph = b.finish();
    let mut environment = super::environment(&graph, 1);
    for (name, values) in at {
        let ty = Type::new(DType::F32, vec![Axis::new("d", 3)]);
        environment.tensors.insert((*name).into(), Tensor::floats(ty, values.to_vec()));
    }
    let outputs = run(&graph, &environment, Mode::F64).unwrap();
    let of = |name: &str| outputs.report(&format!("grad.{name}")).unwrap().as_floats().to_vec();
    at.iter().map(|(name, _)| of(name)).collect()
}

#[test]
fn max_shares_between_equal_elements() {
    for (op, x) in [(ReduceOp::Max, [2.0, 1.0, 2.0]), (ReduceOp::Min, [-2.0, 1.0, -2.0])] {
        let got = gradients_at(&[("x", x)], |b, x| b.reduce(op, x[0], &names(&["d"])));
        assert_eq!(got, [[0.5, 0.0, 0.5]], "{op:?}");
    }
}

#[test]
fn kinks_have_the_subgradient_that_the_rule_says() {
    let abs = gradients_at(&[("x", [-3.0, 0.0, 2.0])], |b, x| b.unary(UnaryOp::Abs, x[0]));
    assert_eq!(abs, [[-1.0, 0.0, 1.0]]);
    let neg = gradients_at(&[("x", [-3.0, 0.0, 2.0])], |b, x| b.unary(UnaryOp::Neg, x[0]));
    assert_eq!(neg, [[-1.0, -1.0, -1.0]]);
    // To the operand that won, to the first if they are equal.
    let both = [("x", [1.0, 5.0, -1.0]), ("y", [2.0, 5.0, -2.0])];
    let max = gradients_at(&both, |b, x| b.binary(BinaryOp::Max, x[0], x[1]));
    assert_eq!(max, [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]);
    let min = gradients_at(&both, |b, x| b.binary(BinaryOp::Min, x[0], x[1]));
    assert_eq!(min, [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
}

#[test]
fn dot_is_two_dots() {
    // Shared axis a, contracted d and e, free b and c.
    check(|b| {
        let x = param(b, "x", &[("a", 2), ("b", 3), ("d", 2), ("e", 2)]);
        let y = param(b, "y", &[("d", 2), ("a", 2), ("e", 2), ("c", 2)]);
        b.dot(x, y, &names(&["d", "e"]))
    });
    // An outer product: nothing contracted.
    check(|b| {
        let x = param(b, "x", &[("a", 2)]);
        let y = param(b, "y", &[("c", 3)]);
        b.dot(x, y, &[])
    });
}

fn ids(b: &mut Builder, axes: &[(&str, u64)], bound: u64) -> ValueId {
    let axes = axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect();
    b.input("ids", Type::new(DType::I32, axes), bound)
}

#[test]
fn gather_scatters_and_scatter_gathers() {
    check(|b| {
        let table = param(b, "table", &[("v", 4), ("d", 2)]);
        let ids = ids(b, &[("a", 2), ("s", 3)], 4);
        b.one(Op::Gather { axis: "v".into() }, &[table, ids], None, "y")
    });
    // A shared axis: one element per row.
    check(|b| {
        let table = param(b, "table", &[("s", 3), ("v", 4)]);
        let ids = ids(b, &[("s", 3)], 4);
        b.one(Op::Gather { axis: "v".into() }, &[table, ids], None, "y")
    });
    check(|b| {
        let updates = param(b, "updates", &[("s", 5), ("d", 2)]);
        let ids = ids(b, &[("s", 5)], 4);
        let ty = Type::new(DType::F32, vec![Axis::new("v", 4), Axis::new("d", 2)]);
        let y = b.one(Op::ScatterAdd { axis: "v".into() }, &[updates, ids], Some(ty), "y");
        b.mul(y, y)
    });
}

#[test]
fn ids_outside_the_axis_get_no_gradient() {
    check(|b| {
        let table = param(b, "table", &[("v", 4), ("d", 2)]);
        let ids = ids(b, &[("s", 12)], 9);
        let y = b.one(Op::Gather { axis: "v".into() }, &[table, ids], None, "y");
        let y = b.mul(y, y);
        let ty = Type::new(DType::F32, vec![Axis::new("v", 3), Axis::new("d", 2)]);
        let z = b.one(Op::ScatterAdd { axis: "v".into() }, &[y, ids], Some(ty), "z");
        b.mul(z, z)
    });
}

#[test]
fn transfer_leaves_the_cotangent_where_it_is_made() {
    check(|b| {
        let x = param(b, "x", &[("d", 3)]);
        let e = b.unary(UnaryOp::Exp, x);
        let away = b.one(Op::Transfer { to: Space::Host }, &[e], None, "away");
        let back = b.one(Op::Transfer { to: Space::Device }, &[away], None, "back");
        b.mul(back, x)
    });
}

#[test]
fn constrain_says_of_the_cotangent_what_it_says_of_the_value() {
    check(|b| {
        let x = param(b, "x", &[("d", 3)]);
        let split = [("d".into(), vec!["data".into()])].into();
        let y = b.one(Op::Mesh(MeshOp::Constrain { split }), &[x], None, "y");
        b.mul(y, x)
    });
}

#[test]
fn slice_and_concat_undo_each_other() {
    let ty = |axes: &[(&str, u64)]| {
        Some(Type::new(DType::F32, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect()))
    };
    for at in 0..3 {
        check(|b| {
            let x = param(b, "x", &[("d", 4), ("m", 2)]);
            let op = Op::Slice { from: "d".into(), to: "e".into(), at };
            let y = b.one(op, &[x], ty(&[("e", 2), ("m", 2)]), "y");
            b.mul(y, y)
        });
    }
    check(|b| {
        let x = param(b, "x", &[("d", 3), ("m", 2)]);
        let y = param(b, "y", &[("e", 2)]);
        let repeated = b.broadcast(y, &ty(&[("e", 2), ("m", 2)]).unwrap());
        let op = Op::Concat { parts: names(&["d", "e", "d"]), axis: "w".into() };
        let z = b.one(op, &[x, repeated, x], ty(&[("m", 2), ("w", 8)]), "z");
        b.mul(z, z)
    });
}

#[test]
fn cumsum_sums_back_from_the_other_end() {
    for (exclusive, reverse) in [(false, false), (false, true), (true, false), (true, true)] {
        check(|b| {
            let x = param(b, "x", &[("s", 5), ("d", 3)]);
            let y = b.cumsum(x, &"s".into(), exclusive, reverse);
            b.mul(y, x)
        });
    }
}

#[test]
fn rotate_pairs_turns_back() {
    for pairs in [Pairs::Half, Pairs::Interleaved] {
        check(|b| {
            let x = param(b, "x", &[("s", 2), ("d", 4)]);
            let y = b.one(Op::RotatePairs { axis: "d".into(), pairs }, &[x], None, "y");
            b.mul(y, x)
        });
    }
}

#[test]
fn integer_ops_and_indices_hand_nothing_on() {
    check(|b| {
        let x = param(b, "x", &[("d", 4)]);
        let index = b.index(&"d".into(), 4);
        let two = b.constant(DType::I32, 2.0);
        let odd = b.binary(BinaryOp::Rem, index, two);
        let odd = b.cast(odd, DType::F32);
        b.mul(x, odd)
    });
}
