//! Meshes of devices, and how tensors lie on them.
//!
//! A **mesh** is a box of ranks with named axes; ranks are numbered row-major, the first axis slowest. A **sharding** says of
//! one tensor: each tensor axis is split over some mesh axes, in order, the first one into the coarsest parts; over mesh axes
//! it does not name the tensor is whole, the same on every rank; and over those that are *partial* every rank holds one term
//! of a sum (or of a maximum), which still has to be reduced.
//!
//! Source: the axes-per-dimension form is that of Shardy (openxla.org/shardy, "Sharding representation"); partial as part of
//! the state is from Xu et al. 2021 (GSPMD, arXiv:2105.04663), §3.

use super::{Axis, Name, ReduceOp, Type};
use std::collections::BTreeMap;
use std::fmt;

/// One axis of a mesh.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MeshAxis {
    /// Name; `tensor.0`, `tensor.1` for the parts of an axis that rules split jointly.
    pub name: Name,
    /// Number of ranks along it, ≥ 1.
    pub size: u64,
    /// Whether neighbours along it may sit in different machines.
    pub over_nodes: bool,
}

/// A box of ranks. The empty mesh is one rank.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Mesh {
    /// Axes, slowest first.
    pub axes: Vec<MeshAxis>,
}

impl Mesh {
    /// A mesh within one machine.
    pub fn new(axes: &[(&str, u64)]) -> Mesh {
        let axis =
            |(name, size): &(&str, u64)| MeshAxis { name: (*name).into(), size: *size, over_nodes: false };
        Mesh { axes: axes.iter().map(axis).collect() }
    }

    /// Number of ranks.
    pub fn ranks(&self) -> u64 {
        self.axes.iter().map(|a| a.size).product()
    }

    /// Ranks along an axis; 1 if the mesh lacks it.
    pub fn size_of(&self, axis: &str) -> u64 {
        self.axes.iter().find(|a| a.name.as_str() == axis).map_or(1, |a| a.size)
    }

    /// Into how many parts axes split together.
    pub fn ways(&self, over: &[Name]) -> u64 {
        over.iter().map(|a| self.size_of(a)).product()
    }

    /// Coordinates of a rank, in the order of the axes.
    pub fn coordinates(&self, rank: u64) -> Vec<u64> {
        let mut rest = rank;
        let mut coordinates: Vec<u64> = self
            .axes
            .iter()
            .rev()
            .map(|axis| {
                let at = rest % axis.size;
                rest /= axis.size;
                at
            })
            .collect();
        coordinates.reverse();
        coordinates
    }

    /// The rank at coordinates.
    pub fn rank_at(&self, coordinates: &[u64]) -> u64 {
        self.axes.iter().zip(coordinates).fold(0, |rank, (axis, at)| rank * axis.size + at)
    }

    /// The place of a rank along several axes, the first one major: 0 .. [`Mesh::ways`].
    pub fn position(&self, rank: u64, over: &[Name]) -> u64 {
        let coordinates = self.coordinates(rank);
        over.iter().fold(0, |position, name| match self.axes.iter().position(|a| a.name == *name) {
            Some(i) => position * self.axes[i].size + coordinates[i],
            None => position,
        })
    }

    /// The ranks that differ from `rank` in these axes only, by [`Mesh::position`].
    pub fn group(&self, rank: u64, over: &[Name]) -> Vec<u64> {
        let mut coordinates = self.coordinates(rank);
        (0..self.ways(over))
            .map(|position| {
                let mut rest = position;
                for name in over.iter().rev() {
                    if let Some(i) = self.axes.iter().position(|a| a.name == *name) {
                        coordinates[i] = rest % self.axes[i].size;
                        rest /= self.axes[i].size;
                    }
                }
                self.rank_at(&coordinates)
            })
            .collect()
    }
}

/// How one tensor axis is split.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Split {
    /// Mesh axes, the coarsest parts first; never empty.
    pub over: Vec<Name>,
    /// The axis is first cut into this many equal blocks, and every block is split: a rank's elements are its parts of all
    /// blocks, in order. 1 except where a loop takes blocks of an input one by one.
    pub blocks: u64,
}

/// How one tensor lies on the mesh.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Sharding {
    /// Tensor axes that are split. No mesh axis occurs twice.
    pub split: BTreeMap<Name, Split>,
    /// Mesh axes over which every rank holds one term, and what reduces them. None of them splits.
    pub partial: BTreeMap<Name, ReduceOp>,
}

impl Sharding {
    /// The same on every rank.
    pub fn whole() -> Sharding {
        Sharding::default()
    }

    /// Contiguous parts: each tensor axis with its mesh axes; axes without any are left out.
    pub fn of(split: &[(&str, &[&str])]) -> Sharding {
        let mut sharding = Sharding::default();
        for (axis, over) in split {
            sharding.set(&Name::from(*axis), over.iter().map(|m| Name::from(*m)).collect());
        }
        sharding
    }

    /// With `axis` split over these mesh axes in contiguous parts; over none: whole.
    pub fn set(&mut self, axis: &Name, over: Vec<Name>) {
        if over.is_empty() {
            self.split.remove(axis);
        } else {
            self.split.insert(axis.clone(), Split { over, blocks: 1 });
        }
    }

    /// The mesh axes of a tensor axis.
    pub fn over(&self, axis: &str) -> &[Name] {
        self.split.get(axis).map_or(&[], |s| &s.over)
    }

    /// The tensor axis a mesh axis splits.
    pub fn axis_of(&self, mesh_axis: &str) -> Option<&Name> {
        self.split.iter().find(|(_, s)| s.over.iter().any(|m| m.as_str() == mesh_axis)).map(|(axis, _)| axis)
    }

    /// Whether a mesh axis splits an axis or is partial.
    pub fn uses(&self, mesh_axis: &str) -> bool {
        self.axis_of(mesh_axis).is_some() || self.partial.contains_key(mesh_axis)
    }

    /// Whether every rank holds everything.
    pub fn is_whole(&self) -> bool {
        self.split.is_empty() && self.partial.is_empty()
    }

    /// The same splits, nothing partial.
    pub fn reduced(&self) -> Sharding {
        Sharding { split: self.split.clone(), partial: BTreeMap::new() }
    }

    /// With tensor axes renamed.
    pub fn renamed(&self, pairs: &[(Name, Name)]) -> Sharding {
        let new = |axis: &Name| {
            pairs.iter().find(|(old, _)| old == axis).map_or_else(|| axis.clone(), |(_, new)| new.clone())
        };
        let split = self.split.iter().map(|(axis, s)| (new(axis), s.clone())).collect();
        Sharding { split, partial: self.partial.clone() }
    }

    /// The part of a tensor one rank holds.
    ///
    /// # Errors
    /// Says which axis does not split evenly, or isn't there.
    pub fn local(&self, ty: &Type, mesh: &Mesh) -> Result<Type, String> {
        if let Some(axis) = self.split.keys().find(|a| !ty.has(a)) {
            return Err(format!("axis {axis} is split but the tensor lacks it"));
        }
        let part = |axis: &Axis| {
            let Some(split) = self.split.get(&axis.name) else { return Ok(axis.clone()) };
            let ways = mesh.ways(&split.over) * split.blocks;
            if axis.size % ways == 0 {
                return Ok(Axis { name: axis.name.clone(), size: axis.size / mesh.ways(&split.over) });
            }
            Err(format!("axis {}={} does not split {ways} ways", axis.name, axis.size))
        };
        Ok(Type::new(ty.dtype, ty.axes.iter().map(part).collect::<Result<_, _>>()?))
    }

    /// What is wrong with it as the sharding of a tensor of this type.
    pub fn problem(&self, ty: &Type, mesh: &Mesh) -> Option<String> {
        let mut seen: Vec<&Name> = Vec::new();
        for name in self.split.values().flat_map(|s| &s.over).chain(self.partial.keys()) {
            if !mesh.axes.iter().any(|a| a.name == *name) {
                return Some(format!("the mesh has no axis {name}"));
            }
            if seen.contains(&name) {
                return Some(format!("the mesh axis {name} is used twice"));
            }
            seen.push(name);
        }
        if self.split.values().any(|s| s.over.is_empty() || s.blocks == 0) {
            return Some("an axis is split over nothing".into());
        }
        self.local(ty, mesh).err()
    }
}

/// `batch: data fsdp, seq: tensor, partial sum over ep`; `whole`.
impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        for (axis, split) in &self.split {
            let over: Vec<&str> = split.over.iter().map(Name::as_str).collect();
            let blocks =
                if split.blocks == 1 { String::new() } else { format!(" in {} blocks", split.blocks) };
            parts.push(format!("{axis}: {}{blocks}", over.join(" ")));
        }
        for (axis, op) in &self.partial {
            parts.push(format!("partial {} over {axis}", op.name()));
        }
        if parts.is_empty() { f.write_str("whole") } else { f.write_str(&parts.join(", ")) }
    }
}

/// Ops that only exist because there is more than one rank.
#[derive(Clone, PartialEq, Debug)]
pub enum MeshOp {
    /// The same tensor; wherever it is split, these tensor axes are split over these mesh axes. Says what the spec's rules for
    /// roles and values say; gone once the graph is sharded. Its derivative is itself.
    Constrain {
        /// Tensor axes with their mesh axes, coarsest first; none: whole.
        split: BTreeMap<Name, Vec<Name>>,
    },
    /// The same tensor, lying as its result's sharding says. The only op of a sharded graph whose operand and result lie
    /// differently.
    Reshard {
        /// Why, for people: the op and the rule that ask for it.
        cause: Name,
        /// Element type in which terms travel where they are summed, if not that of the tensor: see [`Collective::wire`].
        wire: Option<super::DType>,
        /// It may send more than moving the tensor's parts should take.
        may_replicate: bool,
    },
    /// Data between ranks.
    Collective(Collective),
    /// This rank's part of a tensor that every rank of the group holds: block [`Mesh::position`] of [`Mesh::ways`].
    LocalPart {
        /// The axis that is cut.
        axis: Name,
        /// Mesh axes, coarsest first.
        over: Vec<Name>,
    },
}

/// What a collective does, on each of its operands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CollectiveKind {
    /// Every rank gets all parts, end to end along the part's `join`.
    AllGather,
    /// Cut along `split`; every rank gets the reduction of all ranks' blocks at its position.
    ReduceScatter(ReduceOp),
    /// Every rank gets the reduction of all.
    AllReduce(ReduceOp),
    /// Cut along `split`; every rank gets all ranks' blocks at its position, end to end along `join`.
    AllToAll,
}

impl CollectiveKind {
    /// Bytes that each of `ranks` sends when it holds `local` bytes before: of rings and of pairwise exchange, which send the
    /// least there is. An all-reduce is a reduce-scatter and an all-gather.
    pub fn bytes_sent(self, local: u64, ranks: u64) -> u64 {
        match self {
            CollectiveKind::AllGather => local * (ranks - 1),
            CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => {
                (local * (ranks - 1)).div_ceil(ranks)
            }
            CollectiveKind::AllReduce(_) => (2 * local * (ranks - 1)).div_ceil(ranks),
        }
    }
}

/// Data between the ranks that differ in `over` only. Reductions run over ranks in order of [`Mesh::position`], in f32 if the
/// elements are shorter. One operand and one result per part: several tensors travel as one message.
#[derive(Clone, PartialEq, Debug)]
pub struct Collective {
    /// What it does.
    pub kind: CollectiveKind,
    /// Mesh axes of the group, coarsest first.
    pub over: Vec<Name>,
    /// The axes of each operand.
    pub parts: Vec<CollectivePart>,
    /// Element type on the wire, if not that of the operands. Only f32 may travel as bf16; sums are f32 all the same.
    pub wire: Option<super::DType>,
    /// Why, for people.
    pub cause: Name,
}

/// Axes of one operand of a collective.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CollectivePart {
    /// The axis that is cut: of a reduce-scatter and an all-to-all.
    pub split: Option<Name>,
    /// The axis that grows: of an all-gather and an all-to-all.
    pub join: Option<Name>,
}

#[cfg(test)]
mod text;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;

    #[test]
    fn mesh_numbers_ranks_row_major() {
        let mesh = Mesh::new(&[("data", 2), ("fsdp", 3), ("tensor", 4)]);
        assert_eq!(mesh.ranks(), 24);
        assert_eq!(mesh.coordinates(23), [1, 2, 3]);
        assert_eq!(mesh.coordinates(5), [0, 1, 1]);
        for rank in 0..24 {
            assert_eq!(mesh.rank_at(&mesh.coordinates(rank)), rank);
        }
    }

    #[test]
    fn mesh_groups_are_in_order_of_position() {
        let mesh = Mesh::new(&[("data", 2), ("fsdp", 3), ("tensor", 4)]);
        let over = [Name::from("tensor"), Name::from("data")];
        let group = mesh.group(5, &over);
        assert_eq!(group, [4, 16, 5, 17, 6, 18, 7, 19]);
        for (position, rank) in group.iter().enumerate() {
            assert_eq!(mesh.position(*rank, &over), position as u64);
        }
    }

    #[test]
    fn sharding_gives_local_sizes_and_names_what_does_not_fit() {
        let mesh = Mesh::new(&[("data", 2), ("tensor", 3)]);
        let ty = Type::new(DType::F32, vec![Axis::new("batch", 8), Axis::new("d", 9)]);
        let local = Sharding::of(&[("batch", &["data"]), ("d", &["tensor"])]).local(&ty, &mesh);
        assert_eq!(local.unwrap().axes, [Axis::new("batch", 4), Axis::new("d", 3)]);
        let wrong = Sharding::of(&[("batch", &["tensor"])]).problem(&ty, &mesh);
        assert_eq!(wrong.unwrap(), "axis batch=8 does not split 3 ways");
        let twice = Sharding::of(&[("batch", &["data"]), ("d", &["data"])]).problem(&ty, &mesh);
        assert_eq!(twice.unwrap(), "the mesh axis data is used twice");
        assert!(Sharding::of(&[("seq", &["data"])]).problem(&ty, &mesh).is_some());
    }
}
