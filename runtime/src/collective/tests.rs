//! All kinds of collectives on random boxes, by memory and by messages, against a plain reference.

mod mpi;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::abi::*;
use crate::engine::{Engine, Ticket};
use crate::launch::run_threads;
use crate::numeric::{bf16_to_f32, f32_to_bf16};
use crate::world::{Fault, WorldOptions};

/// Ranks in one process that only pass messages.
struct Messages(World);

impl Engine for Messages {
    fn name(&self) -> &str {
        "messages"
    }
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn ranks(&self) -> usize {
        self.0.ranks()
    }
    unsafe fn send(&self, to: usize, tag: u32, bytes: *const u8, len: usize) -> Ticket {
        // SAFETY: passed on.
        unsafe { self.0.engine().send(to, tag, bytes, len) }
    }
    unsafe fn receive(&self, from: usize, tag: u32, bytes: *mut u8, len: usize) -> Ticket {
        // SAFETY: passed on.
        unsafe { self.0.engine().receive(from, tag, bytes, len) }
    }
    fn wait(&self, ticket: Ticket, limit: Duration) -> Waited {
        self.0.engine().wait(ticket, limit)
    }
    fn leave(&self) {
        self.0.engine().leave();
    }
    fn abort(&self, code: i32) {
        self.0.engine().abort(code);
    }
    fn any_left(&self) -> bool {
        self.0.engine().any_left()
    }
    fn die(&self) {
        self.0.engine().die();
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::Bf16, DType::I32, DType::I64, DType::Bool];
const REDUCTIONS: [Reduction; 3] = [Reduction::Sum, Reduction::Max, Reduction::Min];

/// Strides that keep elements apart, in a random order of the axes and with gaps; and how far they reach.
fn strides(random: &mut Random, dims: &[u64]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..dims.len()).collect();
    for i in (1..order.len()).rev() {
        let j = if random.below(3) == 0 { random.below(i as u64 + 1) as usize } else { i };
        order.swap(i, j);
    }
    let mut strides = vec![0; dims.len()];
    let mut reach = 1;
    for axis in order.into_iter().rev() {
        strides[axis] = reach;
        reach = reach * dims[axis].max(1) + if random.below(3) == 0 { random.below(3) } else { 0 };
    }
    (strides, reach)
}

/// A collective with the elements of each part's buffers.
struct Case {
    info: CollectiveInfo,
    sizes: Vec<[u64; 2]>,
}

fn case(random: &mut Random, mesh: &Mesh, axes: Vec<u32>, kind: CollectiveKind, large: bool) -> Case {
    let members = mesh.ways(&axes) as u64;
    let (reduces, sums) = match kind {
        CollectiveKind::AllGather | CollectiveKind::AllToAll => (false, false),
        CollectiveKind::ReduceScatter(r) | CollectiveKind::AllReduce(r) => (true, r == Reduction::Sum),
    };
    let to_all = matches!(kind, CollectiveKind::AllGather | CollectiveKind::AllReduce(_));
    let (mut parts, mut sizes) = (Vec::new(), Vec::new());
    for _ in 0..1 + random.below(3) {
        let dtype = random.pick(if sums { &DTYPES[..5] } else { &DTYPES });
        let wire = if dtype == DType::F32 { random.pick(&[DType::F32, DType::Bf16]) } else { dtype };
        let mut dims: Vec<u64> = (0..random.below(4)).map(|_| 1 + random.below(5)).collect();
        // Some short ones between them.
        if large && random.below(4) > 0 {
            dims.truncate(1);
            dims.push(17_000 + random.below(100));
        }
        let with_block = |fixed: bool| [&dims[..], &[if fixed { 1 } else { members }]].concat();
        let (mut send, send_size) = strides(random, &with_block(to_all));
        let (mut recv, recv_size) = strides(random, &with_block(reduces));
        let (send_block, recv_block) = (send.pop().unwrap(), recv.pop().unwrap());
        sizes.push([send_size, recv_size]);
        parts.push(CollectivePartInfo {
            dtype,
            wire,
            dims,
            send,
            recv,
            send_block: if to_all { 0 } else { send_block },
            recv_block: if reduces { 0 } else { recv_block },
        });
    }
    let mut info = CollectiveInfo { kind, mesh: axes, parts, staging_bytes: 0 };
    info.staging_bytes = info.staging(members);
    Case { info, sizes }
}

/// A number of any type, exactly.
#[derive(Clone, Copy, Debug)]
enum Number {
    Single(f32),
    Double(f64),
    Whole(i64),
}

fn get(bytes: &[u8], dtype: DType, at: u64) -> Number {
    let width = dtype.bytes() as usize;
    let bytes = &bytes[at as usize * width..][..width];
    match dtype {
        DType::F32 => Number::Single(f32::from_le_bytes(bytes.try_into().unwrap())),
        DType::Bf16 => Number::Single(bf16_to_f32(u16::from_le_bytes(bytes.try_into().unwrap()))),
        DType::F64 => Number::Double(f64::from_le_bytes(bytes.try_into().unwrap())),
        DType::I32 => Number::Whole(i64::from(i32::from_le_bytes(bytes.try_into().unwrap()))),
        DType::I64 => Number::Whole(i64::from_le_bytes(bytes.try_into().unwrap())),
        DType::Bool => Number::Whole(i64::from(bytes[0])),
    }
}

fn put(bytes: &mut [u8], dtype: DType, at: u64, number: Number) {
    let width = dtype.bytes() as usize;
    let to = &mut bytes[at as usize * width..][..width];
    match (dtype, number) {
        (DType::F32, Number::Single(x)) => to.copy_from_slice(&x.to_le_bytes()),
        (DType::Bf16, Number::Single(x)) => to.copy_from_slice(&f32_to_bf16(x).to_le_bytes()),
        (DType::F64, Number::Double(x)) => to.copy_from_slice(&x.to_le_bytes()),
        (DType::I32, Number::Whole(x)) => to.copy_from_slice(&(x as i32).to_le_bytes()),
        (DType::I64, Number::Whole(x)) => to.copy_from_slice(&x.to_le_bytes()),
        (DType::Bool, Number::Whole(x)) => to[0] = x as u8,
        _ => panic!("{dtype:?} holds no {number:?}"),
    }
}

fn combine(reduction: Reduction, a: Number, b: Number) -> Number {
    let extreme = |a: f64, b: f64| {
        a.is_nan() || !b.is_nan() && if reduction == Reduction::Max { a >= b } else { a <= b }
    };
    match (reduction, a, b) {
        (Reduction::Sum, Number::Single(a), Number::Single(b)) => Number::Single(a + b),
        (Reduction::Sum, Number::Double(a), Number::Double(b)) => Number::Double(a + b),
        (Reduction::Sum, Number::Whole(a), Number::Whole(b)) => Number::Whole(a.wrapping_add(b)),
        (_, Number::Single(x), Number::Single(y)) => {
            if extreme(x.into(), y.into()) {
                a
            } else {
                b
            }
        }
        (_, Number::Double(x), Number::Double(y)) => {
            if extreme(x, y) {
                a
            } else {
                b
            }
        }
        (Reduction::Max, Number::Whole(x), Number::Whole(y)) => Number::Whole(x.max(y)),
        (Reduction::Min, Number::Whole(x), Number::Whole(y)) => Number::Whole(x.min(y)),
        _ => panic!("{a:?} and {b:?} differ in type"),
    }
}

/// Bytes that are valid elements, special values among them.
fn data(random: &mut Random, dtype: DType, elements: u64) -> Vec<u8> {
    let mut bytes = vec![0; (elements * dtype.bytes()) as usize];
    for at in 0..elements {
        let x = (random.next() as i32) as f64 * random.pick(&[1e-9, 1.0, 3e-3, 1e6]);
        let x = random.pick(&[x, x, x, x, x, x, x, x, 0.0, -0.0, 1.0, f64::NAN, f64::INFINITY, -1e-30]);
        let number = match dtype {
            DType::F32 | DType::Bf16 => Number::Single(x as f32),
            DType::F64 => Number::Double(x),
            DType::I32 | DType::I64 => Number::Whole(random.next() as i64),
            DType::Bool => Number::Whole(random.below(2) as i64),
        };
        put(&mut bytes, dtype, at, number);
    }
    bytes
}

/// The same bits for all NaNs: which of two NaNs a sum passes on is up to the compiler.
fn canonical(mut bytes: Vec<u8>, dtype: DType) -> Vec<u8> {
    for at in 0..bytes.len() as u64 / dtype.bytes() {
        match get(&bytes, dtype, at) {
            Number::Single(x) if x.is_nan() => put(&mut bytes, dtype, at, Number::Single(f32::NAN)),
            Number::Double(x) if x.is_nan() => put(&mut bytes, dtype, at, Number::Double(f64::NAN)),
            _ => {}
        }
    }
    bytes
}

fn indices(dims: &[u64]) -> Vec<Vec<u64>> {
    dims.iter().fold(vec![vec![]], |all, &size| {
        all.iter().flat_map(|i| (0..size).map(move |at| [&i[..], &[at]].concat())).collect()
    })
}

/// What rank `me` receives in one part: the definition of `CollectiveInfo`, element by element.
fn reference(
    mesh: &Mesh,
    info: &CollectiveInfo,
    part: &CollectivePartInfo,
    me: usize,
    sent: &[Vec<u8>],
    received: &mut [u8],
) {
    let group = mesh.group(me, &info.mesh);
    let q = mesh.position(me, &info.mesh) as u64;
    for index in indices(&part.dims) {
        let at = |strides: &[u64]| index.iter().zip(strides).map(|(i, s)| i * s).sum::<u64>();
        let value = |rank: usize| {
            let number = get(&sent[rank], part.dtype, at(&part.send) + q * part.send_block);
            match (number, part.wire) {
                (Number::Single(x), DType::Bf16) => Number::Single(bf16_to_f32(f32_to_bf16(x))),
                _ => number,
            }
        };
        match info.kind {
            CollectiveKind::AllGather | CollectiveKind::AllToAll => {
                for (p, &rank) in group.iter().enumerate() {
                    put(received, part.dtype, at(&part.recv) + p as u64 * part.recv_block, value(rank));
                }
            }
            CollectiveKind::ReduceScatter(r) | CollectiveKind::AllReduce(r) => {
                let all = group.iter().map(|&rank| value(rank)).reduce(|a, b| combine(r, a, b));
                put(received, part.dtype, at(&part.recv), all.unwrap());
            }
        }
    }
}

fn program(mesh: &[u64], collectives: Vec<CollectiveInfo>) -> ProgramInfo {
    let axis = |(i, &size): (usize, &u64)| MeshAxisInfo { name: format!("axis{i}"), size, over_nodes: false };
    ProgramInfo {
        model: "Test".to_owned(),
        fingerprint: "f00d".to_owned(),
        spec: String::new(),
        cpu_features: vec![],
        spaces: vec![],
        scratch_bytes: 0,
        mesh: mesh.iter().enumerate().map(axis).collect(),
        collectives,
        entries: vec![],
        scalars: vec![],
        tensors: vec![],
        ops: vec![OpInfo {
            path: "layer.attn".to_owned(),
            kernel: "collective".to_owned(),
            line: "model.spec:7".to_owned(),
            bytes: 0,
            flops: 0,
            stream: 0,
            seconds: 0.0,
            link: String::new(),
        }],
        names: vec![],
        vocab: 0,
        run: RunInfo {
            steps: 0,
            seed: 0,
            data: None,
            eval_data: None,
            document_end: None,
            eval_every: 0,
            eval_batches: 0,
            checkpoint_every: 0,
            checkpoint_keep: 0,
            checkpoint_keep_every: 0,
            checkpoint_dir: String::new(),
            log_every: 0,
        },
        baked: vec![],
        rebuild: String::new(),
        skip: None,
    }
}

/// Cases with the contents of all ranks' send buffers, by case, part and rank.
struct Trial {
    seed: u64,
    info: ProgramInfo,
    mesh: Mesh,
    cases: Vec<Case>,
    sent: Vec<Vec<Vec<Vec<u8>>>>,
}

impl Trial {
    fn new(seed: u64, sizes: &[u64], cases: Vec<Case>) -> Trial {
        let info = program(sizes, cases.iter().map(|c| c.info.clone()).collect());
        assert_eq!(plan::problem(&info), None);
        let mesh = Mesh::new(&info.mesh);
        let mut random = Random(seed);
        let sent = cases
            .iter()
            .map(|case| {
                let of_part = |(part, size): (&CollectivePartInfo, &[u64; 2])| {
                    (0..mesh.ranks()).map(|_| data(&mut random, part.dtype, size[0])).collect()
                };
                case.info.parts.iter().zip(&case.sizes).map(of_part).collect()
            })
            .collect();
        Trial { seed, info, mesh, cases, sent }
    }

    /// One case of every kind over `axes`.
    fn of_all_kinds(seed: u64, sizes: &[u64], axes: &[u32], large: bool) -> Trial {
        let mut random = Random(seed);
        let mesh = Mesh::new(&program(sizes, vec![]).mesh);
        let mut one = |kind| case(&mut random, &mesh, axes.to_vec(), kind, large);
        let cases = kinds().into_iter().map(&mut one).collect();
        Trial::new(seed, sizes, cases)
    }

    fn blank(&self, c: usize, i: usize) -> Vec<u8> {
        let Case { info, sizes } = &self.cases[c];
        vec![1; (sizes[i][1] * info.parts[i].dtype.bytes()) as usize]
    }

    /// Runs all cases at once on one rank, finished in another order than started, and compares its buffers with the reference.
    fn run(&self, world: World) -> Result<(), Failure> {
        let (me, engine) = (world.rank(), world.engine().name().to_owned());
        let pool = Pool::new(1 + me % 2, false)?;
        let mut collectives = Collectives::new(&self.info, world);
        let mut out: Vec<Vec<Vec<u8>>> = (0..self.cases.len())
            .map(|c| (0..self.cases[c].sizes.len()).map(|i| self.blank(c, i)).collect())
            .collect();
        let mut staging: Vec<Vec<u8>> =
            self.cases.iter().map(|case| vec![0xaa; case.info.staging_bytes as usize]).collect();
        let mut buffers: Vec<Vec<*mut u8>> = Vec::new();
        for (c, out) in out.iter_mut().enumerate() {
            let mut list = Vec::new();
            for (i, out) in out.iter_mut().enumerate() {
                list.extend([self.sent[c][i][me].as_ptr().cast_mut(), out.as_mut_ptr()]);
            }
            list.push(staging[c].as_mut_ptr());
            buffers.push(list);
        }
        // SAFETY: all buffers have the sizes of their case and outlive the calls.
        unsafe {
            for (c, list) in buffers.iter().enumerate() {
                collectives.start(&pool, c, list.as_ptr())?;
            }
            for (c, list) in buffers.iter().enumerate().rev() {
                collectives.done(&pool, c, list.as_ptr(), Moment { step: 0, op: None })?;
            }
        }
        for (c, received) in out.into_iter().enumerate() {
            let info = &self.cases[c].info;
            for (i, received) in received.into_iter().enumerate() {
                let part = &info.parts[i];
                let mut expected = self.blank(c, i);
                reference(&self.mesh, info, part, me, &self.sent[c][i], &mut expected);
                let (received, expected) = (canonical(received, part.dtype), canonical(expected, part.dtype));
                assert!(received == expected, "seed {}, rank {me}, {engine}: {info:?}", self.seed);
            }
        }
        Ok(())
    }

    /// Runs on threads that read each other's memory, and on threads that pass messages.
    fn check(&self) {
        for messages in [false, true] {
            run_threads(self.mesh.ranks(), WorldOptions::default(), |world| {
                self.run(if messages { only_messages(world) } else { world })
            })
            .unwrap();
        }
    }
}

fn only_messages(world: World) -> World {
    let options = *world.options();
    World::new(Arc::new(Messages(world)), options)
}

fn kinds() -> Vec<CollectiveKind> {
    let reductions = || REDUCTIONS.iter().copied();
    [CollectiveKind::AllGather, CollectiveKind::AllToAll]
        .into_iter()
        .chain(reductions().map(CollectiveKind::ReduceScatter))
        .chain(reductions().map(CollectiveKind::AllReduce))
        .collect()
}

#[test]
fn collectives_match_their_definition_on_random_boxes() {
    let meshes: [(&[u64], &[u32]); 8] = [
        (&[1], &[0]),
        (&[2], &[0]),
        (&[3], &[0]),
        (&[4], &[0]),
        (&[2, 2], &[1]),
        (&[2, 2], &[1, 0]),
        (&[2, 3], &[0]),
        (&[2, 1, 2], &[2, 0]),
    ];
    for seed in 0..12 {
        for (m, (sizes, axes)) in meshes.iter().enumerate() {
            Trial::of_all_kinds(seed * 100 + m as u64, sizes, axes, false).check();
        }
    }
}

#[test]
fn large_collectives_match_their_definition() {
    for (seed, ranks) in [(1, 2), (2, 3), (3, 4), (4, 2), (5, 3)] {
        Trial::of_all_kinds(seed, &[ranks], &[0], true).check();
    }
}

/// What travels with others is not copied because of it: long tensors go from where they are to where they belong, and only
/// the short ones are packed.
#[test]
fn long_parts_in_one_piece_are_not_staged() {
    let (ranks, long, short) = (3, 20_000, 4);
    let part = |n: u64| CollectivePartInfo {
        dtype: DType::F32,
        wire: DType::F32,
        dims: vec![n],
        send: vec![1],
        recv: vec![1],
        send_block: 0,
        recv_block: n,
    };
    let parts: Vec<CollectivePartInfo> = [long, short, short, long].map(part).to_vec();
    let mut gather =
        CollectiveInfo { kind: CollectiveKind::AllGather, mesh: vec![0], parts, staging_bytes: 0 };
    gather.staging_bytes = gather.staging(ranks);
    let info = program(&[ranks], vec![gather.clone()]);
    run_threads(ranks as usize, WorldOptions::default(), |world| {
        let me = world.rank();
        let pool = Pool::new(1, false)?;
        let mut collectives = Collectives::new(&info, only_messages(world));
        let mut sent: Vec<Vec<f32>> =
            [long, short, short, long].iter().map(|n| vec![me as f32; *n as usize]).collect();
        let mut received: Vec<Vec<f32>> =
            [long, short, short, long].iter().map(|n| vec![-1.0; (n * ranks) as usize]).collect();
        let mut staging = vec![0xaau8; gather.staging_bytes as usize];
        let ends = sent.iter_mut().zip(&mut received);
        let mut buffers: Vec<*mut u8> =
            ends.flat_map(|(s, r)| [s.as_mut_ptr().cast(), r.as_mut_ptr().cast()]).collect();
        buffers.push(staging.as_mut_ptr());
        // SAFETY: the buffers have the sizes of the collective and outlive the calls.
        unsafe {
            collectives.start(&pool, 0, buffers.as_ptr())?;
            collectives.done(&pool, 0, buffers.as_ptr(), Moment { step: 0, op: None })?;
        }
        for (received, n) in received.iter().zip([long, short, short, long]) {
            for (rank, part) in received.chunks(n as usize).enumerate() {
                assert!(part.iter().all(|x| *x == rank as f32));
            }
        }
        let touched = staging.iter().filter(|byte| **byte != 0xaa).count();
        assert!(touched > 0 && touched as u64 <= (1 + ranks) * 2 * short * 4, "{touched} bytes");
        Ok(())
    })
    .unwrap();
}

/// A program of one all-gather.
fn gather_program(ranks: u64) -> ProgramInfo {
    let part = CollectivePartInfo {
        dtype: DType::F32,
        wire: DType::F32,
        dims: vec![4],
        send: vec![1],
        recv: vec![1],
        send_block: 0,
        recv_block: 4,
    };
    let mut gather = CollectiveInfo {
        kind: CollectiveKind::AllGather,
        mesh: vec![0],
        parts: vec![part],
        staging_bytes: 0,
    };
    gather.staging_bytes = gather.staging(ranks);
    program(&[ranks], vec![gather])
}

/// Gathers in each of so many steps.
fn gather_steps(info: &ProgramInfo, world: World, steps: u64) -> Result<(), Failure> {
    let (me, ranks) = (world.rank(), world.ranks());
    let pool = Pool::new(1, false)?;
    let mut collectives = Collectives::new(info, world);
    let (mut from, mut to, mut staging) = ([0f32; 4], vec![0f32; 4 * ranks], vec![0f32; 4 * ranks + 4]);
    let buffers: [*mut u8; 3] =
        [from.as_mut_ptr().cast(), to.as_mut_ptr().cast(), staging.as_mut_ptr().cast()];
    for step in 0..steps {
        from.fill((me as u64 * 1000 + step) as f32);
        // SAFETY: the buffers have the sizes of the collective.
        unsafe {
            collectives.start(&pool, 0, buffers.as_ptr())?;
            collectives.done(&pool, 0, buffers.as_ptr(), Moment { step, op: info.ops.first() })?;
        }
        for (rank, received) in to.chunks(4).enumerate() {
            assert_eq!(received, [(rank as u64 * 1000 + step) as f32; 4]);
        }
    }
    Ok(())
}

/// Three ranks of which rank 1 does as told; the failure that came first, and those of the other two.
fn faulty(fault: &str, messages: bool, watchdog: Duration) -> (Failure, Vec<Failure>) {
    let info = gather_program(3);
    let options = WorldOptions { watchdog, fault: Fault::parse(fault), ..WorldOptions::default() };
    assert!(options.fault.is_some());
    let failures = std::sync::Mutex::new(Vec::new());
    let first = run_threads(3, options, |world| {
        let me = world.rank();
        let result = gather_steps(&info, if messages { only_messages(world) } else { world }, 5);
        if let Some(failure) = result.as_ref().err().filter(|_| me != 1) {
            failures.lock().unwrap().push(failure.clone());
        }
        result
    });
    (first.unwrap_err(), failures.into_inner().unwrap())
}

#[test]
fn a_stall_is_reported_with_step_op_and_the_missing_rank() {
    for messages in [false, true] {
        let limit = Duration::from_millis(300);
        let clock = Instant::now();
        let (first, others) = faulty("stall:1:3", messages, limit);
        assert!(clock.elapsed() < Duration::from_secs(2) && clock.elapsed() >= limit);
        assert_eq!(first.exit, Exit::Lost);
        let message = &first.message;
        assert!(message.contains("step 3, layer.attn (model.spec:7): all_gather over axis0"), "{message}");
        assert!(message.contains("\n  rank 1 has not arrived."), "{message}");
        assert_eq!(others.len(), 2);
        assert!(others.iter().all(|f| f.exit == Exit::Lost), "{others:?}");
    }
}

#[test]
fn a_death_is_noticed_at_once() {
    for messages in [false, true] {
        let clock = Instant::now();
        let (first, others) = faulty("death:1:2", messages, Duration::from_secs(600));
        assert!(clock.elapsed() < Duration::from_secs(2));
        // The one that dies says so, or one that sees it is quicker.
        let says = ["rank 1 ended on purpose", "rank 1 has ended"];
        assert!(says.iter().any(|s| first.message.contains(s)), "{}", first.message);
        assert_eq!(others.len(), 2);
        let named = |f: &&Failure| f.message.contains("rank 1 has ended") && f.message.contains("step 2");
        assert!(others.iter().any(|f| named(&f)), "{others:?}");
        assert!(others.iter().all(|f| f.exit == Exit::Lost), "{others:?}");
    }
}
