//! One call of an entry: fill its inputs, write the run-time scalars, run it, read its outputs.

use crate::abi::{DType, EntryInfo, InputInfo, InputSource, STEP_KEY};
use crate::data::Source;
use crate::data::documents::Documents;
use crate::failure::Failure;
use crate::rank::Rank;

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
    rank.call(index);
    read_outcome(rank, entry)
}

/// Writes the batch, and what it says of documents, into the inputs of an entry, row by row.
fn fill_inputs(rank: &mut Rank, entry: &EntryInfo, source: &mut Source, pick: Pick) -> Result<(), Failure> {
    let end = rank.program.info.run.document_end;
    let mut window = vec![0u32; entry.seq as usize + 1];
    for row in 0..entry.batch {
        let start = match pick {
            Pick::Samples(first) => source.sample(first + row, &mut window),
            Pick::Windows { first, count } => source.window(first + row % count, &mut window),
        };
        let documents = Documents::of(&window[..entry.seq as usize], end);
        for input in &entry.inputs {
            let (shift, ids) = match input.source {
                InputSource::Tokens => (0, &window[..entry.seq as usize]),
                InputSource::Targets => (1, &window[1..]),
                InputSource::Segments => (0, documents.segments.as_slice()),
                InputSource::Positions => (0, documents.positions.as_slice()),
                InputSource::Weight => (0, documents.weights.as_slice()),
                InputSource::Position => continue,
            };
            write_ids(rank, input, row * entry.seq, ids)
                .map_err(|bad| out_of_range(input, ids[bad], &source.locate(start + (shift + bad) as u64)))?;
        }
    }
    Ok(())
}

/// Writes `ids` as elements `first..` of an input. The error is the index of the first id outside the input's bound.
pub fn write_ids(rank: &mut Rank, input: &InputInfo, first: u64, ids: &[u32]) -> Result<(), usize> {
    let bound = if input.bound == 0 { 1 << 31 } else { input.bound };
    if let Some(bad) = ids.iter().position(|&id| u64::from(id) >= bound) {
        return Err(bad);
    }
    let elements: u64 = input.shape.iter().product();
    let buffer = rank.bytes_mut(input.place, elements * input.dtype.bytes());
    let width = input.dtype.bytes() as usize;
    for (element, &id) in buffer.chunks_exact_mut(width).skip(first as usize).zip(ids) {
        match input.dtype {
            DType::I32 => element.copy_from_slice(&id.to_le_bytes()),
            DType::I64 => element.copy_from_slice(&u64::from(id).to_le_bytes()),
            DType::F32 => element.copy_from_slice(&(id as f32).to_le_bytes()),
            DType::F64 => element.copy_from_slice(&f64::from(id).to_le_bytes()),
            DType::Bf16 | DType::Bool => element.fill(0),
        }
    }
    Ok(())
}

fn out_of_range(input: &InputInfo, id: u32, place: &str) -> Failure {
    Failure::failed(format!(
        "error: token {id} is outside the vocabulary of `{}`: 0..{}\n  at {place}",
        input.name, input.bound
    ))
}

/// Writes every run-time scalar; `step` is the 0-based index of the step about to run.
pub fn write_scalars(rank: &mut Rank, scalars: &[f64], step: u64) {
    let program = rank.program;
    for (scalar, &value) in program.info.scalars.iter().zip(scalars) {
        rank.write_f64(scalar.place, if scalar.key == STEP_KEY { step as f64 } else { value });
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
