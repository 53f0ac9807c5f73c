//! Which values carry derivatives.
//!
//! A value is *varied* if it depends differentiably on a wanted value; only varied values get cotangents. It is *weight*
//! if it is varied and depends on no data of the batch: its cotangents belong to the phase backward-weight.

use crate::graph::{DType, Graph, Loop, Op, OpNode, RegionId, ValueId};

/// Result of the analysis, by value.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    varied: Vec<bool>,
    data: Vec<bool>,
}

impl Activity {
    /// Analyses the body and all loop bodies.
    pub fn of(graph: &Graph, wanted: &[ValueId]) -> Activity {
        Activity::of_region(graph, graph.body, wanted)
    }

    /// Analyses one region and the loop bodies in it.
    pub fn of_region(graph: &Graph, region: RegionId, wanted: &[ValueId]) -> Activity {
        let n = graph.values.len();
        let mut activity = Activity { varied: vec![false; n], data: vec![false; n] };
        for value in wanted {
            activity.varied[value.index()] = is_float(graph, *value);
        }
        activity.visit(graph, region);
        activity
    }

    /// Whether the value gets a cotangent.
    pub fn varied(&self, value: ValueId) -> bool {
        self.varied.get(value.index()).copied().unwrap_or(false)
    }

    /// Whether the value is a function of parameters alone.
    pub fn weight(&self, value: ValueId) -> bool {
        self.varied(value) && !self.data[value.index()]
    }

    fn visit(&mut self, graph: &Graph, region: RegionId) {
        for &op in &graph.region(region).ops {
            let node = graph.op(op);
            match &node.op {
                Op::Loop(l) => self.visit_loop(graph, node, l),
                Op::Input { .. } => self.data[node.results[0].index()] = true,
                _ => {
                    for result in &node.results {
                        for operand in &node.operands {
                            self.flow(graph, *operand, *result);
                        }
                    }
                }
            }
        }
    }

    /// A carry's argument depends on its first value and on the value the body hands on, so the body is visited until
    /// nothing changes; each round marks at least one more carry, so there are at most `carries + 1`.
    fn visit_loop(&mut self, graph: &Graph, node: &OpNode, l: &Loop) {
        let body = graph.region(l.body);
        for (operand, arg) in node.operands.iter().zip(&body.args[1..]) {
            self.flow(graph, *operand, *arg);
        }
        loop {
            self.visit(graph, l.body);
            let mut changed = false;
            for (out, arg) in body.results.iter().zip(&body.args[1..]).take(l.carries) {
                changed |= self.flow(graph, *out, *arg);
            }
            if !changed {
                break;
            }
        }
        for (out, result) in body.results.iter().zip(&node.results) {
            self.flow(graph, *out, *result);
        }
    }

    fn flow(&mut self, graph: &Graph, from: ValueId, to: ValueId) -> bool {
        let varied = self.varied[from.index()] && is_float(graph, to);
        let data = self.data[from.index()];
        let changed = varied && !self.varied[to.index()] || data && !self.data[to.index()];
        self.varied[to.index()] |= varied;
        self.data[to.index()] |= data;
        changed
    }
}

fn is_float(graph: &Graph, value: ValueId) -> bool {
    match graph.ty(value).dtype {
        DType::F32 | DType::F64 | DType::Bf16 => true,
        DType::I32 | DType::I64 | DType::Bool => false,
    }
}
