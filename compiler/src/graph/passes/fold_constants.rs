//! Computes what is known, and drops what changes nothing.
//!
//! 1. An element-wise op on constants becomes a constant. Floats are folded in f64, so a chain of f32 constants is rounded
//!    once where it was rounded at every link; a cast is folded only if it is exact.
//! 2. `x·1`, `x/1`, `x−0`, and `x+0` on integers are x; so are a cast to x's own type, a broadcast to x's own axes, a
//!    renaming of axes to themselves, `−(−x)` and `not not x`.
//! 3. A choice whose condition is constant is the chosen operand.
//!
//! On values that aren't constant only rules that keep every bit are here: `x+0` turns −0 into 0, and `x·0` loses NaNs, so
//! neither is folded on floats.
//! One walk in order suffices, because operands are folded before their users.

use super::{replace_values, resolve};
use crate::graph::{BinaryOp, DType, Graph, Op, OpId, OpNode, RegionId, Type, UnaryOp, ValueId};
use crate::interpret;
use std::collections::BTreeMap;

/// Folds constants and identities.
pub fn fold_constants(mut graph: Graph) -> Graph {
    let mut folder =
        Folder { constants: BTreeMap::new(), producers: BTreeMap::new(), replaced: BTreeMap::new() };
    let body = graph.body;
    folder.region(&mut graph, body);
    replace_values(&mut graph, &folder.replaced);
    graph
}

struct Folder {
    constants: BTreeMap<ValueId, f64>,
    /// The op that makes a value, of those seen.
    producers: BTreeMap<ValueId, OpId>,
    replaced: BTreeMap<ValueId, ValueId>,
}

impl Folder {
    fn region(&mut self, graph: &mut Graph, region: RegionId) {
        let mut kept = Vec::new();
        for id in graph.region(region).ops.clone() {
            for operand in &mut graph.ops[id.index()].operands {
                *operand = resolve(&self.replaced, *operand);
            }
            let node = graph.op(id).clone();
            if let Some(same) = self.identity(graph, &node) {
                self.replaced.insert(node.results[0], same);
                continue;
            }
            if let Some(value) = self.known(graph, &node) {
                graph.ops[id.index()].op = Op::Const(value);
                graph.ops[id.index()].operands.clear();
                self.constants.insert(node.results[0], value);
            }
            for nested in graph.regions_of(&node.op) {
                self.region(graph, nested);
            }
            self.producers.extend(node.results.iter().map(|r| (*r, id)));
            kept.push(id);
        }
        graph.regions[region.index()].ops = kept;
    }

    fn constant(&self, value: ValueId) -> Option<f64> {
        self.constants.get(&value).copied()
    }

    /// The value of an op on constants.
    fn known(&self, graph: &Graph, node: &OpNode) -> Option<f64> {
        let get = |i: usize| self.constant(node.operands[i]);
        let ty = graph.ty(*node.results.first()?);
        if !ty.axes.is_empty() {
            return None;
        }
        match &node.op {
            Op::Const(c) if is_float(ty.dtype) => Some(*c),
            Op::Const(c) => Some(interpret::to_int(ty.dtype, *c) as f64),
            Op::Unary(UnaryOp::Not) => Some(1.0 - get(0)?),
            Op::Unary(op) if is_float(ty.dtype) => Some(interpret::unary(*op, get(0)?)),
            Op::Binary(op) if is_float(ty.dtype) => Some(interpret::binary(*op, get(0)?, get(1)?)),
            Op::Binary(op) => {
                let (x, y) = (get(0)? as i64, get(1)? as i64);
                exact(interpret::int_binary(ty.dtype, *op, x, y))
            }
            Op::Compare(op) => {
                let (x, y) = (get(0)?, get(1)?);
                Some(f64::from(interpret::float_compare(*op, x, y)))
            }
            Op::Cast => converted(graph.ty(node.operands[0]).dtype, ty.dtype, get(0)?),
            _ => None,
        }
    }

    /// The operand the op's result equals.
    fn identity(&self, graph: &Graph, node: &OpNode) -> Option<ValueId> {
        let result = graph.ty(*node.results.first()?);
        let same = |v: ValueId| graph.ty(v).same_as(result).then_some(v);
        let get = |i: usize| self.constant(node.operands[i]);
        match &node.op {
            Op::Binary(BinaryOp::Mul) if get(1) == Some(1.0) => same(node.operands[0]),
            Op::Binary(BinaryOp::Mul) if get(0) == Some(1.0) => same(node.operands[1]),
            Op::Binary(BinaryOp::Div) if get(1) == Some(1.0) => same(node.operands[0]),
            Op::Binary(BinaryOp::Sub) if is_plus_zero(get(1)) => same(node.operands[0]),
            Op::Binary(BinaryOp::Add) if !is_float(result.dtype) && is_plus_zero(get(1)) => {
                same(node.operands[0])
            }
            Op::Binary(BinaryOp::Add) if !is_float(result.dtype) && is_plus_zero(get(0)) => {
                same(node.operands[1])
            }
            Op::Cast | Op::Broadcast => same(node.operands[0]),
            Op::Rename { pairs } if pairs.iter().all(|(from, to)| from == to) => same(node.operands[0]),
            Op::Select => match get(0) {
                Some(0.0) => same(node.operands[2]),
                Some(_) => same(node.operands[1]),
                None => None,
            },
            Op::Unary(op @ (UnaryOp::Neg | UnaryOp::Not)) => {
                self.undone(graph, *op, node.operands[0], result)
            }
            _ => None,
        }
    }

    /// `op(op(x))` is x.
    fn undone(&self, graph: &Graph, op: UnaryOp, operand: ValueId, result: &Type) -> Option<ValueId> {
        let inner = graph.op(*self.producers.get(&operand)?);
        let x = *inner.operands.first()?;
        (inner.op == Op::Unary(op) && graph.ty(x).same_as(result)).then_some(x)
    }
}

fn is_plus_zero(x: Option<f64>) -> bool {
    x.is_some_and(|x| x.to_bits() == 0)
}

fn is_float(dtype: DType) -> bool {
    match dtype {
        DType::F32 | DType::F64 | DType::Bf16 => true,
        DType::I32 | DType::I64 | DType::Bool => false,
    }
}

/// A constant in another type, if both types hold it exactly.
fn converted(from: DType, to: DType, x: f64) -> Option<f64> {
    let held = |dtype| {
        if is_float(dtype) { interpret::round(dtype, x) } else { interpret::to_int(dtype, x) as f64 }
    };
    [from, to].iter().all(|dtype| held(*dtype).to_bits() == x.to_bits()).then_some(x)
}

/// An integer as a constant, unless a float can't hold it.
fn exact(x: i64) -> Option<f64> {
    (x.unsigned_abs() <= 1 << 53).then_some(x as f64)
}
