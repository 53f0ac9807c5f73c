//! Tests of the whole back end. They are in the library, so that one test executable links LLVM.
//!
//! What asks for MLIR or LLVM by name needs the feature `llvm`; all else runs in every build, with every back end it has.

pub(crate) mod bits;
mod build;
mod collectives;
#[cfg(feature = "llvm")]
mod micro_kernel;
