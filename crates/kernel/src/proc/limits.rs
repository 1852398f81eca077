//! `/proc/PID/limits`.
//!
//! prlimit(2) gives the same numbers, but not for processes of other users without `CAP_SYS_RESOURCE`.

use std::io;

use super::{At, decimal, lines, words};

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Number of the resource: `RLIMIT_CPU` is 0, `RLIMIT_RTTIME` is 15.
    pub resource: u32,
    /// Soft limit; `u64::MAX` for unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` for unlimited.
    pub hard: u64,
}

/// What the file calls the resources, at the places of their numbers.
const NAMES: [&str; 16] = [
    "Max cpu time ",
    "Max file size ",
    "Max data size ",
    "Max stack size ",
    "Max core file size ",
    "Max resident set ",
    "Max processes ",
    "Max open files ",
    "Max locked memory ",
    "Max address space ",
    "Max file locks ",
    "Max pending signals ",
    "Max msgqueue size ",
    "Max nice priority ",
    "Max realtime priority ",
    "Max realtime timeout ",
];

/// Parses `/proc/PID/limits`. The result has one entry for each of the 16 resources, in the order of their numbers.
/// Resources this code does not know are left out.
pub fn parse(file: &str, text: &[u8]) -> io::Result<Vec<Limit>> {
    let mut found: [Option<Limit>; NAMES.len()] = [None; NAMES.len()];
    let mut last = At { file, line: 1 };
    // The first line holds the headings.
    for (at, line) in lines(file, text).skip(1) {
        last = at;
        for ((slot, name), resource) in found.iter_mut().zip(NAMES).zip(0..) {
            if let Some(rest) = line.strip_prefix(name.as_bytes()) {
                let mut values = words(rest).map(value);
                let soft = at.need(values.next().flatten(), "soft limit")?;
                let hard = at.need(values.next().flatten(), "hard limit")?;
                *slot = Some(Limit { resource, soft, hard });
            }
        }
    }
    found
        .into_iter()
        .zip(NAMES)
        .map(|(limit, name)| limit.ok_or_else(|| last.bad(format_args!("the file ends without {:?}", name.trim_end()))))
        .collect()
}

fn value(word: &[u8]) -> Option<u64> {
    if word == b"unlimited" {
        Some(u64::MAX)
    } else {
        decimal(word)
    }
}
