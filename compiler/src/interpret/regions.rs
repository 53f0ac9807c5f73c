//! Walks regions: sources, primitives, loops, and the regions of composites and updates.

use super::array::{Array, Data};
use super::number::Number;
use super::{Environment, EnvironmentError, Outputs, Tensor, ops, state_name};
use crate::graph::shape::{op_name, show};
use crate::graph::{BinaryOp, Graph, Loop, MeshOp, Name, Op, OpNode, RegionId, Type, ValueId};
use std::collections::BTreeMap;
use std::sync::Arc;

type Result<T> = std::result::Result<T, EnvironmentError>;

/// See [`super::run`].
pub(super) fn run<N: Number>(graph: &Graph, environment: &Environment, with_errors: bool) -> Result<Outputs> {
    let mut interpreter: Interpreter<'_, N> =
        Interpreter { graph, environment, values: vec![None; graph.values.len()] };
    let results = interpreter.region(graph.body, Vec::new())?;
    let values = &graph.region(graph.body).results;
    let tensors = results.iter().zip(values).map(|(array, v)| array.to_tensor(graph.ty(*v), with_errors));
    Ok(Outputs(graph.outputs.iter().cloned().zip(tensors).collect()))
}

struct Interpreter<'a, N> {
    graph: &'a Graph,
    environment: &'a Environment,
    /// Values of the regions being run; ids are unique in the graph and no region contains itself.
    values: Vec<Option<Array<N>>>,
}

impl<N: Number> Interpreter<'_, N> {
    /// Runs a region as a function.
    fn region(&mut self, id: RegionId, args: Vec<Array<N>>) -> Result<Vec<Array<N>>> {
        let graph = self.graph;
        let region = graph.region(id);
        for (arg, value) in region.args.iter().zip(args) {
            // An argument may list the operand's axes in another order.
            self.values[arg.index()] = Some(value.viewed_as(graph.ty(*arg)));
        }
        for op in &region.ops {
            let node = graph.op(*op);
            let results = self.op(node)?;
            for (id, value) in node.results.iter().zip(results) {
                self.values[id.index()] = Some(value);
            }
        }
        let results = region.results.iter().map(|v| self.value(*v).clone()).collect();
        let made = region.ops.iter().flat_map(|op| &graph.op(*op).results).chain(&region.args);
        for id in made {
            self.values[id.index()] = None;
        }
        Ok(results)
    }

    fn value(&self, id: ValueId) -> &Array<N> {
        self.values[id.index()].as_ref().expect("operands are defined before use")
    }

    fn op(&mut self, node: &OpNode) -> Result<Vec<Array<N>>> {
        let ty = self.graph.ty(node.results[0]);
        let get = |i: usize| self.value(node.operands[i]);
        let one = match &node.op {
            Op::Input { name, .. } => self.source(&self.environment.inputs, name, ty, "input")?,
            Op::Param { path, .. } => self.source(&self.environment.tensors, path, ty, "parameter")?,
            Op::State { param, kind } => {
                self.source(&self.environment.tensors, &state_name(param, kind), ty, "state")?
            }
            Op::Scalar { key, default } => {
                ops::constant(ty, self.environment.scalars.get(key).copied().unwrap_or(*default))
            }
            Op::Const(value) => ops::constant(ty, *value),
            Op::Index { .. } => ops::index(ty),
            Op::Unary(op) => ops::unary(ty, *op, get(0)),
            Op::Binary(op) => ops::binary(ty, *op, get(0), get(1)),
            Op::Compare(op) => ops::compare(ty, *op, get(0), get(1)),
            Op::Select => ops::select(ty, get(0), get(1), get(2)),
            Op::Cast => ops::cast(ty, get(0)),
            Op::Broadcast => get(0).viewed_as(ty),
            Op::Rename { pairs } => ops::rename(ty, pairs, get(0)),
            Op::Reduce { op, .. } => ops::reduce(ty, *op, get(0)),
            Op::Dot { over } => ops::dot(ty, over, get(0), get(1)),
            Op::Gather { axis } => ops::gather(ty, axis, get(0), get(1)),
            Op::CumSum { axis, exclusive, reverse } => ops::cumsum(ty, axis, *exclusive, *reverse, get(0)),
            Op::ScatterAdd { axis } => ops::scatter_add(ty, axis, get(0), get(1)),
            Op::RotatePairs { axis, pairs } => ops::rotate_pairs(ty, axis, *pairs, get(0)),
            Op::Transfer { .. } | Op::Mesh(MeshOp::Constrain { .. } | MeshOp::Reshard { .. }) => {
                get(0).clone()
            }
            Op::Mesh(MeshOp::LocalPart { .. } | MeshOp::Collective(_)) => {
                let message = format!("{} runs on several ranks", op_name(&node.op));
                return Err(EnvironmentError { message });
            }
            Op::Slice { from, to, at } => {
                let size = ty.size_of(to).expect("checked by the shape rule");
                let part = get(0).slice(from, *at as usize, Some(size));
                ops::rename(ty, &[(from.clone(), to.clone())], &part)
            }
            Op::Concat { parts, axis } => {
                let operands: Vec<&Array<N>> = (0..parts.len()).map(get).collect();
                ops::concat(ty, parts, axis, &operands)
            }
            Op::Loop(l) => return self.repeat(l, node),
            Op::Composite(c) => return self.call(c.meaning, node),
            Op::Update(u) => return self.call(u.body, node),
        };
        Ok(vec![one])
    }

    /// A tensor of the environment.
    fn source(&self, from: &BTreeMap<Name, Tensor>, name: &Name, ty: &Type, what: &str) -> Result<Array<N>> {
        let Some(tensor) = from.get(name) else {
            return Err(EnvironmentError { message: format!("the {what} {name} is missing") });
        };
        let fits = tensor.ty.same_axes(ty) && ops::is_float(tensor.ty.dtype) == ops::is_float(ty.dtype);
        if !fits {
            let message = format!("the {what} {name} is {}, not {}", show(ty), show(&tensor.ty));
            return Err(EnvironmentError { message });
        }
        Ok(Array::from_tensor(tensor, ty.dtype).viewed_as(ty))
    }

    /// A composite's or update's region on the op's operands.
    fn call(&mut self, region: RegionId, node: &OpNode) -> Result<Vec<Array<N>>> {
        let args = node.operands.iter().map(|v| self.value(*v).clone()).collect();
        let results = self.region(region, args)?;
        Ok(self.as_written(node, results))
    }

    /// Results in the order of axes the op's results are written with.
    fn as_written(&self, node: &OpNode, results: Vec<Array<N>>) -> Vec<Array<N>> {
        node.results.iter().zip(results).map(|(v, array)| array.viewed_as(self.graph.ty(*v))).collect()
    }

    fn repeat(&mut self, l: &Loop, node: &OpNode) -> Result<Vec<Array<N>>> {
        let graph = self.graph;
        let operands: Vec<Array<N>> = node.operands.iter().map(|v| self.value(*v).clone()).collect();
        let (carried, rest) = operands.split_at(l.carries);
        let (stacked, invariant) = rest.split_at(l.stacked);
        let mut carries = carried.to_vec();
        let stack_end = l.carries + l.stacked_outs;
        let mut stacks: Vec<ops::Stack<N>> =
            node.results[l.carries..stack_end].iter().map(|v| ops::Stack::new(graph.ty(*v))).collect();
        let mut sums: Vec<Option<Array<N>>> = vec![None; node.results.len() - stack_end];
        let index_ty = graph.ty(graph.region(l.body).args[0]);
        for step in 0..l.trip {
            let i = if l.reverse { l.trip - 1 - step } else { step };
            let start = (i * l.block.unwrap_or(1)) as usize;
            let index = Array { data: Data::Int(Arc::new(vec![i as i64])), ..ops::zeros(index_ty) };
            let args = std::iter::once(index)
                .chain(carries)
                .chain(stacked.iter().map(|s| s.slice(&l.axis, start, l.block)))
                .chain(invariant.iter().cloned())
                .collect();
            let mut results = self.region(l.body, args)?;
            let ends = results.split_off(stack_end);
            for (stack, slice) in stacks.iter_mut().zip(&results[l.carries..]) {
                stack.write(&l.axis, start, slice);
            }
            results.truncate(l.carries);
            carries = results;
            for (sum, term) in sums.iter_mut().zip(ends) {
                // The sum starts at 0, and 0 + x = x.
                *sum = Some(match sum.take() {
                    Some(so_far) => ops::binary(&so_far.ty.clone(), BinaryOp::Add, &so_far, &term),
                    None => term,
                });
            }
        }
        let results: Vec<Array<N>> = carries
            .into_iter()
            .chain(stacks.into_iter().map(ops::Stack::finish))
            .chain(sums.into_iter().map(|s| s.expect("a loop runs at least once")))
            .collect();
        Ok(self.as_written(node, results))
    }
}
