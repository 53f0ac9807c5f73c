//! Runs a program's entries without LLVM: every kernel expanded to KIR and interpreted. The bits are those of the
//! compiled program.

use super::Program;
use super::lockstep::{self, Spaces};
use crate::kernels;
use crate::kir::interpret::{Binding, Interpreter};
use crate::target::Target;

/// A program ready to be interpreted.
#[derive(Debug)]
pub struct InterpretedProgram<'a> {
    program: &'a Program,
    kernels: Vec<(Interpreter, u64)>,
}

impl<'a> InterpretedProgram<'a> {
    /// Expands a program's kernels for a target.
    ///
    /// # Errors
    /// The program or a kernel does not verify.
    pub fn new(program: &'a Program, target: &Target) -> Result<InterpretedProgram<'a>, String> {
        super::verify(program).map_err(|errors| errors.join("; "))?;
        let expand = |kernel: &super::Kernel| {
            if let super::KernelSpec::Custom(custom) = &kernel.spec {
                return Err(format!("{}: only a machine runs a custom kernel", custom.file));
            }
            let kir = kernels::expand(&kernel.spec, target);
            let interpreter = Interpreter::new(&kir).map_err(|e| format!("kernel {}: {e}", kernel.name))?;
            Ok((interpreter, kir.tiles))
        };
        let kernels = program.kernels.iter().map(expand).collect::<Result<_, String>>()?;
        Ok(InterpretedProgram { program, kernels })
    }

    /// Runs an entry of a program for one rank on memory spaces of the sizes that `info.spaces` states.
    ///
    /// # Errors
    /// There is no such entry, a kernel touches memory beyond its buffers, or the program is for several ranks.
    pub fn run(&mut self, entry: &str, spaces: &mut [Vec<u8>]) -> Result<(), String> {
        self.run_ranks(entry, &mut [spaces])
    }

    /// Runs an entry on all ranks in lockstep; `ranks` are the memory spaces of each, by number.
    ///
    /// # Errors
    /// Those of [`InterpretedProgram::run`]; there are not as many ranks as the mesh has; a step meddles with a collective.
    pub fn run_ranks(&mut self, entry: &str, ranks: &mut [Spaces<'_>]) -> Result<(), String> {
        let InterpretedProgram { program, kernels } = self;
        let found = program.entries.iter().find(|e| e.name == entry);
        let entry = found.ok_or_else(|| format!("there is no entry {entry}"))?;
        lockstep::run(program, entry, ranks, &mut |launch, here, spaces| {
            let buffers: Vec<Binding> = launch
                .buffers
                .iter()
                .map(|a| Binding { space: a.space as usize, offset: here.offset(a) })
                .collect();
            let scalars: Vec<i64> = launch.scalars.iter().map(|s| here.scalar(*s)).collect();
            let (interpreter, tiles) = &mut kernels[launch.kernel as usize];
            let result = interpreter.run(spaces, &buffers, &scalars, 0..*tiles as i64);
            result.map_err(|e| format!("kernel {}: {e}", program.kernels[launch.kernel as usize].name))
        })
    }
}
