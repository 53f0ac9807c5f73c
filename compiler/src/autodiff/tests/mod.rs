//! Gradients against central differences and by the dot-product test, in f64.

mod aux;
mod composites;
mod coverage;
mod custom;
mod dropout;
mod gradient;
mod llama;
mod loops;
mod moe;
mod ops;
mod packed;
mod precision;
mod rounding;
mod std_blocks;
mod text;
mod training;

pub(super) use gradient::{check, check_graph, checked_ops, environment, op_kind, param, param_in};
pub(super) use llama::llama;
