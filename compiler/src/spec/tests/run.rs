//! The run side: schedules, groups, overrides, keys.

use super::check::{LLAMA70B, check_text, checked};
use crate::spec::checked::{Data, Piece, Rule, Shape, Spec, TargetKind, Train};

/// A run of a small Llama with these lines in `train`.
fn small(train: &str) -> String {
    format!(
        "spec 1\nuse \"llama.spec\" as Llama with {{ layers = 2, d = 64, ff = 96, vocab = 256 }}\ntrain {{\n    steps = 1000, batch = 16, seq = 32, data = synthetic()\n    optimizer = adamw {{ lr = 1e-3, decay = 0.1, params \"**.norm*.w\" {{ decay = 0 }}, params \"embed\" {{ lr = 1e-4 }} }}\n{train}\n}}\n"
    )
}

fn train(spec: Spec) -> Train {
    spec.train.expect("the file has a run")
}

#[test]
fn schedule_pieces_follow_each_other_to_the_horizon() {
    let text = small("    schedule = warmup(100) then constant(400) then cosine(to = 1e-5)");
    let pieces = train(checked(&text, &[])).schedule.pieces;
    let piece = |shape, begin, end, steps, from, to| Piece { shape, begin, end, steps, from, to };
    assert_eq!(
        pieces,
        [
            piece(Shape::Warmup, 0, 100, Some(100), 0.0, 1e-3),
            piece(Shape::Constant, 100, 500, Some(400), 1e-3, 1e-3),
            piece(Shape::Cosine, 500, 1000, None, 1e-3, 1e-5),
        ]
    );
}

#[test]
fn schedule_is_constant_by_default() {
    let pieces = train(checked(&small(""), &[])).schedule.pieces;
    let whole = Piece { shape: Shape::Constant, begin: 0, end: 1000, steps: None, from: 1e-3, to: 1e-3 };
    assert_eq!(pieces, [whole]);
}

#[test]
fn schedule_after_an_inverse_square_root_goes_on_from_where_it_ended() {
    let text = small("    schedule = warmup(100) then inverse_sqrt(800) then sqrt(to = 0)");
    let pieces = train(checked(&text, &[])).schedule.pieces;
    let shapes: Vec<Shape> = pieces.iter().map(|p| p.shape).collect();
    assert_eq!(shapes, [Shape::Warmup, Shape::InverseSqrt, Shape::Sqrt]);
    // From step 100 to 900 the rate falls to a third.
    assert!((pieces[1].to - 1e-3 / 3.0).abs() < 1e-18 && pieces[1].to == pieces[2].from);
}

#[test]
fn groups_hit_by_path_and_the_last_one_wins() {
    let spec = checked(&small(""), &[]);
    let optimizer = spec.train.as_ref().expect("a run").optimizer.clone();
    let rate = |path: &str| {
        let at = spec.model.params.iter().position(|p| p.path == path).expect("a parameter");
        (optimizer.per_param[at].lr, optimizer.per_param[at].decay.value())
    };
    assert_eq!(rate("norm.w"), (1e-3, 0.0));
    assert_eq!(rate("layer.{i}.norm1.w"), (1e-3, 0.0));
    assert_eq!(rate("layer.{i}.attn.wq"), (1e-3, 0.1));
    assert_eq!(rate("embed"), (1e-4, 0.1));
    assert_eq!(optimizer.rule, Rule::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    assert_eq!(optimizer.clip, None);
    assert_eq!(optimizer.groups[0].params.len(), 3);
}

#[test]
fn a_run_without_microbatch_takes_the_whole_batch_at_once() {
    let spec = checked(&small(""), &[]);
    assert_eq!((spec.model.size("batch"), spec.model.size("seq")), (Some(16), Some(32)));
    assert_eq!(train(spec).accumulation, 1);
}

#[test]
fn the_model_is_checked_at_the_size_of_a_microbatch() {
    let spec = checked(&small("    microbatch = 4"), &[]);
    assert_eq!(spec.model.size("batch"), Some(4));
    let train = train(spec);
    assert_eq!((train.batch, train.microbatch, train.accumulation), (16, 4, 4));
}

#[test]
fn a_batch_of_tokens_counts_sequences() {
    let spec = checked(&small(""), &["train.batch=2Ki tokens"]);
    assert_eq!(train(spec).batch, 64);
}

#[test]
fn overrides_apply_in_order_file_target_command_line() {
    let text = small("")
        + "target cpu \"small\" {\n    memory = 2GiB\n    with { train.steps = 10, Llama.layers = 3 }\n}\n";
    let spec = checked(&text, &[]);
    assert_eq!((spec.model.size("layers"), train(spec.clone()).steps), (Some(3), 10));
    assert_eq!(spec.target.kind, TargetKind::Cpu);
    assert_eq!(spec.target.memory_bytes, Some(2 << 30));
    let spec = checked(&text, &["train.steps=7", "Llama.layers=1", "target.memory=1GiB"]);
    assert_eq!((spec.model.size("layers"), train(spec.clone()).steps), (Some(1), 7));
    assert_eq!(spec.target.memory_bytes, Some(1 << 30));
}

#[test]
fn an_override_of_the_target_reaches_a_file_without_one() {
    let target = checked(&small(""), &["target.memory=1KiB", "target.arch=x86-64-v3"]).target;
    assert_eq!((target.kind, target.memory_bytes), (TargetKind::Cpu, Some(1 << 10)));
    assert_eq!(target.arch.as_deref(), Some("x86-64-v3"));
}

#[test]
fn an_override_reaches_into_forms_and_makes_sections() {
    let sets = ["train.optimizer.clip=1.0", "train.checkpoint.every=5", "train.optimizer.betas=(0.8, 0.9)"];
    let train = train(checked(&small(""), &sets));
    assert_eq!(train.optimizer.clip, Some(1.0));
    assert_eq!(train.optimizer.rule, Rule::AdamW { beta1: 0.8, beta2: 0.9, eps: 1e-8 });
    assert_eq!((train.checkpoint.every, train.checkpoint.keep), (5, 3));
}

#[test]
fn an_override_can_give_a_model_its_first_run() {
    let sets = [
        "train.steps=1",
        "train.batch=1",
        "train.seq=8",
        "train.data=bytes(\"a.txt\")",
        "train.optimizer.lr=1e-3",
        "Llama.layers=1",
    ];
    let train = train(checked("spec 1\nuse \"llama.spec\" as Llama\n", &sets));
    assert_eq!(train.data, Data::Bytes { glob: "a.txt".into() });
}

#[test]
fn token_shards_say_their_width_and_layout() {
    let text = |data: &str| small("").replace("synthetic()", data);
    let data = |source: &str| train(checked(&text(source), &[])).data;
    let glob = || "x/*.bin".to_string();
    assert_eq!(data("tokens(\"x/*.bin\")"), Data::Tokens { glob: glob(), id_bytes: 2, records: false });
    assert_eq!(
        data("tokens(\"x/*.bin\", layout = records, dtype = u32)"),
        Data::Tokens { glob: glob(), id_bytes: 4, records: true }
    );
}

#[test]
fn every_key_says_whether_it_is_baked() {
    let keys = train(checked(LLAMA70B, &[])).keys;
    let at_run_time = |path: &str| keys.iter().find(|k| k.path == path).map(|k| k.at_run_time);
    assert_eq!(at_run_time("train.optimizer.lr"), Some(true));
    assert_eq!(at_run_time("train.steps"), Some(true));
    assert_eq!(at_run_time("train.batch"), Some(false));
    assert_eq!(at_run_time("train.precision.matmul"), Some(false));
    assert_eq!(at_run_time("train.checkpoint.dir"), Some(true));
    assert!(keys.iter().any(|k| k.path == "train.checkpoint.keep_every" && !k.origin.is_written()));
}

#[test]
fn a_shipped_size_can_be_small_enough_to_train_anywhere() {
    let sets = [
        "Llama.layers=2",
        "Llama.d=64",
        "Llama.ff=96",
        "Llama.vocab=256",
        "Llama.kv=2",
        "Llama.group=2",
        "Llama.hd=16",
    ];
    let (spec, found) = check_text(LLAMA70B, &sets).unwrap_or_else(|e| panic!("{e}"));
    assert!(found.is_empty());
    assert_eq!(
        spec.model.parameter_count(),
        256 * 64 * 2 + 64 + 2 * (2 * 64 + 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)
    );
}
