//! pidfd_open(2) of processes of the job.

use std::os::fd::OwnedFd;

use cpr_image::model::{Object, OpenFile};
use cpr_kernel::proc::FdInfoKind;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags};

use super::eventfd::is_nonblocking;
use super::{Description, RestoreContext, SaveContext};

/// Saves the process a pidfd stands for.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a process outside the job, and a pidfd of a single thread.
pub fn save(description: &Description, context: &mut SaveContext<'_>) -> Result<Object> {
    let refuse = |why: String| {
        Error::new(
            ErrorKind::Unsupported,
            format!("{}: a pidfd {why}", description.label()),
        )
    };
    let FdInfoKind::PidFd { pid, .. } = description.info.kind else {
        return Err(Error::new(
            ErrorKind::Internal,
            format!("{}: no pidfd", description.label()),
        ));
    };
    // PIDFD_THREAD is O_EXCL.
    if OFlags::from_bits_retain(description.info.flags as u32).contains(OFlags::EXCL) {
        return Err(refuse(format!("of thread {pid}")));
    }
    match pid {
        // Since Linux 6.9 the inode number is the process's.
        -1 => Ok(Object::DeadPidFd {
            process: description.stat.st_ino,
        }),
        0 => Err(refuse("of a process in another PID namespace".into())),
        pid if context.targets.iter().any(|target| target.pid == pid) || context.zombies.contains(&pid) => {
            Ok(Object::PidFd { pid })
        }
        pid => Err(refuse(format!("of process {pid}, which is outside the job"))),
    }
}

/// Opens a pidfd of a process, which must exist by then.
///
/// # Errors
/// There is no such process.
pub fn restore(file: &OpenFile, pid: i32, _context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    let mut flags = PidfdFlags::empty();
    flags.set(PidfdFlags::NONBLOCK, is_nonblocking(file));
    let what = || format!("open a pidfd of process {pid}");
    let process = Pid::from_raw(pid)
        .filter(|_| pid > 0)
        .ok_or_else(|| Error::new(ErrorKind::Damaged, what()))?;
    rustix::process::pidfd_open(process, flags)
        .map_err(std::io::Error::from)
        .context(what)
}

/// Opens a pidfd of a process that is no more: one that is made for it, and ends at once.
///
/// # Errors
/// No process can be made.
pub fn restore_dead(file: &OpenFile, process: u64, context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    let what = || "make a process that ends at once, for a pidfd";
    let known = context.dead.get(&process);
    let held = match known {
        Some(fd) => fd.try_clone().context(what)?,
        None => {
            let fd = cpr_kernel::process::dead_process().context(what)?;
            context.dead.insert(process, fd.try_clone().context(what)?);
            fd
        }
    };
    let flags = if is_nonblocking(file) {
        OFlags::NONBLOCK
    } else {
        OFlags::empty()
    };
    // Another description of the same pidfd; before Linux 6.9 it cannot be opened again, and is shared.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    match rustix::fs::open(path, flags | OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(_) => Ok(held),
    }
}
