//! Kernels through MLIR: KIR as MLIR text ([`emit`]), parsed and lowered in-process ([`Context`]) to an LLVM module.
//!
//! One kernel is one module. Only this folder names `mlir-sys`.

#[cfg(feature = "llvm")]
mod context;
mod emit;

#[cfg(feature = "llvm")]
pub use context::{Context, Module};
pub use emit::emit;

/// Lowers what [`emit`] writes to the `llvm` dialect alone.
pub const PIPELINE: &str = "builtin.module(convert-scf-to-cf,convert-vector-to-llvm,convert-arith-to-llvm,\
                            convert-cf-to-llvm,reconcile-unrealized-casts)";

/// Lowers files of the user's own: `func`, `memref`, `scf`, `vector`, `arith`, `math`, `cf` and `ub` to the `llvm` dialect.
pub const CUSTOM_PIPELINE: &str = "builtin.module(convert-vector-to-scf,convert-scf-to-cf,expand-strided-metadata,\
                                   convert-vector-to-llvm,finalize-memref-to-llvm,convert-math-to-llvm,\
                                   convert-arith-to-llvm,convert-func-to-llvm,convert-cf-to-llvm,convert-ub-to-llvm,\
                                   reconcile-unrealized-casts)";
