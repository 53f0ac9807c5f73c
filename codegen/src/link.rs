//! Objects in, one ELF out, the same bytes for the same objects.
//!
//! A binary for one rank is fully static and runs on any Linux. One for several may have to load an MPI library, which a static
//! binary cannot: it is dynamic, needs the C library at run time and nothing else, and [`glibc_floor`] says how new that
//! must be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Start files, C library and runtime as one object.
static RUNTIME: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime.o"));
/// Start files and runtime as one object that leaves the C library to run time.
static RUNTIME_DYNAMIC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime-dynamic.o"));
/// The C library of the machine that built mlc, for the linker to look names up in.
static LIBRARIES: [(&str, &[u8]); 2] = [
    ("libc.so.6", include_bytes!(concat!(env!("OUT_DIR"), "/libc.so.6"))),
    ("libm.so.6", include_bytes!(concat!(env!("OUT_DIR"), "/libm.so.6"))),
];

/// How a binary meets the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linking {
    /// It holds it.
    Static,
    /// It loads it, and can load others.
    Dynamic,
}

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
                    option if option.starts_with("-dynamic-linker") => {
                        command.args(["-no-pie".to_string(), format!("-Wl,{option}")])
                    }
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

/// Links `before`, the objects and `after`, in this order.
fn link_with(
    options: &[&str],
    before: &[(&str, &[u8])],
    objects: &[Object],
    after: &[(&str, &[u8])],
) -> Result<Vec<u8>, String> {
    let folder = Folder::new()?;
    let mut paths = Vec::new();
    for (name, bytes) in before {
        paths.push(folder.write(name, bytes)?);
    }
    for (i, object) in objects.iter().enumerate() {
        paths.push(folder.write(&format!("{i:04}-{}.o", object.name), &object.bytes)?);
    }
    for (name, bytes) in after {
        paths.push(folder.write(name, bytes)?);
    }
    let out = folder.0.join("out");
    run(&find_linker()?, options, &paths, &out)?;
    fs::read(&out).map_err(|e| format!("cannot read {}: {e}", out.display()))
}

/// Links a training binary from the step program and its kernels.
///
/// # Errors
/// No linker is there, or it fails (its messages).
pub fn link_executable(objects: &[Object], linking: Linking) -> Result<Vec<u8>, String> {
    const BOTH: [&str; 3] = ["--gc-sections", "--build-id=none", "-znoexecstack"];
    match linking {
        Linking::Static => {
            link_with(&[&["-static"], &BOTH[..]].concat(), &[("runtime.o", RUNTIME)], objects, &[])
        }
        Linking::Dynamic => {
            // The C library's own needs are met where the binary runs.
            let options = [
                "-dynamic-linker=/lib64/ld-linux-x86-64.so.2",
                "--eh-frame-hdr",
                "--as-needed",
                "--allow-shlib-undefined",
                "--hash-style=gnu",
            ];
            let runtime = [("runtime.o", RUNTIME_DYNAMIC)];
            link_with(&[&options, &BOTH[..]].concat(), &runtime, objects, &LIBRARIES)
        }
    }
}

/// The oldest C library a binary runs with, `2.34`: the newest version it asks for. `None` if it is static.
pub fn glibc_floor(elf: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"GLIBC_2.";
    let minor = |at: usize| {
        let digits: Vec<u8> = elf[at + MARK.len()..].iter().copied().take_while(|&c| c != 0).collect();
        // `2.2.5` is older than any `2.10`; only the second number decides.
        String::from_utf8(digits).ok()?.split('.').next()?.parse::<u32>().ok()
    };
    let marks = elf.windows(MARK.len()).enumerate().filter(|(_, bytes)| *bytes == MARK);
    is_dynamic(elf)
        .then(|| marks.filter_map(|(at, _)| minor(at)).max())
        .flatten()
        .map(|minor| format!("2.{minor}"))
}

/// Whether an ELF of 64 bits names an interpreter.
fn is_dynamic(elf: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, bytes: usize| {
        elf.get(at..at + bytes).map_or(0, |b| b.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b)))
            as usize
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|i| number(table + i * size, 4) == INTERPRETER as usize)
}

/// Links kernels into a shared object, for running them inside a test.
///
/// # Errors
/// No linker is there, or it fails.
pub fn link_shared(objects: &[Object]) -> Result<Vec<u8>, String> {
    link_with(&["-shared", "--build-id=none", "-znoexecstack"], &[], objects, &[])
}
