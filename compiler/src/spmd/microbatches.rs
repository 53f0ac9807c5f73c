//! Sums over ranks leave the loop over microbatches where that changes nothing, and stay elsewhere.

use super::partition::partition;
use super::soundness::same;
use crate::graph::parse::parse;
use crate::graph::print::print;
use crate::graph::verify::{Stage, verify};
use crate::graph::{Graph, MeshOp, Op};
use crate::interpret::{Mode, run, run_ranks, sample_environment};
use crate::sharding::check::check;
use crate::sharding::sum_after_microbatches;

/// What a microbatch gives, and whether what sums it over ranks may leave: lines, with `N` for a number of their own.
const KINDS: [(&str, bool); 8] = [
    // Everywhere whole, and split.
    (
        "%gN = reduce_sum %xs over batch : f32[d=4] partial(sum a)
         %rN = reshard %gN because \"sum\" : f32[d=4]
         yield sum %rN : f32[d=4]",
        true,
    ),
    (
        "%gN = reduce_sum %xs over batch : f32[d=4] partial(sum a)
         %rN = reshard %gN because \"part\" : f32[d=4 @a]
         yield sum %rN : f32[d=4 @a]",
        true,
    ),
    // What layers stack, and what they sum.
    (
        "%kN = loop layer=3 {
           index %lN : i32[]
           stacked %wN = %ws : f32[d=4]
               invariant %xN = %xs : f32[batch=2 @a, d=4]
           %pN = mul %xN, %wN : f32[batch=2 @a, d=4]
           %gN = reduce_sum %pN over batch : f32[d=4] partial(sum a)
           %rN = reshard %gN because \"layer\" : f32[d=4 @a]
           yield stacked %rN : f32[layer=3, d=4 @a]
         }
         yield sum %kN : f32[layer=3, d=4 @a]",
        true,
    ),
    (
        "%kN = loop layer=3 {
           index %lN : i32[]
           stacked %wN = %ws : f32[d=4]
               invariant %xN = %xs : f32[batch=2 @a, d=4]
           %pN = mul %xN, %wN : f32[batch=2 @a, d=4]
           %gN = reduce_sum %pN over batch : f32[d=4] partial(sum a)
           %rN = reshard %gN because \"layer\" : f32[d=4]
           yield sum %rN : f32[d=4]
         }
         yield sum %kN : f32[d=4]",
        true,
    ),
    // A maximum of sums is no sum of maxima; nor is a square, or what is also read otherwise.
    (
        "%gN = reduce_max %xs over batch : f32[d=4] partial(max a)
         %rN = reshard %gN because \"max\" : f32[d=4]
         yield sum %rN : f32[d=4]",
        false,
    ),
    (
        "%gN = reduce_sum %xs over batch : f32[d=4] partial(sum a)
         %rN = reshard %gN because \"sum\" : f32[d=4]
         %sN = mul %rN, %rN : f32[d=4]
         yield sum %sN : f32[d=4]",
        false,
    ),
    (
        "%gN = reduce_sum %xs over batch : f32[d=4] partial(sum a)
         %rN = reshard %gN because \"sum\" : f32[d=4]
         %nN = dot %rN, %rN over d : f32[]
         yield sum %rN : f32[d=4]
         yield sum %nN : f32[]",
        false,
    ),
    // What layers hand on from one to the next.
    (
        "%zN = reduce_sum %xs over batch : f32[d=4] partial(sum a)
         %cN = reshard %zN because \"start\" : f32[d=4]
         %kN = loop layer=3 {
           index %lN : i32[]
           carry %hN = %cN : f32[d=4]
           stacked %wN = %ws : f32[d=4]
               invariant %xN = %xs : f32[batch=2 @a, d=4]
           %pN = mul %xN, %hN : f32[batch=2 @a, d=4]
           %gN = reduce_sum %pN over batch : f32[d=4] partial(sum a)
           %rN = reshard %gN because \"carry\" : f32[d=4]
           %tN = mul %rN, %wN : f32[d=4]
           yield carry %tN : f32[d=4]
         }
         yield sum %kN : f32[d=4]",
        false,
    ),
];

fn program(kinds: &[usize]) -> String {
    let (mut ops, mut yields, mut results, mut outs) = (String::new(), Vec::new(), Vec::new(), Vec::new());
    for (n, kind) in kinds.iter().enumerate() {
        let text = KINDS[*kind].0.replace('N', &n.to_string());
        let mut depth = 0;
        for line in text.lines().map(str::trim) {
            depth += usize::from(line.ends_with('{'));
            match line.strip_prefix("yield sum ") {
                Some(given) if depth == 0 => {
                    let (_, ty) = given.split_once(" : ").expect("a type");
                    let at = results.len();
                    let whole = ty.replace(" @a", "");
                    outs.push(format!("%o{at} = reshard %y{at} because \"report\" : {whole}"));
                    results.push((format!("%y{at}"), ty != whole));
                    yields.push(line.to_string());
                }
                _ => ops += &format!("{line}\n"),
            }
            depth -= usize::from(line == "}");
        }
    }
    let names: Vec<&str> = results.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = format!(
        "graph @m on a=2 {{
         %x = param \"x\" = normal(1.0) : f32[batch=8 @a in 4, d=4]
         %w = param \"w\" = normal(1.0) : f32[layer=3, d=4]
         {} = loop batch=4 block=2 microbatches {{
         index %i : i32[]
         stacked %xs = %x : f32[batch=2 @a, d=4]
             invariant %ws = %w : f32[layer=3, d=4]
         {ops}{}
         }}\n",
        names.join(", "),
        yields.join("\n")
    );
    for (out, _) in outs.iter().zip(&results).filter(|(_, (_, split))| *split) {
        text += &format!("{out}\n");
    }
    for (at, (name, split)) in results.iter().enumerate() {
        let given = if *split { format!("%o{at}") } else { name.clone() };
        text += &format!("return y{at} = {given}\n");
    }
    text + "}\n"
}

/// Reshards inside of loops.
fn inside(graph: &Graph) -> usize {
    let regions = graph.executed_regions().into_iter().filter(|r| *r != graph.body);
    let ops = regions.flat_map(|r| graph.region(r).ops.clone());
    ops.filter(|op| matches!(graph.op(*op).op, Op::Mesh(MeshOp::Reshard { .. }))).count()
}

/// Every two kinds in one loop: what may leave does and nothing else, and the graph still means what it did.
#[test]
fn sum_after_microbatches_moves_what_is_linear_and_nothing_else() {
    for a in 0..KINDS.len() {
        for b in 0..KINDS.len() {
            let text = program(&[a, b]);
            let before = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            verify(&before, Stage::Sharded).unwrap_or_else(|e| panic!("{e}"));
            let after = sum_after_microbatches(before.clone());
            verify(&after, Stage::Sharded).unwrap_or_else(|e| panic!("{e}"));
            assert!(check(&after).is_empty(), "{:?}\n{}", check(&after), print(&after));
            let left = [a, b].iter().filter(|kind| KINDS[**kind].1).count();
            assert_eq!(inside(&before) - inside(&after), left, "{}", print(&after));
            assert_eq!(print(&parse(&print(&after)).unwrap()), print(&after));
            let environment = sample_environment(&before, (8 * a + b) as u64);
            let numbers = |graph: &Graph| run(graph, &environment, Mode::F64).unwrap();
            assert_eq!(numbers(&before), numbers(&after));
            let local = partition(&after).unwrap_or_else(|e| panic!("{e}"));
            let ranks = run_ranks(&local, &environment, Mode::F64).unwrap_or_else(|e| panic!("{e}"));
            let got = ranks.assemble(&local).unwrap_or_else(|e| panic!("{e}"));
            for ((output, x), (_, y)) in numbers(&before).0.iter().zip(&got.0) {
                assert!(same(x, y, 1e-9), "{output:?}\n{}", print(&local));
            }
        }
    }
}
