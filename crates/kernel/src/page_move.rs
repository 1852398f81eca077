//! Moving pages from one place of a process's memory to another with userfaultfd(2), huge pages as they are
//! (UFFDIO_MOVE, Linux 6.8; Documentation/admin-guide/mm/userfaultfd.rst).
//!
//! Everything is done in the process itself, through batches: nobody else may move its pages.

use crate::batch::{Arg, Batch, CallId};
use crate::userfaultfd::{self, UFFDIO_REGISTER, UFFDIO_UNREGISTER};

const UFFD_USER_MODE_ONLY: i32 = 1;
/// UFFD_FEATURE_MOVE.
const FEATURES: u64 = 1 << 16;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// _IOWR(0xAA, 0x05, struct uffdio_move).
const UFFDIO_MOVE: u64 = 0xc028_aa05;

/// Adds the call that makes the descriptor in a process; it gives its number there.
pub fn open_calls(batch: &mut Batch) -> CallId {
    userfaultfd::open_calls(batch, UFFD_USER_MODE_ONLY)
}

/// Adds the call that asks descriptor `number` for moves.
pub fn setup_calls(batch: &mut Batch, number: u64) {
    userfaultfd::setup_calls(batch, number, FEATURES, "ask for moves of pages");
}

/// Adds the call that makes a private anonymous mapping one that pages can move to. Until it is no longer one
/// ([`unregister_call`]), system calls fail that touch pages of it that are not there.
pub fn register_call(batch: &mut Batch, number: u64, start: u64, end: u64) {
    let argument = words(batch, &[start, end - start, UFFDIO_REGISTER_MODE_MISSING, 0]);
    ioctl(batch, number, UFFDIO_REGISTER, argument, "have pages moved to memory");
}

/// Adds the call that undoes [`register_call`].
pub fn unregister_call(batch: &mut Batch, number: u64, start: u64, end: u64) {
    let argument = words(batch, &[start, end - start]);
    ioctl(batch, number, UFFDIO_UNREGISTER, argument, "end moving pages to memory");
}

/// Adds the call that moves pages to a place where none are, from another private anonymous mapping with the same
/// protection. If it fails, some may have been moved.
pub fn move_call(batch: &mut Batch, number: u64, to: u64, from: u64, length: u64) -> CallId {
    let argument = words(batch, &[to, from, length, 0, 0]);
    batch.call(libc::SYS_ioctl, &[Arg::from(number), UFFDIO_MOVE.into(), argument])
}

fn words(batch: &mut Batch, words: &[u64]) -> Arg {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    batch.data(&bytes)
}

fn ioctl(batch: &mut Batch, number: u64, request: u64, argument: Arg, what: &str) {
    batch.must(libc::SYS_ioctl, &[Arg::from(number), request.into(), argument], what);
}
