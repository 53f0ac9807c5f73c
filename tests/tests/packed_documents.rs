//! A GPT with dropout over packed documents, from its spec to a binary that trains, continues, evaluates and generates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use mlc_tests::harness::{Scratch, build, learnable_text, loss_bits, steps, succeed, train};

/// The binary, with a text of documents beside it: two or three sentences each, ended by a zero byte.
fn gpt() -> &'static (PathBuf, PathBuf) {
    static GPT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    GPT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (binary, text) = (folder.join("packed"), folder.join("packed.txt"));
        let sentences = learnable_text(40_000);
        let documents: String = sentences
            .lines()
            .enumerate()
            .map(|(i, line)| format!("{line}{}", if i % 5 == 1 || i % 5 == 4 { '\0' } else { '\n' }))
            .collect();
        std::fs::write(&text, documents).expect("the temporary folder is writable");
        build("tests/models/packed/packed.spec", &binary, &[]);
        (binary, text)
    })
}

fn losses(test: &str, arguments: &[&str]) -> Vec<(u64, String)> {
    let (binary, text) = gpt();
    let run = Scratch::new(test);
    succeed(train(binary, run.path(), arguments).arg("--data").arg(text));
    loss_bits(&run.join("metrics.jsonl"))
}

#[test]
fn a_gpt_with_dropout_learns_packed_documents() {
    let (binary, text) = gpt();
    let run = Scratch::new("packed-learns");
    succeed(train(binary, run.path(), &[]).arg("--data").arg(text));
    let losses: Vec<f64> = steps(&run.join("metrics.jsonl")).iter().map(|step| step.loss).collect();
    assert!((losses[0] - 256f64.ln()).abs() < 0.2, "first loss: {}", losses[0]);
    // The text has 26 different bytes, ln(26) = 3.26.
    let last = losses[35..].iter().sum::<f64>() / 5.0;
    assert!(last < 3.1, "{losses:?}");

    let command = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(binary);
        command.arg(name).arg("--out").arg(run.path()).args(arguments);
        succeed(&mut command).0
    };
    let evaluated = command("eval", &["--batches", "4", "--data", &text.to_string_lossy()]);
    let loss: f64 = evaluated
        .split("loss ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no loss in {evaluated}"));
    // Without dropout the loss is no worse than in the last steps with it.
    assert!(loss < last + 0.1, "{loss} after {last}");
    let generated = command("generate", &["--prompt", "one plus ", "--tokens", "20"]);
    assert!(generated.starts_with("one plus "), "{generated}");
}

#[test]
fn a_resumed_run_with_dropout_is_the_uninterrupted_one() {
    let (binary, text) = gpt();
    let whole = losses("packed-whole", &["--steps", "20", "--threads", "1"]);
    let parts = Scratch::new("packed-parts");
    for end in ["7", "13", "20"] {
        succeed(train(binary, parts.path(), &["--steps", end, "--threads", "2"]).arg("--data").arg(text));
    }
    assert_eq!(loss_bits(&parts.join("metrics.jsonl")), whole);
}

/// Weights and records are the same for both, so only the masks can tell the seeds apart.
#[test]
fn the_seed_changes_the_masks_without_a_rebuild() {
    let (binary, _) = gpt();
    let folder = Scratch::new("packed-seeds");
    let records = folder.join("records.bin");
    let ids: Vec<u8> =
        learnable_text(49 * 8).bytes().flat_map(|byte| u16::from(byte).to_le_bytes()).collect();
    std::fs::write(&records, ids).expect("the temporary folder is writable");
    let data = format!("records:{}", records.display());
    let first = folder.join("first");
    succeed(&mut train(binary, &first, &["--steps", "1", "--data", &data]));
    let saved = first.join("ckpt").join("step-00000001");
    let weights = std::fs::read_dir(&saved)
        .expect("a checkpoint was saved")
        .map(|entry| entry.expect("readable").path())
        .find(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .expect("it holds weights");
    let with_seed = |seed: &str, name: &str| {
        let out = folder.join(name);
        let weights = weights.to_string_lossy();
        succeed(&mut train(
            binary,
            &out,
            &["--steps", "2", "--seed", seed, "--init", &weights, "--data", &data],
        ));
        loss_bits(&out.join("metrics.jsonl"))
    };
    let [a, again, b, high] = [("5", "a"), ("5", "again"), ("6", "b"), ("4294967301", "high")]
        .map(|(seed, name)| with_seed(seed, name));
    assert_eq!(a, again);
    assert_ne!(a[0], b[0]);
    // 5 + 2³²: the high half of the seed counts.
    assert_ne!(a[0], high[0]);
}

/// What is saved, computed again or kept in the host's memory changes no bit of a training, dropped elements included.
#[test]
fn remat_changes_no_bit_of_a_trained_binary() {
    let expected = losses("packed-remat-auto", &["--steps", "8"]);
    assert_eq!(expected.len(), 8);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (_, text) = gpt();
    let choices = [
        ("none", "train.remat=none"),
        ("full", "train.remat=full"),
        ("dots", "train.remat=dots"),
        ("attn", "train.remat=attn"),
        ("offload", "train.remat={ offload \"layer.*\" }"),
    ];
    let mut saved = std::collections::BTreeSet::new();
    for (name, set) in choices {
        let binary = folder.join(format!("packed-{name}"));
        let printed = build("tests/models/packed/packed.spec", &binary, &[set]);
        let line = printed.lines().find(|line| line.contains("saved for the backward pass"));
        saved.insert(line.unwrap_or_else(|| panic!("{printed}")).to_string());
        let run = Scratch::new(&format!("packed-remat-{name}"));
        succeed(train(&binary, run.path(), &["--steps", "8"]).arg("--data").arg(text));
        assert_eq!(loss_bits(&run.join("metrics.jsonl")), expected, "{name}");
    }
    // Programs that are the same would prove nothing.
    assert_eq!(saved.len(), choices.len(), "{saved:?}");
}
