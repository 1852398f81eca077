//! Writing an image front to back.
//!
//! The writer keeps 32 bytes per MiB of page data, and seeks only where others write for it ([`ChunkWriter`]). A failed
//! write leaves the image unusable: later calls fail, and no trailer is written, so what has been written is recognised
//! as truncated.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::thread;

use blake3::Hasher;
use cpr_types::{Error, ErrorKind, Result};

use crate::cbor;
use crate::format::{HASH_CHUNK, HASH_LENGTH, HEADER_LENGTH, Header, ImageId, MAX_DATA, PAGE, TRAILER_LENGTH, Trailer};
use crate::format::{INCREMENTAL, ZSTD};
use crate::model::Manifest;
use crate::packer::{Compression, Packer};

/// From this many bytes on, hashing and writing go on at the same time.
const PARALLEL: usize = 512 << 10;

/// What has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Identifier of the image.
    pub id: ImageId,
    /// Length of the image in bytes.
    pub length: u64,
    /// Page data in it, bytes, before they were compressed.
    pub data_bytes: u64,
    /// Encoded metadata in it, bytes.
    pub manifest_bytes: u64,
    /// Hash of the trailer. It depends on every byte of the image.
    pub root_hash: [u8; 32],
}

/// What kind of image is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Compress page data.
    pub compression: Option<Compression>,
    /// Extents may refer to other images.
    pub incremental: bool,
}

/// Writes an image into a sink that need not be able to seek, so also into a pipe.
///
/// The sink gets few, large writes and needs no buffer.
pub struct ImageWriter<W: Write> {
    sink: W,
    header: Header,
    header_hash: [u8; HASH_LENGTH],
    data: PageData,
    failed: bool,
}

/// The page data so far.
enum PageData {
    Plain(Box<Chunks>),
    /// Their length; somebody else hashes them.
    Apart(u64),
    Packed(Box<Packer>),
}

/// The hashing of the page data of one image, apart from their writing, so that another thread can do it.
pub struct Hashing(Box<Chunks>);

impl Hashing {
    /// Hashes page data, in the order in which they are written.
    pub fn add(&mut self, pages: &[u8]) {
        self.0.add(pages);
    }

    /// Takes the hashes of chunks that a [`ChunkWriter`] has written behind what came so far.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where that is not whole chunks.
    pub fn add_chunks(&mut self, hashes: &[[u8; 32]]) -> Result<()> {
        let chunks = &mut self.0;
        if !chunks.length.is_multiple_of(HASH_CHUNK) {
            return Err(Error::new(ErrorKind::Internal, "chunks of page data begin within one"));
        }
        chunks.table.extend(hashes.iter().flatten());
        chunks.length += hashes.len() as u64 * HASH_CHUNK;
        Ok(())
    }
}

/// Writes chunks of page data ([`HASH_CHUNK`]) at their places in the file of an image, several threads at a time.
///
/// The [`ImageWriter`] has to pass over them ([`ImageWriter::pass_over`]), and its [`Hashing`] to take their hashes.
#[derive(Debug)]
pub struct ChunkWriter(File);

impl ChunkWriter {
    /// For an image that begins where this file does.
    pub fn new(file: File) -> Self {
        ChunkWriter(file)
    }

    /// Writes one whole chunk at this position in the image.
    ///
    /// # Errors
    /// As [`ImageWriter::append`].
    pub fn write(&self, chunk: &[u8], offset: u64) -> Result<()> {
        refuse_beyond_end(offset.saturating_sub(HEADER_LENGTH as u64), chunk.len())?;
        self.0.write_all_at(chunk, offset).map_err(|error| {
            let what = format!("write {} bytes of memory at offset {offset} of the image", chunk.len());
            full(error, what)
        })
    }
}

fn refuse_beyond_end(length: u64, more: usize) -> Result<()> {
    if length + more as u64 > MAX_DATA {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the job has more memory than an image can hold ({} TiB)",
                MAX_DATA >> 40
            ),
        ));
    }
    Ok(())
}

impl PageData {
    fn length(&self) -> u64 {
        match self {
            PageData::Plain(chunks) => chunks.length,
            PageData::Apart(length) => *length,
            PageData::Packed(packer) => packer.length,
        }
    }
}

/// The hashes of the page data so far.
#[derive(Default)]
struct Chunks {
    table: Vec<u8>,
    current: Hasher,
    length: u64,
}

impl Chunks {
    fn add(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let room = HASH_CHUNK - self.length % HASH_CHUNK;
            let take = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            self.current.update(&data[..take]);
            self.length += take as u64;
            if self.length.is_multiple_of(HASH_CHUNK) {
                self.close();
            }
            data = &data[take..];
        }
    }

    fn close(&mut self) {
        self.table.extend_from_slice(self.current.finalize().as_bytes());
        self.current.reset();
    }
}

impl<W: Write> ImageWriter<W> {
    /// Begins an image of a job on a machine of this architecture, for example `x86_64`, and writes its header.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn new(sink: W, architecture: &str) -> Result<Self> {
        Self::with_options(sink, architecture, WriteOptions::default())
    }

    /// The same, of another kind.
    ///
    /// # Errors
    /// When the sink fails; [`ErrorKind::Usage`] for a level of compression that does not exist.
    pub fn with_options(sink: W, architecture: &str, options: WriteOptions) -> Result<Self> {
        let mut features = Vec::new();
        let data = match options.compression {
            Some(compression) => {
                features.push(ZSTD.to_string());
                PageData::Packed(Box::new(Packer::new(compression)?))
            }
            None => PageData::Plain(Box::default()),
        };
        if options.incremental {
            features.push(INCREMENTAL.to_string());
        }
        Self::with_header(sink, Header::new(architecture, features)?, data)
    }

    fn with_header(sink: W, header: Header, data: PageData) -> Result<Self> {
        let bytes = header.encode()?;
        let mut header_hash = [0; HASH_LENGTH];
        header_hash.copy_from_slice(&bytes[HEADER_LENGTH - HASH_LENGTH..]);
        let mut writer = ImageWriter {
            sink,
            header,
            header_hash,
            data,
            failed: false,
        };
        writer.write(&bytes, || "write the header of the image".to_string())?;
        Ok(writer)
    }

    /// The identifier of the image.
    pub fn id(&self) -> ImageId {
        self.header.id
    }

    /// Page data written so far, bytes.
    pub fn data_bytes(&self) -> u64 {
        self.data.length()
    }

    /// Takes the hashing away from the writer. Whoever has it must be given the same page data, and give it back
    /// ([`ImageWriter::give_back`]) before [`ImageWriter::finish`]. None for a compressed image.
    pub fn take_hashing(&mut self) -> Option<Hashing> {
        let apart = PageData::Apart(self.data.length());
        match std::mem::replace(&mut self.data, apart) {
            PageData::Plain(chunks) => Some(Hashing(chunks)),
            other => {
                self.data = other;
                None
            }
        }
    }

    /// Gives the hashing back that was taken away.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where it has not seen what was written.
    pub fn give_back(&mut self, hashing: Hashing) -> Result<()> {
        if !matches!(self.data, PageData::Apart(length) if length == hashing.0.length) {
            return Err(Error::new(
                ErrorKind::Internal,
                "what was hashed is not what was written",
            ));
        }
        self.data = PageData::Plain(hashing.0);
        Ok(())
    }

    /// Appends whole pages and returns their position, which extents name.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the sink is full, other kinds when it fails otherwise. The image cannot be continued
    /// after that.
    pub fn append(&mut self, pages: &[u8]) -> Result<u64> {
        if !(pages.len() as u64).is_multiple_of(PAGE) {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{} bytes to be appended to an image are not whole pages", pages.len()),
            ));
        }
        let length = self.data.length();
        refuse_beyond_end(length, pages.len())?;
        let offset = HEADER_LENGTH as u64 + length;
        let what = || format!("write {} bytes of memory at offset {offset} of the image", pages.len());
        let Self { sink, data, failed, .. } = self;
        let chunks = match data {
            PageData::Plain(chunks) => chunks,
            PageData::Apart(length) => {
                write(sink, failed, pages, what)?;
                *length += pages.len() as u64;
                return Ok(offset);
            }
            PageData::Packed(packer) => {
                refuse_failed(*failed, what)?;
                return match packer.append(pages, sink) {
                    Ok(()) => Ok(offset),
                    Err(error) => {
                        *failed = true;
                        Err(error)
                    }
                };
            }
        };
        if pages.len() < PARALLEL {
            chunks.add(pages);
            write(sink, failed, pages, what)?;
            return Ok(offset);
        }
        let (written, hashed) = thread::scope(|scope| {
            let thread = thread::Builder::new().name("image-hash".to_string());
            let thread = thread.spawn_scoped(scope, || chunks.add(pages));
            let written = write(sink, failed, pages, what);
            (written, thread.map(|thread| thread.join()))
        });
        match hashed {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                *failed = true;
                return Err(Error::new(
                    ErrorKind::Internal,
                    "the thread that hashes page data panicked",
                ));
            }
            // No thread to be had.
            Err(_) => chunks.add(pages),
        }
        written?;
        Ok(offset)
    }

    /// Writes the metadata and closes the image. The sink is flushed, not synchronised.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the manifest contradicts itself or what was appended; [`ErrorKind::Unsupported`]
    /// when it is too large; otherwise as [`ImageWriter::append`].
    pub fn finish(mut self, manifest: &Manifest) -> Result<(W, ImageSummary)> {
        let data_bytes = self.data.length();
        let architecture = &manifest.checkpoint.architecture;
        if !architecture.is_empty() && *architecture != self.header.architecture {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("metadata of {architecture} in an image of {}", self.header.architecture),
            ));
        }
        manifest
            .validate(HEADER_LENGTH as u64..HEADER_LENGTH as u64 + data_bytes)
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "the metadata to be written are wrong").with_source(error)
            })?;
        let encoded = cbor::encode(manifest)?;
        let (table, trailer) = match &mut self.data {
            PageData::Plain(chunks) => {
                if !data_bytes.is_multiple_of(HASH_CHUNK) {
                    chunks.close();
                }
                let trailer = Trailer::for_lengths(data_bytes, encoded.len() as u64);
                (std::mem::take(&mut chunks.table), trailer)
            }
            PageData::Apart(_) => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "the page data of the image were not hashed",
                ));
            }
            PageData::Packed(packer) => {
                refuse_failed(self.failed, || "write the page data of the image".to_string())?;
                packer.finish(&mut self.sink)?;
                let table = std::mem::take(&mut packer.table);
                let trailer = Trailer::for_parts(packer.stored, table.len() as u64, encoded.len() as u64);
                (table, trailer)
            }
        };
        let trailer = trailer.ok_or_else(|| Error::new(ErrorKind::Internal, "the image is too long"))?;
        let trailer = Trailer {
            header_hash: self.header_hash,
            table_hash: *blake3::hash(&table).as_bytes(),
            manifest_hash: *blake3::hash(&encoded).as_bytes(),
            ..trailer
        };
        let end = trailer.encode();
        let what = || "write the metadata of the image".to_string();
        self.write(&table, what)?;
        self.write(&encoded, what)?;
        self.write(&end, what)?;
        self.sink.flush().map_err(|error| full(error, what()))?;
        let mut root_hash = [0; HASH_LENGTH];
        root_hash.copy_from_slice(&end[TRAILER_LENGTH - HASH_LENGTH..]);
        let summary = ImageSummary {
            id: self.header.id,
            length: trailer.total_length,
            data_bytes,
            manifest_bytes: trailer.manifest_length,
            root_hash,
        };
        Ok((self.sink, summary))
    }

    fn write(&mut self, bytes: &[u8], what: impl Fn() -> String) -> Result<()> {
        write(&mut self.sink, &mut self.failed, bytes, what)
    }
}

impl<W: Write + Seek> ImageWriter<W> {
    /// Passes over page data that a [`ChunkWriter`] writes here, when the hashing is done by somebody else
    /// ([`ImageWriter::take_hashing`]).
    ///
    /// # Errors
    /// When the sink cannot seek; [`ErrorKind::Internal`] when the writer hashes itself.
    pub fn pass_over(&mut self, bytes: u64) -> Result<()> {
        let what = || format!("pass over {bytes} bytes of memory in the image");
        refuse_failed(self.failed, what)?;
        let PageData::Apart(length) = &mut self.data else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{}: nobody would have hashed them", what()),
            ));
        };
        let further = i64::try_from(bytes).map_err(|_| Error::new(ErrorKind::Internal, what()))?;
        self.sink.seek(SeekFrom::Current(further)).map_err(|error| {
            self.failed = true;
            full(error, what())
        })?;
        *length += bytes;
        Ok(())
    }
}

fn refuse_failed(failed: bool, what: impl Fn() -> String) -> Result<()> {
    if failed {
        return Err(Error::new(
            ErrorKind::Io,
            format!("{}: an earlier write failed", what()),
        ));
    }
    Ok(())
}

fn write(sink: &mut impl Write, failed: &mut bool, bytes: &[u8], what: impl Fn() -> String) -> Result<()> {
    refuse_failed(*failed, &what)?;
    sink.write_all(bytes).map_err(|error| {
        *failed = true;
        full(error, what())
    })
}

/// The error of a failed write, with a hint if space is short.
pub(crate) fn full(error: std::io::Error, what: String) -> Error {
    let kind = ErrorKind::of_io(&error);
    let closed = error.kind() == std::io::ErrorKind::BrokenPipe;
    let error = Error::new(kind, what).with_source(error);
    match kind {
        ErrorKind::NoSpace => {
            error.with_hint("free some space there, raise the quota or file size limit, or write the image elsewhere")
        }
        _ if closed => error.with_hint("whoever was to read the image has ended"),
        _ => error,
    }
}
