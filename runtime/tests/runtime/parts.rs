//! What ranks hold is what one rank holds, cut up: first values, inputs, checkpoints, weights.

use std::collections::BTreeMap;
use std::sync::Mutex;

use mlc_runtime::abi::*;
use mlc_runtime::checkpoint::manifest::DataPosition;
use mlc_runtime::checkpoint::save::{Record, save};
use mlc_runtime::checkpoint::store::Store;
use mlc_runtime::checkpoint::{load, weights};
use mlc_runtime::data::Source;
use mlc_runtime::init::init_all;
use mlc_runtime::launch::run_ranks;
use mlc_runtime::program::Program;
use mlc_runtime::rank::{Rank, RankOptions};
use mlc_runtime::settings::Resume;
use mlc_runtime::shard::Part;
use mlc_runtime::step::{Pick, run_batch, write_scalars};
use mlc_runtime::world::WorldOptions;

use crate::fixture;
use crate::sharded::{cut, mesh};

const BATCH: u64 = 12;
const SEQ: u64 = 24;

/// A mesh with splits by tensor path and by input.
type Layout = (Vec<MeshAxisInfo>, Vec<(&'static str, Vec<AxisSplit>)>);

/// One rank, and the shapes of data, tensor and expert parallelism: states split unlike their parameters, joint and nested
/// splits, blocks, sizes that do not divide, axes of the mesh that split nothing.
fn layouts() -> Vec<Layout> {
    vec![
        (mesh(&[]), vec![]),
        (
            mesh(&[("dp", 2)]),
            vec![("layer.{i}.w.m", vec![cut(0, &[0], 1)]), ("tokens", vec![cut(0, &[0], 1)])],
        ),
        (
            mesh(&[("fsdp", 4)]),
            vec![
                ("layer.{i}.w", vec![cut(0, &[0], 1)]),
                ("layer.{i}.w.m", vec![cut(1, &[0], 1)]),
                ("embed", vec![cut(1, &[0], 1)]),
                ("targets", vec![cut(1, &[0], 1)]),
                ("weight", vec![cut(0, &[0], 3)]),
            ],
        ),
        (
            mesh(&[("tensor", 2), ("fsdp", 2)]),
            vec![
                ("layer.{i}.w", vec![cut(0, &[1], 1), cut(1, &[0], 1)]),
                ("layer.{i}.w.m", vec![cut(1, &[0, 1], 1)]),
                ("embed", vec![cut(0, &[0], 2)]),
                ("bias", vec![cut(0, &[1], 1)]),
                ("tokens", vec![cut(0, &[1], 1), cut(1, &[0], 1)]),
                ("segments", vec![cut(1, &[1, 0], 1)]),
            ],
        ),
        (
            mesh(&[("tensor", 3)]),
            vec![
                ("layer.{i}.w", vec![cut(1, &[0], 2)]),
                ("embed", vec![cut(0, &[0], 1)]),
                ("bias", vec![cut(0, &[0], 3)]),
                ("positions", vec![cut(1, &[0], 2)]),
                ("weight", vec![cut(0, &[0], 1)]),
            ],
        ),
        (
            mesh(&[("tensor", 5), ("dp", 2)]),
            vec![
                ("layer.{i}.w", vec![padded(0, &[0], 1, 1), padded(1, &[1], 2, 4)]),
                ("layer.{i}.w.m", vec![padded(1, &[0, 1], 1, 4)]),
                ("embed", vec![padded(0, &[], 1, 3), padded(1, &[0], 1, 10)]),
                ("bias", vec![padded(0, &[0], 1, 2)]),
                ("tokens", vec![cut(0, &[1], 1), padded(1, &[0], 2, 6)]),
                ("weight", vec![padded(1, &[0], 1, 1)]),
            ],
        ),
        (
            mesh(&[("pod", 2), ("fsdp", 1), ("tensor", 3)]),
            vec![
                ("layer.{i}.w", vec![cut(0, &[2, 0], 2)]),
                ("layer.{i}.w.m", vec![cut(0, &[0], 1), cut(1, &[1, 2], 3)]),
                ("embed", vec![cut(1, &[2], 1)]),
                ("bias", vec![cut(0, &[0, 1, 2], 1)]),
                ("tokens", vec![cut(0, &[0], 3), cut(1, &[2], 4)]),
                ("targets", vec![cut(0, &[2], 2)]),
            ],
        ),
    ]
}

/// A split of an axis that is made longer for it.
fn padded(axis: u32, mesh: &[u32], blocks: u64, pad: u64) -> AxisSplit {
    AxisSplit { pad, ..cut(axis, mesh, blocks) }
}

unsafe extern "C" fn nothing(_: *const StepContext) {}

/// A program that computes nothing, laid out like this.
fn program((mesh, splits): &Layout) -> Program {
    let mut info = fixture::info();
    let split =
        |name: &str| splits.iter().find(|(n, _)| *n == name).map(|(_, s)| s.clone()).unwrap_or_default();
    let mut end = 64;
    let mut take = |bytes: u64| {
        let offset = end;
        end = (end + bytes).next_multiple_of(8);
        Place { space: 0, offset }
    };
    let normal = Init::Normal { std: 0.5 };
    let tensors: [(&str, Option<u64>, &[u64], DType, Init); 5] = [
        ("layer.{i}.w", Some(3), &[24, 36], DType::F32, normal),
        ("layer.{i}.w.m", Some(3), &[24, 36], DType::F32, Init::Uniform { low: -1.0, high: 3.0 }),
        ("embed", None, &[12, 60], DType::Bf16, normal),
        ("bias", None, &[18], DType::F64, normal),
        ("count", None, &[], DType::I64, Init::Constant(7.0)),
    ];
    info.tensors = tensors
        .map(|(path, layers, shape, dtype, init)| TensorInfo {
            path: path.to_owned(),
            role: if path.ends_with(".m") { TensorRole::State("m".to_owned()) } else { TensorRole::Param },
            layers,
            axes: vec![String::new(); shape.len()],
            shape: shape.to_vec(),
            split: split(path),
            dtype,
            init,
            // More than any part needs.
            place: take(2 * shape.iter().product::<u64>() * layers.unwrap_or(1) * dtype.bytes()),
            line: String::new(),
        })
        .to_vec();
    let inputs = [
        ("tokens", InputSource::Tokens),
        ("targets", InputSource::Targets),
        ("segments", InputSource::Segments),
        ("positions", InputSource::Positions),
        ("weight", InputSource::Weight),
    ]
    .map(|(name, source)| InputInfo {
        name: name.to_owned(),
        source,
        dtype: if name == "weight" { DType::F32 } else { DType::I32 },
        shape: vec![BATCH, SEQ],
        split: split(name),
        bound: if name == "tokens" { 256 } else { 0 },
        place: take(2 * BATCH * SEQ * 4),
    });
    let outputs =
        vec![OutputInfo { name: "loss".to_owned(), dtype: DType::F32, shape: vec![], place: take(4) }];
    info.entries = vec![EntryInfo {
        name: "train".to_owned(),
        batch: BATCH,
        seq: SEQ,
        inputs: inputs.to_vec(),
        outputs,
        flops: 0,
    }];
    info.scalars = mesh
        .iter()
        .map(|axis| ScalarInfo {
            key: format!("{MESH_KEY}{}", axis.name),
            dtype: DType::F64,
            default: -1.0,
            place: take(8),
        })
        .collect();
    info.names.clear();
    info.run.document_end = Some(u32::from(b' '));
    info.mesh.clone_from(mesh);
    info.spaces[0].bytes = end;
    Program::new(info, vec![nothing]).unwrap()
}

/// Runs on all ranks, each with two threads.
fn on_ranks<T: Send>(program: &Program, body: impl Fn(&mut Rank) -> T + Sync) -> Vec<T> {
    let options = RankOptions { threads: 2, pin: false, profile: false };
    run_ranks(program, options, WorldOptions::default(), |rank| Ok(body(rank))).unwrap()
}

/// The bytes of every logical tensor that this rank holds.
fn tensors(rank: &Rank) -> BTreeMap<String, (Part, Vec<u8>)> {
    let all = rank.program.logical_tensors().into_iter();
    all.map(|t| {
        let part = rank.part(&t.tensor.shape, &t.tensor.split);
        assert_eq!(part.elements(), t.elements);
        (t.name.clone(), (part, rank.bytes(t.place, t.bytes()).to_vec()))
    })
    .collect()
}

/// The elements of a part, by the place each has in the whole tensor, and zeros for padding.
fn cut_out(part: &Part, whole: &[u8]) -> Vec<u8> {
    let elements: u64 = part.axes.iter().map(|axis| axis.size).product();
    let width = whole.len() / elements as usize;
    let mut bytes = vec![0; part.elements() as usize * width];
    for (local, global, length) in part.runs().all() {
        let (local, global, length) =
            (local as usize * width, global as usize * width, length as usize * width);
        bytes[local..local + length].copy_from_slice(&whole[global..global + length]);
    }
    bytes
}

/// What every rank holds is its part of what one rank holds.
fn assert_parts(
    whole: &BTreeMap<String, (Part, Vec<u8>)>,
    ranks: &[BTreeMap<String, (Part, Vec<u8>)>],
    what: &str,
) {
    for (rank, tensors) in ranks.iter().enumerate() {
        for (name, (part, bytes)) in tensors {
            assert!(*bytes == cut_out(part, &whole[name].1), "{what}: rank {rank}, {name}");
        }
    }
}

fn first_values(program: &Program, seed: u64) -> Vec<BTreeMap<String, (Part, Vec<u8>)>> {
    on_ranks(program, |rank| {
        init_all(rank, seed);
        tensors(rank)
    })
}

#[test]
fn first_values_are_those_of_one_rank() {
    let layouts = layouts();
    let whole = first_values(&program(&layouts[0]), 5).remove(0);
    assert_ne!(whole["layer.0.w"].1, whole["layer.1.w"].1);
    for layout in &layouts {
        assert_parts(&whole, &first_values(&program(layout), 5), &format!("{layout:?}"));
    }
}

#[test]
fn inputs_are_rows_and_columns_of_the_batch_of_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "now is the winter of our discontent made glorious summer ".repeat(40)).unwrap();
    let data = DataInfo::Bytes { path: text.display().to_string() };
    let batches = |layout: &Layout| {
        on_ranks(&program(layout), |rank| {
            let mut source = Source::open(&data, 256, SEQ, 3).unwrap();
            let scalars: Vec<f64> = rank.program.info.scalars.iter().map(|s| s.default).collect();
            let mut seen = BTreeMap::new();
            let picks = [
                Pick::Samples(0),
                Pick::Samples(7 * BATCH),
                Pick::Windows { first: 5, count: BATCH },
                Pick::Windows { first: 1, count: 4 },
            ];
            for (i, pick) in picks.into_iter().enumerate() {
                run_batch(rank, 0, &mut source, pick, &scalars, 0).unwrap();
                for input in &rank.program.info.entries[0].inputs {
                    let part = rank.part(&input.shape, &input.split);
                    let bytes = rank.bytes(input.place, part.elements() * 4).to_vec();
                    seen.insert(format!("{} {i}", input.name), (part, bytes));
                }
            }
            seen
        })
    };
    let layouts = layouts();
    let whole = batches(&layouts[0]).remove(0);
    assert_ne!(whole["segments 0"].1, whole["positions 0"].1);
    for layout in &layouts {
        assert_parts(&whole, &batches(layout), &format!("{layout:?}"));
    }
}

#[test]
fn scalars_of_the_mesh_are_coordinates() {
    let program = program(&layouts()[6]);
    let found = on_ranks(&program, |rank| {
        write_scalars(rank, &[-1.0; 3], 0);
        let scalars = rank.program.info.scalars.iter();
        scalars.map(|s| rank.read_number(s.place, s.dtype)).collect::<Vec<_>>()
    });
    let expected = [[0., 0., 0.], [0., 0., 1.], [0., 0., 2.], [1., 0., 0.], [1., 0., 1.], [1., 0., 2.]];
    assert_eq!(found, expected);
}

fn record() -> Record {
    let data = DataPosition { source: "none".to_owned(), tokens: 0, samples: 0 };
    Record { step: 1, seed: 5, data, keys: vec![] }
}

/// All pairs: whatever mesh wrote it, every rank of every mesh reads exactly its part.
#[test]
fn any_mesh_loads_the_checkpoint_of_any_mesh() {
    let layouts = layouts();
    let programs: Vec<Program> = layouts.iter().map(program).collect();
    let whole = first_values(&programs[0], 5).remove(0);
    for (from, writer) in programs.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Mutex::new(Some(Store::for_writing(folder.path()).unwrap()));
        on_ranks(writer, |rank| {
            init_all(rank, 5);
            let store = match rank.world().is_first() {
                true => lock.lock().unwrap().take().unwrap(),
                false => Store::read_only(folder.path()),
            };
            save(rank, &store, record()).unwrap();
        });
        for (to, reader) in programs.iter().enumerate() {
            let loaded = on_ranks(reader, |rank| {
                // Other values, of which none may stay.
                init_all(rank, 6);
                let store = Store::read_only(folder.path());
                let loaded = load::load(rank, &store, Resume::Auto, "").unwrap().unwrap();
                assert_eq!((loaded.manifest.step, loaded.manifest.seed), (1, 5));
                tensors(rank)
            });
            assert_parts(&whole, &loaded, &format!("from {from} to {to}"));
        }
    }
}

/// Each element is written once: together the files are as long as those of one rank, but for headers and padding.
#[test]
fn ranks_write_every_element_once() {
    let layouts = layouts();
    let sizes = layouts.iter().map(|layout| {
        let folder = tempfile::tempdir().unwrap();
        let store = Mutex::new(Some(Store::for_writing(folder.path()).unwrap()));
        on_ranks(&program(layout), |rank| {
            init_all(rank, 5);
            let store = match rank.world().is_first() {
                true => store.lock().unwrap().take().unwrap(),
                false => Store::read_only(folder.path()),
            };
            save(rank, &store, record()).unwrap();
        });
        let mut content = 0;
        for entry in std::fs::read_dir(folder.path().join("step-00000001")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            if let Ok(tensors) = safetensors::SafeTensors::deserialize(&bytes) {
                content += tensors.iter().map(|(_, view)| view.data().len()).sum::<usize>();
            }
        }
        content
    });
    let mut expected = vec![3 * 2 * 24 * 36 * 4 + 12 * 60 * 2 + 18 * 8 + 8; 7];
    expected[5] = 3 * (25 * 40 + 24 * 40) * 4 + 15 * 70 * 2 + 20 * 8 + 8;
    assert_eq!(sizes.collect::<Vec<usize>>(), expected);
}

#[test]
fn ranks_import_their_part_of_the_weights() {
    let layouts = layouts();
    let whole = first_values(&program(&layouts[0]), 9).remove(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    // The parameters of one rank, by the logical names, with whole numbers left out: they have no external type.
    let program_of = |layout: &Layout| {
        let mut info = program(layout).info;
        info.tensors.retain(|t| t.path != "count");
        // The external weights are transposed.
        let row = |name: &str, shape: &[u64]| NameRow {
            logical: name.to_owned(),
            external: format!("x.{name}"),
            axes: if shape.len() == 2 { vec![vec![1], vec![0]] } else { vec![] },
        };
        let all = Program::new(info.clone(), vec![nothing]).unwrap();
        let rows = all
            .logical_tensors()
            .iter()
            .filter(|t| t.is_param())
            .map(|t| row(&t.name, &t.tensor.shape))
            .collect();
        info.names = vec![NameTable { name: "hf".to_owned(), rows }];
        Program::new(info, vec![nothing]).unwrap()
    };
    let external: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = program_of(&layouts[0])
        .logical_tensors()
        .iter()
        .filter(|t| t.is_param())
        .map(|t| {
            let dtype = match t.tensor.dtype {
                DType::Bf16 => safetensors::Dtype::BF16,
                DType::F64 => safetensors::Dtype::F64,
                _ => safetensors::Dtype::F32,
            };
            let (bytes, width) = (&whole[&t.name].1, t.tensor.dtype.bytes() as usize);
            let shape: Vec<usize> = t.tensor.shape.iter().rev().map(|&s| s as usize).collect();
            let element = |at: usize| bytes[at * width..][..width].to_vec();
            let transposed = match *shape.as_slice() {
                [columns, rows] => {
                    (0..columns * rows).flat_map(|i| element(i % rows * columns + i / rows)).collect()
                }
                _ => bytes.clone(),
            };
            (format!("x.{}", t.name), dtype, shape, transposed)
        })
        .collect();
    let views = external.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(&path, safetensors::tensor::serialize(views, None).unwrap()).unwrap();
    for layout in &layouts {
        let loaded = on_ranks(&program_of(layout), |rank| {
            init_all(rank, 6);
            weights::import(rank, &path).unwrap();
            let mut tensors = tensors(rank);
            tensors.retain(|name, _| !name.ends_with(".m"));
            tensors
        });
        assert_parts(&whole, &loaded, &format!("{layout:?}"));
    }
}
