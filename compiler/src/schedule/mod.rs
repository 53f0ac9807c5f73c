//! When everything runs: the tree of loops with its items in their final order.
//!
//! In: a [`Fused`]. Out: a [`Schedule`], the same tree in another order. A region's items form a DAG (true, anti- and
//! output dependences, by buffer); the order is a topological one in which an item that only makes values (it frees
//! nothing) is put off until just before its first reader, so that its results live as short as they can.
//!
//! A collective becomes two items, its start and its done, which [`overlap`] takes apart, and [`rotate`] hands on from one
//! iteration of a loop to another.
//!
//! What always holds: dependences point forward; the order is a function of the input alone; a collective is started and then
//! waited for, once each for every iteration.

pub mod overlap;
pub mod rotate;
pub mod timeline;
pub mod times;

#[cfg(test)]
mod tests;

use crate::cost::Target;
use crate::fuse::{At, BufferId, Fused, GroupId, Item, Kind, LoopId, Turn, View};
use crate::graph::Name;
use overlap::{Decision, overlap};
use petgraph::graph::{DiGraph, NodeIndex};
use rotate::Rotation;
use std::collections::{BTreeMap, BTreeSet};
use timeline::{Timeline, timeline};
use times::Times;

/// A [`Fused`] whose items are in execution order.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The ordered tree with its buffers.
    pub fused: Fused,
    /// Where collectives went, and why.
    pub decisions: Vec<Decision>,
    /// Seconds of computation of one rank, by [`times`].
    pub compute: f64,
    /// Iterations by which collectives start early, at most; 0 if each iteration has its own to itself.
    pub ahead: u64,
    /// Predicted seconds of collectives that nothing would hide if each iteration had its own to itself.
    pub exposed_alone: f64,
    /// Why collectives are not earlier, if it is not by the predicted times.
    pub note: Option<String>,
    /// What decided.
    pub times: Times,
}

impl Schedule {
    /// Predicted seconds one rank's collectives are under way in a call, and the part of it that nothing hides.
    pub fn communication(&self) -> (f64, f64) {
        let sum = |of: fn(&Decision) -> f64| self.decisions.iter().map(|d| of(d) * d.times as f64).sum();
        (sum(|d| d.seconds), sum(|d| d.exposed))
    }

    /// Every collective with its predicted time and the reason for its place, after the sums of one call.
    pub fn text(&self) -> String {
        let (all, exposed) = self.communication();
        let ms = |s: f64| s * 1e3;
        let mut text = format!(
            "predicted for one rank: {:.3} ms of computation, {:.3} ms of collectives, {:.3} ms of them exposed",
            ms(self.compute),
            ms(all),
            ms(exposed)
        );
        if self.ahead > 0 {
            text += &format!(" ({:.3} ms if no loop handed them on)", ms(self.exposed_alone));
        }
        text.push('\n');
        if let Some(note) = &self.note {
            text += &format!("{note}\n");
        }
        for decision in &self.decisions {
            let times =
                if decision.times > 1 { format!(", {} times", decision.times) } else { String::new() };
            text += &format!("{}{times}: {decision}\n", self.fused.group_text(decision.group));
        }
        text
    }
}

/// Most iterations by which a collective starts early.
pub const MOST_AHEAD: u64 = 2;

/// A deeper rotation has to save this part of the predicted time of a call.
const WORTH: f64 = 0.01;

/// Orders the items of every region for a machine with these figures, collectives up to [`MOST_AHEAD`] iterations early.
pub fn order(fused: Fused, target: &Target) -> Schedule {
    order_within(fused, target, MOST_AHEAD)
}

/// Orders the items of every region, with collectives up to `most_ahead` iterations early: the fewest that hide, by the
/// predicted times, about as much as any.
pub fn order_within(fused: Fused, target: &Target, most_ahead: u64) -> Schedule {
    let unordered = Unordered::new(fused, Times::on(target));
    let (mut best, walked) = unordered.overlapped(unordered.fused.clone(), unordered.body.clone(), 0);
    best.exposed_alone = walked.all_exposed();
    let wanted = |g: GroupId| walked.exposed.get(&g).is_some_and(|seconds| *seconds > 0.0);
    let mut least = walked.seconds;
    for ahead in 1..=most_ahead {
        let Some((rotated, walked)) = unordered.rotated(ahead, &wanted) else { break };
        if walked.seconds < least * (1.0 - WORTH) || (ahead == 1 && walked.seconds < least) {
            least = walked.seconds;
            best = Schedule { exposed_alone: best.exposed_alone, ..rotated };
        }
    }
    best
}

/// A [`Fused`] with its collectives in halves, each right where it was.
struct Unordered {
    fused: Fused,
    body: Vec<Item>,
    times: Times,
}

impl Unordered {
    fn new(mut fused: Fused, times: Times) -> Unordered {
        let body = std::mem::take(&mut fused.body);
        let body = order_region(&fused, body, None);
        let body = split_collectives(&fused, body);
        Unordered { fused, body, times }
    }

    /// With collectives that many iterations early; nothing if none can be.
    fn rotated(&self, ahead: u64, wanted: &dyn Fn(GroupId) -> bool) -> Option<(Schedule, Timeline)> {
        let mut fused = self.fused.clone();
        let rotation = Rotation { ahead, wanted };
        let (body, any) = rotate::rotate(&mut fused, self.body.clone(), &rotation);
        any.then(|| self.overlapped(fused, body, ahead))
    }

    fn overlapped(&self, mut fused: Fused, body: Vec<Item>, ahead: u64) -> (Schedule, Timeline) {
        let (items, mut decisions) = overlap(&fused, body, &self.times);
        let walked = timeline(&fused, &items, &self.times);
        for decision in &mut decisions {
            let exposed = walked.exposed.get(&decision.group).copied().unwrap_or(0.0);
            decision.exposed = exposed / decision.times as f64;
        }
        fused.body = items;
        let compute = self.body.iter().map(|item| self.times.item(&self.fused, item)).sum();
        let exposed_alone = walked.all_exposed();
        let times = self.times.clone();
        (Schedule { fused, decisions, compute, ahead, exposed_alone, note: None, times }, walked)
    }
}

/// With everything that can be handed on handed on, whatever the predicted times say.
#[cfg(test)]
pub(crate) fn order_ahead(fused: Fused, ahead: u64) -> Option<Schedule> {
    Unordered::new(fused, Times::on(&Target::default()))
        .rotated(ahead, &|_| true)
        .map(|(schedule, _)| schedule)
}

/// What of a buffer an item touches: the part of one iteration of the loop whose body the item is in, so many iterations
/// later than the one around it; or, with nothing, all of it or who knows what. Parts of different iterations are different
/// elements.
pub type Part = (BufferId, Option<i64>);

/// Parts of buffers an item reads and writes, nested items included, seen from the body of the loop `var` or from the top.
pub fn accesses(fused: &Fused, item: &Item, var: Option<LoopId>) -> (BTreeSet<Part>, BTreeSet<Part>) {
    let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
    collect(fused, item, var, &mut reads, &mut writes);
    (reads, writes)
}

fn collect(
    fused: &Fused,
    item: &Item,
    var: Option<LoopId>,
    reads: &mut BTreeSet<Part>,
    writes: &mut BTreeSet<Part>,
) {
    match item.inner() {
        // What is received is written at some time between start and done, and what is sent is read: both halves count as both.
        Item::Group(id) | Item::Start(id) | Item::Done(id) => {
            let fixed = matches!(item, Item::Turned { turn: Turn::At(_), .. });
            let later = (!fixed).then(|| item.later());
            let group = fused.group(*id);
            let part = |view: &View| (view.buffer, part_of(fused, view, var, later));
            reads.extend(fused.reads(group).iter().map(part));
            writes.extend(group.writes.iter().map(|w| part(&w.view)));
            if let Kind::Collective { staging, .. } = group.kind {
                let whole = View { buffer: staging, axes: Vec::new(), slots: Vec::new() };
                writes.insert(part(&whole));
            }
        }
        Item::Loop { body, .. } => {
            for item in body {
                collect(fused, item, var, reads, writes);
            }
        }
        Item::Turned { .. } => unreachable!("nothing is turned twice"),
    }
}

/// The part of a buffer that a view shows `later` iterations of the loop `var` after the one around it.
fn part_of(fused: &Fused, view: &View, var: Option<LoopId>, later: Option<i64>) -> Option<i64> {
    let (var, later) = (var?, later?);
    let buffer = fused.buffer(view.buffer);
    if let Some(ring) = buffer.ring {
        return (ring.of == var).then(|| later.rem_euclid(ring.slots as i64));
    }
    let along = |axis: &Name| {
        let mut slots = view.slots.iter().filter(|s| s.axis == *axis);
        let (Some(slot), None) = (slots.next(), slots.next()) else { return false };
        let extent: u64 = view.axes.iter().filter(|a| a.of == *axis).map(|a| a.size - 1).sum();
        matches!(slot.at, At::Loop { var: of, width } if of == var && extent < width)
    };
    buffer.axes.iter().any(|axis| along(&axis.name)).then_some(later)
}

/// The dependences of the items of a loop's body, or of the top: an edge from each item to every later one that must stay later.
pub fn dependences(fused: &Fused, items: &[Item], var: Option<LoopId>) -> DiGraph<usize, ()> {
    let mut graph = DiGraph::new();
    let nodes: Vec<NodeIndex> = (0..items.len()).map(|i| graph.add_node(i)).collect();
    // Per part: the last writer, and the readers since.
    let mut writer: BTreeMap<Part, usize> = BTreeMap::new();
    let mut readers: BTreeMap<Part, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let (reads, writes) = accesses(fused, item, var);
        let mut before: BTreeSet<usize> = BTreeSet::new();
        for part in &reads {
            before.extend(meeting(&writer, *part));
        }
        for part in &writes {
            before.extend(meeting(&writer, *part));
            before.extend(meeting(&readers, *part).flatten());
        }
        for j in before {
            graph.add_edge(nodes[j], nodes[i], ());
        }
        for part in reads {
            readers.entry(part).or_default().push(i);
        }
        for part in writes {
            writer.insert(part, i);
            readers.insert(part, Vec::new());
        }
    }
    graph
}

/// What is known of the parts that share elements with one.
fn meeting<T>(of: &BTreeMap<Part, T>, part: Part) -> impl Iterator<Item = &T> {
    let (buffer, iteration) = part;
    let all = of.range((buffer, None)..=(buffer, Some(i64::MAX)));
    all.filter(move |((_, at), _)| iteration.is_none() || at.is_none() || *at == iteration).map(|(_, t)| t)
}

/// Whether dependences point forward: the given items, in the given order, against the order they came in.
pub fn respects(graph: &DiGraph<usize, ()>, order: &[usize]) -> bool {
    let position: BTreeMap<usize, usize> = order.iter().enumerate().map(|(at, item)| (*item, at)).collect();
    graph.edge_indices().all(|e| {
        let (a, b) = graph.edge_endpoints(e).expect("the edge is there");
        position[&graph[a]] < position[&graph[b]]
    })
}

fn order_region(fused: &Fused, items: Vec<Item>, var: Option<LoopId>) -> Vec<Item> {
    let items: Vec<Item> = items
        .into_iter()
        .map(|item| match item {
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => item,
            Item::Loop { id, op, trip, reverse, body } => {
                Item::Loop { id, op, trip, reverse, body: order_region(fused, body, Some(id)) }
            }
        })
        .collect();
    let graph = dependences(fused, &items, var);
    let last_reader = last_readers(fused, &items);
    let mut order: Vec<usize> = (0..items.len()).collect();
    // From the back, so that an item put off sees its readers' final places.
    for i in (0..items.len()).rev() {
        if frees_nothing(fused, &items, i, &last_reader) {
            let at = order.iter().position(|x| *x == i).expect("every item is in the order");
            let first_after = graph
                .neighbors(NodeIndex::new(i))
                .map(|n| graph[n])
                .filter_map(|n| order.iter().position(|x| *x == n))
                .min();
            if let Some(target) = first_after
                && target > at + 1
            {
                order.remove(at);
                order.insert(target - 1, i);
            }
        }
    }
    debug_assert!(respects(&graph, &order));
    let mut slots: Vec<Option<Item>> = items.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| slots[i].take()).collect()
}

/// Collectives as a start and a done.
fn split_collectives(fused: &Fused, items: Vec<Item>) -> Vec<Item> {
    let split = |item: Item| match item {
        Item::Group(id) if matches!(fused.group(id).kind, Kind::Collective { .. }) => {
            vec![Item::Start(id), Item::Done(id)]
        }
        Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => vec![item],
        Item::Loop { id, op, trip, reverse, body } => {
            vec![Item::Loop { id, op, trip, reverse, body: split_collectives(fused, body) }]
        }
    };
    items.into_iter().flat_map(split).collect()
}

/// Position of the last item that reads each buffer.
fn last_readers(fused: &Fused, items: &[Item]) -> BTreeMap<BufferId, usize> {
    let mut last = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        last.extend(accesses(fused, item, None).0.into_iter().map(|(b, _)| (b, i)));
    }
    last
}

/// Whether no buffer made in this region ends with this item.
fn frees_nothing(fused: &Fused, items: &[Item], i: usize, last: &BTreeMap<BufferId, usize>) -> bool {
    let Item::Group(_) = items[i] else { return false };
    let (reads, _) = accesses(fused, &items[i], None);
    reads.iter().all(|(b, _)| fused.buffer(*b).class.is_persistent() || last[b] > i)
}
