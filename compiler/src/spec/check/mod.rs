//! From files to a checked spec.
//!
//! 1. `load`: the file and those it uses.
//! 2. `choose`: which model the run trains, with the overrides of `with` and `--set`.
//! 3. `mesh`: the devices, and the parts of the batch.
//! 4. `run`: the sections of the run, typed by the tables of `schema.rs`.
//! 5. `model`: sizes, then every statement; blocks are instantiated at each use (`blocks`), expressions typed (`expr`,
//!    `calls`), name tables resolved (`names`).
//! 6. `layout`: sharding (`shard`) and the other constructs that speak about parameters; parameter groups.
//!
//! Every step collects what it finds; a name that failed to check is poison, and what uses it stays silent.

mod blocks;
mod calls;
mod choose;
mod composites;
mod declare;
mod expr;
mod kernels;
mod layout;
mod mesh;
mod model;
mod names;
mod optimizer;
mod parts;
mod recursion;
mod remat;
mod repeat;
mod routing;
mod run;
mod scope;
mod shard;
mod sizes;
mod unused;
mod values;

use super::ast;
use super::checked::Spec;
use super::codes;
use super::diagnostic::{Diagnostic, limit, sort};
use super::load::{Loader, Units, load};
use super::source::{SourceMap, Span};
use model::RunSizes;

pub use calls::FUNCTIONS;
pub use mesh::MAX_DEVICES;
pub use model::{MAX_INSTANCE_DEPTH, MAX_NODES, MAX_SIZE, MAX_TOTAL_DEPTH};
pub use values::operands;

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
    check_for(sources, loader, path, sets, None)
}

/// As [`check`], for a number of devices.
///
/// # Errors
/// As [`check`]; the mesh is for another number.
pub fn check_for(
    sources: &mut SourceMap,
    loader: &dyn Loader,
    path: &str,
    sets: &[String],
    devices: Option<u64>,
) -> Result<(Spec, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (units, found) = load_with_overrides(sources, loader, path, sets)?;
    spec_of(&units, devices, found)
}

/// As [`check`], for one device: as if the file had no mesh.
///
/// # Errors
/// As [`check`].
pub fn check_alone(
    sources: &mut SourceMap,
    loader: &dyn Loader,
    path: &str,
    sets: &[String],
) -> Result<(Spec, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (mut units, found) = load_with_overrides(sources, loader, path, sets)?;
    units.units[0].file.items.retain(|item| match item {
        ast::Item::Section(s) => !["mesh", "store", "pipeline"].contains(&s.kind.name.as_str()),
        ast::Item::Shard(_) => false,
        _ => true,
    });
    spec_of(&units, None, found)
}

fn spec_of(
    units: &Units,
    devices: Option<u64>,
    mut found: Vec<Diagnostic>,
) -> Result<(Spec, Vec<Diagnostic>), Vec<Diagnostic>> {
    let checked = checked(units, devices, &mut found);
    sort(&mut found);
    match checked {
        Some(checked) if !found.iter().any(Diagnostic::is_error) => Ok((checked.spec, found)),
        _ => Err(found),
    }
}

/// A checked spec with the trees it comes from.
pub(super) struct Checked<'a> {
    /// What was asked for.
    pub spec: Spec,
    /// The typed `train` section.
    pub run: Option<run::Run>,
    /// The typed keys of `store` and `shard`, if there is a mesh.
    pub layout: Option<layout::LayoutKeys>,
    /// The model's tree.
    pub chosen: choose::Chosen<'a>,
}

/// Reads the files, and applies the overrides of the target, then those of the command line.
pub(super) fn load_with_overrides(
    sources: &mut SourceMap,
    loader: &dyn Loader,
    path: &str,
    sets: &[String],
) -> Result<(Units, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut units = load(sources, loader, path).map_err(|mut errors| {
        limit(&mut errors);
        errors
    })?;
    let mut found = vec![];
    apply_target_overrides(&mut units.units[0].file, &mut found);
    for set in sets {
        if let Err(errors) = super::set::apply_set(sources, &mut units.units[0].file, set) {
            found.extend(errors);
        }
    }
    Ok((units, found))
}

/// Checks files that have been read; `None` after an error that leaves nothing to go on with.
pub(super) fn checked<'a>(
    units: &'a Units,
    devices: Option<u64>,
    found: &mut Vec<Diagnostic>,
) -> Option<Checked<'a>> {
    let root = &units.units[0].file;
    let has_run = root.items.iter().any(|i| matches!(i, ast::Item::Section(s) if s.kind.name == "train"));
    let mesh = mesh::mesh(root, devices, found);
    let data_shards = mesh::data_shards(root, &mesh);
    let run = run::Run::read(root, data_shards, found);
    let target = run::target(root, has_run, found);
    let chosen = choose::choose(units, found)?;
    let placeholders = RunSizes { batch: PLACEHOLDER_BATCH * data_shards, seq: PLACEHOLDER_SEQ, span: None };
    let sizes = run.as_ref().map_or(placeholders, run::Run::sizes);
    let mut model = model::check_model(&chosen, sizes, found)?;
    if run.is_none() && model.sizes.iter().any(|s| s.by_run) {
        let by_run = model.sizes.iter().filter(|s| s.by_run).map(|s| format!("{} = {}", s.name, s.value));
        let title = format!("checked without a run, with {}", by_run.collect::<Vec<_>>().join(", "));
        found.push(Diagnostic::note(codes::PLACEHOLDER, title).at(model.span, "this model"));
    }
    if let Some(lower) = run::section(root, "lower", found) {
        let mut checker = model::Checker::new(&chosen.blocks);
        model.lower_reference.extend(checker.lower(&lower.section));
        found.append(&mut checker.found);
    }
    kernels::check_kernels(units, &chosen, &mut model, found);
    let (layout, keys) = layout::check_layout(root, &mut model, mesh, has_run, found).unzip();
    let frozen = optimizer::frozen(root, &model, has_run, found);
    let train = match &run {
        Some(run) => Some(run.finish(&model, frozen, found)?),
        None => None,
    };
    Some(Checked { spec: Spec { model, train, layout, target }, run, layout: keys, chosen })
}

/// Applies the `with { … }` of the first target: overrides for one kind of hardware.
fn apply_target_overrides(file: &mut ast::File, found: &mut Vec<Diagnostic>) {
    let mut overrides = vec![];
    if let Some(target) =
        file.items.iter().find_map(|i| if let ast::Item::Target(t) = i { Some(t) } else { None })
    {
        for entry in &target.section.entries {
            let ast::Entry::With(section) = entry else { continue };
            for entry in &section.entries {
                match entry {
                    ast::Entry::Assign { key, value } => overrides.push((key.clone(), value.clone())),
                    _ => {
                        let title = "`with` takes `section.key = value` only";
                        found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(section.span, ""));
                    }
                }
            }
        }
    }
    for (key, value) in overrides {
        if let Err(errors) = super::set::apply(file, &key, value) {
            found.extend(errors);
        }
    }
}

/// A note that a construct was checked but has no effect yet.
pub(crate) fn not_applied(what: &str, span: Span) -> Diagnostic {
    Diagnostic::note(codes::NOT_APPLIED, format!("`{what}` is checked but not yet applied")).at(span, "")
}

/// An error: the construct can't be built, and leaving it out would change what is trained.
pub(crate) fn not_available(what: &str, span: Span) -> Diagnostic {
    let title = format!("{what} is part of the language but can't be built yet");
    Diagnostic::error(codes::NOT_AVAILABLE, title).at(span, "")
}

/// [`not_available`] in a file with a run, else [`not_applied`].
pub(crate) fn not_built(what: &str, span: Span, has_run: bool) -> Diagnostic {
    if has_run { not_available(&format!("`{what}`"), span) } else { not_applied(what, span) }
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
