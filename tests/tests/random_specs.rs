//! Random small decoders, from text to trained parameters: what must not change the numbers does not.
//! `MLC_FUZZ_SPECS` and `MLC_FUZZ_SEED` choose the seeds.

use std::cell::Cell;
use std::collections::BTreeMap;

use mlc::autodiff::config::{Microbatch, TrainConfig};
use mlc::autodiff::from_spec::train_config;
use mlc::autodiff::training_step;
use mlc::graph::from_spec::{Entry, from_spec};
use mlc::graph::recognise::recognise;
use mlc::graph::{Axis, Graph, MeshOp, Name, Op, Output, Type};
use mlc::interpret::{Environment, Mode, Outputs, Tensor, Values, run, run_ranks};
use mlc::pipeline::{CompileError, Runner, training_graph, training_on_mesh};
use mlc::remat::{offload_residuals, rematerialise};
use mlc::spec::checked::{Remat, RematPreset, Spec};
use mlc::spec::{MemoryLoader, SourceMap, check, diagnostic};
use mlc_tests::harness::{Scratch, build_file, loss_bits, succeed, train};
use mlc_tests::programs::{checked, far_off, start};
use mlc_tests::random_layout::random_layout;
use mlc_tests::random_spec::{RandomSpec, random_spec};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let first = number("MLC_FUZZ_SEED", 1);
    first..first + number("MLC_FUZZ_SPECS", default)
}

/// Runs a property on every seed; the first failure is shown with its spec and how to run it alone.
fn for_all(property: &str, default: u64, holds: impl Fn(&RandomSpec) -> Result<(), String>) {
    for seed in seeds(default) {
        let spec = random_spec(seed);
        if let Err(why) = holds(&spec) {
            let again = format!(
                "MLC_FUZZ_SEED={seed} MLC_FUZZ_SPECS=1 cargo test -p mlc-tests --test random_specs {property}"
            );
            panic!("{why}\n--- the spec of seed {seed}:\n{}\n--- again: {again}", spec.text);
        }
    }
}

fn parsed(text: &str) -> Result<(Spec, SourceMap), String> {
    let loader = MemoryLoader { files: vec![("random.spec".into(), text.into())] };
    let mut sources = SourceMap::new();
    match check(&mut sources, &loader, "random.spec", &[]) {
        Ok((spec, _)) => Ok((spec, sources)),
        Err(errors) => Err(diagnostic::render_all(&errors, &sources, false)),
    }
}

/// The training graph, with composites recognised or as they are written.
fn graph(text: &str, microbatch: Option<u64>, recognised: bool) -> Result<Graph, String> {
    let (checked, sources) = parsed(text)?;
    let run = checked.train.as_ref().ok_or("no run")?;
    let forward = from_spec(&checked.model, Entry::Train, run.batch, &sources)
        .map_err(|errors| diagnostic::render_all(&errors, &sources, false))?;
    let forward = if recognised { recognise(forward, &[]) } else { forward };
    let cut = microbatch.map(|size| Microbatch { axis: "batch".into(), size });
    let config = TrainConfig { microbatch: cut, ..train_config(&checked.model, run) };
    training_step(forward, &config).map_err(|e| e.to_string())
}

/// One step in f64, from the same values.
fn step(graph: &Graph) -> Result<Outputs, String> {
    run(graph, &start(graph), Mode::F64).map_err(|e| e.to_string())
}

#[test]
fn accumulated_is_the_big_batch() {
    for_all("accumulated_is_the_big_batch", 40, |spec| {
        let whole = step(&graph(&spec.text, None, true)?)?;
        let cut = step(&graph(&spec.text, Some(spec.microbatch), true)?)?;
        // Both sum the same terms in another order, in f64.
        far_off(&whole, &cut, 1e-11)
            .map_or(Ok(()), |off| Err(format!("in microbatches of {}: {off}", spec.microbatch)))
    });
}

/// One layer of a tensor that is stacked along `layers`.
fn layer_of(tensor: &Tensor, layer: u64) -> Tensor {
    let axis = [Name::from("layers")];
    let i = tensor.ty.position("layers").expect("a tensor of the repeat is stacked");
    let inner: u64 = tensor.ty.axes[i + 1..].iter().map(|a| a.size).product();
    let pieces = tensor.as_floats().chunks(inner as usize);
    let own = pieces.skip(layer as usize).step_by(tensor.ty.axes[i].size as usize);
    Tensor::floats(tensor.ty.without(&axis), own.flatten().copied().collect())
}

/// The tensors under the names they have where layers are written out, stacked ones layer by layer.
fn layers_apart(path: &str, tensor: &Tensor, layers: u64) -> Vec<(Name, Tensor)> {
    if !path.contains("layer.{i}") {
        return vec![(path.into(), tensor.clone())];
    }
    let name = |layer: u64| path.replace("layer.{i}", &format!("layer{layer}")).into();
    (0..layers).map(|layer| (name(layer), layer_of(tensor, layer))).collect()
}

#[test]
fn looped_is_written_out() {
    for_all("looped_is_written_out", 60, |spec| {
        // Dropout keys its numbers by place in the text and iteration: layers written out drop other elements.
        if spec.text.contains("dropout(") {
            return Ok(());
        }
        let looped = graph(&spec.text, None, true)?;
        let environment = start(&looped);
        let apart = |(path, tensor): (&Name, &Tensor)| layers_apart(path.as_str(), tensor, spec.layers);
        let tensors = environment.tensors.iter().flat_map(apart).collect();
        let one_by_one = Environment { tensors, ..environment.clone() };
        let expected = run(&looped, &environment, Mode::F64).map_err(|e| e.to_string())?;
        let written = graph(&spec.written_out(), None, true)?;
        let mut found = run(&written, &one_by_one, Mode::F64).map_err(|e| e.to_string())?;
        let mut expected = Outputs(
            expected
                .0
                .into_iter()
                .flat_map(|(output, tensor)| match output {
                    Output::Report(_) => vec![(output, tensor)],
                    Output::Store(path) => {
                        let apart = layers_apart(path.as_str(), &tensor, spec.layers).into_iter();
                        apart.map(|(path, tensor)| (Output::Store(path), tensor)).collect()
                    }
                })
                .collect(),
        );
        for outputs in [&mut expected, &mut found] {
            outputs.0.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        let names =
            |outputs: &Outputs| outputs.0.iter().map(|(o, t)| (o.clone(), t.ty.clone())).collect::<Vec<_>>();
        if names(&expected) != names(&found) {
            return Err(format!("{:?}\n{:?}", names(&expected), names(&found)));
        }
        // The gradients' norm adds up the same squares in another order.
        far_off(&expected, &found, 1e-10).map_or(Ok(()), Err)
    });
}

/// What every preset saves and computes again gives the bits of a step that saves all, in both arithmetics of the
/// interpreter; and so does what the host's memory holds.
#[test]
fn remat_changes_no_bit() {
    const PRESETS: [RematPreset; 4] =
        [RematPreset::Auto, RematPreset::Full, RematPreset::Dots, RematPreset::Attn];
    for_all("remat_changes_no_bit", 40, |spec| {
        let cut = (spec.layers % 2 == 0).then_some(spec.microbatch);
        let plain = graph(&spec.text, cut, true)?;
        let environment = start(&plain);
        let by = |preset| rematerialise(plain.clone(), &Remat { preset, rules: Vec::new() }).0;
        let named = PRESETS.map(|preset| (format!("{preset:?}"), by(preset))).into_iter();
        for (name, after) in named.chain([("offload".to_string(), offload_residuals(plain.clone()))]) {
            for mode in [Mode::F64, Mode::F32] {
                let [expected, found] = [&plain, &after].map(|graph| run(graph, &environment, mode));
                if expected != found {
                    return Err(format!("{name} in {mode:?} changes bits"));
                }
            }
        }
        Ok(())
    });
}

/// The tensor with zeros at the end of axes that a mesh makes longer.
fn longer(tensor: &Tensor, padding: &BTreeMap<Name, (u64, u64)>) -> Tensor {
    let long = |a: &Axis| {
        let size =
            padding.get(&a.name).filter(|(real, _)| *real == a.size).map_or(a.size, |(_, padded)| *padded);
        Axis::new(&a.name, size)
    };
    let axes: Vec<Axis> = tensor.ty.axes.iter().map(long).collect();
    if axes == tensor.ty.axes {
        return tensor.clone();
    }
    let ty = Type::new(tensor.ty.dtype, axes);
    let mut values = vec![0.0; ty.numel() as usize];
    for (i, x) in tensor.as_floats().iter().enumerate() {
        let (mut rest, mut at, mut stride) = (i as u64, 0, 1);
        for (old, new) in tensor.ty.axes.iter().zip(&ty.axes).rev() {
            at += rest % old.size * stride;
            rest /= old.size;
            stride *= new.size;
        }
        values[at as usize] = *x;
    }
    Tensor::floats(ty, values)
}

/// On any mesh, under any rules, a step of all ranks together gives the losses, the parameters and the states of one rank's. Every number
/// is compared, in f64, where nothing but the order of sums differs. 10,000 of them:
/// `MLC_FUZZ_SPECS=10000 cargo test -p mlc-tests --test random_specs sharded_is_one_rank`.
#[test]
fn sharded_is_one_rank() {
    let (specs, sends, refused) = (Cell::new(0), Cell::new(0), Cell::new(0));
    for_all("sharded_is_one_rank", 40, |spec| {
        let text = random_layout(spec, spec.seed);
        let (checked, sources) = parsed(&text)?;
        let shown = |why: String| {
            format!("{why}\n--- the layout:\n{}", text.split("\nmesh ").last().unwrap_or_default())
        };
        let failed = |e: CompileError| match e {
            CompileError::Spec(found) => diagnostic::render_all(&found, &sources, false),
            CompileError::Memory(why) => why,
            CompileError::Internal { stage, message } => format!("{stage}: {message}"),
        };
        let plain =
            training_graph(&checked, &sources, &mut Runner::default()).map_err(failed).map_err(shown)?;
        let local = match training_on_mesh(&checked, &sources, &mut Runner::default()) {
            // What can't be built says so.
            Err(CompileError::Spec(_)) => {
                refused.set(refused.get() + 1);
                return Ok(());
            }
            other => other.map_err(failed).map_err(shown)?,
        };
        let mut environment = start(&plain);
        let expected = run(&plain, &environment, Mode::F64).map_err(|e| shown(e.to_string()))?;
        for tensor in environment.tensors.values_mut().filter(|t| matches!(t.values, Values::Float(_))) {
            *tensor = longer(tensor, &local.padding);
        }
        let ranks = run_ranks(&local, &environment, Mode::F64).map_err(|e| shown(e.to_string()))?;
        let found = ranks.assemble(&local).map_err(shown)?;
        let expected =
            Outputs(expected.0.into_iter().map(|(o, t)| (o, longer(&t, &local.padding))).collect());
        specs.set(specs.get() + 1);
        let sending = local.ops.iter().filter(|n| matches!(n.op, Op::Mesh(MeshOp::Collective(_)))).count();
        sends.set(sends.get() + sending);
        far_off(&expected, &found, 1e-9).map_or(Ok(()), |off| Err(shown(off)))
    });
    let (specs, sends, refused) = (specs.get(), sends.get(), refused.get());
    println!("{specs} specs on meshes, {sends} collectives in their texts, {refused} that can't be built");
    assert!(sends > 5 * specs && refused * 10 <= specs + refused, "{sends} collectives, {refused} refused");
}

#[test]
fn recognised_is_what_is_written() {
    for_all("recognised_is_what_is_written", 40, |spec| {
        let written = step(&graph(&spec.text, None, false)?)?;
        let recognised = step(&graph(&spec.text, None, true)?)?;
        far_off(&written, &recognised, 1e-10).map_or(Ok(()), Err)
    });
}

#[test]
fn programs_compute_what_specs_mean() {
    for_all("programs_compute_what_specs_mean", 12, |spec| {
        let cut = (spec.layers % 2 == 0).then_some(spec.microbatch);
        checked(&graph(&spec.text, cut, true)?).map(|_| ())
    });
}

#[test]
fn resumed_is_uninterrupted() {
    for_all("resumed_is_uninterrupted", 2, |spec| {
        let folder = Scratch::new("resumed");
        let (file, binary) = (folder.join("random.spec"), folder.join("random"));
        let checkpoints =
            spec.text.replace("    data = ", "    checkpoint = { every = 2, keep = 9 }\n    data = ");
        std::fs::write(&file, checkpoints).map_err(|e| e.to_string())?;
        build_file(&file, &binary, &[]);
        let (whole, halves) = (folder.join("whole"), folder.join("halves"));
        succeed(&mut train(&binary, &whole, &[]));
        succeed(&mut train(&binary, &halves, &["--steps", "3"]));
        succeed(&mut train(&binary, &halves, &["--threads", "1"]));
        let (whole, halves) =
            (loss_bits(&whole.join("metrics.jsonl")), loss_bits(&halves.join("metrics.jsonl")));
        if whole == halves { Ok(()) } else { Err(format!("{whole:?}\n{halves:?}")) }
    });
}
