//! Gradients against central differences and by the dot-product test, in f64.

mod gradient;
mod ops;

pub(super) use gradient::{check, environment, param, param_in};
