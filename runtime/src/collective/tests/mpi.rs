//! The same collectives between processes, with both MPI libraries. `.ci/setup` installs them; without them these tests fail.
//!
//! The launcher starts this test executable again, with the one test [`body_of_a_rank`] and what it is to do in the environment.

use std::process::{Command, Output};

use super::*;
use crate::launch::start;
use crate::program::Program;

const TASK: &str = "MLC_TEST_TASK";
const WATCHDOG_MS: &str = "MLC_TEST_WATCHDOG_MS";

/// Starters of the two families and what the libraries call themselves.
const LAUNCHERS: [(&str, &str); 2] = [("mpirun.openmpi", "Open MPI"), ("mpirun.mpich", "MPICH")];

fn launch(launcher: &str, ranks: usize, task: &str, environment: &[(&str, &str)]) -> Output {
    Command::new(launcher)
        .args(["-n", &ranks.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "collective::tests::mpi::body_of_a_rank", "--nocapture", "--test-threads=1"])
        .env(TASK, task)
        .envs(environment.iter().copied())
        // As root, on fewer cores than ranks, without ssh, in a container that forbids reading another process's memory.
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
        .envs([("OMPI_MCA_rmaps_base_oversubscribe", "1"), ("OMPI_MCA_plm", "isolated")])
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .output()
        .unwrap_or_else(|e| panic!("{launcher}: {e}; .ci/setup installs it"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a rank does that one of the other tests had started; nothing in an ordinary run of the tests.
#[test]
fn body_of_a_rank() {
    let Ok(task) = std::env::var(TASK) else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ranks = number("OMPI_COMM_WORLD_SIZE").or_else(|| number("PMI_SIZE")).unwrap();
    let options = WorldOptions {
        watchdog: Duration::from_millis(number(WATCHDOG_MS).unwrap_or(60_000)),
        fault: std::env::var(Fault::VARIABLE).ok().and_then(|text| Fault::parse(&text)),
        ..WorldOptions::default()
    };
    let mut info = gather_program(if task == "size" { ranks + 1 } else { ranks });
    info.rebuild = "mlc build model.spec -o model".to_owned();
    if task == "fingerprint" {
        info.fingerprint = std::process::id().to_string();
    }
    let program = Program::new(info, vec![]).unwrap();
    let result = start(&program, 1, options, |world| {
        match task.as_str() {
            "kinds" => {
                for seed in 0..3 {
                    Trial::of_all_kinds(seed, &[ranks], &[0], false).run(world.clone())?;
                }
                Trial::of_all_kinds(3, &[ranks], &[0], true).run(world.clone())?;
                if ranks == 4 {
                    Trial::of_all_kinds(4, &[2, 2], &[1], false).run(world.clone())?;
                    Trial::of_all_kinds(5, &[2, 2], &[1, 0], false).run(world.clone())?;
                }
                world.barrier()?;
                println!("rank {} over {} is right", world.rank(), world.engine().name());
            }
            _ => gather_steps(&program.info, world, 5)?,
        }
        Ok(())
    });
    if let Err(failure) = result {
        eprintln!("{}", failure.message);
        std::process::exit(failure.exit.code());
    }
}

#[test]
fn processes_get_the_bits_of_the_reference_with_both_libraries() {
    for (launcher, library) in LAUNCHERS {
        for ranks in 2..5 {
            let output = launch(launcher, ranks, "kinds", &[]);
            let text = text(&output);
            assert!(output.status.success(), "{launcher} -n {ranks}:\n{text}");
            for rank in 0..ranks {
                assert!(
                    text.contains(&format!("rank {rank} over {library}")),
                    "{launcher} -n {ranks}:\n{text}"
                );
            }
        }
    }
}

#[test]
fn another_number_of_processes_than_built_for_is_refused() {
    for (launcher, _) in LAUNCHERS {
        let output = launch(launcher, 2, "size", &[]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(Exit::Launch.code()), "{text}");
        assert!(text.contains("built for 3 ranks (axis0 = 3), and 2 were started"), "{text}");
        assert!(text.contains("mlc build model.spec -o model --devices 2"), "{text}");
    }
}

#[test]
fn processes_of_different_programs_are_refused() {
    for (launcher, _) in LAUNCHERS {
        let output = launch(launcher, 2, "fingerprint", &[]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(Exit::Launch.code()), "{text}");
        assert!(text.contains("that of rank 0 differs from that of 1"), "{text}");
    }
}

#[test]
fn a_stalled_process_is_named_and_all_end() {
    for (launcher, _) in LAUNCHERS {
        let clock = Instant::now();
        let output = launch(launcher, 3, "steps", &[(Fault::VARIABLE, "stall:1:3"), (WATCHDOG_MS, "1000")]);
        let text = text(&output);
        assert!(clock.elapsed() < Duration::from_secs(15));
        assert_eq!(output.status.code(), Some(Exit::Lost.code()), "{text}");
        assert!(text.contains("step 3, layer.attn (model.spec:7): all_gather over axis0"), "{text}");
        assert!(text.contains("rank 1 has not arrived"), "{text}");
    }
}

/// The launcher notices too and ends everybody; who is first is open.
#[test]
fn the_death_of_a_process_ends_all_soon() {
    for (launcher, _) in LAUNCHERS {
        let clock = Instant::now();
        let output = launch(launcher, 3, "steps", &[(Fault::VARIABLE, "death:1:2")]);
        assert!(clock.elapsed() < Duration::from_secs(15), "{}", text(&output));
        assert!(!output.status.success(), "{}", text(&output));
    }
}
