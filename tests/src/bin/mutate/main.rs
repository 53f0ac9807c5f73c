//! Mutation testing of rule tables: every small change of a rule must make some test fail.
//!
//! All mutants are compiled at once (mutant schemata; Untch, Offutt, Harrold 1993): in a copy of the sources each place that
//! can be changed becomes a `match` on the number of the active mutant, which the environment variable `MLC_MUTANT` gives.
//! So a mutant costs a run of tests and no build. Mutants that don't type-check are taken out where the compiler points.
//! Each test runs once without a mutant and notes the places it comes by; a mutant is then shown to those tests alone that
//! come by its place, one after another until one fails.
//!
//! ```text
//! cargo run -p mlc-tests --no-default-features --bin mutate -- [--list] [--only PART-OF-A-PATH] [--again FILE] [--every N]
//!     [--rooms] [--jobs N]
//! ```
//! Prints a line for each survivor and the share that was caught, per table and of all. `--again` takes only the survivors
//! that an earlier run printed to FILE; `--rooms` leaves the comparisons of `mlc-tests` out. Mutants that can't change what is
//! computed are listed in `tests/mutation/survivors.txt`, each with the reason; one that is caught all the same is stale.

mod copy;
mod places;
mod suite;
mod survivors;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use suite::{Suite, Verdict};
use survivors::Listed;
use tables::{Mutant, Tables};

fn option(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1).cloned())
}

fn flag(name: &str) -> bool {
    std::env::args().any(|a| a == name)
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    let number = |name: &str, default: usize| option(name).map_or(default, |n| n.parse().expect("a number"));
    let jobs = number("--jobs", 2);
    let tables = Tables::read(root);
    let listed = Listed::read(root, &tables);
    let chosen = chosen(&tables);
    if flag("--list") {
        chosen.iter().for_each(|(n, m)| println!("{n} {}:{} {}", m.file, m.line, m.name()));
        return ExitCode::SUCCESS;
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let copy = target.join("mutation");
    copy::copy_sources(root, &copy);
    let dropped = copy::write_what_compiles(&tables, &copy, &target);
    let suite = Suite::build(&copy, &target, flag("--rooms"), jobs);
    let kept: Vec<(u32, &Mutant)> =
        chosen.into_iter().filter(|(n, _)| !dropped.contains(n)).step_by(number("--every", 1)).collect();
    for name in &suite.failing {
        println!("left out, as it fails without a mutant: {name}");
    }
    let survivors = survivors(&suite, &kept, jobs);
    if report(&kept, &survivors, &listed) && suite.failing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The mutants that the arguments ask for.
fn chosen(tables: &Tables) -> Vec<(u32, &Mutant)> {
    let only = option("--only").unwrap_or_default();
    let again = option("--again")
        .map(|path| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")));
    let asked =
        |m: &Mutant| again.as_ref().is_none_or(|text| text.lines().any(|line| line.ends_with(&m.name())));
    tables.mutants.iter().map(|(n, m)| (*n, m)).filter(|(_, m)| m.file.contains(&only) && asked(m)).collect()
}

/// Runs all mutants on `jobs` threads; the survivors' numbers.
fn survivors(suite: &Suite, chosen: &[(u32, &Mutant)], jobs: usize) -> BTreeSet<u32> {
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((number, mutant)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let how = match suite.judge(*number, mutant) {
                        Verdict::Caught => continue,
                        Verdict::Survived => "survived",
                        Verdict::Unreached => "no test comes by",
                    };
                    println!("{how}: {} (line {}) {}", number, mutant.line, mutant.name());
                    survivors.lock().expect("no thread panics while it holds this").insert(*number);
                }
            });
        }
    });
    survivors.into_inner().expect("all threads have ended")
}

/// Prints the counts of each table and of all; says whether 95 % of those are caught that can change something.
fn report(chosen: &[(u32, &Mutant)], survivors: &BTreeSet<u32>, listed: &Listed) -> bool {
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (number, mutant) in chosen {
        let (lives, is_listed) = (survivors.contains(number), listed.numbers.contains(number));
        if is_listed && !lives {
            println!("stale: a test catches {}", mutant.name());
        }
        for key in [mutant.file, "all tables"] {
            let count = counts.entry(key).or_default();
            count[0] += 1;
            count[1] += usize::from(!lives);
            count[2] += usize::from(lives && is_listed);
        }
    }
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    println!(
        "{:44} {:>7} {:>6} {:>10} {:>6} {:>14}",
        "table", "mutants", "caught", "equivalent", "of all", "of the others"
    );
    for (file, [all, caught, equivalent]) in &counts {
        let of_others = percent(*caught, all - equivalent);
        println!(
            "{file:44} {all:7} {caught:6} {equivalent:10} {:5.1}% {of_others:13.1}%",
            percent(*caught, *all)
        );
    }
    listed.unknown.iter().for_each(|line| println!("stale: no such mutant: {line}"));
    let [all, caught, equivalent] = counts.get("all tables").copied().unwrap_or_default();
    caught * 100 >= (all - equivalent) * 95
}
