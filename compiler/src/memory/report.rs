//! Who uses the memory: exact bytes per class and the largest tensors at the peak.

use super::lifetimes::{Life, Lives, lifetimes};
use super::share::{Shared, is_packed, share};
use super::{EntryPlan, OverBudget};
use crate::fuse::{Buffer, BufferId, Class, Fused, Item};
use crate::graph::Space;
use crate::units;
use std::collections::BTreeMap;
use std::fmt;

/// How many tensors the text of a report names.
const NAMED: usize = 10;

/// One tensor of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// Name of the value.
    pub name: String,
    /// Class in words.
    pub class: &'static str,
    /// Block path.
    pub path: String,
    /// Spec line, `file:line`; empty if made by the compiler.
    pub line: String,
    /// Shape in text.
    pub shape: String,
    /// Size.
    pub bytes: u64,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10}  {} {} ({})", units::bytes(self.bytes), self.name, self.shape, self.class)?;
        if !self.line.is_empty() {
            write!(f, "  {}", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        Ok(())
    }
}

/// The memory of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Ranks, each of which has such an arena.
    pub ranks: u64,
    /// Size of the arena in the host's memory.
    pub host_bytes: u64,
    /// Bytes per class at the peak of the entry that needs most, classes in a fixed order.
    pub classes: Vec<(&'static str, u64)>,
    /// Tensors at that moment, largest first.
    pub owners: Vec<Owner>,
    /// Bytes of temporaries lost between blocks: packed size less the bytes alive at the peak.
    pub lost_bytes: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = match self.ranks {
            0 | 1 => String::new(),
            ranks => format!(" on each of {ranks} ranks ({} bytes)", self.arena_bytes),
        };
        writeln!(f, "memory: {} exactly{each}", units::bytes(self.arena_bytes))?;
        for (class, bytes) in &self.classes {
            writeln!(f, "{:>10}  {class}", units::bytes(*bytes))?;
        }
        if self.lost_bytes > 0 {
            writeln!(f, "{:>10}  between buffers", units::bytes(self.lost_bytes))?;
        }
        if self.host_bytes > 0 {
            writeln!(f, "{:>10}  offloaded, in the host's memory", units::bytes(self.host_bytes))?;
        }
        writeln!(f, "largest at the peak:")?;
        for owner in self.owners.iter().take(NAMED) {
            writeln!(f, "{owner}")?;
        }
        Ok(())
    }
}

fn owner(buffer: &Buffer) -> Owner {
    let axes: Vec<String> = buffer.axes.iter().map(|a| format!("{}={}", a.name, a.size)).collect();
    let line = &buffer.origin.line;
    Owner {
        name: match &buffer.class {
            Class::Param { path, .. } => path.to_string(),
            Class::State { param, kind } => format!("{param}.{kind}"),
            Class::Scalar { key, .. } => key.to_string(),
            Class::Input { name, .. } | Class::Output { name } => name.to_string(),
            Class::Carry
            | Class::Stack
            | Class::Sum
            | Class::Received
            | Class::Staging
            | Class::Temporary => format!("%{}", buffer.name),
        },
        class: buffer.class.word(),
        path: buffer.origin.path.to_string(),
        line: if line.line == 0 { String::new() } else { format!("{}:{}", line.file, line.line) },
        shape: format!("{}[{}]", crate::graph::shape::dtype_name(buffer.dtype), axes.join(", ")),
        bytes: buffer.bytes(),
    }
}

/// Packed buffers alive at the fullest launch of an entry.
pub fn at_peak(fused: &Fused, lives: &Lives, shared: &Shared) -> Vec<usize> {
    let alive = |t: usize| -> Vec<usize> {
        let now = Life { from: t, to: t };
        let mut by_block = BTreeMap::new();
        for (i, buffer) in fused.buffers.iter().enumerate() {
            let packed = is_packed(&buffer.class) && buffer.space == Space::Device;
            if packed && lives.of[i].is_some_and(|l| l.meets(now)) {
                by_block.entry(shared.owner(BufferId(i as u32))).or_insert(i);
            }
        }
        by_block.into_values().collect()
    };
    let bytes = |list: &[usize]| -> u64 { list.iter().map(|i| fused.buffers[*i].bytes()).sum() };
    let mut best = Vec::new();
    for t in 0..lives.launches {
        let now = alive(t);
        if bytes(&now) > bytes(&best) {
            best = now;
        }
    }
    best
}

/// The memory of an entry over its launches, in the order of the program's text: a loop's body stands once.
#[derive(Clone, Debug, PartialEq)]
pub struct OverTime {
    /// Classes that occur, those that hold the same all the time first.
    pub classes: Vec<&'static str>,
    /// For each launch, bytes by class.
    pub launches: Vec<Vec<u64>>,
    /// Loops: axis, iterations, first and last launch.
    pub loops: Vec<(String, u64, usize, usize)>,
}

/// See [`OverTime`]. What two buffers share counts once.
pub fn over_time(entry: &EntryPlan) -> OverTime {
    let fused = &entry.schedule.fused;
    let lives = lifetimes(fused);
    let shared = share(fused, &lives);
    let mut over =
        OverTime { classes: Vec::new(), launches: vec![Vec::new(); lives.launches], loops: Vec::new() };
    let mut add = |word: &'static str, bytes: u64, from: usize, to: usize| {
        let column = over.classes.iter().position(|w| *w == word).unwrap_or_else(|| {
            over.classes.push(word);
            over.launches.iter_mut().for_each(|row| row.push(0));
            over.classes.len() - 1
        });
        over.launches.iter_mut().take(to + 1).skip(from).for_each(|row| row[column] += bytes);
    };
    for buffer in fused.buffers.iter().filter(|b| !is_packed(&b.class)) {
        add(buffer.class.word(), buffer.bytes(), 0, lives.launches);
    }
    let mut ends: BTreeMap<BufferId, usize> = BTreeMap::new();
    let packed = |b: &Buffer| is_packed(&b.class) && b.space == Space::Device;
    let alive = |(i, buffer)| packed(buffer).then_some((BufferId(i as u32), buffer, lives.of[i]?));
    let mut all: Vec<(BufferId, &Buffer, Life)> =
        fused.buffers.iter().enumerate().filter_map(alive).collect();
    all.sort_by_key(|(id, _, life)| (life.from, *id));
    for (id, buffer, life) in all {
        // Written over an operand that ends with the launch that writes it: that launch counts the operand alone.
        let end = ends.entry(shared.owner(id)).or_insert(0);
        let from = life.from.max(*end);
        *end = life.to + 1;
        if from <= life.to {
            add(buffer.class.word(), buffer.bytes(), from, life.to);
        }
    }
    over.loops = loops(fused, &fused.body, &mut 0);
    over
}

fn loops(fused: &Fused, items: &[Item], time: &mut usize) -> Vec<(String, u64, usize, usize)> {
    let mut all = Vec::new();
    for item in items {
        match item {
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => *time += 1,
            Item::Loop { op, trip, body, .. } => {
                let (from, at) = (*time, all.len());
                let inner = loops(fused, body, time);
                let axis = fused.graph.op(*op).op.as_loop().map_or(String::new(), |l| l.axis.to_string());
                all.insert(at, (axis, *trip, from, time.saturating_sub(1)));
                all.extend(inner);
            }
        }
    }
    all
}

impl Report {
    /// From the entries, each with its packed bytes and the buffers alive at its peak.
    pub fn new(entries: &[EntryPlan], peaks: &[(u64, Vec<usize>)], arena_bytes: u64) -> Report {
        let largest = (0..entries.len()).rev().max_by_key(|i| peaks[*i].0);
        let Some(largest) = largest else {
            return Report {
                arena_bytes,
                ranks: 1,
                host_bytes: 0,
                classes: Vec::new(),
                owners: Vec::new(),
                lost_bytes: 0,
            };
        };
        let fused = &entries[largest].schedule.fused;
        let (packed, alive) = &peaks[largest];
        let mut buffers: Vec<&Buffer> = fused.buffers.iter().filter(|b| !is_packed(&b.class)).collect();
        buffers.extend(alive.iter().map(|i| &fused.buffers[*i]));
        let mut classes: Vec<(&'static str, u64)> = Vec::new();
        for buffer in &buffers {
            let word = buffer.class.word();
            match classes.iter_mut().find(|(w, _)| *w == word) {
                Some((_, bytes)) => *bytes += buffer.bytes(),
                None => classes.push((word, buffer.bytes())),
            }
        }
        let alive_bytes: u64 = alive.iter().map(|i| fused.buffers[*i].bytes()).sum();
        let mut owners: Vec<Owner> = buffers.into_iter().map(owner).collect();
        owners.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        let ranks = fused.graph.mesh.ranks();
        let lost_bytes = packed.saturating_sub(alive_bytes);
        Report { arena_bytes, ranks, host_bytes: 0, classes, owners, lost_bytes }
    }

    /// The error for an arena of `needed` bytes where there are `limit`.
    pub fn over(&self, needed: u64, limit: u64) -> OverBudget {
        let of = |word: &str| self.classes.iter().find(|(w, _)| *w == word).map_or(0, |(_, b)| *b);
        let activations = of(Class::Stack.word()) + of(Class::Temporary.word()) + of(Class::Carry.word());
        let mut hints = vec![
            (
                activations / 2,
                format!(
                    "`train.microbatch` half as large: about {} less, accumulated over twice the steps",
                    units::bytes(activations / 2)
                ),
            ),
            (
                of(Class::Stack.word()) / 2,
                format!(
                    "fewer layers or a shorter `seq`: {} are saved per iteration",
                    units::bytes(of(Class::Stack.word()))
                ),
            ),
            (
                of(Class::State { param: "".into(), kind: "".into() }.word()) / 2,
                format!(
                    "`optimizer = sgd`: {} of optimizer states",
                    units::bytes(of(Class::State { param: "".into(), kind: "".into() }.word()))
                ),
            ),
        ];
        hints.retain(|(bytes, _)| *bytes > 0);
        hints.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        OverBudget {
            needed_bytes: needed,
            limit_bytes: limit,
            owners: self.owners.iter().take(NAMED).cloned().collect(),
            hints: hints.into_iter().map(|(_, h)| h).collect(),
        }
    }
}
