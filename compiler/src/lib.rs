//! The mlc compiler: a spec in, a Program out.

// Before the rooms, whose tests use its macros.
#[cfg(test)]
#[macro_use]
mod testing;

pub mod autodiff;
pub mod check_kernels;
pub mod cost;
pub mod fuse;
pub mod graph;
pub mod interpret;
pub mod lower;
pub mod memory;
pub mod metadata;
pub mod passes;
pub mod pipeline;
pub mod remat;
pub mod report;
pub mod schedule;
pub mod sharding;
pub mod spec;
pub mod spmd;
pub mod timeline;
pub mod units;
