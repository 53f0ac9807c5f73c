//! One rank: the memory, the threads and the program, and the only place that calls into generated code.
//!
//! Nothing here is global to the process; several ranks can live side by side.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::time::{Duration, Instant};

use crate::abi::trace::{Kind, Span};
use crate::abi::{AxisSplit, COLLECTIVE_START, DType, KernelFn, Place, SpaceInfo, StepContext};
use crate::collective::{Collectives, Moment};
use crate::device::memory::Memory;
use crate::device::pool::Pool;
use crate::failure::{Exit, Failure};
use crate::mesh::Mesh;
use crate::numeric::bf16_to_f32;
use crate::program::Program;
use crate::shard::Part;
use crate::world::{Pace, World};

/// Scratch of neighbouring threads must not share a cache line or a page.
const SCRATCH_ALIGN: u64 = 4096;

/// How a rank is set up.
#[derive(Clone, Copy, Debug)]
pub struct RankOptions {
    /// Number of threads.
    pub threads: usize,
    /// Keep each thread on one CPU.
    pub pin: bool,
    /// Measure every op.
    pub profile: bool,
}

/// A program that is to run as another number of ranks than it was built for.
pub fn wrong_ranks(program: &Program, ranks: usize) -> Failure {
    let built = Mesh::new(&program.info.mesh).ranks();
    let axes: Vec<String> = program.info.mesh.iter().map(|a| format!("{} = {}", a.name, a.size)).collect();
    // The command may name a number already.
    let rebuild = program.info.rebuild.split(" --devices ").next().unwrap_or_default();
    let mesh = if axes.is_empty() { String::new() } else { format!(" ({})", axes.join(", ")) };
    Failure {
        exit: Exit::Launch,
        message: format!(
            "error: this binary was built for {built} rank{}{mesh}, and {ranks} {} started\nStart {built} (--ranks {built}), or build again:\n  {} \
             --devices {ranks}",
            if built == 1 { "" } else { "s" },
            if ranks == 1 { "was" } else { "were" },
            rebuild
        ),
    }
}

/// Time spent in one op of the op table.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpTime {
    /// Launches counted.
    pub launches: u64,
    /// Their sum.
    pub total: Duration,
    /// The shortest.
    pub least: Duration,
}

/// A rank ready to run entries.
pub struct Rank<'p> {
    /// The program it runs.
    pub program: &'p Program,
    bases: Vec<*mut u8>,
    /// One per axis of the mesh.
    coordinates: Vec<i64>,
    launcher: Box<Launcher>,
    /// Keeps `bases` mapped.
    _spaces: Vec<Memory>,
}

/// What the callbacks find behind `StepContext::runtime`.
struct Caller<'a> {
    program: &'a Program,
    launcher: &'a Launcher,
}

/// What launches need.
struct Launcher {
    pool: Pool,
    scratch: Memory,
    scratch_stride: usize,
    /// Only the thread that calls the entry touches it.
    own: UnsafeCell<Own>,
}

/// What belongs to the thread that calls the entry.
struct Own {
    /// Indexed by op; empty unless profiling.
    times: Vec<OpTime>,
    /// What launches and collectives took, while they are recorded.
    record: Option<Record>,
    collectives: Collectives,
    /// 0-based, for messages.
    step: u64,
    /// Generated code cannot be left in the middle: once a collective has failed, the rest of the call does nothing.
    failure: Option<Failure>,
}

/// A recording of calls.
struct Record {
    zero: Instant,
    spans: Vec<Span>,
}

/// More spans than this are not recorded: a viewer would not open them.
const SPANS_MAX: usize = 1 << 20;

impl<'p> Rank<'p> {
    /// The only rank of a program: [`Rank::of`] a run of one.
    ///
    /// # Errors
    /// As for [`Rank::of`].
    pub fn new(program: &'p Program, options: RankOptions) -> Result<Rank<'p>, Failure> {
        Rank::of(program, options, World::alone())
    }

    /// Starts the threads of one rank of a run and reserves and touches all its memory.
    ///
    /// # Errors
    /// The machine does not give the memory or the threads, or the program is for another number of ranks.
    pub fn of(program: &'p Program, options: RankOptions, world: World) -> Result<Rank<'p>, Failure> {
        let mesh = Mesh::new(&program.info.mesh);
        if mesh.ranks() != world.ranks() {
            return Err(wrong_ranks(program, world.ranks()));
        }
        let pool = Pool::new(options.threads, options.pin)?;
        let spaces = program.info.spaces.iter().map(Memory::reserve).collect::<Result<Vec<_>, _>>()?;
        let scratch_stride = program.info.scratch_bytes.next_multiple_of(SCRATCH_ALIGN);
        let scratch = Memory::reserve(&SpaceInfo {
            name: "scratch".to_owned(),
            bytes: scratch_stride.saturating_mul(pool.threads() as u64),
        })?;
        for space in &spaces {
            space.first_touch(&pool);
        }
        let times =
            if options.profile { vec![OpTime::default(); program.info.ops.len()] } else { Vec::new() };
        let coordinates = mesh.coordinates(world.rank());
        let collectives = Collectives::new(&program.info, world);
        let own = Own { times, record: None, collectives, step: 0, failure: None };
        let launcher = Launcher { pool, scratch, scratch_stride: scratch_stride as usize, own: own.into() };
        Ok(Rank {
            program,
            bases: spaces.iter().map(Memory::base).collect(),
            coordinates: coordinates.into_iter().map(|at| at as i64).collect(),
            launcher: Box::new(launcher),
            _spaces: spaces,
        })
    }

    /// The rank's place in the mesh, one coordinate per axis.
    pub fn coordinates(&self) -> Vec<u64> {
        self.coordinates.iter().map(|&at| at as u64).collect()
    }

    /// What this rank holds of a tensor.
    pub fn part(&self, shape: &[u64], split: &[AxisSplit]) -> Part {
        Part::of(shape, split, &self.program.info.mesh, &self.coordinates())
    }

    /// The threads, for work of the runtime itself.
    pub fn pool(&self) -> &Pool {
        &self.launcher.pool
    }

    /// The ranks this one belongs to.
    pub fn world(&self) -> &World {
        // SAFETY: no call is in flight while `self` is borrowed here, hence nobody changes what belongs to it.
        unsafe { (*self.launcher.own.get()).collectives.world() }
    }

    /// Tells which step the next call belongs to, 0-based, for messages.
    pub fn set_step(&mut self, step: u64) {
        self.launcher.own.get_mut().step = step;
    }

    /// Calls the entry at `index` of the program.
    ///
    /// # Errors
    /// Another rank has ended or does not come. Memory is then in no particular state, and the run is over.
    pub fn call(&mut self, index: usize) -> Result<(), Failure> {
        let own = self.launcher.own.get_mut();
        let profiled = !own.times.is_empty() || own.record.is_some();
        let caller = Caller { program: self.program, launcher: &self.launcher };
        let context = StepContext {
            spaces: self.bases.as_ptr(),
            launch: if profiled { launch_profiled } else { launch },
            collective,
            coordinates: self.coordinates.as_ptr(),
            runtime: std::ptr::from_ref(&caller).cast_mut().cast::<c_void>(),
        };
        // SAFETY: the context holds what the ABI promises: the base of every space and a caller that outlives the call.
        unsafe { self.program.entry_fn(index)(&context) }
        self.launcher.own.get_mut().failure.clone().map_or(Ok(()), Err)
    }

    /// Times of all ops since the last call of this function; empty unless profiling.
    pub fn take_times(&mut self) -> Vec<OpTime> {
        let times = &mut self.launcher.own.get_mut().times;
        let fresh = vec![OpTime::default(); times.len()];
        std::mem::replace(times, fresh)
    }

    /// From now on everything launched is recorded, with times since now.
    pub fn record(&mut self) {
        self.launcher.own.get_mut().record = Some(Record { zero: Instant::now(), spans: Vec::new() });
    }

    /// Ends the recording and gives what was recorded, in order of the ends; the first 2²⁰ spans of it.
    pub fn recorded(&mut self) -> Vec<Span> {
        self.launcher.own.get_mut().record.take().map_or(Vec::new(), |record| record.spans)
    }

    /// Address of a buffer. The program's places were checked against the spaces.
    pub fn address(&self, place: Place) -> *mut u8 {
        // SAFETY: `Program::new` checked that the offset lies inside the space.
        unsafe { self.bases[place.space as usize].add(place.offset as usize) }
    }

    /// The bytes of a buffer.
    pub fn bytes(&self, place: Place, bytes: u64) -> &[u8] {
        // SAFETY: inside the space (checked), mapped as long as `self`, and nothing writes while `self` is borrowed:
        // entries need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.address(place), bytes as usize) }
    }

    /// The bytes of a buffer, to be written.
    pub fn bytes_mut(&mut self, place: Place, bytes: u64) -> &mut [u8] {
        // SAFETY: as for `bytes`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.address(place), bytes as usize) }
    }

    /// Writes a run-time scalar.
    pub fn write_f64(&mut self, place: Place, value: f64) {
        self.bytes_mut(place, 8).copy_from_slice(&value.to_le_bytes());
    }

    /// Reads one element as a number.
    pub fn read_number(&self, place: Place, dtype: DType) -> f64 {
        let bytes = self.bytes(place, dtype.bytes());
        let word = bytes.iter().rev().fold(0u64, |word, &byte| (word << 8) | u64::from(byte));
        match dtype {
            DType::F32 => f64::from(f32::from_bits(word as u32)),
            DType::F64 => f64::from_bits(word),
            DType::Bf16 => f64::from(bf16_to_f32(word as u16)),
            DType::I32 => f64::from(word as u32 as i32),
            DType::I64 => word as i64 as f64,
            DType::Bool => word as f64,
        }
    }
}

impl Launcher {
    /// Computes all tiles of one launch.
    ///
    /// # Safety
    /// `kernel`, `buffers` and `scalars` belong together, as in [`crate::abi::KernelFn`].
    unsafe fn run(&self, kernel: KernelFn, buffers: *const *mut u8, scalars: *const i64, tiles: i64) {
        // Raw pointers may not cross threads by themselves; as addresses they may.
        let (buffers, scalars) = (buffers as usize, scalars as usize);
        let (scratch, stride) = (self.scratch.base() as usize, self.scratch_stride);
        self.pool.run(tiles, &|begin, end, thread| {
            // SAFETY: the caller vouches for the pointers, tiles are independent, and each thread has its own scratch.
            unsafe {
                kernel(
                    buffers as *const *mut u8,
                    scalars as *const i64,
                    begin,
                    end,
                    (scratch + thread * stride) as *mut u8,
                );
            }
        });
    }
}

/// [`crate::abi::LaunchFn`] of a normal run.
unsafe extern "C" fn launch(
    ctx: *const StepContext,
    _op: u32,
    kernel: KernelFn,
    buffers: *const *mut u8,
    scalars: *const i64,
    tiles: i64,
) {
    // SAFETY: the context is the one `Rank::call` made, and generated code passes it through untouched; only this thread
    // touches what belongs to the call.
    unsafe {
        let launcher = (*(*ctx).runtime.cast::<Caller<'_>>()).launcher;
        if (*launcher.own.get()).failure.is_none() {
            launcher.run(kernel, buffers, scalars, tiles);
        }
    }
}

/// [`crate::abi::LaunchFn`] of a profiled run.
unsafe extern "C" fn launch_profiled(
    ctx: *const StepContext,
    op: u32,
    kernel: KernelFn,
    buffers: *const *mut u8,
    scalars: *const i64,
    tiles: i64,
) {
    let start = Instant::now();
    // SAFETY: as in `launch`.
    unsafe {
        launch(ctx, op, kernel, buffers, scalars, tiles);
        let launcher = (*(*ctx).runtime.cast::<Caller<'_>>()).launcher;
        (*launcher.own.get()).count(op, Kind::Kernel, start);
    }
}

/// [`crate::abi::CollectiveFn`]. Its time in the profile is what it takes from this thread: packing, and waiting that no kernel
/// hides.
unsafe extern "C" fn collective(
    ctx: *const StepContext,
    op: u32,
    collective: u32,
    stage: u32,
    buffers: *const *mut u8,
) {
    let start = Instant::now();
    // SAFETY: as in `launch`; generated code keeps to the convention of collectives.
    unsafe {
        let Caller { program, launcher } = &*(*ctx).runtime.cast::<Caller<'_>>();
        let own = &mut *launcher.own.get();
        if own.failure.is_some() {
            return;
        }
        let (pool, which) = (&launcher.pool, collective as usize);
        let moment = Moment { step: own.step, op: program.info.ops.get(op as usize) };
        let collectives = &mut own.collectives;
        let result = match (collectives.world().options().pace, stage == COLLECTIVE_START) {
            (Pace::Overlapped, true) => collectives.start(pool, which, buffers),
            (Pace::Overlapped, false) => collectives.done(pool, which, buffers, moment),
            (Pace::Blocking, true) => collectives
                .start(pool, which, buffers)
                .and_then(|()| collectives.done(pool, which, buffers, moment)),
            (Pace::Blocking, false) | (Pace::Absent, _) => Ok(()),
        };
        own.failure = result.err();
        let kind = if stage == COLLECTIVE_START { Kind::Start } else { Kind::Wait };
        own.count(op, kind, start);
    }
}

impl Own {
    /// Counts one launch of an op that began at `start`, if this run is profiled or recorded.
    fn count(&mut self, op: u32, kind: Kind, start: Instant) {
        if let Some(record) = self.record.as_mut().filter(|record| record.spans.len() < SPANS_MAX) {
            let begin = start.duration_since(record.zero).as_secs_f64();
            let end = record.zero.elapsed().as_secs_f64();
            record.spans.push(Span { op, kind, step: self.step, begin, end });
        }
        if let Some(time) = self.times.get_mut(op as usize) {
            let spent = start.elapsed();
            time.least = if time.launches == 0 { spent } else { time.least.min(spent) };
            time.launches += 1;
            time.total += spent;
        }
    }
}
