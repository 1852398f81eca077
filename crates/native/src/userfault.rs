//! Making a userfaultfd(2) in a stopped process, and taking it.

use std::os::fd::OwnedFd;

use cpr_kernel::batch::{Batch, CallId, Outcome};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::process::PidfdGetfdFlags;

use crate::files::open_acting;

/// Has process `pid` make a userfaultfd and set it up, by batches that `run` runs in it. Gives a duplicate; the process
/// itself keeps none, also where that fails.
///
/// # Errors
/// The kernel has no such descriptor, or the process may not have one.
pub fn make(
    pid: i32,
    open: impl FnOnce(&mut Batch) -> CallId,
    set_up: impl FnOnce(&mut Batch, u64),
    mut run: impl FnMut(&Batch) -> Result<Outcome>,
) -> Result<OwnedFd> {
    let mut batch = Batch::new();
    let call = open(&mut batch);
    let number = run(&batch)?.result(call).context(|| "make a userfaultfd")?;
    let take = || {
        let mut batch = Batch::new();
        set_up(&mut batch, number);
        run(&batch)?;
        self::take(pid, number)
    };
    let taken = take();
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[number.into()]);
    run(&batch)?;
    taken
}

/// A duplicate of descriptor `number` of process `pid`.
///
/// # Errors
/// The process may not be traced, or has no such descriptor.
pub fn take(pid: i32, number: u64) -> Result<OwnedFd> {
    let pidfd = open_acting(pid, cpr_kernel::proc::acting(pid))?;
    let pidfd = pidfd.ok_or_else(|| Error::new(ErrorKind::Gone, format!("process {pid} has ended")))?;
    rustix::process::pidfd_getfd(pidfd.fd(), number as i32, PidfdGetfdFlags::empty())
        .map_err(std::io::Error::from)
        .context(|| format!("take a descriptor of process {pid}"))
}
