//! What always holds of a graph, checked between any two passes.
//!
//! * Ids are in range. Every region belongs to exactly one op (the body to none), so regions form a tree.
//! * Every value is defined once, as a region's argument or an op's result; operands and region results are defined
//!   earlier in the same region. Names of values are unique.
//! * Types are sound: no axis twice, no size 0, at most 2^50 elements. The types of every op's results follow from
//!   [`shape::infer`], and its operands' element types suit it (functions of floats on floats, `and` on bool, …).
//! * Attributes are sound: axes named once each and present, no empty list of axes, a loop's region starts with its
//!   index, ids have an i32 input.
//! * Sources (`input`, `param`, `state`, `scalar`) stand in the body only, each name once; a state's parameter exists and
//!   has axes of its. Regions of attention scores are element-wise and scalar throughout; a meaning or an update contains no
//!   update.
//! * An update's results have the types of its parameter and states.
//! * The body has no arguments and one output per result, each once; what is stored has the type of its source.
//! * What lies in the host's memory is stacked, taken in by loops and brought back, and nothing else.
//! * The stage allows the op, see [`Stage`].
//!
//! All violations are collected, and printed each under the line of IR it is about. A violation is a bug of the compiler,
//! never news for the user.

use super::print::{Lines, print_lines};
use super::shape::{self, op_name, show};
use super::{
    Attention, BinaryOp, CompareOp, Composite, CompositeKind, DType, Graph, Loop, MeshOp, Name, Op, OpId,
    OpNode, Output, Phase, RegionId, Space, Type, UnaryOp, Update, ValueId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How far the graph has come; decides which ops may appear.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// The forward computation: no optimizer states, no updates, no gradients of composites.
    Graph,
    /// Forward, backward and update: a loss head has become its loop.
    Training,
    /// Every value lies on the mesh in a known way; where that changes, there is a reshard.
    Sharded,
    /// What one rank computes, with collectives between ranks.
    Spmd,
    /// Ready to be lowered: of the composites only attention and its gradient are left.
    Fused,
    /// A piece of text standing for itself: everything goes.
    Any,
}

impl Stage {
    /// Name in text.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Graph => "graph",
            Stage::Training => "training",
            Stage::Sharded => "sharded",
            Stage::Spmd => "spmd",
            Stage::Fused => "fused",
            Stage::Any => "any",
        }
    }

    fn allows(self, op: &Op) -> bool {
        let graph = matches!(self, Stage::Graph | Stage::Any);
        let fused = self == Stage::Fused;
        match op {
            Op::State { .. } | Op::Update(_) => self != Stage::Graph,
            Op::Composite(c) => match c.kind {
                CompositeKind::Softmax { .. }
                | CompositeKind::RmsNorm { .. }
                | CompositeKind::LayerNorm { .. }
                | CompositeKind::Rope { .. }
                | CompositeKind::CrossEntropy { .. } => !fused,
                CompositeKind::Attention(_) => true,
                CompositeKind::AttentionGrad(_) => self != Stage::Graph,
                CompositeKind::LossHead(_) => graph,
                CompositeKind::Custom(_) => true,
                CompositeKind::GroupedDot { .. } | CompositeKind::GroupedOuter { .. } => true,
            },
            Op::Input { .. }
            | Op::Param { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
            | Op::Index { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast
            | Op::Broadcast
            | Op::Rename { .. }
            | Op::Reduce { .. }
            | Op::Dot { .. }
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::CumSum { .. }
            | Op::RotatePairs { .. }
            | Op::Transfer { .. }
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Loop(_) => true,
            Op::Mesh(op) => match op {
                MeshOp::Constrain { .. } => matches!(self, Stage::Graph | Stage::Training | Stage::Any),
                MeshOp::Reshard { .. } => matches!(self, Stage::Sharded | Stage::Any),
                MeshOp::Collective(_) | MeshOp::LocalPart { .. } => {
                    matches!(self, Stage::Spmd | Stage::Fused | Stage::Any)
                }
            },
        }
    }
}

/// What a violation is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The graph as a whole.
    Graph,
    /// An op.
    Op(OpId),
    /// An argument of a region.
    Arg(RegionId, usize),
    /// A result of a region.
    Result(RegionId, usize),
}

/// One broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Where.
    pub place: Place,
    /// One sentence.
    pub message: String,
}

/// Every rule a graph breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyError {
    /// In the order of the text.
    pub violations: Vec<Violation>,
    /// The graph's text with each violation under its line.
    pub text: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.violations.len();
        writeln!(f, "the compiler made an ill-formed graph ({n} violations; a bug in mlc, not in the spec)")?;
        f.write_str(&self.text)
    }
}

impl std::error::Error for VerifyError {}

/// Checks everything this module lists.
///
/// # Errors
/// All violations, with the annotated text.
pub fn verify(graph: &Graph, stage: Stage) -> Result<(), VerifyError> {
    let mut verifier = Verifier {
        graph,
        stage,
        violations: Vec::new(),
        owners: BTreeSet::new(),
        defined: BTreeSet::new(),
        names: BTreeMap::new(),
        sources: BTreeSet::new(),
        params: BTreeMap::new(),
    };
    verifier.body();
    if verifier.violations.is_empty() {
        verifier.spaces();
    }
    if verifier.violations.is_empty() {
        return Ok(());
    }
    let lines = print_lines(graph);
    let mut violations = verifier.violations;
    violations.sort_by_key(|v| line_of(&lines, v.place));
    let text = annotated(&lines, &violations);
    Err(VerifyError { violations, text })
}

fn line_of(lines: &Lines, place: Place) -> usize {
    match place {
        Place::Graph => Some(0),
        Place::Op(op) => lines.ops.get(&op).copied(),
        Place::Arg(region, i) => lines.args.get(&(region, i)).copied(),
        Place::Result(region, i) => lines.results.get(&(region, i)).copied(),
    }
    .unwrap_or(0)
}

fn annotated(lines: &Lines, violations: &[Violation]) -> String {
    let mut out = String::new();
    for (i, line) in lines.text.lines().enumerate() {
        out.push_str(line);
        out.push('\n');
        let indent = &line[..line.len() - line.trim_start().len()];
        for violation in violations.iter().filter(|v| line_of(lines, v.place) == i) {
            out.push_str(&format!("{indent}; error: {}\n", violation.message));
        }
    }
    out
}

/// Where a region stands, for what may be in it.
#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Body,
    Loop,
    Meaning,
    /// Element-wise ops only.
    Update,
    /// Element-wise ops on scalars only.
    Score,
}

struct Verifier<'a> {
    graph: &'a Graph,
    stage: Stage,
    violations: Vec<Violation>,
    /// Regions met so far.
    owners: BTreeSet<RegionId>,
    /// Values met so far, in any region.
    defined: BTreeSet<ValueId>,
    names: BTreeMap<Name, ValueId>,
    /// Sources met so far, by what they read.
    sources: BTreeSet<String>,
    params: BTreeMap<Name, Type>,
}

impl Verifier<'_> {
    fn report(&mut self, place: Place, message: impl Into<String>) {
        self.violations.push(Violation { place, message: message.into() });
    }

    fn body(&mut self) {
        let graph = self.graph;
        let Some(body) = graph.regions.get(graph.body.index()) else {
            return self.report(Place::Graph, "the graph has no body");
        };
        if !body.args.is_empty() {
            self.report(Place::Graph, "the body has arguments; sources are ops");
        }
        if body.results.len() != graph.outputs.len() {
            let (results, outputs) = (body.results.len(), graph.outputs.len());
            self.report(Place::Graph, format!("the body has {results} results and {outputs} outputs"));
        }
        self.region(graph.body, Inside::Body, Place::Graph);
        let mut seen = BTreeSet::new();
        for (i, (output, value)) in graph.outputs.iter().zip(&body.results).enumerate() {
            if !seen.insert(output) {
                self.report(Place::Result(graph.body, i), format!("{output:?} is returned twice"));
            }
            self.stored(i, output, *value);
        }
    }

    /// Nothing computes on what lies in the host's memory.
    fn spaces(&mut self) {
        let graph = self.graph;
        let host = graph.host_values();
        for op in graph.executed_regions().into_iter().flat_map(|r| &graph.region(r).ops) {
            let node = graph.op(*op);
            let first_allowed = match node.op.as_loop() {
                Some(l) => l.carries,
                None if node.op == (Op::Transfer { to: Space::Device }) => 0,
                None => node.operands.len(),
            };
            for value in node.operands[..first_allowed].iter().filter(|v| host.contains(v)) {
                let name = graph.value_name(*value);
                self.report(
                    Place::Op(*op),
                    format!("%{name} lies in the host's memory; `to_device` brings it back"),
                );
            }
        }
        for (i, value) in graph.region(graph.body).results.iter().enumerate() {
            if host.contains(value) {
                self.report(Place::Result(graph.body, i), "a result lies in the host's memory");
            }
        }
    }

    /// A stored parameter keeps its type.
    fn stored(&mut self, i: usize, output: &Output, value: ValueId) {
        if let Output::Store(path) = output
            && let Some(ty) = self.params.get(path)
            && let Some(new) = self.graph.values.get(value.index())
            && !new.ty.same_as(ty)
        {
            let message = format!("{path} is {}, what is stored {}", show(ty), show(&new.ty));
            self.report(Place::Result(self.graph.body, i), message);
        }
    }

    /// Checks a region and everything in it; `owner` is where complaints about the region itself go.
    fn region(&mut self, id: RegionId, inside: Inside, owner: Place) {
        let graph = self.graph;
        let Some(region) = graph.regions.get(id.index()) else {
            return self.report(owner, format!("{id} does not exist"));
        };
        if !self.owners.insert(id) {
            return self.report(owner, format!("{id} belongs to two ops"));
        }
        let mut local = BTreeSet::new();
        for (i, arg) in region.args.iter().enumerate() {
            self.define(*arg, Place::Arg(id, i), &mut local);
        }
        for op in &region.ops {
            match graph.ops.get(op.index()) {
                Some(node) => self.op(*op, node, inside, &mut local),
                None => self.report(owner, format!("{op} does not exist")),
            }
        }
        for (i, value) in region.results.iter().enumerate() {
            if !local.contains(value) {
                let message = format!("{} is not defined in this region", self.shown(*value));
                self.report(Place::Result(id, i), message);
            }
        }
        if inside == Inside::Score {
            self.scalars_only(id);
        }
    }

    fn shown(&self, value: ValueId) -> String {
        match self.graph.values.get(value.index()) {
            Some(v) => format!("%{}", v.name),
            None => format!("{value}, which does not exist,"),
        }
    }

    fn define(&mut self, value: ValueId, place: Place, local: &mut BTreeSet<ValueId>) {
        let graph = self.graph;
        let Some(info) = graph.values.get(value.index()) else {
            return self.report(place, format!("{value} does not exist"));
        };
        if !self.defined.insert(value) {
            self.report(place, format!("%{} is defined twice", info.name));
        }
        if self.names.insert(info.name.clone(), value).is_some_and(|other| other != value) {
            self.report(place, format!("two values are called %{}", info.name));
        }
        if let Some(message) = unsound(&info.ty) {
            self.report(place, message);
        }
        local.insert(value);
    }

    fn op(&mut self, id: OpId, node: &OpNode, inside: Inside, local: &mut BTreeSet<ValueId>) {
        let place = Place::Op(id);
        let mut sound = true;
        for operand in &node.operands {
            if !local.contains(operand) {
                let message =
                    format!("{} is not defined before this line in its region", self.shown(*operand));
                self.report(place, message);
                sound = false;
            }
        }
        for region in self.graph.regions_of(&node.op) {
            sound &= self.graph.regions.get(region.index()).is_some();
        }
        self.regions(id, node);
        for result in &node.results {
            sound &= self.graph.values.get(result.index()).is_some();
            self.define(*result, place, local);
        }
        self.placed(place, node, inside);
        if sound {
            self.typed(place, node);
            self.attributes(place, node);
        }
    }

    fn regions(&mut self, id: OpId, node: &OpNode) {
        let place = Place::Op(id);
        match &node.op {
            Op::Loop(l) => self.region(l.body, Inside::Loop, place),
            Op::Composite(c) => {
                self.region(c.meaning, Inside::Meaning, place);
                if let CompositeKind::Attention(a) | CompositeKind::AttentionGrad(a) = &c.kind {
                    self.region(a.score, Inside::Score, place);
                }
            }
            Op::Update(u) => self.region(u.body, Inside::Update, place),
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
            | Op::Index { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast
            | Op::Broadcast
            | Op::Rename { .. }
            | Op::Reduce { .. }
            | Op::Dot { .. }
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::CumSum { .. }
            | Op::RotatePairs { .. }
            | Op::Transfer { .. }
            | Op::Mesh(_)
            | Op::Slice { .. }
            | Op::Concat { .. } => {}
        }
    }

    /// Whether the op may stand in this region and at this stage.
    fn placed(&mut self, place: Place, node: &OpNode, inside: Inside) {
        let name = op_name(&node.op);
        if !self.stage.allows(&node.op) {
            self.report(place, format!("{name} does not appear at stage {}", self.stage.name()));
        }
        let backward =
            matches!(node.origin.phase, Phase::BackwardInput | Phase::BackwardWeight | Phase::Update);
        if self.stage == Stage::Graph && backward {
            self.report(place, "every op at stage graph is of phase forward");
        }
        let (is_source, is_elementwise) = match &node.op {
            Op::Input { .. } | Op::Param { .. } | Op::State { .. } | Op::Scalar { .. } => (true, false),
            Op::Const(_) | Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast => {
                (false, true)
            }
            Op::Index { .. }
            | Op::Broadcast
            | Op::Rename { .. }
            | Op::Reduce { .. }
            | Op::Dot { .. }
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::CumSum { .. }
            | Op::RotatePairs { .. }
            | Op::Transfer { .. }
            | Op::Mesh(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Loop(_)
            | Op::Composite(_)
            | Op::Update(_) => (false, false),
        };
        match inside {
            Inside::Body => {}
            Inside::Loop | Inside::Meaning | Inside::Update if is_source => {
                self.report(place, format!("{name} stands in the body only"));
            }
            Inside::Meaning if matches!(node.op, Op::Update(_)) => {
                self.report(place, "a meaning has no updates");
            }
            Inside::Update if matches!(node.op, Op::Update(_)) => {
                self.report(place, "an update has no updates");
            }
            Inside::Score if !is_elementwise => {
                self.report(place, format!("{name} is not element-wise"));
            }
            Inside::Loop | Inside::Meaning | Inside::Update | Inside::Score => {}
        }
    }

    fn typed(&mut self, place: Place, node: &OpNode) {
        let graph = self.graph;
        let results: Vec<&Type> = node.results.iter().map(|v| graph.ty(*v)).collect();
        if results.iter().any(|ty| unsound(ty).is_some()) {
            return;
        }
        let inferred = match shape::infer(graph, &node.op, &node.operands, results.first().copied()) {
            Ok(types) => types,
            Err(e) => return self.report(place, e.message),
        };
        if inferred.len() != results.len() {
            let name = op_name(&node.op);
            return self
                .report(place, format!("{name} has {} results, not {}", inferred.len(), results.len()));
        }
        for (value, (ty, written)) in node.results.iter().zip(inferred.iter().zip(results)) {
            if !ty.same_as(written) {
                let shown = self.shown(*value);
                self.report(place, format!("{shown} is {}, not {}", show(ty), show(written)));
            }
        }
        let types: Vec<&Type> = node.operands.iter().map(|v| graph.ty(*v)).collect();
        if let Some(message) = dtype_unfit(&node.op, &types) {
            self.report(place, message);
        }
    }

    /// What types alone don't say.
    fn attributes(&mut self, place: Place, node: &OpNode) {
        let graph = self.graph;
        let Some(ty) = node.results.first().map(|v| graph.ty(*v)) else { return };
        match &node.op {
            Op::Input { name, bound } => {
                self.source(place, format!("input {name}"));
                if *bound > 0 && ty.dtype != DType::I32 {
                    self.report(place, format!("ids are i32, not {}", show(ty)));
                }
            }
            Op::Param { path, .. } => {
                self.source(place, format!("parameter {path}"));
                self.params.insert(path.clone(), ty.clone());
            }
            Op::State { param, kind } => {
                self.source(place, format!("state {param}.{kind}"));
                self.state_of(place, param, ty);
            }
            Op::Scalar { key, .. } => self.source(place, format!("scalar {key}")),
            Op::Rename { pairs } => {
                let from: Vec<Name> = pairs.iter().map(|p| p.0.clone()).collect();
                self.axis_list(place, &from, "renamed");
            }
            Op::Reduce { axes, .. } => self.axis_list(place, axes, "reduced"),
            Op::Dot { over } if over.is_empty() => {}
            Op::Dot { over } => self.axis_list(place, over, "contracted"),
            Op::Loop(l) => self.looped(place, l),
            Op::Composite(c) => self.composite(place, node, c),
            Op::Update(u) => self.update(place, node, u),
            Op::Const(_)
            | Op::Index { .. }
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast
            | Op::Broadcast
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::CumSum { .. }
            | Op::RotatePairs { .. }
            | Op::Transfer { .. }
            | Op::Mesh(_)
            | Op::Slice { .. }
            | Op::Concat { .. } => {}
        }
    }

    fn state_of(&mut self, place: Place, param: &Name, ty: &Type) {
        // A rank may hold smaller parts of a state than of its parameter.
        let parts = !self.graph.mesh.axes.is_empty();
        match self.params.get(param) {
            None => self.report(place, format!("the parameter {param} is not defined before its state")),
            Some(of) if ty.axes.iter().any(|a| !(of.axes.contains(a) || parts && of.has(&a.name))) => {
                let message = format!("the parameter {param} is {}", show(of));
                self.report(place, message);
            }
            Some(_) => {}
        }
    }

    fn source(&mut self, place: Place, what: String) {
        if !self.sources.insert(what.clone()) {
            self.report(place, format!("{what} is read by two ops"));
        }
    }

    fn axis_list(&mut self, place: Place, axes: &[Name], what: &str) {
        let distinct: BTreeSet<&Name> = axes.iter().collect();
        if axes.is_empty() {
            self.report(place, format!("no axis is {what}"));
        } else if distinct.len() < axes.len() {
            self.report(place, format!("an axis is {what} twice"));
        }
    }

    fn looped(&mut self, place: Place, l: &Loop) {
        let body = self.graph.region(l.body);
        for sum in body.results.iter().skip(l.carries + l.stacked_outs) {
            if self.graph.values.get(sum.index()).is_some_and(|v| v.ty.dtype == DType::Bf16) {
                let shown = self.shown(*sum);
                self.report(
                    place,
                    format!("{shown} of bf16 is summed over iterations; cast it to f32 first"),
                );
            }
        }
        let args = &body.args;
        let is_index = |v: &ValueId| self.graph.values.get(v.index()).is_some_and(|v| v.ty == index_type());
        if !args.first().is_some_and(is_index) {
            self.report(place, "a loop's region begins with its index, i32[]");
        }
        if l.block == Some(0) {
            self.report(place, "a block has at least one element");
        }
        if l.microbatches && (l.block.is_none() || l.carries > 0 || l.stacked_outs > 0) {
            self.report(place, "microbatches are blocks of the batch, and all they give is added up");
        }
    }

    /// Axes and counts of each kind; types follow from the region.
    fn composite(&mut self, place: Place, node: &OpNode, c: &Composite) {
        let (operands, results) = (node.operands.len(), node.results.len());
        let (takes, gives, axis) = match &c.kind {
            CompositeKind::Softmax { axis } => (1..=1, 1, Some(axis)),
            CompositeKind::RmsNorm { axis, .. } => (2..=2, 2, Some(axis)),
            CompositeKind::LayerNorm { axis, .. } => (3..=3, 3, Some(axis)),
            CompositeKind::Rope { axis, .. } => (2..=2, 1, Some(axis)),
            CompositeKind::CrossEntropy { axis } => (2..=2, 2, Some(axis)),
            CompositeKind::Attention(_) => (3..=usize::MAX, 2, None),
            CompositeKind::AttentionGrad(a) => (6..=usize::MAX, 3 + a.learned.len(), None),
            CompositeKind::LossHead(_) => (3..=4, 1, None),
            CompositeKind::Custom(k) => (1..=usize::MAX, k.arguments.len().saturating_sub(operands), None),
            CompositeKind::GroupedDot { row, .. } | CompositeKind::GroupedOuter { row, .. } => {
                (3..=3, 1, Some(row))
            }
        };
        if !takes.contains(&operands) || results != gives {
            let name = op_name(&node.op);
            return self.report(place, format!("{name} has {operands} operands and {results} results"));
        }
        let first = self.graph.ty(node.operands[0]).clone();
        if let Some(axis) = axis
            && !first.has(axis)
        {
            self.report(place, format!("{} has no axis {axis}", show(&first)));
        }
        match &c.kind {
            CompositeKind::Attention(a) => self.attention(place, node, a, operands - 3, 1),
            CompositeKind::AttentionGrad(a) => {
                self.attention(place, node, a, operands - 6, 2 + a.learned.len());
            }
            CompositeKind::LossHead(h) => {
                self.axis_list(place, &h.over, "contracted");
                for (axis, chunk) in &h.chunks {
                    if !first.size_of(axis).is_some_and(|n| *chunk > 0 && n % chunk == 0) {
                        let message = format!("chunks of {chunk} don't divide {axis} of {}", show(&first));
                        self.report(place, message);
                    }
                }
            }
            CompositeKind::GroupedDot { row, tile, .. } | CompositeKind::GroupedOuter { row, tile, .. } => {
                let owner = self.graph.ty(node.operands[2]).clone();
                let divides = owner.size_of(row).is_some_and(|n| *tile > 0 && n.is_multiple_of(*tile));
                if owner.dtype != DType::I32 || !divides {
                    let message = format!("{} is no i32 in tiles of {tile} along {row}", show(&owner));
                    self.report(place, message);
                }
            }
            CompositeKind::Softmax { .. }
            | CompositeKind::RmsNorm { .. }
            | CompositeKind::LayerNorm { .. }
            | CompositeKind::Rope { .. }
            | CompositeKind::CrossEntropy { .. } => {}
            CompositeKind::Custom(k) => {
                for (argument, value) in k.arguments.iter().zip(node.operands.iter().chain(&node.results)) {
                    let ty = self.graph.ty(*value).clone();
                    if argument.axes.len() != ty.axes.len() || !argument.axes.iter().all(|a| ty.has(a)) {
                        let message = format!("the argument {} is {}", argument.name, show(&ty));
                        self.report(place, message);
                    }
                }
            }
        }
    }

    /// Position axes are where they belong, and the score region takes q·k, the two positions and the extras.
    fn attention(&mut self, place: Place, node: &OpNode, a: &Attention, extras: usize, scores: usize) {
        let graph = self.graph;
        self.axis_list(place, &a.over, "contracted");
        for (operand, axis) in [(0, &a.query), (1, &a.key), (2, &a.key)] {
            let ty = graph.ty(node.operands[operand]);
            if !ty.has(axis) {
                self.report(place, format!("{} has no axis {axis}", show(ty)));
            }
        }
        let ascends = a.learned.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascends
            || a.learned.last().is_some_and(|last| *last >= extras)
            || (scores == 1 && !a.learned.is_empty())
        {
            self.report(place, format!("{:?} are not places of {extras} extras to learn", a.learned));
        }
        let score = graph.region(a.score);
        let known = |v: &&ValueId| graph.values.get(v.index()).is_some();
        let args: Vec<DType> = score.args.iter().filter(known).map(|v| graph.ty(*v).dtype).collect();
        let q = graph.ty(node.operands[0]).dtype;
        let mut expected = vec![shape::sum_dtype(q), DType::I32, DType::I32];
        expected.extend(node.operands[3..3 + extras].iter().map(|v| graph.ty(*v).dtype));
        if args != expected || score.results.len() != scores {
            self.report(
                place,
                format!(
                    "the score region takes {args:?} and gives {}, not {expected:?} and {scores}",
                    score.results.len()
                ),
            );
        }
    }

    fn update(&mut self, place: Place, node: &OpNode, u: &Update) {
        let graph = self.graph;
        let states = u.states.len();
        if node.operands.len() < 2 + states || node.results.len() != 1 + states {
            let (takes, gives) = (node.operands.len(), node.results.len());
            return self
                .report(place, format!("an update with {states} states takes {takes} and gives {gives}"));
        }
        let olds = std::iter::once(node.operands[0]).chain(node.operands[2..2 + states].iter().copied());
        for (old, new) in olds.zip(&node.results) {
            if !graph.ty(old).same_as(graph.ty(*new)) {
                let (old, new) = (show(graph.ty(old)), show(graph.ty(*new)));
                self.report(place, format!("an update turns {old} into {new}"));
            }
        }
    }

    fn scalars_only(&mut self, id: RegionId) {
        let graph = self.graph;
        let region = graph.region(id);
        for (i, arg) in region.args.iter().enumerate() {
            if graph.values.get(arg.index()).is_some_and(|v| !v.ty.axes.is_empty()) {
                self.report(Place::Arg(id, i), "a score region is a function of scalars");
            }
        }
    }
}

fn index_type() -> Type {
    Type::scalar(DType::I32)
}

/// What is wrong with a type, whatever it belongs to.
fn unsound(ty: &Type) -> Option<String> {
    for (i, axis) in ty.axes.iter().enumerate() {
        if axis.size == 0 {
            return Some(format!("axis {} has size 0", axis.name));
        }
        if ty.axes[..i].iter().any(|a| a.name == axis.name) {
            return Some(format!("axis {} appears twice", axis.name));
        }
    }
    let numel = ty.axes.iter().try_fold(1u64, |n, a| n.checked_mul(a.size));
    match numel {
        Some(n) if n <= 1 << 50 => None,
        _ => Some("a tensor has at most 2^50 elements".into()),
    }
}

fn is_float(dtype: DType) -> bool {
    match dtype {
        DType::F32 | DType::F64 | DType::Bf16 => true,
        DType::I32 | DType::I64 | DType::Bool => false,
    }
}

/// Whether the operands' element types suit the op; shapes are known to fit.
fn dtype_unfit(op: &Op, types: &[&Type]) -> Option<String> {
    let first = types.first()?.dtype;
    let suits = match op {
        Op::Unary(u) => match u {
            UnaryOp::Neg | UnaryOp::Abs => first != DType::Bool,
            UnaryOp::Not => first == DType::Bool,
            UnaryOp::Exp
            | UnaryOp::Log
            | UnaryOp::Sqrt
            | UnaryOp::Rsqrt
            | UnaryOp::Tanh
            | UnaryOp::Sigmoid
            | UnaryOp::Sin
            | UnaryOp::Cos
            | UnaryOp::Erf
            | UnaryOp::Floor => is_float(first),
        },
        Op::Binary(b) => match b {
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Max | BinaryOp::Min => {
                first != DType::Bool
            }
            BinaryOp::Rem => matches!(first, DType::I32 | DType::I64),
            BinaryOp::Pow => first == DType::F64,
            BinaryOp::Threefry => first == DType::I64,
            BinaryOp::And | BinaryOp::Or => first == DType::Bool,
        },
        Op::Reduce { .. } => first != DType::Bool,
        // Partial sums are kept in the type of the result, so that type is wide.
        Op::ScatterAdd { .. } | Op::CumSum { .. } => !matches!(first, DType::Bool | DType::Bf16),
        Op::Dot { .. } | Op::RotatePairs { .. } => is_float(first),
        Op::Compare(c) => matches!(c, CompareOp::Eq | CompareOp::Ne) || first != DType::Bool,
        Op::Select
        | Op::Cast
        | Op::Broadcast
        | Op::Rename { .. }
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Gather { .. }
        | Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Const(_)
        | Op::Index { .. }
        | Op::Transfer { .. }
        | Op::Mesh(_)
        | Op::Loop(_)
        | Op::Composite(_)
        | Op::Update(_) => true,
    };
    if suits { None } else { Some(format!("{} does not work on {}", op_name(op), shape::dtype_name(first))) }
}
