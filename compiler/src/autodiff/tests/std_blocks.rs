//! Every block of `specs/std/`: its value against the formula in its heading, written out here in plain loops, and its
//! gradient against central differences.

use super::check_graph;
use super::gradient::environment;
use crate::graph::Graph;
use crate::graph::from_spec::{Entry, from_spec};
use crate::interpret::{Environment, Mode, run};
use crate::spec::library::FILES;
use crate::spec::{MemoryLoader, SourceMap, check, diagnostic};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Sizes every test model declares.
const SIZES: [(&str, usize); 19] = [
    ("batch", 2),
    ("seq", 3),
    ("d", 4),
    ("ff", 5),
    ("heads", 2),
    ("kv", 2),
    ("group", 2),
    ("hd", 4),
    ("q_rank", 3),
    ("kv_rank", 5),
    ("nope", 3),
    ("rot", 2),
    ("rest", 2),
    ("hv", 3),
    ("vocab", 7),
    ("expert", 4),
    ("wide", 3),
    ("buckets", 4),
    ("pos", 3),
];

fn size(name: &str) -> usize {
    SIZES.iter().find(|(n, _)| *n == name).map_or(1, |(_, size)| *size)
}

/// `Σ y·w` of a block's result y over `axes`, with an input w of the same axes; x, if used, is a parameter.
fn model(call: &str, axes: &str) -> Graph {
    let files: Vec<String> = FILES.iter().map(|(path, ..)| format!("use \"{path}\"\n")).collect();
    let words: Vec<&str> =
        call.split(|c: char| !(c.is_alphanumeric() || c == '_')).chain(axes.split(", ")).collect();
    let sizes = SIZES.iter().filter(|(name, _)| words.contains(name));
    let sizes: Vec<String> = sizes.map(|(name, size)| format!("{name} = {size}")).collect();
    let x = if words.contains(&"x") { format!("param x[{axes}] = uniform(-1, 1)\n") } else { String::new() };
    let ids = if words.contains(&"ids") { "input ids: ids<vocab>[batch, seq]\n" } else { "" };
    let text = format!(
        "spec 1\n{}model M {{\nsize {}\ninput w[{axes}]\n{ids}{x}y[{axes}] = {call}\nloss mean[{axes}](y * w)\n}}\n",
        files.concat(),
        sizes.join(", ")
    );
    let mut sources = SourceMap::new();
    let loader = MemoryLoader { files: vec![("m.spec".into(), text)] };
    let (spec, _) = check(&mut sources, &loader, "m.spec", &[])
        .unwrap_or_else(|errors| panic!("{}", diagnostic::render_all(&errors, &sources, false)));
    let batch = size("batch") as u64;
    from_spec(&spec.model, Entry::Train, batch, &sources).expect("the block builds")
}

/// A tensor by name, read by its indices in declared order.
struct Read<'e> {
    values: &'e [f64],
    sizes: Vec<usize>,
}

impl Read<'_> {
    fn at<const N: usize>(&self, index: [usize; N]) -> f64 {
        assert_eq!(self.sizes.len(), N);
        self.values[index.iter().zip(&self.sizes).fold(0, |at, (i, n)| at * n + i)]
    }
}

struct Values(Environment);

impl Values {
    fn of(&self, name: &str) -> Read<'_> {
        let tensors = [&self.0.tensors, &self.0.inputs];
        let found = tensors.into_iter().find_map(|t| t.iter().find(|(n, _)| n.as_str() == name));
        let (_, tensor) = found.unwrap_or_else(|| panic!("no tensor `{name}`"));
        Read { values: tensor.as_floats(), sizes: tensor.ty.axes.iter().map(|a| a.size as usize).collect() }
    }

    fn id(&self, batch: usize, seq: usize) -> usize {
        let ids = self.0.inputs.iter().find(|(n, _)| n.as_str() == "ids").expect("the model has ids").1;
        ids.as_ints()[batch * size("seq") + seq] as usize
    }
}

thread_local! {
    /// Blocks that were compared on this thread.
    static COMPARED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// As [`check_whole`], of a block whose result has a row at each position: `formula(values, batch, seq)` gives it.
fn check_block(call: &str, axes: &str, formula: impl Fn(&Values, usize, usize) -> Vec<f64>) {
    check_whole(call, axes, |v| (every_row(v, &formula), 0.0));
}

/// The rows at all positions, one behind the other.
fn every_row(v: &Values, formula: impl Fn(&Values, usize, usize) -> Vec<f64>) -> Vec<f64> {
    let positions = (0..size("batch")).flat_map(|b| (0..size("seq")).map(move |s| (b, s)));
    positions.flat_map(|(b, s)| formula(v, b, s)).collect()
}

/// Compares the block's `Σ y·w`, and the sum of its auxiliary losses times the number of elements of y, with those of
/// `formula(values)`, which gives y and the auxiliary losses, and checks the gradient by every parameter.
///
/// Both sides compute in f64 over a few hundred terms below ten, so they differ by less than 1e-12.
fn check_whole(call: &str, axes: &str, formula: impl Fn(&Values) -> (Vec<f64>, f64)) {
    let graph = model(call, axes);
    let environment = environment(&graph, 3);
    let found = run(&graph, &environment, Mode::F64).unwrap().report("loss_sum").unwrap().item();
    let values = Values(environment);
    let w = values.of("w");
    let (y, aux) = formula(&values);
    assert_eq!(y.len(), w.values.len(), "{call}");
    let expected = y.iter().zip(w.values).map(|(y, w)| y * w).sum::<f64>() + y.len() as f64 * aux;
    assert!((found - expected).abs() < 1e-12, "{call}: {found}, by its formula {expected}");
    check_graph(graph);
    let words = call.split(|c: char| !c.is_alphanumeric());
    let blocks = words.filter(|word| word.starts_with(|c: char| c.is_uppercase()));
    COMPARED.with_borrow_mut(|compared| compared.extend(blocks.map(str::to_string)));
}

/// Every test of this file. A block of `specs/std/` that none of them compares fails this one.
#[test]
fn std_blocks_are_all_compared() {
    let tests: [fn(); 10] = [
        std_norms_are_their_formulas,
        std_feed_forwards_are_their_formulas,
        std_multi_head_attention_is_its_formula,
        std_grouped_query_attention_is_its_formula,
        std_normed_query_attention_is_its_formula,
        std_latent_attention_is_its_formula,
        std_positions_are_their_formulas,
        std_heads_are_their_formulas,
        std_relative_biases_are_their_formulas,
        std_mixtures_of_experts_are_their_formulas,
    ];
    tests.iter().for_each(|test| test());
    let lines = FILES.iter().flat_map(|(.., text)| text.lines());
    let names = lines.filter_map(|line| line.strip_prefix("block ")?.split(['[', '(']).next());
    let blocks: BTreeSet<String> = names.map(str::to_string).collect();
    assert_eq!(COMPARED.take(), blocks);
}

const X: &str = "batch, seq, d";

/// Row of x at a position.
fn row(v: &Values, b: usize, s: usize) -> Vec<f64> {
    (0..size("d")).map(|i| v.of("x").at([b, s, i])).collect()
}

/// x·w of a matrix, its inputs first.
fn times(x: &[f64], w: &Read<'_>) -> Vec<f64> {
    let outputs = w.values.len() / x.len();
    (0..outputs).map(|o| x.iter().enumerate().map(|(i, x)| x * w.values[i * outputs + o]).sum()).collect()
}

fn plus(x: Vec<f64>, y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

fn rms(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(w).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn std_norms_are_their_formulas() {
    check_block("RmsNorm[d]@n(x, eps = 0.01)", X, |v, b, s| rms(&row(v, b, s), v.of("n.w").values, 0.01));
    check_block("LayerNorm[d]@n(x, eps = 0.01)", X, |v, b, s| {
        let x = row(v, b, s);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let y = x.iter().zip(v.of("n.w").values).map(|(x, w)| (x - mean) / (variance + 0.01).sqrt() * w);
        plus(y.collect(), v.of("n.b").values)
    });
}

#[test]
fn std_feed_forwards_are_their_formulas() {
    let gated = |v: &Values, b: usize, s: usize, f: &dyn Fn(f64) -> f64| {
        let x = row(v, b, s);
        let (gate, up) = (times(&x, &v.of("m.gate")), times(&x, &v.of("m.up")));
        let h: Vec<f64> = gate.iter().zip(up).map(|(g, u)| f(*g) * u).collect();
        times(&h, &v.of("m.down"))
    };
    check_block("SwiGlu[d, ff]@m(x, 1, 1)", X, |v, b, s| gated(v, b, s, &|g| g / (1.0 + (-g).exp())));
    check_block("GeGlu[d, ff]@m(x, 1, 1)", X, |v, b, s| gated(v, b, s, &gelu_tanh));
    check_block("Gelu[d, ff]@m(x, 1, 1)", X, |v, b, s| {
        let h = plus(times(&row(v, b, s), &v.of("m.up")), v.of("m.up_bias").values);
        let h: Vec<f64> = h.into_iter().map(gelu_tanh).collect();
        plus(times(&h, &v.of("m.down")), v.of("m.down_bias").values)
    });
    check_block("SquaredRelu[d, ff]@m(x, 1, 1)", X, |v, b, s| {
        let h: Vec<f64> = times(&row(v, b, s), &v.of("m.up")).iter().map(|h| h.max(0.0).powi(2)).collect();
        times(&h, &v.of("m.down"))
    });
}

/// Turns pairs of one head by the angle `position·θ^(−2j/n)`, as complex numbers times e^iφ.
fn turned(
    x: &[f64],
    position: usize,
    theta: f64,
    interleaved: bool,
    stretch: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let n = x.len();
    let mut y = vec![0.0; n];
    for j in 0..n / 2 {
        let (re, im) = if interleaved { (2 * j, 2 * j + 1) } else { (j, j + n / 2) };
        let frequency = stretch(theta.powf(-2.0 * j as f64 / n as f64));
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        y[re] = x[re] * cos - x[im] * sin;
        y[im] = x[re] * sin + x[im] * cos;
    }
    y
}

/// One head: `Σ softmax(score) · v` over the keys up to `seq` that are nearer than the window.
struct Head {
    q: Vec<f64>,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    window: usize,
    soft_cap: f64,
}

fn attend(head: &Head, s: usize) -> Vec<f64> {
    let scale = 1.0 / (head.q.len() as f64).sqrt();
    let first = (s + 1).saturating_sub(head.window);
    let score = |k: &Vec<f64>| {
        let s = head.q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * scale;
        if head.soft_cap.is_finite() { head.soft_cap * (s / head.soft_cap).tanh() } else { s }
    };
    let weights: Vec<f64> = head.keys[first..=s].iter().map(|k| score(k).exp()).collect();
    let total: f64 = weights.iter().sum();
    let n = head.values[0].len();
    let mix = |i: usize| head.values[first..=s].iter().zip(&weights).map(|(v, w)| v[i] * w / total).sum();
    (0..n).map(mix).collect()
}

/// Head `h` of a projection's row, each head `hd` long.
fn head(row: &[f64], h: usize, hd: usize) -> Vec<f64> {
    row[h * hd..(h + 1) * hd].to_vec()
}

/// All heads of one position, each sharing keys with `group − 1` others, and the projection back.
fn grouped(
    v: &Values,
    (b, s): (usize, usize),
    (window, soft_cap): (usize, f64),
    prepare: impl Fn(Vec<f64>, usize, &str) -> Vec<f64>,
) -> Vec<f64> {
    let (kv, group, hd) = (size("kv"), size("group"), size("hd"));
    let q = times(&row(v, b, s), &v.of("a.wq"));
    let projected = |name: &str| -> Vec<Vec<f64>> {
        (0..size("seq")).map(|p| times(&row(v, b, p), &v.of(name))).collect()
    };
    let (keys, values) = (projected("a.wk"), projected("a.wv"));
    let mut o = Vec::new();
    for h in 0..kv * group {
        o.extend(attend(
            &Head {
                q: prepare(head(&q, h, hd), s, "a.q_norm"),
                keys: (0..size("seq"))
                    .map(|p| prepare(head(&keys[p], h / group, hd), p, "a.k_norm"))
                    .collect(),
                values: values.iter().map(|row| head(row, h / group, hd)).collect(),
                window,
                soft_cap,
            },
            s,
        ));
    }
    times(&o, &v.of("a.wo"))
}

#[test]
fn std_multi_head_attention_is_its_formula() {
    check_block("MultiHead[seq, d, heads, hd]@a(x, 1, 1)", X, |v, b, s| {
        let (heads, hd) = (size("heads"), size("hd"));
        let project = |p: usize, w: &str, bias: &str| plus(times(&row(v, b, p), &v.of(w)), v.of(bias).values);
        let mut o = Vec::new();
        for h in 0..heads {
            o.extend(attend(
                &Head {
                    q: head(&project(s, "a.wq", "a.bq"), h, hd),
                    keys: (0..size("seq")).map(|p| head(&project(p, "a.wk", "a.bk"), h, hd)).collect(),
                    values: (0..size("seq")).map(|p| head(&project(p, "a.wv", "a.bv"), h, hd)).collect(),
                    window: usize::MAX,
                    soft_cap: f64::INFINITY,
                },
                s,
            ));
        }
        plus(times(&o, &v.of("a.wo")), v.of("a.bo").values)
    });
}

#[test]
fn std_grouped_query_attention_is_its_formula() {
    let none = (usize::MAX, f64::INFINITY);
    check_block("GroupedQuery[seq, d, kv, group, hd]@a(x, 100, std = 1, out = 1)", X, |v, b, s| {
        grouped(v, (b, s), none, |x, p, _| turned(&x, p, 100.0, false, |f| f))
    });
    check_block(
        "GroupedQuery[seq, d, kv, group, hd]@a(x, 100, std = 1, out = 1, window = 2, soft_cap = 3)",
        X,
        |v, b, s| grouped(v, (b, s), (2, 3.0), |x, p, _| turned(&x, p, 100.0, false, |f| f)),
    );
}

/// Llama 3.1's scaled rotation as its reference implementation writes it, by wavelengths and cases.
#[test]
fn std_grouped_query_attention_stretches_as_llama_3_1_does() {
    // Three kinds of frequencies: with θ = 100 and 4 elements they are 1 and 0.1, wavelengths 6.28 and 62.8.
    for original in [10.0, 20.0, 100.0, 1000.0] {
        let stretch = |f: f64| {
            let wavelength = 2.0 * std::f64::consts::PI / f;
            if wavelength < original / 4.0 {
                f
            } else if wavelength > original / 1.0 {
                f / 8.0
            } else {
                let smooth = (original / wavelength - 1.0) / (4.0 - 1.0);
                (1.0 - smooth) * f / 8.0 + smooth * f
            }
        };
        let call = format!("GroupedQuery[seq, d, kv, group, hd]@a(x, 100, 8, {original}, std = 1, out = 1)");
        check_block(&call, X, |v, b, s| {
            let none = (usize::MAX, f64::INFINITY);
            grouped(v, (b, s), none, |x, p, _| turned(&x, p, 100.0, false, stretch))
        });
    }
}

#[test]
fn std_normed_query_attention_is_its_formula() {
    check_block("NormedQuery[seq, d, kv, group, hd]@a(x, 100, 0.01, 1, 1)", X, |v, b, s| {
        grouped(v, (b, s), (usize::MAX, f64::INFINITY), |x, p, gain| {
            turned(&rms(&x, v.of(gain).values, 0.01), p, 100.0, false, |f| f)
        })
    });
}

#[test]
fn std_latent_attention_is_its_formula() {
    let call = "Latent[seq, d, heads, q_rank, kv_rank, nope, rot, hv]@a(x, 100, 0.01, 1, 1)";
    check_block(call, X, |v, b, s| {
        let (nope, rot, hv) = (size("nope"), size("rot"), size("hv"));
        let turn = |x: &[f64], p: usize| turned(x, p, 100.0, true, |f| f);
        let cq = rms(&times(&row(v, b, s), &v.of("a.q_down")), v.of("a.q_norm").values, 0.01);
        let latents: Vec<Vec<f64>> = (0..size("seq"))
            .map(|p| rms(&times(&row(v, b, p), &v.of("a.kv_down")), v.of("a.kv_norm").values, 0.01))
            .collect();
        let mut o = Vec::new();
        for h in 0..size("heads") {
            let mut q = head(&times(&cq, &v.of("a.q_up")), h, nope);
            q.extend(turn(&head(&times(&cq, &v.of("a.q_turned")), h, rot), s));
            let key = |p: usize| {
                let mut k = head(&times(&latents[p], &v.of("a.k_up")), h, nope);
                k.extend(turn(&times(&row(v, b, p), &v.of("a.k_turned")), p));
                k
            };
            o.extend(attend(
                &Head {
                    q,
                    keys: (0..size("seq")).map(key).collect(),
                    values: latents.iter().map(|c| head(&times(c, &v.of("a.v_up")), h, hv)).collect(),
                    window: usize::MAX,
                    soft_cap: f64::INFINITY,
                },
                s,
            ));
        }
        times(&o, &v.of("a.wo"))
    });
}

#[test]
fn std_positions_are_their_formulas() {
    check_block("Learned[vocab, seq, d]@p(x, 1)", X, |v, b, s| {
        let table = v.of("p.table");
        row(v, b, s).iter().enumerate().map(|(i, x)| x + table.at([s, i])).collect()
    });
    check_block("PartialRope[seq, hd, rot, rest]@p(x, 100)", "batch, seq, hd", |v, b, s| {
        let x: Vec<f64> = (0..size("hd")).map(|i| v.of("x").at([b, s, i])).collect();
        let mut y = turned(&x[..size("rot")], s, 100.0, false, |f| f);
        y.extend(&x[size("rot")..]);
        y
    });
}

#[test]
fn std_heads_are_their_formulas() {
    check_block("Embedding[vocab, d]@e(ids, 2.5, 1)", X, |v, b, s| {
        (0..size("d")).map(|i| 2.5 * v.of("e.table").at([v.id(b, s), i])).collect()
    });
    check_block("SoftCap@c(x, 0.5)", X, |v, b, s| {
        row(v, b, s).iter().map(|x| 0.5 * (x / 0.5).tanh()).collect()
    });
}

#[test]
fn std_relative_biases_are_their_formulas() {
    const SCORES: &str = "heads, seq, pos";
    let distances = || {
        let pairs = (0..size("seq")).flat_map(|s| (0..size("pos")).map(move |p| s.saturating_sub(p)));
        pairs.collect::<Vec<usize>>()
    };
    // Two buckets of one distance each, then two up to distance 5: the first begins at 2.
    check_whole("Buckets[buckets, heads, seq, pos]@r(far = 5, std = 1)", SCORES, |v| {
        let table = v.of("r.table");
        let of = |h: usize| distances().into_iter().map(move |back| (h, back));
        ((0..size("heads")).flat_map(of).map(|(h, back)| table.at([back, h])).collect(), 0.0)
    });
    // Nothing is learned in it, so the gradient is that of what it is multiplied with.
    check_whole("x * Linear[heads, seq, pos]@r()", SCORES, |v| {
        let slope = |h: usize| 2f64.powf(-8.0 * (h + 1) as f64 / size("heads") as f64);
        let of = |h: usize| distances().into_iter().map(move |back| -slope(h) * back as f64);
        ((0..size("heads")).flat_map(of).zip(v.of("x").values).map(|(bias, x)| bias * x).collect(), 0.0)
    });
}

/// What the router of a mixture says of a position.
struct Choice {
    /// Softmax of the scores.
    gates: Vec<f64>,
    /// log Σ exp of the scores.
    normaliser: f64,
    /// The largest gates, the largest first.
    experts: Vec<usize>,
}

fn choose(v: &Values, b: usize, s: usize, top: usize) -> Choice {
    let scores = times(&row(v, b, s), &v.of("e.router"));
    let total: f64 = scores.iter().map(|s| s.exp()).sum();
    let gates: Vec<f64> = scores.iter().map(|s| s.exp() / total).collect();
    let mut experts: Vec<usize> = (0..gates.len()).collect();
    experts.sort_by(|a, b| gates[*b].total_cmp(&gates[*a]));
    experts.truncate(top);
    Choice { gates, normaliser: total.ln(), experts }
}

/// n · Σ f·P over these choices: f an expert's share of what `counted` first ones chose, P its mean gate.
fn imbalance(choices: &[Choice], counted: usize) -> f64 {
    let n = size("expert");
    let tokens = choices.len() as f64;
    let of = |e: usize| {
        let chosen = choices.iter().flat_map(|c| &c.experts[..counted]).filter(|x| **x == e).count() as f64;
        let mean = choices.iter().map(|c| c.gates[e]).sum::<f64>() / tokens;
        chosen / (tokens * counted as f64) * mean
    };
    n as f64 * (0..n).map(of).sum::<f64>()
}

/// The matrix of one expert.
fn of_expert<'v>(w: &Read<'v>, e: usize) -> Read<'v> {
    let each = w.values.len() / size("expert");
    Read { values: &w.values[e * each..][..each], sizes: w.sizes[1..].to_vec() }
}

/// One expert, with a gate or without.
fn expert(v: &Values, x: &[f64], e: usize) -> Vec<f64> {
    let part = |name: &str| of_expert(&v.of(name), e);
    let up = times(x, &part("e.up"));
    let gated = v.0.tensors.keys().any(|name| name.as_str() == "e.gate");
    let hidden: Vec<f64> = if gated {
        times(x, &part("e.gate")).iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    } else {
        up.into_iter().map(gelu_tanh).collect()
    };
    times(&hidden, &part("e.down"))
}

/// Σ over a position's choices that found room of weight times expert.
fn mixed(
    v: &Values,
    b: usize,
    s: usize,
    choice: &Choice,
    normalise: bool,
    room: impl Fn(usize) -> bool,
) -> Vec<f64> {
    let total: f64 = choice.experts.iter().map(|e| choice.gates[*e]).sum();
    let mut y = vec![0.0; size("d")];
    for e in choice.experts.iter().filter(|e| room(**e)) {
        let weight = choice.gates[*e] / if normalise { total } else { 1.0 };
        y = plus(y, &expert(v, &row(v, b, s), *e).iter().map(|h| weight * h).collect::<Vec<_>>());
    }
    y
}

#[test]
fn std_mixtures_of_experts_are_their_formulas() {
    let sequence = |v: &Values, b: usize, top: usize| -> Vec<Choice> {
        (0..size("seq")).map(|s| choose(v, b, s, top)).collect()
    };
    let mean = |each: Vec<f64>| each.iter().sum::<f64>() / each.len() as f64;
    // One slot for each expert: ⌈2 · 3 · 0.5 / 4⌉. In both, first choices come before second ones.
    for (capacity, slots) in [(0.5, 1), (1.25, 2)] {
        let call = format!("Capacity[batch, seq, d, ff, expert]@e(x, 2, {capacity}, 0.3, 0.2, 1, 1)");
        check_whole(&call, X, |v| {
            let y = every_row(v, |v, b, s| {
                let choices = sequence(v, b, 2);
                let queue = |e: usize| {
                    let rank = |n: usize| choices.iter().map(move |c| c.experts[n] == e).collect::<Vec<_>>();
                    let mine = choices[s].experts.iter().position(|x| *x == e).expect("a choice");
                    let before = rank(mine)[..s].iter().filter(|is| **is).count();
                    before + if mine == 1 { rank(0).iter().filter(|is| **is).count() } else { 0 }
                };
                mixed(v, b, s, &choices[s], true, |e| queue(e) < slots)
            });
            let balance = (0..size("batch")).map(|b| imbalance(&sequence(v, b, 2), 1)).collect();
            let squares = every_row(v, |v, b, s| vec![choose(v, b, s, 2).normaliser.powi(2)]);
            (y, 0.3 * mean(balance) + 0.2 * mean(squares))
        });
    }
    check_whole("Dropless[batch, seq, d, ff, expert]@e(x, 2, 0.3, 1, 1)", X, |v| {
        let y = every_row(v, |v, b, s| mixed(v, b, s, &choose(v, b, s, 2), true, |_| true));
        let all: Vec<Choice> = (0..size("batch")).flat_map(|b| sequence(v, b, 2)).collect();
        (y, 0.3 * imbalance(&all, 2))
    });
    check_whole("Shared[batch, seq, d, ff, wide, expert]@e(x, 3, 0.3, 1, 1)", X, |v| {
        let y = every_row(v, |v, b, s| {
            let x = row(v, b, s);
            let (gate, up) = (times(&x, &v.of("e.shared_gate")), times(&x, &v.of("e.shared_up")));
            let h: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            plus(mixed(v, b, s, &choose(v, b, s, 3), false, |_| true), &times(&h, &v.of("e.shared_down")))
        });
        let balance = (0..size("batch")).map(|b| imbalance(&sequence(v, b, 3), 3)).collect();
        (y, 0.3 * mean(balance))
    });
}
