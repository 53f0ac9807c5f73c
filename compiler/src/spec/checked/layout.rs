//! How a run is laid out over devices: the mesh, the rules that split tensors over it, and what lies split at rest.

use super::*;
use std::collections::BTreeMap;

/// The devices, and what is split over them. Ranks number the devices row-major over the axes in order: the first axis
/// is the slowest, the last one joins neighbours.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Axes in order, major first.
    pub mesh: Vec<MeshAxis>,
    /// Rules in order, one per choice of tensor axes; per tensor axis a later one wins.
    pub rules: Vec<ShardRule>,
    /// What lies split at rest.
    pub store: Store,
}

/// A mesh axis.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshAxis {
    /// Its name.
    pub name: String,
    /// Number of devices along it, ≥ 1.
    pub size: u64,
    /// `auto(a..b)`: least and greatest size; `None` if the size was written.
    pub auto: Option<(u64, u64)>,
    /// What it is for.
    pub kind: MeshKind,
    /// `over nodes`: neighbours along it are on different machines.
    pub over_nodes: bool,
    /// Its name in the file.
    pub span: Span,
}

/// Kinds of mesh axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshKind {
    /// Tensors are split over it.
    Data,
    /// Stages of a pipeline lie along it.
    Pipeline,
}

/// `(kv group) -> tensor`. A rule of several choices, `kv, ff -> tensor`, is one rule for each.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardRule {
    /// The tensors it holds for.
    pub scope: Scope,
    /// Tensor axes: one, or those split jointly, major first.
    pub axes: Vec<String>,
    /// Whether the axes were written in parentheses: each takes as many ways as its size allows, the rest is left to
    /// the next. See [`split_jointly`].
    pub joint: bool,
    /// Mesh axes, major first; none undoes earlier rules.
    pub mesh: Vec<String>,
    /// For each of `axes`, the parts of the mesh axes it is split over, major first. A tensor that has only some of the
    /// axes is split as one that has all.
    pub parts: Vec<Vec<SubAxis>>,
    /// The whole rule.
    pub span: Span,
}

/// The tensors a rule holds for.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// Every tensor that has the axes.
    Every,
    /// These parameters, their gradients and optimizer states at rest.
    Params(Vec<ParamId>),
    /// Values of this role.
    Role(String),
    /// Values with these paths.
    Values(Vec<String>),
}

/// Whether the split at rest by `params` rules holds for each kind of tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Parameters.
    pub params: Kept,
    /// Gradients, from their sum over the batch to the update.
    pub grads: Kept,
    /// Optimizer states.
    pub state: Kept,
    /// When parameters that were gathered for use are gathered again.
    pub regather: Regather,
}

/// How a kind of tensor lies at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Split by the by-axis rules and the `params` rules.
    Sharded,
    /// Split by the by-axis rules alone, as it is used.
    Whole,
}

/// When a parameter that lies split at rest is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regather {
    /// In the forward pass, and kept for the backward pass.
    Forward,
    /// In the forward pass and again in the backward pass.
    Backward,
}

/// A part of a mesh axis. An axis of n = before · size · after devices has the coordinate c; that of the part is
/// (c / after) mod size. The whole axis has before = 1 and size = n.
///
/// Source: sub-axes as in Shardy's sharding representation, `"axis":(before)size`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubAxis {
    /// The mesh axis.
    pub axis: String,
    /// Product of the parts before (major to) it.
    pub before: u64,
    /// Its number of devices, > 1.
    pub size: u64,
}

impl Layout {
    /// Number of devices.
    pub fn devices(&self) -> u64 {
        self.mesh.iter().map(|axis| axis.size).product()
    }

    /// A mesh axis by name.
    pub fn axis(&self, name: &str) -> Option<&MeshAxis> {
        self.mesh.iter().find(|axis| axis.name == name)
    }

    /// Coordinates of a rank along the mesh axes, in order.
    pub fn coordinates(&self, rank: u64) -> Vec<u64> {
        let mut rest = rank;
        let mut coordinates: Vec<u64> = self
            .mesh
            .iter()
            .rev()
            .map(|axis| {
                let coordinate = rest % axis.size;
                rest /= axis.size;
                coordinate
            })
            .collect();
        coordinates.reverse();
        coordinates
    }

    /// The rank at these coordinates, one for each mesh axis in order.
    pub fn rank(&self, coordinates: &[u64]) -> u64 {
        self.mesh.iter().zip(coordinates).fold(0, |rank, (axis, at)| rank * axis.size + at)
    }

    /// How many parts the batch is split into: the product of the mesh axes that `batch` is split over.
    pub fn data_shards(&self) -> u64 {
        let rule = self.rules.iter().rev().find(|r| r.scope == Scope::Every && r.axes == ["batch"]);
        let names = rule.map_or(&[][..], |r| &r.mesh);
        names.iter().filter_map(|name| self.axis(name)).map(|axis| axis.size).product()
    }

    /// The split of a parameter where it is used: by the by-axis rules alone.
    pub fn in_use(&self, param: &Param) -> Split {
        let rules = self.rules.iter().filter(|rule| rule.scope == Scope::Every);
        split(rules, |axis| param.axes().any(|a| a.name == axis))
    }

    /// The split of a parameter at rest where its kind of tensor is [`Kept::Sharded`].
    pub fn at_rest(&self, id: ParamId, param: &Param) -> Split {
        let rules = self.rules.iter().filter(|rule| match &rule.scope {
            Scope::Every => true,
            Scope::Params(ids) => ids.contains(&id),
            Scope::Role(_) | Scope::Values(_) => false,
        });
        split(rules, |axis| param.axes().any(|a| a.name == axis))
    }

    /// The split of a value with these axes by the by-axis rules and those that name it.
    pub fn of_value(&self, axes: &[Axis], role: Option<&str>, path: &str) -> Split {
        let rules = self.rules.iter().filter(|rule| rule.scope == Scope::Every || rule.names(role, path));
        split(rules, |axis| axes.iter().any(|a| a.name == axis))
    }
}

/// Tensor axis to what it is split over, major first. Axes that stay whole are absent.
pub type Split = BTreeMap<String, Vec<SubAxis>>;

impl ShardRule {
    /// Whether it is a `role` or `values` rule for a value of this role and path.
    pub fn names(&self, role: Option<&str>, path: &str) -> bool {
        match &self.scope {
            Scope::Every | Scope::Params(_) => false,
            Scope::Role(name) => role == Some(name.as_str()),
            Scope::Values(paths) => paths.iter().any(|p| p == path),
        }
    }
}

/// A rule holds for those of its axes that the tensor has; per axis the last rule wins.
fn split<'a>(rules: impl Iterator<Item = &'a ShardRule>, has: impl Fn(&str) -> bool) -> Split {
    let mut result = Split::new();
    for rule in rules {
        for (axis, parts) in rule.axes.iter().zip(&rule.parts).filter(|(axis, _)| has(axis)) {
            result.insert(axis.clone(), parts.clone());
        }
    }
    result.retain(|_, parts| !parts.is_empty());
    result
}

/// Splits tensor axes of these sizes over mesh axes (name, size), both major first. Each tensor axis takes as many ways as
/// its size allows (the greatest common divisor with what is left of the mesh axis) and goes on to the next mesh axis once
/// one is used up; what it can't take is left to the next tensor axis. `None` if ways are left over at the end.
pub fn split_jointly(sizes: &[u64], mesh: &[(&str, u64)]) -> Option<Vec<Vec<SubAxis>>> {
    // The mesh axis to split over next, and the ways of it that are taken.
    let (mut next, mut before) = (0, 1);
    let mut all = vec![];
    for size in sizes {
        let (mut rest, mut parts) = (*size, vec![]);
        while let Some((axis, whole)) = mesh.get(next) {
            let left = whole / before;
            let ways = gcd(rest, left);
            if ways > 1 {
                parts.push(SubAxis { axis: axis.to_string(), before, size: ways });
            }
            rest /= ways;
            before *= ways;
            if before < *whole {
                break;
            }
            (next, before) = (next + 1, 1);
        }
        all.push(parts);
    }
    (next == mesh.len()).then_some(all)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
