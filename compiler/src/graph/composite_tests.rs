//! The meaning of composites in plain arithmetic, and every reason for which a builder refuses operands.

use super::composites::AttentionParts;
use super::grouped::Packing;
use super::routing::{Places, RouteParts};
use super::{
    Axis, Bound, Builder, DType, LossHead, Name, Output, Pairs, RegionId, RopeScaling, Type, ValueId,
};
use crate::interpret::{Environment, Mode, Tensor, run};

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, axes.iter().map(|(n, s)| Axis::new(*n, *s)).collect())
}

fn floats(axes: &[(&str, u64)]) -> Type {
    ty(DType::F64, axes)
}

fn ints(axes: &[(&str, u64)]) -> Type {
    ty(DType::I32, axes)
}

/// What a graph of these inputs computes in f64, result by result.
fn values(
    inputs: &[(Type, &[f64])],
    build: impl FnOnce(&mut Builder, &[ValueId]) -> Vec<ValueId>,
) -> Vec<Vec<f64>> {
    let mut b = Builder::new("f");
    let mut environment = Environment::default();
    let mut made = Vec::new();
    for (i, (ty, values)) in inputs.iter().enumerate() {
        let name = format!("x{i}");
        made.push(b.input(&name, ty.clone(), 0));
        let tensor = match ty.dtype {
            DType::I32 => Tensor::ints(ty.clone(), values.iter().map(|v| *v as i64).collect()),
            _ => Tensor::floats(ty.clone(), values.to_vec()),
        };
        environment.inputs.insert(name.as_str().into(), tensor);
    }
    let results = build(&mut b, &made);
    for (i, result) in results.iter().enumerate() {
        b.output(Output::Report(format!("y{i}").into()), *result);
    }
    let graph = b.finish();
    super::verify::verify(&graph, super::verify::Stage::Any).unwrap_or_else(|e| panic!("{e}"));
    let outputs = run(&graph, &environment, Mode::F64).unwrap();
    outputs.0.iter().map(|(_, tensor)| tensor.as_floats().to_vec()).collect()
}

#[track_caller]
fn near(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{got:?} {want:?}");
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 1e-12 * w.abs().max(1.0), "{got:?} is not {want:?}");
    }
}

const X: [f64; 3] = [-0.5, 1.0, 2.5];

#[test]
fn activations_are_their_formulas() {
    let of = |f: fn(&mut Builder, ValueId) -> ValueId| {
        values(&[(floats(&[("d", 3)]), &X)], |b, x| vec![f(b, x[0])]).remove(0)
    };
    near(&of(Builder::silu), &X.map(|x| x / (1.0 + (-x).exp())));
    let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    near(&of(Builder::gelu_tanh), &X.map(|x| 0.5 * x * (1.0 + inner(x).tanh())));
    // Φ(−0.5), Φ(1) and Φ(2.5) of the normal distribution.
    let normal = [0.308_537_538_725_986_9, 0.841_344_746_068_542_9, 0.993_790_334_674_223_8];
    let want: Vec<f64> = X.iter().zip(normal).map(|(x, p)| x * p).collect();
    near(&of(Builder::gelu_erf), &want);
}

#[test]
fn means_divide_by_what_they_sum() {
    let x = (floats(&[("a", 2), ("d", 3)]), &[1.0, 2.0, 6.0, -1.0, 0.0, 7.0][..]);
    let both = |b: &mut Builder, axes: &[&str], x: ValueId| {
        let axes: Vec<Name> = axes.iter().map(|a| Name::from(*a)).collect();
        vec![b.mean(x, &axes), b.counted_mean(x, &axes)]
    };
    for (axes, want) in [(&["d"][..], &[3.0, 2.0][..]), (&["a", "d"], &[2.5]), (&["a"], &[0.0, 1.0, 6.5])] {
        for got in values(std::slice::from_ref(&x), |b, x| both(b, axes, x[0])) {
            near(&got, want);
        }
    }
}

#[test]
fn softmax_is_its_formula_and_zero_on_an_empty_row() {
    let lowest = f64::NEG_INFINITY;
    let x = [0.5, -1.0, 2.0, lowest, lowest, lowest, 700.0, lowest, 701.0];
    let got =
        values(&[(floats(&[("a", 3), ("d", 3)]), &x)], |b, x| vec![b.softmax(x[0], &"d".into()).unwrap()]);
    let sum = (0.5f64).exp() + (-1.0f64).exp() + (2.0f64).exp();
    let half = 1.0 / (1.0 + 1.0f64.exp());
    let first = [0.5f64, -1.0, 2.0].map(|x| x.exp() / sum);
    near(&got[0], &[&first[..], &[0.0, 0.0, 0.0, half, 0.0, 1.0 - half]].concat());
}

#[test]
fn norms_are_their_formulas() {
    let (w, bias) = ([0.5, -2.0, 3.0], [1.0, 0.25, -1.0]);
    let d = || floats(&[("d", 3)]);
    let got = values(&[(d(), &X), (d(), &w)], |b, x| {
        let (y, rstd) = b.rms_norm(x[0], x[1], &"d".into(), 0.125).unwrap();
        vec![y, rstd]
    });
    let rstd = 1.0 / ((0.25 + 1.0 + 6.25) / 3.0 + 0.125f64).sqrt();
    let want: Vec<f64> = X.iter().zip(w).map(|(x, w)| x * rstd * w).collect();
    near(&got[0], &want);
    near(&got[1], &[rstd]);

    let got = values(&[(d(), &X), (d(), &w), (d(), &bias)], |b, x| {
        let (y, mean, rstd) = b.layer_norm(x[0], x[1], x[2], &"d".into(), 0.125).unwrap();
        vec![y, mean, rstd]
    });
    let mean = 1.0;
    let rstd = 1.0 / ((2.25 + 0.0 + 2.25) / 3.0 + 0.125f64).sqrt();
    let want: Vec<f64> = (0..3).map(|i| (X[i] - mean) * rstd * w[i] + bias[i]).collect();
    near(&got[0], &want);
    near(&got[1], &[mean]);
    near(&got[2], &[rstd]);
}

/// Position 3 turned by hand; pair j of four elements turns by `3 · frequency(j)`.
fn turned(pairs: Pairs, frequency: impl Fn(usize) -> f64) -> Vec<f64> {
    let x = [0.5, -1.0, 2.0, 0.25];
    let mut y = vec![0.0; 4];
    for j in 0..2 {
        let (first, second) = match pairs {
            Pairs::Half => (j, j + 2),
            Pairs::Interleaved => (2 * j, 2 * j + 1),
        };
        let (sin, cos) = (3.0 * frequency(j)).sin_cos();
        y[first] = x[first] * cos - x[second] * sin;
        y[second] = x[second] * cos + x[first] * sin;
    }
    y
}

#[test]
fn rope_turns_each_pair_by_its_angle() {
    let two_pi = 2.0 * std::f64::consts::PI;
    // Turns within the original context: above `high` kept, below `low` divided, in between mixed.
    let stretched = |f: f64, original: f64| {
        let smooth = ((original * f / two_pi - 1.0) / (4.0 - 1.0)).clamp(0.0, 1.0);
        f * ((1.0 - smooth) / 8.0 + smooth)
    };
    let x = (floats(&[("s", 1), ("d", 4)]), &[0.5, -1.0, 2.0, 0.25][..]);
    let at = (ints(&[("s", 1)]), &[3.0][..]);
    for (pairs, theta) in [(Pairs::Half, 2.0), (Pairs::Half, 1e4), (Pairs::Interleaved, 2.0)] {
        for original in [None, Some(16.0), Some(64.0)] {
            let scaling = original.map(|original| RopeScaling { factor: 8.0, low: 1.0, high: 4.0, original });
            let got = values(&[x.clone(), at.clone()], |b, x| {
                vec![b.scaled_rope(x[0], x[1], &"d".into(), theta, pairs, scaling).unwrap()]
            });
            let plain = |j: usize| theta.powf(-(j as f64) / 2.0);
            near(&got[0], &turned(pairs, |j| original.map_or(plain(j), |o| stretched(plain(j), o))));
        }
    }
}

#[test]
fn cross_entropy_and_loss_head_are_their_formulas() {
    let logits = [0.5, -1.0, 2.0, 1.0, 1.0, -3.0];
    let lse = |row: &[f64]| row.iter().map(|x| x.exp()).sum::<f64>().ln();
    let lses = [lse(&logits[..3]), lse(&logits[3..])];
    let losses = [lses[0] + 1.0, lses[1] - 1.0];
    let inputs = [(floats(&[("s", 2), ("v", 3)]), &logits[..]), (ints(&[("s", 2)]), &[1.0, 0.0][..])];
    let got = values(&inputs, |b, x| {
        let (loss, lse) = b.cross_entropy(x[0], x[1], &"v".into()).unwrap();
        vec![loss, lse]
    });
    near(&got[0], &losses);
    near(&got[1], &lses);
}

#[test]
fn loss_head_sums_weighted_losses() {
    let logits = [0.5, -1.0, 2.0, 1.0, 1.0, -3.0];
    let lse = |row: &[f64]| row.iter().map(|x| x.exp()).sum::<f64>().ln();
    let losses = [lse(&logits[..3]) + 1.0, lse(&logits[3..]) - 1.0];
    let f32s = |axes: &[(&str, u64)]| ty(DType::F32, axes);
    // Token s has the s-th row of w as its logits.
    let inputs = [
        (f32s(&[("s", 2), ("d", 2)]), &[1.0, 0.0, 0.0, 1.0][..]),
        (f32s(&[("d", 2), ("v", 3)]), &logits[..]),
        (ints(&[("s", 2)]), &[1.0, 0.0][..]),
        (f32s(&[("s", 2)]), &[0.5, 2.0][..]),
    ];
    let head = || LossHead { over: vec!["d".into()], vocab: "v".into(), chunks: vec![("s".into(), 1)] };
    let got = values(&inputs, |b, x| {
        let plain = b.loss_head(x[0], x[1], x[2], None, head()).unwrap();
        vec![plain, b.loss_head(x[0], x[1], x[2], Some(x[3]), head()).unwrap()]
    });
    near(&got[0], &[losses[0] + losses[1]]);
    near(&got[1], &[0.5 * losses[0] + 2.0 * losses[1]]);
}

/// What a builder says of operands of these types.
fn refusal<T: std::fmt::Debug>(
    types: &[Type],
    build: impl FnOnce(&mut Builder, &[ValueId]) -> Result<T, super::shape::ShapeError>,
) -> String {
    let mut b = Builder::new("f");
    let operands: Vec<ValueId> = types.iter().map(|ty| b.input("x", ty.clone(), 0)).collect();
    match build(&mut b, &operands) {
        Ok(_) => "fits".into(),
        Err(e) => e.message,
    }
}

#[test]
fn norms_and_softmax_refuse_axes_they_do_not_have() {
    let (sd, d, k) = (floats(&[("s", 2), ("d", 4)]), floats(&[("d", 4)]), floats(&[("k", 4)]));
    let axis = || Name::from("d");
    assert_eq!(
        refusal(std::slice::from_ref(&k), |b, x| b.softmax(x[0], &axis())),
        "softmax along d, which f64[k=4] lacks"
    );
    let rms =
        |types: [&Type; 2]| refusal(&types.map(Type::clone), |b, x| b.rms_norm(x[0], x[1], &axis(), 1.0));
    assert_eq!(rms([&sd, &d]), "fits");
    assert_eq!(rms([&sd, &sd]), "fits");
    assert_eq!(rms([&k, &k]), "rms_norm along d, which f64[k=4] lacks");
    assert_eq!(rms([&sd, &k]), "rms_norm: axis k=4 of f64[k=4] is not in f64[s=2, d=4]");
    let layer = |types: [&Type; 3]| {
        refusal(&types.map(Type::clone), |b, x| b.layer_norm(x[0], x[1], x[2], &axis(), 1.0))
    };
    assert_eq!(layer([&sd, &d, &d]), "fits");
    assert_eq!(layer([&k, &k, &k]), "layer_norm along d, which f64[k=4] lacks");
    assert_eq!(layer([&sd, &k, &d]), "layer_norm: axis k=4 of f64[k=4] is not in f64[s=2, d=4]");
    assert_eq!(layer([&sd, &d, &k]), "layer_norm: axis k=4 of f64[k=4] is not in f64[s=2, d=4]");
}

#[test]
fn rope_refuses_odd_axes_and_positions_that_are_none() {
    let of = |x: &Type, at: &Type| {
        refusal(&[x.clone(), at.clone()], |b, x| b.rope(x[0], x[1], &"d".into(), 1e4, Pairs::Half))
    };
    let sd = floats(&[("s", 2), ("d", 4)]);
    assert_eq!(of(&sd, &ints(&[("s", 2)])), "fits");
    assert_eq!(of(&floats(&[("s", 2)]), &ints(&[("s", 2)])), "rope along d, which f64[s=2] lacks");
    let odd = floats(&[("s", 2), ("d", 9)]);
    assert_eq!(of(&odd, &ints(&[("s", 2)])), "rope turns pairs along d, whose size 9 is odd");
    assert_eq!(of(&sd, &ints(&[("s", 3)])), "rope: axis s=3 of i32[s=3] is not in f64[s=2, d=4]");
    for at in [floats(&[("s", 2)]), ints(&[("s", 2), ("d", 4)]), ints(&[("d", 4)])] {
        let shown = super::shape::show(&at);
        assert_eq!(of(&sd, &at), format!("rope takes i32 positions without the axis d, got {shown}"));
    }
}

#[test]
fn losses_refuse_targets_that_do_not_fit() {
    let of = |x: &Type, targets: &Type| {
        refusal(&[x.clone(), targets.clone()], |b, x| b.cross_entropy(x[0], x[1], &"v".into()))
    };
    let logits = floats(&[("s", 2), ("v", 3)]);
    assert_eq!(of(&logits, &ints(&[("s", 2)])), "fits");
    assert_eq!(of(&floats(&[("s", 2)]), &ints(&[("s", 2)])), "cross_entropy along v, which f64[s=2] lacks");
    for targets in [floats(&[("s", 2)]), ints(&[("s", 3)]), ints(&[])] {
        let shown = super::shape::show(&targets);
        let message = format!("cross_entropy over v of f64[s=2, v=3] takes i32[s=2], got {shown}");
        assert_eq!(of(&logits, &targets), message);
    }

    let f32s = |axes: &[(&str, u64)]| ty(DType::F32, axes);
    let (x, w) = (f32s(&[("s", 4), ("d", 2)]), f32s(&[("d", 2), ("v", 3)]));
    let (targets, weight) = (ints(&[("s", 4)]), f32s(&[("s", 4)]));
    let head = |chunk: u64, types: [&Type; 4]| {
        refusal(&types.map(Type::clone), |b, x| {
            let head =
                LossHead { over: vec!["d".into()], vocab: "v".into(), chunks: vec![("s".into(), chunk)] };
            b.loss_head(x[0], x[1], x[2], Some(x[3]), head)
        })
    };
    for chunk in [1, 2, 4] {
        assert_eq!(head(chunk, [&x, &w, &targets, &weight]), "fits");
    }
    for chunk in [0, 3, 8] {
        let message = format!("s=4 does not divide into chunks of {chunk}");
        assert_eq!(head(chunk, [&x, &w, &targets, &weight]), message);
    }
    let no_classes = f32s(&[("d", 2)]);
    assert_eq!(head(1, [&x, &no_classes, &targets, &weight]), "loss_head along v, which f32[d=2] lacks");
    let other = ints(&[("t", 4)]);
    assert_eq!(head(1, [&x, &w, &other, &weight]), "loss_head along s, which i32[t=4] lacks");
    let wide = f32s(&[("d", 2), ("v", 3), ("e", 5)]);
    assert_eq!(
        head(1, [&x, &wide, &targets, &weight]),
        "a loss head takes x f32[s=4, d=2] and w f32[d=2, v=3, e=5] against targets i32[s=4]"
    );
    let more = ints(&[("s", 4), ("t", 2)]);
    assert_eq!(
        head(1, [&x, &w, &more, &weight]),
        "a loss head takes x f32[s=4, d=2] and w f32[d=2, v=3] against targets i32[s=4, t=2]"
    );
    let long = f32s(&[("s", 8)]);
    assert_eq!(head(1, [&x, &w, &targets, &long]), "loss_head: axis s=8 of f32[s=8] is not in i32[s=4]");
}

/// A score region of scalars of these types that gives its argument number `result`.
fn score(b: &mut Builder, args: &[Type], result: usize) -> RegionId {
    let args: Vec<(Name, Type)> = args.iter().map(|ty| ("a".into(), ty.clone())).collect();
    let (_, args) = b.open(&args);
    b.close(vec![args[result]])
}

/// What attention says of q, k, v and an extra of these axes, with positions `s` and `t`, contracting `d`.
fn attention(q: &[(&str, u64)], k: &[(&str, u64)], v: &[(&str, u64)], extra: &[(&str, u64)]) -> String {
    let f32s = |axes| ty(DType::F32, axes);
    refusal(&[f32s(q), f32s(k), f32s(v), f32s(extra)], |b, x| {
        let (f, i) = (f32s(&[]), ints(&[]));
        let score = score(b, &[f.clone(), i.clone(), i, f], 0);
        let parts = AttentionParts {
            query: "s".into(),
            key: "t".into(),
            over: vec!["d".into()],
            bound: Bound::Full,
            score,
        };
        let (o, lse) = b.attention(x[0], x[1], x[2], &[x[3]], parts)?;
        assert_eq!(b.ty(lse).axes, b.ty(x[0]).without(&["d".into()]).axes);
        Ok((o, lse))
    })
}

#[test]
fn attention_refuses_axes_that_do_not_fit() {
    let q: &[_] = &[("b", 2), ("s", 5), ("g", 3), ("d", 4)];
    let k: &[_] = &[("b", 2), ("t", 6), ("d", 4)];
    let v: &[_] = &[("b", 2), ("t", 6), ("e", 7)];
    assert_eq!(attention(q, k, v, &[]), "fits");
    assert_eq!(attention(q, k, k, &[]), "fits");
    assert_eq!(attention(q, k, v, &[("b", 2), ("g", 3), ("s", 5), ("t", 6)]), "fits");
    let bd: &[_] = &[("b", 2), ("d", 4)];
    let lacks =
        |what: &str, axis: &str| format!("attention's {what}, f32[b=2, d=4], lacks the position axis {axis}");
    assert_eq!(attention(bd, k, v, &[]), lacks("q", "s"));
    assert_eq!(attention(q, bd, v, &[]), lacks("k", "t"));
    assert_eq!(attention(q, k, bd, &[]), lacks("v", "t"));
    let no_d: &[_] = &[("b", 2), ("t", 6)];
    let without_d: &[_] = &[("b", 2), ("s", 5)];
    assert_eq!(
        attention(without_d, no_d, v, &[]),
        "q f32[b=2, s=5] and k f32[b=2, t=6] don't share the axis d"
    );
    assert_eq!(
        attention(without_d, k, v, &[]),
        "q f32[b=2, s=5] and k f32[b=2, t=6, d=4] don't share the axis d"
    );
    let long: &[_] = &[("b", 2), ("t", 6), ("d", 5)];
    assert_eq!(
        attention(q, long, v, &[]),
        "q f32[b=2, s=5, g=3, d=4] and k f32[b=2, t=6, d=5] don't share the axis d"
    );
    // An axis of k that one of the others lacks, or has in another size.
    for (q, v, shown) in [
        (&[("s", 5), ("d", 4)][..], v, "q f32[s=5, d=4] and v f32[b=2, t=6, e=7]"),
        (q, &[("t", 6), ("e", 7)], "q f32[b=2, s=5, g=3, d=4] and v f32[t=6, e=7]"),
        (q, &[("b", 3), ("t", 6)], "q f32[b=2, s=5, g=3, d=4] and v f32[b=3, t=6]"),
    ] {
        assert_eq!(
            attention(q, k, v, &[]),
            format!("axis b=2 of k is neither contracted nor shared by {shown}")
        );
    }
    let of_queries: &[_] = &[("b", 2), ("t", 6), ("g", 3)];
    assert_eq!(attention(q, k, of_queries, &[]), "axis g=3 of v f32[b=2, t=6, g=3] is one of queries alone");
    let short: &[_] = &[("b", 2), ("t", 5), ("e", 7)];
    let positions =
        |q: &str, k: &str, v: &str| format!("position axes s and t don't fit q {q}, k {k}, v {v}");
    let (shown_q, shown_k, shown_v) = ("f32[b=2, s=5, g=3, d=4]", "f32[b=2, t=6, d=4]", "f32[b=2, t=6, e=7]");
    assert_eq!(attention(q, k, short, &[]), positions(shown_q, shown_k, "f32[b=2, t=5, e=7]"));
    let both: &[_] = &[("b", 2), ("s", 5), ("t", 6), ("d", 4)];
    assert_eq!(attention(both, k, v, &[]), positions("f32[b=2, s=5, t=6, d=4]", shown_k, shown_v));
    let key_has_query: &[_] = &[("b", 2), ("t", 6), ("s", 5), ("d", 4)];
    let value_has_query: &[_] = &[("b", 2), ("t", 6), ("s", 5)];
    assert_eq!(
        attention(q, key_has_query, value_has_query, &[]),
        positions(shown_q, "f32[b=2, t=6, s=5, d=4]", "f32[b=2, t=6, s=5]")
    );
    assert_eq!(
        attention(q, k, v, &[("s", 5), ("x", 2)]),
        "axis x of extra f32[s=5, x=2] is not one of the scores' f32[b=2, s=5, g=3, t=6]"
    );
}

#[test]
fn attention_refuses_scores_of_another_form() {
    let (f, i) = (ty(DType::F32, &[]), ints(&[]));
    let of = |args: &[Type], result: usize| {
        let q = ty(DType::F32, &[("s", 5), ("d", 4)]);
        let k = ty(DType::F32, &[("t", 6), ("d", 4)]);
        refusal(&[q, k], |b, x| {
            let score = score(b, args, result);
            let (query, key, over) = ("s".into(), "t".into(), vec!["d".into()]);
            let parts = AttentionParts { query, key, over, bound: Bound::Full, score };
            b.attention(x[0], x[1], x[1], &[], parts)
        })
    };
    assert_eq!(of(&[f.clone(), i.clone(), i.clone()], 0), "fits");
    let message =
        |got: &str| format!("a score region takes scalars [F32, I32, I32] and gives F32, got [{got}]");
    assert_eq!(of(&[f.clone(), i.clone()], 0), message("F32, I32"));
    assert_eq!(of(&[f.clone(), i.clone(), f.clone()], 0), message("F32, I32, F32"));
    assert_eq!(of(&[f.clone(), i.clone(), i.clone()], 1), message("F32, I32, I32"));
    // Further results, such as slopes, are not the score.
    let more =
        refusal(&[ty(DType::F32, &[("s", 5), ("d", 4)]), ty(DType::F32, &[("t", 6), ("d", 4)])], |b, x| {
            let args =
                [("a", f.clone()), ("q", i.clone()), ("k", i.clone())].map(|(n, ty)| (Name::from(n), ty));
            let (_, args) = b.open(&args);
            let score = b.close(vec![args[0], args[2]]);
            let (query, key, over) = ("s".into(), "t".into(), vec!["d".into()]);
            b.attention(x[0], x[1], x[1], &[], AttentionParts { query, key, over, bound: Bound::Full, score })
        });
    assert_eq!(more, "fits");
    let wide = ty(DType::F32, &[("t", 6)]);
    assert_eq!(of(&[wide, i.clone(), i], 0), message("F32, I32, I32"));
    let mixed =
        refusal(&[ty(DType::F32, &[("s", 5), ("d", 4)]), ty(DType::Bf16, &[("t", 6), ("d", 4)])], |b, x| {
            let score = score(b, std::slice::from_ref(&f), 0);
            let (query, key, over) = ("s".into(), "t".into(), vec!["d".into()]);
            let parts = AttentionParts { query, key, over, bound: Bound::Full, score };
            b.attention(x[0], x[1], x[1], &[], parts)
        });
    assert_eq!(mixed, "attention mixes f32[s=5, d=4] and bf16[t=6, d=4]");
}

fn packing(tile: u64) -> Packing {
    Packing { row: "row".into(), tile }
}

#[test]
fn grouped_dot_is_a_product_with_the_owners_matrix() {
    let inputs = [
        (floats(&[("row", 6), ("d", 2)]), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0][..]),
        (floats(&[("expert", 2), ("d", 2), ("f", 2)]), &[1.0, 0.0, 0.5, 2.0, -1.0, 3.0, 0.0, 1.0][..]),
        (ints(&[("row", 6)]), &[0.0, 0.0, 1.0, 1.0, 2.0, 2.0][..]),
    ];
    let got = values(&inputs, |b, x| {
        vec![b.grouped_dot(x[0], x[1], x[2], &"expert".into(), &["d".into()], &packing(2)).unwrap()]
    });
    // Rows of owner 2 belong to no expert of two.
    near(&got[0], &[2.0, 4.0, 5.0, 8.0, -5.0, 21.0, -7.0, 29.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn grouped_outer_sums_by_owner() {
    let inputs = [
        (floats(&[("row", 4), ("d", 2)]), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0][..]),
        (floats(&[("row", 4)]), &[1.0, -1.0, 2.0, 10.0][..]),
        (ints(&[("row", 4)]), &[0.0, 0.0, 1.0, 2.0][..]),
    ];
    let got = values(&inputs, |b, x| {
        vec![b.grouped_outer(x[0], x[1], x[2], &Axis::new("expert", 2), &packing(1)).unwrap()]
    });
    near(&got[0], &[-2.0, -2.0, 10.0, 12.0]);
}

#[test]
fn grouped_products_refuse_what_does_not_fit() {
    let of = |x: &Type, w: &Type, owner: &Type, tile: u64| {
        refusal(&[x.clone(), w.clone(), owner.clone()], |b, x| {
            b.grouped_dot(x[0], x[1], x[2], &"expert".into(), &["d".into()], &packing(tile))
        })
    };
    let x = floats(&[("row", 6), ("d", 2)]);
    let w = floats(&[("expert", 3), ("d", 2), ("f", 5)]);
    let owner = ints(&[("row", 6)]);
    for tile in [1, 2, 3, 6] {
        assert_eq!(of(&x, &w, &owner, tile), "fits");
    }
    for tile in [0, 4, 12] {
        assert_eq!(of(&x, &w, &owner, tile), format!("row=6 does not divide into tiles of {tile}"));
    }
    let shared = floats(&[("d", 2), ("f", 5)]);
    assert_eq!(of(&x, &shared, &owner, 2), "grouped_dot along expert, which f64[d=2, f=5] lacks");
    assert_eq!(of(&x, &w, &floats(&[("row", 6)]), 2), "owners are i32, got f64[row=6]");
    assert_eq!(
        of(&x, &w, &ints(&[("s", 6)]), 2),
        "a grouped product's owner along row, which i32[s=6] lacks"
    );
    let product = |x: &str, w: &str, owner: &str| {
        format!("a grouped product takes rows {x} and matrices {w} of owners {owner}")
    };
    let (xs, ws, owners) = ("f64[row=6, d=2]", "f64[expert=3, d=2, f=5]", "i32[row=6]");
    let no_d = floats(&[("row", 6)]);
    assert_eq!(of(&no_d, &w, &owner, 2), product("f64[row=6]", ws, owners));
    let neither = floats(&[("expert", 3), ("f", 5)]);
    assert_eq!(of(&no_d, &neither, &owner, 2), product("f64[row=6]", "f64[expert=3, f=5]", owners));
    let short = floats(&[("row", 6), ("d", 3)]);
    assert_eq!(of(&short, &w, &owner, 2), product("f64[row=6, d=3]", ws, owners));
    let twice = floats(&[("expert", 3), ("d", 2), ("row", 6)]);
    assert_eq!(of(&x, &twice, &owner, 2), product(xs, "f64[expert=3, d=2, row=6]", owners));
    let narrow = ty(DType::F32, &[("expert", 3), ("d", 2), ("f", 5)]);
    assert_eq!(of(&x, &narrow, &owner, 2), product(xs, "f32[expert=3, d=2, f=5]", owners));
    // One axis that fits does not make up for one that does not.
    let half = floats(&[("expert", 3), ("d", 2), ("f", 5), ("row", 6)]);
    assert_eq!(of(&x, &half, &owner, 2), product(xs, "f64[expert=3, d=2, f=5, row=6]", owners));
    let more = floats(&[("row", 6), ("d", 2), ("h", 3)]);
    let of_two = refusal(&[more, w.clone(), owner.clone()], |b, x| {
        b.grouped_dot(x[0], x[1], x[2], &"expert".into(), &["d".into(), "h".into()], &packing(2))
    });
    assert_eq!(of_two, product("f64[row=6, d=2, h=3]", ws, owners));
    let batched = ints(&[("batch", 2), ("row", 6)]);
    assert_eq!(of(&x, &w, &batched, 2), product(xs, ws, "i32[batch=2, row=6]"));
}

#[test]
fn grouped_outer_products_refuse_what_does_not_fit() {
    let of = |a: &Type, b: &Type, owner: &Type, tile: u64| {
        refusal(&[a.clone(), b.clone(), owner.clone()], |builder, x| {
            builder.grouped_outer(x[0], x[1], x[2], &Axis::new("expert", 3), &packing(tile))
        })
    };
    let a = floats(&[("row", 6), ("d", 2)]);
    let b = floats(&[("row", 6), ("f", 5)]);
    let owner = ints(&[("row", 6)]);
    assert_eq!(of(&a, &b, &owner, 2), "fits");
    assert_eq!(of(&a, &b, &owner, 4), "row=6 does not divide into tiles of 4");
    let other = floats(&[("d", 2)]);
    let missing = "grouped_outer: axis row=6 of i32[row=6] is not in f64[d=2]";
    assert_eq!(of(&other, &b, &owner, 2), missing);
    assert_eq!(of(&a, &other, &owner, 2), missing);
    let product =
        |a: &str, b: &str| format!("a grouped outer product takes rows {a} and {b} of owners i32[row=6]");
    let (left, right) = ("f64[row=6, d=2]", "f64[row=6, f=5]");
    assert_eq!(of(&a, &a, &owner, 2), product(left, left));
    let (more_left, more_right) =
        (floats(&[("row", 6), ("d", 2), ("g", 3)]), floats(&[("row", 6), ("f", 5), ("g", 3)]));
    assert_eq!(
        of(&more_left, &more_right, &owner, 2),
        product("f64[row=6, d=2, g=3]", "f64[row=6, f=5, g=3]")
    );
    let of_group = floats(&[("row", 6), ("expert", 3)]);
    assert_eq!(of(&of_group, &b, &owner, 2), product("f64[row=6, expert=3]", right));
    assert_eq!(of(&a, &of_group, &owner, 2), product(left, "f64[row=6, expert=3]"));
    let narrow = ty(DType::F32, &[("row", 6), ("f", 5)]);
    assert_eq!(of(&a, &narrow, &owner, 2), product(left, "f32[row=6, f=5]"));
}

/// Gates of four tokens for three experts. The first choices are experts 0, 0, 0, 1 and the second ones 1, 1, 2, 0: in the
/// last token experts 0 and 2 tie.
const GATES: [f64; 12] = [0.6, 0.3, 0.1, 0.5, 0.4, 0.1, 0.7, 0.1, 0.2, 0.2, 0.6, 0.2];

fn parts(gates: ValueId, k: u64, normalise: bool, places: Places) -> RouteParts {
    let (tokens, expert) = ("s".into(), "expert".into());
    RouteParts { gates, select: gates, tokens, expert, k, normalise, places }
}

#[test]
fn routed_tokens_come_back_with_the_weights_of_their_experts() {
    let x = [1.0, -2.0, 3.0, 4.0];
    let inputs = [(floats(&[("s", 4), ("expert", 3)]), &GATES[..]), (floats(&[("s", 4)]), &x[..])];
    let back = |k: u64, normalise: bool, places: Places| {
        values(&inputs, |b, v| {
            let r = b.route(parts(v[0], k, normalise, places.clone()));
            let place = match &places {
                Places::Slots(slot) => vec![Axis::new("expert", 3), slot.clone()],
                Places::Rows { row, .. } => vec![row.clone()],
            };
            let h = b.dispatch(v[1], &r, &Type::new(DType::F64, place));
            vec![b.combine(h, &r, &floats(&[("s", 4)]))]
        })
        .remove(0)
    };
    let slots = |n: u64| Places::Slots(Axis::new("slot", n));
    let rows = |n: u64, tile: u64| Places::Rows { row: Axis::new("row", n), tile };
    for places in [slots(4), rows(16, 2), rows(24, 4)] {
        near(&back(1, false, places.clone()), &[0.6, -1.0, 2.1, 2.4]);
        near(&back(1, true, places.clone()), &x);
        near(&back(2, false, places.clone()), &[0.9, -1.8, 2.7, 3.2]);
        near(&back(2, true, places.clone()), &x);
        near(&back(3, false, places), &x);
    }
    // One slot each: expert 0 takes token 0, expert 1 token 3 (a first choice), expert 2 token 2.
    near(&back(2, false, slots(1)), &[0.6, 0.0, 0.6, 2.4]);
    near(&back(1, false, slots(2)), &[0.6, -1.0, 0.0, 2.4]);
}

#[test]
fn balance_losses_are_their_formulas() {
    let inputs = [(floats(&[("s", 4), ("expert", 3)]), &GATES[..])];
    let got = values(&inputs, |b, v| {
        let r = b.route(parts(v[0], 2, false, Places::Slots(Axis::new("slot", 4))));
        let over = ["s".into()];
        vec![
            b.load_balance(&r, &over, true),
            b.load_balance(&r, &over, false),
            b.z_loss(v[0], &"expert".into()),
        ]
    });
    // Mean gates, and the shares of first choices and of all choices.
    let mean = [0.5, 0.35, 0.15];
    near(&got[0], &[3.0 * (mean[0] * 0.75 + mean[1] * 0.25)]);
    near(&got[1], &[3.0 * (mean[0] * 1.0 + mean[1] * 0.75 + mean[2] * 0.25) / 2.0]);
    let z = |row: &[f64]| row.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2);
    near(&got[2], &GATES.chunks(3).map(z).collect::<Vec<_>>());
}
