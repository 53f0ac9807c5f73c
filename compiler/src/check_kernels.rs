//! Kernels of the user's own beside their meaning: at build time each function runs once on random numbers, and what it writes is
//! compared with the interpreter.
//!
//! This happens at the sizes of the spec, or at smaller ones that the file asks for in a comment of its own, with the keys of
//! `--set`: `// check: Llama.d = 16, train.seq = 8`.

use crate::graph::custom::{directive, substituted, tiles};
use crate::graph::{CompositeKind, Custom, DType, Graph, Op, OpNode, Output, Type, ValueId};
use crate::interpret::{Environment, Mode, Tensor, Values, run};
use mlc_codegen::program::{CustomArgument, CustomSpec, Operand};
use std::collections::BTreeMap;

/// Most elements of all arguments of a check: the interpreter is no fast machine.
pub const ELEMENTS_MAX: u64 = 1 << 20;

/// How far a written element may be from the interpreter's, relative to the largest of its tensor. What is wrong is wrong by much
/// more; what sums in another order is off by much less.
const TOLERANCE: f64 = 1e-4;
/// As [`TOLERANCE`], for tensors of bf16.
const TOLERANCE_BF16: f64 = 2e-2;

/// A run of one function with what must come out.
pub struct KernelCheck {
    /// Every argument dense, in a buffer of its own.
    pub spec: CustomSpec,
    /// Contents of the buffers before the call.
    pub arguments: Vec<Vec<u8>>,
    names: Vec<String>,
    /// What the function must have written, by position.
    expected: BTreeMap<usize, Tensor>,
}

/// The overrides that the kernels of a spec ask for, from their `// check:` lines.
///
/// # Errors
/// A file has two such lines.
pub fn overrides(sources: &[(String, String)]) -> Result<Vec<String>, String> {
    let mut sets = Vec::new();
    for (file, text) in sources {
        let line = directive(text, "check").map_err(|why| format!("{file}: {why}"))?;
        for set in line.iter().flat_map(|line| line.split(',')) {
            let set: String = set.chars().filter(|c| !c.is_whitespace()).collect();
            if !set.is_empty() && !sets.contains(&set) {
                sets.push(set);
            }
        }
    }
    Ok(sets)
}

/// A check of every function that a graph calls, equal ones once.
///
/// # Errors
/// A function's arguments are too large, or its meaning can't be interpreted.
pub fn checks_of(graph: &Graph) -> Result<Vec<KernelCheck>, String> {
    let calls: Vec<(&OpNode, &Custom)> = graph
        .executed_regions()
        .into_iter()
        .flat_map(|region| &graph.region(region).ops)
        .filter_map(|op| custom_of(graph.op(*op)).map(|custom| (graph.op(*op), custom)))
        .collect();
    let mut checks: Vec<KernelCheck> = Vec::new();
    for (node, custom) in &calls {
        // What `@backward` reads of the forward pass is what the block computes, not any numbers.
        let forward = calls.iter().find(|(n, c)| {
            let same_operands =
                n.operands.iter().zip(&node.operands).all(|(a, b)| graph.ty(*a) == graph.ty(*b));
            custom.function.as_str() == "backward"
                && c.function.as_str() == "forward"
                && c.file == custom.file
                && same_operands
        });
        let check = check_of(graph, node, custom, forward.copied());
        let check = check.map_err(|why| format!("{}: {why}", custom.file))?;
        if !checks.iter().any(|known| known.spec == check.spec) {
            checks.push(check);
        }
    }
    Ok(checks)
}

fn custom_of(node: &OpNode) -> Option<&Custom> {
    let Op::Composite(c) = &node.op else { return None };
    match &c.kind {
        CompositeKind::Custom(custom) => Some(custom),
        _ => None,
    }
}

fn check_of(
    graph: &Graph,
    node: &OpNode,
    custom: &Custom,
    forward: Option<(&OpNode, &Custom)>,
) -> Result<KernelCheck, String> {
    let values: Vec<ValueId> = node.operands.iter().chain(&node.results).copied().collect();
    let types: Vec<Type> =
        values.iter().zip(&custom.arguments).map(|(v, a)| a.ordered(graph.ty(*v))).collect();
    let elements: u64 = types.iter().map(Type::numel).sum();
    if elements > ELEMENTS_MAX {
        return Err(format!(
            "checking it needs {elements} elements, the limit is {ELEMENTS_MAX}; ask for smaller sizes with a line \
             `// check: Model.size = 8, train.seq = 16`"
        ));
    }
    let (alone_graph, mut environment) = alone(graph, node, &types);
    if let Some((node, of)) = forward {
        let types: Vec<Type> = node
            .operands
            .iter()
            .chain(&node.results)
            .zip(&of.arguments)
            .map(|(v, a)| a.ordered(graph.ty(*v)))
            .collect();
        let (before, _) = alone(graph, node, &types);
        let kept = run(&before, &environment, Mode::F64).map_err(|e| e.to_string())?;
        for (argument, (_, tensor)) in of.arguments[node.operands.len()..].iter().zip(kept.0) {
            if let Some(i) = custom.arguments.iter().position(|a| a.name == argument.name) {
                environment.inputs.insert(source_name(i), tensor);
            }
        }
    }
    let outputs = run(&alone_graph, &environment, Mode::F64).map_err(|e| e.to_string())?;
    let sizes = types.iter().flat_map(|ty| &ty.axes).map(|a| (a.name.to_string(), a.size)).collect();
    let source = substituted(&custom.source, &sizes)?;
    let resolved = Custom { source: source.as_str().into(), ..custom.clone() };
    let function = resolved.signature()?;
    let n = node.operands.len();
    let (mut spec_arguments, mut arguments, mut expected) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (position, i) in resolved.bound()?.into_iter().enumerate() {
        let ty = &types[i];
        let written = i >= n;
        let content = if written {
            expected.insert(position, outputs.0[i - n].1.clone());
            // What must be written shows when it is not.
            vec![0xff; ty.bytes() as usize]
        } else {
            bytes(&environment.inputs[&source_name(i)], ty)
        };
        arguments.push(content);
        spec_arguments.push(CustomArgument {
            operand: Operand { buffer: position as u32, dtype: ty.dtype, offset: 0, strides: dense(ty) },
            dims: ty.axes.iter().map(|a| a.size).collect(),
            written,
        });
    }
    let spec = CustomSpec {
        file: custom.file.to_string(),
        function: custom.function.to_string(),
        in_tiles: function.in_tiles,
        tiles: if function.in_tiles { tiles(&source)? } else { 1 },
        source,
        arguments: spec_arguments,
    };
    let names = function.arguments.iter().map(|(name, _)| name.clone()).collect();
    Ok(KernelCheck { spec, arguments, names, expected })
}

fn source_name(i: usize) -> crate::graph::Name {
    format!("operand{i}").into()
}

fn dense(ty: &Type) -> Vec<u64> {
    let mut strides = vec![1; ty.axes.len()];
    for i in (1..ty.axes.len()).rev() {
        strides[i - 1] = strides[i] * ty.axes[i].size;
    }
    strides
}

/// The op's meaning as a graph of its own, with inputs of fixed random numbers.
fn alone(graph: &Graph, node: &OpNode, types: &[Type]) -> (Graph, Environment) {
    let Op::Composite(composite) = &node.op else { unreachable!("the caller matched it") };
    let mut b = crate::graph::Builder::new("kernel");
    let mut environment = Environment::default();
    let mut inputs = Vec::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for (i, ty) in types[..node.operands.len()].iter().enumerate() {
        let name = source_name(i);
        inputs.push(b.input(&name, ty.clone(), 0));
        environment.inputs.insert(name, random(ty, &mut state));
    }
    let results = b.inline(graph, composite.meaning, &inputs);
    for (i, (result, ty)) in results.into_iter().zip(&types[node.operands.len()..]).enumerate() {
        // In the order of axes the function writes.
        let result = b.one(Op::Broadcast, &[result], Some(ty.clone()), "out");
        b.output(Output::Report(format!("result{i}").into()), result);
    }
    (b.finish(), environment)
}

/// Values on [−1, 1), exact in bf16; small whole numbers for integers.
fn random(ty: &Type, state: &mut u64) -> Tensor {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 57) as i64
    };
    match ty.dtype {
        DType::F32 | DType::F64 | DType::Bf16 => {
            Tensor::floats(ty.clone(), (0..ty.numel()).map(|_| next() as f64 / 64.0 - 1.0).collect())
        }
        DType::I32 | DType::I64 => Tensor::ints(ty.clone(), (0..ty.numel()).map(|_| next() % 4).collect()),
        DType::Bool => Tensor::ints(ty.clone(), (0..ty.numel()).map(|_| next() % 2).collect()),
    }
}

fn bytes(tensor: &Tensor, ty: &Type) -> Vec<u8> {
    match &tensor.values {
        Values::Float(values) => values.iter().flat_map(|x| float_bytes(ty.dtype, *x)).collect(),
        Values::Int(values) => values.iter().flat_map(|x| int_bytes(ty.dtype, *x)).collect(),
    }
}

fn float_bytes(dtype: DType, x: f64) -> Vec<u8> {
    match dtype {
        DType::F64 => x.to_le_bytes().to_vec(),
        DType::Bf16 => ((x as f32).to_bits() >> 16).to_le_bytes()[..2].to_vec(),
        DType::F32 | DType::I32 | DType::I64 | DType::Bool => (x as f32).to_le_bytes().to_vec(),
    }
}

fn int_bytes(dtype: DType, x: i64) -> Vec<u8> {
    let size = dtype.bytes() as usize;
    x.to_le_bytes()[..size].to_vec()
}

fn element(dtype: DType, bytes: &[u8]) -> f64 {
    let word = |n: usize| {
        let mut all = [0u8; 8];
        all[..n].copy_from_slice(&bytes[..n]);
        u64::from_le_bytes(all)
    };
    match dtype {
        DType::F64 => f64::from_bits(word(8)),
        DType::F32 => f64::from(f32::from_bits(word(4) as u32)),
        DType::Bf16 => f64::from(f32::from_bits((word(2) as u32) << 16)),
        DType::I32 => f64::from(word(4) as u32 as i32),
        DType::I64 => word(8) as i64 as f64,
        DType::Bool => word(1) as f64,
    }
}

impl KernelCheck {
    /// Compares what the function left in its arguments.
    ///
    /// # Errors
    /// The first written element that is off: argument, index, both numbers.
    pub fn compare(&self, after: &[Vec<u8>]) -> Result<(), String> {
        for (position, want) in &self.expected {
            let argument = &self.spec.arguments[*position];
            let size = argument.operand.dtype.bytes() as usize;
            let got = after[*position].chunks_exact(size).map(|b| element(argument.operand.dtype, b));
            let want: Vec<f64> = match &want.values {
                Values::Float(values) => values.clone(),
                Values::Int(values) => values.iter().map(|x| *x as f64).collect(),
            };
            let largest = want.iter().fold(1e-6, |m: f64, x| m.max(x.abs()));
            let tolerance = if argument.operand.dtype == DType::Bf16 { TOLERANCE_BF16 } else { TOLERANCE };
            let off = |(w, g): (&f64, f64)| (w - g).abs() > tolerance * largest || g.is_nan() != w.is_nan();
            if let Some((i, (w, g))) = want.iter().zip(got).enumerate().find(|(_, (w, g))| off((w, *g))) {
                let index = index_of(i as u64, &argument.dims);
                return Err(format!(
                    "{}: `@{}` writes {g} to `%{}[{index}]`, the block computes {w}",
                    self.spec.file, self.spec.function, self.names[*position]
                ));
            }
        }
        Ok(())
    }
}

fn index_of(mut flat: u64, dims: &[u64]) -> String {
    let mut index = Vec::new();
    for size in dims.iter().rev() {
        index.push((flat % size).to_string());
        flat /= size;
    }
    index.reverse();
    index.join(", ")
}
