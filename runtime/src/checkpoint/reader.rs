//! One rank's look at one checkpoint: is it valid, and where in its files are the elements this rank holds?
//!
//! A checkpoint is valid when its manifest matches its hash, every file has the recorded length and hash, and the files
//! hold exactly the tensors of this program with their shapes and element types. Ranks share the work: each checks the hashes
//! of some of the files, and reads of the others only what it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::layout::{Layout, Piece};
use super::manifest::{Manifest, SplitTensor};
use super::shard::safetensors_dtype;
use crate::abi::TensorInfo;
use crate::data::files::FileBytes;
use crate::device::pool::Pool;
use crate::failure::Failure;
use crate::program::{LogicalTensor, Program};
use crate::shard::{Overlap, Part};

/// Of whose reading this is a share.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Which.
    pub rank: usize,
    /// Of how many.
    pub ranks: usize,
}

impl Share {
    /// All of it.
    pub const ALL: Share = Share { rank: 0, ranks: 1 };

    fn has(self, file: usize) -> bool {
        file % self.ranks == self.rank
    }
}

/// A checkpoint whose share of this rank is valid.
pub struct Checkpoint {
    /// Its manifest.
    pub manifest: Manifest,
    /// Those of its files that are needed here.
    files: Vec<Option<FileBytes>>,
    moves: Vec<Move>,
}

/// What to copy from one file into one tensor.
struct Move {
    /// Index among the program's logical tensors.
    tensor: usize,
    file: usize,
    /// First byte of the tensor in the file.
    begin: usize,
    /// Bytes per element.
    width: usize,
    overlap: Overlap,
}

/// A tensor in a file.
struct Found {
    file: usize,
    begin: usize,
    dtype: Dtype,
    shape: Vec<u64>,
}

/// The tensors of all open files, by the rank that wrote them and by name.
type Contents = BTreeMap<(u64, String), Found>;

impl Checkpoint {
    /// Opens and checks the checkpoint of `step` in `folder`; `part` says what of a tensor is wanted here.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn open(
        pool: &Pool,
        program: &Program,
        folder: &Path,
        step: u64,
        share: Share,
        part: impl Fn(&TensorInfo) -> Part,
    ) -> Result<Checkpoint, String> {
        if !folder.is_dir() {
            return Err("there is no such checkpoint".to_owned());
        }
        let manifest = Manifest::read(folder)?;
        if manifest.step != step {
            return Err(format!("its manifest says step {}", manifest.step));
        }
        let layout = Layout::of(&manifest)?;
        let tensors = program.logical_tensors();
        let wanted = wanted(&layout, &tensors, part);
        let files = open_files(&manifest, folder, share, &wanted)?;
        check_hashes(pool, &manifest, &files, share)?;
        let contents = contents(&manifest, &files)?;
        let moves = locate(&layout, &tensors, wanted, &contents)?;
        let names: BTreeSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        let extra = |((_, name), found): (&(u64, String), &Found)| {
            (share.has(found.file) && !names.contains(name.as_str())).then(|| name.clone())
        };
        if let Some(name) = contents.iter().find_map(extra) {
            return Err(format!("it has a tensor this program lacks: {name}"));
        }
        Ok(Checkpoint { manifest, files, moves })
    }

    /// Copies the wanted elements to buffers at `targets`, the addresses of the program's logical tensors, on all threads.
    ///
    /// # Safety
    /// Each address is that of a buffer for the part that was asked for in [`Checkpoint::open`], and nobody else touches any.
    pub unsafe fn copy(&self, pool: &Pool, targets: &[usize]) {
        pool.run(self.moves.len() as i64, &|begin, end, _| {
            for todo in &self.moves[begin as usize..end as usize] {
                // SAFETY: pieces of a tensor do not overlap in it, and the caller vouches for the rest.
                unsafe { self.carry_out(todo, targets[todo.tensor] as *mut u8) };
            }
        });
    }

    /// The content of the `tensor`-th logical tensor of the program, of `bytes` bytes, which was asked for whole; row-major.
    pub fn read(&self, pool: &Pool, tensor: usize, bytes: u64) -> Vec<u8> {
        let mut content = vec![0u8; bytes as usize];
        let to = content.as_mut_ptr() as usize;
        // They are in the order of the tensors.
        let begin = self.moves.partition_point(|m| m.tensor < tensor);
        let end = self.moves.partition_point(|m| m.tensor <= tensor);
        let moves = &self.moves[begin..end];
        pool.run(moves.len() as i64, &|begin, end, _| {
            for todo in &moves[begin as usize..end as usize] {
                // SAFETY: the buffer holds the whole tensor, and pieces of a tensor do not overlap in it.
                unsafe { self.carry_out(todo, to as *mut u8) };
            }
        });
        content
    }

    /// Copies one piece.
    ///
    /// # Safety
    /// `to` is a buffer for the part that was asked for, and nobody else touches the piece in it.
    unsafe fn carry_out(&self, todo: &Move, to: *mut u8) {
        let Some(file) = &self.files[todo.file] else { return };
        let bytes = &file[todo.begin..];
        todo.overlap.for_each(|from_element, to_element, length| {
            let length = length as usize * todo.width;
            let from = &bytes[from_element as usize * todo.width..][..length];
            // SAFETY: the overlap lies inside the part; the caller vouches for the rest.
            unsafe {
                let to = to.add(to_element as usize * todo.width);
                std::ptr::copy_nonoverlapping(from.as_ptr(), to, length);
            }
        });
    }
}

/// For every logical tensor the pieces of it that are wanted.
fn wanted(
    layout: &Layout,
    tensors: &[LogicalTensor],
    part: impl Fn(&TensorInfo) -> Part,
) -> Vec<(usize, Piece)> {
    let mut all = Vec::new();
    // Layers of one tensor are alike: with many ranks and layers, working each out anew would take seconds.
    let mut last: Option<(&TensorInfo, Option<&SplitTensor>, Vec<Piece>)> = None;
    for (i, tensor) in tensors.iter().enumerate() {
        let split = layout.split(&tensor.name).filter(|split| split.shape == tensor.tensor.shape);
        let same = |a: Option<&SplitTensor>, b: Option<&SplitTensor>| match (a, b) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let pieces = match last.take() {
            Some((t, s, pieces)) if std::ptr::eq(t, tensor.tensor) && same(s, split) => pieces,
            Some(_) | None => layout.pieces(&tensor.tensor.shape, split, &part(tensor.tensor)),
        };
        all.extend(pieces.iter().cloned().map(|piece| (i, piece)));
        last = Some((tensor.tensor, split, pieces));
    }
    all
}

/// Opens the files of this share and those that hold a wanted piece.
fn open_files(
    manifest: &Manifest,
    folder: &Path,
    share: Share,
    wanted: &[(usize, Piece)],
) -> Result<Vec<Option<FileBytes>>, String> {
    let ranks: BTreeSet<u64> = wanted.iter().map(|(_, piece)| piece.rank).collect();
    let open = |(i, shard): (usize, &super::manifest::ShardFile)| {
        if !share.has(i) && !ranks.contains(&shard.rank) {
            return Ok(None);
        }
        let path = folder.join(&shard.file);
        let bytes = FileBytes::open(&path).map_err(|e| without_prefix(&e))?;
        if bytes.len() as u64 != shard.bytes {
            return Err(format!("{} has {} bytes instead of {}", shard.file, bytes.len(), shard.bytes));
        }
        Ok(Some(bytes))
    };
    manifest.shards.iter().enumerate().map(open).collect()
}

/// The message as a part of another one.
fn without_prefix(failure: &Failure) -> String {
    failure.message.strip_prefix("error: ").unwrap_or(&failure.message).to_owned()
}

/// Compares every file of this share with its recorded hash, one file a thread.
fn check_hashes(
    pool: &Pool,
    manifest: &Manifest,
    files: &[Option<FileBytes>],
    share: Share,
) -> Result<(), String> {
    let wrong: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
    pool.run(files.len() as i64, &|begin, end, _| {
        for i in (begin as usize..end as usize).filter(|&i| share.has(i)) {
            let Some(bytes) = &files[i] else { continue };
            if blake3::hash(bytes).to_hex().as_str() != manifest.shards[i].blake3
                && let Ok(mut wrong) = wrong.lock()
            {
                wrong.insert(i);
            }
        }
    });
    let wrong = wrong.into_inner().unwrap_or_default();
    let first = wrong.first().map(|&i| format!("{} does not match its hash", manifest.shards[i].file));
    first.map_or(Ok(()), Err)
}

/// What the open files hold.
fn contents(manifest: &Manifest, files: &[Option<FileBytes>]) -> Result<Contents, String> {
    let mut contents = BTreeMap::new();
    for (file, (bytes, shard)) in files.iter().zip(&manifest.shards).enumerate() {
        let Some(bytes) = bytes else { continue };
        let (header, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|e| format!("{}: {e}", shard.file))?;
        for (name, info) in metadata.tensors() {
            // The header follows eight bytes with its length.
            let begin = 8 + header + info.data_offsets.0;
            let shape = info.shape.iter().map(|&size| size as u64).collect();
            contents.insert((shard.rank, name), Found { file, begin, dtype: info.dtype, shape });
        }
    }
    Ok(contents)
}

/// Finds every wanted piece in the files.
fn locate(
    layout: &Layout,
    tensors: &[LogicalTensor],
    wanted: Vec<(usize, Piece)>,
    contents: &Contents,
) -> Result<Vec<Move>, String> {
    let mut moves = Vec::with_capacity(wanted.len());
    for (i, Piece { rank, part, overlap }) in wanted {
        let tensor = &tensors[i];
        let (name, shape, dtype) = (&tensor.name, &tensor.tensor.shape, tensor.tensor.dtype);
        if let Some(split) = layout.split(name).filter(|split| split.shape != *shape) {
            return Err(misshapen(name, &split.shape, shape));
        }
        let found = contents.get(&(rank, name.clone())).ok_or_else(|| format!("it lacks tensor {name}"))?;
        if found.shape != part.local_shape() {
            return Err(match layout.split(name) {
                None => misshapen(name, &found.shape, shape),
                Some(_) => format!(
                    "rank {rank}'s part of tensor {name} has shape {:?} instead of {:?}",
                    found.shape,
                    part.local_shape()
                ),
            });
        }
        if found.dtype != safetensors_dtype(dtype) {
            return Err(format!(
                "tensor {name} has elements of type {}, this program's are {}",
                found.dtype,
                safetensors_dtype(dtype)
            ));
        }
        let width = dtype.bytes() as usize;
        moves.push(Move { tensor: i, file: found.file, begin: found.begin, width, overlap });
    }
    Ok(moves)
}

fn misshapen(name: &str, found: &[u64], shape: &[u64]) -> String {
    format!("tensor {name} has shape {found:?}, this program's has {shape:?}")
}
