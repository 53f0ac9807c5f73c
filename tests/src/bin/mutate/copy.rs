//! The copy of the sources that holds the mutants.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::tables::{Changed, TABLES, Tables};

/// Function of the sources' copy that gives the active mutant's number; asked at every place, with the place's number. If
/// `MLC_MUTANT_PLACES` names a file, the numbers asked for are added to it.
const ACTIVE: &str = "
#[doc(hidden)]
pub fn active_mutant(place: u32) -> u32 {
    use std::io::Write;
    use std::sync::{Mutex, OnceLock};
    static ACTIVE: OnceLock<(u32, Option<std::path::PathBuf>)> = OnceLock::new();
    static PLACES: Mutex<std::collections::BTreeSet<u32>> = Mutex::new(std::collections::BTreeSet::new());
    let (mutant, places) = ACTIVE.get_or_init(|| {
        let mutant = std::env::var(\"MLC_MUTANT\").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        (mutant, std::env::var_os(\"MLC_MUTANT_PLACES\").map(Into::into))
    });
    if let Some(path) = places && PLACES.lock().unwrap().insert(place) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(format!(\"{place}\\n\").as_bytes()).unwrap();
    }
    *mutant
}
";

/// Copies what git tracks but the tables, which [`write_what_compiles`] writes, and makes the crate's active mutant known.
/// What is the same already is left alone: a file's age tells cargo what to build.
///
/// # Panics
/// The copy can't be written.
pub fn copy_sources(root: &Path, copy: &Path) {
    let list = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().expect("git runs");
    for path in String::from_utf8_lossy(&list.stdout).split('\0').filter(|p| root.join(p).is_file()) {
        let mut text = std::fs::read(root.join(path)).expect("the sources can be read");
        if TABLES.iter().any(|table| path.strip_prefix("compiler/src/") == Some(table)) {
            continue;
        }
        if path == "compiler/src/lib.rs" {
            text.extend_from_slice(ACTIVE.as_bytes());
        }
        update(&copy.join(path), &text);
    }
}

/// Writes a file unless it says this already.
fn update(path: &Path, text: &[u8]) {
    if std::fs::read(path).is_ok_and(|there| there == text) {
        return;
    }
    std::fs::create_dir_all(path.parent().expect("files lie in folders")).expect("the copy can be made");
    std::fs::write(path, text).expect("the copy can be written");
}

/// Puts the mutants into the copy; gives the numbers of those left out because they don't type-check.
///
/// # Panics
/// The copy does not compile without mutants.
pub fn write_what_compiles(tables: &Tables, copy: &Path, target: &Path) -> BTreeSet<u32> {
    // What an earlier run with the same tables left out is left out at once.
    let known = copy.join("left-out.json");
    let key: String = tables.changed(&BTreeSet::new()).into_values().map(|changed| changed.text).collect();
    let key = blake3::hash(key.as_bytes()).to_hex().to_string();
    let before = std::fs::read_to_string(&known).ok();
    let before: Option<(String, BTreeSet<u32>)> = before.and_then(|text| serde_json::from_str(&text).ok());
    let mut dropped = match before {
        Some((old, dropped)) if old == key => dropped,
        Some(_) | None => BTreeSet::new(),
    };
    loop {
        let files = tables.changed(&dropped);
        files.iter().for_each(|(path, changed)| update(&copy.join(path), changed.text.as_bytes()));
        let more = faulty(copy, target, &files);
        if more.is_empty() {
            update(&known, serde_json::json!((key, &dropped)).to_string().as_bytes());
            return dropped;
        }
        eprintln!("mutate: {} mutants don't type-check", more.len());
        dropped.extend(more);
    }
}

/// Cargo in the copy.
pub fn cargo(copy: &Path, target: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).args(["--no-default-features", "--message-format", "json"]);
    command.current_dir(copy).env("CARGO_TARGET_DIR", target);
    command
}

/// The mutants that the compiler's errors point at.
fn faulty(copy: &Path, target: &Path, files: &BTreeMap<String, Changed>) -> BTreeSet<u32> {
    let mut command = cargo(copy, target, &["check", "-p", "mlc", "--lib"]);
    let output = command.stderr(Stdio::null()).output().expect("cargo starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut faulty = BTreeSet::new();
    for line in text.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if message["message"]["level"] != "error" {
            continue;
        }
        let spans = message["message"]["spans"].as_array().cloned().unwrap_or_default();
        for span in spans {
            let Some(file) = span["file_name"].as_str().and_then(|f| files.get(f)) else { continue };
            let at = |key: &str| span[key].as_u64().unwrap_or(0) as usize;
            let (start, end) = (at("byte_start"), at("byte_end"));
            let touching = file.spans.iter().filter(|(range, _)| range.start < end && start < range.end);
            // The narrowest text around the error is the mutant at fault.
            let narrowest = touching.clone().map(|(range, _)| range.len()).min();
            faulty.extend(touching.filter(|(range, _)| Some(range.len()) == narrowest).map(|(_, n)| *n));
        }
    }
    assert!(
        output.status.success() || !faulty.is_empty(),
        "the copy does not compile, and no mutant is at fault:\n{text}"
    );
    faulty
}
