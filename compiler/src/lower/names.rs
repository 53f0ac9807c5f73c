//! Names of kernels: kind, sizes, element type. Symbol-safe, and the same for the same spec.

use crate::graph::shape::dtype_name;
use mlc_codegen::program::{AttentionGradPart, KernelSpec, Operand};

fn sizes(dims: &[u64]) -> String {
    if dims.is_empty() {
        return "scalar".into();
    }
    dims.iter().map(u64::to_string).collect::<Vec<_>>().join("x")
}

fn dtype(operands: &[Operand]) -> &'static str {
    operands.first().map_or("f32", |o| dtype_name(o.dtype))
}

/// A readable name; distinct specs may share one.
pub fn kernel_name(spec: &KernelSpec) -> String {
    match spec {
        KernelSpec::Map(s) => format!("map_{}_{}", sizes(&s.dims), dtype(&s.outputs)),
        KernelSpec::Rows(s) => {
            let kept = s.dims.len() - s.reduced;
            format!("rows_{}_by_{}_{}", sizes(&s.dims[..kept]), sizes(&s.dims[kept..]), dtype(&s.outputs))
        }
        KernelSpec::Gemm(s) => {
            let batch = if s.batch.is_empty() { String::new() } else { format!("{}_", sizes(&s.batch)) };
            let result =
                if s.a.dtype == s.c.dtype { String::new() } else { format!("_{}", dtype_name(s.c.dtype)) };
            format!("gemm_{batch}{}x{}x{}_{}{result}", s.m, s.n, s.k, dtype_name(s.a.dtype))
        }
        KernelSpec::Attention(s) => format!("attention_{}", attention(&s.shape, &s.q)),
        KernelSpec::AttentionGrad(s) => {
            let part = match s.part {
                AttentionGradPart::Query => "dq".to_string(),
                AttentionGradPart::KeyValue => "dkv".to_string(),
                AttentionGradPart::Extra(i) => format!("dextra{i}"),
            };
            format!("attention_{part}_{}", attention(&s.shape, &s.q))
        }
        KernelSpec::Gather(s) => format!("gather_{}_{}", sizes(&s.dims), dtype_name(s.out.dtype)),
        KernelSpec::Custom(s) => {
            let stem = s.file.rsplit('/').next().unwrap_or("").split('.').next().unwrap_or("");
            let word: String =
                stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            format!("custom_{word}_{}", s.function)
        }
        KernelSpec::Scatter(s) => format!("scatter_{}_{}", sizes(&s.dims), dtype_name(s.out.dtype)),
        KernelSpec::Scan(s) => format!("scan_{}_{}", sizes(&s.dims), dtype_name(s.out.dtype)),
    }
}

fn attention(shape: &mlc_codegen::program::AttentionShape, q: &Operand) -> String {
    let dims = [&shape.batch[..], &[shape.group, shape.sq, shape.sk, shape.hd]].concat();
    format!("{}_{}", sizes(&dims), dtype_name(q.dtype))
}
