//! Tests of the front end, grouped by file.

mod check;
mod errors;
mod expand;
mod limits;
mod parse;
mod print;
mod samples;
