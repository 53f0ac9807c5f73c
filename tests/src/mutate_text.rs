//! Texts that are nearly right: a corpus of specs and graphs, changed token by token, and what makes a failing one small.

use crate::random_graph::Random;

/// Words, marks and numbers that mean something somewhere, and numbers at the edges of their types.
const DICTIONARY: &[&str] = &[
    "spec",
    "1",
    "use",
    "as",
    "with",
    "model",
    "size",
    "const",
    "input",
    "param",
    "block",
    "role",
    "loss",
    "aux",
    "names",
    "manual",
    "kernel",
    "for",
    "lower",
    "mesh",
    "shard",
    "store",
    "train",
    "pipeline",
    "freeze",
    "except",
    "adapter",
    "target",
    "over",
    "then",
    "and",
    "or",
    "not",
    "->",
    "<->",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "<",
    ">",
    "<=",
    "==",
    "=",
    "@",
    ",",
    ";",
    ":",
    "..",
    ".",
    "+",
    "-",
    "*",
    "/",
    "\n",
    "#",
    "\"",
    "\"**\"",
    "\"layer.{i}.w\"",
    "\"{2*i+1}\"",
    "repeat",
    "dot",
    "gather",
    "softmax",
    "where",
    "mean",
    "sum",
    "max",
    "index",
    "rope",
    "cross_entropy",
    "rms_norm",
    "layer_norm",
    "std.Attend",
    "gelu",
    "dropout",
    "route",
    "mix",
    "run",
    "none",
    "auto",
    "true",
    "inf",
    "ones",
    "normal",
    "0",
    "2",
    "1e308",
    "1e-320",
    "9e999",
    "18446744073709551615",
    "18446744073709551616",
    "281474976710656",
    "4611686018427387904",
    "-1",
    "0.0",
    "500k",
    "4Mi",
    "80GiB",
    "2h",
    "1..64",
    "d",
    "vocab",
    "seq",
    "batch",
    "pos",
    "kv",
    "layers",
    "x",
    "w",
    "é",
    "\u{202e}",
    "\t",
    "\r\n",
    "\0",
];

/// Pieces that mutations move: words with dots, numbers, strings, single marks, line ends; blanks belong to the piece before.
pub fn tokens(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let mut length = match first {
            '"' => rest[1..].find(['"', '\n']).map_or(rest.len(), |end| end + 2),
            c if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        length += rest[length..].len() - rest[length..].trim_start_matches(' ').len();
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// The text after one change, and more with a chance of a third each; `others` lend pieces.
pub fn mutated(text: &str, others: &[String], random: &mut Random) -> String {
    let mut pieces: Vec<String> = tokens(text).into_iter().map(str::to_string).collect();
    change(&mut pieces, others, random);
    while random.below(3) == 0 {
        change(&mut pieces, others, random);
    }
    let mut text = pieces.concat();
    if random.below(16) == 0 {
        text.truncate(floor(&text, random.below(text.len() + 1)));
    }
    text
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn change(pieces: &mut Vec<String>, others: &[String], random: &mut Random) {
    if pieces.is_empty() {
        pieces.push((*random.pick(DICTIONARY)).to_string());
        return;
    }
    let at = random.below(pieces.len());
    let span = 1 + random.below((pieces.len() - at).min(12));
    match random.below(11) {
        0 => drop(pieces.drain(at..at + span)),
        1 => {
            let copy = pieces[at..at + span].to_vec();
            let to = random.below(pieces.len() + 1);
            pieces.splice(to..to, copy);
        }
        2 => {
            let other = random.below(pieces.len());
            pieces.swap(at, other);
        }
        3 | 4 => pieces[at] = format!("{} ", random.pick(DICTIONARY)),
        5 => pieces.insert(at, format!(" {} ", random.pick(DICTIONARY))),
        6 => pieces[at] = pieces[random.below(pieces.len())].clone(),
        7 => {
            let lender = tokens(&others[random.below(others.len())]);
            if !lender.is_empty() {
                let from = random.below(lender.len());
                let until = (from + 1 + random.below(30)).min(lender.len());
                pieces.splice(at..at, lender[from..until].iter().map(|s| s.to_string()));
            }
        }
        // A line again and again: many parameters, many rules, many errors.
        8 => {
            let copies = 1 << random.below(7);
            let line = pieces[at..at + span].concat();
            pieces.insert(at, line.repeat(copies));
        }
        9 => {
            let (open, close) = *random.pick(&[("(", ")"), ("[", "]"), ("{", "}"), ("-", ""), ("not ", "")]);
            let deep = 1 << random.below(9);
            pieces[at] = format!("{}{}{}", open.repeat(deep), pieces[at], close.repeat(deep));
        }
        _ => {
            let piece = &mut pieces[at];
            let cut = floor(piece, random.below(piece.len() + 1));
            let letter = char::from_u32(random.below(0x180) as u32).unwrap_or('?');
            piece.insert(cut, letter);
        }
    }
}

/// A smaller text that still fails: pieces are taken out, halves first, as long as `fails` holds; ends after `most` tries
/// (delta debugging; Zeller, Hildebrandt 2002, §3).
pub fn minimised(text: &str, most: usize, fails: impl Fn(&str) -> bool) -> String {
    let mut pieces: Vec<String> = tokens(text).into_iter().map(str::to_string).collect();
    let mut chunk = pieces.len().div_ceil(2).max(1);
    let mut tries = 0;
    loop {
        let mut at = 0;
        let before = pieces.len();
        while at < pieces.len() && tries < most {
            let mut smaller = pieces.clone();
            smaller.drain(at..(at + chunk).min(pieces.len()));
            tries += 1;
            if fails(&smaller.concat()) {
                pieces = smaller;
            } else {
                at += chunk;
            }
        }
        if chunk == 1 && (pieces.len() == before || tries >= most) {
            return pieces.concat();
        }
        chunk = (chunk / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_the_text() {
        let text = "spec 1\nuse \"a b.spec\" as A # é\n  x = -1.5e3 + \"open\n";
        assert_eq!(tokens(text).concat(), text);
        assert!(tokens(text).contains(&"\"a b.spec\" "));
    }

    #[test]
    fn minimised_keeps_only_what_fails() {
        let text = "a b c d e f g h bad i j k";
        assert_eq!(minimised(text, 100, |t| t.contains("bad")).trim(), "bad");
    }
}
