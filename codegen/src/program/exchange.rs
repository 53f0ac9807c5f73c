//! What a collective does to the bytes of its ranks, element by element: the oracle engines are held to.
//!
//! An element passes through the wire's type on its way, that of the rank itself too, so that all ranks end up with the same
//! bits; what a reduction makes of it does not.

use super::lockstep::Spaces;
use super::reference::{Value, bf16_from_f32, bf16_to_f32, load, store};
use crate::abi::{CollectiveInfo, CollectiveKind, CollectivePartInfo, DType, Reduction};

/// Ranks of a group, in order of their place in it.
pub type Group = Vec<usize>;

/// A collective that has begun.
pub struct Exchange {
    /// Index of the collective.
    pub collective: u32,
    /// Space and byte offset of every buffer, by rank.
    pub places: Vec<Vec<(usize, u64)>>,
    groups: Vec<Group>,
    /// What each rank will receive.
    received: Vec<Vec<Received>>,
}

/// One element to be received.
#[derive(Clone, Copy, Debug)]
struct Received {
    part: usize,
    /// In elements from the start of the receive buffer.
    index: u64,
    value: Value,
}

impl Received {
    fn bits(self) -> (usize, u64, u64, i64) {
        (self.part, self.index, self.value.float.to_bits(), self.value.int)
    }
}

impl Exchange {
    /// Looks at what is sent, and makes what is received and the staging buffers unreadable until it is done.
    pub fn start(
        collective: u32,
        info: &CollectiveInfo,
        groups: Vec<Group>,
        places: Vec<Vec<(usize, u64)>>,
        ranks: &mut [Spaces<'_>],
    ) -> Exchange {
        let mut begun = Exchange { collective, places, groups, received: Vec::new() };
        begun.received = begun.look(info, ranks);
        for (rank, received) in begun.received.iter().enumerate() {
            for r in received {
                let bytes = info.parts[r.part].dtype.bytes();
                let (space, offset) = begun.places[rank][2 * r.part + 1];
                let at = (offset + r.index * bytes) as usize;
                ranks[rank][space][at..at + bytes as usize].fill(0xff);
            }
            if let Some(&(space, offset)) = begun.places[rank].last() {
                ranks[rank][space][offset as usize..][..info.staging_bytes as usize].fill(0xff);
            }
        }
        begun
    }

    /// Delivers.
    ///
    /// # Errors
    /// What is sent is no longer what it was at the start.
    pub fn done(self, info: &CollectiveInfo, ranks: &mut [Spaces<'_>]) -> Result<(), String> {
        let now = self.look(info, ranks);
        for (rank, (then, now)) in self.received.iter().zip(&now).enumerate() {
            if !then.iter().map(|r| r.bits()).eq(now.iter().map(|r| r.bits())) {
                let what = self.collective;
                return Err(format!(
                    "what rank {rank} receives by collective {what} changed after its start"
                ));
            }
            for r in now {
                let (space, offset) = self.places[rank][2 * r.part + 1];
                let bytes = &mut ranks[rank][space][offset as usize..];
                store(bytes, info.parts[r.part].dtype, r.index, r.value);
            }
        }
        Ok(())
    }

    /// What each rank receives of what is sent now.
    fn look(&self, info: &CollectiveInfo, ranks: &[Spaces<'_>]) -> Vec<Vec<Received>> {
        let mut all = vec![Vec::new(); ranks.len()];
        for group in &self.groups {
            for (q, &to) in group.iter().enumerate() {
                for (part, p) in info.parts.iter().enumerate() {
                    let sent = |from: usize, index: u64| {
                        let (space, offset) = self.places[from][2 * part];
                        let element = index + q as u64 * p.send_block;
                        through(p, load(&ranks[from][space][offset as usize..], p.dtype, element))
                    };
                    for (send, recv) in elements(p) {
                        let boxes = group.iter().map(|&from| sent(from, send));
                        if let Some(op) = reduction(info.kind) {
                            let value = boxes.reduce(|a, b| combine(op, a, b)).expect("a group has ranks");
                            all[to].push(Received { part, index: recv, value });
                        } else {
                            for (place, value) in boxes.enumerate() {
                                let index = recv + place as u64 * p.recv_block;
                                all[to].push(Received { part, index, value });
                            }
                        }
                    }
                }
            }
        }
        all
    }
}

/// Offsets of a box's elements in both buffers.
fn elements(part: &CollectivePartInfo) -> Vec<(u64, u64)> {
    let mut at = vec![(0, 0)];
    for ((&size, &send), &recv) in part.dims.iter().zip(&part.send).zip(&part.recv) {
        at = at.iter().flat_map(|&(s, r)| (0..size).map(move |i| (s + i * send, r + i * recv))).collect();
    }
    at
}

/// What reduces, if anything does.
pub fn reduction(kind: CollectiveKind) -> Option<Reduction> {
    match kind {
        CollectiveKind::AllGather | CollectiveKind::AllToAll => None,
        CollectiveKind::ReduceScatter(op) | CollectiveKind::AllReduce(op) => Some(op),
    }
}

/// The value as it comes off the wire.
fn through(part: &CollectivePartInfo, value: Value) -> Value {
    if part.wire == DType::Bf16 && part.dtype == DType::F32 {
        let float = f64::from(bf16_to_f32(bf16_from_f32(value.float as f32)));
        return Value { float, ..value };
    }
    value
}

/// Floats of 32 bits and less combine in f32.
fn combine(op: Reduction, a: Value, b: Value) -> Value {
    let is_float = matches!(a.dtype, DType::F32 | DType::F64 | DType::Bf16);
    let (x, y) = (a.float, b.float);
    let float = match op {
        Reduction::Sum if a.dtype == DType::F64 => x + y,
        Reduction::Sum => f64::from(x as f32 + y as f32),
        Reduction::Max | Reduction::Min if x.is_nan() || y.is_nan() => f64::NAN,
        Reduction::Max => {
            if y > x {
                y
            } else {
                x
            }
        }
        Reduction::Min => {
            if y < x {
                y
            } else {
                x
            }
        }
    };
    let int = match op {
        _ if is_float => 0,
        Reduction::Sum if a.dtype == DType::I32 => i64::from((a.int as i32).wrapping_add(b.int as i32)),
        Reduction::Sum => a.int.wrapping_add(b.int),
        Reduction::Max => a.int.max(b.int),
        Reduction::Min => a.int.min(b.int),
    };
    Value { float: if is_float { float } else { 0.0 }, int, ..a }
}
