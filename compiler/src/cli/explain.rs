//! `mlc explain`: what a code means.

use super::Failure;
use clap::Args;
use mlc::spec::codes::{ALL, Code};

/// Arguments of `mlc explain`.
#[derive(Args)]
pub struct ExplainArgs {
    /// A code of a message, `E0301` or `N0001`; all of them in one list if absent.
    code: Option<String>,
}

/// Prints the paragraph of one code, or the list.
pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    match &args.code {
        None => ALL.iter().for_each(|code| println!("{}  {}", code.id, first_sentence(code.explain))),
        Some(wanted) => {
            let code = find(wanted)?;
            println!("{}", wrapped(&format!("{}: {}", code.id, code.explain), 100));
        }
    }
    Ok(())
}

fn find(wanted: &str) -> Result<&'static Code, Failure> {
    ALL.iter().find(|code| code.id.eq_ignore_ascii_case(wanted)).ok_or_else(|| {
        let first = ALL.first().map_or("", |c| c.id);
        let last = ALL.last().map_or("", |c| c.id);
        Failure::Input(format!(
            "no message has the code `{wanted}`; codes run from {first} to {last}, `mlc explain` lists them"
        ))
    })
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}

/// The text in lines of at most `width` characters, broken at blanks.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.len() - 1;
        if !lines[line].is_empty() && lines[line].chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_string());
            continue;
        }
        if !lines[line].is_empty() {
            lines[line].push(' ');
        }
        lines[line] += word;
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_finds_every_code_in_any_case_and_names_the_range_of_the_others() {
        for code in ALL {
            assert_eq!(find(&code.id.to_lowercase()).ok().map(|c| c.id), Some(code.id));
        }
        let Err(Failure::Input(text)) = find("E9999") else { panic!("expected bad input") };
        assert!(text.contains("N0001") && text.contains("`E9999`"), "{text}");
    }

    #[test]
    fn wrapped_lines_keep_every_word_and_the_width() {
        let text = "one two three four five";
        let lines = wrapped(text, 9);
        assert_eq!(lines, "one two\nthree\nfour five");
    }
}
