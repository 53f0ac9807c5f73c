//! The program of [`fixture`] for several ranks: every tensor and input may be split over any mesh in any way.
//!
//! At the start of an entry each rank gathers all of them whole, then computes what one rank would, and at the end of training
//! keeps its own part of the results. Every number is therefore that of one rank, bit for bit.
//!
//! ```text
//! parts at rest, one after the other | each part of all ranks, as received | staging
//! ```
//! lie behind the memory of [`fixture`], whose places hold the whole tensors here.

use std::sync::{Mutex, PoisonError};

use mlc_runtime::abi::*;
use mlc_runtime::mesh::Mesh;
use mlc_runtime::program::Program;
use mlc_runtime::shard::{Part, local_elements};

use crate::fixture;

/// How the model is laid over ranks.
#[derive(Clone, Debug, Default)]
pub struct Sharding {
    pub mesh: Vec<MeshAxisInfo>,
    /// Splits by tensor path, or by name of an input of `train` and `eval`.
    pub splits: Vec<(&'static str, Vec<AxisSplit>)>,
}

/// A mesh of these axes.
pub fn mesh(axes: &[(&str, u64)]) -> Vec<MeshAxisInfo> {
    let axis = |(name, size): &(&str, u64)| MeshAxisInfo {
        name: (*name).to_owned(),
        size: *size,
        over_nodes: false,
    };
    axes.iter().map(axis).collect()
}

/// A split of one axis over axes of the mesh.
pub fn cut(axis: u32, mesh: &[u32], blocks: u64) -> AxisSplit {
    AxisSplit { axis, mesh: mesh.to_vec(), blocks, pad: 0 }
}

/// One tensor or input that is gathered.
#[derive(Clone, Debug)]
struct Gathered {
    shape: Vec<u64>,
    layers: u64,
    split: Vec<AxisSplit>,
    /// Byte offsets: the whole, the part at rest, and what is received.
    whole: u64,
    part: u64,
    received: u64,
    /// Elements of a part.
    elements: u64,
    is_input: bool,
}

/// What the entries must know besides their memory.
#[derive(Clone, Debug)]
struct Layout {
    mesh: Vec<MeshAxisInfo>,
    gathered: Vec<Gathered>,
    staging: u64,
}

/// Layouts of all programs of this process; the program's scalar `layout` says which is its own.
static LAYOUTS: Mutex<Vec<Layout>> = Mutex::new(Vec::new());
const LAYOUT: u64 = 32;

/// What codegen would store in the binary.
pub fn info(sharding: &Sharding) -> ProgramInfo {
    let mut info = fixture::info();
    info.mesh = sharding.mesh.clone();
    info.fingerprint = format!("{sharding:?}");
    let ranks: u64 = info.mesh.iter().map(|axis| axis.size).product();
    let mut end = info.spaces[0].bytes.next_multiple_of(64);
    let mut take = |bytes: u64| {
        let begin = end;
        end = (end + bytes).next_multiple_of(64);
        begin
    };
    let mut gathered = Vec::new();
    let mut place = |name: &str, shape: &[u64], layers: u64, at: &mut Place, is_input: bool| {
        let split =
            sharding.splits.iter().find(|(n, _)| *n == name).map(|(_, s)| s.clone()).unwrap_or_default();
        let elements = local_elements(shape, &split, &sharding.mesh) * layers;
        let whole = at.offset;
        let known = gathered.iter().find(|g: &&Gathered| is_input && g.whole == whole);
        at.offset = known.map_or_else(|| take(elements * 4), |g| g.part);
        if known.is_none() {
            let received = take(elements * 4 * ranks);
            gathered.push(Gathered {
                shape: shape.to_vec(),
                layers,
                split: split.clone(),
                whole,
                part: at.offset,
                received,
                elements,
                is_input,
            });
        }
        split
    };
    for tensor in &mut info.tensors {
        tensor.split =
            place(&tensor.path, &tensor.shape, tensor.layers.unwrap_or(1), &mut tensor.place, false);
    }
    for input in info.entries[..2].iter_mut().flat_map(|entry| &mut entry.inputs) {
        input.split = place(&input.name, &input.shape, 1, &mut input.place, true);
    }
    let all: Vec<u32> = (0..info.mesh.len() as u32).collect();
    info.collectives = gathered.iter().map(|g| gather(g, &all, ranks)).collect();
    let staging = take(info.collectives.iter().map(|c| c.staging_bytes).max().unwrap_or(0));
    info.spaces[0].bytes = end;
    let mut layouts = LAYOUTS.lock().unwrap_or_else(PoisonError::into_inner);
    info.scalars.push(ScalarInfo {
        key: "layout".to_owned(),
        dtype: DType::F64,
        default: layouts.len() as f64,
        place: Place { space: 0, offset: LAYOUT },
    });
    layouts.push(Layout { mesh: info.mesh.clone(), gathered, staging });
    info
}

/// All ranks' parts, one after the other.
fn gather(tensor: &Gathered, mesh: &[u32], ranks: u64) -> CollectiveInfo {
    let part = CollectivePartInfo {
        dtype: DType::F32,
        wire: DType::F32,
        dims: vec![tensor.elements],
        send: vec![1],
        recv: vec![1],
        send_block: 0,
        recv_block: tensor.elements,
    };
    let mut info = CollectiveInfo {
        kind: CollectiveKind::AllGather,
        mesh: mesh.to_vec(),
        parts: vec![part],
        staging_bytes: 0,
    };
    info.staging_bytes = info.staging(ranks);
    info
}

unsafe fn layout(ctx: *const StepContext) -> (*mut u8, Layout) {
    // SAFETY: the first space is that of `info`, where the runtime has written the scalar.
    unsafe {
        let base = *(*ctx).spaces;
        let index = *base.add(LAYOUT as usize).cast::<f64>() as usize;
        (base, LAYOUTS.lock().unwrap_or_else(PoisonError::into_inner)[index].clone())
    }
}

/// Copies between the whole tensor and the part of the rank at `coordinates`, which lies at `part`.
unsafe fn copy(
    base: *mut u8,
    mesh: &[MeshAxisInfo],
    tensor: &Gathered,
    coordinates: &[u64],
    part: u64,
    keep: bool,
) {
    let held = Part::of(&tensor.shape, &tensor.split, mesh, coordinates);
    let (size, each) = (tensor.shape.iter().product::<u64>(), held.elements());
    for layer in 0..tensor.layers {
        for (at, global, length) in held.runs().all() {
            // SAFETY: both lie inside the space, apart from each other.
            unsafe {
                let whole = base.add((tensor.whole + 4 * (layer * size + global)) as usize);
                let local = base.add((part + 4 * (layer * each + at)) as usize);
                let (from, to) = if keep { (whole, local) } else { (local, whole) };
                std::ptr::copy_nonoverlapping(from, to, 4 * length as usize);
            }
        }
    }
}

/// Makes everything whole on every rank.
unsafe fn make_whole(ctx: *const StepContext, inputs: bool) {
    // SAFETY: the buffers are those of `info`.
    unsafe {
        let (base, layout) = layout(ctx);
        for (i, tensor) in layout.gathered.iter().enumerate().filter(|(_, t)| inputs || !t.is_input) {
            let buffers = [tensor.part, tensor.received, layout.staging].map(|at| base.add(at as usize));
            for stage in [COLLECTIVE_START, COLLECTIVE_DONE] {
                ((*ctx).collective)(ctx, 0, i as u32, stage, buffers.as_ptr());
            }
            let mesh = Mesh::new(&layout.mesh);
            for rank in 0..mesh.ranks() {
                let part = tensor.received + 4 * tensor.elements * rank as u64;
                copy(base, &layout.mesh, tensor, &mesh.coordinates(rank), part, false);
            }
        }
    }
}

/// Keeps this rank's part of every tensor.
unsafe fn keep_part(ctx: *const StepContext) {
    // SAFETY: the buffers are those of `info`, and there is a coordinate per axis.
    unsafe {
        let (base, layout) = layout(ctx);
        let coordinates: Vec<u64> =
            (0..layout.mesh.len()).map(|axis| *(*ctx).coordinates.add(axis) as u64).collect();
        for tensor in layout.gathered.iter().filter(|t| !t.is_input) {
            copy(base, &layout.mesh, tensor, &coordinates, tensor.part, true);
        }
    }
}

unsafe extern "C" fn train_entry(ctx: *const StepContext) {
    // SAFETY: the context is handed on.
    unsafe {
        make_whole(ctx, true);
        fixture::ENTRIES[0](ctx);
        keep_part(ctx);
    }
}

unsafe extern "C" fn eval_entry(ctx: *const StepContext) {
    // SAFETY: the context is handed on.
    unsafe {
        make_whole(ctx, true);
        fixture::ENTRIES[1](ctx);
    }
}

unsafe extern "C" fn logits_entry(ctx: *const StepContext) {
    // SAFETY: the context is handed on.
    unsafe {
        make_whole(ctx, false);
        fixture::ENTRIES[2](ctx);
    }
}

/// The step functions, in the order of the entries.
pub const ENTRIES: [EntryFn; 3] = [train_entry, eval_entry, logits_entry];

/// The checked program for an [`info`].
pub fn program(info: &ProgramInfo) -> Program {
    Program::new(info.clone(), ENTRIES.to_vec()).unwrap()
}
