//! How a run is laid out over devices: the mesh, the rules that split tensors over it, and what lies split at rest.

use super::*;
use std::collections::BTreeSet;

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
    /// What becomes of choices that the rules leave.
    pub mode: ShardMode,
    /// Globs of values, and of blocks with all that is in them, that may be gathered whole on their way from one split to
    /// another.
    pub replicable: Vec<String>,
    /// Paths of all values that rules can name.
    pub paths: Vec<String>,
}

/// What becomes of choices that the rules leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardMode {
    /// The cheapest is taken.
    Auto,
    /// They are errors: where a value of the forward pass is sent elsewhere without a rule, or rules contend for a mesh axis.
    Strict,
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

impl Store {
    /// Keys of the section with their words.
    pub fn keys(&self) -> [(&'static str, &'static str); 4] {
        let word = |kept| if kept == Kept::Sharded { "sharded" } else { "whole" };
        let regather = if self.regather == Regather::Backward { "backward" } else { "forward" };
        [
            ("params", word(self.params)),
            ("grads", word(self.grads)),
            ("state", word(self.state)),
            ("regather", regather),
        ]
    }
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

    /// What rules make of a parameter where it is used: the by-axis rules alone.
    pub fn rules_in_use(&self, param: &Param) -> Vec<Won<'_>> {
        let rules = self.rules.iter().filter(|rule| rule.scope == Scope::Every);
        winners(rules, |axis| param.axes().any(|a| a.name == axis))
    }

    /// What rules make of a parameter at rest, for kinds of tensors that are [`Kept::Sharded`].
    pub fn rules_at_rest(&self, id: ParamId, param: &Param) -> Vec<Won<'_>> {
        let rules = self.rules.iter().filter(|rule| match &rule.scope {
            Scope::Every => true,
            Scope::Params(ids) => ids.contains(&id),
            Scope::Role(_) | Scope::Values(_) => false,
        });
        winners(rules, |axis| param.axes().any(|a| a.name == axis))
    }

    /// What the by-axis rules and those that name it make of a value with these axes.
    pub fn rules_of_value(&self, axes: &[Axis], role: Option<&str>, path: &str) -> Vec<Won<'_>> {
        let rules = self.rules.iter().filter(|rule| rule.scope == Scope::Every || rule.names(role, path));
        winners(rules, |axis| axes.iter().any(|a| a.name == axis))
    }
}

impl Layout {
    /// The split of a parameter where it is used: by the by-axis rules alone.
    pub fn in_use(&self, param: &Param) -> Split {
        split(&self.rules_in_use(param))
    }

    /// The split of a parameter at rest where its kind of tensor is [`Kept::Sharded`].
    pub fn at_rest(&self, id: ParamId, param: &Param) -> Split {
        split(&self.rules_at_rest(id, param))
    }

    /// The mesh axes, cut wherever a rule cuts one, in order; those of one device are left out. No rule splits a part of one.
    pub fn atoms(&self) -> Vec<Atom> {
        let mut atoms = vec![];
        for axis in &self.mesh {
            let parts = self.rules.iter().flat_map(|rule| rule.parts.iter().flatten());
            let mut cuts: BTreeSet<u64> = [1, axis.size].into();
            for part in parts.filter(|part| part.axis == axis.name) {
                cuts.extend([part.before, part.before * part.size]);
            }
            let cuts: Vec<u64> = cuts.into_iter().collect();
            for (i, cut) in cuts.windows(2).enumerate() {
                let whole = cuts.len() == 2;
                let name = if whole { axis.name.clone() } else { format!("{}.{i}", axis.name) };
                let part = SubAxis { axis: axis.name.clone(), before: cut[0], size: cut[1] / cut[0] };
                atoms.push(Atom { name, part, over_nodes: axis.over_nodes });
            }
        }
        atoms
    }

    /// Names of the atoms that parts of mesh axes consist of, in order.
    pub fn atoms_of(&self, parts: &[SubAxis]) -> Vec<String> {
        let atoms = self.atoms();
        let within = |part: &SubAxis| {
            let inside = atoms.iter().filter(|atom| atom.part.overlaps(part));
            inside.map(|atom| atom.name.clone()).collect::<Vec<_>>()
        };
        parts.iter().flat_map(within).collect()
    }
}

/// What rules for roles and values say of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// Tensor axis to the names of the [`Atom`]s it is split over, major first; none for an axis that stays whole.
    pub split: BTreeMap<String, Vec<String>>,
    /// The last rule among those that won an axis.
    pub span: Span,
}

/// A part of a mesh axis that no rule cuts further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atom {
    /// The axis's name; `tensor.0`, `tensor.1` and so on, coarsest first, where rules cut it.
    pub name: String,
    /// The part.
    pub part: SubAxis,
    /// Whether neighbours along it are on different machines.
    pub over_nodes: bool,
}

/// Tensor axis to what it is split over, major first. Axes that stay whole are absent.
pub type Split = BTreeMap<String, Vec<SubAxis>>;

fn split(won: &[Won<'_>]) -> Split {
    let split = won.iter().filter(|w| !w.parts.is_empty());
    split.map(|w| (w.axis.to_string(), w.parts.to_vec())).collect()
}

/// A tensor axis with the rule that won it.
#[derive(Clone, Copy, Debug)]
pub struct Won<'a> {
    /// The tensor axis.
    pub axis: &'a str,
    /// What it is split over, major first; empty if it stays whole.
    pub parts: &'a [SubAxis],
    /// The last rule that names it.
    pub rule: &'a ShardRule,
}

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

impl SubAxis {
    /// Whether two parts are of one mesh axis and share some of its ways.
    pub fn overlaps(&self, other: &SubAxis) -> bool {
        let ends_before = |a: &SubAxis, b: &SubAxis| a.before * a.size <= b.before;
        self.axis == other.axis && !ends_before(self, other) && !ends_before(other, self)
    }
}

/// A rule holds for those of its axes that the tensor has; per axis the last rule wins. In order of names.
fn winners<'a>(rules: impl Iterator<Item = &'a ShardRule>, has: impl Fn(&str) -> bool) -> Vec<Won<'a>> {
    let mut won = BTreeMap::new();
    for rule in rules {
        for (axis, parts) in rule.axes.iter().zip(&rule.parts).filter(|(axis, _)| has(axis)) {
            won.insert(axis.as_str(), Won { axis, parts, rule });
        }
    }
    won.into_values().collect()
}

/// Splits tensor axes of these sizes over mesh axes (name, size), both major first. Each tensor axis takes of each mesh axis
/// as many ways as its size allows, the greatest common divisor of what is left of both; the rest is left to the next
/// tensor axis. `None` if ways are left over at the end, which is so just where the product of the sizes is not a multiple
/// of that of the mesh.
pub fn split_jointly(sizes: &[u64], mesh: &[(&str, u64)]) -> Option<Vec<Vec<SubAxis>>> {
    let mut taken = vec![1; mesh.len()];
    let mut all = vec![];
    for size in sizes {
        let (mut rest, mut parts) = (*size, vec![]);
        for ((axis, whole), before) in mesh.iter().zip(&mut taken) {
            let ways = gcd(rest, whole / *before);
            if ways > 1 {
                parts.push(SubAxis { axis: axis.to_string(), before: *before, size: ways });
            }
            rest /= ways;
            *before *= ways;
        }
        all.push(parts);
    }
    mesh.iter().zip(&taken).all(|((_, whole), taken)| whole == taken).then_some(all)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
