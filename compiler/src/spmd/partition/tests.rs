//! Regions, positions and refusals; single ops are in `soundness`, whole models in `models`.

use super::*;
use crate::graph::parse::parse;
use crate::graph::print::print;
use crate::graph::verify::{Stage, verify};
use crate::interpret::{Mode, Tensor, run, run_ranks, sample_environment};
use crate::spmd::soundness::{environment, same};

/// What one rank computes, after all ranks together gave the numbers of the graph bit by bit.
fn ranks_agree(text: &str) -> Graph {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&graph, Stage::Sharded).unwrap_or_else(|e| panic!("{e}"));
    let local = partition(&graph).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&local, Stage::Spmd).unwrap_or_else(|e| panic!("{e}"));
    for seed in 0..3 {
        let environment = environment(&graph, seed);
        let expected = run(&graph, &environment, Mode::F64).unwrap();
        let ranks = run_ranks(&local, &environment, Mode::F64).unwrap_or_else(|e| panic!("{e}"));
        let got = ranks.assemble(&local).unwrap_or_else(|e| panic!("{e}"));
        for ((output, a), (_, b)) in expected.0.iter().zip(&got.0) {
            assert!(same(a, b, 0.0), "{output:?}\n{a:?}\n{b:?}\n{}", print(&local));
        }
    }
    local
}

fn refusal(text: &str) -> String {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    partition(&graph).expect_err("it is refused")
}

#[test]
fn partition_walks_layers_with_parameters_gathered_inside() {
    let local = ranks_agree(
        r#"graph @m on data=2, tensor=3 {
  %x = param "x" = normal(1.0) : f32[batch=4 @data, d=4]
  %w = param "w" = normal(1.0) : f32[layer=3, d=4 @data, f=6 @tensor]
  %u = param "u" = normal(1.0) : f32[layer=3, f=6 @tensor, d=4]
  %y, %kept, %n = loop layer=3 {
    index %i : i32[]
    carry %h = %x : f32[batch=4 @data, d=4]
    stacked %wl = %w : f32[d=4 @data, f=6 @tensor]
    stacked %ul = %u : f32[f=6 @tensor, d=4]
    %wg = reshard %wl because "use" : f32[d=4, f=6 @tensor]
    %a = dot %h, %wg over d : f32[batch=4 @data, f=6 @tensor]
    %z = dot %a, %ul over f : f32[batch=4 @data, d=4] partial(sum tensor)
    %zr = reshard %z because "sum" : f32[batch=4 @data, d=4]
    %s = reduce_sum %zr over batch : f32[d=4] partial(sum data)
    yield carry %zr : f32[batch=4 @data, d=4]
    yield stacked %a : f32[layer=3, batch=4 @data, f=6 @tensor]
    yield sum %s : f32[d=4] partial(sum data)
  }
  %m = reduce_max %kept over layer, batch, f : f32[] partial(max data, max tensor)
  %mr = reshard %m because "report" : f32[]
  %nr = reshard %n because "report" : f32[d=4]
  %yr = reshard %y because "report" : f32[batch=4, d=4]
  return y = %yr
  return n = %nr
  return m = %mr
}
"#,
    );
    let text = print(&local);
    assert!(text.contains("f32[layer=3, d=2 @data, f=2 @tensor]"), "{text}");
    assert!(!text.contains("mesh."), "no place is asked for: {text}");
}

const BLOCKS: &str = r#"graph @m on data=2, n=2 {
  %x = param "x" = normal(1.0) : f32[batch=16 @data @n in 2, d=3]
  %y, %s = loop batch=2 block=8 {
    index %i : i32[]
    stacked %xs = %x : f32[batch=8 @data @n, d=3]
    %at = index batch : i32[batch=8 @data @n]
    %f = cast %at : f32[batch=8 @data @n]
    %z = mul %xs, %f : f32[batch=8 @data @n, d=3]
    %t = reduce_sum %z over batch : f32[d=3] partial(sum data, sum n)
    yield stacked %z : f32[batch=16 @data @n in 2, d=3]
    yield sum %t : f32[d=3] partial(sum data, sum n)
  }
  %yr = reshard %y because "report" : f32[batch=16, d=3]
  %sr = reshard %s because "report" : f32[d=3]
  return y = %yr
  return s = %sr
}
"#;

#[test]
fn partition_cuts_blocks_and_keeps_places_in_them() {
    let text = print(&ranks_agree(
        &BLOCKS
            .replace("  %yr = reshard %y because \"report\" : f32[batch=16, d=3]\n", "")
            .replace("  return y = %yr\n", ""),
    ));
    assert!(text.contains("loop batch=2 block=2"), "{text}");
    assert_eq!(text.matches("scalar \"mesh.").count(), 2, "{text}");
    assert_eq!(text.matches("invariant %mesh.").count(), 2, "{text}");
}

#[test]
fn partition_takes_contiguous_parts_only_where_blocks_are_alike() {
    let contiguous = BLOCKS.replace(" in 2", "");
    let error = refusal(&contiguous);
    assert!(error.contains("batch is split before it is cut into blocks"), "{error}");
    let alike = contiguous
        .replace(
            "    %at = index batch : i32[batch=8 @data @n]\n    %f = cast %at : f32[batch=8 @data @n]\n",
            "",
        )
        .replace("mul %xs, %f", "mul %xs, %xs");
    ranks_agree(&alike);
}

#[test]
fn partition_looks_up_and_scatters_in_parts_inside_loops() {
    let text = print(&ranks_agree(
        r#"graph @m on a=2, b=2 {
  %ids = input below 10 : i32[turn=3, n=4 @b]
  %table = param "table" = normal(1.0) : f32[v=8 @a, d=2]
  %out, %sum = loop turn=3 {
    index %i : i32[]
    stacked %at = %ids : i32[n=4 @b]
    invariant %t = %table : f32[v=8 @a, d=2]
    %x = gather %t, %at along v : f32[n=4 @b, d=2] partial(sum a)
    %y = reshard %x because "use" : f32[n=4 @b, d=2]
    %g = scatter_add %y, %at along v : f32[v=8 @a, d=2] partial(sum b)
    yield stacked %y : f32[turn=3, n=4 @b, d=2]
    yield sum %g : f32[v=8 @a, d=2] partial(sum b)
  }
  %gr = reshard %sum because "report" : f32[v=8, d=2]
  %or = reshard %out because "report" : f32[turn=3, n=4, d=2]
  return g = %gr
  return o = %or
}
"#,
    ));
    assert_eq!(text.matches("scalar \"mesh.").count(), 1, "only a splits what is looked up in: {text}");
}

#[test]
fn partition_gives_updates_their_places() {
    let text = print(&ranks_agree(
        r#"graph @m on a=2, b=3 {
  %w = param "w" = normal(1.0) : f32[x=6 @b, y=4 @a]
  %m = state "w" m : f32[x=6 @b, y=4 @a]
  %lr = scalar "lr" = 2.0 : f64[]
  %new, %kept = update "w" states m {
    arg %p = %w : f32[x=6 @b, y=4 @a]
    arg %g = %w : f32[x=6 @b, y=4 @a]
    arg %s = %m : f32[x=6 @b, y=4 @a]
    arg %rate = %lr : f64[]
    %r = cast %rate : f32[]
    %i = index x : i32[x=6 @b]
    %j = index y : i32[y=4 @a]
    %ij = add %i, %j : i32[x=6 @b, y=4 @a]
    %f = cast %ij : f32[x=6 @b, y=4 @a]
    %k = mul %f, %g : f32[x=6 @b, y=4 @a]
    %step = mul %k, %r : f32[x=6 @b, y=4 @a]
    %q = sub %p, %step : f32[x=6 @b, y=4 @a]
    %t = add %s, %k : f32[x=6 @b, y=4 @a]
    yield %q : f32[x=6 @b, y=4 @a]
    yield %t : f32[x=6 @b, y=4 @a]
  }
  return store "w" = %new
  return store "w.m" = %kept
}
"#,
    ));
    assert_eq!(text.matches("arg %mesh.").count(), 2, "{text}");
}

/// One line of a graph changed, and what is said.
#[test]
fn partition_refuses_what_does_not_lie_as_ops_need_it() {
    const SOUND: &str = r#"graph @m on a=2, b=2 {
  %x = param "x" = normal(1.0) : f32[n=4 @a, d=4 @b]
  %w = param "w" = normal(1.0) : f32[d=4 @b, f=4]
  %y = dot %x, %w over d : f32[n=4 @a, f=4] partial(sum b)
  %z = neg %y : f32[n=4 @a, f=4] partial(sum b)
  %r = reshard %z because "use" : f32[n=4 @a, f=4]
  %p = softmax along f {
    arg %v = %r : f32[n=4 @a, f=4]
    %e = exp %v : f32[n=4 @a, f=4]
    yield %e : f32[n=4 @a, f=4]
  }
  %s = reduce_max %p over n, f : f32[] partial(max a)
  %t = reshard %s because "report" : f32[]
  return s = %t
}
"#;
    ranks_agree(SOUND);
    let cases = [
        ("f32[d=4 @b, f=4]", "f32[d=4, f=4]", "d is split differently in %x d: b, n: a and %w whole"),
        ("f=4] partial(sum b)\n  %z", "f=4]\n  %z", "%y is partial sum over b, not not partial over b"),
        ("neg", "exp", "exp: takes no terms of a sum over b: reduce %y first"),
        (
            "%r = reshard %z because \"use\" : f32[n=4 @a, f=4]",
            "%r = reshard %z because \"use\" : f32[n=4 @a, f=4 @b]",
            "lie",
        ),
        ("partial(max a)", "partial(sum a)", "%s is partial max over a, not partial sum over a"),
        (
            "%t = reshard %s because \"report\" : f32[]",
            "%t = neg %s : f32[] partial(max a)",
            "takes no terms of a max",
        ),
        ("n=4 @a", "n=5 @a", "axis n=5 does not split 2 ways"),
        (
            "%x = param \"x\" = normal(1.0) : f32[n=4 @a, d=4 @b]",
            "%x = param \"x\" = normal(1.0) : f32[n=4 @a, d=4 @b] partial(sum c)",
            "the mesh has no axis c",
        ),
    ];
    for (from, to, message) in cases {
        let text = SOUND.replace(from, to);
        assert_ne!(text, SOUND, "{from}");
        let error = refusal(&text);
        assert!(error.contains(message), "{to}: {error}");
    }
    let whole =
        SOUND.replace("f32[d=4 @b, f=4]", "f32[d=4 @b, f=4 @a]").replace("n=4 @a, f=4", "n=4, f=4 @a");
    let error =
        refusal(&whole.replace(
            "%x = param \"x\" = normal(1.0) : f32[n=4 @a",
            "%x = param \"x\" = normal(1.0) : f32[n=4",
        ));
    assert!(error.contains("softmax: f=4 must be whole, and is split over a"), "{error}");
    let twice =
        SOUND.replace("  %t = reshard %s because \"report\" : f32[]\n  return s = %t", "  return s = %x");
    let error = refusal(&twice);
    assert!(error.contains("s lies as d: b, n: a, and has to lie as whole"), "{error}");
}

/// Terms rounded to bf16 are off by half a unit in the last of eight places, and their sum, which is exact, by at most as much of
/// the sum of their sizes; f32 adds a few units in the last of its 24. What is gathered next to it is not rounded.
#[test]
fn partition_rounds_terms_on_the_wire_and_adds_them_exactly() {
    let text = r#"graph @m on data=2, tensor=3 {
  %x = param "x" = normal(1.0) : f32[n=6 @data @tensor, d=6]
  %w = param "w" = normal(1.0) : f32[n=6 @data @tensor, e=4]
  %g = dot %x, %w over n : f32[d=6, e=4] partial(sum data, sum tensor)
  %a = reshard %g wire bf16 because "a gradient" : f32[d=6, e=4]
  %b = reshard %x because "whole" : f32[n=6, d=6]
  return a = %a
  return b = %b
}
"#;
    let graph = parse(text).unwrap();
    assert_eq!(print(&graph), text);
    let local = partition(&graph).unwrap();
    let wires: Vec<Option<DType>> = local
        .ops
        .iter()
        .filter_map(|node| match &node.op {
            Op::Mesh(MeshOp::Collective(c)) => Some(c.wire),
            _ => None,
        })
        .collect();
    assert_eq!(wires, [Some(DType::Bf16), None]);
    let mut environment = sample_environment(&graph, 1);
    for tensor in environment.tensors.values_mut() {
        let values = (0..tensor.ty.numel()).map(|i| (i as f64 * 1.7).sin()).collect();
        *tensor = Tensor::floats(tensor.ty.clone(), values);
    }
    let expected = run(&graph, &environment, Mode::F64).unwrap();
    let got = run_ranks(&local, &environment, Mode::F32).unwrap().assemble(&local).unwrap();
    let whole = run(&graph, &environment, Mode::F32).unwrap();
    assert!(same(&whole.0[1].1, &got.0[1].1, 0.0));
    let [x, w] = ["x", "w"].map(|name| environment.tensors[name].as_floats().to_vec());
    let (exact, rounded) = (expected.0[0].1.as_floats(), got.0[0].1.as_floats());
    let mut worst = 0.0f64;
    for d in 0..6 {
        for e in 0..4 {
            let sizes: f64 = (0..6).map(|n| (x[6 * n + d] * w[4 * n + e]).abs()).sum();
            let off = (exact[4 * d + e] - rounded[4 * d + e]).abs();
            assert!(off <= sizes * (1.0 / 512.0 + 1e-6), "{off} of {sizes}");
            worst = worst.max(off / sizes);
        }
    }
    assert!(worst > 1.0 / 8192.0, "nothing was rounded: {worst}");
}
