//! A graph through the whole compiler and back: lowered to a program, run by compiled code and by the KIR interpreter over the
//! same memory, and read out by name.

use std::collections::BTreeMap;

use mlc::graph::{DType, Graph, Name, Output};
use mlc::interpret::{Environment, Tensor, Values};
use mlc::lower::{EntryMeta, to_program};
use mlc::{fuse, memory, schedule};
use mlc_codegen::abi::{Place, ProgramInfo, RunInfo};
use mlc_codegen::kernels::expand;
use mlc_codegen::kir::interpret::{Binding, Interpreter};
use mlc_codegen::program::reference::{Value, load, store};
use mlc_codegen::program::{Address, Launch, LoopVar, Program, ScalarArg, Step};
use mlc_codegen::run::CompiledProgram;
use mlc_codegen::target::Target;

/// A program of one entry, made from a graph alone.
///
/// # Panics
/// A stage refuses the graph.
pub fn lower(graph: &Graph) -> Program {
    let fused = fuse::group(graph).unwrap_or_else(|e| panic!("{}: {e}", graph.name));
    let plan =
        memory::place(vec![schedule::order(fused)], None).unwrap_or_else(|e| panic!("{}: {e}", graph.name));
    let meta = EntryMeta { name: "train".into(), batch: 1, seq: 1 };
    to_program(&plan, &[meta], empty_info()).unwrap_or_else(|e| panic!("{}: {e}", graph.name))
}

fn empty_info() -> ProgramInfo {
    let run = RunInfo {
        steps: 1,
        seed: 0,
        data: None,
        eval_data: None,
        eval_every: 0,
        eval_batches: 0,
        checkpoint_every: 0,
        checkpoint_keep: 0,
        checkpoint_keep_every: 0,
        checkpoint_dir: String::new(),
        log_every: 0,
    };
    ProgramInfo {
        model: "random".into(),
        fingerprint: String::new(),
        spec: String::new(),
        cpu_features: Vec::new(),
        spaces: Vec::new(),
        scratch_bytes: 0,
        entries: Vec::new(),
        scalars: Vec::new(),
        tensors: Vec::new(),
        ops: Vec::new(),
        names: Vec::new(),
        vocab: 0,
        run,
        baked: Vec::new(),
        rebuild: String::new(),
    }
}

/// The memory spaces of a program with the environment in its places. All other bytes are ones: floats nobody wrote are NaN.
///
/// # Panics
/// The environment lacks a tensor.
pub fn memory_of(program: &Program, environment: &Environment) -> Vec<Vec<u8>> {
    let mut spaces: Vec<Vec<u8>> = program.info.spaces.iter().map(|s| vec![0xff; s.bytes as usize]).collect();
    for input in &program.info.entries[0].inputs {
        put(&mut spaces, input.place, &environment.inputs[&Name::from(input.name.as_str())]);
    }
    for tensor in &program.info.tensors {
        put(&mut spaces, tensor.place, &environment.tensors[&Name::from(tensor.path.as_str())]);
    }
    for scalar in &program.info.scalars {
        let given = environment.scalars.get(&Name::from(scalar.key.as_str())).copied();
        put(&mut spaces, scalar.place, &Tensor::scalar(DType::F64, given.unwrap_or(scalar.default)));
    }
    spaces
}

fn put(spaces: &mut [Vec<u8>], place: Place, tensor: &Tensor) {
    let bytes = &mut spaces[place.space as usize][place.offset as usize..];
    let dtype = tensor.ty.dtype;
    let value = |float, int| Value { dtype, float, int, error: 0.0 };
    match &tensor.values {
        Values::Float(values) => {
            values.iter().enumerate().for_each(|(i, x)| store(bytes, dtype, i as u64, value(*x, 0)));
        }
        Values::Int(values) => {
            values.iter().enumerate().for_each(|(i, x)| store(bytes, dtype, i as u64, value(0.0, *x)));
        }
    }
}

/// What the program left of an output, in the order of `like`.
///
/// # Panics
/// The program has no such output.
pub fn read(program: &Program, spaces: &[Vec<u8>], output: &Output, like: &Tensor) -> Tensor {
    let place = match output {
        Output::Report(name) => {
            program.info.entries[0].outputs.iter().find(|o| o.name == name.as_str()).map(|o| o.place)
        }
        Output::Store(path) => program.info.tensors.iter().find(|t| t.path == path.as_str()).map(|t| t.place),
    };
    let place = place.unwrap_or_else(|| panic!("the program has no {output:?}"));
    let bytes = &spaces[place.space as usize][place.offset as usize..];
    let elements = (0..like.ty.numel()).map(|i| load(bytes, like.ty.dtype, i));
    match &like.values {
        Values::Float(_) => Tensor::floats(like.ty.clone(), elements.map(|v| v.float).collect()),
        Values::Int(_) => Tensor::ints(like.ty.clone(), elements.map(|v| v.int).collect()),
    }
}

/// Runs the entry as compiled for the target, in this process.
///
/// # Errors
/// It does not compile.
pub fn run_compiled(program: &Program, target: &Target, spaces: &mut [Vec<u8>]) -> Result<(), String> {
    CompiledProgram::new(program, target)?.run("train", spaces)
}

/// Runs the entry launch by launch with the KIR interpreter, every access checked.
///
/// # Errors
/// A kernel does not verify, or touches bytes outside its buffers.
pub fn run_kir(program: &Program, target: &Target, spaces: &mut [Vec<u8>]) -> Result<(), String> {
    let mut kernels = Vec::new();
    for kernel in &program.kernels {
        let kir = expand(&kernel.spec, target);
        kernels.push((Interpreter::new(&kir)?, kir.tiles as i64));
    }
    let mut walk = Walk { kernels, vars: BTreeMap::new(), spaces };
    walk.steps(&program.entries[0].body)
}

struct Walk<'a> {
    /// With their numbers of tiles.
    kernels: Vec<(Interpreter, i64)>,
    vars: BTreeMap<LoopVar, u64>,
    spaces: &'a mut [Vec<u8>],
}

impl Walk<'_> {
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
        let bindings: Vec<Binding> = launch.buffers.iter().map(|address| self.binding(address)).collect();
        let scalars: Vec<i64> = launch.scalars.iter().map(|scalar| self.scalar(scalar)).collect();
        let (kernel, tiles) = &mut self.kernels[launch.kernel as usize];
        kernel.run(self.spaces, &bindings, &scalars, 0..*tiles)
    }

    fn binding(&self, address: &Address) -> Binding {
        let moved = address.strides.iter().map(|stride| {
            let var = self.vars[&stride.var];
            stride.bytes * if stride.slots == 0 { var } else { var % stride.slots }
        });
        Binding { space: address.space as usize, offset: address.offset + moved.sum::<u64>() }
    }

    fn scalar(&self, scalar: &ScalarArg) -> i64 {
        match scalar {
            ScalarArg::Const(value) => *value,
            ScalarArg::Loop(var, factor) => self.vars[var] as i64 * factor,
        }
    }
}
