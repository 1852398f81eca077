//! Compressing page data by chunks, on several processors, in the order in which they were appended.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use cpr_types::{Error, ErrorKind, Result};

use crate::format::{HASH_CHUNK, HASH_LENGTH, PACKED_ENTRY};
use crate::writer::full;

/// Most threads that compress.
const MAX_THREADS: usize = 8;

/// How page data are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As much as keeps up with writing: what would have to wait for the compressor is stored as it is.
    Fast,
    /// Everything, with this level of zstd.
    Level(i32),
}

impl Compression {
    fn level(self) -> i32 {
        match self {
            Compression::Fast => 1,
            Compression::Level(level) => level,
        }
    }
}

/// A chunk as it is stored.
struct Packed {
    bytes: Vec<u8>,
    hash: [u8; HASH_LENGTH],
    length: u32,
}

impl Packed {
    fn raw(chunk: Vec<u8>) -> Self {
        Packed {
            hash: *blake3::hash(&chunk).as_bytes(),
            length: chunk.len() as u32,
            bytes: chunk,
        }
    }

    fn new(chunk: Vec<u8>, compressor: &mut zstd::bulk::Compressor<'_>) -> Self {
        match compressor.compress(&chunk) {
            Ok(bytes) if bytes.len() < chunk.len() => Packed {
                hash: *blake3::hash(&bytes).as_bytes(),
                length: chunk.len() as u32,
                bytes,
            },
            _ => Packed::raw(chunk),
        }
    }
}

type Job = (Vec<u8>, SyncSender<Packed>);

enum Slot {
    Pending(Receiver<Packed>),
    Done(Packed),
}

/// Chunks on their way.
pub(crate) struct Packer {
    compression: Compression,
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    slots: VecDeque<Slot>,
    current: Vec<u8>,
    /// Page data appended, bytes.
    pub(crate) length: u64,
    /// The same as stored so far.
    pub(crate) stored: u64,
    /// An entry for each stored chunk.
    pub(crate) table: Vec<u8>,
}

impl Packer {
    pub(crate) fn new(compression: Compression) -> Result<Self> {
        let level = compression.level();
        if !zstd::compression_level_range().contains(&level) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("zstd has no compression level {level}"),
            ));
        }
        let (jobs, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let mut threads = Vec::new();
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            let thread = thread::Builder::new().name("image-pack".to_string());
            match thread.spawn(move || work(&receiver, level)) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => {
                    return Err(Error::new(ErrorKind::of_io(&error), "start a compressing thread").with_source(error));
                }
                Err(_) => break,
            }
        }
        Ok(Packer {
            compression,
            jobs: Some(jobs),
            threads,
            slots: VecDeque::new(),
            current: Vec::new(),
            length: 0,
            stored: 0,
            table: Vec::new(),
        })
    }

    pub(crate) fn append(&mut self, mut pages: &[u8], sink: &mut impl Write) -> Result<()> {
        self.length += pages.len() as u64;
        while !pages.is_empty() {
            let room = HASH_CHUNK as usize - self.current.len();
            let (now, later) = pages.split_at(room.min(pages.len()));
            self.current.reserve_exact(room);
            self.current.extend_from_slice(now);
            pages = later;
            if self.current.len() == HASH_CHUNK as usize {
                self.submit();
                self.write(2 * self.threads.len(), sink)?;
            }
        }
        Ok(())
    }

    /// Stores all that is left.
    pub(crate) fn finish(&mut self, sink: &mut impl Write) -> Result<()> {
        if !self.current.is_empty() {
            self.submit();
        }
        self.write(0, sink)
    }

    fn submit(&mut self) {
        let chunk = std::mem::take(&mut self.current);
        let behind = self
            .slots
            .iter()
            .filter(|slot| matches!(slot, Slot::Pending(_)))
            .count()
            > self.threads.len();
        if behind && self.compression == Compression::Fast {
            self.slots.push_back(Slot::Done(Packed::raw(chunk)));
            return;
        }
        let (done, result) = sync_channel(1);
        // A thread that has ended shows when its result is waited for.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send((chunk, done)));
        self.slots.push_back(Slot::Pending(result));
    }

    /// Writes chunks that are ready, waiting for them while there are more than `most`.
    fn write(&mut self, most: usize, sink: &mut impl Write) -> Result<()> {
        let lost = || Error::new(ErrorKind::Internal, "a thread that compresses page data has ended");
        while let Some(slot) = self.slots.pop_front() {
            let packed = match slot {
                Slot::Done(packed) => packed,
                Slot::Pending(result) if self.slots.len() >= most => result.recv().map_err(|_| lost())?,
                Slot::Pending(result) => match result.try_recv() {
                    Ok(packed) => packed,
                    Err(TryRecvError::Empty) => {
                        self.slots.push_front(Slot::Pending(result));
                        return Ok(());
                    }
                    Err(TryRecvError::Disconnected) => return Err(lost()),
                },
            };
            let what = || format!("write {} bytes of memory", packed.bytes.len());
            sink.write_all(&packed.bytes).map_err(|error| full(error, what()))?;
            self.stored += packed.bytes.len() as u64;
            let mut entry = [0; PACKED_ENTRY];
            entry[..HASH_LENGTH].copy_from_slice(&packed.hash);
            entry[HASH_LENGTH..HASH_LENGTH + 4].copy_from_slice(&(packed.bytes.len() as u32).to_le_bytes());
            entry[HASH_LENGTH + 4..].copy_from_slice(&packed.length.to_le_bytes());
            self.table.extend_from_slice(&entry);
        }
        Ok(())
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, level: i32) {
    let Ok(mut compressor) = zstd::bulk::Compressor::new(level) else {
        return;
    };
    loop {
        let job = jobs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
        let Ok((chunk, done)) = job else { return };
        // Who asked may have given up.
        let _ = done.send(Packed::new(chunk, &mut compressor));
    }
}
