//! The training configuration of a checked spec.
//!
//! Numbers the user may change without a rebuild become run-time scalars under their spec key: the learning rate, the
//! common weight decay, the clipping norm, and of the schedule every piece's `end` (a step) and `to` (a rate).

use super::config::{Number, OptimizerConfig, Piece, Rate, Rule, Schedule, Shape, TrainConfig};
use super::precision::Precision;
use crate::graph::DType;
use crate::spec::checked::{self, Float, Model, ParamId, Train};
use std::collections::BTreeMap;

const LR: &str = "train.optimizer.lr";
const DECAY: &str = "train.optimizer.decay";
const CLIP: &str = "train.optimizer.clip";
const STEPS: &str = "train.steps";

/// What the training step needs, except the microbatch loop, which the caller adds.
pub fn train_config(model: &Model, train: &Train) -> TrainConfig {
    let optimizer = &train.optimizer;
    let rates = model.params.iter().zip(&optimizer.per_param).enumerate().map(|(i, (param, rate))| {
        let lr_factor = if optimizer.lr == 0.0 { 1.0 } else { rate.lr / optimizer.lr };
        let decay = decay(optimizer, ParamId(i as u32), rate.decay);
        (param.path.as_str().into(), Rate { lr_factor, decay })
    });
    let rates: BTreeMap<_, _> = rates.collect();
    TrainConfig {
        optimizer: OptimizerConfig { rule: rule(optimizer.rule), rates },
        schedule: schedule(train),
        clip: optimizer.clip.map(|norm| Number::scalar(CLIP, norm)),
        microbatch: None,
        precision: precision(model, &train.precision),
    }
}

/// A parameter whose group sets a decay keeps that number; all others share the run-time scalar.
fn decay(optimizer: &checked::Optimizer, param: ParamId, value: f64) -> Number {
    let set_by_group = optimizer.groups.iter().any(|g| g.decay.is_some() && g.params.contains(&param));
    if set_by_group { Number::Fixed(value) } else { Number::scalar(DECAY, value) }
}

fn rule(rule: checked::Rule) -> Rule {
    match rule {
        checked::Rule::AdamW { beta1, beta2, eps } => Rule::AdamW { beta1, beta2, eps },
        checked::Rule::Sgd { momentum, nesterov } => Rule::Sgd { momentum, nesterov },
    }
}

fn schedule(train: &Train) -> Schedule {
    let mut begin = Number::Fixed(0.0);
    let mut rate = Number::scalar(LR, train.optimizer.lr);
    let mut seen: Vec<Shape> = Vec::new();
    let last = train.schedule.pieces.len().saturating_sub(1);
    let mut pieces = Vec::new();
    for (i, piece) in train.schedule.pieces.iter().enumerate() {
        let (shape, word) = match piece.shape {
            checked::Shape::Constant => (Shape::Constant, "constant"),
            checked::Shape::Warmup => (Shape::Warmup, "warmup"),
            checked::Shape::Linear => (Shape::Linear, "linear"),
            checked::Shape::Cosine => (Shape::Cosine, "cosine"),
        };
        let before = seen.iter().filter(|s| **s == shape).count();
        let name = if before == 0 { word.to_string() } else { format!("{word}{}", before + 1) };
        seen.push(shape);
        let end = if i == last && piece.end == train.steps {
            Number::scalar(STEPS, piece.end as f64)
        } else {
            Number::scalar(format!("train.schedule.{name}.end"), piece.end as f64)
        };
        let from = if shape == Shape::Warmup { Number::Fixed(piece.from) } else { rate.clone() };
        let to = match shape {
            Shape::Warmup => Number::scalar(LR, train.optimizer.lr),
            Shape::Constant => rate.clone(),
            Shape::Linear | Shape::Cosine => Number::scalar(format!("train.schedule.{name}.to"), piece.to),
        };
        pieces.push(Piece { shape, begin, end: end.clone(), from, to: to.clone() });
        (begin, rate) = (end, to);
    }
    Schedule { pieces }
}

fn precision(model: &Model, p: &checked::Precision) -> Precision {
    let dtype = |float| match float {
        Float::F32 => DType::F32,
        Float::Bf16 => DType::Bf16,
    };
    let path = |id: &ParamId| model.params[id.0 as usize].path.as_str().into();
    Precision {
        params: dtype(p.params),
        matmul: dtype(p.matmul),
        stored: dtype(p.stored),
        reduce: dtype(p.reduce),
        of_param: p.of_param.iter().map(|(id, float)| (path(id), dtype(*float))).collect(),
    }
}
