//! Files of tensors in the safetensors format (<https://github.com/huggingface/safetensors>).
//!
//! Writing streams from the tensors' own memory and hashes on the way, so that nothing is copied; the crate's writers
//! either build the file in memory or would need a second reading for the hash. The header is made by the crate.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::manifest::ShardFile;
use crate::abi::DType;
use crate::failure::Failure;

/// One tensor to write.
pub struct TensorBytes<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: &'a [u64],
    /// Its row-major content.
    pub bytes: &'a [u8],
}

/// One tensor as a header tells of it.
pub struct TensorShape<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: &'a [u64],
}

/// The safetensors name of an element type.
pub fn safetensors_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::Bf16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::Bool => Dtype::BOOL,
    }
}

/// Writes `tensors`, those of `rank`, as `folder/name`, syncs the file, and says what was written.
///
/// # Errors
/// The file cannot be written.
pub fn write_shard(
    folder: &Path,
    name: &str,
    rank: u64,
    tensors: &[TensorBytes],
) -> Result<ShardFile, Failure> {
    let path = folder.join(name);
    let failed = |e: std::io::Error| Failure::io("write", &path, e);
    let shapes: Vec<TensorShape> =
        tensors.iter().map(|t| TensorShape { name: t.name, dtype: t.dtype, shape: t.shape }).collect();
    let header = header(&shapes).map_err(|e| Failure::io("write", &path, e))?;
    let mut file = File::create(&path).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    for part in std::iter::once(header.as_slice()).chain(tensors.iter().map(|t| t.bytes)) {
        file.write_all(part).map_err(failed)?;
        hasher.update(part);
        bytes += part.len() as u64;
    }
    file.sync_all().map_err(failed)?;
    Ok(ShardFile { file: name.to_owned(), bytes, blake3: hasher.finalize().to_hex().to_string(), rank })
}

/// The length word and the JSON header of a file of these tensors, one after the other, padded with spaces to a multiple of 8
/// bytes.
///
/// # Errors
/// Two have the same name.
pub fn header(tensors: &[TensorShape]) -> Result<Vec<u8>, String> {
    let mut offset = 0;
    let infos = tensors
        .iter()
        .map(|t| {
            let begin = offset;
            offset += (t.shape.iter().product::<u64>() * t.dtype.bytes()) as usize;
            let info = TensorInfo {
                dtype: safetensors_dtype(t.dtype),
                shape: t.shape.iter().map(|&size| size as usize).collect(),
                data_offsets: (begin, offset),
            };
            (t.name.to_owned(), info)
        })
        .collect();
    let metadata = Metadata::new(None, infos).map_err(|e| e.to_string())?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn write_shard_is_read_by_the_crate() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [
            TensorBytes { name: "b", dtype: DType::F32, shape: &[2, 1], bytes: &[1, 2, 3, 4, 5, 6, 7, 8] },
            TensorBytes { name: "a", dtype: DType::Bf16, shape: &[], bytes: &[9, 10] },
            TensorBytes { name: "empty", dtype: DType::I64, shape: &[0, 3], bytes: &[] },
        ];
        let shard = write_shard(folder.path(), "x.safetensors", 0, &tensors).unwrap();
        let bytes = std::fs::read(folder.path().join("x.safetensors")).unwrap();
        assert_eq!(shard.bytes, bytes.len() as u64);
        assert_eq!(shard.blake3, blake3::hash(&bytes).to_hex().as_str());
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 3);
        for tensor in &tensors {
            let view = read.tensor(tensor.name).unwrap();
            assert_eq!(view.data(), tensor.bytes);
            assert_eq!(view.dtype(), safetensors_dtype(tensor.dtype));
            assert!(view.shape().iter().map(|&s| s as u64).eq(tensor.shape.iter().copied()));
        }
    }
}
