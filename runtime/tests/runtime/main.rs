//! The runtime driven through whole command lines, on a program written by hand.

mod checkpoints;
mod commands;
mod fixture;
mod harness;
mod parts;
mod process;
mod processes;
mod program;
mod ranks;
mod sharded;
mod training;
mod weights;
