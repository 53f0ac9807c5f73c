//! `bench`: the training step under a stopwatch.
//!
//! Protocol: after loading, one line of JSON that names the program; then for every line `K` on standard input, K steps
//! and one line `{"t":[seconds of each step],"loss":[loss before each update]}`. Nothing is saved.

use std::io::BufRead;
use std::time::Instant;

use serde_json::json;

use super::ranks::Job;
use super::{first_values, open_training_data, start_rank};
use crate::abi::DataInfo;
use crate::args::Args;
use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::profile;
use crate::settings::Settings;
use crate::step::{Pick, run_batch};
use crate::world::World;

/// Steps timed by `--kernels`, after one that is not counted.
const KERNEL_STEPS: u64 = 10;

/// The subcommand.
///
/// # Errors
/// See [`Exit`].
pub fn bench(job: &Job, console: &mut Console) -> Result<Exit, Failure> {
    let (program, args, mut settings) = (job.program, job.args, job.settings()?);
    replay_records(args, &mut settings);
    let kernels = args.flag("kernels");
    let (index, entry) = program.require_entry("train")?;
    let mut source = open_training_data(program, &settings, entry.seq)?;
    let mut rank = start_rank(job, &settings, kernels)?;
    first_values(&mut rank, &settings, console)?;
    let mut step = 0;
    let mut run = |rank: &mut _, count: u64| -> Result<(Vec<f64>, Vec<f64>), Failure> {
        let (mut times, mut losses) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let clock = Instant::now();
            let pick = Pick::Samples(step * entry.batch);
            let outcome = run_batch(rank, index, &mut source, pick, &settings.scalars, step)?;
            times.push(clock.elapsed().as_secs_f64());
            losses.push(outcome.loss);
            step += 1;
        }
        Ok((times, losses))
    };
    if kernels {
        run(&mut rank, 1)?;
        rank.take_times();
        run(&mut rank, KERNEL_STEPS)?;
        console.line(&profile::table(program, &rank.take_times()));
        return Ok(Exit::Done);
    }
    let ready = json!({
        "peer": format!("mlc-{}", program.info.model),
        "ready": 1,
        "threads": settings.threads,
        "version": env!("CARGO_PKG_VERSION"),
    });
    console.line(&ready.to_string());
    while let Some(count) = next_count(&job.world, console)? {
        let (times, losses) = run(&mut rank, count)?;
        console.line(&json!({"t": times, "loss": losses}).to_string());
    }
    Ok(Exit::Done)
}

/// Without data, ids are synthetic. A plain `.bin` is records, so that given batches are replayed as they are.
fn replay_records(args: &Args, settings: &mut Settings) {
    let plain = args.text("data").is_some_and(|text| !text.starts_with("tokens:"));
    match &mut settings.run.data {
        Some(DataInfo::Tokens { records, .. }) if plain => *records = true,
        Some(_) if args.flag("data") => {}
        _ => settings.run.data = Some(DataInfo::Synthetic),
    }
}

/// The number of steps that the first rank reads, on all ranks.
fn next_count(world: &World, console: &mut Console) -> Result<Option<u64>, Failure> {
    let mine = if world.is_first() { read_count(console)? } else { None };
    let bytes = mine.map_or(Vec::new(), |count| count.to_le_bytes().to_vec());
    let first = world.broadcast(0, &bytes)?;
    Ok(first.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)))
}

/// The next number of steps; `None` at the end of the input.
fn read_count(console: &mut Console) -> Result<Option<u64>, Failure> {
    let mut line = String::new();
    loop {
        line.clear();
        match console.input.read_line(&mut line) {
            Ok(0) => return Ok(None),
            Ok(_) if line.trim().is_empty() => {}
            Ok(_) => {
                let count = line.trim().parse().map_err(|_| {
                    Failure::failed(format!("error: the input is not a number of steps: {}", line.trim()))
                })?;
                return Ok(Some(count));
            }
            Err(e) => return Err(Failure::failed(format!("error: cannot read standard input: {e}"))),
        }
    }
}
