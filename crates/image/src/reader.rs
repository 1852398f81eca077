//! Opening an image: what is believed when.
//!
//! Order: length, magic, header hash, version, features, trailer hash, positions, hashes of table and metadata,
//! decoding, consistency. Every length is checked before it is used. What was hashed is what is decoded: those bytes
//! are read once. Page data are hashed by [`Image::verify_data`], or when they are used ([`Image::verify_and_take`]).

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

use crate::bundle::begins_like_one;
use crate::cbor;
use crate::format::{ANCESTOR_STRIDE, INCREMENTAL, PACKED_ENTRY, PAGE, ZSTD, damaged, start, truncated, u32_at};
use crate::format::{HASH_CHUNK, HASH_LENGTH, HEADER_LENGTH, Header, ImageId, Start, TRAILER_LENGTH, Trailer};
use crate::model::{Ancestor, Extent, Manifest};
use crate::writer::full;

/// Most threads that verify page data.
const MAX_THREADS: usize = 4;

/// An opened image, checked except for its page data.
#[derive(Debug)]
pub struct Image {
    body: Body,
    /// Where it was opened.
    path: Option<PathBuf>,
    manifest: Manifest,
    ancestors: Vec<Body>,
}

/// The page data of an image, and what is needed to check them.
#[derive(Debug)]
struct Body {
    file: File,
    name: String,
    header: Header,
    trailer: Trailer,
    root_hash: [u8; HASH_LENGTH],
    table: Vec<u8>,
    /// Of a compressed image: for each chunk its offset in the file, stored length and length.
    packed: Option<Vec<(u64, u32, u32)>>,
    /// Page data before they were compressed, bytes.
    data_bytes: u64,
    /// The chunk unpacked last.
    recent: Mutex<Option<(u64, Vec<u8>)>>,
}

impl Body {
    /// Opens an image file and checks all but metadata and page data; gives also where it says it was opened.
    fn open(path: &Path) -> Result<(Self, PathBuf)> {
        let name = path.display().to_string();
        // Without NONBLOCK, opening a FIFO would wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::LOOP) => {
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!("open image {name}: it is a symbolic link, and those are not followed"),
                )
                .with_hint("give the name of the image itself"));
            }
            Err(error) => return Err(io::Error::from(error)).context(|| format!("open image {name}")),
        };
        let path = std::path::absolute(path).context(|| format!("resolve {name}"))?;
        Ok((Self::from_file(file, &name)?, path))
    }

    fn from_file(file: File, name: &str) -> Result<Self> {
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
        if begins_like_one(&first[..have]) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("image {name} is of another engine, and this cannot be done with it"),
            )
            .with_hint("`cpr inspect` shows what it is of, `cpr restart` restarts it"));
        }
        let mut bytes = vec![0; header_length(&first[..have], length, name)?];
        read_at(&file, &mut bytes, 0, name)?;
        let header = Header::decode(&bytes, name)?;
        let is_packed = header.requires(ZSTD);

        let trailer_offset = length
            .checked_sub(TRAILER_LENGTH as u64)
            .filter(|offset| *offset >= HEADER_LENGTH as u64)
            .ok_or_else(|| truncated(name, "its end mark is missing"))?;
        let mut end = [0; TRAILER_LENGTH];
        read_at(&file, &mut end, trailer_offset, name)?;
        let trailer = Trailer::decode(&end, length, is_packed, name)?;
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
        let packed = if is_packed {
            let packed = packed_chunks(&table, &trailer);
            Some(packed.ok_or_else(|| damaged(name, "its table of hashes contradicts itself"))?)
        } else {
            None
        };
        let data_bytes = match &packed {
            Some(chunks) => chunks.iter().map(|chunk| u64::from(chunk.2)).sum(),
            None => trailer.data_length,
        };
        let mut root_hash = [0; HASH_LENGTH];
        root_hash.copy_from_slice(&end[TRAILER_LENGTH - HASH_LENGTH..]);
        Ok(Body {
            file,
            name: name.to_string(),
            header,
            trailer,
            root_hash,
            table,
            packed,
            data_bytes,
            recent: Mutex::new(None),
        })
    }

    fn chunks(&self) -> u64 {
        self.data_bytes.div_ceil(HASH_CHUNK)
    }

    /// Where a chunk is stored, and how long.
    fn chunk_place(&self, index: u64) -> (u64, u64) {
        let packed = self.packed.as_ref().and_then(|packed| packed.get(index as usize));
        match packed {
            Some(&(offset, stored, _)) => (offset, u64::from(stored)),
            None => {
                let start = index * HASH_CHUNK;
                let length = HASH_CHUNK.min(self.trailer.data_length.saturating_sub(start));
                (self.trailer.data_offset + start, length)
            }
        }
    }

    /// Reads a chunk as it is stored, and checks it. Gives its length.
    fn stored_chunk(&self, index: u64, bytes: &mut Vec<u8>) -> Result<u64> {
        let (offset, length) = self.chunk_place(index);
        bytes.resize(length as usize, 0);
        read_at(&self.file, bytes, offset, &self.name)?;
        let size = if self.packed.is_some() {
            PACKED_ENTRY
        } else {
            HASH_LENGTH
        };
        let at = index as usize * size;
        if self.table.get(at..at + HASH_LENGTH) != Some(&blake3::hash(bytes).as_bytes()[..]) {
            let what = format!("its page data ({length} bytes at offset {offset}) are altered");
            return Err(damaged(&self.name, what));
        }
        Ok(length)
    }

    /// A chunk of a compressed image. `scratch` is for what is stored.
    fn unpack(&self, index: u64, scratch: &mut Vec<u8>) -> Result<Vec<u8>> {
        let place = self.packed.as_ref().and_then(|packed| packed.get(index as usize));
        let &(_, stored, length) = place.ok_or_else(|| damaged(&self.name, format!("it has no chunk {index}")))?;
        self.stored_chunk(index, scratch)?;
        if stored == length {
            return Ok(scratch.clone());
        }
        match zstd::bulk::decompress(scratch, length as usize) {
            Ok(chunk) if chunk.len() == length as usize => Ok(chunk),
            _ => Err(damaged(
                &self.name,
                format!("its page data (chunk {index}) cannot be decompressed"),
            )),
        }
    }

    /// How far into the page data a position is, from which so many bytes are there.
    fn inside(&self, offset: u64, length: u64) -> Result<u64> {
        let inside = offset.checked_sub(HEADER_LENGTH as u64);
        let sound = |inside: &u64| inside.checked_add(length).is_some_and(|end| end <= self.data_bytes);
        inside.filter(sound).ok_or_else(|| {
            let what = format!("{length} bytes at offset {offset} are not page data");
            damaged(&self.name, what)
        })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut inside = self.inside(offset, buffer.len() as u64)?;
        if self.packed.is_none() {
            return read_at(&self.file, buffer, offset, &self.name);
        }
        let mut recent = self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut rest = buffer;
        while !rest.is_empty() {
            let (index, from) = (inside / HASH_CHUNK, (inside % HASH_CHUNK) as usize);
            let known = recent.take().filter(|(known, _)| *known == index);
            let (_, chunk) = recent.insert(match known {
                Some(known) => known,
                None => (index, self.unpack(index, &mut Vec::new())?),
            });
            let length = rest.len().min(chunk.len() - from);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&chunk[from..from + length]);
            inside += length as u64;
            rest = later;
        }
        Ok(())
    }
}

/// The chunks of a compressed image by its table; none where that makes no sense.
fn packed_chunks(table: &[u8], trailer: &Trailer) -> Option<Vec<(u64, u32, u32)>> {
    let count = table.len() / PACKED_ENTRY;
    let mut at = trailer.data_offset;
    let mut chunks = Vec::with_capacity(count);
    for (index, entry) in table.chunks_exact(PACKED_ENTRY).enumerate() {
        let (stored, length) = (u32_at(entry, HASH_LENGTH), u32_at(entry, HASH_LENGTH + 4));
        let whole = u64::from(length) == HASH_CHUNK;
        let last = index + 1 == count && (1..=HASH_CHUNK).contains(&u64::from(length));
        if !(whole || last) || !u64::from(length).is_multiple_of(PAGE) || !(1..=length).contains(&stored) {
            return None;
        }
        chunks.push((at, stored, length));
        at += u64::from(stored);
    }
    (at == trailer.table_offset).then_some(chunks)
}

impl Image {
    /// Opens an image file and checks everything except its page data. A symbolic link is not followed.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Denied`] and [`ErrorKind::Io`] from the system; [`ErrorKind::Damaged`] for
    /// a file that is no image, or a damaged one; [`ErrorKind::Incompatible`] for one that needs a newer program.
    pub fn open(path: &Path) -> Result<Self> {
        let (body, path) = Body::open(path)?;
        Self::from_body(body, Some(path))
    }

    /// Checks an image that is open for reading. `name` is for messages.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn from_file(file: File, name: &str) -> Result<Self> {
        Self::from_body(Body::from_file(file, name)?, None)
    }

    fn from_body(body: Body, path: Option<PathBuf>) -> Result<Self> {
        let (trailer, name) = (&body.trailer, body.name.as_str());
        let encoded = read_part(&body.file, trailer.manifest_offset, trailer.manifest_length, name)?;
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
        if !architecture.is_empty() && *architecture != body.header.architecture {
            let what = format!(
                "its header says {}, its metadata {architecture:?}",
                body.header.architecture
            );
            return Err(damaged(name, what));
        }
        if !manifest.ancestors.is_empty() && !body.header.requires(INCREMENTAL) {
            return Err(damaged(
                name,
                "it refers to other images and its header does not say so",
            ));
        }
        let data = trailer.data_offset..trailer.data_offset + body.data_bytes;
        manifest.validate(data).context(refused)?;
        Ok(Image {
            body,
            path,
            manifest,
            ancestors: Vec::new(),
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
        self.body.header.id
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.body.header
    }

    /// The metadata.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.body.file
    }

    /// The name it was opened by, for messages.
    pub fn name(&self) -> &str {
        &self.body.name
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.body.trailer.total_length
    }

    /// Page data in the image, bytes, before they were compressed.
    pub fn data_bytes(&self) -> u64 {
        self.body.data_bytes
    }

    /// Encoded metadata in the image, bytes.
    pub fn manifest_bytes(&self) -> u64 {
        self.body.trailer.manifest_length
    }

    /// The hash of the trailer, which depends on every byte of the image.
    pub fn root_hash(&self) -> [u8; 32] {
        self.body.root_hash
    }

    /// Opens the images this one refers to: each is looked for beside this one, then where it was when this one was
    /// made. Without this, their page data cannot be read or verified.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] naming an image that is missing, or that is not the one it was.
    pub fn open_ancestors(&mut self) -> Result<()> {
        if self.ancestors.len() == self.manifest.ancestors.len() {
            return Ok(());
        }
        let mut opened = Vec::with_capacity(self.manifest.ancestors.len());
        for ancestor in &self.manifest.ancestors {
            opened.push(self.find_ancestor(ancestor)?);
        }
        self.ancestors = opened;
        Ok(())
    }

    fn find_ancestor(&self, ancestor: &Ancestor) -> Result<Body> {
        let recorded = ancestor.path.as_path();
        let beside = self.path.as_deref().and_then(Path::parent).zip(recorded.file_name());
        let places = beside.map(|(directory, name)| directory.join(name));
        let owner = |file: &File| file.metadata().map(|metadata| metadata.uid()).ok();
        let mut found = None;
        for place in places.into_iter().chain([recorded.to_path_buf()]) {
            match Body::open(&place) {
                // Root, restarting a user's image, must not give that user the pages of somebody else's.
                Ok((body, _)) if owner(&body.file) != owner(&self.body.file) => {
                    found = found.or(Some(format!("{} belongs to another user", place.display())));
                }
                Ok((body, _)) if body.root_hash[..] == ancestor.root_hash.0[..] => return Ok(body),
                Ok((body, _)) => {
                    let what = if body.header.id.0[..] == ancestor.id.0[..] {
                        "has been altered since"
                    } else {
                        "is another image now"
                    };
                    found = found.or(Some(format!("{} {what}", place.display())));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => found = found.or(Some(error.chain())),
            }
        }
        let name = recorded.file_name().unwrap_or(recorded.as_os_str()).display();
        let why = found.unwrap_or_else(|| format!("{} is missing", recorded.display()));
        Err(Error::new(
            ErrorKind::Damaged,
            format!("image {} is an increment and needs image {name}: {why}", self.body.name),
        )
        .with_hint("put that image beside this one, or use another image"))
    }

    /// The files page data are read from: this image, then its ancestors.
    pub fn bodies(&self) -> impl Iterator<Item = &File> {
        self.all_bodies().map(|body| &body.file)
    }

    fn all_bodies(&self) -> impl Iterator<Item = &Body> {
        std::iter::once(&self.body).chain(&self.ancestors)
    }

    fn body_of(&self, offset: u64) -> Result<&Body> {
        let index = offset / ANCESTOR_STRIDE;
        let body = match usize::try_from(index) {
            Ok(0) => Some(&self.body),
            Ok(index) => self.ancestors.get(index - 1),
            Err(_) => None,
        };
        body.ok_or_else(|| damaged(&self.body.name, format!("ancestor {index} is not open")))
    }

    /// Where the page data at a position given by an extent are in a file: the number of the file among
    /// [`Image::bodies`] and the offset in it. None where they are compressed.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when no such image is open.
    pub fn locate(&self, offset: u64) -> Result<Option<(usize, u64)>> {
        let body = self.body_of(offset)?;
        let place = ((offset / ANCESTOR_STRIDE) as usize, offset % ANCESTOR_STRIDE);
        Ok(body.packed.is_none().then_some(place))
    }

    /// Reads all page data of this image, and those of its ancestors that it uses, and checks their hashes, on several
    /// processors. `progress` is called now and then with bytes done and bytes in all, at the end with both equal.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with the offset of the first altered piece of [`HASH_CHUNK`] bytes; [`ErrorKind::Io`]
    /// when reading fails.
    pub fn verify_data(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut used = self.used_chunks(self.manifest.extents())?;
        used[0] = (0..self.body.chunks()).collect();
        self.verify_chunks(&used, progress)
    }

    /// The same for the page data of some extents only.
    ///
    /// # Errors
    /// As [`Image::verify_data`].
    pub fn verify_extents<'a>(&self, extents: impl Iterator<Item = &'a Extent>) -> Result<()> {
        self.verify_chunks(&self.used_chunks(extents)?, &mut |_, _| {})
    }

    /// The chunks of this image and of each ancestor that extents have pages in.
    fn used_chunks<'a>(&self, extents: impl Iterator<Item = &'a Extent>) -> Result<Vec<BTreeSet<u64>>> {
        if self.ancestors.len() != self.manifest.ancestors.len() {
            return Err(Error::new(ErrorKind::Internal, "the images it refers to are not open"));
        }
        let mut used: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); self.ancestors.len() + 1];
        for extent in extents {
            let (index, start) = (
                (extent.offset / ANCESTOR_STRIDE) as usize,
                extent.offset % ANCESTOR_STRIDE,
            );
            if let Some(used) = used.get_mut(index) {
                let start = start - HEADER_LENGTH as u64;
                used.extend(start / HASH_CHUNK..(start + extent.length).div_ceil(HASH_CHUNK));
            }
        }
        Ok(used)
    }

    /// The same as [`Image::verify_data`], and gives pieces of page data to `take` in the same pass, from bytes whose
    /// hash was compared: each once, in any order, perhaps in parts (with how far into the piece a part begins).
    ///
    /// # Errors
    /// As [`Image::verify_data`]; [`ErrorKind::Damaged`] for a piece outside the page data; what `take` gives.
    pub fn verify_and_take(&self, pieces: &[(u64, u64)], take: &TakePiece<'_>) -> Result<()> {
        let mut used = self.used_chunks(self.manifest.extents())?;
        used[0] = (0..self.body.chunks()).collect();
        // By image and chunk: piece, how far into it, and the part of the chunk.
        let mut wanted: HashMap<(usize, u64), Vec<PiecePart>> = HashMap::new();
        for (index, &(offset, length)) in pieces.iter().enumerate() {
            let (body, number) = (self.body_of(offset)?, (offset / ANCESTOR_STRIDE) as usize);
            let begin = body.inside(offset % ANCESTOR_STRIDE, length)?;
            let mut done = 0;
            while done < length {
                let (chunk, from) = ((begin + done) / HASH_CHUNK, (begin + done) % HASH_CHUNK);
                let part = (HASH_CHUNK - from).min(length - done);
                let range = from as usize..(from + part) as usize;
                wanted.entry((number, chunk)).or_default().push((index, done, range));
                if let Some(used) = used.get_mut(number) {
                    used.insert(chunk);
                }
                done += part;
            }
        }
        let bodies = self.all_bodies().zip(used).enumerate();
        let work: Vec<(usize, &Body, u64)> = bodies
            .flat_map(|(number, (body, used))| used.into_iter().map(move |chunk| (number, body, chunk)))
            .collect();
        parallel(
            work.len(),
            &|index, scratch| {
                let (number, body, chunk) = work[index];
                let Some(parts) = wanted.get(&(number, chunk)) else {
                    return body.stored_chunk(chunk, scratch).map(drop);
                };
                let unpacked;
                let bytes = match body.packed {
                    Some(_) => {
                        unpacked = body.unpack(chunk, scratch)?;
                        &unpacked
                    }
                    None => {
                        body.stored_chunk(chunk, scratch)?;
                        &*scratch
                    }
                };
                for (piece, done, range) in parts {
                    let part = bytes.get(range.clone());
                    take(
                        *piece,
                        *done,
                        part.ok_or_else(|| truncated(&body.name, "its page data end early"))?,
                    )?;
                }
                Ok(())
            },
            &mut || {},
        )
    }

    fn verify_chunks(&self, used: &[BTreeSet<u64>], progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let work: Vec<(&Body, u64)> = self
            .all_bodies()
            .zip(used)
            .flat_map(|(body, used)| used.iter().map(move |&chunk| (body, chunk)))
            .collect();
        let total = work.iter().map(|(body, chunk)| body.chunk_place(*chunk).1).sum();
        let done = AtomicU64::new(0);
        parallel(
            work.len(),
            &|index, scratch| {
                let (body, chunk) = work[index];
                done.fetch_add(body.stored_chunk(chunk, scratch)?, Ordering::Relaxed);
                Ok(())
            },
            &mut || {
                let done = done.load(Ordering::Relaxed);
                if done < total {
                    progress(done, total);
                }
            },
        )?;
        progress(total, total);
        Ok(())
    }

    /// The piece of page data, up to [`HASH_CHUNK`] bytes, that the position `offset` is in: where it begins, and its
    /// bytes, whose hash was compared.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] outside the page data or where they are altered; [`ErrorKind::Io`].
    pub fn checked_chunk(&self, offset: u64) -> Result<(u64, Vec<u8>)> {
        let body = self.body_of(offset)?;
        let index = body.inside(offset % ANCESTOR_STRIDE, 1)? / HASH_CHUNK;
        let begin = offset / ANCESTOR_STRIDE * ANCESTOR_STRIDE + HEADER_LENGTH as u64 + index * HASH_CHUNK;
        let mut bytes = Vec::new();
        if body.packed.is_some() {
            let unpacked = body.unpack(index, &mut bytes)?;
            return Ok((begin, unpacked));
        }
        body.stored_chunk(index, &mut bytes)?;
        Ok((begin, bytes))
    }

    /// Reads page data at a position as [`crate::model::Extent::offset`] gives it. Hashes are checked of compressed
    /// data only.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] outside the page data or when the file has become shorter; [`ErrorKind::Io`].
    pub fn read_data(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.body_of(offset)?.read(offset % ANCESTOR_STRIDE, buffer)
    }

    /// Reads many pieces of page data, on several processors: gives each to `take` once, in any order, perhaps in parts
    /// (with how far into the piece a part begins). A compressed chunk is unpacked once for all pieces in it that
    /// follow each other.
    ///
    /// # Errors
    /// As [`Image::read_data`], or what `take` gives.
    pub fn read_pieces(&self, pieces: &[(u64, u64)], take: &TakePiece<'_>) -> Result<()> {
        // Parts in one chunk each, those of the same chunk together.
        let mut parts: Vec<Vec<(usize, u64, u64, u64)>> = Vec::new();
        let mut last = None;
        for (index, &(offset, length)) in pieces.iter().enumerate() {
            let mut done = 0;
            while done < length {
                let at = offset + done;
                let inside = (at % ANCESTOR_STRIDE).saturating_sub(HEADER_LENGTH as u64);
                let part = (HASH_CHUNK - inside % HASH_CHUNK).min(length - done);
                let chunk = (at / ANCESTOR_STRIDE, inside / HASH_CHUNK);
                let new = last != Some(chunk);
                last = Some(chunk);
                match parts.last_mut() {
                    Some(group) if !new => group.push((index, done, at, part)),
                    _ => parts.push(vec![(index, done, at, part)]),
                }
                done += part;
            }
        }
        parallel(
            parts.len(),
            &|group, scratch| {
                let mut unpacked: Option<Vec<u8>> = None;
                for &(index, done, at, length) in &parts[group] {
                    let (body, at) = (self.body_of(at)?, at % ANCESTOR_STRIDE);
                    if body.packed.is_none() {
                        scratch.resize(length as usize, 0);
                        body.read(at, scratch)?;
                        take(index, done, scratch)?;
                        continue;
                    }
                    let inside = body.inside(at, length)?;
                    let chunk = match &unpacked {
                        Some(chunk) => chunk,
                        None => unpacked.insert(body.unpack(inside / HASH_CHUNK, scratch)?),
                    };
                    let from = (inside % HASH_CHUNK) as usize;
                    take(index, done, &chunk[from..from + length as usize])?;
                }
                Ok(())
            },
            &mut || {},
        )
    }
}

/// The number of a piece, how far into it a part begins, and where in its chunk the part is.
type PiecePart = (usize, u64, Range<usize>);

/// Takes a part of a piece: the number of the piece, how far into it the part begins, and the part.
pub type TakePiece<'a> = dyn Fn(usize, u64, &[u8]) -> Result<()> + Sync + 'a;

type Work<'a> = dyn Fn(usize, &mut Vec<u8>) -> Result<()> + Sync + 'a;

/// Does `work` for each number below `count`, on several processors, and gives the error of the lowest that failed.
/// Each processor has a buffer of its own. This thread takes part and calls `tell` now and then.
fn parallel(count: usize, work: &Work<'_>, tell: &mut dyn FnMut()) -> Result<()> {
    let next = AtomicUsize::new(0);
    // Numbers are handed out in order, so those before the first bad one have all been looked at in the end.
    let first_bad: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let run = |tell: &mut dyn FnMut()| {
        let mut scratch = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            if let Err(error) = work(index, &mut scratch) {
                next.store(count, Ordering::Relaxed);
                let mut bad = first_bad.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if bad.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                    *bad = Some((index, error));
                }
                return;
            }
            tell();
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            // Without them this thread does it all.
            let _ = thread::Builder::new()
                .name("image-read".to_string())
                .spawn_scoped(scope, || run(&mut || {}));
        }
        run(tell);
    });
    match first_bad.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some((_, error)) => Err(error),
        None => Ok(()),
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
