//! Runs command lines in a folder of their own and looks at what they leave.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mlc_runtime::abi::ProgramInfo;
use mlc_runtime::console::Console;
use mlc_runtime::failure::Exit;
use mlc_runtime::signals::Interrupts;
use serde_json::Value;

use crate::{fixture, sharded};

/// A run folder with a text to train on.
pub struct Folder {
    root: tempfile::TempDir,
    /// The program that runs here.
    pub info: ProgramInfo,
}

/// What one command line gave.
pub struct Output {
    pub exit: Exit,
    pub out: String,
    pub err: String,
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Folder {
    pub fn new() -> Folder {
        let root = tempfile::tempdir().unwrap();
        let text = "the quick brown fox jumps over the lazy dog. ".repeat(60);
        std::fs::write(root.path().join("text.txt"), text).unwrap();
        Folder { root, info: fixture::info() }
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Runs one command line; `@` stands for the folder.
    pub fn run(&self, line: &str) -> Output {
        self.run_with(line, "", &Interrupts::Never)
    }

    /// As [`Folder::run`], asked to stop from the first step on.
    pub fn run_interrupted(&self, line: &str) -> Output {
        self.run_with(line, "", &Interrupts::Flag(Arc::new(AtomicBool::new(true))))
    }

    pub fn run_with(&self, line: &str, input: &str, stop: &Interrupts) -> Output {
        let words: Vec<String> = line.split_whitespace().map(|word| self.expand(word)).collect();
        let (out, err) = (Buffer::default(), Buffer::default());
        let input = Box::new(Cursor::new(input.to_owned()));
        let mut console = Console::with(Box::new(out.clone()), Box::new(err.clone()), input);
        let program = match self.info.mesh.is_empty() {
            true => fixture::program_with(&self.info),
            false => sharded::program(&self.info),
        };
        let exit = mlc_runtime::run(&program, &words, &mut console, stop, Instant::now());
        Output { exit, out: out.text(), err: err.text() }
    }

    fn expand(&self, word: &str) -> String {
        word.replace('@', &self.path().display().to_string())
    }

    /// `train` on the folder's text into run folder `out`.
    pub fn train(&self, out: &str, options: &str) -> Output {
        let output = self.run(&format!("train --data @/text.txt --out @/{out} {options}"));
        assert_eq!(output.exit, Exit::Done, "{}", output.err);
        output
    }

    /// Lines of one kind in a metrics file.
    pub fn metrics(&self, out: &str, kind: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file(out).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|v| v["kind"] == kind).collect()
    }

    /// Bits of all losses of a run, with their steps.
    pub fn losses(&self, out: &str) -> Vec<(u64, String)> {
        let steps = self.metrics(out, "step");
        steps
            .iter()
            .map(|v| (v["step"].as_u64().unwrap(), v["loss_bits"].as_str().unwrap().to_owned()))
            .collect()
    }

    /// Steps with a checkpoint, oldest first.
    pub fn checkpoints(&self, out: &str) -> Vec<u64> {
        let mut names = self.names(out);
        names.retain(|name| name.starts_with("step-"));
        names.iter().map(|name| name["step-".len()..].parse().unwrap()).collect()
    }

    /// Names in the checkpoint folder, sorted.
    pub fn names(&self, out: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.file(out).join("ckpt")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
