//! The building blocks that come with the compiler: `specs/std/`, as text inside the binary.
//!
//! `use "std/attention.spec"` means the file `std/attention.spec` beside the file that uses it; where there is none, it means
//! the one in here. So a copy beside a spec, as `mlc new --from std/attention` makes it, takes its place.

use std::path::Path;

/// Every file: its path as `use` names it, one line about it, its text.
pub const FILES: &[(&str, &str, &str)] = &[
    (
        "std/attention.spec",
        "attention: multi-head, grouped-query, normed queries, latent",
        include_str!("../../../specs/std/attention.spec"),
    ),
    (
        "std/feed_forward.spec",
        "feed-forward parts: SwiGLU, GEGLU, GELU, squared ReLU",
        include_str!("../../../specs/std/feed_forward.spec"),
    ),
    (
        "std/head.spec",
        "embedding with a scale, soft cap of scores",
        include_str!("../../../specs/std/head.spec"),
    ),
    (
        "std/moe.spec",
        "mixtures of experts: with capacity, dropless, with a shared part",
        include_str!("../../../specs/std/moe.spec"),
    ),
    ("std/norm.spec", "RMSNorm and LayerNorm", include_str!("../../../specs/std/norm.spec")),
    (
        "std/position.spec",
        "learned positions, rotation of a part of each head",
        include_str!("../../../specs/std/position.spec"),
    ),
    (
        "std/relative_bias.spec",
        "biases by relative position: T5's buckets, ALiBi's slopes",
        include_str!("../../../specs/std/relative_bias.spec"),
    ),
];

/// The file a path ends with, as (path, text).
pub fn builtin(path: &Path) -> Option<(&'static str, &'static str)> {
    FILES.iter().find(|(name, ..)| path.ends_with(name)).map(|(name, _, text)| (*name, *text))
}
