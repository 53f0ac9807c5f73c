//! Programs built to binaries, and their step functions run.

use std::path::PathBuf;
use std::process::Command;

use crate::abi::{DType, EntryInfo, MeshAxisInfo, OpInfo, ProgramInfo, RunInfo, SpaceInfo};
use crate::backend::Codegen;
use crate::build::{BuildOptions, Built, Error, build};
use crate::program::{
    Address, BinaryOp, Entry, InterpretedProgram, Kernel, KernelSpec, Launch, LoopStride, LoopVar, LoopsSpec,
    Operand, Program, Region, ScalarArg, ScalarId, ScalarOp, Step, verify,
};
use crate::run::CompiledProgram;
use crate::target::{TARGETS, X86_64_V3};
use crate::worker::{Failure, Request, Worker, WorkerCommand, worker_main};

const N: u64 = 37;

/// Elements `0..N` of f32 from byte `offset` on, and per step `bytes` further (`slots` of them).
fn address(offset: u64, var: u32, bytes: u64, slots: u64) -> Address {
    let strides =
        if bytes == 0 { vec![] } else { vec![LoopStride { var: LoopVar(var), bytes, slots, ahead: 0 }] };
    Address { space: 0, offset, strides, ranks: Vec::new() }
}

fn row(buffer: u32) -> Operand {
    Operand { buffer, dtype: DType::F32, offset: 0, strides: vec![1] }
}

/// `out = a·b + scalar`, all of length [`N`].
pub(super) fn kernel() -> Kernel {
    let region = Region {
        ops: vec![
            ScalarOp::Input(0),
            ScalarOp::Input(1),
            ScalarOp::Input(2),
            ScalarOp::Cast(DType::F32, ScalarId(2)),
            ScalarOp::Binary(BinaryOp::Mul, ScalarId(0), ScalarId(1)),
            ScalarOp::Binary(BinaryOp::Add, ScalarId(4), ScalarId(3)),
        ],
        results: vec![ScalarId(5)],
    };
    let inputs = vec![row(0), row(1)];
    let spec = LoopsSpec { dims: vec![N], reduced: 0, inputs, n_scalars: 1, region, outputs: vec![row(2)] };
    Kernel { name: "mul_add".to_string(), spec: KernelSpec::Map(spec) }
}

/// Six rows; for i in 0..2, for j in 2, 1, 0: row `3 + (i + …) mod 2` = row j · row i + 10·j.
pub(super) fn program() -> Program {
    let launch = Launch {
        op: 0,
        kernel: 0,
        stream: 0,
        buffers: vec![address(0, 1, 4 * N, 0), address(0, 0, 4 * N, 0), address(3 * 4 * N, 1, 4 * N, 2)],
        scalars: vec![ScalarArg::Loop(LoopVar(1), 10, 0)],
    };
    let inner = Step::Loop { var: LoopVar(1), trip: 3, reverse: true, body: vec![Step::Launch(launch)] };
    let outer = Step::Loop { var: LoopVar(0), trip: 2, reverse: false, body: vec![inner] };
    let (batch, seq) = (1, 1);
    let entry = EntryInfo { name: "train".into(), batch, seq, inputs: vec![], outputs: vec![], flops: 0 };
    let op = OpInfo {
        path: "block".into(),
        kernel: "mul_add".into(),
        line: "test.spec:1".into(),
        bytes: 12 * N,
        flops: 2 * N,
        stream: 0,
        seconds: 0.0,
        link: String::new(),
    };
    let run = RunInfo {
        steps: 1,
        seed: 1,
        data: None,
        eval_data: None,
        document_end: None,
        eval_every: 0,
        eval_batches: 0,
        checkpoint_every: 0,
        checkpoint_keep: 0,
        checkpoint_keep_every: 0,
        checkpoint_dir: "checkpoints".into(),
        log_every: 1,
    };
    let info = ProgramInfo {
        model: "six_rows".into(),
        fingerprint: "0".into(),
        spec: "model six_rows".into(),
        cpu_features: vec![],
        spaces: vec![SpaceInfo { name: "device".into(), bytes: 6 * 4 * N }],
        scratch_bytes: 0,
        mesh: vec![],
        collectives: vec![],
        entries: vec![entry],
        scalars: vec![],
        tensors: vec![],
        ops: vec![op],
        names: vec![],
        vocab: 0,
        run,
        baked: vec![],
        rebuild: "mlc build six_rows.spec".into(),
        skip: None,
    };
    let entries = vec![Entry { name: "train".to_string(), body: vec![outer] }];
    Program { info, kernels: vec![kernel()], entries, streams: 1 }
}

fn memory() -> Vec<u8> {
    (0..6 * N).flat_map(|i| (1.0 + i as f32 / 7.0).to_le_bytes()).collect()
}

fn rows(memory: &[u8]) -> Vec<Vec<f32>> {
    let values = memory.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    values.collect::<Vec<f32>>().chunks(N as usize).map(<[f32]>::to_vec).collect()
}

/// The test executable as a worker: libtest runs one test, [`worker_process`], which sees the mark.
fn worker() -> WorkerCommand {
    let arguments =
        ["--exact", "tests::build::worker_process", "--skip", "codegen-worker"].map(String::from).to_vec();
    WorkerCommand { program: std::env::current_exe().unwrap(), arguments }
}

#[test]
fn worker_process() {
    if std::env::args().any(|a| a == "codegen-worker") {
        std::process::exit(worker_main());
    }
}

fn build_with(
    program: &Program,
    cache: Option<PathBuf>,
    jobs: usize,
    worker: Option<WorkerCommand>,
    codegen: Codegen,
) -> Result<Built, Error> {
    build(program, &BuildOptions { target: X86_64_V3, codegen, cache, jobs, worker, progress: &|_| {} })
}

/// Built in this process, nothing kept.
fn build_here(program: &Program, codegen: Codegen) -> Built {
    build_with(program, None, 1, None, codegen).unwrap_or_else(|e| panic!("{codegen}: {e}"))
}

fn temporary(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mlc-build-test-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

#[test]
fn step_launches_in_order_with_moving_addresses() {
    let program = program();
    let mut expected = rows(&memory());
    for i in 0..2 {
        for j in (0..3).rev() {
            let row = (0..N as usize).map(|k| expected[j][k] * expected[i][k] + 10.0 * j as f32).collect();
            expected[3 + j % 2] = row;
        }
    }
    for target in TARGETS.iter().filter(|t| t.runs_here()) {
        for codegen in Codegen::here() {
            let mut spaces = [memory()];
            CompiledProgram::new(&program, target, codegen).unwrap().run("train", &mut spaces).unwrap();
            assert_eq!(rows(&spaces[0]), expected, "compiled by {codegen} for {target}");
        }
        let mut spaces = [memory()];
        InterpretedProgram::new(&program, target).unwrap().run("train", &mut spaces).unwrap();
        assert_eq!(rows(&spaces[0]), expected, "interpreted for {target}");
    }
}

#[test]
fn build_gives_the_same_static_binary_however_it_is_built() {
    for codegen in Codegen::here() {
        let program = program();
        let cache = temporary("same");
        let cold = build_with(&program, Some(cache.clone()), 2, Some(worker()), codegen).unwrap();
        let warm = build_with(&program, Some(cache.clone()), 1, Some(worker()), codegen).unwrap();
        let here = build_here(&program, codegen);
        std::fs::remove_dir_all(cache).unwrap();
        let times = [&cold, &warm, &here].map(|b| (b.kernels[0].ms, b.link_ms));
        println!(
            "{codegen}: kernel and link in ms, cold, warm and in this process: {times:.1?}; {} bytes",
            cold.elf.len()
        );
        assert!(cold.elf == warm.elf && cold.elf == here.elf, "three builds of one program differ");
        assert!(cold.elf.len() < 10_000_000, "{} bytes", cold.elf.len());
        let through_mlir = codegen == Codegen::Llvm;
        assert!([&cold, &warm].iter().all(|built| built.kernels[0].came_through_mlir == through_mlir));
        assert!(!cold.kernels[0].cached && warm.kernels[0].cached);
        // Fully static: no program header asks for a dynamic loader (PT_INTERP = 3).
        let word = |at: usize| u64::from_le_bytes(here.elf[at..at + 8].try_into().unwrap()) as usize;
        let (headers, count) = (word(0x20), u16::from_le_bytes([here.elf[0x38], here.elf[0x39]]) as usize);
        assert!((0..count).all(|i| here.elf[headers + 56 * i] != 3));
    }
}

#[test]
fn back_ends_do_not_share_objects() {
    let cache = temporary("apart");
    let mut hashes: Vec<String> = Vec::new();
    for codegen in Codegen::here() {
        let built = build_with(&program(), Some(cache.clone()), 1, None, codegen).unwrap();
        assert!(!built.kernels[0].cached, "{codegen} found an object of another");
        assert_eq!(built.codegen, codegen);
        hashes.push(built.kernels[0].hash.clone());
    }
    std::fs::remove_dir_all(cache).unwrap();
    hashes.dedup();
    assert_eq!(hashes.len(), Codegen::here().len());
}

#[test]
fn back_end_that_is_missing_is_one_clear_error() {
    assert_eq!(Codegen::by_name("cranelift"), Ok(Codegen::Cranelift));
    assert!(Codegen::by_name("gcc").unwrap_err().contains("known are llvm, cranelift"));
    if Codegen::Llvm.available() {
        assert_eq!(Codegen::default(), Codegen::Llvm);
        return;
    }
    assert_eq!(Codegen::default(), Codegen::Cranelift);
    let error = build_with(&program(), None, 1, None, Codegen::Llvm).unwrap_err().to_string();
    assert!(error.starts_with("this mlc was built without the feature `llvm`"), "{error}");
    assert_eq!(Codegen::by_name("llvm").unwrap_err(), error);
}

/// Names of the symbols of an ELF file that satisfy `wanted`, given a symbol's type (4 = source file, 2 = function).
#[cfg(feature = "llvm")]
fn symbols(elf: &[u8], wanted: u8) -> Vec<String> {
    let word = |at: usize, n: usize| elf[at..at + n].iter().rev().fold(0usize, |w, &b| w << 8 | b as usize);
    let (sections, count) = (word(0x28, 8), word(0x3c, 2));
    let section = |i: usize| sections + 64 * i;
    let table = (0..count).map(section).find(|&s| word(s + 4, 4) == 2).unwrap();
    let (symbols, bytes) = (word(table + 0x18, 8), word(table + 0x20, 8));
    let names = word(section(word(table + 0x28, 4)) + 0x18, 8);
    let entries = (0..bytes / 24).map(|i| symbols + 24 * i).filter(|&s| elf[s + 4] & 15 == wanted);
    let name = |s: usize| {
        let text = &elf[names + word(s, 4)..];
        String::from_utf8_lossy(&text[..text.iter().position(|&b| b == 0).unwrap()]).into_owned()
    };
    entries.map(name).collect()
}

#[cfg(feature = "llvm")]
#[test]
fn build_passes_every_kernel_of_the_binary_through_mlir() {
    // A second kernel: the same sum over two dimensions.
    let mut program = program();
    let KernelSpec::Map(mut spec) = kernel().spec else { panic!() };
    spec.dims = vec![1, N];
    spec.inputs.iter_mut().chain(&mut spec.outputs).for_each(|o| o.strides.insert(0, 0));
    spec.region.ops[5] = ScalarOp::Binary(BinaryOp::Sub, ScalarId(4), ScalarId(3));
    program.kernels.push(Kernel { name: "mul_sub".to_string(), spec: KernelSpec::Map(spec) });
    let Step::Loop { body, .. } = &mut program.entries[0].body[0] else { panic!() };
    let Step::Loop { body, .. } = &mut body[0] else { panic!() };
    let Step::Launch(mut launch) = body[0].clone() else { panic!() };
    launch.kernel = 1;
    body.push(Step::Launch(launch));
    let built = build_here(&program, Codegen::Llvm);
    let functions = symbols(&built.elf, 2);
    let kernels: Vec<&String> = functions.iter().filter(|name| name.starts_with("kernel_")).collect();
    assert_eq!(kernels.len(), 2, "{kernels:?}");
    // Each kernel is one object, and each object names one source: that of a module translated from MLIR.
    let sources = symbols(&built.elf, 4);
    assert_eq!(sources.iter().filter(|name| *name == "LLVMDialectModule").count(), 2, "{sources:?}");
    assert!(built.kernels.iter().all(|k| k.came_through_mlir));
}

/// Writes a binary and asks it what it is. A process that another test forks while the file is open for writing keeps it busy
/// until that process becomes its own program.
fn info(path: &std::path::Path, elf: &[u8]) -> std::process::Output {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, elf).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    for _ in 0..200 {
        match Command::new(path).arg("info").output() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            output => return output.unwrap(),
        }
    }
    panic!("{} stays busy", path.display());
}

#[test]
fn build_makes_a_binary_that_knows_its_model() {
    for codegen in Codegen::here() {
        let built = build_here(&program(), codegen);
        let path = temporary("binary");
        let output = info(&path, &built.elf);
        std::fs::remove_file(&path).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("six_rows"), "{codegen}: {output:?}");
    }
}

/// As several processes ranks need an MPI library, which only a dynamic binary can load.
#[test]
fn build_makes_a_dynamic_binary_for_several_ranks() {
    let codegen = Codegen::default();
    assert_eq!(build_here(&program(), codegen).glibc, None);
    let mut several = program();
    several.info.mesh = vec![MeshAxisInfo { name: "data".into(), size: 2, over_nodes: false }];
    let built = build_here(&several, codegen);
    let minor: u32 = built.glibc.as_deref().and_then(|v| v.strip_prefix("2.")).unwrap().parse().unwrap();
    assert!((17..=34).contains(&minor), "{minor}");
    let path = temporary("several");
    let output = info(&path, &built.elf);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("six_rows"), "{output:?}");
    // Told by a launcher that it is one of three, it says what is wrong, which a static one could too, and that of two, that the
    // library is missing, after having looked for it.
    let launched = |ranks: &str| {
        let environment = [("PMI_RANK", "0"), ("PMI_SIZE", ranks), ("MLC_MPI", "libmlc-has-no-such-mpi.so")];
        Command::new(&path).args(["train", "--data", "synthetic"]).envs(environment).output().unwrap()
    };
    assert_eq!(launched("3").status.code(), Some(6));
    let refused = launched("2");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{text}");
    assert!(text.contains("libmlc-has-no-such-mpi.so: cannot open shared object file"), "{text}");
    // Ranks that exchange nothing save nothing.
    let mut apart = Command::new(&path);
    apart.args(["train", "--data", "synthetic", "--ranks", "2"]).env("MLC_COLLECTIVES", "absent");
    let refused = apart.output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && text.contains("--checkpoint-every never"), "{text}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn build_shares_the_object_of_equal_kernels() {
    let mut program = program();
    program.kernels.push(Kernel { name: "the_same".to_string(), ..kernel() });
    let built = build_here(&program, Codegen::default());
    assert_eq!(built.kernels[0].hash, built.kernels[1].hash);
    assert!(built.kernels[1].cached);
}

#[test]
fn worker_that_dies_is_an_error_and_no_more() {
    let mut first = Worker::start(&worker()).unwrap_or_else(|e| panic!("{e:?}"));
    match first.ask(&Request::Abort) {
        Err(Failure::Died(message)) => assert!(message.contains("signal: 6"), "{message}"),
        other => panic!("{other:?}"),
    }
    let mut second = Worker::start(&worker()).unwrap_or_else(|e| panic!("{e:?}"));
    let request = Request::Kernel {
        kir: "kernel {".into(),
        symbol: "k".into(),
        target: "x86-64-v3".into(),
        codegen: "cranelift".into(),
    };
    assert!(matches!(second.ask(&request), Err(Failure::Refused(m)) if m.contains("line 1")));
}

#[cfg(feature = "llvm")]
#[test]
fn worker_that_dies_leaves_a_reproducer_of_its_kernel() {
    let cache = temporary("reproducer");
    let dies = WorkerCommand { program: "false".into(), arguments: vec![] };
    let Err(Error::Kernel { name, message, reproducer }) =
        build_with(&program(), Some(cache.clone()), 1, Some(dies), Codegen::Llvm)
    else {
        panic!("the build did not fail with the kernel");
    };
    assert_eq!((name.as_str(), message.as_str()), ("mul_add", "the code generator died: exit status: 1"));
    let text = std::fs::read_to_string(reproducer.unwrap()).unwrap();
    assert!(text.starts_with("// kernel mul_add for target x86-64-v3 by llvm"), "{text}");
    let expanded = crate::kernels::expand(&kernel().spec, &X86_64_V3);
    assert_eq!(crate::kir::parse(&text).unwrap(), expanded);
    std::fs::remove_dir_all(cache).unwrap();
}

#[cfg(feature = "llvm")]
#[test]
fn worker_that_is_not_there_is_a_clear_error() {
    let missing = WorkerCommand { program: "/nonexistent/mlc".into(), arguments: vec![] };
    let error = build_with(&program(), None, 1, Some(missing), Codegen::Llvm).unwrap_err();
    assert!(error.to_string().starts_with("cannot start /nonexistent/mlc"), "{error}");
}

#[test]
fn verify_reports_every_violation_of_a_program() {
    let mut bad = program();
    bad.info.spaces[0].bytes = 5 * 4 * N - 1;
    bad.streams = 2;
    bad.entries[0].name = "fit".to_string();
    bad.kernels.push(Kernel { name: "mul_add".to_string(), ..kernel() });
    if let KernelSpec::Map(spec) = &mut bad.kernels[1].spec {
        spec.region.ops[3] = ScalarOp::Cast(DType::F32, ScalarId(4));
        spec.outputs[0].strides.clear();
        spec.inputs[1].buffer = 2;
        spec.inputs[1].dtype = DType::I32;
    }
    insta::assert_snapshot!(verify(&bad).unwrap_err().join("\n"), @"
        kernel mul_add: the name is not a distinct symbol
        kernel mul_add: an operand of 1 dimensions has 0 strides
        kernel mul_add: buffer 2 has two element types
        kernel mul_add: op 3 of the region uses value 4 before it is defined
        entries: fit instead of train
        entry fit, launch of mul_add: buffer 2 reaches to byte 740 of space device, which has 739
    ");
}

#[test]
fn verify_refuses_a_written_buffer_that_overlaps_another() {
    let mut bad = program();
    let Step::Loop { body, .. } = &mut bad.entries[0].body[0] else { panic!() };
    let Step::Loop { body, .. } = &mut body[0] else { panic!() };
    let Step::Launch(launch) = &mut body[0] else { panic!() };
    launch.buffers[2] = address(2 * 4 * N + 4, 1, 4 * N, 2);
    insta::assert_snapshot!(verify(&bad).unwrap_err().join("\n"), @"entry train, launch of mul_add: buffer 2 is written and shares memory with buffer 0");
}

#[test]
fn program_prints() {
    insta::assert_snapshot!(program().to_string(), @"
        program six_rows {
          space 0 device: 888 bytes
          kernel mul_add = map over [37], 6 ops
            read  b0 f32[37:1]
            read  b1 f32[37:1]
            write b2 f32[37:1]
          entry train {
            loop i0 < 2 {
              loop i1 < 3 reverse {
                mul_add(0:0+148*i1, 0:0+148*i0, 0:444+148*i1%2, 10*i1)  // block test.spec:1
              }
            }
          }
        }
    ");
}
