//! Compiled kernels and programs inside this process: what tests compare with the interpreters.

mod meeting;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::{CollectiveInfo, EntryFn, KernelFn, MeshAxisInfo, ProgramTable};
use crate::backend::{Codegen, Compiler, KernelLink};
use crate::build::{Expanded, kernel_key, symbol};
use crate::kir::Kernel;
use crate::kir::interpret::Binding;
use crate::link::{Object, link_shared};
use crate::program::{Program, Spaces, verify};
use crate::target::Target;

/// Kernels compiled for a target and loaded.
pub struct Loaded {
    library: Library,
    kernels: Vec<Function>,
}

struct Function {
    call: KernelFn,
    buffer_bytes: Vec<u64>,
    n_scalars: usize,
    scratch_bytes: u64,
}

/// 64 bytes, aligned as scratch must be.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line {
    _bytes: [u8; 64],
}

/// Scratch as kernels find it in tests: all ones.
fn scratch(bytes: u64) -> Vec<Line> {
    vec![Line { _bytes: [0xff; 64] }; bytes.div_ceil(64) as usize]
}

impl Loaded {
    /// Compiles kernels and loads them.
    ///
    /// # Errors
    /// This machine cannot run the target, this build lacks the back end, a kernel does not compile, or the objects do
    /// not link or load.
    pub fn new(kernels: &[&Kernel], target: &Target, codegen: Codegen) -> Result<Loaded, String> {
        can_run(target)?;
        let compiler = Compiler::new();
        let mut objects = Vec::new();
        for (i, kernel) in kernels.iter().enumerate() {
            let name = format!("kernel_{i}");
            let bytes = compiler.kernel(codegen, kernel, &name, target)?;
            objects.push(Object { name, bytes });
        }
        let mut loaded = Loaded { library: Library::open(&link_shared(&objects)?)?, kernels: Vec::new() };
        for (kernel, object) in kernels.iter().zip(&objects) {
            let address = loaded.library.find(&object.name)?;
            loaded.kernels.push(Function {
                // SAFETY: the symbol is a kernel just compiled with this convention.
                call: unsafe { std::mem::transmute::<*mut c_void, KernelFn>(address) },
                buffer_bytes: kernel.buffers.iter().map(|b| b.len * b.dtype.bytes()).collect(),
                n_scalars: kernel.n_scalars(),
                scratch_bytes: kernel.scratch_bytes(),
            });
        }
        Ok(loaded)
    }

    /// Runs tiles of kernel `index`, as [`Interpreter::run`](crate::kir::interpret::Interpreter::run) does. Scratch
    /// starts as all ones there and here.
    ///
    /// # Errors
    /// A wrong number of buffers or scalars, or a buffer that reaches beyond its space.
    pub fn run(
        &self,
        index: usize,
        spaces: &mut [Vec<u8>],
        buffers: &[Binding],
        scalars: &[i64],
        tiles: std::ops::Range<i64>,
    ) -> Result<(), String> {
        let kernel = self.kernels.get(index).ok_or_else(|| format!("there is no kernel {index}"))?;
        if buffers.len() != kernel.buffer_bytes.len() || scalars.len() != kernel.n_scalars {
            return Err("wrong number of buffers or scalars".to_string());
        }
        let mut addresses = Vec::new();
        for (binding, bytes) in buffers.iter().zip(&kernel.buffer_bytes) {
            let space = spaces
                .get_mut(binding.space)
                .ok_or_else(|| format!("there is no space {}", binding.space))?;
            if binding.offset.saturating_add(*bytes) > space.len() as u64 {
                return Err(format!("a buffer reaches beyond its space of {} bytes", space.len()));
            }
            addresses.push(space[binding.offset as usize..].as_mut_ptr());
        }
        let mut scratch = scratch(kernel.scratch_bytes);
        // SAFETY: every address has as many bytes behind it as the kernel's declaration says, scratch as many as it
        // asks for; that it stays within is what the interpreter checks.
        unsafe {
            (kernel.call)(
                addresses.as_ptr(),
                scalars.as_ptr(),
                tiles.start,
                tiles.end,
                scratch.as_mut_ptr().cast::<u8>(),
            );
        }
        Ok(())
    }
}

/// Runs all tiles of a kernel of the user's own on buffers with these contents; gives all contents afterwards, one after the
/// other.
///
/// # Errors
/// The object does not link or load.
pub(crate) fn custom_kernel(
    object: Vec<u8>,
    symbol: &str,
    tiles: u64,
    scratch_bytes: u64,
    mut buffers: Vec<Vec<u8>>,
) -> Result<Vec<u8>, String> {
    let library = Library::open(&link_shared(&[Object { name: symbol.to_string(), bytes: object }])?)?;
    let address = library.find(symbol)?;
    // SAFETY: the symbol is a kernel just compiled with this convention.
    let call = unsafe { std::mem::transmute::<*mut c_void, KernelFn>(address) };
    let addresses: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr()).collect();
    let mut scratch = scratch(scratch_bytes);
    // SAFETY: buffers are as large as the spec says; that the user's code stays inside them nobody can promise, which is why
    // this runs in a worker.
    unsafe { call(addresses.as_ptr(), std::ptr::null(), 0, tiles as i64, scratch.as_mut_ptr().cast::<u8>()) };
    Ok(buffers.concat())
}

fn can_run(target: &Target) -> Result<(), String> {
    if target.runs_here() { Ok(()) } else { Err(format!("this machine does not run {target}")) }
}

thread_local! {
    static MEMO: RefCell<Memo> = RefCell::new(Memo::default());
}

/// What this thread has compiled for [`CompiledProgram`]s: a test makes many programs that share kernels.
#[derive(Default)]
struct Memo {
    compiler: Compiler,
    /// By key.
    objects: BTreeMap<String, Vec<u8>>,
}

impl Memo {
    /// Objects kept; a few kilobytes each.
    const MOST: usize = 4096;

    fn compile(
        &mut self,
        kernel: &Expanded,
        key: String,
        target: &Target,
        codegen: Codegen,
    ) -> Result<Vec<u8>, String> {
        if let Some(object) = self.objects.get(&key) {
            return Ok(object.clone());
        }
        let object = match &kernel.kir {
            Some(kir) => self.compiler.kernel(codegen, kir, &symbol(&key), target)?,
            None => self.compiler.custom(codegen, &kernel.text, &symbol(&key), target)?,
        };
        if self.objects.len() >= Memo::MOST {
            self.objects.clear();
        }
        self.objects.insert(key, object.clone());
        Ok(object)
    }
}

/// A whole program compiled for a target and loaded: the step functions of a binary without its runtime.
pub struct CompiledProgram {
    _library: Library,
    entries: Vec<(String, EntryFn)>,
    space_bytes: Vec<u64>,
    scratch_bytes: u64,
    mesh: Vec<MeshAxisInfo>,
    collectives: Vec<CollectiveInfo>,
}

impl CompiledProgram {
    /// Compiles a program and loads it.
    ///
    /// # Errors
    /// This machine cannot run the target, this build lacks the back end, the program does not verify or does not
    /// compile, or the objects do not load.
    pub fn new(program: &Program, target: &Target, codegen: Codegen) -> Result<CompiledProgram, String> {
        can_run(target)?;
        verify(program).map_err(|errors| errors.join("; "))?;
        let (mut objects, mut links, mut scratch_bytes) = (Vec::<Object>::new(), Vec::new(), 0);
        for kernel in &program.kernels {
            let expanded = Expanded::of(&kernel.spec, target);
            let (tiles, key) = (expanded.tiles, kernel_key(&expanded.text, target, codegen));
            let symbol = symbol(&key);
            scratch_bytes = expanded.scratch_bytes.max(scratch_bytes);
            // Equal kernels of a program are one object.
            if !objects.iter().any(|o| o.name == symbol) {
                let bytes = MEMO.with_borrow_mut(|memo| memo.compile(&expanded, key, target, codegen));
                let bytes = bytes.map_err(|e| format!("{}: {e}", kernel.name))?;
                objects.push(Object { name: symbol.clone(), bytes });
            }
            links.push(KernelLink { symbol, tiles });
        }
        let step = MEMO.with_borrow(|memo| memo.compiler.step(codegen, program, &links, b"{}", target))?;
        objects.push(Object { name: "step".to_string(), bytes: step });
        let library = Library::open(&link_shared(&objects)?)?;
        let table = library.find("program_table")?.cast::<ProgramTable>();
        let names = program.entries.iter().map(|e| e.name.clone());
        // SAFETY: the table is the one `step_object` emits, with an entry per entry of the program.
        let functions = unsafe { std::slice::from_raw_parts((*table).entries, (*table).n_entries as usize) };
        let entries = names.zip(functions.iter().copied()).collect();
        let space_bytes = program.info.spaces.iter().map(|s| s.bytes).collect();
        let (mesh, collectives) = (program.info.mesh.clone(), program.info.collectives.clone());
        Ok(CompiledProgram { _library: library, entries, space_bytes, scratch_bytes, mesh, collectives })
    }

    /// Runs an entry of a program for one rank on memory spaces of the sizes that `info.spaces` states, on this thread.
    ///
    /// # Errors
    /// There is no such entry, a space has another size, or the program is for several ranks.
    pub fn run(&self, entry: &str, spaces: &mut [Vec<u8>]) -> Result<(), String> {
        self.run_ranks(entry, &mut [spaces])
    }

    /// Runs an entry on all ranks, each on a thread of its own; `ranks` are the memory spaces of each, by number.
    ///
    /// # Errors
    /// Those of [`CompiledProgram::run`]; there are not as many ranks as the mesh has; the ranks meet in different
    /// collectives, or one writes what it sends.
    pub fn run_ranks(&self, entry: &str, ranks: &mut [Spaces<'_>]) -> Result<(), String> {
        let found = self.entries.iter().find(|(name, _)| name == entry);
        let (_, function) = found.ok_or_else(|| format!("there is no entry {entry}"))?;
        for spaces in ranks.iter() {
            let sizes: Vec<u64> = spaces.iter().map(|s| s.len() as u64).collect();
            if sizes != self.space_bytes {
                return Err(format!("the spaces have {sizes:?} bytes instead of {:?}", self.space_bytes));
            }
        }
        meeting::run(*function, &self.mesh, &self.collectives, self.scratch_bytes, ranks)
    }
}

/// A shared object in this process.
struct Library {
    handle: *mut c_void,
}

impl Library {
    /// Loads a shared object from memory, by way of a file that is gone afterwards. Functions nothing defines, such as
    /// the runtime's, are an error only when called.
    fn open(bytes: &[u8]) -> Result<Library, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("mlc-run-{}-{}.so", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path: PathBuf = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: the object holds kernels and step functions only and has no initialisers.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        let error = if handle.is_null() { last_error() } else { String::new() };
        let _ = std::fs::remove_file(&path);
        if handle.is_null() { Err(error) } else { Ok(Library { handle }) }
    }

    fn find(&self, symbol: &str) -> Result<*mut c_void, String> {
        let name = CString::new(symbol).map_err(|e| e.to_string())?;
        // SAFETY: the library is open.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if address.is_null() { Err(last_error()) } else { Ok(address) }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; what was found in it goes with its owner.
        unsafe {
            libc::dlclose(self.handle);
        }
    }
}

fn last_error() -> String {
    // SAFETY: dlerror gives a C string or nothing.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            "unknown error".to_string()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}
