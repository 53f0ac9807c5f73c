//! What a run tells: a line on the screen, and everything at full precision in a file.

pub mod jsonl;
pub mod line;

use std::time::{Duration, Instant};

use crate::console::Console;
use crate::step::Outcome;
use jsonl::MetricsFile;

/// Redraws of the progress line are at least this far apart.
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// One finished training step.
pub struct StepRecord<'a> {
    /// 1-based number of the step.
    pub step: u64,
    /// Number of the last step of this run.
    pub steps: u64,
    /// What it gave. The loss is the one before the step's update.
    pub outcome: &'a Outcome,
    /// Wall time of the step.
    pub time: Duration,
    /// Tokens of one step.
    pub tokens: u64,
    /// Floating point operations of one step.
    pub flops: u64,
    /// Memory of the rank in bytes.
    pub memory_bytes: u64,
}

/// Prints and records steps.
pub struct Meter {
    log_every: u64,
    file: Option<MetricsFile>,
    /// Steps and time since the last printed line; rates on the screen are averages over these.
    steps: u32,
    time: Duration,
    drawn: Option<Instant>,
}

impl Meter {
    /// A meter that prints every `log_every` steps (0 = never) and records every step in `file`.
    pub fn new(log_every: u64, file: Option<MetricsFile>) -> Meter {
        Meter { log_every, file, steps: 0, time: Duration::ZERO, drawn: None }
    }

    /// The metrics file.
    pub fn file(&mut self) -> Option<&mut MetricsFile> {
        self.file.as_mut()
    }

    /// Takes note of a step. The first and the last step are always printed.
    pub fn step(&mut self, console: &mut Console, record: &StepRecord, first: bool) {
        if let Some(file) = &mut self.file {
            file.step(record);
        }
        self.steps += 1;
        self.time += record.time;
        let due = self.log_every > 0 && record.step.is_multiple_of(self.log_every);
        if due || first || record.step == record.steps {
            console.line(&line::step_line(record, self.time / self.steps));
            (self.steps, self.time) = (0, Duration::ZERO);
        } else if console.interactive() && self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW_EVERY) {
            console.progress(&line::progress_line(record, self.time / self.steps));
            self.drawn = Some(Instant::now());
        }
    }
}
