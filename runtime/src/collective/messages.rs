//! Collectives made of point-to-point messages.
//!
//! | kind | messages | then |
//! |---|---|---|
//! | all-gather | this rank's box to every peer | unpacked |
//! | all-to-all | to every peer its box | unpacked |
//! | reduce-scatter | to every peer its box | reduced in the order of the group |
//! | all-reduce up to [`ALL_REDUCE_AT_ONCE`] bytes | everything to every peer | reduced in the order of the group |
//! | larger all-reduce | to every peer its range of the elements | reduced in the order of the group; the results to every peer |
//!
//! Reducing contributions in the group's order, rather than while they pass along a ring, makes the bits independent of who
//! reduces them. Pairwise exchange sends as many bytes as a ring does and needs one step; a ring would spare links that
//! several pairs share.
//!
//! The staging buffer holds packed boxes: those going out, then those coming in. Short parts of a collective go in one message.
//! A long one has a message of its own, and if it lies in one piece is sent from, or received, where it is.

use super::element::{Source, copy, reduce};
use super::plan::{Message, Part, Plan};
use super::walk::Walk;
use crate::abi::{CollectiveKind, Reduction};
use crate::device::pool::Pool;
use crate::engine::{Engine, Ticket};
use crate::failure::Failure;

/// Messages under way, each with the rank at its other end.
pub type Tickets = Vec<(usize, Ticket)>;

/// One rank's buffers of a collective that has begun, with what moves them.
pub struct Exchange<'a> {
    /// What is done.
    pub plan: &'a Plan,
    /// What packs, reduces and unpacks it.
    pub pool: &'a Pool,
    /// What carries it.
    pub engine: &'a dyn Engine,
    /// Sets its messages apart from those of other collectives under way.
    pub tag: u32,
    /// As in [`CollectiveFn`](crate::abi::CollectiveFn).
    pub buffers: &'a [*mut u8],
}

/// Elements `begin..end` of a part that the member at `place` reduces in a large all-reduce.
fn range(elements: usize, members: usize, place: usize) -> (usize, usize) {
    let cut = |i: usize| (elements as u128 * i as u128 / members as u128) as usize;
    (cut(place), cut(place + 1))
}

fn line(elements: usize) -> Walk {
    Walk::new(&[elements as u64], &[1], &[1])
}

impl Exchange<'_> {
    /// Packs and begins to send and to receive.
    ///
    /// # Safety
    /// The buffers are as [`CollectiveFn`](crate::abi::CollectiveFn) says, for this plan, and stay so until
    /// [`Exchange::finish`] has returned or the engine has been left.
    pub unsafe fn start(&self) -> Tickets {
        let mut tickets = Vec::new();
        // SAFETY: the offsets are those that `CollectiveInfo::staging` makes room for.
        unsafe {
            match self.plan.kind {
                CollectiveKind::AllReduce(_) if self.plan.by_ranges => {
                    let own = self.own();
                    for (i, part, m) in self.parts() {
                        let bytes = part.wire.bytes() as usize;
                        for (place, rank) in self.plan.peers() {
                            let (begin, end) = self.range(part, place);
                            let from = self.come(part, m, self.plan.place, &own).add(begin * bytes);
                            tickets
                                .push((rank, self.engine.send(rank, self.tag, from, (end - begin) * bytes)));
                            let (begin, end) = self.range(part, self.plan.place);
                            let slot = self.range_slot(i, place);
                            tickets.push((
                                rank,
                                self.engine.receive(rank, self.tag, slot, (end - begin) * bytes),
                            ));
                        }
                    }
                }
                CollectiveKind::AllGather | CollectiveKind::AllReduce(_) => {
                    for message in &self.plan.messages {
                        let out = self.outgoing(message, 0);
                        for (place, rank) in self.plan.peers() {
                            tickets.push((rank, self.engine.send(rank, self.tag, out, message.bytes)));
                            tickets.push((rank, self.receive(message, place, rank)));
                        }
                    }
                }
                CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => {
                    for (place, rank) in self.plan.peers() {
                        for message in &self.plan.messages {
                            let out = self.outgoing(message, place);
                            tickets.push((rank, self.engine.send(rank, self.tag, out, message.bytes)));
                            tickets.push((rank, self.receive(message, place, rank)));
                        }
                    }
                }
            }
        }
        tickets
    }

    /// Waits, and puts what has come where it belongs; `wait` returns when all of its tickets are done.
    ///
    /// # Errors
    /// Those of `wait`.
    ///
    /// # Safety
    /// As for [`Exchange::start`], which has been called before.
    pub unsafe fn finish(
        &self,
        tickets: &Tickets,
        wait: &mut dyn FnMut(&Tickets) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // This rank's own box need not wait for anybody. SAFETY: by this function's contract.
        let own = unsafe { self.own_again() };
        wait(tickets)?;
        // SAFETY: by this function's contract; all has arrived.
        unsafe {
            match self.plan.kind {
                CollectiveKind::AllGather | CollectiveKind::AllToAll => self.unpack_all(&own),
                CollectiveKind::AllReduce(reduction) if self.plan.by_ranges => {
                    self.reduce_range(reduction, &own);
                    wait(&self.send_results())?;
                    self.unpack_results();
                }
                CollectiveKind::ReduceScatter(reduction) | CollectiveKind::AllReduce(reduction) => {
                    self.reduce_all(reduction, &own);
                }
            }
        }
        Ok(())
    }

    fn range(&self, part: &Part, place: usize) -> (usize, usize) {
        range(part.elements, self.plan.group.len(), place)
    }

    fn staging(&self) -> *mut u8 {
        self.buffers[2 * self.plan.parts.len()]
    }

    /// Where a message to the member at `place` lies, if it is not packed.
    unsafe fn in_place(&self, message: &Message, place: usize) -> Option<*const u8> {
        let (i, None) = (message.parts.start, message.packed) else { return None };
        // SAFETY: by the contract of `start`.
        Some(unsafe { self.buffers[2 * i].add(place * self.plan.parts[i].send_block) })
    }

    /// Where a message to the member at `place` is packed.
    unsafe fn packed(&self, message: &Message, place: usize) -> *mut u8 {
        let before = match self.plan.kind {
            CollectiveKind::AllGather => 0,
            CollectiveKind::AllReduce(_) if self.plan.by_ranges => 0,
            // Where it is reduced with those of the others.
            CollectiveKind::AllReduce(_) => self.plan.place * self.plan.message,
            CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => place * self.plan.packed,
        };
        // SAFETY: by the contract of `start`.
        unsafe { self.staging().add(before + message.packed.unwrap_or(0)) }
    }

    /// A message to the member at `place`, packed if it is not in one piece.
    unsafe fn outgoing(&self, message: &Message, place: usize) -> *const u8 {
        // SAFETY: by the contract of `start`.
        unsafe {
            if let Some(there) = self.in_place(message, place) {
                return there;
            }
            let out = self.packed(message, place);
            for i in message.parts.clone() {
                let part = &self.plan.parts[i];
                let from = self.buffers[2 * i].add(place * part.send_block);
                let source = Source { dtype: part.dtype, wire: part.wire };
                copy(self.pool, &part.pack, source, from, part.wire, out.add(part.offset));
            }
            out
        }
    }

    /// This rank's own messages to itself.
    unsafe fn own(&self) -> Vec<*const u8> {
        // SAFETY: by the contract of `start`.
        unsafe { self.plan.messages.iter().map(|m| self.outgoing(m, self.plan.place)).collect() }
    }

    /// As [`Exchange::own`] after the start; packed already where all get the same.
    unsafe fn own_again(&self) -> Vec<*const u8> {
        let same = matches!(self.plan.kind, CollectiveKind::AllGather | CollectiveKind::AllReduce(_));
        let one = |message: &Message| {
            // SAFETY: by the contract of `start`.
            unsafe {
                match self.in_place(message, self.plan.place) {
                    Some(there) => there,
                    None if same => self.packed(message, self.plan.place).cast_const(),
                    None => self.outgoing(message, self.plan.place),
                }
            }
        };
        self.plan.messages.iter().map(one).collect()
    }

    /// Where a message of the member at `place` arrives.
    unsafe fn slot(&self, message: &Message, place: usize) -> *mut u8 {
        let members = self.plan.group.len();
        let (out, each) = match self.plan.kind {
            CollectiveKind::AllGather => (self.plan.packed, self.plan.unpacked),
            CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => {
                (members * self.plan.packed, self.plan.unpacked)
            }
            CollectiveKind::AllReduce(_) => (0, self.plan.message),
        };
        // SAFETY: by the contract of `start`.
        unsafe {
            match message.unpacked {
                Some(at) => self.staging().add(out + place * each + at),
                None => {
                    let i = message.parts.start;
                    self.buffers[2 * i + 1].add(place * self.plan.parts[i].recv_block)
                }
            }
        }
    }

    unsafe fn receive(&self, message: &Message, place: usize, rank: usize) -> Ticket {
        // SAFETY: by the contract of `start`.
        unsafe { self.engine.receive(rank, self.tag, self.slot(message, place), message.bytes) }
    }

    /// Every part with the message it travels in, by number.
    fn parts(&self) -> impl Iterator<Item = (usize, &Part, usize)> {
        let messages = self.plan.messages.iter().enumerate();
        messages.flat_map(move |(m, message)| message.parts.clone().map(move |i| (i, &self.plan.parts[i], m)))
    }

    /// Where the box of a part has come from the member at `place`.
    unsafe fn come(&self, part: &Part, m: usize, place: usize, own: &[*const u8]) -> *const u8 {
        // SAFETY: by the contract of `finish`.
        unsafe {
            let slot = || self.slot(&self.plan.messages[m], place).cast_const();
            let begin = if place == self.plan.place { own[m] } else { slot() };
            begin.add(part.offset)
        }
    }

    unsafe fn unpack_all(&self, own: &[*const u8]) {
        for place in 0..self.plan.group.len() {
            for (i, part, m) in self.parts() {
                // SAFETY: by the contract of `finish`.
                unsafe {
                    let to = self.buffers[2 * i + 1].add(place * part.recv_block);
                    let from = self.come(part, m, place, own);
                    if from != to.cast_const() {
                        let source = Source { dtype: part.wire, wire: part.wire };
                        copy(self.pool, &part.unpack, source, from, part.dtype, to);
                    }
                }
            }
        }
    }

    unsafe fn reduce_all(&self, reduction: Reduction, own: &[*const u8]) {
        for (i, part, m) in self.parts() {
            let to = self.buffers[2 * i + 1];
            let source = Source { dtype: part.wire, wire: part.wire };
            // SAFETY: by the contract of `finish`.
            unsafe {
                let members = 0..self.plan.group.len();
                let from: Vec<*const u8> = members.map(|place| self.come(part, m, place, own)).collect();
                reduce(self.pool, &part.unpack, reduction, source, &from, part.dtype, to);
            }
        }
    }

    /// Where the results of part `i` of a large all-reduce are gathered: in the receive buffer if it is in one piece.
    unsafe fn results(&self, i: usize) -> *mut u8 {
        let part = &self.plan.parts[i];
        if part.unpack.is_contiguous() {
            return self.buffers[2 * i + 1];
        }
        // SAFETY: by the contract of `start`.
        unsafe { self.staging().add(self.plan.packed + self.staged_results(i)) }
    }

    /// Bytes of the results of the parts before `i` that are gathered in staging.
    fn staged_results(&self, i: usize) -> usize {
        let staged = self.plan.parts[..i].iter().filter(|part| !part.unpack.is_contiguous());
        staged.map(|part| part.elements * part.dtype.bytes() as usize).sum()
    }

    /// Where the contribution of the member at `place` to this rank's range of part `i` arrives.
    unsafe fn range_slot(&self, i: usize, place: usize) -> *mut u8 {
        let results = self.staged_results(self.plan.parts.len());
        let bytes = |part: &Part| {
            let (begin, end) = self.range(part, self.plan.place);
            (end - begin) * part.wire.bytes() as usize
        };
        let before: usize = self.plan.parts[..i].iter().map(|part| bytes(part) * self.plan.group.len()).sum();
        let offset = self.plan.packed + results + before + place * bytes(&self.plan.parts[i]);
        // SAFETY: by the contract of `start`.
        unsafe { self.staging().add(offset) }
    }

    unsafe fn reduce_range(&self, reduction: Reduction, own: &[*const u8]) {
        // SAFETY: by the contract of `finish`.
        unsafe {
            for (i, part, m) in self.parts() {
                let (begin, end) = self.range(part, self.plan.place);
                let bytes = part.wire.bytes() as usize;
                let mine = self.come(part, m, self.plan.place, own).add(begin * bytes);
                let from: Vec<*const u8> = (0..self.plan.group.len())
                    .map(|place| if place == self.plan.place { mine } else { self.range_slot(i, place) })
                    .collect();
                let to = self.results(i).add(begin * part.dtype.bytes() as usize);
                let source = Source { dtype: part.wire, wire: part.wire };
                reduce(self.pool, &line(end - begin), reduction, source, &from, part.dtype, to);
            }
        }
    }

    /// The second half of a large all-reduce: everybody's results to everybody, as they are in memory.
    unsafe fn send_results(&self) -> Tickets {
        let mut tickets = Vec::new();
        // SAFETY: by the contract of `finish`.
        unsafe {
            for (i, part) in self.plan.parts.iter().enumerate() {
                let bytes = part.dtype.bytes() as usize;
                let at = |(begin, end): (usize, usize)| {
                    (self.results(i).add(begin * bytes), (end - begin) * bytes)
                };
                for (place, rank) in self.plan.peers() {
                    let (from, len) = at(self.range(part, self.plan.place));
                    tickets.push((rank, self.engine.send(rank, self.tag, from, len)));
                    let (to, len) = at(self.range(part, place));
                    tickets.push((rank, self.engine.receive(rank, self.tag, to, len)));
                }
            }
        }
        tickets
    }

    unsafe fn unpack_results(&self) {
        // SAFETY: by the contract of `finish`.
        unsafe {
            for (i, part) in self.plan.parts.iter().enumerate() {
                let (from, to) = (self.results(i), self.buffers[2 * i + 1]);
                if from != to {
                    let source = Source { dtype: part.dtype, wire: part.dtype };
                    copy(self.pool, &part.unpack, source, from, part.dtype, to);
                }
            }
        }
    }
}
