//! `train`: numbers, metrics, data.

use mlc_runtime::abi::{OutputInfo, SkipInfo};
use mlc_runtime::failure::Exit;

use crate::harness::Folder;

#[test]
fn train_lowers_the_loss_and_records_every_step() {
    let folder = Folder::new();
    let output = folder.train("run", "");
    let steps = folder.metrics("run", "step");
    assert_eq!(steps.len(), 40);
    let loss = |i: usize| steps[i]["loss"].as_f64().unwrap();
    // An untrained model is near ln 256 = 5.545; the logits' standard deviation of 0.03 moves that by about 0.0004.
    assert!((loss(0) - 256f64.ln()).abs() < 0.01, "{}", loss(0));
    assert!(loss(39) < 3.0, "{}", loss(39));
    assert_eq!(steps[0]["lr"], 8.0);
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], i as u64 + 1);
        let bits = u32::from_str_radix(step["loss_bits"].as_str().unwrap(), 16).unwrap();
        assert_eq!(f64::from(f32::from_bits(bits)), step["loss"].as_f64().unwrap());
    }
    let lines: Vec<&str> = output.out.lines().map(|l| l.split("  loss").next().unwrap()).collect();
    assert_eq!(lines, ["step  1/40", "step 10/40", "step 20/40", "step 30/40", "step 40/40"]);
    let run = &folder.metrics("run", "run")[0];
    assert_eq!((run["parameters"].as_u64(), run["seed"].as_u64()), (Some(2 * 256 * 256 + 256), Some(1)));
}

#[test]
fn train_gives_the_same_bits_for_any_number_of_threads() {
    let folder = Folder::new();
    for threads in [1, 2, 3, 4] {
        folder.train(&threads.to_string(), &format!("--threads {threads}"));
    }
    let expected = folder.losses("1");
    assert_eq!(expected.len(), 40);
    for threads in ["2", "3", "4"] {
        assert_eq!(folder.losses(threads), expected, "{threads} threads");
    }
    let shard =
        |run: &str| std::fs::read(folder.file(run).join("ckpt/step-00000040/00001.safetensors")).unwrap();
    assert!(shard("1") == shard("3"), "the trained weights differ");
}

#[test]
fn train_depends_on_the_seed() {
    let folder = Folder::new();
    folder.train("a", "--steps 2");
    folder.train("b", "--steps 2 --seed 2");
    folder.train("c", "--steps 2 --set train.seed=2");
    assert_ne!(folder.losses("a"), folder.losses("b"));
    assert_eq!(folder.losses("b"), folder.losses("c"));
}

#[test]
fn train_obeys_run_time_keys() {
    let folder = Folder::new();
    folder.train("a", "--steps 3 --set train.optimizer.lr=0.5 --set train.log.every=1");
    assert_eq!(folder.metrics("a", "step")[2]["lr"], 0.5);
    folder.train("b", "--steps 3 --set train.checkpoint.dir=other");
    assert!(folder.file("b/other/step-00000003/manifest.json").is_file());
}

#[test]
fn train_evaluates_on_held_out_text() {
    let folder = Folder::new();
    let output = folder.train("run", "--eval-data @/text.txt --eval-every 20");
    let evals = folder.metrics("run", "eval");
    assert_eq!(evals.iter().map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>(), [20, 40]);
    let (loss, bits) = (evals[1]["loss"].as_f64().unwrap(), evals[1]["bits_per_byte"].as_f64().unwrap());
    assert!((bits - loss / 2f64.ln()).abs() < 1e-12);
    assert_eq!(evals[1]["tokens"], 2 * 4 * 16);
    assert!(output.out.contains("bits/byte"), "{}", output.out);
    // Evaluating must not disturb the training.
    folder.train("plain", "");
    assert_eq!(folder.losses("run"), folder.losses("plain"));
}

#[test]
fn train_says_when_there_is_nothing_to_evaluate_on() {
    let folder = Folder::new();
    let note = "note: there is no held-out data to evaluate on every 5 steps; give it with --eval-data PATH";
    for (options, noted) in [
        ("--eval-every 5", true),
        ("--set train.eval.every=5", true),
        ("--eval-every 0", false),
        ("--eval-every 5 --eval-data @/text.txt", false),
        ("", false),
    ] {
        let output = folder.train("run", &format!("--steps 5 --resume never {options}"));
        assert_eq!(output.err.contains(note), noted, "{options}: {}", output.err);
    }
}

#[test]
fn train_replays_records() {
    let folder = Folder::new();
    let tokens: Vec<u8> = (0..2 * 17u16).flat_map(|t| (t % 200).to_le_bytes()).collect();
    std::fs::write(folder.file("two.bin"), tokens).unwrap();
    let output =
        folder.run("train --data records:@/two.bin --out @/run --steps 3 --set train.optimizer.lr=0");
    assert_eq!(output.exit, Exit::Done, "{}", output.err);
    let losses = folder.losses("run");
    // Two records fill half a batch: with frozen weights every step sees the same.
    assert!(losses[0].1 == losses[1].1 && losses[1].1 == losses[2].1, "{losses:?}");
}

#[test]
fn train_names_file_and_place_of_a_bad_token() {
    let folder = Folder::new();
    let tokens: Vec<u8> =
        (0..4 * 17u16).flat_map(|t| if t == 40 { 300u16 } else { t }.to_le_bytes()).collect();
    std::fs::write(folder.file("bad.bin"), tokens).unwrap();
    let output = folder.run("train --data records:@/bad.bin --out @/run");
    assert_eq!(output.exit, Exit::Failed);
    let expected = format!(
        "error: token 300 is outside the vocabulary of `tokens`: 0..256\n  at {}, token 40 (byte 80)\n",
        folder.file("bad.bin").display()
    );
    assert!(output.err.ends_with(&expected), "{}", output.err);
}

#[test]
fn train_stops_when_the_loss_is_not_finite() {
    let folder = Folder::new();
    let output =
        folder.run("train --data @/text.txt --out @/run --set train.optimizer.lr=1e38 --checkpoint-every 1");
    assert_eq!(output.exit, Exit::NotFinite);
    assert!(output.err.contains("error: the loss is not finite at step "), "{}", output.err);
    let steps = folder.metrics("run", "step");
    assert!(steps.last().unwrap()["loss"].is_null());
    assert!(folder.checkpoints("run").iter().all(|&step| step < steps.len() as u64));
}

/// The fixture with reports of skipped steps: `skipped` and `nonfinite` are the learning rate, 1 in a step that is skipped.
fn skipping(stop_after: u64) -> Folder {
    let mut folder = Folder::new();
    let gradients = ["layer.{i}.w", "bias"].map(str::to_owned).to_vec();
    folder.info.skip = Some(SkipInfo { stop_after, gradients });
    let outputs = &mut folder.info.entries[0].outputs;
    let rate = outputs.iter().find(|o| o.name == "lr").unwrap().clone();
    outputs.extend(["skipped", "nonfinite"].map(|name| OutputInfo { name: name.to_owned(), ..rate.clone() }));
    folder
}

#[test]
fn train_ends_after_too_many_skipped_steps_and_names_the_first_gradient() {
    let folder = skipping(3);
    let output = folder.run("train --data @/text.txt --out @/run --set train.optimizer.lr=1");
    assert_eq!((output.exit, output.exit.code()), (Exit::Skipped, 5));
    for part in [
        "step 1 skipped: the gradient of layer.1.w (bigram.spec:5) is not finite",
        "error: step 3 was skipped, the last of 3 in a row: the gradient of layer.1.w",
        "are those of step 0",
    ] {
        assert!(output.err.contains(part), "{}", output.err);
    }
    assert_eq!(folder.metrics("run", "step").len(), 3);
}

#[test]
fn train_goes_on_when_steps_are_not_skipped_in_a_row() {
    let folder = skipping(3);
    let output = folder.train("run", "--steps 5");
    assert!(!output.err.contains("skipped"), "{}", output.err);
}

#[test]
fn train_says_what_is_wrong_with_the_data() {
    let folder = Folder::new();
    std::fs::write(folder.file("short.txt"), "short").unwrap();
    for (line, exit, part) in [
        ("train --out @/x", Exit::Usage, "Give it with --data PATH"),
        ("train --out @/x --data bytes:", Exit::Usage, "the data source names no file"),
        ("train --out @/x --data=", Exit::Usage, "the data source names no file"),
        ("train --out @/x --data /dev/zero", Exit::Failed, "/dev/zero is a device, not a file"),
        ("train --out @/x --data @/no.txt", Exit::Failed, "no.txt"),
        ("train --out @/x --data @/short.txt", Exit::Failed, "has 5, one sequence needs 17"),
        ("train --out @/x --data records:@/text.txt", Exit::Failed, "does not hold whole records"),
    ] {
        let output = folder.run(line);
        assert_eq!(output.exit, exit, "{line}");
        assert!(output.err.starts_with("error: ") && output.err.contains(part), "{line}: {}", output.err);
    }
}

#[test]
fn train_on_synthetic_data_needs_no_file() {
    let folder = Folder::new();
    let output = folder.run("train --data synthetic --out @/run --steps 2");
    assert_eq!((output.exit, folder.losses("run").len()), (Exit::Done, 2), "{}", output.err);
}

#[test]
fn train_leaves_a_file_that_holds_no_metrics_as_it_is() {
    let folder = Folder::new();
    folder.train("run", "--steps 2");
    let lines = ["precious\n", "{\"kind\":\"recipe\",\"step\":1}\n", "[1]\n", "no line break"];
    for content in lines {
        std::fs::write(folder.file("notes"), content).unwrap();
        let output =
            folder.run("train --data @/text.txt --out @/run --steps 3 --resume never --metrics @/notes");
        assert_eq!(output.exit, Exit::Failed, "{content:?}");
        assert!(output.err.contains("notes is not a metrics file"), "{}", output.err);
        assert!(output.err.contains("Choose another file with --metrics"), "{}", output.err);
        assert_eq!(std::fs::read_to_string(folder.file("notes")).unwrap(), content);
        // The refusal came before the old history was set aside.
        assert_eq!(folder.checkpoints("run"), [2]);
    }
    for content in ["", "{\"kind\":\"run\",\"st", "{\"kind\":\"run\",\"step\":0}\n{\"kind\""] {
        std::fs::write(folder.file("notes"), content).unwrap();
        folder.train("other", "--steps 1 --resume never --metrics @/notes");
        assert_eq!(std::fs::read_to_string(folder.file("notes")).unwrap().lines().count(), 2, "{content:?}");
    }
}

/// Reading `/dev/zero` never ends, and writing to it never fails; writing to `/dev/full` always does.
#[test]
fn train_does_not_read_a_device() {
    let folder = Folder::new();
    folder.train("run", "--steps 1 --metrics /dev/zero");
    let output = folder.run("train --data @/text.txt --out @/full --steps 1 --metrics /dev/full");
    assert_eq!(output.exit, Exit::Failed);
    assert!(output.err.contains("error: cannot write /dev/full"), "{}", output.err);
}
