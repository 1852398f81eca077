//! Having the kernel begin to write a file to its disk before anybody waits for that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Begins to write what was written of this part of a file (sync_file_range(2) with SYNC_FILE_RANGE_WRITE), and does not
/// wait for the disk, unless too much is on its way to it. File systems in memory have nothing to do.
///
/// Nothing is durable by that: errors of the disk are told by fsync(2), as if this had not been called.
///
/// # Errors
/// The file has no disk of its own, as a pipe (ESPIPE); what the file system says at once, as ENOSPC.
pub fn begin(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = i64::try_from(offset).map_err(wrong)?;
    let length = i64::try_from(length).map_err(wrong)?;
    // SAFETY: the call takes numbers only, and the descriptor is open as long as it is borrowed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
