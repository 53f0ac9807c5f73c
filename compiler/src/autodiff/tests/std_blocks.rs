//! Every block of `specs/std/`: its value against the formula in its heading, written out here in plain loops, and its
//! gradient against central differences.

use super::check_graph;
use super::gradient::environment;
use crate::graph::Graph;
use crate::graph::from_spec::{Entry, from_spec};
use crate::interpret::{Environment, Mode, run};
use crate::spec::{MemoryLoader, SourceMap, check, diagnostic};

/// Sizes every test model declares.
const SIZES: [(&str, usize); 15] = [
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
];

fn size(name: &str) -> usize {
    SIZES.iter().find(|(n, _)| *n == name).map_or(1, |(_, size)| *size)
}

/// `Σ y·w` of a block's result y over `axes`, with an input w of the same axes; x, if used, is a parameter.
fn model(call: &str, axes: &str) -> Graph {
    let files =
        ["attention", "feed_forward", "head", "norm", "position"].map(|f| format!("use \"std/{f}.spec\"\n"));
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

/// Compares the block's `Σ y·w` with that of `formula(values, batch, seq)`, which gives the row of y at a position, and checks
/// the gradient by every parameter.
///
/// Both sides compute in f64 over a few hundred terms below ten, so they differ by less than 1e-12.
fn check_block(call: &str, axes: &str, formula: impl Fn(&Values, usize, usize) -> Vec<f64>) {
    let graph = model(call, axes);
    let environment = environment(&graph, 3);
    let found = run(&graph, &environment, Mode::F64).unwrap().report("loss_sum").unwrap().item();
    let values = Values(environment);
    let w = values.of("w");
    let mut expected = 0.0;
    for b in 0..size("batch") {
        for s in 0..size("seq") {
            let row = formula(&values, b, s);
            let first = (b * size("seq") + s) * row.len();
            expected += row.iter().zip(&w.values[first..]).map(|(y, w)| y * w).sum::<f64>();
        }
    }
    assert!((found - expected).abs() < 1e-12, "{call}: {found}, by its formula {expected}");
    check_graph(graph);
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
