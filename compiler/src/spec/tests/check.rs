//! Whole files through the checker.

use crate::spec::checked::{ExprKind, Spec, Statement};
use crate::spec::diagnostic::{Diagnostic, render_all};
use crate::spec::{MemoryLoader, SourceMap, check, check_for};

/// The shipped model family.
pub const LLAMA: &str = include_str!("../../../../specs/llama.spec");
/// The shipped run of the 70B model.
pub const LLAMA70B: &str = include_str!("../../../../specs/llama70b.spec");

/// Checks the file `main.spec`, with the shipped specs beside it; errors come back rendered.
pub fn check_text(text: &str, sets: &[&str]) -> Result<(Spec, Vec<Diagnostic>), String> {
    check_text_for(text, sets, None)
}

/// As [`check_text`], for a number of devices.
pub fn check_text_for(
    text: &str,
    sets: &[&str],
    devices: Option<u64>,
) -> Result<(Spec, Vec<Diagnostic>), String> {
    let mut sources = SourceMap::new();
    let files = [("main.spec", text), ("llama.spec", LLAMA), ("llama70b.spec", LLAMA70B)];
    let loader = MemoryLoader { files: files.map(|(n, t)| (n.to_string(), t.to_string())).to_vec() };
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    check_for(&mut sources, &loader, "main.spec", &sets, devices).map_err(|d| render_all(&d, &sources, false))
}

/// The spec, or a panic with the messages.
pub fn checked(text: &str, sets: &[&str]) -> Spec {
    check_text(text, sets).unwrap_or_else(|e| panic!("\n{e}")).0
}

#[test]
fn check_counts_the_parameters_of_llama_70b_to_the_unit() {
    assert_eq!(checked(LLAMA70B, &[]).model.parameter_count(), 70_553_706_496);
}

#[test]
fn check_accepts_a_model_alone() {
    let spec = checked(LLAMA, &[]);
    assert!(spec.train.is_none());
    assert_eq!(spec.model.parameter_count(), 70_553_706_496);
}

#[test]
fn check_makes_one_instance_of_a_repeated_block() {
    let spec = checked(LLAMA, &["Llama.layers=3"]);
    let Statement::Let(x) = &spec.model.body[0] else { panic!("the first statement is x") };
    let ExprKind::Repeat(repeat) = &x.expr.kind else { panic!("x is a repeat") };
    assert_eq!((repeat.dim.axis.name.as_str(), repeat.dim.axis.size), ("layers", 3));
    assert_eq!(repeat.body.path, "layer.{i}");
    let paths: Vec<&str> = spec.model.params.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "embed",
            "head",
            "layer.{i}.norm1.w",
            "layer.{i}.attn.wq",
            "layer.{i}.attn.wk",
            "layer.{i}.attn.wv",
            "layer.{i}.attn.wo",
            "layer.{i}.norm2.w",
            "layer.{i}.mlp.gate",
            "layer.{i}.mlp.up",
            "layer.{i}.mlp.down",
            "norm.w"
        ]
    );
}

/// The run of the samples, with the shipped model.
const RUN: &str = include_str!("samples/run.spec");

#[test]
fn check_of_the_run_sample_finds_only_what_cannot_be_built() {
    let mut sources = SourceMap::new();
    let files = vec![("main.spec".to_string(), RUN.to_string()), ("llama.spec".into(), LLAMA.into())];
    let found = check(&mut sources, &MemoryLoader { files }, "main.spec", &[]).expect_err("errors");
    assert!(found.iter().all(|d| !d.is_error() || d.code.id == "E0207"));
    let titles: Vec<String> = found.iter().map(|d| format!("{} {}", d.code.id, d.title)).collect();
    insta::assert_snapshot!(titles.join("\n"));
}
