//! From files to a checked spec.
//!
//! 1. `load`: the file and those it uses.
//! 2. `choose`: which model the run trains, with the overrides of `with` and `--set`.
//! 3. `run`: the sections of the run, typed by the tables of `schema.rs`.
//! 4. `model`: sizes, then every statement; blocks are instantiated at each use (`blocks`), expressions typed (`expr`,
//!    `calls`), name tables resolved (`names`).
//! 5. `layout`: mesh, sharding and the other constructs that speak about parameters; parameter groups.
//!
//! Every step collects what it finds; a name that failed to check is poison, and what uses it stays silent.

mod blocks;
mod calls;
mod choose;
mod expr;
mod model;
mod names;
mod scope;

use super::ast;
use super::checked::{Spec, Target, TargetKind};
use super::codes;
use super::diagnostic::{Diagnostic, sort};
use super::load::{Loader, load};
use super::source::{SourceMap, Span};

pub use model::{MAX_INSTANCE_DEPTH, MAX_NODES, MAX_SIZE};

/// Placeholder for a size given by the run, when a model is checked alone.
pub const PLACEHOLDER_BATCH: u64 = 8;
/// Placeholder tokens per sequence, when a model is checked alone.
pub const PLACEHOLDER_SEQ: u64 = 1024;

/// Checks a file with the files it uses and the overrides of the command line.
///
/// # Errors
/// Everything wrong with it, in order of place; notes and warnings are among them.
pub fn check(
    sources: &mut SourceMap,
    loader: &dyn Loader,
    path: &str,
    sets: &[String],
) -> Result<(Spec, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut units = load(sources, loader, path)?;
    let mut found = vec![];
    for set in sets {
        if let Err(errors) = super::set::apply_set(sources, &mut units.units[0].file, set) {
            found.extend(errors);
        }
    }
    let spec = check_units(&units, &mut found);
    sort(&mut found);
    match spec {
        Some(spec) if !found.iter().any(Diagnostic::is_error) => Ok((spec, found)),
        _ => Err(found),
    }
}

fn check_units(units: &super::load::Units, found: &mut Vec<Diagnostic>) -> Option<Spec> {
    let root = &units.units[0].file;
    let chosen = choose::choose(units, found)?;
    let model = model::check_model(
        &chosen,
        model::RunSizes { batch: PLACEHOLDER_BATCH, seq: PLACEHOLDER_SEQ, span: None },
        found,
    )?;
    let _ = root;
    let target =
        Target { kind: TargetKind::Cpu, label: None, memory_bytes: None, arch: None, span: Span::NONE };
    Some(Spec { model, train: None, target })
}

/// A note that a construct was checked but has no effect yet.
pub(crate) fn not_applied(what: &str, span: Span) -> Diagnostic {
    Diagnostic::note(codes::NOT_APPLIED, format!("`{what}` is checked but not yet applied")).at(span, "")
}

/// The last assignment of a key in a section.
pub(crate) fn assigned<'a>(
    section: &'a ast::Section,
    name: &str,
) -> Option<(&'a ast::Ident, &'a ast::Value)> {
    section.entries.iter().rev().find_map(|e| match e {
        ast::Entry::Assign { key, value } if key.name == name => Some((key, value)),
        _ => None,
    })
}
