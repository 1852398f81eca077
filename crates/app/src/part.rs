//! One file of a checkpoint: the variables of one rank. docs/app-format.md describes it byte by byte.
//!
//! A header, then the variables' bytes in chunks, then metadata (CBOR) that say where each chunk is and what its hash
//! is, then a trailer with the hash of the metadata. A chunk that an earlier generation has already is not written
//! again: the metadata name that generation. Nothing of a file is believed before its hash was compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::background::Progress;
use crate::directory::Pending;
use crate::files::{self, FileInfo};
use crate::variable::{ElementType, Order, Variable, bytes_of, check_name, swap};

/// First bytes of the file, and last bytes of it.
const MAGIC: [u8; 8] = *b"GridAPP\x01";
/// Version of the format.
const VERSION: u32 = 1;
/// Length of the header, and what the first chunk of each variable is aligned to.
const ALIGNMENT: u64 = 4096;
/// Length of the trailer: offset, length and hash of the metadata, length of the file, magic.
const TRAILER: u64 = 64;
/// Bytes of a variable that have one hash.
pub const CHUNK: u64 = 1 << 20;
/// Most bytes of metadata that are read.
const MOST_METADATA: u64 = 1 << 30;

/// What a part says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Name of the checkpoint.
    pub name: String,
    /// Number of the generation.
    pub generation: u64,
    /// Which part this is, from 0.
    pub rank: u32,
    /// How many parts the generation has.
    pub ranks: u32,
    /// Which run of the program wrote it; empty where that is not known.
    #[serde(default)]
    pub session: String,
    /// When writing began, nanoseconds since the epoch.
    pub created_ns: u64,
    /// Host name of the machine.
    pub host: String,
    /// Byte order of all numbers in variables.
    pub little_endian: bool,
    /// What the program wanted to be remembered.
    pub attributes: BTreeMap<String, String>,
    /// The variables, in the order they were given.
    pub variables: Vec<VariableInfo>,
    /// Files that belong to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileInfo>,
}

/// A variable in a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariableInfo {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Elements along each dimension.
    pub shape: Vec<u64>,
    /// Order of the elements.
    pub order: Order,
    /// Length in bytes.
    pub bytes: u64,
    /// Where its bytes are, [`CHUNK`] at a time.
    pub chunks: Vec<Chunk>,
}

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Generation whose part of this rank has it.
    pub generation: u64,
    /// Offset in that file.
    pub offset: u64,
    /// XXH3 with 128 bits, as two halves, the high one first.
    pub hash: (u64, u64),
}

impl PartInfo {
    /// Other generations that this one needs.
    pub fn needs(&self) -> BTreeSet<u64> {
        let chunks = self.variables.iter().flat_map(|variable| &variable.chunks);
        let generations = chunks.map(|chunk| chunk.generation);
        generations
            .filter(|generation| *generation != self.generation)
            .collect()
    }

    /// The variable with this name.
    pub fn variable(&self, name: &str) -> Option<&VariableInfo> {
        self.variables.iter().find(|variable| variable.name == name)
    }
}

fn hash(bytes: &[u8]) -> (u64, u64) {
    let hash = xxh3_128(bytes);
    ((hash >> 64) as u64, hash as u64)
}

/// The name of a part's file.
pub fn file_name(rank: u32) -> String {
    format!("part-{rank:05}")
}

/// Writes a part to `path`; gives what it says of itself, and how many bytes of variables were written. Chunks that
/// `basis` has are referred to.
///
/// # Errors
/// [`ErrorKind::Usage`] for variables that make no sense, [`ErrorKind::NoSpace`], [`ErrorKind::Io`]. There is no such
/// file then.
pub fn write(
    path: &Path,
    mut info: PartInfo,
    variables: &[Variable<'_>],
    basis: Option<&PartInfo>,
    progress: &Progress,
) -> Result<(PartInfo, u64)> {
    let mut names = BTreeSet::new();
    for variable in variables {
        variable.check()?;
        if !names.insert(variable.name) {
            let text = format!("there are two variables {}", variable.name);
            return Err(Error::new(ErrorKind::Usage, text));
        }
    }
    progress.begin(variables.iter().map(|variable| variable.data.len() as u64).sum());
    let pending = Pending::create(path)?;
    let what = || format!("write file {}", path.display());
    let mut header = vec![0u8; ALIGNMENT as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    pending.file.write_all_at(&header, 0).context(what)?;
    let (mut at, mut written) = (ALIGNMENT, 0);
    for variable in variables {
        let before = basis.and_then(|basis| basis.variable(variable.name)).filter(|before| {
            (before.element, before.order, before.shape.as_slice())
                == (variable.element, variable.order, variable.shape)
        });
        at = at.next_multiple_of(ALIGNMENT);
        let mut chunks = Vec::with_capacity(variable.data.len() / CHUNK as usize + 1);
        for (index, bytes) in variable.data.chunks(CHUNK as usize).enumerate() {
            let hash = hash(bytes);
            let same = before
                .and_then(|before| before.chunks.get(index))
                .filter(|c| c.hash == hash);
            chunks.push(match same {
                Some(same) => *same,
                None => {
                    pending.file.write_all_at(bytes, at).context(what)?;
                    at += bytes.len() as u64;
                    written += bytes.len() as u64;
                    Chunk {
                        generation: info.generation,
                        offset: at - bytes.len() as u64,
                        hash,
                    }
                }
            });
            progress.add(bytes.len() as u64);
        }
        info.variables.push(VariableInfo {
            name: variable.name.to_owned(),
            element: variable.element,
            shape: variable.shape.to_vec(),
            order: variable.order,
            bytes: variable.data.len() as u64,
            chunks,
        });
    }
    let mut metadata = Vec::new();
    ciborium::into_writer(&info, &mut metadata)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("encode metadata: {error}")))?;
    at = at.next_multiple_of(ALIGNMENT);
    pending.file.write_all_at(&metadata, at).context(what)?;
    let length = metadata.len() as u64;
    let mut trailer = Vec::with_capacity(TRAILER as usize);
    trailer.extend_from_slice(&at.to_le_bytes());
    trailer.extend_from_slice(&length.to_le_bytes());
    trailer.extend_from_slice(blake3::hash(&metadata).as_bytes());
    trailer.extend_from_slice(&(at + length + TRAILER).to_le_bytes());
    trailer.extend_from_slice(&MAGIC);
    pending.file.write_all_at(&trailer, at + length).context(what)?;
    pending.publish()?;
    Ok((info, written))
}

/// A part open for reading.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    file: File,
    info: PartInfo,
    /// Parts of other generations that chunks are in, once needed.
    others: HashMap<u64, File>,
}

impl Part {
    /// Opens a part and checks everything but the variables' bytes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Denied`], [`ErrorKind::Damaged`], [`ErrorKind::Incompatible`] for a
    /// version that this library does not know.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context(|| format!("open file {}", path.display()))?;
        let info = read_info(&file, path)?;
        Ok(Part {
            path: path.to_owned(),
            file,
            info,
            others: HashMap::new(),
        })
    }

    /// What it says of itself.
    pub fn info(&self) -> &PartInfo {
        &self.info
    }

    /// Reads `buffer.len()` bytes of a variable from `offset` on, in this machine's byte order, and compares hashes: of
    /// all chunks that it touches.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where bytes are altered or missing, [`ErrorKind::Usage`] outside of the variable.
    pub fn read(&mut self, variable: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let info = self.info.variables.get(variable);
        let info = info.ok_or_else(|| Error::new(ErrorKind::Usage, "there is no such variable"))?;
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= info.bytes);
        let end = end.ok_or_else(|| Error::new(ErrorKind::Usage, format!("variable {} is shorter", info.name)))?;
        let component = info.element.component();
        let (chunks, bytes) = (info.chunks.clone(), info.bytes);
        let mut scratch = Vec::new();
        let mut at = offset;
        while at < end {
            let index = at / CHUNK;
            let (start, length) = (index * CHUNK, CHUNK.min(bytes - index * CHUNK));
            let chunk = *chunks
                .get(index as usize)
                .ok_or_else(|| self.damaged("a chunk is missing"))?;
            let until = end.min(start + length);
            let place = &mut buffer[(at - offset) as usize..(until - offset) as usize];
            if place.len() as u64 == length {
                self.read_chunk(chunk, place)?;
            } else {
                scratch.resize(length as usize, 0);
                self.read_chunk(chunk, &mut scratch)?;
                place.copy_from_slice(&scratch[(at - start) as usize..(until - start) as usize]);
            }
            at = until;
        }
        if self.info.little_endian != cfg!(target_endian = "little") {
            if !offset.is_multiple_of(component) || !(buffer.len() as u64).is_multiple_of(component) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "a number of another byte order is read in pieces",
                ));
            }
            swap(buffer, component);
        }
        Ok(())
    }

    /// Compares the hashes of everything.
    ///
    /// # Errors
    /// As [`Part::read`].
    pub fn verify(&mut self) -> Result<()> {
        let mut buffer = Vec::new();
        let variables: Vec<(u64, Vec<Chunk>)> = self
            .info
            .variables
            .iter()
            .map(|v| (v.bytes, v.chunks.clone()))
            .collect();
        for (bytes, chunks) in variables {
            for (index, chunk) in chunks.into_iter().enumerate() {
                buffer.resize(CHUNK.min(bytes - index as u64 * CHUNK) as usize, 0);
                self.read_chunk(chunk, &mut buffer)?;
            }
        }
        self.verify_files()
    }

    /// Compares the hashes of its files.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`].
    pub fn verify_files(&self) -> Result<()> {
        let directory = self.path.with_file_name(files::directory_name(self.info.rank));
        self.info
            .files
            .iter()
            .try_for_each(|file| files::verify(&directory, file).map(drop))
    }

    fn read_chunk(&mut self, chunk: Chunk, place: &mut [u8]) -> Result<()> {
        let file = if chunk.generation == self.info.generation {
            &self.file
        } else {
            match self.others.entry(chunk.generation) {
                std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => {
                    let name = crate::store::directory_name(chunk.generation);
                    let store = self.path.parent().and_then(Path::parent).unwrap_or(Path::new("."));
                    let path = store.join(name).join(file_name(self.info.rank));
                    let file = File::open(&path).map_err(|error| {
                        let text = format!("{} refers to {}", self.path.display(), path.display());
                        Error::new(ErrorKind::Damaged, text).with_source(error)
                    })?;
                    place.insert(file)
                }
            }
        };
        let read = file.read_exact_at(place, chunk.offset);
        if let Err(error) = read {
            return match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Err(self.damaged("it is too short").with_source(error)),
                _ => Err(error).context(|| format!("read file {}", self.path.display())),
            };
        }
        if hash(place) != chunk.hash {
            let text = format!(
                "{} bytes at {} of generation {}",
                place.len(),
                chunk.offset,
                chunk.generation
            );
            return Err(self.damaged(&format!("{text} are altered")));
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        damaged(&self.path, what)
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("{} is damaged: {what}", path.display()))
}

/// Reads and checks the metadata of a part.
fn read_info(file: &File, path: &Path) -> Result<PartInfo> {
    let damaged = |what: &str| damaged(path, what);
    let what = || format!("read file {}", path.display());
    let metadata = file.metadata().context(what)?;
    let length = metadata.len();
    if !metadata.is_file() || length < ALIGNMENT + TRAILER {
        return Err(damaged("it is too short"));
    }
    let mut head = [0u8; 12];
    file.read_exact_at(&mut head, 0).context(what)?;
    let mut trailer = [0u8; TRAILER as usize];
    file.read_exact_at(&mut trailer, length - TRAILER).context(what)?;
    if head[..8] != MAGIC {
        return Err(damaged("it is no part of a checkpoint"));
    }
    let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if version != VERSION {
        let text = format!(
            "{} has format version {version}, and this library knows {VERSION}",
            path.display()
        );
        return Err(Error::new(ErrorKind::Incompatible, text).with_hint("read it with a newer version"));
    }
    let word = |at: usize| {
        let mut raw = [0u8; 8];
        raw.copy_from_slice(&trailer[at..at + 8]);
        u64::from_le_bytes(raw)
    };
    let (start, size) = (word(0), word(8));
    if trailer[56..] != MAGIC || word(48) != length || start.checked_add(size) != Some(length - TRAILER) {
        return Err(damaged("it was not written to its end"));
    }
    if start < ALIGNMENT || size > MOST_METADATA {
        return Err(damaged("its metadata are too large"));
    }
    let mut encoded = vec![0u8; size as usize];
    file.read_exact_at(&mut encoded, start).context(what)?;
    if blake3::hash(&encoded).as_bytes()[..] != trailer[16..48] {
        return Err(damaged("its metadata are altered"));
    }
    let info: PartInfo = ciborium::from_reader(encoded.as_slice())
        .map_err(|error| damaged(&format!("its metadata cannot be read: {error}")))?;
    check(&info, start).map_err(|what| damaged(&what))?;
    Ok(info)
}

/// Whether metadata make sense: a file with a right hash can still come from anybody.
fn check(info: &PartInfo, end: u64) -> std::result::Result<(), String> {
    if info.rank >= info.ranks {
        return Err(format!("it is part {} of {}", info.rank, info.ranks));
    }
    let mut names = BTreeSet::new();
    if let Some(file) = info.files.iter().find(|file| files::check_name(&file.name).is_err()) {
        return Err(format!("a file has the name {:?}", file.name));
    }
    for variable in &info.variables {
        let name = &variable.name;
        if check_name(name).is_err() || !names.insert(name) {
            return Err(format!("a variable has the name {name:?}"));
        }
        if bytes_of(variable.element, &variable.shape) != Some(variable.bytes) {
            return Err(format!("variable {name} has another length than its shape says"));
        }
        if variable.bytes.div_ceil(CHUNK) != variable.chunks.len() as u64 {
            return Err(format!("variable {name} has {} chunks", variable.chunks.len()));
        }
        for (index, chunk) in variable.chunks.iter().enumerate() {
            let length = CHUNK.min(variable.bytes - index as u64 * CHUNK);
            let inside = chunk.offset >= ALIGNMENT && chunk.offset.checked_add(length).is_some_and(|last| last <= end);
            if chunk.generation > info.generation || (chunk.generation == info.generation && !inside) {
                return Err(format!("variable {name} leads out of the file"));
            }
        }
    }
    Ok(())
}
