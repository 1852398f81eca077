//! Asynchronous write protection with userfaultfd(2): the kernel notes which pages of another process are written,
//! without stopping it (Linux 6.7; Documentation/admin-guide/mm/userfaultfd.rst, pagemap.rst).
//!
//! The descriptor has to be made and set up in the process itself ([`open_calls`], through a batch); everything else is
//! done from outside on a duplicate. Tracking ends when the duplicate is dropped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::batch::{Batch, CallId};
use crate::userfaultfd;

const UFFD_USER_MODE_ONLY: i32 = 1;
/// PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC.
const FEATURES: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;

/// Adds the calls that make the descriptor in a process; the first gives its number there.
pub fn open_calls(batch: &mut Batch) -> CallId {
    userfaultfd::open_calls(batch, UFFD_USER_MODE_ONLY)
}

/// Adds the call that chooses asynchronous write protection for descriptor `number`.
pub fn setup_calls(batch: &mut Batch, number: u64) {
    let what = "ask for asynchronous write protection";
    userfaultfd::setup_calls(batch, number, FEATURES, what);
}

/// Tracks the writes of one process.
#[derive(Debug)]
pub struct WriteTracker {
    fd: OwnedFd,
}

impl WriteTracker {
    /// From a duplicate of the descriptor the process has made.
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
