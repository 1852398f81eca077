//! POSIX shared memory: files of /dev/shm that the job has mapped to write to.
//!
//! They have names but are memory: a restart gives them the contents they had at the checkpoint, and makes those again
//! that are missing, as after the machine was started anew.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirEntryExt;

use cpr_image::model::{ByteString, Manifest, SavedFile, SavedFileKind};
use cpr_kernel::proc::MapEntry;
use cpr_types::{Context, Result};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::saved;
use crate::sink::PageSource;

const DIRECTORY: &str = "/dev/shm/";
const TMPFS_MAGIC: u64 = 0x0102_1994;

fn io(error: Errno) -> std::io::Error {
    error.into()
}

/// The file behind a mapping, if it lies in /dev/shm, and its path.
pub fn find(map: &MapEntry) -> Option<(OwnedFd, ByteString)> {
    if !map.path.starts_with(DIRECTORY.as_bytes()) {
        return None;
    }
    let path = if map.deleted {
        // sem_open(3) makes a semaphore under another name, which it takes away when the proper one is there.
        let entries = std::fs::read_dir(DIRECTORY).ok()?;
        let found = entries.flatten().find(|entry| entry.ino() == map.inode)?;
        ByteString(found.path().into_os_string().into_vec())
    } else {
        ByteString(map.path.clone())
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path.as_path(), flags, Mode::empty()).ok()?;
    let is_memory = rustix::fs::fstatfs(&fd).is_ok_and(|statfs| statfs.f_type as u64 == TMPFS_MAGIC);
    let stat = rustix::fs::fstat(&fd).ok()?;
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    (is_memory && stat.st_ino == map.inode && device == map.dev).then_some((fd, path))
}

/// Opens a file that [`SharedMemory::create`] has found or made.
pub(super) fn open(path: &ByteString) -> Result<OwnedFd> {
    rustix::fs::open(
        path.as_path(),
        OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io)
    .context(|| format!("open {path}"))
}

/// Shared memory of a restart. Files that were made are removed again when this is dropped before
/// [`SharedMemory::keep`].
#[derive(Debug, Default)]
pub struct SharedMemory {
    made: Vec<ByteString>,
}

impl SharedMemory {
    /// Makes the files that are missing, with their contents. Files that are there are not touched.
    ///
    /// # Errors
    /// One cannot be made.
    pub fn create(manifest: &Manifest, source: &dyn PageSource) -> Result<Self> {
        let mut memory = SharedMemory::default();
        for (path, file) in files(manifest) {
            memory
                .create_one(path, file, source)
                .context(|| format!("make shared memory {path} again"))?;
        }
        Ok(memory)
    }

    fn create_one(&mut self, path: &ByteString, file: &SavedFile, source: &dyn PageSource) -> Result<()> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path.as_path(), flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(()),
            Err(error) => return Err(io(error)).context(|| "create it"),
        };
        self.made.push(path.clone());
        let what = || format!("make it {} bytes long", file.size);
        rustix::fs::ftruncate(&fd, file.size).map_err(io).context(what)?;
        saved::fill(fd.as_fd(), file, source)?;
        saved::set_owner(fd.as_fd(), file)
    }

    /// Gives the files that were there the contents they had at the checkpoint, and keeps all. `opened` are the image's
    /// saved files.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn keep(mut self, manifest: &Manifest, opened: &[OwnedFd], source: &dyn PageSource) -> Result<()> {
        for (file, fd) in manifest.saved_files.iter().zip(opened) {
            let SavedFileKind::SharedMemory { path } = &file.kind else {
                continue;
            };
            if self.made.contains(path) {
                continue;
            }
            let refill = || -> Result<()> {
                // Zeros first: without a moment at which it is too short for those who have it mapped.
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                if file.size > 0 {
                    rustix::fs::fallocate(fd, flags, 0, file.size)
                        .map_err(io)
                        .context(|| "clear it")?;
                }
                rustix::fs::ftruncate(fd, file.size)
                    .map_err(io)
                    .context(|| format!("make it {} bytes long", file.size))?;
                saved::fill(fd.as_fd(), file, source)
            };
            refill().context(|| format!("fill shared memory {path}"))?;
        }
        self.made.clear();
        Ok(())
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        for path in self.made.drain(..) {
            // On failure there is nobody to tell that one more thing failed.
            let _ = rustix::fs::unlink(path.as_path());
        }
    }
}

fn files(manifest: &Manifest) -> impl Iterator<Item = (&ByteString, &SavedFile)> {
    manifest.saved_files.iter().filter_map(|file| match &file.kind {
        SavedFileKind::SharedMemory { path } => Some((path, file)),
        _ => None,
    })
}

/// Whether the image carries the contents of the file with this path.
pub fn has(manifest: &Manifest, path: &ByteString) -> bool {
    files(manifest).any(|(saved, _)| saved == path)
}
