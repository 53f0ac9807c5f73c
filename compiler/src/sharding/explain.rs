//! Why a value lies as it does, and what moves it: the text of `mlc explain SPEC VALUE`.

use super::{Sharded, describe, path_of};
use crate::graph::print::type_text;
use crate::graph::{Graph, MeshOp, Name, Op, OpId, RegionId, ValueId};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Says of every value that `wanted` names how it lies, why, and where it is brought elsewhere. Names are those of `mlc emit
/// --stage sharded`, paths of parameters, and `block.value` as in the spec.
///
/// # Errors
/// Nothing has that name; the names that begin or end alike.
pub fn explain(sharded: &Sharded, wanted: &str) -> Result<String, Vec<String>> {
    let graph = &sharded.graph;
    let mut text = String::new();
    for (v, op) in definitions(graph) {
        if names(graph, v, op).iter().any(|name| name == wanted) {
            one(sharded, v, op, &mut text);
        }
    }
    if text.is_empty() { Err(near(graph, wanted)) } else { Ok(text) }
}

/// Values with the op that makes them, in the order of the text.
fn definitions(graph: &Graph) -> Vec<(ValueId, OpId)> {
    fn walk(graph: &Graph, region: RegionId, found: &mut Vec<(ValueId, OpId)>) {
        for op in &graph.region(region).ops {
            found.extend(graph.op(*op).results.iter().map(|v| (*v, *op)));
            if let Op::Loop(l) = &graph.op(*op).op {
                walk(graph, l.body, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(graph, graph.body, &mut found);
    found
}

fn names(graph: &Graph, v: ValueId, op: OpId) -> Vec<String> {
    let node = graph.op(op);
    let name = graph.value_name(v);
    let mut names = vec![name.to_string()];
    match &node.op {
        Op::Param { path, .. } => names.push(path.to_string()),
        Op::State { param, kind } => names.push(format!("{param}.{kind}")),
        Op::Mesh(MeshOp::Reshard { .. }) => {}
        _ => names.push(path_of(&node.origin, name)),
    }
    names
}

fn near(graph: &Graph, wanted: &str) -> Vec<String> {
    let last = wanted.rsplit('.').next().unwrap_or(wanted);
    let all: BTreeSet<String> =
        definitions(graph).into_iter().flat_map(|(v, op)| names(graph, v, op)).collect();
    all.into_iter().filter(|name| name.split('.').any(|part| part == last)).take(8).collect()
}

fn one(sharded: &Sharded, v: ValueId, op: OpId, text: &mut String) {
    let graph = &sharded.graph;
    let node = graph.op(op);
    let (name, sharding) = (graph.value_name(v), graph.sharding(v));
    let _ = writeln!(text, "%{name} : {}", type_text(graph.ty(v)));
    let _ = writeln!(text, "  made by {}", describe(node));
    if let Ok(local) = sharding.local(graph.ty(v), &graph.mesh) {
        let _ = writeln!(text, "  one rank holds {}, {} bytes", type_text(&local), local.bytes());
    }
    for axis in graph.ty(v).names() {
        let over = sharding.over(&axis);
        let why = sharded.why.get(&(name.clone(), axis.clone())).map_or("", String::as_str);
        match over {
            [] => drop(writeln!(text, "  {axis}: whole")),
            _ => drop(writeln!(text, "  {axis}: over {}, by {why}", joined(over))),
        }
    }
    for (axis, op) in &sharding.partial {
        let _ = writeln!(text, "  every rank along {axis} holds one term of a {}", op.name());
    }
    for (from, reshard) in moves(graph, v) {
        let node = graph.op(reshard);
        let Op::Mesh(MeshOp::Reshard { cause, .. }) = &node.op else { continue };
        let (from, to) = (graph.sharding(from), graph.sharding(node.results[0]));
        let _ = writeln!(text, "  brought from ({from}) to ({to}) for {cause}");
    }
    text.push('\n');
}

fn joined(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
}

/// Reshards of the value, of what loops take of it, and of its casts.
fn moves(graph: &Graph, v: ValueId) -> Vec<(ValueId, OpId)> {
    fn walk(graph: &Graph, region: RegionId, same: &mut BTreeSet<ValueId>, found: &mut Vec<(ValueId, OpId)>) {
        for op in &graph.region(region).ops {
            let node = graph.op(*op);
            match &node.op {
                Op::Mesh(MeshOp::Reshard { .. }) if same.contains(&node.operands[0]) => {
                    found.push((node.operands[0], *op));
                }
                Op::Cast | Op::Transfer { .. } if same.contains(&node.operands[0]) => {
                    same.insert(node.results[0]);
                }
                Op::Loop(l) => {
                    let args = &graph.region(l.body).args[1..];
                    let taken = node.operands.iter().zip(args).filter(|(o, _)| same.contains(o));
                    let taken: Vec<ValueId> = taken.map(|(_, arg)| *arg).collect();
                    same.extend(taken);
                    walk(graph, l.body, same, found);
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(graph, graph.body, &mut BTreeSet::from([v]), &mut found);
    found
}
