//! `--init FILE`: parameters from a safetensors file made elsewhere.
//!
//! 1. Open the file, or all files its `*.index.json` names.
//! 2. Find the naming that covers every parameter: the logical names, else the first `names` table that does.
//! 3. Check every shape and element type, and that nothing is left over.
//! 4. Copy this rank's part, converting f16, bf16, f32 and f64, and moving axes as the table says.
//!
//! Names that begin with `__` are not weights and are passed over, and so are the logical names of optimizer states, which
//! keep their first values: a shard of a checkpoint is a file of weights too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::abi::{DType, NameRow, NameTable};
use crate::data::files::FileBytes;
use crate::failure::Failure;
use crate::numeric::{bf16_to_f32, f16_to_f32, f32_to_bf16};
use crate::program::{LogicalTensor, Program};
use crate::rank::Rank;
use crate::shard::AxisPart;

/// Names listed in an error before the rest is counted.
const NAMES_SHOWN: usize = 8;

/// How one parameter lies in the file.
pub struct Source<'a> {
    /// The parameter.
    pub target: LogicalTensor<'a>,
    /// Its name in the file.
    pub external: String,
    /// As [`crate::abi::NameRow::axes`].
    pub axes: &'a [Vec<usize>],
}

/// Sets every parameter from `path`; returns a sentence about what was done.
///
/// # Errors
/// The file cannot be read, no naming covers all parameters, a name is left over, or a shape or type does not fit.
pub fn import(rank: &mut Rank, path: &Path) -> Result<String, Failure> {
    let files = open(path)?;
    let parsed = files
        .iter()
        .map(|(path, bytes)| {
            SafeTensors::deserialize(bytes).map_err(|e| {
                Failure::failed(format!("error: {} is not a safetensors file: {e}", path.display()))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let program = rank.program;
    let states: BTreeSet<String> =
        program.logical_tensors().into_iter().filter(|t| !t.is_param()).map(|t| t.name).collect();
    let is_weight = |name: &str| !name.starts_with("__") && !states.contains(name);
    let views: BTreeMap<&str, TensorView> =
        parsed.iter().flat_map(SafeTensors::iter).filter(|(name, _)| is_weight(name)).collect();
    let (naming, sources) = choose_naming(program, &views, path)?;
    check_fit(&sources, &views, path)?;
    for source in &sources {
        copy(rank, source, &views[source.external.as_str()]);
    }
    Ok(format!("{} parameters from {} ({naming} names)", sources.len(), path.display()))
}

/// The file itself, or all files of an index.
fn open(path: &Path) -> Result<Vec<(PathBuf, FileBytes)>, Failure> {
    if path.extension().is_none_or(|e| e != "json") {
        return Ok(vec![(path.to_owned(), FileBytes::open(path)?)]);
    }
    let bytes = FileBytes::open(path)?;
    let wrong =
        |why: &str| Failure::failed(format!("error: {} is not a safetensors index: {why}", path.display()));
    let index: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| wrong(&e.to_string()))?;
    let map =
        index.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| wrong("it has no `weight_map`"))?;
    let names: BTreeSet<&str> = map.values().filter_map(|name| name.as_str()).collect();
    let folder = path.parent().unwrap_or(Path::new(""));
    names.iter().map(|name| Ok((folder.join(name), FileBytes::open(&folder.join(name))?))).collect()
}

/// The naming under which the file has every parameter, with its name for people.
fn choose_naming<'a>(
    program: &'a Program,
    views: &BTreeMap<&str, TensorView>,
    path: &Path,
) -> Result<(&'a str, Vec<Source<'a>>), Failure> {
    let mut best: Option<(usize, String)> = None;
    let tables = std::iter::once(None).chain(program.info.names.iter().map(Some));
    for table in tables {
        let naming = table.map_or("logical", |t| t.name.as_str());
        let (sources, unnamed) = sources(program, table);
        let mut missing = unnamed;
        missing.extend(
            sources.iter().filter(|s| !views.contains_key(s.external.as_str())).map(|s| s.external.clone()),
        );
        if missing.is_empty() {
            return Ok((naming, sources));
        }
        if best.as_ref().is_none_or(|(count, _)| missing.len() < *count) {
            let known: BTreeSet<&str> = sources.iter().map(|s| s.external.as_str()).collect();
            let extra: Vec<String> =
                views.keys().filter(|name| !known.contains(*name)).map(|name| (*name).to_owned()).collect();
            let text = format!(
                "  by {naming} names, missing: {}\n  in the file but unknown: {}",
                list(&missing),
                list(&extra)
            );
            best = Some((missing.len(), text));
        }
    }
    let tables: Vec<&str> = program.info.names.iter().map(|t| t.name.as_str()).collect();
    Err(Failure::failed(format!(
        "error: {} does not hold all parameters under one naming (tried: logical{}{})\n{}",
        path.display(),
        if tables.is_empty() { "" } else { ", " },
        tables.join(", "),
        best.map_or(String::new(), |(_, text)| text)
    )))
}

/// Where each parameter lies by `table` (`None`: logical names), and those the table does not name.
pub fn sources<'a>(program: &'a Program, table: Option<&'a NameTable>) -> (Vec<Source<'a>>, Vec<String>) {
    let rows: Option<BTreeMap<&str, &'a NameRow>> =
        table.map(|t| t.rows.iter().map(|row| (row.logical.as_str(), row)).collect());
    let (mut sources, mut unnamed) = (Vec::new(), Vec::new());
    for target in program.logical_tensors().into_iter().filter(LogicalTensor::is_param) {
        match &rows {
            None => sources.push(Source { external: target.name.clone(), target, axes: &[] }),
            Some(rows) => match rows.get(target.name.as_str()) {
                Some(row) => {
                    sources.push(Source { target, external: row.external.clone(), axes: &row.axes });
                }
                None => unnamed.push(target.name),
            },
        }
    }
    (sources, unnamed)
}

/// Every name in the file is used, and every shape and element type fits; all problems are listed.
fn check_fit(sources: &[Source], views: &BTreeMap<&str, TensorView>, path: &Path) -> Result<(), Failure> {
    let mut problems = Vec::new();
    let known: BTreeSet<&str> = sources.iter().map(|s| s.external.as_str()).collect();
    for name in views.keys().filter(|name| !known.contains(*name)) {
        problems.push(format!("{name} is in the file but not in the model"));
    }
    for source in sources {
        let view = &views[source.external.as_str()];
        let expected = external_shape(source);
        if !view.shape().iter().map(|&s| s as u64).eq(expected.iter().copied()) {
            problems.push(format!(
                "{} has shape {:?}, the model needs {expected:?}",
                source.external,
                view.shape()
            ));
        }
        if element_reader(view.dtype()).is_none() {
            problems.push(format!(
                "{} has elements of type {}; f16, bf16, f32 and f64 are read",
                source.external,
                view.dtype()
            ));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(NAMES_SHOWN);
    problems.truncate(NAMES_SHOWN);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Err(Failure::failed(format!(
        "error: {} does not fit the model\n  {}",
        path.display(),
        problems.join("\n  ")
    )))
}

/// Shape of the tensor in the file.
pub fn external_shape(source: &Source) -> Vec<u64> {
    let shape = &source.target.tensor.shape;
    if source.axes.is_empty() {
        return shape.clone();
    }
    source
        .axes
        .iter()
        .map(|group| group.iter().map(|&axis| shape.get(axis).copied().unwrap_or(0)).product())
        .collect()
}

/// Distance in the file, in elements, between neighbours along each logical axis.
pub fn file_strides(source: &Source) -> Vec<u64> {
    let shape = &source.target.tensor.shape;
    let mut strides = vec![0; shape.len()];
    let order: Vec<usize> = match source.axes {
        [] => (0..shape.len()).collect(),
        axes => axes.iter().flatten().copied().collect(),
    };
    let mut stride = 1;
    for &axis in order.iter().rev() {
        if let (Some(slot), Some(size)) = (strides.get_mut(axis), shape.get(axis)) {
            *slot = stride;
            stride *= size;
        }
    }
    strides
}

/// Copies what this rank holds of one parameter, row by row of its last axis, on all threads.
fn copy(rank: &mut Rank, source: &Source, view: &TensorView) {
    let Some(read) = element_reader(view.dtype()) else { return };
    let tensor = source.target.tensor;
    let (part, dtype) = (rank.part(&tensor.shape, &tensor.split), tensor.dtype);
    let strides = file_strides(source);
    // A number by itself is a row of one.
    let scalar = (AxisPart::whole(1), 0);
    let axes: Vec<(AxisPart, u64)> = part.axes.iter().copied().zip(strides).collect();
    let (&(row, row_stride), outer) = axes.split_last().unwrap_or((&scalar, &[]));
    let rows: u64 = outer.iter().map(|(axis, _)| axis.local()).product();
    let base = rank.address(source.target.place) as usize;
    let (width, data) = (view.dtype().bitsize() / 8, view.data());
    rank.pool().run(rows as i64, &|begin, end, _| {
        for r in begin as u64..end as u64 {
            let Some(first) = offset_of_row(r, outer) else { continue };
            for i in (0..row.local()).filter(|&i| row.global(i) < row.size) {
                let at = (first + row.global(i) * row_stride) as usize * width;
                let value = read(&data[at..at + width]);
                // SAFETY: element r * row + i of a tensor inside its space; rows belong to one thread each, and the rank is
                // borrowed exclusively.
                unsafe { write_element(base, (r * row.local() + i) as usize, dtype, value) };
            }
        }
    });
}

/// Where row `r` of the last axis of a rank's part begins in the file, in elements, by the other axes and their strides there;
/// `None` if it is padding.
pub fn offset_of_row(r: u64, outer: &[(AxisPart, u64)]) -> Option<u64> {
    let mut rest = r;
    let mut offset = 0;
    for (axis, stride) in outer.iter().rev() {
        let index = axis.global(rest % axis.local());
        if index >= axis.size {
            return None;
        }
        offset += index * stride;
        rest /= axis.local();
    }
    Some(offset)
}

/// Reads one element of a file's type.
type ElementReader = fn(&[u8]) -> f64;

fn element_reader(dtype: Dtype) -> Option<ElementReader> {
    match dtype {
        Dtype::F32 => Some(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        Dtype::F64 => Some(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])),
        Dtype::BF16 => Some(|b| f64::from(bf16_to_f32(u16::from_le_bytes([b[0], b[1]])))),
        Dtype::F16 => Some(|b| f64::from(f16_to_f32(u16::from_le_bytes([b[0], b[1]])))),
        _ => None,
    }
}

/// Writes element `index` of a tensor at `base`.
///
/// # Safety
/// The element lies inside a tensor of `dtype` that nothing else touches.
unsafe fn write_element(base: usize, index: usize, dtype: DType, value: f64) {
    let at = (base + index * dtype.bytes() as usize) as *mut u8;
    // SAFETY: by this function's contract; tensors are aligned to their element type.
    unsafe {
        match dtype {
            DType::F32 => at.cast::<f32>().write(value as f32),
            DType::F64 => at.cast::<f64>().write(value),
            DType::Bf16 => at.cast::<u16>().write(f32_to_bf16(value as f32)),
            DType::I32 => at.cast::<i32>().write(value as i32),
            DType::I64 => at.cast::<i64>().write(value as i64),
            DType::Bool => at.write(u8::from(value != 0.0)),
        }
    }
}

/// Names in a message: the first few, and how many more there are.
pub fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let more = names.len().saturating_sub(NAMES_SHOWN);
    let shown = names.iter().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
