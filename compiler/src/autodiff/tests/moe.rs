//! A mixture of experts: its gradient, and both ways of giving tokens places against each other.

use super::{check_graph, environment};
use crate::graph::from_spec::{Entry, from_spec};
use crate::graph::verify::{Stage, verify};
use crate::graph::{Graph, Op};
use crate::interpret::{Mode, Outputs, Tensor, run};
use crate::spec::{MemoryLoader, SourceMap, check, diagnostic};

/// A block of experts with both losses, in a repeat, behind an embedding.
const TEXT: &str = "spec 1
model M {
    size batch = run, seq = run, d = 3, ff = 2, expert = 4, layers = 2, vocab = 7
    input tokens: ids<vocab>[batch, seq]
    input targets: ids<vocab>[batch, seq]
    param embed[vocab, d] = uniform(-1, 1)
    block Experts(x[batch, seq, d]) -> [batch, seq, d] {
        param router[d -> expert] = uniform(-2, 2)
        param up[expert, d -> ff], down[expert, ff -> d] = uniform(-1, 1)
        scores = dot[d](x, router)
        r = route[seq, expert](softmax[expert](scores), ROUTE)
        aux balance = 0.1 * mean[batch](load_balance[seq](r, choices = first)) + 0.05 * load_balance[batch, seq](r)
        aux calm = 0.01 * mean[batch, seq](z_loss[expert](scores))
        h = dispatch(x, r)
        combine(dot[ff](tanh(dot[d](h, up, by = r)), down, by = r), r)
    }
    block Layer(x[batch, seq, d]) -> [batch, seq, d] {
        x + Experts@moe(x)
    }
    x = repeat[layers](Layer@layer, gather[vocab](embed, tokens))
    loss mean[batch, seq](cross_entropy[vocab](dot[d](x, embed), targets))
}
train {
    steps = 1, batch = 2, seq = 6, data = synthetic()
    optimizer = sgd { lr = 0.1 }
}
";

fn forward(route: &str) -> Graph {
    let mut sources = SourceMap::new();
    let loader = MemoryLoader { files: vec![("m.spec".to_string(), TEXT.replace("ROUTE", route))] };
    let (spec, _) = check(&mut sources, &loader, "m.spec", &[])
        .unwrap_or_else(|e| panic!("{}", diagnostic::render_all(&e, &sources, false)));
    from_spec(&spec.model, Entry::Train, 2, &sources)
        .unwrap_or_else(|e| panic!("{}", diagnostic::render_all(&e, &sources, false)))
}

fn outputs(route: &str) -> Outputs {
    let graph = forward(route);
    verify(&graph, Stage::Graph).unwrap_or_else(|e| panic!("{e}"));
    run(&graph, &environment(&graph, 7), Mode::F64).unwrap()
}

/// With room for half of the tokens, for all, with one choice, and without dropping.
const ROUTES: [&str; 5] = [
    "k = 2, capacity = 0.5",
    "k = 2, capacity = 4, normalise = true",
    "k = 1, capacity = 1",
    "k = 2, capacity = none, tile = 2, normalise = true",
    "k = 3, tile = 4",
];

#[test]
fn moe_has_its_gradient_through_routing() {
    for route in ROUTES {
        check_graph(forward(route));
    }
}

#[test]
fn moe_with_room_for_all_is_the_one_without_dropping() {
    let (slots, rows) =
        (outputs("k = 2, capacity = 4, normalise = true"), outputs("k = 2, tile = 4, normalise = true"));
    for ((name, a), (_, b)) in slots.0.iter().zip(&rows.0) {
        assert!((a.item() - b.item()).abs() < 1e-12, "{name:?}: {} and {}", a.item(), b.item());
    }
    let dropping = outputs("k = 2, capacity = 0.5, normalise = true");
    assert!((dropping.0[0].1.item() - slots.0[0].1.item()).abs() > 1e-6, "nothing was dropped");
}

/// The places of a routing made from given gates, `[expert, slot]` or `[row]` of one group.
fn token_places(route: &str, gates: &[f64], tokens: u64) -> Vec<i64> {
    let text = format!(
        "spec 1
model M {{
    size seq = {tokens}, expert = 3, one = 1
    input gates[one, seq, expert]
    input x[one, seq]
    r = route[seq, expert](gates, {route})
    y = combine(dispatch(x, r), r)
    loss mean[one, seq](y)
}}
"
    );
    let mut sources = SourceMap::new();
    let loader = MemoryLoader { files: vec![("m.spec".to_string(), text)] };
    let (spec, _) = check(&mut sources, &loader, "m.spec", &[])
        .unwrap_or_else(|e| panic!("{}", diagnostic::render_all(&e, &sources, false)));
    let graph = from_spec(&spec.model, Entry::Eval, 1, &sources).unwrap();
    // The ids that the dispatch gathers by.
    let mut ops = graph.region(graph.body).ops.iter().map(|op| graph.op(*op));
    let gather = ops.rfind(|n| matches!(n.op, Op::Gather { .. })).unwrap();
    let token = gather.operands[1];
    let mut environment = environment(&graph, 1);
    let ty = environment.inputs["gates"].ty.clone();
    environment.inputs.insert("gates".into(), Tensor::floats(ty, gates.to_vec()));
    let mut b = crate::graph::Builder::resume(graph);
    b.output(crate::graph::Output::Report("token".into()), token);
    let outputs = run(&b.finish(), &environment, Mode::F64).unwrap();
    outputs.report("token").unwrap().as_ints().to_vec()
}

/// Four tokens; the first choices are experts 0, 0, 0, 1 and the second ones 1, 1, 2, 0. In token 3 experts 0 and 2 tie.
const GATES: [f64; 12] = [0.6, 0.3, 0.1, 0.5, 0.4, 0.1, 0.7, 0.1, 0.2, 0.2, 0.6, 0.2];

#[test]
fn route_gives_slots_to_first_choices_first_and_drops_the_rest() {
    // Two slots each: expert 0 is full with tokens 0 and 1; expert 1 takes token 3 before token 0's second choice.
    assert_eq!(token_places("k = 2, capacity = 0.75", &GATES, 4), [0, 1, 3, 0, 2, -1]);
    // One slot each.
    assert_eq!(token_places("k = 1, capacity = 0.75", &GATES, 4), [0, 3, -1]);
}

#[test]
fn route_without_capacity_packs_tiles_of_one_expert_each() {
    // Expert 0 has tokens 0, 1, 2, 3 (the last by a tie won by the first), expert 1 has 0, 1, 3, expert 2 has 2.
    let rows = token_places("k = 2, tile = 2", &GATES, 4);
    assert_eq!(rows, [0, 1, 2, 3, 0, 1, 3, -1, 2, -1]);
}
