//! Bringing pages of another process when it first touches them, with userfaultfd(2)
//! (Documentation/admin-guide/mm/userfaultfd.rst).
//!
//! The descriptor has to be made and set up in the process itself ([`open_calls`], [`setup_calls`], through a batch),
//! with CAP_SYS_PTRACE in the initial user namespace, because faults inside system calls are served, too; everything
//! else is done from outside on a duplicate. It does not know where pages come from.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::batch::{Batch, CallId};
use crate::memory::PAGE;
use crate::userfaultfd::{self, UFFD_API, UFFDIO_API, UFFDIO_UNREGISTER};

/// EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// _IOR(0xAA, 0x02, struct uffdio_range).
const UFFDIO_WAKE: u64 = 0x8010_aa02;
/// _IOWR(0xAA, 0x03, struct uffdio_copy).
const UFFDIO_COPY: u64 = 0xc028_aa03;
/// _IOWR(0xAA, 0x04, struct uffdio_zeropage).
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;

/// `struct uffd_msg`, and how many are read at a time.
const MESSAGE: usize = 32;
const MESSAGES: usize = 32;

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct Zero {
    start: u64,
    length: u64,
    mode: u64,
    zeroed: i64,
}

/// Whether this process may make such a descriptor with all that is needed: where not, no process it makes may.
pub fn is_available() -> bool {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call takes a number only; what it returns is checked before it is owned.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        return false;
    }
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [UFFD_API, FEATURES, 0];
    // SAFETY: UFFDIO_API reads and writes one struct uffdio_api of three 64-bit words, which `api` is.
    unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) == 0 }
}

/// Adds the call that makes the descriptor in a process; it gives its number there.
pub fn open_calls(batch: &mut Batch) -> CallId {
    userfaultfd::open_calls(batch, 0)
}

/// Adds the call that asks descriptor `number` to tell of forks and of memory that moves or goes.
pub fn setup_calls(batch: &mut Batch, number: u64) {
    let what = "ask for page faults and changes of memory";
    userfaultfd::setup_calls(batch, number, FEATURES, what);
}

/// Adds the call that makes a descriptor in a process that does not run while its memory is filled: nobody's faults are
/// told of, and it takes no privilege (Linux 5.11). It gives its number there.
pub fn open_still_calls(batch: &mut Batch) -> CallId {
    userfaultfd::open_calls(batch, UFFD_USER_MODE_ONLY)
}

/// Adds the call that sets up descriptor `number` of [`open_still_calls`].
pub fn setup_still_calls(batch: &mut Batch, number: u64) {
    userfaultfd::setup_calls(batch, number, 0, "have memory filled");
}

/// What happens in the process. Addresses are its own.
#[derive(Debug)]
pub enum PageEvent {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// It made a child, whose memory was the same at that moment.
    Fork(DemandPager),
    /// Memory moved.
    Remap {
        /// From here …
        from: u64,
        /// … to here.
        to: u64,
        /// Bytes.
        length: u64,
    },
    /// The pages from the first address up to the second were given back (madvise(2)), or are no longer mapped: they
    /// come from nowhere any more.
    Gone(u64, u64),
}

/// Brings the pages of one process.
#[derive(Debug)]
pub struct DemandPager {
    fd: OwnedFd,
}

impl From<OwnedFd> for DemandPager {
    /// From a duplicate of the descriptor the process has made.
    fn from(fd: OwnedFd) -> Self {
        DemandPager { fd }
    }
}

impl AsFd for DemandPager {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl DemandPager {
    /// Faults in pages of this private anonymous mapping that are not there are told from now on, and served by us
    /// only.
    ///
    /// # Errors
    /// EINVAL for mappings of other kinds, EBUSY where the process uses userfaultfd itself.
    pub fn register(&self, start: u64, end: u64) -> io::Result<()> {
        userfaultfd::register(self.fd.as_fd(), start, end, UFFDIO_REGISTER_MODE_MISSING)
    }

    /// The kernel serves faults there again; who waits is woken.
    pub fn unregister(&self, start: u64, end: u64) -> io::Result<()> {
        let range = Range {
            start,
            length: end - start,
        };
        // SAFETY: UFFDIO_UNREGISTER reads one struct uffdio_range, which `range` is and which outlives the call. The
        // addresses are those of the other process and are not used here.
        self.checked(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_UNREGISTER, &raw const range) })
    }

    /// Puts whole pages where none are, and wakes who waits for them. Gives how many bytes were put before an error.
    ///
    /// # Errors
    /// EEXIST where a page is, ENOENT where nothing is registered, EAGAIN while an event waits to be read, ESRCH when
    /// the memory is gone.
    pub fn copy(&self, to: u64, pages: &[u8]) -> (u64, io::Result<()>) {
        let mut copy = Copy {
            to,
            from: pages.as_ptr() as u64,
            length: pages.len() as u64 / PAGE * PAGE,
            mode: 0,
            copied: 0,
        };
        // SAFETY: UFFDIO_COPY reads `length` bytes at `from`, which `pages` has, and reads and writes one struct
        // uffdio_copy, which `copy` is laid out as; both outlive the call. `to` is an address of the other process.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
        done(result, copy.copied)
    }

    /// Puts a page of zeros at an address. Errors are those of [`DemandPager::copy`].
    pub fn zero(&self, page: u64) -> io::Result<()> {
        let mut zero = Zero {
            start: page,
            length: PAGE,
            mode: 0,
            zeroed: 0,
        };
        // SAFETY: UFFDIO_ZEROPAGE reads and writes one struct uffdio_zeropage, which `zero` is laid out as and which
        // outlives the call. The address is one of the other process and is not used here.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zero) };
        done(result, zero.zeroed).1
    }

    /// Lets threads that wait for a page look again.
    pub fn wake(&self, page: u64) -> io::Result<()> {
        let range = Range {
            start: page,
            length: PAGE,
        };
        // SAFETY: UFFDIO_WAKE reads one struct uffdio_range, which `range` is and which outlives the call. The address
        // is one of the other process and is not used here.
        self.checked(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE, &raw const range) })
    }

    /// Takes in what has happened, without waiting; nothing where nothing has.
    pub fn events(&self) -> io::Result<Vec<PageEvent>> {
        let mut raw = [0u8; MESSAGE * MESSAGES];
        let got = match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut raw)) {
            Ok(got) => got,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(raw[..got].chunks_exact(MESSAGE).filter_map(event).collect())
    }

    fn checked(&self, result: libc::c_int) -> io::Result<()> {
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// What was done, and why not all. The kernel gives the first error in the structure, and EAGAIN after a part was done.
fn done(result: libc::c_int, count: i64) -> (u64, io::Result<()>) {
    if result == 0 {
        return (count.max(0) as u64, Ok(()));
    }
    let error = io::Error::last_os_error();
    (count.max(0) as u64, Err(error))
}

/// One `struct uffd_msg`: the event, then at offset 8 what belongs to it.
fn event(message: &[u8]) -> Option<PageEvent> {
    let word = |at: usize| {
        let mut raw = [0u8; 8];
        raw.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(raw)
    };
    match message[0] {
        // flags, address, thread
        0x12 => Some(PageEvent::Fault(word(16) & !(PAGE - 1))),
        0x13 => {
            let number = word(8) as u32 as i32;
            // SAFETY: with the message UFFD_EVENT_FORK the kernel has just put a new descriptor into our table, which
            // nobody else knows of.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            Some(PageEvent::Fork(DemandPager { fd }))
        }
        0x14 => Some(PageEvent::Remap {
            from: word(8),
            to: word(16),
            length: word(24),
        }),
        0x15 | 0x16 => Some(PageEvent::Gone(word(8), word(16))),
        _ => None,
    }
}
