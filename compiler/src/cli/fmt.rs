//! `mlc fmt`: specs in their canonical form.

use super::Failure;
use super::files::{MessageFormat, read, show, write};
use clap::Args;
use mlc::spec::parse::parse;
use mlc::spec::{Diagnostic, SourceMap, print};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Arguments of `mlc fmt`.
#[derive(Args)]
pub struct FmtArgs {
    /// `.spec` files, rewritten in place; `-` formats standard input to standard output.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Change nothing; name the files that are not in canonical form and end with exit code 1.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    format: MessageFormat,
}

/// Formats every file; one that does not parse is left as it is, and the others are still done.
pub fn run(args: &FmtArgs) -> Result<(), Failure> {
    let mut result = Ok(());
    for path in &args.files {
        let outcome = if path == Path::new("-") { standard_input(args) } else { file(path, args) };
        result = match (result, outcome) {
            (Err(first), _) => Err(first),
            (Ok(()), outcome) => outcome,
        };
    }
    result
}

fn file(path: &Path, args: &FmtArgs) -> Result<(), Failure> {
    let text = read(path)?;
    let formatted = formatted(&path.to_string_lossy(), &text, args.format)?;
    match (formatted == text, args.check) {
        (true, _) => Ok(()),
        (false, false) => write(path, formatted.as_bytes()),
        (false, true) => {
            let line = text.lines().zip(formatted.lines()).take_while(|(a, b)| a == b).count() + 1;
            eprintln!(
                "{}:{line}: not in canonical form; `mlc fmt {}` rewrites it",
                path.display(),
                path.display()
            );
            Err(Failure::Spec)
        }
    }
}

fn standard_input(args: &FmtArgs) -> Result<(), Failure> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| Failure::Input(format!("can't read standard input: {e}")))?;
    let formatted = formatted("<stdin>", &text, args.format)?;
    if args.check {
        return if formatted == text { Ok(()) } else { Err(Failure::Spec) };
    }
    print!("{formatted}");
    Ok(())
}

/// The canonical text. Before it replaces anything it is parsed and printed again: a formatter that changed the meaning
/// of a file would be worse than none.
fn formatted(name: &str, text: &str, format: MessageFormat) -> Result<String, Failure> {
    let once = printed(name, text).map_err(|(errors, sources)| {
        show(&errors, &sources, format);
        Failure::Spec
    })?;
    match printed(name, &once) {
        Ok(twice) if twice == once => Ok(once),
        _ => Err(Failure::Internal(format!(
            "the canonical text of {name} does not read back; it was left as it is"
        ))),
    }
}

fn printed(name: &str, text: &str) -> Result<String, (Vec<Diagnostic>, SourceMap)> {
    let mut sources = SourceMap::new();
    let id = sources.add(name, text);
    match parse(&sources, id) {
        Ok(file) => Ok(print::print(&file, text)),
        Err(errors) => Err((errors, sources)),
    }
}
