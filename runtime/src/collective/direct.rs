//! Collectives of ranks that share memory: every rank reads its peers' send buffers where they are.

use super::element::{Source, copy, reduce};
use super::plan::Plan;
use crate::abi::CollectiveKind;
use crate::device::pool::Pool;
use crate::engine::threads::Reading;

/// Fills this rank's receive buffers from what all members of the group published.
///
/// # Safety
/// `buffers` and those of every member are as [`CollectiveFn`](crate::abi::CollectiveFn) says, for this plan; nobody writes
/// what is read.
pub unsafe fn exchange(pool: &Pool, plan: &Plan, reading: &Reading<'_>, buffers: &[*mut u8]) {
    for (i, part) in plan.parts.iter().enumerate() {
        let source = Source { dtype: part.dtype, wire: part.wire };
        let to = buffers[2 * i + 1];
        let from = |place: usize| (reading.buffers(place)[2 * i] + plan.place * part.send_block) as *const u8;
        let members = 0..plan.group.len();
        // SAFETY: by this function's contract, all boxes lie inside their buffers, and sent and received ones are apart.
        unsafe {
            match plan.kind {
                CollectiveKind::AllGather | CollectiveKind::AllToAll => members.for_each(|place| {
                    copy(
                        pool,
                        &part.direct,
                        source,
                        from(place),
                        part.dtype,
                        to.add(place * part.recv_block),
                    );
                }),
                CollectiveKind::ReduceScatter(reduction) | CollectiveKind::AllReduce(reduction) => {
                    let from: Vec<*const u8> = members.map(from).collect();
                    reduce(pool, &part.direct, reduction, source, &from, part.dtype, to);
                }
            }
        }
    }
}
