//! All ranks of a sharded program in one process, in lockstep: the oracle for partitioning, collectives and engines.

use super::{Environment, EnvironmentError, Mode, Outputs, placed, run_on};
use crate::graph::{Graph, Output};

/// What every rank produced, in the order of ranks.
#[derive(Clone, PartialEq, Debug)]
pub struct RankOutputs(pub Vec<Outputs>);

/// Runs one rank's program (stage `Spmd`) once, on every rank of its mesh. The environment holds whole tensors; each rank
/// takes of an input, parameter or state the part that the sharding of the op's result says, and of a scalar `mesh.AXIS`
/// its own coordinate. Collectives add in the order of ranks, so the result does not depend on anything else.
///
/// # Errors
/// As [`super::run`], sizes being those of whole tensors; and the graph reads a tensor as a partial sum, or the coordinate of
/// an axis its mesh lacks.
pub fn run_ranks(
    graph: &Graph,
    environment: &Environment,
    mode: Mode,
) -> Result<RankOutputs, EnvironmentError> {
    Ok(RankOutputs(run_on(graph, environment, Some(&graph.mesh), mode)?))
}

impl RankOutputs {
    /// Whole results, put together as the shardings of the graph's results say.
    ///
    /// # Errors
    /// Names the output, and two ranks whose bits differ where both hold the same element, or says that it is still partial.
    pub fn assemble(&self, graph: &Graph) -> Result<Outputs, String> {
        let results = graph.region(graph.body).results.iter().zip(&graph.outputs).enumerate();
        let whole = |(i, (value, output)): (usize, (&_, &Output))| {
            let parts: Vec<_> = self.0.iter().map(|rank| &rank.0[i].1).collect();
            match placed::join(&parts, graph.sharding(*value), &graph.mesh) {
                Ok(tensor) => Ok((output.clone(), tensor)),
                Err(problem) => {
                    let name = match output {
                        Output::Report(name) | Output::Store(name) => name,
                    };
                    Err(format!("the result {name}: {problem}"))
                }
            }
        };
        Ok(Outputs(results.map(whole).collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests;
