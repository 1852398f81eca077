//! File locks, and who is sent signals about a file.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use cpr_image::model::{
    Descriptor, FileId, FileOwner, FlockKind, Lease, LeaseTarget, Manifest, OpenFile, PosixLock, Process,
};
use cpr_kernel::batch::{Arg, Batch};
use cpr_kernel::fd::{self, Owner};
use cpr_kernel::proc::{FdInfo, LockKind, LockLine};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

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

/// The lease of a description.
///
/// Of one that is being broken the kernel tells what it is to become, and not what it is; a lease that can be written
/// through cannot be a read lease.
pub(super) fn lease(info: &FdInfo) -> Option<Lease> {
    let line = info.locks.iter().find(|lock| lock.kind == LockKind::Lease)?;
    if !line.breaking {
        return Some(Lease {
            exclusive: line.exclusive,
            breaking: None,
        });
    }
    Some(Lease {
        exclusive: !line.unlock || kind::writable(info.flags),
        breaking: Some(if line.unlock {
            LeaseTarget::None
        } else {
            LeaseTarget::Read
        }),
    })
}

/// The process that took the flock(2) lock or the lease, zero if none did.
pub(super) fn locker(info: &FdInfo) -> i32 {
    let ours = |kind| matches!(kind, LockKind::Flock | LockKind::Lease);
    let line = info.locks.iter().find(|lock| ours(lock.kind));
    line.map_or(0, |lock| lock.pid.max(0))
}

/// The process and descriptor that takes the description's lock or lease again: the kernel shows, and sends signals to,
/// the process that did. None if no process has it open.
fn taker(manifest: &Manifest, id: FileId, file: &OpenFile) -> Option<(i32, i32)> {
    let holders = manifest.processes.iter().filter_map(|process| {
        let descriptor = process.descriptors.iter().find(|d| d.file == id)?;
        Some((process.pid, descriptor.fd))
    });
    holders.min_by_key(|(pid, _)| *pid != file.locker)
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
pub(super) fn take(fd: BorrowedFd<'_>, file: &OpenFile, id: FileId, manifest: &Manifest) -> Result<()> {
    let refused = |e: Error| {
        if e.kind() == ErrorKind::Busy {
            e.with_kind(ErrorKind::InUse).with_hint(LOCK_HINT)
        } else {
            e
        }
    };
    if let Some(kind) = file.flock.filter(|_| taker(manifest, id, file).is_none()) {
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

/// The descriptors through which a process takes locks and leases of descriptions.
pub(super) fn taken_by<'a>(process: &'a Process, manifest: &'a Manifest) -> impl Iterator<Item = &'a Descriptor> {
    process.descriptors.iter().filter(|descriptor| {
        let file = manifest.files.get(descriptor.file.index());
        file.is_some_and(|file| {
            (file.flock.is_some() || file.lease.is_some())
                && taker(manifest, descriptor.file, file) == Some((process.pid, descriptor.fd))
        })
    })
}

/// Adds the calls by which a process takes flock(2) locks and leases again.
pub(super) fn take_own(process: &Process, manifest: &Manifest, batch: &mut Batch) {
    for descriptor in taken_by(process, manifest) {
        let Some(file) = manifest.files.get(descriptor.file.index()) else {
            continue;
        };
        let what = |object: &str| {
            format!(
                "process {}, descriptor {}{}: take the {object} again",
                process.pid,
                descriptor.fd,
                super::restore::path_of(file)
            )
        };
        if let Some(kind) = file.flock {
            let operation = match kind {
                FlockKind::Shared => libc::LOCK_SH,
                FlockKind::Exclusive => libc::LOCK_EX,
            };
            batch.must(
                libc::SYS_flock,
                &[Arg::from(descriptor.fd), Arg::from(operation | libc::LOCK_NB)],
                what("lock (flock)"),
            );
        }
        if let Some(lease) = file.lease {
            let kind = if lease.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
            batch.must(
                libc::SYS_fcntl,
                &[Arg::from(descriptor.fd), Arg::from(libc::F_SETLEASE), Arg::from(kind)],
                what("lease"),
            );
        }
    }
}

/// Opens what `fd` has a lease on that is being broken, so that it is being broken again. The process that took the
/// lease gets the signal once more, and must throw it away.
///
/// # Errors
/// The file cannot be opened in the way that breaks the lease.
pub(super) fn break_lease(fd: BorrowedFd<'_>, file: &OpenFile) -> Result<()> {
    let Some(target) = file.lease.and_then(|lease| lease.breaking) else {
        return Ok(());
    };
    let access = match target {
        LeaseTarget::Read => OFlags::RDONLY,
        LeaseTarget::None => OFlags::WRONLY,
    };
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(std::io::Error::from(error)).context(|| "break the lease"),
    }
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
