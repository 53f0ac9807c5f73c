//! Texts that are nearly specs and nearly graphs: whatever comes in, the front end answers with a result or with errors that
//! have a place, never with a panic, within a second and 256 MiB.
//!
//! `make fuzz` runs this for minutes: `MLC_FUZZ_SECONDS` sets the time, `MLC_FUZZ_SEED` the first seed. A text that gets a
//! combination of codes not seen before joins the corpus in `tests/fuzz/corpus/NAME.txt`; one that fails is made small and
//! lies in `tests/fuzz/failures/` with the command that runs it again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mlc::graph;
use mlc::pipeline::{CompileError, Runner, graphs};
use mlc::spec::{Diagnostic, MemoryLoader, SourceMap, check, diagnostic, expand, parse, print};
use mlc_tests::harness::root;
use mlc_tests::mutate_text::{minimised, mutated};
use mlc_tests::random_graph::{Random, sample};

/// Stands between two texts of a corpus file.
const BETWEEN: &str = "\n%%%%\n";
const SECONDS_MAX: f64 = 1.0;
const BYTES_MAX: usize = 256 << 20;

/// Counts what this thread holds and its peak.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is handed to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller of this function promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller of this function promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: as the caller of this function promises.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Processor time of this thread: what others do to the machine is no hang of ours.
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists and `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// What came of one text: the codes it got, in one string.
type Outcome = Result<String, String>;

fn within_limits(text: &str, run: fn(&str) -> Outcome) -> Outcome {
    HELD.set(0);
    PEAK.set(0);
    let start = thread_seconds();
    let outcome = catch_unwind(AssertUnwindSafe(|| run(text)));
    let (seconds, bytes) = (thread_seconds() - start, PEAK.get().max(0) as usize);
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(format!(
            "panicked: {}",
            text.or(panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
        ))
    })?;
    if seconds > SECONDS_MAX {
        return Err(format!("took {seconds:.2} s of processor time, allowed {SECONDS_MAX}"));
    }
    if bytes > BYTES_MAX {
        return Err(format!("held {bytes} bytes, allowed {BYTES_MAX}"));
    }
    Ok(outcome)
}

fn loader(text: &str) -> MemoryLoader {
    let llama = include_str!("../../specs/llama.spec");
    let files = [("fuzz.spec", text), ("llama.spec", llama), ("../../../specs/llama.spec", llama)];
    MemoryLoader { files: files.map(|(name, text)| (name.to_string(), text.to_string())).to_vec() }
}

/// What was said, without what the text at hand brought in: the codes, and the first title less its names and numbers.
fn codes(messages: &[Diagnostic]) -> String {
    let ids: BTreeSet<&str> = messages.iter().map(|m| m.code.id).collect();
    let title = messages.first().map_or("", |m| m.title.as_str());
    format!("{} {}", ids.into_iter().collect::<Vec<_>>().join(" "), shape(title))
}

/// A message without its names and numbers.
fn shape(message: &str) -> String {
    let outside = message.split('`').step_by(2).collect::<String>();
    outside.chars().filter(|c| !c.is_ascii_digit()).take(60).collect()
}

/// A spec through the whole front end and on to its graphs.
fn spec(text: &str) -> Outcome {
    canonical(text)?;
    let mut sources = SourceMap::new();
    match check(&mut sources, &loader(text), "fuzz.spec", &[]) {
        Err(messages) => {
            drawn(&messages, &sources)?;
            Ok(codes(&messages))
        }
        Ok((checked, notes)) => {
            drawn(&notes, &sources)?;
            expands_to_itself(text)?;
            match graphs(&checked, &sources, &mut Runner::default()) {
                Ok(_) => Ok(format!("graphs {}", codes(&notes))),
                Err(CompileError::Spec(messages)) => Ok(format!("refused {}", codes(&messages))),
                Err(error) => Err(format!("{error:?}")),
            }
        }
    }
}

/// What parses prints to a text that parses and prints to itself.
fn canonical(text: &str) -> Result<(), String> {
    let print = |text: &str| {
        let mut sources = SourceMap::new();
        let id = sources.add("fuzz.spec", text);
        parse::parse(&sources, id).map(|file| print::print(&file, text))
    };
    let Ok(once) = print(text) else { return Ok(()) };
    match print(&once) {
        Ok(twice) if twice == once => Ok(()),
        Ok(twice) => Err(format!("printing is not stable:\n{once}\n---\n{twice}")),
        Err(errors) => Err(format!("the printed text does not parse ({}):\n{once}", codes(&errors))),
    }
}

fn drawn(messages: &[Diagnostic], sources: &SourceMap) -> Result<(), String> {
    for message in messages {
        message.to_json(sources);
        if message.title.is_empty()
            || (message.is_error() && message.primary.is_none() && message.title.len() < 10)
        {
            return Err(format!("a message says nothing: {message:?}"));
        }
    }
    diagnostic::render_all(messages, sources, false);
    Ok(())
}

/// The full text of a spec that checks must check too, and expand to itself but for the lines it names as origins.
fn expands_to_itself(text: &str) -> Result<(), String> {
    let full = expand::expand(&mut SourceMap::new(), &loader(text), "fuzz.spec", &[])
        .map_err(|errors| format!("checks, but does not expand: {}", codes(&errors)))?;
    match check(&mut SourceMap::new(), &loader(&full), "fuzz.spec", &[]) {
        Ok(_) => Ok(()),
        Err(errors) => Err(format!(
            "the expanded text does not check ({}: {}):\n{full}",
            codes(&errors),
            errors[0].title
        )),
    }
}

/// A graph's text: parsed, verified, printed.
fn graph_text(text: &str) -> Outcome {
    match graph::parse::parse(text) {
        Err(error) => Ok(shape(&error.to_string())),
        Ok(parsed) => {
            let printed = graph::print::print(&parsed);
            match graph::parse::parse(&printed) {
                Ok(again) if graph::print::print(&again) == printed => {}
                other => return Err(format!("printing is not stable ({:?}):\n{printed}", other.err())),
            }
            let sound = graph::verify::verify(&parsed, graph::verify::Stage::Graph);
            Ok(sound.map_or_else(
                |e| e.to_string().split_whitespace().skip(1).take(3).collect(),
                |()| "sound".into(),
            ))
        }
    }
}

/// One kind of text with its corpus.
struct Target {
    name: &'static str,
    ending: &'static str,
    run: fn(&str) -> Outcome,
}

const SPEC: Target = Target { name: "spec", ending: "spec", run: spec };
const GRAPH: Target = Target { name: "graph", ending: "graph", run: graph_text };

impl Target {
    /// The texts that earlier runs kept, one behind the other.
    fn kept(&self) -> PathBuf {
        root().join("tests/fuzz/corpus").join(format!("{}.txt", self.name))
    }

    fn corpus(&self) -> Vec<String> {
        let mut texts: Vec<String> = match self.name {
            "spec" => {
                let page =
                    std::fs::read_to_string(root().join("docs/spec-language.md")).expect("the page is there");
                let examples = page.split("\n```").filter(|part| part.starts_with("spec"));
                let examples =
                    examples.filter_map(|part| part.split_once('\n')).map(|(tag, text)| whole(tag, text));
                let files = spec_files(&root().join("specs"))
                    .into_iter()
                    .chain(spec_files(&root().join("tests/models")));
                examples.chain(files).collect()
            }
            _ => (1..20).map(|seed| graph::print::print(&sample(seed).graph)).collect(),
        };
        let kept = std::fs::read_to_string(self.kept()).unwrap_or_default();
        texts.extend(kept.split(BETWEEN).filter(|text| !text.is_empty()).map(str::to_string));
        texts
    }
}

/// An example of the language's page as a file: those marked `model` or `run` stand inside one.
fn whole(tag: &str, text: &str) -> String {
    match tag.trim() {
        "spec model" => {
            let loss = if text.contains("loss ") { "" } else { "\nloss mean[b, n](x)" };
            format!(
                "spec 1\nmodel M {{\nsize b = 4, n = 8, m = 6\ninput x[b, n]\ninput y[b, m]\n{text}{loss}\n}}\n"
            )
        }
        "spec run" => format!("spec 1\nuse \"llama.spec\" as Llama with {{ layers = 32 }}\n{text}"),
        _ => text.to_string(),
    }
}

/// Texts of all files below a folder, in the order of their paths.
fn spec_files(folder: &Path) -> Vec<String> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let of = |path: PathBuf| match path.is_dir() {
        true => spec_files(&path),
        false if path.extension().is_some_and(|e| e == "snap") => Vec::new(),
        false => std::fs::read_to_string(&path).into_iter().collect(),
    };
    entries.into_iter().flat_map(of).collect()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs texts until the time is over or one fails. A plain test run is short and always the same.
fn fuzz(target: &Target) {
    if let Ok(path) = std::env::var("MLC_FUZZ_REPLAY") {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        if path.ends_with(target.ending) {
            within_limits(&text, target.run).unwrap_or_else(|why| panic!("{path}: {why}"));
        }
        return;
    }
    let mut corpus = target.corpus();
    let mut seen = BTreeSet::new();
    for text in &corpus {
        seen.insert(within_limits(text, target.run).unwrap_or_else(|why| fail(target, text, &why)));
    }
    let seconds = number("MLC_FUZZ_SECONDS");
    let (start, first) = (Instant::now(), number("MLC_FUZZ_SEED").unwrap_or(1));
    let (mut seed, mut added) = (first, 0);
    let kept = root().join("tests/fuzz/failures").join(format!("running.{}", target.ending));
    while seconds.map_or(seed < first + 400, |s| start.elapsed() < Duration::from_secs(s)) {
        let mut random = Random::new(seed);
        seed += 1;
        let text = mutated(&corpus[random.below(corpus.len())].clone(), &corpus, &mut random);
        if seconds.is_some() {
            // If the stack overflows there is nobody left to tell which text it was.
            std::fs::create_dir_all(kept.parent().expect("it has a folder")).expect("the folder can be made");
            std::fs::write(&kept, &text).expect("the text can be written");
        }
        match within_limits(&text, target.run) {
            Err(why) => fail(target, &text, &why),
            Ok(outcome) if seen.insert(outcome.clone()) && text.len() < 4000 => {
                added += 1;
                if seconds.is_some() {
                    keep(
                        target,
                        &minimised(&text, 200, |t| within_limits(t, target.run).as_ref() == Ok(&outcome)),
                    );
                }
                corpus.push(text);
            }
            Ok(_) => {}
        }
    }
    if seconds.is_some() {
        let _ = std::fs::remove_file(&kept);
    }
    println!(
        "{}: {} texts from seed {first} in {:.0} s, {added} with new outcomes",
        target.name,
        seed - first,
        start.elapsed().as_secs_f64()
    );
}

fn keep(target: &Target, text: &str) {
    let path = target.kept();
    let write = || {
        std::fs::create_dir_all(path.parent().expect("it has a folder"))?;
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)?
            .write_all(format!("{text}{BETWEEN}").as_bytes())
    };
    write().expect("the corpus can be written");
}

fn fail(target: &Target, text: &str, why: &str) -> ! {
    // What kind of failure it is stands before the first colon; another kind would be another bug.
    let kind = |why: &str| why.split([':', '(']).next().unwrap_or_default().to_string();
    let small =
        minimised(text, 4000, |t| within_limits(t, target.run).is_err_and(|other| kind(&other) == kind(why)));
    let folder = root().join("tests/fuzz/failures");
    std::fs::create_dir_all(&folder).expect("the folder of failures can be written");
    let path = folder.join(format!("{}.{}", &blake3::hash(small.as_bytes()).to_hex()[..12], target.ending));
    std::fs::write(&path, &small).expect("the failure can be written");
    let path = path.display();
    panic!(
        "{why}\n--- the smallest text that fails so:\n{small}\n--- again: MLC_FUZZ_REPLAY={path} cargo test -p mlc-tests --test fuzz_front_end"
    );
}

#[test]
fn specs_of_any_text_get_an_answer() {
    fuzz(&SPEC);
}

#[test]
fn graphs_of_any_text_get_an_answer() {
    fuzz(&GRAPH);
}
