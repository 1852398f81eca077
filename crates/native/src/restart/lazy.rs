//! Lazy restart: a job runs at once, and its memory comes when it is touched, the rest behind it.
//!
//! Private anonymous memory is mapped and left empty. A thread of the restarter, the *pager*, serves the faults of the
//! job from the image and fills in what nobody has touched; it follows forks, and memory that moves or goes. Every
//! piece of the image is compared with its hash before any of it is used. Other memory is filled before the job runs.
//!
//! Invariant: a page is empty only where the image has none, or where the job has given it back. While pages are
//! missing, the descriptors of the pager must not all be closed, or the job would read zeros: a second set is sent to a
//! socket that somebody else holds and never reads.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use cpr_image::Image;
use cpr_image::model::{AddressSpace, Mapping, MappingKind};
use cpr_kernel::demand_paging::{self, DemandPager, PageEvent};
use cpr_kernel::fd::{SENT_TOGETHER, send_descriptors};
use cpr_kernel::memory::PAGE;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use super::stub::Workshop;
use crate::userfault;

/// Mappings with fewer bytes of page data are filled at once.
const LEAST: u64 = 256 << 10;
/// Flags of mappings that are filled at once: locked, sealed, wiped in children.
const EAGER: [&str; 4] = ["lo", "lf", "sl", "wf"];
/// What a fault is given first, bytes; the rest of the piece of the image follows.
const WINDOW: u64 = 64 << 10;
/// Pieces of the image that are kept for other processes, and for the faults nearby.
const KEPT: usize = 4;

/// What a lazy restart needs.
#[derive(Debug)]
pub struct LazyRequest {
    /// The image, for the pager.
    pub image: Arc<Image>,
    /// Where the second set of descriptors is sent.
    pub keeper: OwnedFd,
}

/// Whether the pages of a mapping may come later.
pub(super) fn is_lazy(mapping: &Mapping) -> bool {
    matches!(mapping.kind, MappingKind::Anonymous | MappingKind::Stack)
        && mapping.guards.is_empty()
        && !mapping.flags.iter().any(|flag| EAGER.contains(&flag.as_str()))
        && mapping.extents.iter().map(|extent| extent.length).sum::<u64>() >= LEAST
}

/// A process with pages that are still in the image only.
#[derive(Debug)]
pub(super) struct Absent {
    pid: i32,
    pager: DemandPager,
    /// Where faults come to us.
    ranges: Vec<(u64, u64)>,
    /// Pages to come: by address their length and their position in the image.
    pending: BTreeMap<u64, (u64, u64)>,
    /// Faults that could not be served because something changed meanwhile.
    waiting: Vec<u64>,
    gone: bool,
}

/// Has the faults of a stub's lazy mappings told to us. Gives none where it has no such mapping.
pub(super) fn register(workshop: &Workshop, pid: i32, space: &AddressSpace) -> Result<Option<Absent>> {
    let lazy: Vec<&Mapping> = space.mappings.iter().filter(|mapping| is_lazy(mapping)).collect();
    if lazy.is_empty() {
        return Ok(None);
    }
    let open = demand_paging::open_calls;
    let descriptor = userfault::make(pid, open, demand_paging::setup_calls, |batch| workshop.run(pid, batch))?;
    let pager = DemandPager::from(descriptor);
    for mapping in &lazy {
        pager
            .register(mapping.start, mapping.end)
            .context(|| format!("watch memory at {:#x} of process {pid}", mapping.start))?;
    }
    let extents = lazy.iter().flat_map(|mapping| &mapping.extents);
    Ok(Some(Absent {
        pid,
        pager,
        ranges: lazy.iter().map(|mapping| (mapping.start, mapping.end)).collect(),
        pending: extents.map(|e| (e.start, (e.length, e.offset))).collect(),
        waiting: Vec::new(),
        gone: false,
    }))
}

/// The pager at work. Dropping it ends it, whatever is missing.
#[derive(Debug)]
pub struct Pages {
    thread: Option<JoinHandle<Result<()>>>,
    /// Is ready for reading when the pager has ended.
    ended: OwnedFd,
    stop: OwnedFd,
}

impl Pages {
    /// Starts the pager. The caller's thread must have all the numbers of a new PID namespace it needs by now.
    pub(super) fn start(request: LazyRequest, absent: Vec<Absent>) -> Result<Pages> {
        let eventfd = || {
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(std::io::Error::from)
                .context(|| "make an event descriptor")
        };
        let copy = |fd: &OwnedFd| fd.try_clone().context(|| "copy a descriptor");
        let (ended, stop) = (eventfd()?, eventfd()?);
        let (tell, asked) = (copy(&ended)?, copy(&stop)?);
        for together in absent.chunks(SENT_TOGETHER) {
            let descriptors: Vec<BorrowedFd<'_>> = together.iter().map(|absent| absent.pager.as_fd()).collect();
            send_descriptors(request.keeper.as_fd(), &descriptors).context(|| "have descriptors of the pager kept")?;
        }
        let thread = std::thread::Builder::new()
            .name("cpr-pager".to_string())
            .spawn(move || {
                let mut pager = Pager {
                    image: request.image,
                    keeper: request.keeper,
                    chunks: VecDeque::new(),
                };
                let result = pager.run(absent, &asked);
                // The only writer of a counter that nobody else writes to: it has room for one.
                let _ = rustix::io::write(&tell, &1u64.to_ne_bytes());
                result
            })
            .context(|| "start the pager")?;
        Ok(Pages {
            thread: Some(thread),
            ended,
            stop,
        })
    }

    /// Waits for the end: all pages are there, or all processes that missed some have ended.
    ///
    /// # Errors
    /// The image could not be read, or is altered: the job cannot go on.
    pub fn finish(mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Error::new(ErrorKind::Internal, "the pager panicked")),
            None => Ok(()),
        }
    }
}

impl AsFd for Pages {
    /// Is ready for reading when [`Pages::finish`] will not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // As in the thread.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How putting pages went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// They are there.
    Done,
    /// Something changes in the process: take its events in, then try again.
    Later,
    /// Its memory is gone.
    Gone,
}

struct Pager {
    image: Arc<Image>,
    keeper: OwnedFd,
    /// Where each begins, and its bytes; the one used last at the end.
    chunks: VecDeque<(u64, Vec<u8>)>,
}

impl Pager {
    fn run(&mut self, mut absent: Vec<Absent>, asked: &OwnedFd) -> Result<()> {
        let mut pause = Timespec::default();
        loop {
            absent.retain(|process| !process.gone);
            if absent.iter().all(|process| process.pending.is_empty()) {
                break;
            }
            let mut polled: Vec<PollFd<'_>> = std::iter::once(PollFd::new(asked, PollFlags::IN))
                .chain(absent.iter().map(|process| PollFd::new(&process.pager, PollFlags::IN)))
                .collect();
            match rustix::event::poll(&mut polled, Some(&pause)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(std::io::Error::from(error)).context(|| "wait for page faults"),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return Ok(());
            }
            let mut children = Vec::new();
            for (process, _) in absent.iter_mut().zip(&ready[1..]).filter(|(_, ready)| **ready) {
                children.extend(self.take_in(process)?);
            }
            absent.extend(children);
            for process in &mut absent {
                self.serve(process)?;
            }
            let mut progress = Put::Later;
            if let Some(process) = absent.iter_mut().find(|process| !process.pending.is_empty())
                && let Some(at) = process.pending.first_key_value().map(|(at, _)| *at)
            {
                progress = self.bring(process, at)?;
                process.gone |= progress == Put::Gone;
            }
            // An event is about to come that must be taken in first.
            pause.tv_nsec = if progress == Put::Later { 1_000_000 } else { 0 };
        }
        for process in &absent {
            for &(start, end) in &process.ranges {
                // What was unmapped meanwhile is nobody's concern.
                let _ = process.pager.unregister(start, end);
            }
        }
        Ok(())
    }

    /// Takes in what happened in a process; gives the children it made.
    fn take_in(&self, process: &mut Absent) -> Result<Vec<Absent>> {
        let mut children = Vec::new();
        let events = process
            .pager
            .events()
            .context(|| format!("read page faults of process {}", process.pid))?;
        for event in events {
            match event {
                PageEvent::Fault(page) => process.waiting.push(page),
                PageEvent::Fork(pager) => {
                    // Without it only we hold the descriptor: enough as long as we live.
                    let _ = send_descriptors(self.keeper.as_fd(), &[pager.as_fd()]);
                    children.push(Absent {
                        pid: process.pid,
                        pager,
                        ranges: process.ranges.clone(),
                        pending: process.pending.clone(),
                        waiting: Vec::new(),
                        gone: false,
                    });
                }
                PageEvent::Remap { from, to, length } => process.move_pages(from, to, length),
                PageEvent::Gone(start, end) => process.cut(start, end),
            }
        }
        Ok(children)
    }

    /// Gives threads that wait what they wait for.
    fn serve(&mut self, process: &mut Absent) -> Result<()> {
        for page in std::mem::take(&mut process.waiting) {
            let put = if process.find(page).is_some() {
                self.bring(process, page)?
            } else {
                process.put_zeros(page)?
            };
            match put {
                Put::Done => {}
                Put::Later => process.waiting.push(page),
                Put::Gone => process.gone = true,
            }
        }
        Ok(())
    }

    /// Brings the page at an address, then what else the image has in the same piece for the same run of pages.
    fn bring(&mut self, process: &mut Absent, page: u64) -> Result<Put> {
        let Some((start, length, offset)) = process.find(page) else {
            return Ok(Put::Done);
        };
        let (begin, bytes) = self.chunk(offset + (page - start))?;
        // Addresses of the part of the run that this piece of the image holds.
        let from = start.max((start + begin).saturating_sub(offset));
        let to = (start + length).min(start + (begin + bytes.len() as u64) - offset);
        let part = |from: u64, to: u64| {
            let at = |address: u64| (offset + (address - start) - begin) as usize;
            bytes.get(at(from)..at(to)).unwrap_or_default()
        };
        let window = page / WINDOW * WINDOW;
        let (first, last) = (from.max(window), to.min(window + WINDOW));
        for (from, to) in [(first, last), (from, first), (last, to)] {
            if from < to {
                let put = process.put(from, part(from, to))?;
                if put != Put::Done {
                    return Ok(put);
                }
            }
        }
        Ok(Put::Done)
    }

    /// The piece of the image that a position is in.
    fn chunk(&mut self, offset: u64) -> Result<(u64, &[u8])> {
        let has = |chunk: &(u64, Vec<u8>)| (chunk.0..chunk.0 + chunk.1.len() as u64).contains(&offset);
        let chunk = match self.chunks.iter().position(has).and_then(|at| self.chunks.remove(at)) {
            Some(chunk) => chunk,
            None => {
                if self.chunks.len() == KEPT {
                    self.chunks.pop_front();
                }
                self.image.checked_chunk(offset)?
            }
        };
        self.chunks.push_back(chunk);
        match self.chunks.back() {
            Some((begin, bytes)) => Ok((*begin, bytes)),
            None => Err(Error::new(ErrorKind::Internal, "a piece of the image is lost")),
        }
    }
}

impl Absent {
    /// The run of missing pages that an address is in: where it begins, its length and its position in the image.
    fn find(&self, address: u64) -> Option<(u64, u64, u64)> {
        let (&start, &(length, offset)) = self.pending.range(..=address).next_back()?;
        (address < start + length).then_some((start, length, offset))
    }

    /// Nothing between two addresses is missing any more.
    fn cut(&mut self, from: u64, to: u64) {
        let begin = self.find(from).map_or(from, |(start, ..)| start);
        let hit: Vec<u64> = self.pending.range(begin..to).map(|(start, _)| *start).collect();
        for start in hit {
            let Some((length, offset)) = self.pending.remove(&start) else {
                continue;
            };
            if start < from {
                self.pending.insert(start, (from - start, offset));
            }
            if start + length > to {
                self.pending.insert(to, (start + length - to, offset + (to - start)));
            }
        }
    }

    fn move_pages(&mut self, from: u64, to: u64, length: u64) {
        let begin = self.find(from).map_or(from, |(start, ..)| start);
        let mut moved = Vec::new();
        for (&start, &(run, offset)) in self.pending.range(begin..from + length) {
            let (first, last) = (start.max(from), (start + run).min(from + length));
            if first < last {
                moved.push((to + (first - from), (last - first, offset + (first - start))));
            }
        }
        self.cut(from, from + length);
        self.cut(to, to + length);
        self.pending.extend(moved);
        self.ranges.push((to, to + length));
    }

    /// Puts pages where they are missing.
    fn put(&mut self, start: u64, pages: &[u8]) -> Result<Put> {
        let length = pages.len() as u64;
        let (mut at, mut step) = (0, length);
        let mut outcome = Put::Done;
        while at < length {
            let part = &pages[at as usize..(at + step).min(length) as usize];
            let (done, result) = self.pager.copy(start + at, part);
            at += done;
            let Err(error) = result else { continue };
            match error.raw_os_error() {
                Some(libc::EAGAIN) if done > 0 => {}
                Some(libc::EAGAIN) => {
                    outcome = Put::Later;
                    break;
                }
                Some(libc::ESRCH) => return Ok(Put::Gone),
                Some(libc::EEXIST) => {
                    // Who waited for it was told, or looks again.
                    let _ = self.pager.wake(start + at);
                    at += PAGE;
                }
                // The range is not one mapping any more: page by page.
                Some(libc::ENOENT) if step > PAGE => step = PAGE,
                Some(libc::ENOENT) => {
                    let _ = self.pager.wake(start + at);
                    at += PAGE;
                }
                _ => {
                    return Err(error).context(|| format!("fill memory at {:#x} of process {}", start + at, self.pid));
                }
            }
        }
        self.cut(start, start + at);
        Ok(outcome)
    }

    fn put_zeros(&self, page: u64) -> Result<Put> {
        let Err(error) = self.pager.zero(page) else {
            return Ok(Put::Done);
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(Put::Later),
            Some(libc::ESRCH) => Ok(Put::Gone),
            Some(libc::EEXIST | libc::ENOENT) => {
                // Who waits looks again, and finds the page, or that nothing is mapped.
                let _ = self.pager.wake(page);
                Ok(Put::Done)
            }
            _ => Err(error).context(|| format!("fill memory at {page:#x} of process {}", self.pid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent(runs: &[(u64, u64, u64)]) -> Absent {
        let null = std::fs::File::open("/dev/null").unwrap();
        Absent {
            pid: 1,
            pager: DemandPager::from(OwnedFd::from(null)),
            ranges: Vec::new(),
            pending: runs
                .iter()
                .map(|&(start, length, offset)| (start, (length, offset)))
                .collect(),
            waiting: Vec::new(),
            gone: false,
        }
    }

    fn runs(absent: &Absent) -> Vec<(u64, u64, u64)> {
        absent
            .pending
            .iter()
            .map(|(start, (length, offset))| (*start, *length, *offset))
            .collect()
    }

    #[test]
    fn what_is_cut_is_missing_no_more_and_the_rest_keeps_its_place_in_the_image() {
        let mut one = absent(&[(100, 50, 1000), (200, 50, 2000)]);
        one.cut(120, 210);
        assert_eq!(runs(&one), [(100, 20, 1000), (210, 40, 2010)]);
        one.cut(100, 120);
        assert_eq!(runs(&one), [(210, 40, 2010)]);
        one.cut(220, 230);
        assert_eq!(runs(&one), [(210, 10, 2010), (230, 20, 2030)]);
        assert_eq!(one.find(229), None);
        assert_eq!(one.find(219), Some((210, 10, 2010)));
    }

    #[test]
    fn pages_that_move_come_to_where_they_are_now() {
        let mut one = absent(&[(100, 50, 1000), (200, 50, 2000), (500, 50, 5000)]);
        one.move_pages(130, 510, 100);
        assert_eq!(
            runs(&one),
            [
                (100, 30, 1000),
                (230, 20, 2030),
                (500, 10, 5000),
                (510, 20, 1030),
                (580, 30, 2000)
            ]
        );
        assert_eq!(one.ranges, [(510, 610)]);
    }
}
