//! Writes a checkpoint.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use super::manifest::{DataPosition, FORMAT, FORMAT_OF_RANKS, Manifest, ShardFile, SplitTensor};
use super::shard::{TensorBytes, write_shard};
use super::store::Store;
use crate::abi::TensorInfo;
use crate::failure::Failure;
use crate::program::LogicalTensor;
use crate::rank::Rank;
use crate::shard::is_owner;

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

/// Saves all parameters and states. On return the checkpoint is on disk under its name. All ranks call it; the store of rank 0
/// is the one for writing.
///
/// # Errors
/// A file cannot be written on any of the ranks, as when the disk is full; earlier checkpoints are untouched.
pub fn save(rank: &Rank, store: &Store, record: Record) -> Result<(), Failure> {
    let world = rank.world();
    let folder = store.unfinished(record.step);
    if world.is_first() {
        store.begin(record.step)?;
    }
    world.barrier()?;
    let shards = gather(rank, &write_tensors(rank, &folder, SHARD_BYTES)?)?;
    if world.is_first() {
        finish(rank, store, &folder, record, shards)?;
    }
    world.barrier()
}

/// What all ranks wrote, by rank.
fn gather(rank: &Rank, mine: &[ShardFile]) -> Result<Vec<ShardFile>, Failure> {
    // A list of strings and numbers always has a JSON form.
    let all = rank.world().all_gather(&serde_json::to_vec(mine).unwrap_or_default())?;
    let lists = all.iter().map(|text| serde_json::from_slice::<Vec<ShardFile>>(text));
    let lists: Result<Vec<_>, _> = lists.collect();
    let lists =
        lists.map_err(|e| Failure::failed(format!("error: what the ranks wrote is not known: {e}")))?;
    Ok(lists.into_iter().flatten().collect())
}

/// Writes the manifest and gives the folder its name.
fn finish(
    rank: &Rank,
    store: &Store,
    folder: &Path,
    record: Record,
    shards: Vec<ShardFile>,
) -> Result<(), Failure> {
    let info = &rank.program.info;
    let several = rank.program.ranks() > 1;
    let manifest = Manifest {
        format: if several { FORMAT_OF_RANKS } else { FORMAT },
        mlc: env!("CARGO_PKG_VERSION").to_owned(),
        model: info.model.clone(),
        fingerprint: info.fingerprint.clone(),
        step: record.step,
        seed: record.seed,
        data: record.data,
        keys: record.keys.into_iter().collect(),
        spec: info.spec.clone(),
        mesh: if several { info.mesh.clone() } else { Vec::new() },
        split: if several { info.tensors.iter().filter_map(recorded).collect() } else { Vec::new() },
        shards,
    };
    for (name, text) in manifest.files() {
        write_synced(&folder.join(name), text.as_bytes())?;
    }
    store.commit(folder, record.step)
}

/// What the manifest says of a tensor, if it is split.
fn recorded(tensor: &TensorInfo) -> Option<SplitTensor> {
    (!tensor.split.is_empty()).then(|| SplitTensor {
        path: tensor.path.clone(),
        layers: tensor.layers,
        shape: tensor.shape.clone(),
        split: tensor.split.clone(),
    })
}

/// Writes the parts this rank owns in the order of the program, as many shards as needed.
fn write_tensors(rank: &Rank, folder: &Path, limit: u64) -> Result<Vec<ShardFile>, Failure> {
    let (program, me) = (rank.program, rank.world().rank() as u64);
    let coordinates = rank.coordinates();
    let mut tensors = program.logical_tensors();
    tensors.retain(|t| is_owner(&t.tensor.split, &coordinates));
    let shapes: Vec<Vec<u64>> =
        tensors.iter().map(|t| rank.part(&t.tensor.shape, &t.tensor.split).local_shape()).collect();
    let mut shards = Vec::new();
    for group in split(&tensors, limit) {
        let parts: Vec<TensorBytes> = group
            .clone()
            .map(|i| TensorBytes {
                name: &tensors[i].name,
                dtype: tensors[i].tensor.dtype,
                shape: &shapes[i],
                bytes: rank.bytes(tensors[i].place, tensors[i].bytes()),
            })
            .collect();
        let number = shards.len() + 1;
        let name = match program.ranks() {
            1 => format!("{number:05}.safetensors"),
            _ => format!("rank-{me:05}-{number:05}.safetensors"),
        };
        shards.push(write_shard(folder, &name, me, &parts)?);
    }
    Ok(shards)
}

/// Cuts the list into runs of at most `limit` bytes, or of one tensor.
fn split(tensors: &[LogicalTensor], limit: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut begin, mut bytes) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > begin && bytes + tensor.bytes() > limit {
            groups.push(begin..i);
            (begin, bytes) = (i, 0);
        }
        bytes += tensor.bytes();
    }
    if begin < tensors.len() {
        groups.push(begin..tensors.len());
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
