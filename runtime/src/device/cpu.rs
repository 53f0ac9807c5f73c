//! Which CPU features this machine has, by their `/proc/cpuinfo` names, read with `cpuid`.

use crate::failure::Failure;

/// Refuses a machine that lacks any of `needed`, naming all that is missing.
///
/// # Errors
/// Exit code 4.
pub fn check_features(needed: &[String]) -> Result<(), Failure> {
    let missing: Vec<&str> = needed.iter().map(String::as_str).filter(|name| !has_feature(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::machine(format!(
        "error: this CPU lacks {}: {}\nThe binary was built for a CPU that has {}. Run it on such a machine, or rebuild \
         it for this one.",
        if missing.len() == 1 { "a feature the kernels use" } else { "features the kernels use" },
        missing.join(", "),
        needed.join(", ")
    )))
}

/// Whether the CPU has the feature and the operating system saves its registers. A name this table lacks counts as
/// missing: better to refuse than to die of an illegal instruction.
#[cfg(target_arch = "x86_64")]
fn has_feature(name: &str) -> bool {
    use std::arch::is_x86_feature_detected as has;
    match name {
        "sse" | "sse2" | "fxsr" => true,
        "pni" | "sse3" => has!("sse3"),
        "ssse3" => has!("ssse3"),
        "sse4_1" => has!("sse4.1"),
        "sse4_2" => has!("sse4.2"),
        "popcnt" => has!("popcnt"),
        "abm" | "lzcnt" => has!("lzcnt"),
        "movbe" => has!("movbe"),
        "xsave" => has!("xsave"),
        "bmi1" => has!("bmi1"),
        "bmi2" => has!("bmi2"),
        "avx" => has!("avx"),
        "f16c" => has!("f16c"),
        "fma" => has!("fma"),
        "avx2" => has!("avx2"),
        "avx_vnni" => has!("avxvnni"),
        "avx512f" => has!("avx512f"),
        "avx512cd" => has!("avx512cd"),
        "avx512bw" => has!("avx512bw"),
        "avx512dq" => has!("avx512dq"),
        "avx512vl" => has!("avx512vl"),
        "avx512ifma" => has!("avx512ifma"),
        "avx512vbmi" => has!("avx512vbmi"),
        "avx512_vbmi2" => has!("avx512vbmi2"),
        "avx512_vnni" => has!("avx512vnni"),
        "avx512_bitalg" => has!("avx512bitalg"),
        "avx512_vpopcntdq" => has!("avx512vpopcntdq"),
        "avx512_bf16" => has!("avx512bf16"),
        "avx512_fp16" => has!("avx512fp16"),
        "gfni" => has!("gfni"),
        "vaes" => has!("vaes"),
        "vpclmulqdq" => has!("vpclmulqdq"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_feature(_name: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn check_features_names_only_what_is_missing() {
        assert_eq!(check_features(&["sse2".to_owned()]), Ok(()));
        let needed = ["sse2", "not_a_feature", "nor_this"].map(str::to_owned);
        let failure = check_features(&needed).unwrap_err();
        assert_eq!(failure.exit, Exit::Machine);
        assert!(failure.message.lines().next().unwrap().ends_with(": not_a_feature, nor_this"), "{failure}");
    }

    /// The table must agree with the kernel about every feature it knows.
    #[cfg(target_os = "linux")]
    #[test]
    fn has_feature_agrees_with_cpuinfo() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let Some(flags) = text.lines().find(|l| l.starts_with("flags")) else { return };
        let flags: Vec<&str> = flags.split_whitespace().collect();
        for name in
            ["ssse3", "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512_bf16"]
        {
            assert_eq!(has_feature(name), flags.contains(&name), "{name}");
        }
    }
}
