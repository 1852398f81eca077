//! What of the pages of a stopped process has to be copied, found with as few looks at its page table as can be: one or
//! two for all mappings that lie one after another. The stacks of a thousand threads do.

use cpr_kernel::memory::{
    PAGE_FILE, PAGE_GUARD, PAGE_PFNZERO, PAGE_PRESENT, PAGE_SWAPPED, PAGE_WPALLOWED, PAGE_WRITTEN, PageRegion, Pagemap,
    ScanFilter,
};
use cpr_kernel::proc::{MapEntry, MapKind};
use cpr_types::{Context, Result};

use crate::freeze::Space;
use crate::live::{Copied, HERE, Place};

/// Memory that one page table of the kernel's last level maps: 512 pages of 4 KiB on x86_64. Smaller is right, too.
const TABLE_SPAN: u64 = 2 << 20;

/// Pages of a process's own that are there, or guarded.
const OWN: ScanFilter = ScanFilter {
    all: 0,
    none: PAGE_FILE | PAGE_PFNZERO,
    any: PAGE_PRESENT | PAGE_SWAPPED | PAGE_GUARD,
    protect: false,
    written_only: false,
};

/// Pages of a mapping.
#[derive(Debug, Default)]
pub struct Found {
    /// Those to be read, and those that are guarded.
    pub regions: Vec<PageRegion>,
    /// Those that are copied already: from, to, and where the copy is.
    pub known: Vec<(u64, u64, Place)>,
}

/// The looks at one process.
#[derive(Debug)]
pub struct Scans<'a> {
    pagemap: &'a Pagemap,
    copied: Option<&'a Copied>,
    /// In ascending order.
    spans: Vec<Span>,
    /// The page table that was looked for last (its first address), and whether it is there.
    table: Option<(u64, bool)>,
}

/// Private mappings that are looked at together.
#[derive(Debug)]
struct Span {
    start: u64,
    end: u64,
    /// Bytes of it that are mapped.
    mapped: u64,
    /// Runs of pages that may have been written since they were copied, also of those that are there no longer. Pages
    /// of mappings that are not tracked count as written.
    written: Vec<PageRegion>,
    /// What is not tracked.
    untracked: Vec<PageRegion>,
    /// Own pages that are there: all, or of those that may have been written.
    own: Vec<PageRegion>,
}

impl<'a> Scans<'a> {
    /// Looks at all private mappings. With `copied`, what has not been written since it was copied is told apart; where
    /// its tracking goes on, what was written is protected again.
    ///
    /// # Errors
    /// The page table cannot be read.
    pub fn new(space: &'a Space, copied: Option<&'a Copied>) -> Result<Self> {
        let pagemap = &space.pagemap;
        let mut spans = spans(&space.maps, copied.is_some());
        for span in &mut spans {
            span.look(pagemap, copied).context(|| "look which pages are used")?;
        }
        Ok(Scans {
            pagemap,
            copied,
            spans,
            table: None,
        })
    }

    /// The own pages of a private mapping.
    ///
    /// # Errors
    /// The page table cannot be read.
    pub fn own_pages(&mut self, start: u64, end: u64) -> Result<Found> {
        let pagemap = self.pagemap;
        let mut found = Found::default();
        let at = self.spans.partition_point(|span| span.end <= start);
        let Some(span) = self.spans.get(at).filter(|span| span.start <= start && end <= span.end) else {
            look(pagemap, start, end, &mut found.regions)?;
            return Ok(found);
        };
        let Some(copied) = self.copied else {
            found.regions.extend(clipped(&span.own, start, end));
            return Ok(found);
        };
        // What has not been written since it was copied; all else is looked at closely.
        let mut copies = Unwritten {
            copied,
            pagemap,
            table: self.table,
            found: &mut found,
        };
        let mut at = start;
        for run in clipped(&span.written, start, end) {
            copies.note(at, run.start)?;
            at = run.end;
        }
        copies.note(at, end)?;
        self.table = copies.table;
        // One that took the place of another: it was passed over where pages were protected, and some kernels leave the
        // marks of pages that were moved here.
        if clipped(&span.untracked, start, end).next().is_some() {
            found = Found::default();
            look(pagemap, start, end, &mut found.regions)?;
            return Ok(found);
        }
        found.regions.extend(clipped(&span.own, start, end));
        found.regions.sort_unstable_by_key(|region| region.start);
        Ok(found)
    }
}

impl Span {
    fn look(&mut self, pagemap: &Pagemap, copied: Option<&Copied>) -> std::io::Result<()> {
        let Some(copied) = copied else {
            return pagemap.scan(self.start, self.end, OWN, &mut self.own);
        };
        // The kernel is fastest at this.
        let fast = ScanFilter {
            all: PAGE_WRITTEN,
            written_only: true,
            ..ScanFilter::default()
        };
        pagemap.scan(self.start, self.end, fast, &mut self.written)?;
        // Mappings that are tracked are passed over as a whole.
        let untracked = ScanFilter {
            none: PAGE_WPALLOWED,
            ..ScanFilter::default()
        };
        pagemap.scan(self.start, self.end, untracked, &mut self.untracked)?;
        let tracked = if copied.keep { PAGE_WPALLOWED } else { 0 };
        let filter = ScanFilter {
            all: PAGE_WRITTEN | tracked,
            any: HERE,
            protect: copied.keep,
            ..ScanFilter::default()
        };
        pagemap.scan_among(
            &self.written,
            (self.start, self.end),
            self.mapped,
            filter,
            &mut self.own,
        )?;
        self.own
            .retain(|region| region.categories & (PAGE_FILE | PAGE_PFNZERO) == 0);
        Ok(())
    }
}

/// Mappings that can have pages of the process's own, joined where one begins at the end of another. `over_gaps`: also
/// where nothing is mapped between them, which kernels that track writes pass over at no cost.
fn spans(maps: &[MapEntry], over_gaps: bool) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let kernels = |map: &MapEntry| {
        let kind = map.kind();
        matches!(
            kind,
            MapKind::Vvar | MapKind::VvarVclock | MapKind::Vdso | MapKind::Vsyscall
        )
    };
    let mut goes_on = false;
    for map in maps {
        if map.shared || kernels(map) {
            goes_on = false;
            continue;
        }
        match spans.last_mut() {
            Some(last) if goes_on && (over_gaps || last.end == map.start) => {
                last.end = map.end;
                last.mapped += map.len();
            }
            _ => spans.push(Span {
                start: map.start,
                end: map.end,
                mapped: map.len(),
                written: Vec::new(),
                untracked: Vec::new(),
                own: Vec::new(),
            }),
        }
        goes_on = true;
    }
    spans
}

/// The parts of these runs, which are in ascending order, that lie between `start` and `end`.
fn clipped(runs: &[PageRegion], start: u64, end: u64) -> impl Iterator<Item = PageRegion> + '_ {
    let first = runs.partition_point(|run| run.end <= start);
    runs.iter()
        .skip(first)
        .take_while(move |run| run.start < end)
        .map(move |run| PageRegion {
            start: run.start.max(start),
            end: run.end.min(end),
            categories: run.categories,
        })
}

fn look(pagemap: &Pagemap, start: u64, end: u64, regions: &mut Vec<PageRegion>) -> Result<()> {
    let scanned = pagemap.scan(start, end, OWN, regions);
    scanned.context(|| "look which pages are used")
}

/// Finds the copies of pages that have not been written since they were made.
struct Unwritten<'a, 'b> {
    copied: &'a Copied,
    pagemap: &'a Pagemap,
    table: Option<(u64, bool)>,
    found: &'b mut Found,
}

impl Unwritten<'_, '_> {
    /// Notes the copies of unwritten pages from `start` to `end`, and looks at those that were never copied.
    fn note(&mut self, start: u64, end: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            let (to, place) = self.copied.find(at, end);
            match place {
                Place::Untouched => {}
                Place::Unknown => look(self.pagemap, at, to, &mut self.found.regions)?,
                Place::Zeros => self.found.known.push((at, to, place)),
                Place::At(offset) => self.note_copy(at, to, offset)?,
            }
            at = to;
        }
        Ok(())
    }

    /// Pages that the program gave back (madvise, with all others of their page table) are not reported as written
    /// when the kernel has removed the table as well. They are empty now.
    fn note_copy(&mut self, start: u64, end: u64, offset: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            let table = at / TABLE_SPAN * TABLE_SPAN;
            let to = end.min(table + TABLE_SPAN);
            let here = match self.table {
                Some((address, here)) if address == table => here,
                // Where the table is, a page that is not written is protected, and so it is there.
                _ => self.pagemap.has(at).context(|| "look for a page table")?,
            };
            self.table = Some((table, here));
            if here {
                self.found.known.push((at, to, Place::At(offset + (at - start))));
            }
            at = to;
        }
        Ok(())
    }
}
