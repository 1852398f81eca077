//! What is in a file system in memory.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use cpr_image::model::{ByteString, Bytes, MemoryFile, MemoryFileKind};
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::files::copy_file;
use crate::sink::PageSink;

/// Directories in each other, as many as an image may have.
const MAX_DEPTH: usize = 256;
/// Files, as many as an image may have.
const MAX_FILES: usize = 1 << 20;

fn io(error: Errno) -> std::io::Error {
    error.into()
}

/// Reads everything in the file system that `root` is a directory of; nothing else may be mounted below it. `place` is
/// where it is, for messages.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for more than an image holds; something cannot be read.
pub fn save(root: &File, place: &str, sink: &mut dyn PageSink) -> Result<Vec<MemoryFile>> {
    let stat = rustix::fs::fstat(root)
        .map_err(io)
        .context(|| format!("look at {place}"))?;
    let mut contents = Contents {
        files: Vec::new(),
        known: HashMap::new(),
        sink,
    };
    let own = format!("/proc/self/fd/{}/.", root.as_raw_fd());
    contents.add(0, Vec::new(), &stat, MemoryFileKind::Directory, own.as_bytes())?;
    contents.directory(root.as_fd(), 0, place, 0)?;
    Ok(contents.files)
}

struct Contents<'a> {
    files: Vec<MemoryFile>,
    /// Files with several names, by inode number.
    known: HashMap<u64, u32>,
    sink: &'a mut dyn PageSink,
}

impl Contents<'_> {
    fn directory(&mut self, directory: BorrowedFd<'_>, number: u32, place: &str, depth: usize) -> Result<()> {
        let what = || format!("list {place}");
        let entries = rustix::fs::Dir::read_from(directory).map_err(io).context(what)?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io).context(what)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            let place = format!("{}/{}", place.trim_end_matches('/'), String::from_utf8_lossy(&name));
            self.entry(directory, number, name, &place, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        parent: u32,
        name: Vec<u8>,
        place: &str,
        depth: usize,
    ) -> Result<()> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::Unsupported, format!("{place}: {why}")));
        let what = || format!("look at {place}");
        let stat = rustix::fs::statat(directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io)
            .context(what)?;
        let number = self.files.len() as u32;
        if self.files.len() >= MAX_FILES {
            return refuse("there are more files in memory than can be saved");
        }
        let own = [
            format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(),
            name.as_slice(),
        ]
        .concat();
        let kind = FileType::from_raw_mode(stat.st_mode);
        if let Some(known) = self.known.get(&stat.st_ino) {
            let kind = MemoryFileKind::Same { as_file: *known };
            return self.add(parent, name, &stat, kind, &own);
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            self.known.insert(stat.st_ino, number);
        }
        let open = |flags: OFlags| {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name.as_slice(), flags, Mode::empty())
                .map_err(io)
                .context(|| format!("open {place}"))
        };
        let saved = match kind {
            FileType::Directory if depth + 1 >= MAX_DEPTH => {
                return refuse("directories lie in each other deeper than can be saved");
            }
            FileType::Directory => {
                let inner = open(OFlags::RDONLY | OFlags::DIRECTORY)?;
                self.add(parent, name, &stat, MemoryFileKind::Directory, &own)?;
                return self.directory(inner.as_fd(), number, place, depth + 1);
            }
            FileType::RegularFile => {
                let file = open(OFlags::RDONLY | OFlags::NONBLOCK)?;
                let size = stat.st_size as u64;
                let extents = copy_file(file.as_fd(), true, size, self.sink).context(|| format!("save {place}"))?;
                MemoryFileKind::Regular { size, extents }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name.as_slice(), Vec::new());
                let target = target.map_err(io).context(what)?;
                MemoryFileKind::Link {
                    target: ByteString(target.into_bytes()),
                }
            }
            FileType::Fifo => MemoryFileKind::Fifo,
            FileType::CharacterDevice | FileType::BlockDevice => MemoryFileKind::Device {
                block: kind == FileType::BlockDevice,
                rdev: stat.st_rdev,
            },
            FileType::Socket => MemoryFileKind::Socket,
            FileType::Unknown => return refuse("what it is is not known"),
        };
        self.add(parent, name, &stat, saved, &own)
    }

    fn add(&mut self, parent: u32, name: Vec<u8>, stat: &Stat, kind: MemoryFileKind, path: &[u8]) -> Result<()> {
        let time =
            |seconds: i64, nanoseconds: u64| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds as i64);
        let attributes = match kind {
            MemoryFileKind::Same { .. } => Vec::new(),
            _ => attributes(path)?,
        };
        self.files.push(MemoryFile {
            parent,
            name: ByteString(name),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            atime_ns: time(stat.st_atime, stat.st_atime_nsec),
            mtime_ns: time(stat.st_mtime, stat.st_mtime_nsec),
            attributes,
            kind,
        });
        Ok(())
    }
}

/// Extended attributes of a file, by a path that is not followed at its end.
fn attributes(path: &[u8]) -> Result<Vec<(ByteString, Bytes)>> {
    const LONGEST: usize = 64 << 10;
    let what = || format!("read the attributes of {}", String::from_utf8_lossy(path));
    let mut names = vec![0; LONGEST];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(io(error)).context(what),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; LONGEST];
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice())
            .map_err(io)
            .context(what)?;
        value.truncate(length);
        found.push((ByteString(name.to_vec()), Bytes(value)));
    }
    Ok(found)
}
