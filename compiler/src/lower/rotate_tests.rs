//! Programs whose loops hand collectives on from one iteration to another: the same bits as without, on all ranks; and what a
//! wrong slot or a missing done would do is noticed.

use super::rank_tests::{LAYERS, check_program};
use super::{EntryMeta, simulate, to_program};
use crate::cost::Target;
use crate::fuse::{self, Item, Turn};
use crate::graph::Graph;
use crate::graph::parse::parse;
use crate::graph::verify::{Stage, verify};
use crate::interpret::Values;
use crate::memory::{self, Plan};
use crate::schedule::{Schedule, order_ahead, order_within};
use mlc_codegen::program::Program;
use mlc_codegen::program::execute::{Precision, execute_ranks};

fn graph(text: &str) -> Graph {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    verify(&graph, Stage::Spmd).unwrap_or_else(|e| panic!("{e}"));
    graph
}

/// [`LAYERS`] in other words.
fn layers(trip: u64, reverse: bool) -> Graph {
    let text = LAYERS.replace("layers=3", &format!("layers={trip}"));
    let down = format!("loop layers={trip} reverse {{");
    let text = if reverse { text.replace(&format!("loop layers={trip} {{"), &down) } else { text };
    graph(&text)
}

/// Gathered weights for the way there and back, with casts before the gathers, and new weights made layer by layer from what
/// the gradients' sums leave. The way back is repeated for every part of the batch.
const TRAINED: &str = r#"graph @trained on fsdp=2 {
    %x = input "x" : f32[parts=2, batch=3 @fsdp, d=4]
    %w = param "layer.{i}.w" = constant(0.0) : f32[layers=3, d=2 @fsdp, e=4]
    %lr = const 0.125 : f32[]
    %gs, %norm = loop parts=2 {
        index %part : i32[]
        stacked %xp = %x : f32[batch=3, d=4]
        invariant %wp = %w : f32[layers=3, d=2, e=4]
        %y, %xs = loop layers=3 {
            index %i : i32[]
            carry %h = %xp : f32[batch=3, d=4]
            stacked %p = %wp : f32[d=2, e=4]
            %c = cast %p : bf16[d=2, e=4]
            %all = all_gather %c over fsdp join d : bf16[d=4, e=4]
            %wide = cast %all : f32[d=4, e=4]
            %t = dot %h, %wide over d : f32[batch=3, e=4]
            %u = tanh %t : f32[batch=3, e=4]
            %h2 = rename %u as e -> d : f32[batch=3, d=4]
            yield carry %h2 : f32[batch=3, d=4]
            yield stacked %h : f32[layers=3, batch=3, d=4]
        }
        %dx, %ds, %squares = loop layers=3 reverse {
            index %j : i32[]
            carry %dh = %y : f32[batch=3, d=4]
            stacked %q = %wp : f32[d=2, e=4]
            stacked %hs = %xs : f32[batch=3, d=4]
            %cq = cast %q : bf16[d=2, e=4]
            %again = all_gather %cq over fsdp join d : bf16[d=4, e=4]
            %wq = cast %again : f32[d=4, e=4]
            %de = rename %dh as d -> e : f32[batch=3, e=4]
            %g = dot %hs, %de over batch : f32[d=4, e=4]
            %r = reduce_scatter_sum %g over fsdp split d : f32[d=2, e=4]
            %rr = mul %r, %r : f32[d=2, e=4]
            %sq = reduce_sum %rr over d, e : f32[]
            %back = dot %de, %wq over e : f32[batch=3, d=4]
            yield carry %back : f32[batch=3, d=4]
            yield stacked %r : f32[layers=3, d=2, e=4]
            yield sum %sq : f32[]
        }
        yield sum %ds : f32[layers=3, d=2, e=4]
        yield sum %squares : f32[]
    }
    %b = broadcast %lr : f32[layers=3, d=2 @fsdp, e=4]
    %step = mul %gs, %b : f32[layers=3, d=2 @fsdp, e=4]
    %new = sub %w, %step : f32[layers=3, d=2 @fsdp, e=4]
    %all_norm = all_reduce_sum %norm over fsdp : f32[]
    return store "layer.{i}.w" = %new
    return norm = %all_norm
}"#;

fn planned(schedule: Schedule) -> Plan {
    memory::place(vec![schedule], None).unwrap_or_else(|e| panic!("{e}"))
}

fn lowered(plan: &Plan) -> Program {
    let meta = EntryMeta { name: "train".into(), batch: 1, seq: 1, inputs: Vec::new() };
    to_program(plan, &[meta], simulate::empty_info()).unwrap_or_else(|e| panic!("{e}"))
}

fn program(schedule: Schedule) -> Program {
    let program = lowered(&planned(schedule));
    mlc_codegen::program::verify(&program).unwrap_or_else(|e| panic!("{}\n{program}", e.join("\n")));
    program
}

/// Bits of everything each rank gives out.
fn bits(graph: &Graph, program: &Program) -> Vec<Vec<u64>> {
    let environment = simulate::sample_whole(graph, 5);
    let ranks = simulate::run_ranks(program, graph, &environment, &mut |ranks| {
        execute_ranks(program, 0, ranks, Precision::AsWritten)
    });
    let of = |values: &Values| -> Vec<u64> {
        match values {
            Values::Float(v) => v.iter().map(|x| x.to_bits()).collect(),
            Values::Int(v) => v.iter().map(|x| *x as u64).collect(),
        }
    };
    let ranks = ranks.unwrap_or_else(|e| panic!("{e}\n{program}"));
    ranks.iter().map(|o| o.0.iter().flat_map(|(_, t)| of(&t.values)).collect()).collect()
}

/// Items that stand in for another iteration, in the loops.
fn handed_on(items: &[Item], found: &mut Vec<(i64, Item)>) {
    for item in items {
        match item {
            Item::Turned { turn: Turn::By(n), item, .. } => found.push((*n, (**item).clone())),
            Item::Loop { body, .. } => handed_on(body, found),
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => {}
        }
    }
}

fn count(schedule: &Schedule, is: fn(&(i64, Item)) -> bool) -> usize {
    let mut found = Vec::new();
    handed_on(&schedule.fused.body, &mut found);
    found.into_iter().filter(is).count()
}

#[test]
fn rotate_changes_no_bit() {
    let mut graphs: Vec<Graph> = Vec::new();
    for trip in [2, 3, 5] {
        graphs.extend([layers(trip, false), layers(trip, true)]);
    }
    graphs.push(graph(TRAINED));
    for graph in &graphs {
        let fused = fuse::group(graph).unwrap();
        let expected = bits(graph, &program(order_within(fused.clone(), &Target::default(), 0)));
        for ahead in [1, 2, 3] {
            let schedule = order_ahead(fused.clone(), ahead).expect("something is handed on");
            assert!(count(&schedule, |(n, item)| *n > 0 && matches!(item, Item::Start(_))) > 0);
            let rotated = program(schedule);
            assert_eq!(bits(graph, &rotated), expected, "{ahead} ahead\n{rotated}");
            if ahead == 1 {
                check_program(graph, &rotated);
            }
        }
    }
}

#[test]
fn rotate_leaves_a_loop_of_one_iteration() {
    let fused = fuse::group(&layers(1, false)).unwrap();
    assert!(order_ahead(fused, 1).is_none());
}

#[test]
fn rotate_takes_casts_along_and_what_hangs_on_gradients() {
    let fused = fuse::group(&graph(TRAINED)).unwrap();
    let schedule = order_ahead(fused, 1).unwrap();
    // Two gathers with their casts, there and back; one sum of gradients with its squares.
    assert_eq!(count(&schedule, |(n, item)| *n == 1 && matches!(item, Item::Start(_))), 2);
    assert_eq!(count(&schedule, |(n, item)| *n == 1 && matches!(item, Item::Group(_))), 2);
    assert_eq!(count(&schedule, |(n, item)| *n == -1 && matches!(item, Item::Done(_))), 1);
    assert!(count(&schedule, |(n, item)| *n == -1 && matches!(item, Item::Group(_))) >= 1);
    let slots: Vec<u64> = schedule.fused.buffers.iter().filter_map(|b| b.ring.map(|r| r.slots)).collect();
    assert_eq!(slots, [2, 2, 2], "two gathered, one gradient to be sent");
}

#[test]
fn rotate_hides_what_one_iteration_can_not() {
    let fused = fuse::group(&graph(TRAINED)).unwrap();
    let alone = order_within(fused.clone(), &Target::default(), 0);
    let schedule = order_within(fused, &Target::default(), 2);
    assert!(schedule.ahead >= 1);
    assert_eq!(schedule.exposed_alone, alone.communication().1);
    assert!(schedule.communication().1 < alone.communication().1, "{}{}", alone.text(), schedule.text());
    assert!(schedule.text().contains("ahead; "), "{}", schedule.text());
    assert!(schedule.text().contains("waited for an iteration later; "), "{}", schedule.text());
}

/// The first item of a kind in a loop.
fn find(items: &mut [Item], is: &dyn Fn(&Item) -> bool) -> Option<Item> {
    items.iter_mut().find_map(|item| {
        if is(item) {
            return Some(item.clone());
        }
        match item {
            Item::Loop { body, .. } => find(body, is),
            Item::Group(_) | Item::Start(_) | Item::Done(_) | Item::Turned { .. } => None,
        }
    })
}

fn each_body(items: &mut Vec<Item>, change: &dyn Fn(&mut Vec<Item>)) {
    change(items);
    for item in items {
        if let Item::Loop { body, .. } = item {
            each_body(body, change);
        }
    }
}

#[test]
fn memory_verify_finds_wrong_slots_and_missing_dones() {
    let plan = planned(order_ahead(fuse::group(&layers(5, true)).unwrap(), 1).unwrap());
    memory::verify::verify(&plan).unwrap();
    let broken = |change: &dyn Fn(&mut Schedule)| {
        let mut plan = plan.clone();
        change(&mut plan.entries[0].schedule);
        memory::verify::verify(&plan).unwrap_err()
    };
    let is_early = |item: &Item| matches!(item, Item::Turned { turn: Turn::By(1), item, .. } if matches!(**item, Item::Start(_)));
    let body = &mut plan.entries[0].schedule.fused.body.clone();
    let Some(Item::Turned { item, .. }) = find(body, &is_early) else { panic!("nothing starts early") };
    let Item::Start(gather) = *item else { panic!() };
    // One slot for what needs two.
    let error = broken(&|s| {
        for buffer in &mut s.fused.buffers {
            if let Some(ring) = &mut buffer.ring {
                ring.slots = 1;
            }
        }
    });
    assert!(error.contains("is read while its bytes hold"), "{error}");
    // Nobody waits.
    let error = broken(&|s| each_body(&mut s.fused.body, &|body| body.retain(|i| *i != Item::Done(gather))));
    assert!(error.contains("never waited for"), "{error}");
    // Started for this iteration and not for the next one.
    let error = broken(&|s| {
        each_body(&mut s.fused.body, &|body| {
            for item in body {
                if is_early(item) {
                    *item = Item::Start(gather);
                }
            }
        });
    });
    assert!(error.contains("not under way") || error.contains("is read while"), "{error}");
}

#[test]
fn program_verify_finds_wrong_slots_and_missing_dones() {
    let plan = planned(order_ahead(fuse::group(&layers(5, false)).unwrap(), 1).unwrap());
    let program = lowered(&plan);
    mlc_codegen::program::verify(&program).unwrap_or_else(|e| panic!("{}", e.join("\n")));
    let text = serde_json::to_string(&program).unwrap();
    let broken = |from: &str, to: &str| {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        let program: Program = serde_json::from_str(&changed).unwrap();
        mlc_codegen::program::verify(&program).unwrap_err().join("\n")
    };
    // All iterations in one slot: the next one's gather writes over what this one uses.
    let error = broken("\"slots\":2", "\"slots\":1");
    assert!(error.contains("meddles with what collective"), "{error}");
    // The gather of this iteration once more instead of the next one's.
    let error = broken(",\"ahead\":1", "");
    assert!(error.contains("is done but not started before"), "{error}");
    let error = broken("\"from\":0,\"below\":4", "\"from\":0,\"below\":5");
    assert!(error.contains("is started and not done"), "{error}");
}
