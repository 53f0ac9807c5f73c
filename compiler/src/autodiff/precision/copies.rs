//! Values in another element type.
//!
//! A copy is made where it is asked for, once per region, except that of a parameter: it is made at the top, and the loops in
//! between take it in beside the parameter.

use super::Apply;
use crate::graph::{Builder, DType, Loop, Name, Op, OpNode, Region, RegionId, ValueId};
use std::collections::BTreeMap;

/// A region being built.
pub(super) struct Frame {
    region: RegionId,
    /// Stacked operands and invariants of the loop, by the old argument: the old value outside, and whether it is stacked.
    outside: BTreeMap<ValueId, (ValueId, bool)>,
    /// Copies the loop takes in: (new value outside, new argument).
    stacked: Vec<(ValueId, ValueId)>,
    invariants: Vec<(ValueId, ValueId)>,
}

impl Frame {
    /// The frame of the body.
    pub(super) fn new(region: RegionId) -> Frame {
        Frame { region, outside: BTreeMap::new(), stacked: Vec::new(), invariants: Vec::new() }
    }

    /// The frame of a loop; `region` is the new body, `body` and `node` are the old ones.
    pub(super) fn of_loop(region: RegionId, l: &Loop, body: &Region, node: &OpNode) -> Frame {
        let taken = body.args[1..].iter().zip(&node.operands).enumerate().skip(l.carries);
        let outside = taken.map(|(i, (arg, v))| (*arg, (*v, i < l.carries + l.stacked))).collect();
        Frame { outside, ..Frame::new(region) }
    }

    /// The loop with its operands, the copies that came in among them.
    pub(super) fn signature(self, b: &mut Builder, l: Loop, operands: Vec<ValueId>) -> (Loop, Vec<ValueId>) {
        let cut = l.carries + l.stacked;
        let with = |list: &[ValueId], at: usize, pick: fn(&(ValueId, ValueId)) -> ValueId| {
            let (front, back) = list.split_at(at);
            let stacked: Vec<ValueId> = self.stacked.iter().map(pick).collect();
            let invariants: Vec<ValueId> = self.invariants.iter().map(pick).collect();
            [front, &stacked, back, &invariants].concat()
        };
        let operands = with(&operands, cut, |(outside, _)| *outside);
        let args = &mut b.graph.regions[l.body.index()].args;
        *args = with(args, 1 + cut, |(_, arg)| *arg);
        (Loop { stacked: l.stacked + self.stacked.len(), ..l }, operands)
    }
}

impl Apply<'_> {
    /// The new value in a type: itself, if it has it.
    pub(super) fn copy(&mut self, v: ValueId, dtype: DType) -> ValueId {
        let level = self.frames.len() - 1;
        match self.parameter(level, v) {
            Some(_) => self.copy_of_parameter(level, v, dtype),
            None => self.cast(v, dtype),
        }
    }

    fn cast(&mut self, v: ValueId, dtype: DType) -> ValueId {
        let new = self.map[&v];
        if self.b.ty(new).dtype == dtype {
            return new;
        }
        if let Some(copy) = self.copies.get(&(new, dtype)) {
            return *copy;
        }
        let name = format!("{}.{}", self.from.value_name(v), crate::graph::shape::dtype_name(dtype));
        let ty = self.b.ty(new).with_dtype(dtype);
        let copy = self.b.one(Op::Cast, &[new], Some(ty), &name);
        self.copies.insert((new, dtype), copy);
        copy
    }

    /// A short value made in place of the old one, widened for those who read it in f32.
    pub(super) fn widened(&mut self, short: ValueId, old: ValueId) -> ValueId {
        let name = self.from.value_name(old).clone();
        let ty = self.b.ty(short).with_dtype(self.from.ty(old).dtype);
        let wide = self.b.one(Op::Cast, &[short], Some(ty), &name);
        self.copies.insert((wide, self.b.ty(short).dtype), short);
        wide
    }

    /// The parameter a value of a region is, or a slice of, renamed or not.
    pub(super) fn parameter(&self, level: usize, v: ValueId) -> Option<Name> {
        match self.definitions.get(&v) {
            Some(op) => {
                let node = self.from.op(*op);
                if let Op::Param { path, .. } = &node.op {
                    return Some(path.clone());
                }
                matches!(node.op, Op::Rename { .. }).then(|| self.parameter(level, node.operands[0]))?
            }
            None => {
                let (outside, _) = self.frames[level].outside.get(&v)?;
                self.parameter(level.checked_sub(1)?, *outside)
            }
        }
    }

    /// A copy of a value for which [`Apply::parameter`] gives a path.
    fn copy_of_parameter(&mut self, level: usize, v: ValueId, dtype: DType) -> ValueId {
        let new = self.map[&v];
        if self.b.ty(new).dtype == dtype {
            return new;
        }
        if let Some(copy) = self.copies.get(&(new, dtype)) {
            return *copy;
        }
        let copy = match self.definitions.get(&v).map(|op| self.from.op(*op)) {
            None => self.take_in(level, v, dtype),
            Some(OpNode { op: Op::Rename { pairs }, operands, .. }) => {
                let inner = self.copy_of_parameter(level, operands[0], dtype);
                self.b.reopen(self.frames[level].region);
                let renamed = self.b.rename(inner, pairs);
                self.b.leave();
                renamed
            }
            Some(node) => {
                let origin = std::mem::replace(&mut self.b.origin, node.origin.clone());
                self.b.reopen(self.frames[level].region);
                let copy = self.cast(v, dtype);
                self.b.leave();
                self.b.origin = origin;
                copy
            }
        };
        self.copies.insert((new, dtype), copy);
        copy
    }

    /// The argument of a loop's body for the copy of one of its operands.
    fn take_in(&mut self, level: usize, arg: ValueId, dtype: DType) -> ValueId {
        let (outside, stacked) = self.frames[level].outside[&arg];
        let copy = self.copy_of_parameter(level - 1, outside, dtype);
        let ty = self.from.ty(arg).with_dtype(dtype);
        let name = self.b.graph.value_name(copy).clone();
        let new = self.b.graph.add_value(&name, ty);
        let frame = &mut self.frames[level];
        if stacked {
            frame.stacked.push((copy, new))
        } else {
            frame.invariants.push((copy, new))
        }
        new
    }
}
