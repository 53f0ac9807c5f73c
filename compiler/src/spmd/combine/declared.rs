//! Of which parameter values are, and which values nothing waits for.

use crate::graph::{BinaryOp, Graph, Loop, MeshOp, Name, Op, OpNode, RegionId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of a graph's values.
pub struct Declared {
    /// Values that are a parameter, cut, cast or gathered, by the place of its declaration.
    parameters: BTreeMap<ValueId, usize>,
    /// Values that become a gradient at an update, by the place of the parameter's declaration.
    gradients: BTreeMap<ValueId, usize>,
    /// Values that no product and no next iteration waits for: updates, norms and what is after their region read them.
    leaving: BTreeSet<ValueId>,
}

impl Declared {
    /// Of all executed regions.
    pub fn of(graph: &Graph) -> Declared {
        let mut declared =
            Declared { parameters: BTreeMap::new(), gradients: BTreeMap::new(), leaving: BTreeSet::new() };
        let mut places: BTreeMap<Name, usize> = BTreeMap::new();
        for op in &graph.region(graph.body).ops {
            let node = graph.op(*op);
            if let Op::Param { path, .. } = &node.op {
                let place = places.len();
                places.insert(path.clone(), place);
                declared.parameters.insert(node.results[0], place);
            }
        }
        declared.down(graph, graph.body);
        declared.up(graph, graph.body, &places);
        for region in graph.executed_regions() {
            declared.leave(graph, region);
        }
        declared
    }

    /// The place of the declaration of the parameter a value is of.
    pub fn parameter(&self, value: ValueId) -> Option<usize> {
        self.parameters.get(&value).copied()
    }

    /// The place of the declaration of the parameter a collective is about.
    pub fn of_collective(&self, node: &OpNode) -> Option<usize> {
        let gradient = |v: &ValueId| self.gradients.get(v).copied();
        self.parameter(node.operands[0]).or_else(|| node.results.first().and_then(gradient))
    }

    /// Whether no product of its region and no next iteration waits for a value.
    pub fn leaves(&self, value: ValueId) -> bool {
        self.leaving.contains(&value)
    }

    /// From parameters to what is made of them.
    fn down(&mut self, graph: &Graph, region: RegionId) {
        for op in &graph.region(region).ops {
            let node = graph.op(*op);
            if let Op::Loop(l) = &node.op {
                let args = &graph.region(l.body).args[1..];
                for (operand, arg) in node.operands.iter().zip(args).skip(l.carries) {
                    if let Some(place) = self.parameter(*operand) {
                        self.parameters.insert(*arg, place);
                    }
                }
                self.down(graph, l.body);
            } else if is_same_data(&node.op) {
                for (operand, result) in node.operands.iter().zip(&node.results) {
                    if let Some(place) = self.parameter(*operand) {
                        self.parameters.insert(*result, place);
                    }
                }
            }
        }
    }

    /// From the gradients that updates take to what they are made of.
    fn up(&mut self, graph: &Graph, region: RegionId, places: &BTreeMap<Name, usize>) {
        for op in graph.region(region).ops.iter().rev() {
            let node = graph.op(*op);
            match &node.op {
                Op::Update(u) => {
                    if let Some(place) = places.get(&u.param) {
                        self.gradients.entry(node.operands[1]).or_insert(*place);
                    }
                }
                Op::Loop(l) => {
                    for (result, inner) in node.results.iter().zip(&graph.region(l.body).results) {
                        if let Some(place) = self.gradients.get(result).copied() {
                            self.gradients.entry(*inner).or_insert(place);
                        }
                    }
                    self.up(graph, l.body, places);
                }
                op if is_same_data(op) || is_scaling(op) => {
                    for (result, operand) in node.results.iter().zip(&node.operands) {
                        if let Some(place) = self.gradients.get(result).copied() {
                            self.gradients.entry(*operand).or_insert(place);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// What of a region nothing in it waits for.
    fn leave(&mut self, graph: &Graph, region: RegionId) {
        let mut waited: BTreeSet<ValueId> = BTreeSet::new();
        // What the next iteration takes over is waited for.
        for op in graph.executed_regions().iter().flat_map(|r| &graph.region(*r).ops) {
            if let Op::Loop(Loop { body, carries, .. }) = &graph.op(*op).op
                && *body == region
            {
                waited.extend(&graph.region(region).results[..*carries]);
            }
        }
        for op in graph.region(region).ops.iter().rev() {
            let node = graph.op(*op);
            let hands_on = is_same_data(&node.op)
                || node.op.is_elementwise()
                || matches!(node.op, Op::Reduce { .. } | Op::Broadcast);
            let passes = hands_on && !node.results.iter().any(|v| waited.contains(v));
            if !passes && !matches!(node.op, Op::Update(_)) {
                waited.extend(&node.operands);
            }
        }
        let results = graph.region(region).ops.iter().flat_map(|op| &graph.op(*op).results);
        self.leaving.extend(results.filter(|v| !waited.contains(v)));
    }
}

/// Ops whose results are their operands' data: cut, renamed, moved or rounded.
fn is_same_data(op: &Op) -> bool {
    matches!(
        op,
        Op::Cast
            | Op::Rename { .. }
            | Op::Slice { .. }
            | Op::Transfer { .. }
            | Op::Mesh(MeshOp::Collective(_) | MeshOp::LocalPart { .. })
    )
}

/// Products and sums whose first operand may be a gradient on its way.
fn is_scaling(op: &Op) -> bool {
    matches!(op, Op::Binary(BinaryOp::Add | BinaryOp::Mul | BinaryOp::Div))
}
