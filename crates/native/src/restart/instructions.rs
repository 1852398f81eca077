//! Which instructions a program may be using that another processor can lack.
//!
//! Programs and libraries look for them when they start and do not look again: who has found them present fails, or
//! computes something else, where they are missing. Names are those of `flags` in /proc/cpuinfo (the kernel's
//! arch/x86/include/asm/cpufeatures.h), as images hold them.

use std::collections::BTreeSet;

/// Left out is what the kernel merely reports, and what a processor without it takes for something that means the same
/// to a program: the prefixes of HLE are ignored there, `prefetchw` and `cldemote` do nothing.
const INSTRUCTIONS: &[&str] = &[
    // SSE3, as Linux calls it.
    "pni",
    "ssse3",
    "sse4_1",
    "sse4_2",
    "popcnt",
    // LZCNT: a processor without it executes BSR, which counts from the other side.
    "abm",
    "avx",
    "avx2",
    "fma",
    "fma4",
    "xop",
    "f16c",
    "bmi1",
    "bmi2",
    "adx",
    "movbe",
    "aes",
    "vaes",
    "pclmulqdq",
    "vpclmulqdq",
    "gfni",
    "rdrand",
    "rdseed",
    "sha_ni",
    // Transactions: by them glibc elides locks, and its functions for strings and memory ask whether one is under way
    // (XTEST) wherever the processor has them.
    "rtm",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "avx512ifma",
    "avx512vbmi",
    "avx512_vbmi2",
    "avx512_bitalg",
    "avx512_vnni",
    "avx512_vpopcntdq",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "xsave",
    // By which ld.so saves registers.
    "xsavec",
];

/// Those that the image's processor had and this one has not.
pub fn missing(of_image: &[String], here: &BTreeSet<String>) -> Vec<&'static str> {
    let had = |flag: &&str| of_image.iter().any(|found| found == flag);
    let flags = INSTRUCTIONS.iter().copied();
    flags.filter(had).filter(|flag| !here.contains(*flag)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LBNL-3.9.1.M23
    #[test]
    fn instructions_that_a_program_may_use_are_missing_by_name() {
        let of_image = ["sse2", "avx2", "hle", "rtm", "avx512_vnni", "constant_tsc", "abm"].map(str::to_owned);
        let here = ["sse2", "avx2", "rdseed"].map(str::to_owned).into();
        assert_eq!(missing(&of_image, &here), ["abm", "rtm", "avx512_vnni"]);
    }

    #[test]
    fn a_processor_that_can_do_more_lacks_nothing() {
        let of_image = ["sse2", "avx2"].map(str::to_owned);
        let here = ["sse2", "avx2", "rtm", "abm"].map(str::to_owned).into();
        assert!(missing(&of_image, &here).is_empty());
    }
}
