//! Writes a checkpoint.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::manifest::{DataPosition, FORMAT, Manifest, ShardFile};
use super::shard::{TensorBytes, write_shard};
use super::store::Store;
use crate::failure::Failure;
use crate::program::LogicalTensor;
use crate::rank::Rank;

/// A shard is closed when it would grow beyond this; a larger tensor gets a shard of its own.
const SHARD_BYTES: u64 = 1 << 30;

/// What a checkpoint records beside the tensors.
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Where the data stood.
    pub data: DataPosition,
    /// Run-time keys and values.
    pub keys: Vec<(String, String)>,
}

/// Saves all parameters and states. On return the checkpoint is on disk under its name.
///
/// # Errors
/// A file cannot be written, as when the disk is full; earlier checkpoints are untouched.
pub fn save(rank: &Rank, store: &Store, record: Record) -> Result<(), Failure> {
    let info = &rank.program.info;
    let folder = store.begin(record.step)?;
    let manifest = Manifest {
        format: FORMAT,
        mlc: env!("CARGO_PKG_VERSION").to_owned(),
        model: info.model.clone(),
        fingerprint: info.fingerprint.clone(),
        step: record.step,
        seed: record.seed,
        data: record.data,
        keys: record.keys.into_iter().collect(),
        spec: info.spec.clone(),
        shards: write_tensors(rank, &folder, SHARD_BYTES)?,
    };
    for (name, text) in manifest.files() {
        write_synced(&folder.join(name), text.as_bytes())?;
    }
    store.commit(&folder, record.step)
}

/// Writes the tensors in the order of the program, as many shards as needed.
fn write_tensors(rank: &Rank, folder: &Path, limit: u64) -> Result<Vec<ShardFile>, Failure> {
    let tensors = rank.program.logical_tensors();
    let mut shards = Vec::new();
    for group in split(&tensors, limit) {
        let parts: Vec<TensorBytes> = group
            .iter()
            .map(|t| TensorBytes {
                name: &t.name,
                dtype: t.tensor.dtype,
                shape: &t.tensor.shape,
                bytes: rank.bytes(t.place, t.bytes()),
            })
            .collect();
        shards.push(write_shard(folder, &format!("{:05}.safetensors", shards.len() + 1), &parts)?);
    }
    Ok(shards)
}

/// Cuts the list into runs of at most `limit` bytes, or of one tensor.
fn split<'a, 'p>(tensors: &'a [LogicalTensor<'p>], limit: u64) -> Vec<&'a [LogicalTensor<'p>]> {
    let mut groups = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > begin && bytes + tensor.bytes() > limit {
            groups.push(&tensors[begin..i]);
            (begin, bytes) = (i, 0);
        }
        bytes += tensor.bytes();
    }
    if begin < tensors.len() {
        groups.push(&tensors[begin..]);
    }
    groups
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Failure::io("write", path, e))
}
