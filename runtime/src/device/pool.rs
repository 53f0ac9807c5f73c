//! The threads of one rank.
//!
//! A launch gives every thread a contiguous, balanced range of the tiles, cut into a few chunks. A thread works off its own
//! range first, which keeps it near the data it touched in earlier launches, and then takes chunks from the others, so that
//! a thread the system holds up (another process, a slower core, a late wake-up) delays a launch by one chunk at most. Which
//! thread computes a tile cannot change its bits, because tiles are independent; the result therefore depends neither on
//! the number of threads nor on who took what. The calling thread is thread 0.
//!
//! Workers wait by spinning for a few microseconds, as consecutive kernels are usually that close, and then sleep in
//! the kernel (futex), so that an idle rank costs nothing. A launch allocates nothing.
//!
//! ```text
//! caller                                             worker
//! job, unfinished, then left[t] = (epoch, chunks)    waits for epoch to move
//! epoch += 1, wakes who sleeps
//! help                                               help: claim by compare-and-swap (epoch, n) -> (epoch, n - 1)
//! waits for unfinished = 0                           a claimed chunk keeps the job alive until it is counted off
//! ```

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::failure::Failure;

/// Stack of a worker: kernels keep small tiles on it, never buffers.
const STACK_BYTES: usize = 4 << 20;
/// Turns of the spin loop before a thread sleeps: about 20 µs on current x86 cores.
const SPIN_TURNS: u32 = 1500;
/// Chunks of a thread's range. More would balance better, fewer cost less; a chunk costs some 50 ns.
const CHUNKS: i64 = 8;

/// Work over tiles: `work(begin, end, thread)`.
pub type Work<'a> = dyn Fn(i64, i64, usize) + Sync + 'a;

/// A fixed team of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// Keeps what different threads write on different cache lines.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    spin_turns: u32,
    /// Counts launches; workers wait for it to move.
    epoch: Line<AtomicU32>,
    /// Workers asleep on `epoch`.
    sleeping: Line<AtomicU32>,
    /// Chunks of the current launch that are not computed yet.
    unfinished: Line<AtomicU32>,
    /// The caller sleeps on `unfinished`.
    caller_sleeps: Line<AtomicBool>,
    stop: AtomicBool,
    /// Per thread, chunks of its range that nobody claimed yet, in the low half; the epoch they belong to in the high half.
    left: Vec<Line<AtomicU64>>,
    job: UnsafeCell<Job>,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    tiles: i64,
}

// SAFETY: `job` is written by the caller only while no chunk is claimed or claimable, and read only by who claimed one.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed during `Pool::run`, while what it points at is borrowed.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads` − 1 workers; with `pin`, thread i stays on the i-th CPU this process may use.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize, pin: bool) -> Result<Pool, Failure> {
        let threads = threads.max(1);
        let cpus = allowed_cpus();
        // Spinning while another thread waits for the same core only delays that thread.
        let spin_turns = if threads <= cpus.len().max(1) { SPIN_TURNS } else { 0 };
        let idle: &Work<'static> = &|_, _, _| ();
        let shared = Arc::new(Shared {
            spin_turns,
            epoch: Line(AtomicU32::new(0)),
            sleeping: Line(AtomicU32::new(0)),
            unfinished: Line(AtomicU32::new(0)),
            caller_sleeps: Line(AtomicBool::new(false)),
            stop: AtomicBool::new(false),
            left: (0..threads).map(|_| Line(AtomicU64::new(0))).collect(),
            job: UnsafeCell::new(Job { work: idle, tiles: 0 }),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        let cpu_of = |thread: usize| if pin { cpus.get(thread % cpus.len().max(1)).copied() } else { None };
        if let Some(cpu) = cpu_of(0) {
            stay_on(&[cpu]);
        }
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let cpu = cpu_of(thread);
            let worker = std::thread::Builder::new()
                .name(format!("mlc-{thread}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        stay_on(&[cpu]);
                    }
                    shared.serve(thread);
                })
                .map_err(|e| {
                    Failure::machine(format!("error: cannot start thread {thread} of {threads}: {e}"))
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.left.len()
    }

    /// Runs `work` over `0..tiles` on all threads and returns when it is done. Must not be called from inside `work`, nor
    /// from two threads at once.
    pub fn run(&self, tiles: i64, work: &Work<'_>) {
        if self.threads() == 1 || tiles <= 1 {
            if tiles > 0 {
                work(0, tiles, 0);
            }
            return;
        }
        self.shared.launch(tiles, work);
        if self.shared.sleeping.0.load(Ordering::SeqCst) > 0 {
            futex_wake(&self.shared.epoch.0, i32::MAX);
        }
        self.shared.help(0, self.shared.epoch.0.load(Ordering::Relaxed));
        self.shared.await_the_end();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        futex_wake(&self.shared.epoch.0, i32::MAX);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Makes the chunks of a launch claimable. Only the caller does this, after the previous launch ended.
    fn launch(&self, tiles: i64, work: &Work<'_>) {
        let threads = self.left.len();
        // SAFETY: the previous launch has ended, hence no chunk is claimed and none can be: nobody reads `job`. The pointer is
        // followed only by who holds a claimed chunk of this launch, and `run` waits for all of them while `work` is
        // borrowed, so that erasing its lifetime is sound.
        unsafe {
            let work: *const Work<'static> = std::mem::transmute(std::ptr::from_ref(work));
            *self.job.get() = Job { work, tiles };
        }
        let epoch = self.epoch.0.load(Ordering::Relaxed).wrapping_add(1);
        let total: i64 = (0..threads).map(|t| chunks_of(share(tiles, threads, t))).sum();
        self.unfinished.0.store(total as u32, Ordering::Relaxed);
        for (thread, left) in self.left.iter().enumerate() {
            let chunks = chunks_of(share(tiles, threads, thread)) as u64;
            // An old epoch says as well that there is nothing to claim, and saves a write to another core's cache line.
            if chunks > 0 {
                left.0.store(u64::from(epoch) << 32 | chunks, Ordering::Release);
            }
        }
        self.epoch.0.store(epoch, Ordering::SeqCst);
    }

    /// Computes chunks of launch `epoch` until none is left, those of `thread`'s own range first.
    fn help(&self, thread: usize, epoch: u32) {
        let threads = self.left.len();
        for owner in (thread..threads).chain(0..thread) {
            // With many threads, looking at each one's line would cost more than a small launch.
            if owner != thread && self.unfinished.0.load(Ordering::Relaxed) == 0 {
                return;
            }
            while let Some(left) = claim(&self.left[owner].0, epoch) {
                // SAFETY: the claim's acquire makes the job of this epoch visible, and it stays until the chunk is counted off
                // below.
                let Job { work, tiles } = unsafe { *self.job.get() };
                let (begin, end) = chunk(share(tiles, threads, owner), left);
                // SAFETY: as above.
                unsafe { (*work)(begin, end, thread) };
                self.count_off();
            }
        }
    }

    fn count_off(&self) {
        if self.unfinished.0.fetch_sub(1, Ordering::SeqCst) == 1
            && self.caller_sleeps.0.load(Ordering::SeqCst)
        {
            futex_wake(&self.unfinished.0, 1);
        }
    }

    /// The life of a worker.
    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.await_launch(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.help(thread, seen);
        }
    }

    /// Waits until `epoch` differs from `seen`; returns the new value.
    fn await_launch(&self, seen: u32) -> u32 {
        for _ in 0..self.spin_turns {
            let now = self.epoch.0.load(Ordering::Acquire);
            if now != seen {
                return now;
            }
            std::hint::spin_loop();
        }
        self.sleeping.0.fetch_add(1, Ordering::SeqCst);
        loop {
            let now = self.epoch.0.load(Ordering::SeqCst);
            if now != seen {
                self.sleeping.0.fetch_sub(1, Ordering::SeqCst);
                return now;
            }
            futex_wait(&self.epoch.0, seen);
        }
    }

    /// Waits until every chunk of the current launch is computed.
    fn await_the_end(&self) {
        // Longer than a worker spins: sleeping here delays the whole step.
        for _ in 0..self.spin_turns.saturating_mul(4) {
            if self.unfinished.0.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        self.caller_sleeps.0.store(true, Ordering::SeqCst);
        loop {
            let unfinished = self.unfinished.0.load(Ordering::SeqCst);
            if unfinished == 0 {
                break;
            }
            futex_wait(&self.unfinished.0, unfinished);
        }
        self.caller_sleeps.0.store(false, Ordering::SeqCst);
    }
}

/// Takes one chunk of launch `epoch`; returns how many were left, itself included.
fn claim(left: &AtomicU64, epoch: u32) -> Option<i64> {
    let mut seen = left.load(Ordering::Acquire);
    loop {
        if (seen >> 32) as u32 != epoch || seen as u32 == 0 {
            return None;
        }
        match left.compare_exchange_weak(seen, seen - 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(i64::from(seen as u32)),
            Err(now) => seen = now,
        }
    }
}

/// The tiles of `thread`: contiguous ranges whose sizes differ by at most one.
fn share(tiles: i64, threads: usize, thread: usize) -> (i64, i64) {
    let cut = |i: usize| (i128::from(tiles) * i as i128 / threads as i128) as i64;
    (cut(thread), cut(thread + 1))
}

/// Number of chunks of a range.
fn chunks_of((begin, end): (i64, i64)) -> i64 {
    (end - begin).min(CHUNKS)
}

/// The chunk claimed when `left` were left, the first chunk being claimed first.
fn chunk((begin, end): (i64, i64), left: i64) -> (i64, i64) {
    let chunks = chunks_of((begin, end));
    let cut = |i: i64| begin + (end - begin) * i / chunks;
    (cut(chunks - left), cut(chunks - left + 1))
}

/// Sleeps while `word` holds `expected`; may return early.
fn futex_wait(word: &AtomicU32, expected: u32) {
    // SAFETY: the word outlives the call; a null timeout means none.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            std::ptr::null::<libc::timespec>(),
        )
    };
}

/// Wakes up to `count` threads that sleep on `word`.
fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: waking has no effect on memory.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count)
    };
}

/// The CPUs this process may run on, in order; empty when the system does not say.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero set is a valid empty set, and the call writes no more than its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

/// Keeps the calling thread, and those it starts from now on, on these of the [`allowed_cpus`]. Failure leaves it where it may
/// run already.
pub fn stay_on(cpus: &[usize]) {
    // SAFETY: the numbers came from `allowed_cpus`, hence lie inside the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn share_covers_all_tiles_once_and_is_balanced() {
        for tiles in [1, 2, 3, 7, 64, 1001] {
            for threads in 1..9 {
                let mut next = 0;
                for thread in 0..threads {
                    let (begin, end) = share(tiles, threads, thread);
                    assert_eq!(begin, next);
                    assert!((end - begin - tiles / threads as i64) <= 1);
                    next = end;
                }
                assert_eq!(next, tiles);
            }
        }
    }

    #[test]
    fn chunks_cover_a_share_once() {
        for range in [(0, 1), (3, 9), (5, 13), (5, 14), (100, 1101)] {
            let chunks = chunks_of(range);
            let mut next = range.0;
            for left in (1..=chunks).rev() {
                let (begin, end) = chunk(range, left);
                assert!(begin == next && end > begin, "{range:?}");
                next = end;
            }
            assert_eq!(next, range.1);
        }
        assert_eq!(chunks_of((4, 4)), 0);
    }

    /// Thread 1 is held up in its first chunk until all other chunks are done: the caller must take over the rest.
    #[test]
    fn run_takes_over_the_chunks_of_a_thread_that_is_held_up() {
        let pool = Pool::new(2, false).unwrap();
        let done = AtomicU64::new(0);
        pool.run(64, &|begin, end, thread| {
            while thread == 1 && done.load(Ordering::SeqCst) + ((end - begin) as u64) < 64 {
                std::hint::spin_loop();
            }
            done.fetch_add((end - begin) as u64, Ordering::SeqCst);
        });
        assert_eq!(done.load(Ordering::SeqCst), 64);
    }

    #[test]
    fn run_visits_every_tile_once_in_every_launch() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads, false).unwrap();
            let counts: Vec<AtomicU64> = (0..97).map(|_| AtomicU64::new(0)).collect();
            for launch in 0..2000u64 {
                let tiles = (launch % 98) as i64;
                pool.run(tiles, &|begin, end, _| {
                    for tile in begin..end {
                        counts[tile as usize].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for (tile, count) in counts.iter().enumerate() {
                let expected = (0..2000u64).filter(|launch| tile < (launch % 98) as usize).count() as u64;
                assert_eq!(count.load(Ordering::Relaxed), expected, "tile {tile}, {threads} threads");
            }
        }
    }

    /// After the pause all workers are asleep, so the launch takes the futex path.
    #[test]
    fn run_wakes_sleeping_workers() {
        let pool = Pool::new(3, false).unwrap();
        let sum = AtomicU64::new(0);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            pool.run(3, &|begin, _, _| {
                sum.fetch_add(begin as u64 + 1, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.load(Ordering::Relaxed), 5 * 6);
    }
}
