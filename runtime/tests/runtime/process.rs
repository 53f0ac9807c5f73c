//! The real thing: `mlc_runtime_main` in a process of its own, signals, and kills at arbitrary instants.
//!
//! The child is this test executable itself: with the variable below set, the test `child` runs the command line in it
//! and exits with its code.

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::Folder;
use crate::ranks::shardings;
use crate::{fixture, sharded};

const LINE: &str = "MLC_RUNTIME_TEST_LINE";

#[test]
fn child() {
    let Ok(line) = std::env::var(LINE) else { return };
    let words: Vec<CString> = line.split('\n').map(|word| CString::new(word).unwrap()).collect();
    let argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    let ranks = line.contains("--ranks");
    let (info, entries) = match ranks {
        true => (sharded::info(&shardings()[1]), sharded::ENTRIES),
        false => (fixture::info(), fixture::ENTRIES),
    };
    let code = fixture::with_table_of(&info, &entries, |table| {
        // SAFETY: the arguments and the table are as a generated `main` hands them over.
        unsafe { mlc_runtime::mlc_runtime_main(argv.len() as i32, argv.as_ptr(), table) }
    });
    std::process::exit(code);
}

fn start(folder: &Folder, line: &str) -> Child {
    let words: Vec<String> = std::iter::once("bigram".to_owned())
        .chain(line.split_whitespace().map(|w| w.replace('@', &folder.path().display().to_string())))
        .collect();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["process::child", "--exact", "--nocapture"])
        .env(LINE, words.join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // In a training binary `mlc_runtime_main` runs before any thread exists. In this child the test harness has a thread
    // already, which must not be the one that dies of the signal; what is blocked here stays blocked after exec.
    // SAFETY: only calls that are allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            Ok(())
        })
    };
    command.spawn().unwrap()
}

/// Waits until the run has at least `steps` steps in its metrics file.
fn await_steps(folder: &Folder, out: &str, steps: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let path = folder.file(out).join("metrics.jsonl");
    while std::fs::read_to_string(&path).unwrap_or_default().matches("\"kind\":\"step\"").count() < steps {
        assert!(Instant::now() < deadline, "no {steps} steps within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn sigterm_saves_and_exits_75_and_the_same_command_continues() {
    let folder = Folder::new();
    folder.train("whole", "--set train.steps=400 --checkpoint-every end");
    let line = "train --data @/text.txt --out @/run --set train.steps=400 --threads 2";
    let mut process = start(&folder, line);
    await_steps(&folder, "run", 3);
    // SAFETY: the child has not been waited for, so that its id is still its own.
    unsafe { libc::kill(process.id() as i32, libc::SIGTERM) };
    let code = process.wait().unwrap().code();
    let done = folder.losses("run").len() as u64;
    // A fast machine may have finished before the signal came; then there was nothing to preempt.
    assert!(code == Some(75) || (code == Some(0) && done == 400), "{code:?} after {done} steps");
    assert!(folder.checkpoints("run").contains(&done));
    assert_eq!(start(&folder, line).wait().unwrap().code(), Some(0));
    assert_eq!(folder.losses("run"), folder.losses("whole"));
}

/// Kills with SIGKILL, at instants spread over a run that saves after every step: most fall inside a save, some inside the
/// start.
#[test]
fn kill_at_any_instant_loses_no_bits() {
    let folder = Folder::new();
    folder.train("whole", "");
    let line = "train --data @/text.txt --out @/run --checkpoint-every 1 --threads 2";
    let mut kills = 0;
    // The delays grow, so that a slow machine gets anywhere too.
    for delay_ms in (0..).map(|i| 15 + i * 17 % 60 + 2 * i) {
        let mut process = start(&folder, line);
        std::thread::sleep(Duration::from_millis(delay_ms));
        process.kill().unwrap();
        let status = process.wait().unwrap();
        if status.code() == Some(0) {
            break;
        }
        assert_eq!(status.code(), None, "the run failed");
        kills += 1;
        assert!(kills < 200, "no progress");
    }
    assert_eq!(folder.losses("run"), folder.losses("whole"));
    let shard =
        |run: &str| std::fs::read(folder.file(run).join("ckpt/step-00000040/00001.safetensors")).unwrap();
    assert!(shard("run") == shard("whole"), "the trained weights differ");
}

/// Four ranks in one process, killed in the middle of what they do together, as above. What is compared are the losses, and the
/// trained weights as exported.
#[test]
fn kill_at_any_instant_of_several_ranks_loses_no_bits() {
    let mut folder = Folder::new();
    folder.train("whole", "--set train.steps=20");
    let line =
        "train --data @/text.txt --out @/run --set train.steps=20 --checkpoint-every 1 --threads 2 --ranks 4";
    let mut kills = 0;
    for delay_ms in (0..).map(|i| 40 + i * 37 % 110 + 4 * i) {
        let mut process = start(&folder, line);
        std::thread::sleep(Duration::from_millis(delay_ms));
        process.kill().unwrap();
        let status = process.wait().unwrap();
        if status.code() == Some(0) {
            break;
        }
        assert_eq!(status.code(), None, "the run failed");
        kills += 1;
        assert!(kills < 200, "no progress");
    }
    assert_eq!(folder.losses("run"), folder.losses("whole"));
    let exported = |folder: &Folder, run: &str| {
        let output = folder.run(&format!("export --out @/{run} --to @/{run}.safetensors"));
        assert!(output.out.contains("step-00000020"), "{}{}", output.out, output.err);
        std::fs::read(folder.file(&format!("{run}.safetensors"))).unwrap()
    };
    let whole = exported(&folder, "whole");
    folder.info = sharded::info(&shardings()[1]);
    assert!(exported(&folder, "run") == whole, "the trained weights differ");
}

#[test]
fn sigterm_reaches_all_ranks_of_a_process() {
    let folder = Folder::new();
    folder.train("whole", "--set train.steps=60 --checkpoint-every end");
    let line = "train --data @/text.txt --out @/run --set train.steps=60 --ranks 4";
    let mut process = start(&folder, line);
    await_steps(&folder, "run", 3);
    // SAFETY: the child has not been waited for, so that its id is still its own.
    unsafe { libc::kill(process.id() as i32, libc::SIGTERM) };
    let code = process.wait().unwrap().code();
    let done = folder.losses("run").len() as u64;
    assert!(code == Some(75) || (code == Some(0) && done == 60), "{code:?} after {done} steps");
    assert!(folder.checkpoints("run").contains(&done));
    assert_eq!(start(&folder, line).wait().unwrap().code(), Some(0));
    assert_eq!(folder.losses("run"), folder.losses("whole"));
}

#[test]
fn arguments_reach_the_command_and_its_code_reaches_the_parent() {
    let folder = Folder::new();
    assert_eq!(start(&folder, "info").wait().unwrap().code(), Some(0));
    assert_eq!(start(&folder, "train --stepps 3").wait().unwrap().code(), Some(2));
    assert_eq!(start(&folder, "train --data @/none --out @/x").wait().unwrap().code(), Some(1));
}
