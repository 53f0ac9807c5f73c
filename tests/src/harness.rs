//! What end-to-end tests do again and again: get `mlc`, build a spec, train, read metrics.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// The top of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// The `mlc` command, built by the cargo that runs this test, once per process; with LLVM if this test has it.
pub fn mlc() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "mlc", "--message-format", "json"]);
        if cfg!(not(feature = "llvm")) {
            cargo.arg("--no-default-features");
        }
        let cargo = cargo.current_dir(root()).output().expect("cargo starts");
        assert!(cargo.status.success(), "building mlc failed:\n{}", String::from_utf8_lossy(&cargo.stderr));
        let messages = String::from_utf8(cargo.stdout).expect("cargo writes UTF-8");
        let mut executables = messages.lines().filter_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            let is_mlc = message["target"]["name"] == "mlc";
            is_mlc.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        });
        executables.next_back().expect("cargo names the executable of mlc")
    })
}

/// A folder of one test, removed at its end unless the test fails.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty folder whose name holds `test`.
    pub fn new(test: &str) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mlc-{test}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Scratch(path)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Left-over files are a nuisance, not a failure of what was tested.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Standard output and error of a command that must have succeeded.
#[track_caller]
pub fn succeed(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    (stdout, stderr)
}

/// Standard output and error as text.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// `mlc build SPEC -o OUT --set …`; the path of the spec is relative to the checkout. Returns what `mlc` printed.
#[track_caller]
pub fn build(spec: &str, out: &Path, sets: &[&str]) -> String {
    build_file(&root().join(spec), out, sets)
}

/// As [`build`], of any file.
#[track_caller]
pub fn build_file(spec: &Path, out: &Path, sets: &[&str]) -> String {
    let mut command = Command::new(mlc());
    command.arg("build").arg(spec).arg("-o").arg(out);
    for set in sets {
        command.args(["--set", set]);
    }
    let (stdout, stderr) = succeed(&mut command);
    stdout + &stderr
}

/// `BINARY train --out DIR …` as a command, not started yet.
pub fn train(binary: &Path, out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.arg("train").arg("--out").arg(out).args(arguments);
    command
}

/// One line of kind `step` in `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Counted from 1.
    pub step: u64,
    /// Mean loss before the update, in nats.
    pub loss: f64,
    /// Gradient norm before clipping, `None` where the program computes none.
    pub grad_norm: Option<f64>,
    /// The loss's bits as the program computed them.
    pub loss_bits: String,
}

/// The step lines of a metrics file, in order. A last line without an end is left out: a killed run leaves one.
#[track_caller]
pub fn steps(metrics: &Path) -> Vec<Step> {
    let text = std::fs::read_to_string(metrics).unwrap_or_else(|e| panic!("{}: {e}", metrics.display()));
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(|line| {
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}: {line}", metrics.display()));
        (value["kind"] == "step").then(|| Step {
            step: value["step"].as_u64().expect("a step has a number"),
            loss: value["loss"].as_f64().unwrap_or(f64::NAN),
            grad_norm: value["grad_norm"].as_f64(),
            loss_bits: value["loss_bits"].as_str().expect("a step has its loss's bits").to_string(),
        })
    });
    lines.flatten().collect()
}

/// `(step, bits of the loss)` of every step line: equal for two runs that computed the same.
#[track_caller]
pub fn loss_bits(metrics: &Path) -> Vec<(u64, String)> {
    steps(metrics).into_iter().map(|step| (step.step, step.loss_bits)).collect()
}

/// Text with some structure, so that a byte-level model has something to learn: arithmetic facts in words.
pub fn learnable_text(bytes: usize) -> String {
    const DIGITS: [&str; 10] =
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let mut text = String::with_capacity(bytes + 64);
    let mut n: usize = 1;
    while text.len() < bytes {
        n = (n * 75 + 74) % 65537;
        let (a, b) = (n % 10, n / 10 % 10);
        text += &format!("{} plus {} is {}.\n", DIGITS[a], DIGITS[b], a + b);
    }
    text.truncate(bytes);
    text
}
