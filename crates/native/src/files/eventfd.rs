//! eventfd(2): the counter.

use std::os::fd::OwnedFd;

use cpr_image::model::{Object, OpenFile};
use cpr_kernel::proc::FdInfoKind;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::event::EventfdFlags;
use rustix::fs::OFlags;

use super::{Description, RestoreContext, SaveContext};

/// Saves counter and mode, which the kernel shows.
///
/// # Errors
/// [`ErrorKind::Internal`] when `description` is no eventfd.
pub fn save(description: &Description, _context: &mut SaveContext<'_>) -> Result<Object> {
    match description.info.kind {
        FdInfoKind::EventFd { count, semaphore, .. } => Ok(Object::EventFd {
            count,
            semaphore: semaphore.unwrap_or_default(),
        }),
        _ => Err(Error::new(
            ErrorKind::Internal,
            format!("{}: no eventfd", description.label()),
        )),
    }
}

/// Makes an eventfd with that counter.
///
/// # Errors
/// The kernel makes none or refuses the counter.
pub fn restore(file: &OpenFile, count: u64, semaphore: bool, _context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    make(count, semaphore, is_nonblocking(file))
}

/// Makes an eventfd with that counter.
///
/// # Errors
/// The kernel makes none or refuses the counter.
pub fn make(count: u64, semaphore: bool, nonblocking: bool) -> Result<OwnedFd> {
    let io = std::io::Error::from;
    let mut flags = EventfdFlags::CLOEXEC;
    flags.set(EventfdFlags::SEMAPHORE, semaphore);
    flags.set(EventfdFlags::NONBLOCK, nonblocking);
    let fd = rustix::event::eventfd(0, flags)
        .map_err(io)
        .context(|| "make an eventfd")?;
    // The largest value is an overflow that only the kernel itself can cause; a write reaches the one below.
    let count = count.min(u64::MAX - 1);
    if count > 0 {
        rustix::io::write(&fd, &count.to_ne_bytes())
            .map_err(io)
            .context(|| format!("set an eventfd to {count}"))?;
    }
    Ok(fd)
}

/// O_NONBLOCK of a saved open file.
pub(super) fn is_nonblocking(file: &OpenFile) -> bool {
    OFlags::from_bits_retain(file.flags as u32).contains(OFlags::NONBLOCK)
}
