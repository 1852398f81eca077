//! Copying pages of a stopped process, or of a copy of it.

use cpr_image::model::{AddressSpace, Extent, Mapping, MappingKind};
use cpr_kernel::memory::{Memory, PAGE_GUARD, PAGE_PRESENT, PageRegion, Pagemap};
use cpr_types::{Context, Result};

use super::plan::Pages;
use crate::freeze::Process;
use crate::live::Place;
use crate::scans::{Found, Scans};
use crate::sink::{PAGE_SIZE, PIECE, PageSink, Part, in_parts};

/// So many bytes are worth a look whether they can be read in the faster way.
const WORTH_ASKING: usize = 64 << 10;

/// Pages of a mapping that are read when the job runs again, from a copy of its memory.
#[derive(Debug)]
pub struct Later {
    /// Index of the mapping in its address space.
    mapping: usize,
    runs: Vec<(u64, u64)>,
    skip_zeros: bool,
}

/// Reads what was left for later.
///
/// # Errors
/// The memory cannot be read, or the image not be written.
pub fn save_later(later: Vec<Later>, memory: &Memory, space: &mut AddressSpace, sink: &mut dyn PageSink) -> Result<()> {
    let mut buffer = Vec::new();
    for Later {
        mapping,
        runs,
        skip_zeros,
    } in later
    {
        let Some(mapping) = space.mappings.get_mut(mapping) else {
            continue;
        };
        let mut extents = std::mem::take(&mut mapping.extents);
        for run in runs {
            let read = |at: u64, piece: &mut [u8]| memory.read(at, piece).is_ok();
            in_parts(run, sink, &read, &mut |at, part, sink| {
                let Some(length) = left_of(part, at, &mut extents) else {
                    return Ok(());
                };
                buffer.resize(length as usize, 0);
                let read = memory.read(at, &mut buffer);
                read.context(|| format!("read {length} bytes at {at:#x} of the copy"))?;
                place(&mut buffer, at, skip_zeros, &mut extents, sink)
            })?;
        }
        mapping.extents = ordered(extents);
    }
    Ok(())
}

/// Places whole pages; gives another buffer for them.
fn place(
    buffer: &mut Vec<u8>,
    at: u64,
    skip_zeros: bool,
    extents: &mut Vec<Extent>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    if skip_zeros && buffer.chunks_exact(PAGE_SIZE).any(is_zero) {
        return append(buffer, at, true, extents, sink);
    }
    let mut start = at;
    *buffer = sink.place_buffer(std::mem::take(buffer), &mut |length, offset| {
        push(extents, start, length as u64, offset);
        start += length as u64;
    })?;
    Ok(())
}

/// Whether a copy that fork(2) makes of the process has these pages, too.
pub(super) fn can_wait(mapping: &Mapping, pages: &Pages, library: bool) -> bool {
    let has = |code: &str| mapping.flags.iter().any(|flag| flag == code);
    // Not copied (MADV_DONTFORK), or emptied (MADV_WIPEONFORK).
    let lost = has("dc") || has("wf");
    // Pages beyond the end of a file would have to be told apart.
    let anonymous = matches!(mapping.kind, MappingKind::Anonymous | MappingKind::Stack);
    matches!(pages, Pages::Own) && !library && anonymous && !lost
}

/// How many bytes of a part at `at` have still to be placed; one that has been is noted.
fn left_of(part: Part, at: u64, extents: &mut Vec<Extent>) -> Option<u64> {
    match part {
        Part::Placed(offset) => {
            push(extents, at, PIECE as u64, offset);
            None
        }
        Part::Left(length) => Some(length),
    }
}

/// `behind`: how much of the file that is mapped privately is behind the beginning of the mapping.
pub(super) fn copy(
    process: &Process,
    mapping: &mut Mapping,
    pages: Pages,
    (library, behind): (bool, Option<u64>),
    scans: &mut Scans<'_>,
    put_off: Option<(&mut Vec<Later>, usize)>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    let Some(space) = &process.space else {
        return Ok(());
    };
    let Found { regions, known } = match pages {
        Pages::None => return Ok(()),
        Pages::All => Found {
            regions: vec![PageRegion {
                start: mapping.start,
                end: mapping.end,
                categories: PAGE_PRESENT,
            }],
            known: Vec::new(),
        },
        Pages::Own => scans.own_pages(mapping.start, mapping.end)?,
    };
    // A page of zeros hides what the file has there.
    let skip_zeros = !library
        && matches!(
            mapping.kind,
            MappingKind::Anonymous | MappingKind::Stack | MappingKind::HugePages(_)
        );
    let mut buffer = Vec::new();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut extents = Vec::new();
    for &(start, end, place) in &known {
        match place {
            Place::At(offset) => push(&mut extents, start, end - start, offset),
            Place::Zeros if skip_zeros => {}
            _ => runs.push((start, end)),
        }
    }
    for region in &regions {
        if region.categories & PAGE_GUARD != 0 {
            mapping.guards.push((region.start, region.end - region.start));
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == region.start => *end = region.end,
            _ => runs.push((region.start, region.end)),
        }
    }
    if let Some((later, index)) = put_off {
        later.push(Later {
            mapping: index,
            runs,
            skip_zeros,
        });
        mapping.extents = extents;
        return Ok(());
    }
    let reader = Reader {
        pid: process.pid,
        memory: &space.memory,
        pagemap: &space.pagemap,
    };
    for run in runs {
        let read = |at: u64, piece: &mut [u8]| reader.read(at, piece).is_ok();
        in_parts(run, sink, &read, &mut |at, part, sink| {
            let Some(length) = left_of(part, at, &mut extents) else {
                return Ok(());
            };
            buffer.resize(length as usize, 0);
            match reader.read(at, &mut buffer) {
                Ok(()) => place(&mut buffer, at, skip_zeros, &mut extents, sink),
                Err(_) if matches!(pages, Pages::All) => readable_pages(process, at, &mut buffer, &mut extents, sink),
                Err(error) => {
                    // Write protection marks pages beyond the end of a mapped file, too: there is nothing in them.
                    let readable = match file_end(mapping, behind) {
                        Some(end) if end < at + length => end.saturating_sub(at),
                        _ => return Err(error).context(|| format!("read {length} bytes at {at:#x}")),
                    };
                    buffer.truncate(readable as usize);
                    space
                        .memory
                        .read(at, &mut buffer)
                        .context(|| format!("read {readable} bytes at {at:#x}"))?;
                    append(&buffer, at, skip_zeros, &mut extents, sink)
                }
            }
        })?;
    }
    mapping.extents = ordered(extents);
    Ok(())
}

/// Reads pages of a process in the fastest way that does not make it grow.
pub struct Reader<'a> {
    /// The process.
    pub pid: i32,
    /// Its memory.
    pub memory: &'a Memory,
    /// Its page table.
    pub pagemap: &'a Pagemap,
}

impl Reader<'_> {
    /// Reads whole pages.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let end = address + buffer.len() as u64;
        let exclusive = buffer.len() >= WORTH_ASKING && self.pagemap.are_exclusive(address, end).unwrap_or(false);
        if exclusive && self.memory.read_pinned(self.pid, address, buffer).is_ok() {
            return Ok(());
        }
        self.memory.read(address, buffer)
    }
}

/// Where the last page of the file lies that is mapped privately here. Truncating a file takes private copies of its
/// pages away as well (truncate_pagecache in mm/truncate.c), so that nothing can be behind it.
fn file_end(mapping: &Mapping, behind: Option<u64>) -> Option<u64> {
    Some(mapping.start + behind?.next_multiple_of(PAGE_SIZE as u64))
}

/// Extents in ascending order, neighbours joined.
fn ordered(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.sort_unstable_by_key(|extent| extent.start);
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        push(&mut joined, extent.start, extent.length, extent.offset);
    }
    joined
}

/// Adds a run of pages, to the last extent where it goes on there.
fn push(extents: &mut Vec<Extent>, start: u64, length: u64, offset: u64) {
    match extents.last_mut() {
        Some(last) if last.start + last.length == start && last.offset + last.length == offset => {
            last.length += length;
        }
        _ => extents.push(Extent { start, length, offset }),
    }
}

/// Pages of a mapping of a deleted file, some of which lie beyond its end.
fn readable_pages(
    process: &Process,
    start: u64,
    buffer: &mut [u8],
    extents: &mut Vec<Extent>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    let Some(space) = &process.space else {
        return Ok(());
    };
    for (index, page) in buffer.chunks_mut(PAGE_SIZE).enumerate() {
        let at = start + (index * PAGE_SIZE) as u64;
        if space.memory.read(at, page).is_ok() {
            append(page, at, true, extents, sink)?;
        }
    }
    Ok(())
}

/// Whether a page is all zeros.
pub fn is_zero(page: &[u8]) -> bool {
    // Compared in words: the optimiser makes vector code of it.
    let (head, words, tail) = (
        &page[..8.min(page.len())],
        page.chunks_exact(32),
        page.chunks_exact(32).remainder(),
    );
    head.iter().all(|&b| b == 0)
        && tail.iter().all(|&b| b == 0)
        && words.into_iter().all(|w| w.iter().fold(0, |all, b| all | b) == 0)
}

/// Appends whole pages, leaving out those of zeros where they need not be kept.
fn append(data: &[u8], start: u64, skip_zeros: bool, extents: &mut Vec<Extent>, sink: &mut dyn PageSink) -> Result<()> {
    let pages = data.len() / PAGE_SIZE;
    let slice = |first: usize, end: usize| &data[first * PAGE_SIZE..end * PAGE_SIZE];
    let mut page = 0;
    while page < pages {
        if skip_zeros && is_zero(slice(page, page + 1)) {
            page += 1;
            continue;
        }
        let first = page;
        page += 1;
        while page < pages && !(skip_zeros && is_zero(slice(page, page + 1))) {
            page += 1;
        }
        let mut at = start + (first * PAGE_SIZE) as u64;
        sink.place(slice(first, page), &mut |length, offset| {
            push(extents, at, length as u64, offset);
            at += length as u64;
        })?;
    }
    Ok(())
}
