//! The three arithmetics of the interpreter: plain f64, rounded as the types say, and f64 with a running error bound.
//!
//! The bound is first-order running error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed.,
//! §3.3): each op passes its operands' errors on by its derivative and adds its own rounding, in units of the type it is
//! written in, and that of the reference, which computes every op in f64 whatever its type. The second share is nothing
//! beside f32, but both are equal for an op written in f64: there the reference is as far from the real number as what is
//! compared with it, and on the other side of it if it happens so. Comparing a compiled run with the interpreter then needs
//! no tolerance: the bound follows from the graph.

use crate::graph::{BinaryOp, CompareOp, DType, UnaryOp};
use mlc_codegen::math::threefry2x32_20;
use mlc_codegen::program::reference::{bf16_from_f32, bf16_to_f32, erf};

/// A comparison's result: 0 or 1, plus [`UNCERTAIN`] where the operands' errors could turn it.
pub(super) type Truth = i64;

/// Marks a truth value that rounding could have turned.
pub(super) const UNCERTAIN: Truth = 2;

/// One float of the interpreter.
pub(super) trait Number: Copy + Send + Sync + 'static {
    /// A running sum.
    type Sum: Copy;

    /// A value given from outside (a constant, an input) of this type.
    fn given(dtype: DType, x: f64) -> Self;
    /// The value.
    fn value(self) -> f64;
    /// Bound on the distance of an honest evaluation in the written types from the value.
    fn error(self) -> f64;
    /// `op(a)` in `dtype`.
    fn unary(dtype: DType, op: UnaryOp, a: Self) -> Self;
    /// `op(a, b)` in `dtype`.
    fn binary(dtype: DType, op: BinaryOp, a: Self, b: Self) -> Self;
    /// Conversion from one floating type to another.
    fn cast(from: DType, to: DType, a: Self) -> Self;
    /// Comparison.
    fn compare(op: CompareOp, a: Self, b: Self) -> Truth;
    /// `a` where the choice between `a` and `b` is uncertain.
    fn uncertain(a: Self, b: Self) -> Self;
    /// 0.
    fn empty() -> Self::Sum;
    /// Adds `a·b`.
    fn accumulate(sum: &mut Self::Sum, a: Self, b: Self);
    /// Adds `a`.
    fn append(sum: &mut Self::Sum, a: Self);
    /// The sum in `dtype`.
    fn total(dtype: DType, sum: Self::Sum) -> Self;
}

/// `op(x)` in f64.
pub fn unary(op: UnaryOp, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Rsqrt => 1.0 / x.sqrt(),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Erf => erf(x),
        UnaryOp::Floor => x.floor(),
        // Defined on truth values only; the verifier keeps floats away.
        UnaryOp::Not => f64::NAN,
    }
}

/// `op(x, y)` in f64.
pub fn binary(op: BinaryOp, x: f64, y: f64) -> f64 {
    match op {
        BinaryOp::Add => x + y,
        BinaryOp::Sub => x - y,
        BinaryOp::Mul => x * y,
        BinaryOp::Div => x / y,
        BinaryOp::Rem => x % y,
        BinaryOp::Max if x.is_nan() || y.is_nan() => f64::NAN,
        BinaryOp::Max => x.max(y),
        BinaryOp::Min if x.is_nan() || y.is_nan() => f64::NAN,
        BinaryOp::Min => x.min(y),
        BinaryOp::Pow => (y * x.ln()).exp(),
        // Defined on truth values and integers only.
        BinaryOp::And | BinaryOp::Or | BinaryOp::Threefry => f64::NAN,
    }
}

/// `op(x, y)` on integers and truth values; i32 wraps at 32 bits.
pub fn int_binary(dtype: DType, op: BinaryOp, x: i64, y: i64) -> i64 {
    let wide = match op {
        BinaryOp::Add => x.wrapping_add(y),
        BinaryOp::Sub => x.wrapping_sub(y),
        BinaryOp::Mul => x.wrapping_mul(y),
        BinaryOp::Div if y == 0 => 0,
        BinaryOp::Div => x.wrapping_div(y),
        BinaryOp::Rem if y == 0 => 0,
        BinaryOp::Rem => x.wrapping_rem(y),
        BinaryOp::Max => x.max(y),
        BinaryOp::Min => x.min(y),
        BinaryOp::And => x & y & 1 | uncertain_and(x, y),
        BinaryOp::Or => (x | y) & 1 | uncertain_or(x, y),
        // Defined on f64 only.
        BinaryOp::Pow => 0,
        BinaryOp::Threefry => threefry2x32_20(x, y),
    };
    wrap(dtype, wide)
}

/// An `and` is certain if one side is certainly false.
fn uncertain_and(x: Truth, y: Truth) -> Truth {
    if x == 0 || y == 0 { 0 } else { (x | y) & UNCERTAIN }
}

/// An `or` is certain if one side is certainly true.
fn uncertain_or(x: Truth, y: Truth) -> Truth {
    if x == 1 || y == 1 { 0 } else { (x | y) & UNCERTAIN }
}

/// Brings an integer into its type's range.
pub(super) fn wrap(dtype: DType, x: i64) -> i64 {
    match dtype {
        DType::I32 => i64::from(x as i32),
        DType::I64 | DType::Bool => x,
        DType::F32 | DType::F64 | DType::Bf16 => x,
    }
}

/// Float to integer: toward zero, saturating, NaN gives 0.
pub fn to_int(dtype: DType, x: f64) -> i64 {
    match dtype {
        DType::I32 => i64::from(x as i32),
        DType::Bool => i64::from(x != 0.0),
        DType::I64 | DType::F32 | DType::F64 | DType::Bf16 => x as i64,
    }
}

fn holds(op: CompareOp, order: Option<std::cmp::Ordering>) -> Truth {
    let Some(order) = order else { return i64::from(op == CompareOp::Ne) };
    i64::from(match op {
        CompareOp::Eq => order.is_eq(),
        CompareOp::Ne => order.is_ne(),
        CompareOp::Lt => order.is_lt(),
        CompareOp::Le => order.is_le(),
        CompareOp::Gt => order.is_gt(),
        CompareOp::Ge => order.is_ge(),
    })
}

/// Comparison of integers.
pub(super) fn int_compare(op: CompareOp, x: i64, y: i64) -> Truth {
    holds(op, Some(x.cmp(&y)))
}

/// Comparison of floats.
pub fn float_compare(op: CompareOp, x: f64, y: f64) -> bool {
    holds(op, x.partial_cmp(&y)) == 1
}

/// Every float is an f64, whatever its type says.
impl Number for f64 {
    type Sum = f64;

    fn given(_: DType, x: f64) -> f64 {
        x
    }
    fn value(self) -> f64 {
        self
    }
    fn error(self) -> f64 {
        0.0
    }
    fn unary(_: DType, op: UnaryOp, a: f64) -> f64 {
        unary(op, a)
    }
    fn binary(_: DType, op: BinaryOp, a: f64, b: f64) -> f64 {
        binary(op, a, b)
    }
    fn cast(_: DType, _: DType, a: f64) -> f64 {
        a
    }
    fn compare(op: CompareOp, a: f64, b: f64) -> Truth {
        holds(op, a.partial_cmp(&b))
    }
    fn uncertain(a: f64, _: f64) -> f64 {
        a
    }
    fn empty() -> f64 {
        0.0
    }
    fn accumulate(sum: &mut f64, a: f64, b: f64) {
        *sum += a * b;
    }
    fn append(sum: &mut f64, a: f64) {
        *sum += a;
    }
    fn total(_: DType, sum: f64) -> f64 {
        sum
    }
}

/// A float that its type can hold: every op's result is rounded, sums run in f64 and are rounded once.
#[derive(Clone, Copy)]
pub(super) struct Rounded(f64);

/// The nearest value of the type.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::Bf16 => f64::from(bf16_to_f32(bf16_from_f32(x as f32))),
        DType::F64 | DType::I32 | DType::I64 | DType::Bool => x,
    }
}

impl Number for Rounded {
    type Sum = f64;

    fn given(dtype: DType, x: f64) -> Rounded {
        Rounded(round(dtype, x))
    }
    fn value(self) -> f64 {
        self.0
    }
    fn error(self) -> f64 {
        0.0
    }
    fn unary(dtype: DType, op: UnaryOp, a: Rounded) -> Rounded {
        Rounded(round(dtype, unary(op, a.0)))
    }
    fn binary(dtype: DType, op: BinaryOp, a: Rounded, b: Rounded) -> Rounded {
        Rounded(round(dtype, binary(op, a.0, b.0)))
    }
    fn cast(_: DType, to: DType, a: Rounded) -> Rounded {
        Rounded(round(to, a.0))
    }
    fn compare(op: CompareOp, a: Rounded, b: Rounded) -> Truth {
        holds(op, a.0.partial_cmp(&b.0))
    }
    fn uncertain(a: Rounded, _: Rounded) -> Rounded {
        a
    }
    fn empty() -> f64 {
        0.0
    }
    fn accumulate(sum: &mut f64, a: Rounded, b: Rounded) {
        *sum += a.0 * b.0;
    }
    fn append(sum: &mut f64, a: Rounded) {
        *sum += a.0;
    }
    fn total(dtype: DType, sum: f64) -> Rounded {
        Rounded(round(dtype, sum))
    }
}

/// An f64, itself rounded at every op, with the distance an evaluation in the written types may lie from it.
#[derive(Clone, Copy)]
pub(super) struct Bounded {
    value: f64,
    error: f64,
}

/// A running sum: value, error passed on by the terms, sum of magnitudes, number of terms.
#[derive(Clone, Copy)]
pub(super) struct BoundedSum {
    value: f64,
    passed: f64,
    magnitude: f64,
    terms: f64,
}

/// Unit roundoff: half the distance from 1 to the next number.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::Bf16 => 1.0 / 256.0,
        DType::F64 => f64::EPSILON / 2.0,
        DType::I32 | DType::I64 | DType::Bool => 0.0,
    }
}

/// Absolute error of an op that underflows: the smallest positive number, twice what rounding to nearest leaves.
fn tiny(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::from_bits(1),
        DType::Bf16 => f64::from(f32::from_bits(1 << 15)),
        DType::F32 | DType::I32 | DType::I64 | DType::Bool => f64::from(f32::from_bits(1)),
    }
}

/// `error · |slope|`, 0 where the operand is exact even if the slope is not finite.
fn through(error: f64, slope: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error * slope.abs() }
}

/// Roundings of one op, in units of half a last place of its result.
#[derive(Clone, Copy)]
struct Roundings {
    /// Of an evaluation in the written type.
    written: f64,
    /// Of the reference in f64.
    reference: f64,
}

impl Roundings {
    fn new(written: f64, reference: f64) -> Roundings {
        Roundings { written, reference }
    }

    /// Their absolute error in results of this size: of the reference's, and of what the evaluation gets from operands that
    /// are off already.
    fn error(self, dtype: DType, value: f64, passed: f64) -> f64 {
        let written = self.written * unit(dtype) * (value.abs() + passed);
        written + self.reference * unit(DType::F64) * value.abs()
    }
}

impl Bounded {
    /// A result with its passed-on error and its own roundings.
    fn made(dtype: DType, value: f64, passed: f64, own: Roundings) -> Bounded {
        Bounded::off_by(value, passed + own.error(dtype, value, passed) + tiny(dtype) + tiny(DType::F64))
    }

    /// An infinity or NaN is compared as such. A bound beyond all numbers, or one that infinities cancel in, says nothing.
    fn off_by(value: f64, error: f64) -> Bounded {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        Bounded { value, error: if value.is_finite() { error } else { 0.0 } }
    }
}

impl Number for Bounded {
    type Sum = BoundedSum;

    fn given(dtype: DType, x: f64) -> Bounded {
        let error = (round(dtype, x) - x).abs();
        Bounded { value: x, error: if error.is_finite() { error } else { 0.0 } }
    }
    fn value(self) -> f64 {
        self.value
    }
    fn error(self) -> f64 {
        self.error
    }

    /// The functions' own errors are those the code generator states for its polynomials, and twice a last place for those
    /// of the reference; its composed ones add up their steps, its series for erf is good to eight last places.
    fn unary(dtype: DType, op: UnaryOp, a: Bounded) -> Bounded {
        let (x, e) = (a.value, a.error);
        let y = unary(op, x);
        let own = Roundings::new;
        let (passed, own) = match op {
            UnaryOp::Neg | UnaryOp::Abs => return Bounded { value: y, error: e },
            UnaryOp::Floor => return Bounded { value: y, error: ((x + e).floor() - (x - e).floor()).abs() },
            // eˣ⁺ᵉ − eˣ = eˣ·(eᵉ − 1), exact for large e too.
            UnaryOp::Exp => (if e == 0.0 { 0.0 } else { y * e.exp_m1() }, own(4.0, 4.0)),
            // The slope at the near end of the interval bounds it inside.
            UnaryOp::Log => (through(e, 1.0 / (x - e).max(x / 16.0)), own(4.0, 4.0)),
            UnaryOp::Sqrt => (through(e, 0.5 / (x - e).max(x / 16.0).sqrt()), own(2.0, 1.0)),
            UnaryOp::Rsqrt => (through(e, 0.5 * (x - e).max(x / 16.0).powf(-1.5)), own(4.0, 3.0)),
            UnaryOp::Tanh => (e.min(2.0), own(8.0, 4.0)),
            UnaryOp::Sigmoid => (through(e, 0.25), own(8.0, 6.0)),
            UnaryOp::Sin | UnaryOp::Cos => (e + 2.0 * unit(dtype), own(4.0, 4.0)),
            UnaryOp::Erf => (through(e, std::f64::consts::FRAC_2_SQRT_PI), own(8.0, 16.0)),
            // Of truth values alone.
            UnaryOp::Not => return Bounded { value: y, error: 0.0 },
        };
        Bounded::made(dtype, y, passed, own)
    }

    fn binary(dtype: DType, op: BinaryOp, a: Bounded, b: Bounded) -> Bounded {
        let (x, y, ex, ey) = (a.value, b.value, a.error, b.error);
        let z = binary(op, x, y);
        let passed = match op {
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Rem => ex + ey,
            BinaryOp::Mul => through(ex, y) + through(ey, x) + ex * ey,
            BinaryOp::Div => {
                // Relative to the divisor's near end.
                let room = (1.0 - ey / y.abs()).max(1.0 / 16.0);
                (through(ex, 1.0 / y) + through(ey, z / y)) / room
            }
            BinaryOp::Max | BinaryOp::Min => return Bounded { value: z, error: ex.max(ey) },
            BinaryOp::Pow => {
                // Logarithm and product are relative to the exponent, which the exponential makes relative to the result.
                let exponent = (y * x.ln()).abs();
                let own = Roundings::new(8.0 + 4.0 * exponent, 4.0 + 5.0 * exponent);
                return Bounded::made(dtype, z, through(ex, y * z / x) + through(ey, z * x.ln()), own);
            }
            BinaryOp::And | BinaryOp::Or | BinaryOp::Threefry => 0.0,
        };
        // A quotient may be a product with a reciprocal where it is compiled: two roundings.
        Bounded::made(dtype, z, passed, Roundings::new(2.0, 1.0))
    }

    fn cast(from: DType, to: DType, a: Bounded) -> Bounded {
        let widens = from == to || to == DType::F64 || (from, to) == (DType::Bf16, DType::F32);
        if widens { a } else { Bounded::made(to, a.value, a.error, Roundings::new(1.0, 0.0)) }
    }

    fn compare(op: CompareOp, a: Bounded, b: Bounded) -> Truth {
        let sure = (a.value - b.value).abs() > a.error + b.error || a.error + b.error == 0.0;
        let finite = a.value.is_finite() && b.value.is_finite();
        holds(op, a.value.partial_cmp(&b.value)) | if sure || !finite { 0 } else { UNCERTAIN }
    }

    fn uncertain(a: Bounded, b: Bounded) -> Bounded {
        Bounded { value: a.value, error: (a.value - b.value).abs() + a.error.max(b.error) }
    }

    fn empty() -> BoundedSum {
        BoundedSum { value: 0.0, passed: 0.0, magnitude: 0.0, terms: 0.0 }
    }
    fn accumulate(sum: &mut BoundedSum, a: Bounded, b: Bounded) {
        let product = a.value * b.value;
        sum.value += product;
        sum.passed += through(a.error, b.value) + through(b.error, a.value) + a.error * b.error;
        sum.magnitude += product.abs();
        sum.terms += 1.0;
    }
    fn append(sum: &mut BoundedSum, a: Bounded) {
        sum.value += a.value;
        sum.passed += a.error;
        sum.magnitude += a.value.abs();
        sum.terms += 1.0;
    }
    /// Any order of n additions stays within (n − 1)·u·Σ|terms| to first order (Higham §4.2); one more for products, one
    /// for the result. The reference adds in one order, which may err to the other side.
    fn total(dtype: DType, sum: BoundedSum) -> Bounded {
        let each = sum.terms + 1.0;
        let own = Roundings::new(each, each).error(dtype, sum.magnitude, sum.passed);
        let underflow = (each + 1.0) * (tiny(dtype) + tiny(DType::F64));
        Bounded::off_by(sum.value, sum.passed + own + underflow)
    }
}
