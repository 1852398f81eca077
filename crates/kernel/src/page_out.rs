//! Pushing the memory of another process out to swap or back to its files.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks the kernel to page out the given ranges (address, length) of the process behind `pidfd`; gives the number of
/// bytes it took the advice for. Needs CAP_SYS_NICE and the right to trace the process. Where a range cannot be
/// advised (special mappings) it is skipped.
pub fn page_out(pidfd: BorrowedFd<'_>, ranges: &[(u64, u64)]) -> io::Result<u64> {
    let mut advised = 0;
    for &(start, length) in ranges {
        let vector = libc::iovec {
            iov_base: start as *mut libc::c_void,
            iov_len: length as usize,
        };
        // SAFETY: the kernel reads one iovec, which outlives the call. Its range is of the other process and is never
        // accessed here; MADV_PAGEOUT keeps the contents of memory.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd.as_raw_fd(),
                &vector as *const libc::iovec,
                1usize,
                libc::MADV_PAGEOUT,
                0u32,
            )
        };
        if rc >= 0 {
            advised += rc as u64;
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOMEM | libc::EBADF | libc::EFAULT) => {}
            _ => return Err(error),
        }
    }
    Ok(advised)
}
