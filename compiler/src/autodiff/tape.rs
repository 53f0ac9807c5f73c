//! The state of a reverse walk: where primal values are found, where cotangents gather.
//!
//! The walk keeps one frame per region it is inside. The outermost frame's backward ops go to the end of the region
//! itself, so primal values are at hand. A loop's backward ops go to the body of a new loop; there a rule that asks for
//! a primal value of the forward body gets
//!
//! 1. the same index, invariant or slice, if the value is an argument of the forward body;
//! 2. the op again, if it is a constant, an index, a view, or an element-wise function of such values only: this is
//!    how masks and positions cross, which cost less to make than to keep;
//! 3. else a slice of a new stacked out of the forward loop: a *residual*, saved once however often it is asked for.
//!
//! What a frame needs from outside its loop is asked of the frame outside in the same way, so loops nest.
//!
//! The cotangent of a bf16 value is f32: gradients are rounded where a product takes them as an operand, nowhere else.

use super::AutodiffError;
use super::activity::Activity;
use super::loss_head::Joint;
use crate::graph::shape::{self, ShapeError};
use crate::graph::{Builder, DType, Loop, Op, OpId, OpNode, Origin, Phase, RegionId, Type, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A reverse walk in progress.
pub struct Tape {
    /// Where ops are emitted; its current region is the innermost frame's backward region.
    pub b: Builder,
    /// Which values carry derivatives.
    pub activity: Activity,
    /// Loops that compute gradients next to their loss.
    pub joint: BTreeMap<OpId, Joint>,
    frames: Vec<Frame>,
    origin: Origin,
    /// Values younger than this existed before the rule that is running.
    rule_start: usize,
}

/// The type of the cotangent of a value of this type.
pub(super) fn cotangent_type(ty: &Type) -> Type {
    ty.with_dtype(shape::sum_dtype(ty.dtype))
}

/// One region being walked.
struct Frame {
    forward: RegionId,
    backward: RegionId,
    definitions: BTreeMap<ValueId, OpId>,
    cotangents: BTreeMap<ValueId, ValueId>,
    enclosing: Option<LoopFrame>,
}

/// What a frame inside a loop knows.
struct LoopFrame {
    op: OpId,
    /// Primal values by their forward value.
    primal: BTreeMap<ValueId, ValueId>,
    /// Backward stacked ins: (operand outside, argument).
    stacked: Vec<(ValueId, ValueId)>,
    /// Backward invariants: (operand outside, argument).
    invariants: Vec<(ValueId, ValueId)>,
}

/// Operands and arguments a finished loop frame collected.
pub(super) struct Collected {
    /// Stacked ins: (operand outside, argument).
    pub stacked: Vec<(ValueId, ValueId)>,
    /// Invariants: (operand outside, argument).
    pub invariants: Vec<(ValueId, ValueId)>,
}

impl Tape {
    /// Starts a walk over the builder's current region.
    pub fn new(b: Builder, activity: Activity) -> Tape {
        let region = b.current();
        let definitions = b.graph.definitions(region);
        let frame = Frame {
            forward: region,
            backward: region,
            definitions,
            cotangents: BTreeMap::new(),
            enclosing: None,
        };
        Tape {
            b,
            activity,
            joint: BTreeMap::new(),
            frames: vec![frame],
            origin: Origin::default(),
            rule_start: 0,
        }
    }

    /// An error about the op being differentiated.
    pub fn error(&self, message: impl Into<String>) -> AutodiffError {
        AutodiffError { message: message.into(), line: Some(self.origin.line.clone()) }
    }

    /// Begins the rule of an op: new ops get its block path and spec line.
    pub(super) fn begin_rule(&mut self, node: &OpNode) {
        self.origin = Origin { phase: Phase::BackwardInput, ..node.origin.clone() };
        self.b.origin = self.origin.clone();
        self.rule_start = self.b.graph.values.len();
    }

    /// Sets the phase of new ops.
    pub(super) fn phase(&mut self, phase: Phase) {
        self.b.origin.phase = phase;
    }

    /// Emits the cotangent of one operand, if it is varied; the ops get the phase that fits the operand.
    pub fn towards(&mut self, operand: ValueId, rule: impl FnOnce(&mut Tape) -> ValueId) -> Option<ValueId> {
        if !self.activity.varied(operand) {
            return None;
        }
        let weight = self.activity.weight(operand);
        self.phase(if weight { Phase::BackwardWeight } else { Phase::BackwardInput });
        let cotangent = rule(self);
        self.phase(Phase::BackwardInput);
        Some(cotangent)
    }

    /// Adds to the cotangent of a forward value of the innermost frame.
    ///
    /// # Panics
    /// If the types differ: a wrong rule.
    pub fn accumulate(&mut self, value: ValueId, cotangent: ValueId) {
        let (want, got) = (self.cotangent_type(value), self.b.ty(cotangent));
        assert!(
            want.same_as(got),
            "cotangent of {} is {}, not {}",
            self.b.graph.value_name(value),
            shape::show(got),
            shape::show(&want)
        );
        let name = format!("{}.grad", self.b.graph.value_name(value));
        let sum = match self.cotangent(value) {
            None => cotangent,
            Some(before) => {
                let weight = self.activity.weight(value);
                self.phase(if weight { Phase::BackwardWeight } else { Phase::BackwardInput });
                self.b.add(before, cotangent)
            }
        };
        if sum.index() >= self.rule_start {
            self.b.set_name(sum, &name);
        }
        self.frame().cotangents.insert(value, sum);
    }

    /// The cotangent gathered so far.
    pub fn cotangent(&self, value: ValueId) -> Option<ValueId> {
        self.frames.last().expect("a frame is open").cotangents.get(&value).copied()
    }

    /// The type of a value's cotangent: its own, but f32 for bf16.
    pub fn cotangent_type(&self, value: ValueId) -> Type {
        cotangent_type(self.b.ty(value))
    }

    /// A value in the type its cotangents have.
    pub fn wide(&mut self, value: ValueId) -> ValueId {
        self.b.cast(value, shape::sum_dtype(self.b.ty(value).dtype))
    }

    /// Zeros of a type.
    pub fn zeros(&mut self, ty: &Type) -> ValueId {
        let zero = self.b.constant(ty.dtype, 0.0);
        self.b.broadcast(zero, ty)
    }

    /// Whether a value is the constant 1, broadcast or not: multiplying by it can be left out.
    pub fn is_one(&self, value: ValueId) -> bool {
        let graph = &self.b.graph;
        let region = graph.region(self.b.current());
        let Some(op) = region.ops.iter().rev().find(|op| graph.op(**op).results.contains(&value)) else {
            return false;
        };
        match &graph.op(*op).op {
            Op::Const(c) => *c == 1.0,
            Op::Broadcast => self.is_one(graph.op(*op).operands[0]),
            _ => false,
        }
    }

    /// The value a forward value has at this point of the backward pass.
    ///
    /// # Errors
    /// The value would have to be saved in a loop over blocks of an axis it lacks.
    pub fn primal(&mut self, value: ValueId) -> Result<ValueId, AutodiffError> {
        self.primal_at(self.frames.len() - 1, value)
    }

    fn primal_at(&mut self, level: usize, value: ValueId) -> Result<ValueId, AutodiffError> {
        let Some(frame) = &self.frames[level].enclosing else {
            return Ok(value);
        };
        if let Some(found) = frame.primal.get(&value) {
            return Ok(*found);
        }
        let op = frame.op;
        let found = match self.frames[level].definitions.get(&value).copied() {
            None => self.argument(level, op, value)?,
            Some(definition) if self.recomputes(level, definition) => self.recompute(level, definition)?,
            Some(_) => self.save(level, op, value)?,
        };
        self.loop_frame(level).primal.insert(value, found);
        Ok(found)
    }

    /// An argument of the forward body: the index is bound from the start, a carry is saved, the others are operands of
    /// the loop and asked for outside.
    fn argument(&mut self, level: usize, op: OpId, value: ValueId) -> Result<ValueId, AutodiffError> {
        let node = self.b.graph.op(op).clone();
        let l = as_loop(&node);
        let args = &self.b.graph.region(l.body).args;
        let position =
            args.iter().position(|a| *a == value).expect("a value is defined by an op or an argument");
        let operand = position - 1;
        if operand < l.carries {
            return self.save(level, op, value);
        }
        let outside = self.primal_at(level - 1, node.operands[operand])?;
        let stacked = operand < l.carries + l.stacked;
        Ok(self.bring_in(level, outside, value, stacked))
    }

    /// A new operand of the backward loop, with the type of `like` inside.
    fn bring_in(&mut self, level: usize, outside: ValueId, like: ValueId, stacked: bool) -> ValueId {
        let ty = self.b.ty(like).clone();
        self.bring(level, outside, ty, stacked)
    }

    fn bring(&mut self, level: usize, outside: ValueId, ty: Type, stacked: bool) -> ValueId {
        let frame = self.loop_frame(level);
        let list = if stacked { &frame.stacked } else { &frame.invariants };
        if let Some((_, arg)) = list.iter().find(|(o, _)| *o == outside) {
            return *arg;
        }
        let name = self.b.graph.value_name(outside).clone();
        let arg = self.b.graph.add_value(&name, ty);
        let frame = self.loop_frame(level);
        let list = if stacked { &mut frame.stacked } else { &mut frame.invariants };
        list.push((outside, arg));
        arg
    }

    /// Makes a value from outside the innermost loop an argument of its backward body.
    pub(super) fn imported(&mut self, outside: ValueId, ty: Type, stacked: bool) -> ValueId {
        self.bring(self.frames.len() - 1, outside, ty, stacked)
    }

    /// Whether an op is made again rather than its result saved; see the head of this file.
    fn recomputes(&self, level: usize, op: OpId) -> bool {
        let node = self.b.graph.op(op);
        match &node.op {
            Op::Const(_) | Op::Index { .. } | Op::Broadcast | Op::Rename { .. } => true,
            // What is kept is the shorter of the two.
            Op::Cast if self.widens(node) => true,
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select | Op::Cast => {
                !node.results.iter().any(|r| self.activity.varied(*r))
                    && node.operands.iter().all(|v| self.is_free(level, *v))
            }
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
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
            | Op::Update(_) => false,
        }
    }

    /// Whether a cast loses nothing: from a float to a longer one.
    fn widens(&self, cast: &OpNode) -> bool {
        let [from, to] = [cast.operands[0], cast.results[0]].map(|v| self.b.ty(v).dtype);
        matches!((from, to), (DType::Bf16, DType::F32 | DType::F64) | (DType::F32, DType::F64))
    }

    /// Whether a value can be had in the backward body without saving it.
    fn is_free(&self, level: usize, value: ValueId) -> bool {
        let frame = &self.frames[level];
        match frame.definitions.get(&value) {
            Some(op) => {
                self.recomputes(level, *op)
                    && self.b.graph.op(*op).operands.iter().all(|v| self.is_free(level, *v))
            }
            None => match &frame.enclosing {
                None => true,
                Some(inside) => {
                    let l = as_loop(self.b.graph.op(inside.op));
                    let args = &self.b.graph.region(l.body).args;
                    !args[1..=l.carries].contains(&value)
                }
            },
        }
    }

    fn recompute(&mut self, level: usize, op: OpId) -> Result<ValueId, AutodiffError> {
        let node = self.b.graph.op(op).clone();
        let operands =
            node.operands.iter().map(|v| self.primal_at(level, *v)).collect::<Result<Vec<_>, _>>()?;
        let ty = self.b.ty(node.results[0]).clone();
        let name = self.b.graph.value_name(node.results[0]).clone();
        let origin = Origin { phase: Phase::BackwardInput, ..node.origin };
        let origin = std::mem::replace(&mut self.b.origin, origin);
        self.b.reopen(self.frames[level].backward);
        let value = self.b.one(node.op, &operands, Some(ty), &name);
        self.b.leave();
        self.b.origin = origin;
        Ok(value)
    }

    /// A slice of a stacked out of the forward loop, which is added unless the loop has it.
    fn save(&mut self, level: usize, op: OpId, value: ValueId) -> Result<ValueId, AutodiffError> {
        let stack = self.stacked_out(op, value).map_err(|e| {
            let name = self.b.graph.value_name(value);
            self.error(format!("%{name} is needed by the backward pass and can't be kept: {e}"))
        })?;
        let outside = self.primal_at(level - 1, stack)?;
        Ok(self.bring_in(level, outside, value, true))
    }

    fn stacked_out(&mut self, op: OpId, value: ValueId) -> Result<ValueId, ShapeError> {
        let node = self.b.graph.op(op);
        let l = as_loop(node).clone();
        let outs = l.carries..l.carries + l.stacked_outs;
        let results = &self.b.graph.region(l.body).results;
        if let Some(i) = outs.clone().find(|i| results[*i] == value) {
            return Ok(node.results[i]);
        }
        let ty = shape::stacked_type(&l, self.b.ty(value))?;
        let name = format!("{}.saved", self.b.graph.value_name(value));
        let stack = self.b.graph.add_value(&name, ty);
        self.b.graph.regions[l.body.index()].results.insert(outs.end, value);
        let node = &mut self.b.graph.ops[op.index()];
        node.results.insert(outs.end, stack);
        node.op = Op::Loop(Loop { stacked_outs: l.stacked_outs + 1, ..l });
        if let Some(frame) = self.frames.iter_mut().find(|f| f.definitions.values().any(|d| *d == op)) {
            frame.definitions.insert(stack, op);
        }
        Ok(stack)
    }

    /// Enters the backward body of a forward loop; `backward` is open in the builder and `index` its first argument.
    pub(super) fn enter(&mut self, op: OpId, backward: RegionId, index: ValueId) {
        let forward = as_loop(self.b.graph.op(op)).body;
        let forward_index = self.b.graph.region(forward).args[0];
        self.frames.push(Frame {
            forward,
            backward,
            definitions: self.b.graph.definitions(forward),
            cotangents: BTreeMap::new(),
            enclosing: Some(LoopFrame {
                op,
                primal: BTreeMap::from([(forward_index, index)]),
                stacked: Vec::new(),
                invariants: Vec::new(),
            }),
        });
    }

    /// Leaves what [`Tape::enter`] entered; the builder's region is still open.
    pub(super) fn exit(&mut self) -> Collected {
        let frame = self.frames.pop().expect("a loop frame is open");
        let inside = frame.enclosing.expect("the outermost frame is never left");
        Collected { stacked: inside.stacked, invariants: inside.invariants }
    }

    /// The ops of the region being walked, in order.
    pub(super) fn forward_ops(&self) -> Vec<OpId> {
        let forward = self.frames.last().expect("a frame is open").forward;
        self.b.graph.region(forward).ops.clone()
    }

    /// Operands that can get a cotangent when the given values of a region do: an over-estimate that follows every
    /// varied operand.
    pub(super) fn reached(&self, region: RegionId, seeds: BTreeSet<ValueId>) -> BTreeSet<ValueId> {
        let mut reached = seeds;
        for &op in self.b.graph.region(region).ops.iter().rev() {
            let node = self.b.graph.op(op);
            if node.results.iter().any(|r| reached.contains(r)) {
                reached.extend(node.operands.iter().filter(|v| self.activity.varied(**v)));
            }
        }
        reached
    }

    fn frame(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("a frame is open")
    }

    fn loop_frame(&mut self, level: usize) -> &mut LoopFrame {
        self.frames[level].enclosing.as_mut().expect("only loops ask outside")
    }
}

/// The loop an op is.
pub(super) fn as_loop(node: &OpNode) -> &Loop {
    match &node.op {
        Op::Loop(l) => l,
        _ => unreachable!("a loop frame belongs to a loop"),
    }
}

/// The type of a loop's index.
pub(super) fn index_type() -> Type {
    Type::scalar(DType::I32)
}
