//! A matrix product as the kernel sees it: batch dimensions and one `m`, `n`, `k` with one stride per operand.

use super::{Buffer, Fused, Kind, View, Write};
use crate::graph::{Name, Op, OpId};

/// One dimension with its stride in every operand, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Size.
    pub size: u64,
    /// One per operand; 0 where the operand lacks it.
    pub strides: Vec<u64>,
}

/// Merges axes that all operands walk with one stride; sizes of 1 vanish. Outermost first by the first operand that has
/// the axis.
pub fn merge(axes: &[(Name, u64)], operands: &[(&View, &Buffer)]) -> Vec<Dim> {
    let mut dims: Vec<Dim> = axes
        .iter()
        .filter(|(_, size)| *size > 1)
        .map(|(name, size)| Dim {
            size: *size,
            strides: operands.iter().map(|(v, b)| v.stride(b, name)).collect(),
        })
        .collect();
    dims.sort_by(|x, y| y.strides.cmp(&x.strides));
    merge_neighbours(dims)
}

/// Merges neighbouring dimensions where the outer stride is the inner one times its size, in all operands.
pub fn merge_neighbours(dims: Vec<Dim>) -> Vec<Dim> {
    let mut merged: Vec<Dim> = Vec::new();
    for dim in dims {
        if let Some(last) = merged.last_mut()
            && last.strides.iter().zip(&dim.strides).all(|(outer, inner)| *outer == inner * dim.size)
        {
            last.size *= dim.size;
            last.strides = dim.strides;
        } else {
            merged.push(dim);
        }
    }
    merged
}

/// Dimensions of a product by role; strides are `[a, b, c, extras..]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GemmDims {
    /// In `a`, `b` and `c`.
    pub batch: Vec<Dim>,
    /// In `a` and `c`.
    pub m: Vec<Dim>,
    /// In `b` and `c`.
    pub n: Vec<Dim>,
    /// In `a` and `b`.
    pub k: Vec<Dim>,
}

impl GemmDims {
    /// Of a product with these operands.
    pub fn new(
        over: &[Name],
        a: (&View, &Buffer),
        b: (&View, &Buffer),
        others: &[(&View, &Buffer)],
    ) -> GemmDims {
        let operands: Vec<(&View, &Buffer)> = [&[a, b], others].concat();
        let (mut batch, mut m, mut n, mut k) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for axis in &a.0.axes {
            let entry = (axis.name.clone(), axis.size);
            match (over.contains(&axis.name), b.0.size(&axis.name)) {
                (true, _) => k.push(entry),
                (false, Some(_)) => batch.push(entry),
                (false, None) => m.push(entry),
            }
        }
        for axis in &b.0.axes {
            if a.0.size(&axis.name).is_none() {
                n.push((axis.name.clone(), axis.size));
            }
        }
        let merged = |axes: &[(Name, u64)]| merge(axes, &operands);
        // `n` has no stride in `a`: order it by `b` through the tuple comparison.
        GemmDims { batch: merged(&batch), m: merged(&m), n: merged(&n), k: merged(&k) }
    }

    /// Of a group; `None` if it is no product.
    pub fn of(fused: &Fused, kind: &Kind, write: &Write) -> Option<GemmDims> {
        let Kind::Gemm { dot, a, b, extras } = kind else { return None };
        let with = |v: &View| fused.buffer(v.buffer).clone();
        let (ba, bb) = (with(a), with(b));
        let views: Vec<View> = std::iter::once(write.view.clone())
            .chain(extras.iter().map(|v| fused.views[v].clone()))
            .collect();
        let buffers: Vec<Buffer> = views.iter().map(with).collect();
        let others: Vec<(&View, &Buffer)> = views.iter().zip(&buffers).collect();
        Some(GemmDims::new(&over(fused, *dot), (a, &ba), (b, &bb), &others))
    }
}

/// Contracted axes of a product.
pub fn over(fused: &Fused, dot: OpId) -> Vec<Name> {
    match &fused.graph.op(dot).op {
        Op::Dot { over } => over.clone(),
        _ => Vec::new(),
    }
}
