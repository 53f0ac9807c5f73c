//! Builds the runtime as a static library with a cargo of its own and links it, the C library and the start files into
//! one relocatable object that codegen embeds. So a training binary is linked from objects alone: a machine that has
//! `mlc` needs a linker, but no C library, compiler or Rust. A second object leaves the C library out, for binaries that load
//! it; what the linker needs to know of it is embedded too.
//!
//! Also gives the code generator a version, a hash of its sources: it is part of the key of every cached object.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    println!("cargo:rustc-env=MLC_CODEGEN_VERSION={:016x}", version(&here.join("src")));
    let out = PathBuf::from(variable("OUT_DIR"));
    let workspace = here.parent().unwrap_or(&here).to_path_buf();
    let runtime = workspace.join("runtime");
    for input in ["src", "Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", runtime.join(input).display());
    }
    println!("cargo:rerun-if-changed={}", workspace.join("Cargo.lock").display());
    let library = build_runtime(&workspace, &runtime);
    prelink_static(&library, &out);
    prelink_dynamic(&library, &out);
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    eprintln!("mlc-codegen: {message}");
    exit(1);
}

/// FNV-1a over the sources that decide what a kernel's KIR becomes.
fn version(src: &Path) -> u64 {
    let mut files = vec![src.join("target.rs")];
    for room in ["kir", "mlir", "llvm", "cranelift"] {
        println!("cargo:rerun-if-changed={}", src.join(room).display());
        collect(&src.join(room), &mut files);
    }
    println!("cargo:rerun-if-changed={}", src.join("target.rs").display());
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for file in files {
        let bytes = fs::read(&file).unwrap_or_else(|e| fail(&format!("cannot read {}: {e}", file.display())));
        for byte in bytes {
            hash = (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|e| fail(&format!("cannot read {}: {e}", folder.display())));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// `libmlc_runtime.a`, in a target folder shared by all profiles of the outer build.
fn build_runtime(workspace: &Path, runtime: &Path) -> PathBuf {
    let out = PathBuf::from(variable("OUT_DIR"));
    // OUT_DIR is target/PROFILE/build/mlc-codegen-HASH/out.
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("runtime-static");
    let triple = variable("TARGET").to_string_lossy().into_owned();
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_string(),
        "-Crelocation-model=static".to_string(),
        "-Cpanic=abort".to_string(),
    ];
    // No path of this machine goes into a training binary.
    for (from, to) in [(Some(workspace.to_path_buf()), "mlc"), (cargo_home(), "cargo")] {
        if let Some(from) = from {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        }
    }
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--release", "--lib", "--locked", "--quiet", "--target", &triple, "--target-dir"])
        .arg(&target_dir)
        .arg("--manifest-path")
        .arg(runtime.join("Cargo.toml"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    // What the outer build set for itself does not concern the runtime.
    for name in
        ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"]
    {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => target_dir.join(triple).join("release/libmlc_runtime.a"),
        Ok(_) => fail("the runtime does not build; its errors are above"),
        Err(e) => fail(&format!("cargo does not start: {e}")),
    }
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
}

/// What a static binary answers to whoever wants to load a library. The C library's own code would try, with a part of another
/// version of itself, and it is large.
const NO_LOADING: &str = r#"
void *dlopen(const char *file, int mode) { (void)file; (void)mode; return 0; }
void *dlsym(void *handle, const char *name) { (void)handle; (void)name; return 0; }
int dlclose(void *handle) { (void)handle; return 0; }
char *dlerror(void) { return (char *)"a static binary loads no libraries"; }
"#;

/// How the unwinder of the compiler's library finds the tables of an address. The C library has this from 2.35 on, and would be
/// the only reason to need one that new.
const FIND_OBJECT: &str = r#"
#define _GNU_SOURCE
#include <link.h>
struct found { unsigned long long flags; void *map_start, *map_end; struct link_map *map; void *eh_frame; unsigned long long reserved[7]; };
struct search { unsigned long address; struct found *found; };
static int look(struct dl_phdr_info *info, size_t size, void *data) {
    struct search *search = data;
    const ElfW(Phdr) *frames = 0;
    int inside = 0;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        unsigned long begin = info->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_LOAD && search->address - begin < header->p_memsz) {
            search->found->map_start = (void *)begin;
            search->found->map_end = (void *)(begin + header->p_memsz);
            inside = 1;
        }
        if (header->p_type == PT_GNU_EH_FRAME) frames = header;
    }
    if (!inside || !frames) return 0;
    search->found->eh_frame = (void *)(info->dlpi_addr + frames->p_vaddr);
    return 1;
}
int find_object(void *address, struct found *found) __asm__("_dl_find_object");
int find_object(void *address, struct found *found) {
    struct search search = { (unsigned long)address, found };
    found->flags = 0;
    found->map = 0;
    return dl_iterate_phdr(look, &search) ? 0 : -1;
}
"#;

/// Links start files, runtime and the parts of the C library it uses into one object, `runtime.o`. What neither the start nor
/// the runtime's entry reaches is left out.
fn prelink_static(library: &Path, out: &Path) {
    let no_loading = compile(NO_LOADING, out, "no_loading");
    let [crt1, crti, begin, libm, libc, libgcc, libgcc_eh, end, crtn] = [
        "crt1.o",
        "crti.o",
        "crtbeginT.o",
        "libm.a",
        "libc.a",
        "libgcc.a",
        "libgcc_eh.a",
        "crtend.o",
        "crtn.o",
    ]
    .map(locate);
    let archives = [libm, libc, libgcc, libgcc_eh];
    prelink(&[&crt1, &crti, &begin, &no_loading, library], &archives, &[&end, &crtn], &out.join("runtime.o"));
}

/// As [`prelink_static`], without the C library: `runtime-dynamic.o`, and the shared libraries beside it.
fn prelink_dynamic(library: &Path, out: &Path) {
    for name in ["libc.so.6", "libm.so.6"] {
        let from = locate(name);
        let copied = fs::copy(&from, out.join(name));
        copied.unwrap_or_else(|e| fail(&format!("cannot copy {}: {e}", from.display())));
    }
    let [crt1, crti, begin, libc, libgcc, libgcc_eh, end, crtn] = [
        "crt1.o",
        "crti.o",
        "crtbegin.o",
        "libc_nonshared.a",
        "libgcc.a",
        "libgcc_eh.a",
        "crtend.o",
        "crtn.o",
    ]
    .map(locate);
    let archives = [libc, libgcc, libgcc_eh];
    let find_object = compile(FIND_OBJECT, out, "find_object");
    let first = [&crt1, &crti, &begin, &find_object, library];
    prelink(&first, &archives, &[&end, &crtn], &out.join("runtime-dynamic.o"));
}

/// Compiles a piece of C to `NAME.o`.
fn compile(text: &str, out: &Path, name: &str) -> PathBuf {
    let (source, object) = (out.join(format!("{name}.c")), out.join(format!("{name}.o")));
    fs::write(&source, text).unwrap_or_else(|e| fail(&format!("cannot write {}: {e}", source.display())));
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-fno-pic", "-c", "-o"]).arg(&object).arg(&source);
    run(cc);
    object
}

fn prelink(first: &[&Path], archives: &[PathBuf], last: &[&Path], out: &Path) {
    // The C compiler's own linker: lld's relocatable output of these archives has broken unwind tables.
    let mut ld = Command::new(answer("-print-prog-name=ld").unwrap_or_else(|| "ld".to_string()));
    ld.args(["-r", "--strip-debug", "--gc-sections", "-e", "_start", "-u", "mlc_runtime_main", "-o"])
        .arg(out)
        .args(first)
        .arg("--start-group")
        .args(archives)
        .arg("--end-group")
        .args(last);
    run(ld);
    // Rust's own library carries LLVM bitcode for link-time optimisation, four times the size of the rest.
    let mut objcopy =
        Command::new(answer("-print-prog-name=objcopy").unwrap_or_else(|| "objcopy".to_string()));
    objcopy.args(["--remove-section=.llvmbc", "--remove-section=.llvmcmd"]).arg(out);
    run(objcopy);
}

fn run(mut command: Command) {
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(_) => fail("the runtime does not link; the linker's errors are above"),
        Err(e) => fail(&format!("no linker: {e}; install gcc and libc6-dev (`make setup` does)")),
    }
}

/// Where the C compiler finds one of its files.
fn locate(name: &str) -> PathBuf {
    match answer(&format!("-print-file-name={name}")) {
        Some(path) if Path::new(&path).is_absolute() => PathBuf::from(path),
        _ => fail(&format!("the C compiler has no {name}; install gcc and libc6-dev (`make setup` does)")),
    }
}

fn answer(flag: &str) -> Option<String> {
    let output = Command::new("cc").arg(flag).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_string()).filter(|t| !t.is_empty())
}
