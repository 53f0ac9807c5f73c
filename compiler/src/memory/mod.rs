//! Where the bytes are: a static arena for all entries, and one in the host's memory for what is offloaded.
//!
//! In: the [`Schedule`]s of the entries. Out: a [`Plan`], an offset for every buffer and the exact size of each arena.
//!
//! ```text
//! device  [ parameters, states, scalars | inputs and outputs of each entry | temporaries: the entries take turns ]
//! host    [ what is offloaded: the entries take turns ]
//! ```
//! Passes: [`share`] lets an element-wise kernel write over an operand that ends with it; [`lifetimes`] gives each buffer
//! the interval of launches in which it holds something; [`pack`] puts intervals into as few bytes as it can (best fit);
//! [`verify`] checks the result by itself.
//!
//! What always holds: two buffers whose lifetimes meet never overlap, save where one is shared; persistent buffers have
//! the same offset in every entry; offsets are multiples of [`ALIGNMENT`]; a buffer made in a loop's body lives inside
//! one iteration, one made outside and used inside lives for the whole loop; the buffers
//! of a collective live from its start through its done.

pub mod lifetimes;
pub mod pack;
pub mod report;
pub mod share;
#[cfg(test)]
mod tests;
pub mod verify;

use crate::fuse::{BufferId, Class};
use crate::graph::Space;
use crate::schedule::Schedule;
use crate::units;
use std::collections::BTreeMap;
use std::fmt;

pub use report::{Owner, Report};

/// Offsets are multiples of this: a cache line, and the widest vector.
pub const ALIGNMENT: u64 = 64;

/// Buffers of an entry with their places.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryPlan {
    /// What runs.
    pub schedule: Schedule,
    /// Offset in the arena of the buffer's space, by buffer.
    pub offsets: Vec<u64>,
}

/// The arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order given.
    pub entries: Vec<EntryPlan>,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Size of the arena in the host's memory; 0 if nothing is offloaded.
    pub host_bytes: u64,
    /// Parameters, states and scalars, at the start of the arena.
    pub persistent_bytes: u64,
    /// Who uses the memory.
    pub report: Report,
}

/// The program does not fit into the target's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct OverBudget {
    /// What it takes.
    pub needed_bytes: u64,
    /// What there is.
    pub limit_bytes: u64,
    /// The largest tensors at the peak, largest first.
    pub owners: Vec<Owner>,
    /// What would help, most first.
    pub hints: Vec<String>,
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "does not fit in memory: needs {}, the target has {}; largest tensors:",
            units::bytes(self.needed_bytes),
            units::bytes(self.limit_bytes)
        )?;
        for owner in &self.owners {
            write!(f, "\n  {owner}")?;
        }
        for hint in &self.hints {
            write!(f, "\n  help: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for OverBudget {}

/// Places the buffers of all entries.
///
/// # Errors
/// The arena is larger than `limit_bytes`.
///
/// # Panics
/// The plan does not verify: a bug in this room.
pub fn place(schedules: Vec<Schedule>, limit_bytes: Option<u64>) -> Result<Plan, Box<OverBudget>> {
    let (persistent, persistent_bytes) = place_persistent(&schedules);
    let mut start = persistent_bytes;
    let mut entries = Vec::new();
    for schedule in schedules {
        let mut offsets = vec![0; schedule.fused.buffers.len()];
        for (i, buffer) in schedule.fused.buffers.iter().enumerate() {
            match &buffer.class {
                Class::Param { .. } | Class::State { .. } | Class::Scalar { .. } => {
                    offsets[i] = persistent[&key(&buffer.class)];
                }
                Class::Input { .. } | Class::Output { .. } => {
                    offsets[i] = start;
                    start += aligned(buffer.bytes());
                }
                Class::Carry
                | Class::Stack
                | Class::Sum
                | Class::Received
                | Class::Staging
                | Class::Temporary => {}
            }
        }
        entries.push(EntryPlan { schedule, offsets });
    }
    let (mut arena_bytes, mut host_bytes) = (start, 0);
    let mut reports = Vec::new();
    for entry in &mut entries {
        let fused = &entry.schedule.fused;
        let lives = lifetimes::lifetimes(fused);
        let shared = share::share(fused, &lives);
        let packed = pack::pack(&shared.blocks(fused, &lives, Space::Device));
        let on_host = pack::pack(&shared.blocks(fused, &lives, Space::Host));
        for i in 0..fused.buffers.len() {
            let owner = shared.owner(BufferId(i as u32));
            if let Some(offset) = packed.offsets.get(&owner) {
                entry.offsets[i] = start + offset;
            } else if let Some(offset) = on_host.offsets.get(&owner) {
                entry.offsets[i] = *offset;
            }
        }
        arena_bytes = arena_bytes.max(start + packed.bytes);
        host_bytes = host_bytes.max(on_host.bytes);
        reports.push((packed.bytes, report::at_peak(fused, &lives, &shared)));
    }
    let report = Report { host_bytes, ..Report::new(&entries, &reports, arena_bytes) };
    let plan = Plan { entries, arena_bytes, host_bytes, persistent_bytes, report };
    if let Err(message) = verify::verify(&plan) {
        panic!("the memory plan does not verify: {message}");
    }
    match limit_bytes {
        Some(limit) if plan.arena_bytes > limit => Err(Box::new(plan.report.over(plan.arena_bytes, limit))),
        _ => Ok(plan),
    }
}

/// Rounds up to the alignment.
pub fn aligned(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// What makes two entries' persistent buffers one.
fn key(class: &Class) -> (u8, String) {
    match class {
        Class::Param { path, .. } => (0, path.to_string()),
        Class::State { param, kind } => (1, format!("{param}.{kind}")),
        Class::Scalar { key, .. } => (2, key.to_string()),
        Class::Input { name, .. } | Class::Output { name } => (3, name.to_string()),
        Class::Carry | Class::Stack | Class::Sum | Class::Received | Class::Staging | Class::Temporary => {
            (4, String::new())
        }
    }
}

/// Offsets of parameters, states and scalars, in order of first appearance: parameters first.
fn place_persistent(schedules: &[Schedule]) -> (BTreeMap<(u8, String), u64>, u64) {
    let mut sizes: Vec<((u8, String), u64)> = Vec::new();
    for schedule in schedules {
        for buffer in schedule.fused.buffers.iter().filter(|b| b.class.is_persistent()) {
            let key = key(&buffer.class);
            if !sizes.iter().any(|(k, _)| *k == key) {
                sizes.push((key, buffer.bytes()));
            }
        }
    }
    sizes.sort_by_key(|((class, _), _)| *class);
    let mut at = 0;
    let mut places = BTreeMap::new();
    for (key, bytes) in sizes {
        places.insert(key, at);
        at += aligned(bytes);
    }
    (places, at)
}
