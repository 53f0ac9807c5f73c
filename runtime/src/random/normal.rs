//! Normal numbers from uniform ones, with the same bits on every machine.
//!
//! Source: Box, Muller, "A note on the generation of random normal deviates", 1958. The logarithm, sine and cosine are
//! the polynomials of Sun's fdlibm in plain IEEE binary64 operations: a C library picks other code where the CPU has
//! fused multiply-add, and the weights of a model would then depend on where it was started.

// The constants are written as fdlibm writes them.
#![allow(clippy::excessive_precision)]

use super::{Stream, join};

/// Pairs computed together, so that the compiler can use vector registers.
const LANES: usize = 64;

/// Writes standard normals `2 first_pair`, `2 first_pair + 1`, … of a stream; numbers 2j and 2j + 1 come from block j.
///
/// Every operation is one of IEEE binary64 or of integers and none is fused, so that wider registers give the same bits.
pub fn normals(stream: &Stream, first_pair: u64, out: &mut [f64]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the feature the function is compiled for.
        return unsafe { normals_avx2(stream, first_pair, out) };
    }
    normals_in_lanes(stream, first_pair, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn normals_avx2(stream: &Stream, first_pair: u64, out: &mut [f64]) {
    normals_in_lanes(stream, first_pair, out);
}

#[inline(always)]
fn normals_in_lanes(stream: &Stream, first_pair: u64, out: &mut [f64]) {
    let mut pair = first_pair;
    for group in out.chunks_mut(2 * LANES) {
        let (mut radius, mut turns) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let [a, b, c, d] = stream.block(pair.wrapping_add(lane as u64));
            // 1 - u lies in (0, 1], so that the logarithm is finite.
            radius[lane] = 1.0 - unit52(join(a, b));
            turns[lane] = unit52(join(c, d));
        }
        let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let r = (-2.0 * ln(radius[lane])).sqrt();
            let [sin, cos] = sin_cos_turns(turns[lane]);
            (first[lane], second[lane]) = (r * cos, r * sin);
        }
        for (two, lane) in group.chunks_mut(2).zip(0..LANES) {
            two[0] = first[lane];
            if let Some(other) = two.get_mut(1) {
                *other = second[lane];
            }
        }
        pair = pair.wrapping_add(LANES as u64);
    }
}

/// Maps 64 random bits to `[0, 1)` by their upper 52 bits, without an integer-to-float conversion.
#[inline(always)]
fn unit52(bits: u64) -> f64 {
    f64::from_bits((bits >> 12) | 0x3ff0_0000_0000_0000) - 1.0
}

/// Natural logarithm of a number in (0, 1] that is not subnormal, error below one unit in the last place.
///
/// Algorithm of fdlibm `e_log.c`: x = 2^k (1 + f) with 1 + f in [√½, √2), then a polynomial in (f / (2 + f))².
#[inline(always)]
fn ln(x: f64) -> f64 {
    /// Bits of about √½.
    const SQRT_HALF: u64 = 0x3fe6_a09e_0000_0000;
    const EXPONENT: u64 = 0xfff0_0000_0000_0000;
    let offset = x.to_bits().wrapping_sub(SQRT_HALF);
    // The exponent, biased by 1023, as the low bits of a float of exponent 52: exact, and free of conversions.
    let biased = offset.wrapping_add(0x3ff0_0000_0000_0000) >> 52;
    let k = f64::from_bits(0x4330_0000_0000_0000 | biased) - (4_503_599_627_370_496.0 + 1023.0);
    let f = f64::from_bits(x.to_bits().wrapping_sub(offset & EXPONENT)) - 1.0;
    let half_square = 0.5 * f * f;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    let odd = z
        * (6.666666666666735130e-01
            + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    s * (half_square + even + odd) + k * 1.90821492927058770002e-10 - half_square
        + f
        + k * 6.93147180369123816490e-01
}

/// Sine and cosine of `turns` full turns, `turns` in [0, 1).
///
/// The nearest quarter turn is taken off exactly; the rest, at most an eighth of a turn, goes through fdlibm's `k_sin.c`
/// and `k_cos.c` polynomials.
#[inline(always)]
fn sin_cos_turns(turns: f64) -> [f64; 2] {
    /// Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let shifted = turns * 4.0 + ROUND;
    let quarter = shifted.to_bits();
    let x = (turns - (shifted - ROUND) * 0.25) * std::f64::consts::TAU;
    let z = x * x;
    let sin = x + x
        * z
        * (-1.66666666666666324348e-01
            + z * (8.33333333332248946124e-03
                + z * (-1.98412698298579493134e-04
                    + z * (2.75573137070700676789e-06
                        + z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
    let cos = 1.0 - 0.5 * z
        + z * z
            * (4.16666666666666019037e-02
                + z * (-1.38888888888741095749e-03
                    + z * (2.48015872894767294178e-05
                        + z * (-2.75573143513906633035e-07
                            + z * (2.08757232129817482790e-09 - z * 1.13596475577881948265e-11)))));
    let (s, c) = if quarter & 1 == 0 { (sin, cos) } else { (cos, sin) };
    let negate = |value: f64, when: u64| f64::from_bits(value.to_bits() ^ ((when & 2) << 62));
    [negate(s, quarter), negate(c, quarter.wrapping_add(1))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// The platform's functions are within one unit in the last place of the true value, as ours are, so the two differ
    /// by at most a few; 4e-16 relative is about two units.
    #[test]
    fn ln_and_sin_cos_agree_with_the_platform() {
        let stream = Stream::new(1, "math");
        for i in 0..20_000 {
            let u = 1.0 - stream.unit(i);
            let error = (ln(u) - u.ln()).abs() / u.ln().abs().max(f64::MIN_POSITIVE);
            assert!(u == 1.0 || error < 4e-16, "ln({u}): {error}");
            let t = stream.unit(i + 1_000_000);
            let [sin, cos] = sin_cos_turns(t);
            let (s, c) = (t * std::f64::consts::TAU).sin_cos();
            // The argument of the platform's function is itself rounded, up to 4.4e-16 absolute near a full turn.
            assert!((sin - s).abs() < 8e-16 && (cos - c).abs() < 8e-16, "at {t} turns");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    /// With n = 200,000 samples the standard errors are 0.0022 (mean), 0.0032 (variance) and 0.011 (fourth moment);
    /// the bounds are five of each. The seed is fixed, so the test cannot flicker.
    #[test]
    fn normals_have_the_moments_of_a_standard_normal() {
        let stream = Stream::new(2, "moments");
        let mut values = vec![0.0; 200_000];
        normals(&stream, 0, &mut values);
        let moment = |k: i32| values.iter().map(|v| v.powi(k)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.011, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.016, "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.11, "fourth moment {}", moment(4));
    }

    #[test]
    fn normals_depend_on_the_index_and_not_on_the_registers() {
        let stream = Stream::new(3, "lanes");
        let mut whole = vec![0.0; 1001];
        normals(&stream, 7, &mut whole);
        let mut part = vec![0.0; 500];
        normals_in_lanes(&stream, 17, &mut part);
        assert_eq!(whole[20..520], part);
    }
}
