//! Which model a file is about, and what overrides it.

use std::collections::BTreeMap;

use crate::spec::ast::{self, Entry, Ident, Item, Statement, Value};
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::load::Units;
use crate::spec::source::Span;

/// A model with everything that is needed to check it.
pub struct Chosen<'a> {
    /// The name it has in the root file.
    pub name: String,
    /// The model.
    pub model: &'a ast::Model,
    /// Where the root file names it.
    pub named: Span,
    /// Blocks it can call, by name.
    pub blocks: BTreeMap<String, &'a ast::Block>,
    /// Overrides in order; a later one wins.
    pub overrides: Vec<(&'a Ident, &'a Value)>,
    /// True if the root file has a `train` section.
    pub has_run: bool,
}

/// Finds the model; `None` after an error.
pub fn choose<'a>(units: &'a Units, found: &mut Vec<Diagnostic>) -> Option<Chosen<'a>> {
    let root = &units.units[0];
    let candidates = candidates(units, found);
    let mut wanted = None;
    let mut has_run = false;
    for item in &root.file.items {
        if let Item::Section(s) = item
            && s.kind.name == "train"
        {
            has_run = true;
            wanted = super::assigned(&s.section, "model").map(|(_, v)| v);
        }
    }
    let index = match (wanted, candidates.len()) {
        (None, 1) => 0,
        (None, 0) => {
            let title = "the file has no model";
            found.push(
                Diagnostic::error(codes::MODEL_CHOICE, title)
                    .at(
                        Span { end: root.file.span.start + 6, ..root.file.span },
                        "neither a `model` nor a `use` of one follows",
                    )
                    .help("write `use \"llama.spec\" as Llama`, or a `model` in this file"),
            );
            return None;
        }
        (None, _) => {
            let names: Vec<_> = candidates.iter().map(|c| format!("`{}`", c.name)).collect();
            let diagnostic =
                Diagnostic::error(codes::MODEL_CHOICE, format!("several models: {}", names.join(", ")))
                    .at(candidates[1].named, "a second model")
                    .and(candidates[0].named, "the first one")
                    .help(format!("choose one: `train {{ model = {} }}`", candidates[0].name));
            found.push(diagnostic);
            return None;
        }
        (Some(value), _) => {
            let name = crate::spec::print::value(value);
            match candidates.iter().position(|c| c.name == name) {
                Some(index) => index,
                None => {
                    let mut diagnostic =
                        Diagnostic::error(codes::MODEL_CHOICE, format!("no model of this name: `{name}`"))
                            .at(value.span, "not a model here");
                    if let Some(near) = nearest(&name, candidates.iter().map(|c| c.name.as_str())) {
                        diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                    }
                    found.push(diagnostic);
                    return None;
                }
            }
        }
    };
    let mut chosen = candidates.into_iter().nth(index)?;
    chosen.has_run = has_run;
    for item in &root.file.overrides {
        if item.model.name == chosen.name {
            chosen.overrides.push((&item.key, &item.value));
        } else {
            let title = format!("no section or model of this name: `{}`", item.model.name);
            let mut diagnostic =
                Diagnostic::error(codes::OVERRIDE, title).at(item.model.span, "not a section, not a model");
            let known = ["train", "mesh", "store", "pipeline", "target", "lower", chosen.name.as_str()];
            if let Some(near) = nearest(&item.model.name, known) {
                diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            }
            found.push(diagnostic);
        }
    }
    Some(chosen)
}

/// Every model the root file can train: its own and those it uses.
fn candidates<'a>(units: &'a Units, found: &mut Vec<Diagnostic>) -> Vec<Chosen<'a>> {
    let root = &units.units[0];
    let mut all = vec![];
    for item in &root.file.items {
        if let Item::Model(model) = item {
            let blocks = blocks(units, 0, model, found);
            all.push(Chosen {
                name: model.name.name.clone(),
                named: model.name.span,
                model,
                blocks,
                overrides: vec![],
                has_run: false,
            });
        }
    }
    for (used, index) in &root.uses {
        let models: Vec<_> = models(&units.units[*index].file);
        let alone = models.len() == 1;
        for model in models {
            let name = used.alias.as_ref().filter(|_| alone).unwrap_or(&model.name).name.clone();
            let blocks = blocks(units, *index, model, found);
            let with = used.with.as_ref().map(|w| w.entries.as_slice()).unwrap_or_default();
            let mut overrides = vec![];
            for entry in with {
                match entry {
                    Entry::Assign { key, value } => overrides.push((key, value)),
                    Entry::Glob { verb, .. } => found.push(not_a_size(verb)),
                    Entry::Weighted { value, .. } => {
                        found.push(not_a_size(&Ident { name: String::new(), span: value.span }));
                    }
                    Entry::With(s) => found.push(not_a_size(&Ident { name: "with".into(), span: s.span })),
                }
            }
            let named = used.alias.as_ref().map_or(used.path.span, |a| a.span);
            all.push(Chosen { name, model, named, blocks, overrides, has_run: false });
        }
    }
    all
}

fn not_a_size(key: &Ident) -> Diagnostic {
    Diagnostic::error(codes::VALUE_TYPE, "`with` takes sizes and constants only")
        .at(key.span, "expected `name = number`")
}

fn models(file: &ast::File) -> Vec<&ast::Model> {
    file.items.iter().filter_map(|i| if let Item::Model(m) = i { Some(m) } else { None }).collect()
}

/// Blocks a model can call: its own, those of its file, and those of files used there under their alias.
fn blocks<'a>(
    units: &'a Units,
    index: usize,
    model: &'a ast::Model,
    found: &mut Vec<Diagnostic>,
) -> BTreeMap<String, &'a ast::Block> {
    let unit = &units.units[index];
    let mut blocks: BTreeMap<String, &ast::Block> = BTreeMap::new();
    let mut add = |name: String, block: &'a ast::Block| {
        if let Some(first) = blocks.get(&name) {
            found.push(
                Diagnostic::error(codes::DUPLICATE, format!("the block `{name}` is defined twice"))
                    .at(block.name.span, "defined again")
                    .and(first.name.span, "first defined here"),
            );
        } else {
            blocks.insert(name, block);
        }
    };
    for (used, other) in &unit.uses {
        for item in &units.units[*other].file.items {
            if let Item::Block(block) = item {
                let prefix = used.alias.as_ref().map(|a| format!("{}.", a.name)).unwrap_or_default();
                add(format!("{prefix}{}", block.name.name), block);
            }
        }
    }
    for item in &unit.file.items {
        if let Item::Block(block) = item {
            add(block.name.name.clone(), block);
        }
    }
    for statement in &model.body.statements {
        if let Statement::Block(block) = statement {
            add(block.name.name.clone(), block);
        }
    }
    blocks
}
