//! Parameters of bf16 rounded up or down at random, so that steps shorter than half their spacing are not lost.
//!
//! A number between two neighbours of bf16 becomes the upper one with the probability of its distance from the lower one: its
//! expectation is itself. The draw is a function of (seed, step, logical path, logical index) alone.
//! Source: Gupta, Agrawal, Gopalakrishnan, Narayanan 2015 (arXiv:1502.02551), §3.1.

use crate::graph::{Builder, CompareOp, DType, Name, Type, UnaryOp, ValueId};

/// Times this, a bf16 number of 8 significant bits moves by 5/8 to 5/4 of the distance to its neighbour, which is the nearest
/// bf16 number then; just below a power of two, where the distance halves, too.
const NEIGHBOUR: f64 = 1.25 / 256.0;

/// Numbers in [0, 1], f32 over the axes of a parameter.
pub(super) fn draws(b: &mut Builder, path: &Name, ty: &Type) -> ValueId {
    let step = b.step_key();
    let key = b.site_key(step, &format!("{path}.rounding"));
    let bits = b.random_bits(&ty.with_dtype(DType::I64), key, None);
    // The low word as a signed number.
    let word = b.cast(bits, DType::I32);
    let word = b.cast(word, DType::F32);
    let centred = b.scale(word, 1.0 / 4_294_967_296.0);
    let half = b.constant(DType::F32, 0.5);
    let draws = b.add(centred, half);
    b.set_name(draws, "draws");
    draws
}

/// ```text
/// x f32 [..], draws f32 [..] -> bf16 [..]
/// ```
pub(super) fn round(b: &mut Builder, x: ValueId, draws: ValueId) -> ValueId {
    let to_bf16 = |b: &mut Builder, v: ValueId| {
        let short = b.cast(v, DType::Bf16);
        b.cast(short, DType::F32)
    };
    let size = b.unary(UnaryOp::Abs, x);
    let nearest = to_bf16(b, size);
    let less = b.scale(nearest, 1.0 - NEIGHBOUR);
    let less = to_bf16(b, less);
    let is_below = b.compare(CompareOp::Le, nearest, size);
    let lower = b.select(is_below, nearest, less);
    let more = b.scale(lower, 1.0 + NEIGHBOUR);
    let upper = to_bf16(b, more);
    let gap = b.sub(upper, lower);
    let above = b.sub(size, lower);
    // 0/0 at 0 and at infinities compares false: the lower one, which is the number itself.
    let share = b.div(above, gap);
    let goes_up = b.compare(CompareOp::Lt, draws, share);
    let rounded = b.select(goes_up, upper, lower);
    let zero = b.constant(DType::F32, 0.0);
    let is_negative = b.compare(CompareOp::Lt, x, zero);
    let negative = b.unary(UnaryOp::Neg, rounded);
    let signed = b.select(is_negative, negative, rounded);
    b.cast(signed, DType::Bf16)
}
