//! The whole compiler on one page.
//!
//! Every stage goes through the [`Runner`]: it times the stage, names it if it panics, and hands its text to whoever wants
//! to see it. Graphs are verified after every stage that makes one.

use crate::autodiff::config::{Microbatch, TrainConfig};
use crate::autodiff::from_spec::train_config;
use crate::autodiff::precision::Precision;
use crate::autodiff::{inference_step, training_step};
use crate::check_kernels::{KernelCheck, checks_of};
use crate::cost::{Target, latency_bytes};
use crate::fuse::{self, Fused};
use crate::graph::from_spec::{Entry, from_spec, has_logits};
use crate::graph::passes::{expand_composites, sink_updates};
use crate::graph::recognise::{fit_chunks, near_misses, recognise};
use crate::graph::verify::{Stage as Level, verify};
use crate::graph::{DType, Graph, Origin, print};
use crate::lower::unroll_repeats::unroll_repeats;
use crate::lower::{EntryMeta, to_program};
use crate::memory::{self, Plan};
use crate::metadata::{baked_keys, input_sources, metadata};
use crate::remat;
use crate::schedule::{self, Schedule};
use crate::sharding::pad_axes::pad_axes;
use crate::sharding::strict::Conflict;
use crate::sharding::{Rules, Sharded, glob_of, keep_gathered, path_of, shard, sum_after_microbatches};
use crate::spec::checked::{CustomKernel, Float, Layout, MeshKind, Model, Spec, Train};
use crate::spec::diagnostic::sort;
use crate::spec::{Diagnostic, SourceMap, codes};
use crate::spmd::combine::{combine_collectives, reduce_scatter, split_hierarchical};
use crate::spmd::partition::partition;
use crate::spmd::replication::{Refused, refused};
use crate::units;
use mlc_codegen::abi::ProgramInfo;
use mlc_codegen::program::Program;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Stages in order, by the names `mlc emit --stage` takes.
pub const STAGES: &[&str] =
    &["graph", "training", "remat", "sharded", "spmd", "fused", "schedule", "plan", "program"];

/// What the compiler makes of a spec.
pub struct Compiled {
    /// The program, ready for code generation.
    pub program: Program,
    /// Where every byte lies.
    pub plan: Plan,
    /// What is saved for the backward pass.
    pub remat: remat::Report,
    /// What the user should know.
    pub notes: Vec<Diagnostic>,
}

/// What a binary says of where it comes from.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The canonical expanded spec.
    pub spec: String,
    /// The command that builds the binary again.
    pub rebuild: String,
}

/// Why compilation stopped.
#[derive(Debug)]
pub enum CompileError {
    /// The spec asks for something that can't be built.
    Spec(Vec<Diagnostic>),
    /// The program does not fit in `target.memory`.
    Memory(String),
    /// A stage failed on a spec that checked: a bug in the compiler.
    Internal {
        /// The stage.
        stage: &'static str,
        /// What happened.
        message: String,
    },
}

type Result<T> = std::result::Result<T, CompileError>;

/// From a spec to a program with the entries `train`, `eval` and, if the model has logits, `logits`.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(
    spec: &Spec,
    sources: &SourceMap,
    identity: &Identity,
    runner: &mut Runner,
) -> Result<Compiled> {
    let train = run_of(spec)?;
    no_pipeline(spec)?;
    let inputs = input_sources(&spec.model).map_err(CompileError::Spec)?;
    let config = with_microbatches(train_config(&spec.model, train), train);
    let mut grouped = Vec::new();
    let mut saved = remat::Report::default();
    let mut entries = Vec::new();
    for (entry, batch) in entries_of(&spec.model, train) {
        let graph = forward(spec, entry, batch, sources, runner)?;
        let graph = match entry {
            Entry::Train => {
                let graph = training(graph, &config, runner)?;
                let (graph, report) = rematerialised(graph, train, runner)?;
                saved = report;
                graph
            }
            Entry::Eval | Entry::Logits => inference(graph, entry, &config.precision, runner)?,
        };
        let graph = on_mesh(graph, entry, spec, sources, runner)?;
        let fused = || fuse::group(&graph).map_err(|e| unsupported(e.to_string()));
        grouped.push((entry, runner.run("fused", fused)?));
        entries.push(EntryMeta { name: entry.name().into(), batch, seq: train.seq, inputs: inputs.clone() });
    }
    let schedules = scheduled(grouped, spec.target.memory_bytes, runner)?;
    let plan = placed(schedules, spec.target.memory_bytes, runner)?;
    let (info, mut notes) = program_info(spec, train, identity);
    notes.append(&mut runner.notes);
    let program = programmed(&plan, &entries, info, spec, train, runner)?;
    Ok(Compiled { program, plan, remat: saved, notes })
}

/// The graphs alone, for a model without a run too: the forward graph, and the training graph if there is a run, with what
/// it saves for its backward pass.
///
/// # Errors
/// See [`CompileError`].
pub fn graphs(spec: &Spec, sources: &SourceMap, runner: &mut Runner) -> Result<Option<remat::Report>> {
    let model = &spec.model;
    let batch = spec.train.as_ref().map_or(model.size("batch").unwrap_or(1), |t| t.batch);
    let graph = forward(spec, Entry::Train, batch, sources, runner)?;
    let Some(train) = &spec.train else { return Ok(None) };
    let graph = training(graph, &with_microbatches(train_config(model, train), train), runner)?;
    let (graph, report) = rematerialised(graph, train, runner)?;
    on_mesh(graph, Entry::Train, spec, sources, runner)?;
    Ok(Some(report))
}

/// The training graph, after remat: what is sharded.
///
/// # Errors
/// As [`graphs`].
pub fn training_graph(spec: &Spec, sources: &SourceMap, runner: &mut Runner) -> Result<Graph> {
    let train = run_of(spec)?;
    let graph = forward(spec, Entry::Train, train.batch, sources, runner)?;
    let config = with_microbatches(train_config(&spec.model, train), train);
    Ok(rematerialised(training(graph, &config, runner)?, train, runner)?.0)
}

/// Runs to make of the kernels of the user's own in a spec's training step (or forward graph, without a run).
///
/// # Errors
/// As [`graphs`], or a kernel's check is too large.
pub fn kernel_checks(spec: &Spec, sources: &SourceMap, runner: &mut Runner) -> Result<Vec<KernelCheck>> {
    let model = &spec.model;
    if model.kernels.is_empty() {
        return Ok(Vec::new());
    }
    let batch = spec.train.as_ref().map_or(model.size("batch").unwrap_or(1), |t| t.batch);
    let graph = forward(spec, Entry::Train, batch, sources, runner)?;
    let graph = match &spec.train {
        Some(train) => training(graph, &with_microbatches(train_config(model, train), train), runner)?,
        None => graph,
    };
    let refused = |why: String| {
        let span = model.kernels[0].span;
        CompileError::Spec(vec![Diagnostic::error(codes::CUSTOM_KERNEL, why).at(span, "")])
    };
    runner.run("check_kernels", || checks_of(&graph).map_err(refused))
}

/// Entries with their batch.
fn entries_of(model: &Model, train: &Train) -> Vec<(Entry, u64)> {
    let mut entries = vec![(Entry::Train, train.batch), (Entry::Eval, train.global_microbatch)];
    if has_logits(model) {
        entries.push((Entry::Logits, 1));
    }
    entries
}

fn run_of(spec: &Spec) -> Result<&Train> {
    spec.train.as_ref().ok_or_else(|| {
        let title = format!("the model `{}` has no run to build", spec.model.name);
        let error = Diagnostic::error(codes::MODEL_CHOICE, title)
            .at(spec.model.span, "a model alone")
            .help("write a run file: `use \"this.spec\" as Model` and a `train { … }` section");
        CompileError::Spec(vec![error])
    })
}

/// Stages of a pipeline can't be built yet.
fn no_pipeline(spec: &Spec) -> Result<()> {
    let axes = spec.layout.iter().flat_map(|layout| &layout.mesh);
    let stages = axes.into_iter().find(|axis| axis.kind == MeshKind::Pipeline && axis.size > 1);
    let Some(axis) = stages else { return Ok(()) };
    let title = format!("stages of a pipeline can't be built yet: `{}`", axis.name);
    let error = Diagnostic::error(codes::NOT_AVAILABLE, title).at(axis.span, "a pipeline axis");
    Err(CompileError::Spec(vec![error.help("take the axis out, or split tensors over it")]))
}

fn with_microbatches(config: TrainConfig, train: &Train) -> TrainConfig {
    let cut = Microbatch { axis: "batch".into(), size: train.global_microbatch };
    TrainConfig { microbatch: (train.accumulation > 1).then_some(cut), ..config }
}

fn forward(spec: &Spec, entry: Entry, batch: u64, sources: &SourceMap, runner: &mut Runner) -> Result<Graph> {
    let model = &spec.model;
    let graph = runner.run("graph", || {
        let graph = from_spec(model, entry, batch, sources).map_err(CompileError::Spec)?;
        let graph = recognise(graph, &model.lower_reference);
        Ok(match spec.layout.as_ref().filter(|layout| layout.devices() > 1) {
            Some(layout) => {
                let rules = Rules::of(layout, model);
                let micro = spec.train.as_ref().map_or(batch, |t| t.global_microbatch);
                fit_chunks(graph, |axis| rules.axes.get(axis).map_or(1, |over| rules.mesh.ways(over)), micro)
            }
            None => graph,
        })
    })?;
    runner.graph("graph", entry.name(), &graph, Level::Graph)?;
    if entry == Entry::Train {
        runner.notes.extend(kernels_whole(spec));
        // The other entries have the same text.
        let misses = near_misses(&graph, &model.lower_reference).into_iter();
        runner.notes.extend(misses.map(|miss| Diagnostic::note(codes::NOT_RECOGNISED, miss.to_string())));
    }
    Ok(graph)
}

/// Kernels of the user's own are for whole tensors: a note for each, over a mesh.
fn kernels_whole(spec: &Spec) -> Vec<Diagnostic> {
    let devices = spec.layout.as_ref().map_or(1, Layout::devices);
    let note = |kernel: &CustomKernel| {
        let title = format!("every one of {devices} devices computes all of this kernel");
        Diagnostic::note(codes::KERNEL_WHOLE, title).at(kernel.span, "what it takes is gathered")
    };
    if devices > 1 { spec.model.kernels.iter().map(note).collect() } else { Vec::new() }
}

fn training(graph: Graph, config: &TrainConfig, runner: &mut Runner) -> Result<Graph> {
    let step = || {
        let step = training_step(graph, config).map_err(|e| unsupported(e.to_string()))?;
        Ok(sink_updates(step))
    };
    let graph = runner.run("training", step)?;
    runner.graph("training", "train", &graph, Level::Training)?;
    Ok(graph)
}

fn rematerialised(graph: Graph, train: &Train, runner: &mut Runner) -> Result<(Graph, remat::Report)> {
    let (graph, report) = runner.run("remat", || Ok(remat::rematerialise(graph, &train.remat)))?;
    runner.graph("remat", "train", &graph, Level::Training)?;
    Ok((graph, report))
}

/// The sharded training graph of a run over several devices, with the reason of every split.
///
/// # Errors
/// As [`graphs`].
pub fn sharded_training(spec: &Spec, sources: &SourceMap, runner: &mut Runner) -> Result<Option<Sharded>> {
    let graph = training_graph(spec, sources, runner)?;
    sharded(&graph, Entry::Train, spec, sources, runner)
}

/// What every rank computes in a training step, on its mesh; the training graph itself with one rank.
///
/// # Errors
/// As [`graphs`].
pub fn training_on_mesh(spec: &Spec, sources: &SourceMap, runner: &mut Runner) -> Result<Graph> {
    let graph = training_graph(spec, sources, runner)?;
    on_mesh(graph, Entry::Train, spec, sources, runner)
}

/// A graph of all ranks together becomes one rank's; with one rank it is that already.
fn on_mesh(
    graph: Graph,
    entry: Entry,
    spec: &Spec,
    sources: &SourceMap,
    runner: &mut Runner,
) -> Result<Graph> {
    let Some(sharded) = sharded(&graph, entry, spec, sources, runner)? else { return Ok(graph) };
    no_replication(&sharded.graph, spec, sources)?;
    let target = runner.machine.clone();
    let passes: [(&'static str, Combine<'_>); 3] = [
        ("reduce_scatter", &reduce_scatter),
        ("split_hierarchical", &split_hierarchical),
        ("combine_collectives", &|graph| combined_for(graph, &target)),
    ];
    let mut local = runner.run("spmd", || partition(&sharded.graph).map_err(|e| internal("spmd", e)))?;
    for (name, pass) in passes {
        runner.check("spmd", &local, Level::Spmd)?;
        local = runner.run(name, || Ok(pass(local)))?;
    }
    runner.graph("spmd", entry.name(), &local, Level::Spmd)?;
    Ok(local)
}

/// Collectives that travel together on these links.
pub(crate) fn combined_for(graph: Graph, target: &Target) -> Graph {
    let latency_bytes = latency_bytes(target, &graph.mesh);
    combine_collectives(graph, latency_bytes)
}

/// A pass of the collective algebra.
type Combine<'a> = &'a dyn Fn(Graph) -> Graph;

fn sharded(
    graph: &Graph,
    entry: Entry,
    spec: &Spec,
    sources: &SourceMap,
    runner: &mut Runner,
) -> Result<Option<Sharded>> {
    let Some(layout) = spec.layout.as_ref().filter(|layout| layout.devices() > 1) else { return Ok(None) };
    let rounded = spec.train.as_ref().is_some_and(|train| train.precision.reduce == Float::Bf16);
    let wire = rounded.then_some(DType::Bf16);
    let mut rules = Rules { machine: runner.machine.clone(), wire, ..Rules::of(layout, &spec.model) };
    // The other entries have the same text; one sequence at a time splits differently.
    rules.strict &= entry == Entry::Train;
    let sharded = runner.run("sharded", || {
        // Primitives split where a composite would have to be whole; a training graph has no others left.
        let graph = expand_composites(graph.clone());
        let (graph, _) = pad_axes(&graph, &rules).map_err(unsupported)?;
        let mut sharded = shard(&graph, &rules).map_err(|e| unsupported(e.to_string()))?;
        if rules.keep_gathered {
            sharded.graph = keep_gathered(sharded.graph);
        }
        if rules.whole_grads {
            sharded.graph = sum_after_microbatches(sharded.graph);
        }
        Ok(sharded)
    })?;
    runner.graph("sharded", entry.name(), &sharded.graph, Level::Sharded)?;
    no_conflicts(&sharded.conflicts, sources)?;
    Ok(Some(sharded))
}

/// What strict mode has found is an error.
fn no_conflicts(conflicts: &[Conflict], sources: &SourceMap) -> Result<()> {
    let message = |conflict: &Conflict| {
        let error = Diagnostic::error(codes::STRICT, conflict.title.clone());
        let error = placed_at(error, &conflict.at, "no rule says what moves", sources);
        let error = error.meaning(format!("choices, cheapest first: {}", conflict.choices.join("; or ")));
        let error = conflict.help.iter().fold(error, |error, help| error.help(help));
        error.help("or leave it to the cheapest choice: `mode = auto` in `shard`")
    };
    spec_errors(conflicts.iter().map(message).collect())
}

/// A reshard that would gather what it need not is an error, unless the spec allows it.
fn no_replication(graph: &Graph, spec: &Spec, sources: &SourceMap) -> Result<()> {
    let known = spec.layout.as_ref().map_or(&[][..], |layout| &layout.paths);
    let message = |refused: Refused| {
        let node = graph.op(refused.op);
        let path = path_of(&node.origin, graph.value_name(node.results[0]));
        let (from, to) = (&refused.from, &refused.to);
        let title = format!("bringing `{path}` from ({from}) to ({to}) would gather it whole on the way");
        let steps: Vec<String> = refused.steps.iter().map(ToString::to_string).collect();
        let error = Diagnostic::error(codes::REPLICATES, title);
        placed_at(error, &node.origin, "this value", sources)
            .meaning(format!(
                "each rank would send {} bytes, where moving its parts should take {}: {}",
                refused.bytes,
                refused.limit,
                steps.join("; ")
            ))
            .help("split the same axes over the same mesh axes in the same order on both sides")
            .help(format!("or allow it, in `shard`: `allow_replicate \"{}\"`", nameable(&path, known)))
    };
    spec_errors(refused(graph).into_iter().map(message).collect())
}

/// A glob for a value's path, or else for the block around it.
fn nameable(path: &str, known: &[String]) -> String {
    let ends = path.match_indices('.').map(|(at, _)| at).chain([path.len()]);
    let prefixes: Vec<&str> = ends.map(|end| &path[..end]).collect();
    let known = prefixes.into_iter().rev().find(|prefix| known.iter().any(|path| path == prefix));
    known.map_or("**".into(), glob_of)
}

/// The error at the line an op comes from.
fn placed_at(error: Diagnostic, origin: &Origin, text: &str, sources: &SourceMap) -> Diagnostic {
    match sources.line(&origin.line.file, origin.line.line) {
        Some(span) => error.at(span, text),
        None => error,
    }
}

fn spec_errors(mut errors: Vec<Diagnostic>) -> Result<()> {
    sort(&mut errors);
    if errors.is_empty() { Ok(()) } else { Err(CompileError::Spec(errors)) }
}

fn inference(graph: Graph, entry: Entry, precision: &Precision, runner: &mut Runner) -> Result<Graph> {
    let step = || inference_step(graph, precision).map_err(|e| unsupported(e.to_string()));
    let graph = runner.run("training", step)?;
    runner.graph("training", entry.name(), &graph, Level::Training)?;
    Ok(graph)
}

/// Orders the entries. What collectives that start iterations early take in memory must fit with the rest: if it does not, they
/// start later.
fn scheduled(grouped: Vec<(Entry, Fused)>, limit: Option<u64>, runner: &mut Runner) -> Result<Vec<Schedule>> {
    let machine = runner.machine.clone();
    let order = || {
        let one = |fused: &Fused, most| schedule::order_within(fused.clone(), &machine, most);
        let within =
            |most: u64| -> Vec<Schedule> { grouped.iter().map(|(_, fused)| one(fused, most)).collect() };
        let mut schedules = within(schedule::MOST_AHEAD);
        let Some(limit) = limit else { return Ok(schedules) };
        while let Some(ahead) = schedules.iter().map(|s| s.ahead).max().filter(|ahead| *ahead > 0) {
            let Err(over) = memory::place(schedules.clone(), Some(limit)) else { break };
            let needed = units::bytes(over.needed_bytes);
            schedules = within(ahead - 1);
            for schedule in &mut schedules {
                schedule.note = Some(format!("{ahead} ahead does not fit in `target.memory`: {needed}"));
            }
        }
        Ok(schedules)
    };
    let schedules = runner.run("schedule", order)?;
    for ((entry, _), schedule) in grouped.iter().zip(&schedules) {
        runner.show("fused", entry.name(), || schedule.fused.text());
        runner.show("schedule", entry.name(), || schedule.text());
    }
    Ok(schedules)
}

fn placed(schedules: Vec<Schedule>, limit_bytes: Option<u64>, runner: &mut Runner) -> Result<Plan> {
    let place = || memory::place(schedules, limit_bytes).map_err(|e| CompileError::Memory(e.to_string()));
    let plan = runner.run("plan", place)?;
    runner.show("plan", "all", || plan.report.to_string());
    Ok(plan)
}

fn programmed(
    plan: &Plan,
    entries: &[EntryMeta],
    info: ProgramInfo,
    spec: &Spec,
    train: &Train,
    runner: &mut Runner,
) -> Result<Program> {
    let lower = || to_program(plan, entries, info).map_err(|e| unsupported(e.to_string()));
    let mut program = runner.run("program", lower)?;
    unroll_repeats(&mut program, plan, &spec.model.unrolled);
    program.info.baked = baked_keys(spec, train, &program.info.scalars);
    let text = serde_json::to_string(&program).map_err(|e| internal("program", e.to_string()))?;
    program.info.fingerprint = blake3::hash(text.as_bytes()).to_hex()[..32].to_string();
    runner.show("program", "all", || serde_json::to_string_pretty(&program).unwrap_or_default());
    Ok(program)
}

/// What the binary knows besides the plan.
fn program_info(spec: &Spec, train: &Train, identity: &Identity) -> (ProgramInfo, Vec<Diagnostic>) {
    let (about, notes) = metadata(spec, train);
    let vocab = spec.model.inputs.iter().find(|i| i.name == "tokens").and_then(|i| i.bound).unwrap_or(0);
    let info = ProgramInfo {
        model: spec.model.name.clone(),
        fingerprint: String::new(),
        spec: identity.spec.clone(),
        cpu_features: Vec::new(),
        spaces: Vec::new(),
        scratch_bytes: 0,
        mesh: Vec::new(),
        collectives: Vec::new(),
        entries: Vec::new(),
        scalars: Vec::new(),
        tensors: Vec::new(),
        ops: Vec::new(),
        names: about.names,
        vocab,
        run: about.run,
        baked: Vec::new(),
        rebuild: identity.rebuild.clone(),
        skip: about.skip,
    };
    (info, notes)
}

/// A construct that type-checks but has no code: the message names the spec line.
fn unsupported(message: String) -> CompileError {
    CompileError::Spec(vec![Diagnostic::error(codes::NOT_AVAILABLE, message)])
}

fn internal(stage: &'static str, message: String) -> CompileError {
    CompileError::Internal { stage, message }
}

/// Called with (stage, entry, text) as stages finish.
pub type Viewer<'a> = Box<dyn FnMut(&'static str, &'static str, String) + 'a>;

/// Runs stages.
#[derive(Default)]
pub struct Runner<'a> {
    viewer: Option<Viewer<'a>>,
    /// The machine whose predicted times decide how values lie and when what runs.
    pub machine: Target,
    /// Time of each stage in order of first run.
    pub times: Vec<(&'static str, Duration)>,
    /// What stages have to say to the user.
    pub notes: Vec<Diagnostic>,
}

impl<'a> Runner<'a> {
    /// A runner that shows every stage's text.
    pub fn viewing(viewer: Viewer<'a>) -> Runner<'a> {
        Runner { viewer: Some(viewer), ..Runner::default() }
    }

    /// The same, planning for a machine.
    pub fn on(self, machine: Target) -> Runner<'a> {
        Runner { machine, ..self }
    }

    /// Runs a stage; a panic becomes an error that names it.
    fn run<T>(&mut self, stage: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(internal(stage, format!("panicked: {text}")))
        });
        let spent = start.elapsed();
        match self.times.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, time)) => *time += spent,
            None => self.times.push((stage, spent)),
        }
        result
    }

    /// Verifies a graph a stage made, and shows it.
    fn graph(&mut self, stage: &'static str, entry: &'static str, graph: &Graph, level: Level) -> Result<()> {
        self.show(stage, entry, || print::print(graph));
        self.check(stage, graph, level)
    }

    /// Verifies a graph that is only on its way to a stage's result.
    fn check(&self, stage: &'static str, graph: &Graph, level: Level) -> Result<()> {
        verify(graph, level).map_err(|e| internal(stage, format!("left a broken graph\n{e}")))
    }

    /// Hands a stage's text to the viewer, made only if there is one.
    fn show(&mut self, stage: &'static str, entry: &'static str, text: impl FnOnce() -> String) {
        if let Some(viewer) = &mut self.viewer {
            viewer(stage, entry, text());
        }
    }
}

#[cfg(test)]
mod layer_traffic;
#[cfg(test)]
mod prefetch;
#[cfg(test)]
mod scale;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod zoo;
