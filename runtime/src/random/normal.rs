//! Normal numbers from uniform ones, with the same bits on every machine.
//!
//! Source: Box, Muller, "A note on the generation of random normal deviates", 1958. The logarithm, sine and cosine are
//! the polynomials of Sun's fdlibm in plain IEEE binary64 operations: a C library picks other code where the CPU has
//! fused multiply-add, and the weights of a model would then depend on where it was started.

// The constants are written as fdlibm writes them.
#![allow(clippy::excessive_precision)]

use super::{join, unit};

/// Two independent standard normals from 128 random bits.
#[inline]
pub fn normal_pair(block: [u32; 4]) -> [f64; 2] {
    let [a, b, c, d] = block;
    // 1 - u lies in (0, 1], so that the logarithm is finite.
    let radius = (-2.0 * ln(1.0 - unit(join(a, b)))).sqrt();
    let [sin, cos] = sin_cos_turns(unit(join(c, d)));
    [radius * cos, radius * sin]
}

/// Natural logarithm of a normal positive number, error below one unit in the last place.
///
/// Algorithm of fdlibm `e_log.c`: x = 2^k (1 + f) with 1 + f in [√½, √2), then a polynomial in (f / (2 + f))².
#[inline]
fn ln(x: f64) -> f64 {
    const SQRT_HALF_HIGH: u32 = 0x3fe6_a09e;
    let bits = x.to_bits();
    let high = ((bits >> 32) as u32).wrapping_add(0x3ff0_0000 - SQRT_HALF_HIGH);
    let k = f64::from((high >> 20) as i32 - 0x3ff);
    let mantissa = (high & 0x000f_ffff) + SQRT_HALF_HIGH;
    let f = f64::from_bits((u64::from(mantissa) << 32) | (bits & 0xffff_ffff)) - 1.0;
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
/// The quarter turn is taken off exactly; the rest, at most an eighth of a turn, goes through fdlibm's `k_sin.c` and
/// `k_cos.c` polynomials.
#[inline]
fn sin_cos_turns(turns: f64) -> [f64; 2] {
    let quarter = (turns * 4.0 + 0.5) as u32;
    let x = (turns - f64::from(quarter) * 0.25) * std::f64::consts::TAU;
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
    match quarter & 3 {
        0 => [sin, cos],
        1 => [cos, -sin],
        2 => [-sin, -cos],
        _ => [-cos, sin],
    }
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
    fn normal_pair_has_the_moments_of_a_standard_normal() {
        let stream = Stream::new(2, "moments");
        let values: Vec<f64> = (0..100_000).flat_map(|i| normal_pair(stream.block(i))).collect();
        let moment = |k: i32| values.iter().map(|v| v.powi(k)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.011, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.016, "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.11, "fourth moment {}", moment(4));
    }
}
