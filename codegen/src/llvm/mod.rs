//! From MLIR to machine code. Only this folder names `inkwell`, besides the translation in `mlir/`.
//!
//! No fast-math flag and no contraction anywhere: the optimiser may change how long a kernel takes, not its result.

mod kernel;
mod step;

pub use kernel::{KernelCompiler, Stage};
pub use step::step_object;

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module;
use inkwell::support::LLVMString;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine,
    TargetMachineOptions, TargetTriple,
};

use crate::target::Target;

/// The triple of every binary mlc writes; the C library is linked statically, so it does not matter which.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// A message of LLVM's.
fn text(message: &LLVMString) -> String {
    message.to_string_lossy().into_owned()
}

/// LLVM's code generator for a target.
fn machine(target: &Target) -> Result<TargetMachine, String> {
    LlvmTarget::initialize_x86(&InitializationConfig::default());
    let triple = TargetTriple::create(TRIPLE);
    let llvm_target = LlvmTarget::from_triple(&triple).map_err(|e| text(&e))?;
    let options = TargetMachineOptions::new()
        .set_cpu(target.llvm_cpu)
        .set_features("")
        .set_level(OptimizationLevel::Aggressive)
        .set_reloc_mode(RelocMode::PIC)
        .set_code_model(CodeModel::Small);
    llvm_target
        .create_target_machine_from_options(&triple, options)
        .ok_or_else(|| format!("LLVM has no code generator for {TRIPLE}"))
}

/// Prepares a module for `target`: triple, data layout, and on every function the target's tuning.
fn prepare<'c>(context: &'c Context, module: &Module<'c>, machine: &TargetMachine, target: &Target) {
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let nounwind = inkwell::attributes::Attribute::get_named_enum_kind_id("nounwind");
    let vector_bits = (target.vector_bytes * 8).to_string();
    for function in module.get_functions().filter(|f| f.count_basic_blocks() > 0) {
        let location = inkwell::attributes::AttributeLoc::Function;
        function.add_attribute(location, context.create_enum_attribute(nounwind, 0));
        function.add_attribute(location, context.create_string_attribute("target-cpu", target.llvm_cpu));
        function.add_attribute(location, context.create_string_attribute("tune-cpu", target.llvm_tune));
        function
            .add_attribute(location, context.create_string_attribute("prefer-vector-width", &vector_bits));
        function
            .add_attribute(location, context.create_string_attribute("min-legal-vector-width", &vector_bits));
    }
}

/// Object or assembly of a finished module.
fn generate(machine: &TargetMachine, module: &Module<'_>, file: FileType) -> Result<Vec<u8>, String> {
    let bytes = |buffer: MemoryBuffer<'_>| {
        // Assembly text comes with a closing zero, objects do not.
        let bytes = buffer.as_slice();
        match file {
            FileType::Assembly => bytes.strip_suffix(&[0]).unwrap_or(bytes).to_vec(),
            FileType::Object => bytes.to_vec(),
        }
    };
    machine.write_to_memory_buffer(module, file).map(bytes).map_err(|e| text(&e))
}
