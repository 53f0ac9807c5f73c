//! The learning rate as an f64 expression on the step and run-time scalars.

use super::config::{Number, Piece, Schedule, Shape};
use crate::graph::{BinaryOp, Builder, CompareOp, DType, Name, Op, UnaryOp, ValueId};
use std::collections::BTreeMap;

/// Makes f64 scalars, each run-time scalar once.
#[derive(Default)]
pub(super) struct Scalars {
    by_key: BTreeMap<Name, ValueId>,
}

impl Scalars {
    /// A number as f64[].
    pub fn number(&mut self, b: &mut Builder, number: &Number) -> ValueId {
        match number {
            Number::Fixed(value) => b.constant(DType::F64, *value),
            Number::Scalar { key, default } => self.scalar(b, key, *default),
        }
    }

    /// A run-time scalar.
    pub fn scalar(&mut self, b: &mut Builder, key: &Name, default: f64) -> ValueId {
        *self.by_key.entry(key.clone()).or_insert_with(|| {
            let name = key.rsplit('.').next().unwrap_or(key);
            b.one(Op::Scalar { key: key.clone(), default }, &[], None, name)
        })
    }

    /// The index of the step about to run, from 0.
    pub fn step(&mut self, b: &mut Builder) -> ValueId {
        self.scalar(b, &"step".into(), 0.0)
    }
}

/// The scheduled rate, f64[]. Pieces follow each other, so the first one that has not ended is the one in force.
pub(super) fn learning_rate(b: &mut Builder, scalars: &mut Scalars, schedule: &Schedule) -> Option<ValueId> {
    let step = scalars.step(b);
    let mut at = At { step, begin: None, end: step, from: scalars.number(b, &schedule.peak) };
    let mut running = Vec::new();
    for Piece { shape, length } in &schedule.pieces {
        at.end = match (length, at.begin) {
            (None, _) => scalars.number(b, &schedule.horizon),
            (Some(length), None) => scalars.number(b, length),
            (Some(length), Some(begin)) => {
                let length = scalars.number(b, length);
                b.add(begin, length)
            }
        };
        let (during, after) = at.rates(b, scalars, shape);
        running.push((at.end, during));
        at = At { begin: Some(at.end), from: after, ..at };
    }
    let mut rate = at.from;
    for (end, during) in running.iter().rev() {
        let runs = b.compare(CompareOp::Lt, step, *end);
        rate = b.select(runs, *during, rate);
    }
    b.set_name(rate, "lr");
    (!running.is_empty()).then_some(rate)
}

/// One piece on the axis of time, all f64[].
struct At {
    step: ValueId,
    /// `None` is 0.
    begin: Option<ValueId>,
    end: ValueId,
    /// The rate at `begin`.
    from: ValueId,
}

impl At {
    /// The rate during the piece, and at its end.
    fn rates(&self, b: &mut Builder, scalars: &mut Scalars, shape: &Shape) -> (ValueId, ValueId) {
        let one = b.constant(DType::F64, 1.0);
        match shape {
            Shape::Constant => (self.from, self.from),
            Shape::Warmup => {
                let done = self.since_begin(b, self.step);
                let done = b.add(done, one);
                let length = self.since_begin(b, self.end);
                let part = b.div(done, length);
                (b.mul(self.from, part), self.from)
            }
            Shape::Linear { to } => {
                let to = scalars.number(b, to);
                let part = self.part(b);
                let way = b.sub(to, self.from);
                let gone = b.mul(way, part);
                (b.add(self.from, gone), to)
            }
            Shape::Cosine { to } => {
                let part = self.part(b);
                let angle = b.scale(part, std::f64::consts::PI);
                let cos = b.unary(UnaryOp::Cos, angle);
                let wave = b.binary(BinaryOp::Add, one, cos);
                let half = b.scale(wave, 0.5);
                self.left(b, scalars, to, half)
            }
            Shape::Sqrt { to } => {
                let part = self.part(b);
                let root = b.unary(UnaryOp::Sqrt, part);
                let left = b.sub(one, root);
                self.left(b, scalars, to, left)
            }
            Shape::InverseSqrt => {
                let start = match self.begin {
                    None => one,
                    Some(begin) => b.binary(BinaryOp::Max, begin, one),
                };
                let next = b.add(self.step, one);
                let mut at = |time: ValueId| {
                    let share = b.div(start, time);
                    let root = b.unary(UnaryOp::Sqrt, share);
                    b.mul(self.from, root)
                };
                (at(next), at(self.end))
            }
        }
    }

    /// `to + (from − to)·share`, and `to`.
    fn left(
        &self,
        b: &mut Builder,
        scalars: &mut Scalars,
        to: &Number,
        share: ValueId,
    ) -> (ValueId, ValueId) {
        let to = scalars.number(b, to);
        let way = b.sub(self.from, to);
        let left = b.mul(way, share);
        (b.add(to, left), to)
    }

    /// (step − begin)/(end − begin).
    fn part(&self, b: &mut Builder) -> ValueId {
        let done = self.since_begin(b, self.step);
        let length = self.since_begin(b, self.end);
        b.div(done, length)
    }

    fn since_begin(&self, b: &mut Builder, time: ValueId) -> ValueId {
        match self.begin {
            None => time,
            Some(begin) => b.sub(time, begin),
        }
    }
}
