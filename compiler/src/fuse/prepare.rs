//! Rewrites that need no machine, so that later passes see fewer cases:
//!
//! * composites other than attention are replaced by their meaning, `update` ops by their rule; both
//!   are ordinary code from here on;
//! * a `dot` with no rows or no columns of its own (an inner product per element, or nothing contracted) becomes a
//!   product and a reduction: it does one multiplication per element read, so a matrix kernel has nothing to reuse;
//! * a `gather` that picks one element per place of its own table (`logits[target]`) becomes a masked sum and a
//!   `scatter_add` that puts one element per place becomes a mask: both then fuse with their neighbours;
//! * a reduction that leaves few elements is split along an axis: the inner one has many rows for the threads and both
//!   have short chains of roundings, the same for any number of threads;
//! * `attention_grad` gets `delta = Σ o·do`, in f32, as one more operand, the last;
//! * the index of a loop that another loop takes in or that is a result becomes an op, so that every op's operands are
//!   values with memory;
//! * ops, loop operands and loop results nobody needs are dropped, first of all.

use super::{FuseError, Result};
use crate::graph::passes::{eliminate_dead, expand_composites, share_common};
use crate::graph::{
    Axis, BinaryOp, Builder, CompareOp, CompositeKind, DType, Graph, Loop, MeshOp, Name, Op, OpId, OpNode,
    ReduceOp, Region, RegionId, Type, ValueId, shape,
};
use std::collections::BTreeMap;

/// A reduction to fewer elements than this is split …
const FEW_ROWS: u64 = 64;
/// … if it sums more than this many.
const LONG_ROW: u64 = 8192;
/// The inner part of a split sums at least this many.
const INNER_ROW: u64 = 256;

/// See the module's text.
///
/// # Errors
/// A composite that should have been expanded, or an op of element types no kernel has.
pub fn prepare(graph: &Graph) -> Result<Graph> {
    let graph = expand_composites(graph.clone());
    let graph = &eliminate_dead(share_common(eliminate_dead(graph)));
    let mut pass = Prepare { from: graph, builder: Builder::like(graph), map: BTreeMap::new() };
    pass.region_ops(graph.body, &[])?;
    let results = graph.region(graph.body).results.clone();
    for (value, output) in results.iter().zip(&graph.outputs) {
        let value = pass.map[value];
        pass.builder.output(output.clone(), value);
    }
    Ok(pass.builder.finish())
}

struct Prepare<'g> {
    from: &'g Graph,
    builder: Builder,
    map: BTreeMap<ValueId, ValueId>,
}

impl Prepare<'_> {
    /// Copies the ops of a region into the open one. `indices` are the loop indices in scope, as new values.
    fn region_ops(&mut self, region: RegionId, indices: &[ValueId]) -> Result<()> {
        for &op in &self.from.region(region).ops {
            let node = self.from.op(op);
            self.builder.origin = node.origin.clone();
            self.op(op, node, indices)?;
        }
        Ok(())
    }

    fn op(&mut self, id: OpId, node: &OpNode, indices: &[ValueId]) -> Result<()> {
        let refuse = |message: &str| {
            Err(FuseError {
                op: shape::op_name(&node.op),
                origin: node.origin.clone(),
                message: message.to_string(),
            })
        };
        match &node.op {
            Op::Loop(l) => self.loop_op(l, node, indices),
            Op::Update(u) => {
                let args = self.operands(node);
                let results = self.builder.inline(self.from, u.body, &args);
                self.set_results(node, &results);
                Ok(())
            }
            Op::Dot { over } => {
                let operands = self.operands(node);
                match self.dot_as_reduction(node, &operands, over) {
                    Some(value) => self.set_results(node, &[value]),
                    None => self.copy(id),
                }
                Ok(())
            }
            Op::Gather { axis } => {
                let (table, ids) = (self.from.ty(node.operands[0]), self.from.ty(node.operands[1]));
                let per_id = table.size_of(axis).unwrap_or(1) * ids.numel() == table.numel();
                if per_id && ids.axes.iter().all(|a| table.axes.contains(a)) && table.dtype != DType::Bool {
                    let value = self.pick(node, axis);
                    self.set_results(node, &[value]);
                } else {
                    self.copy(id);
                }
                Ok(())
            }
            Op::ScatterAdd { axis } => {
                let ty = self.from.ty(node.results[0]);
                let ids = self.from.ty(node.operands[1]);
                if ids.axes.iter().all(|a| ty.axes.contains(a)) {
                    let value = self.put(node, axis);
                    self.set_results(node, &[value]);
                } else {
                    self.copy(id);
                }
                Ok(())
            }
            Op::Reduce { op, axes } => {
                let operand = self.map[&node.operands[0]];
                let value = self.split_reduction(*op, operand, axes);
                self.set_results(node, &[value]);
                Ok(())
            }
            Op::Composite(c) => match &c.kind {
                CompositeKind::Attention(_) | CompositeKind::Custom(_) => {
                    self.copy(id);
                    Ok(())
                }
                CompositeKind::AttentionGrad(_) => {
                    self.attention_grad(id, node);
                    Ok(())
                }
                CompositeKind::Softmax { .. }
                | CompositeKind::RmsNorm { .. }
                | CompositeKind::LayerNorm { .. }
                | CompositeKind::Rope { .. }
                | CompositeKind::CrossEntropy { .. }
                | CompositeKind::LossHead(_)
                | CompositeKind::GroupedDot { .. }
                | CompositeKind::GroupedOuter { .. } => {
                    refuse("this composite must be expanded before kernels are made of it")
                }
            },
            Op::Mesh(MeshOp::Constrain { .. } | MeshOp::Reshard { .. }) => {
                refuse("how values lie must be settled before kernels are made")
            }
            Op::Input { .. }
            | Op::CumSum { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
            | Op::Index { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast
            | Op::Broadcast
            | Op::Rename { .. }
            | Op::RotatePairs { .. }
            | Op::Transfer { .. }
            | Op::Mesh(MeshOp::LocalPart { .. } | MeshOp::Collective(_))
            | Op::Slice { .. }
            | Op::Concat { .. } => {
                self.copy(id);
                Ok(())
            }
        }
    }

    fn operands(&self, node: &OpNode) -> Vec<ValueId> {
        node.operands.iter().map(|v| self.map[v]).collect()
    }

    fn set_results(&mut self, node: &OpNode, results: &[ValueId]) {
        for (old, new) in node.results.iter().zip(results) {
            self.map.insert(*old, *new);
        }
    }

    fn copy(&mut self, id: OpId) {
        self.builder.copy_op(self.from, id, &mut self.map);
    }

    /// A loop index as a value with memory: a sum nobody simplifies.
    fn materialised(&mut self, value: ValueId, indices: &[ValueId]) -> ValueId {
        if !indices.contains(&value) {
            return value;
        }
        let zero = self.builder.constant(DType::I32, 0.0);
        self.builder.add(value, zero)
    }

    fn loop_op(&mut self, l: &Loop, node: &OpNode, indices: &[ValueId]) -> Result<()> {
        let body: &Region = self.from.region(l.body);
        let operands: Vec<ValueId> = node
            .operands
            .iter()
            .map(|v| {
                let mapped = self.map[v];
                self.materialised(mapped, indices)
            })
            .collect();
        let args: Vec<(Name, Type)> =
            body.args.iter().map(|v| (self.from.value_name(*v).clone(), self.from.ty(*v).clone())).collect();
        let (_, new_args) = self.builder.open(&args);
        self.map.extend(body.args.iter().copied().zip(new_args.iter().copied()));
        let inner = [indices, &new_args[..1]].concat();
        self.region_ops(l.body, &inner)?;
        let results = body
            .results
            .iter()
            .map(|v| {
                let mapped = self.map[v];
                self.materialised(mapped, &inner)
            })
            .collect();
        let new_loop = Loop { body: self.builder.close(results), ..l.clone() };
        let new_results: Vec<ValueId> = node
            .results
            .iter()
            .map(|v| self.builder.graph.add_value(self.from.value_name(*v), self.from.ty(*v).clone()))
            .collect();
        self.set_results(node, &new_results);
        let graph = &mut self.builder.graph;
        let id = OpId(graph.ops.len() as u32);
        graph.ops.push(OpNode {
            op: Op::Loop(new_loop),
            operands,
            results: new_results,
            origin: node.origin.clone(),
        });
        let region = self.builder.current();
        self.builder.graph.regions[region.index()].ops.push(id);
        Ok(())
    }

    /// Appends `delta = Σ o·do` over the axes `lse` lacks, in f32, as a last operand.
    fn attention_grad(&mut self, id: OpId, node: &OpNode) {
        let n = node.operands.len();
        let [o, lse, d_o] = [n - 3, n - 2, n - 1].map(|i| self.map[&node.operands[i]]);
        let builder = &mut self.builder;
        let (o, d_o) = (builder.cast(o, DType::F32), builder.cast(d_o, DType::F32));
        let product = builder.mul(o, d_o);
        let lse = builder.ty(lse).clone();
        let delta = builder.sum_to(product, &lse);
        let copy = builder.copy_op(self.from, id, &mut self.map);
        self.builder.graph.ops[copy.index()].operands.push(delta);
    }

    fn dot_as_reduction(&mut self, node: &OpNode, operands: &[ValueId], over: &[Name]) -> Option<ValueId> {
        let (a, b) = (self.from.ty(node.operands[0]), self.from.ty(node.operands[1]));
        let own = |x: &Type, y: &Type| -> u64 {
            x.axes.iter().filter(|axis| !y.has(&axis.name)).map(|axis| axis.size).product()
        };
        let contracted: u64 = over.iter().filter_map(|o| a.size_of(o)).product();
        let floats = matches!(a.dtype, DType::F32 | DType::F64 | DType::Bf16);
        if floats && contracted > 1 && own(a, b) > 1 && own(b, a) > 1 {
            return None;
        }
        let wide = shape::sum_dtype(a.dtype);
        let builder = &mut self.builder;
        let x = builder.cast(operands[0], wide);
        let y = builder.cast(operands[1], wide);
        let product = builder.binary_union(BinaryOp::Mul, x, y);
        let sum = self.split_reduction(ReduceOp::Sum, product, over);
        Some(sum)
    }

    /// `Σ over axis of (index = id ? table : 0)`.
    fn pick(&mut self, node: &OpNode, axis: &Name) -> ValueId {
        let operands = self.operands(node);
        let ty = self.builder.ty(operands[0]).clone();
        let masked = self.mask(operands[0], operands[1], axis, &ty);
        let sum = self.builder.reduce(ReduceOp::Sum, masked, std::slice::from_ref(axis));
        // One term only: nothing is rounded.
        self.builder.cast(sum, ty.dtype)
    }

    /// `index = id ? update : 0` over the axes of the result.
    fn put(&mut self, node: &OpNode, axis: &Name) -> ValueId {
        let operands = self.operands(node);
        let ty = self.from.ty(node.results[0]).clone();
        self.mask(operands[0], operands[1], axis, &ty)
    }

    fn mask(&mut self, values: ValueId, ids: ValueId, axis: &Name, ty: &Type) -> ValueId {
        let size = ty.size_of(axis).unwrap_or(1);
        let builder = &mut self.builder;
        let index = builder.index(axis, size);
        let same = builder.one(
            Op::Compare(CompareOp::Eq),
            &[index, ids],
            Some(shape::union_type(
                DType::Bool,
                &[&Type::new(DType::I32, vec![Axis::new(axis, size)]), &builder.ty(ids).clone()],
            )),
            "hit",
        );
        let zero = builder.constant(ty.dtype, 0.0);
        builder.one(Op::Select, &[same, values, zero], Some(ty.clone()), "picked")
    }

    fn split_reduction(&mut self, op: ReduceOp, x: ValueId, axes: &[Name]) -> ValueId {
        let ty = self.builder.ty(x).clone();
        let left: u64 = ty.without(axes).numel();
        let reduced: Vec<&Axis> = ty.axes.iter().filter(|a| axes.contains(&a.name)).collect();
        let length: u64 = reduced.iter().map(|a| a.size).product();
        if left >= FEW_ROWS || length <= LONG_ROW || reduced.len() < 2 {
            return self.builder.reduce(op, x, axes);
        }
        let mut inner = Vec::new();
        let mut inner_length = 1;
        for axis in reduced[1..].iter().rev() {
            if inner_length >= INNER_ROW {
                break;
            }
            inner.push(axis.name.clone());
            inner_length *= axis.size;
        }
        let partial = self.builder.reduce(op, x, &inner);
        let rest: Vec<Name> = axes.iter().filter(|a| !inner.contains(a)).cloned().collect();
        self.split_reduction(op, partial, &rest)
    }
}
