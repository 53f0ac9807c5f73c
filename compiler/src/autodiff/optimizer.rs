//! One update per parameter, and the scalars all of them share.
//!
//! Gradients come in as those of the loss *sum*. The mean's gradient is `g / weight`, and clipping multiplies by a
//! factor, so both are one scalar operand of the update; no gradient is rewritten for either.
//!
//! Scalars are computed in f64 and rounded once to the parameter's type, as `torch.optim` does with Python floats.

use super::AutodiffError;
use super::config::{Number, Rate, Rule, TrainConfig};
use super::differentiate::Gradient;
use super::schedule::{Scalars, learning_rate};
use super::tape::cotangent_type;
use crate::graph::{
    BinaryOp, Builder, CompareOp, DType, Graph, Name, Op, Origin, Output, Phase, Type, UnaryOp, Update,
    ValueId,
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
    /// Of the loss sum, one per parameter.
    pub gradients: Vec<Gradient>,
}

/// Appends the update of every parameter and the step's reports: `loss`, `loss_sum`, `loss_weight`, `grad_norm`, `lr`, and
/// the mean of each auxiliary loss.
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
    let norm = global_norm(&mut b, &loss.gradients, per_weight);
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
    let mut step = Step::new(&mut b, scalars, config.optimizer.rule, lr, scale);
    for gradient in &loss.gradients {
        let rate = config.optimizer.rates.get(&gradient.param).ok_or_else(|| {
            AutodiffError::new(format!("the optimizer has no rate for parameter {}", gradient.param))
        })?;
        step.update(&mut b, gradient, rate);
    }
    Ok(b.finish())
}

/// Euclidean norm over all gradients, of the mean loss.
fn global_norm(b: &mut Builder, gradients: &[Gradient], per_weight: ValueId) -> ValueId {
    let mut total: Option<ValueId> = None;
    for gradient in gradients {
        let square = b.mul(gradient.gradient, gradient.gradient);
        let sum = b.sum_to(square, &Type::scalar(DType::F32));
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
    rule: Rule,
    lr: ValueId,
    /// Multiplies every gradient, f64[].
    scale: ValueId,
    /// `(1 − β₁ᵗ, √(1 − β₂ᵗ))` of AdamW, f64[].
    corrections: Option<(ValueId, ValueId)>,
    /// Scalar operands by rate: parameters with equal rates share them.
    made: Vec<(Rate, DType, Vec<ValueId>)>,
}

impl Step {
    fn new(b: &mut Builder, mut scalars: Scalars, rule: Rule, lr: ValueId, scale: ValueId) -> Step {
        let corrections = match rule {
            Rule::Sgd { .. } => None,
            Rule::AdamW { beta1, beta2, .. } => {
                let step = scalars.step(b);
                let one = b.constant(DType::F64, 1.0);
                let t = b.add(step, one);
                let [first, second] = [beta1, beta2].map(|beta| {
                    let beta = b.constant(DType::F64, beta);
                    let power = b.binary(BinaryOp::Pow, beta, t);
                    b.sub(one, power)
                });
                Some((first, b.unary(UnaryOp::Sqrt, second)))
            }
        };
        Step { scalars, rule, lr, scale, corrections, made: Vec::new() }
    }

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
        let kinds: Vec<Name> = match self.rule {
            Rule::AdamW { .. } => vec!["m".into(), "v".into()],
            Rule::Sgd { momentum, .. } if momentum != 0.0 => vec!["momentum".into()],
            Rule::Sgd { .. } => Vec::new(),
        };
        let mut operands = vec![gradient.value, gradient.gradient];
        for kind in &kinds {
            let op = Op::State { param: gradient.param.clone(), kind: kind.clone() };
            operands.push(b.one(op, &[], Some(ty.clone()), &format!("{short}.{kind}")));
        }
        operands.extend(self.scalar_operands(b, rate, ty.dtype));
        let args: Vec<(Name, Type)> =
            operands.iter().map(|v| (b.graph.value_name(*v).clone(), b.ty(*v).clone())).collect();
        let (_, mut args) = b.open(&args);
        args[0] = b.cast(args[0], ty.dtype);
        let mut results = match self.rule {
            Rule::AdamW { beta1, beta2, eps } => adamw(b, &args, beta1, beta2, eps),
            Rule::Sgd { momentum, nesterov } => sgd(b, &args, momentum, nesterov),
        };
        results[0] = b.cast(results[0], at_rest);
        let body = b.close(results);
        let op = Op::Update(Update { param: gradient.param.clone(), states: kinds.clone(), body });
        let results = b.op(op, &operands, None, &format!("{short}.new"));
        b.output(Output::Store(gradient.param.clone()), results[0]);
        for (kind, value) in kinds.iter().zip(&results[1..]) {
            b.output(Output::Store(format!("{}.{kind}", gradient.param).into()), *value);
        }
        b.origin.line = Origin::default().line;
    }

    /// `[scale, 1 − lr·decay, step size, √(1 − β₂ᵗ) of AdamW]`, in the parameter's type.
    fn scalar_operands(&mut self, b: &mut Builder, rate: &Rate, dtype: DType) -> Vec<ValueId> {
        if let Some((_, _, made)) = self.made.iter().find(|(r, d, _)| r == rate && *d == dtype) {
            return made.clone();
        }
        let lr = if rate.lr_factor == 1.0 { self.lr } else { b.scale(self.lr, rate.lr_factor) };
        let decay = self.scalars.number(b, &rate.decay);
        let one = b.constant(DType::F64, 1.0);
        let shrink = b.mul(lr, decay);
        let keep = b.sub(one, shrink);
        let mut made = vec![self.scale, keep];
        match self.corrections {
            None => made.push(lr),
            Some((first, root)) => {
                made.push(b.div(lr, first));
                made.push(root);
            }
        }
        let names = ["grad_scale", "keep", "step_size", "root"];
        let made: Vec<ValueId> = made
            .into_iter()
            .zip(names)
            .map(|(v, name)| {
                let ty = b.ty(v).with_dtype(dtype);
                b.one(Op::Cast, &[v], Some(ty), name)
            })
            .collect();
        self.made.push((rate.clone(), dtype, made.clone()));
        made
    }
}

/// ```text
/// p, g, m, v [..]; scale, keep, step, root [] -> p', m', v'
/// ```
/// In the order of operations of `torch.optim.AdamW`, single-tensor form:
/// p ← p·(1 − lr·decay); m ← lerp(m, g, 1 − β₁); v ← β₂·v + ((1 − β₂)·g)·g; p ← p − (step·m) / (√v / root + eps).
fn adamw(b: &mut Builder, args: &[ValueId], beta1: f64, beta2: f64, eps: f64) -> Vec<ValueId> {
    let [p, g, m, v] = [args[0], args[1], args[2], args[3]];
    let [scale, keep, step, root] = [args[4], args[5], args[6], args[7]];
    let g = b.mul(g, scale);
    let p = b.mul(p, keep);
    let m = lerp(b, m, g, 1.0 - beta1);
    let kept = b.scale(v, beta2);
    let part = b.scale(g, 1.0 - beta2);
    let fresh = b.mul(part, g);
    let v = b.add(kept, fresh);
    let deviation = b.unary(UnaryOp::Sqrt, v);
    let deviation = b.div(deviation, root);
    let eps = b.constant(b.ty(p).dtype, eps);
    let denominator = b.add(deviation, eps);
    let move_by = b.mul(m, step);
    let move_by = b.div(move_by, denominator);
    vec![b.sub(p, move_by), m, v]
}

/// `a + weight·(b − a)`, from the nearer end as `torch.lerp` does, so that a weight of 1 gives b exactly.
fn lerp(builder: &mut Builder, a: ValueId, b: ValueId, weight: f64) -> ValueId {
    let way = builder.sub(b, a);
    if weight < 0.5 {
        let part = builder.scale(way, weight);
        builder.add(a, part)
    } else {
        let part = builder.scale(way, 1.0 - weight);
        builder.sub(b, part)
    }
}

/// ```text
/// p, g, momentum? [..]; scale, keep, step [] -> p', momentum'?
/// ```
/// p ← p·(1 − lr·decay); buffer ← momentum·buffer + g; p ← p − lr·buffer, or − lr·(g + momentum·buffer) with Nesterov.
/// Decay is decoupled as in AdamW, unlike `torch.optim.SGD`, which adds it to the gradient.
fn sgd(b: &mut Builder, args: &[ValueId], momentum: f64, nesterov: bool) -> Vec<ValueId> {
    let (p, g) = (args[0], args[1]);
    let (buffer, scalars) = if momentum == 0.0 { (None, &args[2..]) } else { (Some(args[2]), &args[3..]) };
    let [scale, keep, lr] = [scalars[0], scalars[1], scalars[2]];
    let g = b.mul(g, scale);
    let p = b.mul(p, keep);
    let Some(buffer) = buffer else {
        let move_by = b.mul(g, lr);
        return vec![b.sub(p, move_by)];
    };
    let kept = b.scale(buffer, momentum);
    let buffer = b.add(kept, g);
    let direction = if nesterov {
        let ahead = b.scale(buffer, momentum);
        b.add(g, ahead)
    } else {
        buffer
    };
    let move_by = b.mul(direction, lr);
    vec![b.sub(p, move_by), buffer]
}
