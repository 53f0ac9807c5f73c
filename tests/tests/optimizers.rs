//! Every optimizer beside an independent one (`tests/parity/record_optimizers.py`): in f64 by the interpreter, compiled in
//! f32, and stopped and resumed.

use mlc::interpret::Mode;
use mlc_tests::harness::{Scratch, build, loss_bits, steps, succeed, train};
use mlc_tests::parity::{Inputs, Record, distance};
use mlc_tests::training::Training;

const SPEC: &str = "tests/models/optimizers/optimizers.spec";

/// The optimizers of the record in the spelling of the language.
const OPTIMIZERS: [(&str, &str); 9] = [
    ("adamw", "adamw { lr = 6e-3, decay = 0.1 }"),
    ("adamw_schedule", "adamw { lr = 6e-3, decay = 0.01, decay_by = schedule }"),
    ("adam", "adamw { lr = 6e-3, decay = 0.1, decay_by = gradient }"),
    ("sgd", "sgd { lr = 6e-3, momentum = 0.9, nesterov = true, decay = 0.1, decay_by = gradient }"),
    ("lion", "lion { lr = 6e-3, betas = (0.9, 0.99), decay = 0.1 }"),
    ("adafactor", "adafactor { lr = 6e-3, decay = 0.1 }"),
    ("adafactor_moment", "adafactor { lr = 6e-3, beta1 = 0.9, scale_by_param = false }"),
    (
        "muon",
        "muon { lr = 6e-3, decay = 0.1, otherwise = adamw { lr = 2e-3 }, params \"head\" { rule = otherwise } }",
    ),
    (
        "muon_shape",
        "muon { lr = 6e-3, decay = 0.1, scale = shape, otherwise = adamw { lr = 2e-3 }, params \"head\" { rule = otherwise } }",
    ),
];

fn setting(optimizer: &str) -> String {
    let (_, text) = OPTIMIZERS.iter().find(|(name, _)| *name == optimizer).expect("listed above");
    format!("train.optimizer={text}")
}

/// Both sides round at 1e-16 and follow the same equations; 1e-9 leaves room for twenty steps to amplify that.
#[test]
fn optimizers_in_f64_are_the_recorded_ones_within_1e_9() {
    let record = Record::read("optimizers");
    let inputs = Inputs::new("optimizers", &record.settings);
    for (name, _) in OPTIMIZERS {
        let theirs = record.by(name, "f64");
        let mut training = Training::with(SPEC, &inputs, &[&setting(name)]);
        let ours: Vec<(f64, f64)> = theirs.loss.iter().map(|_| training.step(Mode::F64)).collect();
        let (losses, norms): (Vec<f64>, Vec<f64>) = ours.into_iter().unzip();
        let (loss, norm) = (distance(&losses, &theirs.loss), distance(&norms, &theirs.grad_norm));
        println!("{name}: losses within {loss:.1e}, gradient norms within {norm:.1e}");
        assert!(loss <= 1e-9 && norm <= 1e-9, "{name}: losses off by {loss:e}, norms by {norm:e}");
    }
}

/// Builds the spec with one optimizer and trains whole and in three parts. The losses are at most twice as far from f64 as
/// those of the recorded f32, the yardstick of `tests/parity/README.md`.
fn compiled(name: &str) {
    let record = Record::read("optimizers");
    let folder = Scratch::new(&format!("optimizer-{name}"));
    let (weights, tokens) = Inputs::new("optimizers", &record.settings).write("optimizers", folder.path());
    let binary = folder.join(name);
    build(SPEC, &binary, &[&setting(name)]);
    let data = format!("records:{}", tokens.display());
    let run = |out: &str, until: &str| {
        let out = folder.join(out);
        let mut command = train(&binary, &out, &["--data", &data, "--steps", until, "--threads", "2"]);
        succeed(command.arg("--init").arg(&weights));
        out.join("metrics.jsonl")
    };
    let whole = run("whole", "20");
    let losses: Vec<f64> = steps(&whole).iter().map(|step| step.loss).collect();
    let off = distance(&losses, &record.by(name, "f64").loss);
    let theirs = distance(&record.by(name, "f32").loss, &record.by(name, "f64").loss);
    println!("{name} f32: {off:.1e} from f64; PyTorch's f32 is {theirs:.1e}");
    assert!(off <= 2.0 * theirs, "{name}: {off:e} from f64, PyTorch's f32 {theirs:e}");
    for until in ["6", "13", "20"] {
        run("parts", until);
    }
    assert_eq!(loss_bits(&folder.join("parts/metrics.jsonl")), loss_bits(&whole), "{name}: resumed");
}

#[test]
fn lion_compiles_and_resumes_with_the_same_bits() {
    compiled("lion");
}

#[test]
fn adafactor_compiles_and_resumes_with_the_same_bits() {
    compiled("adafactor");
    compiled("adafactor_moment");
}

#[test]
fn muon_compiles_and_resumes_with_the_same_bits() {
    compiled("muon");
}

#[test]
fn sgd_and_adam_with_decay_in_the_gradient_compile_and_resume_with_the_same_bits() {
    compiled("sgd");
    compiled("adam");
}
