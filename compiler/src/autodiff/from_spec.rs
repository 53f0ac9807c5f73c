//! The training configuration of a checked spec.
//!
//! Numbers the user may change without a rebuild become run-time scalars under their spec key: the learning rate, the
//! weight decay of the optimizer and of its `otherwise`, the norms for clipping and skipping, and of the schedule every
//! piece's `steps` and `to`.

use super::config::{MatrixAxes, Number, OptimizerConfig, Piece, Rate, Schedule, Shape, Skip, TrainConfig};
use super::precision::Precision;
use crate::graph::{DType, Name};
use crate::spec::checked::{self, Decay, Float, Model, Param, ParamId, Train};

const LR: &str = "train.optimizer.lr";
const DECAY: &str = "train.optimizer.decay";
const OTHERWISE_DECAY: &str = "train.optimizer.otherwise.decay";
const CLIP: &str = "train.optimizer.clip";
const SKIP_NORM: &str = "train.skip.norm";
const STEPS: &str = "train.steps";

/// What the training step needs, except the microbatch loop, which the caller adds.
pub fn train_config(model: &Model, train: &Train) -> TrainConfig {
    let optimizer = &train.optimizer;
    let mut config = OptimizerConfig::default();
    for ((param, rate), frozen) in model.params.iter().zip(&optimizer.per_param).zip(&train.frozen) {
        let path = Name::from(param.path.as_str());
        if *frozen {
            config.frozen.insert(path);
        } else {
            config.rates.insert(path, self::rate(optimizer, param, rate));
        }
    }
    TrainConfig {
        optimizer: config,
        schedule: schedule(train),
        clip: optimizer.clip.map(|norm| Number::scalar(CLIP, norm)),
        skip: train.skip.map(|skip| Skip {
            nonfinite: skip.nonfinite,
            norm: skip.norm.map(|norm| Number::scalar(SKIP_NORM, norm)),
        }),
        microbatch: None,
        precision: precision(model, &train.precision),
    }
}

fn rate(optimizer: &checked::Optimizer, param: &Param, rate: &checked::ParamRate) -> Rate {
    Rate {
        rule: rate.rule,
        lr_factor: if optimizer.lr == 0.0 { 1.0 } else { rate.lr / optimizer.lr },
        decay: match rate.decay {
            Decay::Group(value) => Number::Fixed(value),
            Decay::Optimizer(value) => Number::scalar(DECAY, value),
            Decay::Otherwise(value) => Number::scalar(OTHERWISE_DECAY, value),
        },
        decay_by: rate.decay_by,
        axes: matrix_axes(param),
    }
}

/// Rows before the arrow, columns behind it; without an arrow the last of several axes is the column.
fn matrix_axes(param: &Param) -> MatrixAxes {
    let names = |axes: &[checked::Axis]| axes.iter().map(|a| Name::from(a.name.as_str())).collect();
    match param.inputs.split_last() {
        Some((last, rest)) if param.outputs.is_empty() && !rest.is_empty() => {
            MatrixAxes { rows: names(rest), columns: vec![last.name.as_str().into()] }
        }
        _ => MatrixAxes { rows: names(&param.inputs), columns: names(&param.outputs) },
    }
}

fn schedule(train: &Train) -> Schedule {
    let mut seen: Vec<&str> = Vec::new();
    let pieces = train.schedule.pieces.iter().map(|piece| {
        let word = piece.shape.word();
        let before = seen.iter().filter(|s| **s == word).count();
        seen.push(word);
        let name = if before == 0 { word.to_string() } else { format!("{word}{}", before + 1) };
        let to = || Number::scalar(format!("train.schedule.{name}.to"), piece.to);
        let shape = match piece.shape {
            checked::Shape::Constant => Shape::Constant,
            checked::Shape::Warmup => Shape::Warmup,
            checked::Shape::Linear => Shape::Linear { to: to() },
            checked::Shape::Cosine => Shape::Cosine { to: to() },
            checked::Shape::Sqrt => Shape::Sqrt { to: to() },
            checked::Shape::InverseSqrt => Shape::InverseSqrt,
        };
        let key = format!("train.schedule.{name}.steps");
        Piece { shape, length: piece.steps.map(|n| Number::scalar(key, n as f64)) }
    });
    Schedule {
        peak: Number::scalar(LR, train.optimizer.lr),
        horizon: Number::scalar(STEPS, train.steps as f64),
        pieces: pieces.collect(),
    }
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
        // What travels between ranks is no matter of the graph of all ranks together: every sum is f32.
        reduce: DType::F32,
        of_param: p.of_param.iter().map(|(id, float)| (path(id), dtype(*float))).collect(),
        stochastic: p.stochastic,
    }
}
