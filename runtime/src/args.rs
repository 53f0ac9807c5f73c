//! Parses the command line against the table of options, typed, with near-miss suggestions.

use crate::failure::Failure;
use crate::options::{Command, Form, OPTIONS, Opt, shown, usage};
use crate::ranges;

/// A parsed command line.
#[derive(Clone, Debug)]
pub struct Args {
    /// The subcommand.
    pub command: Command,
    values: Vec<(&'static str, String)>,
}

impl Args {
    /// Parses what follows the program's name.
    ///
    /// # Errors
    /// Exit code 2: unknown command or option, a missing or ill-formed value.
    pub fn parse(words: &[String]) -> Result<Args, Failure> {
        let Some((first, rest)) = words.split_first() else {
            return Err(Failure::usage(format!("error: which command?\n\n{}", usage(Command::Help))));
        };
        let command = match first.as_str() {
            "train" => Command::Train,
            "eval" => Command::Eval,
            "generate" => Command::Generate,
            "export" => Command::Export,
            "verify" => Command::Verify,
            "info" => Command::Info,
            "bench" => Command::Bench,
            "help" | "--help" | "-h" => Command::Help,
            other => {
                let hint = nearest(other, &["train", "eval", "generate", "export", "verify", "info", "help"]);
                return Err(Failure::usage(format!(
                    "error: unknown command: {other}{}",
                    did_you_mean(hint, "")
                )));
            }
        };
        let mut args = Args { command, values: Vec::new() };
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            let word = if word == "-h" { "--help" } else { word };
            let Some(text) = word.strip_prefix("--") else {
                return Err(Failure::usage(format!("error: unexpected argument: {word}")));
            };
            let (name, inline) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, None),
            };
            let opt = find(command, name)?;
            let value = match (opt.form, inline) {
                (Form::Flag, None) => String::new(),
                (Form::Flag, Some(_)) => {
                    return Err(Failure::usage(format!("error: --{name} takes no value")));
                }
                (_, Some(value)) => value,
                (_, None) => rest.next().cloned().ok_or_else(|| {
                    Failure::usage(format!("error: --{name} needs a value: --{name} {}", shown(opt.form)))
                })?,
            };
            check(opt, &value)?;
            if opt.name != "set" && args.flag(opt.name) {
                return Err(Failure::usage(format!("error: --{name} is given twice")));
            }
            args.values.push((opt.name, value));
        }
        Ok(args)
    }

    /// Whether an option was given.
    pub fn flag(&self, name: &str) -> bool {
        self.values.iter().any(|(n, _)| *n == name)
    }

    /// Value of an option.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// Value of an option of whole numbers; its form was checked when parsing.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(parse_count)
    }

    /// Value of an option of numbers; its form was checked when parsing.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.text(name).and_then(parse_number)
    }

    /// All `--set key=value`, in order.
    ///
    /// # Errors
    /// One has no `=`.
    pub fn sets(&self) -> Result<Vec<(&str, &str)>, Failure> {
        let sets = self.values.iter().filter(|(n, _)| *n == "set");
        sets.map(|(_, text)| {
            text.split_once('=')
                .map(|(key, value)| (key.trim(), value.trim()))
                .ok_or_else(|| Failure::usage(format!("error: --set needs KEY=VALUE, not {text}")))
        })
        .collect()
    }
}

fn find(command: Command, name: &str) -> Result<&'static Opt, Failure> {
    if let Some(opt) = OPTIONS.iter().find(|o| o.name == name && o.commands.contains(&command)) {
        return Ok(opt);
    }
    if OPTIONS.iter().any(|o| o.name == name) {
        return Err(Failure::usage(format!(
            "error: --{name} belongs to another command; see COMMAND --help"
        )));
    }
    let known: Vec<&str> = OPTIONS.iter().filter(|o| o.commands.contains(&command)).map(|o| o.name).collect();
    Err(Failure::usage(format!(
        "error: unknown option: --{name}{}",
        did_you_mean(nearest(name, &known), "--")
    )))
}

fn check(opt: &Opt, value: &str) -> Result<(), Failure> {
    let name = format!("--{}", opt.name);
    let (number, kind) = match opt.form {
        Form::Flag | Form::Text(_) => return Ok(()),
        Form::Count(_) => (parse_count(value).map(|count| count as f64), "a whole number"),
        Form::Number(_) => (parse_number(value), "a number"),
    };
    let wrong = number.map_or(Some(kind), |number| ranges::outside(&name, number));
    wrong.map_or(Ok(()), |what| Err(Failure::usage(format!("error: {name} takes {what}, not {value}"))))
}

/// Reads a whole number: `12`, `1_000`, `500k`, `2M`, `1e6`.
pub fn parse_count(text: &str) -> Option<u64> {
    let text = text.replace('_', "");
    let (digits, unit) = match text.char_indices().last() {
        Some((i, 'k')) => (&text[..i], 1_000),
        Some((i, 'M')) => (&text[..i], 1_000_000),
        Some((i, 'G')) => (&text[..i], 1_000_000_000),
        _ => (text.as_str(), 1),
    };
    if let Ok(value) = digits.parse::<u64>() {
        return value.checked_mul(unit);
    }
    let value = digits.parse::<f64>().ok()? * unit as f64;
    // Above 2^53 a float no longer tells whole numbers apart.
    (value >= 0.0 && value.fract() == 0.0 && value <= 9_007_199_254_740_992.0).then_some(value as u64)
}

/// Reads a finite number, with the units of [`parse_count`].
pub fn parse_number(text: &str) -> Option<f64> {
    if let Some(count) = parse_count(text) {
        return Some(count as f64);
    }
    text.replace('_', "").parse::<f64>().ok().filter(|v| v.is_finite())
}

/// `\nDid you mean …?`, or nothing.
pub fn did_you_mean(nearest: Option<&str>, prefix: &str) -> String {
    nearest.map_or(String::new(), |name| format!("\nDid you mean {prefix}{name}?"))
}

/// The known word closest to `word`, if it is close enough to be what was meant.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, best) = known.iter().map(|k| (edit_distance(word, k), *k)).min()?;
    (distance <= 1 + word.len() / 4).then_some(best)
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Failure> {
        Args::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn message(line: &str) -> String {
        let failure = parse(line).unwrap_err();
        assert_eq!(failure.exit, crate::failure::Exit::Usage);
        failure.message
    }

    #[test]
    fn parse_reads_both_forms_of_values() {
        let args = parse("train --steps 2k --seed=7 --pin --set a.b=1 --set c=2").unwrap();
        assert_eq!((args.count("steps"), args.count("seed"), args.flag("pin")), (Some(2000), Some(7), true));
        assert_eq!(args.sets().unwrap(), [("a.b", "1"), ("c", "2")]);
    }

    #[test]
    fn parse_explains_what_is_wrong() {
        assert_eq!(message("trian"), "error: unknown command: trian\nDid you mean train?");
        assert_eq!(message("train --step 3"), "error: unknown option: --step\nDid you mean --steps?");
        assert_eq!(message("train --steps"), "error: --steps needs a value: --steps N");
        assert_eq!(message("train --steps 1.5"), "error: --steps takes a whole number, not 1.5");
        assert_eq!(message("train --pin=yes"), "error: --pin takes no value");
        assert_eq!(message("train now"), "error: unexpected argument: now");
        assert_eq!(message("train --seed 1 --seed 2"), "error: --seed is given twice");
        assert_eq!(
            message("generate --steps 3"),
            "error: --steps belongs to another command; see COMMAND --help"
        );
        assert!(message("").starts_with("error: which command?"));
    }

    #[test]
    fn parse_count_knows_units() {
        let cases = [("12", 12), ("1_000", 1000), ("500k", 500_000), ("1.5M", 1_500_000), ("1e6", 1_000_000)];
        for (text, value) in cases {
            assert_eq!(parse_count(text), Some(value), "{text}");
        }
        for text in ["", "k", "-1", "1.5", "1e400", "nan", "99999999999999999999"] {
            assert_eq!(parse_count(text), None, "{text}");
        }
        assert_eq!(parse_number("3e-4"), Some(3e-4));
        assert_eq!(parse_number("inf"), None);
    }
}
