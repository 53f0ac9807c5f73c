//! Environments made from a seed, for tests.

use super::{Environment, Tensor, ops, state_name};
use crate::graph::{DType, Graph, Op, Type};

/// A small deterministic generator. Source: Steele, Lea, Flood 2014, *Fast splittable pseudorandom number generators*,
/// figure 17 (the output function of SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform on `0..bound`, to within 2^-32.
    ///
    /// # Panics
    /// `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "nothing lies below 0");
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// Uniform on `[low, high)`, a value that f32 holds.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.bits() >> 40) as f64 / (1u64 << 24) as f64;
        f64::from((low + (high - low) * unit) as f32)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Everything the graph reads: floats on [−1, 1) (states, which may be second moments, on [0, 1)), ids below their bound,
/// other integers on 0..8. Scalars keep their defaults.
pub fn sample_environment(graph: &Graph, seed: u64) -> Environment {
    let mut rng = Rng::new(seed);
    let mut environment = Environment::default();
    for op in &graph.region(graph.body).ops {
        let node = graph.op(*op);
        let ty = graph.ty(node.results[0]);
        match &node.op {
            Op::Input { name, bound } => {
                let tensor = sample(ty, if *bound == 0 { 8 } else { *bound }, -1.0, &mut rng);
                environment.inputs.insert(name.clone(), tensor);
            }
            Op::Param { path, .. } => {
                environment.tensors.insert(path.clone(), sample(ty, 8, -1.0, &mut rng));
            }
            Op::State { param, kind } => {
                environment.tensors.insert(state_name(param, kind), sample(ty, 8, 0.0, &mut rng));
            }
            _ => {}
        }
    }
    environment
}

fn sample(ty: &Type, bound: u64, low: f64, rng: &mut Rng) -> Tensor {
    let n = ty.numel() as usize;
    if ops::is_float(ty.dtype) {
        Tensor::floats(ty.clone(), (0..n).map(|_| rng.between(low, 1.0)).collect())
    } else {
        let bound = if ty.dtype == DType::Bool { 2 } else { bound };
        Tensor::ints(ty.clone(), (0..n).map(|_| rng.below(bound as usize) as i64).collect())
    }
}
