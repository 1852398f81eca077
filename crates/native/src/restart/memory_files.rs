//! Filling file systems in memory.
//!
//! Everything is made in a directory that is open, under a name that leads nowhere else, and never over what is there:
//! an image cannot have anything made elsewhere.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cpr_image::model::{ByteString, MemoryFile, MemoryFileKind};
use cpr_kernel::process::FileIdentity;
use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::files::fill_extents;
use crate::sink::PageSource;

fn io(error: Errno) -> std::io::Error {
    error.into()
}

/// Makes a directory of a new file system, and those above it, from its root directory on.
///
/// # Errors
/// The kernel refuses one.
pub fn descend(root: &File, path: &ByteString) -> Result<File> {
    let what = || format!("make {path} in a file system in memory");
    let mut at = root.try_clone().context(what)?;
    for name in path.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let stat = rustix::fs::fstat(&at).map_err(io).context(what)?;
        let make = || rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755));
        match make() {
            Err(Errno::OVERFLOW) => {
                let _identity = FileIdentity::assume(stat.st_uid, stat.st_gid);
                make()
            }
            other => other,
        }
        .map_err(io)
        .context(what)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, name, flags, Mode::empty())
            .map_err(io)
            .context(what)?
            .into();
    }
    Ok(at)
}

/// Makes everything in an empty directory of a new file system.
///
/// # Errors
/// [`ErrorKind::Damaged`] for files that are in no directory; the kernel refuses one.
pub fn fill(root: &File, files: &[MemoryFile], source: &dyn PageSource) -> Result<()> {
    let links = files.iter().filter_map(|file| match file.kind {
        MemoryFileKind::Same { as_file } => Some(as_file as usize),
        _ => None,
    });
    let mut filling = Filling {
        files,
        source,
        linked: links.collect(),
        known: HashMap::new(),
        around: Vec::new(),
    };
    let root = root.try_clone().context(|| "copy a descriptor")?;
    filling.around.push((0, root.into()));
    for (index, file) in files.iter().enumerate().skip(1) {
        while filling
            .around
            .last()
            .is_some_and(|(directory, _)| *directory != file.parent as usize)
        {
            filling.leave()?;
        }
        filling
            .make(index)
            .context(|| format!("make {} in a file system in memory again", file.name))?;
    }
    while !filling.around.is_empty() {
        filling.leave()?;
    }
    Ok(())
}

struct Filling<'a> {
    files: &'a [MemoryFile],
    source: &'a dyn PageSource,
    /// Files that have other names.
    linked: HashSet<usize>,
    /// Those of them that have been made.
    known: HashMap<usize, OwnedFd>,
    /// The directories that the present file is in, the innermost last.
    around: Vec<(usize, OwnedFd)>,
}

impl Filling<'_> {
    /// Gives a directory its mode and times, which making files in it would change.
    fn leave(&mut self) -> Result<()> {
        let Some((index, directory)) = self.around.pop() else {
            return Ok(());
        };
        let file = &self.files[index];
        let what = || format!("restore directory {}", file.name);
        if index == 0 {
            let (user, group) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
            let stat = rustix::fs::fstat(&directory).map_err(io).context(what)?;
            if (stat.st_uid, stat.st_gid) != (file.uid, file.gid) {
                rustix::fs::fchown(&directory, Some(user), Some(group))
                    .map_err(io)
                    .context(what)?;
            }
            let path = format!("/proc/self/fd/{}/.", directory.as_raw_fd());
            attributes(file, path.as_bytes()).context(what)?;
        }
        let mode = Mode::from_raw_mode(file.mode);
        rustix::fs::fchmod(&directory, mode).map_err(io).context(what)?;
        rustix::fs::futimens(&directory, &times(file)).map_err(io).context(what)
    }

    fn make(&mut self, index: usize) -> Result<()> {
        let file = &self.files[index];
        let missing = || Error::new(ErrorKind::Damaged, "it is in no directory");
        let (_, directory) = self.around.last().ok_or_else(missing)?;
        let directory = directory.as_fd();
        let name = file.name.0.as_slice();
        let made = match self.create(file, directory) {
            // Our user may not be one of those that the file system knows.
            Err(Errno::OVERFLOW) => {
                let _identity = FileIdentity::assume(file.uid, file.gid);
                self.create(file, directory)
            }
            other => other,
        };
        let contents = made.map_err(io).context(|| "create it")?;
        if matches!(file.kind, MemoryFileKind::Same { .. }) {
            return Ok(());
        }
        if let (Some(contents), MemoryFileKind::Regular { size, extents }) = (&contents, &file.kind) {
            rustix::fs::ftruncate(contents, *size)
                .map_err(io)
                .context(|| format!("make it {size} bytes long"))?;
            fill_extents(contents.as_fd(), *size, extents, self.source)?;
        }
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io)
            .context(|| "look at it")?;
        if (stat.st_uid, stat.st_gid) != (file.uid, file.gid) {
            let (user, group) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
            rustix::fs::chownat(directory, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(io)
                .context(|| format!("give it to user {} and group {}", file.uid, file.gid))?;
        }
        let own = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat();
        attributes(file, &own)?;
        if self.linked.contains(&index) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = rustix::fs::openat(directory, name, flags, Mode::empty());
            self.known.insert(index, node.map_err(io).context(|| "open it")?);
        }
        if file.kind == MemoryFileKind::Directory {
            let inner = contents.ok_or_else(missing)?;
            self.around.push((index, inner));
            return Ok(());
        }
        if !matches!(file.kind, MemoryFileKind::Link { .. }) {
            rustix::fs::chmodat(directory, name, Mode::from_raw_mode(file.mode), AtFlags::empty())
                .map_err(io)
                .context(|| format!("set its mode to {:o}", file.mode))?;
        }
        rustix::fs::utimensat(directory, name, &times(file), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io)
            .context(|| "set its times")
    }

    /// Makes a file; gives what directories and regular files are open on.
    fn create(&self, file: &MemoryFile, directory: BorrowedFd<'_>) -> std::result::Result<Option<OwnedFd>, Errno> {
        let name = file.name.0.as_slice();
        let own = Mode::RWXU;
        match &file.kind {
            MemoryFileKind::Directory => {
                rustix::fs::mkdirat(directory, name, own)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(directory, name, flags, Mode::empty()).map(Some)
            }
            MemoryFileKind::Regular { .. } => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(directory, name, flags, own).map(Some)
            }
            MemoryFileKind::Link { target } => rustix::fs::symlinkat(target.as_path(), directory, name).map(|()| None),
            // Whatever is bound to it comes later.
            MemoryFileKind::Socket => rustix::fs::mknodat(directory, name, FileType::Socket, own, 0).map(|()| None),
            MemoryFileKind::Fifo => rustix::fs::mknodat(directory, name, FileType::Fifo, own, 0).map(|()| None),
            MemoryFileKind::Device { block, rdev } => {
                let kind = match block {
                    true => FileType::BlockDevice,
                    false => FileType::CharacterDevice,
                };
                rustix::fs::mknodat(directory, name, kind, own, *rdev).map(|()| None)
            }
            MemoryFileKind::Same { as_file } => {
                let other = self.known.get(&(*as_file as usize)).ok_or(Errno::NOENT)?;
                let other = format!("/proc/self/fd/{}", other.as_raw_fd());
                rustix::fs::linkat(rustix::fs::CWD, other, directory, name, AtFlags::SYMLINK_FOLLOW).map(|()| None)
            }
        }
    }
}

/// Sets the extended attributes of a file, by a path that is not followed at its end.
fn attributes(file: &MemoryFile, path: &[u8]) -> Result<()> {
    for (name, value) in &file.attributes {
        rustix::fs::lsetxattr(path, name.0.as_slice(), &value.0, XattrFlags::empty())
            .map_err(io)
            .context(|| format!("set its attribute {name}"))?;
    }
    Ok(())
}

fn times(file: &MemoryFile) -> Timestamps {
    let time = |ns: i64| Timespec {
        tv_sec: ns.div_euclid(1_000_000_000),
        tv_nsec: ns.rem_euclid(1_000_000_000),
    };
    Timestamps {
        last_access: time(file.atime_ns),
        last_modification: time(file.mtime_ns),
    }
}
