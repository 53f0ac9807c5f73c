//! The shape of the inner loop of a matrix product: registers must suffice.

use crate::abi::DType;
use crate::kir::{Access, Builder, Elem, Kernel, Type};
use crate::llvm::{KernelCompiler, Stage};
use crate::target::{Target, X86_64_V3, X86_64_V4};

/// `c[rows, vectors·lanes] += a[k, rows] · b[k, vectors·lanes]` on packed operands, `k` = 256.
fn micro_kernel(rows: u64, vectors: u64, lanes: u32) -> Kernel {
    let (k, width) = (256, vectors * lanes as u64);
    let mut b = Builder::new(1, 0);
    let a = b.buffer("a", DType::F32, k * rows, Access::Read);
    let packed = b.buffer("b", DType::F32, k * width, Access::Read);
    let c = b.buffer("c", DType::F32, rows * width, Access::ReadWrite);
    let (zero, end) = (b.index(0), b.index(k));
    let at = |b: &mut Builder, r: u64, v: u64| b.index(r * width + v * lanes as u64);
    let mut start = Vec::new();
    for r in 0..rows {
        for v in 0..vectors {
            let index = at(&mut b, r, v);
            start.push(b.load(c, index, lanes));
        }
    }
    let sums = b.for_carried(zero, end, 1, &start, |b, i, sums| {
        let mut next = sums.to_vec();
        let b_base = b.mul_const(i, width as i64);
        let a_base = b.mul_const(i, rows as i64);
        let columns: Vec<_> = (0..vectors)
            .map(|v| {
                let index = b.add_const(b_base, (v * lanes as u64) as i64);
                b.load(packed, index, lanes)
            })
            .collect();
        for r in 0..rows {
            let index = b.add_const(a_base, r as i64);
            let scalar = b.load(a, index, 1);
            let row = b.splat(scalar, lanes);
            for v in 0..vectors {
                let i = (r * vectors + v) as usize;
                next[i] = b.fma(row, columns[v as usize], sums[i]);
            }
        }
        next
    });
    for (i, sum) in sums.into_iter().enumerate() {
        let index = at(&mut b, i as u64 / vectors, i as u64 % vectors);
        b.store(c, index, sum);
    }
    assert_eq!(b.ty(start[0]), Type::vector(Elem::F32, lanes));
    b.finish()
}

fn assembly(kernel: &Kernel, target: &Target) -> String {
    String::from_utf8(KernelCompiler::new().compile(kernel, "micro", target, Stage::Asm).unwrap()).unwrap()
}

/// No vector register goes to the stack, and every multiply-add is one instruction.
fn check(kernel: &Kernel, target: &Target, register: &str) {
    let text = assembly(kernel, target);
    let spills: Vec<&str> = text
        .lines()
        .filter(|l| {
            l.contains("mov") && l.contains(register) && (l.contains("(%rsp)") || l.contains("(%rbp)"))
        })
        .collect();
    assert!(spills.is_empty(), "{spills:?} in\n{text}");
    assert!(text.contains("vfmadd231ps"), "{text}");
    assert!(!text.contains("vmulps") && !text.contains("vaddps"), "{text}");
    assert!(!text.contains("call"), "{text}");
}

#[test]
fn micro_kernel_of_12_by_32_stays_in_avx512_registers() {
    check(&micro_kernel(12, 2, 16), &X86_64_V4, "%zmm");
}

#[test]
fn micro_kernel_of_6_by_16_stays_in_avx2_registers() {
    check(&micro_kernel(6, 2, 8), &X86_64_V3, "%ymm");
}
