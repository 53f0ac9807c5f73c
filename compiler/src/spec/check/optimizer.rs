//! The optimizer with its groups, the schedule, and what is frozen.

use super::run::{glob_params, params_hit};
use crate::spec::ast::{File, Item};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::decode::{Decoded, Field, GlobField, Typed};
use crate::spec::diagnostic::Diagnostic;
use crate::spec::source::Span;

/// The optimizer of `train.optimizer = …`; `None` if it lacks a key, which was reported.
pub fn optimizer(value: &Typed, model: &Model, found: &mut Vec<Diagnostic>) -> Option<Optimizer> {
    let Typed::Variant(variant, _, keys) = value else { return None };
    let rule = rule(variant.tag, keys)?;
    let (lr, decay) = (keys.real("lr")?, keys.real("decay")?);
    let own = ParamRate { rule, lr, decay: Decay::Optimizer(decay), decay_by: decay_by(keys) };
    let otherwise = match rule {
        Rule::Muon(_) => Some(otherwise(keys.get("otherwise"), lr)?),
        Rule::AdamW { .. } | Rule::Sgd { .. } | Rule::Lion { .. } | Rule::Adafactor(_) => None,
    };
    let mut per_param: Vec<ParamRate> = Vec::new();
    for param in &model.params {
        per_param.push(otherwise.filter(|_| !is_matrix(param)).unwrap_or(own));
    }
    let mut groups = vec![];
    for glob in &keys.globs {
        let Typed::Section(given) = &glob.value else { continue };
        let params = params_hit(model, glob, found);
        if word(given, "rule") == Some("muon") {
            only_matrices(model, glob, &params, found);
        }
        for id in &params {
            let rate = &mut per_param[id.0 as usize];
            match (word(given, "rule"), otherwise) {
                (Some("otherwise"), Some(other)) => *rate = other,
                (Some("muon"), _) => *rate = own,
                _ => {}
            }
            apply_group(rate, given);
        }
        groups.push(Group { glob: glob.glob.clone(), params, span: glob.span });
    }
    Some(Optimizer { rule, lr, decay, clip: keys.real("clip"), groups, per_param })
}

fn apply_group(rate: &mut ParamRate, given: &Decoded) {
    rate.lr = given.real("lr").unwrap_or(rate.lr);
    if let Some(decay) = given.real("decay") {
        rate.decay = Decay::Group(decay);
    }
    let betas = field(given, "betas").and_then(|f| pair(&f.value));
    match &mut rate.rule {
        Rule::AdamW { beta1, beta2, eps } => {
            (*beta1, *beta2) = betas.unwrap_or((*beta1, *beta2));
            if let Some(Typed::Real(given, _)) = field(given, "eps").map(|f| &f.value) {
                *eps = *given;
            }
        }
        Rule::Lion { beta1, beta2 } => (*beta1, *beta2) = betas.unwrap_or((*beta1, *beta2)),
        Rule::Sgd { .. } | Rule::Adafactor(_) | Rule::Muon(_) => {}
    }
}

/// A key that not every table has.
fn field<'a>(keys: &'a Decoded, name: &str) -> Option<&'a Field> {
    keys.fields.iter().find(|f| f.key.name == name)
}

fn word<'a>(keys: &'a Decoded, name: &str) -> Option<&'a str> {
    match &field(keys, name)?.value {
        Typed::Word(word) => Some(word),
        _ => None,
    }
}

fn pair(value: &Typed) -> Option<(f64, f64)> {
    if let Typed::Pair(a, b, _) = value { Some((*a, *b)) } else { None }
}

fn flag(keys: &Decoded, name: &str) -> bool {
    matches!(keys.get(name), Typed::Flag(true))
}

fn rule(tag: &str, keys: &Decoded) -> Option<Rule> {
    Some(match tag {
        "adamw" => {
            let (beta1, beta2) = pair(keys.get("betas"))?;
            Rule::AdamW { beta1, beta2, eps: keys.real("eps")? }
        }
        "sgd" => Rule::Sgd { momentum: keys.real("momentum")?, nesterov: flag(keys, "nesterov") },
        "lion" => {
            let (beta1, beta2) = pair(keys.get("betas"))?;
            Rule::Lion { beta1, beta2 }
        }
        "adafactor" => Rule::Adafactor(Adafactor {
            exponent: keys.real("exponent")?,
            eps1: keys.real("eps1")?,
            eps2: keys.real("eps2")?,
            threshold: keys.real("threshold")?,
            beta1: keys.real("beta1"),
            scale_by_param: flag(keys, "scale_by_param"),
            relative_step: flag(keys, "relative_step"),
        }),
        "muon" => Rule::Muon(Muon {
            momentum: keys.real("momentum")?,
            nesterov: flag(keys, "nesterov"),
            iterations: keys.integer("iterations")?,
            eps: keys.real("eps")?,
            scale: if keys.text("scale") == Some("shape") { MuonScale::Shape } else { MuonScale::Rms },
        }),
        _ => return None,
    })
}

fn decay_by(keys: &Decoded) -> DecayBy {
    match keys.text("decay_by") {
        Some("schedule") => DecayBy::Schedule,
        Some("gradient") => DecayBy::Gradient,
        _ => DecayBy::Rate,
    }
}

/// The rule of parameters that are no matrices.
fn otherwise(value: &Typed, lr: f64) -> Option<ParamRate> {
    let Typed::Variant(variant, _, keys) = value else { return None };
    Some(ParamRate {
        rule: rule(variant.tag, keys)?,
        lr: keys.real("lr").unwrap_or(lr),
        decay: Decay::Otherwise(keys.real("decay")?),
        decay_by: decay_by(keys),
    })
}

/// Whether a parameter was declared `[inputs.. -> outputs..]`, with both.
fn is_matrix(param: &Param) -> bool {
    !param.inputs.is_empty() && !param.outputs.is_empty()
}

fn only_matrices(model: &Model, glob: &GlobField, params: &[ParamId], found: &mut Vec<Diagnostic>) {
    let Some(other) = params.iter().map(|id| model.param(*id)).find(|p| !is_matrix(p)) else { return };
    found.push(
        Diagnostic::error(codes::VALUE_TYPE, format!("muon updates matrices only, not `{}`", other.path))
            .at(glob.span, "hits it")
            .and(other.span, "declared without inputs or without outputs")
            .help("declare it `[inputs -> outputs]`, or leave it to `otherwise`"),
    );
}

/// The pieces of `train.schedule = …` from step 0 to the horizon.
pub fn schedule(
    field: &Field,
    lr: f64,
    steps: u64,
    steps_at: Span,
    found: &mut Vec<Diagnostic>,
) -> Option<Schedule> {
    let Typed::Chain(chain) = &field.value else { return None };
    let mut pieces: Vec<Piece> = vec![];
    let (mut begin, mut rate) = (0, lr);
    for (i, (piece, span)) in chain.iter().enumerate() {
        let Typed::Variant(variant, args, _) = piece else { return None };
        let last = i + 1 == chain.len();
        let length = args.integer("steps");
        let end = match length {
            Some(n) => begin + n,
            None if last => steps.max(begin),
            None => {
                found.push(
                    Diagnostic::error(
                        codes::MISSING_KEY,
                        format!("`{}` needs its number of steps", variant.tag),
                    )
                    .at(*span, "another piece follows")
                    .help("only the last piece of a schedule may run to the end"),
                );
                return None;
            }
        };
        if end > steps || (begin >= steps && i > 0) {
            found.push(
                Diagnostic::error(
                    codes::RANGE,
                    format!("the schedule is longer than the run: {end} of {steps} steps"),
                )
                .at(*span, format!("from step {begin} to {end}"))
                .and(steps_at, format!("the run has {steps} steps")),
            );
            return None;
        }
        let (shape, from, to) = match variant.tag {
            "warmup" => (Shape::Warmup, 0.0, lr),
            "cosine" => (Shape::Cosine, rate, args.real("to")?),
            "linear" => (Shape::Linear, rate, args.real("to")?),
            "sqrt" => (Shape::Sqrt, rate, args.real("to")?),
            "inverse_sqrt" => {
                let share = begin.max(1) as f64 / end.max(1) as f64;
                (Shape::InverseSqrt, rate, rate * share.sqrt())
            }
            _ => (Shape::Constant, rate, rate),
        };
        if shape == Shape::Warmup && i > 0 {
            let title = "`warmup` starts a schedule";
            found.push(Diagnostic::error(codes::PLACE, title).at(*span, "not at the start"));
            return None;
        }
        pieces.push(Piece { shape, begin, end, steps: length, from, to });
        (begin, rate) = (end, to);
    }
    Some(Schedule { pieces })
}

/// Which parameters `freeze` keeps as they are, one answer per parameter.
pub fn frozen(file: &File, model: &Model, has_run: bool, found: &mut Vec<Diagnostic>) -> Vec<bool> {
    let mut frozen = vec![false; model.params.len()];
    // An adapter adds parameters that the model does not have yet.
    let has_adapter = file.items.iter().any(|i| matches!(i, Item::Adapter(_)));
    let mut last = None;
    for item in &file.items {
        let Item::Freeze(freeze) = item else { continue };
        last = Some(freeze.span);
        let mut hit = |globs: &[crate::spec::ast::Text]| -> Vec<ParamId> {
            globs.iter().flat_map(|glob| glob_params(model, &glob.value, None, glob.span, found)).collect()
        };
        let kept = hit(&freeze.globs);
        let except = if has_adapter { Vec::new() } else { hit(&freeze.except) };
        for id in kept.iter().filter(|id| !except.contains(id)) {
            frozen[id.0 as usize] = true;
        }
    }
    if let Some(span) = last.filter(|_| has_run && !has_adapter && frozen.iter().all(|f| *f)) {
        found.push(
            Diagnostic::error(codes::RANGE, "every parameter is frozen: nothing is left to train")
                .at(span, format!("{} of {}", frozen.len(), frozen.len()))
                .help("leave some out: `freeze \"**\" except \"head\"`"),
        );
    }
    frozen
}
