//! Random graphs of one rank's part: collectives of every kind over every order of mesh axes, ranks' parts and some arithmetic
//! between them, at the top and in loops with carries, stacked results and sums.

use std::collections::BTreeMap;

use mlc::graph::{
    Axis, BinaryOp, Builder, Collective, CollectiveKind, CollectivePart, DType, Graph, Init, Loop, Mesh,
    MeshOp, Name, Op, Output, ReduceOp, Sharding, Split, Type, UnaryOp, ValueId,
};

use crate::random_graph::Random;

/// No value has more elements on a rank.
const NUMEL_MAX: u64 = 400;
const MESHES: &[&[(&str, u64)]] = &[
    &[("x", 2)],
    &[("x", 3)],
    &[("x", 2), ("y", 2)],
    &[("x", 2), ("y", 3)],
    &[("x", 1), ("y", 2)],
    &[("x", 3), ("y", 2)],
];
const SIZES: &[u64] = &[1, 2, 3, 4, 6];

/// The graph of a seed. It verifies as one rank's (stage `Spmd`).
pub fn rank_graph(seed: u64) -> Graph {
    let mut random = Random::new(seed);
    let mesh = Mesh::new(random.pick(MESHES));
    let mut b = Builder::new("ranks");
    b.graph.mesh = mesh;
    let mut generator = Generator { b, random, shardings: BTreeMap::new(), loops: 0 };
    generator.graph();
    let mut graph = generator.b.finish();
    for (value, sharding) in generator.shardings {
        graph.values[value.index()].sharding = sharding;
    }
    graph
}

struct Generator {
    b: Builder,
    random: Random,
    /// Of what the ranks read.
    shardings: BTreeMap<ValueId, Sharding>,
    loops: usize,
}

impl Generator {
    fn one_in(&mut self, n: usize) -> bool {
        self.random.below(n) == 0
    }

    fn graph(&mut self) {
        let mut scope = Vec::new();
        let mut params = Vec::new();
        for i in 0..3 + self.random.below(3) {
            let (path, ty) = (Name::from(format!("s{i}")), self.source_type());
            let is_param = ty.dtype == DType::F32 && self.one_in(2);
            let op = if is_param {
                Op::Param { path: path.clone(), init: Init::Constant(0.0) }
            } else {
                Op::Input { name: path.clone(), bound: if ty.dtype == DType::I32 { 9 } else { 0 } }
            };
            let value = self.b.one(op, &[], Some(ty.clone()), &path);
            let sharding = self.sharding(&ty);
            self.shardings.insert(value, sharding);
            params.extend(is_param.then_some((path, value)));
            scope.push(value);
        }
        for _ in 0..6 + self.random.below(8) {
            if self.one_in(4) {
                self.loop_op(&mut scope);
            } else {
                self.op(&mut scope);
            }
        }
        self.outputs(&scope, &params);
    }

    /// Some values are stored over parameters of their type, some are reported.
    fn outputs(&mut self, scope: &[ValueId], params: &[(Name, ValueId)]) {
        for (path, old) in params {
            let fits: Vec<ValueId> =
                scope.iter().copied().filter(|v| self.b.ty(*v) == self.b.ty(*old) && v != old).collect();
            if !fits.is_empty() && !self.one_in(3) {
                let new = *self.random.pick(&fits);
                self.b.output(Output::Store(path.clone()), new);
            }
        }
        for (i, v) in scope.iter().enumerate().rev() {
            if i + 3 >= scope.len() || self.one_in(3) {
                self.b.output(Output::Report(format!("o{i}").into()), *v);
            }
        }
    }

    fn source_type(&mut self) -> Type {
        let dtype = if self.one_in(5) { DType::I32 } else { DType::F32 };
        let mut axes: Vec<Axis> = Vec::new();
        for name in ["a", "b", "c"] {
            if !self.one_in(3) {
                axes.push(Axis::new(name, *self.random.pick(SIZES)));
            }
        }
        if axes.is_empty() {
            axes.push(Axis::new("a", 6));
        }
        if self.one_in(2) {
            axes.reverse();
        }
        Type::new(dtype, axes)
    }

    /// Mesh axes on axes of a tensor of which this is one rank's type.
    fn sharding(&mut self, local: &Type) -> Sharding {
        let mut sharding = Sharding::whole();
        for mesh_axis in self.b.graph.mesh.axes.clone() {
            if !self.one_in(3) {
                let axis = self.random.pick(&local.axes).clone();
                let blocks = if axis.size % 2 == 0 && self.one_in(4) { 2 } else { 1 };
                let split = sharding.split.entry(axis.name);
                split.or_insert(Split { over: Vec::new(), blocks }).over.push(mesh_axis.name);
            }
        }
        sharding
    }

    /// Some axes of the mesh in some order.
    fn over(&mut self) -> Vec<Name> {
        let mut axes: Vec<Name> = self.b.graph.mesh.axes.iter().map(|a| a.name.clone()).collect();
        if self.one_in(2) {
            axes.reverse();
        }
        axes.truncate(1 + self.random.below(axes.len()));
        axes
    }

    fn op(&mut self, scope: &mut Vec<ValueId>) {
        match self.random.below(10) {
            0..=5 => self.collective(scope),
            6 => self.local_part(scope),
            7 => {
                let floats = self.floats(scope);
                if let Some(v) = self.some(&floats) {
                    scope.push(self.b.unary(UnaryOp::Tanh, v));
                }
            }
            8 => {
                let v = *self.random.pick(scope);
                let same: Vec<ValueId> =
                    scope.iter().copied().filter(|w| self.b.ty(*w) == self.b.ty(v)).collect();
                let w = *self.random.pick(&same);
                scope.push(self.b.binary(BinaryOp::Add, v, w));
            }
            _ => self.dot(scope),
        }
    }

    fn floats(&self, scope: &[ValueId]) -> Vec<ValueId> {
        scope.iter().copied().filter(|v| self.b.ty(*v).dtype == DType::F32).collect()
    }

    fn some(&mut self, values: &[ValueId]) -> Option<ValueId> {
        if values.is_empty() { None } else { Some(*self.random.pick(values)) }
    }

    fn local_part(&mut self, scope: &mut Vec<ValueId>) {
        let (over, v) = (self.over(), *self.random.pick(scope));
        if let Some(axis) = self.divisible(v, &over) {
            let op = Op::Mesh(MeshOp::LocalPart { axis, over });
            scope.push(self.b.one(op, &[v], None, "part"));
        }
    }

    /// An axis of a value that splits over these axes.
    fn divisible(&mut self, v: ValueId, over: &[Name]) -> Option<Name> {
        let ways = self.b.graph.mesh.ways(over);
        let fits: Vec<Axis> =
            self.b.ty(v).axes.iter().filter(|a| a.size.is_multiple_of(ways)).cloned().collect();
        if fits.is_empty() { None } else { Some(self.random.pick(&fits).name.clone()) }
    }

    fn collective(&mut self, scope: &mut Vec<ValueId>) {
        let over = self.over();
        let reduction = *self.random.pick(&[ReduceOp::Sum, ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min]);
        let kind = *self.random.pick(&[
            CollectiveKind::AllGather,
            CollectiveKind::ReduceScatter(reduction),
            CollectiveKind::AllReduce(reduction),
            CollectiveKind::AllToAll,
        ]);
        let (mut operands, mut parts) = (Vec::new(), Vec::new());
        for _ in 0..1 + usize::from(self.one_in(4)) {
            let v = *self.random.pick(scope);
            if let Some(part) = self.part(kind, v, &over) {
                operands.push(v);
                parts.push(part);
            }
        }
        if operands.is_empty() {
            return;
        }
        let wire = self.one_in(4).then_some(DType::Bf16);
        let wire = wire.filter(|_| operands.iter().all(|v| self.b.ty(*v).dtype == DType::F32));
        let collective = Collective { kind, over, parts, wire, cause: "chance".into() };
        let op = Op::Mesh(MeshOp::Collective(collective));
        scope.extend(self.b.op(op, &operands, None, "moved"));
    }

    /// The axes of an operand, if it fits.
    fn part(&mut self, kind: CollectiveKind, v: ValueId, over: &[Name]) -> Option<CollectivePart> {
        let ways = self.b.graph.mesh.ways(over);
        let mut part = CollectivePart::default();
        let grows = matches!(kind, CollectiveKind::AllGather);
        if grows && self.b.ty(v).numel() * ways > NUMEL_MAX {
            return None;
        }
        if matches!(kind, CollectiveKind::ReduceScatter(_) | CollectiveKind::AllToAll) {
            part.split = Some(self.divisible(v, over)?);
        }
        if matches!(kind, CollectiveKind::AllGather | CollectiveKind::AllToAll) {
            let axes = self.b.ty(v).axes.clone();
            if axes.is_empty() {
                return None;
            }
            part.join = Some(self.random.pick(&axes).name.clone());
        }
        Some(part)
    }

    /// A product over one common axis, if the other common ones agree.
    fn dot(&mut self, scope: &mut Vec<ValueId>) {
        let floats = self.floats(scope);
        let (Some(x), Some(y)) = (self.some(&floats), self.some(&floats)) else { return };
        let (first, second) = (self.b.ty(x).clone(), self.b.ty(y).clone());
        let common: Vec<Name> =
            first.axes.iter().filter(|a| second.has(&a.name)).map(|a| a.name.clone()).collect();
        let agree = common.iter().all(|n| first.size_of(n) == second.size_of(n));
        if agree && !common.is_empty() && first.numel() * second.numel() < NUMEL_MAX * 4 {
            let over = self.random.pick(&common).clone();
            let product = self.b.dot(x, y, &[over]);
            scope.push(self.b.unary(UnaryOp::Tanh, product));
        }
    }

    fn loop_op(&mut self, scope: &mut Vec<ValueId>) {
        self.loops += 1;
        let over = *self.random.pick(scope);
        let sliced = self.b.ty(over).axes.iter().find(|a| a.size > 1).cloned();
        let axis =
            sliced.unwrap_or_else(|| Axis::new(format!("n{}", self.loops), 2 + self.random.below(2) as u64));
        let stacked: Vec<ValueId> = if self.b.ty(over).has(&axis.name) { vec![over] } else { Vec::new() };
        // Other operands must not know the loop's axis.
        let others: Vec<ValueId> = scope.iter().copied().filter(|v| !self.b.ty(*v).has(&axis.name)).collect();
        let carries: Vec<ValueId> = (0..self.random.below(3)).filter_map(|_| self.some(&others)).collect();
        let invariants: Vec<ValueId> = self.some(&others).into_iter().collect();
        let operands = [carries.clone(), stacked.clone(), invariants].concat();
        let mut arguments = vec![(Name::from("i"), Type::scalar(DType::I32))];
        for (i, v) in operands.iter().enumerate() {
            let ty = self.b.ty(*v).clone();
            let kept = ty.axes.into_iter().filter(|a| a.name != axis.name).collect();
            arguments.push((format!("arg{i}").into(), Type::new(ty.dtype, kept)));
        }
        let (body, args) = self.b.open(&arguments);
        let mut inner: Vec<ValueId> = args[1..].to_vec();
        if inner.is_empty() {
            let one = self.b.constant(DType::F32, 1.0);
            inner.push(self.b.broadcast(one, &Type::new(DType::F32, vec![Axis::new("b", 2)])));
        }
        for _ in 0..2 + self.random.below(4) {
            self.op(&mut inner);
        }
        let mut results = Vec::new();
        for arg in &args[1..=carries.len()] {
            let same: Vec<ValueId> =
                inner.iter().copied().filter(|v| self.b.ty(*v) == self.b.ty(*arg)).collect();
            results.push(*self.random.pick(&same));
        }
        let stacks: Vec<ValueId> = (0..1 + self.random.below(2)).map(|_| *self.random.pick(&inner)).collect();
        let sums: Vec<ValueId> = (0..self.random.below(2)).map(|_| *self.random.pick(&inner)).collect();
        results.extend(stacks.iter().chain(&sums));
        self.b.close(results);
        let l = Loop {
            axis: axis.name,
            trip: axis.size,
            block: None,
            reverse: self.one_in(2),
            carries: carries.len(),
            stacked: stacked.len(),
            stacked_outs: stacks.len(),
            body,
        };
        scope.extend(self.b.repeat(l, &operands, "r"));
    }
}
