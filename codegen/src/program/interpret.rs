//! Runs a program's entries without LLVM: every kernel expanded to KIR and interpreted. The bits are those of the
//! compiled program.

use std::collections::BTreeMap;

use super::{Address, Launch, LoopVar, Program, ScalarArg, Step};
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

    /// Runs an entry on memory spaces of the sizes that `info.spaces` states.
    ///
    /// # Errors
    /// There is no such entry, or a kernel touches memory beyond its buffers.
    pub fn run(&mut self, entry: &str, spaces: &mut [Vec<u8>]) -> Result<(), String> {
        let found = self.program.entries.iter().find(|e| e.name == entry);
        let entry = found.ok_or_else(|| format!("there is no entry {entry}"))?;
        self.steps(&entry.body, &mut BTreeMap::new(), spaces)
    }

    fn steps(
        &mut self,
        steps: &[Step],
        vars: &mut BTreeMap<LoopVar, u64>,
        spaces: &mut [Vec<u8>],
    ) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(launch, vars, spaces)?,
                Step::Loop { var, trip, reverse, body } => {
                    for i in 0..*trip {
                        vars.insert(*var, if *reverse { trip - 1 - i } else { i });
                        self.steps(body, vars, spaces)?;
                    }
                    vars.remove(var);
                }
            }
        }
        Ok(())
    }

    fn launch(
        &mut self,
        launch: &Launch,
        vars: &BTreeMap<LoopVar, u64>,
        spaces: &mut [Vec<u8>],
    ) -> Result<(), String> {
        let buffers: Vec<Binding> = launch
            .buffers
            .iter()
            .map(|a| Binding { space: a.space as usize, offset: offset(a, vars) })
            .collect();
        let scalars: Vec<i64> = launch.scalars.iter().map(|s| scalar(*s, vars)).collect();
        let (interpreter, tiles) = &mut self.kernels[launch.kernel as usize];
        let result = interpreter.run(spaces, &buffers, &scalars, 0..*tiles as i64);
        result.map_err(|e| format!("kernel {}: {e}", self.program.kernels[launch.kernel as usize].name))
    }
}

/// Value of a loop variable; the verifier has seen that its loop is around.
fn var(vars: &BTreeMap<LoopVar, u64>, var: LoopVar) -> u64 {
    vars.get(&var).copied().unwrap_or(0)
}

fn offset(address: &Address, vars: &BTreeMap<LoopVar, u64>) -> u64 {
    address.strides.iter().fold(address.offset, |sum, stride| {
        let index = var(vars, stride.var);
        sum + stride.bytes * if stride.slots > 0 { index % stride.slots } else { index }
    })
}

fn scalar(scalar: ScalarArg, vars: &BTreeMap<LoopVar, u64>) -> i64 {
    match scalar {
        ScalarArg::Const(value) => value,
        ScalarArg::Loop(loop_var, factor, offset) => {
            (var(vars, loop_var) as i64).wrapping_mul(factor).wrapping_add(offset)
        }
    }
}
