//! Reading specs and writing results.

use super::{Failure, SpecArgs};
use mlc::pipeline::CompileError;
use mlc::spec::checked::Spec;
use mlc::spec::{Diagnostic, FileLoader, SourceMap, check_alone, check_for, diagnostic, expand_for};
use std::io::IsTerminal;
use std::path::Path;

/// A spec that checked, with the texts it came from.
pub struct Checked {
    /// The spec.
    pub spec: Spec,
    /// Its texts.
    pub sources: SourceMap,
}

/// Reads and checks a spec; prints everything found to standard error.
pub fn read_spec(args: &SpecArgs) -> Result<Checked, Failure> {
    let mut sources = SourceMap::new();
    let path = args.spec.to_string_lossy();
    match check_for(&mut sources, &FileLoader, &path, &args.sets, args.devices) {
        Ok((spec, notes)) => {
            show(&notes, &sources, args.format);
            Ok(Checked { spec, sources })
        }
        Err(errors) => {
            show(&errors, &sources, args.format);
            if args.format.kind == MessageKind::Human {
                let n = errors.iter().filter(|d| d.is_error()).count();
                eprintln!("{n} error{} in {path}", if n == 1 { "" } else { "s" });
            }
            Err(Failure::Spec)
        }
    }
}

/// As [`read_spec`], for one device, notes left out: the spec was read before with its mesh and other sizes.
pub fn read_alone(args: &SpecArgs) -> Result<Checked, Failure> {
    let mut sources = SourceMap::new();
    match check_alone(&mut sources, &FileLoader, &args.spec.to_string_lossy(), &args.sets) {
        Ok((spec, _)) => Ok(Checked { spec, sources }),
        Err(errors) => {
            show(&errors, &sources, args.format);
            Err(Failure::Spec)
        }
    }
}

/// The canonical full text of a spec that checks.
pub fn expanded(args: &SpecArgs) -> Result<String, Failure> {
    let mut sources = SourceMap::new();
    let path = args.spec.to_string_lossy();
    expand_for(&mut sources, &FileLoader, &path, &args.sets, args.devices).map_err(|errors| {
        show(&errors, &sources, args.format);
        Failure::Spec
    })
}

/// Prints what a compilation error has to say and gives the exit code.
pub fn failure(error: CompileError, sources: &SourceMap, format: MessageFormat) -> Failure {
    match error {
        CompileError::Spec(errors) => {
            show(&errors, sources, format);
            Failure::Spec
        }
        CompileError::Memory(text) => Failure::Memory(text),
        CompileError::Internal { stage, message } => Failure::Internal(format!("stage {stage}: {message}")),
    }
}

/// How messages look.
#[derive(clap::Args, Clone, Copy)]
pub struct MessageFormat {
    /// `human` draws the source; `json` writes one object a line. Both go to standard error.
    #[arg(long = "message-format", value_name = "FORMAT", value_enum, default_value = "human")]
    pub kind: MessageKind,
}

/// The formats.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// For people.
    Human,
    /// For editors and scripts.
    Json,
}

/// Prints messages to standard error. A note of one line stays one line: `file:line: note: …`.
pub fn show(messages: &[Diagnostic], sources: &SourceMap, format: MessageFormat) {
    if format.kind == MessageKind::Json {
        messages.iter().for_each(|message| eprintln!("{}", message.to_json(sources)));
        return;
    }
    let (notes, rest): (Vec<_>, Vec<_>) =
        messages.iter().cloned().partition(|d| d.severity == diagnostic::Severity::Note && d.help.is_empty());
    if !rest.is_empty() {
        eprint!("{}", diagnostic::render_all(&rest, sources, std::io::stderr().is_terminal()));
    }
    for note in notes {
        match note.primary.as_ref().and_then(|label| sources.locate(label.span)) {
            Some(place) => eprintln!("{place}: note: {}", note.title),
            None => eprintln!("note: {}", note.title),
        }
    }
}

/// Reads a whole text file.
pub fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::Input(format!("can't read {}: {e}", path.display())))
}

/// Writes a whole file, replacing it at once: a reader sees the old content or the new.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::Input(format!("can't write {}: {e}", path.display()));
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    std::fs::write(&temporary, content).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
