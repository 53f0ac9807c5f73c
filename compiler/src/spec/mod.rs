//! The spec language: text in, a checked [`checked::Spec`] or a list of [`Diagnostic`]s out.
//!
//! ```text
//! text ── parse ──> ast ── load (use) ──> units ── set (--set) ──> check ──> checked
//!                    └── print (canonical text)
//! ```
//! This room knows files only through [`load::Loader`] and nothing of graphs, devices or numbers on tensors.

pub mod ast;
pub mod check;
pub mod checked;
pub mod codes;
pub mod decode;
pub mod diagnostic;
pub mod expand;
pub mod glob;
pub mod library;
pub mod load;
pub mod parse;
pub mod placement;
pub mod print;
pub mod schema;
pub mod set;
pub mod source;

pub use check::{check, check_alone, check_for};
pub use diagnostic::{Diagnostic, Severity};
pub use expand::{expand, expand_for};
pub use load::{FileLoader, Loader, MemoryLoader};
pub use source::{Location, SourceId, SourceMap, Span};

#[cfg(test)]
mod tests;
