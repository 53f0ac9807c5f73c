//! The spec language: text in, a checked [`checked::Spec`] or a list of [`Diagnostic`]s out.

pub mod ast;
pub mod checked;
pub mod codes;
pub mod diagnostic;
pub mod parse;
pub mod print;
pub mod source;

pub use diagnostic::{Diagnostic, Severity};
pub use source::{Location, SourceId, SourceMap, Span};

#[cfg(test)]
mod tests;
