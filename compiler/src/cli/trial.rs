//! Binaries built from specs that come with mlc, for looking at this machine.

use mlc::pipeline::{self, Identity, Runner};
use mlc::spec::{MemoryLoader, SourceMap, check};
use mlc_codegen::Codegen;
use mlc_codegen::build::{BuildOptions, build};
use mlc_codegen::target::Target;
use mlc_codegen::worker::WorkerCommand;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Builds the first of these files for this machine, without the cache.
pub fn build_trial(files: &[(&str, &str)], sets: &[String], binary: &Path) -> Result<(), String> {
    let loader =
        MemoryLoader { files: files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect() };
    let main = files.first().map_or("", |(name, _)| name);
    let mut sources = SourceMap::new();
    let told = |what: &str, why: String| format!("{what}: {why}");
    let (spec, _) = check(&mut sources, &loader, main, sets).map_err(|errors| {
        told("the spec does not check", errors.first().map(|e| e.title.clone()).unwrap_or_default())
    })?;
    let compiled = pipeline::compile(&spec, &sources, &Identity::default(), &mut Runner::default())
        .map_err(|e| told("the compiler failed", format!("{e:?}")))?;
    let options = BuildOptions {
        target: Target::host()?,
        codegen: Codegen::default(),
        cache: None,
        jobs: 1,
        worker: Some(WorkerCommand::this_executable()?),
        progress: &|_| (),
    };
    let built =
        build(&compiled.program, &options).map_err(|e| told("code generation failed", e.to_string()))?;
    let write = || {
        std::fs::write(binary, &built.elf)?;
        std::fs::set_permissions(binary, std::fs::Permissions::from_mode(0o755))
    };
    write().map_err(|e| told("can't write the binary", e.to_string()))
}
