//! Tests that cross packages live in `tests/tests/`; this library holds what they share.

pub mod elf;
pub mod harness;
pub mod mutate_text;
pub mod numpy;
pub mod parity;
pub mod programs;
pub mod random_graph;
pub mod random_layout;
pub mod random_ops;
pub mod random_sharding;
pub mod random_spec;
pub mod training;
