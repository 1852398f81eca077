//! Memory, and runs of page data.

use std::ops::Range;

use super::{Check, MAX_FILE, Verdict, blob, in_table, io_uring, within};
use crate::format::{ANCESTOR_STRIDE, PAGE};
use crate::model::*;

/// Whether the range is not empty, on page borders, and inside `outer`.
pub(super) fn is_page_range(start: u64, length: u64, outer: &Range<u64>) -> bool {
    let aligned = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) && length > 0;
    aligned && start >= outer.start && start.checked_add(length).is_some_and(|end| end <= outer.end)
}

impl Check<'_> {
    pub(super) fn address_space(&self, space: &AddressSpace) -> Verdict {
        let manifest = self.manifest;
        blob(&space.layout.auxv, "auxiliary vector")?;
        within(space.lock_future & !6 == 0, "locking of mappings to come")?;
        if let Some(file) = space.executable {
            in_table(file.index(), &manifest.mapped_files, "mapped file")?;
        }
        if let Some(file) = space.saved_executable {
            in_table(file.index(), &manifest.saved_files, "saved file")?;
            let kind = &manifest.saved_files[file.index()].kind;
            within(matches!(kind, SavedFileKind::Memfd { .. }), "executable")?;
        }
        let mut last = 0;
        for mapping in &space.mappings {
            let this = |what: String| format!("mapping {:x}-{:x}: {what}", mapping.start, mapping.end);
            let length = mapping.end.saturating_sub(mapping.start);
            within(is_page_range(mapping.start, length, &(0..self.limit)), "range").map_err(this)?;
            if mapping.start < last {
                return Err(this("it overlaps the one before or is out of order".to_string()));
            }
            last = mapping.end;
            self.mapping(mapping, length).map_err(this)?;
        }
        Ok(())
    }

    pub(super) fn mapping(&self, mapping: &Mapping, length: u64) -> Verdict {
        let manifest = self.manifest;
        within(mapping.protection <= 7, "protection")?;
        let end = mapping.offset.checked_add(length);
        within(
            mapping.offset.is_multiple_of(PAGE) && end.is_some_and(|end| end <= MAX_FILE),
            "offset",
        )?;
        match mapping.kind {
            MappingKind::PrivateFile(id) | MappingKind::SharedFile(id) => {
                in_table(id.index(), &manifest.mapped_files, "mapped file")?;
            }
            MappingKind::SharedSaved(id) | MappingKind::PrivateSaved(id) => {
                in_table(id.index(), &manifest.saved_files, "saved file")?;
            }
            MappingKind::SysvSegment(id) => {
                let segment = manifest.ipc.segments.get(id.index());
                let segment = segment.ok_or_else(|| format!("there is no segment {}", id.0))?;
                let size = segment.size.checked_next_multiple_of(PAGE).unwrap_or(0);
                within(end.is_some_and(|end| end <= size), "part of a segment")?;
            }
            MappingKind::HugePages(size) => {
                let aligned = size.is_power_of_two() && size > PAGE;
                let whole = mapping.start.is_multiple_of(size.max(1)) && length.is_multiple_of(size.max(1));
                within(aligned && whole, "size of huge pages")?;
            }
            MappingKind::SharedSocket(id) | MappingKind::PrivateSocket(id) => {
                in_table(id.index(), &self.manifest.packet_sockets, "packet socket")?;
            }
            MappingKind::IoUring(id) => {
                in_table(id.index(), &self.manifest.io_urings, "io_uring instance")?;
                let sound = mapping.extents.is_empty() && mapping.guards.is_empty();
                within(
                    sound && io_uring::OFFSETS.contains(&mapping.offset),
                    "part of an io_uring instance",
                )?;
            }
            MappingKind::AioRing => {
                let covered: u64 = mapping.extents.iter().map(|extent| extent.length).sum();
                within(covered == length && mapping.offset == 0, "ring of asynchronous I/O")?;
            }
            MappingKind::Anonymous
            | MappingKind::Stack
            | MappingKind::Vdso
            | MappingKind::Vvar
            | MappingKind::VvarClock => {}
        }
        within(mapping.flags.iter().all(|flag| flag.len() <= 16), "flag")?;
        let bounds = mapping.start..mapping.end;
        self.extents(&mapping.extents, &bounds)?;
        let mut last = 0;
        let nodes = mapping.policy.as_ref().map_or(0, |policy| policy.nodes.0.len());
        within(nodes <= 8192, "memory policy")?;
        for (start, length) in &mapping.guards {
            within(is_page_range(*start, *length, &bounds) && *start >= last, "guard pages")?;
            last = start + length;
        }
        Ok(())
    }

    /// Checks runs of saved pages that belong into `bounds`.
    pub(super) fn extents(&self, extents: &[Extent], bounds: &Range<u64>) -> Verdict {
        let mut last = 0;
        for extent in extents {
            let Extent { start, length, offset } = *extent;
            let this = |what: &str| format!("saved pages at {start:x} ({length} bytes) {what}");
            if !is_page_range(start, length, bounds) {
                return Err(this("are not in it"));
            }
            if start < last {
                return Err(this("overlap those before or are out of order"));
            }
            last = start + length;
            let data = self.data_of(offset / ANCESTOR_STRIDE);
            if !is_page_range(offset % ANCESTOR_STRIDE, length, &data) {
                return Err(this(&format!("are not in the image at offset {offset}")));
            }
        }
        Ok(())
    }
}
