//! `export`: the parameters of a checkpoint as a safetensors file under the names other programs know them by.
//!
//! It is made from the files of the checkpoint alone, one parameter at a time, so that it takes neither the ranks that wrote them
//! nor the memory of a model.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::reader::Checkpoint;
use super::shard::{TensorShape, header};
use super::store::sync_folder;
use super::weights::{Source, external_shape, file_strides, list, offset_of_row, sources};
use crate::abi::NameTable;
use crate::device::pool::Pool;
use crate::failure::Failure;
use crate::program::Program;
use crate::shard::AxisPart;

/// Writes all parameters of `checkpoint`, which was opened for whole tensors, as `path` under the names of `table` (`None`: the
/// logical ones). The file appears under its name only when it is complete and on disk. Returns how many there are.
///
/// # Errors
/// The table does not name all parameters, or the file cannot be written.
pub fn export(
    pool: &Pool,
    program: &Program,
    checkpoint: &Checkpoint,
    table: Option<&NameTable>,
    path: &Path,
) -> Result<usize, Failure> {
    let (sources, unnamed) = sources(program, table);
    if !unnamed.is_empty() {
        return Err(Failure::failed(format!(
            "error: the table `{}` lacks names of parameters: {}\nExport by another one with --names.",
            table.map_or("logical", |t| t.name.as_str()),
            list(&unnamed)
        )));
    }
    let all = program.logical_tensors().into_iter().enumerate();
    let indices: BTreeMap<String, usize> = all.map(|(i, tensor)| (tensor.name, i)).collect();
    let unfinished = beside(path);
    let failed = |e: std::io::Error| Failure::io("write", &unfinished, e);
    let write = || {
        let mut file = BufWriter::new(File::create(&unfinished).map_err(failed)?);
        let shapes: Vec<Vec<u64>> = sources.iter().map(external_shape).collect();
        let tensors: Vec<TensorShape> = sources
            .iter()
            .zip(&shapes)
            .map(|(s, shape)| TensorShape { name: &s.external, dtype: s.target.tensor.dtype, shape })
            .collect();
        let header = header(&tensors).map_err(|e| Failure::io("write", path, e))?;
        file.write_all(&header).map_err(failed)?;
        for source in &sources {
            let tensor = source.target.tensor;
            let bytes = tensor.shape.iter().product::<u64>() * tensor.dtype.bytes();
            let index = indices.get(&source.target.name).copied().unwrap_or_default();
            let bytes = checkpoint.read(pool, index, bytes);
            file.write_all(&moved(pool, source, bytes)).map_err(failed)?;
        }
        let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)
    };
    write().inspect_err(|_| {
        // What is left of it is of no use; if it cannot be removed either, the error says where it is.
        let _ = std::fs::remove_file(&unfinished);
    })?;
    std::fs::rename(&unfinished, path).map_err(|e| Failure::io("rename to", path, e))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync_folder(folder.unwrap_or(Path::new(".")))?;
    Ok(sources.len())
}

/// Name of the file while it is written.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    PathBuf::from(name)
}

/// The elements of a tensor in the order of the file.
fn moved(pool: &Pool, source: &Source, bytes: Vec<u8>) -> Vec<u8> {
    let tensor = source.target.tensor;
    let (shape, width) = (&tensor.shape, tensor.dtype.bytes() as usize);
    let strides = file_strides(source);
    let mut next = 1;
    let in_order = shape.iter().zip(&strides).rev().all(|(&size, &stride)| {
        let same = size == 1 || stride == next;
        next *= size;
        same
    });
    let axes: Vec<(AxisPart, u64)> = shape.iter().copied().map(AxisPart::whole).zip(strides).collect();
    let Some((&(row, step), outer)) = axes.split_last().filter(|_| !in_order) else { return bytes };
    let row = row.local() as usize;
    let rows = bytes.len() / width / row.max(1);
    let mut file = vec![0; bytes.len()];
    let to = file.as_mut_ptr() as usize;
    pool.run(rows as i64, &|begin, end, _| {
        for r in begin as usize..end as usize {
            let Some(first) = offset_of_row(r as u64, outer) else { continue };
            for i in 0..row {
                let at = (first as usize + i * step as usize) * width;
                let from = &bytes[(r * row + i) * width..][..width];
                // SAFETY: the strides permute the elements, so that each place of the file belongs to one of them.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), (to as *mut u8).add(at), width) };
            }
        }
    });
    file
}
