//! Element types as explicit casts in the graph, by role.
//!
//! Parameters and optimizer states keep the type they are stored in; matrix products, stored activations and reductions
//! each have theirs. Casts go in before autodiff, so gradients pass through the same casts.

use super::AutodiffError;
use crate::graph::{DType, Graph};

/// Element types by role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Precision {
    /// Parameters at rest.
    pub params: DType,
    /// Operands of matrix products.
    pub matmul: DType,
    /// Activations kept for the backward pass.
    pub stored: DType,
    /// Sums, norms, softmax and the loss.
    pub reduce: DType,
}

impl Precision {
    /// f32 in every role.
    pub const F32: Precision =
        Precision { params: DType::F32, matmul: DType::F32, stored: DType::F32, reduce: DType::F32 };
}

/// Inserts the casts that the roles ask for. With f32 in every role there are none.
///
/// # Errors
/// A role asks for another type than f32.
pub fn apply_precision(graph: Graph, precision: &Precision) -> Result<Graph, AutodiffError> {
    let roles = [
        ("params", precision.params),
        ("matmul", precision.matmul),
        ("stored", precision.stored),
        ("reduce", precision.reduce),
    ];
    match roles.iter().find(|(_, dtype)| *dtype != DType::F32) {
        None => Ok(graph),
        Some((role, dtype)) => {
            Err(AutodiffError::new(format!("precision `{role} = {dtype:?}` is not supported; only f32 is")))
        }
    }
}
