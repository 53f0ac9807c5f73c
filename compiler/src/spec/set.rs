//! Overrides from the command line: `--set Llama.layers=4`, `--set train.optimizer.lr=1e-4`.
//!
//! The text is parsed with the grammar's own values and put into the tree, so it is typed by the same tables as the file
//! and its errors point into it.

use super::ast::*;
use super::codes;
use super::diagnostic::Diagnostic;
use super::parse;
use super::source::{SourceMap, Span};

/// Sections that `--set` can create when the file has none.
const SECTIONS: [&str; 5] = ["mesh", "store", "train", "pipeline", "lower"];

/// Puts one override into the tree of the root file.
///
/// # Errors
/// The text is not `key.key=value`.
pub fn apply_set(sources: &mut SourceMap, file: &mut File, set: &str) -> Result<(), Vec<Diagnostic>> {
    let id = sources.add("--set", set);
    let (path, value) = parse::parse_set(sources, id)?;
    apply(file, &path, value)
}

/// Puts one override, already parsed, into the tree of the root file.
///
/// # Errors
/// The key names neither a section nor a model.
pub fn apply(file: &mut File, path: &Ident, value: Value) -> Result<(), Vec<Diagnostic>> {
    let keys = split(path);
    let Some((head, rest)) = keys.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        let title = format!("an override needs a section or a model: `{}`", path.name);
        return Err(vec![
            Diagnostic::error(codes::OVERRIDE, title)
                .at(path.span, "expected such as `train.steps`")
                .help("write `--set train.steps=100` or `--set Model.size=4`"),
        ]);
    };
    if head.name == "target" {
        assign_target(file, head, rest, &value);
        return Ok(());
    }
    if let ("train", [key, inner, ..]) = (head.name.as_str(), rest)
        && key.name == "schedule"
    {
        return Err(vec![schedule_key(path, inner)]);
    }
    if head.name == "shard" {
        assign_shard(file, path.span, rest, value);
        return Ok(());
    }
    if SECTIONS.contains(&head.name.as_str()) {
        let existing = file.items.iter_mut().rev().find_map(|item| match item {
            Item::Section(s) if s.kind.name == head.name => Some(&mut s.section),
            _ => None,
        });
        match existing {
            Some(section) => assign(section, rest, value),
            None => {
                let mut section = Section { entries: vec![], span: path.span };
                assign(&mut section, rest, value);
                file.items.push(Item::Section(SectionItem { kind: head.clone(), section }));
            }
        }
        return Ok(());
    }
    match rest {
        [key] => {
            file.overrides.push(Override { model: head.clone(), key: key.clone(), value });
            Ok(())
        }
        _ => {
            let title = format!("an override of a model has one key: `{}`", path.name);
            Err(vec![Diagnostic::error(codes::OVERRIDE, title).at(path.span, "expected `Model.size`")])
        }
    }
}

/// Pieces of a schedule have no names in the file, so nothing inside it can be overridden.
fn schedule_key(path: &Ident, inner: &Ident) -> Diagnostic {
    let title = format!("a schedule is overridden whole, not by key: `{}`", path.name);
    Diagnostic::error(codes::OVERRIDE, title)
        .at(inner.span, "a schedule is a chain of pieces, without keys")
        .help("write `schedule = …` whole: `--set \"train.schedule=warmup(100) then cosine(to = 3e-5)\"`")
        .help("the binary takes `train.schedule.warmup.steps` and `train.schedule.cosine.to` when it starts")
}

/// Puts a key into every target of the file; a file without one gets `target cpu`, which is what no target means.
fn assign_target(file: &mut File, head: &Ident, keys: &[Ident], value: &Value) {
    if !file.items.iter().any(|item| matches!(item, Item::Target(_))) {
        let kind = Ident { name: "cpu".into(), span: head.span };
        let section = Section { entries: vec![], span: head.span };
        file.items.push(Item::Target(Target { kind, label: None, section, span: head.span }));
    }
    for item in &mut file.items {
        if let Item::Target(target) = item {
            assign(&mut target.section, keys, value.clone());
        }
    }
}

/// Puts a key into the file's last `shard`.
fn assign_shard(file: &mut File, span: Span, keys: &[Ident], value: Value) {
    let empty = || Section { entries: vec![], span };
    let is_shard = |item: &Item| matches!(item, Item::Shard(_));
    if !file.items.iter().any(is_shard) {
        file.items.push(Item::Shard(Shard { rules: vec![], keys: empty(), span }));
    }
    // A key stands once in all of them: the one that is there is replaced.
    for item in &mut file.items {
        if let Item::Shard(shard) = item {
            shard.keys.entries.retain(
                |e| !matches!(e, Entry::Assign { key, .. } if keys.first().is_some_and(|k| k.name == key.name)),
            );
        }
    }
    let last = file.items.iter_mut().rev().find_map(|item| match item {
        Item::Shard(shard) => Some(&mut shard.keys),
        _ => None,
    });
    assign(last.expect("there is a shard"), keys, value);
}

/// A dotted key as its words, each with its place.
pub fn split(path: &Ident) -> Vec<Ident> {
    let mut start = path.span.start;
    path.name
        .split('.')
        .map(|word| {
            let span = Span { start, end: start + word.len() as u32, ..path.span };
            start += word.len() as u32 + 1;
            Ident { name: word.to_string(), span }
        })
        .collect()
}

/// Replaces the value of a dotted key inside a section, or adds it.
pub fn assign(section: &mut Section, keys: &[Ident], value: Value) {
    let Some((key, rest)) = keys.split_first() else { return };
    let position =
        section.entries.iter().rposition(|e| matches!(e, Entry::Assign { key: k, .. } if k.name == key.name));
    if rest.is_empty() {
        let entry = Entry::Assign { key: key.clone(), value };
        match position {
            Some(at) => section.entries[at] = entry,
            None => section.entries.push(entry),
        }
        return;
    }
    let at = position.unwrap_or_else(|| {
        let inner = Section { entries: vec![], span: key.span };
        let value = Value { kind: ValueKind::Section(inner), span: key.span };
        section.entries.push(Entry::Assign { key: key.clone(), value });
        section.entries.len() - 1
    });
    if let Entry::Assign { value: outer, .. } = &mut section.entries[at] {
        assign(inner_section(outer), rest, value);
    }
}

/// The section inside a value; a word gets an empty one, anything else is replaced by one.
fn inner_section(value: &mut Value) -> &mut Section {
    let span = value.span;
    let empty = Section { entries: vec![], span };
    if let ValueKind::Tagged { section, .. } = &mut value.kind {
        section.get_or_insert(empty.clone());
    } else if !matches!(value.kind, ValueKind::Section(_)) {
        value.kind = ValueKind::Section(empty.clone());
    }
    match &mut value.kind {
        ValueKind::Section(section) | ValueKind::Tagged { section: Some(section), .. } => section,
        _ => unreachable!("the value was made a section above"),
    }
}
