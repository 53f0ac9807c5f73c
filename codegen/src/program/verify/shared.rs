//! Whether two buffers share memory, wherever loops and ranks move them.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::program::operands::Use;
use crate::program::{Address, LoopStride, LoopVar};

/// Largest number of loop iterations, and of elements, over which sharing is decided by enumeration.
const MAX_ENUMERATED: u64 = 1 << 14;

/// What moves addresses at a step.
#[derive(Clone, Debug)]
pub struct Around {
    /// Loops around it, with the values of their variables there.
    pub loops: Vec<(LoopVar, Range<u64>)>,
    /// Sizes of the axes of the mesh.
    pub mesh: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Var {
    Loop(LoopVar),
    Rank(u32),
}

/// What a step does with one buffer.
pub struct Touched<'t> {
    /// Where it starts.
    pub address: &'t Address,
    /// Bytes from there to behind the last one touched.
    pub bytes: u64,
    /// Whether any is written.
    pub writes: bool,
    /// The elements.
    pub uses: Vec<Use<'t>>,
}

/// What moves an address: a variable with how far.
fn moves(address: &Address) -> impl Iterator<Item = (Var, LoopStride)> {
    let loops = address.strides.iter().map(|s| (Var::Loop(s.var), *s));
    loops.chain(address.ranks.iter().map(|s| {
        let stride = LoopStride { var: LoopVar(0), bytes: s.bytes, slots: 0, ahead: 0 };
        (Var::Rank(s.axis), stride)
    }))
}

impl Around {
    fn values(&self, var: Var) -> Range<u64> {
        match var {
            Var::Loop(var) => {
                self.loops.iter().find(|(v, _)| *v == var).map_or(0..1, |(_, values)| values.clone())
            }
            Var::Rank(axis) => 0..self.mesh.get(axis as usize).copied().unwrap_or(1),
        }
    }

    /// The largest start of a buffer over all iterations and ranks.
    pub fn last_start(&self, address: &Address) -> u64 {
        moves(address).fold(address.offset, |sum, (var, stride)| {
            let last = self.values(var).end.saturating_sub(1).saturating_add_signed(stride.ahead);
            let n = if stride.slots > 0 { last.min(stride.slots - 1) } else { last };
            sum.saturating_add(n.saturating_mul(stride.bytes))
        })
    }

    /// Says which loops and axes arguments move with that are not there.
    pub fn strangers(&self, buffers: &[Address], scalars: impl Iterator<Item = LoopVar>) -> Vec<String> {
        let loops = buffers.iter().flat_map(|a| a.strides.iter().map(|s| s.var)).chain(scalars);
        let loops = loops.filter(|var| self.loops.iter().all(|(v, _)| v != var));
        let axes = buffers.iter().flat_map(|a| a.ranks.iter().map(|s| s.axis));
        let axes = axes.filter(|axis| *axis as usize >= self.mesh.len());
        let before = buffers.iter().flat_map(|a| &a.strides).filter(|s| {
            self.loops.iter().any(|(v, at)| *v == s.var && at.start.checked_add_signed(s.ahead).is_none())
        });
        let before = before
            .map(|s| format!("an argument moves with an iteration of loop {} before its first", s.var.0));
        let loops = loops.map(|var| format!("an argument moves with loop {}, which is not around it", var.0));
        loops
            .chain(before)
            .chain(axes.map(|axis| format!("an argument moves with mesh axis {axis}, which there is not")))
            .collect()
    }

    /// Starts of two buffers in every iteration of the loops and on every rank that move them; nothing if there are too
    /// many.
    fn starts(&self, a: &Address, b: &Address) -> Vec<(u64, u64)> {
        let vars: BTreeSet<Var> = moves(a).chain(moves(b)).map(|(var, _)| var).collect();
        let around: Vec<(Var, Range<u64>)> = vars.into_iter().map(|v| (v, self.values(v))).collect();
        let all = around.iter().fold(1u64, |n, (_, at)| n.saturating_mul(at.end - at.start));
        if all > MAX_ENUMERATED {
            return Vec::new();
        }
        let pair = |mut n: u64| {
            let at: Vec<(Var, u64)> = around
                .iter()
                .map(|(var, values)| {
                    let size = values.end - values.start;
                    let value = values.start + n % size;
                    n /= size;
                    (*var, value)
                })
                .collect();
            let start = |address: &Address| {
                moves(address).fold(address.offset, |sum, (var, stride)| {
                    sum + stride.at(at.iter().find(|(v, _)| *v == var).map_or(0, |&(_, value)| value))
                })
            };
            (start(a), start(b))
        };
        (0..all).map(pair).collect()
    }
}

/// Whether an element of one buffer and one of the other lie in the same memory in some iteration on some rank. Decided by
/// intervals first, then, where these overlap, by enumerating elements, as long as there are not too many.
pub fn shared(a: &Touched<'_>, b: &Touched<'_>, around: &Around) -> bool {
    if a.address.space != b.address.space {
        return false;
    }
    let anywhere = a.address.offset < around.last_start(b.address).saturating_add(b.bytes)
        && b.address.offset < around.last_start(a.address).saturating_add(a.bytes);
    if !anywhere {
        return false;
    }
    let overlap = |x: u64, y: u64| x < y.saturating_add(b.bytes) && y < x.saturating_add(a.bytes);
    let starts = around.starts(a.address, b.address);
    let mut distances: Vec<(u64, u64)> = starts.into_iter().filter(|&(x, y)| overlap(x, y)).collect();
    // Only the distance between the two matters.
    distances.sort_by_key(|&(x, y)| x.wrapping_sub(y));
    distances.dedup_by_key(|(x, y)| x.wrapping_sub(*y));
    if distances.is_empty() {
        return false;
    }
    let (Some(first), Some(second)) = (elements(a), elements(b)) else { return false };
    distances.iter().any(|&(x, y)| {
        let here: BTreeSet<u64> = first.iter().map(|e| e + x).collect();
        second.iter().any(|e| here.contains(&(e + y)))
    })
}

/// Byte offsets of the elements touched; `None` if there are too many.
fn elements(touched: &Touched<'_>) -> Option<Vec<u64>> {
    let mut all = BTreeSet::new();
    for u in &touched.uses {
        let count = u.dims.iter().fold(1u64, |n, &d| n.saturating_mul(d));
        if count > MAX_ENUMERATED {
            return None;
        }
        for mut n in 0..count {
            let mut element = u.operand.offset;
            for (&d, &s) in u.dims.iter().zip(&u.operand.strides).rev() {
                element += n % d * s;
                n /= d;
            }
            all.insert(element * u.operand.dtype.bytes());
        }
    }
    Some(all.into_iter().collect())
}
