//! Random graphs through every arithmetic and every backend. `make fuzz` runs this file's tests on more seeds: the environment
//! variables `MLC_FUZZ_GRAPHS` (how many) and `MLC_FUZZ_SEED` (the first).

use std::collections::BTreeMap;

use mlc::graph::verify::{Stage, verify};
use mlc::graph::{Graph, Output, Type, parse, print};
use mlc::interpret::{Environment, Mode, Outputs, Tensor, Values, run};
use mlc::passes::{Pass, passes};
use mlc_tests::random_graph::{Random, coverage, reachable_ops, sample};

fn seeds() -> std::ops::Range<u64> {
    let number =
        |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first: u64 = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_GRAPHS", 500)
}

fn outputs(graph: &Graph, environment: &Environment, mode: Mode) -> Outputs {
    run(graph, environment, mode).unwrap_or_else(|e| panic!("{}: {e}", graph.name))
}

fn loss(graph: &Graph, environment: &Environment) -> f64 {
    outputs(graph, environment, Mode::F64).report("loss").expect("a loss is reported").item()
}

/// Where `values` leave what the bounds allow, if they do.
fn escapes(bounds: &Outputs, values: &Outputs) -> Option<String> {
    for ((output, exact), (_, tried)) in bounds.0.iter().zip(&values.0) {
        let (Values::Float(exact_values), Values::Float(tried_values)) = (&exact.values, &tried.values)
        else {
            assert_eq!(exact.values, tried.values);
            continue;
        };
        let tried_values = places(&tried.ty, &exact.ty).into_iter().map(|at| tried_values[at]);
        for (i, (x, y)) in exact_values.iter().zip(tried_values).enumerate() {
            let allowed = exact.errors[i];
            if (x - y).abs() > allowed || y.is_nan() != x.is_nan() {
                return Some(format!(
                    "{output:?}[{i}]: {y} is {:.2e} from {x}, allowed {allowed:.2e}",
                    (x - y).abs()
                ));
            }
        }
    }
    None
}

#[test]
fn random_graphs_are_large_and_cover_the_ops() {
    let mut counts = BTreeMap::new();
    let mut sizes = Vec::new();
    let mut with_loops = 0;
    for seed in seeds() {
        let graph = sample(seed).with_gradients();
        sizes.push(reachable_ops(&graph).len());
        let before = counts.clone();
        coverage(&graph, &mut counts);
        let loops = |c: &BTreeMap<(String, _), usize>| {
            c.iter().filter(|((op, _), _)| op == "Loop").map(|(_, n)| n).sum::<usize>()
        };
        with_loops += usize::from(loops(&counts) > loops(&before));
    }
    sizes.sort_unstable();
    let median = sizes[sizes.len() / 2];
    println!(
        "{} graphs, median {median} ops, largest {}, {with_loops} with loops",
        sizes.len(),
        sizes[sizes.len() - 1]
    );
    for ((op, dtype), n) in &counts {
        println!("{n:7} {op} {dtype:?}");
    }
    assert!(median >= 30, "median {median} ops");
    assert!(with_loops * 4 >= sizes.len(), "{with_loops} of {} graphs have loops", sizes.len());
}

#[test]
fn interpreting_in_f32_stays_within_the_derived_bounds() {
    let mut loss_bounds = Vec::new();
    for seed in seeds() {
        let sample = sample(seed);
        let graph = sample.with_gradients();
        let bounds = outputs(&graph, &sample.environment, Mode::Bounds);
        let escaped = escapes(&bounds, &outputs(&graph, &sample.environment, Mode::F32));
        assert!(escaped.is_none(), "seed {seed}: {}\n{graph}", escaped.unwrap_or_default());
        loss_bounds.push(bounds.report("loss").expect("a loss is reported").errors[0]);
    }
    loss_bounds.sort_unstable_by(f64::total_cmp);
    let median = loss_bounds[loss_bounds.len() / 2];
    println!("median bound on the loss, a sum of means of tanh: {median:.1e}");
    // A bound that allows everything would prove nothing: half the losses are pinned to better than a thousandth.
    assert!(median < 1e-3, "{median:.1e}");
}

#[test]
fn printing_and_parsing_gives_the_same_text() {
    for seed in seeds() {
        let graph = sample(seed).with_gradients();
        verify(&graph, Stage::Any).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let text = print::print(&graph);
        let back = parse::parse(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
        assert!(
            print::print(&back) == text,
            "seed {seed}: the text changes on its way through the parser\n{text}"
        );
    }
}

/// Passes that add or multiply in another order; all others leave every bit as it was.
const REASSOCIATES: [&str; 6] = [
    "prepare",
    "recognise-attention",
    "recognise-cross-entropy",
    "recognise-loss-head",
    "recognise-norms",
    "recognise-softmax",
];

/// Passes on what moves between ranks.
const BETWEEN_RANKS: [&str; 5] = [
    "combine-collectives",
    "keep-gathered",
    "reduce-scatter",
    "split-hierarchical",
    "sum-after-microbatches",
];

/// Every pass of the table, and the last rewrite before kernels are made, alone on every graph. Without `MLC_FUZZ_GRAPHS` a
/// slice of them: 1,000 graphs take a minute or two.
#[test]
fn every_pass_alone_keeps_the_meaning() {
    let asked = std::env::var("MLC_FUZZ_GRAPHS").is_ok();
    let seeds = if asked { seeds() } else { 1..41 };
    let prepare: Pass = |graph| mlc::fuse::prepare::prepare(graph).map_err(|e| e.to_string());
    let mut changed: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds.clone() {
        let sample = sample(seed);
        let graph = sample.with_gradients();
        let text = print::print(&graph);
        let bounds = outputs(&graph, &sample.environment, Mode::Bounds);
        let exact = [Mode::F64, Mode::F32].map(|mode| outputs(&graph, &sample.environment, mode));
        for (name, pass) in passes().iter().copied().chain([("prepare", prepare)]) {
            let after = pass(&graph).unwrap_or_else(|e| panic!("seed {seed}, {name}: {e}"));
            verify(&after, Stage::Any).unwrap_or_else(|e| panic!("seed {seed}, after {name}: {e}"));
            *changed.entry(name).or_default() += usize::from(print::print(&after) != text);
            if REASSOCIATES.contains(&name) {
                let escaped = escapes(&bounds, &outputs(&after, &sample.environment, Mode::F64));
                assert!(escaped.is_none(), "seed {seed}, {name}: {}\n{graph}", escaped.unwrap_or_default());
            } else {
                let got = [Mode::F64, Mode::F32].map(|mode| outputs(&after, &sample.environment, mode));
                assert!(same_bits(&exact, &got), "seed {seed}, {name} changes bits\n{graph}");
            }
        }
    }
    println!("{} graphs; changed by each pass: {changed:?}", seeds.count());
    // A pass that finds nothing to do on any graph is not tested. Random graphs hold no written-out attention or head, and
    // what they hold of norms is composites already. They are of one rank: `random_shardings` is about several.
    let has_work = |name: &&str| {
        !name.starts_with("recognise-") && *name != "chunk-loss-heads" && !BETWEEN_RANKS.contains(name)
    };
    let idle: Vec<&str> =
        changed.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).filter(has_work).collect();
    assert!(idle.is_empty(), "nothing to do for {idle:?}");
}

/// The order of a value's axes carries no meaning, so a pass may change it.
fn same_bits(expected: &[Outputs], got: &[Outputs]) -> bool {
    let bits = |tensor: &Tensor, ty: &Type| -> Vec<i64> {
        let places = places(&tensor.ty, ty).into_iter();
        match &tensor.values {
            Values::Float(values) => places.map(|at| values[at].to_bits() as i64).collect(),
            Values::Int(values) => places.map(|at| values[at]).collect(),
        }
    };
    let same = |(output, want): &(Output, Tensor), (name, tensor): &(Output, Tensor)| {
        output == name && want.ty.same_as(&tensor.ty) && bits(want, &want.ty) == bits(tensor, &want.ty)
    };
    let pairs = expected.iter().zip(got);
    pairs.into_iter().all(|(e, g)| e.0.len() == g.0.len() && e.0.iter().zip(&g.0).all(|(e, g)| same(e, g)))
}

/// The parameters moved by `h` times the direction.
fn moved(environment: &Environment, direction: &BTreeMap<String, Vec<f64>>, h: f64) -> Environment {
    let mut there = environment.clone();
    for (path, tensor) in &mut there.tensors {
        let values =
            tensor.as_floats().iter().zip(&direction[path.as_str()]).map(|(x, d)| x + h * d).collect();
        *tensor = Tensor::floats(tensor.ty.clone(), values);
    }
    there
}

/// Where the elements of a tensor of type `of` lie, in the order of the axes of `ty`, which has the same ones.
fn places(of: &Type, ty: &Type) -> Vec<usize> {
    let axes = &of.axes;
    let stride = |name: &str| -> u64 {
        let at = of.position(name).expect("both have the same axes");
        axes[at + 1..].iter().map(|a| a.size).product()
    };
    let strides: Vec<u64> = ty.axes.iter().map(|a| stride(&a.name)).collect();
    let at = |mut flat: u64| {
        let mut offset = 0;
        for (axis, stride) in ty.axes.iter().zip(&strides).rev() {
            offset += flat % axis.size * stride;
            flat /= axis.size;
        }
        offset as usize
    };
    (0..ty.numel()).map(at).collect()
}

/// The elements of a tensor in the order of the axes of `ty`, which has the same ones.
fn in_order(tensor: &Tensor, ty: &Type) -> Vec<f64> {
    let values = tensor.as_floats();
    places(&tensor.ty, ty).into_iter().map(|at| values[at]).collect()
}

/// Along a random direction, the gradient's product with it is the loss's slope. The slope is measured in f64 by central
/// differences of two widths; where these disagree a kink (max, floor, a comparison) lies between, and nothing is compared.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    const H: f64 = 1e-5;
    let (mut compared, mut graphs) = (0, 0);
    for seed in seeds() {
        let sample = sample(seed);
        let graph = sample.with_gradients();
        let gradients = outputs(&graph, &sample.environment, Mode::F64);
        let mut random = Random::new(seed ^ 0xD1CE);
        let mut product = 0.0;
        let mut direction = BTreeMap::new();
        for (path, tensor) in &sample.environment.tensors {
            let along: Vec<f64> = tensor.as_floats().iter().map(|_| random.unit()).collect();
            let gradient = gradients.report(&format!("grad.{path}")).expect("every parameter has a gradient");
            // The order of a value's axes carries no meaning, so a gradient may have another than its parameter.
            let gradient = in_order(gradient, &tensor.ty);
            product += gradient.iter().zip(&along).map(|(g, d)| g * d).sum::<f64>();
            direction.insert(path.to_string(), along);
        }
        let slope = |h: f64| {
            let at = |h| loss(&sample.graph, &moved(&sample.environment, &direction, h));
            (at(h) - at(-h)) / (2.0 * h)
        };
        let (wide, narrow) = (slope(H), slope(H / 2.0));
        // Rounding leaves 1e-16 · |loss| / H, some 1e-10; the third derivative H² times itself, 1e-10 times what is often 100.
        let tolerance = 1e-6 * (1.0 + product.abs());
        graphs += 1;
        if (wide - narrow).abs() > 0.1 * tolerance {
            continue;
        }
        compared += 1;
        let off = (narrow - product).abs();
        assert!(off <= tolerance, "seed {seed}: slope {narrow}, gradient says {product}\n{}", sample.graph);
    }
    println!("{compared} of {graphs} graphs have no kink near by and were compared");
    assert!(compared * 2 > graphs, "{compared} of {graphs}");
}
