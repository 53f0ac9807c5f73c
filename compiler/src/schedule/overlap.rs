//! Starts collectives early and waits for them late, so that they run while the machine computes.
//!
//! In each region, by itself:
//! 1. a **done** moves down to right before the first item that needs it, and so does what was handed on from the iteration
//!    before;
//! 2. what is done for a later iteration moves up to right behind what it needs, but for starts;
//! 3. a **start** moves up to the latest place from which the collective is over by then, by the predicted times of what lies
//!    in between, no further than the items it depends on. In flight longer than needed is memory held for nothing.
//!
//! Collectives of one class of links take it in the order in which they are ready: the last one is placed first, and each earlier
//! one has to be over when the next begins. Those of different classes do not wait for each other. What always holds: the items keep their dependences; the order of starts and of dones is
//! one of the program, hence the same on every rank. Every decision is told with its reason.

use super::times::Times;
use super::{dependences, respects};
use crate::fuse::{BufferId, Fused, GroupId, Item, LoopId, Turn};
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Where one collective went, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The collective.
    pub group: GroupId,
    /// Its predicted time, in seconds.
    pub seconds: f64,
    /// The part of it that nothing hides, in seconds; the mean of all iterations.
    pub exposed: f64,
    /// Iterations of the loops around it.
    pub times: u64,
    /// Why it starts where it does.
    pub reason: String,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |s: f64| s * 1e6;
        write!(f, "{:.1} µs, {:.1} µs exposed: {}", us(self.seconds), us(self.exposed), self.reason)
    }
}

/// Overlaps the collectives of a body and of all loops in it. What is exposed is for [`timeline`](super::timeline) to say.
pub fn overlap(fused: &Fused, items: Vec<Item>, times: &Times) -> (Vec<Item>, Vec<Decision>) {
    let mut decisions = Vec::new();
    let items = region(fused, items, None, times, 1, &mut decisions);
    (items, decisions)
}

fn region(
    fused: &Fused,
    items: Vec<Item>,
    var: Option<LoopId>,
    times: &Times,
    around: u64,
    told: &mut Vec<Decision>,
) -> Vec<Item> {
    let items: Vec<Item> = items
        .into_iter()
        .map(|item| match item {
            Item::Loop { id, op, trip, reverse, body } => {
                let body = region(fused, body, Some(id), times, around * trip, told);
                Item::Loop { id, op, trip, reverse, body }
            }
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => item,
        })
        .collect();
    if !items.iter().any(|item| matches!(item.inner(), Item::Start(_) | Item::Done(_))) {
        return items;
    }
    let late = dones_late(fused, items, var);
    let early = feeders_early(fused, late, var);
    starts_early(fused, early, var, times, around, told)
}

/// Positions of items in an order of the original positions.
fn place_of(order: &[usize]) -> Vec<usize> {
    let mut place = vec![0; order.len()];
    for (at, item) in order.iter().enumerate() {
        place[*item] = at;
    }
    place
}

/// Every done, and what is left over from an earlier iteration, right before the first item that must come after it.
fn dones_late(fused: &Fused, items: Vec<Item>, var: Option<LoopId>) -> Vec<Item> {
    let graph = dependences(fused, &items, var);
    let mut order: Vec<usize> = (0..items.len()).collect();
    let moves = |item: &Item| matches!(item.inner(), Item::Done(_)) || (is_group(item) && item.later() < 0);
    for i in (0..items.len()).rev().filter(|i| moves(&items[*i])) {
        let place = place_of(&order);
        let first_after =
            graph.neighbors(NodeIndex::new(i)).map(|n| place[graph[n]]).min().unwrap_or(order.len());
        let at = place[i];
        order.remove(at);
        order.insert(first_after - 1, i);
    }
    debug_assert!(respects(&graph, &order));
    reordered(items, &order)
}

fn is_group(item: &Item) -> bool {
    matches!(item.inner(), Item::Group(_))
}

/// What prepares a later iteration right behind the last item that must come before it: what it makes is kept for that
/// iteration anyway, and the start that sends it can then go anywhere.
fn feeders_early(fused: &Fused, items: Vec<Item>, var: Option<LoopId>) -> Vec<Item> {
    let graph = dependences(fused, &items, var);
    let mut order: Vec<usize> = (0..items.len()).collect();
    for i in (0..items.len()).filter(|i| is_group(&items[*i]) && items[*i].later() > 0) {
        let place = place_of(&order);
        let earliest = before(&graph, i).map(|i| place[i] + 1).max().unwrap_or(0);
        order.remove(place[i]);
        order.insert(earliest, i);
    }
    debug_assert!(respects(&graph, &order));
    reordered(items, &order)
}

fn reordered(items: Vec<Item>, order: &[usize]) -> Vec<Item> {
    let mut slots: Vec<Option<Item>> = items.into_iter().map(Some).collect();
    order.iter().filter_map(|i| slots[*i].take()).collect()
}

fn starts_early(
    fused: &Fused,
    items: Vec<Item>,
    var: Option<LoopId>,
    times: &Times,
    around: u64,
    told: &mut Vec<Decision>,
) -> Vec<Item> {
    let graph = dependences(fused, &items, var);
    let mut order: Vec<usize> = (0..items.len()).collect();
    // By class of links: when it has to be free again, and the place of the start that needs it then.
    let mut next: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for Flight { start, done, later, group } in by_readiness(&graph, &items).into_iter().rev() {
        let place = place_of(&order);
        let clock = clock(fused, &items, &order, times);
        let seconds = times.collective(fused, group);
        let earliest = before(&graph, start).map(|i| place[i] + 1).max().unwrap_or(0);
        let needed = clock[place[done]] + later as f64 * clock[clock.len() - 1];
        let until = if later > 0 { order.len() - 1 } else { place[done] };
        let link = times.link_of(fused, group);
        let after = next.get(link).map(|(free, start)| (*free, place[*start]));
        let end = after.map_or(needed, |(free, _)| free.min(needed));
        // The latest place, not after the next start, at which the collective can begin in time.
        let last = after.map_or(until, |(_, at)| at.min(until)).max(earliest);
        let at = (earliest..=last).rev().find(|at| clock[*at] + seconds <= end).unwrap_or(earliest);
        let at = at.min(place[start]);
        let hidden = (end - clock[at]).clamp(0.0, seconds);
        let reason = if hidden >= seconds {
            "over before it is needed".to_string()
        } else if at == earliest {
            match order.get(earliest.wrapping_sub(1)).filter(|_| earliest > 0) {
                Some(before) => format!("waits for {}", name(fused, &items[*before])),
                None => "begins with its region".to_string(),
            }
        } else {
            "the link is taken".to_string()
        };
        if let Some(reason) = with_turn(&items[start], later, reason) {
            let exposed = seconds - hidden;
            told.push(Decision { group, seconds, exposed, times: around, reason });
        }
        let from = place[start];
        order.remove(from);
        order.insert(at, start);
        next.insert(link, (clock[at], start));
    }
    debug_assert!(respects(&graph, &order));
    reordered(items, &order)
}

/// The reason with what [`rotate`](super::rotate) decided; nothing for the first ones of a loop, which its body tells of.
fn with_turn(start: &Item, later: u64, reason: String) -> Option<String> {
    let iterations = |n: u64| if n == 1 { "an iteration".to_string() } else { format!("{n} iterations") };
    match start {
        Item::Turned { turn: Turn::At(_), .. } => None,
        Item::Turned { turn: Turn::By(1..), .. } => {
            Some(format!("starts {} ahead; {reason}", iterations(later)))
        }
        _ if later > 0 => Some(format!("waited for {} later; {reason}", iterations(later))),
        _ => Some(reason),
    }
}

/// Items that must come before one.
fn before(graph: &DiGraph<usize, ()>, item: usize) -> impl Iterator<Item = usize> {
    graph.neighbors_directed(NodeIndex::new(item), Direction::Incoming).map(|n| graph[n])
}

/// A collective with its places in a region.
struct Flight {
    start: usize,
    /// Its done, or the loop that has it.
    done: usize,
    /// How many iterations after that of the start the done comes.
    later: u64,
    group: GroupId,
}

/// All collectives that start here, in the order in which the link takes them: as what they send is made, and of those made at
/// one time as what they receive is needed.
fn by_readiness(graph: &DiGraph<usize, ()>, items: &[Item]) -> Vec<Flight> {
    let mut all = Vec::new();
    for (start, item) in items.iter().enumerate() {
        let Item::Start(group) = *item.inner() else { continue };
        let is_end = |other: &Item| match (item, other) {
            // Started before the loop, waited for in it.
            (Item::Turned { of, turn: Turn::At(_), .. }, Item::Loop { id, body, .. }) if id == of => {
                body.contains(&Item::Done(group))
            }
            (Item::Turned { turn: Turn::At(m), .. }, Item::Turned { turn: Turn::At(n), .. }) => {
                m == n && *other.inner() == Item::Done(group)
            }
            (Item::Turned { turn: Turn::At(_), .. }, _) => false,
            _ => *other.inner() == Item::Done(group),
        };
        if let Some(done) = items.iter().position(is_end) {
            let later = u64::try_from(item.later() - items[done].later()).unwrap_or(0);
            all.push(Flight { start, done, later, group });
        }
    }
    all.sort_by_key(|f| (before(graph, f.start).max().map_or(0, |i| i + 1), f.later, f.done));
    all
}

/// Predicted time at which each place of the order is reached, counting computation alone; one more entry for the end.
fn clock(fused: &Fused, items: &[Item], order: &[usize], times: &Times) -> Vec<f64> {
    let mut clock = vec![0.0];
    for i in order {
        let before = clock[clock.len() - 1];
        clock.push(before + times.item(fused, &items[*i]));
    }
    clock
}

fn name(fused: &Fused, item: &Item) -> String {
    match item.inner() {
        Item::Group(id) | Item::Start(id) | Item::Done(id) => {
            let group = fused.group(*id);
            let buffers: BTreeSet<BufferId> = fused.writes(group).into_iter().collect();
            let made: Vec<&str> = buffers.iter().map(|b| fused.buffer(*b).name.as_str()).collect();
            let path = &group.origin.path;
            if path.is_empty() {
                format!("%{}", made.join(", %"))
            } else {
                format!("%{} of {path}", made.join(", %"))
            }
        }
        Item::Loop { .. } | Item::Turned { .. } => "a loop".to_string(),
    }
}
