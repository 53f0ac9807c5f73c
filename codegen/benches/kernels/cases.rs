//! The kernels measured: shapes of the models in `specs/` and of large square products.

use mlc_codegen::abi::DType;
use mlc_codegen::kernels::expand;
use mlc_codegen::kir::{Access, Builder, Elem, Kernel, Type};
use mlc_codegen::program::{
    AttentionGradPart, AttentionGradSpec, AttentionShape, AttentionSpec, BinaryOp, Bound, CompareOp,
    GemmSpec, KernelSpec, LoopsSpec, Operand, ReduceOp, Region, ScalarId, ScalarOp, UnaryOp,
};
use mlc_codegen::target::Target;

/// A kernel and what it does: floating point operations and bytes it must move.
pub struct Case {
    /// What is measured.
    pub name: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Operations of one run.
    pub flops: f64,
    /// Bytes of one run.
    pub bytes: f64,
}

/// 24 (or 12) independent chains of multiply-adds: what the vector units can do.
pub fn fma_peak(target: &Target) -> Case {
    let (n, steps) = (u64::from(target.vector_registers) * 3 / 4, 1_000_000);
    let lanes = target.f32_lanes();
    let mut b = Builder::new(1, 0);
    let y = b.buffer("y", DType::F32, n * u64::from(lanes), Access::ReadWrite);
    let ty = Type::vector(Elem::F32, lanes);
    let x = b.load(y, b.tile_begin(), lanes);
    let init: Vec<_> = (0..n).map(|i| b.const_float(ty, i as f64)).collect();
    let (lo, hi) = (b.index(0), b.index(steps));
    let sums = b.for_carried(lo, hi, 1, &init, |b, _, sums| sums.iter().map(|&s| b.fma(x, x, s)).collect());
    for (i, sum) in sums.into_iter().enumerate() {
        let at = b.index(i as u64 * u64::from(lanes));
        b.store(y, at, sum);
    }
    let flops = 2.0 * (n * steps * u64::from(lanes)) as f64;
    Case { name: "fma peak".to_string(), kernel: b.finish(), flops, bytes: 0.0 }
}

fn operand(buffer: u32, strides: &[u64]) -> Operand {
    Operand { buffer, dtype: DType::F32, offset: 0, strides: strides.to_vec() }
}

/// All of them.
pub fn cases(target: &Target) -> Vec<Case> {
    let mut all = Vec::new();
    for (m, n, k) in
        [(1024, 1024, 1024), (2048, 768, 288), (2048, 288, 768), (2048, 288, 288), (2048, 32_000, 288)]
    {
        all.push(gemm("forward", m, n, k, &[k, 1], &[n, 1], None, target));
    }
    for (m, n, k) in [(1024, 1024, 1024), (2048, 768, 288), (2048, 32_000, 288)] {
        all.push(gemm("transposed weight", m, n, k, &[k, 1], &[1, k], None, target));
    }
    for (m, n, k) in [(1024, 1024, 1024), (288, 768, 2048), (768, 288, 2048), (288, 32_000, 2048)] {
        all.push(gemm("weight gradient", m, n, k, &[1, m], &[n, 1], None, target));
    }
    // A loss head over 128 tokens: logits, the gradient of the tokens, and that of the vocabulary, which accumulates.
    all.push(gemm("head logits", 128, 32_000, 288, &[288, 1], &[1, 288], None, target));
    all.push(gemm("head tokens", 128, 288, 32_000, &[32_000, 1], &[288, 1], None, target));
    all.push(head_vocabulary(288, 32_000, 128, target));
    all.push(rotate_pairs(2048, 6, 24, target));
    all.push(gemm("forward with tanh", 2048, 768, 288, &[288, 1], &[768, 1], Some(tanh_region()), target));
    all.push(gemm("one row", 1, 32_000, 288, &[288, 1], &[1, 288], None, target));
    for (heads, s, hd) in [(48, 256, 48), (12, 1024, 64)] {
        all.push(attention(heads, s, hd, target));
        all.push(attention_grad(heads, s, hd, AttentionGradPart::Query, target));
        all.push(attention_grad(heads, s, hd, AttentionGradPart::KeyValue, target));
    }
    all.push(softmax(512, 32_000, target));
    all.push(softmax(8192, 256, target));
    all.push(norm(8192, 768, target));
    all.push(column_sum(4096, 768, target));
    all.push(adamw(8 << 20, target));
    all.push(gelu(4 << 20, target));
    all
}

fn finish(name: String, spec: KernelSpec, flops: f64, bytes: f64, target: &Target) -> Case {
    Case { name, kernel: expand(&spec, target), flops, bytes }
}

fn gemm(
    name: &str,
    m: u64,
    n: u64,
    k: u64,
    a: &[u64],
    b: &[u64],
    epilogue: Option<Region>,
    target: &Target,
) -> Case {
    let spec = GemmSpec {
        batch: vec![],
        m,
        n,
        k,
        a: operand(0, a),
        b: operand(1, b),
        c: operand(2, &[n, 1]),
        accumulate: false,
        epilogue,
        extras: vec![],
    };
    let bytes = 4 * (m * k + k * n + m * n);
    let name = format!("gemm {name} {m}x{n}x{k}");
    finish(name, KernelSpec::Gemm(spec), 2.0 * (m * n * k) as f64, bytes as f64, target)
}

fn head_vocabulary(m: u64, n: u64, k: u64, target: &Target) -> Case {
    let spec = GemmSpec {
        batch: vec![],
        m,
        n,
        k,
        a: operand(0, &[1, m]),
        b: operand(1, &[n, 1]),
        c: operand(2, &[1, m]),
        accumulate: true,
        epilogue: None,
        extras: vec![],
    };
    let bytes = 4 * (m * k + k * n + 2 * m * n);
    let name = format!("gemm head vocabulary {m}x{n}x{k}");
    finish(name, KernelSpec::Gemm(spec), 2.0 * (m * n * k) as f64, bytes as f64, target)
}

fn rotate_pairs(rows: u64, heads: u64, half: u64, target: &Target) -> Case {
    let ops = vec![
        ScalarOp::Input(0),
        ScalarOp::Input(1),
        ScalarOp::Input(2),
        ScalarOp::Input(3),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(1), ScalarId(3)),
        ScalarOp::Unary(UnaryOp::Neg, ScalarId(4)),
        ScalarOp::MulAdd(ScalarId(0), ScalarId(2), ScalarId(5)),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(1), ScalarId(2)),
        ScalarOp::MulAdd(ScalarId(0), ScalarId(3), ScalarId(7)),
    ];
    let pair = |offset| Operand { offset, ..operand(0, &[2 * half * heads, 2 * half, 2]) };
    let spec = LoopsSpec {
        dims: vec![rows, heads, half],
        reduced: 0,
        inputs: vec![pair(0), pair(1), operand(1, &[half, 0, 1]), operand(2, &[half, 0, 1])],
        n_scalars: 0,
        region: region(ops, &[6, 8]),
        outputs: vec![pair(0), pair(1)],
    };
    let bytes = (16 * rows * heads * half) as f64;
    finish(format!("rotate pairs {rows}x{heads}x{half}"), KernelSpec::Map(spec), 0.0, bytes, target)
}

fn region(ops: Vec<ScalarOp>, results: &[u32]) -> Region {
    Region { ops, results: results.iter().map(|&r| ScalarId(r)).collect() }
}

fn tanh_region() -> Region {
    region(vec![ScalarOp::Input(0), ScalarOp::Unary(UnaryOp::Tanh, ScalarId(0))], &[1])
}

/// A scaled causal score, and its derivative.
fn scores() -> (Region, Region) {
    let ops = vec![
        ScalarOp::Input(0),
        ScalarOp::Const(DType::F32, 0.125),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(0), ScalarId(1)),
        ScalarOp::Input(1),
        ScalarOp::Input(2),
        ScalarOp::Compare(CompareOp::Le, ScalarId(4), ScalarId(3)),
        ScalarOp::Const(DType::F32, f64::NEG_INFINITY),
        ScalarOp::Select(ScalarId(5), ScalarId(2), ScalarId(6)),
        ScalarOp::Const(DType::F32, 0.0),
        ScalarOp::Select(ScalarId(5), ScalarId(1), ScalarId(8)),
    ];
    (region(ops.clone(), &[7]), region(ops, &[9]))
}

fn shape(heads: u64, s: u64, hd: u64) -> AttentionShape {
    AttentionShape {
        batch: vec![heads],
        group: 1,
        sq: s,
        sk: s,
        hd,
        hv: hd,
        bound: Bound::Causal,
        score: scores().0,
        extras: vec![],
        has_bases: false,
    }
}

fn attention(heads: u64, s: u64, hd: u64, target: &Target) -> Case {
    let rows = [s * hd, 0, hd, 1];
    let spec = AttentionSpec {
        shape: shape(heads, s, hd),
        q: operand(0, &rows),
        k: operand(1, &[s * hd, hd, 1]),
        v: operand(2, &[s * hd, hd, 1]),
        o: operand(3, &rows),
        lse: operand(4, &[s, 0, 1]),
    };
    // Half of the scores exist; two products.
    let flops = 2.0 * (heads * s * s * hd) as f64;
    let bytes = (4 * 4 * heads * s * hd) as f64;
    finish(format!("attention forward {heads}x{s}x{hd}"), KernelSpec::Attention(spec), flops, bytes, target)
}

fn attention_grad(heads: u64, s: u64, hd: u64, part: AttentionGradPart, target: &Target) -> Case {
    let rows = [s * hd, 0, hd, 1];
    let keys = [s * hd, hd, 1];
    let (outputs, products, name) = match part {
        AttentionGradPart::Query => (vec![operand(6, &rows)], 3.0, "query"),
        AttentionGradPart::KeyValue => (vec![operand(6, &keys), operand(7, &keys)], 4.0, "key and value"),
        AttentionGradPart::Extra(_) => (vec![operand(6, &[0, 0, s, 1])], 2.0, "bias"),
    };
    let spec = AttentionGradSpec {
        shape: shape(heads, s, hd),
        part,
        slope: scores().1,
        q: operand(0, &rows),
        k: operand(1, &keys),
        v: operand(2, &keys),
        d_o: operand(3, &rows),
        lse: operand(4, &[s, 0, 1]),
        delta: operand(5, &[s, 0, 1]),
        outputs,
    };
    let flops = products * (heads * s * s * hd) as f64;
    let bytes = (4 * 5 * heads * s * hd) as f64;
    let name = format!("attention gradient, {name} {heads}x{s}x{hd}");
    finish(name, KernelSpec::AttentionGrad(spec), flops, bytes, target)
}

fn loops(
    dims: &[u64],
    reduced: usize,
    inputs: &[&[u64]],
    region: Region,
    outputs: &[(u32, &[u64])],
) -> LoopsSpec {
    LoopsSpec {
        dims: dims.to_vec(),
        reduced,
        inputs: inputs.iter().zip(0..).map(|(s, i)| operand(i, s)).collect(),
        n_scalars: 0,
        region,
        outputs: outputs.iter().map(|(buffer, s)| operand(*buffer, s)).collect(),
    }
}

fn softmax(rows: u64, n: u64, target: &Target) -> Case {
    let ops = vec![
        ScalarOp::Input(0),
        ScalarOp::Reduce(ReduceOp::Max, ScalarId(0)),
        ScalarOp::Binary(BinaryOp::Sub, ScalarId(0), ScalarId(1)),
        ScalarOp::Unary(UnaryOp::Exp, ScalarId(2)),
        ScalarOp::Reduce(ReduceOp::Sum, ScalarId(3)),
        ScalarOp::Binary(BinaryOp::Div, ScalarId(3), ScalarId(4)),
    ];
    let spec = loops(&[rows, n], 1, &[&[n, 1]], region(ops, &[5]), &[(1, &[n, 1])]);
    finish(format!("softmax {rows}x{n}"), KernelSpec::Rows(spec), 0.0, (8 * rows * n) as f64, target)
}

fn norm(rows: u64, n: u64, target: &Target) -> Case {
    let ops = vec![
        ScalarOp::Input(0),
        ScalarOp::Input(1),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(0), ScalarId(0)),
        ScalarOp::Reduce(ReduceOp::Sum, ScalarId(2)),
        ScalarOp::Const(DType::F32, 1.0 / n as f64),
        ScalarOp::Const(DType::F32, 1e-5),
        ScalarOp::MulAdd(ScalarId(3), ScalarId(4), ScalarId(5)),
        ScalarOp::Unary(UnaryOp::Rsqrt, ScalarId(6)),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(0), ScalarId(7)),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(8), ScalarId(1)),
    ];
    let spec = loops(&[rows, n], 1, &[&[n, 1], &[0, 1]], region(ops, &[9, 7]), &[(2, &[n, 1]), (3, &[1, 0])]);
    finish(format!("rms norm {rows}x{n}"), KernelSpec::Rows(spec), 0.0, (8 * rows * n) as f64, target)
}

fn column_sum(rows: u64, n: u64, target: &Target) -> Case {
    let ops = vec![ScalarOp::Input(0), ScalarOp::Reduce(ReduceOp::Sum, ScalarId(0))];
    let spec = loops(&[n, rows], 1, &[&[1, n]], region(ops, &[1]), &[(1, &[1, 0])]);
    finish(format!("column sum {rows}x{n}"), KernelSpec::Rows(spec), 0.0, (4 * rows * n) as f64, target)
}

/// p, m, v updated in place from g; lr and the bias corrections from one f64 step counter.
fn adamw(n: u64, target: &Target) -> Case {
    let c = |x| ScalarOp::Const(DType::F32, x);
    let ops = vec![
        ScalarOp::Input(0),
        ScalarOp::Input(1),
        ScalarOp::Input(2),
        ScalarOp::Input(3),
        c(0.9),
        c(0.1),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(1), ScalarId(5)),
        ScalarOp::MulAdd(ScalarId(2), ScalarId(4), ScalarId(6)),
        c(0.95),
        c(0.05),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(1), ScalarId(1)),
        ScalarOp::Binary(BinaryOp::Mul, ScalarId(10), ScalarId(9)),
        ScalarOp::MulAdd(ScalarId(3), ScalarId(8), ScalarId(11)),
        ScalarOp::Unary(UnaryOp::Abs, ScalarId(12)),
        ScalarOp::Unary(UnaryOp::Sqrt, ScalarId(13)),
        c(1e-8),
        ScalarOp::Binary(BinaryOp::Add, ScalarId(14), ScalarId(15)),
        ScalarOp::Binary(BinaryOp::Div, ScalarId(7), ScalarId(16)),
        c(-1e-3),
        ScalarOp::MulAdd(ScalarId(17), ScalarId(18), ScalarId(0)),
    ];
    let spec = loops(
        &[n],
        0,
        &[&[1], &[1], &[1], &[1]],
        region(ops, &[19, 7, 12]),
        &[(0, &[1]), (2, &[1]), (3, &[1])],
    );
    finish(format!("adamw {n}"), KernelSpec::Map(spec), 0.0, (28 * n) as f64, target)
}

fn gelu(n: u64, target: &Target) -> Case {
    let spec = loops(&[n], 0, &[&[1]], tanh_region(), &[(1, &[1])]);
    finish(format!("tanh {n}"), KernelSpec::Map(spec), 0.0, (8 * n) as f64, target)
}
