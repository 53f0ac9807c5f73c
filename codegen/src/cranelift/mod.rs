//! Kernels and step programs through Cranelift: pure Rust, quick to compile, of the same bits as LLVM's.
//!
//! Only this folder names the `cranelift` crates. A vector of KIR is split into 128-bit pieces, the widest that
//! Cranelift lowers on x86-64; everything else is KIR op by op, so that what a kernel computes does not depend on the
//! back end (`docs/decisions` says why, the tests in `tests/bits.rs` that it is so).

mod arithmetic;
mod convert;
mod kernel;
mod lanes;
mod loops;
mod memory;
mod step;

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable, Flags};
use cranelift_module::default_libcall_names;
use cranelift_object::{ObjectBuilder, ObjectModule};

pub use kernel::{kernel_clif, kernel_object};
pub use step::step_object;

use crate::target::Target;

/// Version of the Cranelift crates, part of the key of every object they make.
pub const VERSION: &str = cranelift_codegen::VERSION;

/// Cranelift's code generator for a target.
fn machine(target: &Target) -> Result<OwnedTargetIsa, String> {
    let mut flags = settings::builder();
    for (name, value) in [("opt_level", "speed"), ("is_pic", "true"), ("enable_verifier", "true")] {
        flags.set(name, value).map_err(|e| format!("Cranelift has no setting {name} = {value}: {e}"))?;
    }
    let mut machine =
        isa::lookup_by_name("x86_64-unknown-linux-gnu").map_err(|e| format!("Cranelift for x86-64: {e}"))?;
    for setting in target.cpu_features.iter().copied().flat_map(instruction_sets) {
        machine.enable(setting).map_err(|e| format!("Cranelift has no setting {setting}: {e}"))?;
    }
    machine.finish(Flags::new(flags)).map_err(|e| format!("Cranelift for {target}: {e}"))
}

/// Cranelift's settings for a feature by its name in `/proc/cpuinfo`; none if Cranelift makes no use of it.
fn instruction_sets(feature: &str) -> &'static [&'static str] {
    match feature {
        "sse4_2" => &["has_sse3", "has_ssse3", "has_sse41", "has_sse42"],
        "popcnt" => &["has_popcnt"],
        "avx" => &["has_avx"],
        "avx2" => &["has_avx2"],
        "fma" => &["has_fma"],
        "bmi1" => &["has_bmi1"],
        "bmi2" => &["has_bmi2"],
        "abm" => &["has_lzcnt"],
        "avx512f" => &["has_avx512f"],
        "avx512dq" => &["has_avx512dq"],
        "avx512vl" => &["has_avx512vl"],
        _ => &[],
    }
}

/// An empty object for a target; `name` is the name of its source.
fn object(target: &Target, name: &str) -> Result<ObjectModule, String> {
    let builder = ObjectBuilder::new(machine(target)?, name, default_libcall_names());
    Ok(ObjectModule::new(builder.map_err(|e| format!("Cranelift's object: {e}"))?))
}
