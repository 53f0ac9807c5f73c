//! Kernels of the user's own.

use super::{Lowered, MadeKernel};
use crate::fuse::{FuseError, Fused, Group, Result, View};
use crate::graph::custom::{memref, substituted, tiles};
use crate::graph::{CompositeKind, Custom, Op, OpId, Type, shape};
use mlc_codegen::program::{CustomArgument, CustomSpec, KernelSpec, Operand};
use std::collections::BTreeMap;

/// Lowers a group of kind `Custom`.
///
/// # Errors
/// The file does not read with these sizes, or names an argument of another type.
pub fn lower(fused: &Fused, group: &Group, op: OpId) -> Result<Lowered> {
    let node = fused.graph.op(op);
    let fail =
        |message: String| FuseError { op: shape::op_name(&node.op), origin: node.origin.clone(), message };
    let Op::Composite(composite) = &node.op else { return Err(fail("no custom kernel".into())) };
    let CompositeKind::Custom(custom) = &composite.kind else { return Err(fail("no custom kernel".into())) };
    let types: Vec<Type> = node
        .operands
        .iter()
        .chain(&node.results)
        .zip(&custom.arguments)
        .map(|(v, argument)| argument.ordered(fused.graph.ty(*v)))
        .collect();
    let source = with_sizes(custom, &types).map_err(|why| fail(format!("{}: {why}", custom.file)))?;
    let resolved = Custom { source: source.as_str().into(), ..custom.clone() };
    let function = resolved.signature().map_err(fail)?;
    let mut made = MadeKernel::default();
    let mut arguments = Vec::new();
    let bound = resolved.bound().map_err(fail)?;
    for (i, (name, given)) in bound.into_iter().zip(&function.arguments) {
        let wanted = memref(&types[i]);
        if *given != wanted {
            return Err(fail(format!("{}: `%{name}` is {given}, here it is {wanted}", custom.file)));
        }
        let written = i >= node.operands.len();
        let view = if written {
            group.writes[i - node.operands.len()].view.clone()
        } else {
            fused.views[&node.operands[i]].clone()
        };
        arguments.push(CustomArgument {
            operand: operand(fused, &mut made, &view, &types[i]),
            dims: types[i].axes.iter().map(|a| a.size).collect(),
            written,
        });
    }
    let spec = KernelSpec::Custom(CustomSpec {
        file: custom.file.to_string(),
        function: custom.function.to_string(),
        tiles: if function.in_tiles {
            tiles(&source).map_err(|why| fail(format!("{}: {why}", custom.file)))?
        } else {
            1
        },
        in_tiles: function.in_tiles,
        source,
        arguments,
    });
    Ok(Lowered { spec, views: made.views, indices: Vec::new(), flops: 0 })
}

/// The file's text with the sizes of these types.
fn with_sizes(custom: &Custom, types: &[Type]) -> std::result::Result<String, String> {
    let axes = types.iter().flat_map(|ty| &ty.axes);
    let sizes: BTreeMap<String, u64> = axes.map(|a| (a.name.to_string(), a.size)).collect();
    substituted(&custom.source, &sizes)
}

fn operand(fused: &Fused, made: &mut MadeKernel, view: &View, ty: &Type) -> Operand {
    let buffer = fused.buffer(view.buffer);
    let strides = ty.axes.iter().map(|a| view.stride(buffer, &a.name)).collect();
    Operand { buffer: made.buffer(view), dtype: buffer.dtype, offset: 0, strides }
}
