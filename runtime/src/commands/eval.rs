//! `eval`: the loss on held-out data.

use super::ranks::Job;
use super::{start_rank, trained_values};
use crate::abi::InputSource;
use crate::console::Console;
use crate::data::{self, Source};
use crate::failure::{Exit, Failure};
use crate::rank::Rank;
use crate::signals::Interrupts;
use crate::step::{Pick, run_batch};

/// Loss over some tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss per token, in nats, without auxiliary losses.
    pub loss: f64,
    /// Mean of each auxiliary loss over batches, by name.
    pub auxiliary: Vec<(String, f64)>,
    /// Tokens predicted; those of weight 0 do not count.
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
        let auxiliary: String = self.auxiliary.iter().map(|(name, v)| format!("  {name} {v:.4}")).collect();
        format!("loss {:.4}{bits}{auxiliary}  over {} tokens", self.loss, self.tokens)
    }
}

/// Runs `batches` batches of whole windows in file order, or all that the data holds. Fewer than all are spread evenly
/// over the data, and are the same every time. The last windows that do not fill a batch are left out; of data smaller
/// than one batch every window counts once, see [`parts_of_batch`]. `None` if a request to stop came meanwhile. All ranks call
/// it, and all get the same.
///
/// # Errors
/// A token id lies outside the vocabulary, or another rank does not come.
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
    let (mut sum, mut weight, mut tokens) = (0.0, 0.0, 0);
    let mut auxiliary: Vec<(String, f64)> = Vec::new();
    for (first, count) in picks(source.windows(), batch, batches) {
        if stop.requested_of_any(rank.world())?.is_some() {
            return Ok(None);
        }
        let outcome = run_batch(rank, index, source, Pick::Windows { first, count }, scalars, step)?;
        let whole = outcome.output("loss_weight").unwrap_or((batch * seq) as f64);
        // Every window is in the batch batch / count times and counts once.
        let part = whole * count as f64 / batch as f64;
        sum += outcome.loss * part;
        weight += part;
        tokens += count * seq;
        for (name, value) in outcome.outputs {
            match auxiliary.iter_mut().find(|(known, _)| *known == name) {
                _ if ["loss", "loss_sum", "loss_weight"].contains(&name.as_str()) => {}
                Some((_, total)) => *total += value * part,
                None => auxiliary.push((name, value * part)),
            }
        }
    }
    let is_weighted = rank.program.info.entries[index].inputs.iter().any(|i| i.source == InputSource::Weight);
    let tokens = if is_weighted { weight.round() as u64 } else { tokens };
    let mean = |total: f64| if weight == 0.0 { 0.0 } else { total / weight };
    auxiliary.iter_mut().for_each(|(_, total)| *total = mean(*total));
    Ok(Some(Evaluation { loss: mean(sum), auxiliary, tokens, is_bytes: source.is_bytes() }))
}

/// First window and number of windows of every batch to run; `windows` is `None` for a source without end.
fn picks(windows: Option<u64>, batch: u64, batches: Option<u64>) -> Box<dyn Iterator<Item = (u64, u64)>> {
    let available = match windows {
        Some(windows) if windows < batch => return Box::new(parts_of_batch(windows, batch)),
        Some(windows) => windows / batch,
        None => batches.unwrap_or(1),
    };
    let batches = batches.unwrap_or(available).min(available);
    Box::new((0..batches).map(move |b| {
        let nth = u128::from(b) * u128::from(available) / u128::from(batches);
        (nth as u64 * batch, batch)
    }))
}

/// Cuts fewer windows than a batch has rows into groups whose size divides `batch`, largest first: repeated to fill the
/// batch, each window of a group is in it equally often, so that the batch's mean is the mean of the group.
fn parts_of_batch(windows: u64, batch: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = windows - first;
        let count = (1..=left).rev().find(|count| batch.is_multiple_of(*count))?;
        first += count;
        Some((first - count, count))
    })
}

/// The subcommand.
///
/// # Errors
/// See [`Exit`].
pub fn eval(job: &Job, console: &mut Console) -> Result<Exit, Failure> {
    let (program, args, settings) = (job.program, job.args, job.settings()?);
    let (index, entry) = program.require_entry("eval")?;
    let given = args
        .text("data")
        .map(|text| data::parse(text, program.info.run.eval_data.as_ref(), program.info.vocab));
    let Some(data) = given.or_else(|| settings.run.eval_data.clone()) else {
        return Err(Failure::usage("error: the spec names no held-out data\nGive it with --data PATH."));
    };
    let mut source = Source::open(&data, program.info.vocab, entry.seq, settings.run.seed)?;
    let mut rank = start_rank(job, &settings, false)?;
    let origin = trained_values(&mut rank, &settings, console)?;
    let (batches, scalars) = (args.count("batches"), &settings.scalars);
    let Some(evaluation) = evaluate(&mut rank, index, &mut source, batches, scalars, 0, job.stop)? else {
        return Ok(Exit::Preempted);
    };
    console.line(&format!("eval of {origin} on {}: {}", source.description(), evaluation.line()));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(windows: Option<u64>, batch: u64, batches: Option<u64>) -> Vec<(u64, u64)> {
        picks(windows, batch, batches).collect()
    }

    #[test]
    fn picks_are_whole_batches_spread_over_the_data() {
        assert_eq!(all(Some(11), 4, None), [(0, 4), (4, 4)]);
        assert_eq!(all(Some(24), 4, Some(3)), [(0, 4), (8, 4), (16, 4)]);
        assert_eq!(all(Some(4), 4, Some(9)), [(0, 4)]);
        assert_eq!(all(None, 4, Some(2)), [(0, 4), (4, 4)]);
    }

    #[test]
    fn picks_take_each_window_of_a_small_source_once() {
        assert_eq!(all(Some(3), 4, None), [(0, 2), (2, 1)]);
        assert_eq!(all(Some(5), 6, Some(1)), [(0, 3), (3, 2)]);
        for (batch, windows) in (1..=40).flat_map(|batch| (1..batch).map(move |windows| (batch, windows))) {
            let mut next = 0;
            for (first, count) in all(Some(windows), batch, None) {
                assert_eq!((first, batch % count), (next, 0));
                next += count;
            }
            assert_eq!(next, windows);
        }
    }
}
