//! The optimizers and the pieces of a schedule.

use super::Fallback::{Absent, Is, Required};
use super::{BAKED, Glob, Key, Kind, MAYBE_POSITIVE, NO_KEYS, RUN_TIME, Section, Variant, key};

const LR: Key = key("lr", Kind::Positive, Required, RUN_TIME, "Peak learning rate.");
const DECAY: Key = key("decay", Kind::NonNegative, Is("0"), RUN_TIME, "Weight decay.");
const CLIP: Key = key("clip", MAYBE_POSITIVE, Is("none"), RUN_TIME, "Largest global norm of the gradient.");
const BETAS: Key =
    key("betas", Kind::Betas, Is("(0.9, 0.95)"), BAKED, "Decay of the first and second moment.");
const EPS: Key = key("eps", Kind::Positive, Is("1e-8"), BAKED, "Added to the root of the second moment.");

const DECAY_BY: Key = key(
    "decay_by",
    Kind::Word(&["rate", "schedule", "gradient"]),
    Is("rate"),
    BAKED,
    "What `decay` multiplies, see below.",
);
/// Of rules whose step has nothing of the gradient's size.
const DECAY_BY_OR: Key = key(
    "decay_by",
    Kind::Word(&["rate", "schedule"]),
    Is("rate"),
    BAKED,
    "What `decay` multiplies, see below.",
);

const GROUP_LR: Key = key("lr", Kind::NonNegative, Absent, BAKED, "Peak learning rate of the group.");
const GROUP_DECAY: Key = key("decay", Kind::NonNegative, Absent, BAKED, "Weight decay of the group.");
const GROUP_BETAS: Key = key("betas", Kind::Betas, Absent, BAKED, "Betas of the group.");

/// `params "**.norm*.w" { … }`
static GROUP: Section = Section { keys: &[GROUP_LR, GROUP_DECAY], globs: &[] };
static GROUP_OF_ADAMW: Section = Section {
    keys: &[
        GROUP_LR,
        GROUP_DECAY,
        GROUP_BETAS,
        key("eps", Kind::Positive, Absent, BAKED, "Epsilon of the group."),
    ],
    globs: &[],
};
static GROUP_OF_LION: Section = Section { keys: &[GROUP_LR, GROUP_DECAY, GROUP_BETAS], globs: &[] };
static GROUP_OF_MUON: Section = Section {
    keys: &[
        GROUP_LR,
        GROUP_DECAY,
        key(
            "rule",
            Kind::Word(&["muon", "otherwise"]),
            Absent,
            BAKED,
            "`otherwise` gives matrices such as the head to the other rule.",
        ),
    ],
    globs: &[],
};

const GROUPS: &[Glob] = &[Glob { verb: "params", value: Some(Kind::Section(&GROUP)) }];
const GROUPS_OF_ADAMW: &[Glob] = &[Glob { verb: "params", value: Some(Kind::Section(&GROUP_OF_ADAMW)) }];
const GROUPS_OF_LION: &[Glob] = &[Glob { verb: "params", value: Some(Kind::Section(&GROUP_OF_LION)) }];
const GROUPS_OF_MUON: &[Glob] = &[Glob { verb: "params", value: Some(Kind::Section(&GROUP_OF_MUON)) }];

/// The optimizers.
pub static OPTIMIZERS: &[Variant] = &[
    Variant {
        tag: "adamw",
        args: &[],
        section: Section { keys: &[LR, BETAS, EPS, DECAY, DECAY_BY, CLIP], globs: GROUPS_OF_ADAMW },
        available: true,
        doc: "Adam (Kingma, Ba 2014, arXiv:1412.6980) with decoupled weight decay (Loshchilov, Hutter 2017, arXiv:1711.05101).",
    },
    Variant {
        tag: "sgd",
        args: &[],
        section: Section {
            keys: &[
                LR,
                key(
                    "momentum",
                    Kind::Fraction,
                    Is("0"),
                    BAKED,
                    "Share of the last step kept; 0 keeps no state.",
                ),
                key("nesterov", Kind::Switch, Is("false"), BAKED, "Nesterov's form of momentum."),
                DECAY,
                DECAY_BY,
                CLIP,
            ],
            globs: GROUPS,
        },
        available: true,
        doc: "Stochastic gradient descent, with momentum if it is above 0.",
    },
    Variant {
        tag: "adafactor",
        args: &[],
        section: Section {
            keys: &[
                LR,
                key(
                    "exponent",
                    Kind::Positive,
                    Is("0.8"),
                    BAKED,
                    "Step t mixes t^(−exponent) of the new squares into the second moment.",
                ),
                key("eps1", Kind::Positive, Is("1e-30"), BAKED, "Added to squares of the gradient."),
                key(
                    "eps2",
                    Kind::Positive,
                    Is("1e-3"),
                    BAKED,
                    "Least root mean square a parameter counts with.",
                ),
                key(
                    "threshold",
                    Kind::Positive,
                    Is("1"),
                    BAKED,
                    "Root mean square a step is cut to, before the rate.",
                ),
                key(
                    "beta1",
                    Kind::OrNone(&Kind::Fraction),
                    Is("none"),
                    BAKED,
                    "Decay of a first moment of the steps; `none` keeps none.",
                ),
                key(
                    "scale_by_param",
                    Kind::Switch,
                    Is("true"),
                    BAKED,
                    "Steps grow with the parameter's root mean square.",
                ),
                key("relative_step", Kind::Switch, Is("false"), BAKED, "The rate of step t is at most 1/√t."),
                DECAY,
                DECAY_BY_OR,
                CLIP,
            ],
            globs: GROUPS,
        },
        available: true,
        doc: "Second moments kept as their row and column means (Shazeer, Stern 2018, arXiv:1804.04235).",
    },
    Variant {
        tag: "lion",
        args: &[],
        section: Section {
            keys: &[
                LR,
                key(
                    "betas",
                    Kind::Betas,
                    Is("(0.9, 0.99)"),
                    BAKED,
                    "Shares of the momentum in the step, and kept.",
                ),
                DECAY,
                DECAY_BY_OR,
                CLIP,
            ],
            globs: GROUPS_OF_LION,
        },
        available: true,
        doc: "Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).",
    },
    Variant {
        tag: "muon",
        args: &[],
        section: Section {
            keys: &[
                LR,
                key("momentum", Kind::Fraction, Is("0.95"), BAKED, "Share of the momentum kept."),
                key("nesterov", Kind::Switch, Is("true"), BAKED, "Nesterov's form of momentum."),
                key("iterations", Kind::Count, Is("5"), BAKED, "Steps of the Newton–Schulz iteration."),
                key(
                    "eps",
                    Kind::Positive,
                    Is("1e-7"),
                    BAKED,
                    "Least norm the momentum is divided by before the iteration.",
                ),
                key(
                    "scale",
                    Kind::Word(&["rms", "shape"]),
                    Is("rms"),
                    BAKED,
                    "The rate is multiplied by 0.2·√max(rows, columns), or by √max(1, outputs/inputs).",
                ),
                DECAY,
                DECAY_BY_OR,
                CLIP,
                key(
                    "otherwise",
                    Kind::Variant(OTHERWISE),
                    Is("adamw"),
                    BAKED,
                    "The rule of everything that is no matrix `[in -> out]`.",
                ),
            ],
            globs: GROUPS_OF_MUON,
        },
        available: true,
        doc: "Orthogonalised momentum for matrices (Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982).",
    },
];

/// Rules of what Muon can't update.
static OTHERWISE: &[Variant] = &[Variant {
    tag: "adamw",
    args: &[],
    section: Section {
        keys: &[
            key("lr", Kind::Positive, Absent, BAKED, "Peak learning rate; that of Muon if absent."),
            BETAS,
            EPS,
            DECAY,
            DECAY_BY,
        ],
        globs: &[],
    },
    available: true,
    doc: "As the optimizer of that name.",
}];

const STEPS: Key = key("steps", Kind::Count, Absent, RUN_TIME, "How long; to the end of the run if absent.");
const TO: Key = key("to", Kind::NonNegative, Is("0"), RUN_TIME, "Rate at the end.");

/// Pieces of a schedule.
pub static SCHEDULES: &[Variant] = &[
    Variant { tag: "constant", args: &[STEPS], section: NO_KEYS, available: true, doc: "The rate stays." },
    Variant {
        tag: "warmup",
        args: &[key("steps", Kind::Count, Required, RUN_TIME, "How long.")],
        section: NO_KEYS,
        available: true,
        doc: "The rate rises in a straight line to the optimizer's `lr`.",
    },
    Variant {
        tag: "cosine",
        args: &[TO, STEPS],
        section: NO_KEYS,
        available: true,
        doc: "The rate falls along half a cosine (Loshchilov, Hutter 2016, arXiv:1608.03983).",
    },
    Variant {
        tag: "linear",
        args: &[TO, STEPS],
        section: NO_KEYS,
        available: true,
        doc: "The rate changes in a straight line.",
    },
    Variant {
        tag: "sqrt",
        args: &[TO, STEPS],
        section: NO_KEYS,
        available: true,
        doc: "The rate falls as 1 − √p, p being the share of the piece that is done (Hägele et al. 2024, arXiv:2405.18392).",
    },
    Variant {
        tag: "inverse_sqrt",
        args: &[STEPS],
        section: NO_KEYS,
        available: true,
        doc: "The rate falls as √(n/t) at step t, n being the first step of the piece (Vaswani et al. 2017, arXiv:1706.03762).",
    },
];
