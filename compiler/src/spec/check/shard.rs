//! `shard { … }`: which tensor axes are split over which mesh axes.

use super::model::show_axes;
use super::run;
use super::values::{ValuePath, glob_values, of_role};
use crate::spec::ast::{self, ShardScope};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::source::Span;
use std::collections::{BTreeMap, BTreeSet};

/// The rules of a `shard`, one for each choice of axes; those with an error are reported and left out.
pub fn shard_rules(
    shard: &ast::Shard,
    model: &Model,
    mesh: &[MeshAxis],
    values: &[ValuePath],
    found: &mut Vec<Diagnostic>,
) -> Vec<ShardRule> {
    let known = known_axes(model, values);
    let mut padded = Padded::of(model);
    let mut rules = vec![];
    for rule in &shard.rules {
        let names = mesh_names(rule, mesh, found);
        let scope = scope(rule, model, values, found);
        for choice in &rule.choices {
            let Some(axes) = tensor_axes(choice, &known, found) else { continue };
            let Some((scope, hits)) = &scope else { continue };
            if !has_axis(hits.as_deref(), choice, found) || !batch_alone(choice, found) {
                continue;
            }
            let of_params = matches!(scope, Scope::Every | Scope::Params(_));
            let Some(parts) = parts(choice, &axes, &over(&names, mesh), of_params, &mut padded, found) else {
                continue;
            };
            rules.push(ShardRule {
                scope: scope.clone(),
                axes: axes.into_iter().map(|a| a.name).collect(),
                joint: choice.joint,
                mesh: names.clone(),
                parts,
                span: rule.span,
            });
        }
    }
    rules
}

/// What a rule speaks of, and the axes of each tensor among it; `None` for the axes of [`Scope::Every`], which may be any.
#[allow(clippy::type_complexity, reason = "a scope with what it hits, used once")]
fn scope(
    rule: &ast::ShardRule,
    model: &Model,
    values: &[ValuePath],
    found: &mut Vec<Diagnostic>,
) -> Option<(Scope, Option<Vec<Vec<Axis>>>)> {
    let axes = |hits: &[&ValuePath]| Some(hits.iter().map(|v| v.axes.clone()).collect::<Vec<_>>());
    let (scope, hits) = match &rule.scope {
        ShardScope::Every => return Some((Scope::Every, None)),
        ShardScope::Params(glob) => {
            let ids = run::glob_params(model, &glob.value, None, glob.span, found);
            let axes = ids.iter().map(|id| model.param(*id).axes().cloned().collect()).collect();
            (Scope::Params(ids), Some(axes))
        }
        ShardScope::Role(role) => {
            let hits = of_role(values, role, found);
            (Scope::Role(role.name.clone()), axes(&hits))
        }
        ShardScope::Values(glob) => {
            let hits = glob_values(values, &glob.value, glob.span, found);
            (Scope::Values(hits.iter().map(|v| v.path.clone()).collect()), axes(&hits))
        }
    };
    // What hit nothing was reported.
    hits.as_ref().is_some_and(|hits| !hits.is_empty()).then_some((scope, hits))
}

/// Reports a choice none of whose axes any of the named tensors has.
fn has_axis(hits: Option<&[Vec<Axis>]>, choice: &ast::AxisChoice, found: &mut Vec<Diagnostic>) -> bool {
    let Some(hits) = hits else { return true };
    let has = |name: &str| hits.iter().flatten().any(|axis| axis.name == name);
    if choice.axes.iter().any(|a| has(&a.name)) {
        return true;
    }
    let shown: Vec<&str> = choice.axes.iter().map(|a| a.name.as_str()).collect();
    let there: BTreeSet<&str> = hits.iter().flatten().map(|a| a.name.as_str()).collect();
    let there: Vec<&str> = there.into_iter().collect();
    let title = format!("nothing that the rule names has the axis `{}`", shown.join(" "));
    found.push(
        Diagnostic::error(codes::GLOB_NOTHING, title)
            .at(choice.span, "hits nothing")
            .help(format!("there are the axes {}", there.join(", "))),
    );
    false
}

/// The parts of the batch are the data shards, so it is split by itself.
fn batch_alone(choice: &ast::AxisChoice, found: &mut Vec<Diagnostic>) -> bool {
    let alone = choice.axes.len() == 1 || choice.axes.iter().all(|a| a.name != "batch");
    if !alone {
        let title = "`batch` is split by itself: its parts are the data shards";
        found.push(
            Diagnostic::error(codes::PLACE, title)
                .at(choice.span, "jointly with another axis")
                .help("write a rule for `batch` and one for the others"),
        );
    }
    alone
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
        match mesh.iter().find(|m| m.name == axis.name) {
            None => found.push(unknown_mesh_axis(axis, mesh)),
            Some(m) if m.kind == MeshKind::Pipeline => {
                let title = format!("tensors are not split over `{}`: it is a pipeline axis", axis.name);
                found.push(
                    Diagnostic::error(codes::KIND, title)
                        .at(axis.span, "holds stages, not parts of tensors")
                        .and(m.span, "declared here"),
                );
            }
            Some(_) if names.contains(&axis.name) => {
                let title = format!("the mesh axis `{}` splits one axis twice", axis.name);
                found.push(Diagnostic::error(codes::MESH_AXIS_TWICE, title).at(axis.span, "again"));
            }
            Some(_) => names.push(axis.name.clone()),
        }
    }
    names
}

fn unknown_mesh_axis(axis: &ast::Ident, mesh: &[MeshAxis]) -> Diagnostic {
    let diagnostic = Diagnostic::error(codes::UNKNOWN_NAME, format!("unknown mesh axis: `{}`", axis.name))
        .at(axis.span, "not in the mesh");
    match nearest(&axis.name, mesh.iter().map(|m| m.name.as_str())) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
        None => diagnostic.help(format!("add it: `mesh {{ {} = 8 }}`", axis.name)),
    }
}

/// Size of every axis that some tensor has.
fn known_axes<'a>(model: &'a Model, values: &'a [ValuePath]) -> BTreeMap<&'a str, u64> {
    let params = model.params.iter().flat_map(Param::axes);
    params.chain(values.iter().flat_map(|v| &v.axes)).map(|a| (a.name.as_str(), a.size)).collect()
}

/// The tensor axes of a choice.
fn tensor_axes(
    choice: &ast::AxisChoice,
    known: &BTreeMap<&str, u64>,
    found: &mut Vec<Diagnostic>,
) -> Option<Vec<Axis>> {
    let mut axes: Vec<Axis> = vec![];
    for name in &choice.axes {
        if axes.iter().any(|a| a.name == name.name) {
            let title = format!("`{}` stands twice in one rule", name.name);
            found.push(Diagnostic::error(codes::AXIS_TWICE, title).at(name.span, "again"));
            return None;
        }
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

/// Mesh axes with their sizes.
fn over<'a>(names: &'a [String], mesh: &[MeshAxis]) -> Vec<(&'a str, u64)> {
    let size = |name: &'a String| mesh.iter().find(|m| m.name == *name).map(|m| (name.as_str(), m.size));
    names.iter().filter_map(size).collect()
}

/// Axes of parameters, which may be made longer so that they split.
struct Padded<'a> {
    axes: BTreeSet<&'a str>,
    /// What rules so far have made of sizes.
    sizes: BTreeMap<String, u64>,
}

impl<'a> Padded<'a> {
    fn of(model: &'a Model) -> Padded<'a> {
        let axes = model.params.iter().flat_map(Param::axes).map(|a| a.name.as_str()).collect();
        Padded { axes, sizes: BTreeMap::new() }
    }

    /// The next size of an axis that splits, if it is not much more.
    fn size(&self, axis: &Axis, ways: u64, of_params: bool) -> Option<u64> {
        if !of_params {
            return self.sizes.get(&axis.name).copied().filter(|size| size % ways == 0);
        }
        let size = axis.size.checked_next_multiple_of(ways)?;
        let little = (size - axis.size).saturating_mul(PADDING_PART) <= axis.size;
        (little && self.axes.contains(axis.name.as_str())).then_some(size)
    }
}

/// Padding adds at most one part in this many to an axis.
const PADDING_PART: u64 = 8;

/// What each axis of a choice is split over. One axis of parameters whose size is not a multiple is padded, as long as that
/// adds little; an error for anything else that does not split evenly.
fn parts(
    choice: &ast::AxisChoice,
    axes: &[Axis],
    over: &[(&str, u64)],
    of_params: bool,
    padded: &mut Padded<'_>,
    found: &mut Vec<Diagnostic>,
) -> Option<Vec<Vec<SubAxis>>> {
    let sizes: Vec<u64> = axes.iter().map(|a| a.size).collect();
    if let Some(parts) = split_jointly(&sizes, over) {
        return Some(parts);
    }
    let ways = over.iter().fold(1u64, |p, (_, n)| p.saturating_mul(*n));
    if let [axis] = axes
        && let Some(size) = padded.size(axis, ways, of_params)
    {
        let title =
            format!("`{}` is padded from {} to {size}, so that it splits {ways} ways", axis.name, axis.size);
        if padded.sizes.insert(axis.name.clone(), size) != Some(size) {
            found.push(Diagnostic::note(codes::PADDED, title).at(choice.span, ""));
        }
        return split_jointly(&[size], over);
    }
    found.push(indivisible(choice, axes, over));
    None
}

fn indivisible(choice: &ast::AxisChoice, axes: &[Axis], over: &[(&str, u64)]) -> Diagnostic {
    let size = axes.iter().fold(1u64, |p, a| p.saturating_mul(a.size));
    let devices = over.iter().fold(1u64, |p, (_, n)| p.saturating_mul(*n));
    let shown: Vec<&str> = axes.iter().map(|a| a.name.as_str()).collect();
    let mesh_sizes: Vec<String> = over.iter().map(|(name, n)| format!("{name} = {n}")).collect();
    let below = (1..=devices).rev().find(|n| size % n == 0).unwrap_or(1);
    let above = (devices..=size.min(devices.saturating_mul(4))).find(|n| size % n == 0);
    let fit = above.map_or(below.to_string(), |above| format!("{below} or {above}"));
    Diagnostic::error(codes::INDIVISIBLE, format!("`{}` does not split {devices} ways", shown.join(" ")))
        .at(choice.span, format!("{}, {}", show_axes(axes), mesh_sizes.join(", ")))
        .meaning("only an axis of parameters, split by itself, is padded, by up to an eighth of its size")
        .help(format!("{size} is not a multiple of {devices}; numbers of devices that fit are {fit}"))
}

// ---- the rules together

/// Reports every pair of rules that would split two axes of one tensor over the same devices; the first tensor of each.
pub fn mesh_axis_twice(layout: &Layout, model: &Model, values: &[ValuePath], found: &mut Vec<Diagnostic>) {
    let mut reported = BTreeSet::new();
    let mut report = |won: &[Won<'_>], path: &str, is_value: bool, way_out: &dyn Fn(&str) -> String| {
        let Some((first, second, mesh)) = overlap(won) else { return };
        let by_axis = |won: &Won<'_>| won.rule.scope == Scope::Every;
        // Which of two by-axis rules a value follows is a question of price, unless prices decide nothing; a parameter can't
        // follow both.
        if layout.mode == ShardMode::Auto && is_value && by_axis(first) && by_axis(second) {
            return;
        }
        let axes = (first.axis.to_string(), second.axis.to_string());
        if !reported.insert((first.rule.span, second.rule.span, axes)) {
            return;
        }
        let title = format!(
            "the mesh axis `{mesh}` would split two axes of `{path}`: `{}` and `{}`",
            first.axis, second.axis
        );
        let mut diagnostic =
            Diagnostic::error(codes::MESH_AXIS_TWICE, title).at(second.rule.span, "by this rule");
        if first.rule.span != second.rule.span {
            diagnostic = diagnostic.and(first.rule.span, "and by this one");
        }
        found.push(diagnostic.help(way_out(second.axis)));
    };
    for (i, param) in model.params.iter().enumerate() {
        let path = &param.path;
        report(&layout.rules_in_use(param), path, false, &|axis| {
            format!(
                "leave `{axis}` out of the rule, or split it at rest alone: `params \"{path}\": {axis} -> …`"
            )
        });
        report(&layout.rules_at_rest(ParamId(i as u32), param), path, false, &|axis| {
            format!("exempt one: `params \"{path}\": {axis} -> none`")
        });
    }
    for value in values {
        let won = layout.rules_of_value(&value.axes, value.role.as_deref(), &value.path);
        report(&won, &value.path, true, &|axis| {
            format!("exempt one: `values \"{}\": {axis} -> none`", value.path)
        });
    }
}

/// Reports rules that cut one mesh axis where they don't fit into each other: after 4 and after 6 of 12 ways.
pub fn cuts_nest(layout: &Layout, found: &mut Vec<Diagnostic>) {
    for axis in &layout.mesh {
        let mut cuts: BTreeMap<u64, Span> = BTreeMap::new();
        for rule in &layout.rules {
            for part in rule.parts.iter().flatten().filter(|part| part.axis == axis.name) {
                cuts.entry(part.before * part.size).or_insert(rule.span);
            }
        }
        let cuts: Vec<(u64, Span)> = cuts.into_iter().collect();
        if let Some([(a, first), (b, second)]) = cuts.windows(2).find(|w| w[1].0 % w[0].0 != 0) {
            let title =
                format!("the rules cut `{}` after {a} and after {b} ways, which don't nest", axis.name);
            found.push(
                Diagnostic::error(codes::INDIVISIBLE, title)
                    .at(*second, format!("after {b} of {}", axis.size))
                    .and(*first, format!("after {a}"))
                    .help(format!("give `{}` another size, or make two mesh axes of it", axis.name)),
            );
        }
    }
}

/// What the rules for roles and values say, by path of the value: only of axes that no later by-axis rule has won.
pub fn constraints(layout: &Layout, values: &[ValuePath]) -> BTreeMap<String, Constraint> {
    let mut all = BTreeMap::new();
    if layout.devices() == 1 {
        return all;
    }
    for value in values {
        let mut won = layout.rules_of_value(&value.axes, value.role.as_deref(), &value.path);
        won.retain(|w| w.rule.scope != Scope::Every);
        let Some(span) = won.iter().map(|w| w.rule.span).max_by_key(|span| span.start) else { continue };
        let split = won.iter().map(|w| (w.axis.to_string(), layout.atoms_of(w.parts))).collect();
        all.insert(value.path.clone(), Constraint { split, span });
    }
    all
}

/// Two axes that share devices, the one of the later rule last, and the mesh axis.
fn overlap<'a, 'b>(won: &'b [Won<'a>]) -> Option<(&'b Won<'a>, &'b Won<'a>, &'a str)> {
    for (n, second) in won.iter().enumerate() {
        for first in &won[..n] {
            let shared = first.parts.iter().find(|p| second.parts.iter().any(|q| p.overlaps(q)));
            if let Some(part) = shared {
                let ordered = first.rule.span.start <= second.rule.span.start;
                let (first, second) = if ordered { (first, second) } else { (second, first) };
                return Some((first, second, &part.axis));
            }
        }
    }
    None
}

/// Warns of parameters that no rule for parameters names, not even with `-> none`.
pub fn untouched(layout: &Layout, model: &Model, keyword: Span, found: &mut Vec<Diagnostic>) {
    let names = |rule: &ShardRule, id: ParamId, param: &Param| {
        let speaks = match &rule.scope {
            Scope::Every => true,
            Scope::Params(ids) => ids.contains(&id),
            Scope::Role(_) | Scope::Values(_) => false,
        };
        speaks && param.axes().any(|a| rule.axes.contains(&a.name))
    };
    let untouched: Vec<&str> = model
        .params
        .iter()
        .enumerate()
        .filter(|(i, param)| !layout.rules.iter().any(|rule| names(rule, ParamId(*i as u32), param)))
        .map(|(_, param)| param.path.as_str())
        .collect();
    if untouched.is_empty() {
        return;
    }
    let title = "parameters that no rule touches stay whole on every device";
    found.push(
        Diagnostic::warning(codes::UNTOUCHED, title)
            .at(keyword, "these rules")
            .meaning(format!("not touched: {}", untouched.join(", ")))
            .help("say so if that is meant: `params \"…\": axis -> none`"),
    );
}
