//! Matrix products.

use super::scalar::{Builder, Coords, compute_type};
use super::{Lowered, MadeKernel};
use crate::fuse::gemm_dims::{Dim, GemmDims};
use crate::fuse::{FuseError, Fused, Group, Kind, Result};
use crate::graph::shape;
use mlc_codegen::abi::DType;
use mlc_codegen::program::{GemmSpec, KernelSpec, Operand, ScalarOp};

/// Lowers a group of kind `Gemm`.
///
/// # Errors
/// The element types have no matrix kernel, or the contracted axes don't collapse.
pub fn lower(fused: &Fused, group: &Group) -> Result<Lowered> {
    let Kind::Gemm { dot, a, b, extras } = &group.kind else {
        return Err(refuse(fused, group, "not a matrix product"));
    };
    let write = &group.writes[0];
    let Some(dims) = GemmDims::of(fused, &group.kind, write) else {
        return Err(refuse(fused, group, "not a matrix product"));
    };
    let k = match &dims.k[..] {
        [] => None,
        [k] => Some(k.clone()),
        [_, _, ..] => return Err(refuse(fused, group, "the contracted axes have more than one stride")),
    };
    let (m, m_left) = main_dim(&dims.m);
    let (n, n_left) = main_dim(&dims.n);
    let batch: Vec<Dim> = [dims.batch, m_left, n_left].concat();

    let mut made = MadeKernel::default();
    let mut operand = |view: &crate::fuse::View, i: usize, last: [&Option<Dim>; 2]| -> Operand {
        let mut strides: Vec<u64> = batch.iter().map(|d| d.strides[i]).collect();
        strides.extend(last.map(|d| d.as_ref().map_or(0, |d| d.strides[i])));
        let dtype = fused.buffer(view.buffer).dtype;
        Operand { buffer: made.buffer(view), dtype, offset: 0, strides }
    };
    let left = operand(a, 0, [&m, &k]);
    let right = operand(b, 1, [&k, &n]);
    let c = operand(&write.view, 2, [&m, &n]);
    let extra_operands: Vec<Operand> =
        extras.iter().enumerate().map(|(j, v)| operand(&fused.views[v], 3 + j, [&m, &n])).collect();
    let epilogue = if group.ops.is_empty() { None } else { Some(tail(fused, group, *dot, extras)?) };
    // A product without rows, columns or a contraction has one of them.
    let [m, n, k] = [m, n, k].map(|d| d.map_or(1, |d| d.size));
    let flops = 2 * batch.iter().map(|d| d.size).product::<u64>() * m * n * k;
    let spec = KernelSpec::Gemm(GemmSpec {
        batch: batch.iter().map(|d| d.size).collect(),
        m,
        n,
        k,
        a: left,
        b: right,
        c,
        accumulate: write.accumulate,
        epilogue,
        extras: extra_operands,
    });
    Ok(Lowered { spec, views: made.views, indices: Vec::new(), flops })
}

fn refuse(fused: &Fused, group: &Group, message: &str) -> FuseError {
    let op = match &group.kind {
        Kind::Gemm { dot, .. } => shape::op_name(&fused.graph.op(*dot).op),
        _ => "dot".into(),
    };
    FuseError { op, origin: group.origin.clone(), message: message.into() }
}

/// The largest dimension, and the others.
fn main_dim(dims: &[Dim]) -> (Option<Dim>, Vec<Dim>) {
    let Some(at) = (0..dims.len()).rev().max_by_key(|i| dims[*i].size) else { return (None, Vec::new()) };
    let mut rest = dims.to_vec();
    let main = rest.remove(at);
    (Some(main), rest)
}

/// The scalar region after the product: input 0 is the sum, the extras follow.
fn tail(
    fused: &Fused,
    group: &Group,
    dot: crate::graph::OpId,
    extras: &[crate::graph::ValueId],
) -> Result<mlc_codegen::program::Region> {
    let mut builder = Builder::new(fused, group, 0, Vec::new());
    let product = fused.graph.op(dot).results[0];
    // Sums are f32, or f64 for f64.
    let sum_type = if fused.graph.ty(product).dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let sum = builder.push(ScalarOp::Input(0), sum_type);
    builder.given.insert(product, sum);
    for (j, v) in extras.iter().enumerate() {
        let dtype = compute_type(fused.graph.ty(*v).dtype);
        let id = builder.push(ScalarOp::Input(1 + j as u32), dtype);
        builder.given.insert(*v, id);
    }
    let result = match group.writes[0].value {
        Some(v) => builder.value(v, &Coords::new())?,
        None => sum,
    };
    let result = builder.stored(result, fused.buffer(group.writes[0].view.buffer).dtype);
    Ok(builder.finish(&[result]).region)
}
