//! Runs any graph, slowly and plainly: the reference for all numbers.
//!
//! Every op means what its doc in [`graph::Op`](crate::graph::Op) says; a composite means its region. There are three
//! arithmetics, see [`Mode`]. What always holds: the result depends on the graph and the environment alone, sums run in
//! the order their op defines, and a graph the verifier accepts never panics here.

mod array;
mod collective;
mod number;
mod ops;
pub mod placed;
mod ranks;
mod regions;
mod sample;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole_models;

pub use number::{binary, float_compare, int_binary, round, to_int, unary};
pub use ranks::{RankOutputs, run_ranks};
pub use sample::{Rng, sample_environment};

use crate::graph::{DType, Graph, Mesh, Name, Output, Type};
use std::collections::BTreeMap;
use std::fmt;

/// How floats are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Every float is an f64, whatever its type says.
    F64,
    /// Every op's result is rounded to its type; sums run in f64 and are rounded once.
    F32,
    /// As [`Mode::F64`], and each value carries a bound on how far an honest evaluation in the written types may lie from
    /// it ([`Tensor::errors`]).
    Bounds,
}

/// Elements in row-major order.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// Of a floating type.
    Float(Vec<f64>),
    /// Of an integer type or bool (0 or 1).
    Int(Vec<i64>),
}

/// A dense tensor going in or out.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Type; its order of axes is that of the elements.
    pub ty: Type,
    /// Elements.
    pub values: Values,
    /// One error bound per element of a float that came out of [`Mode::Bounds`], else empty.
    pub errors: Vec<f64>,
}

impl Tensor {
    /// A tensor of floats.
    ///
    /// # Panics
    /// The type is no floating type or has another number of elements.
    pub fn floats(ty: Type, values: Vec<f64>) -> Tensor {
        assert!(ops::is_float(ty.dtype), "{ty:?} is not a floating type");
        assert_eq!(ty.numel(), values.len() as u64, "{ty:?}");
        Tensor { ty, values: Values::Float(values), errors: Vec::new() }
    }

    /// A tensor of integers or truth values.
    ///
    /// # Panics
    /// The type is a floating type or has another number of elements.
    pub fn ints(ty: Type, values: Vec<i64>) -> Tensor {
        assert!(!ops::is_float(ty.dtype), "{ty:?} is a floating type");
        assert_eq!(ty.numel(), values.len() as u64, "{ty:?}");
        Tensor { ty, values: Values::Int(values), errors: Vec::new() }
    }

    /// A floating scalar.
    pub fn scalar(dtype: DType, value: f64) -> Tensor {
        Tensor::floats(Type::scalar(dtype), vec![value])
    }

    /// The elements of a floating tensor.
    ///
    /// # Panics
    /// On integers.
    pub fn as_floats(&self) -> &[f64] {
        match &self.values {
            Values::Float(v) => v,
            Values::Int(_) => panic!("{:?} holds no floats", self.ty),
        }
    }

    /// The elements of an integer tensor.
    ///
    /// # Panics
    /// On floats.
    pub fn as_ints(&self) -> &[i64] {
        match &self.values {
            Values::Int(v) => v,
            Values::Float(_) => panic!("{:?} holds no integers", self.ty),
        }
    }

    /// The only element of a floating tensor.
    ///
    /// # Panics
    /// On integers or another number of elements.
    pub fn item(&self) -> f64 {
        match self.as_floats() {
            [x] => *x,
            _ => panic!("{:?} is no scalar", self.ty),
        }
    }
}

/// What a graph runs on.
#[derive(Clone, Default, Debug)]
pub struct Environment {
    /// Inputs by name.
    pub inputs: BTreeMap<Name, Tensor>,
    /// Parameters by path (`layer.{i}.attn.wq`, stacked) and optimizer states by path and kind (`layer.{i}.attn.wq.m`).
    pub tensors: BTreeMap<Name, Tensor>,
    /// Scalars by key; one that is missing has its default.
    pub scalars: BTreeMap<Name, f64>,
}

impl Environment {
    /// Takes over the new parameters and states a step produced.
    pub fn store(&mut self, outputs: &Outputs) {
        for (output, tensor) in &outputs.0 {
            if let Output::Store(path) = output {
                self.tensors.insert(path.clone(), Tensor { errors: Vec::new(), ..tensor.clone() });
            }
        }
    }
}

/// The name under which an optimizer state is kept.
pub fn state_name(param: &str, kind: &str) -> Name {
    format!("{param}.{kind}").into()
}

/// Results in the order of [`Graph::outputs`].
#[derive(Clone, PartialEq, Debug)]
pub struct Outputs(pub Vec<(Output, Tensor)>);

impl Outputs {
    /// A reported value.
    pub fn report(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|(o, _)| matches!(o, Output::Report(n) if n.as_str() == name)).map(|(_, t)| t)
    }

    /// A stored tensor.
    pub fn stored(&self, path: &str) -> Option<&Tensor> {
        self.0.iter().find(|(o, _)| matches!(o, Output::Store(n) if n.as_str() == path)).map(|(_, t)| t)
    }
}

/// What the environment lacks, or has with another type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentError {
    /// One sentence.
    pub message: String,
}

impl fmt::Display for EnvironmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EnvironmentError {}

/// Runs a verified graph once.
///
/// # Errors
/// The environment lacks an input, parameter or state, or has it with another type (the order of axes is free).
pub fn run(graph: &Graph, environment: &Environment, mode: Mode) -> Result<Outputs, EnvironmentError> {
    Ok(run_on(graph, environment, None, mode)?.remove(0))
}

/// One [`Outputs`] per rank of the mesh; without a mesh one.
fn run_on(
    graph: &Graph,
    environment: &Environment,
    mesh: Option<&Mesh>,
    mode: Mode,
) -> Result<Vec<Outputs>, EnvironmentError> {
    match mode {
        Mode::F64 => regions::run::<f64>(graph, environment, mesh, false),
        Mode::F32 => regions::run::<number::Rounded>(graph, environment, mesh, false),
        Mode::Bounds => regions::run::<number::Bounded>(graph, environment, mesh, true),
    }
}
