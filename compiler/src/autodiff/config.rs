//! What the training step needs to know besides the forward graph. Filled from the checked spec.

use crate::graph::Name;
use std::collections::BTreeMap;

/// A number of the step: fixed at build time, or a run-time scalar with its value in the spec.
#[derive(Clone, PartialEq, Debug)]
pub enum Number {
    /// Baked.
    Fixed(f64),
    /// Read from the run-time scalar of this key (`train.optimizer.lr`); it changes without a rebuild.
    Scalar {
        /// The spec key.
        key: Name,
        /// Value in the spec.
        default: f64,
    },
}

impl Number {
    /// A run-time scalar.
    pub fn scalar(key: impl Into<Name>, default: f64) -> Number {
        Number::Scalar { key: key.into(), default }
    }
}

/// Everything about training that shapes the graph of one step.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainConfig {
    /// Update rule and its hyper-parameters.
    pub optimizer: OptimizerConfig,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// Largest global norm of the gradient; `None` never clips.
    pub clip: Option<Number>,
    /// Cut the batch into microbatches and accumulate; `None` takes it whole.
    pub microbatch: Option<Microbatch>,
    /// Element types by role.
    pub precision: super::precision::Precision,
}

/// Gradient accumulation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Microbatch {
    /// The batch axis.
    pub axis: Name,
    /// Elements of the axis per microbatch; divides its size.
    pub size: u64,
}

/// An optimizer.
#[derive(Clone, PartialEq, Debug)]
pub struct OptimizerConfig {
    /// Update rule.
    pub rule: Rule,
    /// Rates of every parameter by logical path (`layer.{i}.attn.wq`).
    pub rates: BTreeMap<Name, Rate>,
}

/// An update rule. Weight decay is decoupled in both: `p ← p·(1 − lr·decay)` before the step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rule {
    /// Adam with decoupled weight decay and bias correction. Source: Loshchilov, Hutter 2019 (arXiv:1711.05101), alg. 2.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added outside the root.
        eps: f64,
    },
    /// `v ← momentum·v + g`, then a step by v, or by `g + momentum·v` in Nesterov's form.
    Sgd {
        /// 0 keeps no state.
        momentum: f64,
        /// Nesterov's form. Source: Sutskever et al. 2013, §2.
        nesterov: bool,
    },
}

/// Rates of one parameter.
#[derive(Clone, PartialEq, Debug)]
pub struct Rate {
    /// Multiplies the scheduled learning rate.
    pub lr_factor: f64,
    /// Weight decay.
    pub decay: Number,
}

/// The learning rate over time: pieces that follow each other from step 0; after the last its end value holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Schedule {
    /// At least one piece.
    pub pieces: Vec<Piece>,
}

/// A piece of a schedule. [`Shape`] gives the rate, with s the step from 0 and p = (s − begin)/(end − begin).
#[derive(Clone, PartialEq, Debug)]
pub struct Piece {
    /// Its shape.
    pub shape: Shape,
    /// First step.
    pub begin: Number,
    /// One past the last step.
    pub end: Number,
    /// Rate at `begin`.
    pub from: Number,
    /// Rate at `end`.
    pub to: Number,
}

/// Shapes of a schedule's piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// `from`.
    Constant,
    /// `to · (s + 1 − begin)/(end − begin)`: the first step already moves.
    Warmup,
    /// `from + (to − from)·p`.
    Linear,
    /// `to + (from − to)·(1 + cos πp)/2`. Source: Loshchilov, Hutter 2016 (arXiv:1608.03983), eq. 5, without restarts.
    Cosine,
}
