//! The inputs and the recorded results of the parity tests.
//!
//! `tests/parity/inputs.py` defines the inputs and `tests/parity/record.py` makes `recorded/*.json`; this module makes the same
//! inputs without Python and reads the records. Checksums in the tests keep the two definitions together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::numpy::Pcg64;

/// What `record.py` wrote for one model.
#[derive(Debug, Deserialize)]
pub struct Record {
    /// The model's settings, as `inputs.py` lists them.
    pub settings: Settings,
    /// One training per dtype, thread count and kernel choice.
    pub runs: Vec<Run>,
}

/// Which parameters a parity model has.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `specs/llama.spec`, and those whose layers are like its.
    #[default]
    Llama,
    /// `specs/gpt.spec`.
    Gpt,
    /// `specs/latent.spec`.
    Latent,
}

/// Sizes of one parity model; axis names as in its spec.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "each is the size of the spec's axis of that name")]
pub struct Settings {
    #[serde(default)]
    pub family: Family,
    #[serde(default)]
    pub positions: usize,
    #[serde(default)]
    pub heads: usize,
    #[serde(default)]
    pub q_rank: usize,
    #[serde(default)]
    pub kv_rank: usize,
    #[serde(default)]
    pub nope: usize,
    #[serde(default)]
    pub rot: usize,
    #[serde(default)]
    pub hv: usize,
    pub layers: usize,
    pub d: usize,
    #[serde(default)]
    pub kv: usize,
    #[serde(default)]
    pub group: usize,
    #[serde(default)]
    pub hd: usize,
    pub ff: usize,
    pub vocab: usize,
    pub seq: usize,
    pub batch: usize,
    pub records: usize,
    pub tied: bool,
    pub steps: usize,
    /// Experts; 0 is none.
    #[serde(default)]
    pub expert: usize,
    /// Buckets of relative positions; 0 is none.
    #[serde(default)]
    pub bucket: usize,
}

/// One recorded training.
#[derive(Debug, Deserialize)]
pub struct Run {
    /// `f32`, `f64`, or `bf16` for matrix products in bf16 and the rest in f32.
    pub dtype: String,
    /// The optimizer, where the record has several.
    pub optimizer: Option<String>,
    /// Threads of the process.
    pub threads: usize,
    /// Mean loss in nats before each update.
    pub loss: Vec<f64>,
    /// Gradient norm before clipping.
    pub grad_norm: Vec<f64>,
}

impl Record {
    /// Reads `tests/parity/recorded/{model}.json`.
    pub fn read(model: &str) -> Record {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/recorded").join(format!("{model}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The f64 training: what the exact arithmetic gives, to about 1e-15.
    pub fn exact(&self) -> &Run {
        self.runs.iter().find(|run| run.dtype == "f64").expect("every record holds an f64 run")
    }

    /// The training by one of several optimizers.
    pub fn by(&self, optimizer: &str, dtype: &str) -> &Run {
        let found = self.runs.iter().find(|r| r.optimizer.as_deref() == Some(optimizer) && r.dtype == dtype);
        found.unwrap_or_else(|| panic!("no {dtype} run by {optimizer} was recorded"))
    }

    /// The trainings with products in bf16, by PyTorch and by JAX.
    pub fn bf16_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.dtype == "bf16")
    }

    /// The f32 trainings, which differ in the order of their roundings alone.
    pub fn f32_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.dtype == "f32")
    }
}

/// Initial weights and training tokens.
pub struct Inputs {
    /// Logical name to (shape, row-major values), in declared axis order.
    pub weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Records of `seq + 1` ids.
    pub tokens: Vec<u16>,
}

impl Inputs {
    /// The inputs of a model of `tests/parity/inputs.py`.
    pub fn new(model: &str, settings: &Settings) -> Inputs {
        match model {
            "t1" => workload(settings, 1),
            "t2" => workload(settings, 2),
            "mla" | "gqa" | "mixtral" | "glam" | "optimizers" => gqa(settings),
            other => panic!("no parity model is called {other}"),
        }
    }

    /// Writes `{model}.safetensors` and `{model}.bin` into `dir` and returns their paths.
    pub fn write(&self, model: &str, dir: &Path) -> (PathBuf, PathBuf) {
        let (weights, tokens) = (dir.join(format!("{model}.safetensors")), dir.join(format!("{model}.bin")));
        let bytes: BTreeMap<&String, Vec<u8>> =
            self.weights.iter().map(|(name, (_, values))| (name, le_bytes(values))).collect();
        let views = self.weights.iter().map(|(name, (shape, _))| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), &bytes[name]);
            (name.clone(), view.expect("shape and values agree"))
        });
        safetensors::serialize_to_file(views, None, &weights).expect("the test folder is writable");
        let words: Vec<u8> = self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        std::fs::write(&tokens, words).expect("the test folder is writable");
        (weights, tokens)
    }

    /// blake3 over names, values and tokens, to compare with the Python definition.
    pub fn checksum(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, (_, values)) in &self.weights {
            hasher.update(name.as_bytes()).update(&le_bytes(values));
        }
        for token in &self.tokens {
            hasher.update(&token.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// `(logical name, shape)` in the order in which the weights are drawn.
fn parameters(c: &Settings) -> Vec<(String, Vec<usize>)> {
    match c.family {
        Family::Llama => llama_parameters(c),
        Family::Gpt => gpt_parameters(c),
        Family::Latent => latent_parameters(c),
    }
}

fn gpt_parameters(c: &Settings) -> Vec<(String, Vec<usize>)> {
    let (d, ff, heads) = (vec![c.d], vec![c.ff], vec![c.kv, c.hd]);
    let mut table =
        vec![("embed".to_string(), vec![c.vocab, c.d]), ("pos_embed".to_string(), vec![c.positions, c.d])];
    for i in 0..c.layers {
        let rows: [(&str, Vec<usize>); 16] = [
            ("norm1.w", d.clone()),
            ("norm1.b", d.clone()),
            ("attn.wq", [&d[..], &heads].concat()),
            ("attn.wk", [&d[..], &heads].concat()),
            ("attn.wv", [&d[..], &heads].concat()),
            ("attn.bq", heads.clone()),
            ("attn.bk", heads.clone()),
            ("attn.bv", heads.clone()),
            ("attn.wo", [&heads[..], &d].concat()),
            ("attn.bo", d.clone()),
            ("norm2.w", d.clone()),
            ("norm2.b", d.clone()),
            ("mlp.up", vec![c.d, c.ff]),
            ("mlp.up_bias", ff.clone()),
            ("mlp.down", vec![c.ff, c.d]),
            ("mlp.down_bias", d.clone()),
        ];
        table.extend(rows.map(|(name, shape)| (format!("layer.{i}.{name}"), shape)));
    }
    table.extend([("norm.w".to_string(), d.clone()), ("norm.b".to_string(), d)]);
    table
}

fn latent_parameters(c: &Settings) -> Vec<(String, Vec<usize>)> {
    let (d, heads, q, kv) = (c.d, c.heads, c.q_rank, c.kv_rank);
    let mut table = vec![("embed".to_string(), vec![c.vocab, d]), ("head".to_string(), vec![d, c.vocab])];
    for i in 0..c.layers {
        let rows: [(&str, Vec<usize>); 15] = [
            ("norm1.w", vec![d]),
            ("attn.q_down", vec![d, q]),
            ("attn.kv_down", vec![d, kv]),
            ("attn.k_turned", vec![d, c.rot]),
            ("attn.q_norm", vec![q]),
            ("attn.kv_norm", vec![kv]),
            ("attn.q_up", vec![q, heads, c.nope]),
            ("attn.q_turned", vec![q, heads, c.rot]),
            ("attn.k_up", vec![kv, heads, c.nope]),
            ("attn.v_up", vec![kv, heads, c.hv]),
            ("attn.wo", vec![heads, c.hv, d]),
            ("norm2.w", vec![d]),
            ("mlp.gate", vec![d, c.ff]),
            ("mlp.up", vec![d, c.ff]),
            ("mlp.down", vec![c.ff, d]),
        ];
        table.extend(rows.map(|(name, shape)| (format!("layer.{i}.{name}"), shape)));
    }
    table.push(("norm.w".to_string(), vec![d]));
    table
}

fn is_gain(name: &str) -> bool {
    name.ends_with(".w") || name.ends_with("_norm")
}

fn is_bias(name: &str) -> bool {
    [".b", "_bias", ".bq", ".bk", ".bv", ".bo"].iter().any(|end| name.ends_with(end))
}

fn llama_parameters(c: &Settings) -> Vec<(String, Vec<usize>)> {
    let heads = if c.group == 1 { vec![c.kv, c.hd] } else { vec![c.kv, c.group, c.hd] };
    let around = |before: &[usize], inner: &[usize], after: &[usize]| [before, inner, after].concat();
    let mut table = vec![("embed".to_string(), vec![c.vocab, c.d])];
    for i in 0..c.layers {
        if c.bucket > 0 {
            table.extend(glam_pair(c, &format!("pair.{i}")));
            continue;
        }
        let mut rows: Vec<(&str, Vec<usize>)> = vec![
            ("norm1.w", vec![c.d]),
            ("attn.wq", around(&[c.d], &heads, &[])),
            ("attn.wk", vec![c.d, c.kv, c.hd]),
            ("attn.wv", vec![c.d, c.kv, c.hd]),
            ("attn.wo", around(&[], &heads, &[c.d])),
            ("norm2.w", vec![c.d]),
        ];
        rows.extend(match c.expert {
            0 => vec![
                ("mlp.gate", vec![c.d, c.ff]),
                ("mlp.down", vec![c.ff, c.d]),
                ("mlp.up", vec![c.d, c.ff]),
            ],
            n => vec![
                ("moe.router", vec![c.d, n]),
                ("moe.gate", vec![n, c.d, c.ff]),
                ("moe.down", vec![n, c.ff, c.d]),
                ("moe.up", vec![n, c.d, c.ff]),
            ],
        });
        table.extend(rows.into_iter().map(|(name, shape)| (format!("layer.{i}.{name}"), shape)));
    }
    table.push(("norm.w".to_string(), vec![c.d]));
    if !c.tied {
        table.push(("head".to_string(), vec![c.d, c.vocab]));
    }
    table
}

/// A dense layer and one of experts.
fn glam_pair(c: &Settings, path: &str) -> Vec<(String, Vec<usize>)> {
    let mut rows = Vec::new();
    for (attn, norm) in [("attn1", "norm1.w"), ("attn2", "norm3.w")] {
        rows.push((norm.to_string(), vec![c.d]));
        rows.extend(["wq", "wk", "wv"].map(|w| (format!("{attn}.{w}"), vec![c.d, c.kv, c.hd])));
        rows.push((format!("{attn}.wo"), vec![c.kv, c.hd, c.d]));
        rows.push((format!("{attn}.rel"), vec![c.bucket, c.kv]));
    }
    let rest = [
        ("norm2.w", vec![c.d]),
        ("mlp.gate", vec![c.d, c.ff]),
        ("mlp.down", vec![c.ff, c.d]),
        ("mlp.up", vec![c.d, c.ff]),
        ("norm4.w", vec![c.d]),
        ("moe.router", vec![c.d, c.expert]),
        ("moe.down", vec![c.expert, c.ff, c.d]),
        ("moe.up", vec![c.expert, c.d, c.ff]),
    ];
    rows.extend(rest.map(|(name, shape)| (name.to_string(), shape)));
    rows.into_iter().map(|(name, shape)| (format!("{path}.{name}"), shape)).collect()
}

fn is_output_projection(name: &str) -> bool {
    name.ends_with(".wo") || name.ends_with(".down")
}

/// Normal weights and uniform tokens from one PCG64 stream; matrices are drawn as [out, in] and transposed.
fn workload(c: &Settings, seed: u32) -> Inputs {
    let mut rng = Pcg64::new(seed);
    let mut weights = BTreeMap::new();
    for (name, shape) in parameters(c) {
        let n: usize = shape.iter().product();
        let values = if is_gain(&name) {
            vec![1.0; n]
        } else if is_bias(&name) {
            vec![0.0; n]
        } else {
            let std = if is_output_projection(&name) { 0.02 / (2.0 * c.layers as f64).sqrt() } else { 0.02 };
            let drawn: Vec<f32> = (0..n).map(|_| rng.standard_normal_f32() * std as f32).collect();
            let inputs = if name.ends_with(".down") { c.ff } else { c.d };
            if name.ends_with("embed") { drawn } else { transpose(&drawn, inputs) }
        };
        weights.insert(name, (shape, values));
    }
    let tokens = (0..c.records * (c.seq + 1)).map(|_| rng.integer(c.vocab as u32) as u16).collect();
    Inputs { weights, tokens }
}

/// `[rows, columns]` row-major to `[columns, rows]`.
fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    (0..values.len()).map(|i| values[(i % rows) * columns + i / rows]).collect()
}

/// Output `n` (from 1) of SplitMix64 (Steele, Lea, Flood 2014) started at `seed`.
fn splitmix64(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Uniform weights on a dyadic grid, exact in f32 (routers and tables of relative positions larger, to matter), and tokens with two bits of surprise each.
fn gqa(c: &Settings) -> Inputs {
    let mut weights = BTreeMap::new();
    let mut drawn = 0;
    for (name, shape) in parameters(c) {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|_| {
            drawn += 1;
            let centred = (splitmix64(20, drawn) >> 40) as i64 - (1 << 23);
            let w = (centred as f64 * (2.0f64).powi(-28)) as f32;
            let is_amplified = name.ends_with(".router") || name.ends_with(".rel");
            match (is_gain(&name), is_output_projection(&name)) {
                (true, _) => 1.0 + w,
                (_, true) => 0.5 * w,
                (false, false) if is_amplified => 16.0 * w,
                (false, false) => w,
            }
        });
        let values = values.collect();
        weights.insert(name, (shape, values));
    }
    let mut tokens: Vec<u16> = Vec::with_capacity(c.records * (c.seq + 1));
    for i in 0..c.records * (c.seq + 1) {
        let draw = splitmix64(21, i as u64 + 1);
        let token = match i % (c.seq + 1) {
            0 => draw & 255,
            _ => (5 * u64::from(tokens[i - 1]) + 17 + (draw & 3)) % c.vocab as u64,
        };
        tokens.push(token as u16);
    }
    Inputs { weights, tokens }
}

/// The largest relative difference of two curves; infinite where one of the two is not a number.
///
/// # Panics
/// The curves have different lengths.
pub fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let off = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() / b.abs() };
    let worst = |most: f64, off: f64| if off.is_nan() { f64::INFINITY } else { most.max(off) };
    ours.iter().zip(theirs).map(off).fold(0.0, worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(model: &str) -> String {
        Inputs::new(model, &Record::read(model).settings).checksum()
    }

    /// The checksum is what `python3 tests/parity/inputs.py --checksum t1` prints.
    #[test]
    fn t1_inputs_are_those_of_the_python_definition() {
        assert_eq!(checksum("t1"), "36a9291e0b78cd67436637e1bd6a3d075b4259916ec4abdfe577e5fc4323c2fc");
    }

    /// The checksum is what `python3 tests/parity/inputs.py --checksum mla` prints.
    #[test]
    fn mla_inputs_are_those_of_the_python_definition() {
        assert_eq!(checksum("mla"), "d107367cbc546d8481bf22db9b4102473654fd990fcebdb1ac43fd92cebb6666");
    }

    /// The checksum is what `python3 tests/parity/inputs.py --checksum t2` prints.
    #[test]
    fn t2_inputs_are_those_of_the_python_definition() {
        assert_eq!(checksum("t2"), "7cb10b4019fec19e1941a7606213f3f6ef0e9334c317c7d460aecbdbde0ba4ec");
    }

    /// The checksum is what `python3 tests/parity/inputs.py --checksum gqa` prints.
    #[test]
    fn gqa_inputs_are_those_of_the_python_definition() {
        assert_eq!(checksum("gqa"), "a80ab86755a9fafcce080835e4939d2a5a6f6a866440ccba92f12b44d9f47da8");
    }

    #[test]
    fn a_curve_that_is_not_a_number_is_infinitely_far() {
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
        for (ours, theirs) in
            [([f64::NAN, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, f64::NAN]), ([1.0, 1.0], [1.0, 0.0])]
        {
            assert_eq!(distance(&ours, &theirs), f64::INFINITY);
        }
    }
}
