//! Attention and its gradients down to kernels, for scores beyond the plain causal one, against the interpreter in f64.

use super::simulate;
use crate::autodiff::differentiate::differentiate;
use crate::graph::composites::AttentionParts;
use crate::graph::{
    Axis, BinaryOp, Bound, Builder, CompareOp, DType, Graph, Init, Name, Op, Output, ReduceOp, RegionId,
    Type, UnaryOp, ValueId,
};
use crate::interpret::{self, Mode, Outputs, sample_environment};
use mlc_codegen::program::{InterpretedProgram, Kernel, KernelSpec, Program};
use mlc_codegen::target::X86_64_V4;

fn ty(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect())
}

/// Sums here have tens of terms: f32 leaves some 1e-6 of a tensor's largest element.
pub(super) fn far_off(expected: &Outputs, found: &Outputs) -> Option<String> {
    for ((output, want), (_, got)) in expected.0.iter().zip(&found.0) {
        let scale = want.as_floats().iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        for (i, (w, g)) in want.as_floats().iter().zip(got.as_floats()).enumerate() {
            if w != g && ((w - g).abs() > 1e-5 * scale || g.is_nan()) {
                return Some(format!("{output:?}[{i}]: {g} instead of {w}"));
            }
        }
    }
    None
}

/// Runs the program both ways, and finds three attention kernels in it.
fn check(graph: &Graph) {
    check_with(graph, 2);
}

/// As [`check`], with so many kernels backward.
fn check_with(graph: &Graph, backward: usize) {
    let program = check_numbers(graph);
    let count = |pick: &dyn Fn(&KernelSpec) -> bool| program.kernels.iter().filter(|k| pick(&k.spec)).count();
    assert_eq!(count(&|k| matches!(k, KernelSpec::Attention(_))), 1, "one kernel forward");
    assert_eq!(count(&|k| matches!(k, KernelSpec::AttentionGrad(_))), backward, "backward");
}

/// Runs the program both ways.
fn check_numbers(graph: &Graph) -> Program {
    let program = simulate::program(graph).unwrap_or_else(|e| panic!("{e}"));
    let environment = sample_environment(graph, 3);
    let expected = interpret::run(graph, &environment, Mode::F64).unwrap_or_else(|e| panic!("{e}"));
    let evaluated = simulate::run(&program, graph, &environment).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(far_off(&expected, &evaluated), None, "evaluated");
    let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).unwrap_or_else(|e| panic!("{e}"));
    let interpreted = simulate::run_with(&program, graph, &environment, &mut |s| kernels.run("train", s))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(far_off(&expected, &interpreted), None, "as KIR");
    program
}

/// An operand of the score, with its axes.
#[derive(Clone, Copy)]
enum Bias<'a> {
    Given(&'a [(&'a str, u64)]),
    Learned(&'a [(&'a str, u64)]),
}

/// Parameters `q`, `k`, `v` of these axes, attention with the given score, and the gradients of `Σ o·t`.
fn trained(
    q: &[(&str, u64)],
    kv: &[(&str, u64)],
    bound: Bound,
    bias: Option<Bias>,
    score: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> Graph {
    trained_over(&["hd"], q, kv, bound, bias, score)
}

/// As [`trained`], contracting these axes.
fn trained_over(
    over: &[&str],
    q: &[(&str, u64)],
    kv: &[(&str, u64)],
    bound: Bound,
    bias: Option<Bias>,
    score: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> Graph {
    let mut b = Builder::new("attention");
    let param = |b: &mut Builder, path: &str, axes: &[(&str, u64)]| {
        let op = Op::Param { path: path.into(), init: Init::Constant(0.0) };
        b.one(op, &[], Some(ty(axes)), path)
    };
    let (q, k) = (param(&mut b, "q", q), param(&mut b, "k", kv));
    // Values have the contracted axes under names of their own.
    let values: Vec<(String, u64)> = kv
        .iter()
        .map(|(n, s)| (if over.contains(n) && over.len() > 1 { format!("{n}v") } else { n.to_string() }, *s))
        .collect();
    let values: Vec<(&str, u64)> = values.iter().map(|(n, s)| (n.as_str(), *s)).collect();
    let v = param(&mut b, "v", &values);
    let extras: Vec<ValueId> = match bias {
        Some(Bias::Given(axes)) => vec![b.input("bias", ty(axes), 0)],
        Some(Bias::Learned(axes)) => vec![param(&mut b, "bias", axes)],
        None => vec![],
    };
    let score = score_region(&mut b, extras.len(), score);
    let parts = AttentionParts {
        query: "seq".into(),
        key: "pos".into(),
        over: over.iter().map(|n| Name::from(*n)).collect(),
        bound,
        score,
    };
    // `lse` must not be used as a value: attention would be taken apart before it is differentiated.
    let (o, _) = b.attention(q, k, v, &extras, parts).unwrap_or_else(|e| panic!("{e}"));
    let t = b.input("t", b.ty(o).clone(), 0);
    let product = b.mul(o, t);
    let axes: Vec<Name> = b.ty(o).names();
    let loss = b.reduce(ReduceOp::Sum, product, &axes);
    b.output(Output::Report("loss".into()), loss);
    b.output(Output::Report("o".into()), o);
    let done = differentiate(b.finish(), 0).unwrap_or_else(|e| panic!("{e}"));
    let mut b = Builder::resume(done.graph);
    for g in &done.gradients {
        b.output(Output::Report(format!("grad.{}", g.param).into()), g.gradient);
    }
    b.finish()
}

fn score_region(
    b: &mut Builder,
    extras: usize,
    score: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> RegionId {
    let f32 = Type::scalar(DType::F32);
    let i32 = Type::scalar(DType::I32);
    let mut args: Vec<(Name, Type)> =
        vec![("s".into(), f32.clone()), ("query".into(), i32.clone()), ("key".into(), i32)];
    args.extend((0..extras).map(|_| (Name::from("extra"), f32.clone())));
    let (_, args) = b.open(&args);
    let result = score(b, &args);
    b.close(vec![result])
}

/// `condition ? s : −inf`.
fn masked(b: &mut Builder, condition: ValueId, s: ValueId) -> ValueId {
    let lowest = b.constant(DType::F32, f64::NEG_INFINITY);
    b.select(condition, s, lowest)
}

const Q: &[(&str, u64)] = &[("batch", 2), ("seq", 7), ("kv", 2), ("group", 3), ("hd", 4)];
const KV: &[(&str, u64)] = &[("batch", 2), ("pos", 7), ("kv", 2), ("hd", 4)];

#[test]
fn lower_attention_with_grouped_heads() {
    let graph = trained(Q, KV, Bound::Causal, None, |b, a| {
        let scaled = b.scale(a[0], 0.5);
        let sees = b.compare(CompareOp::Le, a[2], a[1]);
        masked(b, sees, scaled)
    });
    check(&graph);
}

#[test]
fn lower_attention_with_a_window_and_a_soft_cap() {
    // Gemma 2 (arXiv:2408.00118): capped scores, a sliding window.
    let graph = trained(Q, KV, Bound::Window(3), None, |b, a| {
        let small = b.scale(a[0], 0.25);
        let capped = b.unary(UnaryOp::Tanh, small);
        let capped = b.scale(capped, 4.0);
        let sees = b.compare(CompareOp::Le, a[2], a[1]);
        let three = b.constant(DType::I32, 3.0);
        let first = b.sub(a[1], three);
        let near = b.compare(CompareOp::Gt, a[2], first);
        let both = b.binary(BinaryOp::And, sees, near);
        masked(b, both, capped)
    });
    check(&graph);
}

#[test]
fn lower_attention_reads_a_bias_per_head() {
    let bias: &[(&str, u64)] = &[("kv", 2), ("group", 3), ("seq", 7), ("pos", 7)];
    check(&trained(Q, KV, Bound::Full, Some(Bias::Given(bias)), |b, a| b.add(a[0], a[3])));
    // The same for all heads and batches.
    let shared: &[(&str, u64)] = &[("pos", 7), ("seq", 7)];
    check(&trained(Q, KV, Bound::Full, Some(Bias::Given(shared)), |b, a| b.add(a[0], a[3])));
}

#[test]
fn lower_attention_gives_learned_biases_their_gradients() {
    let biases: [&[(&str, u64)]; 6] = [
        &[("kv", 2), ("group", 3), ("seq", 7), ("pos", 7)],
        &[("pos", 7), ("seq", 7)],
        &[("batch", 2), ("group", 3), ("pos", 7)],
        &[("seq", 7), ("kv", 2)],
        &[("kv", 2), ("group", 3)],
        &[],
    ];
    for axes in biases {
        let graph = trained(Q, KV, Bound::Causal, Some(Bias::Learned(axes)), |b, a| {
            let s = b.mul(a[0], a[3]);
            let s = b.add(s, a[3]);
            let sees = b.compare(CompareOp::Le, a[2], a[1]);
            masked(b, sees, s)
        });
        check_with(&graph, 3);
    }
}

#[test]
fn lower_attention_with_heads_of_several_axes() {
    let q: &[(&str, u64)] = &[("seq", 5), ("a", 2), ("h", 3), ("hd", 4)];
    let kv: &[(&str, u64)] = &[("pos", 5), ("a", 2), ("h", 3), ("hd", 4)];
    let mut kernels = Vec::new();
    for over in [&["a", "hd"][..], &["hd", "a"], &["a", "h", "hd"], &["hd"]] {
        let graph = trained_over(over, q, kv, Bound::Full, None, |b, a| b.scale(a[0], 0.5));
        let program = check_numbers(&graph);
        let is_attention =
            |k: &Kernel| matches!(k.spec, KernelSpec::Attention(_) | KernelSpec::AttentionGrad(_));
        kernels.push(program.kernels.iter().filter(|k| is_attention(k)).count());
    }
    assert_eq!(kernels, [0, 0, 3, 3], "by meaning where another axis stands between");
}

#[test]
fn lower_attention_without_groups_or_batches() {
    let q: &[(&str, u64)] = &[("seq", 5), ("hd", 4)];
    let kv: &[(&str, u64)] = &[("pos", 9), ("hd", 4)];
    check(&trained(q, kv, Bound::Full, None, |b, a| b.scale(a[0], 0.5)));
}

#[test]
fn lower_attention_leaves_a_row_without_keys_empty() {
    let graph = trained(Q, KV, Bound::Full, None, |b, a| {
        let sees = b.compare(CompareOp::Lt, a[2], a[1]);
        masked(b, sees, a[0])
    });
    check(&graph);
}

#[test]
fn lower_attention_with_two_group_axes() {
    let q: &[(&str, u64)] = &[("batch", 2), ("kv", 2), ("g", 2), ("h", 3), ("seq", 5), ("hd", 4)];
    let kv: &[(&str, u64)] = &[("batch", 2), ("pos", 5), ("kv", 2), ("hd", 4)];
    check(&trained(q, kv, Bound::Full, None, |b, a| b.scale(a[0], 0.5)));
    // Not walked with one stride: another axis lies between them, or the bias has one of them only.
    let apart: &[(&str, u64)] = &[("g", 2), ("batch", 2), ("kv", 2), ("h", 3), ("seq", 5), ("hd", 4)];
    check(&trained(apart, kv, Bound::Full, None, |b, a| b.scale(a[0], 0.5)));
    for axes in [&[("g", 2), ("seq", 5), ("pos", 5)][..], &[("h", 3), ("pos", 5)]] {
        let graph = trained(q, kv, Bound::Full, Some(Bias::Learned(axes)), |b, a| b.add(a[0], a[3]));
        check_with(&graph, 3);
    }
}

/// Two operations for each product of numbers, in the scores that the bound leaves: q·k and p·v forward; q·k, do·v and ds·k
/// for the queries; those two, ds·q and p·do for keys and values.
#[test]
fn lower_counts_the_operations_of_attention() {
    let flops = |q, kv, bound, bias: Option<Bias>| {
        let graph = trained(q, kv, bound, bias, |b, a| b.add(a[0], a[a.len() - 1]));
        simulate::program(&graph).unwrap_or_else(|e| panic!("{e}")).info.entries[0].flops
    };
    let shared: &[(&str, u64)] = &[("seq", 7), ("pos", 7)];
    for (bound, pairs) in [(Bound::Full, 49), (Bound::Causal, 28), (Bound::Window(3), 18)] {
        let per_pair = 2 * 4 * (2 + 3 + 4);
        assert_eq!(flops(Q, KV, bound, Some(Bias::Given(shared))), 12 * pairs * per_pair, "{bound:?}");
        // The gradient of a bias needs q·k and do·v again.
        let learned = flops(Q, KV, bound, Some(Bias::Learned(shared)));
        assert_eq!(learned, 12 * pairs * (per_pair + 2 * 4 * 2), "{bound:?}");
    }
    // Fewer keys than queries.
    let q: &[(&str, u64)] = &[("seq", 9), ("hd", 2)];
    let kv: &[(&str, u64)] = &[("pos", 5), ("hd", 2)];
    let bias: &[(&str, u64)] = &[("pos", 5)];
    for (bound, pairs) in [(Bound::Full, 45), (Bound::Causal, 35), (Bound::Window(7), 35)] {
        let got = flops(q, kv, bound, Some(Bias::Given(bias)));
        assert_eq!(got, pairs * 2 * 2 * (2 + 3 + 4), "{bound:?}");
    }
}
