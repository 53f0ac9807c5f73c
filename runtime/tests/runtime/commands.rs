//! `generate`, `eval`, `info`, `bench`, and what a wrong command line answers.

use mlc_runtime::abi::ScalarInfo;
use mlc_runtime::failure::Exit;
use mlc_runtime::signals::Interrupts;
use serde_json::Value;

use crate::harness::Folder;

#[test]
fn generate_continues_the_text_it_learned() {
    let folder = Folder::new();
    folder.train("run", "");
    let line = "generate --out @/run --prompt q --tokens 12 --temperature 0";
    let output = folder.run(line);
    assert_eq!(output.exit, Exit::Done, "{}", output.err);
    // A bigram model: after `q` comes `u`; the prompt, 12 bytes and a line break are printed.
    assert!(output.out.starts_with("qu") && output.out.len() == 14, "{:?}", output.out);
    assert_eq!(folder.run(line).out, output.out);
    let draw =
        |seed: u32| folder.run(&format!("generate --out @/run --tokens 60 --seed {seed} --top-k 20")).out;
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn generate_without_a_checkpoint_says_what_to_do() {
    let output = Folder::new().run("generate --out @/run");
    assert_eq!(output.exit, Exit::Failed);
    assert!(output.err.contains("Train first"), "{}", output.err);
}

#[test]
fn generate_refuses_a_model_whose_tokens_are_not_bytes() {
    let mut folder = Folder::new();
    folder.info.vocab = 32000;
    let output = folder.run("generate --out @/run");
    assert_eq!(output.exit, Exit::Failed);
    assert!(output.err.contains("its vocabulary has 32000 ids"), "{}", output.err);
}

#[test]
fn eval_covers_the_data_once() {
    let folder = Folder::new();
    folder.train("run", "");
    let output = folder.run("eval --out @/run --data @/text.txt");
    assert_eq!(output.exit, Exit::Done, "{}", output.err);
    // 2700 bytes are 168 windows of 16, hence 42 batches of 4.
    assert!(output.out.contains("over 2688 tokens") && output.out.contains("bits/byte"), "{}", output.out);
    let output = folder.run("eval --out @/run --data @/text.txt --batches 3 --checkpoint 30");
    assert!(output.out.contains("step-00000030") && output.out.contains("over 192 tokens"), "{}", output.out);
    assert_eq!(folder.run("eval --out @/run").exit, Exit::Usage);
}

/// Data of 1, 2 and 3 windows at batch 4: the loss is the mean of the windows' own losses.
#[test]
fn eval_counts_every_window_of_a_small_text_once() {
    let folder = Folder::new();
    folder.train("run", "--steps 5");
    let text = "the quick brown fox jumps over the lazy dog. and more";
    let eval = |from: usize, windows: usize| -> f64 {
        std::fs::write(folder.file("small.txt"), &text[from..=from + 16 * windows]).unwrap();
        let output = folder.run("eval --out @/run --data @/small.txt");
        assert_eq!(output.exit, Exit::Done, "{}", output.err);
        assert!(output.out.contains(&format!("over {} tokens", 16 * windows)), "{}", output.out);
        let loss = output.out.split("loss ").nth(1).unwrap().split(' ').next().unwrap();
        loss.parse().unwrap()
    };
    let alone = [eval(0, 1), eval(16, 1), eval(32, 1)];
    assert!((alone[0] - alone[2]).abs() > 0.01, "{alone:?}");
    for windows in [2, 3] {
        let mean = alone[..windows].iter().sum::<f64>() / windows as f64;
        // Losses are printed with four digits.
        assert!((eval(0, windows) - mean).abs() < 2e-4, "{windows}: {alone:?}");
    }
}

#[test]
fn info_describes_the_binary() {
    let folder = Folder::new();
    let output = folder.run("info --set train.optimizer.lr=3");
    assert_eq!(output.exit, Exit::Done);
    for part in [
        "parameters   131328\n",
        "memory       device: ",
        "  train.optimizer.lr = 3\n",
        "  train.batch = 4\n",
        "layer.{i}.w[from=256, to=256] x 2 = normal(0.02)  bigram.spec:5",
    ] {
        assert!(output.out.contains(part), "{part}: {}", output.out);
    }
    let ops = folder.run("info --ops").out;
    assert_eq!(ops.lines().count(), 5);
    assert!(ops.contains("model forward bigram.spec:9"), "{ops}");
    assert_eq!(folder.run("info --spec").out, "spec 1\n");
}

#[test]
fn bench_speaks_the_protocol() {
    let folder = Folder::new();
    folder.train("run", "--steps 3 --threads 1");
    let output = folder.run_with("bench --data @/text.txt --threads 1", "1\n2\n\n", &Interrupts::Never);
    assert_eq!(output.exit, Exit::Done, "{}", output.err);
    let lines: Vec<Value> = output.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&lines[0]["peer"], &lines[0]["threads"]), (&"mlc-Bigram".into(), &1.into()));
    assert!(lines[0]["version"].is_string());
    assert_eq!(lines.len(), 3);
    let losses = lines[1..].iter().flat_map(|l| l["loss"].as_array().unwrap().clone());
    let expected = folder.metrics("run", "step").into_iter().map(|v| v["loss"].clone());
    assert_eq!(losses.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(lines[2]["t"].as_array().unwrap().len(), 2);
    let output = folder.run_with("bench --data @/text.txt", "many\n", &Interrupts::Never);
    assert_eq!(output.exit, Exit::Failed);
}

#[test]
fn profiles_list_every_op_that_ran() {
    let folder = Folder::new();
    let output = folder.run("bench --kernels");
    assert_eq!((output.exit, output.out.lines().count()), (Exit::Done, 4), "{}", output.out);
    assert!(output.out.lines().skip(1).all(|l| l.split_whitespace().nth(2) == Some("10")), "{}", output.out);
    let output = folder.train("run", "--steps 7 --profile");
    assert!(output.out.contains("model update bigram.spec:9"), "{}", output.out);
}

#[test]
fn wrong_command_lines_exit_2_with_one_answer() {
    let folder = Folder::new();
    for (line, answer) in [
        ("train --data @/text.txt --set train.optimiser.lr=1", "Did you mean train.optimizer.lr?"),
        (
            "train --data @/text.txt --set train.optimizer.lr=fast",
            "train.optimizer.lr takes a number, not fast",
        ),
        ("train --data @/text.txt --set train.steps=-1", "train.steps takes a whole number, not -1"),
        ("train --data @/text.txt --set step=3", "unknown key: step"),
        ("train --data @/text.txt --set lr", "--set needs KEY=VALUE, not lr"),
        ("train --data @/text.txt --resume soon", "--resume takes `auto`, `never` or a step"),
        ("train --data @/text.txt --threads 0", "--threads must lie between 1 and 4096"),
        ("train --data @/text.txt --checkpoint-every x", "--checkpoint-every takes"),
        ("generate --prompt=", "--prompt is empty"),
        ("generate --temperature -0.5", "--temperature takes a number that is 0 or more, not -0.5"),
        ("eval --data @/text.txt --batches 0", "--batches takes a number that is 1 or more, not 0"),
        (
            "train --data @/text.txt --set train.optimizer.lr=-1",
            "lr takes a number that is 0 or more, not -1",
        ),
        ("train --data @/text.txt --set train.optimizer.lr=inf", "lr takes a number, not inf"),
        ("train --data @/text.txt --set train.steps=2.5", "train.steps takes a whole number, not 2.5"),
        ("flarb", "unknown command: flarb"),
    ] {
        let output = folder.run(line);
        assert_eq!((output.exit, output.exit.code()), (Exit::Usage, 2), "{line}");
        assert!(output.err.starts_with("error: ") && output.err.contains(answer), "{line}: {}", output.err);
        assert_eq!(output.err.matches("error").count(), 1, "{line}: {}", output.err);
    }
}

#[test]
fn values_out_of_range_exit_2() {
    let mut folder = Folder::new();
    let lr = folder.info.scalars[1].clone();
    for key in ["train.optimizer.decay", "train.optimizer.clip", "train.schedule.cosine.to"] {
        folder.info.scalars.push(ScalarInfo { key: key.to_owned(), ..lr.clone() });
    }
    folder.info.scalars.push(ScalarInfo { key: "train.schedule.warmup.steps".to_owned(), ..lr });
    for (set, answer) in [
        ("train.optimizer.decay=-0.1", "takes a number that is 0 or more, not -0.1"),
        ("train.optimizer.clip=0", "takes a number above 0, not 0"),
        ("train.schedule.cosine.to=-1e-5", "takes a number that is 0 or more, not -1e-5"),
        ("train.schedule.warmup.steps=2.5", "takes a whole number that is 0 or more, not 2.5"),
        ("train.schedule.warmup.steps=-3", "takes a whole number that is 0 or more, not -3"),
    ] {
        let output = folder.run(&format!("train --data @/text.txt --out @/run --set {set}"));
        assert_eq!((output.exit, output.err.contains(answer)), (Exit::Usage, true), "{set}: {}", output.err);
    }
    let line = "info --set train.schedule.warmup.steps=1k --set train.optimizer.decay=0 --set train.optimizer.clip=2";
    assert_eq!(folder.run(line).exit, Exit::Done);
}

#[test]
fn a_baked_key_answers_with_the_rebuild_command() {
    let output = Folder::new().run("train --data synthetic --set train.batch=8");
    assert_eq!(output.exit, Exit::Usage);
    assert_eq!(
        output.err,
        "error: train.batch is fixed at build time: 4\nTo change it, build again:\n  \
         mlc build bigram.spec -o bigram --set train.batch=8\n"
    );
}

#[test]
fn help_lists_commands_options_and_exit_codes() {
    let folder = Folder::new();
    let help = folder.run("--help");
    assert_eq!(help.exit, Exit::Done);
    assert!(help.out.contains("exit codes: 0 done") && !help.out.contains("bench"), "{}", help.out);
    assert!(folder.run("train --help").out.contains("--resume auto|never|STEP"));
}

#[test]
fn a_machine_without_the_features_is_refused() {
    let mut folder = Folder::new();
    folder.info.cpu_features.push("warp_drive".to_owned());
    let output = folder.run("train --data synthetic --out @/run");
    assert_eq!((output.exit, output.exit.code()), (Exit::Machine, 4));
    assert!(output.err.contains("this CPU lacks a feature the kernels use: warp_drive"), "{}", output.err);
}

/// The manual names every option but the hidden command's own, and every exit code.
#[test]
fn the_manual_is_complete() {
    use mlc_runtime::options::{Command, OPTIONS};
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/training-binary.md");
    let manual = std::fs::read_to_string(path).unwrap();
    for opt in OPTIONS.iter().filter(|opt| opt.commands != [Command::Bench]) {
        assert!(manual.contains(&format!("--{}", opt.name)), "--{} is not in the manual", opt.name);
    }
    for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::NotFinite, Exit::Machine, Exit::Preempted] {
        assert!(manual.contains(&format!("\n| {} |", exit.code())), "{exit:?} is not in the manual");
    }
}
