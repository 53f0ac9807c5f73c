//! Tests of the whole back end. They are in the library, so that one test executable links LLVM.

pub(crate) mod bits;
mod build;
mod micro_kernel;
