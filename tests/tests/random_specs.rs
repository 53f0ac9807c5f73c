//! Random small decoders, from text to trained parameters: what must not change the numbers does not.
//! `MLC_FUZZ_SPECS` and `MLC_FUZZ_SEED` choose the seeds.

use mlc::autodiff::config::{Microbatch, TrainConfig};
use mlc::autodiff::from_spec::train_config;
use mlc::autodiff::training_step;
use mlc::graph::Graph;
use mlc::graph::from_spec::{Entry, from_spec};
use mlc::graph::recognise::recognise;
use mlc::interpret::{Mode, Outputs, run};
use mlc::spec::checked::Spec;
use mlc::spec::{MemoryLoader, SourceMap, check, diagnostic};
use mlc_tests::harness::{Scratch, build_file, loss_bits, succeed, train};
use mlc_tests::programs::{checked, far_off, start};
use mlc_tests::random_spec::{RandomSpec, random_spec};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let first = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_SPECS", default)
}

/// Runs a property on every seed; the first failure is shown with its spec and how to run it alone.
fn for_all(property: &str, default: u64, holds: impl Fn(&RandomSpec) -> Result<(), String>) {
    for seed in seeds(default) {
        let spec = random_spec(seed);
        if let Err(why) = holds(&spec) {
            let again = format!(
                "MLC_FUZZ_SEED={seed} MLC_FUZZ_SPECS=1 cargo test -p mlc-tests --test random_specs {property}"
            );
            panic!("{why}\n--- the spec of seed {seed}:\n{}\n--- again: {again}", spec.text);
        }
    }
}

fn parsed(text: &str) -> Result<(Spec, SourceMap), String> {
    let loader = MemoryLoader { files: vec![("random.spec".into(), text.into())] };
    let mut sources = SourceMap::new();
    match check(&mut sources, &loader, "random.spec", &[]) {
        Ok((spec, _)) => Ok((spec, sources)),
        Err(errors) => Err(diagnostic::render_all(&errors, &sources, false)),
    }
}

/// The training graph, with composites recognised or as they are written.
fn graph(spec: &RandomSpec, microbatch: Option<u64>, recognised: bool) -> Result<Graph, String> {
    let (checked, sources) = parsed(&spec.text)?;
    let run = checked.train.as_ref().ok_or("no run")?;
    let forward = from_spec(&checked.model, Entry::Train, run.batch, &sources)
        .map_err(|errors| diagnostic::render_all(&errors, &sources, false))?;
    let forward = if recognised { recognise(forward, &[]) } else { forward };
    let cut = microbatch.map(|size| Microbatch { axis: "batch".into(), size });
    let config = TrainConfig { microbatch: cut, ..train_config(&checked.model, run) };
    training_step(forward, &config).map_err(|e| e.to_string())
}

/// One step in f64, from the same values.
fn step(graph: &Graph) -> Result<Outputs, String> {
    run(graph, &start(graph), Mode::F64).map_err(|e| e.to_string())
}

#[test]
fn accumulated_is_the_big_batch() {
    for_all("accumulated_is_the_big_batch", 40, |spec| {
        let whole = step(&graph(spec, None, true)?)?;
        let cut = step(&graph(spec, Some(spec.microbatch), true)?)?;
        // Both sum the same terms in another order, in f64.
        far_off(&whole, &cut, 1e-11)
            .map_or(Ok(()), |off| Err(format!("in microbatches of {}: {off}", spec.microbatch)))
    });
}

#[test]
fn recognised_is_what_is_written() {
    for_all("recognised_is_what_is_written", 40, |spec| {
        let written = step(&graph(spec, None, false)?)?;
        let recognised = step(&graph(spec, None, true)?)?;
        far_off(&written, &recognised, 1e-10).map_or(Ok(()), Err)
    });
}

#[test]
fn programs_compute_what_specs_mean() {
    for_all("programs_compute_what_specs_mean", 12, |spec| {
        let cut = (spec.layers % 2 == 0).then_some(spec.microbatch);
        checked(&graph(spec, cut, true)?).map(|_| ())
    });
}

#[test]
fn resumed_is_uninterrupted() {
    for_all("resumed_is_uninterrupted", 2, |spec| {
        let folder = Scratch::new("resumed");
        let (file, binary) = (folder.join("random.spec"), folder.join("random"));
        let checkpoints =
            spec.text.replace("    data = ", "    checkpoint = { every = 2, keep = 9 }\n    data = ");
        std::fs::write(&file, checkpoints).map_err(|e| e.to_string())?;
        build_file(&file, &binary, &[]);
        let (whole, halves) = (folder.join("whole"), folder.join("halves"));
        succeed(&mut train(&binary, &whole, &[]));
        succeed(&mut train(&binary, &halves, &["--steps", "3"]));
        succeed(&mut train(&binary, &halves, &["--threads", "1"]));
        let (whole, halves) =
            (loss_bits(&whole.join("metrics.jsonl")), loss_bits(&halves.join("metrics.jsonl")));
        if whole == halves { Ok(()) } else { Err(format!("{whole:?}\n{halves:?}")) }
    });
}
