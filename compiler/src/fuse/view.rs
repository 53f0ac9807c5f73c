//! Views: how a value's elements lie in a buffer.

use super::{Buffer, BufferId, LoopId};
use crate::graph::{Axis, Mesh, Name, Type};

/// One axis of a value and the axis of the buffer it walks along.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewAxis {
    /// Name in the value.
    pub name: Name,
    /// Size in the value.
    pub size: u64,
    /// Name in the buffer.
    pub of: Name,
}

/// A position along a buffer's axis, in elements of that axis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum At {
    /// Always the same.
    Fixed(u64),
    /// `variable · width`.
    Loop {
        /// The loop.
        var: LoopId,
        /// Elements per iteration.
        width: u64,
    },
    /// The rank's coordinate along an axis of the mesh `· width`.
    Rank {
        /// The mesh axis.
        axis: Name,
        /// Elements per step along it.
        width: u64,
    },
}

/// A displacement along one axis of the buffer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Axis of the buffer.
    pub axis: Name,
    /// How far.
    pub at: At,
}

/// A value's place: element `i` lies at `Σ i[axis]·stride(of) + Σ slots`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// One per axis of the value.
    pub axes: Vec<ViewAxis>,
    /// Displacements.
    pub slots: Vec<Slot>,
}

impl View {
    /// All of a buffer, for a value of type `ty` whose axes are the buffer's.
    pub fn whole(buffer: BufferId, ty: &Type) -> View {
        let axes = ty
            .axes
            .iter()
            .map(|a| ViewAxis { name: a.name.clone(), size: a.size, of: a.name.clone() })
            .collect();
        View { buffer, axes, slots: Vec::new() }
    }

    /// The same elements under other axis names.
    pub fn renamed(&self, pairs: &[(Name, Name)]) -> View {
        let mut view = self.clone();
        for axis in &mut view.axes {
            if let Some((_, to)) = pairs.iter().find(|(from, _)| *from == axis.name) {
                axis.name = to.clone();
            }
        }
        view
    }

    /// One iteration's slice along `axis`: without the axis, or `block` wide.
    pub fn slice(&self, axis: &Name, block: Option<u64>, var: LoopId) -> View {
        self.at(axis, block, At::Loop { var, width: block.unwrap_or(1) })
    }

    /// The slice at a fixed or moving position.
    pub fn at(&self, axis: &Name, block: Option<u64>, at: At) -> View {
        let mut view = self.clone();
        let Some(i) = view.axes.iter().position(|a| a.name == *axis) else { return view };
        let of = view.axes[i].of.clone();
        match block {
            Some(b) => view.axes[i].size = b,
            None => {
                view.axes.remove(i);
            }
        }
        view.slots.push(Slot { axis: of, at });
        view
    }

    /// `size` elements from `at` of the axis `from`, as the axis `to`.
    pub fn part(&self, from: &Name, to: &Name, at: u64, size: u64) -> View {
        let mut view = self.clone();
        let Some(axis) = view.axes.iter_mut().find(|a| a.name == *from) else { return view };
        axis.name = to.clone();
        axis.size = size;
        let of = axis.of.clone();
        if at > 0 {
            view.slots.push(Slot { axis: of, at: At::Fixed(at) });
        }
        view
    }

    /// The rank's part of the axis `axis`: block [`Mesh::position`] of as many as `over` has ranks.
    pub fn local_part(&self, axis: &Name, over: &[Name], mesh: &Mesh) -> View {
        let mut view = self.clone();
        let Some(found) = view.axes.iter_mut().find(|a| a.name == *axis) else { return view };
        found.size /= mesh.ways(over);
        let (mut width, of) = (found.size, found.of.clone());
        for mesh_axis in over.iter().rev() {
            view.slots.push(Slot { axis: of.clone(), at: At::Rank { axis: mesh_axis.clone(), width } });
            width *= mesh.size_of(mesh_axis);
        }
        view
    }

    /// Moved by a fixed number of elements along an axis of the buffer.
    pub fn moved(&self, of: &Name, by: u64) -> View {
        let mut view = self.clone();
        view.slots.push(Slot { axis: of.clone(), at: At::Fixed(by) });
        view
    }

    /// Elements between neighbours along an axis of the value; 0 if it lacks the axis or has one element along it.
    pub fn stride(&self, buffer: &Buffer, axis: &Name) -> u64 {
        match self.axes.iter().find(|a| a.name == *axis) {
            Some(a) if a.size > 1 => buffer.stride(&a.of),
            _ => 0,
        }
    }

    /// Size along an axis, if there.
    pub fn size(&self, axis: &Name) -> Option<u64> {
        self.axes.iter().find(|a| a.name == *axis).map(|a| a.size)
    }

    /// Number of elements.
    pub fn numel(&self) -> u64 {
        self.axes.iter().map(|a| a.size).product()
    }

    /// Constant displacement in elements.
    pub fn offset(&self, buffer: &Buffer) -> u64 {
        self.slots
            .iter()
            .map(|s| match s.at {
                At::Fixed(n) => n * buffer.stride(&s.axis),
                At::Loop { .. } | At::Rank { .. } => 0,
            })
            .sum()
    }

    /// Displacement per iteration of each loop, in elements.
    pub fn loop_strides(&self, buffer: &Buffer) -> Vec<(LoopId, u64)> {
        let mut strides: Vec<(LoopId, u64)> = Vec::new();
        for slot in &self.slots {
            if let At::Loop { var, width } = slot.at {
                let elements = width * buffer.stride(&slot.axis);
                match strides.iter_mut().find(|(v, _)| *v == var) {
                    Some((_, total)) => *total += elements,
                    None => strides.push((var, elements)),
                }
            }
        }
        strides
    }

    /// Displacement per step along each axis of the mesh, in elements.
    pub fn rank_strides(&self, buffer: &Buffer) -> Vec<(Name, u64)> {
        let mut strides: Vec<(Name, u64)> = Vec::new();
        for slot in &self.slots {
            if let At::Rank { axis, width } = &slot.at {
                let elements = width * buffer.stride(&slot.axis);
                match strides.iter_mut().find(|(a, _)| a == axis) {
                    Some((_, total)) => *total += elements,
                    None => strides.push((axis.clone(), elements)),
                }
            }
        }
        strides
    }

    /// Axes with their sizes, outermost in memory first.
    pub fn physical_order(&self, buffer: &Buffer) -> Vec<Axis> {
        let mut axes: Vec<(usize, Axis)> = self
            .axes
            .iter()
            .map(|a| {
                let position = buffer.axes.iter().position(|b| b.name == a.of).unwrap_or(0);
                (position, Axis::new(&a.name, a.size))
            })
            .collect();
        axes.sort_by_key(|(position, _)| *position);
        axes.into_iter().map(|(_, a)| a).collect()
    }

    /// Whether two views show the same elements in the same places.
    pub fn same_place(&self, other: &View) -> bool {
        let sorted = |v: &View| {
            let mut axes: Vec<(Name, u64)> = v.axes.iter().map(|a| (a.of.clone(), a.size)).collect();
            axes.sort();
            axes
        };
        self.buffer == other.buffer && self.slots == other.slots && sorted(self) == sorted(other)
    }
}
