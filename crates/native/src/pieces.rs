//! Page data that are read, hashed and written a piece at a time by several threads, each all of it: a piece is then in
//! one processor's cache all the time. Only one thread can write to a file at a time: while one does, the others leave
//! to it what they have to write, and go on.
//!
//! Only pieces without pages of zeros, and without pages that the image has, are placed so. Others are left to whoever
//! places pages one after the other; where there are many of them, so is all that follows.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use cpr_image::{ChunkWriter, PageHash, PageHasher, PageIndex};
use cpr_types::{Error, Result};

use crate::memory::is_zero;
use crate::sink::{PAGE_SIZE, PIECE, ReadPiece};

/// Most threads: they write to one file, which one thread can do at a time.
const THREADS: usize = 4;
/// Most pieces that wait to be written: with more, the caches of the processors would be too small.
const WAITING: usize = 4;
/// How long is waited for the thread that writes before it is looked again.
const PATIENCE: Duration = Duration::from_millis(100);

/// So many pieces may be left to others anyway; beyond that one in [`SHARE`].
const FEW: usize = 4;
/// See [`FEW`].
const SHARE: usize = 8;

/// How many threads there are to be.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS)
}

/// What is to be placed, and where.
pub struct Pieces<'a> {
    /// How many.
    pub count: usize,
    /// Reads them.
    pub read: &'a ReadPiece<'a>,
    /// Writes and hashes them.
    pub chunks: &'a ChunkWriter,
    /// Where the first one that is placed goes; the others follow.
    pub next: u64,
    /// Finds those that the image has; none if that is no longer asked.
    pub index: Option<&'a mut PageIndex>,
    /// Buffers that can be used, of any length.
    pub buffers: &'a mut Vec<Vec<u8>>,
}

/// What became of it.
pub struct Placed {
    /// Positions of the first pieces, if they were placed.
    pub positions: Vec<Option<u64>>,
    /// The hashes of those that were, in the order of their positions.
    pub hashes: Vec<[u8; 32]>,
}

impl Pieces<'_> {
    /// Places the pieces; tells `go_on` now and then how many have been, and stops early when it says so.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn place(self, go_on: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<Placed> {
        let threads = threads().min(self.count);
        let buffers = std::mem::take(self.buffers);
        let work = Work {
            count: self.count,
            read: self.read,
            chunks: self.chunks,
            next: self.next,
            hasher: self.index.as_ref().map(|index| index.hasher()),
            claimed: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            state: Mutex::new(State {
                index: self.index,
                positions: Vec::with_capacity(self.count),
                left: 0,
                hashes: Vec::with_capacity(self.count),
                waiting: VecDeque::new(),
                is_writing: false,
                spare: buffers,
                failure: None,
            }),
            room: Condvar::new(),
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                let thread = thread::Builder::new().name("cpr-copy".to_owned());
                // Where there are no more threads to be had, fewer do it.
                let _ = thread.spawn_scoped(scope, || while work.step() {});
            }
            while work.step() {
                let placed = work.state().hashes.len();
                if go_on(placed).is_break() {
                    work.stop();
                }
            }
        });
        let state = work.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.buffers = state.spare;
        match state.failure {
            Some(error) => Err(error),
            None => Ok(Placed {
                positions: state.positions,
                hashes: state.hashes,
            }),
        }
    }
}

/// What the threads share.
struct Work<'a> {
    count: usize,
    read: &'a ReadPiece<'a>,
    chunks: &'a ChunkWriter,
    next: u64,
    hasher: Option<PageHasher>,
    /// Pieces that some thread has taken.
    claimed: AtomicUsize,
    /// No more are to be taken.
    stopped: AtomicBool,
    state: Mutex<State<'a>>,
    /// Told when a piece has been written.
    room: Condvar,
}

struct State<'a> {
    index: Option<&'a mut PageIndex>,
    /// By the number of the piece, of those that were taken.
    positions: Vec<Option<u64>>,
    /// Pieces that are left to others.
    left: usize,
    /// By the number of the place.
    hashes: Vec<[u8; 32]>,
    /// Pieces to be written, with the numbers of their places.
    waiting: VecDeque<(usize, Vec<u8>)>,
    /// A thread is at it.
    is_writing: bool,
    /// Buffers that nobody uses, of any length.
    spare: Vec<Vec<u8>>,
    failure: Option<Error>,
}

impl<'a> Work<'a> {
    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Takes a piece and does what is to be done with it, but for writing, which another thread may be left; tells
    /// whether there was one.
    fn step(&self) -> bool {
        if self.stopped.load(Ordering::Relaxed) {
            return false;
        }
        let number = self.claimed.fetch_add(1, Ordering::Relaxed);
        if number >= self.count {
            return false;
        }
        let spare = self.state().spare.pop();
        let mut piece = spare.unwrap_or_else(|| Vec::with_capacity(PIECE));
        piece.resize(PIECE, 0);
        let place = match (self.read)(number, &mut piece) {
            true => self.claim_place(number, &piece),
            false => self.leave(number),
        };
        let Some(place) = place else {
            self.state().spare.push(piece);
            return true;
        };
        let hash = cpr_image::hash(&piece);
        let mut state = self.state();
        if let Some(noted) = state.hashes.get_mut(place) {
            *noted = hash;
        }
        state.waiting.push_back((place, piece));
        self.write(state);
        true
    }

    /// Writes what waits, unless another thread is at it. Whoever leaves something to that one has put it there before
    /// it looked for the last time.
    fn write<'b>(&'b self, mut state: MutexGuard<'b, State<'a>>) {
        loop {
            if state.is_writing {
                if state.waiting.len() < WAITING {
                    return;
                }
                let waited = self.room.wait_timeout(state, PATIENCE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let Some((place, piece)) = state.waiting.pop_front() else {
                return;
            };
            state.is_writing = true;
            drop(state);
            let written = self.chunks.write(&piece, self.next + (place * PIECE) as u64);
            state = self.state();
            state.is_writing = false;
            state.spare.push(piece);
            if let Err(error) = written {
                self.stop();
                state.waiting.clear();
                state.failure.get_or_insert(error);
            }
            self.room.notify_all();
        }
    }

    /// The number of a place for a piece, if it is to have one.
    fn claim_place(&self, number: usize, piece: &[u8]) -> Option<usize> {
        let pages = piece.chunks_exact(PAGE_SIZE);
        if pages.clone().any(is_zero) {
            return self.leave(number);
        }
        let hashes: Option<Vec<PageHash>> = self
            .hasher
            .as_ref()
            .map(|hasher| pages.map(|page| hasher.hash(page)).collect());
        let mut state = self.state();
        let place = state.hashes.len();
        let position = self.next + (place * PIECE) as u64;
        let is_new = match (&mut state.index, &hashes) {
            (Some(index), Some(hashes)) => index.note_new(hashes, position),
            _ => true,
        };
        if !is_new {
            drop(state);
            return self.leave(number);
        }
        state.hashes.push([0; 32]);
        state.note(number, Some(position));
        Some(place)
    }

    /// Leaves a piece to others.
    fn leave(&self, number: usize) -> Option<usize> {
        let mut state = self.state();
        state.left += 1;
        state.note(number, None);
        if state.left > FEW.max((state.left + state.hashes.len()) / SHARE) {
            self.stop();
        }
        None
    }
}

impl State<'_> {
    /// Each piece up to the last that was taken is noted in the end, for whoever takes one goes on to here.
    fn note(&mut self, number: usize, position: Option<u64>) {
        if self.positions.len() <= number {
            self.positions.resize(number + 1, None);
        }
        self.positions[number] = position;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// What a piece of this number holds: no two pages alike, and none of zeros.
    fn fill(number: usize, piece: &mut [u8]) {
        for (index, page) in piece.chunks_mut(PAGE_SIZE).enumerate() {
            page.fill(1);
            page[8..16].copy_from_slice(&((number << 20 | index) as u64).to_ne_bytes());
        }
    }

    fn file() -> File {
        File::from(rustix::fs::memfd_create("pieces", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
    }

    fn place(count: usize, file: &File, read: &ReadPiece<'_>) -> Placed {
        let chunks = ChunkWriter::new(file.try_clone().unwrap());
        let mut index = PageIndex::new(0).unwrap();
        let pieces = Pieces {
            count,
            read,
            chunks: &chunks,
            next: 4096,
            index: Some(&mut index),
            buffers: &mut Vec::new(),
        };
        pieces.place(&mut |_| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn each_piece_is_at_its_place_and_hashed_and_what_is_not_new_is_left() {
        let file = file();
        let placed = place(40, &file, &|number, piece| {
            fill(number, piece);
            match number {
                7 => piece[3 * PAGE_SIZE..4 * PAGE_SIZE].fill(0),
                9 => return false,
                _ => {}
            }
            true
        });
        let expected: Vec<bool> = (0..40).map(|number| ![7, 9].contains(&number)).collect();
        let found: Vec<bool> = placed.positions.iter().map(Option::is_some).collect();
        assert_eq!(found, expected);
        assert_eq!(placed.hashes.len(), 38);
        let places: HashSet<u64> = placed.positions.iter().flatten().copied().collect();
        let all = (0..38).map(|place| 4096 + place * PIECE as u64).collect();
        assert_eq!(places, all);
        let (mut written, mut wanted) = (vec![0; PIECE], vec![0; PIECE]);
        for (number, position) in placed.positions.iter().enumerate() {
            let Some(position) = position else { continue };
            file.read_exact_at(&mut written, *position).unwrap();
            fill(number, &mut wanted);
            assert!(written == wanted, "piece {number}");
            let place = (position - 4096) as usize / PIECE;
            assert_eq!(placed.hashes[place], cpr_image::hash(&wanted));
        }
    }

    #[test]
    fn where_many_pieces_are_not_new_the_rest_is_left() {
        let placed = place(1000, &file(), &|_, piece| {
            fill(0, piece);
            true
        });
        assert_eq!(placed.hashes.len(), 1);
        assert!((1 + FEW..100).contains(&placed.positions.len()));
        assert_eq!(placed.positions.iter().flatten().count(), 1);
    }
}
