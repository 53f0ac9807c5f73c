//! The predicted timeline of an entry: when one rank computes, waits and sends.
//!
//! Walks the step program with a clock. A kernel takes the seconds predicted for its op; a collective goes over its link when it
//! has begun and the link is free, and a wait ends when it is over. Classes of links are apart; what a collective
//! under way takes from the processor is left out. Loops run as often as they do; of a long one the first iterations are told one
//! by one, and the rest, each as long as the last of them, as one span.

use mlc_codegen::abi::OpInfo;
use mlc_codegen::abi::trace::{Kind, Span, Timeline};
use mlc_codegen::program::{CollectiveStage, Step};
use std::collections::{BTreeMap, VecDeque};

/// A step as it should run.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// What happens when, of one rank.
    pub timeline: Timeline,
    /// Length of a call.
    pub seconds: f64,
    /// Of it, computation.
    pub compute: f64,
    /// What each op of the table comes to, by its index; ops of other entries to nothing.
    pub ops: Vec<OpTotal>,
}

/// What one op comes to in a call.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct OpTotal {
    /// Launches.
    pub times: u64,
    /// Seconds of all of them; of a collective, under way.
    pub seconds: f64,
    /// Seconds that a rank waits for it.
    pub exposed: f64,
}

/// Process of the predicted timeline in a trace, behind those of all ranks.
const PROCESS: u64 = 1 << 30;

/// Iterations that are told one by one at least, if there are so many: in the second one prefetches have come to rest.
const TOLD_LEAST: u64 = 3;

/// The timeline of an entry whose steps are `body`, of about `spans` spans at most.
pub fn predict(ops: &[OpInfo], body: &[Step], spans: usize) -> Predicted {
    let mut walk = Walk {
        ops,
        most: spans,
        spans: Vec::new(),
        now: 0.0,
        free: BTreeMap::new(),
        open: BTreeMap::new(),
        totals: vec![OpTotal::default(); ops.len()],
    };
    walk.steps(body);
    let compute = walk
        .totals
        .iter()
        .zip(ops)
        .filter(|(_, op)| op.link.is_empty())
        .map(|(total, _)| total.seconds)
        .sum();
    Predicted {
        timeline: Timeline { process: PROCESS, name: "predicted, one rank".into(), spans: walk.spans },
        seconds: walk.now,
        compute,
        ops: walk.totals,
    }
}

struct Walk<'p> {
    ops: &'p [OpInfo],
    most: usize,
    spans: Vec<Span>,
    now: f64,
    /// When each class of links is free again.
    free: BTreeMap<&'p str, f64>,
    /// When each collective under way was started, and its end, by op.
    open: BTreeMap<u32, VecDeque<(f64, f64)>>,
    totals: Vec<OpTotal>,
}

impl Walk<'_> {
    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Launch(launch) => {
                    let seconds = self.ops[launch.op as usize].seconds;
                    let total = &mut self.totals[launch.op as usize];
                    total.times += 1;
                    total.seconds += seconds;
                    self.span(launch.op, Kind::Kernel, self.now, self.now + seconds);
                    self.now += seconds;
                }
                Step::Collective(c) => match c.stage {
                    CollectiveStage::Start => self.start(c.op),
                    CollectiveStage::Done => self.wait(c.op),
                },
                Step::Loop { trip, body, .. } => self.repeat(*trip, body),
            }
        }
    }

    fn span(&mut self, op: u32, kind: Kind, begin: f64, end: f64) {
        self.spans.push(Span { op, kind, step: 0, begin, end });
    }

    fn start(&mut self, op: u32) {
        let info = &self.ops[op as usize];
        let total = &mut self.totals[op as usize];
        total.times += 1;
        total.seconds += info.seconds;
        let free = self.free.entry(&info.link).or_insert(0.0);
        let begin = free.max(self.now);
        let end = begin + info.seconds;
        *free = end;
        self.open.entry(op).or_default().push_back((self.now, end));
        self.span(op, Kind::Start, self.now, self.now);
        self.span(op, Kind::Transfer, begin, end);
    }

    fn wait(&mut self, op: u32) {
        let begun = self.open.get_mut(&op).and_then(VecDeque::pop_front);
        let end = begun.map_or(self.now, |(_, end)| end.max(self.now));
        self.totals[op as usize].exposed += end - self.now;
        self.span(op, Kind::Wait, self.now, end);
        self.now = end;
    }

    fn repeat(&mut self, trip: u64, body: &[Step]) {
        let left = self.most.saturating_sub(self.spans.len()) as u64;
        let told = (left / 2 / told_once(body).max(1)).max(TOLD_LEAST).min(trip);
        let (mut begin, mut before) = (self.now, self.totals.clone());
        for i in 0..told {
            if i + 1 == told && told < trip {
                (begin, before) = (self.now, self.totals.clone());
            }
            self.steps(body);
        }
        let more = trip - told;
        if more == 0 {
            return;
        }
        for (total, before) in self.totals.iter_mut().zip(before) {
            total.times += more * (total.times - before.times);
            total.seconds += more as f64 * (total.seconds - before.seconds);
            total.exposed += more as f64 * (total.exposed - before.exposed);
        }
        // What an iteration leaves under way moves along with the clock: every iteration is like the one before.
        let shift = more as f64 * (self.now - begin);
        if let Some(op) = first_op(body) {
            self.span(op, Kind::Folded(more), self.now, self.now + shift);
        }
        self.now += shift;
        self.free.values_mut().for_each(|free| *free += shift);
        for (started, end) in self.open.values_mut().flatten().filter(|(started, _)| *started >= begin) {
            (*started, *end) = (*started + shift, *end + shift);
        }
    }
}

/// Spans that one iteration of a body is told in, its own loops counted whole.
fn told_once(body: &[Step]) -> u64 {
    let of = |step: &Step| match step {
        Step::Launch(_) => 1,
        Step::Collective(_) => 2,
        Step::Loop { trip, body, .. } => trip.saturating_mul(told_once(body)),
    };
    body.iter().map(of).fold(0, u64::saturating_add)
}

fn first_op(body: &[Step]) -> Option<u32> {
    body.iter().find_map(|step| match step {
        Step::Launch(launch) => Some(launch.op),
        Step::Collective(c) => Some(c.op),
        Step::Loop { body, .. } => first_op(body),
    })
}

#[cfg(test)]
mod tests;
