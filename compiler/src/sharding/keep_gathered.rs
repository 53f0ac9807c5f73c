//! Parameters that the forward pass gathered are kept for the backward pass: `store { regather = forward }`.

use crate::graph::passes::drop_dead;
use crate::graph::{Axis, Graph, Loop, MeshOp, Op, OpId, Sharding, Type, ValueId};

/// A slice that a loop's body brings to where it is used.
struct Gathered {
    /// The stack outside of the loop.
    stack: ValueId,
    /// How it is used.
    lies: Sharding,
    op: OpId,
}

/// In every region, for each two loops over the same slices, one by one, of a stack that bring them to the same place: the first one hands
/// the slices on as it has them, and the second takes those. So each is sent once, and all of them are held in between; what
/// the second loop alone took of the old stack goes.
///
/// Works on graphs at stage sharded. Values of the program are the same bits.
///
/// Source: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), §7.2.2, counts the gathers of both passes; PyTorch's
/// `reshard_after_forward = False` is the same choice (Zhao et al. 2023, arXiv:2304.11277, §3.2).
pub fn keep_gathered(mut graph: Graph) -> Graph {
    for region in graph.executed_regions() {
        let loops: Vec<(OpId, Loop)> = {
            let ops = graph.region(region).ops.iter();
            ops.filter_map(|op| Some((*op, graph.op(*op).op.as_loop()?.clone()))).collect()
        };
        for (i, (first, _)) in loops.iter().enumerate() {
            for (second, _) in &loops[i + 1..] {
                hand_on(&mut graph, *first, *second);
            }
        }
    }
    drop_dead(&mut graph);
    graph
}

fn loop_of(graph: &Graph, op: OpId) -> Loop {
    graph.op(op).op.as_loop().expect("a loop").clone()
}

fn hand_on(graph: &mut Graph, first: OpId, second: OpId) {
    let [f, s] = [first, second].map(|op| loop_of(graph, op));
    if (&f.axis, f.trip) != (&s.axis, s.trip) || f.block.is_some() || s.block.is_some() {
        return;
    }
    let made = gathered(graph, first, &f);
    for wanted in gathered(graph, second, &s) {
        let same = made.iter().find(|m| m.stack == wanted.stack && m.lies == wanted.lies);
        if let Some(made) = same {
            let slice = graph.op(made.op).results[0];
            let stack = stacked_out(graph, first, slice);
            take(graph, second, stack, wanted.op);
        }
    }
}

/// The reshards of a body that take a slice as it comes and sum nothing.
fn gathered(graph: &Graph, op: OpId, l: &Loop) -> Vec<Gathered> {
    let body = graph.region(l.body);
    let slices = &body.args[1 + l.carries..][..l.stacked];
    let stacks = &graph.op(op).operands[l.carries..];
    let mut found = Vec::new();
    for &inner in &body.ops {
        let node = graph.op(inner);
        if let Op::Mesh(MeshOp::Reshard { .. }) = node.op
            && let Some(i) = slices.iter().position(|slice| *slice == node.operands[0])
        {
            let lies = graph.sharding(node.results[0]).clone();
            found.push(Gathered { stack: stacks[i], lies, op: inner });
        }
    }
    found
}

/// The stack of a value of a loop's body; made if there is none.
fn stacked_out(graph: &mut Graph, op: OpId, slice: ValueId) -> ValueId {
    let l = loop_of(graph, op);
    let outs = l.carries..l.carries + l.stacked_outs;
    if let Some(at) = graph.region(l.body).results[outs.clone()].iter().position(|v| *v == slice) {
        return graph.op(op).results[l.carries + at];
    }
    let ty = graph.ty(slice).clone();
    let ty = Type::new(ty.dtype, [vec![Axis { name: l.axis.clone(), size: l.trip }], ty.axes].concat());
    let name = format!("{}.saved", graph.value_name(slice));
    let stack = graph.add_value(&name, ty);
    graph.values[stack.index()].sharding = graph.sharding(slice).clone();
    graph.regions[l.body.index()].results.insert(outs.end, slice);
    let node = &mut graph.ops[op.index()];
    node.results.insert(outs.end, stack);
    node.op = Op::Loop(Loop { stacked_outs: l.stacked_outs + 1, ..l });
    stack
}

/// A loop takes the slices of one more stack, in the place of what an op of its body gives.
fn take(graph: &mut Graph, op: OpId, stack: ValueId, instead_of: OpId) {
    let l = loop_of(graph, op);
    let old = graph.op(instead_of).results[0];
    let slice = graph.add_value(graph.value_name(old).clone().as_str(), graph.ty(old).clone());
    graph.swap_names(old, slice);
    graph.values[slice.index()].sharding = graph.sharding(old).clone();
    let at = l.carries + l.stacked;
    graph.regions[l.body.index()].args.insert(1 + at, slice);
    graph.regions[l.body.index()].ops.retain(|op| *op != instead_of);
    graph.replace_uses(l.body, old, slice);
    let node = &mut graph.ops[op.index()];
    node.operands.insert(at, stack);
    node.op = Op::Loop(Loop { stacked: l.stacked + 1, ..l });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::parse::parse;
    use crate::graph::print::print;
    use crate::graph::verify::{Stage, verify};
    use crate::sharding::check::check;

    /// `v` is brought elsewhere by the second loop, and `x` is no slice.
    #[test]
    fn keep_gathered_hands_on_what_both_loops_bring_to_one_place() {
        let text = r#"graph @m on a=2 {
  %x = param "x" = normal(1.0) : f32[d=4 @a]
  %w = param "w" = normal(1.0) : f32[layer=3, d=4 @a]
  %v = param "v" = normal(1.0) : f32[layer=3, d=4 @a]
  %y = loop layer=3 {
    index %i : i32[]
    carry %h = %x : f32[d=4 @a]
    stacked %ws = %w : f32[d=4 @a]
    stacked %vs = %v : f32[d=4 @a]
    %wg = reshard %ws because "use" : f32[d=4]
    %s = reduce_sum %wg over d : f32[]
    %sb = broadcast %s : f32[d=4 @a]
    %k = mul %h, %sb : f32[d=4 @a]
    %n = add %k, %vs : f32[d=4 @a]
    yield carry %n : f32[d=4 @a]
  }
  %z = loop layer=3 reverse {
    index %j : i32[]
    carry %g = %y : f32[d=4 @a]
    stacked %wt = %w : f32[d=4 @a]
    stacked %vt = %v : f32[d=4 @a]
    %wh = reshard %wt because "use again" : f32[d=4]
    %vg = reshard %vt because "use" : f32[d=4]
    %p = mul %wh, %vg : f32[d=4]
    %t = reduce_sum %p over d : f32[]
    %tb = broadcast %t : f32[d=4 @a]
    %m = mul %g, %tb : f32[d=4 @a]
    yield carry %m : f32[d=4 @a]
  }
  %out = reshard %z because "report" : f32[d=4]
  return out = %out
}
"#;
        let before = parse(text).unwrap_or_else(|e| panic!("{e}"));
        let after = keep_gathered(before.clone());
        verify(&after, Stage::Sharded).unwrap_or_else(|e| panic!("{e}"));
        assert!(check(&after).is_empty(), "{:?}", check(&after));
        insta::assert_snapshot!(print(&after), @r#"
        graph @m on a=2 {
          %x = param "x" = normal(1.0) : f32[d=4 @a]
          %w = param "w" = normal(1.0) : f32[layer=3, d=4 @a]
          %v = param "v" = normal(1.0) : f32[layer=3, d=4 @a]
          %y, %wg.saved = loop layer=3 {
            index %i : i32[]
            carry %h = %x : f32[d=4 @a]
            stacked %ws = %w : f32[d=4 @a]
            stacked %vs = %v : f32[d=4 @a]
            %wg = reshard %ws because "use" : f32[d=4]
            %s = reduce_sum %wg over d : f32[]
            %sb = broadcast %s : f32[d=4 @a]
            %k = mul %h, %sb : f32[d=4 @a]
            %n = add %k, %vs : f32[d=4 @a]
            yield carry %n : f32[d=4 @a]
            yield stacked %wg : f32[layer=3, d=4]
          }
          %z = loop layer=3 reverse {
            index %j : i32[]
            carry %g = %y : f32[d=4 @a]
            stacked %vt = %v : f32[d=4 @a]
            stacked %wh = %wg.saved : f32[d=4]
            %vg = reshard %vt because "use" : f32[d=4]
            %p = mul %wh, %vg : f32[d=4]
            %t = reduce_sum %p over d : f32[]
            %tb = broadcast %t : f32[d=4 @a]
            %m = mul %g, %tb : f32[d=4 @a]
            yield carry %m : f32[d=4 @a]
          }
          %out = reshard %z because "report" : f32[d=4]
          return out = %out
        }
        "#);
        assert_eq!(print(&keep_gathered(after.clone())), print(&after));
        let run = |graph: &Graph| {
            let environment = crate::interpret::sample_environment(&before, 1);
            crate::interpret::run(graph, &environment, crate::interpret::Mode::F64).unwrap()
        };
        assert_eq!(run(&before), run(&after));
    }
}
