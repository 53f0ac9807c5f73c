//! The machine under one rank: its memory, its threads, and what its CPU can do.

pub mod cpu;
pub mod memory;
pub mod pool;
