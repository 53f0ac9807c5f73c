use super::*;
use crate::program::GatherSpec;

fn operand(buffer: u32, dtype: DType, strides: &[u64]) -> Operand {
    Operand { buffer, dtype, offset: 0, strides: strides.to_vec() }
}

fn ids_in(n: u64) -> impl Fn(usize) -> Fill {
    move |buffer| if buffer == 1 { Fill::Ids(n) } else { Fill::Random }
}

#[test]
fn gather_looks_up_rows() {
    for (seed, row) in [1, 7, 16, 48, 100].into_iter().enumerate() {
        let spec = GatherSpec {
            dims: vec![2, 9, row],
            table: operand(0, DType::F32, &[0, 0, 1]),
            axis_stride: row,
            axis_size: 11,
            ids: operand(1, DType::I32, &[9, 1, 0]),
            out: operand(2, DType::F32, &[9 * row, row, 1]),
        };
        check(&KernelSpec::Gather(spec), &[], &ids_in(11), seed as u64);
    }
}

#[test]
fn gather_picks_one_element_per_row_of_the_table() {
    let spec = GatherSpec {
        dims: vec![37],
        table: operand(0, DType::F32, &[50]),
        axis_stride: 1,
        axis_size: 50,
        ids: operand(1, DType::I32, &[1]),
        out: operand(2, DType::F32, &[1]),
    };
    check(&KernelSpec::Gather(spec), &[], &ids_in(50), 1);
}

#[test]
fn gather_agrees_with_the_evaluator_on_random_layouts() {
    let mut random = Random(6);
    for case in 0..30 {
        let dims: Vec<u64> = (0..3).map(|_| random.pick(&[1, 2, 5, 17])).collect();
        let id_only = random.below(3) as usize;
        let table = layout(&mut random, 0, DType::Bf16, &dims, &[id_only]);
        let row_only: Vec<usize> = (0..3).filter(|&d| d != id_only && random.below(2) == 0).collect();
        let ids = layout(&mut random, 1, DType::I32, &dims, &row_only);
        let out = layout(&mut random, 2, DType::F32, &dims, &[]);
        let axis_size = 1 + random.below(9);
        let axis_stride = random.pick(&[1, 50]);
        let spec = GatherSpec { dims, table, axis_stride, axis_size, ids, out };
        check(&KernelSpec::Gather(spec), &[], &ids_in(axis_size), case);
    }
}
