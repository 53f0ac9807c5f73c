//! The runtime of a training binary.

pub mod abi;
