//! Ranks as threads of one process.
//!
//! A rank that enters a collective publishes the addresses of its buffers under the collective's number; its peers read them
//! where they are, and it returns only when all have. Nothing is staged and nothing depends on who comes first. Messages are
//! copied from the sender's bytes to the receiver's by whoever comes second.
//!
//! A rank that ends, for whatever reason, [leaves](Engine::leave): it waits for those that are just reading its memory and
//! takes back what it published, so that nobody reads memory that is gone, and whoever waits for it learns that it has left.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Engine, Ticket, Waited};
use crate::device::pool::allowed_cpus;

/// Turns of the spin loop before a rank sleeps; some 20 µs.
const SPIN_TURNS: u32 = 1500;

/// One rank's handle.
pub struct Threads {
    shared: Arc<Shared>,
    rank: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Counts changes of `state`, for those who spin.
    changes: AtomicU64,
    spin_turns: u32,
}

#[derive(Default)]
struct State {
    gone: Vec<bool>,
    /// How many ranks are reading each rank's memory at this moment.
    reading: Vec<usize>,
    /// Per rank, the collectives it has entered and that not all peers have read.
    entered: Vec<BTreeMap<u64, Entered>>,
    next: Ticket,
    /// Peer of each message that is not delivered.
    pending: BTreeMap<Ticket, usize>,
    /// By sender, receiver and tag, in order.
    sends: BTreeMap<(usize, usize, u32), VecDeque<Message>>,
    receives: BTreeMap<(usize, usize, u32), VecDeque<Message>>,
}

struct Entered {
    buffers: Arc<[usize]>,
    unread: BTreeSet<usize>,
}

struct Message {
    ticket: Ticket,
    address: usize,
    len: usize,
}

/// The buffers of all members of a group in one collective; nobody frees them while this lives.
pub struct Reading<'t> {
    threads: &'t Threads,
    group: Vec<usize>,
    number: u64,
    buffers: Vec<Arc<[usize]>>,
}

impl Threads {
    /// The handles of a run of so many ranks.
    pub fn new(ranks: usize) -> Vec<Threads> {
        let state = State {
            gone: vec![false; ranks],
            reading: vec![0; ranks],
            entered: (0..ranks).map(|_| BTreeMap::new()).collect(),
            ..State::default()
        };
        // Spinning while another rank waits for the same core only delays that rank.
        let spin_turns = if ranks <= allowed_cpus().len() { SPIN_TURNS } else { 0 };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            changes: AtomicU64::new(0),
            spin_turns,
        });
        (0..ranks).map(|rank| Threads { shared: Arc::clone(&shared), rank }).collect()
    }

    /// This rank enters collective `number` of the run with these buffers, which `peers` will read.
    pub fn enter(&self, number: u64, buffers: &[*mut u8], peers: &[usize]) {
        let buffers = buffers.iter().map(|b| *b as usize).collect();
        let unread = peers.iter().copied().filter(|peer| *peer != self.rank).collect();
        self.shared.change(|state| {
            state.entered[self.rank].insert(number, Entered { buffers, unread });
        });
    }

    /// Waits until all of `group` have entered collective `number`.
    ///
    /// # Errors
    /// They have not within the limit, or never will; with those that are missing.
    pub fn read(
        &self,
        number: u64,
        group: &[usize],
        limit: Duration,
    ) -> Result<Reading<'_>, (Waited, Vec<usize>)> {
        let missing = |state: &State| -> Vec<usize> {
            group.iter().copied().filter(|&r| !state.entered[r].contains_key(&number)).collect()
        };
        let (waited, mut state) = self.shared.until(limit, |state| state.settled(missing(state)));
        if waited != Waited::Done {
            return Err((waited, missing(&state)));
        }
        let mut buffers = Vec::new();
        for &rank in group {
            state.reading[rank] += 1;
            buffers.extend(state.entered[rank].get(&number).map(|e| Arc::clone(&e.buffers)));
        }
        Ok(Reading { threads: self, group: group.to_vec(), number, buffers })
    }

    /// Waits until all peers have read what this rank published under `number`, and takes it back.
    ///
    /// # Errors
    /// They have not within the limit, or never will; with those that have not.
    pub fn finish(&self, number: u64, limit: Duration) -> Result<(), (Waited, Vec<usize>)> {
        let unread = |state: &State| -> Vec<usize> {
            state.entered[self.rank].get(&number).map_or(vec![], |e| e.unread.iter().copied().collect())
        };
        let (waited, mut state) = self.shared.until(limit, |state| state.settled(unread(state)));
        let missing = unread(&state);
        state.entered[self.rank].remove(&number);
        if waited == Waited::Done { Ok(()) } else { Err((waited, missing)) }
    }
}

impl State {
    /// Whether waiting for these ranks is over, and how.
    fn settled(&self, missing: Vec<usize>) -> Option<Waited> {
        let gone: Vec<usize> = missing.iter().copied().filter(|&r| self.gone[r]).collect();
        match (missing.is_empty(), gone.is_empty()) {
            (true, _) => Some(Waited::Done),
            (false, false) => Some(Waited::Lost(gone)),
            (false, true) => None,
        }
    }

    fn ticket(&mut self, peer: usize) -> Ticket {
        self.next += 1;
        self.pending.insert(self.next, peer);
        self.next
    }

    /// Delivers what has both ends.
    fn deliver(&mut self, key: (usize, usize, u32)) {
        let (Some(sends), Some(receives)) = (self.sends.get_mut(&key), self.receives.get_mut(&key)) else {
            return;
        };
        while !sends.is_empty() && !receives.is_empty() {
            let (Some(from), Some(to)) = (sends.pop_front(), receives.pop_front()) else { return };
            debug_assert_eq!(from.len, to.len, "a message and its receive differ in size");
            // SAFETY: the contracts of `send` and `receive` keep both in place until their tickets are done or their rank has
            // left, and either happens under the lock held here.
            unsafe {
                let len = from.len.min(to.len);
                std::ptr::copy_nonoverlapping(from.address as *const u8, to.address as *mut u8, len);
            }
            self.pending.remove(&from.ticket);
            self.pending.remove(&to.ticket);
        }
    }
}

impl Shared {
    /// A rank that panicked has left nothing half done: every change is made in one piece.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changes.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
        result
    }

    /// Waits until `settled` says how waiting ended; at most `limit`.
    fn until(
        &self,
        limit: Duration,
        settled: impl Fn(&State) -> Option<Waited>,
    ) -> (Waited, MutexGuard<'_, State>) {
        let start = Instant::now();
        let mut spins = self.spin_turns;
        let mut state = self.lock();
        loop {
            if let Some(waited) = settled(&state) {
                return (waited, state);
            }
            if spins > 0 {
                let seen = self.changes.load(Ordering::Acquire);
                drop(state);
                while spins > 0 && self.changes.load(Ordering::Acquire) == seen {
                    spins -= 1;
                    std::hint::spin_loop();
                }
                state = self.lock();
                continue;
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else { return (Waited::Late, state) };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Reading<'_> {
    /// The addresses that a member of the group published.
    pub fn buffers(&self, place: usize) -> &[usize] {
        &self.buffers[place]
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let me = self.threads.rank;
        self.threads.shared.change(|state| {
            for &rank in &self.group {
                state.reading[rank] -= 1;
                if let Some(entered) = state.entered[rank].get_mut(&self.number) {
                    entered.unread.remove(&me);
                }
            }
        });
    }
}

impl Engine for Threads {
    fn name(&self) -> &str {
        "threads"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.shared.lock().gone.len()
    }

    unsafe fn send(&self, to: usize, tag: u32, bytes: *const u8, len: usize) -> Ticket {
        self.shared.change(|state| {
            let (ticket, key) = (state.ticket(to), (self.rank, to, tag));
            state.sends.entry(key).or_default().push_back(Message { ticket, address: bytes as usize, len });
            state.deliver(key);
            ticket
        })
    }

    unsafe fn receive(&self, from: usize, tag: u32, bytes: *mut u8, len: usize) -> Ticket {
        self.shared.change(|state| {
            let (ticket, key) = (state.ticket(from), (from, self.rank, tag));
            state.receives.entry(key).or_default().push_back(Message {
                ticket,
                address: bytes as usize,
                len,
            });
            state.deliver(key);
            ticket
        })
    }

    fn wait(&self, ticket: Ticket, limit: Duration) -> Waited {
        self.shared
            .until(limit, |state| state.settled(state.pending.get(&ticket).copied().into_iter().collect()))
            .0
    }

    fn leave(&self) {
        let me = self.rank;
        self.shared.change(|state| {
            state.gone[me] = true;
            state.sends.retain(|key, _| key.0 != me);
            state.receives.retain(|key, _| key.1 != me);
        });
        let mut state = self.shared.lock();
        while state.reading[me] > 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.entered[me].clear();
    }

    fn abort(&self, _code: i32) {}

    fn any_left(&self) -> bool {
        self.shared.lock().gone.contains(&true)
    }

    fn die(&self) {
        self.leave();
    }

    fn threads(&self) -> Option<&Threads> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn messages_arrive_in_order_whoever_comes_first() {
        let ranks = Threads::new(2);
        let sent: Vec<[u8; 4]> = (0..20u32).map(u32::to_le_bytes).collect();
        let mut received = [[0u8; 4]; 20];
        // SAFETY: all buffers outlive the waits below.
        unsafe {
            for i in 0..20 {
                let send = |i: usize| ranks[0].send(1, 7, sent[i].as_ptr(), 4);
                if i % 2 == 0 {
                    send(i);
                }
                let ticket = ranks[1].receive(0, 7, received[i].as_mut_ptr(), 4);
                if i % 2 == 1 {
                    assert_eq!(ranks[1].wait(ticket, SOON), Waited::Late);
                    send(i);
                }
                assert_eq!(ranks[1].wait(ticket, LONG), Waited::Done);
            }
        }
        assert_eq!(received.as_slice(), sent);
    }

    #[test]
    fn who_waits_for_a_rank_that_leaves_learns_it() {
        let ranks = Threads::new(3);
        let mut byte = 0u8;
        std::thread::scope(|scope| {
            // SAFETY: the byte outlives the scope.
            let ticket = unsafe { ranks[0].receive(2, 1, &mut byte, 1) };
            let waiting = scope.spawn({
                let rank = &ranks[0];
                move || rank.wait(ticket, LONG)
            });
            let collective = scope.spawn(|| ranks[1].read(5, &[0, 1, 2], LONG).err());
            ranks[0].enter(5, &[], &[0, 1, 2]);
            ranks[1].enter(5, &[], &[0, 1, 2]);
            ranks[2].leave();
            assert_eq!(waiting.join().unwrap(), Waited::Lost(vec![2]));
            assert_eq!(collective.join().unwrap(), Some((Waited::Lost(vec![2]), vec![2])));
        });
    }

    #[test]
    fn a_rank_leaves_only_when_nobody_reads_its_memory() {
        let ranks = Threads::new(2);
        ranks[0].enter(0, &[], &[1]);
        ranks[1].enter(0, &[], &[0]);
        let reading = ranks[1].read(0, &[0, 1], LONG).ok().unwrap();
        std::thread::scope(|scope| {
            let leaving = scope.spawn(|| ranks[0].leave());
            std::thread::sleep(SOON);
            assert!(!leaving.is_finished());
            drop(reading);
            leaving.join().unwrap();
        });
        assert!(ranks[1].any_left());
    }
}
