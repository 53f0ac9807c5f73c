//! The runtime of a training binary.

pub mod abi;
pub mod data;
pub mod device;
pub mod failure;
pub mod numeric;
pub mod random;
