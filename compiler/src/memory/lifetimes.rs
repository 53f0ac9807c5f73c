//! When each buffer holds something.

use crate::fuse::{BufferId, Fused, Item, LoopId};

/// An interval of launches, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// First launch that writes it (or the start of the loop in which that is).
    pub from: usize,
    /// Last launch that touches it (or the end of the loop in which that is).
    pub to: usize,
}

impl Life {
    /// Whether two lives meet.
    pub fn meets(self, other: Life) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// Lives by buffer; `None` for one that is never touched.
#[derive(Clone, Debug, PartialEq)]
pub struct Lives {
    /// By buffer id.
    pub of: Vec<Option<Life>>,
    /// Number of launches in the text of the entry (a loop's body counted once).
    pub launches: usize,
}

struct Walk<'f> {
    fused: &'f Fused,
    time: usize,
    /// Open loops with their intervals.
    path: Vec<(LoopId, Life)>,
    of: Vec<Option<Life>>,
}

/// Lives of all buffers of a tree.
pub fn lifetimes(fused: &Fused) -> Lives {
    let mut walk = Walk { fused, time: 0, path: Vec::new(), of: vec![None; fused.buffers.len()] };
    walk.items(&fused.body);
    Lives { of: walk.of, launches: walk.time }
}

fn launches_in(items: &[Item]) -> usize {
    items
        .iter()
        .map(|item| match item {
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => 1,
            Item::Loop { body, .. } => launches_in(body),
        })
        .sum()
}

impl Walk<'_> {
    fn items(&mut self, items: &[Item]) {
        for item in items {
            match item {
                // A collective's buffers are touched by its start and by its done, hence alive in between.
                Item::Group(id) | Item::Start(id) | Item::Done(id) => {
                    let group = self.fused.group(*id);
                    let writes = self.fused.writes(group);
                    let touched: Vec<BufferId> =
                        self.fused.reads(group).iter().map(|v| v.buffer).chain(writes).collect();
                    for buffer in touched {
                        self.touch(buffer);
                    }
                    self.time += 1;
                }
                Item::Turned { item, .. } => self.items(std::slice::from_ref(item)),
                Item::Loop { id, body, .. } => {
                    let n = launches_in(body);
                    let life = Life { from: self.time, to: (self.time + n).max(self.time + 1) - 1 };
                    self.path.push((*id, life));
                    self.items(body);
                    self.path.pop();
                }
            }
        }
    }

    /// Extends a buffer's life by the present launch, or by the outermost open loop inside its home.
    fn touch(&mut self, buffer: BufferId) {
        let home = self.fused.buffer(buffer).home;
        let inside = match home {
            None => 0,
            Some(home) => self.path.iter().position(|(l, _)| *l == home).map_or(0, |i| i + 1),
        };
        let now = self.path.get(inside).map_or(Life { from: self.time, to: self.time }, |(_, life)| *life);
        let life = &mut self.of[buffer.0 as usize];
        *life = Some(match *life {
            None => now,
            Some(l) => Life { from: l.from.min(now.from), to: l.to.max(now.to) },
        });
    }
}
