//! Programs of several ranks: interpreted in lockstep, and compiled, on threads.

use super::build::program;
use crate::abi::{
    CollectiveInfo, CollectiveKind, CollectivePartInfo, DType, MeshAxisInfo, Reduction, SpaceInfo,
};
use crate::backend::Codegen;
use crate::program::execute::{Precision, execute_ranks};
use crate::program::{
    Address, BinaryOp, CollectiveStage, CollectiveStep, InterpretedProgram, Kernel, KernelSpec, Launch,
    LoopStride, LoopVar, LoopsSpec, Operand, Program, RankStride, Region, ScalarId, ScalarOp, Spaces, Step,
    verify,
};
use crate::run::CompiledProgram;
use crate::target::Target;

/// Bytes of 4 f32.
const ROW: u64 = 16;

fn at(offset: u64) -> Address {
    Address { space: 0, offset, strides: Vec::new(), ranks: Vec::new() }
}

/// 4 f32 of buffer `out`: twice those of buffer `x`.
fn double() -> Kernel {
    let row = |buffer| Operand { buffer, dtype: DType::F32, offset: 0, strides: vec![1] };
    let ops = vec![ScalarOp::Input(0), ScalarOp::Binary(BinaryOp::Add, ScalarId(0), ScalarId(0))];
    let region = Region { ops, results: vec![ScalarId(1)] };
    let (inputs, outputs) = (vec![row(0)], vec![row(1)]);
    let spec = LoopsSpec { dims: vec![4], reduced: 0, inputs, n_scalars: 0, region, outputs };
    Kernel { name: "double".into(), spec: KernelSpec::Map(spec) }
}

fn collective(kind: CollectiveKind, mesh: &[u32], ways: u64, part: CollectivePartInfo) -> CollectiveInfo {
    let mut info = CollectiveInfo { kind, mesh: mesh.to_vec(), parts: vec![part], staging_bytes: 0 };
    info.staging_bytes = info.staging(ways);
    info
}

fn part(dims: &[u64], send: &[u64], recv: &[u64], send_block: u64, recv_block: u64) -> CollectivePartInfo {
    let dtype = DType::F32;
    let [dims, send, recv] = [dims, send, recv].map(<[u64]>::to_vec);
    CollectivePartInfo { dtype, wire: dtype, dims, send, recv, send_block, recv_block }
}

/// On 2×3 ranks, for i in 0..2:
///
/// ```text
/// part  [4]       = 2 · all[rank's row of 6 along both axes]       a view that moves with the rank
/// whole [3][4]    = all-gather of part over b
/// cols  [2] of i  = reduce-scatter of whole's last axis over a
/// turned [4][3]   = all-to-all of whole over b: rows go out, columns come in
/// ```
fn on_ranks() -> Program {
    let mut p = program();
    let axis = |name: &str, size| MeshAxisInfo { name: name.into(), size, over_nodes: false };
    p.info.mesh = vec![axis("a", 2), axis("b", 3)];
    let sum = CollectiveKind::ReduceScatter(Reduction::Sum);
    p.info.collectives = vec![
        collective(CollectiveKind::AllGather, &[1], 3, part(&[4], &[1], &[1], 0, 4)),
        collective(sum, &[0], 2, part(&[3, 2], &[4, 1], &[2, 1], 2, 0)),
        collective(CollectiveKind::AllToAll, &[1], 3, part(&[4], &[1], &[3], 4, 1)),
    ];
    p.kernels = vec![double()];
    let [all, own, whole, cols, turned, staging] = [0, 96, 128, 192, 256, 320];
    let end = staging + p.info.collectives.iter().map(|c| c.staging_bytes).max().unwrap_or(0);
    p.info.spaces = vec![SpaceInfo { name: "device".into(), bytes: end }];
    let mine = Address {
        ranks: vec![RankStride { axis: 0, bytes: 3 * ROW }, RankStride { axis: 1, bytes: ROW }],
        ..at(all)
    };
    let of_i =
        Address { strides: vec![LoopStride { var: LoopVar(0), bytes: 24, slots: 0, ahead: 0 }], ..at(cols) };
    let both = |collective, send: u64, recv: Address| {
        [CollectiveStage::Start, CollectiveStage::Done].map(|stage| {
            let buffers = vec![at(send), recv.clone(), at(staging)];
            Step::Collective(CollectiveStep { op: 0, collective, stage, buffers })
        })
    };
    let launch = Launch { op: 0, kernel: 0, stream: 0, buffers: vec![mine, at(own)], scalars: vec![] };
    let mut body = vec![Step::Launch(launch)];
    body.extend(both(0, own, at(whole)));
    body.extend(both(1, whole, of_i));
    body.extend(both(2, whole, at(turned)));
    p.entries[0].body = vec![Step::Loop { var: LoopVar(0), trip: 2, reverse: false, body }];
    p
}

/// On 2×3 ranks, for i in 0..4 (or 3, 2, 1, 0), with the gather for the next iteration under way:
///
/// ```text
/// slot i mod 2 [3][4] = all-gather of row i of all over b
/// out [4] of i        = 2 · the first row of the slot
/// ```
fn handed_on(reverse: bool) -> Program {
    let mut p = on_ranks();
    p.info.collectives.truncate(1);
    let [all, slots, out, staging] = [0, 128, 256, 320];
    p.info.spaces[0].bytes = staging + p.info.collectives[0].staging_bytes;
    let moves = |offset, bytes, slots, ahead| {
        let strides = vec![LoopStride { var: LoopVar(0), bytes, slots, ahead }];
        Address { strides, ..at(offset) }
    };
    let step = |stage, row: Address, slot: Address| {
        let buffers = vec![row, slot, at(staging)];
        Step::Collective(CollectiveStep { op: 0, collective: 0, stage, buffers })
    };
    let (first, next, within) = if reverse { (3, -1, 1..4) } else { (0, 1, 0..3) };
    let before = step(CollectiveStage::Start, at(all + ROW * first), at(slots + 3 * ROW * (first % 2)));
    let start = step(CollectiveStage::Start, moves(all, ROW, 0, next), moves(slots, 3 * ROW, 2, next));
    let done = step(CollectiveStage::Done, moves(all, ROW, 0, 0), moves(slots, 3 * ROW, 2, 0));
    let buffers = vec![moves(slots, 3 * ROW, 2, 0), moves(out, ROW, 0, 0)];
    let launch = Launch { op: 0, kernel: 0, stream: 0, buffers, scalars: vec![] };
    let within = Step::Within { var: LoopVar(0), from: within.start, below: within.end, body: vec![start] };
    let body = vec![done, within, Step::Launch(launch)];
    p.entries[0].body = vec![before, Step::Loop { var: LoopVar(0), trip: 4, reverse, body }];
    p
}

/// Every rank's memory: `all` holds its number times 100 plus 0, 1, …; the rest is NaN.
fn memory(program: &Program) -> Vec<Vec<Vec<u8>>> {
    let one = |rank: u32| {
        let mut space = vec![0xff; program.info.spaces[0].bytes as usize];
        for i in 0..24 {
            space[4 * i..4 * i + 4].copy_from_slice(&(rank as f32 * 100.0 + i as f32).to_le_bytes());
        }
        vec![space]
    };
    (0..6).map(one).collect()
}

fn floats(space: &[u8], offset: usize, n: usize) -> Vec<f32> {
    let word = |i: usize| f32::from_le_bytes(space[offset + 4 * i..][..4].try_into().unwrap());
    (0..n).map(word).collect()
}

/// What each rank must hold, by the definitions alone.
fn check(ranks: &[Vec<Vec<u8>>], who: &str) {
    let own = |rank: usize, i: usize| 2.0 * (rank * 100 + rank * 4 + i) as f32;
    for (rank, spaces) in ranks.iter().enumerate() {
        let (a, b) = (rank / 3, rank % 3);
        let whole: Vec<f32> = (0..12).map(|e| own(a * 3 + e / 4, e % 4)).collect();
        assert_eq!(floats(&spaces[0], 128, 12), whole, "{who}: whole of rank {rank}");
        let column = |e: usize| (0..2).map(|peer| own(peer * 3 + e / 2, 2 * a + e % 2)).sum();
        let cols: Vec<f32> = (0..6).map(column).collect();
        for i in 0..2 {
            assert_eq!(floats(&spaces[0], 192 + 24 * i, 6), cols, "{who}: cols of rank {rank}");
        }
        // From peer p along b: row b of its whole, which is the same on all of them.
        let turned: Vec<f32> = (0..12).map(|e| own(a * 3 + b, e / 3)).collect();
        assert_eq!(floats(&spaces[0], 256, 12), turned, "{who}: turned of rank {rank}");
    }
}

fn run(program: &Program, with: impl FnOnce(&mut [Spaces<'_>])) -> Vec<Vec<Vec<u8>>> {
    let mut ranks = memory(program);
    let mut spaces: Vec<Spaces<'_>> = ranks.iter_mut().map(Vec::as_mut_slice).collect();
    with(&mut spaces);
    ranks
}

#[test]
fn collectives_move_boxes_between_ranks_however_the_program_runs() {
    let p = on_ranks();
    verify(&p).unwrap_or_else(|e| panic!("{}", e.join("\n")));
    let plain = run(&p, |ranks| execute_ranks(&p, 0, ranks, Precision::AsWritten).unwrap());
    check(&plain, "evaluated");
    let target = &Target::host().expect("a machine mlc knows");
    let lockstep = |ranks: &mut [Spaces<'_>]| {
        InterpretedProgram::new(&p, target).unwrap().run_ranks("train", ranks).unwrap();
    };
    check(&run(&p, lockstep), "interpreted");
    for codegen in Codegen::here() {
        let compiled = CompiledProgram::new(&p, target, codegen).unwrap();
        check(&run(&p, |ranks| compiled.run_ranks("train", ranks).unwrap()), codegen.name());
        let mut alone = memory(&p).remove(0);
        let error = compiled.run("train", &mut alone).unwrap_err();
        assert_eq!(error, "the program runs on 6 ranks, not on 1");
    }
}

#[test]
fn collectives_go_from_one_iteration_to_the_next_however_the_program_runs() {
    for reverse in [false, true] {
        let p = handed_on(reverse);
        verify(&p).unwrap_or_else(|e| panic!("{}", e.join("\n")));
        let check = |ranks: &[Vec<Vec<u8>>], who: &str| {
            for (rank, spaces) in ranks.iter().enumerate() {
                // Of the first rank along b.
                let twice = |e: usize| 2.0 * (rank / 3 * 300 + e) as f32;
                let expected: Vec<f32> = (0..16).map(twice).collect();
                assert_eq!(floats(&spaces[0], 256, 16), expected, "{who}: rank {rank}, {reverse}");
            }
        };
        check(&run(&p, |ranks| execute_ranks(&p, 0, ranks, Precision::AsWritten).unwrap()), "evaluated");
        let target = &Target::host().expect("a machine mlc knows");
        for codegen in Codegen::here() {
            let compiled = CompiledProgram::new(&p, target, codegen).unwrap();
            check(&run(&p, |ranks| compiled.run_ranks("train", ranks).unwrap()), codegen.name());
        }
    }
}

#[test]
fn verify_refuses_collectives_handed_on_wrongly() {
    let broken = |change: &dyn Fn(&mut Vec<Step>)| {
        let mut bad = handed_on(false);
        change(&mut bad.entries[0].body);
        verify(&bad).unwrap_err().join("\n")
    };
    let body = |steps: &mut Vec<Step>, change: &dyn Fn(&mut Vec<Step>)| {
        let Step::Loop { body, .. } = &mut steps[1] else { panic!() };
        change(body);
    };
    let slot = |step: &mut Step, slots| {
        let Step::Within { body, .. } = step else { panic!() };
        let Step::Collective(c) = &mut body[0] else { panic!() };
        c.buffers[1].strides[0].slots = slots;
    };
    let expect = |error: String, what: &str| assert!(error.contains(what), "{error}");
    // Into the slot in use.
    let error = broken(&|steps| body(steps, &|b| slot(&mut b[1], 1)));
    expect(error, "launch of double: buffer 0 meddles with what collective 0 receives into until it is done");
    // In the last iteration too.
    let error = broken(&|steps| {
        body(steps, &|b| {
            let Step::Within { below, .. } = &mut b[1] else { panic!() };
            *below = 4;
        });
    });
    expect(error, "collective 0 is started and not done in the same body");
    // Nothing before the loop, and something behind it.
    let error = broken(&|steps| steps.swap(0, 1));
    expect(error, "collective 0: is done but not started before in the same body");
    // For an iteration before the first.
    let error = broken(&|steps| {
        body(steps, &|b| {
            let Step::Within { body, .. } = &mut b[1] else { panic!() };
            let Step::Collective(c) = &mut body[0] else { panic!() };
            c.buffers[1].strides[0].ahead = -1;
        });
    });
    expect(error, "an argument moves with an iteration of loop 0 before its first");
}

#[test]
fn collectives_print() {
    insta::assert_snapshot!(on_ranks().to_string(), @"
        program six_rows {
          space 0 device: 416 bytes
          mesh a=2, b=3
          collective 0 = all_gather over b, 0 bytes of staging
            f32[4:1->1] blocks 0->4
          collective 1 = reduce_scatter_sum over a, 96 bytes of staging
            f32[3:4->2, 2:1->1] blocks 2->0
          collective 2 = all_to_all over b, 48 bytes of staging
            f32[4:1->3] blocks 4->1
          kernel double = map over [4], 2 ops
            read  b0 f32[4:1]
            write b1 f32[4:1]
          entry train {
            loop i0 < 2 {
              double(0:0+48*r0+16*r1, 0:96)  // block test.spec:1
              start 0(0:96, 0:128, 0:320)  // block test.spec:1
              done 0(0:96, 0:128, 0:320)  // block test.spec:1
              start 1(0:128, 0:192+24*i0, 0:320)  // block test.spec:1
              done 1(0:128, 0:192+24*i0, 0:320)  // block test.spec:1
              start 2(0:128, 0:256, 0:320)  // block test.spec:1
              done 2(0:128, 0:256, 0:320)  // block test.spec:1
            }
          }
        }
    ");
}

#[test]
fn verify_refuses_who_meddles_with_a_collective() {
    // The launch between start and done writes what is sent, and a done comes in another body.
    let mut bad = on_ranks();
    let Step::Loop { body, .. } = &mut bad.entries[0].body[0] else { panic!() };
    let launch = body.remove(0);
    body.insert(1, launch);
    let last = body.pop().unwrap();
    bad.entries[0].body.push(last);
    insta::assert_snapshot!(verify(&bad).unwrap_err().join("\n"), @"
        entry train, launch of double: buffer 1 meddles with what collective 0 sends until it is done
        entry train: collective 2 is started and not done in the same body
        entry train, collective 2: is done but not started before in the same body
    ");
    // The evaluator notices too.
    let mut spaces = memory(&bad);
    let mut ranks: Vec<Spaces<'_>> = spaces.iter_mut().map(Vec::as_mut_slice).collect();
    let error = execute_ranks(&bad, 0, &mut ranks, Precision::AsWritten).unwrap_err();
    assert_eq!(error, "what rank 0 receives by collective 0 changed after its start");
}

#[test]
fn verify_refuses_collectives_that_do_not_fit() {
    let mut bad = on_ranks();
    bad.info.collectives[0].parts[0].send_block = 1;
    bad.info.collectives[1].mesh = vec![0, 0];
    bad.info.collectives[2].parts[0].wire = DType::F64;
    let Step::Loop { body, .. } = &mut bad.entries[0].body[0] else { panic!() };
    let addresses = |body: &mut [Step], i: usize, change: &dyn Fn(&mut Vec<Address>)| {
        for step in &mut body[i..i + 2] {
            let Step::Collective(c) = step else { panic!() };
            change(&mut c.buffers);
        }
    };
    addresses(body, 1, &|buffers| buffers[0].ranks.push(RankStride { axis: 2, bytes: 4 }));
    addresses(body, 3, &|buffers| buffers.truncate(2));
    addresses(body, 5, &|buffers| buffers[1] = at(128 + 8));
    let Step::Launch(launch) = &mut body[0] else { panic!() };
    launch.buffers[0].ranks[0].bytes = 1 << 20;
    insta::assert_snapshot!(verify(&bad).unwrap_err().join("\n"), @"
        collective 0: blocks 1 and 4 apart do not fit the kind
        collective 1: mesh axis 0 does not exist, or comes twice
        collective 1: 96 bytes of staging instead of 192
        collective 2: 48 bytes of staging instead of 192
        collective 2: F32 travels as F64
        entry train, launch of double: buffer 0 reaches to byte 1048624 of space device, which has 416
        entry train, collective 0: an argument moves with mesh axis 2, which there is not
        entry train, collective 1: 2 buffers instead of 3
        entry train, collective 1: 2 buffers instead of 3
        entry train, collective 2: buffer 1 is written and shares memory with buffer 0
    ");
}
