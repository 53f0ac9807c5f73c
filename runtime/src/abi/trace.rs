//! Timelines of steps, predicted by the compiler and measured by the runtime, in one form: the trace events of Chrome, which
//! ui.perfetto.dev opens.
//!
//! A process of the trace is a rank, a thread a lane: lane 0 computes, the others are classes of links. A kernel is one event. A
//! collective is three: `start` and `wait` are the time it takes from lane 0, and the transfer between them lies in the lane of
//! its link. Both timelines name an event by its op ([`OpInfo::label`]), so that one can be laid over the other.
//!
//! Source: "Trace Event Format" of the Chromium project, object form, complete events (`ph` = `X`), times in microseconds.

use super::OpInfo;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What happens in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A kernel runs.
    Kernel,
    /// A collective begins; its time is packing.
    Start,
    /// A collective that has begun is waited for.
    Wait,
    /// A collective is under way.
    Transfer,
    /// So many further iterations of the loop that ends here, each as long as the one before; only predicted.
    Folded(u64),
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Index into the op table; of [`Kind::Folded`], the first op of the loop.
    pub op: u32,
    /// What happens.
    pub kind: Kind,
    /// 0-based step.
    pub step: u64,
    /// Seconds since the beginning of the first step.
    pub begin: f64,
    /// As `begin`.
    pub end: f64,
}

/// Several steps of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// The rank, or any other number that no rank beside it has.
    pub process: u64,
    /// What the process is called: `rank 3`, `predicted`.
    pub name: String,
    /// In order of their ends.
    pub spans: Vec<Span>,
}

impl Kind {
    /// Word for the category of the event.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Kernel => "kernel",
            Kind::Start => "start",
            Kind::Wait => "wait",
            Kind::Transfer => "collective",
            Kind::Folded(_) => "folded",
        }
    }
}

impl Timeline {
    /// A rank's timeline from what its calls took; a transfer lasts from its start to the end of the wait for it, and begins when
    /// the one before it on the same link has ended.
    pub fn measured(process: u64, ops: &[OpInfo], calls: Vec<Span>) -> Timeline {
        let mut open: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        let mut free: BTreeMap<&str, f64> = BTreeMap::new();
        let mut spans = Vec::new();
        for call in calls {
            spans.push(call);
            match call.kind {
                Kind::Start => open.entry(call.op).or_default().push(call.begin),
                Kind::Wait => {
                    let starts = open.entry(call.op).or_default();
                    if starts.is_empty() {
                        continue;
                    }
                    let link = ops.get(call.op as usize).map_or("", |op| op.link.as_str());
                    let free = free.entry(link).or_insert(0.0);
                    let begin = starts.remove(0).max(*free).min(call.end);
                    spans.push(Span { kind: Kind::Transfer, begin, ..call });
                    *free = free.max(call.end);
                }
                Kind::Kernel | Kind::Transfer | Kind::Folded(_) => {}
            }
        }
        Timeline { process, name: format!("rank {process}"), spans }
    }

    /// The events, each the text of one JSON object.
    pub fn events(&self, ops: &[OpInfo]) -> Vec<String> {
        let lanes = lanes(ops);
        let meta = |name: &str, thread: usize, args: Value| {
            json!({"name": name, "ph": "M", "pid": self.process, "tid": thread, "args": args}).to_string()
        };
        let mut all = vec![
            meta("process_name", 0, json!({"name": self.name})),
            meta("process_sort_index", 0, json!({"sort_index": self.process})),
        ];
        all.extend(lanes.iter().enumerate().map(|(i, lane)| meta("thread_name", i, json!({"name": lane}))));
        let event = |span: &Span| {
            let op = ops.get(span.op as usize)?;
            let (name, lane) = match span.kind {
                Kind::Kernel => (op.label(), 0),
                Kind::Start | Kind::Wait => (format!("{} {}", span.kind.word(), op.label()), 0),
                Kind::Transfer => (op.label(), lanes.iter().position(|l| *l == op.link).unwrap_or(0)),
                Kind::Folded(n) => (format!("{n} more iterations"), 0),
            };
            let us = |seconds: f64| (seconds * 1e9).round() / 1e3;
            let args = json!({"op": span.op, "line": op.line, "step": span.step, "bytes": op.bytes, "flops": op.flops});
            Some(
                json!({"name": name, "cat": span.kind.word(), "ph": "X", "pid": self.process, "tid": lane,
                    "ts": us(span.begin), "dur": us(span.end) - us(span.begin), "args": args})
                .to_string(),
            )
        };
        all.extend(self.spans.iter().filter_map(event));
        all
    }
}

/// Names of the lanes: the first computes, then one for each class of links that an op goes over.
pub fn lanes(ops: &[OpInfo]) -> Vec<&str> {
    let mut lanes = vec!["compute"];
    for op in ops.iter().filter(|op| !op.link.is_empty()) {
        if !lanes.contains(&op.link.as_str()) {
            lanes.push(&op.link);
        }
    }
    lanes
}

/// A file of events, one a line.
pub fn file(events: &[String]) -> String {
    format!("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", events.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kernel: &str, link: &str) -> OpInfo {
        OpInfo {
            path: "layer".into(),
            kernel: kernel.into(),
            line: "a.spec:3".into(),
            bytes: 8,
            flops: 2,
            stream: 0,
            seconds: 0.0,
            link: link.into(),
        }
    }

    fn span(op: u32, kind: Kind, begin: f64, end: f64) -> Span {
        Span { op, kind, step: 1, begin, end }
    }

    #[test]
    fn transfers_lie_between_start_and_wait_and_never_overlap_on_a_link() {
        let ops = [op("gemm", ""), op("gather", "ring"), op("scatter", "ring")];
        let calls = vec![
            span(1, Kind::Start, 0.0, 1.0),
            span(2, Kind::Start, 1.0, 2.0),
            span(0, Kind::Kernel, 2.0, 5.0),
            span(1, Kind::Wait, 5.0, 6.0),
            span(2, Kind::Wait, 6.0, 6.5),
        ];
        let timeline = Timeline::measured(3, &ops, calls);
        let transfers: Vec<&Span> = timeline.spans.iter().filter(|s| s.kind == Kind::Transfer).collect();
        assert_eq!(transfers.len(), 2);
        assert_eq!((transfers[0].op, transfers[0].begin, transfers[0].end), (1, 0.0, 6.0));
        assert_eq!((transfers[1].op, transfers[1].begin, transfers[1].end), (2, 6.0, 6.5));
    }

    #[test]
    fn events_are_json_with_names_of_ops_and_lanes() {
        let ops = [op("gemm", ""), op("gather", "ring")];
        let calls = vec![
            span(1, Kind::Start, 0.0, 1e-6),
            span(0, Kind::Kernel, 1e-6, 3e-6),
            span(1, Kind::Wait, 3e-6, 4e-6),
        ];
        let text = file(&Timeline::measured(0, &ops, calls).events(&ops));
        let parsed: Value = serde_json::from_str(&text).unwrap();
        let events = parsed["traceEvents"].as_array().unwrap();
        let of = |name: &str| {
            events.iter().find(|e| e["name"] == name).unwrap_or_else(|| panic!("{name} in {text}"))
        };
        assert_eq!(of("layer gather")["tid"], 1);
        assert_eq!(of("layer gather")["dur"], 4.0);
        assert_eq!(of("wait layer gather")["tid"], 0);
        assert_eq!(of("layer gemm")["args"]["line"], "a.spec:3");
        let lanes: Vec<&Value> =
            events.iter().filter(|e| e["name"] == "thread_name").map(|e| &e["args"]["name"]).collect();
        assert_eq!(lanes, ["compute", "ring"]);
    }
}
