//! The runtime driven through whole command lines, on a program written by hand.

mod checkpoints;
mod commands;
mod fixture;
mod harness;
mod process;
mod program;
mod training;
mod weights;
