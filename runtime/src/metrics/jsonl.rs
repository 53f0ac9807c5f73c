//! `metrics.jsonl`: one JSON object a line.
//!
//! ```text
//! {"kind":"run","step":0,"model":…,"fingerprint":…,"seed":…,"threads":…,…}     a start or a resume after `step` steps
//! {"kind":"step","step":1,"loss":…,"loss_bits":"40f1b0a3",…,"seconds":…}       every step, counted from 1
//! {"kind":"eval","step":500,"loss":…,"bits_per_byte":…,"tokens":…}
//! ```
//! Numbers are shortest decimals that read back to the same binary64; `loss_bits` are the bits the program computed.
//! A line is written with one system call when its step is done, so that a killed run leaves at most its last line
//! incomplete. A resumed run first drops all lines of steps it is going to repeat. A file that holds anything else is
//! refused and stays as it is.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::StepRecord;
use crate::failure::Failure;

/// An open metrics file.
pub struct MetricsFile {
    file: File,
    path: PathBuf,
    /// First failure to write, reported once at the end.
    failure: Option<Failure>,
}

impl MetricsFile {
    /// Opens the file for a run that begins after `step` steps: keeps the lines up to that step, drops the rest.
    ///
    /// # Errors
    /// As for [`check`], or the file or its folder cannot be made.
    pub fn open(path: &Path, step: u64) -> Result<MetricsFile, Failure> {
        check(path)?;
        let failed = |e: std::io::Error| Failure::io("write", path, e);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        keep_until(path, step).map_err(failed)?;
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        Ok(MetricsFile { file, path: path.to_owned(), failure: None })
    }

    /// Records a step.
    pub fn step(&mut self, record: &StepRecord) {
        let mut fields = vec![("step", Value::from(record.step)), ("loss", number(record.outcome.loss))];
        fields.push(("loss_bits", record.outcome.loss_bits.as_str().into()));
        for (name, value) in &record.outcome.outputs {
            if name != "loss" {
                fields.push((name, number(*value)));
            }
        }
        let seconds = record.time.as_secs_f64();
        fields.push(("seconds", number(seconds)));
        fields.push(("tokens_per_s", number(record.tokens as f64 / seconds)));
        fields.push(("gflops", number(record.flops as f64 / seconds / 1e9)));
        self.write("step", fields);
    }

    /// Records anything else.
    pub fn write(&mut self, kind: &str, fields: Vec<(&str, Value)>) {
        // Written by hand because the order of the fields is for people; names and values go through serde_json.
        let mut line = format!("{{\"kind\":{}", Value::from(kind));
        for (name, value) in fields {
            line.push_str(&format!(",{}:{value}", Value::from(name)));
        }
        line.push_str("}\n");
        if let Err(e) = self.file.write_all(line.as_bytes()) {
            self.failure.get_or_insert(Failure::io("write", &self.path, e));
        }
    }

    /// The first failure to write, if there was one.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }
}

/// A JSON number, or `null` for what JSON cannot say (infinity, NaN).
pub fn number(value: f64) -> Value {
    Value::from(value)
}

/// The kinds of lines.
const KINDS: [&str; 3] = ["run", "step", "eval"];
/// A first line is much shorter than this; no more than this is read to recognise it.
const FIRST_LINE_BYTES: u64 = 1 << 16;

/// Whether a run may write its metrics to `path`: there is no file, or an empty one, or one that begins like ours.
///
/// # Errors
/// The file holds something else, or cannot be read.
pub fn check(path: &Path) -> Result<(), Failure> {
    if !path.is_file() {
        return Ok(());
    }
    let failed = |e: std::io::Error| Failure::io("read", path, e);
    let mut start = Vec::new();
    File::open(path).map_err(failed)?.take(FIRST_LINE_BYTES).read_to_end(&mut start).map_err(failed)?;
    if start.is_empty() || is_ours(&start) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "error: {} is not a metrics file: its first line is none of a run's\n\
         It was left as it is. Choose another file with --metrics, or move it away.",
        path.display()
    )))
}

/// Whether a file that begins with `start` was written by a run: its first line is an object with a known `kind` and a
/// `step`, or what a killed run left of one.
fn is_ours(start: &[u8]) -> bool {
    let Some(end) = start.iter().position(|&b| b == b'\n') else {
        let opening = br#"{"kind":"run","step":"#;
        return start.starts_with(opening) || opening.starts_with(start);
    };
    let line: Option<Value> = serde_json::from_slice(&start[..end]).ok();
    line.is_some_and(|line| {
        let kind = line.get("kind").and_then(Value::as_str);
        kind.is_some_and(|kind| KINDS.contains(&kind)) && line.get("step").is_some_and(Value::is_u64)
    })
}

/// Rewrites the file without the lines of later steps and without a broken last line. What is no regular file, like a
/// device or a pipe, is only written to.
fn keep_until(path: &Path, step: u64) -> std::io::Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let bytes = std::fs::read(path)?;
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let parsed: Option<Value> = serde_json::from_slice(line).ok();
        let line_step = parsed.as_ref().and_then(|v| v.get("step")).and_then(Value::as_u64);
        // A start at step 0 begins a new history: not even an earlier start's own line is kept.
        if line.ends_with(b"\n") && line_step.is_some_and(|s| s <= step && step > 0) {
            kept.extend_from_slice(line);
        }
    }
    if kept.len() == bytes.len() {
        return Ok(());
    }
    let temporary = path.with_extension("jsonl.tmp");
    std::fs::write(&temporary, kept)?;
    std::fs::rename(temporary, path)
}
