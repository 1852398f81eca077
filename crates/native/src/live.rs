//! Copying memory while the job runs, so that the stop need not last as long as copying does.
//!
//! Writes are tracked by asynchronous write protection. In rounds, all pages written since the round before are
//! protected and copied, as long as that makes what is left less. When the job is stopped at last, only pages written
//! since the last round are copied ([`Copied::find`] gives the rest); whatever is not tracked is copied whole.
//!
//! The order makes it exact: a page is protected before it is copied, so a write during or after the copy marks it.
//!
//! Tracking can go on from one checkpoint to the next. The last look while the job is stopped protects what it finds,
//! so what is written later is what the next image has to have; everything else is in the one before ([`Earlier`]).
//! The kernel tells whether a mapping has been tracked all the time: a mapping that is new or moved, or that belongs to
//! a program started or a process forked since, is not, even where it has the place and the PID of one that was.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Instant;

use cpr_image::model::{AddressSpace, Ancestor, ByteString, Bytes, Mapping};
use cpr_image::{ANCESTOR_STRIDE, Image};
use cpr_kernel::memory::{
    Memory, PAGE, PAGE_FILE, PAGE_GUARD, PAGE_PFNZERO, PAGE_PRESENT, PAGE_SWAPPED, PAGE_WPALLOWED, PAGE_WRITTEN,
    PageRegion, Pagemap, ScanFilter,
};
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir};
use cpr_kernel::write_tracking::{self, WriteTracker};
use cpr_types::{Context, Result};

use crate::aio;
use crate::freeze::{self, Frozen, Process};
use crate::memory::{Reader, is_zero};
use crate::places::{ELSEWHERE, NONE, Places, UNKNOWN, ZEROS};
use crate::sink::{PAGE_SIZE, PIECE, PageSink, Part, in_parts};
use crate::userfault;

/// Most rounds of copying.
const ROUNDS: usize = 6;
/// Pages left at which another round is not worth it.
const FEW: u64 = 64;
/// Pages that are there in some way. Only these are protected: for the others the kernel would have to make page
/// tables, gigabytes of them where a program has reserved terabytes. A page that comes later is not protected, so it is
/// found to be written.
pub const HERE: u64 = PAGE_PRESENT | PAGE_SWAPPED | PAGE_GUARD;

/// A mapping that is tracked, and where the last copies of its pages are.
#[derive(Debug)]
struct Area {
    end: u64,
    places: Places,
}

/// A process whose writes are tracked from one checkpoint to the next, by a userfaultfd of its own.
#[derive(Debug)]
pub struct Tracked {
    /// PID in its own namespace.
    pub pid: i32,
    /// Start time, clock ticks since boot.
    pub start: u64,
    /// Holds the tracking up.
    pub descriptor: OwnedFd,
}

/// The image before, after which the writes of these processes have been tracked.
#[derive(Debug)]
pub struct Earlier {
    /// Its absolute path.
    pub path: PathBuf,
    /// The image.
    pub image: Image,
    /// Processes.
    pub processes: Vec<Tracked>,
}

/// What an image may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Basis {
    /// No other image.
    #[default]
    Full,
    /// The last full one.
    SinceFull,
    /// The last one, and what that refers to.
    SinceLast,
}

/// Most images one refers to: at a restart each is an open file.
const LONGEST_CHAIN: usize = 255;

/// Page data of earlier images that a new one refers to.
#[derive(Debug, Default)]
pub struct Known {
    /// Images referred to.
    pub ancestors: Vec<Ancestor>,
    /// For the earlier image and its ancestors: what they are in the new one.
    numbers: Vec<Option<u64>>,
    spaces: HashMap<i32, AddressSpace>,
}

impl Known {
    /// What a new image with this basis can refer to.
    pub fn new(earlier: &Earlier, basis: Basis) -> Self {
        let manifest = earlier.image.manifest();
        let own = Ancestor {
            id: Bytes(earlier.image.id().0.to_vec()),
            root_hash: Bytes(earlier.image.root_hash().to_vec()),
            path: ByteString(earlier.path.as_os_str().as_bytes().to_vec()),
            data_bytes: earlier.image.data_bytes(),
        };
        let mut chain = vec![own];
        chain.extend(manifest.ancestors.iter().cloned());
        // The last one has no ancestors, so it is full.
        let first = match basis {
            Basis::SinceLast if chain.len() <= LONGEST_CHAIN => 0,
            Basis::SinceFull => chain.len() - 1,
            _ => chain.len(),
        };
        let numbers = (0..chain.len()).map(|index| index.checked_sub(first).map(|n| n as u64 + 1));
        let spaces = manifest.processes.iter().filter_map(|process| {
            let space = manifest.address_spaces.get(process.address_space?.index())?;
            Some((process.pid, space.clone()))
        });
        Known {
            numbers: numbers.collect(),
            spaces: spaces.collect(),
            ancestors: chain.split_off(first),
        }
    }

    /// Where the pages from `start` to `end` of a process are, if they have not been written since.
    fn places(&self, pid: i32, start: u64, end: u64) -> Places {
        let mappings = self.spaces.get(&pid).map_or(&[][..], |space| &space.mappings);
        let is_in = |mapping: &Mapping| mapping.start <= start && end <= mapping.end;
        let mut places = Places::new(if mappings.iter().any(is_in) { NONE } else { UNKNOWN });
        // The part of a range that is in this mapping, as numbers of pages.
        let part = |from: u64, length: u64| {
            let (from, to) = (from.max(start), (from + length).min(end));
            (from < to).then(|| ((from - start) / PAGE, (to - from) / PAGE, from))
        };
        for mapping in mappings.iter().filter(|m| m.start < end && m.end > start) {
            for &(address, length) in &mapping.guards {
                if let Some((first, count, _)) = part(address, length) {
                    places.fill(first, count, UNKNOWN);
                }
            }
            for extent in &mapping.extents {
                let Some((first, count, from)) = part(extent.start, extent.length) else {
                    continue;
                };
                let number = self.numbers.get((extent.offset / ANCESTOR_STRIDE) as usize);
                let inside = extent.offset % ANCESTOR_STRIDE + (from - extent.start);
                match number.copied().flatten() {
                    Some(number) => places.note(first, count, number * ANCESTOR_STRIDE + inside),
                    None => places.fill(first, count, ELSEWHERE),
                }
            }
        }
        places
    }
}

/// What has been copied of one process.
#[derive(Debug)]
pub struct Copied {
    pid: i32,
    start: u64,
    memory: Memory,
    pagemap: Pagemap,
    areas: BTreeMap<u64, Area>,
    /// Dropping it ends the tracking.
    tracker: WriteTracker,
    /// Tracking is to go on after the checkpoint.
    pub keep: bool,
}

/// Where the copy of a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this position in the image.
    At(u64),
    /// Nowhere: it is all zeros.
    Zeros,
    /// Nowhere: the process has no page of its own there.
    Untouched,
    /// It has not been looked at.
    Unknown,
}

impl Copied {
    fn new(proc: &ProcDir, start: u64, tracker: WriteTracker) -> Result<Self> {
        let pid = proc.pid();
        Ok(Copied {
            pid,
            start,
            memory: Memory::open(proc.as_fd()).context(|| format!("open /proc/{pid}/mem"))?,
            pagemap: Pagemap::open(proc.as_fd()).context(|| format!("open /proc/{pid}/pagemap"))?,
            areas: BTreeMap::new(),
            tracker,
            keep: false,
        })
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The copies of the pages from `address` on, up to `end`: how far the answer holds, and where they lie one after
    /// the other. Valid only for pages that the kernel does not report as written.
    pub fn find(&self, address: u64, end: u64) -> (u64, Place) {
        let Some((start, area)) = self
            .areas
            .range(..=address)
            .next_back()
            .filter(|(_, area)| address < area.end)
        else {
            // Nothing tracked up to the next area.
            let next = self.areas.range(address..).next().map_or(end, |(start, _)| *start);
            return (next.min(end), Place::Unknown);
        };
        let end = end.min(area.end);
        let (length, first) = area.places.run((address - start) / PAGE, (end - start) / PAGE);
        let place = match first {
            NONE => Place::Untouched,
            ZEROS => Place::Zeros,
            UNKNOWN | ELSEWHERE => Place::Unknown,
            offset => Place::At(offset),
        };
        (address + length * PAGE, place)
    }

    /// Protects and copies everything written since the last round; gives the number of pages.
    fn round(&mut self, sink: &mut dyn PageSink) -> Result<u64> {
        let mut pages = 0;
        let mut buffer = Vec::new();
        let reader = Reader {
            pid: self.pid,
            memory: &self.memory,
            pagemap: &self.pagemap,
        };
        let filter = ScanFilter {
            all: PAGE_WRITTEN | PAGE_WPALLOWED,
            any: HERE,
            protect: true,
            ..ScanFilter::default()
        };
        if let Some((range, length)) = whole(&self.areas) {
            let mut regions = Vec::new();
            // A mapping that has gone or was replaced is found not to be tracked when the job has stopped.
            if self.pagemap.scan_written(range, length, filter, &mut regions).is_err() {
                self.areas.values_mut().for_each(|area| area.places.forget());
                return Ok(0);
            }
            for region in regions {
                let mut at = region.start;
                // One that begins before this region may reach into it.
                let first = self.areas.range(..=at).next_back().map_or(at, |(&start, _)| start);
                for (&start, area) in self.areas.range_mut(first..region.end) {
                    let piece = PageRegion {
                        start: at.max(start),
                        end: region.end.min(area.end),
                        ..region
                    };
                    if piece.start >= piece.end {
                        continue;
                    }
                    at = piece.end;
                    if region.categories & (PAGE_FILE | PAGE_PFNZERO | PAGE_GUARD) != 0 {
                        let guarded = region.categories & PAGE_GUARD != 0;
                        let (first, count) = ((piece.start - start) / PAGE, (piece.end - piece.start) / PAGE);
                        area.places.fill(first, count, if guarded { UNKNOWN } else { NONE });
                        continue;
                    }
                    pages += (piece.end - piece.start) / PAGE;
                    copy(&reader, start, area, piece, &mut buffer, sink)?;
                }
            }
        }
        Ok(pages)
    }

    /// Copies what has not been written since an image that is not to be referred to.
    fn copy_elsewhere(&mut self, sink: &mut dyn PageSink) -> Result<()> {
        let mut buffer = Vec::new();
        let reader = Reader {
            pid: self.pid,
            memory: &self.memory,
            pagemap: &self.pagemap,
        };
        for (&start, area) in &mut self.areas {
            let mut page = 0;
            while let Some((first, count)) = area.places.next(page, ELSEWHERE) {
                page = first + count;
                let region = PageRegion {
                    start: start + first * PAGE,
                    end: start + page * PAGE,
                    categories: 0,
                };
                copy(&reader, start, area, region, &mut buffer, sink)?;
            }
        }
        Ok(())
    }

    /// Lets the tracking go on after the checkpoint.
    pub fn into_tracked(self) -> Tracked {
        Tracked {
            pid: self.pid,
            start: self.start,
            descriptor: self.tracker.into_fd(),
        }
    }
}

/// Takes up the tracking of processes that are still the same.
pub fn take_up(processes: Vec<Tracked>) -> Vec<Copied> {
    let same = |tracked: Tracked| {
        let proc = ProcDir::open_living(tracked.pid).ok()?;
        let start = proc.stat().ok()?.starttime;
        if start != tracked.start {
            return None;
        }
        Copied::new(&proc, start, WriteTracker::new(tracked.descriptor)).ok()
    };
    processes.into_iter().filter_map(same).collect()
}

fn copy(
    reader: &Reader<'_>,
    start: u64,
    area: &mut Area,
    region: PageRegion,
    buffer: &mut Vec<u8>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    let places = &mut area.places;
    let read = |at: u64, piece: &mut [u8]| reader.read(at, piece).is_ok();
    in_parts((region.start, region.end), sink, &read, &mut |at, part, sink| {
        let first = (at - start) / PAGE;
        match part {
            Part::Placed(offset) => {
                places.note(first, PIECE as u64 / PAGE, offset);
                Ok(())
            }
            Part::Left(length) => copy_part(reader, at, first, length, places, buffer, sink),
        }
    })
}

/// Copies so many bytes at `at`, where page number `first` of the mapping is.
fn copy_part(
    reader: &Reader<'_>,
    at: u64,
    first: u64,
    length: u64,
    places: &mut Places,
    buffer: &mut Vec<u8>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    buffer.resize(length as usize, 0);
    if reader.read(at, buffer).is_err() {
        // It changed under our hands: left to the stop.
        places.fill(first, length / PAGE, UNKNOWN);
        return Ok(());
    }
    let mut page = first;
    if !buffer.chunks_exact(PAGE_SIZE).any(is_zero) {
        *buffer = sink.place_buffer(std::mem::take(buffer), &mut |length, offset| {
            page = note(places, page, length, offset);
        })?;
        return Ok(());
    }
    let pages = buffer.len() / PAGE_SIZE;
    let zero = |index: usize| is_zero(&buffer[index * PAGE_SIZE..(index + 1) * PAGE_SIZE]);
    let mut index = 0;
    while index < pages {
        let from = index;
        let is_empty = zero(from);
        while index < pages && zero(index) == is_empty {
            index += 1;
        }
        page = first + from as u64;
        if is_empty {
            places.fill(page, (index - from) as u64, ZEROS);
            continue;
        }
        sink.place(&buffer[from * PAGE_SIZE..index * PAGE_SIZE], &mut |length, offset| {
            page = note(places, page, length, offset);
        })?;
    }
    Ok(())
}

/// Notes where the next pages are, from number `page` on; gives the number of the one after them.
fn note(places: &mut Places, page: u64, length: usize, offset: u64) -> u64 {
    let count = length as u64 / PAGE;
    places.note(page, count, offset);
    page + count
}

/// Makes the tracking descriptors in a stopped job, for processes that have none and where it is `wanted`. A process in
/// which that fails is left out: it is copied whole.
pub fn track(frozen: &mut Frozen, tracked: &mut Vec<Copied>, wanted: impl Fn(i32) -> bool, deadline: Instant) {
    let mut chosen: Vec<&mut Process> = frozen.processes.iter_mut().collect();
    chosen.retain(|process| {
        let known = tracked.iter().any(|copied| copied.pid == process.pid);
        // What asynchronous I/O reads into memory passes the page tables by.
        wanted(process.pid) && !known && !process.space.as_ref().is_none_or(aio::uses)
    });
    let (open, flags) = write_tracking::OPEN;
    let opened = freeze::call_each(&mut chosen, |_| (open, [flags, 0, 0, 0, 0, 0]), deadline);
    let opened = opened
        .into_iter()
        .map(|result| result.ok().and_then(std::io::Result::ok));
    let (mut made, mut numbers, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for (process, number) in chosen.into_iter().zip(opened) {
        if let Some(number) = number {
            numbers.push(number);
            taken.push(userfault::take(process.pid, number));
            made.push(process);
        }
    }
    let close = |index: usize| (libc::SYS_close, [numbers[index], 0, 0, 0, 0, 0]);
    let closed = freeze::call_each(&mut made, close, deadline);
    for ((process, taken), closed) in made.iter().zip(taken).zip(closed) {
        if closed.is_ok_and(|result| result.is_ok())
            && let Ok(copied) = taken.and_then(|taken| follow(process, taken))
        {
            tracked.push(copied);
        }
    }
}

fn follow(process: &Process, descriptor: OwnedFd) -> Result<Copied> {
    let tracker = WriteTracker::set_up(descriptor).context(|| "ask for asynchronous write protection")?;
    Copied::new(&process.proc, process.stat.starttime, tracker)
}

/// Registers what is mapped now. Processes in which that cannot be done, because their memory is that of another
/// program by now, are left out.
pub fn register(tracked: &mut Vec<Copied>, known: &Known) {
    tracked.retain_mut(|copied| register_process(copied, known).is_ok());
}

/// How far copying a running job came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// Each round left less than the one before; else it writes as fast as is copied.
    pub settled: bool,
    /// How fast was copied, bytes a second.
    pub rate: u64,
    /// About what was written since, bytes.
    pub left: u64,
}

/// Copies the memory of the running job in rounds.
///
/// # Errors
/// The image cannot be written.
pub fn copy_while_running(tracked: &mut [Copied], sink: &mut dyn PageSink) -> Result<Rounds> {
    let begun = Instant::now();
    let (mut before, mut all) = (u64::MAX, 0);
    let mut rounds = 0;
    let (settled, left) = loop {
        // Looked at first: what is written again at once would be in the image twice.
        if rounds > 0 {
            let left = written_since(tracked) / PAGE;
            let settled = left <= before / 4 * 3;
            if left <= FEW || !settled || rounds == ROUNDS {
                break (settled, left * PAGE);
            }
        }
        before = 0;
        for copied in tracked.iter_mut() {
            before += copied.round(sink)?;
            copied.copy_elsewhere(sink)?;
        }
        all += before * PAGE;
        rounds += 1;
    };
    let rate = u128::from(all) * 1_000_000_000 / begun.elapsed().as_nanos().max(1);
    Ok(Rounds {
        settled,
        rate: rate as u64,
        left,
    })
}

/// About what the running job has written since its pages were copied, bytes.
fn written_since(tracked: &[Copied]) -> u64 {
    let filter = ScanFilter {
        all: PAGE_WRITTEN | PAGE_WPALLOWED,
        any: PAGE_PRESENT | PAGE_SWAPPED,
        none: PAGE_FILE | PAGE_PFNZERO,
        ..ScanFilter::default()
    };
    let mut bytes = 0;
    for copied in tracked {
        let mut regions = Vec::new();
        // A mapping that has gone is seen when the job has stopped.
        if let Some((range, length)) = whole(&copied.areas)
            && copied.pagemap.scan_written(range, length, filter, &mut regions).is_ok()
        {
            bytes += regions.iter().map(|region| region.end - region.start).sum::<u64>();
        }
    }
    bytes
}

/// Registers all private mappings of a process: those that lie one after another at once, where that can be done.
fn register_process(copied: &mut Copied, known: &Known) -> std::io::Result<()> {
    let maps = ProcDir::open_living(copied.pid)?.maps()?;
    let is_ours = |map: &&MapEntry| {
        let anonymous = matches!(
            map.kind(),
            MapKind::Anonymous | MapKind::Heap | MapKind::Stack | MapKind::AnonNamed(_)
        );
        !map.shared && (anonymous || map.kind() == MapKind::File && !map.deleted)
    };
    let fresh = |map: &&MapEntry| !copied.areas.contains_key(&map.start);
    let mut fresh: Vec<(u64, u64, Places)> = maps
        .iter()
        .filter(is_ours)
        .filter(fresh)
        .map(|map| {
            // Looked at first: a mapping that takes the place of a tracked one only now has all its pages written.
            let places = match known.spaces.is_empty() || !copied.pagemap.is_tracked(map.start)? {
                true => Places::new(UNKNOWN),
                false => known.places(copied.pid, map.start, map.end),
            };
            Ok((map.start, map.end, places))
        })
        .collect::<std::io::Result<_>>()?;
    let mut refused = None;
    while !fresh.is_empty() {
        let adjacent = |pair: &[(u64, u64, Places)]| pair[0].1 == pair[1].0;
        let mut count = 1 + fresh.windows(2).take_while(|pair| adjacent(pair)).count();
        let register = |count: usize| {
            let end = fresh.get(count - 1).map_or(0, |last| last.1);
            copied.tracker.register(fresh[0].0, end)
        };
        let mut result = register(count);
        // One of them may be of a kind that cannot be tracked, or the program's own to track.
        if result.is_err() && count > 1 {
            count = 1;
            result = register(count);
        }
        let registered = fresh
            .drain(..count)
            .map(|(start, end, places)| (start, Area { end, places }));
        match result {
            Ok(()) => copied.areas.extend(registered),
            Err(error) => refused = Some(error),
        }
    }
    // Nothing of it: it has ended, or runs another program.
    match refused {
        Some(error) if copied.areas.is_empty() => Err(error),
        _ => Ok(()),
    }
}

/// From the first address to the last, and how many bytes of that are tracked. One look at all takes about as long as
/// one at a small area: what is not tracked, or not mapped, is passed over.
fn whole(areas: &BTreeMap<u64, Area>) -> Option<((u64, u64), u64)> {
    let first = *areas.first_key_value()?.0;
    let last = areas.last_key_value()?.1.end;
    Some(((first, last), areas.iter().map(|(start, area)| area.end - start).sum()))
}
