//! What the spec says of the mesh and of what is split over it, in the terms of graphs.

use crate::graph::{Mesh, MeshAxis, Name};
use crate::spec::checked::{Kept, Layout, Model, ParamId, Regather, SubAxis};
use std::collections::{BTreeMap, BTreeSet};

/// Tensor axes with the mesh axes they are split over, coarsest first; axes that stay whole are absent.
pub type Splits = BTreeMap<Name, Vec<Name>>;

/// Everything propagation starts from.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The ranks.
    pub mesh: Mesh,
    /// The rules by tensor axis, for every tensor that has it.
    pub axes: Splits,
    /// Parameters by path.
    pub params: BTreeMap<Name, ParamRule>,
    /// Gradients of several microbatches are added up as terms that are still to be summed over ranks.
    pub whole_grads: bool,
    /// Gathered parameters are kept for the backward pass.
    pub keep_gathered: bool,
}

/// How a parameter lies.
#[derive(Clone, Debug, Default)]
pub struct ParamRule {
    /// Where it is used.
    pub in_use: Splits,
    /// From step to step.
    pub at_rest: Splits,
    /// Its optimizer states, from step to step.
    pub states: Splits,
    /// Where it is updated: the finest of the above, so that no rank repeats another's work.
    pub update: Splits,
}

impl Rules {
    /// The rules of a checked spec.
    pub fn of(layout: &Layout, model: &Model) -> Rules {
        let atoms = Atoms::of(layout);
        let every: Vec<_> =
            layout.rules.iter().filter(|r| r.scope == crate::spec::checked::Scope::Every).collect();
        let mut axes = Splits::new();
        for rule in every {
            for (axis, parts) in rule.axes.iter().zip(&rule.parts) {
                axes.insert(axis.as_str().into(), atoms.of_parts(parts));
            }
        }
        axes.retain(|_, over| !over.is_empty());
        let mut params = BTreeMap::new();
        for (i, param) in model.params.iter().enumerate() {
            let in_use = atoms.splits(&layout.in_use(param));
            let split = atoms.splits(&layout.at_rest(ParamId(i as u32), param));
            let kept = |kept: Kept| if kept == Kept::Sharded { split.clone() } else { in_use.clone() };
            let any = [layout.store.params, layout.store.grads, layout.store.state].contains(&Kept::Sharded);
            let rule = ParamRule {
                at_rest: kept(layout.store.params),
                states: kept(layout.store.state),
                update: if any { split.clone() } else { in_use.clone() },
                in_use,
            };
            params.insert(param.path.as_str().into(), rule);
        }
        Rules {
            mesh: atoms.mesh,
            axes,
            params,
            whole_grads: layout.store.grads == Kept::Whole,
            keep_gathered: layout.store.regather == Regather::Forward,
        }
    }

    /// The mesh axes, of this mesh, that stand for a mesh axis of the spec.
    pub fn atoms_of(layout: &Layout, names: &[String]) -> Vec<Name> {
        let atoms = Atoms::of(layout);
        names.iter().flat_map(|name| atoms.whole(name)).collect()
    }
}

/// Mesh axes cut wherever a joint rule cuts one, so that no later stage deals in parts of axes.
struct Atoms {
    mesh: Mesh,
    /// For each mesh axis of the spec its atoms: (product of the sizes before it, size, name).
    of: BTreeMap<String, Vec<(u64, u64, Name)>>,
}

impl Atoms {
    fn of(layout: &Layout) -> Atoms {
        let mut mesh = Mesh::default();
        let mut of = BTreeMap::new();
        for axis in &layout.mesh {
            let parts = layout.rules.iter().flat_map(|r| r.parts.iter().flatten());
            let mut cuts: BTreeSet<u64> = [1, axis.size].into();
            for part in parts.filter(|part| part.axis == axis.name) {
                cuts.extend([part.before, part.before * part.size]);
            }
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let mut atoms = Vec::new();
            for (i, pair) in cuts.windows(2).enumerate() {
                let name: Name = if cuts.len() == 2 {
                    axis.name.as_str().into()
                } else {
                    format!("{}.{i}", axis.name).into()
                };
                let size = pair[1] / pair[0];
                mesh.axes.push(MeshAxis { name: name.clone(), size, over_nodes: axis.over_nodes });
                atoms.push((pair[0], size, name));
            }
            of.insert(axis.name.clone(), atoms);
        }
        Atoms { mesh, of }
    }

    fn whole(&self, axis: &str) -> Vec<Name> {
        self.of.get(axis).into_iter().flatten().map(|(_, _, name)| name.clone()).collect()
    }

    fn of_parts(&self, parts: &[SubAxis]) -> Vec<Name> {
        let inside = |part: &SubAxis| {
            let range = part.before..part.before * part.size;
            let atoms = self.of.get(&part.axis).into_iter().flatten();
            atoms.filter(move |(before, _, _)| range.contains(before)).map(|(_, _, name)| name.clone())
        };
        parts.iter().flat_map(inside).collect()
    }

    fn splits(&self, split: &crate::spec::checked::Split) -> Splits {
        split.iter().map(|(axis, parts)| (axis.as_str().into(), self.of_parts(parts))).collect()
    }
}
