//! Where tensors live: mesh, shard and store make the layout. Pipeline and adapter are checked against the model and have
//! no effect yet; an adapter, which would change what is trained, is an error in a file with a run.

use super::run;
use super::shard::{constraints, cuts_nest, mesh_axis_twice, shard_rules, untouched};
use super::values::{ValuePath, glob_values, value_paths};
use crate::spec::ast::{self, Entry, File, Item, ValueKind};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::decode::{Decoded, decode};
use crate::spec::diagnostic::Diagnostic;
use crate::spec::schema;
use crate::spec::source::Span;

/// Typed keys of the sections about layout.
pub struct LayoutKeys {
    /// Of `store`.
    pub store: Decoded,
    /// Of `shard`.
    pub shard: Decoded,
}

/// Checks everything about layout; the layout and its typed keys if there is a mesh.
pub fn check_layout(
    file: &File,
    model: &mut Model,
    mesh: Vec<MeshAxis>,
    has_run: bool,
    found: &mut Vec<Diagnostic>,
) -> Option<(Layout, LayoutKeys)> {
    let values = value_paths(model);
    let (mut rules, mut keyword) = (vec![], None);
    let mut entries = vec![];
    for item in &file.items {
        match item {
            Item::Shard(shard) => {
                keyword.get_or_insert(Span { end: shard.span.start + 5, ..shard.span });
                rules.extend(shard_rules(shard, model, &mesh, &values, found));
                entries.extend(shard.keys.entries.iter().cloned());
            }
            Item::Adapter(a) => adapter(a, model, has_run, found),
            Item::Section(s) if s.kind.name == "pipeline" => pipeline(s, model, found),
            Item::Section(_)
            | Item::Use(_)
            | Item::Model(_)
            | Item::Block(_)
            | Item::Freeze(_)
            | Item::Target(_)
            | Item::Kernel(_) => {}
        }
    }
    let (store, store_keys) = store(file, !mesh.is_empty(), found);
    let section = ast::Section { entries, span: keyword.unwrap_or(Span::NONE) };
    let shard = decode(&section, &schema::SHARD, "shard", found);
    let mode = if shard.text("mode") == Some("strict") { ShardMode::Strict } else { ShardMode::Auto };
    let replicable = replicable(&shard, &values, found);
    let Some(first) = mesh.first().map(|axis| axis.span) else {
        if !section.entries.is_empty() {
            let title = "`shard` has settings without a mesh: they change nothing on one device";
            found.push(
                Diagnostic::warning(codes::UNTOUCHED, title).at(section.span, "").help("add a `mesh { … }`"),
            );
        }
        return None;
    };
    let paths = values.iter().map(|v| v.path.clone()).collect();
    let layout = Layout { mesh, rules, store, mode, replicable, paths };
    match keyword {
        Some(keyword) => {
            mesh_axis_twice(&layout, model, &values, found);
            cuts_nest(&layout, found);
            untouched(&layout, model, keyword, found);
            model.constraints = constraints(&layout, &values);
        }
        None => {
            let title = "a mesh without rules: nothing is split over it";
            found
                .push(Diagnostic::warning(codes::UNTOUCHED, title).at(first, "").help("add a `shard { … }`"));
        }
    }
    Some((layout, LayoutKeys { store: store_keys, shard }))
}

/// The globs of `allow_replicate "…"`, each of which has to hit something.
fn replicable(shard: &Decoded, values: &[ValuePath], found: &mut Vec<Diagnostic>) -> Vec<String> {
    let mut globs = vec![];
    for field in &shard.globs {
        glob_values(values, &field.glob, field.span, found);
        if field.except.is_some() {
            let title = "`allow_replicate` takes no `except`";
            let error = Diagnostic::error(codes::VALUE_TYPE, title).at(field.span, "");
            found.push(error.help("name what it is meant for: a value, or a block with all that is in it"));
        }
        globs.push(field.glob.clone());
    }
    globs
}

/// The typed `store` section, all defaults if there is none.
fn store(file: &File, has_mesh: bool, found: &mut Vec<Diagnostic>) -> (Store, Decoded) {
    let item = run::section(file, "store", found);
    let nothing = ast::Section { entries: vec![], span: Span::NONE };
    let keys = decode(item.map_or(&nothing, |i| &i.section), &schema::STORE, "store", found);
    if let Some(item) = item.filter(|_| !has_mesh) {
        let title = "`store` without a mesh: there is one device, and everything is whole on it";
        found.push(
            Diagnostic::warning(codes::UNTOUCHED, title).at(item.kind.span, "").help("add a `mesh { … }`"),
        );
    }
    let kept = |name| if keys.text(name) == Some("whole") { Kept::Whole } else { Kept::Sharded };
    let regather =
        if keys.text("regather") == Some("forward") { Regather::Forward } else { Regather::Backward };
    (Store { params: kept("params"), grads: kept("grads"), state: kept("state"), regather }, keys)
}

/// Types a section without effect: its errors, and one note for the whole of it.
fn decode_with_one_note(
    item: &ast::SectionItem,
    table: &'static schema::Section,
    name: &str,
    note: Diagnostic,
    found: &mut Vec<Diagnostic>,
) -> Decoded {
    let mut inner = vec![];
    let keys = decode(&item.section, table, name, &mut inner);
    found.extend(inner.into_iter().filter(Diagnostic::is_error));
    found.push(note);
    keys
}

fn pipeline(item: &ast::SectionItem, model: &Model, found: &mut Vec<Diagnostic>) {
    let mut rest_item = item.clone();
    let stages = super::assigned(&item.section, "stages").map(|(k, v)| (k.clone(), v.clone()));
    rest_item.section.entries.retain(|e| !matches!(e, Entry::Assign { key, .. } if key.name == "stages"));
    let note = super::not_applied("pipeline", item.kind.span);
    decode_with_one_note(&rest_item, &schema::PIPELINE, "pipeline", note, found);
    let Some((_, value)) = stages else {
        found.push(
            Diagnostic::error(codes::MISSING_KEY, "missing key: `pipeline.stages`")
                .at(item.section.span, "")
                .help("write `stages = 8 over layers`"),
        );
        return;
    };
    let form = match &value.kind {
        ValueKind::Over(inner, axis) => match &inner.kind {
            ValueKind::Number(n, None) => n.integer.filter(|n| *n >= 1).map(|n| (n, axis)),
            _ => None,
        },
        _ => None,
    };
    let Some((stages, axis)) = form else {
        let title = format!(
            "`pipeline.stages` takes a number over a repeat, found `{}`",
            crate::spec::print::value(&value)
        );
        found.push(
            Diagnostic::error(codes::VALUE_TYPE, title).at(value.span, "expected such as `8 over layers`"),
        );
        return;
    };
    let repeated = model.params.iter().flat_map(|p| &p.repeats).find(|r| r.axis.name == axis.name);
    match repeated {
        Some(r) if r.axis.size % stages != 0 => {
            let title = format!("`{}` does not split into {stages} stages: {}", axis.name, r.axis.size);
            found.push(Diagnostic::error(codes::INDIVISIBLE, title).at(value.span, ""));
        }
        Some(_) => {}
        None => {
            let title = format!("no repeat runs over `{}`", axis.name);
            found.push(
                Diagnostic::error(codes::UNKNOWN_NAME, title).at(axis.span, "not the size of a repeat"),
            );
        }
    }
}

fn adapter(a: &ast::Adapter, model: &Model, has_run: bool, found: &mut Vec<Diagnostic>) {
    if a.kind.name != "lora" {
        let title = format!("unknown adapter: `{}`", a.kind.name);
        found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(a.kind.span, "expected `lora`"));
        return;
    }
    let item = ast::SectionItem { kind: a.kind.clone(), section: a.section.clone() };
    let keys = decode_with_one_note(
        &item,
        &schema::LORA,
        "adapter",
        super::not_built("adapter", a.kind.span, has_run),
        found,
    );
    if let Some(glob) = keys.text("on") {
        run::glob_params(model, glob, None, keys.field("on").at, found);
    }
}
