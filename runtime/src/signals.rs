//! Requests to stop. Signals are blocked and read from a file descriptor between steps, so that no handler and no
//! process-global flag is needed.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::failure::Failure;
use crate::world::World;

/// What requests are called.
const REQUESTS: [&str; 3] = ["request to stop", "SIGTERM", "SIGINT"];

/// Where a request to stop may come from.
pub enum Interrupts {
    /// SIGTERM and SIGINT of this process.
    Signals(Signals),
    /// A flag; tests and embedders set it.
    Flag(Arc<AtomicBool>),
    /// Nowhere.
    Never,
}

/// The signals of a process, read from a descriptor.
pub struct Signals {
    fd: OwnedFd,
    /// Reading takes a signal away; the first one seen is kept here.
    seen: OnceLock<&'static str>,
}

impl Interrupts {
    /// Takes over SIGTERM and SIGINT. Must run before any thread starts, as threads inherit what is blocked.
    ///
    /// Also ignores SIGPIPE: a closed terminal or pipe must not end a training.
    pub fn of_process() -> Interrupts {
        // SAFETY: plain system calls on local data; the descriptor is fresh and owned by nobody else.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            let set = stop_signals();
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Interrupts::Never;
            }
            match libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                -1 => {
                    libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
                    Interrupts::Never
                }
                fd => Interrupts::Signals(Signals { fd: OwnedFd::from_raw_fd(fd), seen: OnceLock::new() }),
            }
        }
    }

    /// The name of the request, if one came; from then on every call tells it. After a signal was seen a second one ends the
    /// process at once.
    pub fn requested(&self) -> Option<&'static str> {
        match self {
            Interrupts::Signals(signals) => signals.seen(),
            Interrupts::Flag(flag) => flag.load(Ordering::SeqCst).then_some(REQUESTS[0]),
            Interrupts::Never => None,
        }
    }

    /// As [`Interrupts::requested`] of any rank, the same on all: they stop after the same step. All ranks call it, at the same
    /// point of the run.
    ///
    /// # Errors
    /// Another rank does not come.
    pub fn requested_of_any(&self, world: &World) -> Result<Option<&'static str>, Failure> {
        let mine = self.requested().and_then(|name| REQUESTS.iter().position(|known| *known == name));
        let all = world.largest(mine.map_or(0, |at| at as u64 + 1))?;
        Ok(all.checked_sub(1).and_then(|at| REQUESTS.get(at as usize)).copied())
    }
}

impl Signals {
    fn seen(&self) -> Option<&'static str> {
        if self.seen.get().is_none()
            && let Some(signal) = drain(&self.fd)
        {
            // SAFETY: as in `Interrupts::of_process`.
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &stop_signals(), std::ptr::null_mut()) };
            self.seen.get_or_init(|| if signal == libc::SIGINT as u32 { REQUESTS[2] } else { REQUESTS[1] });
        }
        self.seen.get().copied()
    }
}

/// Reads all waiting signals; the number of the first.
fn drain(fd: &OwnedFd) -> Option<u32> {
    let mut first = None;
    loop {
        // SAFETY: an all-zero value is valid for this plain struct, and the call writes at most its size.
        unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let size = size_of::<libc::signalfd_siginfo>();
            if libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) != size as isize {
                return first;
            }
            first = first.or(Some(info.ssi_signo));
        }
    }
}

fn stop_signals() -> libc::sigset_t {
    // SAFETY: `sigemptyset` initialises the set before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        set
    }
}
