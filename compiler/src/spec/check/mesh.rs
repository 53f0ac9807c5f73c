//! The mesh: its axes with their sizes, and into how many parts it splits the batch.

use super::run;
use crate::spec::ast::{Entry, File, Item, ShardScope, Value, ValueArg, ValueKind};
use crate::spec::checked::{MeshAxis, MeshKind};
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

/// Devices of a mesh at most.
pub const MAX_DEVICES: u64 = 1 << 24;

/// The axes of the `mesh` section with their sizes, `auto` resolved for this number of devices; none without a section.
pub fn mesh(file: &File, devices: Option<u64>, has_run: bool, found: &mut Vec<Diagnostic>) -> Vec<MeshAxis> {
    let Some(item) = run::section(file, "mesh", found) else {
        without_mesh(devices, found);
        return vec![];
    };
    let errors = found.iter().filter(|d| d.is_error()).count();
    let mut axes: Vec<MeshAxis> = vec![];
    for entry in &item.section.entries {
        let Entry::Assign { key, value } = entry else {
            let title = "a mesh takes `axis = size` only";
            found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(item.section.span, ""));
            continue;
        };
        if key.name == "order" {
            found.push(super::not_built("mesh.order", key.span, has_run));
            continue;
        }
        if key.name == "none" {
            let title = "a mesh axis can't be called `none`: in a rule `-> none` means no axis";
            found.push(Diagnostic::error(codes::PLACE, title).at(key.span, ""));
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
        let axis = MeshAxis {
            name: key.name.clone(),
            size: 1,
            auto: None,
            kind: MeshKind::Data,
            over_nodes: false,
            span: key.span,
        };
        axes.push(read_size(value, axis.clone(), found).unwrap_or(axis));
    }
    if errors == found.iter().filter(|d| d.is_error()).count() && !axes.is_empty() {
        resolve(&mut axes, devices, item.kind.span, found);
    }
    axes
}

/// `8`, `8 pipeline`, `auto(1..64)`, each maybe `over nodes`. An `auto` axis starts at its least size.
fn read_size(value: &Value, axis: MeshAxis, found: &mut Vec<Diagnostic>) -> Option<MeshAxis> {
    let expected = "expected such as `8`, `8 pipeline`, `auto` or `auto(1..64) over nodes`";
    let mut wrong = |span| {
        let title = format!("not a size of a mesh axis: `{}`", crate::spec::print::value(value));
        found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(span, expected));
        None
    };
    match &value.kind {
        ValueKind::Over(inner, place) if ["nodes", "node"].contains(&place.name.as_str()) => {
            read_size(inner, MeshAxis { over_nodes: true, ..axis }, found)
        }
        ValueKind::Over(_, place) => wrong(place.span),
        ValueKind::Number(n, kind) => {
            let kind = match kind.as_ref().map(|k| k.name.as_str()) {
                None => MeshKind::Data,
                Some("pipeline") => MeshKind::Pipeline,
                Some(_) => return wrong(value.span),
            };
            match n.integer.filter(|n| *n >= 1) {
                Some(size) => Some(MeshAxis { size, kind, ..axis }),
                None => wrong(value.span),
            }
        }
        ValueKind::Tagged { tag, args, section: None } if tag.name == "auto" => {
            let range = match args.as_deref() {
                None => Some((1, MAX_DEVICES)),
                Some([ValueArg { name: None, value: Value { kind: ValueKind::Range(low, high), .. } }]) => {
                    low.integer.zip(high.integer).filter(|(low, high)| 1 <= *low && low <= high)
                }
                Some(_) => None,
            };
            match range {
                Some(range) => Some(MeshAxis { size: range.0, auto: Some(range), ..axis }),
                None => wrong(value.span),
            }
        }
        _ => wrong(value.span),
    }
}

/// Gives the `auto` axis what the others leave of the devices, and compares the product with them.
fn resolve(axes: &mut [MeshAxis], devices: Option<u64>, keyword: Span, found: &mut Vec<Diagnostic>) {
    let fixed = axes.iter().filter(|a| a.auto.is_none()).fold(1u64, |p, a| p.saturating_mul(a.size));
    let shown = axes
        .iter()
        .filter(|a| a.auto.is_none())
        .map(|a| format!("{} = {}", a.name, a.size))
        .collect::<Vec<_>>()
        .join(", ");
    let mut open = axes.iter_mut().filter_map(|a| a.auto.map(|range| (a, range)));
    let (auto, second) = (open.next(), open.next());
    if let (Some((first, _)), Some((second, _))) = (&auto, &second) {
        let title = "two mesh axes are `auto`: one number of devices does not give both";
        found.push(
            Diagnostic::error(codes::MESH_PRODUCT, title)
                .at(second.span, "")
                .and(first.span, "")
                .help(format!("give one a size, such as `{} = 8`", second.name)),
        );
        return;
    }
    match (auto, devices) {
        (None, Some(n)) if n != fixed => {
            let title = format!("the mesh is for {fixed} devices, `--devices` says {n}");
            let with_auto = axes.first().map_or("data", |a| a.name.as_str());
            found.push(
                Diagnostic::error(codes::MESH_PRODUCT, title)
                    .at(keyword, shown)
                    .help(format!("change a size, or let one follow from `--devices`: `{with_auto} = auto`")),
            );
        }
        (None, _) => {}
        (Some((axis, _)), None) => {
            let title = format!(
                "`{}` is {}: without `--devices` an `auto` axis has its least size",
                axis.name, axis.size
            );
            found.push(Diagnostic::note(codes::AUTO_MESH, title).at(axis.span, ""));
        }
        (Some((axis, (low, high))), Some(n)) => {
            let size = n / fixed;
            if n % fixed == 0 && (low..=high).contains(&size) {
                axis.size = size;
            } else {
                let title = if n % fixed == 0 {
                    format!("`{}` would be {size}, outside of {low}..{high}, for {n} devices", axis.name)
                } else {
                    format!("{n} devices are not a multiple of {fixed}, so none are left for `{}`", axis.name)
                };
                let fits = nearest_fits(n, fixed, low, high);
                found.push(
                    Diagnostic::error(codes::MESH_PRODUCT, title)
                        .at(
                            axis.span,
                            if shown.is_empty() { String::new() } else { format!("beside {shown}") },
                        )
                        .help(format!("numbers of devices that fit next: {fits}")),
                );
            }
        }
    }
    let product = axes.iter().fold(1u64, |p, a| p.saturating_mul(a.size));
    if product > MAX_DEVICES {
        let title = format!("a mesh has at most {MAX_DEVICES} devices");
        found.push(Diagnostic::error(codes::TOO_LARGE, title).at(keyword, format!("has {product}")));
    }
}

/// The multiples of `fixed` within the range that are nearest to n.
fn nearest_fits(n: u64, fixed: u64, low: u64, high: u64) -> String {
    let below = (n / fixed).clamp(low, high);
    let above = (n / fixed).saturating_add(1).clamp(low, high);
    let [below, above] = [below, above].map(|size| size.saturating_mul(fixed));
    if below == above { below.to_string() } else { format!("{below} or {above}") }
}

fn without_mesh(devices: Option<u64>, found: &mut Vec<Diagnostic>) {
    let Some(n) = devices.filter(|n| *n > 1) else { return };
    let title = format!("`--devices {n}` without a mesh: nothing says what is split over them");
    found.push(
        Diagnostic::error(codes::MESH_PRODUCT, title)
            .help("write `mesh { data = auto }` and `shard { batch -> data }`"),
    );
}

/// Into how many parts the rules split the batch: the product of the mesh axes of the last `batch -> …` that holds for
/// every tensor.
pub fn data_shards(file: &File, mesh: &[MeshAxis]) -> u64 {
    let rules = file.items.iter().flat_map(|item| match item {
        Item::Shard(shard) => &shard.rules[..],
        _ => &[],
    });
    let last = rules
        .filter(|rule| matches!(rule.scope, ShardScope::Every))
        .rfind(|rule| rule.choices.iter().any(|c| c.axes.len() == 1 && c.axes[0].name == "batch"));
    let mut over: Vec<&MeshAxis> = vec![];
    for name in last.iter().flat_map(|rule| &rule.mesh_axes) {
        let axis = mesh.iter().find(|a| a.name == name.name);
        over.extend(axis.filter(|a| over.iter().all(|b| b.name != a.name)));
    }
    over.iter().fold(1u64, |p, a| p.saturating_mul(a.size)).min(MAX_DEVICES)
}
