//! Huge pages for memory that a restart is about to fill: one page fault for 2 MiB instead of 512.
//!
//! Only for ranges that the image has every page of, so that the job does not grow. The mapping gets no flag, and the
//! kernel may split the pages again: the job sees no difference but in AnonHugePages of smaps.

use cpr_image::model::{Mapping, MappingKind};
use cpr_kernel::batch::Batch;
use cpr_kernel::memory::PAGE;

/// Size of a huge page that one entry of the page table above the last level maps. Where it is larger, nothing is done.
const HUGE: u64 = 2 << 20;
/// With less than this it is not worth a call that has to reach all processors.
const LEAST: u64 = 16 << 20;
const MADV_POPULATE_WRITE: i32 = 23;
const MADV_COLLAPSE: i32 = 25;

/// Whether the administrator lets programs have transparent huge pages
/// (Documentation/admin-guide/mm/transhuge.rst).
pub fn are_allowed() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|text| text.contains("[madvise]") || text.contains("[always]"))
}

/// The ranges of a mapping that huge pages are for: aligned, and the image has every page of them.
pub fn ranges(mapping: &Mapping) -> Vec<(u64, u64)> {
    let suits = mapping.kind == MappingKind::Anonymous && !mapping.flags.iter().any(|flag| flag == "nh");
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
    aligned
        .filter(|(start, end)| end.saturating_sub(*start) >= LEAST)
        .collect()
}

/// Adds the calls that put huge pages into a range that is empty. Where the kernel has none, nothing happens.
pub fn prepare(batch: &mut Batch, start: u64, end: u64) {
    // The kernel puts a huge page in place of a page table that has a page.
    for at in (start..end).step_by(HUGE as usize) {
        batch.call(libc::SYS_madvise, &[at.into(), PAGE.into(), MADV_POPULATE_WRITE.into()]);
    }
    batch.call(
        libc::SYS_madvise,
        &[start.into(), (end - start).into(), MADV_COLLAPSE.into()],
    );
}

#[cfg(test)]
mod tests {
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
        assert_eq!(ranges(&mapping(&[(0, 15 * MIB)])), [], "too little");
        let mut refused = all.clone();
        refused.flags = vec!["nh".to_owned()];
        assert_eq!(ranges(&refused), [], "MADV_NOHUGEPAGE");
        let file = Mapping {
            kind: MappingKind::Stack,
            ..all
        };
        assert_eq!(ranges(&file), [], "not anonymous memory that stays where it is");
    }
}
