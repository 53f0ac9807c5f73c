//! The mlc compiler: a spec in, a Program out.

pub mod autodiff;
pub mod graph;
pub mod metadata;
pub mod pipeline;
pub mod interpret;
pub mod spec;
