//! Kernels of the user's own: they train as the block they stand for, and what does not fit is refused with names.
//!
//! They are written in MLIR, which only LLVM's back end reads.
#![cfg(feature = "llvm")]

use std::path::{Path, PathBuf};
use std::process::Command;

use mlc::graph::from_spec::{Entry, from_spec};
use mlc::graph::{parse, print};
use mlc::spec::{FileLoader, SourceMap, check};
use mlc_tests::harness::{Scratch, build_file, mlc, root, steps, succeed, texts, train};

const SPEC: &str = include_str!("../models/kernel/kernel.spec");
const MLIR: &str = include_str!("../models/kernel/relu2.mlir");

/// A folder with the model and this kernel file.
fn model(folder: &Scratch, mlir: &str) -> PathBuf {
    let spec = folder.join("kernel.spec");
    std::fs::write(&spec, SPEC).expect("the temporary folder is writable");
    std::fs::write(folder.join("relu2.mlir"), mlir).expect("the temporary folder is writable");
    spec
}

fn losses(spec: &Path, folder: &Scratch, name: &str) -> Vec<f64> {
    let (binary, run) = (folder.join(name), folder.join(&format!("{name}-run")));
    build_file(spec, &binary, &[]);
    succeed(&mut train(&binary, &run, &[]));
    steps(&run.join("metrics.jsonl")).iter().map(|step| step.loss).collect()
}

/// What `mlc build` says of a kernel that it refuses.
fn refusal(mlir: &str, more: &[&str]) -> (Option<i32>, String) {
    let folder = Scratch::new("kernel-refused");
    let spec = model(&folder, mlir);
    let mut command = Command::new(mlc());
    let output = command.arg("build").arg(&spec).arg("-o").arg(folder.join("out")).args(more).output();
    let output = output.expect("mlc starts");
    (output.status.code(), texts(&output).1)
}

/// What `mlc check` says of a kernel, and its exit code.
fn checked(mlir: &str) -> (Option<i32>, String) {
    let folder = Scratch::new("kernel-checked");
    let output = Command::new(mlc()).arg("check").arg(model(&folder, mlir)).output().expect("mlc starts");
    (output.status.code(), texts(&output).1)
}

#[test]
fn check_refuses_a_kernel_that_does_not_fit_and_leaves_what_it_computes_to_build() {
    let (code, text) =
        checked(&MLIR.replacen("%up: memref<${d}x${ff}xf32>", "%up: memref<${ff}x${d}xf32>", 1));
    assert_eq!(code, Some(1));
    assert!(text.contains("E0417") && text.contains("`%up` of `@forward` is memref<24x16xf32>"), "{text}");
    assert_eq!(checked(&MLIR.replacen("arith.maximumf", "arith.minimumf", 1)), (Some(0), String::new()));
}

#[track_caller]
fn near(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (step, (f, w)) in found.iter().zip(wanted).enumerate() {
        // The same sums in another order, in f32, for 30 steps.
        assert!((f - w).abs() <= 1e-5 * w, "step {}: {f} with the kernel, {w} without", step + 1);
    }
}

#[test]
fn a_kernel_trains_as_the_block_it_stands_for() {
    let folder = Scratch::new("kernel");
    let with = model(&folder, MLIR);
    let without = folder.join("without.spec");
    let plain: String =
        SPEC.lines().filter(|l| !l.trim().starts_with("kernel ")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&without, plain).expect("the temporary folder is writable");
    let wanted = losses(&without, &folder, "without");
    assert!(wanted[29] < wanted[0], "it learns");
    near(&losses(&with, &folder, "with"), &wanted);

    // Without `@backward` the derivative comes from the block's meaning.
    let forward = MLIR.split("func.func @backward").next().expect("a split has a first part");
    let half = model(&folder, forward);
    near(&losses(&half, &folder, "half"), &wanted);
}

/// Over a mesh a kernel runs whole on every device, and is checked as for one device: with sizes that don't divide by the mesh.
#[test]
fn a_kernel_trains_over_a_mesh_as_on_one_device() {
    let folder = Scratch::new("kernel-mesh");
    let odd = format!("// check: train.batch = 1, train.seq = 5\n{}", without_directive(MLIR, "check"));
    let one = model(&folder, &odd);
    let wanted = losses(&one, &folder, "one");
    let rules = "mesh { data = 2, tensor = 2 }\nshard {\n    batch -> data\n    ff, vocab -> tensor\n    params \"**.w\": d -> none\n}\n";
    let several = folder.join("several.spec");
    std::fs::write(&several, format!("{SPEC}{rules}")).expect("the temporary folder is writable");
    let binary = folder.join("several");
    build_file(&several, &binary, &[]);
    let run = folder.join("several-run");
    succeed(&mut train(&binary, &run, &["--ranks", "4"]));
    let found: Vec<f64> = steps(&run.join("metrics.jsonl")).iter().map(|step| step.loss).collect();
    near(&found, &wanted);
}

/// The text without its line `// name: …`.
fn without_directive(text: &str, name: &str) -> String {
    let lines = text.lines().filter(|l| !l.trim().starts_with(&format!("// {name}:")));
    lines.map(|l| format!("{l}\n")).collect()
}

#[test]
fn a_kernel_that_computes_something_else_is_refused_with_the_numbers() {
    let wrong = MLIR.replacen("arith.maximumf", "arith.minimumf", 1);
    let (code, text) = refusal(&wrong, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("relu2.mlir: `@forward` writes") && text.contains("the block computes"), "{text}");

    let wrong = MLIR.replacen("%two = arith.constant 2.0", "%two = arith.constant 3.0", 1);
    let (code, text) = refusal(&wrong, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("`@backward` writes") && text.contains("%d_"), "{text}");
}

#[test]
fn a_kernel_that_does_not_fit_is_refused_by_argument() {
    let (code, text) =
        refusal(&MLIR.replacen("%up: memref<${d}x${ff}xf32>", "%up: memref<${ff}x${d}xf32>", 1), &[]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("E0417") && text.contains("`%up` of `@forward` is memref<24x16xf32>, the block's is"),
        "{text}"
    );

    let (_, text) = refusal(&MLIR.replacen("%down: memref", "%dwn: memref", 1), &[]);
    assert!(text.contains("`%dwn` of `@forward` is nothing of the block, which has x, up, down"), "{text}");

    let (_, text) = refusal(&MLIR.replace("${ff}", "${hidden}"), &[]);
    assert!(text.contains("no axis `hidden` here; there are batch, d, ff, seq"), "{text}");

    let (_, text) = refusal("func.func @helper() { return }\n", &[]);
    assert!(text.contains("there is no `func.func @forward`"), "{text}");

    let (code, text) =
        refusal(&MLIR.replacen("math.fma %a, %w, %acc : f32", "math.fma %a, %w : f32", 1), &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("MLIR does not accept the kernel"), "{text}");

    let (code, text) = refusal(MLIR, &["--codegen", "cranelift"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("a kernel in MLIR needs the code generator llvm"), "{text}");
}

#[test]
fn a_graph_with_a_kernel_prints_and_parses_back() {
    let mut sources = SourceMap::new();
    let path = root().join("tests/models/kernel/kernel.spec");
    let (spec, _) = check(&mut sources, &FileLoader, &path.to_string_lossy(), &[]).expect("the spec checks");
    let graph = from_spec(&spec.model, Entry::Train, 4, &sources).expect("it becomes a graph");
    let text = print::print(&graph);
    assert!(text.contains("custom \"relu2.mlir\" forward x [batch, seq, d], up [d, ff]"), "{text}");
    let again = parse::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print::print(&again), text);
}
