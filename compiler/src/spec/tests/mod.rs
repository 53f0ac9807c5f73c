//! Tests of the front end, grouped by file.

mod check;
mod docs;
mod errors;
mod expand;
mod layout;
mod limits;
mod load;
mod model;
mod parse;
mod print;
mod run;
mod samples;
