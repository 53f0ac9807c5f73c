//! Which values the role `stored` rounds, and which copies the role `matmul` makes: the names of all casts to bf16.

use super::param;
use crate::autodiff::precision::{Precision, apply_precision};
use crate::graph::parse::parse;
use crate::graph::{Axis, Builder, CompositeKind, DType, Graph, LossHead, Op, OpNode, Output, Type};
use crate::testing::after_pass;

fn stored() -> Precision {
    Precision { stored: DType::Bf16, ..Precision::F32 }
}

fn both() -> Precision {
    Precision { matmul: DType::Bf16, ..stored() }
}

fn nodes(graph: &Graph) -> impl Iterator<Item = &OpNode> {
    graph
        .executed_regions()
        .into_iter()
        .flat_map(move |r| graph.region(r).ops.iter().map(move |op| graph.op(*op)))
}

fn after(precision: &Precision, text: &str) -> Graph {
    let text = after_pass(|g| apply_precision(g, precision), text);
    parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The values cast to bf16 in a graph whose first product is `%p`, in order of names.
fn rounded(precision: &Precision, rest: &str) -> Vec<String> {
    let text = format!(
        "graph @f {{
           %x = input \"x\" : f32[b=2, d=4]
           %w = param \"w\" = normal(0.1) : f32[d=4, e=4]
           %v = param \"v\" = normal(0.1) : f32[e=4, f=3]
           %p = dot %x, %w over d : f32[b=2, e=4]
           {rest}
           return loss = %loss
         }}"
    );
    casts(&after(precision, &text))
}

fn casts(graph: &Graph) -> Vec<String> {
    let short = |node: &&OpNode| node.op == Op::Cast && graph.ty(node.results[0]).dtype == DType::Bf16;
    let mut names: Vec<String> =
        nodes(graph).filter(short).map(|n| graph.value_name(n.results[0]).to_string()).collect();
    names.sort();
    names
}

#[test]
fn apply_precision_rounds_what_a_derivative_keeps() {
    // Operands of products, if they are not copied for them anyway.
    let product = "%q = dot %p, %v over e : f32[b=2, f=3]
        %loss = reduce_sum %q over b, f : f32[]";
    assert_eq!(rounded(&stored(), product), ["p.bf16"]);
    assert_eq!(rounded(&both(), product), ["p.bf16", "v.bf16", "w.bf16", "x.bf16"]);
    // What is computed element by element from rounded values is not rounded again.
    let function = "%t = tanh %p : f32[b=2, e=4]
        %u = mul %t, %t : f32[b=2, e=4]
        %loss = reduce_sum %u over b, e : f32[]";
    assert_eq!(rounded(&stored(), function), ["p.bf16"]);
    let through_what_is_not_kept = "%a = add %p, %p : f32[b=2, e=4]
        %n = neg %a : f32[b=2, e=4]
        %c = exp %n : f32[b=2, e=4]
        %t = tanh %p : f32[b=2, e=4]
        %y = add %c, %t : f32[b=2, e=4]
        %loss = reduce_sum %y over b, e : f32[]";
    assert_eq!(rounded(&stored(), through_what_is_not_kept), ["p.bf16"]);
    let only_later = "%a = add %p, %p : f32[b=2, e=4]
        %c = exp %a : f32[b=2, e=4]
        %loss = reduce_sum %c over b, e : f32[]";
    assert_eq!(rounded(&stored(), only_later), ["a.bf16"]);
    let part = "%g = slice %p along e -> h at 1 : f32[b=2, h=2]
        %t = tanh %g : f32[b=2, h=2]
        %loss = reduce_sum %t over b, h : f32[]";
    assert_eq!(rounded(&stored(), part), ["g.bf16"]);
}

#[test]
fn apply_precision_leaves_statistics_scalars_and_other_types() {
    let none: [&str; 0] = [];
    let statistic = "%r = reduce_sum %p over e : f32[b=2]
        %t = tanh %r : f32[b=2]
        %loss = reduce_sum %t over b : f32[]";
    assert_eq!(rounded(&stored(), statistic), none);
    let scalar = "%x1 = input \"x1\" : f32[d=4]
        %w1 = param \"w1\" = normal(0.1) : f32[d=4]
        %s = dot %x1, %w1 over d : f32[]
        %loss = exp %s : f32[]";
    assert_eq!(rounded(&stored(), scalar), none);
    let of_inputs = "%x2 = input \"x2\" : f32[d=4, k=3]
        %w2 = param \"w2\" = normal(0.1) : f32[k=3]
        %q = dot %x, %x2 over d : f32[b=2, k=3]
        %m = mul %q, %w2 : f32[b=2, k=3]
        %loss = reduce_sum %m over b, k : f32[]";
    assert_eq!(rounded(&stored(), of_inputs), none);
    let long = "%l = cast %p : f64[b=2, e=4]
        %g = slice %l along e -> h at 0 : f64[b=2, h=2]
        %t = tanh %g : f64[b=2, h=2]
        %loss = reduce_sum %t over b, h : f64[]";
    assert_eq!(rounded(&stored(), long), none);
    // A product asked for in f32 is not rounded afterwards.
    let asked = Precision { of_param: [("v".into(), DType::F32)].into(), ..both() };
    let product = "%q = dot %p, %v over e : f32[b=2, f=3]
        %t = tanh %q : f32[b=2, f=3]
        %loss = reduce_sum %t over b, f : f32[]";
    assert_eq!(rounded(&asked, product), ["w.bf16", "x.bf16"]);
}

/// Carries are handed on rounded, so they are at hand; so is a parameter's slice. A product that stays outside is not, nor
/// is what a loop stacks.
#[test]
fn apply_precision_knows_what_a_loop_has_at_hand() {
    let text = "%w3 = param \"w3\" = normal(0.1) : f32[d=4, e=4]
        %u = param \"u\" = normal(0.1) : f32[layer=3, e=4]
        %k = dot %x, %w3 over d : f32[b=2, e=4]
        %z = const 0 : f32[]
        %s, %c, %st = loop layer=3 {
          index %i : i32[]
          carry %s.in = %z : f32[]
          carry %c.in = %p : f32[b=2, e=4]
          stacked %u.i = %u : f32[e=4]
          invariant %k.in = %k : f32[b=2, e=4]
          %cn = neg %c.in : f32[b=2, e=4]
          %ce = exp %cn : f32[b=2, e=4]
          %un = neg %u.i : f32[e=4]
          %ue = exp %un : f32[e=4]
          %kn = neg %k.in : f32[b=2, e=4]
          %ke = exp %kn : f32[b=2, e=4]
          %h1 = mul %ce, %ue : f32[b=2, e=4]
          %h2 = add %h1, %ke : f32[b=2, e=4]
          %r = reduce_sum %h2 over b, e : f32[]
          %s.out = add %s.in, %r : f32[]
          yield carry %s.out : f32[]
          yield carry %h2 : f32[b=2, e=4]
          yield stacked %h1 : f32[layer=3, b=2, e=4]
        }
        %cc = mul %c, %c : f32[b=2, e=4]
        %ss = mul %st, %st : f32[layer=3, b=2, e=4]
        %c.sum = reduce_sum %cc over b, e : f32[]
        %s.sum = reduce_sum %ss over layer, b, e : f32[]
        %sums = add %c.sum, %s.sum : f32[]
        %loss = add %sums, %s : f32[]";
    assert_eq!(rounded(&stored(), text), ["h2.bf16", "kn.bf16", "p.bf16", "st.bf16"]);
}

/// A parameter renamed outside a loop, or inside it, is rounded once, in front of the loop.
#[test]
fn apply_precision_follows_renamed_parameters() {
    let outside = "%r = rename %w as d -> k : f32[k=4, e=4]
        %y = loop layer=2 {
          index %i : i32[]
          carry %c.in = %p : f32[b=2, e=4]
          invariant %r.in = %r : f32[k=4, e=4]
          %h = dot %c.in, %r.in over e : f32[b=2, k=4]
          %g = rename %h as k -> e : f32[b=2, e=4]
          yield carry %g : f32[b=2, e=4]
        }
        %loss = reduce_sum %y over b, e : f32[]";
    assert_eq!(rounded(&both(), outside), ["g.bf16", "p.bf16", "w.bf16", "x.bf16"]);
    let inside = "%u = param \"u\" = normal(0.1) : f32[layer=2, d=4, e=4]
        %y = loop layer=2 {
          index %i : i32[]
          carry %c.in = %p : f32[b=2, e=4]
          stacked %u.in = %u : f32[d=4, e=4]
          invariant %w.in = %w : f32[d=4, e=4]
          %r = rename %u.in as d -> k : f32[k=4, e=4]
          %h = dot %c.in, %r over e : f32[b=2, k=4]
          %j = rename %h as k -> d : f32[b=2, d=4]
          %g = dot %j, %w.in over d : f32[b=2, e=4]
          yield carry %g : f32[b=2, e=4]
        }
        %loss = reduce_sum %y over b, e : f32[]";
    assert_eq!(rounded(&both(), inside), ["g.bf16", "j.bf16", "p.bf16", "u.bf16", "w.bf16", "x.bf16"]);
}

/// Rows of a table at rest in bf16 are looked up short, in a loop too, and widened.
#[test]
fn apply_precision_looks_up_in_the_type_at_rest() {
    let graph = after(
        &Precision { params: DType::Bf16, ..Precision::F32 },
        "graph @f {
           %ids = input \"ids\" below 5 : i32[b=2]
           %x = input \"x\" : f32[b=2, d=4]
           %table = param \"table\" = normal(0.1) : f32[v=5, d=4]
           %y = loop layer=2 {
             index %i : i32[]
             carry %c = %x : f32[b=2, d=4]
             invariant %t.in = %table : f32[v=5, d=4]
             invariant %ids.in = %ids : i32[b=2]
             %g = gather %t.in, %ids.in along v : f32[b=2, d=4]
             %n = add %c, %g : f32[b=2, d=4]
             yield carry %n : f32[b=2, d=4]
           }
           %loss = reduce_sum %y over b, d : f32[]
           return loss = %loss
         }",
    );
    let gather = nodes(&graph).find(|n| matches!(n.op, Op::Gather { .. })).unwrap();
    let types = [gather.operands[0], gather.results[0]].map(|v| graph.ty(v).dtype);
    assert_eq!(types, [DType::Bf16, DType::Bf16]);
    assert!(casts(&graph).is_empty());
    // In f32 there is nothing to widen.
    let plain = "graph @f {
           %ids = input \"ids\" below 5 : i32[b=2]
           %table = param \"table\" = normal(0.1) : f32[v=5, d=4]
           %g = gather %table, %ids along v : f32[b=2, d=4]
           %loss = reduce_sum %g over b, d : f32[]
           return loss = %loss
         }";
    let graph = after(&Precision { matmul: DType::Bf16, ..Precision::F32 }, plain);
    assert_eq!(nodes(&graph).filter(|n| n.op == Op::Cast).count(), 0);
}

#[test]
fn apply_precision_keeps_the_weights_of_a_loss_head() {
    let mut b = Builder::new("head");
    let (x, w) = (param(&mut b, "x", &[("s", 4), ("d", 3)]), param(&mut b, "w", &[("d", 3), ("v", 5)]));
    let targets = b.input("targets", Type::new(DType::I32, vec![Axis::new("s", 4)]), 5);
    let weight = b.input("weight", Type::new(DType::F32, vec![Axis::new("s", 4)]), 0);
    let head = LossHead { over: vec!["d".into()], vocab: "v".into(), chunks: Vec::new() };
    let loss = b.loss_head(x, w, targets, Some(weight), head).unwrap();
    b.output(Output::Report("loss".into()), loss);
    let graph = apply_precision(b.finish(), &both()).unwrap();
    let is_head =
        |n: &&OpNode| matches!(&n.op, Op::Composite(c) if matches!(c.kind, CompositeKind::LossHead(_)));
    let head = nodes(&graph).find(is_head).unwrap();
    let types: Vec<DType> = head.operands.iter().map(|v| graph.ty(*v).dtype).collect();
    assert_eq!(types, [DType::Bf16, DType::Bf16, DType::I32, DType::F32]);
}

#[test]
fn apply_precision_keeps_where_ops_come_from() {
    let graph = after(
        &both(),
        "graph @f {
           %x = input \"x\" : f32[b=2, d=4]  // m.spec:1 forward
           %w = param \"w\" = normal(0.1) : f32[d=4, e=4]  // m.spec:2 forward
           %p = dot %x, %w over d : f32[b=2, e=4]  // m.spec:3 ff forward
           %y = loop layer=2 {  // m.spec:4 layer forward
             index %i : i32[]
             carry %c = %p : f32[b=2, e=4]
             %t = tanh %c : f32[b=2, e=4]  // m.spec:5 layer forward
             yield carry %t : f32[b=2, e=4]
           }
           %loss = reduce_sum %y over b, e : f32[]  // m.spec:6 forward
           return loss = %loss
         }",
    );
    let line = |is: fn(&Op) -> bool| nodes(&graph).find(|n| is(&n.op)).unwrap().origin.line.line;
    assert_eq!(line(|op| matches!(op, Op::Dot { .. })), 3);
    assert_eq!(line(|op| matches!(op, Op::Loop(_))), 4);
    assert_eq!(line(|op| matches!(op, Op::Unary(_))), 5);
    assert_eq!(line(|op| matches!(op, Op::Reduce { .. })), 6);
}
