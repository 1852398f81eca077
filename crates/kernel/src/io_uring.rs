//! io_uring instances, io_uring(7): how they are made, what can be asked of one from outside, their memory, and calls
//! to be made in the process that has one.
//!
//! Numbers and structures are those of <linux/io_uring.h>.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use crate::batch::{Arg, Batch, CallId, OutId};

/// IORING_SETUP_IOPOLL: the program looks for completions of devices itself.
pub const SETUP_POLLED: u32 = 1 << 0;
/// IORING_SETUP_SQPOLL: a thread of the kernel's takes requests out of the ring.
pub const SETUP_THREAD: u32 = 1 << 1;
/// IORING_SETUP_CQSIZE: room for completions is asked for.
pub const SETUP_SIZED: u32 = 1 << 3;
/// IORING_SETUP_SUBMIT_ALL: requests after one that is wrong are submitted, too (Linux 5.18).
pub const SETUP_SUBMIT_ALL: u32 = 1 << 7;
/// IORING_SETUP_TASKRUN_FLAG: it shows in the ring when completions wait to be fetched (Linux 5.19).
pub const SETUP_TELL: u32 = 1 << 9;
/// IORING_SETUP_SINGLE_ISSUER: one thread alone submits (Linux 6.0).
pub const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
/// IORING_SETUP_DEFER_TASKRUN: completions are made when that thread asks for them (Linux 6.1).
pub const SETUP_DEFERRED: u32 = 1 << 13;

/// Offset of a mapping of both rings.
pub const RINGS: u64 = 0;
/// The same, by the name that it has for the completion ring.
pub const COMPLETION_RING: u64 = 0x800_0000;
/// Offset of a mapping of the submission queue entries.
pub const ENTRIES: u64 = 0x1000_0000;

/// Bytes of a submission queue entry, of which all zeros is a request for nothing (IORING_OP_NOP).
pub const ENTRY_SIZE: u64 = 64;
/// Where an entry has its flags.
pub const ENTRY_FLAGS: u64 = 1;
/// IOSQE_CQE_SKIP_SUCCESS: it completes without notice (Linux 5.17).
pub const ENTRY_SILENT: u8 = 1 << 6;
/// Bytes of a completion queue entry.
pub const COMPLETION_SIZE: u64 = 16;
/// Where a completion has its flags.
pub const COMPLETION_FLAGS: u64 = 12;
/// IORING_CQE_F_MORE, IORING_CQE_F_NOTIF: of a request with more than one completion.
pub const COMPLETION_OF_SEVERAL: u32 = 1 << 1 | 1 << 3;
/// IORING_OP_MSG_RING: a completion in another ring.
pub const OPCODE_MESSAGE: u8 = 40;

/// Ring descriptors that a thread can register.
pub const REGISTERED_RINGS: u32 = 16;

/// IORING_SQ_NEED_WAKEUP, in the flags of the submission ring: the kernel's thread sleeps.
pub const FLAG_ASLEEP: u32 = 1 << 0;

const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const REGISTER_BUFFERS: u32 = 0;
const REGISTER_FILES: u32 = 2;
const REGISTER_EVENTFD: u32 = 4;
const UNREGISTER_EVENTFD: u32 = 5;
const REGISTER_PROBE: u32 = 8;
const REGISTER_PBUF_STATUS: u32 = 26;
const PARAMETERS_SIZE: usize = 120;

/// `struct io_uring_params`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters([u8; PARAMETERS_SIZE]);

/// Where things are in the memory of both rings, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Layout {
    pub submission_head: u32,
    pub submission_tail: u32,
    pub submission_flags: u32,
    pub dropped: u32,
    pub array: u32,
    pub completion_head: u32,
    pub completion_tail: u32,
    pub overflow: u32,
    pub completions: u32,
}

impl Layout {
    /// As numbers, in the order of the fields.
    pub fn numbers(&self) -> [u32; 9] {
        [
            self.submission_head,
            self.submission_tail,
            self.submission_flags,
            self.dropped,
            self.array,
            self.completion_head,
            self.completion_tail,
            self.overflow,
            self.completions,
        ]
    }

    /// Bytes that both rings take.
    pub fn size(&self, entries: u32, completions: u32) -> u64 {
        let array = u64::from(self.array) + 4 * u64::from(entries);
        array.max(self.size_without_array(completions))
    }

    /// The same of an instance without an array of indices (IORING_SETUP_NO_SQARRAY).
    pub fn size_without_array(&self, completions: u32) -> u64 {
        u64::from(self.completions) + COMPLETION_SIZE * u64::from(completions)
    }
}

impl Parameters {
    /// Asks for room for so many requests and completions.
    pub fn new(entries: u32, completions: u32, flags: u32) -> Self {
        let mut raw = [0; PARAMETERS_SIZE];
        raw[..4].copy_from_slice(&entries.to_ne_bytes());
        raw[4..8].copy_from_slice(&completions.to_ne_bytes());
        raw[8..12].copy_from_slice(&(flags | SETUP_SIZED).to_ne_bytes());
        Parameters(raw)
    }

    /// What the kernel has put in; all zeros where bytes are missing.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Parameters(bytes.first_chunk().copied().unwrap_or([0; PARAMETERS_SIZE]))
    }

    fn word(&self, at: usize) -> u32 {
        let raw = self.0.get(at..).and_then(|raw| raw.first_chunk());
        raw.map_or(0, |raw| u32::from_ne_bytes(*raw))
    }

    /// Room for requests and for completions.
    pub fn room(&self) -> (u32, u32) {
        (self.word(0), self.word(4))
    }

    /// IORING_FEAT_* of the kernel.
    pub fn features(&self) -> u32 {
        self.word(20)
    }

    /// Where things are in the rings.
    pub fn layout(&self) -> Layout {
        // struct io_sqring_offsets is at 40, struct io_cqring_offsets at 80.
        Layout {
            submission_head: self.word(40),
            submission_tail: self.word(44),
            submission_flags: self.word(56),
            dropped: self.word(60),
            array: self.word(64),
            completion_head: self.word(80),
            completion_tail: self.word(84),
            overflow: self.word(96),
            completions: self.word(100),
        }
    }
}

/// Makes an instance of our own.
///
/// # Errors
/// EPERM where kernel.io_uring_disabled forbids it, ENOSYS where there is none, EINVAL for flags not known.
pub fn setup(parameters: &mut Parameters) -> io::Result<OwnedFd> {
    let entries = parameters.word(0);
    // SAFETY: the kernel reads and writes the structure, which is as long as it takes it to be, during the call only.
    let fd = checked(unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, parameters.0.as_mut_ptr()) })?;
    // SAFETY: the call made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn enter(ring: BorrowedFd<'_>, flags: u32, argument: &[u8]) -> io::Result<()> {
    let (pointer, length) = match argument {
        [] => (std::ptr::null(), 0),
        _ => (argument.as_ptr(), argument.len()),
    };
    // SAFETY: nothing is submitted; the argument is read only, and lives longer than the call, which waits for nothing.
    checked(unsafe { libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 0, 0, flags, pointer, length) })
        .map(drop)
}

/// Submits nothing and waits for nothing.
///
/// # Errors
/// EBADFD for an instance that is not enabled yet (IORING_SETUP_R_DISABLED).
pub fn touch(ring: BorrowedFd<'_>) -> io::Result<()> {
    enter(ring, 0, &[])
}

/// Has completions that are ready put into the ring.
///
/// # Errors
/// EEXIST where only another thread can (IORING_SETUP_DEFER_TASKRUN).
pub fn fetch(ring: BorrowedFd<'_>) -> io::Result<()> {
    enter(ring, ENTER_GETEVENTS, &[])
}

/// Whether the program looks for completions of devices itself (IORING_SETUP_IOPOLL): the kernel then does not look at
/// how long it is to wait.
pub fn is_polled(ring: BorrowedFd<'_>) -> bool {
    // struct io_uring_getevents_arg: a signal mask, its size, a number, and the address of a time that is none.
    let mut argument = [0u8; 24];
    argument[16] = 1;
    let result = enter(ring, ENTER_GETEVENTS | ENTER_EXT_ARG, &argument);
    !result.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
}

/// Asks for nothing that can be answered.
///
/// # Errors
/// Always: EINVAL where it would have been answered, EEXIST where only another thread may ask
/// (IORING_SETUP_SINGLE_ISSUER), EACCES where nobody may (IORING_REGISTER_RESTRICTIONS).
pub fn ask(ring: BorrowedFd<'_>) -> io::Error {
    let nothing: *const u8 = std::ptr::null();
    // SAFETY: a null pointer is what the kernel is to complain of.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_PROBE,
            nothing,
            0,
        )
    };
    checked(result)
        .err()
        .unwrap_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Has completions counted by an eventfd.
///
/// # Errors
/// EBUSY where another one does that.
pub fn register_eventfd(ring: BorrowedFd<'_>, eventfd: BorrowedFd<'_>) -> io::Result<()> {
    let number = eventfd.as_raw_fd();
    let pointer: *const i32 = &raw const number;
    // SAFETY: the kernel reads one number during the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_EVENTFD,
            pointer,
            1,
        )
    })
    .map(drop)
}

/// Undoes [`register_eventfd`].
pub fn unregister_eventfd(ring: BorrowedFd<'_>) -> io::Result<()> {
    let nothing: *const u8 = std::ptr::null();
    // SAFETY: the call takes no argument.
    checked(unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            UNREGISTER_EVENTFD,
            nothing,
            0,
        )
    })
    .map(drop)
}

fn group_argument(group: u32) -> [u8; 40] {
    // struct io_uring_buf_status: the group, its head, and room.
    let mut raw = [0u8; 40];
    raw[..4].copy_from_slice(&group.to_ne_bytes());
    raw
}

/// Asks for the state of a group of provided buffers (Linux 6.8).
///
/// # Errors
/// ENOENT where there is none of that number, EINVAL where they are not in a ring, or the kernel does not know the
/// question.
pub fn buffer_group(ring: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    let mut raw = group_argument(group);
    // SAFETY: the kernel reads and writes the structure, which is as long as it takes it to be, during the call only.
    checked(unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_PBUF_STATUS,
            raw.as_mut_ptr(),
            1,
        )
    })
    .map(drop)
}

/// Memory of an instance, mapped.
#[derive(Debug)]
pub struct Region {
    words: &'static [AtomicU32],
}

impl Region {
    /// Maps `length` bytes at [`RINGS`] or [`ENTRIES`].
    ///
    /// # Errors
    /// EINVAL where there are not so many, or they are memory of the program (IORING_SETUP_NO_MMAP).
    pub fn map(ring: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<Region> {
        let size = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint places the mapping where nothing else is.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED, ring, offset) }?;
        // SAFETY: the address is page-aligned and maps `size` bytes, pages that the kernel keeps for as long as they
        // are mapped; they are unmapped only on drop, and no reference to the words outlives `self`. Every bit pattern
        // is a value, and the kernel's writes are seen through atomic loads only.
        let words = unsafe { std::slice::from_raw_parts(address.cast::<AtomicU32>(), size / size_of::<AtomicU32>()) };
        Ok(Region { words })
    }

    /// Copies everything.
    pub fn read(&self) -> Vec<u8> {
        let words = self.words.iter().map(|word| word.load(Ordering::Acquire));
        words.flat_map(u32::to_ne_bytes).collect()
    }

    /// The word at an offset; zero beyond the end.
    pub fn word(&self, offset: u32) -> u32 {
        let word = self.words.get(offset as usize / size_of::<AtomicU32>());
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let length = size_of_val(self.words);
        // SAFETY: `map` made a mapping of this address and length, and nobody else unmaps it or has a reference left.
        let _ = unsafe { rustix::mm::munmap(self.words.as_ptr().cast_mut().cast(), length) };
    }
}

/// Adds [`setup`]; gives where the parameters come back.
pub fn setup_call(batch: &mut Batch, parameters: &Parameters) -> (CallId, OutId) {
    let (place, out) = batch.out(PARAMETERS_SIZE);
    batch.set(place, &parameters.0);
    let call = batch.must(
        libc::SYS_io_uring_setup,
        &[parameters.word(0).into(), place],
        "make an io_uring instance (see kernel.io_uring_disabled)",
    );
    (call, out)
}

/// Adds the submission of up to `count` requests.
pub fn submit_call(batch: &mut Batch, ring: i32, count: u32) -> CallId {
    let zero = Arg::from(0);
    batch.call(
        libc::SYS_io_uring_enter,
        &[ring.into(), count.into(), zero, zero, zero, zero],
    )
}

/// Adds the waking of the kernel's thread (IORING_SETUP_SQPOLL).
pub fn wake_call(batch: &mut Batch, ring: i32) -> CallId {
    let zero = Arg::from(0);
    batch.must(
        libc::SYS_io_uring_enter,
        &[ring.into(), zero, zero, ENTER_SQ_WAKEUP.into(), zero, zero],
        "wake the thread of io_uring",
    )
}

/// Adds [`fetch`].
pub fn fetch_call(batch: &mut Batch, ring: i32) -> CallId {
    let zero = Arg::from(0);
    batch.call(
        libc::SYS_io_uring_enter,
        &[ring.into(), zero, zero, ENTER_GETEVENTS.into(), zero, zero],
    )
}

/// Adds the question whether a thread has registered a ring under a number; it fails with EBADF or EINVAL where it has
/// not.
pub fn registered_call(batch: &mut Batch, number: u32) -> CallId {
    let zero = Arg::from(0);
    batch.call(
        libc::SYS_io_uring_enter,
        &[number.into(), zero, zero, ENTER_REGISTERED_RING.into(), zero, zero],
    )
}

/// Adds [`ask`].
pub fn ask_call(batch: &mut Batch, ring: i32) -> CallId {
    batch.call(
        libc::SYS_io_uring_register,
        &[ring.into(), REGISTER_PROBE.into(), Arg::from(0), Arg::from(0)],
    )
}

/// Adds [`register_eventfd`] and [`unregister_eventfd`]; the first fails with EBUSY where another one is registered.
pub fn try_eventfd_call(batch: &mut Batch, ring: i32, eventfd: i32) -> CallId {
    let number = batch.data(&eventfd.to_ne_bytes());
    let call = batch.must(
        libc::SYS_io_uring_register,
        &[ring.into(), REGISTER_EVENTFD.into(), number, Arg::from(1)],
        "look for an eventfd",
    );
    let zero = Arg::from(0);
    batch.must(
        libc::SYS_io_uring_register,
        &[ring.into(), UNREGISTER_EVENTFD.into(), zero, zero],
        "look for an eventfd",
    );
    call
}

/// Adds [`buffer_group`].
pub fn buffer_group_call(batch: &mut Batch, ring: i32, group: u32) -> CallId {
    let argument = batch.data(&group_argument(group));
    batch.call(
        libc::SYS_io_uring_register,
        &[ring.into(), REGISTER_PBUF_STATUS.into(), argument, Arg::from(1)],
    )
}

/// Adds the registration of memory, by addresses and lengths; none leaves a number free.
pub fn register_buffers_call(batch: &mut Batch, ring: i32, buffers: &[Option<(u64, u64)>]) {
    let words = buffers.iter().flat_map(|buffer| {
        let (address, length) = buffer.unwrap_or_default();
        [address, length]
    });
    let raw: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    let place = batch.data(&raw);
    batch.must(
        libc::SYS_io_uring_register,
        &[ring.into(), REGISTER_BUFFERS.into(), place, buffers.len().into()],
        "register buffers with io_uring (see `ulimit -l`)",
    );
}

/// Adds the registration of files by their descriptors; -1 leaves a number free.
pub fn register_files_call(batch: &mut Batch, ring: i32, files: &[i32]) {
    let raw: Vec<u8> = files.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    let place = batch.data(&raw);
    batch.must(
        libc::SYS_io_uring_register,
        &[ring.into(), REGISTER_FILES.into(), place, files.len().into()],
        "register files with io_uring",
    );
}

/// Adds the addition of a power of two to a word in the memory of the process: by futex(2), which is one of the few
/// calls that can.
pub fn add_call(batch: &mut Batch, address: u64, power: u32) {
    const FUTEX_WAKE_OP_PRIVATE: i32 = 5 | 128;
    // FUTEX_OP_ADD, with FUTEX_OP_OPARG_SHIFT.
    let operation = (1 | 8) << 28 | (power & 0x1f) << 12;
    let zero = Arg::from(0);
    batch.call(
        libc::SYS_futex,
        &[
            address.into(),
            FUTEX_WAKE_OP_PRIVATE.into(),
            zero,
            zero,
            address.into(),
            operation.into(),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn an_instance_is_as_large_as_its_layout_says() {
        let mut parameters = Parameters::new(8, 64, 0);
        let ring = match setup(&mut parameters) {
            Ok(ring) => ring,
            Err(error) => {
                assert!(
                    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)),
                    "{error}"
                );
                return;
            }
        };
        assert_eq!(parameters.room(), (8, 64));
        let layout = parameters.layout();
        let region = Region::map(ring.as_fd(), RINGS, layout.size(8, 64)).unwrap();
        assert_eq!(region.word(layout.completion_tail), 0);
        assert_eq!(region.read().len() as u64, layout.size(8, 64));
        assert_eq!(ask(ring.as_fd()).raw_os_error(), Some(libc::EINVAL));
        assert!(touch(ring.as_fd()).is_ok() && fetch(ring.as_fd()).is_ok() && !is_polled(ring.as_fd()));
        assert!(buffer_group(ring.as_fd(), 3).is_err());
    }
}
