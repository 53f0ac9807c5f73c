//! What a training binary knows of its spec beyond the program itself: the defaults of the run, external weight names,
//! which keys are baked.

use crate::spec::checked::{
    self, Data, IterationRange, Layout, LayoutDim, Model, NamePart, NameRule, Param, Spec, Train,
};
use crate::spec::{Diagnostic, codes};
use crate::units;
use mlc_codegen::abi::{DataInfo, InputSource, NameRow, NameTable, RunInfo, ScalarInfo, SkipInfo};

/// See the module.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// Defaults of the run.
    pub run: RunInfo,
    /// External weight names.
    pub names: Vec<NameTable>,
    /// Skipped steps.
    pub skip: Option<SkipInfo>,
}

/// Gathers it, with a note for everything the runtime can't do yet.
pub fn metadata(spec: &Spec, train: &Train) -> (Metadata, Vec<Diagnostic>) {
    let mut notes = Vec::new();
    let names =
        spec.model.names.iter().filter_map(|table| name_table(&spec.model, table, &mut notes)).collect();
    notes.extend(updates_wait(&spec.model, train));
    let skip = train
        .skip
        .map(|skip| SkipInfo { stop_after: skip.stop_after, gradients: gradients(&spec.model, train) });
    (Metadata { run: run_info(train, &mut notes), names, skip }, notes)
}

/// Why the updates of repeated layers can't run inside the backward loop, with what that costs.
fn updates_wait(model: &Model, train: &Train) -> Option<Diagnostic> {
    let updated = model.params.iter().zip(&train.frozen).filter(|(_, frozen)| !**frozen);
    let held: u64 =
        updated.filter(|(p, _)| !p.repeats.is_empty()).map(|(p, _)| p.elements() * F32_BYTES).sum();
    let why = if train.optimizer.clip.is_some() {
        "`clip` needs their norm before the first update".to_string()
    } else if train.skip.is_some() {
        "`skip` needs their norm before the first update".to_string()
    } else if train.accumulation > 1 {
        format!("they add up over {} microbatches", train.accumulation)
    } else {
        return None;
    };
    let title = format!("the gradients of all layers are held at once ({}): {why}", units::bytes(held));
    (held > 0).then(|| Diagnostic::note(codes::UPDATES_WAIT, title).at(train.span, ""))
}

/// Gradients are sums, kept in f32.
const F32_BYTES: u64 = 4;

/// Paths of the parameters that are not frozen.
fn gradients(model: &Model, train: &Train) -> Vec<String> {
    let params = model.params.iter().zip(&train.frozen);
    params.filter(|(_, frozen)| !**frozen).map(|(param, _)| param.path.clone()).collect()
}

/// Keys fixed at build time with their values: the model's sizes, and of the run all that are neither a run-time scalar of
/// the program nor read by the runtime itself.
pub fn baked_keys(spec: &Spec, train: &Train, scalars: &[ScalarInfo]) -> Vec<(String, String)> {
    let model = &spec.model;
    let at_run_time = |path: &str| {
        scalars.iter().any(|s| s.key == path)
            || ["train.steps", "train.seed", "train.data"].contains(&path)
            || ["train.checkpoint", "train.eval", "train.log"].iter().any(|section| path.starts_with(section))
    };
    let sizes = model.sizes.iter().filter(|size| !size.by_run);
    let sizes = sizes.map(|size| (format!("{}.{}", model.name, size.name), size.value.to_string()));
    let keys = train.keys.iter().filter(|k| !at_run_time(&k.path)).map(|k| (k.path.clone(), k.value.clone()));
    sizes.chain(keys).chain(spec.layout.iter().flat_map(layout_keys)).collect()
}

/// `mesh.…` and `store.…`.
fn layout_keys(layout: &Layout) -> Vec<(String, String)> {
    let mesh = layout.mesh.iter().map(|a| (format!("mesh.{}", a.name), a.size.to_string()));
    mesh.chain(layout.store.keys().map(|(key, word)| (format!("store.{key}"), word.to_string()))).collect()
}

/// What fills each input of a model, by its name and type.
///
/// # Errors
/// One for every input that no reader can fill.
pub fn input_sources(model: &Model) -> Result<Vec<(String, InputSource)>, Vec<Diagnostic>> {
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for input in &model.inputs {
        match input_source(input) {
            Some(source) => sources.push((input.name.clone(), source)),
            None => errors.push(
                Diagnostic::error(
                    codes::NOT_AVAILABLE,
                    format!("no data source can fill the input `{}`", input.name),
                )
                .at(input.span, "")
                .help(
                    "the readers give `tokens: ids<…>[batch, seq]`, `targets: ids<…>[batch, seq]`, \
                     `segments: int[batch, seq]`, `positions: int[batch, seq]` and `weight[batch, seq]`",
                ),
            ),
        }
    }
    if errors.is_empty() { Ok(sources) } else { Err(errors) }
}

fn input_source(input: &checked::Input) -> Option<InputSource> {
    let axes: Vec<&str> = input.ty.axes.iter().map(|a| a.name.as_str()).collect();
    if axes != ["batch", "seq"] {
        return None;
    }
    let seq = input.ty.axes[1].size;
    // Documents of a row, and places in them, are fewer than its tokens.
    let counts_to_seq = input.ty.elem == checked::Elem::Int && input.bound.is_none_or(|bound| bound >= seq);
    match input.name.as_str() {
        "tokens" if input.bound.is_some() => Some(InputSource::Tokens),
        "targets" if input.bound.is_some() => Some(InputSource::Targets),
        "segments" if counts_to_seq => Some(InputSource::Segments),
        "positions" if counts_to_seq => Some(InputSource::Positions),
        "weight" if input.ty.elem == checked::Elem::Real => Some(InputSource::Weight),
        _ => None,
    }
}

fn run_info(train: &Train, notes: &mut Vec<Diagnostic>) -> RunInfo {
    let eval = train.eval.as_ref();
    RunInfo {
        steps: train.steps,
        seed: train.seed,
        data: data_info(train, &train.data, notes),
        eval_data: eval.and_then(|e| data_info(train, &e.data, notes)),
        document_end: train.document_end,
        eval_every: eval.map_or(0, |e| e.every),
        eval_batches: eval.map_or(0, |e| e.batches),
        checkpoint_every: train.checkpoint.every,
        checkpoint_keep: train.checkpoint.keep,
        checkpoint_keep_every: train.checkpoint.keep_every,
        checkpoint_dir: train.checkpoint.dir.clone(),
        log_every: train.log.every,
    }
}

fn data_info(train: &Train, data: &Data, notes: &mut Vec<Diagnostic>) -> Option<DataInfo> {
    let what = match data {
        Data::Bytes { glob } => return Some(DataInfo::Bytes { path: glob.clone() }),
        Data::Tokens { glob, id_bytes, records } => {
            return Some(DataInfo::Tokens { path: glob.clone(), width: *id_bytes as u32, records: *records });
        }
        Data::Synthetic => return Some(DataInfo::Synthetic),
        Data::Text { .. } => "text with a tokenizer",
        Data::Parquet { .. } => "parquet",
        Data::Mix(_) => "mix",
    };
    let title = format!("the binary can't read {what} yet; give it tokens with `--data`");
    notes.push(Diagnostic::note(codes::NOT_APPLIED, title).at(train.span, ""));
    None
}

fn name_table(model: &Model, table: &checked::NameTable, notes: &mut Vec<Diagnostic>) -> Option<NameTable> {
    let mut rows = Vec::new();
    for rule in &table.rules {
        match rule_rows(model, rule) {
            Some(of_rule) => rows.extend(of_rule),
            None => {
                let title = format!(
                    "the name table `{}` fuses tensors, which import can't take apart yet",
                    table.name
                );
                notes.push(Diagnostic::note(codes::NOT_APPLIED, title).at(rule.span, "this rule"));
                return None;
            }
        }
    }
    Some(NameTable { name: table.name.clone(), rows })
}

/// One row per iteration of the repeats around the parameter; `None` for a rule that lays several end to end.
fn rule_rows(model: &Model, rule: &NameRule) -> Option<Vec<NameRow>> {
    let [param] = rule.params.as_slice() else { return None };
    let param = model.param(*param);
    let logical: Vec<&str> = param.axes().map(|a| a.name.as_str()).collect();
    let position = |axis: &checked::Axis| logical.iter().position(|name| *name == axis.name);
    let axes = rule
        .layout
        .iter()
        .map(|dim| match dim {
            LayoutDim::Axes(axes) => axes.iter().map(position).collect::<Option<Vec<usize>>>(),
            LayoutDim::Concat(_) => None,
        })
        .collect::<Option<Vec<_>>>()?;
    let rows = iterations(param, &rule.iterations).into_iter().map(|at| NameRow {
        logical: logical_name(param, &at),
        external: foreign_name(&rule.foreign, &at),
        axes: axes.clone(),
    });
    Some(rows.collect())
}

/// All index tuples a rule covers, last index fastest.
fn iterations(param: &Param, ranges: &[IterationRange]) -> Vec<Vec<u64>> {
    let mut tuples = vec![Vec::new()];
    for (repeat, range) in param.repeats.iter().zip(ranges) {
        let indices: Vec<u64> = match range {
            IterationRange::All => (0..repeat.axis.size).collect(),
            IterationRange::One(i) => vec![*i],
        };
        tuples = tuples
            .iter()
            .flat_map(|t| indices.iter().map(move |i| t.iter().copied().chain([*i]).collect()))
            .collect();
    }
    tuples
}

fn logical_name(param: &Param, at: &[u64]) -> String {
    param.repeats.iter().zip(at).fold(param.path.clone(), |path, (repeat, index)| {
        path.replace(&format!("{{{}}}", repeat.variable), &index.to_string())
    })
}

fn foreign_name(parts: &[NamePart], at: &[u64]) -> String {
    parts
        .iter()
        .map(|part| match part {
            NamePart::Text(text) => text.clone(),
            NamePart::Index { repeat, scale, offset } => (at[*repeat] as i64 * scale + offset).to_string(),
        })
        .collect()
}
