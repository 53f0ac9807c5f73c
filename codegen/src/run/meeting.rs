//! Step functions of all ranks on threads of this process. Ranks wait for each other at every start and every done; the last
//! to come exchanges the data for all of them, as the interpreters do.

use std::ffi::c_void;
use std::sync::{Condvar, Mutex, PoisonError};

use super::scratch;
use crate::abi::{COLLECTIVE_START, CollectiveInfo, EntryFn, KernelFn, MeshAxisInfo, StepContext};
use crate::program::Spaces;
use crate::program::exchange::Exchange;
use crate::program::lockstep::{coordinates, groups};

/// Runs a step function on the spaces of all ranks.
///
/// # Errors
/// There are not as many ranks as the mesh has; ranks meet in different collectives; one writes what it sends.
pub fn run(
    step: EntryFn,
    mesh: &[MeshAxisInfo],
    collectives: &[CollectiveInfo],
    scratch_bytes: u64,
    ranks: &mut [Spaces<'_>],
) -> Result<(), String> {
    let n: u64 = mesh.iter().map(|a| a.size).product();
    if n != ranks.len() as u64 {
        return Err(format!("the program runs on {n} ranks, not on {}", ranks.len()));
    }
    let bases = |spaces: &mut Spaces<'_>| spaces.iter_mut().map(|s| s.as_mut_ptr()).collect();
    let bases: Vec<Bases> = ranks.iter_mut().map(|spaces| Bases(bases(spaces))).collect();
    let meeting =
        Meeting { mesh, collectives, state: Mutex::new(State::new(ranks)), all_here: Condvar::new() };
    let one = |rank: usize, spaces: &Bases| {
        let at: Vec<i64> = coordinates(mesh, rank as u64).iter().map(|c| *c as i64).collect();
        let mut lines = scratch(scratch_bytes);
        let scratch = lines.as_mut_ptr().cast();
        let own = Own { rank, scratch, meeting: std::ptr::from_ref(&meeting).cast() };
        let context = StepContext {
            spaces: spaces.0.as_ptr(),
            launch,
            collective,
            coordinates: at.as_ptr(),
            runtime: std::ptr::from_ref(&own).cast_mut().cast(),
        };
        // SAFETY: spaces are as large as the program's verifier assumed, and scratch as its kernels ask.
        unsafe { step(&context) };
    };
    match &bases[..] {
        [alone] => one(0, alone),
        _ => std::thread::scope(|threads| {
            for (rank, spaces) in bases.iter().enumerate() {
                threads.spawn(move || one(rank, spaces));
            }
        }),
    }
    let state = meeting.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    state.error.map_or(Ok(()), Err)
}

/// Base addresses of one rank's spaces.
struct Bases(Vec<*mut u8>);

// SAFETY: only the rank's own thread writes through them, or the one that exchanges data while all others wait.
unsafe impl Sync for Bases {}

/// What a rank's calls find through the context.
struct Own {
    rank: usize,
    scratch: *mut u8,
    /// The [`Meeting`]; its lifetimes do not fit through C.
    meeting: *const c_void,
}

struct Meeting<'m> {
    mesh: &'m [MeshAxisInfo],
    collectives: &'m [CollectiveInfo],
    state: Mutex<State>,
    all_here: Condvar,
}

struct State {
    /// The spaces of all ranks: a `*mut Spaces`.
    ranks: *mut c_void,
    n: usize,
    /// Who waits: collective, stage, and addresses of the buffers.
    here: Vec<Option<(u32, u32, Vec<u64>)>>,
    rounds: u64,
    open: Vec<Exchange>,
    /// The first thing that went wrong; nothing is exchanged any more.
    error: Option<String>,
}

// SAFETY: the spaces are touched under the lock while every rank waits for it.
unsafe impl Send for State {}

impl State {
    fn new(ranks: &mut [Spaces<'_>]) -> State {
        let (n, here) = (ranks.len(), vec![None; ranks.len()]);
        let ranks = ranks.as_mut_ptr().cast();
        State { ranks, n, here, rounds: 0, open: Vec::new(), error: None }
    }

    /// Everybody is here.
    fn exchange(&mut self, mesh: &[MeshAxisInfo], collectives: &[CollectiveInfo]) -> Result<(), String> {
        let calls: Vec<(u32, u32, Vec<u64>)> = self.here.iter_mut().filter_map(Option::take).collect();
        let (collective, stage) = (calls[0].0, calls[0].1);
        if calls.iter().any(|c| (c.0, c.1) != (collective, stage)) {
            return Err(format!("rank 0 is at collective {collective} and another rank elsewhere"));
        }
        // SAFETY: `run` holds the spaces for as long as there are ranks, and all of these wait for this function.
        let ranks = unsafe { std::slice::from_raw_parts_mut(self.ranks.cast::<Spaces<'_>>(), self.n) };
        let places = |(rank, (.., addresses)): (usize, &(u32, u32, Vec<u64>))| {
            addresses.iter().map(|a| place(ranks[rank], *a)).collect::<Option<Vec<(usize, u64)>>>()
        };
        let places: Option<Vec<_>> = calls.iter().enumerate().map(places).collect();
        let places = places.ok_or("a buffer lies outside the spaces")?;
        let info = &collectives[collective as usize];
        if stage == COLLECTIVE_START {
            let groups = groups(mesh, &info.mesh);
            self.open.push(Exchange::start(collective, info, groups, places, ranks));
            return Ok(());
        }
        let same = |e: &Exchange| e.collective == collective && e.places == places;
        let at = self.open.iter().position(same);
        let at = at.ok_or_else(|| format!("collective {collective} has not begun"))?;
        self.open.remove(at).done(info, ranks)
    }
}

/// Space and offset of an address.
fn place(spaces: &[Vec<u8>], address: u64) -> Option<(usize, u64)> {
    let inside = |s: &Vec<u8>| {
        let base = s.as_ptr() as u64;
        // An empty staging buffer may sit at the very end.
        (base..=base + s.len() as u64).contains(&address)
    };
    let space = spaces.iter().position(inside)?;
    Some((space, address - spaces[space].as_ptr() as u64))
}

/// [`CollectiveFn`](crate::abi::CollectiveFn) that waits for all ranks at both stages.
///
/// # Safety
/// As the type says; `runtime` is an [`Own`] and its meeting is still held.
unsafe extern "C" fn collective(
    context: *const StepContext,
    _op: u32,
    collective: u32,
    stage: u32,
    buffers: *const *mut u8,
) {
    // SAFETY: the caller's promise.
    let (own, meeting) = unsafe {
        let own = &*(*context).runtime.cast::<Own>();
        (own, &*own.meeting.cast::<Meeting<'_>>())
    };
    let n = 2 * meeting.collectives[collective as usize].parts.len() + 1;
    // SAFETY: a step function passes two buffers per part and the staging buffer.
    let buffers = unsafe { std::slice::from_raw_parts(buffers, n) };
    let call = (collective, stage, buffers.iter().map(|b| *b as u64).collect());
    let mut state = meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
    let round = state.rounds;
    state.here[own.rank] = Some(call);
    if state.here.iter().all(Option::is_some) {
        if state.error.is_none() {
            state.error = state.exchange(meeting.mesh, meeting.collectives).err();
        }
        state.here.fill(None);
        state.rounds += 1;
        meeting.all_here.notify_all();
    } else {
        let waiting = meeting.all_here.wait_while(state, |state| state.rounds == round);
        drop(waiting);
    }
}

/// Runs all tiles of a launch here and now, the second half first: the order must not matter.
///
/// # Safety
/// As [`LaunchFn`](crate::abi::LaunchFn); `runtime` is an [`Own`].
unsafe extern "C" fn launch(
    context: *const StepContext,
    _op: u32,
    kernel: KernelFn,
    buffers: *const *mut u8,
    scalars: *const i64,
    tiles: i64,
) {
    // SAFETY: the caller's promise. Scratch is this thread's alone.
    let scratch = unsafe { (*(*context).runtime.cast::<Own>()).scratch };
    let middle = tiles / 2;
    let halves = if middle > 0 { [(middle, tiles), (0, middle)] } else { [(0, tiles), (tiles, tiles)] };
    for (begin, end) in halves.into_iter().filter(|(begin, end)| begin < end) {
        // SAFETY: passed on from the caller.
        unsafe { kernel(buffers, scalars, begin, end, scratch) }
    }
}
