use super::*;
use crate::program::ScatterSpec;

fn operand(buffer: u32, dtype: DType, strides: &[u64]) -> Operand {
    Operand { buffer, dtype, offset: 0, strides: strides.to_vec() }
}

fn ids_in(n: u64) -> impl Fn(usize) -> Fill {
    move |buffer| if buffer == 1 { Fill::Ids(n) } else { Fill::Random }
}

#[test]
fn scatter_adds_rows_of_an_embedding() {
    for (seed, row) in [1, 7, 48].into_iter().enumerate() {
        for accumulate in [false, true] {
            let spec = ScatterSpec {
                dims: vec![5, 20, row],
                id_dims: 2,
                updates: operand(0, DType::F32, &[20 * row, row, 1]),
                ids: operand(1, DType::I32, &[20, 1, 0]),
                axis_stride: row,
                axis_size: 150,
                out: operand(2, DType::F32, &[0, 0, 1]),
                accumulate,
            };
            let spec = KernelSpec::Scatter(spec);
            assert_eq!(expand(&spec, &TARGETS[0]).tiles, 3);
            check(&spec, &[], &ids_in(150), seed as u64);
        }
    }
}

#[test]
fn scatter_spreads_one_value_per_row() {
    // The gradient of picking one logit per token: the axis is contiguous, the token is shared.
    for accumulate in [false, true] {
        let spec = ScatterSpec {
            dims: vec![37],
            id_dims: 1,
            updates: operand(0, DType::F32, &[1]),
            ids: operand(1, DType::I32, &[1]),
            axis_stride: 1,
            axis_size: 70,
            out: operand(2, DType::F32, &[70]),
            accumulate,
        };
        check(&KernelSpec::Scatter(spec), &[], &ids_in(70), 1);
    }
}

#[test]
fn scatter_handles_transposed_outputs() {
    // out[row, v]: the axis is contiguous and the row is not.
    let spec = ScatterSpec {
        dims: vec![30, 3, 4],
        id_dims: 1,
        updates: operand(0, DType::F32, &[1, 120, 30]),
        ids: operand(1, DType::I32, &[1, 0, 0]),
        axis_stride: 1,
        axis_size: 90,
        out: operand(2, DType::F32, &[0, 360, 90]),
        accumulate: false,
    };
    check(&KernelSpec::Scatter(spec), &[], &ids_in(90), 1);
}
