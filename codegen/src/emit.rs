//! What a kernel looks like on its way down, as text.

use crate::kernels;
use crate::program::KernelSpec;
use crate::target::Target;

/// A stage of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelStage {
    /// KIR.
    Kir,
    /// MLIR, as it is given to MLIR.
    Mlir,
    /// LLVM IR after optimisation.
    Llvm,
    /// Assembly.
    Asm,
    /// Cranelift's IR, as it is given to Cranelift.
    Clif,
}

impl KernelStage {
    /// Every stage, from the top.
    pub const ALL: [KernelStage; 5] =
        [KernelStage::Kir, KernelStage::Mlir, KernelStage::Llvm, KernelStage::Asm, KernelStage::Clif];

    /// Name on the command line, and the ending of a file of it.
    pub const fn name(self) -> &'static str {
        match self {
            KernelStage::Kir => "kir",
            KernelStage::Mlir => "mlir",
            KernelStage::Llvm => "llvm",
            KernelStage::Asm => "asm",
            KernelStage::Clif => "clif",
        }
    }

    /// Whether this build of mlc can make it.
    pub const fn available(self) -> bool {
        match self {
            KernelStage::Kir | KernelStage::Mlir | KernelStage::Clif => true,
            KernelStage::Llvm | KernelStage::Asm => cfg!(feature = "llvm"),
        }
    }

    /// The stage of this name.
    pub fn by_name(name: &str) -> Option<KernelStage> {
        KernelStage::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// The text of a kernel at a stage; its function is called `symbol`.
///
/// # Errors
/// MLIR, LLVM or Cranelift refuse the kernel, or the stage needs LLVM and this mlc was built without it.
pub fn emit(spec: &KernelSpec, symbol: &str, target: &Target, stage: KernelStage) -> Result<String, String> {
    if let KernelSpec::Custom(custom) = spec {
        let text = crate::custom::module(custom).text.replace(crate::custom::SYMBOL, symbol);
        return match stage {
            KernelStage::Kir | KernelStage::Mlir => Ok(text),
            KernelStage::Clif => Err(format!("{}: a kernel in MLIR has no form for Cranelift", custom.file)),
            KernelStage::Llvm | KernelStage::Asm => compiled(Source::Custom(text), symbol, target, stage),
        };
    }
    let kernel = kernels::expand(spec, target);
    match stage {
        KernelStage::Kir => Ok(kernel.to_string()),
        KernelStage::Mlir => Ok(crate::mlir::emit(&kernel, symbol)),
        KernelStage::Clif => crate::cranelift::kernel_clif(&kernel, target),
        KernelStage::Llvm | KernelStage::Asm => compiled(Source::Kir(kernel), symbol, target, stage),
    }
}

/// What LLVM gets a kernel from.
#[cfg_attr(not(feature = "llvm"), allow(dead_code, reason = "nothing reads it without LLVM"))]
enum Source {
    Kir(crate::kir::Kernel),
    /// MLIR text of the user's own.
    Custom(String),
}

#[cfg(feature = "llvm")]
fn compiled(source: Source, symbol: &str, target: &Target, stage: KernelStage) -> Result<String, String> {
    use crate::llvm::{KernelCompiler, Stage};
    let stage = if stage == KernelStage::Llvm { Stage::Llvm } else { Stage::Asm };
    let bytes = match source {
        Source::Kir(kernel) => KernelCompiler::new().compile(&kernel, symbol, target, stage)?,
        Source::Custom(text) => KernelCompiler::new().compile_custom(text, symbol, target, stage)?,
    };
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

#[cfg(not(feature = "llvm"))]
fn compiled(_: Source, _: &str, _: &Target, stage: KernelStage) -> Result<String, String> {
    Err(format!("this mlc was built without the feature `llvm`; the stage {} needs it", stage.name()))
}
