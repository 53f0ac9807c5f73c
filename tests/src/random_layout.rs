//! Random meshes and sharding rules for a spec. Every draw checks.

use mlc::spec::{MemoryLoader, SourceMap, check};

use crate::random_graph::Random;
use crate::random_spec::RandomSpec;

const MESHES: &[&[(&str, u64)]] = &[
    &[("p", 2)],
    &[("p", 3)],
    &[("p", 4)],
    &[("p", 5)],
    &[("p", 2), ("q", 2)],
    &[("p", 2), ("q", 3)],
    &[("p", 2), ("q", 2), ("r", 2)],
];
const AXES: &[&str] = &["batch", "seq", "d", "ff", "kv", "group", "hd", "vocab"];
/// Paths of values that every draw of [`crate::random_spec::random_spec`] has, and some that most have.
const VALUES: &[&str] = &[
    "x",
    "logits",
    "layer.*",
    "layer.*.x",
    "layer.*.attn",
    "layer.*.attn.(q|k|v)",
    "layer.*.mlp",
    "layer.*.mlp.x",
];
/// Rules that are drawn; those that don't fit the model or each other are left out.
const DRAWN: usize = 8;

/// The spec over a mesh, with rules by axis, for parameters, for values and for the role of the residual stream, a choice of what
/// is kept whole, and microbatches.
pub fn random_layout(spec: &RandomSpec, seed: u64) -> String {
    let mut r = Random::new(seed ^ 0x6d65_7368);
    let mesh = *r.pick(MESHES);
    let mut rules: Vec<String> = vec!["    allow_replicate \"**\"\n".into()];
    let store = store(&mut r);
    let micro = *r.pick(&["", "", "    microbatch = 1\n", "    microbatch = 2\n"]);
    let whole = |rules: &[String], micro: &str| {
        let sizes: Vec<String> = mesh.iter().map(|(name, size)| format!("{name} = {size}")).collect();
        let text = spec.text.replace("    data = ", &format!("{micro}    data = "));
        format!("{text}mesh {{ {} }}\nshard {{\n{}}}\n{store}", sizes.join(", "), rules.concat())
    };
    for _ in 0..DRAWN {
        rules.push(rule(&mut r, mesh));
        if !checks(&whole(&rules, "")) {
            rules.pop();
        }
    }
    if checks(&whole(&rules, micro)) { whole(&rules, micro) } else { whole(&rules, "") }
}

fn checks(text: &str) -> bool {
    let loader = MemoryLoader { files: vec![("random.spec".into(), text.into())] };
    check(&mut SourceMap::new(), &loader, "random.spec", &[]).is_ok()
}

fn rule(r: &mut Random, mesh: &[(&str, u64)]) -> String {
    let axis = *r.pick(AXES);
    let mut over = vec![r.pick(mesh).0];
    let more = r.pick(mesh).0;
    if r.below(3) == 0 && !over.contains(&more) {
        over.push(more);
    }
    let over = if r.below(8) == 0 { "none".to_string() } else { over.join(", ") };
    match r.below(6) {
        0 | 1 => format!("    {axis} -> {over}\n"),
        2 => format!("    params \"**\": {axis} -> {over}\n"),
        3 => format!("    (kv group) -> {over}\n"),
        4 => format!("    role residual: {axis} -> {over}\n"),
        _ => format!("    values \"{}\": {axis} -> {over}\n", r.pick(VALUES)),
    }
}

fn store(r: &mut Random) -> String {
    let mut kept = |key: &str| format!("{key} = {}", r.pick(&["sharded", "sharded", "whole"]));
    let keys = [kept("params"), kept("grads"), kept("state")].join(", ");
    format!("store {{ {keys}, regather = {} }}\n", r.pick(&["backward", "forward"]))
}
