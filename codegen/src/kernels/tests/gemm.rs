use super::*;
use crate::program::GemmSpec;

/// A product with random layouts; `extras` of them feed the epilogue.
fn random_gemm(random: &mut Random, batch: &[u64], m: u64, n: u64, k: u64, extras: u32) -> GemmSpec {
    let sizes = |x, y| [batch, &[x, y]].concat();
    let dtype = if random.below(6) == 0 { DType::F64 } else { DType::F32 };
    let narrow = |random: &mut Random| {
        if dtype == DType::F32 && random.below(5) == 0 { DType::Bf16 } else { dtype }
    };
    let (a_type, b_type, c_type) = (narrow(random), narrow(random), narrow(random));
    let broadcast: Vec<usize> = (0..batch.len()).filter(|_| random.below(3) == 0).collect();
    let a = layout(random, 0, a_type, &sizes(m, k), &[]);
    let b = layout(random, 1, b_type, &sizes(k, n), &broadcast);
    let c = layout(random, 2, c_type, &sizes(m, n), &[]);
    let mut r = RegionBuilder::default();
    let mut value = r.input(0);
    let mut operands = Vec::new();
    for i in 0..extras {
        let x = r.input(1 + i);
        value = match random.below(3) {
            0 => r.binary(BinaryOp::Add, value, x),
            1 => r.binary(BinaryOp::Mul, value, x),
            _ => r.binary(BinaryOp::Max, value, x),
        };
        // Everywhere, along rows only, or along columns only.
        let which = random.below(3) as usize;
        let broadcast = if which == 0 { vec![] } else { vec![batch.len() + which - 1] };
        operands.push(layout(random, 3 + i, dtype, &sizes(m, n), &broadcast));
    }
    if extras > 0 && random.below(2) == 0 {
        let index = r.op(ScalarOp::Index(random.below(batch.len() as u64 + 2) as u32));
        let index = r.op(ScalarOp::Cast(dtype, index));
        value = r.binary(BinaryOp::Sub, value, index);
    }
    let epilogue = (extras > 0).then(|| r.results(&[value]));
    let accumulate = random.below(3) == 0;
    GemmSpec { batch: batch.to_vec(), m, n, k, a, b, c, accumulate, epilogue, extras: operands }
}

#[test]
fn gemm_agrees_with_the_evaluator_on_random_products() {
    let mut random = Random(3);
    let sizes = [1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 24, 31, 32, 33, 40, 49];
    for case in 0..60 {
        let (m, n) = (random.pick(&sizes), random.pick(&sizes));
        let k = random.pick(&[1, 2, 7, 8, 15, 16, 17, 33]);
        let batch = random.pick(&[&[][..], &[], &[3], &[2, 2]]);
        let extras = random.below(3) as u32;
        let spec = random_gemm(&mut random, batch, m, n, k, extras);
        check(&KernelSpec::Gemm(spec), &[], &|_| Fill::Random, case);
    }
}

#[test]
fn gemm_adds_blocks_along_k_exactly() {
    // Whole numbers: any order of additions gives the same, so the comparison is exact at any bound.
    let mut random = Random(4);
    for case in 0..8 {
        let extras = random.below(2) as u32;
        let spec = random_gemm(&mut random, &[], 14, 35, 800 + 13 * case, extras);
        check(&KernelSpec::Gemm(spec), &[], &|_| Fill::Whole, case);
    }
}

#[test]
fn gemm_splits_large_results_into_tiles() {
    let mut random = Random(5);
    let spec = random_gemm(&mut random, &[], 410, 420, 3, 1);
    let spec = KernelSpec::Gemm(spec);
    assert!(TARGETS.iter().all(|t| expand(&spec, t).tiles >= 4));
    check(&spec, &[], &|_| Fill::Whole, 1);
}
