//! Tests of the fuser.
