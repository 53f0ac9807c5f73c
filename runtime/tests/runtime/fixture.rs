//! A program written by hand, as codegen would emit one: a byte-level bigram model with two layers of weights.
//!
//! ```text
//! logits[v]  = bias[v] + Σ_layer layer.{layer}.w[token, v]
//! loss       = mean over batch and seq of cross-entropy(logits, target)
//! update     = m ← 0.9 m + gradient;  w ← w − lr · m           (heavy-ball momentum)
//! ```
//! Three kernels: `forward` (a tile per position), `update` (a tile per row of the weights, and one for the bias), `reduce`
//! (one tile). Every sum has a fixed order, so that the bits do not depend on the threads.

use mlc_runtime::abi::*;
use mlc_runtime::program::Program;

pub const BATCH: u64 = 4;
pub const SEQ: u64 = 16;
pub const VOCAB: u64 = 256;
pub const LAYERS: u64 = 2;
const ROWS: u64 = BATCH * SEQ;

/// Byte offsets in the one space.
mod at {
    use super::*;
    pub const STEP: u64 = 0;
    pub const LR: u64 = 8;
    pub const LOSS: u64 = 16;
    pub const LR_OUT: u64 = 24;
    pub const POSITION: u64 = 28;
    pub const TOKENS: u64 = 64;
    pub const TARGETS: u64 = TOKENS + ROWS * 4;
    pub const ROW_LOSS: u64 = TARGETS + ROWS * 4;
    pub const GRAD: u64 = ROW_LOSS + ROWS * 4;
    pub const W: u64 = GRAD + ROWS * VOCAB * 4;
    pub const W_M: u64 = W + LAYERS * VOCAB * VOCAB * 4;
    pub const BIAS: u64 = W_M + LAYERS * VOCAB * VOCAB * 4;
    pub const BIAS_M: u64 = BIAS + VOCAB * 4;
    pub const LOGITS: u64 = BIAS_M + VOCAB * 4;
    pub const END: u64 = LOGITS + VOCAB * 4;
}

fn place(offset: u64) -> Place {
    Place { space: 0, offset }
}

/// Adds up the logits of one token.
unsafe fn logits_of(base: *const u8, token: usize, out: &mut [f32]) {
    let vocab = VOCAB as usize;
    // SAFETY: every offset of `at` lies inside the space.
    unsafe {
        let bias = std::slice::from_raw_parts(base.add(at::BIAS as usize).cast::<f32>(), vocab);
        out.copy_from_slice(bias);
        for layer in 0..LAYERS as usize {
            let row = base.add(at::W as usize).cast::<f32>().add((layer * vocab + token) * vocab);
            for (sum, w) in out.iter_mut().zip(std::slice::from_raw_parts(row, vocab)) {
                *sum += w;
            }
        }
    }
}

/// Tile = position: loss of the row and its gradient with respect to the logits.
unsafe extern "C" fn forward(buffers: *const *mut u8, _: *const i64, begin: i64, end: i64, scratch: *mut u8) {
    // SAFETY: the only buffer is the space; rows are disjoint; the scratch holds VOCAB floats.
    unsafe {
        let base = *buffers;
        let logits = std::slice::from_raw_parts_mut(scratch.cast::<f32>(), VOCAB as usize);
        for row in begin as usize..end as usize {
            let token = *base.add(at::TOKENS as usize).cast::<i32>().add(row) as usize;
            let target = *base.add(at::TARGETS as usize).cast::<i32>().add(row) as usize;
            logits_of(base, token, logits);
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
            *base.add(at::ROW_LOSS as usize).cast::<f32>().add(row) = sum.ln() + max - logits[target];
            let grad = base.add(at::GRAD as usize).cast::<f32>().add(row * VOCAB as usize);
            for (v, l) in logits.iter().enumerate() {
                let p = (l - max).exp() / sum - if v == target { 1.0 } else { 0.0 };
                *grad.add(v) = p / ROWS as f32;
            }
        }
    }
}

/// Tile = row of the weights (all layers); the last tile is the bias.
unsafe extern "C" fn update(buffers: *const *mut u8, _: *const i64, begin: i64, end: i64, scratch: *mut u8) {
    let vocab = VOCAB as usize;
    // SAFETY: as in `forward`; each tile owns its row of weights and momenta.
    unsafe {
        let base = *buffers;
        let lr = *base.add(at::LR as usize).cast::<f64>() as f32;
        let sum = std::slice::from_raw_parts_mut(scratch.cast::<f32>(), vocab);
        for tile in begin as usize..end as usize {
            sum.fill(0.0);
            for row in 0..ROWS as usize {
                let token = *base.add(at::TOKENS as usize).cast::<i32>().add(row) as usize;
                if tile == vocab || token == tile {
                    let grad = base.add(at::GRAD as usize).cast::<f32>().add(row * vocab);
                    for (v, sum) in sum.iter_mut().enumerate() {
                        *sum += *grad.add(v);
                    }
                }
            }
            let step = |w: *mut f32, m: *mut f32| {
                for (v, grad) in sum.iter().enumerate() {
                    *m.add(v) = 0.9 * *m.add(v) + grad;
                    *w.add(v) -= lr * *m.add(v);
                }
            };
            let float = |offset: u64, index: usize| base.add(offset as usize).cast::<f32>().add(index);
            if tile == vocab {
                step(float(at::BIAS, 0), float(at::BIAS_M, 0));
            } else {
                for layer in 0..LAYERS as usize {
                    let row = (layer * vocab + tile) * vocab;
                    step(float(at::W, row), float(at::W_M, row));
                }
            }
        }
    }
}

/// One tile: the mean loss.
unsafe extern "C" fn reduce(buffers: *const *mut u8, _: *const i64, _: i64, _: i64, _: *mut u8) {
    // SAFETY: as in `forward`.
    unsafe {
        let base = *buffers;
        let rows = std::slice::from_raw_parts(base.add(at::ROW_LOSS as usize).cast::<f32>(), ROWS as usize);
        *base.add(at::LOSS as usize).cast::<f32>() = rows.iter().sum::<f32>() / ROWS as f32;
        *base.add(at::LR_OUT as usize).cast::<f32>() = *base.add(at::LR as usize).cast::<f64>() as f32;
    }
}

/// One tile: logits after `position`.
unsafe extern "C" fn logits(buffers: *const *mut u8, _: *const i64, _: i64, _: i64, _: *mut u8) {
    // SAFETY: as in `forward`.
    unsafe {
        let base = *buffers;
        let position = *base.add(at::POSITION as usize).cast::<i32>() as usize;
        let token = *base.add(at::TOKENS as usize).cast::<i32>().add(position) as usize;
        let out = std::slice::from_raw_parts_mut(base.add(at::LOGITS as usize).cast::<f32>(), VOCAB as usize);
        logits_of(base, token, out);
    }
}

unsafe fn launch(ctx: *const StepContext, op: u32, kernel: KernelFn, tiles: i64) {
    // SAFETY: the runtime hands a valid context; the base of the space is the only buffer.
    unsafe {
        let buffers = [*(*ctx).spaces];
        ((*ctx).launch)(ctx, op, kernel, buffers.as_ptr(), std::ptr::null(), tiles);
    }
}

unsafe extern "C" fn train_entry(ctx: *const StepContext) {
    // SAFETY: see `launch`.
    unsafe {
        launch(ctx, 0, forward, ROWS as i64);
        launch(ctx, 1, update, VOCAB as i64 + 1);
        launch(ctx, 2, reduce, 1);
    }
}

unsafe extern "C" fn eval_entry(ctx: *const StepContext) {
    // SAFETY: see `launch`.
    unsafe {
        launch(ctx, 0, forward, ROWS as i64);
        launch(ctx, 2, reduce, 1);
    }
}

unsafe extern "C" fn logits_entry(ctx: *const StepContext) {
    // SAFETY: see `launch`.
    unsafe { launch(ctx, 3, logits, 1) }
}

fn tensor(
    path: &str,
    role: TensorRole,
    layers: Option<u64>,
    shape: &[u64],
    init: Init,
    offset: u64,
) -> TensorInfo {
    TensorInfo {
        path: path.to_owned(),
        role,
        layers,
        axes: ["from", "to"][2 - shape.len()..].iter().map(|s| (*s).to_owned()).collect(),
        shape: shape.to_vec(),
        split: vec![],
        dtype: DType::F32,
        init,
        place: place(offset),
        line: "bigram.spec:5".to_owned(),
    }
}

fn ids(name: &str, source: InputSource, shape: &[u64], offset: u64) -> InputInfo {
    let bound = if source == InputSource::Position { SEQ } else { VOCAB };
    InputInfo {
        name: name.to_owned(),
        source,
        dtype: DType::I32,
        shape: shape.to_vec(),
        split: vec![],
        bound,
        place: place(offset),
    }
}

fn output(name: &str, shape: &[u64], offset: u64) -> OutputInfo {
    OutputInfo { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), place: place(offset) }
}

fn entry(name: &str, batch: u64, inputs: Vec<InputInfo>, outputs: Vec<OutputInfo>) -> EntryInfo {
    EntryInfo { name: name.to_owned(), batch, seq: SEQ, inputs, outputs, flops: 6 * ROWS * VOCAB }
}

/// What codegen would store in the binary.
pub fn info() -> ProgramInfo {
    let batch = [BATCH, SEQ];
    let tokens = || ids("tokens", InputSource::Tokens, &batch, at::TOKENS);
    let targets = || ids("targets", InputSource::Targets, &batch, at::TARGETS);
    let names = (0..LAYERS)
        .map(|i| (format!("layer.{i}.w"), format!("blocks.{i}.weight"), vec![vec![1], vec![0]]))
        .chain([("bias".to_owned(), "out.bias".to_owned(), vec![])])
        .map(|(logical, external, axes)| NameRow { logical, external, axes })
        .collect();
    let state = || TensorRole::State("m".to_owned());
    let zero = Init::Constant(0.0);
    ProgramInfo {
        model: "Bigram".to_owned(),
        fingerprint: "f00d".to_owned(),
        spec: "spec 1\n".to_owned(),
        cpu_features: vec!["sse2".to_owned()],
        spaces: vec![SpaceInfo { name: "device".to_owned(), bytes: at::END }],
        scratch_bytes: VOCAB * 4,
        mesh: vec![],
        collectives: vec![],
        entries: vec![
            entry(
                "train",
                BATCH,
                vec![tokens(), targets()],
                vec![output("loss", &[], at::LOSS), output("lr", &[], at::LR_OUT)],
            ),
            entry("eval", BATCH, vec![tokens(), targets()], vec![output("loss", &[], at::LOSS)]),
            entry(
                "logits",
                1,
                vec![
                    ids("tokens", InputSource::Tokens, &[1, SEQ], at::TOKENS),
                    ids("position", InputSource::Position, &[], at::POSITION),
                ],
                vec![output("logits", &[VOCAB], at::LOGITS)],
            ),
        ],
        scalars: [("step", 0.0, at::STEP), ("train.optimizer.lr", 8.0, at::LR)]
            .map(|(key, default, offset)| ScalarInfo {
                key: key.to_owned(),
                dtype: DType::F64,
                default,
                place: place(offset),
            })
            .to_vec(),
        tensors: vec![
            tensor(
                "layer.{i}.w",
                TensorRole::Param,
                Some(LAYERS),
                &[VOCAB, VOCAB],
                Init::Normal { std: 0.02 },
                at::W,
            ),
            tensor("layer.{i}.w.m", state(), Some(LAYERS), &[VOCAB, VOCAB], zero, at::W_M),
            tensor("bias", TensorRole::Param, None, &[VOCAB], zero, at::BIAS),
            tensor("bias.m", state(), None, &[VOCAB], zero, at::BIAS_M),
        ],
        ops: ["forward", "update", "reduce", "logits"]
            .map(|kernel| OpInfo {
                path: "model".to_owned(),
                kernel: kernel.to_owned(),
                line: "bigram.spec:9".to_owned(),
                bytes: 1000,
                flops: 2000,
                stream: 0,
                seconds: 0.0,
                link: String::new(),
            })
            .to_vec(),
        names: vec![NameTable { name: "hf".to_owned(), rows: names }],
        vocab: VOCAB,
        run: RunInfo {
            steps: 40,
            seed: 1,
            data: None,
            eval_data: None,
            document_end: None,
            eval_every: 0,
            eval_batches: 2,
            checkpoint_every: 10,
            checkpoint_keep: 3,
            checkpoint_keep_every: 0,
            checkpoint_dir: "ckpt".to_owned(),
            log_every: 10,
        },
        baked: vec![("train.batch".to_owned(), BATCH.to_string())],
        rebuild: "mlc build bigram.spec -o bigram".to_owned(),
        skip: None,
    }
}

/// The step functions, in the order of the entries.
pub const ENTRIES: [EntryFn; 3] = [train_entry, eval_entry, logits_entry];

/// The checked program for `info`, by way of a table as in a binary.
pub fn program_with(info: &ProgramInfo) -> Program {
    with_table(info, |table| {
        // SAFETY: the table is well formed and everything is copied out of it.
        unsafe { Program::from_table(table) }.unwrap()
    })
}

/// Hands a table for `info` to `use_table`.
pub fn with_table<T>(info: &ProgramInfo, use_table: impl FnOnce(&ProgramTable) -> T) -> T {
    with_table_of(info, &ENTRIES, use_table)
}

/// As [`with_table`], for other step functions.
pub fn with_table_of<T>(
    info: &ProgramInfo,
    entries: &[EntryFn],
    use_table: impl FnOnce(&ProgramTable) -> T,
) -> T {
    let text = serde_json::to_vec(info).unwrap();
    let table = ProgramTable {
        abi_version: ABI_VERSION,
        n_entries: entries.len() as u32,
        entries: entries.as_ptr(),
        info: text.as_ptr(),
        info_len: text.len() as u64,
    };
    use_table(&table)
}
