//! NumPy's `Generator(PCG64(seed))`, bit for bit, as far as the parity weights need it.
//!
//! `tests/parity/inputs.py` defines those weights; making them here as well lets the parity tests run where there is no
//! Python. Follows numpy 2.4: `bit_generator.pyx` (SeedSequence), `pcg64.h` (PCG XSL RR 128/64, O'Neill 2014),
//! `distributions.c` (256-layer ziggurat, Marsaglia and Tsang 2000; Lemire 2019 for bounded integers).

const MULTIPLIER: u128 = (2549297995355413924 << 64) + 4865540595714422341;

/// The bit generator with NumPy's buffered upper half for 32-bit draws, and its f32 normal distribution.
pub struct Pcg64 {
    state: u128,
    increment: u128,
    upper_half: Option<u32>,
    ziggurat: Ziggurat,
}

impl Pcg64 {
    /// `numpy.random.Generator(numpy.random.PCG64(seed))`.
    pub fn new(seed: u32) -> Self {
        let words = seed_sequence(seed);
        let start = (u128::from(words[0]) << 64) | u128::from(words[1]);
        let stream = (u128::from(words[2]) << 64) | u128::from(words[3]);
        let mut rng =
            Pcg64 { state: 0, increment: (stream << 1) | 1, upper_half: None, ziggurat: Ziggurat::new() };
        rng.advance();
        rng.state = rng.state.wrapping_add(start);
        rng.advance();
        rng
    }

    fn advance(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.advance();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(upper) = self.upper_half.take() {
            return upper;
        }
        let both = self.next_u64();
        self.upper_half = Some((both >> 32) as u32);
        both as u32
    }

    fn next_f32(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// One draw of `standard_normal(dtype=float32)`.
    pub fn standard_normal_f32(&mut self) -> f32 {
        loop {
            let bits = self.next_u32();
            let layer = (bits & 0xff) as usize;
            let magnitude = (bits >> 9) & 0x7f_ffff;
            let sign = if (bits >> 8) & 1 == 1 { -1.0 } else { 1.0 };
            let x = magnitude as f32 * self.ziggurat.width[layer];
            if magnitude < self.ziggurat.accept[layer] {
                return sign * x;
            }
            if layer == 0 {
                return self.tail(magnitude);
            }
            let (above, below) = (self.ziggurat.height[layer - 1], self.ziggurat.height[layer]);
            let y = (above - below) * self.next_f32() + below;
            if f64::from(y) < (-0.5 * f64::from(x) * f64::from(x)).exp() {
                return sign * x;
            }
        }
    }

    /// A draw beyond the lowest layer. The sign comes from the magnitude's bits, as upstream has it.
    fn tail(&mut self, magnitude: u32) -> f32 {
        let sign = if (magnitude >> 8) & 1 == 1 { -1.0 } else { 1.0 };
        loop {
            let x = -((1.0 / Ziggurat::R) as f32) * (-self.next_f32()).ln_1p();
            let y = -(-self.next_f32()).ln_1p();
            if y + y > x * x {
                return sign * (Ziggurat::R as f32 + x);
            }
        }
    }

    /// One draw of `integers(0, bound)`, for `bound` below 2³².
    pub fn integer(&mut self, bound: u32) -> u32 {
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(bound);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }
}

/// The layers of the normal density, for 23-bit magnitudes.
struct Ziggurat {
    accept: [u32; 256],
    width: [f32; 256],
    height: [f32; 256],
}

impl Ziggurat {
    /// Where the lowest layer ends.
    const R: f64 = 3.654_152_885_361_009;
    /// Area of each layer: R·exp(−R²/2) + √(π/2)·erfc(R/√2).
    const AREA: f64 = 0.004_928_673_233_974_655;

    fn new() -> Self {
        let steps = f64::from(1u32 << 23);
        let density = |x: f64| (-0.5 * x * x).exp();
        let mut tables = Ziggurat { accept: [0; 256], width: [0.0; 256], height: [0.0; 256] };
        let base = Self::AREA / density(Self::R);
        tables.accept[0] = (Self::R / base * steps).round() as u32;
        tables.width[0] = (base / steps) as f32;
        tables.height[0] = 1.0;
        tables.width[255] = (Self::R / steps) as f32;
        tables.height[255] = density(Self::R) as f32;
        let mut outer = Self::R;
        for layer in (1..255).rev() {
            let x = (-2.0 * (Self::AREA / outer + density(outer)).ln()).sqrt();
            tables.accept[layer + 1] = (x / outer * steps).round() as u32;
            tables.width[layer] = (x / steps) as f32;
            tables.height[layer] = density(x) as f32;
            outer = x;
        }
        tables
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_sequence(seed: u32) -> [u64; 4] {
    fn hash(mut value: u32, constant: &mut u32, multiplier: u32) -> u32 {
        value ^= *constant;
        *constant = constant.wrapping_mul(multiplier);
        value = value.wrapping_mul(*constant);
        value ^ (value >> 16)
    }
    fn mix(x: u32, y: u32) -> u32 {
        let mixed = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ (mixed >> 16)
    }
    let mut constant = 0x43b0_d7e5;
    let mut pool = [seed, 0, 0, 0].map(|word| hash(word, &mut constant, 0x931e_8875));
    for source in 0..4 {
        for target in 0..4 {
            if source != target {
                pool[target] = mix(pool[target], hash(pool[source], &mut constant, 0x931e_8875));
            }
        }
    }
    let mut constant = 0x8b51_f9dd;
    let mut words = [0u32; 8];
    for (i, word) in words.iter_mut().enumerate() {
        *word = hash(pool[i % 4], &mut constant, 0x58f3_8ded);
    }
    [0, 1, 2, 3].map(|i| u64::from(words[2 * i]) | (u64::from(words[2 * i + 1]) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values printed by numpy 2.4.6 for `Generator(PCG64(2))`.
    #[test]
    fn first_draws_are_numpys() {
        let mut rng = Pcg64::new(2);
        let normals: Vec<f32> = (0..4).map(|_| rng.standard_normal_f32()).collect();
        assert_eq!(normals, [1.704_536_6, -0.302_052_4, -0.147_292_93, 0.400_222_96]);
        let integers: Vec<u32> = (0..4).map(|_| rng.integer(32000)).collect();
        assert_eq!(integers, [13242, 26055, 14440, 2941]);
    }
}
