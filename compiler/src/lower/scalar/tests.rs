//! The builder of scalar regions, op by op.

use super::{Access, Builder, Coord, Coords, DType, INDEX_INPUT, access, compute_type, operands, renumbered};
use crate::fuse::{self, BufferId, Fused, Group, Kind, LoopId, View};
use crate::graph::{self, Axis, Name, Origin, Output, Pairs, Type};
use mlc_codegen::program::{BinaryOp, CompareOp, ReduceOp, ScalarId, ScalarOp, UnaryOp};

const F32: DType = DType::F32;

/// The sum of two inputs `[s=3, d=4]`, the second of bf16, and one that lacks d.
fn fused() -> Fused {
    let mut b = graph::Builder::new("f");
    let ty =
        |dtype, axes: &[(&str, u64)]| Type::new(dtype, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect());
    let x = b.input("x", ty(F32, &[("s", 3), ("d", 4)]), 0);
    let y = b.input("y", ty(DType::Bf16, &[("s", 3), ("d", 4)]), 0);
    let z = b.input("z", ty(F32, &[("s", 3)]), 0);
    let y = b.cast(y, F32);
    let sum = b.add(x, y);
    let sum = b.add(sum, z);
    b.output(Output::Report("sum".into()), sum);
    fuse::group(&b.finish()).unwrap()
}

/// A group that computes nothing itself.
fn no_ops() -> Group {
    Group { kind: Kind::Fill, ops: Vec::new(), writes: Vec::new(), origin: Origin::default() }
}

/// A region over s and the reduced d.
fn builder(fused: &Fused) -> Builder<'_> {
    Builder::new(fused, &no_ops(), 2, vec![Axis::new("d", 4)])
}

/// The whole of the input with this name, and where its elements lie in a region over s and d.
fn input(fused: &Fused, name: &str) -> (View, Coords) {
    let buffer = fused.buffers.iter().position(|b| b.name.as_str() == name).unwrap();
    let ty = Type::new(fused.buffers[buffer].dtype, fused.buffers[buffer].axes.clone());
    let coords = [("s", 0), ("d", 1)].map(|(axis, dim)| (Name::from(axis), Coord::Dim(dim)));
    (View::whole(BufferId(buffer as u32), &ty), coords.into())
}

fn load(b: &mut Builder, fused: &Fused, name: &str) -> ScalarId {
    let (view, coords) = input(fused, name);
    b.load(&view, &coords)
}

#[test]
fn push_makes_equal_ops_once() {
    let fused = fused();
    let mut b = builder(&fused);
    let zero = b.push(ScalarOp::Const(F32, 0.0), F32);
    assert_eq!(b.push(ScalarOp::Const(F32, 0.0), F32), zero);
    let others = [(F32, -0.0), (DType::I32, 0.0), (F32, 1.0), (F32, f64::NAN)];
    let others = others.map(|(dtype, c)| b.push(ScalarOp::Const(dtype, c), dtype));
    assert_eq!([zero, others[0], others[1], others[2], others[3]], [0, 1, 2, 3, 4].map(ScalarId));
    assert_eq!(b.push(ScalarOp::Const(F32, f64::NAN), F32), others[3]);
    assert_eq!(b.type_of(others[1]), DType::I32);
    let sum = b.push(ScalarOp::Binary(BinaryOp::Add, zero, others[2]), F32);
    assert_eq!(b.push(ScalarOp::Binary(BinaryOp::Add, zero, others[2]), F32), sum);
    assert_ne!(b.push(ScalarOp::Binary(BinaryOp::Sub, zero, others[2]), F32), sum);
}

#[test]
fn loads_of_one_element_are_one_input() {
    let fused = fused();
    let mut b = builder(&fused);
    let [x, y] = ["x", "y"].map(|name| load(&mut b, &fused, name));
    assert_eq!(load(&mut b, &fused, "x"), x);
    assert_ne!(x, y);
    assert_eq!(b.loads.len(), 2);
    assert_eq!([b.type_of(x), b.type_of(y)], [F32, F32], "bf16 computes in f32");
    assert_eq!((b.loads[0].dtype, b.loads[1].dtype), (F32, DType::Bf16));
    assert_eq!(b.loads[0].strides, [4, 1]);
}

#[test]
fn access_walks_a_paired_axis_by_its_halves() {
    let fused = fused();
    let (view, _) = input(&fused, "x");
    let of = |half, pairs| {
        let d = Coord::Half { dim: 1, half, pairs, n: 4 };
        let coords: Coords = [("s".into(), Coord::Dim(0)), ("d".into(), d)].into();
        let Access { strides, offset, .. } = access(&fused, &view, &coords, 2);
        (strides, offset)
    };
    assert_eq!(of(0, Pairs::Half), (vec![4, 1], 0));
    assert_eq!(of(1, Pairs::Half), (vec![4, 1], 2));
    assert_eq!(of(0, Pairs::Interleaved), (vec![4, 2], 0));
    assert_eq!(of(1, Pairs::Interleaved), (vec![4, 2], 1));
    // One dimension may walk several axes: the diagonal.
    let coords: Coords = [("s".into(), Coord::Dim(0)), ("d".into(), Coord::Dim(0))].into();
    assert_eq!(access(&fused, &view, &coords, 1).strides, [5]);
}

#[test]
fn positions_are_affine_in_the_index() {
    let fused = fused();
    let of = |coord| {
        let mut b = builder(&fused);
        let at = b.position(coord);
        b.finish(&[at]).region.ops
    };
    let index = ScalarOp::Index(1);
    let number = |c| ScalarOp::Const(DType::I32, c);
    let on = |op, a, b| ScalarOp::Binary(op, ScalarId(a), ScalarId(b));
    let half = |half, pairs| Coord::Half { dim: 1, half, pairs, n: 4 };
    assert_eq!(of(Coord::Dim(1)), [index]);
    assert_eq!(of(half(0, Pairs::Half)), [index]);
    assert_eq!(of(half(1, Pairs::Half)), [index, number(2.0), on(BinaryOp::Add, 0, 1)]);
    assert_eq!(of(half(0, Pairs::Interleaved)), [index, number(2.0), on(BinaryOp::Mul, 0, 1)]);
    let both = [index, number(2.0), on(BinaryOp::Mul, 0, 1), number(1.0), on(BinaryOp::Add, 2, 3)];
    assert_eq!(of(half(1, Pairs::Interleaved)), both);
}

/// A reduction over the row of what is the same all along it needs no walk: it is the value, or so many times the value.
#[test]
fn reduce_walks_the_row_only_for_what_changes_along_it() {
    use ScalarOp::*;
    let fused = fused();
    let mut b = builder(&fused);
    let along = load(&mut b, &fused, "x");
    let across = load(&mut b, &fused, "z");
    let [row, column] = [0, 1].map(|d| b.push(Index(d), DType::I32));
    let number = b.push(Const(F32, 2.0), F32);
    let time = b.loop_index(LoopId(0));
    let reduced = b.reduce(ReduceOp::Sum, along, F32);
    let mut same = vec![across, row, number, time, reduced];
    let mut changing = vec![along, column];
    let (k, a) = (across, along);
    for op in [Unary(UnaryOp::Exp, k), Cast(DType::F64, k), Binary(BinaryOp::Add, k, number)] {
        same.push(b.push(op, F32));
    }
    same.push(b.push(Compare(CompareOp::Lt, k, number), DType::Bool));
    same.push(b.push(MulAdd(k, k, k), F32));
    same.push(b.push(Select(row, k, k), F32));
    for op in [Unary(UnaryOp::Exp, a), Cast(DType::F64, a)] {
        changing.push(b.push(op, F32));
    }
    for (x, y) in [(a, k), (k, a)] {
        changing.push(b.push(Binary(BinaryOp::Add, x, y), F32));
        changing.push(b.push(Compare(CompareOp::Lt, x, y), DType::Bool));
    }
    for (x, y, z) in [(a, k, k), (k, a, k), (k, k, a)] {
        changing.push(b.push(MulAdd(x, y, z), F32));
        changing.push(b.push(Select(x, y, z), F32));
    }
    for id in same {
        assert_eq!(b.reduce(ReduceOp::Max, id, F32), id, "{:?}", b.ops[id.0 as usize]);
    }
    for id in changing {
        let max = b.reduce(ReduceOp::Max, id, F32);
        assert_eq!(b.ops[max.0 as usize], Reduce(ReduceOp::Max, id), "{:?}", b.ops[id.0 as usize]);
    }
    let sum = b.reduce(ReduceOp::Sum, across, F32);
    let four = b.push(Const(F32, 4.0), F32);
    assert_eq!(b.ops[sum.0 as usize], Binary(BinaryOp::Mul, across, four));
    assert_eq!(b.reduce(ReduceOp::Min, across, F32), across);

    // Over two axes: as many times as both have elements.
    let mut b = Builder::new(&fused, &no_ops(), 2, vec![Axis::new("s", 3), Axis::new("d", 4)]);
    let number = b.push(Const(F32, 0.5), F32);
    let sum = b.reduce(ReduceOp::Sum, number, F32);
    let twelve = b.push(Const(F32, 12.0), F32);
    assert_eq!(b.ops[sum.0 as usize], Binary(BinaryOp::Mul, number, twelve));
    let row = b.push(Index(0), DType::I32);
    let max = b.reduce(ReduceOp::Max, row, DType::I32);
    assert_eq!(b.ops[max.0 as usize], Reduce(ReduceOp::Max, row), "both dimensions are walked");
}

/// What bf16 holds already is not rounded again.
#[test]
fn rounded_knows_what_bf16_holds() {
    use ScalarOp::*;
    let fused = fused();
    let mut b = builder(&fused);
    let [long, short] = ["x", "y"].map(|name| load(&mut b, &fused, name));
    let exact = b.push(Const(F32, 1.5), F32);
    let inexact = b.push(Const(F32, 0.1), F32);
    let integer = b.push(Const(DType::I32, 1.0), DType::I32);
    let cast = b.push(Cast(DType::Bf16, long), F32);
    let condition = b.push(Compare(CompareOp::Lt, long, short), DType::Bool);
    let index = b.push(Index(0), DType::I32);
    let (l, s) = (long, short);
    let mut held = vec![short, exact, cast];
    let mut not = vec![long, inexact, integer, condition, index];
    for op in [UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Floor] {
        held.push(b.push(Unary(op, s), F32));
        not.push(b.push(Unary(op, l), F32));
    }
    for op in [BinaryOp::Max, BinaryOp::Min] {
        held.push(b.push(Binary(op, s, exact), F32));
        not.push(b.push(Binary(op, s, l), F32));
        not.push(b.push(Binary(op, l, s), F32));
    }
    held.push(b.push(Select(condition, s, exact), F32));
    not.push(b.push(Select(condition, s, l), F32));
    not.push(b.push(Select(condition, l, s), F32));
    for op in [ReduceOp::Max, ReduceOp::Min] {
        held.push(b.push(Reduce(op, s), F32));
        not.push(b.push(Reduce(op, l), F32));
    }
    not.push(b.push(Reduce(ReduceOp::Sum, s), F32));
    not.push(b.push(Unary(UnaryOp::Exp, s), F32));
    not.push(b.push(Binary(BinaryOp::Add, s, s), F32));
    not.push(b.push(MulAdd(s, s, s), F32));
    not.push(b.push(Cast(F32, s), F32));
    for id in held {
        assert_eq!(b.rounded(id, DType::Bf16), id, "{:?}", b.ops[id.0 as usize]);
    }
    for id in not {
        let rounded = b.rounded(id, DType::Bf16);
        assert_eq!(b.ops[rounded.0 as usize], Cast(DType::Bf16, id), "{:?}", b.ops[id.0 as usize]);
        assert_eq!(b.rounded(id, F32), id);
        // A store to bf16 rounds by itself.
        assert_eq!(b.stored(rounded, DType::Bf16), id);
        assert_eq!(b.stored(rounded, F32), rounded);
    }
    assert_eq!(b.stored(short, DType::Bf16), short);
}

#[test]
fn casts_are_made_where_types_differ() {
    let fused = fused();
    let mut b = builder(&fused);
    let x = load(&mut b, &fused, "x");
    assert_eq!(b.cast(x, F32), x);
    assert_eq!(b.cast(x, DType::Bf16), x, "bf16 computes in f32");
    let wide = b.cast(x, DType::F64);
    assert_eq!(b.ops[wide.0 as usize], ScalarOp::Cast(DType::F64, x));
    assert_eq!(b.type_of(wide), DType::F64);
    let kept = [F32, DType::F64, DType::I32, DType::I64, DType::Bool];
    assert_eq!(kept.map(compute_type), kept);
    assert_eq!(compute_type(DType::Bf16), F32);
}

/// What no result needs is gone; loads keep their order, and the indices of loops come behind them.
#[test]
fn finish_drops_what_is_not_used() {
    use ScalarOp::*;
    let fused = fused();
    let mut b = builder(&fused);
    let [x, y, z] = ["x", "y", "z"].map(|name| load(&mut b, &fused, name));
    let [first, second] = [LoopId(5), LoopId(2)].map(|l| b.loop_index(l));
    assert_eq!(b.loop_index(LoopId(5)), first);
    assert_ne!(first, second);
    b.push(Unary(UnaryOp::Exp, x), F32);
    let sum = b.push(Binary(BinaryOp::Sub, z, y), F32);
    let time = b.push(Binary(BinaryOp::Sub, second, first), DType::I32);
    assert!(b.ops.contains(&Input(INDEX_INPUT + 1)));
    assert!(!b.uses_index(0));
    b.push(Index(1), DType::I32);
    assert!(b.uses_index(1) && !b.uses_index(0));
    let done = b.finish(&[time, sum]);
    let id = ScalarId;
    assert_eq!(
        done.region.ops,
        [
            Input(0),
            Input(1),
            Input(2),
            Cast(DType::I32, id(2)),
            Input(3),
            Cast(DType::I32, id(4)),
            Binary(BinaryOp::Sub, id(1), id(0)),
            Binary(BinaryOp::Sub, id(5), id(3)),
        ]
    );
    assert_eq!(done.region.results, [id(7), id(6)]);
    assert_eq!(done.indices, [LoopId(5), LoopId(2)]);
    let strides: Vec<&[u64]> = done.loads.iter().map(|l| &l.strides[..]).collect();
    assert_eq!(strides, [&[4, 1][..], &[1, 0]], "y and z");
}

#[test]
fn operands_are_renumbered_in_their_places() {
    use ScalarOp::*;
    let id = ScalarId;
    let (a, b, c) = (id(3), id(1), id(2));
    let moved = |id: ScalarId| ScalarId(id.0 + 10);
    let (x, y, z) = (id(13), id(11), id(12));
    for (op, wanted) in [
        (Unary(UnaryOp::Exp, a), Unary(UnaryOp::Exp, x)),
        (Cast(F32, a), Cast(F32, x)),
        (Reduce(ReduceOp::Max, a), Reduce(ReduceOp::Max, x)),
        (Binary(BinaryOp::Sub, a, b), Binary(BinaryOp::Sub, x, y)),
        (Compare(CompareOp::Lt, a, b), Compare(CompareOp::Lt, x, y)),
        (MulAdd(a, b, c), MulAdd(x, y, z)),
        (Select(a, b, c), Select(x, y, z)),
        (Input(3), Input(3)),
        (Index(3), Index(3)),
        (Const(F32, 3.0), Const(F32, 3.0)),
    ] {
        assert_eq!(renumbered(&op, &moved), wanted);
        let operands: Vec<ScalarId> = operands(&op).into_iter().map(moved).collect();
        assert!([x, y, z].starts_with(&operands), "{op:?}");
    }
}
