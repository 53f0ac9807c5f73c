//! The rule tables and their mutants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use super::places::{Place, places};

/// Rule tables, relative to the compiler's sources: what a derivative, a type, a precision or a kernel is.
pub const TABLES: &[&str] = &[
    "autodiff/rules.rs",
    "graph/shape.rs",
    "lower/scalar.rs",
    "lower/gemm.rs",
    "lower/attention.rs",
    "lower/lookup.rs",
    "autodiff/composites.rs",
    "autodiff/attention.rs",
    "autodiff/custom.rs",
    "autodiff/loops.rs",
    "autodiff/optimizer.rs",
    "autodiff/update_rules.rs",
    "autodiff/schedule.rs",
    "autodiff/precision.rs",
    "autodiff/precision/copies.rs",
    "autodiff/precision/kept.rs",
    "graph/composites.rs",
    "graph/grouped.rs",
    "graph/routing.rs",
    "sharding/factors.rs",
    "spmd/partition.rs",
];

/// A mutant: where it is and what it changes.
pub struct Mutant {
    /// Path of its table, relative to the compiler's sources.
    pub file: &'static str,
    /// Line of its place, from 1.
    pub line: usize,
    /// Number of its place, that of the place's first mutant.
    pub place: u32,
    /// The line's text.
    text: String,
    /// What was changed there.
    what: String,
    /// Counts the mutants of the same file, text and change, from 1.
    nth: usize,
}

impl Mutant {
    /// Names it by the text of its line, not the number, so that the name outlives changes elsewhere in the file.
    pub fn name(&self) -> String {
        let Mutant { file, text, what, nth, .. } = self;
        let nth = if *nth > 1 { format!(" (number {nth})") } else { String::new() };
        format!("{file} | {text} | {what}{nth}")
    }
}

/// The changed text with where each mutant's own text lies in it.
pub struct Changed {
    /// The whole file.
    pub text: String,
    /// Where each mutant lies in it.
    pub spans: Vec<(Range<usize>, u32)>,
}

/// All tables with their places, numbered from 1.
pub struct Tables {
    texts: Vec<(&'static str, String, Vec<(u32, Place)>)>,
    /// All mutants by number.
    pub mutants: BTreeMap<u32, Mutant>,
}

impl Tables {
    /// Reads all tables of a checkout.
    ///
    /// # Panics
    /// A table is not there or does not parse.
    pub fn read(root: &Path) -> Tables {
        let mut next = 1;
        let mut tables = Tables { texts: Vec::new(), mutants: BTreeMap::new() };
        for file in TABLES {
            let path = root.join("compiler/src").join(file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
            let found = places(&text);
            for place in &found {
                for (i, (_, what)) in place.others.iter().enumerate() {
                    let line = lines[place.line - 1];
                    let nth = seen.entry((line, what)).or_default();
                    *nth += 1;
                    let (text, what, nth) = (line.to_string(), what.clone(), *nth);
                    let mutant = Mutant { file, line: place.line, place: next, text, what, nth };
                    tables.mutants.insert(next + i as u32, mutant);
                }
                next += place.others.len() as u32;
            }
            let mut first = next - found.iter().map(|p| p.others.len() as u32).sum::<u32>();
            let numbered = found.into_iter().map(|place| {
                let number = first;
                first += place.others.len() as u32;
                (number, place)
            });
            let numbered = numbered.collect();
            tables.texts.push((file, text, numbered));
        }
        tables
    }

    /// The changed tables, by path in the repository: all mutants in, but those of `dropped`.
    pub fn changed(&self, dropped: &BTreeSet<u32>) -> BTreeMap<String, Changed> {
        let table = |(file, text, numbered): &(&str, String, Vec<(u32, Place)>)| {
            let places: Vec<(u32, &Place)> = numbered.iter().map(|(first, place)| (*first, place)).collect();
            let mut out = Changed { text: String::new(), spans: Vec::new() };
            write(text, &places, dropped, 0..text.len(), &mut out);
            (format!("compiler/src/{file}"), out)
        };
        self.texts.iter().map(table).collect()
    }
}

/// Writes a part of `text` with the places inside; each comes with the number of its first mutant.
fn write(
    text: &str,
    places: &[(u32, &Place)],
    dropped: &BTreeSet<u32>,
    part: Range<usize>,
    out: &mut Changed,
) {
    let mut at = part.start;
    let mut rest = places;
    while let Some(((first, place), after)) = rest.split_first() {
        let inside = after.iter().take_while(|(_, p)| p.end <= place.end).count();
        out.text += &text[at..place.start];
        let begin = out.text.len();
        let numbered = place.others.iter().enumerate().map(|(i, (t, _))| (first + i as u32, t));
        let kept: Vec<(u32, &String)> = numbered.filter(|(n, _)| !dropped.contains(n)).collect();
        if !kept.is_empty() {
            let _ = write!(out.text, "(match crate::active_mutant({first}) {{ ");
            for (number, other) in &kept {
                let _ = write!(out.text, "{number} => {{ ");
                let start = out.text.len();
                out.text += other;
                out.spans.push((start..out.text.len(), *number));
                out.text += " } ";
            }
            out.text += "_ => { ";
        }
        write(text, &after[..inside], dropped, place.start..place.end, out);
        if !kept.is_empty() {
            out.text += " } })";
            // An error about the `match` as a whole is the fault of all its mutants.
            let end = out.text.len();
            out.spans.extend(kept.iter().map(|(number, _)| (begin..end, *number)));
        }
        at = place.end;
        rest = &after[inside..];
    }
    out.text += &text[at..part.end];
}
