//! The image of a job that another engine has saved: the engine's own files in one, with a record of what they are of.
//!
//! It is called `NAME.cpr` like any other image and appears under its name in the same way ([`crate::PendingImage`]).
//! `docs/image-format.md` describes the layout. Order of belief: length, magic numbers, hash of the table, the table
//! itself; of a file's contents nothing before its hash has been compared.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::format::{damaged, truncated};
use crate::writer::full;

const MAGIC: [u8; 8] = *b"\x89CPRENG\n";
const END_MAGIC: [u8; 8] = *b"\x89CPREEND";
const VERSION: u32 = 1;
/// Magic number, version, reserved.
const HEAD: u64 = 16;
/// Offset and length of the table, its hash, magic number.
const TRAILER: u64 = 56;
/// Longest table.
const LONGEST_TABLE: u64 = 64 << 20;
/// Most directories below one another.
const DEEPEST: usize = 32;
const BUFFER: usize = 1 << 20;

/// What the files of an engine are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRecord {
    /// What makes this image distinct from all others, 32 hexadecimal digits.
    pub id: String,
    /// Name of the engine.
    pub engine: String,
    /// Its version, where it is known.
    pub version: Option<String>,
    /// Name of the job.
    pub job: String,
    /// Whose job it is.
    pub owner_uid: u32,
    /// When it was saved, nanoseconds since the epoch.
    pub time_ns: u64,
    /// Where it was saved, as uname(2) calls the node.
    pub node: String,
    /// Program and arguments the job was started with.
    pub command: Vec<String>,
    /// Directory it was started in.
    pub directory: PathBuf,
    /// PID of its root process in its own PID namespace.
    pub root: i32,
    /// PIDs of all its processes there.
    pub processes: Vec<i32>,
    /// What kind of group the engine took them for, and which one: a `tree` by its root, a `pid-namespace`….
    pub group: (String, String),
}

/// A file of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    /// Where it belongs, below the engine's directory.
    pub path: PathBuf,
    /// Where its contents begin in the image.
    pub offset: u64,
    /// How long they are, bytes.
    pub length: u64,
    /// Permission bits.
    pub mode: u32,
    /// BLAKE3 of the contents, in hexadecimal.
    pub hash: String,
}

#[derive(Serialize, Deserialize)]
struct Table {
    record: BundleRecord,
    files: Vec<BundleFile>,
}

/// An opened image of another engine.
#[derive(Debug)]
pub struct Bundle {
    file: File,
    name: String,
    length: u64,
    root_hash: [u8; 32],
    record: BundleRecord,
    files: Vec<BundleFile>,
}

/// Whether an image that begins with these bytes is one of another engine.
pub(crate) fn begins_like_one(first: &[u8]) -> bool {
    first.starts_with(&MAGIC)
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleSummary {
    /// Length of the image, bytes.
    pub length: u64,
    /// Length of the engine's files, bytes.
    pub data_bytes: u64,
    /// Hash that stands for all of it.
    pub root_hash: [u8; 32],
}

/// Counts what goes through.
struct Counting<W> {
    sink: W,
    written: u64,
}

impl<W: Write> Counting<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink
            .write_all(bytes)
            .map_err(|error| full(error, "write the image".to_string()))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Writes the regular files below `directory`, and what they are of. A file that grows meanwhile is cut, one that
/// shrinks is an error.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where there is anything but files and directories; reading or writing fails.
pub fn write_bundle(sink: impl Write, directory: &Path, record: BundleRecord) -> Result<BundleSummary> {
    let mut sink = Counting { sink, written: 0 };
    sink.put(&MAGIC)?;
    sink.put(&VERSION.to_le_bytes())?;
    sink.put(&[0; 4])?;
    let mut paths = Vec::new();
    collect(directory, Path::new(""), 0, &mut paths)?;
    let mut files = Vec::new();
    for path in paths {
        files.push(put_file(&mut sink, directory, path)?);
    }
    let data_bytes = sink.written - HEAD;
    let offset = sink.written;
    let table = serde_json::to_vec(&Table { record, files })
        .map_err(|error| Error::new(ErrorKind::Internal, "encode the table of an image").with_source(error))?;
    let root_hash = *blake3::hash(&table).as_bytes();
    sink.put(&table)?;
    sink.put(&offset.to_le_bytes())?;
    sink.put(&(table.len() as u64).to_le_bytes())?;
    sink.put(&root_hash)?;
    sink.put(&END_MAGIC)?;
    sink.sink
        .flush()
        .map_err(|error| full(error, "write the image".to_string()))?;
    Ok(BundleSummary {
        length: sink.written,
        data_bytes,
        root_hash,
    })
}

/// Paths of the files below a directory, in the order of their names.
fn collect(base: &Path, below: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let directory = base.join(below);
    let what = || format!("list directory {}", directory.display());
    if depth > DEEPEST {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is too deep", directory.display()),
        ));
    }
    let mut entries = std::fs::read_dir(&directory)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .context(what)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = below.join(entry.file_name());
        let kind = entry.file_type().context(what)?;
        if kind.is_dir() {
            collect(base, &path, depth + 1, found)?;
        } else if kind.is_file() {
            found.push(path);
        } else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} is neither a file nor a directory", base.join(path).display()),
            ));
        }
    }
    Ok(())
}

fn put_file<W: Write>(sink: &mut Counting<W>, base: &Path, path: PathBuf) -> Result<BundleFile> {
    let whole = base.join(&path);
    let what = || format!("read {}", whole.display());
    // Between listing and opening, somebody may have put something else there.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(&whole)
        .context(what)?;
    let metadata = file.metadata().context(what)?;
    if !metadata.is_file() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is not a regular file", whole.display()),
        ));
    }
    let offset = sink.written;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    let mut reader = file.take(metadata.len());
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                sink.put(&buffer[..read])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(what),
        }
    }
    let length = sink.written - offset;
    if length != metadata.len() {
        return Err(Error::new(
            ErrorKind::Gone,
            format!("{} became shorter while it was read", whole.display()),
        ));
    }
    Ok(BundleFile {
        path,
        offset,
        length,
        mode: metadata.mode() & 0o777,
        hash: hasher.finalize().to_hex().to_string(),
    })
}

impl Bundle {
    /// Opens an image where it is one of another engine; none where it begins like something else, or cannot be opened.
    ///
    /// # Errors
    /// It begins like one and is damaged.
    pub fn recognise(path: &Path) -> Result<Option<Bundle>> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let mut options = std::fs::OpenOptions::new();
        let Ok(file) = options.read(true).custom_flags(flags.bits() as i32).open(path) else {
            return Ok(None);
        };
        let mut first = [0; MAGIC.len()];
        if file.read_exact_at(&mut first, 0).is_err() || !begins_like_one(&first) {
            return Ok(None);
        }
        Bundle::of_file(file, &path.display().to_string()).map(Some)
    }

    fn of_file(file: File, name: &str) -> Result<Bundle> {
        let what = || format!("read image {name}");
        let length = file.metadata().context(what)?.len();
        let mut head = [0; HEAD as usize];
        let end = length.checked_sub(TRAILER).filter(|end| *end >= HEAD);
        let end = end.ok_or_else(|| truncated(name, "its end mark is missing"))?;
        file.read_exact_at(&mut head, 0).context(what)?;
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Incompatible,
                format!(
                    "image {name} has version {version} of the format for engines, and this program knows {VERSION}"
                ),
            ));
        }
        if head[12..] != [0; 4] {
            return Err(damaged(name, "its head (at offset 12) is altered"));
        }
        let mut trailer = [0; TRAILER as usize];
        file.read_exact_at(&mut trailer, end).context(what)?;
        if trailer[48..] != END_MAGIC {
            return Err(truncated(name, "its end mark is missing"));
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&trailer[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (offset, table_length) = (number(0), number(8));
        if offset < HEAD || table_length > LONGEST_TABLE || offset.checked_add(table_length) != Some(end) {
            return Err(damaged(name, "its end mark (the last 56 bytes) is altered"));
        }
        let mut bytes = vec![0; table_length as usize];
        file.read_exact_at(&mut bytes, offset).context(what)?;
        let mut root_hash = [0; 32];
        root_hash.copy_from_slice(&trailer[16..48]);
        if *blake3::hash(&bytes).as_bytes() != root_hash {
            return Err(damaged(name, "its table is altered"));
        }
        let table: Table = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(name, "its table is not understood").with_source(error))?;
        let mut next = HEAD;
        for file in &table.files {
            let inside = file.offset == next && file.length <= offset - next;
            if !inside || !is_safe(&file.path) || file.mode > 0o777 {
                return Err(damaged(name, format!("its entry for {} is wrong", file.path.display())));
            }
            next += file.length;
        }
        if next != offset || table.record.root <= 0 {
            return Err(damaged(name, "its table contradicts itself"));
        }
        Ok(Bundle {
            file,
            name: name.to_string(),
            length,
            root_hash,
            record: table.record,
            files: table.files,
        })
    }

    /// The user its file belongs to, who can have written what it says.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn file_owner(&self) -> Result<u32> {
        let metadata = self.file.metadata();
        Ok(metadata.context(|| format!("look at image {}", self.name))?.uid())
    }

    /// What it is of.
    pub fn record(&self) -> &BundleRecord {
        &self.record
    }

    /// The engine's files.
    pub fn files(&self) -> &[BundleFile] {
        &self.files
    }

    /// Length of the image, bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Hash that stands for all of it.
    pub fn root_hash(&self) -> &[u8; 32] {
        &self.root_hash
    }

    /// Compares every hash.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with the name of the first file that is altered.
    pub fn verify(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| self.copy(file, &mut io::sink()))
    }

    /// Puts the engine's files into a directory that is there and empty. What is not complete is of no use: the caller
    /// removes it.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with the name of the first file that is altered; writing fails.
    pub fn extract(&self, directory: &Path) -> Result<()> {
        for file in &self.files {
            let path = directory.join(&file.path);
            let what = || format!("write {}", path.display());
            if let Some(parent) = path.parent() {
                let mut builder = std::fs::DirBuilder::new();
                builder.recursive(true).mode(0o700).create(parent).context(what)?;
            }
            let mut options = std::fs::OpenOptions::new();
            let mut copy = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .context(what)?;
            self.copy(file, &mut copy)?;
            copy.set_permissions(std::fs::Permissions::from_mode(file.mode | 0o600))
                .context(what)?;
        }
        Ok(())
    }

    fn copy(&self, file: &BundleFile, sink: &mut impl Write) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; BUFFER.min(file.length as usize)];
        let (mut offset, end) = (file.offset, file.offset + file.length);
        while offset < end {
            let part = &mut buffer[..BUFFER.min((end - offset) as usize)];
            self.file
                .read_exact_at(part, offset)
                .context(|| format!("read image {}", self.name))?;
            hasher.update(part);
            sink.write_all(part)
                .map_err(|error| full(error, format!("write {}", file.path.display())))?;
            offset += part.len() as u64;
        }
        if hasher.finalize().to_hex().as_str() == file.hash {
            return Ok(());
        }
        Err(damaged(
            &self.name,
            format!("its file {} ({} bytes) is altered", file.path.display(), file.length),
        ))
    }
}

/// Whether a path leads nowhere but below where it is put.
fn is_safe(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some()
        && parts.clone().count() <= DEEPEST + 2
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && !path.to_string_lossy().contains('\0')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record() -> BundleRecord {
        BundleRecord {
            id: "00".repeat(16),
            engine: "paint".to_string(),
            version: None,
            job: "sim".to_string(),
            owner_uid: 0,
            time_ns: 1,
            node: "here".to_string(),
            command: vec!["sim".to_string()],
            directory: PathBuf::from("/"),
            root: 2,
            processes: vec![2],
            group: ("tree".to_string(), "2".to_string()),
        }
    }

    fn written() -> (tempfile::TempDir, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let files = directory.path().join("files");
        std::fs::create_dir_all(files.join("sub")).unwrap();
        std::fs::write(files.join("a"), b"first").unwrap();
        std::fs::write(files.join("empty"), b"").unwrap();
        std::fs::write(files.join("sub/b"), vec![7; 3 << 20]).unwrap();
        let mut image = Vec::new();
        let summary = write_bundle(&mut image, &files, record()).unwrap();
        assert_eq!(summary.length, image.len() as u64);
        (directory, image)
    }

    fn open(directory: &Path, bytes: &[u8]) -> Result<Option<Bundle>> {
        let path = directory.join("x.cpr");
        std::fs::write(&path, bytes).unwrap();
        Bundle::recognise(&path)
    }

    #[test]
    fn files_come_back_as_they_were() {
        let (directory, image) = written();
        let bundle = open(directory.path(), &image).unwrap().unwrap();
        assert_eq!(*bundle.record(), record());
        bundle.verify().unwrap();
        let back = directory.path().join("back");
        std::fs::create_dir(&back).unwrap();
        bundle.extract(&back).unwrap();
        assert_eq!(std::fs::read(back.join("a")).unwrap(), b"first");
        assert_eq!(std::fs::read(back.join("empty")).unwrap(), b"");
        assert_eq!(std::fs::read(back.join("sub/b")).unwrap(), vec![7; 3 << 20]);
        // An image of ours says so, where one of another engine is opened as ours.
        let refusal = crate::Image::open(&directory.path().join("x.cpr")).unwrap_err();
        assert_eq!(refusal.kind(), ErrorKind::Unsupported);
        assert!(open(directory.path(), b"something else").unwrap().is_none());
    }

    #[test]
    fn every_altered_or_missing_byte_is_found() {
        let (directory, image) = written();
        let length = image.len();
        let places = (0..HEAD as usize + 8).chain((length - 900..length).step_by(7));
        for at in places {
            let mut altered = image.clone();
            altered[at] ^= 0x20;
            match open(directory.path(), &altered) {
                Ok(None) => assert!(at < 8, "{at}"),
                Ok(Some(bundle)) => assert!(bundle.verify().is_err(), "{at}"),
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incompatible),
                    "{at}: {error:?}"
                ),
            }
        }
        for cut in [8, 15, 16, 60, length / 2, length - 57, length - 1] {
            assert!(open(directory.path(), &image[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn nothing_leads_out_of_the_directory() {
        for bad in ["", "/a", "../a", "a/../../b", "./../x", "."] {
            assert!(!is_safe(Path::new(bad)), "{bad}");
        }
        assert!(is_safe(Path::new("a/b")));
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).unwrap();
        let refusal = write_bundle(io::sink(), directory.path(), record()).unwrap_err();
        assert_eq!(refusal.kind(), ErrorKind::Unsupported);
    }
}
