//! The table of shape rules from outside: for each op what it gives, and every reason for which it refuses.

use super::parse::parse;
use super::shape::{infer, show, slice_type, stacked_type, sum_dtype, union_type};
use super::{
    BinaryOp, Builder, Collective, CollectiveKind, CollectivePart, CompareOp, DType, Graph, Init, Loop, Mesh,
    MeshOp, Name, Op, Pairs, ReduceOp, Space, Type, UnaryOp, ValueId,
};

/// A type from its text.
fn ty(text: &str) -> Type {
    let graph = parse(&format!("graph @f {{\n  %x = input : {text}\n}}\n")).unwrap();
    graph.ty(ValueId(0)).clone()
}

/// The types of an op's results, or why it refuses.
fn of(op: Op, operands: &[&str], given: Option<&str>) -> String {
    let mut graph = Graph::new("f");
    let operands: Vec<ValueId> = operands.iter().map(|text| graph.add_value("x", ty(text))).collect();
    let shown = |types: Vec<Type>| types.iter().map(show).collect::<Vec<_>>().join(" and ");
    infer(&graph, &op, &operands, given.map(ty).as_ref()).map_or_else(|e| e.message, shown)
}

fn names(axes: &[&str]) -> Vec<Name> {
    axes.iter().map(|a| Name::from(*a)).collect()
}

fn rename(pairs: &[(&str, &str)]) -> Op {
    Op::Rename { pairs: pairs.iter().map(|(a, b)| (Name::from(*a), Name::from(*b))).collect() }
}

fn slice(at: u64) -> Op {
    Op::Slice { from: "d".into(), to: "e".into(), at }
}

fn concat(parts: &[&str], axis: &str) -> Op {
    Op::Concat { parts: names(parts), axis: axis.into() }
}

#[test]
fn every_op_counts_its_operands() {
    let d = "f32[d=4]";
    let cases: [(Op, usize); 19] = [
        (Op::Input { name: "x".into(), bound: 0 }, 0),
        (Op::Param { path: "w".into(), init: Init::Constant(0.0) }, 0),
        (Op::State { param: "w".into(), kind: "m".into() }, 0),
        (Op::Scalar { key: "lr".into(), default: 0.0 }, 0),
        (Op::Const(1.0), 0),
        (Op::Index { axis: "d".into() }, 0),
        (Op::Unary(UnaryOp::Exp), 1),
        (Op::Binary(BinaryOp::Add), 2),
        (Op::Compare(CompareOp::Lt), 2),
        (Op::Select, 3),
        (Op::Cast, 1),
        (Op::Broadcast, 1),
        (rename(&[("d", "k")]), 1),
        (Op::Reduce { op: ReduceOp::Sum, axes: names(&["d"]) }, 1),
        (Op::Dot { over: names(&["d"]) }, 2),
        (Op::Gather { axis: "d".into() }, 2),
        (Op::ScatterAdd { axis: "d".into() }, 2),
        (Op::Transfer { to: Space::Host }, 1),
        (slice(0), 1),
    ];
    for (op, takes) in cases {
        let one_more = vec![d; takes + 1];
        let got = of(op.clone(), &one_more, Some(d));
        assert!(got.ends_with(&format!("takes {takes} operands, got {}", takes + 1)), "{op:?}: {got}");
    }
    assert_eq!(of(Op::Binary(BinaryOp::Add), &[d], None), "add takes 2 operands, got 1");
    let sum = Op::CumSum { axis: "d".into(), exclusive: false, reverse: false };
    assert_eq!(of(sum, &[d, d], None), "cumsum takes 1 operands, got 2");
    let turn = Op::RotatePairs { axis: "d".into(), pairs: Pairs::Half };
    assert_eq!(of(turn, &[], None), "rotate_pairs takes 1 operands, got 0");
}

#[test]
fn sources_have_the_type_they_are_given() {
    let input = || Op::Input { name: "x".into(), bound: 0 };
    assert_eq!(of(input(), &[], Some("i32[s=3]")), "i32[s=3]");
    assert_eq!(of(input(), &[], None), "input needs its result type");
    let scalar = || Op::Scalar { key: "lr".into(), default: 0.0 };
    assert_eq!(of(scalar(), &[], None), "f64[]");
    assert_eq!(of(scalar(), &[], Some("f32[]")), "scalar gives f64[], not f32[]");
    assert_eq!(of(Op::Const(1.0), &[], Some("bf16[]")), "bf16[]");
    assert_eq!(of(Op::Const(1.0), &[], Some("f32[d=1]")), "a constant is a scalar; broadcast it");
    let index = || Op::Index { axis: "d".into() };
    assert_eq!(of(index(), &[], Some("i32[d=4]")), "i32[d=4]");
    for other in ["i64[d=4]", "i32[d=4, e=2]", "i32[e=4]", "i32[]"] {
        assert_eq!(of(index(), &[], Some(other)), format!("index d has type i32[d=…], not {other}"));
    }
}

#[test]
fn elementwise_ops_take_one_element_type_and_all_axes() {
    let neg = || Op::Unary(UnaryOp::Neg);
    assert_eq!(of(neg(), &["f32[d=4]"], None), "f32[d=4]");
    assert_eq!(of(neg(), &["bool[d=4]"], None), "neg does not work on bool[d=4]");
    assert_eq!(of(Op::Unary(UnaryOp::Not), &["bool[d=4]"], None), "bool[d=4]");
    assert_eq!(of(Op::Unary(UnaryOp::Not), &["i32[]"], None), "not does not work on i32[]");
    let add = || Op::Binary(BinaryOp::Add);
    assert_eq!(of(add(), &["f32[a=2, d=4]", "f32[d=4]"], None), "f32[a=2, d=4]");
    assert_eq!(of(add(), &["f32[d=4]", "f32[a=2, d=4]"], None), "f32[d=4, a=2]");
    assert_eq!(of(add(), &["f32[d=4]", "f32[a=2, d=4]"], Some("f32[a=2, d=4]")), "f32[a=2, d=4]");
    assert_eq!(of(add(), &["f32[a=2]", "f32[d=4]"], Some("f32[d=4, a=2]")), "f32[d=4, a=2]");
    assert_eq!(
        of(add(), &["f32[a=2]", "f32[d=4]"], None),
        "add of f32[a=2] and f32[d=4] is a union of axes and needs its result type"
    );
    assert_eq!(of(add(), &["f32[d=4]", "bf16[d=4]"], None), "add mixes f32[d=4] and bf16[d=4]");
    assert_eq!(of(add(), &["f32[d=4]", "f32[d=3]"], None), "axis d is 4 in one operand and 3 in another");
    assert_eq!(of(add(), &["f32[d=4]", "f32[d=4]"], Some("f32[]")), "add gives f32[d=4], not f32[]");
    let less = || Op::Compare(CompareOp::Lt);
    assert_eq!(of(less(), &["i32[d=4]", "i32[]"], None), "bool[d=4]");
    assert_eq!(of(less(), &["i32[d=4]", "i64[]"], None), "lt mixes i32[d=4] and i64[]");
    let select = |c, a, b| of(Op::Select, &[c, a, b], None);
    assert_eq!(select("bool[d=4]", "f32[]", "f32[d=4]"), "f32[d=4]");
    assert_eq!(select("f32[d=4]", "f32[]", "f32[]"), "select takes a bool first, got f32[d=4]");
    assert_eq!(select("bool[]", "f32[d=4]", "i32[d=4]"), "select mixes f32[d=4] and i32[d=4]");
    assert_eq!(select("bool[d=4]", "bool[d=4]", "bool[]"), "bool[d=4]");
    // The first and the last operand disagree, and those in the middle lack the axis.
    assert_eq!(
        select("bool[d=4]", "f32[a=2]", "f32[d=3, a=2]"),
        "axis d is 4 in one operand and 3 in another"
    );
}

#[test]
fn casts_and_broadcasts_and_renames_keep_what_they_say() {
    assert_eq!(of(Op::Cast, &["f32[a=2, d=4]"], Some("bf16[d=4, a=2]")), "bf16[d=4, a=2]");
    assert_eq!(of(Op::Cast, &["f32[d=4]"], Some("bf16[d=3]")), "cast keeps all axes");
    assert_eq!(of(Op::Cast, &["f32[d=4]"], None), "cast needs its result type");
    let broadcast = |x, to| of(Op::Broadcast, &[x], Some(to));
    assert_eq!(broadcast("f32[d=4]", "f32[a=2, d=4]"), "f32[a=2, d=4]");
    assert_eq!(broadcast("f32[d=4]", "f32[a=2]"), "broadcast to f32[a=2] would lose axis d=4");
    assert_eq!(broadcast("f32[a=2, d=4]", "f32[a=2, d=3]"), "broadcast to f32[a=2, d=3] would lose axis d=4");
    assert_eq!(broadcast("f32[d=4]", "f64[a=2, d=4]"), "broadcast keeps the element type");
    let renamed = |pairs: &[_], x| of(rename(pairs), &[x], None);
    assert_eq!(renamed(&[("d", "k")], "f32[a=2, d=4]"), "f32[a=2, k=4]");
    assert_eq!(renamed(&[("a", "d"), ("d", "a")], "f32[a=2, d=4]"), "f32[d=2, a=4]");
    assert_eq!(renamed(&[("k", "d")], "f32[d=4]"), "f32[d=4] has no axis k to rename");
    assert_eq!(renamed(&[("d", "a")], "f32[a=2, d=4]"), "renaming gives axis a twice");
    assert_eq!(renamed(&[("a", "e")], "f32[a=2, d=4, e=3]"), "renaming gives axis e twice");
    assert_eq!(of(Op::Transfer { to: Space::Host }, &["bf16[d=4]"], None), "bf16[d=4]");
    assert_eq!(
        of(Op::Transfer { to: Space::Device }, &["f32[d=4]"], Some("f32[]")),
        "to_device gives f32[d=4], not f32[]"
    );
}

#[test]
fn sums_of_short_floats_are_wide() {
    let reduce = |op, x| of(Op::Reduce { op, axes: names(&["d"]) }, &[x], None);
    assert_eq!(reduce(ReduceOp::Sum, "bf16[a=2, d=4]"), "f32[a=2]");
    assert_eq!(reduce(ReduceOp::Max, "bf16[a=2, d=4]"), "bf16[a=2]");
    assert_eq!(reduce(ReduceOp::Min, "i32[d=4]"), "i32[]");
    assert_eq!(reduce(ReduceOp::Sum, "f32[a=2]"), "f32[a=2] has no axis d to reduce");
    let dot = |a, b| of(Op::Dot { over: names(&["d"]) }, &[a, b], None);
    assert_eq!(dot("bf16[a=2, d=4]", "bf16[d=4, c=3]"), "f32[a=2, c=3]");
    assert_eq!(dot("f32[a=2, d=4]", "bf16[d=4]"), "dot mixes f32[a=2, d=4] and bf16[d=4]");
    assert_eq!(dot("f32[a=2]", "f32[d=4]"), "contraction axis d is missing on the left side, f32[a=2]");
    assert_eq!(dot("f32[d=4]", "f32[a=2]"), "contraction axis d is missing on the right side, f32[a=2]");
    assert_eq!(dot("f32[d=4]", "f32[d=3]"), "axis d is 4 in one operand and 3 in another");
    for dtype in [DType::F32, DType::F64, DType::I32, DType::I64, DType::Bool] {
        assert_eq!(sum_dtype(dtype), dtype);
    }
    assert_eq!(sum_dtype(DType::Bf16), DType::F32);
}

#[test]
fn lookups_replace_an_axis_by_those_of_the_ids() {
    let gather = |table, ids| of(Op::Gather { axis: "v".into() }, &[table, ids], None);
    assert_eq!(gather("f32[v=8, d=4]", "i32[s=3]"), "f32[s=3, d=4]");
    assert_eq!(gather("f32[s=3, v=8]", "i32[s=3]"), "f32[s=3]");
    assert_eq!(gather("f32[v=8]", "i64[s=3]"), "ids are i32, got i64[s=3]");
    assert_eq!(gather("f32[d=4]", "i32[s=3]"), "f32[d=4] has no axis v to look up in");
    assert_eq!(gather("f32[v=8]", "i32[v=8]"), "ids i32[v=8] have the looked-up axis v");
    assert_eq!(gather("f32[v=8, s=4]", "i32[s=3]"), "axis s is 3 in one operand and 4 in another");
    let scatter = |updates, to| of(Op::ScatterAdd { axis: "v".into() }, &[updates, "i32[s=3]"], Some(to));
    assert_eq!(scatter("f32[d=4, s=3]", "f32[v=8, d=4]"), "f32[v=8, d=4]");
    assert_eq!(
        scatter("f32[s=3]", "f32[v=8, d=4]"),
        "scatter into f32[v=8, d=4] takes updates f32[s=3, d=4], got f32[s=3]"
    );
}

#[test]
fn running_sums_and_rotations_keep_the_type() {
    let sum = |x| of(Op::CumSum { axis: "s".into(), exclusive: true, reverse: false }, &[x], None);
    assert_eq!(sum("f32[s=3, d=4]"), "f32[s=3, d=4]");
    assert_eq!(sum("f32[d=4]"), "f32[d=4] has no axis s to sum along");
    let turn = |x| of(Op::RotatePairs { axis: "d".into(), pairs: Pairs::Interleaved }, &[x], None);
    assert_eq!(turn("f32[d=6]"), "f32[d=6]");
    assert_eq!(turn("f32[d=9]"), "axis d=9 has odd size and can't be paired");
    assert_eq!(turn("f32[s=4]"), "f32[s=4] has no axis d");
}

#[test]
fn slices_lie_inside_and_parts_fit_together() {
    let sliced = |at, x, to| of(slice(at), &[x], Some(to));
    assert_eq!(sliced(2, "f32[m=2, d=4]", "f32[m=2, e=2]"), "f32[m=2, e=2]");
    assert_eq!(sliced(0, "f32[d=4]", "f32[e=4]"), "f32[e=4]");
    assert_eq!(sliced(3, "f32[d=4]", "f32[e=2]"), "slice takes 2 elements at 3 of d=4");
    assert_eq!(
        sliced(u64::MAX, "f32[d=4]", "f32[e=2]"),
        format!("slice takes 2 elements at {} of d=4", u64::MAX)
    );
    assert_eq!(sliced(0, "f32[m=2]", "f32[e=2]"), "slice along d -> e of f32[m=2] can't be f32[e=2]");
    let keeps = |to| format!("slice of f32[m=2, d=4] keeps its other axes, not {to}");
    for to in ["bf16[m=2, e=2]", "f32[m=3, e=2]", "f32[e=2]"] {
        assert_eq!(sliced(0, "f32[m=2, d=4]", to), keeps(to));
    }
    assert_eq!(of(slice(0), &["f32[d=4]"], None), "slice needs its result type");

    assert_eq!(of(concat(&["d", "e"], "w"), &["f32[m=2, d=4]", "f32[e=3, m=2]"], None), "f32[m=2, w=7]");
    assert_eq!(of(concat(&["d"], "w"), &["f32[m=2, d=4]"], None), "f32[m=2, w=4]");
    assert_eq!(of(concat(&[], "w"), &[], None), "concat takes one axis per operand, got 0 and 0");
    assert_eq!(
        of(concat(&["d"], "w"), &["f32[d=4]", "f32[d=4]"], None),
        "concat takes one axis per operand, got 1 and 2"
    );
    assert_eq!(
        of(concat(&["d", "d"], "w"), &["f32[d=4]"], None),
        "concat takes one axis per operand, got 2 and 1"
    );
    assert_eq!(
        of(concat(&["d", "e"], "w"), &["f32[d=4]", "f32[d=4]"], None),
        "concat along e, which f32[d=4] lacks"
    );
    assert_eq!(
        of(concat(&["d", "d"], "w"), &["f32[d=4, m=2]", "f32[d=4, m=3]"], None),
        "concat of f32[d=4, m=2] and f32[d=4, m=3]: other axes differ"
    );
    assert_eq!(
        of(concat(&["d", "d"], "m"), &["f32[d=4, m=2]", "f32[d=4, m=2]"], None),
        "concat would have the axis m twice"
    );
    // The whole may have the name of a part.
    assert_eq!(of(concat(&["d", "e"], "d"), &["f32[d=4]", "f32[e=3]"], None), "f32[d=7]");
}

#[test]
fn unions_keep_the_order_of_first_appearance() {
    let union = union_type(DType::F64, &[&ty("f32[a=2, d=4]"), &ty("f32[c=3, a=2]")]);
    assert_eq!(show(&union), "f64[a=2, d=4, c=3]");
}

/// A loop over `layer` whose body has arguments and results of these types.
fn repeat(counts: [usize; 3], args: &[&str], results: &[&str], operands: &[&str]) -> String {
    let [carries, stacked, stacked_outs] = counts;
    let mut b = Builder::new("f");
    let args: Vec<(Name, Type)> =
        args.iter().enumerate().map(|(i, text)| (format!("a{i}").into(), ty(text))).collect();
    b.open(&args);
    let results = results.iter().map(|text| b.input("r", ty(text), 0)).collect();
    let body = b.close(results);
    let operands: Vec<ValueId> = operands.iter().map(|text| b.input("x", ty(text), 0)).collect();
    let (axis, block, reverse) = (Name::from("layer"), None, false);
    let l = Loop { axis, trip: 3, block, reverse, microbatches: false, carries, stacked, stacked_outs, body };
    match infer(&b.graph, &Op::Loop(l), &operands, None) {
        Ok(types) => types.iter().map(show).collect::<Vec<_>>().join(" and "),
        Err(e) => e.message,
    }
}

#[test]
fn loops_carry_stack_and_sum() {
    // One of each kind: a carry, a stacked in, an invariant; a carry, a stacked out, a sum.
    let args = ["i32[]", "f32[d=4]", "f32[e=2]", "f32[k=5]"];
    let results = ["f32[d=4]", "f32[e=2]", "f32[k=5]"];
    let operands = ["f32[d=4]", "f32[layer=3, e=2]", "f32[k=5]"];
    assert_eq!(repeat([1, 1, 1], &args, &results, &operands), "f32[d=4] and f32[layer=3, e=2] and f32[k=5]");
    let fewer = "the loop has fewer operands or results than carries and stacked values";
    assert_eq!(repeat([1, 1, 1], &args, &results, &operands[..1]), fewer);
    assert_eq!(repeat([1, 1, 1], &args, &results[..1], &operands), fewer);
    // Exactly as many as counted is enough.
    let exact = repeat([1, 1, 1], &args[..3], &results[..2], &operands[..2]);
    assert_eq!(exact, "f32[d=4] and f32[layer=3, e=2]");
    assert_eq!(repeat([1, 1, 1], &args[..3], &results, &operands), "the region takes 3 arguments, got 4");
    let long = ["f32[d=4]", "f32[layer=2, e=2]", "f32[k=5]"];
    assert_eq!(
        repeat([1, 1, 1], &args, &results, &long),
        "the loop runs over layer=3, a stacked operand is f32[layer=2, e=2]"
    );
    let other = ["f32[d=5]", "f32[layer=3, e=2]", "f32[k=5]"];
    assert_eq!(repeat([1, 1, 1], &args, &results, &other), "argument %a1 is f32[d=4], got f32[d=5]");
    let grown = ["f32[d=4, e=2]", "f32[e=2]", "f32[k=5]"];
    assert_eq!(
        repeat([1, 1, 1], &args, &grown, &operands),
        "carry 0 goes in as f32[d=4] and comes out as f32[d=4, e=2]"
    );
    let stacked = ["f32[d=4]", "f32[layer=3]", "f32[k=5]"];
    assert_eq!(
        repeat([1, 1, 1], &args, &stacked, &operands),
        "a slice f32[layer=3] can't be stacked along layer"
    );
    // Two carries and no stacked values, where counts are easily taken for each other.
    let two = repeat(
        [2, 0, 0],
        &["i32[]", "f32[a=2]", "f32[c=3]"],
        &["f32[a=2]", "f32[c=3]"],
        &["f32[a=2]", "f32[c=3]"],
    );
    assert_eq!(two, "f32[a=2] and f32[c=3]");
    let two_outs = repeat([0, 0, 2], &["i32[]"], &["f32[a=2]", "f32[c=3]"], &[]);
    assert_eq!(two_outs, "f32[layer=3, a=2] and f32[layer=3, c=3]");
    let two_carries_and_outs = repeat(
        [2, 0, 1],
        &["i32[]", "f32[a=2]", "f32[c=3]"],
        &["f32[a=2]", "f32[c=3]", "f32[k=5]", "f32[l=6]"],
        &["f32[a=2]", "f32[c=3]"],
    );
    assert_eq!(two_carries_and_outs, "f32[a=2] and f32[c=3] and f32[layer=3, k=5] and f32[l=6]");
}

#[test]
fn loops_run_at_least_once() {
    let mut b = Builder::new("f");
    b.open(&[("i".into(), ty("i32[]"))]);
    let body = b.close(Vec::new());
    let with = |trip| Loop {
        axis: "layer".into(),
        trip,
        block: None,
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 0,
        stacked_outs: 0,
        body,
    };
    let types = |trip| infer(&b.graph, &Op::Loop(with(trip)), &[], None);
    assert_eq!(types(0).unwrap_err().message, "a loop runs at least once");
    assert_eq!(types(1).unwrap(), []);
}

#[test]
fn blocked_loops_slice_and_stack_blocks() {
    let mut b = Builder::new("f");
    b.open(&[]);
    let body = b.close(Vec::new());
    let with = |block| Loop {
        axis: "seq".into(),
        trip: 3,
        block,
        reverse: false,
        microbatches: false,
        carries: 0,
        stacked: 0,
        stacked_outs: 0,
        body,
    };
    let (whole, blocked) = (with(None), with(Some(4)));
    let sliced = |l: &Loop, text: &str| slice_type(l, &ty(text)).map_or_else(|e| e.message, |t| show(&t));
    assert_eq!(sliced(&whole, "f32[seq=3, d=2]"), "f32[d=2]");
    assert_eq!(sliced(&blocked, "f32[a=2, seq=12]"), "f32[a=2, seq=4]");
    assert_eq!(sliced(&blocked, "f32[seq=3]"), "the loop runs over seq=12, a stacked operand is f32[seq=3]");
    assert_eq!(sliced(&whole, "f32[d=2]"), "the stacked operand f32[d=2] lacks the loop's axis seq");
    let stacked = |l: &Loop, text: &str| stacked_type(l, &ty(text)).map_or_else(|e| e.message, |t| show(&t));
    assert_eq!(stacked(&whole, "f32[d=2]"), "f32[seq=3, d=2]");
    assert_eq!(stacked(&blocked, "f32[a=2, seq=4]"), "f32[a=2, seq=12]");
    for (l, text) in [(&whole, "f32[seq=3]"), (&blocked, "f32[a=2]"), (&blocked, "f32[seq=3]")] {
        assert_eq!(stacked(l, text), format!("a slice {text} can't be stacked along seq"));
    }
}

/// The types of a mesh op's results on a mesh of 2 by 3 ranks, or why it refuses.
fn on_mesh(op: MeshOp, operands: &[&str], given: Option<&str>) -> String {
    let mut graph = Graph::new("f");
    graph.mesh = Mesh::new(&[("data", 2), ("tensor", 3)]);
    let operands: Vec<ValueId> = operands.iter().map(|text| graph.add_value("x", ty(text))).collect();
    let shown = |types: Vec<Type>| types.iter().map(show).collect::<Vec<_>>().join(" and ");
    infer(&graph, &Op::Mesh(op), &operands, given.map(ty).as_ref()).map_or_else(|e| e.message, shown)
}

#[test]
fn constraints_and_reshards_keep_the_type_and_local_parts_cut_it() {
    let reshard = || MeshOp::Reshard { cause: "a test".into(), wire: None, may_replicate: false };
    let constrain = || MeshOp::Constrain { split: Default::default() };
    assert_eq!(on_mesh(reshard(), &["f32[d=6]"], None), "f32[d=6]");
    assert_eq!(
        on_mesh(constrain(), &["f32[d=6]"], Some("f32[d=3]")),
        "constrain gives f32[d=6], not f32[d=3]"
    );
    assert_eq!(on_mesh(reshard(), &["f32[]", "f32[]"], None), "reshard takes 1 operand, got 2");
    let part = |over: &[&str]| MeshOp::LocalPart { axis: "d".into(), over: names(over) };
    assert_eq!(on_mesh(part(&["data", "tensor"]), &["f32[d=12, e=5]"], None), "f32[d=2, e=5]");
    assert_eq!(on_mesh(part(&["tensor"]), &["f32[d=4]"], None), "axis d=4 does not split 3 ways");
    assert_eq!(on_mesh(part(&["data"]), &["f32[e=5]"], None), "f32[e=5] has no axis d");
    assert_eq!(on_mesh(part(&["data"]), &[], None), "local_part takes 1 operand, got 0");
}

#[test]
fn collectives_cut_and_join_each_operand() {
    let part = |split: Option<&str>, join: Option<&str>| CollectivePart {
        split: split.map(Name::from),
        join: join.map(Name::from),
    };
    let of = |kind, parts: &[CollectivePart], operands: &[&str]| {
        let (over, parts) = (names(&["tensor"]), parts.to_vec());
        let collective = Collective { kind, over, parts, wire: None, cause: "a test".into() };
        on_mesh(MeshOp::Collective(collective), operands, None)
    };
    let (gather, sum) = (CollectiveKind::AllGather, ReduceOp::Sum);
    let (scatter, reduce) = (CollectiveKind::ReduceScatter(sum), CollectiveKind::AllReduce(sum));
    let [d, e] = [Some("d"), Some("e")];
    let x = "f32[d=6, e=3]";
    assert_eq!(of(gather, &[part(None, d)], &[x]), "f32[d=18, e=3]");
    assert_eq!(of(scatter, &[part(d, None)], &[x]), "f32[d=2, e=3]");
    assert_eq!(of(reduce, &[part(None, None)], &[x]), x);
    assert_eq!(of(CollectiveKind::AllToAll, &[part(d, e)], &[x]), "f32[d=2, e=9]");
    assert_eq!(of(gather, &[part(None, d), part(None, e)], &[x, "f32[e=1]"]), "f32[d=18, e=3] and f32[e=3]");
    let odd = |name: &str| format!("{name} has other axes than its kind");
    for parts in [part(None, None), part(d, d)] {
        assert_eq!(of(gather, std::slice::from_ref(&parts), &[x]), odd("all_gather"));
        assert_eq!(of(scatter, &[parts], &[x]), odd("reduce_scatter_sum"));
    }
    for parts in [part(d, None), part(None, d)] {
        assert_eq!(of(reduce, std::slice::from_ref(&parts), &[x]), odd("all_reduce_sum"));
        assert_eq!(of(CollectiveKind::AllToAll, &[parts], &[x]), odd("all_to_all"));
    }
    assert_eq!(of(reduce, &[part(None, None)], &[x, x]), "all_reduce_sum has axes for 1 operands, got 2");
    assert_eq!(of(reduce, &[], &[]), "all_reduce_sum has axes for 0 operands, got 0");
    assert_eq!(of(scatter, &[part(d, None)], &["f32[d=4]"]), "axis d=4 does not split 3 ways");
    assert_eq!(of(gather, &[part(None, d)], &["f32[e=3]"]), "f32[e=3] has no axis d");
}
