//! The full file with every default.

use super::check::{LLAMA, LLAMA70B, checked};
use crate::spec::diagnostic::render_all;
use crate::spec::{MemoryLoader, SourceMap, expand};

fn expanded(text: &str, sets: &[&str]) -> String {
    let mut sources = SourceMap::new();
    let files = [("main.spec", text), ("llama.spec", LLAMA)];
    let loader = MemoryLoader { files: files.map(|(n, t)| (n.to_string(), t.to_string())).to_vec() };
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    expand(&mut sources, &loader, "main.spec", &sets)
        .unwrap_or_else(|d| panic!("{}", render_all(&d, &sources, false)))
}

#[test]
fn expand_writes_every_default_and_every_origin() {
    insta::assert_snapshot!(expanded(
        LLAMA70B,
        &["Llama.layers=4", "train.optimizer.lr=1e-4", "train.eval.data=synthetic()"]
    ));
}

#[test]
fn expand_gives_a_file_that_means_the_same() {
    let sets = ["Llama.layers=4", "train.batch=64"];
    let text = expanded(LLAMA70B, &sets);
    let (direct, again) = (checked(LLAMA70B, &sets), checked(&text, &[]));
    assert_eq!(direct.model.parameter_count(), again.model.parameter_count());
    let keys = |s: &crate::spec::checked::Spec| -> Vec<(String, String)> {
        s.train.iter().flat_map(|t| &t.keys).map(|k| (k.path.clone(), k.value.clone())).collect()
    };
    assert_eq!(keys(&direct), keys(&again));
    let without_origins = |t: &str| -> Vec<String> {
        t.lines().map(|l| l.split("  # ").next().unwrap_or("").to_string()).collect()
    };
    assert_eq!(without_origins(&text), without_origins(&expanded(&text, &[])));
}
