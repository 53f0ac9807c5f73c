//! Files and the files they use.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::ast::{File, Item, Kernel, Statement, Use};
use super::codes;
use super::diagnostic::{Diagnostic, nearest};
use super::library::{FILES, builtin};
use super::parse;
use super::source::{SourceMap, Span};

/// What [`Loader::load`] says of a path that names nothing.
pub const NO_SUCH_FILE: &str = "no such file";

/// Where the texts of files come from; tests hold them in memory.
pub trait Loader {
    /// The text of a file.
    ///
    /// # Errors
    /// Why it can't be read, as one phrase.
    fn load(&self, path: &Path) -> Result<String, String>;

    /// All paths that could have been meant, for suggestions. May be empty.
    fn known(&self, _near: &Path) -> Vec<String> {
        vec![]
    }
}

/// Reads from the file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileLoader;

impl Loader for FileLoader {
    fn load(&self, path: &Path) -> Result<String, String> {
        let bytes = std::fs::read(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => NO_SUCH_FILE.to_string(),
            ErrorKind::IsADirectory => "it is a folder".to_string(),
            _ => e.to_string(),
        })?;
        String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_string())
    }

    fn known(&self, near: &Path) -> Vec<String> {
        let folder = near.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
        let mut names: Vec<String> = entries
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|n| n.ends_with(".spec"))
            .collect();
        names.sort();
        names
    }
}

/// Texts held in memory, by path.
#[derive(Clone, Debug, Default)]
pub struct MemoryLoader {
    /// (path, text) pairs.
    pub files: Vec<(String, String)>,
}

impl Loader for MemoryLoader {
    fn load(&self, path: &Path) -> Result<String, String> {
        let found = self.files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, text)| text.clone()).ok_or_else(|| NO_SUCH_FILE.to_string())
    }

    fn known(&self, _near: &Path) -> Vec<String> {
        self.files.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// A parsed file with what it uses.
#[derive(Debug)]
pub struct Unit {
    /// Its tree.
    pub file: File,
    /// For each `use` item in order: which unit it names.
    pub uses: Vec<(Use, usize)>,
}

/// All files of one compilation; the first is the one asked for, and a unit stands before those it uses.
#[derive(Debug, Default)]
pub struct Units {
    /// The files.
    pub units: Vec<Unit>,
    /// The text of every file that a `kernel` names, by the place of its name.
    pub kernels: BTreeMap<Span, String>,
}

/// Reads a file and everything it uses.
///
/// # Errors
/// Files that can't be read, syntax errors of all files, `use` cycles.
pub fn load(sources: &mut SourceMap, loader: &dyn Loader, path: &str) -> Result<Units, Vec<Diagnostic>> {
    let mut load = Load {
        sources,
        loader,
        units: vec![],
        paths: vec![],
        open: vec![],
        errors: vec![],
        kernels: BTreeMap::new(),
    };
    load.file(Path::new(path), None);
    if load.errors.is_empty() {
        let units = load.units.into_iter().map(|u| u.expect("a file without errors was parsed")).collect();
        Ok(Units { units, kernels: load.kernels })
    } else {
        Err(load.errors)
    }
}

struct Load<'a> {
    sources: &'a mut SourceMap,
    loader: &'a dyn Loader,
    units: Vec<Option<Unit>>,
    paths: Vec<PathBuf>,
    /// Units being loaded, outermost first.
    open: Vec<usize>,
    errors: Vec<Diagnostic>,
    kernels: BTreeMap<Span, String>,
}

impl Load<'_> {
    /// Loads a file once; `None` after an error.
    fn file(&mut self, path: &Path, used_at: Option<Span>) -> Option<usize> {
        if let Some(known) = self.paths.iter().position(|p| p == path) {
            if self.open.contains(&known) {
                let title = format!("a file uses itself: `{}`", path.display());
                self.errors
                    .push(Diagnostic::error(codes::USE_CYCLE, title).at(used_at?, "closes the circle"));
                return None;
            }
            return Some(known);
        }
        let mut name = path.display().to_string();
        let shipped = || builtin(path).filter(|_| used_at.is_some());
        let text = match (self.loader.load(path), shipped()) {
            (Ok(text), _) => text,
            (Err(reason), Some((builtin, text))) if reason == NO_SUCH_FILE => {
                name = builtin.to_string();
                text.to_string()
            }
            (Err(reason), _) => {
                self.cannot_read(path, used_at, &reason);
                return None;
            }
        };
        // Some editors write a byte order mark, which says nothing about UTF-8.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let id = self.sources.add(name, text);
        let index = self.units.len();
        self.units.push(None);
        self.paths.push(path.to_path_buf());
        let file = match parse::parse(self.sources, id) {
            Ok(file) => file,
            Err(errors) => {
                self.errors.extend(errors);
                return None;
            }
        };
        self.open.push(index);
        let mut uses = vec![];
        for item in &file.items {
            if let Item::Use(used) = item
                && let Some(unit) = self.file(&used_path(path, used), Some(used.path.span))
            {
                uses.push((used.clone(), unit));
            }
        }
        self.open.pop();
        for kernel in kernels(&file) {
            self.kernel(path, kernel);
        }
        self.units[index] = Some(Unit { file, uses });
        Some(index)
    }

    fn kernel(&mut self, user: &Path, kernel: &Kernel) {
        let path = user.parent().unwrap_or(Path::new("")).join(&kernel.file.value);
        match self.loader.load(&path) {
            Ok(text) => drop(self.kernels.insert(kernel.file.span, text)),
            Err(reason) => self.cannot_read(&path, Some(kernel.file.span), &reason),
        }
    }

    fn cannot_read(&mut self, path: &Path, used_at: Option<Span>, reason: &str) {
        let title = format!("can't read `{}`: {reason}", path.display());
        let mut diagnostic = Diagnostic::error(codes::CANNOT_READ, title);
        if let Some(span) = used_at {
            diagnostic = diagnostic.at(span, "used here");
        }
        let wrong = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
        let mut known = self.loader.known(path);
        if path.parent().is_some_and(|folder| folder.ends_with("std")) {
            known.extend(FILES.iter().filter_map(|(name, ..)| Some(name.strip_prefix("std/")?.to_string())));
        }
        if let Some(near) = nearest(&wrong, known.iter().map(String::as_str).filter(|n| *n != wrong)) {
            diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
        }
        self.errors.push(diagnostic);
    }
}

/// The `kernel` statements of a file and of its models.
fn kernels(file: &File) -> Vec<&Kernel> {
    let mut found = vec![];
    for item in &file.items {
        match item {
            Item::Kernel(kernel) => found.push(kernel),
            Item::Model(model) => found.extend(model.body.statements.iter().filter_map(|s| match s {
                Statement::Kernel(kernel) => Some(kernel),
                _ => None,
            })),
            _ => {}
        }
    }
    found
}

/// Paths are relative to the file that uses them, and where a file `std/…` is not there, it is the shipped one; a dotted
/// name `std.norm` is the file `std/norm.spec`.
fn used_path(user: &Path, used: &Use) -> PathBuf {
    let folder = user.parent().unwrap_or(Path::new(""));
    if used.dotted {
        folder.join(used.path.value.replace('.', "/") + ".spec")
    } else {
        folder.join(&used.path.value)
    }
}
