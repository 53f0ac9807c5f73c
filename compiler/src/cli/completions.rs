//! `mlc completions`: for the shell.

use super::{Cli, Failure};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Arguments of `mlc completions`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell: `mlc completions bash > /etc/bash_completion.d/mlc`.
    shell: Shell,
}

/// Writes the shell's script to standard output.
pub fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    clap_complete::generate(args.shell, &mut Cli::command(), "mlc", &mut std::io::stdout());
    Ok(())
}
