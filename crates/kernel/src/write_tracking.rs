//! Asynchronous write protection with userfaultfd(2): the kernel notes which pages of another process are written,
//! without stopping it (Linux 6.7; Documentation/admin-guide/mm/userfaultfd.rst, pagemap.rst).
//!
//! The descriptor has to be made in the process itself ([`OPEN`]); everything else is done from outside on a duplicate.
//! Tracking ends when the duplicate is dropped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::userfaultfd;

const UFFD_USER_MODE_ONLY: i32 = 1;
/// PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC.
const FEATURES: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;

/// The system call that makes the descriptor in a process, and its argument.
pub const OPEN: (i64, u64) = (
    libc::SYS_userfaultfd,
    (libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY) as u64,
);

/// Tracks the writes of one process.
#[derive(Debug)]
pub struct WriteTracker {
    fd: OwnedFd,
}

impl WriteTracker {
    /// From a duplicate of the descriptor that the process has just made ([`OPEN`]).
    ///
    /// # Errors
    /// EINVAL where the kernel has no asynchronous write protection.
    pub fn set_up(fd: OwnedFd) -> io::Result<Self> {
        userfaultfd::set_up(fd.as_fd(), FEATURES)?;
        Ok(WriteTracker { fd })
    }

    /// From a duplicate that has been set up.
    pub fn new(fd: OwnedFd) -> Self {
        WriteTracker { fd }
    }

    /// The descriptor, which keeps the tracking up wherever it goes.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Registers a mapping of the process.
    ///
    /// # Errors
    /// EBUSY when the process uses userfaultfd on it itself, EINVAL for mappings that cannot be tracked.
    pub fn register(&self, start: u64, end: u64) -> io::Result<()> {
        userfaultfd::register(self.fd.as_fd(), start, end, UFFDIO_REGISTER_MODE_WP)
    }
}
