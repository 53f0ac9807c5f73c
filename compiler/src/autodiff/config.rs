//! What the training step needs to know besides the forward graph. Filled from the checked spec.

use crate::graph::Name;
pub use crate::spec::checked::{Adafactor, DecayBy, Muon, MuonScale, Rule};
use std::collections::{BTreeMap, BTreeSet};

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
    /// Update rules and their hyper-parameters.
    pub optimizer: OptimizerConfig,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// Largest global norm of the gradient; `None` never clips.
    pub clip: Option<Number>,
    /// Steps that leave everything as it is; `None` skips none.
    pub skip: Option<Skip>,
    /// Cut the batch into microbatches and accumulate; `None` takes it whole.
    pub microbatch: Option<Microbatch>,
    /// Element types by role.
    pub precision: super::precision::Precision,
}

/// Which steps leave parameters and states as they are.
#[derive(Clone, PartialEq, Debug)]
pub struct Skip {
    /// Those whose loss or gradient norm is infinite or not a number.
    pub nonfinite: bool,
    /// Those whose gradient norm, before clipping, is above this; one that is not a number is.
    pub norm: Option<Number>,
}

/// Gradient accumulation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Microbatch {
    /// The batch axis.
    pub axis: Name,
    /// Elements of the axis per microbatch; divides its size.
    pub size: u64,
}

/// How each parameter is updated.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OptimizerConfig {
    /// By logical path (`layer.{i}.attn.wq`): every parameter that is not frozen.
    pub rates: BTreeMap<Name, Rate>,
    /// Parameters that stay as they are: no gradient, no state.
    pub frozen: BTreeSet<Name>,
}

/// How one parameter is updated.
#[derive(Clone, PartialEq, Debug)]
pub struct Rate {
    /// Its rule.
    pub rule: Rule,
    /// Multiplies the scheduled learning rate.
    pub lr_factor: f64,
    /// Weight decay λ.
    pub decay: Number,
    /// What λ means.
    pub decay_by: DecayBy,
    /// The parameter as a matrix.
    pub axes: MatrixAxes,
}

/// Axes of a parameter taken as a matrix: `[rows.. -> columns..]`. Axes in neither, those it is stacked over by a repeat,
/// count matrices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MatrixAxes {
    /// Before the arrow; without an arrow all but the last.
    pub rows: Vec<Name>,
    /// Behind the arrow; without an arrow the last, if there are two or more.
    pub columns: Vec<Name>,
}

impl MatrixAxes {
    /// Whether there are both rows and columns.
    pub fn is_matrix(&self) -> bool {
        !self.rows.is_empty() && !self.columns.is_empty()
    }

    /// Rows and columns.
    pub fn all(&self) -> Vec<Name> {
        [&self.rows[..], &self.columns[..]].concat()
    }
}

/// The learning rate over time: pieces that follow each other from step 0; after the last its end value holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Schedule {
    /// The rate the first piece starts from, or rises to.
    pub peak: Number,
    /// Where a piece without a length ends.
    pub horizon: Number,
    /// At least one piece.
    pub pieces: Vec<Piece>,
}

/// A piece of a schedule. [`Shape`] gives the rate.
#[derive(Clone, PartialEq, Debug)]
pub struct Piece {
    /// Its shape.
    pub shape: Shape,
    /// Steps; `None` lasts to the horizon.
    pub length: Option<Number>,
}

/// Shapes of a schedule's piece, with s the step from 0, p = (s − begin)/(end − begin) and `from` the rate at which the
/// piece before it ends.
#[derive(Clone, PartialEq, Debug)]
pub enum Shape {
    /// `from`.
    Constant,
    /// `peak · (s + 1 − begin)/(end − begin)`: the first step already moves.
    Warmup,
    /// `from + (to − from)·p`.
    Linear {
        /// The rate at the end.
        to: Number,
    },
    /// `to + (from − to)·(1 + cos πp)/2`. Source: Loshchilov, Hutter 2016 (arXiv:1608.03983), eq. 5, without restarts.
    Cosine {
        /// The rate at the end.
        to: Number,
    },
    /// `to + (from − to)·(1 − √p)`. Source: Hägele et al. 2024 (arXiv:2405.18392), eq. 2.
    Sqrt {
        /// The rate at the end.
        to: Number,
    },
    /// `from · √(n/(s + 1))` with n = max(begin, 1): after a warm-up of n steps it goes on from the peak. Source: Vaswani
    /// et al. 2017 (arXiv:1706.03762), eq. 3.
    InverseSqrt,
}
