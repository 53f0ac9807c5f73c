//! The mlc compiler: a spec in, a Program out.

pub mod graph;
pub mod spec;
