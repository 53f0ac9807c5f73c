//! Hands collectives from one iteration of a loop to another, so that they run while a whole iteration computes.
//!
//! ```text
//! loop i { gather(i); use(i); grad(i); scatter(i); update(i) }
//!
//! gather(0) starts
//! loop i { gather(i) is waited for; gather(i+1) starts; use(i)
//!          grad(i); scatter(i-1) is waited for; update(i-1); scatter(i) starts }
//! scatter(last) is waited for; update(last)
//! ```
//! In each loop, innermost first:
//! 1. **early**: a collective of what no iteration changes (parameters, or an iteration's slice of them) starts `ahead`
//!    iterations before the one that waits for it, together with the casts and copies it sends: in the iteration itself (not
//!    in the last ones), and for the first iterations before the loop.
//! 2. **late**: a collective whose results only end up in places of their own (a gradient's slice, a new parameter) is waited for
//!    in the next iteration (not in the first), together with all that hangs on it; for the last one behind the loop.
//! 3. What is handed on lives as long as the loop. Where an iteration needs its own contents while the next one's are made the
//!    buffer becomes a ring of slots: `ahead + 1` for what is received early, 2 for what is sent late. Staging and what is sent early
//!    are never needed by more iterations than are under way: `ahead` slots, for one is waited for before the next starts.
//!
//! Why it is right: iteration i without its early items, all of them and before all others, then the early items of i + 1: the
//! same order of things, cut elsewhere. The early items are closed under what comes before them, the late ones under
//! what comes after, and nothing in between touches what they touch, slices of other iterations apart. Every order of the new body
//! that keeps its dependences is then as good as the old one; [`crate::memory::verify`] looks at slots and dones again, and the
//! program's verifier at addresses.

use super::{accesses, dependences};
use crate::fuse::{BufferId, Class, Fused, GroupId, Item, Kind, LoopId, Ring, Turn};
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, BTreeSet};

/// Which collectives go to another iteration.
pub struct Rotation<'r> {
    /// How many iterations early; at least 1. Less in a loop that has no more.
    pub ahead: u64,
    /// Whether handing a collective on is worth it.
    pub wanted: &'r dyn Fn(GroupId) -> bool,
}

/// A loop's body in parts.
struct Split {
    early: BTreeSet<usize>,
    late: BTreeSet<usize>,
    /// Buffers that are touched in several iterations, with the number of slots they need.
    slots: BTreeMap<BufferId, u64>,
}

/// Rotates all loops of a body; gives the new body and whether anything changed.
pub fn rotate(fused: &mut Fused, items: Vec<Item>, rotation: &Rotation<'_>) -> (Vec<Item>, bool) {
    region(fused, items, None, rotation)
}

fn region(
    fused: &mut Fused,
    items: Vec<Item>,
    home: Option<LoopId>,
    rotation: &Rotation<'_>,
) -> (Vec<Item>, bool) {
    let (mut out, mut any) = (Vec::new(), false);
    for item in items {
        match item {
            Item::Loop { id, op, trip, reverse, body } => {
                let (body, inside) = region(fused, body, Some(id), rotation);
                // One iteration at least is started in the loop.
                let ahead = rotation.ahead.min(trip.saturating_sub(1));
                let split = split(fused, (id, ahead), &body, rotation);
                any |= inside || split.is_some();
                match split {
                    Some(split) => {
                        let (before, body, behind) = apply(fused, (id, trip, home), body, split, ahead);
                        out.extend(before);
                        out.push(Item::Loop { id, op, trip, reverse, body });
                        out.extend(behind);
                    }
                    None => out.push(Item::Loop { id, op, trip, reverse, body }),
                }
            }
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => out.push(item),
        }
    }
    (out, any)
}

/// What of a loop's body goes to other iterations, if anything does.
fn split(fused: &Fused, (id, ahead): (LoopId, u64), body: &[Item], rotation: &Rotation<'_>) -> Option<Split> {
    if ahead == 0 {
        return None;
    }
    let wanted = |item: &Item| match item {
        Item::Start(g) | Item::Done(g) => (rotation.wanted)(*g),
        Item::Group(_) | Item::Loop { .. } | Item::Turned { .. } => false,
    };
    let found = |is: fn(&Item) -> bool| {
        body.iter().enumerate().filter(move |(_, item)| is(item) && wanted(item)).map(|(i, _)| i)
    };
    let starts: Vec<usize> = found(|item| matches!(item, Item::Start(_))).collect();
    let dones: Vec<usize> = found(|item| matches!(item, Item::Done(_))).collect();
    if starts.is_empty() {
        return None;
    }
    let body = Body::new(fused, id, body);
    let early = body.early(&starts);
    let late = body.late(&dones, &early);
    if early.is_empty() && late.is_empty() {
        return None;
    }
    let slots = body.slots(&early, &late, ahead);
    Some(Split { early, late, slots })
}

/// Parts of buffers that an item touches, see [`super::Part`], and whether it writes them.
type Touched = Vec<(BufferId, Option<i64>, bool)>;

struct Body<'b> {
    fused: &'b Fused,
    id: LoopId,
    items: &'b [Item],
    graph: DiGraph<usize, ()>,
    touched: Vec<Touched>,
}

impl<'b> Body<'b> {
    fn new(fused: &'b Fused, id: LoopId, items: &'b [Item]) -> Body<'b> {
        let touched = |item: &Item| {
            let (reads, writes) = accesses(fused, item, Some(id));
            let reads = reads.into_iter().map(|(b, part)| (b, part, false));
            reads.chain(writes.into_iter().map(|(b, part)| (b, part, true))).collect()
        };
        Body {
            fused,
            id,
            items,
            graph: dependences(fused, items, Some(id)),
            touched: items.iter().map(touched).collect(),
        }
    }

    /// Everything that has to come before an item, or after it.
    fn reach(&self, from: usize, direction: Direction) -> BTreeSet<usize> {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(i) = open.pop() {
            for n in self.graph.neighbors_directed(NodeIndex::new(i), direction) {
                if reached.insert(self.graph[n]) {
                    open.push(self.graph[n]);
                }
            }
        }
        reached
    }

    /// Made anew in every iteration.
    fn is_own(&self, b: BufferId) -> bool {
        let buffer = self.fused.buffer(b);
        let kind = matches!(buffer.class, Class::Temporary | Class::Received | Class::Staging);
        kind && buffer.home == Some(self.id) && buffer.ring.is_none()
    }

    /// Items that touch a buffer.
    fn touching(&self, b: BufferId) -> impl Iterator<Item = usize> {
        (0..self.items.len()).filter(move |i| self.touched[*i].iter().any(|(t, _, _)| *t == b))
    }

    fn done_of(&self, start: usize) -> Option<usize> {
        let Item::Start(g) = self.items[start] else { return None };
        self.items.iter().position(|item| *item == Item::Done(g))
    }

    fn start_of(&self, done: usize) -> Option<usize> {
        let Item::Done(g) = self.items[done] else { return None };
        self.items.iter().position(|item| *item == Item::Start(g))
    }

    /// Starts that can run in an earlier iteration, with what comes before them.
    fn early(&self, starts: &[usize]) -> BTreeSet<usize> {
        let mut sets: Vec<(usize, BTreeSet<usize>)> =
            starts.iter().map(|s| (*s, self.reach(*s, Direction::Incoming))).collect();
        loop {
            let all: BTreeSet<usize> =
                sets.iter().flat_map(|(s, before)| before.iter().chain([s])).copied().collect();
            let kept = sets.len();
            sets.retain(|(start, before)| self.can_be_early(*start, before, &all));
            if sets.len() == kept {
                return all;
            }
        }
    }

    fn can_be_early(&self, start: usize, before: &BTreeSet<usize>, all: &BTreeSet<usize>) -> bool {
        let moves = |i: &usize| match &self.items[*i] {
            Item::Group(g) => matches!(self.fused.group(*g).kind, Kind::Loops { .. } | Kind::Copy { .. }),
            Item::Start(_) | Item::Done(_) => true,
            Item::Loop { .. } | Item::Turned { .. } => false,
        };
        // A done of a start that is early is waited for where it was.
        let handed: BTreeSet<usize> = all.iter().filter_map(|i| self.done_of(*i)).collect();
        let fits = |i: usize| {
            self.touched[i].iter().all(|&(b, part, writes)| {
                if writes {
                    return self.is_own(b) && (i == start || self.only_in(b, all, &handed));
                }
                let made = before.iter().any(|j| self.touched[*j].contains(&(b, part, true)));
                // The slice of another iteration is not that which this one writes.
                made || self.others(all).all(|j| {
                    self.touched[j]
                        .iter()
                        .all(|&(other, at, w)| !w || other != b || (part.is_some() && at.is_some()))
                })
            })
        };
        before.iter().all(moves) && before.iter().chain([&start]).all(|i| fits(*i))
    }

    fn others<'s>(&self, set: &'s BTreeSet<usize>) -> impl Iterator<Item = usize> + 's {
        (0..self.items.len()).filter(move |i| !set.contains(i))
    }

    /// Dones that can wait for the next iteration, with what comes after them.
    fn late(&self, dones: &[usize], early: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut sets: Vec<(usize, usize, BTreeSet<usize>)> = Vec::new();
        for done in dones {
            let start = self.start_of(*done).filter(|start| !early.contains(start));
            let mut after = self.reach(*done, Direction::Outgoing);
            after.insert(*done);
            sets.extend(start.map(|start| (start, *done, after)));
        }
        loop {
            let all: BTreeSet<usize> = sets.iter().flat_map(|(_, _, after)| after).copied().collect();
            let handed: BTreeSet<usize> = sets.iter().map(|(start, ..)| *start).collect();
            let kept = sets.len();
            sets.retain(|(start, _, after)| {
                let fits = |i: &usize| !early.contains(i) && self.can_be_late(*i, &all, &handed);
                // The start stays where it is and takes the place of its results with it.
                let results = self.touched[*start].iter().filter(|(b, _, writes)| *writes && self.is_own(*b));
                after.iter().all(fits) && results.map(|(b, ..)| *b).all(|b| self.only_in(b, &all, &handed))
            });
            if sets.len() == kept {
                return all;
            }
        }
    }

    /// Whether an item can run an iteration later, with all the others that do and the starts that come before them.
    fn can_be_late(&self, i: usize, all: &BTreeSet<usize>, handed: &BTreeSet<usize>) -> bool {
        let moves = match self.items[i] {
            Item::Group(_) | Item::Start(_) | Item::Done(_) => true,
            Item::Loop { .. } | Item::Turned { .. } => false,
        };
        moves
            && self.touched[i].iter().all(|&(b, part, writes)| {
                if self.is_own(b) {
                    return !writes || self.only_in(b, all, handed);
                }
                let buffer = self.fused.buffer(b);
                let stays = buffer.home != Some(self.id) && buffer.class != Class::Carry;
                let clash = |j: usize| {
                    let touch = |&(other, at, w): &(BufferId, Option<i64>, bool)| {
                        (w || writes) && other == b && (part.is_none() || at.is_none())
                    };
                    !all.contains(&j) && !handed.contains(&j) && self.touched[j].iter().any(touch)
                };
                stays && !(0..self.items.len()).any(clash)
            })
    }

    /// Whether nothing else touches a buffer.
    fn only_in(&self, b: BufferId, all: &BTreeSet<usize>, handed: &BTreeSet<usize>) -> bool {
        self.touching(b).all(|j| all.contains(&j) || handed.contains(&j))
    }

    /// Slots of the loop's own buffers that several iterations touch.
    fn slots(&self, early: &BTreeSet<usize>, late: &BTreeSet<usize>, ahead: u64) -> BTreeMap<BufferId, u64> {
        let mut slots = BTreeMap::new();
        let is_moved = |i: &usize| early.contains(i) || late.contains(i);
        for i in early.iter().chain(late) {
            for &(b, _, _) in self.touched[*i].iter().filter(|(b, _, _)| self.is_own(*b)) {
                // Behind the done of what is early nothing of this iteration is needed any more, save for what was received.
                let tight = self
                    .touching(b)
                    .all(|j| is_moved(&j) || matches!(self.items[j], Item::Start(_) | Item::Done(_)));
                let of_early = early.contains(i);
                let several =
                    self.touching(b).any(|j| early.contains(&j) != of_early || late.contains(&j) == of_early);
                let n = match (several, tight, of_early) {
                    (false, ..) | (true, true, false) => 1,
                    (true, true, true) => ahead,
                    (true, false, true) => ahead + 1,
                    (true, false, false) => 2,
                };
                let known = slots.entry(b).or_insert(n);
                *known = n.max(*known);
            }
        }
        slots
    }
}

/// Items before the loop, of its body and behind it.
fn apply(
    fused: &mut Fused,
    (id, trip, home): (LoopId, u64, Option<LoopId>),
    body: Vec<Item>,
    split: Split,
    ahead: u64,
) -> (Vec<Item>, Vec<Item>, Vec<Item>) {
    for (b, slots) in &split.slots {
        let buffer = &mut fused.buffers[b.0 as usize];
        buffer.home = home;
        if *slots > 1 {
            buffer.ring = Some(Ring { of: id, slots: *slots });
        }
    }
    let turned = |item: &Item, turn: Turn| Item::Turned { of: id, turn, item: Box::new(item.clone()) };
    let of = |set: &BTreeSet<usize>, turn: Turn| -> Vec<Item> {
        set.iter().map(|i| turned(&body[*i], turn)).collect()
    };
    let before = (0..ahead).flat_map(|n| of(&split.early, Turn::At(n))).collect();
    let behind = of(&split.late, Turn::At(trip - 1));
    let mut new = of(&split.late, Turn::By(-1));
    let stays = |i: &usize| !split.early.contains(i) && !split.late.contains(i);
    new.extend((0..body.len()).filter(stays).map(|i| body[i].clone()));
    new.extend(of(&split.early, Turn::By(ahead as i64)));
    (before, new, behind)
}
