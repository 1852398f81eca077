//! Waiting until nothing is under way in an io_uring instance, and reading what is in it then.
//!
//! The kernel tells what it has taken out of the submission ring and what it has put into the completion ring, and
//! which requests wait until something can be read or written. Of others, such as those of a disk or with a time, it
//! tells nothing. Every request has one completion, so that none is under way when there were as many as requests. That
//! holds but for requests that complete without notice or several times, and completions that come from other
//! instances. Those leave traces, which are looked for; with them nothing can be said, and the instance is refused.
//!
//! Completions come about in the thread that has submitted, when it next enters the kernel. Since the job is stopped it
//! is made to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_kernel::batch::Batch;
use cpr_kernel::io_uring::{self as kernel, Layout, Region};
use cpr_kernel::proc::io_uring as shown;
use cpr_types::{Context, Error, Result};

use super::{info, internal, is_mapping, unsupported};
use crate::files::Target;
use crate::freeze::Process;

/// How long requests may take to be completed when the job has stopped.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names of operations that wait for others, by number.
const OPERATIONS: [(u8, &str); 14] = [
    (1, "readv"),
    (2, "writev"),
    (6, "poll"),
    (9, "sendmsg"),
    (10, "recvmsg"),
    (13, "accept"),
    (16, "connect"),
    (22, "read"),
    (23, "write"),
    (26, "send"),
    (27, "recv"),
    (30, "splice"),
    (33, "tee"),
    (49, "read, multishot"),
];

/// An instance in which nothing is under way.
pub(super) struct Settled {
    pub(super) info: shown::IoUring,
    /// Memory of both rings.
    pub(super) rings: Vec<u8>,
    /// Memory of the submission queue entries.
    pub(super) queue: Vec<u8>,
}

/// What the kernel tells of an instance, when it is not busy with it.
pub(super) fn wait_for_info(handle: BorrowedFd<'_>) -> Result<shown::IoUring> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(info) = info(handle)? {
            return Ok(info);
        }
        if Instant::now() > end {
            return Err(busy("the kernel is busy with io_uring"));
        }
        std::thread::yield_now();
    }
}

fn busy(text: impl Into<String>) -> Error {
    unsupported(text).with_hint("try again when the program waits for nothing, or have it use another I/O interface")
}

/// Refuses requests that wait for what may never happen.
pub(super) fn refuse_waiting(info: &shown::IoUring) -> Result<()> {
    let Some(first) = info.waiting.first() else {
        return Ok(());
    };
    let name = OPERATIONS.iter().find(|(number, _)| number == first);
    let name = name.map_or_else(|| format!("operation {first}"), |(_, name)| (*name).to_owned());
    let text = match info.waiting.len() {
        1 => format!("a request of io_uring waits for something to happen ({name}), which is not supported"),
        count => format!("{count} requests of io_uring wait for something to happen ({name}), which is not supported"),
    };
    Err(busy(text))
}

/// An instance of which completions may have to be fetched.
struct Busy {
    handle: OwnedFd,
    /// Where it is open: which of the processes, and the descriptor there.
    holders: Vec<(usize, i32)>,
}

/// Waits until nothing is under way in any instance, or for some seconds: what is then is found by [`look`]. The
/// processes are stopped and have arenas.
///
/// # Errors
/// A process has gone, or does nothing for us.
pub fn drain(processes: &mut [Process], deadline: Instant) -> Result<()> {
    let mut all: Vec<(u64, Busy)> = Vec::new();
    for (index, process) in processes.iter().enumerate() {
        if !process
            .space
            .as_ref()
            .is_some_and(|space| space.maps.iter().any(is_mapping))
        {
            continue;
        }
        let what = || format!("process {}: look at its io_uring instances", process.pid);
        let Some(target) = Target::open(process.pid)? else {
            continue;
        };
        for fd in process.proc.descriptors().context(what)? {
            if process.proc.fd_link(fd).context(what)? != b"anon_inode:[io_uring]" {
                continue;
            }
            let inode = process.proc.fd_stat(fd).context(what)?.st_ino;
            match all.iter_mut().find(|(known, _)| *known == inode) {
                Some((_, busy)) => busy.holders.push((index, fd)),
                None => {
                    let handle = super::super::get(&target, fd)?;
                    let holders = vec![(index, fd)];
                    all.push((inode, Busy { handle, holders }));
                }
            }
        }
    }
    let end = Instant::now() + PATIENCE;
    for (_, busy) in all {
        wait(&busy, processes, end, deadline)?;
    }
    Ok(())
}

fn wait(busy: &Busy, processes: &mut [Process], end: Instant, deadline: Instant) -> Result<()> {
    let handle = busy.handle.as_fd();
    let first = wait_for_info(handle)?;
    let layout = super::like(&first)?.layout();
    let region = map(handle, &layout, &first)?;
    loop {
        let info = wait_for_info(handle)?;
        let left = under_way(&info, &region, &layout);
        // Of those that wait for something to happen nobody knows how long.
        let is_done =
            left <= i32::try_from(info.waiting.len()).unwrap_or(i32::MAX) && !is_behind(&info, &region, &layout);
        if is_done || Instant::now() > end {
            return Ok(());
        }
        for (index, fd) in &busy.holders {
            let mut batch = Batch::new();
            kernel::fetch_call(&mut batch, *fd);
            let process = processes.get_mut(*index).ok_or_else(internal)?;
            process.run_in(0..process.threads.len(), &batch, deadline)?;
        }
        std::thread::yield_now();
    }
}

/// Whether there are requests that a thread of the kernel's is to take out, or may be.
fn is_behind(info: &shown::IoUring, region: &Region, layout: &Layout) -> bool {
    info.thread.is_some() && region.word(layout.submission_tail) != info.submitted
}

/// Looks at an instance of a stopped job.
///
/// # Errors
/// Something is under way in it.
pub(super) fn look(handle: BorrowedFd<'_>, layout: &Layout) -> Result<Settled> {
    let info = wait_for_info(handle)?;
    let region = map(handle, layout, &info)?;
    refuse_waiting(&info)?;
    if is_behind(&info, &region, layout) {
        return Err(busy("the thread of io_uring has requests that it has not taken yet"));
    }
    match under_way(&info, &region, layout) {
        _ if info.overflows => Err(unsupported("io_uring has completions that its ring has no room for")),
        0 => read(handle, info, &region, layout),
        1 => Err(busy("a request of io_uring is under way")),
        count @ 2.. => Err(busy(format!("{count} requests of io_uring are under way"))),
        _ => Err(uncertain()),
    }
}

fn uncertain() -> Error {
    unsupported(
        "io_uring had requests that complete several times or without notice, so that nothing tells whether any is under way",
    )
}

/// Requests that have not completed yet.
fn under_way(info: &shown::IoUring, region: &Region, layout: &Layout) -> i32 {
    let requests = info.submitted.wrapping_sub(region.word(layout.dropped));
    let completions = info.completed.wrapping_add(region.word(layout.overflow));
    requests.wrapping_sub(completions) as i32
}

fn map(handle: BorrowedFd<'_>, layout: &Layout, info: &shown::IoUring) -> Result<Region> {
    let whole = Region::map(handle, kernel::RINGS, layout.size(info.entries, info.completions));
    // One without an array of indices may have a page less.
    whole
        .or_else(|_| Region::map(handle, kernel::RINGS, layout.size_without_array(info.completions)))
        .context(|| "look at its rings")
}

fn word(bytes: &[u8], at: u64) -> u32 {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let raw = bytes.get(at..).and_then(|raw| raw.first_chunk());
    raw.map_or(0, |raw| u32::from_ne_bytes(*raw))
}

fn set(bytes: &mut [u8], at: u64, value: u32) {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    if let Some(slot) = bytes.get_mut(at..).and_then(|raw| raw.first_chunk_mut::<4>()) {
        *slot = value.to_ne_bytes();
    }
}

/// Reads an instance in which nothing seems to be under way.
fn read(handle: BorrowedFd<'_>, info: shown::IoUring, region: &Region, layout: &Layout) -> Result<Settled> {
    let queue = Region::map(handle, kernel::ENTRIES, kernel::ENTRY_SIZE * u64::from(info.entries));
    let queue = queue.context(|| "look at its requests")?.read();
    let mut rings = region.read();
    rings.resize(layout.size(info.entries, info.completions) as usize, 0);
    let completion = |index: u32| u64::from(layout.completions) + kernel::COMPLETION_SIZE * u64::from(index);
    let of_several =
        |index: u32| word(&rings, completion(index) + kernel::COMPLETION_FLAGS) & kernel::COMPLETION_OF_SEVERAL != 0;
    let entry = |index: u32| u64::from(index) * kernel::ENTRY_SIZE;
    let is_message = |index: u32| queue.get(entry(index) as usize) == Some(&kernel::OPCODE_MESSAGE);
    if (0..info.completions).any(of_several) || (0..info.entries).any(is_message) {
        return Err(uncertain());
    }
    set(&mut rings, layout.submission_flags.into(), 0);
    let array = |index: u32| u64::from(layout.array) + 4 * u64::from(index);
    let is_used = |index: u32| {
        let entry = entry(index) as usize;
        queue
            .get(entry..entry + kernel::ENTRY_SIZE as usize)
            .is_some_and(|raw| raw.iter().any(|byte| *byte != 0))
    };
    // A program that has an array puts something there, if it does not use the first entry alone.
    let has_array = (0..info.entries).any(|index| word(&rings, array(index)) != 0);
    let uses_first_alone = info.submitted > 1 && !(1..info.entries).any(is_used);
    if !has_array && !uses_first_alone {
        for index in 0..info.entries {
            set(&mut rings, array(index), index);
        }
    }
    Ok(Settled { info, rings, queue })
}
