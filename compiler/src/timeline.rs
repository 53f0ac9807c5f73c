//! The predicted timeline of an entry: when one rank computes, waits and sends.
//!
//! Walks the step program with a clock. A kernel takes the seconds predicted for its op; a collective goes over its link when it
//! has begun and the link is free, and a wait ends when it is over. Classes of links are apart; what a collective
//! under way takes from the processor is left out. Loops run as often as they do; of a long one the first iterations are told one
//! by one, those in the middle, each as long as the last of them, as one span, and the last ones again one by one if not all
//! their steps run ([`Step::Within`]).

use mlc_codegen::abi::OpInfo;
use mlc_codegen::abi::trace::{Kind, Span, Timeline};
use mlc_codegen::program::{CollectiveStage, LoopVar, Step};
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
        vars: BTreeMap::new(),
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
    vars: BTreeMap<LoopVar, u64>,
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
                Step::Within { var, from, below, body } => {
                    let value = self.vars.get(var).copied().unwrap_or(0);
                    if (*from..*below).contains(&value) {
                        self.steps(body);
                    }
                }
                Step::Loop { var, trip, reverse, body } => self.repeat(*var, *trip, *reverse, body),
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

    fn repeat(&mut self, var: LoopVar, trip: u64, reverse: bool, body: &[Step]) {
        let left = self.most.saturating_sub(self.spans.len()) as u64;
        let edge = edge(var, trip, body);
        let told = (left / 2 / told_once(body).max(1)).max(TOLD_LEAST + edge);
        let mut i = 0;
        while i < trip {
            let fold = i + 1 == told && told + edge < trip;
            let before = fold.then(|| (self.now, self.totals.clone(), self.free.clone()));
            self.vars.insert(var, if reverse { trip - 1 - i } else { i });
            self.steps(body);
            i += 1;
            if let Some((begin, totals, free)) = before {
                let more = trip - edge - told;
                self.fold(more, begin, (&totals, &free), body);
                i += more;
            }
        }
        self.vars.remove(&var);
    }

    /// So many more iterations like the one that began at `begin`, with these sums before and the links free then.
    fn fold(
        &mut self,
        more: u64,
        begin: f64,
        (before, was_free): (&[OpTotal], &BTreeMap<&str, f64>),
        body: &[Step],
    ) {
        for (total, before) in self.totals.iter_mut().zip(before) {
            total.times += more * (total.times - before.times);
            total.seconds += more as f64 * (total.seconds - before.seconds);
            total.exposed += more as f64 * (total.exposed - before.exposed);
        }
        // What an iteration leaves under way moves along with the clock: every iteration is like the one before. What was under
        // way before the loop does not.
        let shift = more as f64 * (self.now - begin);
        if let Some(op) = first_op(body) {
            self.span(op, Kind::Folded(more), self.now, self.now + shift);
        }
        self.now += shift;
        for (link, free) in &mut self.free {
            if was_free.get(link) != Some(free) {
                *free += shift;
            }
        }
        for (started, end) in self.open.values_mut().flatten().filter(|(started, _)| *started >= begin) {
            (*started, *end) = (*started + shift, *end + shift);
        }
    }
}

/// Iterations at either end of a loop in which not all steps run.
fn edge(var: LoopVar, trip: u64, body: &[Step]) -> u64 {
    let of = |step: &Step| match step {
        Step::Within { var: of, from, below, body } => {
            let own = if *of == var { (*from).max(trip.saturating_sub(*below)) } else { 0 };
            own.max(edge(var, trip, body))
        }
        Step::Loop { body, .. } => edge(var, trip, body),
        Step::Launch(_) | Step::Collective(_) => 0,
    };
    body.iter().map(of).max().unwrap_or(0)
}

/// Spans that one iteration of a body is told in, its own loops counted whole.
fn told_once(body: &[Step]) -> u64 {
    let of = |step: &Step| match step {
        Step::Launch(_) => 1,
        Step::Collective(_) => 2,
        Step::Within { body, .. } => told_once(body),
        Step::Loop { trip, body, .. } => trip.saturating_mul(told_once(body)),
    };
    body.iter().map(of).fold(0, u64::saturating_add)
}

fn first_op(body: &[Step]) -> Option<u32> {
    body.iter().find_map(|step| match step {
        Step::Launch(launch) => Some(launch.op),
        Step::Collective(c) => Some(c.op),
        Step::Within { body, .. } | Step::Loop { body, .. } => first_op(body),
    })
}

#[cfg(test)]
mod tests;
