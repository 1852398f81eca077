//! Copying memory while the job runs, so that the stop need not last as long as copying does.
//!
//! Writes are tracked by asynchronous write protection. In rounds, all pages written since the round before are
//! protected and copied, as long as that makes what is left less. When the job is stopped at last, only pages written
//! since the last round are copied ([`Copied::find`] gives the rest); whatever is not tracked is copied whole.
//!
//! The order makes it exact: a page is protected before it is copied, so a write during or after the copy marks it.

use std::collections::BTreeMap;
use std::time::Instant;

use cpr_kernel::batch::Batch;
use cpr_kernel::memory::{
    Memory, PAGE, PAGE_FILE, PAGE_GUARD, PAGE_PFNZERO, PAGE_PRESENT, PAGE_SWAPPED, PAGE_WPALLOWED, PAGE_WRITTEN,
    PageRegion, Pagemap, ScanFilter,
};
use cpr_kernel::proc::{MapKind, ProcDir};
use cpr_kernel::process::PidFd;
use cpr_kernel::write_tracking::{self, WriteTracker};
use cpr_types::{Context, Result};
use rustix::process::PidfdGetfdFlags;

use crate::freeze::Frozen;
use crate::memory::is_zero;
use crate::sink::{PAGE_SIZE, PageSink};

/// Most rounds of copying.
const ROUNDS: usize = 6;
/// Pages left at which another round is not worth it.
const FEW: u64 = 64;
/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// Not copied.
const NONE: u64 = 0;
/// Copied and found to be zeros. (No data lie at the header's place.)
const ZEROS: u64 = 1;
/// Could not be read while the job ran.
const UNKNOWN: u64 = 2;

/// A mapping that is tracked: for each page where its last copy is.
#[derive(Debug)]
struct Area {
    end: u64,
    places: Vec<u64>,
}

/// What has been copied of one process.
#[derive(Debug)]
pub struct Copied {
    pid: i32,
    memory: Memory,
    pagemap: Pagemap,
    areas: BTreeMap<u64, Area>,
    /// Dropping it ends the tracking.
    tracker: WriteTracker,
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
        let page = |address: u64| ((address - start) / PAGE) as usize;
        let places = area.places.get(page(address)..page(end)).unwrap_or_default();
        let Some(&first) = places.first() else {
            return (end, Place::Unknown);
        };
        let step = if first > UNKNOWN { PAGE } else { 0 };
        let alike = |(index, place): (usize, &u64)| *place == first + step * index as u64;
        let length = places.iter().enumerate().take_while(|&each| alike(each)).count() as u64;
        let place = match first {
            NONE => Place::Untouched,
            ZEROS => Place::Zeros,
            UNKNOWN => Place::Unknown,
            offset => Place::At(offset),
        };
        (address + length * PAGE, place)
    }

    /// Protects and copies everything written since the last round; gives the number of pages.
    fn round(&mut self, sink: &mut dyn PageSink) -> Result<u64> {
        let mut pages = 0;
        let mut buffer = Vec::new();
        for (&start, area) in &mut self.areas {
            let filter = ScanFilter {
                all: PAGE_WRITTEN | PAGE_WPALLOWED,
                protect: true,
                ..ScanFilter::default()
            };
            let mut regions = Vec::new();
            // A mapping that has gone or was replaced is found not to be tracked when the job has stopped.
            if self.pagemap.scan(start, area.end, filter, &mut regions).is_err() {
                area.places.fill(UNKNOWN);
                continue;
            }
            for region in regions {
                let here = region.categories & (PAGE_PRESENT | PAGE_SWAPPED) != 0;
                if !here || region.categories & (PAGE_FILE | PAGE_PFNZERO | PAGE_GUARD) != 0 {
                    let first = ((region.start - start) / PAGE) as usize;
                    let last = ((region.end - start) / PAGE) as usize;
                    area.places[first..last].fill(NONE);
                    continue;
                }
                pages += (region.end - region.start) / PAGE;
                copy(&self.memory, start, area, region, &mut buffer, sink)?;
            }
        }
        Ok(pages)
    }
}

fn copy(
    memory: &Memory,
    start: u64,
    area: &mut Area,
    region: PageRegion,
    buffer: &mut Vec<u8>,
    sink: &mut dyn PageSink,
) -> Result<()> {
    let mut at = region.start;
    while at < region.end {
        let length = (region.end - at).min(CHUNK);
        buffer.resize(length as usize, 0);
        let first = ((at - start) / PAGE) as usize;
        let pages = buffer.len() / PAGE_SIZE;
        if memory.read(at, buffer).is_err() {
            // It changed under our hands: left to the stop.
            area.places[first..first + pages].fill(UNKNOWN);
            at += length;
            continue;
        }
        let zero = |page: usize| is_zero(&buffer[page * PAGE_SIZE..(page + 1) * PAGE_SIZE]);
        let mut page = 0;
        while page < pages {
            if zero(page) {
                area.places[first + page] = ZEROS;
                page += 1;
                continue;
            }
            let from = page;
            while page < pages && !zero(page) {
                page += 1;
            }
            let mut places = area.places[first + from..first + page].iter_mut();
            sink.place(&buffer[from * PAGE_SIZE..page * PAGE_SIZE], &mut |length, offset| {
                for (place, at) in places
                    .by_ref()
                    .take(length / PAGE_SIZE)
                    .zip((offset..).step_by(PAGE_SIZE))
                {
                    *place = at;
                }
            })?;
        }
        at += length;
    }
    Ok(())
}

/// Makes the tracking descriptors in a stopped job. A process in which that fails is left out: it is copied whole.
pub fn track(frozen: &mut Frozen, deadline: Instant) -> Vec<Copied> {
    let mut tracked = Vec::new();
    for process in &mut frozen.processes {
        if process.space.is_none() {
            continue;
        }
        if let Ok(copied) = track_process(process, deadline) {
            tracked.push(copied);
        }
    }
    tracked
}

fn track_process(process: &mut crate::freeze::Process, deadline: Instant) -> Result<Copied> {
    let pid = process.pid;
    process.map_arena(16 * 1024, deadline)?;
    let mut batch = Batch::new();
    let call = write_tracking::open_calls(&mut batch);
    let outcome = process.run(0, &batch, deadline)?;
    let number = outcome.result(call).context(|| "make a userfaultfd")?;
    let result = (|| {
        let mut batch = Batch::new();
        write_tracking::setup_calls(&mut batch, number);
        process.run(0, &batch, deadline)?;
        let pidfd = PidFd::open(pid).context(|| format!("open process {pid}"))?;
        rustix::process::pidfd_getfd(pidfd.fd(), number as i32, PidfdGetfdFlags::empty())
            .map_err(std::io::Error::from)
            .context(|| format!("take a descriptor of process {pid}"))
    })();
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[number.into()]);
    process.run(0, &batch, deadline)?;
    let tracker = WriteTracker::new(result?);
    let proc = ProcDir::open(pid).context(|| format!("open /proc/{pid}"))?;
    Ok(Copied {
        pid,
        memory: Memory::open(std::os::fd::AsFd::as_fd(&proc)).context(|| format!("open /proc/{pid}/mem"))?,
        pagemap: Pagemap::open(std::os::fd::AsFd::as_fd(&proc)).context(|| format!("open /proc/{pid}/pagemap"))?,
        areas: BTreeMap::new(),
        tracker,
    })
}

/// Copies the memory of the running job in rounds.
///
/// # Errors
/// The image cannot be written.
pub fn copy_while_running(tracked: &mut Vec<Copied>, sink: &mut dyn PageSink) -> Result<()> {
    tracked.retain_mut(|copied| register(copied).is_ok());
    let mut before = u64::MAX;
    for _ in 0..ROUNDS {
        let mut pages = 0;
        for copied in tracked.iter_mut() {
            pages += copied.round(sink)?;
        }
        // Not worth another round, or written faster than it is copied.
        if pages <= FEW || pages > before / 2 {
            break;
        }
        before = pages;
    }
    Ok(())
}

/// Registers all private mappings of a process.
fn register(copied: &mut Copied) -> std::io::Result<()> {
    let maps = ProcDir::open(copied.pid)?.maps()?;
    for map in maps.iter().filter(|m| !m.shared) {
        let ours = matches!(
            map.kind(),
            MapKind::Anonymous | MapKind::Heap | MapKind::Stack | MapKind::AnonNamed(_)
        ) || (map.kind() == MapKind::File && !map.deleted);
        if ours && copied.tracker.register(map.start, map.end).is_ok() {
            let places = vec![UNKNOWN; ((map.end - map.start) / PAGE) as usize];
            copied.areas.insert(map.start, Area { end: map.end, places });
        }
    }
    Ok(())
}
