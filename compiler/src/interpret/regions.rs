//! Walks regions: sources, primitives, loops, and the regions of composites and updates; on all ranks at once, op by op, so
//! that a collective sees the operands of all of them wherever it stands.

use super::array::{Array, Data};
use super::number::Number;
use super::{Environment, EnvironmentError, Outputs, Tensor, collective, ops, placed, state_name};
use crate::graph::shape::{op_name, show};
use crate::graph::{BinaryOp, Graph, Loop, Mesh, MeshOp, Name, Op, OpNode, RegionId, Type, ValueId};
use std::collections::BTreeMap;
use std::sync::Arc;

type Result<T> = std::result::Result<T, EnvironmentError>;

/// One array per rank.
pub(super) type Ranks<N> = Vec<Array<N>>;

/// Runs a graph on the ranks of a mesh, or without one as what all ranks together compute; see [`super::run`] and
/// [`super::run_ranks`].
pub(super) fn run<N: Number>(
    graph: &Graph,
    environment: &Environment,
    mesh: Option<&Mesh>,
    with_errors: bool,
) -> Result<Vec<Outputs>> {
    let ranks = mesh.map_or(1, |m| m.ranks() as usize);
    let values = vec![Vec::new(); graph.values.len()];
    let mut interpreter: Interpreter<'_, N> = Interpreter { graph, environment, mesh, ranks, values };
    let results = interpreter.region(graph.body, Vec::new())?;
    let ids = &graph.region(graph.body).results;
    let of_rank = |rank: usize| {
        let tensors =
            results.iter().zip(ids).map(|(arrays, v)| arrays[rank].to_tensor(graph.ty(*v), with_errors));
        Outputs(graph.outputs.iter().cloned().zip(tensors).collect())
    };
    Ok((0..ranks).map(of_rank).collect())
}

struct Interpreter<'a, N> {
    graph: &'a Graph,
    environment: &'a Environment,
    /// The ranks; none if the graph says what all of them compute together.
    mesh: Option<&'a Mesh>,
    ranks: usize,
    /// Values of the regions being run, empty if not defined; ids are unique in the graph and no region contains itself.
    values: Vec<Ranks<N>>,
}

impl<N: Number> Interpreter<'_, N> {
    /// Runs a region as a function.
    fn region(&mut self, id: RegionId, args: Vec<Ranks<N>>) -> Result<Vec<Ranks<N>>> {
        let graph = self.graph;
        let region = graph.region(id);
        for (arg, value) in region.args.iter().zip(args) {
            // An argument may list the operand's axes in another order.
            self.values[arg.index()] = viewed(&value, graph.ty(*arg));
        }
        for op in &region.ops {
            let node = graph.op(*op);
            let results = self.op(node)?;
            for (id, value) in node.results.iter().zip(results) {
                self.values[id.index()] = value;
            }
        }
        let results = region.results.iter().map(|v| self.value(*v).clone()).collect();
        let made = region.ops.iter().flat_map(|op| &graph.op(*op).results).chain(&region.args);
        for id in made {
            self.values[id.index()] = Vec::new();
        }
        Ok(results)
    }

    fn value(&self, id: ValueId) -> &Ranks<N> {
        let arrays = &self.values[id.index()];
        assert_eq!(arrays.len(), self.ranks, "operands are defined before use");
        arrays
    }

    fn operands(&self, node: &OpNode) -> Vec<Ranks<N>> {
        node.operands.iter().map(|v| self.value(*v).clone()).collect()
    }

    /// What `f` makes of each rank's operands.
    fn each(&self, node: &OpNode, f: impl Fn(usize, &[&Array<N>]) -> Array<N>) -> Ranks<N> {
        let operands: Vec<&Ranks<N>> = node.operands.iter().map(|v| self.value(*v)).collect();
        let of_rank = |rank| operands.iter().map(|arrays: &&Ranks<N>| &arrays[rank]).collect::<Vec<_>>();
        (0..self.ranks).map(|rank| f(rank, &of_rank(rank))).collect()
    }

    fn op(&mut self, node: &OpNode) -> Result<Vec<Ranks<N>>> {
        let ty = self.graph.ty(node.results[0]);
        let one = match &node.op {
            Op::Input { name, .. } => self.source(&self.environment.inputs, name, node, "input")?,
            Op::Param { path, .. } => self.source(&self.environment.tensors, path, node, "parameter")?,
            Op::State { param, kind } => {
                self.source(&self.environment.tensors, &state_name(param, kind), node, "state")?
            }
            Op::Scalar { key, default } => self.scalar(key, *default, ty)?,
            Op::Const(value) => self.each(node, |_, _| ops::constant(ty, *value)),
            Op::Index { .. } => self.each(node, |_, _| ops::index(ty)),
            Op::Unary(op) => self.each(node, |_, x| ops::unary(ty, *op, x[0])),
            Op::Binary(op) => self.each(node, |_, x| ops::binary(ty, *op, x[0], x[1])),
            Op::Compare(op) => self.each(node, |_, x| ops::compare(ty, *op, x[0], x[1])),
            Op::Select => self.each(node, |_, x| ops::select(ty, x[0], x[1], x[2])),
            Op::Cast => self.each(node, |_, x| ops::cast(ty, x[0])),
            Op::Broadcast => self.each(node, |_, x| x[0].viewed_as(ty)),
            Op::Rename { pairs } => self.each(node, |_, x| ops::rename(ty, pairs, x[0])),
            Op::Reduce { op, .. } => self.each(node, |_, x| ops::reduce(ty, *op, x[0])),
            Op::Dot { over } => self.each(node, |_, x| ops::dot(ty, over, x[0], x[1])),
            Op::Gather { axis } => self.each(node, |_, x| ops::gather(ty, axis, x[0], x[1])),
            Op::CumSum { axis, exclusive, reverse } => {
                self.each(node, |_, x| ops::cumsum(ty, axis, *exclusive, *reverse, x[0]))
            }
            Op::ScatterAdd { axis } => self.each(node, |_, x| ops::scatter_add(ty, axis, x[0], x[1])),
            Op::RotatePairs { axis, pairs } => {
                self.each(node, |_, x| ops::rotate_pairs(ty, axis, *pairs, x[0]))
            }
            Op::Transfer { .. } => self.each(node, |_, x| x[0].clone()),
            Op::Mesh(op) => return self.mesh_op(op, node),
            Op::Slice { from, to, at } => self.each(node, |_, x| {
                let size = ty.size_of(to).expect("checked by the shape rule");
                let part = x[0].slice(from, *at as usize, Some(size));
                ops::rename(ty, &[(from.clone(), to.clone())], &part)
            }),
            Op::Concat { parts, axis } => self.each(node, |_, x| ops::concat(ty, parts, axis, x)),
            Op::Loop(l) => return self.repeat(l, node),
            Op::Composite(c) => return self.call(c.meaning, node),
            Op::Update(u) => return self.call(u.body, node),
        };
        Ok(vec![one])
    }

    fn mesh_op(&self, op: &MeshOp, node: &OpNode) -> Result<Vec<Ranks<N>>> {
        let fail = |what: &str| Err(EnvironmentError { message: format!("{} {what}", op_name(&node.op)) });
        match (op, self.mesh) {
            (MeshOp::Constrain { .. }, _) | (MeshOp::Reshard { .. }, None) => {
                Ok(vec![self.value(node.operands[0]).clone()])
            }
            (MeshOp::Reshard { .. }, Some(_)) => fail("is to be lowered before ranks run"),
            (MeshOp::Collective(_) | MeshOp::LocalPart { .. }, None) => fail("runs on several ranks"),
            (MeshOp::LocalPart { axis, over }, Some(mesh)) => {
                let ty = self.graph.ty(node.results[0]);
                let size = ty.size_of(axis).expect("checked by the shape rule");
                let part = |rank: usize, x: &[&Array<N>]| {
                    let start = mesh.position(rank as u64, over) * size;
                    x[0].slice(axis, start as usize, Some(size)).viewed_as(ty)
                };
                Ok(vec![self.each(node, part)])
            }
            (MeshOp::Collective(c), Some(mesh)) => {
                let results = node.operands.iter().zip(&c.parts).zip(&node.results);
                let one = |((operand, part), result): ((&ValueId, _), &ValueId)| {
                    collective::run(c, part, mesh, self.value(*operand), self.graph.ty(*result))
                };
                Ok(results.map(one).collect())
            }
        }
    }

    /// A scalar; `mesh.AXIS` is the rank's coordinate on that axis of the mesh.
    fn scalar(&self, key: &Name, default: f64, ty: &Type) -> Result<Ranks<N>> {
        let (Some(axis), Some(mesh)) = (key.strip_prefix("mesh."), self.mesh) else {
            let value = self.environment.scalars.get(key).copied().unwrap_or(default);
            return Ok(vec![ops::constant(ty, value); self.ranks]);
        };
        let Some(at) = mesh.axes.iter().position(|a| a.name.as_str() == axis) else {
            return Err(EnvironmentError { message: format!("the mesh has no axis {axis}") });
        };
        let coordinate = |rank: usize| mesh.coordinates(rank as u64)[at];
        Ok((0..self.ranks).map(|rank| ops::constant(ty, coordinate(rank) as f64)).collect())
    }

    /// A tensor of the environment: on ranks each one's part.
    fn source(
        &self,
        from: &BTreeMap<Name, Tensor>,
        name: &Name,
        node: &OpNode,
        what: &str,
    ) -> Result<Ranks<N>> {
        let ty = self.graph.ty(node.results[0]);
        let sharding = self.graph.sharding(node.results[0]);
        let Some(tensor) = from.get(name) else {
            return Err(EnvironmentError { message: format!("the {what} {name} is missing") });
        };
        let global = self.mesh.map_or_else(|| ty.clone(), |mesh| placed::global_type(ty, sharding, mesh));
        let fits = tensor.ty.same_axes(&global) && ops::is_float(tensor.ty.dtype) == ops::is_float(ty.dtype);
        if !fits {
            let message = format!("the {what} {name} is {}, not {}", show(&global), show(&tensor.ty));
            return Err(EnvironmentError { message });
        }
        let whole = Array::from_tensor(tensor, ty.dtype).viewed_as(&global);
        let Some(mesh) = self.mesh else { return Ok(vec![whole]) };
        if !sharding.partial.is_empty() {
            let message =
                format!("the {what} {name} can't lie as `{sharding}`: nothing says how it is a sum");
            return Err(EnvironmentError { message });
        }
        (0..self.ranks as u64)
            .map(|rank| whole.part(&global, sharding, mesh, rank))
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| EnvironmentError { message: format!("the {what} {name}: {e}") })
    }

    /// A composite's or update's region on the op's operands.
    fn call(&mut self, region: RegionId, node: &OpNode) -> Result<Vec<Ranks<N>>> {
        let results = self.region(region, self.operands(node))?;
        Ok(self.as_written(node, results))
    }

    /// Results in the order of axes the op's results are written with.
    fn as_written(&self, node: &OpNode, results: Vec<Ranks<N>>) -> Vec<Ranks<N>> {
        node.results.iter().zip(results).map(|(v, arrays)| viewed(&arrays, self.graph.ty(*v))).collect()
    }

    fn repeat(&mut self, l: &Loop, node: &OpNode) -> Result<Vec<Ranks<N>>> {
        let graph = self.graph;
        let operands = self.operands(node);
        let (carried, rest) = operands.split_at(l.carries);
        let (stacked, invariant) = rest.split_at(l.stacked);
        let mut carries = carried.to_vec();
        let stack_end = l.carries + l.stacked_outs;
        let empty_stack = |v: &ValueId| (0..self.ranks).map(|_| ops::Stack::new(graph.ty(*v))).collect();
        let mut stacks: Vec<Vec<ops::Stack<N>>> =
            node.results[l.carries..stack_end].iter().map(empty_stack).collect();
        let mut sums: Vec<Option<Ranks<N>>> = vec![None; node.results.len() - stack_end];
        let index_ty = graph.ty(graph.region(l.body).args[0]);
        for step in 0..l.trip {
            let i = if l.reverse { l.trip - 1 - step } else { step };
            let start = (i * l.block.unwrap_or(1)) as usize;
            let index = Array { data: Data::Int(Arc::new(vec![i as i64])), ..ops::zeros(index_ty) };
            let slice = |arrays: &Ranks<N>| arrays.iter().map(|a| a.slice(&l.axis, start, l.block)).collect();
            let args = std::iter::once(vec![index; self.ranks])
                .chain(carries)
                .chain(stacked.iter().map(slice))
                .chain(invariant.iter().cloned())
                .collect();
            let mut results = self.region(l.body, args)?;
            let ends = results.split_off(stack_end);
            for (stack, slice) in stacks.iter_mut().flatten().zip(results[l.carries..].iter().flatten()) {
                stack.write(&l.axis, start, slice);
            }
            results.truncate(l.carries);
            carries = results;
            for (sum, term) in sums.iter_mut().zip(ends) {
                // The sum starts at 0, and 0 + x = x.
                *sum = Some(match sum.take() {
                    Some(so_far) => added(&so_far, &term),
                    None => term,
                });
            }
        }
        let finish = |stacks: Vec<ops::Stack<N>>| stacks.into_iter().map(ops::Stack::finish).collect();
        let results: Vec<Ranks<N>> = carries
            .into_iter()
            .chain(stacks.into_iter().map(finish))
            .chain(sums.into_iter().map(|s| s.expect("a loop runs at least once")))
            .collect();
        Ok(self.as_written(node, results))
    }
}

fn viewed<N: Number>(arrays: &Ranks<N>, ty: &Type) -> Ranks<N> {
    arrays.iter().map(|a| a.viewed_as(ty)).collect()
}

fn added<N: Number>(so_far: &Ranks<N>, term: &Ranks<N>) -> Ranks<N> {
    so_far.iter().zip(term).map(|(a, b)| ops::binary(&a.ty.clone(), BinaryOp::Add, a, b)).collect()
}
