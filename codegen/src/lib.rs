//! Code generation: a [`Program`](program::Program) in, one executable out.

pub mod kir;
pub mod program;
