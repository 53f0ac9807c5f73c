use super::*;
use crate::program::ScanSpec;

#[test]
fn scan_agrees_with_the_evaluator_on_random_layouts() {
    let mut random = Random(12);
    for case in 0..40 {
        let dims: Vec<u64> = (0..1 + random.below(3)).map(|_| random.pick(&[1, 2, 5, 17, 40])).collect();
        let dtype = random.pick(&[DType::F32, DType::I32]);
        let input = layout(&mut random, 0, dtype, &dims, &[]);
        let out = layout(&mut random, 1, dtype, &dims, &[]);
        let (exclusive, reverse) = (random.below(2) == 0, random.below(2) == 0);
        let spec = ScanSpec { dims, exclusive, reverse, input, out };
        check(&KernelSpec::Scan(spec), &[], &|_| Fill::Random, case);
    }
}

#[test]
fn gather_and_scatter_leave_out_ids_outside_the_axis() {
    use crate::program::{GatherSpec, ScatterSpec};
    let operand =
        |buffer, dtype, strides: &[u64]| Operand { buffer, dtype, offset: 0, strides: strides.to_vec() };
    // Ids up to 19 into an axis of 7.
    let fill = |buffer: usize| if buffer == 1 { Fill::Ids(20) } else { Fill::Random };
    for (seed, row) in [1, 5, 33].into_iter().enumerate() {
        let gather = GatherSpec {
            dims: vec![30, row],
            table: operand(0, DType::F32, &[0, 1]),
            axis_stride: row,
            axis_size: 7,
            ids: operand(1, DType::I32, &[1, 0]),
            out: operand(2, DType::F32, &[row, 1]),
        };
        check(&KernelSpec::Gather(gather), &[], &fill, seed as u64);
        let scatter = ScatterSpec {
            dims: vec![30, row],
            id_dims: 1,
            updates: operand(0, DType::F32, &[row, 1]),
            ids: operand(1, DType::I32, &[1, 0]),
            axis_stride: row,
            axis_size: 7,
            out: operand(2, DType::F32, &[0, 1]),
            accumulate: false,
        };
        check(&KernelSpec::Scatter(scatter), &[], &fill, seed as u64);
    }
}
