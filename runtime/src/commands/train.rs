//! `train`: the whole run, from the newest checkpoint or from the start.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::eval::{Evaluation, evaluate};
use super::info::mesh;
use super::ranks::Job;
use super::skips::Skips;
use super::trace::Trace;
use super::{first_values, open_training_data, start_rank};
use crate::abi::EntryInfo;
use crate::args::Args;
use crate::checkpoint::load::{Loaded, load};
use crate::checkpoint::manifest::DataPosition;
use crate::checkpoint::save::{Record, save};
use crate::checkpoint::store::Store;
use crate::console::Console;
use crate::data::{Source, describe};
use crate::failure::{Exit, Failure};
use crate::metrics::jsonl::{self, MetricsFile, number};
use crate::metrics::line::{bytes, duration, si};
use crate::metrics::{Meter, StepRecord};
use crate::profile;
use crate::program::Program;
use crate::rank::Rank;
use crate::settings::{Resume, Saving, Settings, run_time_keys};
use crate::signals::Interrupts;
use crate::step::{Outcome, Pick, run_batch};
use crate::world::Pace;

/// Everything a training run holds.
struct Run<'p> {
    program: &'p Program,
    entry: &'p EntryInfo,
    entry_index: usize,
    settings: Settings,
    rank: Rank<'p>,
    source: Source,
    held_out: Option<(usize, Source)>,
    store: Option<Store>,
    meter: Meter,
    /// Step of the newest checkpoint known to be on disk.
    saved: Option<u64>,
    skips: Skips,
    trace: Option<Trace>,
    started: Instant,
    first_step: Option<Duration>,
}

/// Trains until the last step, or until asked to stop.
///
/// # Errors
/// See [`Exit`].
pub fn train(job: &Job, console: &mut Console) -> Result<Exit, Failure> {
    let (program, args, settings) = (job.program, job.args, job.settings()?);
    if job.world.options().pace == Pace::Absent && settings.saving != Saving::Never {
        let what = "without collectives ranks train apart, and what they save would mean nothing: --checkpoint-every never";
        return Err(Failure::usage(format!("error: {}=absent: {what}", Pace::VARIABLE)));
    }
    let (entry_index, entry) = program.require_entry("train")?;
    let source = open_training_data(program, &settings, entry.seq)?;
    let held_out = open_held_out(program, &settings)?;
    // Before the checkpoints of another history are set aside: a run that is refused changes nothing.
    if job.world.is_first() {
        jsonl::check(&settings.metrics)?;
    }
    let mut rank = start_rank(job, &settings, args.flag("profile"))?;
    let (store, begin) = begin(&mut rank, &settings, console)?;
    let mut file = match job.world.is_first() {
        true => Some(MetricsFile::open(&settings.metrics, begin)?),
        false => None,
    };
    announce(program, &settings, &source, begin, job.world.options().pace, console, file.as_mut());
    note_evaluation(args, &settings, console)?;
    let trace = Trace::of(args, begin, settings.stop_after)?;
    let mut run = Run {
        meter: Meter::new(settings.run.log_every, file),
        saved: (begin > 0 && store.is_some()).then_some(begin),
        first_step: None,
        skips: Skips::default(),
        trace,
        program,
        entry,
        entry_index,
        settings,
        rank,
        source,
        held_out,
        store,
        started: job.started,
    };
    let exit = run.steps(begin, console, job.stop)?;
    if args.flag("profile") {
        console.line(&profile::table(program, &run.rank.take_times()));
    }
    match run.meter.file().and_then(MetricsFile::take_failure) {
        Some(failure) => Err(failure),
        None => Ok(exit),
    }
}

impl Run<'_> {
    fn steps(&mut self, begin: u64, console: &mut Console, stop: &Interrupts) -> Result<Exit, Failure> {
        let end = self.settings.stop_after;
        if begin >= end {
            console.note(&format!("nothing to do: {begin} steps are done, --steps asks for {end}"));
            return Ok(Exit::Done);
        }
        for step in begin..end {
            self.step(step, begin, console)?;
            let done = step + 1;
            self.evaluate_if_due(done, console, stop)?;
            if let Some(signal) = stop.requested_of_any(self.rank.world())? {
                return self.preempted(done, signal, console);
            }
            if matches!(self.settings.saving, Saving::Every(every) if done.is_multiple_of(every)) {
                self.save(done)?;
            }
        }
        if self.settings.saving != Saving::Never {
            self.save(end)?;
        }
        console.note(&self.summary(begin, end));
        Ok(Exit::Done)
    }

    fn step(&mut self, step: u64, begin: u64, console: &mut Console) -> Result<(), Failure> {
        if let Some(trace) = &self.trace {
            trace.before(step, &mut self.rank)?;
        }
        let clock = Instant::now();
        let pick = Pick::Samples(step * self.entry.batch);
        let scalars = &self.settings.scalars;
        let outcome = run_batch(&mut self.rank, self.entry_index, &mut self.source, pick, scalars, step)?;
        let time = clock.elapsed();
        if let Some(note) = self.trace.as_ref().map_or(Ok(None), |trace| trace.after(step, &mut self.rank))? {
            console.note(&note);
        }
        self.first_step.get_or_insert_with(|| self.started.elapsed());
        let record = StepRecord {
            step: step + 1,
            steps: self.settings.stop_after,
            outcome: &outcome,
            time,
            tokens: self.entry.batch * self.entry.seq,
            flops: self.entry.flops,
            memory_bytes: self.program.memory_bytes(self.settings.threads),
        };
        self.meter.step(console, &record, step == begin);
        let bound = self.settings.scalar(&self.program.info, "train.skip.norm");
        if let Some(line) = self.skips.after(self.program, bound, step + 1, &outcome)? {
            console.note(&line);
            return Ok(());
        }
        if outcome.loss.is_finite() { Ok(()) } else { Err(self.not_finite(step + 1, &outcome)) }
    }

    fn not_finite(&self, step: u64, outcome: &Outcome) -> Failure {
        let outputs: Vec<String> = outcome.outputs.iter().map(|(n, v)| format!("{n} = {v}")).collect();
        let saved = match self.saved {
            Some(saved) => format!("The newest checkpoint is of step {saved}; nothing was saved after it."),
            None => "No checkpoint was saved.".to_owned(),
        };
        Failure {
            exit: Exit::NotFinite,
            message: format!("error: the loss is not finite at step {step}: {}\n{saved}", outputs.join(", ")),
        }
    }

    fn preempted(&mut self, done: u64, signal: &str, console: &mut Console) -> Result<Exit, Failure> {
        if self.store.is_none() {
            console.note(&format!(
                "{signal}: stopped after step {done}; nothing was saved (checkpoints are off)"
            ));
        } else {
            self.save(done)?;
            console.note(&format!(
                "{signal}: stopped after step {done} and saved; the same command continues from there"
            ));
        }
        Ok(Exit::Preempted)
    }

    fn evaluate_if_due(
        &mut self,
        done: u64,
        console: &mut Console,
        stop: &Interrupts,
    ) -> Result<(), Failure> {
        let every = self.settings.run.eval_every;
        let due = every > 0 && (done.is_multiple_of(every) || done == self.settings.stop_after);
        let Some((index, source)) = self.held_out.as_mut().filter(|_| due) else { return Ok(()) };
        let batches = Some(self.settings.run.eval_batches.max(1));
        let scalars = &self.settings.scalars;
        let evaluation = evaluate(&mut self.rank, *index, source, batches, scalars, done, stop)?;
        let Some(evaluation) = evaluation else { return Ok(()) };
        console.line(&format!("eval {done}/{}  {}", self.settings.stop_after, evaluation.line()));
        if let Some(file) = self.meter.file() {
            record_evaluation(file, done, &evaluation);
        }
        Ok(())
    }

    /// Saves unless this step is on disk already.
    fn save(&mut self, done: u64) -> Result<(), Failure> {
        let Some(store) = self.store.as_ref().filter(|_| self.saved != Some(done)) else { return Ok(()) };
        let record = Record {
            step: done,
            seed: self.settings.run.seed,
            data: DataPosition {
                source: self.source.description().to_owned(),
                tokens: self.source.tokens(),
                samples: done * self.entry.batch,
            },
            keys: run_time_keys(&self.program.info, &self.settings),
        };
        save(&self.rank, store, record)?;
        if self.rank.world().is_first() {
            store.prune(self.settings.run.checkpoint_keep, self.settings.run.checkpoint_keep_every)?;
        }
        self.saved = Some(done);
        Ok(())
    }

    fn summary(&self, begin: u64, end: u64) -> String {
        let first = self.first_step.unwrap_or_default().as_secs_f64();
        let total = self.started.elapsed().as_secs_f64();
        let saved = match (&self.store, self.saved) {
            (Some(store), Some(step)) => format!(", saved as {}", store.path(step).display()),
            _ => String::new(),
        };
        let skipped = match self.skips.total {
            0 => String::new(),
            n => format!(" ({n} skipped)"),
        };
        format!(
            "trained {} steps{skipped} in {}, the first done {first:.2} s after the start{saved}",
            end - begin,
            duration(total)
        )
    }
}

/// Restores a checkpoint or sets first values; returns the store to write to, if any, and the number of steps done. The store
/// is locked by the first rank, which also does all that is done to it as a whole.
fn begin(
    rank: &mut Rank,
    settings: &Settings,
    console: &mut Console,
) -> Result<(Option<Store>, u64), Failure> {
    let is_first = rank.world().is_first();
    let reader = Store::read_only(&settings.checkpoints);
    let store = match settings.saving {
        Saving::Never => None,
        Saving::Every(_) | Saving::End if is_first => Some(Store::for_writing(&settings.checkpoints)?),
        Saving::Every(_) | Saving::End => Some(Store::read_only(&settings.checkpoints)),
    };
    let otherwise = "Start over with --resume never.";
    let loaded = load(rank, store.as_ref().unwrap_or(&reader), settings.resume, otherwise)?;
    let step = loaded.as_ref().map(|l| l.manifest.step);
    match (&loaded, settings.resume) {
        (Some(loaded), _) => note_resume(rank.program, settings, loaded, console),
        (None, Resume::Step(step)) => {
            return Err(Failure::failed(format!("error: there is no checkpoint of step {step}")));
        }
        (None, Resume::Auto | Resume::Never) => first_values(rank, settings, console)?,
    }
    if let Some(store) = store.as_ref().filter(|_| is_first) {
        let aside = store.supersede_after(step)?;
        if let (Some(newest), Some(oldest)) = (aside.first(), aside.last()) {
            console.note(&format!(
                "note: set aside {} checkpoints of another history (steps {oldest} to {newest}) as superseded-step-* in {}",
                aside.len(),
                store.folder().display()
            ));
        }
    }
    Ok((store, step.unwrap_or(0)))
}

/// Says from where the run continues and what is not as it was.
fn note_resume(program: &Program, settings: &Settings, loaded: &Loaded, console: &mut Console) {
    for note in &loaded.notes {
        console.note(note);
    }
    let manifest = &loaded.manifest;
    console.note(&format!("continuing after step {}", manifest.step));
    if settings.init.is_some() {
        console.note("note: --init is not used, because there is a checkpoint; --resume never starts over");
    }
    for (key, value) in run_time_keys(&program.info, settings) {
        if let Some(old) = manifest.keys.get(&key).filter(|old| **old != value) {
            console.note(&format!("note: {key} was {old}, is now {value}"));
        }
    }
}

fn open_held_out(program: &Program, settings: &Settings) -> Result<Option<(usize, Source)>, Failure> {
    let run = &settings.run;
    let Some(data) = run.eval_data.as_ref().filter(|_| run.eval_every > 0) else { return Ok(None) };
    let (index, entry) = program.require_entry("eval")?;
    Ok(Some((index, Source::open(data, program.info.vocab, entry.seq, run.seed)?)))
}

/// Says so if evaluations were asked for on the command line and there is nothing to evaluate on.
fn note_evaluation(args: &Args, settings: &Settings, console: &mut Console) -> Result<(), Failure> {
    let every = settings.run.eval_every;
    let asked = args.flag("eval-every") || args.sets()?.iter().any(|(key, _)| *key == "train.eval.every");
    if asked && every > 0 && settings.run.eval_data.is_none() {
        console.note(&format!(
            "note: there is no held-out data to evaluate on every {every} steps; give it with --eval-data PATH"
        ));
    }
    Ok(())
}

/// Tells what is about to run, on the screen and in the metrics file.
fn announce(
    program: &Program,
    settings: &Settings,
    source: &Source,
    begin: u64,
    pace: Pace,
    console: &mut Console,
    file: Option<&mut MetricsFile>,
) {
    let info = &program.info;
    let memory = program.memory_bytes(settings.threads);
    console.note(&format!(
        "{}: {} parameters, {}memory {}, {} threads, data {}{}",
        info.model,
        si(program.parameters() as f64),
        if program.ranks() > 1 {
            format!("{} ranks ({}), each ", program.ranks(), mesh(info))
        } else {
            String::new()
        },
        bytes(memory),
        settings.threads,
        source.description(),
        if source.tokens() > 0 { format!(" ({} tokens)", si(source.tokens() as f64)) } else { String::new() }
    ));
    if pace != Pace::Overlapped {
        console.note(&format!("note: {} is {pace:?}: for measuring", Pace::VARIABLE));
    }
    if settings.stop_after > settings.run.steps {
        console.note(&format!(
            "note: --steps {} goes beyond the schedule's horizon, train.steps = {}",
            settings.stop_after, settings.run.steps
        ));
    }
    let Some(file) = file else { return };
    let held_out = settings.run.eval_data.as_ref().map(describe);
    file.write(
        "run",
        vec![
            ("step", begin.into()),
            ("model", info.model.as_str().into()),
            ("fingerprint", info.fingerprint.as_str().into()),
            ("parameters", program.parameters().into()),
            ("memory_bytes", memory.into()),
            ("seed", settings.run.seed.into()),
            ("ranks", program.ranks().into()),
            ("threads", settings.threads.into()),
            ("data", source.description().into()),
            ("eval_data", held_out.map_or(Value::Null, Value::from)),
        ],
    );
}

fn record_evaluation(file: &mut MetricsFile, step: u64, evaluation: &Evaluation) {
    let bits = evaluation.bits_per_byte();
    let mut fields = vec![
        ("step", step.into()),
        ("loss", number(evaluation.loss)),
        ("bits_per_byte", bits.map_or(Value::Null, number)),
        ("tokens", evaluation.tokens.into()),
    ];
    fields.extend(evaluation.auxiliary.iter().map(|(name, value)| (name.as_str(), number(*value))));
    file.write("eval", fields);
}
