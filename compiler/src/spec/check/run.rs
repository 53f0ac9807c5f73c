//! The run: `train` and `target`.

use super::model::RunSizes;
use crate::spec::ast::{File, Item, SectionItem};
use crate::spec::checked::*;
use crate::spec::codes;
use crate::spec::decode::{Decoded, GlobField, Typed, decode};
use crate::spec::diagnostic::{Diagnostic, nearest};
use crate::spec::glob::{Hit, hit, nearest_paths};
use crate::spec::schema;
use crate::spec::source::Span;
use std::collections::BTreeMap;

/// A `train` section with its keys typed, and the numbers the model needs.
pub struct Run {
    /// The keys.
    pub keys: Decoded,
    /// Sequences per update.
    pub batch: u64,
    /// Tokens per sequence.
    pub seq: u64,
    /// Sequences processed at once per data shard.
    pub microbatch: u64,
    data_shards: u64,
    span: Span,
}

/// The last section of a kind in a file; earlier ones are duplicates.
pub fn section<'a>(file: &'a File, kind: &str, found: &mut Vec<Diagnostic>) -> Option<&'a SectionItem> {
    let mut sections = file.items.iter().filter_map(|item| match item {
        Item::Section(s) if s.kind.name == kind => Some(s),
        _ => None,
    });
    let first = sections.next()?;
    for again in sections {
        found.push(
            Diagnostic::error(codes::DUPLICATE, format!("`{kind}` is given twice"))
                .at(again.kind.span, "again")
                .and(first.kind.span, "first given here"),
        );
    }
    Some(first)
}

impl Run {
    /// Types the `train` section, for a batch split into this many parts; `None` if the file has none.
    pub fn read(file: &File, data_shards: u64, found: &mut Vec<Diagnostic>) -> Option<Run> {
        let item = section(file, "train", found)?;
        let keys = decode(&item.section, &schema::TRAIN, "train", found);
        let seq = keys.integer("seq").unwrap_or(super::PLACEHOLDER_SEQ);
        let batch = match keys.get("batch") {
            Typed::Batch(n, false) => *n,
            Typed::Batch(n, true) => tokens_to_sequences(*n, seq, &keys, found),
            _ => super::PLACEHOLDER_BATCH,
        };
        let whole = (batch / data_shards).max(1);
        let microbatch = keys.integer("microbatch").unwrap_or(whole);
        let run = Run { keys, batch, seq, microbatch, data_shards, span: item.kind.span };
        if !batch.is_multiple_of(run.global_microbatch()) {
            found.push(run.does_not_divide());
        }
        Some(run)
    }

    /// Sequences processed at once over all data shards.
    fn global_microbatch(&self) -> u64 {
        self.microbatch.saturating_mul(self.data_shards)
    }

    fn does_not_divide(&self) -> Diagnostic {
        let Run { batch, microbatch, data_shards, .. } = *self;
        let written = self.keys.field("microbatch").at;
        let at_once = match data_shards {
            1 => microbatch.to_string(),
            shards if written.is_written() => format!("{microbatch} · {shards} data shards"),
            shards => format!("{shards} data shards"),
        };
        let title = format!("the batch does not divide into microbatches: {batch} by {at_once}");
        let batch_at = self.keys.field("batch").at;
        let place = if written.is_written() { written } else { batch_at };
        let label = format!("{batch} is not a multiple of {}", self.global_microbatch());
        let mut diagnostic = Diagnostic::error(codes::BATCH_DIVIDE, title).at(place, label);
        if written.is_written() {
            diagnostic = diagnostic.and(batch_at, "the batch");
        }
        let per_shard = batch / data_shards;
        if !batch.is_multiple_of(data_shards) {
            let fits = [per_shard, per_shard + 1].into_iter().filter(|n| *n > 0);
            let fits: Vec<String> = fits.map(|n| (n * data_shards).to_string()).collect();
            return diagnostic
                .help(format!("a batch for {data_shards} data shards is {}", fits.join(" or ")));
        }
        let below = (1..=microbatch.min(per_shard)).rev().find(|m| per_shard % m == 0).unwrap_or(1);
        let above = (microbatch..=per_shard).find(|m| per_shard % m == 0).unwrap_or(per_shard);
        diagnostic.help(if below == above {
            format!("use {below}")
        } else {
            format!("use {below} or {above}")
        })
    }

    /// The sizes the model takes from the run.
    pub fn sizes(&self) -> RunSizes {
        let place = |name: &str, other: &str| {
            let at = self.keys.field(name).at;
            if at.is_written() { at } else { self.keys.field(other).at }
        };
        RunSizes {
            batch: self.global_microbatch(),
            seq: self.seq,
            span: Some((place("microbatch", "batch"), place("seq", "seq"))),
        }
    }

    /// The checked section; parameter groups are resolved with the model.
    pub fn finish(&self, model: &Model, frozen: Vec<bool>, found: &mut Vec<Diagnostic>) -> Option<Train> {
        let errors = found.iter().filter(|d| d.is_error()).count();
        let steps = self.keys.integer("steps")?;
        let optimizer = super::optimizer::optimizer(self.keys.get("optimizer"), model, found)?;
        let steps_at = self.keys.field("steps").at;
        let pieces = self.keys.field("schedule");
        let schedule = super::optimizer::schedule(pieces, optimizer.lr, steps, steps_at, found)?;
        let train = Train {
            steps,
            batch: self.batch,
            seq: self.seq,
            microbatch: self.microbatch,
            global_microbatch: self.global_microbatch(),
            accumulation: (self.batch / self.global_microbatch()).max(1),
            seed: self.keys.integer("seed")?,
            data: source(self.keys.get("data"))?,
            tokenizer: self.keys.text("tokenizer").map(str::to_string),
            document_end: self.packing(model, found)?,
            optimizer,
            frozen,
            schedule,
            skip: self.skip(),
            precision: self.precision(model, found)?,
            remat: super::remat::remat(&self.keys, model, found),
            checkpoint: self.checkpoint()?,
            eval: self.eval(),
            log: Log { every: self.keys.section("log")?.integer("every")? },
            keys: keys(&self.keys, "train"),
            span: self.span,
        };
        self.vocabulary(model, &train, found);
        (found.iter().filter(|d| d.is_error()).count() == errors).then_some(train)
    }

    /// The id that ends a document, if sequences are packed with documents; an error if the model could not tell them
    /// apart.
    #[allow(clippy::option_option, reason = "the outer option is the error")]
    fn packing(&self, model: &Model, found: &mut Vec<Diagnostic>) -> Option<Option<u32>> {
        let Typed::Variant(variant, args, _) = self.keys.get("pack") else { return None };
        if variant.tag == "none" {
            return Some(None);
        }
        let field = self.keys.field("pack");
        let at = field.origin.to(field.at);
        let end = args.integer("end")?;
        let vocabulary = model.inputs.iter().find(|i| i.name == "tokens").and_then(|i| i.bound);
        let bound = vocabulary.unwrap_or(1 << 31);
        if end >= bound {
            let title = format!("no token can end a document: {end} is not below the vocabulary of {bound}");
            found.push(Diagnostic::error(codes::RANGE, title).at(at, ""));
            return None;
        }
        if !model.inputs.iter().any(|i| ["segments", "positions", "weight"].contains(&i.name.as_str())) {
            let title =
                format!("`pack = documents` changes nothing: `{}` does not tell documents apart", model.name);
            found.push(
                Diagnostic::error(codes::ARGUMENTS, title)
                    .at(at, "")
                    .and(model.span, "has none of the inputs `segments`, `positions` and `weight`")
                    .help("declare those it needs: `input segments: int[batch, seq]`, `input positions: int[batch, seq]`, `input weight[batch, seq]`"),
            );
            return None;
        }
        Some(Some(end as u32))
    }

    fn precision(&self, model: &Model, found: &mut Vec<Diagnostic>) -> Option<Precision> {
        let section = self.keys.section("precision")?;
        let float = |name: &str| if section.text(name) == Some("bf16") { Float::Bf16 } else { Float::F32 };
        let mut of_param = BTreeMap::new();
        for glob in &section.globs {
            let width = if is_bf16(&glob.value) { Float::Bf16 } else { Float::F32 };
            // The later rule wins.
            of_param.extend(params_hit(model, glob, found).into_iter().map(|id| (id, width)));
        }
        let [params, matmul, stored, reduce] = ["params", "matmul", "stored", "reduce"].map(float);
        let stochastic = section.text("rounding") == Some("stochastic");
        if stochastic && params == Float::F32 && !of_param.values().any(|width| *width == Float::Bf16) {
            let at = section.field("rounding");
            let title = "`rounding = stochastic` without a parameter of bf16";
            found.push(
                Diagnostic::error(codes::PLACE, title)
                    .at(at.at, "nothing is rounded")
                    .help("write `params = bf16`, or `params \"GLOB\": bf16`"),
            );
        }
        Some(Precision { params, matmul, stored, reduce, of_param, stochastic })
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        let c = self.keys.section("checkpoint")?;
        Some(Checkpoint {
            every: c.integer("every")?,
            keep: c.integer("keep")?,
            keep_every: c.integer("keep_every")?,
            dir: c.text("dir")?.to_string(),
        })
    }

    fn skip(&self) -> Option<Skip> {
        let s = self.keys.section("skip")?;
        let nonfinite = matches!(s.get("nonfinite"), Typed::Flag(true));
        let skip = Skip { nonfinite, norm: s.real("norm"), stop_after: s.integer("stop_after")? };
        (skip.nonfinite || skip.norm.is_some()).then_some(skip)
    }

    fn eval(&self) -> Option<Eval> {
        let e = self.keys.section("eval")?;
        Some(Eval {
            every: e.integer("every")?,
            data: source(e.get("data"))?,
            batches: e.integer("batches")?,
        })
    }

    /// Bytes are ids below 256, so the model needs as many.
    fn vocabulary(&self, model: &Model, train: &Train, found: &mut Vec<Diagnostic>) {
        let eval = train.eval.as_ref().map(|e| &e.data);
        let bytes = |d: &Data| matches!(d, Data::Bytes { .. });
        if !bytes(&train.data) && !eval.is_some_and(bytes) {
            return;
        }
        for input in model.inputs.iter().filter(|i| !["segments", "positions"].contains(&i.name.as_str())) {
            if let Some(bound) = input.bound.filter(|b| *b < 256) {
                found.push(
                    Diagnostic::error(
                        codes::VOCABULARY,
                        format!("bytes need a vocabulary of 256, `{}` has {bound}", input.name),
                    )
                    .at(self.keys.field("data").at, "every byte is an id")
                    .and(input.span, "declared here"),
                );
            }
        }
    }
}

fn is_bf16(value: &Typed) -> bool {
    matches!(value, Typed::Word(w) if w == "bf16")
}

fn tokens_to_sequences(tokens: u64, seq: u64, keys: &Decoded, found: &mut Vec<Diagnostic>) -> u64 {
    if !tokens.is_multiple_of(seq) {
        found.push(
            Diagnostic::error(
                codes::BATCH_DIVIDE,
                format!("the batch is not a whole number of sequences: {tokens} tokens by {seq}"),
            )
            .at(keys.field("batch").at, format!("{tokens} is not a multiple of {seq}"))
            .and(keys.field("seq").at, "tokens per sequence"),
        );
    }
    (tokens / seq).max(1)
}

/// Parameters a glob hits; an error if there are none, or if it hits single iterations of a repeat.
pub fn params_hit(model: &Model, glob: &GlobField, found: &mut Vec<Diagnostic>) -> Vec<ParamId> {
    let except = glob.except.as_deref();
    glob_params(model, &glob.glob, except, glob.span, found)
}

/// As [`params_hit`], for a glob anywhere.
pub fn glob_params(
    model: &Model,
    glob: &str,
    except: Option<&str>,
    span: Span,
    found: &mut Vec<Diagnostic>,
) -> Vec<ParamId> {
    let mut ids = vec![];
    let mut part = None;
    for (i, param) in model.params.iter().enumerate() {
        match hit(glob, &param.path, &param.repeats) {
            Hit::No => {}
            Hit::Part => part = Some(param),
            Hit::Whole => {
                let left_out = except.is_some_and(|e| hit(e, &param.path, &param.repeats) == Hit::Whole);
                if !left_out {
                    ids.push(ParamId(i as u32));
                }
            }
        }
    }
    if let Some(param) = part {
        found.push(part_of_repeat(glob, &param.path, param.repeats.last(), span));
    } else if ids.is_empty() {
        let paths = model.params.iter().map(|p| p.path.as_str());
        found.push(hits_nothing(glob, "parameter", paths, span));
    }
    ids
}

/// A glob that hits single iterations.
pub fn part_of_repeat(glob: &str, path: &str, repeat: Option<&RepeatDim>, span: Span) -> Diagnostic {
    let count = repeat.map_or(0, |r| r.axis.size);
    let axis = repeat.map_or("layers", |r| r.axis.name.as_str());
    Diagnostic::error(codes::PART_OF_REPEAT, format!("the rule hits single iterations of `{path}`"))
        .at(span, format!("`{glob}` names some of {count}"))
        .meaning("all iterations of a repeat share one compiled body")
        .help(format!("give each pair its own body, `repeat[{axis} / 2](Pair@pair, x)`, or cycle a constant, `window = [4096, none]`"))
}

/// A glob that hits nothing.
pub fn hits_nothing<'a>(
    glob: &str,
    what: &str,
    paths: impl IntoIterator<Item = &'a str>,
    span: Span,
) -> Diagnostic {
    let near = nearest_paths(glob, paths);
    let diagnostic = Diagnostic::error(codes::GLOB_NOTHING, format!("the glob hits no {what}: `{glob}`"))
        .at(span, "hits nothing");
    if near.is_empty() { diagnostic } else { diagnostic.help(format!("nearest: {}", near.join(", "))) }
}

fn source(value: &Typed) -> Option<Data> {
    match value {
        Typed::Mix(parts) => {
            let parts: Option<Vec<(f64, Data)>> = parts.iter().map(|(w, s)| Some((*w, source(s)?))).collect();
            Some(Data::Mix(parts?))
        }
        Typed::Variant(variant, args, _) => {
            let glob = || args.text("files").map(str::to_string);
            Some(match variant.tag {
                "bytes" => Data::Bytes { glob: glob()? },
                "tokens" => Data::Tokens {
                    glob: glob()?,
                    id_bytes: if args.text("dtype") == Some("u32") { 4 } else { 2 },
                    records: args.text("layout") == Some("records"),
                },
                "text" => Data::Text { glob: glob()? },
                "parquet" => Data::Parquet { glob: glob()?, column: args.text("text")?.to_string() },
                _ => Data::Synthetic,
            })
        }
        _ => None,
    }
}

/// Every key below a section with its value and origin.
pub fn keys(section: &Decoded, path: &str) -> Vec<Key> {
    let mut all = vec![];
    for field in &section.fields {
        let path = format!("{path}.{}", field.key.name);
        match &field.value {
            Typed::Absent => continue,
            Typed::Section(inner) => all.extend(keys(inner, &path)),
            Typed::Variant(variant, args, body) => {
                let head = Typed::Variant(
                    variant,
                    args.clone(),
                    Box::new(Decoded { fields: vec![], ..(**body).clone() }),
                );
                all.push(Key {
                    path: path.clone(),
                    value: head.show(),
                    origin: field.origin,
                    at_run_time: field.key.at_run_time,
                });
                all.extend(keys(body, &path));
            }
            value => all.push(Key {
                path,
                value: value.show(),
                origin: field.origin,
                at_run_time: field.key.at_run_time,
            }),
        }
    }
    all
}

/// Reports an instruction set that the code generator does not know.
fn known_arch(keys: &Decoded, found: &mut Vec<Diagnostic>) {
    let Some(arch) = keys.text("arch").filter(|a| !schema::CPU_ARCHS.contains(a)) else { return };
    let known: Vec<String> = schema::CPU_ARCHS.iter().map(|a| format!("`{a}`")).collect();
    let title = format!("unknown instruction set: `{arch}`");
    let mut diagnostic = Diagnostic::error(codes::VALUE_TYPE, title)
        .at(keys.field("arch").at, format!("expected one of {}", known.join(", ")));
    if let Some(near) = nearest(arch, schema::CPU_ARCHS.iter().copied()) {
        diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
    }
    found.push(diagnostic);
}

/// The machine: the file's first target, or this machine's CPU.
pub fn target(file: &File, has_run: bool, found: &mut Vec<Diagnostic>) -> Target {
    let mut chosen = None;
    let mut labels: Vec<(String, Span)> = vec![];
    for item in &file.items {
        let Item::Target(t) = item else { continue };
        let keys = decode(&t.section, &schema::TARGET, "target", found);
        let kind = match t.kind.name.as_str() {
            "cpu" => TargetKind::Cpu,
            "cuda" => {
                found.push(super::not_built("target cuda", t.kind.span, has_run));
                TargetKind::Cuda
            }
            other => {
                let title = format!("unknown target: `{other}`");
                found.push(
                    Diagnostic::error(codes::VALUE_TYPE, title).at(t.kind.span, "expected `cpu` or `cuda`"),
                );
                TargetKind::Cpu
            }
        };
        let label = t.label.as_ref().map(|l| l.value.clone());
        let name = format!("{} {}", t.kind.name, label.clone().unwrap_or_default());
        if let Some((_, first)) = labels.iter().find(|(n, _)| *n == name) {
            found.push(
                Diagnostic::error(codes::DUPLICATE, "two targets of one name")
                    .at(t.kind.span, "again")
                    .and(*first, "first given here"),
            );
        }
        labels.push((name, t.kind.span));
        if kind == TargetKind::Cpu {
            known_arch(&keys, found);
        }
        let arch = keys.text("arch").map(str::to_string);
        let machine = keys.text("machine").map(str::to_string);
        let memory_bytes = keys.integer("memory");
        if chosen.is_none() {
            chosen = Some(Target { kind, label, memory_bytes, arch, machine, span: t.kind.span });
        }
    }
    chosen.unwrap_or(Target {
        kind: TargetKind::Cpu,
        label: None,
        memory_bytes: None,
        arch: None,
        machine: None,
        span: Span::NONE,
    })
}
