//! A command on all ranks of a program.
//!
//! Every rank of the mesh runs the same command; only the first one prints, and writes what exists once. Ranks that may use the
//! same CPUs share them, and the threads.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Body;
use crate::args::Args;
use crate::console::Console;
use crate::device::pool::{allowed_cpus, stay_on};
use crate::failure::{Exit, Failure};
use crate::launch::{launched, start};
use crate::program::Program;
use crate::settings::Settings;
use crate::signals::Interrupts;
use crate::world::{World, WorldOptions};

/// One rank's part in a command.
pub struct Job<'a> {
    /// What it runs.
    pub program: &'a Program,
    /// What it was asked.
    pub args: &'a Args,
    /// Requests to stop that reach this rank.
    pub stop: &'a Interrupts,
    /// When the process began.
    pub started: Instant,
    /// Who it is.
    pub world: World,
}

impl Job<'_> {
    /// The settings of the run, with this rank's share of the threads.
    ///
    /// # Errors
    /// As for [`Settings::new`].
    pub fn settings(&self) -> Result<Settings, Failure> {
        let mut settings = Settings::new(self.program, self.args)?;
        let (which, ranks) = self.world.here();
        let (first, count) = share(settings.threads, which, ranks);
        if settings.pin && ranks > 1 {
            let cpus = allowed_cpus();
            let mine: Vec<usize> =
                cpus.iter().cycle().skip(first).take(count.min(cpus.len())).copied().collect();
            stay_on(&mine);
        }
        settings.threads = count;
        Ok(settings)
    }
}

/// First thread and number of threads of one of `ranks`; each has at least one.
fn share(threads: usize, which: usize, ranks: usize) -> (usize, usize) {
    let (each, more) = (threads / ranks, threads % ranks);
    let first = which * each.max(1) + if each > 0 { which.min(more) } else { 0 };
    (first, (each + usize::from(which < more)).max(1))
}

/// Runs `body` on the ranks that this command line starts, a thread each, `--ranks` of them, or on the one that a launcher
/// made of this process.
///
/// # Errors
/// The program is for another number of ranks; any rank's failure.
pub fn on_ranks(
    program: &Program,
    args: &Args,
    console: &mut Console,
    stop: &Interrupts,
    started: Instant,
    body: Body,
) -> Result<Exit, Failure> {
    // Errors of the command line come from one place, before anything is started.
    let options = Settings::new(program, args).and_then(|_| WorldOptions::of(args));
    let options = options.map_err(|failure| match launched() {
        Some(launched) => launched.only_first(failure),
        None => failure,
    })?;
    let console = Mutex::new(console);
    start(program, args.count("ranks").unwrap_or(1) as usize, options, |world| {
        // A process has one place where requests to stop arrive.
        let hears = world.is_first() || world.engine().threads().is_none();
        let stop = if hears { stop } else { &Interrupts::Never };
        let job = Job { program, args, stop, started, world: world.clone() };
        // Only the first rank takes the console: it keeps it to the end.
        let mut spoken = world.is_first().then(|| console.lock().unwrap_or_else(PoisonError::into_inner));
        match spoken.as_mut() {
            Some(console) => body(&job, console),
            None => body(&job, &mut Console::silent()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_gives_every_thread_once_and_every_rank_one() {
        for (threads, ranks) in (1..20).flat_map(|t| (1..9).map(move |r| (t, r))) {
            let mut next = 0;
            for which in 0..ranks {
                let (first, count) = share(threads, which, ranks);
                assert_eq!(first, next);
                assert!(count == 1 || count * ranks < threads + ranks);
                next += count;
            }
            assert_eq!(next, threads.max(ranks));
        }
    }
}
