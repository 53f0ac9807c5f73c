//! Computes once what is computed twice (common subexpressions).
//!
//! In each region, in order: an op that equals an earlier op of the region, with the same operands and result types, is
//! dropped and the earlier results are used. Ops with regions of their own are never shared. Terminates: one walk.

use super::{replace_values, resolve};
use crate::graph::print::{float_text, type_text};
use crate::graph::{Graph, Op, OpNode, RegionId, ValueId};
use std::collections::BTreeMap;

/// Shares equal ops within each region.
pub fn share_common(mut graph: Graph) -> Graph {
    let mut replaced = BTreeMap::new();
    let body = graph.body;
    share_region(&mut graph, body, &mut replaced);
    replace_values(&mut graph, &replaced);
    graph
}

fn share_region(graph: &mut Graph, region: RegionId, replaced: &mut BTreeMap<ValueId, ValueId>) {
    let mut seen: BTreeMap<(String, Vec<ValueId>), Vec<ValueId>> = BTreeMap::new();
    let mut kept = Vec::new();
    for id in graph.region(region).ops.clone() {
        for operand in &mut graph.ops[id.index()].operands {
            *operand = resolve(replaced, *operand);
        }
        let node = graph.op(id).clone();
        let nested = graph.regions_of(&node.op);
        if nested.is_empty() {
            let key = (words(graph, &node), node.operands.clone());
            if let Some(earlier) = seen.get(&key) {
                replaced.extend(node.results.iter().copied().zip(earlier.iter().copied()));
                continue;
            }
            seen.insert(key, node.results.clone());
        }
        for inner in nested {
            share_region(graph, inner, replaced);
        }
        kept.push(id);
    }
    graph.regions[region.index()].ops = kept;
}

/// What an op does, as text: equal texts on equal operands are equal results.
fn words(graph: &Graph, node: &OpNode) -> String {
    let types: Vec<String> = node.results.iter().map(|v| type_text(graph.ty(*v))).collect();
    // The shortest text of a float tells all bits apart but those of NaNs.
    let op = match &node.op {
        Op::Const(c) => format!("const {}", float_text(*c)),
        other => format!("{other:?}"),
    };
    format!("{op} : {}", types.join(", "))
}
