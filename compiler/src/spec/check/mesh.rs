//! The mesh: its axes with their sizes, and into how many parts it splits the batch.

use super::run;
use crate::spec::ast::{Entry, File, Item, ShardScope, Value, ValueArg, ValueKind};
use crate::spec::checked::{MeshAxis, MeshKind};
use crate::spec::codes;
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

/// Devices of a mesh at most.
pub const MAX_DEVICES: u64 = 1 << 24;

/// The axes of the `mesh` section with their sizes, in the order in which ranks count over them, `auto` resolved for this
/// number of devices; none without a section.
pub fn mesh(file: &File, devices: Option<u64>, found: &mut Vec<Diagnostic>) -> Vec<MeshAxis> {
    let Some(item) = run::section(file, "mesh", found) else {
        without_mesh(devices, found);
        return vec![];
    };
    let errors = found.iter().filter(|d| d.is_error()).count();
    let mut axes: Vec<MeshAxis> = vec![];
    let mut order = None;
    for entry in &item.section.entries {
        let Entry::Assign { key, value } = entry else {
            let title = "a mesh takes `axis = size` only";
            found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(item.section.span, ""));
            continue;
        };
        if key.name == "order" {
            if order.replace(value).is_some() {
                let title = "`mesh.order` is given twice";
                found.push(Diagnostic::error(codes::DUPLICATE, title).at(key.span, "again"));
            }
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
    if let Some(order) = order.filter(|_| axes.is_empty()) {
        let title = "`mesh.order` without axes: there is nothing to order";
        found.push(
            Diagnostic::error(codes::VALUE_TYPE, title).at(order.span, "").help("add an axis: `data = 2`"),
        );
    }
    if errors == found.iter().filter(|d| d.is_error()).count() && !axes.is_empty() {
        if let Some(order) = order {
            reorder(&mut axes, order, found);
        }
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

/// `order = [data, tensor]`: the axes stand so, major first. Every axis once.
fn reorder(axes: &mut [MeshAxis], order: &Value, found: &mut Vec<Diagnostic>) {
    let names: Vec<&str> = axes.iter().map(|a| a.name.as_str()).collect();
    let help = format!("write every axis once, the slowest first: `order = [{}]`", names.join(", "));
    let mut wrong = |span, title: String| {
        found.push(Diagnostic::error(codes::VALUE_TYPE, title).at(span, "").help(help.clone()));
    };
    let ValueKind::List(values) = &order.kind else {
        return wrong(order.span, "`mesh.order` takes the axes of the mesh in brackets".into());
    };
    let mut places: Vec<usize> = vec![];
    for value in values {
        let name = match &value.kind {
            ValueKind::Tagged { tag, args: None, section: None } => tag.name.as_str(),
            _ => "",
        };
        match axes.iter().position(|a| a.name == name) {
            Some(place) if places.contains(&place) => {
                return wrong(value.span, format!("`{name}` stands twice in `mesh.order`"));
            }
            Some(place) => places.push(place),
            None => {
                let shown = crate::spec::print::value(value);
                return wrong(value.span, format!("not an axis of the mesh: `{shown}`"));
            }
        }
    }
    if let Some(missing) = (0..axes.len()).find(|place| !places.contains(place)) {
        return wrong(order.span, format!("`mesh.order` lacks `{}`", axes[missing].name));
    }
    let ordered: Vec<MeshAxis> = places.iter().map(|place| axes[*place].clone()).collect();
    axes.clone_from_slice(&ordered);
}

/// Gives `auto` axes what the others leave of the devices, and compares the product with them.
fn resolve(axes: &mut [MeshAxis], devices: Option<u64>, keyword: Span, found: &mut Vec<Diagnostic>) {
    let fixed = axes.iter().filter(|a| a.auto.is_none()).fold(1u64, |p, a| p.saturating_mul(a.size));
    let shown = axes.iter().filter(|a| a.auto.is_none()).map(|a| format!("{} = {}", a.name, a.size));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let open: Vec<(usize, (u64, u64))> =
        axes.iter().enumerate().filter_map(|(i, a)| Some((i, a.auto?))).collect();
    let ranges: Vec<(u64, u64)> = open.iter().map(|(_, range)| *range).collect();
    if let Some(n) = devices.filter(|n| *n > MAX_DEVICES && !open.is_empty()) {
        let title = format!("a mesh has at most {MAX_DEVICES} devices");
        found.push(Diagnostic::error(codes::TOO_LARGE, title).at(keyword, format!("for {n}")));
        return;
    }
    match (&open[..], devices) {
        ([], Some(n)) if n != fixed => {
            let title = format!("the mesh is for {fixed} devices, `--devices` says {n}");
            let with_auto = axes.first().map_or("data", |a| a.name.as_str());
            found.push(
                Diagnostic::error(codes::MESH_PRODUCT, title)
                    .at(keyword, shown)
                    .help(format!("change a size, or let one follow from `--devices`: `{with_auto} = auto`")),
            );
        }
        ([], _) => {}
        (_, None) => {
            for (i, _) in &open {
                let axis = &axes[*i];
                let title = format!(
                    "`{}` is {}: without `--devices` an `auto` axis has its least size",
                    axis.name, axis.size
                );
                found.push(Diagnostic::note(codes::AUTO_MESH, title).at(axis.span, ""));
            }
        }
        (_, Some(n)) => match (n % fixed == 0).then(|| share(n / fixed, &ranges)).flatten() {
            Some(sizes) => open.iter().zip(sizes).for_each(|((i, _), size)| axes[*i].size = size),
            None => found.push(does_not_fit(axes, &open, n, fixed, &shown)),
        },
    }
    let product = axes.iter().fold(1u64, |p, a| p.saturating_mul(a.size));
    if product > MAX_DEVICES {
        let title = format!("a mesh has at most {MAX_DEVICES} devices");
        found.push(Diagnostic::error(codes::TOO_LARGE, title).at(keyword, format!("has {product}")));
    }
}

/// Sizes in these ranges whose product is n: the last one as large as it can be, then the one before it, and so on; so that
/// what is exchanged most goes between neighbours. `None` if there are none.
fn share(n: u64, ranges: &[(u64, u64)]) -> Option<Vec<u64>> {
    let Some((&(low, high), before)) = ranges.split_last() else { return (n == 1).then(Vec::new) };
    if before.is_empty() {
        return (low..=high).contains(&n).then(|| vec![n]);
    }
    for size in divisors(n).into_iter().rev().filter(|size| (low..=high).contains(size)) {
        if let Some(mut sizes) = share(n / size, before) {
            sizes.push(size);
            return Some(sizes);
        }
    }
    None
}

/// The divisors of n, least first.
fn divisors(n: u64) -> Vec<u64> {
    let small: Vec<u64> = (1..).take_while(|d| d * d <= n).filter(|d| n % d == 0).collect();
    let large = small.iter().rev().map(|d| n / d).filter(|d| d * d != n).collect::<Vec<_>>();
    [small, large].concat()
}

fn does_not_fit(
    axes: &[MeshAxis],
    open: &[(usize, (u64, u64))],
    n: u64,
    fixed: u64,
    shown: &str,
) -> Diagnostic {
    let names: Vec<String> = open.iter().map(|(i, _)| format!("`{}`", axes[*i].name)).collect();
    let ranges: Vec<(u64, u64)> = open.iter().map(|(_, range)| *range).collect();
    let title = match open {
        _ if n % fixed != 0 => {
            format!("{n} devices are not a multiple of {fixed}, so none are left for {}", names.join(", "))
        }
        [(_, (low, high))] => {
            format!("{} would be {}, outside of {low}..{high}, for {n} devices", names[0], n / fixed)
        }
        _ => format!("no sizes of {} within their ranges make {n} devices", names.join(", ")),
    };
    let beside = if shown.is_empty() { String::new() } else { format!("beside {shown}") };
    let first = &axes[open[0].0];
    let error = Diagnostic::error(codes::MESH_PRODUCT, title).at(first.span, beside);
    let error = open[1..].iter().fold(error, |error, (i, _)| error.and(axes[*i].span, ""));
    let fits = |rest: &u64| share(*rest, &ranges).is_some();
    let below = (1..=n / fixed).rev().take(FITS_TRIED).find(|rest| rest * fixed != n && fits(rest));
    let above = (n / fixed + 1..).take(FITS_TRIED).find(fits);
    // A range far off is named by its ends.
    let ends = ranges
        .iter()
        .fold((1u64, 1u64), |(low, high), range| (low.saturating_mul(range.0), high.saturating_mul(range.1)));
    let below = below.or((n / fixed > ends.1).then_some(ends.1));
    let above = above.or((n / fixed < ends.0).then_some(ends.0));
    let near: Vec<String> =
        [below, above].into_iter().flatten().map(|rest| rest.saturating_mul(fixed).to_string()).collect();
    if near.is_empty() {
        return error;
    }
    error.help(format!("numbers of devices that fit next: {}", near.join(" or ")))
}

/// How many numbers of devices are tried to each side for one that fits.
const FITS_TRIED: usize = 256;

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

#[cfg(test)]
mod tests {
    use super::share;

    /// Against all products: a share exists just where one does, and is the greatest read from its end.
    #[test]
    fn mesh_shares_devices_the_last_axis_first() {
        let ranges = [[(1, 6), (2, 5), (1, 4)], [(3, 3), (1, 12), (2, 2)], [(1, 1), (1, 64), (2, 6)]];
        for [a, b, c] in ranges {
            for n in 1..200u64 {
                let mut best: Option<[u64; 3]> = None;
                for z in c.0..=c.1 {
                    for y in b.0..=b.1 {
                        let x = n / (y * z);
                        let fits = x * y * z == n && (a.0..=a.1).contains(&x);
                        if fits && best.is_none_or(|[_, by, bz]| (z, y) > (bz, by)) {
                            best = Some([x, y, z]);
                        }
                    }
                }
                assert_eq!(
                    share(n, &[a, b, c]),
                    best.map(|sizes| sizes.to_vec()),
                    "{n} over {a:?} {b:?} {c:?}"
                );
            }
        }
        assert_eq!(share(7, &[(1, 9)]), Some(vec![7]));
        assert_eq!((share(1, &[]), share(2, &[])), (Some(vec![]), None));
        // Large numbers cost their square root.
        assert_eq!(share(1 << 24, &[(1, 1 << 24), (1, 4096)]), Some(vec![4096, 4096]));
    }
}
