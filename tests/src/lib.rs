//! Tests that cross packages live in `tests/tests/`; this library holds what they share.

pub mod numpy;
pub mod parity;
