//! From a spec to a binary to a training, as a user would do it, on a Llama small enough for milliseconds.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mlc_tests::elf;
use mlc_tests::harness::{
    Scratch, build, learnable_text, loss_bits, mlc, root, steps, succeed, texts, train,
};

const TINY: &str = "tests/models/tiny/tiny.spec";

/// One binary of the tiny spec for all tests of this file, with its text beside it.
fn tiny() -> &'static (PathBuf, PathBuf) {
    static TINY_BINARY: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    TINY_BINARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (binary, text) = (folder.join("tiny"), folder.join("tiny.txt"));
        std::fs::write(&text, learnable_text(40_000)).expect("the temporary folder is writable");
        build(TINY, &binary, &[]);
        (binary, text)
    })
}

/// The losses of an uninterrupted training with these arguments besides data and folder.
fn train_tiny(test: &str, arguments: &[&str]) -> Vec<(u64, String)> {
    let (binary, text) = tiny();
    let run = Scratch::new(test);
    succeed(train(binary, run.path(), arguments).arg("--data").arg(text));
    loss_bits(&run.join("metrics.jsonl"))
}

fn last_losses_mean(losses: &[f64]) -> f64 {
    let tail = &losses[losses.len() - 5..];
    tail.iter().sum::<f64>() / tail.len() as f64
}

#[test]
fn training_lowers_the_loss() {
    let (binary, text) = tiny();
    let run = Scratch::new("falls");
    succeed(train(binary, run.path(), &[]).arg("--data").arg(text));
    let losses: Vec<f64> = steps(&run.join("metrics.jsonl")).iter().map(|step| step.loss).collect();
    assert_eq!(losses.len(), 40, "the spec asks for 40 steps");
    // Fresh weights of standard deviation 0.02 predict next to nothing: ln(256) nats, within what 4 · 32 tokens can vary.
    assert!((losses[0] - 256f64.ln()).abs() < 0.1, "first loss: {}", losses[0]);
    // The text has 26 different bytes, ln(26) = 3.26: below 3 the model knows more than which bytes occur.
    assert!(last_losses_mean(&losses) < 3.0, "losses: {losses:?}");
}

#[test]
fn two_builds_are_the_same_bytes() {
    let (first, _) = tiny();
    let folder = Scratch::new("twice");
    let second = folder.join("tiny");
    // The second build finds no object made before.
    let mut command = Command::new(mlc());
    command.arg("build").arg(root().join(TINY)).arg("-o").arg(&second).env("MLC_CACHE", "");
    succeed(&mut command);
    let (first, second) = (std::fs::read(first), std::fs::read(second));
    assert!(first.expect("built") == second.expect("built"), "two builds of one spec differ");
}

#[cfg(feature = "llvm")]
#[test]
fn every_kernel_comes_through_an_mlir_module() {
    use mlc::pipeline::{Identity, Runner, compile};
    use mlc::spec::{FileLoader, SourceMap, check, diagnostic};
    use mlc_codegen::Codegen;
    use mlc_codegen::build::BuildOptions;
    use mlc_codegen::target::Target;
    let mut sources = SourceMap::new();
    let path = root().join(TINY);
    let checked = check(&mut sources, &FileLoader, &path.to_string_lossy(), &[]);
    let (spec, _) =
        checked.unwrap_or_else(|errors| panic!("{}", diagnostic::render_all(&errors, &sources, false)));
    let identity = Identity { spec: String::new(), rebuild: String::new() };
    let compiled =
        compile(&spec, &sources, &identity, &mut Runner::default()).unwrap_or_else(|e| panic!("{e:?}"));
    let target = Target::host().expect("this machine is one mlc compiles for");
    let codegen = Codegen::Llvm;
    let options = BuildOptions { target, codegen, cache: None, jobs: 2, worker: None, progress: &|_| () };
    let built = mlc_codegen::build(&compiled.program, &options).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(built.kernels.len(), compiled.program.kernels.len());
    for kernel in &built.kernels {
        assert!(kernel.came_through_mlir, "{} did not come through MLIR", kernel.name);
    }
}

/// Two trainings by binaries of different back ends have the same bits.
#[cfg(feature = "llvm")]
#[test]
fn cranelift_trains_with_the_bits_of_llvm() {
    let (_, text) = tiny();
    let folder = Scratch::new("cranelift");
    let binary = folder.join("tiny-cranelift");
    let mut command = Command::new(mlc());
    command.arg("build").arg(root().join(TINY)).arg("-o").arg(&binary).args(["--codegen", "cranelift"]);
    let (printed, _) = succeed(&mut command);
    assert!(printed.contains(" by cranelift "), "{printed}");
    succeed(train(&binary, folder.path(), &[]).arg("--data").arg(text));
    assert_eq!(loss_bits(&folder.join("metrics.jsonl")), train_tiny("by-llvm", &[]));
}

#[test]
fn a_code_generator_that_is_not_there_is_one_clear_error() {
    let build = |codegen: &str| {
        let mut command = Command::new(mlc());
        command.arg("build").arg(root().join(TINY)).args(["--codegen", codegen]);
        command.output().expect("mlc starts")
    };
    let unknown = build("gcc");
    assert_eq!(unknown.status.code(), Some(3));
    assert_eq!(texts(&unknown).1, "error: unknown code generator `gcc`; known are llvm, cranelift\n");
    if cfg!(not(feature = "llvm")) {
        let missing = build("llvm");
        assert_eq!(missing.status.code(), Some(3));
        let (_, message) = texts(&missing);
        assert!(message.starts_with("error: this mlc was built without the feature `llvm`"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn the_binary_is_static_and_small() {
    let bytes = std::fs::read(&tiny().0).expect("built");
    assert!(elf::is_static(&bytes), "the binary asks for a loader");
    assert!(bytes.len() < 10_000_000, "{} bytes", bytes.len());
}

#[test]
fn the_binary_trains_in_an_empty_chroot() {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        println!("not root: chroot is not allowed, nothing was tested");
        return;
    }
    let (binary, text) = tiny();
    let cell = Scratch::new("chroot");
    std::fs::copy(binary, cell.join("tiny")).expect("copied");
    std::fs::copy(text, cell.join("text.txt")).expect("copied");
    let mut command = Command::new("/tiny");
    command.args(["train", "--data", "/text.txt", "--out", "/run", "--steps", "3"]).env_clear();
    let path =
        std::ffi::CString::new(cell.path().as_os_str().as_encoded_bytes()).expect("no zero byte in a path");
    // SAFETY: chroot and chdir are async-signal-safe, and `path` lives until the child is spawned.
    unsafe {
        command.pre_exec(move || {
            if libc::chroot(path.as_ptr()) != 0 || libc::chdir(c"/".as_ptr()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    succeed(&mut command);
    assert_eq!(steps(&cell.join("run/metrics.jsonl")).len(), 3);
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let one = train_tiny("one-thread", &["--threads", "1"]);
    assert_eq!(one.len(), 40);
    assert_eq!(one, train_tiny("two-threads", &["--threads", "2"]));
    assert_eq!(one, train_tiny("four-threads", &["--threads", "4"]));
}

#[test]
fn two_runs_give_the_same_bits_and_another_seed_gives_others() {
    let first = train_tiny("seed-a", &["--steps", "5"]);
    assert_eq!(first, train_tiny("seed-b", &["--steps", "5"]));
    assert_ne!(first, train_tiny("seed-c", &["--steps", "5", "--seed", "8"]));
}

#[test]
fn stopping_early_and_resuming_gives_the_same_bits() {
    let (binary, text) = tiny();
    let whole = train_tiny("whole", &[]);
    let run = Scratch::new("resumed");
    for until in ["7", "23", "40"] {
        succeed(train(binary, run.path(), &["--steps", until]).arg("--data").arg(text));
    }
    assert_eq!(loss_bits(&run.join("metrics.jsonl")), whole);
}

#[test]
fn sigterm_saves_and_exits_75_and_the_same_command_continues() {
    let (binary, text) = tiny();
    let arguments = ["--set", "train.steps=4000", "--checkpoint-every", "end"];
    let run = Scratch::new("sigterm");
    let start = || {
        let mut command = train(binary, run.path(), &arguments);
        command.arg("--data").arg(text).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut child = start().spawn().expect("the binary starts");
    wait_for_steps(&run.join("metrics.jsonl"), 20);
    kill(child.id(), libc::SIGTERM);
    let status = child.wait().expect("the child can be waited for");
    assert_eq!(status.code(), Some(75), "{status}");
    let done = steps(&run.join("metrics.jsonl")).len() as u64;
    assert!((20..4000).contains(&done), "{done} steps were done");

    let until = (done + 10).to_string();
    succeed(start().args(["--steps", &until]));
    let resumed = loss_bits(&run.join("metrics.jsonl"));
    let reference = train_tiny("sigterm-reference", &["--set", "train.steps=4000", "--steps", &until]);
    assert_eq!(resumed, reference);
}

#[test]
fn a_corrupted_newest_checkpoint_is_passed_over_for_the_one_before() {
    let (binary, text) = tiny();
    let whole = train_tiny("corrupt-whole", &[]);
    let run = Scratch::new("corrupt");
    succeed(train(binary, run.path(), &["--steps", "20"]).arg("--data").arg(text));
    let newest = weight_files(run.path()).pop().expect("a checkpoint was written");
    let mut bytes = std::fs::read(&newest).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).expect("writable");
    let (stdout, stderr) = succeed(train(binary, run.path(), &[]).arg("--data").arg(text));
    assert!((stdout + &stderr).contains("does not match its hash"), "the fallback is reported: {stderr}");
    assert_eq!(loss_bits(&run.join("metrics.jsonl")), whole);
}

#[test]
fn a_baked_key_answers_with_the_rebuild_command() {
    let (binary, _) = tiny();
    for set in ["train.seq=64", "Llama.layers=3"] {
        let output = Command::new(binary).args(["train", "--set", set]).output().expect("the binary starts");
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("mlc build") && stderr.contains(&format!("--set {set}")), "{stderr}");
    }
}

/// Kills the training at 50 random instants, at least ten of them while a checkpoint is being written, and lets each next
/// run continue. What the metrics say in the end must be, bit for bit, what a run that was never killed says.
#[test]
fn kill_9_at_any_instant_loses_nothing_but_time() {
    const KILLS: u32 = 50;
    const INSIDE_MIN: u32 = 10;
    let (binary, text) = tiny();
    let long = ["--set", "train.steps=1000000", "--checkpoint-every", "2"];
    let run = Scratch::new("kill");
    let metrics = run.join("metrics.jsonl");
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let (mut kills, mut inside) = (0, 0);
    while kills < KILLS || inside < INSIDE_MIN {
        assert!(kills < 20 * KILLS, "only {inside} of {kills} kills hit a checkpoint write");
        let mut command = train(binary, run.path(), &long);
        command.arg("--data").arg(text).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary starts");
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_micros(20_000 + (random >> 33) % 80_000));
        let alive = child.try_wait().expect("the child can be waited for").is_none();
        assert!(alive, "the run ended by itself");
        kill(child.id(), libc::SIGKILL);
        child.wait().expect("the child can be waited for");
        kills += 1;
        inside += u32::from(unfinished_checkpoint(run.path()));
    }
    let reached = steps(&metrics).last().map_or(0, |step| step.step);
    let until = (reached + 5).to_string();
    succeed(train(binary, run.path(), &long).args(["--steps", &until]).arg("--data").arg(text));
    let reference = ["--set", "train.steps=1000000", "--checkpoint-every", "never", "--steps", &until];
    let whole = train_tiny("kill-whole", &reference);
    assert!(reached >= 10, "only {reached} steps were reached: the kills came too early to test anything");
    println!("{kills} kills, {inside} of them inside a checkpoint write, {reached} steps");
    assert_eq!(loss_bits(&metrics), whole);
}

/// Whether the folder holds a checkpoint that was begun and not published.
fn unfinished_checkpoint(run: &Path) -> bool {
    let folder = run.join("ckpt");
    let Ok(entries) = std::fs::read_dir(&folder) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-write-"))
}

/// The weight files of all checkpoints of a run, oldest first.
fn weight_files(run: &Path) -> Vec<PathBuf> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(run.join("ckpt")).expect("a checkpoint folder").flatten() {
        if !entry.file_name().to_string_lossy().starts_with("step-") {
            continue;
        }
        for file in std::fs::read_dir(entry.path()).expect("a checkpoint").flatten() {
            if file.path().extension().is_some_and(|extension| extension == "safetensors") {
                found.insert((entry.file_name(), file.file_name()), file.path());
            }
        }
    }
    found.into_values().collect()
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: kill has no memory preconditions; the child has not been waited for, so its id is its own.
    let result = unsafe { libc::kill(pid as i32, signal) };
    assert_eq!(result, 0, "kill: {}", std::io::Error::last_os_error());
}

fn wait_for_steps(metrics: &Path, n: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !metrics.exists() || steps(metrics).len() < n {
        assert!(Instant::now() < deadline, "{n} steps took longer than a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}
