use super::*;
use crate::spec::{FileLoader, check};

/// The checked spec of a file of the repository, with overrides.
pub(crate) fn spec(path: &str, sets: &[&str]) -> (Spec, SourceMap) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join(path).to_string_lossy().into_owned();
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut sources = SourceMap::new();
    match check(&mut sources, &FileLoader, &path, &sets) {
        Ok((spec, _)) => (spec, sources),
        Err(errors) => panic!("{}", crate::spec::diagnostic::render_all(&errors, &sources, false)),
    }
}

/// The messages of a spec's training graphs down to one rank's; empty if there is nothing to say.
pub(crate) fn train_messages(text: &str) -> String {
    let loader = crate::spec::MemoryLoader { files: vec![("m.spec".into(), text.into())] };
    let mut sources = SourceMap::new();
    let shown = |found: &[Diagnostic], sources: &SourceMap| {
        let errors: Vec<Diagnostic> = found.iter().filter(|d| d.is_error()).cloned().collect();
        crate::spec::diagnostic::render_all(&errors, sources, false)
    };
    let (spec, _) = match check(&mut sources, &loader, "m.spec", &[]) {
        Ok(checked) => checked,
        Err(found) => return shown(&found, &sources),
    };
    match graphs(&spec, &sources, &mut Runner::default()) {
        Ok(_) => String::new(),
        Err(CompileError::Spec(found)) => shown(&found, &sources),
        Err(other) => format!("{other:?}"),
    }
}

/// Texts of the stage of the entry `train`, with file names relative to the repository.
fn text(stage: &str, path: &str, sets: &[&str]) -> String {
    let (spec, sources) = spec(path, sets);
    let mut found = String::new();
    let mut runner = Runner::viewing(Box::new(|at, entry, text| {
        if at == stage && entry == "train" {
            found = text;
        }
    }));
    graphs(&spec, &sources, &mut runner).unwrap();
    drop(runner);
    let root = format!("{}/../", env!("CARGO_MANIFEST_DIR"));
    found.replace(&root, "")
}

fn golden(model: &str, name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("{}/../tests/models/{model}", env!("CARGO_MANIFEST_DIR")));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn llama70b_has_the_published_number_of_parameters() {
    assert_eq!(spec("specs/llama70b.spec", &[]).0.model.parameter_count(), 70_553_706_496);
}

#[test]
fn mixtures_of_experts_have_the_published_numbers_of_parameters() {
    let count = |path: &str, sets: &[&str]| spec(path, sets).0.model.parameter_count();
    assert_eq!(count("specs/mixtral.spec", &[]), 46_702_792_704);
    // 1,142,890,168,320 without 129 norms of 8192 and 64 tables of 32 buckets for 64 heads.
    assert_eq!(count("specs/glam.spec", &[]), 1_142_890_168_320 + 129 * 8192 + 64 * 32 * 64);
    let small = ["Glam.d=768", "Glam.ff=3072", "Glam.pairs=6", "Glam.head=12", "Glam.hd=64"];
    assert_eq!(count("specs/glam.spec", &small), 1_921_646_592 + 25 * 768 + 12 * 32 * 12);
}

#[test]
fn mixtures_of_experts_compile() {
    for (model, grouped) in [("mixtral", true), ("glam", false)] {
        let (spec, sources) = spec(&format!("tests/models/{model}/{model}.spec"), &[]);
        let mut graph = String::new();
        let mut runner = Runner::viewing(Box::new(|at, entry, text| {
            if at == "training" && entry == "train" {
                graph = text;
            }
        }));
        let compiled = compile(&spec, &sources, &Identity::default(), &mut runner).unwrap();
        drop(runner);
        let outputs = &compiled.program.info.entries[0].outputs;
        assert!(outputs.iter().any(|o| o.name.ends_with("moe.balance")), "{model}: {outputs:?}");
        assert_eq!(graph.contains("= grouped_dot along expert rows row tile=16"), grouped, "{model}");
        assert_eq!(graph.contains("= grouped_outer along expert=4"), grouped, "{model}");
    }
}

#[test]
fn llama70b_graph_reads_as_recorded() {
    golden("llama70b", "graph", &text("graph", "specs/llama70b.spec", &[]));
}

#[test]
fn llama70b_training_reads_as_recorded() {
    golden("llama70b", "training", &text("training", "specs/llama70b.spec", &[]));
}

#[test]
fn stages_do_not_grow_with_layers() {
    for stage in ["graph", "training"] {
        let lines = |layers: &str| text(stage, "specs/llama70b.spec", &[layers]).lines().count();
        assert_eq!(lines("Llama.layers=2"), lines("Llama.layers=200"), "{stage}");
    }
    // From some size on: a reduction over very few elements needs one kernel less.
    let launches = |layers: &str| compiled(&[layers]).program.info.ops.len();
    assert_eq!(launches("Llama.layers=100"), launches("Llama.layers=1000"));
}

fn compiled(sets: &[&str]) -> Compiled {
    let (spec, sources) = spec("specs/tiny.spec", sets);
    compile(&spec, &sources, &Identity::default(), &mut Runner::default()).unwrap()
}

#[test]
fn compile_gives_the_same_program_again() {
    let (first, second) = (compiled(&[]), compiled(&[]));
    assert_eq!(first.program, second.program);
    assert_ne!(first.program.info.fingerprint, compiled(&["Llama.layers=3"]).program.info.fingerprint);
}

#[test]
fn compile_keeps_run_time_keys_out_of_the_baked_ones() {
    let program = compiled(&[]).program;
    let baked: Vec<&str> = program.info.baked.iter().map(|(key, _)| key.as_str()).collect();
    assert!(baked.contains(&"train.seq") && baked.contains(&"train.optimizer.betas"), "{baked:?}");
    for scalar in &program.info.scalars {
        assert!(!baked.contains(&scalar.key.as_str()), "{}", scalar.key);
    }
}

#[test]
fn compile_refuses_what_does_not_fit_and_names_the_owners() {
    let (mut spec, sources) = spec("specs/tiny.spec", &[]);
    spec.target.memory_bytes = Some(1 << 20);
    let refused = compile(&spec, &sources, &Identity::default(), &mut Runner::default());
    let Err(CompileError::Memory(message)) = refused else { panic!("1 MiB is too little") };
    assert!(message.contains("the target has 1.0 MiB"), "{message}");
    assert!(message.contains("llama.spec:"), "owners carry their line: {message}");
}

#[test]
fn compile_of_a_model_alone_asks_for_a_run() {
    let (spec, sources) = spec("specs/llama.spec", &[]);
    let refused = compile(&spec, &sources, &Identity::default(), &mut Runner::default());
    assert!(
        matches!(refused, Err(CompileError::Spec(errors)) if errors[0].title.contains("no run to build"))
    );
}

#[test]
fn runner_names_the_stage_that_panics() {
    let result: Result<()> = Runner::default().run("fused", || panic!("on purpose"));
    let Err(CompileError::Internal { stage, message }) = result else { panic!("an error was expected") };
    assert_eq!((stage, message.as_str()), ("fused", "panicked: on purpose"));
}

/// Messages of a whole compilation of this text.
fn refused(text: &str) -> Vec<String> {
    let loader = crate::spec::MemoryLoader { files: vec![("m.spec".into(), text.into())] };
    let mut sources = SourceMap::new();
    let titles =
        |errors: Vec<Diagnostic>| errors.into_iter().filter(|e| e.is_error()).map(|e| e.title).collect();
    match check(&mut sources, &loader, "m.spec", &[]) {
        Err(errors) => titles(errors),
        Ok((spec, _)) => match compile(&spec, &sources, &Identity::default(), &mut Runner::default()) {
            Err(CompileError::Spec(errors)) => titles(errors),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it compiles"),
        },
    }
}

const RUN: &str =
    "train { steps = 1, batch = 2 sequences, seq = 4, data = synthetic(), optimizer = sgd { lr = 1 } }\n";

#[test]
fn compile_refuses_inputs_that_nothing_fills() {
    let text = format!(
        "spec 1\nmodel M {{\nsize d = 3\nsize batch = run, seq = run\ninput x[batch, seq, d]\nparam w[d] = ones\n\
         loss mean[batch, seq](dot[d](x, w))\n}}\n{RUN}"
    );
    let titles = refused(&text);
    assert!(titles.iter().any(|t| t.contains("no data source can fill the input `x`")), "{titles:?}");
}

#[test]
fn compile_refuses_stages_of_a_pipeline() {
    let with = |mesh: &str| {
        format!(
            "spec 1\nmodel M {{\nsize vocab = 8, d = 4\nsize batch = run, seq = run\n\
             input tokens: ids<vocab>[batch, seq]\nparam e[vocab, d] = ones\n\
             loss mean[batch, seq](sum[d](gather[vocab](e, tokens)))\n}}\n\
             mesh {{ {mesh} }}\nshard {{\nbatch -> data\nd -> none\n}}\n{RUN}"
        )
    };
    let stages = refused(&with("data = 1, stage = 2 pipeline"));
    assert_eq!(stages, ["stages of a pipeline can't be built yet: `stage`"]);
}

/// What the runtime counts its ranks over is the mesh in its order.
#[test]
fn compile_gives_the_runtime_the_order_of_the_mesh() {
    let mesh = |mesh: &str| {
        let text = format!(
            "spec 1\nmodel M {{\nsize vocab = 8, d = 4\nsize batch = run, seq = run\n\
             input tokens: ids<vocab>[batch, seq]\nparam e[vocab, d] = ones\n\
             loss mean[batch, seq](sum[d](gather[vocab](e, tokens)))\n}}\n\
             mesh {{ {mesh} }}\nshard {{\nbatch -> data\nd -> fsdp\n}}\n{RUN}"
        );
        let loader = crate::spec::MemoryLoader { files: vec![("m.spec".into(), text)] };
        let mut sources = SourceMap::new();
        let (spec, _) = check(&mut sources, &loader, "m.spec", &[]).unwrap_or_else(|e| panic!("{e:?}"));
        let compiled = compile(&spec, &sources, &Identity::default(), &mut Runner::default()).unwrap();
        compiled.program.info.mesh.iter().map(|a| (a.name.clone(), a.size)).collect::<Vec<_>>()
    };
    let [data, fsdp] = [("data".to_string(), 2), ("fsdp".to_string(), 4)];
    assert_eq!(mesh("data = 2, fsdp = 4"), [data.clone(), fsdp.clone()]);
    assert_eq!(mesh("data = 2, fsdp = 4, order = [fsdp, data]"), [fsdp, data]);
}

#[test]
fn compile_trains_a_bias_inside_the_attention_kernels() {
    let text = format!(
        "spec 1\nmodel M {{\nsize vocab = 8, hd = 4\nsize batch = run, seq = run\n\
         input tokens: ids<vocab>[batch, seq]\ninput targets: ids<vocab>[batch, seq]\n\
         param e[vocab, hd], b[seq] = ones\nq = gather[vocab](e, tokens)\nk = q as [seq: pos]\n\
         o = std.Attend[seq, pos, hd](q, k, k, causal = true, bias = b as [seq: pos])\n\
         loss mean[batch, seq](cross_entropy[vocab](dot[hd](o, e), targets))\n}}\n{RUN}"
    );
    let loader = crate::spec::MemoryLoader { files: vec![("m.spec".into(), text)] };
    let mut sources = SourceMap::new();
    let (spec, _) = check(&mut sources, &loader, "m.spec", &[]).unwrap_or_else(|e| panic!("{e:?}"));
    let compiled = compile(&spec, &sources, &Identity::default(), &mut Runner::default()).unwrap();
    let kernels: Vec<&str> = compiled.program.kernels.iter().map(|k| k.name.as_str()).collect();
    assert!(kernels.iter().any(|name| name.starts_with("attention_dextra0_")), "{kernels:?}");
    assert!(compiled.notes.is_empty(), "{:?}", compiled.notes);
}

/// What each choice of `remat` saves and costs, and the memory of the whole program.
fn remat_of(path: &str) -> String {
    let choices =
        ["auto", "none", "full", "dots", "attn", "{ recompute \"layer.*\", offload \"layer.*.x\" }"];
    let mut text = String::new();
    for choice in choices {
        let (spec, sources) = spec(path, &[&format!("train.remat={choice}")]);
        let compiled = compile(&spec, &sources, &Identity::default(), &mut Runner::default()).unwrap();
        let report = compiled.plan.report;
        let flops = compiled.program.info.entries[0].flops;
        text += &format!("remat = {choice}\n");
        text +=
            &format!("memory: {} ({} bytes)", crate::units::bytes(report.arena_bytes), report.arena_bytes);
        text += &format!(", on the host {} bytes; a step: {flops} FLOP\n", report.host_bytes);
        text += &format!("{}\n", compiled.remat);
    }
    text.trim_end().replace(&format!("{}/../", env!("CARGO_MANIFEST_DIR")), "")
}

#[test]
fn remat_of_t2_is_as_recorded() {
    golden("t2", "remat", &remat_of("tests/models/t2/t2.spec"));
}

#[test]
fn remat_of_llama70b_is_as_recorded() {
    golden("llama70b", "remat", &remat_of("specs/llama70b.spec"));
}

#[test]
fn remat_adds_the_operations_it_says() {
    let step = |choice: &str| {
        let compiled = compiled(&[&format!("train.remat={choice}")]);
        (compiled.program.info.entries[0].flops, compiled.remat.flops)
    };
    let (plain, none) = step("none");
    assert_eq!(none, 0);
    for choice in ["auto", "full", "dots", "attn", "{ recompute \"layer.*.mlp\" }"] {
        let (all, added) = step(choice);
        assert_eq!(u128::from(all), u128::from(plain) + added, "{choice}");
    }
}

#[test]
fn unroll_repeats_changes_no_bit_of_a_step() {
    let text = |unroll: &str| {
        format!(
            "spec 1\nmodel M {{\nsize vocab = 8, d = 4, layers = 4\nsize batch = run, seq = run\n\
             input tokens: ids<vocab>[batch, seq]\ninput targets: ids<vocab>[batch, seq]\n\
             block Layer(x[batch, seq, d], s) -> [batch, seq, d] {{\n  param w[d] = normal(1)\n  x + tanh(x * w) * s\n}}\n\
             param e[vocab, d] = normal(1)\n\
             x = repeat[layers](Layer@layer, gather[vocab](e, tokens), s = [1, 2]{unroll})\n\
             loss mean[batch, seq](cross_entropy[vocab](dot[d](x, e), targets))\n}}\n{RUN}"
        )
    };
    let program = |text: &str| {
        let loader = crate::spec::MemoryLoader { files: vec![("m.spec".into(), text.into())] };
        let mut sources = SourceMap::new();
        let (spec, notes) = check(&mut sources, &loader, "m.spec", &[]).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        compile(&spec, &sources, &Identity::default(), &mut Runner::default()).unwrap().program
    };
    // Parameters, states and inputs of small numbers that differ from byte to byte; ids stay below 8.
    let memory = |program: &Program| {
        use mlc_codegen::program::execute::{Precision, execute};
        let bytes = program.info.spaces[0].bytes as usize;
        let mut spaces = vec![vec![0u8; bytes]];
        for tensor in &program.info.tensors {
            for i in 0..tensor.shape.iter().product::<u64>() * tensor.layers.unwrap_or(1) {
                let value = (i as f32 * 0.7).sin();
                let at = (tensor.place.offset + 4 * i) as usize;
                spaces[0][at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        for input in &program.info.entries[0].inputs {
            for i in 0..input.shape.iter().product::<u64>() {
                let at = (input.place.offset + 4 * i) as usize;
                spaces[0][at..at + 4].copy_from_slice(&((i * 5 % 8) as i32).to_le_bytes());
            }
        }
        execute(program, 0, &mut spaces, Precision::AsWritten).unwrap();
        let read = |offset: u64, n: u64| spaces[0][offset as usize..(offset + n) as usize].to_vec();
        let tensors = program.info.tensors.iter();
        let sizes =
            tensors.map(|t| (t.place.offset, 4 * t.shape.iter().product::<u64>() * t.layers.unwrap_or(1)));
        let stored: Vec<Vec<u8>> = sizes.map(|(offset, n)| read(offset, n)).collect();
        let loss = program.info.entries[0].outputs.iter().find(|o| o.name == "loss").unwrap();
        (read(loss.place.offset, 4), stored)
    };
    let plain = program(&text(""));
    let expected = memory(&plain);
    assert!(f32::from_le_bytes(expected.0[..].try_into().unwrap()).is_finite());
    for k in [2, 4] {
        let unrolled = program(&text(&format!(", unroll = {k}")));
        assert_ne!(unrolled.entries, plain.entries);
        mlc_codegen::program::verify(&unrolled).unwrap();
        assert_eq!(memory(&unrolled), expected, "unroll = {k}");
    }
}
