//! Element types as explicit casts in the graph, by role.
//!
//! | role | what it types |
//! |---|---|
//! | `params` | parameters at rest |
//! | `matmul` | operands of matrix products, attention and the loss head; their sums are f32 |
//! | `stored` | activations kept for the backward pass, and what one layer hands to the next |
//! | `reduce` | sums, norms, softmax and the loss |
//!
//! Casts go in before autodiff, so gradients pass through the same casts. Three rules:
//!
//! 1. **An operand of a product** is cast in front of it. A parameter is cast whole, in front of all loops that slice it, and the
//!    loops get the copy; so it is rounded once a step, and never again however often it is used.
//! 2. **A value is rounded to `stored`** where that saves memory: if it is carried from one iteration to the next, or if a
//!    derivative needs it and it can't be computed element by element from values that are rounded already. What follows a
//!    rounded value reads the rounded one, forward and backward.
//! 3. **What is a statistic stays f32**: the result of a reduction or of a composite (a norm's `rstd`, softmax, a loss), and scalars.
//!
//! Parameters with a type of their own keep it as operands of products too; the product's other operand follows.

mod copies;
mod kept;
#[cfg(test)]
mod kept_tests;

use super::AutodiffError;
use super::activity::Activity;
use super::differentiate::parameters;
use crate::graph::composites::AttentionParts;
use crate::graph::passes::eliminate_dead;
use crate::graph::{
    Builder, Composite, CompositeKind, DType, Graph, Loop, Name, Op, OpId, OpNode, RegionId, Type, ValueId,
};
use copies::Frame;
use std::collections::{BTreeMap, BTreeSet};

/// Element types by role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Precision {
    /// Parameters at rest.
    pub params: DType,
    /// Operands of matrix products.
    pub matmul: DType,
    /// Activations kept for the backward pass.
    pub stored: DType,
    /// Sums, norms, softmax and the loss.
    pub reduce: DType,
    /// Parameters with a type of their own, at rest and in products, by logical path.
    pub of_param: BTreeMap<Name, DType>,
    /// Whether parameters of bf16 are rounded at random rather than to nearest.
    pub stochastic: bool,
}

impl Precision {
    /// f32 in every role.
    pub const F32: Precision = Precision {
        params: DType::F32,
        matmul: DType::F32,
        stored: DType::F32,
        reduce: DType::F32,
        of_param: BTreeMap::new(),
        stochastic: false,
    };
}

/// Inserts the casts that the roles ask for. With f32 in every role there are none. Works on any forward graph, before loss
/// heads and rotary embeddings are expanded.
///
/// # Errors
/// A role asks for a type it can't have.
pub fn apply_precision(graph: Graph, precision: &Precision) -> Result<Graph, AutodiffError> {
    for (role, dtype, choices) in [
        ("params", precision.params, &[DType::F32, DType::Bf16][..]),
        ("matmul", precision.matmul, &[DType::F32, DType::Bf16]),
        ("stored", precision.stored, &[DType::F32, DType::Bf16]),
        ("reduce", precision.reduce, &[DType::F32]),
    ] {
        if !choices.contains(&dtype) {
            return Err(AutodiffError::new(format!("precision `{role} = {dtype:?}` is not supported")));
        }
    }
    if *precision == Precision::F32 {
        return Ok(graph);
    }
    let wanted: Vec<ValueId> = parameters(&graph).into_iter().map(|(_, v)| v).collect();
    let activity = Activity::of(&graph, &wanted);
    let kept = match precision.stored {
        DType::F32 => BTreeSet::new(),
        _ => kept::kept(&graph, &activity, precision.matmul == DType::F32),
    };
    let definitions = graph.executed_regions().into_iter().flat_map(|r| graph.definitions(r)).collect();
    let builder = Builder::new(&graph.name);
    let mut pass = Apply {
        frames: vec![Frame::new(builder.current())],
        from: &graph,
        b: builder,
        precision,
        activity,
        kept,
        definitions,
        map: BTreeMap::new(),
        copies: BTreeMap::new(),
        at_hand: BTreeSet::new(),
    };
    pass.region(graph.body);
    for (value, output) in graph.region(graph.body).results.iter().zip(&graph.outputs) {
        let value = pass.map[value];
        pass.b.output(output.clone(), value);
    }
    Ok(eliminate_dead(pass.b.finish()))
}

/// The pass in progress: the graph is built anew, op by op.
struct Apply<'g> {
    from: &'g Graph,
    b: Builder,
    precision: &'g Precision,
    activity: Activity,
    /// Values derivatives need, see [`kept::kept`].
    kept: BTreeSet<ValueId>,
    definitions: BTreeMap<ValueId, OpId>,
    /// New values, of the old types, by old ones.
    map: BTreeMap<ValueId, ValueId>,
    /// New values in another type.
    copies: BTreeMap<(ValueId, DType), ValueId>,
    /// Old values that a backward pass has without keeping them in f32.
    at_hand: BTreeSet<ValueId>,
    /// The regions being built, outermost first.
    frames: Vec<Frame>,
}

impl Apply<'_> {
    fn region(&mut self, region: RegionId) {
        for &op in &self.from.region(region).ops {
            let node = self.from.op(op);
            self.b.origin = node.origin.clone();
            self.op(op, node);
            for result in &node.results {
                self.settle(node, *result);
            }
        }
    }

    fn op(&mut self, id: OpId, node: &OpNode) {
        match &node.op {
            Op::Loop(l) => self.loop_op(l, node),
            Op::Param { path, .. } => self.param(path, node),
            Op::Gather { .. } => self.gather(node),
            Op::Dot { .. } => {
                let dtype = self.product_type(&node.operands);
                let [a, b] = [0, 1].map(|i| self.copy(node.operands[i], dtype));
                let ty = self.from.ty(node.results[0]).clone();
                let name = self.from.value_name(node.results[0]).clone();
                let product = self.b.one(node.op.clone(), &[a, b], Some(ty), &name);
                self.map.insert(node.results[0], product);
            }
            Op::Composite(Composite { kind: CompositeKind::Attention(a), .. })
                if self.product_type(&node.operands[..3]) != self.from.ty(node.operands[0]).dtype =>
            {
                let dtype = self.product_type(&node.operands[..3]);
                let [q, k, v] = [0, 1, 2].map(|i| self.copy(node.operands[i], dtype));
                let extras: Vec<ValueId> = node.operands[3..].iter().map(|v| self.map[v]).collect();
                let score = self.b.copy_region(self.from, a.score);
                let (query, key, over) = (a.query.clone(), a.key.clone(), a.over.clone());
                let parts = AttentionParts { query, key, over, bound: a.bound, score };
                let (o, lse) =
                    self.b.attention(q, k, v, &extras, parts).expect("only element types have changed");
                self.map.insert(node.results[1], lse);
                let wide = self.widened(o, node.results[0]);
                self.map.insert(node.results[0], wide);
            }
            Op::Composite(Composite { kind: CompositeKind::LossHead(head), .. }) => {
                let dtype = self.product_type(&node.operands[..2]);
                let [x, w] = [0, 1].map(|i| self.copy(node.operands[i], dtype));
                let rest: Vec<ValueId> = node.operands[2..].iter().map(|v| self.map[v]).collect();
                let loss = self.b.loss_head(x, w, rest[0], rest.get(1).copied(), head.clone());
                let loss = loss.expect("only element types have changed");
                let name = self.from.value_name(node.results[0]).clone();
                self.b.set_name(loss, &name);
                self.map.insert(node.results[0], loss);
            }
            Op::Composite(_)
            | Op::Input { .. }
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
            | Op::ScatterAdd { .. }
            | Op::CumSum { .. }
            | Op::RotatePairs { .. }
            | Op::Transfer { .. }
            | Op::Mesh(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Update(_) => {
                self.b.copy_op(self.from, id, &mut self.map);
            }
        }
    }

    /// A parameter in its type at rest, widened for those who read it in f32.
    fn param(&mut self, path: &Name, node: &OpNode) {
        let result = node.results[0];
        let (ty, name) = (self.from.ty(result).clone(), self.from.value_name(result).clone());
        let dtype = if ty.dtype == DType::F32 { self.type_at_rest(path) } else { ty.dtype };
        let new = self.b.one(node.op.clone(), &[], Some(ty.with_dtype(dtype)), &name);
        let new = if dtype == ty.dtype { new } else { self.widened(new, result) };
        self.map.insert(result, new);
    }

    fn type_at_rest(&self, path: &Name) -> DType {
        self.precision.of_param.get(path).copied().unwrap_or(self.precision.params)
    }

    /// Rows are looked up in the table's type at rest: the whole of it is never widened.
    fn gather(&mut self, node: &OpNode) {
        let [table, ids] = [0, 1].map(|i| node.operands[i]);
        let own = self.from.ty(table).dtype;
        let path = self.parameter(self.frames.len() - 1, table);
        let dtype = path.map_or(own, |path| self.type_at_rest(&path));
        let table = if own == DType::F32 { self.copy(table, dtype) } else { self.map[&table] };
        let result = node.results[0];
        let (ty, name) = (self.from.ty(result), self.from.value_name(result).clone());
        let given = ty.with_dtype(self.b.ty(table).dtype);
        let rows = self.b.one(node.op.clone(), &[table, self.map[&ids]], Some(given), &name);
        let rows = if self.b.ty(rows).same_as(ty) { rows } else { self.widened(rows, result) };
        self.map.insert(result, rows);
    }

    /// Element type of a product's operands: the role's, unless one is a parameter with its own; the longer of two. Products of
    /// other types than f32 keep theirs.
    fn product_type(&self, operands: &[ValueId]) -> DType {
        let own = self.from.ty(operands[0]).dtype;
        if own != DType::F32 {
            return own;
        }
        let level = self.frames.len() - 1;
        let given = operands
            .iter()
            .filter_map(|v| self.parameter(level, *v))
            .filter_map(|path| self.precision.of_param.get(&path));
        given.copied().max_by_key(|dtype| dtype.bytes()).unwrap_or(self.precision.matmul)
    }

    /// Rounds a result if it has to be kept, and notes whether the backward pass will have it.
    fn settle(&mut self, node: &OpNode, result: ValueId) {
        if !self.may_be_rounded(result) {
            return;
        }
        let at_hand = match &node.op {
            Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::Cast
            | Op::Broadcast
            | Op::Rename { .. }
            | Op::RotatePairs { .. }
            | Op::Composite(Composite { kind: CompositeKind::Rope { .. }, .. }) => {
                node.operands.iter().all(|v| self.at_hand.contains(v) || !self.may_be_rounded(*v))
            }
            // A product that was asked for in f32 is not rounded afterwards.
            Op::Dot { .. } => {
                let dtype = self.product_type(&node.operands);
                dtype == DType::F32 && self.precision.matmul != DType::F32
            }
            Op::Loop(l) => node.results[..l.carries].contains(&result),
            Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::CumSum { .. }
            | Op::Transfer { .. }
            | Op::Mesh(_)
            | Op::Slice { .. }
            | Op::Concat { .. } => false,
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Const(_)
            | Op::Index { .. }
            | Op::Compare(_)
            | Op::Reduce { .. }
            | Op::Composite(_)
            | Op::Update(_) => true,
        };
        if !at_hand && self.kept.contains(&result) {
            let rounded = self.copy(result, self.precision.stored);
            let wide = self.widened(rounded, result);
            self.map.insert(result, wide);
        }
        if at_hand || self.kept.contains(&result) {
            self.at_hand.insert(result);
        }
    }

    /// Whether the role `stored` is about a value: f32 of more than one element, and differentiated.
    fn may_be_rounded(&self, value: ValueId) -> bool {
        let ty = self.from.ty(value);
        ty.dtype == DType::F32 && !ty.axes.is_empty() && self.activity.varied(value)
    }

    fn loop_op(&mut self, l: &Loop, node: &OpNode) {
        let body = self.from.region(l.body);
        let stored = self.precision.stored;
        let may = |i: usize| stored != DType::F32 && self.may_be_rounded(body.args[1 + i]);
        let rounded: Vec<bool> = (0..l.carries).map(may).collect();
        let is_rounded = |i: usize| rounded.get(i).is_some_and(|r| *r);

        let operands: Vec<ValueId> = (0..node.operands.len())
            .map(|i| {
                let v = node.operands[i];
                if is_rounded(i) { self.copy(v, stored) } else { self.map[&v] }
            })
            .collect();
        let mut args: Vec<(Name, Type)> = Vec::new();
        for (i, arg) in body.args.iter().enumerate() {
            let ty = self.from.ty(*arg);
            let ty = if i > 0 && is_rounded(i - 1) { ty.with_dtype(stored) } else { ty.clone() };
            args.push((self.from.value_name(*arg).clone(), ty));
        }
        let (region, args) = self.b.open(&args);
        self.frames.push(Frame::of_loop(region, l, body, node));
        for (i, (old, new)) in body.args.iter().zip(&args).enumerate() {
            let new = if i > 0 && is_rounded(i - 1) { self.widened(*new, *old) } else { *new };
            self.map.insert(*old, new);
            let outside = i.checked_sub(1).map(|i| node.operands[i]);
            let at_hand = |v| self.at_hand.contains(&v) || !self.may_be_rounded(v);
            if i <= l.carries || outside.is_some_and(at_hand) {
                self.at_hand.insert(*old);
            }
        }
        self.region(l.body);
        let results: Vec<ValueId> = (0..body.results.len())
            .map(|i| {
                let v = body.results[i];
                if is_rounded(i) { self.copy(v, stored) } else { self.map[&v] }
            })
            .collect();
        self.b.close(results);
        let frame = self.frames.pop().expect("a loop's frame is open");
        let (l, operands) = frame.signature(&mut self.b, Loop { body: region, ..l.clone() }, operands);
        self.b.origin = node.origin.clone();
        let made = self.b.repeat(l, &operands, "looped");
        for (i, (old, new)) in node.results.iter().zip(made).enumerate() {
            let name = self.from.value_name(*old).clone();
            self.b.set_name(new, &name);
            let new = if is_rounded(i) { self.widened(new, *old) } else { new };
            self.map.insert(*old, new);
        }
    }
}
