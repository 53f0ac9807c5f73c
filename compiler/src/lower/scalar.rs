//! Scalar regions from graph ops: what a kernel computes per element.
//!
//! A value is evaluated at coordinates: for each of its axes, a dimension of the iteration space or one half of a
//! dimension whose pairs rotate. Equal scalar ops are made once. Scalars of bf16 are held as f32 and rounded wherever the graph
//! makes one, so that a cast means the same whether or not its result is ever stored.

#[cfg(test)]
mod tests;

use crate::fuse::{FuseError, Fused, Group, LoopId, Result, View};
use crate::graph::{Axis, Name, Op, OpId, OpNode, Pairs, ValueId, shape};
use mlc_codegen::abi::DType;
use mlc_codegen::program::reference::{bf16_from_f32, bf16_to_f32};
use mlc_codegen::program::{BinaryOp, ReduceOp, Region, ScalarId, ScalarOp, UnaryOp};
use std::collections::{BTreeMap, BTreeSet};

/// Where along one axis an element is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coord {
    /// At the index of this dimension.
    Dim(usize),
    /// At one partner of the pair the dimension counts; `n` is the axis's size.
    Half {
        /// Dimension, of size `n / 2`.
        dim: usize,
        /// Which partner, 0 or 1.
        half: u64,
        /// Which elements are partners.
        pairs: Pairs,
        /// Size of the axis.
        n: u64,
    },
}

impl Coord {
    /// `(dimension, factor, constant)`: the position along the axis is `factor · index + constant`.
    pub fn affine(self) -> (usize, u64, u64) {
        match self {
            Coord::Dim(dim) => (dim, 1, 0),
            Coord::Half { dim, half, pairs: Pairs::Half, n } => (dim, 1, half * (n / 2)),
            Coord::Half { dim, half, pairs: Pairs::Interleaved, .. } => (dim, 2, half),
        }
    }
}

/// Coordinates by axis name.
pub type Coords = BTreeMap<Name, Coord>;

/// An operand to be: a view with its strides over the iteration space, in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// What is read or written.
    pub view: View,
    /// One per dimension.
    pub strides: Vec<u64>,
    /// Constant displacement within the view.
    pub offset: u64,
    /// Element type in memory.
    pub dtype: DType,
}

/// The access of a view at coordinates, over `dims` dimensions.
pub fn access(fused: &Fused, view: &View, coords: &Coords, dims: usize) -> Access {
    let buffer = fused.buffer(view.buffer);
    let mut strides = vec![0; dims];
    let mut offset = 0;
    for axis in &view.axes {
        if let Some(coord) = coords.get(&axis.name) {
            let (dim, factor, constant) = coord.affine();
            let stride = view.stride(buffer, &axis.name);
            strides[dim] += factor * stride;
            offset += constant * stride;
        }
    }
    Access { view: view.clone(), strides, offset, dtype: buffer.dtype }
}

/// A region under construction.
pub struct Builder<'f> {
    fused: &'f Fused,
    inside: BTreeSet<OpId>,
    def: BTreeMap<ValueId, OpId>,
    /// Number of dimensions of the iteration space.
    dims: usize,
    /// First reduced dimension.
    kept: usize,
    /// Reduced axes, in the order of the last dimensions.
    reduced: Vec<Axis>,
    ops: Vec<ScalarOp>,
    types: Vec<DType>,
    row_level: Vec<bool>,
    memo: BTreeMap<(ValueId, Vec<(Name, Coord)>), ScalarId>,
    /// Values that are inputs from elsewhere, such as the product of a matrix kernel.
    pub given: BTreeMap<ValueId, ScalarId>,
    /// What inputs load, in order.
    pub loads: Vec<Access>,
    /// Loop indices read, in order; their inputs follow the loads (see [`Builder::finish`]).
    pub indices: Vec<LoopId>,
}

/// Input numbers of loop indices until the number of loads is known.
const INDEX_INPUT: u32 = 1 << 30;

impl<'f> Builder<'f> {
    /// A region over `dims` dimensions of which those from `kept` on run over `reduced`; ops of the group are computed,
    /// everything else is loaded.
    pub fn new(fused: &'f Fused, group: &Group, dims: usize, reduced: Vec<Axis>) -> Builder<'f> {
        let def =
            group.ops.iter().flat_map(|op| fused.graph.op(*op).results.iter().map(|v| (*v, *op))).collect();
        Builder {
            fused,
            inside: group.ops.iter().copied().collect(),
            def,
            dims,
            kept: dims - reduced.len(),
            reduced,
            ops: Vec::new(),
            types: Vec::new(),
            row_level: Vec::new(),
            memo: BTreeMap::new(),
            given: BTreeMap::new(),
            loads: Vec::new(),
            indices: Vec::new(),
        }
    }

    /// Adds an op, or finds the equal one.
    pub fn push(&mut self, op: ScalarOp, dtype: DType) -> ScalarId {
        let equal = |o: &ScalarOp| match (o, &op) {
            // Constants by bits: 0 and −0 differ, NaN equals itself.
            (ScalarOp::Const(d, x), ScalarOp::Const(e, y)) => d == e && x.to_bits() == y.to_bits(),
            (a, b) => a == b,
        };
        if let Some(i) = self.ops.iter().position(equal) {
            debug_assert_eq!(self.types[i], dtype, "an op and its operands decide on the type");
            return ScalarId(i as u32);
        }
        let row = |id: ScalarId| self.row_level[id.0 as usize];
        let row_level = match op {
            ScalarOp::Input(i) if i >= INDEX_INPUT => true,
            ScalarOp::Input(i) => {
                self.loads.get(i as usize).is_some_and(|l| l.strides[self.kept..].iter().all(|s| *s == 0))
            }
            ScalarOp::Index(d) => (d as usize) < self.kept,
            ScalarOp::Const(..) | ScalarOp::Reduce(..) => true,
            ScalarOp::Unary(_, a) | ScalarOp::Cast(_, a) => row(a),
            ScalarOp::Binary(_, a, b) | ScalarOp::Compare(_, a, b) => row(a) && row(b),
            ScalarOp::MulAdd(a, b, c) | ScalarOp::Select(a, b, c) => row(a) && row(b) && row(c),
        };
        let id = ScalarId(self.ops.len() as u32);
        self.ops.push(op);
        self.types.push(dtype);
        self.row_level.push(row_level);
        id
    }

    fn input(&mut self, access: Access) -> ScalarId {
        let dtype = compute_type(access.dtype);
        let i = match self.loads.iter().position(|l| *l == access) {
            Some(i) => i,
            None => {
                self.loads.push(access);
                self.loads.len() - 1
            }
        };
        self.push(ScalarOp::Input(i as u32), dtype)
    }

    /// Loads the element of a view at the coordinates.
    pub fn load(&mut self, view: &View, coords: &Coords) -> ScalarId {
        let access = access(self.fused, view, coords, self.dims);
        self.input(access)
    }

    /// Type a value computes in.
    pub fn type_of(&self, id: ScalarId) -> DType {
        self.types[id.0 as usize]
    }

    /// Evaluates a value at coordinates.
    ///
    /// # Errors
    /// An op that has no scalar form.
    pub fn value(&mut self, v: ValueId, coords: &Coords) -> Result<ScalarId> {
        if let Some(id) = self.given.get(&v) {
            return Ok(*id);
        }
        let ty = self.fused.graph.ty(v);
        let here: Coords =
            coords.iter().filter(|(name, _)| ty.has(name)).map(|(n, c)| (n.clone(), *c)).collect();
        let key = (v, here.iter().map(|(n, c)| (n.clone(), *c)).collect::<Vec<_>>());
        if let Some(id) = self.memo.get(&key) {
            return Ok(*id);
        }
        let id = match self.def.get(&v) {
            Some(op) if self.inside.contains(op) => {
                let node = self.fused.graph.op(*op);
                self.compute(node, v, &here)?
            }
            _ => match self.fused.indices.get(&v) {
                Some(var) => self.loop_index(*var),
                None => {
                    let view = self.fused.views[&v].clone();
                    self.load(&view, &here)
                }
            },
        };
        self.memo.insert(key, id);
        Ok(id)
    }

    fn loop_index(&mut self, var: LoopId) -> ScalarId {
        let i = match self.indices.iter().position(|v| *v == var) {
            Some(i) => i,
            None => {
                self.indices.push(var);
                self.indices.len() - 1
            }
        };
        let wide = self.push(ScalarOp::Input(INDEX_INPUT + i as u32), DType::I64);
        self.push(ScalarOp::Cast(DType::I32, wide), DType::I32)
    }

    fn position(&mut self, coord: Coord) -> ScalarId {
        let (dim, factor, constant) = coord.affine();
        let mut at = self.push(ScalarOp::Index(dim as u32), DType::I32);
        if factor != 1 {
            let f = self.push(ScalarOp::Const(DType::I32, factor as f64), DType::I32);
            at = self.push(ScalarOp::Binary(BinaryOp::Mul, at, f), DType::I32);
        }
        if constant != 0 {
            let c = self.push(ScalarOp::Const(DType::I32, constant as f64), DType::I32);
            at = self.push(ScalarOp::Binary(BinaryOp::Add, at, c), DType::I32);
        }
        at
    }

    fn compute(&mut self, node: &OpNode, v: ValueId, coords: &Coords) -> Result<ScalarId> {
        let wanted = self.fused.graph.ty(v).dtype;
        let dtype = compute_type(wanted);
        let refuse = |message: &str| {
            Err(FuseError {
                op: shape::op_name(&node.op),
                origin: node.origin.clone(),
                message: message.to_string(),
            })
        };
        Ok(match &node.op {
            Op::Const(c) => {
                let c = if wanted == DType::Bf16 { bf16_to_f64(*c) } else { *c };
                self.push(ScalarOp::Const(dtype, c), dtype)
            }
            Op::Index { axis } => match coords.get(axis) {
                Some(coord) => self.position(*coord),
                None => return refuse("the axis of this index is not part of the kernel's space"),
            },
            Op::Unary(u) => {
                let a = self.value(node.operands[0], coords)?;
                let y = self.push(ScalarOp::Unary(*u, a), dtype);
                self.rounded(y, wanted)
            }
            Op::Binary(b) => {
                let x = self.value(node.operands[0], coords)?;
                let y = self.value(node.operands[1], coords)?;
                let z = self.push(ScalarOp::Binary(*b, x, y), dtype);
                self.rounded(z, wanted)
            }
            Op::Compare(c) => {
                let x = self.value(node.operands[0], coords)?;
                let y = self.value(node.operands[1], coords)?;
                self.push(ScalarOp::Compare(*c, x, y), DType::Bool)
            }
            Op::Select => {
                let c = self.value(node.operands[0], coords)?;
                let x = self.value(node.operands[1], coords)?;
                let y = self.value(node.operands[2], coords)?;
                self.push(ScalarOp::Select(c, x, y), dtype)
            }
            Op::Cast => {
                let a = self.value(node.operands[0], coords)?;
                let y = self.cast(a, dtype);
                self.rounded(y, wanted)
            }
            Op::Broadcast => self.value(node.operands[0], coords)?,
            Op::Rename { pairs } => {
                let mut moved = coords.clone();
                for (_, to) in pairs {
                    moved.remove(to);
                }
                for (from, to) in pairs {
                    if let Some(c) = coords.get(to) {
                        moved.insert(from.clone(), *c);
                    }
                }
                self.value(node.operands[0], &moved)?
            }
            Op::Reduce { op, .. } => {
                let mut inner = coords.clone();
                for (i, axis) in self.reduced.iter().enumerate() {
                    inner.insert(axis.name.clone(), Coord::Dim(self.kept + i));
                }
                let a = self.value(node.operands[0], &inner)?;
                self.reduce(*op, a, dtype)
            }
            Op::RotatePairs { axis, .. } => {
                let Some(Coord::Half { dim, half, pairs, n }) = coords.get(axis).copied() else {
                    return refuse("pairs rotate along an axis the kernel does not pair");
                };
                let mut partner = coords.clone();
                partner.insert(axis.clone(), Coord::Half { dim, half: 1 - half, pairs, n });
                let x = self.value(node.operands[0], &partner)?;
                if half == 0 {
                    self.push(ScalarOp::Unary(mlc_codegen::program::UnaryOp::Neg, x), dtype)
                } else {
                    x
                }
            }
            Op::Input { .. }
            | Op::Param { .. }
            | Op::State { .. }
            | Op::Scalar { .. }
            | Op::Dot { .. }
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::Transfer { .. }
            | Op::Mesh(_)
            | Op::CumSum { .. }
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Loop(_)
            | Op::Composite(_)
            | Op::Update(_) => return refuse("this op is no scalar function"),
        })
    }

    /// Converts, if the type differs.
    pub fn cast(&mut self, a: ScalarId, to: DType) -> ScalarId {
        let to = compute_type(to);
        if self.type_of(a) == to { a } else { self.push(ScalarOp::Cast(to, a), to) }
    }

    /// A value of type `wanted`: rounded if that is bf16 and the value may be none.
    fn rounded(&mut self, a: ScalarId, wanted: DType) -> ScalarId {
        if wanted != DType::Bf16 || self.is_bf16(a) {
            return a;
        }
        self.push(ScalarOp::Cast(DType::Bf16, a), DType::F32)
    }

    /// Whether bf16 holds a scalar, by how it was made.
    fn is_bf16(&self, a: ScalarId) -> bool {
        match self.ops[a.0 as usize] {
            ScalarOp::Input(i) => self.loads.get(i as usize).is_some_and(|l| l.dtype == DType::Bf16),
            ScalarOp::Cast(to, _) => to == DType::Bf16,
            ScalarOp::Const(DType::F32, c) => bf16_to_f64(c) == c,
            ScalarOp::Unary(UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Floor, x) => self.is_bf16(x),
            ScalarOp::Binary(BinaryOp::Max | BinaryOp::Min, x, y) | ScalarOp::Select(_, x, y) => {
                self.is_bf16(x) && self.is_bf16(y)
            }
            ScalarOp::Reduce(ReduceOp::Max | ReduceOp::Min, x) => self.is_bf16(x),
            ScalarOp::Const(..)
            | ScalarOp::Index(_)
            | ScalarOp::Unary(..)
            | ScalarOp::Binary(..)
            | ScalarOp::MulAdd(..)
            | ScalarOp::Compare(..)
            | ScalarOp::Reduce(..) => false,
        }
    }

    /// What a store to `dtype` takes: a store rounds by itself, so a rounding just before it is left out.
    pub fn stored(&self, a: ScalarId, dtype: DType) -> ScalarId {
        match self.ops[a.0 as usize] {
            ScalarOp::Cast(DType::Bf16, x) if dtype == DType::Bf16 => x,
            _ => a,
        }
    }

    /// A row-level operand is the same all along the row.
    fn reduce(&mut self, op: ReduceOp, a: ScalarId, dtype: DType) -> ScalarId {
        if !self.row_level[a.0 as usize] {
            return self.push(ScalarOp::Reduce(op, a), dtype);
        }
        match op {
            ReduceOp::Max | ReduceOp::Min => a,
            ReduceOp::Sum => {
                let n: u64 = self.reduced.iter().map(|r| r.size).product();
                let n = self.push(ScalarOp::Const(dtype, n as f64), dtype);
                self.push(ScalarOp::Binary(BinaryOp::Mul, a, n), dtype)
            }
        }
    }

    /// Whether the region asks for the index along a dimension.
    pub fn uses_index(&self, dim: usize) -> bool {
        self.ops.contains(&ScalarOp::Index(dim as u32))
    }

    /// The region with these results; loop indices become the inputs after the loads. Unused ops go.
    pub fn finish(self, results: &[ScalarId]) -> Finished {
        let mut used = vec![false; self.ops.len()];
        let mut stack = results.to_vec();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut used[id.0 as usize], true) {
                stack.extend(operands(&self.ops[id.0 as usize]));
            }
        }
        // Loads nobody uses any more are dropped, the others keep their order.
        let mut input_map = BTreeMap::new();
        let mut loads = Vec::new();
        for (i, load) in self.loads.into_iter().enumerate() {
            let needed =
                self.ops.iter().zip(&used).any(|(op, used)| *used && *op == ScalarOp::Input(i as u32));
            if needed {
                input_map.insert(i as u32, loads.len() as u32);
                loads.push(load);
            }
        }
        let n_loads = loads.len() as u32;
        let mut map = BTreeMap::new();
        let mut ops = Vec::new();
        for (i, op) in self.ops.iter().enumerate().filter(|(i, _)| used[*i]) {
            let op = match *op {
                ScalarOp::Input(k) if k >= INDEX_INPUT => ScalarOp::Input(n_loads + k - INDEX_INPUT),
                ScalarOp::Input(k) => ScalarOp::Input(input_map.get(&k).copied().unwrap_or(k)),
                ref other => renumbered(other, &|id| map[&id]),
            };
            map.insert(ScalarId(i as u32), ScalarId(ops.len() as u32));
            ops.push(op);
        }
        let results = results.iter().map(|r| map[r]).collect();
        Finished { region: Region { ops, results }, loads, indices: self.indices }
    }
}

/// A finished region with what its inputs are.
pub struct Finished {
    /// The region.
    pub region: Region,
    /// Inputs in order.
    pub loads: Vec<Access>,
    /// Loop indices, inputs after the loads.
    pub indices: Vec<LoopId>,
}

/// The nearest bf16 number, as the interpreter rounds: to f32 first.
fn bf16_to_f64(x: f64) -> f64 {
    f64::from(bf16_to_f32(bf16_from_f32(x as f32)))
}

/// The type a value of an element type computes in.
pub fn compute_type(dtype: DType) -> DType {
    match dtype {
        DType::Bf16 => DType::F32,
        DType::F32 | DType::F64 | DType::I32 | DType::I64 | DType::Bool => dtype,
    }
}

/// Operands of a scalar op.
pub fn operands(op: &ScalarOp) -> Vec<ScalarId> {
    match *op {
        ScalarOp::Input(_) | ScalarOp::Index(_) | ScalarOp::Const(..) => Vec::new(),
        ScalarOp::Unary(_, a) | ScalarOp::Cast(_, a) | ScalarOp::Reduce(_, a) => vec![a],
        ScalarOp::Binary(_, a, b) | ScalarOp::Compare(_, a, b) => vec![a, b],
        ScalarOp::MulAdd(a, b, c) | ScalarOp::Select(a, b, c) => vec![a, b, c],
    }
}

/// The same op on other operands.
pub fn renumbered(op: &ScalarOp, map: &dyn Fn(ScalarId) -> ScalarId) -> ScalarOp {
    match *op {
        ScalarOp::Input(_) | ScalarOp::Index(_) | ScalarOp::Const(..) => *op,
        ScalarOp::Unary(u, a) => ScalarOp::Unary(u, map(a)),
        ScalarOp::Cast(d, a) => ScalarOp::Cast(d, map(a)),
        ScalarOp::Reduce(r, a) => ScalarOp::Reduce(r, map(a)),
        ScalarOp::Binary(b, x, y) => ScalarOp::Binary(b, map(x), map(y)),
        ScalarOp::Compare(c, x, y) => ScalarOp::Compare(c, map(x), map(y)),
        ScalarOp::MulAdd(a, b, c) => ScalarOp::MulAdd(map(a), map(b), map(c)),
        ScalarOp::Select(c, x, y) => ScalarOp::Select(map(c), map(x), map(y)),
    }
}
