//! Mutation testing of rule tables: every small change of a rule must make some test fail.
//!
//! All mutants of a run are compiled at once (mutant schemata; Untch, Offutt, Harrold 1993): in a copy of the sources each place that
//! can be changed becomes a `match` on the number of the active mutant, which the environment variable `MLC_MUTANT` gives.
//! So a mutant costs a run of the tests and no build. Mutants that don't type-check are taken out where the compiler points.
//!
//! ```text
//! cargo run -p mlc-tests --bin mutate -- [--list] [--only PART-OF-A-PATH] [--jobs N] [--every N]
//! ```
//! Prints a line for each survivor and the share that was caught.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The rule tables, and the tests of their room, which run first.
const TABLES: &[(&str, &[&str])] = &[
    ("compiler/src/autodiff/rules.rs", &["autodiff::"]),
    ("compiler/src/autodiff/composites.rs", &["autodiff::"]),
    ("compiler/src/autodiff/attention.rs", &["autodiff::"]),
    ("compiler/src/autodiff/loops.rs", &["autodiff::"]),
    ("compiler/src/autodiff/optimizer.rs", &["autodiff::"]),
    ("compiler/src/autodiff/schedule.rs", &["autodiff::"]),
    ("compiler/src/graph/shape.rs", &["graph::"]),
    ("compiler/src/graph/composites.rs", &["graph::", "interpret::", "autodiff::"]),
    ("compiler/src/lower/scalar.rs", &["lower::"]),
    ("compiler/src/lower/gemm.rs", &["lower::"]),
    ("compiler/src/lower/attention.rs", &["lower::"]),
    ("compiler/src/lower/lookup.rs", &["lower::"]),
];

/// What compares random graphs: test files of `mlc-tests`, each with the tests that concern the rule tables.
const COMPARISONS: &[(&str, &[&str])] =
    &[("random_graphs", &[]), ("random_programs", &["programs_compute_what_their_graphs_mean"])];

/// A test run that takes longer than this hangs: the mutant is caught.
const SECONDS_MAX: u64 = 120;

/// Function of the sources' copy that gives the active mutant's number.
const ACTIVE: &str = "
#[doc(hidden)]
pub fn active_mutant() -> u32 {
    static ACTIVE: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *ACTIVE.get_or_init(|| std::env::var(\"MLC_MUTANT\").ok().and_then(|n| n.parse().ok()).unwrap_or(0))
}
";

/// Names of which one stands for another, in both directions.
const SWAPS: &[(&str, &str)] = &[
    ("add", "sub"),
    ("mul", "div"),
    ("any", "all"),
    ("min", "max"),
    ("first", "last"),
    ("is_some", "is_none"),
    ("is_ok", "is_err"),
    ("skip", "take"),
];

/// Variants that may be mistaken for each other, each for the next.
const VARIANTS: &[(&str, &[&str])] = &[
    (
        "UnaryOp",
        &["Neg", "Abs", "Exp", "Log", "Sqrt", "Rsqrt", "Tanh", "Sigmoid", "Sin", "Cos", "Erf", "Floor"],
    ),
    ("BinaryOp", &["Add", "Sub", "Mul", "Div", "Max", "Min"]),
    ("CompareOp", &["Lt", "Le", "Gt", "Ge", "Eq", "Ne"]),
    ("ReduceOp", &["Sum", "Max", "Min"]),
    ("Phase", &["Forward", "BackwardInput", "BackwardWeight", "Update"]),
];

/// A place with its other texts.
struct Place {
    start: usize,
    end: usize,
    line: usize,
    /// (text, what was changed) of each mutant.
    others: Vec<(String, String)>,
}

/// Finds the places of one file.
struct Finder<'a> {
    text: &'a str,
    places: Vec<Place>,
}

impl Finder<'_> {
    fn of(&self, node: &impl Spanned) -> &str {
        &self.text[node.span().byte_range()]
    }

    fn place(&mut self, node: &impl Spanned, others: Vec<(String, String)>) {
        let range = node.span().byte_range();
        let line = node.span().start().line;
        if !others.is_empty() {
            self.places.push(Place { start: range.start, end: range.end, line, others });
        }
    }

    fn binary(&mut self, e: &syn::ExprBinary) {
        use syn::BinOp::*;
        let new: &[&str] = match e.op {
            Add(_) => &["-"],
            Sub(_) => &["+"],
            Mul(_) => &["/"],
            Div(_) => &["*"],
            Rem(_) => &["/"],
            And(_) => &["||"],
            Or(_) => &["&&"],
            Eq(_) => &["!="],
            Ne(_) => &["=="],
            Lt(_) => &["<=", ">="],
            Le(_) => &["<", ">"],
            Gt(_) => &[">=", "<="],
            Ge(_) => &[">", "<"],
            _ => &[],
        };
        let (left, old, right) =
            (self.of(&e.left).to_string(), self.of(&e.op).to_string(), self.of(&e.right).to_string());
        let others =
            new.iter().map(|op| (format!("({left}) {op} ({right})"), format!("`{old}` → `{op}`"))).collect();
        self.place(e, others);
    }

    fn method(&mut self, e: &syn::ExprMethodCall) {
        let name = e.method.to_string();
        let swap = SWAPS.iter().find_map(|(a, b)| match () {
            () if *a == name => Some(*b),
            () if *b == name => Some(*a),
            () => None,
        });
        let text = self.of(e).to_string();
        if let Some(new) = swap {
            let at = e.method.span().byte_range().start - e.span().byte_range().start;
            let changed = format!("{}{new}{}", &text[..at], &text[at + name.len()..]);
            self.place(e, vec![(changed, format!("`.{name}` → `.{new}`"))]);
        } else if ["contains", "is_empty", "has", "contains_key", "same_as", "same_axes"]
            .contains(&name.as_str())
        {
            self.place(e, vec![(format!("!({text})"), format!("`.{name}` → not"))]);
        }
    }

    fn variant(&mut self, e: &syn::ExprPath) {
        let segments: Vec<String> = e.path.segments.iter().map(|s| s.ident.to_string()).collect();
        let [name, variant] = &segments[..] else { return };
        let Some((_, variants)) = VARIANTS.iter().find(|(n, _)| n == name) else { return };
        let Some(at) = variants.iter().position(|v| v == variant) else { return };
        let next = variants[(at + 1) % variants.len()];
        self.place(e, vec![(format!("{name}::{next}"), format!("`{variant}` → `{next}`"))]);
    }

    fn literal(&mut self, e: &syn::ExprLit) {
        let text = self.of(e).to_string();
        let others = match &e.lit {
            syn::Lit::Int(n) if n.suffix().is_empty() => match n.base10_parse::<u64>() {
                Ok(n) => vec![((n + 1).to_string(), format!("`{text}` → `{}`", n + 1))],
                Err(_) => vec![],
            },
            syn::Lit::Float(_) => vec![(format!("({text} + 1.0)"), format!("`{text}` → `{text} + 1`"))],
            syn::Lit::Bool(b) => vec![((!b.value).to_string(), format!("`{text}` → `{}`", !b.value))],
            _ => vec![],
        };
        self.place(e, others);
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_expr(&mut self, e: &'ast syn::Expr) {
        match e {
            syn::Expr::Binary(b) if !has_let(e) => self.binary(b),
            syn::Expr::Unary(u) if matches!(u.op, syn::UnOp::Not(_) | syn::UnOp::Neg(_)) => {
                let (inner, op) = (self.of(&u.expr).to_string(), self.of(&u.op).to_string());
                self.place(e, vec![(inner, format!("`{op}` → nothing"))]);
            }
            syn::Expr::MethodCall(m) => self.method(m),
            syn::Expr::Path(p) => self.variant(p),
            syn::Expr::Lit(l) => self.literal(l),
            syn::Expr::If(i) if !has_let(&i.cond) => {
                let condition = self.of(&i.cond).to_string();
                self.place(&*i.cond, vec![(format!("!({condition})"), "condition → not".into())]);
            }
            _ => {}
        }
        visit::visit_expr(self, e);
    }

    fn visit_stmt(&mut self, s: &'ast syn::Stmt) {
        if let syn::Stmt::Expr(e @ (syn::Expr::MethodCall(_) | syn::Expr::Assign(_)), Some(_)) = s {
            self.place(e, vec![("()".into(), "statement → nothing".into())]);
        }
        visit::visit_stmt(self, s);
    }

    fn visit_item_mod(&mut self, m: &'ast syn::ItemMod) {
        if !m.attrs.iter().any(|a| a.path().is_ident("cfg")) {
            visit::visit_item_mod(self, m);
        }
    }

    // Constants, patterns, types and attributes hold no code that runs.
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
}

/// Whether an expression holds a `let` of a condition, which can't stand in a `match`.
fn has_let(e: &syn::Expr) -> bool {
    struct Lets(bool);
    impl<'ast> Visit<'ast> for Lets {
        fn visit_expr_let(&mut self, _: &'ast syn::ExprLet) {
            self.0 = true;
        }
    }
    let mut lets = Lets(false);
    lets.visit_expr(e);
    lets.0
}

/// A mutant: where it is and what it changes.
#[derive(Clone)]
struct Mutant {
    file: &'static str,
    line: usize,
    what: String,
}

/// The places of a file, outer before inner.
fn places(text: &str) -> Vec<Place> {
    let file = syn::parse_file(text).expect("the sources parse");
    let mut finder = Finder { text, places: Vec::new() };
    finder.visit_file(&file);
    let mut places = finder.places;
    places.sort_by_key(|p| (p.start, std::cmp::Reverse(p.end)));
    // Two changes of one expression share a place.
    places.dedup_by(|b, a| {
        let same = (a.start, a.end) == (b.start, b.end);
        if same {
            a.others.append(&mut b.others);
        }
        same
    });
    places
}

/// The changed text with where each mutant's own text lies in it.
struct Changed {
    text: String,
    spans: Vec<(std::ops::Range<usize>, u32)>,
}

/// Writes `text[from..to]` with the places inside; `first` numbers their mutants.
fn write(
    text: &str,
    places: &[(u32, &Place)],
    dropped: &BTreeSet<u32>,
    from: usize,
    to: usize,
    out: &mut Changed,
) {
    let mut at = from;
    let mut rest = places;
    while let Some(((first, place), after)) = rest.split_first() {
        let inside = after.iter().take_while(|(_, p)| p.end <= place.end).count();
        out.text += &text[at..place.start];
        let begin = out.text.len();
        let kept: Vec<(u32, &String)> = place
            .others
            .iter()
            .enumerate()
            .map(|(i, (t, _))| (first + i as u32, t))
            .filter(|(n, _)| !dropped.contains(n))
            .collect();
        if !kept.is_empty() {
            out.text += "(match crate::active_mutant() { ";
            for (number, other) in &kept {
                let _ = write!(out.text, "{number} => {{ ");
                let start = out.text.len();
                out.text += other;
                out.spans.push((start..out.text.len(), *number));
                out.text += " } ";
            }
            out.text += "_ => { ";
        }
        write(text, &after[..inside], dropped, place.start, place.end, out);
        if !kept.is_empty() {
            out.text += " } })";
            // An error about the `match` as a whole is the fault of all its mutants.
            let end = out.text.len();
            out.spans.extend(kept.iter().map(|(number, _)| (begin..end, *number)));
        }
        at = place.end;
        rest = &after[inside..];
    }
    out.text += &text[at..to];
}

/// All tables with their places, numbered from 1.
struct Tables {
    texts: Vec<(&'static str, String, Vec<(u32, Place)>)>,
    mutants: BTreeMap<u32, Mutant>,
}

fn tables(root: &Path, only: &str) -> Tables {
    let mut next = 1;
    let mut mutants = BTreeMap::new();
    let mut texts = Vec::new();
    for (file, _) in TABLES.iter().filter(|(file, _)| file.contains(only)) {
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let mut numbered = Vec::new();
        for place in places(&text) {
            for (i, (_, what)) in place.others.iter().enumerate() {
                mutants.insert(next + i as u32, Mutant { file, line: place.line, what: what.clone() });
            }
            let first = next;
            next += place.others.len() as u32;
            numbered.push((first, place));
        }
        texts.push((*file, text, numbered));
    }
    Tables { texts, mutants }
}

/// The sources' copy, mutants in, those of `dropped` left out. Gives the changed files.
fn write_tables(tables: &Tables, dropped: &BTreeSet<u32>, copy: &Path) -> BTreeMap<String, Changed> {
    let mut files = BTreeMap::new();
    for (file, text, numbered) in &tables.texts {
        let places: Vec<(u32, &Place)> = numbered.iter().map(|(first, place)| (*first, place)).collect();
        let mut out = Changed { text: String::new(), spans: Vec::new() };
        write(text, &places, dropped, 0, text.len(), &mut out);
        std::fs::write(copy.join(file), &out.text).expect("the copy can be written");
        files.insert(file.to_string(), out);
    }
    files
}

/// Copies what git tracks, and makes the crate's active mutant known.
fn copy_sources(root: &Path, copy: &Path) {
    let list = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().expect("git runs");
    for path in String::from_utf8_lossy(&list.stdout).split('\0').filter(|p| !p.is_empty()) {
        let to = copy.join(path);
        std::fs::create_dir_all(to.parent().expect("files lie in folders")).expect("the copy can be made");
        if root.join(path).is_file() {
            std::fs::copy(root.join(path), to).expect("the copy can be made");
        }
    }
    let library = copy.join("compiler/src/lib.rs");
    let text = std::fs::read_to_string(&library).expect("the library is there");
    std::fs::write(&library, text + ACTIVE).expect("the copy can be written");
}

fn cargo(copy: &Path, target: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).current_dir(copy).env("CARGO_TARGET_DIR", target).env("RUSTFLAGS", "-Awarnings");
    command
}

/// The mutants that the compiler's errors point at.
fn faulty(copy: &Path, target: &Path, files: &BTreeMap<String, Changed>) -> BTreeSet<u32> {
    let arguments = ["check", "-p", "mlc", "--lib", "--no-default-features", "--message-format", "json"];
    let output = cargo(copy, target, &arguments).stderr(Stdio::null()).output().expect("cargo starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut faulty = BTreeSet::new();
    for line in text.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if message["message"]["level"] != "error" {
            continue;
        }
        let spans = message["message"]["spans"].as_array().cloned().unwrap_or_default();
        for span in spans {
            let Some(file) = span["file_name"].as_str().and_then(|f| files.get(f)) else { continue };
            let at = |key: &str| span[key].as_u64().unwrap_or(0) as usize;
            let (start, end) = (at("byte_start"), at("byte_end"));
            let touching = file.spans.iter().filter(|(range, _)| range.start < end && start < range.end);
            // The narrowest text around the error is the mutant at fault.
            let narrowest = touching.clone().map(|(range, _)| range.len()).min();
            faulty.extend(touching.filter(|(range, _)| Some(range.len()) == narrowest).map(|(_, n)| *n));
        }
    }
    assert!(
        output.status.success() || !faulty.is_empty(),
        "the copy does not compile, and no mutant is at fault:\n{text}"
    );
    faulty
}

/// A test executable with the tests to run.
struct Tests {
    path: PathBuf,
    filters: &'static [&'static str],
}

/// The library's tests first, then the comparisons.
fn executables(copy: &Path, target: &Path) -> Vec<Tests> {
    let build = |arguments: &[&str]| {
        let output = cargo(copy, target, arguments).stderr(Stdio::inherit()).output().expect("cargo starts");
        assert!(output.status.success(), "the tests do not build");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut found =
            text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter_map(|m| {
                let is_test = m["profile"]["test"] == true;
                is_test.then(|| m["executable"].as_str().map(PathBuf::from)).flatten()
            });
        found.next_back().expect("cargo names the test executable")
    };
    let library =
        ["test", "-p", "mlc", "--lib", "--no-default-features", "--no-run", "--message-format", "json"];
    let mut built = vec![Tests { path: build(&library), filters: &[] }];
    for (name, filters) in COMPARISONS {
        let arguments = ["test", "-p", "mlc-tests", "--test", name, "--no-run", "--message-format", "json"];
        built.push(Tests { path: build(&arguments), filters });
    }
    built
}

/// Runs one executable; false if a test failed, crashed or hung.
fn passes(copy: &Path, executable: &Path, mutant: u32, filters: &[&str]) -> bool {
    let comparison = COMPARISONS.iter().any(|(name, _)| executable.to_string_lossy().contains(name));
    let package = if comparison { "tests" } else { "compiler" };
    let mut child = Command::new(executable)
        .args(filters)
        .args(["--test-threads", "1", "-q"])
        .current_dir(copy.join(package))
        .env("MLC_MUTANT", mutant.to_string())
        .env("MLC_FUZZ_GRAPHS", "40")
        .env("INSTA_UPDATE", "no")
        .env("CARGO_MANIFEST_DIR", copy.join(package))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tests start");
    let start = Instant::now();
    loop {
        match child.try_wait().expect("the tests can be waited for") {
            Some(status) => return status.success(),
            None if start.elapsed() > Duration::from_secs(SECONDS_MAX) => {
                // It may have ended by itself just now; either way it is gone afterwards.
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether any test fails with this mutant: those of its room first.
fn caught(copy: &Path, executables: &[Tests], number: u32, mutant: &Mutant) -> bool {
    let room = TABLES.iter().find(|(file, _)| *file == mutant.file).map_or(&[][..], |(_, filters)| *filters);
    let library = &executables[0].path;
    !passes(copy, library, number, room)
        || !executables[1..].iter().all(|tests| passes(copy, &tests.path, number, tests.filters))
        || !passes(copy, library, number, &[])
}

fn option(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1).cloned())
}

fn main() -> ExitCode {
    let root = mlc_root();
    let only = option("--only").unwrap_or_default();
    let number = |name: &str, default: usize| option(name).map_or(default, |n| n.parse().expect("a number"));
    let tables = tables(&root, &only);
    if std::env::args().any(|a| a == "--list") {
        tables.mutants.iter().for_each(|(n, m)| println!("{n} {}:{} {}", m.file, m.line, m.what));
        return ExitCode::SUCCESS;
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let copy = target.join("mutation");
    copy_sources(&root, &copy);
    let mut dropped = BTreeSet::new();
    loop {
        let files = write_tables(&tables, &dropped, &copy);
        let more = faulty(&copy, &target, &files);
        if more.is_empty() {
            break;
        }
        eprintln!("mutate: {} mutants don't type-check", more.len());
        dropped.extend(more);
    }
    let executables = executables(&copy, &target);
    for tests in &executables {
        let path = tests.path.display();
        assert!(passes(&copy, &tests.path, 0, tests.filters), "{path} fails without a mutant");
    }
    let every = number("--every", 1);
    let chosen: Vec<(u32, Mutant)> =
        tables.mutants.clone().into_iter().filter(|(n, _)| !dropped.contains(n)).step_by(every).collect();
    let survivors = run_all(&copy, &executables, &chosen, number("--jobs", 2));
    for (number, mutant) in &survivors {
        println!("survived {number}: {}:{} {}", mutant.file, mutant.line, mutant.what);
    }
    let caught = chosen.len() - survivors.len();
    println!(
        "{caught} of {} mutants caught, {:.1} %",
        chosen.len(),
        100.0 * caught as f64 / chosen.len().max(1) as f64
    );
    if caught * 100 >= chosen.len() * 95 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The top of the checkout this was built in.
fn mlc_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Runs all mutants on `jobs` threads; the survivors in order.
fn run_all(copy: &Path, executables: &[Tests], chosen: &[(u32, Mutant)], jobs: usize) -> Vec<(u32, Mutant)> {
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((number, mutant)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !caught(copy, executables, *number, mutant) {
                        eprintln!(
                            "mutate: survived {number}: {}:{} {}",
                            mutant.file, mutant.line, mutant.what
                        );
                        survivors
                            .lock()
                            .expect("no thread panics while it holds this")
                            .push((*number, mutant.clone()));
                    }
                    let done = next.load(Ordering::Relaxed);
                    if done % 20 == 0 {
                        eprintln!("mutate: {done} of {}", chosen.len());
                    }
                }
            });
        }
    });
    let mut survivors = survivors.into_inner().expect("all threads have ended");
    survivors.sort_by_key(|(number, _)| *number);
    survivors
}
