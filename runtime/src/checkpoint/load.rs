//! Finds and loads a checkpoint.
//!
//! A checkpoint is valid when its manifest matches its hash, every file has the recorded length and hash, and the files
//! hold exactly the tensors of this program with their shapes and element types. Only then is anything copied, so that a
//! damaged checkpoint never leaves a half-loaded model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::manifest::Manifest;
use super::shard::safetensors_dtype;
use super::store::Store;
use crate::data::files::FileBytes;
use crate::device::pool::Pool;
use crate::failure::Failure;
use crate::program::{LogicalTensor, Program};
use crate::rank::Rank;
use crate::settings::Resume;

/// A loaded checkpoint.
#[derive(Debug)]
pub struct Loaded {
    /// Its manifest.
    pub manifest: Manifest,
    /// What the person at the keyboard should know: newer checkpoints skipped and why, a differing program.
    pub notes: Vec<String>,
}

/// Loads the checkpoint `resume` asks for into the rank; `None` when there is none to load and none was demanded.
/// `otherwise` says what the command can do without a valid one.
///
/// # Errors
/// The demanded checkpoint is missing or not valid, or there are checkpoints and none is valid.
pub fn load(
    rank: &mut Rank,
    store: &Store,
    resume: Resume,
    otherwise: &str,
) -> Result<Option<Loaded>, Failure> {
    let steps = match resume {
        Resume::Never => return Ok(None),
        Resume::Auto => store.steps()?,
        Resume::Step(step) => vec![step],
    };
    let mut notes = Vec::new();
    for &step in &steps {
        let path = store.path(step);
        match load_one(rank, &path, step) {
            Ok(manifest) => {
                if manifest.fingerprint != rank.program.info.fingerprint {
                    notes.push(format!(
                        "note: {} was written by another build of the program; its tensors are the same",
                        path.display()
                    ));
                }
                return Ok(Some(Loaded { manifest, notes }));
            }
            Err(why) => notes.push(format!("note: skipped {}: {why}", path.display())),
        }
    }
    if steps.is_empty() {
        return Ok(None);
    }
    let advice = match resume {
        Resume::Step(_) => available(store)?,
        Resume::Auto | Resume::Never => otherwise.to_owned(),
    };
    let reasons: Vec<String> = notes.iter().map(|n| n.replacen("note: skipped ", "  ", 1)).collect();
    Err(Failure::failed(format!(
        "error: no valid checkpoint in {}\n{}\n{advice}",
        store.folder().display(),
        reasons.join("\n")
    )))
}

fn available(store: &Store) -> Result<String, Failure> {
    let steps: Vec<String> = store.steps()?.iter().map(u64::to_string).collect();
    Ok(format!(
        "There are checkpoints of these steps: {}",
        if steps.is_empty() { "none".to_owned() } else { steps.join(", ") }
    ))
}

fn load_one(rank: &mut Rank, folder: &Path, step: u64) -> Result<Manifest, String> {
    let program = rank.program;
    let targets: Vec<usize> =
        program.logical_tensors().iter().map(|t| rank.address(t.place) as usize).collect();
    let pool = rank.pool();
    check(pool, program, folder, step, |views| copy_all(pool, &targets, views))
}

/// Checks the checkpoint of `step` in `folder` against its hashes and against the tensors of the program, and hands the
/// content of the tensors, in the order of [`Program::logical_tensors`], to `use_views`.
///
/// # Errors
/// What is wrong with it, in a few words.
pub fn check(
    pool: &Pool,
    program: &Program,
    folder: &Path,
    step: u64,
    use_views: impl FnOnce(&[TensorView]),
) -> Result<Manifest, String> {
    if !folder.is_dir() {
        return Err("there is no such checkpoint".to_owned());
    }
    let manifest = Manifest::read(folder)?;
    if manifest.step != step {
        return Err(format!("its manifest says step {}", manifest.step));
    }
    let files = manifest
        .shards
        .iter()
        .map(|shard| FileBytes::open(&folder.join(&shard.file)).map_err(|e| without_prefix(&e)))
        .collect::<Result<Vec<_>, _>>()?;
    check_hashes(pool, &manifest, &files)?;
    let shards = files
        .iter()
        .zip(&manifest.shards)
        .map(|(bytes, shard)| SafeTensors::deserialize(bytes).map_err(|e| format!("{}: {e}", shard.file)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut views: BTreeMap<&str, TensorView> = shards.iter().flat_map(SafeTensors::iter).collect();
    let mut found = Vec::new();
    for tensor in &program.logical_tensors() {
        let view =
            views.remove(tensor.name.as_str()).ok_or_else(|| format!("it lacks tensor {}", tensor.name))?;
        check_tensor(tensor, &view)?;
        found.push(view);
    }
    if let Some((name, _)) = views.first_key_value() {
        return Err(format!("it has a tensor this program lacks: {name}"));
    }
    use_views(&found);
    Ok(manifest)
}

/// The message as a part of another one.
fn without_prefix(failure: &Failure) -> String {
    failure.message.strip_prefix("error: ").unwrap_or(&failure.message).to_owned()
}

/// Compares every file with its recorded length and hash, one file a thread.
fn check_hashes(pool: &Pool, manifest: &Manifest, files: &[FileBytes]) -> Result<(), String> {
    let wrong: Mutex<Vec<(usize, String)>> = Mutex::new(Vec::new());
    pool.run(files.len() as i64, &|begin, end, _| {
        let (begin, end) = (begin as usize, end as usize);
        for (i, (bytes, shard)) in
            (begin..end).zip(files[begin..end].iter().zip(&manifest.shards[begin..end]))
        {
            let why = if bytes.len() as u64 != shard.bytes {
                format!("{} has {} bytes instead of {}", shard.file, bytes.len(), shard.bytes)
            } else if blake3::hash(bytes).to_hex().as_str() != shard.blake3 {
                format!("{} does not match its hash", shard.file)
            } else {
                continue;
            };
            if let Ok(mut wrong) = wrong.lock() {
                wrong.push((i, why));
            }
        }
    });
    let mut wrong = wrong.into_inner().unwrap_or_default();
    wrong.sort();
    wrong.into_iter().next().map_or(Ok(()), |(_, why)| Err(why))
}

fn check_tensor(tensor: &LogicalTensor, view: &TensorView) -> Result<(), String> {
    let shape = &tensor.tensor.shape;
    if !view.shape().iter().map(|&s| s as u64).eq(shape.iter().copied()) {
        return Err(format!(
            "tensor {} has shape {:?}, this program's has {shape:?}",
            tensor.name,
            view.shape()
        ));
    }
    if view.dtype() != safetensors_dtype(tensor.tensor.dtype) {
        return Err(format!(
            "tensor {} has elements of type {}, this program's are {}",
            tensor.name,
            view.dtype(),
            safetensors_dtype(tensor.tensor.dtype)
        ));
    }
    Ok(())
}

/// Copies the tensors to their addresses in the rank, on all threads.
fn copy_all(pool: &Pool, targets: &[usize], views: &[TensorView]) {
    pool.run(views.len() as i64, &|begin, end, _| {
        for i in begin as usize..end as usize {
            let data = views[i].data();
            // SAFETY: `check_tensor` found the sizes equal, the program's tensors are disjoint buffers inside their
            // spaces, and `load_one` holds the rank exclusively.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), targets[i] as *mut u8, data.len()) };
        }
    });
}
