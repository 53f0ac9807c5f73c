//! Gathers, scatters and running sums.

use super::{Lowered, MadeKernel};
use crate::fuse::{Fused, Group, Result, View};
use crate::graph::{Axis, Name, Op, OpId};
use mlc_codegen::program::{GatherSpec, KernelSpec, Operand, ScanSpec, ScatterSpec};

fn looked_up(fused: &Fused, op: OpId) -> Name {
    match &fused.graph.op(op).op {
        Op::Gather { axis } | Op::ScatterAdd { axis } => axis.clone(),
        _ => unreachable!("a lookup is a gather or a scatter"),
    }
}

fn operand(fused: &Fused, made: &mut MadeKernel, view: &View, axes: &[Axis]) -> Operand {
    let buffer = fused.buffer(view.buffer);
    let strides = axes.iter().map(|a| view.stride(buffer, &a.name)).collect();
    Operand { buffer: made.buffer(view), dtype: buffer.dtype, offset: 0, strides }
}

/// Lowers a group of kind `Gather`.
///
/// # Errors
/// None at present; the signature is that of all kinds.
pub fn gather(fused: &Fused, group: &Group, op: OpId) -> Result<Lowered> {
    let axis = looked_up(fused, op);
    let operands = &fused.graph.op(op).operands;
    let (table, ids) = (fused.views[&operands[0]].clone(), fused.views[&operands[1]].clone());
    let out = &group.writes[0].view;
    let axes = out.physical_order(fused.buffer(out.buffer));
    let mut made = MadeKernel::default();
    let table_buffer = fused.buffer(table.buffer);
    let spec = KernelSpec::Gather(GatherSpec {
        dims: axes.iter().map(|a| a.size).collect(),
        axis_stride: table_buffer.stride(&of(&table, &axis)),
        axis_size: table.size(&axis).expect("checked by the shape rule"),
        table: operand(fused, &mut made, &table, &axes),
        ids: operand(fused, &mut made, &ids, &axes),
        out: operand(fused, &mut made, out, &axes),
    });
    Ok(Lowered { spec, views: made.views, indices: Vec::new(), flops: 0 })
}

/// Lowers a group of kind `Scatter`.
///
/// # Errors
/// None at present; the signature is that of all kinds.
pub fn scatter(fused: &Fused, group: &Group, op: OpId) -> Result<Lowered> {
    let axis = looked_up(fused, op);
    let operands = &fused.graph.op(op).operands;
    let (updates, ids) = (fused.views[&operands[0]].clone(), fused.views[&operands[1]].clone());
    let write = &group.writes[0];
    let out = &write.view;
    let mut axes = ids.physical_order(fused.buffer(ids.buffer));
    let id_dims = axes.len();
    let rest = updates.physical_order(fused.buffer(updates.buffer));
    axes.extend(rest.into_iter().filter(|a| ids.size(&a.name).is_none()));
    let mut made = MadeKernel::default();
    let out_buffer = fused.buffer(out.buffer);
    let spec = KernelSpec::Scatter(ScatterSpec {
        dims: axes.iter().map(|a| a.size).collect(),
        id_dims,
        axis_stride: out_buffer.stride(&of(out, &axis)),
        axis_size: out.size(&axis).expect("checked by the shape rule"),
        updates: operand(fused, &mut made, &updates, &axes),
        ids: operand(fused, &mut made, &ids, &axes),
        out: operand(fused, &mut made, out, &axes),
        accumulate: write.accumulate,
    });
    Ok(Lowered { spec, views: made.views, indices: Vec::new(), flops: 0 })
}

/// Lowers a group of kind `Scan`: the summed axis comes last.
///
/// # Errors
/// None at present; the signature is that of all kinds.
pub fn scan(fused: &Fused, group: &Group, op: OpId) -> Result<Lowered> {
    let node = fused.graph.op(op);
    let Op::CumSum { axis, exclusive, reverse } = &node.op else {
        unreachable!("a scan is of a running sum");
    };
    let input = fused.views[&node.operands[0]].clone();
    let out = &group.writes[0].view;
    let mut axes = out.physical_order(fused.buffer(out.buffer));
    axes.sort_by_key(|a| a.name == *axis);
    let mut made = MadeKernel::default();
    let spec = KernelSpec::Scan(ScanSpec {
        dims: axes.iter().map(|a| a.size).collect(),
        exclusive: *exclusive,
        reverse: *reverse,
        input: operand(fused, &mut made, &input, &axes),
        out: operand(fused, &mut made, out, &axes),
    });
    Ok(Lowered { spec, views: made.views, indices: Vec::new(), flops: 0 })
}

/// Name in the buffer of a view's axis.
fn of(view: &View, axis: &Name) -> Name {
    view.axes.iter().find(|a| a.name == *axis).map_or_else(|| axis.clone(), |a| a.of.clone())
}
