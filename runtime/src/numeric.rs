//! Conversions between the 16-bit float formats and f32, and an exponential with the same bits on every machine.

// The constants are written as fdlibm writes them.
#![allow(clippy::excessive_precision)]

/// Widens a bfloat16, exactly.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest bfloat16, ties to even; a NaN stays a NaN.
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let rounded = bits + 0x7fff + ((bits >> 16) & 1);
    (rounded >> 16) as u16
}

/// Widens an IEEE binary16, exactly.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let mantissa = u32::from(bits) & 0x3ff;
    match exponent {
        // Zero and subnormals are multiples of 2^-24.
        0 => {
            let magnitude = mantissa as f32 / 16_777_216.0;
            f32::from_bits(magnitude.to_bits() | sign)
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (mantissa << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13)),
    }
}

/// e^x, within one unit in the last place.
///
/// Source: `e_exp.c` of Sun's fdlibm, in plain IEEE binary64 operations: a C library picks other code where the CPU has
/// fused multiply-add, and a drawn token could then depend on where the binary was started.
pub fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238_164_90e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_700_02e-10;
    const P: [f64; 5] = [
        1.666_666_666_666_660_190_37e-1,
        -2.777_777_777_701_559_338_42e-3,
        6.613_756_321_437_934_361_17e-5,
        -1.653_390_220_546_525_153_90e-6,
        4.138_136_797_057_238_460_39e-8,
    ];
    match x {
        x if x.is_nan() => return x,
        x if x > 709.782_712_893_384 => return f64::INFINITY,
        x if x < -745.133_219_101_941_1 => return 0.0,
        _ => {}
    }
    // x = k ln 2 + r with |r| <= ln 2 / 2, r = high - low.
    let k = (x * std::f64::consts::LOG2_E + if x < 0.0 { -0.5 } else { 0.5 }).trunc();
    let (high, low) = (x - k * LN2_HIGH, k * LN2_LOW);
    let r = high - low;
    let t = r * r;
    let c = r - t * (P[0] + t * (P[1] + t * (P[2] + t * (P[3] + t * P[4]))));
    let y = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
    // Two factors, because 2^k may be out of range where y 2^k is not.
    let half = k as i64 / 2;
    y * power_of_two(half) * power_of_two(k as i64 - half)
}

/// 2^k for |k| < 1023.
fn power_of_two(k: i64) -> f64 {
    f64::from_bits(((1023 + k) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_to_f32_covers_every_class() {
        let cases = [
            (0x0000, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(f16_to_f32(bits), value, "{bits:#06x}");
        }
        assert!(f16_to_f32(0x8000).is_sign_negative() && f16_to_f32(0x7e00).is_nan());
    }

    #[test]
    fn exp_is_right_to_the_last_place() {
        for i in -7080..=7090 {
            let x = f64::from(i) * 0.1 + 0.003;
            let (got, expected) = (exp(x), x.exp());
            assert!((got / expected - 1.0).abs() <= 2.0 * f64::EPSILON, "{x}: {got} {expected}");
        }
        assert_eq!([exp(0.0), exp(-0.0), exp(f64::NEG_INFINITY), exp(-800.0)], [1.0, 1.0, 0.0, 0.0]);
        assert_eq!([exp(710.0), exp(f64::INFINITY)], [f64::INFINITY; 2]);
        assert!(exp(f64::NAN).is_nan() && exp(709.78) < f64::INFINITY);
        assert!(exp(-745.0) > 0.0 && exp(-745.0) < f64::MIN_POSITIVE);
        assert_eq!(exp(-1.0).to_bits(), 0x3fd7_8b56_362c_ef38);
    }

    #[test]
    fn f32_to_bf16_rounds_to_nearest_even() {
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            assert!(value.is_nan() || f32_to_bf16(value) == bits);
        }
        let at = |low: u32| f32_to_bf16(f32::from_bits(0x3f80_0000 | low));
        assert_eq!([at(0x7fff), at(0x8000), at(0x8001)], [0x3f80, 0x3f80, 0x3f81]);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }
}
