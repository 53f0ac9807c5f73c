//! Timelines worked out by hand.

use super::*;
use mlc_codegen::abi::trace::lanes;
use mlc_codegen::program::{CollectiveStep, Launch, LoopVar};

/// Ops of (seconds, link).
fn ops(of: &[(f64, &str)]) -> Vec<OpInfo> {
    let info = |(i, (seconds, link)): (usize, &(f64, &str))| OpInfo {
        path: "layer".into(),
        kernel: format!("k{i}"),
        line: String::new(),
        bytes: 0,
        flops: 0,
        stream: 0,
        seconds: *seconds,
        link: (*link).into(),
    };
    of.iter().enumerate().map(info).collect()
}

fn kernel(op: u32) -> Step {
    Step::Launch(Launch { op, kernel: 0, stream: 0, buffers: Vec::new(), scalars: Vec::new() })
}

fn start(op: u32) -> Step {
    Step::Collective(CollectiveStep { op, collective: 0, stage: CollectiveStage::Start, buffers: Vec::new() })
}

fn done(op: u32) -> Step {
    Step::Collective(CollectiveStep { op, collective: 0, stage: CollectiveStage::Done, buffers: Vec::new() })
}

fn repeat(trip: u64, body: Vec<Step>) -> Step {
    Step::Loop { var: LoopVar(0), trip, reverse: false, body }
}

/// Spans of a kind as (op, begin, end).
fn of(predicted: &Predicted, kind: Kind) -> Vec<(u32, f64, f64)> {
    predicted.timeline.spans.iter().filter(|s| s.kind == kind).map(|s| (s.op, s.begin, s.end)).collect()
}

#[test]
fn a_collective_is_hidden_as_far_as_kernels_last() {
    let ops = ops(&[(3.0, ""), (5.0, "ring")]);
    let predicted = predict(&ops, &[start(1), kernel(0), done(1), kernel(0)], 100);
    assert_eq!(of(&predicted, Kind::Transfer), [(1, 0.0, 5.0)]);
    assert_eq!(of(&predicted, Kind::Wait), [(1, 3.0, 5.0)]);
    assert_eq!((predicted.seconds, predicted.compute), (8.0, 6.0));
    assert_eq!(predicted.ops[1], OpTotal { times: 1, seconds: 5.0, exposed: 2.0 });
}

#[test]
fn collectives_share_their_link_and_no_other() {
    let ops = ops(&[(1.0, ""), (4.0, "ring"), (2.0, "ring"), (3.0, "network")]);
    let body = [start(1), start(2), start(3), kernel(0), done(1), done(2), done(3)];
    let predicted = predict(&ops, &body, 100);
    assert_eq!(of(&predicted, Kind::Transfer), [(1, 0.0, 4.0), (2, 4.0, 6.0), (3, 0.0, 3.0)]);
    assert_eq!(predicted.seconds, 6.0);
    assert_eq!(lanes(&ops), ["compute", "ring", "network"]);
}

/// Each iteration waits for what the one before started; what was started before the loop does not move with it.
#[test]
fn a_folded_loop_lasts_as_long_as_one_told_in_full() {
    let ops = ops(&[(3.0, ""), (5.0, "ring"), (100.0, "network"), (104.0, "network")]);
    let once = vec![done(1), start(1), kernel(0)];
    let body = [start(2), start(1), repeat(40, once), done(1), done(2), start(3), done(3)];
    let full = predict(&ops, &body, 10_000);
    let folded = predict(&ops, &body, 0);
    assert!(folded.timeline.spans.len() < full.timeline.spans.len() / 5);
    assert_eq!(of(&full, Kind::Folded(37)), []);
    assert_eq!(folded.timeline.spans.iter().filter(|s| s.kind == Kind::Folded(37)).count(), 1);
    // 40 iterations of 5 s, a last transfer that begins with the last kernel, nothing left of the long one, and one behind it.
    assert_eq!(full.seconds, 309.0);
    assert_eq!((folded.seconds, folded.compute), (full.seconds, full.compute));
    assert_eq!(folded.ops, full.ops);
}

/// Started one iteration early: not in the last, whose own is the one before it.
#[test]
fn a_folded_loop_ends_as_its_last_iterations_do() {
    let ops = ops(&[(3.0, ""), (2.0, "ring")]);
    for reverse in [false, true] {
        let (from, below) = if reverse { (1, 40) } else { (0, 39) };
        let ahead = Step::Within { var: LoopVar(0), from, below, body: vec![start(1)] };
        let once = Step::Loop { var: LoopVar(0), trip: 40, reverse, body: vec![done(1), ahead, kernel(0)] };
        let body = [start(1), once];
        let (full, folded) = (predict(&ops, &body, 10_000), predict(&ops, &body, 0));
        assert_eq!((full.seconds, full.ops[1].times), (122.0, 40));
        assert_eq!((folded.seconds, &folded.ops), (full.seconds, &full.ops));
        assert!(folded.timeline.spans.len() < full.timeline.spans.len() / 4);
    }
}
