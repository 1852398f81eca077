//! Huge pages for memory that a restart fills: one page fault for 2 MiB instead of 512.
//!
//! Only for ranges that the image has every page of, so that the job does not grow. Pages are filled in a staging area
//! that asks for huge pages and then moved to their place, whose mapping gets no flag by that. The kernel may split
//! them again: the job sees no difference but in AnonHugePages of smaps.

use cpr_image::model::{Mapping, MappingKind};
use cpr_kernel::batch::Batch;
use cpr_kernel::page_move;
use cpr_types::{Context, Result};

use super::stub::Workshop;

/// Size of a huge page that one entry of the page table above the last level maps, on x86_64. Where it is another one,
/// pages are moved one by one.
pub const HUGE: u64 = 2 << 20;
/// Bytes of the staging area.
pub const STAGING: u64 = 32 << 20;

/// Whether programs get transparent huge pages that do not ask for them (Documentation/admin-guide/mm/transhuge.rst).
/// Elsewhere the job had none, and small pages come faster ([`super::filling`]).
pub fn are_allowed() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| text.contains("[always]"))
}

/// The ranges of a mapping that huge pages are for: aligned, and the image has every page of them.
pub fn ranges(mapping: &Mapping) -> Vec<(u64, u64)> {
    // One that asks for huge pages gets them anyway.
    let decided = mapping.flags.iter().any(|flag| flag == "nh" || flag == "hg");
    let suits = mapping.kind == MappingKind::Anonymous && !decided;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in mapping.extents.iter().filter(|_| suits) {
        match runs.last_mut() {
            Some((_, end)) if *end == extent.start => *end += extent.length,
            _ => runs.push((extent.start, extent.start + extent.length)),
        }
    }
    let aligned = runs
        .into_iter()
        .map(|(start, end)| (start.next_multiple_of(HUGE), end / HUGE * HUGE));
    aligned.filter(|(start, end)| start < end).collect()
}

/// Has a process make the descriptor that moves pages, and gives its number there; none where the kernel has no such
/// thing (before Linux 6.8), or the process may not have it.
pub fn open(workshop: &Workshop, pid: i32) -> Result<Option<u64>> {
    let mut batch = Batch::new();
    let call = page_move::open_calls(&mut batch);
    let Ok(number) = workshop.run(pid, &batch).and_then(|outcome| {
        let number = outcome.result(call);
        number.context(|| "make a userfaultfd")
    }) else {
        return Ok(None);
    };
    let mut batch = Batch::new();
    page_move::setup_calls(&mut batch, number);
    if workshop.run(pid, &batch).is_ok() {
        return Ok(Some(number));
    }
    close(workshop, pid, number)?;
    Ok(None)
}

/// Has a process close the descriptor.
pub fn close(workshop: &Workshop, pid: i32, number: u64) -> Result<()> {
    let mut batch = Batch::new();
    batch.must(libc::SYS_close, &[number.into()], "close a descriptor");
    workshop.run(pid, &batch).map(drop)
}

/// Adds the calls that make the staging area at an address that is a multiple of [`HUGE`].
pub fn stage(batch: &mut Batch, address: u64) {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    batch.must(
        libc::SYS_mmap,
        &[
            address.into(),
            STAGING.into(),
            protection.into(),
            flags.into(),
            (-1).into(),
            0.into(),
        ],
        "map a place to put huge pages together",
    );
    batch.call(
        libc::SYS_madvise,
        &[address.into(), STAGING.into(), libc::MADV_HUGEPAGE.into()],
    );
}

/// Adds the call that removes the staging area.
pub fn unstage(batch: &mut Batch, address: u64) {
    batch.must(
        libc::SYS_munmap,
        &[address.into(), STAGING.into()],
        "unmap the place where huge pages were put together",
    );
}

#[cfg(test)]
mod tests {
    use cpr_kernel::memory::PAGE;

    use super::*;
    use cpr_image::model::Extent;

    const MIB: u64 = 1 << 20;

    fn mapping(extents: &[(u64, u64)]) -> Mapping {
        Mapping {
            start: 0,
            end: 1 << 40,
            protection: 3,
            kind: MappingKind::Anonymous,
            offset: 0,
            flags: Vec::new(),
            guards: Vec::new(),
            policy: None,
            extents: extents
                .iter()
                .map(|&(start, length)| Extent {
                    start,
                    length,
                    offset: 0,
                })
                .collect(),
        }
    }

    #[test]
    fn huge_pages_are_for_what_is_filled_as_a_whole() {
        let all = mapping(&[(3 * MIB, 9 * MIB), (12 * MIB, 20 * MIB)]);
        assert_eq!(ranges(&all), [(4 * MIB, 32 * MIB)]);
        let holed = mapping(&[(0, 17 * MIB), (17 * MIB + PAGE, 40 * MIB)]);
        assert_eq!(ranges(&holed), [(0, 16 * MIB), (18 * MIB, 56 * MIB)]);
        assert_eq!(ranges(&mapping(&[(MIB, 2 * MIB)])), [], "no whole one");
        let mut refused = all.clone();
        refused.flags = vec!["nh".to_owned()];
        assert_eq!(ranges(&refused), [], "MADV_NOHUGEPAGE");
        refused.flags = vec!["hg".to_owned()];
        assert_eq!(ranges(&refused), [], "MADV_HUGEPAGE: it gets them where it is");
        let file = Mapping {
            kind: MappingKind::Stack,
            ..all
        };
        assert_eq!(ranges(&file), [], "not anonymous memory that stays where it is");
    }
}
