//! The `mlc` command: arguments, files, exit code. The only part of the compiler that touches files.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
