//! File locks, and who is sent signals about a file.

use std::os::fd::{AsFd, BorrowedFd};

use cpr_image::model::{FileOwner, FlockKind, OpenFile, PosixLock, Process};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::fd::{self, Owner};
use cpr_kernel::proc::{FdInfo, LockKind, LockLine};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, OFlags};

use super::{Description, kind};

const LOCK_HINT: &str = "another process holds the lock; end it, then restart";

fn length(lock: &LockLine) -> u64 {
    // Up to the last offset there is the kernel shows "EOF", which zero stands for.
    lock.end
        .map_or(0, |end| end.saturating_sub(lock.start).saturating_add(1))
}

/// flock(2) of a description.
pub(super) fn flock(info: &FdInfo) -> Option<FlockKind> {
    let lock = info.locks.iter().find(|lock| lock.kind == LockKind::Flock)?;
    Some(if lock.exclusive {
        FlockKind::Exclusive
    } else {
        FlockKind::Shared
    })
}

/// Open-file-description locks.
pub(super) fn ofd_locks(info: &FdInfo) -> Vec<(bool, u64, u64)> {
    let ofd = info.locks.iter().filter(|lock| lock.kind == LockKind::Ofd);
    ofd.map(|lock| (lock.exclusive, lock.start, length(lock))).collect()
}

/// Adds the record locks of a process that descriptor `fd` shows. Every descriptor of the same file shows all of them;
/// the one kept must be able to take the lock.
pub(super) fn posix_locks(number: i32, info: &FdInfo, locks: &mut Vec<(LockLine, PosixLock)>) {
    for line in info.locks.iter().filter(|lock| lock.kind == LockKind::Posix) {
        let fits = if line.exclusive {
            kind::writable(info.flags)
        } else {
            kind::readable(info.flags)
        };
        let same = |other: &LockLine| {
            (other.dev, other.inode, other.start, other.end, other.exclusive)
                == (line.dev, line.inode, line.start, line.end, line.exclusive)
        };
        match locks.iter_mut().find(|(other, _)| same(other)) {
            Some((_, lock)) if fits && lock.fd < 0 => lock.fd = number,
            Some(_) => {}
            None => locks.push((
                *line,
                PosixLock {
                    fd: if fits { number } else { -1 },
                    exclusive: line.exclusive,
                    start: line.start,
                    length: length(line),
                },
            )),
        }
    }
}

/// Who gets signals about a file; none if nothing was set, or only a process that is no more.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn owner(description: &Description) -> Result<Option<FileOwner>> {
    if kind::is_path(description.info.flags) {
        return Ok(None);
    }
    let what = || format!("{}: get the owner", description.label());
    let owner = fd::owner(description.handle.as_fd()).context(what)?;
    let signal = fd::owner_signal(description.handle.as_fd()).context(what)?;
    Ok((owner.id != 0 || signal != 0).then_some(FileOwner {
        kind: owner.kind,
        id: owner.id,
        signal,
    }))
}

/// Takes the locks that belong to the description.
///
/// # Errors
/// [`ErrorKind::InUse`] when somebody else has one.
pub(super) fn take(fd: BorrowedFd<'_>, file: &OpenFile) -> Result<()> {
    let refused = |e: Error| {
        if e.kind() == ErrorKind::Busy {
            e.with_kind(ErrorKind::InUse).with_hint(LOCK_HINT)
        } else {
            e
        }
    };
    if let Some(kind) = file.flock {
        let operation = match kind {
            FlockKind::Shared => FlockOperation::NonBlockingLockShared,
            FlockKind::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        rustix::fs::flock(fd, operation)
            .map_err(std::io::Error::from)
            .context(|| "take the lock (flock) again")
            .map_err(refused)?;
    }
    for (exclusive, start, length) in &file.ofd_locks {
        fd::lock_description(fd, *exclusive, *start, *length)
            .context(|| format!("take the lock of {length} bytes at {start} again"))
            .map_err(refused)?;
    }
    Ok(())
}

/// Sets who gets signals, then O_ASYNC.
///
/// # Errors
/// The kernel refuses.
pub(super) fn set_owner(fd: BorrowedFd<'_>, file: &OpenFile) -> Result<()> {
    if let Some(owner) = file.owner {
        if owner.signal != 0 {
            fd::set_owner_signal(fd, owner.signal).context(|| format!("set its signal to {}", owner.signal))?;
        }
        if owner.id != 0 {
            let wanted = Owner {
                kind: owner.kind,
                id: owner.id,
            };
            match fd::set_owner(fd, wanted) {
                // It is no process of the job, or one that ended before the checkpoint.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result.context(|| format!("set its owner to {}", owner.id))?,
            }
        }
    }
    if file.flags & libc::O_ASYNC != 0 {
        let flags = rustix::fs::fcntl_getfl(fd)
            .map_err(std::io::Error::from)
            .context(|| "get its flags")?;
        let asynchronous = OFlags::from_bits_retain(libc::O_ASYNC as u32);
        rustix::fs::fcntl_setfl(fd, flags | asynchronous)
            .map_err(std::io::Error::from)
            .context(|| "switch signals on")?;
    }
    Ok(())
}

/// Adds the calls by which a process takes its record locks again.
pub(super) fn take_posix(process: &Process, batch: &mut Batch) {
    for lock in &process.posix_locks {
        let bytes = fd::record_lock_bytes(lock.exclusive, lock.start, lock.length);
        let address = batch.data(&bytes);
        batch.must(
            libc::SYS_fcntl,
            &[Arg::from(lock.fd), Arg::from(libc::F_SETLK), address],
            format!(
                "process {}, descriptor {}: take the lock of {} bytes at {} again",
                process.pid, lock.fd, lock.length, lock.start
            ),
        );
    }
}
