//! Where parameters come to lie: which rule won each of their axes, as text and as data.

use super::checked::{Kept, Layout, Model, Param, ParamId, Regather, SubAxis, Train, Won};
use super::source::{SourceMap, Span};
use serde_json::{Map, Value as Json, json};

/// The layout as text: the mesh, the parts of the batch, what is kept, and a line for each parameter (repeats folded) with
/// its split at rest and in use and the places of the rules that won.
pub fn table(layout: &Layout, model: &Model, train: Option<&Train>, sources: &SourceMap) -> String {
    let mut text = format!("mesh: {}\n", mesh_line(layout));
    text += &format!("batch: {}\n", batch_line(layout, train));
    text += &format!("store: {}\n", store_line(layout, train));
    let header = ["parameter", "at rest", "in use", "rules"].map(String::from);
    let rows: Vec<[String; 4]> =
        std::iter::once(header).chain(rows(layout, model).map(|row| row.cells(sources))).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    for [path, rest, used, rules] in &rows {
        let [a, b, c] = widths;
        text += format!("{path:<a$}  {rest:<b$}  {used:<c$}  {rules}").trim_end();
        text.push('\n');
    }
    text
}

/// The same as data: `mesh`, `ranks`, `data_shards`, `microbatch`, `global_microbatch` and `accumulation` (with a run),
/// `store`, and `parameters` with `path`, `repeats`, `at_rest` and `in_use` (tensor axis to its parts of mesh axes) and
/// `rules` (tensor axis, where it holds, file, line and text).
pub fn json(layout: &Layout, model: &Model, train: Option<&Train>, sources: &SourceMap) -> Json {
    let mesh = layout.mesh.iter().map(|a| {
        let auto = a.auto.map(|(low, high)| json!([low, high]));
        json!({ "name": a.name, "size": a.size, "auto": auto, "over_nodes": a.over_nodes })
    });
    let store: Map<String, Json> =
        layout.store.keys().into_iter().map(|(key, word)| (key.to_string(), word.into())).collect();
    json!({
        "mesh": mesh.collect::<Vec<_>>(),
        "ranks": layout.devices(),
        "data_shards": layout.data_shards(),
        "microbatch": train.map(|t| t.microbatch),
        "global_microbatch": train.map(|t| t.global_microbatch),
        "accumulation": train.map(|t| t.accumulation),
        "store": store,
        "parameters": rows(layout, model).map(|row| row.json(sources)).collect::<Vec<_>>(),
    })
}

/// `data = 4 over nodes, tensor = 8: 32 ranks`
fn mesh_line(layout: &Layout) -> String {
    let axes = layout.mesh.iter().map(|a| {
        let nodes = if a.over_nodes { " over nodes" } else { "" };
        format!("{} = {}{nodes}", a.name, a.size)
    });
    let (axes, ranks) = (axes.collect::<Vec<_>>().join(", "), layout.devices());
    format!("{axes}: {ranks} rank{}", if ranks == 1 { "" } else { "s" })
}

fn batch_line(layout: &Layout, train: Option<&Train>) -> String {
    let counted = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let shards = counted(layout.data_shards(), "data shard");
    let Some(train) = train else { return shards };
    let at_once = counted(train.microbatch, "sequence");
    format!("{shards} of {at_once} at once, {}", counted(train.accumulation, "accumulation step"))
}

fn store_line(layout: &Layout, train: Option<&Train>) -> String {
    let store = &layout.store;
    let kinds = [("parameters", store.params), ("gradients", store.grads), ("states", store.state)];
    let of = |kept: Kept| {
        let names: Vec<&str> = kinds.iter().filter(|(_, k)| *k == kept).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let mut parts = vec![];
    if !of(Kept::Sharded).is_empty() {
        parts.push(format!("{} as at rest", of(Kept::Sharded)));
    }
    if !of(Kept::Whole).is_empty() {
        parts.push(format!("{} as in use", of(Kept::Whole)));
    }
    if store.params == Kept::Sharded {
        let again = match store.regather {
            Regather::Backward => "parameters are gathered again in the backward pass",
            Regather::Forward => "gathered parameters are kept for the backward pass",
        };
        parts.push(again.into());
    }
    if train.is_some_and(|t| t.accumulation > 1) {
        parts.push(match store.grads {
            Kept::Sharded => "gradients are summed over ranks after every microbatch".into(),
            Kept::Whole => "gradients are summed over ranks after the last microbatch".into(),
        });
    }
    parts.join("; ")
}

struct Row<'a> {
    param: &'a Param,
    at_rest: Vec<Won<'a>>,
    in_use: Vec<Won<'a>>,
    layout: &'a Layout,
}

fn rows<'a>(layout: &'a Layout, model: &'a Model) -> impl Iterator<Item = Row<'a>> {
    model.params.iter().enumerate().map(move |(i, param)| Row {
        param,
        at_rest: layout.rules_at_rest(ParamId(i as u32), param),
        in_use: layout.rules_in_use(param),
        layout,
    })
}

impl Row<'_> {
    fn cells(&self, sources: &SourceMap) -> [String; 4] {
        let rules: Vec<String> =
            self.rules().iter().map(|(axis, _, span)| rule_cell(axis, *span, sources)).collect();
        [self.param.path.clone(), self.split(&self.at_rest), self.split(&self.in_use), rules.join(", ")]
    }

    /// `vocab/tensor d/fsdp`, `-` for a tensor that is whole on every device.
    fn split(&self, won: &[Won<'_>]) -> String {
        let split = won.iter().filter(|w| !w.parts.is_empty());
        let shown: Vec<String> = split
            .map(|w| {
                format!("{}/{}", w.axis, w.parts.iter().map(|p| self.part(p)).collect::<Vec<_>>().join("·"))
            })
            .collect();
        if shown.is_empty() { "-".into() } else { shown.join(" ") }
    }

    /// `tensor`, or `tensor:(8)4` for the 4 ways behind the 8 major ones.
    fn part(&self, part: &SubAxis) -> String {
        let whole = self.layout.axis(&part.axis).is_some_and(|axis| axis.size == part.size);
        if whole { part.axis.clone() } else { format!("{}:({}){}", part.axis, part.before, part.size) }
    }

    /// (tensor axis, where the rule holds, rule): a rule that holds at rest and in use once.
    fn rules(&self) -> Vec<(&str, &'static str, Span)> {
        let mut all = vec![];
        for rest in &self.at_rest {
            let used = self.in_use.iter().find(|w| w.axis == rest.axis);
            match used {
                Some(used) if used.rule.span == rest.rule.span => {
                    all.push((rest.axis, "both", rest.rule.span))
                }
                Some(used) => {
                    all.push((rest.axis, "at rest", rest.rule.span));
                    all.push((rest.axis, "in use", used.rule.span));
                }
                None => all.push((rest.axis, "at rest", rest.rule.span)),
            }
        }
        all
    }

    fn json(&self, sources: &SourceMap) -> Json {
        let split = |won: &[Won<'_>]| -> Map<String, Json> {
            let parts = |w: &Won<'_>| -> Vec<Json> {
                w.parts
                    .iter()
                    .map(|p| json!({ "axis": p.axis, "before": p.before, "size": p.size }))
                    .collect()
            };
            won.iter()
                .filter(|w| !w.parts.is_empty())
                .map(|w| (w.axis.to_string(), json!(parts(w))))
                .collect()
        };
        let rules = self.rules().into_iter().map(|(axis, holds, span)| {
            let place = sources.locate(span);
            json!({
                "axis": axis,
                "holds": holds,
                "file": place.as_ref().map(|p| p.file.as_str()),
                "line": place.as_ref().map(|p| p.line),
                "text": sources.text(span),
            })
        });
        json!({
            "path": self.param.path,
            "repeats": self.param.repeats.iter().map(|r| json!({ "axis": r.axis.name, "size": r.axis.size })).collect::<Vec<_>>(),
            "at_rest": split(&self.at_rest),
            "in_use": split(&self.in_use),
            "rules": rules.collect::<Vec<_>>(),
        })
    }
}

/// `d main.spec:7`
fn rule_cell(axis: &str, span: Span, sources: &SourceMap) -> String {
    match sources.locate(span) {
        Some(place) => format!("{axis} {}:{}", place.file, place.line),
        None => axis.to_string(),
    }
}
