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
    let last = schedule.pieces.last()?;
    let after = match last.shape {
        Shape::Constant => &last.from,
        Shape::Warmup | Shape::Linear | Shape::Cosine => &last.to,
    };
    let mut rate = scalars.number(b, after);
    for piece in schedule.pieces.iter().rev() {
        let end = scalars.number(b, &piece.end);
        let here = piece_rate(b, scalars, piece, step, end);
        let running = b.compare(CompareOp::Lt, step, end);
        rate = b.select(running, here, rate);
    }
    b.set_name(rate, "lr");
    Some(rate)
}

fn piece_rate(b: &mut Builder, scalars: &mut Scalars, piece: &Piece, step: ValueId, end: ValueId) -> ValueId {
    let from = scalars.number(b, &piece.from);
    if piece.shape == Shape::Constant {
        return from;
    }
    let to = scalars.number(b, &piece.to);
    let begin = scalars.number(b, &piece.begin);
    let done = b.sub(step, begin);
    let length = b.sub(end, begin);
    match piece.shape {
        Shape::Constant => from,
        Shape::Warmup => {
            let one = b.constant(DType::F64, 1.0);
            let done = b.add(done, one);
            let part = b.div(done, length);
            b.mul(to, part)
        }
        Shape::Linear => {
            let part = b.div(done, length);
            let way = b.sub(to, from);
            let gone = b.mul(way, part);
            b.add(from, gone)
        }
        Shape::Cosine => {
            let part = b.div(done, length);
            let angle = b.scale(part, std::f64::consts::PI);
            let cos = b.unary(UnaryOp::Cos, angle);
            let one = b.constant(DType::F64, 1.0);
            let wave = b.binary(BinaryOp::Add, one, cos);
            let half = b.scale(wave, 0.5);
            let way = b.sub(from, to);
            let left = b.mul(way, half);
            b.add(to, left)
        }
    }
}
