//! From what a kernel computes ([`KernelSpec`]) to how ([`Kernel`]): loops, blocks, vectors and register tiles.
//!
//! One file per kind of kernel. What holds for all of them: tiles are independent; a tile's result does not depend on
//! which other tiles the same call computes; sums run in chunks of fixed length joined in a fixed order; nothing
//! depends on the number of threads. Sizes of vectors, blocks and register tiles come from the [`Target`] alone.

mod attention;
mod buffers;
mod gather;
mod gemm;
mod loops;
mod map;
mod region;
mod rows;
mod scan;
mod scatter;
mod space;

#[cfg(test)]
mod tests;

use crate::kir::Kernel;
use crate::program::KernelSpec;
use crate::target::Target;

/// Expands a spec for a target. The kernel carries its number of tiles and its scratch memory.
///
/// # Panics
/// The kernel is the user's own, which has no KIR: see [`custom::module`](crate::custom::module).
pub fn expand(spec: &KernelSpec, target: &Target) -> Kernel {
    match spec {
        KernelSpec::Custom(s) => panic!("{}: a custom kernel has no KIR", s.file),
        KernelSpec::Map(s) => map::map(s, target),
        KernelSpec::Rows(s) => rows::rows(s, target),
        KernelSpec::Gemm(s) => gemm::gemm(s, target),
        KernelSpec::Gather(s) => gather::gather(s, target),
        KernelSpec::Scatter(s) => scatter::scatter(s, target),
        KernelSpec::Scan(s) => scan::scan(s, target),
        KernelSpec::Attention(s) => attention::attention(s, target),
        KernelSpec::AttentionGrad(s) => attention::attention_grad(s, target),
    }
}
