//! Code generation: a [`Program`](program::Program) in, one executable out.

/// The calling conventions and tables shared with the runtime.
pub use mlc_runtime::abi;

pub mod backend;
pub mod build;
pub mod cache;
pub mod cranelift;
pub mod custom;
pub mod emit;
pub mod kernels;
pub mod kir;
pub mod link;
#[cfg(feature = "llvm")]
pub mod llvm;
pub mod math;
pub mod mlir;
pub mod program;
pub mod run;
pub mod target;
#[cfg(test)]
mod tests;
pub mod worker;

pub use backend::Codegen;
pub use build::{BuildOptions, Built, Error, KernelReport, Progress, build};
pub use emit::{KernelStage, emit};
pub use worker::{WORKER_ARGUMENT, WorkerCommand, worker_main};
