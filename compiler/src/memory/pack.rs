//! Puts blocks with lifetimes into as few bytes as it can.
//!
//! Best fit: blocks go in one by one, each into the smallest gap between those already placed whose lives meet its own, or
//! behind them. Three orders are tried (larger first, larger size × life first, earlier first); the smallest result wins,
//! the earlier order on ties.

use super::lifetimes::Life;
use crate::fuse::BufferId;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Something to place.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Its name.
    pub id: BufferId,
    /// When it holds something.
    pub life: Life,
    /// Size, a multiple of the alignment.
    pub bytes: u64,
}

/// A packing.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Offset by block.
    pub offsets: BTreeMap<BufferId, u64>,
    /// Size of the whole.
    pub bytes: u64,
}

/// See the module's text.
pub fn pack(blocks: &[Block]) -> Packed {
    let mut orders: [Vec<&Block>; 3] = std::array::from_fn(|_| blocks.iter().collect());
    orders[0].sort_by_key(|b| (Reverse(b.bytes), b.life.from, b.id));
    orders[1].sort_by_key(|b| {
        let life = (b.life.to - b.life.from + 1) as u128;
        (Reverse(u128::from(b.bytes) * life), b.life.from, b.id)
    });
    orders[2].sort_by_key(|b| (b.life.from, Reverse(b.bytes), b.id));
    let packings = orders.iter().map(|order| best_fit(order));
    packings.min_by_key(|p| p.bytes).unwrap_or(Packed { offsets: BTreeMap::new(), bytes: 0 })
}

/// Bytes alive at the fullest moment: no packing is smaller.
pub fn lower_bound(blocks: &[Block]) -> u64 {
    blocks
        .iter()
        .map(|b| {
            let now = Life { from: b.life.from, to: b.life.from };
            blocks.iter().filter(|c| c.life.meets(now)).map(|c| c.bytes).sum()
        })
        .max()
        .unwrap_or(0)
}

fn best_fit(order: &[&Block]) -> Packed {
    let mut placed: Vec<(&Block, u64)> = Vec::new();
    let mut bytes = 0;
    for block in order {
        let mut busy: Vec<(u64, u64)> = placed
            .iter()
            .filter(|(other, _)| other.life.meets(block.life))
            .map(|(other, at)| (*at, at + other.bytes))
            .collect();
        busy.sort_unstable();
        let at = smallest_gap(&busy, block.bytes);
        bytes = bytes.max(at + block.bytes);
        placed.push((block, at));
    }
    Packed { offsets: placed.into_iter().map(|(b, at)| (b.id, at)).collect(), bytes }
}

/// Start of the smallest gap that holds `bytes`, or the end.
fn smallest_gap(busy: &[(u64, u64)], bytes: u64) -> u64 {
    let (mut end, mut best) = (0, None);
    for &(from, to) in busy {
        if from >= end + bytes && best.is_none_or(|(size, _)| from - end < size) {
            best = Some((from - end, end));
        }
        end = end.max(to);
    }
    best.map_or(end, |(_, at)| at)
}
