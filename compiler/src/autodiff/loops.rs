//! The derivative of a loop is a loop in the other direction.
//!
//! ```text
//! forward  loop(carries c, stacked s, invariants w) -> carries c', stacked t, sums u
//! backward loop(carries c'̄, stacked t̄ and residuals, invariants ū and w) -> carries c̄, stacked s̄, sums w̄
//! ```
//! 1. Find the carries that get a cotangent: those with one from outside, and those the body leads one to (fixpoint).
//! 2. Open the backward body, give each result of the forward body its cotangent, walk the body in reverse.
//! 3. Cotangents of the body's carries are handed on, those of slices stacked, those of invariants summed.

use super::AutodiffError;
use super::differentiate::walk;
use super::tape::{Tape, as_loop, index_type};
use crate::graph::shape::slice_type;
use crate::graph::{Loop, Name, OpId, OpNode, Phase, Region, Type, ValueId};
use std::collections::BTreeSet;

/// Cotangents of a loop's operands.
///
/// # Errors
/// See [`walk`].
pub(super) fn pull_loop(
    t: &mut Tape,
    op: OpId,
    node: &OpNode,
    g: &[Option<ValueId>],
) -> Result<Vec<Option<ValueId>>, AutodiffError> {
    let l = as_loop(node).clone();
    let body = t.b.graph.region(l.body).clone();
    let active = active_carries(t, &l, &body, g);

    let mut initial: Vec<ValueId> = Vec::new();
    let mut args: Vec<(Name, Type)> = vec![("i".into(), index_type())];
    for &i in &active {
        let ty = t.cotangent_type(node.operands[i]);
        let name = format!("{}.grad", t.b.graph.value_name(body.args[1 + i]));
        initial.push(match g[i] {
            Some(cotangent) => cotangent,
            None => t.zeros(&ty),
        });
        args.push((name.into(), ty));
    }
    let (region, args) = t.b.open(&args);
    t.enter(op, region, args[0]);
    seed(t, &l, &body, g, &active, &args);
    walk(t)?;
    t.begin_rule(node);

    let mut results = Vec::new();
    for &i in &active {
        let arg = body.args[1 + i];
        results.push(match t.cotangent(arg) {
            Some(cotangent) => cotangent,
            None => t.zeros(&t.cotangent_type(arg)),
        });
    }
    let with_cotangent = |t: &Tape, range: std::ops::Range<usize>| -> Vec<usize> {
        range.filter(|i| t.cotangent(body.args[1 + i]).is_some()).collect()
    };
    let stacked = with_cotangent(t, l.carries..l.carries + l.stacked);
    let summed = with_cotangent(t, l.carries + l.stacked..node.operands.len());
    results.extend(stacked.iter().chain(&summed).filter_map(|i| t.cotangent(body.args[1 + i])));

    let collected = t.exit();
    t.b.close(results.clone());
    let (operands, all_args) = signature(&args, initial, &collected);
    t.b.graph.regions[region.index()].args = all_args;
    let mut out = vec![None; node.operands.len()];
    if results.is_empty() {
        return Ok(out);
    }
    let backward = Loop {
        axis: l.axis.clone(),
        trip: l.trip,
        block: l.block,
        reverse: !l.reverse,
        microbatches: false,
        carries: active.len(),
        stacked: collected.stacked.len(),
        stacked_outs: stacked.len(),
        body: region,
    };
    t.phase(Phase::BackwardInput);
    let values = t.b.repeat(backward, &operands, "grad");
    for (i, value) in active.iter().chain(&stacked).chain(&summed).zip(values) {
        if t.activity.varied(node.operands[*i]) {
            out[*i] = Some(value);
        }
    }
    Ok(out)
}

/// Carries whose cotangent the backward loop hands on.
fn active_carries(t: &Tape, l: &Loop, body: &Region, g: &[Option<ValueId>]) -> Vec<usize> {
    let varied = |i: &usize| t.activity.varied(body.args[1 + i]);
    let mut active: BTreeSet<usize> = (0..l.carries).filter(|i| g[*i].is_some()).filter(varied).collect();
    loop {
        let seeds = (0..body.results.len())
            .filter(|i| if *i < l.carries { active.contains(i) } else { g[*i].is_some() })
            .map(|i| body.results[i])
            .filter(|v| t.activity.varied(*v))
            .collect();
        let reached = t.reached(l.body, seeds);
        let more: BTreeSet<usize> =
            (0..l.carries).filter(varied).filter(|i| reached.contains(&body.args[1 + i])).collect();
        if more.is_subset(&active) {
            return active.into_iter().collect();
        }
        active.extend(more);
    }
}

/// Gives the results of the forward body their cotangents.
fn seed(t: &mut Tape, l: &Loop, body: &Region, g: &[Option<ValueId>], active: &[usize], args: &[ValueId]) {
    for (i, result) in body.results.iter().enumerate() {
        if !t.activity.varied(*result) {
            continue;
        }
        let cotangent = if i < l.carries {
            active.iter().position(|a| *a == i).map(|at| args[1 + at])
        } else {
            let stacked = i < l.carries + l.stacked_outs;
            g[i].map(|outside| {
                let ty = t.b.ty(outside).clone();
                let ty = if stacked {
                    slice_type(l, &ty).expect("the cotangent has the result's type")
                } else {
                    ty
                };
                t.imported(outside, ty, stacked)
            })
        };
        if let Some(cotangent) = cotangent {
            t.accumulate(*result, cotangent);
        }
    }
}

/// Operands of the backward loop and arguments of its body, in the order a loop wants them.
fn signature(
    args: &[ValueId],
    initial: Vec<ValueId>,
    collected: &super::tape::Collected,
) -> (Vec<ValueId>, Vec<ValueId>) {
    let mut operands = initial;
    let mut all_args = args.to_vec();
    for (outside, arg) in collected.stacked.iter().chain(&collected.invariants) {
        operands.push(*outside);
        all_args.push(*arg);
    }
    (operands, all_args)
}
