//! Contexts of kernel asynchronous I/O (io_setup(2)): the ring of completions, which lies in the memory of the process,
//! and calls to be made in it.
//!
//! A context is known by the address of its ring. In the ring, completions are put in at the tail and taken out at the
//! head. Where the tail is the kernel remembers by itself; the head it reads from the ring.

use std::io;

use crate::batch::{Arg, Batch, CallId, OutId};

/// Bytes of the ring's header, and of each completion.
pub const ENTRY: usize = 32;
/// Where the header has its head.
pub const HEAD_AT: u64 = 8;
/// Most requests that one call submits here.
pub const MOST_SUBMITTED: usize = 1024;

/// The first half of a completion: what the request was labelled with, and the address of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Label.
    pub label: u64,
    /// Address.
    pub request: u64,
}

const MAGIC: u32 = 0xa10a_10a1;
/// Size of `struct iocb`.
const REQUEST_SIZE: usize = 64;

/// The header of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kernel's number of the context in the process.
    pub index: u32,
    /// Completions that there is room for.
    pub slots: u32,
    /// Where the next one is taken out.
    pub head: u32,
    /// Where the next one is put in.
    pub tail: u32,
}

impl Header {
    /// Reads the header at the start of a ring of `length` bytes; none if it is not one, or of a kind not known.
    pub fn parse(ring: &[u8], length: u64) -> Option<Self> {
        let word = |index: usize| {
            let raw = ring.get(index * 4..index * 4 + 4)?;
            Some(u32::from_ne_bytes(raw.try_into().ok()?))
        };
        let header = Header {
            index: word(0)?,
            slots: word(1)?,
            head: word(2)?,
            tail: word(3)?,
        };
        // Compatible features, incompatible ones, length of the header.
        let known = (word(4)?, word(5)?, word(6)?, word(7)?) == (MAGIC, 1, 0, ENTRY as u32);
        let fits = u64::from(header.slots) == slots(length);
        (known && fits && header.head < header.slots && header.tail < header.slots).then_some(header)
    }

    /// Completions that wait to be taken out.
    pub fn waiting(&self) -> u32 {
        (self.tail + self.slots - self.head) % self.slots
    }

    /// The place `steps` before `at`.
    pub fn before(&self, at: u32, steps: u32) -> u32 {
        (at + self.slots - steps % self.slots) % self.slots
    }

    /// How many requests can be under way or wait to be taken out, all together, on a machine that may have
    /// `processors`. They are given to processors in portions, and what is left over is nobody's.
    pub fn capacity(&self, processors: u32) -> u32 {
        let usable = self.slots - 1;
        let portion = (usable / processors.saturating_mul(4).max(1)).max(1);
        usable - usable % portion
    }
}

impl Completion {
    /// Reads one of [`ENTRY`] bytes.
    pub fn parse(raw: &[u8; ENTRY]) -> Self {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|index| raw[at + index]));
        Completion {
            label: word(0),
            request: word(8),
        }
    }
}

/// Completions that a ring of so many bytes has room for.
fn slots(length: u64) -> u64 {
    length.saturating_sub(ENTRY as u64) / ENTRY as u64
}

/// What io_setup(2) has to be asked for to make a ring of `length` bytes: it makes room for twice that, and two more.
pub fn request_for(length: u64) -> u64 {
    slots(length).saturating_sub(2) / 2
}

/// Processors that the machine may ever have.
pub fn possible_processors() -> io::Result<u32> {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(FILE)?;
    let number = |word: &str| word.trim().parse::<u32>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => (number(last)? + 1).checked_sub(number(first)?),
        None => number(part).map(|_| 1),
    };
    let all: Option<u32> = text.trim().split(',').map(range).sum();
    all.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {text:?}")))
}

/// Adds the making of a context with a ring of `length` bytes; gives where its address comes.
pub fn setup_call(batch: &mut Batch, length: u64) -> OutId {
    let (place, out) = batch.out(8);
    batch.must(
        libc::SYS_io_setup,
        &[request_for(length).into(), place],
        "make a context for asynchronous I/O (see fs.aio-max-nr)",
    );
    out
}

/// Adds the question whether a context is there; it fails with EINVAL where it is not.
pub fn ask_call(batch: &mut Batch, context: u64) -> CallId {
    batch.call(libc::SYS_io_submit, &[context.into(), Arg::from(0), Arg::from(0)])
}

/// Adds `count` requests, but at most [`MOST_SUBMITTED`], that read nothing from descriptor `file` and are completed at
/// once; `label` is in their completions. The call tells how many there was room for.
pub fn submit_call(batch: &mut Batch, context: u64, file: i32, count: u32, label: u64) -> CallId {
    // struct iocb: data at 0, lio_opcode (IOCB_CMD_PREAD, zero) at 16, fildes at 20, buffer at 24, length at 32.
    let mut raw = [0u8; REQUEST_SIZE];
    raw[..8].copy_from_slice(&label.to_ne_bytes());
    raw[20..24].copy_from_slice(&file.to_ne_bytes());
    let request = batch.data(&raw);
    let count = MOST_SUBMITTED.min(count as usize);
    let pointers = batch.data(&vec![0u8; count * 8]);
    for index in 0..count {
        batch.point(pointers, index * 8, request);
    }
    batch.call(libc::SYS_io_submit, &[context.into(), count.into(), pointers])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(words: [u32; 8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn headers_are_read_and_checked() {
        let good = [0, 127, 126, 3, MAGIC, 1, 0, 32];
        let header = Header::parse(&ring(good), 4096).unwrap();
        assert_eq!((header.waiting(), header.before(3, 4)), (4, 126));
        for (index, wrong) in [(1, 126), (2, 127), (3, 127), (4, 0), (5, 2), (6, 1), (7, 64)] {
            let mut words = good;
            words[index] = wrong;
            assert_eq!(Header::parse(&ring(words), 4096), None, "{words:?}");
        }
        assert_eq!(Header::parse(&ring(good)[..31], 4096), None);
        assert_eq!(Header::parse(&ring(good), 8192), None);
    }

    #[test]
    fn a_ring_has_as_many_pages_again() {
        for pages in 1..4000u64 {
            let asked = request_for(pages * 4096);
            let made = (ENTRY as u64 + (asked * 2 + 2) * ENTRY as u64).div_ceil(4096);
            assert_eq!(made, pages);
        }
    }

    #[test]
    fn requests_are_counted_in_portions() {
        let header = Header {
            index: 0,
            slots: 127,
            head: 0,
            tail: 0,
        };
        assert_eq!(header.capacity(2), 120);
        assert_eq!(header.capacity(1), 124);
        assert_eq!(header.capacity(1000), 126);
    }
}
