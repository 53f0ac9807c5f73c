//! What names mean at a place.

use std::collections::BTreeMap;

use crate::spec::checked::{Axis, ParamId, Routing, Type, ValueId};
use crate::spec::source::Span;

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Binding {
    /// An input, argument or `let`.
    Value(ValueId, Type),
    /// A parameter.
    Param(ParamId, Type),
    /// What `route` made.
    Routing(ValueId, Routing),
    /// A constant argument.
    Const(f64),
    /// A name whose definition has an error; uses of it stay silent.
    Poison,
}

/// The names of one body. Bodies are closed, so scopes do not nest.
#[derive(Debug, Default)]
pub struct Scope {
    /// Values, parameters and constants with the place of their definition.
    pub names: BTreeMap<String, (Binding, Span)>,
    /// Axes known here beside the model's sizes: what generic axes stand for, and axes made by `as`.
    pub axes: BTreeMap<String, Axis>,
    /// Instances by name.
    pub instances: BTreeMap<String, Span>,
    /// Logical path of the body, without a final dot; empty at the top.
    pub path: String,
}

impl Scope {
    /// The path of something inside the body.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}
