//! Rules of the tree that no compiler checks: walls between rooms, the fixed top level, words that may not land.
//!
//! Every check collects all it finds and prints `file:line: what`, so that one run shows everything.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folders and files that may lie at the top; dot files apart.
const TOP_LEVEL: [&str; 14] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "codegen",
    "compiler",
    "docs",
    "examples",
    "runtime",
    "rustfmt.toml",
    "specs",
];

/// Crates that a room may not name, in its manifest or in its code: what stands on the other side of its walls.
const WALLS: [(&str, &[&str]); 3] = [
    ("compiler", &["inkwell", "mlir_sys", "llvm_sys", "melior", "cranelift", "cudarc", "mpi", "libloading"]),
    ("codegen", &["mlc"]),
    ("runtime", &["mlc", "mlc_codegen", "inkwell", "mlir_sys", "llvm_sys", "cranelift"]),
];

/// The stages of `compiler/src`, in the order in which data flows. A stage may name itself and those before it.
const STAGES: [&str; 12] = [
    "spec", "graph", "cost", "autodiff", "remat", "sharding", "spmd", "fuse", "schedule", "memory", "lower",
    "pipeline",
];

/// A file longer than this holds a second idea.
const LINES_MAX: usize = 1100;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Paths of all tracked files and of new ones that git does not ignore, relative to the root.
fn files() -> Vec<String> {
    let list = Command::new("git")
        // A checkout may belong to another user than the one who tests it, in a container for instance.
        .args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs: tidiness is checked in a checkout");
    assert!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    let text = String::from_utf8(list.stdout).expect("file names are UTF-8");
    text.lines().filter(|path| root().join(path).exists()).map(str::to_string).collect()
}

fn rust_files(folder: &str) -> Vec<String> {
    let inside = |path: &String| path.starts_with(&format!("{folder}/")) && path.ends_with(".rs");
    files().into_iter().filter(inside).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

/// `(line number, line)` of a Rust file without comment lines; strings stay.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether `line` names `word` as a path root: `word::`, `use word`, `extern crate word`.
fn names_crate(line: &str, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = &line[..at];
        let after = &line[at + word.len()..];
        let whole = !before.ends_with(is_word) && !after.starts_with(is_word);
        let imported = before.trim_end().ends_with("use") || before.trim_end().ends_with("crate");
        whole
            && !before.ends_with("::")
            && (after.starts_with("::") || (imported && !after.starts_with("::")))
    })
}

#[track_caller]
fn assert_none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}\n{}", found.join("\n"));
}

#[test]
fn names_crate_sees_paths_and_imports_only() {
    assert!(names_crate("use mlc::spec;", "mlc"));
    assert!(names_crate("    let x = mlc::spec::parse(text);", "mlc"));
    assert!(!names_crate("use mlc_runtime::abi;", "mlc"));
    assert!(!names_crate("the mlc command", "mlc"));
    assert!(!names_crate("use crate::mlc::x;", "mlc"));
}

#[test]
fn top_level_is_fixed() {
    let top: BTreeSet<String> =
        files().iter().map(|path| path.split('/').next().unwrap_or(path).to_string()).collect();
    let allowed: BTreeSet<&str> = TOP_LEVEL.into_iter().chain(["tests"]).collect();
    let extra = top.iter().filter(|name| !name.starts_with('.') && !allowed.contains(name.as_str()));
    assert_none(extra.cloned().collect(), "the top level is fixed; these do not belong there:");
    for needed in ["CHANGELOG.md", "Makefile", "README.md", ".ci/run"] {
        assert!(root().join(needed).is_file(), "{needed} is missing");
    }
    assert!(read("CHANGELOG.md").contains("## Unreleased"), "CHANGELOG.md has no section `## Unreleased`");
}

#[test]
fn rooms_do_not_name_what_is_behind_their_walls() {
    let mut found = Vec::new();
    for (room, forbidden) in WALLS {
        for path in rust_files(room) {
            let text = read(&path);
            for (number, line) in code_lines(&text) {
                for word in forbidden.iter().filter(|word| names_crate(line, word)) {
                    found.push(format!("{path}:{number}: names `{word}`: {}", line.trim()));
                }
            }
        }
        let manifest = read(&format!("{room}/Cargo.toml"));
        let section = manifest.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("");
        for dependency in section.lines().filter_map(|line| line.split(['.', '=', ' ']).next()) {
            let name = dependency.trim().replace('-', "_");
            if forbidden.contains(&name.as_str())
                || (name.starts_with("cranelift") && forbidden.contains(&"cranelift"))
            {
                found.push(format!("{room}/Cargo.toml: depends on `{dependency}`"));
            }
        }
    }
    assert_none(found, "a room names something behind its walls (docs/architecture.md has the table):");
}

#[test]
fn stages_name_only_earlier_stages() {
    let position = |stage: &str| STAGES.iter().position(|s| *s == stage);
    let mut found = Vec::new();
    for path in rust_files("compiler").into_iter().filter(|path| !is_test_file(path)) {
        let stage = path.trim_start_matches("compiler/src/").split(['/', '.']).next().unwrap_or("");
        let Some(own) = position(stage) else { continue };
        let text = read(&path);
        for (number, line) in code_lines(&text).take_while(|(_, line)| !line.contains("#[cfg(test)]")) {
            for (at, _) in line.match_indices("crate::") {
                let used: String =
                    line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if position(&used).is_some_and(|other| other > own) {
                    found.push(format!("{path}:{number}: `{stage}` names the later stage `{used}`"));
                }
            }
        }
    }
    assert_none(found, "data goes down the list of stages, never up:");
}

#[test]
fn only_the_edges_touch_files() {
    let allowed = [
        "compiler/src/main.rs",
        "compiler/src/cli",
        "compiler/src/spec/load.rs",
        "compiler/src/spec/source.rs",
    ];
    let mut found = Vec::new();
    for path in rust_files("compiler").into_iter().filter(|path| !is_test_file(path)) {
        if allowed.iter().any(|edge| path.starts_with(edge)) {
            continue;
        }
        let text = read(&path);
        for (number, line) in code_lines(&text).take_while(|(_, line)| !line.contains("#[cfg(test)]")) {
            if line.contains("std::fs")
                || line.contains("fs::read")
                || line.contains("fs::write")
                || line.contains("File::open")
            {
                found.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none(found, "only the command line and the spec loader touch files:");
}

#[test]
fn forbidden_words_are_absent() {
    // Written in two halves, so that this file does not hold them.
    let words: [(&str, &str); 9] = [
        ("tod", "o!("),
        ("unimplement", "ed!("),
        ("#[ign", "ore"),
        ("TO", "DO"),
        ("FIX", "ME"),
        ("/ro", "ot/"),
        ("/ho", "me/"),
        ("/wo", "rk/"),
        ("db", "g!("),
    ];
    let text_like = |path: &str| {
        let kinds = [".rs", ".md", ".toml", ".sh", ".py", ".spec", ".pest", ".yml"];
        kinds.iter().any(|kind| path.ends_with(kind)) || path == "Makefile" || path.starts_with(".ci/")
    };
    let mut found = Vec::new();
    for path in files().into_iter().filter(|path| text_like(path)) {
        for (i, line) in read(&path).lines().enumerate() {
            for (first, second) in words {
                if line.contains(&format!("{first}{second}")) {
                    found.push(format!("{path}:{}: `{first}{second}`", i + 1));
                }
            }
        }
    }
    assert_none(found, "unfinished work or a path of one machine:");
}

#[test]
fn output_never_depends_on_hash_order() {
    let mut found = Vec::new();
    for path in ["compiler", "codegen"].into_iter().flat_map(rust_files) {
        let text = read(&path);
        for (number, line) in code_lines(&text) {
            if line.contains("HashMap") || line.contains("HashSet") {
                found.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none(found, "use BTreeMap, BTreeSet or a Vec: hash order must not reach any output:");
}

#[test]
fn files_stay_readable() {
    let mut found = Vec::new();
    for path in files().into_iter().filter(|path| path.ends_with(".rs")) {
        let lines = read(&path).lines().count();
        if lines > LINES_MAX {
            found.push(format!("{path}: {lines} lines; the limit is {LINES_MAX}"));
        }
    }
    assert_none(found, "a second idea hides in a file this long:");
}

/// A page without its code, fenced or inline.
fn prose(markdown: &str) -> String {
    let outside_fences = markdown.split("```").step_by(2);
    outside_fences.flat_map(|text| text.split('`').step_by(2)).collect()
}

/// Relative links of the documentation lead somewhere.
#[test]
fn links_between_pages_hold() {
    let mut found = Vec::new();
    for path in files().into_iter().filter(|path| path.ends_with(".md")) {
        let folder = Path::new(&path).parent().unwrap_or(Path::new("")).to_path_buf();
        let text = prose(&read(&path));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            if !target.is_empty() && !target.contains("://") && !root().join(&folder).join(target).exists() {
                found.push(format!("{path}: {link}"));
            }
        }
    }
    assert_none(found, "links that lead nowhere:");
}

#[test]
fn every_package_takes_the_workspace_lints() {
    for package in ["compiler", "codegen", "runtime", "tests"] {
        let manifest = read(&format!("{package}/Cargo.toml"));
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{package}/Cargo.toml does not take the workspace's lints"
        );
    }
    assert!(
        read("Cargo.toml").contains("missing_docs"),
        "the workspace no longer lints undocumented public items"
    );
}

/// In a folder `passes/`, every file holds the function of its name, and every name in the table of passes is a function of
/// the compiler.
#[test]
fn a_pass_file_holds_the_function_of_its_name() {
    let mut found = Vec::new();
    let sources: Vec<(String, String)> =
        rust_files("compiler").into_iter().map(|path| (path.clone(), read(&path))).collect();
    let in_folder =
        |path: &str| path.contains("/passes/") && !path.ends_with("/mod.rs") && !is_test_file(path);
    for (path, text) in sources.iter().filter(|(path, _)| in_folder(path)) {
        let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
        if !text.contains(&format!("pub fn {name}(")) {
            found.push(format!("{path} has no `pub fn {name}`"));
        }
    }
    let table = read("compiler/src/passes.rs");
    let rows = table.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split_once("\", "));
    let names: Vec<&str> = rows.map(|(name, _)| name).collect();
    assert!(names.len() >= 10, "the table of passes is no longer read: {names:?}");
    for name in names {
        let function = format!("pub fn {}(", name.replace('-', "_"));
        if !sources.iter().any(|(_, text)| text.contains(&function)) {
            found.push(format!("compiler/src/passes.rs: the pass `{name}` has no `{function}`"));
        }
    }
    assert_none(found, "a pass is a file and a function of one name:");
}
