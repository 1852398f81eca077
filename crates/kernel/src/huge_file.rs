//! Writing to files of explicit huge pages, which takes a mapping: write(2) fails there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
/// ENOMEM where there are not enough huge pages; EFAULT where one cannot be had although it was promised.
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

/// Writes to our own memory: to a mapping that Rust knows nothing of. A page that cannot be had is an error here, where
/// a plain store would be the end of us.
pub(crate) fn write_own(address: u64, data: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        let from = libc::iovec {
            iov_base: data[done..].as_ptr().cast_mut().cast(),
            iov_len: data.len() - done,
        };
        let to = libc::iovec {
            iov_base: (address + done as u64) as *mut libc::c_void,
            iov_len: data.len() - done,
        };
        // SAFETY: the kernel reads `from`, which is `data`, and writes to memory at `to`, of which the caller says that it
        // is a mapping of ours that Rust knows nothing of.
        let written = unsafe { libc::process_vm_writev(own_pid(), &raw const from, 1, &raw const to, 1, 0) };
        match usize::try_from(written) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(written) => done += written,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// Reads our own memory, in the same way.
pub(crate) fn read_own(address: u64, buffer: &mut [u8]) -> io::Result<()> {
    crate::memory::read_of(own_pid(), address, buffer)
}

fn own_pid() -> libc::pid_t {
    std::process::id() as libc::pid_t
}
