//! A plain evaluator of any [`KernelSpec`], the oracle for expansions and back ends.
//!
//! Every value carries a bound on how far an honest single- or double-precision evaluation of the same spec may lie
//! from it (first-order running error analysis: Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed.,
//! §3.3). A test therefore compares a kernel with this evaluator without choosing a tolerance: the bound follows from
//! the operations counted on the way. Values themselves are computed in binary64 and never rounded to the spec's types
//! ([`Precision::Exact`]), or rounded after every op as the types say ([`Precision::AsWritten`]).
//!
//! Nothing here is fast; loops are nested as the definitions read.

use super::region::{BinaryOp, CompareOp, ReduceOp, Region, ScalarOp, UnaryOp};
use super::{
    AttentionGradPart, AttentionGradSpec, AttentionShape, AttentionSpec, GatherSpec, GemmSpec, KernelSpec,
    LoopsSpec, Operand, ScanSpec, ScatterSpec,
};
use mlc_runtime::abi::DType;

/// How intermediate values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// In binary64 throughout; only stores round.
    Exact,
    /// Rounded to the value's type after every op; sums run in index order.
    AsWritten,
}

/// One value with the distance an honest evaluation may lie from it. Integers and Booleans are exact: `error` is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    /// Type in the spec.
    pub dtype: DType,
    /// The value, or 0 for integers and Booleans.
    pub float: f64,
    /// Integers and Booleans.
    pub int: i64,
    /// Absolute error bound of `float`.
    pub error: f64,
}

impl Value {
    fn float(dtype: DType, float: f64, error: f64) -> Value {
        Value { dtype, float, int: 0, error }
    }

    fn int(dtype: DType, int: i64) -> Value {
        let int = match dtype {
            DType::I32 => i64::from(int as i32),
            DType::Bool => i64::from(int != 0),
            _ => int,
        };
        Value { dtype, float: 0.0, int, error: 0.0 }
    }

    fn is_true(self) -> bool {
        self.int != 0
    }
}

/// One element written by a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written {
    /// Buffer number.
    pub buffer: u32,
    /// Element index in the buffer.
    pub index: u64,
    /// What belongs there; `dtype` is the buffer's element type, `error` includes the rounding of the store.
    pub value: Value,
}

/// Unit roundoff of a floating type.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::Bf16 => 1.0 / 256.0,
        DType::F64 => f64::EPSILON / 2.0,
        DType::I32 | DType::I64 | DType::Bool => 0.0,
    }
}

/// Half of the smallest positive number: the absolute error of an operation that underflows.
fn tiny(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::from_bits(1),
        DType::Bf16 => f64::from(f32::from_bits(1 << 15)),
        DType::F32 | DType::I32 | DType::I64 | DType::Bool => f64::from(f32::from_bits(1)),
    }
}

/// Rounds to nearest even in bf16, keeping NaN a NaN.
pub fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) as u16) | 0x40;
    }
    let round = 0x7fff + ((bits >> 16) & 1);
    (bits.wrapping_add(round) >> 16) as u16
}

/// The value of a bf16.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Reads element `index` of a buffer.
///
/// # Panics
/// The element lies outside the buffer.
pub fn load(buffer: &[u8], dtype: DType, index: u64) -> Value {
    let at = (index * dtype.bytes()) as usize;
    let bytes = &buffer[at..at + dtype.bytes() as usize];
    match dtype {
        DType::F32 => Value::float(dtype, f64::from(f32::from_le_bytes(bytes.try_into().unwrap())), 0.0),
        DType::F64 => Value::float(dtype, f64::from_le_bytes(bytes.try_into().unwrap()), 0.0),
        DType::Bf16 => {
            let bits = u32::from(u16::from_le_bytes(bytes.try_into().unwrap())) << 16;
            Value::float(DType::F32, f64::from(f32::from_bits(bits)), 0.0)
        }
        DType::I32 => Value::int(dtype, i64::from(i32::from_le_bytes(bytes.try_into().unwrap()))),
        DType::I64 => Value::int(dtype, i64::from_le_bytes(bytes.try_into().unwrap())),
        DType::Bool => Value::int(dtype, i64::from(bytes[0])),
    }
}

/// Writes element `index` of a buffer, rounding to `dtype`.
///
/// # Panics
/// The element lies outside the buffer.
pub fn store(buffer: &mut [u8], dtype: DType, index: u64, value: Value) {
    let at = (index * dtype.bytes()) as usize;
    let out = &mut buffer[at..at + dtype.bytes() as usize];
    match dtype {
        DType::F32 => out.copy_from_slice(&(value.float as f32).to_le_bytes()),
        DType::F64 => out.copy_from_slice(&value.float.to_le_bytes()),
        DType::Bf16 => out.copy_from_slice(&bf16_from_f32(value.float as f32).to_le_bytes()),
        DType::I32 => out.copy_from_slice(&(value.int as i32).to_le_bytes()),
        DType::I64 => out.copy_from_slice(&value.int.to_le_bytes()),
        DType::Bool => out[0] = u8::from(value.int != 0),
    }
}

/// Runs the kernel on its buffers.
///
/// # Panics
/// The spec breaks one of the rules of [`super`], such as an operand outside its buffer.
pub fn run(spec: &KernelSpec, buffers: &mut [Vec<u8>], scalars: &[i64], precision: Precision) {
    for written in evaluate(spec, buffers, scalars, precision) {
        let buffer = &mut buffers[written.buffer as usize];
        store(buffer, written.value.dtype, written.index, written.value);
    }
}

/// Computes every element the kernel writes, in order of writing, without touching the buffers.
///
/// # Panics
/// As [`run`], and on a custom kernel, which only a machine runs.
pub fn evaluate(
    spec: &KernelSpec,
    buffers: &[Vec<u8>],
    scalars: &[i64],
    precision: Precision,
) -> Vec<Written> {
    let mut eval = Evaluator { buffers, scalars, precision, written: Vec::new() };
    match spec {
        KernelSpec::Map(s) | KernelSpec::Rows(s) => eval.loops(s),
        KernelSpec::Gemm(s) => eval.gemm(s),
        KernelSpec::Attention(s) => eval.attention(s),
        KernelSpec::AttentionGrad(s) => eval.attention_grad(s),
        KernelSpec::Gather(s) => eval.gather(s),
        KernelSpec::Scatter(s) => eval.scatter(s),
        KernelSpec::Custom(s) => panic!("{}: only a machine runs a custom kernel", s.file),
        KernelSpec::Scan(s) => eval.scan(s),
    }
    eval.written
}

/// All indices of a space, last dimension fastest. A space without dimensions has one point.
pub fn indices(dims: &[u64]) -> impl Iterator<Item = Vec<u64>> + '_ {
    let total: u64 = dims.iter().product();
    (0..total).map(move |flat| {
        let mut rest = flat;
        let mut index = vec![0; dims.len()];
        for (i, &d) in dims.iter().enumerate().rev() {
            index[i] = rest % d;
            rest /= d;
        }
        index
    })
}

/// Element address of an operand at an index.
pub fn address(operand: &Operand, index: &[u64]) -> u64 {
    operand.offset + index.iter().zip(&operand.strides).map(|(i, s)| i * s).sum::<u64>()
}

/// Longest chain of roundings one summand may see in the kernels' sums: chunks of bounded length joined by a tree.
fn sum_depth(n: usize) -> f64 {
    n.min(512) as f64 + (n as f64).log2().max(0.0) + 8.0
}

struct Evaluator<'a> {
    buffers: &'a [Vec<u8>],
    scalars: &'a [i64],
    precision: Precision,
    written: Vec<Written>,
}

impl Evaluator<'_> {
    fn load(&self, operand: &Operand, index: &[u64]) -> Value {
        load(&self.buffers[operand.buffer as usize], operand.dtype, address(operand, index))
    }

    fn write_at(&mut self, operand: &Operand, at: u64, value: Value) {
        let store_error = unit(operand.dtype) * (value.float.abs() + value.error) + tiny(operand.dtype);
        let value = match operand.dtype {
            DType::F32 | DType::F64 | DType::Bf16 => Value { error: value.error + store_error, ..value },
            DType::I32 | DType::I64 | DType::Bool => value,
        };
        let value = Value { dtype: operand.dtype, ..value };
        self.written.push(Written { buffer: operand.buffer, index: at, value });
    }

    fn write(&mut self, operand: &Operand, index: &[u64], value: Value) {
        self.write_at(operand, address(operand, index), value);
    }

    /// A value as its type holds it: rounded in `AsWritten`, untouched in `Exact`; adds the rounding to the bound.
    fn rounded(&self, dtype: DType, float: f64, error: f64, ulps: f64) -> Value {
        let bound = error + ulps * unit(dtype) * float.abs() + tiny(dtype);
        let float = match (self.precision, dtype) {
            (Precision::AsWritten, DType::F32) => f64::from(float as f32),
            _ => float,
        };
        Value::float(dtype, float, if float.is_finite() { bound } else { 0.0 })
    }

    /// Evaluates a region at `n` points. `inputs[i]` has one value per point; `index(point, dim)` its coordinates.
    /// Gives one vector per result.
    fn region(
        &self,
        region: &Region,
        n: usize,
        inputs: &dyn Fn(u32, usize) -> Value,
        index: &dyn Fn(u32, usize) -> i64,
    ) -> Vec<Vec<Value>> {
        let mut values: Vec<Vec<Value>> = Vec::new();
        for op in &region.ops {
            let value = match *op {
                ScalarOp::Reduce(reduce, a) => vec![self.reduce(reduce, &values[a.0 as usize]); n],
                _ => (0..n).map(|p| self.scalar_op(op, &values, p, inputs, index)).collect(),
            };
            values.push(value);
        }
        region.results.iter().map(|r| values[r.0 as usize].clone()).collect()
    }

    fn scalar_op(
        &self,
        op: &ScalarOp,
        values: &[Vec<Value>],
        p: usize,
        inputs: &dyn Fn(u32, usize) -> Value,
        index: &dyn Fn(u32, usize) -> i64,
    ) -> Value {
        let get = |id: super::ScalarId| values[id.0 as usize][p];
        match *op {
            ScalarOp::Input(i) => inputs(i, p),
            ScalarOp::Index(d) => Value::int(DType::I32, index(d, p)),
            ScalarOp::Const(dtype, c) => constant(dtype, c),
            ScalarOp::Unary(op, a) => self.unary(op, get(a)),
            ScalarOp::Binary(op, a, b) => self.binary(op, get(a), get(b)),
            ScalarOp::MulAdd(a, b, c) => self.mul_add(get(a), get(b), get(c)),
            ScalarOp::Compare(op, a, b) => Value::int(DType::Bool, i64::from(compare(op, get(a), get(b)))),
            ScalarOp::Select(c, a, b) => {
                if get(c).is_true() {
                    get(a)
                } else {
                    get(b)
                }
            }
            ScalarOp::Cast(dtype, a) => self.cast(dtype, get(a)),
            ScalarOp::Reduce(..) => unreachable!("handled by the caller"),
        }
    }

    /// Each function's error is the propagated one (derivative times argument error) plus its own: a few roundings.
    fn unary(&self, op: UnaryOp, a: Value) -> Value {
        let (x, e) = (a.float, a.error);
        let made = |y: f64, slope: f64, ulps: f64| {
            let propagated = if e == 0.0 { 0.0 } else { slope.abs() * e };
            self.rounded(a.dtype, y, propagated, ulps)
        };
        match (op, a.dtype) {
            (UnaryOp::Not, _) => Value::int(DType::Bool, 1 - a.int),
            (UnaryOp::Neg, DType::I32 | DType::I64) => Value::int(a.dtype, a.int.wrapping_neg()),
            (UnaryOp::Abs, DType::I32 | DType::I64) => Value::int(a.dtype, a.int.wrapping_abs()),
            (_, DType::I32 | DType::I64 | DType::Bool) => a,
            (UnaryOp::Neg, _) => Value { float: -x, ..a },
            (UnaryOp::Abs, _) => Value { float: x.abs(), ..a },
            (UnaryOp::Floor, _) => Value { float: x.floor(), ..a },
            // exp(x+e) − exp(x) = exp(x)·(exp(e)−1), exact also for large e.
            (UnaryOp::Exp, _) => {
                self.rounded(a.dtype, x.exp(), if e == 0.0 { 0.0 } else { x.exp() * e.exp_m1() }, 4.0)
            }
            (UnaryOp::Log, _) => made(x.ln(), 1.0 / x, 4.0),
            (UnaryOp::Sqrt, _) => made(x.sqrt(), 0.5 / x.sqrt(), 2.0),
            (UnaryOp::Rsqrt, _) => made(1.0 / x.sqrt(), 0.5 / (x * x.sqrt()), 4.0),
            (UnaryOp::Tanh, _) => made(x.tanh(), 1.0, 8.0),
            (UnaryOp::Sigmoid, _) => made(1.0 / (1.0 + (-x).exp()), 0.25, 8.0),
            (UnaryOp::Sin, _) => self.rounded(a.dtype, x.sin(), e + 2.0 * unit(a.dtype), 4.0),
            (UnaryOp::Cos, _) => self.rounded(a.dtype, x.cos(), e + 2.0 * unit(a.dtype), 4.0),
            (UnaryOp::Erf, _) => made(erf(x), 1.13, 8.0),
        }
    }

    fn binary(&self, op: BinaryOp, a: Value, b: Value) -> Value {
        if matches!(a.dtype, DType::I32 | DType::I64 | DType::Bool) {
            return int_binary(op, a, b);
        }
        let (x, y, ex, ey) = (a.float, b.float, a.error, b.error);
        let times = |e: f64, factor: f64| if e == 0.0 { 0.0 } else { e * factor.abs() };
        let d = a.dtype;
        match op {
            BinaryOp::Add => self.rounded(d, x + y, ex + ey, 2.0),
            BinaryOp::Sub => self.rounded(d, x - y, ex + ey, 2.0),
            BinaryOp::Mul => self.rounded(d, x * y, times(ex, y) + times(ey, x) + ex * ey, 2.0),
            BinaryOp::Div => {
                let z = x / y;
                let room = (1.0 - ey / y.abs()).max(0.1);
                self.rounded(d, z, (times(ex, 1.0 / y) + times(ey, z / y)) / room, 2.0)
            }
            BinaryOp::Rem => self.rounded(d, x % y, ex + ey, 2.0),
            BinaryOp::Max => {
                let z = if x.is_nan() || y.is_nan() { f64::NAN } else { x.max(y) };
                Value::float(d, z, ex.max(ey))
            }
            BinaryOp::Min => {
                let z = if x.is_nan() || y.is_nan() { f64::NAN } else { x.min(y) };
                Value::float(d, z, ex.max(ey))
            }
            BinaryOp::Pow => {
                let z = x.powf(y);
                let own = (8.0 + 4.0 * (y * x.ln()).abs()) * unit(d) * z.abs();
                self.rounded(d, z, times(ex, y * z / x) + times(ey, z * x.ln()) + own, 2.0)
            }
            // Defined on integers and truth values only.
            BinaryOp::And | BinaryOp::Or | BinaryOp::Threefry => Value::int(DType::Bool, 0),
        }
    }

    fn mul_add(&self, a: Value, b: Value, c: Value) -> Value {
        let product_error = a.error * b.float.abs() + b.error * a.float.abs() + a.error * b.error;
        let fused = match (self.precision, a.dtype) {
            (Precision::AsWritten, DType::F32) => {
                f64::from((a.float as f32).mul_add(b.float as f32, c.float as f32))
            }
            _ => a.float.mul_add(b.float, c.float),
        };
        self.rounded(a.dtype, fused, product_error + c.error, 2.0)
    }

    fn cast(&self, to: DType, a: Value) -> Value {
        let from_int = matches!(a.dtype, DType::I32 | DType::I64 | DType::Bool);
        match to {
            DType::Bf16 => {
                let x = self.cast(DType::F32, a);
                let bound = x.error + unit(to) * (x.float.abs() + x.error) + tiny(to);
                let float = match self.precision {
                    Precision::AsWritten => f64::from(bf16_to_f32(bf16_from_f32(x.float as f32))),
                    Precision::Exact => x.float,
                };
                Value::float(DType::F32, float, if float.is_finite() { bound } else { 0.0 })
            }
            DType::F32 => {
                let x = if from_int { a.int as f64 } else { a.float };
                let exact = from_int && (x as f32) as f64 == x || a.dtype == DType::F32;
                self.rounded(DType::F32, x, a.error, if exact { 0.0 } else { 2.0 })
            }
            DType::F64 => Value::float(DType::F64, if from_int { a.int as f64 } else { a.float }, a.error),
            DType::I32 => Value::int(to, if from_int { a.int } else { i64::from(a.float as i32) }),
            DType::I64 => Value::int(to, if from_int { a.int } else { a.float as i64 }),
            DType::Bool => Value::int(to, i64::from(if from_int { a.int != 0 } else { a.float != 0.0 })),
        }
    }

    fn reduce(&self, op: ReduceOp, row: &[Value]) -> Value {
        let dtype = row.first().map_or(DType::F32, |v| v.dtype);
        if matches!(dtype, DType::I32 | DType::I64 | DType::Bool) {
            let ints = row.iter().map(|v| v.int);
            return Value::int(
                dtype,
                match op {
                    ReduceOp::Sum => ints.fold(0, i64::wrapping_add),
                    ReduceOp::Max => ints.max().unwrap_or(i64::MIN),
                    ReduceOp::Min => ints.min().unwrap_or(i64::MAX),
                },
            );
        }
        match op {
            ReduceOp::Sum => {
                let mut sum = 0.0;
                for v in row {
                    sum = self.rounded(dtype, sum + v.float, 0.0, 0.0).float;
                }
                let magnitude: f64 = row.iter().map(|v| v.float.abs() + v.error).sum();
                let inherited: f64 = row.iter().map(|v| v.error).sum();
                self.rounded(dtype, sum, inherited + sum_depth(row.len()) * unit(dtype) * magnitude, 2.0)
            }
            ReduceOp::Max | ReduceOp::Min => {
                let start = if op == ReduceOp::Max { f64::NEG_INFINITY } else { f64::INFINITY };
                let first = Value::float(dtype, start, 0.0);
                let join = if op == ReduceOp::Max { BinaryOp::Max } else { BinaryOp::Min };
                row.iter().fold(first, |acc, &v| self.binary(join, acc, v))
            }
        }
    }

    fn loops(&mut self, s: &LoopsSpec) {
        let kept = s.dims.len() - s.reduced;
        let inner: Vec<Vec<u64>> = indices(&s.dims[kept..]).collect();
        for row in indices(&s.dims[..kept]) {
            let points: Vec<Vec<u64>> = inner.iter().map(|i| [&row[..], &i[..]].concat()).collect();
            let input = |i: u32, p: usize| match s.inputs.get(i as usize) {
                Some(operand) => self.load(operand, &points[p]),
                None => Value::int(DType::I64, self.scalars[i as usize - s.inputs.len()]),
            };
            let results = self.region(&s.region, points.len(), &input, &|d, p| points[p][d as usize] as i64);
            for (result, operand) in results.iter().zip(&s.outputs) {
                let broadcast = s.reduced > 0 && operand.strides[kept..].iter().all(|&x| x == 0);
                for (p, value) in result.iter().enumerate() {
                    if !broadcast || p == 0 {
                        self.write(operand, &points[p], *value);
                    }
                }
            }
        }
    }

    /// Σ aᵢ·bᵢ + start, in f32 (or f64 when the operands are).
    fn dot(&self, start: Option<Value>, pairs: impl Iterator<Item = (Value, Value)>) -> Value {
        let (mut sum, mut magnitude, mut inherited, mut n) = (0.0, 0.0, 0.0, 0usize);
        let mut dtype = DType::F32;
        if let Some(c) = start {
            (sum, magnitude, inherited, dtype) = (c.float, c.float.abs(), c.error, c.dtype);
        }
        for (a, b) in pairs {
            dtype = a.dtype;
            sum = match (self.precision, dtype) {
                (Precision::AsWritten, DType::F32) => {
                    f64::from((a.float as f32).mul_add(b.float as f32, sum as f32))
                }
                _ => a.float.mul_add(b.float, sum),
            };
            magnitude += (a.float.abs() + a.error) * (b.float.abs() + b.error);
            inherited += a.error * b.float.abs() + b.error * a.float.abs() + a.error * b.error;
            n += 1;
        }
        self.rounded(dtype, sum, inherited + (n as f64 + 4.0) * unit(dtype) * magnitude, 2.0)
    }

    fn gemm(&mut self, s: &GemmSpec) {
        let space = [&s.batch[..], &[s.m, s.n]].concat();
        for at in indices(&space) {
            let (batch, m, n) = (&at[..s.batch.len()], at[at.len() - 2], at[at.len() - 1]);
            let start = s.accumulate.then(|| self.load(&s.c, &at));
            let sum = self.dot(
                start,
                (0..s.k).map(|k| {
                    (self.load(&s.a, &[batch, &[m, k]].concat()), self.load(&s.b, &[batch, &[k, n]].concat()))
                }),
            );
            let value = match &s.epilogue {
                None => sum,
                Some(region) => {
                    let input = |i: u32, _: usize| match i {
                        0 => sum,
                        _ => self.load(&s.extras[i as usize - 1], &at),
                    };
                    self.region(region, 1, &input, &|d, _| at[d as usize] as i64)[0][0]
                }
            };
            self.write(&s.c, &at, value);
        }
    }

    /// Regions of a score, of one query against all keys.
    fn scores<const N: usize>(
        &self,
        shape: &AttentionShape,
        regions: [&Region; N],
        q: &Operand,
        k: &Operand,
        row: &[u64],
    ) -> [Vec<Value>; N] {
        let batch = &row[..row.len() - 2];
        let (base_q, base_k) = if shape.has_bases { (self.scalars[0], self.scalars[1]) } else { (0, 0) };
        let dots: Vec<Value> = (0..shape.sk)
            .map(|key| {
                self.dot(
                    None,
                    (0..shape.hd).map(|h| {
                        (self.load(q, &[row, &[h]].concat()), self.load(k, &[batch, &[key, h]].concat()))
                    }),
                )
            })
            .collect();
        let query = row[row.len() - 1] as i64;
        let input = |i: u32, p: usize| match i {
            0 => dots[p],
            1 => Value::int(DType::I32, base_q + query),
            2 => Value::int(DType::I32, base_k + p as i64),
            _ => self.load(&shape.extras[i as usize - 3], &[row, &[p as u64]].concat()),
        };
        let index = |d: u32, p: usize| match row.get(d as usize) {
            Some(&i) => i as i64,
            None => p as i64,
        };
        let n = shape.sk as usize;
        regions.map(|region| self.region(region, n, &input, &index).remove(0))
    }

    fn attention(&mut self, s: &AttentionSpec) {
        for row in indices(&attention_rows(&s.shape)) {
            let [scores] = self.scores(&s.shape, [&s.shape.score], &s.q, &s.k, &row);
            let max = self.reduce(ReduceOp::Max, &scores).float;
            if max == f64::NEG_INFINITY {
                self.write(&s.lse, &row, Value::float(DType::F32, f64::NEG_INFINITY, 0.0));
                for h in 0..s.shape.hv {
                    self.write(&s.o, &[&row[..], &[h]].concat(), Value::float(DType::F32, 0.0, 0.0));
                }
                continue;
            }
            // The running maximum rescales partial sums, at most once per key tile; 64 bounds the extra roundings.
            let max = Value::float(DType::F32, max, 0.0);
            let weights: Vec<Value> = scores
                .iter()
                .map(|&v| self.unary(UnaryOp::Exp, self.binary(BinaryOp::Sub, v, max)))
                .map(|v| Value { error: v.error + 64.0 * unit(DType::F32) * v.float, ..v })
                .collect();
            let sum = self.reduce(ReduceOp::Sum, &weights);
            let log = self.unary(UnaryOp::Log, sum);
            let lse = self.binary(BinaryOp::Add, log, max);
            self.write(&s.lse, &row, lse);
            let batch = &row[..row.len() - 2];
            for h in 0..s.shape.hv {
                let value = self.dot(
                    None,
                    weights
                        .iter()
                        .enumerate()
                        .map(|(key, &w)| (w, self.load(&s.v, &[batch, &[key as u64, h]].concat()))),
                );
                let o = self.binary(BinaryOp::Div, value, sum);
                self.write(&s.o, &[&row[..], &[h]].concat(), o);
            }
        }
    }

    /// Probabilities and score gradients of one query: `p = exp(s - lse)`, `ds = p·(do·v − delta)·slope`.
    fn probabilities(&self, s: &AttentionGradSpec, row: &[u64]) -> (Vec<Value>, Vec<Value>) {
        let [scores, slopes] = self.scores(&s.shape, [&s.shape.score, &s.slope], &s.q, &s.k, row);
        let batch = &row[..row.len() - 2];
        let (lse, delta) = (self.load(&s.lse, row), self.load(&s.delta, row));
        let zero = Value::float(DType::F32, 0.0, 0.0);
        let mut p = Vec::new();
        let mut ds = Vec::new();
        for (key, (score, slope)) in scores.iter().zip(&slopes).enumerate() {
            if score.float == f64::NEG_INFINITY || lse.float == f64::NEG_INFINITY {
                p.push(zero);
                ds.push(zero);
                continue;
            }
            let weight = self.unary(UnaryOp::Exp, self.binary(BinaryOp::Sub, *score, lse));
            let dp = self.dot(
                None,
                (0..s.shape.hv).map(|h| {
                    (
                        self.load(&s.d_o, &[row, &[h]].concat()),
                        self.load(&s.v, &[batch, &[key as u64, h]].concat()),
                    )
                }),
            );
            let inner = self.binary(BinaryOp::Mul, weight, self.binary(BinaryOp::Sub, dp, delta));
            p.push(weight);
            ds.push(self.binary(BinaryOp::Mul, inner, *slope));
        }
        (p, ds)
    }

    fn attention_grad(&mut self, s: &AttentionGradSpec) {
        let rows: Vec<Vec<u64>> = indices(&attention_rows(&s.shape)).collect();
        match s.part {
            AttentionGradPart::Query => {
                for row in rows {
                    let (_, ds) = self.probabilities(s, &row);
                    let batch = &row[..row.len() - 2];
                    for h in 0..s.shape.hd {
                        let dq = self.dot(
                            None,
                            ds.iter()
                                .enumerate()
                                .map(|(key, &d)| (d, self.load(&s.k, &[batch, &[key as u64, h]].concat()))),
                        );
                        self.write(&s.outputs[0], &[&row[..], &[h]].concat(), dq);
                    }
                }
            }
            AttentionGradPart::KeyValue => {
                // Rows of the batch entries that share one element of the results.
                let mut shared = std::collections::BTreeMap::<Vec<u64>, Vec<Vec<u64>>>::new();
                for row in rows {
                    let batch = &row[..row.len() - 2];
                    shared.entry(kept(batch, &s.outputs[0].strides)).or_default().push(row);
                }
                for rows in shared.values() {
                    self.key_value_gradients(s, rows);
                }
            }
            AttentionGradPart::Extra(_) => {
                let mut sums = std::collections::BTreeMap::<Vec<u64>, Vec<Value>>::new();
                for row in rows {
                    let (_, ds) = self.probabilities(s, &row);
                    for (key, d) in (0..).zip(ds) {
                        let at = [&row[..], &[key]].concat();
                        sums.entry(kept(&at, &s.outputs[0].strides)).or_default().push(d);
                    }
                }
                for (at, terms) in sums {
                    let sum = self.reduce(ReduceOp::Sum, &terms);
                    self.write(&s.outputs[0], &at, sum);
                }
            }
        }
    }

    /// `dk = Σ dsᵀ·q` and `dv = Σ pᵀ·do` over these queries.
    fn key_value_gradients(&mut self, s: &AttentionGradSpec, rows: &[Vec<u64>]) {
        let per_row: Vec<(Vec<Value>, Vec<Value>)> = rows.iter().map(|r| self.probabilities(s, r)).collect();
        let batch = &rows[0][..rows[0].len() - 2];
        for key in 0..s.shape.sk {
            let at = key as usize;
            for h in 0..s.shape.hd {
                let terms = rows.iter().zip(&per_row);
                let dk = self
                    .dot(None, terms.map(|(r, (_, ds))| (ds[at], self.load(&s.q, &[&r[..], &[h]].concat()))));
                self.write(&s.outputs[0], &[batch, &[key, h]].concat(), dk);
            }
            for h in 0..s.shape.hv {
                let terms = rows.iter().zip(&per_row);
                let dv = self
                    .dot(None, terms.map(|(r, (p, _))| (p[at], self.load(&s.d_o, &[&r[..], &[h]].concat()))));
                self.write(&s.outputs[1], &[batch, &[key, h]].concat(), dv);
            }
        }
    }

    fn gather(&mut self, s: &GatherSpec) {
        for at in indices(&s.dims) {
            let id = self.load(&s.ids, &at).int;
            let is_inside = (0..s.axis_size as i64).contains(&id);
            let row = if is_inside { id as u64 * s.axis_stride } else { 0 };
            let table = &self.buffers[s.table.buffer as usize];
            let held = load(table, s.table.dtype, address(&s.table, &at) + row);
            let zero = Value { float: 0.0, int: 0, error: 0.0, ..held };
            self.write(&s.out, &at, if is_inside { held } else { zero });
        }
    }

    fn scan(&mut self, s: &ScanSpec) {
        let (n, rows) = s.dims.split_last().expect("verified");
        for row in indices(rows) {
            let (mut sum, mut magnitude) = (None::<Value>, 0.0);
            for step in 0..*n {
                let at = [&row[..], &[if s.reverse { n - 1 - step } else { step }]].concat();
                let x = self.load(&s.input, &at);
                let before = sum.unwrap_or(Value { float: 0.0, int: 0, error: 0.0, ..x });
                magnitude += x.float.abs() + x.error;
                let error = before.error + x.error + unit(DType::F32.max(x.dtype)) * magnitude;
                let float = self.rounded(x.dtype, before.float + x.float, 0.0, 0.0).float;
                let int = Value::int(x.dtype, before.int.wrapping_add(x.int)).int;
                let after = Value { float, int, error, ..x };
                sum = Some(after);
                self.write(&s.out, &at, if s.exclusive { before } else { after });
            }
        }
    }

    fn scatter(&mut self, s: &ScatterSpec) {
        // (address, sum, magnitude) of every element of `out` the spec covers, in order of first mention.
        let mut sums = std::collections::BTreeMap::<u64, (Value, f64, usize)>::new();
        let out_dtype = s.out.dtype;
        for at in indices(&s.dims) {
            let row = address(&s.out, &at);
            for v in 0..s.axis_size {
                let index = row + v * s.axis_stride;
                sums.entry(index).or_insert_with(|| {
                    let held = load(&self.buffers[s.out.buffer as usize], out_dtype, index);
                    let start = if s.accumulate { held } else { Value { float: 0.0, int: 0, ..held } };
                    (start, start.float.abs(), 0)
                });
            }
        }
        for at in indices(&s.dims) {
            let id = self.load(&s.ids, &at).int;
            if !(0..s.axis_size as i64).contains(&id) {
                continue;
            }
            let update = self.load(&s.updates, &at);
            let slot = sums.get_mut(&(address(&s.out, &at) + id as u64 * s.axis_stride)).unwrap();
            slot.0.float = self.rounded(update.dtype, slot.0.float + update.float, 0.0, 0.0).float;
            slot.0.int = slot.0.int.wrapping_add(update.int);
            slot.1 += update.float.abs();
            slot.2 += 1;
        }
        for (index, (value, magnitude, n)) in sums {
            let error = (n as f64 + 1.0) * unit(DType::F32.max(value.dtype)) * magnitude;
            self.write_at(&s.out, index, Value { error, ..value });
        }
    }
}

/// An index without the dimensions along which a result is summed.
fn kept(index: &[u64], strides: &[u64]) -> Vec<u64> {
    index.iter().zip(strides).map(|(i, stride)| if *stride == 0 { 0 } else { *i }).collect()
}

/// `[batch.., group, sq]`.
fn attention_rows(shape: &AttentionShape) -> Vec<u64> {
    [&shape.batch[..], &[shape.group, shape.sq]].concat()
}

fn constant(dtype: DType, c: f64) -> Value {
    match dtype {
        DType::F32 | DType::Bf16 => Value::float(DType::F32, f64::from(c as f32), 0.0),
        DType::F64 => Value::float(dtype, c, 0.0),
        DType::I32 | DType::I64 | DType::Bool => Value::int(dtype, c as i64),
    }
}

fn compare(op: CompareOp, a: Value, b: Value) -> bool {
    let order = match a.dtype {
        DType::I32 | DType::I64 | DType::Bool => Some(a.int.cmp(&b.int)),
        DType::F32 | DType::F64 | DType::Bf16 => a.float.partial_cmp(&b.float),
    };
    let Some(order) = order else { return op == CompareOp::Ne };
    match op {
        CompareOp::Eq => order.is_eq(),
        CompareOp::Ne => order.is_ne(),
        CompareOp::Lt => order.is_lt(),
        CompareOp::Le => order.is_le(),
        CompareOp::Gt => order.is_gt(),
        CompareOp::Ge => order.is_ge(),
    }
}

fn int_binary(op: BinaryOp, a: Value, b: Value) -> Value {
    let (x, y) = (a.int, b.int);
    let made = |z: i64| Value::int(a.dtype, z);
    match op {
        BinaryOp::Add => made(x.wrapping_add(y)),
        BinaryOp::Sub => made(x.wrapping_sub(y)),
        BinaryOp::Mul => made(x.wrapping_mul(y)),
        BinaryOp::Div => made(if y == 0 { 0 } else { x.wrapping_div(y) }),
        BinaryOp::Rem => made(if y == 0 { 0 } else { x.wrapping_rem(y) }),
        BinaryOp::Max => made(x.max(y)),
        BinaryOp::Min => made(x.min(y)),
        BinaryOp::And => made(x & y),
        BinaryOp::Or => made(x | y),
        // The verifier of regions allows Pow on F64 only.
        BinaryOp::Pow => made(0),
        BinaryOp::Threefry => made(crate::math::threefry2x32_20(x, y)),
    }
}

/// Error function to about 1e-15: the Taylor series near 0, a continued fraction of erfc beyond.
///
/// Source: Abramowitz and Stegun, 7.1.6 and 7.1.14.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    if a > 6.0 {
        return x.signum();
    }
    if a < 1.5 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term.abs() > 1e-18 * sum.abs() {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        return std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum;
    }
    let mut tail = 0.0;
    for k in (1..=120).rev() {
        tail = f64::from(k) / 2.0 / (a + tail);
    }
    let erfc = (-a * a).exp() / ((a + tail) * std::f64::consts::PI.sqrt());
    x.signum() * (1.0 - erfc)
}

#[cfg(test)]
mod tests;
