//! Runs a [`Program`](super::Program) launch by launch with the plain evaluator of kernel specs, over real bytes: an
//! oracle for lowering and memory plans that knows nothing of tiles.
//!
//! Slow: every launch copies the bytes its buffers span.

use super::{Entry, KernelSpec, Launch, LoopVar, Program, ScalarArg, Step, reference};
use std::collections::BTreeMap;

pub use reference::Precision;

/// Runs an entry. `spaces` are the memory spaces of `program.info.spaces`.
///
/// # Errors
/// A launch that touches bytes outside its space.
pub fn execute(
    program: &Program,
    entry: usize,
    spaces: &mut [Vec<u8>],
    precision: Precision,
) -> Result<(), String> {
    let Entry { body, .. } = &program.entries[entry];
    let mut run = Run { program, spaces, precision, vars: BTreeMap::new() };
    run.steps(body)
}

struct Run<'a> {
    program: &'a Program,
    spaces: &'a mut [Vec<u8>],
    precision: Precision,
    vars: BTreeMap<LoopVar, u64>,
}

impl Run<'_> {
    fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(launch)?,
                Step::Loop { var, trip, reverse, body } => {
                    for i in 0..*trip {
                        self.vars.insert(*var, if *reverse { trip - 1 - i } else { i });
                        self.steps(body)?;
                    }
                    self.vars.remove(var);
                }
            }
        }
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), String> {
        let kernel = &self.program.kernels[launch.kernel as usize];
        if let KernelSpec::Custom(custom) = &kernel.spec {
            return Err(format!("{}: only a machine runs a custom kernel", custom.file));
        }
        let extents = extents(&kernel.spec, launch.buffers.len());
        let mut at = Vec::new();
        let mut buffers = Vec::new();
        for (address, bytes) in launch.buffers.iter().zip(&extents) {
            let mut offset = address.offset;
            for stride in &address.strides {
                let var =
                    *self.vars.get(&stride.var).ok_or("an address moves with a loop that is not open")?;
                offset += stride.bytes * if stride.slots == 0 { var } else { var % stride.slots };
            }
            let space = &self.spaces[address.space as usize];
            let range = offset as usize..(offset + bytes) as usize;
            let slice = space.get(range.clone()).ok_or_else(|| {
                format!("{} touches {}..{} of {} bytes", kernel.name, range.start, range.end, space.len())
            })?;
            buffers.push(slice.to_vec());
            at.push((address.space as usize, offset as usize));
        }
        let scalars: Vec<i64> = launch
            .scalars
            .iter()
            .map(|s| match s {
                ScalarArg::Const(c) => *c,
                ScalarArg::Loop(var, factor, offset) => {
                    self.vars.get(var).map_or(0, |v| *v as i64) * factor + offset
                }
            })
            .collect();
        for written in reference::evaluate(&kernel.spec, &buffers, &scalars, self.precision) {
            let (space, offset) = at[written.buffer as usize];
            let bytes = &mut self.spaces[space][offset..];
            reference::store(bytes, written.value.dtype, written.index, written.value);
        }
        Ok(())
    }
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
