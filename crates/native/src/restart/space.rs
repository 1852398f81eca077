//! Rebuilding the memory of a process in its stub.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cpr_image::Image;
use cpr_image::model::{AddressSpace, Extent, Mapping, MappingKind, MemoryPolicy, Process, Segment};
use cpr_kernel::batch::{Arg, Batch, CallId, Outcome};
use cpr_kernel::memory::PAGE;
use cpr_kernel::page_move;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::pace::{Pace, PageSize};
use super::stub::{Workshop, number};
use super::{aio, huge, inherit};

/// Most bytes one pread(2) is asked for.
const READ_MAX: u64 = 1 << 30;

const MADV_GUARD_INSTALL: i32 = 102;
const MAP_DROPPABLE: i32 = 8;
const MLOCK_ONFAULT: i32 = 1;
const SYS_MSEAL: i64 = 462;
/// PR_SET_MM, PR_SET_MM_MAP and the size of `struct prctl_mm_map`.
const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: i32 = 14;
const MM_MAP_SIZE: usize = 104;

/// Most bytes of page data unpacked at a time.
const WINDOW: u64 = 32 << 20;
/// Memory that can be written to is mapped in pieces of this size.
const GROWN: u64 = 1 << 30;

/// Descriptors, by the numbers they have in every stub.
pub struct Sources<'a> {
    /// The image.
    pub image: &'a Image,
    /// Its file and those of its ancestors.
    pub bodies: &'a [OwnedFd],
    /// A file in memory for page data that cannot be read from an image as they are.
    pub window: &'a File,
    /// Mapped files by id.
    pub mapped: &'a [OwnedFd],
    /// Saved files by id.
    pub saved: &'a [OwnedFd],
    /// Packet sockets by id.
    pub packet_sockets: &'a [OwnedFd],
    /// System V segments, which exist.
    pub segments: &'a [Segment],
    /// The system has huge pages for programs.
    pub huge_pages: bool,
    /// How fast they come.
    pub pace: Mutex<Pace>,
}

impl Sources<'_> {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Builder<'a> {
    workshop: &'a Workshop,
    pid: i32,
    batch: Batch,
    reads: Vec<(CallId, u64)>,
    sources: &'a Sources<'a>,
    /// The descriptor that moves huge pages, for a process that gets some.
    mover: Option<u64>,
    /// Moves of the batch: call, address and length.
    moves: Vec<(CallId, u64, u64)>,
    /// What could not be moved.
    unmoved: Vec<(u64, u64)>,
    /// Compressed page data to be put into the window: position by extent, and length.
    pieces: Vec<(u64, u64)>,
    /// Where in the window each goes.
    places: Vec<u64>,
    /// Bytes of the window that are taken.
    taken: u64,
}

impl Builder<'_> {
    /// Runs what has gathered.
    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let (places, window) = (&self.places, self.sources.window);
        let unpack = |index: usize, done: u64, part: &[u8]| {
            window
                .write_all_at(part, places[index] + done)
                .context(|| "unpack page data into memory")
        };
        self.sources.image.read_pieces(&self.pieces, &unpack)?;
        self.pieces.clear();
        self.places.clear();
        self.taken = 0;
        let outcome = self.workshop.run(self.pid, &batch)?;
        check_reads(self.pid, std::mem::take(&mut self.reads), &outcome)?;
        for (call, address, length) in self.moves.drain(..) {
            if outcome.raw(call) != 0 {
                self.unmoved.push((address, length));
            }
        }
        Ok(())
    }

    /// Runs what has gathered if the arena is getting full.
    fn make_room(&mut self) -> Result<()> {
        if self.batch.size() > self.workshop.arena.capacity() / 2 {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Adds the calls that fill memory with page data.
    fn fill(&mut self, extent: &Extent, place: &str) -> Result<()> {
        let mut done = 0;
        while done < extent.length {
            let offset = extent.offset + done;
            let mut bytes = (extent.length - done).min(READ_MAX);
            let (fd, at) = match self.sources.image.locate(offset)? {
                Some((body, at)) => (self.sources.bodies.get(body).map_or(-1, number), at),
                None => {
                    if self.taken == WINDOW {
                        self.flush()?;
                    }
                    bytes = bytes.min(WINDOW - self.taken);
                    self.pieces.push((offset, bytes));
                    self.places.push(self.taken);
                    self.taken += bytes;
                    (number(self.sources.window), self.taken - bytes)
                }
            };
            let call = self.batch.must(
                libc::SYS_pread64,
                &[fd.into(), (extent.start + done).into(), bytes.into(), at.into()],
                format!("fill {place}"),
            );
            self.reads.push((call, bytes));
            done += bytes;
            self.make_room()?;
        }
        Ok(())
    }

    /// Fills a mapping, parts of it with huge pages.
    fn fill_mapping(&mut self, mapping: &Mapping, place: &str) -> Result<()> {
        let ranges = match self.mover {
            Some(mover) => {
                let ranges = huge::ranges(mapping);
                if !ranges.is_empty() {
                    self.fill_huge(mapping, &ranges, mover, place)?;
                }
                ranges
            }
            None => Vec::new(),
        };
        for extent in &outside(&mapping.extents, &ranges) {
            self.fill(extent, place)?;
        }
        Ok(())
    }

    /// Fills ranges that the image has every page of, with huge pages as far as that works and is faster.
    fn fill_huge(&mut self, mapping: &Mapping, ranges: &[(u64, u64)], mover: u64, place: &str) -> Result<()> {
        // What has gathered before takes its own time.
        self.flush()?;
        let staging = self.workshop.staging;
        huge::stage(&mut self.batch, staging);
        for &(start, end) in ranges {
            let mut at = start;
            while at < end {
                let (pages, most) = self.sources.pace().next();
                let length = most.min(end - at);
                let begun = Instant::now();
                match pages {
                    PageSize::Huge => self.fill_piece(mapping, at, length, mover, place)?,
                    PageSize::Small => self.fill_in_place(mapping, at, length, place)?,
                }
                self.sources.pace().note(pages, length, begun.elapsed());
                at += length;
            }
        }
        huge::unstage(&mut self.batch, staging);
        self.flush()
    }

    /// Fills as many bytes as the staging area has at most with huge pages.
    fn fill_piece(&mut self, mapping: &Mapping, at: u64, length: u64, mover: u64, place: &str) -> Result<()> {
        let staging = self.workshop.staging;
        for extent in inside(&mapping.extents, at, at + length) {
            let there = Extent {
                start: staging + (extent.start - at),
                ..extent
            };
            self.fill(&there, place)?;
        }
        page_move::register_call(&mut self.batch, mover, at, at + length);
        let call = page_move::move_call(&mut self.batch, mover, at, staging, length);
        self.moves.push((call, at, length));
        page_move::unregister_call(&mut self.batch, mover, at, at + length);
        self.flush()?;
        for (at, length) in std::mem::take(&mut self.unmoved) {
            self.fill_in_place(mapping, at, length, place)?;
        }
        Ok(())
    }

    fn fill_in_place(&mut self, mapping: &Mapping, at: u64, length: u64, place: &str) -> Result<()> {
        for extent in inside(&mapping.extents, at, at + length) {
            self.fill(&extent, place)?;
        }
        self.flush()
    }

    fn advise(&mut self, mapping: &Mapping, advice: i32) {
        self.batch.call(
            libc::SYS_madvise,
            &[
                mapping.start.into(),
                (mapping.end - mapping.start).into(),
                advice.into(),
            ],
        );
    }

    fn protect(&mut self, mapping: &Mapping) {
        let wanted = mapping.protection as i32 & (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        self.batch.must(
            libc::SYS_mprotect,
            &[
                mapping.start.into(),
                (mapping.end - mapping.start).into(),
                wanted.into(),
            ],
            format!("protect memory at {:#x}", mapping.start),
        );
    }
}

/// Compares how much of the image was asked for, and how much came.
fn check_reads(pid: i32, reads: Vec<(CallId, u64)>, outcome: &Outcome) -> Result<()> {
    match reads.iter().all(|(call, length)| outcome.raw(*call) as u64 == *length) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Damaged,
            format!("process {pid}: the image gave too few bytes of memory"),
        )),
    }
}

/// What a process is at that rebuilds its memory: the last calls, which others can do theirs beside.
#[must_use]
pub struct UnderWay {
    pid: i32,
    batch: Batch,
    reads: Vec<(CallId, u64)>,
}

impl UnderWay {
    /// Waits for the end.
    ///
    /// # Errors
    /// As [`rebuild`].
    pub fn finish(self, workshop: &Workshop) -> Result<()> {
        let outcome = workshop.finish(self.pid, &self.batch)?;
        check_reads(self.pid, self.reads, &outcome)
    }
}

fn has(mapping: &Mapping, flag: &str) -> bool {
    mapping.flags.iter().any(|f| f == flag)
}

/// The parts of extents between two addresses.
fn inside(extents: &[Extent], start: u64, end: u64) -> Vec<Extent> {
    let first = extents.partition_point(|extent| extent.start + extent.length <= start);
    let within = extents[first..].iter().take_while(|extent| extent.start < end);
    let cut = within.map(|extent| {
        let (from, to) = (extent.start.max(start), (extent.start + extent.length).min(end));
        Extent {
            start: from,
            length: to - from,
            offset: extent.offset + (from - extent.start),
        }
    });
    cut.collect()
}

/// The parts of extents outside some ranges, which ascend.
fn outside(extents: &[Extent], ranges: &[(u64, u64)]) -> Vec<Extent> {
    let mut parts = Vec::new();
    let mut at = 0;
    for &(start, end) in ranges.iter().chain(&[(u64::MAX, u64::MAX)]) {
        parts.extend(inside(extents, at, start));
        at = end;
    }
    parts
}

/// Maps and fills everything but the vdso. Gives what the process is still at, if it is.
///
/// # Errors
/// What cannot be mapped, by address.
///
/// `born_with` is the address space of an ancestor, if it was born with that one's memory. Mappings that `stays_empty`
/// tells of get no pages here.
pub fn rebuild(
    workshop: &Workshop,
    process: &Process,
    space: &AddressSpace,
    born_with: Option<&AddressSpace>,
    stays_empty: fn(&Mapping) -> bool,
    sources: &Sources<'_>,
) -> Result<Option<UnderWay>> {
    let mut builder = Builder {
        workshop,
        pid: process.pid,
        mover: None,
        moves: Vec::new(),
        unmoved: Vec::new(),
        batch: Batch::new(),
        reads: Vec::new(),
        sources,
        pieces: Vec::new(),
        places: Vec::new(),
        taken: 0,
    };
    let filled = |mapping: &&Mapping| !stays_empty(mapping);
    let mut all = space.mappings.iter().filter(filled);
    if sources.huge_pages && !process.thp_disabled && all.any(|mapping| !huge::ranges(mapping).is_empty()) {
        builder.mover = huge::open(workshop, process.pid)?;
    }
    let inherited = |mapping: &Mapping| born_with.and_then(|ancestor| inherit::origin(ancestor, mapping));
    if let Some(ancestor) = born_with {
        let kept: HashSet<u64> = space
            .mappings
            .iter()
            .filter(|m| inherited(m).is_some())
            .map(|m| m.start)
            .collect();
        for mapping in ancestor.mappings.iter().filter(|m| !kept.contains(&m.start)) {
            if !matches!(
                mapping.kind,
                MappingKind::Vdso | MappingKind::Vvar | MappingKind::VvarClock
            ) {
                let length = mapping.end - mapping.start;
                builder.batch.must(
                    libc::SYS_munmap,
                    &[mapping.start.into(), length.into()],
                    format!("unmap inherited memory at {:#x}", mapping.start),
                );
                builder.make_room()?;
            }
        }
    }
    for mapping in &space.mappings {
        match inherited(mapping) {
            Some(origin) => {
                let differences = inherit::differences(origin, mapping, sources.image)?;
                adopt(&mut builder, mapping, origin, &differences)?;
            }
            None => map(&mut builder, mapping, stays_empty(mapping), sources)?,
        }
        builder.make_room()?;
    }
    if let Some(mover) = builder.mover {
        builder.flush()?;
        return huge::close(workshop, process.pid, mover).map(|()| None);
    }
    if !builder.pieces.is_empty() || builder.batch.is_empty() {
        return builder.flush().map(|()| None);
    }
    let Builder { batch, reads, .. } = builder;
    let pid = process.pid;
    workshop.start(pid, &batch)?;
    Ok(Some(UnderWay { pid, batch, reads }))
}

/// Makes a mapping that was inherited from an ancestor the process's own.
fn adopt(
    builder: &mut Builder<'_>,
    mapping: &Mapping,
    origin: &Mapping,
    differences: &inherit::Differences,
) -> Result<()> {
    let place = format!("memory at {:#x}", mapping.start);
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let wanted = mapping.protection as i32 & all;
    let mut now = origin.protection as i32 & all;
    let mut protect = |builder: &mut Builder<'_>, protection: i32| {
        if now != protection {
            builder.batch.must(
                libc::SYS_mprotect,
                &[
                    mapping.start.into(),
                    (mapping.end - mapping.start).into(),
                    protection.into(),
                ],
                format!("protect {place}"),
            );
            now = protection;
        }
    };
    for &(start, length) in &differences.drops {
        builder.batch.must(
            libc::SYS_madvise,
            &[start.into(), length.into(), libc::MADV_DONTNEED.into()],
            format!("drop pages of {place}"),
        );
        builder.make_room()?;
    }
    if mapping.policy != origin.policy {
        let default = MemoryPolicy::default();
        bind_memory(builder, mapping, mapping.policy.as_ref().or(Some(&default)));
    }
    if !differences.fills.is_empty() {
        protect(builder, libc::PROT_READ | libc::PROT_WRITE);
    }
    for extent in &differences.fills {
        builder.fill(extent, &place)?;
    }
    protect(builder, wanted);
    Ok(())
}

fn map<'a>(builder: &mut Builder<'a>, mapping: &Mapping, stays_empty: bool, sources: &'a Sources<'a>) -> Result<()> {
    let damaged = || {
        Error::new(
            ErrorKind::Damaged,
            format!("mapping at {:#x} has no file", mapping.start),
        )
    };
    let mapped = |index: usize| sources.mapped.get(index).map(number).ok_or_else(damaged);
    let saved = |index: usize| sources.saved.get(index).map(number).ok_or_else(damaged);
    let socket = |index: usize| sources.packet_sockets.get(index).map(number).ok_or_else(damaged);
    let mut place = format!("memory at {:#x}", mapping.start);
    let private_anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let (mut flags, fd) = match mapping.kind {
        MappingKind::Vdso | MappingKind::Vvar | MappingKind::VvarClock => return Ok(()),
        MappingKind::Anonymous => (private_anonymous, -1),
        MappingKind::Stack => (private_anonymous | libc::MAP_GROWSDOWN, -1),
        MappingKind::PrivateFile(id) => (libc::MAP_PRIVATE, mapped(id.index())?),
        MappingKind::SharedFile(id) => (libc::MAP_SHARED, mapped(id.index())?),
        MappingKind::PrivateSaved(id) => (libc::MAP_PRIVATE, saved(id.index())?),
        MappingKind::SharedSaved(id) => (libc::MAP_SHARED, saved(id.index())?),
        MappingKind::PrivateSocket(id) => (libc::MAP_PRIVATE, socket(id.index())?),
        MappingKind::SharedSocket(id) => (libc::MAP_SHARED, socket(id.index())?),
        MappingKind::HugePages(size) => {
            let size = (size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT;
            place += " in huge pages (see vm.nr_hugepages)";
            (private_anonymous | libc::MAP_HUGETLB | size, -1)
        }
        MappingKind::SysvSegment(id) => {
            let segment = sources.segments.get(id.index()).ok_or_else(damaged)?;
            attach(builder, mapping, segment)?;
            return finish_mapping(builder, mapping);
        }
        // A place is kept for it until there are threads.
        MappingKind::IoUring(_) => (private_anonymous, -1),
        MappingKind::AioRing => {
            // The room it takes at first may be that of the next mapping.
            builder.flush()?;
            aio::restore(builder.workshop, builder.pid, mapping, sources)?;
            if mapping.protection as i32 != libc::PROT_READ | libc::PROT_WRITE {
                builder.protect(mapping);
            }
            return finish_mapping(builder, mapping);
        }
    };
    if has(mapping, "dp") {
        flags = libc::MAP_ANONYMOUS | MAP_DROPPABLE;
    }
    if has(mapping, "nr") {
        flags |= libc::MAP_NORESERVE;
    }
    let wanted = mapping.protection as i32 & (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    let filled = !mapping.extents.is_empty() && !stays_empty;
    let first = if filled {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        wanted
    };
    // What is larger than the machine's memory has grown bit by bit, and would be refused in one piece (proc(5),
    // overcommit_memory). The kernel makes one mapping of neighbours.
    let piece = match mapping.kind {
        MappingKind::Anonymous if flags == private_anonymous && first & libc::PROT_WRITE != 0 => GROWN,
        _ => mapping.end - mapping.start,
    };
    let (mut start, mut offset) = (mapping.start, mapping.offset);
    while start < mapping.end {
        builder.make_room()?;
        let length = piece.min(mapping.end - start);
        builder.batch.must(
            libc::SYS_mmap,
            &[
                start.into(),
                length.into(),
                first.into(),
                (flags | libc::MAP_FIXED_NOREPLACE).into(),
                fd.into(),
                offset.into(),
            ],
            format!("map {place}"),
        );
        (start, offset) = (start.saturating_add(length), offset.saturating_add(length));
    }
    bind_memory(builder, mapping, mapping.policy.as_ref());
    if has(mapping, "hg") {
        builder.advise(mapping, libc::MADV_HUGEPAGE);
    }
    if has(mapping, "nh") {
        builder.advise(mapping, libc::MADV_NOHUGEPAGE);
    }
    if filled {
        builder.fill_mapping(mapping, &place)?;
    }
    if first != wanted {
        builder.protect(mapping);
    }
    match mapping.kind {
        MappingKind::IoUring(_) => Ok(()),
        _ => finish_mapping(builder, mapping),
    }
}

/// Tells the kernel which memory nodes a mapping's pages shall be on, before it has any. Where a node is not there, the
/// pages are where the kernel puts them.
fn bind_memory(builder: &mut Builder<'_>, mapping: &Mapping, policy: Option<&MemoryPolicy>) {
    let Some(policy) = policy else {
        return;
    };
    let mask = builder.batch.data(&policy.nodes.0);
    builder.batch.call(
        libc::SYS_mbind,
        &[
            mapping.start.into(),
            (mapping.end - mapping.start).into(),
            policy.mode.into(),
            mask,
            (policy.nodes.0.len() * 8).into(),
            Arg::from(0),
        ],
    );
}

/// Attaches a System V segment, or the part of one that is left.
fn attach(builder: &mut Builder<'_>, mapping: &Mapping, segment: &Segment) -> Result<()> {
    let (length, place) = (mapping.end - mapping.start, format!("memory at {:#x}", mapping.start));
    let mut flags = if has(mapping, "mw") { 0 } else { libc::SHM_RDONLY };
    if mapping.protection & 4 != 0 {
        flags |= libc::SHM_EXEC;
    }
    let whole = segment.size.next_multiple_of(segment.huge_pages.max(PAGE));
    let what = format!(
        "attach System V segment {} at {:#x}",
        segment.identity.id, mapping.start
    );
    let call = |batch: &mut Batch, address: u64| {
        let arguments = [segment.identity.id.into(), address.into(), flags.into()];
        batch.must(libc::SYS_shmat, &arguments, what.clone())
    };
    if mapping.offset == 0 && length == whole {
        call(&mut builder.batch, mapping.start);
    } else {
        // It can be attached only as a whole: somewhere else, from where the part moves to its place.
        builder.flush()?;
        let mut batch = Batch::new();
        let attached = call(&mut batch, 0);
        let outcome = builder.workshop.run(builder.pid, &batch)?;
        let from = outcome.result(attached).context(|| what.clone())?;
        builder.batch.must(
            libc::SYS_mremap,
            &[
                (from + mapping.offset).into(),
                length.into(),
                length.into(),
                (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).into(),
                mapping.start.into(),
            ],
            format!("move {place}"),
        );
        for (start, end) in [(0, mapping.offset), (mapping.offset + length, whole)] {
            if start < end {
                let arguments = [(from + start).into(), (end - start).into()];
                builder
                    .batch
                    .must(libc::SYS_munmap, &arguments, "unmap the rest of a segment");
            }
        }
        // The room it took may be that of the next mapping.
        builder.flush()?;
    }
    builder.protect(mapping);
    bind_memory(builder, mapping, mapping.policy.as_ref());
    Ok(())
}

/// What the kernel is told of a mapping with madvise(2).
pub fn advices(mapping: &Mapping) -> impl Iterator<Item = i32> {
    let all = [
        ("dc", libc::MADV_DONTFORK),
        ("dd", libc::MADV_DONTDUMP),
        ("wf", libc::MADV_WIPEONFORK),
        ("mg", libc::MADV_MERGEABLE),
        ("sr", libc::MADV_SEQUENTIAL),
        ("rr", libc::MADV_RANDOM),
    ];
    all.into_iter()
        .filter(|(flag, _)| has(mapping, flag))
        .map(|(_, advice)| advice)
}

/// Everything about a mapping that is set when it is there with its contents.
fn finish_mapping(builder: &mut Builder<'_>, mapping: &Mapping) -> Result<()> {
    let (length, place) = (mapping.end - mapping.start, format!("memory at {:#x}", mapping.start));
    for &(start, length) in &mapping.guards {
        builder.batch.must(
            libc::SYS_madvise,
            &[start.into(), length.into(), MADV_GUARD_INSTALL.into()],
            format!("guard {place}"),
        );
        builder.make_room()?;
    }
    for advice in advices(mapping) {
        builder.advise(mapping, advice);
    }
    if has(mapping, "lo") {
        let on_fault = if has(mapping, "lf") { MLOCK_ONFAULT } else { 0 };
        builder.batch.must(
            libc::SYS_mlock2,
            &[mapping.start.into(), length.into(), on_fault.into()],
            format!("lock {place} into RAM (see `ulimit -l`)"),
        );
    }
    if has(mapping, "sl") {
        builder.batch.must(
            SYS_MSEAL,
            &[mapping.start.into(), length.into(), Arg::from(0)],
            format!("seal {place}"),
        );
    }
    Ok(())
}

/// Adds: the vdso to its place, bounds of the address space, executable link. The executable's descriptor must still
/// be open in the stub. Must be the last use of the parked vdso.
pub fn finish(workshop: &Workshop, space: &AddressSpace, sources: &Sources<'_>, batch: &mut Batch) -> Result<()> {
    let layout = &space.layout;
    let words = [
        layout.start_code,
        layout.end_code,
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.brk,
        layout.start_stack,
        layout.arg_start,
        layout.arg_end,
        layout.env_start,
        layout.env_end,
    ];
    let mut raw = [0u8; MM_MAP_SIZE];
    for (slot, word) in raw.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_ne_bytes());
    }
    let executable = space
        .executable
        .and_then(|id| sources.mapped.get(id.index()))
        .or_else(|| space.saved_executable.and_then(|id| sources.saved.get(id.index())))
        .map_or(-1, number);
    raw[96..100].copy_from_slice(&(layout.auxv.0.len() as u32).to_ne_bytes());
    raw[100..104].copy_from_slice(&executable.to_ne_bytes());
    let map = batch.data(&raw);
    let auxv = batch.data(&layout.auxv.0);
    batch.point(map, 88, auxv);
    batch.must(
        libc::SYS_prctl,
        &[
            PR_SET_MM.into(),
            PR_SET_MM_MAP.into(),
            map,
            MM_MAP_SIZE.into(),
            Arg::from(0),
        ],
        "set the bounds of the address space",
    );
    if space.lock_future != 0 {
        batch.must(
            libc::SYS_mlockall,
            &[space.lock_future.into()],
            "lock mappings to come into RAM (see `ulimit -l`)",
        );
    }
    for part in workshop.parked.iter().filter(|_| !workshop.keeps_vdso) {
        let target = space.mappings.iter().find(|m| m.kind == part.kind);
        match target {
            Some(target) => batch.must(
                libc::SYS_mremap,
                &[
                    part.address.into(),
                    part.length.into(),
                    part.length.into(),
                    (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).into(),
                    target.start.into(),
                ],
                "move the vdso to its place",
            ),
            None => batch.must(
                libc::SYS_munmap,
                &[part.address.into(), part.length.into()],
                "unmap the vdso",
            ),
        };
    }
    Ok(())
}
