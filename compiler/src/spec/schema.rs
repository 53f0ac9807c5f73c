//! Every key of the run side of a spec: its type, its default, whether it is baked into the binary, what it means.
//!
//! These tables are the only place that knows keys. Files, `with`, `--set`, `--expand`, the binary's run-time keys and the
//! documentation all read them.

mod optimizers;

pub use optimizers::{OPTIMIZERS, SCHEDULES};

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number from 1.
    Count,
    /// A whole number from 0.
    Whole,
    /// A real number above 0.
    Positive,
    /// A real number from 0.
    NonNegative,
    /// A real number from 0, below 1.
    Fraction,
    /// Two fractions: `(0.9, 0.95)`.
    Betas,
    /// `true` or `false`.
    Switch,
    /// A quoted string.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any word.
    AnyWord,
    /// A number of bytes: `16GiB`.
    Bytes,
    /// `1024 sequences` (the default unit) or `4Mi tokens`.
    Batch,
    /// `none`, or the inner kind.
    OrNone(&'static Kind),
    /// One of these forms.
    Variant(&'static [Variant]),
    /// Forms joined by `then`.
    Chain(&'static [Variant]),
    /// A data source, or a weighted `mix` of them.
    Source,
    /// Keys in braces.
    Section(&'static Section),
    /// Keys in braces, or a word that stands for some of them.
    SectionOr(&'static [Shorthand], &'static Section),
    /// One of these words, or keys in braces.
    WordOrSection(&'static [&'static str], &'static Section),
    /// `steps(100..102)`
    StepRange,
}

/// A word that stands for a section.
#[derive(Debug)]
pub struct Shorthand {
    /// The word.
    pub word: &'static str,
    /// Keys it gives words to; the others keep their defaults.
    pub keys: &'static [(&'static str, &'static str)],
}

/// Keys in braces.
#[derive(Debug)]
pub struct Section {
    /// Its keys.
    pub keys: &'static [Key],
    /// Entries with a glob.
    pub globs: &'static [Glob],
}

/// An entry with a glob: `params "**" { decay = 0 }`.
#[derive(Debug)]
pub struct Glob {
    /// The word before the glob.
    pub verb: &'static str,
    /// What follows: keys in braces, a value behind a colon, or nothing.
    pub value: Option<Kind>,
}

/// What holds if a key is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must be written.
    Required,
    /// Nothing; the documentation says what that means.
    Absent,
    /// This value, in the spelling of the language.
    Is(&'static str),
}

/// A key.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds if it is not written.
    pub default: Fallback,
    /// True if the binary takes it as an option, without a rebuild.
    pub at_run_time: bool,
    /// False if it is checked but has no effect yet.
    pub applied: bool,
    /// One sentence.
    pub doc: &'static str,
}

/// One form of a value: `adamw { … }`, `tokens("a.bin", dtype = u16)`.
#[derive(Debug)]
pub struct Variant {
    /// The word.
    pub tag: &'static str,
    /// Keys in parentheses; those without a name are taken in this order.
    pub args: &'static [Key],
    /// Keys in braces.
    pub section: Section,
    /// False if it can't be built yet.
    pub available: bool,
    /// One sentence.
    pub doc: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: Fallback, at_run_time: bool, doc: &'static str) -> Key {
    Key { name, kind, default, at_run_time, applied: true, doc }
}

const fn later(
    name: &'static str,
    kind: Kind,
    default: Fallback,
    at_run_time: bool,
    doc: &'static str,
) -> Key {
    Key { name, kind, default, at_run_time, applied: false, doc }
}

const NO_KEYS: Section = Section { keys: &[], globs: &[] };
const BAKED: bool = false;
const RUN_TIME: bool = true;
use Fallback::{Absent, Is, Required};

const FLOATS: Kind = Kind::Word(&["f32", "bf16"]);
const MAYBE_POSITIVE: Kind = Kind::OrNone(&Kind::Positive);

/// `train { … }`
pub static TRAIN: Section = Section {
    keys: &[
        key("model", Kind::AnyWord, Absent, BAKED, "Which model to train, if the file has several."),
        key("steps", Kind::Count, Required, RUN_TIME, "Number of updates; also the horizon of the schedule."),
        key("batch", Kind::Batch, Required, BAKED, "Sequences (or tokens) per update."),
        key("seq", Kind::Count, Required, BAKED, "Tokens per sequence."),
        key(
            "microbatch",
            Kind::Count,
            Absent,
            BAKED,
            "Sequences processed at once per data shard; the whole batch if absent.",
        ),
        key("seed", Kind::Whole, Is("0"), RUN_TIME, "Seed of everything random."),
        key("data", Kind::Source, Required, RUN_TIME, "Where training data comes from."),
        key("tokenizer", Kind::Text, Absent, RUN_TIME, "Path of a tokenizer file."),
        key("pack", Kind::Variant(PACKING), Is("none"), BAKED, "How documents share a sequence."),
        key(
            "optimizer",
            Kind::Variant(OPTIMIZERS),
            Required,
            RUN_TIME,
            "The update rule with its hyper-parameters.",
        ),
        key("schedule", Kind::Chain(SCHEDULES), Is("constant"), RUN_TIME, "The learning rate over time."),
        key(
            "skip",
            Kind::Section(&SKIP),
            Absent,
            BAKED,
            "Which steps leave everything as it is; without it a loss that is not finite ends the run.",
        ),
        key(
            "precision",
            Kind::SectionOr(WIDTHS, &PRECISION),
            Is("{}"),
            BAKED,
            "Widths of floating-point numbers by role.",
        ),
        key(
            "remat",
            Kind::WordOrSection(&["auto", "none", "full", "dots", "attn"], &REMAT),
            Is("auto"),
            BAKED,
            "What the forward pass keeps for the backward pass, see below.",
        ),
        key(
            "checkpoint",
            Kind::Section(&CHECKPOINT),
            Is("{}"),
            RUN_TIME,
            "When and where the state is saved.",
        ),
        key("eval", Kind::Section(&EVAL), Absent, RUN_TIME, "Evaluation on held-out data."),
        key("log", Kind::Section(&LOG), Is("{}"), RUN_TIME, "What is logged, and when."),
    ],
    globs: &[],
};

/// How documents share a sequence.
pub static PACKING: &[Variant] = &[
    Variant { tag: "none", args: &[], section: NO_KEYS, available: true, doc: "A sequence is one document." },
    Variant {
        tag: "documents",
        args: &[key("end", Kind::Whole, Required, BAKED, "The id that ends a document, as its last.")],
        section: NO_KEYS,
        available: true,
        doc: "Sequences are cut from the stream of documents; `segments`, `positions` and `weight` tell them apart.",
    },
];

const FILES: Key = key("files", Kind::Text, Required, RUN_TIME, "Path of a file, or a glob of several.");

/// Data sources; `mix { 0.7 …, 0.3 … }` combines them.
pub static SOURCES: &[Variant] = &[
    Variant {
        tag: "bytes",
        args: &[FILES],
        section: NO_KEYS,
        available: true,
        doc: "Files as they are: every byte is an id, so the vocabulary has at least 256.",
    },
    Variant {
        tag: "tokens",
        args: &[
            FILES,
            key(
                "dtype",
                Kind::Word(&["u16", "u32"]),
                Is("u16"),
                BAKED,
                "Width of an id in files without a header.",
            ),
            key(
                "layout",
                Kind::Word(&["stream", "records"]),
                Is("stream"),
                BAKED,
                "One stream of ids, or fixed records of seq + 1.",
            ),
        ],
        section: NO_KEYS,
        available: true,
        doc: "Shards of token ids, with or without the header of llm.c.",
    },
    Variant {
        tag: "synthetic",
        args: &[],
        section: NO_KEYS,
        available: true,
        doc: "Ids made from the seed; needs no files.",
    },
    Variant {
        tag: "text",
        args: &[FILES],
        section: NO_KEYS,
        available: false,
        doc: "Text files, tokenized while reading.",
    },
    Variant {
        tag: "parquet",
        args: &[FILES, key("text", Kind::Text, Is("\"text\""), RUN_TIME, "The column.")],
        section: NO_KEYS,
        available: false,
        doc: "Parquet files, tokenized while reading.",
    },
];

/// `precision = bf16`
const WIDTHS: &[Shorthand] = &[
    Shorthand { word: "f32", keys: &[] },
    Shorthand { word: "bf16", keys: &[("matmul", "bf16"), ("stored", "bf16")] },
];

/// `precision = { … }`
pub static PRECISION: Section = Section {
    keys: &[
        key("params", FLOATS, Is("f32"), BAKED, "Parameters at rest."),
        key("matmul", FLOATS, Is("f32"), BAKED, "Operands of matrix products; their sums are f32."),
        key(
            "stored",
            FLOATS,
            Is("f32"),
            BAKED,
            "Activations kept for the backward pass or handed from layer to layer.",
        ),
        key(
            "reduce",
            FLOATS,
            Is("f32"),
            BAKED,
            "In which terms of sums of products and of gradients travel between devices; every sum is f32.",
        ),
        key(
            "rounding",
            Kind::Word(&["nearest", "stochastic"]),
            Is("nearest"),
            BAKED,
            "How an update rounds parameters of bf16.",
        ),
    ],
    globs: &[Glob { verb: "params", value: Some(FLOATS) }],
};

/// `remat = { … }`
pub static REMAT: Section = Section {
    keys: &[],
    globs: &[
        Glob { verb: "recompute", value: None },
        Glob { verb: "keep", value: None },
        Glob { verb: "offload", value: None },
    ],
};

/// `skip = { … }`
pub static SKIP: Section = Section {
    keys: &[
        key(
            "nonfinite",
            Kind::Switch,
            Is("true"),
            BAKED,
            "Steps whose loss or gradient is infinite or not a number.",
        ),
        key(
            "norm",
            MAYBE_POSITIVE,
            Is("none"),
            RUN_TIME,
            "Steps whose gradient, before clipping, has a global norm above this.",
        ),
        key("stop_after", Kind::Count, Is("10"), BAKED, "So many skipped in a row end the run."),
    ],
    globs: &[],
};

/// `checkpoint = { … }`
pub static CHECKPOINT: Section = Section {
    keys: &[
        key("every", Kind::Whole, Is("1000"), RUN_TIME, "Steps between checkpoints; 0 is only at the end."),
        key("keep", Kind::Count, Is("3"), RUN_TIME, "How many of the newest checkpoints stay."),
        key(
            "keep_every",
            Kind::Whole,
            Is("0"),
            RUN_TIME,
            "Checkpoints at multiples of this stay for good; 0 is none.",
        ),
        key("dir", Kind::Text, Is("\"ckpt\""), RUN_TIME, "Directory."),
    ],
    globs: &[],
};

/// `eval = { … }`
pub static EVAL: Section = Section {
    keys: &[
        key("every", Kind::Count, Is("1000"), RUN_TIME, "Steps between evaluations."),
        key("data", Kind::Source, Required, RUN_TIME, "Held-out data."),
        key("batches", Kind::Count, Is("32"), RUN_TIME, "Microbatches per evaluation."),
    ],
    globs: &[],
};

/// `log = { … }`
pub static LOG: Section = Section {
    keys: &[
        key("every", Kind::Count, Is("10"), RUN_TIME, "Steps between lines."),
        later("tensorboard", Kind::Text, Absent, RUN_TIME, "Directory of TensorBoard events."),
        later("profile", Kind::StepRange, Absent, RUN_TIME, "Steps to trace."),
    ],
    globs: &[],
};

/// `store { … }`
pub static STORE: Section = Section {
    keys: &[
        key("params", Kind::Word(KEPT), Is("sharded"), BAKED, "Parameters at rest."),
        key("grads", Kind::Word(KEPT), Is("sharded"), BAKED, "Gradients, from their sum to the update."),
        key("state", Kind::Word(KEPT), Is("sharded"), BAKED, "Optimizer states."),
        key(
            "regather",
            Kind::Word(&["backward", "forward"]),
            Is("backward"),
            BAKED,
            "Pass of the last gathering of parameters: `backward` gathers again, `forward` keeps them until then.",
        ),
    ],
    globs: &[],
};

/// The keys of `shard { … }`, beside its rules.
pub static SHARD: Section = Section {
    keys: &[key(
        "mode",
        Kind::Word(&["auto", "strict"]),
        Is("auto"),
        BAKED,
        "Where the rules leave a choice: `auto` takes the cheapest, `strict` is an error.",
    )],
    globs: &[Glob { verb: "allow_replicate", value: None }],
};

/// How a kind of tensor lies at rest.
const KEPT: &[&str] = &["sharded", "whole"];

/// `pipeline { … }`, without `stages = n over axis`, which has a form of its own.
pub static PIPELINE: Section = Section {
    keys: &[
        later(
            "schedule",
            Kind::Variant(PIPELINE_SCHEDULES),
            Is("one_f_one_b"),
            BAKED,
            "Order of microbatches.",
        ),
        later("microbatches", Kind::Count, Absent, BAKED, "Microbatches in flight per update."),
    ],
    globs: &[],
};

/// Pipeline schedules.
pub static PIPELINE_SCHEDULES: &[Variant] = &[
    Variant {
        tag: "gpipe",
        args: &[],
        section: NO_KEYS,
        available: true,
        doc: "All forward, then all backward (Huang et al. 2018, arXiv:1811.06965).",
    },
    Variant {
        tag: "one_f_one_b",
        args: &[],
        section: NO_KEYS,
        available: true,
        doc: "One forward, one backward (Narayanan et al. 2021, arXiv:2104.04473, §2.2).",
    },
    Variant {
        tag: "interleaved",
        args: &[key("chunks", Kind::Count, Required, BAKED, "Stages per device.")],
        section: NO_KEYS,
        available: true,
        doc: "Several stages per device (arXiv:2104.04473, §2.2).",
    },
];

/// `target cpu { … }`
pub static TARGET: Section = Section {
    keys: &[
        key("memory", Kind::Bytes, Absent, BAKED, "The plan must fit in this; unlimited if absent."),
        key(
            "arch",
            Kind::AnyWord,
            Absent,
            BAKED,
            "Instruction set of a CPU: `x86-64-v3` (AVX2), `x86-64-v4` (AVX-512) or `native`, this machine's and the default.",
        ),
        key(
            "machine",
            Kind::Text,
            Absent,
            BAKED,
            "Figures that times are predicted with: `\"cpu\"` (the default), `\"h100\"`, `\"v5p\"`, or a file beside the spec that `mlc calibrate` wrote.",
        ),
    ],
    globs: &[],
};

/// What `arch` of a `target cpu` takes.
pub const CPU_ARCHS: &[&str] = &["x86-64-v3", "x86-64-v4", "native"];

/// `adapter lora { … }`
pub static LORA: Section = Section {
    keys: &[
        later(
            "rank",
            Kind::Count,
            Required,
            BAKED,
            "Rank of the added product (Hu et al. 2021, arXiv:2106.09685).",
        ),
        later(
            "alpha",
            Kind::Positive,
            Absent,
            BAKED,
            "The product is scaled by alpha / rank; alpha = rank if absent.",
        ),
        later("on", Kind::Text, Required, BAKED, "Glob of the parameters adapted."),
    ],
    globs: &[],
};

/// The tables of this file as Markdown, for `docs/spec-language.md`.
pub fn reference() -> String {
    let mut out = String::from("### Keys\n| key | takes | default | | meaning |\n|---|---|---|---|---|\n");
    rows("", &TRAIN, &mut out);
    for (title, variants) in
        [("Optimizers", OPTIMIZERS), ("Schedule", SCHEDULES), ("Data", SOURCES), ("Packing", PACKING)]
    {
        out += &format!("\n### {title}\n| form | takes | default | | meaning |\n|---|---|---|---|---|\n");
        for variant in variants {
            let note = if variant.available { "" } else { " Not available yet." };
            out += &format!("| `{}` | | | | {}{note} |\n", variant.tag, variant.doc);
            variant_rows(variant.tag, variant, &mut out);
        }
    }
    out += "\n### Target\n| key | takes | default | | meaning |\n|---|---|---|---|---|\n";
    rows("", &TARGET, &mut out);
    out += "\n### Shard\n| key | takes | default | | meaning |\n|---|---|---|---|---|\n";
    rows("", &SHARD, &mut out);
    out += "\n### Store\n| key | takes | default | | meaning |\n|---|---|---|---|---|\n";
    rows("", &STORE, &mut out);
    out
}

/// Keys of a form, of forms inside it, and of its entries with globs.
fn variant_rows(prefix: &str, variant: &Variant, out: &mut String) {
    for key in variant.args.iter().chain(variant.section.keys) {
        row(&format!("{prefix}."), key, out);
        if let Kind::Variant(inner) = key.kind {
            inner.iter().for_each(|v| variant_rows(&format!("{prefix}.{}", key.name), v, out));
        }
    }
    for glob in variant.section.globs {
        if let Some(Kind::Section(section)) = glob.value {
            rows(&format!("{prefix} {} \"…\".", glob.verb), section, out);
        }
    }
}

fn rows(prefix: &str, section: &Section, out: &mut String) {
    for key in section.keys {
        row(prefix, key, out);
        if let Kind::Section(inner) | Kind::SectionOr(_, inner) = key.kind {
            rows(&format!("{prefix}{}.", key.name), inner, out);
        }
    }
}

fn row(prefix: &str, key: &Key, out: &mut String) {
    let default = match key.default {
        Fallback::Required => "required".to_string(),
        Fallback::Absent => String::new(),
        Fallback::Is(text) => format!("`{text}`"),
    };
    let when = if key.at_run_time { "run" } else { "baked" };
    let note = if key.applied { "" } else { " Not yet applied." };
    let name = format!("{prefix}{}", key.name);
    *out += &format!("| `{name}` | {} | {default} | {when} | {}{note} |\n", key.kind.words(), key.doc);
}

impl Kind {
    /// The kind in a few words.
    pub fn words(self) -> String {
        let list = |words: &[&str]| words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
        match self {
            Kind::Count => "whole number from 1".into(),
            Kind::Whole => "whole number from 0".into(),
            Kind::Positive => "number above 0".into(),
            Kind::NonNegative => "number from 0".into(),
            Kind::Fraction => "number in [0, 1)".into(),
            Kind::Betas => "two numbers in [0, 1)".into(),
            Kind::Switch => "`true`, `false`".into(),
            Kind::Text => "string".into(),
            Kind::Word(words) => list(words),
            Kind::AnyWord => "word".into(),
            Kind::Bytes => "bytes".into(),
            Kind::Batch => "sequences or tokens".into(),
            Kind::OrNone(inner) => format!("{} or `none`", inner.words()),
            Kind::Variant(_) => "a form, see below".into(),
            Kind::Chain(_) => "forms joined by `then`, see below".into(),
            Kind::Source => "a source, see below".into(),
            Kind::Section(_) => "keys in braces".into(),
            Kind::SectionOr(words, _) => {
                let words: Vec<&str> = words.iter().map(|w| w.word).collect();
                format!("{}, or keys in braces", list(&words))
            }
            Kind::WordOrSection(words, _) => format!("{}, or entries in braces", list(words)),
            Kind::StepRange => "`steps(a..b)`".into(),
        }
    }
}
