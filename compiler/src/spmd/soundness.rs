//! Every rule of `sharding::factors` against numbers: an op split as its factors allow, run on all ranks, gives what it gives
//! on one.
//!
//! Each op of the gallery, under each assignment of the axes of each mesh to its factors and to terms of its operands. Data
//! are powers of two of either sign, small enough that every sum is exact in f64 and may be added in any order; so results
//! are compared bit by bit.

use super::partition::partition_open;
use crate::graph::verify::{Stage, verify};
use crate::graph::{
    Axis, Builder, Graph, Mesh, MeshOp, Name, Op, OpId, ReduceOp, Region, Sharding, Split, Type, ValueId,
};
use crate::interpret::{Environment, Mode, Rng, Tensor, Values, run, run_ranks, sample_environment};
use crate::sharding::factors::{Factor, FactorKind, factors, passes_partial};
use crate::sharding::gallery::{self, Case, KINDS, kind};
use std::collections::{BTreeMap, BTreeSet};

/// What one mesh axis does to the op.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Job {
    /// Nothing: all its ranks do the same.
    Idle,
    /// Splits this factor.
    Splits(usize),
    /// The operands of these bits are terms.
    Terms(u32, ReduceOp),
}

/// How many runs there were.
#[derive(Default, Debug)]
struct Counts {
    runs: usize,
    ranks: u64,
    refused: usize,
    uneven: usize,
    kinds: BTreeSet<&'static str>,
}

const MESHES: &[&[(&str, u64)]] =
    &[&[("m", 2)], &[("m", 3)], &[("m", 1)], &[("m", 2), ("n", 3)], &[("m", 2), ("n", 2), ("o", 2)]];

/// Assignments of a case and mesh that the suite tries.
const ASSIGNMENTS: usize = 120;

/// Ops whose whole is no single op on a rank: they have tests of their own.
const WALKED: [&str; 3] = ["loop", "update", "between ranks"];

#[test]
fn every_op_is_the_same_under_every_split_of_its_factors() {
    let mut counts = Counts::default();
    for mesh in MESHES {
        let mesh = Mesh::new(mesh);
        let cases = gallery::gallery(&|_| 2).len();
        for i in 0..cases {
            each_assignment(i, &mesh, &mut counts);
        }
    }
    let expected: BTreeSet<&str> = KINDS.iter().filter(|k| !WALKED.contains(k)).copied().collect();
    assert_eq!(counts.kinds, expected, "kinds of ops without a case");
    println!("{counts:?}");
    assert!(counts.runs > 4000 && counts.refused > 800 && counts.uneven > 4000, "{counts:?}");
}

fn each_assignment(at: usize, mesh: &Mesh, counts: &mut Counts) {
    let case = &gallery::case(at, &|_| 2);
    let kind = kind(&case.graph.op(case.op).op);
    if WALKED.contains(&kind) {
        return;
    }
    counts.kinds.insert(kind);
    let jobs = jobs(case);
    let n = mesh.axes.len() as u32;
    // All of them by `MLC_ALL_ASSIGNMENTS=1`; otherwise, where there are more, evenly spread ones.
    let all = std::env::var_os("MLC_ALL_ASSIGNMENTS").is_some();
    let stride = if all { 1 } else { jobs.len().pow(n).div_ceil(ASSIGNMENTS) | 1 };
    for code in (0..jobs.len().pow(n)).step_by(stride) {
        let mut rest = code;
        let chosen: Vec<Job> = (0..n)
            .map(|_| {
                let job = jobs[rest % jobs.len()];
                rest /= jobs.len();
                job
            })
            .collect();
        if !together(&chosen) {
            continue;
        }
        let sizes = Sizes::of(case, mesh, &chosen);
        // What attention means has tensors over all of its axes.
        let whole = if factors(&case.graph, case.op).len() > 6 { 1 } else { 3 };
        for plan in [Plan { part: 1, whole: 1 }, Plan { part: 2, whole }] {
            // The large meshes have many assignments.
            if plan.part == 1 || mesh.ranks() < 4 {
                one(at, mesh, &chosen, &sizes, plan, counts);
            }
        }
    }
}

/// All things a mesh axis may do to an op.
fn jobs(case: &Case) -> Vec<Job> {
    let mut jobs = vec![Job::Idle];
    jobs.extend((0..factors(&case.graph, case.op).len()).map(Job::Splits));
    let operands = case.graph.op(case.op).operands.len();
    for reduction in [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min] {
        for bits in 1..1u32 << operands {
            let flags: Vec<bool> = (0..operands).map(|i| bits >> i & 1 == 1).collect();
            if passes_partial(&case.graph, case.op, &flags, reduction) {
                jobs.push(Job::Terms(bits, reduction));
            }
        }
    }
    jobs
}

/// Terms are of one kind, of the same operands over all mesh axes.
fn together(jobs: &[Job]) -> bool {
    let terms: Vec<&Job> = jobs.iter().filter(|j| matches!(j, Job::Terms(..))).collect();
    terms.windows(2).all(|w| w[0] == w[1])
}

/// Sizes: elements of a part of a split axis, and of an axis that is not split.
#[derive(Clone, Copy)]
struct Plan {
    part: u64,
    whole: u64,
}

/// Into how many parts each axis is split, by name in the gallery.
struct Sizes(BTreeMap<Name, u64>);

impl Sizes {
    fn of(case: &Case, mesh: &Mesh, jobs: &[Job]) -> Sizes {
        let mut ways: BTreeMap<Name, u64> = BTreeMap::new();
        for (factor, over) in assigned(case, mesh, jobs) {
            let names: BTreeSet<&Name> = factor.operands.iter().chain(&factor.results).flatten().collect();
            for name in names {
                *ways.entry(name.clone()).or_insert(1) *= mesh.ways(&over);
            }
        }
        Sizes(ways)
    }

    fn size(&self, axis: &str, plan: Plan) -> u64 {
        match self.0.get(axis) {
            Some(ways) => ways * plan.part,
            None => plan.whole,
        }
    }
}

/// Every split factor with its mesh axes.
fn assigned(case: &Case, mesh: &Mesh, jobs: &[Job]) -> Vec<(Factor, Vec<Name>)> {
    let all = factors(&case.graph, case.op);
    let with = |i: usize| -> Vec<Name> {
        let axes = mesh.axes.iter().zip(jobs).filter(|(_, job)| **job == Job::Splits(i));
        axes.map(|(axis, _)| axis.name.clone()).collect()
    };
    all.into_iter().enumerate().map(|(i, f)| (f, with(i))).filter(|(_, over)| !over.is_empty()).collect()
}

fn one(at: usize, mesh: &Mesh, jobs: &[Job], sizes: &Sizes, plan: Plan, counts: &mut Counts) {
    let case = gallery::case(at, &|axis| sizes.size(axis, plan));
    let split = split_case(&case, mesh, jobs);
    let what = || format!("{} under {jobs:?} on {mesh:?}\n{}", case.name, crate::graph::print::print(&split));
    let assigned = assigned(&case, mesh, jobs);
    if let Some((factor, _)) =
        assigned.iter().find(|(f, over)| f.kind == FactorKind::Whole && !over.is_empty())
    {
        let error = partition_open(&split).err().unwrap_or_else(|| panic!("it is not refused: {}", what()));
        let names: Vec<&Name> = factor.operands.iter().chain(&factor.results).flatten().collect();
        // What is cut may also have an uneven rest.
        let why = error.contains("must be whole") || error.contains("does not split");
        let told = why && names.iter().any(|n| error.contains(&format!("{n}=")));
        assert!(told, "{error}: {}", what());
        counts.refused += 1;
        return;
    }
    let local = partition_open(&split).unwrap_or_else(|e| panic!("{e}: {}", what()));
    let stage = match kind(&case.graph.op(case.op).op) {
        "loss_head" | "constrain" => Stage::Any,
        _ => Stage::Spmd,
    };
    verify(&local, stage).unwrap_or_else(|e| panic!("{e}: {}", what()));
    let environment = environment(&split, counts.runs as u64);
    let reference = run(&split, &environment, Mode::F64).expect("sampled for this graph");
    let ranks = run_ranks(&local, &environment, Mode::F64).unwrap_or_else(|e| panic!("{e}: {}", what()));
    let got = ranks.assemble(&local).unwrap_or_else(|e| panic!("{e}: {}", what()));
    for ((output, a), (_, b)) in reference.0.iter().zip(&got.0) {
        assert!(same(a, b, tolerance(&case, jobs)), "{output:?} of {}\n{a:?}\n{b:?}", what());
    }
    counts.runs += 1;
    counts.ranks += mesh.ranks();
    // One element more does not split.
    for (factor, _) in assigned.iter().filter(|(_, over)| mesh.ways(over) > 1) {
        let name = factor.operands.iter().chain(&factor.results).flatten().next().expect("it has an axis");
        uneven(at, mesh, jobs, sizes, plan, name, counts);
    }
}

/// With one of the axes longer by one element the split is refused, and the message names the axis.
fn uneven(at: usize, mesh: &Mesh, jobs: &[Job], sizes: &Sizes, plan: Plan, name: &Name, counts: &mut Counts) {
    let longer = |axis: &str| sizes.size(axis, plan) + u64::from(axis == name.as_str());
    let case = gallery::case(at, &longer);
    let split = split_case(&case, mesh, jobs);
    let error = partition_open(&split).expect_err("it does not split");
    let told = error.contains("does not split") || error.contains("no multiple");
    assert!(told && error.contains(&format!("{name}=")), "{} {jobs:?}: {error}", case.name);
    counts.uneven += 1;
}

/// The graph of a case on the mesh: its sources lie as the op takes them, terms come from a reduction of a longer source
/// that is split, and results that are terms are reduced.
fn split_case(case: &Case, mesh: &Mesh, jobs: &[Job]) -> Graph {
    let mut b = Builder::resume(case.graph.clone());
    b.graph.mesh = mesh.clone();
    let node = case.graph.op(case.op).clone();
    let mut splits = BTreeMap::new();
    for (factor, over) in assigned(case, mesh, jobs) {
        for (value, axis) in
            node.operands.iter().zip(&factor.operands).chain(node.results.iter().zip(&factor.results))
        {
            if let Some(axis) = axis {
                b.graph.values[value.index()].sharding.set(axis, over.clone());
            }
        }
        for mesh_axis in over {
            splits.insert(mesh_axis, factor.partial.clone());
        }
    }
    let terms: Vec<(&Name, u32, ReduceOp)> = mesh
        .axes
        .iter()
        .zip(jobs)
        .filter_map(|(axis, job)| match job {
            Job::Terms(bits, reduction) => Some((&axis.name, *bits, *reduction)),
            Job::Idle | Job::Splits(_) => None,
        })
        .collect();
    for (i, result) in node.results.iter().enumerate() {
        let partial = &mut b.graph.values[result.index()].sharding.partial;
        for (axis, of) in &splits {
            partial.extend(of[i].map(|op| (axis.clone(), op)));
        }
        partial.extend(terms.iter().map(|(axis, _, op)| ((*axis).clone(), *op)));
    }
    if let Some((_, bits, reduction)) = terms.first() {
        let over: Vec<Name> = terms.iter().map(|(axis, ..)| (*axis).clone()).collect();
        for (i, operand) in node.operands.iter().enumerate() {
            if bits >> i & 1 == 1 {
                as_terms(&mut b, *operand, &over, *reduction);
            }
        }
    }
    reduce_results(&mut b);
    b.finish()
}

/// Puts the reduction of a source with one more axis, split over these mesh axes, in the place of a source.
fn as_terms(b: &mut Builder, source: ValueId, over: &[Name], reduction: ReduceOp) {
    let body = b.graph.body;
    let definitions = b.graph.definitions(body);
    let op = definitions[&source];
    let ty = b.ty(source).clone();
    let mut axes = ty.axes.clone();
    axes.push(Axis::new("term", b.graph.mesh.ways(over)));
    let longer = b.graph.add_value("terms", Type::new(ty.dtype, axes));
    let mut sharding = b.graph.sharding(source).clone();
    sharding.set(&"term".into(), over.to_vec());
    b.graph.values[longer.index()].sharding = sharding;
    b.graph.values[source.index()].sharding.partial = over.iter().map(|m| (m.clone(), reduction)).collect();
    b.graph.ops[op.index()].results = vec![longer];
    let reduce = OpId(b.graph.ops.len() as u32);
    let mut node = b.graph.op(op).clone();
    node.op = Op::Reduce { op: reduction, axes: vec!["term".into()] };
    (node.operands, node.results) = (vec![longer], vec![source]);
    b.graph.ops.push(node);
    let ops = &mut b.graph.regions[body.index()].ops;
    let place = ops.iter().position(|o| *o == op).expect("it is in the body");
    ops.insert(place + 1, reduce);
}

fn reduce_results(b: &mut Builder) {
    let Region { results, .. } = b.graph.region(b.graph.body).clone();
    let results: Vec<ValueId> = results
        .into_iter()
        .map(|value| {
            let sharding = b.graph.sharding(value).clone();
            if sharding.partial.is_empty() {
                return value;
            }
            let op = MeshOp::Reshard { cause: "the end".into(), wire: None, may_replicate: false };
            let op = Op::Mesh(op);
            let reduced = b.one(op, &[value], None, "reduced");
            b.graph.values[reduced.index()].sharding = sharding.reduced();
            reduced
        })
        .collect();
    let body = b.graph.body;
    b.graph.regions[body.index()].results = results;
}

/// Floats are powers of two of either sign; the sum of exponentials of attention's gradient is 1 in every row.
pub(super) fn environment(graph: &Graph, seed: u64) -> Environment {
    let mut environment = sample_environment(graph, seed);
    let mut rng = Rng::new(seed);
    for (path, tensor) in &mut environment.tensors {
        let zero = path.as_str() == "lse";
        let values = tensor.as_floats().iter();
        let values = values.map(|_| match rng.below(6) {
            _ if zero => 0.0,
            i => [-4.0, -2.0, -1.0, 1.0, 2.0, 4.0][i],
        });
        *tensor = Tensor::floats(tensor.ty.clone(), values.collect());
    }
    environment
}

/// A rotation multiplies terms by cosines, which rounds each of them.
fn tolerance(case: &Case, jobs: &[Job]) -> f64 {
    let rotated = case.name == "rope" && jobs.iter().any(|j| matches!(j, Job::Terms(..)));
    if rotated { 1e-13 } else { 0.0 }
}

pub(super) fn same(a: &Tensor, b: &Tensor, tolerance: f64) -> bool {
    if let Values::Int(ints) = &a.values {
        return ints == b.as_ints();
    }
    let close = |(x, y): (&f64, &f64)| x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance;
    a.as_floats().len() == b.as_floats().len() && a.as_floats().iter().zip(b.as_floats()).all(close)
}

/// Positions along an axis that is split in blocks.
#[test]
fn positions_along_blocks_are_those_of_the_whole_axis() {
    for (mesh, over) in [(&[("m", 2)][..], vec!["m"]), (&[("m", 2), ("n", 3)], vec!["n", "m"])] {
        for blocks in [1, 2, 4] {
            for part in [1, 3] {
                let mesh = Mesh::new(mesh);
                let mut b = Builder::new("m");
                b.graph.mesh = mesh.clone();
                let axis = Name::from("a");
                let index = b.index(&axis, mesh.ranks() * blocks * part);
                let over = over.iter().map(|m| Name::from(*m)).collect();
                b.graph.values[index.index()].sharding =
                    Sharding { split: [(axis, Split { over, blocks })].into(), partial: BTreeMap::new() };
                b.output(crate::graph::Output::Report("y".into()), index);
                let graph = b.finish();
                let local = partition_open(&graph).unwrap();
                verify(&local, Stage::Spmd).unwrap();
                let got = run_ranks(&local, &Environment::default(), Mode::F64).unwrap();
                let got = got.assemble(&local).unwrap();
                let want: Vec<i64> = (0..(mesh.ranks() * blocks * part) as i64).collect();
                assert_eq!(got.0[0].1.as_ints(), want);
            }
        }
    }
}
