//! The table of rules, as a table; what it means is tested by running split ops, see `spmd`.

use super::*;
use crate::graph::verify::{Stage, verify};
use crate::sharding::gallery::{KINDS, gallery, kind};
use std::collections::BTreeSet;

fn sizes(axis: &str) -> u64 {
    // Distinct where they can be, so that a mixed-up axis has the wrong size.
    2 + axis.bytes().map(u64::from).sum::<u64>() % 7
}

#[test]
fn factors_the_gallery_has_every_kind_of_op() {
    let mut found = BTreeSet::new();
    for case in gallery(&sizes) {
        verify(&case.graph, Stage::Any).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        found.insert(kind(&case.graph.op(case.op).op));
    }
    let missing: Vec<_> = KINDS.iter().filter(|k| !found.contains(*k)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn factors_cover_every_axis_once() {
    let free = ["loop", "update", "between ranks"];
    let mut axes = 0;
    for case in gallery(&sizes) {
        let node = case.graph.op(case.op);
        let factors = factors(&case.graph, case.op);
        if free.contains(&kind(&node.op)) {
            assert!(factors.is_empty(), "{}", case.name);
            continue;
        }
        let ends = |values: &[crate::graph::ValueId], of: &dyn Fn(&Factor) -> Vec<Option<Name>>| {
            for (i, value) in values.iter().enumerate() {
                let mut named: Vec<Name> = factors.iter().filter_map(|f| of(f)[i].clone()).collect();
                let mut expected = case.graph.ty(*value).names();
                named.sort();
                expected.sort();
                assert_eq!(named, expected, "{}: {}", case.name, case.graph.value_name(*value));
            }
            values.iter().map(|v| case.graph.ty(*v).axes.len()).sum::<usize>()
        };
        axes += ends(&node.operands, &|f| f.operands.clone());
        axes += ends(&node.results, &|f| f.results.clone());
        for factor in &factors {
            assert_eq!(factor.partial.len(), node.results.len());
            for (has, partial) in factor.results.iter().zip(&factor.partial) {
                assert!(has.is_none() || partial.is_none(), "{}: split and a term: {factor:?}", case.name);
            }
        }
    }
    assert!(axes > 250, "only {axes} axes");
}

/// `a: Pass x.a y.a -> a`.
fn shown(graph: &Graph, op: OpId, factor: &Factor) -> String {
    let node = graph.op(op);
    let ends = |values: &[crate::graph::ValueId], axes: &[Option<Name>]| -> Vec<String> {
        let named = values.iter().zip(axes).filter_map(|(v, a)| Some((v, a.as_ref()?)));
        named.map(|(v, a)| format!("{}.{a}", graph.value_name(*v))).collect()
    };
    let terms: Vec<String> = node
        .results
        .iter()
        .zip(&factor.partial)
        .filter_map(|(v, p)| Some(format!("{} of {}", (*p)?.name(), graph.value_name(*v))))
        .collect();
    let mut line = format!("  {:?} {}", factor.kind, factor.size);
    if factor.grain > 1 {
        line += &format!(" by {}", factor.grain);
    }
    let (operands, results) = (ends(&node.operands, &factor.operands), ends(&node.results, &factor.results));
    line += &format!(": {} -> {}", operands.join(" "), results.join(" "));
    if !terms.is_empty() {
        line += &format!(", {}", terms.join(", "));
    }
    line.trim_end().to_string()
}

#[test]
fn factors_are_these() {
    let mut text = String::new();
    for case in gallery(&sizes) {
        text += &format!("{}\n", case.name);
        for factor in factors(&case.graph, case.op) {
            text += &format!("{}\n", shown(&case.graph, case.op, &factor));
        }
    }
    insta::assert_snapshot!(text, @r"
    input
      Made 8:  -> ids.a
      Made 2:  -> ids.b
    param
      Made 8:  -> w.a
      Made 2:  -> w.b
    state
      Made 8:  -> m.a
      Made 2:  -> m.b
    scalar
    const
    index
      Made 8:  -> a.a
    negation
      Pass 8: x.a -> t.a
      Pass 2: x.b -> t.b
      Pass 3: x.c -> t.c
    exponential
      Pass 8: x.a -> t.a
      Pass 2: x.b -> t.b
      Pass 3: x.c -> t.c
    sum of two
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Pass 3: y.c -> t.c
    sum of two
      Pass 8: x.a y.a -> t.a
      Pass 2: x.b y.b -> t.b
    difference
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Pass 3: y.c -> t.c
    difference
      Pass 8: x.a y.a -> t.a
      Pass 2: x.b y.b -> t.b
    product of two
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Pass 3: y.c -> t.c
    product of two
      Pass 8: x.a y.a -> t.a
      Pass 2: x.b y.b -> t.b
    quotient
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Pass 3: y.c -> t.c
    quotient
      Pass 8: x.a y.a -> t.a
      Pass 2: x.b y.b -> t.b
    larger of two
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Pass 3: y.c -> t.c
    larger of two
      Pass 8: x.a y.a -> t.a
      Pass 2: x.b y.b -> t.b
    smaller of two
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Pass 3: y.c -> t.c
    smaller of two
      Pass 8: x.a y.a -> t.a
      Pass 2: x.b y.b -> t.b
    remainder
      Pass 8: x.a y.a -> t.a
      Pass 2: x.b -> t.b
    comparison
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
    select
      Pass 8: c.a x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Pass 3: y.c -> t.c
    cast to more
      Pass 8: x.a -> t.a
      Pass 2: x.b -> t.b
    cast to less
      Pass 8: x.a -> t.a
      Pass 2: x.b -> t.b
    cast to integers
      Pass 8: x.a -> t.a
      Pass 2: x.b -> t.b
    constrain
      Pass 8: x.a -> y.a
      Pass 2: x.b -> y.b
    broadcast
      Pass 8: x.a -> t.a
      Pass 2: x.b -> t.b
      Made 3:  -> t.c
    rename
      Pass 8: x.a -> t.b
      Pass 2: x.b -> t.z
      Pass 3: x.c -> t.c
    transfer
      Pass 8: x.a -> y.a
      Pass 2: x.b -> y.b
    slice
      Whole 8: x.a -> y.part
      Pass 2: x.b -> y.b
    slice of all
      Pass 8: x.a -> y.all
      Pass 2: x.b -> y.b
    concat
      Whole 8: x.a y.c z.a -> y.1.c
      Pass 2: x.b y.b z.b -> y.1.b
    sum
      Reduce(Sum) 8: x.a -> , sum of t
      Pass 2: x.b -> t.b
      Reduce(Sum) 3: x.c -> , sum of t
    maximum
      Reduce(Max) 8: x.a -> , max of t
      Pass 2: x.b -> t.b
      Reduce(Max) 3: x.c -> , max of t
    minimum
      Reduce(Min) 8: x.a -> , min of t
      Pass 2: x.b -> t.b
      Reduce(Min) 3: x.c -> , min of t
    contraction
      Pass 8: x.a -> t.a
      Pass 2: x.b y.b -> t.b
      Reduce(Sum) 3: x.c y.c -> , sum of t
      Pass 4: y.d -> t.d
    inner product
      Reduce(Sum) 8: x.a y.a -> , sum of t
      Reduce(Sum) 2: x.b y.b -> , sum of t
    gather
      Lookup 8: table.v -> , sum of y
      Pass 2: table.b ids.b -> y.b
      Pass 3: table.c -> y.c
      Pass 8: ids.a -> y.a
    scatter
      Reduce(Sum) 8: updates.a ids.a -> , sum of y
      Pass 2: updates.b ids.b -> y.b
      Pass 3: updates.c -> y.c
      Made 8:  -> y.v
    running sum
      Pass 8: x.a -> t.a
      Whole 2: x.b -> t.b
    quarter turn
      Pass 8: x.a -> y.a
      Whole 4: x.b -> y.b
    softmax
      Pass 8: x.a -> p.a
      Whole 2: x.b -> p.b
      Pass 3: x.c -> p.c
    rms_norm
      Pass 8: x.a -> norm.0.a norm.1.a
      Whole 2: x.b w.b -> norm.0.b
      Pass 3: x.c w.c -> norm.0.c norm.1.c
    layer_norm
      Pass 8: x.a bias.a -> norm.0.a norm.1.a norm.2.a
      Whole 2: x.b w.b bias.b -> norm.0.b
      Pass 3: x.c -> norm.0.c norm.1.c norm.2.c
    rope
      Pass 8: x.a at.a -> rope.a
      Pass 5: x.s at.s -> rope.s
      Whole 8: x.d -> rope.d
    cross_entropy
      Pass 8: logits.a targets.a -> ce.0.a ce.1.a
      Pass 5: logits.s targets.s -> ce.0.s ce.1.s
      Whole 8: logits.v ->
    attention
      Whole 5: q.over k.over ->
      Pass 5: q.batch k.batch v.batch -> attn.0.batch attn.1.batch
      Pass 3: q.kv k.kv v.kv -> attn.0.kv attn.1.kv
      Whole 8: q.query -> attn.0.query attn.1.query
      Pass 6: q.group extra.group -> attn.0.group attn.1.group
      Whole 2: k.key v.key extra.key ->
      Pass 4: v.value -> attn.0.value
    attention_grad
      Whole 5: q.over k.over -> grad.0.over grad.3.over
      Pass 5: q.batch k.batch v.batch o.batch lse.batch do.batch -> grad.0.batch grad.3.batch grad.4.batch grad.6.batch, sum of grad.5
      Pass 3: q.kv k.kv v.kv rows.kv o.kv lse.kv do.kv -> grad.0.kv grad.3.kv grad.4.kv grad.6.kv, sum of grad.5
      Whole 8: q.query whole.query rows.query o.query lse.query do.query -> grad.0.query grad.5.query grad.6.query
      Pass 6: q.group whole.group o.group lse.group do.group -> grad.0.group grad.5.group grad.6.group, sum of grad.3, sum of grad.4
      Whole 2: k.key v.key whole.key -> grad.3.key grad.4.key grad.5.key
      Pass 4: v.value o.value do.value -> grad.4.value, sum of grad.0, sum of grad.3, sum of grad.5, sum of grad.6
    attention
      Whole 5: q.over k.over ->
      Pass 5: q.batch k.batch v.batch -> attn.0.batch attn.1.batch
      Pass 3: q.kv k.kv v.kv -> attn.0.kv attn.1.kv
      Whole 8: q.query -> attn.0.query attn.1.query
      Pass 6: q.group extra.group -> attn.0.group attn.1.group
      Pass 5: v.over -> attn.0.over
      Whole 2: k.key v.key extra.key ->
    attention_grad
      Whole 5: q.over k.over -> grad.0.over grad.3.over
      Pass 5: q.batch k.batch v.batch o.batch lse.batch do.batch -> grad.0.batch grad.3.batch grad.4.batch grad.6.batch, sum of grad.5
      Pass 3: q.kv k.kv v.kv rows.kv o.kv lse.kv do.kv -> grad.0.kv grad.3.kv grad.4.kv grad.6.kv, sum of grad.5
      Whole 8: q.query whole.query rows.query o.query lse.query do.query -> grad.0.query grad.5.query grad.6.query
      Pass 6: q.group whole.group o.group lse.group do.group -> grad.0.group grad.5.group grad.6.group, sum of grad.3, sum of grad.4
      Pass 5: v.over o.over do.over -> grad.4.over, sum of grad.0, sum of grad.3, sum of grad.5, sum of grad.6
      Whole 2: k.key v.key whole.key -> grad.3.key grad.4.key grad.5.key
    grouped_dot
      Pass 5: x.batch owner.batch -> grouped.batch
      Pass 6 by 2: x.row owner.row -> grouped.row
      Reduce(Sum) 4: x.d w.d -> , sum of grouped
      Whole 5: w.e ->
      Pass 6: w.f -> grouped.f
    grouped_outer
      Reduce(Sum) 5: x.batch y.batch owner.batch -> , sum of grouped
      Reduce(Sum) 6 by 2: x.row y.row owner.row -> , sum of grouped
      Pass 4: x.d -> grouped.d
      Pass 6: y.f -> grouped.f
      Whole 5:  -> grouped.e
    loss_head
      Whole 8: x.a targets.a ->
      Whole 5: x.s targets.s ->
      Whole 4: x.d w.d ->
      Whole 8: w.v ->
    custom
      Whole 8: x.a -> y.a
      Whole 2: x.b -> y.b
    loop
    update
    reshard
    ");
}

#[test]
fn passes_partial_is_this() {
    let mut text = String::new();
    for case in gallery(&sizes) {
        let n = case.graph.op(case.op).operands.len();
        let mut lines = Vec::new();
        for reduction in [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min] {
            let passing = (0..1u32 << n).filter_map(|bits| {
                let partial: Vec<bool> = (0..n).map(|i| bits >> i & 1 == 1).collect();
                passes_partial(&case.graph, case.op, &partial, reduction)
                    .then(|| partial.iter().map(|p| if *p { '+' } else { '.' }).collect::<String>())
            });
            let passing: Vec<String> = passing.collect();
            if !passing.is_empty() {
                lines.push(format!("{} {}", reduction.name(), passing.join(" ")));
            }
        }
        if !lines.is_empty() {
            text += &format!("{}: {}\n", case.name, lines.join(", "));
        }
    }
    insta::assert_snapshot!(text, @r"
    negation: sum +
    sum of two: sum ++
    sum of two: sum ++
    difference: sum ++
    difference: sum ++
    product of two: sum +. .+
    product of two: sum +. .+
    quotient: sum +.
    quotient: sum +.
    larger of two: max +. .+ ++
    larger of two: max +. .+ ++
    smaller of two: min +. .+ ++
    smaller of two: min +. .+ ++
    select: sum .++, max .+. ..+ .++, min .+. ..+ .++
    cast to more: sum +, max +, min +
    constrain: sum +, max +, min +
    broadcast: sum +, max +, min +
    rename: sum +, max +, min +
    transfer: sum +, max +, min +
    slice: sum +, max +, min +
    slice of all: sum +, max +, min +
    concat: sum +++, max +++, min +++
    sum: sum +
    maximum: max +
    minimum: min +
    contraction: sum +. .+
    inner product: sum +. .+
    gather: sum +., max +., min +.
    scatter: sum +.
    running sum: sum +
    quarter turn: sum +
    rope: sum +.
    grouped_dot: sum +.. .+.
    grouped_outer: sum +.. .+.
    ");
}
