//! Tests that cross packages live in `tests/tests/`; this library holds what they share.
