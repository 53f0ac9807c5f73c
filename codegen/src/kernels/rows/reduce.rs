//! Accumulators of reductions.
//!
//! A block of bounded length is summed plainly in registers; block sums are joined with a compensated sum (Neumaier
//! 1974), so that the error of a sum does not grow with its length.

use crate::kir::{self, BinaryOp, Builder, CompareOp, Elem, Type, Value};
use crate::program::region::{ReduceOp, ScalarId};

/// One reduction of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Reduction {
    /// The op.
    pub id: ScalarId,
    /// How values are joined.
    pub op: ReduceOp,
    /// What is reduced.
    pub operand: ScalarId,
    /// Lane type.
    pub elem: Elem,
}

impl Reduction {
    /// The value that changes nothing, in every lane.
    pub fn identity(&self, b: &mut Builder, lanes: u32) -> Value {
        let ty = Type::vector(self.elem, lanes);
        match (self.op, self.elem) {
            (ReduceOp::Sum, _) => b.constant(ty, 0.0),
            (ReduceOp::Max, Elem::F32 | Elem::F64) => b.const_float(ty, f64::NEG_INFINITY),
            (ReduceOp::Min, Elem::F32 | Elem::F64) => b.const_float(ty, f64::INFINITY),
            (ReduceOp::Max, Elem::I32) => b.const_int(ty, i64::from(i32::MIN)),
            (ReduceOp::Min, Elem::I32) => b.const_int(ty, i64::from(i32::MAX)),
            (ReduceOp::Max, Elem::I64 | Elem::I1) => b.const_int(ty, i64::MIN),
            (ReduceOp::Min, Elem::I64 | Elem::I1) => b.const_int(ty, i64::MAX),
        }
    }

    /// Joins two values lane by lane.
    pub fn join(&self, b: &mut Builder, x: Value, y: Value) -> Value {
        let op = match self.op {
            ReduceOp::Sum => BinaryOp::Add,
            ReduceOp::Max => BinaryOp::Max,
            ReduceOp::Min => BinaryOp::Min,
        };
        b.binary(op, x, y)
    }

    /// Joins all lanes.
    pub fn across(&self, b: &mut Builder, x: Value) -> Value {
        let op = match self.op {
            ReduceOp::Sum => kir::ReduceOp::Add,
            ReduceOp::Max => kir::ReduceOp::Max,
            ReduceOp::Min => kir::ReduceOp::Min,
        };
        b.reduce(op, x)
    }

    /// `value` in the first `count` lanes, the identity elsewhere.
    pub fn keep(&self, b: &mut Builder, value: Value, count: Value) -> Value {
        let lanes = b.ty(value).lanes;
        let identity = self.identity(b, lanes);
        let mask = active(b, count, lanes);
        b.select(mask, value, identity)
    }

    fn is_compensated(&self) -> bool {
        self.op == ReduceOp::Sum && self.elem.is_float()
    }

    /// State of a joined sequence of blocks before the first: the value, and the rounding errors of a float sum.
    pub fn start(&self, b: &mut Builder, lanes: u32) -> Vec<Value> {
        let identity = self.identity(b, lanes);
        if self.is_compensated() { vec![identity, identity] } else { vec![identity] }
    }

    /// Number of values of the state.
    pub fn state_len(&self) -> usize {
        if self.is_compensated() { 2 } else { 1 }
    }

    /// Joins one block.
    pub fn add_block(&self, b: &mut Builder, state: &[Value], block: Value) -> Vec<Value> {
        let &[sum, error] = state else { return vec![self.join(b, state[0], block)] };
        // Knuth's two-sum: `error` gains exactly what the addition lost.
        let total = b.add(sum, block);
        let part = b.sub(total, sum);
        let rest = b.sub(total, part);
        let (lost_sum, lost_block) = (b.sub(sum, rest), b.sub(block, part));
        let lost = b.add(lost_sum, lost_block);
        let error = b.add(error, lost);
        vec![total, error]
    }

    /// The value of a state. Where the errors are NaN because the sum is infinite, the plain sum stands.
    pub fn finish(&self, b: &mut Builder, state: &[Value]) -> Value {
        let &[sum, error] = state else { return state[0] };
        let total = b.add(sum, error);
        let is_known = b.compare(CompareOp::Eq, error, error);
        b.select(is_known, total, sum)
    }
}

/// Lanes below `count`, as `i1`; a scalar for one lane.
pub fn active(b: &mut Builder, count: Value, lanes: u32) -> Value {
    let count = b.convert(Elem::I32, count);
    let count = b.splat(count, lanes);
    let lane = b.iota(Elem::I32, lanes);
    b.compare(CompareOp::Lt, lane, count)
}
