//! Tests of the front end, grouped by file.

mod check;
mod parse;
mod print;
mod samples;
