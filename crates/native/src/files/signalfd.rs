//! signalfd(2): the mask. The signals themselves are pending signals of the process that reads.

use std::os::fd::OwnedFd;

use cpr_image::model::{Object, OpenFile};
use cpr_kernel::proc::FdInfoKind;
use cpr_types::{Context, Error, ErrorKind, Result};

use super::eventfd::is_nonblocking;
use super::{Description, RestoreContext, SaveContext};

/// Saves the mask, which the kernel shows.
///
/// # Errors
/// [`ErrorKind::Internal`] when `description` is no signalfd.
pub fn save(description: &Description, _context: &mut SaveContext<'_>) -> Result<Object> {
    match description.info.kind {
        FdInfoKind::SignalFd { mask } => Ok(Object::SignalFd { mask }),
        _ => Err(Error::new(
            ErrorKind::Internal,
            format!("{}: no signalfd", description.label()),
        )),
    }
}

/// Makes a signalfd with that mask.
///
/// # Errors
/// The kernel makes none.
pub fn restore(file: &OpenFile, mask: u64, _context: &mut RestoreContext<'_>) -> Result<OwnedFd> {
    cpr_kernel::event::signalfd(mask, is_nonblocking(file)).context(|| format!("make a signalfd for {mask:#x}"))
}
