//! One update per parameter, and the scalars all of them share.
//!
//! Gradients come in as those of the loss *sum*. The mean's gradient is `g / weight`, and clipping multiplies by a
//! factor, so both are one scalar operand of the update; no gradient is rewritten for either.
//!
//! Scalars are computed in f64 and rounded once to the parameter's type, as `torch.optim` does with Python floats.

use super::AutodiffError;
use super::config::{Adafactor, DecayBy, MatrixAxes, Muon, MuonScale, Number, Rate, Rule, TrainConfig};
use super::differentiate::Gradient;
use super::schedule::{Scalars, learning_rate};
use super::skip::{applies, first_nonfinite};
use super::stochastic_rounding;
use super::tape::cotangent_type;
use super::update_rules::{Scalar, States, apply};
use crate::graph::{
    BinaryOp, Builder, CompareOp, DType, Graph, Name, Op, Origin, Output, Phase, ReduceOp, Type, UnaryOp,
    Update, ValueId,
};

/// Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// The values an optimizer step starts from.
pub(super) struct LossAndGradients {
    /// Sum of the loss over the batch.
    pub loss_sum: ValueId,
    /// Sum of the weights.
    pub loss_weight: ValueId,
    /// Auxiliary losses, summed over the batch as the loss is.
    pub auxiliary: Vec<(Output, ValueId)>,
    /// Of the loss sum, one per parameter that is updated.
    pub gradients: Vec<Gradient>,
}

/// Appends the update of every parameter and the step's reports: `loss`, `loss_sum`, `loss_weight`, `grad_norm`, `lr`, and
/// the mean of each auxiliary loss; where steps may be skipped also `skipped` (0 or 1) and `nonfinite` (see
/// [`first_nonfinite`]).
///
/// # Errors
/// The schedule is empty or a parameter has no rate.
pub(super) fn append_update(
    graph: Graph,
    loss: &LossAndGradients,
    config: &TrainConfig,
) -> Result<Graph, AutodiffError> {
    let mut b = Builder::resume(graph);
    b.origin = Origin { phase: Phase::Update, ..Origin::default() };
    let mut scalars = Scalars::default();
    let lr = learning_rate(&mut b, &mut scalars, &config.schedule)
        .ok_or_else(|| AutodiffError::new("the learning-rate schedule has no pieces"))?;
    let weight = b.cast(loss.loss_weight, DType::F64);
    let one = b.constant(DType::F64, 1.0);
    // A batch in which nothing has a weight has the loss 0 and no gradient.
    let none = b.one(Op::Const(0.0), &[], Some(Type::scalar(DType::F64)), "no_weight");
    let empty = b.one(Op::Compare(CompareOp::Eq), &[weight, none], None, "is_empty");
    let weight = b.one(Op::Select, &[empty, one, weight], None, "divisor");
    let per_weight = b.div(one, weight);
    let squares = squares(&mut b, &loss.gradients, config)?;
    let norm = global_norm(&mut b, &squares, per_weight);
    let scale = match &config.clip {
        None => per_weight,
        Some(clip) => {
            let factor = clip_factor(&mut b, &mut scalars, clip, norm);
            b.mul(per_weight, factor)
        }
    };
    let mean = {
        let sum = b.cast(loss.loss_sum, DType::F64);
        b.div(sum, weight)
    };
    b.set_name(mean, "loss");
    for (name, value) in [
        ("loss", mean),
        ("loss_sum", loss.loss_sum),
        ("loss_weight", loss.loss_weight),
        ("grad_norm", norm),
        ("lr", lr),
    ] {
        b.output(Output::Report(name.into()), value);
    }
    for (output, sum) in &loss.auxiliary {
        let sum = b.cast(*sum, DType::F64);
        let mean = b.div(sum, weight);
        b.output(output.clone(), mean);
    }
    let applies = config.skip.as_ref().map(|skip| {
        let applies = applies(&mut b, &mut scalars, skip, mean, norm);
        let one = b.constant(DType::F64, 1.0);
        let skipped = b.sub(one, applies);
        let nonfinite = first_nonfinite(&mut b, &loss.gradients, &squares);
        b.output(Output::Report("skipped".into()), skipped);
        b.output(Output::Report("nonfinite".into()), nonfinite);
        applies
    });
    let peak = scalars.number(&mut b, &config.schedule.peak);
    let stochastic = config.precision.stochastic;
    let mut step = Step { scalars, lr, peak, scale, applies, time: None, made: Vec::new(), stochastic };
    for gradient in &loss.gradients {
        step.update(&mut b, gradient, rate(config, gradient)?);
    }
    Ok(b.finish())
}

fn rate<'a>(config: &'a TrainConfig, gradient: &Gradient) -> Result<&'a Rate, AutodiffError> {
    config.optimizer.rates.get(&gradient.param).ok_or_else(|| {
        AutodiffError::new(format!("the optimizer has no rate for parameter {}", gradient.param))
    })
}

/// The sum of squares of every gradient, one scalar for each of the tensors it is stacked of, so that each sum can be made
/// as soon as its layer's gradient is there.
fn squares(
    b: &mut Builder,
    gradients: &[Gradient],
    config: &TrainConfig,
) -> Result<Vec<ValueId>, AutodiffError> {
    let mut squares = Vec::new();
    for gradient in gradients {
        let own = rate(config, gradient)?.axes.all();
        let square = b.mul(gradient.gradient, gradient.gradient);
        squares.push(b.reduce(ReduceOp::Sum, square, &own));
    }
    Ok(squares)
}

/// Euclidean norm over all gradients, of the mean loss.
fn global_norm(b: &mut Builder, squares: &[ValueId], per_weight: ValueId) -> ValueId {
    let mut total: Option<ValueId> = None;
    for square in squares {
        let sum = b.sum_to(*square, &Type::scalar(DType::F32));
        let sum = b.cast(sum, DType::F64);
        total = Some(match total {
            None => sum,
            Some(total) => b.add(total, sum),
        });
    }
    let total = total.unwrap_or_else(|| b.constant(DType::F64, 0.0));
    let root = b.unary(UnaryOp::Sqrt, total);
    let norm = b.mul(root, per_weight);
    b.set_name(norm, "grad_norm");
    norm
}

/// `min(1, clip / (norm + 1e-6))`.
fn clip_factor(b: &mut Builder, scalars: &mut Scalars, clip: &Number, norm: ValueId) -> ValueId {
    let clip = scalars.number(b, clip);
    let eps = b.constant(DType::F64, CLIP_EPS);
    let norm = b.add(norm, eps);
    let ratio = b.div(clip, norm);
    let one = b.constant(DType::F64, 1.0);
    b.binary(BinaryOp::Min, one, ratio)
}

/// What the updates of one step share.
struct Step {
    scalars: Scalars,
    lr: ValueId,
    /// The rate the schedule rises to, f64[].
    peak: ValueId,
    /// Multiplies every gradient, f64[].
    scale: ValueId,
    /// 1, or 0 for a step that is skipped, f64[]; `None` if none ever is.
    applies: Option<ValueId>,
    /// The number of the step from 1, f64[].
    time: Option<ValueId>,
    /// Scalar operands by what they depend on: parameters that agree share them.
    made: Vec<Made>,
    /// Whether parameters of bf16 are rounded at random.
    stochastic: bool,
}

/// Scalar operands made for one kind of parameter.
struct Made {
    rate: Rate,
    /// What Muon multiplies the rate by, which depends on the matrix.
    muon: Option<f64>,
    dtype: DType,
    scalars: Vec<(Scalar, ValueId)>,
}

impl Step {
    /// One update op with its states, and the stores of its results.
    fn update(&mut self, b: &mut Builder, gradient: &Gradient, rate: &Rate) {
        let at_rest = b.ty(gradient.value).dtype;
        // A bf16 parameter has states of f32, and the rule works in f32.
        let ty = cotangent_type(b.ty(gradient.value));
        let short = b.graph.value_name(gradient.value).clone();
        let line = b.graph.region(b.graph.body).ops.iter().map(|op| b.graph.op(*op));
        let line = line.filter(|n| n.results.contains(&gradient.value)).map(|n| n.origin.line.clone()).next();
        if let Some(line) = line {
            b.origin.line = line;
        }
        let states = States::of(rate, &ty);
        let mut operands = vec![gradient.value, gradient.gradient];
        for (kind, ty) in &states.0 {
            let op = Op::State { param: gradient.param.clone(), kind: kind.clone() };
            operands.push(b.one(op, &[], Some(ty.clone()), &format!("{short}.{kind}")));
        }
        let scalars = self.scalar_operands(b, rate, &ty);
        operands.extend(scalars.iter().map(|(_, value)| *value));
        let at_random = self.stochastic && at_rest == DType::Bf16;
        if at_random {
            operands.push(stochastic_rounding::draws(b, &gradient.param, &ty));
        }
        let args: Vec<(Name, Type)> =
            operands.iter().map(|v| (b.graph.value_name(*v).clone(), b.ty(*v).clone())).collect();
        let (_, mut args) = b.open(&args);
        args[0] = b.cast(args[0], ty.dtype);
        let (tensors, scalar_args) = args.split_at(2 + states.0.len());
        let named: Vec<(Scalar, ValueId)> =
            scalars.iter().zip(scalar_args).map(|((name, _), arg)| (*name, *arg)).collect();
        let mut results = apply(b, rate, tensors, &named);
        results[0] = match scalar_args.last() {
            Some(draws) if at_random => stochastic_rounding::round(b, results[0], *draws),
            Some(_) | None => b.cast(results[0], at_rest),
        };
        let body = b.close(results);
        let kinds: Vec<Name> = states.0.iter().map(|(kind, _)| kind.clone()).collect();
        let op = Op::Update(Update { param: gradient.param.clone(), states: kinds.clone(), body });
        let results = b.op(op, &operands, None, &format!("{short}.new"));
        b.output(Output::Store(gradient.param.clone()), results[0]);
        for (kind, value) in kinds.iter().zip(&results[1..]) {
            b.output(Output::Store(format!("{}.{kind}", gradient.param).into()), *value);
        }
    }

    /// What the rule needs besides tensors, in the parameter's type.
    fn scalar_operands(&mut self, b: &mut Builder, rate: &Rate, ty: &Type) -> Vec<(Scalar, ValueId)> {
        let size = |axes: &[Name]| axes.iter().filter_map(|a| ty.size_of(a)).product::<u64>();
        let muon = match &rate.rule {
            Rule::Muon(muon) => Some(muon_scale(muon, (size(&rate.axes.rows), size(&rate.axes.columns)))),
            Rule::AdamW { .. } | Rule::Sgd { .. } | Rule::Lion { .. } | Rule::Adafactor(_) => None,
        };
        let alike = |m: &&Made| {
            let key = Rate { axes: MatrixAxes::default(), ..rate.clone() };
            m.rate == key && m.muon == muon && m.dtype == ty.dtype
        };
        if let Some(made) = self.made.iter().find(alike) {
            return made.scalars.clone();
        }
        let lr = if rate.lr_factor == 1.0 { self.lr } else { b.scale(self.lr, rate.lr_factor) };
        let mut made = vec![(Scalar::GradScale, self.scale), self.decay(b, rate, lr)];
        match rate.rule {
            Rule::AdamW { beta1, beta2, .. } => {
                let [first, second] = [beta1, beta2].map(|beta| self.bias(b, beta));
                made.push((Scalar::StepSize, b.div(lr, first)));
                made.push((Scalar::Root, b.unary(UnaryOp::Sqrt, second)));
            }
            Rule::Sgd { .. } | Rule::Lion { .. } | Rule::Muon(_) => {
                made.push((Scalar::StepSize, muon.map_or(lr, |factor| b.scale(lr, factor))));
            }
            Rule::Adafactor(a) => made.extend(self.adafactor(b, &a, lr)),
        }
        made.extend(self.applies.map(|applies| (Scalar::Applies, applies)));
        let made: Vec<(Scalar, ValueId)> = made
            .into_iter()
            .map(|(scalar, v)| {
                let cast = b.ty(v).with_dtype(ty.dtype);
                (scalar, b.one(Op::Cast, &[v], Some(cast), scalar.name()))
            })
            .collect();
        let rate = Rate { axes: MatrixAxes::default(), ..rate.clone() };
        self.made.push(Made { rate, muon, dtype: ty.dtype, scalars: made.clone() });
        made
    }

    /// The number of the step, from 1.
    fn time(&mut self, b: &mut Builder) -> ValueId {
        if let Some(time) = self.time {
            return time;
        }
        let step = self.scalars.step(b);
        let one = b.constant(DType::F64, 1.0);
        let time = b.add(step, one);
        self.time = Some(time);
        time
    }

    /// `1 − βᵗ`.
    fn bias(&mut self, b: &mut Builder, beta: f64) -> ValueId {
        let t = self.time(b);
        let one = b.constant(DType::F64, 1.0);
        let beta = b.constant(DType::F64, beta);
        let power = b.binary(BinaryOp::Pow, beta, t);
        b.sub(one, power)
    }

    /// What the parameter is multiplied by, or the share of it added to the gradient.
    fn decay(&mut self, b: &mut Builder, rate: &Rate, lr: ValueId) -> (Scalar, ValueId) {
        let decay = self.scalars.number(b, &rate.decay);
        let shrink = match rate.decay_by {
            DecayBy::Gradient => return (Scalar::Pull, decay),
            DecayBy::Rate => b.mul(lr, decay),
            DecayBy::Schedule => {
                let share = self.share_of_peak(b);
                b.mul(share, decay)
            }
        };
        let one = b.constant(DType::F64, 1.0);
        (Scalar::Keep, b.sub(one, shrink))
    }

    /// `lr/peak`; 1 for a peak of 0, which has no shape.
    fn share_of_peak(&self, b: &mut Builder) -> ValueId {
        let one = b.constant(DType::F64, 1.0);
        let zero = b.constant(DType::F64, 0.0);
        let share = b.div(self.lr, self.peak);
        let rises = b.compare(CompareOp::Gt, self.peak, zero);
        b.select(rises, share, one)
    }

    /// ρ of the step and `1 − β̂₂`, which is `t^(−exponent)`.
    fn adafactor(&mut self, b: &mut Builder, a: &Adafactor, lr: ValueId) -> [(Scalar, ValueId); 2] {
        let t = self.time(b);
        let rho = if a.relative_step {
            let most = b.unary(UnaryOp::Rsqrt, t);
            b.binary(BinaryOp::Min, lr, most)
        } else {
            lr
        };
        let exponent = b.constant(DType::F64, -a.exponent);
        let fresh = b.binary(BinaryOp::Pow, t, exponent);
        [(Scalar::StepSize, rho), (Scalar::Fresh, fresh)]
    }
}

/// What the rate of Muon is multiplied by, for a matrix of (rows, columns) = (inputs, outputs).
fn muon_scale(muon: &Muon, (rows, columns): (u64, u64)) -> f64 {
    match muon.scale {
        MuonScale::Rms => 0.2 * (rows.max(columns) as f64).sqrt(),
        MuonScale::Shape => (columns as f64 / rows as f64).max(1.0).sqrt(),
    }
}
