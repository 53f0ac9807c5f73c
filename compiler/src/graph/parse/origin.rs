//! Trailing comments: where an op comes from.

use super::tokens::quoted_token;
use super::{Parser, Result, Token};
use crate::graph::print::phase_name;
use crate::graph::{Origin, Phase, SpecLine};

impl Parser {
    /// A trailing comment: `file:line`, block path and phase, each optional.
    pub(super) fn origin(&mut self) -> Result<Origin> {
        let Token::Comment(text) = self.peek().clone() else { return Ok(Origin::default()) };
        match read_origin(&text) {
            Some(origin) => {
                self.advance();
                Ok(origin)
            }
            None => self.error(
                "a trailing comment says `file:line block.path phase`; other notes stand on their own line",
            ),
        }
    }
}

fn read_origin(text: &str) -> Option<Origin> {
    let mut origin = Origin::default();
    let mut parts = origin_parts(text)?;
    if parts.is_empty() {
        return None;
    }
    if let Some((file, Some(line))) = parts.first() {
        origin.line = SpecLine { file: file.as_str().into(), line: *line };
        parts.remove(0);
    }
    let phases = [Phase::Forward, Phase::BackwardInput, Phase::BackwardWeight, Phase::Update];
    // A quoted path carries a mark that keeps it from reading as a phase.
    if let Some((word, None)) = parts.last()
        && let Some(phase) = phases.into_iter().find(|p| phase_name(*p) == word)
    {
        origin.phase = phase;
        parts.pop();
    }
    match parts.as_slice() {
        [] => Some(origin),
        [(path, None)] => {
            origin.path = path.strip_prefix('"').unwrap_or(path).into();
            Some(origin)
        }
        _ => None,
    }
}

/// Splits an origin at blanks outside quotes; each part with its `:line`, if it has one. A quoted part keeps one leading
/// quote as a mark.
fn origin_parts(text: &str) -> Option<Vec<(String, Option<u32>)>> {
    let chars: Vec<char> = text.chars().collect();
    let mut parts = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        if chars[i].is_whitespace() {
            i += 1;
            continue;
        }
        let mut word = String::new();
        let mut is_quoted = false;
        if chars[i] == '"' {
            let (token, length) = quoted_token(&chars[i..]).ok()?;
            if let Token::Quoted(q) = token {
                word = q;
            }
            is_quoted = true;
            i += length;
        } else {
            while i < chars.len() && !chars[i].is_whitespace() && chars[i] != ':' {
                word.push(chars[i]);
                i += 1;
            }
        }
        if i < chars.len() && chars[i] == ':' {
            let digits: String = chars[i + 1..].iter().take_while(|c| c.is_ascii_digit()).collect();
            i += 1 + digits.len();
            parts.push((word, Some(digits.parse().ok()?)));
        } else {
            parts.push((if is_quoted { format!("\"{word}") } else { word }, None));
        }
        if i < chars.len() && !chars[i].is_whitespace() {
            return None;
        }
    }
    Some(parts)
}
