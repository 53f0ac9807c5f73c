//! Programs of one rank's graph, run on all ranks, against the interpreter of ranks: every value within the bound it derives.

use super::simulate;
use crate::graph::Graph;
use crate::graph::parse::parse;
use crate::graph::verify::{Stage, verify};
use crate::interpret::{Mode, run_ranks};
use mlc_codegen::abi::{AxisSplit, CollectiveKind};
use mlc_codegen::program::execute::{Precision, execute_ranks};
use mlc_codegen::program::{InterpretedProgram, KernelSpec, Program, Step};
use mlc_codegen::target::X86_64_V4;

/// Compiles a graph's text, runs it on all ranks and compares everything each rank gives out.
fn check(text: &str) -> Program {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    verify(&graph, Stage::Spmd).unwrap_or_else(|e| panic!("{e}"));
    let program = simulate::program(&graph).unwrap_or_else(|e| panic!("{e}"));
    check_program(&graph, &program);
    program
}

/// Runs a graph's program on all ranks and compares everything each rank gives out.
pub(super) fn check_program(graph: &Graph, program: &Program) {
    for seed in 1..3 {
        let environment = simulate::sample_whole(graph, seed);
        let expected = run_ranks(graph, &environment, Mode::Bounds).unwrap_or_else(|e| panic!("{e}")).0;
        let mut kernels = InterpretedProgram::new(program, &X86_64_V4).unwrap_or_else(|e| panic!("{e}"));
        let evaluated = simulate::run_ranks(program, graph, &environment, &mut |ranks| {
            execute_ranks(program, 0, ranks, Precision::AsWritten)
        });
        let interpreted =
            simulate::run_ranks(program, graph, &environment, &mut |ranks| kernels.run_ranks("train", ranks));
        for (how, found) in [("evaluated", evaluated), ("its kernels interpreted", interpreted)] {
            let found = found.unwrap_or_else(|e| panic!("{how}: {e}"));
            for (rank, (expected, found)) in expected.iter().zip(&found).enumerate() {
                if let Some(outside) = simulate::first_outside(expected, found) {
                    panic!("rank {rank}, {how}: {outside}\n{program}");
                }
            }
        }
    }
}

/// Kernels that only move data.
fn copies(program: &Program) -> usize {
    let moves = |spec: &KernelSpec| match spec {
        KernelSpec::Map(s) => s.region.ops.len() == 1,
        _ => false,
    };
    program.kernels.iter().filter(|k| moves(&k.spec)).count()
}

#[test]
fn ranks_reduce_and_scatter_along_any_axis() {
    let program = check(
        r#"graph @reduce on data=2, tensor=3 {
            %x = input "x" : f32[batch=4 @data @tensor, d=6]
            %r = reduce_scatter_sum %x over tensor split d : f32[batch=4, d=2]
            %o = reduce_scatter_max %x over data split batch : f32[batch=2, d=6]
            %w = reduce_scatter_sum %x over tensor split d wire bf16 : f32[batch=4, d=2]
            %s = all_reduce_sum %x over data tensor : f32[batch=4, d=6]
            %m, %n = all_reduce_min %x, %s over tensor : f32[batch=4, d=6], f32[batch=4, d=6]
            %sw = all_reduce_sum %x over tensor wire bf16 : f32[batch=4, d=6]
            %again = reduce_scatter_sum %s over tensor split d : f32[batch=4, d=2]
            return r = %r
            return o = %o
            return w = %w
            return s = %s
            return m = %m
            return n = %n
            return sw = %sw
            return again = %again
        }"#,
    );
    let sums = |c: &&mlc_codegen::abi::CollectiveInfo| matches!(c.kind, CollectiveKind::ReduceScatter(_));
    // `again` is the same collective as `r` on other buffers.
    assert_eq!(program.info.collectives.iter().filter(sums).count(), 3, "{program}");
}

#[test]
fn ranks_send_tokens_to_experts_and_back() {
    check(
        r#"graph @experts on ep=2, other=2 {
            %x = input "x" : f32[tokens=4 @ep, d=6]
            %w = param "w" = constant(0.0) : f32[d=6, expert=4, f=3]
            %v = param "v" = constant(0.0) : f32[expert=2 @ep, f=3, d=6]
            %h = dot %x, %w over d : f32[tokens=4 @ep, expert=4, f=3]
            %t = all_to_all %h over ep split expert join tokens : f32[tokens=8, expert=2 @ep, f=3]
            %y = dot %t, %v over f : f32[tokens=8, expert=2 @ep, d=6]
            %b = all_to_all %y over ep split tokens join expert : f32[tokens=4 @ep, expert=4, d=6]
            %same = all_to_all %x over ep other split tokens join tokens : f32[tokens=4, d=6]
            return b = %b
            return same = %same
        }"#,
    );
}

/// Layers whose weights are gathered before use and whose gradients are scattered, stacked per layer.
pub(super) const LAYERS: &str = r#"graph @layers on data=2, fsdp=2 {
    %x = input "x" : f32[batch=3 @data @fsdp, d=4]
    %w = param "layer.{i}.w" = constant(0.0) : f32[layers=3, d=2 @fsdp, e=4]
    %lr = const 0.125 : f32[]
    %y, %xs, %gs, %n, %total = loop layers=3 {
        index %i : i32[]
        carry %h = %x : f32[batch=3, d=4]
        stacked %p = %w : f32[d=2, e=4]
        %all = all_gather %p over fsdp join d : f32[d=4, e=4]
        %t = dot %h, %all over d : f32[batch=3, e=4]
        %u = tanh %t : f32[batch=3, e=4]
        %h2 = rename %u as e -> d : f32[batch=3, d=4]
        %g = dot %h, %u over batch : f32[d=4, e=4]
        %r = reduce_scatter_sum %g over fsdp split d : f32[d=2, e=4]
        %a = all_reduce_sum %r over data : f32[d=2, e=4]
        %q = mul %u, %u : f32[batch=3, e=4]
        %s = reduce_sum %q over batch, e : f32[]
        %sr = all_reduce_sum %s over data fsdp : f32[]
        yield carry %h2 : f32[batch=3, d=4]
        yield stacked %h : f32[layers=3, batch=3, d=4]
        yield stacked %a : f32[layers=3, d=2, e=4]
        yield sum %sr : f32[]
        yield sum %g : f32[d=4, e=4]
    }
    %b = broadcast %lr : f32[layers=3, d=2 @fsdp, e=4]
    %step = mul %gs, %b : f32[layers=3, d=2 @fsdp, e=4]
    %new = sub %w, %step : f32[layers=3, d=2 @fsdp, e=4]
    return y = %y
    return xs = %xs
    return store "layer.{i}.w" = %new
    return n = %n
    return total = %total
}"#;

#[test]
fn ranks_gather_and_scatter_in_loops() {
    let program = check(LAYERS);
    let w = &program.info.tensors[0];
    assert_eq!((w.layers, &w.shape[..]), (Some(3), &[4, 4][..]));
    assert_eq!(w.split, [AxisSplit { axis: 0, mesh: vec![1], blocks: 1, pad: 0 }]);
    let reversed = LAYERS.replace("loop layers=3 {", "loop layers=3 reverse {");
    check(&reversed);
}

#[test]
fn ranks_receive_stacked_results_in_their_slice() {
    let program = check(LAYERS);
    let Some(Step::Loop { body, .. }) =
        program.entries[0].body.iter().find(|s| matches!(s, Step::Loop { .. }))
    else {
        panic!("{program}")
    };
    let moving = |step: &Step| match step {
        Step::Collective(c) => {
            c.buffers.iter().skip(1).step_by(2).any(|b| b.strides.iter().any(|s| s.slots == 0))
        }
        Step::Launch(_) | Step::Loop { .. } | Step::Within { .. } => false,
    };
    let count = body
        .iter()
        .filter(|step| match step {
            Step::Within { body, .. } => body.iter().any(moving),
            Step::Launch(_) | Step::Collective(_) | Step::Loop { .. } => moving(step),
        })
        .count();
    // Start and done of the reduction whose result is stacked.
    assert_eq!(count, 2, "{program}");
}

#[test]
fn ranks_read_their_part_where_it_lies() {
    let program = check(
        r#"graph @zero on data=2, tensor=3 {
            %w = param "w" = constant(0.0) : f32[d=6, e=4]
            %x = input "x" : f32[batch=2 @data, d=6]
            %at = scalar "mesh.tensor" = 0.0 : f64[]
            %p = local_part %w along d over tensor : f32[d=2 @tensor, e=4]
            %xp = local_part %x along d over tensor : f32[batch=2 @data, d=2 @tensor]
            %y = dot %xp, %p over d : f32[batch=2 @data, e=4] partial(sum tensor)
            %s = all_reduce_sum %y over tensor : f32[batch=2 @data, e=4]
            %q = local_part %w along d over tensor data : f32[d=1 @tensor @data, e=4]
            %n = mul %q, %q : f32[d=1 @tensor @data, e=4]
            %new = all_gather %n over tensor data join d : f32[d=6, e=4]
            %f = cast %at : f32[]
            %fb = broadcast %f : f32[d=1, e=4]
            %fn = add %fb, %n : f32[d=1, e=4]
            return store "w" = %new
            return s = %s
            return fn = %fn
        }"#,
    );
    assert_eq!(copies(&program), 0, "{program}");
    assert!(program.to_string().contains("*r1"), "{program}");
    assert!(program.info.scalars[0].is_own());
}
