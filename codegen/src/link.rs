//! Objects in, one ELF out: fully static, the same bytes for the same objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Start files, C library and runtime as one object.
static RUNTIME: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime.o"));

/// An object with the file name it gets while linking.
#[derive(Clone, Debug)]
pub struct Object {
    /// Letters, digits and `_`.
    pub name: String,
    /// ELF.
    pub bytes: Vec<u8>,
}

/// A folder for one link, removed afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("mlc-link-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).map_err(|e| format!("cannot create {}: {e}", path.display()))?;
        Ok(Folder(path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, String> {
        let path = self.0.join(name);
        fs::write(&path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing can be done about a folder that cannot be removed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A linker that is there.
enum Linker {
    /// Called with linker options.
    Direct(&'static str),
    /// A C compiler, which passes them on.
    Compiler(&'static str),
}

fn find_linker() -> Result<Linker, String> {
    let on_path = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
    };
    let direct = ["ld.lld", "ld.lld-22", "ld"].into_iter().find(|n| on_path(n)).map(Linker::Direct);
    direct
        .or_else(|| ["cc", "gcc", "clang"].into_iter().find(|n| on_path(n)).map(Linker::Compiler))
        .ok_or_else(|| "no linker on the PATH: install lld, binutils or gcc".to_string())
}

/// The linker that [`link_executable`] calls: its name on the `PATH`.
///
/// # Errors
/// None is there; the message says what to install.
pub fn linker_name() -> Result<&'static str, String> {
    find_linker().map(|linker| match linker {
        Linker::Direct(name) | Linker::Compiler(name) => name,
    })
}

fn run(linker: &Linker, options: &[&str], objects: &[PathBuf], out: &Path) -> Result<(), String> {
    let mut command = match linker {
        Linker::Direct(name) => {
            let mut command = Command::new(name);
            command.args(options);
            command
        }
        Linker::Compiler(name) => {
            let mut command = Command::new(name);
            command.arg("-nostdlib");
            for option in options {
                match *option {
                    "-static" => command.args(["-static", "-no-pie"]),
                    "-shared" => command.arg("-shared"),
                    option => command.arg(format!("-Wl,{option}")),
                };
            }
            command
        }
    };
    let name = match linker {
        Linker::Direct(name) | Linker::Compiler(name) => name,
    };
    let output = command
        .arg("-o")
        .arg(out)
        .args(objects)
        .output()
        .map_err(|e| format!("{name} does not start: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end()))
}

fn link_with(options: &[&str], objects: &[Object], runtime: &[u8]) -> Result<Vec<u8>, String> {
    let folder = Folder::new()?;
    let mut paths = Vec::new();
    if !runtime.is_empty() {
        paths.push(folder.write("runtime.o", runtime)?);
    }
    for (i, object) in objects.iter().enumerate() {
        paths.push(folder.write(&format!("{i:04}-{}.o", object.name), &object.bytes)?);
    }
    let out = folder.0.join("out");
    run(&find_linker()?, options, &paths, &out)?;
    fs::read(&out).map_err(|e| format!("cannot read {}: {e}", out.display()))
}

/// Links a training binary from the step program and its kernels.
///
/// # Errors
/// No linker is there, or it fails (its messages).
pub fn link_executable(objects: &[Object]) -> Result<Vec<u8>, String> {
    link_with(&["-static", "--gc-sections", "--build-id=none", "-znoexecstack"], objects, RUNTIME)
}

/// Links kernels into a shared object, for running them inside a test.
///
/// # Errors
/// No linker is there, or it fails.
pub fn link_shared(objects: &[Object]) -> Result<Vec<u8>, String> {
    link_with(&["-shared", "--build-id=none", "-znoexecstack"], objects, &[])
}
