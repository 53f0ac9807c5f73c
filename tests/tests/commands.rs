//! The commands of `mlc` that need no training: formatting, explaining, diagnosing, messages as data.

use std::path::Path;
use std::process::Command;

use mlc::spec::codes;
use mlc_tests::harness::{Scratch, mlc, root, succeed, texts};
use serde_json::Value;

const BROKEN: &str =
    "spec 1\nmodel A {\n    size x = 2\n    param w[x] = ones\n    loss mean[x](w + missing)\n}\n";

fn file(scratch: &Scratch, name: &str, text: &str) -> std::path::PathBuf {
    let path = scratch.join(name);
    std::fs::write(&path, text).expect("the temporary folder is writable");
    path
}

fn command(name: &str, path: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(mlc()).arg(name).arg(path).args(more).output().expect("mlc starts");
    let (out, err) = texts(&output);
    (output.status.code(), out, err)
}

#[test]
fn fmt_rewrites_once_and_check_agrees_afterwards() {
    let scratch = Scratch::new("fmt");
    let path = file(
        &scratch,
        "a.spec",
        "spec 1\nmodel A {\n size x=2\n param w[x]=ones\n  loss mean[x](w*w)  # all\n}\n",
    );
    let (code, _, err) = command("fmt", &path, &["--check"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("a.spec:3: not in canonical form"), "{err}");
    assert_eq!(command("fmt", &path, &[]).0, Some(0));
    let text = std::fs::read_to_string(&path).expect("the file is there");
    assert_eq!(
        text,
        "spec 1\nmodel A {\n    size x = 2\n    param w[x] = ones\n    loss mean[x](w * w)  # all\n}\n"
    );
    assert_eq!(command("fmt", &path, &["--check"]).0, Some(0));
}

#[test]
fn fmt_leaves_a_file_that_does_not_parse_as_it_is() {
    let scratch = Scratch::new("fmt-broken");
    let text = "spec 1\nmodel A { size = }\n";
    let path = file(&scratch, "a.spec", text);
    let (code, _, err) = command("fmt", &path, &[]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("E0101"), "{err}");
    assert_eq!(std::fs::read_to_string(&path).expect("the file is there"), text);
}

#[test]
fn messages_as_json_hold_the_code_the_place_and_what_to_try() {
    let scratch = Scratch::new("json");
    let path = file(&scratch, "broken.spec", BROKEN);
    let (code, out, err) = command("check", &path, &["--message-format", "json"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    let messages: Vec<Value> =
        err.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    let unknown = messages.iter().find(|m| m["code"] == "E0201").unwrap_or_else(|| panic!("{err}"));
    assert_eq!((&unknown["primary"]["line"], &unknown["primary"]["column"]), (&5.into(), &22.into()));
    assert_eq!(unknown["severity"], "error");
}

#[test]
fn explain_prints_every_code_that_a_message_can_have() {
    let (list, _) = succeed(Command::new(mlc()).arg("explain"));
    for code in codes::ALL {
        assert!(list.contains(code.id), "{} is not listed", code.id);
    }
    let (one, _) = succeed(Command::new(mlc()).args(["explain", "e0301"]));
    assert!(one.starts_with("E0301: "), "{one}");
    let output = Command::new(mlc()).args(["explain", "E9999"]).output().expect("mlc starts");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn doctor_builds_and_trains_a_trial_and_says_so() {
    let (out, _) = succeed(Command::new(mlc()).arg("doctor"));
    for look in ["processor", "codegen", "linker", "cache", "memory", "pages"] {
        assert!(out.contains(look), "{out}");
    }
    assert!(out.contains("trained for a step"), "{out}");
}

#[test]
fn doctor_names_a_missing_linker_and_what_to_install() {
    let output =
        Command::new(mlc()).args(["doctor", "--quick"]).env("PATH", "/nowhere").output().expect("mlc starts");
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(5), "{out}{err}");
    assert!(out.contains("BAD  linker") && out.contains("install"), "{out}");
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let (script, _) = succeed(Command::new(mlc()).args(["completions", shell]));
        for command in
            ["build", "calibrate", "check", "doctor", "emit", "explain", "fmt", "new", "opt", "plan", "run"]
        {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn every_spec_of_the_project_is_in_canonical_form() {
    let list = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "*.spec"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let (paths, _) = texts(&list);
    let specs: Vec<_> = paths
        .lines()
        .filter(|path| !path.starts_with("tests/fuzz/") && !path.contains("/samples/"))
        .map(|path| root().join(path))
        .collect();
    assert!(specs.len() > 5, "{paths}");
    succeed(Command::new(mlc()).args(["fmt", "--check"]).args(&specs));
}
