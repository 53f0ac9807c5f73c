//! What the spec says of the mesh and of what is split over it, in the terms of graphs.

use crate::cost::Target;
use crate::graph::{DType, Mesh, MeshAxis, Name};
use crate::spec::checked::{Atom, Kept, Layout, Model, ParamId, Regather, ShardMode, Split, SubAxis};
use std::collections::BTreeMap;

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
    /// Parameters that the forward pass has gathered are kept for the backward pass.
    pub keep_gathered: bool,
    /// Element type in which terms of sums of products travel between ranks, if not their own.
    pub wire: Option<DType>,
    /// Gradients of several microbatches are added up as terms, which are summed over ranks after the last one.
    pub whole_grads: bool,
    /// What moving and computing cost.
    pub machine: Target,
    /// Globs of values and blocks that may be gathered whole on their way from one split to another.
    pub replicable: Vec<String>,
    /// Choices that the rules leave are conflicts.
    pub strict: bool,
    /// Paths of values that rules can name, for messages.
    pub paths: Vec<String>,
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
    /// The rules of a checked spec, for a CPU.
    pub fn of(layout: &Layout, model: &Model) -> Rules {
        let splits = |split: &Split| -> Splits {
            split.iter().map(|(axis, parts)| (axis.as_str().into(), atoms_of(layout, parts))).collect()
        };
        let every: Vec<_> =
            layout.rules.iter().filter(|r| r.scope == crate::spec::checked::Scope::Every).collect();
        let mut axes = Splits::new();
        for rule in every {
            for (axis, parts) in rule.axes.iter().zip(&rule.parts) {
                axes.insert(axis.as_str().into(), atoms_of(layout, parts));
            }
        }
        axes.retain(|_, over| !over.is_empty());
        let mut params = BTreeMap::new();
        for (i, param) in model.params.iter().enumerate() {
            let in_use = splits(&layout.in_use(param));
            let split = splits(&layout.at_rest(ParamId(i as u32), param));
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
            mesh: mesh(layout),
            axes,
            params,
            keep_gathered: layout.store.regather == Regather::Forward,
            wire: None,
            whole_grads: layout.store.grads == Kept::Whole,
            replicable: layout.replicable.clone(),
            strict: layout.mode == ShardMode::Strict,
            paths: layout.paths.clone(),
            machine: Target::default(),
        }
    }
}

/// The mesh, its axes cut wherever a joint rule cuts one, so that no later stage deals in parts of axes.
fn mesh(layout: &Layout) -> Mesh {
    let axis = |atom: Atom| MeshAxis {
        name: atom.name.as_str().into(),
        size: atom.part.size,
        over_nodes: atom.over_nodes,
    };
    Mesh { axes: layout.atoms().into_iter().map(axis).collect() }
}

fn atoms_of(layout: &Layout, parts: &[SubAxis]) -> Vec<Name> {
    layout.atoms_of(parts).iter().map(|name| name.as_str().into()).collect()
}
