//! Forward, backward and update in one graph.
//!
//! Comes in: a forward graph whose results are the loss as a sum and its weight. Goes out: the training step, whose
//! results are the reports and the new value of every parameter and optimizer state.

pub mod accumulate;
pub mod activity;
pub(crate) mod attention;
mod batch_positions;
mod composites;
pub mod config;
mod custom;
pub mod differentiate;
pub mod from_spec;
pub mod hoist_invariants;
mod inference_step;
mod loops;
pub mod loss_head;
mod optimizer;
pub mod precision;
mod rules;
mod schedule;
mod skip;
mod stochastic_rounding;
mod tape;
mod training_step;
mod update_rules;

pub use config::TrainConfig;
pub use inference_step::inference_step;
pub use training_step::training_step;

#[cfg(test)]
mod tests;

use crate::graph::SpecLine;
use std::fmt;

/// Why a graph can't be trained.
#[derive(Clone, PartialEq, Debug)]
pub struct AutodiffError {
    /// One sentence with the values involved.
    pub message: String,
    /// The spec line of the op it is about.
    pub line: Option<SpecLine>,
}

impl AutodiffError {
    /// An error about the whole graph.
    pub fn new(message: impl Into<String>) -> AutodiffError {
        AutodiffError { message: message.into(), line: None }
    }
}

impl fmt::Display for AutodiffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.line {
            Some(line) => write!(f, "{}:{}: {}", line.file, line.line, self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for AutodiffError {}
