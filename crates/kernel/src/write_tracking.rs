//! Asynchronous write protection with userfaultfd(2): the kernel notes which pages of another process are written,
//! without stopping it (Linux 6.7; Documentation/admin-guide/mm/userfaultfd.rst, pagemap.rst).
//!
//! The descriptor has to be made and set up in the process itself ([`open_calls`], through a batch); everything else is
//! done from outside on a duplicate. Tracking ends when the duplicate is dropped.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::batch::{Arg, Batch, CallId};

const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
/// PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC.
const FEATURES: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;
/// _IOWR(0xAA, 0x3F, struct uffdio_api).
const UFFDIO_API: u64 = 0xc018_aa3f;
/// _IOWR(0xAA, 0x00, struct uffdio_register).
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// Adds the calls that make the descriptor in a process; the first gives its number there.
pub fn open_calls(batch: &mut Batch) -> CallId {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
    batch.must(libc::SYS_userfaultfd, &[flags.into()], "make a userfaultfd")
}

/// Adds the call that chooses asynchronous write protection for descriptor `number`.
pub fn setup_calls(batch: &mut Batch, number: u64) {
    let words = [UFFD_API, FEATURES, 0];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let api = batch.data(&bytes);
    batch.must(
        libc::SYS_ioctl,
        &[Arg::from(number), UFFDIO_API.into(), api],
        "ask for asynchronous write protection",
    );
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
        let mut register = Register {
            start,
            length: end - start,
            mode: UFFDIO_REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes one struct uffdio_register, which `register` is laid out as and
        // which outlives the call. The addresses are those of the other process and are not used here.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
