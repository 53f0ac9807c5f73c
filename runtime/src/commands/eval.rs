//! `eval`: the loss on held-out data.

use super::{start_rank, trained_values};
use crate::args::Args;
use crate::console::Console;
use crate::data::{self, Source};
use crate::failure::{Exit, Failure};
use crate::program::Program;
use crate::rank::Rank;
use crate::settings::Settings;
use crate::signals::Interrupts;
use crate::step::{Pick, run_batch};

/// Loss over some tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss per token, in nats.
    pub loss: f64,
    /// Tokens predicted.
    pub tokens: u64,
    /// A token is a byte.
    pub is_bytes: bool,
}

impl Evaluation {
    /// The loss in bits per byte of text, when tokens are bytes.
    pub fn bits_per_byte(&self) -> Option<f64> {
        self.is_bytes.then_some(self.loss / std::f64::consts::LN_2)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let bits = self.bits_per_byte().map_or(String::new(), |bits| format!("  {bits:.4} bits/byte"));
        format!("loss {:.4}{bits}  over {} tokens", self.loss, self.tokens)
    }
}

/// Runs `batches` batches of whole windows in file order, or all that the data holds. Fewer than all are spread evenly
/// over the data, and are the same every time. The last windows that do not fill a batch are left out; data smaller than
/// one batch is repeated to fill it. `None` if a request to stop came meanwhile.
///
/// # Errors
/// A token id lies outside the vocabulary.
pub fn evaluate(
    rank: &mut Rank,
    index: usize,
    source: &mut Source,
    batches: Option<u64>,
    scalars: &[f64],
    step: u64,
    stop: &Interrupts,
) -> Result<Option<Evaluation>, Failure> {
    let (batch, seq) = (rank.program.info.entries[index].batch, rank.program.info.entries[index].seq);
    let available = source.windows().map_or(batches.unwrap_or(1), |windows| (windows / batch).max(1));
    let batches = batches.unwrap_or(available).min(available);
    let (mut sum, mut weight) = (0.0, 0.0);
    for b in 0..batches {
        if stop.requested().is_some() {
            return Ok(None);
        }
        let first = (u128::from(b) * u128::from(available) / u128::from(batches)) as u64 * batch;
        let outcome = run_batch(rank, index, source, Pick::Windows(first), scalars, step)?;
        let tokens = outcome.output("loss_weight").unwrap_or((batch * seq) as f64);
        sum += outcome.loss * tokens;
        weight += tokens;
    }
    Ok(Some(Evaluation { loss: sum / weight, tokens: batches * batch * seq, is_bytes: source.is_bytes() }))
}

/// The subcommand.
///
/// # Errors
/// See [`Exit`].
pub fn eval(
    program: &Program,
    args: &Args,
    console: &mut Console,
    stop: &Interrupts,
) -> Result<Exit, Failure> {
    let settings = Settings::new(program, args)?;
    let (index, entry) = program.require_entry("eval")?;
    let given = args
        .text("data")
        .map(|text| data::parse(text, program.info.run.eval_data.as_ref(), program.info.vocab));
    let Some(data) = given.or_else(|| settings.run.eval_data.clone()) else {
        return Err(Failure::usage("error: the spec names no held-out data\nGive it with --data PATH."));
    };
    let mut source = Source::open(&data, program.info.vocab, entry.seq, settings.run.seed)?;
    let mut rank = start_rank(program, &settings, false)?;
    let origin = trained_values(&mut rank, &settings, console)?;
    let (batches, scalars) = (args.count("batches"), &settings.scalars);
    let Some(evaluation) = evaluate(&mut rank, index, &mut source, batches, scalars, 0, stop)? else {
        return Ok(Exit::Preempted);
    };
    console.line(&format!("eval of {origin} on {}: {}", source.description(), evaluation.line()));
    Ok(Exit::Done)
}
