//! A training run by the graph interpreter: the same spec, weights and tokens as a compiled one, in f64 or f32.

use std::collections::BTreeMap;

use mlc::autodiff::from_spec::train_config;
use mlc::autodiff::training_step;
use mlc::graph::from_spec::{Entry, from_spec};
use mlc::graph::{DType, Graph, Op, Type};
use mlc::interpret::{Environment, Mode, Tensor, run, state_name};
use mlc::spec::{FileLoader, SourceMap, check, diagnostic};

use crate::harness::root;
use crate::parity::Inputs;

/// The graph of one training step and what it runs on.
pub struct Training {
    graph: Graph,
    environment: Environment,
    tokens: Vec<u16>,
    batch: usize,
    seq: usize,
    step: usize,
}

impl Training {
    /// The training step of a spec (path relative to the checkout), at the weights and tokens of `inputs`.
    ///
    /// # Panics
    /// The spec has errors, or the weights are not those of its parameters.
    pub fn new(spec: &str, inputs: &Inputs) -> Training {
        Training::with(spec, inputs, &[])
    }

    /// As [`Training::new`], with the overrides of `--set`.
    ///
    /// # Panics
    /// As [`Training::new`].
    pub fn with(spec: &str, inputs: &Inputs, sets: &[&str]) -> Training {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let mut sources = SourceMap::new();
        let path = root().join(spec);
        let (spec, _) = check(&mut sources, &FileLoader, &path.to_string_lossy(), &sets)
            .unwrap_or_else(|errors| panic!("{}", diagnostic::render_all(&errors, &sources, false)));
        let train = spec.train.as_ref().expect("the spec trains");
        let forward = from_spec(&spec.model, Entry::Train, train.batch, &sources)
            .unwrap_or_else(|errors| panic!("{}", diagnostic::render_all(&errors, &sources, false)));
        let graph =
            training_step(forward, &train_config(&spec.model, train)).unwrap_or_else(|e| panic!("{e}"));
        let environment = first_values(&graph, inputs);
        let (batch, seq) = (train.batch as usize, train.seq as usize);
        Training { graph, environment, tokens: inputs.tokens.clone(), batch, seq, step: 0 }
    }

    /// Trains on the next batch of records. Returns (mean loss before the update, gradient norm before clipping).
    ///
    /// # Panics
    /// The graph does not report `loss` and `grad_norm`.
    pub fn step(&mut self, mode: Mode) -> (f64, f64) {
        let records = self.tokens.len() / (self.seq + 1);
        let record = |i: usize| {
            let first = (self.step * self.batch + i) % records * (self.seq + 1);
            &self.tokens[first..=first + self.seq]
        };
        let window = |from: usize| -> Vec<i64> {
            let rows = (0..self.batch).flat_map(|i| record(i)[from..from + self.seq].iter());
            rows.map(|token| i64::from(*token)).collect()
        };
        for (name, from) in [("tokens", 0), ("targets", 1)] {
            let ty = self.input_type(name);
            self.environment.inputs.insert(name.into(), Tensor::ints(ty, window(from)));
        }
        self.environment.scalars.insert("step".into(), self.step as f64);
        let outputs = run(&self.graph, &self.environment, mode).unwrap_or_else(|e| panic!("{e}"));
        self.environment.store(&outputs);
        self.step += 1;
        let report = |name: &str| outputs.report(name).unwrap_or_else(|| panic!("no report `{name}`")).item();
        (report("loss"), report("grad_norm"))
    }

    /// The type of a batch input, axes in the order `[batch, seq]`.
    fn input_type(&self, name: &str) -> Type {
        let ops = self.graph.region(self.graph.body).ops.iter().map(|op| self.graph.op(*op));
        let found =
            ops.into_iter().find(|node| matches!(&node.op, Op::Input { name: n, .. } if n.as_str() == name));
        let ty = self.graph.ty(found.unwrap_or_else(|| panic!("no input `{name}`")).results[0]).clone();
        assert_eq!(ty.axes.iter().map(|a| a.size as usize).collect::<Vec<_>>(), [self.batch, self.seq]);
        ty
    }
}

/// Every parameter from the inputs, layers stacked, and every optimizer state 0.
fn first_values(graph: &Graph, inputs: &Inputs) -> Environment {
    let mut tensors = BTreeMap::new();
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        match &node.op {
            Op::Param { path, .. } => {
                let ty = graph.ty(node.results[0]).clone();
                let values = stacked(path, &ty, inputs);
                tensors.insert(path.clone(), Tensor::floats(ty, values));
            }
            Op::State { param, kind } => {
                let ty = graph.ty(node.results[0]).clone();
                let zeros = vec![0.0; ty.numel() as usize];
                tensors.insert(state_name(param, kind), Tensor::floats(ty, zeros));
            }
            _ => {}
        }
    }
    Environment { tensors, ..Environment::default() }
}

/// The values of `layer.{i}.attn.wq` for all i, one layer after the other; of `embed` as they are.
fn stacked(path: &str, ty: &Type, inputs: &Inputs) -> Vec<f64> {
    assert_eq!(ty.dtype, DType::F32, "{path}");
    let layers = if path.contains("{i}") { ty.axes[0].size } else { 1 };
    let names = (0..layers).map(|i| path.replace("{i}", &i.to_string()));
    let values: Vec<f64> = names
        .flat_map(|name| {
            let (shape, values) = inputs.weights.get(&name).unwrap_or_else(|| panic!("no weight `{name}`"));
            let declared: Vec<u64> = ty.axes.iter().map(|a| a.size).collect();
            let skip = usize::from(path.contains("{i}"));
            assert!(
                shape.iter().map(|n| *n as u64).eq(declared[skip..].iter().copied()),
                "{name}: {shape:?} is no {ty:?}"
            );
            values.iter().map(|x| f64::from(*x))
        })
        .collect();
    assert_eq!(values.len() as u64, ty.numel(), "{path}");
    values
}
