//! One small graph per kind of op, for tests that must hold of every op.
//!
//! Operands are sources, results are reported. Sizes are the test's: `sizes("batch")` is the size of the axis `batch`, which
//! a case multiplies where the op wants pairs or tiles. Every size may be 1.

use crate::graph::composites::AttentionParts;
use crate::graph::custom::{Argument, Custom};
use crate::graph::grouped::Packing;
use crate::graph::{
    Attention, Axis, BinaryOp, Bound, Builder, CompareOp, Composite, CompositeKind, DType, Graph, Init, Loop,
    LossHead, MeshOp, Name, Op, OpId, Output, Pairs, ReduceOp, RegionId, Space, Type, UnaryOp, Update,
    ValueId,
};
use std::collections::BTreeMap;

/// Kinds of ops, each with its name: a table that must cover every variant, and that the gallery must cover.
macro_rules! kinds {
    ($($pattern:pat => $name:literal,)*) => {
        /// Every kind of op.
        pub const KINDS: &[&str] = &[$($name),*];

        /// The kind of an op.
        pub fn kind(op: &Op) -> &'static str {
            match op { $($pattern => $name,)* }
        }
    };
}

kinds! {
    Op::Input { .. } => "input",
    Op::Param { .. } => "param",
    Op::State { .. } => "state",
    Op::Scalar { .. } => "scalar",
    Op::Const(_) => "const",
    Op::Index { .. } => "index",
    Op::Unary(_) => "unary",
    Op::Binary(BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul) => "binary linear",
    Op::Binary(BinaryOp::Div) => "binary div",
    Op::Binary(BinaryOp::Max | BinaryOp::Min) => "binary max",
    Op::Binary(BinaryOp::Rem | BinaryOp::Pow | BinaryOp::And | BinaryOp::Or | BinaryOp::Threefry) => "binary other",
    Op::Compare(_) => "compare",
    Op::Select => "select",
    Op::Cast => "cast",
    Op::Broadcast => "broadcast",
    Op::Rename { .. } => "rename",
    Op::Reduce { .. } => "reduce",
    Op::Dot { .. } => "dot",
    Op::Gather { .. } => "gather",
    Op::ScatterAdd { .. } => "scatter",
    Op::CumSum { .. } => "cumsum",
    Op::RotatePairs { .. } => "rotate_pairs",
    Op::Transfer { .. } => "transfer",
    Op::Slice { .. } => "slice",
    Op::Concat { .. } => "concat",
    Op::Mesh(MeshOp::Constrain { .. }) => "constrain",
    Op::Mesh(MeshOp::Reshard { .. } | MeshOp::Collective(_) | MeshOp::LocalPart { .. }) => "between ranks",
    Op::Loop(_) => "loop",
    Op::Update(_) => "update",
    Op::Composite(Composite { kind: CompositeKind::Softmax { .. }, .. }) => "softmax",
    Op::Composite(Composite { kind: CompositeKind::RmsNorm { .. }, .. }) => "rms_norm",
    Op::Composite(Composite { kind: CompositeKind::LayerNorm { .. }, .. }) => "layer_norm",
    Op::Composite(Composite { kind: CompositeKind::Rope { .. }, .. }) => "rope",
    Op::Composite(Composite { kind: CompositeKind::CrossEntropy { .. }, .. }) => "cross_entropy",
    Op::Composite(Composite { kind: CompositeKind::Attention(_), .. }) => "attention",
    Op::Composite(Composite { kind: CompositeKind::AttentionGrad(_), .. }) => "attention_grad",
    Op::Composite(Composite { kind: CompositeKind::LossHead(_), .. }) => "loss_head",
    Op::Composite(Composite { kind: CompositeKind::Custom(_), .. }) => "custom",
    Op::Composite(Composite { kind: CompositeKind::GroupedDot { .. }, .. }) => "grouped_dot",
    Op::Composite(Composite { kind: CompositeKind::GroupedOuter { .. }, .. }) => "grouped_outer",
}

/// Rows of a packed axis that share an owner, in every case that has one.
pub const TILE: u64 = 2;

/// A graph around one op.
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// The graph.
    pub graph: Graph,
    /// The op it is about.
    pub op: OpId,
}

/// Builds one case.
struct Maker<'a> {
    b: Builder,
    size: &'a dyn Fn(&str) -> u64,
}

impl Maker<'_> {
    fn axes(&self, names: &str) -> Vec<Axis> {
        names.split_whitespace().map(|n| Axis::new(n, (self.size)(n))).collect()
    }

    fn ty(&self, dtype: DType, names: &str) -> Type {
        Type::new(dtype, self.axes(names))
    }

    /// A floating source.
    fn x(&mut self, path: &str, names: &str) -> ValueId {
        let ty = self.ty(DType::F32, names);
        self.of(path, ty)
    }

    fn of(&mut self, path: &str, ty: Type) -> ValueId {
        match ty.dtype {
            DType::F32 | DType::F64 | DType::Bf16 => {
                let init = Init::Constant(0.0);
                self.b.one(Op::Param { path: path.into(), init }, &[], Some(ty), path)
            }
            DType::I32 | DType::I64 | DType::Bool => self.b.input(path, ty, 0),
        }
    }

    /// Ids below a bound.
    fn ids(&mut self, path: &str, names: &str, bound: u64) -> ValueId {
        let ty = self.ty(DType::I32, names);
        self.b.input(path, ty, bound)
    }
}

/// Every case. `size` gives the size of an axis by its name.
pub fn gallery(size: &dyn Fn(&str) -> u64) -> Vec<Case> {
    made(size, |_| true)
}

/// The case of this number in [`gallery`].
pub fn case(number: usize, size: &dyn Fn(&str) -> u64) -> Case {
    made(size, |n| n == number).remove(0)
}

fn made(size: &dyn Fn(&str) -> u64, wanted: impl Fn(usize) -> bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut number = 0;
    let mut case = |name: &'static str, make: &dyn Fn(&mut Maker) -> Vec<ValueId>| {
        number += 1;
        if !wanted(number - 1) {
            return;
        }
        let mut m = Maker { b: Builder::new("m"), size };
        let results = make(&mut m);
        let definitions = m.b.graph.definitions(m.b.graph.body);
        let op = definitions[&results[0]];
        for (i, value) in results.iter().enumerate() {
            m.b.output(Output::Report(format!("y{i}").into()), *value);
        }
        cases.push(Case { name, graph: m.b.finish(), op });
    };
    sources(&mut case);
    elementwise(&mut case);
    movement(&mut case);
    sums(&mut case);
    normalisations(&mut case);
    attentions(&mut case);
    grouped(&mut case);
    bespoke(&mut case);
    regions(&mut case);
    cases
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &dyn Fn(&mut Maker) -> Vec<ValueId>);

fn sources(case: Add) {
    case("input", &|m| vec![m.ids("ids", "a b", 5)]);
    case("param", &|m| vec![m.x("w", "a b")]);
    case("state", &|m| {
        m.x("w", "a b");
        let ty = m.ty(DType::F32, "a b");
        vec![m.b.one(Op::State { param: "w".into(), kind: "m".into() }, &[], Some(ty), "m")]
    });
    case("scalar", &|m| vec![m.b.one(Op::Scalar { key: "lr".into(), default: 2.0 }, &[], None, "lr")]);
    case("const", &|m| vec![m.b.constant(DType::F32, 3.0)]);
    case("index", &|m| {
        let n = (m.size)("a");
        vec![m.b.index(&"a".into(), n)]
    });
}

fn elementwise(case: Add) {
    case("negation", &|m| {
        let x = m.x("x", "a b c");
        vec![m.b.unary(UnaryOp::Neg, x)]
    });
    case("exponential", &|m| {
        let x = m.x("x", "a b c");
        vec![m.b.unary(UnaryOp::Exp, x)]
    });
    for (name, op) in [
        ("sum of two", BinaryOp::Add),
        ("difference", BinaryOp::Sub),
        ("product of two", BinaryOp::Mul),
        ("quotient", BinaryOp::Div),
        ("larger of two", BinaryOp::Max),
        ("smaller of two", BinaryOp::Min),
    ] {
        case(name, &move |m| {
            let (x, y) = (m.x("x", "a b"), m.x("y", "b c"));
            vec![m.b.binary_union(op, x, y)]
        });
        case(name, &move |m| {
            let (x, y) = (m.x("x", "a b"), m.x("y", "a b"));
            vec![m.b.binary(op, x, y)]
        });
    }
    case("remainder", &|m| {
        let (x, y) = (m.ids("x", "a b", 9), m.ids("y", "a", 5));
        vec![m.b.binary(BinaryOp::Rem, x, y)]
    });
    case("comparison", &|m| {
        let (x, y) = (m.x("x", "a b"), m.x("y", "b"));
        vec![m.b.compare(CompareOp::Lt, x, y)]
    });
    case("select", &|m| {
        let ty = m.ty(DType::Bool, "a");
        let (c, x, y) = (m.b.input("c", ty, 0), m.x("x", "a b"), m.x("y", "b c"));
        vec![m.b.select(c, x, y)]
    });
    case("cast to more", &|m| {
        let x = m.x("x", "a b");
        vec![m.b.cast(x, DType::F64)]
    });
    case("cast to less", &|m| {
        let x = m.x("x", "a b");
        vec![m.b.cast(x, DType::Bf16)]
    });
    case("cast to integers", &|m| {
        let x = m.x("x", "a b");
        vec![m.b.cast(x, DType::I32)]
    });
    case("constrain", &|m| {
        let x = m.x("x", "a b");
        vec![m.b.one(Op::Mesh(MeshOp::Constrain { split: BTreeMap::new() }), &[x], None, "y")]
    });
}

fn movement(case: Add) {
    case("broadcast", &|m| {
        let (x, ty) = (m.x("x", "a b"), m.ty(DType::F32, "b c a"));
        vec![m.b.broadcast(x, &ty)]
    });
    case("rename", &|m| {
        let x = m.x("x", "a b c");
        vec![m.b.rename(x, &[("a".into(), "b".into()), ("b".into(), "z".into())])]
    });
    case("transfer", &|m| {
        let x = m.x("x", "a b");
        vec![m.b.one(Op::Transfer { to: Space::Device }, &[x], None, "y")]
    });
    case("slice", &|m| {
        let x = m.x("x", "a b");
        let part = Axis::new("part", m.b.ty(x).axes[0].size.div_ceil(2));
        let ty = Type::new(DType::F32, vec![part, m.axes("b")[0].clone()]);
        vec![m.b.one(Op::Slice { from: "a".into(), to: "part".into(), at: 0 }, &[x], Some(ty), "y")]
    });
    case("slice of all", &|m| {
        let (x, mut ty) = (m.x("x", "a b"), m.ty(DType::F32, "b a"));
        ty.axes[1].name = "all".into();
        vec![m.b.one(Op::Slice { from: "a".into(), to: "all".into(), at: 0 }, &[x], Some(ty), "y")]
    });
    case("concat", &|m| {
        let (x, y, z) = (m.x("x", "a b"), m.x("y", "b c"), m.x("z", "b a"));
        let parts = vec!["a".into(), "c".into(), "a".into()];
        vec![m.b.one(Op::Concat { parts, axis: "c".into() }, &[x, y, z], None, "y")]
    });
}

fn sums(case: Add) {
    for (name, op) in [("sum", ReduceOp::Sum), ("maximum", ReduceOp::Max), ("minimum", ReduceOp::Min)] {
        case(name, &move |m| {
            let x = m.x("x", "a b c");
            vec![m.b.reduce(op, x, &["a".into(), "c".into()])]
        });
    }
    case("contraction", &|m| {
        let (x, y) = (m.x("x", "a b c"), m.x("y", "c b d"));
        vec![m.b.dot(x, y, &["c".into()])]
    });
    case("inner product", &|m| {
        let (x, y) = (m.x("x", "a b"), m.x("y", "b a"));
        vec![m.b.dot(x, y, &["a".into(), "b".into()])]
    });
    case("gather", &|m| {
        let bound = (m.size)("v") + 2;
        let (table, ids) = (m.x("table", "v b c"), m.ids("ids", "a b", bound));
        let ty = m.ty(DType::F32, "a b c");
        vec![m.b.one(Op::Gather { axis: "v".into() }, &[table, ids], Some(ty), "y")]
    });
    case("scatter", &|m| {
        let bound = (m.size)("v") + 2;
        let (updates, ids) = (m.x("updates", "a b c"), m.ids("ids", "a b", bound));
        let ty = m.ty(DType::F32, "v b c");
        vec![m.b.one(Op::ScatterAdd { axis: "v".into() }, &[updates, ids], Some(ty), "y")]
    });
    case("running sum", &|m| {
        let x = m.x("x", "a b");
        vec![m.b.cumsum(x, &"b".into(), true, true)]
    });
    case("quarter turn", &|m| {
        let mut ty = m.ty(DType::F32, "a b");
        ty.axes[1].size *= 2;
        let x = m.of("x", ty);
        let op = Op::RotatePairs { axis: "b".into(), pairs: Pairs::Half };
        vec![m.b.one(op, &[x], None, "y")]
    });
}

fn normalisations(case: Add) {
    case("softmax", &|m| {
        let x = m.x("x", "a b c");
        vec![m.b.softmax(x, &"b".into()).unwrap()]
    });
    case("rms_norm", &|m| {
        let (x, w) = (m.x("x", "a b c"), m.x("w", "b c"));
        let (y, rstd) = m.b.rms_norm(x, w, &"b".into(), 1.0).unwrap();
        vec![y, rstd]
    });
    case("layer_norm", &|m| {
        let (x, w, bias) = (m.x("x", "a b c"), m.x("w", "b"), m.x("bias", "a b"));
        let (y, mean, rstd) = m.b.layer_norm(x, w, bias, &"b".into(), 1.0).unwrap();
        vec![y, mean, rstd]
    });
    case("rope", &|m| {
        let mut ty = m.ty(DType::F32, "a s d");
        ty.axes[2].size *= 2;
        let (x, at) = (m.of("x", ty), m.ids("at", "a s", 9));
        vec![m.b.rope(x, at, &"d".into(), 100.0, Pairs::Interleaved).unwrap()]
    });
    case("cross_entropy", &|m| {
        let bound = (m.size)("v");
        let (logits, targets) = (m.x("logits", "a s v"), m.ids("targets", "a s", bound));
        let (loss, lse) = m.b.cross_entropy(logits, targets, &"v".into()).unwrap();
        vec![loss, lse]
    });
}

/// A score region of this many extras that gives 0, an exact number under the exponential, and then the products of its
/// dot product with each extra as slopes: any function would do for the rules.
fn score(b: &mut Builder, extras: usize, slopes: bool) -> RegionId {
    let mut args: Vec<(Name, Type)> = vec![
        ("s".into(), Type::scalar(DType::F32)),
        ("i".into(), Type::scalar(DType::I32)),
        ("j".into(), Type::scalar(DType::I32)),
    ];
    args.extend((0..extras).map(|_| (Name::from("extra"), Type::scalar(DType::F32))));
    let (_, args) = b.open(&args);
    let zero = b.scale(args[0], 0.0);
    let later = b.compare(CompareOp::Gt, args[2], args[1]);
    let masked = b.constant(DType::F32, f64::NEG_INFINITY);
    let score = b.select(later, masked, zero);
    let mut results = vec![score];
    if slopes {
        results.push(args[0]);
        results.extend(&args[3..]);
    }
    b.close(results)
}

/// Axes of v that queries lack, with the contracted axis's name, and with a name of its own.
const OF_V: [(&str, &str); 2] = [("over", "value"), ("over", "over")];

fn attentions(case: Add) {
    for (over, value) in OF_V {
        case("attention", &move |m| {
            let q = m.x("q", &format!("batch kv query group {over}"));
            let k = m.x("k", &format!("batch key kv {over}"));
            let v = m.x("v", &format!("batch key kv {value}"));
            let extra = m.x("extra", "group key");
            let score = score(&mut m.b, 1, false);
            let parts = AttentionParts {
                query: "query".into(),
                key: "key".into(),
                over: vec![over.into()],
                bound: Bound::Full,
                score,
            };
            let (o, lse) = m.b.attention(q, k, v, &[extra], parts).unwrap();
            vec![o, lse]
        });
        case("attention_grad", &move |m| {
            let q = m.x("q", &format!("batch kv query group {over}"));
            let k = m.x("k", &format!("batch key kv {over}"));
            let v = m.x("v", &format!("batch key kv {value}"));
            let (whole, rows) = (m.x("whole", "group query key"), m.x("rows", "kv query"));
            let o = m.x("o", &format!("batch kv query group {value}"));
            let (lse, d_o) =
                (m.x("lse", "batch kv query group"), m.x("do", &format!("batch kv query group {value}")));
            let score = score(&mut m.b, 2, true);
            let learned = vec![0, 1];
            let a = Attention {
                query: "query".into(),
                key: "key".into(),
                over: vec![over.into()],
                bound: Bound::Full,
                learned,
                score,
            };
            crate::autodiff::attention::attention_grad(&mut m.b, &[q, k, v, whole, rows, o, lse, d_o], a)
        });
    }
}

fn grouped(case: Add) {
    let packing = || Packing { row: "row".into(), tile: TILE };
    let rows = |m: &Maker, names: &str, dtype: DType| {
        let mut ty = m.ty(dtype, names);
        for axis in ty.axes.iter_mut().filter(|a| a.name.as_str() == "row") {
            axis.size *= TILE;
        }
        ty
    };
    case("grouped_dot", &move |m| {
        let x = rows(m, "batch row d", DType::F32);
        let owner = rows(m, "batch row", DType::I32);
        let (x, w, owner) = (m.of("x", x), m.x("w", "e d f"), m.b.input("owner", owner, 4));
        vec![m.b.grouped_dot(x, w, owner, &"e".into(), &["d".into()], &packing()).unwrap()]
    });
    case("grouped_outer", &move |m| {
        let (x, y) = (rows(m, "batch row d", DType::F32), rows(m, "batch row f", DType::F32));
        let owner = rows(m, "batch row", DType::I32);
        let (x, y, owner) = (m.of("x", x), m.of("y", y), m.b.input("owner", owner, 4));
        let group = m.axes("e")[0].clone();
        vec![m.b.grouped_outer(x, y, owner, &group, &packing()).unwrap()]
    });
}

fn bespoke(case: Add) {
    case("loss_head", &|m| {
        let bound = (m.size)("v");
        let (x, w, targets) = (m.x("x", "a s d"), m.x("w", "d v"), m.ids("targets", "a s", bound));
        let head = LossHead { over: vec!["d".into()], vocab: "v".into(), chunks: Vec::new() };
        vec![m.b.loss_head(x, w, targets, None, head).unwrap()]
    });
    case("custom", &|m| {
        let x = m.x("x", "a b");
        let axes: Vec<Name> = m.b.ty(x).names();
        let argument = |name: &str| Argument { name: name.into(), axes: axes.clone() };
        let custom = Custom {
            file: "k.mlir".into(),
            source: "func.func @forward(%x: memref<${a}x${b}xf32>, %out: memref<${a}x${b}xf32>) {}".into(),
            function: "forward".into(),
            arguments: vec![argument("x"), argument("out")],
        };
        let kind = CompositeKind::Custom(custom);
        m.b.composite(kind, &[x], &["x"], "y", |b, args| vec![b.unary(UnaryOp::Neg, args[0])])
    });
}

fn regions(case: Add) {
    case("loop", &|m| {
        let (x, w) = (m.x("x", "a b"), m.x("w", "layer b"));
        let trip = (m.size)("layer");
        let types = [m.ty(DType::F32, "a b"), m.ty(DType::F32, "b")];
        let args = [
            ("i".into(), Type::scalar(DType::I32)),
            ("x".into(), types[0].clone()),
            ("w".into(), types[1].clone()),
        ];
        let (_, args) = m.b.open(&args);
        let y = m.b.mul(args[1], args[2]);
        let body = m.b.close(vec![y]);
        let l = Loop {
            axis: "layer".into(),
            trip,
            block: None,
            reverse: false,
            microbatches: false,
            carries: 1,
            stacked: 1,
            stacked_outs: 0,
            body,
        };
        m.b.repeat(l, &[x, w], "y")
    });
    case("update", &|m| {
        let (w, g) = (m.x("w", "a b"), m.x("g", "a b"));
        let ty = m.ty(DType::F32, "a b");
        let (_, args) = m.b.open(&[("w".into(), ty.clone()), ("g".into(), ty)]);
        let new = m.b.sub(args[0], args[1]);
        let body = m.b.close(vec![new]);
        let update = Update { param: "w".into(), states: Vec::new(), body };
        m.b.op(Op::Update(update), &[w, g], None, "new")
    });
    case("reshard", &|m| {
        let x = m.x("x", "a b");
        let op = MeshOp::Reshard { cause: "".into(), wire: None, may_replicate: false };
        vec![m.b.one(Op::Mesh(op), &[x], None, "y")]
    });
}
