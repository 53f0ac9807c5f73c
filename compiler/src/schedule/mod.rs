//! When everything runs: the tree of loops with its items in their final order.
//!
//! In: a [`Fused`]. Out: a [`Schedule`], the same tree in another order. A region's items form a DAG (true, anti- and
//! output dependences, by buffer); the order is a topological one in which an item that only makes values (it frees
//! nothing) is put off until just before its first reader, so that its results live as short as they can.
//!
//! A collective becomes two items, its start and its done, which [`overlap`] takes apart.
//!
//! What always holds: dependences point forward; the order is a function of the input alone; a collective's start and done are
//! in one region, in this order.

pub mod overlap;
pub mod times;

#[cfg(test)]
mod tests;

use crate::cost::Target;
use crate::fuse::{BufferId, Fused, Item, Kind};
use overlap::{Decision, overlap};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, BTreeSet};
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
            "predicted for one rank: {:.3} ms of computation, {:.3} ms of collectives, {:.3} ms of them exposed\n",
            ms(self.compute),
            ms(all),
            ms(exposed)
        );
        for decision in &self.decisions {
            let times =
                if decision.times > 1 { format!(", {} times", decision.times) } else { String::new() };
            text += &format!("{}{times}: {decision}\n", self.fused.group_text(decision.group));
        }
        text
    }
}

/// Orders the items of every region, for a machine with these figures.
pub fn order(mut fused: Fused, target: &Target) -> Schedule {
    let times = Times::on(target);
    let body = std::mem::take(&mut fused.body);
    let body = order_region(&fused, body);
    let body = split_collectives(&fused, body);
    let (body, decisions) = overlap(&fused, body, &times);
    fused.body = body;
    let compute = fused.body.iter().map(|item| times.item(&fused, item)).sum();
    Schedule { fused, decisions, compute }
}

/// Buffers an item reads and writes, nested items included.
pub fn accesses(fused: &Fused, item: &Item) -> (BTreeSet<BufferId>, BTreeSet<BufferId>) {
    let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
    collect(fused, item, &mut reads, &mut writes);
    (reads, writes)
}

fn collect(fused: &Fused, item: &Item, reads: &mut BTreeSet<BufferId>, writes: &mut BTreeSet<BufferId>) {
    match item {
        // What is received is written at some time between start and done, and what is sent is read: both halves count as both.
        Item::Group(id) | Item::Start(id) | Item::Done(id) => {
            let group = fused.group(*id);
            reads.extend(fused.reads(group).iter().map(|v| v.buffer));
            writes.extend(fused.writes(group));
        }
        Item::Loop { body, .. } => {
            for item in body {
                collect(fused, item, reads, writes);
            }
        }
    }
}

/// The dependences of a region's items: an edge from each item to every later one that must stay later.
pub fn dependences(fused: &Fused, items: &[Item]) -> DiGraph<usize, ()> {
    let mut graph = DiGraph::new();
    let nodes: Vec<NodeIndex> = (0..items.len()).map(|i| graph.add_node(i)).collect();
    // Per buffer: the last writer, and the readers since.
    let mut writer: BTreeMap<BufferId, usize> = BTreeMap::new();
    let mut readers: BTreeMap<BufferId, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let (reads, writes) = accesses(fused, item);
        let mut before: BTreeSet<usize> = BTreeSet::new();
        for b in &reads {
            before.extend(writer.get(b));
        }
        for b in &writes {
            before.extend(writer.get(b));
            before.extend(readers.get(b).into_iter().flatten());
        }
        for j in before {
            graph.add_edge(nodes[j], nodes[i], ());
        }
        for b in reads {
            readers.entry(b).or_default().push(i);
        }
        for b in writes {
            writer.insert(b, i);
            readers.insert(b, Vec::new());
        }
    }
    graph
}

/// Whether dependences point forward: the given items, in the given order, against the order they came in.
pub fn respects(graph: &DiGraph<usize, ()>, order: &[usize]) -> bool {
    let position: BTreeMap<usize, usize> = order.iter().enumerate().map(|(at, item)| (*item, at)).collect();
    graph.edge_indices().all(|e| {
        let (a, b) = graph.edge_endpoints(e).expect("the edge is there");
        position[&graph[a]] < position[&graph[b]]
    })
}

fn order_region(fused: &Fused, items: Vec<Item>) -> Vec<Item> {
    let items: Vec<Item> = items
        .into_iter()
        .map(|item| match item {
            Item::Group(_) | Item::Start(_) | Item::Done(_) => item,
            Item::Loop { id, op, trip, reverse, body } => {
                Item::Loop { id, op, trip, reverse, body: order_region(fused, body) }
            }
        })
        .collect();
    let graph = dependences(fused, &items);
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
        Item::Group(_) | Item::Start(_) | Item::Done(_) => vec![item],
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
        last.extend(accesses(fused, item).0.into_iter().map(|b| (b, i)));
    }
    last
}

/// Whether no buffer made in this region ends with this item.
fn frees_nothing(fused: &Fused, items: &[Item], i: usize, last: &BTreeMap<BufferId, usize>) -> bool {
    let Item::Group(_) = items[i] else { return false };
    let (reads, _) = accesses(fused, &items[i]);
    reads.iter().all(|b| fused.buffer(*b).class.is_persistent() || last[b] > i)
}
