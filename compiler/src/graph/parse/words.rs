//! Mnemonics and what they stand for.

use crate::graph::{BinaryOp, CompareOp, DType, Op, ReduceOp, UnaryOp};

/// Element types.
pub(super) const DTYPES: [DType; 6] =
    [DType::F32, DType::F64, DType::Bf16, DType::I32, DType::I64, DType::Bool];

/// Mnemonics of ops that open a block.
pub(super) const BLOCKS: [&str; 13] = [
    "loop",
    "update",
    "softmax",
    "cross_entropy",
    "rms_norm",
    "layer_norm",
    "rope",
    "attention",
    "attention_grad",
    "loss_head",
    "custom",
    "grouped_dot",
    "grouped_outer",
];

/// Unary functions.
const UNARY: [UnaryOp; 13] = [
    UnaryOp::Neg,
    UnaryOp::Abs,
    UnaryOp::Exp,
    UnaryOp::Log,
    UnaryOp::Sqrt,
    UnaryOp::Rsqrt,
    UnaryOp::Tanh,
    UnaryOp::Sigmoid,
    UnaryOp::Sin,
    UnaryOp::Cos,
    UnaryOp::Erf,
    UnaryOp::Floor,
    UnaryOp::Not,
];

/// Binary functions.
const BINARY: [BinaryOp; 11] = [
    BinaryOp::Add,
    BinaryOp::Sub,
    BinaryOp::Mul,
    BinaryOp::Div,
    BinaryOp::Rem,
    BinaryOp::Max,
    BinaryOp::Min,
    BinaryOp::Pow,
    BinaryOp::And,
    BinaryOp::Or,
    BinaryOp::Threefry,
];

/// Comparisons.
const COMPARE: [CompareOp; 6] =
    [CompareOp::Eq, CompareOp::Ne, CompareOp::Lt, CompareOp::Le, CompareOp::Gt, CompareOp::Ge];

/// Element-wise functions, comparisons and reductions by mnemonic; a reduction comes without its axes.
pub(super) fn element_op(mnemonic: &str) -> Option<Op> {
    let unary = UNARY.into_iter().map(Op::Unary);
    let binary = BINARY.into_iter().map(Op::Binary);
    let compare = COMPARE.into_iter().map(Op::Compare);
    let reduce = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min]
        .into_iter()
        .map(|op| Op::Reduce { op, axes: Vec::new() });
    unary.chain(binary).chain(compare).chain(reduce).find(|op| crate::graph::shape::op_name(op) == mnemonic)
}
