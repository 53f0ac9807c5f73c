//! From a sharded graph to what one rank computes: how a value that lies one way is made to lie another, and everything else
//! on the parts a rank holds.

pub mod combine;
pub mod partition;
pub mod replication;
pub mod reshard;

#[cfg(test)]
mod microbatches;
#[cfg(test)]
mod models;
#[cfg(test)]
mod soundness;
