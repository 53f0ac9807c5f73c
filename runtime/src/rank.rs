//! One rank: the memory, the threads and the program, and the only place that calls into generated code.
//!
//! Nothing here is global to the process; several ranks can live side by side.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::time::{Duration, Instant};

use crate::abi::{AxisSplit, DType, KernelFn, Place, SpaceInfo, StepContext};
use crate::device::memory::Memory;
use crate::device::pool::Pool;
use crate::failure::Failure;
use crate::numeric::bf16_to_f32;
use crate::program::Program;
use crate::shard::Part;

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

/// What the launch callback finds behind `StepContext::runtime`.
struct Launcher {
    pool: Pool,
    scratch: Memory,
    scratch_stride: usize,
    /// Indexed by op; empty unless profiling. Only the thread that calls the entry touches it.
    times: UnsafeCell<Vec<OpTime>>,
}

impl<'p> Rank<'p> {
    /// Starts the threads and reserves and touches all memory of the program.
    ///
    /// # Errors
    /// The machine does not give the memory or the threads.
    pub fn new(program: &'p Program, options: RankOptions) -> Result<Rank<'p>, Failure> {
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
        let launcher =
            Launcher { pool, scratch, scratch_stride: scratch_stride as usize, times: times.into() };
        Ok(Rank {
            program,
            bases: spaces.iter().map(Memory::base).collect(),
            coordinates: vec![0; program.info.mesh.len()],
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

    /// Calls the entry at `index` of the program.
    pub fn call(&mut self, index: usize) {
        // SAFETY: no launch is in flight, hence nobody else looks at the times.
        let profiled = unsafe { !(*self.launcher.times.get()).is_empty() };
        let context = StepContext {
            spaces: self.bases.as_ptr(),
            launch: if profiled { launch_profiled } else { launch },
            collective,
            coordinates: self.coordinates.as_ptr(),
            runtime: std::ptr::from_ref::<Launcher>(&self.launcher).cast_mut().cast::<c_void>(),
        };
        // SAFETY: the context holds what the ABI promises: the base of every space and a launcher that outlives the call.
        unsafe { self.program.entry_fn(index)(&context) }
    }

    /// Times of all ops since the last call of this function; empty unless profiling.
    pub fn take_times(&mut self) -> Vec<OpTime> {
        let times = self.launcher.times.get_mut();
        let fresh = vec![OpTime::default(); times.len()];
        std::mem::replace(times, fresh)
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
    // SAFETY: the context is the one `Rank::call` made, and generated code passes it through untouched.
    unsafe {
        let launcher = &*(*ctx).runtime.cast::<Launcher>();
        launcher.run(kernel, buffers, scalars, tiles);
    }
}

/// [`crate::abi::CollectiveFn`] of a rank that is alone: it holds everything already, and no program for one rank has any.
unsafe extern "C" fn collective(
    _ctx: *const StepContext,
    _op: u32,
    _collective: u32,
    _stage: u32,
    _buffers: *const *mut u8,
) {
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
    // SAFETY: as in `launch`; only this thread touches the times.
    unsafe {
        let launcher = &*(*ctx).runtime.cast::<Launcher>();
        launcher.run(kernel, buffers, scalars, tiles);
        if let Some(time) = (&mut *launcher.times.get()).get_mut(op as usize) {
            let spent = start.elapsed();
            time.least = if time.launches == 0 { spent } else { time.least.min(spent) };
            time.launches += 1;
            time.total += spent;
        }
    }
}
