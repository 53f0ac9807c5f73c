//! Building graphs op by op, with inferred types.

use super::shape::{self, ShapeError};
use super::{
    BinaryOp, CompareOp, DType, Graph, Loop, Name, Op, OpId, OpNode, Origin, Output, ReduceOp, Region,
    RegionId, Type, UnaryOp, ValueId,
};
use std::collections::BTreeMap;

/// Appends ops to a graph, one region at a time.
///
/// ```
/// # use mlc::graph::*;
/// let mut b = Builder::new("f");
/// let x = b.input("x", Type::new(DType::F32, vec![Axis::new("d", 4)]), 0);
/// let y = b.unary(UnaryOp::Exp, x);
/// b.output(Output::Report("y".into()), y);
/// let graph = b.finish();
/// assert_eq!(graph.ty(y).numel(), 4);
/// ```
pub struct Builder {
    /// The graph so far.
    pub graph: Graph,
    /// Origin given to new ops; change it as the walk proceeds.
    pub origin: Origin,
    stack: Vec<RegionId>,
}

impl Builder {
    /// Starts a graph.
    pub fn new(name: impl Into<Name>) -> Builder {
        Builder { graph: Graph::new(name), origin: Origin::default(), stack: vec![RegionId(0)] }
    }

    /// Starts a graph with the name and the mesh of another.
    pub fn like(graph: &Graph) -> Builder {
        let mut builder = Builder::new(&graph.name);
        builder.graph.mesh = graph.mesh.clone();
        builder.graph.padding = graph.padding.clone();
        builder
    }

    /// Goes on with an existing graph, in its body.
    pub fn resume(graph: Graph) -> Builder {
        let body = graph.body;
        Builder { graph, origin: Origin::default(), stack: vec![body] }
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        assert_eq!(self.stack.len(), 1, "a region is still open");
        self.graph
    }

    /// The region ops are appended to.
    pub fn current(&self) -> RegionId {
        *self.stack.last().expect("the body is always open")
    }

    /// Opens a region with arguments of these names and types; ops go into it until [`Builder::close`].
    pub fn open(&mut self, args: &[(Name, Type)]) -> (RegionId, Vec<ValueId>) {
        let id = RegionId(self.graph.regions.len() as u32);
        let args: Vec<ValueId> = args.iter().map(|(n, t)| self.graph.add_value(n, t.clone())).collect();
        self.graph.regions.push(Region { args: args.clone(), ops: Vec::new(), results: Vec::new() });
        self.stack.push(id);
        (id, args)
    }

    /// Opens an existing region again; ops are appended to it until [`Builder::leave`].
    pub fn reopen(&mut self, region: RegionId) {
        self.stack.push(region);
    }

    /// Ends what [`Builder::reopen`] began; the region's arguments and results stay as they are.
    pub fn leave(&mut self) {
        self.stack.pop();
        assert!(!self.stack.is_empty(), "the body is closed by `finish`");
    }

    /// Closes the innermost open region with its results.
    pub fn close(&mut self, results: Vec<ValueId>) -> RegionId {
        let id = self.stack.pop().expect("a region is open");
        assert!(!self.stack.is_empty(), "the body is closed by `finish`");
        self.graph.regions[id.index()].results = results;
        id
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> &Type {
        self.graph.ty(value)
    }

    /// Appends an op. `given` types are needed where they don't follow from the operands (sources, `broadcast`, `cast`,
    /// `scatter`, annotated unions of axes); the others are inferred. `name` is a hint for the results' names.
    ///
    /// # Errors
    /// The operands don't fit the op's shape rule.
    pub fn try_op(
        &mut self,
        op: Op,
        operands: &[ValueId],
        given: Option<Type>,
        name: &str,
    ) -> Result<OpId, ShapeError> {
        let types = shape::infer(&self.graph, &op, operands, given.as_ref())?;
        let many = types.len() > 1;
        let results = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| {
                if many {
                    self.graph.add_value(&format!("{name}.{i}"), ty)
                } else {
                    self.graph.add_value(name, ty)
                }
            })
            .collect();
        let id = OpId(self.graph.ops.len() as u32);
        self.graph.ops.push(OpNode { op, operands: operands.to_vec(), results, origin: self.origin.clone() });
        let region = self.current();
        self.graph.regions[region.index()].ops.push(id);
        Ok(id)
    }

    /// As [`Builder::try_op`], for compiler-made ops whose operands are known to fit; returns the results.
    ///
    /// # Panics
    /// If they don't fit: a bug in the caller.
    #[track_caller]
    pub fn op(&mut self, op: Op, operands: &[ValueId], given: Option<Type>, name: &str) -> Vec<ValueId> {
        match self.try_op(op, operands, given, name) {
            Ok(id) => self.graph.op(id).results.clone(),
            Err(e) => panic!("ill-typed op made by the compiler: {e}"),
        }
    }

    /// As [`Builder::op`] for ops with one result.
    #[track_caller]
    pub fn one(&mut self, op: Op, operands: &[ValueId], given: Option<Type>, name: &str) -> ValueId {
        self.op(op, operands, given, name)[0]
    }

    /// A batch input.
    pub fn input(&mut self, name: &str, ty: Type, bound: u64) -> ValueId {
        self.one(Op::Input { name: name.into(), bound }, &[], Some(ty), name)
    }

    /// A scalar constant.
    pub fn constant(&mut self, dtype: DType, value: f64) -> ValueId {
        self.one(Op::Const(value), &[], Some(Type::scalar(dtype)), "c")
    }

    /// The position along an axis.
    pub fn index(&mut self, axis: &Name, size: u64) -> ValueId {
        let ty = Type::new(DType::I32, vec![super::Axis::new(axis, size)]);
        self.one(Op::Index { axis: axis.clone() }, &[], Some(ty), axis)
    }

    /// Element-wise function.
    #[track_caller]
    pub fn unary(&mut self, op: UnaryOp, x: ValueId) -> ValueId {
        self.one(Op::Unary(op), &[x], None, "t")
    }

    /// Element-wise function of two operands, one of which has all axes of the other.
    #[track_caller]
    pub fn binary(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        self.one(Op::Binary(op), &[a, b], None, "t")
    }

    /// As [`Builder::binary`], the result having the union of the axes.
    #[track_caller]
    pub fn binary_union(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        let ty = shape::union_type(self.ty(a).dtype, &[self.ty(a), self.ty(b)]);
        self.one(Op::Binary(op), &[a, b], Some(ty), "t")
    }

    /// a + b.
    #[track_caller]
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Add, a, b)
    }

    /// a − b.
    #[track_caller]
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Sub, a, b)
    }

    /// a · b.
    #[track_caller]
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Mul, a, b)
    }

    /// a / b.
    #[track_caller]
    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Div, a, b)
    }

    /// x times a constant of its element type.
    #[track_caller]
    pub fn scale(&mut self, x: ValueId, factor: f64) -> ValueId {
        let c = self.constant(self.ty(x).dtype, factor);
        self.mul(x, c)
    }

    /// Comparison.
    #[track_caller]
    pub fn compare(&mut self, op: CompareOp, a: ValueId, b: ValueId) -> ValueId {
        self.one(Op::Compare(op), &[a, b], None, "t")
    }

    /// `if condition { a } else { b }`, over the union of the axes.
    #[track_caller]
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> ValueId {
        let ty = shape::union_type(self.ty(a).dtype, &[self.ty(condition), self.ty(a), self.ty(b)]);
        self.one(Op::Select, &[condition, a, b], Some(ty), "t")
    }

    /// Conversion; the value itself if it has the type already.
    #[track_caller]
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> ValueId {
        if self.ty(x).dtype == dtype {
            return x;
        }
        let ty = self.ty(x).with_dtype(dtype);
        self.one(Op::Cast, &[x], Some(ty), "t")
    }

    /// Repeats along missing axes; the value itself if none is missing.
    #[track_caller]
    pub fn broadcast(&mut self, x: ValueId, ty: &Type) -> ValueId {
        if self.ty(x).same_axes(ty) {
            return x;
        }
        let ty = ty.with_dtype(self.ty(x).dtype);
        self.one(Op::Broadcast, &[x], Some(ty), "t")
    }

    /// Reduction; the value itself over no axes.
    #[track_caller]
    pub fn reduce(&mut self, op: ReduceOp, x: ValueId, axes: &[Name]) -> ValueId {
        if axes.is_empty() {
            return x;
        }
        self.one(Op::Reduce { op, axes: axes.to_vec() }, &[x], None, "t")
    }

    /// Sums away every axis the type lacks.
    #[track_caller]
    pub fn sum_to(&mut self, x: ValueId, ty: &Type) -> ValueId {
        let axes: Vec<Name> = self.ty(x).names().into_iter().filter(|a| !ty.has(a)).collect();
        self.reduce(ReduceOp::Sum, x, &axes)
    }

    /// Running sum along an axis, see [`Op::CumSum`].
    #[track_caller]
    pub fn cumsum(&mut self, x: ValueId, axis: &Name, exclusive: bool, reverse: bool) -> ValueId {
        self.one(Op::CumSum { axis: axis.clone(), exclusive, reverse }, &[x], None, "t")
    }

    /// Contraction.
    #[track_caller]
    pub fn dot(&mut self, a: ValueId, b: ValueId, over: &[Name]) -> ValueId {
        self.one(Op::Dot { over: over.to_vec() }, &[a, b], None, "t")
    }

    /// Renames axes.
    #[track_caller]
    pub fn rename(&mut self, x: ValueId, pairs: &[(Name, Name)]) -> ValueId {
        if pairs.is_empty() {
            return x;
        }
        self.one(Op::Rename { pairs: pairs.to_vec() }, &[x], None, "t")
    }

    /// A loop whose body was built with [`Builder::open`] and [`Builder::close`].
    #[track_caller]
    pub fn repeat(&mut self, l: Loop, operands: &[ValueId], name: &str) -> Vec<ValueId> {
        self.op(Op::Loop(l), operands, None, name)
    }

    /// Declares a result of the whole graph.
    pub fn output(&mut self, output: Output, value: ValueId) {
        let body = self.graph.body;
        self.graph.regions[body.index()].results.push(value);
        self.graph.outputs.push(output);
    }

    /// Names a value (its current name becomes `name`, with a suffix if taken).
    pub fn set_name(&mut self, value: ValueId, name: &str) {
        let dummy = self.graph.add_value(name, Type::scalar(DType::Bool));
        let taken = self.graph.values.pop().expect("just pushed");
        debug_assert_eq!(dummy.index(), self.graph.values.len());
        self.graph.values[value.index()].name = taken.name;
    }

    /// Copies the ops of a region of `from` (which may be another graph, or a clone of this one) to the end of the
    /// current region, with its arguments replaced by `args`; returns its results. Nested regions are copied too; origins
    /// are kept.
    pub fn inline(&mut self, from: &Graph, region: RegionId, args: &[ValueId]) -> Vec<ValueId> {
        let source = from.region(region);
        assert_eq!(source.args.len(), args.len(), "one value per argument");
        let mut map: BTreeMap<ValueId, ValueId> =
            source.args.iter().copied().zip(args.iter().copied()).collect();
        for &op in &source.ops {
            self.copy_op(from, op, &mut map);
        }
        source.results.iter().map(|v| map[v]).collect()
    }

    /// Copies one op with operands mapped, extending the map by its results.
    pub fn copy_op(&mut self, from: &Graph, op: OpId, map: &mut BTreeMap<ValueId, ValueId>) -> OpId {
        let node = from.op(op);
        let new_op = self.copy_regions(from, &node.op);
        let operands = node.operands.iter().map(|v| map[v]).collect();
        let results = node
            .results
            .iter()
            .map(|v| {
                let value = &from.values[v.index()];
                let copy = self.graph.add_value(&value.name, value.ty.clone());
                self.graph.values[copy.index()].sharding = value.sharding.clone();
                map.insert(*v, copy);
                copy
            })
            .collect();
        let id = OpId(self.graph.ops.len() as u32);
        self.graph.ops.push(OpNode { op: new_op, operands, results, origin: node.origin.clone() });
        let current = self.current();
        self.graph.regions[current.index()].ops.push(id);
        id
    }

    /// Copies a region as a new, closed region.
    pub fn copy_region(&mut self, from: &Graph, region: RegionId) -> RegionId {
        let args: Vec<(Name, Type)> = from
            .region(region)
            .args
            .iter()
            .map(|v| (from.value_name(*v).clone(), from.ty(*v).clone()))
            .collect();
        let (_, args) = self.open(&args);
        for (copy, arg) in args.iter().zip(&from.region(region).args) {
            self.graph.values[copy.index()].sharding = from.sharding(*arg).clone();
        }
        let results = self.inline(from, region, &args);
        self.close(results)
    }

    /// The op with copies of its regions.
    pub fn copy_regions(&mut self, from: &Graph, op: &Op) -> Op {
        use super::{Attention, Composite, CompositeKind, Update};
        match op {
            Op::Loop(l) => Op::Loop(Loop { body: self.copy_region(from, l.body), ..l.clone() }),
            Op::Update(u) => Op::Update(Update { body: self.copy_region(from, u.body), ..u.clone() }),
            Op::Composite(c) => {
                let meaning = self.copy_region(from, c.meaning);
                let kind = match &c.kind {
                    CompositeKind::Attention(a) => CompositeKind::Attention(Attention {
                        score: self.copy_region(from, a.score),
                        ..a.clone()
                    }),
                    CompositeKind::AttentionGrad(a) => CompositeKind::AttentionGrad(Attention {
                        score: self.copy_region(from, a.score),
                        ..a.clone()
                    }),
                    other => other.clone(),
                };
                Op::Composite(Composite { kind, meaning })
            }
            other => other.clone(),
        }
    }
}
