//! What `--target` and the spec say of the machine: the instruction sets of a CPU, and the figures that times are predicted with.
//!
//! `--target` takes either. What it leaves out the spec's `target` says (`arch`, `machine`); then it is this CPU's instruction
//! sets, and the figures `cpu`.

use super::Failure;
use super::files::{Checked, read};
use mlc::cost;
use mlc_codegen::target::{TARGETS, Target};
use std::path::{Path, PathBuf};

/// The instruction sets to build for.
pub fn instruction_sets(given: Option<&str>, checked: &Checked) -> Result<Target, Failure> {
    let given = given.filter(|name| is_instruction_sets(name));
    let name = given.or(checked.spec.target.arch.as_deref()).unwrap_or("native");
    Target::resolve(name).map_err(Failure::Input)
}

/// The figures to plan for.
pub fn figures(given: Option<&str>, spec: &Path, checked: &Checked) -> Result<cost::Target, Failure> {
    if let Some(name) = given.filter(|name| !is_instruction_sets(name)) {
        return named(name, name.into());
    }
    match checked.spec.target.machine.as_deref() {
        // A file lies beside the spec that names it.
        Some(name) => named(name, spec.parent().unwrap_or(Path::new("")).join(name)),
        None => Ok(cost::Target::default()),
    }
}

fn is_instruction_sets(name: &str) -> bool {
    name == "native" || TARGETS.iter().any(|target| target.name == name)
}

fn named(name: &str, path: PathBuf) -> Result<cost::Target, Failure> {
    if !name.ends_with(".json") {
        return cost::Target::named(name).map_err(|there_is_none| {
            let sets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            let sets = sets.join(", ");
            Failure::Input(format!(
                "{there_is_none}; a file that `mlc calibrate` wrote, FILE.json; and instruction sets: {sets}, native"
            ))
        });
    }
    cost::Target::parse(&read(&path)?).map_err(|why| Failure::Input(format!("{}: {why}", path.display())))
}
