//! Tests of the front end, grouped by file.

mod parse;
mod print;
mod samples;
