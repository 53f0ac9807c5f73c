//! The two back ends: which there are in this build of mlc, and one compiler for both.

use std::fmt;

use crate::cranelift;
use crate::kir::Kernel;
#[cfg(feature = "llvm")]
use crate::llvm::{self, KernelCompiler, Stage};
use crate::program::Program;
use crate::target::Target;

/// What turns kernels and the step program into objects. The bits that a kernel computes do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Codegen {
    /// MLIR and LLVM: the fastest kernels. Needs the cargo feature `llvm`.
    Llvm,
    /// Cranelift: the fastest builds, and no library that is not Rust.
    Cranelift,
}

impl Codegen {
    /// Every back end, in this build or not.
    pub const ALL: [Codegen; 2] = [Codegen::Llvm, Codegen::Cranelift];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Codegen::Llvm => "llvm",
            Codegen::Cranelift => "cranelift",
        }
    }

    /// Whether this build of mlc has it.
    pub const fn available(self) -> bool {
        match self {
            Codegen::Llvm => cfg!(feature = "llvm"),
            Codegen::Cranelift => true,
        }
    }

    /// The back ends of this build, the one that is used unless another is asked for first.
    pub fn here() -> Vec<Codegen> {
        Codegen::ALL.into_iter().filter(|codegen| codegen.available()).collect()
    }

    /// The back end of this name.
    ///
    /// # Errors
    /// There is none, or this build of mlc lacks it.
    pub fn by_name(name: &str) -> Result<Codegen, String> {
        let found = Codegen::ALL.into_iter().find(|codegen| codegen.name() == name);
        let codegen = found.ok_or_else(|| {
            format!(
                "unknown code generator `{name}`; known are {}",
                Codegen::ALL.map(Codegen::name).join(", ")
            )
        })?;
        codegen.required()
    }

    /// This back end.
    ///
    /// # Errors
    /// This build of mlc lacks it.
    pub fn required(self) -> Result<Codegen, String> {
        if self.available() {
            return Ok(self);
        }
        Err(format!(
            "this mlc was built without the feature `{}`; use `--codegen cranelift`, or build mlc with its default \
             features",
            self.name()
        ))
    }

    /// Name and version, part of the key of every object.
    pub(crate) fn key(self) -> String {
        match self {
            Codegen::Llvm => "llvm".to_string(),
            Codegen::Cranelift => format!("cranelift {}", cranelift::VERSION),
        }
    }
}

impl Default for Codegen {
    /// LLVM where this build has it.
    fn default() -> Codegen {
        if Codegen::Llvm.available() { Codegen::Llvm } else { Codegen::Cranelift }
    }
}

impl fmt::Display for Codegen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the step program must know of a compiled kernel, in the order of `program.kernels`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLink {
    /// Symbol of its function.
    pub symbol: String,
    /// Tiles of a launch.
    pub tiles: u64,
}

/// Makes objects with either back end; keeps what is slow to make. Stays on one thread.
#[derive(Default)]
pub struct Compiler {
    #[cfg(feature = "llvm")]
    llvm: std::cell::OnceCell<KernelCompiler>,
}

impl Compiler {
    /// A compiler; a back end is set up when it is first used.
    pub fn new() -> Compiler {
        Compiler::default()
    }

    /// The object of a kernel; its function is called `symbol`.
    ///
    /// # Errors
    /// The kernel does not verify, the back end refuses it, or this build of mlc lacks the back end.
    pub fn kernel(
        &self,
        codegen: Codegen,
        kernel: &Kernel,
        symbol: &str,
        target: &Target,
    ) -> Result<Vec<u8>, String> {
        match codegen {
            #[cfg(feature = "llvm")]
            Codegen::Llvm => {
                self.llvm.get_or_init(KernelCompiler::new).compile(kernel, symbol, target, Stage::Object)
            }
            #[cfg(not(feature = "llvm"))]
            Codegen::Llvm => Err(codegen.required().err().unwrap_or_default()),
            Codegen::Cranelift => cranelift::kernel_object(kernel, symbol, target),
        }
    }

    /// The object of a kernel of the user's own, from the text of [`custom::module`](crate::custom::module).
    ///
    /// # Errors
    /// MLIR or LLVM refuse it, or the back end is not LLVM: no other reads MLIR.
    pub fn custom(
        &self,
        codegen: Codegen,
        text: &str,
        symbol: &str,
        target: &Target,
    ) -> Result<Vec<u8>, String> {
        match codegen {
            #[cfg(feature = "llvm")]
            Codegen::Llvm => {
                let text = text.replace(crate::custom::SYMBOL, symbol);
                self.llvm.get_or_init(KernelCompiler::new).compile_custom(text, symbol, target, Stage::Object)
            }
            Codegen::Cranelift => Err("a kernel in MLIR needs the code generator llvm".to_string()),
            #[cfg(not(feature = "llvm"))]
            Codegen::Llvm => {
                let _ = (text, symbol, target);
                Err(codegen.required().err().unwrap_or_default())
            }
        }
    }

    /// The object of the step program: the entries' functions, the table the runtime reads, and `main`.
    ///
    /// # Errors
    /// The back end refuses it, or this build of mlc lacks the back end.
    pub fn step(
        &self,
        codegen: Codegen,
        program: &Program,
        kernels: &[KernelLink],
        info: &[u8],
        target: &Target,
    ) -> Result<Vec<u8>, String> {
        match codegen {
            #[cfg(feature = "llvm")]
            Codegen::Llvm => llvm::step_object(program, kernels, info, target),
            #[cfg(not(feature = "llvm"))]
            Codegen::Llvm => Err(codegen.required().err().unwrap_or_default()),
            Codegen::Cranelift => cranelift::step_object(program, kernels, info, target),
        }
    }
}
