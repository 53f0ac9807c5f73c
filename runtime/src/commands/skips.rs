//! Skipped steps: why each was, and when there are too many in a row.

use crate::abi::SkipInfo;
use crate::failure::{Exit, Failure};
use crate::program::Program;
use crate::step::Outcome;

/// Counts the steps of a run that left everything as it was.
#[derive(Debug, Default)]
pub struct Skips {
    /// Of this run.
    pub total: u64,
    in_a_row: u64,
}

impl Skips {
    /// Takes note of step `step` (from 1). Returns what to print if it was skipped.
    ///
    /// # Errors
    /// Exit code 5: as many steps in a row were skipped as the spec allows.
    pub fn after(
        &mut self,
        program: &Program,
        bound: Option<f64>,
        step: u64,
        outcome: &Outcome,
    ) -> Result<Option<String>, Failure> {
        let Some(info) = &program.info.skip else { return Ok(None) };
        if outcome.output("skipped") != Some(1.0) {
            self.in_a_row = 0;
            return Ok(None);
        }
        self.total += 1;
        self.in_a_row += 1;
        let why = reason(program, info, bound, outcome);
        if self.in_a_row < info.stop_after {
            return Ok(Some(format!("step {step} skipped: {why}")));
        }
        Err(Failure {
            exit: Exit::Skipped,
            message: format!(
                "error: step {step} was skipped, the last of {} in a row: {why}\n\
                 Parameters and optimizer states are those of step {}. train.skip.stop_after = {} ends such a run.",
                self.in_a_row,
                step - self.in_a_row,
                info.stop_after
            ),
        })
    }
}

fn reason(program: &Program, info: &SkipInfo, bound: Option<f64>, outcome: &Outcome) -> String {
    if let Some(place) = outcome.output("nonfinite").filter(|n| *n >= 0.0) {
        return format!("the gradient of {} is not finite", tensor(program, info, place as u64));
    }
    let norm = outcome.output("grad_norm").unwrap_or(f64::NAN);
    match bound.filter(|_| norm.is_finite() && outcome.loss.is_finite()) {
        Some(bound) => format!("the gradient's norm is {norm}, train.skip.norm = {bound}"),
        None => format!("the loss is {}, the gradient's norm {norm}", outcome.loss),
    }
}

/// The name of the gradient of this number, with the line of the spec that declares its parameter.
fn tensor(program: &Program, info: &SkipInfo, number: u64) -> String {
    let mut first = 0;
    for path in &info.gradients {
        let Some(tensor) = program.info.tensors.iter().find(|t| t.path == *path) else { continue };
        let layers = tensor.layers.unwrap_or(1);
        if number < first + layers {
            let name = path.replace("{i}", &(number - first).to_string());
            return if tensor.line.is_empty() { name } else { format!("{name} ({})", tensor.line) };
        }
        first += layers;
    }
    format!("number {number}")
}
