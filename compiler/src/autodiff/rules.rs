//! The derivative of every op: cotangents of the operands from those of the results.
//!
//! One table, exhaustive: a new op has no derivative until it is written here. `g` is the cotangent of the result, `x`,
//! `a`, `b` the operands, `y` the result. An operand that lacks axes of the result was broadcast by name; its cotangent
//! is summed over them.

use super::loss_head::Joint;
use super::tape::Tape;
use super::{AutodiffError, composites, loops};
use crate::graph::{
    BinaryOp, Builder, CompareOp, MeshOp, Name, Op, OpId, OpNode, ReduceOp, Type, UnaryOp, ValueId,
};

/// Cotangents of the operands; `None` is zero.
pub(super) type Cotangents = Vec<Option<ValueId>>;

/// Cotangents of an op's operands, at least one of which is varied, given those of its results, at least one of which is
/// there.
///
/// # Errors
/// The op has no derivative, or a value it needs can't be kept.
pub(super) fn pull(
    t: &mut Tape,
    op: OpId,
    node: &OpNode,
    g: &[Option<ValueId>],
) -> Result<Cotangents, AutodiffError> {
    let none = || Ok(vec![None; node.operands.len()]);
    match &node.op {
        // Sources and integer results: nothing to hand on.
        Op::Input { .. }
        | Op::Param { .. }
        | Op::State { .. }
        | Op::Scalar { .. }
        | Op::Const(_)
        | Op::Index { .. }
        | Op::Compare(_) => none(),
        Op::Loop(_) if t.joint.contains_key(&op) => joint(t, op, node, g),
        Op::Loop(_) => loops::pull_loop(t, op, node, g),
        Op::Composite(c) => composites::pull(t, c, node, g),
        Op::Update(u) => Err(t.error(format!("the update of {} can't be differentiated", u.param))),
        Op::Unary(u) => unary(t, *u, node, only(g)),
        Op::Binary(b) => binary(t, *b, node, only(g)),
        Op::Select => select(t, node, only(g)),
        Op::Cast => {
            let g = only(g);
            let x = node.operands[0];
            Ok(vec![t.towards(x, |t| t.b.cast(g, t.cotangent_type(x).dtype))])
        }
        Op::Broadcast => {
            let g = only(g);
            let x = node.operands[0];
            Ok(vec![t.towards(x, |t| sum_to(t, g, x))])
        }
        Op::Rename { pairs } => {
            let g = only(g);
            let back: Vec<(Name, Name)> = pairs.iter().map(|(old, new)| (new.clone(), old.clone())).collect();
            Ok(vec![t.towards(node.operands[0], |t| t.b.rename(g, &back))])
        }
        Op::Reduce { op, .. } => reduce(t, *op, node, only(g)),
        Op::Dot { over } => dot(t, over, node, only(g)),
        Op::Gather { axis } => {
            // y = table[ids]  →  table̅ = scatter_add(g, ids)
            let g = only(g);
            let (table, ids) = (node.operands[0], t.primal(node.operands[1])?);
            let op = Op::ScatterAdd { axis: axis.clone() };
            let table = t.towards(table, |t| {
                let ty = t.cotangent_type(table);
                t.b.one(op, &[g, ids], Some(ty), "t")
            });
            Ok(vec![table, None])
        }
        Op::ScatterAdd { axis } => {
            // y = scatter_add(updates, ids)  →  updates̅ = g[ids]
            let g = only(g);
            let (updates, ids) = (node.operands[0], t.primal(node.operands[1])?);
            let op = Op::Gather { axis: axis.clone() };
            let updates = t.towards(updates, |t| {
                let ty = t.cotangent_type(updates);
                t.b.one(op, &[g, ids], Some(ty), "t")
            });
            Ok(vec![updates, None])
        }
        Op::Transfer { .. } => {
            // y = x, wherever it lies; gradients stay where they are made.
            let g = only(g);
            Ok(vec![t.towards(node.operands[0], |_| g)])
        }
        Op::Mesh(MeshOp::Constrain { split }) => {
            // What is said of a value holds for its gradient.
            let g = only(g);
            let op = Op::Mesh(MeshOp::Constrain { split: split.clone() });
            Ok(vec![t.towards(node.operands[0], |t| t.b.one(op, &[g], None, "grad"))])
        }
        Op::Mesh(MeshOp::Reshard { .. } | MeshOp::LocalPart { .. } | MeshOp::Collective(_)) => {
            unreachable!("graphs are differentiated before they are sharded")
        }
        Op::CumSum { axis, exclusive, reverse } => {
            // y[i] = Σ x[j] over j ≤ i  →  x̅[j] = Σ g[i] over i ≥ j
            let g = only(g);
            Ok(vec![t.towards(node.operands[0], |t| t.b.cumsum(g, axis, *exclusive, !reverse))])
        }
        Op::Slice { from, to, at } => {
            // y = x[k..k+n]  →  x̅ = 0.., y̅, 0..
            let (g, x) = (only(g), node.operands[0]);
            Ok(vec![t.towards(x, |t| between_zeros(t, g, x, from, to, *at))])
        }
        Op::Concat { parts, axis } => {
            // y = a, b, ..  →  a̅ = y̅[..a], b̅ = y̅[a..a+b], ..
            let g = only(g);
            let mut at = 0;
            let mut cotangents = Vec::new();
            for (operand, part) in node.operands.iter().zip(parts) {
                let ty = t.b.ty(*operand).clone();
                let n = ty.size_of(part).expect("checked by the shape rule");
                let op = Op::Slice { from: axis.clone(), to: part.clone(), at };
                cotangents.push(t.towards(*operand, |t| t.b.one(op, &[g], Some(ty), "t")));
                at += n;
            }
            Ok(cotangents)
        }
        Op::RotatePairs { axis, pairs } => {
            // (a, b) → (−b, a) is a rotation by a quarter turn; its transpose turns back.
            let g = only(g);
            let op = Op::RotatePairs { axis: axis.clone(), pairs: *pairs };
            Ok(vec![t.towards(node.operands[0], |t| {
                let turned = t.b.one(op, &[g], None, "t");
                t.b.unary(UnaryOp::Neg, turned)
            })])
        }
    }
}

/// A slice's cotangent at its place in a tensor of zeros like `x`.
fn between_zeros(t: &mut Tape, g: ValueId, x: ValueId, from: &Name, to: &Name, at: u64) -> ValueId {
    let (whole, part) = (t.b.ty(x).clone(), t.b.ty(g).clone());
    let taken = part.size_of(to).expect("checked by the shape rule");
    let after = whole.size_of(from).expect("checked by the shape rule") - at - taken;
    let zeros = |t: &mut Tape, size: u64| {
        let zero = t.b.constant(part.dtype, 0.0);
        let mut ty = part.clone();
        for axis in ty.axes.iter_mut().filter(|a| a.name == *to) {
            axis.size = size;
        }
        t.b.one(Op::Broadcast, &[zero], Some(ty), "zeros")
    };
    let mut operands = Vec::new();
    if at > 0 {
        operands.push(zeros(t, at));
    }
    operands.push(g);
    if after > 0 {
        operands.push(zeros(t, after));
    }
    let op = Op::Concat { parts: vec![to.clone(); operands.len()], axis: from.clone() };
    t.b.one(op, &operands, None, "t")
}

/// The cotangent of the only result.
fn only(g: &[Option<ValueId>]) -> ValueId {
    g[0].expect("an op with one result is visited when that has a cotangent")
}

/// The primal value in the type of its cotangents.
fn wide_primal(t: &mut Tape, value: ValueId) -> Result<ValueId, AutodiffError> {
    let kept = t.primal(value)?;
    Ok(t.wide(kept))
}

/// Sums a cotangent over the axes its operand lacks.
fn sum_to(t: &mut Tape, g: ValueId, operand: ValueId) -> ValueId {
    let ty = t.b.ty(operand).clone();
    t.b.sum_to(g, &ty)
}

fn unary(t: &mut Tape, op: UnaryOp, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let (x, y) = (node.operands[0], node.results[0]);
    let dtype = t.b.ty(g).dtype;
    if op == UnaryOp::Floor {
        // Constant between its jumps.
        return Ok(vec![None]);
    }
    // What the derivative is a function of.
    let kept = match op {
        UnaryOp::Exp | UnaryOp::Sqrt | UnaryOp::Rsqrt | UnaryOp::Tanh | UnaryOp::Sigmoid => t.primal(y)?,
        UnaryOp::Abs | UnaryOp::Log | UnaryOp::Sin | UnaryOp::Cos | UnaryOp::Erf => t.primal(x)?,
        UnaryOp::Neg | UnaryOp::Floor | UnaryOp::Not => g,
    };
    let kept = t.wide(kept);
    let rule = |t: &mut Tape| -> ValueId {
        let b = &mut t.b;
        match op {
            UnaryOp::Neg => b.unary(UnaryOp::Neg, g),
            // 1 for x > 0, −1 for x < 0, 0 at 0.
            UnaryOp::Abs => {
                let zero = b.constant(dtype, 0.0);
                let positive = b.compare(CompareOp::Gt, kept, zero);
                let negative = b.compare(CompareOp::Lt, kept, zero);
                let minus = b.unary(UnaryOp::Neg, g);
                let below = b.select(negative, minus, zero);
                b.select(positive, g, below)
            }
            // y
            UnaryOp::Exp => b.mul(g, kept),
            // 1/x
            UnaryOp::Log => b.div(g, kept),
            // 1/(2y)
            UnaryOp::Sqrt => {
                let half = b.scale(g, 0.5);
                b.div(half, kept)
            }
            // −y³/2
            UnaryOp::Rsqrt => {
                let square = b.mul(kept, kept);
                let cube = b.mul(square, kept);
                let slope = b.scale(cube, -0.5);
                b.mul(g, slope)
            }
            // 1 − y²
            UnaryOp::Tanh => {
                let square = b.mul(kept, kept);
                let slope = one_minus(b, square);
                b.mul(g, slope)
            }
            // y(1 − y)
            UnaryOp::Sigmoid => {
                let rest = one_minus(b, kept);
                let slope = b.mul(kept, rest);
                b.mul(g, slope)
            }
            // cos x
            UnaryOp::Sin => {
                let slope = b.unary(UnaryOp::Cos, kept);
                b.mul(g, slope)
            }
            // −sin x
            UnaryOp::Cos => {
                let slope = b.unary(UnaryOp::Sin, kept);
                let slope = b.unary(UnaryOp::Neg, slope);
                b.mul(g, slope)
            }
            // 2/√π · exp(−x²)
            UnaryOp::Erf => {
                let square = b.mul(kept, kept);
                let minus = b.unary(UnaryOp::Neg, square);
                let bell = b.unary(UnaryOp::Exp, minus);
                let slope = b.scale(bell, std::f64::consts::FRAC_2_SQRT_PI);
                b.mul(g, slope)
            }
            UnaryOp::Floor | UnaryOp::Not => unreachable!("returned above; a bool is never varied"),
        }
    };
    Ok(vec![t.towards(x, rule)])
}

fn one_minus(b: &mut Builder, x: ValueId) -> ValueId {
    let one = b.constant(b.ty(x).dtype, 1.0);
    b.sub(one, x)
}

fn binary(t: &mut Tape, op: BinaryOp, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let (a, b) = (node.operands[0], node.operands[1]);
    let (toward_a, toward_b) = (t.activity.varied(a), t.activity.varied(b));
    match op {
        BinaryOp::Add => Ok(vec![t.towards(a, |t| sum_to(t, g, a)), t.towards(b, |t| sum_to(t, g, b))]),
        BinaryOp::Sub => Ok(vec![
            t.towards(a, |t| sum_to(t, g, a)),
            t.towards(b, |t| {
                let sum = sum_to(t, g, b);
                t.b.unary(UnaryOp::Neg, sum)
            }),
        ]),
        BinaryOp::Mul => {
            let times = |t: &mut Tape, other: ValueId, to: ValueId| {
                let product =
                    if t.is_one(g) && t.b.ty(g).same_as(t.b.ty(other)) { other } else { t.b.mul(g, other) };
                sum_to(t, product, to)
            };
            let kept_b = if toward_a { wide_primal(t, b)? } else { b };
            let kept_a = if toward_b { wide_primal(t, a)? } else { a };
            Ok(vec![t.towards(a, |t| times(t, kept_b, a)), t.towards(b, |t| times(t, kept_a, b))])
        }
        BinaryOp::Div => {
            // a̅ = g/b, b̅ = −(g/b)·y
            let divisor = wide_primal(t, b)?;
            let y = if toward_b { wide_primal(t, node.results[0])? } else { g };
            let quotient = t.b.div(g, divisor);
            Ok(vec![
                t.towards(a, |t| sum_to(t, quotient, a)),
                t.towards(b, |t| {
                    let product = t.b.mul(quotient, y);
                    let sum = sum_to(t, product, b);
                    t.b.unary(UnaryOp::Neg, sum)
                }),
            ])
        }
        // To the operand that won, to the first if they are equal.
        BinaryOp::Max => pick(t, CompareOp::Ge, node, g),
        BinaryOp::Min => pick(t, CompareOp::Le, node, g),
        BinaryOp::Pow => power(t, node, g),
        // Of integers and truth values.
        BinaryOp::Rem | BinaryOp::And | BinaryOp::Or | BinaryOp::Threefry => Ok(vec![None, None]),
    }
}

fn pick(t: &mut Tape, wins: CompareOp, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let (a, b) = (node.operands[0], node.operands[1]);
    let (kept_a, kept_b) = (t.primal(a)?, t.primal(b)?);
    let first = compare_union(&mut t.b, wins, kept_a, kept_b);
    route(t, first, a, b, g)
}

/// `a` gets the cotangent where the condition holds, `b` elsewhere.
fn route(
    t: &mut Tape,
    condition: ValueId,
    a: ValueId,
    b: ValueId,
    g: ValueId,
) -> Result<Cotangents, AutodiffError> {
    let zero = t.b.constant(t.b.ty(g).dtype, 0.0);
    let to_a = t.towards(a, |t| {
        let part = t.b.select(condition, g, zero);
        sum_to(t, part, a)
    });
    let to_b = t.towards(b, |t| {
        let part = t.b.select(condition, zero, g);
        sum_to(t, part, b)
    });
    Ok(vec![to_a, to_b])
}

/// y = aᵇ: a̅ = g·b·aᵇ⁻¹, b̅ = g·y·log a.
fn power(t: &mut Tape, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let (a, b) = (node.operands[0], node.operands[1]);
    let (base, exponent) = (t.primal(a)?, t.primal(b)?);
    let y = t.primal(node.results[0])?;
    let to_a = t.towards(a, |t| {
        let one = t.b.constant(t.b.ty(exponent).dtype, 1.0);
        let less = t.b.sub(exponent, one);
        let power = t.b.binary_union(BinaryOp::Pow, base, less);
        let slope = t.b.mul(power, exponent);
        let product = t.b.mul(g, slope);
        sum_to(t, product, a)
    });
    let to_b = t.towards(b, |t| {
        let log = t.b.unary(UnaryOp::Log, base);
        let slope = t.b.mul(y, log);
        let product = t.b.mul(g, slope);
        sum_to(t, product, b)
    });
    Ok(vec![to_a, to_b])
}

fn select(t: &mut Tape, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let condition = t.primal(node.operands[0])?;
    let mut cotangents = route(t, condition, node.operands[1], node.operands[2], g)?;
    cotangents.insert(0, None);
    Ok(cotangents)
}

fn reduce(t: &mut Tape, op: ReduceOp, node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let (x, y) = (node.operands[0], node.results[0]);
    let ty = t.b.ty(x).clone();
    match op {
        ReduceOp::Sum => Ok(vec![t.towards(x, |t| t.b.broadcast(g, &ty))]),
        // Shared equally between the elements that reach the extreme, as the subgradient of least norm.
        ReduceOp::Max | ReduceOp::Min => {
            let (x_kept, y_kept) = (t.primal(x)?, t.primal(y)?);
            Ok(vec![t.towards(x, |t| {
                let b = &mut t.b;
                let [zero, one] = [0.0, 1.0].map(|c| b.constant(b.ty(g).dtype, c));
                let reaches = b.compare(CompareOp::Eq, x_kept, y_kept);
                let ones = b.select(reaches, one, zero);
                let axes = b.ty(y_kept).clone();
                let count = b.sum_to(ones, &axes);
                let share = b.div(g, count);
                b.select(reaches, share, zero)
            })])
        }
    }
}

/// y = Σ over k of a·b: each operand's cotangent is g times the other, summed over the axes only the other has. A product of
/// bf16 takes g in bf16 and gives f32.
fn dot(t: &mut Tape, over: &[Name], node: &OpNode, g: ValueId) -> Result<Cotangents, AutodiffError> {
    let (a, b) = (node.operands[0], node.operands[1]);
    debug_assert!(over.iter().all(|axis| t.b.ty(a).has(axis) && t.b.ty(b).has(axis)));
    let times = |t: &mut Tape, other: ValueId, to: ValueId| {
        let ty = t.cotangent_type(to);
        let only_other: Vec<Name> = t.b.ty(other).names().into_iter().filter(|n| !ty.has(n)).collect();
        let g = t.b.cast(g, t.b.ty(other).dtype);
        t.b.one(Op::Dot { over: only_other }, &[g, other], Some(ty), "t")
    };
    let kept_b = if t.activity.varied(a) { t.primal(b)? } else { b };
    let kept_a = if t.activity.varied(b) { t.primal(a)? } else { a };
    Ok(vec![t.towards(a, |t| times(t, kept_b, a)), t.towards(b, |t| times(t, kept_a, b))])
}

/// A loop that already holds its gradients: scale them by the cotangent of its loss.
fn joint(t: &mut Tape, op: OpId, node: &OpNode, g: &[Option<ValueId>]) -> Result<Cotangents, AutodiffError> {
    let mut cotangents = vec![None; node.operands.len()];
    let Joint { loss, gradients } = t.joint[&op].clone();
    let Some(g) = g[loss] else { return Ok(cotangents) };
    let unit = t.is_one(g);
    for (operand, result) in gradients {
        let gradient = t.primal(node.results[result])?;
        cotangents[operand] =
            t.towards(node.operands[operand], |t| if unit { gradient } else { t.b.mul(gradient, g) });
    }
    Ok(cotangents)
}

/// Comparison over the union of the axes.
pub(super) fn compare_union(b: &mut Builder, op: CompareOp, x: ValueId, y: ValueId) -> ValueId {
    let ty: Type = crate::graph::shape::union_type(crate::graph::DType::Bool, &[b.ty(x), b.ty(y)]);
    b.one(Op::Compare(op), &[x, y], Some(ty), "t")
}
