use super::*;
use crate::program::LoopsSpec;

/// A region over `n_inputs` f32 inputs with up to three chained reductions; gives (row-level, element-level) results.
fn random_region(random: &mut Random, n_inputs: u32, extra: Option<ScalarOp>) -> (Region, usize) {
    let mut r = RegionBuilder::default();
    let mut values: Vec<ScalarId> = (0..n_inputs).map(|i| r.input(i)).collect();
    if let Some(index) = extra {
        let index = r.op(index);
        let index = r.op(ScalarOp::Cast(DType::F32, index));
        let scale = r.constant(0.01);
        values.push(r.binary(BinaryOp::Mul, index, scale));
    }
    let mut rows = Vec::new();
    let n_values = values.len();
    for _ in 0..1 + random.below(3) {
        let n_ops = random.below(3) as usize;
        let x = random_chain(&mut r, random, &values, n_ops);
        let op = random.pick(&[ReduceOp::Sum, ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min]);
        let mut row = r.reduce(op, x);
        if op == ReduceOp::Sum {
            // Sums feed later ops as means of modest size.
            let scale = r.constant(1.0 / 64.0);
            row = r.binary(BinaryOp::Mul, row, scale);
        }
        rows.push(row);
        values.push(row);
    }
    let n_ops = random.below(3) as usize;
    let element = random_chain(&mut r, random, &values[..n_values], n_ops);
    let element = r.binary(BinaryOp::Sub, element, *rows.last().unwrap());
    rows.push(element);
    let n = rows.len();
    (r.results(&rows), n)
}

#[test]
fn rows_agree_with_the_evaluator_on_random_spaces() {
    let mut random = Random(2);
    for case in 0..80 {
        let kept = random.below(3) as usize;
        let reduced = 1 + random.below(2) as usize;
        let n_dims = kept + reduced;
        let mut dims: Vec<u64> = (0..n_dims).map(|_| random.pick(&[1, 2, 3, 5, 8, 16, 17, 33])).collect();
        if random.below(4) == 0 {
            dims[n_dims - 1] = random.pick(&[100, 257]);
        }
        let n_inputs = 1 + random.below(3) as u32;
        let index = (random.below(3) == 0).then(|| ScalarOp::Index(random.below(n_dims as u64) as u32));
        let (region, n_results) = random_region(&mut random, n_inputs, index);
        let mut inputs = Vec::new();
        for i in 0..n_inputs {
            let broadcast: Vec<usize> = (0..n_dims).filter(|_| i > 0 && random.below(4) == 0).collect();
            let dtype = random.pick(&[DType::F32, DType::F32, DType::Bf16]);
            inputs.push(layout(&mut random, i, dtype, &dims, &broadcast));
        }
        let all_reduced: Vec<usize> = (kept..n_dims).collect();
        let outputs = (0..n_results)
            .map(|i| {
                let broadcast = if i + 1 < n_results { &all_reduced[..] } else { &[] };
                layout(&mut random, n_inputs + i as u32, DType::F32, &dims, broadcast)
            })
            .collect();
        let spec = LoopsSpec { dims, reduced, inputs, n_scalars: 0, region, outputs };
        check(&KernelSpec::Rows(spec), &[], &|_| Fill::Random, case);
    }
}

fn sum_region() -> Region {
    let mut r = RegionBuilder::default();
    let x = r.input(0);
    let s = r.reduce(ReduceOp::Sum, x);
    r.results(&[s])
}

fn sum(dims: &[u64], reduced: usize, strides: &[u64], out: &[u64]) -> KernelSpec {
    let operand =
        |buffer, strides: &[u64]| Operand { buffer, dtype: DType::F32, offset: 0, strides: strides.to_vec() };
    KernelSpec::Rows(LoopsSpec {
        dims: dims.to_vec(),
        reduced,
        inputs: vec![operand(0, strides)],
        n_scalars: 0,
        region: sum_region(),
        outputs: vec![operand(1, out)],
    })
}

#[test]
fn rows_sum_long_rows_and_long_columns() {
    check(&sum(&[9_001], 1, &[1], &[0]), &[], &|_| Fill::Random, 1);
    check(&sum(&[2, 5_000], 1, &[5_000, 1], &[1, 0]), &[], &|_| Fill::Whole, 2);
    check(&sum(&[40, 300], 1, &[1, 40], &[1, 0]), &[], &|_| Fill::Random, 3);
    check(&sum(&[640, 70], 1, &[1, 640], &[1, 0]), &[], &|_| Fill::Whole, 4);
}

/// Columns summed alone, and beside their products with a number per row: what else a kernel computes is a choice of the
/// compiler, so it must not change the order of a sum.
#[test]
fn rows_sum_columns_in_one_order_whatever_else_they_compute() {
    let (columns, rows) = (40u64, 300u64);
    let alone = sum(&[columns, rows], 1, &[1, columns], &[1, 0]);
    let mut r = RegionBuilder::default();
    let (x, per_row) = (r.input(0), r.input(1));
    let product = r.binary(BinaryOp::Mul, x, per_row);
    let sums = [x, product].map(|v| r.reduce(ReduceOp::Sum, v));
    let operand = |buffer, strides: [u64; 2]| Operand {
        buffer,
        dtype: DType::F32,
        offset: 0,
        strides: strides.to_vec(),
    };
    let beside = KernelSpec::Rows(LoopsSpec {
        dims: vec![columns, rows],
        reduced: 1,
        inputs: vec![operand(0, [1, columns]), operand(1, [0, 1])],
        n_scalars: 0,
        region: r.results(&sums),
        outputs: vec![operand(2, [1, 0]), operand(3, [1, 0])],
    });
    let mut random = Random(5);
    let mut bytes =
        |n: u64| -> Vec<u8> { (0..n).flat_map(|_| (random.float() as f32).to_le_bytes()).collect() };
    let (x, per_row) = (bytes(columns * rows), bytes(rows));
    for target in TARGETS {
        let run = |spec: &KernelSpec, mut buffers: Vec<Vec<u8>>, at: usize| {
            let kernel = expand(spec, target);
            interpret(&kernel, &mut buffers, &[], 0..kernel.tiles as i64).unwrap();
            buffers.swap_remove(at)
        };
        let zeros = vec![0; 4 * columns as usize];
        let expected = run(&alone, vec![x.clone(), zeros.clone()], 1);
        let found = run(&beside, vec![x.clone(), per_row.clone(), zeros.clone(), zeros], 2);
        assert!(expected == found, "{}", target.name);
    }
}

/// The error of a sum of many equal numbers stays at the 64 roundings of one block plus a few, where a plain sum of so
/// many is off by thousands of roundings.
#[test]
fn rows_sums_do_not_lose_accuracy_with_length() {
    let n = 1u64 << 20;
    for (spec, rows) in [(sum(&[n], 1, &[1], &[0]), 1), (sum(&[16, n / 16], 1, &[1, 16], &[1, 0]), 16u64)] {
        let kernel = expand(&spec, &TARGETS[1]);
        let x: Vec<u8> = (0..n).flat_map(|_| 0.1f32.to_le_bytes()).collect();
        let mut buffers = vec![x, vec![0; 4 * rows as usize]];
        interpret(&kernel, &mut buffers, &[], 0..kernel.tiles as i64).unwrap();
        let want = f64::from(0.1f32) * (n / rows) as f64;
        for row in 0..rows {
            let got = reference::load(&buffers[1], DType::F32, row).float;
            assert!((got - want).abs() <= 34.0 * f64::from(f32::EPSILON) * want, "{got} is not {want}");
        }
    }
}

#[test]
fn rows_of_an_infinite_value_sum_to_infinity() {
    let kernel = expand(&sum(&[9_001], 1, &[1], &[0]), &TARGETS[0]);
    let mut x = vec![1.0f32; 9_001];
    x[3] = f32::INFINITY;
    let mut buffers = vec![x.iter().flat_map(|v| v.to_le_bytes()).collect(), vec![0; 4]];
    interpret(&kernel, &mut buffers, &[], 0..1).unwrap();
    assert_eq!(reference::load(&buffers[1], DType::F32, 0).float, f64::INFINITY);
}

#[test]
fn rows_compute_softmax_in_place() {
    let mut r = RegionBuilder::default();
    let x = r.input(0);
    let m = r.reduce(ReduceOp::Max, x);
    let d = r.binary(BinaryOp::Sub, x, m);
    let e = r.unary(UnaryOp::Exp, d);
    let s = r.reduce(ReduceOp::Sum, e);
    let p = r.binary(BinaryOp::Div, e, s);
    let log = r.unary(UnaryOp::Log, s);
    let lse = r.binary(BinaryOp::Add, log, m);
    let operand =
        |buffer, strides: &[u64]| Operand { buffer, dtype: DType::F32, offset: 0, strides: strides.to_vec() };
    let spec = KernelSpec::Rows(LoopsSpec {
        dims: vec![5, 131],
        reduced: 1,
        inputs: vec![operand(0, &[131, 1])],
        n_scalars: 0,
        region: r.results(&[p, lse]),
        outputs: vec![operand(0, &[131, 1]), operand(1, &[1, 0])],
    });
    check(&spec, &[], &|_| Fill::Random, 11);
}
