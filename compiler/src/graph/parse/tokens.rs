//! Splits a graph's text into words, quoted names, punctuation and trailing comments.

use super::{ParseError, Result};
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A bare word or number: letters, digits, `_`, `.`, and a sign or exponent of a number.
    Word(String),
    Quoted(String),
    /// `%`, `@`, `=`, `:`, `,`, `[`, `]`, `{`, `}`, `(`, `)`, `->`.
    Punct(&'static str),
    /// A trailing comment's text.
    Comment(String),
    Newline,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(w) => write!(f, "`{w}`"),
            Token::Quoted(q) => write!(f, "{q:?}"),
            Token::Punct(p) => write!(f, "`{p}`"),
            Token::Comment(_) => f.write_str("a comment"),
            Token::Newline => f.write_str("the end of the line"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

pub(super) struct Spot {
    pub token: Token,
    pub line: usize,
    pub column: usize,
}

const PUNCTUATION: [&str; 12] = ["->", "%", "@", "=", ":", ",", "[", "]", "{", "}", "(", ")"];

/// Splits the text. Empty lines and lines of comment alone vanish.
pub(super) fn tokenize(text: &str) -> Result<Vec<Spot>> {
    let mut out: Vec<Spot> = Vec::new();
    let mut end = (1, 1);
    for (i, raw) in text.lines().enumerate() {
        let line = i + 1;
        let chars: Vec<char> = raw.chars().collect();
        end = (line, chars.len() + 1);
        let before = out.len();
        tokenize_line(&chars, line, &mut out)?;
        if out.len() == before + 1 && matches!(out[before].token, Token::Comment(_)) {
            out.pop();
        }
        if out.len() > before {
            out.push(Spot { token: Token::Newline, line, column: chars.len() + 1 });
        }
    }
    out.push(Spot { token: Token::End, line: end.0, column: end.1 });
    Ok(out)
}

fn tokenize_line(chars: &[char], line: usize, out: &mut Vec<Spot>) -> Result<()> {
    let mut i = 0;
    while i < chars.len() {
        let column = i + 1;
        let rest = &chars[i..];
        let (token, length) = if chars[i].is_whitespace() {
            i += 1;
            continue;
        } else if rest.starts_with(&['/', '/']) {
            (Token::Comment(rest[2..].iter().collect::<String>().trim().to_string()), rest.len())
        } else if chars[i] == '"' {
            quoted_token(rest).map_err(|message| ParseError { line, column, message })?
        } else if let Some(p) = PUNCTUATION.iter().find(|p| starts_with(rest, p)) {
            (Token::Punct(p), p.chars().count())
        } else {
            let length = word_length(rest);
            if length == 0 {
                let message = format!("unexpected character {:?}", chars[i]);
                return Err(ParseError { line, column, message });
            }
            (Token::Word(rest[..length].iter().collect()), length)
        };
        out.push(Spot { token, line, column });
        i += length;
    }
    Ok(())
}

fn starts_with(chars: &[char], text: &str) -> bool {
    text.chars().enumerate().all(|(i, c)| chars.get(i) == Some(&c))
}

/// Length of the word or number at the start; a `-` belongs to a number only, in front or in its exponent.
fn word_length(chars: &[char]) -> usize {
    let mut n = usize::from(chars[0] == '-');
    let numeric = n == 1 || chars[0].is_ascii_digit();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    while n < chars.len() {
        let exponent_sign = numeric && chars[n] == '-' && chars[n - 1] == 'e';
        if !is_word(chars[n]) && !exponent_sign {
            break;
        }
        n += 1;
    }
    if n == 1 && chars[0] == '-' { 0 } else { n }
}

pub(super) fn quoted_token(chars: &[char]) -> std::result::Result<(Token, usize), String> {
    let mut text = String::new();
    let mut i = 1;
    while i < chars.len() {
        match chars[i] {
            '"' => return Ok((Token::Quoted(text), i + 1)),
            '\\' => {
                match chars.get(i + 1) {
                    Some('n') => text.push('\n'),
                    Some('r') => text.push('\r'),
                    Some(c @ ('"' | '\\')) => text.push(*c),
                    _ => return Err("an escape is one of \\n, \\r, \\\" and \\\\".into()),
                }
                i += 2;
            }
            c => {
                text.push(c);
                i += 1;
            }
        }
    }
    Err("a quoted name is not closed on its line".into())
}
