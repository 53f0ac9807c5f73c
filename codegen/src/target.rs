//! The machines kernels are compiled for, as a table. Kernel templates read vector widths and cache sizes from here,
//! LLVM its instruction sets, and the binary the list of features it refuses to run without.

use std::fmt;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name on the command line: the x86-64 psABI level.
    pub name: &'static str,
    /// Bytes of a vector register.
    pub vector_bytes: u32,
    /// Vector registers a kernel may keep live.
    pub vector_registers: u32,
    /// Level-1 data cache of one core, in bytes; what blocking assumes, not what is measured.
    pub l1_bytes: u64,
    /// Level-2 cache of one core, in bytes.
    pub l2_bytes: u64,
    /// Share of the last-level cache of one core, in bytes.
    pub l3_bytes: u64,
    /// LLVM's name of the instruction sets (`-mcpu`); no others are ever used.
    pub llvm_cpu: &'static str,
    /// LLVM's name of the scheduling model (`-mtune`); it never changes what instructions are allowed.
    pub llvm_tune: &'static str,
    /// What the CPU must have, by the names of `/proc/cpuinfo`.
    pub cpu_features: &'static [&'static str],
}

/// AVX2 and FMA: servers and laptops since 2013 (Intel Haswell, AMD Zen).
pub const X86_64_V3: Target = Target {
    name: "x86-64-v3",
    vector_bytes: 32,
    vector_registers: 16,
    l1_bytes: 32 << 10,
    l2_bytes: 256 << 10,
    l3_bytes: 2 << 20,
    llvm_cpu: "x86-64-v3",
    llvm_tune: "znver3",
    cpu_features: &[
        "sse4_2", "popcnt", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave",
    ],
};

/// AVX-512: servers since 2017 (Intel Skylake-SP) and 2022 (AMD Zen 4).
pub const X86_64_V4: Target = Target {
    name: "x86-64-v4",
    vector_bytes: 64,
    vector_registers: 32,
    l1_bytes: 32 << 10,
    l2_bytes: 1 << 20,
    l3_bytes: 2 << 20,
    llvm_cpu: "x86-64-v4",
    llvm_tune: "znver4",
    cpu_features: &[
        "sse4_2", "popcnt", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave", "avx512f",
        "avx512bw", "avx512cd", "avx512dq", "avx512vl",
    ],
};

/// Every target, lowest requirements first.
pub const TARGETS: &[Target] = &[X86_64_V3, X86_64_V4];

impl Target {
    /// The target of this name.
    ///
    /// # Errors
    /// There is none; the message lists those there are.
    pub fn by_name(name: &str) -> Result<Target, String> {
        TARGETS.iter().copied().find(|t| t.name == name).ok_or_else(|| {
            let known: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            format!("unknown target `{name}`; known are {} and native", known.join(", "))
        })
    }

    /// The best target this machine can run.
    ///
    /// # Errors
    /// It can run none: it is not x86-64, or has no AVX2 and FMA.
    pub fn host() -> Result<Target, String> {
        let best = TARGETS.iter().rev().copied().find(Target::runs_here);
        best.ok_or_else(|| {
            format!("this CPU runs no target mlc knows; the least is {} (AVX2 and FMA)", TARGETS[0].name)
        })
    }

    /// `native` or the name of a target.
    ///
    /// # Errors
    /// As [`Target::by_name`] and [`Target::host`].
    pub fn resolve(name: &str) -> Result<Target, String> {
        if name == "native" { Target::host() } else { Target::by_name(name) }
    }

    /// Whether this machine has everything the target asks for.
    pub fn runs_here(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let v3 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("movbe");
            let v4 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512cd")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            v3 && (v4 || self.vector_bytes < 64)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// Lanes of a vector of elements of `bytes` bytes.
    pub const fn lanes(&self, bytes: u64) -> u32 {
        self.vector_bytes / bytes as u32
    }

    /// Lanes of an f32 vector: 8 or 16.
    pub const fn f32_lanes(&self) -> u32 {
        self.lanes(4)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_names_are_unique_and_found() {
        for target in TARGETS {
            assert_eq!(Target::by_name(target.name), Ok(*target));
        }
        assert!(Target::by_name("vax").unwrap_err().contains("x86-64-v3"));
    }

    #[test]
    fn target_of_avx512_asks_for_what_avx2_asks() {
        for feature in X86_64_V3.cpu_features {
            assert!(X86_64_V4.cpu_features.contains(feature), "{feature}");
        }
    }
}
