//! `mlc doctor`: is everything here that building and training need?

use super::Failure;
use super::trial::build_trial;
use clap::Args;
use mlc::units::bytes;
use mlc_codegen::Codegen;
use mlc_codegen::cache::Cache;
use mlc_codegen::link;
use mlc_codegen::target::{TARGETS, Target};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Arguments of `mlc doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// Leave out the trial build and training step.
    #[arg(long)]
    quick: bool,
}

/// What one look found.
enum Finding {
    /// As it should be.
    Good(String),
    /// Works, but slower or with less than it could: what, and what to do.
    Poor(String, &'static str),
    /// Building or training can't work: what, and what to do.
    Bad(String, &'static str),
}

/// Prints one line for each thing looked at. Anything that stops a build is exit code 5.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let mut looks: Vec<(&str, fn() -> Finding)> = vec![
        ("processor", processor),
        ("codegen", codegen),
        ("linker", linker),
        ("cache", cache),
        ("memory", memory),
        ("pages", pages),
    ];
    if !args.quick {
        looks.push(("trial", trial));
    }
    let mut bad = 0;
    for (name, look) in looks {
        let (mark, text, advice) = match look() {
            Finding::Good(text) => ("ok", text, None),
            Finding::Poor(text, advice) => ("poor", text, Some(advice)),
            Finding::Bad(text, advice) => {
                bad += 1;
                ("BAD", text, Some(advice))
            }
        };
        println!("{mark:<5}{name:<10} {text}");
        if let Some(advice) = advice {
            println!("                {advice}");
        }
    }
    match bad {
        0 => Ok(()),
        n => Err(Failure::Internal(format!("{n} of the above keep mlc from working"))),
    }
}

fn processor() -> Finding {
    match Target::host() {
        Ok(target) => {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            let best = TARGETS.last().is_some_and(|best| *best == target);
            let text = format!("{target}, {cores} core{}", if cores == 1 { "" } else { "s" });
            if best {
                Finding::Good(text)
            } else {
                Finding::Poor(text, "no AVX-512 here: binaries for x86-64-v4 build, but only run elsewhere")
            }
        }
        Err(why) => Finding::Bad(
            why,
            "specs still check and plan here; `mlc build --target x86-64-v3` builds for another machine",
        ),
    }
}

fn codegen() -> Finding {
    if Codegen::Llvm.available() {
        return Finding::Good(Codegen::ALL.map(Codegen::name).join(", "));
    }
    Finding::Poor(
        Codegen::Cranelift.name().into(),
        "the same numbers from slower kernels; an mlc built with its default features has LLVM's",
    )
}

fn linker() -> Finding {
    match link::linker_name() {
        Ok(name) => Finding::Good(name.to_string()),
        Err(why) => Finding::Bad(why, "apt-get install lld"),
    }
}

fn cache() -> Finding {
    let Some(folder) = Cache::default_folder() else {
        return Finding::Poor(
            "none".into(),
            "every build compiles every kernel again; set MLC_CACHE or HOME",
        );
    };
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&probe, b"mlc"));
    // A probe that can't be removed was hardly written; the outcome of the write is what counts.
    let _ = std::fs::remove_file(&probe);
    match written {
        Ok(()) => Finding::Good(format!("{}, {}", folder.display(), bytes(folder_bytes(&folder)))),
        Err(e) => Finding::Poor(
            format!("{} can't be written: {e}", folder.display()),
            "every build compiles every kernel again; set MLC_CACHE to a folder of yours",
        ),
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => folder_bytes(&entry.path()),
            Ok(about) => about.len(),
            Err(_) => 0,
        })
        .sum()
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = |key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
    };
    match (kilobytes("MemTotal:"), kilobytes("MemAvailable:")) {
        (Some(all), Some(free)) => {
            Finding::Good(format!("{} of {} free", bytes(free * 1024), bytes(all * 1024)))
        }
        _ => Finding::Poor(
            "this system does not tell".into(),
            "a program that is too large will not be refused in time",
        ),
    }
}

fn pages() -> Finding {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let chosen =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word.to_string());
    match chosen.as_deref() {
        Some(word @ ("always" | "madvise")) => Finding::Good(format!("2 MiB pages: {word}")),
        Some(word) => Finding::Poor(
            format!("2 MiB pages: {word}"),
            "large models train slower on 4 KiB pages: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Finding::Poor(
            "2 MiB pages: this system does not tell".into(),
            "nothing to do unless training is slow",
        ),
    }
}

/// A small model through the whole compiler, and one step of it.
fn trial() -> Finding {
    let start = Instant::now();
    match trial_step() {
        Ok(()) => Finding::Good(format!(
            "a small Llama was compiled, linked and trained for a step in {:.1} s",
            start.elapsed().as_secs_f64()
        )),
        Err(why) => Finding::Bad(why, "the lines above may say why; otherwise this is a bug in mlc"),
    }
}

fn trial_step() -> Result<(), String> {
    let folder = std::env::temp_dir().join(format!("mlc-doctor-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("can't make {}: {e}", folder.display()))?;
    let result = build_small(&folder).and_then(|binary| {
        let output = Command::new(&binary)
            .args(["train", "--steps", "1", "--out"])
            .arg(folder.join("run"))
            .output()
            .map_err(|e| format!("{} does not start: {e}", binary.display()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "the training step failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    });
    // A left-over folder is a nuisance, not a finding.
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn build_small(folder: &Path) -> Result<PathBuf, String> {
    let files = [
        ("tiny.spec", include_str!("../../../specs/tiny.spec")),
        ("llama.spec", include_str!("../../../specs/llama.spec")),
    ];
    let sets = ["Llama.layers=1", "train.batch=1", "train.seq=32", "train.data=synthetic"].map(String::from);
    let binary = folder.join("trial");
    build_trial(&files, &sets, &binary)?;
    Ok(binary)
}
