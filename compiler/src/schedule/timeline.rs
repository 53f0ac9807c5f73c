//! What a schedule takes by the predicted times: one clock for the computation, one for each class of links, walked through in order.
//!
//! A collective takes its link when it has been started and those before it there are over. Waiting for it stops the computation until
//! it is over: that is its exposed time. The iterations of a loop that has collectives in it are walked one by one until they
//! repeat themselves, and what lies between those and the last ones is counted without walking.

use super::times::Times;
use crate::fuse::{Fused, GroupId, Item, Turn};
use std::collections::{BTreeMap, VecDeque};

/// Sums of one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// Seconds until everything is done.
    pub seconds: f64,
    /// Seconds the computation stands still, by collective.
    pub exposed: BTreeMap<GroupId, f64>,
}

impl Timeline {
    /// Seconds the computation stands still.
    pub fn all_exposed(&self) -> f64 {
        self.exposed.values().sum()
    }
}

/// Walks through a body.
pub fn timeline(fused: &Fused, items: &[Item], times: &Times) -> Timeline {
    let mut walk = Walk { fused, times, seconds: BTreeMap::new(), at: Clock::default() };
    walk.items(items, 0, 1);
    Timeline { seconds: walk.at.now, exposed: walk.at.exposed }
}

#[derive(Clone, Default)]
struct Clock {
    now: f64,
    /// When each class of links is free.
    free: BTreeMap<String, f64>,
    /// Ends of collectives under way, oldest first.
    ends: BTreeMap<GroupId, VecDeque<f64>>,
    exposed: BTreeMap<GroupId, f64>,
}

struct Walk<'f> {
    fused: &'f Fused,
    times: &'f Times,
    /// Of groups and collectives that came by.
    seconds: BTreeMap<GroupId, f64>,
    at: Clock,
}

impl Walk<'_> {
    /// `at` of `trip` iterations of the loop around.
    fn items(&mut self, items: &[Item], at: u64, trip: u64) {
        for item in items {
            self.item(item, at, trip);
        }
    }

    fn item(&mut self, item: &Item, at: u64, trip: u64) {
        match item {
            Item::Group(id) => {
                let seconds = match self.seconds.get(id) {
                    Some(seconds) => *seconds,
                    None => self.times.item(self.fused, item),
                };
                self.seconds.insert(*id, seconds);
                self.at.now += seconds;
            }
            Item::Start(id) => {
                let seconds = match self.seconds.get(id) {
                    Some(seconds) => *seconds,
                    None => self.times.collective(self.fused, *id),
                };
                self.seconds.insert(*id, seconds);
                let now = self.at.now;
                let free = self.at.free.entry(self.times.link_of(self.fused, *id).into()).or_default();
                *free = free.max(now) + seconds;
                let end = *free;
                self.at.ends.entry(*id).or_default().push_back(end);
            }
            Item::Done(id) => {
                let end = self.at.ends.get_mut(id).and_then(VecDeque::pop_front).unwrap_or(0.0);
                let waits = (end - self.at.now).max(0.0);
                *self.at.exposed.entry(*id).or_default() += waits;
                self.at.now += waits;
            }
            Item::Turned { turn: Turn::By(n), item, .. } => {
                if at.checked_add_signed(*n).is_some_and(|of| of < trip) {
                    self.item(item, at, trip);
                }
            }
            Item::Turned { turn: Turn::At(_), item, .. } => self.item(item, at, trip),
            Item::Loop { trip, body, .. } => self.iterations(item, *trip, body),
        }
    }

    fn iterations(&mut self, item: &Item, trip: u64, body: &[Item]) {
        if !has_collectives(body) {
            self.at.now += self.times.item(self.fused, item);
            return;
        }
        let later = body.iter().map(|item| item.later().unsigned_abs()).max().unwrap_or(0);
        let (first, last) = (later + 3, later);
        let mut i = 0;
        while i < trip {
            let before = self.at.clone();
            self.items(body, i, trip);
            i += 1;
            if i == first && i + last < trip {
                let skipped = trip - last - i;
                self.skip(&before, skipped as f64);
                i += skipped;
            }
        }
    }

    /// As many more iterations as that since `before`. What was under way before and still is ends when it did.
    fn skip(&mut self, before: &Clock, times: f64) {
        let each = self.at.now - before.now;
        self.at.now += each * times;
        for (link, free) in &mut self.at.free {
            if before.free.get(link) != Some(free) {
                *free += each * times;
            }
        }
        for (id, ends) in &mut self.at.ends {
            if before.ends.get(id) != Some(ends) {
                ends.iter_mut().for_each(|end| *end += each * times);
            }
        }
        for (id, exposed) in &mut self.at.exposed {
            *exposed += (*exposed - before.exposed.get(id).copied().unwrap_or(0.0)) * times;
        }
    }
}

/// Whether a collective starts or ends in a body.
pub fn has_collectives(items: &[Item]) -> bool {
    items.iter().any(|item| match item.inner() {
        Item::Start(_) | Item::Done(_) => true,
        Item::Loop { body, .. } => has_collectives(body),
        Item::Group(_) | Item::Turned { .. } => false,
    })
}
