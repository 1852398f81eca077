//! io_uring instances, io_uring(7): their rings with what is in them, and what is registered with them.
//!
//! An instance is looked at from outside, by a descriptor of ours for it, as far as that goes. The kernel tells nobody
//! how it was set up, but a call that only some instances refuse tells them apart. Two settings make no such difference
//! and are given to all: that requests after a wrong one are submitted, too (IORING_SETUP_SUBMIT_ALL), and, where
//! completions have to be fetched, that the ring shows it (IORING_SETUP_TASKRUN_FLAG). A program that has not asked for
//! them does not notice. One that has asked not to be interrupted for completions (IORING_SETUP_COOP_TASKRUN) is, after
//! a restart. A thread that takes requests out (IORING_SETUP_SQPOLL) sleeps after a second without any, as it does
//! where nothing else was asked for, and runs on any processor. An array of indices is always there; where the program
//! has none, it says what the kernel would do.
//!
//! What is refused by name: requests that do not complete by themselves (`settle`), memory of the program's own for
//! the rings, eventfds, provided buffers, and descriptors registered with threads, which show
//! nowhere. Limits for workers, restrictions and personalities show nowhere at all: an instance with restrictions is
//! refused, and the others are not kept.

mod settle;

pub use settle::drain;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use cpr_image::model::{Bytes, FileId, IoUring, IoUringId, Object};
use cpr_kernel::batch::Batch;
use cpr_kernel::io_uring::{self as kernel, Layout, Parameters, Region};
use cpr_kernel::proc::{MapEntry, MapKind, ProcDir, io_uring as shown};
use cpr_types::{Context, Error, ErrorKind, Result};

use super::{Description, SaveContext};
use crate::freeze::Process;

const PAGE: usize = 4096;
/// What to do about an instance that cannot be saved.
pub(crate) const HINT: &str = "have the program use another I/O interface: MariaDB does with \
                               --innodb-use-native-aio=0, most programs where kernel.io_uring_disabled is 2";
/// Why a mapping cannot be saved.
pub(crate) const UNREACHABLE: &str = "io_uring that no descriptor is open on is not supported";
/// Groups of provided buffers that are looked for. The numbers are the program's to choose, and mostly small.
const GROUPS: u32 = 64;

/// Instances found so far.
#[derive(Debug, Default)]
pub struct SaveState {
    found: Vec<Found>,
    by_inode: HashMap<u64, IoUringId>,
}

#[derive(Debug)]
struct Found {
    label: String,
    inode: u64,
    handle: OwnedFd,
}

impl SaveState {
    /// The instance with an inode number.
    pub fn of_mapping(&self, inode: u64) -> Option<IoUringId> {
        self.by_inode.get(&inode).copied()
    }
}

/// Whether a mapping is of an instance.
pub fn is_mapping(map: &MapEntry) -> bool {
    map.kind() == MapKind::AnonInode(b"[io_uring]")
}

/// Notes an instance. [`finish`] looks at it.
///
/// # Errors
/// There is no room for another descriptor.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let state = &mut context.io_uring_state;
    let id = IoUringId(state.found.len() as u32);
    let label = description.label();
    let handle = description.handle.try_clone().context(|| format!("{label}: copy it"))?;
    let inode = description.stat.st_ino;
    state.found.push(Found { label, inode, handle });
    state.by_inode.insert(inode, id);
    Ok(Object::IoUring(id))
}

/// What makes an instance impossible to save, as far as it shows while the job runs.
///
/// # Errors
/// As [`finish`].
pub(super) fn blocker(handle: BorrowedFd<'_>, label: &str) -> Result<()> {
    let what = || label.to_owned();
    // The kernel may be busy with it.
    let Some(info) = info(handle).context(what)? else {
        return Ok(());
    };
    examine(handle, &info)
        .and_then(|_| settle::refuse_waiting(&info))
        .context(what)
}

fn unsupported(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, text.into()).with_hint(HINT)
}

/// What the kernel tells of an instance by a descriptor of ours.
fn info(handle: BorrowedFd<'_>) -> Result<Option<shown::IoUring>> {
    let own = ProcDir::open(std::process::id() as i32);
    let info = own.and_then(|own| own.io_uring(handle.as_raw_fd()));
    info.context(|| "ask for its state")
}

/// What an instance turned out to be.
#[derive(Debug, Clone, Copy)]
struct Examined {
    /// Only one thread may submit.
    bound: bool,
    /// IORING_SETUP_*.
    flags: u32,
    features: u32,
    layout: Layout,
}

/// Finds out how an instance was set up.
fn examine(handle: BorrowedFd<'_>, info: &shown::IoUring) -> Result<Examined> {
    let mut bound = false;
    match kernel::ask(handle).raw_os_error() {
        Some(libc::EEXIST) => bound = true,
        Some(libc::EACCES) => return Err(unsupported("io_uring with restrictions is not supported")),
        _ => {}
    }
    match kernel::touch(handle) {
        Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {
            return Err(unsupported(
                "io_uring that is not enabled yet (IORING_SETUP_R_DISABLED) is not supported",
            ));
        }
        other => other.context(|| "look at it")?,
    }
    let mut flags = kernel::SETUP_SUBMIT_ALL;
    if bound {
        flags |= kernel::SETUP_SINGLE_ISSUER;
    }
    if info.thread.is_some() {
        flags |= kernel::SETUP_THREAD;
    }
    if kernel::is_polled(handle) {
        flags |= kernel::SETUP_POLLED;
    }
    match kernel::fetch(handle) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            flags |= kernel::SETUP_DEFERRED | kernel::SETUP_TELL;
        }
        other => other.context(|| "look at it")?,
    }
    let like = like(info)?;
    let examined = Examined {
        bound,
        flags,
        features: like.features(),
        layout: like.layout(),
    };
    Region::map(handle, kernel::ENTRIES, kernel::ENTRY_SIZE * u64::from(info.entries))
        .map_err(|error| {
            unsupported("io_uring with rings in memory of the program's own (IORING_SETUP_NO_MMAP) is not supported")
                .with_source(error)
        })
        .map(drop)?;
    Ok(examined)
}

/// What the kernel says of a new instance as large as this one: where things are.
fn like(info: &shown::IoUring) -> Result<Parameters> {
    let mut like = Parameters::new(info.entries, info.completions, 0);
    drop(kernel::setup(&mut like).context(|| "make another one to compare it with")?);
    Ok(like)
}

/// Looks at all instances, in which nothing should be under way ([`drain`]), and saves them. The processes are stopped
/// and have arenas.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one that could not be made again, or has requests under way.
pub fn finish(context: &mut SaveContext<'_>, processes: &mut [Process], deadline: Instant) -> Result<()> {
    let state = std::mem::take(&mut context.io_uring_state);
    let mut holders: Vec<i32> = Vec::new();
    for (index, found) in state.found.iter().enumerate() {
        let id = IoUringId(index as u32);
        let instance = finish_one(id, found, context, processes, &mut holders, deadline);
        let instance = instance.context(|| found.label.clone())?;
        context.io_urings.push(instance);
    }
    for process in processes.iter_mut().filter(|process| holders.contains(&process.pid)) {
        let pid = process.pid;
        refuse_registered(process, deadline).context(|| format!("process {pid}"))?;
    }
    context.io_uring_state = state;
    Ok(())
}

/// A descriptor of an instance in a process.
#[derive(Debug, Clone, Copy)]
struct Holder {
    /// Which of the processes.
    process: usize,
    fd: i32,
}

fn finish_one(
    id: IoUringId,
    found: &Found,
    context: &SaveContext<'_>,
    processes: &mut [Process],
    all: &mut Vec<i32>,
    deadline: Instant,
) -> Result<IoUring> {
    let handle = found.handle.as_fd();
    let is_it = |file: FileId| {
        let file = context.files.get(file.index());
        file.is_some_and(|file| file.object == Object::IoUring(id))
    };
    let mut holders: Vec<Holder> = Vec::new();
    for (index, process) in processes.iter().enumerate() {
        let of_process = context.holders.iter().filter(|holder| holder.pid == process.pid);
        if let Some(holder) = of_process.into_iter().find(|holder| is_it(holder.file)) {
            holders.push(Holder {
                process: index,
                fd: holder.fd,
            });
            all.push(process.pid);
        }
    }
    let info = settle::wait_for_info(handle)?;
    let examined = examine(handle, &info)?;
    let Some(first) = holders.first().copied() else {
        return Err(unsupported(
            "io_uring that no process of the job has open is not supported",
        ));
    };
    let (holder, thread) = match examined.bound {
        false => (first, 0),
        true => submitter(&holders, processes, deadline)?.ok_or_else(|| {
            unsupported("io_uring of a thread that has ended (IORING_SETUP_SINGLE_ISSUER) is not supported")
        })?,
    };
    refuse_unseen(handle, examined.bound, (holder, thread), processes, deadline)?;
    let process = processes.get(holder.process).ok_or_else(internal)?;
    let owner = process.threads.get(thread).ok_or_else(internal)?.tracee.tid();
    let settle::Settled { info, rings, queue } = settle::look(handle, &examined.layout)?;
    let files = info
        .files
        .iter()
        .enumerate()
        .map(|(number, name)| match name {
            None => Ok(None),
            Some(name) => registered_file(process, name, context)
                .map(Some)
                .context(|| format!("registered file {number}")),
        })
        .collect::<Result<_>>()?;
    let is_mapped = |holder: &&Holder| {
        let space = processes.get(holder.process).and_then(|process| process.space.as_ref());
        let maps = space.map_or(&[][..], |space| &space.maps);
        maps.iter().any(|map| is_mapping(map) && map.inode == found.inode)
    };
    // Whose memory it is shows nowhere; who has no rings mapped has no use for it.
    if info.buffers.iter().any(Option::is_some) && holders.iter().filter(is_mapped).count() > 1 {
        return Err(unsupported(
            "io_uring with registered memory that more than one process uses is not supported",
        ));
    }
    refuse_unmapped(&info, process)?;
    Ok(IoUring {
        owner,
        entries: info.entries,
        completions: info.completions,
        flags: examined.flags,
        features: examined.features,
        layout: examined.layout.numbers().to_vec(),
        submitted: info.submitted,
        completed: info.completed,
        rings: pieces(&rings),
        queue: pieces(&queue),
        files,
        buffers: info.buffers,
    })
}

fn internal() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a process with an io_uring instance has no threads",
    )
}

/// The thread that alone may submit.
fn submitter(holders: &[Holder], processes: &mut [Process], deadline: Instant) -> Result<Option<(Holder, usize)>> {
    for holder in holders {
        let process = processes.get_mut(holder.process).ok_or_else(internal)?;
        let mut batch = Batch::new();
        let asked = kernel::ask_call(&mut batch, holder.fd);
        let outcomes = process.run_in(0..process.threads.len(), &batch, deadline)?;
        let is_it =
            |result: std::io::Result<u64>| !result.is_err_and(|error| error.raw_os_error() == Some(libc::EEXIST));
        if let Some(thread) = outcomes.iter().position(|outcome| is_it(outcome.result(asked))) {
            return Ok(Some((*holder, thread)));
        }
    }
    Ok(None)
}

/// Refuses what belongs to an instance and cannot be read back.
fn refuse_unseen(
    handle: BorrowedFd<'_>,
    bound: bool,
    (holder, thread): (Holder, usize),
    processes: &mut [Process],
    deadline: Instant,
) -> Result<()> {
    let process = processes.get_mut(holder.process).ok_or_else(internal)?;
    let has_eventfd = |error: &std::io::Error| error.raw_os_error() == Some(libc::EBUSY);
    let eventfd =
        || unsupported("io_uring that tells an eventfd of completions (IORING_REGISTER_EVENTFD) is not supported");
    let mut answers = Vec::new();
    if bound {
        let mut batch = Batch::new();
        let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
        let made = batch.must(libc::SYS_eventfd2, &[0.into(), flags.into()], "make an eventfd");
        let number = process.run(thread, &batch, deadline)?.raw(made) as i32;
        let mut batch = Batch::new();
        kernel::try_eventfd_call(&mut batch, holder.fd, number);
        let tried = process.run(thread, &batch, deadline);
        let mut batch = Batch::new();
        batch.call(libc::SYS_close, &[number.into()]);
        let calls: Vec<_> = (0..GROUPS)
            .map(|group| kernel::buffer_group_call(&mut batch, holder.fd, group))
            .collect();
        let outcome = process.run(thread, &batch, deadline)?;
        match tried {
            Err(error) if error.kind() == ErrorKind::Busy => return Err(eventfd()),
            other => other.map(drop)?,
        }
        answers.extend(calls.into_iter().map(|call| outcome.result(call).map(drop)));
    } else {
        let ours = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(std::io::Error::from);
        let ours = ours.context(|| "make an eventfd")?;
        match kernel::register_eventfd(handle, ours.as_fd()) {
            Err(error) if has_eventfd(&error) => return Err(eventfd()),
            other => other.context(|| "look for an eventfd")?,
        }
        kernel::unregister_eventfd(handle).context(|| "look for an eventfd")?;
        answers.extend((0..GROUPS).map(|group| kernel::buffer_group(handle, group)));
    }
    let number = |answer: &std::io::Result<()>| answer.as_ref().err().and_then(std::io::Error::raw_os_error);
    // Where no group is any good the kernel does not know the question.
    let unknown = answers.iter().all(|answer| number(answer) == Some(libc::EINVAL));
    match answers.iter().position(|answer| number(answer) != Some(libc::ENOENT)) {
        Some(group) if !unknown => Err(unsupported(format!(
            "io_uring with provided buffers (group {group}) is not supported"
        ))),
        _ => Ok(()),
    }
}

/// Refuses threads that have registered descriptors of rings, since nothing tells which.
fn refuse_registered(process: &mut Process, deadline: Instant) -> Result<()> {
    let mut batch = Batch::new();
    let calls: Vec<_> = (0..kernel::REGISTERED_RINGS)
        .map(|number| kernel::registered_call(&mut batch, number))
        .collect();
    let outcomes = process.run_in(0..process.threads.len(), &batch, deadline)?;
    let is_there = |result: std::io::Result<u64>| match result {
        Ok(_) => true,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL)),
    };
    for (thread, outcome) in process.threads.iter().zip(&outcomes) {
        if calls.iter().any(|call| is_there(outcome.result(*call))) {
            return Err(unsupported(format!(
                "thread {} has registered descriptors of io_uring (IORING_REGISTER_RING_FDS), which is not supported",
                thread.tracee.tid()
            )));
        }
    }
    Ok(())
}

/// The open file of a process that is registered under a name.
fn registered_file(process: &Process, name: &[u8], context: &SaveContext<'_>) -> Result<FileId> {
    let shown = String::from_utf8_lossy(name);
    let mut found: Option<FileId> = None;
    for holder in context.holders.iter().filter(|holder| holder.pid == process.pid) {
        let link = process.proc.fd_link(holder.fd).context(|| "look at a descriptor")?;
        if escaped(&link) != name || found == Some(holder.file) {
            continue;
        }
        if found.is_some() {
            return Err(unsupported(format!(
                "{shown} is open more than once, and nothing tells which is registered"
            )));
        }
        found = Some(holder.file);
    }
    found.ok_or_else(|| {
        unsupported(format!(
            "{shown} is not open any more but for io_uring, which is not supported"
        ))
    })
}

/// A path as the kernel writes it in a line (seq_file_path).
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => text.extend(format!("\\{byte:03o}").into_bytes()),
            _ => text.push(*byte),
        }
    }
    text
}

/// Refuses registered memory that is not the process's any more.
fn refuse_unmapped(info: &shown::IoUring, process: &Process) -> Result<()> {
    let maps = process.space.as_ref().map_or(&[][..], |space| &space.maps);
    for (address, length) in info.buffers.iter().flatten().copied() {
        let end = address.saturating_add(length);
        let mut at = address;
        for map in maps.iter().filter(|map| map.write) {
            if (map.start..map.end).contains(&at) {
                at = map.end;
            }
        }
        if at < end {
            return Err(unsupported(format!(
                "memory at {address:#x} that is registered with io_uring is not mapped any more"
            )));
        }
    }
    Ok(())
}

/// The pages that are not all zeros.
fn pieces(bytes: &[u8]) -> Vec<(u64, Bytes)> {
    let pages = bytes.chunks(PAGE).enumerate();
    let pages = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    pages
        .map(|(index, page)| ((index * PAGE) as u64, Bytes(page.to_vec())))
        .collect()
}

/// Bytes that a mapping of an instance can have.
pub fn mapped_size(instance: &IoUring, offset: u64) -> u64 {
    let size = match offset {
        kernel::ENTRIES => kernel::ENTRY_SIZE * u64::from(instance.entries),
        _ => match *instance.layout.as_slice() {
            [_, _, _, _, array, _, _, _, first] => {
                let array = u64::from(array) + 4 * u64::from(instance.entries);
                array.max(u64::from(first) + kernel::COMPLETION_SIZE * u64::from(instance.completions))
            }
            _ => 0,
        },
    };
    size.next_multiple_of(PAGE as u64)
}

/// A descriptor in the place of one of an instance, which is made in the process that it belongs to.
///
/// # Errors
/// There is no room for it.
pub fn placeholder() -> Result<OwnedFd> {
    std::fs::File::open("/dev/null")
        .map(OwnedFd::from)
        .context(|| "open /dev/null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_the_kernel_does() {
        assert_eq!(escaped(b"/a b\\c (deleted)"), b"/a\\040b\\134c\\040(deleted)");
    }

    #[test]
    fn pages_of_zeros_are_left_out() {
        let mut bytes = vec![0; 2 * PAGE + 8];
        bytes[2 * PAGE + 1] = 7;
        let found = pieces(&bytes);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0, found[0].1.0.len()), (2 * PAGE as u64, 8));
    }
}
