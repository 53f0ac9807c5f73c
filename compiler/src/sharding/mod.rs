//! How a training graph lies on its mesh.
//!
//! [`factors`] says of every op along what it may be split.

pub mod factors;

#[cfg(test)]
mod gallery;
