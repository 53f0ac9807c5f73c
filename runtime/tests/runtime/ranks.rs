//! Whole command lines on several ranks: the numbers, the messages and the files are those of one.

use mlc_runtime::failure::Exit;

use crate::harness::Folder;
use crate::sharded::{Sharding, cut, info, mesh};

/// Shardings of the model over 2, 3, 4 and 6 ranks.
pub fn shardings() -> Vec<Sharding> {
    vec![
        Sharding {
            mesh: mesh(&[("dp", 2)]),
            splits: vec![
                ("tokens", vec![cut(0, &[0], 1)]),
                ("targets", vec![cut(0, &[0], 1)]),
                ("layer.{i}.w.m", vec![cut(0, &[0], 1)]),
            ],
        },
        Sharding {
            mesh: mesh(&[("fsdp", 2), ("tensor", 2)]),
            splits: vec![
                ("tokens", vec![cut(0, &[0], 2)]),
                ("targets", vec![cut(0, &[0], 1), cut(1, &[1], 1)]),
                ("layer.{i}.w", vec![cut(0, &[0], 1), cut(1, &[1], 2)]),
                ("layer.{i}.w.m", vec![cut(1, &[1, 0], 1)]),
                ("bias", vec![cut(0, &[1], 1)]),
            ],
        },
        Sharding { mesh: mesh(&[("pod", 1), ("dp", 3)]), splits: vec![] },
    ]
}

fn folder(sharding: &Sharding) -> Folder {
    let mut folder = Folder::new();
    folder.info = info(sharding);
    folder
}

fn ranks(sharding: &Sharding) -> u64 {
    sharding.mesh.iter().map(|axis| axis.size).product()
}

#[test]
fn ranks_train_with_the_bits_of_one() {
    let one = Folder::new();
    let single = one.train("run", "--steps 12");
    for sharding in shardings() {
        let folder = folder(&sharding);
        for threads in [1, 5] {
            let out = format!("run{threads}");
            let options = format!("--steps 12 --ranks {} --threads {threads}", ranks(&sharding));
            let output = folder.train(&out, &options);
            assert_eq!(folder.losses(&out), one.losses("run"), "{sharding:?}");
            assert_eq!(output.out.lines().count(), single.out.lines().count(), "only one rank speaks");
            assert!(output.err.contains(&format!("{} ranks (", ranks(&sharding))), "{}", output.err);
            assert_eq!(folder.metrics(&out, "run")[0]["ranks"], ranks(&sharding));
        }
    }
}

/// A run that changes its mesh at every stop, over all shardings and back, is the uninterrupted run.
#[test]
fn a_run_continues_on_any_mesh_with_the_same_bits() {
    let mut folder = Folder::new();
    folder.train("whole", "--steps 30");
    let one = folder.info.clone();
    let mut steps = 0;
    for sharding in shardings().iter().chain(&shardings()) {
        for (info, ranks) in [(info(sharding), ranks(sharding)), (one.clone(), 1)] {
            folder.info = info;
            steps += 2;
            let output = folder.train("run", &format!("--steps {steps} --ranks {ranks}"));
            assert!(steps == 2 || output.err.contains("continuing after step"), "{}", output.err);
        }
    }
    assert_eq!(folder.losses("run"), folder.losses("whole")[..steps]);
    folder.train("run", "");
    let shard = |out: &str| {
        std::fs::read(folder.file(&format!("{out}/ckpt/step-00000040/00001.safetensors"))).unwrap()
    };
    folder.train("whole", "");
    assert!(shard("run") == shard("whole"), "the trained weights differ");
}

#[test]
fn another_number_of_ranks_is_refused_with_the_way_out() {
    let mut folder = folder(&shardings()[1]);
    for (options, started) in [("", "1 was started"), ("--ranks 3", "3 were started"), ("--ranks 0", "")] {
        let output = folder.run(&format!("train --data @/text.txt --out @/run {options}"));
        assert_ne!(output.exit, Exit::Done);
        assert!(output.err.contains(started), "{}", output.err);
        assert!(!folder.file("run").exists());
    }
    let output = folder.run("train --data @/text.txt --out @/run --ranks 3");
    assert_eq!(output.exit, Exit::Launch);
    for part in ["fsdp = 2, tensor = 2", "mlc build bigram.spec -o bigram --devices 3", "--ranks 4"] {
        assert!(output.err.contains(part), "{part}: {}", output.err);
    }
    folder.info.rebuild.push_str(" --devices 4");
    let output = folder.run("train --data @/text.txt --out @/run --ranks 3");
    assert!(output.err.ends_with("mlc build bigram.spec -o bigram --devices 3\n"), "{}", output.err);
    folder.info = crate::fixture::info();
    let output = folder.run("train --data @/text.txt --out @/run --ranks 2");
    assert_eq!(output.exit, Exit::Launch, "{}", output.err);
}

#[test]
fn a_request_to_stop_stops_all_ranks_after_the_same_step() {
    let sharding = &shardings()[1];
    let folder = folder(sharding);
    let line = format!("train --data @/text.txt --out @/run --ranks {}", ranks(sharding));
    let output = folder.run_interrupted(&line);
    assert_eq!(output.exit, Exit::Preempted, "{}", output.err);
    assert!(output.err.contains("stopped after step 1 and saved"), "{}", output.err);
    assert_eq!(folder.checkpoints("run"), [1]);
    assert_eq!(folder.run(&format!("{line} --steps 3")).exit, Exit::Done);
    let one = Folder::new();
    one.train("run", "--steps 3");
    assert_eq!(folder.losses("run"), one.losses("run"));
}

#[test]
fn eval_and_generate_and_bench_answer_as_one_rank_does() {
    let one = Folder::new();
    one.train("run", "--steps 5");
    let commands = ["eval --data @/text.txt --out @/run", "generate --out @/run --tokens 20"];
    let trim = |folder: &Folder, text: &str| text.replace(&folder.path().display().to_string(), "");
    for sharding in shardings() {
        let folder = folder(&sharding);
        let n = ranks(&sharding);
        folder.train("run", &format!("--steps 5 --ranks {n}"));
        for line in commands {
            let (expected, found) = (one.run(line), folder.run(&format!("{line} --ranks {n}")));
            assert_eq!(found.exit, Exit::Done, "{}", found.err);
            assert_eq!(trim(&folder, &found.out), trim(&one, &expected.out));
        }
        let line = format!("bench --data @/text.txt --ranks {n}");
        let bench = folder.run_with(&line, "2\n1\n", &mlc_runtime::signals::Interrupts::Never);
        assert_eq!((bench.exit, bench.out.lines().count()), (Exit::Done, 3), "{}", bench.err);
    }
}

/// Only the rank that holds the row sees the bad token; the run ends with its message.
#[test]
fn one_rank_s_failure_is_the_run_s() {
    let sharding = &shardings()[0];
    let mut folder = folder(sharding);
    for input in &mut folder.info.entries[0].inputs {
        input.bound = 200;
    }
    let mut text = vec![b'a'; 4000];
    text[17 * 3] = 250;
    std::fs::write(folder.file("text.txt"), text).unwrap();
    let output = folder.run("train --data records:@/text.txt --out @/run --ranks 2 --steps 60");
    assert_eq!(output.exit, Exit::Failed, "{}", output.err);
    std::fs::write(folder.file("bad.txt"), vec![250u8; 400]).unwrap();
    let output = folder.run("train --data bytes:@/bad.txt --out @/run --ranks 2");
    assert_eq!(output.exit, Exit::Failed, "{}", output.err);
    assert!(output.err.contains("error: token 250 is outside the vocabulary"), "{}", output.err);
}

#[test]
fn a_damaged_file_of_any_rank_makes_the_checkpoint_invalid_for_all() {
    let sharding = &shardings()[1];
    let folder = folder(sharding);
    folder.train("run", "--steps 20 --ranks 4");
    let names = std::fs::read_dir(folder.file("run/ckpt/step-00000020")).unwrap();
    let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let files: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
    assert_eq!(files.len(), 4);
    assert_eq!(files[3], "rank-00003-00001.safetensors");
    for file in files {
        let path = folder.file("run/ckpt/step-00000020").join(file);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bad).unwrap();
        let output = folder.run("eval --data @/text.txt --out @/run --ranks 4");
        assert!(output.err.contains(&format!("{file} does not match its hash")), "{}", output.err);
        assert!(output.out.contains("step-00000010"), "{}", output.out);
        let verified = folder.run("verify --out @/run");
        assert_eq!(verified.exit, Exit::Failed);
        std::fs::remove_file(&path).unwrap();
        let output = folder.run("eval --data @/text.txt --out @/run --ranks 4");
        assert!(
            output.err.contains("cannot read ") && output.out.contains("step-00000010"),
            "{}",
            output.err
        );
        std::fs::write(&path, good).unwrap();
    }
    assert_eq!(folder.run("verify --out @/run").exit, Exit::Done);
}

/// What several ranks saved, one process exports, and the file is that of one rank to the byte.
#[test]
fn weights_of_ranks_are_exported_whole() {
    let one = Folder::new();
    one.train("run", "--steps 3");
    one.run("export --out @/run --to @/w");
    for sharding in shardings() {
        let folder = folder(&sharding);
        folder.train("run", &format!("--steps 3 --ranks {}", ranks(&sharding)));
        let output = folder.run("export --out @/run --to @/w --checkpoint 3");
        assert_eq!(output.exit, Exit::Done, "{}", output.err);
        assert!(std::fs::read(folder.file("w")).unwrap() == std::fs::read(one.file("w")).unwrap());
    }
}

#[test]
fn info_tells_the_mesh_and_the_memory_of_a_rank() {
    let output = folder(&shardings()[1]).run("info");
    assert!(output.out.contains("mesh         fsdp = 2, tensor = 2: 4 ranks\n"), "{}", output.out);
    assert!(output.out.contains(" bytes, each rank)\n"), "{}", output.out);
}
