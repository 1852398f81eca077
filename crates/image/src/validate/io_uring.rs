//! io_uring instances.

use std::collections::HashSet;

use cpr_types::Result;

use super::{Check, Verdict, in_table, within, wrong};
use crate::model::*;

/// What mappings can be of: IORING_OFF_SQ_RING, _CQ_RING and _SQES.
pub(super) const OFFSETS: [u64; 3] = [0, 0x800_0000, 0x1000_0000];
/// Most requests that the kernel makes room for (IORING_MAX_ENTRIES).
const MAX_ENTRIES: u32 = 1 << 15;
/// Most files or buffers that it lets anybody register (IORING_MAX_FIXED_FILES, IORING_MAX_REG_BUFFERS).
const MAX_REGISTERED: usize = 1 << 20;
/// Flags of instances that are saved: IOPOLL, SQPOLL, SUBMIT_ALL, TASKRUN_FLAG, SINGLE_ISSUER and DEFER_TASKRUN.
const FLAGS: u32 = 1 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 12 | 1 << 13;
/// The offsets in `layout` are in the first page but for those of the array and of the completions.
const LAYOUT: usize = 9;

impl Check<'_> {
    pub(super) fn io_urings(&self) -> Result<()> {
        let mut open = HashSet::new();
        for file in &self.manifest.files {
            if let Object::IoUring(id) = file.object
                && !open.insert(id)
            {
                return Err(wrong(format!("io_uring instance {}: two open files are one", id.0)));
            }
        }
        for (index, instance) in self.manifest.io_urings.iter().enumerate() {
            self.io_uring(instance)
                .map_err(|what| wrong(format!("io_uring instance {index}: {what}")))?;
        }
        Ok(())
    }

    fn io_uring(&self, instance: &IoUring) -> Verdict {
        let IoUring {
            entries, completions, ..
        } = *instance;
        let owner = self.manifest.processes.iter().flat_map(|process| &process.threads);
        within(owner.map(|thread| thread.tid).any(|tid| tid == instance.owner), "owner")?;
        within(entries.is_power_of_two() && entries <= MAX_ENTRIES, "room for requests")?;
        within(
            completions.is_power_of_two() && completions >= entries && completions <= 2 * MAX_ENTRIES,
            "room for completions",
        )?;
        within(instance.flags & !FLAGS == 0, "flags")?;
        within(instance.layout.len() == LAYOUT, "layout")?;
        let [.., array, _, _, _, entry] = *instance.layout.as_slice() else {
            return Err("impossible layout".to_owned());
        };
        let size = (u64::from(array) + 4 * u64::from(entries)).max(u64::from(entry) + 16 * u64::from(completions));
        let fields = instance
            .layout
            .iter()
            .all(|at| at.is_multiple_of(4) && u64::from(*at) < size);
        within(fields && size <= 4 << 20, "layout")?;
        // As many have to be made again one after the other.
        within(
            instance.submitted.wrapping_sub(instance.completed) <= 1 << 31,
            "number of completions",
        )?;
        contents(&instance.rings, size)?;
        contents(&instance.queue, 64 * u64::from(entries))?;
        within(
            instance.files.len() <= MAX_REGISTERED && instance.buffers.len() <= MAX_REGISTERED,
            "number of registrations",
        )?;
        for file in instance.files.iter().flatten() {
            in_table(file.index(), &self.manifest.files, "open file")?;
        }
        let within_memory =
            |(address, length): &(u64, u64)| address.checked_add(*length).is_some_and(|end| end <= self.limit);
        within(
            instance.buffers.iter().flatten().all(within_memory),
            "registered memory",
        )
    }
}

fn contents(pieces: &[(u64, Bytes)], size: u64) -> Verdict {
    let fits = |(start, bytes): &(u64, Bytes)| {
        let end = start.checked_add(bytes.0.len() as u64);
        start.is_multiple_of(8) && end.is_some_and(|end| end <= size)
    };
    within(pieces.iter().all(fits), "contents")
}
