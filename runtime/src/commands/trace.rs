//! `--trace`: what runs when in a few steps, of every rank, in one file.

use std::path::PathBuf;

use crate::abi::trace::{Timeline, file};
use crate::args::Args;
use crate::failure::Failure;
use crate::rank::Rank;

/// A recording that is asked for.
pub struct Trace {
    path: PathBuf,
    first: u64,
    steps: u64,
}

impl Trace {
    /// `--trace FILE[:STEPS]` for a run of the steps `begin..end`. The first of several steps is left out: it touches memory and
    /// caches for the first time.
    ///
    /// # Errors
    /// Exit code 2: no step is to be recorded.
    pub fn of(args: &Args, begin: u64, end: u64) -> Result<Option<Trace>, Failure> {
        let Some(text) = args.text("trace") else { return Ok(None) };
        let (path, steps) = match text.rsplit_once(':') {
            Some((path, n)) if !path.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty() => {
                (path, n.parse().unwrap_or(u64::MAX))
            }
            Some(_) | None => (text, 1),
        };
        if steps == 0 {
            return Err(Failure::usage(format!("error: --trace {text}: 0 steps are no trace")));
        }
        let first = if end.saturating_sub(begin) > 1 { begin + 1 } else { begin };
        Ok(Some(Trace { path: path.into(), first, steps: steps.min(end.saturating_sub(first)) }))
    }

    /// Before a step: begins to record if it is the first to be recorded. All ranks begin together.
    ///
    /// # Errors
    /// Another rank does not come.
    pub fn before(&self, step: u64, rank: &mut Rank) -> Result<(), Failure> {
        if step == self.first {
            rank.world().barrier()?;
            rank.record();
        }
        Ok(())
    }

    /// After a step: if it was the last to be recorded, the first rank writes the timelines of all. Gives what to tell.
    ///
    /// # Errors
    /// Another rank does not come; the file can't be written.
    pub fn after(&self, step: u64, rank: &mut Rank) -> Result<Option<String>, Failure> {
        let last = self.first + self.steps - 1;
        if self.steps == 0 || step != last {
            return Ok(None);
        }
        let ops = &rank.program.info.ops;
        let mine = Timeline::measured(rank.world().rank() as u64, ops, rank.recorded());
        let all = rank.world().all_gather(mine.events(ops).join("\n").as_bytes())?;
        if !rank.world().is_first() {
            return Ok(None);
        }
        let events: Vec<String> = all
            .iter()
            .flat_map(|text| String::from_utf8_lossy(text).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        std::fs::write(&self.path, file(&events))
            .map_err(|e| Failure::failed(format!("error: cannot write {}: {e}", self.path.display())))?;
        Ok(Some(format!(
            "trace of steps {} to {last}, {} events: {}",
            self.first,
            events.len(),
            self.path.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(text: &str, begin: u64, end: u64) -> Option<(PathBuf, u64, u64)> {
        let words = ["train", "--trace", text].map(String::from);
        let trace = Trace::of(&Args::parse(&words).unwrap(), begin, end).unwrap();
        trace.map(|t| (t.path, t.first, t.steps))
    }

    #[test]
    fn trace_names_a_file_and_steps() {
        assert_eq!(trace("a.json", 0, 10), Some(("a.json".into(), 1, 1)));
        assert_eq!(trace("a.json:3", 4, 10), Some(("a.json".into(), 5, 3)));
        assert_eq!(trace("a.json:30", 4, 10), Some(("a.json".into(), 5, 5)));
        assert_eq!(trace("C:a.json", 0, 1), Some(("C:a.json".into(), 0, 1)));
        let words = ["train", "--trace", "a:0"].map(String::from);
        assert!(Trace::of(&Args::parse(&words).unwrap(), 0, 2).is_err());
        assert!(Trace::of(&Args::parse(&["train".to_owned()]).unwrap(), 0, 2).unwrap().is_none());
    }
}
