//! The part of MPI that is used, from whatever library is there at run time.
//!
//! Two binary interfaces are in use (besides MPI 5's, which is young): Open MPI's, where handles are addresses of objects the
//! library exports, and that of the MPICH family (MPICH, Intel MPI, MVAPICH, Cray), where they are integers with fixed values.
//! An integer argument and an address travel in the same registers on x86-64, and a request is written to eight zeroed bytes,
//! so that one set of declarations serves both and only the constants differ.
//!
//! Sources: `mpi.h` of Open MPI 4 and 5, and of MPICH 4 ("MPICH ABI compatibility initiative").

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::os::unix::{Library as File, RTLD_GLOBAL, RTLD_NOW};

/// A communicator, an element type or a request, in either interface.
pub type Handle = usize;

type Init = unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int;
type Plain = unsafe extern "C" fn() -> c_int;
type Ask = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type Set = unsafe extern "C" fn(Handle, Handle) -> c_int;
type Begin = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle, *mut Handle) -> c_int;
type Test = unsafe extern "C" fn(*mut Handle, *mut c_int, *mut c_void) -> c_int;
type End = unsafe extern "C" fn(Handle, c_int) -> c_int;
type Version = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;

/// Longest answer to `MPI_Get_library_version`, in either interface.
const VERSION_BYTES: usize = 8192;
/// `MPI_THREAD_FUNNELED`: only the thread that initialises calls MPI.
const FUNNELED: c_int = 1;
/// `MPI_STATUS_IGNORE` of the MPICH family; Open MPI's is null.
const MPICH_IGNORE: usize = 1;
const MPICH_COMM_WORLD: Handle = 0x4400_0000;
const MPICH_BYTE: Handle = 0x4c00_010d;
const MPICH_ERRORS_RETURN: Handle = 0x5400_0001;

/// A loaded library.
pub struct Library {
    init: Init,
    finalize: Plain,
    comm_rank: Ask,
    comm_size: Ask,
    set_errhandler: Set,
    isend: Begin,
    irecv: Begin,
    test: Test,
    abort: End,
    version: Version,
    world: Handle,
    byte: Handle,
    errors_return: Handle,
    ignore: usize,
    /// Keeps all of the above mapped.
    _file: File,
}

impl Library {
    /// Loads the first of these files that is there.
    ///
    /// # Errors
    /// None is, or it is no MPI library; says why for each.
    pub fn load(files: &[String]) -> Result<Library, String> {
        let mut reasons = Vec::new();
        for file in files {
            match Library::open(file) {
                Ok(library) => return Ok(library),
                Err(e) => reasons.push(format!("  {e}")),
            }
        }
        Err(reasons.join("\n"))
    }

    fn open(name: &str) -> Result<Library, String> {
        // SAFETY: loading a library runs its initialisers; whoever names one means it. The flag is what Open MPI's plug-ins need
        // to find their library.
        let file = unsafe { File::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| e.to_string())?;
        let address = |symbol: &str| -> Result<Handle, String> {
            // SAFETY: the address is only looked at where the symbol is known to be of this type.
            unsafe { file.get::<*mut c_void>(symbol.as_bytes()) }
                .map(|s| s.as_raw_ptr() as Handle)
                .map_err(|e| format!("{name}: {e}"))
        };
        macro_rules! function {
            ($symbol:literal as $t:ty) => {
                // SAFETY: a function of the MPI standard, with the C signature it has there.
                unsafe { std::mem::transmute::<Handle, $t>(address($symbol)?) }
            };
        }
        let is_open_mpi = address("ompi_mpi_comm_world").is_ok();
        let handle = |symbol: &str, fixed: Handle| if is_open_mpi { address(symbol) } else { Ok(fixed) };
        Ok(Library {
            init: function!("MPI_Init_thread" as Init),
            finalize: function!("MPI_Finalize" as Plain),
            comm_rank: function!("MPI_Comm_rank" as Ask),
            comm_size: function!("MPI_Comm_size" as Ask),
            set_errhandler: function!("MPI_Comm_set_errhandler" as Set),
            isend: function!("MPI_Isend" as Begin),
            irecv: function!("MPI_Irecv" as Begin),
            test: function!("MPI_Test" as Test),
            abort: function!("MPI_Abort" as End),
            version: function!("MPI_Get_library_version" as Version),
            world: handle("ompi_mpi_comm_world", MPICH_COMM_WORLD)?,
            byte: handle("ompi_mpi_byte", MPICH_BYTE)?,
            errors_return: handle("ompi_mpi_errors_return", MPICH_ERRORS_RETURN)?,
            ignore: if is_open_mpi { 0 } else { MPICH_IGNORE },
            _file: file,
        })
    }

    /// Initialises MPI; all other calls are made by the same thread.
    ///
    /// # Errors
    /// MPI refuses, or allows no threads besides the one that calls it.
    pub fn init(&self) -> Result<(), String> {
        let mut provided = 0;
        // SAFETY: MPI allows null for both arguments of `main`.
        unsafe {
            check(
                "MPI_Init_thread",
                (self.init)(std::ptr::null_mut(), std::ptr::null_mut(), FUNNELED, &mut provided),
            )?;
            check("MPI_Comm_set_errhandler", (self.set_errhandler)(self.world, self.errors_return))?;
        }
        if provided < FUNNELED {
            return Err("this MPI library allows no threads".to_owned());
        }
        Ok(())
    }

    /// This process's rank and the number of all.
    ///
    /// # Errors
    /// MPI says so.
    pub fn place(&self) -> Result<(usize, usize), String> {
        let (mut rank, mut ranks) = (0, 0);
        // SAFETY: MPI is initialised, and the results are where it may write.
        unsafe {
            check("MPI_Comm_rank", (self.comm_rank)(self.world, &mut rank))?;
            check("MPI_Comm_size", (self.comm_size)(self.world, &mut ranks))?;
        }
        Ok((rank as usize, ranks as usize))
    }

    /// What the library calls itself, in short: `Open MPI v4.1.4`, `MPICH 4.0.2`.
    pub fn version(&self) -> String {
        let mut text = [0 as c_char; VERSION_BYTES];
        let mut length = 0;
        // SAFETY: the buffer is as long as either interface asks for, and ends with a zero.
        let text = unsafe {
            (self.version)(text.as_mut_ptr(), &mut length);
            text[VERSION_BYTES - 1] = 0;
            CStr::from_ptr(text.as_ptr()).to_string_lossy()
        };
        let line = text.lines().next().unwrap_or("MPI");
        let words: Vec<&str> = line.split(',').next().unwrap_or(line).split_whitespace().collect();
        words.join(" ").replace("Version:", "").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Begins to send bytes.
    ///
    /// # Errors
    /// MPI says so.
    ///
    /// # Safety
    /// The bytes stay until the request is done.
    pub unsafe fn send(&self, bytes: *const u8, len: c_int, to: usize, tag: u32) -> Result<Handle, String> {
        let mut request = 0;
        // SAFETY: passed on; MPI does not write what it sends.
        let code = unsafe {
            let bytes = bytes.cast_mut().cast();
            (self.isend)(bytes, len, self.byte, to as c_int, tag as c_int, self.world, &mut request)
        };
        check("MPI_Isend", code).map(|()| request)
    }

    /// Begins to receive bytes.
    ///
    /// # Errors
    /// MPI says so.
    ///
    /// # Safety
    /// Nobody touches the bytes until the request is done.
    pub unsafe fn receive(
        &self,
        bytes: *mut u8,
        len: c_int,
        from: usize,
        tag: u32,
    ) -> Result<Handle, String> {
        let mut request = 0;
        // SAFETY: passed on.
        let code = unsafe {
            (self.irecv)(bytes.cast(), len, self.byte, from as c_int, tag as c_int, self.world, &mut request)
        };
        check("MPI_Irecv", code).map(|()| request)
    }

    /// Whether a request is done; it is then forgotten.
    ///
    /// # Errors
    /// MPI says so.
    pub fn test(&self, request: &mut Handle) -> Result<bool, String> {
        let mut done = 0;
        // SAFETY: the request is one of this library.
        let code = unsafe { (self.test)(request, &mut done, self.ignore as *mut c_void) };
        check("MPI_Test", code).map(|()| done != 0)
    }

    /// Ends MPI for this process; waits for the others to do the same.
    pub fn finalize(&self) {
        // SAFETY: MPI is initialised, and nothing is under way.
        unsafe { (self.finalize)() };
    }

    /// Ends all ranks.
    pub fn abort(&self, code: i32) {
        // SAFETY: MPI is initialised.
        unsafe { (self.abort)(self.world, code) };
    }
}

fn check(call: &str, code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{call} failed with code {code}")) }
}
