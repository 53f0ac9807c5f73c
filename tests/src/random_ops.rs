//! Small graphs around one op on one element type: every op with every type it works on comes up equally often.
//!
//! A graph takes its operands from parameters through casts, applies the op, and puts an element-wise op before or behind it, so
//! that it meets the fuser alone, as a consumer and as a producer.

use mlc::graph::verify::{Stage, verify};
use mlc::graph::{
    Axis, BinaryOp, Builder, CompareOp, DType, Init, Name, Op, Output, Pairs, ReduceOp, Type, UnaryOp,
    ValueId,
};
use mlc::interpret::{Environment, Tensor};

use crate::random_graph::{Random, Sample};

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::Bf16, DType::I32, DType::I64, DType::Bool];

/// An op to try on an element type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Case {
    /// Of one operand.
    Unary(UnaryOp),
    /// Of two.
    Binary(BinaryOp),
    /// Gives bool.
    Compare(CompareOp),
    /// `select`.
    Select,
    /// To this type.
    Cast(DType),
    /// Along axes the operand lacks.
    Broadcast,
    /// To other names.
    Rename,
    /// Over one axis or all.
    Reduce(ReduceOp),
    /// Over one axis or two, with shared ones.
    Dot,
    /// By ids made of positions.
    Gather,
    /// Its transpose.
    Scatter,
    /// Pairs turned.
    Rotate(Pairs),
    /// Over an axis, exponentials shifted by the maximum.
    Softmax,
}

/// Every case with every type it works on, in a fixed order.
pub fn cases() -> Vec<(Case, DType)> {
    use BinaryOp as B;
    use UnaryOp as U;
    let mut all = Vec::new();
    let unary = [
        U::Neg,
        U::Abs,
        U::Exp,
        U::Log,
        U::Sqrt,
        U::Rsqrt,
        U::Tanh,
        U::Sigmoid,
        U::Sin,
        U::Cos,
        U::Erf,
        U::Floor,
        U::Not,
    ];
    all.extend(unary.map(Case::Unary));
    all.extend(
        [B::Add, B::Sub, B::Mul, B::Div, B::Max, B::Min, B::Rem, B::Pow, B::And, B::Or, B::Threefry]
            .map(Case::Binary),
    );
    use CompareOp as C;
    all.extend([C::Lt, C::Le, C::Gt, C::Ge, C::Eq, C::Ne].map(Case::Compare));
    all.extend(DTYPES.map(Case::Cast));
    all.extend([ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min].map(Case::Reduce));
    all.extend([Pairs::Half, Pairs::Interleaved].map(Case::Rotate));
    all.extend([
        Case::Select,
        Case::Broadcast,
        Case::Rename,
        Case::Dot,
        Case::Gather,
        Case::Scatter,
        Case::Softmax,
    ]);
    let pairs = all.into_iter().flat_map(|case| DTYPES.map(|dtype| (case, dtype)));
    pairs.filter(|(case, dtype)| graph_of(*case, *dtype, 1).is_some()).collect()
}

/// The graph of a seed: case `seed mod cases`, drawn by the seed.
pub fn op_sample(cases: &[(Case, DType)], seed: u64) -> Sample {
    let (case, dtype) = cases[(seed % cases.len() as u64) as usize];
    graph_of(case, dtype, seed).unwrap_or_else(|| panic!("{case:?} works on {dtype:?}"))
}

/// A graph around the op, or `None` if the op does not work on the type.
fn graph_of(case: Case, dtype: DType, seed: u64) -> Option<Sample> {
    let mut random = Random::new(seed);
    // One lane, several, odd, a vector and more than one.
    let mut size = || *random.pick(&[1, 2, 3, 5, 7, 8, 16, 17, 33]);
    let axes = [Axis::new("a", size()), Axis::new("b", size()), Axis::new("r", 2 * size())];
    let mut g = Ops {
        b: Builder::new(format!("{case:?}_{dtype:?}_{seed}").replace(['(', ')'], "_")),
        random,
        axes,
        environment: Environment::default(),
    };
    let result = g.case(case, dtype)?;
    let reported = g.behind(result);
    g.b.output(Output::Report("value".into()), reported);
    let graph = g.b.finish();
    verify(&graph, Stage::Training).is_ok().then_some(Sample { graph, environment: g.environment })
}

struct Ops {
    b: Builder,
    random: Random,
    axes: [Axis; 3],
    environment: Environment,
}

impl Ops {
    /// An operand of this type over some of the axes, `must` among them.
    fn operand(&mut self, dtype: DType, must: &[&str]) -> ValueId {
        let mut axes: Vec<Axis> = self.axes.to_vec();
        axes.retain(|a| must.contains(&a.name.as_str()) || self.random.below(3) > 0);
        if self.random.below(2) == 0 {
            axes.reverse();
        }
        self.full(dtype, axes)
    }

    fn full(&mut self, dtype: DType, axes: Vec<Axis>) -> ValueId {
        let ty = Type::new(DType::F32, axes);
        let path: Name = format!("p{}", self.environment.tensors.len()).into();
        let values = (0..ty.numel()).map(|_| self.value(dtype)).collect();
        self.environment.tensors.insert(path.clone(), Tensor::floats(ty.clone(), values));
        let op = Op::Param { path: path.clone(), init: Init::Constant(0.0) };
        let value = self.b.one(op, &[], Some(ty), &path);
        match dtype {
            DType::F32 => value,
            DType::Bool => {
                let zero = self.b.constant(DType::F32, 0.0);
                self.b.compare(CompareOp::Gt, value, zero)
            }
            DType::F64 | DType::Bf16 | DType::I32 | DType::I64 => self.b.cast(value, dtype),
        }
    }

    /// Small and exact in f32; whole numbers for integers; now and then what arithmetic stumbles over.
    fn value(&mut self, dtype: DType) -> f64 {
        let whole = matches!(dtype, DType::I32 | DType::I64);
        let special = [0.0, -0.0, 1.0, -1.0, 0.5, 30.0, -30.0];
        match self.random.below(8) {
            0 => *self.random.pick(&special),
            _ if whole => (self.random.unit() * 40.0).trunc(),
            _ => f64::from((self.random.unit() * 4.0) as f32),
        }
    }

    fn one(&mut self, op: Op, operands: &[ValueId], given: Option<Type>) -> Option<ValueId> {
        let id = self.b.try_op(op, operands, given, "y").ok()?;
        Some(self.b.graph.op(id).results[0])
    }

    /// Ids below `bound` along an axis.
    fn ids(&mut self, along: &Axis, bound: u64) -> ValueId {
        let index = self.b.index(&along.name, along.size);
        let factor = self.b.constant(DType::I32, 1.0 + self.random.below(4) as f64);
        let scaled = self.b.mul(index, factor);
        let bound = self.b.constant(DType::I32, bound as f64);
        self.b.binary(BinaryOp::Rem, scaled, bound)
    }

    fn case(&mut self, case: Case, dtype: DType) -> Option<ValueId> {
        let [a, b, _] = self.axes.clone();
        match case {
            Case::Unary(op) => {
                let x = self.operand(dtype, &["a"]);
                let x = self.in_domain(op, x, dtype);
                self.one(Op::Unary(op), &[x], None)
            }
            Case::Binary(op) => {
                let x = self.full(dtype, self.axes.to_vec());
                let y = self.operand(dtype, &[]);
                let y = if matches!(op, BinaryOp::Div | BinaryOp::Rem) {
                    self.away_from_zero(y, dtype)
                } else {
                    y
                };
                let x = if op == BinaryOp::Pow { self.away_from_zero(x, dtype) } else { x };
                let swapped =
                    !matches!(op, BinaryOp::Div | BinaryOp::Rem | BinaryOp::Pow) && self.random.below(2) == 0;
                let operands = if swapped { [y, x] } else { [x, y] };
                let ty = self.b.ty(x).clone();
                self.one(Op::Binary(op), &operands, Some(ty))
            }
            Case::Compare(op) => {
                let (x, y) = (self.full(dtype, self.axes.to_vec()), self.operand(dtype, &[]));
                let ty = self.b.ty(x).with_dtype(DType::Bool);
                self.one(Op::Compare(op), &[x, y], Some(ty))
            }
            Case::Select => {
                let (x, y) = (self.full(dtype, self.axes.to_vec()), self.operand(dtype, &[]));
                let condition = self.operand(DType::Bool, &[]);
                let ty = self.b.ty(x).clone();
                self.one(Op::Select, &[condition, x, y], Some(ty))
            }
            Case::Cast(to) => {
                let x = self.operand(dtype, &["a"]);
                let ty = self.b.ty(x).with_dtype(to);
                self.one(Op::Cast, &[x], Some(ty))
            }
            Case::Broadcast => {
                let x = self.operand(dtype, &[]);
                let ty = Type::new(dtype, self.axes.to_vec());
                self.one(Op::Broadcast, &[x], Some(ty))
            }
            Case::Rename => {
                let x = self.operand(dtype, &["a"]);
                self.one(Op::Rename { pairs: vec![("a".into(), "z".into())] }, &[x], None)
            }
            Case::Reduce(op) => {
                let x = self.operand(dtype, &["b"]);
                let all = self.b.ty(x).names();
                let axes = if self.random.below(3) == 0 { all } else { vec!["b".into()] };
                self.one(Op::Reduce { op, axes }, &[x], None)
            }
            Case::Dot => {
                let (x, y) = (self.operand(dtype, &["a"]), self.operand(dtype, &["a"]));
                let both = self.b.ty(x).has("b") && self.b.ty(y).has("b");
                let over = if both && self.random.below(2) == 0 {
                    vec!["a".into(), "b".into()]
                } else {
                    vec!["a".into()]
                };
                self.one(Op::Dot { over }, &[x, y], None)
            }
            Case::Gather => {
                let table = self.operand(dtype, &["b"]);
                let along = if self.random.below(2) == 0 { a } else { Axis::new("n", 9) };
                let ids = self.ids(&along, b.size);
                self.one(Op::Gather { axis: "b".into() }, &[table, ids], None)
            }
            Case::Scatter => {
                let updates = self.operand(dtype, &["a"]);
                let ids = self.ids(&a, 5);
                let mut axes = vec![Axis::new("v", 5)];
                axes.extend(self.b.ty(updates).axes.iter().filter(|x| x.name != a.name).cloned());
                self.one(Op::ScatterAdd { axis: "v".into() }, &[updates, ids], Some(Type::new(dtype, axes)))
            }
            Case::Rotate(pairs) => {
                let x = self.operand(dtype, &["r"]);
                self.one(Op::RotatePairs { axis: "r".into(), pairs }, &[x], None)
            }
            Case::Softmax => {
                let x = self.operand(dtype, &["b"]);
                let float = matches!(dtype, DType::F32 | DType::F64);
                float.then(|| self.b.softmax(x, &"b".into()).ok()).flatten()
            }
        }
    }

    /// The operand moved to where the function and its error bound are finite.
    fn in_domain(&mut self, op: UnaryOp, x: ValueId, dtype: DType) -> ValueId {
        match op {
            UnaryOp::Log | UnaryOp::Sqrt | UnaryOp::Rsqrt => self.away_from_zero(x, dtype),
            _ => x,
        }
    }

    /// `max(|x|, 1)`.
    fn away_from_zero(&mut self, x: ValueId, dtype: DType) -> ValueId {
        if dtype == DType::Bool {
            return x;
        }
        let magnitude = self.b.unary(UnaryOp::Abs, x);
        let one = self.b.constant(dtype, 1.0);
        self.b.binary(BinaryOp::Max, magnitude, one)
    }

    /// Sometimes an element-wise op behind the result.
    fn behind(&mut self, x: ValueId) -> ValueId {
        let dtype = self.b.ty(x).dtype;
        match self.random.below(3) {
            0 if dtype == DType::Bool => self.b.unary(UnaryOp::Not, x),
            0 => self.b.unary(UnaryOp::Neg, x),
            1 if dtype != DType::Bool => {
                let two = self.b.constant(dtype, 2.0);
                self.b.binary(BinaryOp::Min, x, two)
            }
            _ => x,
        }
    }
}
