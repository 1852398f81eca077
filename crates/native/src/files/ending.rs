//! Connections of a job that is about to be killed.
//!
//! What a process has written when it is killed, and the kernel's memory of the connection, stay behind for minutes
//! where the other machine is gone, and keep the port: the job could not go on from an image meanwhile.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use cpr_kernel::proc::ProcDir;
use cpr_types::{Context as _, Result};
use rustix::process::PidfdGetfdFlags;

use super::{inet, meet};

/// Has all TCP connections that a process has open be reset when the last of their descriptors is closed (SO_LINGER).
/// Those that it opens later, and those of a process that has ended meanwhile, are as they were.
///
/// # Errors
/// Its descriptors cannot be listed or copied: it is another user's, or lets nobody look at it.
pub fn reset_when_closed(pid: i32, pidfd: BorrowedFd<'_>) -> Result<()> {
    let what = || format!("process {pid}: have its connections be reset");
    let Ok(proc) = ProcDir::open_living(pid) else {
        return Ok(());
    };
    for fd in proc.descriptors().context(what)? {
        let is_socket = proc.fd_link(fd).is_ok_and(|link| link.starts_with(b"socket:"));
        if !is_socket {
            continue;
        }
        let end = match rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()) {
            // It has been closed, or the process has ended.
            Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => continue,
            end => end.map_err(io::Error::from).context(what)?,
        };
        if inet::is_tcp(end.as_fd()) {
            meet::vanish_on_close(end.as_fd(), true).context(what)?;
        }
    }
    Ok(())
}
