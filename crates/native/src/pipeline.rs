//! The way of page data from the job to the image: read by one thread, written by another, hashed by a third. Long runs
//! of pages, where no job waits and the image is a file, are read in pieces by several threads that write and hash what
//! they have read ([`Pieces`]).
//!
//! Between them is room for [`BUFFERED`] bytes, so that a stopped job waits for its memory to be read and not for a
//! disk. Not more than [`HOT`] bytes of it are used while no job waits. Nothing here waits for longer than [`PATIENCE`]
//! without asking whether anybody still wants the image: a reader at the other end of a pipe may never come back.

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cpr_image::model::Manifest;
use cpr_image::{ChunkWriter, Hashing, ImageSummary, ImageWriter, PageIndex};
use cpr_types::{Context, Error, ErrorKind, Result};

use crate::checkpoint::{Event, Observer};
use crate::pieces::{Pieces, Placed};
use crate::sink::{PAGE_SIZE, PIECE, PageSink, ReadPiece};
use crate::write_behind::WriteBehind;

/// Page data buffered in memory while a job is stopped that is to go on, bytes; beyond that the stop lasts as long as
/// writing does.
pub const BUFFERED: usize = 64 << 20;

/// Page data under way while nobody waits for them, bytes: few enough to be in the processor's cache when they are
/// written and hashed, and enough for no thread to be without work.
const HOT: usize = 4 << 20;

/// From this many bytes on, the pieces of a run of pages are placed by several threads while nobody waits.
const LONG: u64 = 4 << 20;
/// So many pieces are placed one after the other before it is tried again to place several at a time, where that did
/// not work once; twice as many after each further time …
const PAUSE: u32 = 32;
/// … up to so often.
const LONGEST_PAUSE: u32 = 6;
/// So often it is tried to come to the end of a piece: pages that are in the image already do not help.
const TRIES: u32 = 3;

/// Less than this is gathered, for a copy takes less time than handing it over does.
const SMALL: usize = 256 << 10;

/// Most runs of pages that refer to pages stored before: each makes the metadata longer (by less than 30 bytes).
const MOST_SHARED: usize = 1 << 20;

/// Page data between two reports of progress, bytes.
const STEP: u64 = 16 << 20;

/// How long is waited for the writing thread before the observer is asked again.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is sent to the writing and the hashing thread.
enum Piece {
    /// Page data.
    Pages(Vec<u8>),
    /// The hashes of whole chunks that have been written already.
    Written(Vec<[u8; 32]>),
}

/// Hands page data to a thread that hashes and writes them, and tells the observer how far it is.
pub struct Pipeline<'a, 'b> {
    /// Never holds more than what is allowed: every piece takes a receipt first.
    pieces: Option<Sender<Piece>>,
    /// Pieces that have been written, to be used again: fresh memory costs a page fault for each page.
    receipts: Receiver<Vec<u8>>,
    /// Pieces sent for which no receipt was taken.
    under_way: usize,
    /// Most pieces under way.
    allowed: usize,
    spare: Vec<Vec<u8>>,
    thread: Option<JoinHandle<Result<ImageWriter<File>>>>,
    /// Where the image is not compressed.
    hashing: Option<JoinHandle<Result<Hashing>>>,
    piece: Vec<u8>,
    next: u64,
    /// Where several threads can write.
    chunks: Option<ChunkWriter>,
    /// Where the image is a file.
    behind: Option<Arc<WriteBehind>>,
    /// Pieces to be placed before that is tried again.
    pause: u32,
    /// How often it was tried to come to the end of a piece, without success.
    tries: u32,
    /// How often placing several pieces at a time has not worked since it did.
    failures: u32,
    index: PageIndex,
    /// Runs of pages that were found in the image.
    shared: usize,
    observer: &'a mut Observer<'b>,
    phase: &'static str,
    done: u64,
    told: u64,
    expected: u64,
}

impl<'a, 'b> Pipeline<'a, 'b> {
    /// Starts the threads. About `expected` bytes of page data will come, of an increment far fewer. `file` is that of
    /// the image where it can be written at any place.
    pub fn start(
        mut writer: ImageWriter<File>,
        file: Option<File>,
        observer: &'a mut Observer<'b>,
        expected: u64,
        incremental: bool,
    ) -> Result<Self> {
        let next = cpr_image::PAGE + writer.data_bytes();
        let (pieces, incoming) = channel();
        let (used, receipts) = channel();
        let mut written = Done::Receipt(used.clone());
        let hashing = match writer.take_hashing() {
            Some(hashing) => {
                let (to_hash, arriving) = channel();
                written = Done::Hash(to_hash);
                let hashing = std::thread::Builder::new()
                    .name("cpr-hash".to_owned())
                    .spawn(move || hash_pieces(hashing, &arriving, &used))
                    .context(|| "start the hashing thread")?;
                Some(hashing)
            }
            None => None,
        };
        let hashes_apart = hashing.is_some();
        let behind = file.as_ref().map(File::try_clone).transpose();
        let behind = behind.context(|| "copy the descriptor of the image")?;
        let behind = behind.map(|file| Arc::new(WriteBehind::new(file)));
        let goes_on = behind.clone();
        let thread = std::thread::Builder::new()
            .name("cpr-write".to_owned())
            .spawn(move || write_pieces(writer, &incoming, &written, goes_on.as_deref()))
            .context(|| "start the writing thread")?;
        Ok(Pipeline {
            pieces: Some(pieces),
            receipts,
            under_way: 0,
            allowed: HOT / PIECE,
            spare: Vec::new(),
            thread: Some(thread),
            hashing,
            piece: Vec::with_capacity(PIECE),
            next,
            chunks: file.filter(|_| hashes_apart).map(ChunkWriter::new),
            behind,
            pause: 0,
            tries: 0,
            failures: 0,
            // A table that is much too large costs a page fault for nearly every page that is noted in it.
            index: PageIndex::new(if incremental { 0 } else { expected / cpr_image::PAGE })?,
            shared: 0,
            observer,
            phase: "",
            done: 0,
            told: 0,
            expected,
        })
    }

    /// Begins a phase, as the observer is told.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] when nobody waits for the image any more.
    pub fn enter(&mut self, phase: &'static str) -> Result<()> {
        self.phase = phase;
        self.tell()
    }

    /// Has as much buffered as there is room for, or no more than is good for the cache.
    pub fn hurry(&mut self, hurried: bool) {
        self.allowed = if hurried { BUFFERED } else { HOT } / PIECE;
    }

    /// Has buffers ready for so many bytes, as far as there is room: what a job stands still for is not to wait for
    /// memory.
    pub fn make_ready(&mut self, bytes: u64) {
        let wanted = bytes.min(BUFFERED as u64).div_ceil(PIECE as u64) as usize;
        while self.spare.len() < wanted {
            // Not zeros: memory comes when it is written.
            self.spare.push(vec![1; PIECE]);
        }
    }

    /// Page data placed so far, bytes.
    pub fn placed(&self) -> u64 {
        self.done
    }

    fn count(&mut self, bytes: usize) -> Result<()> {
        self.done += bytes as u64;
        if self.done - self.told >= STEP {
            self.tell()?;
        }
        Ok(())
    }

    fn tell(&mut self) -> Result<()> {
        self.told = self.done;
        let event = Event::Progress {
            phase: self.phase.to_owned(),
            done: self.done,
            total: self.expected.max(self.done),
        };
        match (self.observer)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(nobody_waits()),
        }
    }

    /// Waits until at most `allowed` pieces are under way.
    fn settle(&mut self, allowed: usize) -> Result<()> {
        while self.under_way > allowed {
            match self.receipts.recv_timeout(PATIENCE) {
                Ok(piece) => self.take_back(piece),
                Err(RecvTimeoutError::Timeout) => self.tell()?,
                // The thread ends early only when it failed.
                Err(RecvTimeoutError::Disconnected) => return self.join().map(drop),
            }
        }
        Ok(())
    }

    fn take_back(&mut self, piece: Vec<u8>) {
        self.under_way -= 1;
        self.spare.push(piece);
    }

    /// Places pieces one after the other for a while.
    fn give_up(&mut self) {
        self.pause = PAUSE << self.failures.min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
    }

    /// Sends what was gathered.
    fn send(&mut self) -> Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        self.piece = self.send_piece(piece)?;
        self.piece.clear();
        Ok(())
    }

    /// Sends a piece, and gives a buffer with anything in it.
    fn send_piece(&mut self, piece: Vec<u8>) -> Result<Vec<u8>> {
        self.settle(self.allowed - 1)?;
        while let Ok(piece) = self.receipts.try_recv() {
            self.take_back(piece);
        }
        let next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(PIECE));
        self.under_way += 1;
        self.hand_over(Piece::Pages(piece))?;
        Ok(next)
    }

    fn hand_over(&mut self, piece: Piece) -> Result<()> {
        let sent = self.pieces.as_ref().is_some_and(|pieces| pieces.send(piece).is_ok());
        match sent {
            true => Ok(()),
            false => self.join().map(drop),
        }
    }

    /// Waits until everything so far has been written, so that all room is free when the job is stopped.
    pub fn drain(&mut self) -> Result<()> {
        self.send()?;
        self.settle(0)
    }

    fn join(&mut self) -> Result<ImageWriter<File>> {
        self.pieces = None;
        let Some(thread) = self.thread.take() else {
            return Err(Error::new(ErrorKind::Internal, "the writing thread has ended"));
        };
        let mut writer = match thread.join() {
            Ok(result) => result?,
            Err(_) => return Err(Error::new(ErrorKind::Internal, "the writing thread panicked")),
        };
        match self.hashing.take().map(JoinHandle::join) {
            Some(Ok(hashing)) => writer.give_back(hashing?)?,
            Some(Err(_)) => return Err(Error::new(ErrorKind::Internal, "the hashing thread panicked")),
            None => {}
        }
        Ok(writer)
    }

    /// Writes the rest and the manifest, and makes the image durable. It has no name yet.
    ///
    /// # Errors
    /// The image cannot be written, or nobody waits for it any more.
    pub fn finish(mut self, manifest: &Manifest) -> Result<(File, ImageSummary)> {
        self.drain()?;
        let done = self.join()?.finish(manifest)?;
        self.enter("name")?;
        Ok(done)
    }
}

fn write_pieces(
    mut writer: ImageWriter<File>,
    pieces: &Receiver<Piece>,
    written: &Done,
    behind: Option<&WriteBehind>,
) -> Result<ImageWriter<File>> {
    for piece in pieces {
        match &piece {
            Piece::Pages(pages) => drop(writer.append(pages)?),
            Piece::Written(chunks) => writer.pass_over(chunks.len() as u64 * cpr_image::HASH_CHUNK)?,
        }
        written.note(piece);
        if let Some(behind) = behind {
            behind.go_on();
        }
    }
    Ok(writer)
}

/// To whom a piece goes that has been written.
enum Done {
    Hash(Sender<Piece>),
    Receipt(Sender<Vec<u8>>),
}

impl Done {
    fn note(&self, piece: Piece) {
        // Who asked may have given up.
        let _ = match (self, piece) {
            (Done::Hash(hashing), piece) => hashing.send(piece).is_ok(),
            (Done::Receipt(receipts), Piece::Pages(pages)) => receipts.send(pages).is_ok(),
            (Done::Receipt(_), Piece::Written(_)) => true,
        };
    }
}

fn hash_pieces(mut hashing: Hashing, pieces: &Receiver<Piece>, hashed: &Sender<Vec<u8>>) -> Result<Hashing> {
    for piece in pieces {
        match piece {
            Piece::Pages(pages) => {
                hashing.add(&pages);
                // As above.
                let _ = hashed.send(pages);
            }
            Piece::Written(chunks) => hashing.add_chunks(&chunks)?,
        }
    }
    Ok(hashing)
}

impl PageSink for Pipeline<'_, '_> {
    fn append(&mut self, pages: &[u8]) -> Result<u64> {
        let offset = self.next;
        self.next += pages.len() as u64;
        let mut rest = pages;
        while !rest.is_empty() {
            let room = PIECE - self.piece.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.piece.extend_from_slice(now);
            rest = later;
            if self.piece.len() == PIECE {
                self.send()?;
            }
        }
        self.count(pages.len())?;
        Ok(offset)
    }

    fn place(&mut self, pages: &[u8], placed: &mut dyn FnMut(usize, u64)) -> Result<()> {
        // Pages from `from` on are new and not appended so far; `run` has been found, and its end may go on.
        let (mut from, mut run) = (0, None::<(usize, u64)>);
        for at in (0..pages.len()).step_by(PAGE_SIZE) {
            if self.shared >= MOST_SHARED {
                break;
            }
            let fresh = self.next + (at - from) as u64;
            let Some(known) = self.index.find_or_note(&pages[at..at + PAGE_SIZE], fresh) else {
                if let Some((length, offset)) = run.take() {
                    placed(length, offset);
                }
                continue;
            };
            if from < at {
                let offset = self.append(&pages[from..at])?;
                placed(at - from, offset);
            }
            run = match run {
                Some((length, offset)) if offset + length as u64 == known => Some((length + PAGE_SIZE, offset)),
                other => {
                    if let Some((length, offset)) = other {
                        placed(length, offset);
                    }
                    self.shared += 1;
                    Some((PAGE_SIZE, known))
                }
            };
            from = at + PAGE_SIZE;
            self.count(PAGE_SIZE)?;
        }
        if let Some((length, offset)) = run {
            placed(length, offset);
        }
        if from < pages.len() {
            let offset = self.append(&pages[from..])?;
            placed(pages.len() - from, offset);
        }
        Ok(())
    }

    fn place_buffer(&mut self, pages: Vec<u8>, placed: &mut dyn FnMut(usize, u64)) -> Result<Vec<u8>> {
        let offset = self.next;
        let mut known = None;
        if self.shared < MOST_SHARED {
            let mut all = pages.chunks_exact(PAGE_SIZE).zip((offset..).step_by(PAGE_SIZE));
            known = all.position(|(page, fresh)| self.index.find_or_note(page, fresh).is_some());
        }
        if let Some(first) = known {
            let (fresh, rest) = pages.split_at(first * PAGE_SIZE);
            if !fresh.is_empty() {
                let offset = self.append(fresh)?;
                placed(fresh.len(), offset);
            }
            self.place(rest, placed)?;
            return Ok(pages);
        }
        let length = pages.len();
        if length < SMALL {
            self.append(&pages)?;
            placed(length, offset);
            return Ok(pages);
        }
        self.send()?;
        self.next += length as u64;
        let next = self.send_piece(pages)?;
        self.count(length)?;
        placed(length, offset);
        Ok(next)
    }

    fn ahead(&mut self, left: u64) -> Option<u64> {
        self.chunks.as_ref()?;
        let hurried = self.allowed > HOT / PIECE;
        // What there is room for is read first where a job waits.
        if left < if hurried { BUFFERED as u64 } else { LONG } {
            return None;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        let begun = (self.next - cpr_image::PAGE) % PIECE as u64;
        if begun == 0 {
            return Some(0);
        }
        self.tries += 1;
        if self.tries > TRIES {
            self.tries = 0;
            self.give_up();
            return None;
        }
        Some(PIECE as u64 - begun)
    }

    fn place_pieces(&mut self, count: usize, read: &ReadPiece<'_>) -> Result<Vec<Option<u64>>> {
        self.tries = 0;
        self.send()?;
        let Some(chunks) = self.chunks.take() else {
            return Ok(vec![None]);
        };
        let mut index = PageIndex::new(0)?;
        std::mem::swap(&mut index, &mut self.index);
        let mut buffers = std::mem::take(&mut self.spare);
        let pieces = Pieces {
            count,
            read,
            chunks: &chunks,
            next: self.next,
            index: (self.shared < MOST_SHARED).then_some(&mut index),
            buffers: &mut buffers,
        };
        let before = self.done;
        let mut told = Ok(());
        let placed = pieces.place(&mut |placed| {
            self.done = before + (placed * PIECE) as u64;
            if let Some(behind) = &self.behind {
                behind.go_on();
            }
            if self.done - self.told >= STEP {
                told = self.tell();
            }
            match told {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        self.chunks = Some(chunks);
        self.index = index;
        self.spare = buffers;
        let Placed { positions, hashes } = placed?;
        told?;
        if positions.len() < count {
            self.give_up();
        } else {
            self.failures = 0;
        }
        let length = (hashes.len() * PIECE) as u64;
        self.next += length;
        self.done = before + length;
        self.hand_over(Piece::Written(hashes))?;
        Ok(positions)
    }
}

// Dropped before its end, as on failure, the pipeline lets the writing thread be: it may hang in a write to a pipe that
// nobody reads, and it ends by itself when it finds no more pieces.

/// Who asked has given up.
pub fn nobody_waits() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the command that asked for the checkpoint has ended",
    )
}
