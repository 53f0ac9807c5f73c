//! The subcommands of a training binary.

pub mod bench;
pub mod eval;
pub mod export;
pub mod generate;
pub mod info;
pub mod ranks;
mod skips;
mod trace;
pub mod train;
pub mod verify;

use std::path::Path;

use crate::checkpoint::store::Store;
use crate::checkpoint::{load, weights};
use crate::console::Console;
use crate::data::Source;
use crate::device::{cpu, memory};
use crate::failure::{Exit, Failure};
use crate::init;
use crate::program::Program;
use crate::rank::{Rank, RankOptions};
use crate::settings::Settings;
use ranks::Job;

/// A command as every rank runs it.
pub type Body = fn(&Job, &mut Console) -> Result<Exit, Failure>;

/// Checks the machine and sets up a rank with uninitialised tensors.
///
/// # Errors
/// Exit code 4.
pub fn start_rank<'p>(job: &Job<'p>, settings: &Settings, profile: bool) -> Result<Rank<'p>, Failure> {
    let program = job.program;
    cpu::check_features(&program.info.cpu_features)?;
    memory::check_limits(program.memory_bytes(settings.threads).saturating_mul(job.world.here().1 as u64))?;
    let options = RankOptions { threads: settings.threads, pin: settings.pin, profile };
    Rank::of(program, options, job.world.clone())
}

/// First values of all tensors: drawn from the seed, then the parameters replaced by those of `--init`.
///
/// # Errors
/// The weights do not fit.
pub fn first_values(rank: &mut Rank, settings: &Settings, console: &mut Console) -> Result<(), Failure> {
    init::init_all(rank, settings.run.seed);
    if let Some(path) = &settings.init {
        let note = weights::import(rank, path)?;
        console.note(&note);
    }
    Ok(())
}

/// Parameters for a command that does not train: `--init` if given, else a checkpoint. Returns where they came from.
///
/// # Errors
/// There is neither.
pub fn trained_values(
    rank: &mut Rank,
    settings: &Settings,
    console: &mut Console,
) -> Result<String, Failure> {
    if let Some(path) = &settings.init {
        first_values(rank, settings, console)?;
        return Ok(path.display().to_string());
    }
    let store = Store::read_only(&settings.checkpoints);
    let otherwise = "Name another run's folder with --out, or give weights with --init.";
    let loaded = load::load(rank, &store, settings.resume, otherwise)?
        .ok_or_else(|| no_checkpoint(&settings.checkpoints))?;
    for note in &loaded.notes {
        console.note(note);
    }
    Ok(store.path(loaded.manifest.step).display().to_string())
}

fn no_checkpoint(folder: &Path) -> Failure {
    Failure::failed(format!(
        "error: there is no checkpoint in {}\nTrain first, name the run's folder with --out, or give weights with --init.",
        folder.display()
    ))
}

/// Opens training data for an entry of `seq` tokens a sequence.
///
/// # Errors
/// There is no data, or it cannot be read.
pub fn open_training_data(program: &Program, settings: &Settings, seq: u64) -> Result<Source, Failure> {
    let Some(data) = &settings.run.data else {
        return Err(Failure::usage(
            "error: the spec names no training data\nGive it with --data PATH (or --data synthetic).",
        ));
    };
    Source::open(data, program.info.vocab, seq, settings.run.seed)
}
