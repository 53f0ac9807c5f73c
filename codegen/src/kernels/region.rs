//! Scalar regions as KIR, on demand and at the loop level where their operands change.
//!
//! A [`Scope`] holds the KIR value of each region op known at the current point of a kernel. [`Scope::get`] emits an op
//! and whatever it needs that is not known yet. Values that do not vary along the vector dimension stay scalars until an
//! op joins them with a vector, so that a schedule or a bias correction is computed once and not per lane.

use crate::kir::{self, Builder, Elem, Value};
use crate::math;
use crate::program::region::{BinaryOp, CompareOp, Region, ScalarId, ScalarOp, UnaryOp};
use mlc_runtime::abi::DType;

/// Where a region's inputs and indices come from at the current point of a kernel.
pub trait Source {
    /// Region input `i`: a scalar if it is the same for all lanes.
    fn input(&mut self, b: &mut Builder, i: u32) -> Value;
    /// Index along dimension `dim` of the spec's iteration space, i32.
    fn index(&mut self, b: &mut Builder, dim: u32) -> Value;
}

/// Known values of a region's ops.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    region: &'a Region,
    values: Vec<Option<Value>>,
}

impl<'a> Scope<'a> {
    /// Nothing is known.
    pub fn new(region: &'a Region) -> Scope<'a> {
        Scope { region, values: vec![None; region.ops.len()] }
    }

    /// Makes `value` the value of an op.
    pub fn set(&mut self, id: ScalarId, value: Value) {
        self.values[id.0 as usize] = Some(value);
    }

    /// The value of an op, emitting what is missing.
    ///
    /// # Panics
    /// A [`ScalarOp::Reduce`] is asked for that was not [`set`](Scope::set).
    pub fn get(&mut self, b: &mut Builder, source: &mut dyn Source, id: ScalarId) -> Value {
        if let Some(value) = self.values[id.0 as usize] {
            return value;
        }
        let region = self.region;
        let value = match region.ops[id.0 as usize] {
            ScalarOp::Input(i) => source.input(b, i),
            ScalarOp::Index(dim) => source.index(b, dim),
            ScalarOp::Const(dtype, c) => constant(b, dtype, c),
            ScalarOp::Unary(op, a) => {
                let a = self.get(b, source, a);
                unary(b, op, a)
            }
            ScalarOp::Binary(op, x, y) => {
                let x = self.get(b, source, x);
                let y = self.get(b, source, y);
                let [x, y] = same_lanes(b, [x, y]);
                binary(b, op, x, y)
            }
            ScalarOp::MulAdd(x, y, z) => {
                let x = self.get(b, source, x);
                let y = self.get(b, source, y);
                let z = self.get(b, source, z);
                let [x, y, z] = same_lanes(b, [x, y, z]);
                b.fma(x, y, z)
            }
            ScalarOp::Compare(op, x, y) => {
                let x = self.get(b, source, x);
                let y = self.get(b, source, y);
                let [x, y] = same_lanes(b, [x, y]);
                b.compare(compare(op), x, y)
            }
            ScalarOp::Select(c, x, y) => {
                let c = self.get(b, source, c);
                let x = self.get(b, source, x);
                let y = self.get(b, source, y);
                let [c, x, y] = same_lanes(b, [c, x, y]);
                b.select(c, x, y)
            }
            ScalarOp::Cast(dtype, a) => {
                let a = self.get(b, source, a);
                cast(b, dtype, a)
            }
            ScalarOp::Reduce(..) => {
                panic!("the reduction {id:?} is computed by the kernel around the region")
            }
        };
        self.values[id.0 as usize] = Some(value);
        value
    }

    /// Emits every op the region's results need whose level is at most `level` and whose stage is at most `stage`;
    /// called before a loop is entered.
    pub fn hoist(
        &mut self,
        b: &mut Builder,
        source: &mut dyn Source,
        levels: &Levels,
        level: usize,
        stage: usize,
    ) {
        for (i, op) in self.region.ops.iter().enumerate() {
            let is_reduce = matches!(op, ScalarOp::Reduce(..));
            if levels.needed[i] && levels.of[i] <= level && levels.stage[i] <= stage && !is_reduce {
                self.get(b, source, ScalarId(i as u32));
            }
        }
    }
}

/// For every op of a region: does a result need it, and which loop is the innermost its value changes with.
#[derive(Clone, Debug)]
pub struct Levels {
    /// By op.
    pub of: Vec<usize>,
    /// By op.
    pub needed: Vec<bool>,
    /// By op: the longest chain of reductions it depends on, itself included.
    pub stage: Vec<usize>,
}

impl Levels {
    /// Levels from those of inputs, indices and reductions (whose own level does not follow from their operand's).
    pub fn new(
        region: &Region,
        input: &dyn Fn(u32) -> usize,
        index: &dyn Fn(u32) -> usize,
        reduce: usize,
    ) -> Levels {
        let mut of: Vec<usize> = Vec::new();
        let mut stage: Vec<usize> = Vec::new();
        for op in &region.ops {
            let below = operands(op).iter().map(|a| stage[a.0 as usize]).max().unwrap_or(0);
            stage.push(below + usize::from(matches!(op, ScalarOp::Reduce(..))));
            let own = match *op {
                ScalarOp::Input(i) => input(i),
                ScalarOp::Index(d) => index(d),
                ScalarOp::Reduce(..) => reduce,
                _ => operands(op).iter().map(|a| of[a.0 as usize]).max().unwrap_or(0),
            };
            of.push(own);
        }
        Levels { of, needed: needed(region, &region.results), stage }
    }
}

/// Register type of every op's lanes, from those of the inputs.
pub fn elems(region: &Region, input: &dyn Fn(u32) -> Elem) -> Vec<Elem> {
    let mut elems: Vec<Elem> = Vec::new();
    for op in &region.ops {
        let of = |id: ScalarId| elems[id.0 as usize];
        let own = match *op {
            ScalarOp::Input(i) => input(i),
            ScalarOp::Index(_) => Elem::I32,
            ScalarOp::Const(dtype, _) | ScalarOp::Cast(dtype, _) => Elem::of_memory(dtype),
            ScalarOp::Compare(..) => Elem::I1,
            ScalarOp::Select(_, a, _) => of(a),
            ScalarOp::Unary(_, a) | ScalarOp::Binary(_, a, _) | ScalarOp::MulAdd(a, _, _) => of(a),
            ScalarOp::Reduce(_, a) => of(a),
        };
        elems.push(own);
    }
    elems
}

/// Which ops the given values depend on, themselves included.
pub fn needed(region: &Region, roots: &[ScalarId]) -> Vec<bool> {
    let mut needed = vec![false; region.ops.len()];
    for root in roots {
        needed[root.0 as usize] = true;
    }
    for (i, op) in region.ops.iter().enumerate().rev() {
        if needed[i] {
            for a in operands(op) {
                needed[a.0 as usize] = true;
            }
        }
    }
    needed
}

/// The values an op uses.
pub fn operands(op: &ScalarOp) -> Vec<ScalarId> {
    match *op {
        ScalarOp::Input(_) | ScalarOp::Index(_) | ScalarOp::Const(..) => vec![],
        ScalarOp::Unary(_, a) | ScalarOp::Cast(_, a) | ScalarOp::Reduce(_, a) => vec![a],
        ScalarOp::Binary(_, a, b) | ScalarOp::Compare(_, a, b) => vec![a, b],
        ScalarOp::MulAdd(a, b, c) | ScalarOp::Select(a, b, c) => vec![a, b, c],
    }
}

/// Whether the region reads the index along `dim`.
pub fn uses_index(region: &Region, dim: usize) -> bool {
    let used = needed(region, &region.results);
    region.ops.iter().zip(used).any(|(op, used)| used && *op == ScalarOp::Index(dim as u32))
}

/// Splats scalars so that all values have as many lanes as the widest.
pub fn same_lanes<const N: usize>(b: &mut Builder, values: [Value; N]) -> [Value; N] {
    let lanes = values.iter().map(|&v| b.ty(v).lanes).max().unwrap_or(1);
    values.map(|v| if b.ty(v).lanes == lanes { v } else { b.splat(v, lanes) })
}

fn constant(b: &mut Builder, dtype: DType, c: f64) -> Value {
    let ty = kir::Type::scalar(Elem::of_memory(dtype));
    b.constant(ty, c)
}

fn unary(b: &mut Builder, op: UnaryOp, a: Value) -> Value {
    match op {
        UnaryOp::Neg => b.unary(kir::UnaryOp::Neg, a),
        UnaryOp::Abs => b.unary(kir::UnaryOp::Abs, a),
        UnaryOp::Exp => math::exp(b, a),
        UnaryOp::Log => math::log(b, a),
        UnaryOp::Sqrt => b.unary(kir::UnaryOp::Sqrt, a),
        UnaryOp::Rsqrt => math::rsqrt(b, a),
        UnaryOp::Tanh => math::tanh(b, a),
        UnaryOp::Sigmoid => math::sigmoid(b, a),
        UnaryOp::Sin => math::sin(b, a),
        UnaryOp::Cos => math::cos(b, a),
        UnaryOp::Erf => math::erf(b, a),
        UnaryOp::Floor => b.unary(kir::UnaryOp::Floor, a),
        UnaryOp::Not => b.unary(kir::UnaryOp::Not, a),
    }
}

fn binary(b: &mut Builder, op: BinaryOp, x: Value, y: Value) -> Value {
    let plain = match op {
        BinaryOp::Add => kir::BinaryOp::Add,
        BinaryOp::Sub => kir::BinaryOp::Sub,
        BinaryOp::Mul => kir::BinaryOp::Mul,
        BinaryOp::Div => kir::BinaryOp::Div,
        BinaryOp::Rem => kir::BinaryOp::Rem,
        BinaryOp::Max => kir::BinaryOp::Max,
        BinaryOp::Min => kir::BinaryOp::Min,
        BinaryOp::And => kir::BinaryOp::And,
        BinaryOp::Or => kir::BinaryOp::Or,
        BinaryOp::Pow => return math::pow(b, x, y),
        BinaryOp::Threefry => return math::threefry(b, x, y),
    };
    b.binary(plain, x, y)
}

fn compare(op: CompareOp) -> kir::CompareOp {
    match op {
        CompareOp::Eq => kir::CompareOp::Eq,
        CompareOp::Ne => kir::CompareOp::Ne,
        CompareOp::Lt => kir::CompareOp::Lt,
        CompareOp::Le => kir::CompareOp::Le,
        CompareOp::Gt => kir::CompareOp::Gt,
        CompareOp::Ge => kir::CompareOp::Ge,
    }
}

fn cast(b: &mut Builder, dtype: DType, a: Value) -> Value {
    let converted = b.convert(Elem::of_memory(dtype), a);
    if dtype == DType::Bf16 { b.unary(kir::UnaryOp::RoundBf16, converted) } else { converted }
}
