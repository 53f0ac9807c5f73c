//! Constructs that say where tensors live: mesh, shard, store, pipeline, adapter. They are checked against the
//! model as far as that is possible without devices, and have no effect yet; those that would change what is trained are
//! errors in a file with a run.

use std::collections::BTreeMap;

use super::model::show_axes;
use super::run;
use crate::spec::ast::{self, Entry, File, Item, ShardScope, Value, ValueKind};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::decode::{Decoded, decode};
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::glob::{Hit, hit};
use crate::spec::schema;
use crate::spec::source::Span;

/// A mesh axis.
struct MeshAxis {
    name: String,
    /// Number of devices; `None` for `auto`.
    size: Option<u64>,
    span: Span,
}

/// A value of the model that rules can name.
pub struct ValuePath {
    path: String,
    repeats: Vec<RepeatDim>,
    axes: Vec<Axis>,
    role: Option<String>,
}

/// Checks everything about layout.
pub fn check_layout(file: &File, model: &Model, has_run: bool, found: &mut Vec<Diagnostic>) {
    let mesh = mesh(file, found);
    let values = value_paths(model);
    let mut sharded = false;
    for item in &file.items {
        match item {
            Item::Shard(shard) => {
                sharded = true;
                shard_rules(shard, model, &mesh, &values, found);
                let keyword = Span { end: shard.span.start + 5, ..shard.span };
                found.push(super::not_applied("shard", keyword));
            }
            Item::Adapter(a) => adapter(a, model, has_run, found),
            Item::Section(s) if s.kind.name == "store" => {
                let note = super::not_applied("store", s.kind.span);
                decode_with_one_note(s, &schema::STORE, "store", note, found);
            }
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
    if !mesh.is_empty() && !sharded {
        let title = "a mesh without rules: nothing is split over it";
        found.push(
            Diagnostic::warning(codes::UNTOUCHED, title).at(mesh[0].span, "").help("add a `shard { … }`"),
        );
    }
}

// ---- mesh

fn mesh(file: &File, found: &mut Vec<Diagnostic>) -> Vec<MeshAxis> {
    let Some(item) = run::section(file, "mesh", found) else { return vec![] };
    found.push(super::not_applied("mesh", item.kind.span));
    let mut axes: Vec<MeshAxis> = vec![];
    for entry in &item.section.entries {
        let Entry::Assign { key, value } = entry else {
            found.push(
                Diagnostic::error(codes::VALUE_TYPE, "a mesh takes `axis = size` only")
                    .at(item.section.span, ""),
            );
            continue;
        };
        if key.name == "order" {
            continue;
        }
        if let Some(first) = axes.iter().find(|a| a.name == key.name) {
            found.push(
                Diagnostic::error(codes::DUPLICATE, format!("the mesh axis `{}` is given twice", key.name))
                    .at(key.span, "again")
                    .and(first.span, "first given here"),
            );
            continue;
        }
        axes.push(MeshAxis { name: key.name.clone(), size: mesh_size(value, found), span: key.span });
    }
    axes
}

/// `8`, `8 pipeline`, `auto(1..64)`, each maybe `over nodes`; `None` for `auto`.
fn mesh_size(value: &Value, found: &mut Vec<Diagnostic>) -> Option<u64> {
    let expected = "expected such as `8`, `8 pipeline`, `auto` or `auto(1..64) over nodes`";
    let mut wrong = |span| {
        let title = format!("not a size of a mesh axis: `{}`", crate::spec::print::value(value));
        found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(span, expected));
        None
    };
    match &value.kind {
        ValueKind::Over(inner, place) if ["nodes", "node"].contains(&place.name.as_str()) => {
            mesh_size(inner, found)
        }
        ValueKind::Over(_, place) => wrong(place.span),
        ValueKind::Number(n, kind) => {
            let known = kind.as_ref().is_none_or(|k| k.name == "pipeline");
            n.integer.filter(|n| *n >= 1 && known).or_else(|| wrong(value.span))
        }
        ValueKind::Tagged { tag, args, section: None } if tag.name == "auto" => match args.as_deref() {
            None => None,
            Some([ast::ValueArg { name: None, value: Value { kind: ValueKind::Range(..), .. } }]) => None,
            Some(_) => wrong(value.span),
        },
        _ => wrong(value.span),
    }
}

// ---- shard

fn shard_rules(
    shard: &ast::Shard,
    model: &Model,
    mesh: &[MeshAxis],
    values: &[ValuePath],
    found: &mut Vec<Diagnostic>,
) {
    let mut touched = vec![false; model.params.len()];
    // For each parameter, the mesh axes each of its tensor axes is split over; a later rule wins.
    let mut split: Vec<BTreeMap<String, Vec<String>>> = vec![BTreeMap::new(); model.params.len()];
    for rule in &shard.rules {
        let names = mesh_names(rule, mesh, found);
        let ids: Vec<ParamId> = match &rule.scope {
            ShardScope::Every => (0..model.params.len() as u32).map(ParamId).collect(),
            ShardScope::Params(glob) => run::glob_params(model, &glob.value, None, glob.span, found),
            ShardScope::Role(role) => {
                role_hit(values, role, found);
                vec![]
            }
            ShardScope::Values(glob) => {
                values_hit(values, &glob.value, glob.span, found);
                vec![]
            }
        };
        for choice in &rule.choices {
            let axes = tensor_axes(choice, model, values, found);
            let Some(axes) = axes else { continue };
            divides(choice, &axes, &names, mesh, found);
            for id in &ids {
                let param = &model.params[id.0 as usize];
                for axis in axes.iter().filter(|a| param.axes().any(|b| b.name == a.name)) {
                    touched[id.0 as usize] = true;
                    split[id.0 as usize].insert(axis.name.clone(), names.clone());
                }
            }
        }
        mesh_axis_twice(rule, &ids, model, &split, found);
    }
    let untouched: Vec<&str> =
        model.params.iter().zip(&touched).filter(|(_, t)| !**t).map(|(p, _)| p.path.as_str()).collect();
    if !mesh.is_empty() && !untouched.is_empty() {
        let keyword = Span { end: shard.span.start + 5, ..shard.span };
        found.push(
            Diagnostic::warning(
                codes::UNTOUCHED,
                "parameters that no rule touches stay whole on every device",
            )
            .at(keyword, "these rules")
            .meaning(format!("not touched: {}", untouched.join(", ")))
            .help("say so if that is meant: `params \"…\": axis -> none`"),
        );
    }
}

/// The mesh axes of a rule; empty for `none`.
fn mesh_names(rule: &ast::ShardRule, mesh: &[MeshAxis], found: &mut Vec<Diagnostic>) -> Vec<String> {
    if let [only] = rule.mesh_axes.as_slice()
        && only.name == "none"
    {
        return vec![];
    }
    let mut names: Vec<String> = vec![];
    for axis in &rule.mesh_axes {
        if !mesh.iter().any(|m| m.name == axis.name) {
            let mut diagnostic =
                Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown mesh axis: `{}`", axis.name))
                    .at(axis.span, "not in the mesh");
            if let Some(near) = nearest(&axis.name, mesh.iter().map(|m| m.name.as_str())) {
                diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            } else {
                diagnostic = diagnostic.help(format!("add it: `mesh {{ {} = 8 }}`", axis.name));
            }
            found.push(diagnostic);
        } else if names.contains(&axis.name) {
            let title = format!("the mesh axis `{}` splits one axis twice", axis.name);
            found.push(Diagnostic::error(codes::MESH_AXIS_TWICE, title).at(axis.span, "again"));
        } else {
            names.push(axis.name.clone());
        }
    }
    names
}

/// The tensor axes of a choice, looked up among all tensors of the model.
fn tensor_axes(
    choice: &ast::AxisChoice,
    model: &Model,
    values: &[ValuePath],
    found: &mut Vec<Diagnostic>,
) -> Option<Vec<Axis>> {
    let mut known: BTreeMap<&str, u64> = BTreeMap::new();
    let tensors = values.iter().flat_map(|v| &v.axes);
    let inputs = model.inputs.iter().flat_map(|i| &i.ty.axes);
    for axis in model.params.iter().flat_map(Param::axes).chain(inputs).chain(tensors) {
        known.insert(&axis.name, axis.size);
    }
    let mut axes = vec![];
    for name in &choice.axes {
        match known.get(name.name.as_str()) {
            Some(size) => axes.push(Axis { name: name.name.clone(), size: *size }),
            None => {
                let title = format!("no tensor has the axis `{}`", name.name);
                let mut diagnostic =
                    Diagnostic::error(codes::UNKNOWN_NAME, title).at(name.span, "not an axis of the model");
                if let Some(near) = nearest(&name.name, known.keys().copied()) {
                    diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
                }
                found.push(diagnostic);
            }
        }
    }
    (axes.len() == choice.axes.len()).then_some(axes)
}

/// The product of the axes splits evenly over the mesh axes whose sizes are known. Sizes by the run are not checked here:
/// `batch` is split by the number of data shards, which the placeholder does not know.
fn divides(
    choice: &ast::AxisChoice,
    axes: &[Axis],
    names: &[String],
    mesh: &[MeshAxis],
    found: &mut Vec<Diagnostic>,
) {
    if axes.iter().any(|a| a.name == "batch") {
        return;
    }
    let over: Vec<&MeshAxis> = names.iter().filter_map(|n| mesh.iter().find(|m| m.name == *n)).collect();
    let devices: Option<u64> = over.iter().try_fold(1u64, |p, m| p.checked_mul(m.size?));
    let (Some(devices), size) = (devices, axes.iter().fold(1u64, |p, a| p.saturating_mul(a.size))) else {
        return;
    };
    if size % devices == 0 {
        return;
    }
    let shown: Vec<&str> = axes.iter().map(|a| a.name.as_str()).collect();
    let mesh_sizes: Vec<String> =
        over.iter().map(|m| format!("{} = {}", m.name, m.size.unwrap_or(1))).collect();
    let below = (1..=devices).rev().find(|n| size % n == 0).unwrap_or(1);
    let above = (devices..=size.min(devices.saturating_mul(4))).find(|n| size % n == 0);
    let fit = above.map_or(below.to_string(), |above| format!("{below} or {above}"));
    let title = format!("`{}` does not split {devices} ways", shown.join(" "));
    found.push(
        Diagnostic::error(codes::INDIVISIBLE, title)
            .at(choice.span, format!("{}, {}", show_axes(axes), mesh_sizes.join(", ")))
            .help(format!("{size} is not a multiple of {devices}; numbers of devices that fit are {fit}")),
    );
}

fn mesh_axis_twice(
    rule: &ast::ShardRule,
    ids: &[ParamId],
    model: &Model,
    split: &[BTreeMap<String, Vec<String>>],
    found: &mut Vec<Diagnostic>,
) {
    for id in ids {
        let param = &model.params[id.0 as usize];
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        // A joint choice gives one mesh axis to several tensor axes on purpose.
        let joint: Vec<&str> =
            rule.choices.iter().filter(|c| c.joint).flat_map(|c| &c.axes).map(|a| a.name.as_str()).collect();
        for (axis, mesh) in split[id.0 as usize].iter().filter(|(a, _)| !joint.contains(&a.as_str())) {
            for m in mesh {
                if let Some(other) = seen.insert(m, axis)
                    && rule.mesh_axes.iter().any(|r| r.name == *m)
                {
                    let title = format!(
                        "the mesh axis `{m}` would split two axes of `{}`: `{other}` and `{axis}`",
                        param.path
                    );
                    found.push(
                        Diagnostic::error(codes::MESH_AXIS_TWICE, title)
                            .at(rule.span, "by this rule")
                            .help(format!("exempt one: `params \"{}\": {axis} -> none`", param.path)),
                    );
                    return;
                }
            }
        }
    }
}

// ---- values

/// Every named value of the model with its axes and role.
pub fn value_paths(model: &Model) -> Vec<ValuePath> {
    let mut all = vec![];
    for input in &model.inputs {
        all.push(ValuePath {
            path: input.name.clone(),
            repeats: vec![],
            axes: input.ty.axes.clone(),
            role: None,
        });
    }
    statements(&model.body, &mut vec![], &mut all);
    walk(&model.loss.value, &mut vec![], &mut all);
    all
}

fn statements(body: &[Statement], repeats: &mut Vec<RepeatDim>, all: &mut Vec<ValuePath>) {
    for statement in body {
        match statement {
            Statement::Let(l) => {
                let (path, axes) = (l.path.clone(), l.expr.ty.axes.clone());
                all.push(ValuePath { path, repeats: repeats.clone(), axes, role: l.role.clone() });
                walk(&l.expr, repeats, all);
            }
            Statement::Aux(a) => walk(&a.expr, repeats, all),
        }
    }
}

fn instance(i: &Instance, repeats: &mut Vec<RepeatDim>, all: &mut Vec<ValuePath>) {
    let result = ValuePath {
        path: i.path.clone(),
        repeats: repeats.clone(),
        axes: i.result.ty.axes.clone(),
        role: i.role.clone(),
    };
    all.push(result);
    for arg in &i.args {
        let path = format!("{}.{}", i.path, arg.name);
        all.push(ValuePath { path, repeats: repeats.clone(), axes: arg.ty.axes.clone(), role: None });
    }
    statements(&i.body, repeats, all);
    walk(&i.result, repeats, all);
}

fn walk(e: &Expr, repeats: &mut Vec<RepeatDim>, all: &mut Vec<ValuePath>) {
    operands(e).into_iter().for_each(|x| walk(x, repeats, all));
    match &e.kind {
        ExprKind::Call(i, _) => instance(i, repeats, all),
        ExprKind::Repeat(r) => {
            repeats.push(r.dim.clone());
            instance(&r.body, repeats, all);
            repeats.pop();
        }
        _ => {}
    }
}

/// What an expression reads: its operands, the arguments of a call, but not the body of a block.
pub fn operands(e: &Expr) -> Vec<&Expr> {
    match &e.kind {
        ExprKind::Call(_, args) => args.iter().collect(),
        ExprKind::Repeat(r) => std::iter::once(&*r.init).chain(&r.invariants).collect(),
        ExprKind::Const(_) | ExprKind::Value(_) | ExprKind::Param(_) | ExprKind::Index => vec![],
        ExprKind::ToReal(x)
        | ExprKind::ToInt(x)
        | ExprKind::Unary(_, x)
        | ExprKind::Rename(x, _)
        | ExprKind::Reduce(_, _, x) => {
            vec![x]
        }
        ExprKind::Softmax(_, x)
        | ExprKind::Dropout { x, .. }
        | ExprKind::Slice { x, .. }
        | ExprKind::ZLoss(_, x)
        | ExprKind::Dispatch(_, x)
        | ExprKind::Combine(_, x) => vec![x],
        ExprKind::GroupedDot { x, w, .. } => vec![x, w],
        ExprKind::Route(r) => std::iter::once(&r.gates).chain(&r.select).collect(),
        ExprKind::LoadBalance { .. } => vec![],
        ExprKind::Concat { parts, .. } => parts.iter().map(|(_, x)| x).collect(),
        ExprKind::Binary(_, a, b) | ExprKind::Compare(_, a, b) | ExprKind::Dot(_, a, b) => vec![a, b],
        ExprKind::Where(a, b, c) => vec![a, b, c],
        ExprKind::Gather { table, ids, .. } => vec![table, ids],
        ExprKind::Rope(r) => vec![&r.x, &r.at],
        ExprKind::CrossEntropy { logits, targets, .. } => vec![logits, targets],
        ExprKind::RmsNorm { x, weight, .. } => std::iter::once(&**x).chain(weight.as_deref()).collect(),
        ExprKind::LayerNorm { x, weight, bias, .. } => {
            std::iter::once(&**x).chain(weight.as_deref()).chain(bias.as_deref()).collect()
        }
        ExprKind::Attend(a) => {
            [&a.q, &a.k, &a.v].into_iter().chain(&a.window).chain(&a.mask).chain(&a.bias).collect()
        }
    }
}

/// Reports a glob that hits no value, or single iterations.
pub fn values_hit(values: &[ValuePath], glob: &str, span: Span, found: &mut Vec<Diagnostic>) {
    let mut any = false;
    for value in values {
        match hit(glob, &value.path, &value.repeats) {
            Hit::No => {}
            Hit::Whole => any = true,
            Hit::Part => {
                found.push(run::part_of_repeat(glob, &value.path, value.repeats.last(), span));
                return;
            }
        }
    }
    if !any {
        found.push(run::hits_nothing(glob, "value", values.iter().map(|v| v.path.as_str()), span));
    }
}

fn role_hit(values: &[ValuePath], role: &ast::Ident, found: &mut Vec<Diagnostic>) {
    if values.iter().any(|v| v.role.as_deref() == Some(role.name.as_str())) {
        return;
    }
    let mut diagnostic =
        Diagnostic::error(codes::GLOB_NOTHING, format!("no value has the role `{}`", role.name))
            .at(role.span, "hits nothing");
    if let Some(near) = nearest(&role.name, values.iter().filter_map(|v| v.role.as_deref())) {
        diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
    }
    found.push(diagnostic);
}

// ---- the rest

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
