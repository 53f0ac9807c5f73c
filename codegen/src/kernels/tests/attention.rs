use super::*;
use crate::program::region::CompareOp;
use crate::program::{AttentionGradPart, AttentionGradSpec, AttentionShape, AttentionSpec, Bound};

struct Case {
    batch: Vec<u64>,
    group: u64,
    sq: u64,
    sk: u64,
    hd: u64,
    hv: u64,
    bound: Bound,
    /// Relative bias as an extra operand, and a soft cap.
    has_bias: bool,
    has_bases: bool,
}

/// `scale · dot (+ bias²)`, then the mask of the bound; and its derivatives by the dot product, `scale`, and by the bias,
/// where the mask lets them through.
fn regions(case: &Case) -> [Region; 3] {
    let mut r = RegionBuilder::default();
    let dot = r.input(0);
    let scale = r.constant(0.25);
    let mut score = r.binary(BinaryOp::Mul, dot, scale);
    let mut slopes = [scale, r.constant(0.0)];
    if case.has_bias {
        let bias = r.input(3);
        let square = r.binary(BinaryOp::Mul, bias, bias);
        score = r.binary(BinaryOp::Add, score, square);
        slopes[1] = r.binary(BinaryOp::Add, bias, bias);
    }
    let (query, key) = (r.input(1), r.input(2));
    let mut conditions = Vec::new();
    if case.bound != Bound::Full {
        conditions.push(r.op(ScalarOp::Compare(CompareOp::Le, key, query)));
    }
    if let Bound::Window(window) = case.bound {
        let window = r.op(ScalarOp::Const(DType::I32, window as f64));
        let first = r.binary(BinaryOp::Sub, query, window);
        conditions.push(r.op(ScalarOp::Compare(CompareOp::Gt, key, first)));
    }
    let removed = r.constant(f64::NEG_INFINITY);
    let zero = r.constant(0.0);
    for condition in conditions {
        score = r.op(ScalarOp::Select(condition, score, removed));
        slopes = slopes.map(|slope| r.op(ScalarOp::Select(condition, slope, zero)));
    }
    [score, slopes[0], slopes[1]].map(|result| Region { ops: r.0.ops.clone(), results: vec![result] })
}

fn shape(case: &Case, random: &mut Random, extra_buffer: u32) -> AttentionShape {
    let [score, ..] = regions(case);
    let dims = [&case.batch[..], &[case.group, case.sq, case.sk]].concat();
    let broadcast: Vec<usize> = (0..case.batch.len()).collect();
    let extras = if case.has_bias {
        vec![layout(random, extra_buffer, DType::F32, &dims, &broadcast)]
    } else {
        vec![]
    };
    AttentionShape {
        batch: case.batch.clone(),
        group: case.group,
        sq: case.sq,
        sk: case.sk,
        hd: case.hd,
        hv: case.hv,
        bound: case.bound,
        score,
        extras,
        has_bases: case.has_bases,
    }
}

fn random_case(random: &mut Random) -> Case {
    let sq = random.pick(&[1, 5, 24, 26, 49, 60]);
    Case {
        batch: random.pick(&[&[][..], &[2], &[2, 1]]).to_vec(),
        group: random.pick(&[1, 1, 2, 5]),
        sq,
        sk: if random.below(2) == 0 { sq } else { random.pick(&[1, 7, 97, 130]) },
        hd: random.pick(&[4, 8, 17]),
        hv: random.pick(&[4, 8, 20]),
        bound: random.pick(&[Bound::Full, Bound::Causal, Bound::Window(9)]),
        has_bias: random.below(3) == 0,
        has_bases: random.below(3) == 0,
    }
}

fn with(case: &Case, last: &[u64]) -> Vec<u64> {
    [&case.batch[..], last].concat()
}

/// Positions shifted so that some rows see no key and some see all.
fn bases(case: &Case, random: &mut Random) -> Vec<i64> {
    if case.has_bases { vec![random.below(90) as i64, 40] } else { vec![] }
}

#[test]
fn attention_agrees_with_the_evaluator_on_random_shapes() {
    let mut random = Random(8);
    for seed in 0..14 {
        let case = random_case(&mut random);
        let row = [case.group, case.sq];
        let dtype = random.pick(&[DType::F32, DType::F32, DType::Bf16]);
        let q = layout(&mut random, 0, dtype, &with(&case, &[row[0], row[1], case.hd]), &[]);
        let k = layout(&mut random, 1, dtype, &with(&case, &[case.sk, case.hd]), &[]);
        let v = layout(&mut random, 2, dtype, &with(&case, &[case.sk, case.hv]), &[]);
        let o = layout(&mut random, 3, dtype, &with(&case, &[row[0], row[1], case.hv]), &[]);
        let lse = layout(&mut random, 4, DType::F32, &with(&case, &row), &[]);
        let shape = shape(&case, &mut random, 5);
        let scalars = bases(&case, &mut random);
        let spec = KernelSpec::Attention(AttentionSpec { shape, q, k, v, o, lse });
        check(&spec, &scalars, &|_| Fill::Random, seed);
    }
}

#[test]
fn attention_walks_several_blocks_of_queries_and_keys() {
    let case = Case {
        batch: vec![],
        group: 1,
        sq: 600,
        sk: 600,
        hd: 2,
        hv: 3,
        bound: Bound::Window(120),
        has_bias: false,
        has_bases: false,
    };
    let mut random = Random(9);
    let q = layout(&mut random, 0, DType::F32, &[1, 600, 2], &[]);
    let k = layout(&mut random, 1, DType::F32, &[600, 2], &[]);
    let v = layout(&mut random, 2, DType::F32, &[600, 3], &[]);
    let o = layout(&mut random, 3, DType::F32, &[1, 600, 3], &[]);
    let lse = layout(&mut random, 4, DType::F32, &[1, 600], &[]);
    let shape = shape(&case, &mut random, 5);
    check(&KernelSpec::Attention(AttentionSpec { shape, q, k, v, o, lse }), &[], &|_| Fill::Random, 1);
}

/// The bias's own gradient lacks the dimensions `without`, those of keys and values only if they are of the batch.
fn gradient(
    case: &Case,
    part: AttentionGradPart,
    without: &[usize],
    random: &mut Random,
) -> AttentionGradSpec {
    let row = [case.group, case.sq];
    let q_dims = with(case, &[row[0], row[1], case.hd]);
    let (k_dims, v_dims) = (with(case, &[case.sk, case.hd]), with(case, &[case.sk, case.hv]));
    let o_dims = with(case, &[row[0], row[1], case.hv]);
    let q = layout(random, 0, DType::F32, &q_dims, &[]);
    let k = layout(random, 1, DType::F32, &k_dims, &[]);
    let v = layout(random, 2, DType::F32, &v_dims, &[]);
    let d_o = layout(random, 3, DType::F32, &o_dims, &[]);
    let lse = layout(random, 4, DType::F32, &with(case, &row), &[]);
    let delta = layout(random, 5, DType::F32, &with(case, &row), &[]);
    let outputs = match part {
        AttentionGradPart::Query => vec![layout(random, 6, DType::F32, &q_dims, &[])],
        AttentionGradPart::KeyValue => {
            let without: Vec<usize> = without.iter().copied().filter(|d| *d < case.batch.len()).collect();
            [&k_dims, &v_dims]
                .into_iter()
                .zip(6..)
                .map(|(d, i)| layout(random, i, DType::F32, d, &without))
                .collect()
        }
        AttentionGradPart::Extra(_) => {
            let dims = with(case, &[case.group, case.sq, case.sk]);
            vec![layout(random, 6, DType::F32, &dims, without)]
        }
    };
    let shape = shape(case, random, 6 + outputs.len() as u32);
    let [_, by_dot, by_bias] = regions(case);
    let slope = if matches!(part, AttentionGradPart::Extra(_)) { by_bias } else { by_dot };
    AttentionGradSpec { shape, part, slope, q, k, v, d_o, lse, delta, outputs }
}

#[test]
fn attention_grad_agrees_with_the_evaluator_on_random_shapes() {
    let mut random = Random(10);
    for seed in 0..14 {
        let case = random_case(&mut random);
        let part = random.pick(&[AttentionGradPart::Query, AttentionGradPart::KeyValue]);
        let without = if random.below(3) == 0 { vec![0] } else { vec![] };
        let spec = gradient(&case, part, &without, &mut random);
        let scalars = bases(&case, &mut random);
        check(&KernelSpec::AttentionGrad(spec), &scalars, &|_| Fill::Random, seed);
    }
}

#[test]
fn attention_grad_of_a_bias_agrees_with_the_evaluator_on_random_shapes() {
    let mut random = Random(12);
    for seed in 0..20 {
        let case = Case { has_bias: true, ..random_case(&mut random) };
        // Every dimension of the scores is one the bias may lack.
        let dims = case.batch.len() + 3;
        let without: Vec<usize> = (0..dims).filter(|_| random.below(2) == 0).collect();
        let spec = gradient(&case, AttentionGradPart::Extra(0), &without, &mut random);
        let scalars = bases(&case, &mut random);
        check(&KernelSpec::AttentionGrad(spec), &scalars, &|_| Fill::Random, seed);
    }
}

#[test]
fn attention_grad_of_a_bias_walks_several_blocks_of_queries_and_keys() {
    for (without, seed) in [(&[0][..], 1), (&[1], 2), (&[2], 3), (&[0, 1, 2], 4)] {
        let case = Case {
            batch: vec![],
            group: 2,
            sq: 150,
            sk: 230,
            hd: 2,
            hv: 3,
            bound: Bound::Window(70),
            has_bias: true,
            has_bases: false,
        };
        let spec = gradient(&case, AttentionGradPart::Extra(0), without, &mut Random(seed));
        check(&KernelSpec::AttentionGrad(spec), &[], &|_| Fill::Random, seed);
    }
}

/// Rows whose log-sum-exp is −∞ saw no key; their gradients are 0, not NaN.
#[test]
fn attention_grad_of_rows_without_keys_is_zero() {
    for part in [AttentionGradPart::Query, AttentionGradPart::KeyValue, AttentionGradPart::Extra(0)] {
        let case = Case {
            batch: vec![],
            group: 1,
            sq: 9,
            sk: 20,
            hd: 4,
            hv: 4,
            bound: Bound::Causal,
            has_bias: true,
            has_bases: true,
        };
        let mut random = Random(11);
        let spec = KernelSpec::AttentionGrad(gradient(&case, part, &[], &mut random));
        for target in TARGETS {
            let kernel = expand(&spec, target);
            let mut buffers: Vec<Vec<u8>> = kernel
                .buffers
                .iter()
                .map(|buffer| fill(&mut random, buffer.dtype, buffer.len, Fill::Random))
                .collect();
            let rows = kernel.buffers[4].len;
            buffers[4] = (0..rows).flat_map(|_| f32::NEG_INFINITY.to_le_bytes()).collect();
            // Keys from position 100 on lie after every query.
            for base in [100, 0] {
                interpret(&kernel, &mut buffers, &[0, base], 0..kernel.tiles as i64).unwrap();
                for written in reference::evaluate(&spec, &buffers, &[0, base], Precision::Exact) {
                    let got = reference::load(&buffers[written.buffer as usize], DType::F32, written.index);
                    assert_eq!((got.float, written.value.float), (0.0, 0.0));
                }
            }
        }
    }
}
