//! Compiles a graph alone and runs its program with the plain evaluator: what a binary would compute, without kernels.
//! For tests of everything between graph and program, and for reading a program's behaviour at small sizes.

use super::{EntryMeta, to_program};
use crate::cost::Target;
use crate::graph::{DType, Graph, Name, Op, Output};
use crate::interpret::{Environment, Outputs, Tensor, Values, placed, sample_environment};
use crate::{fuse, memory, schedule};
use mlc_codegen::abi::{MESH_KEY, ProgramInfo, RunInfo};
use mlc_codegen::program::execute::{Precision, execute};
use mlc_codegen::program::reference::{Value, load, store};
use mlc_codegen::program::{Program, Spaces};

/// The program of one graph, verified.
///
/// # Errors
/// What a stage or a verifier refuses.
pub fn program(graph: &Graph) -> Result<Program, String> {
    let fused = fuse::group(graph).map_err(|e| e.to_string())?;
    let plan =
        memory::place(vec![schedule::order(fused, &Target::default())], None).map_err(|e| e.to_string())?;
    memory::verify::verify(&plan)?;
    let meta = EntryMeta { name: "train".into(), batch: 1, seq: 1, inputs: Vec::new() };
    let program = to_program(&plan, &[meta], empty_info()).map_err(|e| e.to_string())?;
    mlc_codegen::program::verify(&program).map_err(|errors| errors.join("; "))?;
    Ok(program)
}

/// Runs a one-entry program. Memory nobody wrote reads as NaN.
///
/// # Errors
/// A launch leaves its memory.
pub fn run(program: &Program, graph: &Graph, environment: &Environment) -> Result<Outputs, String> {
    run_with(program, graph, environment, &mut |spaces| execute(program, 0, spaces, Precision::AsWritten))
}

/// As [`run`], with another way to run the entry on its memory spaces.
///
/// # Errors
/// Those of `entry`.
pub fn run_with(
    program: &Program,
    graph: &Graph,
    environment: &Environment,
    entry: &mut dyn FnMut(&mut [Vec<u8>]) -> Result<(), String>,
) -> Result<Outputs, String> {
    let mut spaces = filled(program, environment);
    entry(&mut spaces)?;
    read(program, graph, &spaces)
}

/// Runs a one-entry program of one rank's graph on all ranks, with `entry` to run it on their memory spaces. The environment
/// holds whole tensors, of which every rank takes its part. Gives what each rank has in the end, by number.
///
/// # Errors
/// Those of `entry`; a tensor that does not split as the graph says.
pub fn run_ranks(
    program: &Program,
    graph: &Graph,
    environment: &Environment,
    entry: &mut dyn FnMut(&mut [Spaces<'_>]) -> Result<(), String>,
) -> Result<Vec<Outputs>, String> {
    let mut ranks = Vec::new();
    for rank in 0..graph.mesh.ranks() {
        ranks.push(filled(program, &part_of(graph, environment, rank)?));
    }
    let mut spaces: Vec<Spaces<'_>> = ranks.iter_mut().map(Vec::as_mut_slice).collect();
    entry(&mut spaces)?;
    ranks.iter().map(|spaces| read(program, graph, spaces)).collect()
}

/// Values from a seed for everything that the ranks of a graph read, as whole tensors.
pub fn sample_whole(graph: &Graph, seed: u64) -> Environment {
    let mut whole = graph.clone();
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        if let Op::Input { .. } | Op::Param { .. } | Op::State { .. } = node.op {
            let v = node.results[0];
            let ty = placed::global_type(graph.ty(v), graph.sharding(v), &graph.mesh);
            whole.values[v.index()].ty = ty;
        }
    }
    sample_environment(&whole, seed)
}

/// What a rank's part of the graph runs on.
fn part_of(graph: &Graph, whole: &Environment, rank: u64) -> Result<Environment, String> {
    let mut own = Environment { scalars: whole.scalars.clone(), ..Environment::default() };
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let cut = |tensor: &Tensor| placed::cut(tensor, graph.sharding(node.results[0]), &graph.mesh, rank);
        match &node.op {
            Op::Input { name, .. } => {
                own.inputs.insert(name.clone(), cut(&whole.inputs[name])?);
            }
            Op::Param { path, .. } => {
                own.tensors.insert(path.clone(), cut(&whole.tensors[path])?);
            }
            Op::State { param, kind } => {
                let name = Name::from(format!("{param}.{kind}"));
                own.tensors.insert(name.clone(), cut(&whole.tensors[&name])?);
            }
            _ => {}
        }
    }
    for (axis, at) in graph.mesh.axes.iter().zip(graph.mesh.coordinates(rank)) {
        own.scalars.insert(format!("{MESH_KEY}{}", axis.name).into(), at as f64);
    }
    Ok(own)
}

/// Memory spaces with everything the program reads in its place.
fn filled(program: &Program, environment: &Environment) -> Vec<Vec<u8>> {
    let mut spaces: Vec<Vec<u8>> = program.info.spaces.iter().map(|s| vec![0xff; s.bytes as usize]).collect();
    for input in &program.info.entries[0].inputs {
        let tensor = &environment.inputs[&Name::from(input.name.as_str())];
        write_tensor(&mut spaces[0], input.place.offset, tensor);
    }
    for t in &program.info.tensors {
        write_tensor(&mut spaces[0], t.place.offset, &environment.tensors[&Name::from(t.path.as_str())]);
    }
    for s in &program.info.scalars {
        let value = environment.scalars.get(&Name::from(s.key.as_str())).copied().unwrap_or(s.default);
        write_tensor(&mut spaces[0], s.place.offset, &Tensor::scalar(DType::F64, value));
    }
    spaces
}

/// The outputs, from where the program says they lie.
fn read(program: &Program, graph: &Graph, spaces: &[Vec<u8>]) -> Result<Outputs, String> {
    let results = &graph.region(graph.body).results;
    let mut outputs = Vec::new();
    for (output, v) in graph.outputs.iter().zip(results) {
        let offset = match output {
            Output::Report(name) => {
                let out = program.info.entries[0].outputs.iter().find(|o| o.name == name.as_str());
                out.map(|o| o.place.offset)
            }
            Output::Store(path) => {
                program.info.tensors.iter().find(|t| t.path == path.as_str()).map(|t| t.place.offset)
            }
        };
        let offset = offset.ok_or_else(|| format!("{output:?} has no place"))?;
        outputs.push((output.clone(), read_tensor(&spaces[0], offset, graph.ty(*v).clone())));
    }
    Ok(Outputs(outputs))
}

fn write_tensor(space: &mut [u8], offset: u64, tensor: &Tensor) {
    let bytes = &mut space[offset as usize..];
    let dtype = tensor.ty.dtype;
    let values: Vec<Value> = match &tensor.values {
        Values::Float(v) => v.iter().map(|x| Value { dtype, float: *x, int: 0, error: 0.0 }).collect(),
        Values::Int(v) => v.iter().map(|x| Value { dtype, float: 0.0, int: *x, error: 0.0 }).collect(),
    };
    for (i, value) in values.into_iter().enumerate() {
        store(bytes, dtype, i as u64, value);
    }
}

fn read_tensor(space: &[u8], offset: u64, ty: crate::graph::Type) -> Tensor {
    let bytes = &space[offset as usize..];
    let values = (0..ty.numel()).map(|i| load(bytes, ty.dtype, i));
    match ty.dtype {
        DType::F32 | DType::F64 | DType::Bf16 => {
            let values = values.map(|v| v.float).collect();
            Tensor::floats(ty, values)
        }
        DType::I32 | DType::I64 | DType::Bool => {
            let values = values.map(|v| v.int).collect();
            Tensor::ints(ty, values)
        }
    }
}

/// Where `found` leaves the bounds that came with `expected` (from [`Mode::Bounds`](crate::interpret::Mode::Bounds)).
pub fn first_outside(expected: &Outputs, found: &Outputs) -> Option<String> {
    for ((output, want), (_, got)) in expected.0.iter().zip(&found.0) {
        match (&want.values, &got.values) {
            (Values::Float(want_values), Values::Float(got_values)) => {
                for (i, (w, g)) in want_values.iter().zip(got_values).enumerate() {
                    let bound = want.errors.get(i).copied().unwrap_or(0.0);
                    let off = (w - g).abs();
                    // Equal infinities differ by NaN; a NaN on one side only is never within the bound.
                    let fits = w == g || (w.is_nan() && g.is_nan()) || off <= bound;
                    if !fits {
                        return Some(format!(
                            "{output:?}[{i}]: {g} instead of {w}, off by {off:.2e}, allowed {bound:.2e}"
                        ));
                    }
                }
            }
            (want, got) if want == got => {}
            _ => return Some(format!("{output:?}: integers differ")),
        }
    }
    None
}

/// A description of nothing, for programs that no runtime sees.
pub fn empty_info() -> ProgramInfo {
    ProgramInfo {
        model: "alone".into(),
        fingerprint: String::new(),
        spec: String::new(),
        cpu_features: Vec::new(),
        spaces: Vec::new(),
        scratch_bytes: 0,
        mesh: Vec::new(),
        collectives: Vec::new(),
        entries: Vec::new(),
        scalars: Vec::new(),
        tensors: Vec::new(),
        ops: Vec::new(),
        names: Vec::new(),
        vocab: 0,
        run: RunInfo {
            steps: 1,
            seed: 0,
            data: None,
            eval_data: None,
            document_end: None,
            eval_every: 0,
            eval_batches: 0,
            checkpoint_every: 0,
            checkpoint_keep: 0,
            checkpoint_keep_every: 0,
            checkpoint_dir: String::new(),
            log_every: 0,
        },
        baked: Vec::new(),
        rebuild: String::new(),
        skip: None,
    }
}
