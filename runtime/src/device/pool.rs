//! The threads of one rank.
//!
//! A launch splits its tiles into one contiguous, balanced range per thread and returns when all are done. Which thread
//! computes a tile cannot change its bits, because tiles are independent; the pool therefore needs no particular
//! number of threads for a particular result. The calling thread is thread 0.
//!
//! Workers wait by spinning for a few microseconds, as consecutive kernels are usually that close, and then sleep in
//! the kernel (futex), so that an idle rank costs nothing. A launch allocates nothing.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use crate::failure::Failure;

/// Stack of a worker: kernels keep small tiles on it, never buffers.
const STACK_BYTES: usize = 4 << 20;
/// Turns of the spin loop before a thread sleeps: about 20 µs on current x86 cores.
const SPIN_TURNS: u32 = 1500;

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
    threads: usize,
    spin_turns: u32,
    /// Counts launches; workers wait for it to move.
    epoch: Line<AtomicU32>,
    /// Workers asleep on `epoch`.
    sleeping: Line<AtomicU32>,
    /// Workers that have not finished the current launch.
    remaining: Line<AtomicU32>,
    /// The caller sleeps on `remaining`.
    caller_sleeps: Line<AtomicBool>,
    stop: AtomicBool,
    job: UnsafeCell<Job>,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    tiles: i64,
}

// SAFETY: `job` is written by the caller only while every worker waits for `epoch`, and read after it moved.
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
            threads,
            spin_turns,
            epoch: Line(AtomicU32::new(0)),
            sleeping: Line(AtomicU32::new(0)),
            remaining: Line(AtomicU32::new(0)),
            caller_sleeps: Line(AtomicBool::new(false)),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(Job { work: idle, tiles: 0 }),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        let cpu_of = |thread: usize| if pin { cpus.get(thread % cpus.len().max(1)).copied() } else { None };
        if let Some(cpu) = cpu_of(0) {
            pin_to(cpu);
        }
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let cpu = cpu_of(thread);
            let worker = std::thread::Builder::new()
                .name(format!("mlc-{thread}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        pin_to(cpu);
                    }
                    shared.work(thread);
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
        self.shared.threads
    }

    /// Runs `work` over `0..tiles` on all threads and returns when it is done. Must not be called from inside `work`.
    pub fn run(&self, tiles: i64, work: &Work<'_>) {
        let shared = &*self.shared;
        if shared.threads == 1 || tiles <= 1 {
            if tiles > 0 {
                work(0, tiles, 0);
            }
            return;
        }
        // SAFETY: workers are waiting, hence nobody reads `job`; they stop using the pointer before this call returns,
        // while `work` is still borrowed, so that erasing its lifetime is sound.
        unsafe {
            let work: *const Work<'static> = std::mem::transmute(std::ptr::from_ref(work));
            *shared.job.get() = Job { work, tiles };
        }
        shared.remaining.0.store(shared.threads as u32 - 1, Ordering::Relaxed);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        if shared.sleeping.0.load(Ordering::SeqCst) > 0 {
            futex_wake(&shared.epoch.0, i32::MAX);
        }
        let (begin, end) = share(tiles, shared.threads, 0);
        work(begin, end, 0);
        shared.await_workers();
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
    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.await_launch(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the launch that moved `epoch` wrote the job before, and does not return before `remaining` is 0.
            let (work, tiles) = unsafe {
                let job = *self.job.get();
                (&*job.work, job.tiles)
            };
            let (begin, end) = share(tiles, self.threads, thread);
            if begin < end {
                work(begin, end, thread);
            }
            if self.remaining.0.fetch_sub(1, Ordering::SeqCst) == 1
                && self.caller_sleeps.0.load(Ordering::SeqCst)
            {
                futex_wake(&self.remaining.0, 1);
            }
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

    /// Waits until every worker finished the current launch.
    fn await_workers(&self) {
        for _ in 0..self.spin_turns.saturating_mul(4) {
            if self.remaining.0.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        self.caller_sleeps.0.store(true, Ordering::SeqCst);
        loop {
            let remaining = self.remaining.0.load(Ordering::SeqCst);
            if remaining == 0 {
                break;
            }
            futex_wait(&self.remaining.0, remaining);
        }
        self.caller_sleeps.0.store(false, Ordering::SeqCst);
    }
}

/// The tiles of `thread`: contiguous ranges whose sizes differ by at most one.
fn share(tiles: i64, threads: usize, thread: usize) -> (i64, i64) {
    let cut = |i: usize| (i128::from(tiles) * i as i128 / threads as i128) as i64;
    (cut(thread), cut(thread + 1))
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

/// Keeps the calling thread on one CPU. Failure leaves it where it may run already.
fn pin_to(cpu: usize) {
    // SAFETY: `cpu` came from `allowed_cpus`, hence lies inside the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
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
