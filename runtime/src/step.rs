//! One call of an entry: fill its inputs, write the run-time scalars, run it, read its outputs.

use crate::abi::{DType, EntryInfo, InputInfo, InputSource, MESH_KEY, Place, STEP_KEY};
use crate::data::Source;
use crate::data::documents::Documents;
use crate::failure::Failure;
use crate::rank::Rank;
use crate::shard::{AxisPart, Part};

/// Which windows of the data make up a batch.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// Training samples from this one on, in the order of the run.
    Samples(u64),
    /// `count` windows from `first` on, in the order of the files, repeated until the batch is full.
    Windows {
        /// Index of the first.
        first: u64,
        /// How many; above 0.
        count: u64,
    },
}

/// What one call gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Mean loss per token.
    pub loss: f64,
    /// The loss as the program computed it, its bits in hex: 8 digits for f32, 16 for f64.
    pub loss_bits: String,
    /// All scalar outputs, by name, in the order of the program.
    pub outputs: Vec<(String, f64)>,
}

impl Outcome {
    /// A scalar output.
    pub fn output(&self, name: &str) -> Option<f64> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }
}

/// Runs the entry at `index` on one batch of `source`.
///
/// # Errors
/// A token id lies outside the vocabulary.
pub fn run_batch(
    rank: &mut Rank,
    index: usize,
    source: &mut Source,
    pick: Pick,
    scalars: &[f64],
    step: u64,
) -> Result<Outcome, Failure> {
    let program = rank.program;
    let entry = &program.info.entries[index];
    fill_inputs(rank, entry, source, pick)?;
    write_scalars(rank, scalars, step);
    rank.call(index)?;
    read_outcome(rank, entry)
}

/// Writes this rank's part of the batch, and what it says of documents, into the inputs of an entry. Only rows of which the
/// rank holds something are read.
fn fill_inputs(rank: &mut Rank, entry: &EntryInfo, source: &mut Source, pick: Pick) -> Result<(), Failure> {
    let end = rank.program.info.run.document_end;
    let seq = entry.seq as usize;
    let inputs: Vec<(&InputInfo, [AxisPart; 2])> = entry
        .inputs
        .iter()
        .filter(|input| input.source != InputSource::Position)
        .map(|input| (input, rows_and_columns(rank, input, entry.seq)))
        .collect();
    let mut window = vec![0u32; seq + 1];
    for row in 0..entry.batch {
        if inputs.iter().all(|(_, [rows, _])| rows.local_of(row).is_none()) {
            continue;
        }
        let start = match pick {
            Pick::Samples(first) => source.sample(first + row, &mut window),
            Pick::Windows { first, count } => source.window(first + row % count, &mut window),
        };
        let documents = Documents::of(&window[..seq], end);
        for (input, layout) in &inputs {
            let (shift, ids) = match input.source {
                InputSource::Tokens => (0, &window[..seq]),
                InputSource::Targets => (1, &window[1..]),
                InputSource::Segments => (0, documents.segments.as_slice()),
                InputSource::Positions => (0, documents.positions.as_slice()),
                InputSource::Weight => (0, documents.weights.as_slice()),
                InputSource::Position => continue,
            };
            write_row(rank, input, layout, row, ids)
                .map_err(|bad| out_of_range(input, ids[bad], &source.locate(start + (shift + bad) as u64)))?;
        }
    }
    Ok(())
}

/// An input seen as rows of `seq` elements: which rows and columns this rank holds. Those without a split may have any shape.
fn rows_and_columns(rank: &Rank, input: &InputInfo, seq: u64) -> [AxisPart; 2] {
    match rank.part(&input.shape, &input.split).axes.as_slice() {
        &[rows, columns] => [rows, columns],
        axes => {
            let elements: u64 = axes.iter().map(|axis| axis.size).product();
            let columns = seq.min(elements).max(1);
            [AxisPart::whole(elements / columns), AxisPart::whole(columns)]
        }
    }
}

/// Writes row `row` of an input, as far as this rank holds it, from all ids of the row. The error is the index in `ids` of the
/// first one that lies outside the input's bound.
fn write_row(
    rank: &mut Rank,
    input: &InputInfo,
    [rows, columns]: &[AxisPart; 2],
    row: u64,
    ids: &[u32],
) -> Result<(), usize> {
    let Some(local_row) = rows.local_of(row) else { return Ok(()) };
    let bound = if input.bound == 0 { 1 << 31 } else { input.bound };
    let width = input.dtype.bytes();
    let line = Place { offset: input.place.offset + local_row * columns.local() * width, ..input.place };
    let buffer = rank.bytes_mut(line, columns.local() * width);
    for (local, first, length) in (Part { axes: vec![*columns] }).runs().all() {
        let (first, piece) =
            (first as usize, &mut buffer[(local * width) as usize..][..(length * width) as usize]);
        for (element, (at, &id)) in
            piece.chunks_exact_mut(width as usize).zip(ids.iter().enumerate().skip(first))
        {
            if u64::from(id) >= bound {
                return Err(at);
            }
            write_id(element, input.dtype, id);
        }
    }
    Ok(())
}

/// Writes an input that is not made of tokens of a source: a row by itself.
///
/// # Errors
/// The index of the first id outside the input's bound.
pub fn write_ids(rank: &mut Rank, input: &InputInfo, ids: &[u32]) -> Result<(), usize> {
    let layout = rows_and_columns(rank, input, ids.len() as u64);
    write_row(rank, input, &layout, 0, ids)
}

fn write_id(element: &mut [u8], dtype: DType, id: u32) {
    match dtype {
        DType::I32 => element.copy_from_slice(&id.to_le_bytes()),
        DType::I64 => element.copy_from_slice(&u64::from(id).to_le_bytes()),
        DType::F32 => element.copy_from_slice(&(id as f32).to_le_bytes()),
        DType::F64 => element.copy_from_slice(&f64::from(id).to_le_bytes()),
        DType::Bf16 | DType::Bool => element.fill(0),
    }
}

fn out_of_range(input: &InputInfo, id: u32, place: &str) -> Failure {
    Failure::failed(format!(
        "error: token {id} is outside the vocabulary of `{}`: 0..{}\n  at {place}",
        input.name, input.bound
    ))
}

/// Writes every run-time scalar: `scalars`, the 0-based index of the step about to run, and the rank's place in the mesh.
pub fn write_scalars(rank: &mut Rank, scalars: &[f64], step: u64) {
    let program = rank.program;
    rank.set_step(step);
    for (scalar, &value) in program.info.scalars.iter().zip(scalars) {
        let axis = scalar.key.strip_prefix(MESH_KEY);
        let axis = axis.and_then(|name| program.info.mesh.iter().position(|axis| axis.name == name));
        let value = match axis {
            Some(axis) => rank.coordinates()[axis] as f64,
            None if scalar.key == STEP_KEY => step as f64,
            None => value,
        };
        rank.write_f64(scalar.place, value);
    }
}

/// Reads all scalar outputs.
fn read_outcome(rank: &Rank, entry: &EntryInfo) -> Result<Outcome, Failure> {
    let scalars = entry.outputs.iter().filter(|o| o.shape.is_empty());
    let outputs: Vec<(String, f64)> =
        scalars.map(|o| (o.name.clone(), rank.read_number(o.place, o.dtype))).collect();
    let value = |name: &str| outputs.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
    // Where nothing has a weight the loss is 0.
    let mean = |sum: f64, weight: f64| if weight == 0.0 { 0.0 } else { sum / weight };
    let loss =
        value("loss").or_else(|| Some(mean(value("loss_sum")?, value("loss_weight")?))).ok_or_else(|| {
            Failure::failed(format!("error: this binary is damaged: the entry `{}` has no loss", entry.name))
        })?;
    let single = entry.outputs.iter().any(|o| o.name == "loss" && o.dtype == DType::F32);
    let loss_bits =
        if single { format!("{:08x}", (loss as f32).to_bits()) } else { format!("{:016x}", loss.to_bits()) };
    Ok(Outcome { loss, loss_bits, outputs })
}
