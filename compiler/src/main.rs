//! The `mlc` command: arguments, files, exit code. The only part of the compiler that touches files.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // `mlc` starts itself again as a code generation worker, see `mlc_codegen::worker`.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == mlc_codegen::WORKER_ARGUMENT) {
        return ExitCode::from(mlc_codegen::worker_main() as u8);
    }
    cli::main()
}
