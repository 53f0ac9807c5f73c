//! How a training binary ends: the exit codes, and the error that carries one.

use std::fmt;
use std::path::Path;

/// Exit code of a training binary. The numbers are documented for job scripts and never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command did what it was asked: 0.
    Done = 0,
    /// Data, a checkpoint or a file is missing or wrong: 1.
    Failed = 1,
    /// The command line is wrong; nothing was started: 2.
    Usage = 2,
    /// The loss became infinite or not a number; training stopped and saved nothing of that step: 3.
    NotFinite = 3,
    /// This machine cannot run the binary, for want of CPU features or of memory: 4.
    Machine = 4,
    /// Too many steps in a row were skipped: 5.
    Skipped = 5,
    /// The ranks do not fit the program: another number than it was built for, or not the same program everywhere: 6.
    Launch = 6,
    /// Another rank has ended, or did not come within the watchdog's time: 7.
    Lost = 7,
    /// SIGTERM or SIGINT came; the step was finished and saved, and the same command line continues from there: 75
    /// (`EX_TEMPFAIL` of sysexits.h).
    Preempted = 75,
}

impl Exit {
    /// The number handed to the operating system.
    pub const fn code(self) -> i32 {
        self as i32
    }
}

/// An error with the exit code it leads to. The message is one or more complete lines without a final line break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What went wrong, with the values involved, and what to try.
    pub message: String,
}

impl Failure {
    /// Something outside is missing or wrong.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Failed, message: message.into() }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, message: message.into() }
    }

    /// This machine cannot run the binary.
    pub fn machine(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Machine, message: message.into() }
    }

    /// An operation on a file failed.
    pub fn io(doing: &str, path: &Path, error: impl fmt::Display) -> Failure {
        Failure::failed(format!("error: cannot {doing} {}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
