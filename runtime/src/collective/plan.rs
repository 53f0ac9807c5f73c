//! A collective as one rank takes part in it, worked out once at the start.

use super::walk::{self, Walk};
use crate::abi::{CollectiveInfo, CollectiveKind, CollectivePartInfo, DType, ProgramInfo, Reduction};
use crate::mesh::Mesh;
use std::ops::Range;

/// One collective of the program for one rank.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it does.
    pub kind: CollectiveKind,
    /// The ranks that take part, in the order of reductions.
    pub group: Vec<usize>,
    /// This rank's place among them.
    pub place: usize,
    /// What travels together.
    pub parts: Vec<Part>,
    /// Bytes that go from a rank to another: a box of every part, packed.
    pub message: usize,
    /// The messages that they go in, the same on all ranks.
    pub messages: Vec<Message>,
    /// Bytes that are packed for one member.
    pub packed: usize,
    /// Bytes that arrive packed from one member.
    pub unpacked: usize,
    /// Whether it is an all-reduce by ranges.
    pub by_ranges: bool,
    /// What it is, for people: `all_gather over data, tensor`.
    pub label: String,
}

/// Parts that travel in one message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Its parts.
    pub parts: Range<usize>,
    /// Its length in bytes.
    pub bytes: usize,
    /// Where it is packed, in the staging of what goes to one member; `None` if it is sent from where it lies.
    pub packed: Option<usize>,
    /// Where it arrives, in the staging of what comes from one member; `None` if that is where it belongs.
    pub unpacked: Option<usize>,
}

/// One tensor of a collective.
#[derive(Clone, Debug)]
pub struct Part {
    /// Element type in memory.
    pub dtype: DType,
    /// Element type in messages.
    pub wire: DType,
    /// Elements of a box.
    pub elements: usize,
    /// Where it begins in its message, in bytes.
    pub offset: usize,
    /// From one receiver's box to the next in the send buffer, in bytes.
    pub send_block: usize,
    /// From one sender's box to the next in the receive buffer, in bytes.
    pub recv_block: usize,
    /// Send buffer to message.
    pub pack: Walk,
    /// Message to receive buffer.
    pub unpack: Walk,
    /// Send buffer to receive buffer.
    pub direct: Walk,
}

impl Plan {
    /// The part that `rank` plays in a collective of a checked program.
    pub fn new(info: &ProgramInfo, mesh: &Mesh, collective: &CollectiveInfo, rank: usize) -> Plan {
        let part = |part: &CollectivePartInfo, offset: usize| {
            let strides = walk::packed(&part.dims);
            Part {
                dtype: part.dtype,
                wire: part.wire,
                elements: part.elements() as usize,
                offset,
                send_block: (part.send_block * part.dtype.bytes()) as usize,
                recv_block: (part.recv_block * part.dtype.bytes()) as usize,
                pack: Walk::new(&part.dims, &part.send, &strides),
                unpack: Walk::new(&part.dims, &strides, &part.recv),
                direct: Walk::new(&part.dims, &part.send, &part.recv),
            }
        };
        let (mut parts, mut messages) = (Vec::new(), Vec::new());
        let (mut packed, mut unpacked) = (0, 0);
        for message in collective.messages() {
            let mut bytes = 0;
            for info in &collective.parts[message.parts.clone()] {
                parts.push(part(info, bytes));
                bytes += info.message_bytes() as usize;
            }
            let place = |staged: bool, total: &mut usize| {
                let at = *total;
                *total += if staged { bytes } else { 0 };
                staged.then_some(at)
            };
            messages.push(Message {
                packed: place(message.packed, &mut packed),
                unpacked: place(message.unpacked, &mut unpacked),
                parts: message.parts,
                bytes,
            });
        }
        let axes: Vec<&str> =
            collective.mesh.iter().map(|&axis| info.mesh[axis as usize].name.as_str()).collect();
        Plan {
            kind: collective.kind,
            group: mesh.group(rank, &collective.mesh),
            place: mesh.position(rank, &collective.mesh),
            parts,
            message: messages.iter().map(|m| m.bytes).sum(),
            messages,
            packed,
            unpacked,
            by_ranges: collective.by_ranges(),
            label: format!("{} over {}", name(collective.kind), axes.join(", ")),
        }
    }

    /// The other ranks: their places and numbers.
    pub fn peers(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.group.iter().copied().enumerate().filter(|(place, _)| *place != self.place)
    }
}

fn name(kind: CollectiveKind) -> &'static str {
    match kind {
        CollectiveKind::AllGather => "all_gather",
        CollectiveKind::ReduceScatter(_) => "reduce_scatter",
        CollectiveKind::AllReduce(_) => "all_reduce",
        CollectiveKind::AllToAll => "all_to_all",
    }
}

/// What is wrong with a program's mesh and collectives; the rest of the runtime relies on nothing being wrong.
pub fn problem(info: &ProgramInfo) -> Option<String> {
    if info.mesh.iter().any(|axis| axis.size == 0) {
        return Some("an axis of its mesh has no ranks".to_owned());
    }
    let ranks = info.mesh.iter().try_fold(1u64, |n, axis| n.checked_mul(axis.size));
    if ranks.is_none_or(|n| n > 1 << 24) {
        return Some("its mesh has too many ranks".to_owned());
    }
    let mesh = Mesh::new(&info.mesh);
    info.collectives.iter().enumerate().find_map(|(i, collective)| {
        let what = collective_problem(info, &mesh, collective)?;
        Some(format!("collective {i}: {what}"))
    })
}

/// Whether these are different axes of the mesh.
fn axes_fit(info: &ProgramInfo, axes: &[u32]) -> bool {
    axes.iter().enumerate().all(|(i, axis)| (*axis as usize) < info.mesh.len() && !axes[..i].contains(axis))
}

fn collective_problem(info: &ProgramInfo, mesh: &Mesh, collective: &CollectiveInfo) -> Option<&'static str> {
    if !axes_fit(info, &collective.mesh) {
        return Some("it runs over axes that the mesh does not have");
    }
    let reduction = match collective.kind {
        CollectiveKind::AllGather | CollectiveKind::AllToAll => None,
        CollectiveKind::ReduceScatter(reduction) | CollectiveKind::AllReduce(reduction) => Some(reduction),
    };
    for part in &collective.parts {
        let CollectivePartInfo { dtype, wire, dims, send, recv, .. } = part;
        if dims.len() != send.len() || dims.len() != recv.len() {
            return Some("sizes and strides differ in number");
        }
        if dtype != wire && (*dtype, *wire) != (DType::F32, DType::Bf16) {
            return Some("its elements cannot travel as the type it names");
        }
        if reduction.is_some() && part.recv_block != 0 {
            return Some("a reduction has one result");
        }
        if reduction == Some(Reduction::Sum) && *dtype == DType::Bool {
            return Some("truth values have no sum");
        }
        let whole = matches!(collective.kind, CollectiveKind::AllGather | CollectiveKind::AllReduce(_));
        if whole && part.send_block != 0 {
            return Some("all ranks are sent the same");
        }
    }
    (collective.staging_bytes < collective.staging(mesh.ways(&collective.mesh) as u64))
        .then_some("its staging buffer is too small")
}
