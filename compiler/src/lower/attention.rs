//! Attention, forward and backward.

use super::scalar::{Builder, Coords};
use super::{Lowered, MadeKernel};
use crate::fuse::attention_dims::{self, AttentionDims};
use crate::fuse::{FuseError, Fused, Group, Kind, Result, View};
use crate::graph::{Attention, OpId, shape};
use mlc_codegen::abi::DType;
use mlc_codegen::program::{
    AttentionGradPart, AttentionGradSpec, AttentionShape, AttentionSpec, Bound, KernelSpec, Operand, Region,
    ScalarOp,
};

struct Lowering<'f> {
    fused: &'f Fused,
    group: &'f Group,
    /// All operand and result views, in order.
    views: Vec<View>,
    made: MadeKernel,
}

/// Lowers a group of kind `Attention` or `AttentionGrad`.
///
/// # Errors
/// Axes that don't fit the kernel's shape.
pub fn lower(fused: &Fused, group: &Group, op: OpId) -> Result<Lowered> {
    let node = fused.graph.op(op);
    let refuse =
        |message: String| FuseError { op: shape::op_name(&node.op), origin: node.origin.clone(), message };
    let attention = attention_dims::attention(&node.op).ok_or_else(|| refuse("not an attention".into()))?;
    let part = match &group.kind {
        Kind::AttentionGrad { part, .. } => Some(*part),
        Kind::Loops { .. }
        | Kind::Copy { .. }
        | Kind::Fill
        | Kind::Gemm { .. }
        | Kind::Gather { .. }
        | Kind::Scatter { .. }
        | Kind::Scan { .. }
        | Kind::Attention { .. }
        | Kind::Custom { .. }
        | Kind::Collective { .. } => None,
    };
    let operands: Vec<View> = node.operands.iter().map(|v| fused.views[v].clone()).collect();
    // Behind the extras: o, lse, do, delta in the gradient, nothing forward.
    let n_extras = operands.len() - 3 - if part.is_some() { 4 } else { 0 };
    let extras = operands[3..3 + n_extras].to_vec();
    let dims = AttentionDims::of(fused, group, attention, op).map_err(refuse)?;
    let mut views = operands;
    views.extend(group.writes.iter().map(|w| w.view.clone()));
    let mut lowering = Lowering { fused, group, views, made: MadeKernel::default() };
    let score = lowering.region(attention, 0)?;

    let n = node.operands.len();
    let q_op = lowering.operand(0, &dims, &[Role::Batch, Role::Group, Role::Query, Role::Head]);
    let k_op = lowering.operand(1, &dims, &[Role::Batch, Role::Key, Role::Head]);
    let v_op = lowering.operand(2, &dims, &[Role::Batch, Role::Key, Role::Value]);
    let extra_ops = (0..extras.len())
        .map(|i| lowering.operand(3 + i, &dims, &[Role::Batch, Role::Group, Role::Query, Role::Key]))
        .collect();
    let shape = AttentionShape {
        batch: dims.batch.iter().map(|d| d.size).collect(),
        group: dims.group.size,
        sq: dims.query.size,
        sk: dims.key.size,
        hd: dims.head.size,
        hv: dims.value.size,
        bound: attention.bound,
        score,
        extras: extra_ops,
        has_bases: false,
    };
    let rows: &[Role] = &[Role::Batch, Role::Group, Role::Query];
    let out_rows: &[Role] = &[Role::Batch, Role::Group, Role::Query, Role::Value];
    let pairs = score_pairs(&shape);
    let (hd, hv) = (shape.hd, shape.hv);
    let (spec, per_pair) = match part {
        None => {
            let o = lowering.operand(n, &dims, out_rows);
            let lse = lowering.operand(n + 1, &dims, rows);
            let spec = KernelSpec::Attention(AttentionSpec { shape, q: q_op, k: k_op, v: v_op, o, lse });
            (spec, 2 * (hd + hv))
        }
        Some(part) => {
            let d_o = lowering.operand(n - 2, &dims, out_rows);
            let lse = lowering.operand(n - 3, &dims, rows);
            let delta = lowering.operand(n - 1, &dims, rows);
            let outputs = match part {
                AttentionGradPart::Query => {
                    vec![lowering.operand(n, &dims, &[Role::Batch, Role::Group, Role::Query, Role::Head])]
                }
                AttentionGradPart::KeyValue => vec![
                    lowering.operand(n, &dims, &[Role::Batch, Role::Key, Role::Head]),
                    lowering.operand(n + 1, &dims, &[Role::Batch, Role::Key, Role::Value]),
                ],
                AttentionGradPart::Extra(_) => {
                    vec![lowering.operand(n, &dims, &[Role::Batch, Role::Group, Role::Query, Role::Key])]
                }
            };
            let (per_pair, slope) = match part {
                AttentionGradPart::Query => (2 * (2 * hd + hv), 1),
                AttentionGradPart::KeyValue => (2 * (2 * hd + 2 * hv), 1),
                AttentionGradPart::Extra(i) => {
                    let place = attention.learned.iter().position(|l| *l == i as usize);
                    let place = place.ok_or_else(|| refuse(format!("extra {i} is not learned")))?;
                    (2 * (hd + hv), 2 + place)
                }
            };
            let slope = lowering.region(attention, slope)?;
            let spec = KernelSpec::AttentionGrad(AttentionGradSpec {
                shape,
                part,
                slope,
                q: q_op,
                k: k_op,
                v: v_op,
                d_o,
                lse,
                delta,
                outputs,
            });
            (spec, per_pair)
        }
    };
    Ok(Lowered { spec, views: lowering.made.views, indices: Vec::new(), flops: pairs * per_pair })
}

/// Number of (query, key) pairs the bound leaves.
fn score_pairs(shape: &AttentionShape) -> u64 {
    let rows = shape.batch.iter().product::<u64>() * shape.group;
    let per_row_sum: u64 = match shape.bound {
        Bound::Full => shape.sq * shape.sk,
        Bound::Causal => (0..shape.sq).map(|i| (i + 1).min(shape.sk)).sum(),
        Bound::Window(w) => (0..shape.sq).map(|i| (i + 1).min(w).min(shape.sk)).sum(),
    };
    rows * per_row_sum
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Batch,
    Group,
    Query,
    Key,
    Head,
    Value,
}

impl Lowering<'_> {
    fn operand(&mut self, i: usize, dims: &AttentionDims, roles: &[Role]) -> Operand {
        let view = self.views[i].clone();
        let mut strides = Vec::new();
        for role in roles {
            match role {
                Role::Batch => strides.extend(dims.batch.iter().map(|d| d.strides[i])),
                Role::Group => strides.push(dims.group.strides[i]),
                Role::Query => strides.push(dims.query.strides[i]),
                Role::Key => strides.push(dims.key.strides[i]),
                Role::Head => strides.push(dims.head.strides[i]),
                Role::Value => strides.push(dims.value.strides[i]),
            }
        }
        let dtype = self.fused.buffer(view.buffer).dtype;
        Operand { buffer: self.made.buffer(&view), dtype, offset: 0, strides }
    }

    /// A result of the score region as a region: inputs are its arguments.
    fn region(&self, attention: &Attention, result: usize) -> Result<Region> {
        let region = self.fused.graph.region(attention.score);
        let group = Group {
            kind: Kind::Fill,
            ops: region.ops.clone(),
            writes: Vec::new(),
            origin: self.group.origin.clone(),
        };
        let mut builder = Builder::new(self.fused, &group, 0, Vec::new());
        for (i, arg) in region.args.iter().enumerate() {
            let dtype = super::scalar::compute_type(self.fused.graph.ty(*arg).dtype);
            let id = builder.push(ScalarOp::Input(i as u32), dtype);
            builder.given.insert(*arg, id);
        }
        let result = builder.value(region.results[result], &Coords::new())?;
        let result = builder.cast(result, DType::F32);
        Ok(builder.finish(&[result]).region)
    }
}
