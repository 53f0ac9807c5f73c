//! Where tokens come from. Sample `g` of a run, counted over all steps, is a pure function of (data, seed, g), so that a
//! resumed run reads exactly what the uninterrupted run would have read, and no state of the data needs saving.
//!
//! ```text
//! stream     windows of seq tokens that do not overlap; each epoch visits every window once, in an order and with a
//!            phase drawn from (seed, epoch)
//! records    fixed records of seq + 1 tokens, replayed in order, again from the first after the last
//! synthetic  ids drawn uniformly from (seed, g)
//! ```

pub mod documents;
pub mod files;
pub mod glob;
pub mod tokens;

use std::path::Path;

use crate::abi::DataInfo;
use crate::failure::Failure;
use crate::random::{Stream, permutation::Permutation};
use files::FileBytes;
use tokens::{TokenFile, Tokens, Width};

/// An open data source.
pub struct Source {
    kind: Kind,
    seq: u64,
    seed: u64,
    /// The order of the epoch used last; a cache, never a state.
    order: Option<(u64, Permutation)>,
    description: String,
}

enum Kind {
    Stream(Tokens),
    Records(Tokens),
    Synthetic { vocab: u64, stream: Stream },
}

impl Source {
    /// Opens the files of `data` and checks that they hold at least one window of `seq` + 1 tokens.
    ///
    /// # Errors
    /// No file matches, a file cannot be read or is malformed, or there are too few tokens.
    pub fn open(data: &DataInfo, vocab: u64, seq: u64, seed: u64) -> Result<Source, Failure> {
        let kind = match data {
            DataInfo::Bytes { path } => Kind::Stream(open_bytes(path)?),
            DataInfo::Tokens { path, width, records: false } => Kind::Stream(open_tokens(path, *width)?),
            DataInfo::Tokens { path, width, records: true } => {
                let tokens = open_tokens(path, *width)?;
                tokens.require_whole_records(seq + 1)?;
                Kind::Records(tokens)
            }
            DataInfo::Synthetic => {
                Kind::Synthetic { vocab: vocab.max(1), stream: Stream::new(seed, "data.synthetic") }
            }
        };
        if let Kind::Stream(tokens) | Kind::Records(tokens) = &kind
            && tokens.count() < seq + 1
        {
            return Err(Failure::failed(format!(
                "error: the data holds too few tokens: {} has {}, one sequence needs {} (seq + 1)",
                describe(data),
                tokens.count(),
                seq + 1
            )));
        }
        Ok(Source { kind, seq, seed, order: None, description: describe(data) })
    }

    /// How the source was named, for notes and manifests.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether a token is a byte of text, so that the loss can be told in bits per byte.
    pub fn is_bytes(&self) -> bool {
        matches!(&self.kind, Kind::Stream(tokens) if tokens.is_bytes())
    }

    /// Number of tokens in the files; 0 when synthetic.
    pub fn tokens(&self) -> u64 {
        match &self.kind {
            Kind::Stream(tokens) | Kind::Records(tokens) => tokens.count(),
            Kind::Synthetic { .. } => 0,
        }
    }

    /// Writes the seq + 1 tokens of training sample `g` into `window` and returns where they begin.
    pub fn sample(&mut self, g: u64, window: &mut [u32]) -> u64 {
        let start = match &self.kind {
            Kind::Stream(tokens) => {
                let count = tokens.count();
                self.stream_start(count, g)
            }
            Kind::Records(tokens) => (g % (tokens.count() / (self.seq + 1))) * (self.seq + 1),
            Kind::Synthetic { .. } => g,
        };
        self.read(start, window);
        start
    }

    /// Number of windows that cover the source once, without phase or order; `None` when synthetic.
    pub fn windows(&self) -> Option<u64> {
        match &self.kind {
            Kind::Stream(tokens) => Some((tokens.count() - 1) / self.seq),
            Kind::Records(tokens) => Some(tokens.count() / (self.seq + 1)),
            Kind::Synthetic { .. } => None,
        }
    }

    /// Writes the seq + 1 tokens of window `index`, in file order, into `window` and returns where they begin. Indices
    /// past the last window start over.
    pub fn window(&self, index: u64, window: &mut [u32]) -> u64 {
        let start = match &self.kind {
            Kind::Stream(tokens) => (index % ((tokens.count() - 1) / self.seq)) * self.seq,
            Kind::Records(tokens) => (index % (tokens.count() / (self.seq + 1))) * (self.seq + 1),
            Kind::Synthetic { .. } => index,
        };
        self.read(start, window);
        start
    }

    /// File and place of token `position`, for error messages.
    pub fn locate(&self, position: u64) -> String {
        match &self.kind {
            Kind::Stream(tokens) | Kind::Records(tokens) => tokens.locate(position),
            Kind::Synthetic { .. } => "synthetic data".to_owned(),
        }
    }

    fn read(&self, start: u64, window: &mut [u32]) {
        match &self.kind {
            Kind::Stream(tokens) | Kind::Records(tokens) => tokens.read(start, window),
            Kind::Synthetic { vocab, stream } => {
                for (i, token) in window.iter_mut().enumerate() {
                    // One 64-bit draw modulo a vocabulary: the bias is below vocab / 2^64.
                    *token = (stream.word(start * (self.seq + 1) + i as u64) % vocab) as u32;
                }
            }
        }
    }

    /// First token of sample `g` of a stream of `count` tokens.
    ///
    /// Every epoch cuts the stream into the same number of windows, at a phase of its own, so that no token is always
    /// the first of a window. At least one and less than two windows' worth of tokens stay unread in an epoch, unless
    /// the stream holds only one window.
    fn stream_start(&mut self, count: u64, g: u64) -> u64 {
        let windows = ((count - 1) / self.seq).saturating_sub(1).max(1);
        let slack = count - 1 - windows * self.seq;
        let epoch = g / windows;
        if self.order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.order = Some((epoch, Permutation::new(self.seed, epoch, windows)));
        }
        let phase = Stream::new(self.seed, "data.phase").word(epoch) % (slack + 1);
        let place = self.order.as_ref().map_or(0, |(_, order)| order.apply(g % windows));
        phase + place * self.seq
    }
}

/// The text form of a source, as the command line takes it.
pub fn describe(data: &DataInfo) -> String {
    match data {
        DataInfo::Bytes { path } => format!("bytes:{path}"),
        DataInfo::Tokens { path, records: false, .. } => format!("tokens:{path}"),
        DataInfo::Tokens { path, records: true, .. } => format!("records:{path}"),
        DataInfo::Synthetic => "synthetic".to_owned(),
    }
}

/// Reads a source from the command line: `bytes:PATH`, `tokens:PATH`, `records:PATH`, `synthetic`, or a plain path, which
/// is of the kind the spec names if it names files of that ending, else tokens when it ends in `.bin` and bytes
/// otherwise. Headerless tokens are as wide as the spec says, else two bytes if the vocabulary fits.
pub fn parse(text: &str, spec: Option<&DataInfo>, vocab: u64) -> DataInfo {
    let (spec_width, spec_records) = match spec {
        Some(DataInfo::Tokens { width, records, .. }) => (Some(*width), *records),
        _ => (None, false),
    };
    let width = spec_width.unwrap_or(if vocab > 65536 { 4 } else { 2 });
    let tokens = |path: &str, records| DataInfo::Tokens { path: path.to_owned(), width, records };
    if text == "synthetic" {
        DataInfo::Synthetic
    } else if let Some(path) = text.strip_prefix("bytes:") {
        DataInfo::Bytes { path: path.to_owned() }
    } else if let Some(path) = text.strip_prefix("tokens:") {
        tokens(path, false)
    } else if let Some(path) = text.strip_prefix("records:") {
        tokens(path, true)
    } else if text.ends_with(".bin") {
        tokens(text, spec_records)
    } else {
        DataInfo::Bytes { path: text.to_owned() }
    }
}

fn open_bytes(pattern: &str) -> Result<Tokens, Failure> {
    open_each(pattern, |path, bytes| TokenFile::whole(path, bytes, Width::One))
}

fn open_tokens(pattern: &str, width: u32) -> Result<Tokens, Failure> {
    let width = match width {
        2 => Width::Two,
        4 => Width::Four,
        other => return Err(Failure::failed(format!("error: tokens are 2 or 4 bytes wide, not {other}"))),
    };
    open_each(pattern, |path, bytes| TokenFile::shard(path, bytes, width))
}

fn open_each(
    pattern: &str,
    open: impl Fn(&Path, FileBytes) -> Result<TokenFile, Failure>,
) -> Result<Tokens, Failure> {
    if pattern.is_empty() {
        return Err(Failure::usage(
            "error: the data source names no file\nGive a path, as in --data bytes:PATH.",
        ));
    }
    let paths = glob::expand(pattern)?;
    let files = paths.iter().map(|path| open(path, FileBytes::open(path)?)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tokens::new(files))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(count: usize, seq: u64, records: bool) -> Source {
        let bytes: Vec<u8> = (0..count as u32).flat_map(|t| (t as u16).to_le_bytes()).collect();
        let file = TokenFile::whole(Path::new("t.bin"), FileBytes::from(bytes), Width::Two).unwrap();
        let tokens = Tokens::new(vec![file]);
        let kind = if records { Kind::Records(tokens) } else { Kind::Stream(tokens) };
        Source { kind, seq, seed: 5, order: None, description: String::new() }
    }

    fn starts(source: &mut Source, samples: std::ops::Range<u64>) -> Vec<u64> {
        let mut window = vec![0; source.seq as usize + 1];
        samples
            .map(|g| {
                let start = source.sample(g, &mut window);
                assert_eq!(window, (start as u32..=(start + source.seq) as u32).collect::<Vec<_>>());
                start
            })
            .collect()
    }

    #[test]
    fn a_stream_repeats_no_window_within_an_epoch() {
        let mut source = source(1003, 10, false);
        let windows = 99;
        for epoch in 0..3 {
            let mut first = starts(&mut source, epoch * windows..(epoch + 1) * windows);
            let phase = first.iter().min().copied().unwrap();
            first.sort_unstable();
            assert_eq!(first, (0..windows).map(|w| phase + 10 * w).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_sample_does_not_depend_on_those_before_it() {
        let forward = starts(&mut source(500, 7, false), 0..300);
        let mut again = source(500, 7, false);
        for g in (0..300).rev() {
            assert_eq!(starts(&mut again, g..g + 1), [forward[g as usize]]);
        }
    }

    #[test]
    fn epochs_differ_in_order_and_phase() {
        let all = starts(&mut source(1003, 10, false), 0..198);
        assert_ne!(all[..99], all[99..]);
        assert_ne!(all[..99].iter().min(), all[99..].iter().min());
    }

    #[test]
    fn records_are_replayed_in_order() {
        assert_eq!(starts(&mut source(33, 10, true), 0..7), [0, 11, 22, 0, 11, 22, 0]);
    }

    #[test]
    fn one_window_is_enough() {
        assert_eq!(starts(&mut source(11, 10, false), 0..3), [0, 0, 0]);
    }

    #[test]
    fn windows_cover_the_source_in_file_order() {
        let source = source(35, 10, false);
        assert_eq!(source.windows(), Some(3));
        let mut window = [0; 11];
        assert_eq!([0, 1, 2, 3].map(|i| source.window(i, &mut window)), [0, 10, 20, 0]);
    }

    #[test]
    fn parse_knows_prefixes_and_endings() {
        let spec = DataInfo::Tokens { path: "x".to_owned(), width: 4, records: true };
        let text = |t: &str, spec| describe(&parse(t, spec, 256));
        assert_eq!(text("a.txt", None), "bytes:a.txt");
        assert_eq!(text("a.bin", None), "tokens:a.bin");
        assert_eq!(text("a.bin", Some(&spec)), "records:a.bin");
        assert_eq!(text("tokens:a.bin", Some(&spec)), "tokens:a.bin");
        assert_eq!(text("bytes:a.bin", None), "bytes:a.bin");
        assert_eq!(text("synthetic", None), "synthetic");
        assert!(matches!(parse("a.bin", None, 100_000), DataInfo::Tokens { width: 4, .. }));
    }

    #[test]
    fn open_says_what_is_missing() {
        let none = DataInfo::Bytes { path: "/nowhere/at/all/*.txt".to_owned() };
        let message = Source::open(&none, 256, 8, 0).err().unwrap().message;
        assert!(message.contains("/nowhere/at/all/*.txt"), "{message}");
    }
}
