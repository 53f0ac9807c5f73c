//! The ranks of one run as one of them sees them: who it is, and what they do together besides the program's collectives.

use std::sync::Arc;
use std::time::Duration;

use crate::args::Args;
use crate::engine::threads::Threads;
use crate::engine::{Engine, Ticket, Waited};
use crate::failure::{Exit, Failure};

/// A rank that waits longer than this for another within a step gives up, unless told otherwise.
pub const WATCHDOG: Duration = Duration::from_secs(30);
/// The longest such time: a week.
pub const WATCHDOG_MOST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between steps ranks wait this many times longer: one of them may be writing or reading a checkpoint.
pub const PATIENCE: u32 = 20;
/// Tag of what [`World`] itself sends; collectives use the others.
pub const CONTROL_TAG: u32 = 0;

/// How ranks treat each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorldOptions {
    /// Longest wait for another rank within a step.
    pub watchdog: Duration,
    /// A fault to act out, for tests.
    pub fault: Option<Fault>,
    /// How collectives run, for measuring what overlap hides.
    pub pace: Pace,
}

/// How the program's collectives run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pace {
    /// Under way from their start to their done.
    #[default]
    Overlapped,
    /// Over when their start returns.
    Blocking,
    /// Not at all: the computation alone, on whatever lies in memory.
    Absent,
}

impl Pace {
    /// Environment variable with the word for it.
    pub const VARIABLE: &str = "MLC_COLLECTIVES";

    /// Reads `overlapped`, `blocking` or `absent`.
    pub fn parse(word: &str) -> Option<Pace> {
        match word {
            "overlapped" => Some(Pace::Overlapped),
            "blocking" => Some(Pace::Blocking),
            "absent" => Some(Pace::Absent),
            _ => None,
        }
    }
}

impl Default for WorldOptions {
    fn default() -> WorldOptions {
        WorldOptions { watchdog: WATCHDOG, fault: None, pace: Pace::default() }
    }
}

impl WorldOptions {
    /// `--watchdog`, the fault of [`Fault::VARIABLE`] and the pace of [`Pace::VARIABLE`].
    ///
    /// # Errors
    /// Exit code 2: a longer time than a clock can hold, a fault that is none, or no word for a pace.
    pub fn of(args: &Args) -> Result<WorldOptions, Failure> {
        let watchdog = args.number("watchdog").map_or(Ok(WATCHDOG), |seconds| {
            let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= WATCHDOG_MOST);
            let most = WATCHDOG_MOST.as_secs();
            time.ok_or_else(|| {
                Failure::usage(format!("error: --watchdog is {most} seconds at most, not {seconds}"))
            })
        })?;
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let fault = variable(Fault::VARIABLE);
        let pace = variable(Pace::VARIABLE).map_or(Ok(Pace::default()), |word| {
            let what = format!("error: {} takes overlapped, blocking or absent, not {word}", Pace::VARIABLE);
            Pace::parse(&word).ok_or_else(|| Failure::usage(what))
        })?;
        let parse = |text: String| {
            let what = format!(
                "error: {} takes stall:RANK:COLLECTIVE or death:RANK:COLLECTIVE, not {text}",
                Fault::VARIABLE
            );
            Fault::parse(&text).ok_or_else(|| Failure::usage(what))
        };
        Ok(WorldOptions { watchdog, fault: fault.map(parse).transpose()?, pace })
    }
}

/// Something that goes wrong on purpose, when a rank enters its `collective`-th collective (from 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// To which rank.
    pub rank: usize,
    /// When.
    pub collective: u64,
}

/// What can be made to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The rank stops without a word, as if a kernel never returned.
    Stall,
    /// The rank ends: a thread leaves, a process is killed.
    Death,
}

impl Fault {
    /// Environment variable that [`Fault::parse`] is applied to.
    pub const VARIABLE: &str = "MLC_FAULT";

    /// Reads `stall:RANK:COLLECTIVE` or `death:RANK:COLLECTIVE`.
    pub fn parse(text: &str) -> Option<Fault> {
        let mut parts = text.split(':');
        let kind = match parts.next()? {
            "stall" => FaultKind::Stall,
            "death" => FaultKind::Death,
            _ => return None,
        };
        let (rank, collective) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Fault { kind, rank, collective })
    }
}

/// A rank's view of its run. Clones are the same rank.
#[derive(Clone)]
pub struct World {
    engine: Arc<dyn Engine>,
    options: WorldOptions,
    here: (usize, usize),
}

impl World {
    /// One rank of an engine, beside all others.
    pub fn new(engine: Arc<dyn Engine>, options: WorldOptions) -> World {
        let here = (engine.rank(), engine.ranks());
        World { engine, options, here }
    }

    /// The same rank, as the first number of so many that share its CPUs.
    pub fn beside(self, here: (usize, usize)) -> World {
        World { here, ..self }
    }

    /// Which of the ranks that share its CPUs this one is, and how many they are.
    pub fn here(&self) -> (usize, usize) {
        self.here
    }

    /// A run of one rank.
    pub fn alone() -> World {
        let engine: Option<Threads> = Threads::new(1).pop();
        match engine {
            Some(engine) => World::new(Arc::new(engine), WorldOptions::default()),
            None => unreachable!("one handle was asked for"),
        }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.engine.rank()
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.engine.ranks()
    }

    /// Whether this rank speaks for all: it prints, and writes what exists once.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// What carries the bytes.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// How ranks treat each other.
    pub fn options(&self) -> &WorldOptions {
        &self.options
    }

    /// What every rank gives, by rank. All ranks call it, at the same point of the run; lengths may differ.
    ///
    /// # Errors
    /// Another rank does not come.
    pub fn all_gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        let lengths = self.all_gather_u64(mine.len() as u64)?;
        self.swap(mine, lengths.into_iter().map(|length| vec![0; length as usize]).collect())
    }

    /// What every rank gives, by rank. All ranks call it.
    fn all_gather_u64(&self, mine: u64) -> Result<Vec<u64>, Failure> {
        let all = self.swap(&mine.to_le_bytes(), vec![vec![0; 8]; self.ranks()])?;
        let number = |bytes: &Vec<u8>| <[u8; 8]>::try_from(bytes.as_slice()).map_or(0, u64::from_le_bytes);
        Ok(all.iter().map(number).collect())
    }

    /// Fills `all`, whose lengths are those of what the ranks give.
    fn swap(&self, mine: &[u8], mut all: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Failure> {
        let me = self.rank();
        let mut tickets = Vec::new();
        for (rank, theirs) in all.iter_mut().enumerate().filter(|(rank, _)| *rank != me) {
            // SAFETY: both buffers live until all tickets are waited for, or the engine has been left.
            unsafe {
                tickets.push((rank, self.engine.send(rank, CONTROL_TAG, mine.as_ptr(), mine.len())));
                tickets
                    .push((rank, self.engine.receive(rank, CONTROL_TAG, theirs.as_mut_ptr(), theirs.len())));
            }
        }
        self.wait_all(&tickets)?;
        all[me].copy_from_slice(mine);
        Ok(all)
    }

    /// What rank `root` gives, on all ranks; the others' `mine` is not looked at. All ranks call it.
    ///
    /// # Errors
    /// Another rank does not come.
    pub fn broadcast(&self, root: usize, mine: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut all = self.all_gather(if self.rank() == root { mine } else { &[] })?;
        Ok(std::mem::take(&mut all[root]))
    }

    /// The largest of what all ranks give. All ranks call it.
    ///
    /// # Errors
    /// Another rank does not come.
    pub fn largest(&self, mine: u64) -> Result<u64, Failure> {
        Ok(self.all_gather_u64(mine)?.into_iter().max().unwrap_or(mine))
    }

    /// Returns when all ranks have come here.
    ///
    /// # Errors
    /// Another rank does not come.
    pub fn barrier(&self) -> Result<(), Failure> {
        self.all_gather_u64(0).map(drop)
    }

    /// One outcome for all: succeeds where all did. A rank that failed keeps its own error; the others name the first rank
    /// that failed, and its error. All ranks call it.
    ///
    /// # Errors
    /// Any rank's.
    pub fn all_or_none<T>(&self, mine: Result<T, Failure>) -> Result<T, Failure> {
        let message = match &mine {
            Ok(_) => String::new(),
            Err(failure) => format!("{} {}", failure.exit.code(), failure.message),
        };
        let all = self.all_gather(message.as_bytes())?;
        let value = mine?;
        let first = all.iter().enumerate().find(|(_, text)| !text.is_empty());
        first.map_or(Ok(value), |(rank, text)| {
            let text = String::from_utf8_lossy(text);
            let (_, message) = text.split_once(' ').unwrap_or(("", &text));
            Err(Failure { exit: Exit::Lost, message: format!("error: rank {rank} failed:\n{message}") })
        })
    }

    /// Waits for all of these, each with the rank at its other end.
    fn wait_all(&self, tickets: &[(usize, Ticket)]) -> Result<(), Failure> {
        let limit = self.options.watchdog * PATIENCE;
        for &(peer, ticket) in tickets {
            let waited = self.engine.wait(ticket, limit);
            if waited != Waited::Done {
                self.engine.leave();
                let me = format!("rank {} of {}", self.rank(), self.ranks());
                return Err(Failure {
                    exit: Exit::Lost,
                    message: match waited {
                        Waited::Lost(gone) if gone.contains(&peer) => {
                            format!("error: rank {peer} has ended while {me} waited for it")
                        }
                        Waited::Lost(gone) => format!(
                            "error: the exchange with rank {peer} broke: ranks {gone:?} have ended {}",
                            self.engine.trouble().unwrap_or_default()
                        ),
                        Waited::Late | Waited::Done => format!(
                            "error: {me} waited {:.0} s for rank {peer}, which did not come\nIt hangs, or is busy with \
                             something that takes longer: --watchdog gives it more time.",
                            limit.as_secs_f64()
                        ),
                    },
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::run_threads;

    #[test]
    fn all_ranks_know_what_each_gives() {
        for ranks in 1..5 {
            let results = run_threads(ranks, WorldOptions::default(), |world| {
                let mine = vec![world.rank() as u8; world.rank()];
                let all = world.all_gather(&mine)?;
                let root = world.broadcast(world.ranks() - 1, &mine)?;
                world.barrier()?;
                Ok((all, root, world.largest(100 - world.rank() as u64)?))
            });
            let all: Vec<Vec<u8>> = (0..ranks).map(|rank| vec![rank as u8; rank]).collect();
            let expected = (all.clone(), all[ranks - 1].clone(), 100);
            assert_eq!(results.unwrap(), vec![expected; ranks]);
        }
    }

    #[test]
    fn one_failure_is_everybodys() {
        let failure = run_threads(3, WorldOptions::default(), |world| {
            let mine = if world.rank() == 1 { Err(Failure::failed("error: no disk")) } else { Ok(()) };
            let result = world.all_or_none(mine);
            let message = result.clone().unwrap_err().message;
            assert_eq!(message.contains("rank 1 failed"), world.rank() != 1, "{message}");
            assert!(message.ends_with("error: no disk"));
            result
        })
        .unwrap_err();
        assert!(failure.message.contains("no disk"));
    }

    #[test]
    fn watchdog_is_an_option() {
        let options = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            WorldOptions::of(&Args::parse(&words)?)
        };
        assert_eq!(options(&["train"]).unwrap().watchdog, WATCHDOG);
        assert_eq!(options(&["eval", "--watchdog", "0.5"]).unwrap().watchdog, Duration::from_millis(500));
        for wrong in ["0", "-1", "1e9", "soon"] {
            assert_eq!(options(&["train", "--watchdog", wrong]).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }

    #[test]
    fn faults_are_read() {
        let fault = Fault { kind: FaultKind::Stall, rank: 2, collective: 17 };
        assert_eq!(Fault::parse("stall:2:17"), Some(fault));
        for wrong in ["", "stall", "stall:2", "slow:1:1", "death:1:2:3", "death:x:1"] {
            assert_eq!(Fault::parse(wrong), None, "{wrong}");
        }
    }
}
