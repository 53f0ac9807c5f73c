//! Whole commands on ranks that are processes, with both MPI libraries: the files are those of one rank.
//!
//! The launcher starts this test executable again: with the variable below set, the test `child` runs the command line in it and
//! exits with its code. `.ci/setup` installs the launchers; without them these tests fail.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mlc_runtime::console::Console;
use mlc_runtime::failure::Exit;
use mlc_runtime::signals::Interrupts;

use crate::harness::Folder;
use crate::sharded::{Sharding, cut, info, mesh, program};

const LINE: &str = "MLC_RUNTIME_TEST_PROCESSES_LINE";
const LAUNCHERS: [&str; 2] = ["mpirun.openmpi", "mpirun.mpich"];

fn sharding() -> Sharding {
    Sharding {
        mesh: mesh(&[("fsdp", 2)]),
        splits: vec![
            ("tokens", vec![cut(0, &[0], 1)]),
            ("targets", vec![cut(0, &[0], 1)]),
            ("layer.{i}.w", vec![cut(1, &[0], 2)]),
            ("layer.{i}.w.m", vec![cut(0, &[0], 1)]),
        ],
    }
}

#[test]
fn child() {
    let Ok(line) = std::env::var(LINE) else { return };
    let words: Vec<String> = line.split('\n').map(str::to_owned).collect();
    let program = program(&info(&sharding()));
    let exit =
        mlc_runtime::run(&program, &words, &mut Console::standard(), &Interrupts::Never, Instant::now());
    std::process::exit(exit.code());
}

/// Runs a command line as so many processes; `@` stands for the folder.
fn launch(launcher: &str, ranks: u64, folder: &Folder, line: &str, environment: &[(&str, &str)]) -> Output {
    let words: Vec<String> =
        line.split_whitespace().map(|w| w.replace('@', &folder.path().display().to_string())).collect();
    Command::new(launcher)
        .args(["-n", &ranks.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["processes::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(LINE, words.join("\n"))
        .envs(environment.iter().copied())
        // As root, on fewer cores than ranks, without ssh, in a container that forbids reading another process's memory.
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
        .envs([("OMPI_MCA_rmaps_base_oversubscribe", "1"), ("OMPI_MCA_plm", "isolated")])
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .output()
        .unwrap_or_else(|e| panic!("{launcher}: {e}; .ci/setup installs it"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn processes_train_save_and_resume_with_the_bits_of_one_rank() {
    let one = Folder::new();
    one.train("run", "--steps 8");
    let mut folder = Folder::new();
    folder.info = info(&sharding());
    for launcher in LAUNCHERS {
        let line = |steps: u64| {
            format!(
                "train --data @/text.txt --out @/{launcher} --steps {steps} --threads 2 --checkpoint-every end"
            )
        };
        for steps in [5, 8] {
            let output = launch(launcher, 2, &folder, &line(steps), &[]);
            assert!(output.status.success(), "{launcher}: {}", text(&output));
        }
        assert_eq!(folder.losses(launcher), one.losses("run"), "{launcher}");
        assert_eq!(folder.checkpoints(launcher), [5, 8], "{launcher}");
        assert_eq!(folder.metrics(launcher, "run").len(), 2, "only one rank writes");
    }
}

#[test]
fn processes_end_together_and_say_it_once() {
    let folder = Folder::new();
    for launcher in LAUNCHERS {
        let run = |ranks: u64, options: &str, environment: &[(&str, &str)]| {
            let line = format!("train --out @/{launcher} --steps 4 --threads 1 {options}");
            let output = launch(launcher, ranks, &folder, &line, environment);
            (output.status.code(), text(&output))
        };
        let (code, said) = run(3, "--data @/text.txt", &[]);
        assert_eq!(code, Some(Exit::Launch.code()), "{said}");
        assert_eq!(said.matches("was built for 2 ranks (fsdp = 2), and 3 were started").count(), 1, "{said}");
        let (code, said) = run(2, "--data @/text.txt --ranks 2", &[]);
        assert_eq!(code, Some(Exit::Usage.code()), "{said}");
        assert_eq!(said.matches("--ranks asks each for 2 more").count(), 1, "{said}");
        let (code, said) = run(2, "--data @/none", &[]);
        assert_eq!(code, Some(Exit::Failed.code()), "{said}");
        let clock = Instant::now();
        let (code, said) = run(2, "--data @/text.txt --watchdog 1", &[("MLC_FAULT", "stall:1:7")]);
        assert_eq!(code, Some(Exit::Lost.code()), "{said}");
        assert!(said.contains("rank 1 has not arrived"), "{said}");
        assert!(clock.elapsed() < Duration::from_secs(20));
    }
}
