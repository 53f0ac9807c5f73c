//! `mlc check --expand`: the canonical full file, with every default written out and the origin of every value.
//!
//! The text is itself a spec that means the same: the model stands in the file with its overrides put in, `train` has
//! every key, and each line says where its value comes from: `# default`, `# from --set`, `# llama.spec:3`.

use super::ast::{Binding, Item, Statement};
use super::check::{Checked, checked};
use super::checked::{Layout, MeshKind, TargetKind};
use super::decode::{Decoded, Field, Typed};
use super::diagnostic::Diagnostic;
use super::load::{Loader, Units};
use super::print;
use super::source::{SourceMap, Span};

/// The expanded text of a file.
///
/// # Errors
/// As [`super::check()`].
pub fn expand(
    sources: &mut SourceMap,
    loader: &dyn Loader,
    path: &str,
    sets: &[String],
) -> Result<String, Vec<Diagnostic>> {
    expand_for(sources, loader, path, sets, None)
}

/// As [`expand`], for a number of devices.
///
/// # Errors
/// As [`super::check::check_for`].
pub fn expand_for(
    sources: &mut SourceMap,
    loader: &dyn Loader,
    path: &str,
    sets: &[String],
    devices: Option<u64>,
) -> Result<String, Vec<Diagnostic>> {
    let (units, mut found) = super::check::load_with_overrides(sources, loader, path, sets)?;
    let checked = checked(&units, devices, &mut found);
    match checked {
        Some(checked) if !found.iter().any(Diagnostic::is_error) => {
            let mut out = Expand { sources, out: String::new(), level: 0 };
            out.file(&units, &checked);
            Ok(out.out)
        }
        _ => {
            super::diagnostic::sort(&mut found);
            Err(found)
        }
    }
}

struct Expand<'a> {
    sources: &'a SourceMap,
    out: String,
    level: usize,
}

impl Expand<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(&"    ".repeat(self.level));
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// A line with the origin of its value.
    fn sourced(&mut self, text: &str, origin: Span) {
        let origin = self.origin(origin);
        self.line(&format!("{text}  # {origin}"));
    }

    fn origin(&self, span: Span) -> String {
        match self.sources.locate(span) {
            None => "default".into(),
            Some(place) if place.file == "--set" => "from --set".into(),
            Some(place) => format!("{}:{}", place.file, place.line),
        }
    }

    /// Text of several lines, at the current level.
    fn lines(&mut self, text: &str) {
        for line in text.lines() {
            if line.is_empty() { self.out.push('\n') } else { self.line(line) }
        }
    }

    fn file(&mut self, units: &Units, checked: &Checked<'_>) {
        self.line("spec 1");
        self.libraries(units, checked);
        self.model(checked);
        let root = &units.units[0].file;
        for item in &root.items {
            match item {
                // The model, its files and the run are written out; targets stand last.
                Item::Use(_) | Item::Model(_) | Item::Block(_) | Item::Target(_) => {}
                Item::Section(s) if s.kind.name == "train" => {}
                // The layout is written out.
                Item::Section(s) if s.kind.name == "mesh" || s.kind.name == "store" => {}
                Item::Shard(_) if checked.spec.layout.is_some() => {}
                Item::Section(_) | Item::Shard(_) | Item::Freeze(_) | Item::Adapter(_) | Item::Kernel(_) => {
                    let origin = self.origin(item.span());
                    self.line(&format!("# {origin}"));
                    self.lines(&print::item(item));
                }
            }
        }
        if let Some(layout) = &checked.spec.layout {
            self.mesh(layout);
            self.rules(root, checked.layout.as_ref().map(|keys| &keys.shard));
        }
        if let Some(keys) = &checked.layout {
            self.line("store {");
            self.level += 1;
            self.section(&keys.store);
            self.level -= 1;
            self.line("}");
        }
        if let Some(run) = &checked.run {
            self.line("train {");
            self.level += 1;
            self.section(&run.keys);
            self.level -= 1;
            self.line("}");
        }
        self.target(checked);
    }

    /// Blocks from outside the model: those of its file are written out, those of other files stay used.
    fn libraries(&mut self, units: &Units, checked: &Checked<'_>) {
        let home = units.units.iter().find(|u| {
            u.file.items.iter().any(|i| matches!(i, Item::Model(m) if m.span == checked.chosen.model.span))
        });
        for item in home.iter().flat_map(|u| &u.file.items) {
            let is_library = |used: &super::ast::Use| {
                let unit = units.units.iter().flat_map(|u| &u.uses).find(|(u, _)| u.span == used.span);
                unit.is_some_and(|(_, i)| {
                    units.units[*i].file.items.iter().any(|i| matches!(i, Item::Block(_)))
                })
            };
            match item {
                Item::Block(_) => self.lines(&print::item(item)),
                Item::Use(used) if is_library(used) => self.lines(&print::item(item)),
                _ => {}
            }
        }
    }

    fn model(&mut self, checked: &Checked<'_>) {
        self.line(&format!("model {} {{", checked.spec.model.name));
        self.level += 1;
        for statement in &checked.chosen.model.body.statements {
            match statement {
                Statement::Sizes(bindings, _) => bindings.iter().for_each(|b| self.size(b, checked)),
                Statement::Consts(bindings, _) => bindings.iter().for_each(|b| self.constant(b, checked)),
                _ => self.lines(&print::statement(statement)),
            }
        }
        self.level -= 1;
        self.line("}");
    }

    fn size(&mut self, binding: &Binding, checked: &Checked<'_>) {
        let Some(size) = checked.spec.model.sizes.iter().find(|s| s.name == binding.name.name) else {
            return;
        };
        if size.by_run {
            let origin = self.origin(size.origin);
            let origin = if origin == "default" { "placeholder".into() } else { origin };
            self.line(&format!("size {} = run  # {}, {origin}", size.name, size.value));
        } else {
            let text = format!("size {} = {}", size.name, size.value);
            self.sourced(&text, size.origin);
        }
    }

    fn constant(&mut self, binding: &Binding, checked: &Checked<'_>) {
        let Some(c) = checked.spec.model.consts.iter().find(|c| c.name == binding.name.name) else { return };
        let text = self.sources.text(c.origin).to_string();
        self.sourced(&format!("const {} = {text}", c.name), c.origin);
    }

    // ---- layout

    /// The axes with the sizes they came to.
    fn mesh(&mut self, layout: &Layout) {
        self.line("mesh {");
        self.level += 1;
        for axis in &layout.mesh {
            let kind = if axis.kind == MeshKind::Pipeline { " pipeline" } else { "" };
            let nodes = if axis.over_nodes { " over nodes" } else { "" };
            let auto = axis.auto.map(|(low, high)| format!("auto({low}..{high}), ")).unwrap_or_default();
            let origin = self.origin(axis.span);
            self.line(&format!("{} = {}{kind}{nodes}  # {auto}{origin}", axis.name, axis.size));
        }
        self.level -= 1;
        self.line("}");
    }

    fn rules(&mut self, root: &super::ast::File, keys: Option<&Decoded>) {
        let rules = root.items.iter().filter_map(|i| if let Item::Shard(s) = i { Some(s) } else { None });
        self.line("shard {");
        self.level += 1;
        for rule in rules.flat_map(|shard| &shard.rules) {
            self.sourced(&print::shard_rule(rule), rule.span);
        }
        keys.into_iter().for_each(|keys| self.section(keys));
        self.level -= 1;
        self.line("}");
    }

    // ---- run

    fn section(&mut self, section: &Decoded) {
        for field in &section.fields {
            self.field(field);
        }
        self.globs(section);
    }

    fn field(&mut self, field: &Field) {
        let name = field.key.name;
        match &field.value {
            Typed::Absent => self.line(&format!("# {name}: not given")),
            Typed::Section(inner) => self.braces(&format!("{name} = "), inner, field.origin),
            Typed::Variant(variant, args, body) if !body.fields.is_empty() => {
                let empty = Decoded { fields: vec![], globs: vec![], span: body.span };
                let head = Typed::Variant(variant, args.clone(), Box::new(empty)).show();
                self.braces(&format!("{name} = {head} "), body, field.origin);
            }
            value => self.sourced(&format!("{name} = {}", value.show()), field.origin),
        }
    }

    fn braces(&mut self, head: &str, inner: &Decoded, origin: Span) {
        self.sourced(&format!("{head}{{"), origin);
        self.level += 1;
        self.section(inner);
        self.level -= 1;
        self.line("}");
    }

    fn globs(&mut self, section: &Decoded) {
        for glob in &section.globs {
            let except =
                glob.except.as_ref().map(|e| format!(" except {}", print::quote(e))).unwrap_or_default();
            let head = format!("{} {}{except}", glob.verb, print::quote(&glob.glob));
            let text = match &glob.value {
                Typed::Absent => head,
                Typed::Section(_) => format!("{head} {}", glob.value.show()),
                value => format!("{head}: {}", value.show()),
            };
            self.sourced(&text, glob.span);
        }
    }

    fn target(&mut self, checked: &Checked<'_>) {
        let target = &checked.spec.target;
        let kind = match target.kind {
            TargetKind::Cpu => "cpu",
            TargetKind::Cuda => "cuda",
        };
        let label = target.label.as_ref().map(|l| format!(" {}", print::quote(l))).unwrap_or_default();
        self.sourced(&format!("target {kind}{label} {{"), target.span);
        self.level += 1;
        match target.memory_bytes {
            Some(bytes) => self.sourced(&format!("memory = {bytes}B"), target.span),
            None => self.line("# memory: not given"),
        }
        match &target.arch {
            Some(arch) => self.sourced(&format!("arch = {arch}"), target.span),
            None => self.line("# arch: not given"),
        }
        match &target.machine {
            Some(machine) => self.sourced(&format!("machine = {}", print::quote(machine)), target.span),
            None => self.line("# machine: not given"),
        }
        self.level -= 1;
        self.line("}");
    }
}
