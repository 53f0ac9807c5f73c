//! Checks a plan by itself, without the passes that made it. Checked:
//! * every byte a launch touches lies inside its buffer, for every value of the loop variables, and the buffer inside
//!   the arena;
//! * temporaries stay behind the persistent part;
//! * running through every launch in order, no buffer is written over bytes another one still needs (each byte remembers
//!   its writer; a read must find the buffer it expects, or one that shares its place on purpose), and of a buffer in whose
//!   slots the iterations of a loop take turns, each finds what was written for itself;
//! * a collective that is waited for has been started, for the same iteration.

use super::{EntryPlan, Plan};
use crate::fuse::{At, BufferId, Class, Fused, GroupId, Item, LoopId, Turn, View};
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

/// What lies somewhere: a buffer, and of one with slots the iteration it was written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    buffer: BufferId,
    iteration: Option<u64>,
}

/// What lies where while the entry runs: byte ranges of each space with what was last written there.
struct Shadow<'e> {
    entry: &'e EntryPlan,
    ranges: [BTreeMap<u64, (u64, Held)>; 2],
    /// Iterations of the loops, in the order in which they run: as many of each as show what all do.
    loops: BTreeMap<LoopId, Walked>,
    /// Buffers that items write for another iteration than the one around them, with the loop.
    moving: BTreeMap<BufferId, LoopId>,
    /// Collectives under way, with the iteration of the loop that hands them on.
    open: Vec<(GroupId, Option<u64>)>,
}

/// Where the walk is in a loop.
#[derive(Clone, Copy)]
struct Walked {
    trip: u64,
    /// The iteration around the step, or before or behind the loop that of the step.
    at: u64,
}

fn overlaps(entry: &EntryPlan) -> Result<(), String> {
    let fused = &entry.schedule.fused;
    let mut loops = BTreeMap::new();
    walked_loops(&fused.body, &mut loops);
    let ranges = [BTreeMap::new(), BTreeMap::new()];
    let mut moving = BTreeMap::new();
    moving_buffers(fused, &fused.body, &mut moving);
    let mut shadow = Shadow { entry, ranges, loops, moving, open: Vec::new() };
    for (i, buffer) in fused.buffers.iter().enumerate() {
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
    shadow.items(&fused.body)?;
    match shadow.open.first() {
        Some((id, _)) => Err(format!("collective g{} is never waited for", id.0)),
        None => Ok(()),
    }
}

/// The second iteration sees what the first left behind; one that hands something on is seen by those after it, and there is
/// a last one to which nothing is handed.
fn walked_loops(items: &[Item], loops: &mut BTreeMap<LoopId, Walked>) {
    for item in items {
        if let Item::Loop { id, trip, body, .. } = item {
            let later = body.iter().map(|item| item.later().unsigned_abs()).max().unwrap_or(0);
            let enough = if later == 0 { 2 } else { 2 * later + 3 };
            loops.insert(*id, Walked { trip: (*trip).min(enough), at: 0 });
            walked_loops(body, loops);
        }
    }
}

impl Shadow<'_> {
    fn items(&mut self, items: &[Item]) -> Result<(), String> {
        for item in items {
            self.item(item, None)?;
        }
        Ok(())
    }

    /// `turned` is the iteration it is run for, if that is not the one around it.
    fn item(&mut self, item: &Item, turned: Option<u64>) -> Result<(), String> {
        let fused = &self.entry.schedule.fused;
        match item {
            Item::Group(id) | Item::Start(id) => {
                let group = fused.group(*id);
                for view in fused.reads(group) {
                    self.read(view.buffer)?;
                }
                for buffer in fused.writes(group) {
                    self.write(buffer);
                }
                if let Item::Start(_) = item {
                    self.open.push((*id, self.iteration(*id, turned)));
                }
            }
            // Everything a collective works with is still what it was when it began.
            Item::Done(id) => {
                let this = (*id, self.iteration(*id, turned));
                match self.open.iter().position(|open| *open == this) {
                    Some(at) => drop(self.open.remove(at)),
                    None => return Err(format!("collective g{} is waited for and not under way", id.0)),
                }
                let group = fused.group(*id);
                let sent = fused.reads(group).into_iter().map(|v| v.buffer);
                for buffer in sent.chain(fused.writes(group)) {
                    self.read(buffer)?;
                }
            }
            Item::Turned { of, turn, item } => {
                let here = self.loops[of];
                let at = match turn {
                    Turn::By(n) => here.at.checked_add_signed(*n),
                    // The last ones are the last ones walked.
                    Turn::At(n) => Some(self.walked_for(*of, *n)),
                };
                if let Some(at) = at.filter(|at| *at < here.trip) {
                    self.loops.insert(*of, Walked { at, ..here });
                    self.item(item, Some(at))?;
                    self.loops.insert(*of, here);
                }
            }
            Item::Loop { id, body, .. } => {
                let walked = self.loops[id];
                for at in 0..walked.trip {
                    self.loops.insert(*id, Walked { at, ..walked });
                    self.items(body)?;
                }
                self.loops.insert(*id, walked);
            }
        }
        Ok(())
    }

    /// The walked iteration that stands for iteration `n`: first ones for first ones, last ones for last ones.
    fn walked_for(&self, of: LoopId, n: u64) -> u64 {
        let (all, walked) = (trip_of(&self.entry.schedule.fused.body, of).unwrap_or(1), self.loops[&of].trip);
        if n < walked / 2 { n } else { walked.saturating_sub(all - n) }
    }

    /// The iteration of a collective that some loop hands on.
    fn iteration(&self, id: GroupId, turned: Option<u64>) -> Option<u64> {
        let fused = &self.entry.schedule.fused;
        let of = handed_on(&fused.body, id)?;
        turned.or_else(|| self.loops.get(&of).map(|l| l.at))
    }

    fn range(&self, b: BufferId) -> (u64, u64, Held) {
        let buffer = self.entry.schedule.fused.buffer(b);
        let from = self.entry.offsets[b.0 as usize];
        let of = buffer.ring.map(|ring| ring.of).or_else(|| self.moving.get(&b).copied());
        let iteration = of.and_then(|of| self.loops.get(&of)).map(|l| l.at);
        let held = Held { buffer: b, iteration };
        match buffer.ring {
            Some(ring) => {
                let from = from + iteration.unwrap_or(0) % ring.slots * buffer.slot_bytes();
                (from, from + buffer.slot_bytes(), held)
            }
            None => (from, from + buffer.bytes(), held),
        }
    }

    fn space(&self, b: BufferId) -> usize {
        self.entry.schedule.fused.buffer(b).space as usize
    }

    fn write(&mut self, b: BufferId) {
        let (from, to, held) = self.range(b);
        let space = self.space(b);
        let ranges = &mut self.ranges[space];
        let hit: Vec<(u64, u64, Held)> = ranges
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
        ranges.insert(from, (to, held));
    }

    fn read(&self, b: BufferId) -> Result<(), String> {
        let (from, to, held) = self.range(b);
        let ranges = &self.ranges[self.space(b)];
        let whole = ranges.get(&from).is_some_and(|(end, owner)| *owner == held && *end == to);
        if whole {
            return Ok(());
        }
        let fused = &self.entry.schedule.fused;
        let name = |held: &Held| match held.iteration {
            Some(n) => format!("%{} of iteration {n}", fused.buffer(held.buffer).name),
            None => format!("%{}", fused.buffer(held.buffer).name),
        };
        let found: Vec<String> = ranges
            .range(..to)
            .filter(|(_, (end, _))| *end > from)
            .map(|(_, (_, owner))| name(owner))
            .collect();
        Err(format!("{} is read while its bytes hold {}", name(&held), found.join(", ")))
    }
}

fn moving_buffers(fused: &Fused, items: &[Item], moving: &mut BTreeMap<BufferId, LoopId>) {
    for item in items {
        match item {
            Item::Turned { of, turn: Turn::By(_), item } => {
                if let Item::Group(id) | Item::Start(id) | Item::Done(id) = item.inner() {
                    let written = fused.writes(fused.group(*id)).into_iter();
                    let own = |b: &BufferId| {
                        matches!(fused.buffer(*b).class, Class::Temporary | Class::Received | Class::Staging)
                    };
                    moving.extend(written.filter(own).map(|b| (b, *of)));
                }
            }
            Item::Loop { body, .. } => moving_buffers(fused, body, moving),
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => {}
        }
    }
}

fn trip_of(items: &[Item], of: LoopId) -> Option<u64> {
    items.iter().find_map(|item| match item {
        Item::Loop { id, trip, .. } if *id == of => Some(*trip),
        Item::Loop { body, .. } => trip_of(body, of),
        Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => None,
    })
}

/// The loop whose iterations hand a collective on.
fn handed_on(items: &[Item], id: GroupId) -> Option<LoopId> {
    items.iter().find_map(|item| match item {
        Item::Turned { of, item, .. } => {
            (**item == Item::Start(id) || **item == Item::Done(id)).then_some(*of)
        }
        Item::Loop { body, .. } => handed_on(body, id),
        Item::Group(_) | Item::Start(_) | Item::Done(_) => None,
    })
}
