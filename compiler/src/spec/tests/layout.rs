//! Meshes, rules and what they make of parameters and of the batch.

use super::check::{LLAMA, check_text, check_text_for};
use crate::spec::checked::{
    Kept, Layout, MeshAxis, MeshKind, ParamId, Regather, ShardMode, Spec, Store, split_jointly,
};
use crate::spec::{MemoryLoader, SourceMap, Span, check_for, expand, placement};

/// A run of Llama with 4 layers and these lines.
fn run(lines: &str) -> String {
    format!(
        "spec 1\nuse \"llama.spec\" as Llama with {{ layers = 4 }}\n{lines}train {{\n    steps = 10, batch = 64, seq = 16, microbatch = 2, data = synthetic()\n    optimizer = adamw {{ lr = 1e-3 }}\n}}\n"
    )
}

/// Fully sharded data parallelism beside tensor parallelism.
const MESH: &str = "mesh { data = auto(1..64) over nodes, fsdp = 4, tensor = 2 }
shard {
    batch -> data, fsdp
    kv, ff, vocab -> tensor
    role residual: seq -> tensor
    params \"**\": d -> fsdp
    params \"**.norm*.w\": d -> none
    values \"layer.*.attn\": seq -> none
}
store { state = whole }
";

fn spec(lines: &str, sets: &[&str], devices: Option<u64>) -> Spec {
    check_text_for(&run(lines), sets, devices).unwrap_or_else(|e| panic!("\n{e}")).0
}

fn layout(spec: &Spec) -> &Layout {
    spec.layout.as_ref().expect("the spec has a mesh")
}

/// `d/fsdp kv/tensor` of a parameter: at rest, in use.
fn splits(spec: &Spec, path: &str) -> [String; 2] {
    let at = spec.model.params.iter().position(|p| p.path == path).expect("a parameter");
    let (layout, param) = (layout(spec), &spec.model.params[at]);
    [layout.at_rest(ParamId(at as u32), param), layout.in_use(param)].map(|split| {
        let shown = split.iter().map(|(axis, parts)| {
            let parts = parts.iter().map(|p| format!("{}:({}){}", p.axis, p.before, p.size));
            format!("{axis}/{}", parts.collect::<Vec<_>>().join("·"))
        });
        shown.collect::<Vec<_>>().join(" ")
    })
}

#[test]
fn layout_takes_auto_from_the_number_of_devices() {
    let sizes = |devices| layout(&spec(MESH, &[], devices)).mesh.iter().map(|a| a.size).collect::<Vec<_>>();
    assert_eq!(sizes(Some(64)), [8, 4, 2]);
    assert_eq!(sizes(Some(8)), [1, 4, 2]);
    assert_eq!(sizes(None), [1, 4, 2]);
    let axes = &layout(&spec(MESH, &[], None)).mesh.clone();
    assert_eq!((axes[0].auto, axes[0].over_nodes, axes[1].over_nodes), (Some((1, 64)), true, false));
    let (_, notes) = check_text_for(&run(MESH), &[], None).expect("it checks");
    assert_eq!(notes.iter().map(|d| d.code.id).collect::<Vec<_>>(), ["N0005"]);
    let (_, notes) = check_text_for(&run(MESH), &[], Some(8)).expect("it checks");
    assert!(notes.is_empty());
}

/// Of several `auto` axes the last takes as much as its range and the others leave it.
#[test]
fn layout_shares_devices_among_auto_axes_the_last_one_first() {
    let sizes = |mesh: &str, devices| {
        let text = MESH.replace("data = auto(1..64) over nodes, fsdp = 4, tensor = 2", mesh);
        let found = check_text_for(&run(&text), &[], devices)
            .map(|(spec, _)| layout(&spec).mesh.iter().map(|a| (a.name.clone(), a.size)).collect::<Vec<_>>());
        found.map(|mesh| {
            mesh.into_iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" ")
        })
    };
    let of = |mesh, devices| sizes(mesh, devices).unwrap_or_else(|e| panic!("{e}"));
    let autos = "data = auto, fsdp = auto(1..4), tensor = auto(1..2)";
    assert_eq!(of(autos, Some(16)), "data=2 fsdp=4 tensor=2");
    assert_eq!(of(autos, Some(2)), "data=1 fsdp=1 tensor=2");
    assert_eq!(of(autos, None), "data=1 fsdp=1 tensor=1");
    // The last takes less where the others could not make up the rest.
    assert_eq!(of("data = 1, fsdp = auto(2..2), tensor = auto(1..8)", Some(8)), "data=1 fsdp=2 tensor=4");
    // The order is that of the ranks.
    let order = "fsdp = auto(1..4), tensor = auto(1..2), data = auto, order = [data, fsdp, tensor]";
    assert_eq!(of(order, Some(16)), "data=2 fsdp=4 tensor=2");
    assert!(sizes("data = auto(1..1), fsdp = auto(3..3), tensor = auto(1..2)", Some(4)).is_err());
}

/// `order` says which axis joins neighbours: the ranks of a mesh with an order are those of the mesh written in that order.
#[test]
fn layout_numbers_ranks_in_the_order_of_the_mesh() {
    let mesh = |mesh: &str| {
        let text = MESH.replace("data = auto(1..64) over nodes, fsdp = 4, tensor = 2", mesh);
        spec(&text, &[], None).layout.expect("a mesh")
    };
    let ordered = mesh("data = 2, fsdp = 4, tensor = 2, order = [fsdp, tensor, data]");
    let written = mesh("fsdp = 4, tensor = 2, data = 2");
    let places = |l: &Layout| (0..16).map(|rank| l.coordinates(rank)).collect::<Vec<_>>();
    assert_eq!(places(&ordered), places(&written));
    assert_eq!(ordered.mesh[2].name, "data");
    assert_eq!([ordered.coordinates(0), ordered.coordinates(1)], [[0, 0, 0], [0, 0, 1]]);
    // Over the other axes the same tensors lie on the same coordinates.
    assert_eq!(ordered.data_shards(), mesh("data = 2, fsdp = 4, tensor = 2").data_shards());
}

#[test]
fn layout_counts_microbatches_over_all_data_shards() {
    let of = |devices| {
        let spec = spec(MESH, &[], devices);
        let train = spec.train.as_ref().expect("a run");
        let shards = layout(&spec).data_shards();
        (shards, train.microbatch, train.global_microbatch, train.accumulation, spec.model.size("batch"))
    };
    assert_eq!(of(None), (4, 2, 8, 8, Some(8)));
    assert_eq!(of(Some(64)), (32, 2, 64, 1, Some(64)));
    let whole = run(MESH).replace(" microbatch = 2,", "");
    let (spec, _) = check_text_for(&whole, &[], Some(16)).expect("it checks");
    let train = spec.train.expect("a run");
    assert_eq!((train.microbatch, train.global_microbatch, train.accumulation), (8, 64, 1));
}

#[test]
fn layout_without_rules_for_the_batch_has_one_data_shard() {
    let text = "mesh { tensor = 2 }\nshard {\n    kv, ff, vocab -> tensor\n    d -> none\n}\n";
    let spec = spec(text, &[], Some(2));
    let train = spec.train.as_ref().expect("a run");
    assert_eq!((layout(&spec).data_shards(), train.global_microbatch), (1, 2));
}

#[test]
fn layout_of_parameters_at_rest_is_that_in_use_with_the_rules_for_parameters() {
    let spec = spec(MESH, &[], None);
    let both = |path| splits(&spec, path);
    assert_eq!(both("layer.{i}.attn.wq"), ["d/fsdp:(1)4 kv/tensor:(1)2", "kv/tensor:(1)2"]);
    assert_eq!(both("layer.{i}.mlp.down"), ["d/fsdp:(1)4 ff/tensor:(1)2", "ff/tensor:(1)2"]);
    assert_eq!(both("embed"), ["d/fsdp:(1)4 vocab/tensor:(1)2", "vocab/tensor:(1)2"]);
    assert_eq!(both("layer.{i}.norm1.w"), ["", ""]);
    let store = layout(&spec).store;
    let expected = Store {
        params: Kept::Sharded,
        grads: Kept::Sharded,
        state: Kept::Whole,
        regather: Regather::Backward,
    };
    assert_eq!(store, expected);
}

#[test]
fn layout_splits_jointly_where_heads_run_out() {
    let text = "mesh { tensor = 32 }\nshard {\n    (kv group) -> tensor\n    ff, vocab -> tensor\n    params \"**.norm*.w\": d -> none\n}\n";
    let spec = spec(text, &[], None);
    assert_eq!(splits(&spec, "layer.{i}.attn.wq")[1], "group/tensor:(8)4 kv/tensor:(1)8");
    assert_eq!(splits(&spec, "layer.{i}.attn.wk")[1], "kv/tensor:(1)8");
    assert_eq!(splits(&spec, "layer.{i}.mlp.up")[1], "ff/tensor:(1)32");
}

#[test]
fn layout_takes_mode_and_replication_from_shard() {
    let of = |lines: &str, sets: &[&str]| {
        let spec = spec(&MESH.replace("    batch ->", &format!("{lines}    batch ->")), sets, None);
        (layout(&spec).mode, layout(&spec).replicable.clone())
    };
    assert_eq!(of("", &[]), (ShardMode::Auto, vec![]));
    let written = "    mode = strict\n    allow_replicate \"layer.*.attn\"\n";
    assert_eq!(of(written, &[]), (ShardMode::Strict, vec!["layer.*.attn".to_string()]));
    assert_eq!(of(written, &["shard.mode=auto"]).0, ShardMode::Auto);
    assert_eq!(of("", &["shard.mode=strict"]).0, ShardMode::Strict);
}

#[test]
fn layout_pads_axes_of_parameters_a_little() {
    let text = "mesh { tensor = 2, fsdp = 3 }\nshard {\n    vocab -> tensor\n    params \"**\": d -> fsdp\n    values \"logits\": vocab -> tensor\n}\n";
    let sets = ["Llama.vocab=50257", "Llama.d=64"];
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut sources = SourceMap::new();
    let files = vec![("main.spec".to_string(), run(text)), ("llama.spec".into(), LLAMA.into())];
    let (spec, notes) =
        check_for(&mut sources, &MemoryLoader { files }, "main.spec", &sets, None).expect("it checks");
    let titles: Vec<String> = notes.iter().map(|d| format!("{} {}", d.code.id, d.title)).collect();
    assert_eq!(
        titles,
        [
            "N0006 `vocab` is padded from 50257 to 50258, so that it splits 2 ways",
            "N0006 `d` is padded from 64 to 66, so that it splits 3 ways"
        ]
    );
    assert_eq!(splits(&spec, "embed"), ["d/fsdp:(1)3 vocab/tensor:(1)2", "vocab/tensor:(1)2"]);
    assert_eq!(spec.model.constraints["logits"].split["vocab"], ["tensor"]);
}

#[test]
fn layout_rules_for_values_win_over_those_by_axis_only_if_later() {
    let spec = spec(MESH, &[], None);
    let axes: Vec<_> = spec.model.inputs[0].ty.axes.clone();
    let of = |role, path| -> Vec<String> {
        let won = layout(&spec).rules_of_value(&axes, role, path);
        won.iter()
            .filter(|w| !w.parts.is_empty())
            .map(|w| format!("{}/{}", w.axis, w.parts[0].axis))
            .collect()
    };
    assert_eq!(of(None, "tokens"), ["batch/fsdp"]);
    assert_eq!(of(Some("residual"), "layer.{i}.h"), ["batch/fsdp", "seq/tensor"]);
    assert_eq!(of(Some("residual"), "layer.{i}.attn"), ["batch/fsdp"]);
}

#[test]
fn layout_cuts_mesh_axes_into_atoms_where_joint_rules_do() {
    let text = "mesh { data = 2 over nodes, none_here = 1, tensor = 32 }\nshard {\n    batch -> data\n    (kv group) -> tensor\n    ff, vocab -> tensor\n    params \"**.norm*.w\": d -> none\n    values \"layer.*.attn.q\": (group kv) -> tensor\n    values \"layer.*.attn.v\": kv -> none\n}\n";
    let spec = spec(text, &[], None);
    let atoms = layout(&spec).atoms();
    let shown: Vec<_> =
        atoms.iter().map(|a| (a.name.as_str(), a.part.before, a.part.size, a.over_nodes)).collect();
    assert_eq!(shown, [("data", 1, 2, true), ("tensor.0", 1, 8, false), ("tensor.1", 8, 4, false)]);
    let names = |split: &[(&str, &[&str])]| {
        let names = |n: &[&str]| n.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        split
            .iter()
            .map(|(axis, over)| (axis.to_string(), names(over)))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let constraints = &spec.model.constraints;
    assert_eq!(constraints.keys().collect::<Vec<_>>(), ["layer.{i}.attn.q", "layer.{i}.attn.v"]);
    assert_eq!(
        constraints["layer.{i}.attn.q"].split,
        names(&[("group", &["tensor.0"]), ("kv", &["tensor.1"])])
    );
    assert_eq!(constraints["layer.{i}.attn.v"].split, names(&[("kv", &[])]));
}

#[test]
fn layout_rules_for_values_constrain_only_over_several_devices() {
    let of = |sets: &[&str]| spec(MESH, sets, None).model.constraints;
    let paths: Vec<String> = of(&[]).into_keys().collect();
    assert_eq!(paths, ["layer.{i}", "layer.{i}.attn", "layer.{i}.h"]);
    assert!(of(&["mesh.fsdp=1", "mesh.tensor=1"]).is_empty());
}

#[test]
fn layout_can_be_overridden_from_the_command_line() {
    let spec = spec(MESH, &["mesh.tensor=4", "mesh.data=2", "store.regather=forward"], None);
    assert_eq!(layout(&spec).mesh.iter().map(|a| a.size).collect::<Vec<_>>(), [2, 4, 4]);
    assert_eq!(layout(&spec).store.regather, Regather::Forward);
}

#[test]
fn layout_is_absent_without_a_mesh() {
    assert!(spec("", &[], None).layout.is_none());
    assert!(spec("", &[], Some(1)).layout.is_none());
}

#[test]
fn layout_of_more_devices_than_the_limit_is_an_error() {
    let text = run("mesh { a = 65536, b = 65536 }\nshard {\n    seq -> none\n}\n");
    let errors = check_text(&text, &[]).expect_err("too many devices");
    assert!(errors.contains("E0104") && errors.contains("4294967296"), "{errors}");
}

#[test]
fn layout_table_names_the_rule_that_won() {
    let mut sources = SourceMap::new();
    let files = vec![("main.spec".to_string(), run(MESH)), ("llama.spec".into(), LLAMA.into())];
    let (spec, _) =
        check_for(&mut sources, &MemoryLoader { files }, "main.spec", &[], Some(16)).expect("it checks");
    let (layout, train) = (layout(&spec), spec.train.as_ref());
    insta::assert_snapshot!(placement::table(layout, &spec.model, train, &sources));
    let data = placement::json(layout, &spec.model, train, &sources);
    assert_eq!(
        (&data["ranks"], &data["data_shards"], &data["accumulation"]),
        (&16.into(), &8.into(), &4.into())
    );
    let wq = data["parameters"].as_array().expect("rows").iter().find(|p| p["path"] == "layer.{i}.attn.wq");
    insta::assert_snapshot!(serde_json::to_string_pretty(wq.expect("wq")).expect("text"));
}

#[test]
fn layout_expands_with_every_default_and_its_origin() {
    let mut sources = SourceMap::new();
    let files = vec![("main.spec".to_string(), run(MESH)), ("llama.spec".into(), LLAMA.into())];
    let loader = MemoryLoader { files };
    let text =
        expand::expand_for(&mut sources, &loader, "main.spec", &["mesh.tensor=4".to_string()], Some(32))
            .expect("it checks");
    let at = text.find("mesh {").expect("a mesh");
    let end = text.find("train {").expect("a run");
    insta::assert_snapshot!(&text[at..end]);
    let (again, direct) =
        (check_text(&text, &[]).expect("checks").0, spec(MESH, &["mesh.tensor=4"], Some(32)));
    let bare = |spec: &Spec| {
        let l = layout(spec);
        let mesh: Vec<_> = l.mesh.iter().map(|a| (a.name.clone(), a.size, a.kind, a.over_nodes)).collect();
        let rules: Vec<_> = l
            .rules
            .iter()
            .map(|r| (r.scope.clone(), r.axes.clone(), r.joint, r.mesh.clone(), r.parts.clone()))
            .collect();
        (mesh, rules, l.store, l.mode, l.replicable.clone())
    };
    assert_eq!(bare(&again), bare(&direct));
}

fn mesh_of(sizes: &[u64]) -> Layout {
    let axis = |(i, size): (usize, &u64)| MeshAxis {
        name: format!("m{i}"),
        size: *size,
        auto: None,
        kind: MeshKind::Data,
        over_nodes: false,
        span: Span::NONE,
    };
    let store = Store {
        params: Kept::Sharded,
        grads: Kept::Sharded,
        state: Kept::Sharded,
        regather: Regather::Backward,
    };
    let mesh = sizes.iter().enumerate().map(axis).collect();
    Layout { mesh, rules: vec![], store, mode: ShardMode::Auto, replicable: vec![], paths: vec![] }
}

/// All lists of up to `most` numbers from 1 to `high`, the empty one included.
fn lists(most: usize, high: u64) -> Vec<Vec<u64>> {
    let mut all = vec![vec![]];
    let mut longest = 0;
    for _ in 0..most {
        let from = all.len();
        for i in longest..from {
            all.extend((1..=high).map(|n| [all[i].as_slice(), &[n]].concat()).collect::<Vec<_>>());
        }
        longest = from;
    }
    all
}

/// Coordinates count like the digits of an odometer, and give the rank back.
#[test]
fn layout_numbers_ranks_row_major() {
    for sizes in lists(4, 4) {
        let layout = mesh_of(&sizes);
        let mut odometer = vec![0; sizes.len()];
        for rank in 0..layout.devices() {
            assert_eq!((&layout.coordinates(rank), layout.rank(&odometer)), (&odometer, rank), "{sizes:?}");
            for (digit, size) in odometer.iter_mut().zip(&sizes).rev() {
                *digit = (*digit + 1) % size;
                if *digit != 0 {
                    break;
                }
            }
        }
        assert!(odometer.iter().all(|digit| *digit == 0), "{sizes:?}: the last rank is the last");
    }
}

/// A joint split exists just where the product of the sizes divides; then each axis is split evenly and every device of
/// the mesh gets a block of its own.
#[test]
fn layout_splits_jointly_whenever_the_product_divides() {
    let mut splits = 0;
    for sizes in lists(3, 9).iter().filter(|sizes| !sizes.is_empty()) {
        for mesh in lists(3, 4) {
            let over: Vec<(&str, u64)> = ["a", "b", "c"].into_iter().zip(mesh.iter().copied()).collect();
            let (size, devices): (u64, u64) = (sizes.iter().product(), mesh.iter().product());
            let parts = split_jointly(sizes, &over);
            assert_eq!(parts.is_some(), size % devices == 0, "{sizes:?} over {over:?}");
            let Some(parts) = parts else { continue };
            splits += 1;
            assert_eq!(parts.len(), sizes.len());
            // A device's block: along each tensor axis, its place among the ways of that axis.
            let layout = mesh_of(&mesh);
            let mut blocks = std::collections::BTreeSet::new();
            for rank in 0..devices {
                let at = layout.coordinates(rank);
                let block: Vec<(u64, u64)> = parts
                    .iter()
                    .map(|parts| {
                        parts.iter().fold((0, 1), |(place, ways), part| {
                            let axis =
                                over.iter().position(|(name, _)| *name == part.axis).expect("it is there");
                            let after = mesh[axis] / part.before / part.size;
                            (place * part.size + at[axis] / after % part.size, ways * part.size)
                        })
                    })
                    .collect();
                for ((_, ways), size) in block.iter().zip(sizes) {
                    assert_eq!(size % ways, 0, "{sizes:?} over {over:?}: {parts:?}");
                }
                blocks.insert(block);
            }
            assert_eq!(blocks.len() as u64, devices, "{sizes:?} over {over:?}: {parts:?}");
        }
    }
    assert!(splits > 1000, "only {splits} splits");
}
