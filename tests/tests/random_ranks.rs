//! Random graphs of one rank's part, on all ranks: evaluated and as KIR in lockstep, and as machine code on the runtime's
//! threads. The first two are compared with the interpreter of ranks within its derived bounds, machine code with KIR bit for
//! bit. `MLC_FUZZ_GRAPHS` and `MLC_FUZZ_SEED` choose the seeds.

use mlc::graph::Graph;
use mlc::graph::parse::parse;
use mlc::graph::print::print;
use mlc::graph::verify::{Stage, verify};
use mlc::interpret::{Environment, Mode, Outputs, run_ranks};
use mlc::lower::simulate;
use mlc_codegen::Codegen;
use mlc_codegen::program::execute::{Precision, execute_ranks};
use mlc_codegen::program::{InterpretedProgram, Program, Spaces};
use mlc_codegen::run::CompiledProgram;
use mlc_codegen::target::Target;
use mlc_runtime::abi::Place;
use mlc_runtime::launch;
use mlc_runtime::rank::RankOptions;
use mlc_runtime::world::WorldOptions;
use mlc_tests::random_ranks::rank_graph;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

fn seeds() -> std::ops::Range<u64> {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first: u64 = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_GRAPHS", 200)
}

/// What goes wrong, by seed.
fn wrong(check: impl Fn(u64) -> Result<(), String>) -> Vec<String> {
    let one = |seed: u64| {
        let result = catch_unwind(AssertUnwindSafe(|| check(seed))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_string())
        });
        result.err().map(|e| format!("seed {seed}: {e}"))
    };
    seeds().filter_map(one).collect()
}

/// Evaluated and interpreted as KIR; gives the program and what KIR computes on each rank.
fn check(
    graph: &Graph,
    environment: &Environment,
    target: &Target,
) -> Result<(Program, Vec<Outputs>), String> {
    let program = simulate::program(graph)?;
    let expected = run_ranks(graph, environment, Mode::Bounds).map_err(|e| e.to_string())?.0;
    let within = |how: &str, found: &[Outputs]| {
        for (rank, (expected, found)) in expected.iter().zip(found).enumerate() {
            if let Some(message) = simulate::first_outside(expected, found) {
                return Err(format!("{how}, rank {rank}: {message}\n{}", print(graph)));
            }
        }
        Ok(())
    };
    let evaluated = simulate::run_ranks(&program, graph, environment, &mut |ranks| {
        execute_ranks(&program, 0, ranks, Precision::AsWritten)
    })?;
    within("evaluated", &evaluated)?;
    let mut kernels = InterpretedProgram::new(&program, target)?;
    let interpreted =
        simulate::run_ranks(&program, graph, environment, &mut |ranks| kernels.run_ranks("train", ranks))?;
    within("as KIR", &interpreted)?;
    Ok((program, interpreted))
}

/// Runs the compiled step functions on the runtime's ranks: threads of this process that read each other's memory.
fn on_threads(program: &Program, compiled: &CompiledProgram, ranks: &mut [Spaces<'_>]) -> Result<(), String> {
    let mut info = program.info.clone();
    info.scratch_bytes = compiled.scratch_bytes();
    // The memory is filled here and not from data.
    info.entries[0].inputs.clear();
    let fail = |f: mlc_runtime::failure::Failure| f.message;
    let run = mlc_runtime::program::Program::new(info, compiled.step_functions()).map_err(fail)?;
    let options = RankOptions { threads: 1, pin: false, profile: false };
    let memory: Vec<Mutex<&mut Spaces<'_>>> = ranks.iter_mut().map(Mutex::new).collect();
    launch::run_ranks(&run, options, WorldOptions::default(), |rank| {
        let mut spaces = memory[rank.world().rank()].lock().expect("a rank's own");
        for (i, space) in spaces.iter().enumerate() {
            let place = Place { space: i as u32, offset: 0 };
            rank.bytes_mut(place, space.len() as u64).copy_from_slice(space);
        }
        rank.call(0)?;
        for (i, space) in spaces.iter_mut().enumerate() {
            let place = Place { space: i as u32, offset: 0 };
            space.copy_from_slice(rank.bytes(place, space.len() as u64));
        }
        Ok(())
    })
    .map_err(fail)?;
    Ok(())
}

#[test]
fn rank_graphs_verify_and_read_back() {
    let wrong = wrong(|seed| {
        let graph = rank_graph(seed);
        verify(&graph, Stage::Spmd).map_err(|e| e.to_string())?;
        let text = print(&graph);
        let again = parse(&text).map_err(|e| format!("{e}\n{text}"))?;
        if print(&again) == text { Ok(()) } else { Err(text) }
    });
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), seeds().count(), wrong.join("\n"));
}

#[test]
fn rank_programs_compute_what_the_interpreter_of_ranks_does() {
    let target = Target::host().expect("a machine mlc knows");
    let wrong = wrong(|seed| {
        let graph = rank_graph(seed);
        check(&graph, &simulate::sample_whole(&graph, seed), &target).map(|_| ())
    });
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), seeds().count(), wrong.join("\n"));
}

/// Every fifth seed: each links a library.
#[test]
fn rank_programs_compiled_are_those_of_kir_bit_for_bit() {
    let target = Target::host().expect("a machine mlc knows");
    let wrong = wrong(|seed| {
        if seed % 5 != 0 {
            return Ok(());
        }
        let graph = rank_graph(seed);
        let environment = simulate::sample_whole(&graph, seed);
        let (program, interpreted) = check(&graph, &environment, &target)?;
        for codegen in Codegen::here() {
            let compiled = CompiledProgram::new(&program, &target, codegen)?;
            let found = simulate::run_ranks(&program, &graph, &environment, &mut |ranks| {
                on_threads(&program, &compiled, ranks)
            })?;
            if found != interpreted {
                return Err(format!("by {codegen}: other bits\n{}", print(&graph)));
            }
        }
        Ok(())
    });
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
