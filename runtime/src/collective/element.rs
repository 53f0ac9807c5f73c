//! Copying and reducing boxes of elements, with the conversions that collectives need.
//!
//! What is read is described by a [`Source`]: the type in memory, and whether it passes through bfloat16 on the way. Sums of
//! f32 and bfloat16 are taken in f32, others in their own type; elements are combined in the order of the sources, the first
//! one being the start.

use super::walk::{Run, Walk};
use crate::abi::{DType, Reduction};
use crate::device::pool::Pool;
use crate::numeric::{bf16_to_f32, f32_to_bf16};

/// Elements reduced at a time: the sums stay in the first-level cache.
const CHUNK: usize = 512;
/// Elements that are worth a thread of their own.
const SHARE: usize = 16 << 10;

/// Elements as they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Type in memory.
    pub dtype: DType,
    /// Type they have in between: that of the wire.
    pub wire: DType,
}

impl Source {
    /// Whether this is f32 that is rounded to bfloat16 on the way.
    fn is_rounded(self) -> bool {
        self.dtype == DType::F32 && self.wire == DType::Bf16
    }
}

/// Reads one element as the type that is computed with.
trait Load {
    type Value: Number;
    const BYTES: usize;
    /// # Safety
    /// `from` points at an element; it need not be aligned.
    unsafe fn load(from: *const u8) -> Self::Value;
}

/// Writes one element.
trait Store<T> {
    const BYTES: usize;
    /// # Safety
    /// `to` points at an element; it need not be aligned.
    unsafe fn store(to: *mut u8, value: T);
}

/// What reductions need of a type.
trait Number: Copy + Default {
    fn sum(self, other: Self) -> Self;
    /// Whether `other` takes the place of `self` as the maximum.
    fn below(self, other: Self) -> bool;
    fn is_nan(self) -> bool;
}

/// bfloat16 in memory.
struct Bf16;
/// f32 in memory, rounded to bfloat16.
struct Rounded;

macro_rules! plain {
    ($t:ty, $sum:expr, $nan:expr) => {
        impl Load for $t {
            type Value = $t;
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            unsafe fn load(from: *const u8) -> $t {
                // SAFETY: by the trait's contract.
                unsafe { from.cast::<$t>().read_unaligned() }
            }
        }
        impl Store<$t> for $t {
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            unsafe fn store(to: *mut u8, value: $t) {
                // SAFETY: by the trait's contract.
                unsafe { to.cast::<$t>().write_unaligned(value) }
            }
        }
        impl Number for $t {
            #[inline(always)]
            fn sum(self, other: $t) -> $t {
                let sum: fn($t, $t) -> $t = $sum;
                sum(self, other)
            }
            #[inline(always)]
            fn below(self, other: $t) -> bool {
                self < other
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                let nan: fn($t) -> bool = $nan;
                nan(self)
            }
        }
    };
}
plain!(f32, |a, b| a + b, f32::is_nan);
plain!(f64, |a, b| a + b, f64::is_nan);
plain!(i32, i32::wrapping_add, |_| false);
plain!(i64, i64::wrapping_add, |_| false);
plain!(u8, u8::wrapping_add, |_| false);

impl Load for Bf16 {
    type Value = f32;
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> f32 {
        // SAFETY: by the trait's contract.
        bf16_to_f32(unsafe { from.cast::<u16>().read_unaligned() })
    }
}

impl Store<f32> for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn store(to: *mut u8, value: f32) {
        // SAFETY: by the trait's contract.
        unsafe { to.cast::<u16>().write_unaligned(f32_to_bf16(value)) }
    }
}

impl Load for Rounded {
    type Value = f32;
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> f32 {
        // SAFETY: by the trait's contract.
        bf16_to_f32(f32_to_bf16(unsafe { f32::load(from) }))
    }
}

/// Copies a box on all threads of a rank: `from` along the first strides of `walk`, to elements of type `dtype` along the second.
/// Only f32 and bfloat16 change into each other.
///
/// # Safety
/// All elements of `walk` lie inside what the pointers point at, and the two do not overlap.
pub unsafe fn copy(pool: &Pool, walk: &Walk, source: Source, from: *const u8, dtype: DType, to: *mut u8) {
    // Raw pointers may not cross threads by themselves; as addresses they may.
    let (from, to) = (from as usize, to as usize);
    in_pieces(pool, walk, &|walk, at| {
        let from = (from + at[0] * source.dtype.bytes() as usize) as *const u8;
        let to = (to + at[1] * dtype.bytes() as usize) as *mut u8;
        // SAFETY: the caller's promise is passed on, for a piece.
        unsafe { copy_piece(walk, source, from, dtype, to) };
    });
}

/// Calls `work` with pieces of a walk, and where they begin, on as many threads as it is worth.
fn in_pieces(pool: &Pool, walk: &Walk, work: &(dyn Fn(&Walk, [usize; 2]) + Sync)) {
    // Two for each thread, so that one that is held up delays the others less.
    match (walk.elements() / SHARE).min(2 * pool.threads()) {
        0 | 1 => work(walk, [0, 0]),
        _ if pool.threads() == 1 => work(walk, [0, 0]),
        pieces => pool.run(pieces as i64, &|begin, end, _| {
            for k in begin..end {
                let (piece, at) = walk.piece(k as usize, pieces);
                work(&piece, at);
            }
        }),
    }
}

/// # Safety
/// As for [`copy`].
unsafe fn copy_piece(walk: &Walk, source: Source, from: *const u8, dtype: DType, to: *mut u8) {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        match (source.dtype, dtype) {
            (DType::F32, DType::F32) if source.is_rounded() => convert::<Rounded, f32>(walk, from, to),
            (DType::F32, DType::Bf16) => convert::<f32, Bf16>(walk, from, to),
            (DType::Bf16, DType::F32) => convert::<Bf16, f32>(walk, from, to),
            _ => match dtype.bytes() {
                1 => same::<u8>(walk, from, to),
                2 => same::<[u8; 2]>(walk, from, to),
                4 => same::<[u8; 4]>(walk, from, to),
                _ => same::<[u8; 8]>(walk, from, to),
            },
        }
    }
}

/// # Safety
/// As for [`copy`].
unsafe fn same<T: Copy>(walk: &Walk, from: *const u8, to: *mut u8) {
    let (from, to) = (from.cast::<T>(), to.cast::<T>());
    walk.each(|run| {
        // SAFETY: by this function's contract. Bytes are copied, so alignment does not matter.
        unsafe {
            if run.steps == [1, 1] {
                let (from, to) = (from.add(run.at[0]), to.add(run.at[1]));
                std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), run.len * size_of::<T>());
            } else {
                for i in 0..run.len {
                    let value = from.add(run.at[0] + i * run.steps[0]).read_unaligned();
                    to.add(run.at[1] + i * run.steps[1]).write_unaligned(value);
                }
            }
        }
    });
}

/// # Safety
/// As for [`copy`].
unsafe fn convert<L: Load, S: Store<L::Value>>(walk: &Walk, from: *const u8, to: *mut u8) {
    walk.each(|run| {
        let one = |i: usize, steps: [usize; 2]| {
            // SAFETY: by the contract of `copy`.
            unsafe {
                let value = L::load(from.add((run.at[0] + i * steps[0]) * L::BYTES));
                S::store(to.add((run.at[1] + i * steps[1]) * S::BYTES), value);
            }
        };
        // Strides that the compiler knows make vector code.
        if run.steps == [1, 1] {
            (0..run.len).for_each(|i| one(i, [1, 1]));
        } else {
            (0..run.len).for_each(|i| one(i, run.steps));
        }
    });
}

/// Reduces boxes on all threads of a rank: each of `from` along the first strides of `walk`, in this order, to elements of type
/// `dtype` along the second. There is at least one.
///
/// # Safety
/// As for [`copy`], of each of `from`.
pub unsafe fn reduce(
    pool: &Pool,
    walk: &Walk,
    reduction: Reduction,
    source: Source,
    from: &[*const u8],
    dtype: DType,
    to: *mut u8,
) {
    let to = to as usize;
    let from: Vec<usize> = from.iter().map(|from| *from as usize).collect();
    in_pieces(pool, walk, &|walk, at| {
        let move_to = |from: &usize| (from + at[0] * source.dtype.bytes() as usize) as *const u8;
        let from: Vec<*const u8> = from.iter().map(move_to).collect();
        let to = (to + at[1] * dtype.bytes() as usize) as *mut u8;
        // SAFETY: the caller's promise is passed on, for a piece.
        unsafe { reduce_piece(walk, reduction, source, &from, dtype, to) };
    });
}

/// # Safety
/// As for [`reduce`].
unsafe fn reduce_piece(
    walk: &Walk,
    reduction: Reduction,
    source: Source,
    from: &[*const u8],
    dtype: DType,
    to: *mut u8,
) {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        match (source.dtype, dtype) {
            (DType::F32, _) if source.is_rounded() => fold::<Rounded, f32>(walk, reduction, from, to),
            (DType::F32, _) => fold::<f32, f32>(walk, reduction, from, to),
            (DType::Bf16, DType::F32) => fold::<Bf16, f32>(walk, reduction, from, to),
            (DType::Bf16, _) => fold::<Bf16, Bf16>(walk, reduction, from, to),
            (DType::F64, _) => fold::<f64, f64>(walk, reduction, from, to),
            (DType::I32, _) => fold::<i32, i32>(walk, reduction, from, to),
            (DType::I64, _) => fold::<i64, i64>(walk, reduction, from, to),
            (DType::Bool, _) => fold::<u8, u8>(walk, reduction, from, to),
        }
    }
}

/// # Safety
/// As for [`reduce`].
unsafe fn fold<L: Load, S: Store<L::Value>>(
    walk: &Walk,
    reduction: Reduction,
    from: &[*const u8],
    to: *mut u8,
) {
    let mut values = [L::Value::default(); CHUNK];
    walk.each(|run| {
        for begin in (0..run.len).step_by(CHUNK) {
            let values = &mut values[..CHUNK.min(run.len - begin)];
            for (i, &from) in from.iter().enumerate() {
                // SAFETY: by the contract of `reduce`.
                unsafe {
                    match (reduction, i) {
                        (_, 0) => each::<L>(values, run, begin, from, |_, new| new),
                        (Reduction::Sum, _) => each::<L>(values, run, begin, from, L::Value::sum),
                        (Reduction::Max, _) => each::<L>(values, run, begin, from, |old, new| {
                            if !old.is_nan() && (old.below(new) || new.is_nan()) { new } else { old }
                        }),
                        (Reduction::Min, _) => each::<L>(values, run, begin, from, |old, new| {
                            if !old.is_nan() && (new.below(old) || new.is_nan()) { new } else { old }
                        }),
                    }
                }
            }
            for (i, &value) in values.iter().enumerate() {
                // SAFETY: by the contract of `reduce`.
                unsafe { S::store(to.add((run.at[1] + (begin + i) * run.steps[1]) * S::BYTES), value) };
            }
        }
    });
}

/// Combines `values` with elements `begin..` of a run of one source.
///
/// # Safety
/// As for [`reduce`].
#[inline(always)]
unsafe fn each<L: Load>(
    values: &mut [L::Value],
    run: Run,
    begin: usize,
    from: *const u8,
    combine: impl Fn(L::Value, L::Value) -> L::Value,
) {
    // SAFETY: by the contract of `reduce`.
    let load =
        |i: usize, step: usize| unsafe { L::load(from.add((run.at[0] + (begin + i) * step) * L::BYTES)) };
    if run.steps[0] == 1 {
        for (i, value) in values.iter_mut().enumerate() {
            *value = combine(*value, load(i, 1));
        }
    } else {
        for (i, value) in values.iter_mut().enumerate() {
            *value = combine(*value, load(i, run.steps[0]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced<T: Copy + Default>(dtype: DType, wire: DType, reduction: Reduction, from: &[&[T]]) -> Vec<T> {
        let n = from[0].len();
        let mut out = vec![T::default(); n];
        let walk = Walk::new(&[n as u64], &[1], &[1]);
        let pointers: Vec<*const u8> = from.iter().map(|s| s.as_ptr().cast()).collect();
        // SAFETY: all slices hold n elements of the type.
        unsafe {
            let pool = Pool::new(1, false).unwrap();
            reduce(
                &pool,
                &walk,
                reduction,
                Source { dtype, wire },
                &pointers,
                dtype,
                out.as_mut_ptr().cast(),
            );
        }
        out
    }

    #[test]
    fn sums_are_taken_in_the_order_of_the_sources() {
        let f = |a: f32, b: f32, c: f32| {
            reduced(DType::F32, DType::F32, Reduction::Sum, &[&[a], &[b], &[c]])[0].to_bits()
        };
        assert_eq!(f(1e8, -1e8, 1.0), 1f32.to_bits());
        assert_eq!(f(1.0, 1e8, -1e8), 0f32.to_bits());
        assert_eq!(f(-0.0, -0.0, -0.0), (-0f32).to_bits());
        assert_eq!(reduced(DType::I32, DType::I32, Reduction::Sum, &[&[i32::MAX], &[1]]), [i32::MIN]);
    }

    /// In bfloat16 256 + 1 is 256 again.
    #[test]
    fn short_elements_are_summed_in_f32() {
        let (big, one) = (f32_to_bf16(256.0), f32_to_bf16(1.0));
        let sum = reduced(DType::Bf16, DType::Bf16, Reduction::Sum, &[&[big], &[one], &[one]]);
        assert_eq!(bf16_to_f32(sum[0]), 258.0);
    }

    #[test]
    fn what_travels_as_bf16_is_rounded_before_and_not_after() {
        let x: f32 = 1.0 + 1.0 / 512.0;
        assert_eq!(reduced(DType::F32, DType::Bf16, Reduction::Sum, &[&[x], &[1.0 / 512.0]]), [x]);
        assert_eq!(reduced(DType::F32, DType::Bf16, Reduction::Sum, &[&[x], &[0.0]]), [1.0]);
    }

    #[test]
    fn extrema_are_nan_if_any_is() {
        let nan = f32::NAN;
        for values in [[nan, 1.0, 2.0], [1.0, nan, 2.0], [1.0, 2.0, nan]] {
            let from: Vec<&[f32]> = values.iter().map(std::slice::from_ref).collect();
            assert!(reduced(DType::F32, DType::F32, Reduction::Max, &from)[0].is_nan());
            assert!(reduced(DType::F32, DType::F32, Reduction::Min, &from)[0].is_nan());
        }
        let from: [&[i64]; 3] = [&[3, -1], &[5, -7], &[4, 0]];
        assert_eq!(reduced(DType::I64, DType::I64, Reduction::Max, &from), [5, 0]);
        assert_eq!(reduced(DType::I64, DType::I64, Reduction::Min, &from), [3, -7]);
        assert_eq!(reduced(DType::Bool, DType::Bool, Reduction::Max, &[&[0u8, 0], &[1, 0]]), [1, 0]);
    }
}
