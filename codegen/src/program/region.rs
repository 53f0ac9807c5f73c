//! Scalar regions: straight-line single-assignment code on scalars, evaluated per element of an iteration space.
//!
//! The same region serves maps, row kernels, matrix-product epilogues and attention scores, on every target.

use mlc_runtime::abi::DType;
use serde::{Deserialize, Serialize};

/// A value of a region: the index of the op that defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ScalarId(pub u32);

/// Straight-line scalar code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Ops in order; op `i` defines `ScalarId(i)`.
    pub ops: Vec<ScalarOp>,
    /// Values handed back, in order.
    pub results: Vec<ScalarId>,
}

/// One scalar op. Arithmetic works on F32, F64, I32 and I64; both operands of an op have one type. Bf16 exists in memory
/// only: inputs of that type are widened to F32 on load, results are rounded to nearest even on store, and
/// [`ScalarOp::Cast`] to it rounds in the same way and stays F32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum ScalarOp {
    /// The i-th input; its type is the operand's, except that Bf16 reads as F32.
    Input(u32),
    /// The current index along dimension `dim` of the iteration space, as I32.
    Index(u32),
    /// A constant.
    Const(DType, f64),
    /// One operand.
    Unary(UnaryOp, ScalarId),
    /// Two operands of one type.
    Binary(BinaryOp, ScalarId, ScalarId),
    /// `a·b + c`, rounded once. F32 and F64.
    MulAdd(ScalarId, ScalarId, ScalarId),
    /// Gives Bool. Ordered: false if an operand is NaN (`Ne` is true then).
    Compare(CompareOp, ScalarId, ScalarId),
    /// `if condition { a } else { b }`.
    Select(ScalarId, ScalarId, ScalarId),
    /// Converts. Float to integer truncates toward zero and saturates; Bool is 0 or 1.
    Cast(DType, ScalarId),
    /// Reduces an element-level value over all reduced dimensions to a row-level value. `Rows` only.
    Reduce(ReduceOp, ScalarId),
}

/// Functions of one operand. Those with a formula are computed by mlc's own polynomials, one definition for all targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum UnaryOp {
    /// −x.
    Neg,
    /// |x|.
    Abs,
    /// eˣ.
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root, correctly rounded.
    Sqrt,
    /// 1/√x.
    Rsqrt,
    /// Hyperbolic tangent.
    Tanh,
    /// 1/(1+e⁻ˣ).
    Sigmoid,
    /// Sine, argument in radians.
    Sin,
    /// Cosine.
    Cos,
    /// Error function.
    Erf,
    /// Largest integer ≤ x.
    Floor,
    /// Logical not of a Bool.
    Not,
}

/// Functions of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BinaryOp {
    /// a + b.
    Add,
    /// a − b.
    Sub,
    /// a · b.
    Mul,
    /// a / b; integer division truncates, and division by 0 gives 0.
    Div,
    /// Remainder of the truncating division; integers only.
    Rem,
    /// The larger; if one operand is NaN, the result is NaN.
    Max,
    /// The smaller; if one operand is NaN, the result is NaN.
    Min,
    /// aᵇ for a > 0, as exp(b·log a); F64 only.
    Pow,
    /// Logical and of two Bools.
    And,
    /// Logical or of two Bools.
    Or,
    /// 64 random bits: the counter b encrypted under the key a by Threefry-2x32-20, see
    /// [`threefry2x32_20`](crate::math::threefry2x32_20); I64 only.
    Threefry,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CompareOp {
    /// a == b.
    Eq,
    /// a != b.
    Ne,
    /// a < b.
    Lt,
    /// a <= b.
    Le,
    /// a > b.
    Gt,
    /// a >= b.
    Ge,
}

/// Reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReduceOp {
    /// Sum; 0 over nothing.
    Sum,
    /// Maximum; −inf over nothing.
    Max,
    /// Minimum; +inf over nothing.
    Min,
}

impl ReduceOp {
    /// `sum`, `max`, `min`.
    pub fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Max => "max",
            ReduceOp::Min => "min",
        }
    }
}
