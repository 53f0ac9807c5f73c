//! What one update does to one parameter: the body of its `update` op.
//!
//! ```text
//! p, g [..]; states; scalars [] -> p', states'
//! ```
//! A parameter under a repeat is stacked over the repeat's axes; everything here treats each of the stacked tensors by
//! itself: nothing is summed over a stacked axis.

use super::config::{Adafactor, DecayBy, MatrixAxes, Muon, Rate, Rule};
use crate::graph::{BinaryOp, Builder, CompareOp, Name, ReduceOp, Type, UnaryOp, ValueId};

/// A scalar operand of an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scalar {
    /// Multiplies the gradient: one over the loss weight, and the clipping factor.
    GradScale,
    /// Multiplies the parameter: 1 − its weight decay.
    Keep,
    /// Share of the parameter that is added to its gradient.
    Pull,
    /// Multiplies the direction.
    StepSize,
    /// √(1 − β₂ᵗ) of Adam.
    Root,
    /// Share of the new statistics of Adafactor.
    Fresh,
    /// 1, or 0 for a step that is skipped.
    Applies,
}

impl Scalar {
    /// Name in the graph.
    pub fn name(self) -> &'static str {
        match self {
            Scalar::GradScale => "grad_scale",
            Scalar::Keep => "keep",
            Scalar::Pull => "pull",
            Scalar::StepSize => "step_size",
            Scalar::Root => "root",
            Scalar::Fresh => "fresh",
            Scalar::Applies => "applies",
        }
    }
}

/// Kinds and types of a parameter's states.
pub(super) struct States(pub Vec<(Name, Type)>);

impl States {
    /// The states of a parameter of this type.
    pub fn of(rate: &Rate, ty: &Type) -> States {
        let whole = |kind: &str| (Name::from(kind), ty.clone());
        States(match &rate.rule {
            Rule::AdamW { .. } => vec![whole("m"), whole("v")],
            Rule::Sgd { momentum, .. } if *momentum == 0.0 => Vec::new(),
            Rule::Sgd { .. } | Rule::Muon(_) => vec![whole("momentum")],
            Rule::Lion { .. } => vec![whole("m")],
            Rule::Adafactor(a) => {
                let mut states = if rate.axes.is_matrix() {
                    vec![
                        ("row".into(), ty.without(&rate.axes.columns)),
                        ("column".into(), ty.without(&rate.axes.rows)),
                    ]
                } else {
                    vec![whole("v")]
                };
                states.extend(a.beta1.map(|_| whole("m")));
                states
            }
        })
    }
}

/// Appends the rule; `tensors` are parameter, gradient and states. Returns the new parameter and states, which are the old
/// ones in a step that is skipped.
pub(super) fn apply(
    b: &mut Builder,
    rate: &Rate,
    tensors: &[ValueId],
    scalars: &[(Scalar, ValueId)],
) -> Vec<ValueId> {
    let new = step(b, rate, tensors, scalars);
    let Some((_, applies)) = scalars.iter().find(|(name, _)| *name == Scalar::Applies) else { return new };
    let zero = b.constant(b.ty(*applies).dtype, 0.0);
    let applies = b.compare(CompareOp::Gt, *applies, zero);
    let old = std::iter::once(tensors[0]).chain(tensors[2..].iter().copied());
    new.into_iter().zip(old).map(|(new, old)| b.select(applies, new, old)).collect()
}

fn step(b: &mut Builder, rate: &Rate, tensors: &[ValueId], scalars: &[(Scalar, ValueId)]) -> Vec<ValueId> {
    let scalar = |wanted: Scalar| {
        scalars.iter().find(|(name, _)| *name == wanted).map(|(_, v)| *v).expect("made for this rule")
    };
    let (p, g) = (tensors[0], tensors[1]);
    let states = &tensors[2..];
    let mut g = b.mul(g, scalar(Scalar::GradScale));
    let kept = match rate.decay_by {
        DecayBy::Rate | DecayBy::Schedule => b.mul(p, scalar(Scalar::Keep)),
        DecayBy::Gradient => {
            let pull = b.mul(p, scalar(Scalar::Pull));
            g = b.add(g, pull);
            p
        }
    };
    let step = scalar(Scalar::StepSize);
    match &rate.rule {
        Rule::AdamW { beta1, beta2, eps } => {
            adamw(b, [kept, g, states[0], states[1]], step, scalar(Scalar::Root), [*beta1, *beta2, *eps])
        }
        Rule::Sgd { momentum, nesterov } => sgd(b, [kept, g], states, step, *momentum, *nesterov),
        Rule::Lion { beta1, beta2 } => lion(b, [kept, g, states[0]], step, *beta1, *beta2),
        Rule::Adafactor(a) => {
            let fresh = scalar(Scalar::Fresh);
            adafactor(b, a, &rate.axes, Factored { p, kept, g, states, step, fresh })
        }
        Rule::Muon(muon) => self::muon(b, muon, &rate.axes, [kept, g, states[0]], step),
    }
}

/// p (decayed), g, m, v [..]; step, root [] -> p', m', v', in the order of operations of `torch.optim.AdamW`, single-tensor
/// form: m ← lerp(m, g, 1 − β₁); v ← β₂·v + ((1 − β₂)·g)·g; p ← p − (step·m) / (√v / root + eps).
fn adamw(
    b: &mut Builder,
    [p, g, m, v]: [ValueId; 4],
    step: ValueId,
    root: ValueId,
    [beta1, beta2, eps]: [f64; 3],
) -> Vec<ValueId> {
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

/// p (decayed), g, momentum? [..]; lr [] -> p', momentum'?
///
/// buffer ← momentum·buffer + g; p ← p − lr·buffer, or − lr·(g + momentum·buffer) with Nesterov.
fn sgd(
    b: &mut Builder,
    [p, g]: [ValueId; 2],
    states: &[ValueId],
    lr: ValueId,
    momentum: f64,
    nesterov: bool,
) -> Vec<ValueId> {
    let Some(buffer) = states.first() else {
        let move_by = b.mul(g, lr);
        return vec![b.sub(p, move_by)];
    };
    let kept = b.scale(*buffer, momentum);
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

/// p (decayed), g, m [..]; lr [] -> p', m': p ← p − lr·sign(lerp(m, g, 1 − β₁)); m ← lerp(m, g, 1 − β₂).
fn lion(b: &mut Builder, [p, g, m]: [ValueId; 3], lr: ValueId, beta1: f64, beta2: f64) -> Vec<ValueId> {
    let towards = lerp(b, m, g, 1.0 - beta1);
    let sign = sign(b, towards);
    let move_by = b.mul(sign, lr);
    let p = b.sub(p, move_by);
    let m = lerp(b, m, g, 1.0 - beta2);
    vec![p, m]
}

/// 1, −1, or x itself where that is 0 or not a number.
fn sign(b: &mut Builder, x: ValueId) -> ValueId {
    let dtype = b.ty(x).dtype;
    let [zero, one, minus] = [0.0, 1.0, -1.0].map(|c| b.constant(dtype, c));
    let below = b.compare(CompareOp::Lt, x, zero);
    let rest = b.select(below, minus, x);
    let above = b.compare(CompareOp::Gt, x, zero);
    b.select(above, one, rest)
}

/// Operands of Adafactor: p before and after decay, the scaled gradient, states, scalars.
struct Factored<'a> {
    p: ValueId,
    kept: ValueId,
    g: ValueId,
    states: &'a [ValueId],
    step: ValueId,
    fresh: ValueId,
}

/// ```text
/// p, g [stack.., rows.., columns..]; row [stack.., rows..], column [stack.., columns..], or v like p; m like p, maybe
/// row    ← lerp(row, mean over columns of (g² + ε₁), fresh)
/// column ← lerp(column, mean over rows of (g² + ε₁), fresh)
/// u = g / √(row · column / mean(row));  û = u / max(1, rms(u)/d);  α = step · max(ε₂, rms(p))
/// p ← p − α·û, or with a first moment m ← β₁·m + (1 − β₁)·α·û, p ← p − m
/// ```
/// Means instead of the paper's sums: the factors of size cancel. The two roots are taken apart, so that the product of
/// two small squares does not underflow.
fn adafactor(b: &mut Builder, a: &Adafactor, axes: &MatrixAxes, f: Factored) -> Vec<ValueId> {
    let own = axes.all();
    let dtype = b.ty(f.p).dtype;
    let eps1 = b.constant(dtype, a.eps1);
    let squares = b.mul(f.g, f.g);
    let squares = b.add(squares, eps1);
    let mut states = Vec::new();
    let direction = if axes.is_matrix() {
        let rows = mean(b, squares, &axes.columns);
        let rows = mixed(b, f.states[0], rows, f.fresh);
        let columns = mean(b, squares, &axes.rows);
        let columns = mixed(b, f.states[1], columns, f.fresh);
        let middle = mean(b, rows, &axes.rows);
        let share = b.div(rows, middle);
        let by_row = b.unary(UnaryOp::Rsqrt, share);
        let by_column = b.unary(UnaryOp::Rsqrt, columns);
        states.extend([rows, columns]);
        let u = b.mul(f.g, by_row);
        b.mul(u, by_column)
    } else {
        let v = mixed(b, f.states[0], squares, f.fresh);
        states.push(v);
        let root = b.unary(UnaryOp::Rsqrt, v);
        b.mul(f.g, root)
    };
    let over = rms(b, direction, &own);
    let over = b.scale(over, 1.0 / a.threshold);
    let one = b.constant(dtype, 1.0);
    let cut = b.binary(BinaryOp::Max, one, over);
    let mut alpha = f.step;
    if a.scale_by_param {
        let size = rms(b, f.p, &own);
        let least = b.constant(dtype, a.eps2);
        let size = b.binary(BinaryOp::Max, size, least);
        alpha = b.mul(size, f.step);
    }
    let factor = b.div(alpha, cut);
    let mut move_by = b.mul(direction, factor);
    if let Some(beta1) = a.beta1 {
        let m = f.states[f.states.len() - 1];
        let kept = b.scale(m, beta1);
        let part = b.scale(move_by, 1.0 - beta1);
        move_by = b.add(kept, part);
        states.push(move_by);
    }
    let p = b.sub(f.kept, move_by);
    [&[p][..], &states].concat()
}

/// `old + fresh·(new − old)`.
fn mixed(b: &mut Builder, old: ValueId, new: ValueId, fresh: ValueId) -> ValueId {
    let way = b.sub(new, old);
    let part = b.mul(way, fresh);
    b.add(old, part)
}

/// Mean over axes.
fn mean(b: &mut Builder, x: ValueId, axes: &[Name]) -> ValueId {
    let count: u64 = axes.iter().filter_map(|a| b.ty(x).size_of(a)).product();
    let sum = b.reduce(ReduceOp::Sum, x, axes);
    b.scale(sum, 1.0 / count as f64)
}

/// Root mean square over axes.
fn rms(b: &mut Builder, x: ValueId, axes: &[Name]) -> ValueId {
    let squares = b.mul(x, x);
    let mean = mean(b, squares, axes);
    b.unary(UnaryOp::Sqrt, mean)
}

/// p (decayed), g, momentum [stack.., rows.., columns..]; step [] -> p', momentum'
///
/// buffer ← lerp(buffer, g, 1 − momentum); p ← p − step · orthogonal(buffer), or of lerp(g, buffer, momentum) with
/// Nesterov.
fn muon(
    b: &mut Builder,
    muon: &Muon,
    axes: &MatrixAxes,
    [p, g, buffer]: [ValueId; 3],
    step: ValueId,
) -> Vec<ValueId> {
    let buffer = lerp(b, buffer, g, 1.0 - muon.momentum);
    let direction = if muon.nesterov { lerp(b, g, buffer, muon.momentum) } else { buffer };
    let squares = b.mul(direction, direction);
    let squares = b.reduce(ReduceOp::Sum, squares, &axes.all());
    let norm = b.unary(UnaryOp::Sqrt, squares);
    let least = b.constant(b.ty(norm).dtype, muon.eps);
    let norm = b.binary(BinaryOp::Max, norm, least);
    let mut x = b.div(direction, norm);
    for _ in 0..muon.iterations {
        x = newton_schulz(b, x, axes);
    }
    let move_by = b.mul(x, step);
    vec![b.sub(p, move_by), buffer]
}

/// Coefficients of the quintic that takes singular values towards 1. Source: Jordan et al. 2024 (Muon), §"Newton–Schulz".
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// One step: `a·X + (b·A + c·A²)·X` with `A = X·Xᵀ` over the smaller side of the matrix.
fn newton_schulz(b: &mut Builder, x: ValueId, axes: &MatrixAxes) -> ValueId {
    let ty = b.ty(x).clone();
    let size = |axes: &[Name]| axes.iter().filter_map(|a| ty.size_of(a)).product::<u64>();
    let (small, large) = if size(&axes.rows) <= size(&axes.columns) {
        (&axes.rows, &axes.columns)
    } else {
        (&axes.columns, &axes.rows)
    };
    let pairs = |suffix: &str| -> Vec<(Name, Name)> {
        small.iter().map(|a| (a.clone(), fresh_axis(&ty, a, suffix))).collect()
    };
    let (second, third) = (pairs("other"), pairs("inner"));
    let [to_second, to_third]: [Vec<Name>; 2] =
        [&second, &third].map(|p| p.iter().map(|(_, new)| new.clone()).collect());
    let other = b.rename(x, &second);
    let gram = b.dot(x, other, large);
    let left: Vec<(Name, Name)> = to_second.iter().cloned().zip(to_third.iter().cloned()).collect();
    let (left, right) = (b.rename(gram, &left), b.rename(gram, &third));
    let square = b.dot(left, right, &to_third);
    let [one, three, five] = QUINTIC;
    let linear = b.scale(gram, three);
    let quadratic = b.scale(square, five);
    let polynomial = b.add(linear, quadratic);
    let product = b.dot(polynomial, other, &to_second);
    let kept = b.scale(x, one);
    b.add(kept, product)
}

/// A name for another copy of an axis that the tensor does not have yet.
fn fresh_axis(ty: &Type, axis: &Name, suffix: &str) -> Name {
    let mut name = Name::from(format!("{axis}_{suffix}"));
    while ty.has(&name) {
        name = format!("{name}_").into();
    }
    name
}
