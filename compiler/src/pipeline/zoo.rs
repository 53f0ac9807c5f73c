//! The shipped families at the sizes of published models: how many parameters their graphs have.

use super::tests::spec;
use super::*;
use crate::graph::Op;

/// Elements of the parameters of the forward graph.
fn parameters(family: &str, sets: &str) -> u64 {
    let sets: Vec<&str> = sets.split_whitespace().collect();
    let (spec, sources) = spec(&format!("specs/{family}.spec"), &sets);
    let graph = from_spec(&spec.model, Entry::Train, 1, &sources).expect("the family builds");
    let body = &graph.region(graph.body).ops;
    let is_param = |op: &&crate::graph::OpId| matches!(graph.op(**op).op, Op::Param { .. });
    let counted = body.iter().filter(is_param).map(|op| graph.ty(graph.op(*op).results[0]).numel()).sum();
    assert_eq!(spec.model.parameter_count(), counted, "{family}: `mlc check` counts as the graph does");
    counted
}

/// `key=value …` for a family, with the model's name put before each key.
fn sets(model: &str, sizes: &str) -> String {
    sizes.split_whitespace().map(|s| format!("{model}.{s} ")).collect()
}

#[track_caller]
fn has(family: &str, model: &str, rows: &[(&str, &str, u64)]) {
    for (name, sizes, expected) in rows {
        assert_eq!(parameters(family, &sets(model, sizes)), *expected, "{name}");
    }
}

/// Touvron et al. 2023 (arXiv:2307.09288), table 1, and Llama team 2024 (arXiv:2407.21783), table 3.
#[test]
fn llama_models_have_the_published_numbers_of_parameters() {
    has(
        "llama",
        "Llama",
        &[
            ("2-7b", "vocab=32000 d=4096 ff=11008 layers=32 kv=32 group=1", 6_738_415_616),
            ("2-13b", "vocab=32000 d=5120 ff=13824 layers=40 kv=40 group=1", 13_015_864_320),
            (
                "2-13b, vocabulary of 32016",
                "vocab=32016 d=5120 ff=13824 layers=40 kv=40 group=1",
                13_016_028_160,
            ),
            ("2-70b", "vocab=32000 d=8192 ff=28672 layers=80 kv=8 group=8", 68_976_648_192),
            ("3.1-8b", "d=4096 ff=14336 layers=32 kv=8 group=4", 8_030_261_248),
            ("3.1-70b", "", 70_553_706_496),
            ("3.1-405b", "d=16384 ff=53248 layers=126 kv=8 group=16", 405_853_388_800),
        ],
    );
    has(
        "llama_tied",
        "LlamaTied",
        &[
            ("3.2-1b", "", 1_235_814_400),
            ("3.2-3b", "d=3072 layers=28 ff=8192 kv=8 group=3 hd=128", 3_212_749_824),
        ],
    );
}

/// Radford et al. 2019, the smallest; Brown et al. 2020 (arXiv:2005.14165) as paxml configures them.
#[test]
fn gpt_models_have_the_published_numbers_of_parameters() {
    has(
        "gpt",
        "Gpt",
        &[
            ("2-124m", "", 124_439_808),
            ("3-126m", "vocab=50304 positions=2048", 125_262_336),
            ("3-5b", "vocab=50304 positions=2048 d=4096 ff=16384 layers=24 heads=32 hd=128", 5_047_558_144),
            ("3-175b", "positions=2048 d=12288 ff=49152 layers=96 heads=96 hd=128", 174_604_259_328),
        ],
    );
}

/// axlearn/experiments/text/gpt/fuji.py.
#[test]
fn fuji_models_have_the_published_numbers_of_parameters() {
    has(
        "fuji",
        "Fuji",
        &[
            ("1B", "vocab=131072 d=2048 layers=16 ff=8192 kv=8 group=4 hd=64", 1_241_581_568),
            ("3B", "vocab=131072 d=3072 layers=28 kv=8 group=3", 3_221_400_576),
            ("7B V1 and V2", "", 6_610_489_344),
            ("7B V3", "vocab=131072 kv=8 group=4", 6_207_836_160),
        ],
    );
    has(
        "fuji_untied",
        "FujiUntied",
        &[
            ("8B", "", 8_030_261_248),
            ("405B", "vocab=131072 d=16384 layers=126 ff=53248 group=16", 405_945_663_488),
        ],
    );
}

/// torchtitan's rule, `round_up(⌊mult · ⌊8d/3⌋⌋, multiple)`, and Fuji's, `round_up(scale · d, 256)`.
#[test]
fn feed_forward_sizes_follow_from_the_rules_of_the_families() {
    let ff = |rule: &str, d: u64| {
        let text = format!(
            "spec 1\nmodel M {{\n    size d = {d}, ff = {rule}\n    param w[d, ff] = ones\n    loss mean[d, ff](w)\n}}\n"
        );
        let loader = crate::spec::MemoryLoader { files: vec![("m.spec".into(), text)] };
        let mut sources = SourceMap::new();
        let (spec, _) = crate::spec::check(&mut sources, &loader, "m.spec", &[]).expect("it checks");
        spec.model.size("ff").expect("declared above")
    };
    for (mult, multiple, d, expected) in [
        ("1.5", 1024, 2048, 8192),
        ("1.0", 1024, 3072, 8192),
        ("1.3", 1024, 4096, 14336),
        ("1.3", 4096, 8192, 28672),
        ("1.2", 4096, 16384, 53248),
    ] {
        assert_eq!(ff(&format!("round_up(floor({mult} * floor(8 * d / 3)), {multiple})"), d), expected);
    }
    assert_eq!(ff("round_up(8 * d / 3, 256)", 4096), 11008);
    assert_eq!(ff("round_up(3.5 * d, 256)", 8192), 28672);
}

/// The attention of DeepSeek-V3 (arXiv:2412.19437), §4.2, three dense layers of it.
#[test]
fn latent_decoder_has_the_parameters_of_its_equations() {
    let (d, heads, q, kv, ff, vocab) = (7168, 128, 1536, 512, 18432, 129280);
    let attention = d * q + q + q * heads * 192 + d * (kv + 64) + kv + kv * heads * 256 + heads * 128 * d;
    let layer = attention + 3 * d * ff + 2 * d;
    assert_eq!(parameters("latent", ""), 3 * layer + 2 * vocab * d + d);
}
