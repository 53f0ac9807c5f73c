//! Texts shared by the tests.

/// The whole model language in one file.
pub const LLAMA: &str = include_str!("samples/llama.spec");
/// The whole run language in one file.
pub const RUN: &str = include_str!("samples/run.spec");
