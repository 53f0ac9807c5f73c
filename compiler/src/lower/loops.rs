//! Element-wise groups, copies and fills: `Map` and `Rows` kernels.

use super::scalar::{Access, Builder, Coord, Coords, access};
use super::{Lowered, MadeKernel};
use crate::fuse::{Fused, Group, Kind, Result, View, Write};
use crate::graph::{Axis, Name, Pairs};
use mlc_codegen::program::{BinaryOp, KernelSpec, LoopsSpec, Operand, ScalarId, ScalarOp};

/// Lowers a group of kind `Loops`, `Copy` or `Fill`.
///
/// # Errors
/// An op without a scalar form.
pub fn lower(fused: &Fused, group: &Group) -> Result<Lowered> {
    let space = Space::new(fused, group);
    let mut builder = Builder::new(fused, group, space.sizes.len(), space.reduced.clone());
    let mut results = Vec::new();
    let mut stores = Vec::new();
    for write in &group.writes {
        for coords in space.places() {
            let value = match (&group.kind, write.value) {
                (Kind::Copy { from }, _) => builder.load(from, &coords),
                (_, Some(v)) => builder.value(v, &coords)?,
                (_, None) => zero(&mut builder, fused, write),
            };
            let store = access(fused, &write.view, &coords, space.sizes.len());
            let value = finished_value(&mut builder, value, write, &coords);
            results.push(builder.stored(value, store.dtype));
            stores.push(store);
        }
    }
    let indexed: Vec<bool> = (0..space.sizes.len()).map(|d| builder.uses_index(d)).collect();
    let finished = builder.finish(&results);
    let mut made = Loops {
        sizes: space.sizes,
        kept: space.kept,
        indexed,
        region: finished.region,
        loads: finished.loads,
        stores,
    };
    made.drop_unit_dims();
    made.merge_dims();
    Ok(made.into_kernel(finished.indices))
}

fn zero(builder: &mut Builder, fused: &Fused, write: &Write) -> ScalarId {
    let dtype = super::scalar::compute_type(fused.buffer(write.view.buffer).dtype);
    builder.push(ScalarOp::Const(dtype, 0.0), dtype)
}

/// What is stored: the value, or its sum with what is there.
fn finished_value(builder: &mut Builder, value: ScalarId, write: &Write, coords: &Coords) -> ScalarId {
    if !write.accumulate {
        return value;
    }
    let old = builder.load(&write.view, coords);
    let dtype = builder.type_of(value);
    builder.push(ScalarOp::Binary(BinaryOp::Add, old, value), dtype)
}

/// The iteration space of a group.
struct Space {
    names: Vec<Name>,
    sizes: Vec<u64>,
    kept: usize,
    reduced: Vec<Axis>,
    paired: Option<(usize, Name, Pairs, u64)>,
}

impl Space {
    fn new(fused: &Fused, group: &Group) -> Space {
        let (kept, reduced, paired) = match &group.kind {
            Kind::Loops { kept, reduced, paired, .. } => (kept.clone(), reduced.clone(), paired.clone()),
            Kind::Copy { .. }
            | Kind::Fill
            | Kind::Gemm { .. }
            | Kind::Gather { .. }
            | Kind::Scatter { .. }
            | Kind::Scan { .. }
            | Kind::Attention { .. }
            | Kind::AttentionGrad { .. }
            | Kind::Custom { .. }
            | Kind::Collective { .. } => {
                let view = &group.writes[0].view;
                (view.physical_order(fused.buffer(view.buffer)), Vec::new(), None)
            }
        };
        let kept = walking_order(fused, group, kept);
        let reduced = walking_order(fused, group, reduced);
        let axes: Vec<&Axis> = kept.iter().chain(&reduced).collect();
        let names = axes.iter().map(|a| a.name.clone()).collect();
        let mut sizes: Vec<u64> = axes.iter().map(|a| a.size).collect();
        let paired = paired.and_then(|(axis, pairs)| {
            let at = kept.iter().position(|a| a.name == axis)?;
            let n = std::mem::replace(&mut sizes[at], kept[at].size / 2);
            Some((at, axis, pairs, n))
        });
        Space { names, sizes, kept: kept.len(), reduced, paired }
    }

    /// Coordinates of the elements one point of the space stands for: one, or both partners of a pair.
    fn places(&self) -> Vec<Coords> {
        let plain: Coords = self.names.iter().enumerate().map(|(i, n)| (n.clone(), Coord::Dim(i))).collect();
        match &self.paired {
            None => vec![plain],
            Some((dim, axis, pairs, n)) => (0..2)
                .map(|half| {
                    let mut coords = plain.clone();
                    let coord = Coord::Half { dim: *dim, half, pairs: *pairs, n: *n };
                    coords.insert(axis.clone(), coord);
                    coords
                })
                .collect(),
        }
    }
}

/// Axes in the physical order of the largest operand that has them, results before operands.
fn walking_order(fused: &Fused, group: &Group, axes: Vec<Axis>) -> Vec<Axis> {
    let mut views: Vec<View> = group.writes.iter().map(|w| w.view.clone()).collect();
    views.extend(fused.reads(group));
    let has = |v: &View| axes.iter().filter(|a| v.size(&a.name) == Some(a.size)).count();
    let mut best: Option<(usize, &View)> = None;
    for view in &views {
        let n = has(view);
        if best.is_none_or(|(most, _)| n > most) {
            best = Some((n, view));
        }
    }
    let Some((_, view)) = best else { return axes };
    let order = view.physical_order(fused.buffer(view.buffer));
    let mut sorted: Vec<Axis> = axes.iter().filter(|a| !order.contains(a)).cloned().collect();
    sorted.extend(order.into_iter().filter(|a| axes.contains(a)));
    sorted
}

struct Loops {
    sizes: Vec<u64>,
    kept: usize,
    indexed: Vec<bool>,
    region: mlc_codegen::program::Region,
    loads: Vec<Access>,
    stores: Vec<Access>,
}

impl Loops {
    fn accesses(&mut self) -> impl Iterator<Item = &mut Access> {
        self.loads.iter_mut().chain(self.stores.iter_mut())
    }

    fn remove_dim(&mut self, dim: usize) {
        self.sizes.remove(dim);
        self.indexed.remove(dim);
        if dim < self.kept {
            self.kept -= 1;
        }
        for access in self.accesses() {
            access.strides.remove(dim);
        }
        for op in &mut self.region.ops {
            if let ScalarOp::Index(d) = op
                && *d as usize > dim
            {
                *d -= 1;
            }
        }
    }

    fn drop_unit_dims(&mut self) {
        for dim in (0..self.sizes.len()).rev() {
            let last_reduced = dim == self.kept && self.sizes.len() == self.kept + 1;
            if self.sizes[dim] == 1 && !self.indexed[dim] && !last_reduced {
                self.remove_dim(dim);
            }
        }
    }

    /// Two neighbouring dimensions become one where every operand walks them with one stride and nobody asks for the
    /// index. Kept and reduced ones never mix.
    fn merge_dims(&mut self) {
        let mut dim = self.sizes.len();
        while dim > 1 {
            dim -= 1;
            let outer = dim - 1;
            let size = self.sizes[dim];
            let fits =
                self.loads.iter().chain(&self.stores).all(|a| a.strides[outer] == a.strides[dim] * size);
            if dim != self.kept && !self.indexed[dim] && !self.indexed[outer] && fits {
                for access in self.accesses() {
                    access.strides[outer] = access.strides[dim];
                }
                self.sizes[outer] *= size;
                self.remove_dim(dim);
            }
        }
    }

    fn into_kernel(self, indices: Vec<crate::fuse::LoopId>) -> Lowered {
        let mut made = MadeKernel::default();
        let reduced = self.sizes.len() - self.kept;
        let n_scalars = indices.len() as u32;
        let operand = |made: &mut MadeKernel, a: Access| -> Operand {
            let buffer = made.buffer(&a.view);
            Operand { buffer, dtype: a.dtype, offset: a.offset, strides: a.strides }
        };
        let inputs = self.loads.into_iter().map(|a| operand(&mut made, a)).collect();
        let outputs = self.stores.into_iter().map(|a| operand(&mut made, a)).collect();
        let spec = LoopsSpec { dims: self.sizes, reduced, inputs, n_scalars, region: self.region, outputs };
        let spec = if reduced == 0 { KernelSpec::Map(spec) } else { KernelSpec::Rows(spec) };
        Lowered { spec, views: made.views, indices, flops: 0 }
    }
}
