//! Attention as specs call it and write it, from the text down to kernels.

use super::attention_tests::far_off;
use super::simulate;
use crate::graph::Graph;
use crate::graph::print::print;
use crate::graph::recognise::near_misses;
use crate::interpret::{self, Mode, Tensor, sample_environment};
use crate::testing::{assert_same_numbers, graph_of_spec, with_gradients};
use mlc_codegen::program::InterpretedProgram;
use mlc_codegen::target::X86_64_V4;

/// Layers of grouped-query attention over packed segments; `BODY` makes `o` from q, k, v.
const MODEL: &str = "spec 1
model M {
    size batch = 2, seq = 5, d = 4, kv = 2, group = 2, hd = 3, layers = 4
    input x[batch, seq, d]
    input segment: ids<2>[batch, seq]
    block Attention(x[batch, seq, d], segment: int[batch, seq], window) -> [batch, seq, d] {
        param wq[d -> kv, group, hd], wk[d -> kv, hd], wv[d -> kv, hd] = normal(0.5)
        param wo[kv, group, hd -> d] = normal(0.5)
        param slope[kv, group], sink[kv, seq] = normal(0.5)
        q = dot[d](x, wq)
        k = dot[d](x, wk) as [seq: pos]
        v = dot[d](x, wv) as [seq: pos]
        BODY
        x + dot[kv, group, hd](o, wo)
    }
    z = repeat[layers](Attention@layer, x, segment, window = [2, none])
    loss mean[batch, seq, d](z * z)
    LOWER
}
";

const CALLED: &str = "
        same[batch, seq, pos] = segment == (segment as [seq: pos])
        bias[kv, group, seq, pos] = slope * (index[pos] - index[seq]) + (sink as [seq: pos])
        o = std.Attend[seq, pos, hd](q, k, v, causal = true, scale = 0.3, soft_cap = 5, window = window,
            mask = same, bias = bias)";

const WRITTEN: &str = "
        same[batch, seq, pos] = segment == (segment as [seq: pos])
        near[seq, pos] = index[seq] - index[pos] < window
        sees[batch, seq, pos] = same and near and index[pos] <= index[seq]
        bias[kv, group, seq, pos] = slope * (index[pos] - index[seq]) + (sink as [seq: pos])
        s[batch, kv, group, seq, pos] = 5 * tanh(dot[hd](q, k) * 0.3 / 5) + bias
        o = dot[pos](softmax[pos](where(sees, s, -inf)), v)";

/// The graph of a model with this attention.
fn forward(body: &str, lower: &str) -> Graph {
    graph_of_spec(&MODEL.replace("BODY", body).replace("LOWER", lower))
}

/// What is trained is what is meant, evaluated plainly and as KIR.
pub(crate) fn trains(graph: &Graph) {
    let graph = with_gradients(graph.clone());
    let program = simulate::program(&graph).unwrap_or_else(|e| panic!("{e}"));
    let environment = sample_environment(&graph, 5);
    let expected = interpret::run(&graph, &environment, Mode::F64).unwrap_or_else(|e| panic!("{e}"));
    let evaluated = simulate::run(&program, &graph, &environment).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(far_off(&expected, &evaluated), None, "evaluated");
    let mut kernels = InterpretedProgram::new(&program, &X86_64_V4).unwrap_or_else(|e| panic!("{e}"));
    let interpreted = simulate::run_with(&program, &graph, &environment, &mut |s| kernels.run("train", s))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(far_off(&expected, &interpreted), None, "as KIR");
}

#[test]
fn attend_with_every_option_is_its_formula() {
    let plain = forward(WRITTEN, "lower { attention = reference }");
    assert!(!print(&plain).contains("attention query"), "recognition is off");
    for (body, lower, whole) in
        [(CALLED, "", true), (WRITTEN, "", true), (CALLED, "lower { attention = reference }", false)]
    {
        let graph = forward(body, lower);
        let text = print(&graph);
        assert_eq!(text.contains("attention query seq key pos causal over hd"), whole, "{text}");
        assert_eq!(near_misses(&graph, &[]), []);
        assert_same_numbers(&plain, &graph);
        assert_same_numbers(&with_gradients(plain.clone()), &with_gradients(graph));
    }
}

#[test]
fn attend_with_every_option_trains() {
    trains(&forward(CALLED, ""));
}

#[test]
fn attend_without_recognition_trains() {
    trains(&forward(CALLED, "lower { attention = reference }"));
}

/// Biases by relative position alone, weighed by an input so that every place counts by another number.
const RELATIVE: &str = "spec 1
use \"std/relative_bias.spec\" as relative
model M {
    size batch = 1, seq = 150, pos = 150, heads = 4, buckets = 32
    input w[batch, seq, pos]
    bias = BIAS
    l[batch, heads, seq, pos] = bias * w
    loss mean[batch, heads, seq, pos](l)
}
";

/// The bucket of a distance as T5's published code has it (`_relative_position_bucket` of mesh_tensorflow, not bidirectional).
fn bucket(distance: i64) -> usize {
    let (buckets, far) = (32i64, 128.0f64);
    let n = distance.max(0);
    let exact = buckets / 2;
    if n < exact {
        return n as usize;
    }
    let grown = (n as f64 / exact as f64).ln() / (far / exact as f64).ln() * (buckets - exact) as f64;
    (exact + grown as i64).min(buckets - 1) as usize
}

#[test]
fn relative_bias_has_the_buckets_of_t5() {
    let text = RELATIVE.replace("BIAS", "relative.Buckets[buckets, heads, seq, pos]@bias()");
    let graph = with_gradients(graph_of_spec(&text));
    let mut environment = sample_environment(&graph, 8);
    // One place at a time would be slow: numbers whose sums tell the places apart.
    let weights: Vec<f64> = (0..150 * 150).map(|i| f64::from(i * 7919 % 22501)).collect();
    let ty = environment.inputs["w"].ty.clone();
    environment.inputs.insert("w".into(), Tensor::floats(ty, weights.clone()));
    let outputs = interpret::run(&graph, &environment, Mode::F64).unwrap();
    let found = outputs.report("grad.bias.table").unwrap().as_floats().to_vec();
    let mut want = vec![0.0; 32];
    for query in 0..150usize {
        for key in 0..150usize {
            want[bucket(query as i64 - key as i64)] += weights[query * 150 + key];
        }
    }
    let per_head: Vec<f64> = want.iter().flat_map(|x| [*x; 4]).collect();
    assert_eq!(found, per_head);
    assert!(want.iter().all(|x| *x > 0.0), "every bucket is met");
}

#[test]
fn linear_bias_has_the_slopes_of_alibi() {
    let graph = graph_of_spec(
        &RELATIVE.replace("BIAS", "relative.Linear[heads, seq, pos]@bias()").replace(", buckets = 32", ""),
    );
    let environment = sample_environment(&graph, 8);
    let found = interpret::run(&graph, &environment, Mode::F64).unwrap().report("loss_sum").unwrap().item();
    let weights = environment.inputs["w"].as_floats();
    let mut want = 0.0;
    for slope in [0.25, 0.0625, 0.015625, 0.00390625] {
        for query in 0..150usize {
            for key in 0..query {
                want -= slope * (query - key) as f64 * weights[query * 150 + key];
            }
        }
    }
    assert!((found - want).abs() < 1e-9 * want.abs(), "{found}, not {want}");
}

#[test]
fn attend_with_relative_positions_trains() {
    for bias in
        ["relative.Buckets[near, heads, seq, pos]@bias(far = 4)", "relative.Linear[heads, seq, pos]@bias()"]
    {
        let text = format!(
            "spec 1
use \"std/relative_bias.spec\" as relative
model M {{
    size batch = 2, seq = 7, d = 4, heads = 2, hd = 3, near = 4
    input x[batch, seq, d]
    param wq[d -> heads, hd], wk[d -> heads, hd], wv[d -> heads, hd], table[near] = normal(0.5)
    k = dot[d](x, wk) as [seq: pos]
    v = dot[d](x, wv) as [seq: pos]
    bias = {bias}
    o = std.Attend[seq, pos, hd](dot[d](x, wq), k, v, causal = true, scale = 1, bias = bias)
    loss mean[batch, seq, heads, hd](o * o)
}}
"
        );
        let graph = graph_of_spec(&text);
        assert!(print(&graph).contains("attention query seq key pos causal over hd"));
        trains(&graph);
    }
}

#[test]
fn attend_bounds_what_its_options_bound() {
    let bound = |options: &str| {
        let call = format!("o = std.Attend[seq, pos, hd](q, k, v, {options})\nunused = window");
        let text = print(&forward(&call, ""));
        let (_, rest) = text.split_once("attention query seq key pos ").unwrap_or_else(|| panic!("{text}"));
        rest.split(' ').next().unwrap_or_default().to_owned()
    };
    assert_eq!(bound("causal = false"), "full");
    assert_eq!(bound("causal = true"), "causal");
    assert_eq!(bound("causal = true, window = 3"), "window=3");
    assert_eq!(bound("causal = true, window = none, soft_cap = none"), "causal");
    // Keys after the query stay.
    assert_eq!(bound("window = 3"), "full");
    assert_eq!(bound("causal = true, window = window"), "causal");
}
