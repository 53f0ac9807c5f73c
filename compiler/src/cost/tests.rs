//! Times worked out by hand.

use super::*;
use crate::graph::{Axis, Builder, MeshAxis, ReduceOp, Sharding, Type};
use crate::spmd::combine::split_hierarchical;
use crate::spmd::reshard::{Options, lower, plan};

const SUM: CollectiveKind = CollectiveKind::AllReduce(ReduceOp::Sum);
const SCATTER: CollectiveKind = CollectiveKind::ReduceScatter(ReduceOp::Sum);

/// Eight ranks a node, four nodes.
fn cluster() -> Mesh {
    let axis = |name: &str, size, over_nodes| MeshAxis { name: name.into(), size, over_nodes };
    Mesh { axes: vec![axis("node", 4, true), axis("gpu", 8, false)] }
}

fn over(names: &[&str]) -> Vec<Name> {
    names.iter().map(|n| Name::from(*n)).collect()
}

/// Equal to twelve digits.
#[track_caller]
fn assert_time(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected, "{found} is not {expected}");
}

#[test]
fn cost_reads_every_target_and_its_sources() {
    for (name, text) in targets() {
        let target = Target::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(target.name, *name);
        assert!(!target.sources.is_empty(), "{name} says nothing about where its figures are from");
        assert!(target.network.bandwidth < target.node.bandwidth, "{name}");
    }
    let error = Target::named("abacus").unwrap_err();
    assert_eq!(error, "there is no target abacus; there are cpu, h100, v5p");
}

#[test]
fn cost_refuses_targets_that_make_no_sense() {
    let (_, text) = targets()[1];
    let error = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Target::parse(&text.replace(from, to)).unwrap_err()
    };
    let slow = error("\"bandwidth\": 450e9", "\"bandwidth\": 0");
    assert_eq!(slow, "target h100: node.bandwidth is 0, not more than 0");
    let early = error("\"launch\": 3e-6", "\"launch\": -1");
    assert_eq!(early, "target h100: device.launch is -1, not 0 or more");
    let late = error("\"launch\": 3e-6", "\"launch\": 3e6");
    assert_eq!(late, "target h100: device.launch is 3000000 seconds, not 60 at most");
    for name in ["", "compute", "InfiniBand NDR"] {
        let link = error("\"NVLink 4\"", &format!("\"{name}\""));
        assert!(link.ends_with("need two names, other than `compute`"), "{link}");
    }
    let many = error("\"efficiency\": 0.7", "\"efficiency\": 1.5");
    assert_eq!(many, "target h100: device.efficiency is 1.5, more than 1");
    let unknown = error("\"launch\": 3e-6", "\"lunch\": 3e-6");
    assert!(unknown.starts_with("no target: unknown field `lunch`"), "{unknown}");
}

#[test]
fn cost_of_a_kernel_is_its_roofline() {
    let h100 = Target::named("h100").unwrap();
    // 8192³: 1.0995e12 operations at 0.7 · 989.4e12, far above the time of its 402 MB.
    let flops = 2 * 8192u128.pow(3);
    let bytes = 3 * 8192 * 8192 * 2;
    assert_time(kernel(&h100, DType::Bf16, flops, bytes), 3e-6 + flops as f64 / (0.7 * 989.4e12));
    // An addition of as many elements waits for memory.
    assert_time(kernel(&h100, DType::Bf16, 8192 * 8192, bytes), 3e-6 + bytes as f64 / 3.35e12);
    // Without a figure of its own a type runs as the wider one.
    let v5p = Target::named("v5p").unwrap();
    assert_eq!(v5p.device.peak.of(DType::F32), 459e12);
    let cpu = Target::named("cpu").unwrap();
    assert_eq!(cpu.device.peak.of(DType::Bf16), 370e9);
}

#[test]
fn cost_of_a_collective_is_its_hops_and_what_a_rank_sends() {
    let (h100, mesh) = (Target::named("h100").unwrap(), cluster());
    let megabytes = 64 << 20;
    let time = |kind, names: &[&str], local| collective(&h100, &mesh, kind, &over(names), local);
    let b = megabytes as f64;
    assert_time(time(CollectiveKind::AllGather, &["gpu"], megabytes), 7.0 * 3.4e-6 + 7.0 * b / 450e9);
    assert_time(time(SCATTER, &["gpu"], megabytes), 7.0 * 3.4e-6 + b * 7.0 / 8.0 / 450e9);
    assert_time(time(SUM, &["gpu"], megabytes), 14.0 * 3.4e-6 + 2.0 * b * 7.0 / 8.0 / 450e9);
    assert_time(time(SUM, &["node"], megabytes), 6.0 * 14e-6 + 2.0 * b * 3.0 / 4.0 / 50e9);
    // Through both: 31 hops, 3 of them slow, and all at the speed of the network.
    let hops = 2.0 * (3.0 * 14e-6 + 28.0 * 3.4e-6);
    assert_time(time(SUM, &["node", "gpu"], megabytes), hops + 2.0 * b * 31.0 / 32.0 / 50e9);
    // A gather is a scatter turned round, and reducing all is one after the other.
    let part = megabytes / 8;
    assert_time(
        time(CollectiveKind::AllGather, &["gpu"], part) + time(SCATTER, &["gpu"], megabytes),
        time(SUM, &["gpu"], megabytes),
    );
    assert_eq!(time(SUM, &[], megabytes), 0.0);
}

/// An all-reduce of `elements` f32 over all ranks of the cluster.
fn reduction(elements: u64) -> Graph {
    let ty = Type::new(DType::F32, vec![Axis::new("d", elements)]);
    let mut b = Builder::new("f");
    b.graph.mesh = cluster();
    let x = b.input("x", ty.clone(), 0);
    let mut terms = Sharding::whole();
    terms.partial = cluster().axes.into_iter().map(|a| (a.name, ReduceOp::Sum)).collect();
    let y = lower(&mut b, x, &terms, &Sharding::whole(), &ty, &"gradient".into()).unwrap();
    b.output(crate::graph::Output::Report("y".into()), y);
    b.finish()
}

fn seconds(graph: &Graph) -> f64 {
    let h100 = Target::named("h100").unwrap();
    let ops = &graph.region(graph.body).ops;
    ops.iter().map(|op| collective_op(&h100, graph, graph.op(*op))).sum()
}

#[test]
fn cost_of_a_split_collective_is_less_over_slow_links() {
    let flat = reduction(1 << 26);
    let split = split_hierarchical(flat.clone());
    // 256 MiB: flat 2·31/32 of it over the network; split 2·7/8 of it within nodes and 2·3/4 of an eighth over the network.
    let b = (1u64 << 28) as f64;
    let within = 2.0 * (7.0 * 3.4e-6 + b * 7.0 / 8.0 / 450e9);
    assert_time(seconds(&split), within + 2.0 * 3.0 * 14e-6 + 2.0 * b / 8.0 * 3.0 / 4.0 / 50e9);
    assert!(seconds(&split) < seconds(&flat) / 4.0, "{} {}", seconds(&split), seconds(&flat));
}

#[test]
fn cost_of_a_plan_is_that_of_what_is_emitted() {
    let h100 = Target::named("h100").unwrap();
    let mesh = cluster();
    let ty = Type::new(DType::F32, vec![Axis::new("batch", 64), Axis::new("d", 64)]);
    let pairs: [(&[(&str, &[&str])], &[(&str, &[&str])]); 4] = [
        (&[("d", &["gpu"])], &[]),
        (&[("batch", &["gpu"])], &[("d", &["gpu"])]),
        (&[("d", &["node", "gpu"])], &[("d", &["gpu", "node"])]),
        (&[("d", &["gpu"])], &[("d", &["gpu", "node"])]),
    ];
    for (from, to) in pairs {
        let (from, to) = (Sharding::of(from), Sharding::of(to));
        let steps = plan(&from, &to, &ty, &mesh, &Options::default()).unwrap();
        let planned: f64 = steps.iter().map(|s| s.seconds(&h100, &mesh)).sum();
        let mut b = Builder::new("f");
        b.graph.mesh = mesh.clone();
        let x = b.input("x", from.local(&ty, &mesh).unwrap(), 0);
        lower(&mut b, x, &from, &to, &ty, &"a test".into()).unwrap();
        let emitted = seconds(&b.finish());
        assert!((planned - emitted).abs() <= 1e-12 * emitted, "{from} to {to}: {planned}, {emitted}");
    }
}
