//! The tests that judge mutants: those of the compiler's rooms, and those that compare whole graphs and models.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::copy::cargo;
use super::tables::Mutant;

/// Test files of `mlc-tests` that compare the results of whole graphs with something independent, each with what the names
/// of their tests hold (nothing: all). Tests that build binaries and train them are left out: each takes longer than all of
/// these together, and computes by the same tables.
const COMPARISONS: &[(&str, &[&str])] = &[
    ("random_graphs", &[]),
    ("random_programs", &[]),
    ("random_specs", &["accumulated", "recognised", "programs"]),
    ("interpreter_parity", &[]),
    ("model_programs", &[]),
    ("optimizers", &["in_f64"]),
];

/// Smaller rounds of the random comparisons than the suite's own: a mutant has to survive every one of them.
const ENVIRONMENT: &[(&str, &str)] = &[("MLC_FUZZ_GRAPHS", "40"), ("INSTA_UPDATE", "no")];

/// Tests that take less than this together share a process.
const SECONDS_TOGETHER: f64 = 0.3;

/// Most memory of a test, in KiB: a wrong size may ask for more than the machine has.
const KIB_MAX: &str = "6000000";

/// What a test did without a mutant.
#[derive(Clone, Serialize, Deserialize)]
struct Profile {
    seconds: f64,
    /// The places it came by.
    places: BTreeSet<u32>,
}

/// One test.
struct Test {
    executable: PathBuf,
    folder: PathBuf,
    name: String,
    profile: Profile,
}

/// All tests that come by some place.
pub struct Suite {
    tests: Vec<Test>,
    target: PathBuf,
    /// How many mutants of a table each test has caught.
    catches: Mutex<BTreeMap<(&'static str, usize), usize>>,
    /// Tests that fail without a mutant, and so can't judge any.
    pub failing: Vec<String>,
}

/// What the tests say of a mutant.
pub enum Verdict {
    /// A test failed, crashed or hung.
    Caught,
    /// All passed.
    Survived,
    /// No test evaluates its place.
    Unreached,
}

impl Suite {
    /// Builds the tests of the copy and runs each alone to see where it comes by. Known profiles are kept beside the copy by
    /// the hash of their executable. `rooms`: the compiler's own tests alone.
    ///
    /// # Panics
    /// A test does not build.
    pub fn build(copy: &Path, target: &Path, rooms: bool, jobs: usize) -> Suite {
        let (mut tests, mut failing) = (Vec::new(), Vec::new());
        for (executable, folder, filters) in executables(copy, target, rooms) {
            for (name, profile) in profiles(&executable, &folder, filters, copy, target, jobs) {
                let (executable, folder) = (executable.clone(), folder.clone());
                match profile {
                    None => failing.push(name),
                    Some(profile) if profile.places.is_empty() => {}
                    Some(profile) => tests.push(Test { executable, folder, name, profile }),
                }
            }
        }
        let seconds: f64 = tests.iter().map(|t| t.profile.seconds).sum();
        eprintln!("mutate: {} tests come by a table, {seconds:.0} s together", tests.len());
        Suite { tests, target: target.into(), catches: Mutex::new(BTreeMap::new()), failing }
    }

    /// Shows a mutant to the tests that come by its place, the quickest and most successful first.
    pub fn judge(&self, number: u32, mutant: &Mutant) -> Verdict {
        let mut order: Vec<usize> =
            (0..self.tests.len()).filter(|t| self.tests[*t].profile.places.contains(&mutant.place)).collect();
        if order.is_empty() {
            return Verdict::Unreached;
        }
        let catches = self.catches.lock().expect("no thread panics while it holds this").clone();
        let cost = |t: &usize| {
            self.tests[*t].profile.seconds / (1 + catches.get(&(mutant.file, *t)).unwrap_or(&0)) as f64
        };
        order.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.cmp(b)));
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let n = self.together(rest);
            if let Some(name) = self.failing(&rest[..n], number) {
                let by = rest.iter().find(|t| self.tests[**t].name == name).unwrap_or(first);
                let mut catches = self.catches.lock().expect("no thread panics while it holds this");
                *catches.entry((mutant.file, *by)).or_default() += 1;
                return Verdict::Caught;
            }
            rest = &rest[n..];
        }
        Verdict::Survived
    }

    /// How many of these share the first one's process.
    fn together(&self, rest: &[usize]) -> usize {
        let mut seconds = 0.0;
        let fits = |t: &&usize| {
            let test = &self.tests[**t];
            seconds += test.profile.seconds;
            seconds < SECONDS_TOGETHER && test.executable == self.tests[rest[0]].executable
        };
        rest.iter().take_while(fits).count().max(1)
    }

    /// The name of the first of these tests that fails, crashes or hangs, in the order in which their process runs them.
    fn failing(&self, together: &[usize], mutant: u32) -> Option<String> {
        let first = &self.tests[together[0]];
        let seconds: f64 = together.iter().map(|t| self.tests[*t].profile.seconds).sum();
        let limit = Duration::from_secs_f64(20.0 + 20.0 * seconds);
        let mut command = command(&first.executable, &first.folder, &self.target);
        command.args(together.iter().map(|t| &self.tests[*t].name)).env("MLC_MUTANT", mutant.to_string());
        first_failure(command, limit)
    }
}

/// A test executable in its package's folder, its process the head of a group.
fn command(executable: &Path, folder: &Path, target: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {KIB_MAX}; exec \"$0\" \"$@\"")]).arg(executable);
    command.args(["--exact", "--test-threads", "1"]).current_dir(folder).process_group(0);
    command
        .envs(ENVIRONMENT.iter().copied())
        .env("CARGO_MANIFEST_DIR", folder)
        .env("CARGO_TARGET_DIR", target);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Runs tests until one fails; gives its name, empty if the process ended before any test began.
fn first_failure(mut command: Command, limit: Duration) -> Option<String> {
    let mut child = command.spawn().expect("the tests start");
    let out = BufReader::new(child.stdout.take().expect("it is piped"));
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || out.split(b'\n').map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let start = Instant::now();
    let mut last = String::new();
    loop {
        match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).into_owned();
                let Some(test) = line.strip_prefix("test ") else { continue };
                last = test.split(" ... ").next().unwrap_or_default().to_string();
                if line.ends_with("FAILED") {
                    end(&mut child);
                    return Some(last);
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                end(&mut child);
                return Some(last);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = child.wait().expect("the tests can be waited for");
                return (!status.success()).then_some(last);
            }
        }
    }
}

/// Ends a process with all it started.
fn end(child: &mut std::process::Child) {
    // The processes may have ended by themselves just now; either way they are gone afterwards.
    let _ = Command::new("kill")
        .args(["-KILL", "--", &format!("-{}", child.id())])
        .stderr(Stdio::null())
        .status();
    let _ = child.wait();
}

/// The test executables, each with its package's folder and what the names of its tests hold, the compiler's own first.
fn executables(copy: &Path, target: &Path, rooms: bool) -> Vec<(PathBuf, PathBuf, &'static [&'static str])> {
    let comparisons = if rooms { &[] } else { COMPARISONS };
    // Both packages even for one: what they ask of their dependencies together is built once.
    let mut arguments = vec!["test", "--no-run", "-p", "mlc", "-p", "mlc-tests", "--lib"];
    arguments.extend(comparisons.iter().flat_map(|(name, _)| ["--test", name]));
    let output = cargo(copy, target, &arguments).stderr(Stdio::inherit()).output().expect("cargo starts");
    assert!(output.status.success(), "the tests do not build");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let named = |(name, filters): &(&str, &'static [&'static str])| {
        let is = |m: &&Value| m["profile"]["test"] == true && m["target"]["name"] == *name;
        let path = messages.iter().find(is).and_then(|m| m["executable"].as_str());
        let folder = if *name == "mlc" { "compiler" } else { "tests" };
        (PathBuf::from(path.expect("cargo names the executables it built")), copy.join(folder), *filters)
    };
    let library: (&str, &[&str]) = ("mlc", &[]);
    std::iter::once(&library).chain(comparisons).map(named).collect()
}

/// What every test of an executable does without a mutant; nothing of one that fails.
fn profiles(
    executable: &Path,
    folder: &Path,
    filters: &[&str],
    copy: &Path,
    target: &Path,
    jobs: usize,
) -> BTreeMap<String, Option<Profile>> {
    let bytes = std::fs::read(executable).expect("cargo built it");
    let kept = copy.join(format!("profile-{}.json", &blake3::hash(&bytes).to_hex()[..16]));
    if let Some(known) = std::fs::read_to_string(&kept).ok().and_then(|text| serde_json::from_str(&text).ok())
    {
        return known;
    }
    let list =
        Command::new(executable).args(["--list", "--format", "terse"]).output().expect("the tests start");
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let asked = |name: &&str| filters.is_empty() || filters.iter().any(|part| name.contains(part));
    let names: Vec<&str> =
        list.lines().filter_map(|line| line.strip_suffix(": test")).filter(asked).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let profile = profile(executable, folder, target, name);
                    found
                        .lock()
                        .expect("no thread panics while it holds this")
                        .insert(name.to_string(), profile);
                }
            });
        }
    });
    let found = found.into_inner().expect("all threads have ended");
    std::fs::write(kept, serde_json::json!(found).to_string()).expect("the copy can be written");
    found
}

/// Runs one test without a mutant; nothing if it fails.
fn profile(executable: &Path, folder: &Path, target: &Path, name: &str) -> Option<Profile> {
    let thread = format!("{:?}", std::thread::current().id());
    let trace = std::env::temp_dir().join(format!("mlc-mutate-{}-{thread}", std::process::id()));
    let mut command = command(executable, folder, target);
    command.arg(name).env("MLC_MUTANT_PLACES", &trace);
    let start = Instant::now();
    let failure = first_failure(command, Duration::from_secs(600));
    let seconds = start.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(&trace).unwrap_or_default();
    // A test that comes by no place leaves no file.
    let _ = std::fs::remove_file(&trace);
    let places = text.lines().filter_map(|line| line.parse().ok()).collect();
    failure.is_none().then_some(Profile { seconds, places })
}
