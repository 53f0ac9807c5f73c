//! `Rows`: a region with reductions over trailing dimensions.
//!
//! Reductions that feed one another split the region into passes over the reduced dimensions: pass `p` computes the
//! reductions that depend on a chain of `p` others (softmax: the maximum, then the sum of exponentials), and a last pass
//! the results that vary within a row. Element-level values are recomputed in each pass from inputs that are then in
//! cache. Two schedules:
//!
//! * [`along`]: vectors run along the innermost reduced dimension, and lanes are joined at the end of a row;
//! * [`across`]: the contiguous dimension is a kept one; each lane is its own row, and there is nothing to join.

mod across;
mod along;
mod reduce;

use super::buffers::{Buffers, load_along, mem};
use super::map::{lanes_for, ramp};
use super::region::{Levels, Source, elems, uses_index};
use super::space::{Dim, dims_of, merge};
use crate::kir::{Builder, Elem, Kernel, Value};
use crate::program::LoopsSpec;
use crate::program::region::{ScalarId, ScalarOp};
use crate::target::Target;
use reduce::Reduction;

/// Loop levels of region values.
const PER_ROW: usize = 1;
const PER_OUTER: usize = 2;
const PER_ELEMENT: usize = 3;

/// Elements of one tile, about.
const TILE_ELEMENTS: u64 = 16 << 10;

/// Expands a map with reductions.
pub fn rows(spec: &LoopsSpec, target: &Target) -> Kernel {
    let plan = Plan::new(spec, target);
    match plan.column_dim() {
        Some(dim) => across::kernel(&plan, dim),
        None => along::kernel(&plan),
    }
}

struct Plan<'a> {
    spec: &'a LoopsSpec,
    kept: Vec<Dim>,
    /// The innermost is the most contiguous.
    reduced: Vec<Dim>,
    levels: Levels,
    elems: Vec<Elem>,
    /// By op.
    is_element: Vec<bool>,
    lanes: u32,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a LoopsSpec, target: &Target) -> Plan<'a> {
        let n_kept = spec.dims.len() - spec.reduced;
        let strides: Vec<&[u64]> =
            spec.outputs.iter().chain(&spec.inputs).map(|o| o.strides.as_slice()).collect();
        let pinned = |d: usize| uses_index(&spec.region, d);
        let kept = merge(dims_of(&spec.dims, 0..n_kept, &strides, &pinned));
        let mut reduced = dims_of(&spec.dims, n_kept..spec.dims.len(), &strides, &pinned);
        // A stable order by how far apart neighbours lie in the operand that varies most; 0 means it does not move.
        reduced.sort_by_key(|d| {
            std::cmp::Reverse(d.strides.iter().copied().filter(|&s| s > 0).min().unwrap_or(u64::MAX))
        });
        let reduced = merge(reduced);

        let n_outputs = spec.outputs.len();
        let inner = reduced.last().cloned();
        let is_inner = |d: &Dim| Some(d) == inner.as_ref();
        let level_of = |varies: &dyn Fn(&Dim) -> bool| {
            if reduced.iter().any(|d| is_inner(d) && varies(d)) {
                PER_ELEMENT
            } else if reduced.iter().any(varies) {
                PER_OUTER
            } else if kept.iter().any(varies) {
                PER_ROW
            } else {
                0
            }
        };
        let levels = Levels::new(
            &spec.region,
            &|i| match spec.inputs.get(i as usize) {
                None => 0,
                Some(_) => level_of(&|d| d.strides[n_outputs + i as usize] != 0),
            },
            &|dim| level_of(&|d| d.pinned == Some(dim as usize)),
            PER_ROW,
        );
        let elems = elems(&spec.region, &|i| match spec.inputs.get(i as usize) {
            Some(o) => Elem::of_memory(o.dtype),
            None => Elem::I64,
        });
        let is_element = levels.of.iter().map(|&l| l >= PER_OUTER).collect();
        Plan { spec, kept, reduced, levels, elems, is_element, lanes: lanes_for(spec, target) }
    }

    /// The kept dimension vectors should run along, if more of the inputs that vary within a row are contiguous there than
    /// along the innermost reduced dimension. An input that does not vary along the kept dimension has no say: lanes that
    /// run there share its elements, and those that run within the row would read the others with a stride.
    ///
    /// So the order of a sum does not depend on what statistics of its rows are computed in the same kernel.
    fn column_dim(&self) -> Option<usize> {
        let n_outputs = self.spec.outputs.len();
        let varying = (0..self.spec.inputs.len())
            .map(|i| n_outputs + i)
            .filter(|&o| self.reduced.iter().any(|d| d.strides[o] != 0));
        let contiguous = |d: &Dim| varying.clone().filter(|&o| d.strides[o] == 1).count();
        let (best, dim) =
            self.kept.iter().enumerate().map(|(i, d)| (contiguous(d), i)).max_by_key(|&(n, i)| (n, i))?;
        let kept = &self.kept[dim];
        let within = |d: &Dim| varying.clone().filter(|&o| d.strides[o] == 1 && kept.strides[o] != 0).count();
        (best > self.reduced.last().map_or(0, within)).then_some(dim)
    }

    fn n_reduced(&self) -> u64 {
        self.reduced.iter().map(|d| d.size).product()
    }

    /// Reductions by pass.
    fn passes(&self) -> Vec<Vec<Reduction>> {
        let mut passes: Vec<Vec<Reduction>> = Vec::new();
        for (i, op) in self.spec.region.ops.iter().enumerate() {
            if let (ScalarOp::Reduce(op, operand), true) = (*op, self.levels.needed[i]) {
                let pass = self.levels.stage[i] - 1;
                passes.resize_with(passes.len().max(pass + 1), Vec::new);
                let id = ScalarId(i as u32);
                passes[pass].push(Reduction { id, op, operand, elem: self.elems[i] });
            }
        }
        passes
    }

    /// Outputs stored once per element: their result varies within the row, or their address does.
    fn is_element_output(&self, o: usize) -> bool {
        let result = self.spec.region.results[o];
        self.is_element[result.0 as usize] || self.reduced.iter().any(|d| d.strides[o] != 0)
    }

    fn element_outputs(&self) -> Vec<usize> {
        (0..self.spec.outputs.len()).filter(|&o| self.is_element_output(o)).collect()
    }

    fn row_outputs(&self) -> Vec<usize> {
        (0..self.spec.outputs.len()).filter(|&o| !self.is_element_output(o)).collect()
    }

    /// Element address of every operand at index 0, outputs first.
    fn origin(&self, b: &mut Builder) -> Vec<Value> {
        self.spec.outputs.iter().chain(&self.spec.inputs).map(|o| b.index(o.offset)).collect()
    }

    fn builder(&self, n_tiles: u64) -> Builder {
        let mut b = Builder::new(n_tiles, self.spec.n_scalars as usize);
        let mut buffers = Buffers::default();
        self.spec.inputs.iter().for_each(|o| buffers.read("x", o, &self.spec.dims));
        self.spec.outputs.iter().for_each(|o| buffers.write("y", o, &self.spec.dims));
        buffers.declare(&mut b);
        b
    }

    fn start<'p>(&'p self, b: &mut Builder) -> Cursor<'p, 'a> {
        let zero = b.index(0);
        Cursor {
            plan: self,
            at: self.origin(b),
            kept: vec![zero; self.kept.len()],
            reduced: vec![zero; self.reduced.len()],
            vector: Vector::None,
            lanes: 1,
            count: None,
        }
    }
}

/// Which dimension the lanes run along.
#[derive(Clone, Copy, PartialEq)]
enum Vector {
    None,
    Kept(usize),
    Reduced(usize),
}

/// A place in the iteration space: addresses of all operands (outputs first), indices, and the active lanes.
#[derive(Clone)]
struct Cursor<'p, 'a> {
    plan: &'p Plan<'a>,
    at: Vec<Value>,
    kept: Vec<Value>,
    reduced: Vec<Value>,
    vector: Vector,
    lanes: u32,
    count: Option<Value>,
}

impl Cursor<'_, '_> {
    /// Moves along dimension `dim` of the kept or reduced ones to `index`.
    fn go_kept(&mut self, b: &mut Builder, dim: usize, index: Value) {
        self.kept[dim] = index;
        let strides = &self.plan.kept[dim].strides;
        self.at = super::buffers::step(b, &self.at, strides, index);
    }

    fn go_reduced(&mut self, b: &mut Builder, dim: usize, index: Value) {
        self.reduced[dim] = index;
        let strides = &self.plan.reduced[dim].strides;
        self.at = super::buffers::step(b, &self.at, strides, index);
    }

    /// Stride of operand `o` between lanes.
    fn lane_stride(&self, o: usize) -> u64 {
        match self.vector {
            Vector::None => 0,
            Vector::Kept(d) => self.plan.kept[d].strides[o],
            Vector::Reduced(d) => self.plan.reduced[d].strides[o],
        }
    }

    /// Stores output `o` at this place.
    fn store(&self, b: &mut Builder, o: usize, value: Value) {
        let operand = &self.plan.spec.outputs[o];
        let stride = self.lane_stride(o);
        super::buffers::store_along(b, mem(operand), self.at[o], stride, self.lanes, value, self.count);
    }
}

impl Source for Cursor<'_, '_> {
    fn input(&mut self, b: &mut Builder, i: u32) -> Value {
        let spec = self.plan.spec;
        let Some(operand) = spec.inputs.get(i as usize) else {
            return b.scalar(i as usize - spec.inputs.len());
        };
        let o = spec.outputs.len() + i as usize;
        load_along(b, mem(operand), self.at[o], self.lane_stride(o), self.lanes, self.count)
    }

    fn index(&mut self, b: &mut Builder, dim: u32) -> Value {
        let is = |d: &Dim| d.pinned == Some(dim as usize);
        let kept = self.plan.kept.iter().position(is);
        let reduced = self.plan.reduced.iter().position(is);
        let (index, vector) = match (kept, reduced) {
            (Some(d), _) => (self.kept[d], Vector::Kept(d)),
            (_, Some(d)) => (self.reduced[d], Vector::Reduced(d)),
            (None, None) => (b.index(0), Vector::None),
        };
        if vector == self.vector && vector != Vector::None {
            return ramp(b, index, self.lanes);
        }
        b.convert(Elem::I32, index)
    }
}
