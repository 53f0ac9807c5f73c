//! From a [`Program`] to the bytes of a training binary.
//!
//! ```text
//! program ── verify ── expand each kernel ── cache, or a worker ── objects ─┐
//!        └── info, entries ──────────────── cache, or a worker ── object ──┴── link
//! ```
//! One kernel is one object, named by its content: kernels of equal KIR share it, within a program and across builds.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::backend::Codegen;
use crate::cache::Cache;
use crate::custom;
use crate::kernels;
use crate::kir::Kernel;
use crate::link::{Linking, Object, glibc_floor, link_executable};
use crate::program::{CustomSpec, KernelSpec, Program, verify};
use crate::target::Target;
use crate::worker::{Failure, Request, Server, Worker, WorkerCommand};

/// How to build.
pub struct BuildOptions<'a> {
    /// Machine to build for.
    pub target: Target,
    /// What makes the objects.
    pub codegen: Codegen,
    /// Where objects are kept; `None` keeps none. [`Cache::default_folder`] is the usual place.
    pub cache: Option<PathBuf>,
    /// How many objects are made at once, ≥ 1.
    pub jobs: usize,
    /// How to start a worker process, of which LLVM gets one per job; `None` has LLVM compile in this process, where its
    /// abort ends everything. Cranelift does not abort and always compiles in this process, on threads.
    pub worker: Option<WorkerCommand>,
    /// Called after each kernel, from any thread.
    pub progress: &'a (dyn Fn(Progress<'_>) + Sync),
}

/// How far a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Kernels done.
    pub done: usize,
    /// Kernels in all.
    pub total: usize,
    /// The kernel just done.
    pub kernel: &'a str,
    /// Whether its object was found in the cache.
    pub cached: bool,
}

/// A finished build.
#[derive(Clone, Debug)]
pub struct Built {
    /// The training binary.
    pub elf: Vec<u8>,
    /// What made its objects.
    pub codegen: Codegen,
    /// One per kernel of the program, in its order.
    pub kernels: Vec<KernelReport>,
    /// Milliseconds for linking.
    pub link_ms: f64,
    /// Oldest C library the binary runs with, `2.34`; `None`: it needs none.
    pub glibc: Option<String>,
    /// Scratch memory each thread of the binary allocates beside the arena.
    pub scratch_bytes: u64,
}

/// What became of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelReport {
    /// Name in the program.
    pub name: String,
    /// Hash of its content, the target and the code generator: the key of its object.
    pub hash: String,
    /// Whether the object says that its LLVM module was translated from an MLIR module.
    pub came_through_mlir: bool,
    /// Whether the object was there already: in the cache, or made for an equal kernel of this program.
    pub cached: bool,
    /// Milliseconds to compile it, 0 if cached.
    pub ms: f64,
    /// Bytes of the object.
    pub object_bytes: u64,
}

/// Why there is no binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The program breaks its invariants: a mistake in what made it. All violations.
    Program(Vec<String>),
    /// A kernel does not compile.
    Kernel {
        /// Its name.
        name: String,
        /// What was said.
        message: String,
        /// Its KIR with a note of the target, when the worker died of it.
        reproducer: Option<PathBuf>,
    },
    /// The step program does not compile.
    Step(String),
    /// A kernel of the user's own does not compile.
    Custom(String),
    /// Workers do not start.
    Worker(String),
    /// The objects do not link.
    Link(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Program(violations) => {
                write!(
                    f,
                    "the compiler made an invalid program (a mistake in mlc): {}",
                    violations.join("; ")
                )
            }
            Error::Kernel { name, message, reproducer } => {
                write!(f, "kernel `{name}` does not compile (a mistake in mlc): {message}")?;
                match reproducer {
                    Some(path) => write!(f, "\nits KIR is in {}", path.display()),
                    None => Ok(()),
                }
            }
            Error::Step(message) => {
                write!(f, "the step program does not compile (a mistake in mlc): {message}")
            }
            Error::Worker(message) | Error::Link(message) | Error::Custom(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

/// An object to make: its key, and the request that makes it.
struct Job {
    name: String,
    key: String,
    request: Request,
}

/// An object made or found.
struct Made {
    object: Vec<u8>,
    cached: bool,
    ms: f64,
}

/// Builds a training binary.
///
/// The same program, target and version of mlc give the same bytes, whatever the cache holds and however many workers
/// there are.
///
/// # Errors
/// See [`Error`].
pub fn build(program: &Program, options: &BuildOptions<'_>) -> Result<Built, Error> {
    verify(program).map_err(Error::Program)?;
    options.codegen.required().map_err(Error::Worker)?;
    let expanded = expand_all(program, &options.target);
    let cache = Cache::new(options.cache.clone());

    // Equal kernels are one job.
    let mut jobs: Vec<Job> = Vec::new();
    let mut job_of_key: BTreeMap<String, usize> = BTreeMap::new();
    let mut job_of_kernel = Vec::new();
    for (kernel, expanded) in program.kernels.iter().zip(&expanded) {
        let key = kernel_key(&expanded.text, &options.target, options.codegen);
        let job = *job_of_key.entry(key.clone()).or_insert_with(|| {
            let (symbol, target) = (symbol(&key), options.target.name.to_string());
            let codegen = options.codegen.name().to_string();
            let text = expanded.text.clone();
            let request = match &expanded.kir {
                Some(_) => Request::Kernel { kir: text, symbol, target, codegen },
                None => Request::Custom { mlir: text, symbol, target, codegen },
            };
            jobs.push(Job { name: kernel.name.clone(), key, request });
            jobs.len() - 1
        });
        job_of_kernel.push(job);
    }
    let n_kernels = jobs.len();
    jobs.push(step_job(program, &expanded, &jobs, &job_of_kernel, options)?);

    let made = make_all(&jobs, &cache, options)?;
    let objects: Vec<Object> = jobs
        .iter()
        .zip(&made)
        .map(|(j, m)| Object { name: j.name.clone(), bytes: m.object.clone() })
        .collect();
    let started = Instant::now();
    let ranks: u64 = program.info.mesh.iter().map(|axis| axis.size).product();
    let linking = if ranks > 1 { Linking::Dynamic } else { Linking::Static };
    let elf = link_executable(&objects, linking).map_err(Error::Link)?;
    let link_ms = milliseconds(started);

    let mut seen = vec![false; n_kernels];
    let report = |(kernel, &job): (&crate::program::Kernel, &usize)| {
        let again = std::mem::replace(&mut seen[job], true);
        KernelReport {
            name: kernel.name.clone(),
            hash: jobs[job].key.clone(),
            came_through_mlir: came_through_mlir(&made[job].object),
            cached: made[job].cached || again,
            ms: if again { 0.0 } else { made[job].ms },
            object_bytes: made[job].object.len() as u64,
        }
    };
    let kernels = program.kernels.iter().zip(&job_of_kernel).map(report).collect();
    let codegen = options.codegen;
    let glibc = glibc_floor(&elf);
    Ok(Built { elf, codegen, kernels, link_ms, glibc, scratch_bytes: scratch_bytes(program, &expanded) })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// What a kernel is compiled from, and what a launch of it needs.
pub(crate) struct Expanded {
    /// KIR, or MLIR of the user's own.
    pub text: String,
    /// Unless it is the user's own.
    pub kir: Option<Kernel>,
    /// Tiles of a launch.
    pub tiles: u64,
    /// Scratch of a thread.
    pub scratch_bytes: u64,
}

impl Expanded {
    pub(crate) fn of(spec: &KernelSpec, target: &Target) -> Expanded {
        if let KernelSpec::Custom(custom) = spec {
            let custom::Module { text, tiles, scratch_bytes } = custom::module(custom);
            return Expanded { text, kir: None, tiles, scratch_bytes };
        }
        let kernel = kernels::expand(spec, target);
        let (tiles, scratch_bytes) = (kernel.tiles, kernel.scratch_bytes());
        Expanded { text: kernel.to_string(), kir: Some(kernel), tiles, scratch_bytes }
    }
}

fn expand_all(program: &Program, target: &Target) -> Vec<Expanded> {
    program.kernels.iter().map(|kernel| Expanded::of(&kernel.spec, target)).collect()
}

/// Key of a kernel's object.
pub(crate) fn kernel_key(kir: &str, target: &Target, codegen: Codegen) -> String {
    let target = format!("{target:?}");
    Cache::key(&[b"kernel", codegen.key().as_bytes(), target.as_bytes(), kir.as_bytes()])
}

/// Symbol of the kernel of a key. 128 bits keep two kernels of a program apart.
pub(crate) fn symbol(key: &str) -> String {
    format!("kernel_{}", &key[..32])
}

/// The largest scratch any kernel asks for.
fn scratch_bytes(program: &Program, expanded: &[Expanded]) -> u64 {
    let of_kernels = expanded.iter().map(|e| e.scratch_bytes).max().unwrap_or(0);
    of_kernels.max(program.info.scratch_bytes)
}

/// The step program's job. What codegen alone knows is put into the description: scratch size and CPU features.
fn step_job(
    program: &Program,
    expanded: &[Expanded],
    jobs: &[Job],
    job_of_kernel: &[usize],
    options: &BuildOptions<'_>,
) -> Result<Job, Error> {
    let (target, codegen) = (&options.target, options.codegen);
    let mut program = program.clone();
    program.info.scratch_bytes = scratch_bytes(&program, expanded);
    program.info.cpu_features = target.cpu_features.iter().map(|f| f.to_string()).collect();
    let link = |(&job, expanded): (&usize, &Expanded)| (symbol(&jobs[job].key), expanded.tiles);
    let kernels: Vec<(String, u64)> = job_of_kernel.iter().zip(expanded).map(link).collect();
    // What the kernels compute is in their own objects.
    program.kernels.clear();
    let json = serde_json::to_string(&program).map_err(|e| Error::Step(e.to_string()))?;
    let list = format!("{kernels:?}");
    let maker = format!("{} {target:?}", codegen.key());
    let key = Cache::key(&[b"step", maker.as_bytes(), json.as_bytes(), list.as_bytes()]);
    let (target, codegen) = (target.name.to_string(), codegen.name().to_string());
    let request = Request::Step { program: json, kernels, target, codegen };
    Ok(Job { name: "step".to_string(), key, request })
}

/// LLVM modules made by MLIR carry this as the name of their source, which LLVM writes into the object's symbol table.
fn came_through_mlir(object: &[u8]) -> bool {
    let mark = b"LLVMDialectModule";
    object.windows(mark.len()).any(|w| w == mark)
}

// ---- making objects

/// Makes or finds every job's object, in the jobs' order. The first failing job (in that order) is the error.
fn make_all(jobs: &[Job], cache: &Cache, options: &BuildOptions<'_>) -> Result<Vec<Made>, Error> {
    let results: Vec<Mutex<Option<Result<Made, Error>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let done = AtomicUsize::new(0);
    let finish = |job: usize, result: Result<Made, Error>| {
        let cached = result.as_ref().is_ok_and(|made| made.cached);
        if let Ok(mut slot) = results[job].lock() {
            *slot = Some(result);
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        (options.progress)(Progress { done, total: jobs.len(), kernel: &jobs[job].name, cached });
    };
    let mut missing = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        match cache.get(&job.key) {
            Some(object) => finish(index, Ok(Made { object, cached: true, ms: 0.0 })),
            None => missing.push(index),
        }
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut compiler = Compiler { options, running: None };
        while let Some(&job) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            finish(job, compiler.make(&jobs[job], cache));
        }
    };
    let at_once = match options.codegen {
        Codegen::Llvm if options.worker.is_none() => 1,
        Codegen::Llvm | Codegen::Cranelift => options.jobs.max(1).min(missing.len()),
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    let taken = results.into_iter().map(|slot| slot.into_inner().ok().flatten());
    taken
        .map(|result| result.unwrap_or_else(|| Err(Error::Worker("a worker thread ended early".to_string()))))
        .collect()
}

/// A running worker.
enum Running {
    Process(Worker),
    Here(Box<Server>),
}

/// One thread's worker, started when first needed and again when it has died.
struct Compiler<'a> {
    options: &'a BuildOptions<'a>,
    running: Option<Running>,
}

impl Compiler<'_> {
    fn make(&mut self, job: &Job, cache: &Cache) -> Result<Made, Error> {
        let started = Instant::now();
        let object = self.ask(&job.request).map_err(|failure| explain(failure, job, cache))?;
        cache.put(&job.key, &object);
        Ok(Made { object, cached: false, ms: milliseconds(started) })
    }

    fn ask(&mut self, request: &Request) -> Result<Vec<u8>, Failure> {
        let running = match self.running.take() {
            Some(running) => running,
            None => match (&self.options.worker, self.options.codegen) {
                (Some(command), Codegen::Llvm) => Running::Process(Worker::start(command)?),
                (None, Codegen::Llvm) | (_, Codegen::Cranelift) => Running::Here(Box::new(Server::new())),
            },
        };
        let (result, running) = match running {
            Running::Process(mut worker) => (worker.ask(request), Running::Process(worker)),
            Running::Here(mut server) => (answer_here(&mut server, request), Running::Here(server)),
        };
        if !matches!(result, Err(Failure::Died(_))) {
            self.running = Some(running);
        }
        result
    }
}

/// An answer of this process; a panic of a back end is an error of its request.
fn answer_here(server: &mut Server, request: &Request) -> Result<Vec<u8>, Failure> {
    let answer = catch_unwind(AssertUnwindSafe(|| server.answer(request)));
    answer.map_or_else(
        |panic| Err(Failure::Died(panic_text(&*panic))),
        |result| result.map_err(Failure::Refused),
    )
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_string())
}

/// Compiles a kernel of the user's own and runs all of it once, in a worker, on dense arguments of this content; gives the
/// content of all of them afterwards.
///
/// # Errors
/// MLIR or LLVM refuse the file, or the worker dies of it.
pub fn run_custom(
    spec: &CustomSpec,
    arguments: Vec<Vec<u8>>,
    options: &BuildOptions<'_>,
) -> Result<Vec<Vec<u8>>, Error> {
    options.codegen.required().map_err(Error::Worker)?;
    let custom::Module { text, tiles, scratch_bytes } = custom::module(spec);
    let lengths: Vec<usize> = arguments.iter().map(Vec::len).collect();
    let target = options.target.name.to_string();
    let request = Request::Run { mlir: text, tiles, scratch_bytes, target, buffers: arguments };
    let job = Job {
        name: format!("custom_{}", spec.function),
        key: Cache::key(&[spec.source.as_bytes()]),
        request,
    };
    let cache = Cache::new(options.cache.clone());
    let mut all =
        Compiler { options, running: None }.ask(&job.request).map_err(|f| explain(f, &job, &cache))?;
    let mut contents = Vec::new();
    for length in lengths {
        let rest = all.split_off(length.min(all.len()));
        contents.push(std::mem::replace(&mut all, rest));
    }
    Ok(contents)
}

fn explain(failure: Failure, job: &Job, cache: &Cache) -> Error {
    match (failure, &job.request) {
        (Failure::NotStarted(message), _) => Error::Worker(message),
        (Failure::Refused(message), Request::Custom { .. } | Request::Run { .. }) => Error::Custom(message),
        (Failure::Died(message), Request::Custom { mlir, .. } | Request::Run { mlir, .. }) => {
            let place = write_reproducer(job, mlir, cache, "mlir");
            let place = place.map(|p| format!("\nits MLIR is in {}", p.display())).unwrap_or_default();
            Error::Custom(format!("the code generator died on {}: {message}{place}", job.name))
        }
        (Failure::Refused(message), Request::Kernel { .. }) => {
            Error::Kernel { name: job.name.clone(), message, reproducer: None }
        }
        (Failure::Died(message), Request::Kernel { kir, symbol, target, codegen }) => {
            let text =
                format!("// kernel {} for target {target} by {codegen}, symbol {symbol}\n{kir}", job.name);
            let message = format!("the code generator died: {message}");
            Error::Kernel {
                name: job.name.clone(),
                message,
                reproducer: write_reproducer(job, &text, cache, "kir"),
            }
        }
        (Failure::Refused(message), Request::Step { .. } | Request::Abort) => Error::Step(message),
        (Failure::Died(message), Request::Step { .. } | Request::Abort) => {
            Error::Step(format!("the code generator died: {message}"))
        }
    }
}

/// Writes a kernel that killed its worker beside the cache, or to the temporary folder.
fn write_reproducer(job: &Job, text: &str, cache: &Cache, ending: &str) -> Option<PathBuf> {
    let folder = cache.folder().map_or_else(std::env::temp_dir, |folder| folder.join("crashes"));
    let path = folder.join(format!("{}-{}.{ending}", job.name, &job.key[..16]));
    std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, text)).ok()?;
    Some(path)
}
