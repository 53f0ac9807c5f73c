//! `mlc explain`: what a code means, or why a value of a spec lies on the mesh as it does.

use super::files::{failure, read_spec};
use super::{Failure, SpecArgs};
use clap::Args;
use mlc::pipeline::{Runner, sharded_training};
use mlc::sharding::explain::explain;
use mlc::spec::codes::{ALL, Code};

/// Arguments of `mlc explain`.
#[derive(Args)]
pub struct ExplainArgs {
    /// A code of a message, `E0301` or `N0001`; all of them in one list if absent. Or a `.spec` file, followed by a value.
    code: Option<String>,
    /// A value of the spec: a parameter's path (`layer.{i}.attn.wq`), `block.value`, or a name of `mlc emit --stage sharded`.
    value: Option<String>,
    /// Override a key of the spec.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Devices to lay the run out over.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    devices: Option<u64>,
    #[command(flatten)]
    format: super::files::MessageFormat,
}

/// Prints the paragraph of one code, the list, or a value's split.
pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    if let (Some(spec), Some(value)) = (&args.code, &args.value) {
        return value_of(spec, value, args);
    }
    match &args.code {
        None => ALL.iter().for_each(|code| println!("{}  {}", code.id, first_sentence(code.explain))),
        Some(wanted) => {
            let code = find(wanted)?;
            println!("{}", wrapped(&format!("{}: {}", code.id, code.explain), 100));
        }
    }
    Ok(())
}

fn value_of(spec: &str, value: &str, args: &ExplainArgs) -> Result<(), Failure> {
    let spec =
        SpecArgs { spec: spec.into(), sets: args.sets.clone(), devices: args.devices, format: args.format };
    let checked = read_spec(&spec)?;
    let sharded = sharded_training(&checked.spec, &checked.sources, &mut Runner::default());
    let Some(sharded) = sharded.map_err(|e| failure(e, &checked.sources, spec.format))? else {
        println!("the run is on one device: every value is whole");
        return Ok(());
    };
    match explain(&sharded, value) {
        Ok(text) => print!("{text}"),
        Err(near) if near.is_empty() => {
            return Err(Failure::Input(format!(
                "no value is called `{value}`; `mlc emit --stage sharded` shows all"
            )));
        }
        Err(near) => {
            return Err(Failure::Input(format!(
                "no value is called `{value}`; there are {}",
                near.join(", ")
            )));
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
