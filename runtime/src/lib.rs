//! The runtime of a training binary: what is linked to the generated program and makes it a command.
//!
//! ```text
//! main (generated) ── mlc_runtime_main ── commands/ ── launch.rs ── step.rs ── rank.rs ── generated step function ── kernels
//!                                             │            │          │         │                  │
//!                            checkpoint/  metrics/     world.rs     data/    device/           collective/
//!                                                          └──────────────── engine/ ─────────────┘
//! ```
//! Invariants: no process-global state, everything hangs off a [`rank::Rank`] and what the command holds; nothing here
//! knows a particular model; bad input gives one error and an exit code of [`failure::Exit`], never a panic; the bits of a
//! run depend on the binary, the data and the settings, and not on the number of threads.
//!
//! `launch.rs` starts the ranks, as threads or on top of a launcher's processes; `world.rs` is what they do together between steps, and
//! `collective/` within one; `engine/` carries the bytes of both.
//!
//! # Linking it into a binary
//!
//! A training binary for one rank is fully static and runs on any x86-64 Linux, in an empty folder; one for several leaves the C
//! library to run time, because it may have to load an MPI library. The archive is built
//! for the baseline CPU, so that it can say which features a machine lacks; only the kernels use more. The code generator's
//! build script does the following and embeds the result; by hand it is
//!
//! ```text
//! CARGO_PROFILE_RELEASE_PANIC=abort RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
//!     cargo rustc --release -p mlc-runtime --lib --crate-type staticlib --target x86_64-unknown-linux-gnu
//! cc -static -o BINARY objects… libmlc_runtime.a -lm -Wl,--gc-sections -s
//! ```
//! `--target` keeps the flags away from build scripts; `-lm` must follow the archive. The runtime's part of a stripped
//! binary is 1.9 MB (Rust 1.95, glibc 2.36, `opt-level = 3`, `lto = "fat"`), most of it glibc and Rust's standard library.

pub mod abi;
pub mod args;
pub mod checkpoint;
pub mod collective;
pub mod commands;
pub mod console;
pub mod data;
pub mod device;
pub mod engine;
pub mod failure;
pub mod init;
pub mod launch;
pub mod mesh;
pub mod metrics;
pub mod numeric;
pub mod options;
pub mod profile;
pub mod program;
pub mod random;
pub mod ranges;
pub mod rank;
pub mod settings;
pub mod shard;
pub mod signals;
pub mod step;
pub mod world;

use std::ffi::{CStr, c_char};
use std::time::Instant;

use abi::ProgramTable;
use args::Args;
use commands::Body;
use commands::ranks::on_ranks;
use console::Console;
use failure::{Exit, Failure};
use options::{Command, usage};
use program::Program;
use signals::Interrupts;

/// Runs one command line of a training binary; `words` are the arguments without the program's name. Returns how the
/// process should end; errors have been printed.
pub fn run(
    program: &Program,
    words: &[String],
    console: &mut Console,
    stop: &Interrupts,
    started: Instant,
) -> Exit {
    let result = Args::parse(words).and_then(|args| dispatch(program, &args, console, stop, started));
    console.wipe();
    result.unwrap_or_else(|failure| report(&failure, console))
}

fn dispatch(
    program: &Program,
    args: &Args,
    console: &mut Console,
    stop: &Interrupts,
    started: Instant,
) -> Result<Exit, Failure> {
    if args.flag("help") || args.command == Command::Help {
        console.line(&usage(args.command));
        return Ok(Exit::Done);
    }
    let body: Body = match args.command {
        Command::Train => commands::train::train,
        Command::Eval => commands::eval::eval,
        Command::Generate => commands::generate::generate,
        Command::Bench => commands::bench::bench,
        Command::Export => return commands::export::export(program, args, console),
        Command::Verify => return commands::verify::verify(program, args, console),
        Command::Info => return commands::info::info(program, args, console),
        Command::Help => return Ok(Exit::Done),
    };
    on_ranks(program, args, console, stop, started, body)
}

fn report(failure: &Failure, console: &mut Console) -> Exit {
    // Other ranks say it.
    if !failure.message.is_empty() {
        console.note(&failure.message);
    }
    failure.exit
}

/// What the generated `main` calls; returns the exit code of the process.
///
/// # Safety
/// `argv` holds `argc` C strings as the operating system passes them, and `table` is the table codegen emitted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlc_runtime_main(
    argc: i32,
    argv: *const *const c_char,
    table: *const ProgramTable,
) -> i32 {
    let started = Instant::now();
    let words: Vec<String> = (1..argc.max(1) as usize)
        .map(|i| {
            // SAFETY: by this function's contract, with `i` below `argc`.
            let word = unsafe { CStr::from_ptr(*argv.add(i)) };
            word.to_string_lossy().into_owned()
        })
        .collect();
    // Only training has something to save; everything else ends at once, as usual. This comes before any thread exists, so
    // that all threads leave the signals to the descriptor.
    let trains = words.first().is_some_and(|word| word == "train");
    let stop = if trains { Interrupts::of_process() } else { Interrupts::Never };
    let mut console = Console::standard();
    // SAFETY: by this function's contract.
    let program = match unsafe { Program::from_table(table) } {
        Ok(program) => program,
        Err(failure) => return report(&failure, &mut console).code(),
    };
    run(&program, &words, &mut console, &stop, started).code()
}
