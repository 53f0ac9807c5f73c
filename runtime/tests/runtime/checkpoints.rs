//! Checkpoints: exact resume, damage, abandoned histories, requests to stop.

use std::path::PathBuf;

use mlc_runtime::failure::Exit;

use crate::harness::Folder;

/// Losses and final weights of 40 steps without a stop.
fn uninterrupted(folder: &Folder) -> (Vec<(u64, String)>, Vec<u8>) {
    folder.train("whole", "");
    (folder.losses("whole"), shard(folder, "whole", 40))
}

fn shard_path(folder: &Folder, out: &str, step: u64) -> PathBuf {
    folder.file(out).join(format!("ckpt/step-{step:08}/00001.safetensors"))
}

fn shard(folder: &Folder, out: &str, step: u64) -> Vec<u8> {
    std::fs::read(shard_path(folder, out, step)).unwrap()
}

/// Changes one byte of a file.
fn flip(path: &PathBuf, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_resumed_run_has_the_bits_of_the_uninterrupted_one() {
    let folder = Folder::new();
    let (losses, weights) = uninterrupted(&folder);
    for stops in [&[10, 40][..], &[1, 2, 17, 40], &[39, 40]] {
        let name = format!("{stops:?}").replace([' ', ',', '[', ']'], "_");
        for (i, stop) in stops.iter().enumerate() {
            let threads = 1 + i % 3;
            folder.train(&name, &format!("--steps {stop} --threads {threads}"));
        }
        assert_eq!(folder.losses(&name), losses, "{stops:?}");
        assert!(shard(&folder, &name, 40) == weights, "{stops:?}: the weights differ");
    }
}

#[test]
fn resume_step_goes_back_and_sets_the_other_history_aside() {
    let folder = Folder::new();
    let (losses, _) = uninterrupted(&folder);
    assert_eq!(folder.checkpoints("whole"), [20, 30, 40]);
    let output = folder.train("whole", "--resume 20 --steps 25");
    assert!(
        output.err.contains("set aside 2 checkpoints of another history (steps 30 to 40)"),
        "{}",
        output.err
    );
    assert_eq!(folder.checkpoints("whole"), [20, 25]);
    assert_eq!(folder.losses("whole"), losses[..25]);
    let output = folder.run("train --data @/text.txt --out @/whole --resume 7");
    assert_eq!(output.exit, Exit::Failed);
    assert!(output.err.contains("There are checkpoints of these steps: 25, 20"), "{}", output.err);
}

#[test]
fn resume_never_starts_over() {
    let folder = Folder::new();
    folder.train("run", "--steps 20");
    folder.train("run", "--steps 5 --resume never");
    assert_eq!(folder.checkpoints("run"), [5]);
    assert_eq!(folder.losses("run").len(), 5);
    assert_eq!(folder.metrics("run", "run").len(), 1);
}

#[test]
fn a_finished_run_is_not_repeated() {
    let folder = Folder::new();
    folder.train("run", "--steps 10");
    let before = shard(&folder, "run", 10);
    let output = folder.train("run", "--steps 10");
    assert!(output.err.contains("nothing to do: 10 steps are done"), "{}", output.err);
    assert!(shard(&folder, "run", 10) == before);
    assert_eq!(folder.losses("run").len(), 10);
}

#[test]
fn damaged_checkpoints_are_skipped_with_their_reason() {
    let folder = Folder::new();
    let (losses, _) = uninterrupted(&folder);
    flip(&shard_path(&folder, "whole", 40), 100_000);
    std::fs::OpenOptions::new()
        .write(true)
        .open(shard_path(&folder, "whole", 30))
        .unwrap()
        .set_len(1000)
        .unwrap();
    let output = folder.train("whole", "--steps 22");
    for reason in [
        "step-00000040: 00001.safetensors does not match its hash",
        "step-00000030: 00001.safetensors has 1000 bytes",
    ] {
        assert!(output.err.contains(reason), "{}", output.err);
    }
    assert!(output.err.contains("continuing after step 20"), "{}", output.err);
    assert_eq!(folder.losses("whole"), losses[..22]);
    // The damaged ones are out of the way of the next start.
    assert_eq!(folder.checkpoints("whole"), [20, 22]);
}

#[test]
fn every_damaged_file_of_a_checkpoint_is_noticed() {
    let folder = Folder::new();
    folder.train("run", "--steps 10");
    for (file, at) in [("00001.safetensors", 3), ("manifest.json", 20), ("manifest.blake3", 1)] {
        let path = folder.file("run/ckpt/step-00000010").join(file);
        flip(&path, at);
        let output = folder.run("train --data @/text.txt --out @/run");
        assert_eq!(output.exit, Exit::Failed, "{file}");
        assert!(output.err.contains("error: no valid checkpoint in"), "{file}: {}", output.err);
        assert!(output.err.contains("Start over with --resume never."), "{file}: {}", output.err);
        flip(&path, at);
    }
    std::fs::remove_file(folder.file("run/ckpt/step-00000010/manifest.blake3")).unwrap();
    let output = folder.run("train --data @/text.txt --out @/run");
    assert!(output.err.contains("manifest.blake3 cannot be read"), "{}", output.err);
}

#[test]
fn what_a_killed_save_leaves_is_removed() {
    let folder = Folder::new();
    let (losses, weights) = uninterrupted(&folder);
    folder.train("run", "--steps 20");
    // As after a kill inside the write of step 30, and inside the deletion of step 10.
    let source = folder.file("run/ckpt/step-00000020");
    for name in [".tmp-write-00000030", ".tmp-delete-00000010"] {
        let left = folder.file("run/ckpt").join(name);
        std::fs::create_dir(&left).unwrap();
        let half = std::fs::read(source.join("00001.safetensors")).unwrap();
        std::fs::write(left.join("00001.safetensors"), &half[..half.len() / 2]).unwrap();
    }
    folder.train("run", "");
    assert_eq!(folder.losses("run"), losses);
    assert!(shard(&folder, "run", 40) == weights);
    assert_eq!(folder.names("run"), [".lock", "step-00000020", "step-00000030", "step-00000040"]);
}

#[test]
fn a_request_to_stop_saves_and_exits_75() {
    let folder = Folder::new();
    let (losses, _) = uninterrupted(&folder);
    let output = folder.run_interrupted("train --data @/text.txt --out @/run");
    assert_eq!((output.exit, output.exit.code()), (Exit::Preempted, 75), "{}", output.err);
    assert!(output.err.contains("stopped after step 1 and saved"), "{}", output.err);
    assert_eq!(folder.checkpoints("run"), [1]);
    folder.train("run", "");
    assert_eq!(folder.losses("run"), losses);
}

#[test]
fn keep_and_keep_every_choose_what_stays() {
    let folder = Folder::new();
    folder.train(
        "run",
        "--checkpoint-every 5 --set train.checkpoint.keep=2 --set train.checkpoint.keep_every=15",
    );
    assert_eq!(folder.checkpoints("run"), [15, 30, 35, 40]);
    folder.train("end", "--checkpoint-every end");
    assert_eq!(folder.checkpoints("end"), [40]);
    folder.train("never", "--checkpoint-every never");
    assert!(!folder.file("never/ckpt").exists());
}

#[test]
fn another_build_with_the_same_tensors_continues_with_a_note() {
    let mut folder = Folder::new();
    folder.train("run", "--steps 10");
    folder.info.fingerprint = "beef".to_owned();
    let output = folder.train("run", "--steps 11 --set train.optimizer.lr=2");
    assert!(
        output.err.contains("was written by another build of the program; its tensors are the same"),
        "{}",
        output.err
    );
    assert!(output.err.contains("note: train.optimizer.lr was 8, is now 2"), "{}", output.err);
    assert_eq!(folder.metrics("run", "step")[10]["lr"], 2.0);
}

#[test]
fn another_model_does_not_load() {
    let mut folder = Folder::new();
    folder.train("run", "--steps 10");
    folder.info.tensors[2].path = "shift".to_owned();
    let output = folder.run("train --data @/text.txt --out @/run");
    assert_eq!(output.exit, Exit::Failed);
    assert!(output.err.contains("it lacks tensor shift"), "{}", output.err);
    folder.info.tensors[2].path = "bias".to_owned();
    folder.info.tensors[2].shape = vec![16, 16];
    let output = folder.run("train --data @/text.txt --out @/run");
    assert!(
        output.err.contains("tensor bias has shape [256], this program's has [16, 16]"),
        "{}",
        output.err
    );
}

/// `eval` and `generate` offer only what they can do.
#[test]
fn commands_advise_options_they_have() {
    let mut folder = Folder::new();
    folder.train("run", "--steps 10");
    folder.info.tensors[2].path = "shift".to_owned();
    for line in ["eval --data @/text.txt --out @/run", "generate --out @/run"] {
        let output = folder.run(line);
        assert_eq!(output.exit, Exit::Failed, "{line}");
        assert!(output.err.contains("it lacks tensor shift"), "{line}: {}", output.err);
        assert!(output.err.contains("or give weights with --init."), "{line}: {}", output.err);
        assert!(!output.err.contains("--resume"), "{line}: {}", output.err);
        for word in ["soon", "never"] {
            let output = folder.run(&format!("{line} --checkpoint {word}"));
            assert_eq!(output.exit, Exit::Usage);
            assert_eq!(output.err, format!("error: --checkpoint takes `auto` or a step, not {word}\n"));
        }
    }
}

#[test]
fn the_manifest_records_the_run() {
    let folder = Folder::new();
    folder.train("run", "--steps 10 --seed 9 --set train.optimizer.lr=4");
    let text = std::fs::read_to_string(folder.file("run/ckpt/step-00000010/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(manifest["format"], 1);
    assert!(manifest.get("mesh").is_none() && manifest["shards"][0].get("rank").is_none(), "{text}");
    assert_eq!((&manifest["step"], &manifest["seed"]), (&10.into(), &9.into()));
    assert_eq!((&manifest["model"], &manifest["fingerprint"]), (&"Bigram".into(), &"f00d".into()));
    assert_eq!(manifest["spec"], "spec 1\n");
    assert_eq!(manifest["data"]["samples"], 40);
    assert_eq!(manifest["keys"]["train.optimizer.lr"], "4");
}

#[test]
fn verify_tells_of_every_checkpoint() {
    let folder = Folder::new();
    assert!(folder.run("verify --out @/run").err.contains("there is no checkpoint in"));
    folder.train("run", "--steps 20");
    let output = folder.run("verify --out @/run");
    assert_eq!((output.exit, output.out.matches(": valid\n").count()), (Exit::Done, 2), "{}", output.out);
    flip(&shard_path(&folder, "run", 10), 5000);
    let output = folder.run("verify --out @/run");
    assert_eq!(output.exit, Exit::Failed);
    assert!(
        output.out.contains("step-00000010: NOT valid: 00001.safetensors does not match its hash"),
        "{}",
        output.out
    );
    assert_eq!(output.err, "error: 1 of 2 checkpoints are not valid\n");
    std::fs::remove_file(shard_path(&folder, "run", 10)).unwrap();
    let output = folder.run("verify --out @/run");
    assert!(output.out.contains("step-00000010: NOT valid: cannot read "), "{}", output.out);
}
