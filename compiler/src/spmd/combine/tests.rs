//! Each pass on a program, and all ranks before and after it on integers, where any order of additions is exact.

use super::*;
use crate::graph::Type;
use crate::graph::parse::parse;
use crate::graph::print::print;
use crate::graph::verify::{Stage, verify};
use crate::interpret::{Environment, Mode, Outputs, Tensor, placed, run_ranks};

/// Integers between −6 and 6 for every input and parameter, whole.
fn environment(graph: &Graph) -> Environment {
    let mut environment = Environment::default();
    let mut next = 1u64;
    let mut tensor = |ty: Type| {
        let values = (0..ty.numel()).map(|_| {
            next = next * 7919 % 1_000_003;
            (next % 13) as f64 - 6.0
        });
        let values = values.collect();
        Tensor::floats(ty, values)
    };
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let value = node.results[0];
        let whole = placed::global_type(graph.ty(value), graph.sharding(value), &graph.mesh);
        match &node.op {
            Op::Input { name, .. } => drop(environment.inputs.insert(name.clone(), tensor(whole))),
            Op::Param { path, .. } => drop(environment.tensors.insert(path.clone(), tensor(whole))),
            _ => {}
        }
    }
    environment
}

fn assembled(graph: &Graph) -> Outputs {
    verify(graph, Stage::Spmd).unwrap_or_else(|e| panic!("{e}"));
    run_ranks(graph, &environment(graph), Mode::F64).unwrap().assemble(graph).unwrap()
}

/// The lines after the pass that hold a collective or a cut, once both programs gave the same on all ranks.
fn after(pass: impl Fn(Graph) -> Graph, text: &str) -> Vec<String> {
    let before = parse(text).unwrap();
    let after = pass(before.clone());
    assert_eq!(assembled(&before), assembled(&after));
    let text = print(&after);
    assert_eq!(print(&parse(&text).unwrap()), text, "the text does not read back");
    assert_eq!(print(&pass(after)), text, "a second time the pass still finds something");
    let ours = |line: &&str| {
        ["all_", "reduce_scatter", "local_part"].iter().any(|op| line.contains(&format!("= {op}")))
    };
    text.lines().filter(ours).map(|line| line.trim().to_string()).collect()
}

#[test]
fn reduce_scatter_takes_the_place_of_reducing_and_cutting() {
    let text = "graph @f on a=2, b=3 {
        %x = input : f32[t=1 @a @b, d=12, e=5]
        %p = reduce_sum %x over t : f32[d=12, e=5] partial(sum a, sum b)
        %r = all_reduce_sum %p over a b because \"gradient\" : f32[d=12, e=5]
        %y = local_part %r along d over a b : f32[d=2 @a @b, e=5]
        %z = add %y, %y : f32[d=2 @a @b, e=5]
        return y = %z
    }";
    assert_eq!(
        after(reduce_scatter, text),
        ["%y = reduce_scatter_sum %p over a b split d because \"gradient\" : f32[d=2 @a @b, e=5]"]
    );
    // Over some of the axes: scattered over those, and the rest is reduced on the part.
    let some = text.replace("over a b : f32[d=2 @a @b", "over a : f32[d=6 @a").replace("d=2 @a @b", "d=6 @a");
    assert_eq!(
        after(reduce_scatter, &some),
        [
            "%t = reduce_scatter_sum %p over a split d because \"gradient\" : f32[d=6 @a, e=5] partial(sum b)",
            "%y = all_reduce_sum %t over b because \"gradient\" : f32[d=6 @a, e=5]"
        ]
    );
    // What is needed whole as well stays.
    let used = text.replace("return y", "return r = %r\n return y");
    assert_eq!(after(reduce_scatter, &used).len(), 2);
}

const LAYER: &str = "graph @f on a=2, b=2 {
    %x = input : f32[d=4, e=4]
    %u = param \"u\" = constant(0.0) : f32[layer=3, d=2 @a, e=4]
    %v = param \"v\" = constant(0.0) : f32[layer=3, d=4, e=2 @a]
    %h, %p, %q = loop layer=3 {
      index %i : i32[]
      carry %c = %x : f32[d=4, e=4]
      stacked %s = %u : f32[d=2 @a, e=4]
      stacked %t = %v : f32[d=4, e=2 @a]
      %n = neg %c : f32[d=4, e=4]
      %w = all_gather %s over a join d because \"u\" : f32[d=4, e=4]
      %k = add %n, %w : f32[d=4, e=4]
      %z = all_gather %t over a join e because \"v\" : f32[d=4, e=4]
      %m = add %k, %z : f32[d=4, e=4]
      %g = reduce_scatter_sum %m over b split d : f32[d=2 @b, e=4]
      %o = add %m, %w : f32[d=4, e=4]
      %j = reduce_scatter_sum %o over b split e : f32[d=4, e=2 @b]
      yield carry %o : f32[d=4, e=4]
      yield stacked %g : f32[layer=3, d=2 @b, e=4]
      yield stacked %j : f32[layer=3, d=4, e=2 @b]
    }
    return h = %h
    return p = %p
    return q = %q
}";

#[test]
fn combine_collectives_makes_buckets_where_gathers_are_needed_and_sums_are_ready() {
    assert_eq!(
        after(|g| combine_collectives(g, |_| u64::MAX), LAYER),
        [
            "%w, %z = all_gather %s, %t over a join d, e because \"u, v\" : f32[d=4, e=4], f32[d=4, e=4]",
            "%g, %j = reduce_scatter_sum %m, %o over b split d, e : f32[d=2 @b, e=4], f32[d=4, e=2 @b]"
        ]
    );
    let graph = combine_collectives(parse(LAYER).unwrap(), |_| u64::MAX);
    let text = print(&graph);
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what}"));
    assert!(place("%n = neg") < place("%w, %z") && place("%w, %z") < place("%k = add"), "{text}");
    assert!(place("%o = add") < place("%g, %j"), "{text}");
}

/// Parameters in the order of their declaration, whichever is needed first; their gradients likewise, and what updates with them
/// waits. Gathers of activations stay where they are, over the same ranks or not.
#[test]
fn combine_collectives_lays_out_buckets_as_parameters_are_declared() {
    let text = "graph @f on a=2 {
        %x = input : f32[t=2 @a, d=4]
        %u = param \"u\" = constant(0.0) : f32[layer=3, d=2 @a]
        %v = param \"v\" = constant(0.0) : f32[layer=3, d=2 @a]
        %h, %p, %q = loop layer=3 {
          index %i : i32[]
          carry %c = %x : f32[t=2 @a, d=4]
          stacked %s = %u : f32[d=2 @a]
          stacked %t = %v : f32[d=2 @a]
          %z = all_gather %t over a join d because \"v\" : f32[d=4]
          %k = mul %c, %z : f32[t=2 @a, d=4]
          %e = reduce_sum %k over t : f32[d=4] partial(sum a)
          %g = reduce_scatter_sum %e over a split d because \"grad v\" : f32[d=2 @a]
          %n = update \"v\" {
            arg %p0 = %t : f32[d=2 @a]
            arg %g0 = %g : f32[d=2 @a]
            %s0 = sub %p0, %g0 : f32[d=2 @a]
            yield %s0 : f32[d=2 @a]
          }
          %m = all_gather %k over a join t because \"tokens\" : f32[t=4, d=4]
          %w = all_gather %s over a join d because \"u\" : f32[d=4]
          %f = mul %k, %w : f32[t=2 @a, d=4]
          %y = reduce_sum %m over t : f32[d=4]
          %l = mul %f, %y : f32[t=2 @a, d=4]
          %b = reduce_sum %l over t : f32[d=4] partial(sum a)
          %j = reduce_scatter_sum %b over a split d because \"grad u\" : f32[d=2 @a]
          %o = update \"u\" {
            arg %p1 = %s : f32[d=2 @a]
            arg %g1 = %j : f32[d=2 @a]
            %s1 = sub %p1, %g1 : f32[d=2 @a]
            yield %s1 : f32[d=2 @a]
          }
          yield carry %l : f32[t=2 @a, d=4]
          yield stacked %n : f32[layer=3, d=2 @a]
          yield stacked %o : f32[layer=3, d=2 @a]
        }
        return store \"v\" = %p
        return store \"u\" = %q
    }";
    assert_eq!(
        after(|g| combine_collectives(g, |_| 0), text),
        [
            "%w, %z = all_gather %s, %t over a join d, d because \"u, v\" : f32[d=4], f32[d=4]",
            "%m = all_gather %k over a join t because \"tokens\" : f32[t=4, d=4]",
            "%j, %g = reduce_scatter_sum %b, %e over a split d, d because \"grad u, grad v\" : f32[d=2 @a], f32[d=2 @a]",
        ]
    );
    let text = print(&combine_collectives(parse(text).unwrap(), |_| 0));
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what}"));
    assert!(place("%j, %g") < place("%n = update") && place("%n = update") < place("%o = update"), "{text}");
}

/// Sums that something waits for travel together only if all are there when the first is needed, and only if they are short.
#[test]
fn combine_collectives_joins_what_is_waited_for_only_if_it_is_short() {
    let text = "graph @f on a=2 {
        %x = input : f32[t=2 @a, d=4]
        %p = reduce_sum %x over t : f32[d=4] partial(sum a)
        %q = reduce_max %x over t : f32[d=4] partial(max a)
        %n = neg %p : f32[d=4] partial(sum a)
        %r = all_reduce_sum %p over a : f32[d=4]
        %s = all_reduce_sum %n over a : f32[d=4]
        %m = all_reduce_max %q over a : f32[d=4]
        %y = dot %r, %r over d : f32[]
        %z = dot %s, %s over d : f32[]
        %w = dot %m, %m over d : f32[]
        return y = %y
        return z = %z
        return w = %w
    }";
    // A rank of two sends 16 bytes of each.
    assert_eq!(
        after(|g| combine_collectives(g, |_| 32), text),
        [
            "%r, %s = all_reduce_sum %p, %n over a : f32[d=4], f32[d=4]",
            "%m = all_reduce_max %q over a : f32[d=4]"
        ]
    );
    assert_eq!(after(|g| combine_collectives(g, |_| 31), text).len(), 3);
    // The first is needed before the second is there.
    let late = text.replace("%n = neg %p : f32[d=4] partial(sum a)", "%v = add %x, %x : f32[t=2 @a, d=4]").replace(
        "%s = all_reduce_sum %n over a : f32[d=4]",
        "%k = dot %r, %r over d : f32[]\n %n = reduce_sum %v over t : f32[d=4] partial(sum a)\n %s = all_reduce_sum %n over a : f32[d=4]",
    );
    assert_eq!(after(|g| combine_collectives(g, |_| 32), &late).len(), 3);
}

/// Outside of loops, gradients that only updates wait for join their neighbours until the message is sixteen times its latency.
#[test]
fn combine_collectives_fills_buckets_outside_of_loops_until_latency_matters_little() {
    let text = "graph @f on a=2 {
        %x = input : f32[t=2 @a, d=4]
        %y = neg %x : f32[t=2 @a, d=4]
        %p = reduce_sum %x over t : f32[d=4] partial(sum a)
        %g = all_reduce_sum %p over a : f32[d=4]
        %q = reduce_sum %y over t : f32[d=4] partial(sum a)
        %h = all_reduce_sum %q over a : f32[d=4]
        return g = %g
        return h = %h
    }";
    assert_eq!(after(|g| combine_collectives(g, |_| 2), text).len(), 1);
    assert_eq!(after(|g| combine_collectives(g, |_| 1), text).len(), 2);
}

#[test]
fn combine_collectives_keeps_apart_what_depends_on_what() {
    let chain = "graph @f on a=2 {
        %x = input : f32[d=2 @a, e=2]
        %y = input : f32[d=2 @a, e=2]
        %p = all_gather %x over a join d : f32[d=4, e=2]
        %q = all_gather %p over a join e : f32[d=4, e=4]
        %r = all_gather %y over a join d : f32[d=4, e=2]
        return q = %q
        return r = %r
    }";
    assert_eq!(
        after(|g| combine_collectives(g, |_| u64::MAX), chain),
        [
            "%p, %r = all_gather %x, %y over a join d, d : f32[d=4, e=2], f32[d=4, e=2]",
            "%q = all_gather %p over a join e : f32[d=4, e=4]"
        ]
    );
}

#[test]
fn split_hierarchical_reduces_parts_over_slow_links() {
    let text = "graph @f on node=2 over nodes, a=3 {
        %x = input : f32[t=1 @node @a, c=5, d=6]
        %p = reduce_sum %x over t : f32[c=5, d=6] partial(sum a, sum node)
        %y = all_reduce_sum %p over node a : f32[c=5, d=6]
        return y = %y
    }";
    assert_eq!(
        after(split_hierarchical, text),
        [
            "%t = reduce_scatter_sum %p over a split d : f32[c=5, d=2 @a] partial(sum node)",
            "%t.1 = all_reduce_sum %t over node : f32[c=5, d=2 @a]",
            "%y = all_gather %t.1 over a join d : f32[c=5, d=6]"
        ]
    );
    // No axis divides: it stays.
    let odd = text.replace("d=6", "d=7");
    assert_eq!(after(split_hierarchical, &odd).len(), 1);
}

#[test]
fn split_hierarchical_gathers_the_small_parts_over_slow_links_first() {
    let text = "graph @f on node=2 over nodes, a=3 {
        %x = input : f32[d=1 @a @node, e=2]
        %y = all_gather %x over a node join d : f32[d=6, e=2]
        %z = reduce_scatter_sum %y over a node split d : f32[d=1 @a @node, e=2]
        return y = %y
        return z = %z
    }";
    assert_eq!(
        after(split_hierarchical, text),
        [
            "%t = all_gather %x over node join d : f32[d=2 @a, e=2]",
            "%y = all_gather %t over a join d : f32[d=6, e=2]",
            "%t.2 = reduce_scatter_sum %y over a split d : f32[d=2 @a, e=2]",
            "%z = reduce_scatter_sum %t.2 over node split d : f32[d=1 @a @node, e=2]"
        ]
    );
    // Slow axes first: the parts would come out in another order.
    let slow_first = text.replace("@a @node", "@node @a").replace("over a node", "over node a");
    assert_eq!(after(split_hierarchical, &slow_first).len(), 2);
}
