//! Documents packed into one row: attention, positions and loss as if each document stood alone.

use super::environment;
use super::gradient::Random;
use crate::autodiff::config::Microbatch;
use crate::autodiff::from_spec::train_config;
use crate::autodiff::training_step;
use crate::graph::from_spec::{Entry, from_spec};
use crate::graph::recognise::recognise;
use crate::graph::{Graph, Op};
use crate::interpret::{Environment, Mode, Outputs, Tensor, run};
use crate::spec::{MemoryLoader, SourceMap};

const SPEC: &str = "spec 1
model Packed {
  size vocab = 11, d = 8, hd = 4, heads = 2, layers = 2
  size batch = run, seq = run
  input tokens: ids<vocab>[batch, seq]
  input targets: ids<vocab>[batch, seq]
  input segments: int[batch, seq]
  input positions: int[batch, seq]
  input weight[batch, seq]
  block Layer(x[batch, seq, d], segments: int[batch, seq], positions: int[batch, seq]) -> [batch, seq, d] {
    param wq[d -> heads, hd], wk[d -> heads, hd], wv[d -> heads, hd] = normal(0.5)
    param wo[heads, hd -> d] = normal(0.5)
    q = rope[hd](dot[d](x, wq), at = positions, theta = 100, pairs = half)
    k = rope[hd](dot[d](x, wk), at = positions, theta = 100, pairs = half) as [seq: pos]
    v = dot[d](x, wv) as [seq: pos]
    seen[batch, seq, pos] = index[pos] <= index[seq] and segments == segments as [seq: pos]
    p = softmax[pos](where(seen, dot[hd](q, k) / sqrt(hd), -inf))
    x + dot[heads, hd](dot[pos](p, v), wo)
  }
  param embed[vocab, d], head[d -> vocab] = normal(1)
  x = repeat[layers](Layer@layer, gather[vocab](embed, tokens), segments, positions)
  loss weighted_mean[batch, seq](cross_entropy[vocab](dot[d](x, head), targets), weight)
}
train {
  steps = 1, batch = 4 sequences, seq = 24, data = synthetic(), pack = documents(end = 0)
  optimizer = sgd { lr = 1 }
}
";
const SEQ: usize = 24;

fn graph(entry: Entry, batch: u64, microbatch: Option<u64>) -> Graph {
    let loader = MemoryLoader { files: vec![("m.spec".into(), SPEC.into())] };
    let mut sources = SourceMap::new();
    let (spec, _) = crate::spec::check(&mut sources, &loader, "m.spec", &[])
        .unwrap_or_else(|e| panic!("{}", crate::spec::diagnostic::render_all(&e, &sources, false)));
    let train = spec.train.as_ref().unwrap();
    assert_eq!(train.document_end, Some(0));
    let forward = recognise(from_spec(&spec.model, entry, batch, &sources).unwrap(), &[]);
    if entry == Entry::Eval {
        return forward;
    }
    let mut config = train_config(&spec.model, train);
    config.microbatch = microbatch.map(|size| Microbatch { axis: "batch".into(), size });
    training_step(forward, &config).unwrap_or_else(|e| panic!("{e}"))
}

/// One row of the inputs.
#[derive(Clone, Default)]
struct Row {
    tokens: Vec<i64>,
    targets: Vec<i64>,
    segments: Vec<i64>,
    positions: Vec<i64>,
    weight: Vec<f64>,
}

impl Row {
    /// Appends a document; what follows its last token is the target there, of weight 0.
    fn push(&mut self, document: &[i64], segment: i64, next: i64) {
        for (i, token) in document.iter().enumerate() {
            self.tokens.push(*token);
            self.targets.push(document.get(i + 1).copied().unwrap_or(next));
            self.segments.push(segment);
            self.positions.push(i as i64);
            self.weight.push(if i + 1 < document.len() { 1.0 } else { 0.0 });
        }
    }

    fn cut(mut self) -> Row {
        for ints in [&mut self.tokens, &mut self.targets, &mut self.segments, &mut self.positions] {
            ints.resize(SEQ, 0);
        }
        self.weight.resize(SEQ, 0.0);
        self
    }
}

/// Documents of 2 to 9 tokens, which end with 0 and hold it nowhere else, that fill a row exactly.
fn documents(random: &mut Random) -> Vec<Vec<i64>> {
    let mut left = SEQ as u64;
    let mut all = Vec::new();
    while left > 0 {
        let mut length = 2 + random.below(8) as u64;
        if left < length + 2 {
            length = left;
        }
        left -= length;
        let mut document: Vec<i64> = (1..length).map(|_| 1 + random.below(10)).collect();
        document.push(0);
        all.push(document);
    }
    all
}

fn packed(documents: &[Vec<i64>]) -> Row {
    let mut row = Row::default();
    for (i, document) in documents.iter().enumerate() {
        row.push(document, i as i64, documents.get(i + 1).map_or(3, |next| next[0]));
    }
    row.cut()
}

/// Parameters of one seed, whatever the inputs.
fn parameters(graph: &Graph) -> Environment {
    let mut random = Random(5);
    let mut environment = environment(graph, 0);
    for tensor in environment.tensors.values_mut() {
        let values = (0..tensor.ty.numel()).map(|_| random.between(-0.7, 0.7)).collect();
        *tensor = Tensor::floats(tensor.ty.clone(), values);
    }
    environment
}

/// Runs the graph on rows.
fn outcome(graph: &Graph, rows: &[Row]) -> Outputs {
    let mut environment = Environment { inputs: Default::default(), ..parameters(graph) };
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let Op::Input { name, .. } = &node.op else { continue };
        let ty = graph.ty(node.results[0]).clone();
        let ints =
            |of: fn(&Row) -> &Vec<i64>| Tensor::ints(ty.clone(), rows.iter().flat_map(of).copied().collect());
        let tensor = match name.as_str() {
            "tokens" => ints(|r| &r.tokens),
            "targets" => ints(|r| &r.targets),
            "segments" => ints(|r| &r.segments),
            "positions" => ints(|r| &r.positions),
            "weight" => Tensor::floats(ty.clone(), rows.iter().flat_map(|r| &r.weight).copied().collect()),
            other => panic!("{other}"),
        };
        environment.inputs.insert(name.clone(), tensor);
    }
    run(graph, &environment, Mode::F64).unwrap_or_else(|e| panic!("{e}"))
}

fn report(outputs: &Outputs, name: &str) -> f64 {
    outputs.report(name).unwrap_or_else(|| panic!("no {name}")).item()
}

/// Sums of some dozen losses in another order, each the result of some thousand roundings of 1e-16.
const ROUNDING: f64 = 1e-11;

#[test]
fn packed_documents_have_the_loss_of_documents_alone() {
    let mut random = Random(3);
    let together = graph(Entry::Eval, 1, None);
    for _ in 0..10 {
        let documents = documents(&mut random);
        let whole = outcome(&together, &[packed(&documents)]);
        let alone: Vec<Row> =
            documents.iter().map(|document| packed(std::slice::from_ref(document))).collect();
        let apart = outcome(&graph(Entry::Eval, alone.len() as u64, None), &alone);
        for name in ["loss_sum", "loss_weight"] {
            let (a, b) = (report(&whole, name), report(&apart, name));
            assert!((a - b).abs() <= ROUNDING * b.abs(), "{name}: {a} is not {b} for {documents:?}");
        }
    }
}

/// Microbatches hold different weights; the normaliser is that of the whole batch.
#[test]
fn packed_batches_have_one_normaliser_over_microbatches() {
    let mut random = Random(4);
    let mut rows: Vec<Row> = (0..4).map(|_| packed(&documents(&mut random))).collect();
    rows[1].weight[..20].fill(0.0);
    rows[2].weight.fill(0.0);
    let whole = outcome(&graph(Entry::Train, 4, None), &rows);
    let weight: f64 = rows.iter().flat_map(|r| &r.weight).sum();
    assert_eq!(report(&whole, "loss_weight"), weight);
    for size in [1, 2] {
        let parts = outcome(&graph(Entry::Train, 4, Some(size)), &rows);
        for ((output, a), (_, b)) in whole.0.iter().zip(&parts.0) {
            for (x, y) in a.as_floats().iter().zip(b.as_floats()) {
                assert!((x - y).abs() <= ROUNDING * x.abs().max(1.0), "{output:?}: {y} is not {x}");
            }
        }
    }
}

#[test]
fn packed_batch_without_any_weight_trains_nothing() {
    let mut random = Random(5);
    let mut rows: Vec<Row> = (0..4).map(|_| packed(&documents(&mut random))).collect();
    rows.iter_mut().for_each(|row| row.weight.fill(0.0));
    let step = graph(Entry::Train, 4, Some(2));
    let outputs = outcome(&step, &rows);
    assert_eq!((report(&outputs, "loss"), report(&outputs, "grad_norm")), (0.0, 0.0));
    for (path, tensor) in &parameters(&step).tensors {
        assert_eq!(outputs.stored(path).unwrap().as_floats(), tensor.as_floats(), "{path}");
    }
}
