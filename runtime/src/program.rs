//! The program inside this binary: the generated table, checked once so that the rest can rely on it.

use crate::abi::{
    ABI_VERSION, AxisSplit, EntryFn, EntryInfo, MESH_KEY, Place, ProgramInfo, ProgramTable, TensorInfo,
    TensorRole,
};
use crate::collective::plan;
use crate::failure::Failure;
use crate::shard::{self, local_elements};

/// A checked program.
pub struct Program {
    /// Everything known about it.
    pub info: ProgramInfo,
    entries: Vec<EntryFn>,
}

/// One logical tensor: a persistent tensor outside a repeat, or one layer's slice of one inside.
#[derive(Clone, Debug)]
pub struct LogicalTensor<'a> {
    /// The tensor it is a slice of.
    pub tensor: &'a TensorInfo,
    /// Full name, `layer.3.attn.wq` or `layer.3.attn.wq.m`.
    pub name: String,
    /// Where a rank's part of it lies: contiguous, row-major in the local shape.
    pub place: Place,
    /// Number of elements a rank holds, the same on all.
    pub elements: u64,
}

impl LogicalTensor<'_> {
    /// Length of a rank's part in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements * self.tensor.dtype.bytes()
    }

    /// Whether it is a parameter, not an optimizer state.
    pub fn is_param(&self) -> bool {
        self.tensor.role == TensorRole::Param
    }
}

impl Program {
    /// Reads the table of this executable.
    ///
    /// # Safety
    /// `table` is null or points at a table whose pointers and lengths are right, as codegen emits it, and which lives as
    /// long as the process.
    ///
    /// # Errors
    /// The table is inconsistent: the binary is damaged or was put together from parts of different versions.
    pub unsafe fn from_table(table: *const ProgramTable) -> Result<Program, Failure> {
        // SAFETY: by this function's contract.
        let Some(table) = (unsafe { table.as_ref() }) else {
            return Err(damaged("there is no program table"));
        };
        if table.abi_version != ABI_VERSION {
            return Err(damaged(&format!(
                "its program speaks version {} of the runtime's interface, this runtime speaks {ABI_VERSION}",
                table.abi_version
            )));
        }
        let length =
            usize::try_from(table.info_len).map_err(|_| damaged("the program's description is too long"))?;
        // SAFETY: by this function's contract.
        let (text, entries) = unsafe {
            (
                std::slice::from_raw_parts(table.info, length),
                std::slice::from_raw_parts(table.entries, table.n_entries as usize),
            )
        };
        let info: ProgramInfo = serde_json::from_slice(text)
            .map_err(|e| damaged(&format!("the program's description does not parse: {e}")))?;
        Program::new(info, entries.to_vec())
    }

    /// Checks a program given as parts.
    ///
    /// # Errors
    /// As for [`Program::from_table`].
    pub fn new(info: ProgramInfo, entries: Vec<EntryFn>) -> Result<Program, Failure> {
        if entries.len() != info.entries.len() {
            return Err(damaged(&format!(
                "it has {} step functions and describes {}",
                entries.len(),
                info.entries.len()
            )));
        }
        if let Some(what) = plan::problem(&info) {
            return Err(damaged(&what));
        }
        check_places(&info)?;
        Ok(Program { info, entries })
    }

    /// Index and description of the entry called `name`.
    pub fn entry(&self, name: &str) -> Option<(usize, &EntryInfo)> {
        self.info.entries.iter().enumerate().find(|(_, e)| e.name == name)
    }

    /// Index and description of the entry called `name`.
    ///
    /// # Errors
    /// The binary was built without it.
    pub fn require_entry(&self, name: &str) -> Result<(usize, &EntryInfo), Failure> {
        self.entry(name).ok_or_else(|| {
            let have: Vec<&str> = self.info.entries.iter().map(|e| e.name.as_str()).collect();
            Failure::failed(format!("error: this binary has no `{name}` entry\nIt has: {}.", have.join(", ")))
        })
    }

    /// The step function of the entry at `index`.
    pub fn entry_fn(&self, index: usize) -> EntryFn {
        self.entries[index]
    }

    /// All logical tensors: parameters and states in the order of the program, layers in order inside each.
    pub fn logical_tensors(&self) -> Vec<LogicalTensor<'_>> {
        let mut all = Vec::new();
        for tensor in &self.info.tensors {
            let elements = local_elements(&tensor.shape, &tensor.split, &self.info.mesh);
            for layer in 0..tensor.layers.unwrap_or(1) {
                let name = match tensor.layers {
                    Some(_) => tensor.path.replace("{i}", &layer.to_string()),
                    None => tensor.path.clone(),
                };
                let offset = tensor.place.offset + layer * elements * tensor.dtype.bytes();
                all.push(LogicalTensor { tensor, name, place: Place { offset, ..tensor.place }, elements });
            }
        }
        all
    }

    /// Number of parameters, exactly.
    pub fn parameters(&self) -> u64 {
        let params = self.info.tensors.iter().filter(|t| t.role == TensorRole::Param);
        params.map(|t| t.shape.iter().product::<u64>() * t.layers.unwrap_or(1)).sum()
    }

    /// Ranks the program is made for.
    pub fn ranks(&self) -> u64 {
        self.info.mesh.iter().map(|axis| axis.size).product()
    }

    /// Bytes of all memory spaces of one rank and of the scratch of `threads` threads.
    pub fn memory_bytes(&self, threads: usize) -> u64 {
        let scratch = self.info.scratch_bytes.saturating_mul(threads as u64);
        self.info.spaces.iter().fold(scratch, |sum, space| sum.saturating_add(space.bytes))
    }
}

/// Every described buffer lies inside its space and is aligned to its element, every split fits, and every scalar of the mesh
/// names an axis.
fn check_places(info: &ProgramInfo) -> Result<(), Failure> {
    let ranks = info.mesh.iter().try_fold(1u64, |ranks, axis| ranks.checked_mul(axis.size));
    if ranks.is_none_or(|ranks| ranks == 0) {
        return Err(damaged("its mesh has an impossible number of ranks"));
    }
    for tensor in &info.tensors {
        let what = format!("tensor `{}`", tensor.path);
        let layers = tensor.layers.unwrap_or(1);
        let bytes = local_bytes(info, &what, &tensor.shape, &tensor.split, tensor.dtype.bytes())?;
        let bytes = bytes.and_then(|bytes| bytes.checked_mul(layers));
        check_place(info, &what, tensor.place, bytes, tensor.dtype.bytes())?;
    }
    for scalar in &info.scalars {
        let what = format!("scalar `{}`", scalar.key);
        check_place(info, &what, scalar.place, Some(8), 8)?;
        let axis = scalar.key.strip_prefix(MESH_KEY);
        if axis.is_some_and(|name| !info.mesh.iter().any(|axis| axis.name == name)) {
            return Err(damaged(&format!("{what} names no axis of the mesh")));
        }
    }
    for entry in &info.entries {
        for input in &entry.inputs {
            let what = format!("input `{}` of `{}`", input.name, entry.name);
            if !input.split.is_empty() && input.shape != [entry.batch, entry.seq] {
                return Err(damaged(&format!("{what} is split and not of shape [batch, seq]")));
            }
            let bytes = local_bytes(info, &what, &input.shape, &input.split, input.dtype.bytes())?;
            check_place(info, &what, input.place, bytes, input.dtype.bytes())?;
        }
        for output in &entry.outputs {
            let what = format!("output `{}` of `{}`", output.name, entry.name);
            let bytes = local_bytes(info, &what, &output.shape, &[], output.dtype.bytes())?;
            check_place(info, &what, output.place, bytes, output.dtype.bytes())?;
        }
    }
    Ok(())
}

/// Bytes of one rank's part of a tensor; `None` if they are too many to count.
fn local_bytes(
    info: &ProgramInfo,
    what: &str,
    shape: &[u64],
    split: &[AxisSplit],
    unit: u64,
) -> Result<Option<u64>, Failure> {
    shard::check(shape, split, &info.mesh).map_err(|why| damaged(&format!("{what}: {why}")))?;
    let mut local = shape.to_vec();
    for cut in split {
        let parts: u64 = cut.mesh.iter().map(|&m| info.mesh[m as usize].size).product();
        let size = &mut local[cut.axis as usize];
        *size = (*size + cut.pad) / parts;
    }
    Ok(local.iter().try_fold(unit, |n, &size| n.checked_mul(size)))
}

fn check_place(
    info: &ProgramInfo,
    what: &str,
    place: Place,
    bytes: Option<u64>,
    align: u64,
) -> Result<(), Failure> {
    let space = info.spaces.get(place.space as usize);
    let end = bytes.and_then(|b| place.offset.checked_add(b));
    match (space, end) {
        (Some(space), Some(end)) if end <= space.bytes && place.offset.is_multiple_of(align) => Ok(()),
        _ => Err(damaged(&format!(
            "{what} lies outside memory or is not aligned (space {}, offset {}, {bytes:?} bytes)",
            place.space, place.offset
        ))),
    }
}

fn damaged(what: &str) -> Failure {
    Failure::failed(format!("error: this binary is damaged: {what}"))
}
