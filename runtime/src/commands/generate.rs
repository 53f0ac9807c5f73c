//! `generate`: continues a text, one byte a token.
//!
//! The entry `logits` computes the logits after one position of a whole sequence; it is called once per token. When the
//! text outgrows the sequence, the oldest bytes drop out.

use super::ranks::Job;
use super::{start_rank, trained_values};
use crate::abi::{DataInfo, EntryInfo, InputSource, OutputInfo};
use crate::console::Console;
use crate::data::documents::Documents;
use crate::failure::{Exit, Failure};
use crate::numeric::exp;
use crate::program::Program;
use crate::random::Stream;
use crate::rank::Rank;
use crate::step::{write_ids, write_scalars};

/// The subcommand.
///
/// # Errors
/// See [`Exit`].
pub fn generate(job: &Job, console: &mut Console) -> Result<Exit, Failure> {
    let (program, args, settings) = (job.program, job.args, job.settings()?);
    let (index, entry) = program.require_entry("logits")?;
    let output = entry.outputs.iter().find(|o| o.name == "logits").ok_or_else(|| {
        Failure::failed("error: this binary is damaged: the entry `logits` has no output of that name")
    })?;
    let sampler = Sampler {
        temperature: args.number("temperature").unwrap_or(0.8),
        top_k: args.count("top-k").unwrap_or(0) as usize,
        stream: Stream::new(settings.run.seed, "generate"),
    };
    require_bytes(program)?;
    let prompt = args.text("prompt").unwrap_or("\n");
    if prompt.is_empty() {
        return Err(Failure::usage("error: --prompt is empty; the model continues at least one byte"));
    }
    let mut rank = start_rank(job, &settings, false)?;
    trained_values(&mut rank, &settings, console)?;
    write_scalars(&mut rank, &settings.scalars, 0);
    let mut text: Vec<u32> = prompt.bytes().map(u32::from).collect();
    console.raw(prompt.as_bytes());
    for drawn in 0..args.count("tokens").unwrap_or(256) {
        let logits = next_logits(&mut rank, index, entry, output, &text)?;
        // A vocabulary padded beyond the 256 bytes has ids that stand for nothing.
        let token = sampler.draw(&logits[..logits.len().min(256)], drawn);
        text.push(token);
        console.raw(&[token as u8]);
    }
    console.raw(b"\n");
    Ok(Exit::Done)
}

/// A model whose tokens are bytes: it has no more ids than bytes, or its spec trains it on bytes.
fn require_bytes(program: &Program) -> Result<(), Failure> {
    let info = &program.info;
    if info.vocab <= 256 || matches!(info.run.data, Some(DataInfo::Bytes { .. })) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "error: the tokens of this model are not bytes: its vocabulary has {} ids\nThis binary carries no tokenizer, so it \
         can neither read a prompt nor print what it generates.",
        info.vocab
    )))
}

/// The logits of the token after `text`.
fn next_logits(
    rank: &mut Rank,
    index: usize,
    entry: &EntryInfo,
    output: &OutputInfo,
    text: &[u32],
) -> Result<Vec<f64>, Failure> {
    let window = &text[text.len().saturating_sub(entry.seq as usize)..];
    // Positions after the last token hold zeros; a causal model does not look at them.
    let mut ids = window.to_vec();
    ids.resize(entry.seq as usize, 0);
    let documents = Documents::of(&ids, None);
    for input in &entry.inputs {
        let written = match input.source {
            InputSource::Tokens => write_ids(rank, input, &ids),
            InputSource::Position => write_ids(rank, input, &[window.len() as u32 - 1]),
            // The text is one document.
            InputSource::Segments => write_ids(rank, input, &documents.segments),
            InputSource::Positions => write_ids(rank, input, &documents.positions),
            InputSource::Weight => write_ids(rank, input, &documents.weights),
            InputSource::Targets => Ok(()),
        };
        written.map_err(|at| {
            let id = ids[at];
            Failure::failed(format!(
                "error: byte {id} of the prompt is outside the vocabulary 0..{}",
                input.bound
            ))
        })?;
    }
    rank.call(index)?;
    let (bytes, elements) = (output.dtype.bytes(), output.shape.iter().product::<u64>());
    Ok((0..elements)
        .map(|i| {
            let place = crate::abi::Place { offset: output.place.offset + i * bytes, ..output.place };
            rank.read_number(place, output.dtype)
        })
        .collect())
}

/// How the next token is drawn.
struct Sampler {
    temperature: f64,
    /// 0 = all.
    top_k: usize,
    stream: Stream,
}

impl Sampler {
    /// The `drawn`-th token, from the softmax of logits / temperature over the `top_k` likeliest.
    fn draw(&self, logits: &[f64], drawn: u64) -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).filter(|&i| !logits[i].is_nan()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let Some(&best) = order.first() else { return 0 };
        if self.temperature <= 0.0 {
            return best as u32;
        }
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let weights: Vec<f64> =
            order.iter().map(|&i| exp((logits[i] - logits[best]) / self.temperature)).collect();
        let mut left = self.stream.unit(drawn) * weights.iter().sum::<f64>();
        for (&token, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return token as u32;
            }
        }
        best as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_k: usize) -> Sampler {
        Sampler { temperature, top_k, stream: Stream::new(1, "generate") }
    }

    #[test]
    fn draw_at_temperature_zero_takes_the_likeliest() {
        assert_eq!(sampler(0.0, 0).draw(&[0.0, 3.0, 3.0, f64::NAN], 0), 1);
    }

    #[test]
    fn draw_stays_among_the_top_k() {
        let logits = [0.0, 1.0, 1.5, -2.0];
        assert!((0..200).all(|i| matches!(sampler(5.0, 2).draw(&logits, i), 1 | 2)));
    }

    /// Logits ln 1, ln 2, ln 5 at temperature 1 give shares 1/8, 2/8, 5/8; the standard error of a share of 8000 draws is
    /// below 0.0056, the bound is five of them.
    #[test]
    fn draw_follows_the_softmax() {
        let logits = [0.0, 2.0f64.ln(), 5.0f64.ln()];
        let mut counts = [0u32; 3];
        for i in 0..8000 {
            counts[sampler(1.0, 0).draw(&logits, i) as usize] += 1;
        }
        for (count, share) in counts.iter().zip([0.125, 0.25, 0.625]) {
            assert!((f64::from(*count) / 8000.0 - share).abs() < 0.028, "{counts:?}");
        }
    }
}
