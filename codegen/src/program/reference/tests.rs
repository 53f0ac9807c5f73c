use super::*;
use crate::program::Bound;
use crate::program::region::ScalarId;

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn operand(buffer: u32, strides: &[u64]) -> Operand {
    Operand { buffer, dtype: DType::F32, offset: 0, strides: strides.to_vec() }
}

fn read(buffer: &[u8]) -> Vec<f64> {
    (0..buffer.len() as u64 / 4).map(|i| load(buffer, DType::F32, i).float).collect()
}

#[test]
fn erf_agrees_with_tabulated_values() {
    // Abramowitz and Stegun, table 7.1.
    for (x, y) in
        [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0), (3.0, 0.999_977_909_5)]
    {
        assert!((erf(x) - y).abs() < 1e-10 && (erf(-x) + y).abs() < 1e-10, "erf({x}) = {}", erf(x));
    }
    assert!((erf(1.4999999) - erf(1.5000001)).abs() < 1e-7);
}

#[test]
fn gemm_multiplies_and_accumulates() {
    let spec = KernelSpec::Gemm(GemmSpec {
        batch: vec![],
        m: 2,
        n: 2,
        k: 2,
        a: operand(0, &[2, 1]),
        b: operand(1, &[1, 2]),
        c: operand(2, &[2, 1]),
        accumulate: true,
        epilogue: None,
        extras: vec![],
    });
    let mut buffers = vec![f32s(&[1., 2., 3., 4.]), f32s(&[5., 6., 7., 8.]), f32s(&[100., 0., 0., 0.])];
    run(&spec, &mut buffers, &[], Precision::AsWritten);
    assert_eq!(read(&buffers[2]), [117.0, 23.0, 39.0, 53.0]);
}

#[test]
fn rows_keep_row_level_results_apart() {
    // softmax over the last dimension, and the row's sum of exponentials.
    let region = Region {
        ops: vec![
            ScalarOp::Input(0),
            ScalarOp::Reduce(ReduceOp::Max, ScalarId(0)),
            ScalarOp::Binary(BinaryOp::Sub, ScalarId(0), ScalarId(1)),
            ScalarOp::Unary(UnaryOp::Exp, ScalarId(2)),
            ScalarOp::Reduce(ReduceOp::Sum, ScalarId(3)),
            ScalarOp::Binary(BinaryOp::Div, ScalarId(3), ScalarId(4)),
        ],
        results: vec![ScalarId(5), ScalarId(4)],
    };
    let spec = KernelSpec::Rows(LoopsSpec {
        dims: vec![2, 2],
        reduced: 1,
        inputs: vec![operand(0, &[2, 1])],
        n_scalars: 0,
        region,
        outputs: vec![operand(0, &[2, 1]), operand(1, &[1, 0])],
    });
    let mut buffers = vec![f32s(&[0., 0., 0., f32::NEG_INFINITY]), f32s(&[0., 0.])];
    run(&spec, &mut buffers, &[], Precision::Exact);
    assert_eq!(read(&buffers[0]), [0.5, 0.5, 1.0, 0.0]);
    assert_eq!(read(&buffers[1]), [2.0, 1.0]);
}

#[test]
fn attention_gives_zero_where_no_key_is_left() {
    let mask = Region {
        ops: vec![
            ScalarOp::Input(0),
            ScalarOp::Input(1),
            ScalarOp::Input(2),
            ScalarOp::Compare(CompareOp::Lt, ScalarId(2), ScalarId(1)),
            ScalarOp::Const(DType::F32, f64::NEG_INFINITY),
            ScalarOp::Select(ScalarId(3), ScalarId(0), ScalarId(4)),
        ],
        results: vec![ScalarId(5)],
    };
    let shape = AttentionShape {
        batch: vec![],
        group: 1,
        sq: 2,
        sk: 2,
        hd: 1,
        hv: 1,
        bound: Bound::Causal,
        score: mask,
        extras: vec![],
        has_bases: false,
    };
    let spec = KernelSpec::Attention(AttentionSpec {
        shape,
        q: operand(0, &[0, 1, 1]),
        k: operand(1, &[1, 1]),
        v: operand(2, &[1, 1]),
        o: operand(3, &[0, 1, 1]),
        lse: operand(4, &[0, 1]),
    });
    let mut buffers =
        vec![f32s(&[1., 2.]), f32s(&[3., 4.]), f32s(&[5., 6.]), f32s(&[9., 9.]), f32s(&[9., 9.])];
    run(&spec, &mut buffers, &[], Precision::Exact);
    assert_eq!(read(&buffers[3]), [0.0, 5.0]);
    assert_eq!(read(&buffers[4]), [f64::NEG_INFINITY, 6.0]);
}

#[test]
fn scatter_adds_the_updates_of_equal_ids() {
    let ids: Vec<u8> = [2i32, 0, 2].iter().flat_map(|v| v.to_le_bytes()).collect();
    let spec = KernelSpec::Scatter(ScatterSpec {
        dims: vec![3, 2],
        id_dims: 1,
        updates: operand(0, &[2, 1]),
        ids: Operand { dtype: DType::I32, ..operand(1, &[1, 0]) },
        axis_stride: 2,
        axis_size: 3,
        out: operand(2, &[0, 1]),
        accumulate: false,
    });
    let mut buffers = vec![f32s(&[1., 2., 3., 4., 5., 6.]), ids, f32s(&[7.; 6])];
    run(&spec, &mut buffers, &[], Precision::Exact);
    assert_eq!(read(&buffers[2]), [3., 4., 0., 0., 6., 8.]);
}

#[test]
fn bf16_rounds_to_nearest_even() {
    assert_eq!(bf16_from_f32(1.0), 0x3f80);
    assert_eq!(bf16_from_f32(f32::from_bits(0x3f80_8000)), 0x3f80);
    assert_eq!(bf16_from_f32(f32::from_bits(0x3f81_8000)), 0x3f82);
    assert!(f32::from_bits(u32::from(bf16_from_f32(f32::NAN)) << 16).is_nan());
}
