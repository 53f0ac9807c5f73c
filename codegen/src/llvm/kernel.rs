//! One kernel from KIR to an object: MLIR text, MLIR passes, LLVM passes, machine code.

use inkwell::context::Context;
use inkwell::module::{Linkage, Module};
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{FileType, TargetMachine};

use super::{generate, machine, prepare, text};
use crate::kir::Kernel;
use crate::mlir;
use crate::target::Target;

/// What [`KernelCompiler::compile`] stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The MLIR text the kernel is given to MLIR as.
    Mlir,
    /// LLVM IR after optimisation.
    Llvm,
    /// Assembly.
    Asm,
    /// A relocatable ELF object.
    Object,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Stage; 4] = [Stage::Mlir, Stage::Llvm, Stage::Asm, Stage::Object];

    /// Name, as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Mlir => "mlir",
            Stage::Llvm => "llvm",
            Stage::Asm => "asm",
            Stage::Object => "object",
        }
    }
}

/// Compiles kernels one after the other; keeps what is slow to make. Stays on one thread.
pub struct KernelCompiler {
    mlir: mlir::Context,
}

impl Default for KernelCompiler {
    fn default() -> KernelCompiler {
        KernelCompiler::new()
    }
}

impl KernelCompiler {
    /// A compiler; takes a few milliseconds.
    pub fn new() -> KernelCompiler {
        KernelCompiler { mlir: mlir::Context::new() }
    }

    /// Compiles a kernel up to a stage; its function is called `symbol`.
    ///
    /// # Errors
    /// The kernel does not verify, or MLIR or LLVM refuse it: their messages.
    pub fn compile(
        &self,
        kernel: &Kernel,
        symbol: &str,
        target: &Target,
        stage: Stage,
    ) -> Result<Vec<u8>, String> {
        crate::kir::verify(kernel)
            .map_err(|errors| format!("the kernel is not valid: {}", errors.join("; ")))?;
        self.lower(mlir::emit(kernel, symbol), symbol, mlir::PIPELINE, target, stage)
    }

    /// Compiles the text of [`custom::module`](crate::custom::module), symbol put in, up to a stage. Its other functions stay
    /// inside the object: two files may both have a `@forward`.
    ///
    /// # Errors
    /// MLIR or LLVM refuse the file: their messages, with lines of the text.
    pub fn compile_custom(
        &self,
        text: String,
        symbol: &str,
        target: &Target,
        stage: Stage,
    ) -> Result<Vec<u8>, String> {
        self.lower(text, symbol, mlir::CUSTOM_PIPELINE, target, stage)
    }

    fn lower(
        &self,
        text: String,
        symbol: &str,
        pipeline: &str,
        target: &Target,
        stage: Stage,
    ) -> Result<Vec<u8>, String> {
        if stage == Stage::Mlir {
            return Ok(text.into_bytes());
        }
        let mut parsed =
            self.mlir.parse(&text).map_err(|e| format!("MLIR does not accept the kernel: {e}"))?;
        parsed.run(pipeline).map_err(|e| format!("MLIR does not lower the kernel: {e}"))?;
        let context = Context::create();
        let module =
            parsed.translate(&context).map_err(|e| format!("MLIR does not translate the kernel: {e}"))?;
        for function in module.get_functions().filter(|f| f.count_basic_blocks() > 0) {
            if function.get_name().to_bytes() != symbol.as_bytes() {
                function.set_linkage(Linkage::Internal);
            }
        }
        let machine = machine(target)?;
        prepare(&context, &module, &machine, target);
        optimize(&module, &machine)?;
        match stage {
            Stage::Mlir => Ok(text.into_bytes()),
            Stage::Llvm => Ok(module.print_to_string().to_string().into_bytes()),
            Stage::Asm => generate(&machine, &module, FileType::Assembly),
            Stage::Object => generate(&machine, &module, FileType::Object),
        }
    }
}

/// LLVM's passes at O3. Loops are vectorised by the kernel templates, which know their shapes; LLVM's own vectorisers
/// would only cost time.
fn optimize(module: &Module<'_>, machine: &TargetMachine) -> Result<(), String> {
    let options = PassBuilderOptions::create();
    options.set_loop_vectorization(false);
    options.set_loop_slp_vectorization(false);
    module.run_passes("default<O3>", machine, options).map_err(|e| format!("LLVM's passes: {}", text(&e)))
}
