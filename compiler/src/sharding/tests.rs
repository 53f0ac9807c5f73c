//! What the rules make of models.

use super::pad_axes::{Padding, pad_axes};
use super::*;
use crate::graph::verify::{Stage, verify};
use crate::graph::{Axis, Graph, Mesh, MeshOp, Type};
use crate::interpret::{Mode, Outputs, Tensor, run, sample_environment};
use crate::pipeline::tests::spec;
use crate::pipeline::{Runner, training_graph};

/// The training graph of a spec.
pub(crate) fn training(path: &str, sets: &[&str]) -> Graph {
    let (spec, sources) = spec(path, sets);
    training_graph(&spec, &sources, &mut Runner::default()).unwrap_or_else(|e| panic!("{e:?}"))
}

/// `axis -> mesh axes` of every tensor, and of parameters at rest.
fn rules(graph: &Graph, mesh: Mesh, axes: &[(&str, &[&str])], at_rest: &[(&str, &[&str])]) -> Rules {
    let splits = |list: &[(&str, &[&str])]| -> Splits {
        list.iter().map(|(a, over)| (Name::from(*a), over.iter().map(|m| Name::from(*m)).collect())).collect()
    };
    let axes = splits(axes);
    let mut rules = Rules { mesh, axes: axes.clone(), ..Rules::default() };
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        if let Op::Param { path, .. } = &node.op {
            let ty = graph.ty(node.results[0]);
            let own = |s: &Splits| -> Splits {
                s.iter().filter(|(a, _)| ty.has(a)).map(|(a, o)| (a.clone(), o.clone())).collect()
            };
            let in_use = own(&axes);
            let mut rest = in_use.clone();
            let free = |over: &Vec<Name>| !in_use.values().flatten().any(|m| over.contains(m));
            rest.extend(own(&splits(at_rest)).into_iter().filter(|(_, over)| free(over)));
            let rule = ParamRule { in_use, at_rest: rest.clone(), states: rest.clone(), update: rest };
            rules.params.insert(path.clone(), rule);
        }
    }
    rules
}

fn reshards(graph: &Graph) -> Vec<String> {
    let mut all = Vec::new();
    for region in &graph.regions {
        for op in &region.ops {
            let node = graph.op(*op);
            if let Op::Mesh(MeshOp::Reshard { cause, .. }) = &node.op {
                let (from, to) = (node.operands[0], node.results[0]);
                all.push(format!(
                    "%{}: {} => {}   ({cause})",
                    graph.value_name(from),
                    graph.sharding(from),
                    graph.sharding(to)
                ));
            }
        }
    }
    all
}

/// Data, tensor, vocabulary and expert parallelism with parameters split at rest.
pub(crate) fn usual(graph: &Graph) -> Rules {
    let mesh = Mesh::new(&[("data", 2), ("fsdp", 2), ("tensor", 2)]);
    let axes: &[(&str, &[&str])] = &[
        ("batch", &["data", "fsdp"]),
        ("kv", &["tensor"]),
        ("head", &["tensor"]),
        ("ff", &["tensor"]),
        ("vocab", &["tensor"]),
        ("expert", &["fsdp"]),
    ];
    rules(graph, mesh, axes, &[("d", &["fsdp"])])
}

#[test]
fn models_lie_on_a_mesh_and_every_reshard_moves_something() {
    for model in ["gqa/gqa", "mixtral/mixtral", "glam/glam", "mla/mla", "packed/packed", "tiny/tiny"] {
        let graph = training(&format!("tests/models/{model}.spec"), &["train.batch=4"]);
        let sharded = shard(&graph, &usual(&graph)).unwrap().graph;
        verify(&sharded, Stage::Sharded).unwrap_or_else(|e| panic!("{model}\n{e}"));
        for node in sharded.ops.iter().filter(|n| matches!(n.op, Op::Mesh(MeshOp::Reshard { .. }))) {
            assert_ne!(sharded.sharding(node.operands[0]), sharded.sharding(node.results[0]), "{model}");
        }
    }
}

/// Llama: in a layer and pass, two sums over `tensor`; every parameter gathered over `fsdp` once and its gradient scattered.
#[test]
fn llama_moves_what_fully_sharded_and_tensor_parallel_training_moves() {
    let graph = training("tests/models/gqa/gqa.spec", &["train.batch=4"]);
    let text = reshards(&shard(&graph, &usual(&graph)).unwrap().graph).join("\n");
    let root = format!("{}/../tests/models/gqa/../../../", env!("CARGO_MANIFEST_DIR"));
    insta::assert_snapshot!(text.replace(&root, ""));
}

/// The same tensor, longer along padded axes, zero there.
fn longer(tensor: &Tensor, padding: &Padding) -> Tensor {
    let axes: Vec<Axis> = tensor
        .ty
        .axes
        .iter()
        .map(|a| Axis::new(&a.name, padding.get(&a.name).map_or(a.size, |(_, padded)| *padded)))
        .collect();
    let ty = Type::new(tensor.ty.dtype, axes);
    let mut values = vec![0.0; ty.numel() as usize];
    for (i, x) in tensor.as_floats().iter().enumerate() {
        let (mut rest, mut at, mut stride) = (i as u64, 0, 1);
        for (old, new) in tensor.ty.axes.iter().zip(&ty.axes).rev() {
            at += rest % old.size * stride;
            rest /= old.size;
            stride *= new.size;
        }
        values[at as usize] = *x;
    }
    Tensor::floats(ty, values)
}

/// Two heads of a small vocabulary, none of whose sizes split: losses and gradients are those of the graph without padding.
#[test]
fn padded_axes_change_no_number() {
    let text = r#"graph @m {
  %t = input below 5 : i32[batch=4]
  %e = param "e" = normal(1.0) : f32[v=5, d=3]
  %w = param "w" = normal(1.0) : f32[d=3, v=5]
  %lr = scalar "lr" = 0.1 : f64[]
  %x = gather %e, %t along v : f32[batch=4, d=3]
  %y = dot %x, %w over d : f32[batch=4, v=5]
  %m = reduce_max %y over v : f32[batch=4]
  %c = sub %y, %m : f32[batch=4, v=5]
  %p = exp %c : f32[batch=4, v=5]
  %s = reduce_sum %p over v : f32[batch=4]
  %q = div %p, %s : f32[batch=4, v=5]
  %dx = dot %q, %w over v : f32[batch=4, d=3]
  %dw = dot %x, %q over batch : f32[d=3, v=5]
  %n = dot %dw, %dw over d, v : f32[]
  %new = update "w" {
    arg %p0 = %w : f32[d=3, v=5]
    arg %g0 = %dw : f32[d=3, v=5]
    arg %l0 = %lr : f64[]
    %l1 = cast %l0 : f32[]
    %s0 = mul %g0, %l1 : f32[d=3, v=5]
    %n0 = sub %p0, %s0 : f32[d=3, v=5]
    yield %n0 : f32[d=3, v=5]
  }
  return s = %s
  return dx = %dx
  return n = %n
  return store "w" = %new
}
"#;
    let graph = crate::testing::graph(text);
    let rules =
        rules(&graph, Mesh::new(&[("a", 2), ("b", 3)]), &[("v", &["a"])], &[("d", &["b"]), ("v", &["a"])]);
    let (padded, padding) = pad_axes(&graph, &rules).unwrap();
    verify(&padded, Stage::Training).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(padding, [("v".into(), (5, 6))].into());
    let mut env = sample_environment(&graph, 3);
    let plain = run(&graph, &env, Mode::F64).unwrap();
    for tensor in env.tensors.values_mut() {
        *tensor = longer(tensor, &padding);
    }
    let long = run(&padded, &env, Mode::F64).unwrap();
    for ((output, a), (_, b)) in plain.0.iter().zip(&long.0) {
        let b = if a.ty.same_axes(&b.ty) { b.as_floats().to_vec() } else { continue };
        assert_eq!(a.as_floats(), b, "{output:?}");
    }
    let stored = |o: &Outputs| o.stored("w").unwrap().clone();
    assert_eq!(longer(&stored(&plain), &padding), stored(&long), "zeros stay zeros");
}
