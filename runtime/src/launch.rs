//! Starting the ranks of a program.
//!
//! Where a launcher started this process as one of several ranks ([`discover`]) the others are processes too, and MPI carries
//! their messages; otherwise all ranks of the program are threads of this process.

use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::engine::discover::{Launched, discover};
use crate::engine::mpi::{Mpi, Site};
use crate::engine::threads::Threads;
use crate::failure::{Exit, Failure};
use crate::mesh::Mesh;
use crate::program::Program;
use crate::rank::{Rank, RankOptions, wrong_ranks};
use crate::world::{World, WorldOptions};

/// Stack of a rank's thread: what a main thread usually has.
const STACK_BYTES: usize = 8 << 20;
/// After one rank has failed, the others have this long to notice and end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs `body` on all ranks of a program: on one here if a launcher started the others, else on `threads` ranks in this process.
/// Gives the result of this process's first rank.
///
/// Whatever carries the messages, all ranks are known to run the same program when `body` is called. If a rank of several
/// processes fails, its message is printed and all of them end with its exit code.
///
/// # Errors
/// The failure that came first; the ranks started are not those the program was built for.
pub fn start<T: Send>(
    program: &Program,
    threads: usize,
    options: WorldOptions,
    body: impl Fn(World) -> Result<T, Failure> + Sync,
) -> Result<T, Failure> {
    let ranks = Mesh::new(&program.info.mesh).ranks();
    match launched() {
        Some(launched) if threads > 1 => Err(launched.only_first(Failure::usage(format!(
            "error: {} started {} ranks, and --ranks asks each for {threads} more: leave it out",
            launched.by, launched.ranks
        )))),
        Some(launched) if launched.ranks != ranks => {
            Err(launched.only_first(wrong_ranks(program, launched.ranks)))
        }
        Some(launched) => run_process(program, &launched, options, body),
        None if threads != ranks => Err(wrong_ranks(program, threads)),
        None if ranks == 1 => body(World::alone()),
        None => {
            let mut results = run_threads(ranks, options, |world| {
                same_program(&world, program)?;
                body(world)
            })?;
            Ok(results.swap_remove(0))
        }
    }
}

/// What a launcher left in the environment of this process.
pub fn launched() -> Option<Launched> {
    discover(|name| std::env::var(name).ok())
}

/// Runs `body` on this process's rank of several.
fn run_process<T>(
    program: &Program,
    launched: &Launched,
    options: WorldOptions,
    body: impl Fn(World) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let engine = Arc::new(Mpi::start(launched)?);
    let run = || {
        let world = World::new(Arc::clone(&engine) as Arc<dyn Engine>, options);
        let mine = Site::of_this_process();
        let all = world.all_gather(mine.write().as_bytes())?;
        let sites: Vec<Site> =
            all.iter().filter_map(|bytes| Site::read(&String::from_utf8_lossy(bytes))).collect();
        engine.know(&sites);
        same_program(&world, program)?;
        body(world.beside(mine.share(&sites)))
    };
    run().inspect_err(|failure| {
        // Printed here, because the others cannot be ended without ending this one.
        eprintln!("rank {}: {}", launched.rank, failure.message);
        engine.abort(failure.exit.code());
    })
}

/// Compares the program of all ranks. All of them call it.
///
/// # Errors
/// They differ; exit code 6.
pub fn same_program(world: &World, program: &Program) -> Result<(), Failure> {
    let info = &program.info;
    let mine = blake3::hash(format!("{} {:?}", info.fingerprint, info.mesh).as_bytes());
    let all = world.all_gather(mine.as_bytes())?;
    let others: Vec<String> = (0..all.len()).filter(|&r| all[r] != all[0]).map(|r| r.to_string()).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Failure {
        exit: Exit::Launch,
        message: format!(
            "error: not all ranks run the same program: that of rank 0 differs from that of {}; here it is {}\nCopy one \
             binary to all machines.",
            others.join(", "),
            info.fingerprint
        ),
    })
}

/// Runs `body` once per rank, each on a thread of its own, and gives all results by rank.
///
/// # Errors
/// The failure that came first. If ranks then do not end by themselves, because one hangs outside of any collective, the
/// process ends with that failure.
pub fn run_threads<T: Send>(
    ranks: usize,
    options: WorldOptions,
    body: impl Fn(World) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let board = Board::default();
    let engines: Vec<Arc<Threads>> = Threads::new(ranks).into_iter().map(Arc::new).collect();
    let results = std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for (rank, engine) in engines.iter().enumerate() {
            let (board, body) = (&board, &body);
            let run = move || {
                let ended = Ended { board, engine };
                let world = World::new(Arc::clone(engine) as Arc<dyn Engine>, options);
                let result = body(world);
                if let Err(failure) = &result {
                    ended.board.note(failure);
                }
                result
            };
            let thread = std::thread::Builder::new().name(format!("rank-{rank}")).stack_size(STACK_BYTES);
            match thread.spawn_scoped(scope, run) {
                Ok(handle) => handles.push(handle),
                Err(e) => {
                    board.note(&Failure::machine(format!(
                        "error: cannot start the thread of rank {rank} of {ranks}: {e}"
                    )));
                    // Nobody else will do it for those that have no thread.
                    engines[rank..].iter().for_each(|engine| engine.leave());
                    break;
                }
            }
        }
        board.await_end(handles.len());
        handles.into_iter().map(|handle| handle.join()).collect::<Vec<_>>()
    });
    let results: Vec<Result<T, Failure>> =
        results.into_iter().map(|r| r.unwrap_or_else(|panic| resume_unwind(panic))).collect();
    board.first().map_or_else(|| results.into_iter().collect(), Err)
}

/// Runs `body` on all ranks of a program, in this process, each with its memory reserved.
///
/// # Errors
/// As for [`run_threads`]; the machine does not give the memory or the threads.
pub fn run_ranks<T: Send>(
    program: &Program,
    options: RankOptions,
    world: WorldOptions,
    body: impl Fn(&mut Rank) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let ranks = Mesh::new(&program.info.mesh).ranks();
    run_threads(ranks, world, |world| body(&mut Rank::of(program, options, world)?))
}

/// What ranks of one process tell the thread that started them.
#[derive(Default)]
struct Board {
    state: Mutex<(usize, Option<Failure>)>,
    changed: Condvar,
}

impl Board {
    fn note(&self, failure: &Failure) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.get_or_insert_with(|| failure.clone());
        self.changed.notify_all();
    }

    fn first(&self) -> Option<Failure> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Waits until so many ranks have ended.
    fn await_end(&self, ranks: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed_at: Option<Instant> = None;
        while state.0 < ranks {
            let Some(failure) = &state.1 else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let since = failed_at.get_or_insert_with(Instant::now);
            let Some(left) = GRACE.checked_sub(since.elapsed()) else {
                eprintln!("{}", failure.message);
                std::process::exit(failure.exit.code());
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Tells the others that a rank has ended, however it did.
struct Ended<'a> {
    board: &'a Board,
    engine: &'a Threads,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.engine.leave();
        self.board.state.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        self.board.changed.notify_all();
    }
}
