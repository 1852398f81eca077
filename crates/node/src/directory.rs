//! A private directory held open: every access goes by descriptor and follows no symbolic link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cpr_types::{Context, Error, ErrorKind, Result};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

/// An open directory and the path it was reached by.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens `path`, made with mode 0700 where it is missing. It must belong to us and be closed to others.
    pub(crate) fn open_private(path: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .context(|| format!("make directory {}", path.display()))?;
        // The last component may be a symbolic link where the administrator or user made it one (~/.local/state).
        let fd = rustix::fs::open(path, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open directory {}", path.display()))?;
        let directory = Directory {
            fd,
            path: path.to_path_buf(),
        };
        directory.require_own()?;
        Ok(directory)
    }

    /// Opens a directory that belongs to user `uid`.
    pub(crate) fn open_of(path: &Path, uid: u32) -> Result<Self> {
        let what = || format!("open directory {}", path.display());
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .context(what)?;
        let stat = rustix::fs::fstat(&fd).map_err(io::Error::from).context(what)?;
        if stat.st_uid != uid {
            let message = format!("directory {} does not belong to user {uid}", path.display());
            return Err(Error::new(ErrorKind::Denied, message));
        }
        Ok(Directory {
            fd,
            path: path.to_path_buf(),
        })
    }

    /// Opens a directory that exists, to read it.
    pub(crate) fn open_existing(path: &Path) -> Result<Self> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open directory {}", path.display()))?;
        Ok(Directory {
            fd,
            path: path.to_path_buf(),
        })
    }

    fn require_own(&self) -> Result<()> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(io::Error::from)
            .context(|| format!("examine directory {}", self.path.display()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "directory {} belongs to user {}, not to us",
                    self.path.display(),
                    stat.st_uid
                ),
            )
            .with_hint("set GRIDCPR_STATE_DIR to a directory of your own"));
        }
        if stat.st_mode & 0o077 != 0 {
            rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(0o700))
                .map_err(io::Error::from)
                .context(|| format!("close directory {} to others", self.path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path by which this very directory can be reached for calls that take only paths (sockets' 108 bytes).
    pub(crate) fn short_path(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Opens the subdirectory `name`.
    pub(crate) fn sub(&self, name: &str) -> Result<Directory> {
        let path = self.path.join(name);
        let fd = rustix::fs::openat(&self.fd, name, DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open directory {}", path.display()))?;
        Ok(Directory { fd, path })
    }

    /// Makes and opens the subdirectory `name`, which must not exist.
    pub(crate) fn create_sub(&self, name: &str) -> Result<Directory> {
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700))
            .map_err(io::Error::from)
            .context(|| format!("make directory {}", self.path.join(name).display()))?;
        self.sync()?;
        self.sub(name)
    }

    /// Opens the subdirectory `name`, made where it is missing.
    pub(crate) fn ensure_sub(&self, name: &str) -> Result<Directory> {
        match self.create_sub(name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.sub(name),
            result => result,
        }
    }

    fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd)
            .map_err(io::Error::from)
            .context(|| format!("write directory {}", self.path.display()))
    }

    /// Contents of the file `name`, none where there is no such file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let what = || format!("read {}", self.path.join(name).display());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io::Error::from(error)).context(what),
        };
        let mut bytes = Vec::new();
        file.take(64 << 20).read_to_end(&mut bytes).context(what)?;
        Ok(Some(bytes))
    }

    /// Replaces the file `name` as a whole: after a crash it has either its old contents or the new ones.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let what = || format!("write {}", self.path.join(name).display());
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".{name}.{}.{serial}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.fd, temporary.as_str(), flags, PRIVATE);
        let fd = match open() {
            Err(rustix::io::Errno::EXIST) => {
                // Left by a process of the same PID that was killed.
                let _ = rustix::fs::unlinkat(&self.fd, temporary.as_str(), AtFlags::empty());
                open()
            }
            result => result,
        };
        let mut file = File::from(fd.map_err(io::Error::from).context(what)?);
        let result = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(rustix::fs::renameat(&self.fd, temporary.as_str(), &self.fd, name)?));
        if result.is_err() {
            let _ = rustix::fs::unlinkat(&self.fd, temporary.as_str(), AtFlags::empty());
        }
        result.context(what)?;
        self.sync()
    }

    /// Opens the file `name` for appending, made with mode 0600.
    pub(crate) fn append(&self, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, PRIVATE)
            .map_err(io::Error::from)
            .context(|| format!("open {}", self.path.join(name).display()))
    }

    /// Removes the file `name`; it may be missing.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => self.sync(),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(io::Error::from(error)).context(|| format!("remove {}", self.path.join(name).display())),
        }
    }

    /// Names in it, without `.` and `..`, in ascending order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let what = || format!("list directory {}", self.path.display());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)
            .map_err(io::Error::from)
            .context(what)?
        {
            let entry = entry.map_err(io::Error::from).context(what)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Size and modification time (seconds, nanoseconds since the epoch) of the regular file `name`.
    pub(crate) fn file_size(&self, name: &OsStr) -> Option<(u64, i64)> {
        let stat = rustix::fs::statat(&self.fd, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        regular.then_some((stat.st_size as u64, stat.st_mtime as i64))
    }

    fn lock_file(&self, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, PRIVATE)
            .map_err(io::Error::from)
            .context(|| format!("open {}", self.path.join(name).display()))
    }

    /// Takes the lock `name`; none where somebody else holds it. It is held until the descriptor and its copies in
    /// other processes are closed.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<OwnedFd>> {
        let fd = self.lock_file(name)?;
        // A reader that asks whether the lock is held has it for an instant; that must not look like a holder.
        let deadline = Instant::now() + Duration::from_millis(200);
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(fd)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    crate::wire::wait(&[], Some(Instant::now() + Duration::from_millis(5)))
                        .context(|| "wait for a lock")?;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(io::Error::from(error)).context(|| format!("lock {}", self.path.join(name).display()));
                }
            }
        }
    }

    /// Whether somebody holds the lock `name`.
    pub(crate) fn is_locked(&self, name: &str) -> Result<bool> {
        // Never made here: whoever only looks, as root at a user's jobs, must not leave a file that the user cannot
        // open.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            Err(error) => {
                return Err(io::Error::from(error)).context(|| format!("open {}", self.path.join(name).display()));
            }
        };
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => {
                Err(io::Error::from(error)).context(|| format!("test lock {}", self.path.join(name).display()))
            }
        }
    }

    /// Removes the subdirectory `name` with everything in it.
    pub(crate) fn remove_tree(&self, name: &str) -> Result<()> {
        // remove_dir_all works by descriptors below the directory and follows no symbolic link.
        let path = self.path.join(name);
        std::fs::remove_dir_all(&path).context(|| format!("remove {}", path.display()))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn directory() -> (tempfile::TempDir, Directory) {
        let base = tempfile::tempdir().unwrap();
        let directory = Directory::open_private(&base.path().join("a/b")).unwrap();
        (base, directory)
    }

    #[test]
    fn files_are_private_and_replaced_whole() {
        let (_base, d) = directory();
        assert_eq!(d.read("x").unwrap(), None);
        d.write("x", b"one").unwrap();
        d.write("x", b"two").unwrap();
        assert_eq!(d.read("x").unwrap().unwrap(), b"two");
        let mode = std::fs::metadata(d.path().join("x")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(
            std::fs::metadata(d.path()).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        assert_eq!(d.names().unwrap(), ["x"], "no temporary file left");
    }

    #[test]
    fn links_are_not_followed() {
        let (base, d) = directory();
        std::fs::write(base.path().join("outside"), "secret").unwrap();
        std::os::unix::fs::symlink(base.path().join("outside"), d.path().join("x")).unwrap();
        assert!(d.read("x").is_err());
        assert!(d.append("x").is_err());
        d.write("x", b"new").unwrap();
        assert_eq!(std::fs::read(base.path().join("outside")).unwrap(), b"secret");
        std::os::unix::fs::symlink(base.path(), d.path().join("link")).unwrap();
        assert!(d.sub("link").is_err());
    }

    #[test]
    fn locks_exclude() {
        let (_base, d) = directory();
        assert!(!d.is_locked("lock").unwrap());
        assert!(d.names().unwrap().is_empty(), "looking leaves nothing behind");
        let held = d.try_lock("lock").unwrap().unwrap();
        assert!(d.is_locked("lock").unwrap());
        assert!(d.try_lock("lock").unwrap().is_none());
        drop(held);
        assert!(d.try_lock("lock").unwrap().is_some());
    }
}
