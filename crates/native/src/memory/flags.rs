//! Flags of mappings, which /proc/PID/smaps shows.

use std::collections::HashMap;

use cpr_kernel::proc::{MapEntry, ProcDir, VmFlags};

/// VmFlags of /proc/PID/smaps that a restart sets again.
pub(super) const KEPT_FLAGS: [&[u8; 2]; 14] = [
    b"gd", b"lo", b"lf", b"hg", b"nh", b"dc", b"dd", b"wf", b"mg", b"nr", b"sl", b"sr", b"rr", b"dp",
];

/// Mapping flags by address, read before the job is stopped because reading them is slow.
#[derive(Debug, Default)]
pub struct FlagTable(HashMap<(i32, u64, u64), VmFlags>);

impl FlagTable {
    /// Reads the flags of all mappings of process `pid`.
    pub fn add(&mut self, proc: &ProcDir) {
        self.note(proc.pid(), proc.smaps_flags().unwrap_or_default());
    }

    /// Notes the flags of mappings of process `pid`.
    pub fn note(&mut self, pid: i32, mappings: Vec<VmFlags>) {
        let mappings = mappings.into_iter();
        self.0.extend(mappings.map(|map| ((pid, map.start, map.end), map)));
    }

    /// Whether those of this mapping of process `pid` are known.
    pub fn has(&self, pid: i32, map: &MapEntry) -> bool {
        self.0.contains_key(&(pid, map.start, map.end))
    }

    pub(super) fn get(&self, pid: i32, map: &MapEntry) -> &[[u8; 2]] {
        let found = self.0.get(&(pid, map.start, map.end));
        found.map_or(&[], |found| found.flags.as_slice())
    }

    /// The memory protection key that a program has given a mapping; memory that can be executed only has one of the
    /// kernel's.
    pub(super) fn key(&self, pid: i32, map: &MapEntry) -> Option<u32> {
        let found = self.0.get(&(pid, map.start, map.end))?;
        let of_kernel = map.exec && !map.read && !map.write;
        (found.key != 0 && !of_kernel).then_some(found.key)
    }
}
