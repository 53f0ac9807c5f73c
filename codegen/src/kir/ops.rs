//! The ops that come in families: on one operand, on two, comparisons, and what lanes are reduced with.

use super::Elem;

/// Ops on one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnaryOp {
    /// −x; wraps on integers, flips the sign bit on floats.
    Neg,
    /// |x|; wraps on integers, clears the sign bit on floats.
    Abs,
    /// Bitwise not; integers and `i1`.
    Not,
    /// Correctly rounded square root; floats.
    Sqrt,
    /// Largest whole number ≤ x; floats.
    Floor,
    /// Smallest whole number ≥ x; floats.
    Ceil,
    /// Toward zero; floats.
    Trunc,
    /// To the nearest whole number, ties to even; floats.
    RoundEven,
    /// Rounds an f32 to the nearest bf16 value, ties to even, and keeps it as f32; a NaN becomes `0x7fc0_0000`.
    RoundBf16,
}

impl UnaryOp {
    /// Every op.
    pub const ALL: [UnaryOp; 9] = [
        UnaryOp::Neg,
        UnaryOp::Abs,
        UnaryOp::Not,
        UnaryOp::Sqrt,
        UnaryOp::Floor,
        UnaryOp::Ceil,
        UnaryOp::Trunc,
        UnaryOp::RoundEven,
        UnaryOp::RoundBf16,
    ];

    /// Text form.
    pub const fn name(self) -> &'static str {
        match self {
            UnaryOp::Neg => "neg",
            UnaryOp::Abs => "abs",
            UnaryOp::Not => "not",
            UnaryOp::Sqrt => "sqrt",
            UnaryOp::Floor => "floor",
            UnaryOp::Ceil => "ceil",
            UnaryOp::Trunc => "trunc",
            UnaryOp::RoundEven => "round_even",
            UnaryOp::RoundBf16 => "round_bf16",
        }
    }

    /// Whether the op is defined on this lane type.
    pub const fn accepts(self, elem: Elem) -> bool {
        match self {
            UnaryOp::Neg | UnaryOp::Abs => !matches!(elem, Elem::I1),
            UnaryOp::Not => !elem.is_float(),
            UnaryOp::Sqrt | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Trunc | UnaryOp::RoundEven => {
                elem.is_float()
            }
            UnaryOp::RoundBf16 => matches!(elem, Elem::F32),
        }
    }
}

/// Ops on two operands of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BinaryOp {
    /// a + b; integers wrap.
    Add,
    /// a − b; integers wrap.
    Sub,
    /// a · b; integers wrap.
    Mul,
    /// a / b. Integers truncate toward zero, x / 0 = 0, MIN / −1 = MIN.
    Div,
    /// a − (a / b)·b on integers, x rem 0 = 0.
    Rem,
    /// The smaller; NaN if either is; −0 < +0.
    Min,
    /// The larger; NaN if either is; −0 < +0.
    Max,
    /// Bitwise and; integers and `i1`.
    And,
    /// Bitwise or; integers and `i1`.
    Or,
    /// Bitwise exclusive or; integers and `i1`.
    Xor,
    /// a shifted left by b modulo the width; integers.
    Shl,
    /// a shifted right by b modulo the width, zeros coming in; integers.
    ShrU,
    /// a shifted right by b modulo the width, copies of the sign coming in; integers.
    ShrS,
}

impl BinaryOp {
    /// Every op.
    pub const ALL: [BinaryOp; 13] = [
        BinaryOp::Add,
        BinaryOp::Sub,
        BinaryOp::Mul,
        BinaryOp::Div,
        BinaryOp::Rem,
        BinaryOp::Min,
        BinaryOp::Max,
        BinaryOp::And,
        BinaryOp::Or,
        BinaryOp::Xor,
        BinaryOp::Shl,
        BinaryOp::ShrU,
        BinaryOp::ShrS,
    ];

    /// Text form.
    pub const fn name(self) -> &'static str {
        match self {
            BinaryOp::Add => "add",
            BinaryOp::Sub => "sub",
            BinaryOp::Mul => "mul",
            BinaryOp::Div => "div",
            BinaryOp::Rem => "rem",
            BinaryOp::Min => "min",
            BinaryOp::Max => "max",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
            BinaryOp::Xor => "xor",
            BinaryOp::Shl => "shl",
            BinaryOp::ShrU => "shr_u",
            BinaryOp::ShrS => "shr_s",
        }
    }

    /// Whether the op is defined on this lane type.
    pub const fn accepts(self, elem: Elem) -> bool {
        match self {
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Min | BinaryOp::Max => {
                !matches!(elem, Elem::I1)
            }
            BinaryOp::Rem | BinaryOp::Shl | BinaryOp::ShrU | BinaryOp::ShrS => {
                matches!(elem, Elem::I32 | Elem::I64)
            }
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => !elem.is_float(),
        }
    }
}

/// Comparisons; signed on integers (`i1` compares as 0 and 1 for `eq` and `ne` only). On floats all but `Ne` are false
/// if an operand is NaN, `Ne` is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl CompareOp {
    /// Every op.
    pub const ALL: [CompareOp; 6] =
        [CompareOp::Eq, CompareOp::Ne, CompareOp::Lt, CompareOp::Le, CompareOp::Gt, CompareOp::Ge];

    /// Text form.
    pub const fn name(self) -> &'static str {
        match self {
            CompareOp::Eq => "eq",
            CompareOp::Ne => "ne",
            CompareOp::Lt => "lt",
            CompareOp::Le => "le",
            CompareOp::Gt => "gt",
            CompareOp::Ge => "ge",
        }
    }

    /// Whether the op is defined on this lane type.
    pub const fn accepts(self, elem: Elem) -> bool {
        match self {
            CompareOp::Eq | CompareOp::Ne => true,
            CompareOp::Lt | CompareOp::Le | CompareOp::Gt | CompareOp::Ge => !matches!(elem, Elem::I1),
        }
    }
}

/// What [`Op::Reduce`] combines lanes with; each is the [`BinaryOp`] of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReduceOp {
    /// Sum.
    Add,
    /// Smallest.
    Min,
    /// Largest.
    Max,
    /// Bitwise and; on `i1` "all".
    And,
    /// Bitwise or; on `i1` "any".
    Or,
}

impl ReduceOp {
    /// Every op.
    pub const ALL: [ReduceOp; 5] = [ReduceOp::Add, ReduceOp::Min, ReduceOp::Max, ReduceOp::And, ReduceOp::Or];

    /// The op on two values.
    pub const fn binary(self) -> BinaryOp {
        match self {
            ReduceOp::Add => BinaryOp::Add,
            ReduceOp::Min => BinaryOp::Min,
            ReduceOp::Max => BinaryOp::Max,
            ReduceOp::And => BinaryOp::And,
            ReduceOp::Or => BinaryOp::Or,
        }
    }
}
