//! A copy of a stopped process's memory that stays as it is when the process runs on: fork(2), made in the process
//! without its noticing, and never run.
//!
//! For jobs that write memory faster than it can be copied. The stop then lasts as long as copying page tables does;
//! the pages themselves are shared until the job writes them. Also the yardstick of [`Snapshot::compare`]: what an
//! image has of a process must be what a copy made in the same stop has.
//!
//! The process makes a helper that shares its memory, the helper makes the copy and is killed. So the copy is no child
//! of the job's: no wait(2) of the job sees it, and init reaps it. It has no descriptors, so that it keeps no pipe
//! open. It dies with the checkpointer (PTRACE_O_EXITKILL).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cpr_image::Image;
use cpr_image::model::{AddressSpace, MappingKind};
use cpr_kernel::batch::Batch;
use cpr_kernel::memory::{
    Memory, PAGE_FILE, PAGE_GUARD, PAGE_PFNZERO, PAGE_PRESENT, PAGE_SWAPPED, Pagemap, ScanFilter,
};
use cpr_kernel::proc::ProcDir;
use cpr_kernel::process::PidFd;
use cpr_kernel::ptrace::{SeizeOptions, Stop, Tracee};
use cpr_kernel::remote::{Deferred, Runner};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::freeze::Process;
use crate::sink::PAGE_SIZE;

/// What copying the page table of a page takes, nanoseconds. Between 45 ms and 90 ms for 1 GiB were measured on a
/// virtual machine, which is slow at this.
const FORK_NS_PER_PAGE: u64 = 200;
/// What making a copy of a process, however small, and ending it are taken to need, nanoseconds.
const FORK_NS: u64 = 1_000_000;

/// How long the killed copy may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes compared at a time.
const CHUNK: usize = 1 << 20;

/// A copy of a process's memory.
#[derive(Debug)]
pub struct Snapshot {
    /// The process it is of.
    pub pid: i32,
    /// Its memory.
    pub memory: Memory,
    copy: Tracee,
    helper: Tracee,
}

/// Less than this is copied before a snapshot of it could be made, bytes.
const WORTH_IT: u64 = 4 << 20;

/// Whether a snapshot stops the job for much less time than copying `left` bytes at `rate` bytes a second does, for a
/// job of so many processes that have `resident` bytes of memory, and whether there is room for all that the job may
/// write meanwhile.
pub fn pays(left: u64, rate: u64, resident: u64, processes: usize, available: Option<u64>) -> bool {
    let copying = u128::from(left) * 1_000_000_000 / u128::from(rate.max(1));
    let forking = u128::from(resident / PAGE_SIZE as u64 * FORK_NS_PER_PAGE + processes as u64 * FORK_NS);
    // The job's own copies of what it writes, and as much again for everybody else.
    let room = available.is_some_and(|available| available / 2 > resident);
    left >= WORTH_IT && room && copying > 2 * forking
}

impl Snapshot {
    /// Copies the memory of a stopped process that has an arena. What is left in it is for [`Snapshot::reap`].
    ///
    /// # Errors
    /// The process may make no more processes, or there is no memory for page tables. Nothing is left in it then.
    pub fn take(process: &mut Process, deadline: Instant) -> Result<Self> {
        let pid = process.pid;
        // No signal when it ends; attached to from birth on; it sees our batches, and shares the table of descriptors,
        // until it gets an empty one.
        let sharing = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PTRACE;
        let mut batch = Batch::new();
        let helper = batch.must(libc::SYS_clone, &clone_arguments(sharing), "make a helper process");
        let outcome = process.run(0, &batch, deadline)?;
        let made = outcome
            .result(helper)
            .context(|| format!("make a helper in process {pid}"))?;
        let helper = Tracee::born(made as i32);
        let made = make_copy(process, helper, deadline);
        remove(helper, deadline).context(|| format!("end the helper in process {pid}"))?;
        match made {
            Ok(snapshot) => Ok(snapshot),
            Err(error) => {
                reap(process, helper, deadline)?;
                Err(error)
            }
        }
    }

    /// Takes the helper's end away from the process. Not before the memory of the process has been read: when a thread
    /// has run, the kernel writes the number of its processor into its memory (rseq(2)), and the copy does not have
    /// that.
    ///
    /// # Errors
    /// The process is gone, or did not answer in time.
    pub fn reap(&self, process: &mut Process, deadline: Instant) -> Result<()> {
        reap(process, self.helper, deadline)
    }

    /// Compares what an image has of this process with the copy; gives the number of pages that were compared.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] naming the first byte that differs.
    pub fn compare(&self, space: &AddressSpace, image: &Image) -> Result<u64> {
        let pid = self.pid;
        let directory = ProcDir::open(self.copy.tid()).context(|| format!("open the copy of process {pid}"))?;
        let pagemap = Pagemap::open(directory.as_fd()).context(|| format!("open the copy of process {pid}"))?;
        let mut compared = 0;
        for mapping in &space.mappings {
            // What no extent covers is zero in anonymous memory, and elsewhere what the file has.
            let anonymous = matches!(mapping.kind, MappingKind::Anonymous | MappingKind::Stack);
            let private = matches!(mapping.kind, MappingKind::PrivateFile(_) | MappingKind::PrivateSaved(_));
            // Not in a copy that fork(2) makes, or changed by it.
            let left_out = mapping.flags.iter().any(|flag| flag == "dc" || flag == "wf");
            if left_out || !(anonymous || private) {
                continue;
            }
            let mut at = mapping.start;
            for extent in &mapping.extents {
                if anonymous {
                    compared += self.compare_empty(&pagemap, at, extent.start)?;
                }
                at = extent.start + extent.length;
                compared += self.compare_run(extent.start, at, Some((image, extent.offset)))?;
            }
            if anonymous {
                compared += self.compare_empty(&pagemap, at, mapping.end)?;
            }
        }
        Ok(compared)
    }

    /// Compares the pages that are there between two addresses with zeros.
    fn compare_empty(&self, pagemap: &Pagemap, start: u64, end: u64) -> Result<u64> {
        let filter = ScanFilter {
            none: PAGE_FILE | PAGE_PFNZERO | PAGE_GUARD,
            any: PAGE_PRESENT | PAGE_SWAPPED,
            ..ScanFilter::default()
        };
        let mut regions = Vec::new();
        if start < end {
            let scanned = pagemap.scan(start, end, filter, &mut regions);
            scanned.context(|| format!("look at the copy of process {}", self.pid))?;
        }
        let mut compared = 0;
        for region in regions {
            compared += self.compare_run(region.start, region.end, None)?;
        }
        Ok(compared)
    }

    /// Compares pages with those at a position of the image, or with zeros.
    fn compare_run(&self, start: u64, end: u64, data: Option<(&Image, u64)>) -> Result<u64> {
        let pid = self.pid;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for at in (start..end).step_by(CHUNK) {
            let length = CHUNK.min((end - at) as usize);
            ours.resize(length, 0);
            theirs.resize(length, 0);
            let read = self.memory.read(at, &mut ours);
            read.context(|| format!("read the copy of process {pid} at {at:#x}"))?;
            if let Some((image, offset)) = data {
                image.read_data(offset + (at - start), &mut theirs)?;
            }
            if let Some(first) = ours.iter().zip(&theirs).position(|(one, other)| one != other) {
                let address = at + first as u64;
                let text = format!(
                    "process {pid}: the byte at {address:#x} was {} in memory and is {} in the image",
                    ours[first], theirs[first]
                );
                return Err(Error::new(ErrorKind::Internal, text));
            }
        }
        Ok((end - start) / PAGE_SIZE as u64)
    }
}

fn clone_arguments(flags: i32) -> [cpr_kernel::batch::Arg; 5] {
    [flags.into(), 0.into(), 0.into(), 0.into(), 0.into()]
}

fn reap(process: &mut Process, helper: Tracee, deadline: Instant) -> Result<()> {
    let mut batch = Batch::new();
    let arguments = [helper.tid().into(), 0.into(), libc::__WALL.into(), 0.into()];
    batch.must(libc::SYS_wait4, &arguments, "reap the helper process");
    process.run(0, &batch, deadline).map(drop)
}

/// Lets the helper make the copy.
fn make_copy(process: &Process, helper: Tracee, deadline: Instant) -> Result<Snapshot> {
    let pid = process.pid;
    let what = || format!("copy the memory of process {pid}");
    helper.wait_interrupted(deadline).context(what)?;
    let base = helper.registers().context(what)?;
    let space = process.space.as_ref();
    let (space, arena) = space
        .and_then(|space| Some((space, space.arena?)))
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("process {pid} has no arena")))?;
    let mut batch = Batch::new();
    let unshare = [
        0u64.into(),
        u64::from(u32::MAX).into(),
        libc::CLOSE_RANGE_UNSHARE.into(),
    ];
    batch.must(libc::SYS_close_range, &unshare, "give up the descriptors");
    // Until init has reaped it, the copy would hold the job's session and process group in use.
    batch.must(libc::SYS_setsid, &[], "leave the session");
    let copy = batch.must(libc::SYS_clone, &clone_arguments(libc::CLONE_PTRACE), "copy the memory");
    let mut deferred = Deferred::default();
    let mut runners = [Runner {
        tracee: helper,
        base: &base,
        deferred: &mut deferred,
    }];
    let mut outcomes = arena
        .run_in_each(&mut runners, &space.memory, &batch, deadline)
        .map_err(|failed| {
            let kind = ErrorKind::of_io(&failed.error);
            Error::new(kind, format!("process {pid}: {}", failed.what)).with_source(failed.error)
        })?;
    let outcome = outcomes
        .pop()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "the helper gave no result"))?;
    let copy = Tracee::born(outcome.result(copy).context(what)? as i32);
    let opened = copy
        .wait_interrupted(deadline)
        .and_then(|()| {
            copy.set_options(SeizeOptions {
                kill_on_exit: true,
                follow: false,
            })
        })
        .and_then(|()| Memory::open(ProcDir::open(copy.tid())?.as_fd()));
    match opened {
        Ok(memory) => Ok(Snapshot {
            pid,
            memory,
            copy,
            helper,
        }),
        Err(error) => {
            let _ = remove(copy, deadline);
            Err(error).context(what)
        }
    }
}

/// Kills a process that is attached to, and takes note of its end.
fn remove(tracee: Tracee, deadline: Instant) -> std::io::Result<()> {
    PidFd::open(tracee.tid())?.signal(libc::SIGKILL)?;
    loop {
        if matches!(tracee.wait(deadline)?, Stop::Exited(_) | Stop::Killed(_)) {
            return Ok(());
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // It dies with us in any case.
        let _ = remove(self.copy, Instant::now() + PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_snapshot_is_made_only_where_copying_would_take_much_longer() {
        assert!(pays(GIB, GIB, GIB, 1, Some(4 * GIB)));
        assert!(!pays(GIB / 100, GIB, GIB, 1, Some(4 * GIB)));
        assert!(!pays(1 << 20, 0, 1 << 20, 1, Some(4 * GIB)), "next to nothing is left");
        assert!(!pays(GIB, GIB, GIB, 1, Some(GIB)), "no room");
        assert!(!pays(GIB, GIB, GIB, 1, None), "nobody knows how much room there is");
        assert!(pays(GIB, 0, GIB, 1, Some(4 * GIB)), "no rate was measured");
    }
}
