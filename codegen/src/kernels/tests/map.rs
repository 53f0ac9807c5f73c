use super::*;
use crate::program::LoopsSpec;
use crate::program::region::CompareOp;

#[test]
fn map_agrees_with_the_evaluator_on_random_spaces() {
    let mut random = Random(1);
    for case in 0..60 {
        let n_dims = random.below(4) as usize;
        let dims: Vec<u64> = (0..n_dims).map(|_| random.pick(&[1, 2, 3, 5, 8, 16, 17, 33])).collect();
        let n_inputs = 1 + random.below(3) as u32;
        let mut inputs = Vec::new();
        let mut r = RegionBuilder::default();
        let mut values = Vec::new();
        for i in 0..n_inputs {
            let broadcast: Vec<usize> = (0..n_dims).filter(|_| random.below(4) == 0).collect();
            let dtype = random.pick(&[DType::F32, DType::F32, DType::Bf16]);
            inputs.push(layout(&mut random, i, dtype, &dims, &broadcast));
            values.push(r.input(i));
        }
        if n_dims > 0 && random.below(2) == 0 {
            let index = r.op(ScalarOp::Index(random.below(n_dims as u64) as u32));
            values.push(r.op(ScalarOp::Cast(DType::F32, index)));
        }
        let n_ops = random.below(6) as usize;
        let a = random_chain(&mut r, &mut random, &values, n_ops);
        let b = random_chain(&mut r, &mut random, &values, 2);
        let out_dtype = random.pick(&[DType::F32, DType::Bf16]);
        let outputs = vec![
            layout(&mut random, n_inputs, DType::F32, &dims, &[]),
            layout(&mut random, n_inputs + 1, out_dtype, &dims, &[]),
        ];
        let spec = LoopsSpec { dims, reduced: 0, inputs, n_scalars: 0, region: r.results(&[a, b]), outputs };
        check(&KernelSpec::Map(spec), &[], &|_| Fill::Random, case);
    }
}

#[test]
fn map_splits_long_spaces_into_tiles() {
    let dims = vec![3, 20_011];
    let mut r = RegionBuilder::default();
    let x = r.input(0);
    let y = r.binary(BinaryOp::Mul, x, x);
    let operand = |buffer| Operand { buffer, dtype: DType::F32, offset: 0, strides: vec![20_012, 1] };
    let spec = KernelSpec::Map(LoopsSpec {
        dims,
        reduced: 0,
        inputs: vec![operand(0)],
        n_scalars: 0,
        region: r.results(&[y]),
        outputs: vec![operand(1)],
    });
    assert_eq!(expand(&spec, &TARGETS[0]).tiles, 6);
    check(&spec, &[], &|_| Fill::Random, 7);
}

/// Learning rate with warm-up and cosine decay, in f64 from a step counter and an i64 scalar; one element.
#[test]
fn map_computes_schedules_in_f64() {
    let mut r = RegionBuilder::default();
    let step = r.input(0);
    let scalar = r.input(1);
    let warmup = r.op(ScalarOp::Cast(DType::F64, scalar));
    let ratio = r.binary(BinaryOp::Div, step, warmup);
    let one = r.op(ScalarOp::Const(DType::F64, 1.0));
    let rise = r.binary(BinaryOp::Min, ratio, one);
    let fall = r.unary(UnaryOp::Cos, ratio);
    let is_early = r.op(ScalarOp::Compare(CompareOp::Lt, step, warmup));
    let rate = r.op(ScalarOp::Select(is_early, rise, fall));
    let beta = r.op(ScalarOp::Const(DType::F64, 0.999));
    let power = r.binary(BinaryOp::Pow, beta, step);
    let correction = r.binary(BinaryOp::Sub, one, power);
    let single = r.op(ScalarOp::Cast(DType::F32, correction));
    let operand = |buffer, dtype| Operand { buffer, dtype, offset: 0, strides: vec![] };
    let spec = KernelSpec::Map(LoopsSpec {
        dims: vec![],
        reduced: 0,
        inputs: vec![operand(0, DType::F64)],
        n_scalars: 1,
        region: r.results(&[rate, single]),
        outputs: vec![operand(1, DType::F64), operand(2, DType::F32)],
    });
    assert_eq!(expand(&spec, &TARGETS[1]).tiles, 1);
    for seed in 0..4 {
        check(&spec, &[2 - seed as i64], &|_| Fill::Random, seed);
    }
}

#[test]
fn map_updates_in_place_and_reads_scalars_once() {
    // p -= lr·g, with lr one f64 in memory: the square root of it is taken once per call, not per element.
    let mut r = RegionBuilder::default();
    let (p, g, lr) = (r.input(0), r.input(1), r.input(2));
    let root = r.unary(UnaryOp::Abs, lr);
    let root = r.unary(UnaryOp::Sqrt, root);
    let lr = r.op(ScalarOp::Cast(DType::F32, root));
    let minus = r.unary(UnaryOp::Neg, lr);
    let next = r.op(ScalarOp::MulAdd(minus, g, p));
    let operand = |buffer| Operand { buffer, dtype: DType::F32, offset: 0, strides: vec![1] };
    let spec = KernelSpec::Map(LoopsSpec {
        dims: vec![1003],
        reduced: 0,
        inputs: vec![
            operand(0),
            operand(1),
            Operand { buffer: 2, dtype: DType::F64, offset: 0, strides: vec![0] },
        ],
        n_scalars: 0,
        region: r.results(&[next]),
        outputs: vec![operand(0)],
    });
    check(&spec, &[], &|_| Fill::Random, 3);
    let text = expand(&spec, &TARGETS[1]).to_string();
    let (head, body) = text.split_once("for ").unwrap();
    assert!(head.contains("sqrt") && !body.contains("sqrt"), "{text}");
}

#[test]
fn map_handles_integers_and_truth_values() {
    let mut r = RegionBuilder::default();
    let (a, b) = (r.input(0), r.input(1));
    let quotient = r.binary(BinaryOp::Div, a, b);
    let remainder = r.binary(BinaryOp::Rem, a, b);
    let is_less = r.op(ScalarOp::Compare(CompareOp::Lt, a, b));
    let flag = r.input(2);
    let both = r.binary(BinaryOp::And, is_less, flag);
    let neither = r.unary(UnaryOp::Not, both);
    let operand = |buffer, dtype| Operand { buffer, dtype, offset: 0, strides: vec![1] };
    let spec = KernelSpec::Map(LoopsSpec {
        dims: vec![77],
        reduced: 0,
        inputs: vec![operand(0, DType::I32), operand(1, DType::I32), operand(2, DType::Bool)],
        n_scalars: 0,
        region: r.results(&[quotient, remainder, neither]),
        outputs: vec![operand(3, DType::I32), operand(4, DType::I32), operand(5, DType::Bool)],
    });
    check(&spec, &[], &|_| Fill::Random, 3);
}

/// A rotation of neighbouring pairs, in place: even and odd elements are read and written as vectors.
#[test]
fn map_rotates_pairs() {
    for (case, half) in [1, 3, 8, 16, 24, 37].into_iter().enumerate() {
        let mut r = RegionBuilder::default();
        let (x, y, c) = (r.input(0), r.input(1), r.input(2));
        let (xc, yc) = (r.binary(BinaryOp::Mul, x, c), r.binary(BinaryOp::Mul, y, c));
        let (even, odd) = (r.binary(BinaryOp::Sub, xc, y), r.binary(BinaryOp::Add, yc, x));
        let pair =
            |offset| Operand { buffer: 0, dtype: DType::F32, offset, strides: vec![6 * half, 2 * half, 2] };
        let table = Operand { buffer: 1, dtype: DType::F32, offset: 0, strides: vec![half, 0, 1] };
        let spec = KernelSpec::Map(LoopsSpec {
            dims: vec![5, 3, half],
            reduced: 0,
            inputs: vec![pair(0), pair(1), table],
            n_scalars: 0,
            region: r.results(&[odd, even]),
            outputs: vec![pair(1), pair(0)],
        });
        check(&spec, &[], &|_| Fill::Random, case as u64);
        if half >= 8 {
            let text = expand(&spec, &TARGETS[0]).to_string();
            assert!(text.contains("shuffle") && !text.contains("stride"), "{text}");
        }
    }
}
