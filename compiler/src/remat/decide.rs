//! What becomes of each value of a loop's body: the last rule that names it, else the preset.
//!
//! 1. Every value has a block path, that of the op that makes it, and a name, without the numbers that keep names apart.
//!    A loop's carry has the path of the block that is repeated. A value that only renames or converts another one goes
//!    by either's name.
//! 2. Rules are tried from the last to the first.
//! 3. What no rule names, the preset decides; `auto` leaves it open.

use crate::graph::{CompositeKind, Graph, MeshOp, Op, OpId, OpNode, RegionId, UnaryOp, ValueId, stem};
use crate::spec::checked::{Remat, RematAction, RematPreset, RematValue};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Saved if it is needed.
    Save,
    /// Saved in the host's memory if it is needed.
    Offload,
    /// Computed again if it is needed.
    Recompute,
}

/// A choice and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the value.
    pub choice: Choice,
    /// Position of the rule; `None` is the preset.
    pub rule: Option<usize>,
}

/// Decisions by value; a value without one is saved unless a few element-wise ops compute it again.
pub type Decisions = BTreeMap<ValueId, Decision>;

/// Decides for the values of all loop bodies.
pub fn decide(graph: &Graph, remat: &Remat) -> Decisions {
    let mut decisions = Decisions::new();
    let mut bodies = graph.executed_regions();
    bodies.remove(0);
    // Inner bodies first: what a loop gives is decided inside it.
    for body in bodies.into_iter().rev() {
        let named = Named::of(graph, body);
        let core =
            if remat.preset == RematPreset::Attn { attention_core(graph, body) } else { BTreeSet::new() };
        for value in named.values() {
            let by_rule = remat.rules.iter().enumerate().rev();
            let by_rule = by_rule.filter(|(_, rule)| rule.values.iter().any(|v| named.is(value, v)));
            let by_rule =
                by_rule.map(|(i, rule)| Decision { choice: choice_of(rule.action), rule: Some(i) }).next();
            let decision = by_rule.or_else(|| {
                let made = named.made_by.get(&value).map(|op| graph.op(*op));
                inner(graph, made, value, &decisions).or_else(|| {
                    let choice = by_preset(remat.preset, made, core.contains(&value))?;
                    Some(Decision { choice, rule: None })
                })
            });
            if let Some(decision) = decision {
                decisions.insert(value, decision);
            }
        }
    }
    decisions
}

fn choice_of(action: RematAction) -> Choice {
    match action {
        RematAction::Recompute => Choice::Recompute,
        RematAction::Keep => Choice::Save,
        RematAction::Offload => Choice::Offload,
    }
}

/// What was decided inside the loop that gives the value.
fn inner(graph: &Graph, made: Option<&OpNode>, value: ValueId, decisions: &Decisions) -> Option<Decision> {
    let node = made?;
    let Op::Loop(l) = &node.op else { return None };
    let at = node.results.iter().position(|r| *r == value)?;
    decisions.get(&graph.region(l.body).results[at]).copied()
}

fn by_preset(preset: RematPreset, made: Option<&OpNode>, in_core: bool) -> Option<Choice> {
    // What an iteration starts from can't be computed in it.
    let Some(node) = made else { return (preset != RematPreset::Auto).then_some(Choice::Save) };
    match preset {
        RematPreset::Auto => None,
        RematPreset::None => Some(Choice::Save),
        RematPreset::Full => Some(Choice::Recompute),
        RematPreset::Dots if is_product(&node.op) => Some(Choice::Save),
        RematPreset::Dots => Some(Choice::Recompute),
        RematPreset::Attn => in_core.then_some(Choice::Recompute),
    }
}

/// Whether an op's results are sums of products: a `dot`, or attention, whose output and normaliser stand for two.
fn is_product(op: &Op) -> bool {
    match op {
        Op::Dot { .. } => true,
        Op::Composite(c) => matches!(c.kind, CompositeKind::Attention(_) | CompositeKind::AttentionGrad(_)),
        _ => false,
    }
}

/// Values of written-out attention between its two products: scores, probabilities and what is computed between them.
///
/// 1. From each product on, follow element-wise ops and reductions up to the next product; note what lies behind an
///    exponential on the way.
/// 2. From each product's operands of that kind, go back to the product they come from.
fn attention_core(graph: &Graph, body: RegionId) -> BTreeSet<ValueId> {
    let ops = &graph.region(body).ops;
    let (mut after_product, mut after_exp) = (BTreeSet::new(), BTreeSet::new());
    for op in ops {
        let node = graph.op(*op);
        let follows = |set: &BTreeSet<ValueId>| node.operands.iter().any(|v| set.contains(v));
        if matches!(node.op, Op::Dot { .. }) {
            after_product.extend(&node.results);
        } else if passes_through(&node.op) && follows(&after_product) {
            after_product.extend(&node.results);
            if matches!(node.op, Op::Unary(UnaryOp::Exp)) || follows(&after_exp) {
                after_exp.extend(&node.results);
            }
        }
    }
    let mut core = BTreeSet::new();
    for op in ops.iter().rev() {
        let node = graph.op(*op);
        if matches!(node.op, Op::Dot { .. }) {
            core.extend(node.operands.iter().copied().filter(|v| after_exp.contains(v)));
        } else if node.results.iter().any(|r| core.contains(r)) {
            core.extend(node.operands.iter().copied().filter(|v| after_product.contains(v)));
        }
    }
    core
}

fn passes_through(op: &Op) -> bool {
    op.is_elementwise() || matches!(op, Op::Broadcast | Op::Rename { .. } | Op::Reduce { .. })
}

/// Names of a loop body's values.
struct Named<'g> {
    graph: &'g Graph,
    body: RegionId,
    /// Path of the repeated block.
    path: String,
    made_by: BTreeMap<ValueId, OpId>,
    /// Values that are one but for names of axes, element type and what rules say of them: each with the first of them.
    same: BTreeMap<ValueId, ValueId>,
}

impl<'g> Named<'g> {
    fn of(graph: &'g Graph, body: RegionId) -> Named<'g> {
        let mut same = BTreeMap::new();
        for op in &graph.region(body).ops {
            let node = graph.op(*op);
            if matches!(node.op, Op::Rename { .. } | Op::Cast | Op::Mesh(MeshOp::Constrain { .. })) {
                let first = *same.get(&node.operands[0]).unwrap_or(&node.operands[0]);
                same.insert(node.results[0], first);
            }
        }
        Named { graph, body, path: repeated_block(graph, body), made_by: graph.definitions(body), same }
    }

    /// The carries and all results, in order.
    fn values(&self) -> Vec<ValueId> {
        let region = self.graph.region(self.body);
        // Which arguments are carries only the loop knows; deciding for the others changes nothing.
        let results = region.ops.iter().flat_map(|op| self.graph.op(*op).results.iter());
        region.args[1..].iter().chain(results).copied().collect()
    }

    /// Whether a rule names the value.
    fn is(&self, value: ValueId, wanted: &RematValue) -> bool {
        match &wanted.name {
            None => {
                let Some(op) = self.made_by.get(&value) else { return false };
                let path = self.graph.op(*op).origin.path.as_str();
                path.strip_prefix(wanted.block.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }
            Some(name) => {
                let first = self.first(value);
                let group = self.same.iter().filter(|(_, f)| **f == first).map(|(v, _)| *v);
                group.chain([first]).any(|v| self.is_called(v, &wanted.block, name))
            }
        }
    }

    fn first(&self, value: ValueId) -> ValueId {
        *self.same.get(&value).unwrap_or(&value)
    }

    fn is_called(&self, value: ValueId, block: &str, name: &str) -> bool {
        let path = match self.made_by.get(&value) {
            Some(op) => self.graph.op(*op).origin.path.as_str(),
            None => self.path.as_str(),
        };
        path == block && stem(self.graph.value_name(value)) == name
    }
}

/// Path of the block a body repeats: what the paths of its ops have in common, up to the last segment that stands for
/// iterations, `layer.{i}`.
fn repeated_block(graph: &Graph, body: RegionId) -> String {
    let paths = graph.region(body).ops.iter().map(|op| &graph.op(*op).origin.path);
    let mut common: Option<Vec<&str>> = None;
    for path in paths.filter(|p| !p.is_empty()) {
        let segments: Vec<&str> = path.split('.').collect();
        common = Some(match common {
            None => segments,
            Some(c) => c.into_iter().zip(segments).take_while(|(a, b)| a == b).map(|(a, _)| a).collect(),
        });
    }
    let mut common = common.unwrap_or_default();
    while common.last().is_some_and(|segment| !segment.starts_with('{')) {
        common.pop();
    }
    common.join(".")
}
