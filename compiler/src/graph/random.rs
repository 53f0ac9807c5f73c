//! Random numbers in a graph: pure functions of a key and a counter, never of an order of evaluation.
//!
//! ```text
//! step key = threefry(seed, step)
//! site key = threefry(step key, hash of the place in the text)
//! counter  = iteration · numel + position        position: row-major over the value's axes, global
//! bits     = threefry(site key, counter)
//! ```
//! Positions are those in the whole batch and iterations those of the repeats around, so the bits do not depend on how a
//! batch is cut, in which order layers run, or whether a value is kept or made again. All of it is i64.
//!
//! Source of the generator and of the idea: Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*, §2 and §3.2.

use super::{BinaryOp, Builder, CompareOp, DType, Op, Type, ValueId};
use mlc_codegen::abi::{SEED_KEYS, STEP_KEY};

impl Builder {
    /// The key of a step, i64[]; its sources are run-time scalars, so call it in the body of the graph.
    pub fn step_key(&mut self) -> ValueId {
        let [low, high, step] = [SEED_KEYS[0], SEED_KEYS[1], STEP_KEY].map(|key| {
            let scalar = self.one(Op::Scalar { key: key.into(), default: 0.0 }, &[], None, key);
            self.cast(scalar, DType::I64)
        });
        let high = self.scale(high, 4_294_967_296.0);
        let seed = self.add(high, low);
        self.binary(BinaryOp::Threefry, seed, step)
    }

    /// The key of one place in the text, i64[].
    pub fn site_key(&mut self, step_key: ValueId, site: &str) -> ValueId {
        let [a, b, c, d, e, f, ..] = *blake3::hash(site.as_bytes()).as_bytes();
        // A constant is an f64, which holds 48 bits exactly.
        let hash = self.constant(DType::I64, u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) as f64);
        self.binary(BinaryOp::Threefry, step_key, hash)
    }

    /// The number of an iteration among those of all repeats around: `outer · trip + index`, i64[].
    pub fn iteration(&mut self, outer: Option<ValueId>, index: ValueId, trip: u64) -> ValueId {
        let index = self.cast(index, DType::I64);
        match outer {
            None => index,
            Some(outer) => {
                let before = self.scale(outer, trip as f64);
                self.add(before, index)
            }
        }
    }

    /// 64 random bits per element of a type, i64 over its axes.
    pub fn random_bits(&mut self, ty: &Type, key: ValueId, iteration: Option<ValueId>) -> ValueId {
        let mut stride = ty.numel();
        let mut counter = match iteration {
            None => self.constant(DType::I64, 0.0),
            Some(iteration) => self.scale(iteration, stride as f64),
        };
        for axis in &ty.axes {
            stride /= axis.size;
            let index = self.index(&axis.name, axis.size);
            let index = self.cast(index, DType::I64);
            let along = if stride == 1 { index } else { self.scale(index, stride as f64) };
            counter = self.binary_union(BinaryOp::Add, counter, along);
        }
        self.binary_union(BinaryOp::Threefry, key, counter)
    }

    /// Dropout: each element becomes 0 with probability `rate` and else `x / (1 − rate)`.
    ///
    /// ```text
    /// x [..], key i64[], iteration i64[] -> y [..]
    /// ```
    /// An element is kept if the low word of its random bits, as a signed number, is at least `rate·2³² − 2³¹`, so the
    /// probability is `rate` to 2⁻³³. The cotangent goes the same way: through the same mask, with the same factor.
    /// Source: Srivastava et al. 2014, *Dropout*, §10, in the form scaled at training.
    ///
    /// # Panics
    /// The rate does not lie between 0 and 1.
    pub fn dropout(&mut self, x: ValueId, rate: f64, key: ValueId, iteration: Option<ValueId>) -> ValueId {
        assert!(0.0 < rate && rate < 1.0, "a rate of {rate}");
        let ty = self.ty(x).clone();
        let bits = self.random_bits(&ty, key, iteration);
        let bits = self.cast(bits, DType::I32);
        let range = 4_294_967_296.0;
        let threshold = (rate * range).round().clamp(1.0, range - 1.0) - range / 2.0;
        let threshold = self.constant(DType::I32, threshold);
        let kept = self.compare(CompareOp::Ge, bits, threshold);
        self.set_name(kept, "kept");
        let scaled = self.scale(x, 1.0 / (1.0 - rate));
        let zero = self.constant(ty.dtype, 0.0);
        self.one(Op::Select, &[kept, scaled, zero], Some(ty), "dropout")
    }
}
