//! What one run does: the spec's defaults, changed by `--set` and by the options.
//!
//! Order of precedence, last wins: spec, `--set`, option.

use std::path::PathBuf;

use crate::abi::{ProgramInfo, RunInfo, SEED_KEYS};
use crate::args::{Args, did_you_mean, nearest, parse_count, parse_number};
use crate::data;
use crate::failure::Failure;
use crate::program::Program;
use crate::ranges;

/// When checkpoints are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saving {
    /// Every so many steps and at the end.
    Every(u64),
    /// At the end only.
    End,
    /// Not at all.
    Never,
}

/// Which checkpoint to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest valid one, if there is any.
    Auto,
    /// None.
    Never,
    /// The one of this step.
    Step(u64),
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The spec's `train` section with all changes applied.
    pub run: RunInfo,
    /// Run-time scalars in the order of [`ProgramInfo::scalars`]; the value of `step` is unused.
    pub scalars: Vec<f64>,
    /// Training ends after this many steps.
    pub stop_after: u64,
    /// When checkpoints are written.
    pub saving: Saving,
    /// Where training starts.
    pub resume: Resume,
    /// Number of threads.
    pub threads: usize,
    /// Keep threads on their CPUs.
    pub pin: bool,
    /// Weights to start from.
    pub init: Option<PathBuf>,
    /// Folder of checkpoints.
    pub checkpoints: PathBuf,
    /// Metrics file.
    pub metrics: PathBuf,
}

impl Settings {
    /// Works out the settings.
    ///
    /// # Errors
    /// Exit code 2: an unknown key, a key that is fixed at build time, or an ill-formed value.
    pub fn new(program: &Program, args: &Args) -> Result<Settings, Failure> {
        let info = &program.info;
        let mut run = info.run.clone();
        let mut scalars: Vec<f64> = info.scalars.iter().map(|s| s.default).collect();
        for (key, value) in args.sets()? {
            set(info, &mut run, &mut scalars, key, value)?;
        }
        apply_options(info, args, &mut run);
        write_seed(info, run.seed, &mut scalars);
        let out = PathBuf::from(args.text("out").unwrap_or("."));
        Ok(Settings {
            stop_after: args.count("steps").unwrap_or(run.steps),
            saving: saving(args, &run)?,
            resume: resume(args)?,
            threads: threads(args)?,
            pin: args.flag("pin"),
            init: args.text("init").map(PathBuf::from),
            checkpoints: out.join(&run.checkpoint_dir),
            metrics: args.text("metrics").map_or_else(|| out.join("metrics.jsonl"), PathBuf::from),
            run,
            scalars,
        })
    }
}

impl Settings {
    /// The value of a run-time scalar of the program, if it has it.
    pub fn scalar(&self, info: &ProgramInfo, key: &str) -> Option<f64> {
        let at = info.scalars.iter().position(|s| s.key == key)?;
        self.scalars.get(at).copied()
    }
}

/// A run-time key of the runtime itself.
enum Key {
    Count(fn(&mut RunInfo) -> &mut u64),
    Folder,
    Data,
    EvalData,
}

/// The keys of the `train` section that the runtime obeys. Constants of the optimizer and the schedule are scalars of the
/// program instead.
const KEYS: &[(&str, Key)] = &[
    ("train.steps", Key::Count(|r| &mut r.steps)),
    ("train.seed", Key::Count(|r| &mut r.seed)),
    ("train.data", Key::Data),
    ("train.eval.data", Key::EvalData),
    ("train.eval.every", Key::Count(|r| &mut r.eval_every)),
    ("train.eval.batches", Key::Count(|r| &mut r.eval_batches)),
    ("train.checkpoint.every", Key::Count(|r| &mut r.checkpoint_every)),
    ("train.checkpoint.keep", Key::Count(|r| &mut r.checkpoint_keep)),
    ("train.checkpoint.keep_every", Key::Count(|r| &mut r.checkpoint_keep_every)),
    ("train.checkpoint.dir", Key::Folder),
    ("train.log.every", Key::Count(|r| &mut r.log_every)),
];

/// All keys that change without a rebuild, with their present values, sorted.
pub fn run_time_keys(info: &ProgramInfo, settings: &Settings) -> Vec<(String, String)> {
    let mut run = settings.run.clone();
    let source =
        |data: &Option<crate::abi::DataInfo>| data.as_ref().map_or("none".to_owned(), data::describe);
    let mut keys: Vec<(String, String)> = KEYS
        .iter()
        .map(|(key, kind)| {
            let value = match kind {
                Key::Count(field) => field(&mut run).to_string(),
                Key::Folder => run.checkpoint_dir.clone(),
                Key::Data => source(&run.data),
                Key::EvalData => source(&run.eval_data),
            };
            ((*key).to_owned(), value)
        })
        .collect();
    for (scalar, value) in info.scalars.iter().zip(&settings.scalars) {
        if !scalar.is_own() && !KEYS.iter().any(|(key, _)| *key == scalar.key) {
            keys.push((scalar.key.clone(), value.to_string()));
        }
    }
    keys.sort();
    keys
}

fn set(
    info: &ProgramInfo,
    run: &mut RunInfo,
    scalars: &mut [f64],
    key: &str,
    value: &str,
) -> Result<(), Failure> {
    let own = KEYS.iter().find(|(k, _)| *k == key).map(|(_, kind)| kind);
    let scalar = info.scalars.iter().position(|s| s.key == key && !s.is_own());
    if own.is_none() && scalar.is_none() {
        return Err(unknown_key(info, key, value));
    }
    if let Some(kind) = own {
        set_own(info, run, kind, key, value)?;
    }
    if let Some(index) = scalar {
        let takes = |what| Failure::usage(format!("error: {key} takes {what}, not {value}"));
        let number = parse_number(value).ok_or_else(|| takes("a number"))?;
        ranges::outside(key, number).map_or(Ok(()), |what| Err(takes(what)))?;
        scalars[index] = number;
    }
    Ok(())
}

fn set_own(info: &ProgramInfo, run: &mut RunInfo, kind: &Key, key: &str, value: &str) -> Result<(), Failure> {
    match kind {
        Key::Count(field) => {
            *field(run) = parse_count(value)
                .ok_or_else(|| Failure::usage(format!("error: {key} takes a whole number, not {value}")))?;
        }
        Key::Folder => run.checkpoint_dir = value.to_owned(),
        Key::Data => run.data = Some(data::parse(value, info.run.data.as_ref(), info.vocab)),
        Key::EvalData => run.eval_data = Some(data::parse(value, info.run.eval_data.as_ref(), info.vocab)),
    }
    Ok(())
}

/// The answer to a key that cannot be set: how to rebuild when it is fixed at build time, else the nearest key.
fn unknown_key(info: &ProgramInfo, key: &str, value: &str) -> Failure {
    if let Some((_, now)) = info.baked.iter().find(|(k, _)| k == key) {
        return Failure::usage(format!(
            "error: {key} is fixed at build time: {now}\nTo change it, build again:\n  {} --set {key}={value}",
            info.rebuild
        ));
    }
    let scalars = info.scalars.iter().filter(|s| !s.is_own()).map(|s| s.key.as_str());
    let baked = info.baked.iter().map(|(k, _)| k.as_str());
    let known: Vec<&str> = KEYS.iter().map(|(k, _)| *k).chain(scalars).chain(baked).collect();
    Failure::usage(format!(
        "error: unknown key: {key}{}\n`info` lists the keys.",
        did_you_mean(nearest(key, &known), "")
    ))
}

fn apply_options(info: &ProgramInfo, args: &Args, run: &mut RunInfo) {
    if let Some(source) = args.text("data") {
        run.data = Some(data::parse(source, info.run.data.as_ref(), info.vocab));
    }
    if let Some(source) = args.text("eval-data") {
        run.eval_data = Some(data::parse(source, info.run.eval_data.as_ref(), info.vocab));
    }
    for (option, field) in [
        ("seed", (|r| &mut r.seed) as fn(&mut RunInfo) -> &mut u64),
        ("log-every", |r| &mut r.log_every),
        ("eval-every", |r| &mut r.eval_every),
    ] {
        if let Some(value) = args.count(option) {
            *field(run) = value;
        }
    }
}

/// The seed in the two scalars of a program that draws random numbers.
fn write_seed(info: &ProgramInfo, seed: u64, scalars: &mut [f64]) {
    for (scalar, value) in info.scalars.iter().zip(scalars) {
        if let Some(half) = SEED_KEYS.iter().position(|key| *key == scalar.key) {
            *value = f64::from((seed >> (32 * half)) as u32);
        }
    }
}

fn saving(args: &Args, run: &RunInfo) -> Result<Saving, Failure> {
    let every = |n| if n == 0 { Saving::End } else { Saving::Every(n) };
    match args.text("checkpoint-every") {
        None => Ok(every(run.checkpoint_every)),
        Some("end") => Ok(Saving::End),
        Some("never") => Ok(Saving::Never),
        Some(text) => parse_count(text).map(every).ok_or_else(|| {
            Failure::usage(format!(
                "error: --checkpoint-every takes a whole number, `end` or `never`, not {text}"
            ))
        }),
    }
}

fn resume(args: &Args) -> Result<Resume, Failure> {
    let (text, takes) = match (args.text("resume"), args.text("checkpoint")) {
        (Some("never"), _) => return Ok(Resume::Never),
        (None | Some("auto"), None | Some("auto")) => return Ok(Resume::Auto),
        (Some(text), _) => (text, "--resume takes `auto`, `never` or a step"),
        (None, Some(text)) => (text, "--checkpoint takes `auto` or a step"),
    };
    let step = parse_count(text).map(Resume::Step);
    step.ok_or_else(|| Failure::usage(format!("error: {takes}, not {text}")))
}

/// `--threads`, else MLC_THREADS, else all CPUs this process may use.
fn threads(args: &Args) -> Result<usize, Failure> {
    let (origin, asked) =
        match (args.count("threads"), std::env::var("MLC_THREADS")) {
            (Some(count), _) => ("--threads", Some(count)),
            (None, Ok(text)) if !text.is_empty() => {
                let count = parse_count(&text);
                (
                    "MLC_THREADS",
                    Some(count.ok_or_else(|| {
                        Failure::usage(format!("error: MLC_THREADS is not a number: {text}"))
                    })?),
                )
            }
            _ => ("", None),
        };
    match asked {
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        Some(count @ 1..=4096) => Ok(count as usize),
        Some(count) => {
            Err(Failure::usage(format!("error: {origin} must lie between 1 and 4096, not {count}")))
        }
    }
}
