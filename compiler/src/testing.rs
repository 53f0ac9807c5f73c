//! How passes and verifiers are tested: text in, text out, and both texts run on the same numbers.

use crate::autodiff::differentiate::differentiate;
use crate::graph::from_spec::{Entry, from_spec};
use crate::graph::parse::parse;
use crate::graph::print::print;
use crate::graph::recognise::recognise;
use crate::graph::verify::{Stage, verify};
use crate::graph::{BinaryOp, Builder, DType, Graph, Op, Output};
use crate::interpret::{Mode, Tensor, Values, run, sample_environment};
use crate::spec::diagnostic::render_all;
use crate::spec::{MemoryLoader, SourceMap, check};
use std::fmt::Display;

/// What a pass returns: a graph, or a graph or an error.
pub trait PassResult {
    /// The graph.
    fn graph(self) -> Graph;
}

impl PassResult for Graph {
    fn graph(self) -> Graph {
        self
    }
}

impl<E: Display> PassResult for Result<Graph, E> {
    fn graph(self) -> Graph {
        self.unwrap_or_else(|e| panic!("the pass refuses: {e}"))
    }
}

/// `check_pass!(pass, "before", @"after")`: parses, verifies, runs the pass, verifies, prints, compares with the inline
/// snapshot, and runs both texts through the interpreter. The pass takes a [`Graph`] and returns one, or a `Result`.
macro_rules! check_pass {
    ($pass:expr, $before:expr, @$after:literal) => {
        insta::assert_snapshot!($crate::testing::after_pass($pass, $before), @$after)
    };
}

/// `check_refuses!("text", @"annotated")` or `check_refuses!(Stage::Graph, "text", @"annotated")`: snapshots the text with
/// each violation under its line.
macro_rules! check_refuses {
    ($text:literal, @$after:literal) => {
        check_refuses!($crate::graph::verify::Stage::Any, $text, @$after)
    };
    ($stage:expr, $text:expr, @$after:literal) => {
        insta::assert_snapshot!($crate::testing::refusal($stage, $text), @$after)
    };
}

/// Parses and verifies.
///
/// # Panics
/// The text is no graph, or one the verifier refuses.
pub fn graph(text: &str) -> Graph {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&graph, Stage::Any).unwrap_or_else(|e| panic!("{e}"));
    graph
}

/// The forward graph of a spec that is one text, recognised as it says.
///
/// # Panics
/// The spec does not check or can't be built.
pub fn graph_of_spec(text: &str) -> Graph {
    let bias = include_str!("../../specs/std/relative_bias.spec");
    let files = vec![("m.spec".into(), text.into()), ("std/relative_bias.spec".into(), bias.into())];
    let loader = MemoryLoader { files };
    let mut sources = SourceMap::new();
    let (spec, _) = check(&mut sources, &loader, "m.spec", &[]).unwrap_or_else(|found| {
        panic!("{}\n{text}", render_all(&found, &sources, false));
    });
    let batch = spec.model.size("batch").expect("a model has a batch");
    let graph = from_spec(&spec.model, Entry::Train, batch, &sources)
        .unwrap_or_else(|found| panic!("{}\n{text}", render_all(&found, &sources, false)));
    verify(&graph, Stage::Graph).unwrap_or_else(|e| panic!("{e}"));
    let graph = recognise(graph, &spec.model.lower_reference);
    verify(&graph, Stage::Graph).unwrap_or_else(|e| panic!("recognised: {e}"));
    graph
}

/// The graph with the gradient of every parameter among its results, in the parameter's order of axes.
///
/// # Panics
/// It has no derivative.
pub fn with_gradients(graph: Graph) -> Graph {
    let done = differentiate(graph, 0).unwrap_or_else(|e| panic!("{e}"));
    let mut b = Builder::resume(done.graph);
    for g in &done.gradients {
        let zero = b.constant(DType::F32, 0.0);
        let ty = b.ty(g.value).clone();
        let gradient = b.one(Op::Binary(BinaryOp::Add), &[g.gradient, zero], Some(ty), "grad");
        b.output(Output::Report(format!("grad.{}", g.param).into()), gradient);
    }
    b.finish()
}

/// See [`check_pass!`].
pub fn after_pass<R: PassResult>(pass: impl FnOnce(Graph) -> R, before: &str) -> String {
    let before = graph(before);
    let after = pass(before.clone()).graph();
    verify(&after, Stage::Any).unwrap_or_else(|e| panic!("after the pass {e}"));
    let text = print(&after);
    let reread = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(print(&reread), text, "the text does not read back");
    assert_same_numbers(&before, &after);
    text
}

/// See [`check_refuses!`].
pub fn refusal(stage: Stage, text: &str) -> String {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&graph, stage).expect_err("the verifier accepts the graph").text
}

/// Runs both graphs in f64 on three seeded environments of the first.
///
/// # Panics
/// An output of the first is missing in the second, or differs by more than 10⁻¹² relative to the largest element: a pass
/// may reorder f64 sums of at most some thousand terms, each contributing 10⁻¹⁶.
pub fn assert_same_numbers(before: &Graph, after: &Graph) {
    for seed in 0..3 {
        let environment = sample_environment(before, seed);
        let expected = run(before, &environment, Mode::F64).expect("sampled for this graph");
        let got = run(after, &environment, Mode::F64).unwrap_or_else(|e| panic!("after the pass {e}"));
        for (output, tensor) in &expected.0 {
            let other = got.0.iter().find(|(o, _)| o == output).map(|(_, t)| t);
            assert_close(output, tensor, other.unwrap_or_else(|| panic!("{output:?} is gone")));
        }
    }
}

fn assert_close(output: &Output, expected: &Tensor, got: &Tensor) {
    match (&expected.values, &got.values) {
        (Values::Int(a), Values::Int(b)) => assert_eq!(a, b, "{output:?}"),
        (Values::Float(a), Values::Float(b)) => {
            assert_eq!(a.len(), b.len(), "{output:?}");
            let largest = a.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                let same = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= 1e-12 * largest;
                assert!(same, "{output:?}[{i}]: {x} before, {y} after");
            }
        }
        _ => panic!("{output:?} is {:?} before, {:?} after", expected.ty, got.ty),
    }
}
