//! Models trained on meshes of ranks in one process: the losses are those of one rank, to the rounding of sums.
//!
//! **The bound.** A sum of n terms in f32, in any order, is off by at most γₙ = n·u/(1 − n·u) of the sum of their magnitudes, with
//! u = 2⁻²⁴ (Higham 2002, *Accuracy and Stability of Numerical Algorithms*, §4.2). Ranks cut a sum of n terms into p of n/p and
//! add those up: chains of n/p + p additions instead of n, so that the bound of a mesh is no larger than one rank's, and what
//! a mesh adds is another rounding of the same size. How far twenty steps carry it no bound made beforehand says usefully: AdamW
//! divides by the root of the second moment, so that where a gradient is nearly nothing its rounding alone decides a step. So the
//! carrying is measured, on one rank: in microbatches of 1, 4 and 8 sequences it adds the same terms of every gradient in other
//! orders, with attention, norms and loss taken apart it adds those of their sums so, and the distance between such runs
//! ([`Yardstick`]) is a sample of what rounding has come to after so many steps. A mesh cuts more sums than those over the batch: in a layer that of the product that ends attention, that of the one that ends the
//! feed-forward part, and those of the two that give the gradients of their inputs; with the vocabulary split, the lookup's and the
//! loss's. Those are [`CUTS`] kinds at most where the yardstick has one. Their roundings are independent, so their variances add up
//! and the distance grows with the root; [`DEVIATIONS`] such distances are allowed. A gradient that misses a term, or counts one
//! twice, is off in the first digits after one step, a thousand times farther.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use mlc_tests::harness::{Scratch, build_file, learnable_text, loss_bits, root, steps, succeed, train};

/// Kinds of sums that a mesh cuts, at most: over the batch, four in a layer, two over the vocabulary.
const CUTS: f64 = 7.0;
/// How many standard deviations a run on a mesh may be off.
const DEVIATIONS: f64 = 3.0;
/// What printing a loss in f32 rounds, relative to it, at most.
const UNIT: f64 = 1.0 / 16_777_216.0;

/// What rounding comes to in a model's run, see the top.
struct Yardstick {
    /// The losses of one rank.
    losses: Vec<f64>,
    /// For each step, how far apart one rank's runs have been up to it, relative to the loss.
    spread: Vec<f64>,
}

/// Runs of one rank that add in other orders: sequences in a microbatch, and more overrides.
type Orders = [(u64, &'static [&'static str])];
const REFERENCE: &[&str] =
    &["lower.attention=reference", "lower.rms_norm=reference", "lower.loss_head=reference"];
const DENSE: &Orders = &[(1, &[]), (8, &[]), (4, REFERENCE)];
/// Experts' capacity and balance are those of a microbatch, so that one of another size is another run.
const MIXTURES: &Orders =
    &[(4, REFERENCE), (4, &["lower.attention=reference"]), (4, &["lower.loss_head=reference"])];

impl Yardstick {
    fn of(test: &str, model: &str, sets: &[&str], orders: &Orders) -> Yardstick {
        let mut runs = vec![losses(test, model, None, sets)];
        for (microbatch, more) in orders {
            runs.push(losses_cut(test, model, None, &[sets, more].concat(), *microbatch));
        }
        let mut spread = Vec::new();
        let mut widest: f64 = 0.0;
        for (step, loss) in runs[0].iter().enumerate() {
            let low = runs.iter().fold(f64::INFINITY, |m, run| m.min(run[step]));
            let high = runs.iter().fold(0.0, |m: f64, run| m.max(run[step]));
            widest = widest.max((high - low) / loss);
            spread.push(widest);
        }
        let losses = runs.swap_remove(0);
        println!("{test}: runs of one rank are {widest:.1e} apart at most");
        assert!(widest < 1e-5, "{test}: more than rounding: {spread:?}");
        Yardstick { losses, spread }
    }

    /// What a run on a mesh may be off at a step, relative.
    fn allowed(&self, step: usize) -> f64 {
        DEVIATIONS * CUTS.sqrt() * self.spread[step].max(UNIT)
    }

    /// Compares a run on a mesh; says how far it is off at most, of the loss and of what is allowed.
    fn compare(&self, what: &str, got: &[f64]) {
        assert_eq!(got.len(), self.losses.len(), "{what}");
        let off = relative(got, &self.losses);
        let worst = off.iter().fold(0.0, |m: f64, x| m.max(*x));
        let share = off.iter().enumerate().map(|(step, off)| off / self.allowed(step)).fold(0.0, f64::max);
        println!("{what}: off by {worst:.1e} at most, {share:.2} of what is allowed");
        assert!(share <= 1.0, "{what}: {off:?}\n{:?}\n{:?}\n{got:?}", self.spread, self.losses);
    }
}

/// Distance of losses from what they should be, relative.
fn relative(got: &[f64], losses: &[f64]) -> Vec<f64> {
    losses.iter().zip(got).map(|(a, b)| (a - b).abs() / a.abs()).collect()
}

/// One layout.
struct Layout {
    name: &'static str,
    mesh: &'static str,
    ranks: u64,
    /// Separated by semicolons.
    rules: &'static str,
    store: &'static str,
    /// Sequences per data shard and microbatch; 8 sequences a step.
    microbatch: u64,
}

const fn layout(
    name: &'static str,
    mesh: &'static str,
    ranks: u64,
    rules: &'static str,
    microbatch: u64,
) -> Layout {
    Layout { name, mesh, ranks, rules, store: "", microbatch }
}

fn spec(model: &str, layout: Option<&Layout>, microbatch: u64) -> String {
    let mut text = format!("spec 1\n{}\n", model.replace("SPECS", &root().join("specs").to_string_lossy()));
    if let Some(l) = layout {
        let _ = writeln!(
            text,
            "mesh {{ {} }}\nshard {{\n{}\n}}\n{}",
            l.mesh,
            l.rules.replace("; ", "\n"),
            l.store
        );
    }
    let _ = writeln!(
        text,
        "train {{ steps = 20, batch = 8 sequences, microbatch = {microbatch}, seq = 32, seed = 1, data = synthetic\n\
         optimizer = adamw {{ lr = 3e-3, decay = 0.1, clip = 1.0 }} }}"
    );
    text
}

/// The binary and its text, in a folder of their own.
fn built(test: &str, model: &str, layout: Option<&Layout>, sets: &[&str]) -> (Scratch, PathBuf, PathBuf) {
    built_cut(test, model, layout, sets, layout.map_or(4, |l| l.microbatch))
}

fn built_cut(
    test: &str,
    model: &str,
    layout: Option<&Layout>,
    sets: &[&str],
    microbatch: u64,
) -> (Scratch, PathBuf, PathBuf) {
    let folder = Scratch::new(test);
    let (file, binary, text) = (folder.join("run.spec"), folder.join("run"), folder.join("text"));
    std::fs::write(&file, spec(model, layout, microbatch)).expect("the temporary folder is writable");
    std::fs::write(&text, learnable_text(40_000)).expect("the temporary folder is writable");
    build_file(&file, &binary, sets);
    (folder, binary, text)
}

/// Builds and trains; losses of all steps.
fn losses(test: &str, model: &str, layout: Option<&Layout>, sets: &[&str]) -> Vec<f64> {
    losses_cut(test, model, layout, sets, layout.map_or(4, |l| l.microbatch))
}

fn losses_cut(test: &str, model: &str, layout: Option<&Layout>, sets: &[&str], microbatch: u64) -> Vec<f64> {
    let (folder, binary, text) = built_cut(test, model, layout, sets, microbatch);
    let ranks = layout.map_or(1, |l| l.ranks).to_string();
    let arguments = ["--ranks", &ranks, "--checkpoint-every", "never", "--data"];
    succeed(train(&binary, folder.path(), &arguments).arg(&text));
    steps(&folder.join("metrics.jsonl")).into_iter().map(|s| s.loss).collect()
}

fn agree(test: &str, model: &str, sets: &[&str], yardstick: &Yardstick, layouts: &[Layout]) {
    let expected = &yardstick.losses;
    assert!(expected.len() == 20 && expected[19] < 0.97 * expected[0], "{expected:?}");
    for layout in layouts {
        let what = format!("{test} {}, {} ranks", layout.name, layout.ranks);
        yardstick.compare(&what, &losses(test, model, Some(layout), sets));
    }
}

const LLAMA: &str = r#"use "SPECS/llama.spec" as Llama with {
    vocab = 256, d = 48, ff = 120, layers = 2, kv = 2, group = 2, hd = 12, theta = 1e4 }"#;
/// Shared by the tests.
static LLAMAS: LazyLock<Yardstick> = LazyLock::new(|| Yardstick::of("llama", LLAMA, &[], DENSE));

#[test]
fn llama_learns_the_same_on_every_mesh() {
    let whole = "store { params = whole, grads = whole }";
    let tensor = "kv, ff, vocab -> tensor";
    let sequence = "kv, ff, vocab -> tensor; role residual: seq -> tensor";
    let data = layout("data", "data = 4", 4, "batch -> data; params \"**\": d -> none", 1);
    let zero1 = layout("zero-1", "data = 4", 4, "batch -> data; params \"**\": d -> data", 1);
    let both = "batch -> data, fsdp; params \"**\": d -> fsdp";
    let all = "batch -> data, fsdp; kv, ff, vocab -> tensor; role residual: seq -> tensor; params \"**\": d -> fsdp";
    agree(
        "llama",
        LLAMA,
        &[],
        &LLAMAS,
        &[
            data,
            Layout { store: whole, ..zero1 },
            Layout {
                store: "store { regather = forward }",
                ..layout(
                    "fully sharded, kept gathered",
                    "fsdp = 4",
                    4,
                    "batch -> fsdp; params \"**\": d -> fsdp",
                    1,
                )
            },
            layout("fully sharded over three", "fsdp = 3", 3, "batch -> none; params \"**\": d -> fsdp", 4),
            Layout {
                store: "store { grads = whole }",
                ..layout("hybrid, gradients summed once", "data = 2 over nodes, fsdp = 2", 4, both, 1)
            },
            layout("tensor", "tensor = 2", 2, tensor, 4),
            layout("tensor and sequence", "tensor = 2", 2, sequence, 4),
            layout(
                "more ranks than key heads",
                "tensor = 4",
                4,
                "(kv group) -> tensor; ff, vocab -> tensor; role residual: seq -> tensor",
                4,
            ),
            layout("fully sharded, tensor, sequence", "data = 2, fsdp = 2, tensor = 2", 8, all, 1),
        ],
    );
}

/// Every term is off by 2⁻⁹ of itself at most, so a gradient by 2⁻⁹ of the sum of the sizes of its terms, and an activation, whose
/// sums over `tensor` travel so too, likewise. AdamW takes steps of the same size whatever a gradient's is; what is left in
/// twenty steps is allowed to be 2⁻⁷ of the loss.
#[test]
fn llama_learns_nearly_the_same_with_sums_in_bf16_on_the_wire() {
    let rules =
        "batch -> fsdp; kv, ff, vocab -> tensor; role residual: seq -> tensor; params \"**\": d -> fsdp";
    let layout = layout("fully sharded, tensor, sequence", "fsdp = 2, tensor = 2", 4, rules, 2);
    let got = losses("wire", LLAMA, Some(&layout), &["train.precision.reduce=bf16"]);
    let worst = relative(&got, &LLAMAS.losses).into_iter().fold(0.0, f64::max);
    println!("terms in bf16: losses off by {worst:.1e} at most");
    assert!(got.len() == 20 && worst <= 1.0 / 128.0, "{worst:e}\n{got:?}");
    assert!(worst > 10.0 * LLAMAS.spread[19], "nothing was rounded: {worst:e}");
}

const GPT: &str = r#"use "SPECS/gpt.spec" as Gpt with {
    vocab = 257, positions = 32, d = 48, ff = 96, layers = 2, heads = 3, hd = 16 }"#;

#[test]
fn gpt_learns_the_same_on_every_mesh() {
    agree(
        "gpt",
        GPT,
        &[],
        &Yardstick::of("gpt", GPT, &[], DENSE),
        &[
            layout("tensor over three", "tensor = 3", 3, "heads, ff -> tensor; params \"**\": d -> none", 4),
            layout("fully sharded", "fsdp = 4", 4, "batch -> fsdp; params \"**\": d -> fsdp", 2),
            layout("an odd vocabulary", "tensor = 2", 2, "vocab, ff -> tensor; params \"**\": d -> none", 4),
            layout(
                "tensor and data",
                "data = 2, tensor = 3",
                6,
                "batch -> data; heads, ff -> tensor; params \"**\": d -> data",
                2,
            ),
        ],
    );
}

/// No number of ranks divides the vocabulary of GPT-2: the last rank has rows of padding.
#[test]
fn gpt_with_a_vocabulary_of_50257_learns_the_same_on_two_and_three_ranks() {
    let model = GPT.replace("vocab = 257", "vocab = 50257").replace("layers = 2", "layers = 1");
    let rules = "vocab, ff -> tensor; params \"**\": d -> none";
    agree(
        "gpt-50257",
        &model,
        &[],
        &Yardstick::of("gpt-50257", &model, &[], DENSE),
        &[
            layout("50,257 over two", "tensor = 2", 2, rules, 4),
            layout("50,257 over three", "tensor = 3", 3, rules, 4),
        ],
    );
}

/// A choice of experts that is nearly a tie may fall the other way after another rounding, and then losses part for good. With
/// this step none does, in these runs.
const GENTLE: &[&str] = &["train.optimizer.lr=2e-4"];
const GLAM: &str = r#"use "SPECS/glam.spec" as Glam with {
    vocab = 256, d = 32, ff = 48, pairs = 1, head = 4, hd = 8, expert = 8, bucket = 8, reach = 24 }"#;
const MIXTRAL: &str = r#"use "SPECS/mixtral.spec" as Mixtral with {
    vocab = 256, d = 32, ff = 48, layers = 2, kv = 2, group = 2, hd = 8, expert = 4, theta = 1e4 }"#;

#[test]
fn mixtures_of_experts_learn_the_same_on_every_mesh() {
    agree(
        "glam",
        GLAM,
        GENTLE,
        &Yardstick::of("glam", GLAM, GENTLE, MIXTURES),
        &[
            layout("experts", "ep = 4", 4, "batch -> ep; expert -> ep", 1),
            layout(
                "experts, data and tensor",
                "data = 2, ep = 2, tensor = 2",
                8,
                "batch -> data, ep; expert -> ep; head, ff -> tensor; params \"**.attn*.w*\": d -> data",
                1,
            ),
        ],
    );
    agree(
        "mixtral",
        MIXTRAL,
        GENTLE,
        &Yardstick::of("mixtral", MIXTRAL, GENTLE, MIXTURES),
        &[
            layout("experts", "ep = 2", 2, "batch -> ep; expert -> ep", 2),
            layout(
                "fully sharded and tensor",
                "fsdp = 2, tensor = 2",
                4,
                "batch -> fsdp; kv, ff -> tensor; params \"**\": d -> fsdp",
                2,
            ),
        ],
    );
}

/// Processes over either library exchange messages where threads read each other's memory; the bits are the same.
#[test]
fn processes_under_mpirun_give_the_bits_of_ranks_in_one_process() {
    let all =
        "batch -> fsdp; kv, ff, vocab -> tensor; role residual: seq -> tensor; params \"**\": d -> fsdp";
    let layouts = [
        layout("data", "data = 2", 2, "batch -> data; params \"**\": d -> none", 2),
        layout("fully sharded over three", "fsdp = 3", 3, "batch -> none; params \"**\": d -> fsdp", 4),
        layout("fully sharded, tensor, sequence", "fsdp = 2, tensor = 2", 4, all, 2),
    ];
    for layout in &layouts {
        let (folder, binary, text) = built("mpi", LLAMA, Some(layout), &[]);
        let ranks = layout.ranks.to_string();
        let run = |name: &str, mut command: Command| {
            let out = folder.join(name);
            let options = ["--checkpoint-every", "never", "--steps", "5", "--data"];
            succeed(command.args(["train", "--out"]).arg(&out).args(options).arg(&text));
            loss_bits(&out.join("metrics.jsonl"))
        };
        let threads = {
            let out = folder.join("threads");
            let options = ["--ranks", &ranks, "--checkpoint-every", "never", "--steps", "5"];
            succeed(train(&binary, &out, &options).arg("--data").arg(&text));
            loss_bits(&out.join("metrics.jsonl"))
        };
        assert_eq!(threads.len(), 5);
        for (library, options) in [("openmpi", &["--oversubscribe"][..]), ("mpich", &[])] {
            let mut command = Command::new(format!("mpirun.{library}"));
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            command.args(options).args(["-n", &ranks]).arg(&binary);
            assert_eq!(run(library, command), threads, "{library}, {}", layout.name);
        }
    }
}

/// A checkpoint is of the model and not of the mesh.
#[test]
fn a_run_moves_from_mesh_to_mesh() {
    let all =
        "batch -> fsdp; kv, ff, vocab -> tensor; role residual: seq -> tensor; params \"**\": d -> fsdp";
    let layouts = [
        None,
        Some(layout("data", "data = 4", 4, "batch -> data; params \"**\": d -> data", 1)),
        Some(layout("all", "fsdp = 2, tensor = 2", 4, all, 2)),
        Some(layout("three", "fsdp = 3", 3, "batch -> none; params \"**\": d -> fsdp", 4)),
        None,
    ];
    let run = Scratch::new("moves");
    for (layout, end) in layouts.iter().zip([4, 8, 12, 16, 20]) {
        let (_folder, binary, text) = built("moves-binary", LLAMA, layout.as_ref(), &[]);
        let ranks = layout.as_ref().map_or(1, |l| l.ranks).to_string();
        let end = end.to_string();
        succeed(train(&binary, run.path(), &["--ranks", &ranks, "--steps", &end]).arg("--data").arg(&text));
    }
    let got: Vec<f64> = steps(&run.join("metrics.jsonl")).into_iter().map(|s| s.loss).collect();
    LLAMAS.compare("moves", &got);
}
