//! The control page: one page of a process's memory through which libgridcpr in it and a checkpointer outside talk.
//!
//! It is a private mapping of a memfd called [`NAME`], so that it is found by that name in /proc/PID/maps, is copied
//! by fork(2), disappears with exec(2), and is saved and restored like any other mapping, name included. No descriptor
//! stays open. The checkpointer writes it through /proc/PID/mem; who waits in the process waits with FUTEX_WAIT on a
//! word of it. A futex wait that is interrupted and started again looks at its word anew, so stopping such a thread for
//! an instant after writing the word wakes it: neither side needs a descriptor, a signal or a daemon.
//!
//! [`Page`] is the layout, for both sides. It is fixed for [`VERSION`].

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Name of the memfd.
pub const NAME: &str = "gridcpr";
/// First word of a page in use.
pub const MAGIC: u64 = u64::from_le_bytes(*b"gridcpr\x01");
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Length of the mapping, bytes.
pub const LENGTH: usize = 4096;
/// Bit of [`Page::sections`]: nobody may enter a critical section. The other bits count the threads inside one.
pub const CLOSED: u32 = 1 << 31;

/// Longest message of the process, bytes.
pub const MESSAGE: usize = 256;
/// Longest name of a job, bytes.
pub const JOB: usize = 64;
/// Longest path of a job's directory, bytes.
pub const PATH: usize = 1024;
/// Longest text of a notice, bytes.
pub const NOTICE: usize = 256;

/// The layout. Words that are not said to be the process's own are written by the checkpointer or restarter.
#[repr(C)]
#[derive(Debug)]
pub struct Page {
    /// [`MAGIC`]; the process's own, written last.
    pub magic: AtomicU64,
    /// [`VERSION`]; the process's own.
    pub version: AtomicU32,
    /// PID of the process in its own PID namespace; its own. Another one means a copy that fork(2) made.
    pub pid: AtomicI32,
    /// The thread that waits for requests; the process's own.
    pub tid: AtomicI32,
    /// Newest request: see [`Request`]. A futex.
    pub request: AtomicU32,
    /// Newest answer: sequence number of the request and [`Status`]; the process's own.
    pub answer: AtomicU32,
    /// Threads in critical sections, and [`CLOSED`]. A futex; the process's own.
    pub sections: AtomicU32,
    /// Registered callbacks; the process's own.
    pub callbacks: AtomicU32,
    /// How often the process was restarted.
    pub restarts: AtomicU32,
    /// CLOCK_MONOTONIC time, nanoseconds, at which a request that was not renewed is void.
    pub lease_ns: AtomicU64,
    /// How long callbacks and critical sections may take, nanoseconds.
    pub limit_ns: AtomicU64,
    /// Why a request was refused, with a zero at its end; the process's own.
    pub message: [AtomicU8; MESSAGE],
    /// Identifier of the image of the last restart, 32 hexadecimal digits.
    pub image: [AtomicU8; 32],
    /// Name of the job the process was restarted as, with a zero at its end.
    pub job: [AtomicU8; JOB],
    /// Directory of that job, with a zero at its end.
    pub directory: [AtomicU8; PATH],
    /// What [`Verb::Tell`] tells, with a zero at its end.
    pub notice: [AtomicU8; NOTICE],
    /// Number of the checkpoint of the last restart.
    pub generation: AtomicU32,
}

const _: () = assert!(size_of::<Page>() <= LENGTH);

/// Offsets in [`Page`] for those who see it from outside.
pub mod offset {
    use super::{Page, offset_of};
    /// [`Page::request`]
    pub const REQUEST: u64 = offset_of!(Page, request) as u64;
    /// [`Page::restarts`]
    pub const RESTARTS: u64 = offset_of!(Page, restarts) as u64;
    /// [`Page::lease_ns`]
    pub const LEASE: u64 = offset_of!(Page, lease_ns) as u64;
    /// [`Page::limit_ns`]
    pub const LIMIT: u64 = offset_of!(Page, limit_ns) as u64;
    /// [`Page::image`]
    pub const IMAGE: u64 = offset_of!(Page, image) as u64;
    /// [`Page::job`]
    pub const JOB: u64 = offset_of!(Page, job) as u64;
    /// [`Page::directory`]
    pub const DIRECTORY: u64 = offset_of!(Page, directory) as u64;
    /// [`Page::notice`]
    pub const NOTICE: u64 = offset_of!(Page, notice) as u64;
    /// [`Page::generation`]
    pub const GENERATION: u64 = offset_of!(Page, generation) as u64;
}

/// What a checkpointer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Nothing yet.
    None,
    /// Run the callbacks that come before a checkpoint.
    Prepare,
    /// Let nobody enter a critical section, and wait until all have been left.
    Close,
    /// The checkpoint is taken and the process goes on.
    Continue,
    /// There will be no checkpoint.
    Fail,
    /// This is a restart.
    Restart,
    /// Something has happened that the program may want to know of: [`Page::notice`]. No checkpoint takes part.
    Tell,
}

/// The word [`Page::request`]: a sequence number that changes with every checkpoint, and what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Number of the checkpoint, 29 bits.
    pub sequence: u32,
    /// What is asked for.
    pub verb: Verb,
}

/// How far the process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No checkpoint is under way.
    Idle,
    /// Callbacks run.
    Working,
    /// Callbacks have run.
    Ready,
    /// Nobody is in a critical section, nor can enter one.
    Closed,
    /// A callback refuses the checkpoint; [`Page::message`] says why.
    Refused,
    /// A callback cannot have a checkpoint now, but later.
    Later,
    /// A callback has not returned in time.
    Late,
}

const VERBS: [Verb; 7] = [
    Verb::None,
    Verb::Prepare,
    Verb::Close,
    Verb::Continue,
    Verb::Fail,
    Verb::Restart,
    Verb::Tell,
];
const STATUSES: [Status; 7] = [
    Status::Idle,
    Status::Working,
    Status::Ready,
    Status::Closed,
    Status::Refused,
    Status::Later,
    Status::Late,
];

/// Bits of a word that hold what is asked for or answered.
const LOW: u32 = 3;
/// Most that a sequence number can be.
const SEQUENCES: u32 = u32::MAX >> LOW;

impl Request {
    /// From the word; none where it is no request.
    pub fn of(word: u32) -> Option<Request> {
        let verb = *VERBS.get((word & 7) as usize)?;
        let sequence = word >> LOW;
        Some(Request { sequence, verb })
    }

    /// As the word.
    pub fn word(self) -> u32 {
        (self.sequence << LOW) | self.verb as u32
    }

    /// The first request of the next checkpoint.
    pub fn next(self) -> Request {
        Request {
            sequence: (self.sequence + 1) & SEQUENCES,
            verb: Verb::Prepare,
        }
    }
}

/// The word [`Page::answer`].
pub fn answer(sequence: u32, status: Status) -> u32 {
    (sequence << LOW) | status as u32
}

/// Sequence number and status of the word [`Page::answer`]; none where it is no answer.
pub fn of_answer(word: u32) -> Option<(u32, Status)> {
    STATUSES.get((word & 7) as usize).map(|status| (word >> LOW, *status))
}

/// The fixed part of a page as a checkpointer reads it. Nothing of it is to be trusted: it is the process's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// PID in its own namespace.
    pub pid: i32,
    /// Thread that waits.
    pub tid: i32,
    /// Newest request.
    pub request: Request,
    /// Sequence number and status of the newest answer.
    pub answer: (u32, Status),
    /// The word [`Page::sections`].
    pub sections: u32,
    /// Registered callbacks.
    pub callbacks: u32,
    /// Restarts so far.
    pub restarts: u32,
    /// End of the lease, nanoseconds of CLOCK_MONOTONIC.
    pub lease_ns: u64,
    /// Why it refuses: printable text without line breaks.
    pub message: String,
}

/// Bytes of a page that [`View::parse`] wants.
pub const VIEW: usize = size_of::<Page>();

impl View {
    /// From the first [`VIEW`] bytes of a page; none where they are not a page of this version.
    pub fn parse(bytes: &[u8]) -> Option<View> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if long(offset_of!(Page, magic))? != MAGIC || word(offset_of!(Page, version))? != VERSION {
            return None;
        }
        let start = offset_of!(Page, message);
        let text = bytes.get(start..start + MESSAGE)?;
        let text = text.split(|b| *b == 0).next().unwrap_or_default();
        let message = String::from_utf8_lossy(text)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        Some(View {
            pid: word(offset_of!(Page, pid))? as i32,
            tid: word(offset_of!(Page, tid))? as i32,
            request: Request::of(word(offset_of!(Page, request))?)?,
            answer: of_answer(word(offset_of!(Page, answer))?)?,
            sections: word(offset_of!(Page, sections))?,
            callbacks: word(offset_of!(Page, callbacks))?,
            restarts: word(offset_of!(Page, restarts))?,
            lease_ns: long(offset_of!(Page, lease_ns))?,
            message,
        })
    }
}

/// Writes `text` with a zero at its end, cut to what fits.
pub fn put(field: &[AtomicU8], text: &[u8]) {
    let room = field.len().saturating_sub(1).min(text.len());
    for (slot, byte) in field.iter().zip(text[..room].iter().chain([&0])) {
        slot.store(*byte, Ordering::Relaxed);
    }
}

/// The bytes before the first zero.
pub fn get(field: &[AtomicU8]) -> Vec<u8> {
    let bytes = field.iter().map(|slot| slot.load(Ordering::Relaxed));
    bytes.take_while(|byte| *byte != 0).collect()
}

/// Maps a page for this process, all zeros. It stays until the process ends or calls exec(2).
pub fn map() -> io::Result<&'static Page> {
    let file = rustix::fs::memfd_create(NAME, rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, LENGTH as u64)?;
    // SAFETY: a new mapping at an address of the kernel's choice, of a file that is long enough for it.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            LENGTH,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is readable, writable, zeroed (for which every field of Page is valid), page-aligned, as
    // long as Page at least, and is never unmapped. All fields are atomics, so others may write them at any time.
    Ok(unsafe { &*address.cast::<Page>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_version_1() {
        let offsets = [offset::REQUEST, offset::RESTARTS, offset::LEASE, offset::LIMIT];
        assert_eq!(offsets, [20, 36, 40, 48]);
        assert_eq!([offset::IMAGE, offset::JOB, offset::DIRECTORY], [312, 344, 408]);
        assert_eq!((offset::NOTICE, offset::GENERATION, VIEW), (1432, 1688, 1696));
    }

    #[test]
    fn a_page_is_found_by_its_name_and_read_from_outside() {
        let page = map().unwrap();
        page.version.store(VERSION, Ordering::Relaxed);
        page.pid.store(7, Ordering::Relaxed);
        put(&page.message, b"not\nnow");
        page.answer.store(answer(3, Status::Refused), Ordering::Relaxed);
        page.magic.store(MAGIC, Ordering::Release);
        let own = crate::proc::ProcDir::open(std::process::id() as i32).unwrap();
        let address = page as *const Page as u64;
        let maps = own.maps().unwrap();
        let map = maps.iter().find(|m| m.start == address).unwrap();
        assert_eq!(map.kind(), crate::proc::MapKind::Memfd(NAME.as_bytes()));
        let memory = crate::memory::Memory::open(std::os::fd::AsFd::as_fd(&own)).unwrap();
        let mut bytes = [0u8; VIEW];
        memory.read(address, &mut bytes).unwrap();
        let view = View::parse(&bytes).unwrap();
        assert_eq!((view.pid, view.answer), (7, (3, Status::Refused)));
        assert_eq!(view.message, "not now");
        assert_eq!(get(&page.message), b"not\nnow");
        let next = view.request.next();
        memory
            .write(address + offset::REQUEST, &next.word().to_ne_bytes())
            .unwrap();
        assert_eq!(Request::of(page.request.load(Ordering::Acquire)), Some(next));
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let mut bytes = vec![0u8; VIEW];
        assert_eq!(View::parse(&bytes), None);
        bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
        assert_eq!(View::parse(&bytes), None, "version 0");
        bytes[8] = 1;
        assert!(View::parse(&bytes).is_some());
        bytes[offset::REQUEST as usize] = 7;
        assert_eq!(View::parse(&bytes), None, "no such request");
        assert_eq!(View::parse(&[]), None);
    }
}
