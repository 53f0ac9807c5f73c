//! Engines: what carries bytes between the ranks of a run.
//!
//! | engine | ranks | how |
//! |---|---|---|
//! | [`threads`] | threads of one process | peers' memory is read directly; deterministic, the oracle of all others |
//! | [`mpi`] | processes, on one machine or many | point-to-point messages of the MPI library the launcher belongs to |
//!
//! An engine only moves bytes. What is sent to whom, and the order of reductions, is decided in [`crate::collective`]; hence
//! the same bits with any engine.

pub mod discover;
pub mod mpi;
pub mod threads;

use std::time::Duration;

use threads::Threads;

/// A send or a receive under way.
pub type Ticket = u64;

/// How waiting ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for has happened.
    Done,
    /// It has not within the limit.
    Late,
    /// It never will, because these ranks have ended.
    Lost(Vec<usize>),
}

/// Message passing between the ranks of one run, as one of them sees it.
///
/// Messages from one rank to another with the same tag arrive in the order they were sent. A receive names exactly the bytes
/// of the send that it belongs to.
pub trait Engine: Send + Sync {
    /// What it is, for people: `threads`, `Open MPI v4.1.4`.
    fn name(&self) -> &str;
    /// This rank.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn ranks(&self) -> usize;
    /// Begins to send `len` bytes to rank `to`, another one; `tag` below [`TAGS`].
    ///
    /// # Safety
    /// The bytes stay there, unchanged, until the ticket is waited for with [`Waited::Done`], or [`Engine::leave`].
    unsafe fn send(&self, to: usize, tag: u32, bytes: *const u8, len: usize) -> Ticket;
    /// Begins to receive `len` bytes from rank `from`, another one.
    ///
    /// # Safety
    /// Nobody touches the bytes until the ticket is waited for with [`Waited::Done`], or [`Engine::leave`].
    unsafe fn receive(&self, from: usize, tag: u32, bytes: *mut u8, len: usize) -> Ticket;
    /// Waits until a send or receive is finished; at most `limit`. A finished ticket is forgotten, and waiting for it again
    /// is answered with [`Waited::Done`].
    fn wait(&self, ticket: Ticket, limit: Duration) -> Waited;
    /// This rank exchanges nothing more; what is under way is dropped, and no memory is touched once this returns.
    fn leave(&self);
    /// Ends all ranks of the run with an exit code, where this engine can; returns where ranks see by themselves that one has
    /// left.
    fn abort(&self, code: i32);
    /// Why nothing will arrive any more, if that is so and no rank's fault.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// Whether a rank is known to have left or ended.
    fn any_left(&self) -> bool;
    /// Ends this rank without a word, as far as the others can tell; for tests of what they do then.
    fn die(&self);
    /// The ranks' common memory, if they have one.
    fn threads(&self) -> Option<&Threads> {
        None
    }
}

/// Number of tags: the least that MPI promises.
pub const TAGS: u32 = 32_767;
