//! What asynchronous write protection ([`crate::write_tracking`]), demand paging ([`crate::demand_paging`]) and moving
//! pages ([`crate::page_move`]) have in common: making a userfaultfd(2) in another process, and registering its memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::batch::{Arg, Batch, CallId};

/// What UFFDIO_API is asked for.
pub(crate) const UFFD_API: u64 = 0xaa;
/// _IOWR(0xAA, 0x3F, struct uffdio_api).
pub(crate) const UFFDIO_API: u64 = 0xc018_aa3f;
/// _IOWR(0xAA, 0x00, struct uffdio_register).
pub(crate) const UFFDIO_REGISTER: u64 = 0xc020_aa00;
/// _IOR(0xAA, 0x01, struct uffdio_range).
pub(crate) const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// Adds the call that makes a descriptor in a process, with further flags; it gives its number there.
pub(crate) fn open_calls(batch: &mut Batch, flags: i32) -> CallId {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | flags;
    batch.must(libc::SYS_userfaultfd, &[flags.into()], "make a userfaultfd")
}

/// Adds the call that chooses features for descriptor `number`.
pub(crate) fn setup_calls(batch: &mut Batch, number: u64, features: u64, what: &str) {
    let words = [UFFD_API, features, 0];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let api = batch.data(&bytes);
    batch.must(libc::SYS_ioctl, &[Arg::from(number), UFFDIO_API.into(), api], what);
}

/// Chooses features for a descriptor, from whatever process.
pub(crate) fn set_up(fd: BorrowedFd<'_>, features: u64) -> io::Result<()> {
    let mut words = [UFFD_API, features, 0];
    // SAFETY: UFFDIO_API reads and writes one struct uffdio_api, three words of 64 bits, which `words` holds and which
    // outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, words.as_mut_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// UFFDIO_REGISTER of a range of the process with UFFDIO_REGISTER_MODE_* bits.
pub(crate) fn register(fd: BorrowedFd<'_>, start: u64, end: u64, mode: u64) -> io::Result<()> {
    let mut register = Register {
        start,
        length: end - start,
        mode,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_REGISTER reads and writes one struct uffdio_register, which `register` is laid out as and
    // which outlives the call. The addresses are those of the other process and are not used here.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
