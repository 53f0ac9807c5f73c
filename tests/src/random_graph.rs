//! Random graphs that mean something: every op type-checks, magnitudes stay tame, and the loss depends on most of the graph.
//!
//! A graph starts from parameters, float inputs and ids over a pool of named axes, then grows op by op; loops grow a body in the
//! same way. Each value carries a bound on its magnitude, and an op that would exceed [`TAME`] is followed by a tanh, so that
//! comparisons between arithmetics are about rounding and never about overflow.

use std::collections::BTreeMap;

use mlc::autodiff::differentiate::differentiate;
use mlc::graph::{
    Axis, BinaryOp, Builder, CompareOp, DType, Graph, Init, Loop, Name, Op, OpId, Output, Pairs, ReduceOp,
    Type, UnaryOp, ValueId,
};
use mlc::interpret::{Environment, Tensor};

/// Magnitudes above this are squashed.
const TAME: f64 = 30.0;
/// No value has more elements.
const NUMEL_MAX: u64 = 6000;
/// Loops nest this deep at most.
const DEPTH_MAX: usize = 2;

/// A graph with a scalar result `loss`, and something to run it on.
pub struct Sample {
    /// The graph. Result 0 is the loss, a scalar; a few intermediate values follow.
    pub graph: Graph,
    /// Parameters and inputs.
    pub environment: Environment,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(u64);

impl Random {
    /// A generator of this seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Uniform on [-1, 1), exact in f32.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / f64::from(1u32 << 23) - 1.0
    }
}

/// A float value in scope.
#[derive(Clone, Copy)]
struct Float {
    id: ValueId,
    /// Bound on its magnitude.
    bound: f64,
}

struct Generator {
    b: Builder,
    random: Random,
    axes: Vec<Axis>,
    /// What scatters scatter into; no loop runs over it.
    classes: Axis,
    environment: Environment,
    depth: usize,
    sources: usize,
}

/// The graph of a seed.
pub fn sample(seed: u64) -> Sample {
    let mut random = Random::new(seed);
    // Sizes below, at and above a vector register's lanes, primes and one; `r` is even, for pairs; `s` is as long as `q`.
    let sizes = [1, 2, 3, 4, 5, 7, 8, 13, 16, 17];
    let mut axes: Vec<Axis> =
        ["a", "b", "c", "q"].iter().map(|name| Axis::new(*name, *random.pick(&sizes))).collect();
    axes.push(Axis::new("r", *random.pick(&[2, 4, 8, 10, 16])));
    axes.push(Axis::new("s", axes[3].size));
    let classes = Axis::new("v", 2 + random.below(9) as u64);
    let mut g = Generator {
        b: Builder::new(format!("random_{seed}")),
        random,
        axes,
        classes,
        environment: Environment::default(),
        depth: 0,
        sources: 0,
    };
    let mut scope = Vec::new();
    for _ in 0..2 + g.random.below(3) {
        scope.push(g.param());
    }
    for _ in 0..1 + g.random.below(2) {
        scope.push(g.input());
    }
    let n_ops = 4 + g.random.below(6);
    g.grow(&mut scope, n_ops);
    g.finish(&scope)
}

impl Sample {
    /// The graph with the gradient of the loss by every parameter as further results, `grad.p0` and so on.
    pub fn with_gradients(&self) -> Graph {
        let name = &self.graph.name;
        let differentiated =
            differentiate(self.graph.clone(), 0).unwrap_or_else(|e| panic!("{name} has no gradient: {e}"));
        let mut b = Builder::resume(differentiated.graph);
        for gradient in &differentiated.gradients {
            b.output(Output::Report(format!("grad.{}", gradient.param).into()), gradient.gradient);
        }
        b.finish()
    }
}

impl Generator {
    fn axes_subset(&mut self, keep_percent: usize) -> Vec<Axis> {
        let mut chosen = Vec::new();
        for axis in self.axes.clone() {
            let numel: u64 = chosen.iter().map(|a: &Axis| a.size).product();
            if self.random.below(100) < keep_percent && numel * axis.size <= NUMEL_MAX / 8 {
                chosen.push(axis);
            }
        }
        chosen
    }

    fn floats(&mut self, ty: &Type) -> Tensor {
        Tensor::floats(ty.clone(), (0..ty.numel()).map(|_| self.random.unit()).collect())
    }

    fn param(&mut self) -> Float {
        let ty = Type::new(DType::F32, self.axes_subset(45));
        let path: Name = format!("p{}", self.sources).into();
        self.sources += 1;
        let values = self.floats(&ty);
        self.environment.tensors.insert(path.clone(), values);
        let op = Op::Param { path: path.clone(), init: Init::Constant(0.0) };
        Float { id: self.b.one(op, &[], Some(ty), &path), bound: 1.0 }
    }

    fn input(&mut self) -> Float {
        let ty = Type::new(DType::F32, self.axes_subset(45));
        let name = format!("x{}", self.sources);
        self.sources += 1;
        let values = self.floats(&ty);
        self.environment.inputs.insert(name.as_str().into(), values);
        Float { id: self.b.input(&name, ty, 0), bound: 1.0 }
    }

    /// Ids below `bound` over some axes. Made by arithmetic on positions, so that they exist inside loops as well.
    fn ids(&mut self, bound: u64, forbidden: &Name) -> ValueId {
        let usable: Vec<Axis> = self.axes.iter().filter(|a| a.name != *forbidden).cloned().collect();
        let axis = self.random.pick(&usable).clone();
        let index = self.b.index(&axis.name, axis.size);
        let times = self.b.constant(DType::I32, 1.0 + self.random.below(5) as f64);
        let scaled = self.b.mul(index, times);
        let modulus = self.b.constant(DType::I32, bound as f64);
        self.b.binary(BinaryOp::Rem, scaled, modulus)
    }

    fn axes_of(&self, x: Float) -> Vec<Axis> {
        self.b.ty(x.id).axes.clone()
    }

    fn tame(&mut self, x: Float) -> Float {
        if x.bound <= TAME { x } else { Float { id: self.b.unary(UnaryOp::Tanh, x.id), bound: 1.0 } }
    }

    /// `x·x + c`: positive, away from 0.
    fn positive(&mut self, x: Float) -> Float {
        let square = self.b.mul(x.id, x.id);
        let c = self.b.constant(DType::F32, 0.5);
        Float { id: self.b.add(square, c), bound: x.bound * x.bound + 0.5 }
    }

    fn grow(&mut self, scope: &mut Vec<Float>, n_ops: usize) {
        for _ in 0..n_ops {
            if let Some(value) = self.one_op(scope) {
                let value = self.tame(value);
                scope.push(value);
            }
        }
    }

    /// A recent value more often than an old one, so that graphs get deep.
    fn any(&mut self, scope: &[Float]) -> Float {
        let recent = scope.len().saturating_sub(4);
        if self.random.below(2) == 0 { *self.random.pick(&scope[recent..]) } else { *self.random.pick(scope) }
    }

    /// One op, or `None` if the drawn one does not fit the drawn operands.
    fn one_op(&mut self, scope: &mut Vec<Float>) -> Option<Float> {
        let x = self.any(scope);
        match self.random.below(30) {
            0..=3 => Some(self.unary(x)),
            4..=8 => self.binary(x, scope),
            9 => self.select(x, scope),
            10 | 11 => self.reduce(x),
            12..=14 => self.dot(x, scope),
            15 => self.rename(x),
            16 => self.gather(x),
            17 => self.scatter(x),
            18 => self.rotate(x),
            19..=21 => self.composite(x, scope),
            22 => Some(self.dropout(x)),
            23 => self.integers(x),
            24 => self.in_bf16(x, scope),
            25 => self.cumsum(x),
            26 => self.slice(x),
            27 => self.concat(x, scope),
            _ => self.repeat(x, scope),
        }
    }

    fn unary(&mut self, x: Float) -> Float {
        let of = |g: &mut Generator, op, x: Float, bound| Float { id: g.b.unary(op, x.id), bound };
        match self.random.below(13) {
            0 => of(self, UnaryOp::Neg, x, x.bound),
            1 => of(self, UnaryOp::Abs, x, x.bound),
            2 => {
                let small = of(self, UnaryOp::Tanh, x, 1.0);
                of(self, UnaryOp::Exp, small, 1f64.exp())
            }
            3 => {
                let p = self.positive(x);
                let bound = p.bound.ln().abs().max(0.7);
                of(self, UnaryOp::Log, p, bound)
            }
            4 => {
                let p = self.positive(x);
                let bound = p.bound.sqrt();
                of(self, UnaryOp::Sqrt, p, bound)
            }
            5 => {
                let p = self.positive(x);
                of(self, UnaryOp::Rsqrt, p, 1.5)
            }
            6 => of(self, UnaryOp::Tanh, x, 1.0),
            7 => of(self, UnaryOp::Sigmoid, x, 1.0),
            8 => of(self, UnaryOp::Sin, x, 1.0),
            9 => of(self, UnaryOp::Cos, x, 1.0),
            10 => of(self, UnaryOp::Erf, x, 1.0),
            11 => of(self, UnaryOp::Floor, x, x.bound + 1.0),
            _ => {
                // Through the one other float type a program has.
                let wide = self.b.cast(x.id, DType::F64);
                let scaled = self.b.scale(wide, 0.75);
                Float { id: self.b.cast(scaled, DType::F32), bound: 0.75 * x.bound }
            }
        }
    }

    /// A mask of random bits; rates of which `1 / (1 − rate)` is exact.
    fn dropout(&mut self, x: Float) -> Float {
        let rate = *self.random.pick(&[0.5, 0.75]);
        let key = self.b.constant(DType::I64, self.random.below(1 << 20) as f64);
        let iteration = self.b.constant(DType::I64, self.random.below(100) as f64);
        Float { id: self.b.dropout(x.id, rate, key, Some(iteration)), bound: x.bound / (1.0 - rate) }
    }

    /// `x` times or plus a small whole number that a chain of integer ops makes of a position. Divisors may be 0.
    fn integers(&mut self, x: Float) -> Option<Float> {
        let axes = self.axes_of(x);
        if axes.is_empty() {
            return None;
        }
        let axis = self.random.pick(&axes).clone();
        let dtype = *self.random.pick(&[DType::I32, DType::I64]);
        let index = self.b.index(&axis.name, axis.size);
        let mut n = self.b.cast(index, dtype);
        for _ in 0..2 + self.random.below(3) {
            n = self.integer_op(n, dtype);
        }
        let modulus = self.b.constant(dtype, 17.0);
        let small = self.b.binary(BinaryOp::Rem, n, modulus);
        let real = self.b.cast(small, DType::F32);
        let (op, bound) = match self.random.below(2) {
            0 => (BinaryOp::Mul, 16.0 * x.bound),
            _ => (BinaryOp::Add, 16.0 + x.bound),
        };
        Some(Float { id: self.b.binary(op, x.id, real), bound })
    }

    fn integer_op(&mut self, n: ValueId, dtype: DType) -> ValueId {
        const OPS: [BinaryOp; 8] = [
            BinaryOp::Add,
            BinaryOp::Sub,
            BinaryOp::Mul,
            BinaryOp::Div,
            BinaryOp::Rem,
            BinaryOp::Max,
            BinaryOp::Min,
            BinaryOp::Threefry,
        ];
        let usable = if dtype == DType::I64 { OPS.len() } else { OPS.len() - 1 };
        match self.random.below(usable + 3) {
            0 => self.b.unary(UnaryOp::Neg, n),
            1 => self.b.unary(UnaryOp::Abs, n),
            2 => {
                let other = if dtype == DType::I64 { DType::I32 } else { DType::I64 };
                let there = self.b.cast(n, other);
                self.b.cast(there, dtype)
            }
            k => {
                let c = self.b.constant(dtype, self.random.below(23) as f64 - 11.0);
                let (a, b) = if self.random.below(3) == 0 { (c, n) } else { (n, c) };
                self.b.binary(OPS[k - 3], a, b)
            }
        }
    }

    /// Operands of an element-wise op: one's axes may contain the other's, or their union is small.
    fn fits_together(&self, x: Float, y: Float) -> bool {
        let mut all = self.axes_of(x);
        all.extend(self.axes_of(y).into_iter().filter(|a| !self.b.ty(x.id).axes.contains(a)));
        all.iter().map(|a| a.size).product::<u64>() <= NUMEL_MAX
    }

    fn binary(&mut self, x: Float, scope: &[Float]) -> Option<Float> {
        let y = self.any(scope);
        if !self.fits_together(x, y) {
            return None;
        }
        let (op, y, bound) = match self.random.below(6) {
            0 => (BinaryOp::Add, y, x.bound + y.bound),
            1 => (BinaryOp::Sub, y, x.bound + y.bound),
            2 => (BinaryOp::Mul, y, x.bound * y.bound),
            3 => (BinaryOp::Div, self.positive(y), 2.0 * x.bound),
            4 => (BinaryOp::Max, y, x.bound.max(y.bound)),
            _ => (BinaryOp::Min, y, x.bound.max(y.bound)),
        };
        Some(Float { id: self.b.binary_union(op, x.id, y.id), bound })
    }

    fn select(&mut self, x: Float, scope: &[Float]) -> Option<Float> {
        let y = self.any(scope);
        let inside = self.axes_of(y).iter().all(|a| self.b.ty(x.id).axes.contains(a));
        if !inside {
            return None;
        }
        let condition = match self.axes_of(x).first() {
            // A causal mask, of positions alone.
            Some(axis) if self.random.below(2) == 0 => {
                let index = self.b.index(&axis.name, axis.size);
                let middle = self.b.constant(DType::I32, (axis.size / 2) as f64);
                let op = *self.random.pick(&[CompareOp::Eq, CompareOp::Ne, CompareOp::Le, CompareOp::Lt]);
                self.b.compare(op, index, middle)
            }
            _ => {
                let op = *self.random.pick(&[CompareOp::Gt, CompareOp::Ge, CompareOp::Lt]);
                self.b.compare(op, x.id, y.id)
            }
        };
        let condition =
            if self.random.below(4) == 0 { self.b.unary(UnaryOp::Not, condition) } else { condition };
        Some(Float { id: self.b.select(condition, x.id, y.id), bound: x.bound.max(y.bound) })
    }

    fn reduce(&mut self, x: Float) -> Option<Float> {
        let axes = self.axes_of(x);
        if axes.is_empty() {
            return None;
        }
        let gone: Vec<Name> =
            axes.iter().filter(|_| self.random.below(2) == 0).map(|a| a.name.clone()).collect();
        let gone = if gone.is_empty() { vec![axes[0].name.clone()] } else { gone };
        let numel: u64 = axes.iter().filter(|a| gone.contains(&a.name)).map(|a| a.size).product();
        Some(match self.random.below(5) {
            0 => Float { id: self.b.reduce(ReduceOp::Max, x.id, &gone), bound: x.bound },
            1 => Float { id: self.b.reduce(ReduceOp::Min, x.id, &gone), bound: x.bound },
            2 => Float { id: self.b.mean(x.id, &gone), bound: x.bound },
            _ => Float { id: self.b.reduce(ReduceOp::Sum, x.id, &gone), bound: x.bound * numel as f64 },
        })
    }

    fn dot(&mut self, x: Float, scope: &[Float]) -> Option<Float> {
        let y = self.any(scope);
        let shared: Vec<Axis> =
            self.axes_of(x).into_iter().filter(|a| self.b.ty(y.id).axes.contains(a)).collect();
        if shared.is_empty() || !self.fits_together(x, y) {
            return None;
        }
        let over: Vec<Axis> = shared.iter().filter(|_| self.random.below(3) > 0).cloned().collect();
        let over = if over.is_empty() { vec![shared[0].clone()] } else { over };
        let terms: u64 = over.iter().map(|a| a.size).product();
        let names: Vec<Name> = over.into_iter().map(|a| a.name).collect();
        Some(Float { id: self.b.dot(x.id, y.id, &names), bound: x.bound * y.bound * terms as f64 })
    }

    /// `q` and `s` are equally long and never mix unless renamed. Nothing is renamed to the axis of a loop around it: what the
    /// backward pass must keep of it could not be stacked along that axis.
    fn rename(&mut self, x: Float) -> Option<Float> {
        let ty = self.b.ty(x.id);
        let pair = match (ty.has("q"), ty.has("s")) {
            (true, false) => ("q", "s"),
            (false, true) => ("s", "q"),
            _ => return None,
        };
        if !self.axes.iter().any(|a| a.name.as_str() == pair.1) {
            return None;
        }
        Some(Float { id: self.b.rename(x.id, &[(pair.0.into(), pair.1.into())]), bound: x.bound })
    }

    /// The first or last elements of an axis, under the name of a shorter one.
    fn slice(&mut self, x: Float) -> Option<Float> {
        let mut axes = self.axes_of(x);
        let i = self.random.below(axes.len().max(1));
        let from = axes.get(i)?.clone();
        let shorter: Vec<Axis> = self
            .axes
            .iter()
            .filter(|a| a.size <= from.size && !self.b.ty(x.id).has(&a.name))
            .cloned()
            .collect();
        let to = shorter.get(self.random.below(shorter.len().max(1)))?.clone();
        let at = *self.random.pick(&[0, from.size - to.size]);
        axes[i] = to.clone();
        let op = Op::Slice { from: from.name, to: to.name, at };
        let op = self.b.try_op(op, &[x.id], Some(Type::new(DType::F32, axes)), "part").ok()?;
        self.one_result(op, x.bound)
    }

    /// Two values end to end, and from that as many elements as each had: an axis has one size in the whole graph.
    fn concat(&mut self, x: Float, scope: &[Float]) -> Option<Float> {
        let axes = self.axes_of(x);
        let along = axes.get(self.random.below(axes.len().max(1)))?.clone();
        let ty = self.b.ty(x.id).clone();
        let y = *scope.iter().rev().find(|y| self.b.ty(y.id).same_axes(&ty))?;
        let op = Op::Concat { parts: vec![along.name.clone(), along.name.clone()], axis: "whole".into() };
        let whole = self.b.try_op(op, &[x.id, y.id], None, "whole").ok()?;
        let whole = self.b.graph.op(whole).results[0];
        let at = self.random.below(along.size as usize + 1) as u64;
        let op = Op::Slice { from: "whole".into(), to: along.name, at };
        let op = self.b.try_op(op, &[whole], Some(ty), "part").ok()?;
        self.one_result(op, x.bound.max(y.bound))
    }

    fn gather(&mut self, x: Float) -> Option<Float> {
        let axes = self.axes_of(x);
        let axis = axes.get(self.random.below(axes.len().max(1)))?.clone();
        let ids = self.ids(axis.size, &axis.name);
        let result = self.b.try_op(Op::Gather { axis: axis.name }, &[x.id, ids], None, "gathered").ok()?;
        self.one_result(result, x.bound)
    }

    fn scatter(&mut self, x: Float) -> Option<Float> {
        let target = self.classes.clone();
        let axes = self.axes_of(x);
        let along = axes.get(self.random.below(axes.len().max(1)))?.clone();
        let index = self.b.index(&along.name, along.size);
        let modulus = self.b.constant(DType::I32, target.size as f64);
        let ids = self.b.binary(BinaryOp::Rem, index, modulus);
        let mut kept: Vec<Axis> = axes.into_iter().filter(|a| *a != along).collect();
        if kept.iter().any(|a| a.name.as_str() == "v") {
            return None;
        }
        kept.insert(0, target);
        let given = Type::new(DType::F32, kept);
        let op = Op::ScatterAdd { axis: "v".into() };
        let result = self.b.try_op(op, &[x.id, ids], Some(given), "scattered").ok()?;
        self.one_result(result, x.bound * along.size as f64)
    }

    /// An op on values rounded to bf16, its result widened again. Scopes hold f32 alone, so that any two values meet.
    fn in_bf16(&mut self, x: Float, scope: &[Float]) -> Option<Float> {
        let short = |g: &mut Generator, v: Float| Float {
            id: g.b.cast(v.id, DType::Bf16),
            bound: v.bound * (1.0 + 1.0 / 256.0),
        };
        let y = self.any(scope);
        let kind = self.random.below(8);
        if (1..4).contains(&kind) && !self.fits_together(x, y) {
            return None;
        }
        let a = short(self, x);
        let made = match kind {
            0 => Some(a),
            1..=3 => {
                let b = short(self, y);
                let (op, bound) = *self.random.pick(&[
                    (BinaryOp::Add, a.bound + b.bound),
                    (BinaryOp::Mul, a.bound * b.bound),
                    (BinaryOp::Max, a.bound.max(b.bound)),
                ]);
                Some(Float { id: self.b.binary_union(op, a.id, b.id), bound: 1.01 * bound })
            }
            4 => {
                let op = *self.random.pick(&[UnaryOp::Tanh, UnaryOp::Sin, UnaryOp::Neg]);
                Some(Float { id: self.b.unary(op, a.id), bound: a.bound.max(1.0) })
            }
            5 => {
                let b = short(self, y);
                self.dot(a, &[b])
            }
            6 => self.reduce(a),
            _ => self.gather(a),
        }?;
        Some(Float { id: self.b.cast(made.id, DType::F32), bound: made.bound })
    }

    fn cumsum(&mut self, x: Float) -> Option<Float> {
        let axes = self.axes_of(x);
        let axis = axes.get(self.random.below(axes.len().max(1)))?.clone();
        let (exclusive, reverse) = (self.random.below(2) == 0, self.random.below(2) == 0);
        let id = self.b.cumsum(x.id, &axis.name, exclusive, reverse);
        Some(Float { id, bound: x.bound * axis.size as f64 })
    }

    fn one_result(&mut self, op: OpId, bound: f64) -> Option<Float> {
        Some(Float { id: self.b.graph.op(op).results[0], bound })
    }

    fn rotate(&mut self, x: Float) -> Option<Float> {
        let pairs = *self.random.pick(&[Pairs::Half, Pairs::Interleaved]);
        if !self.b.ty(x.id).has("r") {
            return None;
        }
        let id = self.b.one(Op::RotatePairs { axis: "r".into(), pairs }, &[x.id], None, "turned");
        Some(Float { id, bound: x.bound })
    }

    fn composite(&mut self, x: Float, scope: &[Float]) -> Option<Float> {
        let axes = self.axes_of(x);
        let axis = axes.get(self.random.below(axes.len().max(1)))?.clone();
        match self.random.below(7) {
            0 => Some(Float { id: self.b.softmax(x.id, &axis.name).ok()?, bound: 1.0 }),
            1 | 2 => {
                let w = *scope.iter().find(|w| self.axes_of(**w).iter().all(|a| axes.contains(a)))?;
                let (y, rstd) = self.b.rms_norm(x.id, w.id, &axis.name, 1e-2).ok()?;
                // Now and then the second result is used, which takes the composite's derivative off its fast path.
                let bound = (axis.size as f64).sqrt() * w.bound;
                Some(if self.random.below(3) == 0 {
                    Float { id: rstd, bound: 10.0 }
                } else {
                    Float { id: y, bound }
                })
            }
            3 => {
                let w = *scope.iter().find(|w| self.axes_of(**w).iter().all(|a| axes.contains(a)))?;
                let (y, ..) = self.b.layer_norm(x.id, w.id, w.id, &axis.name, 1e-2).ok()?;
                Some(Float { id: y, bound: (axis.size as f64).sqrt() * w.bound + w.bound })
            }
            4 => {
                let position = axes.iter().find(|a| a.name.as_str() != "r")?.clone();
                let at = self.b.index(&position.name, position.size);
                let pairs = *self.random.pick(&[Pairs::Half, Pairs::Interleaved]);
                let id = self.b.rope(x.id, at, &"r".into(), 1e4, pairs).ok()?;
                Some(Float { id, bound: 1.5 * x.bound })
            }
            5 => Some(Float { id: self.b.silu(x.id), bound: x.bound }),
            _ => {
                let rest = Type::new(DType::I32, axes.iter().filter(|a| **a != axis).cloned().collect());
                let ids = self.targets(axis.size, &rest);
                let (loss, lse) = self.b.cross_entropy(x.id, ids, &axis.name).ok()?;
                let bound = 2.0 * x.bound + (axis.size as f64).ln();
                Some(Float { id: if self.random.below(4) == 0 { lse } else { loss }, bound })
            }
        }
    }

    /// Class ids over exactly these axes.
    fn targets(&mut self, classes: u64, ty: &Type) -> ValueId {
        let mut sum = self.b.constant(DType::I32, self.random.below(classes as usize) as f64);
        for axis in &ty.axes {
            let index = self.b.index(&axis.name, axis.size);
            sum = self.b.binary_union(BinaryOp::Add, sum, index);
        }
        let classes = self.b.constant(DType::I32, classes as f64);
        let ids = self.b.binary(BinaryOp::Rem, sum, classes);
        self.b.broadcast(ids, ty)
    }

    /// A loop over an axis of `x`: a carry, slices of `x`, an invariant; gives a carry, a stacked out or a sum.
    fn repeat(&mut self, x: Float, scope: &mut Vec<Float>) -> Option<Float> {
        let axes: Vec<Axis> = self.axes_of(x).into_iter().filter(|a| *a != self.classes).collect();
        if self.depth == DEPTH_MAX || axes.is_empty() {
            return None;
        }
        let axis = self.random.pick(&axes).clone();
        let without =
            |ty: &Type| Type::new(ty.dtype, ty.axes.iter().filter(|a| **a != axis).cloned().collect());
        let lacks_axis = |g: &Generator, v: &Float| !g.b.ty(v.id).has(&axis.name);
        let candidates: Vec<Float> = scope.iter().filter(|v| lacks_axis(self, v)).copied().collect();
        if candidates.is_empty() {
            return None;
        }
        let (carry, invariant) = (*self.random.pick(&candidates), *self.random.pick(&candidates));
        let carry_ty = self.b.ty(carry.id).clone();
        let args: [(Name, Type); 4] = [
            ("i".into(), Type::scalar(DType::I32)),
            ("carry".into(), carry_ty.clone()),
            ("slice".into(), without(self.b.ty(x.id))),
            ("fixed".into(), self.b.ty(invariant.id).clone()),
        ];
        let outer_axes = std::mem::take(&mut self.axes);
        self.axes = outer_axes.iter().filter(|a| **a != axis).cloned().collect();
        let (_, inside) = self.b.open(&args);
        self.depth += 1;
        let mut inner = vec![
            Float { id: inside[1], bound: carry.bound.max(1.0) },
            Float { id: inside[2], bound: x.bound },
            Float { id: inside[3], bound: invariant.bound },
        ];
        let n_ops = 2 + self.random.below(3);
        self.grow(&mut inner, n_ops);
        // The new carry has the old one's type: reduce what is too much, broadcast what is missing, keep it within ±1.
        let last = inner[inner.len() - 1];
        let fitted = self.b.mean_to(last.id, &carry_ty);
        let mixed = self.b.add(fitted, inside[1]);
        let new_carry = self.b.unary(UnaryOp::Tanh, mixed);
        let stackable =
            |v: &&Float| !self.b.ty(v.id).has(&axis.name) && self.b.ty(v.id).numel() * axis.size <= NUMEL_MAX;
        let stackable: Vec<Float> = inner.iter().filter(stackable).copied().collect();
        let stacked = self.any(&stackable);
        let summed = self.any(&inner);
        self.depth -= 1;
        self.axes = outer_axes;
        let body = self.b.close(vec![new_carry, stacked.id, summed.id]);
        let reverse = self.random.below(3) == 0;
        let l = Loop {
            axis: axis.name.clone(),
            trip: axis.size,
            block: None,
            reverse,
            microbatches: false,
            carries: 1,
            stacked: 1,
            stacked_outs: 1,
            body,
        };
        let results = self.b.repeat(l, &[carry.id, x.id, invariant.id], "loop");
        scope.push(Float { id: results[0], bound: 1.0 });
        let sum = Float { id: results[2], bound: summed.bound * axis.size as f64 };
        let sum = self.tame(sum);
        scope.push(sum);
        Some(Float { id: results[1], bound: stacked.bound })
    }

    /// The loss takes every value of the scope in, each averaged; three of them are reported as they are.
    fn finish(mut self, scope: &[Float]) -> Sample {
        let mut loss: Option<ValueId> = None;
        for value in scope {
            let squashed = self.b.unary(UnaryOp::Tanh, value.id);
            let names = self.b.ty(value.id).names();
            let mean = if names.is_empty() { squashed } else { self.b.mean(squashed, &names) };
            loss = Some(loss.map_or(mean, |sum| self.b.add(sum, mean)));
        }
        let loss = loss.expect("a scope starts with parameters");
        self.b.output(Output::Report("loss".into()), loss);
        for (i, value) in scope.iter().rev().take(3).enumerate() {
            self.b.output(Output::Report(format!("value{i}").into()), value.id);
        }
        Sample { graph: self.b.finish(), environment: self.environment }
    }
}

/// Reducing and broadcasting to a type.
trait MeanTo {
    /// The mean of `x` over the axes `ty` lacks, broadcast along those it has in addition.
    fn mean_to(&mut self, x: ValueId, ty: &Type) -> ValueId;
}

impl MeanTo for Builder {
    fn mean_to(&mut self, x: ValueId, ty: &Type) -> ValueId {
        let extra: Vec<Name> = self.ty(x).names().into_iter().filter(|name| !ty.has(name)).collect();
        let reduced = if extra.is_empty() { x } else { self.mean(x, &extra) };
        self.broadcast(reduced, ty)
    }
}

/// How often each (op, element type of its first result) occurs in all regions that the body reaches, composites' meanings
/// left out.
pub fn coverage(graph: &Graph, counts: &mut BTreeMap<(String, DType), usize>) {
    for op in reachable_ops(graph) {
        let node = graph.op(op);
        let dtype = graph.ty(node.results[0]).dtype;
        *counts.entry((op_word(&node.op), dtype)).or_default() += 1;
    }
}

/// Ops of the body and of all loop bodies, in order.
pub fn reachable_ops(graph: &Graph) -> Vec<OpId> {
    let mut regions = vec![graph.body];
    let mut ops = Vec::new();
    while let Some(region) = regions.pop() {
        for &op in &graph.region(region).ops {
            ops.push(op);
            if let Op::Loop(l) = &graph.op(op).op {
                regions.push(l.body);
            }
        }
    }
    ops
}

/// The op's name in coverage tables: with the function for element-wise ops, with the kind for composites.
fn op_word(op: &Op) -> String {
    let debug = match op {
        Op::Unary(f) => return format!("{f:?}").to_lowercase(),
        Op::Binary(f) => return format!("{f:?}").to_lowercase(),
        Op::Compare(f) => return format!("{f:?}").to_lowercase(),
        Op::Reduce { op, .. } => return format!("reduce {op:?}").to_lowercase(),
        Op::Composite(c) => format!("{:?}", c.kind),
        other => format!("{other:?}"),
    };
    debug.split([' ', '(', '{']).next().unwrap_or("").to_string()
}
