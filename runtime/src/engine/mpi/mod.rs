//! Ranks as processes that a launcher started, over the MPI library it belongs to.
//!
//! All MPI calls are made by one communication thread: a rank's thread hands it sends and receives and waits for their end. It
//! keeps them going while kernels run, which many MPI libraries do not do by themselves. With nothing under way it sleeps;
//! otherwise it asks MPI again and again, giving up its core in between, and after a while sleeps ever longer, at most
//! [`NAP_MOST`].
//!
//! Ranks on the same machine look at each other's processes while they wait, so that a death is noticed even if the launcher
//! does not end the others.

mod library;
mod site;

use std::collections::{BTreeSet, VecDeque};
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::discover::Launched;
use super::{Engine, Ticket, Waited};
use crate::failure::Failure;
use library::{Handle, Library};
pub use site::Site;

/// Longest message MPI is given at once; its counts are 32 bits long.
const PIECE: usize = 1 << 30;
/// Turns without news in which the communication thread only gives up its core.
const YIELDS: u32 = 200;
/// Its first sleep after that.
const NAP_LEAST: Duration = Duration::from_micros(20);
/// Its longest while transfers are under way.
const NAP_MOST: Duration = Duration::from_micros(200);
/// How often a waiting rank looks whether the others still live.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the communication thread may take to obey.
const OBEY: Duration = Duration::from_secs(3);

/// One rank's engine.
pub struct Mpi {
    shared: Arc<Shared>,
    name: String,
    rank: usize,
    ranks: usize,
    /// Process of each rank that runs beside this one on the same machine.
    neighbours: OnceLock<Vec<Option<i32>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There are orders.
    orders: Condvar,
    /// Something is finished.
    news: Condvar,
    /// A rank's thread is waiting: it is worth being quick.
    waited_for: AtomicBool,
}

#[derive(Default)]
struct State {
    next: Ticket,
    open: BTreeSet<Ticket>,
    orders: VecDeque<Order>,
    /// The communication thread touches no buffers any more.
    left: bool,
    /// What MPI complained about; nothing will arrive any more.
    broken: Option<String>,
}

enum Order {
    Transfer(Transfer),
    Leave,
    Abort(i32),
    Finish,
}

struct Transfer {
    ticket: Ticket,
    is_send: bool,
    peer: usize,
    tag: u32,
    address: usize,
    len: usize,
}

/// A piece of a transfer that MPI is working on.
struct Active {
    ticket: Ticket,
    request: Handle,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mpi {
    /// Starts MPI in this process.
    ///
    /// # Errors
    /// There is no such library, or it does not belong to the launcher; exit code 4.
    pub fn start(launched: &Launched) -> Result<Mpi, Failure> {
        let shared = Arc::new(Shared::default());
        let (tell, told) = mpsc::channel();
        let (files, theirs) = (launched.libraries.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("mlc-mpi".to_owned())
            .spawn(move || communicate(&files, &theirs, &tell))
            .map_err(|e| Failure::machine(format!("error: cannot start the communication thread: {e}")))?;
        let answer = told.recv().unwrap_or_else(|_| Err("the communication thread ended".to_owned()));
        let hint = "MLC_MPI=FILE names the MPI library of the launcher.";
        let (name, rank, ranks) = answer.map_err(|reason| {
            Failure::machine(format!(
                "error: {} started this as one of {} ranks, and its MPI library does not load:\n{reason}\n{hint}",
                launched.by, launched.ranks
            ))
        })?;
        let mpi =
            Mpi { shared, name, rank, ranks, neighbours: OnceLock::new(), thread: Mutex::new(Some(thread)) };
        if (rank, ranks) != (launched.rank, launched.ranks) {
            return Err(Failure::machine(format!(
                "error: {} started this as rank {} of {}, but {} says rank {rank} of {ranks}: it belongs to another launcher\n{hint}",
                launched.by, launched.rank, launched.ranks, mpi.name
            )));
        }
        Ok(mpi)
    }

    /// Tells where all ranks run, by rank.
    pub fn know(&self, ranks: &[Site]) {
        let Some(mine) = ranks.get(self.rank) else { return };
        let neighbour = |site: &Site| {
            (site.machine == mine.machine && site.process != mine.process).then_some(site.process)
        };
        // A second call changes nothing.
        let _ = self.neighbours.set(ranks.iter().map(neighbour).collect());
    }

    /// Ranks on this machine whose process is no more.
    fn dead(&self) -> Vec<usize> {
        let neighbours = self.neighbours.get().map_or(&[][..], Vec::as_slice);
        let ended = neighbours.iter().enumerate().filter(|(_, process)| process.is_some_and(|p| !lives(p)));
        ended.map(|(rank, _)| rank).collect()
    }

    fn order(&self, order: impl FnOnce(&mut State) -> Order) {
        let mut state = self.shared.lock();
        let order = order(&mut state);
        state.orders.push_back(order);
        drop(state);
        self.shared.orders.notify_one();
    }

    fn transfer(&self, is_send: bool, peer: usize, tag: u32, address: usize, len: usize) -> Ticket {
        let mut ticket = 0;
        self.order(|state| {
            state.next += 1;
            ticket = state.next;
            state.open.insert(ticket);
            Order::Transfer(Transfer { ticket, is_send, peer, tag, address, len })
        });
        ticket
    }
}

/// Whether a process of this machine exists and has not ended.
fn lives(process: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        // The state follows the name, which is in parentheses and may contain some itself.
        Ok(stat) => !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with(['Z', 'X']),
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

impl Engine for Mpi {
    fn name(&self) -> &str {
        &self.name
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    unsafe fn send(&self, to: usize, tag: u32, bytes: *const u8, len: usize) -> Ticket {
        self.transfer(true, to, tag, bytes as usize, len)
    }

    unsafe fn receive(&self, from: usize, tag: u32, bytes: *mut u8, len: usize) -> Ticket {
        self.transfer(false, from, tag, bytes as usize, len)
    }

    fn wait(&self, ticket: Ticket, limit: Duration) -> Waited {
        let start = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if !state.open.contains(&ticket) {
                return Waited::Done;
            }
            if state.broken.is_some() || state.left {
                return Waited::Lost(self.dead());
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else { return Waited::Late };
            self.shared.waited_for.store(true, Ordering::Relaxed);
            let (next, timeout) = self
                .shared
                .news
                .wait_timeout(state, left.min(LOOK_EVERY))
                .unwrap_or_else(PoisonError::into_inner);
            self.shared.waited_for.store(false, Ordering::Relaxed);
            state = next;
            if timeout.timed_out() && state.open.contains(&ticket) {
                let dead = self.dead();
                if !dead.is_empty() {
                    return Waited::Lost(dead);
                }
            }
        }
    }

    fn leave(&self) {
        self.order(|_| Order::Leave);
        let start = Instant::now();
        let mut state = self.shared.lock();
        // A thread that is stuck inside MPI will not obey; the process is about to end anyway.
        while !state.left && start.elapsed() < OBEY {
            state =
                self.shared.news.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn abort(&self, code: i32) {
        self.order(|_| Order::Abort(code));
        std::thread::sleep(OBEY);
        std::process::exit(code);
    }

    fn trouble(&self) -> Option<String> {
        self.shared.lock().broken.clone()
    }

    fn any_left(&self) -> bool {
        !self.dead().is_empty()
    }

    fn die(&self) {
        // SAFETY: ends this process, as asked.
        unsafe { libc::raise(libc::SIGKILL) };
    }
}

impl Drop for Mpi {
    /// Ends MPI, unless this rank has left: then the others may never come to the end.
    fn drop(&mut self) {
        let is_sound = {
            let state = self.shared.lock();
            !state.left && state.broken.is_none()
        };
        if is_sound {
            self.order(|_| Order::Finish);
            let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
            // The communication thread does not panic.
            let _ = thread.map(JoinHandle::join);
        }
    }
}

/// The life of the communication thread.
fn communicate(
    files: &[String],
    shared: &Shared,
    tell: &mpsc::Sender<Result<(String, usize, usize), String>>,
) {
    let started = Library::load(files).and_then(|library| {
        library.init()?;
        let (rank, ranks) = library.place()?;
        Ok((library, rank, ranks))
    });
    let library = match started {
        Ok((library, rank, ranks)) => {
            // Whoever asked waits for the answer.
            let _ = tell.send(Ok((library.version(), rank, ranks)));
            library
        }
        Err(reason) => {
            let _ = tell.send(Err(reason));
            return;
        }
    };
    let mut active: Vec<Active> = Vec::new();
    let mut idle = 0;
    loop {
        for order in take_orders(shared, active.is_empty()) {
            idle = 0;
            match order {
                Order::Transfer(transfer) => {
                    if let Err(reason) = begin(&library, &transfer, &mut active) {
                        shared.lock().broken.get_or_insert(reason);
                    }
                }
                Order::Leave => {
                    active.clear();
                    shared.lock().left = true;
                    shared.news.notify_all();
                }
                Order::Abort(code) => library.abort(code),
                Order::Finish => {
                    library.finalize();
                    return;
                }
            }
        }
        if advance(&library, shared, &mut active) || active.is_empty() {
            idle = 0;
        } else {
            idle += 1;
            rest(idle, shared.waited_for.load(Ordering::Relaxed));
        }
    }
}

/// All orders there are; waits for one if `idle`.
fn take_orders(shared: &Shared, idle: bool) -> VecDeque<Order> {
    let mut state = shared.lock();
    while idle && state.orders.is_empty() {
        state = shared.orders.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    std::mem::take(&mut state.orders)
}

/// Gives up the core after so many turns without news; for less long if someone waits for them.
fn rest(idle: u32, waited_for: bool) {
    let yields = if waited_for { YIELDS } else { YIELDS / 8 };
    if idle <= yields {
        std::thread::yield_now();
    } else {
        std::thread::sleep(NAP_MOST.min(NAP_LEAST * (1 + (idle - yields) / 16)));
    }
}

/// Hands a transfer to MPI, in pieces it can count.
fn begin(library: &Library, transfer: &Transfer, active: &mut Vec<Active>) -> Result<(), String> {
    let Transfer { ticket, is_send, peer, tag, address, len } = *transfer;
    let mut at = 0;
    loop {
        let piece = PIECE.min(len - at);
        // SAFETY: who ordered the transfer keeps the bytes in place until it is done or this rank has left.
        let request = unsafe {
            if is_send {
                library.send((address + at) as *const u8, piece as c_int, peer, tag)
            } else {
                library.receive((address + at) as *mut u8, piece as c_int, peer, tag)
            }
        }?;
        active.push(Active { ticket, request });
        at += piece;
        if at >= len {
            return Ok(());
        }
    }
}

/// Asks MPI about all that is under way; whether anything is finished.
fn advance(library: &Library, shared: &Shared, active: &mut Vec<Active>) -> bool {
    let mut finished = Vec::new();
    let mut broken = None;
    active.retain_mut(|piece| match library.test(&mut piece.request) {
        Ok(false) => true,
        Ok(true) => {
            finished.push(piece.ticket);
            false
        }
        Err(reason) => {
            broken = Some(reason);
            false
        }
    });
    if finished.is_empty() && broken.is_none() {
        return false;
    }
    let mut state = shared.lock();
    for ticket in finished {
        if !active.iter().any(|piece| piece.ticket == ticket) {
            state.open.remove(&ticket);
        }
    }
    if let Some(reason) = broken {
        state.broken.get_or_insert(reason);
    }
    drop(state);
    shared.news.notify_all();
    true
}
