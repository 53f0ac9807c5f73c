//! The runtime of a training binary.
