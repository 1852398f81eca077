//! Opening all open file descriptions of an image again.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cpr_image::model::{ByteString, FileId, Manifest, Object, OpenFile, Process, SavedFileKind};
use cpr_kernel::batch::Batch;
use cpr_kernel::process::FileIdentity;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{FileType, Mode, OFlags};

use super::{RestoreContext, device, kind, locks, pipe, regular};
use super::{
    epoll, eventfd, fanotify, inet, inotify, io_uring, mqueue, netlink, packet, pidfd, signalfd, socket, terminal,
    timerfd, unix,
};

fn io(error: rustix::io::Errno) -> std::io::Error {
    error.into()
}

/// Opens all files of the image, in the order of [`FileId`]. All processes must exist.
///
/// Nothing that was written since the checkpoint is touched yet: see [`super::Changes`].
///
/// # Errors
/// The first file that cannot be opened as it was, with process and descriptor.
pub fn open_all(context: &mut RestoreContext<'_>) -> Result<Vec<Arc<OwnedFd>>> {
    let manifest = context.manifest;
    terminal::create_all(context)?;
    socket::create_all(context)?;
    let named = |index: usize| user(manifest, FileId(index as u32));
    let mut files = Vec::with_capacity(manifest.files.len());
    for (index, file) in manifest.files.iter().enumerate() {
        let id = FileId(index as u32);
        files.push(open(id, file, context).context(|| named(index))?);
    }
    pipe::reopen_unwritten(context, &mut files)?;
    let all = || manifest.files.iter().zip(&files).enumerate();
    for (index, (file, fd)) in all() {
        locks::take(fd.as_fd(), file, FileId(index as u32), manifest)
            .context(|| format!("{}{}", named(index), path_of(file)))?;
    }
    socket::fill_queues(context, &files)?;
    terminal::fill_queues(context)?;
    for (index, (file, fd)) in all().filter(|(_, (file, _))| !is_foreign(file, manifest)) {
        set_flags(fd.as_fd(), file).context(|| named(index))?;
        if file.lease.is_none() {
            locks::set_owner(fd.as_fd(), file).context(|| named(index))?;
        }
    }
    epoll::register_apart(manifest, &files)?;
    // Opened for both directions, these would keep readers from seeing the end.
    context.pipes.clear();
    context.fifos.clear();
    for (index, (file, fd)) in all() {
        if matches!(file.object, Object::Inotify { .. }) {
            inotify::discard_events(fd.as_fd()).context(|| named(index))?;
        }
        if matches!(file.object, Object::Fanotify(_)) {
            fanotify::discard_events(fd.as_fd()).context(|| named(index))?;
        }
    }
    Ok(files)
}

/// Has the leases a process has taken ([`finish`]) broken again where they were being broken.
///
/// # Errors
/// A file cannot be opened in the way that breaks its lease.
pub fn break_leases(process: &Process, manifest: &Manifest, files: &[Arc<OwnedFd>]) -> Result<()> {
    for descriptor in locks::taken_by(process, manifest) {
        let index = descriptor.file.index();
        let (Some(file), Some(fd)) = (manifest.files.get(index), files.get(index)) else {
            continue;
        };
        if file.lease.is_some() {
            let what = || user(manifest, descriptor.file);
            locks::break_lease(fd.as_fd(), file).context(what)?;
            // Whoever is to get signals has got that one before the checkpoint.
            locks::set_owner(fd.as_fd(), file).context(what)?;
        }
    }
    Ok(())
}

/// A descriptor that a file is for, for messages.
fn user(manifest: &Manifest, id: FileId) -> String {
    let found = manifest.processes.iter().find_map(|process| {
        let descriptor = process.descriptors.iter().find(|d| d.file == id)?;
        Some(format!("process {}, descriptor {}", process.pid, descriptor.fd))
    });
    found.unwrap_or_else(|| "a descriptor in a message under way".to_owned())
}

/// The path of what has one, for messages.
pub(super) fn path_of(file: &OpenFile) -> String {
    match &file.object {
        Object::Regular(regular) => format!(" ({})", regular.path),
        Object::Directory { path } | Object::Device { path, .. } => format!(" ({path})"),
        _ => String::new(),
    }
}

/// Opens something that a process may have opened before it gave root's rights up. With an image that is root's own
/// (`roots_own`), what its user may not open is opened as root.
pub fn with_roots_rights<T>(roots_own: bool, mut open: impl FnMut() -> Result<T>) -> Result<T> {
    match open() {
        Err(error) if roots_own && error.kind() == ErrorKind::Denied => {
            let _identity = FileIdentity::assume(0, 0);
            open()
        }
        other => other,
    }
}

/// Whether an open file is somebody else's too, whose flags are not ours to change.
fn is_foreign(file: &OpenFile, manifest: &Manifest) -> bool {
    match &file.object {
        Object::Inherited { .. } => true,
        Object::TerminalSlave(id) => manifest.terminals.get(id.index()).is_some_and(|t| t.external),
        _ => kind::is_path(file.flags),
    }
}

fn open(id: FileId, file: &OpenFile, context: &mut RestoreContext<'_>) -> Result<Arc<OwnedFd>> {
    // Of sockets, which a job may have as many of as there is room for, there is no second descriptor.
    match &file.object {
        Object::Socket(socket) => unix::restore(file, *socket, context),
        Object::InetSocket(socket) => inet::restore(file, *socket, context),
        _ => open_own(id, file, context).map(Arc::new),
    }
}

/// Opens anything but sockets.
fn open_own(id: FileId, file: &OpenFile, context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    match &file.object {
        Object::Regular(found) => with_roots_rights(context.roots_own, || regular::restore(file, found, context)),
        Object::Directory { path } => with_roots_rights(context.roots_own, || {
            regular::restore_directory(file, path, &context.views)
        }),
        Object::Saved(saved) => {
            let image = context.manifest.saved_files.get(saved.index());
            let name = match image.map(|image| &image.kind) {
                Some(
                    SavedFileKind::Deleted { path }
                    | SavedFileKind::SharedMemory { path }
                    | SavedFileKind::DeletedDirectory { path }
                    | SavedFileKind::Backup { path }
                    | SavedFileKind::DeletedLink { path, .. },
                ) => path.clone(),
                Some(SavedFileKind::Memfd { name, .. }) => ByteString([b"memfd:", name.0.as_slice()].concat()),
                Some(SavedFileKind::SharedAnonymous) | None => ByteString(b"shared anonymous memory".to_vec()),
            };
            regular::restore_saved(file, *saved, &name, context)
        }
        Object::Pipe(pipe) => pipe::restore(file, *pipe, context),
        Object::Fifo(fifo) => pipe::restore_fifo(file, fifo, context),
        Object::Device {
            path,
            rdev,
            plugin: Some(plugin),
            ..
        } => device::restore_with_plugin(file, path, *rdev, plugin, context),
        Object::Device {
            path, rdev, node: None, ..
        } => regular::restore_device(file, path, *rdev, context),
        Object::Device {
            path,
            rdev,
            node: Some(node),
            ..
        } => device::restore_deleted(file, path, *rdev, *node),
        Object::Proc { pid, path } => regular::restore_proc(file, *pid, path),
        Object::DeadProc { path, .. } => regular::restore_dead_proc(file, path),
        Object::EventFd { count, semaphore } => eventfd::restore(file, *count, *semaphore, context),
        Object::TimerFd {
            clock,
            ticks,
            settime_flags,
            value_ns,
            interval_ns,
        } => timerfd::restore(file, *clock, *ticks, *settime_flags, *value_ns, *interval_ns, context),
        Object::SignalFd { mask } => signalfd::restore(file, *mask, context),
        Object::Epoll { .. } => epoll::restore(file, context),
        Object::Inotify { watches, .. } => inotify::restore(file, watches, context),
        Object::Fanotify(group) => fanotify::restore(group, context),
        // It is made in the process that it belongs to.
        Object::IoUring(_) => io_uring::placeholder(),
        Object::PidFd { pid } => pidfd::restore(file, *pid, context),
        Object::Socket(_) | Object::InetSocket(_) => Err(Error::new(ErrorKind::Internal, "sockets are made together")),
        Object::NetlinkSocket(socket) => {
            let make = || netlink::restore(socket, context.manifest);
            context.networks.within(socket.network, make)
        }
        Object::PacketSocket(socket) => packet::restore(file, *socket, context),
        Object::DeadPidFd { process } => pidfd::restore_dead(file, *process, context),
        Object::TerminalSlave(_) | Object::TerminalMaster(_) => terminal::restore(file, id, context),
        Object::MessageQueue(queue) => mqueue::restore(file, *queue, context),
        Object::Inherited { stream } => inherited(file, *stream, context),
    }
}

/// A standard stream of whoever restarts the job; /dev/null where there is none.
fn inherited(file: &OpenFile, stream: i32, context: &RestoreContext<'_>) -> Result<OwnedFd> {
    let given = usize::try_from(stream).ok().and_then(|n| context.streams.get(n));
    let Some(Some(given)) = given else {
        return rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(io)
            .context(|| "open /dev/null");
    };
    let what = || format!("copy standard stream {stream}");
    // The program's non-blocking mode must not become that of the shell it was started from.
    let wanted = OFlags::from_bits_retain(file.flags as u32) & OFlags::NONBLOCK;
    let now = rustix::fs::fcntl_getfl(given).map_err(io).context(what)?;
    if now & OFlags::NONBLOCK != wanted {
        let stat = rustix::fs::fstat(given).map_err(io).context(what)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_fifo() || kind.is_char_device() {
            let flags = (now & OFlags::ACCMODE) | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let path = format!("/proc/self/fd/{}", given.as_raw_fd());
            if let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) {
                rustix::fs::fcntl_setfl(&fd, wanted).map_err(io).context(what)?;
                return Ok(fd);
            }
        }
    }
    given.try_clone().context(what)
}

/// Sets the status flags that F_SETFL can set, but for O_ASYNC.
fn set_flags(fd: BorrowedFd<'_>, file: &OpenFile) -> Result<()> {
    let mask = OFlags::APPEND | OFlags::NONBLOCK | OFlags::DIRECT | OFlags::NOATIME;
    let wanted = OFlags::from_bits_retain(file.flags as u32) & mask;
    let now = rustix::fs::fcntl_getfl(fd).map_err(io).context(|| "get the flags")?;
    if now & mask != wanted {
        rustix::fs::fcntl_setfl(fd, wanted)
            .map_err(io)
            .context(|| format!("set the flags to {:#o}{}", file.flags, path_of(file)))?;
    }
    Ok(())
}

/// Adds the calls that a process must make itself, once its descriptors have their numbers: record locks and epoll
/// registrations. While they run, the lowest number that the image has no descriptor for may be overwritten.
///
/// # Errors
/// [`ErrorKind::Damaged`] for registrations that no process can make.
pub fn finish(process: &Process, manifest: &Manifest, batch: &mut Batch) -> Result<()> {
    locks::take_posix(process, batch);
    locks::take_own(process, manifest, batch);
    epoll::register(process, manifest, epoll::spare(process, 0), batch)
}
