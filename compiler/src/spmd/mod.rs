//! From a sharded graph to what one rank computes: how a value that lies one way is made to lie another.

pub mod combine;
pub mod reshard;
