use mlc_runtime::abi::DType;

use super::interpret::interpret;
use super::*;

/// `y[i] = 2·x[i] + i` over 10 elements, four lanes at a time with a masked end, and the sum of all in `total`.
fn scale() -> Kernel {
    let mut b = Builder::new(1, 1);
    let x = b.buffer("x", DType::F32, 10, Access::Read);
    let y = b.buffer("y", DType::Bf16, 10, Access::Write);
    let total = b.buffer("total", DType::F32, 1, Access::Write);
    let (zero, n) = (b.index(0), b.index(10));
    let two = b.const_float(Type::vector(Elem::F32, 4), 2.0);
    let start = b.const_float(Type::vector(Elem::F32, 4), 0.0);
    let sums = b.for_carried(zero, n, 4, &[start], |b, i, carried| {
        let left = b.sub(n, i);
        let v = b.load_masked(x, i, 4, left);
        let lanes = b.iota(Elem::I32, 4);
        let i32s = b.convert(Elem::I32, i);
        let base = b.splat(i32s, 4);
        let index = b.add(lanes, base);
        let index = b.convert(Elem::F32, index);
        let v = b.fma(v, two, index);
        b.store_masked(y, i, v, left);
        vec![b.add(carried[0], v)]
    });
    let sum = b.reduce(ReduceOp::Add, sums[0]);
    b.store(total, zero, sum);
    b.finish()
}

#[test]
fn builder_makes_a_valid_kernel() {
    insta::assert_snapshot!(scale().to_string(), @"
        kernel {
          buffer x: read f32[10]
          buffer y: write bf16[10]
          buffer total: write f32[1]
          tiles 1 (%0, %1, %2)
          %3 = const i64 0
          %4 = const i64 10
          %5 = const f32x4 2.0
          %6 = const f32x4 0.0
          %7 = const i64 4
          %8 = for %9 = %3 to %4 step %7 carry (%10 = %6) {
            %11 = sub i64 %4, %9
            %12 = load f32x4 x[%9] first %11
            %13 = iota i32x4
            %14 = convert i32 %9
            %15 = splat i32x4 %14
            %16 = add i32x4 %13, %15
            %17 = convert f32x4 %16
            %18 = fma f32x4 %12, %5, %17
            store y[%9], %18 first %11
            %19 = add f32x4 %10, %18
            yield %19
          }
          %20 = reduce_add f32 %8
          store total[%3], %20
        }
    ");
    assert_eq!(verify(&scale()), Ok(()));
}

#[test]
fn print_then_parse_is_the_same_kernel() {
    let kernel = scale();
    let parsed = parse(&kernel.to_string()).unwrap();
    assert_eq!(parsed, kernel);
    assert_eq!(parsed.to_string(), kernel.to_string());
}

#[test]
fn interpret_scales_with_a_masked_end() {
    let x: Vec<u8> = (0..10).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut buffers = [x, vec![0; 20], vec![0; 4]];
    interpret(&scale(), &mut buffers, &[0], 0..1).unwrap();
    let y: Vec<f32> = buffers[1]
        .chunks(2)
        .map(|c| f32::from_bits((u16::from_le_bytes([c[0], c[1]]) as u32) << 16))
        .collect();
    assert_eq!(y, (0..10).map(|i| 3.0 * i as f32).collect::<Vec<f32>>());
    // Lanes beyond the end add their own index: 10 and 11.
    assert_eq!(f32::from_le_bytes(buffers[2][..].try_into().unwrap()), 135.0 + 21.0);
}

#[test]
fn interpret_names_the_access_out_of_bounds() {
    let kernel = parse(
        "kernel {
           buffer x: read_write f32[4]
           tiles 1 (%0, %1)
           %2 = const i64 2
           %3 = load f32x4 x[%2]
         }",
    )
    .unwrap();
    let error = interpret(&kernel, &mut [vec![0; 16]], &[], 0..1).unwrap_err();
    insta::assert_snapshot!(error, @"index 4 is outside `x`, which has 4 elements, in `%3 = load f32x4 x[%2]`");
}

#[test]
fn interpret_reduces_by_the_documented_tree() {
    // 3 lanes: h = 2, so lane 0 takes lane 2, then lane 1: (a + c) + b, which differs from the other orders here.
    let kernel = parse(
        "kernel {
           buffer x: read f32[3]
           buffer y: write f32[1]
           tiles 1 (%0, %1)
           %2 = const i64 0
           %3 = load f32x3 x[%2]
           %4 = reduce_add f32 %3
           store y[%2], %4
         }",
    )
    .unwrap();
    let [a, b, c] = [1e8f32, 1.0, -1e8];
    let x = [a, b, c].iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut buffers = [x, vec![0; 4]];
    interpret(&kernel, &mut buffers, &[], 0..1).unwrap();
    assert_eq!(f32::from_le_bytes(buffers[1][..].try_into().unwrap()), (a + c) + b);
    assert_ne!((a + c) + b, (a + b) + c);
}

#[test]
fn interpret_swaps_carried_values() {
    let kernel = parse(
        "kernel {
           buffer y: write i64[2]
           tiles 1 (%0, %1)
           %2 = const i64 0
           %3 = const i64 3
           %4 = const i64 1
           %5, %6 = for %7 = %2 to %3 step %4 carry (%8 = %2, %9 = %4) {
             yield %9, %8
           }
           store y[%2], %5
           store y[%4], %6
         }",
    )
    .unwrap();
    let mut buffers = [vec![0; 16]];
    interpret(&kernel, &mut buffers, &[], 0..1).unwrap();
    assert_eq!((buffers[0][0], buffers[0][8]), (1, 0));
}

#[test]
fn parse_reports_the_line() {
    let refuse = |text: &str| parse(text).unwrap_err();
    insta::assert_snapshot!(refuse("kernel {\n  tiles 1 (%0, %1)\n  %2 = frobnicate i64 %0\n}"), @"line 3: unknown op `frobnicate`");
    insta::assert_snapshot!(refuse("kernel {\n  tiles 1 (%0, %1)\n  %2 = add i64 %0, %3\n}"), @"line 3: %3 is used before it is defined");
    insta::assert_snapshot!(refuse("kernel {\n  tiles 1 (%0, %1)\n  %2 = const f32 one\n}"), @"line 3: `one` is not a constant of type f32");
    insta::assert_snapshot!(refuse("kernel {\n  tiles 1 (%0, %1)\n  store x[%0], %1\n}"), @"line 3: no buffer or scratch is called `x`");
    insta::assert_snapshot!(refuse("kernel {"), @"line 1: expected `tiles`, found the end of the text");
}

#[test]
fn verify_collects_every_violation() {
    let kernel = parse(
        "kernel {
           buffer x: read f32[4]
           tiles 0 (%0, %1)
           %2 = const f32 1.0
           %3 = add i64 %0, %2
           store x[%2], %2
           for %4 = %0 to %1 step %0 {
             %5 = not f32 %2
           }
           %6 = reduce_add f32 %2
         }",
    )
    .unwrap();
    insta::assert_snapshot!(verify(&kernel).unwrap_err().join("\n"), @"
        a kernel has at least one tile, in `kernel`
        %2 should be i64, is f32, in `%3 = add i64 %0, %2`
        %2 should be i64, is f32, in `store x[%2], %2`
        the buffer is only read, in `store x[%2], %2`
        the step is not a positive constant, in `for %4 = %0 to %1 step %0 {`
        the op is not defined on this type, in `%5 = not f32 %2`
        reduce takes a vector, in `%6 = reduce_add f32 %2`
    ");
}

#[test]
fn verify_refuses_a_value_of_an_inner_block() {
    let mut kernel = parse(
        "kernel {
           tiles 1 (%0, %1)
           %2 = const i64 1
           for %3 = %0 to %1 step %2 {
             %4 = add i64 %3, %2
           }
           %5 = add i64 %0, %0
         }",
    )
    .unwrap();
    kernel.body.insts[2].op = Op::Binary(BinaryOp::Add, Value(4), Value(0));
    insta::assert_snapshot!(verify(&kernel).unwrap_err().join("\n"), @"%4 is not defined here, in `%5 = add i64 %4, %0`");
}
