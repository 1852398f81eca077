//! Pipes and FIFOs: capacity, and the data in them with the boundaries of packets.
//!
//! The contents are copied with tee(2), which takes nothing out.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cpr_image::model::{ByteString, Bytes, Fifo, MountNamespaceId, Object, OpenFile, Pipe, PipeId};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::{Description, RestoreContext, SaveContext, kind};
use crate::views::Views;

const CAPACITY_HINT: &str = "raise the sysctls fs.pipe-max-size and fs.pipe-user-pages-soft, or restart with \
                             CAP_SYS_RESOURCE, which root has unless it was taken away, as in many containers";

/// Pipes saved so far, by device and inode number.
#[derive(Debug, Default)]
pub struct SaveState {
    by_inode: HashMap<(u64, u64), PipeId>,
}

fn io(error: Errno) -> std::io::Error {
    error.into()
}

/// Saves one end of a pipe; its contents once.
///
/// # Errors
/// The contents cannot be copied without taking them out.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    intern(description, context).map(Object::Pipe)
}

/// Saves a FIFO that has a name; one that was deleted is like any pipe.
///
/// # Errors
/// As [`save`].
pub fn save_fifo(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let pipe = intern(description, context)?;
    let path = ByteString(description.link.clone());
    let stat = &description.stat;
    let there = context.views.lstat(description.view, &path.0);
    let named = there.is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino));
    if !named {
        return Ok(Object::Pipe(pipe));
    }
    Ok(Object::Fifo(Fifo {
        path,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        pipe,
        unwritten: is_unwritten(description, context)?,
    }))
}

/// Whether a FIFO is open for reading, and nobody has opened it for writing since: then poll(2) sees no end of it,
/// though there is no writer.
fn is_unwritten(description: &Description, context: &SaveContext<'_>) -> Result<bool> {
    let key = |d: &Description| (d.stat.st_dev, d.stat.st_ino);
    let has_writer = || {
        let mut others = context.descriptions();
        others.any(|other| kind::writable(other.info.flags) && key(other) == key(description))
    };
    if kind::writable(description.info.flags) || has_writer() {
        return Ok(false);
    }
    let mut polled = [PollFd::new(&description.handle, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::default()))
        .map_err(io)
        .context(|| format!("{}: look whether it has a writer", description.label()))?;
    Ok(!polled[0].revents().contains(PollFlags::HUP))
}

fn intern(description: &Description, context: &mut SaveContext<'_>) -> Result<PipeId> {
    let key = (description.stat.st_dev, description.stat.st_ino);
    if let Some(id) = context.pipe_state.by_inode.get(&key) {
        return Ok(*id);
    }
    let what = || format!("{}: save the pipe", description.label());
    let capacity = rustix::pipe::fcntl_getpipe_size(&description.handle)
        .map_err(io)
        .context(what)?;
    let readable = |d: &Description| kind::readable(d.info.flags) && (d.stat.st_dev, d.stat.st_ino) == key;
    let data = if readable(description) {
        contents(description.handle.as_fd(), capacity).context(what)?
    } else {
        match context.descriptions().find(|d| readable(d)) {
            Some(reader) => contents(reader.handle.as_fd(), capacity).context(what)?,
            None => Vec::new(), // nobody in the job can read what is in it
        }
    };
    let id = PipeId(context.pipes.len() as u32);
    context.pipes.push(Pipe {
        capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
        data,
    });
    context.pipe_state.by_inode.insert(key, id);
    Ok(id)
}

/// Copies what is in a pipe: one element, or one for each packet.
fn contents(pipe: BorrowedFd<'_>, capacity: usize) -> Result<Vec<Bytes>> {
    let queued = rustix::io::ioctl_fionread(pipe)
        .map_err(io)
        .context(|| "get the length of its data")?;
    if queued == 0 {
        return Ok(Vec::new());
    }
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(io)
        .context(|| "make a pipe")?;
    set_capacity(writer.as_fd(), capacity, true)?;
    let length = i32::MAX as usize; // tee ends with what there is
    let copied = rustix::pipe::tee(pipe, &writer, length, SpliceFlags::NONBLOCK)
        .map_err(io)
        .context(|| "copy its data")?;
    if copied as u64 != queued {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("only {copied} of {queued} bytes in it can be copied without taking them out"),
        ));
    }
    let mut buffer = vec![0; copied];
    let mut data = Vec::new();
    let mut taken = 0;
    // A read stops at the end of a packet, so more than one means packets.
    while taken < copied {
        let n = rustix::io::read(&reader, &mut buffer[..])
            .map_err(io)
            .context(|| "read the copy of its data")?;
        if n == 0 {
            break;
        }
        data.push(Bytes(buffer[..n].to_vec()));
        taken += n;
    }
    Ok(data)
}

/// F_SETPIPE_SZ, where it changes something (or only where it adds something, for `at_least`).
fn set_capacity(pipe: BorrowedFd<'_>, capacity: usize, at_least: bool) -> Result<()> {
    let now = rustix::pipe::fcntl_getpipe_size(pipe)
        .map_err(io)
        .context(|| "get its capacity")?;
    if now == capacity || (at_least && now > capacity) {
        return Ok(());
    }
    rustix::pipe::fcntl_setpipe_size(pipe, capacity)
        .map_err(io)
        .context(|| format!("make a pipe of {capacity} bytes"))
        .map_err(|e| e.with_hint(CAPACITY_HINT))
        .map(drop)
}

/// A pipe of the image, made again.
#[derive(Debug)]
pub struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    read_given: bool,
    write_given: bool,
}

/// Whether a packet pipe is needed to put the data back.
fn has_packets(pipe: &Pipe, id: PipeId, context: &RestoreContext<'_>) -> bool {
    let direct = |file: &OpenFile| OFlags::from_bits_retain(file.flags as u32).contains(OFlags::DIRECT);
    pipe.data.len() > 1
        || context.manifest.files.iter().any(|file| match &file.object {
            Object::Pipe(this) => *this == id && direct(file),
            Object::Fifo(fifo) => fifo.pipe == id && direct(file),
            _ => false,
        })
}

fn image_pipe<'a>(id: PipeId, context: &RestoreContext<'a>) -> Result<&'a Pipe> {
    let manifest = context.manifest;
    manifest
        .pipes
        .get(id.index())
        .ok_or_else(|| Error::new(ErrorKind::Damaged, format!("the image has no pipe {}", id.0)))
}

fn fill(writer: BorrowedFd<'_>, pipe: &Pipe, packets: bool) -> Result<()> {
    if pipe.capacity > 0 {
        set_capacity(writer, pipe.capacity as usize, false)?;
    }
    let flags = OFlags::NONBLOCK | if packets { OFlags::DIRECT } else { OFlags::empty() };
    rustix::fs::fcntl_setfl(writer, flags)
        .map_err(io)
        .context(|| "set its flags")?;
    for Bytes(data) in &pipe.data {
        let mut done = 0;
        while done < data.len() {
            done += rustix::io::write(writer, &data[done..])
                .map_err(io)
                .context(|| format!("put {} bytes into a pipe of {} bytes", data.len(), pipe.capacity))?;
        }
    }
    if packets {
        rustix::fs::fcntl_setfl(writer, OFlags::NONBLOCK)
            .map_err(io)
            .context(|| "set its flags")?;
    }
    Ok(())
}

fn reopen(end: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let keep = OFlags::ACCMODE | OFlags::LARGEFILE;
    let flags = (OFlags::from_bits_retain(flags as u32) & keep) | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", end.as_raw_fd()), flags, Mode::empty())
        .map_err(io)
        .context(|| "open a pipe")
}

/// Opens one end of a pipe, which is made and filled when it is needed first. O_NONBLOCK is set.
///
/// # Errors
/// The pipe cannot be as large as it was.
pub fn restore(file: &OpenFile, id: PipeId, context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    let pipe = image_pipe(id, context)?;
    if !context.pipes.contains_key(&id) {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(io)
            .context(|| "make a pipe")?;
        fill(write.as_fd(), pipe, has_packets(pipe, id, context))?;
        let ends = Ends {
            read,
            write,
            read_given: false,
            write_given: false,
        };
        context.pipes.insert(id, ends);
    }
    let Some(ends) = context.pipes.get_mut(&id) else {
        return Err(Error::new(ErrorKind::Internal, "a pipe vanished"));
    };
    // What pipe(2) made has no O_LARGEFILE; what was opened through /proc has.
    let opened = OFlags::from_bits_retain(file.flags as u32).contains(OFlags::LARGEFILE);
    let (end, given) = match file.flags & libc::O_ACCMODE {
        libc::O_RDONLY => (&ends.read, &mut ends.read_given),
        libc::O_WRONLY => (&ends.write, &mut ends.write_given),
        _ => return reopen(ends.read.as_fd(), file.flags),
    };
    if opened || std::mem::replace(given, true) {
        return reopen(end.as_fd(), file.flags);
    }
    end.try_clone().context(|| "copy a descriptor")
}

/// Opens a FIFO by name, making its node again if it is missing. O_NONBLOCK is set.
///
/// # Errors
/// [`ErrorKind::Incompatible`] when something else has its name, [`ErrorKind::InUse`] when it is in use and holds data.
pub fn restore_fifo(file: &OpenFile, fifo: &Fifo, context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    let pipe = image_pipe(fifo.pipe, context)?;
    if !context.fifos.contains_key(&fifo.pipe) {
        let helper = open_node(fifo, file.mount_namespace, &context.views)?;
        let before = rustix::fs::fstat(&helper)
            .map_err(io)
            .context(|| format!("look at FIFO {}", fifo.path))?;
        let queued = rustix::io::ioctl_fionread(&helper)
            .map_err(io)
            .context(|| format!("look at FIFO {}", fifo.path))?;
        if queued == 0 {
            fill(helper.as_fd(), pipe, has_packets(pipe, fifo.pipe, context))
                .context(|| format!("restore FIFO {}", fifo.path))?;
            if file.mount_namespace.is_some() {
                // It was made with its times, which writing to it has changed.
                rustix::fs::futimens(&helper, &super::times_of(&before))
                    .map_err(io)
                    .context(|| format!("set the times of FIFO {}", fifo.path))?;
            }
        } else if !pipe.data.is_empty() {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("FIFO {} is open in another process and holds {queued} bytes", fifo.path),
            )
            .with_hint("end the processes that have it open"));
        }
        context.fifos.insert(fifo.pipe, helper);
    }
    let Some(helper) = context.fifos.get(&fifo.pipe) else {
        return Err(Error::new(ErrorKind::Internal, "a FIFO vanished"));
    };
    reopen(helper.as_fd(), file.flags).context(|| format!("open FIFO {}", fifo.path))
}

/// Opens those FIFOs once more that nobody has opened for writing since they were opened for reading. `files` are those
/// of the image: all are open, and what is in FIFOs is there.
///
/// # Errors
/// One cannot be opened.
pub fn reopen_unwritten(context: &mut RestoreContext<'_>, files: &mut [Arc<OwnedFd>]) -> Result<()> {
    for (file, fd) in context.manifest.files.iter().zip(files) {
        let Object::Fifo(fifo) = &file.object else {
            continue;
        };
        if fifo.unwritten {
            // It writes, too.
            context.fifos.remove(&fifo.pipe);
            let again = reopen(fd.as_fd(), file.flags).context(|| format!("open FIFO {}", fifo.path))?;
            *fd = Arc::new(again);
        }
    }
    Ok(())
}

/// The FIFO opened for both directions, which does not block.
fn open_node(fifo: &Fifo, view: Option<MountNamespaceId>, views: &Views) -> Result<OwnedFd> {
    let what = || format!("open FIFO {}", fifo.path);
    let open = || views.open(view, &fifo.path.0, OFlags::PATH | OFlags::NOFOLLOW);
    let node = match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && view.is_none() => {
            make_node(fifo)?;
            open().context(what)?
        }
        other => other.context(what).map_err(|error| match error.kind() {
            ErrorKind::NotFound => error.with_kind(ErrorKind::Incompatible).with_hint("put the FIFO back"),
            _ => error,
        })?,
    };
    let stat = rustix::fs::fstat(&node).map_err(io).context(what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!("{} was a FIFO and is another kind of file now", fifo.path),
        )
        .with_hint("move it away"));
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", node.as_raw_fd()), flags, Mode::empty())
        .map_err(io)
        .context(what)
}

fn make_node(fifo: &Fifo) -> Result<()> {
    let path = fifo.path.as_path();
    let what = || format!("make FIFO {} again", fifo.path);
    let mode = Mode::from_raw_mode(fifo.mode & 0o7777);
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0)
        .map_err(io)
        .context(what)
        .map_err(|e| {
            if e.kind() == ErrorKind::NotFound {
                e.with_kind(ErrorKind::Incompatible)
            } else {
                e
            }
        })?;
    let stat = rustix::fs::lstat(path).map_err(io).context(what)?;
    if (stat.st_uid, stat.st_gid) != (fifo.uid, fifo.gid) {
        let (user, group) = (Uid::from_raw(fifo.uid), Gid::from_raw(fifo.gid));
        rustix::fs::chownat(
            rustix::fs::CWD,
            path,
            Some(user),
            Some(group),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(io)
        .context(|| format!("give FIFO {} to user {} and group {}", fifo.path, fifo.uid, fifo.gid))?;
    }
    // The mode given to mknod was subject to our umask.
    rustix::fs::chmod(path, mode).map_err(io).context(what)
}
