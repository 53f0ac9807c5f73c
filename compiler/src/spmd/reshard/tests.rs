//! Plans worked out by hand, and every pair of shardings on small meshes.

use super::*;
use crate::graph::verify::{Stage, verify};
use crate::graph::{Axis, Builder, CollectiveKind, Graph, MeshOp, Op, Output, Split};
use crate::interpret::{Environment, Mode, Tensor, placed, run_ranks};
use std::collections::BTreeMap;

const NAMES: [&str; 3] = ["x", "y", "z"];

fn tensor(sizes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, sizes.iter().map(|(name, size)| Axis::new(*name, *size)).collect())
}

fn sum_over(mut sharding: Sharding, over: &[&str]) -> Sharding {
    sharding.partial = over.iter().map(|m| (Name::from(*m), ReduceOp::Sum)).collect();
    sharding
}

/// The moves of a plan on a mesh data=2, fsdp=4, tensor=8 for a value batch=64, seq=64, d=64 of f32, with their bytes.
fn moves(from: Sharding, to: Sharding) -> Vec<String> {
    let mesh = Mesh::new(&[("data", 2), ("fsdp", 4), ("tensor", 8)]);
    let ty = tensor(&[("batch", 64), ("seq", 64), ("d", 64)]);
    let steps = plan(&from, &to, &ty, &mesh, &Options::default()).unwrap();
    steps.iter().map(|s| format!("{}: {}", s.action, s.bytes)).collect()
}

/// Bytes of the whole value that [`moves`] is about.
const WHOLE: u64 = 64 * 64 * 64 * 4;

#[test]
fn reshard_gathers_the_finest_axes_first() {
    let from = Sharding::of(&[("d", &["data", "fsdp", "tensor"])]);
    let part = WHOLE / 64;
    let to = Sharding::of(&[("d", &["data"])]);
    assert_eq!(moves(from.clone(), to), [format!("all_gather over fsdp tensor along d: {}", part * 31)]);
    assert_eq!(moves(from.clone(), from.clone()), Vec::<String>::new());
    // What splits coarser parts can't go alone: all of it moves away, and the rest comes back.
    let to = Sharding::of(&[("d", &["fsdp", "tensor"])]);
    let expected = [
        format!("all_to_all over data fsdp tensor from d to batch: {}", part * 63 / 64),
        format!("all_to_all over fsdp tensor from batch to d: {}", part * 31 / 32),
        format!("all_gather over data along batch: {part}"),
    ];
    assert_eq!(moves(from, to), expected);
}

#[test]
fn reshard_cuts_behind_what_is_split_already() {
    let from = Sharding::of(&[("d", &["tensor"])]);
    let to = Sharding::of(&[("d", &["tensor", "data", "fsdp"])]);
    assert_eq!(moves(from, to), ["local_part over data fsdp along d: 0"]);
}

#[test]
fn reshard_takes_sums_over_several_axes_at_once() {
    let whole = sum_over(Sharding::whole(), &["data", "fsdp"]);
    let bytes = 2 * WHOLE * 7 / 8;
    assert_eq!(moves(whole.clone(), Sharding::whole()), [format!("all_reduce_sum over data fsdp: {bytes}")]);
    let split = Sharding::of(&[("d", &["data", "fsdp"])]);
    let scattered = format!("reduce_scatter_sum over data fsdp along d: {}", WHOLE * 7 / 8);
    assert_eq!(moves(whole.clone(), split), [scattered]);
    // HSDP: scattered over one axis, reduced over the other on the parts.
    let hsdp = Sharding::of(&[("d", &["fsdp"])]);
    let steps = [
        format!("reduce_scatter_sum over fsdp along d: {}", WHOLE * 3 / 4),
        format!("all_reduce_sum over data: {}", WHOLE / 4),
    ];
    assert_eq!(moves(whole, hsdp), steps);
}

#[test]
fn reshard_cuts_before_it_reduces_and_leaves_other_sums_alone() {
    let from = sum_over(Sharding::whole(), &["data", "tensor"]);
    let to = sum_over(Sharding::of(&[("seq", &["fsdp"])]), &["data"]);
    let reduced = format!("all_reduce_sum over tensor: {}", 2 * WHOLE / 4 * 7 / 8);
    assert_eq!(moves(from, to), ["local_part over fsdp along seq: 0".to_string(), reduced]);
}

#[test]
fn reshard_moves_axes_by_all_to_all() {
    let from = Sharding::of(&[("batch", &["data", "fsdp", "tensor"])]);
    let to = Sharding::of(&[("batch", &["data"]), ("seq", &["fsdp", "tensor"])]);
    let bytes = WHOLE / 64 * 31 / 32;
    assert_eq!(moves(from, to), [format!("all_to_all over fsdp tensor from batch to seq: {bytes}")]);
    // Split over more on the way: what is only cut is cut first.
    let from = Sharding::of(&[("batch", &["tensor"])]);
    let to = Sharding::of(&[("seq", &["tensor"]), ("d", &["data"])]);
    let bytes = WHOLE / 16 * 7 / 8;
    let moved = format!("all_to_all over tensor from batch to seq: {bytes}");
    assert_eq!(moves(from, to), ["local_part over data along d: 0".to_string(), moved]);
}

#[test]
fn reshard_orders_mesh_axes_within_an_axis() {
    let from = Sharding::of(&[("d", &["data", "fsdp"])]);
    let to = Sharding::of(&[("d", &["fsdp", "data"])]);
    let bytes = 2 * WHOLE / 8 * 7 / 8;
    assert_eq!(moves(from, to), [format!("permute over data fsdp in pieces of batch: {bytes}")]);
}

#[test]
fn reshard_refuses_what_would_replicate() {
    let mesh = Mesh::new(&[("a", 8), ("b", 8)]);
    let ty = tensor(&[("d", 64)]);
    let (from, to) = (Sharding::of(&[("d", &["a", "b"])]), Sharding::of(&[("d", &["b", "a"])]));
    let error = plan(&from, &to, &ty, &mesh, &Options::default()).unwrap_err();
    let expected = "turning `d: a b` into `d: b a` would send 252 bytes for each rank, more than 8, what moving its parts \
                    should take: all_gather over a b along d: 252 bytes, then whole; local_part over b a along d: 0 bytes, \
                    then d: b a; split the same axes in both, or allow replication";
    assert_eq!(error, expected);
    let allowed = Options { allow_replicate: true, ..Options::default() };
    assert_eq!(plan(&from, &to, &ty, &mesh, &allowed).unwrap().len(), 2);
}

#[test]
fn reshard_names_shardings_that_make_no_sense() {
    let mesh = Mesh::new(&[("a", 2)]);
    let ty = tensor(&[("d", 6)]);
    let error = |from: &Sharding, to: &Sharding| plan(from, to, &ty, &mesh, &Options::default()).unwrap_err();
    let (whole, partial) = (Sharding::whole(), sum_over(Sharding::whole(), &["a"]));
    let made = error(&whole, &partial);
    assert_eq!(
        made,
        "`partial sum over a` holds terms of a sum over a, `whole` does not: resharding can't make them"
    );
    let lacking = error(&Sharding::of(&[("e", &["a"])]), &whole);
    assert_eq!(lacking, "`e: a` is no sharding of f32[d=6]: axis e is split but the tensor lacks it");
    let mut blocked = Sharding::whole();
    blocked.split.insert("d".into(), Split { over: vec!["a".into()], blocks: 3 });
    assert!(error(&blocked, &whole).contains("changes how d is split in blocks"));
    assert_eq!(plan(&blocked, &blocked, &ty, &mesh, &Options::default()).unwrap(), []);
}

#[test]
fn reshard_sends_f32_in_the_wire_type_and_nothing_else() {
    let mesh = Mesh::new(&[("a", 2)]);
    let options = Options { wire: Some(DType::Bf16), ..Options::default() };
    let (from, to) = (Sharding::of(&[("d", &["a"])]), Sharding::whole());
    for (dtype, bytes, wire) in
        [(DType::F32, 6, Some(DType::Bf16)), (DType::Bf16, 6, None), (DType::I32, 12, None)]
    {
        let ty = Type::new(dtype, vec![Axis::new("d", 6)]);
        assert_eq!(plan(&from, &to, &ty, &mesh, &options).unwrap()[0].bytes, bytes);
        let mut b = Builder::new("f");
        b.graph.mesh = mesh.clone();
        let x = b.input("x", from.local(&ty, &mesh).unwrap(), 0);
        let y = lower_with(&mut b, x, &from, &to, &ty, &"a test".into(), &options).unwrap();
        assert_eq!(b.ty(y), &ty);
        let found = b.graph.ops.iter().find_map(|node| match &node.op {
            Op::Mesh(MeshOp::Collective(c)) => Some(c.wire),
            _ => None,
        });
        assert_eq!(found, Some(wire));
    }
}

/// Every sharding of a tensor with these axes: each mesh axis is nowhere, a sum, or at any place of any axis.
fn all_shardings(mesh: &Mesh, axes: &[&str]) -> Vec<Sharding> {
    let mut found = vec![Sharding::whole()];
    for m in &mesh.axes {
        found = found.iter().flat_map(|s| with_mesh_axis(s, &m.name, axes)).collect();
    }
    found
}

fn with_mesh_axis(sharding: &Sharding, m: &Name, axes: &[&str]) -> Vec<Sharding> {
    let mut found = vec![sharding.clone()];
    let mut partial = sharding.clone();
    partial.partial.insert(m.clone(), ReduceOp::Sum);
    found.push(partial);
    for axis in axes {
        let over = sharding.over(axis);
        for place in 0..=over.len() {
            let mut list = over.to_vec();
            list.insert(place, m.clone());
            let mut split = sharding.clone();
            split.set(&Name::from(*axis), list);
            found.push(split);
        }
    }
    found
}

/// The program that reads a value lying as `from` and returns it lying as `to`. A partial value is read with an axis more for
/// each mesh axis, which each rank sums.
fn program(mesh: &Mesh, ty: &Type, from: &Sharding, to: &Sharding) -> Graph {
    let mut b = Builder::new("reshard");
    b.graph.mesh = mesh.clone();
    let mut terms = from.reduced();
    let mut local = from.local(ty, mesh).unwrap();
    let summed: Vec<Name> = from.partial.keys().map(|m| format!("terms {m}").into()).collect();
    for (m, axis) in from.partial.keys().zip(&summed) {
        terms.set(axis, vec![m.clone()]);
        local.axes.push(Axis::new(axis, 1));
    }
    let x = b.input("x", local, 0);
    b.graph.values[x.index()].sharding = terms;
    let part = b.reduce(ReduceOp::Sum, x, &summed);
    b.graph.values[part.index()].sharding = from.clone();
    let options = Options { allow_replicate: true, wire: None };
    let y = lower_with(&mut b, part, from, to, ty, &"a test".into(), &options).unwrap();
    assert_eq!(b.graph.sharding(y), to);
    // What stays a sum is summed in the end, so that there is something to compare.
    let whole = to.reduced();
    let y = lower_with(&mut b, y, to, &whole, ty, &"a test".into(), &options).unwrap();
    b.output(Output::Report("y".into()), y);
    b.finish()
}

/// Bytes sent per rank by all collectives of a graph, from its ops alone.
fn sent(graph: &Graph) -> u64 {
    let of = |node: &crate::graph::OpNode| {
        let Op::Mesh(MeshOp::Collective(c)) = &node.op else { return 0 };
        let (n, bytes) = (graph.mesh.ways(&c.over), graph.ty(node.operands[0]).bytes());
        match c.kind {
            CollectiveKind::AllGather => bytes * (n - 1),
            CollectiveKind::AllReduce(_) => (2 * bytes * (n - 1)).div_ceil(n),
            CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll => (bytes * (n - 1)).div_ceil(n),
        }
    };
    graph.ops.iter().map(of).sum()
}

/// Bytes per rank of reducing all, gathering all, and cutting.
fn replicated(mesh: &Mesh, ty: &Type, from: &Sharding, to: &Sharding) -> u64 {
    let local = from.local(ty, mesh).unwrap().bytes();
    let reduced: u64 = mesh
        .axes
        .iter()
        .filter(|m| from.partial.contains_key(&m.name))
        .filter(|m| !to.partial.contains_key(&m.name))
        .map(|m| m.size)
        .product();
    let split: u64 = from.split.values().map(|s| mesh.ways(&s.over)).product();
    (2 * local * (reduced - 1)).div_ceil(reduced) + local * (split - 1)
}

#[test]
fn reshard_without_a_search_replicates() {
    let mesh = Mesh::new(&[("a", 2), ("b", 3)]);
    let ty = tensor(&[("x", 6), ("y", 6)]);
    let shardings = all_shardings(&mesh, &NAMES[..2]);
    for from in &shardings {
        for to in shardings.iter().filter(|to| to.partial.keys().all(|m| from.partial.contains_key(m))) {
            let steps = search::replicating(from, to, &ty, &mesh).unwrap();
            assert_eq!(steps.last().map_or(from, |s| &s.after), to, "{from}: {steps:?}");
            let bytes: u64 = steps.iter().map(|s| s.bytes).sum();
            assert!(bytes <= replicated(&mesh, &ty, from, to), "{from} -> {to}: {steps:?}");
        }
    }
}

#[test]
fn reshard_plans_end_on_wide_meshes() {
    let mesh = Mesh::new(&[("pp", 4), ("dp", 8), ("fsdp", 8), ("cp", 2), ("tp", 8), ("ep", 4)]);
    let ty = tensor(&[("b", 1 << 14), ("s", 1 << 14), ("h", 1 << 14), ("d", 1 << 14)]);
    let all = Sharding::of(&[("b", &["dp", "fsdp", "cp"]), ("s", &["tp", "ep", "pp"])]);
    let other = Sharding::of(&[("s", &["fsdp", "dp", "pp"]), ("d", &["tp", "cp"])]);
    let options = Options { allow_replicate: true, wire: None };
    let length = |from: &Sharding, to: &Sharding| {
        let steps = plan(from, to, &ty, &mesh, &options).unwrap();
        assert_eq!(&steps.last().unwrap().after, to, "{from}: {steps:?}");
        steps.len()
    };
    assert_eq!(length(&Sharding::whole(), &all), 2);
    assert_eq!(length(&all, &Sharding::whole()), 2);
    // More ways than are looked at: gathered and cut, which has to be allowed.
    assert_eq!(length(&all, &other), 4);
    assert!(plan(&all, &other, &ty, &mesh, &Options::default()).unwrap_err().contains("allow replication"));
}

#[derive(Default, Debug, PartialEq)]
struct Counts {
    /// Pairs in all.
    pairs: usize,
    /// Pairs that ran.
    ran: usize,
    /// Those of them that need permission to replicate.
    replicate: usize,
}

/// Checks every `stride`th pair of shardings of a tensor with `rank` axes.
fn closure(mesh: &Mesh, rank: usize, stride: usize, counts: &mut Counts) {
    let n = mesh.ranks();
    // Alone, an axis must be long enough to be taken to pieces when it is split over everything.
    let size = if rank == 1 { n * n } else { n };
    let axes = &NAMES[..rank];
    let ty = tensor(&axes.iter().map(|a| (*a, size)).collect::<Vec<_>>());
    let shardings = all_shardings(mesh, axes);
    for from in &shardings {
        for to in shardings.iter().filter(|to| to.partial.keys().all(|m| from.partial.contains_key(m))) {
            counts.pairs += 1;
            if counts.pairs % stride == 0 {
                counts.ran += 1;
                counts.replicate += usize::from(!check_pair(mesh, &ty, from, to));
            }
        }
    }
}

/// Whether the pair needs no permission to replicate.
fn check_pair(mesh: &Mesh, ty: &Type, from: &Sharding, to: &Sharding) -> bool {
    let options = Options { allow_replicate: true, wire: None };
    let steps = plan(from, to, ty, mesh, &options).unwrap();
    let context = || format!("{mesh:?} {from} -> {to}: {steps:?}");
    let bytes: u64 = steps.iter().map(|s| s.bytes).sum();
    assert!(bytes <= replicated(mesh, ty, from, to), "{}", context());
    let graph = program(mesh, ty, from, to);
    verify(&graph, Stage::Spmd).unwrap_or_else(|e| panic!("{e}\n{}", context()));
    let rest = plan(to, &to.reduced(), ty, mesh, &options).unwrap();
    assert_eq!(sent(&graph), bytes + rest.iter().map(|s| s.bytes).sum::<u64>(), "{}", context());

    let input = graph.region(graph.body).ops.first().map(|op| graph.op(*op).results[0]).unwrap();
    let whole = placed::global_type(graph.ty(input), graph.sharding(input), mesh);
    let values: Vec<f64> = (0..whole.numel()).map(|i| (i * 7919 % 1009) as f64).collect();
    // Axes of terms come last.
    let terms = (whole.numel() / ty.numel()) as usize;
    let expected: Vec<f64> = values.chunks(terms).map(|c| c.iter().sum()).collect();
    let inputs = BTreeMap::from([("x".into(), Tensor::floats(whole, values))]);
    let outputs = run_ranks(&graph, &Environment { inputs, ..Environment::default() }, Mode::F64).unwrap();
    let got = outputs.assemble(&graph).unwrap_or_else(|e| panic!("{e}\n{}", context()));
    assert_eq!(got.report("y").unwrap().as_floats(), expected, "{}", context());
    plan(from, to, ty, mesh, &Options::default()).is_ok()
}

/// Every pair of shardings of tensors with up to three axes, sums among them, on meshes of up to three axes: what arrives is
/// what was there, on every rank, and never costs more than replication. The suite takes every 97th pair;
/// `MLC_FUZZ_RESHARDS=1` takes all, `=n` every n-th.
#[test]
fn reshard_closes_over_all_pairs_of_shardings() {
    let stride = std::env::var("MLC_FUZZ_RESHARDS").map_or(97, |n| n.parse().expect("a number of pairs"));
    let mut all = Counts::default();
    for axes in [
        &[("a", 2)][..],
        &[("a", 3)],
        &[("a", 2), ("b", 2)],
        &[("a", 2), ("b", 3)],
        &[("a", 2), ("b", 2), ("c", 3)],
    ] {
        let mesh = Mesh::new(axes);
        for rank in 1..=3 {
            let before = (all.pairs, all.ran, all.replicate);
            closure(&mesh, rank, stride, &mut all);
            println!(
                "mesh {axes:?}, {rank} axes: {} pairs, {} run, {} of them replicate",
                all.pairs - before.0,
                all.ran - before.1,
                all.replicate - before.2
            );
        }
    }
    println!("{all:?}");
    assert_eq!(all.pairs, 28029);
    assert_eq!(all.ran, all.pairs / stride);
}
