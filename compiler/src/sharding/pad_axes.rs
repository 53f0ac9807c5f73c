//! Makes axes that don't split evenly longer, so that they do.
//!
//! Every tensor with such an axis gets it at the next size that splits, and what lies beyond the real size never reaches a real
//! element: reductions over the axis see their neutral element there, and parameters hold zeros. Zeros they stay, since
//! their gradients are zero there; so a product with a parameter over the axis needs nothing.
//!
//! ```text
//! %m = reduce_max %logits over vocab            vocab = 50257, over 2 ranks
//! →  %at = index vocab : i32[vocab=50258]       %ok = lt %at, 50257
//!    %x = select %ok, %logits, -inf             %m = reduce_max %x over vocab
//! ```

use super::factors::{FactorKind, factors};
use super::rules::Rules;
use crate::graph::{
    Axis, Builder, CompareOp, DType, Graph, Name, Op, OpId, OpNode, ReduceOp, RegionId, Type, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Real and padded size of each axis that is padded, by name.
pub type Padding = BTreeMap<Name, (u64, u64)>;

/// The graph with padded axes, and which they are.
///
/// # Errors
/// An axis that does not split evenly is one that can't be padded: an op relates its elements by place.
pub fn pad_axes(graph: &Graph, rules: &Rules) -> Result<(Graph, Padding), String> {
    let padding = padding(graph, rules);
    if padding.is_empty() {
        return Ok((graph.clone(), padding));
    }
    let mut pass =
        Pad { from: graph, padding, b: Builder::like(graph), map: BTreeMap::new(), params: BTreeSet::new() };
    pass.ops(graph.body)?;
    for (output, v) in graph.outputs.iter().zip(&graph.region(graph.body).results) {
        let value = pass.map[v];
        pass.b.output(output.clone(), value);
    }
    let padding = pass.padding;
    let mut padded = pass.b.finish();
    padded.padding = padding.clone();
    Ok((padded, padding))
}

/// Axes of parameters whose size the mesh axes of their rule do not divide.
fn padding(graph: &Graph, rules: &Rules) -> Padding {
    let mut padding = Padding::new();
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let Op::Param { path, .. } = &node.op else { continue };
        let Some(rule) = rules.params.get(path) else { continue };
        for axis in &graph.ty(node.results[0]).axes {
            let lists = [&rule.in_use, &rule.at_rest, &rule.states, &rule.update];
            let ways = lists.iter().filter_map(|l| l.get(&axis.name)).map(|over| rules.mesh.ways(over));
            let ways = ways.fold(1, lcm);
            let entry = padding.entry(axis.name.clone()).or_insert((axis.size, axis.size));
            entry.1 = axis.size.next_multiple_of(lcm(ways, entry.1 / gcd(entry.1, axis.size)));
        }
    }
    padding.retain(|_, (real, padded)| real != padded);
    padding
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> u64 {
    a / gcd(a, b) * b
}

struct Pad<'a> {
    from: &'a Graph,
    padding: Padding,
    b: Builder,
    map: BTreeMap<ValueId, ValueId>,
    /// New values that are parameters or cut or cast from one: zero beyond the real size.
    params: BTreeSet<ValueId>,
}

impl Pad<'_> {
    fn ty(&self, ty: &Type) -> Type {
        let axis = |a: &Axis| match self.padding.get(&a.name) {
            Some((real, padded)) if *real == a.size => Axis::new(&a.name, *padded),
            _ => a.clone(),
        };
        Type::new(ty.dtype, ty.axes.iter().map(axis).collect())
    }

    fn ops(&mut self, region: RegionId) -> Result<(), String> {
        self.from.region(region).ops.iter().try_for_each(|op| self.op(*op))
    }

    fn op(&mut self, id: OpId) -> Result<(), String> {
        let node = self.from.op(id).clone();
        self.b.origin = node.origin.clone();
        self.refuse_places(id, &node)?;
        let mut operands: Vec<ValueId> = node.operands.iter().map(|v| self.map[v]).collect();
        self.mask(id, &node, &mut operands);
        let op = self.regions(&node, &operands)?;
        let results: Vec<ValueId> = node
            .results
            .iter()
            .map(|v| {
                let value = &self.from.values[v.index()];
                let ty = self.ty(&value.ty);
                let new = self.b.graph.add_value(&value.name, ty);
                self.map.insert(*v, new);
                new
            })
            .collect();
        let is_param = matches!(node.op, Op::Param { .. })
            || (matches!(node.op, Op::Cast | Op::Transfer { .. }) && self.params.contains(&operands[0]));
        if is_param {
            self.params.insert(results[0]);
        }
        let new = OpId(self.b.graph.ops.len() as u32);
        self.b.graph.ops.push(OpNode { op, operands, results, origin: node.origin });
        let region = self.b.current();
        self.b.graph.regions[region.index()].ops.push(new);
        Ok(())
    }

    /// The op with its regions padded.
    fn regions(&mut self, node: &OpNode, operands: &[ValueId]) -> Result<Op, String> {
        let mut op = node.op.clone();
        let body = match &mut op {
            Op::Loop(l) => &mut l.body,
            Op::Update(u) => &mut u.body,
            Op::Composite(_) => return Ok(self.b.copy_regions(self.from, &node.op)),
            _ => return Ok(op),
        };
        let old = self.from.region(*body).clone();
        let named: Vec<(Name, Type)> =
            old.args.iter().map(|v| (self.from.value_name(*v).clone(), self.ty(self.from.ty(*v)))).collect();
        let (_, args) = self.b.open(&named);
        let first = old.args.len() - operands.len();
        for (i, (old, new)) in old.args.iter().zip(&args).enumerate() {
            self.map.insert(*old, *new);
            if i >= first && self.params.contains(&operands[i - first]) {
                self.params.insert(*new);
            }
        }
        let inside = *body;
        self.ops(inside)?;
        *body = self.b.close(old.results.iter().map(|v| self.map[v]).collect());
        Ok(op)
    }

    /// What relates elements by place would see the padding.
    fn refuse_places(&self, id: OpId, node: &OpNode) -> Result<(), String> {
        for factor in factors(self.from, id) {
            let names = || factor.operands.iter().chain(&factor.results).flatten();
            let padded = names().find(|a| self.padding.get(*a).is_some_and(|(real, _)| *real == factor.size));
            let bad = factor.kind == FactorKind::Whole || names().any(|a| Some(a) != padded);
            if let Some(axis) = padded.filter(|_| bad) {
                let (real, padded) = self.padding[axis];
                return Err(format!(
                    "axis {axis}={real} does not split evenly, and can't be padded to {padded}: {} needs it as it is",
                    super::describe(node)
                ));
            }
        }
        if let Op::Loop(l) = &node.op
            && self.padding.contains_key(&l.axis)
        {
            return Err(format!("axis {} does not split evenly, and a loop runs over it", l.axis));
        }
        Ok(())
    }

    /// Neutral elements where an op reduces over a padded axis, zeros where a gradient is used.
    fn mask(&mut self, id: OpId, node: &OpNode, operands: &mut [ValueId]) {
        if matches!(node.op, Op::Update(_)) {
            let names = self.b.ty(operands[1]).names();
            for axis in names.iter().filter(|a| self.is_padded(operands[1], a)).cloned().collect::<Vec<_>>() {
                operands[1] = self.masked(operands[1], &axis, 0.0);
            }
            return;
        }
        let with_param =
            matches!(node.op, Op::Dot { .. }) && operands.iter().any(|v| self.params.contains(v));
        for factor in factors(self.from, id) {
            let FactorKind::Reduce(reduction) = factor.kind else { continue };
            if with_param {
                continue;
            }
            for (i, axis) in factor.operands.iter().enumerate() {
                if let Some(axis) = axis.clone().filter(|a| self.is_padded(operands[i], a)) {
                    let neutral = match reduction {
                        ReduceOp::Sum => 0.0,
                        ReduceOp::Max => f64::NEG_INFINITY,
                        ReduceOp::Min => f64::INFINITY,
                    };
                    operands[i] = self.masked(operands[i], &axis, neutral);
                }
            }
        }
    }

    fn is_padded(&self, v: ValueId, axis: &Name) -> bool {
        let size = self.b.ty(v).size_of(axis);
        self.padding.get(axis).is_some_and(|(_, padded)| Some(*padded) == size)
    }

    fn masked(&mut self, v: ValueId, axis: &Name, neutral: f64) -> ValueId {
        let (real, padded) = self.padding[axis];
        let at = self.b.index(axis, padded);
        let end = self.b.constant(DType::I32, real as f64);
        let inside = self.b.compare(CompareOp::Lt, at, end);
        let dtype = self.b.ty(v).dtype;
        let bound = match dtype {
            DType::I32 | DType::I64 => neutral.clamp(f64::from(i32::MIN), f64::from(i32::MAX)),
            DType::F32 | DType::F64 | DType::Bf16 | DType::Bool => neutral,
        };
        let other = self.b.constant(dtype, bound);
        self.b.select(inside, v, other)
    }
}
