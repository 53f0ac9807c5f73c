//! How each parameter is updated.

use super::ParamId;
use crate::spec::source::Span;

/// An optimizer with its hyper-parameters per parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// The update rule of parameters that no group says otherwise about.
    pub rule: Rule,
    /// Peak learning rate; a schedule scales it.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
    /// Clips the global norm of the gradient.
    pub clip: Option<f64>,
    /// Parameter groups in order; a later one wins.
    pub groups: Vec<Group>,
    /// One per parameter, with all groups applied.
    pub per_param: Vec<ParamRate>,
}

/// An update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Adam with bias correction. Source: Loshchilov, Hutter 2019 (arXiv:1711.05101), alg. 2; Kingma, Ba 2015
    /// (arXiv:1412.6980), alg. 1.
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
    /// A step by the sign of an interpolated momentum. Source: Chen et al. 2023 (arXiv:2302.06675), alg. 2.
    Lion {
        /// Share of the momentum in the step.
        beta1: f64,
        /// Share of the momentum kept.
        beta2: f64,
    },
    /// Second moments as the product of their row and column means. Source: Shazeer, Stern 2018 (arXiv:1804.04235),
    /// alg. 4 and 5.
    Adafactor(Adafactor),
    /// The momentum's nearest orthogonal matrix. Source: Jordan et al. 2024, Muon; Liu et al. 2025 (arXiv:2502.16982),
    /// §2.2.
    Muon(Muon),
}

/// Constants of Adafactor.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adafactor {
    /// The second moments decay by `1 − t^(−exponent)`.
    pub exponent: f64,
    /// ε₁ of the paper, added to squares.
    pub eps1: f64,
    /// ε₂ of the paper, the least root mean square a parameter counts with.
    pub eps2: f64,
    /// d of the paper, the root mean square a step is cut to.
    pub threshold: f64,
    /// Decay of the first moment of the steps; `None` keeps none.
    pub beta1: Option<f64>,
    /// Steps grow with the parameter's root mean square.
    pub scale_by_param: bool,
    /// The rate of step t is at most 1/√t.
    pub relative_step: bool,
}

/// Constants of Muon.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Muon {
    /// Share of the momentum kept.
    pub momentum: f64,
    /// Nesterov's form.
    pub nesterov: bool,
    /// Steps of the Newton–Schulz iteration.
    pub iterations: u64,
    /// Least norm a momentum is divided by.
    pub eps: f64,
    /// What the rate is multiplied by.
    pub scale: MuonScale,
}

/// How the step of Muon depends on the shape of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MuonScale {
    /// 0.2·√max(rows, columns): elements move as far as under AdamW. Source: arXiv:2502.16982, eq. 4.
    Rms,
    /// √max(1, outputs/inputs). Source: Jordan et al. 2024.
    Shape,
}

/// Which meaning weight decay λ has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecayBy {
    /// `p ← p·(1 − lr·λ)`, as in `torch.optim.AdamW`.
    Rate,
    /// `p ← p·(1 − λ·lr/peak)`: the schedule's shape without its height. Source: Loshchilov, Hutter 2019
    /// (arXiv:1711.05101), alg. 2, line 12, whose η is the schedule multiplier.
    Schedule,
    /// `g ← g + λ·p`, the gradient of λ/2·‖p‖², as in `torch.optim.Adam` and `torch.optim.SGD`.
    Gradient,
}

/// `params "**.norm*.w" { decay = 0 }`
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The glob.
    pub glob: String,
    /// What it hit.
    pub params: Vec<ParamId>,
    /// The group.
    pub span: Span,
}

/// How one parameter is updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamRate {
    /// Its rule.
    pub rule: Rule,
    /// Peak learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: Decay,
    /// What weight decay means.
    pub decay_by: DecayBy,
}

/// A weight decay by where it comes from: those of an optimizer can change without a rebuild.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// `train.optimizer.decay`
    Optimizer(f64),
    /// `train.optimizer.otherwise.decay`
    Otherwise(f64),
    /// That of a group.
    Group(f64),
}

impl Decay {
    /// The number.
    pub fn value(self) -> f64 {
        match self {
            Decay::Optimizer(value) | Decay::Otherwise(value) | Decay::Group(value) => value,
        }
    }
}
