//! Writing to files of explicit huge pages, which takes a mapping: write(2) fails there.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// A part of a file that is mapped for a while.
struct Mapped {
    address: *mut libc::c_void,
    length: usize,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped by us at this address and length, and nothing refers to it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// Writes `data` at byte `at` of a file that consists of pages of `page` bytes, within its size.
///
/// # Errors
/// ENOMEM where there are not enough huge pages; EIO or EFAULT where one cannot be had although it was promised.
pub fn write(file: BorrowedFd<'_>, at: u64, data: &[u8], page: u64) -> io::Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    let too_big = || io::Error::from_raw_os_error(libc::EINVAL);
    let first = at - at.checked_rem(page).ok_or_else(too_big)?;
    let end = at.checked_add(data.len() as u64).ok_or_else(too_big)?;
    let length = end
        .checked_next_multiple_of(page)
        .and_then(|end| usize::try_from(end - first).ok())
        .ok_or_else(too_big)?;
    let offset = libc::off_t::try_from(first).map_err(|_| too_big())?;
    // SAFETY: with a null address the kernel chooses a free place, so that nothing of ours is replaced.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            offset,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mapped = Mapped { address, length };
    write_own(mapped.address as u64 + (at - first), data)
}

/// Writes to our own memory. A page that cannot be had is an error here, where a plain store would be the end of us.
pub fn write_own(address: u64, data: &[u8]) -> io::Result<()> {
    File::options()
        .write(true)
        .open("/proc/self/mem")?
        .write_all_at(data, address)
}

/// Reads our own memory, in the same way.
pub fn read_own(address: u64, buffer: &mut [u8]) -> io::Result<()> {
    File::open("/proc/self/mem")?.read_exact_at(buffer, address)
}
