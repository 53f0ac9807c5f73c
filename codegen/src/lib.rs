//! Code generation: a [`Program`](program::Program) in, one executable out.

/// The calling conventions and tables shared with the runtime.
pub use mlc_runtime::abi;

pub mod kernels;
pub mod kir;
pub mod math;
pub mod program;
pub mod target;
