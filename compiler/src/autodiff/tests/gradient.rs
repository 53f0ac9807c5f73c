//! How a gradient is checked.

use crate::autodiff::activity::Activity;
use crate::autodiff::differentiate::{Differentiated, differentiate};
use crate::graph::verify::{Stage, verify};
use crate::graph::{Axis, Builder, DType, Graph, Init, Op, OpNode, Output, ReduceOp, Type, ValueId};
use crate::interpret::{Environment, Mode, Tensor, run};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// A parameter with values in (−1, 1).
pub fn param(b: &mut Builder, path: &str, axes: &[(&str, u64)]) -> ValueId {
    param_in(b, path, axes, -1.0, 1.0)
}

/// A parameter with values in a range.
pub fn param_in(b: &mut Builder, path: &str, axes: &[(&str, u64)], low: f64, high: f64) -> ValueId {
    let axes = axes.iter().map(|(name, size)| Axis::new(*name, *size)).collect();
    let op = Op::Param { path: path.into(), init: Init::Uniform { low, high } };
    b.one(op, &[], Some(Type::new(DType::F32, axes)), path)
}

/// SplitMix64, for values that are the same on every machine. Source: Steele, Lea, Flood 2014, fig. 13.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform on [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform on 0..n.
    pub fn below(&mut self, n: u64) -> i64 {
        (self.next() % n) as i64
    }
}

/// Seeded values for every source of a graph: parameters by their initial range, ids below their bound.
pub fn environment(graph: &Graph, seed: u64) -> Environment {
    let mut random = Random(seed);
    let mut environment = Environment::default();
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let Some(&value) = node.results.first() else { continue };
        let ty = graph.ty(value).clone();
        let n = ty.numel() as usize;
        match &node.op {
            Op::Param { path, init } => {
                let (low, high) = match init {
                    Init::Uniform { low, high } => (*low, *high),
                    Init::Constant(c) => (*c, *c),
                    Init::Normal { std } => (-std, *std),
                };
                let values = (0..n).map(|_| random.between(low, high)).collect();
                environment.tensors.insert(path.clone(), Tensor::floats(ty, values));
            }
            Op::State { param, kind } => {
                let name = crate::interpret::state_name(param, kind);
                environment.tensors.insert(name, Tensor::floats(ty, vec![0.0; n]));
            }
            Op::Input { name, bound } => {
                let tensor = match ty.dtype {
                    DType::I32 | DType::I64 => {
                        Tensor::ints(ty, (0..n).map(|_| random.below((*bound).max(1))).collect())
                    }
                    DType::Bool => Tensor::ints(ty, (0..n).map(|_| random.below(2)).collect()),
                    DType::F32 | DType::F64 | DType::Bf16 => {
                        Tensor::floats(ty, (0..n).map(|_| random.between(-1.0, 1.0)).collect())
                    }
                };
                environment.inputs.insert(name.clone(), tensor);
            }
            _ => {}
        }
    }
    environment
}

/// Half the distance of a central difference.
const H: f64 = 1e-5;

/// A central difference with step h is off by h²/6·f‴ from truncation and by ε·f/h from rounding. With h = 1e-5, values
/// and third derivatives of a few tens (which the ranges of the tests see to), that is below 1e-9 + 1e-10; the
/// tolerance leaves a factor of 20 and is relative to gradients above 1.
const TOLERANCE: f64 = 2e-8;

/// Builds `y` from parameters, takes `loss = Σ y·w` with random w, and compares
///
/// * the derivative by each element of each parameter with its central difference;
/// * ⟨Jv, w⟩ with ⟨v, Jᵀw⟩ for random v, Jv being a central difference along v (the dot-product test).
pub fn check(build: impl FnOnce(&mut Builder) -> ValueId) -> Graph {
    let mut b = Builder::new("test");
    let y = build(&mut b);
    let ty = b.ty(y).clone();
    let w = b.input("w", ty, 0);
    let product = b.mul(y, w);
    let axes = b.ty(product).names();
    let loss = b.reduce(ReduceOp::Sum, product, &axes);
    b.output(Output::Report("loss_sum".into()), loss);
    check_graph(b.finish())
}

/// As [`check`], of a graph whose first result is the loss. Returns the graph with gradients.
pub fn check_graph(forward: Graph) -> Graph {
    let Differentiated { graph, gradients } = differentiate(forward.clone(), 0).unwrap();
    let mut b = Builder::resume(graph);
    for gradient in &gradients {
        b.output(Output::Report(format!("grad.{}", gradient.param).into()), gradient.gradient);
    }
    let graph = b.finish();
    // What is well formed forward is so with its gradients; powers of f32 are not, and are differentiated here all the same.
    if verify(&forward, Stage::Any).is_ok() {
        verify(&graph, Stage::Any).unwrap_or_else(|e| panic!("{e}"));
    }
    let environment = environment(&forward, 7);
    let outputs = run(&graph, &environment, Mode::F64).unwrap();
    let loss = |environment: &Environment| run(&forward, environment, Mode::F64).unwrap().0[0].1.item();
    let close = |what: &str, got: f64, want: f64| {
        assert!((got - want).abs() <= TOLERANCE * want.abs().max(1.0), "{what}: {got} is not {want}");
    };
    let same = loss(&environment);
    close("the loss itself", outputs.0[0].1.item(), same);

    let mut random = Random(11);
    let (mut plus, mut minus, mut along) = (environment.clone(), environment.clone(), 0.0);
    for gradient in &gradients {
        let path = &gradient.param;
        let got = outputs.report(&format!("grad.{path}")).unwrap();
        let n = got.ty.numel() as usize;
        assert!(got.ty.same_as(forward.ty(gradient.value)), "{path}");
        let order = elements_in_order_of(&environment.tensors[path].ty, &got.ty);
        for i in 0..n {
            let moved = |by: f64| {
                let mut moved = environment.clone();
                shift(&mut moved, path, i, by);
                loss(&moved)
            };
            let want = (moved(H) - moved(-H)) / (2.0 * H);
            close(&format!("gradient of {path}[{i}]"), got.as_floats()[order[i]], want);
            let v = random.between(-1.0, 1.0);
            shift(&mut plus, path, i, H * v);
            shift(&mut minus, path, i, -H * v);
            along += v * got.as_floats()[order[i]];
        }
    }
    close("dot-product test", along, (loss(&plus) - loss(&minus)) / (2.0 * H));
    CHECKED.with_borrow_mut(|checked| checked.extend(varied_ops(&forward)));
    graph
}

thread_local! {
    /// Kinds of ops whose gradients were checked on this thread.
    static CHECKED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// Kinds of ops whose gradients [`check_graph`] has checked on this thread since the last call of this.
pub fn checked_ops() -> BTreeSet<String> {
    CHECKED.take()
}

/// Kinds of ops of a graph that take something made from a parameter, or are one.
fn varied_ops(graph: &Graph) -> BTreeSet<String> {
    let ops =
        || graph.executed_regions().into_iter().flat_map(|r| &graph.region(r).ops).map(|op| graph.op(*op));
    let is_param = |node: &&OpNode| matches!(node.op, Op::Param { .. });
    let wanted: Vec<ValueId> = ops().filter(is_param).map(|node| node.results[0]).collect();
    let activity = Activity::of(graph, &wanted);
    let varied = |node: &&OpNode| is_param(node) || node.operands.iter().any(|v| activity.varied(*v));
    ops().filter(varied).map(|node| op_kind(&node.op)).collect()
}

/// The enum and the variant that tell an op from others: `UnaryOp::Exp`, `CompositeKind::Softmax`, `Op::Select`.
pub fn op_kind(op: &Op) -> String {
    let variant =
        |text: String| text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_string();
    match op {
        Op::Unary(op) => format!("UnaryOp::{op:?}"),
        Op::Binary(op) => format!("BinaryOp::{op:?}"),
        Op::Reduce { op, .. } => format!("ReduceOp::{op:?}"),
        Op::Composite(c) => format!("CompositeKind::{}", variant(format!("{:?}", c.kind))),
        Op::Mesh(op) => format!("MeshOp::{}", variant(format!("{op:?}"))),
        other => format!("Op::{}", variant(format!("{other:?}"))),
    }
}

fn shift(environment: &mut Environment, path: &crate::graph::Name, i: usize, by: f64) {
    let tensor = environment.tensors.get_mut(path).unwrap();
    let mut values = tensor.as_floats().to_vec();
    values[i] += by;
    *tensor = Tensor::floats(tensor.ty.clone(), values);
}

/// For each element of a tensor of type `of`, its position in a tensor with the same axes in the order of `to`.
fn elements_in_order_of(of: &Type, to: &Type) -> Vec<usize> {
    let stride = |name: &str| -> u64 {
        let at = to.position(name).unwrap();
        to.axes[at + 1..].iter().map(|a| a.size).product()
    };
    (0..of.numel())
        .map(|mut i| {
            let mut position = 0;
            for axis in of.axes.iter().rev() {
                position += (i % axis.size) * stride(&axis.name);
                i /= axis.size;
            }
            position as usize
        })
        .collect()
}
