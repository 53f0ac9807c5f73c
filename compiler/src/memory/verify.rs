//! Checks a plan by itself, without the passes that made it. Checked:
//! * every byte a launch touches lies inside its buffer, for every value of the loop variables, and the buffer inside
//!   the arena;
//! * temporaries stay behind the persistent part;
//! * running through every launch in order, no buffer is written over bytes another one still needs (each byte remembers
//!   its writer; a read must find the buffer it expects, or one that shares its place on purpose).

use super::{EntryPlan, Plan};
use crate::fuse::{At, BufferId, Class, Fused, Item, View};
use crate::graph::Space;
use std::collections::BTreeMap;

/// Verifies all entries.
///
/// # Errors
/// The first violation, in words.
pub fn verify(plan: &Plan) -> Result<(), String> {
    for entry in &plan.entries {
        bounds(plan, entry)?;
        overlaps(entry)?;
    }
    Ok(())
}

fn bounds(plan: &Plan, entry: &EntryPlan) -> Result<(), String> {
    let fused = &entry.schedule.fused;
    for (i, buffer) in fused.buffers.iter().enumerate() {
        let end = if buffer.space == Space::Host { plan.host_bytes } else { plan.arena_bytes };
        if entry.offsets[i] + buffer.bytes() > end {
            return Err(format!("%{} ends behind the arena", buffer.name));
        }
        if buffer.space == Space::Host {
            continue;
        }
        if !buffer.class.is_persistent() && entry.offsets[i] < plan.persistent_bytes && buffer.bytes() > 0 {
            let used = fused.groups.iter().any(|g| fused.writes(g).iter().any(|b| b.0 as usize == i));
            if used {
                return Err(format!("%{} lies among the persistent tensors", buffer.name));
            }
        }
    }
    let mut trips = BTreeMap::new();
    trip_counts(&fused.body, &mut trips);
    for group in &fused.groups {
        let writes = group.writes.iter().map(|w| w.view.clone());
        for view in fused.reads(group).into_iter().chain(writes) {
            inside(fused, &view, &trips)?;
        }
    }
    Ok(())
}

fn trip_counts(items: &[Item], trips: &mut BTreeMap<u32, u64>) {
    for item in items {
        if let Item::Loop { id, trip, body, .. } = item {
            trips.insert(id.0, *trip);
            trip_counts(body, trips);
        }
    }
}

/// The last element along each axis of the buffer exists.
fn inside(fused: &Fused, view: &View, trips: &BTreeMap<u32, u64>) -> Result<(), String> {
    let buffer = fused.buffer(view.buffer);
    for axis in &buffer.axes {
        let extent: u64 = view.axes.iter().filter(|a| a.of == axis.name).map(|a| a.size - 1).sum();
        let moved: u64 = view
            .slots
            .iter()
            .filter(|s| s.axis == axis.name)
            .map(|s| match &s.at {
                At::Fixed(n) => *n,
                At::Loop { var, width } => (trips.get(&var.0).copied().unwrap_or(1) - 1) * width,
                At::Rank { axis, width } => (fused.graph.mesh.size_of(axis) - 1) * width,
            })
            .sum();
        if extent + moved >= axis.size {
            return Err(format!("a view of %{} leaves axis {}={}", buffer.name, axis.name, axis.size));
        }
    }
    Ok(())
}

/// What lies where while the entry runs: byte ranges of each space with the buffer last written there.
struct Shadow<'e> {
    entry: &'e EntryPlan,
    ranges: [BTreeMap<u64, (u64, BufferId)>; 2],
}

fn overlaps(entry: &EntryPlan) -> Result<(), String> {
    let mut shadow = Shadow { entry, ranges: [BTreeMap::new(), BTreeMap::new()] };
    for (i, buffer) in entry.schedule.fused.buffers.iter().enumerate() {
        match buffer.class {
            Class::Param { .. } | Class::State { .. } | Class::Scalar { .. } | Class::Input { .. } => {
                shadow.write(BufferId(i as u32));
            }
            Class::Output { .. }
            | Class::Carry
            | Class::Stack
            | Class::Sum
            | Class::Received
            | Class::Staging
            | Class::Temporary => {}
        }
    }
    // The second round sees what the first left behind, as a second iteration would.
    shadow.items(&entry.schedule.fused.body)?;
    Ok(())
}

impl Shadow<'_> {
    fn items(&mut self, items: &[Item]) -> Result<(), String> {
        let fused = &self.entry.schedule.fused;
        for item in items {
            match item {
                Item::Group(id) | Item::Start(id) => {
                    let group = fused.group(*id);
                    for view in fused.reads(group) {
                        self.read(view.buffer)?;
                    }
                    for buffer in fused.writes(group) {
                        self.write(buffer);
                    }
                }
                // Everything a collective works with is still what it was when it began.
                Item::Done(id) => {
                    let group = fused.group(*id);
                    let sent = fused.reads(group).into_iter().map(|v| v.buffer);
                    for buffer in sent.chain(fused.writes(group)) {
                        self.read(buffer)?;
                    }
                }
                Item::Loop { body, trip, .. } => {
                    for _ in 0..(*trip).min(2) {
                        self.items(body)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn range(&self, b: BufferId) -> (u64, u64) {
        let from = self.entry.offsets[b.0 as usize];
        (from, from + self.entry.schedule.fused.buffer(b).bytes())
    }

    fn space(&self, b: BufferId) -> usize {
        self.entry.schedule.fused.buffer(b).space as usize
    }

    fn write(&mut self, b: BufferId) {
        let (from, to) = self.range(b);
        let space = self.space(b);
        let ranges = &mut self.ranges[space];
        let hit: Vec<(u64, u64, BufferId)> = ranges
            .range(..to)
            .filter(|(_, (end, _))| *end > from)
            .map(|(start, (end, owner))| (*start, *end, *owner))
            .collect();
        for (start, end, owner) in hit {
            ranges.remove(&start);
            if start < from {
                ranges.insert(start, (from, owner));
            }
            if end > to {
                ranges.insert(to, (end, owner));
            }
        }
        ranges.insert(from, (to, b));
    }

    fn read(&self, b: BufferId) -> Result<(), String> {
        let (from, to) = self.range(b);
        let ranges = &self.ranges[self.space(b)];
        let whole = ranges.get(&from).is_some_and(|(end, owner)| *owner == b && *end == to);
        if whole {
            return Ok(());
        }
        let fused = &self.entry.schedule.fused;
        let found: Vec<String> = ranges
            .range(..to)
            .filter(|(_, (end, _))| *end > from)
            .map(|(_, (_, owner))| format!("%{}", fused.buffer(*owner).name))
            .collect();
        Err(format!("%{} is read while its bytes hold {}", fused.buffer(b).name, found.join(", ")))
    }
}
