//! `--init`: weights made elsewhere.

use std::path::PathBuf;

use mlc_runtime::failure::Exit;
use mlc_runtime::random::Stream;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::fixture::{LAYERS, VOCAB};
use crate::harness::Folder;

/// A tensor for a file: name, type, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

const N: usize = VOCAB as usize;

/// A small number that bf16 and f16 hold exactly, different for every place.
fn value(layer: usize, from: usize, to: usize) -> f32 {
    ((layer * 7 + from * 3 + to * 5) % 127) as f32 / 128.0 - 0.5
}

fn f32s(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

/// The weights under the logical names.
fn logical() -> Vec<Tensor> {
    let layer = |i: usize| f32s((0..N * N).map(move |e| value(i, e / N, e % N)));
    let mut tensors: Vec<Tensor> =
        (0..LAYERS as usize).map(|i| (format!("layer.{i}.w"), Dtype::F32, vec![N, N], layer(i))).collect();
    tensors.push(("bias".to_owned(), Dtype::F32, vec![N], f32s((0..N).map(|v| value(9, v, 0)))));
    tensors
}

/// The same weights as the `hf` table names them: layers transposed, in other types.
fn external() -> Vec<Tensor> {
    let transposed = |i: usize| (0..N * N).map(move |e| value(i, e % N, e / N));
    let bf16 = transposed(0).flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let f16 = transposed(1).flat_map(|v| half(v).to_le_bytes()).collect();
    vec![
        ("blocks.0.weight".to_owned(), Dtype::BF16, vec![N, N], bf16),
        ("blocks.1.weight".to_owned(), Dtype::F16, vec![N, N], f16),
        ("out.bias".to_owned(), Dtype::F32, vec![N], f32s((0..N).map(|v| value(9, v, 0)))),
    ]
}

/// Binary16 of a multiple of 1/128 below 1, which it holds exactly.
fn half(v: f32) -> u16 {
    let sign = if v < 0.0 { 0x8000 } else { 0 };
    let magnitude = v.abs();
    if magnitude == 0.0 {
        return sign;
    }
    let bits = magnitude.to_bits();
    sign | ((((bits >> 23) - 112) as u16) << 10) | ((bits >> 13) & 0x3ff) as u16
}

fn write(folder: &Folder, name: &str, tensors: &[Tensor]) -> PathBuf {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let path = folder.file(name);
    std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
    path
}

fn failure(folder: &Folder, file: &str) -> String {
    let output = folder.run(&format!("train --data @/text.txt --out @/x --init @/{file}"));
    assert_eq!(output.exit, Exit::Failed, "{}", output.err);
    output.err
}

#[test]
fn init_reads_logical_and_external_names_alike() {
    let folder = Folder::new();
    write(&folder, "logical.safetensors", &logical());
    write(&folder, "external.safetensors", &external());
    let a = folder.train("a", "--steps 5 --init @/logical.safetensors");
    let b = folder.train("b", "--steps 5 --init @/external.safetensors");
    folder.train("c", "--steps 5");
    assert!(a.err.contains("3 parameters from") && a.err.contains("(logical names)"), "{}", a.err);
    assert!(b.err.contains("(hf names)"), "{}", b.err);
    assert_eq!(folder.losses("a"), folder.losses("b"));
    assert_ne!(folder.losses("a"), folder.losses("c"));
}

#[test]
fn init_puts_every_element_in_its_place() {
    let folder = Folder::new();
    write(&folder, "external.safetensors", &external());
    folder.train("run", "--steps 1 --set train.optimizer.lr=0 --init @/external.safetensors");
    let bytes = std::fs::read(folder.file("run/ckpt/step-00000001/00001.safetensors")).unwrap();
    let saved = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, _, _, expected) in logical() {
        assert!(saved.tensor(&name).unwrap().data() == expected, "{name}");
    }
}

#[test]
fn init_reads_an_index_of_several_files() {
    let folder = Folder::new();
    let tensors = logical();
    write(&folder, "1.safetensors", &tensors[..1]);
    write(&folder, "2.safetensors", &tensors[1..]);
    let index = r#"{"weight_map": {"layer.0.w": "1.safetensors", "layer.1.w": "2.safetensors", "bias": "2.safetensors"}}"#;
    std::fs::write(folder.file("model.safetensors.index.json"), index).unwrap();
    write(&folder, "whole.safetensors", &tensors);
    folder.train("a", "--steps 2 --init @/model.safetensors.index.json");
    folder.train("b", "--steps 2 --init @/whole.safetensors");
    assert_eq!(folder.losses("a"), folder.losses("b"));
}

#[test]
fn init_passes_over_names_that_are_no_weights() {
    let folder = Folder::new();
    let mut tensors = logical();
    tensors.push(("__inputs".to_owned(), Dtype::I32, vec![1], vec![0; 4]));
    write(&folder, "w.safetensors", &tensors);
    folder.train("run", "--steps 1 --init @/w.safetensors");
}

#[test]
fn init_takes_the_parameters_of_a_checkpoint() {
    let folder = Folder::new();
    folder.train("first", "");
    let output = folder.train(
        "second",
        "--steps 1 --set train.optimizer.lr=0 --init @/first/ckpt/step-00000040/00001.safetensors",
    );
    assert!(output.err.contains("3 parameters from"), "{}", output.err);
    let shard = |name: &str| std::fs::read(folder.file(name).join("00001.safetensors")).unwrap();
    let (old, new) = (shard("first/ckpt/step-00000040"), shard("second/ckpt/step-00000001"));
    let (old, new) = (
        safetensors::SafeTensors::deserialize(&old).unwrap(),
        safetensors::SafeTensors::deserialize(&new).unwrap(),
    );
    let data = |file: &safetensors::SafeTensors, name: &str| file.tensor(name).unwrap().data().to_vec();
    assert!(data(&old, "layer.1.w") == data(&new, "layer.1.w") && data(&old, "bias") == data(&new, "bias"));
    // The momenta begin anew.
    assert!(data(&old, "bias.m") != data(&new, "bias.m"));

    let mut tensors = logical();
    tensors.push(("bias.v".to_owned(), Dtype::F32, vec![1], vec![0; 4]));
    write(&folder, "other.safetensors", &tensors);
    assert!(failure(&folder, "other.safetensors").contains("bias.v is in the file but not in the model"));
}

/// By either naming what is exported can be read again, and `hf` is the file another program would have written.
#[test]
fn export_is_the_inverse_of_init() {
    let folder = Folder::new();
    write(&folder, "external.safetensors", &external());
    folder.train("run", "--steps 1 --set train.optimizer.lr=0 --init @/external.safetensors");
    for (names, expected) in [("", external()), ("--names hf", external()), ("--names logical", logical())] {
        let output = folder.run(&format!("export --out @/run --to @/out.safetensors {names}"));
        assert_eq!(output.exit, Exit::Done, "{}", output.err);
        assert!(output.out.starts_with("3 parameters of "), "{}", output.out);
        let bytes = std::fs::read(folder.file("out.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), expected.len());
        for (name, _, shape, values) in expected {
            let view = file.tensor(&name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (Dtype::F32, shape.as_slice()));
            // Others of these files are of shorter types.
            assert!(view.data().len() != values.len() || view.data() == values, "{name}");
        }
        folder.train("again", "--steps 1 --set train.optimizer.lr=0 --resume never --init @/out.safetensors");
        let shard =
            |run: &str| std::fs::read(folder.file(run).join("ckpt/step-00000001/00001.safetensors")).unwrap();
        let (a, b) = (shard("run"), shard("again"));
        let (a, b) = (
            safetensors::SafeTensors::deserialize(&a).unwrap(),
            safetensors::SafeTensors::deserialize(&b).unwrap(),
        );
        for name in ["layer.0.w", "layer.1.w", "bias"] {
            assert!(a.tensor(name).unwrap().data() == b.tensor(name).unwrap().data(), "{name}");
        }
        assert!(!folder.file("out.safetensors.unfinished").exists());
    }
}

#[test]
fn export_says_what_is_wrong() {
    let mut folder = Folder::new();
    for (line, exit, part) in [
        ("export --out @/run", Exit::Usage, "Name the file with --to"),
        ("export --out @/run --to @/x --names hg", Exit::Usage, "it has: hf, logical\nDid you mean hf?"),
        ("export --out @/run --to @/x", Exit::Failed, "there is no checkpoint in"),
    ] {
        let output = folder.run(line);
        assert_eq!(output.exit, exit, "{line}");
        assert!(output.err.contains(part), "{line}: {}", output.err);
    }
    folder.train("run", "--steps 1");
    let output = folder.run("export --out @/run --to @/none/x");
    assert!(output.err.contains("error: cannot write "), "{}", output.err);
    folder.info.names[0].rows.pop();
    let output = folder.run("export --out @/run --to @/x");
    assert!(output.err.contains("the table `hf` lacks names of parameters: bias"), "{}", output.err);
}

#[test]
fn init_lists_what_is_missing_extra_or_of_another_shape() {
    let folder = Folder::new();
    let mut tensors = external();
    tensors.remove(0);
    tensors.push(("blocks.2.weight".to_owned(), Dtype::F32, vec![1], vec![0; 4]));
    write(&folder, "missing.safetensors", &tensors);
    let text = failure(&folder, "missing.safetensors");
    assert!(text.contains("by hf names, missing: blocks.0.weight\n"), "{text}");
    assert!(text.contains("in the file but unknown: blocks.2.weight"), "{text}");

    let mut tensors = logical();
    tensors[2] = ("bias".to_owned(), Dtype::I32, vec![2, N / 2], vec![0; N * 4]);
    tensors.push(("more".to_owned(), Dtype::F32, vec![1], vec![0; 4]));
    write(&folder, "misfit.safetensors", &tensors);
    let text = failure(&folder, "misfit.safetensors");
    assert!(text.contains("more is in the file but not in the model"), "{text}");
    assert!(text.contains("bias has shape [2, 128], the model needs [256]"), "{text}");
    assert!(text.contains("bias has elements of type I32"), "{text}");

    std::fs::write(folder.file("junk.safetensors"), "junk").unwrap();
    assert!(failure(&folder, "junk.safetensors").contains("is not a safetensors file"));
    assert!(failure(&folder, "none.safetensors").contains("cannot read"));
}

#[test]
fn a_checkpoint_wins_over_init() {
    let folder = Folder::new();
    write(&folder, "w.safetensors", &logical());
    folder.train("whole", "--init @/w.safetensors");
    folder.train("run", "--init @/w.safetensors --steps 12");
    let output = folder.train("run", "--init @/w.safetensors");
    assert!(output.err.contains("--init is not used"), "{}", output.err);
    assert_eq!(folder.losses("run"), folder.losses("whole"));
}

/// Whatever is in the file, the answer is one error or a run, never a panic. Bytes are changed at 200 places drawn from a
/// fixed stream, mostly in the header, and the file is cut at 40 lengths.
#[test]
fn init_survives_damaged_files() {
    let mut folder = Folder::new();
    // The weights' values do not matter here, only what the header says; a smaller file damages faster.
    folder.info.run.log_every = 0;
    let whole = std::fs::read(write(&folder, "w.safetensors", &logical())).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap());
    let stream = Stream::new(1, "damage");
    let mut refused = 0;
    for i in 0..240 {
        let mut bytes = whole.clone();
        if i < 200 {
            let at = stream.word(3 * i) % if i % 4 == 0 { bytes.len() as u64 } else { header };
            bytes[at as usize] = stream.word(3 * i + 1) as u8;
        } else {
            bytes.truncate((stream.word(3 * i) % (2 * header)) as usize);
        }
        std::fs::write(folder.file("damaged.safetensors"), bytes).unwrap();
        let line = "train --data synthetic --out @/x --steps 1 --checkpoint-every never --init @/damaged.safetensors";
        let output = folder.run(line);
        match output.exit {
            Exit::Failed => {
                refused += 1;
                assert!(output.err.starts_with("error: "), "{}", output.err);
            }
            // A changed byte inside the numbers may go unnoticed, or make the loss infinite.
            exit => assert!(matches!(exit, Exit::Done | Exit::NotFinite), "{exit:?}: {}", output.err),
        }
    }
    assert!(refused > 150, "{refused}");
}
