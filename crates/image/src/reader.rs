//! Opening an image: what is believed when.
//!
//! Order: length, magic, header hash, version, features, trailer hash, positions, hashes of table and metadata,
//! decoding, consistency. Every length is checked before it is used. What was hashed is what is decoded: those bytes
//! are read once. Page data are hashed by [`Image::verify_data`] only, since restart would otherwise read them twice.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

use crate::cbor;
use crate::format::{HASH_CHUNK, HASH_LENGTH, HEADER_LENGTH, Header, ImageId, Start, TRAILER_LENGTH, Trailer};
use crate::format::{damaged, start, truncated};
use crate::model::Manifest;
use crate::writer::full;

/// Most threads that verify page data.
const MAX_THREADS: usize = 4;

/// An opened image, checked except for its page data.
#[derive(Debug)]
pub struct Image {
    file: File,
    name: String,
    header: Header,
    trailer: Trailer,
    root_hash: [u8; HASH_LENGTH],
    table: Vec<u8>,
    manifest: Manifest,
}

impl Image {
    /// Opens an image file and checks everything except its page data. A symbolic link is not followed.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Denied`] and [`ErrorKind::Io`] from the system; [`ErrorKind::Damaged`] for
    /// a file that is no image, or a damaged one; [`ErrorKind::Incompatible`] for one that needs a newer program.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        // Without NONBLOCK, opening a FIFO would wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => Self::from_file(File::from(file), &name),
            Err(rustix::io::Errno::LOOP) => Err(Error::new(
                ErrorKind::Denied,
                format!("open image {name}: it is a symbolic link, and those are not followed"),
            )
            .with_hint("give the name of the image itself")),
            Err(error) => Err(io::Error::from(error)).context(|| format!("open image {name}")),
        }
    }

    /// Checks an image that is open for reading. `name` is for messages.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn from_file(file: File, name: &str) -> Result<Self> {
        let metadata = file.metadata().context(|| format!("look at image {name}"))?;
        let kind = metadata.file_type();
        if !kind.is_file() {
            let what = if kind.is_dir() {
                "a directory"
            } else if kind.is_fifo() || kind.is_socket() {
                "a pipe or socket"
            } else {
                "a device"
            };
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("{name} is not an image but {what}"),
            ));
        }
        let length = metadata.len();
        let mut first = [0; 12];
        let have = usize::try_from(length).unwrap_or(usize::MAX).min(first.len());
        read_at(&file, &mut first[..have], 0, name)?;
        let mut bytes = vec![0; header_length(&first[..have], length, name)?];
        read_at(&file, &mut bytes, 0, name)?;
        let header = Header::decode(&bytes, name)?;

        let trailer_offset = length
            .checked_sub(TRAILER_LENGTH as u64)
            .filter(|offset| *offset >= HEADER_LENGTH as u64)
            .ok_or_else(|| truncated(name, "its end mark is missing"))?;
        let mut end = [0; TRAILER_LENGTH];
        read_at(&file, &mut end, trailer_offset, name)?;
        let trailer = Trailer::decode(&end, length, name)?;
        if trailer.header_hash != bytes[HEADER_LENGTH - HASH_LENGTH..] {
            return Err(damaged(name, "its header and trailer are of different images"));
        }

        let table = read_part(&file, trailer.table_offset, trailer.table_length, name)?;
        check(
            &table,
            &trailer.table_hash,
            "its table of hashes",
            trailer.table_offset,
            name,
        )?;
        let encoded = read_part(&file, trailer.manifest_offset, trailer.manifest_length, name)?;
        check(
            &encoded,
            &trailer.manifest_hash,
            "its metadata",
            trailer.manifest_offset,
            name,
        )?;

        let refused = || format!("image {name} cannot be used");
        let manifest = cbor::decode(&encoded).context(refused)?;
        drop(encoded);
        let architecture = &manifest.checkpoint.architecture;
        if !architecture.is_empty() && *architecture != header.architecture {
            let what = format!("its header says {}, its metadata {architecture:?}", header.architecture);
            return Err(damaged(name, what));
        }
        manifest
            .validate(trailer.data_offset..trailer.table_offset)
            .context(refused)?;
        let mut root_hash = [0; HASH_LENGTH];
        root_hash.copy_from_slice(&end[TRAILER_LENGTH - HASH_LENGTH..]);
        Ok(Image {
            file,
            name: name.to_string(),
            header,
            trailer,
            root_hash,
            table,
            manifest,
        })
    }

    /// Reads an image to its end from something that cannot seek, such as a pipe, into an unnamed temporary file.
    /// `name` is for messages.
    ///
    /// # Errors
    /// As [`Image::open`]; a stream that does not begin like an image is refused before the rest is read.
    /// [`ErrorKind::NoSpace`] when it does not fit into the directory for temporary files.
    pub fn from_stream(reader: &mut dyn Read, name: &str) -> Result<Self> {
        let reading = || format!("read image {name}");
        let mut first = Vec::with_capacity(HEADER_LENGTH);
        reader
            .take(HEADER_LENGTH as u64)
            .read_to_end(&mut first)
            .context(reading)?;
        // What follows is not known yet, but a page is enough for the header of format 1.
        let length = if first.len() < HEADER_LENGTH {
            first.len() as u64
        } else {
            u64::MAX
        };
        if header_length(&first[..first.len().min(12)], length, name)? == first.len() {
            Header::decode(&first, name)?;
        }
        let directory = std::env::temp_dir();
        let spool = || format!("keep image {name} in {}", directory.display());
        let hint = "set TMPDIR to a directory with more space, or restart from a file";
        let short = |error: Error| {
            if error.kind() == ErrorKind::NoSpace {
                error.with_hint(hint)
            } else {
                error
            }
        };
        let mut file = tempfile::tempfile_in(&directory).map_err(|error| short(full(error, spool())))?;
        file.write_all(&first).map_err(|error| short(full(error, spool())))?;
        let mut buffer = vec![0; HASH_CHUNK as usize];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => file
                    .write_all(&buffer[..count])
                    .map_err(|error| short(full(error, spool())))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(reading),
            }
        }
        file.rewind().context(spool)?;
        Self::from_file(file, name)
    }

    /// The identifier of the image.
    pub fn id(&self) -> ImageId {
        self.header.id
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The metadata.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name it was opened by, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.trailer.total_length
    }

    /// Page data in the image, bytes.
    pub fn data_bytes(&self) -> u64 {
        self.trailer.data_length
    }

    /// Where in the file the page data begin.
    pub(crate) fn data_start(&self) -> u64 {
        self.trailer.data_offset
    }

    /// Encoded metadata in the image, bytes.
    pub fn manifest_bytes(&self) -> u64 {
        self.trailer.manifest_length
    }

    /// The hash of the trailer, which depends on every byte of the image.
    pub fn root_hash(&self) -> [u8; 32] {
        self.root_hash
    }

    /// Reads all page data and checks their hashes, on several processors. `progress` is called now and then with bytes
    /// done and bytes in all, at the end with both equal.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with the offset of the first altered piece of [`HASH_CHUNK`] bytes; [`ErrorKind::Io`]
    /// when reading fails.
    pub fn verify_data(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let total = self.trailer.data_length;
        let chunks = total.div_ceil(HASH_CHUNK);
        let next = AtomicU64::new(0);
        let done = AtomicU64::new(0);
        // Pieces are handed out in order, so those before the first bad one have all been looked at in the end.
        let first_bad: Mutex<Option<(u64, Error)>> = Mutex::new(None);
        let work = |report: &mut dyn FnMut(u64)| {
            let mut buffer = vec![0; HASH_CHUNK.min(total) as usize];
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= chunks {
                    return;
                }
                match self.verify_chunk(index, &mut buffer) {
                    Ok(length) => report(done.fetch_add(length, Ordering::Relaxed) + length),
                    Err(error) => {
                        next.store(chunks, Ordering::Relaxed);
                        let mut bad = first_bad.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        if bad.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                            *bad = Some((index, error));
                        }
                        return;
                    }
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let threads = usize::try_from(chunks).unwrap_or(usize::MAX).min(threads);
        thread::scope(|scope| {
            for _ in 1..threads {
                // Without them this thread does it all.
                let _ = thread::Builder::new()
                    .name("image-verify".to_string())
                    .spawn_scoped(scope, || work(&mut |_| {}));
            }
            work(&mut |done| {
                if done < total {
                    progress(done, total);
                }
            });
        });
        match first_bad.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some((_, error)) => Err(error),
            None => {
                progress(total, total);
                Ok(())
            }
        }
    }

    fn verify_chunk(&self, index: u64, buffer: &mut [u8]) -> Result<u64> {
        let start = index * HASH_CHUNK;
        let length = HASH_CHUNK.min(self.trailer.data_length - start);
        let buffer = &mut buffer[..length as usize];
        let offset = self.trailer.data_offset + start;
        read_at(&self.file, buffer, offset, &self.name)?;
        let at = index as usize * HASH_LENGTH;
        if blake3::hash(buffer).as_bytes() != &self.table[at..at + HASH_LENGTH] {
            let what = format!("its page data ({length} bytes at offset {offset}) are altered");
            return Err(damaged(&self.name, what));
        }
        Ok(length)
    }

    /// Reads page data at a position in the file, as [`crate::model::Extent::offset`] gives it. Hashes are not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] outside the page data or when the file has become shorter; [`ErrorKind::Io`].
    pub fn read_data(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if offset < self.trailer.data_offset || end.is_none_or(|end| end > self.trailer.table_offset) {
            let what = format!("{} bytes at offset {offset} are not page data", buffer.len());
            return Err(damaged(&self.name, what));
        }
        read_at(&self.file, buffer, offset, &self.name)
    }
}

/// The length of the header that a file of `length` bytes beginning with `first` must have.
fn header_length(first: &[u8], length: u64, name: &str) -> Result<usize> {
    match start(first, length) {
        Start::Header(length) => Ok(length),
        Start::Empty => Err(Error::new(ErrorKind::Damaged, format!("image {name} is empty"))
            .with_hint("the checkpoint was not completed, or copying failed; use another image")),
        Start::Short => Err(truncated(name, "it ends within its header")),
        Start::NotAnImage => Err(Error::new(
            ErrorKind::Damaged,
            format!("{name} is not an image: it does not begin like one"),
        )),
        Start::Altered => Err(damaged(name, "its header (at offset 8) is altered")),
    }
}

fn check(bytes: &[u8], hash: &[u8; HASH_LENGTH], what: &str, offset: u64, name: &str) -> Result<()> {
    if blake3::hash(bytes).as_bytes() == hash {
        return Ok(());
    }
    let (length, verb) = (bytes.len(), if what.ends_with("metadata") { "are" } else { "is" });
    Err(damaged(
        name,
        format!("{what} ({length} bytes at offset {offset}) {verb} altered"),
    ))
}

/// Reads a part whose length the trailer gives and the file has been found to have.
fn read_part(file: &File, offset: u64, length: u64, name: &str) -> Result<Vec<u8>> {
    // A sparse file can claim much and hold nothing; 256 MiB are the most of either part.
    let length = usize::try_from(length).map_err(|_| damaged(name, "a part of it is too long"))?;
    let mut bytes = vec![0; length];
    read_at(file, &mut bytes, offset, name)?;
    Ok(bytes)
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64, name: &str) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(name, "it became shorter while it was read"),
        _ => {
            let what = format!("read {} bytes at offset {offset} of image {name}", buffer.len());
            Error::new(ErrorKind::of_io(&error), what).with_source(error)
        }
    })
}
