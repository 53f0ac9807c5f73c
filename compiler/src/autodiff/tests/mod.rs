//! Gradients against central differences and by the dot-product test, in f64.

mod composites;
mod gradient;
mod loops;
mod ops;

pub(super) use gradient::{check, check_graph, environment, param, param_in};
