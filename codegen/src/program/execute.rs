//! Runs a [`Program`](super::Program) launch by launch with the plain evaluator of kernel specs, over real bytes: an
//! oracle for lowering and memory plans that knows nothing of tiles.
//!
//! Slow: every launch copies the bytes its buffers span.

use super::lockstep::{self, Here, Spaces};
use super::{KernelSpec, Launch, Program, reference};

pub use reference::Precision;

/// Runs an entry of a program for one rank. `spaces` are the memory spaces of `program.info.spaces`.
///
/// # Errors
/// A launch that touches bytes outside its space; the program is for several ranks.
pub fn execute(
    program: &Program,
    entry: usize,
    spaces: &mut [Vec<u8>],
    precision: Precision,
) -> Result<(), String> {
    execute_ranks(program, entry, &mut [spaces], precision)
}

/// Runs an entry on all ranks in lockstep; `ranks` are the memory spaces of each, by number.
///
/// # Errors
/// Those of [`execute`]; there are not as many ranks as the mesh has; a step meddles with a collective.
pub fn execute_ranks(
    program: &Program,
    entry: usize,
    ranks: &mut [Spaces<'_>],
    precision: Precision,
) -> Result<(), String> {
    lockstep::run(program, &program.entries[entry], ranks, &mut |step, here, spaces| {
        launch(program, step, here, spaces, precision)
    })
}

fn launch(
    program: &Program,
    launch: &Launch,
    here: &Here,
    spaces: &mut [Vec<u8>],
    precision: Precision,
) -> Result<(), String> {
    let kernel = &program.kernels[launch.kernel as usize];
    if let KernelSpec::Custom(custom) = &kernel.spec {
        return Err(format!("{}: only a machine runs a custom kernel", custom.file));
    }
    let extents = extents(&kernel.spec, launch.buffers.len());
    let mut at = Vec::new();
    let mut buffers = Vec::new();
    for (address, bytes) in launch.buffers.iter().zip(&extents) {
        let offset = here.offset(address);
        let space = &spaces[address.space as usize];
        let range = offset as usize..(offset + bytes) as usize;
        let slice = space.get(range.clone()).ok_or_else(|| {
            format!("{} touches {}..{} of {} bytes", kernel.name, range.start, range.end, space.len())
        })?;
        buffers.push(slice.to_vec());
        at.push((address.space as usize, offset as usize));
    }
    let scalars: Vec<i64> = launch.scalars.iter().map(|s| here.scalar(*s)).collect();
    for written in reference::evaluate(&kernel.spec, &buffers, &scalars, precision) {
        let (space, offset) = at[written.buffer as usize];
        let bytes = &mut spaces[space][offset..];
        reference::store(bytes, written.value.dtype, written.index, written.value);
    }
    Ok(())
}

/// Bytes each buffer of a kernel spans.
fn extents(spec: &KernelSpec, buffers: usize) -> Vec<u64> {
    let mut extents = vec![0; buffers];
    for used in spec.uses() {
        let extent = &mut extents[used.operand.buffer as usize];
        *extent = (*extent).max(used.extent * used.operand.dtype.bytes());
    }
    extents
}
